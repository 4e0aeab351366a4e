//! A realm execution context (REC), as its granule holds it (C1.19, A2.3).
//!
//! Invariant: while its state is [`RecState::Running`] its vCPU is the running CPU's alone; all else of it, and that otherwise, is
//! looked at and changed with the monitor's lock only.

use core::cell::{Cell, RefCell};

use hyp::el2::vcpu::Vcpu;
use hyp::mapping::Pa;
use rmm_abi::v1_0::RmmRipas;
use rmm_abi::v1_0::psci::PsciCommand;
use rmm_abi::v1_0::rmi::{RmiRecMpidr, RmiResponse};

/// RmmRecState.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecState {
    /// It does not run.
    Ready,
    /// A CPU runs it.
    Running,
}

/// What the realm has asked for and the host has to do before, or when, it enters the REC again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pending {
    /// Nothing.
    None,
    /// The host's answer to a call at this IPA (HOST_CALL_PENDING).
    HostCall(u64),
    /// RMI_PSCI_COMPLETE (PSCI_REQUEST_PENDING).
    Psci(PsciCommand),
    /// The outcome of RSI_IPA_STATE_SET: told to the realm at the next entry.
    RipasChange,
}

/// A RIPAS change that the realm has asked for (A5.4): `ripas_addr` to `ripas_value` and `ripas_destroyed` of RmmRec.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RipasChange {
    /// How far it has come.
    pub addr: u64,
    /// Its end.
    pub top: u64,
    /// What it shall be.
    pub value: RmmRipas,
    /// Whether what the host has taken away may change too.
    pub destroyed: bool,
    /// The host's answer.
    pub response: RmiResponse,
}

/// RmmRec (C1.19).
#[derive(Debug)]
pub struct Rec {
    /// The descriptor of its realm.
    pub owner: Pa,
    /// Whether a CPU runs it.
    pub state: Cell<RecState>,
    /// Whether it may be entered.
    pub runnable: Cell<bool>,
    /// By what the realm knows it.
    pub mpidr: RmiRecMpidr,
    /// What the host owes it.
    pub pending: Cell<Pending>,
    /// The syndrome of the last exit if that was due to an emulatable data abort (A4.3).
    pub emulatable_abort: Cell<Option<u64>>,
    /// The last RIPAS change.
    pub ripas: Cell<RipasChange>,
    /// Its registers.
    pub vcpu: RefCell<Vcpu>,
}
