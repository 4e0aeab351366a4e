//! A map: one root and what hangs from it.
//!
//! Invariants:
//! - A call that fails has changed nothing: it looks at all that it is about to change, and sets aside the tables that takes, before
//!   it stores the first word. (Tables that wait to be given back it may have given back.)
//! - An address that translates anew was owed nothing: before a word that did not translate becomes one that does, what
//!   TLBs may hold of it from before is invalidated.
//! - A table is given back when it was unlinked, the invalidation after that is complete, and every walk that began before
//!   has ended.

use core::fmt;
use core::marker::PhantomData;
use core::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64,
    Ordering::{Relaxed, SeqCst},
};

use spin::{Mutex, MutexGuard};

use super::addr::{ADDRESS_BITS, Address, GRANULE, Pa, Range};
use super::descriptor::{Attributes, Change, Entry, Regime, State, TYPE, is_table, is_unlinked, pa};
use super::edit::{Clear, Cut, CutAll, Edit, Empty, Needs, Operation, Restate, ToPages};
use super::geometry::{Geometry, Granule4K, LAST_LEVEL, Shape, level_shift, level_size};
use super::mmu::{Mmu, Quiesce, Reservation, Scope, TablePool};
use super::rule::Capabilities;
use super::tlb::{self, Debt, Span, Spans, Tag};
use super::update::{Counters, Counts, EXCLUSIVE, Entered, Gate, Words};

/// The leaves that a call may use. Pages it always may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leaves {
    /// Blocks of 1 GiB and 2 MiB.
    pub blocks: bool,
    /// At each level, contiguous runs of 16, where the map's capabilities have them.
    pub runs: bool,
}

impl Leaves {
    /// The largest that input and output allow.
    pub const LARGEST: Self = Self { blocks: true, runs: true };
    /// Pages of 4 KiB only, in no runs: for what must never be split.
    pub const PAGES: Self = Self { blocks: false, runs: false };
}

/// Why a map could not be made or changed. Nothing was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// A geometry of so many input bits does not exist with the 4 KiB granule.
    InputBits(u32),
    /// The range has an end that is no multiple of the granule, or maps to an output that is none.
    Misaligned {
        /// First input address.
        input: u64,
        /// Bytes.
        size: u64,
        /// First output address.
        output: u64,
    },
    /// The range, or what it maps to, ends above what the map reaches.
    OutOfReach {
        /// The first address that is too far.
        end: u64,
        /// Bits of the input address, or of the largest output.
        bits: u32,
    },
    /// This input address is mapped already.
    Mapped(u64),
    /// This input address has a software state.
    HasState(u64),
    /// This input address has no software state, and was to have one.
    NoState(u64),
    /// The pool has fewer tables than the call needs.
    OutOfTables {
        /// Tables needed.
        needed: usize,
        /// Tables left.
        free: usize,
    },
    /// The call was to split nothing, and an end of its range cuts a leaf or its run.
    WouldSplit {
        /// First address of the leaf.
        address: u64,
        /// Its level, 1 to 3.
        level: u8,
    },
    /// What is at this address can only change while other CPUs stand still, and [`Quiesce`] could not make them.
    NotQuiet(u64),
    /// A map of one ASID was to get a global leaf.
    Global,
    /// What is at this address does not run on from the first entry of its table.
    Differs(u64),
    /// At this address no entry of this level points to a table.
    NoTable {
        /// The address.
        address: u64,
        /// The level.
        level: u8,
    },
    /// The output bit that was to change is one within the leaf at this address, or within its run.
    TooLarge {
        /// First address of the leaf.
        address: u64,
        /// Its level, 1 to 3.
        level: u8,
    },
    /// There is no entry of this level, but for a table's, at this address.
    NoEntry {
        /// The address.
        address: u64,
        /// The level.
        level: u8,
    },
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::InputBits(bits) => write!(f, "no table geometry translates {bits} bits"),
            Self::Misaligned { input, size, output } => {
                write!(
                    f,
                    "{size:#x} bytes at {input:#x} to {output:#x} are not made of {GRANULE}-byte granules"
                )
            }
            Self::OutOfReach { end, bits } => {
                write!(f, "a range that ends at {end:#x} does not fit in {bits} bits")
            }
            Self::Mapped(address) => write!(f, "address {address:#x} is mapped already"),
            Self::HasState(address) => write!(f, "address {address:#x} has a software state"),
            Self::NoState(address) => write!(f, "address {address:#x} has no software state"),
            Self::OutOfTables { needed, free } => write!(f, "{needed} tables are needed and {free} are left"),
            Self::WouldSplit { address, level } => {
                write!(f, "the leaf of level {level} at {address:#x} would have to be split")
            }
            Self::NotQuiet(address) => {
                write!(f, "the translation of {address:#x} cannot be broken: other CPUs may be using it")
            }
            Self::Global => write!(f, "a map of one ASID holds only non-global leaves"),
            Self::Differs(address) => {
                write!(f, "what is at {address:#x} does not run on from its table's first entry")
            }
            Self::NoTable { address, level } => {
                write!(f, "at {address:#x} no entry of level {level} is a table")
            }
            Self::TooLarge { address, level } => {
                write!(f, "the leaf of level {level} at {address:#x} is larger than its output bit's weight")
            }
            Self::NoEntry { address, level } => {
                write!(f, "at {address:#x} there is no entry of level {level} that could become a table")
            }
        }
    }
}

impl core::error::Error for MapError {}

/// How a map is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// What every CPU that translates through it can do.
    pub capabilities: Capabilities,
    /// Whose entries its are.
    pub tag: Tag,
    /// Who translates through it.
    pub scope: Scope,
    /// Hardware sets access flags and dirty state in it (`TCR_ELx.HA`, `HD`; `VTCR_EL2`).
    pub hardware_updates: bool,
    /// Its addresses count from the start of the upper half of the address space, the one of `TTBR1_EL1`.
    pub upper_half: bool,
}

impl Options {
    /// A map that several CPUs use, of no ASID, with flags that software sets.
    pub const fn new(capabilities: Capabilities) -> Self {
        Self {
            capabilities,
            tag: Tag::All,
            scope: Scope::Broadcast,
            hardware_updates: false,
            upper_half: false,
        }
    }
}

/// What is owed to TLBs for the whole of a map, beside what the gate counts.
struct Owed {
    /// A debt was dropped.
    whole: AtomicBool,
    cleared: Mutex<Cleared>,
}

/// Ranges in which something stopped translating.
struct Cleared {
    records: [Option<Record>; RECORDS],
    last_id: u64,
    /// What takes the place of tables that are given back in a range.
    state: Option<(u64, u64, State)>,
}

const RECORDS: usize = 8;

#[derive(Clone, Copy)]
struct Record {
    id: u64,
    start: u64,
    end: u64,
    /// There are tables in it that wait to be given back.
    unlinked: bool,
    /// The invalidation is complete, and walks of this epoch no longer see the tables.
    paid: Option<u64>,
}

impl Record {
    fn overlaps(&self, start: u64, end: u64) -> bool {
        self.start < end && start < self.end
    }
}

/// The record of one change.
#[derive(Clone, Copy)]
struct Recorded {
    id: u64,
    /// It stands for this change alone, so that who pays for the change pays for the record.
    alone: bool,
}

impl Cleared {
    /// Remembers a range, before anything in it changes.
    fn add(&mut self, start: u64, end: u64) -> Recorded {
        self.last_id += 1;
        let id = self.last_id;
        let record = Record { id, start, end, unlinked: false, paid: None };
        if let Some(slot) = self.records.iter_mut().find(|slot| slot.is_none()) {
            *slot = Some(record);
            return Recorded { id, alone: true };
        }
        // One of them takes it in, under a number that no debt knows.
        let last = self.records[RECORDS - 1].get_or_insert(record);
        last.id = id;
        last.start = last.start.min(start);
        last.end = last.end.max(end);
        last.paid = None;
        Recorded { id, alone: false }
    }

    /// Tables that translated `unlinked` wait to be given back.
    fn unlink(&mut self, id: u64, unlinked: (u64, u64)) {
        if let Some(record) = self.records.iter_mut().flatten().find(|record| record.id == id) {
            record.start = record.start.min(unlinked.0);
            record.end = record.end.max(unlinked.1);
            record.unlinked = true;
        }
    }

    /// The records that `ids` names were paid; only those with tables stay.
    fn pay(&mut self, ids: &[u64], epoch: u64) {
        for slot in &mut self.records {
            if let Some(record) = slot
                && ids.contains(&record.id)
            {
                record.paid = Some(epoch);
                if !record.unlinked {
                    *slot = None;
                }
            }
        }
    }

    fn unpaid(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().flatten().filter(|record| record.paid.is_none())
    }
}

/// A tree of tables of regime `R`. A call must not be interrupted by code of the same CPU that calls for the same map.
pub struct Map<R: Regime, M: Mmu, S: Shape = Granule4K> {
    mmu: M,
    root: Pa,
    geometry: Geometry<S>,
    options: Options,
    /// The options' at first: changed only behind the closed gate, so that a call sees one set from its first walk to its last store.
    capabilities: AtomicU32,
    gate: Gate,
    root_lock: AtomicBool,
    writer: AtomicBool,
    counters: Counters,
    epoch: AtomicU64,
    owed: Owed,
    regime: PhantomData<R>,
}

impl<R: Regime, M: Mmu, S: Shape> fmt::Debug for Map<R, M, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {} of {} bits", R::NAME, self.root, self.geometry.input_bits())
    }
}

// What the rooms beside this one need of a map.
impl<R: Regime, M: Mmu, S: Shape> Map<R, M, S> {
    #[inline(always)]
    pub(crate) fn mmu(&self) -> &M {
        &self.mmu
    }
    pub(super) fn gate(&self) -> &Gate {
        &self.gate
    }
    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }
    pub(super) fn root_lock(&self) -> &AtomicBool {
        &self.root_lock
    }
    pub(super) fn scope(&self) -> Scope {
        self.options.scope
    }
    pub(super) fn tag(&self) -> Tag {
        if R::HAS_ASID { self.options.tag } else { Tag::All }
    }
    /// What the map's addresses count from.
    pub(super) fn base(&self) -> u64 {
        if self.options.upper_half { !0 << self.geometry.input_bits() } else { 0 }
    }
    pub(super) fn hardware_updates(&self) -> bool {
        self.options.hardware_updates
    }
    /// What stopped translating. Who holds it may access tables, so the wait is the [`Mmu`]'s.
    fn cleared(&self) -> MutexGuard<'_, Cleared> {
        loop {
            if let Some(cleared) = self.owed.cleared.try_lock() {
                return cleared;
            }
            self.mmu.relax();
        }
    }
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(SeqCst)
    }
    /// Whether anybody owes something but who counts in the gate as `own`: so that a TLB may hold entries that it knows nothing of.
    #[inline]
    pub(super) fn is_others_owed(&self, own: u64) -> bool {
        self.gate.is_others(own) || self.owed.whole.load(SeqCst)
    }

    /// What these records name is paid by an invalidation that is complete.
    #[inline]
    pub(super) fn paid(&self, ids: &[u64]) {
        if ids.iter().any(|&id| id != 0) {
            let epoch = self.epoch.fetch_add(1, SeqCst) + 1;
            self.cleared().pay(ids, epoch);
        }
    }

    /// Gives back the tables of debts that are paid, if no walk sees them any more.
    pub(super) fn give_back(&self, ids: &[u64]) {
        // Most debts name none.
        if ids.iter().all(|&id| id == 0) {
            return;
        }
        let unlinked = |record: &Record| record.unlinked && ids.contains(&record.id);
        let records = self.cleared().records;
        if records.iter().flatten().any(unlinked) {
            let _gate = self.gate.exclude(|| self.mmu.relax());
            for record in records.into_iter().flatten().filter(unlinked) {
                self.reclaim(record.start, record.end);
            }
        }
    }

    /// A debt is never paid by who had it.
    pub(super) fn forgotten(&self) {
        self.owed.whole.store(true, SeqCst);
        self.gate.forget_debt();
    }
}

impl<R: Regime, M: Mmu, S: Shape> Map<R, M, S> {
    /// An empty map.
    ///
    /// # Errors
    /// [`MapError::OutOfTables`] if the pool has no room for the root.
    pub fn new(mmu: M, geometry: Geometry<S>, options: Options) -> Result<Self, MapError> {
        let needed = geometry.root_tables();
        let root = mmu.pool().take_root(needed).ok_or(MapError::OutOfTables { needed, free: 0 })?;
        Words::new(&mmu).fill(root, 0, geometry.entries(geometry.start_level()), 0, 0);
        Ok(Self::with_root(mmu, root, geometry, options))
    }

    /// The map whose root, of [`Geometry::root_tables`] tables, lies at `root` already; CPUs may be translating through it.
    ///
    /// # Safety
    /// The root and every table below it, at 4 KiB granule, with output addresses below 2^48, are memory that the [`Mmu`]'s tables reach,
    /// and nobody else changes them from now on (hardware that sets access and dirty flags may, if `options` says so). Tables that
    /// an unmap, a [collapse](Writer::collapse) or [`Map::destroy`] leaves are the pool's; `HPDn` and bit 63 of table entries (NSTable)
    /// are clear. Bit 55 of table entries is clear, and entries that are not valid are zero.
    pub unsafe fn adopt(mmu: M, root: Pa, geometry: Geometry<S>, options: Options) -> Self {
        Self::with_root(mmu, root, geometry, options)
    }

    fn with_root(mmu: M, root: Pa, geometry: Geometry<S>, options: Options) -> Self {
        Self {
            mmu,
            root,
            geometry,
            options,
            capabilities: AtomicU32::new(options.capabilities.bits()),
            gate: Gate::new(),
            root_lock: AtomicBool::new(false),
            writer: AtomicBool::new(false),
            counters: Counters::default(),
            epoch: AtomicU64::new(0),
            owed: Owed {
                whole: AtomicBool::new(false),
                cleared: Mutex::new(Cleared { records: [None; RECORDS], last_id: 0, state: None }),
            },
            regime: PhantomData,
        }
    }

    /// What a call may keep of the map's variables while it accesses tables, as a number: whether anybody but one is inside or owes
    /// something, or a debt was dropped.
    #[doc(hidden)]
    pub fn owed_fingerprint(&self) -> u64 {
        self.gate.users().min(2) | u64::from(self.owed.whole.load(SeqCst)) << 2
    }

    /// All that the map knows beside its tables, for who explores what can happen: equal states feed `into` alike.
    #[doc(hidden)]
    pub fn fingerprint(&self, into: &mut impl core::hash::Hasher) {
        into.write_u64(self.gate.bits());
        into.write_u32(self.capabilities().bits());
        let flags = [&self.root_lock, &self.writer, &self.owed.whole];
        flags.into_iter().for_each(|flag| into.write_u8(u8::from(flag.load(SeqCst))));
        into.write_u64(self.epoch());
        self.mmu.slots().iter().for_each(|slot| into.write_u64(slot.bits()));
        // Who holds it is in the middle of a change of it, and knows what.
        let Some(cleared) = self.owed.cleared.try_lock() else { return into.write_u8(2) };
        for record in &cleared.records {
            let Some(record) = record else {
                into.write_u8(0);
                continue;
            };
            into.write_u8(1 + u8::from(record.unlinked));
            [record.id, record.start, record.end, record.paid.map_or(0, |epoch| epoch + 1)]
                .into_iter()
                .for_each(|part| into.write_u64(part));
        }
        let (start, end, state) = cleared.state.map_or((0, 0, 0), |(s, e, state)| (s, e, state.get()));
        [cleared.last_id, start, end, state].into_iter().for_each(|part| into.write_u64(part));
    }

    /// The one writer, of a map that nobody else uses yet.
    pub fn get_mut(&mut self) -> Writer<'_, '_, R, M, S> {
        Writer::new(self)
    }

    /// The one writer, if there is none. For who needs the writers of several maps, and so waits in its own way: with [`Mmu::wait`] of the
    /// map whose changes may ask for quiet. The CPU is not to have a [`Reader`](super::Reader) of it: tables are reused once that ends.
    pub fn try_write(&self) -> Option<Writer<'_, '_, R, M, S>> {
        (!self.writer.swap(true, SeqCst)).then(|| Writer { map: self, cpu: PhantomData })
    }

    /// Gives all tables back to the pool, after invalidating everything.
    ///
    /// # Safety
    /// No CPU translates through the map any more, nor will.
    pub unsafe fn destroy(self) {
        tlb::invalidate_all(&self);
        for number in 0..self.geometry.root_tables() as u64 {
            // The first root's address is below 2^48, and so are those after it.
            let root = Pa::from_field(self.root.get() + number * GRANULE);
            self.give_tree(root, self.geometry.start_level());
        }
    }

    /// Physical address of the root, as the translation table base register takes it.
    #[inline(always)]
    pub fn root(&self) -> Pa {
        self.root
    }
    /// Its geometry.
    #[inline(always)]
    pub fn geometry(&self) -> Geometry<S> {
        self.geometry
    }
    /// What its CPUs can do.
    #[inline(always)]
    pub fn capabilities(&self) -> Capabilities {
        Capabilities::from_bits_retain(self.capabilities.load(Relaxed))
    }

    /// From here on the map changes as CPUs need that have no more than `to`. Every call that began under the larger set has made its
    /// stores, and all that they owe is invalidated, when this returns: a CPU whose TLB is empty, and which translates through the map
    /// only after that, never meets what a weaker CPU must not. The set never grows again.
    ///
    /// Waits for the writer and for the calls that are inside the map, so it is not to be called with a [`Reader`](super::Reader).
    pub fn weaken(&self, to: Capabilities) {
        Writer::new(self).weaken(to);
    }

    /// Splits everything to pages, by the CPUs that translate through the map now and as their set allows, and then [weakens](Map::weaken)
    /// it: nothing is joined in between. Gives the bytes that were in blocks.
    ///
    /// # Errors
    /// As [`Map::split_to_pages`]; the set is as it was then.
    pub fn repaint_and_weaken(&self, to: Capabilities) -> Result<u64, MapError> {
        let mut writer = Writer::new(self);
        let whole = Range::new(0, 1 << self.geometry.input_bits()).map_err(|_| self.too_far(u64::MAX))?;
        let before = self.counts().splits;
        self.split_to_pages(whole)?.flush();
        let after = self.counts().splits;
        writer.weaken(to);
        let bytes = (1..LAST_LEVEL).map(|level| {
            let of = |counts: &[[u32; 4]; 4]| {
                counts[usize::from(level)].iter().fold(0, |sum: u32, &n| sum.wrapping_add(n))
            };
            u64::from(of(&after).wrapping_sub(of(&before))) << level_shift::<S>(level)
        });
        Ok(bytes.sum())
    }

    /// How often leaves were split and joined.
    pub fn counts(&self) -> Counts {
        self.counters.read()
    }

    /// Changes every leaf in `range`, translating or not, as `change` says. Leaves wholly inside change where they are; what an end
    /// of the range cuts is split first, no further than needed. What is no leaf stays as it is.
    ///
    /// From several CPUs at once, also in the same leaf: each leaf ends as if one call had come after the other. What may ask for quiet
    /// (a split at stage 1 below level 3) is not to be called with a [`Reader`](super::Reader): the others may wait for its end.
    ///
    /// # Errors
    /// [`MapError::Misaligned`], [`MapError::OutOfReach`], [`MapError::OutOfTables`], [`MapError::NotQuiet`], [`MapError::Global`],
    /// [`MapError::TooLarge`].
    pub fn protect(&self, range: Range<R::Input>, change: Change<R>) -> Result<Debt<'_, R, M, S>, MapError> {
        self.change(range, change, false)
    }

    /// As [`Map::protect`], but splits nothing.
    ///
    /// # Errors
    /// As [`Map::protect`], and [`MapError::WouldSplit`].
    pub fn protect_whole(
        &self,
        range: Range<R::Input>,
        change: Change<R>,
    ) -> Result<Debt<'_, R, M, S>, MapError> {
        self.change(range, change, true)
    }

    fn change(
        &self,
        range: Range<R::Input>,
        change: Change<R>,
        whole: bool,
    ) -> Result<Debt<'_, R, M, S>, MapError> {
        let ends = self.checked(range)?;
        if change.makes_global() && self.tag() != Tag::All {
            return Err(MapError::Global);
        }
        // What translates anew must not be owed anything, and what must not split must not be changed meanwhile: alone.
        let alone = whole || change.validates();
        self.edit(
            change,
            ends,
            Way { alone, whole, clears: change.invalidates(), settles: change.validates(), given: None },
        )
        .map(|done| self.owe(done))
    }

    /// Splits so that no leaf and no run lies across either end of `range`, no further than that takes.
    ///
    /// # Errors
    /// [`MapError::Misaligned`], [`MapError::OutOfReach`], [`MapError::OutOfTables`], [`MapError::NotQuiet`].
    pub fn split_edges(&self, range: Range<R::Input>) -> Result<Debt<'_, R, M, S>, MapError> {
        let ends = self.checked(range)?;
        self.edit(Cut, ends, Way::SHARED).map(|done| self.owe(done))
    }

    /// Splits so that no leaf and no run lies across `address`: a run of 1 GiB blocks to those blocks, a block to runs of the next smaller
    /// ones, and so on, until its size divides the address.
    ///
    /// # Errors
    /// As [`Map::split_edges`].
    pub fn split_at(&self, address: R::Input) -> Result<Debt<'_, R, M, S>, MapError> {
        let start = address.get();
        // Nothing lies across a multiple of the largest run.
        let largest = 1u64 << (level_shift::<S>(1) + S::RUN_BITS);
        let end = (start / largest + 1) * largest;
        let end = end.min(1 << self.geometry.input_bits()).max(start + GRANULE);
        let range = Range::new(start, end - start).map_err(|_| self.too_far(end))?;
        self.split_edges(range)
    }

    /// Puts `table` in the place of the one entry of `level` (0 to 2) that `address` lies in, a leaf or not: 512 entries that say the
    /// same. The table becomes the map's; if the call fails, it stays the caller's.
    ///
    /// # Safety
    /// The table is memory as good as the pool's own, to which it goes when it is unlinked one day, and nobody else's.
    ///
    /// # Errors
    /// [`MapError::NoEntry`] if there is none of that level, [`MapError::OutOfReach`], [`MapError::NotQuiet`].
    pub unsafe fn split_entry(
        &self,
        address: R::Input,
        level: u8,
        table: Pa,
    ) -> Result<Debt<'_, R, M, S>, MapError> {
        let none = MapError::NoEntry { address: address.get(), level };
        if !(self.geometry.start_level()..LAST_LEVEL).contains(&level) {
            return Err(none);
        }
        let size = level_size::<S>(level);
        let end = (address.get() & !(size - 1)) + size;
        if end > 1 << self.geometry.input_bits() {
            return Err(self.too_far(end));
        }
        // Only an entry of just that level becomes one table by a cut in its middle, which no run of the next level lies across.
        let way = Way { alone: true, given: Some((table, none)), ..Way::SHARED };
        self.edit(CutAll, (end - size / 2, end), way).map(|done| self.owe(done))
    }

    /// Splits everything in `range`, and what its ends cut, to pages in no runs.
    ///
    /// # Errors
    /// As [`Map::split_edges`].
    pub fn split_to_pages(&self, range: Range<R::Input>) -> Result<Debt<'_, R, M, S>, MapError> {
        let ends = self.checked(range)?;
        self.edit(ToPages, ends, Way::SHARED).map(|done| self.owe(done))
    }

    /// Pays whatever is owed for the map, by whomever, and gives back the tables that nobody can reach any more.
    pub fn settle(&self) {
        let _gate = self.gate.exclude(|| self.mmu.relax());
        self.pay_owed();
        self.reclaim(0, u64::MAX);
    }

    /// Invalidates everything, if anything is owed. The gate is the caller's alone: nobody is changing anything, and what is owed now is
    /// owed for stores that were made.
    fn pay_owed(&self) {
        let owed = self.gate.is_others(EXCLUSIVE) || self.owed.whole.load(SeqCst);
        if owed || self.cleared().unpaid().next().is_some() {
            tlb::invalidate_all(self);
            self.owed.whole.store(false, SeqCst);
            self.pay_all();
        }
    }

    pub(super) fn too_far(&self, end: u64) -> MapError {
        MapError::OutOfReach { end, bits: self.geometry.input_bits() }
    }

    /// The ends of a range that can be changed.
    pub(super) fn checked(&self, range: Range<R::Input>) -> Result<(u64, u64), MapError> {
        let (start, end) = (range.start().get(), range.end());
        if !(start | end).is_multiple_of(GRANULE) {
            return Err(MapError::Misaligned { input: start, size: range.size(), output: 0 });
        }
        if end > 1 << self.geometry.input_bits() {
            return Err(self.too_far(end));
        }
        Ok((start, end))
    }

    /// Makes a change, in the gate, which is still closed behind it when it returns.
    fn edit<O: Operation<R>>(
        &self,
        operation: O,
        (start, end): (u64, u64),
        way: Way,
    ) -> Result<Done<'_>, MapError> {
        let mut held: Option<Quiet<M>> = None;
        let (mut alone, mut settled) = (way.alone, false);
        loop {
            let relax = || self.mmu.relax();
            let gate = if alone { self.gate.exclude(relax) } else { self.gate.share(relax) };
            let mut edit = Edit::new(self, operation, (start, end), alone);
            if start == end {
                return Ok(Done { gate, spans: edit.spans, recorded: None });
            }
            let needs = edit.prepare(way.whole)?;
            if !is_quiet(&needs, &held) {
                // Others are made to stand still with nothing of the map locked.
                drop(gate);
                drop(held);
                let (start, end) = needs.quiet.unwrap_or((0, 0));
                held = self.mmu.quiesce().begin(start, end - start).map(|held| ((start, end), held));
                if held.is_none() && alone {
                    return Err(MapError::NotQuiet(start));
                }
                // Beside others more is asked for than may be needed.
                alone |= held.is_none();
                continue;
            }
            let reserved = match way.given {
                Some((table, _)) if needs.tables == 1 => Ok(Reservation::of(self.mmu.pool(), table)),
                Some((_, error)) => return Err(error),
                None => Reservation::new(self.mmu.pool(), needs.tables),
            };
            let mut tables = match reserved {
                Ok(tables) => tables,
                Err(error) if settled && alone => return Err(error),
                Err(_) => {
                    drop(gate);
                    // Some may only wait for being given back; and beside others more are set aside than may be needed.
                    alone |= settled;
                    if !settled {
                        self.settle();
                    }
                    settled = true;
                    continue;
                }
            };
            if way.settles {
                self.settle_owed(start, end);
            }
            edit.quiet = held.as_ref().map(|(quiet, _)| *quiet);
            // Recorded before it is so.
            let recorded = way.clears.then(|| self.cleared().add(start, end));
            edit.commit(&mut tables);
            if let (Some(recorded), Some(unlinked)) = (recorded, edit.unlinked) {
                self.cleared().unlink(recorded.id, unlinked);
            }
            if self.is_others_owed(gate.own) {
                // What is as it was asked to be already may be so only in the tables.
                edit.spans.add(Span { start, end, level: LAST_LEVEL, same_size: false, last_level: false });
            } else if edit.spans.is_empty() && edit.stored {
                tlb::publish(self);
            }
            return Ok(Done { gate, spans: edit.spans, recorded });
        }
    }

    /// Leaves the gate with what is owed.
    fn owe(&self, Done { gate, spans, recorded }: Done<'_>) -> Debt<'_, R, M, S> {
        let id = recorded.filter(|recorded| recorded.alone).map(|recorded| recorded.id);
        if spans.is_empty() {
            // What stopped translating did not translate before.
            self.paid(id.as_slice());
        } else {
            gate.leave_owing();
        }
        Debt::new(self, spans, id.as_slice())
    }

    /// All that stopped translating was invalidated.
    fn pay_all(&self) {
        let epoch = self.epoch.fetch_add(1, SeqCst) + 1;
        let mut cleared = self.cleared();
        let ids = cleared.records.map(|slot| slot.map_or(0, |record| record.id));
        cleared.pay(&ids, epoch);
    }

    /// Pays what is owed for what stopped translating, if any of it was in the range. The gate is the caller's alone.
    fn settle_owed(&self, start: u64, end: u64) {
        let mut spans = Spans::new();
        {
            let cleared = self.cleared();
            if !cleared.records.iter().flatten().any(|record| record.overlaps(start, end)) {
                return;
            }
            // All, as their tables may hang from each other.
            for record in cleared.unpaid() {
                let (start, end) = (record.start, record.end);
                spans.add(Span { start, end, level: LAST_LEVEL, same_size: false, last_level: false });
            }
        }
        if !spans.is_empty() {
            tlb::invalidate(self, &spans, EXCLUSIVE);
            self.pay_all();
        }
    }

    /// Gives back tables that were unlinked in a range, if they are paid and no walk sees them. Says whether a walk was in the way. The
    /// gate is the caller's alone.
    fn reclaim(&self, start: u64, end: u64) -> bool {
        let mut busy = false;
        let mut cleared = self.cleared();
        for number in 0..RECORDS {
            let Some(record) = cleared.records[number].filter(|r| r.unlinked && r.overlaps(start, end))
            else {
                continue;
            };
            // Tables of others may hang from its tables, and the other way round.
            let (mut from, mut to) = (record.start, record.end);
            loop {
                let with = |r: &&Record| r.unlinked && r.overlaps(from, to);
                let all = cleared.records.iter().flatten().filter(with);
                let (a, b) = all.fold((from, to), |(a, b), r| (a.min(r.start), b.max(r.end)));
                if (a, b) == (from, to) {
                    break;
                }
                (from, to) = (a, b);
            }
            let with = |r: &&Record| r.unlinked && r.overlaps(from, to);
            let epochs = cleared.records.iter().flatten().filter(with).map(|record| record.paid);
            // All of them are paid, or none is given back.
            let Some(epoch) = epochs.reduce(|a, b| Some(a?.max(b?))).flatten() else { continue };
            if self.mmu.slots().iter().any(|slot| slot.is_before(epoch)) {
                busy = true;
                continue;
            }
            let state = cleared.state;
            self.reclaim_in((self.root, self.geometry.start_level(), 0), (from, to), state);
            for slot in &mut cleared.records {
                if slot.is_some_and(|record| record.unlinked && record.overlaps(from, to)) {
                    *slot = None;
                }
            }
        }
        busy
    }

    /// Waits until the walks that were going on have ended, with nothing of the map locked. Those that begin from now on are of another
    /// epoch, so that nobody who reads again and again is waited for.
    pub(super) fn wait_for_walks(&self) {
        let epoch = self.epoch.fetch_add(1, SeqCst) + 1;
        while self.mmu.slots().iter().any(|slot| slot.is_before(epoch)) {
            self.mmu.relax();
        }
    }

    /// Closes the gate to others, once nothing in the range is owed and no table waits there.
    pub(super) fn exclude_settled(&self, start: u64, end: u64) -> Entered<'_> {
        loop {
            let gate = self.gate.exclude(|| self.mmu.relax());
            self.settle_owed(start, end);
            if !self.reclaim(start, end) {
                return gate;
            }
            drop(gate);
            self.wait_for_walks();
        }
    }

    fn reclaim_in(
        &self,
        (table, level, base): (Pa, u8, u64),
        (start, end): (u64, u64),
        state: Option<(u64, u64, State)>,
    ) {
        let (words, shift) = (Words::new(&self.mmu), level_shift::<S>(level));
        let end = end.min(1 << self.geometry.input_bits());
        for index in ((start.max(base) - base) >> shift)..=((end - 1 - base) >> shift) {
            let at = base + (index << shift);
            let raw = words.load(table, index as usize);
            if is_unlinked(raw) {
                self.give_tree(pa(raw), level + 1);
                let entry = match state {
                    Some((start, end, state)) if start <= at && at + level_size::<S>(level) <= end => {
                        Entry::<R>::State(state)
                    }
                    _ => Entry::Empty,
                };
                words.store(table, index as usize, entry.encode(level));
            } else if is_table(raw, level) {
                let part = (start.max(at), end.min(at + level_size::<S>(level)));
                self.reclaim_in((pa(raw), level + 1, at), part, state);
            }
        }
    }

    /// Gives back a table of `level` and all below it.
    fn give_tree(&self, table: Pa, level: u8) {
        if level < LAST_LEVEL {
            let words = Words::new(&self.mmu);
            for index in 0..S::ENTRIES {
                let raw = words.load(table, index);
                // One look tells most of them: leaves above the last level.
                if raw & TYPE != 0 && (is_table(raw, level) || is_unlinked(raw)) {
                    self.give_tree(pa(raw), level + 1);
                }
            }
        }
        Words::new(&self.mmu).give(table);
    }
}

/// Addresses that are quiet, and what keeps them so.
pub(super) type Quiet<M> = ((u64, u64), <<M as Mmu>::Quiesce as Quiesce>::Held);

/// How a change is made.
#[derive(Clone, Copy)]
struct Way {
    /// With the gate closed to others.
    alone: bool,
    /// Without a split.
    whole: bool,
    /// Something stops translating.
    clears: bool,
    /// Something may translate anew, and nothing may be owed for it; alone.
    settles: bool,
    /// The one table that it must take, and what to say if it would not; alone.
    given: Option<(Pa, MapError)>,
}

impl Way {
    const SHARED: Self = Self { alone: false, whole: false, clears: false, settles: false, given: None };
    const CLEAR: Self = Self { alone: true, clears: true, ..Self::SHARED };
}

/// A change that was made, the gate not left yet.
struct Done<'m> {
    gate: Entered<'m>,
    spans: Spans,
    recorded: Option<Recorded>,
}

/// Whether what must be quiet is.
pub(super) fn is_quiet<H>(needs: &Needs, held: &Option<((u64, u64), H)>) -> bool {
    match (needs.quiet, held) {
        (None, _) => true,
        (Some((start, end)), Some(((from, to), _))) => *from <= start && end <= *to,
        (Some(_), None) => false,
    }
}

/// The one who may map and unmap. It keeps its CPU from reading meanwhile.
pub struct Writer<'c, 'm, R: Regime, M: Mmu, S: Shape = Granule4K> {
    map: &'m Map<R, M, S>,
    cpu: PhantomData<&'c mut ()>,
}

impl<R: Regime, M: Mmu, S: Shape> Drop for Writer<'_, '_, R, M, S> {
    fn drop(&mut self) {
        self.map.writer.store(false, SeqCst);
    }
}

/// What [`Writer::map`] is asked for.
#[derive(Clone, Copy)]
struct Request {
    start: u64,
    end: u64,
    /// Output minus input, wrapping.
    shift: u64,
    leaf: u64,
    leaves: Leaves,
    /// The word that is there, at every level.
    vacant: u64,
    /// Whether the leaves translate.
    valid: bool,
}

/// A mapping for which everything is found possible and set aside: tables, and the writer.
#[must_use = "nothing is mapped until it is committed"]
pub struct PreparedMap<'w, 'c, 'm, R: Regime, M: Mmu, S: Shape = Granule4K> {
    writer: &'w mut Writer<'c, 'm, R, M, S>,
    /// But for an empty range.
    request: Option<(Request, Reservation<'m, M::Pool>)>,
}

impl<R: Regime, M: Mmu, S: Shape> PreparedMap<'_, '_, '_, R, M, S> {
    /// The same in leaves that translate, or do not: as after [`Change::INVALIDATE`], but at no moment otherwise.
    pub fn translating(mut self, valid: bool) -> Self {
        if let Some((request, _)) = &mut self.request {
            request.valid = valid;
        }
        self
    }

    /// Maps it.
    pub fn commit(self) {
        let Some((request, mut tables)) = self.request else { return };
        let _gate = self.writer.map.exclude_settled(request.start, request.end);
        self.writer.make(&request, &mut tables);
    }
}

impl Request {
    fn is_aligned(&self, size: u64) -> bool {
        self.shift & (size - 1) == 0
    }
    /// Whether leaves of `level` can be used.
    fn has_leaves<S: Shape>(&self, level: u8) -> bool {
        level == LAST_LEVEL || level > 0 && self.leaves.blocks && self.is_aligned(level_size::<S>(level))
    }
    fn has_runs<S: Shape>(&self, level: u8) -> bool {
        self.leaves.runs && self.is_aligned(level_size::<S>(level) << S::RUN_BITS)
    }
}

impl<'c, 'm, R: Regime, M: Mmu, S: Shape> Writer<'c, 'm, R, M, S> {
    pub(super) fn new(map: &'m Map<R, M, S>) -> Self {
        while map.writer.swap(true, SeqCst) {
            map.mmu.wait();
        }
        Self { map, cpu: PhantomData }
    }
    pub(super) fn target(&self) -> &'m Map<R, M, S> {
        self.map
    }

    /// See [`Map::weaken`]. The writer's calls look at the set before they close the gate: so this is one of them.
    fn weaken(&mut self, to: Capabilities) {
        let map = self.map;
        let _gate = map.gate.exclude(|| map.mmu.relax());
        // Paid under the set that allowed what is owed: the newcomer's TLB has nothing of it.
        map.pay_owed();
        map.capabilities.fetch_and(to.bits(), SeqCst);
    }

    /// Maps `input` to as many bytes from `output` on, in the largest leaves that `leaves` and the alignment of both allow. An empty range
    /// maps nothing. Nothing is owed to TLBs for what did not translate before.
    ///
    /// # Errors
    /// [`MapError::Misaligned`], [`MapError::OutOfReach`], [`MapError::Mapped`] or [`MapError::HasState`] if any of it is,
    /// [`MapError::OutOfTables`], [`MapError::Global`].
    pub fn map(
        &mut self,
        input: Range<R::Input>,
        output: Pa,
        attributes: Attributes<R>,
        leaves: Leaves,
    ) -> Result<(), MapError> {
        if let Some(request) = self.request(input, output, attributes, leaves, None)? {
            let (_gate, mut tables) = self.reserve(&request)?;
            self.make(&request, &mut tables);
        }
        Ok(())
    }

    /// As [`Writer::map`], in two steps, of which only this one can fail: so several maps change together or not at all. With a `state`, what
    /// is mapped takes the place of that state in all of `input`, and of nothing else.
    ///
    /// # Errors
    /// As [`Writer::map`], where any of `input` is anything but `state`, if there is one.
    pub fn prepare_map(
        &mut self,
        input: Range<R::Input>,
        state: Option<State>,
        output: Pa,
        attributes: Attributes<R>,
        leaves: Leaves,
    ) -> Result<PreparedMap<'_, 'c, 'm, R, M, S>, MapError> {
        let request = match self.request(input, output, attributes, leaves, state)? {
            // Only a writer changes what translates nothing, but for splitting it: then fewer tables are needed.
            Some(request) => Some((request, self.reserve(&request)?.1)),
            None => None,
        };
        Ok(PreparedMap { writer: self, request })
    }

    /// What is asked for, if it is anything.
    fn request(
        &self,
        input: Range<R::Input>,
        output: Pa,
        attributes: Attributes<R>,
        leaves: Leaves,
        state: Option<State>,
    ) -> Result<Option<Request>, MapError> {
        let map = self.map;
        let (start, size) = (input.start().get(), input.size());
        if !(start | size | output.get()).is_multiple_of(GRANULE) {
            return Err(MapError::Misaligned { input: start, size, output: output.get() });
        }
        let (start, end) = map.checked(input)?;
        if Range::<Pa>::new(output.get(), size).is_err() {
            return Err(MapError::OutOfReach { end: output.get().saturating_add(size), bits: ADDRESS_BITS });
        }
        if map.tag() != Tag::All && !attributes.non_global() {
            return Err(MapError::Global);
        }
        let runs = leaves.runs && map.capabilities().contains(Capabilities::CONTIGUOUS);
        let request = Request {
            start,
            end,
            shift: output.get().wrapping_sub(start),
            leaf: attributes.bits(),
            leaves: Leaves { runs, ..leaves },
            vacant: state.map_or(Entry::<R>::Empty, Entry::State).encode(LAST_LEVEL),
            valid: true,
        };
        Ok((start < end).then_some(request))
    }

    /// Sets aside the tables that a request needs, with the gate closed.
    fn reserve(&self, request: &Request) -> Result<(Entered<'m>, Reservation<'m, M::Pool>), MapError> {
        let map = self.map;
        let mut settled = false;
        loop {
            let gate = map.exclude_settled(request.start, request.end);
            let needed = self.prepare(map.root, map.geometry.start_level(), 0, request)?;
            match Reservation::new(map.mmu.pool(), needed) {
                Ok(tables) => return Ok((gate, tables)),
                Err(error) if settled => return Err(error),
                // Some may only wait for being given back.
                Err(_) => {
                    drop(gate);
                    drop(map.exclude_settled(0, u64::MAX));
                    settled = true;
                }
            }
        }
    }

    /// Makes what was found possible, in the gate.
    fn make(&self, request: &Request, tables: &mut Reservation<'_, M::Pool>) {
        let map = self.map;
        self.commit(map.root, map.geometry.start_level(), 0, request, tables);
        tlb::publish(map);
    }

    /// The entries of a table that the request touches: first, after the last.
    fn entries(&self, level: u8, base: u64, request: &Request) -> (usize, usize) {
        let shift = level_shift::<S>(level);
        let first = (request.start.max(base) - base) >> shift;
        let last = (request.end - 1 - base) >> shift;
        (first as usize, (last as usize).min(self.map.geometry.entries(level) - 1) + 1)
    }

    /// Tables that the request needs below `table`.
    fn prepare(&self, table: Pa, level: u8, base: u64, request: &Request) -> Result<usize, MapError> {
        let words = Words::new(&self.map.mmu);
        let (first, last) = self.entries(level, base, request);
        let mut needed = 0;
        let mut index = first;
        while index < last {
            let at = base + ((index as u64) << level_shift::<S>(level));
            let raw = words.load(table, index);
            if is_table(raw, level) {
                needed += self.prepare(pa(raw), level + 1, at, request)?;
            } else if raw != request.vacant {
                let found = at.max(request.start);
                return Err(match Entry::<R>::decode::<S>(raw, level) {
                    Entry::State(_) => MapError::HasState(found),
                    Entry::Empty => MapError::NoState(found),
                    _ => MapError::Mapped(found),
                });
            } else {
                needed += Self::tables_at(level, at, request);
            }
            index += 1;
        }
        Ok(needed)
    }

    /// Tables that the request needs in the place of an empty entry of `level` at `at`.
    fn tables_at(level: u8, at: u64, request: &Request) -> usize {
        let (start, end) = (request.start.max(at), request.end.min(at + level_size::<S>(level)));
        if request.has_leaves::<S>(level) && end - start == level_size::<S>(level) {
            return 0;
        }
        let below = level + 1;
        if below == LAST_LEVEL {
            return 1;
        }
        let size = level_size::<S>(below);
        let (from, to) = (start.next_multiple_of(size), end & !(size - 1));
        let mut tables = 1;
        if from >= to {
            // It lies in one entry below, or across the border of two.
            let first = start & !(size - 1);
            let last = (end - 1) & !(size - 1);
            tables += Self::tables_at(below, first, request);
            return if last == first { tables } else { tables + Self::tables_at(below, last, request) };
        }
        if start < from {
            tables += Self::tables_at(below, from - size, request);
        }
        if to < end {
            tables += Self::tables_at(below, to, request);
        }
        tables + ((to - from) / size) as usize * Self::tables_at(below, from, request)
    }

    /// Stores what [`Self::prepare`] has found possible, in a table that may be live.
    fn commit(
        &self,
        table: Pa,
        level: u8,
        base: u64,
        request: &Request,
        tables: &mut Reservation<'_, M::Pool>,
    ) {
        let (words, shift) = (Words::new(&self.map.mmu), level_shift::<S>(level));
        let (first, last) = self.entries(level, base, request);
        let covers = |index: usize| {
            let at = base + ((index as u64) << shift);
            request.start <= at && at + (1 << shift) <= request.end
        };
        let leaf = Self::first_leaf(level, request);
        let mut index = first;
        while index < last {
            let at = base + ((index as u64) << shift);
            let raw = words.load(table, index);
            if is_table(raw, level) {
                self.commit(pa(raw), level + 1, at, request, tables);
            } else if request.has_leaves::<S>(level) && covers(index) {
                let run = index & !(S::RUN - 1);
                // A table among them, which an earlier call has left, keeps them apart.
                let is_run = request.has_runs::<S>(level)
                    && covers(run)
                    && covers(run + S::RUN - 1)
                    && (run..run + S::RUN).all(|i| !is_table(words.load(table, i), level));
                let contiguous = if is_run { super::descriptor::CONTIGUOUS } else { 0 };
                let upto = if is_run { run + S::RUN } else { index + 1 };
                for index in index..upto {
                    let at = base + ((index as u64) << shift);
                    words.store(
                        table,
                        index,
                        (leaf | contiguous).wrapping_add(at.wrapping_add(request.shift)),
                    );
                }
                index = upto;
                continue;
            } else {
                words.link(table, index, self.build(level + 1, at, request, tables));
            }
            index += 1;
        }
    }

    /// A leaf of `level` without its output.
    fn first_leaf(level: u8, request: &Request) -> u64 {
        let attributes = Attributes::<R>::of_leaf(request.leaf);
        let zero = Pa::from_field(0);
        Entry::<R>::Leaf { output: zero, attributes, contiguous: false, valid: request.valid }.encode(level)
    }

    /// A table of `level` for what is at `base`, with the request in it; not linked.
    fn build(&self, level: u8, base: u64, request: &Request, tables: &mut Reservation<'_, M::Pool>) -> u64 {
        let (words, shift) = (Words::new(&self.map.mmu), level_shift::<S>(level));
        let table = tables.take();
        let size = 1u64 << shift;
        let end = base + (S::ENTRIES as u64) * size;
        let (start, end) = (request.start.max(base), request.end.min(end));
        let (first, last) = (((start - base) >> shift) as usize, ((end - 1 - base) >> shift) as usize + 1);
        // Those that the request has whole.
        let (from, to) = ((start - base).div_ceil(size) as usize, ((end - base) >> shift) as usize);
        words.fill(table, 0, first, request.vacant, 0);
        let at = |index: usize| base + ((index as u64) << shift);
        let mut below = |index: usize| {
            let built = self.build(level + 1, at(index), request, tables);
            words.fill(table, index, index + 1, built, 0);
        };
        if from <= to && request.has_leaves::<S>(level) {
            (first..from).for_each(&mut below);
            let leaf = Self::first_leaf(level, request).wrapping_add(at(from).wrapping_add(request.shift));
            if from < to {
                words.fill_leaves::<S>(table, (from, to), leaf, size, request.has_runs::<S>(level));
            }
            (to..last).for_each(&mut below);
        } else {
            (first..last).for_each(&mut below);
        }
        words.fill(table, last, S::ENTRIES, request.vacant, 0);
        Entry::<R>::Table(table).encode(level - 1)
    }

    /// Removes all that is in `range`, leaves, tables and software states; what an end of the range cuts is split first.
    ///
    /// # Errors
    /// [`MapError::Misaligned`], [`MapError::OutOfReach`], [`MapError::OutOfTables`], [`MapError::NotQuiet`].
    pub fn unmap(&mut self, range: Range<R::Input>) -> Result<Debt<'m, R, M, S>, MapError> {
        let ends = self.map.checked(range)?;
        let map = self.map;
        map.edit(Clear(None), ends, Way::CLEAR).map(|done| map.owe(done))
    }

    /// As [`Writer::unmap`], but every table stays, be it empty: for who has given them, and asks for them back one by one.
    ///
    /// # Errors
    /// As [`Writer::unmap`].
    pub fn unmap_keeping_tables(&mut self, range: Range<R::Input>) -> Result<Debt<'m, R, M, S>, MapError> {
        let map = self.map;
        if range.size() == GRANULE
            && let Some(mut page) = self.page(range.start(), None)
            && page.replace(Entry::Empty)
        {
            return Ok(Debt::new(map, Spans::new(), &[]));
        }
        let ends = map.checked(range)?;
        map.edit(Empty, ends, Way::CLEAR).map(|done| map.owe(done))
    }

    /// Splits so that nothing, be it a leaf, a run or a software state, lies across either end of `range`: whatever else is done to the range
    /// then, while this is the writer, needs no table and no quiet.
    ///
    /// # Errors
    /// As [`Map::split_edges`].
    pub fn split_edges_of_all(&mut self, range: Range<R::Input>) -> Result<Debt<'m, R, M, S>, MapError> {
        let (map, ends) = (self.map, self.map.checked(range)?);
        map.edit(CutAll, ends, Way { alone: true, ..Way::SHARED }).map(|done| map.owe(done))
    }

    /// Changes every leaf in `range` as `change` says, and makes all else there `state`; tables stay where they are, whatever is in them. One
    /// pass, and one invalidation is owed. What an end of the range cuts is split first.
    ///
    /// # Errors
    /// As [`Map::protect`].
    pub fn restate(
        &mut self,
        range: Range<R::Input>,
        change: Change<R>,
        state: State,
    ) -> Result<Debt<'m, R, M, S>, MapError> {
        let (map, ends) = (self.map, self.map.checked(range)?);
        if change.makes_global() && map.tag() != Tag::All {
            return Err(MapError::Global);
        }
        let way =
            Way { alone: true, clears: change.invalidates(), settles: change.validates(), ..Way::SHARED };
        map.edit(Restate(change, state), ends, way).map(|done| map.owe(done))
    }

    /// Makes `state` all that is known of `range`, whatever was there. Nothing is owed afterwards: what translated there
    /// was invalidated.
    ///
    /// # Errors
    /// As [`Writer::unmap`].
    pub fn set_state(&mut self, range: Range<R::Input>, state: State) -> Result<(), MapError> {
        if range.size() == GRANULE
            && let Some(mut page) = self.page(range.start(), None)
            && page.replace(Entry::State(state))
        {
            return Ok(());
        }
        let (map, (start, end)) = (self.map, self.map.checked(range)?);
        // A state needs the place of a table that waits there. Only a writer could put another one there.
        drop(map.exclude_settled(start, end));
        let done = map.edit(Clear(Some(state)), (start, end), Way::CLEAR)?;
        if start < end {
            // It takes the place of each table that is given back, whoever does that.
            map.cleared().state = Some((start, end, state));
            if !done.spans.is_empty() {
                tlb::invalidate(map, &done.spans, EXCLUSIVE);
            }
            if let Some(Recorded { id, alone: true }) = done.recorded {
                map.paid(&[id]);
            }
            map.settle_owed(start, end);
            drop(done);
            drop(map.exclude_settled(start, end));
            map.cleared().state = None;
        }
        Ok(())
    }
}
