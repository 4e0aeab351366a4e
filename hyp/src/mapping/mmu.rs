//! What the engine asks of its surroundings: memory for tables, TLB maintenance, and, for who cannot do without a break at stage 1,
//! the other CPUs' standing still.
//!
//! Invariant: everything the engine does to the world goes through these traits, by static dispatch; so a model that implements
//! them sees every table access, every invalidation, every barrier and every wait.

use core::sync::atomic::{AtomicU64, Ordering};

use super::addr::{Address, Pa};
use super::map::MapError;
use super::walk::Slot;

/// Access to translation tables by their physical address.
///
/// Of each method: the entry is number `index` of the table, or of the run of adjacent tables of a concatenated root, at `table`.
///
/// # Safety
/// What is required of the caller of each method: `table` is a table that a [`TablePool`] of the same memory has handed out, or belongs
/// to a tree that was adopted with [`Map::adopt`](super::Map::adopt), and was not given back; `index` is within it.
pub trait TableMemory {
    /// Reads an entry; what the entry points to is read after it.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn load(&self, table: Pa, index: usize) -> u64;
    /// As `load`, of who does not follow what it says: nothing is ordered by it.
    ///
    /// # Safety
    /// See the trait.
    #[inline(always)]
    unsafe fn glance(&self, table: Pa, index: usize) -> u64 {
        // SAFETY: the caller's word.
        unsafe { self.load(table, index) }
    }
    /// Writes an entry with a single copy atomic store.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn store(&self, table: Pa, index: usize, raw: u64);
    /// Writes an entry after everything that this CPU has written before it, as walkers see it.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn link(&self, table: Pa, index: usize, raw: u64);
    /// Writes `new` if the entry is `old`, and says whether it was. Ordered against what comes before and after.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn compare_exchange(&self, table: Pa, index: usize, old: u64, new: u64) -> bool;
    /// Writes entries `from` up to `to` with `raw`, `raw + step`, `raw + 2 * step` and so on. No walker can reach the table yet.
    ///
    /// # Safety
    /// See the trait; and nobody else accesses the table.
    unsafe fn fill(&self, table: Pa, from: usize, to: usize, raw: u64, step: u64);
}

/// Tables that lie at a fixed offset from their physical addresses, mapped Normal Write-Back.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    offset: u64,
}

impl Linear {
    /// Tables are reached at their physical address plus `offset` bytes (wrapping).
    pub const fn new(offset: u64) -> Self {
        Self { offset }
    }
    #[inline(always)]
    fn at(self, table: Pa, index: usize) -> *mut u64 {
        core::ptr::with_exposed_provenance_mut::<u64>(table.get().wrapping_add(self.offset) as usize)
            .wrapping_add(index)
    }
}

impl TableMemory for Linear {
    #[inline(always)]
    unsafe fn load(&self, table: Pa, index: usize) -> u64 {
        // SAFETY: by the caller's word the entry is memory of a table, which is only accessed atomically while it is linked.
        unsafe { AtomicU64::from_ptr(self.at(table, index)).load(Ordering::Acquire) }
    }
    #[inline(always)]
    unsafe fn glance(&self, table: Pa, index: usize) -> u64 {
        // SAFETY: as for `load`.
        unsafe { AtomicU64::from_ptr(self.at(table, index)).load(Ordering::Relaxed) }
    }
    #[inline(always)]
    unsafe fn store(&self, table: Pa, index: usize, raw: u64) {
        // SAFETY: as for `load`.
        unsafe { AtomicU64::from_ptr(self.at(table, index)).store(raw, Ordering::Relaxed) }
    }
    #[inline(always)]
    unsafe fn link(&self, table: Pa, index: usize, raw: u64) {
        // SAFETY: as for `load`.
        unsafe { AtomicU64::from_ptr(self.at(table, index)).store(raw, Ordering::Release) }
    }
    #[inline(always)]
    unsafe fn compare_exchange(&self, table: Pa, index: usize, old: u64, new: u64) -> bool {
        // SAFETY: as for `load`.
        let entry = unsafe { AtomicU64::from_ptr(self.at(table, index)) };
        entry.compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
    #[inline(always)]
    unsafe fn fill(&self, table: Pa, from: usize, to: usize, raw: u64, step: u64) {
        let mut value = raw;
        for index in from..to {
            // SAFETY: by the caller's word the entry is memory of a table that nobody else accesses.
            unsafe { self.at(table, index).write(value) };
            value = value.wrapping_add(step);
        }
    }
}

/// Where tables come from: as many as were reserved, without fail.
///
/// # Safety
/// Of who implements it: [`take`](TablePool::take) and [`take_root`](TablePool::take_root) hand out memory of whole tables that
/// [`TableMemory`] of the same [`Mmu`] reaches, aligned to its size, and not again before it was given back.
pub unsafe trait TablePool {
    /// Sets `count` tables aside for the caller.
    ///
    /// # Errors
    /// The tables that are free, if they are fewer; nothing is set aside then.
    fn reserve(&self, count: usize) -> Result<(), usize>;
    /// Gives back the reservation of `count` tables that were not taken.
    ///
    /// # Safety
    /// The caller has reserved as many, and has neither taken nor cancelled them.
    unsafe fn cancel(&self, count: usize);
    /// A table that was reserved. What it holds is anything.
    ///
    /// # Safety
    /// The caller has reserved one more than it has taken and cancelled.
    unsafe fn take(&self) -> Pa;
    /// `count` adjacent tables (a power of two), aligned to their size, not reserved before, if there are such.
    fn take_root(&self, count: usize) -> Option<Pa>;
    /// Takes back a table.
    ///
    /// # Safety
    /// It came from this pool, or is memory as good as the pool's own; and nobody can reach it any more.
    unsafe fn give(&self, table: Pa);
}

/// Tables that were set aside for one change.
pub(super) struct Reservation<'p, P: TablePool> {
    pool: &'p P,
    left: usize,
    /// The first of them, if the caller of the map supplies it.
    given: Option<Pa>,
}

impl<'p, P: TablePool> Reservation<'p, P> {
    pub(super) fn new(pool: &'p P, count: usize) -> Result<Self, MapError> {
        pool.reserve(count).map_err(|free| MapError::OutOfTables { needed: count, free })?;
        Ok(Self { pool, left: count, given: None })
    }
    /// One table that is somebody's to give.
    pub(super) fn of(pool: &'p P, table: Pa) -> Self {
        Self { pool, left: 1, given: Some(table) }
    }
    pub(super) fn left(&self) -> usize {
        self.left
    }
    #[inline]
    pub(super) fn take(&mut self) -> Pa {
        assert!(self.left > 0, "more tables are taken than were counted");
        self.left -= 1;
        // SAFETY: `left` counts what was reserved and not taken, but for what was given.
        self.given.take().unwrap_or_else(|| unsafe { self.pool.take() })
    }
}

impl<P: TablePool> Drop for Reservation<'_, P> {
    fn drop(&mut self) {
        if self.left > 0 && self.given.is_none() {
            // SAFETY: as for `take`.
            unsafe { self.pool.cancel(self.left) };
        }
    }
}

/// Makes the other users of a stage 1 regime stand still while a translation is broken and made.
///
/// While a value of [`Quiesce::Held`] lives, no other CPU accesses, fetches from or walks `start .. start + size`, speculatively
/// either: each waits, on translations that do not change, after a DSB, outside of any call into the engine and without a
/// [`Reader`](super::Reader), or in [`Quiesce::begin`] or [`Mmu::wait`], and synchronizes its context (an ISB) before it goes on, as an access
/// that it speculated meanwhile may have found what was broken (without FEAT_ETS2). The caller's own code, stack and tables are not in the
/// range either.
pub trait Quiesce {
    /// Lives as long as the others wait.
    type Held;
    /// Waits until they do; `None` if they cannot. The caller holds nothing of the engine but, perhaps, the place of the writer.
    fn begin(&self, start: u64, size: u64) -> Option<Self::Held>;
    /// A point at which this CPU stands still if it is asked to: it holds nothing that others could be waiting for.
    fn pass(&self) {}
}

/// For who has no way to make others wait: a change that needs it is refused.
#[derive(Clone, Copy, Debug)]
pub struct NoQuiesce;

impl Quiesce for NoQuiesce {
    type Held = core::convert::Infallible;
    fn begin(&self, _start: u64, _size: u64) -> Option<Self::Held> {
        None
    }
}

/// Whose TLBs an invalidation reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All CPUs of the Inner Shareable domain (the `IS` forms).
    Broadcast,
    /// This CPU: for a map that no other CPU has translated through.
    Local,
}

/// Entries that an invalidation by address reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// Only those of the last level of a walk (the `L` forms).
    pub last_level: bool,
    /// In the EL1&0 regime: those of the operand's ASID and global ones; otherwise all ASIDs' (the `A` forms).
    pub one_asid: bool,
}

/// A TLB maintenance operation of the map's own regime (Arm ARM C5.5, D8.16); the operand is as the instruction takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tlbi {
    /// Everything: `ALLE2`, `VMALLE1`, or for stage 2 `VMALLS12E1`. No operand.
    All,
    /// All non-global entries of an ASID: `ASIDE1`.
    Asid,
    /// By address: `VAE2`, `VAE1`, `VAAE1` or `IPAS2E1`, or their last-level forms.
    Address(Reach),
    /// By range (FEAT_TLBIRANGE): `RVAE2`, `RVAE1`, `RVAAE1` or `RIPAS2E1`, or their last-level forms.
    Range(Reach),
    /// After [`Tlbi::Address`] or [`Tlbi::Range`] of stage 2: the entries that combine both stages, `VMALLE1`. No operand.
    Combined,
}

/// A barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// `DSB ISHST` (local: `NSHST`): stores to tables are seen by walkers.
    StoresVisible,
    /// `DSB ISH` (local: `NSH`): invalidations are complete.
    Complete,
    /// `ISB`: this CPU's own instructions that follow use what is now there.
    Synchronize,
}

/// One regime of the CPUs that use a map, and the memory its tables lie in.
///
/// # Safety
/// What a CPU can reach after a change depends on who implements this: the pool hands out tables that [`Mmu::tables`] reaches; each method
/// that gives a reference gives the same one each time; invalidations and barriers do what they are asked to.
pub unsafe trait Mmu {
    /// Access to tables.
    type Tables: TableMemory;
    /// Where tables come from.
    type Pool: TablePool;
    /// How other CPUs are made to wait. Never asked for at stage 2.
    type Quiesce: Quiesce;

    /// Access to tables.
    fn tables(&self) -> &Self::Tables;
    /// Where tables come from.
    fn pool(&self) -> &Self::Pool;
    /// How other CPUs are made to wait.
    fn quiesce(&self) -> &Self::Quiesce;
    /// One slot for each CPU that reads or writes maps.
    fn slots(&self) -> &[Slot];
    /// Issues an invalidation. For stage 2 and [`Tlbi::Combined`] it is of the map's VMID, which need not be the current one.
    fn tlbi(&self, operation: Tlbi, scope: Scope, operand: u64);
    /// Issues a barrier.
    fn barrier(&self, barrier: Barrier, scope: Scope);
    /// Called in each turn of a loop that waits for another CPU, which will go on.
    fn relax(&self) {
        core::hint::spin_loop();
    }
    /// Called in each turn of a loop that waits to become the [`Writer`](super::Writer). The one who is may be in [`Quiesce::begin`]: so
    /// this CPU counts as standing still here, and stays if it is asked to.
    fn wait(&self) {
        self.relax();
    }
}

// SAFETY: as for what it refers to.
unsafe impl<M: Mmu> Mmu for &M {
    type Tables = M::Tables;
    type Pool = M::Pool;
    type Quiesce = M::Quiesce;
    #[inline(always)]
    fn tables(&self) -> &Self::Tables {
        (**self).tables()
    }
    #[inline(always)]
    fn pool(&self) -> &Self::Pool {
        (**self).pool()
    }
    fn quiesce(&self) -> &Self::Quiesce {
        (**self).quiesce()
    }
    fn slots(&self) -> &[Slot] {
        (**self).slots()
    }
    fn tlbi(&self, operation: Tlbi, scope: Scope, operand: u64) {
        (**self).tlbi(operation, scope, operand);
    }
    fn barrier(&self, barrier: Barrier, scope: Scope) {
        (**self).barrier(barrier, scope);
    }
    fn relax(&self) {
        (**self).relax();
    }
    fn wait(&self) {
        (**self).wait();
    }
}
