//! RMI_REC_ENTER: what it refuses, and what is in every record.

use std::sync::atomic::Ordering::SeqCst;

use super::*;

#[test]
fn a_rec_is_not_entered_in_the_wrong_state() {
    let scene = Scene::active();
    let (fake, rec, run) = (scene.fake, scene.recs[0], scene.run);
    let input = RmiStatus::ErrorInput;
    for (id, args) in [
        ("run_align", [rec, run + 8]),
        ("run_bound", [rec, DEVICE]),
        ("run_pas", [rec, fake.delegated()]),
        ("rec_align", [rec + 8, run]),
        ("rec_bound", [DEVICE, run]),
        ("rec_gran_state", [scene.rd, run]),
        ("rec_gran_state", [run, run]),
    ] {
        assert_eq!(fake.status(RecEnter, &args), input, "{id}");
    }
    let enter = |scene: &Scene| scene.enter_rec(0, RmiRecEnter::zeroed());
    scene.realm(|realm| realm.state.set(RealmState::New));
    assert_eq!(enter(&scene), RmiStatus::ErrorRealm(0), "realm_new");
    scene.realm(|realm| realm.state.set(RealmState::SystemOff));
    assert_eq!(enter(&scene), RmiStatus::ErrorRealm(1), "system_off");
    scene.realm(|realm| realm.state.set(RealmState::Active));
    scene.rec(0, |rec| rec.state.set(RecState::Running));
    assert_eq!(enter(&scene), RmiStatus::ErrorRec, "rec_state");
    scene.rec(0, |rec| rec.state.set(RecState::Ready));
    scene.rec(0, |rec| rec.runnable.set(false));
    assert_eq!(enter(&scene), RmiStatus::ErrorRec, "rec_runnable");
    scene.rec(0, |rec| rec.runnable.set(true));
    let emulated = flagged(RmiRecEnterFlags::EMUL_MMIO);
    assert_eq!(scene.enter_rec(0, emulated), RmiStatus::ErrorRec, "rec_mmio");
    scene.rec(0, |rec| rec.pending.set(Pending::Psci(PsciCommand::CpuOn)));
    assert_eq!(enter(&scene), RmiStatus::ErrorRec, "rec_psci");
    scene.rec(0, |rec| rec.pending.set(Pending::None));
    fake.cpus().can_run.store(false, SeqCst);
    assert_eq!(enter(&scene), input, "a CPU that is not like the others");
    fake.cpus().can_run.store(true, SeqCst);
    // Nobody has run, and no record was written.
    assert_eq!(fake.bytes::<4>(run + 0x800), [0xee; 4]);
    scene.irq();
    assert_eq!(scene.exit(), interrupted());
}

#[test]
fn a_rec_runs_over_its_realms_tables() {
    let scene = Scene::active();
    let expected = scene.realm(|realm| realm.registers);
    assert_eq!(expected.vttbr >> 48, scene.realm(|realm| realm.number).into());
    scene.fake.script(move |_, registers| {
        assert_eq!(*registers, expected);
        Exit::Irq
    });
    scene.exit();
}

#[test]
fn while_a_rec_runs_another_one_runs_too() {
    let scene = Scene::active();
    let (fake, other) = (scene.fake, scene.recs[1]);
    scene.rec(1, |rec| rec.runnable.set(true));
    let run = fake.put(&RmiRecRun { enter: RmiRecEnter::zeroed(), exit: RmiRecExit::zeroed() });
    // In the middle of the first one's run the second one is entered, and leaves; as from another CPU.
    scene.step(move |_| {
        fake.script(|vcpu, _| {
            vcpu.x[0] = RsiCommand::RealmConfig.fid().into();
            vcpu.x[1] = DATA;
            synchronous(SMC, 0, 0)
        });
        fake.script(|_, _| Exit::Fiq);
        fake.ok(RecEnter, &[other, run]);
        Exit::Irq
    });
    assert_eq!(scene.exit(), interrupted());
    assert_eq!(fake.get::<RmiRecRun>(run).exit, record(RmiRecExitReason::Fiq, |_| {}));
    assert_eq!(fake.get::<u64>(scene.data[0]), WIDTH.into());
}

#[test]
fn list_registers_are_taken_if_the_gic_has_what_they_say() {
    let scene = Scene::active();
    const PENDING: u64 = 1 << 62;
    const GROUP_1: u64 = 1 << 60;
    let lr = |lr: u64| {
        let mut enter = RmiRecEnter::zeroed();
        enter.gicv3_lrs[1] = lr;
        enter
    };
    let two = |a: u64, b: u64| {
        let mut enter = lr(b);
        enter.gicv3_lrs[0] = a;
        enter
    };
    let hcr = |hcr: u64| {
        let mut enter = RmiRecEnter::zeroed();
        enter.gicv3_hcr = hcr;
        enter
    };
    let wrong = [
        ("HW", lr(PENDING | 1 << 61 | 27)),
        ("HW of an invalid one", lr(1 << 61 | 27)),
        ("RES0 under HW", lr(PENDING | 1 << 32 | 27)),
        ("RES0 above EOI", lr(PENDING | 1 << 42 | 27)),
        ("RES0 below priority", lr(PENDING | 1 << 47 | 27)),
        ("RES0 above priority", lr(PENDING | 1 << 56 | 27)),
        ("priority bits that there are not", lr(PENDING | 1 << 50 | 27)),
        ("a special INTID", lr(PENDING | 1020)),
        ("an INTID between SPIs and LPIs", lr(PENDING | 8191)),
        ("an INTID of too many bits", lr(PENDING | 1 << 16)),
        ("one interrupt twice", two(PENDING | 27, PENDING | 27)),
        ("ICH_HCR_EL2.En", hcr(1)),
        ("ICH_HCR_EL2.TC", hcr(1 << 10)),
        ("ICH_HCR_EL2.EOIcount", hcr(1 << 27)),
    ];
    for (what, enter) in wrong {
        assert_eq!(scene.enter_rec(0, enter), RmiStatus::ErrorRec, "rec_gicv3: {what}");
    }
    for right in [
        lr(0),
        lr(PENDING | GROUP_1 | 0xa0 << 48 | 27),
        lr(PENDING | 1 << 41 | 1019),
        lr(3 << 62 | 8192),
        lr(PENDING | 0xffff),
        // Nothing of one that is invalid matters but what is reserved.
        lr(1020),
        two(PENDING | 27, PENDING | 28),
        two(PENDING | 27, 27),
        hcr(0b1111_1110 | 1 << 14),
    ] {
        scene.irq();
        let (hcr, lrs) = (right.gicv3_hcr, right.gicv3_lrs);
        let exit = scene.exit_after(right);
        assert_eq!(exit.gicv3_hcr, hcr);
        let n = FEATURES.list_registers;
        assert_eq!(exit.gicv3_lrs[..n], lrs[..n]);
        // Those that there are not are ignored.
        assert!(exit.gicv3_lrs[n..].iter().all(|&lr| lr == 0));
    }
}

#[test]
fn the_host_is_told_of_interrupts_and_timers_at_every_exit() {
    let scene = Scene::active();
    let mut enter = RmiRecEnter::zeroed();
    (enter.gicv3_hcr, enter.gicv3_lrs[0]) = (1 << 1, 1 << 62 | 27);
    scene.step(|vcpu| {
        assert_eq!((vcpu.gic.hcr, vcpu.gic.lrs[0]), (1 << 1, 1 << 62 | 27));
        vcpu.gic.hcr |= 1 | 5 << 27 | 1 << 10;
        vcpu.gic.lrs[0] = 1 << 63 | 27;
        vcpu.gic.lrs[15] = 0x77;
        (vcpu.gic.misr, vcpu.gic.vmcr) = (0x3, 0x4c);
        (vcpu.gic.ap1r[0], vcpu.el1.ttbr0) = (0x11, 0x22);
        vcpu.timers.cntp_ctl = 5;
        vcpu.timers.cntp_cval = 0x1001;
        vcpu.timers.cntv_ctl = 3;
        vcpu.timers.cntv_cval = 0x1002;
        Exit::Fiq
    });
    let expected = record(RmiRecExitReason::Fiq, |exit| {
        exit.gicv3_hcr = 1 << 1 | 5 << 27;
        exit.gicv3_lrs[0] = 1 << 63 | 27;
        (exit.gicv3_misr, exit.gicv3_vmcr) = (0x3, 0x4c);
        (exit.cntp_ctl, exit.cntp_cval, exit.cntv_ctl, exit.cntv_cval) = (5, 0x1001, 3, 0x1002);
    });
    assert_eq!(scene.exit_after(enter), expected);
    // The host knows of the one that asserts its output.
    let timers = scene.vcpu().timers;
    assert_eq!((timers.cntp_told, timers.cntv_told), (true, false));
}

#[test]
fn a_record_goes_nowhere_if_its_granule_was_given_away() {
    let scene = Scene::active();
    let (fake, run) = (scene.fake, scene.run);
    scene.step(move |_| {
        fake.ok(GranuleDelegate, &[run]);
        Exit::Irq
    });
    assert_eq!(scene.enter_rec(0, RmiRecEnter::zeroed()), RmiStatus::ErrorInput);
    assert_eq!(scene.rec(0, |rec| rec.state.get()), RecState::Ready);
}

#[test]
fn waits_end_the_run_as_the_host_asks() {
    let scene = Scene::active();
    let flags = [
        RmiRecEnterFlags::empty(),
        RmiRecEnterFlags::TRAP_WFI,
        RmiRecEnterFlags::TRAP_WFE,
        RmiRecEnterFlags::TRAP_WFI | RmiRecEnterFlags::TRAP_WFE,
    ];
    for flag in flags {
        scene.step(move |vcpu| {
            assert_eq!(vcpu.trap_wfi, flag.contains(RmiRecEnterFlags::TRAP_WFI));
            assert_eq!(vcpu.trap_wfe, flag.contains(RmiRecEnterFlags::TRAP_WFE));
            Exit::Irq
        });
        scene.exit_after(flagged(flag));
    }
    // WFI, WFE, and WFIT of x5: with IL, COND and CV, which the host does not see.
    let noise = 1 << 25 | 1 << 24 | 0xe << 20;
    for (iss, told) in [(0, 0), (1, 0), (2 | 1 << 2 | 5 << 5, 0x1234), (2 | 5 << 5, 0)] {
        let pc = scene.vcpu().pc;
        scene.step(move |vcpu| {
            vcpu.x[5] = 0x1234;
            synchronous(0x01 << 26 | noise | iss, 0x99, 0x99000)
        });
        let expected = record(RmiRecExitReason::Sync, |exit| {
            exit.esr = 0x01 << 26 | iss & 0b11;
            exit.gprs[0] = told;
        });
        assert_eq!(scene.exit(), expected);
        assert_eq!(scene.vcpu().pc, pc + 4);
    }
}

#[test]
fn an_serror_is_told_in_part() {
    let scene = Scene::active();
    scene.step(|_| Exit::SError { esr: 0x2f << 26 | 0x1ff_ffff | 1 << 25 | 1 << 40 });
    let expected = record(RmiRecExitReason::Serror, |exit| {
        exit.esr = 0x2f << 26 | 1 << 24 | 0b111 << 10 | 1 << 9 | 0x3f;
    });
    assert_eq!(scene.exit(), expected);
}
