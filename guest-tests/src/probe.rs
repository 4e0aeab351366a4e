//! Accesses that may fault, and what the hypervisor's refusal of one must look like.

use core::sync::atomic::Ordering::Relaxed;

use crate::entry::{self, Cpu};
use crate::memory::View;

const EC_SVC: u64 = 0x15;
const EC_INSTRUCTION_ABORT: u64 = 0x20;
const EC_DATA_ABORT: u64 = 0x24;
const FSC_EXTERNAL: u64 = 0x10;
const WNR: u64 = 1 << 6;

/// How memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A load.
    Load,
    /// A store.
    Store,
    /// An instruction fetch.
    Fetch,
}

/// What EL1 was told of a fault.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// `ESR_EL1`.
    pub esr: u64,
    /// `FAR_EL1`.
    pub far: u64,
    /// `ELR_EL1`.
    pub elr: u64,
    /// `SPSR_EL1`.
    pub spsr: u64,
}

/// Accesses physical address `pa` in `view` (EL0's are accessed at EL0): the fault, or nothing if it went through.
pub fn probe(view: View, kind: Kind, pa: u64) -> Option<Fault> {
    let address = view.of(pa);
    let user = |code: *const u8| View::UserCode.of(code as u64);
    // SAFETY: whatever the access does is caught, or harmless: stores go to memory that is forbidden or unused.
    let faulted = unsafe {
        match (view, kind) {
            (View::Data | View::Code, Kind::Load) => entry::probe_load(address),
            (View::Data | View::Code, Kind::Store) => entry::probe_store(address),
            (View::Data | View::Code, Kind::Fetch) => entry::probe_fetch(address, 0),
            (_, Kind::Load) => entry::probe_user(user(&raw const entry::user_load), address),
            (_, Kind::Store) => entry::probe_user(user(&raw const entry::user_store), address),
            (_, Kind::Fetch) => entry::probe_user(user(&raw const entry::user_fetch), address),
        }
    };
    let [esr, far, elr, spsr] = [0, 1, 2, 3].map(|field| Cpu::this().fault[field].load(Relaxed));
    (faulted != 0 && esr >> 26 != EC_SVC).then_some(Fault { esr, far, elr, spsr })
}

/// Whether `fault` is what an access of `kind` in `view` to forbidden memory must end in.
pub fn is_refusal(fault: Option<Fault>, view: View, kind: Kind, address: u64) -> bool {
    let Some(Fault { esr, far, elr, spsr }) = fault else { return false };
    let user = matches!(view, View::UserData | View::UserCode);
    let class = if kind == Kind::Fetch { EC_INSTRUCTION_ABORT } else { EC_DATA_ABORT } + u64::from(!user);
    let level = if user { 0 } else { 0b0101 };
    let wnr = if kind == Kind::Store { WNR } else { 0 };
    // A fetch faults at its target; the others in the probe, in the page of EL0's code or in ours.
    let at = if kind == Kind::Fetch { elr == address } else { elr != address };
    // Class, 32-bit instruction, and nothing in the ISS but what is the host's to know.
    esr == class << 26 | 1 << 25 | wnr | FSC_EXTERNAL && far == address && at && spsr & 0x1f == level
}
