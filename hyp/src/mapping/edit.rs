//! One walk that changes what lies in a range: permissions, sizes, or whether it translates at all.
//!
//! Invariant: whatever lies wholly inside the range changes where it is; at most the two leaves that the range's ends cut become
//! tables, and at most the two runs that they cut lose their Contiguous bits. [`Edit::prepare`] finds out, without a
//! store, what that takes; [`Edit::commit`] then cannot fail: between the two others may change what leaves say, for which it is
//! prepared, or split what it would have split, so that it needs less; nothing becomes a leaf, stops being one or grows together
//! but in the gate's exclusive mode.

use super::addr::Pa;
use super::descriptor::{
    CONTIGUOUS, Change, Entry, Regime, State, VALID, first_below, is_leaf, is_table, is_unlinked, marked, pa,
};
use super::geometry::{LAST_LEVEL, MAX_RUN, Shape, level_shift, level_size};
use super::map::{Map, MapError};
use super::mmu::{Mmu, Reservation};
use super::rule::{Capabilities, Difference, Strategy};
use super::tlb::{Span, Spans};
use super::update::{
    EXCLUSIVE, Group, Parent, SHARED, TableLock, Words, answer, difference, exchange, replace,
};

/// What becomes of a word in the range.
pub(super) trait Operation<R: Regime>: Copy {
    /// Tables that lie wholly inside are unlinked.
    const UNLINKS: bool = false;
    /// What lies wholly inside becomes pages.
    const TO_PAGES: bool = false;
    /// Leaves that an end of the range cuts are split even if nothing else changes.
    const CUTS: bool = false;
    /// And so is what translates nothing.
    const CUTS_ALL: bool = false;
    /// The word after, of one that is no table.
    #[inline(always)]
    fn word(self, raw: u64, _level: u8) -> u64 {
        raw
    }
    /// Whether it changes what memory leaves are.
    fn changes_memory(self) -> bool {
        false
    }
    /// Bytes of the largest leaf or run that it can change.
    fn largest(self) -> u64 {
        u64::MAX
    }
}

impl<R: Regime> Operation<R> for Change<R> {
    #[inline(always)]
    fn word(self, raw: u64, level: u8) -> u64 {
        let (clear, set) = self.masks(level);
        if is_leaf(raw, level) { raw & !clear | set } else { raw }
    }
    fn changes_memory(self) -> bool {
        Change::changes_memory(self)
    }
    fn largest(self) -> u64 {
        Change::largest(self)
    }
}

/// Nothing is left but what software says.
#[derive(Clone, Copy)]
pub(super) struct Clear(pub(super) Option<State>);

impl<R: Regime> Operation<R> for Clear {
    const UNLINKS: bool = true;
    #[inline(always)]
    fn word(self, raw: u64, level: u8) -> u64 {
        match self.0 {
            // An unlinked table is as good as nothing, and is still to be given back; a state takes its place then.
            _ if is_unlinked(raw) => raw,
            None => 0,
            Some(state) => Entry::<R>::State(state).encode(level),
        }
    }
}

/// Leaves change so, and what is neither leaf nor table becomes this state.
#[derive(Clone, Copy)]
pub(super) struct Restate<R>(pub(super) Change<R>, pub(super) State);

impl<R: Regime> Operation<R> for Restate<R> {
    #[inline(always)]
    fn word(self, raw: u64, level: u8) -> u64 {
        let (clear, set) = self.0.masks(level);
        match raw {
            _ if is_leaf(raw, level) => raw & !clear | set,
            _ if is_unlinked(raw) => raw,
            _ => Entry::<R>::State(self.1).encode(level),
        }
    }
    fn changes_memory(self) -> bool {
        self.0.changes_memory()
    }
}

/// Nothing is left, and the tables stay.
#[derive(Clone, Copy)]
pub(super) struct Empty;

impl<R: Regime> Operation<R> for Empty {
    #[inline(always)]
    fn word(self, raw: u64, _level: u8) -> u64 {
        if is_unlinked(raw) { raw } else { 0 }
    }
}

/// The range's ends cut no leaf and no run.
#[derive(Clone, Copy)]
pub(super) struct Cut;

impl<R: Regime> Operation<R> for Cut {
    const CUTS: bool = true;
}

/// As [`Cut`], also of what translates nothing.
#[derive(Clone, Copy)]
pub(super) struct CutAll;

impl<R: Regime> Operation<R> for CutAll {
    const CUTS: bool = true;
    const CUTS_ALL: bool = true;
}

/// Only pages, in no runs.
#[derive(Clone, Copy)]
pub(super) struct ToPages;

impl<R: Regime> Operation<R> for ToPages {
    const CUTS: bool = true;
    const TO_PAGES: bool = true;
}

/// What a change takes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Needs {
    pub(super) tables: usize,
    /// Addresses that must be quiet, if any.
    pub(super) quiet: Option<(u64, u64)>,
}

impl Needs {
    pub(super) fn quiet(&mut self, start: u64, end: u64) {
        let (a, b) = self.quiet.unwrap_or((start, end));
        self.quiet = Some((a.min(start), b.max(end)));
    }
}

/// A table of a walk: where it is, what its first entry translates.
#[derive(Clone, Copy)]
pub(super) struct Node {
    pub(super) table: Pa,
    pub(super) level: u8,
    pub(super) base: u64,
    pub(super) parent: Parent,
}

impl Node {
    /// The root, be it of several tables.
    #[inline]
    pub(super) fn root<R: Regime, M: Mmu, S: Shape>(map: &Map<R, M, S>) -> Self {
        Self { table: map.root(), level: map.geometry().start_level(), base: 0, parent: Parent::Root }
    }
    /// The table that the word at `index` points to.
    #[inline]
    pub(super) fn below<S: Shape>(&self, index: usize, raw: u64) -> Self {
        let parent = Parent::Word(self.table, index);
        Self { table: pa(raw), level: self.level + 1, base: self.address::<S>(index), parent }
    }
    /// What the word at `index` begins with.
    #[inline]
    pub(super) fn address<S: Shape>(&self, index: usize) -> u64 {
        self.base + ((index as u64) << level_shift::<S>(self.level))
    }
}

/// A change of `start .. end`, which is not empty, made of granules, and within reach.
pub(super) struct Edit<'m, R: Regime, M: Mmu, S: Shape, O> {
    pub(super) map: &'m Map<R, M, S>,
    pub(super) operation: O,
    pub(super) start: u64,
    pub(super) end: u64,
    /// Everything is the caller's: the gate is closed to others.
    pub(super) exclusive: bool,
    /// Addresses that are quiet.
    pub(super) quiet: Option<(u64, u64)>,
    pub(super) spans: Spans,
    pub(super) stored: bool,
    /// What the tables that were unlinked translated.
    pub(super) unlinked: Option<(u64, u64)>,
}

impl<'m, R: Regime, M: Mmu, S: Shape, O: Operation<R>> Edit<'m, R, M, S, O> {
    pub(super) fn new(
        map: &'m Map<R, M, S>,
        operation: O,
        (start, end): (u64, u64),
        exclusive: bool,
    ) -> Self {
        Self {
            map,
            operation,
            start,
            end,
            exclusive,
            quiet: None,
            spans: Spans::new(),
            stored: false,
            unlinked: None,
        }
    }

    fn words(&self) -> Words<'m, M> {
        Words::new(self.map.mmu())
    }

    /// Whether the word is one of the pages that everything is to become: nobody makes it anything else beside others.
    fn is_done(raw: u64, level: u8) -> bool {
        O::TO_PAGES && level == LAST_LEVEL && is_leaf(raw, level) && raw & CONTIGUOUS == 0
    }

    /// Whether the word of `level` has to become a table if the range cuts it.
    fn splits(&self, raw: u64, level: u8) -> bool {
        // An unlinked table is somebody's to give back once, so its word is never said twice.
        let cut = O::CUTS_ALL && !is_unlinked(raw) || O::CUTS && is_leaf(raw, level);
        cut || self.operation.word(raw, level) != raw
    }

    /// As [`Edit::splits`]; but beside others, who may change what a leaf says and whether it translates, any leaf may have to.
    fn may_split(&self, raw: u64, level: u8) -> bool {
        if self.exclusive { self.splits(raw, level) } else { is_leaf(raw, level) }
    }

    /// What the change takes: exactly, if everything is the caller's; beside others at most. With `whole` it may cut nothing.
    pub(super) fn prepare(&self, whole: bool) -> Result<Needs, MapError> {
        let mut needs = Needs::default();
        self.prepare_table(Node::root(self.map), whole, &mut needs)?;
        Ok(needs)
    }

    fn prepare_table(&self, node: Node, whole: bool, needs: &mut Needs) -> Result<(), MapError> {
        let (level, shift) = (node.level, level_shift::<S>(node.level));
        let (start, end) = (self.start.max(node.base), self.end);
        let first = (start - node.base) >> shift;
        let last = ((end - 1 - node.base) >> shift).min(self.map.geometry().entries(level) as u64 - 1);
        // Between the two ends nothing is cut.
        let all = O::TO_PAGES || self.operation.changes_memory();
        let mut next = first;
        while next <= last {
            let index = next;
            next = if all || index == last { index + 1 } else { last };
            let at = node.base + (index << shift);
            let raw = self.words().settled(node.table, index as usize);
            if is_table(raw, level) {
                if !(O::UNLINKS && self.covers(at, level)) {
                    self.prepare_table(node.below::<S>(index as usize, raw), whole, needs)?;
                }
                continue;
            }
            if Self::is_done(raw, level) {
                continue;
            }
            let cuts = !self.covers(at, level) && self.may_split(raw, level);
            let size = cuts || O::TO_PAGES && level < LAST_LEVEL && is_leaf(raw, level);
            let in_run = is_leaf(raw, level) && raw & CONTIGUOUS != 0;
            let (run, run_size) = self.run(node, index as usize);
            let opens = in_run
                && (O::TO_PAGES || !(self.start <= run && run + run_size <= self.end))
                && self.group_may_split(node, index as usize);
            let alike = if in_run { run_size } else { level_size::<S>(level) };
            if alike > self.operation.largest() && is_leaf(raw, level) {
                return Err(MapError::TooLarge { address: at, level });
            }
            if whole && (cuts || opens) {
                return Err(MapError::WouldSplit { address: at, level });
            }
            if size {
                needs.tables += self.tables_below(level, at);
            }
            let stays = cuts || opens || self.operation.word(raw, level) & VALID != 0;
            let change = Difference {
                valid_before: !self.exclusive
                    || raw & VALID != 0
                    || size && self.map.is_others_owed(EXCLUSIVE)
                    || in_run && self.run_is_valid(node, index as usize),
                valid_after: !self.exclusive || stays,
                size,
                contiguous: opens,
                memory: self.operation.changes_memory() && self.may_split(raw, level),
                ..Difference::default()
            };
            if answer(self.map, change) == Strategy::BreakQuiescently {
                match in_run {
                    true => needs.quiet(run, run + run_size),
                    false => needs.quiet(at, at + level_size::<S>(level)),
                }
            }
        }
        Ok(())
    }

    /// Whether any leaf of a run has to change.
    fn group_may_split(&self, node: Node, index: usize) -> bool {
        let first = index & !(S::RUN - 1);
        let touched = |i: &usize| {
            let at = node.base + ((*i as u64) << level_shift::<S>(node.level));
            self.start < at + level_size::<S>(node.level) && at < self.end
        };
        let words = self.words();
        (first..first + S::RUN).filter(touched).any(|i| self.may_split(words.load(node.table, i), node.level))
    }

    /// Whether any leaf of a run translates.
    fn run_is_valid(&self, node: Node, index: usize) -> bool {
        let first = index & !(S::RUN - 1);
        (first..first + S::RUN).any(|i| self.words().load(node.table, i) & VALID != 0)
    }

    /// Tables that take the place of a leaf of `level` at `at`.
    fn tables_below(&self, level: u8, at: u64) -> usize {
        let below = level + 1;
        let shift = level_shift::<S>(below);
        let (start, end) = self.part(at, level);
        let (mut tables, span) = (1, level_size::<S>(below));
        if below == LAST_LEVEL {
            return tables;
        }
        let (first, last) = ((start - at) >> shift, (end - 1 - at) >> shift);
        for index in [first, last] {
            let entry = at + (index << shift);
            if !self.covers(entry, below) {
                tables += self.tables_below(below, entry);
            }
            if first == last {
                break;
            }
        }
        if O::TO_PAGES {
            let whole = (end & !(span - 1)).saturating_sub(start.next_multiple_of(span)) >> shift;
            tables += whole as usize * self.tables_to_pages(below);
        }
        tables
    }

    /// Tables that a whole leaf of `level` becomes as pages.
    fn tables_to_pages(&self, level: u8) -> usize {
        (level..LAST_LEVEL).fold(0, |tables, _| 1 + (tables * S::ENTRIES))
    }

    /// Whether the range has all of the entry of `level` at `at`.
    fn covers(&self, at: u64, level: u8) -> bool {
        self.start <= at && at + level_size::<S>(level) <= self.end
    }

    /// The part of the range in the entry of `level` at `at`.
    fn part(&self, at: u64, level: u8) -> (u64, u64) {
        (self.start.max(at), self.end.min(at + level_size::<S>(level)))
    }

    /// Address and size of the run that the entry is of.
    fn run(&self, node: Node, index: usize) -> (u64, u64) {
        let shift = level_shift::<S>(node.level);
        (node.base + ((index as u64 & !(S::RUN as u64 - 1)) << shift), 1 << (shift + S::RUN_BITS))
    }

    /// Makes the change with the tables that [`Edit::prepare`] has counted.
    pub(super) fn commit(&mut self, tables: &mut Reservation<'_, M::Pool>) {
        self.commit_table(Node::root(self.map), tables);
    }

    fn commit_table(&mut self, node: Node, tables: &mut Reservation<'_, M::Pool>) {
        let (words, level, shift) = (self.words(), node.level, level_shift::<S>(node.level));
        let mut lock = TableLock::new(self.map, node.parent, self.exclusive);
        let start = self.start.max(node.base);
        let limit = ((self.end - 1 - node.base) >> shift).min(self.map.geometry().entries(level) as u64 - 1)
            as usize
            + 1;
        let run_shift = shift + S::RUN_BITS;
        // Entries in runs that the range has whole.
        let first_run = (start - node.base).div_ceil(1 << run_shift) as usize * S::RUN;
        let last_run = (((self.end - node.base) >> run_shift) as usize * S::RUN).min(limit);
        let slow = O::TO_PAGES || self.operation.changes_memory();
        let mut index = ((start - node.base) >> shift) as usize;
        while index < limit {
            let at = node.base + ((index as u64) << shift);
            let raw = words.load(node.table, index);
            if is_table(raw, level) {
                self.commit_below(node, index, raw, at, tables);
                index += 1;
                continue;
            }
            if Self::is_done(raw, level) {
                index += 1;
                continue;
            }
            // The words from here on change, or were about to: they are ours, and read again, with the table's lock.
            if let Some(lock) = &mut lock
                && lock.acquire()
            {
                continue;
            }
            let run_is_whole = first_run <= index && index < last_run;
            let in_run = is_leaf(raw, level) && raw & CONTIGUOUS != 0;
            if slow || !self.covers(at, level) || in_run && !run_is_whole {
                index = self.group(node, index, raw, tables);
            } else {
                index = self.pass(node, index, if run_is_whole { last_run } else { index + 1 });
            }
        }
    }

    /// The table at `index`, which the range touches.
    fn commit_below(
        &mut self,
        node: Node,
        index: usize,
        raw: u64,
        at: u64,
        tables: &mut Reservation<'_, M::Pool>,
    ) {
        let words = self.words();
        let below = pa(raw);
        let covered = self.covers(at, node.level);
        let whole = O::UNLINKS && covered;
        if covered && O::CUTS && !O::TO_PAGES {
            return;
        }
        if !whole {
            self.commit_table(node.below::<S>(index, raw), tables);
        }
        // A state is yet to take the place of a table, so where one is made nothing is vacant.
        let vacates = O::UNLINKS && self.operation.word(0, node.level) == 0;
        if whole || vacates && self.is_vacant(below) {
            let all = at + level_size::<S>(node.level);
            // An empty table owes what walks hold of it, for which any of its addresses does.
            let end = if whole { all } else { at + level_size::<S>(LAST_LEVEL) };
            let (from, to) = self.unlinked.unwrap_or((at, all));
            self.unlinked = Some((from.min(at), to.max(all)));
            words.store(node.table, index, Entry::<R>::Unlinked(below).encode(node.level));
            self.spans.add(Span { start: at, end, level: LAST_LEVEL, same_size: false, last_level: false });
            self.stored = true;
        }
    }

    /// Whether a table says nothing.
    fn is_vacant(&self, table: Pa) -> bool {
        let words = self.words();
        let vacant = |index| {
            let raw = words.load(table, index);
            raw == 0 || is_unlinked(raw)
        };
        // From both ends: what is emptied in order is found full at once.
        (0..S::ENTRIES / 2).all(|i| vacant(i) && vacant(S::ENTRIES - 1 - i))
    }

    /// Changes in place what lies from `index` on up to `to`, all of it wholly inside, until a table comes.
    #[inline]
    fn pass(&mut self, node: Node, from: usize, to: usize) -> usize {
        if O::CUTS {
            return to;
        }
        let (words, level, operation) = (self.words(), node.level, self.operation);
        let (mut index, mut valid, mut changed) = (from, 0, 0);
        if self.map.hardware_updates() {
            while index < to {
                let old = words.load(node.table, index);
                if is_table(old, level) {
                    break;
                }
                let new = operation.word(old, level);
                if new != old {
                    exchange(&words, node.table, index, old, |raw| operation.word(raw, level));
                    (valid, changed) = (valid | old & VALID, changed | old ^ new);
                }
                index += 1;
            }
        } else if level == LAST_LEVEL {
            while index < to {
                let old = words.load(node.table, index);
                let new = operation.word(old, LAST_LEVEL);
                words.store(node.table, index, new);
                (valid, changed) = (valid | old, changed | old ^ new);
                index += 1;
            }
        } else {
            while index < to {
                let old = words.load(node.table, index);
                if is_table(old, level) {
                    break;
                }
                let new = operation.word(old, level);
                words.store(node.table, index, new);
                (valid, changed) = (valid | old, changed | old ^ new);
                index += 1;
            }
        }
        if changed != 0 {
            self.stored = true;
            let permissions = changed & R::PERMISSIONS != 0;
            let after = changed & VALID == 0;
            let change = Difference {
                valid_before: valid & VALID != 0,
                valid_after: after,
                permissions,
                ..Difference::default()
            };
            if answer(self.map, change) == Strategy::StoreThenInvalidate {
                let shift = level_shift::<S>(level);
                let at = |index: usize| node.base + ((index as u64) << shift);
                self.spans.add(Span {
                    start: at(from),
                    end: at(index),
                    level,
                    same_size: true,
                    last_level: true,
                });
            }
        }
        index
    }

    /// Changes a leaf or a run that the range cuts, or that cannot change in place; returns the index after it.
    #[inline(never)]
    fn group(&mut self, node: Node, index: usize, raw: u64, tables: &mut Reservation<'_, M::Pool>) -> usize {
        let (words, level) = (self.words(), node.level);
        let in_run = is_leaf(raw, level) && raw & CONTIGUOUS != 0;
        let first = index & !(S::RUN - 1);
        // A run of somebody else's making may have a hole.
        let whole_run = in_run && (first..first + S::RUN).all(|i| is_leaf(words.load(node.table, i), level));
        let (from, count) = if whole_run { (first, S::RUN) } else { (index, 1) };
        let (mut old, mut new) = ([0; MAX_RUN], [0; MAX_RUN]);
        let at = |i: usize| node.base + (((from + i) as u64) << level_shift::<S>(level));
        let touched = |i: usize| self.start < at(i) + level_size::<S>(level) && at(i) < self.end;
        let run = self.run(node, index);
        let keeps_run = !O::TO_PAGES && self.start <= run.0 && run.0 + run.1 <= self.end;
        let mut effect = false;
        for (i, word) in old[..count].iter_mut().enumerate() {
            *word = words.load(node.table, from + i);
            effect |= touched(i) && self.splits(*word, level);
        }
        if !effect {
            return from + count;
        }
        // What each word becomes; a table is built later, once nothing is in the way.
        let own = if self.exclusive { EXCLUSIVE } else { SHARED };
        let owed = self.map.is_others_owed(own);
        let mut splits = [false; MAX_RUN];
        let mut change = Difference::default();
        for i in 0..count {
            let kept = if keeps_run || !is_leaf(old[i], level) { old[i] } else { old[i] & !CONTIGUOUS };
            new[i] = if !touched(i) {
                kept
            } else if self.covers(at(i), level)
                && !(O::TO_PAGES && level < LAST_LEVEL && is_leaf(old[i], level))
            {
                self.operation.word(kept, level)
            } else if self.splits(kept, level) {
                splits[i] = true;
                Entry::<R>::Table(node.table).encode(level)
            } else {
                kept
            };
            let one = difference::<R>(old[i], new[i], level, self.operation.changes_memory());
            // A walk cache's table beside a block that stopped translating, and is not invalidated yet, is a change of size all the same
            // (I_HYQMB).
            let translated = one.valid_before | one.size & owed;
            change = Difference {
                valid_before: change.valid_before | translated,
                valid_after: change.valid_after | one.valid_after,
                size: change.size | one.size & translated,
                contiguous: change.contiguous | one.contiguous & one.valid_before & one.valid_after,
                memory: change.memory | one.memory & one.valid_before & one.valid_after,
                permissions: change.permissions | one.permissions,
            };
        }
        // A leaf of which a part goes away and a part stays changes its size; one that goes away whole does not.
        let strategy = answer(self.map, change);
        let needed: usize = (0..count).filter(|&i| splits[i]).map(|i| self.tables_below(level, at(i))).sum();
        let is_quiet = self.quiet.is_some_and(|(s, e)| s <= at(0) && at(count - 1) < e);
        if needed > tables.left() || strategy == Strategy::BreakQuiescently && !is_quiet {
            // `prepare` has seen to it that this is not so.
            debug_assert!(false, "a change at {:#x} takes more than was prepared", at(0));
            return from + count;
        }
        for i in 0..count {
            let source =
                if self.map.hardware_updates() && old[i] & VALID != 0 { marked::<R>(old[i]) } else { old[i] };
            if splits[i] {
                let (start, end) = self.part(at(i), level);
                new[i] = self.child(source, level, at(i), (start, end), tables);
            } else if source != old[i] {
                let kept = if keeps_run { source } else { source & !CONTIGUOUS };
                new[i] = if touched(i) { self.operation.word(kept, level) } else { kept };
            }
        }
        let group = Group {
            table: node.table,
            level,
            index: from,
            address: at(0),
            old: &old[..count],
            new: &new[..count],
            finest: level,
        };
        replace(self.map, &group, strategy, change.size || change.contiguous, own, &mut self.spans);
        self.stored |= matches!(strategy, Strategy::Store | Strategy::StoreThenInvalidate);
        from + count
    }

    /// A table in the place of `raw` of `level` at `at`, with `start .. end` of it changed; not linked.
    fn child(
        &self,
        raw: u64,
        level: u8,
        at: u64,
        (start, end): (u64, u64),
        tables: &mut Reservation<'_, M::Pool>,
    ) -> u64 {
        let (words, table) = (self.words(), tables.take());
        let below = level + 1;
        let (shift, size) = (level_shift::<S>(below), level_size::<S>(below));
        let (word, step) = first_below::<S>(raw, level);
        let runs = step != 0 && self.map.capabilities().contains(Capabilities::CONTIGUOUS);
        let nth = |index: usize| word.wrapping_add(index as u64 * step);
        // Entries that the range touches: first, after the last; and those of them that it has whole.
        let (first, last) = (((start - at) >> shift) as usize, ((end - 1 - at) >> shift) as usize + 1);
        let (from, to) = ((start - at).div_ceil(size) as usize, ((end - at) >> shift) as usize);
        words.fill_leaves::<S>(table, (0, first), word, step, runs);
        if from < to {
            if O::TO_PAGES && below < LAST_LEVEL && step != 0 {
                for index in from..to {
                    let entry = at + ((index as u64) << shift);
                    let built = self.child(nth(index), below, entry, (entry, entry + size), tables);
                    words.fill(table, index, index + 1, built, 0);
                }
            } else {
                let changed = self.operation.word(nth(from), below);
                let (step, runs) =
                    if is_leaf(changed, below) { (step, runs && !O::TO_PAGES) } else { (0, false) };
                words.fill_leaves::<S>(table, (from, to), changed, step, runs);
            }
        }
        for index in [first, last - 1] {
            if (from..to).contains(&index) {
                continue;
            }
            let entry = at + ((index as u64) << shift);
            let part = (start.max(entry), end.min(entry + size));
            let built = self.child(nth(index), below, entry, part, tables);
            words.fill(table, index, index + 1, built, 0);
            if first == last - 1 {
                break;
            }
        }
        words.fill_leaves::<S>(table, (last, S::ENTRIES), nth(last), step, runs);
        Entry::<R>::Table(table).encode(level)
    }
}
