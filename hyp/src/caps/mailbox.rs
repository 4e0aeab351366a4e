//! What a CPU that comes with its MMU off and one that lets it in tell each other.
//!
//! Invariants:
//! - A line has one writer: [`Down`] who lets in, [`Up`] the newcomer. Each fills whole cache lines, so that nobody's write-back takes the
//!   other's words with it (Arm ARM B2.7, D7.5.9).
//! - The newcomer reads and writes past the caches, with single loads and stores of 64 bits: no exclusives (B2.12). So the other side cleans
//!   what it writes, and invalidates what it reads, each to the point of coherency and to the end (DSB).
//! - A ticket is good once. Who finds none offered or released, or another state, turns itself off: also one that comes when nobody waits
//!   for it any more.
//!
//! A ticket, as the word of the down line: its number at bit 2, and at bit 0 what became of it.
//!
//! | state | written by | the newcomer |
//! |---|---|---|
//! | 0 revoked | who gave up waiting, or whose CPU went off | turns itself off |
//! | 1 offered | who is about to ask the firmware | writes its registers, then the ticket's number, and waits for another state |
//! | 2 released | who has let it in | invalidates its TLBs, turns its MMU on; also after a suspend that lost its context |
//! | 3 denied | who will not let it in | turns itself off |

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::detect::IdRegisters;

/// Bytes of a line: as much as the largest cache line of a CPU that is there (A64FX).
pub const LINE: usize = 256;
const WORDS: usize = LINE / 8;

/// What the newcomer is told.
#[derive(Debug)]
#[repr(C, align(256))]
pub struct Down([AtomicU64; WORDS]);

/// What it says: its ID registers in the order of [`IdRegisters`], and the number of the ticket that they answer.
#[derive(Debug)]
#[repr(C, align(256))]
pub struct Up([AtomicU64; WORDS]);

/// Both lines of one CPU. The newcomer's code knows where they lie.
#[derive(Debug)]
#[repr(C)]
pub struct Mailbox {
    down: Down,
    up: Up,
}

/// The word of [`Up`] after the registers.
const ANSWERED: usize = size_of::<IdRegisters>() / 8;
const _: () = assert!(ANSWERED == 7 && size_of::<Mailbox>() == 2 * LINE);

const REVOKED: u64 = 0;
const OFFERED: u64 = 1;
const RELEASED: u64 = 2;
const DENIED: u64 = 3;

/// What a newcomer finds and does, by the word of the down line: for who writes that side in another way than [`newcomer_macros!`](crate::newcomer_macros).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Report under this number, and look again.
    Report(u64),
    /// Go on.
    GoOn,
    /// Turn off.
    TurnOff,
}

impl Told {
    /// What the word says.
    pub const fn decode(word: u64) -> Self {
        match word & 3 {
            OFFERED => Self::Report(word >> 2),
            RELEASED => Self::GoOn,
            _ => Self::TurnOff,
        }
    }
}

/// The mailbox of one CPU, from the side of who lets it in.
pub trait Lines {
    /// Writes the word of the down line, and makes it known to who reads past the caches before this returns.
    fn publish(&self, word: u64);
    /// Reads the eight words of the up line as they are in memory: what is cached of it is dropped first.
    fn look(&self) -> [u64; ANSWERED + 1];
}

impl Default for Mailbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Mailbox {
    /// No ticket. To be cleaned before its CPU is started.
    pub const fn new() -> Self {
        Self {
            down: Down([const { AtomicU64::new(0) }; WORDS]),
            up: Up([const { AtomicU64::new(0) }; WORDS]),
        }
    }

    /// [`Lines`] with `maintain`, which cleans and invalidates a number of bytes at an address to the point of coherency and waits for it.
    pub fn with<F: Fn(usize, usize)>(&self, maintain: F) -> Maintained<'_, F> {
        Maintained { mailbox: self, maintain }
    }
}

/// See [`Mailbox::with`].
#[derive(Debug)]
pub struct Maintained<'m, F> {
    mailbox: &'m Mailbox,
    maintain: F,
}

impl<F: Fn(usize, usize)> Lines for Maintained<'_, F> {
    fn publish(&self, word: u64) {
        let line = &self.mailbox.down.0[0];
        line.store(word, Relaxed);
        (self.maintain)(line.as_ptr() as usize, LINE);
    }
    fn look(&self) -> [u64; ANSWERED + 1] {
        let line = &self.mailbox.up.0;
        // Never written on this side, so this drops it.
        (self.maintain)(line.as_ptr() as usize, LINE);
        core::array::from_fn(|word| line[word].load(Relaxed))
    }
}

/// A ticket that was offered. Its CPU may come at any moment until it was revoked.
#[must_use = "who was offered a ticket waits for another word"]
#[derive(Debug)]
pub struct Offered<'l, L: Lines> {
    lines: &'l L,
    number: u64,
}

/// A ticket whose CPU has said what it is, and waits.
#[must_use = "its CPU waits"]
#[derive(Debug)]
pub struct Reported<'l, L: Lines> {
    lines: &'l L,
    number: u64,
    /// What it is.
    pub registers: IdRegisters,
}

/// No report came in time. The ticket is revoked: who comes late turns itself off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoReport;

/// Offers ticket `number`, which was not offered to this CPU before.
pub fn offer<L: Lines>(lines: &L, number: u64) -> Offered<'_, L> {
    lines.publish(number << 2 | OFFERED);
    Offered { lines, number }
}

/// Takes back whatever the CPU was told: it is to turn itself off when it comes.
pub fn revoke(lines: &impl Lines) {
    lines.publish(REVOKED);
}

/// Says that a CPU that was let in may come back: it goes off in a way that may lose its context.
pub fn keep(lines: &impl Lines) {
    lines.publish(RELEASED);
}

impl<'l, L: Lines> Offered<'l, L> {
    /// Waits for the report for as long as `is_patient` says.
    ///
    /// # Errors
    /// [`NoReport`].
    pub fn report(self, mut is_patient: impl FnMut() -> bool) -> Result<Reported<'l, L>, NoReport> {
        loop {
            if self.lines.look()[ANSWERED] == self.number {
                // Written before the number, in the same cache line (of 64 bytes at least): what is read now is no older than that.
                let [midr, mmfr0, mmfr1, mmfr2, mmfr3, isar0, pfr1, _] = self.lines.look();
                let registers = IdRegisters { midr, mmfr0, mmfr1, mmfr2, mmfr3, isar0, pfr1 };
                return Ok(Reported { lines: self.lines, number: self.number, registers });
            }
            if !is_patient() {
                self.revoke();
                return Err(NoReport);
            }
        }
    }

    /// Gives up: who comes turns itself off.
    pub fn revoke(self) {
        revoke(self.lines);
    }
}

impl<L: Lines> Reported<'_, L> {
    /// Lets it in.
    pub fn release(self) {
        self.lines.publish(self.number << 2 | RELEASED);
    }
    /// Sends it away.
    pub fn deny(self) {
        self.lines.publish(self.number << 2 | DENIED);
    }
}

/// The newcomer's side as an assembler macro, text for `global_asm!`: `ask_admission mailbox, off` with the address of the CPU's
/// [`Mailbox`] in a register goes on when the CPU was let in, and branches to `off` when it is to turn itself off. It runs with the
/// MMU and the caches off, at EL2 or EL1. Changes x0 to x9.
#[macro_export]
macro_rules! newcomer_macros {
    () => {
        r#"
    .macro ask_admission mailbox, off
    ldr     x0, [\mailbox]
1:  and     x1, x0, #3
    cmp     x1, #2                      // released
    b.eq    3f
    cmp     x1, #1                      // offered
    b.ne    \off
    lsr     x2, x0, #2
    mrs     x3, midr_el1
    mrs     x4, id_aa64mmfr0_el1
    stp     x3, x4, [\mailbox, #256]
    mrs     x3, id_aa64mmfr1_el1
    mrs     x4, s3_0_c0_c7_2            // ID_AA64MMFR2_EL1
    stp     x3, x4, [\mailbox, #256 + 16]
    mrs     x3, s3_0_c0_c7_3            // ID_AA64MMFR3_EL1
    mrs     x4, id_aa64isar0_el1
    stp     x3, x4, [\mailbox, #256 + 32]
    mrs     x3, id_aa64pfr1_el1
    str     x3, [\mailbox, #256 + 48]
    dsb     sy
    str     x2, [\mailbox, #256 + 56]
    dsb     sy
2:  yield
    ldr     x1, [\mailbox]
    cmp     x1, x0
    b.eq    2b
    mov     x0, x1
    b       1b
3:
    .endm
"#
    };
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    /// A newcomer that answers when it is looked at for the `after`th time.
    struct Fake {
        down: Cell<u64>,
        up: Cell<[u64; 8]>,
        said: RefCell<Vec<u64>>,
        looks: Cell<u32>,
        after: u32,
    }

    impl Fake {
        fn new(after: u32) -> Self {
            Self {
                down: Cell::new(0),
                up: Cell::default(),
                said: RefCell::default(),
                looks: Cell::new(0),
                after,
            }
        }
    }

    impl Lines for Fake {
        fn publish(&self, word: u64) {
            self.down.set(word);
            self.said.borrow_mut().push(word);
        }
        fn look(&self) -> [u64; 8] {
            self.looks.set(self.looks.get() + 1);
            if let (Told::Report(number), true) =
                (Told::decode(self.down.get()), self.looks.get() >= self.after)
            {
                self.up.set([10, 11, 12, 13, 14, 15, 16, number]);
            }
            self.up.get()
        }
    }

    #[test]
    fn who_reports_in_time_is_told_what_was_decided() {
        let (fake, mut turns) = (Fake::new(3), 0);
        let reported = offer(&fake, 5).report(|| {
            turns += 1;
            turns < 100
        });
        let reported = reported.unwrap();
        assert_eq!((reported.registers.midr, reported.registers.pfr1, turns), (10, 16, 2));
        reported.release();
        assert_eq!(Told::decode(fake.down.get()), Told::GoOn);
        // The same CPU again: its last answer is to another ticket.
        let denied = offer(&fake, 6).report(|| true).unwrap();
        denied.deny();
        assert_eq!(*fake.said.borrow(), [5 << 2 | 1, 5 << 2 | 2, 6 << 2 | 1, 6 << 2 | 3]);
    }

    #[test]
    fn who_comes_late_turns_itself_off() {
        let fake = Fake::new(100);
        assert_eq!(offer(&fake, 9).report(|| fake.looks.get() < 50).err(), Some(NoReport));
        assert_eq!(Told::decode(fake.down.get()), Told::TurnOff);
    }

    #[test]
    fn an_answer_to_another_ticket_is_none() {
        let fake = Fake::new(1);
        fake.up.set([0, 0, 0, 0, 0, 0, 0, 8]);
        let late = Fake { up: fake.up.clone(), ..Fake::new(u32::MAX) };
        assert!(offer(&late, 9).report(|| late.looks.get() < 10).is_err());
    }

    #[test]
    fn lines_are_whole_cache_lines_and_are_maintained_when_they_are_used() {
        let mailbox = Mailbox::new();
        let done = RefCell::new(Vec::new());
        let base = (&raw const mailbox) as usize;
        let lines = mailbox.with(|at, size| done.borrow_mut().push((at - base, size)));
        lines.publish(77);
        assert_eq!((lines.look(), mailbox.down.0[0].load(Relaxed)), ([0; 8], 77));
        assert_eq!(*done.borrow(), [(0, LINE), (LINE, LINE)]);
        assert!(base.is_multiple_of(LINE));
    }
}
