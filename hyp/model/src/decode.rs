//! Descriptors and operands of TLB maintenance, read by the architecture's text alone (DDI 0487 D8.3, D8.17.5, C5.5).
//!
//! Invariant: nothing here calls the engine; a mistake in its encodings is a disagreement.

use hyp::mapping::mmu::Reach;
use hyp::mapping::{Geometry, Shape, Tlbi};

/// A translation regime, or the stage of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Regime {
    /// EL2, `HCR_EL2.E2H` = 0.
    El2,
    /// Stage 1 of EL1&0.
    El1And0,
    /// Stage 2 of EL1&0; the guests' own stage 1 is off or maps everything to itself.
    Stage2,
}

/// Memory type, shareability, nG: what a break is needed for (R_WHZWS). Stage 1, stage 2.
const MEMORY: [u64; 2] = [0xf800_0000_0000_0b3c, 0xf800_0000_0000_0b3c];
/// Permissions, access flag, DBM, guarded page, XN. Stage 1, stage 2.
const PERMISSIONS: [u64; 2] = [0x006c_0000_0000_04c0, 0x0068_0000_0000_04c0];
const AF: u64 = 1 << 10;
const DBM: u64 = 1 << 51;
/// AP\[2\] at stage 1 (set: no writes), S2AP\[1\] at stage 2 (set: writes).
const WRITE_BIT: u64 = 1 << 7;
const NG: u64 = 1 << 11;
/// APTable, UXNTable, PXNTable of a table descriptor of stage 1.
const LIMITS: u64 = 0x7800_0000_0000_0000;

impl Regime {
    const fn stage(self) -> usize {
        matches!(self, Self::Stage2) as usize
    }
    /// Bits of a leaf for which a break is needed.
    pub const fn memory(self) -> u64 {
        MEMORY[self.stage()]
    }
    /// Bits of a leaf that say who may do what.
    pub const fn permissions(self) -> u64 {
        PERMISSIONS[self.stage()]
    }
    /// All bits of a leaf that a TLB holds.
    pub const fn attributes(self) -> u64 {
        self.memory() | self.permissions()
    }
    /// Whether a fault is somebody else's, who can be sent back.
    pub const fn is_stage_2(self) -> bool {
        matches!(self, Self::Stage2)
    }
    /// What hardware makes of a leaf that is accessed, or written (`dirty`), with updates on: `None` if nothing (D8.4.6, D8.5).
    pub fn marked(self, raw: u64, dirty: bool) -> Option<u64> {
        let mut new = raw | AF;
        if dirty && raw & DBM != 0 {
            new = if self.is_stage_2() { new | WRITE_BIT } else { new & !WRITE_BIT };
        }
        (new != raw).then_some(new)
    }
    /// Whether the leaf has the flag: accessed, or writable.
    pub fn is_marked(self, raw: u64, dirty: bool) -> bool {
        let written = self.is_stage_2() == (raw & WRITE_BIT != 0);
        raw & AF != 0 && (!dirty || written)
    }
    /// Bits that hardware may change.
    pub const fn flags(self) -> u64 {
        AF | WRITE_BIT
    }
}

/// Sizes of the tables of one map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// log2 of the entries in a table.
    pub index_bits: u32,
    /// log2 of the leaves in a contiguous run.
    pub run_bits: u32,
    /// Level of the root.
    pub start_level: u8,
    /// Bits of the input address.
    pub input_bits: u32,
    /// Addresses count from the start of the upper half.
    pub upper_half: bool,
}

const PAGE_SHIFT: u32 = 12;
const LAST_LEVEL: u8 = 3;
const OUTPUT: u64 = 0x0000_ffff_ffff_f000;

impl Layout {
    /// That of a geometry.
    pub fn of<S: Shape>(geometry: Geometry<S>, upper_half: bool) -> Self {
        let (start_level, input_bits) = (geometry.start_level(), geometry.input_bits());
        Self { index_bits: S::INDEX_BITS, run_bits: S::RUN_BITS, start_level, input_bits, upper_half }
    }
    /// log2 of the bytes that an entry of `level` spans.
    pub const fn shift(&self, level: u8) -> u32 {
        PAGE_SHIFT + self.index_bits * (LAST_LEVEL - level) as u32
    }
    /// Bytes that an entry of `level` spans.
    pub const fn size(&self, level: u8) -> u64 {
        1 << self.shift(level)
    }
    /// Entries in a table.
    pub const fn entries(&self) -> usize {
        1 << self.index_bits
    }
    /// Entries at the root, in adjacent tables if there are more than fit in one.
    pub const fn root_entries(&self) -> usize {
        1 << (self.input_bits - self.shift(self.start_level))
    }
    /// Bytes that the map translates.
    pub const fn reach(&self) -> u64 {
        1 << self.input_bits
    }
    const fn base(&self) -> u64 {
        if self.upper_half { !0 << self.input_bits } else { 0 }
    }
}

/// What a descriptor says to a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Descriptor {
    /// A Translation fault.
    Invalid,
    /// The next level's table, and what it takes away from all below.
    Table {
        /// Where it is.
        next: u64,
        /// Hierarchical attributes.
        limits: u64,
    },
    /// A block or a page.
    Leaf {
        /// Where it begins.
        output: u64,
        /// Attribute bits as they stand in the descriptor.
        bits: u64,
        /// The Contiguous bit.
        contiguous: bool,
    },
}

impl Descriptor {
    /// Reads a descriptor of `level` (D8.3.1).
    pub fn decode(raw: u64, level: u8, regime: Regime, layout: &Layout) -> Self {
        if raw & 1 == 0 {
            return Self::Invalid;
        }
        match (raw & 2 != 0, level) {
            (true, 0..LAST_LEVEL) => {
                let limits = if regime.is_stage_2() { 0 } else { raw & LIMITS };
                Self::Table { next: raw & OUTPUT, limits }
            }
            (true, LAST_LEVEL) | (false, 1..LAST_LEVEL) => Self::Leaf {
                output: raw & OUTPUT & !(layout.size(level) - 1),
                bits: raw & regime.attributes(),
                contiguous: raw & 1 << 52 != 0,
            },
            // A block at level 0 or 3 is reserved.
            _ => Self::Invalid,
        }
    }
}

/// Whether an entry is the engine's promise to make it again: a guest that faults there is sent back.
pub fn is_changing(raw: u64) -> bool {
    raw & 0b1111 == 0b0110
}

/// Whether a leaf of the regime is one address space's.
pub fn is_non_global(regime: Regime, bits: u64) -> bool {
    regime == Regime::El1And0 && bits & NG != 0
}

/// Entries that an operation is sure to reach, if nothing else is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// All of the regime, or of the VMID.
    All,
    /// What is of an ASID and not global.
    Asid(u16),
    /// What combines both stages.
    Combined,
    /// Entries that translate one of these addresses.
    Addresses {
        /// First byte, as an offset into the map's half.
        start: u64,
        /// The byte after the last.
        end: u64,
        /// The level that the leaf must be of.
        level: Option<u8>,
        /// Only leaves.
        last_level: bool,
        /// Only this one's, and global leaves.
        asid: Option<u16>,
    },
    /// Nothing for certain.
    Nothing,
}

/// Why an operation is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undefined;

impl Target {
    /// Reads the operand of an operation (D8.17.5.1, D8.17.5.2; C5.5). Without FEAT_TLBIRANGE the range forms are UNDEFINED; without
    /// FEAT_TTL the hint is RES0 and says nothing.
    pub fn decode(
        operation: Tlbi,
        operand: u64,
        regime: Regime,
        layout: &Layout,
        (has_range, has_ttl): (bool, bool),
    ) -> Result<Self, Undefined> {
        let asid = (operand >> 48) as u16;
        let of = |reach: Reach| (regime == Regime::El1And0 && reach.one_asid).then_some(asid);
        // Outside the map's half there is nothing of the map's.
        let offset = |address: u64| {
            let offset = address.wrapping_sub(layout.base());
            (offset < layout.reach()).then_some(offset)
        };
        let level = |hint: u64| has_ttl.then_some(hint as u8).filter(|&level| level != 0);
        Ok(match operation {
            Tlbi::All => Self::All,
            Tlbi::Asid => Self::Asid(asid),
            Tlbi::Combined => Self::Combined,
            Tlbi::Address(reach) => {
                // VA[55:12] and sign, or IPA[47:12].
                let address = match regime.is_stage_2() {
                    true => (operand & ((1 << 36) - 1)) << 12,
                    false => ((operand << 20) as i64 >> 8) as u64 & !0xfff,
                };
                let hint = operand >> 44 & 0xf;
                let level = if hint >> 2 == 0b01 { level(hint & 3) } else { None };
                match offset(address) {
                    Some(start) => Self::Addresses {
                        start,
                        end: start + 4096,
                        level,
                        last_level: reach.last_level,
                        asid: of(reach),
                    },
                    None => Self::Nothing,
                }
            }
            Tlbi::Range(_) if !has_range => return Err(Undefined),
            Tlbi::Range(reach) => {
                let (granule, scale, num) = (operand >> 46 & 3, operand >> 44 & 3, operand >> 39 & 31);
                let level = level(operand >> 37 & 3);
                let base = ((operand << 27) as i64 >> 15) as u64 & !0xfff;
                let base = if regime.is_stage_2() { base & OUTPUT } else { base };
                let size = (num + 1) << (5 * scale + 1 + 12);
                // With a hint, a start that is no multiple of an entry gives an UNPREDICTABLE range.
                let aligned = level.is_none_or(|level| base & (layout.size(level) - 1) == 0);
                match offset(base) {
                    Some(start) if granule == 0b01 && aligned => Self::Addresses {
                        start,
                        end: start.saturating_add(size).min(layout.reach()),
                        level,
                        last_level: reach.last_level,
                        asid: of(reach),
                    },
                    _ => Self::Nothing,
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout =
        Layout { index_bits: 9, run_bits: 4, start_level: 0, input_bits: 48, upper_half: false };

    #[test]
    fn descriptors_are_read_as_d8_3_writes_them() {
        let leaf = |output, bits, contiguous| Descriptor::Leaf { output, bits, contiguous };
        let decode = |raw, level| Descriptor::decode(raw, level, Regime::Stage2, &LAYOUT);
        // A 2 MiB block at 1 GiB: Normal Write-Back, inner shareable, read and write, AF; nT is no address.
        assert_eq!(decode(0x4001_07fd, 2), leaf(0x4000_0000, 0x7fc, false));
        assert_eq!(decode(0x0010_0000_4000_07ff, 3), leaf(0x4000_0000, 0x7fc, true));
        assert_eq!(decode(0x4000_0003, 2), Descriptor::Table { next: 0x4000_0000, limits: 0 });
        for (raw, level) in [(0x4000_0001, 0), (0x4000_0001, 3), (0x4000_0002, 3), (0, 1)] {
            assert_eq!(decode(raw, level), Descriptor::Invalid, "{raw:#x} at level {level}");
        }
        let table = Descriptor::decode(0x1800_0000_0000_1003, 1, Regime::El2, &LAYOUT);
        assert_eq!(table, Descriptor::Table { next: 0x1000, limits: 0x1800_0000_0000_0000 });
    }

    #[test]
    fn operands_are_read_as_d8_17_5_writes_them() {
        let reach = Reach { last_level: true, one_asid: true };
        let decode = |regime, operation, operand, layout: &Layout, has| {
            Target::decode(operation, operand, regime, layout, has)
        };
        let addresses =
            |start, end, level, asid| Ok(Target::Addresses { start, end, level, last_level: true, asid });
        let by_address = Tlbi::Address(reach);
        let operand = 7 << 48 | 0b0111 << 44 | 0x4_0000;
        let all = (true, true);
        let el1 = Regime::El1And0;
        assert_eq!(
            decode(el1, by_address, operand, &LAYOUT, all),
            addresses(0x4000_0000, 0x4000_1000, Some(3), Some(7))
        );
        // Without FEAT_TTL there is no hint; at EL2 no ASID.
        let plain = decode(Regime::El2, by_address, operand, &LAYOUT, (true, false));
        assert_eq!(plain, addresses(0x4000_0000, 0x4000_1000, None, None));
        // VA[55:12] of the upper half.
        let upper = Layout { upper_half: true, ..LAYOUT };
        let high = 0xff0_0000_0001;
        assert_eq!(decode(el1, by_address, high, &upper, all), addresses(0x1000, 0x2000, None, Some(0)));
        assert_eq!(decode(el1, by_address, high, &LAYOUT, all), Ok(Target::Nothing));
        // (NUM + 1) * 2^(5 * SCALE + 1) pages.
        let range = 0b01 << 46 | 1 << 44 | 2 << 39 | 3 << 37 | 0x10;
        let of_range = decode(el1, Tlbi::Range(reach), range, &LAYOUT, all);
        assert_eq!(of_range, addresses(0x1_0000, 0x1_0000 + (3 << 6 << 12), Some(3), Some(0)));
        assert_eq!(decode(el1, Tlbi::Range(reach), range, &LAYOUT, (false, true)), Err(Undefined));
        // A hint of level 2 goes with multiples of 2 MiB.
        let crooked = 0b01 << 46 | 2 << 37 | 0x10;
        assert_eq!(decode(el1, Tlbi::Range(reach), crooked, &LAYOUT, all), Ok(Target::Nothing));
    }
}
