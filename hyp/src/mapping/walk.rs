//! Reading a map while others change it.
//!
//! Invariant: a CPU that walks has said so in its slot before it reads the root, and a table is not used for anything else while a
//! slot says that a walk began before it was unlinked.

use core::marker::PhantomData;
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst, fence};

use super::addr::{Address, Pa, Range};
use super::descriptor::{
    Attributes, CONTIGUOUS, Entry, KIND, Regime, STATE, VALID, is_changing, is_leaf, is_table, pa,
};
use super::geometry::{Granule4K, LAST_LEVEL, Shape, level_shift, level_size};
use super::map::{Map, Writer};
use super::mmu::Mmu;
use super::update::Words;

const FREE: u64 = 0;
const IDLE: u64 = 1;
/// A walk of epoch `n` is `n + FIRST`.
const FIRST: u64 = 2;

/// Where one CPU says that it walks. The embedder has one for each CPU, a cache line apart.
#[derive(Debug)]
#[repr(align(64))]
pub struct Slot(AtomicU64);

impl Slot {
    /// A slot that nobody uses.
    pub const fn new() -> Self {
        Self(AtomicU64::new(FREE))
    }
    pub(super) fn bits(&self) -> u64 {
        self.0.load(SeqCst)
    }
    /// Whether a walk of an epoch before `epoch` goes on.
    pub(super) fn is_before(&self, epoch: u64) -> bool {
        let value = self.0.load(SeqCst);
        value >= FIRST && value - FIRST < epoch
    }
}

impl Default for Slot {
    fn default() -> Self {
        Self::new()
    }
}

/// One CPU's use of a map. While it reads it cannot write: who reclaims tables waits for those who read.
pub struct Cpu<'m, R: Regime, M: Mmu, S: Shape = Granule4K> {
    map: &'m Map<R, M, S>,
    slot: &'m Slot,
}

impl<R: Regime, M: Mmu, S: Shape> Map<R, M, S> {
    /// The use of the map by the CPU with slot `number` of [`Mmu::slots`]; `None` if there is no such slot or it is in use.
    pub fn cpu(&self, number: usize) -> Option<Cpu<'_, R, M, S>> {
        let slot = self.mmu().slots().get(number)?;
        slot.0.compare_exchange(FREE, IDLE, SeqCst, SeqCst).ok()?;
        Some(Cpu { map: self, slot })
    }
}

impl<'m, R: Regime, M: Mmu, S: Shape> Cpu<'m, R, M, S> {
    /// Starts to read.
    pub fn read(&mut self) -> Reader<'_, R, M, S> {
        self.slot.0.store(FIRST + self.map.epoch(), SeqCst);
        // The store is seen before the loads of the walk are made: it is one half of Dekker's bargain with who reclaims.
        fence(SeqCst);
        let (geometry, root) = (self.map.geometry(), self.map.root());
        let limit = 1 << geometry.input_bits();
        Reader { map: self.map, slot: self.slot, root, start_level: geometry.start_level(), limit }
    }

    /// Becomes the one writer of the map; waits until there is no other.
    pub fn write(&mut self) -> Writer<'_, 'm, R, M, S> {
        // Whatever became of the last reader.
        self.slot.0.store(IDLE, SeqCst);
        Writer::new(self.map)
    }
}

impl<R: Regime, M: Mmu, S: Shape> Drop for Cpu<'_, R, M, S> {
    fn drop(&mut self) {
        self.slot.0.store(FREE, SeqCst);
    }
}

/// The entry is being broken and made, or its table fell out of the map.
struct Changing;

/// Why a walk stopped.
enum Stop<B> {
    /// Who was shown an entry had seen enough.
    Visitor(B),
    /// [`Changing`], at this address.
    Changing(u64),
}

/// What an address translates to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Translation<R: Regime> {
    /// The address it translates to.
    pub output: Pa,
    /// Level of the leaf, 1 to 3.
    pub level: u8,
    raw: u64,
    /// The bits of the tables above it.
    tables: u64,
    regime: PhantomData<R>,
}

impl<R: Regime> Translation<R> {
    /// What may be done there, with what the tables above the leaf take away.
    pub fn attributes(&self) -> Attributes<R> {
        Attributes::of_leaf(self.raw).below(self.tables)
    }
    /// Whether the leaf is one of a contiguous run.
    pub fn is_contiguous(&self) -> bool {
        self.raw & CONTIGUOUS != 0
    }
}

/// A part of a map that one entry describes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Visited<R: Regime> {
    /// First address.
    pub start: u64,
    /// Level of the entry, 0 to 3.
    pub level: u8,
    /// What it says; never a table.
    pub entry: Entry<R>,
}

/// A walk, or several: as long as it lives no table that it may see is reused.
pub struct Reader<'m, R: Regime, M: Mmu, S: Shape = Granule4K> {
    map: &'m Map<R, M, S>,
    slot: &'m Slot,
    // As in the map: a batch of translations has them at hand.
    root: Pa,
    start_level: u8,
    /// The address after the last that it reaches.
    limit: u64,
}

impl<R: Regime, M: Mmu, S: Shape> Drop for Reader<'_, R, M, S> {
    fn drop(&mut self) {
        self.slot.0.store(IDLE, SeqCst);
    }
}

impl<R: Regime, M: Mmu, S: Shape> Reader<'_, R, M, S> {
    /// What `input` translates to, if it does.
    #[inline(always)]
    pub fn translate(&self, input: R::Input) -> Option<Translation<R>> {
        let address = input.get();
        if address >= self.limit {
            return None;
        }
        loop {
            let start = (self.root, 0);
            // Each level is code of its own, in which sizes are constants. A root may be of several tables.
            let index = |level: u8| (address >> level_shift::<S>(level)) as usize;
            let found = match self.start_level {
                0 => self.translate_at::<0>(start, index(0), address),
                1 => self.translate_at::<1>(start, index(1), address),
                2 => self.translate_at::<2>(start, index(2), address),
                _ => self.translate_at::<3>(start, index(3), address),
            };
            match found {
                Ok(found) => return found,
                Err(Changing) => self.map.mmu().relax(),
            }
        }
    }

    /// Goes on at the entry of a table of `LEVEL`; with the table come the bits of those above.
    #[inline(always)]
    fn translate_at<const LEVEL: u8>(
        &self,
        (table, tables): (Pa, u64),
        index: usize,
        address: u64,
    ) -> Result<Option<Translation<R>>, Changing> {
        let raw = Words::new(self.map.mmu()).load(table, index);
        if is_table(raw, LEVEL) {
            let next = (pa(raw), tables | raw);
            let index = |level: u8| (address >> level_shift::<S>(level)) as usize & (S::ENTRIES - 1);
            return match LEVEL {
                0 => self.translate_at::<1>(next, index(1), address),
                1 => self.translate_at::<2>(next, index(2), address),
                _ => self.translate_at::<3>(next, index(3), address),
            };
        }
        if raw & VALID == 0 {
            return if is_changing(raw) { Err(Changing) } else { Ok(None) };
        }
        let offset = level_size::<S>(LEVEL) - 1;
        let output = Pa::from_field(pa(raw).bits() & !offset | address & offset);
        let found = Translation { output, raw, tables, level: LEVEL, regime: PhantomData };
        Ok(is_leaf(raw, LEVEL).then_some(found))
    }

    /// Calls `visit` for each entry of the map that is in `range` and is no table, in ascending order, until it breaks. Addresses above
    /// what the map reaches are not visited. Where leaves are joined meanwhile, a visited one may reach back over some that were.
    pub fn walk<B>(
        &self,
        range: Range<R::Input>,
        mut visit: impl FnMut(Visited<R>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        walk(self.map, range, &mut visit)
    }

    /// What [`Reader::walk`] visits, each with the bits of the tables above it. Between two entries it keeps where it is, so it takes three times
    /// as long as a walk.
    pub(super) fn entries(&self, range: Range<R::Input>) -> Entries<'_, R, M, S> {
        let path = [(self.root, 0); LAST_LEVEL as usize + 1];
        let end = range.end().min(self.limit);
        Entries { reader: self, path, level: self.start_level, at: range.start().get(), end }
    }

    /// What the map's addresses count from.
    pub(super) fn base(&self) -> u64 {
        self.map.base()
    }
    /// All that the map reaches.
    pub(super) fn reach(&self) -> u64 {
        self.limit
    }

    /// How many leaves and runs there are.
    pub fn census(&self) -> Census {
        let mut census = Census::default();
        let all = Range::new(0, 1 << self.map.geometry().input_bits());
        let Ok(all) = all else { return census };
        let _ = self.walk(all, |visited| {
            if let Entry::Leaf { contiguous, .. } = visited.entry {
                let level = usize::from(visited.level);
                census.leaves[level] += 1;
                let run = level_size::<S>(visited.level) << S::RUN_BITS;
                census.runs[level] += usize::from(contiguous && visited.start.is_multiple_of(run));
            }
            ControlFlow::<()>::Continue(())
        });
        census
    }

    /// The leaf that `input` lies in, or what is there in its place.
    pub fn find(&self, input: R::Input) -> Option<Visited<R>> {
        let one = Range::new(input.get(), 1).ok()?;
        self.walk(one, ControlFlow::Break).break_value()
    }

    /// Whether the entry for `input` is being broken and made at this moment. Who faulted there is to try again; and so is who
    /// faulted where the map now translates and permits the access, for it may have been so a moment ago.
    pub fn is_changing(&self, input: R::Input) -> bool {
        let (geometry, address) = (self.map.geometry(), input.get());
        if address >> geometry.input_bits() != 0 {
            return false;
        }
        let words = Words::new(self.map.mmu());
        let (mut table, mut level) = (self.map.root(), geometry.start_level());
        let mut index = (address >> level_shift::<S>(level)) as usize;
        loop {
            let raw = words.load(table, index);
            if !is_table(raw, level) {
                return is_changing(raw);
            }
            table = pa(raw);
            level += 1;
            index = (address >> level_shift::<S>(level)) as usize & (S::ENTRIES - 1);
        }
    }
}

impl<R: Regime, M: Mmu, S: Shape> Writer<'_, '_, R, M, S> {
    /// As [`Reader::walk`]. It needs no slot: tables leave the map by its writer only.
    pub fn walk<B>(
        &self,
        range: Range<R::Input>,
        mut visit: impl FnMut(Visited<R>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        walk(self.target(), range, &mut visit)
    }

    /// Goes down to the entry of `level` (0 to 3) for `address`, or to the one above it that is no table, and calls `visit` for that and for
    /// those after it in the same table, until it breaks: with the level, the first address of the entry, and what it says, be it a table.
    /// An address that the map does not reach has none.
    pub fn scan<B>(
        &self,
        address: R::Input,
        level: u8,
        mut visit: impl FnMut(u8, u64, Entry<R>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let map = self.target();
        let (words, geometry, address) = (Words::new(map.mmu()), map.geometry(), address.get());
        if address >> geometry.input_bits() != 0 {
            return ControlFlow::Continue(());
        }
        let load = |table, index| loop {
            let raw = words.load(table, index);
            if !is_changing(raw) {
                return raw;
            }
            map.mmu().relax();
        };
        let (mut table, mut at) = (map.root(), geometry.start_level());
        // A root may be of several tables.
        let mut index = (address >> level_shift::<S>(at)) as usize;
        let mut raw = load(table, index);
        while at < level && is_table(raw, at) {
            (table, at) = (pa(raw), at + 1);
            index = (address >> level_shift::<S>(at)) as usize & (S::ENTRIES - 1);
            raw = load(table, index);
        }
        let mut start = address & !(level_size::<S>(at) - 1);
        loop {
            visit(at, start, Entry::decode::<S>(raw, at))?;
            index += 1;
            if index.is_multiple_of(S::ENTRIES) {
                return ControlFlow::Continue(());
            }
            start += level_size::<S>(at);
            raw = load(table, index);
        }
    }

    /// How far the entries of one table hold software states: from that of `level` for `address`, or the one above it that is no table, to the
    /// end of that table. The first address of that entry if it does not.
    pub fn states_until(&self, address: R::Input, level: u8) -> u64 {
        /// Entries at a step: of each there is one load, one exclusive OR and one OR.
        const STEP: usize = 8;
        let map = self.target();
        let (words, geometry, address) = (Words::new(map.mmu()), map.geometry(), address.get());
        if address >> geometry.input_bits() != 0 {
            return address;
        }
        let (mut table, mut at) = (map.root(), geometry.start_level());
        let mut first = (address >> level_shift::<S>(at)) as usize;
        let mut raw = words.load(table, first);
        while at < level && is_table(raw, at) {
            (table, at) = (pa(raw), at + 1);
            first = (address >> level_shift::<S>(at)) as usize & (S::ENTRIES - 1);
            raw = words.load(table, first);
        }
        let size = level_size::<S>(at);
        // A root may be of several tables.
        let limit = (first & !(S::ENTRIES - 1)) + S::ENTRIES;
        let are_states = |from: usize, count: usize| {
            (from..from + count).fold(0, |all, at| all | (words.glance(table, at) ^ STATE) & KIND) == 0
        };
        let mut index = first;
        while index + STEP <= limit && are_states(index, STEP) {
            index += STEP;
        }
        while index < limit && are_states(index, 1) {
            index += 1;
        }
        (address & !(size - 1)) + (index - first) as u64 * size
    }

    /// How far all addresses from `address` on translate: to the end of the last leaf of the first one's table that does, without a gap, and
    /// of those that begin below `end`. `address` itself if it does not. What is being changed does not.
    pub fn translates_until(&self, address: R::Input, end: u64) -> u64 {
        /// Entries at a step: of each there is one load and one AND.
        const STEP: usize = 8;
        let map = self.target();
        let (words, geometry, address) = (Words::new(map.mmu()), map.geometry(), address.get());
        if address >> geometry.input_bits() != 0 {
            return address;
        }
        let (mut table, mut level) = (map.root(), geometry.start_level());
        let mut first = (address >> level_shift::<S>(level)) as usize;
        let mut raw = words.load(table, first);
        while is_table(raw, level) {
            (table, level) = (pa(raw), level + 1);
            first = (address >> level_shift::<S>(level)) as usize & (S::ENTRIES - 1);
            raw = words.load(table, first);
        }
        if raw & VALID == 0 || !is_leaf(raw, level) {
            return address;
        }
        let size = level_size::<S>(level);
        let start = address & !(size - 1);
        let mut index = first + 1;
        // Above the last level what is valid may be a table.
        if level == LAST_LEVEL {
            let wanted = (end.saturating_sub(start).div_ceil(size) as usize).max(1);
            let limit = S::ENTRIES.min(first.saturating_add(wanted));
            let is_valid = |from: usize, count: usize| {
                (from..from + count).fold(VALID, |all, at| all & words.glance(table, at)) != 0
            };
            while index + STEP <= limit && is_valid(index, STEP) {
                index += STEP;
            }
            while index < limit && is_valid(index, 1) {
                index += 1;
            }
        }
        start + (index - first) as u64 * size
    }
}

/// Of a caller who keeps the tables that it may see from being reused.
fn walk<R: Regime, M: Mmu, S: Shape, B>(
    map: &Map<R, M, S>,
    range: Range<R::Input>,
    visit: &mut impl FnMut(Visited<R>) -> ControlFlow<B>,
) -> ControlFlow<B> {
    let geometry = map.geometry();
    let (mut start, end) = (range.start().get(), range.end().min(1 << geometry.input_bits()));
    while start < end {
        match walk_table(map, map.root(), geometry.start_level(), 0, (start, end), visit) {
            ControlFlow::Continue(()) => break,
            ControlFlow::Break(Stop::Visitor(found)) => return ControlFlow::Break(found),
            // From the root, for a table that fell out of the map changes no more.
            ControlFlow::Break(Stop::Changing(at)) => start = at,
        }
        map.mmu().relax();
    }
    ControlFlow::Continue(())
}

fn walk_table<R: Regime, M: Mmu, S: Shape, B>(
    map: &Map<R, M, S>,
    table: Pa,
    level: u8,
    base: u64,
    (start, end): (u64, u64),
    visit: &mut impl FnMut(Visited<R>) -> ControlFlow<B>,
) -> ControlFlow<Stop<B>> {
    let shift = level_shift::<S>(level);
    for index in ((start - base) >> shift)..=((end - 1 - base) >> shift) {
        let at = base + (index << shift);
        let raw = Words::new(map.mmu()).load(table, index as usize);
        if is_table(raw, level) {
            let part = (start.max(at), end.min(at + level_size::<S>(level)));
            walk_table(map, pa(raw), level + 1, at, part, visit)?;
        } else if is_changing(raw) {
            return ControlFlow::Break(Stop::Changing(start.max(at)));
        } else if let ControlFlow::Break(found) =
            visit(Visited { start: at, level, entry: Entry::decode::<S>(raw, level) })
        {
            return ControlFlow::Break(Stop::Visitor(found));
        }
    }
    ControlFlow::Continue(())
}

/// See [`Reader::entries`].
pub(super) struct Entries<'r, R: Regime, M: Mmu, S: Shape> {
    reader: &'r Reader<'r, R, M, S>,
    /// The tables of each level on the way to the next entry, each with the bits of those above it.
    path: [(Pa, u64); LAST_LEVEL as usize + 1],
    /// Of the table that has the next entry.
    level: u8,
    /// An address that the next entry is for.
    at: u64,
    end: u64,
}

impl<R: Regime, M: Mmu, S: Shape> Iterator for Entries<'_, R, M, S> {
    type Item = (Visited<R>, u64);

    fn next(&mut self) -> Option<Self::Item> {
        let start_level = self.reader.start_level;
        while self.at < self.end {
            let level = self.level;
            let (table, tables) = self.path[usize::from(level)];
            let index = (self.at >> level_shift::<S>(level)) as usize;
            // A root may be of several tables.
            let index = if level == start_level { index } else { index & (S::ENTRIES - 1) };
            let raw = Words::new(self.reader.map.mmu()).load(table, index);
            if is_changing(raw) {
                // From the root, for a table that fell out of the map changes no more.
                self.level = start_level;
                self.reader.map.mmu().relax();
                continue;
            }
            if is_table(raw, level) {
                self.level += 1;
                self.path[usize::from(self.level)] = (pa(raw), tables | raw);
                continue;
            }
            let size = level_size::<S>(level);
            let start = self.at & !(size - 1);
            self.at = start + size;
            while self.level > start_level && self.at.is_multiple_of(level_size::<S>(self.level - 1)) {
                self.level -= 1;
            }
            return Some((Visited { start, level, entry: Entry::decode::<S>(raw, level) }, tables));
        }
        None
    }
}

/// How many leaves and contiguous runs a map has at each level, 0 to 3. Leaves that do not translate for now count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Leaves, those in runs included.
    pub leaves: [usize; 4],
    /// Runs.
    pub runs: [usize; 4],
}

impl core::fmt::Display for Census {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let names = [(1, "blocks of 1 GiB"), (2, "blocks of 2 MiB"), (3, "pages")];
        for (separator, (level, name)) in ["", ", ", ", "].into_iter().zip(names) {
            write!(f, "{separator}{} {name}", self.leaves[level])?;
            if self.runs[level] > 0 {
                write!(f, " ({} runs of {})", self.runs[level], Granule4K::RUN)?;
            }
        }
        Ok(())
    }
}
