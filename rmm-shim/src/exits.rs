//! Why a vCPU stopped: back to the realm, or a REC exit, with what the host is told (A4.3).
//!
//! Invariants:
//! - Of a syndrome the host sees the fields that its reason's section names, of an address as much; all else of the record is zero.
//! - A record is written once, at the exit: until then nothing in it is of an exit that did not happen.
//! - What the host could do nothing about never ends in an exit, and what the realm may do by now is tried again.

use core::cell::{Cell, RefCell};

use hyp::el2::inject::Exception;
use hyp::el2::syndrome::{Abort, Cause};
use hyp::el2::vcpu::{Answer, Exit, Gic, Running, Vcpu, answer_register};
use hyp::mapping::{Address, Pa};
use rmm_abi::v1_0::rmi::{ICH_HCR_HOST, RmiRecExit, RmiRecExitReason, RmiRecMpidr};
use rmm_abi::v1_0::{RmmHipas, RmmRipas, is_protected};

use crate::attest::Attestation;
use crate::mmio::{self, Aborted};
use crate::monitor::{Locked, Monitor};
use crate::realm::Realm;
use crate::rec::{Pending, RipasChange};
use crate::rsi;
use crate::rsi::memory;
use crate::trace::Caller;
use crate::world::World;

/// Exception classes (Arm ARM D24.2.40).
const EC_SHIFT: u32 = 26;
const EC: u64 = 0x3f << EC_SHIFT;
const EC_WFX: u64 = 0x01;
const EC_DATA_ABORT: u64 = 0x24;
const IL: u64 = 1 << 25;
const ISS: u64 = IL - 1;
/// Of WFI, WFE, WFIT, WFET: which of them, whether RN is valid, RN.
const WFX_TI: u64 = 0b11;
const WFX_TIMED: u64 = 0b10;
const WFX_RV: u64 = 1 << 2;
/// The register's number, of WFIT and WFET as of MSR and MRS.
const ISS_RT_SHIFT: u32 = 5;
/// Of aborts.
const SET: u64 = 0b11 << 11;
const FNV: u64 = 1 << 10;
const EA: u64 = 1 << 9;
const FSC: u64 = 0x3f;
const ISV: u64 = 1 << 24;
const SAS: u64 = 0b11 << 22;
const SF: u64 = 1 << 15;
const WNR: u64 = 1 << 6;
/// A translation fault, level 0; the level is added.
const FSC_TRANSLATION: u64 = 0b00_0100;
/// The first permission fault.
const FSC_PERMISSION: u64 = 0b00_1100;
/// Of an SError.
const IDS: u64 = 1 << 24;
const AET: u64 = 0b111 << 10;

/// A4.3.4.1: WFI and WFE.
pub const SEEN_OF_WAIT: u64 = EC | WFX_TI;
/// A4.3.4.2: an instruction abort.
pub const SEEN_OF_FETCH: u64 = EC | SET | EA | FSC;
/// A4.3.4.3: a data abort.
pub const SEEN_OF_ACCESS: u64 = EC | SET | FNV | EA | FSC;
/// A4.3.4.3: what is added to that of an emulatable one.
pub const SEEN_OF_EMULATABLE: u64 = SEEN_OF_ACCESS | ISV | SAS | SF | WNR;
/// A4.3.4.3: what is added to that of one at an unprotected IPA that is not emulatable.
pub const SEEN_OF_UNPROTECTED: u64 = SEEN_OF_ACCESS | IL;
/// A4.3.10: an SError.
pub const SEEN_OF_SERROR: u64 = EC | IDS | AET | EA | FSC;
/// A system register that the host emulates: which, and which way.
pub const SEEN_OF_REGISTER: u64 = EC | ISS;
/// Of FAR_EL2: the offset in the granule.
const SEEN_OF_FAR: u64 = 0xfff;
/// `HPFAR_EL2.FIPA`: bits 55:12 of the IPA.
const FIPA: u64 = 0xffff_ffff_fff0;
const FIPA_SHIFT: u32 = 8;

/// `ICC_DIR_EL1`, written: its ISS but for the register (Arm ARM D24.2.40: op0 3, op2 1, op1 0, CRn 12, CRm 11). It traps only if the host has
/// set ICH_HCR_EL2.TDIR.
const WRITE_OF_DIR: u64 = 3 << 20 | 1 << 17 | 12 << 10 | 11 << 1;
const ISS_RT: u64 = 0x1f << ISS_RT_SHIFT;

/// `ICH_HCR_EL2.EOIcount`.
const EOI_COUNT: u64 = 0x1f << 27;

/// What becomes of the realm itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Off {
    /// Nothing.
    Nothing,
    /// The REC turns itself off.
    Rec,
    /// The realm turns itself off.
    Realm,
}

/// What a REC exit leaves behind in the REC and its realm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// What the host owes.
    pub pending: Pending,
    /// What the exit was due to, if that was a data abort at an unprotected IPA.
    pub abort: Option<Aborted>,
    /// The RIPAS change asked for: none, unless that is what the exit is for (A4.3.8).
    pub ripas: RipasChange,
    /// Who is off.
    pub off: Off,
}

impl Left {
    /// Nothing to remember.
    pub const PLAIN: Self =
        Self { pending: Pending::None, abort: None, ripas: RipasChange::NONE, off: Off::Nothing };

    /// An exit for a command of the realm's that accesses memory that the host has not given: as if the realm had accessed it, translation
    /// fault at `level` (A4.3.4.3).
    pub fn missing(record: &mut RmiRecExit, ipa: u64, level: i64) -> Self {
        record.exit_reason = RmiRecExitReason::Sync.bits();
        record.esr = EC_DATA_ABORT << EC_SHIFT | FSC_TRANSLATION | level as u64 & 0b11;
        record.hpfar = ipa >> FIPA_SHIFT & FIPA;
        Self::PLAIN
    }
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// The realm goes on at once: all that had to be done was done to its general registers.
    Realm,
    /// The realm goes on after this was done to the rest of its registers.
    Then(Todo),
    /// A REC exit: the record says why.
    Host(Left),
}

/// What needs all registers of the vCPU: they are on the CPU until it stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Todo {
    /// The instruction does not exist.
    Undefined,
    /// There is nothing at the address.
    External {
        /// `ESR_EL2`.
        esr: u64,
        /// `FAR_EL2`.
        far: u64,
    },
    /// There is no such address (A5.2.8).
    AddressSize {
        /// `ESR_EL2`.
        esr: u64,
        /// `FAR_EL2`.
        far: u64,
    },
    /// A system register is accessed.
    Register {
        /// `ESR_EL2`.
        esr: u64,
    },
}

/// The REC that runs: what of it and of its realm does not change.
pub struct Here<'m, W> {
    /// Who serves it.
    pub monitor: &'m Monitor<W>,
    /// The realm's descriptor.
    pub rd: Pa,
    /// Bits of IPA.
    pub ipa_width: u32,
    /// Which REC.
    pub mpidr: RmiRecMpidr,
    /// Whether its realm is known to have asked RSI_VERSION.
    pub knows_rsi: Cell<bool>,
    /// The token that it fetches: this CPU's alone.
    pub attestation: RefCell<&'m mut Attestation>,
}

impl<W: World> Here<'_, W> {
    /// The realm. It is there as long as it has a REC.
    pub fn realm<'l>(&self, lock: &'l Locked<'_, W>) -> Option<&'l Realm<W::Mmu>> {
        lock.realm(self.rd.get())
    }

    /// Whether any REC of the realm has asked RSI_VERSION.
    fn knows_rsi(&self) -> bool {
        self.knows_rsi.get() || self.realm(&self.monitor.lock()).is_none_or(|realm| realm.knows_rsi.get())
    }

    /// The realm asks RSI_VERSION.
    pub fn meets_rsi(&self) {
        if !self.knows_rsi.replace(true)
            && let Some(realm) = self.realm(&self.monitor.lock())
        {
            realm.knows_rsi.set(true);
        }
    }

    /// Who calls, for who tells it.
    pub fn caller(&self) -> Caller {
        Caller { rd: self.rd, mpidr: self.mpidr }
    }

    /// Whether `ipa` is in the lower half of its address space.
    pub fn is_protected(&self, ipa: u64) -> bool {
        is_protected(ipa, self.ipa_width)
    }
}

/// What to do now that the realm was left for a synchronous exception, all but its general registers being on the CPU still.
pub fn decide<W: World>(
    here: &Here<'_, W>,
    running: &mut Running,
    (esr, far, hpfar): (u64, u64, u64),
    record: &mut RmiRecExit,
) -> Next {
    match Cause::decode(esr) {
        Cause::Smc => rsi::call(here, running, esr, record),
        // A4.3.4: emulated here, but for what only the host can: the end of an interrupt where it has asked for that, and what `resolve` finds.
        Cause::SystemRegister { iss } if iss & !ISS_RT == WRITE_OF_DIR => {
            tell_register(&running.x, esr, record);
            running.advance();
            Next::Host(Left::PLAIN)
        }
        Cause::SystemRegister { .. } => Next::Then(Todo::Register { esr }),
        Cause::Abort(abort) => abort_of(here, running, abort, (esr, far, hpfar), record),
        Cause::Other { ec: EC_WFX } => {
            record.exit_reason = RmiRecExitReason::Sync.bits();
            record.esr = esr & SEEN_OF_WAIT;
            if esr & (WFX_TIMED | WFX_RV) == WFX_TIMED | WFX_RV {
                record.gprs[0] = mmio::read_register(&running.x, register_of(esr));
            }
            running.advance();
            Next::Host(Left::PLAIN)
        }
        // A4.5: for realms there is no such instruction. It traps behind itself.
        Cause::Hvc => {
            running.pc = running.pc.wrapping_sub(4);
            Next::Then(Todo::Undefined)
        }
        Cause::Other { .. } => Next::Then(Todo::Undefined),
    }
}

/// What to do now that the vCPU has stopped for `exit`, and its registers are in it: a REC exit, or the realm goes on. `decided` is what
/// [`decide`] has said to a synchronous exception.
pub fn resolve<W: World>(
    here: &Here<'_, W>,
    vcpu: &mut Vcpu,
    exit: Exit,
    decided: Option<Next>,
    record: &mut RmiRecExit,
) -> Option<Left> {
    let reason = match exit {
        Exit::Synchronous { .. } => return finish(here, vcpu, decided?, record),
        Exit::Irq => RmiRecExitReason::Irq,
        Exit::Fiq => RmiRecExitReason::Fiq,
        Exit::SError { esr } => {
            record.esr = esr & SEEN_OF_SERROR;
            RmiRecExitReason::Serror
        }
    };
    record.exit_reason = reason.bits();
    Some(Left::PLAIN)
}

fn finish<W: World>(
    here: &Here<'_, W>,
    vcpu: &mut Vcpu,
    decided: Next,
    record: &mut RmiRecExit,
) -> Option<Left> {
    let todo = match decided {
        Next::Realm => return None,
        Next::Host(left) => return Some(left),
        Next::Then(todo) => todo,
    };
    let world = &here.monitor.world;
    let features = world.entry_features();
    match todo {
        Todo::Undefined => vcpu.inject(Exception::Undefined, &features),
        Todo::External { esr, far } => mmio::inject_external(vcpu, esr, far, &features),
        Todo::AddressSize { esr, far } => mmio::inject_address_size(vcpu, esr, far, &features),
        Todo::Register { esr } => match answer_register(vcpu, esr, world.id_view(), &features) {
            Answer::Answered | Answer::Undefined => {}
            // Only the host can interrupt another REC.
            Answer::Sgi => {
                tell_register(&vcpu.x, esr, record);
                vcpu.advance();
                return Some(Left::PLAIN);
            }
        },
    }
    None
}

/// The record of a write to a system register that the host emulates.
fn tell_register(x: &[u64; 31], esr: u64, record: &mut RmiRecExit) {
    record.exit_reason = RmiRecExitReason::Sync.bits();
    record.esr = esr & SEEN_OF_REGISTER;
    record.gprs[0] = mmio::read_register(x, register_of(esr));
}

fn register_of(iss: u64) -> usize {
    (iss >> ISS_RT_SHIFT & 0x1f) as usize
}

/// What an abort ends in.
enum Verdict {
    /// Nothing: by now it is as the realm needs it.
    Retry,
    /// There is nothing at the address.
    External,
    /// There is no such address (A5.2.8).
    AddressSize,
    /// The host may know: with these fields of the syndrome, the IPA being unprotected or not.
    Host(u64, bool),
}

fn judge<W: World>(here: &Here<'_, W>, esr: u64, ipa: u64) -> Verdict {
    let is_fetch = mmio::is_fetch(esr);
    let is_permission = esr & FSC >= FSC_PERMISSION;
    let of_unprotected = || match (is_fetch, esr & ISV != 0) {
        (true, _) => Verdict::External,
        (false, true) => Verdict::Host(SEEN_OF_EMULATABLE, true),
        (false, false) => Verdict::Host(SEEN_OF_UNPROTECTED, true),
    };
    let lock = here.monitor.lock();
    let Some(found) = here.realm(&lock).and_then(|realm| memory::find(realm, ipa)) else {
        return Verdict::AddressSize;
    };
    let of_protected = if is_fetch { SEEN_OF_FETCH } else { SEEN_OF_ACCESS };
    let rtte = &found.rtte;
    if !here.is_protected(ipa) {
        let is_mapped = rtte.is(RmmHipas::AssignedNs);
        return if is_mapped && !is_fetch && !is_permission { Verdict::Retry } else { of_unprotected() };
    }
    match rtte.ripas {
        RmmRipas::Ram if rtte.is(RmmHipas::Assigned) => Verdict::Retry,
        RmmRipas::Empty => Verdict::External,
        _ => Verdict::Host(of_protected, false),
    }
}

fn abort_of<W: World>(
    here: &Here<'_, W>,
    running: &Running,
    abort: Abort,
    (esr, far, hpfar): (u64, u64, u64),
    record: &mut RmiRecExit,
) -> Next {
    let ipa = (hpfar & FIPA) << FIPA_SHIFT;
    let verdict = if abort.is_of_stage_2() {
        judge(here, esr, ipa)
    } else {
        // An External abort, or what the CPU should not report here.
        Verdict::External
    };
    match verdict {
        Verdict::Retry => Next::Realm,
        Verdict::External => {
            if abort.is_of_stage_2() && here.is_protected(ipa) && !here.knows_rsi() {
                here.monitor.world.is_lost(ipa);
            }
            Next::Then(Todo::External { esr, far })
        }
        Verdict::AddressSize => Next::Then(Todo::AddressSize { esr, far }),
        Verdict::Host(seen, is_unprotected) => {
            record.exit_reason = RmiRecExitReason::Sync.bits();
            record.esr = esr & seen;
            record.hpfar = hpfar & FIPA;
            let aborted = Aborted { esr, far };
            if is_unprotected && aborted.is_emulatable() {
                record.far = far & SEEN_OF_FAR;
                record.gprs[0] = aborted.told(&running.x);
            }
            Next::Host(Left { abort: is_unprotected.then_some(aborted), ..Left::PLAIN })
        }
    }
}

/// What is told at each exit, whatever the reason: interrupts and timers (A6.1, A6.2). A timer that the host is told to assert its output is
/// marked so: who switches worlds keeps it from interrupting again until its output changes.
pub fn tell_always(record: &mut RmiRecExit, vcpu: &mut Vcpu, list_registers: usize) {
    let Gic { hcr, vmcr, lrs, misr, .. } = &vcpu.gic;
    record.gicv3_hcr = hcr & (ICH_HCR_HOST | EOI_COUNT);
    record.gicv3_vmcr = *vmcr;
    record.gicv3_misr = *misr;
    for (told, lr) in record.gicv3_lrs.iter_mut().zip(lrs).take(list_registers) {
        *told = *lr;
    }
    record.cntp_ctl = vcpu.timers.cntp_ctl;
    record.cntp_cval = vcpu.timers.cntp_cval;
    record.cntv_ctl = vcpu.timers.cntv_ctl;
    record.cntv_cval = vcpu.timers.cntv_cval;
    vcpu.timers.tell();
}
