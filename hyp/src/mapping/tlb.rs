//! What TLBs still hold of a change, and how it is made to go (Arm ARM C5.5, D8.16).
//!
//! Invariant: a change is recorded in its map as owed before its first store, and stays so until it was flushed. The [`Debt`] that the
//! caller gets only knows more precisely what is owed: paying it is the cheap way, and who forgets it makes the next who needs
//! certainty pay for everything.
//!
//! - An entry that kept its size is invalidated with its level, if CPUs have FEAT_TTL. One that changed its size or its Contiguous
//!   bit is not: a TLB may hold either.
//! - One address suffices for a block or a page, however a TLB holds it (R_LGSCG and the rule that follows it); a run owes each leaf.
//! - An unlinked table was cached by walks, so the last-level forms do not do.
//! - Invalidation of stage 2 by address leaves entries that combine both stages: one [`Tlbi::Combined`] follows a batch.

use super::descriptor::Regime;
use super::geometry::{LAST_LEVEL, PAGE_SHIFT, Shape, level_shift};
use super::map::Map;
use super::mmu::{Barrier, Mmu, Reach, Scope, Tlbi};
use super::rule::{Capabilities, Stage};
use super::update::DEBT;

/// More operations than this cost more than the walks after an invalidation of everything. Linux draws the line at 512 for a
/// process; a flush of a hypervisor's map is rarer and its TLB share smaller.
const WHOLE: u64 = 128;

/// `TG` of an operand: the 4 KiB granule.
const TG_4K: u64 = 0b01;
const ASID_SHIFT: u32 = 48;
/// By address: `TTL` is the granule and the level, at bit 44; the address is in pages.
const TTL_SHIFT: u32 = 44;
const ADDRESS_PAGES: u64 = (1 << 44) - 1;
/// By range (C5.5, the R forms): granule, scale, number, level, page of the first address.
const RANGE_TG_SHIFT: u32 = 46;
const RANGE_SCALE_SHIFT: u32 = 44;
const RANGE_NUM_SHIFT: u32 = 39;
const RANGE_TTL_SHIFT: u32 = 37;
const RANGE_BASE: u64 = (1 << 37) - 1;

/// Addresses whose entries changed alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) end: u64,
    /// No entry of it spans less than one of this level.
    pub(super) level: u8,
    /// Every entry of it was and is of this level.
    pub(super) same_size: bool,
    /// No table of it was unlinked.
    pub(super) last_level: bool,
}

const SPANS: usize = 4;

/// A few spans, or the smallest that contain more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spans {
    list: [Span; SPANS],
    len: usize,
    /// A TLB may hold two entries for an address and give an abort for it: only an invalidation of everything is sure
    /// to remove both (R_BLRKC).
    pub(super) conflicts: bool,
}

impl Spans {
    const NONE: Span = Span { start: 0, end: 0, level: LAST_LEVEL, same_size: true, last_level: true };

    pub(super) const fn new() -> Self {
        Self { list: [Self::NONE; SPANS], len: 0, conflicts: false }
    }
    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }
    pub(super) fn iter(&self) -> impl Iterator<Item = &Span> {
        self.list[..self.len].iter()
    }

    #[inline]
    pub(super) fn add(&mut self, span: Span) {
        if let Some(last) = self.list[..self.len].last_mut()
            && last.end == span.start
            && (last.level, last.same_size, last.last_level) == (span.level, span.same_size, span.last_level)
        {
            last.end = span.end;
        } else if self.list[..self.len].contains(&span) {
            // Tables that fall vacant above each other begin at one address.
        } else if self.len < SPANS {
            self.list[self.len] = span;
            self.len += 1;
        } else {
            let last = &mut self.list[SPANS - 1];
            last.same_size &= span.same_size && last.level == span.level;
            last.last_level &= span.last_level;
            last.level = last.level.max(span.level);
            last.start = last.start.min(span.start);
            last.end = last.end.max(span.end);
        }
    }
}

/// Whose entries a map's are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    /// Of everybody in the regime, or of the VMID that the [`Mmu`] knows.
    All,
    /// Of one ASID of the EL1&0 regime: every leaf is non-global.
    Asid(u16),
}

impl Tag {
    fn operand(self) -> u64 {
        match self {
            Self::All => 0,
            Self::Asid(asid) => u64::from(asid) << ASID_SHIFT,
        }
    }
}

/// Operands of the range forms that cover `pages` pages, at least 2, from page `first` on; the last page may be left over.
struct Ranges {
    page: u64,
    left: u64,
    scale: u32,
}

impl Iterator for Ranges {
    /// First page, `SCALE`, `NUM`.
    type Item = (u64, u64, u64);
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            // (NUM + 1) << (5 * SCALE + 1) pages.
            let shift = 5 * self.scale + 1;
            let count = (self.left >> shift).min(32);
            if count > 0 {
                let first = self.page;
                self.page += count << shift;
                self.left -= count << shift;
                return Some((first, u64::from(self.scale), count - 1));
            }
            self.scale = self.scale.checked_sub(1)?;
        }
    }
}

fn ranges(span: &Span) -> Ranges {
    Ranges { page: span.start >> PAGE_SHIFT, left: (span.end - span.start) >> PAGE_SHIFT, scale: 3 }
}

/// The operations of the range forms that a span takes, if CPUs have those and it would take more by address.
fn by_range(span: &Span, capabilities: Capabilities, by_address: u64) -> Option<u64> {
    if !capabilities.contains(Capabilities::TLB_RANGE) {
        return None;
    }
    let mut parts = ranges(span);
    let operations = parts.by_ref().count() as u64 + parts.left;
    (operations < by_address).then_some(operations)
}

/// Issues one operation; where CPUs need it, again after it is complete.
fn issue<R: Regime, M: Mmu, S: Shape>(map: &Map<R, M, S>, operation: Tlbi, operand: u64) {
    let (mmu, scope) = (map.mmu(), map.scope());
    mmu.tlbi(operation, scope, operand);
    if !map.capabilities().contains(Capabilities::TLBI_ONCE) {
        mmu.barrier(Barrier::Complete, scope);
        mmu.tlbi(operation, scope, operand);
    }
}

/// Invalidates what `spans` name, after making the stores so far visible, and waits until it is done. In the map's gate the caller
/// counts as `own`.
pub(super) fn invalidate<R: Regime, M: Mmu, S: Shape>(map: &Map<R, M, S>, spans: &Spans, own: u64) {
    let (mmu, scope, capabilities) = (map.mmu(), map.scope(), map.capabilities());
    mmu.barrier(Barrier::StoresVisible, scope);
    // What is owed to others may be entries of any size for the same addresses.
    let others = map.is_others_owed(own);
    let conflicts = spans.conflicts || others && !capabilities.contains(Capabilities::NO_CONFLICT_ABORT);
    let cost = |span: &Span| {
        let by_address = (span.end - span.start) >> level_shift::<S>(span.level);
        by_range(span, capabilities, by_address).unwrap_or(by_address)
    };
    if conflicts || spans.iter().map(cost).sum::<u64>() > WHOLE {
        whole(map);
    } else {
        let one_asid = matches!(map.tag(), Tag::Asid(_));
        for span in spans.iter() {
            let reach = Reach { last_level: span.last_level, one_asid };
            let hint =
                span.same_size && !others && capabilities.contains(Capabilities::TLB_LEVEL) && span.level > 0;
            let level = if hint { u64::from(span.level) } else { 0 };
            let address = |page: u64| {
                let ttl = if hint { (TG_4K << 2 | level) << TTL_SHIFT } else { 0 };
                let page = (page | map.base() >> PAGE_SHIFT) & ADDRESS_PAGES;
                issue(map, Tlbi::Address(reach), map.tag().operand() | ttl | page);
            };
            let by_address = (span.end - span.start) >> level_shift::<S>(span.level);
            if by_range(span, capabilities, by_address).is_some() {
                let mut parts = ranges(span);
                for (page, scale, num) in parts.by_ref() {
                    let fields = TG_4K << RANGE_TG_SHIFT
                        | scale << RANGE_SCALE_SHIFT
                        | num << RANGE_NUM_SHIFT
                        | level << RANGE_TTL_SHIFT;
                    let page = (page | map.base() >> PAGE_SHIFT) & RANGE_BASE;
                    issue(map, Tlbi::Range(reach), map.tag().operand() | fields | page);
                }
                if parts.left > 0 {
                    address(parts.page);
                }
            } else {
                let stride = 1 << level_shift::<S>(span.level);
                (span.start..span.end).step_by(stride).for_each(|at| address(at >> PAGE_SHIFT));
            }
        }
        if R::STAGE == Stage::Two {
            mmu.barrier(Barrier::Complete, scope);
            issue(map, Tlbi::Combined, 0);
        }
    }
    finish::<R, M>(mmu, scope);
    // Who came meanwhile may have changed sizes in place before an operation by address was done, which then was not sure to
    // remove what is owed here.
    if !conflicts && !capabilities.contains(Capabilities::NO_CONFLICT_ABORT) && map.is_others_owed(own) {
        whole(map);
        finish::<R, M>(mmu, scope);
    }
}

/// As [`invalidate`], for a page of a map that is the caller's alone and for which nothing else is owed: every entry that a TLB can hold of it is of the
/// last level.
#[inline(always)]
pub(super) fn invalidate_page<R: Regime, M: Mmu, S: Shape>(map: &Map<R, M, S>, start: u64) {
    let (mmu, scope) = (map.mmu(), map.scope());
    mmu.barrier(Barrier::StoresVisible, scope);
    let reach = Reach { last_level: true, one_asid: matches!(map.tag(), Tag::Asid(_)) };
    let hint = map.capabilities().contains(Capabilities::TLB_LEVEL);
    let ttl = if hint { (TG_4K << 2 | u64::from(LAST_LEVEL)) << TTL_SHIFT } else { 0 };
    let page = ((start | map.base()) >> PAGE_SHIFT) & ADDRESS_PAGES;
    issue(map, Tlbi::Address(reach), map.tag().operand() | ttl | page);
    if R::STAGE == Stage::Two {
        mmu.barrier(Barrier::Complete, scope);
        issue(map, Tlbi::Combined, 0);
    }
    finish::<R, M>(mmu, scope);
}

/// Invalidates everything of the map.
pub(super) fn invalidate_all<R: Regime, M: Mmu, S: Shape>(map: &Map<R, M, S>) {
    let (mmu, scope) = (map.mmu(), map.scope());
    mmu.barrier(Barrier::StoresVisible, scope);
    whole(map);
    finish::<R, M>(mmu, scope);
}

fn whole<R: Regime, M: Mmu, S: Shape>(map: &Map<R, M, S>) {
    match map.tag() {
        Tag::All => issue(map, Tlbi::All, 0),
        tag @ Tag::Asid(_) => issue(map, Tlbi::Asid, tag.operand()),
    }
}

fn finish<R: Regime, M: Mmu>(mmu: &M, scope: Scope) {
    mmu.barrier(Barrier::Complete, scope);
    // A guest synchronizes on its way in.
    if R::STAGE == Stage::One {
        mmu.barrier(Barrier::Synchronize, scope);
    }
}

/// New entries are in force: no TLB holds what they replace.
pub(super) fn publish<R: Regime, M: Mmu, S: Shape>(map: &Map<R, M, S>) {
    map.mmu().barrier(Barrier::StoresVisible, map.scope());
    if R::STAGE == Stage::One {
        map.mmu().barrier(Barrier::Synchronize, map.scope());
    }
}

/// What is owed to TLBs for a change of a map that is in its tables already. Until it was flushed, CPUs may use the
/// old permissions, and what was unmapped may still be reached.
#[must_use = "the change is in force on every CPU only once its debt was flushed"]
pub struct Debt<'m, R: Regime, M: Mmu, S: Shape> {
    map: &'m Map<R, M, S>,
    spans: Spans,
    /// The map's records of what stopped translating. Those that found no room here stay with the map.
    cleared: [u64; CLEARED],
}

/// Records that one debt can name.
const CLEARED: usize = 4;

impl<'m, R: Regime, M: Mmu, S: Shape> Debt<'m, R, M, S> {
    /// Of a change that the map has recorded as owed, with the numbers of what it cleared.
    pub(super) fn new(map: &'m Map<R, M, S>, spans: Spans, ids: &[u64]) -> Self {
        let mut cleared = [0; CLEARED];
        cleared.iter_mut().zip(ids).for_each(|(slot, &id)| *slot = id);
        Self { map, spans, cleared }
    }

    /// Whether nothing is owed: no TLB can hold anything stale.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Takes over what another debt of the same map owes, for one flush of both.
    ///
    /// # Errors
    /// The other debt, if it is of another map: no invalidation of one map is sure to reach what the other owes.
    #[expect(clippy::result_large_err, reason = "it is the argument, and comes back by mistake only")]
    pub fn merge(&mut self, mut other: Self) -> Result<(), Self> {
        if !core::ptr::eq(self.map, other.map) {
            return Err(other);
        }
        for id in other.cleared.into_iter().filter(|&id| id != 0) {
            if let Some(slot) = self.cleared.iter_mut().find(|slot| **slot == 0) {
                *slot = id;
            }
        }
        self.spans.conflicts |= other.spans.conflicts;
        if self.is_empty() {
            core::mem::swap(&mut self.spans, &mut other.spans);
        } else if !other.is_empty() {
            other.spans.iter().for_each(|&span| self.spans.add(span));
            // One of the two that the gate counts goes; what it stood for is in this debt.
            other.spans = Spans::new();
            self.map.gate().forget_debt();
        }
        Ok(())
    }

    /// Invalidates what is owed, on every CPU that the map's scope has, and returns when it is done. Tables that were unlinked go back
    /// to the pool, unless a walk may still see them: then later.
    pub fn flush(self) {
        if !self.is_empty() {
            invalidate(self.map, &self.spans, DEBT);
            self.paid();
        }
    }

    /// What is owed.
    pub(super) fn spans(&self) -> &Spans {
        &self.spans
    }

    /// Somebody has made an invalidation of all of it.
    pub(super) fn paid(mut self) {
        if !self.is_empty() {
            self.map.paid(&self.cleared);
            self.map.gate().forget_debt();
            self.spans = Spans::new();
            self.map.give_back(&self.cleared);
        }
    }
}

impl<R: Regime, M: Mmu, S: Shape> Drop for Debt<'_, R, M, S> {
    fn drop(&mut self) {
        if !self.is_empty() {
            self.map.forgotten();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::geometry::Granule4K;

    #[test]
    fn range_operands_cover_each_page_once() {
        for pages in (2..5000).chain([1 << 18, (1 << 21) + 12_345, (1 << 27) - 1]) {
            let mut parts = Ranges { page: 7, left: pages, scale: 3 };
            let mut next = 7;
            for (page, scale, num) in parts.by_ref() {
                assert_eq!(page, next);
                assert!(scale < 4 && num < 32);
                next += (num + 1) << (5 * scale + 1);
            }
            assert_eq!(next + parts.left, 7 + pages);
            assert!(parts.left < 2);
        }
    }

    #[test]
    fn level_hints_go_with_aligned_ranges_only() {
        // A range with a level hint must begin at a multiple of an entry of that level (C5.5, RVAE1 and the like).
        for level in 1..=3u8 {
            let size = 1u64 << level_shift::<Granule4K>(level);
            for entries in 1..100 {
                let span = Span {
                    start: 5 * size,
                    end: (5 + entries) * size,
                    level,
                    same_size: true,
                    last_level: true,
                };
                let aligned = |(page, ..): (u64, u64, u64)| (page << PAGE_SHIFT).is_multiple_of(size);
                assert!(ranges(&span).all(aligned), "{entries} of level {level}");
            }
        }
    }

    #[test]
    fn spans_join_and_never_lose_an_address() {
        let span =
            |start, end, level, same_size| Span { start, end, level, same_size, last_level: same_size };
        let mut spans = Spans::new();
        spans.add(span(0x1000, 0x2000, 3, true));
        spans.add(span(0x2000, 0x5000, 3, true));
        assert_eq!(spans.len, 1);
        for i in 1..10 {
            spans.add(span(i << 30, (i << 30) + 0x20_0000, 2, i != 7));
        }
        let last = spans.list[SPANS - 1];
        assert_eq!(spans.len, SPANS);
        assert!(
            last.end == (9 << 30) + 0x20_0000 && last.start == 3 << 30 && !last.same_size && !last.last_level
        );
    }
}
