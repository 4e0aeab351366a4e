//! The crate `page_table_multiarch`: its `PageTable64` with a descriptor of ours, because the crate compiles its own
//! AArch64 descriptor for AArch64 only. Ours does what that one does (`page_table_entry` 0.6.2, `arch/aarch64.rs`).
//!
//! It cannot split a block, and frees no table before the whole map goes.

use std::fmt::Debug;

use memory_addr::{PhysAddr, VirtAddr};
use page_table_multiarch::{GenericPTE, MappingFlags, PageSize, PageTable64, PagingHandler, PagingMetaData};

use crate::{
    Peer,
    peer::{
        ACCESSED, ADDRESS, ATTRIBUTE_INDEX_1, EXECUTE_NEVER, INNER_SHAREABLE, Joins, READ_ONLY,
        TABLE_OR_PAGE, VALID,
    },
    pool::pool,
};

pub struct Multiarch(PageTable64<Geometry, Descriptor, Tables>);

/// Four levels, 48 bits, nothing to invalidate.
struct Geometry;

impl PagingMetaData for Geometry {
    const LEVELS: usize = 4;
    const PA_MAX_BITS: usize = 48;
    const VA_MAX_BITS: usize = 48;
    type VirtAddr = VirtAddr;

    fn flush_tlb(_: Option<VirtAddr>) {}
}

/// Tables of the pool.
struct Tables;

impl PagingHandler for Tables {
    fn alloc_frames(num: usize, _align: usize) -> Option<PhysAddr> {
        (num == 1).then(|| pool().get().into())
    }

    fn dealloc_frames(paddr: PhysAddr, _num: usize) {
        pool().put(paddr.as_usize());
    }

    fn phys_to_virt(paddr: PhysAddr) -> VirtAddr {
        paddr.as_usize().into()
    }
}

#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
struct Descriptor(u64);

/// The crate's three kinds of memory: attribute index and shareability.
const DEVICE: u64 = 0;
const NORMAL: u64 = ATTRIBUTE_INDEX_1 | INNER_SHAREABLE;
const UNCACHED: u64 = 2 << 2 | INNER_SHAREABLE;
const ATTRIBUTE_INDEX: u64 = 7 << 2;

/// The attributes of a leaf, without its type, in the crate's variant for EL2.
fn attributes(flags: MappingFlags) -> u64 {
    if flags.is_empty() {
        return 0;
    }
    let mut bits = if flags.contains(MappingFlags::DEVICE) {
        DEVICE
    } else if flags.contains(MappingFlags::UNCACHED) {
        UNCACHED
    } else {
        NORMAL
    };
    if flags.contains(MappingFlags::READ) {
        bits |= VALID;
    }
    if !flags.contains(MappingFlags::WRITE) {
        bits |= READ_ONLY;
    }
    if !flags.contains(MappingFlags::EXECUTE) {
        bits |= EXECUTE_NEVER;
    }
    bits | ACCESSED
}

/// The type of a leaf.
fn leaf_type(is_huge: bool) -> u64 {
    if is_huge { 0 } else { TABLE_OR_PAGE }
}

impl GenericPTE for Descriptor {
    fn new_page(paddr: PhysAddr, flags: MappingFlags, is_huge: bool) -> Self {
        Self(attributes(flags) | leaf_type(is_huge) | (paddr.as_usize() as u64 & ADDRESS))
    }

    fn new_table(paddr: PhysAddr) -> Self {
        Self(VALID | TABLE_OR_PAGE | (paddr.as_usize() as u64 & ADDRESS))
    }

    fn paddr(&self) -> PhysAddr {
        ((self.0 & ADDRESS) as usize).into()
    }

    fn flags(&self) -> MappingFlags {
        if self.0 & VALID == 0 {
            return MappingFlags::empty();
        }
        let mut flags = MappingFlags::READ;
        if self.0 & READ_ONLY == 0 {
            flags |= MappingFlags::WRITE;
        }
        if self.0 & EXECUTE_NEVER == 0 {
            flags |= MappingFlags::EXECUTE;
        }
        match self.0 & ATTRIBUTE_INDEX {
            DEVICE => flags |= MappingFlags::DEVICE,
            index if index == UNCACHED & ATTRIBUTE_INDEX => flags |= MappingFlags::UNCACHED,
            _ => {}
        }
        flags
    }

    fn set_paddr(&mut self, paddr: PhysAddr) {
        self.0 = (self.0 & !ADDRESS) | (paddr.as_usize() as u64 & ADDRESS);
    }

    fn set_flags(&mut self, flags: MappingFlags, is_huge: bool) {
        self.0 = (self.0 & ADDRESS) | attributes(flags) | leaf_type(is_huge);
    }

    fn bits(self) -> usize {
        self.0 as usize
    }

    fn is_unused(&self) -> bool {
        self.0 == 0
    }

    fn is_present(&self) -> bool {
        self.0 & VALID != 0
    }

    fn is_huge(&self) -> bool {
        self.0 & TABLE_OR_PAGE == 0
    }

    fn clear(&mut self) {
        self.0 = 0;
    }
}

impl Peer for Multiarch {
    const NAME: &'static str = "page_table_multiarch";

    fn new() -> Self {
        Self(PageTable64::try_new().expect("the pool has a table"))
    }

    #[inline(never)]
    fn map(&mut self, va: usize, pa: usize, size: usize, huge: bool) {
        let flags = MappingFlags::READ | MappingFlags::WRITE;
        let target = |at: VirtAddr| PhysAddr::from(at.as_usize() - va + pa);
        self.0.cursor().map_region(va.into(), target, size, flags, huge).expect("nothing is in the way");
    }

    #[inline(never)]
    fn protect(&mut self, va: usize, size: usize, ro: bool) -> bool {
        let leaf = self.0.query(va.into()).map(|(_, _, leaf)| leaf as usize);
        if !leaf.is_ok_and(|leaf| leaf <= size) {
            return false;
        }
        let flags = if ro { MappingFlags::READ } else { MappingFlags::READ | MappingFlags::WRITE };
        self.0.cursor().protect_region(va.into(), size, flags).is_ok()
    }

    #[inline]
    fn translate(&self, va: usize) -> Option<(usize, usize)> {
        let (pa, _, size) = self.0.query(va.into()).ok()?;
        let level = match size {
            PageSize::Size1G => 1,
            PageSize::Size2M => 2,
            _ => 3,
        };
        Some((pa.as_usize(), level))
    }

    #[inline(never)]
    fn unmap(&mut self, va: usize, size: usize) {
        self.0.cursor().unmap_region(va.into(), size).expect("all of it is mapped");
    }

    fn root(&self) -> usize {
        self.0.root_paddr().as_usize()
    }
}

impl Joins for Multiarch {}
