//! RECs: RMI_REC_AUX_COUNT, RMI_REC_CREATE, RMI_REC_DESTROY, RMI_REC_ENTER, RMI_PSCI_COMPLETE (B4.3.7, B4.3.11 to B4.3.14).
//!
//! Invariant: RMI_REC_ENTER looks at all that can fail before it changes anything; then there is one record for the host, whatever happens.

use hyp::el2::vcpu::{Exit, Vcpu};
use hyp::mapping::{Address, Pa};
use hyp::owner::{HostPage, Keeper};
use rmm_abi::v1_0::psci::{PsciCommand, PsciReturnCode};
use rmm_abi::v1_0::rmi::{
    ICH_HCR_HOST, RmiRecEnter, RmiRecEnterFlags, RmiRecExit, RmiRecParams, RmiRecRun, RmiStatus, input,
};
use rmm_abi::v1_0::rmi::{RmiRecCreateFlags, RmiRecMpidr};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{INPUT, Outcome, Reply};
use crate::exits::{self, Here, Left, Next, Off};
use crate::measurement;
use crate::monitor::{Locked, Monitor};
use crate::realm::{Realm, RealmState};
use crate::rec::{MAX_RECS_ORDER, Pending, Rec, RecState, RipasChange, mpidr_el1, named_by_realm};
use crate::rsi;
use crate::world::{Features, World};

/// Auxiliary granules of each REC.
const AUX_COUNT: u64 = 0;
/// The index of RMI_ERROR_REALM for a realm that is off (B4.3.14).
const SYSTEM_OFF: u8 = 1;

pub fn aux_count<W: World>(lock: &mut Locked<'_, W>, input: input::RecAuxCount) -> Outcome {
    input.check()?;
    lock.realm(input.rd).ok_or(INPUT)?;
    Ok(Reply::success([AUX_COUNT]))
}

/// Copies what has a name of the host's parameters.
fn read_params<W: World>(world: &W, at: u64) -> Option<RmiRecParams> {
    use core::mem::offset_of;
    let mut params = RmiRecParams::zeroed();
    let RmiRecParams { flags, mpidr, pc, gprs, num_aux, aux, .. } = &mut params;
    let copy = |offset, into: &mut [u8]| world.read(at, offset, into);
    copy(offset_of!(RmiRecParams, flags), flags.as_mut_bytes())?;
    copy(offset_of!(RmiRecParams, mpidr), mpidr.as_mut_bytes())?;
    copy(offset_of!(RmiRecParams, pc), pc.as_mut_bytes())?;
    copy(offset_of!(RmiRecParams, gprs), gprs.as_mut_bytes())?;
    copy(offset_of!(RmiRecParams, num_aux), num_aux.as_mut_bytes())?;
    copy(offset_of!(RmiRecParams, aux), aux.as_mut_bytes())?;
    Some(params)
}

#[inline(never)]
pub fn create<W: World>(lock: &mut Locked<'_, W>, input: input::RecCreate) -> Outcome {
    input.check()?;
    let mut params = read_params(lock.world, input.params_ptr).ok_or(INPUT)?;
    if lock.world.granule(input.rec) != HostPage::Kept(Keeper::Delegated) {
        return Err(INPUT);
    }
    let at = Pa::new(input.rec).map_err(|_| INPUT)?;
    let realm = lock.realm(input.rd).ok_or(INPUT)?;
    if realm.state.get() != RealmState::New || realm.num_recs.get() >= (1 << MAX_RECS_ORDER) - 1 {
        return Err(RmiStatus::ErrorRealm(0).into());
    }
    if params.mpidr.index() != realm.rec_index.get() {
        return Err(INPUT);
    }
    params.check(input.rec, AUX_COUNT)?;
    // As the realm knows it: bits that are no affinity's are not kept.
    let mpidr = RmiRecMpidr::from_index(params.mpidr.index());
    let mut vcpu = Vcpu::reset(mpidr_el1(mpidr));
    vcpu.pc = params.pc;
    vcpu.x[..params.gprs.len()].copy_from_slice(&params.gprs);
    let is_runnable = params.flags.contains(RmiRecCreateFlags::RUNNABLE);
    let (rd, number) = (realm.rd, realm.number);
    lock.place_rec(at, number, Rec::new(rd, mpidr, is_runnable, vcpu)).map_err(|_| INPUT)?;
    let realm = lock.realm(input.rd).ok_or(INPUT)?;
    realm.rec_index.set(realm.rec_index.get() + 1);
    realm.num_recs.set(realm.num_recs.get() + 1);
    if is_runnable {
        // What is left is hashed (B4.3.12.4).
        (params.mpidr, params.num_aux, params.aux) = (RmiRecMpidr::from_bits(0), 0, [0; 16]);
        let rim = &mut realm.measurements.borrow_mut()[0];
        measurement::extend_rec(lock.world, realm.hash_algo, rim, &params);
    }
    Ok(Reply::success([]))
}

pub fn destroy<W: World>(lock: &mut Locked<'_, W>, input: input::RecDestroy) -> Outcome {
    input.check()?;
    let rec = lock.rec(input.rec_ptr).ok_or(INPUT)?;
    if rec.state.get() == RecState::Running {
        return Err(RmiStatus::ErrorRec.into());
    }
    let rd = rec.owner.get();
    let number = lock.realm(rd).ok_or(INPUT)?.number;
    let at = Pa::new(input.rec_ptr).map_err(|_| INPUT)?;
    lock.end_rec(at, number).map_err(|_| INPUT)?;
    let realm = lock.realm(rd).ok_or(INPUT)?;
    realm.num_recs.set(realm.num_recs.get().saturating_sub(1));
    Ok(Reply::success([]))
}

pub fn psci_complete<W: World>(lock: &mut Locked<'_, W>, input: input::PsciComplete) -> Outcome {
    input.check()?;
    let calling = lock.rec(input.calling_rec).ok_or(INPUT)?;
    let target = lock.rec(input.target_rec).ok_or(INPUT)?;
    let Pending::Psci(command) = calling.pending.get() else { return Err(INPUT) };
    if target.owner != calling.owner {
        return Err(INPUT);
    }
    // What waits does not run, so its registers are there.
    let x = &mut calling.vcpu.borrow_mut().x;
    if named_by_realm(x[1]) != Some(target.mpidr) {
        return Err(INPUT);
    }
    let is_denied = input.status == PsciReturnCode::Denied.bits();
    let is_on = target.runnable.get();
    let code = match (command, is_denied, is_on) {
        (PsciCommand::CpuOn, true, false) => PsciReturnCode::Denied,
        (_, true, _) => return Err(INPUT),
        (PsciCommand::CpuOn, false, true) => PsciReturnCode::AlreadyOn,
        (PsciCommand::CpuOn, false, false) => {
            turn_on(target, x[2], x[3]);
            PsciReturnCode::Success
        }
        (_, false, true) => PsciReturnCode::Success,
        (_, false, false) => PsciReturnCode::Off,
    };
    rsi::finish_psci(x, code);
    calling.pending.set(Pending::None);
    Ok(Reply::success([]))
}

/// A REC that is off goes on from reset, at `entry`.
fn turn_on(rec: &Rec, entry: u64, context: u64) {
    // It does not run: it is not runnable.
    let mut vcpu = rec.vcpu.borrow_mut();
    *vcpu = Vcpu::reset(mpidr_el1(rec.mpidr));
    vcpu.pc = entry;
    vcpu.x[0] = context;
    rec.pending.set(Pending::None);
    rec.abort.set(None);
    rec.ripas.set(RipasChange::NONE);
    rec.runnable.set(true);
}

/// What of RmiRecEnter is used besides its flags, as it lies there.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Entered {
    gprs: [u64; 31],
    _unused: u64,
    hcr: u64,
    lrs: [u64; 16],
}

const AT: usize = core::mem::offset_of!(RmiRecEnter, gprs);
const _: () = {
    use core::mem::offset_of;
    assert!(AT + offset_of!(Entered, hcr) == offset_of!(RmiRecEnter, gicv3_hcr));
    assert!(AT + offset_of!(Entered, lrs) == offset_of!(RmiRecEnter, gicv3_lrs));
};

/// Fields of `ICH_LR<n>_EL2` (IHI 0069, 12.4): vINTID, RES0 without HW but for EOI (bit 41), priority, RES0 and NMI, HW, state.
const LR_INTID: u64 = 0xffff_ffff;
const LR_RES0: u64 = 0x1ff << 32 | 0b111 << 42 | 0b111 << 45 | 0xf << 56;
const LR_PRIORITY_SHIFT: u32 = 48;
const LR_HW: u64 = 1 << 61;
const LR_STATE: u64 = 0b11 << 62;

/// Whether an INTID is one that an interrupt can have: PPIs, SPIs, their extended ranges, LPIs (IHI 0069, 2.2).
fn is_interrupt(intid: u64, bits: u32) -> bool {
    matches!(intid, 0..1020 | 1056..1120 | 4096..5120) || (intid >= 8192 && intid >> bits.min(24) == 0)
}

/// Gicv3ConfigIsValid (B3.18, A6.1): encodings that the architecture has, for this GIC, without HW. Two list registers with one interrupt are none:
/// what the GIC does then is not predictable.
fn is_gic_valid(hcr: u64, lrs: &[u64; 16], features: &Features) -> bool {
    if hcr & !ICH_HCR_HOST != 0 {
        return false;
    }
    let unused_priority = (0xff >> features.priority_bits.min(8)) << LR_PRIORITY_SHIFT;
    let lrs = &lrs[..features.list_registers.min(lrs.len())];
    lrs.iter().enumerate().all(|(index, &lr)| {
        if lr == 0 {
            return true;
        }
        if lr & (LR_HW | LR_RES0 | unused_priority) != 0 {
            return false;
        }
        let is_same = |other: &u64| other & LR_STATE != 0 && (other ^ lr) & LR_INTID == 0;
        lr & LR_STATE == 0
            || is_interrupt(lr & LR_INTID, features.intid_bits) && !lrs[..index].iter().any(is_same)
    })
}

/// Where copies go by 16 bytes if the host's end does: its structures do.
#[repr(C, align(16))]
struct Aligned<T>(T);

#[inline(never)]
pub fn enter<W: World>(monitor: &Monitor<W>, input: input::RecEnter, host_has_sve: bool) -> Outcome {
    input.check()?;
    let world = &monitor.world;
    if !world.can_run() {
        return Err(INPUT);
    }
    let lock = monitor.lock();
    let mut flags = RmiRecEnterFlags::empty();
    let Aligned(entered) = &mut Aligned(Entered { gprs: [0; 31], _unused: 0, hcr: 0, lrs: [0; 16] });
    world.read(input.run_ptr, 0, flags.as_mut_bytes()).ok_or(INPUT)?;
    world.read(input.run_ptr, AT, entered.as_mut_bytes()).ok_or(INPUT)?;
    let rec = lock.rec(input.rec).ok_or(INPUT)?;
    let realm = lock.realm(rec.owner.get()).ok_or(INPUT)?;
    match realm.state.get() {
        RealmState::New => return Err(RmiStatus::ErrorRealm(0).into()),
        RealmState::SystemOff => return Err(RmiStatus::ErrorRealm(SYSTEM_OFF).into()),
        RealmState::Active => {}
    }
    let features = world.features();
    let is_emulated = flags.contains(RmiRecEnterFlags::EMUL_MMIO);
    if rec.state.get() == RecState::Running
        || !rec.runnable.get()
        || matches!(rec.pending.get(), Pending::Psci(_))
        || is_emulated && !rec.abort.get().is_some_and(|abort| abort.is_emulatable())
        || !is_gic_valid(entered.hcr, &entered.lrs, &features)
    {
        return Err(RmiStatus::ErrorRec.into());
    }

    // From here on it succeeds.
    let Aligned(record) = &mut Aligned(RmiRecExit::zeroed());
    let missing = apply(&lock, realm, rec, flags, entered, record, &features);
    let (rd, ipa_width, knows_rsi) = (realm.rd, realm.ipa_width, realm.knows_rsi.clone());
    let here = Here { monitor, rd, ipa_width, mpidr: rec.mpidr, knows_rsi };
    let registers = realm.registers;
    let mut running = lock.start(rec);
    drop(lock);
    let mut vcpu = running.vcpu();
    let left = missing.unwrap_or_else(|| {
        loop {
            let mut decided = None;
            let exit = world.run(&mut vcpu, &registers, host_has_sve, &mut |running, exit| {
                let Exit::Synchronous { esr, far, hpfar } = *exit else { return false };
                match exits::decide(&here, running, (esr, far, hpfar), record) {
                    Next::Realm => true,
                    next => {
                        decided = Some(next);
                        false
                    }
                }
            });
            if let Some(left) = exits::resolve(&here, &mut vcpu, exit, decided, record) {
                break left;
            }
        }
    });
    exits::tell_always(record, &mut vcpu, features.list_registers);
    drop(vcpu);

    let lock = monitor.lock();
    let rec = lock.stopped(running);
    leave(&lock, rec, &left);
    // The host may have given the granule away meanwhile (A4.3.3).
    let at = core::mem::offset_of!(RmiRecRun, exit);
    world.write(input.run_ptr, at, record.as_bytes()).ok_or(INPUT)?;
    Ok(Reply::success([]))
}

/// Does what the host says. The exit that comes of it without the realm having run, if there is one. What the last exit has left behind is
/// replaced at the next one ([`leave`]).
fn apply<W: World>(
    lock: &Locked<'_, W>,
    realm: &Realm<W::Mmu>,
    rec: &Rec,
    flags: RmiRecEnterFlags,
    entered: &Entered,
    record: &mut RmiRecExit,
    features: &Features,
) -> Option<Left> {
    let vcpu = &mut *rec.vcpu.borrow_mut();
    vcpu.trap_wfi = flags.contains(RmiRecEnterFlags::TRAP_WFI);
    vcpu.trap_wfe = flags.contains(RmiRecEnterFlags::TRAP_WFE);
    vcpu.gic.hcr = entered.hcr;
    let count = features.list_registers.min(vcpu.gic.lrs.len());
    vcpu.gic.lrs[..count].copy_from_slice(&entered.lrs[..count]);
    if let Some(abort) = rec.abort.get() {
        // A4.2.3.
        if flags.contains(RmiRecEnterFlags::INJECT_SEA) {
            abort.inject_external(vcpu, &lock.world.entry_features());
        } else if flags.contains(RmiRecEnterFlags::EMUL_MMIO) {
            abort.complete(vcpu, entered.gprs[0]);
        }
    }
    match rec.pending.get() {
        Pending::RipasChange => {
            let change = RipasChange { response: flags.ripas_response(), ..rec.ripas.get() };
            rsi::complete_ripas_change(vcpu, &change);
        }
        Pending::HostCall(addr) => {
            if let Err(level) = rsi::complete_host_call(lock, realm, vcpu, addr, &entered.gprs) {
                let left = Left::missing(record, addr, level);
                return Some(Left { pending: Pending::HostCall(addr), ..left });
            }
        }
        Pending::None | Pending::Psci(_) => {}
    }
    None
}

/// Remembers what an exit leaves behind.
fn leave<W: World>(lock: &Locked<'_, W>, rec: &Rec, left: &Left) {
    rec.pending.set(left.pending);
    rec.abort.set(left.abort);
    rec.ripas.set(left.ripas);
    match left.off {
        Off::Nothing => {}
        Off::Rec => rec.runnable.set(false),
        Off::Realm => {
            if let Some(realm) = lock.realm(rec.owner.get()) {
                realm.state.set(RealmState::SystemOff);
            }
        }
    }
}
