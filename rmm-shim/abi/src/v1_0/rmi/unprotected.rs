//! The descriptor by which the host maps its own memory into a realm (DEN0137 A5.5.11, B3.56, B4.3.19).
//!
//! Invariant: the host controls the output address, `MemAttr[2:0]` and S2AP; whatever else it sets makes the descriptor invalid.
//!
//! Compared: A5.5.11, B3.56; TF-RMM `s2tt.c` (`host_ns_s2tte_is_valid`), whose earlier versions let the host also control the
//! shareability without LPA2: 1.0-rel0 does not; DDI 0487, stage 2 memory attributes with FEAT_S2FWB, for MemAttr.

use crate::Register;
use crate::v1_0::address::is_level_aligned;

/// Bits of a stage 2 descriptor, as RMI_RTT_MAP_UNPROTECTED reads and RMI_RTT_READ_ENTRY tells them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct UnprotectedDescriptor(pub u64);

impl crate::words::Words for UnprotectedDescriptor {
    fn write(&self, to: &mut dyn core::fmt::Write) -> core::fmt::Result {
        self.0.write(to)
    }
}

impl UnprotectedDescriptor {
    /// `MemAttr[2:0]`, bits 4:2.
    pub const MEM_ATTR: u64 = 0b111 << 2;
    /// S2AP, bits 7:6.
    pub const S2AP: u64 = 0b11 << 6;
    /// The one value of `MemAttr[2:0]` that is reserved with FEAT_S2FWB.
    const MEM_ATTR_RESERVED: u64 = 0b100 << 2;
    /// Bits 47:12.
    const ADDRESS: u64 = (1 << 48) - (1 << 12);
    /// Bits 49:48, address with LPA2.
    const ADDRESS_49_48: u64 = 0b11 << 48;
    /// Bits 9:8, bits 51:50 of the address with LPA2 and shareability without.
    const ADDRESS_51_50: u64 = 0b11 << 8;

    /// The output address.
    pub const fn address(self, lpa2: bool) -> u64 {
        if lpa2 {
            self.0 & (Self::ADDRESS | Self::ADDRESS_49_48) | (self.0 & Self::ADDRESS_51_50) << 42
        } else {
            self.0 & Self::ADDRESS
        }
    }

    /// The descriptor for `address`, of which bits 47:12 are taken, or 51:12 with LPA2, and the attributes among `attributes`.
    pub const fn new(address: u64, attributes: u64, lpa2: bool) -> Self {
        let attributes = attributes & (Self::MEM_ATTR | Self::S2AP);
        let high = if lpa2 { address & Self::ADDRESS_49_48 | address >> 42 & Self::ADDRESS_51_50 } else { 0 };
        Self(address & Self::ADDRESS | high | attributes)
    }

    /// Whether nothing is set that is not the host's, and MemAttr has a meaning (B3.56). Without LPA2 this covers addr_bound too.
    pub const fn is_valid(self, lpa2: bool) -> bool {
        let high = if lpa2 { Self::ADDRESS_49_48 | Self::ADDRESS_51_50 } else { 0 };
        let host_controlled = Self::ADDRESS | high | Self::MEM_ATTR | Self::S2AP;
        self.0 & !host_controlled == 0 && self.0 & Self::MEM_ATTR != Self::MEM_ATTR_RESERVED
    }

    /// Whether the output address suits an entry at `level`.
    pub const fn is_aligned(self, level: i64, lpa2: bool) -> bool {
        is_level_aligned(self.address(lpa2), level)
    }
}

impl Register for UnprotectedDescriptor {
    fn from_register(bits: u64) -> Self {
        Self(bits)
    }
    fn to_register(self) -> u64 {
        self.0
    }
}
