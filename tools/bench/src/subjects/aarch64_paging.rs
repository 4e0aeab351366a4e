//! The crate `aarch64-paging`: its `Mapping`, never active, so without checks of break-before-make and without
//! invalidations. It has no lookup; `walk_range` over one page serves.

use std::ptr::NonNull;

use aarch64_paging::{
    Mapping,
    descriptor::{El23Attributes, PhysicalAddress},
    paging::{Constraints, El2, MemoryRegion, PageTable, Translation},
};

use crate::{Peer, RW_BITS, peer::Joins, pool::pool};

pub struct Paging(Mapping<Tables, El2>);

/// Tables of the pool.
struct Tables;

impl Translation<El23Attributes> for Tables {
    fn allocate_table(&mut self) -> (NonNull<PageTable<El23Attributes>>, PhysicalAddress) {
        let pa = PhysicalAddress(pool().get_zeroed());
        (self.physical_to_virtual(pa), pa)
    }

    unsafe fn deallocate_table(&mut self, table: NonNull<PageTable<El23Attributes>>) {
        pool().put(table.addr().get());
    }

    fn physical_to_virtual(&self, pa: PhysicalAddress) -> NonNull<PageTable<El23Attributes>> {
        NonNull::new(std::ptr::with_exposed_provenance_mut(pa.0)).expect("tables are not at address 0")
    }
}

fn region(va: usize, size: usize) -> MemoryRegion {
    MemoryRegion::new(va, va + size)
}

impl Peer for Paging {
    const NAME: &'static str = "aarch64-paging";

    fn new() -> Self {
        Self(Mapping::new(Tables, 0, El2))
    }

    #[inline(never)]
    fn map(&mut self, va: usize, pa: usize, size: usize, huge: bool) {
        let constraints = if huge { Constraints::empty() } else { Constraints::NO_BLOCK_MAPPINGS };
        let flags = El23Attributes::from_bits_retain(RW_BITS as usize);
        self.0
            .map_range(&region(va, size), PhysicalAddress(pa), flags, constraints)
            .expect("nothing is in the way");
    }

    #[inline(never)]
    fn protect(&mut self, va: usize, size: usize, ro: bool) -> bool {
        let (none, read_only) = (El23Attributes::empty(), El23Attributes::READ_ONLY);
        let (set, clear) = if ro { (read_only, none) } else { (none, read_only) };
        self.0.modify_range(&region(va, size), &|_, descriptor| descriptor.modify_flags(set, clear)).is_ok()
    }

    #[inline]
    fn translate(&self, va: usize) -> Option<(usize, usize)> {
        let mut found = None;
        let walked = self.0.walk_range(&region(va, 1), &mut |_, descriptor, level| {
            if descriptor.is_valid() {
                let within = (1 << (39 - 9 * level)) - 1;
                found = Some((descriptor.output_address().0 | (va & within), level));
            }
            Ok(())
        });
        walked.ok().and(found)
    }

    #[inline(never)]
    fn unmap(&mut self, va: usize, size: usize) {
        let none = El23Attributes::empty();
        self.0
            .map_range(&region(va, size), PhysicalAddress(0), none, Constraints::empty())
            .expect("whole tables are unmapped");
    }

    fn root(&self) -> usize {
        self.0.root_address().0
    }
}

impl Joins for Paging {}
