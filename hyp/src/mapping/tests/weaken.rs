//! A set of capabilities that becomes smaller under a live map.

use super::common::*;
use super::*;

#[test]
fn a_weaker_set_is_in_force_for_the_next_call_and_never_grows() {
    let mmu = FakeMmu::new(8);
    let map = new::<El2, _>(&mmu, bbm(3));
    add(&map, 0, 4 * MIB, DATA, Leaves::LARGEST);
    map.protect(range(0, 4 * KIB), Change::<El2>::READ_ONLY).unwrap().flush();
    assert_eq!(*mmu.quiesce.asked.lock().unwrap(), []);
    map.weaken(Capabilities::bbm(0) | Capabilities::TLB_RANGE);
    map.protect(range(2 * MIB, 4 * KIB), Change::<El2>::READ_ONLY).unwrap().flush();
    assert!(!mmu.quiesce.asked.lock().unwrap().is_empty());
    let weak = map.capabilities();
    map.weaken(Capabilities::all());
    assert_eq!((map.capabilities(), weak.bbm_level()), (weak, 0));
}

#[test]
fn what_was_owed_under_the_larger_set_is_paid_before_the_smaller_one_is_in_force() {
    let mmu = FakeMmu::new(8);
    let map = new::<El2, _>(&mmu, bbm(3));
    add(&map, 0, 4 * MIB, DATA, Leaves::LARGEST);
    let kept = map.protect(range(0, 4 * KIB), Change::<El2>::READ_ONLY).unwrap();
    drop(map.protect(range(2 * MIB, 4 * KIB), Change::<El2>::READ_ONLY).unwrap());
    mmu.take_tlbis();
    map.weaken(bbm(0).capabilities);
    assert_eq!(mmu.take_tlbis(), [(Tlbi::All, 0)]);
    kept.flush();
}

#[test]
fn repainted_to_pages_before_the_set_is_weaker_or_not_at_all() {
    let mmu = FakeMmu::new(5);
    let map = new::<El2, _>(&mmu, bbm(3));
    add(&map, 0, 4 * MIB, DATA, Leaves::LARGEST);
    mmu.pool().reserve(1).unwrap();
    assert!(matches!(map.repaint_and_weaken(bbm(0).capabilities), Err(MapError::OutOfTables { .. })));
    assert_eq!((map.capabilities().bbm_level(), census(&map).leaves[2]), (3, 2));
    // SAFETY: it was reserved above.
    unsafe { mmu.pool().cancel(1) };
    assert_eq!(map.repaint_and_weaken(bbm(0).capabilities), Ok(4 * MIB));
    assert_eq!((map.capabilities().bbm_level(), census(&map).leaves), (0, [0, 0, 0, 1024]));
    assert_eq!(*mmu.quiesce.asked.lock().unwrap(), []);
}
