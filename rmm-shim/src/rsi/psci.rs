//! PSCI (chapter B6, A4.3.7): the RMM checks, the host does.
//!
//! Invariant: what waits for RMI_PSCI_COMPLETE names another REC, one that was created; its own REC's answer is known here.

use hyp::el2::vcpu::Running;
use rmm_abi::v1_0::psci::{AffinityInfo, CpuOn, PsciCommand, PsciReturnCode};
use rmm_abi::v1_0::rmi::{RmiRecExit, RmiRecExitReason, RmiRecMpidr};

use super::{SMCCC_VERSION, args};
use crate::exits::{Here, Left, Next, Off};
use crate::rec::{Pending, named_by_realm};
use crate::world::World;

/// PSCI_FEATURES (B6.3.5). SMCCC_VERSION is asked about here too (SMCCC DEN0028, its discovery).
pub fn features(function: u32) -> u64 {
    let is_known = function == SMCCC_VERSION || PsciCommand::from_fid(function).is_ok();
    let code = if is_known { PsciReturnCode::Success } else { PsciReturnCode::NotSupported };
    code.to_register()
}

/// The realm goes on after the call with `code`.
pub fn finish(x: &mut [u64; 31], code: PsciReturnCode) {
    x[0] = code.to_register();
    x[1..4].fill(0);
}

/// Answers a call, or tells the host of it.
pub fn call<W: World>(
    here: &Here<'_, W>,
    running: &mut Running,
    command: PsciCommand,
    record: &mut RmiRecExit,
) -> Next {
    let at_once = match command {
        PsciCommand::CpuOn => {
            let input = CpuOn::from_registers(args(running));
            if here.is_protected(input.entry_point_address) {
                target(here, input.target_cpu, PsciReturnCode::AlreadyOn)
            } else {
                Some(PsciReturnCode::InvalidAddress)
            }
        }
        PsciCommand::AffinityInfo => {
            let input = AffinityInfo::from_registers(args(running));
            match input.check() {
                Ok(()) => target(here, input.target_affinity, PsciReturnCode::Success),
                Err(_) => Some(PsciReturnCode::InvalidParameters),
            }
        }
        _ => None,
    };
    running.advance();
    if let Some(code) = at_once {
        finish(&mut running.x, code);
        return Next::Realm;
    }
    record.exit_reason = RmiRecExitReason::Psci.bits();
    record.gprs[0] = command.fid().into();
    let count = command.inputs();
    record.gprs[1..=count].copy_from_slice(&running.x[1..=count]);
    // Bits that are no argument's.
    match command {
        PsciCommand::AffinityInfo => record.gprs[2] &= u64::from(u32::MAX),
        PsciCommand::CpuSuspend => record.gprs[1] &= u64::from(u32::MAX),
        _ => {}
    }
    let left = match command {
        PsciCommand::CpuOff => Left { off: Off::Rec, ..Left::PLAIN },
        PsciCommand::SystemOff | PsciCommand::SystemReset => Left { off: Off::Realm, ..Left::PLAIN },
        _ if command.needs_completion() => Left { pending: Pending::Psci(command), ..Left::PLAIN },
        _ => Left::PLAIN,
    };
    if left.pending == Pending::None {
        finish(&mut running.x, PsciReturnCode::Success);
    }
    Next::Host(left)
}

/// What can be said at once to a call that names a REC: `of_itself` if that is the caller.
fn target<W: World>(here: &Here<'_, W>, affinity: u64, of_itself: PsciReturnCode) -> Option<PsciReturnCode> {
    let Some(mpidr) = named_by_realm(affinity) else { return Some(PsciReturnCode::InvalidParameters) };
    if mpidr.index() == here.mpidr.index() {
        return Some(of_itself);
    }
    (!is_used(here, mpidr)).then_some(PsciReturnCode::InvalidParameters)
}

/// MpidrIsUsed (B3.24): a REC was created so. If it was destroyed since, it is the host who has taken it away.
fn is_used<W: World>(here: &Here<'_, W>, mpidr: RmiRecMpidr) -> bool {
    let lock = here.monitor.lock();
    here.realm(&lock).is_some_and(|realm| mpidr.index() < realm.rec_index.get())
}
