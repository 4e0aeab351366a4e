//! Regimes, leaf attributes and decoded entries (Arm ARM D8.3: translation table descriptor formats).
//!
//! Invariant: only this file knows which bit of an entry means what, and no stage 1 attribute value that can be
//! written here is both writable and executable.

use core::fmt;
use core::marker::PhantomData;

use super::addr::{Address, Ipa, Pa, Va};

/// Number of the last level, where every leaf is a page.
pub const LAST_LEVEL: u8 = 3;
/// Adjacent leaves that the Contiguous bit joins, at every level (Arm ARM D8.7.1, 4 KiB granule).
pub const RUN: usize = 16;
/// Entries in one table.
pub const ENTRIES: usize = 512;

/// log2 of the bytes that one entry of `level` (0 to 3) spans.
pub const fn level_shift(level: u8) -> u32 {
    12 + 9 * (LAST_LEVEL - level) as u32
}

/// Bytes that one entry of `level` (0 to 3) spans.
pub const fn level_size(level: u8) -> u64 {
    1 << level_shift(level)
}

const VALID: u64 = 1 << 0;
/// In a valid entry: a table at levels 0 to 2, a page at level 3.
const TABLE_OR_PAGE: u64 = 1 << 1;
const OUTPUT: u64 = 0x0000_ffff_ffff_f000;

const SH_INNER: u64 = 0b11 << 8;
const AF: u64 = 1 << 10;
const CONTIGUOUS: u64 = 1 << 52;

// Stage 1 (D8.3.1.1, D8.4.1).
const ATTR_INDEX_SHIFT: u32 = 2;
const AP_EL0: u64 = 1 << 6;
const AP_READ_ONLY: u64 = 1 << 7;
const NG: u64 = 1 << 11;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;

// Stage 2 (D8.3.1.2, D8.4.2, D8.6.6 with HCR_EL2.FWB = 0).
const S2_MEMATTR_NORMAL_WB: u64 = 0b1111 << 2;
const S2AP_READ: u64 = 1 << 6;
const S2AP_WRITE: u64 = 1 << 7;
/// XN\[1:0\] = 0b10: execution at neither EL1 nor EL0.
const S2_XN: u64 = 1 << 54;

/// The `MAIR_ELx` that stage 1 attributes index: 0 Device-nGnRE, 1 Normal Write-Back, read and write allocate.
pub const MAIR: u64 = 0xff04;
const MAIR_DEVICE: u64 = 0;
const MAIR_NORMAL: u64 = 1;

/// A translation regime, or the stage of one, as a type.
pub trait Regime: Copy + fmt::Debug + PartialEq + 'static {
    /// What its tables translate.
    type Input: Address;
    /// How the regime is called in messages.
    const NAME: &'static str;
}

/// The EL2 regime with `HCR_EL2.E2H` = 0: one privilege level, one table root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct El2;
/// Stage 1 of the EL1&0 regime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct El1And0;
/// Stage 2 of the EL1&0 regime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stage2;

impl Regime for El2 {
    type Input = Va;
    const NAME: &'static str = "EL2 stage 1";
}
impl Regime for El1And0 {
    type Input = Va;
    const NAME: &'static str = "EL1&0 stage 1";
}
impl Regime for Stage2 {
    type Input = Ipa;
    const NAME: &'static str = "stage 2";
}

/// The attribute bits of a leaf of regime `R`: memory type, shareability, permissions, access flag (set).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Attributes<R>(u64, PhantomData<R>);

impl<R> Attributes<R> {
    const fn from_bits(bits: u64) -> Self {
        Self(bits, PhantomData)
    }
    const fn stage1(index: u64, bits: u64) -> Self {
        Self::from_bits(index << ATTR_INDEX_SHIFT | SH_INNER | AF | bits)
    }
    /// The bits as they stand in a leaf.
    pub const fn bits(self) -> u64 {
        self.0
    }
}

// AP[1] is RES1 and bit 53 RES0 in a regime with one privilege level; bit 54 is its XN.
impl Attributes<El2> {
    /// Code: Normal memory, read and execute.
    pub const CODE: Self = Self::stage1(MAIR_NORMAL, AP_EL0 | AP_READ_ONLY);
    /// Constants: Normal memory, read.
    pub const CONSTANTS: Self = Self::stage1(MAIR_NORMAL, AP_EL0 | AP_READ_ONLY | UXN);
    /// Data: Normal memory, read and write.
    pub const DATA: Self = Self::stage1(MAIR_NORMAL, AP_EL0 | UXN);
    /// Registers of a device: Device-nGnRE, read and write.
    pub const DEVICE: Self = Self::stage1(MAIR_DEVICE, AP_EL0 | UXN);
}

impl Attributes<El1And0> {
    /// Code of EL1: Normal memory, read and execute at EL1.
    pub const CODE: Self = Self::stage1(MAIR_NORMAL, AP_READ_ONLY | UXN);
    /// Constants of EL1: Normal memory, read.
    pub const CONSTANTS: Self = Self::stage1(MAIR_NORMAL, AP_READ_ONLY | PXN | UXN);
    /// Data of EL1: Normal memory, read and write.
    pub const DATA: Self = Self::stage1(MAIR_NORMAL, PXN | UXN);
    /// Registers of a device for EL1: Device-nGnRE, read and write.
    pub const DEVICE: Self = Self::stage1(MAIR_DEVICE, PXN | UXN);
    /// Code of EL0: Normal memory, read and execute at EL0, read at EL1; of one address space.
    pub const USER_CODE: Self = Self::stage1(MAIR_NORMAL, AP_EL0 | AP_READ_ONLY | PXN | NG);
    /// Data of EL0: Normal memory, read and write at EL0 and EL1; of one address space.
    pub const USER_DATA: Self = Self::stage1(MAIR_NORMAL, AP_EL0 | PXN | UXN | NG);
}

impl Attributes<Stage2> {
    /// RAM that stage 1 may use as it likes: type left to stage 1, read, write and execute.
    pub const RAM: Self = Self::from_bits(S2_MEMATTR_NORMAL_WB | SH_INNER | AF | S2AP_READ | S2AP_WRITE);
    /// Everything that is not RAM, for a host that knows its devices: type left to stage 1, read and write.
    pub const IO: Self =
        Self::from_bits(S2_MEMATTR_NORMAL_WB | SH_INNER | AF | S2AP_READ | S2AP_WRITE | S2_XN);
}

impl<R: Regime> fmt::Debug for Attributes<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:#x}", R::NAME, self.0)
    }
}

/// What one raw entry says, decoded once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Entry<R: Regime> {
    /// No translation.
    Invalid,
    /// The next level's table.
    Table(Pa),
    /// A block or a page.
    Leaf {
        /// Where it begins.
        output: Pa,
        /// What may be done with it.
        attributes: Attributes<R>,
        /// Whether it is one of an aligned run of [`RUN`] leaves that run on, which a TLB may hold as one.
        contiguous: bool,
    },
}

impl<R: Regime> Entry<R> {
    /// Decodes the raw entry of a table of `level` (0 to 3). A reserved encoding (a block at level 0 or 3) is
    /// [`Entry::Invalid`], as it is to the hardware.
    pub fn decode(raw: u64, level: u8) -> Self {
        // The field has 48 bits, as an address has, so the fallback is never taken.
        let Ok(output) = Pa::new(raw & OUTPUT) else { return Self::Invalid };
        let is_table_or_page = raw & TABLE_OR_PAGE != 0;
        match (raw & VALID != 0, is_table_or_page, level) {
            (true, true, 0..LAST_LEVEL) => Self::Table(output),
            (true, true, LAST_LEVEL) | (true, false, 1 | 2) => {
                let attributes = Attributes::from_bits(raw & !(OUTPUT | VALID | TABLE_OR_PAGE | CONTIGUOUS));
                Self::Leaf { output, attributes, contiguous: raw & CONTIGUOUS != 0 }
            }
            _ => Self::Invalid,
        }
    }

    /// The raw entry for a table of `level` (0 to 3).
    pub fn encode(self, level: u8) -> u64 {
        match self {
            Self::Invalid => 0,
            Self::Table(table) => table.get() | VALID | TABLE_OR_PAGE,
            Self::Leaf { output, attributes, contiguous } => {
                let page = if level == LAST_LEVEL { TABLE_OR_PAGE } else { 0 };
                let contiguous = if contiguous { CONTIGUOUS } else { 0 };
                output.get() | attributes.bits() | VALID | page | contiguous
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_decode_to_what_was_encoded_at_each_level() {
        let output = Pa::new(0x1234_4000_0000).unwrap();
        for level in 1..=3 {
            for contiguous in [false, true] {
                let leaf = Entry::Leaf { output, attributes: Attributes::<El2>::DATA, contiguous };
                assert_eq!(Entry::decode(leaf.encode(level), level), leaf);
            }
        }
        for level in 0..=2 {
            let table = Entry::<Stage2>::Table(output);
            assert_eq!(Entry::decode(table.encode(level), level), table);
        }
        assert_eq!(Entry::<El2>::decode(0, 2), Entry::Invalid);
    }

    #[test]
    fn reserved_encodings_translate_nothing() {
        assert_eq!(Entry::<El2>::decode(VALID, 0), Entry::Invalid);
        assert_eq!(Entry::<El2>::decode(VALID, 3), Entry::Invalid);
    }

    #[test]
    fn no_stage_1_leaf_is_writable_and_executable() {
        type A<R> = Attributes<R>;
        for a in [A::<El2>::CODE, A::<El2>::CONSTANTS, A::<El2>::DATA, A::<El2>::DEVICE] {
            assert!(a.bits() & AP_READ_ONLY != 0 || a.bits() & UXN != 0, "{a:?}");
        }
        for a in [
            A::<El1And0>::CODE,
            A::<El1And0>::CONSTANTS,
            A::<El1And0>::DATA,
            A::<El1And0>::DEVICE,
            A::<El1And0>::USER_CODE,
            A::<El1And0>::USER_DATA,
        ] {
            assert!(a.bits() & AP_READ_ONLY != 0 || a.bits() & (UXN | PXN) == UXN | PXN, "{a:?}");
        }
    }
}
