//! The input values of each command of the realm, X1 and above, and those of its failure conditions that depend on them alone (DEN0137
//! B5.3).
//!
//! Invariant: any registers give a value; a condition bears the ID that the command's section gives it.

use super::{RsiCommand, RsiRipas, RsiRipasChangeFlags};
use crate::v1_0::{FailureCondition, GRANULE_SIZE, MEASUREMENTS, Measurement, bytes};

registers! {
    inputs of RsiCommand and AttestationTokenInit, MeasurementExtend;
    /// Input values of RSI_ATTESTATION_TOKEN_CONTINUE (B5.3.1).
    AttestationTokenContinue[3] {
        /// IPA of the granule to which the token is written.
        addr: u64,
        /// Where in it to begin, in bytes.
        offset: u64,
        /// How much at most, in bytes.
        size: u64,
    }
    /// Input values of RSI_FEATURES (B5.3.3).
    Features[1] {
        /// Of the feature register.
        index: u64,
    }
    /// Input values of RSI_HOST_CALL (B5.3.4).
    HostCall[1] {
        /// IPA of the [`RsiHostCall`](super::RsiHostCall).
        addr: u64,
    }
    /// Input values of RSI_IPA_STATE_GET (B5.3.5).
    IpaStateGet[2] {
        /// First IPA of the range.
        base: u64,
        /// Its end.
        top: u64,
    }
    /// Input values of RSI_IPA_STATE_SET (B5.3.6).
    IpaStateSet[4] {
        /// First IPA of the range.
        base: u64,
        /// Its end.
        top: u64,
        /// An [`RsiRipas`].
        ripas: u8 as RsiRipas,
        /// Flags.
        flags: RsiRipasChangeFlags,
    }
    /// Input values of RSI_MEASUREMENT_READ (B5.3.8).
    MeasurementRead[1] {
        /// 0 for the RIM, 1 to 4 for a REM.
        index: u64,
    }
    /// Input values of RSI_REALM_CONFIG (B5.3.9).
    RealmConfig[1] {
        /// IPA of the granule to which an [`RsiRealmConfig`](super::RsiRealmConfig) is written.
        addr: u64,
    }
    /// Input values of RSI_VERSION (B5.3.10).
    Version[1] {
        /// The version that the realm would speak: see [`negotiate`](crate::negotiate).
        req: u64,
    }
}

/// Input values of RSI_ATTESTATION_TOKEN_INIT (B5.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttestationTokenInit {
    /// Doublewords of the challenge.
    pub challenge: [u64; 8],
}

impl AttestationTokenInit {
    /// The command.
    pub const COMMAND: RsiCommand = RsiCommand::AttestationTokenInit;

    /// As they lie in X1 and above: any value is taken.
    pub fn from_registers(challenge: [u64; 8]) -> Self {
        Self { challenge }
    }

    /// X1 and above.
    pub fn to_registers(self) -> [u64; 8] {
        self.challenge
    }

    /// Tells each field.
    pub fn tell(&self, each: crate::words::Each<'_>) {
        each("challenge", &self.challenge);
    }
}

/// Input values of RSI_MEASUREMENT_EXTEND (B5.3.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeasurementExtend {
    /// 1 to 4.
    pub index: u64,
    /// Bytes of the value.
    pub size: u64,
    /// Its doublewords.
    pub value: [u64; 8],
}

impl MeasurementExtend {
    /// The command.
    pub const COMMAND: RsiCommand = RsiCommand::MeasurementExtend;

    /// As they lie in X1 and above: any value is taken.
    pub fn from_registers([index, size, value @ ..]: [u64; 10]) -> Self {
        Self { index, size, value }
    }

    /// X1 and above.
    pub fn to_registers(self) -> [u64; 10] {
        let [v0, v1, v2, v3, v4, v5, v6, v7] = self.value;
        [self.index, self.size, v0, v1, v2, v3, v4, v5, v6, v7]
    }

    /// Tells each field.
    pub fn tell(&self, each: crate::words::Each<'_>) {
        each("index", &self.index);
        each("size", &self.size);
        each("value", &self.value);
    }

    /// The value with the bytes from `size` on zeroed, as a REM is extended by it (B3.42).
    pub fn padded(&self) -> Measurement {
        let mut value = bytes(&self.value);
        let size = usize::try_from(self.size).unwrap_or(usize::MAX);
        value.iter_mut().skip(size).for_each(|byte| *byte = 0);
        value
    }

    /// The failure conditions that depend on the input values alone.
    ///
    /// # Errors
    ///
    /// index_bound, size_bound.
    pub fn check(&self) -> Result<(), FailureCondition> {
        let is_rem = self.index >= 1 && self.index < MEASUREMENTS as u64;
        FailureCondition::unless(is_rem, "index_bound", self.index)?;
        FailureCondition::unless(self.size <= size_of::<Measurement>() as u64, "size_bound", self.size)
    }
}

const _: () = assert!(RsiCommand::AttestationTokenInit.inputs() == 8);
const _: () = assert!(RsiCommand::MeasurementExtend.inputs() == 10);

impl AttestationTokenContinue {
    /// The failure conditions that depend on the input values alone.
    ///
    /// # Errors
    ///
    /// addr_align, offset_bound, size_overflow, size_bound.
    pub fn check(&self) -> Result<(), FailureCondition> {
        FailureCondition::unless_granule("addr_align", self.addr)?;
        FailureCondition::unless(self.offset < GRANULE_SIZE, "offset_bound", self.offset)?;
        let end = self.offset.checked_add(self.size);
        FailureCondition::unless(end.is_some(), "size_overflow", self.size)?;
        FailureCondition::unless(end.is_some_and(|end| end <= GRANULE_SIZE), "size_bound", self.size)
    }
}

impl HostCall {
    /// The failure condition that depends on the input values alone.
    ///
    /// # Errors
    ///
    /// addr_align.
    pub fn check(&self) -> Result<(), FailureCondition> {
        FailureCondition::unless(self.addr.is_multiple_of(256), "addr_align", self.addr)
    }
}

impl IpaStateGet {
    /// The failure conditions that depend on the input values alone.
    ///
    /// # Errors
    ///
    /// base_align, end_align, size_valid.
    pub fn check(&self) -> Result<(), FailureCondition> {
        FailureCondition::unless_granule("base_align", self.base)?;
        FailureCondition::unless_granule("end_align", self.top)?;
        FailureCondition::unless(self.base < self.top, "size_valid", self.top)
    }
}

impl IpaStateSet {
    /// The failure conditions that depend on the input values alone.
    ///
    /// # Errors
    ///
    /// base_align, top_align, size_valid, ripas_valid.
    pub fn check(&self) -> Result<(), FailureCondition> {
        FailureCondition::unless_granule("base_align", self.base)?;
        FailureCondition::unless_granule("top_align", self.top)?;
        FailureCondition::unless(self.base < self.top, "size_valid", self.top)?;
        let ripas = RsiRipas::from_bits(self.ripas);
        let is_valid = matches!(ripas, Ok(RsiRipas::Empty | RsiRipas::Ram));
        FailureCondition::unless(is_valid, "ripas_valid", self.ripas.into())
    }
}

impl MeasurementRead {
    /// The failure condition that depends on the input values alone.
    ///
    /// # Errors
    ///
    /// index_bound.
    pub fn check(&self) -> Result<(), FailureCondition> {
        FailureCondition::unless(self.index < MEASUREMENTS as u64, "index_bound", self.index)
    }
}

impl RealmConfig {
    /// The failure condition that depends on the input values alone.
    ///
    /// # Errors
    ///
    /// addr_align.
    pub fn check(&self) -> Result<(), FailureCondition> {
        FailureCondition::unless_granule("addr_align", self.addr)
    }
}
