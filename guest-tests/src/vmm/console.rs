//! What the RECs print.
//!
//! Invariant: only one CPU prints at a time, and lines are whole. Each REC of the realm payload has a line of its own in the making; what a
//! Linux sends by its UART is printed as it comes, and what else is to be said waits until its line ends.

use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use arrayvec::ArrayVec;
use spin::Mutex;
use vmm_logic::console::Line;

use super::realm::MAX_RECS;
use crate::report;

/// Bytes of a line that come at once.
const WIDTH: usize = 1024;

/// Bytes of other lines that wait for the end of one.
const WAITING: usize = 4096;

static PRINTER: Mutex<Stream> = Mutex::new(Stream::new());
static LINES: [Mutex<Line<WIDTH>>; MAX_RECS] = [const { Mutex::new(Line::new()) }; MAX_RECS];
/// The checks that came from the realm, and how many it says it made.
static CHECKS: AtomicUsize = AtomicUsize::new(0);
static SAID: AtomicUsize = AtomicUsize::new(NOT_SAID);
const NOT_SAID: usize = usize::MAX;

/// The beginnings of lines that are looked at.
const CHECK: &[u8] = b"@cloven check ";
const DONE: &[u8] = b"@cloven done ";

/// What a Linux sends, and what waits for the end of its line.
struct Stream {
    /// How its line begins, as much of that as is looked at.
    head: ArrayVec<u8, { CHECK.len() }>,
    /// What became of that.
    state: State,
    /// Lines for which there was no place.
    waiting: ArrayVec<u8, WAITING>,
}

/// What is known of a line.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// It may become one that is not printed: nothing of it was.
    Held,
    /// It is printed.
    Printed,
    /// It is not printed: the host has an end of its own. The number in it so far.
    Dropped(usize),
}

impl Stream {
    const fn new() -> Self {
        Self { head: ArrayVec::new_const(), state: State::Held, waiting: ArrayVec::new_const() }
    }

    fn push(&mut self, byte: u8) {
        let is_end = byte == b'\n';
        match self.state {
            State::Held => {
                // It is shorter than what is compared with here.
                let _ = self.head.try_push(byte);
                if self.head.as_slice() == DONE {
                    self.state = State::Dropped(0);
                } else if !DONE.starts_with(&self.head) {
                    report::bytes(&self.head);
                    self.state = State::Printed;
                }
            }
            State::Printed => {
                report::bytes(&[byte]);
                let _ = self.head.try_push(byte);
            }
            State::Dropped(number) => {
                let digit = usize::from(byte.wrapping_sub(b'0'));
                if digit < 10 {
                    self.state = State::Dropped(number.saturating_mul(10).saturating_add(digit));
                }
            }
        }
        if is_end {
            if let State::Dropped(number) = self.state {
                SAID.store(number, Relaxed);
            }
            if self.head.as_slice() == CHECK {
                CHECKS.fetch_add(1, Relaxed);
            }
            self.begin_line();
        }
    }

    fn begin_line(&mut self) {
        self.head.clear();
        self.state = State::Held;
        report::bytes(&self.waiting);
        self.waiting.clear();
    }

    /// Ends the line that is there, if one is.
    fn end(&mut self) {
        if self.state == State::Held {
            report::bytes(&self.head);
        }
        if !self.head.is_empty() {
            report::bytes(b"\r\n");
            self.begin_line();
        }
    }

    /// A whole line of somebody else's.
    fn line(&mut self, parts: &[&str]) {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        if !self.head.is_empty() && bytes <= self.waiting.remaining_capacity() {
            let _ = parts.iter().try_for_each(|part| self.waiting.try_extend_from_slice(part.as_bytes()));
            return;
        }
        self.end();
        parts.iter().for_each(|part| report::bytes(part.as_bytes()));
    }
}

/// A byte that a Linux sends by its UART.
pub fn raw(byte: u8) {
    PRINTER.lock().push(byte);
}

/// A byte that it writes to its virtio console.
pub fn hvc0(byte: u8) {
    static LINE: Mutex<Line<WIDTH>> = Mutex::new(Line::new());
    LINE.lock().push(byte, |text| PRINTER.lock().line(&["hvc0: ", text, "\r\n"]));
}

/// Does `work` if no line has begun, while nobody prints; whether it did.
pub fn between_lines(work: impl FnOnce()) -> bool {
    let stream = PRINTER.lock();
    let is_between = stream.head.is_empty();
    if is_between {
        work();
    }
    is_between
}

/// Prints a line of the host's while realms may print.
pub fn say(text: fmt::Arguments<'_>) {
    let mut stream = PRINTER.lock();
    stream.end();
    report::line(text);
}

fn line(text: &str) {
    if let Some(count) = text.strip_prefix("@cloven done ") {
        // The host has an end of its own.
        SAID.store(count.trim().parse().unwrap_or(NOT_SAID), Relaxed);
        return;
    }
    if text.starts_with("@cloven check ") {
        CHECKS.fetch_add(1, Relaxed);
    }
    if text.starts_with("@cloven ") {
        say(format_args!("{text}"))
    } else {
        say(format_args!("realm: {text}"))
    }
}

/// REC `number` prints a byte.
pub fn put(number: usize, byte: u8) {
    if let Some(place) = LINES.get(number) {
        place.lock().push(byte, line);
    }
}

/// Ends all lines, and what was counted: the checks that came, and how many the realm says it made.
pub fn end() -> (usize, Option<usize>) {
    LINES.iter().for_each(|place| place.lock().end(line));
    PRINTER.lock().end();
    let said = SAID.swap(NOT_SAID, Relaxed);
    (CHECKS.swap(0, Relaxed), Some(said).filter(|count| *count != NOT_SAID))
}
