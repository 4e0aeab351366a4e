//! The words of tables: which values walkers may still observe.
//!
//! Invariants:
//! - A word has its last settled value and, in coherence order, the stores after it. A walk may observe any of them: a store is seen
//!   late, and stores of one CPU to different words in any order (B2.3; walks are reads, D8.2.6), until
//!   - the CPU executes a DSB for stores: all its stores are settled;
//!   - another CPU loads the value: what one other observer has seen all others see (B2.3.3, other-multi-copy atomicity), and
//!     with a store-release all that was before it.
//! - A walk that observes a store-release observes, in the words it reads after that, nothing older than what came before the
//!   release: the word's address depends on it.
//! - Software reads the newest value.
//! - A table is the pool's or somebody's. The pool poisons what it gets back, so that nobody reads it unnoticed.

use crate::CPUS;

/// A store that walkers may not have seen yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pending {
    /// The value.
    pub value: u64,
    cpu: u8,
    /// It is one of those that a release of a later epoch orders.
    epoch: u16,
    /// Who observes it observes all stores of its CPU of epochs before this.
    order: u16,
}

#[derive(Clone, Copy, Debug)]
struct Word {
    settled: u64,
    /// Nobody has written it since the pool had it.
    poison: bool,
    first: Option<Pending>,
    /// There are more, in [`Memory::more`].
    has_more: bool,
    /// For each CPU, whether it has seen the newest value.
    seen: u8,
}

/// For each CPU, the epoch before which its stores were observed by a walk.
pub type Observed = [u16; CPUS];

/// A value that a walk may read.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    /// The value.
    pub value: u64,
    /// It is what the pool has left there.
    pub poison: bool,
    /// What the walk has observed by now.
    pub observed: Observed,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Clock {
    epoch: u16,
    /// Of plain stores: the last full barrier.
    floor: u16,
}

/// What the pool leaves in a table: a valid entry of any level, of an address that nobody has.
pub const POISON: u64 = 0x0000_dead_dead_d743;
/// Physical address of the first table.
pub const FIRST_TABLE: u64 = 0x4030_0000;
const GRANULE: u64 = 4096;

/// Tables.
#[derive(Clone, Debug)]
pub struct Memory {
    words: Vec<Word>,
    more: Vec<(u32, Pending)>,
    clocks: [Clock; CPUS],
    /// The epoch before which a CPU's stores are released by what the machine does not see.
    released: [u16; CPUS],
    /// Stores of each CPU that are not settled.
    unsettled: [u32; CPUS],
    /// Whether each table is out of the pool.
    out: Vec<bool>,
    /// The tables that were given back, last first, and those never taken.
    free: Vec<u16>,
    reserved: usize,
    entries: usize,
}

impl Memory {
    /// So many tables of so many entries, all in the pool.
    pub fn new(tables: usize, entries: usize) -> Self {
        let word = Word { settled: POISON, poison: true, first: None, has_more: false, seen: 0 };
        Self {
            words: vec![word; tables * entries],
            more: Vec::new(),
            clocks: Default::default(),
            released: Default::default(),
            unsettled: Default::default(),
            out: vec![false; tables],
            free: (0..tables as u16).rev().collect(),
            reserved: 0,
            entries,
        }
    }

    /// Number of the table at an address, if there is one.
    pub fn table(&self, address: u64) -> Option<usize> {
        let number = address.checked_sub(FIRST_TABLE)? / GRANULE;
        (number < self.out.len() as u64 && address.is_multiple_of(GRANULE)).then_some(number as usize)
    }
    /// Whether the table that the word is in, counting on from `table`, is out of the pool.
    pub fn is_out(&self, table: usize, index: usize) -> bool {
        self.out[table + index / self.entries]
    }
    fn at(&self, table: usize, index: usize) -> usize {
        table * self.entries + index
    }

    /// The newest value of a word.
    pub fn newest(&self, table: usize, index: usize) -> u64 {
        self.newest_of(self.at(table, index)).map_or(self.words[self.at(table, index)].settled, |p| p.value)
    }
    /// Whether the newest value is what the pool has left there.
    pub fn is_poison(&self, table: usize, index: usize) -> bool {
        let word = &self.words[self.at(table, index)];
        word.poison && word.first.is_none()
    }
    fn newest_of(&self, at: usize) -> Option<Pending> {
        let word = &self.words[at];
        if word.has_more
            && let Some((_, last)) = self.more.iter().rev().find(|(number, _)| *number == at as u32)
        {
            return Some(*last);
        }
        word.first
    }

    /// What software reads. Others' stores that it observes everybody does.
    pub fn load(&mut self, cpu: usize, table: usize, index: usize) -> u64 {
        let at = self.at(table, index);
        self.words[at].seen |= 1 << cpu;
        let Some(newest) = self.newest_of(at) else { return self.words[at].settled };
        if usize::from(newest.cpu) != cpu {
            self.settle_word(at, usize::MAX);
            self.settle(usize::from(newest.cpu), newest.order);
        }
        newest.value
    }

    /// Whether the CPU has seen the newest value of a word.
    pub fn has_seen(&self, cpu: usize, table: usize, index: usize) -> bool {
        self.words[self.at(table, index)].seen & 1 << cpu != 0
    }

    fn push(&mut self, at: usize, pending: Pending) {
        self.unsettled[usize::from(pending.cpu)] += 1;
        let word = &mut self.words[at];
        word.seen = 1 << pending.cpu;
        if word.first.is_none() {
            word.first = Some(pending);
        } else {
            word.has_more = true;
            self.more.push((at as u32, pending));
        }
    }

    /// A plain store.
    pub fn store(&mut self, cpu: usize, table: usize, index: usize, value: u64) {
        let Clock { epoch, floor } = self.clocks[cpu];
        self.push(self.at(table, index), Pending { value, cpu: cpu as u8, epoch, order: floor });
    }
    /// A store-release.
    pub fn release(&mut self, cpu: usize, table: usize, index: usize, value: u64) {
        self.clocks[cpu].epoch += 1;
        let epoch = self.clocks[cpu].epoch;
        self.push(self.at(table, index), Pending { value, cpu: cpu as u8, epoch, order: epoch });
    }
    /// A compare-and-swap with acquire and release: a full barrier if it stores.
    pub fn compare_exchange(&mut self, cpu: usize, table: usize, index: usize, old: u64, new: u64) -> bool {
        let same = self.load(cpu, table, index) == old;
        if same {
            self.release(cpu, table, index, new);
            self.clocks[cpu].floor = self.clocks[cpu].epoch;
        }
        same
    }
    /// What hardware stores to a leaf: as an atomic of nobody, at once seen by all (D8.4.6).
    pub fn mark(&mut self, table: usize, index: usize, value: u64) {
        let at = self.at(table, index);
        self.settle_word(at, usize::MAX);
        // Who has read it before knows that it may change at any time.
        self.words[at].settled = value;
    }

    /// Makes the newest store of `cpu` to a word (of anybody, for `usize::MAX`) the settled one.
    fn settle_word(&mut self, at: usize, cpu: usize) {
        let is = |pending: &Pending| cpu == usize::MAX || usize::from(pending.cpu) == cpu;
        let mut all: Vec<Pending> = self.words[at].first.into_iter().collect();
        if self.words[at].has_more {
            all.extend(self.more.iter().filter(|(number, _)| *number == at as u32).map(|(_, p)| *p));
        }
        let Some(last) = all.iter().rposition(is) else { return };
        self.keep_from(at, &all, last);
    }

    fn keep_from(&mut self, at: usize, all: &[Pending], last: usize) {
        all[..=last].iter().for_each(|pending| self.unsettled[usize::from(pending.cpu)] -= 1);
        let word = &mut self.words[at];
        word.settled = all[last].value;
        word.poison = false;
        word.first = all.get(last + 1).copied();
        if word.has_more {
            word.has_more = all.len() > last + 2;
            self.more.retain(|(number, _)| *number != at as u32);
            self.more.extend(all.iter().skip(last + 2).map(|pending| (at as u32, *pending)));
        }
    }

    /// All that `cpu` has stored in epochs before `before` is seen by everybody.
    fn settle(&mut self, cpu: usize, before: u16) {
        if self.unsettled[cpu] == 0 {
            return;
        }
        for at in 0..self.words.len() {
            let Some(first) = self.words[at].first else { continue };
            if !self.words[at].has_more {
                if usize::from(first.cpu) == cpu && first.epoch < before {
                    let word = &mut self.words[at];
                    (word.settled, word.poison, word.first) = (first.value, false, None);
                    self.unsettled[cpu] -= 1;
                }
                continue;
            }
            let mut all = vec![first];
            all.extend(self.more.iter().filter(|(number, _)| *number == at as u32).map(|(_, p)| *p));
            let is = |pending: &Pending| usize::from(pending.cpu) == cpu && pending.epoch < before;
            if let Some(last) = all.iter().rposition(is) {
                self.keep_from(at, &all, last);
            }
        }
    }

    /// A DSB for stores: what the CPU has stored is seen by everybody.
    pub fn settle_all(&mut self, cpu: usize) {
        self.settle(cpu, u16::MAX);
        self.clocks[cpu] = Clock::default();
        self.released[cpu] = 0;
    }

    /// The CPU has made a release elsewhere, in memory that is no table: who acquires it sees its stores.
    pub fn publish(&mut self, cpu: usize) {
        if !self.is_settled(cpu) {
            self.clocks[cpu].epoch += 1;
            self.released[cpu] = self.clocks[cpu].epoch;
        }
    }
    /// The CPU may have acquired what others have released. Whether anything is seen by that.
    pub fn acquire(&mut self, cpu: usize) -> bool {
        let mut any = false;
        for other in (0..CPUS).filter(|&other| other != cpu) {
            let released = std::mem::take(&mut self.released[other]);
            if released > 0 {
                self.settle(other, released);
                any = true;
            }
        }
        any
    }

    /// Whether all of the CPU's stores are settled.
    pub fn is_settled(&self, cpu: usize) -> bool {
        self.unsettled[cpu] == 0
    }

    /// Calls `each` for each value that a walk which has observed so much may read from a word.
    pub fn candidates(
        &self,
        table: usize,
        index: usize,
        observed: Observed,
        mut each: impl FnMut(Candidate),
    ) {
        let at = self.at(table, index);
        let word = &self.words[at];
        let settled = Candidate { value: word.settled, poison: word.poison, observed };
        let Some(first) = word.first else { return each(settled) };
        let after = |pending: Pending| {
            let mut observed = observed;
            let of_cpu = &mut observed[usize::from(pending.cpu)];
            *of_cpu = (*of_cpu).max(pending.order);
            Candidate { value: pending.value, poison: false, observed }
        };
        let is_behind = |pending: &Pending| pending.epoch < observed[usize::from(pending.cpu)];
        if !word.has_more {
            if !is_behind(&first) {
                each(settled);
            }
            return each(after(first));
        }
        let mut all = vec![first];
        all.extend(self.more.iter().filter(|(number, _)| *number == at as u32).map(|(_, p)| *p));
        let from = all.iter().rposition(is_behind);
        if from.is_none() {
            each(settled);
        }
        all[from.unwrap_or(0)..].iter().for_each(|&pending| each(after(pending)));
    }

    // The pool.

    /// Sets tables aside.
    pub fn reserve(&mut self, count: usize) -> Result<(), usize> {
        let left = self.free.len() - self.reserved;
        if count > left {
            return Err(left);
        }
        self.reserved += count;
        Ok(())
    }
    /// Takes back what was set aside.
    pub fn cancel(&mut self, count: usize) {
        self.reserved -= count;
    }
    /// The table that was given back last, so that who still uses it is found.
    pub fn take(&mut self) -> u64 {
        self.reserved -= 1;
        let number = self.free.pop().expect("it was reserved");
        self.out[usize::from(number)] = true;
        FIRST_TABLE + u64::from(number) * GRANULE
    }
    /// Adjacent tables, aligned to their size.
    pub fn take_root(&mut self, count: usize) -> Option<u64> {
        let is_free = |number: usize| self.free.contains(&(number as u16));
        let first = (0..self.out.len())
            .step_by(count)
            .find(|&first| (first..first + count).all(|number| number < self.out.len() && is_free(number)))?;
        for number in first..first + count {
            self.out[number] = true;
            self.free.retain(|&other| usize::from(other) != number);
        }
        Some(FIRST_TABLE + first as u64 * GRANULE)
    }
    /// Takes a table back, and spoils it.
    pub fn give(&mut self, table: usize) {
        self.out[table] = false;
        self.free.push(table as u16);
        let (first, last) = (self.at(table, 0), self.at(table, self.entries));
        let of_more =
            self.more.iter().filter(|(at, _)| (first..last).contains(&(*at as usize))).map(|(_, p)| *p);
        for pending in self.words[first..last].iter().filter_map(|word| word.first).chain(of_more) {
            self.unsettled[usize::from(pending.cpu)] -= 1;
        }
        let word = Word { settled: POISON, poison: true, first: None, has_more: false, seen: 0 };
        self.words[first..last].fill(word);
        self.more.retain(|(number, _)| !(first..last).contains(&(*number as usize)));
    }
    /// Tables that are out.
    pub fn used(&self) -> usize {
        self.out.len() - self.free.len()
    }
    /// Tables that are neither out nor set aside.
    pub fn left(&self) -> usize {
        self.free.len() - self.reserved
    }

    /// Feeds everything to a hash.
    pub fn fingerprint(&self, into: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        for (number, &out) in self.out.iter().enumerate() {
            into.write_u8(u8::from(out));
            if !out {
                continue;
            }
            for word in &self.words[self.at(number, 0)..self.at(number, self.entries)] {
                into.write_u64(word.settled);
                into.write_u8(word.seen << 1 | u8::from(word.poison));
                if let Some(first) = word.first {
                    first.hash(into);
                }
            }
        }
        for (number, pending) in &self.more {
            into.write_u32(*number);
            pending.hash(into);
        }
        self.clocks.hash(into);
        self.released.hash(into);
        self.free.hash(into);
        into.write_usize(self.reserved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that a fresh walk may read.
    fn values(memory: &Memory, index: usize, observed: Observed) -> Vec<u64> {
        let mut all = Vec::new();
        memory.candidates(0, index, observed, |candidate| all.push(candidate.value));
        all
    }

    fn memory() -> Memory {
        let mut memory = Memory::new(2, 4);
        memory.take_root(1).unwrap();
        for index in 0..4 {
            memory.store(0, 0, index, 10);
        }
        memory.settle_all(0);
        memory
    }

    #[test]
    fn a_store_is_seen_late_until_a_dsb() {
        let mut memory = memory();
        memory.store(0, 0, 0, 11);
        memory.store(0, 0, 0, 12);
        assert_eq!(values(&memory, 0, [0; CPUS]), [10, 11, 12]);
        assert_eq!(memory.load(0, 0, 0), 12);
        memory.settle_all(1);
        assert_eq!(values(&memory, 0, [0; CPUS]), [10, 11, 12]);
        memory.settle_all(0);
        assert_eq!(values(&memory, 0, [0; CPUS]), [12]);
    }

    #[test]
    fn what_another_cpu_has_read_everybody_sees() {
        let mut memory = memory();
        memory.store(0, 0, 0, 11);
        memory.release(0, 0, 1, 11);
        memory.store(0, 0, 2, 11);
        assert_eq!(memory.load(1, 0, 1), 11);
        assert_eq!(values(&memory, 0, [0; CPUS]), [11], "it was before the release");
        assert_eq!(values(&memory, 1, [0; CPUS]), [11]);
        assert_eq!(values(&memory, 2, [0; CPUS]), [10, 11], "it comes after the release");
    }

    #[test]
    fn who_observes_a_release_observes_what_was_before_it_and_not_after_a_plain_store() {
        let mut memory = memory();
        memory.store(0, 0, 0, 11);
        memory.release(0, 0, 1, 11);
        memory.store(0, 0, 2, 11);
        let mut seen = Vec::new();
        memory.candidates(0, 1, [0; CPUS], |candidate| seen.push(candidate.observed));
        assert_eq!(values(&memory, 0, seen[0]), [10, 11]);
        assert_eq!(values(&memory, 0, seen[1]), [11]);
        seen.clear();
        memory.candidates(0, 2, [0; CPUS], |candidate| seen.push(candidate.observed));
        assert_eq!(values(&memory, 0, seen[1]), [10, 11], "a plain store orders nothing");
    }

    #[test]
    fn a_table_that_was_given_back_is_spoilt_and_comes_first_again() {
        let mut memory = memory();
        memory.give(0);
        assert!(memory.is_poison(0, 3) && !memory.is_out(0, 3));
        memory.reserve(1).unwrap();
        assert_eq!(memory.take(), FIRST_TABLE);
        assert_eq!(memory.reserve(2), Err(1));
    }
}
