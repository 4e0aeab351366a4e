//! A linear map that is in use: any range of it may be made read-only, writable, executable or invalid at any moment.
//!
//! Invariant: what is pinned never changes, and no call returns before every CPU sees what it asked for; of what translates anew, at its next
//! context synchronization event (without FEAT_ETS2 it may have found before that it does not). A caller need not know in what
//! leaves a range is mapped: those wholly inside change where they are, and no more is split than what an end of the range cuts.

use core::fmt;

use spin::Once;

use crate::mapping::{Address, Change, El1And0, El2, Map, MapError, Mmu, Pa, Range, Regime, Va};

/// A stage 1 regime whose leaves can be told what a linear map tells them. None of these leaves anything both writable and
/// executable.
pub trait Permissions: Regime<Input = Va> {
    /// No writes.
    const READ_ONLY: Change<Self>;
    /// Writes, and no execution.
    const WRITABLE: Change<Self>;
    /// Execution at the exception level whose map it is, and no writes.
    const EXECUTABLE: Change<Self>;
    /// No execution.
    const NO_EXECUTE: Change<Self>;
}

macro_rules! permissions {
    ($($regime:ty),*) => {
        $(impl Permissions for $regime {
            const READ_ONLY: Change<Self> = Change::<$regime>::READ_ONLY;
            const WRITABLE: Change<Self> = Change::<$regime>::WRITABLE;
            const EXECUTABLE: Change<Self> = Change::<$regime>::EXECUTABLE;
            const NO_EXECUTE: Change<Self> = Change::<$regime>::NO_EXECUTE;
        })*
    };
}
permissions!(El2, El1And0);

/// Why a range stays as it is: all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetMemoryError {
    /// The range meets this one, which is pinned.
    Pinned(Range<Pa>),
    /// The map cannot make the change.
    Map(MapError),
}

impl fmt::Display for SetMemoryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pinned(range) => {
                write!(f, "{range} is pinned: what it holds is needed to change a translation")
            }
            Self::Map(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for SetMemoryError {}

impl From<MapError> for SetMemoryError {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

/// A map of addresses to themselves that CPUs run on.
#[derive(Debug)]
pub struct LinearMap<R: Regime, M: Mmu> {
    map: Map<R, M>,
    pinned: &'static [Range<Pa>],
    /// Pinned since.
    sealed: Once<Range<Pa>>,
}

impl<R: Permissions, M: Mmu> LinearMap<R, M> {
    /// Of a `map` that was made with [`linear_map`](super::linear_map), [`add`](super::add) and [`add_ram`](super::add_ram). `pinned` is
    /// what must stay as it is, since CPUs run on it while they change a translation; it should have been added in
    /// [pages](crate::mapping::Leaves::PAGES).
    pub const fn new(map: Map<R, M>, pinned: &'static [Range<Pa>]) -> Self {
        Self { map, pinned, sealed: Once::new() }
    }

    /// Pins `range` too, for good: it is as it is to be. Once; another range is left as it was.
    pub fn seal(&self, range: Range<Pa>) {
        self.sealed.call_once(|| range);
    }

    /// The map itself, for whoever reads it or does more to it; what is pinned is not kept from changing there.
    pub const fn map(&self) -> &Map<R, M> {
        &self.map
    }

    /// What no call changes.
    pub fn pinned(&self) -> impl Iterator<Item = Range<Pa>> + '_ {
        self.pinned.iter().chain(self.sealed.get()).copied()
    }

    /// Takes writes away from the pages of `range`. Code stays code.
    ///
    /// As all of these: from any CPU, but not with a [`Reader`](crate::mapping::Reader) of the map; what is not mapped stays so; an empty
    /// range changes nothing.
    ///
    /// # Errors
    /// [`SetMemoryError::Pinned`]; [`SetMemoryError::Map`] as [`Map::protect`] gives it. Nothing has changed.
    pub fn set_memory_ro(&self, range: Range<Pa>) -> Result<(), SetMemoryError> {
        self.protect(range, R::READ_ONLY)
    }

    /// Makes the pages of `range` writable, and takes execution away from them.
    ///
    /// # Errors
    /// As [`LinearMap::set_memory_ro`].
    pub fn set_memory_rw(&self, range: Range<Pa>) -> Result<(), SetMemoryError> {
        self.protect(range, R::WRITABLE)
    }

    /// Makes the pages of `range` executable, and takes writes away from them. What was stored there must have reached the point of
    /// unification before it is executed (Arm ARM D7.5.9).
    ///
    /// # Errors
    /// As [`LinearMap::set_memory_ro`].
    pub fn set_memory_x(&self, range: Range<Pa>) -> Result<(), SetMemoryError> {
        self.protect(range, R::EXECUTABLE)
    }

    /// Takes execution away from the pages of `range`.
    ///
    /// # Errors
    /// As [`LinearMap::set_memory_ro`].
    pub fn set_memory_nx(&self, range: Range<Pa>) -> Result<(), SetMemoryError> {
        self.protect(range, R::NO_EXECUTE)
    }

    /// Makes the pages of `range` translate, as they did when they last did so and as they were told since, or no longer.
    ///
    /// # Errors
    /// As [`LinearMap::set_memory_ro`].
    pub fn set_memory_valid(&self, range: Range<Pa>, valid: bool) -> Result<(), SetMemoryError> {
        self.protect(range, if valid { Change::VALIDATE } else { Change::INVALIDATE })
    }

    /// Changes `range` in another way.
    ///
    /// # Errors
    /// As [`LinearMap::set_memory_ro`].
    pub(crate) fn protect(&self, range: Range<Pa>, change: Change<R>) -> Result<(), SetMemoryError> {
        if range.is_empty() {
            return Ok(());
        }
        self.map.protect(self.input(range)?, change)?.flush();
        Ok(())
    }

    /// What translates to `range`, which is not pinned.
    pub(crate) fn input(&self, range: Range<Pa>) -> Result<Range<Va>, SetMemoryError> {
        if let Some(pinned) = self.pinned().find(|pinned| pinned.overlaps(range)) {
            return Err(SetMemoryError::Pinned(pinned));
        }
        // Each address translates to itself, and a range of outputs ends where one of inputs may.
        let far = |_| MapError::OutOfReach { end: range.end(), bits: self.map.geometry().input_bits() };
        Ok(Range::new(range.start().get(), range.size()).map_err(far)?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::super::{add, add_ram, linear_map};
    use super::*;
    use crate::mapping::fake::FakeMmu;
    use crate::mapping::{Attributes, Barrier, Capabilities, Entry, GRANULE, Leaves, Options, TablePool};

    const GIB: u64 = 1 << 30;
    const MIB: u64 = 1 << 20;
    const RAM: u64 = 0x4000_0000;
    /// Code, in pages, where a block would be.
    const CODE: u64 = RAM + 2 * MIB;
    const CODE_SIZE: u64 = 8 * GRANULE;

    /// A regime's attributes for what may be done: writes, execution.
    trait Known: Permissions {
        const DATA: Attributes<Self>;
        const CONSTANTS: Attributes<Self>;
        const CODE: Attributes<Self>;
    }
    impl Known for El2 {
        const DATA: Attributes<Self> = Attributes::<El2>::DATA;
        const CONSTANTS: Attributes<Self> = Attributes::<El2>::CONSTANTS;
        const CODE: Attributes<Self> = Attributes::<El2>::CODE;
    }
    impl Known for El1And0 {
        const DATA: Attributes<Self> = Attributes::<El1And0>::DATA;
        const CONSTANTS: Attributes<Self> = Attributes::<El1And0>::CONSTANTS;
        const CODE: Attributes<Self> = Attributes::<El1And0>::CODE;
    }

    fn range(start: u64, size: u64) -> Range<Pa> {
        Range::new(start, size).unwrap()
    }

    /// 2 GiB of RAM but for [`CODE`], which is pinned, on CPUs with this level of FEAT_BBM.
    fn linear<R: Known>(mmu: &FakeMmu, level: u8) -> LinearMap<R, &FakeMmu> {
        let options = Options::new(Capabilities::LEAST | Capabilities::bbm(level));
        let mut map = linear_map(mmu, options).unwrap();
        let code = range(CODE, CODE_SIZE);
        let mut writer = map.get_mut();
        add_ram(&mut writer, &[range(RAM, 2 * GIB)], &[code], R::DATA, Leaves::LARGEST).unwrap();
        add(&mut writer, code, R::CODE, Leaves::PAGES).unwrap();
        drop(writer);
        LinearMap::new(map, Box::leak(Box::new([range(0, 0), code])))
    }

    /// What is at an address: attributes, whether it translates, level.
    fn at<R: Known>(map: &LinearMap<R, &FakeMmu>, address: u64) -> (Attributes<R>, bool, u8) {
        let mut cpu = map.map().cpu(0).unwrap();
        let found = cpu.read().find(Va::new(address).unwrap()).unwrap();
        let Entry::Leaf { output, attributes, valid, .. } = found.entry else { panic!("{found:?}") };
        assert_eq!(output.get(), found.start, "it is linear");
        (attributes, valid, found.level)
    }

    fn stores(mmu: &FakeMmu) -> usize {
        mmu.memory.stores.load(Relaxed) + mmu.memory.exchanges.load(Relaxed)
    }

    #[test]
    fn a_page_of_a_block_changes_and_its_neighbours_do_not_at_each_level() {
        for level in 0..=3 {
            let mmu = FakeMmu::new(16);
            let map = linear::<El2>(&mmu, level);
            let page = RAM + GIB + 5 * GRANULE;
            mmu.take_tlbis();
            map.set_memory_ro(range(page, GRANULE)).unwrap();
            assert_eq!(at(&map, page), (El2::CONSTANTS, true, 3));
            for neighbour in [page - GRANULE, page + GRANULE, RAM + 2 * GIB - GRANULE] {
                assert_eq!(at(&map, neighbour).0, El2::DATA);
            }
            // Only a CPU that raises no conflict aborts lets the others go on.
            assert_eq!(mmu.quiesce.asked.lock().unwrap().is_empty(), level == 3, "level {level}");
        }
    }

    #[test]
    fn whole_leaves_flip_where_they_are_and_nobody_stands_still() {
        for level in 0..=3 {
            let mmu = FakeMmu::new(16);
            let map = linear::<El1And0>(&mmu, level);
            let free = mmu.pool().free();
            map.set_memory_ro(range(RAM + GIB, GIB)).unwrap();
            map.set_memory_valid(range(RAM + GIB, GIB), false).unwrap();
            assert_eq!(at(&map, RAM + GIB), (El1And0::CONSTANTS, false, 1));
            map.set_memory_valid(range(RAM + GIB, GIB), true).unwrap();
            map.set_memory_rw(range(RAM + GIB, GIB)).unwrap();
            assert_eq!(at(&map, RAM + GIB), (El1And0::DATA, true, 1));
            assert_eq!(mmu.pool().free(), free);
            assert!(mmu.quiesce.asked.lock().unwrap().is_empty());
        }
    }

    #[test]
    fn each_change_is_flushed_before_it_returns() {
        let mmu = FakeMmu::new(16);
        let map = linear::<El2>(&mmu, 0);
        let pages = range(RAM, 2 * GRANULE);
        map.set_memory_ro(pages).unwrap();
        let changes: [&dyn Fn(); 5] = [
            &|| map.set_memory_x(pages).unwrap(),
            &|| map.set_memory_nx(pages).unwrap(),
            &|| map.set_memory_rw(pages).unwrap(),
            &|| map.set_memory_ro(pages).unwrap(),
            &|| map.set_memory_valid(pages, false).unwrap(),
        ];
        for change in changes {
            mmu.take_tlbis();
            change();
            let barriers = mmu.barriers.lock().unwrap().clone();
            assert_eq!(barriers.last(), Some(&Barrier::Synchronize));
            assert!(!mmu.take_tlbis().is_empty());
        }
        // What did not translate is in no TLB; the store is only made visible.
        map.set_memory_valid(pages, true).unwrap();
        assert_eq!(*mmu.barriers.lock().unwrap(), [Barrier::StoresVisible, Barrier::Synchronize]);
        assert!(mmu.take_tlbis().is_empty());
    }

    #[test]
    fn what_meets_a_pinned_range_is_refused_by_its_name_and_changes_nothing() {
        let mmu = FakeMmu::new(16);
        let map = linear::<El2>(&mmu, 3);
        let pinned = range(CODE, CODE_SIZE);
        assert_eq!(map.pinned().last(), Some(pinned));
        let before = stores(&mmu);
        for (start, size) in [
            (CODE, GRANULE),
            (CODE - GRANULE, 2 * GRANULE),
            (CODE + CODE_SIZE - GRANULE, 4 * MIB),
            (RAM, 2 * GIB),
        ] {
            let refused = Err(SetMemoryError::Pinned(pinned));
            let asked = range(start, size);
            assert_eq!(map.set_memory_ro(asked), refused);
            assert_eq!(map.set_memory_rw(asked), refused);
            assert_eq!(map.set_memory_x(asked), refused);
            assert_eq!(map.set_memory_nx(asked), refused);
            assert_eq!(map.set_memory_valid(asked, false), refused);
        }
        assert_eq!(stores(&mmu), before);
        let text = SetMemoryError::Pinned(pinned).to_string();
        assert!(text.starts_with("0x40200000..0x40208000 is pinned"), "{text}");
        // Up to it, and from its end on, is nobody's.
        map.set_memory_ro(range(RAM, 2 * MIB)).unwrap();
        map.set_memory_ro(range(CODE + CODE_SIZE, GRANULE)).unwrap();
        assert_eq!(at(&map, CODE), (El2::CODE, true, 3));
    }

    #[test]
    fn an_empty_range_is_nothing_and_half_a_page_is_refused() {
        let mmu = FakeMmu::new(16);
        let map = linear::<El2>(&mmu, 0);
        let before = stores(&mmu);
        for start in [0, CODE, CODE + 1, RAM + 3 * GRANULE, (1 << 48) - 1] {
            assert_eq!(map.set_memory_ro(range(start, 0)), Ok(()));
            assert_eq!(map.set_memory_valid(range(start, 0), false), Ok(()));
        }
        let half = MapError::Misaligned { input: RAM, size: GRANULE / 2, output: 0 };
        assert_eq!(map.set_memory_ro(range(RAM, GRANULE / 2)), Err(SetMemoryError::Map(half)));
        assert_eq!(stores(&mmu), before);
    }

    #[test]
    fn nothing_changes_without_tables_or_while_others_will_not_stand_still() {
        for level in 0..=3 {
            let mmu = FakeMmu::new(16);
            let map = linear::<El2>(&mmu, level);
            let block = RAM + GIB;
            let page = range(block + GRANULE, GRANULE);
            if level < 3 {
                mmu.quiesce.refuses.store(true, Relaxed);
                let refused = map.set_memory_ro(page);
                assert_eq!(refused, Err(SetMemoryError::Map(MapError::NotQuiet(block))));
                assert_eq!(at(&map, block), (El2::DATA, true, 1));
                mmu.quiesce.refuses.store(false, Relaxed);
            }
            // A split to pages takes two tables: leave one.
            let kept: Vec<_> = (1..mmu.pool().free()).map(|_| mmu.pool().take_root(1).unwrap()).collect();
            let short = MapError::OutOfTables { needed: 2, free: 1 };
            assert_eq!(map.set_memory_ro(page), Err(SetMemoryError::Map(short)));
            assert_eq!(at(&map, block), (El2::DATA, true, 1));
            // What needs none goes on.
            map.set_memory_ro(range(block, GIB)).unwrap();
            assert_eq!(at(&map, block), (El2::CONSTANTS, true, 1));
            assert!(!kept.is_empty());
        }
    }

    /// What one page of a plain list may do.
    #[derive(Clone, Copy, PartialEq)]
    struct Page {
        writable: bool,
        executable: bool,
        valid: bool,
    }

    /// Random requests on the first blocks of RAM, against a list with a line for each page.
    fn random<R: Known>(level: u8, seed: u64) {
        const PAGES: u64 = 3 * 512;
        let mmu = FakeMmu::new(32);
        let map = linear::<R>(&mmu, level);
        let pinned = (CODE - RAM) / GRANULE..(CODE + CODE_SIZE - RAM) / GRANULE;
        let mut list = vec![Page { writable: true, executable: false, valid: true }; PAGES as usize];
        for page in pinned.clone() {
            list[page as usize] = Page { writable: false, executable: true, valid: true };
        }
        let mut random = SmallRng::seed_from_u64(seed);
        for round in 0..400 {
            let first = random.next_u64() % PAGES;
            let most = if random.next_u64() % 4 == 0 { PAGES } else { 40 };
            let count = (random.next_u64() % most).min(PAGES - first);
            let asked = range(RAM + first * GRANULE, count * GRANULE);
            let kind = random.next_u64() % 6;
            let result = match kind {
                0 => map.set_memory_ro(asked),
                1 => map.set_memory_rw(asked),
                2 => map.set_memory_x(asked),
                3 => map.set_memory_nx(asked),
                kind => map.set_memory_valid(asked, kind == 5),
            };
            if count > 0 && first < pinned.end && pinned.start < first + count {
                assert_eq!(result, Err(SetMemoryError::Pinned(range(CODE, CODE_SIZE))));
            } else {
                result.unwrap();
                for page in &mut list[first as usize..(first + count) as usize] {
                    match kind {
                        0 => page.writable = false,
                        1 => (page.writable, page.executable) = (true, false),
                        2 => (page.writable, page.executable) = (false, true),
                        3 => page.executable = false,
                        kind => page.valid = kind == 5,
                    }
                }
            }
            for (number, page) in list.iter().enumerate() {
                let expected = match (page.writable, page.executable) {
                    (true, _) => R::DATA,
                    (false, true) => R::CODE,
                    (false, false) => R::CONSTANTS,
                };
                let (attributes, valid, _) = at(&map, RAM + number as u64 * GRANULE);
                assert_eq!(
                    (attributes, valid),
                    (expected, page.valid),
                    "page {number} after {round} requests"
                );
            }
        }
        assert_eq!(mmu.quiesce.asked.lock().unwrap().is_empty(), level == 3);
    }

    // On tables of 512 entries Miri takes longer than anybody waits.
    #[test]
    #[cfg_attr(miri, ignore)]
    fn random_requests_leave_what_a_plain_list_says() {
        for level in 0..=3 {
            random::<El2>(level, u64::from(level));
            random::<El1And0>(level, 4 + u64::from(level));
        }
    }
}
