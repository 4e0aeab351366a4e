//! Granules that are not the realm's memory: for tables, the descriptor, RECs, and what the host calls with.
//!
//! Invariant: a granule is handed out once until it comes back. One that was delegated for a table and came back stays so, for the next.

use hyp::mapping::{Address, GRANULE, Pa, Range};

use super::{BLOCK, GIB, MAX_RANGES};

/// Granules that are kept account of, at most.
const MOST: usize = 8192;
const WORD: usize = 64;
/// Tables for parts of RAM that are in pages: two for each 2 MiB, the protected and the shared half, up to as many as the hypervisor has tables for.
const MOST_TABLES: u64 = 2048;

/// Bytes of granules for a realm that has so much RAM and so many CPUs.
pub fn wanted(ram: &[Range<Pa>], cpus: usize) -> u64 {
    // The hypervisor's own RAM and what is between banks count too: a few tables more.
    let entries = |size: u64| -> u64 {
        ram.iter().map(|bank| bank.end().div_ceil(size) - bank.start().get() / size).sum()
    };
    let tables = (2 * entries(BLOCK)).min(MOST_TABLES) + 2 * entries(GIB);
    // For devices a table of level 2 and one of level 3 each, at most; the roots, up to 16 of them; the descriptor, a granule to copy by;
    // for each REC its own, its auxiliary granules, its run.
    let others = 2 * MAX_RANGES as u64 + 16 + 2 + cpus as u64 * (2 + 2);
    (tables + others) * GRANULE
}

/// Which of them are what.
#[derive(Debug)]
pub struct Granules {
    start: u64,
    count: usize,
    used: [u64; MOST / WORD],
    delegated: [u64; MOST / WORD],
}

impl Granules {
    /// All of a range, as many as can be kept account of.
    pub fn new(range: Range<Pa>) -> Self {
        let count = ((range.size() / GRANULE) as usize).min(MOST);
        Self { start: range.start().get(), count, used: [0; MOST / WORD], delegated: [0; MOST / WORD] }
    }

    fn number(&self, pa: u64) -> Option<usize> {
        let number = (pa.checked_sub(self.start)? / GRANULE) as usize;
        (number < self.count).then_some(number)
    }

    fn find(&self, is_so: impl Fn(u64, u64) -> u64) -> Option<usize> {
        let words = self.used.iter().zip(&self.delegated);
        let found = words.enumerate().find_map(|(at, (&used, &delegated))| {
            let free = is_so(!used, delegated);
            (free != 0).then(|| at * WORD + free.trailing_zeros() as usize)
        });
        found.filter(|&number| number < self.count)
    }

    fn use_up(&mut self, number: usize) -> u64 {
        self.used[number / WORD] |= 1 << (number % WORD);
        self.start + number as u64 * GRANULE
    }

    /// A granule that is the host's.
    pub fn take(&mut self) -> Option<u64> {
        let number = self.find(|free, delegated| free & !delegated)?;
        Some(self.use_up(number))
    }

    /// `count` granules side by side, at a multiple of their size: only before any other was taken.
    pub fn take_first(&mut self, count: usize) -> Option<u64> {
        let is_new = self.used[0] == 0 && count <= WORD && count <= self.count;
        let fits = self.start.is_multiple_of(count as u64 * GRANULE);
        if !is_new || !fits {
            return None;
        }
        (0..count).for_each(|number| _ = self.use_up(number));
        Some(self.start)
    }

    /// A granule that has been delegated before, and is nothing.
    pub fn take_delegated(&mut self) -> Option<u64> {
        let number = self.find(|free, delegated| free & delegated)?;
        Some(self.use_up(number))
    }

    /// A granule comes back, delegated or not.
    pub fn put(&mut self, pa: u64, is_delegated: bool) {
        let Some(number) = self.number(pa) else { return };
        let bit = 1 << (number % WORD);
        self.used[number / WORD] &= !bit;
        match is_delegated {
            true => self.delegated[number / WORD] |= bit,
            false => self.delegated[number / WORD] &= !bit,
        }
    }

    /// How many are in use.
    pub fn in_use(&self) -> u64 {
        self.used.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 0x4000_0000;

    fn granules(count: u64) -> Granules {
        Granules::new(Range::new(START, count * GRANULE).unwrap())
    }

    #[test]
    fn each_granule_is_handed_out_once_until_it_comes_back() {
        let mut all = granules(70);
        assert_eq!(all.take_first(2), Some(START));
        assert_eq!(all.take_first(2), None);
        let mut taken: Vec<u64> = core::iter::from_fn(|| all.take()).collect();
        assert_eq!((taken.len(), all.in_use()), (68, 70));
        taken.dedup();
        assert_eq!(taken.len(), 68);
        all.put(taken[5], false);
        all.put(taken[6], true);
        all.put(START - GRANULE, false);
        assert_eq!((all.take(), all.take()), (Some(taken[5]), None));
        assert_eq!((all.take_delegated(), all.take_delegated()), (Some(taken[6]), None));
    }

    #[test]
    fn what_is_wanted_grows_with_ram_up_to_what_the_hypervisor_can_split() {
        let of = |gib: u64| wanted(&[Range::new(START, gib * GIB).unwrap()], 4) / GRANULE;
        assert!(of(1) > 1024 && of(1) < 1300, "{}", of(1));
        assert!(of(64) < 2500 && of(256) < 3000, "{} {}", of(64), of(256));
        assert!(of(256) < MOST as u64);
    }
}
