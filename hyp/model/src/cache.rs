//! Data caches: memory that CPUs with their caches on and CPUs with their MMU off both read and write.
//!
//! Invariants:
//! - A line may be fetched from memory and written back to it at any moment (B2.7, D7.5), whole: a line has the set of all states that memory and
//!   caches may be in, and who reads sees one of them, which it then is.
//! - A write-back takes the whole line: who writes past the caches shares no line with who writes through them.
//! - Maintenance, and what is written past the caches, takes effect at any moment, in any order, and has when its CPU's DSB is done (D7.5.9.5,
//!   B2.7.2).
//! - A CPU whose MMU is off reads and writes past the caches, and its exclusives and atomics are nobody's promise (B2.12, B2.2.5).
//! - A word may have several values for who has looked at it while somebody published it; for anybody else that is a verdict.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hash;

use crate::verdict::{Kind, Verdict};

/// Words of a line.
pub const LINE: usize = 8;

type Words = [u64; LINE];

/// What a line may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct State {
    memory: Words,
    /// What the caches have of it, and whether it was written there.
    cached: Option<(Words, bool)>,
    /// Operations of [`Line::issued`] that have taken effect: a bit each.
    done: u16,
}

/// What is done to a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Maintenance {
    /// `DC CVAC`.
    Clean,
    /// `DC IVAC`.
    Invalidate,
    /// `DC CIVAC`.
    CleanAndInvalidate,
}

/// What may take effect later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Operation {
    Maintain(Maintenance),
    /// Words from the first on, past the caches.
    Write(usize, usize, Words),
}

impl State {
    /// What it may be after an operation.
    fn after(self, operation: Operation) -> [Option<Self>; 2] {
        let Self { mut memory, cached, done } = self;
        let clean = cached.filter(|(_, dirty)| *dirty).map_or(memory, |(words, _)| words);
        match operation {
            Operation::Write(first, count, values) => {
                memory[first..first + count].copy_from_slice(&values[..count]);
                [Some(Self { memory, ..self }), None]
            }
            Operation::Maintain(Maintenance::Clean) => {
                [Some(Self { memory: clean, cached: cached.map(|(words, _)| (words, false)), done }), None]
            }
            // Invalidating may clean (D7.5.9.6).
            Operation::Maintain(Maintenance::Invalidate) => {
                [memory, clean].map(|memory| Some(Self { memory, cached: None, done }))
            }
            Operation::Maintain(Maintenance::CleanAndInvalidate) => {
                [Some(Self { memory: clean, cached: None, done }), None]
            }
        }
    }
}

#[derive(Clone, Debug)]
struct Line {
    states: BTreeSet<State>,
    /// Who has issued what. The number of each is its bit in [`State::done`].
    issued: Vec<Option<(usize, Operation)>>,
    /// Somebody publishes words of it.
    published: u32,
    /// CPUs that have begun to look at it while, or before, somebody did: a bit each.
    raced: u32,
}

impl Default for Line {
    fn default() -> Self {
        let state = State { memory: [0; LINE], cached: None, done: 0 };
        let mut line = Self { states: BTreeSet::from([state]), issued: Vec::new(), published: 0, raced: 0 };
        line.wander();
        line
    }
}

impl Line {
    /// A line may be fetched, written back, or dropped; what was issued may take effect.
    fn wander(&mut self) {
        let mut open: Vec<State> = self.states.iter().copied().collect();
        while let Some(state) = open.pop() {
            let State { memory, cached, .. } = state;
            let moved = match cached {
                None => [Some(State { cached: Some((memory, false)), ..state }), None],
                Some((_, false)) => [Some(State { cached: None, ..state }), None],
                Some((words, true)) => [
                    Some(State { memory: words, cached: None, ..state }),
                    Some(State { memory: words, cached: Some((words, false)), ..state }),
                ],
            };
            let effects = self.issued.iter().enumerate().flat_map(|(number, issued)| {
                let bit = 1 << number;
                let operation = issued.filter(|_| state.done & bit == 0);
                let after = operation.map_or([None; 2], |(_, operation)| state.after(operation));
                after.map(|state| state.map(|state| State { done: state.done | bit, ..state }))
            });
            for next in moved.into_iter().chain(effects).flatten() {
                if self.states.insert(next) {
                    open.push(next);
                }
            }
        }
    }

    fn each(&mut self, change: impl Fn(State) -> State) {
        self.states = std::mem::take(&mut self.states).into_iter().map(change).collect();
        self.wander();
    }

    fn issue(&mut self, cpu: usize, operation: Operation) {
        let number = self.issued.iter().position(Option::is_none).unwrap_or_else(|| {
            self.issued.push(None);
            self.issued.len() - 1
        });
        assert!(number < 16, "a DSB is missing");
        self.issued[number] = Some((cpu, operation));
        self.wander();
    }

    /// What the CPU has issued, or of that only what it has written, has taken effect.
    fn complete(&mut self, cpu: usize, all: bool) {
        for number in 0..self.issued.len() {
            let Some((by, operation)) = self.issued[number] else { continue };
            if by != cpu || !all && matches!(operation, Operation::Maintain(_)) {
                continue;
            }
            let bit = 1 << number;
            self.states.retain(|state| state.done & bit != 0);
            self.issued[number] = None;
            self.each(|state| State { done: state.done & !bit, ..state });
        }
        while self.issued.last() == Some(&None) {
            self.issued.pop();
        }
    }
}

/// Caches that are coherent with each other, and the memory behind them.
#[derive(Clone, Debug, Default)]
pub struct Caches {
    lines: BTreeMap<u64, Line>,
    /// Those with the MMU off: a bit each.
    off: u32,
}

impl Caches {
    /// All memory zero, all MMUs on.
    pub fn new() -> Self {
        Self::default()
    }
    /// Turns the MMU of a CPU off or on.
    pub fn set_mmu(&mut self, cpu: usize, on: bool) {
        self.off = self.off & !(1 << cpu) | u32::from(!on) << cpu;
    }

    fn line(&mut self, number: u64) -> &mut Line {
        self.lines.entry(number).or_default()
    }
    fn is_past(&self, cpu: usize) -> bool {
        self.off & 1 << cpu != 0
    }

    /// Writes a word of a line.
    pub fn write(&mut self, cpu: usize, number: u64, word: usize, value: u64) {
        let mut values = [0; LINE];
        values[0] = value;
        self.write_words(cpu, number, word, 1, values);
    }
    /// Writes words of a line, of which nobody sees a part only.
    pub fn write_words(&mut self, cpu: usize, number: u64, first: usize, count: usize, values: Words) {
        let past = self.is_past(cpu);
        let line = self.line(number);
        if past {
            return line.issue(cpu, Operation::Write(first, count, values));
        }
        line.each(|state| {
            let (mut words, _) = state.cached.unwrap_or((state.memory, false));
            words[first..first + count].copy_from_slice(&values[..count]);
            State { cached: Some((words, true)), ..state }
        });
    }

    /// What the CPU may read in a word.
    pub fn values(&self, cpu: usize, number: u64, word: usize) -> Vec<u64> {
        let past = self.is_past(cpu);
        let none = Line::default();
        let states = &self.lines.get(&number).unwrap_or(&none).states;
        let read = |state: &State| if past { Some(state.memory[word]) } else { Some(state.cached?.0[word]) };
        states.iter().filter_map(read).collect::<BTreeSet<_>>().into_iter().collect()
    }
    /// Whether it may read several, as somebody was publishing them when it began to look.
    pub fn races(&self, cpu: usize, number: u64) -> bool {
        self.lines.get(&number).is_some_and(|line| line.raced & 1 << cpu != 0)
    }

    /// Reads a word of a line.
    ///
    /// # Errors
    /// [`Kind::StaleMemory`] if it may have more than one value.
    pub fn read(&mut self, cpu: usize, number: u64, word: usize) -> Result<u64, Verdict> {
        self.read_nth(cpu, number, word, 0)
    }
    /// Reads a word of a line, of which the CPU finds the `nth` of [`Caches::values`] if it races.
    ///
    /// # Errors
    /// [`Kind::StaleMemory`] if it may have more than one value and does not race.
    pub fn read_nth(&mut self, cpu: usize, number: u64, word: usize, nth: usize) -> Result<u64, Verdict> {
        let past = self.is_past(cpu);
        if past {
            // What it has written itself it reads.
            self.line(number).complete(cpu, false);
        }
        let values = self.values(cpu, number, word);
        if values.len() > 1 && !self.races(cpu, number) {
            let how = if past { "past the caches" } else { "through a cache" };
            let text =
                format!("CPU {cpu} reads word {word} of line {number:#x} {how} and may find {values:x?}");
            return Err(Verdict::new(Kind::StaleMemory, text));
        }
        let value = values[nth.min(values.len() - 1)];
        let line = self.line(number);
        line.states.retain(|state| match state.cached {
            _ if past => state.memory[word] == value,
            Some((words, _)) => words[word] == value,
            // It is fetched first.
            None => false,
        });
        line.wander();
        Ok(value)
    }

    /// An exclusive or an atomic of a word.
    ///
    /// # Errors
    /// [`Kind::ExclusiveWithMmuOff`], and as [`Caches::read`].
    pub fn swap(&mut self, cpu: usize, number: u64, word: usize, value: u64) -> Result<u64, Verdict> {
        if self.is_past(cpu) {
            let text = format!("CPU {cpu} swaps word {word} of line {number:#x}");
            return Err(Verdict::new(Kind::ExclusiveWithMmuOff, text));
        }
        let old = self.read(cpu, number, word)?;
        self.write(cpu, number, word, value);
        Ok(old)
    }

    /// Issues maintenance of a line.
    pub fn maintain(&mut self, cpu: usize, number: u64, maintenance: Maintenance) {
        self.line(number).issue(cpu, Operation::Maintain(maintenance));
    }

    /// `DSB SY`: what the CPU has issued is complete.
    pub fn barrier(&mut self, cpu: usize) {
        self.lines.values_mut().for_each(|line| line.complete(cpu, true));
    }

    /// The CPU begins to publish words of a line, or is done: from then on whoever begins to look is to find them.
    pub fn publish(&mut self, cpu: usize, number: u64, begins: bool) {
        let line = self.line(number);
        line.published = line.published & !(1 << cpu) | u32::from(begins) << cpu;
        if begins {
            line.raced = !0;
        }
    }
    /// The CPU begins to look at a line.
    pub fn look(&mut self, cpu: usize, number: u64) {
        let line = self.line(number);
        line.raced = line.raced & !(1 << cpu) | u32::from(line.published != 0) << cpu;
    }

    /// Feeds everything to a hash.
    pub fn fingerprint(&self, into: &mut impl std::hash::Hasher) {
        self.off.hash(into);
        for (number, line) in &self.lines {
            (number, &line.states, &line.issued, line.published, line.raced).hash(into);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Maintenance::*;

    /// CPU 1 has its MMU off.
    fn caches() -> Caches {
        let mut caches = Caches::new();
        caches.set_mmu(1, false);
        caches
    }

    fn kind<T>(result: Result<T, Verdict>) -> Option<Kind> {
        result.err().map(|verdict| verdict.kind)
    }

    #[test]
    fn a_word_reaches_who_reads_past_the_caches_once_it_is_cleaned() {
        let mut caches = caches();
        caches.write(0, 7, 0, 42);
        assert_eq!(kind(caches.read(1, 7, 0)), Some(Kind::StaleMemory));
        caches.maintain(0, 7, Clean);
        assert_eq!(kind(caches.read(1, 7, 0)), Some(Kind::StaleMemory), "not complete before the DSB");
        caches.barrier(0);
        assert_eq!(caches.read(1, 7, 0), Ok(42));
        assert_eq!(caches.read(0, 7, 0), Ok(42));
    }

    #[test]
    fn a_word_written_past_the_caches_is_seen_once_they_are_invalidated() {
        let mut caches = caches();
        caches.write(1, 7, 0, 42);
        assert_eq!(kind(caches.read(0, 7, 0)), Some(Kind::StaleMemory));
        caches.maintain(0, 7, Invalidate);
        caches.barrier(0);
        assert_eq!(kind(caches.read(0, 7, 0)), Some(Kind::StaleMemory), "it need not have been written yet");
        caches.barrier(1);
        caches.maintain(0, 7, Invalidate);
        caches.barrier(0);
        assert_eq!(caches.read(0, 7, 0), Ok(42));
    }

    #[test]
    fn invalidating_before_the_other_writes_does_not_do() {
        let mut caches = caches();
        caches.maintain(0, 7, Invalidate);
        caches.barrier(0);
        caches.write(1, 7, 0, 42);
        assert_eq!(kind(caches.read(0, 7, 0)), Some(Kind::StaleMemory));
    }

    #[test]
    fn two_writers_of_one_line_lose_words() {
        let mut caches = caches();
        caches.write(0, 7, 1, 1);
        caches.write(1, 7, 0, 42);
        caches.maintain(0, 7, CleanAndInvalidate);
        caches.barrier(0);
        // The clean has written the whole line, with what word 0 was before.
        assert_ne!(caches.read(1, 7, 0), Ok(42));
        // A line each does.
        caches.write(0, 8, 1, 1);
        caches.write(1, 9, 0, 42);
        caches.barrier(1);
        caches.maintain(0, 8, Clean);
        caches.maintain(0, 9, Invalidate);
        caches.barrier(0);
        assert_eq!((caches.read(1, 8, 1), caches.read(0, 9, 0)), (Ok(1), Ok(42)));
    }

    #[test]
    fn an_exclusive_with_the_mmu_off_is_convicted() {
        let mut caches = caches();
        assert_eq!(kind(caches.swap(1, 7, 0, 1)), Some(Kind::ExclusiveWithMmuOff));
        assert_eq!(caches.swap(0, 7, 0, 1), Ok(0));
        caches.set_mmu(1, true);
        assert_eq!(caches.swap(1, 7, 0, 2), Ok(1));
    }

    #[test]
    fn what_is_being_published_may_be_seen_or_not_and_is_settled_by_who_sees_it() {
        let mut caches = caches();
        caches.publish(1, 9, true);
        caches.write_words(1, 9, 0, 2, [1, 2, 0, 0, 0, 0, 0, 0]);
        caches.barrier(1);
        caches.write(1, 9, 7, 42);
        caches.look(0, 9);
        caches.maintain(0, 9, Invalidate);
        caches.barrier(0);
        assert_eq!(caches.values(0, 9, 7), [0, 42]);
        let mut late = caches.clone();
        assert_eq!(caches.read_nth(0, 9, 7, 1), Ok(42));
        assert_eq!(caches.values(0, 9, 1), [2], "a line is fetched whole");
        // Who reads the other words first has fetched them before.
        assert_eq!(late.values(0, 9, 1), [2], "they were complete before the look");
        late.publish(1, 9, false);
        late.barrier(1);
        late.look(0, 9);
        assert_eq!(kind(late.read(0, 9, 7)), Some(Kind::StaleMemory), "nothing was invalidated");
    }

    #[test]
    fn without_a_dsb_between_the_number_may_be_seen_before_what_it_stands_for() {
        let mut caches = caches();
        caches.publish(1, 9, true);
        caches.write(1, 9, 0, 1);
        caches.write(1, 9, 7, 42);
        caches.look(0, 9);
        caches.maintain(0, 9, Invalidate);
        caches.barrier(0);
        assert_eq!(caches.read_nth(0, 9, 7, 1), Ok(42));
        assert_eq!(caches.values(0, 9, 0), [0, 1]);
    }
}
