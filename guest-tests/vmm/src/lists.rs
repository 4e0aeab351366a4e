//! Which interrupts the list registers of a REC hold (GICv3 architecture, `ICH_LR<n>_EL2`; DEN0137 A6.1).
//!
//! Invariant: no interrupt is in two list registers, and none has a physical one behind it (HW = 0).

/// Pending.
pub const PENDING: u64 = 1 << 62;
/// Active.
pub const ACTIVE: u64 = 1 << 63;
const GROUP_1: u64 = 1 << 60;
/// In the middle of what there is.
const PRIORITY: u64 = 0x80 << 48;
const INTID: u64 = 0xffff_ffff;

/// The PPI of the virtual timer.
pub const VIRTUAL_TIMER: u32 = 27;
/// The PPI of the physical timer.
pub const PHYSICAL_TIMER: u32 = 30;

/// Whether a timer with this CTL interrupts: on, not masked, its time come.
pub const fn interrupts(ctl: u64) -> bool {
    ctl & 0b111 == 0b101
}

/// Brings the list registers `lrs`, as the last exit told them, up to date: `sgis`, a bit for each, become pending; each of `levels` is pending
/// while it is asserted. Returns the SGIs for which there was no room.
pub fn refresh(lrs: &mut [u64], sgis: u16, levels: &[(u32, bool)]) -> u16 {
    for lr in lrs.iter_mut().filter(|lr| **lr & (PENDING | ACTIVE) == 0) {
        *lr = 0;
    }
    // First what is no longer asserted: that makes room.
    for &(intid, _) in levels.iter().filter(|(_, asserted)| !asserted) {
        if let Some(lr) = find(lrs, intid) {
            *lr = if *lr & ACTIVE != 0 { *lr & !PENDING } else { 0 };
        }
    }
    for &(intid, _) in levels.iter().filter(|(_, asserted)| *asserted) {
        // An active one is asked again once it is done: its level is still there then, or not.
        if find(lrs, intid).is_none() {
            add(lrs, intid);
        }
    }
    let mut left = 0;
    for intid in (0..16).filter(|intid| sgis & 1 << intid != 0) {
        let placed = match find(lrs, intid) {
            Some(lr) => {
                *lr |= PENDING;
                true
            }
            None => add(lrs, intid),
        };
        left |= u16::from(!placed) << intid;
    }
    left
}

fn find(lrs: &mut [u64], intid: u32) -> Option<&mut u64> {
    lrs.iter_mut().find(|lr| **lr & (PENDING | ACTIVE) != 0 && **lr & INTID == u64::from(intid))
}

fn add(lrs: &mut [u64], intid: u32) -> bool {
    let free = lrs.iter_mut().find(|lr| **lr == 0);
    if let Some(lr) = free {
        *lr = PENDING | GROUP_1 | PRIORITY | u64::from(intid);
        return true;
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn lr(intid: u32) -> u64 {
        PENDING | GROUP_1 | PRIORITY | u64::from(intid)
    }

    #[test]
    fn sgis_become_pending_and_wait_for_room() {
        let mut lrs = [0; 2];
        assert_eq!(refresh(&mut lrs, 0b1011, &[]), 0b1000);
        assert_eq!(lrs, [lr(0), lr(1)]);
        // The first was handled.
        lrs[0] &= !PENDING;
        assert_eq!(refresh(&mut lrs, 0b1000, &[]), 0);
        assert_eq!(lrs, [lr(3), lr(1)]);
    }

    #[test]
    fn an_sgi_that_comes_again_while_it_is_handled_is_pending_too() {
        let mut lrs = [lr(4) & !PENDING | ACTIVE, 0];
        assert_eq!(refresh(&mut lrs, 1 << 4, &[]), 0);
        assert_eq!(lrs, [lr(4) | ACTIVE, 0]);
    }

    #[test]
    fn a_timer_is_pending_while_it_is_asserted() {
        let timer = |asserted| [(VIRTUAL_TIMER, asserted)];
        let mut lrs = [0; 1];
        refresh(&mut lrs, 0, &timer(true));
        assert_eq!(lrs, [lr(27)]);
        refresh(&mut lrs, 0, &timer(true));
        assert_eq!(lrs, [lr(27)]);
        // While it is active its level is not asked.
        lrs[0] = lr(27) & !PENDING | ACTIVE;
        refresh(&mut lrs, 0, &timer(true));
        assert_eq!(lrs, [lr(27) & !PENDING | ACTIVE]);
        refresh(&mut lrs, 0, &timer(false));
        assert_eq!(lrs, [lr(27) & !PENDING | ACTIVE]);
        lrs[0] = lr(27);
        refresh(&mut lrs, 0, &timer(false));
        assert_eq!(lrs, [0]);
    }

    #[test]
    fn only_a_timer_that_is_on_and_not_masked_interrupts() {
        assert_eq!([0, 1, 3, 4, 5, 7].map(interrupts), [false, false, false, false, true, false]);
    }

    proptest! {
        #[test]
        fn no_interrupt_is_there_twice_and_none_is_lost(
            steps in prop::collection::vec((any::<u16>(), any::<[bool; 2]>(), any::<u64>()), 1..20),
            count in 1usize..16,
        ) {
            let mut lrs = std::vec![0; count];
            let mut waiting = 0;
            for (sgis, [first, second], handled) in steps {
                let wanted = waiting | sgis;
                waiting = refresh(&mut lrs, wanted, &[(VIRTUAL_TIMER, first), (PHYSICAL_TIMER, second)]);
                let mut seen = std::collections::BTreeSet::new();
                for &lr in lrs.iter().filter(|lr| **lr != 0) {
                    prop_assert!(seen.insert(lr & INTID), "{lrs:x?}");
                    prop_assert_eq!(lr & 1 << 61, 0);
                }
                for intid in (0..16u32).filter(|intid| wanted & 1 << intid != 0) {
                    let pending = lrs.iter().any(|lr| lr & PENDING != 0 && lr & INTID == u64::from(intid));
                    prop_assert!(pending != (waiting & 1 << intid != 0));
                }
                // The realm handles some of them.
                for (at, lr) in lrs.iter_mut().enumerate().filter(|(at, _)| handled & 1 << at != 0) {
                    *lr = if handled & 1 << (at + 32) != 0 { 0 } else { (*lr & !PENDING) | (*lr << 1 & ACTIVE) };
                }
            }
        }
    }
}
