//! Requests to share random ranges of a realm's RAM with its host and to take them back, by several CPUs at once, and what every page must
//! hold meanwhile.
//!
//! Invariant: a page has a byte that says whether somebody has it, on which side it is, and whether it holds its pattern. Who has claimed a
//! page is the only one to look at it or to ask for it. A pattern is of the page's address and side: so a page that lost what it held, that
//! translates to another's memory, or to the other side, is seen.
//!
//! As a trial, for tests: how memory is reached and changed is the [`Subject`]'s.

use core::sync::atomic::{
    AtomicU8, AtomicU64, AtomicUsize,
    Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst},
};

use super::Side;
use crate::mapping::{Address, Pa, Range};
use crate::trial::Random;

const PAGE: u64 = 4096;
const BLOCK: usize = 512;

/// Somebody has the page.
const CLAIMED: u8 = 1 << 0;
/// It is decrypted.
const SHARED: u8 = 1 << 1;
/// It holds its pattern.
const WRITTEN: u8 = 1 << 2;

/// Words of a page that hold its pattern: offsets.
const WORDS: [u64; 3] = [0, 2040, 4088];
/// All pages of a range up to so many are written, and looked at; of a larger one some.
const ALL: usize = 32;
/// Others than the first and the last that are written of a larger one.
const SOME: usize = 6;
/// Pages that an exchange with the host takes at most.
const EXCHANGED: usize = 4;
/// One in so many ranges that became shared is exchanged with the host.
const EXCHANGE_EACH: u64 = 8;
/// How often a CPU looks for a range that nobody has, for one request.
const TRIES: usize = 1000;
/// Ranges that a CPU remembers as shared.
const REMEMBERED: usize = 32;

/// Whose memory is tried.
pub trait Subject {
    /// Brings a range to a side; `false` if that was refused.
    fn set(&self, range: Range<Pa>, side: Side) -> bool;
    /// The doubleword at an address of the linear map.
    fn read(&self, address: u64) -> u64;
    /// Stores one.
    fn write(&self, address: u64, value: u64);
    /// Has the host look at a shared range, doubleword `i` of which is [`exchanged`]`(seed, i)`, and complement it; `false` if it
    /// found something else.
    fn exchange(&self, range: Range<Pa>, seed: u64) -> bool;
    /// A point at which this CPU may be made to stand still.
    fn pass(&self) {}
}

/// What the host is to find in doubleword `i` of a range that is exchanged.
pub fn exchanged(seed: u64, i: u64) -> u64 {
    seed.wrapping_add(i).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// What a word of a page holds.
fn pattern(address: u64, shared: bool) -> u64 {
    let side = if shared { 0x5a5a_0000_a5a5_ffff } else { 0x3c3c_5a5a_c3c3_a5a5 };
    address.rotate_left(20) ^ side
}

/// What came of the requests, of all CPUs.
#[derive(Debug, Default)]
pub struct Tally {
    /// Requests to share, and to take back.
    pub made: [AtomicU64; 2],
    /// Requests that were refused.
    pub refused: AtomicU64,
    /// Requests for which no range was found that nobody had.
    pub busy: AtomicU64,
    /// Pages that changed sides.
    pub pages: AtomicU64,
    /// Pages that were looked at.
    pub looked: AtomicU64,
    /// The first address that held something else, or 0.
    pub wrong: AtomicU64,
    /// Ranges that were exchanged with the host.
    pub exchanges: AtomicU64,
    /// The first range that the host did not find as it was written, or was not written as the host should, or 0.
    pub lost: AtomicU64,
}

/// What one CPU remembers between requests.
#[derive(Debug)]
pub struct Worker {
    random: Random,
    shared: [(usize, usize); REMEMBERED],
    next: usize,
}

impl Worker {
    /// With the random numbers of a seed.
    pub fn new(seed: u64) -> Self {
        Self { random: Random::new(seed), shared: [(0, 0); REMEMBERED], next: 0 }
    }
}

/// RAM on which requests are made, and its pages.
#[derive(Debug)]
pub struct Requests<'a> {
    /// In ascending order, whole pages.
    parts: &'a [Range<Pa>],
    pages: &'a [AtomicU8],
    /// No more pages than these are asked to be shared at a time, or few more.
    most_shared: usize,
    shared: AtomicUsize,
    /// What came of it.
    pub tally: Tally,
}

impl<'a> Requests<'a> {
    /// Of the pages of `parts`, all encrypted and each with a byte, all zero, in `pages`; about `most_shared` pages are to be shared at a
    /// time.
    ///
    /// Nothing, if the bytes are fewer.
    pub fn new(parts: &'a [Range<Pa>], pages: &'a [AtomicU8], most_shared: usize) -> Option<Self> {
        let count: u64 = parts.iter().map(|part| part.size() / PAGE).sum();
        (count > 0 && count <= pages.len() as u64).then(|| Self {
            parts,
            pages: &pages[..count as usize],
            most_shared,
            shared: AtomicUsize::new(0),
            tally: Tally::default(),
        })
    }

    /// Pages that there are.
    pub fn pages(&self) -> usize {
        self.pages.len()
    }

    /// Pages that are shared now.
    pub fn shared(&self) -> usize {
        self.shared.load(SeqCst)
    }

    /// The address of page number `page`, and how many there are from it to the end of its part.
    fn place(&self, page: usize) -> (u64, usize) {
        let mut before = 0;
        for part in self.parts {
            let count = (part.size() / PAGE) as usize;
            if page < before + count {
                return (part.start().get() + (page - before) as u64 * PAGE, before + count - page);
            }
            before += count;
        }
        (0, 0)
    }

    fn range(&self, first: usize, count: usize) -> Option<Range<Pa>> {
        let (start, left) = self.place(first);
        Range::of_granules(start, count.min(left) as u64 * PAGE).ok()
    }

    /// Takes pages that nobody has; `false` if somebody has one of them.
    fn claim(&self, first: usize, count: usize) -> bool {
        for page in first..first + count {
            if self.pages[page].fetch_or(CLAIMED, AcqRel) & CLAIMED != 0 {
                self.release(first, page - first);
                return false;
            }
        }
        true
    }

    fn release(&self, first: usize, count: usize) {
        for page in &self.pages[first..first + count] {
            page.fetch_and(!CLAIMED, Release);
        }
    }

    /// Writes the pattern of a page that the caller has.
    fn fill(&self, subject: &impl Subject, page: usize) {
        let (address, _) = self.place(page);
        let shared = self.pages[page].load(Relaxed) & SHARED != 0;
        for word in WORDS {
            subject.write(address + word, pattern(address + word, shared));
        }
        self.pages[page].fetch_or(WRITTEN, Relaxed);
    }

    /// Looks at a page that the caller has, if it holds its pattern.
    fn look(&self, subject: &impl Subject, page: usize) {
        let state = self.pages[page].load(Relaxed);
        if state & WRITTEN == 0 {
            return;
        }
        let (address, _) = self.place(page);
        for at in WORDS.map(|word| address + word) {
            if subject.read(at) != pattern(at, state & SHARED != 0) {
                let _ = self.tally.wrong.compare_exchange(0, at, SeqCst, SeqCst);
            }
        }
        self.tally.looked.fetch_add(1, Relaxed);
    }

    /// Calls `each` with all pages of a small range, and with some of a larger one: its ends, and others at random.
    fn each(random: &mut Random, first: usize, count: usize, mut each: impl FnMut(usize)) {
        if count <= ALL {
            return (first..first + count).for_each(each);
        }
        each(first);
        each(first + count - 1);
        for _ in 0..SOME {
            each(first + 1 + random.below(count as u64 - 2) as usize);
        }
    }

    /// Writes every page's pattern: once, before anything is asked for, by one CPU.
    pub fn prepare(&self, subject: &impl Subject) {
        for page in 0..self.pages() {
            self.fill(subject, page);
            if page % BLOCK == 0 {
                subject.pass();
            }
        }
    }

    /// Looks at every page that holds its pattern, with no requests being made.
    pub fn look_at_all(&self, subject: &impl Subject) {
        for page in 0..self.pages() {
            self.look(subject, page);
            if page % BLOCK == 0 {
                subject.pass();
            }
        }
    }

    /// A range for a request: few pages or many, blocks or not. What is shared is found again more often than by chance.
    fn choose(&self, worker: &mut Worker) -> (usize, usize, Side) {
        let full = self.shared() >= self.most_shared;
        let random = &mut worker.random;
        if full || random.below(2) == 0 {
            let from = if full { 0 } else { random.below(REMEMBERED as u64) as usize };
            for offset in 0..REMEMBERED {
                let index = (from + offset) % REMEMBERED;
                let (first, count) = worker.shared[index];
                if count == 0 {
                    continue;
                }
                // All of it, a part, or more.
                return match random.below(4) {
                    0 => (first + random.below(count as u64) as usize, 1, Side::Encrypted),
                    1 => {
                        let before = (random.below(8) as usize).min(first);
                        (first - before, before + count + random.below(8) as usize, Side::Encrypted)
                    }
                    _ => {
                        worker.shared[index] = (0, 0);
                        (first, count, Side::Encrypted)
                    }
                };
            }
        }
        let count = match random.below(64) {
            0 => 1 + random.below(8 * BLOCK as u64) as usize,
            1..=3 => (1 + random.below(4) as usize) * BLOCK,
            4..=20 => 1 + random.below(BLOCK as u64) as usize,
            21..=40 => 1 + random.below(16) as usize,
            _ => 1,
        };
        let first = random.below(self.pages() as u64) as usize;
        // Whole blocks more often than not, where they are.
        let aligned = count.is_multiple_of(BLOCK) && random.below(4) != 0;
        let block = || {
            let address = self.place(first).0;
            let first = first.checked_sub((address / PAGE) as usize % BLOCK)?;
            self.place(first).0.is_multiple_of(BLOCK as u64 * PAGE).then_some(first)
        };
        let first = if aligned { block().unwrap_or(first) } else { first };
        (first, count, if full { Side::Encrypted } else { Side::Decrypted })
    }

    /// Makes `count` requests.
    pub fn ask(&self, subject: &impl Subject, worker: &mut Worker, count: u64) {
        for _ in 0..count {
            let found = (0..TRIES).find_map(|_| {
                let (first, count, side) = self.choose(worker);
                let first = first.min(self.pages() - 1);
                let count = count.min(self.place(first).1);
                if self.claim(first, count) {
                    return Some((first, count, side));
                }
                subject.pass();
                None
            });
            match found {
                Some((first, count, side)) => {
                    self.ask_one(subject, worker, (first, count), side);
                    self.release(first, count);
                    self.look_beside(subject, first, count);
                }
                None => _ = self.tally.busy.fetch_add(1, Relaxed),
            }
            subject.pass();
        }
    }

    /// Brings pages that the caller has to a side.
    fn ask_one(
        &self,
        subject: &impl Subject,
        worker: &mut Worker,
        (first, count): (usize, usize),
        side: Side,
    ) {
        let Some(range) = self.range(first, count) else { return };
        Self::each(&mut worker.random, first, count, |page| self.look(subject, page));
        let made = &self.tally.made[usize::from(side == Side::Encrypted)];
        made.fetch_add(1, Relaxed);
        if !subject.set(range, side) {
            self.tally.refused.fetch_add(1, Relaxed);
            return;
        }
        let states = &self.pages[first..first + count];
        let before = states.iter().filter(|state| state.load(Relaxed) & SHARED != 0).count();
        match side {
            Side::Decrypted => {
                states.iter().for_each(|state| state.store(CLAIMED | SHARED, Relaxed));
                self.shared.fetch_add(count - before, SeqCst);
                self.tally.pages.fetch_add((count - before) as u64, Relaxed);
                worker.shared[worker.next] = (first, count);
                worker.next = (worker.next + 1) % REMEMBERED;
                if worker.random.below(EXCHANGE_EACH) == 0 {
                    self.exchange(subject, worker, first, count.min(EXCHANGED));
                }
            }
            Side::Encrypted => {
                // What was the realm's own has kept what it held.
                Self::each(&mut worker.random, first, count, |page| {
                    if self.pages[page].load(Relaxed) & SHARED == 0 {
                        self.look(subject, page);
                    }
                });
                let shared = states.iter().filter(|state| state.load(Relaxed) & SHARED != 0);
                shared.for_each(|state| state.store(CLAIMED, Relaxed));
                self.shared.fetch_sub(before, SeqCst);
                self.tally.pages.fetch_add(before as u64, Relaxed);
            }
        }
        Self::each(&mut worker.random, first, count, |page| self.fill(subject, page));
    }

    /// Has the host look at shared pages that the caller has.
    fn exchange(&self, subject: &impl Subject, worker: &mut Worker, first: usize, count: usize) {
        let Some(range) = self.range(first, count) else { return };
        let (start, seed) = (range.start().get(), worker.random.word());
        for i in 0..range.size() / 8 {
            subject.write(start + 8 * i, exchanged(seed, i));
        }
        let answered = subject.exchange(range, seed);
        let holds =
            answered && (0..range.size() / 8).all(|i| subject.read(start + 8 * i) == !exchanged(seed, i));
        self.tally.exchanges.fetch_add(1, Relaxed);
        if !holds {
            let _ = self.tally.lost.compare_exchange(0, start, SeqCst, SeqCst);
        }
    }

    /// Looks at the pages before and after a range, if nobody has them.
    fn look_beside(&self, subject: &impl Subject, first: usize, count: usize) {
        let after = first + count;
        for page in [first.checked_sub(1), (after < self.pages()).then_some(after)].into_iter().flatten() {
            if self.claim(page, 1) {
                self.look(subject, page);
                self.release(page, 1);
            }
        }
    }

    /// Takes back whatever is shared, by one CPU, with no other requests being made.
    pub fn finish(&self, subject: &impl Subject) {
        let is_shared = |page: usize| self.pages[page].load(Acquire) & SHARED != 0;
        let (mut worker, mut page) = (Worker::new(1), 0);
        while page < self.pages() {
            if !is_shared(page) {
                page += 1;
                continue;
            }
            let (_, left) = self.place(page);
            let count = (1..left).find(|&count| !is_shared(page + count)).unwrap_or(left);
            if self.claim(page, count) {
                self.ask_one(subject, &mut worker, (page, count), Side::Encrypted);
                self.release(page, count);
            }
            page += count;
            subject.pass();
        }
    }
}
