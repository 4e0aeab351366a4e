//! A realm, as its descriptor holds it (C1.16, A2.1).
//!
//! Invariant: what a realm was created with does not change; what changes does so with the monitor's lock only.

use core::cell::{Cell, RefCell};

use hyp::mapping::{Map, Mmu, Pa, Stage2};
use hyp::stage2::Registers;
use rmm_abi::v1_0::rmi::RmiHashAlgorithm;
use rmm_abi::v1_0::{MEASUREMENTS, Measurement, is_protected};

use crate::world::Party;

/// Realms that there can be at once: an entry of a list each, in the hypervisor's memory.
pub const MAX_REALMS: usize = 64;

/// RmmRealmState (C1.18).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RealmState {
    /// Under construction.
    New,
    /// Its RECs may run.
    Active,
    /// It has turned itself off.
    SystemOff,
}

/// RmmRealm (C1.16).
#[derive(Debug)]
pub struct Realm<M: Mmu> {
    /// Where this is.
    pub rd: Pa,
    /// Its number here: 1 and up, that of no other realm; the hardware's VMID.
    pub number: u16,
    /// Its lifecycle.
    pub state: Cell<RealmState>,
    /// Bits of IPA.
    pub ipa_width: u32,
    /// With what it is measured.
    pub hash_algo: RmiHashAlgorithm,
    /// The RIM and the REMs.
    pub measurements: RefCell<[Measurement; MEASUREMENTS]>,
    /// Index of the next REC.
    pub rec_index: Cell<u64>,
    /// Whether it has asked RSI_VERSION.
    pub knows_rsi: Cell<bool>,
    /// RECs that it has.
    pub num_recs: Cell<u64>,
    /// First RTT of the starting level.
    pub rtt_base: Pa,
    /// The starting level.
    pub rtt_level_start: i64,
    /// RTTs of the starting level.
    pub rtt_num_start: u32,
    /// The host's name for it.
    pub vmid: u16,
    /// Realm Personalization Value.
    pub rpv: [u8; 64],
    /// Its stage 2.
    pub map: Map<Stage2, M>,
    /// What puts that under a vCPU.
    pub registers: Registers,
}

impl<M: Mmu> Realm<M> {
    /// For calls about ownership.
    pub fn party(&self) -> Party<'_, M> {
        Party { number: self.number, map: &self.map }
    }

    /// Whether `ipa` is in the lower half of its address space (B3.4).
    pub fn is_protected(&self, ipa: u64) -> bool {
        is_protected(ipa, self.ipa_width)
    }

    /// Whether `ipa` is an address of it at all.
    pub fn has_ipa(&self, ipa: u64) -> bool {
        ipa >> self.ipa_width == 0
    }
}
