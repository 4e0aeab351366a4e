//! One page: found by one walk, looked at, and changed by one store.
//!
//! Invariants:
//! - A [`Page`] is the entry of the last level, of no run, of a map that the caller alone changes for as long as the value lives, and for which nothing is
//!   owed to any TLB: what is not so simple is nobody's `Page`, and takes the way of ranges.
//! - When [`Page::replace`] returns, no TLB holds what the entry was.

use super::addr::{Address, GRANULE};
use super::descriptor::{CONTIGUOUS, Entry, Regime, VALID, is_changing, is_leaf, is_table, pa};
use super::geometry::{LAST_LEVEL, Shape, level_shift, level_size};
use super::map::{Map, Writer};
use super::mmu::Mmu;
use super::rule::Strategy;
use super::tlb::{self, Tag};
use super::update::{EXCLUSIVE, Entered, Words, answer, difference};
use super::walk::Visited;
use super::{Granule4K, Pa};

/// The entry of one page. Others who change the map wait as long as this lives; so the caller waits for nobody meanwhile but for the `Page` of another
/// map, in one order.
pub struct Page<'w, R: Regime, M: Mmu, S: Shape = Granule4K> {
    map: &'w Map<R, M, S>,
    table: Pa,
    index: usize,
    start: u64,
    raw: u64,
    _gate: Entered<'w>,
}

/// The table of the last level that has an address.
// Not in its callers, where it would take the registers that they need.
#[inline(never)]
fn last_table<R: Regime, M: Mmu, S: Shape>(map: &Map<R, M, S>, address: u64) -> Option<Pa> {
    let words = Words::new(map.mmu());
    let mut table = map.root();
    let mut shift = level_shift::<S>(map.geometry().start_level());
    // A root may be of several tables.
    let mut index = (address >> shift) as usize;
    while shift > level_shift::<S>(LAST_LEVEL) {
        let raw = words.load(table, index);
        // Above the last level that is a table.
        if !is_table(raw, 0) {
            return None;
        }
        shift -= level_shift::<S>(0) - level_shift::<S>(1);
        (table, index) = (pa(raw), (address >> shift) as usize & (S::ENTRIES - 1));
    }
    Some(table)
}

impl<'m, R: Regime, M: Mmu, S: Shape> Writer<'_, 'm, R, M, S> {
    /// What the map says at an address, if it reaches it. Beside others, who may be changing what a leaf says.
    #[inline]
    pub fn find(&self, address: R::Input) -> Option<Visited<R>> {
        let (map, address) = (self.target(), address.get());
        if address >> map.geometry().input_bits() != 0 {
            return None;
        }
        let words = Words::new(map.mmu());
        let (mut table, mut level) = (map.root(), map.geometry().start_level());
        let mut index = (address >> level_shift::<S>(level)) as usize;
        loop {
            let raw = words.settled(table, index);
            if !is_table(raw, level) {
                let start = address & !(level_size::<S>(level) - 1);
                return Some(Visited { start, level, entry: Entry::decode::<S>(raw, level) });
            }
            (table, level) = (pa(raw), level + 1);
            index = (address >> level_shift::<S>(level)) as usize & (S::ENTRIES - 1);
        }
    }

    /// The entry of the page that begins at an address, if it has one of its own, nothing is in the way, and it is `wanted` if anything is: `None` says only
    /// that it is to be looked at, and changed, as a range of one page.
    #[inline(always)]
    pub fn page(&mut self, address: R::Input, wanted: Option<Entry<R>>) -> Option<Page<'_, R, M, S>> {
        let (map, start) = (self.target(), address.get());
        if start >> map.geometry().input_bits() != 0 || start % GRANULE != 0 || map.hardware_updates() {
            return None;
        }
        let gate = map.gate().exclude(|| map.mmu().relax());
        // Nothing that was paid needs to be looked for: whoever owes counts in the gate, or has said so when he forgot.
        if map.is_others_owed(EXCLUSIVE) {
            return None;
        }
        let table = last_table(map, start)?;
        let index = (start >> level_shift::<S>(LAST_LEVEL)) as usize;
        let index = if map.geometry().start_level() == LAST_LEVEL { index } else { index & (S::ENTRIES - 1) };
        let raw = Words::new(map.mmu()).load(table, index);
        let is_wanted = wanted.is_none_or(|wanted| raw == wanted.encode(LAST_LEVEL));
        let is_in_run = is_leaf(raw, LAST_LEVEL) && raw & CONTIGUOUS != 0;
        (is_wanted && !is_in_run && !is_changing(raw)).then_some(Page {
            map,
            table,
            index,
            start,
            raw,
            _gate: gate,
        })
    }
}

impl<R: Regime, M: Mmu, S: Shape> Page<'_, R, M, S> {
    /// What it says.
    #[inline(always)]
    pub fn entry(&self) -> Entry<R> {
        Entry::decode::<S>(self.raw, LAST_LEVEL)
    }

    /// Its address.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Makes it say something else: any state, nothing, or a leaf. With `false` nothing was changed, as it takes more than a store: a leaf that
    /// translates, before and after, would be of other memory; or it is one that such a map cannot have.
    #[inline(always)]
    pub fn replace(&mut self, entry: Entry<R>) -> bool {
        let (map, raw) = (self.map, entry.encode(LAST_LEVEL));
        let strategy = answer(map, difference::<R>(self.raw, raw, LAST_LEVEL, false));
        let is_moved = self.raw & raw & VALID != 0 && pa(self.raw) != pa(raw);
        let is_global = map.tag() != Tag::All
            && matches!(entry, Entry::Leaf { attributes, .. } if !attributes.non_global());
        if is_moved || is_global || !matches!(strategy, Strategy::Store | Strategy::StoreThenInvalidate) {
            return false;
        }
        Words::new(map.mmu()).store(self.table, self.index, raw);
        self.raw = raw;
        match strategy {
            Strategy::StoreThenInvalidate => tlb::invalidate_page(map, self.start),
            _ => tlb::publish(map),
        }
        true
    }
}
