//! What is done to one table: looked at from an entry on, made of one state, given up for one.

use core::ops::ControlFlow;

use super::common::*;
use super::*;

const RAM: Attributes<Stage2> = Attributes::<Stage2>::RAM;

fn ipa(address: u64) -> Ipa {
    Ipa::new(address).unwrap()
}

fn state(value: u64) -> State {
    State::new(value).unwrap()
}

/// Level and first address of what a scan shows, and whether that is a table.
fn scan<M: Mmu>(map: &Map<Stage2, M>, address: u64, level: u8) -> Vec<(u8, u64, bool)> {
    let mut seen = vec![];
    let _ = map.try_write().unwrap().scan(ipa(address), level, |level, start, entry| {
        seen.push((level, start, matches!(entry, Entry::Table(_))));
        ControlFlow::<()>::Continue(())
    });
    seen
}

#[test]
fn a_scan_shows_an_entry_and_those_after_it_in_its_table_and_is_ended_by_what_is_no_table() {
    let mmu = FakeMmu::new(16);
    let map = Map::<Stage2, _>::new(&mmu, Geometry::stage2(40).unwrap(), bbm(3)).unwrap();
    add(&map, GIB + 2 * MIB, 4 * KIB, RAM, Leaves::PAGES);
    let level_2 = scan(&map, GIB + 0x1234, 2);
    assert_eq!(level_2.len(), 512);
    assert_eq!(level_2[..2], [(2, GIB, false), (2, GIB + 2 * MIB, true)]);
    assert_eq!(level_2[511], (2, 2 * GIB - 2 * MIB, false));
    assert_eq!(scan(&map, GIB + 4 * MIB - 1, 3), [(3, GIB + 4 * MIB - 4 * KIB, false)]);
    // Nothing is below an entry that is no table.
    assert_eq!(scan(&map, 2 * GIB - 1, 3)[..], [(2, 2 * GIB - 2 * MIB, false)]);
    // The root is two tables: each ends for itself.
    assert_eq!(scan(&map, GIB, 1)[0], (1, GIB, true));
    assert_eq!((scan(&map, 0, 1).len(), scan(&map, 511 * GIB, 1).len()), (512, 1));
    assert_eq!(scan(&map, 512 * GIB, 0).len(), 512);
    assert_eq!(scan(&map, 1 << 40, 3), []);
    let first = map.try_write().unwrap().scan(ipa(GIB), 3, |_, start, _| ControlFlow::Break(start));
    assert_eq!(first, ControlFlow::Break(GIB));
}

#[test]
fn restating_changes_leaves_makes_the_rest_one_state_and_keeps_every_table() {
    let mmu = FakeMmu::new(16);
    let map = new::<Stage2, _>(&mmu, with(3, Capabilities::TLB_RANGE));
    let mut writer = map.try_write().unwrap();
    writer.set_state(range(2 * MIB, 64 * KIB), state(7)).unwrap();
    for page in [64 * KIB, 80 * KIB] {
        writer.map(range(2 * MIB + page, 4 * KIB), pa(GIB + page), RAM, Leaves::PAGES).unwrap();
    }
    let (used, before) = (mmu.pool().used(), take_stores(&mmu));
    assert_ne!(before, (0, 0, 0));
    mmu.take_tlbis();
    writer.restate(range(2 * MIB, 2 * MIB), Change::INVALIDATE, state(3)).unwrap().flush();
    assert_eq!(mmu.take_tlbis().len(), 2, "one range, and what combines both stages");
    drop(writer);
    for page in (0..2 * MIB).step_by(4096) {
        match entry(&map, 2 * MIB + page) {
            Entry::Leaf { output, valid: false, .. } => {
                assert!(page == 64 * KIB || page == 80 * KIB);
                assert_eq!(output, pa(GIB + page));
            }
            other => assert_eq!(other, Entry::State(state(3)), "{page:#x}"),
        }
    }
    let mut writer = map.try_write().unwrap();
    // What translates anew owes nothing; the entry at the range's end stays.
    writer.restate(range(2 * MIB, 68 * KIB), Change::VALIDATE, state(0)).unwrap().flush();
    assert_eq!((mmu.take_tlbis().len(), mmu.pool().used()), (0, used));
    drop(writer);
    assert_eq!(found(&map, 2 * MIB + 64 * KIB).0, GIB + 64 * KIB);
    assert_eq!(translate(&map, 2 * MIB + 80 * KIB), None);
    assert_eq!(entry(&map, 2 * MIB + 84 * KIB), Entry::State(state(3)));
    assert_eq!(entry(&map, 2 * MIB), Entry::State(state(0)));
}

#[test]
fn a_table_is_given_up_for_a_state_unless_something_in_it_translates_or_is_a_table() {
    let mmu = FakeMmu::new(16);
    let map = new::<Stage2, _>(&mmu, bbm(3));
    add(&map, 2 * MIB, 8 * KIB, RAM, Leaves::PAGES);
    map.protect(range(2 * MIB, 4 * KIB), Change::INVALIDATE).unwrap().flush();
    let used = mmu.pool().used();
    let replace = |address, level| map.try_write().unwrap().replace_table(ipa(address), level, state(5));
    assert_eq!(replace(2 * MIB + 5, 2), Err(MapError::Differs(2 * MIB + 4 * KIB)));
    assert_eq!(replace(2 * MIB, 1), Err(MapError::Differs(2 * MIB)));
    assert_eq!(replace(4 * MIB, 2), Err(MapError::NoTable { address: 4 * MIB, level: 2 }));
    map.protect(range(2 * MIB, 8 * KIB), Change::INVALIDATE).unwrap().flush();
    mmu.take_tlbis();
    let table = replace(2 * MIB, 2).unwrap();
    assert!(!mmu.take_tlbis().is_empty(), "walks may hold the table");
    assert_eq!(entry(&map, 2 * MIB + 8 * KIB), Entry::State(state(5)));
    assert_eq!((mmu.pool().used(), reachable(&map)), (used, used - 1), "it is the caller's");
    // SAFETY: it came from there, and nobody reaches it.
    unsafe { mmu.pool().give(table) };
}

#[test]
fn accesses_are_those_that_are_asked_for() {
    for (reads, writes) in [(false, false), (false, true), (true, false), (true, true)] {
        let some = Attributes::<Stage2>::IO.accessible(reads, writes);
        assert_eq!((some.is_readable(), some.is_writable(), some.is_executable()), (reads, writes, false));
        assert_eq!(some.accessible(true, true), Attributes::<Stage2>::IO);
    }
}
