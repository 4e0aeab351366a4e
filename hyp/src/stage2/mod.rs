//! Stage 2: what a guest, and first of all the host, can reach.
//!
//! Invariant: the host's map is the identity on everything below its top but for the hypervisor's memory, which
//! it does not translate at all. The host sees the machine as it is, less that memory.
//!
//! Memory types are left to the host's stage 1: every leaf is Normal Write-Back, the weakest type, which combines
//! with stage 1's to stage 1's own (Arm ARM D8.6.6, `HCR_EL2.FWB` = 0). What is not RAM is never executable, so no
//! speculative fetch reaches a device, whatever the host maps.

#[cfg(target_arch = "aarch64")]
pub mod install;

use crate::mapping::{
    Address, Attributes, GRANULE, Geometry, Ipa, Leaves, Map, MapError, Mmu, Options, Pa, Range, Stage2,
    TablePool,
};

/// Write-Back, inner shareable table walks of 4 KiB granules, at bit 8 of `VTCR_EL2`.
const WALKS_WB: u64 = 0b11_01_01 << 8;
const VTCR_RES1: u64 = 1 << 31;
const VTCR_SL0_SHIFT: u32 = 6;
const VTCR_PS_SHIFT: u32 = 16;
const VTCR_VS_16_BIT: u64 = 1 << 19;

/// The VMID of the host.
pub const HOST_VMID: u16 = 0;
const VTTBR_VMID_SHIFT: u32 = 48;

/// Output bits of each `ID_AA64MMFR0_EL1.PARange` without FEAT_LPA2 (Arm ARM D24.2.87).
const PA_BITS: [u32; 7] = [32, 36, 40, 42, 44, 48, 48];

/// What a CPU says of its physical addresses and VMIDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuLimits {
    /// `ID_AA64MMFR0_EL1.PARange`.
    pub pa_range: u8,
    /// Whether `ID_AA64MMFR1_EL1.VMIDBits` says 16.
    pub vmid_16_bits: bool,
}

impl CpuLimits {
    /// Bits of the largest physical address that this hypervisor uses on it: at most 48.
    pub fn pa_bits(self) -> u32 {
        let last = PA_BITS.len() - 1;
        PA_BITS[usize::from(self.pa_range).min(last)]
    }
}

/// The registers that put a map under a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registers {
    /// `VTCR_EL2`.
    pub vtcr: u64,
    /// `VTTBR_EL2`.
    pub vttbr: u64,
}

impl Registers {
    /// For `map` under `vmid` (Arm ARM D24.2, `VTCR_EL2` and `VTTBR_EL2`).
    pub fn new<M: Mmu>(map: &Map<Stage2, M>, vmid: u16, limits: CpuLimits) -> Self {
        Self::of_root(map.geometry(), map.root(), vmid, limits)
    }

    /// For the map of `geometry` that lies, or will, at `root`.
    pub fn of_root(geometry: Geometry, root: Pa, vmid: u16, limits: CpuLimits) -> Self {
        let t0sz = 64 - u64::from(geometry.input_bits());
        // With the 4 KiB granule SL0 counts down: 2 starts at level 0, 1 at level 1.
        let sl0 = (2 - u64::from(geometry.start_level())) << VTCR_SL0_SHIFT;
        let ps = u64::from(limits.pa_range.min(5)) << VTCR_PS_SHIFT;
        let vs = if limits.vmid_16_bits { VTCR_VS_16_BIT } else { 0 };
        Self {
            vtcr: VTCR_RES1 | vs | ps | WALKS_WB | sl0 | t0sz,
            vttbr: u64::from(vmid) << VTTBR_VMID_SHIFT | root.get(),
        }
    }
}

/// The pool of a map whose every table is supplied by who changes it: [`Map::adopt`] takes the root, `split_entry` one table, and
/// `collapse_entry` gives that back to its caller. What would take a table from here is refused as [`MapError::OutOfTables`]
/// before anything was changed.
///
/// Unmapping or collapsing a range, and [`Map::destroy`], leave tables to their pool, which here forgets them: they stay the memory of
/// whoever supplied them, and it is theirs to know that no map has them.
#[derive(Clone, Copy, Debug)]
pub struct Supplied;

// SAFETY: it hands out nothing.
unsafe impl TablePool for Supplied {
    fn reserve(&self, count: usize) -> Result<(), usize> {
        if count == 0 { Ok(()) } else { Err(0) }
    }
    unsafe fn cancel(&self, _: usize) {}
    unsafe fn take(&self) -> Pa {
        unreachable!("nothing was reserved")
    }
    fn take_root(&self, _: usize) -> Option<Pa> {
        None
    }
    unsafe fn give(&self, _: Pa) {}
}

/// Why the host's map could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostMapError {
    /// Something the machine has lies above what its CPUs can address.
    OutOfReach {
        /// The first address after everything.
        top: u64,
        /// Bits that the CPUs can address.
        bits: u32,
    },
    /// A part of it could not be mapped.
    Map(MapError),
}

impl core::fmt::Display for HostMapError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::OutOfReach { top, bits } => {
                write!(f, "the machine reaches up to {top:#x}, its CPUs address {bits} bits")
            }
            Self::Map(error) => error.fmt(f),
        }
    }
}

impl core::error::Error for HostMapError {}

impl From<MapError> for HostMapError {
    fn from(error: MapError) -> Self {
        Self::Map(error)
    }
}

/// Everything below this is in the host's map: the next multiple of 1 GiB, so that the last block is a large one.
const TOP_UNIT: u64 = 1 << 30;

/// The host's map: each of `ram` and all else below `top` (bytes), but for `hidden`, each at its own address.
///
/// # Errors
/// [`HostMapError::OutOfReach`] if the CPUs cannot address `top`, [`HostMapError::Map`] if the pool has too few
/// tables or a range is not made of granules.
pub fn host_map<M: Mmu>(
    mmu: M,
    options: Options,
    limits: CpuLimits,
    ram: &[Range<Pa>],
    top: u64,
    hidden: &[Range<Pa>],
) -> Result<Map<Stage2, M>, HostMapError> {
    let bits = limits.pa_bits();
    if top > 1 << bits {
        return Err(HostMapError::OutOfReach { top, bits });
    }
    let top = top.next_multiple_of(TOP_UNIT).min(1 << bits);
    let mut map = Map::new(mmu, Geometry::stage2(bits)?, options)?;
    let mut writer = map.get_mut();
    let too_far = |_| HostMapError::OutOfReach { top, bits };
    let mut identity = |part: Range<Pa>, attributes| {
        let input = Range::<Ipa>::new(part.start().get(), part.size()).map_err(too_far)?;
        Ok::<_, HostMapError>(writer.map(input, part.start(), attributes, Leaves::LARGEST)?)
    };
    let below_top = Range::<Pa>::of_granules(0, top & !(GRANULE - 1)).map_err(too_far)?;
    for part in below_top.minus(ram).flat_map(|part| part.minus(hidden)) {
        identity(part, Attributes::<Stage2>::IO)?;
    }
    for part in ram.iter().flat_map(|bank| bank.minus(hidden)) {
        identity(part, Attributes::<Stage2>::RAM)?;
    }
    drop(writer);
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::fake::FakeMmu;
    use crate::mapping::{Capabilities, Reader};

    const GIB: u64 = 1 << 30;
    const OPTIONS: Options = Options::new(Capabilities::LEAST);

    fn range(start: u64, size: u64) -> Range<Pa> {
        Range::new(start, size).unwrap()
    }

    fn with_map(
        pa_range: u8,
        ram: &[Range<Pa>],
        top: u64,
        hidden: &[Range<Pa>],
        check: impl Fn(&FakeMmu, &Map<Stage2, &FakeMmu>, Reader<'_, Stage2, &FakeMmu>),
    ) {
        let mmu = FakeMmu::new(32);
        let limits = CpuLimits { pa_range, vmid_16_bits: true };
        let map = host_map(&mmu, OPTIONS, limits, ram, top, hidden).unwrap();
        check(&mmu, &map, map.cpu(0).unwrap().read());
    }

    #[test]
    fn the_host_reaches_everything_but_the_hypervisor() {
        let hidden = range(0x4020_0000, 0x20_0000);
        with_map(5, &[range(GIB, 4 * GIB)], 1 << 40, &[hidden], |mmu, _, reader| {
            let at =
                |a: u64| reader.translate(Ipa::new(a).unwrap()).map(|t| (t.output.get(), t.attributes()));
            assert_eq!(at(0x0900_0000), Some((0x0900_0000, Attributes::<Stage2>::IO)));
            assert_eq!(at(0x401f_ffff), Some((0x401f_ffff, Attributes::<Stage2>::RAM)));
            assert_eq!(at(0x4020_0000), None);
            assert_eq!(at(0x403f_ffff), None);
            assert_eq!(at(0x4040_0000), Some((0x4040_0000, Attributes::<Stage2>::RAM)));
            assert_eq!(at((1 << 40) - 1).map(|t| t.1), Some(Attributes::<Stage2>::IO));
            assert_eq!(at(1 << 40), None);
            // One hole of 2 MiB: only its own GiB is in 2 MiB blocks.
            assert_eq!(reader.census().leaves, [0, 1023, 511, 0]);
            assert_eq!(mmu.pool().used(), 1 + 2 + 1);
        });
    }

    #[test]
    fn banks_with_a_hole_between_them_are_ram_and_the_hole_is_not() {
        with_map(2, &[range(GIB, GIB / 2), range(8 * GIB, GIB)], 9 * GIB, &[], |_, _, reader| {
            let ram = |a: u64| {
                reader.translate(Ipa::new(a).unwrap()).map(|t| t.attributes() == Attributes::<Stage2>::RAM)
            };
            assert_eq!(
                [ram(GIB), ram(GIB + GIB / 2), ram(4 * GIB), ram(8 * GIB)],
                [Some(true), Some(false), Some(false), Some(true)]
            );
        });
    }

    #[test]
    fn registers_start_the_walk_where_the_geometry_does() {
        let expected = [(0, 32, 1), (1, 36, 1), (2, 40, 1), (3, 42, 1), (4, 44, 2), (5, 48, 2), (6, 48, 2)];
        for (pa_range, bits, sl0) in expected {
            with_map(pa_range, &[range(GIB, GIB)], 2 * GIB, &[], |_, map, _| {
                let registers = Registers::new(map, 3, CpuLimits { pa_range, vmid_16_bits: false });
                assert_eq!(registers.vtcr & 0x3f, 64 - bits);
                assert_eq!(registers.vtcr >> 6 & 3, sl0);
                assert_eq!(registers.vtcr >> 16 & 7, u64::from(pa_range.min(5)));
                assert_eq!(registers.vttbr, 3 << 48 | map.root().get());
            });
        }
    }

    /// Tables of the fake, none of its pool.
    struct Guest<'a>(&'a FakeMmu);

    // SAFETY: what it has is the fake's, but that it hands out no tables.
    unsafe impl Mmu for Guest<'_> {
        type Tables = <FakeMmu as Mmu>::Tables;
        type Pool = Supplied;
        type Quiesce = crate::mapping::NoQuiesce;
        fn tables(&self) -> &Self::Tables {
            self.0.tables()
        }
        fn pool(&self) -> &Supplied {
            &Supplied
        }
        fn quiesce(&self) -> &Self::Quiesce {
            &crate::mapping::NoQuiesce
        }
        fn slots(&self) -> &[crate::mapping::Slot] {
            self.0.slots()
        }
        fn tlbi(&self, operation: crate::mapping::Tlbi, scope: crate::mapping::Scope, operand: u64) {
            self.0.tlbi(operation, scope, operand);
        }
        fn barrier(&self, barrier: crate::mapping::Barrier, scope: crate::mapping::Scope) {
            self.0.barrier(barrier, scope);
        }
    }

    #[test]
    fn tables_that_are_supplied_come_from_nowhere_else_and_go_back_to_who_supplied_them() {
        let mmu = FakeMmu::new(8);
        // An empty root, which nobody uses after this.
        let root = Map::<Stage2, _>::new(&mmu, Geometry::stage2(40).unwrap(), OPTIONS).unwrap().root();
        mmu.pool().reserve(1).unwrap();
        // SAFETY: one was reserved; the root is the pool's, whole and empty.
        let (table, map) = unsafe {
            (
                mmu.pool().take(),
                Map::<Stage2, _>::adopt(Guest(&mmu), root, Geometry::stage2(40).unwrap(), OPTIONS),
            )
        };
        let registers = Registers::new(&map, 5, CpuLimits { pa_range: 2, vmid_16_bits: true });
        let of_root = Registers::of_root(
            Geometry::stage2(40).unwrap(),
            root,
            5,
            CpuLimits { pa_range: 2, vmid_16_bits: true },
        );
        assert_eq!(registers, of_root);
        assert_eq!(registers.vttbr, 5 << 48 | root.get());
        let at = Ipa::new(0x8000_0000).unwrap();
        let page = Range::<Ipa>::new(at.get(), GRANULE).unwrap();
        let mut cpu = map.cpu(0).unwrap();
        let refused =
            cpu.write().map(page, Pa::new(GIB).unwrap(), Attributes::<Stage2>::RAM, Leaves::LARGEST);
        assert!(matches!(refused, Err(MapError::OutOfTables { free: 0, .. })), "{refused:?}");
        assert!(matches!(
            Map::<Stage2, _>::new(Guest(&mmu), Geometry::stage2(40).unwrap(), OPTIONS),
            Err(MapError::OutOfTables { .. })
        ));
        // SAFETY: nobody else uses the table.
        unsafe { map.split_entry(at, 1, table) }.unwrap().flush();
        assert_eq!(cpu.write().collapse_entry(at, 1), Ok(table));
    }

    #[test]
    fn a_machine_beyond_its_cpus_is_refused() {
        let limits = CpuLimits { pa_range: 0, vmid_16_bits: false };
        let refused =
            host_map(&FakeMmu::new(4), OPTIONS, limits, &[range(GIB, GIB)], 5 * GIB, &[]).unwrap_err();
        assert_eq!(refused, HostMapError::OutOfReach { top: 5 * GIB, bits: 32 });
    }
}
