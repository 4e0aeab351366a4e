//! The Realm Services Interface, from a realm to the RMM (DEN0137, chapter B5).
//!
//! Invariant: the 10 commands of 1.0, no more.
//!
//! Compared: the identifiers and register tables of B5.3.1 to B5.3.10, the types of B5.4; TF-RMM `smc-rsi.h`; Linux `rsi_smc.h` and
//! `rsi_cmds.h`; EDK2 `ArmCcaRsiLib.h` for the types. They agree on identifiers, registers, encodings and offsets. Where they differ:
//! - Linux's comment calls X1 after RSI_IPA_STATE_SET the top of what was changed, the specification and TF-RMM the base of what was not.
//! - hash_algo has 8 bits here, in TF-RMM and in EDK2, 64 in Linux; imm of a host call has 16 here, in EDK2
//!   and in Linux's later series, 32 in TF-RMM.
//! - TF-RMM reads the RIPAS of RSI_IPA_STATE_SET with 32 bits, the specification with 8.

pub mod input;
pub mod output;
mod types;

pub use types::{
    RsiHashAlgorithm, RsiHostCall, RsiRealmConfig, RsiResponse, RsiRipas, RsiRipasChangeFlags, RsiStatus,
};

commands! {
    /// A command of the realm.
    RsiCommand {
        /// Goes on making an attestation token (B5.3.1).
        AttestationTokenContinue = 0xc400_0195 "RSI_ATTESTATION_TOKEN_CONTINUE" 3 -> 1,
        /// Begins to make an attestation token (B5.3.2).
        AttestationTokenInit = 0xc400_0194 "RSI_ATTESTATION_TOKEN_INIT" 8 -> 1,
        /// Reads a feature register (B5.3.3).
        Features = 0xc400_0191 "RSI_FEATURES" 1 -> 1,
        /// Calls the host (B5.3.4).
        HostCall = 0xc400_0199 "RSI_HOST_CALL" 1 -> 0,
        /// Reads the RIPAS of a range (B5.3.5).
        IpaStateGet = 0xc400_0198 "RSI_IPA_STATE_GET" 2 -> 2,
        /// Asks for another RIPAS of a range (B5.3.6).
        IpaStateSet = 0xc400_0197 "RSI_IPA_STATE_SET" 4 -> 2,
        /// Extends a REM (B5.3.7).
        MeasurementExtend = 0xc400_0193 "RSI_MEASUREMENT_EXTEND" 10 -> 0,
        /// Reads a measurement (B5.3.8).
        MeasurementRead = 0xc400_0192 "RSI_MEASUREMENT_READ" 1 -> 8,
        /// Reads how the realm was made (B5.3.9).
        RealmConfig = 0xc400_0196 "RSI_REALM_CONFIG" 1 -> 0,
        /// Which version is spoken (B5.3.10).
        Version = 0xc400_0190 "RSI_VERSION" 1 -> 2,
    }
}
