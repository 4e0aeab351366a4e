//! Joining what was split: leaves to runs, tables of leaves to blocks, as far as outputs run on and attributes agree; and tables that say
//! one thing, a software state or nothing, to one word that says it.
//!
//! Invariants:
//! - What is joined means what it meant. With hardware updates the access and dirty flags of what joins may be set where they were not,
//!   and are clear nowhere where they were set (D8.17.1, I_GXGZY: reporting too much is allowed).
//! - It is joined by one change of its topmost word, or of a run's, as the rule says; words below are not stored to. Tables among a run's
//!   words that change in place become leaves before (R_KHRBC).
//! - A table that falls out is used no more by hardware (an invalidation that reaches walk caches is complete) before its first
//!   entry is made the link of a chain, and by no walk before it is given back. To a walk the link reads as a leaf that
//!   is changing: it begins again at the root, where the table is no more.

use core::cmp::Ordering;

use super::addr::{Address, GRANULE, Pa, Range};
use super::descriptor::{
    CONTIGUOUS, Change, Entry, Regime, State, TYPE, VALID, begins_run, chained, folded, is_leaf, is_table,
    joined_above, marked, pa, step,
};
use super::edit::{Needs, Node};
use super::geometry::{LAST_LEVEL, MAX_RUN, Shape, level_shift, level_size};
use super::map::{Leaves, Map, MapError, Quiet, Writer, is_quiet};
use super::mmu::{Mmu, Quiesce};
use super::rule::{Capabilities, Difference, Strategy};
use super::tlb::{self, Span, Spans};
use super::update::{DEBT, EXCLUSIVE, Group, Parent, Words, answer, difference, replace};

/// Tables that fall out before one invalidation is made for all of them.
const TOGETHER: usize = 64;

/// What a table, or what hangs from a word, can be said in.
#[derive(Clone, Copy)]
struct Joined {
    /// The word in its place, without the Contiguous bit.
    word: u64,
    /// No leaf in it is of a higher level.
    finest: u8,
}

/// Joins whatever `start .. end` touches. The gate is the caller's alone.
struct Collapse<'m, R: Regime, M: Mmu, S: Shape> {
    map: &'m Map<R, M, S>,
    start: u64,
    end: u64,
    leaves: Leaves,
    /// Nothing is stored; what has to be quiet is found out.
    dry: bool,
    /// Addresses that have to be quiet, or are.
    quiet: Needs,
    spans: Spans,
    /// As what the caller counts in the gate.
    own: u64,
    /// Tables that fell out and are still to be invalidated, with their levels in the low bits.
    left: [u64; TOGETHER],
    left_len: usize,
    /// The first of those that were.
    chain: Option<Pa>,
}

impl<'m, R: Regime, M: Mmu, S: Shape> Collapse<'m, R, M, S> {
    fn new(map: &'m Map<R, M, S>, (start, end): (u64, u64), leaves: Leaves, quiet: Needs) -> Self {
        Self {
            map,
            start,
            end,
            leaves,
            dry: false,
            quiet,
            spans: Spans::new(),
            own: EXCLUSIVE,
            left: [0; TOGETHER],
            left_len: 0,
            chain: None,
        }
    }

    fn words(&self) -> Words<'m, M> {
        Words::new(self.map.mmu())
    }

    fn touches(&self, at: u64, size: u64) -> bool {
        self.start < at + size && at < self.end
    }

    /// What a word that is no table is compared by.
    fn alike(&self, raw: u64, level: u8) -> u64 {
        match is_leaf(raw, level) {
            true if raw & VALID != 0 && self.map.hardware_updates() => marked::<R>(raw) & !CONTIGUOUS,
            true => raw & !CONTIGUOUS,
            false => raw,
        }
    }

    /// The word at `index`, or the one that can take the place of the table that it is.
    fn look(&mut self, node: &Node, index: usize) -> Joined {
        let (level, raw) = (node.level, self.words().load(node.table, index));
        if !is_table(raw, level) {
            return Joined { word: self.alike(raw, level), finest: level };
        }
        if self.touches(node.address::<S>(index), level_size::<S>(level))
            && let Some(Joined { word, finest }) = self.visit(&node.below::<S>(index, raw))
            && let Some(word) = self.fold(word, level, raw)
        {
            return Joined { word, finest };
        }
        Joined { word: raw, finest: LAST_LEVEL }
    }

    /// What takes a `table`'s place, with the table's own attributes in it if it is a leaf.
    fn fold(&self, word: u64, level: u8, table: u64) -> Option<u64> {
        if is_leaf(word, level) { folded::<R>(word, table) } else { Some(word) }
    }

    /// How many words from `index` on are what `first` is, each `step` more than the one before, without a look into tables.
    #[inline]
    fn runs_on(&self, node: &Node, mut index: usize, entries: usize, first: u64, step: u64) -> usize {
        let words = self.words();
        let mask = if step == 0 { !0 } else { !CONTIGUOUS };
        while index < entries {
            let mut same = words.load(node.table, index);
            if same & mask != first.wrapping_add(index as u64 * step) {
                break;
            }
            // Those after it most often have its Contiguous bit. The index is looked at once in a few words.
            let runs_on = |from: usize, same: u64| {
                (0..8).all(|i| words.load(node.table, from + i) == same.wrapping_add(i as u64 * step))
            };
            while index + 8 <= entries && runs_on(index, same) {
                same = same.wrapping_add(8 * step);
                index += 8;
            }
            while index < entries && words.load(node.table, index) == same {
                same = same.wrapping_add(step);
                index += 1;
            }
        }
        index
    }

    /// What the whole of a table can be said in one level higher. If it cannot, what the range touches of it is joined in its place.
    #[inline(never)]
    fn visit(&mut self, node: &Node) -> Option<Joined> {
        let (level, entries) = (node.level, self.map.geometry().entries(node.level));
        let first = self.look(node, 0);
        let mut finest = first.finest;
        // The first word that does not run on from the first.
        let (mut odd, mut odd_index) = (first, 0);
        let each = step::<S>(first.word, level);
        if !is_table(first.word, level) {
            odd_index = 1;
            loop {
                odd_index = self.runs_on(node, odd_index, entries, first.word, each);
                if odd_index == entries {
                    break;
                }
                odd = self.look(node, odd_index);
                if odd.word != first.word.wrapping_add(odd_index as u64 * each) {
                    break;
                }
                finest = finest.max(odd.finest);
                odd_index += 1;
            }
        }
        if odd_index == entries
            && !matches!(node.parent, Parent::Root)
            && let Some(word) = joined_above::<S>(first.word, level)
            && (self.leaves.blocks || !is_leaf(word, level - 1))
        {
            return Some(Joined { word, finest });
        }
        let shift = level_shift::<S>(level);
        let index = |address: u64| ((address.max(node.base) - node.base) >> shift) as usize;
        let (start, end) = (index(self.start), (index(self.end - 1) + 1).min(entries));
        let say = |this: &mut Self, index: usize| match index.cmp(&odd_index) {
            Ordering::Less => Joined { word: first.word.wrapping_add(index as u64 * each), finest },
            Ordering::Equal => odd,
            Ordering::Greater => this.look(node, index),
        };
        for from in (start & !(S::RUN - 1)..end).step_by(S::RUN) {
            let lead = say(self, from);
            // What an adopted root has beyond the map's reach is in no run.
            let is_within = node.address::<S>(from + S::RUN) <= 1 << self.map.geometry().input_bits();
            if self.leaves.runs && is_within && begins_run::<S>(lead.word, level) {
                let (mut run, mut finest) = ([lead.word; MAX_RUN], lead.finest);
                for (word, index) in run[1..S::RUN].iter_mut().zip(from + 1..) {
                    let joined = say(self, index);
                    (*word, finest) = (joined.word, finest.max(joined.finest));
                }
                self.join_run(node, from, &run[..S::RUN], finest);
            } else {
                // No run: what the range does not touch need not be looked at.
                for index in from.max(start)..end.min(from + S::RUN) {
                    let joined = if index == from { lead } else { say(self, index) };
                    self.join(node, index, joined);
                }
            }
        }
        None
    }

    /// Puts in its place what a word can be said in, if that is a table now.
    fn join(&mut self, node: &Node, index: usize, joined: Joined) {
        let old = self.words().load(node.table, index);
        if is_table(old, node.level) && !is_table(joined.word, node.level) {
            self.change(node, index, &[old], &[joined.word], joined.finest);
        }
    }

    /// Makes a run's worth of words, from `from` on, that run, or joins each for itself. The first can begin one, and no leaf in them is of
    /// a higher level than `finest`.
    #[inline(never)]
    fn join_run(&mut self, node: &Node, from: usize, joined: &[u64], finest: u8) {
        let (level, first) = (node.level, joined[0]);
        let each = step::<S>(first, level);
        if !joined.iter().zip(0..).all(|(&word, i)| word == first.wrapping_add(i * each)) {
            for (&word, index) in joined.iter().zip(from..) {
                self.join(node, index, Joined { word, finest });
            }
            return;
        }
        let (mut old, mut new) = ([0; MAX_RUN], [0; MAX_RUN]);
        let mut is_joined = true;
        for (i, &word) in joined.iter().enumerate() {
            old[i] = self.words().load(node.table, from + i);
            new[i] = word | CONTIGUOUS;
            is_joined &= old[i] & CONTIGUOUS != 0 && !is_table(old[i], level);
        }
        if !is_joined {
            self.change(node, from, &old[..joined.len()], &new[..joined.len()], finest);
        }
    }

    /// Changes words as the rule says; the tables among them fall out.
    #[inline(never)]
    fn change(&mut self, node: &Node, index: usize, old: &[u64], new: &[u64], finest: u8) {
        let (level, size) = (node.level, level_size::<S>(node.level));
        let address = node.address::<S>(index);
        let end = address + old.len() as u64 * size;
        let change = old.iter().zip(new).fold(Difference::default(), |change, (&old, &new)| {
            let one = difference::<R>(old, new, level, false);
            Difference {
                // A table translates where what takes its place does.
                valid_before: change.valid_before | (new & VALID != 0),
                valid_after: change.valid_after | (new & VALID != 0),
                size: change.size | is_table(old, level),
                contiguous: change.contiguous | one.contiguous,
                memory: false,
                permissions: change.permissions | one.permissions & !is_table(old, level),
            }
        });
        let strategy = answer(self.map, change);
        if strategy == Strategy::BreakQuiescently {
            if self.dry {
                self.quiet.quiet(address, end);
            } else if !self.quiet.quiet.is_some_and(|(from, to)| from <= address && end <= to) {
                // It could not be joined when what is to be quiet was asked for: another time.
                return;
            }
        }
        if self.dry {
            return;
        }
        if strategy == Strategy::StoreThenInvalidate && change.size && old.len() > 1 {
            // A run is made of leaves (R_KHRBC): tables become those first.
            let mut leaves = [0; MAX_RUN];
            for (i, leaf) in leaves[..old.len()].iter_mut().enumerate() {
                *leaf = old[i];
                if is_table(old[i], level) {
                    *leaf = new[i] & !CONTIGUOUS;
                    self.change(node, index + i, &[old[i]], &[*leaf], finest);
                }
            }
            return self.change(node, index, &leaves[..old.len()], new, finest);
        }
        let group = Group { table: node.table, level, index, address, old, new, finest };
        replace(self.map, &group, strategy, change.size || change.contiguous, self.own, &mut self.spans);
        for (&old, number) in old.iter().zip(0..) {
            if !is_table(old, level) {
                continue;
            }
            if strategy == Strategy::Store {
                // It owes what walks hold of it: any address does for a table of the last level.
                let start = address + number * size;
                let end = start + if level + 1 == LAST_LEVEL { level_size::<S>(LAST_LEVEL) } else { size };
                self.spans.add(Span { start, end, level: LAST_LEVEL, same_size: false, last_level: false });
            }
            if self.left_len == TOGETHER {
                self.invalidate();
            }
            self.left[self.left_len] = pa(old).bits() | u64::from(level + 1);
            self.left_len += 1;
        }
    }

    /// Pays what is owed; the tables that fell out are seen by walks of software alone then. Where nothing is owed what was joined was
    /// broken, or does not translate: nothing is to be published.
    fn invalidate(&mut self) {
        if !self.spans.is_empty() {
            tlb::invalidate(self.map, &self.spans, self.own);
            self.spans = Spans::new();
        }
        for number in 0..core::mem::take(&mut self.left_len) {
            let left = self.left[number];
            self.put_on_chain(pa(left), (left % GRANULE) as u8);
        }
    }

    /// Remembers a table and all below it, which only walks of software can see.
    fn put_on_chain(&mut self, table: Pa, level: u8) {
        let words = self.words();
        if level < LAST_LEVEL {
            for from in (0..S::ENTRIES).step_by(S::RUN) {
                // One look at several tells most of them: leaves above the last level.
                let of_any = (from..from + S::RUN).fold(0, |all, index| all | words.load(table, index));
                for index in from..from + if of_any & TYPE != 0 { S::RUN } else { 0 } {
                    let raw = words.load(table, index);
                    if is_table(raw, level) {
                        self.put_on_chain(pa(raw), level + 1);
                    }
                }
            }
        }
        // The last is its own next.
        words.store(table, 0, chained(self.chain.unwrap_or(table)));
        self.chain = Some(table);
    }
}

/// Calls `give` with each table of a chain, once the walks that may see them have ended. Nothing of the map is locked.
fn give_chain<R: Regime, M: Mmu, S: Shape>(map: &Map<R, M, S>, chain: Option<Pa>, give: impl Fn(Pa)) {
    let Some(mut table) = chain else { return };
    map.wait_for_walks();
    let words = Words::new(map.mmu());
    loop {
        let next = pa(words.load(table, 0));
        give(table);
        if next == table {
            return;
        }
        table = next;
    }
}

impl<'m, R: Regime, M: Mmu, S: Shape> Writer<'_, 'm, R, M, S> {
    /// Joins what `range` touches to the largest leaves that `leaves` allows: each aligned run of leaves, and each table, whose outputs
    /// run on and whose attributes agree, also where it reaches out of the range; leaves that do not translate alike. A table of one
    /// software state, or of nothing, becomes one word. With hardware updates, access and dirty flags need not agree: they are set.
    /// Over the whole of a map this leaves the fewest tables and entries that can say what it says.
    ///
    /// Nothing is owed afterwards. Tables that fall out go back to the pool: the call waits for walks that may see them, and until then
    /// others may find too few tables. The range is read in the map's gate, so that others' changes wait for the time that takes.
    /// What was mapped with [`Leaves::PAGES`] so that it need never be split is to be kept out of the range.
    ///
    /// # Errors
    /// [`MapError::Misaligned`], [`MapError::OutOfReach`], [`MapError::NotQuiet`].
    pub fn collapse(&mut self, range: Range<R::Input>, leaves: Leaves) -> Result<(), MapError> {
        self.collapse_owing(range, leaves, &Spans::new())
    }

    /// As [`Map::protect`], then [`Writer::collapse`] as far as it can be done, with one flush for both (two, if something stops
    /// translating). Nothing is owed afterwards.
    ///
    /// # Errors
    /// As [`Map::protect`].
    pub fn protect_and_collapse(
        &mut self,
        range: Range<R::Input>,
        change: Change<R>,
        leaves: Leaves,
    ) -> Result<(), MapError> {
        let debt = self.target().protect(range, change)?;
        match self.collapse_owing(range, leaves, debt.spans()) {
            Ok(()) => debt.paid(),
            // What was asked for is so already.
            Err(_) => debt.flush(),
        }
        Ok(())
    }

    /// Joins, and pays what is `owed` in the same flush; that counts as a debt in the gate.
    #[inline(never)]
    fn collapse_owing(
        &mut self,
        range: Range<R::Input>,
        leaves: Leaves,
        owed: &Spans,
    ) -> Result<(), MapError> {
        let map = self.target();
        let ends = map.checked(range)?;
        let runs = leaves.runs && map.capabilities().contains(Capabilities::CONTIGUOUS);
        let leaves = Leaves { runs, ..leaves };
        let mut held: Option<Quiet<M>> = None;
        let (gate, chain) = loop {
            // What a word of the root spans is all that can change; nothing waits there to be given back.
            let whole = level_size::<S>(0);
            let gate = map
                .exclude_settled(ends.0 & !(whole - 1), ends.1.checked_next_multiple_of(whole).unwrap_or(!0));
            if ends.0 == ends.1 {
                break (gate, None);
            }
            let quiet = Needs { tables: 0, quiet: held.as_ref().map(|(quiet, _)| *quiet) };
            let mut collapse = Collapse::new(map, ends, leaves, Needs::default());
            if asks_for_quiet(map) {
                collapse.dry = true;
                collapse.visit(&Node::root(map));
                collapse.dry = false;
                let needs = core::mem::replace(&mut collapse.quiet, quiet);
                if !is_quiet(&needs, &held) {
                    drop(gate);
                    drop(held.take());
                    let (start, end) = needs.quiet.unwrap_or((0, 0));
                    let begun = map.mmu().quiesce().begin(start, end - start);
                    held = Some(((start, end), begun.ok_or(MapError::NotQuiet(start))?));
                    continue;
                }
            }
            collapse.spans = *owed;
            collapse.own += if owed.is_empty() { 0 } else { DEBT };
            collapse.visit(&Node::root(map));
            collapse.invalidate();
            break (gate, collapse.chain);
        };
        drop(gate);
        drop(held);
        give_chain(map, chain, |table| Words::new(map.mmu()).give(table));
        Ok(())
    }

    /// Puts one word in the place of the table that the entry of `level` (0 to 2) at `address` points to, and gives the caller that
    /// table, which nobody uses any more. Its words have to be alike as for [`Writer::collapse`], none of them a table; nothing else
    /// changes, and nothing is owed. The other way round than [`Map::split_entry`].
    ///
    /// # Errors
    /// [`MapError::NoTable`] if there is none at that level, [`MapError::Differs`] if its words are not alike,
    /// [`MapError::OutOfReach`], [`MapError::NotQuiet`].
    pub fn collapse_entry(&mut self, address: R::Input, level: u8) -> Result<Pa, MapError> {
        self.take_table(address, level, None)
    }

    /// As [`Writer::collapse_entry`], but the table goes back to the pool. Less is looked at than by [`Writer::collapse`] of that range.
    ///
    /// # Errors
    /// As [`Writer::collapse_entry`].
    pub fn join_entry(&mut self, address: R::Input, level: u8) -> Result<(), MapError> {
        let table = self.take_table(address, level, None)?;
        Words::new(self.target().mmu()).give(table);
        Ok(())
    }

    /// As [`Writer::collapse_entry`], but `state` takes the place of a table in which nothing translates, and none of whose words is a table,
    /// whatever it says.
    ///
    /// # Errors
    /// As [`Writer::collapse_entry`]; [`MapError::Differs`] if a word translates or is a table.
    pub fn replace_table(&mut self, address: R::Input, level: u8, state: State) -> Result<Pa, MapError> {
        self.take_table(address, level, Some(state))
    }

    fn take_table(&mut self, address: R::Input, level: u8, state: Option<State>) -> Result<Pa, MapError> {
        let map = self.target();
        let size = level_size::<S>(level.min(LAST_LEVEL));
        let start = address.get() & !(size - 1);
        let _ = map.checked(Range::new(start, size).map_err(|_| map.too_far(start))?)?;
        let mut held: Option<Quiet<M>> = None;
        let (gate, chain) = loop {
            let gate = map.exclude_settled(start, start + size);
            let (node, index) = find(map, address.get(), level)?;
            let quiet = Needs { tables: 0, quiet: held.as_ref().map(|(quiet, _)| *quiet) };
            let mut collapse = Collapse::new(map, (start, start + size), Leaves::LARGEST, quiet);
            let raw = collapse.words().load(node.table, index);
            let word = match state {
                Some(state) => collapse.none(&node.below::<S>(index, raw), state)?,
                None => {
                    let word = collapse.only(&node.below::<S>(index, raw))?;
                    collapse.fold(word, level, raw).ok_or(MapError::Differs(start))?
                }
            };
            if asks_for_quiet(map) && held.is_none() && word & VALID != 0 {
                drop(gate);
                let begun = map.mmu().quiesce().begin(start, size).ok_or(MapError::NotQuiet(start))?;
                held = Some(((start, start + size), begun));
                continue;
            }
            collapse.change(&node, index, &[raw], &[word], level + 1);
            collapse.invalidate();
            break (gate, collapse.chain);
        };
        drop(gate);
        drop(held);
        give_chain(map, chain, |_| {});
        // It is the chain's only one.
        chain.ok_or(MapError::NotQuiet(start))
    }
}

impl<R: Regime, M: Mmu, S: Shape> Collapse<'_, R, M, S> {
    /// The word for `state`, if nothing in a table translates or is a table.
    fn none(&self, node: &Node, state: State) -> Result<u64, MapError> {
        let words = self.words();
        let is_valid = |index: usize| words.glance(node.table, index) & VALID != 0;
        for from in (0..S::ENTRIES).step_by(S::RUN) {
            // One look at several tells most of them.
            let of_any = (from..from + S::RUN).fold(0, |all, index| all | words.glance(node.table, index));
            if of_any & VALID != 0 {
                let index = (from..from + S::RUN).find(|&index| is_valid(index)).unwrap_or(from);
                return Err(MapError::Differs(node.address::<S>(index)));
            }
        }
        Ok(Entry::<R>::State(state).encode(node.level - 1))
    }

    /// What a table without tables can be said in.
    fn only(&self, node: &Node) -> Result<u64, MapError> {
        let (level, words) = (node.level, self.words());
        let first = self.alike(words.load(node.table, 0), level);
        let each = step::<S>(first, level);
        let differs =
            |index: usize| MapError::Differs(node.base + ((index as u64) << level_shift::<S>(level)));
        let joined = joined_above::<S>(first, level).ok_or(differs(0))?;
        let mut index = 1;
        loop {
            index = self.runs_on(node, index, S::ENTRIES, first, each);
            if index == S::ENTRIES {
                return Ok(joined);
            }
            if self.alike(words.load(node.table, index), level) != first.wrapping_add(index as u64 * each) {
                return Err(differs(index));
            }
            index += 1;
        }
    }
}

/// The table, and the index in it, of the entry of `level` for an address, if that points to a table.
fn find<R: Regime, M: Mmu, S: Shape>(
    map: &Map<R, M, S>,
    address: u64,
    level: u8,
) -> Result<(Node, usize), MapError> {
    let (words, none) = (Words::new(map.mmu()), MapError::NoTable { address, level });
    let mut node = Node::root(map);
    loop {
        let index = ((address - node.base) >> level_shift::<S>(node.level)) as usize;
        let raw = words.load(node.table, index);
        if !is_table(raw, node.level) || node.level > level {
            return Err(none);
        }
        if node.level == level {
            return Ok((node, index));
        }
        node = node.below::<S>(index, raw);
    }
}

/// Whether a change of size or of the Contiguous bit may take that others stand still.
fn asks_for_quiet<R: Regime, M: Mmu, S: Shape>(map: &Map<R, M, S>) -> bool {
    let change = Difference {
        valid_before: true,
        valid_after: true,
        size: true,
        contiguous: true,
        ..Difference::default()
    };
    answer(map, change) == Strategy::BreakQuiescently
}
