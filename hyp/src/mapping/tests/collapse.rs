//! What was split joins again: where the rule allows it, with what maintenance, and what becomes of the tables.

use std::sync::atomic::Ordering::Relaxed;

use super::common::*;
use super::flat::entries;
use super::*;

/// 512 pages at 2 MiB, in no run.
const BLOCK: u64 = 2 * MIB;
const RAM: Attributes<Stage2> = Attributes::<Stage2>::RAM;

fn collapse<R: Regime, M: Mmu>(map: &Map<R, M>, start: u64, size: u64) {
    map.cpu(0).unwrap().write().collapse(range(start, size), Leaves::LARGEST).unwrap();
}

fn level<R: Regime, M: Mmu>(map: &Map<R, M>, address: u64) -> u8 {
    translate(map, address).unwrap().level
}

/// What is done where a table of pages becomes a block, of CPUs with this level of FEAT_BBM and range invalidation.
fn steps<R: Regime>(attributes: Attributes<R>, bbm: u8) -> (Vec<Step>, Vec<(u64, u64)>) {
    let mmu = Traced::new();
    let map = new::<R, _>(&mmu, with(bbm, Capabilities::TLB_RANGE));
    add(&map, BLOCK, BLOCK, attributes, Leaves::PAGES);
    mmu.take();
    collapse(&map, BLOCK, 4 * KIB);
    assert_eq!(level(&map, BLOCK + 0x12_3456), 2);
    assert_eq!(mmu.fake.pool().used(), 3, "its table is back");
    let asked = mmu.fake.quiesce.asked.lock().unwrap().clone();
    (mmu.take(), asked)
}

/// 512 pages from 2 MiB on, and what walks hold of their table.
const PAGES: Step = Step::Tlbi(Tlbi::Range(TABLES), by_range(0x200, 1, 7, 0));
const VISIBLE: Step = Step::Barrier(Barrier::StoresVisible);
const COMPLETE: Step = Step::Barrier(Barrier::Complete);
const SYNCHRONIZE: Step = Step::Barrier(Barrier::Synchronize);

#[test]
fn stage_2_joins_pages_in_place_from_level_2_on_and_breaks_their_table_below() {
    let both = [VISIBLE, PAGES, COMPLETE, Step::Tlbi(Tlbi::Combined, 0), COMPLETE];
    // The last store is the link of the chain of tables that fell out, which hardware cannot see.
    let broken = [&[Step::Break][..], &both, &[Step::Store, VISIBLE]].concat();
    let [zero, one, two, three] = [0, 1, 2, 3].map(|bbm| steps(RAM, bbm).0);
    assert_eq!(zero, [broken, vec![Step::Store]].concat());
    assert_eq!(one, zero);
    // Page and block may conflict in a TLB, and only an invalidation of everything is sure to end that.
    assert_eq!(two, [Step::Store, VISIBLE, Step::Tlbi(Tlbi::All, 0), COMPLETE, Step::Store]);
    assert_eq!(three, [&[Step::Store][..], &both, &[Step::Store]].concat());
}

#[test]
fn stage_1_joins_pages_in_place_where_no_conflict_can_follow_and_else_in_quiet() {
    let (three, asked) = steps(DATA, 3);
    assert_eq!(
        (three, asked),
        (vec![Step::Store, VISIBLE, PAGES, COMPLETE, SYNCHRONIZE, Step::Store], vec![])
    );
    for bbm in 0..3 {
        let (steps, asked) = steps(DATA, bbm);
        assert_eq!(asked, [(BLOCK, BLOCK)], "level {bbm}");
        let broken = [Step::Break, VISIBLE, PAGES, COMPLETE, SYNCHRONIZE, Step::Store, VISIBLE, SYNCHRONIZE];
        assert_eq!(steps[..8], broken, "level {bbm}");
        assert_eq!(steps[8..], [Step::Store], "level {bbm}");
    }
}

#[test]
fn where_nobody_stands_still_nothing_is_joined_and_nothing_stored() {
    let mmu = FakeMmu::new(8);
    let map = new::<El2, _>(&mmu, bbm(2));
    add(&map, BLOCK, BLOCK, DATA, Leaves::PAGES);
    mmu.quiesce.refuses.store(true, Relaxed);
    take_stores(&mmu);
    let mut cpu = map.cpu(0).unwrap();
    let mut writer = cpu.write();
    let error = Err(MapError::NotQuiet(BLOCK));
    assert_eq!(writer.collapse(range(BLOCK, 4 * KIB), Leaves::LARGEST), error);
    assert_eq!(writer.collapse_entry(Va::new(BLOCK).unwrap(), 2).map(|_| ()), error);
    assert_eq!((take_stores(&mmu), mmu.take_tlbis()), ((0, 0, 0), vec![]));
    // A protect is done whether or not what it leaves can be joined.
    writer.protect_and_collapse(range(BLOCK, BLOCK), Change::<El2>::READ_ONLY, Leaves::LARGEST).unwrap();
    assert_eq!((level(&map, BLOCK), found(&map, BLOCK).1 & READ_ONLY), (3, READ_ONLY));
}

#[test]
fn a_gib_of_pages_becomes_one_leaf_by_one_store_and_all_its_tables_come_back() {
    let mmu = FakeMmu::new(600);
    let map = new::<El2, _>(&mmu, bbm(3));
    add(&map, GIB, GIB, DATA, Leaves::PAGES);
    assert_eq!(mmu.pool().used(), 2 + 513);
    collapse(&map, GIB + 5 * MIB, 4 * KIB);
    assert_eq!(mmu.pool().used(), 2 + 512, "only what the range touches is looked into");
    take_stores(&mmu);
    collapse(&map, GIB, GIB);
    // One leaf; a chain's link in each table; and the pool's, which has a chain of its own.
    assert_eq!(take_stores(&mmu), (1 + 512 + 512, 0, 0));
    assert_eq!((mmu.pool().used(), level(&map, GIB + 5 * MIB)), (2, 1));
}

#[test]
fn a_page_that_is_put_back_joins_its_block_with_one_flush() {
    let mmu = FakeMmu::new(8);
    let map = new::<El2, _>(&mmu, with(3, Capabilities::TLB_RANGE));
    add(&map, 0, 16 * GIB, DATA, Leaves::LARGEST);
    let page = range(GIB + 5 * MIB, 4 * KIB);
    map.protect(page, Change::<El2>::READ_ONLY).unwrap().flush();
    assert_eq!((census(&map).leaves, census(&map).runs), ([0, 15, 511, 512], [0, 0, 31, 31]));
    take_maintenance(&mmu);
    map.cpu(0).unwrap().write().protect_and_collapse(page, Change::<El2>::WRITABLE, Leaves::LARGEST).unwrap();
    assert_eq!(take_maintenance(&mmu).1, FLUSHED);
    assert_eq!((census(&map).leaves, census(&map).runs), ([0, 16, 0, 0], [0, 1, 0, 0]));
    assert_eq!(mmu.pool().used(), 2);
    map.settle();
    assert_eq!(mmu.take_tlbis(), [], "nothing is owed");
    let counts = map.counts();
    let in_place = Strategy::StoreThenInvalidate as usize;
    assert_eq!([1, 2].map(|level| counts.splits[level][in_place]), [1, 0], "1 GiB, with its 2 MiB filled in");
    assert_eq!([1, 2].map(|level| counts.collapses[level][in_place]), [1, 0]);
    assert_eq!((counts.runs_split[1][in_place], counts.runs_joined[1][in_place]), (1, 1));
}

#[test]
fn runs_and_blocks_are_made_only_as_the_caller_allows() {
    let mmu = FakeMmu::new(8);
    let map = new::<El2, _>(&mmu, bbm(3));
    add(&map, BLOCK, BLOCK, DATA, Leaves::PAGES);
    let census_after = |leaves| {
        map.cpu(0).unwrap().write().collapse(range(BLOCK, BLOCK), leaves).unwrap();
        (census(&map).leaves[2..].to_vec(), census(&map).runs[3])
    };
    assert_eq!(census_after(Leaves::PAGES), (vec![0, 512], 0));
    assert_eq!(census_after(Leaves { blocks: false, runs: true }), (vec![0, 512], 32));
    assert_eq!(census_after(Leaves { blocks: true, runs: false }), (vec![1, 0], 0));
}

#[test]
fn what_differs_in_output_or_attributes_or_validity_stays_apart() {
    let mmu = FakeMmu::new(8);
    let map = new::<El2, _>(&mmu, bbm(3));
    add(&map, BLOCK, BLOCK, DATA, Leaves::PAGES);
    map.cpu(0).unwrap().write().unmap(range(BLOCK + MIB, 8 * KIB)).unwrap().flush();
    let mut cpu = map.cpu(0).unwrap();
    // The right page, and one page too far.
    let far = pa(BLOCK + MIB + 8 * KIB);
    cpu.write().map(range(BLOCK + MIB, 4 * KIB), pa(BLOCK + MIB), DATA, Leaves::PAGES).unwrap();
    cpu.write().map(range(BLOCK + MIB + 4 * KIB, 4 * KIB), far, DATA, Leaves::PAGES).unwrap();
    drop(cpu);
    map.protect(range(BLOCK + 64 * KIB, 4 * KIB), Change::<El2>::READ_ONLY).unwrap().flush();
    map.protect(range(BLOCK + 128 * KIB, 4 * KIB), Change::<El2>::INVALIDATE).unwrap().flush();
    map.protect(range(BLOCK + 192 * KIB, 4 * KIB), Change::<El2>::software(1)).unwrap().flush();
    collapse(&map, 0, GIB);
    assert_eq!(census(&map), Census { leaves: [0, 0, 0, 512], runs: [0, 0, 0, 32 - 4] });
    let error = map.cpu(0).unwrap().write().collapse_entry(Va::new(BLOCK).unwrap(), 2).unwrap_err();
    assert_eq!(error, MapError::Differs(BLOCK + 64 * KIB));
}

#[test]
fn one_entry_gives_its_table_to_the_caller() {
    let mmu = FakeMmu::new(16);
    let map = new::<Stage2, _>(&mmu, bbm(3));
    add(&map, GIB, GIB, RAM, Leaves::LARGEST);
    map.cpu(0).unwrap().write().set_state(range(2 * GIB, GIB), State::new(7).unwrap()).unwrap();
    let before = (entries(&map), mmu.pool().used());
    let mut split = Vec::new();
    for (address, level) in [(GIB, 1), (2 * GIB, 1), (GIB + 5 * BLOCK, 2), (4 * GIB, 1)] {
        mmu.pool().reserve(1).unwrap();
        // SAFETY: one was reserved, and the table is given once.
        let table = unsafe { mmu.pool().take() };
        let at = Ipa::new(address + 0x1234).unwrap();
        // SAFETY: as above.
        unsafe { map.split_entry(at, level, table).unwrap().flush() };
        split.push((at, level, table));
    }
    let mut cpu = map.cpu(0).unwrap();
    let none = MapError::NoTable { address: 3 * GIB, level: 1 };
    assert_eq!(cpu.write().collapse_entry(Ipa::new(3 * GIB).unwrap(), 1), Err(none));
    assert_eq!(cpu.write().collapse_entry(split[0].0, 1), Err(MapError::Differs(GIB + 5 * BLOCK)));
    for (at, level, table) in split.into_iter().rev() {
        assert_eq!(cpu.write().collapse_entry(at, level), Ok(table));
        // SAFETY: it is the caller's again.
        unsafe { mmu.pool().give(table) };
    }
    drop(cpu);
    assert_eq!((entries(&map), mmu.pool().used()), before);
}

#[test]
fn a_table_of_nothing_and_one_of_a_state_become_one_word_that_owes_what_walks_hold() {
    let mmu = FakeMmu::new(8);
    let map = new::<Stage2, _>(&mmu, bbm(0));
    for (address, state) in [(GIB, State::new(5)), (0, None)] {
        let table = mmu.pool().take_root(1).unwrap();
        if let Some(state) = state {
            map.cpu(0).unwrap().write().set_state(range(address, GIB), state).unwrap();
        }
        // SAFETY: a table of the pool's, given once.
        unsafe { map.split_entry(Ipa::new(address).unwrap(), 1, table).unwrap().flush() };
    }
    mmu.take_tlbis();
    collapse(&map, 0, 2 * GIB);
    assert_eq!(mmu.pool().used(), 2);
    assert_eq!((entry(&map, 0), entry(&map, GIB)), (Entry::Empty, Entry::State(State::new(5).unwrap())));
    assert!(reaches(&mmu.take_tlbis(), 0, true));
}

#[test]
fn marks_of_all_that_joins_are_in_what_it_becomes() {
    let mmu = FakeMmu::new(32);
    let options = Options { hardware_updates: true, ..bbm(3) };
    let clean = DATA.bits() & !AF | READ_ONLY | DBM;
    let map = adopt::<El2>(&mmu, options, 2, clean | VALID, 0);
    map.split_to_pages(range(0, BLOCK)).unwrap().flush();
    // As if the flags had been cleared again, and hardware had marked one page.
    let table = leaf_table(&map);
    for index in 0..512 {
        // SAFETY: a table of the map's, which nobody else uses.
        unsafe {
            let raw = mmu.memory.load(table, index);
            let marked = if index == 300 { raw } else { raw & !AF | READ_ONLY };
            mmu.memory.store(table, index, marked);
        }
    }
    collapse(&map, 0, 4 * KIB);
    assert_eq!((level(&map, MIB), found(&map, MIB).1), (2, DATA.bits() | DBM), "accessed and written");
    // Where software keeps the flags they have to agree.
    let map = adopt::<El2>(&mmu, bbm(3), 2, clean | VALID, 0);
    map.split_to_pages(range(0, BLOCK)).unwrap().flush();
    // SAFETY: as above.
    unsafe { mmu.memory.store(leaf_table(&map), 300, clean & !READ_ONLY | AF | (300 * 4 * KIB) | TABLE) };
    collapse(&map, 0, BLOCK);
    assert_eq!(level(&map, MIB), 3);
}

/// The table of level 3 for address 0.
fn leaf_table<R: Regime>(map: &Map<R, &FakeMmu>) -> Pa {
    (0..3).fold(map.root(), |table, _| {
        // SAFETY: a table of the map's.
        super::super::descriptor::pa(unsafe { map.mmu().memory.load(table, 0) })
    })
}

#[test]
fn what_an_adopted_table_takes_away_goes_into_the_leaf_that_takes_its_place() {
    const TABLE_READ_ONLY: u64 = 1 << 62;
    let mmu = FakeMmu::new(16);
    let map = adopt::<El2>(&mmu, bbm(3), 3, DATA.bits() | TABLE, TABLE_READ_ONLY);
    let mut cpu = map.cpu(0).unwrap();
    cpu.write().map(range(4 * KIB, BLOCK - 4 * KIB), pa(4 * KIB), DATA, Leaves::PAGES).unwrap();
    drop(cpu);
    let before = found(&map, MIB).1;
    collapse(&map, 0, 4 * KIB);
    assert_eq!((level(&map, MIB), found(&map, MIB).1), (2, before));
    assert_eq!(before & READ_ONLY, READ_ONLY);
}

/// The words of the table of level 3 for address 0 become what `change` makes of them.
fn edit_leaves<R: Regime>(map: &Map<R, &FakeMmu>, change: impl Fn(u64) -> u64) {
    let (table, memory) = (leaf_table(map), &map.mmu().memory);
    // SAFETY: a table of the map's, which nobody else uses.
    (0..512).for_each(|index| unsafe { memory.store(table, index, change(memory.load(table, index))) });
}

/// A leaf below it is not writable, whatever hardware may do to the leaf; as a leaf of its own it would be.
#[test]
fn below_a_read_only_table_no_leaf_becomes_one_that_hardware_may_make_writable() {
    const TABLE_READ_ONLY: u64 = 1 << 62;
    for dirty in [0, READ_ONLY] {
        let mmu = FakeMmu::new(16);
        let options = Options { hardware_updates: true, ..bbm(3) };
        let code = Attributes::<El2>::CODE.bits() & !READ_ONLY | DBM | dirty;
        let map = adopt::<El2>(&mmu, options, 3, code | TABLE, TABLE_READ_ONLY);
        add(&map, 4 * KIB, BLOCK - 4 * KIB, Attributes::<El2>::CODE, Leaves::PAGES);
        edit_leaves(&map, |raw| code | TABLE | raw & 0xffff_ffff_f000);
        assert_eq!(found(&map, MIB).1 & (READ_ONLY | DBM), READ_ONLY);
        collapse(&map, 0, BLOCK);
        // The mark would be lost.
        assert_eq!((level(&map, MIB), found(&map, MIB).1 & (READ_ONLY | DBM)), (3, READ_ONLY));
        let result = map.cpu(0).unwrap().write().collapse_entry(Va::new(0).unwrap(), 2);
        assert_eq!(result, Err(MapError::Differs(0)));
    }
}

/// A run that was split in place and is owed for is still in TLBs when its table is broken: an invalidation by address may leave it.
#[test]
fn a_table_is_broken_with_everything_where_the_same_call_has_left_two_entries() {
    let mmu = FakeMmu::new(16);
    let options = Options { hardware_updates: true, ..with(1, Capabilities::TLB_RANGE) };
    let map = new::<Stage2, _>(&mmu, options);
    add(&map, 0, BLOCK, RAM, Leaves { blocks: false, runs: true });
    edit_leaves(&map, |raw| raw & !S2_WRITE | DBM);
    mmu.take_tlbis();
    let mut cpu = map.cpu(0).unwrap();
    cpu.write().protect_and_collapse(range(0, 4 * KIB), Change::<Stage2>::WRITABLE, Leaves::LARGEST).unwrap();
    drop(cpu);
    assert_eq!(level(&map, MIB), 2);
    assert_eq!(mmu.take_tlbis()[0], (Tlbi::All, 0));
}

/// So also where nothing is joined after it.
#[test]
fn at_plain_level_2_what_a_protect_has_split_in_place_is_invalidated_whole() {
    let mmu = FakeMmu::new(16);
    let map = new::<Stage2, _>(&mmu, with(2, Capabilities::TLB_RANGE));
    add(&map, 0, BLOCK, RAM, Leaves::LARGEST);
    let mut cpu = map.cpu(0).unwrap();
    cpu.write()
        .protect_and_collapse(range(0, 4 * KIB), Change::<Stage2>::READ_ONLY, Leaves::LARGEST)
        .unwrap();
    drop(cpu);
    assert_eq!(level(&map, MIB), 3);
    assert_eq!(mmu.take_tlbis(), [(Tlbi::All, 0)]);
}

#[test]
fn each_of_many_tables_is_invalidated_with_what_walks_hold_of_it() {
    let mmu = FakeMmu::new(200);
    let map = new::<El2, _>(&mmu, with(3, Capabilities::TLB_RANGE));
    let tables = 150;
    add(&map, 0, tables * BLOCK, DATA, Leaves::PAGES);
    mmu.take_tlbis();
    collapse(&map, 0, GIB);
    assert_eq!((mmu.pool().used(), level(&map, 100 * BLOCK)), (3, 2));
    let tlbis = mmu.take_tlbis();
    (0..tables * 512).for_each(|page| assert!(reaches(&tlbis, page, true), "{page:#x}: {tlbis:x?}"));
}

#[test]
fn tables_become_leaves_before_they_are_of_a_run() {
    let mmu = Traced::new();
    let map = new::<El2, _>(&mmu, with(3, Capabilities::TLB_RANGE));
    add(&map, 0, 32 * MIB, DATA, Leaves::LARGEST);
    map.split_at(Va::new(11 * MIB).unwrap()).unwrap().flush();
    mmu.take();
    collapse(&map, 0, 4 * KIB);
    assert_eq!(census(&map).runs, [0, 0, 0, 32], "the block with a table is not touched");
    collapse(&map, 0, 32 * MIB);
    // The table's block, then the sixteen of the run.
    let steps = mmu.take();
    assert_eq!(steps[..17], [Step::Store; 17]);
    assert_eq!(steps[17], VISIBLE);
    assert_eq!(census(&map), Census { leaves: [0, 0, 16, 0], runs: [0, 0, 1, 0] });
}

/// An adopted root of which the map reaches a part.
#[test]
fn no_run_reaches_beyond_the_map() {
    let mmu = FakeMmu::new(16);
    let root = mmu.pool().take_root(1).unwrap();
    // SAFETY: the table came from the pool just now.
    unsafe { mmu.memory.fill(root, 0, 512, DATA.bits() | VALID, GIB) };
    // SAFETY: the root is the fake's, and nobody else has it.
    let map: Map<El2, _> = unsafe { Map::adopt(&mmu, root, Geometry::stage1(33).unwrap(), bbm(3)) };
    collapse(&map, 0, GIB);
    assert_eq!(census(&map), Census { leaves: [0, 8, 0, 0], runs: [0; 4] });
}

/// Whatever level and address are asked for, in maps of every size.
#[test]
fn what_is_no_table_of_the_level_is_an_error() {
    for bits in 25..=48 {
        let mmu = FakeMmu::new(16);
        let map = Map::<El2, _>::new(&mmu, Geometry::stage1(bits).unwrap(), bbm(3)).unwrap();
        let top = 1 << bits;
        add(&map, 0, 4 * MIB, DATA, Leaves::PAGES);
        let mut cpu = map.cpu(0).unwrap();
        cpu.write().collapse(range(top - 4 * KIB, 4 * KIB), Leaves::LARGEST).unwrap();
        for level in [0, 1, 3, 4, 63, 64, 128, 255] {
            for address in [0, top - 1, top.min((1 << 48) - 1), (1 << 48) - 1] {
                let result = cpu.write().collapse_entry(Va::new(address).unwrap(), level);
                assert!(result.is_err(), "{bits} bits, level {level}, {address:#x}");
            }
        }
        assert!(cpu.write().collapse_entry(Va::new(0).unwrap(), 2).is_ok());
    }
}

#[test]
fn a_table_that_fell_out_is_not_given_back_while_another_cpu_reads_that_may_see_it() {
    let mmu = FakeMmu::new(16);
    let map = new::<El2, _>(&mmu, bbm(3));
    add(&map, 0, BLOCK, DATA, Leaves::PAGES);
    let used = mmu.pool().used();
    let (go, seen) = (std::sync::Barrier::new(2), std::sync::atomic::AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let mut early = map.cpu(1).unwrap();
        let reader = early.read();
        let joining = scope.spawn(|| {
            go.wait();
            collapse(&map, 0, BLOCK);
            seen.load(Relaxed)
        });
        go.wait();
        while level(&map, MIB) == 3 {
            std::thread::yield_now();
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert_eq!((mmu.pool().used(), joining.is_finished()), (used, false));
        seen.store(1, Relaxed);
        drop(reader);
        assert_eq!(joining.join().unwrap(), 1);
    });
    assert_eq!(mmu.pool().used(), used - 1);
}
