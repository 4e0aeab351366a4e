//! Changes of several maps at once: what is prepared on one, and cannot fail later. Miri takes minutes for a few tables of 512 words.

use super::common::*;
use super::*;

fn state(value: u64) -> State {
    State::new(value).unwrap()
}

#[test]
#[cfg_attr(miri, ignore)]
fn what_is_prepared_is_made_when_it_is_committed_and_else_leaves_nothing() {
    let mmu = FakeMmu::new(8);
    let map = new::<Stage2, _>(&mmu, bbm(0));
    let mut cpu = map.cpu(0).unwrap();
    let mut writer = cpu.write();
    let (input, ram) = (range(GIB + 4 * KIB, 2 * MIB), Attributes::<Stage2>::RAM);
    let output = pa(GIB + 4 * KIB);
    let before = (mmu.pool().free(), mmu.pool().used());
    // A table of level 1, one of level 2, two of pages.
    let prepared = writer.prepare_map(input, None, output, ram, Leaves::LARGEST).unwrap();
    assert_eq!((mmu.pool().free(), mmu.pool().used()), (before.0 - 4, before.1));
    drop(prepared);
    assert_eq!((mmu.pool().free(), mmu.pool().used()), before);
    take_stores(&mmu);
    let prepared = writer.prepare_map(input, None, output, ram, Leaves::LARGEST).unwrap();
    assert_eq!(take_stores(&mmu), (0, 0, 0));
    // Nobody else's call takes what is set aside.
    let free = mmu.pool().free();
    assert_eq!(mmu.pool().reserve(free + 1), Err(free));
    prepared.commit();
    drop(writer);
    drop(cpu);
    assert_eq!(found(&map, GIB + 2 * MIB).0, GIB + 2 * MIB);
    assert_eq!(translate(&map, GIB), None);
    let mut cpu = map.cpu(0).unwrap();
    cpu.write().prepare_map(range(0, 0), None, pa(0), ram, Leaves::LARGEST).unwrap().commit();
    assert_eq!(mmu.pool().used(), before.1 + 4);
}

#[test]
#[cfg_attr(miri, ignore)]
fn what_takes_the_place_of_a_state_leaves_the_state_around_it() {
    for (size, tables, census_after) in
        [(GIB, 0, [0, 1, 0, 0]), (6 * MIB, 1, [0, 0, 3, 0]), (2 * MIB + 4 * KIB, 2, [0, 0, 1, 1])]
    {
        let mmu = FakeMmu::new(8);
        let map = new::<Stage2, _>(&mmu, bbm(0));
        let ram = Attributes::<Stage2>::RAM;
        let mut cpu = map.cpu(0).unwrap();
        let mut writer = cpu.write();
        writer.set_state(range(GIB, GIB), state(7)).unwrap();
        let used = mmu.pool().used();
        mmu.take_tlbis();
        writer.prepare_map(range(GIB, size), Some(state(7)), pa(GIB), ram, Leaves::LARGEST).unwrap().commit();
        drop(writer);
        drop(cpu);
        assert_eq!(mmu.pool().used() - used, tables);
        assert_eq!(census(&map).leaves, census_after);
        assert_eq!(mmu.take_tlbis(), [], "what did not translate is in no TLB");
        assert_eq!(found(&map, GIB + size - 1).0, GIB + size - 1);
        if size < GIB {
            assert_eq!(entry(&map, GIB + size), Entry::State(state(7)));
            assert_eq!(entry(&map, 2 * GIB - 1), Entry::State(state(7)));
        }
        assert_eq!(entry(&map, 2 * GIB), Entry::Empty);
    }
}

#[test]
fn only_the_state_that_is_named_gives_way() {
    let mmu = FakeMmu::new(8);
    let map = new::<Stage2, _>(&mmu, bbm(0));
    let mut cpu = map.cpu(0).unwrap();
    let mut writer = cpu.write();
    writer.set_state(range(GIB, 2 * MIB), state(7)).unwrap();
    writer.set_state(range(GIB + 2 * MIB, 2 * MIB), state(8)).unwrap();
    let ram = Attributes::<Stage2>::RAM;
    writer.map(range(GIB + 6 * MIB, 2 * MIB), pa(0), ram, Leaves::LARGEST).unwrap();
    let mut error = |start: u64, size, state| {
        writer.prepare_map(range(GIB + start, size), state, pa(0), ram, Leaves::LARGEST).err()
    };
    assert_eq!(error(0, 4 * MIB, Some(state(7))), Some(MapError::HasState(GIB + 2 * MIB)));
    assert_eq!(error(0, 2 * MIB, Some(state(8))), Some(MapError::HasState(GIB)));
    assert_eq!(error(2 * MIB, 4 * MIB, Some(state(8))), Some(MapError::NoState(GIB + 4 * MIB)));
    assert_eq!(error(2 * MIB, 2 * MIB, None), Some(MapError::HasState(GIB + 2 * MIB)));
    assert_eq!(error(6 * MIB, 2 * MIB, Some(state(8))), Some(MapError::Mapped(GIB + 6 * MIB)));
    assert_eq!(error(0, 2 * MIB, Some(state(7))), None);
}

/// The other call may bring tables of its own, but none is missing then.
#[test]
#[cfg_attr(miri, ignore)]
fn what_is_split_after_it_was_prepared_is_made_all_the_same() {
    for prepared_size in [2 * MIB, 8 * KIB] {
        let mmu = FakeMmu::new(8);
        let map = new::<Stage2, _>(&mmu, bbm(0));
        let ram = Attributes::<Stage2>::RAM;
        map.cpu(0).unwrap().write().set_state(range(GIB, 2 * MIB), state(7)).unwrap();
        let mut cpu = map.cpu(0).unwrap();
        let mut writer = cpu.write();
        let input = range(GIB, prepared_size);
        let prepared = writer.prepare_map(input, Some(state(7)), pa(GIB), ram, Leaves::LARGEST).unwrap();
        mmu.pool().reserve(1).unwrap();
        // SAFETY: one is reserved, and given once.
        unsafe {
            let table = mmu.pool().take();
            map.split_entry(Ipa::new(GIB).unwrap(), 2, table).unwrap().flush();
        }
        prepared.commit();
        drop(writer);
        drop(cpu);
        assert_eq!(found(&map, GIB + prepared_size - 1).0, GIB + prepared_size - 1);
        let rest = if prepared_size == 2 * MIB { Entry::Empty } else { Entry::State(state(7)) };
        assert_eq!(entry(&map, GIB + prepared_size), rest);
        let free = mmu.pool().free();
        assert_eq!((free, mmu.pool().used()), (8 - mmu.pool().used(), reachable(&map)));
    }
}

#[test]
#[cfg_attr(miri, ignore)]
fn once_its_edges_are_split_a_range_takes_any_change_without_a_table() {
    let mmu = FakeMmu::new(12);
    let map = new::<Stage2, _>(&mmu, bbm(0));
    let ram = Attributes::<Stage2>::RAM;
    let mut cpu = map.cpu(0).unwrap();
    let mut writer = cpu.write();
    // From the middle of a block to the middle of a state.
    writer.map(range(GIB, 4 * MIB), pa(GIB), ram, Leaves::LARGEST).unwrap();
    writer.set_state(range(GIB + 4 * MIB, 4 * MIB), state(7)).unwrap();
    let part = range(GIB + 4 * KIB, 6 * MIB);
    writer.split_edges_of_all(part).unwrap().flush();
    let free = mmu.pool().free();
    mmu.pool().reserve(free).unwrap();
    map.protect(part, Change::software(1)).unwrap().flush();
    writer.set_state(part, state(8)).unwrap();
    writer.prepare_map(part, Some(state(8)), pa(GIB + 4 * KIB), ram, Leaves::LARGEST).unwrap().commit();
    writer.unmap(part).unwrap().flush();
    drop(writer);
    drop(cpu);
    assert_eq!(found(&map, GIB).0, GIB);
    assert_eq!(entry(&map, GIB + 4 * KIB), Entry::Empty);
    assert_eq!(entry(&map, GIB + 6 * MIB + 4 * KIB), Entry::State(state(7)));
}

#[test]
fn there_is_one_writer_and_who_tries_is_told() {
    let mmu = FakeMmu::new(8);
    let map = new::<Stage2, _>(&mmu, bbm(0));
    add(&map, GIB, 4 * MIB, Attributes::<Stage2>::RAM, Leaves::LARGEST);
    let writer = map.try_write().unwrap();
    assert!(map.try_write().is_none());
    // Trying takes nothing from who has it, and a slot is not needed.
    assert!(map.try_write().is_none());
    let (mut seen, mut read) = (Vec::new(), Vec::new());
    let _ = writer.walk(range(0, 8 * GIB), |visited| {
        seen.push(visited);
        std::ops::ControlFlow::<()>::Continue(())
    });
    drop(writer);
    let _ = map.cpu(0).unwrap().read().walk(range(0, 8 * GIB), |visited| {
        read.push(visited);
        std::ops::ControlFlow::<()>::Continue(())
    });
    assert_eq!(seen, read);
    assert!(map.try_write().is_some());
}
