//! What crosses between a host, a realm and the Realm Management Monitor (RMM): function identifiers, statuses, the registers of each
//! command, structures in memory. Source: Arm's Realm Management Monitor specification, DEN0137.
//!
//! Invariants:
//! - Data only: no state, no `unsafe`, no dependency on the rest of the workspace. What needs state to be judged is left to who has it.
//! - Anything that the other side can send has a value here: registers and structures are read whatever they hold, and only turning a field
//!   into an enumeration can fail.
//! - A version of the interface is a module of its own ([`v1_0`]), because identifiers are given to other commands in later ones
//!   (0xC4000153 is RMI_DATA_CREATE in 1.0 and RMI_RTT_DATA_MAP_INIT in 2.0). What all have in common stands beside them ([`Version`]).
//!
//! A structure that somebody else can write meanwhile is copied into private memory before it is looked at: these types are that memory.

#![no_std]

#[cfg(not(target_endian = "little"))]
compile_error!(
    "every type of the specification is little-endian (B1.1), and is read here as it lies in memory"
);

#[macro_use]
mod macros;
pub mod v1_0;
mod version;
pub mod words;

pub use version::{Negotiated, Version, negotiate};

use core::fmt;

/// An encoding to which the specification gives no meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unknown(pub u64);

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} is no encoding of the specification", self.0)
    }
}

impl core::error::Error for Unknown {}

/// How a value lies in a register.
pub(crate) trait Register: Copy {
    /// Takes the bits that are the value's; the others should be zero and are not looked at.
    fn from_register(bits: u64) -> Self;
    /// The bits that are not the value's are zero.
    fn to_register(self) -> u64;
}

impl Register for u64 {
    fn from_register(bits: u64) -> Self {
        bits
    }
    fn to_register(self) -> u64 {
        self
    }
}

impl Register for i64 {
    fn from_register(bits: u64) -> Self {
        bits as i64
    }
    fn to_register(self) -> u64 {
        self as u64
    }
}

impl Register for u32 {
    fn from_register(bits: u64) -> Self {
        bits as u32
    }
    fn to_register(self) -> u64 {
        self.into()
    }
}

impl Register for u8 {
    fn from_register(bits: u64) -> Self {
        bits as u8
    }
    fn to_register(self) -> u64 {
        self.into()
    }
}

impl Register for Version {
    fn from_register(bits: u64) -> Self {
        Self { major: (bits >> 16) as u16 & Self::MAX_MAJOR, minor: bits as u16 }
    }
    fn to_register(self) -> u64 {
        self.bits()
    }
}
