//! Versions of an interface, and how two sides find one that both know (DEN0137, chapter B2; RmiInterfaceVersion B4.4.9,
//! RsiInterfaceVersion B5.4.4, PsciInterfaceVersion B6.4.1).
//!
//! Invariant: versions compare as their encodings do.
//!
//! Compared: the specification 1.0, TF-RMM `smc-rmi.h`, `smc-rsi.h` and `version.c`, Linux `rmi_smc.h` and `rsi_smc.h`. They agree on the
//! encoding. To a request that it refuses TF-RMM tells its highest version as the lower one, also where one below the request is spoken.

use crate::Unknown;

/// A version `major.minor`. A larger minor version adds to what a smaller one has; another major version may be another interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// 15 bits; a larger one loses its top bit in [`bits`](Self::bits).
    pub major: u16,
    /// 16 bits.
    pub minor: u16,
}

impl Version {
    pub(crate) const MAX_MAJOR: u16 = 0x7fff;

    /// The major version in bits 30:16, the minor version in bits 15:0, zero above.
    pub const fn bits(self) -> u64 {
        ((self.major & Self::MAX_MAJOR) as u64) << 16 | self.minor as u64
    }

    /// The version that `bits` encode.
    ///
    /// # Errors
    ///
    /// [`Unknown`] if one of bits 63:31 is set: SMCCC's NOT_SUPPORTED is such a value.
    pub const fn from_bits(bits: u64) -> Result<Self, Unknown> {
        if bits >> 31 != 0 {
            return Err(Unknown(bits));
        }
        Ok(Self { major: (bits >> 16) as u16, minor: bits as u16 })
    }
}

/// The answer to RMI_VERSION and RSI_VERSION.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Negotiated {
    /// Whether the requested version is spoken. If not, the status is RMI_ERROR_INPUT or RSI_ERROR_INPUT.
    pub success: bool,
    /// The requested version; else the highest below it that is spoken; else the same as `higher`.
    pub lower: Version,
    /// The highest version that is spoken.
    pub higher: Version,
}

/// What is to be answered to the request in the register `requested`, by who speaks the versions `spoken`; nothing if that is none.
/// A request whose reserved bits are set is higher than any version.
pub fn negotiate(spoken: &[Version], requested: u64) -> Option<Negotiated> {
    let higher = *spoken.iter().max()?;
    let below = spoken.iter().filter(|version| version.bits() <= requested).max();
    let lower = *below.unwrap_or(&higher);
    Some(Negotiated { success: lower.bits() == requested, lower, higher })
}
