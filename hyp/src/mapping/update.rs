//! The one place that stores to a table.
//!
//! Invariants:
//! - Every word of a linked table has one owner at a time. A word that is a table belongs to who holds the lock of the table it points
//!   to, which is a bit of that word itself; any other word of a table belongs to who holds the table's lock (the root's is in the
//!   map). In the [`Gate`]'s exclusive mode everything belongs to who has entered it, and no lock is taken.
//! - Locks are taken from the root downwards, so nobody waits in a circle; nobody waits for anything else while holding one.
//! - A table is filled while nothing points to it, then linked by one store that is ordered after the filling.
//! - A `table` argument of this room is the root of its map, or comes from a table word below it, or from the pool: that is
//!   what [`TableMemory`] asks for.

use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use super::addr::Pa;
use super::descriptor::{CONTIGUOUS, Entry, LOCK, Regime, VALID, is_changing, is_leaf, is_table};
use super::geometry::{Shape, level_shift};
use super::map::Map;
use super::mmu::{Mmu, TableMemory, TablePool};
use super::rule::{Capabilities, Difference, Strategy, strategy};
use super::tlb::{self, Span, Spans};

/// The words of a map's tables.
pub(super) struct Words<'m, M>(&'m M);

impl<'m, M: Mmu> Words<'m, M> {
    #[inline(always)]
    pub(super) fn new(mmu: &'m M) -> Self {
        Self(mmu)
    }
    #[inline(always)]
    pub(super) fn load(&self, table: Pa, index: usize) -> u64 {
        // SAFETY: `table` is of this map by this room's last invariant, and `index` was cut to a table, or is checked against the
        // geometry of a concatenated root.
        unsafe { self.0.tables().load(table, index) }
    }
    /// A word of which no address in it is followed.
    #[inline(always)]
    pub(super) fn glance(&self, table: Pa, index: usize) -> u64 {
        // SAFETY: as for `load`.
        unsafe { self.0.tables().glance(table, index) }
    }
    /// A word, once nobody is breaking and making it.
    #[inline]
    pub(super) fn settled(&self, table: Pa, index: usize) -> u64 {
        loop {
            let raw = self.load(table, index);
            if !is_changing(raw) {
                return raw;
            }
            self.0.relax();
        }
    }
    #[inline(always)]
    pub(super) fn store(&self, table: Pa, index: usize, raw: u64) {
        // SAFETY: as for `load`.
        unsafe { self.0.tables().store(table, index, raw) }
    }
    #[inline(always)]
    pub(super) fn link(&self, table: Pa, index: usize, raw: u64) {
        // SAFETY: as for `load`.
        unsafe { self.0.tables().link(table, index, raw) }
    }
    #[inline(always)]
    fn compare_exchange(&self, table: Pa, index: usize, old: u64, new: u64) -> bool {
        // SAFETY: as for `load`.
        unsafe { self.0.tables().compare_exchange(table, index, old, new) }
    }
    /// Gives a table back that was unlinked, invalidated, and is seen by no walk any more.
    pub(super) fn give(&self, table: Pa) {
        // SAFETY: it is of this map, so it came from the pool or was given to it by who adopted it; and nobody can reach it, by
        // the map's third invariant.
        unsafe { self.0.pool().give(table) }
    }
    /// Fills a part of a table that nothing points to yet.
    #[inline(always)]
    pub(super) fn fill(&self, table: Pa, from: usize, to: usize, raw: u64, step: u64) {
        // SAFETY: as for `load`; the table came from the pool and is not linked, so it is the caller's alone.
        unsafe { self.0.tables().fill(table, from, to, raw, step) }
    }

    /// Fills a part of an unlinked table with leaves from `raw` on, in runs where all of a run is among them if `runs`.
    #[inline(always)]
    pub(super) fn fill_leaves<S: Shape>(
        &self,
        table: Pa,
        (from, to): (usize, usize),
        raw: u64,
        step: u64,
        runs: bool,
    ) {
        let (first, last) = if runs { whole_runs::<S>(from, to) } else { (to, to) };
        let nth = |index: usize| raw.wrapping_add((index - from) as u64 * step);
        self.fill(table, from, first, raw, step);
        if first < last {
            self.fill(table, first, last, nth(first) | CONTIGUOUS, step);
        }
        if last < to {
            self.fill(table, last, to, nth(last), step);
        }
    }
}

/// The entries of `from .. to` that are in runs wholly inside; empty ones end at `to`.
pub(super) const fn whole_runs<S: Shape>(from: usize, to: usize) -> (usize, usize) {
    let (first, last) = ((from + S::RUN - 1) & !(S::RUN - 1), to & !(S::RUN - 1));
    if first < last { (first, last) } else { (to, to) }
}

/// Lets either many change leaves and split them, or one map, unmap or merge; and counts what is owed to TLBs: by changes that are
/// being made (those who are inside), and by debts that are not paid.
#[derive(Debug)]
pub(super) struct Gate(AtomicU64);

/// One who is inside with others.
pub(super) const SHARED: u64 = 1;
const ALL_SHARED: u64 = (1 << 31) - 1;
/// One debt.
pub(super) const DEBT: u64 = 1 << 31;
/// The one who is inside alone.
pub(super) const EXCLUSIVE: u64 = 1 << 63;

/// Someone inside.
pub(super) struct Entered<'m> {
    gate: &'m Gate,
    /// [`SHARED`] or [`EXCLUSIVE`].
    pub(super) own: u64,
}

impl Gate {
    pub(super) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }
    #[inline]
    pub(super) fn share(&self, relax: impl Fn()) -> Entered<'_> {
        while self.0.fetch_add(SHARED, SeqCst) & EXCLUSIVE != 0 {
            self.0.fetch_sub(SHARED, SeqCst);
            while self.0.load(SeqCst) & EXCLUSIVE != 0 {
                relax();
            }
        }
        Entered { gate: self, own: SHARED }
    }
    #[inline]
    pub(super) fn exclude(&self, relax: impl Fn()) -> Entered<'_> {
        while self.0.fetch_or(EXCLUSIVE, SeqCst) & EXCLUSIVE != 0 {
            relax();
        }
        while self.0.load(SeqCst) & ALL_SHARED != 0 {
            relax();
        }
        Entered { gate: self, own: EXCLUSIVE }
    }
    pub(super) fn bits(&self) -> u64 {
        self.0.load(SeqCst)
    }
    /// Those inside, and debts.
    pub(super) fn users(&self) -> u64 {
        let bits = self.bits();
        (bits & ALL_SHARED) + (bits & !EXCLUSIVE) / DEBT + bits / EXCLUSIVE
    }
    /// A debt is paid, or given up.
    #[inline]
    pub(super) fn forget_debt(&self) {
        self.0.fetch_sub(DEBT, SeqCst);
    }
    /// Whether anybody owes anything but who counts as `own`.
    #[inline]
    pub(super) fn is_others(&self, own: u64) -> bool {
        self.0.load(SeqCst) != own
    }
}

impl Entered<'_> {
    /// Leaves, with a debt.
    #[inline]
    pub(super) fn leave_owing(self) {
        self.gate.0.fetch_add(DEBT.wrapping_sub(self.own), SeqCst);
        core::mem::forget(self);
    }
}

impl Drop for Entered<'_> {
    #[inline]
    fn drop(&mut self) {
        self.gate.0.fetch_sub(self.own, SeqCst);
    }
}

/// What points to a table.
#[derive(Clone, Copy)]
pub(super) enum Parent {
    Root,
    Word(Pa, usize),
}

/// The lock of one table.
pub(super) struct TableLock<'m, R: Regime, M: Mmu, S: Shape> {
    map: &'m Map<R, M, S>,
    parent: Parent,
    held: bool,
}

impl<'m, R: Regime, M: Mmu, S: Shape> TableLock<'m, R, M, S> {
    /// Not taken yet; `owned` says that it need not be, for everything is the caller's.
    pub(super) fn new(map: &'m Map<R, M, S>, parent: Parent, owned: bool) -> Option<Self> {
        (!owned).then_some(Self { map, parent, held: false })
    }

    /// Takes it, and says whether it was not held before: what was read until now may have changed.
    pub(super) fn acquire(&mut self) -> bool {
        if self.held {
            return false;
        }
        self.held = true;
        match self.parent {
            Parent::Root => {
                while self.map.root_lock().swap(true, SeqCst) {
                    self.map.mmu().relax();
                }
            }
            Parent::Word(table, index) => {
                let words = Words::new(self.map.mmu());
                loop {
                    let raw = words.load(table, index);
                    if raw & LOCK == 0 && words.compare_exchange(table, index, raw, raw | LOCK) {
                        break;
                    }
                    self.map.mmu().relax();
                }
            }
        }
        true
    }
}

impl<R: Regime, M: Mmu, S: Shape> Drop for TableLock<'_, R, M, S> {
    fn drop(&mut self) {
        if !self.held {
            return;
        }
        match self.parent {
            Parent::Root => self.map.root_lock().store(false, SeqCst),
            Parent::Word(table, index) => {
                // The word is ours while we hold the lock it carries.
                let words = Words::new(self.map.mmu());
                words.link(table, index, words.load(table, index) & !LOCK);
            }
        }
    }
}

/// Adjacent words of one table that change together: those of a leaf or a run, before or after.
pub(super) struct Group<'a> {
    pub(super) table: Pa,
    pub(super) level: u8,
    /// Of the first word.
    pub(super) index: usize,
    pub(super) address: u64,
    pub(super) old: &'a [u64],
    pub(super) new: &'a [u64],
    /// No leaf in them, before, is of a higher level.
    pub(super) finest: u8,
}

/// How often leaves were split and joined, by level and by strategy.
#[derive(Debug, Default)]
pub(super) struct Counters {
    splits: [[AtomicU32; 4]; 4],
    collapses: [[AtomicU32; 4]; 4],
    runs_split: [[AtomicU32; 4]; 4],
    runs_joined: [[AtomicU32; 4]; 4],
}

/// How often leaves of each level (0 to 3) changed their size by each [`Strategy`] (`counts[level][strategy as usize]`), modulo 2^32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Leaves that became tables.
    pub splits: [[u32; 4]; 4],
    /// Tables that became leaves, or one word of something else.
    pub collapses: [[u32; 4]; 4],
    /// Contiguous runs that became single leaves, or tables.
    pub runs_split: [[u32; 4]; 4],
    /// Contiguous runs that were made of single leaves, or tables.
    pub runs_joined: [[u32; 4]; 4],
}

impl Counts {
    /// Of all levels and strategies, modulo 2^32.
    pub fn sum(of: &[[u32; 4]; 4]) -> u32 {
        of.iter().flatten().fold(0, |sum, &count| sum.wrapping_add(count))
    }
}

impl Counters {
    fn count<S: Shape>(&self, group: &Group<'_>, strategy: Strategy) {
        let (level, how) = (usize::from(group.level), strategy as usize);
        let add = |counters: &[[AtomicU32; 4]; 4]| {
            counters[level][how].fetch_add(1, Relaxed);
        };
        for (&old, &new) in group.old.iter().zip(group.new) {
            match (is_table(old, group.level), is_table(new, group.level)) {
                (false, true) => add(&self.splits),
                (true, false) => add(&self.collapses),
                _ => {}
            }
        }
        let is_run =
            |words: &[u64]| words.iter().all(|&raw| is_leaf(raw, group.level) && raw & CONTIGUOUS != 0);
        if group.old.len() == S::RUN && is_run(group.old) != is_run(group.new) {
            add(if is_run(group.old) { &self.runs_split } else { &self.runs_joined });
        }
    }

    pub(super) fn read(&self) -> Counts {
        let read = |counters: &[[AtomicU32; 4]; 4]| {
            core::array::from_fn(|level| core::array::from_fn(|how| counters[level][how].load(Relaxed)))
        };
        Counts {
            splits: read(&self.splits),
            collapses: read(&self.collapses),
            runs_split: read(&self.runs_split),
            runs_joined: read(&self.runs_joined),
        }
    }
}

/// What `old` and `new` of one `level` differ in; a table among `new` says the same as `old`, smaller, but for `memory`.
pub(super) fn difference<R: Regime>(old: u64, new: u64, level: u8, memory: bool) -> Difference {
    let leaf = !is_table(new, level);
    Difference {
        valid_before: old & VALID != 0,
        valid_after: new & VALID != 0,
        size: !leaf,
        contiguous: (old ^ new) & CONTIGUOUS != 0 && leaf,
        memory: if leaf { (old ^ new) & R::MEMORY != 0 } else { memory },
        permissions: leaf && (old ^ new) & R::PERMISSIONS != 0,
    }
}

/// Makes the words of a group new, by `strategy`, and adds to `spans` what is owed. `resizes` if sizes or Contiguous bits of what
/// translates change; the caller is inside the gate as `own`.
pub(super) fn replace<R: Regime, M: Mmu, S: Shape>(
    map: &Map<R, M, S>,
    group: &Group<'_>,
    strategy: Strategy,
    resizes: bool,
    own: u64,
    spans: &mut Spans,
) {
    let words = Words::new(map.mmu());
    let size = (group.old.len() as u64) << level_shift::<S>(group.level);
    let span = Span {
        start: group.address,
        end: group.address + size,
        level: group.finest,
        same_size: false,
        // A table that falls out is in walk caches.
        last_level: !group.old.iter().any(|&old| is_table(old, group.level)),
    };
    map.counters().count::<S>(group, strategy);
    match strategy {
        Strategy::Store => {}
        Strategy::StoreThenInvalidate => {
            spans.add(span);
            spans.conflicts |= resizes && !map.capabilities().contains(Capabilities::NO_CONFLICT_ABORT);
        }
        Strategy::BreakBeforeMake | Strategy::BreakQuiescently => {
            for (i, &old) in group.old.iter().enumerate() {
                if old & VALID != 0 {
                    words.store(group.table, group.index + i, Entry::<R>::Changing.encode(group.level));
                }
            }
            let mut broken = Spans::new();
            // What the same call has done before may have left two entries for these addresses.
            broken.conflicts = spans.conflicts;
            broken.add(span);
            tlb::invalidate(map, &broken, own);
        }
    }
    let broken = matches!(strategy, Strategy::BreakBeforeMake | Strategy::BreakQuiescently);
    // What hangs from a table is anybody's to change, and to invalidate, as soon as the table is linked. Walks that read another leaf of
    // its run as it was would bring back the run, with what it says of the table's addresses (R_LQLSD): so tables of a run come last.
    let parts = |index: usize| is_table(group.new[index], group.level) && group.old[index] & CONTIGUOUS != 0;
    let last = !broken && (0..group.new.len()).any(parts);
    if last {
        for (i, (&old, &new)) in group.old.iter().zip(group.new).enumerate() {
            let leaf = if parts(i) { old & !CONTIGUOUS } else { new };
            if leaf != old {
                words.link(group.table, group.index + i, leaf);
            }
        }
    }
    for (i, (&old, &new)) in group.old.iter().zip(group.new).enumerate() {
        if (old != new || broken) && (!last || parts(i)) {
            words.link(group.table, group.index + i, new);
        }
    }
    if broken {
        // The last step of the sequence (D8.17.1, R_DDMVT): who stood still may go on.
        tlb::publish(map);
    }
}

/// Changes a word that hardware may be marking, to what `new` makes of it. `old` is what was read.
pub(super) fn exchange<M: Mmu>(
    words: &Words<'_, M>,
    table: Pa,
    index: usize,
    mut old: u64,
    new: impl Fn(u64) -> u64,
) {
    debug_assert!(!is_changing(old));
    while !words.compare_exchange(table, index, old, new(old)) {
        old = words.load(table, index);
    }
}

/// The rule's answer for a map's difference.
pub(super) fn answer<R: Regime, M: Mmu, S: Shape>(map: &Map<R, M, S>, difference: Difference) -> Strategy {
    strategy(difference, R::STAGE, map.capabilities())
}
