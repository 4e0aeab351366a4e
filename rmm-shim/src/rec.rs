//! A realm execution context (REC), as its granule holds it (C1.19, A2.3).
//!
//! Invariant: while its state is [`RecState::Running`] its vCPU and its auxiliary granule are the running CPU's alone; all else of it, and those otherwise, is
//! looked at and changed with the monitor's lock only. A REC that is not runnable, or to which the host owes something, does not run.

use core::cell::{Cell, RefCell};

use hyp::el2::vcpu::Vcpu;
use hyp::mapping::Pa;
use rmm_abi::v1_0::psci::PsciCommand;
use rmm_abi::v1_0::rmi::{RmiRecMpidr, RmiResponse};
use rmm_abi::v1_0::{RmmRipas, rsi::RsiResponse};

use crate::mmio::Aborted;

/// log2 of one more than the RECs that a realm can have (RmiFeatureRegister0.MAX_RECS_ORDER).
pub const MAX_RECS_ORDER: u32 = 9;

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

impl RipasChange {
    /// None: RMI_RTT_SET_RIPAS finds no range in it.
    pub const NONE: Self =
        Self { addr: 0, top: 0, value: RmmRipas::Empty, destroyed: false, response: RmiResponse::Accept };

    /// What the realm is told of it (RecRipasChangeResponse, B3.40).
    pub fn outcome(&self) -> RsiResponse {
        let is_refused =
            self.value == RmmRipas::Ram && self.addr != self.top && self.response == RmiResponse::Reject;
        if is_refused { RsiResponse::Reject } else { RsiResponse::Accept }
    }
}

/// RmmRec (C1.19).
#[derive(Debug)]
pub struct Rec {
    /// The descriptor of its realm.
    pub owner: Pa,
    /// Its auxiliary granule, which holds the attestation token that it fetches.
    pub aux: Pa,
    /// Whether a CPU runs it.
    pub state: Cell<RecState>,
    /// Whether it may be entered.
    pub runnable: Cell<bool>,
    /// By what the realm knows it.
    pub mpidr: RmiRecMpidr,
    /// What the host owes it.
    pub pending: Cell<Pending>,
    /// What the last exit was due to, if that was a data abort at an unprotected IPA (A4.2.3, A4.3.4.3).
    pub abort: Cell<Option<Aborted>>,
    /// The last RIPAS change.
    pub ripas: Cell<RipasChange>,
    /// Its registers.
    pub vcpu: RefCell<Vcpu>,
}

/// `MPIDR_EL1` bit 31, RES1.
const MPIDR_RES1: u64 = 1 << 31;
/// `MPIDR_EL1`: Aff2 to Aff0 in bits 23:0, Aff3 in 39:32.
const MPIDR_LOW: u64 = 0xff_ffff;
const MPIDR_AFF3_SHIFT: u32 = 32;

/// `MPIDR_EL1` of the REC that the host names so (A2.3.3).
pub fn mpidr_el1(mpidr: RmiRecMpidr) -> u64 {
    let low = RmiRecMpidr::from_index(mpidr.index()).bits() & MPIDR_LOW;
    MPIDR_RES1 | mpidr.aff3() << MPIDR_AFF3_SHIFT | low
}

/// Which REC the affinity fields of an `MPIDR_EL1` name, if they can name one: PSCI has all other bits zero.
pub fn named_by_realm(affinity: u64) -> Option<RmiRecMpidr> {
    let aff3 = affinity >> MPIDR_AFF3_SHIFT;
    let mpidr = RmiRecMpidr::from_bits(affinity & MPIDR_LOW);
    let fits = affinity & !(MPIDR_LOW | 0xff << MPIDR_AFF3_SHIFT) == 0 && mpidr.reserved() == 0;
    fits.then(|| mpidr.with_aff3(aff3))
}

impl Rec {
    /// One that has not run yet.
    pub fn new(owner: Pa, aux: Pa, mpidr: RmiRecMpidr, runnable: bool, vcpu: Vcpu) -> Self {
        Self {
            owner,
            aux,
            state: Cell::new(RecState::Ready),
            runnable: Cell::new(runnable),
            mpidr,
            pending: Cell::new(Pending::None),
            abort: Cell::new(None),
            ripas: Cell::new(RipasChange::NONE),
            vcpu: RefCell::new(vcpu),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_realm_knows_a_rec_by_its_mpidr_and_names_it_so() {
        for index in [0, 1, 15, 16, 0xfff, 0x1000, 0xf_ffff, 0x10_0000, 0xfff_ffff] {
            let mpidr = RmiRecMpidr::from_index(index);
            let told = mpidr_el1(mpidr);
            assert_eq!(told & MPIDR_RES1, MPIDR_RES1);
            assert_eq!(named_by_realm(told & !MPIDR_RES1), Some(mpidr), "{index:#x}");
        }
        for none in [0x10, 0xf0, 1 << 24, 1 << 31, 1 << 40, u64::MAX] {
            assert_eq!(named_by_realm(none), None, "{none:#x}");
        }
    }

    #[test]
    fn only_a_change_to_ram_that_is_not_done_can_be_refused() {
        let refused = RipasChange {
            addr: 0x1000,
            top: 0x2000,
            value: RmmRipas::Ram,
            destroyed: false,
            response: RmiResponse::Reject,
        };
        assert_eq!(refused.outcome(), RsiResponse::Reject);
        for other in [
            RipasChange { addr: 0x2000, ..refused },
            RipasChange { value: RmmRipas::Empty, ..refused },
            RipasChange { response: RmiResponse::Accept, ..refused },
        ] {
            assert_eq!(other.outcome(), RsiResponse::Accept);
        }
    }
}
