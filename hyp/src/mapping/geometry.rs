//! The shape of tables: how many entries, how many of them a run joins, where a map begins.
//!
//! Invariant: everything about sizes follows from two numbers of a [`Shape`], so that a model can explore small tables with the
//! same code that runs with 512 entries.

use core::fmt;
use core::marker::PhantomData;

use super::addr::ADDRESS_BITS;
use super::map::MapError;

/// Number of the last level, where every leaf is a page.
pub const LAST_LEVEL: u8 = 3;
/// log2 of the bytes in a page.
pub const PAGE_SHIFT: u32 = 12;
/// Most entries that the Contiguous bit joins in any shape.
pub(super) const MAX_RUN: usize = 16;
/// Most tables that may be concatenated at the root of stage 2 (Arm ARM D8.2.2).
const MAX_CONCATENATED: usize = 16;

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Granule4K {}
    impl Sealed for super::Tiny {}
}

/// Sizes of one kind of table: those of this file.
pub trait Shape: sealed::Sealed + Copy + fmt::Debug + PartialEq + Send + Sync + 'static {
    /// log2 of the entries in a table.
    const INDEX_BITS: u32;
    /// log2 of the leaves in a contiguous run, at most 4.
    const RUN_BITS: u32;
    /// Fewest bits that stage 1 and stage 2 translate.
    const FEWEST_BITS: [u32; 2];
    /// From so many bits on stage 2 begins at level 0.
    const LEVEL_0_FROM: u32;

    /// Entries in a table.
    const ENTRIES: usize = 1 << Self::INDEX_BITS;
    /// Adjacent leaves that the Contiguous bit joins, at every level.
    const RUN: usize = 1 << Self::RUN_BITS;
    /// Most bits that a map translates.
    const MOST_BITS: u32 = {
        let bits = PAGE_SHIFT + 4 * Self::INDEX_BITS;
        if bits < ADDRESS_BITS { bits } else { ADDRESS_BITS }
    };
}

/// The 4 KiB granule of VMSAv8-64: tables of 512, runs of 16 (Arm ARM D8.2, D8.7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granule4K;

impl Shape for Granule4K {
    const INDEX_BITS: u32 = 9;
    const RUN_BITS: u32 = 4;
    // FEAT_TTST is not relied on; stage 2 of less than 32 bits is nobody's.
    const FEWEST_BITS: [u32; 2] = [25, 32];
    const LEVEL_0_FROM: u32 = 44;
}

/// Tables of 4 and runs of 2, which no hardware has: all that can happen in them can be tried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiny;

impl Shape for Tiny {
    const INDEX_BITS: u32 = 2;
    const RUN_BITS: u32 = 1;
    const FEWEST_BITS: [u32; 2] = [15, 17];
    const LEVEL_0_FROM: u32 = 20;
}

/// log2 of the bytes that one entry of `level` (0 to 3) spans.
#[inline(always)]
pub const fn level_shift<S: Shape>(level: u8) -> u32 {
    PAGE_SHIFT + S::INDEX_BITS * (LAST_LEVEL - level) as u32
}

/// Bytes that one entry of `level` (0 to 3) spans.
#[inline(always)]
pub const fn level_size<S: Shape>(level: u8) -> u64 {
    1 << level_shift::<S>(level)
}

/// Where the tables of a map begin and how far they reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry<S = Granule4K> {
    start_level: u8,
    input_bits: u32,
    shape: PhantomData<S>,
}

impl<S: Shape> Geometry<S> {
    fn new(start_level: u8, input_bits: u32) -> Self {
        Self { start_level, input_bits, shape: PhantomData }
    }

    /// Stage 1 for inputs of `input_bits` (25 to 48 with [`Granule4K`]): starts where one table suffices (Arm ARM D8.2.1).
    ///
    /// # Errors
    /// [`MapError::InputBits`] outside those bounds.
    pub fn stage1(input_bits: u32) -> Result<Self, MapError> {
        if !(S::FEWEST_BITS[0]..=S::MOST_BITS).contains(&input_bits) {
            return Err(MapError::InputBits(input_bits));
        }
        let levels = (input_bits - PAGE_SHIFT).div_ceil(S::INDEX_BITS) as u8;
        Ok(Self::new(LAST_LEVEL + 1 - levels, input_bits))
    }

    /// Stage 2 for inputs of `input_bits` (32 to 48 with [`Granule4K`]) on a CPU that outputs as many. A start at level 0 is an
    /// option only from 44 bits on; below, up to 16 level 1 tables are concatenated (Arm ARM D8.2.2).
    ///
    /// # Errors
    /// [`MapError::InputBits`] outside those bounds.
    pub fn stage2(input_bits: u32) -> Result<Self, MapError> {
        if !(S::FEWEST_BITS[1]..=S::MOST_BITS).contains(&input_bits) {
            return Err(MapError::InputBits(input_bits));
        }
        Ok(Self::new(if input_bits < S::LEVEL_0_FROM { 1 } else { 0 }, input_bits))
    }

    /// Level of the root, 0 to 3.
    pub fn start_level(self) -> u8 {
        self.start_level
    }
    /// Bits of the input address.
    pub fn input_bits(self) -> u32 {
        self.input_bits
    }
    /// Tables at the root: more than one where they are concatenated.
    pub fn root_tables(self) -> usize {
        let entries = 1usize << (self.input_bits.saturating_sub(level_shift::<S>(self.start_level)));
        debug_assert!(entries <= MAX_CONCATENATED * S::ENTRIES);
        entries.div_ceil(S::ENTRIES)
    }
    /// Entries of a table of `level`; at the root, of all its tables.
    pub(super) fn entries(self, level: u8) -> usize {
        if level == self.start_level { S::ENTRIES * self.root_tables() } else { S::ENTRIES }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stage_2_of_40_to_43_bits_has_concatenated_roots() {
        for (bits, roots, level) in
            [(32, 1, 1), (39, 1, 1), (40, 2, 1), (42, 8, 1), (43, 16, 1), (44, 1, 0), (48, 1, 0)]
        {
            let geometry = Geometry::<Granule4K>::stage2(bits).unwrap();
            assert_eq!((geometry.root_tables(), geometry.start_level()), (roots, level), "{bits} bits");
        }
        assert_eq!(Geometry::<Granule4K>::stage2(31), Err(MapError::InputBits(31)));
    }

    #[test]
    fn stage_1_starts_where_one_table_suffices() {
        for (bits, level) in [(25, 2), (30, 2), (31, 1), (39, 1), (40, 0), (48, 0)] {
            let geometry = Geometry::<Granule4K>::stage1(bits).unwrap();
            assert_eq!((geometry.root_tables(), geometry.start_level()), (1, level), "{bits} bits");
        }
        assert_eq!(Geometry::<Granule4K>::stage1(49), Err(MapError::InputBits(49)));
    }
}
