//! One page by one walk: what is found so, what it costs, and what is not.

use super::common::*;
use super::*;

const AT: u64 = GIB + 5 * 4 * KIB;

fn leaf<R: Regime>(output: u64, attributes: Attributes<R>) -> Entry<R> {
    Entry::Leaf { output: pa(output), attributes, contiguous: false, valid: true }
}

/// A map of 64 pages from [`GIB`] on, and nothing else.
fn of_pages<R: Regime>(mmu: &FakeMmu, attributes: Attributes<R>, more: Capabilities) -> Map<R, &FakeMmu> {
    let map = new::<R, _>(mmu, with(0, more));
    map.cpu(0).unwrap().write().map(range(GIB, 256 * KIB), pa(GIB), attributes, Leaves::PAGES).unwrap();
    mmu.take_tlbis();
    take_stores(mmu);
    map
}

#[test]
#[cfg_attr(miri, ignore)]
fn a_page_changes_by_one_store_and_owes_one_invalidation_if_it_stops_translating() {
    let mmu = FakeMmu::new(8);
    let ram = Attributes::<Stage2>::RAM;
    let map = of_pages(&mmu, ram, Capabilities::TLBI_ONCE | Capabilities::TLB_LEVEL);
    let mut cpu = map.cpu(0).unwrap();
    let mut writer = cpu.write();
    let address = Ipa::new(AT).unwrap();
    assert!(writer.page(address, Some(leaf(AT + 4096, ram))).is_none());
    let mut page = writer.page(address, Some(leaf(AT, ram))).unwrap();
    assert_eq!(page.entry(), leaf(AT, ram));
    // A mark says nothing to hardware.
    assert!(page.replace(leaf(AT, ram.marked(2))));
    assert_eq!((take_stores(&mmu), mmu.take_tlbis()), ((1, 0, 0), vec![]));
    assert!(page.replace(Entry::State(State::new(9).unwrap())));
    let operations = vec![(Tlbi::Address(LEAVES), ttl(3) | AT >> 12), (Tlbi::Combined, 0)];
    assert_eq!((take_stores(&mmu), mmu.take_tlbis()), ((1, 0, 0), operations));
    assert!(page.replace(leaf(AT, ram)));
    assert_eq!((take_stores(&mmu), mmu.take_tlbis()), ((1, 0, 0), vec![]));
    drop(page);
    assert_eq!(writer.find(address).map(|found| (found.start, found.entry)), Some((AT, leaf(AT, ram))));
    assert_eq!(writer.find(Ipa::new(AT + GIB).unwrap()).unwrap().entry, Entry::Empty);
    drop(writer);
    drop(cpu);
    assert_eq!(map.owed_fingerprint(), 0);
}

#[test]
#[cfg_attr(miri, ignore)]
fn what_takes_more_than_a_store_is_not_made() {
    let mmu = FakeMmu::new(8);
    let data = Attributes::<El2>::DATA;
    let map = of_pages(&mmu, data, Capabilities::empty());
    let mut cpu = map.cpu(0).unwrap();
    let mut writer = cpu.write();
    let mut page = writer.page(Va::new(AT).unwrap(), None).unwrap();
    // Another output, and another type of memory.
    assert!(!page.replace(leaf(AT + 4096, data)));
    assert!(!page.replace(leaf(AT, Attributes::<El2>::DEVICE)));
    assert_eq!((take_stores(&mmu), mmu.take_tlbis()), ((0, 0, 0), vec![]));
    assert!(page.replace(Entry::Empty) && page.replace(leaf(AT + 4096, data)));
}

#[test]
#[cfg_attr(miri, ignore)]
fn what_is_not_so_simple_is_nobodys_page() {
    let mmu = FakeMmu::new(20);
    let ram = Attributes::<Stage2>::RAM;
    let map = of_pages(&mmu, ram, Capabilities::CONTIGUOUS);
    let is_page = |address: u64| {
        let mut cpu = map.cpu(0).unwrap();
        cpu.write().page(Ipa::new(address).unwrap(), None).is_some()
    };
    assert!(is_page(AT) && is_page(GIB + 2 * MIB - 4 * KIB));
    // Not the start of one, no table of pages, a block, a run.
    assert!(!is_page(AT + 8) && !is_page(GIB + 2 * MIB));
    let all = Leaves::LARGEST;
    map.cpu(0).unwrap().write().map(range(2 * GIB, 2 * MIB), pa(2 * GIB), ram, all).unwrap();
    map.cpu(0).unwrap().write().map(range(3 * GIB, 64 * KIB), pa(3 * GIB), ram, all).unwrap();
    assert!(!is_page(2 * GIB) && !is_page(3 * GIB) && is_page(3 * GIB + 64 * KIB));
    // Something is owed: an invalidation, which another one's did not make.
    let debt = map.protect(range(GIB, 4 * KIB), Change::<Stage2>::READ_ONLY).unwrap();
    assert!(!is_page(AT));
    debt.flush();
    assert!(is_page(AT));
    drop(map.protect(range(GIB, 4 * KIB), Change::<Stage2>::WRITABLE).unwrap());
    map.protect(range(GIB, 4 * KIB), Change::<Stage2>::INVALIDATE).map(drop).unwrap();
    assert!(!is_page(AT));
    map.settle();
    assert!(is_page(AT));
}

#[test]
#[cfg_attr(miri, ignore)]
fn hardware_that_marks_leaves_is_not_overwritten() {
    let mmu = FakeMmu::new(8);
    let options = Options { hardware_updates: true, ..bbm(0) };
    let map = new::<Stage2, _>(&mmu, options);
    let mut cpu = map.cpu(0).unwrap();
    let mut writer = cpu.write();
    writer.map(range(GIB, 64 * KIB), pa(GIB), Attributes::<Stage2>::RAM, Leaves::PAGES).unwrap();
    assert!(writer.page(Ipa::new(AT).unwrap(), None).is_none());
}

#[test]
#[cfg_attr(miri, ignore)]
fn what_is_unmapped_keeps_its_tables_if_it_is_to() {
    for (start, size) in [(AT, 4 * KIB), (GIB, 256 * KIB)] {
        let mmu = FakeMmu::new(8);
        let ram = Attributes::<Stage2>::RAM;
        let map = new::<Stage2, _>(&mmu, bbm(0));
        let mut cpu = map.cpu(0).unwrap();
        let mut writer = cpu.write();
        writer.map(range(start, size), pa(start), ram, Leaves::LARGEST).unwrap();
        let used = mmu.pool().used();
        writer.unmap_keeping_tables(range(start, size)).unwrap().flush();
        assert_eq!(
            writer.find(Ipa::new(start).unwrap()).map(|found| (found.level, found.entry)),
            Some((3, Entry::Empty))
        );
        assert!(!mmu.take_tlbis().is_empty());
        drop(writer);
        drop(cpu);
        map.settle();
        assert_eq!(mmu.pool().used(), used);
    }
}
