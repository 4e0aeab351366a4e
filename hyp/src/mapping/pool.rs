//! Table memory: a finite number of granules, counted, handed out and taken back.
//!
//! Invariant: a table is in exactly one of three places: never used, returned (chained through its first entry), or out.
//! Reservations never exceed what is not out, so a reserved table is always there to be taken.

use spin::Mutex;

use super::addr::{Address, AddressError, GRANULE, Pa, Range};
use super::mmu::{TableMemory, TablePool};

/// Behind the first table that was returned.
const LAST: u64 = u64::MAX;

struct Inner {
    /// Tables that were never handed out: first byte, byte after the last.
    fresh: (u64, u64),
    /// The last table that was returned; its first entry is the address of the one before, or [`LAST`].
    returned: Option<Pa>,
    /// Tables in `fresh` and `returned`.
    free: usize,
    /// Of those, promised to somebody.
    reserved: usize,
    capacity: usize,
}

/// A pool that any number of maps share.
pub struct Pool<T> {
    tables: T,
    inner: Mutex<Inner>,
}

impl<T: TableMemory> Pool<T> {
    /// A pool without tables, for memory that `tables` reaches.
    pub const fn new(tables: T) -> Self {
        let inner = Inner { fresh: (0, 0), returned: None, free: 0, reserved: 0, capacity: 0 };
        Self { tables, inner: Mutex::new(inner) }
    }

    /// Adds the granules of `range`.
    ///
    /// # Safety
    /// `range` is memory that the pool's [`TableMemory`] reaches, that nothing else uses, and that outlives every map that has
    /// tables of this pool.
    ///
    /// # Errors
    /// [`AddressError::Misaligned`] if it is not made of granules.
    pub unsafe fn refill(&self, range: Range<Pa>) -> Result<(), AddressError> {
        let range = Range::<Pa>::of_granules(range.start().get(), range.size())?;
        let mut inner = self.inner.lock();
        let count = (range.size() / GRANULE) as usize;
        if inner.fresh.0 == inner.fresh.1 {
            inner.fresh = (range.start().get(), range.end());
            inner.free += count;
        } else {
            for number in 0..count as u64 {
                // The range ends below 2^48.
                self.chain(&mut inner, Pa::from_field(range.start().get() + number * GRANULE));
            }
        }
        inner.capacity += count;
        Ok(())
    }

    /// Tables there are in all.
    pub fn capacity(&self) -> usize {
        self.inner.lock().capacity
    }
    /// Tables that are out.
    pub fn used(&self) -> usize {
        let inner = self.inner.lock();
        inner.capacity - inner.free
    }
    /// Tables that can be reserved.
    pub fn free(&self) -> usize {
        let inner = self.inner.lock();
        inner.free - inner.reserved
    }

    fn chain(&self, inner: &mut Inner, table: Pa) {
        // SAFETY: the table is memory of this pool, and nobody has it.
        unsafe { self.tables.store(table, 0, inner.returned.map_or(LAST, Pa::bits)) };
        inner.returned = Some(table);
        inner.free += 1;
    }

    fn unchain(&self, inner: &mut Inner) -> Option<Pa> {
        let table = inner.returned?;
        // SAFETY: as for `chain`.
        let next = unsafe { self.tables.load(table, 0) };
        inner.returned = (next != LAST).then(|| Pa::from_field(next));
        inner.free -= 1;
        Some(table)
    }
}

// SAFETY: a table leaves `fresh` and `returned` when it is handed out, under the lock; what is in them is memory that
// `tables` reaches, by the word of who called `refill` and `give`.
unsafe impl<T: TableMemory> TablePool for Pool<T> {
    #[inline]
    fn reserve(&self, count: usize) -> Result<(), usize> {
        if count == 0 {
            return Ok(());
        }
        let mut inner = self.inner.lock();
        let free = inner.free - inner.reserved;
        if count > free {
            return Err(free);
        }
        inner.reserved += count;
        Ok(())
    }

    unsafe fn cancel(&self, count: usize) {
        self.inner.lock().reserved -= count;
    }

    #[inline]
    unsafe fn take(&self) -> Pa {
        let mut inner = self.inner.lock();
        assert!(inner.reserved > 0, "a table is taken that was not reserved");
        inner.reserved -= 1;
        if let Some(table) = self.unchain(&mut inner) {
            return table;
        }
        // Reserved, and not among the returned ones: so there is a fresh one.
        let table = Pa::from_field(inner.fresh.0);
        inner.fresh.0 += GRANULE;
        inner.free -= 1;
        table
    }

    fn take_root(&self, count: usize) -> Option<Pa> {
        let mut inner = self.inner.lock();
        let size = count as u64 * GRANULE;
        let start = inner.fresh.0.checked_next_multiple_of(size)?;
        let end = start.checked_add(size)?;
        if count > inner.free - inner.reserved {
            return None;
        }
        if end > inner.fresh.1 {
            return if count == 1 { self.unchain(&mut inner) } else { None };
        }
        // What alignment skips is as good as any other table.
        let (first, last) = (inner.fresh.0, start);
        inner.fresh.0 = end;
        inner.free -= ((end - first) / GRANULE) as usize;
        (first..last).step_by(GRANULE as usize).for_each(|gap| self.chain(&mut inner, Pa::from_field(gap)));
        Some(Pa::from_field(start))
    }

    unsafe fn give(&self, table: Pa) {
        let mut inner = self.inner.lock();
        self.chain(&mut inner, table);
    }
}

#[cfg(test)]
mod tests {
    use crate::mapping::fake::FakeMmu;
    use crate::mapping::{Address, TablePool};

    #[test]
    fn a_run_of_tables_is_aligned_and_what_that_skips_is_not_lost() {
        let mmu = FakeMmu::new(8);
        let pool = mmu.pool();
        assert_eq!(pool.take_root(1).map(|root| root.get() % 0x4000), Some(0));
        assert_eq!(pool.take_root(4).map(|root| root.get() % 0x4000), Some(0));
        assert_eq!((pool.used(), pool.free()), (5, 3));
        assert_eq!(pool.take_root(4), None);
        assert_eq!(pool.reserve(4), Err(3));
        pool.reserve(3).unwrap();
        // SAFETY: three were reserved.
        let mut tables = [(); 3].map(|()| unsafe { pool.take() });
        tables.sort();
        tables.windows(2).for_each(|pair| assert!(pair[0] < pair[1]));
        assert_eq!((pool.used(), pool.free(), pool.reserve(1)), (8, 0, Err(0)));
        // SAFETY: nobody uses them.
        tables.into_iter().for_each(|table| unsafe { pool.give(table) });
        assert_eq!((pool.used(), pool.free()), (5, 3));
    }

    #[test]
    fn what_is_reserved_is_nobody_elses() {
        let mmu = FakeMmu::new(4);
        let pool = mmu.pool();
        pool.reserve(3).unwrap();
        assert_eq!(pool.reserve(2), Err(1));
        assert_eq!(pool.take_root(2), None);
        // SAFETY: three were reserved.
        unsafe { pool.cancel(3) };
        assert!(pool.take_root(2).is_some());
    }
}
