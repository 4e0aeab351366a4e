//! Exits for exceptions of the realm's that are no calls.

use super::*;

#[test]
fn what_the_host_has_to_map_is_a_record_of_the_abort_and_no_more() {
    let scene = Scene::active();
    // Everything set that may be: VNCR, AR, SF, SRT, SSE, SAS, LST/SET, FnV, EA, CM, S1PTW.
    let noise = 0x00ff_ff80;
    for ipa in [ABSENT, DESTROYED] {
        scene.step(move |_| synchronous(LOAD | noise | ISV, 0xffff_0123, ipa));
        let seen = exits::SEEN_OF_ACCESS;
        let expected = record(RmiRecExitReason::Sync, |exit| {
            exit.esr = (LOAD | noise) & (0x3f << 26 | 0b11 << 11 | 1 << 10 | 1 << 9 | 0x3f);
            assert_eq!(exit.esr, (LOAD | noise) & seen);
            exit.hpfar = ipa >> 8;
        });
        assert_eq!(scene.exit(), expected, "{ipa:#x}");
        assert_eq!(scene.rec(0, |rec| rec.abort.get()), None);
        scene.step(move |_| synchronous(FETCH | noise, 0xffff_0123, ipa));
        let expected = record(RmiRecExitReason::Sync, |exit| {
            exit.esr = (FETCH | noise) & (0x3f << 26 | 0b11 << 11 | 1 << 9 | 0x3f);
            exit.hpfar = ipa >> 8;
        });
        assert_eq!(scene.exit(), expected, "{ipa:#x}");
    }
    assert_eq!(scene.vcpu().pc, ENTRY);
}

#[test]
fn nothing_is_where_the_realm_has_said_so() {
    for (esr, ipa) in [
        (LOAD, EMPTY),
        (FETCH, EMPTY),
        (LOAD | WNR, SPARE),
        // A5.2.6: no code in what the host can write.
        (FETCH, MAPPED),
        (FETCH, UNMAPPED),
        // An External abort.
        (LOAD & !0x3f | 0x10, DATA),
    ] {
        let scene = Scene::active();
        scene.step(move |vcpu| {
            vcpu.el1.vbar = 0x10_0000;
            synchronous(esr, 0xdead_0123, ipa)
        });
        scene.irq();
        assert_eq!(scene.exit(), interrupted());
        let vcpu = scene.vcpu();
        let class = (esr >> 26) + 1;
        assert_eq!(vcpu.pc, 0x10_0200, "{esr:#x} {ipa:#x}");
        assert_eq!(vcpu.el1.esr, class << 26 | 1 << 25 | 1 << 9 | esr & WNR | 0x10);
        assert_eq!((vcpu.el1.far, vcpu.el1.elr), (0xdead_0123, ENTRY));
    }
}

#[test]
fn who_finds_nothing_and_has_never_asked_for_rsi_is_told_of() {
    let scene = Scene::active();
    let find_nothing = || {
        // Also at an unprotected IPA, where nobody needs to know of realms to find nothing; and an External abort of the hardware's.
        for (esr, ipa) in [(LOAD, EMPTY), (FETCH, UNMAPPED), (LOAD & !0x3f | 0x10, EMPTY)] {
            scene.step(move |_| synchronous(esr, 0x123, ipa));
        }
        scene.irq();
        assert_eq!(scene.exit(), interrupted());
        std::mem::take(&mut *scene.fake.cpus().lost.lock().unwrap())
    };
    assert_eq!(find_nothing(), [EMPTY]);
    scene.answered_by_rsi(RsiCommand::Version, &[1 << 16]);
    assert_eq!(find_nothing(), []);
    assert!(scene.realm(|realm| realm.knows_rsi.get()));
}

#[test]
fn beyond_its_address_space_is_an_address_size_fault() {
    let scene = Scene::active();
    scene.step(|_| synchronous(LOAD & !0x3f | 0x04, 0xbeef_0123, 1 << WIDTH));
    scene.irq();
    assert_eq!(scene.exit(), interrupted());
    let el1 = scene.vcpu().el1;
    assert_eq!((el1.esr & 0x3f, el1.esr & 1 << 9, el1.far), (0, 0, 0xbeef_0123));
}

#[test]
fn what_is_permitted_by_now_is_tried_again() {
    let scene = Scene::active();
    for (esr, ipa) in [(LOAD, DATA), (FETCH, MORE), (LOAD | WNR, MAPPED)] {
        scene.step(move |_| synchronous(esr, 0, ipa));
        scene.irq();
        assert_eq!(scene.exit(), interrupted());
        assert_eq!(scene.vcpu().pc, ENTRY);
    }
}

#[test]
fn an_emulated_load_ends_in_its_register() {
    let scene = Scene::active();
    scene.step(|vcpu| {
        vcpu.x[5] = u64::MAX;
        synchronous(WORD, 0xffff_fabc, UNMAPPED)
    });
    let expected = record(RmiRecExitReason::Sync, |exit| {
        exit.esr = 0x24 << 26 | ISV | 2 << 22 | 0x07;
        (exit.far, exit.hpfar) = (0xabc, UNMAPPED >> 8);
    });
    assert_eq!(scene.exit(), expected);
    scene.irq();
    let mut enter = flagged(RmiRecEnterFlags::EMUL_MMIO);
    enter.gprs = [0x8765_4321_fedc_ba98; 31];
    assert_eq!(scene.exit_after(enter.clone()), interrupted());
    let vcpu = scene.vcpu();
    assert_eq!((vcpu.x[5], vcpu.pc, vcpu.x[0]), (0xfedc_ba98, ENTRY + 4, 1));
    // Once.
    assert_eq!(scene.enter_rec(0, enter), RmiStatus::ErrorRec);
}

#[test]
fn an_emulated_store_tells_what_is_stored() {
    let scene = Scene::active();
    scene.step(|vcpu| {
        vcpu.x[5] = 0x1122_3344_5566_7788;
        synchronous(WORD | WNR, 0x10, UNMAPPED)
    });
    let expected = record(RmiRecExitReason::Sync, |exit| {
        exit.esr = 0x24 << 26 | ISV | 2 << 22 | WNR | 0x07;
        (exit.far, exit.hpfar) = (0x10, UNMAPPED >> 8);
        exit.gprs[0] = 0x5566_7788;
    });
    assert_eq!(scene.exit(), expected);
    // Not emulated: it is tried again.
    scene.irq();
    scene.exit();
    assert_eq!(scene.vcpu().pc, ENTRY);
}

#[test]
fn a_store_that_is_not_permitted_is_told_too_and_one_that_is_not_described_less() {
    let scene = Scene::active();
    // A permission fault, level 3.
    let fault = |esr: u64| esr & !0x3f | 0x0f;
    scene.step(move |_| synchronous(fault(WORD | WNR), 0, MAPPED));
    let esr = scene.exit().esr;
    assert_eq!(esr, 0x24 << 26 | ISV | 2 << 22 | WNR | 0x0f);
    scene.step(move |_| synchronous(fault(WORD | WNR) & !ISV, 0x123, MAPPED));
    let expected = record(RmiRecExitReason::Sync, |exit| {
        exit.esr = 0x24 << 26 | 1 << 25 | 0x0f;
        exit.hpfar = MAPPED >> 8;
    });
    assert_eq!(scene.exit(), expected);
    assert_eq!(scene.enter_rec(0, flagged(RmiRecEnterFlags::EMUL_MMIO)), RmiStatus::ErrorRec);
}

#[test]
fn the_host_may_say_that_there_is_nothing_at_an_unprotected_address_only() {
    for (esr, ipa, is_injected) in [
        (WORD, UNMAPPED, true),
        (LOAD | WNR, UNMAPPED, true),
        (LOAD, ABSENT, false),
        (LOAD, DESTROYED, false),
    ] {
        let scene = Scene::active();
        scene.step(move |_| synchronous(esr, 0xfeed_0123, ipa));
        scene.exit();
        scene.irq();
        scene.exit_after(flagged(RmiRecEnterFlags::INJECT_SEA));
        let el1 = scene.vcpu().el1;
        let expected = if is_injected { (0x25, 0x10, 1 << 9, 0xfeed_0123) } else { (0, 0, 0, 0) };
        assert_eq!((el1.esr >> 26, el1.esr & 0x3f, el1.esr & 1 << 9, el1.far), expected, "{ipa:#x}");
    }
    // A4.2.3: then emul_mmio is ignored.
    let scene = Scene::active();
    scene.step(|_| synchronous(WORD, 0, UNMAPPED));
    scene.exit();
    scene.irq();
    scene.exit_after(flagged(RmiRecEnterFlags::INJECT_SEA | RmiRecEnterFlags::EMUL_MMIO));
    assert_eq!((scene.vcpu().x[5], scene.vcpu().el1.elr), (6, ENTRY));
}

#[test]
fn only_interrupts_to_others_and_their_end_are_the_hosts_of_system_registers() {
    // ICC_SGI1R_EL1: op0 3, op1 0, CRn 12, CRm 11, op2 5; ICC_DIR_EL1: op2 1. From x7.
    let register = |op2: u64| 0x18 << 26 | 1 << 25 | 3 << 20 | op2 << 17 | 12 << 10 | 7 << 5 | 11 << 1;
    for op2 in [5, 1] {
        let scene = Scene::active();
        scene.step(move |vcpu| {
            vcpu.x[7] = 0xabcd;
            synchronous(register(op2), 0, 0)
        });
        let expected = record(RmiRecExitReason::Sync, |exit| {
            exit.esr = register(op2) & !(1 << 25);
            exit.gprs[0] = 0xabcd;
        });
        assert_eq!(scene.exit(), expected);
        assert_eq!(scene.vcpu().pc, ENTRY + 4);
    }
}

#[test]
fn hvc_is_undefined() {
    let scene = Scene::active();
    // It traps behind itself.
    scene.step(|vcpu| {
        vcpu.pc += 4;
        synchronous(HVC, 0, 0)
    });
    scene.irq();
    assert_eq!(scene.exit(), interrupted());
    let vcpu = scene.vcpu();
    assert_eq!((vcpu.el1.esr, vcpu.el1.elr), (1 << 25, ENTRY));
}
