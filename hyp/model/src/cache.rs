//! Data caches: memory that CPUs with their caches on and CPUs with their MMU off both read and write.
//!
//! Invariants:
//! - A line may be fetched from memory and written back to it at any moment (B2.7, D7.5): each word of the cache and of memory has the set
//!   of the values that it may have, and a read that may find more than one is a verdict.
//! - A write-back takes the whole line: who writes past the caches shares no line with who writes through them.
//! - Maintenance is complete at the DSB after it (D7.5.9.5).
//! - A CPU whose MMU is off reads and writes past the caches, and its exclusives and atomics are nobody's promise (B2.12, B2.2.5).

use std::collections::{BTreeMap, BTreeSet};

use crate::verdict::{Kind, Verdict};

/// Words of a line.
pub const LINE: usize = 8;

type Values = BTreeSet<u64>;

#[derive(Clone, Debug)]
struct Line {
    memory: [Values; LINE],
    /// What a line that is in a cache may have there.
    cached: [Values; LINE],
    dirty: bool,
}

/// What is done to a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Maintenance {
    /// `DC CVAC`.
    Clean,
    /// `DC IVAC`.
    Invalidate,
    /// `DC CIVAC`.
    CleanAndInvalidate,
}

/// Caches that are coherent with each other, and the memory behind them.
#[derive(Clone, Debug, Default)]
pub struct Caches {
    lines: BTreeMap<u64, Line>,
    /// Those with the MMU off: a bit each.
    off: u32,
    issued: Vec<(usize, u64, Maintenance)>,
}

impl Default for Line {
    fn default() -> Self {
        let zero = || BTreeSet::from([0]);
        Self {
            memory: std::array::from_fn(|_| zero()),
            cached: std::array::from_fn(|_| zero()),
            dirty: false,
        }
    }
}

impl Line {
    /// A line may be written back, or fetched.
    fn wander(&mut self) {
        for (memory, cached) in self.memory.iter_mut().zip(&mut self.cached) {
            if self.dirty {
                memory.extend(cached.iter());
            } else {
                cached.extend(memory.iter());
            }
        }
    }

    fn maintain(&mut self, maintenance: Maintenance) {
        if self.dirty && maintenance != Maintenance::Invalidate {
            self.memory = self.cached.clone();
        }
        if self.dirty || maintenance != Maintenance::Clean {
            // What is not in the cache is fetched again from what memory has.
            self.cached = self.memory.clone();
        }
        self.dirty = false;
    }
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

    /// Writes a word of a line.
    pub fn write(&mut self, cpu: usize, number: u64, word: usize, value: u64) {
        let past = self.off & 1 << cpu != 0;
        let line = self.line(number);
        if past {
            line.memory[word] = BTreeSet::from([value]);
        } else {
            line.dirty = true;
            line.cached[word] = BTreeSet::from([value]);
        }
        line.wander();
    }

    /// Reads a word of a line.
    ///
    /// # Errors
    /// [`Kind::StaleMemory`] if it may have more than one value.
    pub fn read(&mut self, cpu: usize, number: u64, word: usize) -> Result<u64, Verdict> {
        let past = self.off & 1 << cpu != 0;
        let line = self.line(number);
        let values = if past { &line.memory[word] } else { &line.cached[word] };
        match values.first() {
            Some(value) if values.len() == 1 => Ok(*value),
            _ => {
                let how = if past { "past the caches" } else { "through a cache" };
                let text =
                    format!("CPU {cpu} reads word {word} of line {number:#x} {how} and may find {values:x?}");
                Err(Verdict::new(Kind::StaleMemory, text))
            }
        }
    }

    /// An exclusive or an atomic of a word.
    ///
    /// # Errors
    /// [`Kind::ExclusiveWithMmuOff`], and as [`Caches::read`].
    pub fn swap(&mut self, cpu: usize, number: u64, word: usize, value: u64) -> Result<u64, Verdict> {
        if self.off & 1 << cpu != 0 {
            let text = format!("CPU {cpu} swaps word {word} of line {number:#x}");
            return Err(Verdict::new(Kind::ExclusiveWithMmuOff, text));
        }
        let old = self.read(cpu, number, word)?;
        self.write(cpu, number, word, value);
        Ok(old)
    }

    /// Issues maintenance of a line.
    pub fn maintain(&mut self, cpu: usize, number: u64, maintenance: Maintenance) {
        self.issued.push((cpu, number, maintenance));
    }

    /// `DSB SY`: what the CPU has issued is complete.
    pub fn barrier(&mut self, cpu: usize) {
        let (own, others): (Vec<_>, Vec<_>) = self.issued.drain(..).partition(|(issuer, ..)| *issuer == cpu);
        self.issued = others;
        for (_, number, maintenance) in own {
            self.line(number).maintain(maintenance);
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
}
