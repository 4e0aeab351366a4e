//! What 1.0 means for joining, in the manner of `bound.rs`: each entry of a table is loaded once and compared with what it should be,
//! one store puts the leaf in the table's place, and the table is given back.

use std::sync::atomic::{AtomicU64, Ordering::*};

use crate::{
    Peer,
    bound::Raw,
    peer::{ADDRESS, Joins, TABLE_OR_PAGE},
    pool::pool,
};

#[inline(always)]
fn slot(table: usize, index: usize) -> &'static AtomicU64 {
    // SAFETY: a table of the pool, and the index is within it; tables are accessed atomically.
    unsafe { AtomicU64::from_ptr(std::ptr::with_exposed_provenance_mut(table + index * 8)) }
}

#[inline(always)]
fn below(slot: &AtomicU64) -> usize {
    (slot.load(Relaxed) & ADDRESS) as usize
}

const fn size_of_leaf(level: usize) -> usize {
    1 << (39 - 9 * level)
}

const fn index(va: usize, level: usize) -> usize {
    va / size_of_leaf(level) % 512
}

/// The table of `level` that `parent` points to becomes a leaf, if its entries run on from an address that a leaf can have.
#[inline(always)]
fn join(parent: &AtomicU64, level: usize) {
    let table = below(parent);
    let first = slot(table, 0).load(Relaxed);
    if first & ADDRESS & (size_of_leaf(level - 1) as u64 - 1) != 0 {
        return;
    }
    let mut expected = first;
    for index in 0..512 {
        if slot(table, index).load(Relaxed) != expected {
            return;
        }
        expected += size_of_leaf(level) as u64;
    }
    parent.store(first & !TABLE_OR_PAGE, Release);
    pool().put(table);
}

impl Joins for Raw {
    #[inline(never)]
    fn collapse(&mut self, va: usize, size: usize) -> bool {
        let (gib, block, end) = (size_of_leaf(1), size_of_leaf(2), va + size);
        let level_1 = below(slot(self.root(), index(va, 0)));
        for start in (va & !(gib - 1)..end).step_by(gib) {
            let parent = slot(level_1, index(start, 1));
            let level_2 = below(parent);
            for block in (start.max(va & !(block - 1))..end.min(start + gib)).step_by(block) {
                join(slot(level_2, index(block, 2)), 3);
            }
            join(parent, 2);
        }
        true
    }
}
