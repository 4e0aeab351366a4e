//! One promise of the engine each: the known defects of its peers, exact maintenance, debts, and errors.

use std::cell::Cell;
use std::sync::atomic::Ordering::Relaxed;

use super::common::*;
use super::*;
use crate::mapping::mmu::Reach;

// Defects of peers.

/// aarch64-paging: allocating a table cannot fail.
#[test]
fn too_little_table_memory_is_an_error() {
    let mmu = FakeMmu::new(3);
    let map = new::<El2, _>(&mmu, bbm(3));
    let mut cpu = map.cpu(0).unwrap();
    let result = cpu.write().map(range(0, 4 * KIB), pa(0), Attributes::<El2>::DATA, Leaves::PAGES);
    assert_eq!(result, Err(MapError::OutOfTables { needed: 3, free: 2 }));
    assert_eq!((mmu.pool().used(), mmu.pool().free()), (1, 2));
}

/// aarch64-paging: every edit needs the map exclusively.
#[test]
fn a_map_is_edited_while_it_is_read() {
    let mmu = FakeMmu::new(8);
    let map = new::<El2, _>(&mmu, bbm(3));
    add(&map, 0, 2 * MIB, Attributes::<El2>::DATA, Leaves::LARGEST);
    let mut cpu = map.cpu(0).unwrap();
    let reader = cpu.read();
    let address = Va::new(4 * KIB).unwrap();
    assert_eq!(reader.translate(address).unwrap().level, 2);
    map.protect(range(4 * KIB, 4 * KIB), Change::<El2>::READ_ONLY).unwrap().flush();
    assert_eq!(reader.translate(address).unwrap().level, 3);
}

/// aarch64-paging: a live block is replaced by a table with no break when the updater changes nothing in it.
#[test]
fn stage_2_breaks_a_block_before_it_becomes_a_table_unless_the_level_allows_otherwise() {
    let split = |level: u8| {
        let mmu = Traced::new();
        let map = new::<Stage2, _>(&mmu, bbm(level));
        add(&map, 2 * MIB, 2 * MIB, Attributes::<Stage2>::RAM, Leaves::LARGEST);
        mmu.take();
        let debt = map.split_at(Ipa::new(2 * MIB + 64 * KIB).unwrap()).unwrap();
        let before_flush = mmu.take();
        debt.flush();
        (before_flush, mmu.take())
    };
    let block = (2 * MIB) >> 12;
    let visible = Step::Barrier(Barrier::StoresVisible);
    let complete = Step::Barrier(Barrier::Complete);
    let both = vec![
        visible,
        Step::Tlbi(Tlbi::Address(LEAVES), block),
        complete,
        Step::Tlbi(Tlbi::Combined, 0),
        complete,
    ];
    let broken = [vec![Step::Break], both.clone(), vec![Step::Store, visible]].concat();
    assert_eq!(split(0), (broken.clone(), vec![]));
    assert_eq!(split(1), (broken, vec![]));
    // A conflict is EL2's to answer, and only an invalidation of everything is sure to end it.
    assert_eq!(split(2), (vec![Step::Store], vec![visible, Step::Tlbi(Tlbi::All, 0), complete]));
    assert_eq!(split(3), (vec![Step::Store], both));
}

/// aarch64-paging: the same at stage 1, where nobody could take the fault of a break.
#[test]
fn stage_1_breaks_a_block_only_in_quiet_unless_no_conflict_can_follow() {
    for level in 0..=3 {
        let mmu = Traced::new();
        let map = new::<El2, _>(&mmu, bbm(level));
        add(&map, 2 * MIB, 2 * MIB, Attributes::<El2>::DATA, Leaves::LARGEST);
        mmu.take();
        map.split_at(Va::new(3 * MIB).unwrap()).unwrap().flush();
        let steps = mmu.take();
        let tlbi = steps.iter().position(|step| *step == Step::Tlbi(Tlbi::Address(LEAVES), (2 * MIB) >> 12));
        let store = steps.iter().position(|step| *step == Step::Store);
        let asked = mmu.fake.quiesce.asked.lock().unwrap().clone();
        if level < 3 {
            assert_eq!((steps[0], asked), (Step::Break, vec![(2 * MIB, 2 * MIB)]), "level {level}");
            assert!(tlbi < store, "level {level}: {steps:?}");
        } else {
            assert_eq!((store, asked), (Some(0), vec![]));
            assert!(tlbi > store && !steps.contains(&Step::Break), "{steps:?}");
        }
    }
}

/// aarch64-paging: never sets the Contiguous bit.
#[test]
fn what_is_aligned_to_a_run_is_mapped_as_one_at_each_level() {
    let mmu = FakeMmu::new(8);
    let map = new::<Stage2, _>(&mmu, bbm(3));
    add(&map, 16 * GIB, 16 * GIB, Attributes::<Stage2>::RAM, Leaves::LARGEST);
    add(&map, 32 * MIB, 32 * MIB, Attributes::<Stage2>::RAM, Leaves::LARGEST);
    add(&map, 64 * KIB, 64 * KIB, Attributes::<Stage2>::RAM, Leaves::LARGEST);
    assert_eq!(census(&map), Census { leaves: [0, 16, 16, 16], runs: [0, 1, 1, 1] });
    assert!([64 * KIB, 48 * MIB, 31 * GIB].iter().all(|&at| translate(&map, at).unwrap().is_contiguous()));
}

/// aarch64-paging: has one root table, so no stage 2 of 40 to 43 bits.
#[test]
fn stage_2_of_40_bits_has_two_concatenated_roots() {
    let mmu = FakeMmu::new(8);
    let map = Map::<Stage2, _>::new(&mmu, Geometry::stage2(40).unwrap(), bbm(3)).unwrap();
    assert_eq!(
        (map.geometry().root_tables(), map.geometry().start_level(), map.root().get() % (8 * KIB)),
        (2, 1, 0)
    );
    // From the last GiB of the first root on into the second.
    add(&map, 511 * GIB, 2 * GIB, Attributes::<Stage2>::RAM, Leaves::LARGEST);
    assert_eq!(mmu.pool().used(), 2);
    for at in [511 * GIB, 512 * GIB - 1, 512 * GIB, 513 * GIB - 1] {
        assert_eq!(found(&map, at).0, at);
    }
    assert_eq!(translate(&map, 513 * GIB), None);
}

/// aarch64-paging: cannot be asked for a translation.
#[test]
fn what_an_address_translates_to_can_be_asked() {
    let mmu = FakeMmu::new(8);
    let map = new::<Stage2, _>(&mmu, bbm(3));
    let (output, attributes) = (pa(6 * MIB), Attributes::<Stage2>::IO);
    map.cpu(0).unwrap().write().map(range(2 * MIB, 2 * MIB), output, attributes, Leaves::LARGEST).unwrap();
    let found = translate(&map, 2 * MIB + 0x1234).unwrap();
    assert_eq!((found.output, found.attributes()), (pa(6 * MIB + 0x1234), attributes));
    assert_eq!((found.level, found.is_contiguous()), (2, false));
    assert_eq!(translate(&map, 4 * MIB), None);
}

/// aarch64-paging: its address mask has nT (bit 16) of a block in it, so the pages of a split one go astray.
#[test]
fn nt_of_a_block_is_no_part_of_the_addresses_of_its_pages() {
    let mmu = FakeMmu::new(8);
    let attributes = Attributes::<El2>::DATA.bits();
    let map = adopt::<El2>(&mmu, bbm(3), 2, (4 * MIB) | (1 << 16) | attributes | VALID, 0);
    assert_eq!(found(&map, 0x2_3456), (4 * MIB + 0x2_3456, attributes));
    map.split_to_pages(range(0, 2 * MIB)).unwrap().flush();
    for page in 0..512 {
        assert_eq!(found(&map, page * 4 * KIB), (4 * MIB + page * 4 * KIB, attributes));
    }
}

/// aarch64-paging: what an edit did before it failed stays done.
#[test]
fn a_call_that_fails_has_stored_nothing() {
    let mmu = FakeMmu::new(6);
    let map = new::<El2, _>(&mmu, bbm(3));
    let data = Attributes::<El2>::DATA;
    add(&map, GIB - 4 * KIB, 4 * KIB, data, Leaves::PAGES);
    add(&map, GIB, GIB, data, Leaves::LARGEST);
    take_stores(&mmu);
    let mut cpu = map.cpu(0).unwrap();
    let mut writer = cpu.write();
    // Its last page is in the way.
    assert_eq!(writer.map(range(0, GIB), pa(0), data, Leaves::LARGEST), Err(MapError::Mapped(GIB - 4 * KIB)));
    // Both ends cut a block, and there are tables for one of them.
    let cuts = range(GIB + 4 * KIB, 512 * MIB);
    let error = Some(MapError::OutOfTables { needed: 3, free: 2 });
    assert_eq!(map.protect(cuts, Change::<El2>::READ_ONLY).err(), error);
    assert_eq!(writer.unmap(cuts).err(), error);
    assert_eq!((take_stores(&mmu), mmu.pool().free()), ((0, 0, 0), 2));
}

/// aarch64-paging: live maps and unmaps cost an invalidation for each leaf.
#[test]
fn new_pages_owe_no_invalidation_and_what_goes_away_as_few_as_it_can() {
    let pages = |options, size| {
        let mmu = FakeMmu::new(16);
        let map = new::<El2, _>(&mmu, options);
        add(&map, 0, 8 * MIB, Attributes::<El2>::DATA, Leaves::PAGES);
        assert_eq!(mmu.take_tlbis(), []);
        remove(&map, 0, size).flush();
        mmu.take_tlbis()
    };
    // 1,024 pages: everything, or one range from whose tables walks have gone.
    assert_eq!(pages(bbm(3), 4 * MIB), [(Tlbi::All, 0)]);
    assert_eq!(
        pages(with(3, Capabilities::TLB_RANGE), 4 * MIB),
        [(Tlbi::Range(TABLES), by_range(0, 1, 15, 0))]
    );
    // Two pages of a table that stays.
    assert_eq!(pages(bbm(3), 8 * KIB), [(Tlbi::Address(LEAVES), 0), (Tlbi::Address(LEAVES), 1)]);
    assert_eq!(
        pages(with(3, Capabilities::TLB_RANGE), 8 * KIB),
        [(Tlbi::Range(LEAVES), by_range(0, 0, 0, 0))]
    );
}

/// aarch64-paging: invalidates stage 2 by IPA alone, which leaves the entries that combine both stages.
#[test]
fn stage_2_invalidates_combined_entries_after_those_by_ipa() {
    let mmu = Traced::new();
    let map = new::<Stage2, _>(&mmu, bbm(3));
    add(&map, 0, 64 * KIB, Attributes::<Stage2>::RAM, Leaves::PAGES);
    let debt = remove(&map, 4 * KIB, 8 * KIB);
    mmu.take();
    debt.flush();
    let expected = [
        Step::Barrier(Barrier::StoresVisible),
        Step::Tlbi(Tlbi::Address(LEAVES), 1),
        Step::Tlbi(Tlbi::Address(LEAVES), 2),
        Step::Barrier(Barrier::Complete),
        Step::Tlbi(Tlbi::Combined, 0),
        Step::Barrier(Barrier::Complete),
    ];
    assert_eq!(mmu.take(), expected);
}

/// aarch64-paging: its stage 2 attributes lack DBM, the Contiguous bit and XN[0], so an edit loses them.
#[test]
fn a_change_keeps_the_bits_that_it_does_not_name() {
    let mmu = FakeMmu::new(8);
    let xn_0 = 1 << 53;
    let attributes = Attributes::<Stage2>::RAM.bits() | DBM | xn_0;
    let map = adopt::<Stage2>(&mmu, bbm(3), 2, attributes | VALID, 0);
    map.split_at(Ipa::new(64 * KIB).unwrap()).unwrap().flush();
    assert_eq!(found(&map, 4 * KIB).1, attributes);
    map.protect(range(0, 2 * MIB), Change::<Stage2>::software(3)).unwrap().flush();
    assert_eq!(found(&map, 4 * KIB).1, attributes | 3 << 56);
    assert!(translate(&map, 4 * KIB).unwrap().is_contiguous());
}

/// page_table_multiarch: a change of one page changes the whole block it lies in.
#[test]
fn one_page_of_a_block_changes_alone() {
    let mmu = FakeMmu::new(8);
    let map = new::<El2, _>(&mmu, bbm(3));
    add(&map, 0, GIB, Attributes::<El2>::DATA, Leaves::LARGEST);
    map.protect(range(64 * MIB, 4 * KIB), Change::<El2>::READ_ONLY).unwrap().flush();
    let writable = |at| found(&map, at).1 & READ_ONLY == 0;
    let around = [64 * MIB - 1, 64 * MIB, 64 * MIB + 4 * KIB - 1, 64 * MIB + 4 * KIB].map(writable);
    assert_eq!(around, [true, false, false, true]);
    // 511 blocks of 2 MiB but for those of the run of the one that was split, and 512 pages but for the page's run.
    assert_eq!(census(&map), Census { leaves: [0, 0, 511, 512], runs: [0, 0, 31, 31] });
}

/// page_table_multiarch: unmap gives no table back.
#[test]
fn unmap_gives_back_every_table_that_says_nothing_any_more() {
    let mmu = FakeMmu::new(16);
    let map = new::<El2, _>(&mmu, bbm(3));
    add(&map, 0, 8 * MIB, Attributes::<El2>::DATA, Leaves::PAGES);
    assert_eq!(mmu.pool().used(), 7);
    remove(&map, 0, 4 * MIB).flush();
    map.settle();
    assert_eq!(mmu.pool().used(), 5);
    // A table that is emptied piece by piece goes with its last piece, and so do those above it.
    for start in (4 * MIB..8 * MIB).step_by(MIB as usize) {
        remove(&map, start, MIB).flush();
    }
    map.settle();
    assert_eq!((mmu.pool().used(), mmu.pool().free()), (1, 15));
}

// Exactly which maintenance and how many stores.

/// A block of 1 GiB at 1 GiB, a run of 16 pages and a table full of pages besides; then `act`, whose debt is flushed. Invalidations,
/// barriers and stores of `act` and the flush.
fn maintenance<R: Regime>(
    options: Options,
    attributes: Attributes<R>,
    act: impl Fn(&Map<R, &FakeMmu>),
) -> (Vec<(Tlbi, u64)>, Vec<Barrier>, Stores) {
    let mmu = FakeMmu::new(16);
    let map = new::<R, _>(&mmu, options);
    add(&map, GIB, GIB, attributes, Leaves::LARGEST);
    add(&map, 0, 64 * KIB, attributes, Leaves::LARGEST);
    add(&map, 2 * MIB, 2 * MIB, attributes, Leaves::PAGES);
    take_maintenance(&mmu);
    take_stores(&mmu);
    act(&map);
    let (tlbis, barriers) = take_maintenance(&mmu);
    (tlbis, barriers, take_stores(&mmu))
}

/// Page number of 1 GiB.
const GIB_PAGE: u64 = GIB >> 12;

#[test]
fn a_new_mapping_takes_one_store_a_word_and_two_barriers() {
    let act = |map: &Map<El2, &FakeMmu>| add(map, 512 * GIB, 2 * MIB, DATA, Leaves::PAGES);
    // Three tables, all of their words, and the word that links them.
    let expected = (vec![], vec![Barrier::StoresVisible, Barrier::Synchronize], (1, 3 * 512, 0));
    assert_eq!(maintenance(bbm(3), DATA, act), expected);
    let act =
        |map: &Map<Stage2, &FakeMmu>| add(map, 512 * GIB, 2 * MIB, Attributes::<Stage2>::RAM, Leaves::PAGES);
    let expected = (vec![], vec![Barrier::StoresVisible], (1, 3 * 512, 0));
    assert_eq!(maintenance(bbm(3), Attributes::<Stage2>::RAM, act), expected);
}

#[test]
fn a_page_split_out_of_1_gib_takes_1_025_words_and_a_lock_and_one_invalidation() {
    let act = |map: &Map<El2, &FakeMmu>| {
        map.protect(range(GIB + 8 * MIB, 4 * KIB), Change::<El2>::READ_ONLY).unwrap().flush();
    };
    // Two tables and the word that links them; the lock of the table of that word is taken (exchange) and given back (store).
    let stores = (1 + 1, 2 * 512, 1);
    for more in [Capabilities::empty(), Capabilities::TLB_RANGE | Capabilities::TLB_LEVEL] {
        // A TLB may hold an entry of either size: no level.
        let tlbis = vec![(Tlbi::Address(LEAVES), GIB_PAGE)];
        assert_eq!(maintenance(with(3, more), DATA, act), (tlbis, FLUSHED.to_vec(), stores));
    }
}

#[test]
fn a_block_that_changes_whole_takes_one_store_and_one_invalidation() {
    let act = |map: &Map<El2, &FakeMmu>| {
        map.protect(range(GIB, GIB), Change::<El2>::READ_ONLY).unwrap().flush();
    };
    for (more, hint) in [(Capabilities::TLB_RANGE, 0), (Capabilities::TLB_LEVEL, ttl(1))] {
        let (tlbis, barriers, stores) = maintenance(with(0, more), DATA, act);
        assert_eq!((tlbis, barriers), (vec![(Tlbi::Address(LEAVES), hint | GIB_PAGE)], FLUSHED.to_vec()));
        assert_eq!(stores, (1 + 1, 0, 1), "the block, and a lock");
    }
}

#[test]
fn a_part_of_a_run_takes_the_whole_run_with_it() {
    let act = |map: &Map<El2, &FakeMmu>| {
        map.protect(range(16 * KIB, 16 * KIB), Change::<El2>::READ_ONLY).unwrap().flush();
    };
    // Every page of the run loses its Contiguous bit, and a TLB may hold the run as one entry: no level.
    let each: Vec<_> = (0..16).map(|page| (Tlbi::Address(LEAVES), page)).collect();
    let level = Capabilities::TLB_LEVEL;
    assert_eq!(maintenance(with(3, level), DATA, act), (each, FLUSHED.to_vec(), (16 + 1, 0, 1)));
    let (tlbis, ..) = maintenance(with(3, level | Capabilities::TLB_RANGE), DATA, act);
    assert_eq!(tlbis, [(Tlbi::Range(LEAVES), by_range(0, 0, 7, 0))]);
}

#[test]
fn pages_that_keep_their_size_are_invalidated_at_their_level() {
    let act = |map: &Map<El2, &FakeMmu>| {
        map.protect(range(3 * MIB, 12 * KIB), Change::<El2>::READ_ONLY).unwrap().flush();
    };
    let level = Capabilities::TLB_LEVEL;
    let (tlbis, ..) = maintenance(with(3, level), DATA, act);
    assert_eq!(tlbis, [0x300, 0x301, 0x302].map(|page| (Tlbi::Address(LEAVES), ttl(3) | page)));
    // Ranges are of two pages at least: the third is left over.
    let (tlbis, ..) = maintenance(with(3, level | Capabilities::TLB_RANGE), DATA, act);
    let expected = [(Tlbi::Range(LEAVES), by_range(0x300, 0, 0, 3)), (Tlbi::Address(LEAVES), ttl(3) | 0x302)];
    assert_eq!(tlbis, expected);
}

#[test]
fn a_table_that_is_unmapped_whole_takes_one_store_and_is_invalidated_with_what_walks_hold_of_it() {
    let act = |map: &Map<El2, &FakeMmu>| {
        let debt = remove(map, 2 * MIB, 2 * MIB);
        assert_eq!(take_stores(map.mmu()), (1, 0, 0));
        debt.flush();
    };
    let (tlbis, barriers, _) = maintenance(bbm(0), DATA, act);
    assert_eq!((tlbis, barriers), (vec![(Tlbi::All, 0)], FLUSHED.to_vec()));
    let (tlbis, ..) = maintenance(with(0, Capabilities::TLB_RANGE), DATA, act);
    assert_eq!(tlbis, [(Tlbi::Range(TABLES), by_range(0x200, 1, 7, 0))]);
}

#[test]
fn stage_2_adds_a_barrier_and_the_combined_entries_and_leaves_synchronizing_to_the_guest() {
    let ram = Attributes::<Stage2>::RAM;
    let act = |map: &Map<Stage2, &FakeMmu>| {
        map.protect(range(GIB, GIB), Change::<Stage2>::READ_ONLY).unwrap().flush();
    };
    let (tlbis, barriers, _) = maintenance(with(0, Capabilities::TLB_LEVEL), ram, act);
    assert_eq!(tlbis, [(Tlbi::Address(LEAVES), ttl(1) | GIB_PAGE), (Tlbi::Combined, 0)]);
    assert_eq!(barriers, [Barrier::StoresVisible, Barrier::Complete, Barrier::Complete]);
    // Everything includes what combines both.
    let act = |map: &Map<Stage2, &FakeMmu>| remove(map, 2 * MIB, 2 * MIB).flush();
    let (tlbis, barriers, _) = maintenance(bbm(0), ram, act);
    assert_eq!((tlbis, barriers), (vec![(Tlbi::All, 0)], vec![Barrier::StoresVisible, Barrier::Complete]));
}

#[test]
fn a_map_of_one_asid_is_invalidated_for_that_asid_alone() {
    let user = Attributes::<El1And0>::USER_DATA;
    let asid = 5 << 48;
    let leaves = Reach { one_asid: true, ..LEAVES };
    let act = |map: &Map<El1And0, &FakeMmu>| {
        map.protect(range(GIB, GIB), Change::<El1And0>::READ_ONLY).unwrap().flush();
    };
    let options = Options { tag: Tag::Asid(5), ..with(3, Capabilities::TLB_LEVEL) };
    let (tlbis, barriers, _) = maintenance(options, user, act);
    assert_eq!(
        (tlbis, barriers),
        (vec![(Tlbi::Address(leaves), asid | ttl(1) | GIB_PAGE)], FLUSHED.to_vec())
    );
    // Without a tag the leaves may be of any ASID.
    let (tlbis, ..) = maintenance(with(3, Capabilities::TLB_LEVEL), user, act);
    assert_eq!(tlbis, [(Tlbi::Address(LEAVES), ttl(1) | GIB_PAGE)]);

    let act = |map: &Map<El1And0, &FakeMmu>| remove(map, 2 * MIB, 2 * MIB).flush();
    assert_eq!(maintenance(options, user, act).0, [(Tlbi::Asid, asid)]);
    let options = Options { tag: Tag::Asid(5), ..with(3, Capabilities::TLB_RANGE) };
    let tables = Reach { one_asid: true, ..TABLES };
    assert_eq!(maintenance(options, user, act).0, [(Tlbi::Range(tables), asid | by_range(0x200, 1, 7, 0))]);
}

#[test]
fn the_upper_half_is_invalidated_at_its_own_addresses() {
    let data = Attributes::<El1And0>::DATA;
    let act = |map: &Map<El1And0, &FakeMmu>| {
        map.protect(range(GIB, GIB), Change::<El1And0>::READ_ONLY).unwrap().flush();
    };
    let options = Options { upper_half: true, ..bbm(3) };
    // Bits 55 to 48 of the address are ones; what is above them has no place in an operand.
    assert_eq!(maintenance(options, data, act).0, [(Tlbi::Address(LEAVES), 0xff << 36 | GIB_PAGE)]);
    assert_eq!(maintenance(bbm(3), data, act).0, [(Tlbi::Address(LEAVES), GIB_PAGE)]);
    // By range the last is bit 48.
    let act = |map: &Map<El1And0, &FakeMmu>| remove(map, 2 * MIB, 2 * MIB).flush();
    let options = Options { upper_half: true, ..with(3, Capabilities::TLB_RANGE) };
    let expected = [(Tlbi::Range(TABLES), by_range(1 << 36 | 0x200, 1, 7, 0))];
    assert_eq!(maintenance(options, data, act).0, expected);
}

#[test]
fn maintenance_reaches_no_further_than_the_maps_scope() {
    fn scopes<R: Regime>(scope: Scope, attributes: Attributes<R>, read_only: Change<R>) {
        let mmu = FakeMmu::new(16);
        // A break before make where it can be, and each operation twice.
        let map = new::<R, _>(&mmu, Options { scope, ..Options::new(Capabilities::CONTIGUOUS) });
        let every = |act: &dyn Fn()| {
            act();
            let found = std::mem::take(&mut *mmu.scopes.lock().unwrap());
            assert!(!found.is_empty() && found.iter().all(|&found| found == scope), "{found:?}");
            mmu.take_tlbis()
        };
        every(&|| add(&map, GIB, GIB, attributes, Leaves::LARGEST));
        every(&|| map.protect(range(GIB, GIB), read_only).unwrap().flush());
        every(&|| map.split_at(R::Input::new(GIB + 2 * MIB).unwrap()).unwrap().flush());
        every(&|| remove(&map, GIB, GIB).flush());
        add(&map, GIB, GIB, attributes, Leaves::LARGEST);
        drop(remove(&map, GIB, GIB));
        assert_eq!(every(&|| map.settle()), [(Tlbi::All, 0); 2]);
    }
    for scope in [Scope::Local, Scope::Broadcast] {
        scopes(scope, DATA, Change::<El2>::READ_ONLY);
        scopes(scope, Attributes::<Stage2>::RAM, Change::<Stage2>::READ_ONLY);
    }
}

#[test]
fn where_one_invalidation_is_not_enough_each_is_repeated_after_a_barrier() {
    let options = Options::new(Capabilities::CONTIGUOUS | Capabilities::bbm(3));
    let act = |map: &Map<El2, &FakeMmu>| remove(map, 2 * MIB, 8 * KIB).flush();
    let (tlbis, barriers, _) = maintenance(options, DATA, act);
    assert_eq!(tlbis, [0x200, 0x200, 0x201, 0x201].map(|page| (Tlbi::Address(LEAVES), page)));
    let repeated = [
        Barrier::StoresVisible,
        Barrier::Complete,
        Barrier::Complete,
        Barrier::Complete,
        Barrier::Synchronize,
    ];
    assert_eq!(barriers, repeated);
    let act = |map: &Map<Stage2, &FakeMmu>| remove(map, 2 * MIB, 4 * KIB).flush();
    let (tlbis, ..) = maintenance(options, Attributes::<Stage2>::RAM, act);
    let twice = [(Tlbi::Address(LEAVES), 0x200), (Tlbi::Combined, 0)].map(|tlbi| [tlbi; 2]);
    assert_eq!(tlbis, twice.concat());
}

// Debts.

#[test]
fn merged_debts_are_paid_by_one_flush() {
    let mmu = FakeMmu::new(8);
    let map = new::<El2, _>(&mmu, bbm(3));
    add(&map, 0, 64 * KIB, DATA, Leaves::PAGES);
    let mut first = map.protect(range(0, 4 * KIB), Change::<El2>::READ_ONLY).unwrap();
    let second = remove(&map, 8 * KIB, 4 * KIB);
    take_maintenance(&mmu);
    assert!(first.merge(second).is_ok());
    first.flush();
    let (tlbis, barriers) = take_maintenance(&mmu);
    assert!(
        reaches(&tlbis, 0, false) && reaches(&tlbis, 2, false) && !reaches(&tlbis, 1, false),
        "{tlbis:x?}"
    );
    assert_eq!(barriers, FLUSHED);
    map.settle();
    assert_eq!(mmu.take_tlbis(), []);
}

#[test]
fn a_debt_of_another_map_comes_back_as_an_error() {
    let mmu = FakeMmu::new(8);
    let (map, other) = (new::<El2, _>(&mmu, bbm(3)), new::<El2, _>(&mmu, bbm(3)));
    add(&map, 0, 4 * KIB, DATA, Leaves::PAGES);
    add(&other, 8 * KIB, 4 * KIB, DATA, Leaves::PAGES);
    let mut debt = map.protect(range(0, 4 * KIB), Change::<El2>::READ_ONLY).unwrap();
    let Err(foreign) = debt.merge(other.protect(range(8 * KIB, 4 * KIB), Change::<El2>::READ_ONLY).unwrap())
    else {
        panic!("it is of another map")
    };
    assert_eq!(mmu.take_tlbis(), []);
    foreign.flush();
    assert_eq!(mmu.take_tlbis(), [(Tlbi::Address(LEAVES), 2)]);
    debt.flush();
    assert_eq!(mmu.take_tlbis(), [(Tlbi::Address(LEAVES), 0)]);
}

#[test]
fn what_changes_nothing_owes_nothing() {
    let mmu = FakeMmu::new(8);
    let map = new::<El2, _>(&mmu, bbm(3));
    add(&map, 0, 2 * MIB, Attributes::<El2>::CONSTANTS, Leaves::LARGEST);
    take_stores(&mmu);
    assert!(map.protect(range(4 * KIB, 4 * KIB), Change::<El2>::READ_ONLY).unwrap().is_empty());
    assert!(map.split_at(Va::new(2 * MIB).unwrap()).unwrap().is_empty());
    assert!(remove(&map, 4 * MIB, 4 * MIB).is_empty());
    let (_, fills, _) = take_stores(&mmu);
    assert_eq!((fills, mmu.take_tlbis(), census(&map).leaves), (0, vec![], [0, 0, 1, 0]));
    // Software bits are nothing that a TLB holds.
    assert!(map.protect(range(0, 2 * MIB), Change::<El2>::software(1)).unwrap().is_empty());
    assert_eq!(found(&map, 0).1, Attributes::<El2>::CONSTANTS.bits() | 1 << 56);
}

#[test]
fn settle_pays_a_dropped_debt_once_and_with_everything() {
    let mmu = FakeMmu::new(8);
    let map = new::<El2, _>(&mmu, bbm(3));
    add(&map, 0, 64 * KIB, DATA, Leaves::PAGES);
    drop(map.protect(range(0, 4 * KIB), Change::<El2>::READ_ONLY).unwrap());
    assert_eq!(mmu.take_tlbis(), []);
    map.settle();
    assert_eq!(mmu.take_tlbis(), [(Tlbi::All, 0)]);
    map.settle();
    assert_eq!(mmu.take_tlbis(), []);
}

#[test]
fn after_a_dropped_debt_no_invalidation_says_a_level_until_it_is_paid() {
    let mmu = FakeMmu::new(8);
    let map = new::<El2, _>(&mmu, with(3, Capabilities::TLB_LEVEL));
    add(&map, 0, 2 * MIB, DATA, Leaves::LARGEST);
    drop(map.split_to_pages(range(0, 2 * MIB)).unwrap());
    let protect = |change| {
        map.protect(range(4 * KIB, 4 * KIB), change).unwrap().flush();
        mmu.take_tlbis()
    };
    // TLBs may hold the block still.
    assert!(protect(Change::<El2>::READ_ONLY).iter().all(|&(_, operand)| operand == 1));
    map.settle();
    mmu.take_tlbis();
    assert_eq!(protect(Change::<El2>::WRITABLE), [(Tlbi::Address(LEAVES), ttl(3) | 1)]);
}

#[test]
fn what_was_unmapped_and_not_flushed_is_invalidated_before_it_is_mapped_again() {
    for is_kept in [true, false] {
        let mmu = Traced::new();
        let map = new::<El2, _>(&mmu, bbm(3));
        add(&map, 0, 64 * KIB, DATA, Leaves::PAGES);
        let debt = Some(remove(&map, 4 * KIB, 4 * KIB)).filter(|_| is_kept);
        mmu.take();
        add(&map, 8 * GIB, 4 * KIB, DATA, Leaves::PAGES);
        assert!(!mmu.take().iter().any(|step| matches!(step, Step::Tlbi(..))), "it is not of that range");
        add(&map, 4 * KIB, 4 * KIB, DATA, Leaves::PAGES);
        let steps = mmu.take();
        let invalidated = [
            Step::Barrier(Barrier::StoresVisible),
            Step::Tlbi(Tlbi::Address(TABLES), 1),
            Step::Barrier(Barrier::Complete),
        ];
        assert_eq!(steps[..3], invalidated, "kept: {is_kept}");
        assert_eq!(steps.iter().position(|step| *step == Step::Store), Some(4));
        drop(debt);
    }
}

#[test]
fn what_was_invalidated_and_not_flushed_is_paid_before_it_is_validated() {
    let mmu = FakeMmu::new(8);
    let map = new::<El2, _>(&mmu, bbm(3));
    add(&map, 0, 64 * KIB, DATA, Leaves::PAGES);
    let debt = map.protect(range(0, 4 * KIB), Change::<El2>::INVALIDATE).unwrap();
    assert_eq!(mmu.take_tlbis(), []);
    let validated = map.protect(range(0, 4 * KIB), Change::<El2>::VALIDATE).unwrap();
    assert_eq!(mmu.take_tlbis(), [(Tlbi::Address(TABLES), 0)]);
    drop((debt, validated));
}

#[test]
fn paying_one_of_many_debts_pays_no_other() {
    let mmu = FakeMmu::new(8);
    let map = new::<El2, _>(&mmu, bbm(3));
    add(&map, 0, 128 * KIB, DATA, Leaves::PAGES);
    // More than the map keeps apart.
    let mut debts: Vec<_> = (0..12).map(|page| remove(&map, page * 8 * KIB, 4 * KIB)).collect();
    debts.pop().unwrap().flush();
    mmu.take_tlbis();
    for page in 0..11 {
        add(&map, page * 8 * KIB, 4 * KIB, DATA, Leaves::PAGES);
    }
    let tlbis = mmu.take_tlbis();
    assert!((0..11).all(|page| reaches(&tlbis, 2 * page, false)), "{tlbis:x?}");
    drop(debts);
}

#[test]
fn at_plain_level_2_what_was_split_in_place_is_invalidated_whole_before_it_is_mapped_again() {
    let mmu = FakeMmu::new(8);
    let map = new::<Stage2, _>(&mmu, bbm(2));
    add(&map, 0, GIB, Attributes::<Stage2>::RAM, Leaves::LARGEST);
    let debt = remove(&map, 0, 4 * KIB);
    assert_eq!(mmu.take_tlbis(), []);
    add(&map, 0, 4 * KIB, Attributes::<Stage2>::RAM, Leaves::PAGES);
    assert_eq!(mmu.take_tlbis(), [(Tlbi::All, 0)]);
    drop(debt);
}

#[test]
fn a_debt_that_is_paid_gives_back_no_table_of_one_that_is_not() {
    // A neighbour that is unmapped with a table that waits; and the last of a table, so that it is vacant but for one that waits.
    for (kept, paid) in [((2 * MIB, 2 * MIB), (0, 6 * MIB)), ((2 * MIB, 6 * MIB), (0, 2 * MIB))] {
        let mmu = FakeMmu::new(16);
        let map = new::<El2, _>(&mmu, with(3, Capabilities::TLB_RANGE));
        add(&map, GIB, 4 * KIB, DATA, Leaves::PAGES);
        add(&map, 0, 2 * MIB, DATA, Leaves::LARGEST);
        add(&map, 2 * MIB, 6 * MIB, DATA, Leaves::PAGES);
        let debt = remove(&map, kept.0, kept.1);
        let used = mmu.pool().used();
        mmu.take_tlbis();
        remove(&map, paid.0, paid.1).flush();
        add(&map, 0, 2 * MIB, DATA, Leaves::LARGEST);
        let tlbis = mmu.take_tlbis();
        let tables = (kept.0 >> 12..(kept.0 + kept.1) >> 12).step_by(512);
        let are_paid = tables.clone().all(|page| (page..page + 512).any(|page| reaches(&tlbis, page, true)));
        assert!(are_paid || mmu.pool().used() >= used - 1, "{} of {used}, {tlbis:x?}", mmu.pool().used());
        drop(debt);
    }
}

#[test]
fn tables_are_not_given_back_before_their_debt_is_paid() {
    let mmu = FakeMmu::new(16);
    let map = new::<El2, _>(&mmu, bbm(3));
    add(&map, 0, 8 * MIB, DATA, Leaves::PAGES);
    let debt = remove(&map, 0, 4 * MIB);
    // Of another range, so nothing has to be paid for it.
    add(&map, 8 * GIB, 4 * KIB, DATA, Leaves::PAGES);
    assert_eq!((mmu.pool().used(), mmu.take_tlbis()), (7 + 2, vec![]));
    debt.flush();
    assert_eq!(mmu.take_tlbis(), [(Tlbi::All, 0)]);
    map.settle();
    assert_eq!((mmu.pool().used(), mmu.take_tlbis()), (5 + 2, vec![]));
}

#[test]
fn a_call_that_runs_out_of_tables_pays_for_those_that_wait() {
    let mmu = FakeMmu::new(4);
    let map = new::<El2, _>(&mmu, bbm(3));
    add(&map, 0, 4 * KIB, DATA, Leaves::PAGES);
    let debt = remove(&map, 0, 4 * KIB);
    assert_eq!(mmu.pool().free(), 0);
    add(&map, 8 * GIB, 4 * KIB, DATA, Leaves::PAGES);
    assert_eq!((mmu.pool().free(), found(&map, 8 * GIB).0), (0, 8 * GIB));
    drop(debt);
}

#[test]
fn tables_are_not_given_back_while_another_cpu_reads_that_may_see_them() {
    let mmu = FakeMmu::new(16);
    let map = new::<El2, _>(&mmu, bbm(3));
    add(&map, 0, 8 * MIB, DATA, Leaves::PAGES);
    let (mut early, mut late) = (map.cpu(1).unwrap(), map.cpu(2).unwrap());
    let reader = early.read();
    remove(&map, 0, 4 * MIB).flush();
    // One that began afterwards is in nobody's way.
    let other = late.read();
    map.settle();
    assert_eq!(mmu.pool().used(), 7);
    drop(reader);
    map.settle();
    assert_eq!(mmu.pool().used(), 5);
    drop(other);
}

// What does not translate.

#[test]
fn a_leaf_that_is_invalidated_keeps_its_output_and_attributes_through_a_split() {
    let mmu = FakeMmu::new(8);
    let map = new::<El2, _>(&mmu, bbm(0));
    add(&map, 0, GIB, DATA, Leaves::LARGEST);
    map.protect(range(0, GIB), Change::<El2>::INVALIDATE).unwrap().flush();
    assert_eq!(translate(&map, 0), None);
    // Nothing translates, so nobody has to stand still even at level 0.
    mmu.quiesce.refuses.store(true, Relaxed);
    map.split_to_pages(range(2 * MIB, 4 * KIB)).unwrap().flush();
    map.protect(range(2 * MIB, 8 * KIB), Change::<El2>::READ_ONLY).unwrap().flush();
    map.protect(range(2 * MIB, 4 * KIB), Change::<El2>::VALIDATE).unwrap().flush();
    assert_eq!(found(&map, 2 * MIB + 5), (2 * MIB + 5, Attributes::<El2>::CONSTANTS.bits()));
    let kept = |at, attributes, contiguous| {
        assert_eq!(translate(&map, at), None);
        let expected = Entry::Leaf { output: pa(at), attributes, contiguous, valid: false };
        assert_eq!(entry(&map, at), expected);
    };
    kept(2 * MIB + 4 * KIB, Attributes::<El2>::CONSTANTS, false);
    kept(2 * MIB + 64 * KIB, DATA, true);
    kept(512 * MIB, DATA, true);
}

#[test]
fn a_state_is_carried_through_a_split_and_a_change_passes_it_by() {
    let mmu = FakeMmu::new(8);
    let map = new::<Stage2, _>(&mmu, bbm(0));
    let state = State::new((1 << 60) - 5).unwrap();
    map.cpu(0).unwrap().write().set_state(range(0, GIB), state).unwrap();
    map.protect(range(4 * KIB, 4 * KIB), Change::<Stage2>::READ_ONLY).unwrap().flush();
    assert_eq!(mmu.pool().used(), 2, "nothing there to protect");
    remove(&map, 4 * KIB, 4 * KIB).flush();
    add(&map, 4 * KIB, 4 * KIB, Attributes::<Stage2>::RAM, Leaves::PAGES);
    for at in [0, 8 * KIB, 2 * MIB, GIB - 4 * KIB] {
        assert_eq!(entry(&map, at), Entry::State(state));
    }
    assert_eq!(found(&map, 4 * KIB), (4 * KIB, Attributes::<Stage2>::RAM.bits()));
}

#[test]
fn a_state_takes_the_place_of_whatever_was_there_and_owes_nothing() {
    let mmu = FakeMmu::new(8);
    let map = new::<Stage2, _>(&mmu, bbm(3));
    add(&map, 0, 4 * MIB, Attributes::<Stage2>::RAM, Leaves::PAGES);
    let state = State::new(9).unwrap();
    map.cpu(0).unwrap().write().set_state(range(0, 2 * MIB), state).unwrap();
    assert_eq!((entry(&map, 0), entry(&map, MIB)), (Entry::State(state), Entry::State(state)));
    assert_eq!(mmu.take_tlbis(), [(Tlbi::All, 0)]);
    assert_eq!(mmu.pool().used(), 4, "its table is back");
    map.settle();
    assert_eq!(mmu.take_tlbis(), []);
}

/// Found by the machine model: TLBs may hold the block still, beside what walks hold of the table.
#[test]
fn a_leaf_that_stopped_translating_is_invalidated_before_a_table_takes_its_place() {
    let mmu = Traced::new();
    let map = new::<Stage2, _>(&mmu, bbm(0));
    add(&map, 0, 2 * MIB, Attributes::<Stage2>::RAM, Leaves::LARGEST);
    let page = range(4 * KIB, 4 * KIB);
    let debt = map.protect(range(0, 2 * MIB), Change::INVALIDATE).unwrap();
    mmu.take();
    let split = map.split_edges(page).unwrap();
    let steps = mmu.take();
    let complete = steps.iter().position(|step| *step == Step::Barrier(Barrier::Complete));
    let store = steps.iter().position(|step| *step == Step::Store);
    assert!(complete.is_some() && complete < store, "{steps:x?}");
    [debt, split].into_iter().for_each(Debt::flush);
    // Nothing is owed any more.
    map.protect(range(0, 2 * MIB), Change::VALIDATE).unwrap().flush();
    add(&map, 2 * MIB, 2 * MIB, Attributes::<Stage2>::RAM, Leaves::LARGEST);
    map.protect(range(2 * MIB, 2 * MIB), Change::INVALIDATE).unwrap().flush();
    mmu.take();
    map.split_edges(range(2 * MIB + 4 * KIB, 4 * KIB)).unwrap().flush();
    assert!(!mmu.take().iter().any(|step| matches!(step, Step::Tlbi(..))));
}

/// Found by the machine model: what else an address translates by may come after the look at who else owes.
#[test]
fn a_flush_that_another_change_of_size_overtakes_invalidates_everything() {
    let mmu = Traced::new();
    let map = new::<Stage2, _>(&mmu, bbm(2));
    add(&map, 0, 2 * MIB, Attributes::<Stage2>::RAM, Leaves::LARGEST);
    let split = || {
        mmu.at_tlbi.set(None);
        drop(map.split_to_pages(range(0, 2 * MIB)).unwrap());
    };
    let debt = map.protect(range(0, 2 * MIB), Change::<Stage2>::READ_ONLY).unwrap();
    mmu.take();
    mmu.at_tlbi.set(Some(&split));
    debt.flush();
    let tlbis: Vec<Tlbi> = mmu
        .take()
        .into_iter()
        .filter_map(|step| if let Step::Tlbi(operation, _) = step { Some(operation) } else { None })
        .collect();
    assert_eq!(tlbis, [Tlbi::Address(LEAVES), Tlbi::Combined, Tlbi::All]);
}

// Breaks.

#[test]
fn a_guest_that_faults_on_a_broken_leaf_is_told_to_try_again() {
    let mmu = Traced::new();
    let map = new::<Stage2, _>(&mmu, bbm(0));
    let (seen, broken, beside) = (Cell::new(0), Ipa::new(MIB).unwrap(), Ipa::new(2 * MIB).unwrap());
    let look = || {
        let mut cpu = map.cpu(1).unwrap();
        let reader = cpu.read();
        assert!(reader.is_changing(broken) && !reader.is_changing(beside));
        assert!(reader.translate(beside).is_some());
        seen.set(seen.get() + 1);
    };
    add(&map, 0, 4 * MIB, Attributes::<Stage2>::RAM, Leaves::LARGEST);
    mmu.at_tlbi.set(Some(&look));
    let debt = map.protect(range(MIB, 4 * KIB), Change::<Stage2>::READ_ONLY).unwrap();
    mmu.at_tlbi.set(None);
    assert!(debt.is_empty() && seen.get() == 2, "by address, and combined");
    assert_eq!(found(&map, MIB).1 & S2_WRITE, 0);
    assert!(!map.cpu(0).unwrap().read().is_changing(broken));
}

#[test]
fn stage_1_asks_for_quiet_where_it_breaks_and_stores_nothing_if_refused() {
    let mmu = FakeMmu::new(8);
    let map = new::<El2, _>(&mmu, bbm(2));
    add(&map, GIB, GIB, DATA, Leaves::LARGEST);
    take_stores(&mmu);
    mmu.quiesce.refuses.store(true, Relaxed);
    let free = mmu.pool().free();
    let page = range(GIB + 2 * MIB, 4 * KIB);
    assert_eq!(map.protect(page, Change::<El2>::READ_ONLY).err(), Some(MapError::NotQuiet(GIB)));
    assert_eq!(map.split_edges(page).err(), Some(MapError::NotQuiet(GIB)));
    assert_eq!(map.cpu(0).unwrap().write().unmap(page).err(), Some(MapError::NotQuiet(GIB)));
    let device = Change::to(Attributes::<El2>::DEVICE);
    assert_eq!(map.protect(range(GIB, GIB), device).err(), Some(MapError::NotQuiet(GIB)));
    assert_eq!((take_stores(&mmu), mmu.pool().free(), mmu.take_tlbis()), ((0, 0, 0), free, vec![]));
    let asked = std::mem::take(&mut *mmu.quiesce.asked.lock().unwrap());
    assert!(asked.len() >= 4 && asked.iter().all(|asked| *asked == (GIB, GIB)), "{asked:x?}");
    // What changes in place asks nobody.
    map.protect(range(GIB, GIB), Change::<El2>::READ_ONLY).unwrap().flush();
    assert_eq!(mmu.quiesce.asked.lock().unwrap().len(), 0);
}

// Hardware that marks.

#[test]
fn a_size_change_loses_no_mark_that_hardware_may_have_made() {
    let mmu = FakeMmu::new(32);
    let options = Options { hardware_updates: true, ..bbm(3) };
    let clean = DATA.bits() & !AF | READ_ONLY | DBM;
    let map = adopt::<El2>(&mmu, options, 2, clean | VALID, 0);
    map.protect(range(4 * KIB, 4 * KIB), Change::<El2>::software(1)).unwrap().flush();
    for page in 0..512 {
        let software = if page == 1 { 1 << 56 } else { 0 };
        assert_eq!(found(&map, page * 4 * KIB).1, DATA.bits() | DBM | software, "accessed and written");
    }
    // Without DBM nothing is written behind our back.
    let map = adopt::<El2>(&mmu, options, 2, DATA.bits() & !AF | READ_ONLY | VALID, 0);
    map.split_at(Va::new(4 * KIB).unwrap()).unwrap().flush();
    assert_eq!(found(&map, MIB).1, DATA.bits() | READ_ONLY);
    let unwritten = Attributes::<Stage2>::RAM.bits() & !(AF | S2_WRITE) | DBM;
    let map = adopt::<Stage2>(&mmu, options, 2, unwritten | VALID, 0);
    map.split_at(Ipa::new(4 * KIB).unwrap()).unwrap().flush();
    assert_eq!(found(&map, MIB).1, Attributes::<Stage2>::RAM.bits() | DBM);
    // A size that stays is changed by compare and exchange, so a mark is kept as it is.
    let map = adopt::<El2>(&mmu, options, 2, clean | VALID, 0);
    map.protect(range(0, 2 * MIB), Change::<El2>::software(1)).unwrap().flush();
    assert_eq!(found(&map, MIB).1, clean | 1 << 56);
}

// Trees of others.

#[test]
fn what_an_adopted_table_takes_away_shows_in_translations() {
    const PXN: u64 = 1 << 53;
    const UXN: u64 = 1 << 54;
    const EL0: u64 = 1 << 6;
    const TABLE_PXN: u64 = 1 << 59;
    const TABLE_UXN: u64 = 1 << 60;
    const TABLE_NO_EL0: u64 = 1 << 61;
    const TABLE_READ_ONLY: u64 = 1 << 62;
    let open = Attributes::<El1And0>::USER_DATA.bits() & !(PXN | UXN);
    let through = |bits| {
        let mmu = FakeMmu::new(8);
        let map = adopt::<El1And0>(&mmu, bbm(3), 3, open | TABLE, bits);
        found(&map, 0).1
    };
    assert_eq!(through(0), open);
    assert_eq!(through(TABLE_PXN), open | PXN);
    assert_eq!(through(TABLE_UXN), open | UXN);
    assert_eq!(through(TABLE_NO_EL0), open & !EL0);
    assert_eq!(through(TABLE_READ_ONLY), open | READ_ONLY);
    // Of the bits only XN and read-only mean anything to EL2.
    let mmu = FakeMmu::new(8);
    let all = TABLE_PXN | TABLE_UXN | TABLE_NO_EL0 | TABLE_READ_ONLY;
    let code = Attributes::<El2>::DATA.bits() & !UXN;
    let map = adopt::<El2>(&mmu, bbm(3), 3, code | TABLE, all);
    assert_eq!(found(&map, 0).1 & (UXN | READ_ONLY | EL0), UXN | READ_ONLY | EL0);
}

// Errors.

#[test]
fn errors_name_what_is_wrong() {
    let mmu = FakeMmu::new(8);
    let map = Map::<Stage2, _>::new(&mmu, Geometry::stage2(40).unwrap(), bbm(3)).unwrap();
    let ram = Attributes::<Stage2>::RAM;
    add(&map, 0, 2 * MIB, ram, Leaves::LARGEST);
    add(&map, 64 * MIB, 32 * MIB, ram, Leaves::LARGEST);
    let state = State::new(1).unwrap();
    map.cpu(0).unwrap().write().set_state(range(4 * MIB, 2 * MIB), state).unwrap();
    take_stores(&mmu);

    let mut cpu = map.cpu(0).unwrap();
    let mut writer = cpu.write();
    let mut try_map =
        |start, size, output| writer.map(range(start, size), pa(output), ram, Leaves::LARGEST).err();
    let misaligned = |input, size, output| Some(MapError::Misaligned { input, size, output });
    let too_far = |end, bits| Some(MapError::OutOfReach { end, bits });
    assert_eq!(try_map(GIB + 1, 4 * KIB, 0), misaligned(GIB + 1, 4 * KIB, 0));
    assert_eq!(try_map(GIB, 1, 0), misaligned(GIB, 1, 0));
    assert_eq!(try_map(GIB, 4 * KIB, 8), misaligned(GIB, 4 * KIB, 8));
    assert_eq!(try_map(1023 * GIB, 2 * GIB, 0), too_far(1025 * GIB, 40));
    assert_eq!(try_map(0, 8 * KIB, (1 << 48) - 4 * KIB), too_far((1 << 48) + 4 * KIB, 48));
    assert_eq!(try_map(MIB, 4 * MIB, GIB), Some(MapError::Mapped(MIB)));
    assert_eq!(try_map(3 * MIB, 2 * MIB, GIB), Some(MapError::HasState(4 * MIB)));
    assert_eq!(try_map(GIB, 0, GIB), None);

    let read_only = Change::<Stage2>::READ_ONLY;
    assert_eq!(map.protect(range(1, 4 * KIB), read_only).err(), misaligned(1, 4 * KIB, 0));
    assert_eq!(map.protect(range(1 << 40, 4 * KIB), read_only).err(), too_far((1 << 40) + 4 * KIB, 40));
    assert_eq!(map.split_at(Ipa::new(1 << 40).unwrap()).err(), too_far((1 << 40) + 4 * KIB, 40));
    assert_eq!(map.split_at(Ipa::new(5).unwrap()).err(), misaligned(5, 16 * GIB - 5, 0));
    let would_split = |address| Some(MapError::WouldSplit { address, level: 2 });
    assert_eq!(map.protect_whole(range(MIB, GIB), read_only).err(), would_split(0));
    // The end cuts no block, but a run of 16.
    assert_eq!(map.protect_whole(range(16 * MIB, 52 * MIB), read_only).err(), would_split(66 * MIB));
    assert_eq!(take_stores(&mmu), (0, 0, 0));
    assert!(map.protect_whole(range(16 * MIB, 80 * MIB), read_only).is_ok());
}

#[test]
fn a_map_of_one_asid_takes_no_global_leaf() {
    let mmu = FakeMmu::new(8);
    let map = new::<El1And0, _>(&mmu, Options { tag: Tag::Asid(1), ..bbm(3) });
    let (global, user) = (Attributes::<El1And0>::DATA, Attributes::<El1And0>::USER_DATA);
    let mut cpu = map.cpu(0).unwrap();
    let mut try_map = |attributes| cpu.write().map(range(0, 4 * KIB), pa(0), attributes, Leaves::PAGES);
    assert_eq!((try_map(global), try_map(user)), (Err(MapError::Global), Ok(())));
    assert_eq!(map.protect(range(0, 4 * KIB), Change::to(global)).err(), Some(MapError::Global));
    assert!(map.protect(range(0, 4 * KIB), Change::to(Attributes::<El1And0>::USER_CODE)).is_ok());
    assert_eq!(found(&map, 0).1 & !SOFTWARE, Attributes::<El1And0>::USER_CODE.bits());
}

/// One entry becomes a table that the caller has, whatever it says, and only one of the level that was named.
#[test]
fn a_table_of_the_callers_takes_the_place_of_one_entry() {
    let mmu = FakeMmu::new(16);
    let map = new::<Stage2, _>(&mmu, bbm(3));
    add(&map, 1 << 30, 1 << 30, Attributes::<Stage2>::RAM, Leaves::LARGEST);
    let state = State::new(7).unwrap();
    map.cpu(0).unwrap().write().set_state(range(2 << 30, 1 << 30), state).unwrap();
    let take = || {
        mmu.pool().reserve(1).unwrap();
        // SAFETY: one was reserved.
        unsafe { mmu.pool().take() }
    };
    // SAFETY: tables of the pool, each given once.
    let split =
        |address: u64, level, table| unsafe { map.split_entry(Ipa::new(address).unwrap(), level, table) };
    let table = take();
    for (address, level) in [(1u64 << 30, 2), (1 << 30, 0), (1 << 30, 3), (0, 2)] {
        let none = MapError::NoEntry { address, level };
        assert_eq!(split(address, level, table).err(), Some(none), "{address:#x}, level {level}");
    }
    let used = mmu.pool().used();
    split((1 << 30) + 0x1234, 1, table).unwrap().flush();
    split(2 << 30, 1, take()).unwrap().flush();
    split((1 << 30) + (5 << 21), 2, take()).unwrap().flush();
    assert_eq!(mmu.pool().used(), used + 2, "no other table was taken");
    assert_eq!(census(&map).leaves, [0, 0, 511, 512]);
    let inside = (1 << 30) + (5 << 21) + 0x3000;
    assert_eq!(found(&map, inside), (inside, Attributes::<Stage2>::RAM.bits()));
    assert_eq!(entry(&map, (2 << 30) + (9 << 21)), Entry::State(state));
    map.cpu(0).unwrap().write().unmap(range(0, 4 << 30)).unwrap().flush();
    assert_eq!(mmu.pool().used(), map.geometry().root_tables());
}

/// A table that waits to be given back is no entry that could be split: its word would be said 512 times.
#[test]
fn a_table_that_waits_is_not_split_in_its_place() {
    let mmu = FakeMmu::new(16);
    let map = new::<Stage2, _>(&mmu, bbm(3));
    add(&map, 1 << 30, 4096, Attributes::<Stage2>::RAM, Leaves::PAGES);
    let debt = remove(&map, 1 << 30, 1 << 30);
    mmu.pool().reserve(1).unwrap();
    // SAFETY: one was reserved.
    let table = unsafe { mmu.pool().take() };
    for level in [0, 1, 2] {
        // SAFETY: a table of the pool's, which the call does not take.
        let split = unsafe { map.split_entry(Ipa::new(1 << 30).unwrap(), level, table) };
        assert!(matches!(split.err(), Some(MapError::NoEntry { .. })), "level {level}");
    }
    debt.flush();
    // SAFETY: it was not taken.
    unsafe { mmu.pool().give(table) };
    map.settle();
    assert_eq!(mmu.pool().used(), map.geometry().root_tables());
}

/// At plain level 2 a state that splits a block makes everything go, as an unmap does: a TLB may hold block and pages.
#[test]
fn a_state_in_a_block_at_plain_level_2_invalidates_everything() {
    let mmu = FakeMmu::new(16);
    let map = new::<Stage2, _>(&mmu, bbm(2));
    add(&map, 1 << 30, 2 << 20, Attributes::<Stage2>::RAM, Leaves::LARGEST);
    mmu.take_tlbis();
    let page = range((1 << 30) + 0x5000, 4096);
    map.cpu(0).unwrap().write().set_state(page, State::new(1).unwrap()).unwrap();
    assert!(mmu.take_tlbis().iter().any(|&(operation, _)| operation == Tlbi::All));
}
