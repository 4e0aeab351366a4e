//! What tests of single promises share: short ways to make maps, to ask them, and to see what was done.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::*;
use crate::mapping::descriptor::LOCK;
use crate::mapping::fake::{FakeQuiesce, Memory};
use crate::mapping::mmu::Reach;

pub const KIB: u64 = 1 << 10;
pub const MIB: u64 = 1 << 20;
pub const GIB: u64 = 1 << 30;

pub const VALID: u64 = 1 << 0;
pub const TABLE: u64 = 0b11;
pub const AF: u64 = 1 << 10;
pub const READ_ONLY: u64 = 1 << 7;
pub const S2_WRITE: u64 = 1 << 7;
pub const DBM: u64 = 1 << 51;
pub const SOFTWARE: u64 = 0b111 << 56;

/// By address or range: last-level entries only, of whatever ASID.
pub const LEAVES: Reach = Reach { last_level: true, one_asid: false };
/// By address or range: tables too.
pub const TABLES: Reach = Reach { last_level: false, one_asid: false };

/// What an operand by address says of the level.
pub const fn ttl(level: u64) -> u64 {
    (0b01 << 2 | level) << 44
}

/// An operand by range: `(num + 1) << (5 * scale + 1)` pages from `page` on.
pub const fn by_range(page: u64, scale: u64, num: u64, level: u64) -> u64 {
    0b01 << 46 | scale << 44 | num << 39 | level << 37 | page
}

pub fn pa(address: u64) -> Pa {
    Pa::new(address).unwrap()
}

/// Of CPUs with this level of FEAT_BBM.
pub fn bbm(level: u8) -> Options {
    with(level, Capabilities::empty())
}

/// Of CPUs with this level of FEAT_BBM, and more.
pub fn with(level: u8, more: Capabilities) -> Options {
    Options::new(Capabilities::LEAST | Capabilities::bbm(level) | more)
}

/// A map of 48 bits.
pub fn new<R: Regime, M: Mmu>(mmu: M, options: Options) -> Map<R, M> {
    let geometry = match R::STAGE {
        Stage::One => Geometry::stage1(48),
        Stage::Two => Geometry::stage2(48),
    };
    Map::new(mmu, geometry.unwrap(), options).unwrap()
}

/// Maps a range to itself.
pub fn add<R: Regime, M: Mmu>(
    map: &Map<R, M>,
    start: u64,
    size: u64,
    attributes: Attributes<R>,
    leaves: Leaves,
) {
    map.cpu(0).unwrap().write().map(range(start, size), pa(start), attributes, leaves).unwrap();
}

/// Unmaps a range and leaves the debt to the caller.
pub fn remove<R: Regime, M: Mmu>(map: &Map<R, M>, start: u64, size: u64) -> Debt<'_, R, M, Granule4K> {
    map.cpu(0).unwrap().write().unmap(range(start, size)).unwrap()
}

pub fn translate<R: Regime, M: Mmu>(map: &Map<R, M>, address: u64) -> Option<Translation<R>> {
    map.cpu(7).unwrap().read().translate(R::Input::new(address).unwrap())
}

/// Output and attribute bits of an address that translates.
pub fn found<R: Regime, M: Mmu>(map: &Map<R, M>, address: u64) -> (u64, u64) {
    translate(map, address).map(|t| (t.output.get(), t.attributes().bits())).unwrap()
}

pub fn entry<R: Regime, M: Mmu>(map: &Map<R, M>, address: u64) -> Entry<R> {
    map.cpu(7).unwrap().read().find(R::Input::new(address).unwrap()).unwrap().entry
}

pub fn census<R: Regime, M: Mmu>(map: &Map<R, M>) -> Census {
    map.cpu(7).unwrap().read().census()
}

/// Words stored since it was asked last.
pub fn take_stores(mmu: &FakeMmu) -> Stores {
    let memory = &mmu.memory;
    (memory.stores.swap(0, Relaxed), memory.fills.swap(0, Relaxed), memory.exchanges.swap(0, Relaxed))
}

/// Invalidations and barriers since it was asked last.
pub fn take_maintenance(mmu: &FakeMmu) -> (Vec<(Tlbi, u64)>, Vec<Barrier>) {
    let barriers = std::mem::take(&mut *mmu.barriers.lock().unwrap());
    (mmu.take_tlbis(), barriers)
}

/// Whether one of these invalidates a page in whatever size, and what walks hold of its tables if `tables`.
pub fn reaches(tlbis: &[(Tlbi, u64)], page: u64, tables: bool) -> bool {
    tlbis.iter().any(|&(operation, operand)| match operation {
        Tlbi::All | Tlbi::Asid => true,
        Tlbi::Combined => false,
        Tlbi::Address(reach) => operand == page && !(tables && reach.last_level),
        Tlbi::Range(reach) => {
            let (first, scale, num) = (operand & ((1 << 37) - 1), operand >> 44 & 3, operand >> 39 & 31);
            (first..first + ((num + 1) << (5 * scale + 1))).contains(&page) && !(tables && reach.last_level)
        }
    })
}

/// Makes a tree by hand in which address 0 is `raw` at `level`, below tables whose words have `bits`; and adopts it.
pub fn adopt<R: Regime>(mmu: &FakeMmu, options: Options, level: u8, raw: u64, bits: u64) -> Map<R, &FakeMmu> {
    let tables: Vec<Pa> = (0..=level).map(|_| mmu.pool().take_root(1).unwrap()).collect();
    for (number, &table) in tables.iter().enumerate() {
        let first = tables.get(number + 1).map_or(raw, |next| next.get() | TABLE | bits);
        // SAFETY: the table came from the pool just now.
        unsafe {
            mmu.memory.fill(table, 0, 512, 0, 0);
            mmu.memory.store(table, 0, first);
        }
    }
    take_stores(mmu);
    // SAFETY: the tables are the fake's, and nobody else has them.
    unsafe { Map::adopt(mmu, tables[0], Geometry::stage1(48).unwrap(), options) }
}

/// What was done to the world, in its order. Locks are left out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// A leaf became one that is being broken and made.
    Break,
    /// Any other store to a linked table.
    Store,
    Tlbi(Tlbi, u64),
    Barrier(Barrier),
}

/// A fake that remembers the order of stores and maintenance, and calls a test back at each invalidation.
pub struct Traced<'h> {
    pub fake: FakeMmu,
    steps: RefCell<Vec<Step>>,
    pub at_tlbi: Cell<Option<&'h dyn Fn()>>,
}

impl Traced<'_> {
    pub fn new() -> Self {
        Self { fake: FakeMmu::new(32), steps: RefCell::default(), at_tlbi: Cell::new(None) }
    }
    pub fn take(&self) -> Vec<Step> {
        self.steps.take()
    }
    fn stored(&self, before: u64, raw: u64) {
        if (before ^ raw) & !LOCK != 0 {
            let changing = Entry::<El2>::Changing.encode(3);
            self.steps.borrow_mut().push(if raw == changing { Step::Break } else { Step::Store });
        }
    }
}

impl TableMemory for Traced<'_> {
    unsafe fn load(&self, table: Pa, index: usize) -> u64 {
        // SAFETY: by the caller's word; so for all of them.
        unsafe { self.fake.memory.load(table, index) }
    }
    unsafe fn store(&self, table: Pa, index: usize, raw: u64) {
        // SAFETY: as for `load`.
        unsafe {
            self.stored(self.load(table, index), raw);
            self.fake.memory.store(table, index, raw);
        }
    }
    unsafe fn link(&self, table: Pa, index: usize, raw: u64) {
        // SAFETY: as for `load`.
        unsafe {
            self.stored(self.load(table, index), raw);
            self.fake.memory.link(table, index, raw);
        }
    }
    unsafe fn compare_exchange(&self, table: Pa, index: usize, old: u64, new: u64) -> bool {
        self.stored(old, new);
        // SAFETY: as for `load`.
        unsafe { self.fake.memory.compare_exchange(table, index, old, new) }
    }
    unsafe fn fill(&self, table: Pa, from: usize, to: usize, raw: u64, step: u64) {
        // SAFETY: as for `load`.
        unsafe { self.fake.memory.fill(table, from, to, raw, step) }
    }
}

// SAFETY: all of it is the fake's.
unsafe impl Mmu for Traced<'_> {
    type Tables = Self;
    type Pool = Pool<Arc<Memory>>;
    type Quiesce = FakeQuiesce;
    fn tables(&self) -> &Self {
        self
    }
    fn pool(&self) -> &Self::Pool {
        self.fake.pool()
    }
    fn quiesce(&self) -> &FakeQuiesce {
        &self.fake.quiesce
    }
    fn slots(&self) -> &[Slot] {
        self.fake.slots()
    }
    fn tlbi(&self, operation: Tlbi, _scope: Scope, operand: u64) {
        self.steps.borrow_mut().push(Step::Tlbi(operation, operand));
        if let Some(at_tlbi) = self.at_tlbi.get() {
            at_tlbi();
        }
    }
    fn barrier(&self, barrier: Barrier, _scope: Scope) {
        self.steps.borrow_mut().push(Step::Barrier(barrier));
    }
}

/// Stores to linked tables, to unlinked ones, by compare and exchange.
pub type Stores = (usize, usize, usize);

pub const DATA: Attributes<El2> = Attributes::<El2>::DATA;
pub const FLUSHED: [Barrier; 3] = [Barrier::StoresVisible, Barrier::Complete, Barrier::Synchronize];
