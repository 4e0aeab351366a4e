//! What the host wants of a realm (DEN0137 RmiRealmFlags B4.4.11, RmiRealmParams B4.4.12, RMI_REALM_CREATE B4.3.9).
//!
//! Invariant: of the 4096 bytes those without a name should be zero and are not looked at.
//!
//! Compared: B4.4.12; TF-RMM `smc-rmi.h`; Linux `rmi_smc.h`; `cca-realm-measurements` for what is measured. The offsets agree, the widths
//! do not. A number of 8 bits here is read with 32 by TF-RMM (hash_algo with 8) and written with 64 by Linux; vmid and rtt_num_start have
//! 64 in Linux too. It is the same as long as the bytes above are zero. Islet's is of an earlier draft, with the features in one word and
//! the RPV measured.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::RmiHashAlgorithm;
use crate::v1_0::{FailureCondition, GRANULE_SIZE, starting_rtts};

flags! {
    /// Flags of a realm (B4.4.11).
    RmiRealmFlags {
        /// Its tables use LPA2.
        LPA2 = 0,
        /// It has SVE.
        SVE = 1,
        /// It has a PMU.
        PMU = 2,
    }
}

/// Parameters of a realm, in a granule of the host's.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct RmiRealmParams {
    /// Flags.
    pub flags: RmiRealmFlags,
    /// Bits of IPA.
    pub s2sz: u8,
    _unused0: [u8; 7],
    /// Length of SVE vectors, in 128 bits, minus one.
    pub sve_vl: u8,
    _unused1: [u8; 7],
    /// Breakpoints, minus one; 0 is reserved.
    pub num_bps: u8,
    _unused2: [u8; 7],
    /// Watchpoints, minus one; 0 is reserved.
    pub num_wps: u8,
    _unused3: [u8; 7],
    /// PMU counters.
    pub pmu_num_ctrs: u8,
    _unused4: [u8; 7],
    /// An [`RmiHashAlgorithm`].
    pub hash_algo: u8,
    _unused5: [u8; 0x400 - 0x31],
    /// Realm Personalization Value.
    pub rpv: [u8; 64],
    _unused6: [u8; 0x800 - 0x440],
    /// Virtual Machine Identifier.
    pub vmid: u16,
    _unused7: [u8; 6],
    /// PA of the first RTT of the starting level.
    pub rtt_base: u64,
    /// The starting level.
    pub rtt_level_start: i64,
    /// The number of RTTs of the starting level.
    pub rtt_num_start: u32,
    _unused8: [u8; 0x1000 - 0x81c],
}

layout!(RmiRealmParams: 0x1000 {
    flags: 0x0, s2sz: 0x8, sve_vl: 0x10, num_bps: 0x18, num_wps: 0x20, pmu_num_ctrs: 0x28, hash_algo: 0x30,
    rpv: 0x400, vmid: 0x800, rtt_base: 0x808, rtt_level_start: 0x810, rtt_num_start: 0x818,
});

impl RmiRealmParams {
    /// The failure conditions of RMI_REALM_CREATE for a realm descriptor at the PA `rd` that depend on input values alone.
    /// What the RMM supports (params_supp) is not among them.
    ///
    /// # Errors
    ///
    /// params_valid, rtt_num_level, rtt_align, alias.
    pub fn check(&self, rd: u64) -> Result<(), FailureCondition> {
        let algorithm = RmiHashAlgorithm::from_bits(self.hash_algo);
        FailureCondition::unless(algorithm.is_ok(), "params_valid", self.hash_algo.into())?;
        let lpa2 = self.flags.contains(RmiRealmFlags::LPA2);
        let expected = starting_rtts(self.s2sz.into(), self.rtt_level_start, lpa2);
        let (base, number) = (self.rtt_base, self.rtt_num_start);
        FailureCondition::unless(expected == Some(number), "rtt_num_level", number.into())?;
        let size = u64::from(number) * GRANULE_SIZE;
        FailureCondition::unless(base.is_multiple_of(size), "rtt_align", base)?;
        // Aligned to its size, the range does not wrap.
        FailureCondition::unless(rd < base || rd > base + (size - GRANULE_SIZE), "alias", rd)
    }

    /// What of it is hashed into the RIM (B4.3.9.4): the rest is zero.
    pub fn measured(&self) -> Self {
        Self {
            flags: self.flags,
            s2sz: self.s2sz,
            sve_vl: self.sve_vl,
            num_bps: self.num_bps,
            num_wps: self.num_wps,
            pmu_num_ctrs: self.pmu_num_ctrs,
            hash_algo: self.hash_algo,
            ..Self::zeroed()
        }
    }
}
