//! The table memory that all subjects share: 4 KiB tables in one area, touched once so that no page fault is timed.
//!
//! Invariant: a table is either in the free stack or with a subject. Addresses are host pointers, and the physical address
//! of a table is its host address.

use std::{
    alloc::{Layout, alloc_zeroed, handle_alloc_error},
    cell::Cell,
};

const TABLE: usize = 4096;
/// Tables that one work may hold.
const WINDOW: usize = 1 << 14;
/// The first window is for warm works. The others take turns, so that their tables were out of use for long.
const WINDOWS: usize = 4;

/// See the top of this file.
pub struct Pool {
    area: usize,
    free: Box<[Cell<usize>]>,
    left: Cell<usize>,
    taken: Cell<u64>,
    window: Cell<usize>,
}

thread_local! {
    static POOL: &'static Pool = Box::leak(Box::new(Pool::new()));
}

/// The pool of this thread.
#[inline]
pub fn pool() -> &'static Pool {
    POOL.with(|pool| *pool)
}

impl Pool {
    fn new() -> Self {
        let layout = Layout::from_size_align(WINDOWS * WINDOW * TABLE, 1 << 21).expect("a valid layout");
        // SAFETY: the layout has a size.
        let area = unsafe { alloc_zeroed(layout) };
        if area.is_null() {
            handle_alloc_error(layout);
        }
        for table in 0..WINDOWS * WINDOW {
            // SAFETY: within the area that was just allocated; never freed.
            unsafe { area.add(table * TABLE).write_volatile(1) };
        }
        let area = area.expose_provenance();
        let free = vec![Cell::new(0); WINDOW].into_boxed_slice();
        let pool = Self { area, free, left: Cell::new(WINDOW), taken: Cell::new(0), window: Cell::new(0) };
        pool.warm();
        pool
    }

    /// The address of a table of any content.
    #[inline]
    pub fn get(&self) -> usize {
        let left = self.left.get().checked_sub(1).expect("the pool is empty");
        self.left.set(left);
        self.taken.set(self.taken.get() + 1);
        self.free[left].get()
    }

    /// The address of a table of zeroes.
    #[inline]
    pub fn get_zeroed(&self) -> usize {
        let table = self.get();
        // SAFETY: a table of the area, and nobody else holds it.
        unsafe { std::ptr::with_exposed_provenance_mut::<u8>(table).write_bytes(0, TABLE) };
        table
    }

    /// Takes back a table that `get` or `get_zeroed` gave out.
    #[inline]
    pub fn put(&self, table: usize) {
        let left = self.left.get();
        self.free[left].set(table);
        self.left.set(left + 1);
    }

    /// The tables that can be had.
    pub fn free(&self) -> usize {
        self.left.get()
    }

    /// The tables given out so far.
    pub fn taken(&self) -> u64 {
        self.taken.get()
    }

    /// The tables that are with a subject now.
    pub fn held(&self) -> usize {
        WINDOW - self.left.get()
    }

    /// Puts the same tables in the same order before each subject: the ones that were used last.
    pub fn warm(&self) {
        self.arrange(0);
    }

    /// Puts tables in the stack that were out of use for longest.
    pub fn cold(&self) {
        self.window.set(self.window.get() % (WINDOWS - 1) + 1);
        self.arrange(self.window.get());
    }

    fn arrange(&self, window: usize) {
        assert_eq!(self.held(), 0, "a subject kept tables");
        let first = self.area + window * WINDOW * TABLE;
        for (at, slot) in self.free.iter().rev().enumerate() {
            slot.set(first + at * TABLE);
        }
    }
}
