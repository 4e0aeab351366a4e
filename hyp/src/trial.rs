//! A trial of live changes: some CPUs read, write and execute in a range without pause while another splits and protects it.
//!
//! Invariant: whatever the one does, the others never see a fault, a wrong value or a lost write. The changes never take away what the
//! others do to a page, so a permission is not what is tried here, but everything that a change passes through on its way.
//!
//! There are two ranges. When the leaves of one are used up, split to pages, the others are sent to the other one, and the first is made
//! of blocks again. For tests; the exception level, the map and the way to change it are the [`Subject`]'s.
//!
//! [`requests`] are another: there permissions are what is tried. [`owners`] are a third: who has a page.

pub mod guest;
pub mod owners;
pub mod requests;

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};

use crate::mapping::addr::ADDRESS_BITS;
use crate::mapping::{
    Address, Attributes, Change as MapChange, Leaves, Map, MapError, Mmu, Pa, Range, Regime,
};

/// Bytes of one of the two ranges: a run of 16 blocks of 2 MiB.
pub const SIZE: u64 = 32 << 20;
/// Bytes of the first part, which is executed, and of each part that follows.
pub const PART: u64 = 2 << 20;
const PAGE: u64 = 4096;
const PARTS: u64 = SIZE / PART;
/// Parts that are written, after the first.
const WRITTEN: u64 = 7;
/// CPUs that may touch.
pub const MOST_CPUS: usize = 8;
/// Changes after which a range is made of blocks again.
const CHANGES_EACH: u64 = 500;

// Calls of the host to a hypervisor that is built for trials.

/// The SHA-256 of nothing, by the CPU's instructions: 0 if that is right, 1 if it is wrong, 2 if there are no such instructions.
pub const HASH: u32 = 0xc600_0021;
/// Changes the host's stage 2: change, start, bytes. 0 if it was made.
pub const CHANGE_HOST: u32 = 0xc600_0010;
/// Gives EL2's trial two ranges of [`SIZE`] bytes. 0 if they are ready.
pub const PREPARE_EL2: u32 = 0xc600_0011;
/// Takes part in EL2's trial as one who touches: the number among those, below [`MOST_CPUS`]. 0 if it was one.
pub const TOUCH_EL2: u32 = 0xc600_0012;
/// Takes part as the one who changes: how many others, how many changes, seed. Changes made, refused, wrong address, passes.
pub const CHANGE_EL2: u32 = 0xc600_0013;
/// Prints EL2's maps in a build for dumps whose command line asks for them: the number of one of [`MOMENTS`]. 0 if there is such a moment.
pub const DUMP: u32 = 0xc600_0014;
/// Moments of a payload, as dumps name them: of the trials, and then [`PHASES`].
pub const MOMENTS: [&str; 7] =
    ["before the trials", "after the trials", PHASES[0], PHASES[1], PHASES[2], PHASES[3], PHASES[4]];
/// Phases in the lifecycle of CPUs.
pub const PHASES: [&str; 5] =
    ["boot CPU alone", "others have started", "all are known", "others came late", "one came back"];

/// What is done to a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// No writes; for parts that are only read.
    ReadOnly,
    /// Writes again.
    Writable,
    /// A mark that no CPU looks at.
    Mark(u8),
    /// No leaf crosses its ends.
    SplitEdges,
    /// Pages only.
    SplitToPages,
    /// No marks, and the largest leaves that fit, under those who use them.
    Collapse,
    /// Blocks again, the first part executable: nobody uses the range.
    Rebuild,
}

impl Change {
    /// As a number, for a call across exception levels.
    pub fn encode(self) -> u64 {
        match self {
            Self::ReadOnly => 0,
            Self::Writable => 1,
            Self::SplitEdges => 2,
            Self::SplitToPages => 3,
            Self::Rebuild => 4,
            Self::Collapse => 5,
            Self::Mark(value) => 8 + u64::from(value),
        }
    }
    /// The change of a number, if it is one.
    pub fn decode(number: u64) -> Option<Self> {
        Some(match number {
            0 => Self::ReadOnly,
            1 => Self::Writable,
            2 => Self::SplitEdges,
            3 => Self::SplitToPages,
            4 => Self::Rebuild,
            5 => Self::Collapse,
            8..16 => Self::Mark((number - 8) as u8),
            _ => return None,
        })
    }
}

/// Whose translations are tried.
pub trait Subject {
    /// Makes a change of `start` and `size` bytes, in force on all CPUs when it returns; `false` if it was refused.
    fn change(&self, change: Change, start: u64, size: u64) -> bool;
    /// Makes what was written at `start`, `size` bytes, code that all CPUs can fetch.
    fn publish_code(&self, start: u64, size: u64);
}

/// A map that translates addresses to themselves, and what the changes are in its regime.
pub struct Linear<'a, R: Regime, M: Mmu> {
    /// The map.
    pub map: &'a Map<R, M>,
    /// The slot of the CPU that changes it.
    pub cpu: usize,
    /// What blocks are made of.
    pub data: Attributes<R>,
    /// Takes writes away.
    pub read_only: MapChange<R>,
    /// Gives them back.
    pub writable: MapChange<R>,
    /// Makes the first part code.
    pub executable: MapChange<R>,
}

impl<R: Regime, M: Mmu> Linear<'_, R, M> {
    /// Makes a change of `start` and `size` bytes.
    ///
    /// # Errors
    /// What the map says, and [`MapError::OutOfReach`] for what is no range.
    pub fn change(&self, change: Change, start: u64, size: u64) -> Result<(), MapError> {
        let far = |_| MapError::OutOfReach { end: start.saturating_add(size), bits: ADDRESS_BITS };
        let range = |size| Range::<R::Input>::new(start, size).map_err(far);
        let debt = match change {
            Change::ReadOnly => self.map.protect(range(size)?, self.read_only)?,
            Change::Writable => self.map.protect(range(size)?, self.writable)?,
            Change::Mark(value) => self.map.protect(range(size)?, MapChange::software(value))?,
            Change::SplitEdges => self.map.split_edges(range(size)?)?,
            Change::SplitToPages => self.map.split_to_pages(range(size)?)?,
            Change::Collapse => {
                let mut cpu = self.map.cpu(self.cpu).ok_or(MapError::NotQuiet(start))?;
                let no_mark = MapChange::software(0);
                return cpu.write().protect_and_collapse(range(size)?, no_mark, Leaves::LARGEST);
            }
            Change::Rebuild => {
                let mut cpu = self.map.cpu(self.cpu).ok_or(MapError::NotQuiet(start))?;
                let mut writer = cpu.write();
                writer.unmap(range(size)?)?.flush();
                let output = Pa::new(start).map_err(far)?;
                writer.map(range(size)?, output, self.data, Leaves::LARGEST)?;
                self.map.protect(range(PART.min(size))?, self.executable)?
            }
        };
        debt.flush();
        Ok(())
    }
}

/// Calls the code at `address`.
///
/// # Safety
/// It is code of [`Trial::prepare`].
unsafe fn call(address: u64) -> u64 {
    // SAFETY: it returns a number and touches nothing else, by the caller's word.
    let code = unsafe { core::mem::transmute::<usize, extern "C" fn() -> u32>(address as usize) };
    code().into()
}

/// The state that all CPUs share.
pub struct Trial {
    ranges: [AtomicU64; 2],
    /// The range in use, 0 or 1.
    current: AtomicUsize,
    /// What each CPU uses, plus one.
    using: [AtomicUsize; MOST_CPUS],
    /// The ranges are what the others need, and the trial is not over.
    ready: AtomicBool,
    /// The first address that showed a wrong value.
    wrong: AtomicU64,
    /// Passes over a range by all CPUs together.
    passes: AtomicU64,
}

impl Default for Trial {
    fn default() -> Self {
        Self::new()
    }
}

/// `movz w0, #n; ret`.
fn code(number: u64) -> [u32; 2] {
    [0x5280_0000 | ((number as u32 & 0xffff) << 5), 0xd65f_03c0]
}

fn pattern(address: u64) -> u64 {
    address ^ 0x3c3c_5a5a_c3c3_a5a5
}

impl Trial {
    /// One that has no ranges yet.
    pub const fn new() -> Self {
        Self {
            ranges: [const { AtomicU64::new(0) }; 2],
            current: AtomicUsize::new(0),
            using: [const { AtomicUsize::new(0) }; MOST_CPUS],
            ready: AtomicBool::new(false),
            wrong: AtomicU64::new(0),
            passes: AtomicU64::new(0),
        }
    }

    /// Gives it two ranges of [`SIZE`] bytes, aligned to as much, mapped as data; fills them with patterns and code, and makes both of
    /// blocks.
    ///
    /// # Safety
    /// Both are memory that nothing else uses, mapped for reading and writing at these addresses, and no CPU is in a trial.
    pub unsafe fn prepare(&self, subject: &impl Subject, ranges: [u64; 2]) -> bool {
        self.ready.store(false, SeqCst);
        self.current.store(0, SeqCst);
        self.wrong.store(0, SeqCst);
        self.passes.store(0, SeqCst);
        self.using.iter().for_each(|slot| slot.store(0, SeqCst));
        for (slot, start) in self.ranges.iter().zip(ranges) {
            for page in (start..start + SIZE).step_by(PAGE as usize) {
                // SAFETY: memory that is the caller's, by its word.
                unsafe {
                    if page < start + PART {
                        (page as *mut [u32; 2]).write_volatile(code((page - start) / PAGE));
                    } else {
                        (page as *mut u64).write_volatile(pattern(page));
                    }
                }
            }
            subject.publish_code(start, PART);
            slot.store(start, SeqCst);
        }
        let ready = ranges.into_iter().all(|start| subject.change(Change::Rebuild, start, SIZE));
        self.ready.store(ready, SeqCst);
        ready
    }

    /// Whether [`Trial::prepare`] has returned `true`, and the trial is not over.
    pub fn is_ready(&self) -> bool {
        self.ready.load(SeqCst)
    }

    /// Reads, writes and executes as long as the trial is ready. The CPU is number `me` of those who do, from 0 to [`MOST_CPUS`] - 1.
    ///
    /// # Safety
    /// What [`Trial::prepare`] was promised still holds, and no two CPUs have the same number.
    pub unsafe fn touch(&self, me: usize) {
        let mine = |page: u64| (page + 64 * (me as u64 + 1)) as *mut u64;
        let mut count = 0u64;
        while self.is_ready() {
            let current = self.current.load(SeqCst);
            self.using[me].store(current + 1, SeqCst);
            if self.current.load(SeqCst) != current {
                // Sent away meanwhile: the one who changes may not have seen that it is in use.
                continue;
            }
            let start = self.ranges[current].load(SeqCst);
            count += 1;
            for page in (start..start + SIZE).step_by(PAGE as usize) {
                let part = (page - start) / PART;
                // SAFETY: the range is mapped as it must be for this, whatever its leaves; each CPU has its own word to write.
                let right = unsafe {
                    match part {
                        0 => call(page) == (page - start) / PAGE,
                        1..=WRITTEN => {
                            mine(page).write_volatile(count);
                            mine(page).read_volatile() == count
                                && (page as *const u64).read_volatile() == pattern(page)
                        }
                        _ => (page as *const u64).read_volatile() == pattern(page),
                    }
                };
                if !right {
                    let _ = self.wrong.compare_exchange(0, page, SeqCst, SeqCst);
                }
            }
            self.passes.fetch_add(1, SeqCst);
        }
        self.using[me].store(0, SeqCst);
    }

    /// Makes `count` changes at random while `others` CPUs touch, at most [`MOST_CPUS`], then ends the trial. Says what came of it: nothing
    /// if the trial was not ready.
    pub fn change(&self, subject: &impl Subject, others: usize, count: u64, seed: u64) -> Outcome {
        let mut random = Random::new(seed);
        let mut outcome = Outcome::default();
        if !self.is_ready() {
            return outcome;
        }
        while self.using[..others].iter().any(|slot| slot.load(SeqCst) == 0) {
            core::hint::spin_loop();
        }
        for number in 1..=count {
            let start = self.ranges[self.current.load(SeqCst)].load(SeqCst);
            let (change, at, size) = random.change(start);
            if subject.change(change, at, size) {
                outcome.changes += 1;
            } else {
                outcome.refused += 1;
            }
            if number % CHANGES_EACH == 0 {
                let before = self.current.load(SeqCst);
                self.current.store(1 - before, SeqCst);
                while self.using[..others].iter().any(|slot| slot.load(SeqCst) == before + 1) {
                    core::hint::spin_loop();
                }
                let start = self.ranges[before].load(SeqCst);
                outcome.refused += u64::from(!subject.change(Change::Rebuild, start, SIZE));
            }
        }
        self.ready.store(false, SeqCst);
        while self.using[..others].iter().any(|slot| slot.load(SeqCst) != 0) {
            core::hint::spin_loop();
        }
        Outcome { wrong: self.wrong.load(SeqCst), passes: self.passes.load(SeqCst), ..outcome }
    }
}

/// What came of a trial.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Changes that were made.
    pub changes: u64,
    /// Changes that were refused.
    pub refused: u64,
    /// The first address that showed a wrong value, 0 if none did.
    pub wrong: u64,
    /// Passes over a range by the CPUs that touched.
    pub passes: u64,
}

impl Outcome {
    /// Whether `count` changes were made and nobody noticed.
    pub fn holds(&self, count: u64) -> bool {
        self.changes == count && self.refused == 0 && self.wrong == 0 && self.passes > 0
    }
}

/// Marsaglia's xorshift: repeatable, and good enough to choose pages with.
#[derive(Clone, Copy, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of a seed; of 0 the same as of 1.
    pub fn new(seed: u64) -> Self {
        Self(seed.max(1))
    }

    /// Any number but 0.
    pub fn word(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `limit`, which is at most 2^53 and not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        (self.word() >> 11) % limit
    }

    fn change(&mut self, start: u64) -> (Change, u64, u64) {
        let kind = self.below(8);
        // Parts that are only read may lose their writes and get them back; the others are marked and split.
        let first = if kind < 3 { 1 + WRITTEN } else { 0 };
        let part = start + (first + self.below(PARTS - first)) * PART;
        let page = self.below(PART / PAGE);
        let most = if self.below(4) == 0 { PART / PAGE } else { 24 };
        let pages = 1 + self.below(most);
        let at = part + page * PAGE;
        let size = (pages * PAGE).min(start + SIZE - at);
        let change = match kind {
            0 | 1 => Change::ReadOnly,
            2 => Change::Writable,
            3..=5 => Change::Mark(self.below(8) as u8),
            6 => Change::SplitEdges,
            _ => match self.below(64) {
                0 => Change::SplitToPages,
                // A part, or all of them.
                1..=8 => return (Change::Collapse, part, PART),
                9 => return (Change::Collapse, start, SIZE),
                _ => Change::Mark(0),
            },
        };
        (change, at, size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_keep_their_numbers() {
        use Change::*;
        let all = [ReadOnly, Writable, SplitEdges, SplitToPages, Rebuild, Collapse];
        for change in all.into_iter().chain((0..8).map(Mark)) {
            assert_eq!(Change::decode(change.encode()), Some(change));
        }
        assert_eq!(Change::decode(6), None);
        assert_eq!(Change::decode(16), None);
    }

    #[test]
    fn nobody_touches_or_changes_what_was_not_prepared() {
        struct Unasked;
        impl Subject for Unasked {
            fn change(&self, change: Change, start: u64, _: u64) -> bool {
                panic!("{change:?} at {start:#x}");
            }
            fn publish_code(&self, _: u64, _: u64) {}
        }
        let trial = Trial::new();
        // SAFETY: it was promised nothing yet, and no other CPU takes part.
        unsafe { trial.touch(MOST_CPUS - 1) };
        assert_eq!(trial.change(&Unasked, MOST_CPUS, 1, 1), Outcome::default());
    }

    #[test]
    fn what_is_written_or_executed_is_never_made_read_only() {
        let mut random = Random::new(7);
        for _ in 0..100_000 {
            let (change, at, size) = random.change(0);
            assert!(size > 0 && at + size <= SIZE && (at | size).is_multiple_of(PAGE));
            if matches!(change, Change::ReadOnly | Change::Writable) {
                assert!(at >= (1 + WRITTEN) * PART);
            }
        }
    }
}
