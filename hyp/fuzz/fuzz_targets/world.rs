//! Table memory of the host's, and all that a TLB may hold of a map of small tables: every leaf and every table that a walk could have
//! found since it was invalidated.

use std::alloc::{Layout, alloc_zeroed};
use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::OnceLock;

use hyp::mapping::geometry::level_shift;
use hyp::mapping::*;

const BASE: u64 = 0x4000_0000;
const TABLES: usize = 64;
/// What of a leaf a TLB holds no trace of: type, Contiguous bit, software bits.
const NOT_HELD: u64 = 0b11 | 1 << 52 | 0b1111 << 55;

/// Memory for the tables of one map after the other; the first byte of it is `BASE`.
fn memory() -> Linear {
    static START: OnceLock<usize> = OnceLock::new();
    let size = TABLES * GRANULE as usize;
    let start = *START.get_or_init(|| {
        let layout = Layout::from_size_align(size, 1 << 16).unwrap();
        // SAFETY: its size is not 0.
        unsafe { alloc_zeroed(layout) }.expose_provenance()
    });
    let bytes = std::ptr::with_exposed_provenance_mut::<u8>(start);
    // SAFETY: it is that memory, and the map before has ended.
    unsafe { bytes.write_bytes(0x5a, size) };
    Linear::new((start as u64).wrapping_sub(BASE))
}

/// A leaf or a run in a TLB, or a table in a cache of walks: first address, last, output of the first or the table, attributes.
type Held = (u64, u64, u64, u64);

struct Watched {
    root: Pa,
    level: u8,
    entries: usize,
}

/// The surroundings of a map.
pub struct World {
    memory: Linear,
    pool: Pool<Linear>,
    slots: [Slot; 2],
    refuses: bool,
    index_bits: u32,
    shifts: [u32; 4],
    watched: RefCell<Option<Watched>>,
    leaves: RefCell<BTreeSet<Held>>,
    walks: RefCell<BTreeSet<Held>>,
    /// Turns of loops that wait: nobody else is there.
    turn: Cell<u32>,
}

impl World {
    pub fn new<S: Shape>(tables: usize, refuses: bool) -> Self {
        let memory = memory();
        let pool = Pool::new(memory);
        let range = Range::new(BASE, tables.min(TABLES) as u64 * GRANULE).unwrap();
        // SAFETY: the map before has ended, and the memory is never freed.
        unsafe { pool.refill(range).unwrap() };
        Self {
            memory,
            pool,
            slots: [const { Slot::new() }; 2],
            refuses,
            index_bits: S::INDEX_BITS,
            shifts: [0, 1, 2, 3].map(level_shift::<S>),
            watched: RefCell::new(None),
            leaves: RefCell::default(),
            walks: RefCell::default(),
            turn: Cell::new(0),
        }
    }

    pub fn tables(&self) -> &Pool<Linear> {
        &self.pool
    }

    /// From now on this map is looked at, if its tables are small.
    pub fn watch<S: Shape>(&self, root: Pa, geometry: Geometry<S>) {
        if S::ENTRIES <= Tiny::ENTRIES {
            let entries = S::ENTRIES * geometry.root_tables();
            *self.watched.borrow_mut() = Some(Watched { root, level: geometry.start_level(), entries });
        }
    }

    /// Every leaf and table that a walk could find now gets into the TLB.
    pub fn look(&self) {
        if let Some(Watched { root, level, entries }) = &*self.watched.borrow() {
            self.each(*root, *level, 0, *entries, &mut |held, is_table| {
                let into = if is_table { &self.walks } else { &self.leaves };
                into.borrow_mut().insert(held);
            });
        }
    }

    fn each(&self, table: Pa, level: u8, base: u64, entries: usize, found: &mut impl FnMut(Held, bool)) {
        let shift = self.shifts[usize::from(level)];
        for index in 0..entries {
            // SAFETY: it is a table of the watched map.
            let raw = unsafe { self.memory.load(table, index) };
            let at = base + ((index as u64) << shift);
            let output = raw & 0x0000_ffff_ffff_f000;
            let last = at + (1 << shift) - 1;
            if raw & 0b11 == 0b11 && level < 3 {
                found((at, last, output, 0), true);
                self.each(Pa::new(output).unwrap(), level + 1, at, 1 << self.index_bits, found);
            } else if raw & 1 != 0 {
                let attributes = raw & !NOT_HELD & !0x0000_ffff_ffff_f000;
                found((at, last, output, attributes), false);
            }
        }
    }

    /// What a TLB may hold of addresses that translate anew is what they translate to.
    pub fn check_new(&self, ends: (u64, u64)) {
        self.look();
        self.check(ends, false);
    }

    /// Nothing that a TLB may hold is stale.
    pub fn check_all(&self) {
        self.check((0, u64::MAX), true);
    }

    fn check(&self, (start, end): (u64, u64), all: bool) {
        let Some(Watched { root, level, entries }) = &*self.watched.borrow() else { return };
        let mut now = std::collections::BTreeMap::new();
        let mut tables = BTreeSet::new();
        self.each(*root, *level, 0, *entries, &mut |held, is_table| {
            if is_table {
                tables.insert(held);
            } else {
                (held.0..held.1).step_by(GRANULE as usize).for_each(|at| {
                    now.insert(at, (held.2 + at - held.0, held.3));
                });
            }
        });
        for &(first, last, output, attributes) in self.leaves.borrow().iter() {
            for at in (first.max(start)..last.min(end.max(1) - 1)).step_by(GRANULE as usize) {
                let held = Some((output + at - first, attributes));
                let found = now.get(&at).copied();
                assert!(held == found, "a TLB may hold {held:x?} for {at:#x}, which is {found:x?}");
            }
        }
        if all {
            assert!(self.walks.borrow().is_subset(&tables), "a walk may still use a table that is no more");
        }
    }

    /// Entries that any of `start ..= end` lies in go away.
    fn forget(&self, start: u64, end: u64, last_level: bool) {
        let stays = |held: &Held| held.1 < start || end < held.0;
        self.leaves.borrow_mut().retain(stays);
        if !last_level {
            self.walks.borrow_mut().retain(stays);
        }
    }
}

// SAFETY: the pool's own word.
unsafe impl TablePool for World {
    fn reserve(&self, count: usize) -> Result<(), usize> {
        self.pool.reserve(count)
    }
    unsafe fn cancel(&self, count: usize) {
        // SAFETY: by the caller's word.
        unsafe { self.pool.cancel(count) };
    }
    unsafe fn take(&self) -> Pa {
        // SAFETY: by the caller's word.
        unsafe { self.pool.take() }
    }
    fn take_root(&self, count: usize) -> Option<Pa> {
        self.pool.take_root(count)
    }
    unsafe fn give(&self, table: Pa) {
        let is_walked = self.walks.borrow().iter().any(|held| held.2 == table.get());
        assert!(!is_walked, "a walk may still use the table at {table}, which is given back");
        // SAFETY: by the caller's word.
        unsafe { self.pool.give(table) };
    }
}

impl Quiesce for World {
    type Held = ();
    fn begin(&self, _start: u64, _size: u64) -> Option<()> {
        (!self.refuses).then_some(())
    }
}

// SAFETY: the pool's tables are of the memory; no CPU translates through it.
unsafe impl Mmu for World {
    type Tables = Linear;
    type Pool = Self;
    type Quiesce = Self;
    fn tables(&self) -> &Linear {
        &self.memory
    }
    fn pool(&self) -> &Self {
        self
    }
    fn quiesce(&self) -> &Self {
        self
    }
    fn slots(&self) -> &[Slot] {
        &self.slots
    }
    fn tlbi(&self, operation: Tlbi, _scope: Scope, operand: u64) {
        match operation {
            Tlbi::All | Tlbi::Asid => self.forget(0, u64::MAX, false),
            Tlbi::Address(reach) => {
                let at = (operand & ((1 << 36) - 1)) << 12;
                self.forget(at, at, reach.last_level);
            }
            Tlbi::Range(reach) => {
                let (first, scale, num) = (operand & ((1 << 37) - 1), operand >> 44 & 3, operand >> 39 & 31);
                let pages = (num + 1) << (5 * scale + 1);
                self.forget(first << 12, ((first + pages) << 12) - 1, reach.last_level);
            }
            Tlbi::Combined => {}
        }
        // Walks go on meanwhile.
        self.look();
    }
    fn barrier(&self, _barrier: Barrier, _scope: Scope) {}
    fn relax(&self) {
        self.turn.set(self.turn.get() + 1);
        assert!(self.turn.get() < 1_000_000, "it waits for nobody");
    }
}
