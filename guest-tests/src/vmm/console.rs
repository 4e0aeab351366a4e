//! What the RECs print.
//!
//! Invariant: only one CPU prints at a time, and lines are whole. Each REC of the realm payload has a line of its own in the making; what a
//! Linux sends by its UART is printed as it comes, and what else is to be said waits until its line ends.

use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use spin::Mutex;
use vmm_logic::console::Line;
use vmm_logic::stream::Stream;

use super::realm::MAX_RECS;
use crate::report;

/// Bytes of a line that come at once: an attestation token is one line.
const WIDTH: usize = 4096;

/// Bytes of other lines that wait for the end of one.
const WAITING: usize = 4096;

static PRINTER: Mutex<Stream<WAITING>> = Mutex::new(Stream::new());
static LINES: [Mutex<Line<WIDTH>>; MAX_RECS] = [const { Mutex::new(Line::new()) }; MAX_RECS];
/// What a Linux has written to its virtio console.
static HVC0: Mutex<Line<WIDTH>> = Mutex::new(Line::new());
/// The checks that came from the realm, and how many it says it made.
static CHECKS: AtomicUsize = AtomicUsize::new(0);
static SAID: AtomicUsize = AtomicUsize::new(NOT_SAID);
const NOT_SAID: usize = usize::MAX;

/// A byte that a Linux sends by its UART.
pub fn raw(byte: u8) {
    PRINTER.lock().push(byte, report::bytes);
}

/// A byte that it writes to its virtio console.
pub fn hvc0(byte: u8) {
    HVC0.lock().push(byte, say_hvc0);
}

fn say_hvc0(text: &str) {
    PRINTER.lock().say(&["hvc0: ", text, "\r\n"], report::bytes);
}

/// Does `work` if no line has begun, while nobody prints; whether it did.
pub fn between_lines(work: impl FnOnce()) -> bool {
    let stream = PRINTER.lock();
    let is_between = stream.is_between_lines();
    if is_between {
        work();
    }
    is_between
}

/// Prints a line of the host's while realms may print.
pub fn say(text: fmt::Arguments<'_>) {
    let mut stream = PRINTER.lock();
    stream.end_line(report::bytes);
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
    HVC0.lock().end(say_hvc0);
    let mut stream = PRINTER.lock();
    stream.end_line(report::bytes);
    let said = SAID.swap(NOT_SAID, Relaxed);
    let said = Some(said).filter(|count| *count != NOT_SAID).or(stream.said.take());
    (CHECKS.swap(0, Relaxed) + core::mem::take(&mut stream.checks), said)
}
