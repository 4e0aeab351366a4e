//! Stage 1 of whoever uses this library: the linear map of an exception level's own memory.
//!
//! Invariant: nothing is both writable and executable ([`Attributes`] cannot say it, and `SCTLR_ELx.WXN` is set);
//! RAM lies at its own address in the largest leaves; the pinned memory (code, stacks, tables) lies in pages, so
//! that no later change of a block touches what the change itself runs on.
//!
//! Register formats: Arm ARM DDI 0487 D24.2 (`MAIR_ELx`, `SCTLR_ELx`, `TCR_ELx`).

#[cfg(target_arch = "aarch64")]
pub mod install;
mod linear;

pub use linear::{LinearMap, Permissions, SetMemoryError};

use crate::mapping::descriptor::MAIR;
use crate::mapping::{
    Address, AddressError, Attributes, El1And0, El2, Geometry, Leaves, Map, MapError, Mmu, Options, Pa,
    Range, Regime, Va, Writer,
};

/// Write-Back, read and write allocate, inner shareable table walks of 4 KiB granules, at bit 8 of `TCR_ELx`.
const WALKS_WB: u64 = 0b11_01_01 << 8;
const TCR_EL2_RES1: u64 = 1 << 31 | 1 << 23;
const TCR_EL1_EPD1: u64 = 1 << 23;
const TCR_EL1_IPS_SHIFT: u32 = 32;
const TCR_EL2_PS_SHIFT: u32 = 16;

/// `SCTLR_EL2` with everything off, and the RES1 bits of the regime with one privilege level.
pub const SCTLR_EL2_OFF: u64 = 0x30c5_0830;
/// `SCTLR_EL1` with everything off, and its RES1 bits.
pub const SCTLR_EL1_OFF: u64 = 0x30d0_0800;
const SCTLR_M: u64 = 1 << 0;
const SCTLR_C: u64 = 1 << 2;
const SCTLR_SA: u64 = 1 << 3;
const SCTLR_I: u64 = 1 << 12;
const SCTLR_WXN: u64 = 1 << 19;
const SCTLR_ON: u64 = SCTLR_M | SCTLR_C | SCTLR_SA | SCTLR_I | SCTLR_WXN;

/// The largest `PS`/`IPS` encoding without FEAT_LPA2: 48 bits.
const PA_RANGE_48: u8 = 5;

/// What turns the MMU of one CPU on for a map: the same on every CPU. The layout is known to the entry code.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// `MAIR_ELx`.
    pub mair: u64,
    /// `TCR_ELx`.
    pub tcr: u64,
    /// `TTBR0_ELx`.
    pub ttbr0: u64,
    /// `SCTLR_ELx`, with the MMU and the caches on.
    pub sctlr: u64,
}

impl Registers {
    /// For the EL2 regime; `pa_range` is `ID_AA64MMFR0_EL1.PARange`.
    pub fn el2<M: Mmu>(map: &Map<El2, M>, pa_range: u8) -> Self {
        let t0sz = 64 - u64::from(map.geometry().input_bits());
        let ps = u64::from(pa_range.min(PA_RANGE_48)) << TCR_EL2_PS_SHIFT;
        Self {
            mair: MAIR,
            tcr: TCR_EL2_RES1 | ps | WALKS_WB | t0sz,
            ttbr0: map.root().get(),
            sctlr: SCTLR_EL2_OFF | SCTLR_ON,
        }
    }

    /// For the lower half of the EL1&0 regime, the upper half faulting; ASID 0.
    pub fn el1<M: Mmu>(map: &Map<El1And0, M>, pa_range: u8) -> Self {
        let t0sz = 64 - u64::from(map.geometry().input_bits());
        let ips = u64::from(pa_range.min(PA_RANGE_48)) << TCR_EL1_IPS_SHIFT;
        Self {
            mair: MAIR,
            tcr: TCR_EL1_EPD1 | ips | WALKS_WB | t0sz,
            ttbr0: map.root().get(),
            sctlr: SCTLR_EL1_OFF | SCTLR_ON,
        }
    }
}

/// Why a linear map could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinearMapError {
    /// A part of it could not be mapped.
    Map {
        /// The part, by its physical address.
        range: Range<Pa>,
        /// Why.
        error: MapError,
    },
    /// A part of it is no range of addresses.
    Address(AddressError),
    /// The root could not be made.
    Root(MapError),
}

impl core::fmt::Display for LinearMapError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Map { range, error } => write!(f, "{range}: {error}"),
            Self::Address(error) => error.fmt(f),
            Self::Root(error) => write!(f, "table root: {error}"),
        }
    }
}

impl core::error::Error for LinearMapError {}

/// Bits of the input address of a linear map: all that an output may have.
const INPUT_BITS: u32 = crate::mapping::addr::ADDRESS_BITS;

/// An empty linear map of 48 bits: every part that is added to it lies at its own address.
///
/// # Errors
/// [`LinearMapError::Root`] if the pool has no table.
pub fn linear_map<R: Regime<Input = Va>, M: Mmu>(
    mmu: M,
    options: Options,
) -> Result<Map<R, M>, LinearMapError> {
    let geometry = Geometry::stage1(INPUT_BITS).map_err(LinearMapError::Root)?;
    Map::new(mmu, geometry, options).map_err(LinearMapError::Root)
}

/// Adds the whole of `range` to a linear map, in the leaves that `leaves` allows.
///
/// # Errors
/// [`LinearMapError::Map`] as [`Writer::map`] gives it, [`LinearMapError::Address`].
pub fn add<R: Regime<Input = Va>, M: Mmu>(
    map: &mut Writer<'_, '_, R, M>,
    range: Range<Pa>,
    attributes: Attributes<R>,
    leaves: Leaves,
) -> Result<(), LinearMapError> {
    let input = Range::new(range.start().get(), range.size()).map_err(LinearMapError::Address)?;
    map.map(input, range.start(), attributes, leaves).map_err(|error| LinearMapError::Map { range, error })
}

/// Adds each of `banks` but for `holes` to a linear map, as `data`, in the leaves that `leaves` allows.
///
/// # Errors
/// As [`add`].
pub fn add_ram<R: Regime<Input = Va>, M: Mmu>(
    map: &mut Writer<'_, '_, R, M>,
    banks: &[Range<Pa>],
    holes: &[Range<Pa>],
    data: Attributes<R>,
    leaves: Leaves,
) -> Result<(), LinearMapError> {
    for part in banks.iter().flat_map(|bank| bank.minus(holes)) {
        add(map, part, data, leaves)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::Capabilities;
    use crate::mapping::fake::FakeMmu;

    const OPTIONS: Options = Options::new(Capabilities::LEAST);

    #[test]
    fn ram_is_linear_in_blocks_and_its_holes_stay_unmapped() {
        let range = |start, size| Range::<Pa>::new(start, size).unwrap();
        let mmu = FakeMmu::new(8);
        let mut map = linear_map::<El2, _>(&mmu, OPTIONS).unwrap();
        let hole = range(0x4020_0000, 0x20_0000);
        let mut writer = map.get_mut();
        add_ram(
            &mut writer,
            &[range(0x4000_0000, 2 << 30)],
            &[hole],
            Attributes::<El2>::DATA,
            Leaves::LARGEST,
        )
        .unwrap();
        add(&mut writer, hole, Attributes::<El2>::CODE, Leaves::PAGES).unwrap();
        let again = add(&mut writer, hole, Attributes::<El2>::CODE, Leaves::PAGES);
        assert_eq!(again, Err(LinearMapError::Map { range: hole, error: MapError::Mapped(0x4020_0000) }));
        drop(writer);
        let mut cpu = map.cpu(0).unwrap();
        let reader = cpu.read();
        assert_eq!(reader.census().leaves, [0, 1, 511, 512]);
        let at = |a| reader.translate(Va::new(a).unwrap()).map(|t| (t.output.get(), t.attributes()));
        assert_eq!(at(0x4020_0123), Some((0x4020_0123, Attributes::<El2>::CODE)));
        assert_eq!(at(0x7fff_ffff), Some((0x7fff_ffff, Attributes::<El2>::DATA)));
        assert_eq!(at(0x3fff_ffff), None);
    }

    #[test]
    fn registers_carry_the_root_and_the_sizes() {
        let mmu = FakeMmu::new(1);
        let map = linear_map::<El2, _>(&mmu, OPTIONS).unwrap();
        let registers = Registers::el2(&map, 6);
        assert_eq!(registers.ttbr0, map.root().get());
        // 48 bits in and out, write-back inner shareable walks.
        assert_eq!(registers.tcr, 1 << 31 | 1 << 23 | 5 << 16 | 3 << 12 | 1 << 10 | 1 << 8 | 16);
        assert_eq!(registers.sctlr & 1, 1);
    }
}
