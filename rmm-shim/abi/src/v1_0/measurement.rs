//! Measurements of a realm, and what is hashed to extend its RIM (DEN0137 A7.1, C1.11 to C1.13, C1.17).
//!
//! Invariant: a descriptor is hashed as it lies in memory, all 256 bytes of it; bytes without a name are zero.
//!
//! Compared: C1.11 to C1.13, B4.3.1.4, B4.3.12.4, B4.3.18.4; TF-RMM `measurement.h`; `cca-realm-measurements` `rmm.rs`. They agree.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::rmi::RmiDataFlags;

/// A measurement (RmmRealmMeasurement): the hash's bytes, zero above.
pub type Measurement = [u8; 64];

/// Measurements of a realm: the RIM has index 0, the REMs 1 to 4 (C1.16).
pub const MEASUREMENTS: usize = 5;

/// A measurement as it lies in registers: byte 0 is the lowest of the first.
pub fn doublewords(measurement: &Measurement) -> [u64; 8] {
    zerocopy::transmute!(*measurement)
}

/// What [`doublewords`] was given.
pub fn bytes(doublewords: &[u64; 8]) -> Measurement {
    zerocopy::transmute!(*doublewords)
}

/// Extends the RIM by a DATA granule (C1.11, B4.3.1.4).
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct RmmMeasurementDescriptorData {
    /// [`DESC_TYPE`](Self::DESC_TYPE).
    pub desc_type: u8,
    _unused0: [u8; 7],
    /// Bytes of this structure.
    pub len: u64,
    /// The RIM as it is.
    pub rim: Measurement,
    /// Where the granule is mapped.
    pub ipa: u64,
    /// The host's flags.
    pub flags: RmiDataFlags,
    /// The hash of the granule's contents; zero unless they are measured.
    pub content: Measurement,
    _unused1: [u8; 0x60],
}

layout!(RmmMeasurementDescriptorData: 0x100 {
    desc_type: 0x0, len: 0x8, rim: 0x10, ipa: 0x50, flags: 0x58, content: 0x60,
});

impl RmmMeasurementDescriptorData {
    /// Its type.
    pub const DESC_TYPE: u8 = 0;

    /// With type and length.
    pub fn new(rim: Measurement, ipa: u64, flags: RmiDataFlags, content: Measurement) -> Self {
        let len = size_of::<Self>() as u64;
        Self { desc_type: Self::DESC_TYPE, len, rim, ipa, flags, content, ..Self::zeroed() }
    }
}

/// Extends the RIM by a runnable REC (C1.12, B4.3.12.4).
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct RmmMeasurementDescriptorRec {
    /// [`DESC_TYPE`](Self::DESC_TYPE).
    pub desc_type: u8,
    _unused0: [u8; 7],
    /// Bytes of this structure.
    pub len: u64,
    /// The RIM as it is.
    pub rim: Measurement,
    /// The hash of [`RmiRecParams::measured`](super::rmi::RmiRecParams::measured).
    pub content: Measurement,
    _unused1: [u8; 0x70],
}

layout!(RmmMeasurementDescriptorRec: 0x100 { desc_type: 0x0, len: 0x8, rim: 0x10, content: 0x50, });

impl RmmMeasurementDescriptorRec {
    /// Its type.
    pub const DESC_TYPE: u8 = 1;

    /// With type and length.
    pub fn new(rim: Measurement, content: Measurement) -> Self {
        let len = size_of::<Self>() as u64;
        Self { desc_type: Self::DESC_TYPE, len, rim, content, ..Self::zeroed() }
    }
}

/// Extends the RIM by one RTT entry whose RIPAS was initialized (C1.13, B4.3.18.4).
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct RmmMeasurementDescriptorRipas {
    /// [`DESC_TYPE`](Self::DESC_TYPE).
    pub desc_type: u8,
    _unused0: [u8; 7],
    /// Bytes of this structure.
    pub len: u64,
    /// The RIM as it is.
    pub rim: Measurement,
    /// IPA of the entry.
    pub base: u64,
    /// End of what the entry describes, or of the command's range if that is lower.
    pub top: u64,
    _unused1: [u8; 0xa0],
}

layout!(RmmMeasurementDescriptorRipas: 0x100 { desc_type: 0x0, len: 0x8, rim: 0x10, base: 0x50, top: 0x58, });

impl RmmMeasurementDescriptorRipas {
    /// Its type.
    pub const DESC_TYPE: u8 = 2;

    /// With type and length.
    pub fn new(rim: Measurement, base: u64, top: u64) -> Self {
        let len = size_of::<Self>() as u64;
        Self { desc_type: Self::DESC_TYPE, len, rim, base, top, ..Self::zeroed() }
    }
}
