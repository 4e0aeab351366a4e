//! PSCI, and RMI_PSCI_COMPLETE.

use super::*;

fn psci_code(code: PsciReturnCode) -> u64 {
    code.to_register()
}

impl Scene {
    /// A PSCI call that ends in an exit: what the host is told.
    #[track_caller]
    fn psci_exit(&self, x: &[u64]) -> RmiRecExit {
        self.smc(x);
        let exit = self.exit();
        assert_eq!(exit.exit_reason, RmiRecExitReason::Psci.bits());
        exit
    }
}

const CPU_ON: u64 = 0xc400_0003;
const AFFINITY_INFO: u64 = 0xc400_0004;

#[test]
fn a_rec_turns_another_on() {
    let scene = Scene::active();
    let (calling, target) = (scene.recs[0], scene.recs[1]);
    let exit = scene.psci_exit(&[CPU_ON, 1, DATA + 4, 0x1_2345_6789]);
    let expected = record(RmiRecExitReason::Psci, |exit| {
        exit.gprs[..4].copy_from_slice(&[CPU_ON, 1, DATA + 4, 0x1_2345_6789]);
    });
    assert_eq!(exit, expected);
    // It waits for the host.
    assert_eq!(scene.enter_rec(0, RmiRecEnter::zeroed()), RmiStatus::ErrorRec, "rec_psci");
    let third = scene.fake.granule();
    let complete = |calling, target, status| scene.fake.status(PsciComplete, &[calling, target, status]);
    let other = Scene::active();
    for (id, calling, target, status) in [
        ("alias", calling, calling, 0),
        ("calling_align", calling + 8, target, 0),
        ("calling_bound", DEVICE, target, 0),
        ("calling_state", third, target, 0),
        ("target_align", calling, target + 8, 0),
        ("target_bound", calling, DEVICE, 0),
        ("target_state", calling, scene.rd, 0),
        ("pending", target, calling, 0),
        ("status", calling, target, -2i64 as u64),
        ("status", calling, target, 1),
        ("status", calling, target, u64::MAX),
    ] {
        assert_eq!(complete(calling, target, status), RmiStatus::ErrorInput, "{id}");
    }
    drop(other);
    scene.rec(1, |rec| {
        let mut vcpu = rec.vcpu.borrow_mut();
        (vcpu.x, vcpu.el1.ttbr0, vcpu.timers.cntv_ctl) = ([0x99; 31], 0x99, 1);
    });
    assert_eq!(complete(calling, target, 0), RmiStatus::Success);
    let pc = scene.vcpu().pc;
    assert_eq!(scene.vcpu().x[..7], [0, 0, 0, 0, 5, 6, 7]);
    let on = scene.rec(1, |rec| (rec.runnable.get(), *rec.vcpu.borrow()));
    let mut expected = Vcpu::reset(mpidr_el1(RmiRecMpidr::from_index(1)));
    (expected.pc, expected.x[0]) = (DATA + 4, 0x1_2345_6789);
    assert_eq!(on, (true, expected));
    assert_eq!(complete(calling, target, 0), RmiStatus::ErrorInput, "pending: no more");
    scene.irq();
    assert_eq!(scene.enter_rec(1, RmiRecEnter::zeroed()), RmiStatus::Success);
    scene.irq();
    scene.exit();
    assert_eq!((pc, scene.vcpu().pc), (ENTRY + 4, ENTRY + 4));
}

#[test]
fn completion_names_the_rec_that_was_named() {
    let scene = Scene::with_recs(3);
    scene.psci_exit(&[CPU_ON, 2, DATA, 0]);
    let complete = |target: u64| scene.fake.status(PsciComplete, &[scene.recs[0], target, 0]);
    assert_eq!(complete(scene.recs[1]), RmiStatus::ErrorInput, "target");
    // owner: a REC of another realm on the same machine.
    let fake = scene.fake;
    let rd = fake.realm();
    let foreign: Vec<u64> = (0..3)
        .map(|index| {
            let rec = fake.delegated();
            fake.ok(RecCreate, &[rd, rec, rec_params(fake, index, false)]);
            rec
        })
        .collect();
    assert_eq!(complete(foreign[2]), RmiStatus::ErrorInput, "owner");
    assert_eq!(complete(scene.recs[2]), RmiStatus::Success);
}

#[test]
fn the_host_may_deny_what_is_not_on() {
    let denied = psci_code(PsciReturnCode::Denied);
    let scene = Scene::active();
    let complete = |status| scene.fake.status(PsciComplete, &[scene.recs[0], scene.recs[1], status]);
    scene.psci_exit(&[CPU_ON, 1, DATA, 0]);
    assert_eq!(complete(denied), RmiStatus::Success);
    assert_eq!(scene.vcpu().x[0], denied);
    assert!(!scene.rec(1, |rec| rec.runnable.get()));
    // It is on.
    scene.psci_exit(&[CPU_ON, 1, DATA, 0]);
    assert_eq!(complete(0), RmiStatus::Success);
    scene.psci_exit(&[CPU_ON, 1, DATA, 0]);
    assert_eq!(complete(denied), RmiStatus::ErrorInput, "status");
    assert_eq!(complete(0), RmiStatus::Success);
    assert_eq!(scene.vcpu().x[0], psci_code(PsciReturnCode::AlreadyOn));
    // Whether one is on nobody may deny.
    scene.psci_exit(&[AFFINITY_INFO, 1, 0]);
    assert_eq!(complete(denied), RmiStatus::ErrorInput, "status");
    assert_eq!(complete(0), RmiStatus::Success);
    assert_eq!(scene.vcpu().x[0], 0);
    scene.rec(1, |rec| rec.runnable.set(false));
    let exit = scene.psci_exit(&[AFFINITY_INFO, 1, 0x77 << 32, 0x55]);
    assert_eq!(exit.gprs[..4], [AFFINITY_INFO, 1, 0, 0]);
    assert_eq!(complete(0), RmiStatus::Success);
    assert_eq!(scene.vcpu().x[..4], [psci_code(PsciReturnCode::Off), 0, 0, 0]);
}

#[test]
fn what_psci_refuses_the_host_does_not_see() {
    let scene = Scene::active();
    let cases = [
        ("entry", [CPU_ON, 1, MAPPED, 0], PsciReturnCode::InvalidAddress),
        ("entry", [CPU_ON, 1, u64::MAX, 0], PsciReturnCode::InvalidAddress),
        ("mpidr", [CPU_ON, 2, DATA, 0], PsciReturnCode::InvalidParameters),
        ("mpidr", [CPU_ON, 1 << 31 | 1, DATA, 0], PsciReturnCode::InvalidParameters),
        ("mpidr", [CPU_ON, 0x10, DATA, 0], PsciReturnCode::InvalidParameters),
        ("runnable", [CPU_ON, 0, DATA, 0], PsciReturnCode::AlreadyOn),
        ("target_bound", [AFFINITY_INFO, 1, 1, 0], PsciReturnCode::InvalidParameters),
        ("target_match", [AFFINITY_INFO, 2, 0, 0], PsciReturnCode::InvalidParameters),
        ("runnable", [AFFINITY_INFO, 0, 0, 0], PsciReturnCode::Success),
    ];
    for (id, call, code) in cases {
        assert_eq!(scene.answered(&call)[..4], [psci_code(code), 0, 0, 0], "{id}");
    }
}

#[test]
fn a_rec_suspends_and_goes_off() {
    let scene = Scene::active();
    let exit = scene.psci_exit(&[0xc400_0001, 1 << 32 | 2, 3, 4, 5]);
    let expected = record(RmiRecExitReason::Psci, |exit| {
        exit.gprs[..4].copy_from_slice(&[0xc400_0001, 2, 3, 4]);
    });
    assert_eq!(exit, expected);
    scene.irq();
    scene.exit();
    assert_eq!((scene.vcpu().x[..5].to_vec(), scene.vcpu().pc), (vec![0, 0, 0, 0, 5], ENTRY + 4));
    let exit = scene.psci_exit(&[0x8400_0002, 1, 2, 3]);
    assert_eq!(exit, record(RmiRecExitReason::Psci, |exit| exit.gprs[0] = 0x8400_0002));
    assert_eq!(scene.enter_rec(0, RmiRecEnter::zeroed()), RmiStatus::ErrorRec, "rec_runnable");
    assert_eq!(scene.realm(|realm| realm.state.get()), RealmState::Active);
}

#[test]
fn a_realm_ends_itself() {
    for fid in [0x8400_0008, 0x8400_0009] {
        let scene = Scene::active();
        let exit = scene.psci_exit(&[fid, 1, 2, 3]);
        assert_eq!(exit, record(RmiRecExitReason::Psci, |exit| exit.gprs[0] = fid));
        assert_eq!(scene.enter_rec(0, RmiRecEnter::zeroed()), RmiStatus::ErrorRealm(1), "system_off");
        for rec in &scene.recs {
            scene.fake.ok(RecDestroy, &[*rec]);
        }
    }
}
