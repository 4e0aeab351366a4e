//! One output bit of leaves: an alias of the memory they had.

use super::common::*;
use super::*;

type R = El1And0;
const DATA: Attributes<R> = Attributes::<R>::DATA;
const BIT: u32 = 39;
const ALIAS: u64 = 1 << BIT;

fn to(value: bool) -> Change<R> {
    Change::output_bit(BIT, value).unwrap()
}

/// Output of an address, and whether it translates.
fn output<M: Mmu>(map: &Map<R, M>, address: u64) -> (u64, bool) {
    let found = map.cpu(7).unwrap().read().find(Va::new(address).unwrap()).unwrap();
    let Entry::Leaf { output, valid, .. } = found.entry else { panic!("{found:?}") };
    (output.get() + (address - found.start), valid)
}

#[test]
fn only_bits_of_an_output_are_changed() {
    for bit in [0, 11, 48, 63, 64, u32::MAX] {
        assert_eq!(Change::<R>::output_bit(bit, true), None);
        assert_eq!(Change::<R>::output_bit(bit, false), None);
    }
    assert!(Change::<R>::output_bit(12, true).is_some() && Change::<Stage2>::output_bit(47, false).is_some());
}

#[test]
fn what_does_not_translate_gets_its_alias_without_a_break_at_each_level_of_leaf() {
    for level in 0..=3 {
        let mmu = FakeMmu::new(16);
        let map = new::<R, _>(&mmu, bbm(level));
        // Runs of 1 GiB blocks, of 2 MiB blocks, of pages; and a block and a page alone.
        let parts = [
            (16 * GIB, 16 * GIB),
            (GIB, GIB),
            (32 * MIB, 32 * MIB),
            (2 * MIB, 2 * MIB),
            (64 * KIB, 64 * KIB),
            (4 * KIB, 4 * KIB),
        ];
        for (start, size) in parts {
            add(&map, start, size, DATA, Leaves::LARGEST);
        }
        let before = census(&map);
        for (start, size) in parts {
            map.protect(range(start, size), Change::INVALIDATE).unwrap().flush();
            take_maintenance(&mmu);
            map.protect(range(start, size), to(true).then(Change::VALIDATE)).unwrap().flush();
            assert_eq!(take_maintenance(&mmu), (vec![], vec![Barrier::StoresVisible, Barrier::Synchronize]));
            for at in [start, start + size / 2, start + size - 4 * KIB] {
                assert_eq!(found(&map, at), (ALIAS | at, DATA.bits()));
            }
        }
        // In the leaves and runs that they were in.
        assert_eq!(census(&map), before);
        for (start, size) in parts {
            map.protect(range(start, size), Change::INVALIDATE).unwrap().flush();
            map.protect(range(start, size), to(false).then(Change::VALIDATE)).unwrap().flush();
            assert_eq!(found(&map, start + size - 4 * KIB), (start + size - 4 * KIB, DATA.bits()));
        }
        assert_eq!(census(&map), before);
        assert!(mmu.quiesce.asked.lock().unwrap().is_empty(), "level {level}");
    }
}

#[test]
fn what_translates_is_broken_while_the_others_stand_still() {
    for level in 0..=3 {
        let mmu = FakeMmu::new(16);
        let map = new::<R, _>(&mmu, bbm(level));
        add(&map, 0, 2 * MIB, DATA, Leaves::LARGEST);
        take_maintenance(&mmu);
        map.protect(range(0, 2 * MIB), to(true)).unwrap().flush();
        assert_eq!(found(&map, MIB), (ALIAS | MIB, DATA.bits()));
        let asked = std::mem::take(&mut *mmu.quiesce.asked.lock().unwrap());
        assert_eq!(asked, [(0, 2 * MIB)], "level {level}");
        assert!(reaches(&take_maintenance(&mmu).0, 0, false));
        // A page of a run: the whole run of pages that it becomes a part of is broken with it.
        mmu.quiesce.refuses.store(true, core::sync::atomic::Ordering::Relaxed);
        let refused = map.protect(range(64 * KIB, 4 * KIB), to(false)).map(Debt::flush);
        assert_eq!(refused, Err(MapError::NotQuiet(0)));
        assert_eq!(found(&map, 64 * KIB), (ALIAS + 64 * KIB, DATA.bits()));
    }
}

#[test]
fn a_leaf_that_is_as_asked_for_already_is_not_stored_to() {
    let mmu = FakeMmu::new(8);
    let map = new::<R, _>(&mmu, bbm(0));
    add(&map, 0, 2 * MIB, DATA, Leaves::LARGEST);
    take_stores(&mmu);
    map.protect(range(0, 2 * MIB), to(false).then(Change::VALIDATE)).unwrap().flush();
    assert_eq!(take_stores(&mmu).0, 0);
}

#[test]
fn a_part_of_a_run_takes_its_alias_and_the_rest_keeps_its_outputs() {
    for level in [0, 3] {
        let mmu = FakeMmu::new(16);
        let map = new::<R, _>(&mmu, bbm(level));
        add(&map, 0, 4 * MIB, DATA, Leaves::LARGEST);
        let (start, size) = (2 * MIB + 64 * KIB + 8 * KIB, 64 * KIB);
        map.protect(range(start, size), Change::INVALIDATE).unwrap().flush();
        map.protect(range(start, size), to(true).then(Change::VALIDATE)).unwrap().flush();
        for page in (0..4 * MIB).step_by(4 << 10) {
            let alias = if (start..start + size).contains(&page) { ALIAS } else { 0 };
            assert_eq!(output(&map, page), (alias | page, true), "level {level}");
        }
        // No run has leaves of both: that of each end is open, and only those.
        let first = 2 * MIB + 64 * KIB;
        for run in (2 * MIB..4 * MIB).step_by(64 << 10) {
            let open = run == first || run == first + 64 * KIB;
            let contiguous = translate(&map, run).unwrap().is_contiguous();
            assert_eq!(contiguous, !open, "{run:#x}");
        }
    }
}

#[test]
fn what_has_different_aliases_is_not_joined_and_what_has_the_same_again_is() {
    for level in [0, 3] {
        let mmu = FakeMmu::new(16);
        let map = new::<R, _>(&mmu, bbm(level));
        add(&map, 0, 4 * MIB, DATA, Leaves::LARGEST);
        let before = census(&map);
        let set = |start, size, value| {
            map.protect(range(start, size), Change::INVALIDATE).unwrap().flush();
            map.protect(range(start, size), to(value).then(Change::VALIDATE)).unwrap().flush();
            map.cpu(0).unwrap().write().collapse(range(0, 4 * MIB), Leaves::LARGEST).unwrap();
        };
        // The second half of a block: its runs are joined, each with its like, but no block has both.
        set(MIB, MIB, true);
        assert_eq!(
            (output(&map, MIB - 4 * KIB), output(&map, MIB)),
            ((MIB - 4 * KIB, true), (ALIAS | MIB, true))
        );
        assert_eq!(census(&map).leaves, [0, 0, 1, 512]);
        // All of it: a block again, of the alias; and no run of its neighbour.
        set(0, MIB, true);
        assert_eq!(census(&map).leaves, before.leaves);
        assert_eq!((output(&map, MIB), output(&map, 3 * MIB)), ((ALIAS | MIB, true), (3 * MIB, true)));
        set(0, 2 * MIB, false);
        assert_eq!(census(&map), before);
    }
}

#[test]
fn a_leaf_or_run_larger_than_the_bits_weight_is_refused_whole() {
    let mmu = FakeMmu::new(16);
    let map = new::<R, _>(&mmu, bbm(3));
    add(&map, 16 * GIB, 16 * GIB, DATA, Leaves::LARGEST);
    add(&map, 0, 2 * GIB, DATA, Leaves::LARGEST);
    let bit = |bit| Change::<R>::output_bit(bit, true).unwrap();
    take_stores(&mmu);
    let run = Err(MapError::TooLarge { address: 16 * GIB, level: 1 });
    assert_eq!(map.protect(range(16 * GIB, 16 * GIB), bit(33)).map(Debt::flush), run);
    let block = Err(MapError::TooLarge { address: 0, level: 1 });
    assert_eq!(map.protect(range(0, 2 * GIB), bit(29)).map(Debt::flush), block);
    assert_eq!(take_stores(&mmu), (0, 0, 0));
    // A bit as large as the leaf is above it.
    map.protect(range(0, GIB), Change::INVALIDATE).unwrap().flush();
    map.protect(range(0, GIB), bit(30).then(Change::VALIDATE)).unwrap().flush();
    assert_eq!(output(&map, MIB), (GIB | MIB, true));
    map.protect(range(16 * GIB, 16 * GIB), Change::INVALIDATE).unwrap().flush();
    map.protect(range(16 * GIB, 16 * GIB), bit(34).then(Change::VALIDATE)).unwrap().flush();
    assert_eq!(output(&map, 31 * GIB), (31 * GIB, true), "it was set");
}
