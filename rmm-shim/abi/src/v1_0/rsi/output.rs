//! The output values of the commands of the realm that have any beside the status in X0: X1 and above (DEN0137 B5.3).
//!
//! Invariant: a bit that is no value's is zero.

use super::{RsiCommand, RsiResponse, RsiRipas};

registers! {
    outputs of RsiCommand and MeasurementRead;
    /// Output values of RSI_ATTESTATION_TOKEN_CONTINUE (B5.3.1).
    AttestationTokenContinue[1] {
        /// Bytes written.
        len: u64,
    }
    /// Output values of RSI_ATTESTATION_TOKEN_INIT (B5.3.2).
    AttestationTokenInit[1] {
        /// The token has no more bytes than this.
        size: u64,
    }
    /// Output values of RSI_FEATURES (B5.3.3).
    Features[1] {
        /// 0 in 1.0, whatever the index.
        value: u64,
    }
    /// Output values of RSI_IPA_STATE_GET (B5.3.5).
    IpaStateGet[2] {
        /// End of the IPAs, from the base on, that have this RIPAS.
        out_top: u64,
        /// An [`RsiRipas`].
        ripas: u8 as RsiRipas,
    }
    /// Output values of RSI_IPA_STATE_SET (B5.3.6).
    IpaStateSet[2] {
        /// First IPA whose RIPAS was not changed.
        new_base: u64,
        /// Whether the host would.
        response: RsiResponse,
    }
    /// Output values of RSI_VERSION (B5.3.10): see [`negotiate`](crate::negotiate).
    Version[2] {
        /// Lower version.
        lower: crate::Version,
        /// Higher version.
        higher: crate::Version,
    }
}

/// Output values of RSI_MEASUREMENT_READ (B5.3.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeasurementRead {
    /// Doublewords of the measurement, zero above what the hash has.
    pub value: [u64; 8],
}

impl MeasurementRead {
    /// The command.
    pub const COMMAND: RsiCommand = RsiCommand::MeasurementRead;

    /// As they lie in X1 and above: any value is taken.
    pub fn from_registers(value: [u64; 8]) -> Self {
        Self { value }
    }

    /// X1 and above.
    pub fn to_registers(self) -> [u64; 8] {
        self.value
    }

    /// Tells each field.
    pub fn tell(&self, each: crate::words::Each<'_>) {
        each("value", &self.value);
    }
}

const _: () = assert!(RsiCommand::MeasurementRead.outputs() == 8);
