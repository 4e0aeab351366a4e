//! An entry of a realm's tables, in the specification's words (A5.5, C1.28 to C1.31).
//!
//! Invariant: only this file knows what a state word and the attributes of a leaf mean. A word that it has not written is UNASSIGNED, EMPTY.

use core::ops::ControlFlow;

use hyp::mapping::{
    Address, Attributes, Change, Debt, Entry, Ipa, Leaves, MapError, Mmu, Pa, Range, Stage2, State, Writer,
};
use hyp::owner::Placement;
use rmm_abi::v1_0::{GRANULE_SIZE, PAGE_LEVEL, RmmHipas, RmmRipas, RmmRttEntryState, entry_size};

use crate::realm::Realm;

/// State word `value`, which has 60 bits.
const fn state(value: u64) -> State {
    match State::new(value) {
        Some(state) => state,
        None => unreachable!(),
    }
}

/// UNASSIGNED, EMPTY at a protected IPA; UNASSIGNED_NS at an unprotected one.
pub const EMPTY: State = state(0);
/// UNASSIGNED, RAM.
pub const RAM: State = state(1);
/// UNASSIGNED, DESTROYED.
pub const DESTROYED: State = state(2);

/// The realm's own memory; and the host's, from which a realm does not execute (A5.2.1).
const OWN: Attributes<Stage2> = Attributes::<Stage2>::RAM;
const NS: Attributes<Stage2> = Attributes::<Stage2>::IO;
/// What the leaf of an ASSIGNED, DESTROYED entry has, which does not translate.
const OWN_DESTROYED: Attributes<Stage2> = Attributes::<Stage2>::IO;
/// One leaf for what is asked for, and in no run: entries are the host's to fold.
const LEAVES: Leaves = Leaves { blocks: true, runs: false };

/// An RTT entry (RmmRttEntry).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rtte {
    /// Its state.
    pub state: RmmRttEntryState,
    /// Its RIPAS: EMPTY at an unprotected IPA, and of a table.
    pub ripas: RmmRipas,
    /// The address in it, 0 if it is not live.
    pub addr: u64,
    /// What the host may do there and the realm not, at ASSIGNED_NS: (reads, writes).
    pub s2ap: (bool, bool),
}

impl Rtte {
    /// What an entry of a realm's stage 2 says, in the half that is protected or in the other one.
    pub fn of(entry: Entry<Stage2>, is_protected: bool) -> Self {
        let (unassigned, none) = match is_protected {
            true => (RmmHipas::Unassigned, RmmRipas::Empty),
            false => (RmmHipas::UnassignedNs, RmmRipas::Empty),
        };
        let rtte = |hipas, ripas, addr| Self {
            state: RmmRttEntryState::Entry(hipas),
            ripas,
            addr,
            s2ap: (false, false),
        };
        match entry {
            Entry::Table(table) => {
                Self { state: RmmRttEntryState::Table, ..rtte(unassigned, none, table.get()) }
            }
            Entry::Leaf { output, attributes, valid, .. } if is_protected => {
                let ripas = match (valid, attributes.is_executable()) {
                    (true, _) => RmmRipas::Ram,
                    (false, true) => RmmRipas::Empty,
                    (false, false) => RmmRipas::Destroyed,
                };
                rtte(RmmHipas::Assigned, ripas, output.get())
            }
            Entry::Leaf { output, attributes, .. } => Self {
                s2ap: (attributes.is_readable(), attributes.is_writable()),
                ..rtte(RmmHipas::AssignedNs, none, output.get())
            },
            Entry::State(RAM) if is_protected => rtte(unassigned, RmmRipas::Ram, 0),
            Entry::State(DESTROYED) if is_protected => rtte(unassigned, RmmRipas::Destroyed, 0),
            Entry::State(_) | Entry::Empty | Entry::Changing | Entry::Unlinked(_) => {
                rtte(unassigned, none, 0)
            }
        }
    }

    /// Whether this is what the host has put there.
    pub fn is(&self, hipas: RmmHipas) -> bool {
        self.state == RmmRttEntryState::Entry(hipas)
    }
}

/// Where a walk has ended (RmmRttWalkResult).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Walk {
    /// The level.
    pub level: i64,
    /// The first IPA of the entry.
    pub start: u64,
    /// The entry.
    pub rtte: Rtte,
}

impl Walk {
    /// The IPA after the entry.
    pub fn end(&self) -> u64 {
        self.start + self.size()
    }
    /// The IPA after the last that its RTT describes.
    pub fn end_of_rtt(&self) -> u64 {
        (self.start | (ENTRIES * self.size().max(1) - 1)) + 1
    }
    /// Bytes of IPA space that the entry describes.
    pub fn size(&self) -> u64 {
        entry_size(self.level).unwrap_or(0)
    }
}

/// Where a walk has ended, and the live entries around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// The walk.
    pub walk: Walk,
    /// The first IPA after the entry whose own entry of the same RTT is live; or the end of the RTT.
    pub next_live: u64,
}

impl Probe {
    /// RttSkipNonLiveEntries (B3.76) as it is.
    pub fn top(&self) -> u64 {
        if self.walk.rtte.state.is_live() { self.walk.start } else { self.next_live }
    }
}

/// What [`Realm::ripas_range`] finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RipasRange {
    /// Where the walk to its first IPA has ended.
    pub walk: Walk,
    /// The entries that can change: from here to there.
    pub change: (u64, u64),
    /// The end of what is as it was asked for then.
    pub top: u64,
}

/// Bytes that an RTT of the page level describes.
const END_OF_RTT: u64 = 2 << 20;

/// Entries of an RTT.
pub const ENTRIES: u64 = 512;

/// Whether an address is stored in it (A5.5.8).
fn is_live(entry: &Entry<Stage2>) -> bool {
    matches!(entry, Entry::Table(_) | Entry::Leaf { .. })
}

/// An address of a realm: smaller than 2^48, as is checked before.
fn ipa(address: u64) -> Ipa {
    Ipa::new(address & ((1 << 48) - 1)).unwrap_or_else(|_| unreachable!("48 bits"))
}

/// A level of the engine's.
fn engine(level: i64) -> u8 {
    level.clamp(0, PAGE_LEVEL) as u8
}

/// What makes RIPAS of an ASSIGNED entry so.
const fn change(ripas: RmmRipas) -> Change<Stage2> {
    match ripas {
        RmmRipas::Ram => Change::<Stage2>::EXECUTABLE.then(Change::VALIDATE),
        RmmRipas::Destroyed => Change::<Stage2>::NO_EXECUTE.then(Change::INVALIDATE),
        RmmRipas::Empty | RmmRipas::Dev => Change::<Stage2>::EXECUTABLE.then(Change::INVALIDATE),
    }
}

/// The word of an UNASSIGNED entry with this RIPAS.
pub const fn unassigned(ripas: RmmRipas) -> State {
    match ripas {
        RmmRipas::Ram => RAM,
        RmmRipas::Destroyed => DESTROYED,
        RmmRipas::Empty | RmmRipas::Dev => EMPTY,
    }
}

/// What the entry of a protected page becomes by that.
fn restated(entry: Entry<Stage2>, ripas: RmmRipas) -> Entry<Stage2> {
    match entry {
        Entry::Leaf { output, .. } => {
            let attributes = if ripas == RmmRipas::Destroyed { OWN_DESTROYED } else { OWN };
            Entry::Leaf { output, attributes, contiguous: false, valid: ripas == RmmRipas::Ram }
        }
        _ => Entry::State(unassigned(ripas)),
    }
}

/// How a granule of data takes the place of an UNASSIGNED entry whose RIPAS is `before`, at the page `address`, and has `ripas` then.
pub fn data(address: u64, before: RmmRipas, ripas: RmmRipas) -> Placement {
    Placement {
        ipa: ipa(address),
        vacant: Some(unassigned(before)),
        attributes: if ripas == RmmRipas::Destroyed { OWN_DESTROYED } else { OWN },
        leaves: LEAVES,
        translates: ripas == RmmRipas::Ram,
    }
}

/// How memory of the host's takes the place of an UNASSIGNED_NS entry at `address`, for these accesses.
pub fn unprotected(address: u64, reads: bool, writes: bool) -> Placement {
    Placement {
        ipa: ipa(address),
        vacant: Some(EMPTY),
        attributes: NS.accessible(reads, writes),
        leaves: LEAVES,
        translates: true,
    }
}

/// What a realm has at its start: all UNASSIGNED, EMPTY and UNASSIGNED_NS.
pub fn initialize<M: Mmu>(writer: &mut Writer<'_, '_, Stage2, M>, bits: u32) -> Result<(), MapError> {
    // A realm has 48 bits at most.
    let Ok(all) = Range::new(0, 1 << bits.min(48)) else { return Ok(()) };
    writer.set_state(all, EMPTY)
}

impl<M: Mmu> Realm<M> {
    /// The writer of its tables. Only who has the monitor's lock asks.
    pub fn write(&self) -> Writer<'_, '_, Stage2, M> {
        loop {
            if let Some(writer) = self.map.try_write() {
                return writer;
            }
            core::hint::spin_loop();
        }
    }

    /// RttWalk (B3.78): to the entry of `level` for an IPA that the realm has, or the one above it that is no table.
    pub fn walk(&self, address: u64, level: i64) -> Walk {
        self.scan(address, level, |walk| ControlFlow::Break(*walk)).unwrap_or_else(|| self.nowhere(address))
    }

    /// No entry is for an address that the realm has not.
    fn nowhere(&self, address: u64) -> Walk {
        Walk { level: self.rtt_level_start, start: address, rtte: Rtte::of(Entry::Empty, false) }
    }

    /// Calls `visit` with the entry at which a walk ends, and those after it in its RTT, until it breaks.
    pub fn scan<B>(
        &self,
        address: u64,
        level: i64,
        mut visit: impl FnMut(&Walk) -> ControlFlow<B>,
    ) -> Option<B> {
        if !self.has_ipa(address) {
            return None;
        }
        self.write()
            .scan(ipa(address), engine(level), |level, start, entry| {
                let rtte = Rtte::of(entry, self.is_protected(start));
                visit(&Walk { level: level.into(), start, rtte })
            })
            .break_value()
    }

    /// RIPAS at the protected IPA `base`, and how far from there it is the same: to `top`, or to the end of the RTT in which the walk ends,
    /// at most.
    pub fn ripas_from(&self, base: u64, top: u64) -> (u64, RmmRipas) {
        // Of what translates the RIPAS is RAM, and most of what is asked about translates.
        let mut end = if self.has_ipa(base) { self.write().translates_until(ipa(base), top) } else { base };
        let mut first = (end > base).then_some(RmmRipas::Ram);
        if end >= top || end > base && end.is_multiple_of(END_OF_RTT) {
            return (end.min(top), RmmRipas::Ram);
        }
        let _ = self.scan(end, PAGE_LEVEL, |walk| {
            let is_table = walk.rtte.state == RmmRttEntryState::Table;
            if walk.start >= top || is_table || walk.rtte.ripas != *first.get_or_insert(walk.rtte.ripas) {
                return ControlFlow::Break(());
            }
            end = walk.end();
            ControlFlow::Continue(())
        });
        (end.min(top), first.unwrap_or(RmmRipas::Empty))
    }

    /// As [`Realm::scan`], of entries as the engine has them: for loops over many.
    fn scan_entries<B>(
        &self,
        address: u64,
        level: i64,
        visit: impl FnMut(u8, u64, Entry<Stage2>) -> ControlFlow<B>,
    ) -> Option<B> {
        if !self.has_ipa(address) {
            return None;
        }
        self.write().scan(ipa(address), engine(level), visit).break_value()
    }

    /// What the engine has at `start`, in the specification's words.
    fn walked(&self, (level, start, entry): (u8, u64, Entry<Stage2>)) -> Walk {
        Walk { level: level.into(), start, rtte: Rtte::of(entry, self.is_protected(start)) }
    }

    /// A walk, and where the next live entry is.
    pub fn probe(&self, address: u64, level: i64) -> Probe {
        let walk = self.walk(address, level);
        let (end, end_of_rtt) = (walk.end(), walk.end_of_rtt());
        if end == end_of_rtt {
            return Probe { walk, next_live: end };
        }
        // Most of what is not live is a state word, each.
        let from = self.write().states_until(ipa(end), engine(walk.level));
        let next = if from == end_of_rtt {
            None
        } else {
            self.scan_entries(from, walk.level, |_, start, entry| match is_live(&entry) {
                true => ControlFlow::Break(start),
                false => ControlFlow::Continue(()),
            })
        };
        Probe { walk, next_live: next.unwrap_or(end_of_rtt) }
    }

    /// Whether one of its entries at `level` from `address` on, to the end of their RTT, is live in the sense of an RTT (A5.5.8).
    pub fn is_rtt_live(&self, address: u64, level: i64) -> bool {
        let is_protected = self.is_protected(address);
        let size = ENTRIES * entry_size(level).unwrap_or(0);
        if self.write().states_until(ipa(address), engine(level)) == address + size {
            return false;
        }
        let live = |_, _, entry| match entry {
            Entry::Table(_) => ControlFlow::Break(()),
            Entry::Leaf { .. } if is_protected => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        };
        self.scan_entries(address, level, live).is_some()
    }

    /// What of `base .. top` can become `ripas` in one call: the entries of one RTT, from the one at which the walk to `base` ends up to a
    /// table, or to one that is DESTROYED if that stops it (RttSkipEntriesWithRipas, B3.75).
    ///
    /// An entry of which an end of the range cuts a part does not change; if it is as it is asked to be already, that is no reason to stop.
    pub fn ripas_range(&self, base: u64, top: u64, ripas: RmmRipas, stop_at_destroyed: bool) -> RipasRange {
        let (mut first, mut last) = (None, None);
        let stop = self.scan_entries(base, PAGE_LEVEL, |level, start, entry| {
            let found = (level, start, entry);
            first = first.or(Some(found));
            let stops = match entry {
                Entry::Table(_) => true,
                Entry::State(DESTROYED) => stop_at_destroyed,
                Entry::Leaf { valid: false, attributes, .. } => {
                    stop_at_destroyed && !attributes.is_executable()
                }
                _ => false,
            };
            if stops {
                return ControlFlow::Break(start);
            }
            last = Some(found);
            // At the page level nothing but what is destroyed stops it.
            let size = entry_size(level.into()).unwrap_or(u64::MAX);
            let has_all = level == PAGE_LEVEL as u8 && !stop_at_destroyed || top - start <= size;
            if has_all { ControlFlow::Break(u64::MAX) } else { ControlFlow::Continue(()) }
        });
        let walk = first.map_or_else(|| self.nowhere(base), |first| self.walked(first));
        let last = last.map(|last| self.walked(last));
        let size = walk.size().max(1);
        let end_of_rtt = walk.end_of_rtt();
        let limit = stop.unwrap_or(end_of_rtt).min(end_of_rtt).min(top);
        let (from, to) = (base.next_multiple_of(size), limit & !(size - 1));
        let is_cut_alike = to < limit && last.is_some_and(|last| last.rtte.ripas == ripas);
        let top = if is_cut_alike { limit } else { to };
        RipasRange { walk, change: (from, to.max(from)), top: top.max(base) }
    }

    /// Makes RIPAS so in whole entries, none of which is a table.
    ///
    /// # Errors
    /// [`MapError`], if one of them would have to be split.
    pub fn set_ripas(&self, (from, to): (u64, u64), ripas: RmmRipas) -> Result<(), MapError> {
        let Some(range) = to.checked_sub(from).and_then(|size| Range::new(from, size).ok()) else {
            return Ok(());
        };
        let mut writer = self.write();
        // One page that has an entry of its own takes one store.
        if to - from == GRANULE_SIZE
            && let Some(mut page) = writer.page(ipa(from), None)
            && page.replace(restated(page.entry(), ripas))
        {
            return Ok(());
        }
        writer.restate(range, change(ripas), unassigned(ripas)).map(Debt::flush)
    }

    /// RTT folding (A5.5.6): gives the RTT of `level` at `address`.
    ///
    /// # Errors
    /// [`MapError::Differs`] if it is not homogeneous.
    pub fn fold(&self, address: u64, level: i64) -> Result<Pa, MapError> {
        self.write().collapse_entry(ipa(address), engine(level - 1))
    }

    /// RTT destruction (A5.5.9): gives the RTT of `level` at `address`, in which nothing is live.
    ///
    /// # Errors
    /// [`MapError::NoTable`] if there is none.
    pub fn destroy_rtt(&self, address: u64, level: i64) -> Result<Pa, MapError> {
        let then = if self.is_protected(address) { DESTROYED } else { EMPTY };
        self.write().replace_table(ipa(address), engine(level - 1), then)
    }
}
