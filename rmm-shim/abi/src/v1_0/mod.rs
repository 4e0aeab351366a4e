//! Version 1.0 of RMI and RSI (DEN0137 1.0-rel0).
//!
//! Invariant: names, encodings and offsets are the specification's; each stands in one place, with the section that gives it. A name begins
//! with `Rmi`, `Rsi`, `Psci` for what is encoded, with `Rmm` for what the specification models only.
//!
//! Each constant was compared between the text of the specification and at least one implementation of it; each module says which, and
//! where they differ. The implementations: TF-RMM (`lib/smc/include/smc-rmi.h` and `smc-rsi.h` before RMI 2.0, `runtime/`,
//! `lib/measurement`, `lib/s2tt`, `lib/gic`), Linux (`rsi_smc.h` and `rsi_cmds.h` of the mainline, `rmi_smc.h` and `rmi_cmds.h` of the KVM
//! series that names 1.0-rel0), EDK2's `ArmCcaRsiLib.h`, Arm's `cca-realm-measurements`, Islet's RMM (of an earlier draft: its differences
//! are only noted).

mod address;
mod measurement;
pub mod psci;
pub mod rmi;
mod rmm;
pub mod rsi;

pub use address::{
    GRANULE_SIZE, PAGE_LEVEL, RTT_LEVELS, entry_size, is_granule_aligned, is_level_aligned, is_protected,
    is_range_protected, starting_rtts,
};
pub use measurement::{
    MEASUREMENTS, Measurement, RmmMeasurementDescriptorData, RmmMeasurementDescriptorRec,
    RmmMeasurementDescriptorRipas, bytes, doublewords,
};
pub use rmm::{RmmHipas, RmmRipas, RmmRttEntryState};

use core::fmt;

use crate::Version;

/// The version of RMI (B4.1) and of RSI (B5.1).
pub const VERSION: Version = Version { major: 1, minor: 0 };

/// What a caller finds in X0 if there is no such interface or command (SMCCC NOT_SUPPORTED, -1).
pub const NOT_SUPPORTED: u64 = u64::MAX;

/// Separates W0 into a function identifier and the caller's hint that no SVE state needs to be preserved (SMCCC 1.3, bit 16).
pub const fn split_sve_hint(w0: u32) -> (u32, bool) {
    const SVE_HINT: u32 = 1 << 16;
    (w0 & !SVE_HINT, w0 & SVE_HINT != 0)
}

/// A failure condition that input values fulfil by themselves, whatever the state of the RMM. The command then fails with
/// RMI_ERROR_INPUT, RSI_ERROR_INPUT or PSCI_INVALID_PARAMETERS.
///
/// No ordering of the specification puts a condition that needs state before one of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailureCondition {
    /// Its ID in the command's table of failure conditions.
    pub id: &'static str,
    /// The value that fulfils it.
    pub value: u64,
}

impl FailureCondition {
    const fn unless(holds: bool, id: &'static str, value: u64) -> Result<(), Self> {
        if holds { Ok(()) } else { Err(Self { id, value }) }
    }

    /// Unless `value` is the address of a granule.
    const fn unless_granule(id: &'static str, value: u64) -> Result<(), Self> {
        Self::unless(is_granule_aligned(value), id, value)
    }
}

impl fmt::Display for FailureCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:#x}", self.id, self.value)
    }
}

impl core::error::Error for FailureCondition {}

/// A structure of 4096 bytes that lies in a granule of its own, as those must whose address is passed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4096))]
pub struct Granule<T>(pub T);
