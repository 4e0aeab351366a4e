//! What the RECs print.
//!
//! Invariant: only one CPU prints at a time, and lines are whole: each REC has a line of its own in the making.

use core::fmt;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use spin::Mutex;
use vmm_logic::console::Line;

use super::realm::MAX_RECS;
use crate::report;

/// Bytes of a line that come at once: an attestation token is one line.
const WIDTH: usize = 4096;

static PRINTER: Mutex<()> = Mutex::new(());
static LINES: [Mutex<Line<WIDTH>>; MAX_RECS] = [const { Mutex::new(Line::new()) }; MAX_RECS];
/// The checks that came from the realm, and how many it says it made.
static CHECKS: AtomicUsize = AtomicUsize::new(0);
static SAID: AtomicUsize = AtomicUsize::new(NOT_SAID);
const NOT_SAID: usize = usize::MAX;

/// Prints a line of the host's while realms may print.
pub fn say(text: fmt::Arguments<'_>) {
    let _alone = PRINTER.lock();
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
    let said = SAID.swap(NOT_SAID, Relaxed);
    (CHECKS.swap(0, Relaxed), Some(said).filter(|count| *count != NOT_SAID))
}
