//! Statuses, enumerations and structures of the realm's interface (DEN0137 B5.4).
//!
//! Invariant: bytes of a structure without a name are zero on the way to the realm, and should be on the way from it.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::Register;

enumeration! {
    /// What X0 holds after a command of the realm (RsiCommandReturnCode, B5.4.1).
    RsiStatus: u64 {
        /// Success.
        Success = 0,
        /// An input value is wrong.
        ErrorInput = 1,
        /// The realm or the REC is not in the state that the command expects.
        ErrorState = 2,
        /// There is more to do: call again.
        Incomplete = 3,
        /// It failed for some reason.
        ErrorUnknown = 4,
    }
}

enumeration! {
    /// The realm hash algorithm (RsiHashAlgorithm, B5.4.2).
    RsiHashAlgorithm: u8 {
        /// SHA-256.
        Sha256 = 0,
        /// SHA-512.
        Sha512 = 1,
    }
}

enumeration! {
    /// Realm IPA state (RsiRipas, B5.4.7).
    RsiRipas: u8 {
        /// Nothing.
        Empty = 0,
        /// The realm's own code or data.
        Ram = 1,
        /// What was there, until the host took it away.
        Destroyed = 2,
        /// Memory of a device. No command of 1.0 makes it.
        Dev = 3,
    }
}

enumeration! {
    /// The host's answer (RsiResponse, B5.4.6): one bit.
    RsiResponse: u8 {
        /// Yes.
        Accept = 0,
        /// No.
        Reject = 1,
    }
}

impl Register for RsiResponse {
    fn from_register(bits: u64) -> Self {
        if bits & 1 == 0 { Self::Accept } else { Self::Reject }
    }
    fn to_register(self) -> u64 {
        self.bits().into()
    }
}

flags! {
    /// Flags of RSI_IPA_STATE_SET (RsiRipasChangeFlags B5.4.9, RsiRipasChangeDestroyed B5.4.8).
    RsiRipasChangeFlags {
        /// What the host has taken away may change too (RSI_CHANGE_DESTROYED).
        CHANGE_DESTROYED = 0,
    }
}

/// How the realm was made (B5.4.5), in a granule of its own.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct RsiRealmConfig {
    /// Bits of IPA.
    pub ipa_width: u64,
    /// An [`RsiHashAlgorithm`].
    pub hash_algo: u8,
    _unused0: [u8; 0x200 - 0x9],
    /// Realm Personalization Value.
    pub rpv: [u8; 64],
    _unused1: [u8; 0x1000 - 0x240],
}

layout!(RsiRealmConfig: 0x1000 { ipa_width: 0x0, hash_algo: 0x8, rpv: 0x200, });

/// What a realm says to the host and is told by it (B5.4.3), aligned as RSI_HOST_CALL demands: so it lies in one granule.
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(256))]
pub struct RsiHostCall {
    /// Chosen by the realm.
    pub imm: u16,
    _unused0: [u8; 6],
    /// X0 to X30, there and back.
    pub gprs: [u64; 31],
}

layout!(RsiHostCall: 0x100 { imm: 0x0, gprs: 0x8, });
