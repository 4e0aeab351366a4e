//! Table memory: a fixed number of granules, handed out until there are none.
//!
//! Invariant: every table that was handed out lies in the pool's own slice, so an entry is reached by a checked
//! index and never by a raw pointer; a table is all invalid entries when it is handed out.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::addr::{Address, GRANULE, Pa, Range};
use super::descriptor::ENTRIES;

/// One granule of table memory. Walkers of other CPUs read it, hence the atomics.
#[repr(C, align(4096))]
pub struct Table([AtomicU64; ENTRIES]);

impl Table {
    /// A table of invalid entries.
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; ENTRIES])
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

/// The tables of one hypervisor or kernel.
pub struct Pool<'a> {
    tables: &'a [Table],
    range: Range<Pa>,
    used: usize,
}

impl<'a> Pool<'a> {
    /// A pool of `tables`, whose first lies at physical address `base`.
    ///
    /// # Errors
    /// [`AddressError`](super::AddressError) if `base` is misaligned or the pool ends above 2^48.
    pub fn new(tables: &'a [Table], base: Pa) -> Result<Self, super::AddressError> {
        let range = Range::of_granules(base.get(), tables.len() as u64 * GRANULE)?;
        Ok(Self { tables, range, used: 0 })
    }

    /// Tables there are in all.
    pub fn capacity(&self) -> usize {
        self.tables.len()
    }
    /// Tables that were handed out, those skipped for alignment included.
    pub fn used(&self) -> usize {
        self.used
    }
    /// Tables that are left.
    pub fn free(&self) -> usize {
        self.tables.len() - self.used
    }

    /// `count` adjacent tables (a power of two) aligned to their size, or nothing if the pool has not so many.
    pub(super) fn take(&mut self, count: usize) -> Option<Pa> {
        let align = count as u64 * GRANULE;
        let first = self.range.start().get() + self.used as u64 * GRANULE;
        let start = first.checked_next_multiple_of(align)?;
        let end = start.checked_add(align)?;
        if end > self.range.end() {
            return None;
        }
        self.used = ((end - self.range.start().get()) / GRANULE) as usize;
        for entry in &self.tables[self.used - count..self.used] {
            entry.0.iter().for_each(|e| e.store(0, Relaxed));
        }
        Pa::new(start).ok()
    }

    /// The entry of number `index` of the table, or run of adjacent tables, at `table`.
    fn entry(&self, table: Pa, index: usize) -> Option<&AtomicU64> {
        let offset = table.get().checked_sub(self.range.start().get())?;
        let number = (offset / GRANULE) as usize + index / ENTRIES;
        self.tables.get(number).map(|t| &t.0[index % ENTRIES])
    }

    /// The raw entry; an invalid one outside the pool's tables.
    pub(super) fn load(&self, table: Pa, index: usize) -> u64 {
        self.entry(table, index).map_or(0, |e| e.load(Relaxed))
    }

    /// Stores a raw entry of a table of this pool.
    pub(super) fn store(&self, table: Pa, index: usize, raw: u64) {
        debug_assert!(self.entry(table, index).is_some(), "table {table} is not of this pool");
        if let Some(entry) = self.entry(table, index) {
            entry.store(raw, Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_hands_out_each_table_once_aligned_and_clear() {
        let tables: Vec<Table> = (0..5).map(|_| Table::new()).collect();
        tables[2].0[7].store(1, Relaxed);
        let mut pool = Pool::new(&tables, Pa::new(0x5000).unwrap()).unwrap();
        assert_eq!(pool.take(1).map(Pa::get), Some(0x5000));
        assert_eq!(pool.take(2).map(Pa::get), Some(0x6000));
        assert_eq!(pool.load(Pa::new(0x7000).unwrap(), 7), 0);
        assert_eq!(pool.take(2).map(Pa::get), Some(0x8000));
        assert_eq!((pool.used(), pool.free(), pool.take(1)), (5, 0, None));
    }

    #[test]
    fn a_run_that_must_be_aligned_skips_and_the_pool_counts_it() {
        let tables: Vec<Table> = (0..4).map(|_| Table::new()).collect();
        let mut pool = Pool::new(&tables, Pa::new(0x1000).unwrap()).unwrap();
        assert_eq!(pool.take(2).map(Pa::get), Some(0x2000));
        assert_eq!(pool.used(), 3);
        assert_eq!(pool.take(2), None);
        assert_eq!(pool.used(), 3);
    }
}
