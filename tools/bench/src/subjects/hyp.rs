//! This project's engine: `hyp::mapping`, as an embedder uses it, with maintenance that does nothing, or is counted.

use std::cell::Cell;

use hyp::mapping::{
    Address, Attributes, Barrier, Capabilities, Census, Change, El2, Geometry, Leaves, Linear, Map, Mmu,
    NoQuiesce, Options, Pa, Range, Scope, Slot, TableMemory, TablePool, Tlbi, Va,
};

use crate::{
    Peer,
    peer::{Counts, Joins},
    pool::pool,
    work::Work,
};

/// The engine without contiguous runs: the same end state as the bound.
pub struct Hyp<M: Mmu = Host>(Option<Map<El2, M>>);
/// As it comes, with runs.
pub struct HypRuns(Hyp);

/// Tables lie where the pool's addresses say.
const TABLES: Linear = Linear::new(0);

/// The pool's tables, and slots for two CPUs.
pub struct Host {
    slots: [Slot; 2],
}

/// What was done since it was last asked.
struct Tally {
    stores: Cell<u64>,
    tlbis: Cell<u64>,
    dsbs: Cell<u64>,
    isbs: Cell<u64>,
}

thread_local! {
    static TALLY: Tally = const {
        Tally { stores: Cell::new(0), tlbis: Cell::new(0), dsbs: Cell::new(0), isbs: Cell::new(0) }
    };
}

fn add(to: impl Fn(&Tally) -> &Cell<u64>, count: u64) {
    TALLY.with(|tally| to(tally).set(to(tally).get() + count));
}

// SAFETY: the pool's tables lie where `TABLES` reaches them; no CPU translates through them.
unsafe impl Mmu for Host {
    type Tables = Linear;
    type Pool = Self;
    type Quiesce = NoQuiesce;
    #[inline]
    fn tables(&self) -> &Linear {
        &TABLES
    }
    #[inline]
    fn pool(&self) -> &Self {
        self
    }
    fn quiesce(&self) -> &NoQuiesce {
        &NoQuiesce
    }
    fn slots(&self) -> &[Slot] {
        &self.slots
    }
    fn tlbi(&self, _: Tlbi, _: Scope, _: u64) {}
    fn barrier(&self, _: Barrier, _: Scope) {}
}

fn address(table: usize) -> Pa {
    Pa::new(table as u64).expect("host addresses have 48 bits")
}

// SAFETY: the bench's pool hands each table out once; roots are of one table, as every table is aligned to its size.
unsafe impl TablePool for Host {
    fn reserve(&self, count: usize) -> Result<(), usize> {
        let free = pool().free();
        if count > free { Err(free) } else { Ok(()) }
    }
    unsafe fn cancel(&self, _: usize) {}
    #[inline]
    unsafe fn take(&self) -> Pa {
        address(pool().get())
    }
    fn take_root(&self, count: usize) -> Option<Pa> {
        (count == 1).then(|| address(pool().get()))
    }
    #[inline]
    unsafe fn give(&self, table: Pa) {
        pool().put(table.get() as usize);
    }
}

/// The same, counted.
struct Counted(Host);

impl TableMemory for Counted {
    unsafe fn load(&self, table: Pa, index: usize) -> u64 {
        // SAFETY: the caller's.
        unsafe { TABLES.load(table, index) }
    }
    unsafe fn store(&self, table: Pa, index: usize, raw: u64) {
        add(|tally| &tally.stores, 1);
        // SAFETY: the caller's.
        unsafe { TABLES.store(table, index, raw) }
    }
    unsafe fn link(&self, table: Pa, index: usize, raw: u64) {
        add(|tally| &tally.stores, 1);
        // SAFETY: the caller's.
        unsafe { TABLES.link(table, index, raw) }
    }
    unsafe fn compare_exchange(&self, table: Pa, index: usize, old: u64, new: u64) -> bool {
        add(|tally| &tally.stores, 1);
        // SAFETY: the caller's.
        unsafe { TABLES.compare_exchange(table, index, old, new) }
    }
    unsafe fn fill(&self, table: Pa, from: usize, to: usize, raw: u64, step: u64) {
        add(|tally| &tally.stores, (to - from) as u64);
        // SAFETY: the caller's.
        unsafe { TABLES.fill(table, from, to, raw, step) }
    }
}

// SAFETY: as for `Host`.
unsafe impl Mmu for Counted {
    type Tables = Self;
    type Pool = Host;
    type Quiesce = NoQuiesce;
    fn tables(&self) -> &Self {
        self
    }
    fn pool(&self) -> &Host {
        &self.0
    }
    fn quiesce(&self) -> &NoQuiesce {
        &NoQuiesce
    }
    fn slots(&self) -> &[Slot] {
        &self.0.slots
    }
    fn tlbi(&self, _: Tlbi, _: Scope, _: u64) {
        add(|tally| &tally.tlbis, 1);
    }
    fn barrier(&self, barrier: Barrier, _: Scope) {
        match barrier {
            Barrier::StoresVisible | Barrier::Complete => add(|tally| &tally.dsbs, 1),
            Barrier::Synchronize => add(|tally| &tally.isbs, 1),
        }
    }
}

impl From<Host> for Counted {
    fn from(host: Host) -> Self {
        Self(host)
    }
}

fn new<M: Mmu + From<Host>>(runs: bool) -> Hyp<M> {
    let host = Host { slots: [Slot::new(), Slot::new()] };
    let all = Capabilities::LEAST | Capabilities::bbm(3) | Capabilities::TLB_RANGE | Capabilities::TLB_LEVEL;
    let set = if runs { all } else { all - Capabilities::CONTIGUOUS };
    let map = Map::new(host.into(), Geometry::stage1(48).expect("48 bits"), Options::new(set));
    Hyp(Some(map.expect("a root")))
}

fn range(start: usize, size: usize) -> Range<Va> {
    Range::new(start as u64, size as u64).expect("a range of 48 bits")
}

impl<M: Mmu> Hyp<M> {
    fn map(&self) -> &Map<El2, M> {
        self.0.as_ref().expect("it lives")
    }
}

impl<M: Mmu> Drop for Hyp<M> {
    fn drop(&mut self) {
        // SAFETY: no CPU ever translated through it.
        self.0.take().into_iter().for_each(|map| unsafe { map.destroy() });
    }
}

impl<M: Mmu + From<Host>> Peer for Hyp<M> {
    const NAME: &'static str = "hyp";

    fn new() -> Self {
        new(false)
    }
    fn map(&mut self, va: usize, pa: usize, size: usize, huge: bool) {
        let leaves = Leaves { blocks: huge, runs: true };
        let mut cpu = (*self).map().cpu(0).expect("nobody else is here");
        let output = Pa::new(pa as u64).expect("an address of 48 bits");
        cpu.write().map(range(va, size), output, Attributes::<El2>::DATA, leaves).expect("enough tables");
    }
    fn protect(&mut self, va: usize, size: usize, ro: bool) -> bool {
        let change = if ro { Change::<El2>::READ_ONLY } else { Change::<El2>::WRITABLE };
        (*self).map().protect(range(va, size), change).expect("enough tables").flush();
        true
    }
    fn translate(&self, va: usize) -> Option<(usize, usize)> {
        let mut cpu = self.map().cpu(0)?;
        let found = cpu.read().translate(Va::new(va as u64).ok()?)?;
        Some((found.output.get() as usize, usize::from(found.level)))
    }
    fn translate_all(&self, vas: &[usize]) -> usize {
        let mut cpu = self.map().cpu(0).expect("nobody else is here");
        let reader = cpu.read();
        let one = |&va: &usize| {
            let found = Va::new(va as u64).ok().and_then(|va| reader.translate(va));
            found.map_or(0, |found| found.output.get() as usize + usize::from(found.level))
        };
        vas.iter().map(one).fold(0, usize::wrapping_add)
    }
    fn unmap(&mut self, va: usize, size: usize) {
        let mut cpu = (*self).map().cpu(0).expect("nobody else is here");
        cpu.write().unmap(range(va, size)).expect("enough tables").flush();
    }
    fn root(&self) -> usize {
        self.map().root().get() as usize
    }
    fn counts(work: &Work) -> Counts {
        count(work, false)
    }
}

impl<M: Mmu + From<Host>> Joins for Hyp<M> {
    fn collapse(&mut self, va: usize, size: usize) -> bool {
        let mut cpu = (*self).map().cpu(0).expect("nobody else is here");
        cpu.write().collapse(range(va, size), Leaves::LARGEST).expect("nobody has to be quiet");
        true
    }
    fn put_back(&mut self, va: usize, size: usize) -> bool {
        let mut cpu = (*self).map().cpu(0).expect("nobody else is here");
        let joined =
            cpu.write().protect_and_collapse(range(va, size), Change::<El2>::WRITABLE, Leaves::LARGEST);
        joined.expect("enough tables");
        true
    }
}

impl HypRuns {
    /// How many leaves and runs of each level there are.
    pub fn census(&self) -> Census {
        self.0.map().cpu(0).expect("nobody else is here").read().census()
    }
}

impl Peer for HypRuns {
    const NAME: &'static str = "hyp, runs";

    fn new() -> Self {
        Self(new(true))
    }
    fn map(&mut self, va: usize, pa: usize, size: usize, huge: bool) {
        Peer::map(&mut self.0, va, pa, size, huge);
    }
    fn protect(&mut self, va: usize, size: usize, ro: bool) -> bool {
        self.0.protect(va, size, ro)
    }
    fn translate(&self, va: usize) -> Option<(usize, usize)> {
        self.0.translate(va)
    }
    fn translate_all(&self, vas: &[usize]) -> usize {
        self.0.translate_all(vas)
    }
    fn unmap(&mut self, va: usize, size: usize) {
        self.0.unmap(va, size);
    }
    fn root(&self) -> usize {
        self.0.root()
    }
    fn counts(work: &Work) -> Counts {
        count(work, true)
    }
}

impl Joins for HypRuns {
    fn collapse(&mut self, va: usize, size: usize) -> bool {
        self.0.collapse(va, size)
    }
    fn put_back(&mut self, va: usize, size: usize) -> bool {
        self.0.put_back(va, size)
    }
}

fn count(work: &Work, runs: bool) -> Counts {
    let mut subject = new::<Counted>(runs);
    work.set_up(&mut subject);
    TALLY.with(|tally| [&tally.stores, &tally.tlbis, &tally.dsbs, &tally.isbs].map(|cell| cell.set(0)));
    work.perform(&mut subject);
    let counted = |cell: fn(&Tally) -> &Cell<u64>| Some(TALLY.with(|tally| cell(tally).get()));
    Counts {
        stores: counted(|tally| &tally.stores),
        tlbis: counted(|tally| &tally.tlbis),
        dsbs: counted(|tally| &tally.dsbs),
        isbs: counted(|tally| &tally.isbs),
    }
}
