//! Requests at random pages of a region (read-only, writable, executable or not, valid or not) while other CPUs read there, and what every
//! CPU must find in each page.
//!
//! Invariant: each page has a word that says what it may be used for, or that somebody is changing that. Who finds the same word before
//! and after it looked at the page, and no change under way, must have seen just what the word says. So readers need not stop for requests,
//! and a translation that was lost, is late or came too early is seen.
//!
//! Blocks are joined again now and then, so that there is always something to split.
//!
//! As a trial, for tests: the exception level, the map and the way to look at a page are the [`Subject`]'s.

use core::cell::Cell;
use core::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Relaxed, SeqCst},
    fence,
};

use super::Random;
use crate::mapping::{Mmu, Pa, Range};
use crate::stage1::{LinearMap, Permissions, SetMemoryError};

const PAGE: u64 = 4096;
/// Bytes of the region: four blocks of 2 MiB.
pub const REGION: u64 = 8 << 20;
/// Pages of it.
pub const PAGES: usize = (REGION / PAGE) as usize;
/// Pages of a block.
pub const BLOCK_PAGES: usize = 512;
/// Pages at its start that stay valid in a region of which [`Requests::read`] is told so.
pub const LASTING: usize = PAGES / 2;
/// Pages of a round of a reader: between two of them it may stand still.
pub const ROUND: usize = 64;
/// The first of as many that half of all requests begin in, and every second round is of: what TLBs still hold there is found out.
const HOT: usize = BLOCK_PAGES + 100;

// Calls of the host to a hypervisor that is built for trials.

/// Gives EL2's requests a region: its start. 0 if it is ready.
pub const PREPARE: u32 = 0xc600_0015;
/// Makes requests of EL2's map at random: how many, seed. 0, made, refused.
pub const ASK: u32 = 0xc600_0016;
/// Makes one: a [`Request`] as a number, first page, pages. 0 if it was made, and the ticks it took.
pub const ASK_ONE: u32 = 0xc600_0017;
/// Reads at EL2 until told to stop, and stands still if it is asked to unless sizes change in place. 0, rounds, first wrong address.
pub const READ: u32 = 0xc600_0018;
/// Has readers at EL2 stop (1), or lets those read that come from now on (0).
pub const STOP: u32 = 0xc600_0019;
/// Looks at each page of the region at EL2 on the calling CPU. 0, the first wrong address or 0, pages.
pub const LOOK: u32 = 0xc600_001a;
/// Leaves of EL2's map in a range: start, size. 0, then those of level 1, 2 and 3.
pub const CENSUS: u32 = 0xc600_001b;
/// What EL2 knows of the CPUs: 0, the phase (0 to 2), the level of FEAT_BBM of the set, bytes of tables.
pub const KNOWN: u32 = 0xc600_001c;
/// Those that take a region.
pub const CALLS: [u32; 5] = [ASK, ASK_ONE, READ, STOP, LOOK];

/// What a page may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use(u32);

impl Use {
    const VALID: u32 = 1 << 0;
    const WRITE: u32 = 1 << 1;
    const EXECUTE: u32 = 1 << 2;
    /// Valid, writable: how the region begins.
    pub const DATA: Self = Self(Self::VALID | Self::WRITE);

    /// It translates.
    pub fn is_valid(self) -> bool {
        self.0 & Self::VALID != 0
    }
    /// A store goes through.
    pub fn is_writable(self) -> bool {
        self.0 & (Self::VALID | Self::WRITE) == Self::VALID | Self::WRITE
    }
    /// A fetch goes through.
    pub fn is_executable(self) -> bool {
        self.0 & (Self::VALID | Self::EXECUTE) == Self::VALID | Self::EXECUTE
    }
}

/// A request for a range of pages. None is ever writable and executable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// `set_memory_ro`
    ReadOnly,
    /// `set_memory_rw`: what could be executed no longer can.
    Writable,
    /// `set_memory_x`: what could be written no longer can.
    Executable,
    /// `set_memory_nx`
    NoExecute,
    /// `set_memory_valid(false)`: what it may be used for is kept.
    Invalid,
    /// `set_memory_valid(true)`
    Valid,
}

impl Request {
    /// All there are, in the order of their numbers.
    pub const ALL: [Self; 6] =
        [Self::ReadOnly, Self::Writable, Self::Executable, Self::NoExecute, Self::Invalid, Self::Valid];

    /// Its name in figures.
    pub fn name(self) -> &'static str {
        ["ro", "rw", "x", "nx", "invalid", "valid"][self as usize]
    }

    /// Makes it of the pages of `range`.
    ///
    /// # Errors
    /// As [`LinearMap::set_memory_ro`].
    pub fn make<R: Permissions, M: Mmu>(
        self,
        map: &LinearMap<R, M>,
        range: Range<Pa>,
    ) -> Result<(), SetMemoryError> {
        match self {
            Self::ReadOnly => map.set_memory_ro(range),
            Self::Writable => map.set_memory_rw(range),
            Self::Executable => map.set_memory_x(range),
            Self::NoExecute => map.set_memory_nx(range),
            Self::Invalid => map.set_memory_valid(range, false),
            Self::Valid => map.set_memory_valid(range, true),
        }
    }

    /// What a page may be used for after it.
    pub fn of(self, before: Use) -> Use {
        let (set, clear) = match self {
            Self::ReadOnly => (0, Use::WRITE),
            Self::Writable => (Use::WRITE, Use::EXECUTE),
            Self::Executable => (Use::EXECUTE, Use::WRITE),
            Self::NoExecute => (0, Use::EXECUTE),
            Self::Invalid => (0, Use::VALID),
            Self::Valid => (Use::VALID, 0),
        };
        Use(before.0 & !clear | set)
    }
}

/// Whose translations change, as the running CPU sees them.
pub trait Subject {
    /// Makes a request of `size` bytes at `start`, in force on all CPUs when it returns; `false` if it was refused.
    fn set(&self, request: Request, start: u64, size: u64) -> bool;
    /// Whether the page at `at` shows what `usage` says, where others may be changing that meanwhile. `lasting` pages stay valid.
    fn glance(&self, at: u64, usage: Use, lasting: bool) -> bool;
    /// Whether it does where nobody changes anything: loads, stores, fetches, and what it holds.
    fn look(&self, at: u64, usage: Use) -> bool;
    /// Makes one block of the pages from `start` on, [`BLOCK_PAGES`] that are all valid and writable, if the policy has blocks now; `false`
    /// if that was refused.
    fn join(&self, start: u64) -> bool;
}

/// A subject, and how long its last request took.
pub struct Timed<'a, S, C> {
    subject: &'a S,
    clock: C,
    ticks: Cell<u64>,
}

impl<'a, S: Subject, C: Fn() -> u64> Timed<'a, S, C> {
    /// By the ticks of `clock`.
    pub fn new(subject: &'a S, clock: C) -> Self {
        Self { subject, clock, ticks: Cell::new(0) }
    }
    /// How long the last request took.
    pub fn ticks(&self) -> u64 {
        self.ticks.get()
    }
}

impl<S: Subject, C: Fn() -> u64> Subject for Timed<'_, S, C> {
    fn set(&self, request: Request, start: u64, size: u64) -> bool {
        let before = (self.clock)();
        let made = self.subject.set(request, start, size);
        self.ticks.set((self.clock)() - before);
        made
    }
    fn glance(&self, at: u64, usage: Use, lasting: bool) -> bool {
        self.subject.glance(at, usage, lasting)
    }
    fn look(&self, at: u64, usage: Use) -> bool {
        self.subject.look(at, usage)
    }
    fn join(&self, start: u64) -> bool {
        self.subject.join(start)
    }
}

/// Somebody is changing the page.
const BUSY: u32 = 1 << 3;
/// Above it a number that no two changes share, for as long as a reader looks.
const CHANGE: u32 = 1 << 4;

/// What a page holds behind its code, in two places.
pub fn pattern(address: u64) -> u64 {
    address ^ 0x6996_5a5a_a5a5_9669
}
/// Where it does, from the start of the page.
pub const PATTERNS: [u64; 2] = [8, PAGE - 8];
/// What the code at the start of a page returns.
pub fn number(address: u64) -> u64 {
    (address / PAGE) & 0xffff
}
/// That code: `movz w0, #number; ret`.
pub fn code(address: u64) -> u64 {
    0xd65f_03c0_5280_0000 | number(address) << 5
}
/// Where CPU number `cpu` writes in a page that it may write.
pub fn own_word(page: u64, cpu: usize) -> u64 {
    page + 64 * (1 + cpu as u64 % 32)
}

/// What came of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// Requests that were made.
    pub made: u64,
    /// Requests that were refused.
    pub refused: u64,
}

/// A region, what its pages may be used for, and what was seen there.
pub struct Requests {
    start: AtomicU64,
    pages: [AtomicU32; PAGES],
    stop: AtomicU32,
    /// The first address that did not show a request to who made it, or 0.
    unseen: AtomicU64,
}

impl Default for Requests {
    fn default() -> Self {
        Self::new()
    }
}

impl Requests {
    /// Of no region yet.
    pub const fn new() -> Self {
        Self {
            start: AtomicU64::new(0),
            pages: [const { AtomicU32::new(Use::DATA.0) }; PAGES],
            stop: AtomicU32::new(0),
            unseen: AtomicU64::new(0),
        }
    }

    /// Gives it the region at `start`: [`REGION`] bytes, valid and writable, filled as its pages are to be.
    pub fn prepare(&self, start: u64) {
        self.pages.iter().for_each(|page| page.store(Use::DATA.0, SeqCst));
        self.unseen.store(0, SeqCst);
        self.start.store(start, SeqCst);
    }

    /// Where it lies: 0 before [`Requests::prepare`].
    pub fn start(&self) -> u64 {
        self.start.load(SeqCst)
    }

    /// Takes the pages for a change, all or none.
    fn take(&self, pages: &[AtomicU32]) -> bool {
        let taken = pages.iter().position(|page| {
            let change = |word: u32| (word & BUSY == 0).then(|| (word | BUSY).wrapping_add(CHANGE));
            page.fetch_update(SeqCst, SeqCst, change).is_err()
        });
        let Some(count) = taken else { return true };
        pages[..count].iter().for_each(|page| _ = page.fetch_and(!BUSY, SeqCst));
        false
    }

    /// Makes one request, unless somebody is changing one of its pages: then `None`. Whether it was made.
    pub fn ask_one(
        &self,
        subject: &impl Subject,
        request: Request,
        first: usize,
        count: usize,
    ) -> Option<bool> {
        let pages = self.pages.get(first..first.checked_add(count)?)?;
        if !self.take(pages) {
            return None;
        }
        // Looked at before too, so that what a TLB holds is seen to be gone afterwards.
        let ends = [(first, pages.first()?), (first + count - 1, pages.last()?)];
        let shows = |request: Option<Request>| {
            ends.into_iter().find(|&(number, page)| {
                let usage = Use(page.load(SeqCst) % BUSY);
                let usage = request.map_or(usage, |request| request.of(usage));
                !subject.glance(self.start() + number as u64 * PAGE, usage, false)
            })
        };
        let unseen = shows(None);
        let made = subject.set(request, self.start() + first as u64 * PAGE, count as u64 * PAGE);
        if let Some((number, _)) = unseen.or_else(|| shows(Some(request).filter(|_| made))) {
            let at = self.start() + number as u64 * PAGE;
            let _ = self.unseen.compare_exchange(0, at, SeqCst, SeqCst);
        }
        release(pages, |usage| if made { request.of(usage) } else { usage });
        Some(made)
    }

    /// Makes block number `block` valid and writable and joins it, so that there is something to split again; unless somebody is changing
    /// one of its pages: then `None`. Whether it was made.
    fn ask_block(&self, subject: &impl Subject, block: usize) -> Option<bool> {
        let pages = self.pages.chunks_exact(BLOCK_PAGES).nth(block)?;
        if !self.take(pages) {
            return None;
        }
        let size = BLOCK_PAGES as u64 * PAGE;
        let start = self.start() + block as u64 * size;
        let valid = subject.set(Request::Valid, start, size);
        let writable = subject.set(Request::Writable, start, size);
        let made = valid && writable && subject.join(start);
        release(pages, |usage| {
            let usage = if valid { Request::Valid.of(usage) } else { usage };
            if writable { Request::Writable.of(usage) } else { usage }
        });
        Some(made)
    }

    /// Makes `count` requests at random; `lasting` pages at the start stay valid. Between two of them `between` runs.
    pub fn ask(
        &self,
        subject: &impl Subject,
        random: &mut Random,
        count: u64,
        lasting: usize,
        mut between: impl FnMut(),
    ) -> Asked {
        let mut asked = Asked::default();
        while asked.made + asked.refused < count {
            let (mut request, first, pages) = choose(random);
            if request == Request::Invalid && first < lasting {
                request = Request::NoExecute;
            }
            let made = match random.below(24) {
                0 => self.ask_block(subject, first / BLOCK_PAGES),
                _ => self.ask_one(subject, request, first, pages),
            };
            match made {
                Some(true) => asked.made += 1,
                Some(false) => asked.refused += 1,
                // Others hold it, and may wait for this CPU.
                None => {}
            }
            between();
        }
        asked
    }

    /// Looks at page number `page` while others may change it; `false` if it showed what it must not.
    fn glance(&self, subject: &impl Subject, page: usize, lasting: usize) -> bool {
        let word = &self.pages[page];
        let before = word.load(SeqCst);
        if before & BUSY != 0 {
            return true;
        }
        fence(SeqCst);
        let is_so = subject.glance(self.start() + page as u64 * PAGE, Use(before % BUSY), page < lasting);
        fence(SeqCst);
        is_so || word.load(SeqCst) != before
    }

    /// Reads until told to stop, a round at least, `between` after each [`ROUND`] pages. The rounds, and the first address that was wrong
    /// or 0.
    pub fn read(&self, subject: &impl Subject, lasting: usize, mut between: impl FnMut()) -> (u64, u64) {
        let (mut rounds, mut wrong) = (0, 0);
        loop {
            let first = if rounds % 2 == 0 { HOT } else { rounds as usize / 2 * ROUND % PAGES };
            let found = (first..first + ROUND).find(|&page| !self.glance(subject, page, lasting));
            if let Some(page) = found.filter(|_| wrong == 0) {
                wrong = self.start() + page as u64 * PAGE;
            }
            rounds += 1;
            between();
            if self.stop.load(SeqCst) != 0 {
                return (rounds, wrong);
            }
        }
    }

    /// Has readers stop, or lets those read that come from now on.
    pub fn stop(&self, stop: bool) {
        self.stop.store(u32::from(stop), SeqCst);
    }

    /// Looks at every page, while nobody changes anything: the first address that is wrong, or was when a request was made, or 0.
    pub fn look(&self, subject: &impl Subject) -> u64 {
        let start = self.start();
        let mut pages = (start..).step_by(PAGE as usize).zip(&self.pages);
        let wrong = pages.find(|(at, page)| !subject.look(*at, Use(page.load(Relaxed) % BUSY)));
        wrong.map_or(self.unseen.load(SeqCst), |(at, _)| at)
    }

    /// How many pages may be read, written and executed.
    pub fn counts(&self) -> [usize; 3] {
        [Use::is_valid, Use::is_writable, Use::is_executable]
            .map(|may| self.pages.iter().filter(|page| may(Use(page.load(Relaxed) % BUSY))).count())
    }
}

/// Gives back pages that were taken, each with another use.
fn release(pages: &[AtomicU32], usage: impl Fn(Use) -> Use) {
    for page in pages {
        let word = page.load(SeqCst) & !BUSY;
        page.store(word - word % BUSY + usage(Use(word % BUSY)).0, SeqCst);
    }
}

/// What is asked for, from which page on, and for how many.
fn choose(random: &mut Random) -> (Request, usize, usize) {
    // What was made invalid does not stay so for long.
    let request = match random.below(8) {
        number @ 0..6 => Request::ALL[number as usize],
        _ => Request::Valid,
    };
    let (from, of) = if random.below(2) == 0 { (HOT, ROUND) } else { (0, PAGES) };
    let first = from + random.below(of as u64) as usize;
    let most = match random.below(16) {
        0..8 => 1,
        8..15 => 24,
        _ => 700,
    };
    let count = 1 + random.below(most) as usize;
    (request, first, count.min(PAGES - first))
}

#[cfg(test)]
mod tests {
    use core::cell::RefCell;
    use std::collections::HashMap;
    use std::sync::Mutex;
    use std::vec::Vec;

    use super::*;

    const START: u64 = 0x4000_0000;

    /// Pages as somebody else keeps them.
    #[derive(Default)]
    struct Pages(RefCell<HashMap<u64, Use>>, bool, Cell<u64>);

    impl Subject for Pages {
        fn set(&self, request: Request, start: u64, size: u64) -> bool {
            let mut pages = self.0.borrow_mut();
            for at in (start..start + size).step_by(PAGE as usize) {
                let page = pages.entry(at).or_insert(Use::DATA);
                *page = request.of(*page);
            }
            !self.1
        }
        fn glance(&self, at: u64, usage: Use, lasting: bool) -> bool {
            (!lasting || usage.is_valid()) && self.look(at, usage)
        }
        fn look(&self, at: u64, usage: Use) -> bool {
            *self.0.borrow_mut().entry(at).or_insert(Use::DATA) == usage
        }
        fn join(&self, start: u64) -> bool {
            self.2.set(self.2.get() + 1);
            let block = (start..).step_by(PAGE as usize).take(BLOCK_PAGES);
            start.is_multiple_of(2 << 20) && block.into_iter().all(|at| self.look(at, Use::DATA))
        }
    }

    #[test]
    fn what_is_asked_for_is_what_is_found() {
        let (requests, pages) = (Requests::new(), Pages::default());
        requests.prepare(START);
        let asked = requests.ask(&pages, &mut Random::new(3), 2000, LASTING, || {});
        assert_eq!(asked, Asked { made: 2000, refused: 0 });
        assert_eq!(requests.look(&pages), 0);
        let [valid, writable, executable] = requests.counts();
        assert!((40..200).contains(&pages.2.get()), "{} blocks", pages.2.get());
        assert!(valid < PAGES && writable > 0 && executable > 0 && writable + executable <= valid);
        assert!((0..PAGES).all(|page| requests.glance(&pages, page, LASTING)));
    }

    #[test]
    fn a_page_that_differs_and_a_request_that_is_refused_are_told() {
        let (requests, pages) = (Requests::new(), Pages::default());
        requests.prepare(START);
        assert_eq!(requests.ask_one(&pages, Request::ReadOnly, 7, 2), Some(true));
        pages.set(Request::Writable, START + 8 * PAGE, PAGE);
        assert_eq!(requests.look(&pages), START + 8 * PAGE);
        assert!(requests.glance(&pages, 7, 0) && !requests.glance(&pages, 8, 0));
        let refusing = Pages(RefCell::default(), true, Cell::default());
        assert_eq!(requests.ask_one(&refusing, Request::Valid, PAGES - 1, 1), Some(false));
        assert_eq!(requests.ask_one(&refusing, Request::Valid, PAGES - 1, 2), None);
    }

    #[test]
    fn who_asks_notices_what_is_not_in_force() {
        struct Lazy(Pages);
        impl Subject for Lazy {
            fn set(&self, _: Request, _: u64, _: u64) -> bool {
                true
            }
            fn glance(&self, at: u64, usage: Use, _: bool) -> bool {
                self.0.look(at, usage)
            }
            fn look(&self, _: u64, _: Use) -> bool {
                true
            }
            fn join(&self, _: u64) -> bool {
                true
            }
        }
        let requests = Requests::new();
        requests.prepare(START);
        let lazy = Lazy(Pages::default());
        let times = Cell::new(0);
        let timed = Timed::new(&lazy, || times.replace(times.get() + 7));
        assert_eq!((requests.ask_one(&timed, Request::Valid, 4, 3), timed.ticks()), (Some(true), 7));
        assert_eq!(requests.ask_one(&lazy, Request::Valid, 4, 3), Some(true));
        assert_eq!(requests.look(&lazy), 0);
        assert_eq!(requests.ask_one(&lazy, Request::ReadOnly, 4, 3), Some(true));
        assert_eq!(requests.look(&lazy), START + 4 * PAGE);
    }

    #[test]
    fn what_somebody_is_changing_is_nobody_elses_and_not_judged() {
        let (requests, pages) = (Requests::new(), Pages::default());
        requests.prepare(START);
        assert!(requests.take(&requests.pages[10..20]));
        assert_eq!(requests.ask_one(&pages, Request::ReadOnly, 5, 6), None);
        // None of its pages was kept.
        assert_eq!(requests.ask_one(&pages, Request::ReadOnly, 5, 5), Some(true));
        pages.set(Request::Invalid, START + 12 * PAGE, PAGE);
        assert!(requests.glance(&pages, 12, 0));
        assert!(!requests.glance(&Pages::default(), 5, 0));
    }

    #[test]
    fn a_page_that_changed_while_it_was_looked_at_is_not_judged() {
        struct Late<'a>(&'a Requests, Pages);
        impl Subject for Late<'_> {
            fn set(&self, request: Request, start: u64, size: u64) -> bool {
                self.1.set(request, start, size)
            }
            fn glance(&self, _: u64, _: Use, _: bool) -> bool {
                self.0.ask_one(&self.1, Request::Valid, 3, 1);
                false
            }
            fn look(&self, _: u64, _: Use) -> bool {
                false
            }
            fn join(&self, _: u64) -> bool {
                false
            }
        }
        let requests = Requests::new();
        requests.prepare(START);
        let late = Late(&requests, Pages::default());
        assert!(requests.glance(&late, 3, 0) && !requests.glance(&late, 4, 0));
    }

    #[test]
    fn many_who_ask_at_once_never_have_the_same_page() {
        struct Shared(Vec<Mutex<()>>);
        impl Subject for Shared {
            fn set(&self, _: Request, start: u64, size: u64) -> bool {
                let first = (start - START) / PAGE;
                let pages = &self.0[first as usize..(first + size / PAGE) as usize];
                pages.iter().all(|page| page.try_lock().is_ok_and(|_held| true))
            }
            fn glance(&self, _: u64, _: Use, _: bool) -> bool {
                true
            }
            fn look(&self, _: u64, _: Use) -> bool {
                true
            }
            fn join(&self, start: u64) -> bool {
                self.set(Request::Valid, start, BLOCK_PAGES as u64 * PAGE)
            }
        }
        let requests = Requests::new();
        requests.prepare(START);
        let shared = Shared((0..PAGES).map(|_| Mutex::new(())).collect());
        std::thread::scope(|scope| {
            for number in 1..=4 {
                let (requests, shared) = (&requests, &shared);
                scope.spawn(move || {
                    let asked = requests.ask(shared, &mut Random::new(number), 500, 0, || {});
                    assert_eq!(asked, Asked { made: 500, refused: 0 });
                });
            }
        });
    }

    #[test]
    fn no_request_makes_a_page_writable_and_executable() {
        let mut usage = Use::DATA;
        let mut random = Random::new(5);
        for _ in 0..1000 {
            usage = choose(&mut random).0.of(usage);
            assert!(!(usage.is_writable() && usage.is_executable()));
            assert!(usage.is_valid() || !(usage.is_writable() || usage.is_executable()));
        }
    }

    #[test]
    fn the_code_of_a_page_is_its_number_and_a_return() {
        // By llvm-mc: movz w0, #18; ret.
        assert_eq!((number(0x4001_2000), code(0x4001_2000)), (18, 0xd65f_03c0_5280_0240));
    }
}
