//! RECs and what runs in them, on the machine of [`crate::fake`]: every failure condition by its ID, every exit's record to the last byte.

use hyp::el2::vcpu::{Exit, Vcpu};
use hyp::owner::HostPage;
use rmm_abi::v1_0::psci::{PsciCommand, PsciReturnCode};
use rmm_abi::v1_0::rmi::RmiCommand::*;
use rmm_abi::v1_0::rmi::{
    RmiRecCreateFlags, RmiRecEnter, RmiRecEnterFlags, RmiRecExit, RmiRecExitReason,
    RmiRecMpidr, RmiRecParams, RmiRecRun, RmiStatus,
};
use rmm_abi::v1_0::rsi::{RsiCommand, RsiHostCall, RsiRealmConfig, RsiStatus};
use rmm_abi::v1_0::{NOT_SUPPORTED, doublewords};
use zerocopy::IntoBytes;

use crate::exits;
use crate::fake::{DEVICE, FEATURES, Fake, HOST, status};
use crate::realm::{Realm, RealmState};
use crate::rec::{MAX_RECS_ORDER, Pending, Rec, RecState, mpidr_el1};

const PAGE: u64 = 0x1000;
/// Where the realm's memory begins.
const BASE: u64 = 0x8000_0000;
/// ASSIGNED, RAM.
const DATA: u64 = BASE;
/// ASSIGNED, RAM.
const MORE: u64 = BASE + PAGE;
/// UNASSIGNED, RAM.
const ABSENT: u64 = BASE + 2 * PAGE;
/// UNASSIGNED, EMPTY.
const EMPTY: u64 = BASE + 3 * PAGE;
/// UNASSIGNED, DESTROYED.
const DESTROYED: u64 = BASE + 4 * PAGE;
/// ASSIGNED, EMPTY.
const SPARE: u64 = BASE + 5 * PAGE;
const WIDTH: u8 = 40;
/// The bit of unprotected IPAs.
const SHARED: u64 = 1 << (WIDTH - 1);
/// ASSIGNED_NS.
const MAPPED: u64 = BASE | SHARED;
/// UNASSIGNED_NS.
const UNMAPPED: u64 = (BASE + PAGE) | SHARED;

const ENTRY: u64 = 0x8000_0000;
const SMC: u64 = 0x17 << 26 | 1 << 25;
const HVC: u64 = 0x16 << 26 | 1 << 25;
const LOAD: u64 = 0x24 << 26 | 1 << 25 | 0x07;
const FETCH: u64 = 0x20 << 26 | 1 << 25 | 0x07;
const WNR: u64 = 1 << 6;
const ISV: u64 = 1 << 24;
/// A load of a word to x5.
const WORD: u64 = LOAD | ISV | 2 << 22 | 5 << 16;

/// A realm with some memory, and RECs of which the first can run.
struct Scene {
    fake: &'static Fake,
    rd: u64,
    recs: Vec<u64>,
    /// PA of DATA and MORE.
    data: [u64; 2],
    run: u64,
}

fn rec_params(fake: &Fake, index: u64, runnable: bool) -> u64 {
    let flags = if runnable { RmiRecCreateFlags::RUNNABLE } else { RmiRecCreateFlags::empty() };
    let mut params = RmiRecParams::zeroed();
    (params.flags, params.mpidr, params.pc) = (flags, RmiRecMpidr::from_index(index), ENTRY);
    params.gprs = [1, 2, 3, 4, 5, 6, 7, 8];
    fake.put(&params)
}

impl Scene {
    /// Not active yet, without a REC.
    fn new() -> Self {
        let fake: &'static Fake = Box::leak(Box::new(Fake::new()));
        let mut params = fake.params(WIDTH);
        params.rpv = [0xa7; 64];
        let rd = fake.realm_of(&params);
        fake.rtts(rd, BASE, 3);
        fake.rtts(rd, MAPPED, 3);
        fake.ok(RttInitRipas, &[rd, DATA, EMPTY]);
        fake.ok(RttInitRipas, &[rd, DESTROYED, DESTROYED + PAGE]);
        let data = [DATA, MORE, DESTROYED, SPARE].map(|ipa| {
            let data = fake.delegated();
            fake.ok(DataCreateUnknown, &[rd, data, ipa]);
            data
        });
        fake.ok(DataDestroy, &[rd, DESTROYED]);
        fake.ok(RttMapUnprotected, &[rd, MAPPED, 3, fake.granule() | 0b11 << 6 | 0b110 << 2]);
        let run = fake.granule();
        Self { fake, rd, recs: Vec::new(), data: [data[0], data[1]], run }
    }

    /// Active, with `count` RECs.
    fn with_recs(count: u64) -> Self {
        let mut scene = Self::new();
        for index in 0..count {
            let rec = scene.fake.delegated();
            let params = rec_params(scene.fake, index, index == 0);
            scene.fake.ok(RecCreate, &[scene.rd, rec, params]);
            scene.recs.push(rec);
        }
        scene.fake.ok(RealmActivate, &[scene.rd]);
        scene
    }

    fn active() -> Self {
        Self::with_recs(2)
    }

    fn realm<T>(&self, look: impl FnOnce(&Realm<crate::fake::RealmMmu>) -> T) -> T {
        look(self.fake.monitor.lock().realm(self.rd).unwrap())
    }

    fn rec<T>(&self, number: usize, look: impl FnOnce(&Rec) -> T) -> T {
        look(self.fake.monitor.lock().rec(self.recs[number]).unwrap())
    }

    fn vcpu(&self) -> Vcpu {
        self.rec(0, |rec| *rec.vcpu.borrow())
    }

    /// The next run of a vCPU.
    fn step(&self, step: impl FnOnce(&mut Vcpu) -> Exit + Send + 'static) {
        self.fake.script(move |vcpu, _| step(vcpu));
    }

    /// An SMC with these in X0 and up; then an IRQ if the realm goes on.
    fn smc(&self, x: &[u64]) {
        let x = x.to_vec();
        self.step(move |vcpu| {
            vcpu.x[..x.len()].copy_from_slice(&x);
            synchronous(SMC, 0, 0)
        });
    }

    /// A command of RSI.
    fn rsi(&self, command: RsiCommand, args: &[u64]) {
        self.smc(&[&[u64::from(command.fid())], args].concat());
    }

    fn irq(&self) {
        self.step(|_| Exit::Irq);
    }

    /// Enters REC `number`; nothing in the record before is zero.
    fn enter_rec(&self, number: usize, enter: RmiRecEnter) -> RmiStatus {
        let mut run = RmiRecRun { enter, exit: RmiRecExit::zeroed() };
        run.exit.as_mut_bytes().fill(0xee);
        self.fake.store(self.run, run.as_bytes());
        self.fake.status(RecEnter, &[self.recs[number], self.run])
    }

    #[track_caller]
    fn exit_after(&self, enter: RmiRecEnter) -> RmiRecExit {
        assert_eq!(self.enter_rec(0, enter), RmiStatus::Success);
        assert_eq!(self.rec(0, |rec| rec.state.get()), RecState::Ready);
        self.fake.get(self.run + 0x800)
    }

    #[track_caller]
    fn exit(&self) -> RmiRecExit {
        self.exit_after(RmiRecEnter::zeroed())
    }

    /// X0 and up after a command that the realm is answered at once.
    #[track_caller]
    fn answered(&self, x: &[u64]) -> [u64; 31] {
        let pc = self.vcpu().pc;
        self.smc(x);
        self.irq();
        assert_eq!(self.exit(), interrupted());
        let vcpu = self.vcpu();
        assert_eq!(vcpu.pc, pc + 4);
        vcpu.x
    }

    #[track_caller]
    fn answered_by_rsi(&self, command: RsiCommand, args: &[u64]) -> [u64; 31] {
        self.answered(&[&[u64::from(command.fid())], args].concat())
    }

    #[track_caller]
    fn refused(&self, command: RsiCommand, args: &[u64], id: &str) {
        let x = self.answered_by_rsi(command, args);
        assert_eq!(x[0], RsiStatus::ErrorInput.bits(), "{id}");
    }
}

fn synchronous(esr: u64, far: u64, ipa: u64) -> Exit {
    Exit::Synchronous { esr, far, hpfar: ipa >> 12 << 4 }
}

fn record(reason: RmiRecExitReason, fill: impl FnOnce(&mut RmiRecExit)) -> RmiRecExit {
    let mut record = RmiRecExit::zeroed();
    record.exit_reason = reason.bits();
    fill(&mut record);
    record
}

fn interrupted() -> RmiRecExit {
    record(RmiRecExitReason::Irq, |_| {})
}

fn flagged(flags: RmiRecEnterFlags) -> RmiRecEnter {
    let mut enter = RmiRecEnter::zeroed();
    enter.flags = flags;
    enter
}

// REC_AUX_COUNT, REC_CREATE, REC_DESTROY.

#[test]
fn a_rec_needs_no_auxiliary_granules() {
    let scene = Scene::new();
    assert_eq!(scene.fake.ok(RecAuxCount, &[scene.rd])[1], 0);
    // rd_align, rd_bound, rd_state.
    for rd in [scene.rd + 1, DEVICE, scene.run, u64::MAX & !0xfff] {
        assert_eq!(scene.fake.status(RecAuxCount, &[rd]), RmiStatus::ErrorInput, "{rd:#x}");
    }
}

#[test]
fn a_rec_begins_as_its_parameters_say() {
    let scene = Scene::with_recs(1);
    let vcpu = scene.vcpu();
    let mut x = [0; 31];
    x[..8].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
    let reset = Vcpu::reset(mpidr_el1(RmiRecMpidr::from_index(0)));
    assert_eq!(vcpu, Vcpu { x, pc: ENTRY, ..reset });
    assert_eq!(scene.realm(|realm| (realm.rec_index.get(), realm.num_recs.get())), (1, 1));
}

#[test]
fn only_a_rec_that_may_run_is_measured() {
    let scene = Scene::new();
    let rim = |scene: &Scene| scene.realm(|realm| realm.measurements.borrow()[0]);
    let before = rim(&scene);
    scene.fake.ok(RecCreate, &[scene.rd, scene.fake.delegated(), rec_params(scene.fake, 0, false)]);
    assert_eq!(rim(&scene), before);
    scene.fake.ok(RecCreate, &[scene.rd, scene.fake.delegated(), rec_params(scene.fake, 1, true)]);
    let content = {
        let mut params = [0u8; 4096];
        params[0] = 1;
        params[0x200..0x208].copy_from_slice(&ENTRY.to_le_bytes());
        for (index, byte) in (0x300..0x340).step_by(8).enumerate() {
            params[byte] = index as u8 + 1;
        }
        sha(&params)
    };
    // C1.12: type 1, length, RIM, content.
    let mut descriptor = [0u8; 0x100];
    descriptor[0] = 1;
    descriptor[9] = 1;
    descriptor[0x10..0x50].copy_from_slice(&before);
    descriptor[0x50..0x70].copy_from_slice(&content);
    assert_eq!(rim(&scene)[..32], sha(&descriptor));
}

fn sha(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).into()
}

#[test]
fn a_rec_is_not_created_of_wrong_things() {
    let scene = Scene::new();
    let fake = scene.fake;
    let (rd, rec, params) = (scene.rd, fake.delegated(), rec_params(fake, 0, true));
    let with = |change: fn(&mut RmiRecParams)| {
        let mut params: RmiRecParams = fake.get(params);
        change(&mut params);
        fake.put(&params)
    };
    let input = RmiStatus::ErrorInput;
    let cases = [
        ("params_align", [rd, rec, params + 8], input),
        ("params_bound", [rd, rec, DEVICE], input),
        ("params_bound", [rd, rec, u64::MAX & !0xfff], input),
        ("params_pas", [rd, rec, fake.delegated()], input),
        ("rec_align", [rd, rec + 8, params], input),
        ("rec_bound", [rd, DEVICE, params], input),
        ("rec_state", [rd, fake.granule(), params], input),
        ("rec_state", [rd, rd, params], input),
        ("rd_align", [rd + 8, rec, params], input),
        ("rd_bound", [DEVICE, rec, params], input),
        ("rd_state", [fake.delegated(), rec, params], input),
        ("mpidr_index", [rd, rec, with(|params| params.mpidr = RmiRecMpidr::from_index(1))], input),
        ("num_aux", [rd, rec, with(|params| params.num_aux = 1)], input),
        ("num_aux", [rd, rec, with(|params| params.num_aux = u64::MAX)], input),
    ];
    for (id, args, expected) in cases {
        assert_eq!(fake.status(RecCreate, &args), expected, "{id}");
    }
    // num_recs.
    let most = (1 << MAX_RECS_ORDER) - 1;
    scene.realm(|realm| realm.num_recs.set(most));
    assert_eq!(fake.status(RecCreate, &[rd, rec, params]), RmiStatus::ErrorRealm(0));
    scene.realm(|realm| realm.num_recs.set(0));
    // realm_state.
    scene.realm(|realm| realm.state.set(RealmState::Active));
    assert_eq!(fake.status(RecCreate, &[rd, rec, params]), RmiStatus::ErrorRealm(0));
    // [rd_bound, rd_state] < [realm_state, num_recs].
    assert_eq!(fake.status(RecCreate, &[fake.delegated(), rec, params]), input);
    scene.realm(|realm| realm.state.set(RealmState::New));
    // None of it has changed anything.
    assert_eq!(scene.realm(|realm| (realm.rec_index.get(), realm.num_recs.get())), (0, 0));
    fake.ok(RecCreate, &[rd, rec, params]);
}

#[test]
fn a_rec_is_destroyed_unless_it_runs() {
    let scene = Scene::active();
    let (fake, rec) = (scene.fake, scene.recs[0]);
    for (id, rec) in [
        ("rec_align", rec + 8),
        ("rec_bound", DEVICE),
        ("rec_gran_state", scene.rd),
        ("rec_gran_state", HOST),
    ] {
        assert_eq!(fake.status(RecDestroy, &[rec]), RmiStatus::ErrorInput, "{id}");
    }
    // rec_state; and nobody else enters it.
    let run = scene.run;
    scene.step(move |_| {
        assert_eq!(fake.status(RecDestroy, &[rec]), RmiStatus::ErrorRec);
        assert_eq!(fake.status(RecEnter, &[rec, run]), RmiStatus::ErrorRec);
        Exit::Irq
    });
    scene.exit();
    let is_delegated = |rec| fake.is(rec) == HostPage::Kept(hyp::owner::Keeper::Delegated);
    assert!(!is_delegated(rec));
    fake.ok(RecDestroy, &[rec]);
    assert!(is_delegated(rec));
    assert_eq!(scene.realm(|realm| (realm.rec_index.get(), realm.num_recs.get())), (2, 1));
}

// REC_ENTER.

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
    // Nobody has run, and no record was written.
    assert_eq!(fake.bytes::<4>(run + 0x800), [0xee; 4]);
    scene.irq();
    assert_eq!(scene.exit(), interrupted());
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

// Aborts.

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
    for (esr, ipa, is_injected) in
        [(WORD, UNMAPPED, true), (LOAD | WNR, UNMAPPED, true), (LOAD, ABSENT, false), (LOAD, DESTROYED, false)]
    {
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

// RSI.

#[test]
fn a_realm_finds_the_interface_as_it_looks_for_it() {
    let scene = Scene::active();
    // What its other registers held stays: PSCI and SMCCC results are in X0 to X3.
    let call = |x: &[u64]| {
        let mut all = [0x77; 18];
        all[..x.len()].copy_from_slice(x);
        let after = scene.answered(&all);
        assert_eq!(after[4..18], all[4..]);
        after[0]
    };
    assert_eq!(call(&[0x8400_0000]), 0x1_0001, "PSCI_VERSION: 1.1");
    assert_eq!(call(&[0x8400_000a, 0x8000_0000]), 0, "PSCI_FEATURES(SMCCC_VERSION)");
    assert_eq!(call(&[0x8000_0000]), 0x1_0002, "SMCCC_VERSION: 1.2");
    assert_eq!(call(&[0x8000_0001, 0x8000_0000]), 0, "SMCCC_ARCH_FEATURES(SMCCC_VERSION)");
    assert_eq!(call(&[0x8000_0001, 0x8000_8000]), NOT_SUPPORTED, "SMCCC_ARCH_FEATURES(WORKAROUND_1)");
    for function in PsciCommand::ALL {
        assert_eq!(call(&[0x8400_000a, function.fid().into()]), 0, "{}", function.name());
    }
    // CPU_ON of 32 bits, MIGRATE, RSI_VERSION.
    for function in [0x8400_0003, 0x8400_0005, 0xc400_0190] {
        assert_eq!(call(&[0x8400_000a, function]), NOT_SUPPORTED);
    }
    // RMI, a vendor's, a trusted OS's, and nothing at all.
    for fid in [0xc400_0150, 0xc600_0003, 0x3200_0000, 0x8400_0003, 0, u64::MAX, 0x8400_0014] {
        assert_eq!(call(&[fid]), NOT_SUPPORTED, "{fid:#x}");
    }
    // The hint about SVE is none of the function's, nor is what is above W0.
    assert_eq!(call(&[0xffff_0000_8401_0000]), 0x1_0001);
    // An immediate is no call of SMCCC.
    scene.step(|vcpu| {
        vcpu.x[0] = 0xc400_0190;
        synchronous(SMC | 1, 0, 0)
    });
    scene.irq();
    scene.exit();
    assert_eq!(scene.vcpu().x[0], NOT_SUPPORTED);
}

#[test]
fn rsi_leaves_nothing_in_registers_that_are_no_outputs() {
    let scene = Scene::active();
    let mut all = [0x77; 31];
    all[0] = RsiCommand::Version.fid().into();
    all[1] = 0x1_0000;
    let x = scene.answered(&all);
    assert_eq!(x[..3], [0, 0x1_0000, 0x1_0000]);
    assert!(x[3..17].iter().all(|&x| x == 0));
    assert_eq!(x[17..], all[17..]);
    for (asked, status) in [(0, 1), (0x1_0001, 1), (0x2_0000, 1), (u64::MAX, 1)] {
        let x = scene.answered_by_rsi(RsiCommand::Version, &[asked]);
        assert_eq!(x[..3], [status, 0x1_0000, 0x1_0000], "{asked:#x}");
    }
    for index in [0, 1, u64::MAX] {
        assert_eq!(scene.answered_by_rsi(RsiCommand::Features, &[index])[..2], [0, 0]);
    }
}

#[test]
fn measurements_are_read_and_extended() {
    let scene = Scene::active();
    let rim = scene.realm(|realm| realm.measurements.borrow()[0]);
    let read = |index: u64| {
        let x = scene.answered_by_rsi(RsiCommand::MeasurementRead, &[index]);
        assert_eq!(x[0], 0);
        assert!(x[9..17].iter().all(|&x| x == 0));
        <[u64; 8]>::try_from(&x[1..9]).unwrap()
    };
    assert_eq!(read(0), doublewords(&rim));
    assert_eq!(read(4), [0; 8]);
    let value = [u64::MAX; 8];
    let extend = |index: u64, size: u64| {
        let x = scene.answered_by_rsi(RsiCommand::MeasurementExtend, &[&[index, size], &value[..]].concat());
        assert!(x[1..17].iter().all(|&x| x == 0));
        x[0]
    };
    assert_eq!(extend(4, 3), 0);
    let mut input = [0; 128];
    input[64..67].fill(0xff);
    let mut expected = [0; 64];
    expected[..32].copy_from_slice(&sha(&input));
    assert_eq!(read(4), doublewords(&expected));
    assert_eq!((read(3), read(0)), ([0; 8], doublewords(&rim)));
    for (id, index, size) in
        [("index_bound", 0, 3), ("index_bound", 5, 3), ("index_bound", u64::MAX, 3), ("size_bound", 1, 65)]
    {
        assert_eq!(extend(index, size), RsiStatus::ErrorInput.bits(), "{id}");
    }
    scene.refused(RsiCommand::MeasurementRead, &[5], "index_bound");
    assert_eq!(extend(1, 64), 0);
    assert_eq!(extend(1, 0), 0);
}

#[test]
fn a_realm_reads_how_it_was_made() {
    let scene = Scene::active();
    scene.fake.store(scene.data[0], &[0xcc; 4096]);
    assert_eq!(scene.answered_by_rsi(RsiCommand::RealmConfig, &[DATA])[0], 0);
    let config: RsiRealmConfig = scene.fake.get(scene.data[0]);
    let mut expected = RsiRealmConfig::zeroed();
    (expected.ipa_width, expected.rpv) = (WIDTH.into(), [0xa7; 64]);
    assert_eq!(config, expected);
    scene.refused(RsiCommand::RealmConfig, &[DATA + 8], "addr_align");
    scene.refused(RsiCommand::RealmConfig, &[MAPPED], "addr_bound");
    scene.refused(RsiCommand::RealmConfig, &[1 << WIDTH], "addr_bound");
    scene.refused(RsiCommand::RealmConfig, &[EMPTY], "nothing there");
    scene.refused(RsiCommand::RealmConfig, &[SPARE], "nothing there");
}

#[test]
fn a_command_waits_for_memory_that_the_host_owes() {
    for command in [RsiCommand::RealmConfig, RsiCommand::HostCall] {
        for ipa in [ABSENT, DESTROYED] {
            let scene = Scene::active();
            scene.rsi(command, &[ipa]);
            let expected = record(RmiRecExitReason::Sync, |exit| {
                exit.esr = 0x24 << 26 | 0x07;
                exit.hpfar = ipa >> 8;
            });
            assert_eq!(scene.exit(), expected, "{}", command.name());
            // It is executed again.
            assert_eq!((scene.vcpu().pc, scene.vcpu().x[0]), (ENTRY, command.fid().into()));
            assert_eq!(scene.rec(0, |rec| (rec.pending.get(), rec.abort.get())), (Pending::None, None));
        }
    }
}

#[test]
fn ripas_is_told_as_far_as_it_is_the_same() {
    let scene = Scene::active();
    let get = |base: u64, top: u64| {
        let x = scene.answered_by_rsi(RsiCommand::IpaStateGet, &[base, top]);
        assert_eq!(x[0], 0);
        assert!(x[3..17].iter().all(|&x| x == 0));
        (x[1], x[2])
    };
    const BLOCK: u64 = 2 << 20;
    // Two assigned pages and one that is not: RAM all.
    assert_eq!(get(DATA, BASE + BLOCK), (EMPTY, 1));
    assert_eq!(get(DATA, MORE), (MORE, 1));
    assert_eq!(get(EMPTY, DESTROYED), (DESTROYED, 0));
    assert_eq!(get(DESTROYED, BASE + BLOCK), (SPARE, 2));
    // To the end of its RTT.
    assert_eq!(get(SPARE, BASE + 3 * BLOCK), (BASE + BLOCK, 0));
    // Blocks in one step.
    assert_eq!(get(BASE + BLOCK, BASE + 3 * BLOCK + PAGE), (BASE + 3 * BLOCK + PAGE, 0));
    let top = SHARED;
    for (id, args) in [
        ("base_align", [DATA + 1, MORE]),
        ("end_align", [DATA, MORE + 1]),
        ("size_valid", [DATA, DATA]),
        ("size_valid", [MORE, DATA]),
        ("rgn_bound", [top, top + PAGE]),
        ("rgn_bound", [top - PAGE, top + PAGE]),
        ("rgn_bound", [DATA, !0xfff]),
    ] {
        scene.refused(RsiCommand::IpaStateGet, &args, id);
    }
    assert_eq!(get(top - PAGE, top), (top, 0));
}

#[test]
fn a_change_of_ripas_is_asked_of_the_host_and_told_when_it_comes_back() {
    let scene = Scene::active();
    for (id, args) in [
        ("base_align", [DATA + 1, MORE, 1, 0]),
        ("top_align", [DATA, MORE + 1, 1, 0]),
        ("size_valid", [DATA, DATA, 1, 0]),
        ("rgn_bound", [DATA, SHARED + PAGE, 1, 0]),
        ("ripas_valid", [DATA, MORE, 2, 0]),
        ("ripas_valid", [DATA, MORE, 3, 0]),
        ("ripas_valid", [DATA, MORE, 0xff, 0]),
    ] {
        scene.refused(RsiCommand::IpaStateSet, &args, id);
    }
    let ask = |base: u64, top: u64, ripas: u64| {
        scene.rsi(RsiCommand::IpaStateSet, &[base, top, ripas]);
        let expected = record(RmiRecExitReason::RipasChange, |exit| {
            (exit.ripas_base, exit.ripas_top, exit.ripas_value) = (base, top, ripas as u8);
        });
        assert_eq!(scene.exit(), expected);
    };
    let told = |flags: RmiRecEnterFlags| {
        scene.irq();
        assert_eq!(scene.exit_after(flagged(flags)), interrupted());
        let x = scene.vcpu().x;
        assert!(x[3..17].iter().all(|&x| x == 0));
        assert_eq!(scene.rec(0, |rec| (rec.ripas.get().addr, rec.ripas.get().top)), (0, 0));
        [x[0], x[1], x[2]]
    };
    let reject = RmiRecEnterFlags::RIPAS_RESPONSE;
    ask(EMPTY, DESTROYED, 1);
    assert_eq!(told(RmiRecEnterFlags::empty()), [0, EMPTY, 0]);
    ask(EMPTY, DESTROYED, 1);
    assert_eq!(told(reject), [0, EMPTY, 1]);
    // Nothing is left to be told.
    scene.irq();
    scene.exit_after(flagged(reject));
    // Done by the host: both, and no more to reject.
    ask(EMPTY, DESTROYED, 1);
    let done = scene.fake.ok(RttSetRipas, &[scene.rd, scene.recs[0], EMPTY, DESTROYED]);
    assert_eq!(done[1], DESTROYED);
    assert_eq!(told(reject), [0, DESTROYED, 0]);
    assert_eq!(scene.answered_by_rsi(RsiCommand::IpaStateGet, &[DATA, SPARE])[1..3], [DESTROYED, 1]);
    // A change to EMPTY cannot be rejected.
    ask(EMPTY, DESTROYED, 0);
    assert_eq!(told(reject), [0, EMPTY, 0]);
    // The host has no change to make that was not asked for.
    let args = [scene.rd, scene.recs[0], EMPTY, DESTROYED];
    assert_eq!(scene.fake.status(RttSetRipas, &args), RmiStatus::ErrorInput);
}

#[test]
fn a_change_from_destroyed_needs_the_realms_word() {
    let scene = Scene::active();
    for (flags, end) in [(0, DESTROYED), (1, SPARE), (u64::MAX, SPARE)] {
        scene.rsi(RsiCommand::IpaStateSet, &[DESTROYED, SPARE, 1, flags]);
        scene.exit();
        let args = [scene.rd, scene.recs[0], DESTROYED, SPARE];
        let done = scene.fake.call(RttSetRipas, &args);
        if flags == 0 {
            assert!(status(&done) != RmiStatus::Success || done[1] == end);
        } else {
            assert_eq!((status(&done), done[1]), (RmiStatus::Success, end));
        }
        scene.irq();
        scene.exit();
        assert_eq!(scene.vcpu().x[1], end);
    }
}

#[test]
fn host_calls_go_there_and_back() {
    let scene = Scene::active();
    let addr = DATA + 0x300;
    let mut call = RsiHostCall::zeroed();
    call.imm = 0xc10e;
    call.gprs = core::array::from_fn(|n| 0x100 + n as u64);
    scene.fake.store(scene.data[0] + 0x300, call.as_bytes());
    for (id, addr) in [("addr_align", addr + 8), ("addr_bound", MAPPED), ("addr_bound", !0xff)] {
        scene.refused(RsiCommand::HostCall, &[addr], id);
    }
    scene.refused(RsiCommand::HostCall, &[EMPTY], "nothing there");
    let pc = scene.vcpu().pc;
    scene.rsi(RsiCommand::HostCall, &[addr]);
    let expected = record(RmiRecExitReason::HostCall, |exit| (exit.imm, exit.gprs) = (call.imm, call.gprs));
    assert_eq!(scene.exit(), expected);
    let mut enter = RmiRecEnter::zeroed();
    enter.gprs = core::array::from_fn(|n| 0x200 + n as u64);
    scene.irq();
    assert_eq!(scene.exit_after(enter.clone()), interrupted());
    let after: RsiHostCall = scene.fake.get(scene.data[0] + 0x300);
    assert_eq!((after.imm, after.gprs), (call.imm, enter.gprs));
    let vcpu = scene.vcpu();
    assert_eq!(vcpu.pc, pc + 4);
    assert!(vcpu.x[..17].iter().all(|&x| x == 0));
    // Once.
    scene.irq();
    scene.exit();
    assert_eq!(scene.fake.get::<RsiHostCall>(scene.data[0] + 0x300), after);
}

#[test]
fn an_answer_to_a_host_call_waits_for_its_memory() {
    let scene = Scene::active();
    scene.rsi(RsiCommand::HostCall, &[DATA]);
    scene.exit();
    scene.fake.ok(DataDestroy, &[scene.rd, DATA]);
    let mut enter = RmiRecEnter::zeroed();
    enter.gprs[1] = 0x1234;
    let runs = scene.fake.cpus().runs.load(std::sync::atomic::Ordering::SeqCst);
    let expected = record(RmiRecExitReason::Sync, |exit| {
        exit.esr = 0x24 << 26 | 0x07;
        exit.hpfar = DATA >> 8;
    });
    assert_eq!(scene.exit_after(enter.clone()), expected);
    assert_eq!(scene.rec(0, |rec| rec.pending.get()), Pending::HostCall(DATA));
    assert_eq!(scene.fake.cpus().runs.load(std::sync::atomic::Ordering::SeqCst), runs, "it has not run");
    // As DESTROYED can only become RAM again by the realm's other RECs, one asks.
    let other = Scene::active();
    other.rsi(RsiCommand::HostCall, &[DATA]);
    other.exit();
    other.rec(0, |rec| rec.pending.set(Pending::HostCall(EMPTY)));
    other.irq();
    other.exit_after(enter);
    assert_eq!(other.vcpu().x[0], RsiStatus::ErrorInput.bits(), "given up meanwhile");
}

#[test]
fn there_are_no_attestation_tokens() {
    let scene = Scene::active();
    let x = scene.answered_by_rsi(RsiCommand::AttestationTokenInit, &[1; 8]);
    assert_eq!(x[0], RsiStatus::ErrorUnknown.bits());
    let token = |args: &[u64; 3]| {
        scene.answered_by_rsi(RsiCommand::AttestationTokenContinue, args)[0]
    };
    assert_eq!(token(&[DATA, 0, 0x1000]), RsiStatus::ErrorState.bits(), "state");
    for (id, args) in [
        ("addr_align", [DATA + 1, 0, 1]),
        ("addr_bound", [MAPPED, 0, 1]),
        ("offset_bound", [DATA, 0x1000, 0]),
        ("size_overflow", [DATA, 1, u64::MAX]),
        ("size_bound", [DATA, 1, 0x1000]),
    ] {
        assert_eq!(token(&args), RsiStatus::ErrorInput.bits(), "{id}");
    }
}

// PSCI.

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

// Anything.

#[test]
fn whatever_a_realm_does_the_host_sees_no_more_than_it_may() {
    use rand::rngs::SmallRng;
    use rand::{Rng, RngExt, SeedableRng};
    let scene = Scene::with_recs(3);
    let fake = scene.fake;
    let rounds = 2000;
    let mut random = SmallRng::seed_from_u64(0x5eed);
    let ipas = [DATA, MORE, ABSENT, EMPTY, DESTROYED, SPARE, MAPPED, UNMAPPED, BASE - PAGE, SHARED - PAGE, 1 << 41];
    let mut reasons = [0; 7];
    for round in 0..rounds {
        let value = |random: &mut SmallRng| match random.random_range(0..5) {
            0 => random.next_u64(),
            1 => random.random_range(0..8),
            2 => ipas[random.random_range(0..ipas.len())] + random.random_range(0..4) * 0x100,
            3 => u64::MAX << random.random_range(0..64),
            _ => ipas[random.random_range(0..ipas.len())],
        };
        for _ in 0..random.random_range(1..6) {
            let fids: Vec<u32> = RsiCommand::ALL
                .iter()
                .map(|command| command.fid())
                .chain(PsciCommand::ALL.iter().filter(|c| !c.name().contains("SYSTEM")).map(|c| c.fid()))
                .collect();
            let mut x: [u64; 31] = core::array::from_fn(|_| value(&mut random));
            if random.random_bool(0.8) {
                x[0] = fids[random.random_range(0..fids.len())].into();
            }
            if random.random_bool(0.5) {
                let page = |random: &mut SmallRng| BASE + random.random_range(0..8) * PAGE;
                (x[1], x[2], x[3]) = (page(&mut random), page(&mut random), random.random_range(0..2));
                let exiting = [RsiCommand::IpaStateSet, RsiCommand::HostCall];
                x[0] = exiting[random.random_range(0..2)].fid().into();
            }
            let ec = [0x17, 0x17, 0x24, 0x24, 0x20, 0x18, 0x01, 0x16][random.random_range(0..8)];
            let iss = random.next_u64() & 0x3ff_ffff;
            let iss = if ec == 0x17 && random.random_bool(0.9) { 0 } else { iss };
            let fault = if random.random_bool(0.5) { iss & !0x3f | 0x07 } else { iss };
            let (far, ipa) = (value(&mut random), ipas[random.random_range(0..ipas.len())]);
            let esr = ec << 26 | if matches!(ec, 0x20 | 0x24) { fault } else { iss };
            scene.step(move |vcpu| {
                vcpu.x = x;
                vcpu.gic.hcr = far;
                synchronous(esr, far, ipa)
            });
        }
        let last = [Exit::Irq, Exit::Fiq, Exit::SError { esr: random.next_u64() }][random.random_range(0..3)];
        scene.step(move |_| last);
        let mut enter = flagged(RmiRecEnterFlags::from_bits_retain(random.random_range(0..32)));
        enter.gprs = core::array::from_fn(|_| value(&mut random));
        // As a host has to, and often does not.
        if let Pending::Psci(_) = scene.rec(0, |rec| rec.pending.get()) {
            let target = scene.recs[random.random_range(1..3)];
            fake.status(PsciComplete, &[scene.recs[0], target, 0]);
        }
        let status = scene.enter_rec(0, enter);
        fake.cpus().script.lock().unwrap().clear();
        scene.rec(0, |rec| {
            assert_eq!(rec.state.get(), RecState::Ready);
            rec.runnable.set(true);
            if round % 50 == 49 {
                rec.pending.set(Pending::None);
            }
        });
        if status != RmiStatus::Success {
            assert_eq!(status, RmiStatus::ErrorRec, "round {round}");
            continue;
        }
        let exit: RmiRecExit = fake.get(scene.run + 0x800);
        reasons[usize::from(exit.exit_reason)] += 1;
        check_masks(&exit, round);
    }
    assert!(reasons.iter().all(|&count| count > rounds / 100), "{reasons:?}");
}

/// What A4.3 lets the host see for each reason.
fn check_masks(exit: &RmiRecExit, round: usize) {
    let mut masked = exit.clone();
    masked.gicv3_hcr &= 0b1111_1110 | 1 << 14 | 0x1f << 27;
    masked.far &= 0xfff;
    masked.hpfar &= 0xffff_ffff_fff0;
    let reason = RmiRecExitReason::from_bits(exit.exit_reason).unwrap();
    if reason != RmiRecExitReason::HostCall {
        masked.imm = 0;
        masked.gprs[4..].fill(0);
    }
    if !matches!(reason, RmiRecExitReason::HostCall | RmiRecExitReason::Psci) {
        masked.gprs[1..].fill(0);
    }
    if reason != RmiRecExitReason::RipasChange {
        (masked.ripas_base, masked.ripas_top, masked.ripas_value) = (0, 0, 0);
    } else {
        assert!(masked.ripas_base < masked.ripas_top && masked.ripas_top <= SHARED && masked.ripas_value <= 1);
    }
    let is_unprotected = exit.hpfar << 8 & SHARED != 0;
    masked.esr &= match (reason, exit.esr >> 26) {
        (RmiRecExitReason::Sync, 0x01) => exits::SEEN_OF_WAIT,
        (RmiRecExitReason::Sync, 0x18) => exits::SEEN_OF_REGISTER,
        (RmiRecExitReason::Sync, 0x20) => exits::SEEN_OF_FETCH,
        (RmiRecExitReason::Sync, 0x24) if is_unprotected && exit.esr & ISV != 0 => exits::SEEN_OF_EMULATABLE,
        (RmiRecExitReason::Sync, 0x24) if is_unprotected => exits::SEEN_OF_UNPROTECTED,
        (RmiRecExitReason::Sync, 0x24) => exits::SEEN_OF_ACCESS,
        (RmiRecExitReason::Serror, _) => exits::SEEN_OF_SERROR,
        _ => 0,
    };
    if exit.esr >> 26 != 0x24 || exit.esr & ISV == 0 {
        masked.far = 0;
        let may_tell = !matches!(reason, RmiRecExitReason::Sync) || matches!(exit.esr >> 26, 0x01 | 0x18);
        if !may_tell {
            masked.gprs[0] = 0;
        }
    }
    if matches!(reason, RmiRecExitReason::Irq | RmiRecExitReason::Fiq | RmiRecExitReason::RipasChange) {
        masked.gprs[0] = 0;
        masked.hpfar = 0;
    }
    assert_eq!(*exit, masked, "round {round}");
}
