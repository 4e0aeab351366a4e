//! The doorbell of test builds: a page that the host does not have, to which a program at its EL0, which cannot make calls, stores for
//! a change of the host's stage 2.
//!
//! Invariant: whatever a change takes from the host is back before the store that asked for it is done, and an access that another CPU
//! lost to it meanwhile is to be tried again. So the host can tell that it was changed by its loads from the page only.

use core::ops::ControlFlow;
use core::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, SeqCst},
    fence,
};

use log::{debug, error};
use spin::Mutex;

use crate::mapping::addr::ADDRESS_BITS;
use crate::mapping::{
    Address, Attributes, Change, Entry, GRANULE, Leaves, Map, MapError, Mmu, Pa, Range, Stage2,
};
use crate::trial::Random;

/// Bytes of a block of level 2, of a run of those, and of a block of level 1.
const BLOCKS: [u64; 3] = [2 << 20, 32 << 20, 1 << 30];

/// Where it counts; each of its words is read at 8 times its place here.
#[derive(Default)]
pub struct Doorbell {
    /// Odd while the map is being changed.
    turn: AtomicU64,
    alone: Mutex<()>,
    made: AtomicU64,
    refused: AtomicU64,
    met: AtomicU64,
}

/// What is done to a range.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ring {
    /// One change, which the host does not notice.
    Mark(u8),
    SplitEdges,
    SplitToPages,
    /// Something is taken away and given back.
    Moment(Change<Stage2>, Change<Stage2>),
    /// No marks, and the largest leaves that fit.
    Collapse,
    /// Everything is taken away, and comes back in the largest leaves that fit.
    Rebuild,
}

const READ_ONLY: Ring = Ring::Moment(Change::<Stage2>::READ_ONLY, Change::<Stage2>::WRITABLE);
const NO_EXECUTE: Ring = Ring::Moment(Change::<Stage2>::NO_EXECUTE, Change::<Stage2>::EXECUTABLE);
const NOTHING: Ring = Ring::Moment(Change::<Stage2>::INVALIDATE, Change::<Stage2>::VALIDATE);

impl Doorbell {
    /// One that was not rung.
    pub const fn new() -> Self {
        Self {
            turn: AtomicU64::new(0),
            alone: Mutex::new(()),
            made: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            met: AtomicU64::new(0),
        }
    }

    /// What a load at `offset` of the page reads: changes made, changes refused, accesses that met one.
    pub fn load(&self, offset: u64) -> Option<u64> {
        let words = [&self.made, &self.refused, &self.met];
        let word = offset.is_multiple_of(8).then(|| words.get((offset / 8) as usize))??;
        Some(word.load(Relaxed))
    }

    /// Makes a change that `seed` chooses somewhere in `ram`, all of which the host has at its own address, but for `hidden`. `cpu` is
    /// the slot of this CPU.
    pub fn ring<M: Mmu>(
        &self,
        map: &Map<Stage2, M>,
        cpu: usize,
        ram: &[Range<Pa>],
        hidden: &[Range<Pa>],
        seed: u64,
    ) {
        let Some((ring, range)) = choose(&mut Random::new(seed), ram, hidden) else { return };
        // Who has it may be waiting for the writer, and who is that for this CPU to stand still.
        let alone = loop {
            if let Some(alone) = self.alone.try_lock() {
                break alone;
            }
            map.mmu().wait();
        };
        self.turn.fetch_add(1, SeqCst);
        // Whoever meets a change sees that there is one.
        fence(SeqCst);
        let result = carry_out(map, cpu, ring, range);
        self.turn.fetch_add(1, SeqCst);
        drop(alone);
        if let Err(error) = result {
            debug!("doorbell: {ring:?} of {range:?}: {error}");
        }
        let count = if result.is_ok() { &self.made } else { &self.refused };
        count.fetch_add(1, Relaxed);
    }

    /// Whether an access that was refused is to be tried again: if there is a change on its way, if `look` finds that it would not be
    /// refused now, or if what `look` saw may have been a change.
    pub fn is_to_try_again(&self, look: impl FnOnce() -> bool) -> bool {
        let before = self.turn.load(SeqCst);
        let again = before % 2 == 1 || look() || self.turn.load(SeqCst) != before;
        self.met.fetch_add(again.into(), Relaxed);
        again
    }
}

/// A change, and a range in one part of `ram` without `hidden` that it suits.
fn choose(random: &mut Random, ram: &[Range<Pa>], hidden: &[Range<Pa>]) -> Option<(Ring, Range<Pa>)> {
    let parts = || ram.iter().flat_map(|bank| bank.minus(hidden));
    let granules: u64 = parts().map(|part| part.size() / GRANULE).sum();
    let mut skipped = random.below(granules.max(1)) * GRANULE;
    let part = parts().find(|part| {
        let found = skipped < part.size();
        skipped -= if found { 0 } else { part.size() };
        found
    })?;
    let at = part.start().get() + skipped;
    let largest = [24, 512, 16 * 512][random.below(3) as usize];
    let size = (1 + random.below(largest)) * GRANULE;
    let few = Range::new(at, size.min(part.end() - at)).ok()?;
    let blocks = BLOCKS[random.below(3) as usize];
    let whole = Range::new(at & !(blocks - 1), blocks).ok().filter(|whole| part.contains_range(*whole));
    Some(match random.below(32) {
        0..=5 => (Ring::Mark(random.below(8) as u8), few),
        6..=9 => (Ring::SplitEdges, few),
        10 | 11 => (Ring::SplitToPages, Range::new(at, few.size().min(BLOCKS[0])).ok()?),
        12..=17 => (READ_ONLY, few),
        18..=20 => (NO_EXECUTE, few),
        21..=24 => (NOTHING, few),
        // Pages of many blocks, or the blocks of a part: what was split finds its way back.
        25 | 26 => (Ring::Collapse, if random.below(4) == 0 { part } else { whole.unwrap_or(few) }),
        27 => ([Ring::Mark(0), READ_ONLY, NO_EXECUTE, NOTHING][random.below(4) as usize], part),
        _ => match whole {
            Some(whole) => (Ring::Rebuild, whole),
            None => (Ring::SplitEdges, few),
        },
    })
}

fn carry_out<M: Mmu>(
    map: &Map<Stage2, M>,
    cpu: usize,
    ring: Ring,
    output: Range<Pa>,
) -> Result<(), MapError> {
    let range = Range::new(output.start().get(), output.size())
        .map_err(|_| MapError::OutOfReach { end: output.end(), bits: ADDRESS_BITS })?;
    let back = |result: Result<(), MapError>| {
        result.inspect_err(|error| error!("doorbell: the host does not get {range:?} back: {error}"))
    };
    match ring {
        Ring::Mark(value) => map.protect(range, Change::software(value))?.flush(),
        Ring::SplitEdges => map.split_edges(range)?.flush(),
        Ring::SplitToPages => map.split_to_pages(range)?.flush(),
        Ring::Moment(take, give) => {
            map.protect(range, take)?.flush();
            back(map.protect(range, give).map(|debt| debt.flush()))?;
        }
        Ring::Collapse => {
            let mut cpu = map.cpu(cpu).ok_or(MapError::NotQuiet(range.start().get()))?;
            cpu.write().protect_and_collapse(range, Change::software(0), Leaves::LARGEST)?;
        }
        Ring::Rebuild => {
            let mut cpu = map.cpu(cpu).ok_or(MapError::NotQuiet(range.start().get()))?;
            let mut writer = cpu.write();
            // What the host has given away stays so.
            let given = writer.walk(range, |visited| match visited.entry {
                Entry::State(_) => ControlFlow::Break(visited.start),
                _ => ControlFlow::Continue(()),
            });
            if let ControlFlow::Break(address) = given {
                return Err(MapError::HasState(address));
            }
            writer.unmap(range)?.flush();
            back(writer.map(range, output.start(), Attributes::<Stage2>::RAM, Leaves::LARGEST))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::fake::FakeMmu;
    use crate::mapping::{Capabilities, Ipa, Options};
    use crate::stage2::{CpuLimits, host_map};

    const GIB: u64 = 1 << 30;

    /// Rings `count` times in a machine of 2 GiB that hides 2 MiB, with `tables` tables, and gives what became of the map.
    fn rung(tables: usize, count: u64, check: impl Fn(&Doorbell, &Map<Stage2, &FakeMmu>, &[Range<Pa>])) {
        let (ram, hidden) =
            (Range::new(GIB, 2 * GIB).unwrap(), Range::new(GIB + (64 << 20), 2 << 20).unwrap());
        let lent: Vec<Range<Pa>> = ram.minus(&[hidden]).collect();
        let mmu = FakeMmu::new(tables);
        let limits = CpuLimits { pa_range: 2, vmid_16_bits: true };
        let options = Options::new(Capabilities::LEAST);
        let map = host_map(&mmu, options, limits, &[ram], 4 * GIB, &[hidden]).unwrap();
        let (bell, mut random) = (Doorbell::new(), Random::new(5));
        for _ in 0..count {
            let seed = random.below(u64::MAX);
            bell.ring(&map, 0, &[ram], &[hidden], seed);
            assert_eq!(bell.turn.load(SeqCst) % 2, 0);
        }
        check(&bell, &map, &lent);
    }

    fn all_is_there(map: &Map<Stage2, &FakeMmu>, lent: &[Range<Pa>]) {
        let mut cpu = map.cpu(0).unwrap();
        let reader = cpu.read();
        let given = |address: u64| {
            let found = reader.translate(Ipa::new(address).unwrap())?;
            let allowed = found.attributes();
            (allowed.is_readable() && allowed.is_writable() && allowed.is_executable())
                .then(|| found.output.get())
        };
        for part in lent {
            for address in (part.start().get()..part.end()).step_by(GRANULE as usize) {
                assert_eq!(given(address), Some(address));
            }
        }
        assert_eq!(given(GIB + (64 << 20)), None);
    }

    #[test]
    fn the_host_has_what_it_had_when_its_stores_are_done() {
        rung(1200, 300, |bell, map, lent| {
            assert_eq!((bell.load(0), bell.load(8)), (Some(300), Some(0)));
            all_is_there(map, lent);
        });
    }

    #[test]
    fn refused_for_want_of_tables_the_host_has_what_it_had_too() {
        rung(12, 300, |bell, map, lent| {
            assert!(bell.load(0).unwrap() > 0 && bell.load(8).unwrap() > 0);
            all_is_there(map, lent);
        });
    }

    #[test]
    fn what_the_host_has_given_away_does_not_come_back_by_it() {
        let ram = Range::new(GIB, GIB).unwrap();
        let mmu = FakeMmu::new(600);
        let limits = CpuLimits { pa_range: 2, vmid_16_bits: true };
        let map = host_map(&mmu, Options::new(Capabilities::LEAST), limits, &[ram], 4 * GIB, &[]).unwrap();
        let given = Range::new(GIB + (64 << 20), GRANULE).unwrap();
        let state = crate::mapping::State::new(2).unwrap();
        map.cpu(0).unwrap().write().set_state(given, state).unwrap();
        assert_eq!(carry_out(&map, 0, Ring::Rebuild, ram), Err(MapError::HasState(given.start().get())));
        for ring in [NOTHING, READ_ONLY, Ring::Collapse, Ring::SplitToPages] {
            carry_out(&map, 0, ring, Range::new(GIB + (62 << 20), 4 << 20).unwrap()).unwrap();
        }
        let mut cpu = map.cpu(0).unwrap();
        let found = cpu.read().find(given.start()).map(|visited| visited.entry);
        assert_eq!(found, Some(Entry::State(state)));
    }

    #[test]
    fn an_access_that_met_a_change_is_tried_again_and_no_other() {
        let bell = Doorbell::new();
        assert!(!bell.is_to_try_again(|| false));
        assert!(bell.is_to_try_again(|| true));
        bell.turn.store(1, SeqCst);
        assert!(bell.is_to_try_again(|| false));
        // Over before it was looked at, and begun again.
        bell.turn.store(2, SeqCst);
        let begin = || {
            bell.turn.store(4, SeqCst);
            false
        };
        assert!(bell.is_to_try_again(begin));
        assert!(!bell.is_to_try_again(|| false));
        assert_eq!(bell.load(16), Some(3));
    }

    #[test]
    fn only_its_words_can_be_loaded() {
        let bell = Doorbell::new();
        assert_eq!([0, 8, 16].map(|at| bell.load(at)), [Some(0); 3]);
        assert_eq!([4, 24, 4095].map(|at| bell.load(at)), [None; 3]);
    }
}
