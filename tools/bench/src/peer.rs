//! What a subject of the benchmark must be able to do, and the attributes that it maps with.

use crate::work::Work;

/// A read-write block: valid, attribute index 1, inner shareable, accessed, execute-never. A page has bit 1 set besides.
pub const RW_BITS: u64 = VALID | ATTRIBUTE_INDEX_1 | INNER_SHAREABLE | ACCESSED | EXECUTE_NEVER;
pub const VALID: u64 = 1;
pub const TABLE_OR_PAGE: u64 = 1 << 1;
pub const READ_ONLY: u64 = 1 << 7;
/// The address field of a descriptor.
pub const ADDRESS: u64 = 0x0000_ffff_ffff_f000;
pub const ATTRIBUTE_INDEX_1: u64 = 1 << 2;
pub const INNER_SHAREABLE: u64 = 3 << 8;
pub const ACCESSED: u64 = 1 << 10;
pub const EXECUTE_NEVER: u64 = 1 << 54;

/// A page-table engine: 4 KiB granule, four levels, tables from [`pool`](crate::pool::pool), all of which it gives back
/// when it is dropped.
pub trait Peer {
    const NAME: &'static str;

    /// An empty map: a root table.
    fn new() -> Self;

    /// Maps `size` bytes read-write, in the largest blocks that fit if `huge`, else in pages.
    fn map(&mut self, va: usize, pa: usize, size: usize, huge: bool);

    /// Makes mapped bytes read-only or read-write. False if this subject cannot change just these.
    fn protect(&mut self, va: usize, size: usize, ro: bool) -> bool;

    /// The output address, and the level of the leaf.
    fn translate(&self, va: usize) -> Option<(usize, usize)>;

    /// The sum of output address and level over many addresses: one batch, for subjects that must enter something before
    /// they may look.
    fn translate_all(&self, vas: &[usize]) -> usize {
        let sums = vas.iter().map(|&va| self.translate(va).map_or(0, |(pa, level)| pa + level));
        sums.fold(0, usize::wrapping_add)
    }

    /// Unmaps whole gibibytes.
    fn unmap(&mut self, va: usize, size: usize);

    /// The address of the root table.
    fn root(&self) -> usize;

    /// What `work` costs beside time, for a subject that can count it; never called while time is taken.
    fn counts(_work: &Work) -> Counts {
        Counts::default()
    }
}

/// What a subject must be able to do besides, to be measured at joining what was split. `Peer` is as the bound was given for it.
pub trait Joins: Peer {
    /// Makes of `size` mapped bytes the largest leaves that can say the same, and gives back the tables that fall out. False if
    /// this subject cannot.
    fn collapse(&mut self, _va: usize, _size: usize) -> bool {
        false
    }

    /// Makes bytes read-write and joins them.
    fn put_back(&mut self, va: usize, size: usize) -> bool {
        self.protect(va, size, false) && self.collapse(va, size)
    }
}

/// What a work costs beside time: stores to tables, the filling of new ones included; TLB invalidations; barriers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    pub stores: Option<u64>,
    pub tlbis: Option<u64>,
    pub dsbs: Option<u64>,
    pub isbs: Option<u64>,
}

impl Counts {
    pub fn barriers(self) -> Option<u64> {
        Some(self.dsbs? + self.isbs?)
    }
}
