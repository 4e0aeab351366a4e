//! The crate `page-table-generic`: its `PageTable` with a descriptor of ours, because the crate has none.

use page_table_generic::{
    FrameAllocator, MapConfig, PageTable, PageTableEntry, PhysAddr, TableMeta, VirtAddr,
};

use crate::{
    Peer, RW_BITS,
    peer::{ADDRESS, Joins, READ_ONLY, TABLE_OR_PAGE, VALID},
    pool::pool,
};

pub struct Generic(PageTable<Geometry, Tables>);

/// Four levels of 512 descriptors, blocks up to 1 GiB, nothing to invalidate.
#[derive(Clone, Copy)]
struct Geometry;

impl TableMeta for Geometry {
    type P = Descriptor;
    const PAGE_SIZE: usize = 4096;
    const LEVEL_BITS: &[usize] = &[9, 9, 9, 9];
    const MAX_BLOCK_LEVEL: usize = 3;

    fn flush(_: Option<VirtAddr>) {}
}

/// Tables of the pool.
#[derive(Clone, Copy)]
struct Tables;

impl FrameAllocator for Tables {
    fn alloc_frame(&self) -> Option<PhysAddr> {
        Some(PhysAddr::from_usize(pool().get()))
    }

    fn dealloc_frame(&self, frame: PhysAddr) {
        pool().put(frame.as_usize());
    }

    fn phys_to_virt(&self, paddr: PhysAddr) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(paddr.as_usize())
    }
}

/// Its configuration is the attributes of a block.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
struct Descriptor(u64);

impl PageTableEntry for Descriptor {
    type PteConfig = u64;

    fn new_page(paddr: PhysAddr, config: u64, is_huge: bool) -> Self {
        let leaf_type = if is_huge { 0 } else { TABLE_OR_PAGE };
        Self(paddr.as_usize() as u64 | config | leaf_type)
    }

    fn new_table(paddr: PhysAddr) -> Self {
        Self(paddr.as_usize() as u64 | VALID | TABLE_OR_PAGE)
    }

    fn paddr(&self, _is_dir: bool) -> PhysAddr {
        PhysAddr::from_usize((self.0 & ADDRESS) as usize)
    }

    fn config(&self, _is_dir: bool) -> u64 {
        self.0 & !(ADDRESS | TABLE_OR_PAGE)
    }

    fn present(&self) -> bool {
        self.0 & VALID != 0
    }

    fn huge(&self, is_dir: bool) -> bool {
        is_dir && self.0 & (VALID | TABLE_OR_PAGE) == VALID
    }

    fn unused(&self) -> bool {
        self.0 == 0
    }

    fn clear(&mut self) {
        self.0 = 0;
    }
}

impl Peer for Generic {
    const NAME: &'static str = "page-table-generic";

    fn new() -> Self {
        Self(PageTable::new(Tables).expect("the pool has a table"))
    }

    #[inline(never)]
    fn map(&mut self, va: usize, pa: usize, size: usize, huge: bool) {
        let config = MapConfig {
            vaddr: VirtAddr::from_usize(va),
            paddr: PhysAddr::from_usize(pa),
            size,
            pte: RW_BITS,
            allow_huge: huge,
            flush: false,
        };
        self.0.map(&config).expect("nothing is in the way");
    }

    #[inline(never)]
    fn protect(&mut self, va: usize, size: usize, ro: bool) -> bool {
        let config = if ro { RW_BITS | READ_ONLY } else { RW_BITS };
        self.0.protect_region(VirtAddr::from_usize(va), size, config).is_ok()
    }

    #[inline]
    fn translate(&self, va: usize) -> Option<(usize, usize)> {
        let (pa, _, level) = self.0.translate_with_level(VirtAddr::from_usize(va)).ok()?;
        Some((pa.as_usize(), 4 - level))
    }

    #[inline(never)]
    fn unmap(&mut self, va: usize, size: usize) {
        self.0.unmap(VirtAddr::from_usize(va), size).expect("all of it is mapped");
    }

    fn root(&self) -> usize {
        self.0.root_paddr().as_usize()
    }
}

impl Joins for Generic {}
