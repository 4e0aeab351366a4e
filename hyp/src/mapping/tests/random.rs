//! Random calls, in sparse spaces of 48 bits, in every regime and with every capability set.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::flat::{Flat, Known, canonical, compare, entries};
use super::regimes::Tried;
use super::*;

/// Calls in one run: `CLOVEN_OPERATIONS`, or few.
fn operations() -> usize {
    // Under Miri a regime gets five hundred calls, over its four sets of capabilities.
    let few = if cfg!(miri) { 125 } else { 20_000 };
    std::env::var("CLOVEN_OPERATIONS").map_or(few, |text| text.parse().unwrap())
}

fn seed() -> u64 {
    std::env::var("CLOVEN_SEED").map_or(1, |text| text.parse().unwrap())
}

struct Random(SmallRng);

impl Random {
    fn new(seed: u64) -> Self {
        Self(SmallRng::seed_from_u64(seed))
    }
    fn below(&mut self, limit: u64) -> u64 {
        self.0.next_u64() % limit
    }
    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
    fn of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len() as u64) as usize]
    }

    /// An address of a space of so many bits: in one of a few far apart regions, near a multiple of some leaf or run more often than
    /// not.
    fn address<S: Shape>(&mut self, bits: u32) -> u64 {
        let unit = geometry::PAGE_SHIFT
            + self.of(&[0, S::RUN_BITS, S::INDEX_BITS, S::INDEX_BITS + S::RUN_BITS, 2 * S::INDEX_BITS]);
        let region = self.of(&[0u64, 1, 2, 7]) << (bits - 3);
        let near = (self.below(24) << unit) as i64
            + (self.below(5) as i64 - 2) * if self.one_in(2) { 4096 } else { 0 };
        (region as i64 + near).rem_euclid(1 << bits) as u64
    }

    /// Bytes of a range: up to some leaves of some size.
    fn size<S: Shape>(&mut self, most: u64) -> u64 {
        let unit = geometry::PAGE_SHIFT
            + self.of(&[0, 0, S::RUN_BITS, S::INDEX_BITS, S::INDEX_BITS + S::RUN_BITS, 2 * S::INDEX_BITS]);
        let size = (1 + self.below(20)) << unit;
        let size = if self.one_in(3) { size + 4096 * self.below(4) } else { size };
        size.min(most)
    }
}

struct World<'m, R: Regime, S: Shape> {
    map: &'m Map<R, &'m FakeMmu, S>,
    flat: Flat,
    random: Random,
    debts: Vec<Debt<'m, R, &'m FakeMmu, S>>,
    /// Tables that the test keeps from the map.
    kept: usize,
}

/// Stores to tables, linked or not.
fn stores(mmu: &FakeMmu) -> usize {
    use std::sync::atomic::Ordering::Relaxed;
    mmu.memory.stores.load(Relaxed) + mmu.memory.fills.load(Relaxed) + mmu.memory.exchanges.load(Relaxed)
}

impl<'m, R: Tried, S: Shape> World<'m, R, S> {
    fn owe(&mut self, debt: Debt<'m, R, &'m FakeMmu, S>) {
        match self.random.below(4) {
            0 => self.debts.push(debt),
            1 => drop(debt),
            _ => debt.flush(),
        }
        if self.debts.len() > 6 {
            let mut first = self.debts.remove(0);
            for other in self.debts.drain(..) {
                assert!(first.merge(other).is_ok());
            }
            first.flush();
        }
    }

    fn input(&mut self, most: u64) -> (u64, u64) {
        let bits = self.map.geometry().input_bits();
        let start = self.random.address::<S>(bits);
        let size = self.random.size::<S>(most).min((1u64 << bits).saturating_sub(start));
        (start, size)
    }

    /// One random call; `false` if it ran out of tables.
    fn step(&mut self) -> bool {
        let kind = self.random.below(21);
        // Few tables left: make room.
        let is_crowded = |world: &Self| world.map.mmu().pool().free() < 24 && world.kept == 0;
        if is_crowded(self) {
            self.map.settle();
        }
        let crowded = is_crowded(self);
        match if crowded { 6 } else { kind } {
            0..=3 => self.map_some(),
            4..=6 => {
                let (start, size) = self.input(if crowded { 1 << 47 } else { 1 << 40 });
                let (start, size) = if crowded && self.random.one_in(3) {
                    (0, 1 << self.map.geometry().input_bits())
                } else {
                    (start, size)
                };
                let result = self.map.cpu(1).unwrap().write().unmap(range(start, size));
                self.done(result, |flat| flat.set(start, start + size, None))
            }
            7..=10 => {
                let (start, size) = self.input(1 << 40);
                let (change, set, clear, valid) = self.random.of(R::CHANGES);
                let whole = self.random.one_in(4);
                let result = match whole {
                    true => self.map.protect_whole(range(start, size), change),
                    false => self.map.protect(range(start, size), change),
                };
                self.done(result, |flat| {
                    flat.change(start, start + size, |bits, was| (bits & !clear | set, valid.unwrap_or(was)))
                })
            }
            11 => {
                let (start, _) = self.input(0);
                let start = start.min((1 << self.map.geometry().input_bits()) - 1) & !4095;
                let result = self.map.split_at(R::Input::new(start).unwrap());
                self.done(result, |_| {})
            }
            12 => {
                let (start, size) = self.input(1 << 40);
                let result = self.map.split_edges(range(start, size));
                self.done(result, |_| {})
            }
            13 => {
                let (start, size) = self.input(4 << (geometry::PAGE_SHIFT + S::INDEX_BITS));
                let result = self.map.split_to_pages(range(start, size));
                self.done(result, |_| {})
            }
            14 => {
                let (start, size) = self.input(1 << 40);
                let state = self.random.below(3);
                let result = self
                    .map
                    .cpu(1)
                    .unwrap()
                    .write()
                    .set_state(range(start, size), State::new(state).unwrap());
                let result = result.map(|()| None);
                self.finish(result, |flat| flat.set(start, start + size, Some(Known::State(state))))
            }
            15 | 16 => {
                let (start, size) = self.input(1 << 40);
                let leaves = self.leaves();
                let result = self.map.cpu(1).unwrap().write().collapse(range(start, size), leaves);
                self.finish(result.map(|()| None), |_| {})
            }
            17 => {
                let (start, size) = self.input(1 << 40);
                let (change, set, clear, valid) = self.random.of(R::CHANGES);
                let leaves = self.leaves();
                let mut cpu = self.map.cpu(1).unwrap();
                let result = cpu.write().protect_and_collapse(range(start, size), change, leaves);
                drop(cpu);
                self.finish(result.map(|()| None), |flat| {
                    flat.change(start, start + size, |bits, was| (bits & !clear | set, valid.unwrap_or(was)))
                })
            }
            18 => {
                let start = self.input(0).0.min((1 << self.map.geometry().input_bits()) - 1);
                let level = self.random.below(4) as u8;
                let address = R::Input::new(start).unwrap();
                let result = self.map.cpu(1).unwrap().write().collapse_entry(address, level);
                if let Ok(table) = result {
                    // SAFETY: the table is the caller's, and came from this pool.
                    unsafe { self.map.mmu().pool().give(table) };
                }
                self.finish(result.map(|_| None), |_| {})
            }
            19 => {
                let (start, size) = self.input(1 << 40);
                // Each output of a range is another piece of the list: under Miri few.
                let least = if cfg!(miri) { 38 } else { 30 };
                let (bit, value) = (self.random.of(&[least, least + 4, 38, 40, 47]), self.random.one_in(2));
                let alias = Change::output_bit(bit, value).unwrap();
                let (change, valid) = self.random.of(&[
                    (alias, None),
                    (Change::INVALIDATE.then(alias), Some(false)),
                    (alias.then(Change::VALIDATE), Some(true)),
                ]);
                let result = self.map.protect(range(start, size), change);
                self.done(result, |flat| flat.alias(start, start + size, bit, value, valid))
            }
            _ => {
                let (start, _) = self.input(0);
                let address =
                    start.min((1 << self.map.geometry().input_bits()) - 1) | self.random.below(4096);
                let mut cpu = self.map.cpu(2).unwrap();
                let found = cpu.read().translate(R::Input::new(address).unwrap());
                let expected = match self.flat.at(address) {
                    Some(Known::Leaf(shift, bits, true)) => Some((address.wrapping_add(shift), bits)),
                    _ => None,
                };
                assert_eq!(found.map(|t| (t.output.get(), t.attributes().bits())), expected, "{address:#x}");
                true
            }
        }
    }

    fn leaves(&mut self) -> Leaves {
        Leaves { blocks: !self.random.one_in(6), runs: !self.random.one_in(4) }
    }

    fn map_some(&mut self) -> bool {
        let leaves = self.leaves();
        // Outputs that run with the input, or are off by a page, a block, a run of blocks.
        let off = self.random.of(&[
            0,
            0,
            0,
            1 << geometry::PAGE_SHIFT,
            1 << (geometry::PAGE_SHIFT + S::INDEX_BITS),
            1 << (geometry::PAGE_SHIFT + 2 * S::INDEX_BITS),
        ]);
        let (start, size) = self.input(1 << 40);
        let output = (start ^ off) & ((1 << 48) - 1);
        let size = size.min((1 << 48) - output);
        let attributes = self.random.of(R::ATTRIBUTES);
        let free = self.flat.is_free(start, start + size);
        let mut cpu = self.map.cpu(1).unwrap();
        let result = cpu.write().map(range(start, size), Pa::new(output).unwrap(), attributes, leaves);
        drop(cpu);
        match result {
            Ok(()) => assert!(free, "{start:#x} was mapped"),
            Err(MapError::Mapped(at) | MapError::HasState(at)) => {
                assert!(self.flat.at(at).is_some() && (start..start + size).contains(&at), "{at:#x}");
            }
            Err(MapError::OutOfTables { .. }) => assert!(free),
            Err(error) => panic!("{error}"),
        }
        let known = Known::Leaf(output.wrapping_sub(start), attributes.bits(), true);
        self.finish(result.map(|()| None), |flat| flat.set(start, start + size, Some(known)))
    }

    /// After any sequence of calls the whole collapses to the fewest entries and tables that say the same.
    fn collapse_all(&mut self) {
        let (map, all) = (self.map, range(0, 1 << self.map.geometry().input_bits()));
        map.cpu(1).unwrap().write().collapse(all, Leaves::LARGEST).unwrap();
        compare(map, &self.flat);
        let (expected, tables) = canonical(map, &self.flat);
        assert!(entries(map) == expected, "there are entries left that are not needed");
        assert_eq!(map.mmu().pool().used(), tables, "there are tables left that are not needed");
    }

    fn done(
        &mut self,
        result: Result<Debt<'m, R, &'m FakeMmu, S>, MapError>,
        meaning: impl Fn(&mut Flat),
    ) -> bool {
        self.finish(result.map(Some), meaning)
    }

    fn finish(
        &mut self,
        result: Result<Option<Debt<'m, R, &'m FakeMmu, S>>, MapError>,
        meaning: impl Fn(&mut Flat),
    ) -> bool {
        match result {
            Ok(debt) => {
                meaning(&mut self.flat);
                if let Some(debt) = debt {
                    self.owe(debt);
                }
                true
            }
            Err(MapError::OutOfTables { needed, free }) => {
                assert!(needed > free);
                false
            }
            Err(
                MapError::WouldSplit { .. }
                | MapError::Mapped(_)
                | MapError::HasState(_)
                | MapError::Differs(_)
                | MapError::TooLarge { .. }
                | MapError::NoTable { .. },
            ) => true,
            Err(error) => panic!("{error}"),
        }
    }
}

fn capabilities(bbm: u8) -> Capabilities {
    let more =
        if bbm % 2 == 1 { Capabilities::TLB_RANGE | Capabilities::TLB_LEVEL } else { Capabilities::empty() };
    Capabilities::LEAST | Capabilities::bbm(bbm) | more
}

/// Random calls against the flat list, compared whole every thousand.
fn run<R: Tried, S: Shape>(geometry: Geometry<S>, options: Options, seed_of_case: u64) {
    let mmu = FakeMmu::of_entries(if cfg!(miri) { 64 } else { 400 }, S::ENTRIES);
    let map = Map::<R, _, S>::new(&mmu, geometry, options).unwrap();
    let random = Random::new(seed() * 1000 + seed_of_case);
    let mut world = World { map: &map, flat: Flat::default(), random, debts: Vec::new(), kept: 0 };
    // To find the call at fault: `CLOVEN_COMPARE=1`.
    let every = std::env::var("CLOVEN_COMPARE").map_or(1_000, |text| text.parse().unwrap());
    let mut changes = 0;
    for number in 1..=operations() {
        let before = (stores(&mmu), mmu.pool().used());
        let done = world.step();
        changes += usize::from(stores(&mmu) != before.0);
        if !done && mmu.pool().used() == before.1 {
            // Locks are not taken before all is prepared, so not a word was stored.
            assert_eq!(stores(&mmu), before.0, "a failed call has stored");
        }
        if number % every == 0 {
            compare(&map, &world.flat);
            if world.random.one_in(2) {
                world.collapse_all();
            }
            assert_eq!(mmu.pool().used(), reachable(&map), "tables are lost");
            mmu.take_tlbis();
            mmu.quiesce.asked.lock().unwrap().clear();
        }
    }
    assert!(changes > operations() / 3, "only {changes} of {} calls changed anything", operations());
    world.debts.clear();
    world.collapse_all();
    let all = range(0, 1 << geometry.input_bits());
    map.cpu(1).unwrap().write().unmap(all).unwrap().flush();
    map.settle();
    assert_eq!(mmu.pool().used(), geometry.root_tables(), "tables are lost");
}

/// Each call again and again, with one more table each time until it has enough: before that nothing changes.
fn starve<R: Tried, S: Shape>(geometry: Geometry<S>, options: Options, calls: usize) {
    let mmu = FakeMmu::of_entries(if cfg!(miri) { 64 } else { 200 }, S::ENTRIES);
    let map = Map::<R, _, S>::new(&mmu, geometry, options).unwrap();
    let random = Random::new(seed() * 1000 + 500);
    let mut world = World { map: &map, flat: Flat::default(), random, debts: Vec::new(), kept: 0 };
    let mut failures = 0;
    for _ in 0..calls {
        world.debts.clear();
        map.settle();
        let (random, before) = (world.random.0.clone(), world.flat.clone());
        for left in 0.. {
            let free = mmu.pool().free();
            if left >= free {
                // Too large for the pool in any case.
                map.cpu(1).unwrap().write().unmap(range(0, 1 << geometry.input_bits())).unwrap().flush();
                world.flat = Flat::default();
                break;
            }
            mmu.pool().reserve(free - left).unwrap();
            world.kept = free - left;
            world.random.0 = random.clone();
            let (stored, used) = (stores(&mmu), mmu.pool().used());
            let enough = world.step();
            // SAFETY: they were reserved a few lines above.
            unsafe { mmu.pool().cancel(world.kept) };
            world.kept = 0;
            if enough {
                break;
            }
            failures += 1;
            assert_eq!(world.flat, before);
            assert_eq!((stores(&mmu), mmu.pool().used()), (stored, used), "a failed call has stored");
        }
        mmu.take_tlbis();
    }
    compare(&map, &world.flat);
    assert_eq!(mmu.pool().used(), reachable(&map), "tables are lost");
    assert!(failures > calls / 20, "only {failures} of {calls} calls ever failed");
}

macro_rules! cases {
    ($($name:ident: $regime:ty, $geometry:expr, $bbm:expr;)*) => {$(
        #[test]
        fn $name() {
            run::<$regime, _>($geometry, Options::new(capabilities($bbm)), $bbm);
        }
    )*};
}

// Under Miri the shape is the small one: 512 entries would be minutes of nothing new.
#[cfg(not(miri))]
type Tables = Granule4K;
#[cfg(miri)]
type Tables = Tiny;

fn stage1() -> Geometry<Tables> {
    Geometry::stage1(Tables::MOST_BITS).unwrap()
}
fn stage2() -> Geometry<Tables> {
    // Concatenated roots as well as a whole space.
    Geometry::stage2(Tables::LEVEL_0_FROM - 1).unwrap()
}
fn stage2_whole() -> Geometry<Tables> {
    Geometry::stage2(Tables::MOST_BITS).unwrap()
}

cases! {
    el2_means_what_a_list_does_at_bbm_0: El2, stage1(), 0;
    el2_means_what_a_list_does_at_bbm_1: El2, stage1(), 1;
    el2_means_what_a_list_does_at_bbm_2: El2, stage1(), 2;
    el2_means_what_a_list_does_at_bbm_3: El2, stage1(), 3;
    el1_and_0_means_what_a_list_does_at_bbm_0: El1And0, stage1(), 0;
    el1_and_0_means_what_a_list_does_at_bbm_1: El1And0, stage1(), 1;
    el1_and_0_means_what_a_list_does_at_bbm_2: El1And0, stage1(), 2;
    el1_and_0_means_what_a_list_does_at_bbm_3: El1And0, stage1(), 3;
    stage_2_means_what_a_list_does_at_bbm_0: Stage2, stage2_whole(), 0;
    stage_2_means_what_a_list_does_at_bbm_1: Stage2, stage2_whole(), 1;
    stage_2_means_what_a_list_does_at_bbm_2: Stage2, stage2_whole(), 2;
    stage_2_means_what_a_list_does_at_bbm_3: Stage2, stage2_whole(), 3;
    concatenated_roots_mean_what_a_list_does: Stage2, stage2(), 3;
}

#[test]
fn small_tables_mean_what_a_list_does() {
    run::<El2, Tiny>(Geometry::stage1(20).unwrap(), Options::new(capabilities(3)), 10);
    run::<Stage2, Tiny>(Geometry::stage2(20).unwrap(), Options::new(capabilities(0)), 11);
    run::<Stage2, Tiny>(Geometry::stage2(19).unwrap(), Options::new(capabilities(2)), 12);
}

#[test]
fn a_map_that_hardware_marks_means_what_a_list_does() {
    // No leaf of these has DBM, and all have their access flag: a mark changes nothing.
    let options = Options { hardware_updates: true, ..Options::new(capabilities(3)) };
    run::<El1And0, _>(stage1(), options, 13);
    run::<Stage2, _>(stage2(), options, 14);
}

#[test]
fn without_the_contiguous_bit_no_run_is_made() {
    let options = Options::new(Capabilities::TLBI_ONCE | Capabilities::bbm(0));
    run::<El2, _>(stage1(), options, 15);
}

#[test]
fn every_allocation_that_fails_leaves_everything_as_it_was() {
    let calls = if cfg!(miri) { 30 } else { operations() / 2 };
    starve::<El2, _>(stage1(), Options::new(capabilities(3)), calls);
    starve::<Stage2, _>(stage2(), Options::new(capabilities(0)), calls);
}
