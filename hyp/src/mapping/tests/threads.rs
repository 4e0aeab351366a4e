//! Real threads on one map: what each of them asks for is there in the end, what others see meanwhile is right, and no table is lost.
//!
//! Run them under Miri too (`cargo +nightly miri test -p hyp --lib mapping::tests::threads`): there the shape is the small one.

use std::ops::ControlFlow;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::mapping::dump::Content;
use crate::mapping::geometry::level_size;

#[cfg(not(miri))]
type Tables = Granule4K;
#[cfg(miri)]
type Tables = Tiny;

const ROUNDS: u64 = if cfg!(miri) { 12 } else { 200 };
const PAGE: u64 = GRANULE;
const SOFTWARE: u64 = 0b111 << 56;

/// Outputs lie so far from inputs: a multiple of any leaf and run.
const SHIFT: u64 = 1 << (Tables::MOST_BITS - 2);

/// A regime with what these tests do to it.
trait Changed: Regime {
    const WRITABLE: Attributes<Self>;
    const READ_ONLY: Change<Self>;
    const WRITE: Change<Self>;
    /// The bit that the two change.
    const BIT: u64 = 1 << 7;
    /// The bit's value in a read-only leaf.
    const IS_READ_ONLY: u64;
}

impl Changed for El2 {
    const WRITABLE: Attributes<Self> = Attributes::<Self>::DATA;
    const READ_ONLY: Change<Self> = Change::<Self>::READ_ONLY;
    const WRITE: Change<Self> = Change::<Self>::WRITABLE;
    const IS_READ_ONLY: u64 = 1 << 7;
}

impl Changed for Stage2 {
    const WRITABLE: Attributes<Self> = Attributes::<Self>::RAM;
    const READ_ONLY: Change<Self> = Change::<Self>::READ_ONLY;
    const WRITE: Change<Self> = Change::<Self>::WRITABLE;
    const IS_READ_ONLY: u64 = 0;
}

type Fake<'m, R> = Map<R, &'m FakeMmu, Tables>;

fn mmu() -> FakeMmu {
    FakeMmu::of_entries(if cfg!(miri) { 200 } else { 600 }, Tables::ENTRIES)
}

fn new<R: Regime>(mmu: &FakeMmu, bbm: u8) -> Fake<'_, R> {
    let geometry = match R::STAGE {
        Stage::One => Geometry::stage1(Tables::MOST_BITS),
        Stage::Two => Geometry::stage2(Tables::MOST_BITS),
    };
    Map::new(mmu, geometry.unwrap(), Options::new(Capabilities::LEAST | Capabilities::bbm(bbm))).unwrap()
}

/// One piece of each kind: a leaf of level 1, a run of level 2, a leaf of level 2, a run of pages, pages in no run. Start and size.
fn pieces() -> [(u64, u64); 5] {
    let (large, block) = (level_size::<Tables>(1), level_size::<Tables>(2));
    let run = Tables::RUN as u64;
    [
        (0, large),
        (large, run * block),
        (2 * large - block, block),
        (2 * large, run * PAGE),
        (2 * large + 2 * run * PAGE + PAGE, 3 * PAGE),
    ]
}

fn add<R: Changed>(map: &Fake<'_, R>, cpu: usize, (start, size): (u64, u64), leaves: Leaves) {
    let output = Pa::new(start + SHIFT).unwrap();
    map.cpu(cpu).unwrap().write().map(range(start, size), output, R::WRITABLE, leaves).unwrap();
}

/// A part of a piece, of a few pages.
fn part(random: &mut SmallRng, (start, size): (u64, u64)) -> (u64, u64) {
    let first = random.next_u64() % (size / PAGE) * PAGE;
    let length = (1 + random.next_u64() % 3) * PAGE;
    (start + first, length.min(size - first))
}

/// A leaf is what it may be: writable or not, with any software bits.
fn is_legal<R: Changed>(bits: u64) -> bool {
    (bits ^ R::WRITABLE.bits()) & !(R::BIT | SOFTWARE | execute_never::<R>()) == 0
}

/// What a change to writable takes away besides, at stage 1.
fn execute_never<R: Regime>() -> u64 {
    if R::STAGE == Stage::One { 1 << 54 } else { 0 }
}

/// Asserts that no table is lost and none is set aside.
fn check_tables<R: Regime>(map: &Fake<'_, R>) {
    let pool = map.mmu().pool();
    assert_eq!((pool.used(), pool.free()), (reachable(map), pool.capacity() - pool.used()));
}

/// Threads change different bits of the same leaves, split them and join them, others translate.
fn all_changes_arrive<R: Changed>(bbm: u8) {
    let mmu = mmu();
    let map = new::<R>(&mmu, bbm);
    pieces().into_iter().for_each(|piece| add(&map, 0, piece, Leaves::LARGEST));
    let over = AtomicBool::new(false);
    let change = |seed: u64, changes: [Change<R>; 2]| {
        let mut random = SmallRng::seed_from_u64(seed);
        for round in 0..ROUNDS {
            let (start, size) = part(&mut random, pieces()[round as usize % 5]);
            map.protect(range(start, size), changes[random.next_u64() as usize % 2]).unwrap().flush();
        }
        // The last word: everything, each piece as one range.
        for (start, size) in pieces() {
            map.protect(range(start, size), changes[0]).unwrap().flush();
        }
    };
    let split = || {
        let mut random = SmallRng::seed_from_u64(3);
        for round in 0..ROUNDS {
            let (start, size) = part(&mut random, pieces()[round as usize % 5]);
            match round % 3 {
                0 => map.split_to_pages(range(start, size)).unwrap().flush(),
                1 => map.split_edges(range(start, size)).unwrap().flush(),
                _ => map.split_at(R::Input::new(start).unwrap()).unwrap().flush(),
            }
        }
    };
    let join = || {
        let mut random = SmallRng::seed_from_u64(4);
        for round in 0..ROUNDS {
            let (start, size) = part(&mut random, pieces()[round as usize % 5]);
            map.cpu(3).unwrap().write().collapse(range(start, size), Leaves::LARGEST).unwrap();
        }
    };
    let read = |number: usize| {
        let mut cpu = map.cpu(number).unwrap();
        let mut random = SmallRng::seed_from_u64(number as u64);
        while !over.load(SeqCst) {
            let reader = cpu.read();
            // Each page of a piece is met, by however large a leaf, and none that is wrong.
            let (start, size) = pieces()[2];
            let mut next = start;
            let _ = reader.walk(range(start, size), |visited| {
                let Entry::Leaf { output, .. } = visited.entry else { panic!("{:?}", visited.entry) };
                assert_eq!(output.get(), visited.start + SHIFT);
                assert!(visited.start <= next, "{:#x} after {next:#x}", visited.start);
                next = next.max(visited.start + level_size::<Tables>(visited.level));
                ControlFlow::<()>::Continue(())
            });
            assert!(next >= start + size);
            let extents = reader.extents(range(start, size)).inspect(|extent| {
                let Content::Leaves { output, .. } = extent.content else { panic!("{extent}") };
                assert_eq!(output.get(), extent.start + SHIFT);
            });
            assert_eq!(extents.map(|extent| extent.size).sum::<u64>(), size);
            for piece in pieces() {
                let (address, _) = part(&mut random, piece);
                let found =
                    reader.translate(R::Input::new(address).unwrap()).expect("it is mapped all the time");
                assert_eq!(found.output.get(), address + SHIFT);
                assert!(is_legal::<R>(found.attributes().bits()), "{:?} at {address:#x}", found.attributes());
            }
        }
    };
    thread::scope(|scope| {
        let readers = [1, 2].map(|number| scope.spawn(move || read(number)));
        let writers = [
            scope.spawn(|| change(1, [R::READ_ONLY, R::WRITE])),
            scope.spawn(|| change(2, [Change::software(5), Change::software(2)])),
            scope.spawn(split),
            scope.spawn(join),
        ];
        let ended: Vec<_> = writers.into_iter().map(thread::ScopedJoinHandle::join).collect();
        over.store(true, SeqCst);
        ended.into_iter().chain(readers.map(thread::ScopedJoinHandle::join)).for_each(|end| end.unwrap());
    });
    let mut cpu = map.cpu(0).unwrap();
    let reader = cpu.read();
    let mut pages = 0;
    let _ = reader.walk(range(0, 1 << Tables::MOST_BITS), |visited| {
        if let Entry::Leaf { output, attributes, valid, .. } = visited.entry {
            assert_eq!((output.get(), valid), (visited.start + SHIFT, true));
            assert_eq!(
                attributes.bits() & (R::BIT | SOFTWARE),
                R::IS_READ_ONLY | 5 << 56,
                "{:#x}",
                visited.start
            );
            pages += level_size::<Tables>(visited.level) / PAGE;
        }
        ControlFlow::<()>::Continue(())
    });
    assert_eq!(pages, pieces().iter().map(|(_, size)| size / PAGE).sum::<u64>());
    check_tables(&map);
}

#[test]
fn changes_of_one_leaf_by_several_threads_all_arrive_at_el2() {
    all_changes_arrive::<El2>(3);
}

#[test]
fn changes_of_one_leaf_by_several_threads_all_arrive_where_el2_stands_still() {
    all_changes_arrive::<El2>(0);
}

#[test]
fn changes_of_one_leaf_by_several_threads_all_arrive_where_stage_2_breaks() {
    all_changes_arrive::<Stage2>(0);
}

#[test]
fn changes_of_one_leaf_by_several_threads_all_arrive_at_stage_2_in_place() {
    all_changes_arrive::<Stage2>(3);
}

/// A writer maps and unmaps pieces, whose tables are used again at once, and says states of them; others walk, change what is there and
/// settle.
fn readers_never_see_a_reused_table<R: Changed>(bbm: u8) {
    let mmu = mmu();
    let map = new::<R>(&mmu, bbm);
    let over = AtomicBool::new(false);
    let write = || {
        let mut random = SmallRng::seed_from_u64(1);
        for round in 0..ROUNDS {
            let piece = pieces()[1 + round as usize % 4];
            add(&map, 0, piece, if round % 2 == 0 { Leaves::PAGES } else { Leaves::LARGEST });
            let (start, size) = part(&mut random, piece);
            let first = map.cpu(0).unwrap().write().unmap(range(start, size)).unwrap();
            let rest = map.cpu(0).unwrap().write().unmap(range(piece.0, piece.1)).unwrap();
            match round % 4 {
                0 => drop((first, rest)),
                3 => {
                    let state = State::new(round).unwrap();
                    map.cpu(0).unwrap().write().set_state(range(piece.0, piece.1), state).unwrap();
                    let mut cpu = map.cpu(0).unwrap();
                    let _ = cpu.read().walk(range(piece.0, piece.1), |visited| {
                        assert_eq!(visited.entry, Entry::State(state), "{:#x}", visited.start);
                        ControlFlow::<()>::Continue(())
                    });
                    cpu.write().unmap(range(piece.0, piece.1)).unwrap().flush();
                    drop((first, rest));
                }
                1 => [first, rest].into_iter().for_each(Debt::flush),
                _ => {
                    rest.flush();
                    map.settle();
                    first.flush();
                }
            }
        }
    };
    let change = || {
        let mut random = SmallRng::seed_from_u64(2);
        while !over.load(SeqCst) {
            let piece = pieces()[1 + random.next_u64() as usize % 4];
            let (start, size) = part(&mut random, piece);
            map.protect(range(start, size), Change::software(random.next_u64() as u8)).unwrap().flush();
            match random.next_u64() % 4 {
                0 => map.settle(),
                1 => map.cpu(3).unwrap().write().collapse(range(start, size), Leaves::LARGEST).unwrap(),
                _ => {}
            }
        }
    };
    let read = |number: usize| {
        let mut cpu = map.cpu(number).unwrap();
        let mut random = SmallRng::seed_from_u64(number as u64);
        while !over.load(SeqCst) {
            let reader = cpu.read();
            for piece in pieces() {
                let (address, _) = part(&mut random, piece);
                if let Some(found) = reader.translate(R::Input::new(address).unwrap()) {
                    assert_eq!(found.output.get(), address + SHIFT);
                    assert!(
                        is_legal::<R>(found.attributes().bits()),
                        "{:?} at {address:#x}",
                        found.attributes()
                    );
                }
            }
            let (start, size) = pieces()[3];
            let _ = reader.walk(range(start, size), |visited| {
                if let Entry::Leaf { output, .. } = visited.entry {
                    assert_eq!(output.get(), visited.start + SHIFT);
                }
                ControlFlow::<()>::Continue(())
            });
        }
    };
    thread::scope(|scope| {
        let others = [scope.spawn(|| read(1)), scope.spawn(|| read(2)), scope.spawn(change)];
        let ended = scope.spawn(write).join();
        over.store(true, SeqCst);
        [ended].into_iter().chain(others.map(thread::ScopedJoinHandle::join)).for_each(|end| end.unwrap());
    });
    map.settle();
    assert_eq!(mmu.pool().used(), map.geometry().root_tables(), "tables are lost");
    check_tables(&map);
}

#[test]
fn a_reader_never_sees_a_table_that_is_used_for_something_else_at_el2() {
    readers_never_see_a_reused_table::<El2>(3);
}

#[test]
fn a_reader_never_sees_a_table_that_is_used_for_something_else_where_stage_2_breaks() {
    readers_never_see_a_reused_table::<Stage2>(0);
}

#[test]
fn a_reader_never_sees_a_table_that_is_used_for_something_else_at_stage_2_in_place() {
    readers_never_see_a_reused_table::<Stage2>(3);
}

/// Several threads want a page each of the same block at the same time.
fn one_of_them_splits<R: Changed>(bbm: u8) {
    const THREADS: u64 = 4;
    let block = level_size::<Tables>(2);
    let mmu = mmu();
    let map = new::<R>(&mmu, bbm);
    let (barrier, large) = (Barrier::new(THREADS as usize), level_size::<Tables>(1));
    for round in 0..ROUNDS / 4 {
        add(&map, 0, (0, large), Leaves::LARGEST);
        let used = mmu.pool().used();
        thread::scope(|scope| {
            for number in 0..THREADS {
                let (map, barrier) = (&map, &barrier);
                scope.spawn(move || {
                    barrier.wait();
                    // In one block of level 2 (so everybody sets aside two tables, and two are used in all).
                    let page = (number % (block / PAGE)) * PAGE;
                    map.protect(range(page, PAGE), R::READ_ONLY).unwrap().flush();
                });
            }
        });
        assert_eq!(mmu.pool().used(), used + 2, "round {round}");
        check_tables(&map);
        let mut cpu = map.cpu(0).unwrap();
        for page in 0..THREADS + 1 {
            let found = cpu.read().translate(R::Input::new(page * PAGE).unwrap()).unwrap();
            let read_only = found.attributes().bits() & R::BIT == R::IS_READ_ONLY;
            assert_eq!(read_only, page < THREADS, "page {page}");
        }
        cpu.write().unmap(range(0, large)).unwrap().flush();
    }
}

#[test]
fn who_loses_the_race_for_splitting_a_block_gives_its_tables_back_at_el2() {
    one_of_them_splits::<El2>(3);
}

#[test]
fn who_loses_the_race_for_splitting_a_block_gives_its_tables_back_where_stage_2_breaks() {
    one_of_them_splits::<Stage2>(0);
}
