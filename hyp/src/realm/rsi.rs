//! The Realm Services Interface as typed calls (DEN0137 B5.3).
//!
//! Invariant: an answer is one that the specification allows, or an error that holds what it was.
//!
//! Structures are passed by IPA. Who calls has its memory mapped at a fixed distance from that.

use core::fmt;
use core::marker::PhantomData;

use rmm_abi::v1_0::rsi::{
    RsiCommand, RsiHashAlgorithm, RsiHostCall, RsiRealmConfig, RsiResponse, RsiRipas, RsiRipasChangeFlags,
    RsiStatus, input, output,
};
use rmm_abi::v1_0::{GRANULE_SIZE, Granule, Measurement, NOT_SUPPORTED, VERSION, doublewords};
use rmm_abi::{Unknown, Version};
use smccc::Call;

use crate::mapping::addr::ADDRESS_BITS;
use crate::mapping::{Address, Pa, Range};

/// Why a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RsiError {
    /// The monitor does not know the command.
    NotSupported,
    /// The monitor says why: [`RsiStatus::ErrorInput`], [`RsiStatus::ErrorState`] or [`RsiStatus::ErrorUnknown`].
    Status(RsiStatus),
    /// The monitor says what the specification does not have.
    Unknown(u64),
}

impl fmt::Display for RsiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotSupported => write!(f, "the monitor does not know the command"),
            Self::Status(status) => write!(f, "the monitor answers {status:?}"),
            Self::Unknown(value) => {
                write!(f, "the monitor answers {value:#x}, which the specification does not have")
            }
        }
    }
}

impl core::error::Error for RsiError {}

impl From<Unknown> for RsiError {
    fn from(unknown: Unknown) -> Self {
        Self::Unknown(unknown.0)
    }
}

/// Why there is no monitor to talk to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoRealm {
    /// Nobody answers: this is no realm.
    NoInterface,
    /// The monitor speaks other versions.
    Version {
        /// The highest below the one asked for.
        lower: Version,
        /// The highest.
        higher: Version,
    },
    /// It says what the specification does not have.
    Unknown(u64),
}

impl fmt::Display for NoRealm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoInterface => write!(f, "this is no realm"),
            Self::Version { lower, higher } => {
                write!(f, "the monitor speaks versions {lower:?} and {higher:?}, not {VERSION:?}")
            }
            Self::Unknown(value) => {
                write!(f, "the monitor answers {value:#x}, which the specification does not have")
            }
        }
    }
}

impl core::error::Error for NoRealm {}

/// How the realm was made (B5.4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Bits of IPA, the top one of which says that an address is shared: 32 to 48.
    ipa_width: u32,
    /// The realm hash algorithm.
    pub hash: RsiHashAlgorithm,
    /// Realm Personalization Value.
    pub rpv: [u8; 64],
}

impl Config {
    /// Of a realm with so many bits of IPA: 32 to 48.
    ///
    /// # Errors
    /// [`RsiError::Unknown`] with another width.
    pub const fn new(ipa_width: u32, hash: RsiHashAlgorithm, rpv: [u8; 64]) -> Result<Self, RsiError> {
        // Less than 32 bits no monitor makes, and more than 48 need FEAT_LPA2.
        if ipa_width < 32 || ipa_width > ADDRESS_BITS {
            return Err(RsiError::Unknown(ipa_width as u64));
        }
        Ok(Self { ipa_width, hash, rpv })
    }

    /// Bits of IPA.
    pub const fn ipa_width(&self) -> u32 {
        self.ipa_width
    }

    /// The number of the bit of an IPA that says that it is shared (A5.2.1).
    pub const fn shared_bit(&self) -> u32 {
        self.ipa_width - 1
    }

    /// Whether all of `range` is protected, wherever it begins.
    pub fn is_protected(&self, range: Range<Pa>) -> bool {
        range.end() <= 1 << self.shared_bit()
    }

    /// The same range where it is shared, if it is protected: what the host fills, or the registers of a device that it plays.
    pub fn alias(&self, range: Range<Pa>) -> Option<Range<Pa>> {
        let start = range.start().get() | 1 << self.shared_bit();
        self.is_protected(range).then(|| Range::new(start, range.size()).ok()).flatten()
    }
}

/// How far a change of RIPAS has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RipasChange {
    /// The first address that was not changed: within the range, or its end.
    pub new_base: u64,
    /// Whether the host would.
    pub response: RsiResponse,
}

/// A part of an attestation token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Bytes that were written.
    pub len: u64,
    /// Whether it was the last.
    pub is_complete: bool,
}

/// The monitor, reached by the conduit `C` (SMC in a realm).
pub struct Rsi<C> {
    /// An IPA minus the address where the caller has it (wrapping).
    offset: u64,
    conduit: PhantomData<fn() -> C>,
}

impl<C> Clone for Rsi<C> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<C> Copy for Rsi<C> {}

impl<C> fmt::Debug for Rsi<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RSI, IPAs at +{:#x}", self.offset)
    }
}

impl<C: Call> Rsi<C> {
    /// Finds the monitor and agrees with it on version 1.0 (B5.3.10). What is passed by address has IPAs that are the caller's addresses plus
    /// `offset` (wrapping).
    ///
    /// # Errors
    /// [`NoRealm`].
    pub fn find(offset: u64) -> Result<Self, NoRealm> {
        let inputs = input::Version { req: VERSION.bits() }.to_registers();
        let (status, outputs) = Self::raw(input::Version::COMMAND, inputs);
        let output::Version { lower, higher } = output::Version::from_registers(outputs);
        match RsiStatus::from_bits(status) {
            Ok(RsiStatus::Success) if lower == VERSION => Ok(Self { offset, conduit: PhantomData }),
            Ok(RsiStatus::Success | RsiStatus::ErrorInput) => Err(NoRealm::Version { lower, higher }),
            _ if status == NOT_SUPPORTED => Err(NoRealm::NoInterface),
            _ => Err(NoRealm::Unknown(status)),
        }
    }

    /// How the realm was made (B5.3.9). `buffer` is RAM of the realm's own.
    ///
    /// # Errors
    /// [`RsiError`]; [`RsiError::Unknown`] also with a width of IPAs that this library cannot map.
    pub fn config(&self, buffer: &mut Granule<RsiRealmConfig>) -> Result<Config, RsiError> {
        let addr = self.ipa(buffer);
        let [] = Self::call(input::RealmConfig::COMMAND, input::RealmConfig { addr }.to_registers())?;
        let RsiRealmConfig { ipa_width, hash_algo, rpv, .. } = &buffer.0;
        let width = u32::try_from(*ipa_width).map_err(|_| RsiError::Unknown(*ipa_width))?;
        Config::new(width, RsiHashAlgorithm::from_bits(*hash_algo)?, *rpv)
    }

    /// Feature register number `index` (B5.3.3).
    ///
    /// # Errors
    /// [`RsiError`].
    pub fn features(&self, index: u64) -> Result<u64, RsiError> {
        let outputs = Self::call(input::Features::COMMAND, input::Features { index }.to_registers())?;
        Ok(output::Features::from_registers(outputs).value)
    }

    /// The RIPAS of the start of `range`, and the end of what has it (B5.3.5): at most the range's.
    ///
    /// # Errors
    /// [`RsiError`].
    pub fn ipa_state_get(&self, range: Range<Pa>) -> Result<(RsiRipas, u64), RsiError> {
        let (base, top) = (range.start().get(), range.end());
        let inputs = input::IpaStateGet { base, top }.to_registers();
        let outputs = Self::call(input::IpaStateGet::COMMAND, inputs)?;
        let output::IpaStateGet { out_top, ripas } = output::IpaStateGet::from_registers(outputs);
        if out_top <= base || out_top > top {
            return Err(RsiError::Unknown(out_top));
        }
        Ok((RsiRipas::from_bits(ripas)?, out_top))
    }

    /// Asks for another RIPAS of `range`, EMPTY or RAM, once (B5.3.6): it may have come part of the way.
    ///
    /// # Errors
    /// [`RsiError`].
    pub fn ipa_state_set(
        &self,
        range: Range<Pa>,
        ripas: RsiRipas,
        flags: RsiRipasChangeFlags,
    ) -> Result<RipasChange, RsiError> {
        let (base, top) = (range.start().get(), range.end());
        let inputs = input::IpaStateSet { base, top, ripas: ripas.bits(), flags }.to_registers();
        let outputs = Self::call(input::IpaStateSet::COMMAND, inputs)?;
        let output::IpaStateSet { new_base, response } = output::IpaStateSet::from_registers(outputs);
        if new_base < base || new_base > top {
            return Err(RsiError::Unknown(new_base));
        }
        Ok(RipasChange { new_base, response })
    }

    /// Measurement number `index`: the RIM is 0, the REMs are 1 to 4 (B5.3.8).
    ///
    /// # Errors
    /// [`RsiError`].
    pub fn measurement(&self, index: u64) -> Result<Measurement, RsiError> {
        let inputs = input::MeasurementRead { index }.to_registers();
        let outputs = Self::call(input::MeasurementRead::COMMAND, inputs)?;
        Ok(rmm_abi::v1_0::bytes(&output::MeasurementRead::from_registers(outputs).value))
    }

    /// Extends REM number `index`, 1 to 4, by `value`, at most 64 bytes (B5.3.7).
    ///
    /// # Errors
    /// [`RsiError`].
    pub fn extend_measurement(&self, index: u64, value: &[u8]) -> Result<(), RsiError> {
        let mut padded: Measurement = [0; 64];
        padded.iter_mut().zip(value).for_each(|(to, from)| *to = *from);
        let inputs =
            input::MeasurementExtend { index, size: value.len() as u64, value: doublewords(&padded) };
        let [] = Self::call(input::MeasurementExtend::COMMAND, inputs.to_registers())?;
        Ok(())
    }

    /// Begins to make an attestation token that answers `challenge`: bytes that it has at most (B5.3.2).
    ///
    /// # Errors
    /// [`RsiError`].
    pub fn begin_token(&self, challenge: &[u8; 64]) -> Result<u64, RsiError> {
        let inputs = input::AttestationTokenInit { challenge: doublewords(challenge) }.to_registers();
        let outputs = Self::call(input::AttestationTokenInit::COMMAND, inputs)?;
        Ok(output::AttestationTokenInit::from_registers(outputs).size)
    }

    /// Goes on making the token, and writes its next bytes to `buffer` from byte `offset` on (B5.3.1). It is to be called again, with the bytes
    /// that were written used or `offset` behind them, until it is complete.
    ///
    /// # Errors
    /// [`RsiError`].
    pub fn continue_token(&self, buffer: &mut Granule<[u8; 4096]>, offset: u64) -> Result<Token, RsiError> {
        let addr = self.ipa(buffer);
        let size = GRANULE_SIZE.saturating_sub(offset);
        let inputs = input::AttestationTokenContinue { addr, offset, size }.to_registers();
        let (status, outputs) = Self::raw(input::AttestationTokenContinue::COMMAND, inputs);
        let is_complete = match RsiStatus::from_bits(status) {
            Ok(RsiStatus::Incomplete) => false,
            _ => Self::success(status).map(|()| true)?,
        };
        let output::AttestationTokenContinue { len } =
            output::AttestationTokenContinue::from_registers(outputs);
        if len > size {
            return Err(RsiError::Unknown(len));
        }
        Ok(Token { len, is_complete })
    }

    /// Says `call` to the host, and takes its answer, which may be anything (B5.3.4).
    ///
    /// # Errors
    /// [`RsiError`].
    pub fn host_call(&self, call: &mut RsiHostCall) -> Result<(), RsiError> {
        let addr = self.ipa(call);
        let [] = Self::call(input::HostCall::COMMAND, input::HostCall { addr }.to_registers())?;
        Ok(())
    }

    /// Where the monitor finds it. Its address is known outside from here on, so that a call may change it.
    fn ipa<T>(&self, buffer: &mut T) -> u64 {
        (core::ptr::from_mut(buffer).expose_provenance() as u64).wrapping_add(self.offset)
    }

    fn raw<const I: usize, const O: usize>(command: RsiCommand, inputs: [u64; I]) -> (u64, [u64; O]) {
        let mut args = [0; 17];
        args.iter_mut().zip(inputs).for_each(|(arg, input)| *arg = input);
        let results = C::call64(command.fid(), args);
        (results[0], core::array::from_fn(|number| results[1 + number]))
    }

    fn success(status: u64) -> Result<(), RsiError> {
        match RsiStatus::from_bits(status) {
            Ok(RsiStatus::Success) => Ok(()),
            Ok(RsiStatus::Incomplete) => Err(RsiError::Unknown(status)),
            Ok(status) => Err(RsiError::Status(status)),
            Err(_) if status == NOT_SUPPORTED => Err(RsiError::NotSupported),
            Err(unknown) => Err(unknown.into()),
        }
    }

    fn call<const I: usize, const O: usize>(
        command: RsiCommand,
        inputs: [u64; I],
    ) -> Result<[u64; O], RsiError> {
        let (status, outputs) = Self::raw(command, inputs);
        Self::success(status).map(|()| outputs)
    }
}
