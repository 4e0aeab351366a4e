//! What X0 holds after a command of the host (DEN0137 B4.2, RmiCommandReturnCode B4.4.1, RmiStatusCode B4.4.25).
//!
//! Invariant: a status has an index only where the specification gives it a meaning.
//!
//! Compared: B4.4.1, B4.4.25; TF-RMM `smc-rmi.h` and `status.h` (`pack_return_code`); Linux `RMI_RETURN_STATUS`, `RMI_RETURN_INDEX`. They
//! agree; later codes of TF-RMM (5 and up) are not of 1.0. Islet's 5 to 7 are its own.

use crate::Unknown;

enumeration! {
    /// Why a command failed, without the index (RmiStatusCode, B4.4.25).
    RmiStatusCode: u8 {
        /// Success.
        Success = 0,
        /// An input value is wrong.
        ErrorInput = 1,
        /// An attribute of the realm is not as it must be.
        ErrorRealm = 2,
        /// An attribute of the REC is not as it must be.
        ErrorRec = 3,
        /// An RTT walk ended too early, or at an entry that is not as it must be.
        ErrorRtt = 4,
    }
}

/// Code and index (RmiCommandReturnCode): the code in bits 7:0, the index in bits 15:8, zero above.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RmiStatus {
    /// RMI_SUCCESS.
    Success,
    /// RMI_ERROR_INPUT.
    ErrorInput,
    /// RMI_ERROR_REALM. The index is 0 but for RMI_REC_ENTER of a realm that is off: 1.
    ErrorRealm(u8),
    /// RMI_ERROR_REC.
    ErrorRec,
    /// RMI_ERROR_RTT. The index is the level at which the walk ended, level -1 being 0xff.
    ErrorRtt(u8),
}

impl RmiStatus {
    /// RMI_ERROR_RTT at `level`, of which the low 8 bits are told.
    pub const fn rtt(level: i64) -> Self {
        Self::ErrorRtt(level as u8)
    }

    /// Its code.
    pub const fn code(self) -> RmiStatusCode {
        match self {
            Self::Success => RmiStatusCode::Success,
            Self::ErrorInput => RmiStatusCode::ErrorInput,
            Self::ErrorRealm(_) => RmiStatusCode::ErrorRealm,
            Self::ErrorRec => RmiStatusCode::ErrorRec,
            Self::ErrorRtt(_) => RmiStatusCode::ErrorRtt,
        }
    }

    /// Its index, 0 where it has none.
    pub const fn index(self) -> u8 {
        match self {
            Self::ErrorRealm(index) | Self::ErrorRtt(index) => index,
            Self::Success | Self::ErrorInput | Self::ErrorRec => 0,
        }
    }

    /// Its encoding.
    pub const fn bits(self) -> u64 {
        (self.index() as u64) << 8 | self.code().bits() as u64
    }

    /// The status that X0 = `bits` encodes.
    ///
    /// # Errors
    ///
    /// [`Unknown`] if the code is, if an index stands where none has a meaning, or if a bit above is set: SMCCC's NOT_SUPPORTED is such a
    /// value.
    pub const fn from_bits(bits: u64) -> Result<Self, Unknown> {
        let index = (bits >> 8) as u8;
        let status = match RmiStatusCode::from_bits(bits as u8) {
            Ok(RmiStatusCode::Success) => Self::Success,
            Ok(RmiStatusCode::ErrorInput) => Self::ErrorInput,
            Ok(RmiStatusCode::ErrorRealm) => Self::ErrorRealm(index),
            Ok(RmiStatusCode::ErrorRec) => Self::ErrorRec,
            Ok(RmiStatusCode::ErrorRtt) => Self::ErrorRtt(index),
            Err(_) => return Err(Unknown(bits)),
        };
        if status.bits() == bits { Ok(status) } else { Err(Unknown(bits)) }
    }
}
