//! RECs and what runs in them, on the machine of [`crate::fake`]: every failure condition by its ID, every exit's record to the last byte.

mod aborts;
mod enter;
mod psci;
mod random;
mod rec;
mod rsi;
mod trace;

use hyp::el2::vcpu::{Exit, Vcpu};
use hyp::owner::HostPage;
use rmm_abi::v1_0::psci::{PsciCommand, PsciReturnCode};
use rmm_abi::v1_0::rmi::RmiCommand::*;
use rmm_abi::v1_0::rmi::{
    RmiRecCreateFlags, RmiRecEnter, RmiRecEnterFlags, RmiRecExit, RmiRecExitReason, RmiRecMpidr,
    RmiRecParams, RmiRecRun, RmiStatus,
};
use rmm_abi::v1_0::rsi::{RsiCommand, RsiHostCall, RsiRealmConfig, RsiStatus};
use rmm_abi::v1_0::{NOT_SUPPORTED, RmmRipas, doublewords};
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
    (params.num_aux, params.aux[0]) = (1, fake.delegated());
    fake.put(&params)
}

impl Scene {
    /// Not active yet, without a REC.
    fn new() -> Self {
        Self::of(Fake::new())
    }

    fn of(fake: Fake) -> Self {
        Self::on(Box::leak(Box::new(fake)))
    }

    /// Another realm on a machine.
    fn on(fake: &'static Fake) -> Self {
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
        Self::new().activated(count)
    }

    fn activated(mut self, count: u64) -> Self {
        for index in 0..count {
            let rec = self.fake.delegated();
            let params = rec_params(self.fake, index, index == 0);
            self.fake.ok(RecCreate, &[self.rd, rec, params]);
            self.recs.push(rec);
        }
        self.fake.ok(RealmActivate, &[self.rd]);
        self
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

fn sha(bytes: &[u8]) -> [u8; 32] {
    use sha2::Digest;
    sha2::Sha256::digest(bytes).into()
}
