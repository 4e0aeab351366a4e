//! An MMU for the host's tests: tables in ordinary memory, and what would be maintenance counted.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex, OnceLock};

use super::mmu::{Barrier, Mmu, Quiesce, Scope, TableMemory, Tlbi};
use super::pool::Pool;
use super::walk::Slot;
use super::{Address, GRANULE, Pa, Range};

/// Where the tables of every fake lie.
const BASE: u64 = 0x4030_0000;
/// Words that a fake keeps of each table: those of the largest shape.
const WORDS: usize = 512;

/// Tables, and what was done to them.
#[derive(Default)]
pub struct Memory {
    words: Vec<AtomicU64>,
    /// Words of one table; the others of its granule do not exist.
    entries: usize,
    /// Stores to linked tables and to unlinked ones.
    pub stores: AtomicUsize,
    pub fills: AtomicUsize,
    pub exchanges: AtomicUsize,
    /// Called after each store to a linked table.
    pub watch: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Memory {
    fn word(&self, table: Pa, index: usize) -> &AtomicU64 {
        let number = ((table.get() - BASE) / GRANULE) as usize;
        &self.words[number * self.entries + index]
    }

    fn tell(&self) {
        if let Some(watch) = self.watch.get() {
            watch();
        }
    }
}

impl TableMemory for Arc<Memory> {
    unsafe fn load(&self, table: Pa, index: usize) -> u64 {
        self.word(table, index).load(Acquire)
    }
    unsafe fn store(&self, table: Pa, index: usize, raw: u64) {
        self.stores.fetch_add(1, Relaxed);
        self.word(table, index).store(raw, Relaxed);
        self.tell();
    }
    unsafe fn link(&self, table: Pa, index: usize, raw: u64) {
        self.stores.fetch_add(1, Relaxed);
        self.word(table, index).store(raw, Release);
        self.tell();
    }
    unsafe fn compare_exchange(&self, table: Pa, index: usize, old: u64, new: u64) -> bool {
        self.exchanges.fetch_add(1, Relaxed);
        self.word(table, index).compare_exchange(old, new, AcqRel, Relaxed).is_ok()
    }
    unsafe fn fill(&self, table: Pa, from: usize, to: usize, raw: u64, step: u64) {
        self.fills.fetch_add(to - from, Relaxed);
        for index in from..to {
            self.word(table, index).store(raw.wrapping_add((index - from) as u64 * step), Relaxed);
        }
    }
}

/// Makes others stand still, if it was told that it can, and remembers for what.
#[derive(Default)]
pub struct FakeQuiesce {
    pub refuses: core::sync::atomic::AtomicBool,
    pub asked: Mutex<Vec<(u64, u64)>>,
}

impl Quiesce for FakeQuiesce {
    type Held = ();
    fn begin(&self, start: u64, size: u64) -> Option<()> {
        self.asked.lock().unwrap().push((start, size));
        (!self.refuses.load(Relaxed)).then_some(())
    }
}

pub struct FakeMmu<Q = FakeQuiesce> {
    pub memory: Arc<Memory>,
    pool: Pool<Arc<Memory>>,
    slots: [Slot; 8],
    pub quiesce: Q,
    /// Invalidations in their order.
    pub tlbis: Mutex<Vec<(Tlbi, u64)>>,
    pub barriers: Mutex<Vec<Barrier>>,
    /// Of invalidations and barriers alike.
    pub scopes: Mutex<Vec<Scope>>,
}

impl FakeMmu {
    /// With so many tables.
    pub fn new(tables: usize) -> Self {
        Self::of_entries(tables, WORDS)
    }

    /// With so many tables of so many entries.
    pub fn of_entries(tables: usize, entries: usize) -> Self {
        Self::with_quiesce(tables, entries, FakeQuiesce::default())
    }
}

impl<Q> FakeMmu<Q> {
    /// The same, in which others stand still as `quiesce` says.
    pub fn with_quiesce(tables: usize, entries: usize, quiesce: Q) -> Self {
        let words = (0..tables * entries).map(|_| AtomicU64::new(0x5a5a_5a5a_5a5a_5a5a)).collect();
        let memory = Arc::new(Memory { words, entries, ..Memory::default() });
        let pool = Pool::new(memory.clone());
        // SAFETY: it is memory that only this pool hands out, and lives as long as the maps' `Arc`.
        unsafe { pool.refill(Range::<Pa>::new(BASE, tables as u64 * GRANULE).unwrap()).unwrap() };
        Self {
            memory,
            pool,
            slots: Default::default(),
            quiesce,
            tlbis: Mutex::default(),
            barriers: Mutex::default(),
            scopes: Mutex::default(),
        }
    }

    pub fn pool(&self) -> &Pool<Arc<Memory>> {
        &self.pool
    }

    /// Invalidations since it was asked last.
    pub fn take_tlbis(&self) -> Vec<(Tlbi, u64)> {
        self.barriers.lock().unwrap().clear();
        self.scopes.lock().unwrap().clear();
        std::mem::take(&mut self.tlbis.lock().unwrap())
    }
}

// SAFETY: pool and tables are of the same memory; no CPU translates through it.
unsafe impl<Q: Quiesce> Mmu for FakeMmu<Q> {
    type Tables = Arc<Memory>;
    type Pool = Pool<Arc<Memory>>;
    type Quiesce = Q;
    fn tables(&self) -> &Arc<Memory> {
        &self.memory
    }
    fn pool(&self) -> &Pool<Arc<Memory>> {
        &self.pool
    }
    fn quiesce(&self) -> &Q {
        &self.quiesce
    }
    fn slots(&self) -> &[Slot] {
        &self.slots
    }
    fn tlbi(&self, operation: Tlbi, scope: Scope, operand: u64) {
        self.scopes.lock().unwrap().push(scope);
        self.tlbis.lock().unwrap().push((operation, operand));
    }
    fn barrier(&self, barrier: Barrier, scope: Scope) {
        self.scopes.lock().unwrap().push(scope);
        self.barriers.lock().unwrap().push(barrier);
    }
    fn relax(&self) {
        std::thread::yield_now();
    }
    fn wait(&self) {
        self.quiesce.pass();
        self.relax();
    }
}
