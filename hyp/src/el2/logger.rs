//! Messages: one line each, `cloven[CPU] level: text`, on the console that the platform gives.
//!
//! Invariant: a line is never cut by another CPU's, and a CPU that dies gets its lines out even if another one died
//! with the lock held.

use core::fmt;

use log::{LevelFilter, Log, Metadata, Record};
use spin::Once;
use spin::mutex::SpinMutex;

use super::percpu::PerCpu;

/// Where messages go: writes the text. It is never called by two CPUs at once.
pub type Console = fn(fmt::Arguments<'_>);

struct Logger(SpinMutex<()>);

static LOGGER: Logger = Logger(SpinMutex::new(()));
// A pointer to code.
#[unsafe(link_section = ".data.sealed")]
static CONSOLE: Once<Console> = Once::new();

/// Sends messages up to `level` to `console` from now on.
#[unsafe(link_section = ".init.text")]
pub fn init(console: Console, level: LevelFilter) {
    CONSOLE.call_once(|| console);
    // Only fails if a logger was set before, which is then this one.
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(level);
}

/// A line of the dying: no level filter, and the lock is broken if it does not come free.
pub fn fatal(line: fmt::Arguments<'_>) {
    dying_line(format_args!("fatal: {line}"));
}

/// A line of the dying that belongs to the one before.
pub fn fatal_detail(line: fmt::Arguments<'_>) {
    dying_line(format_args!("  {line}"));
}

fn dying_line(text: fmt::Arguments<'_>) {
    const PATIENCE: u32 = 10_000_000;
    let free = (0..PATIENCE).any(|_| {
        core::hint::spin_loop();
        !LOGGER.0.is_locked()
    });
    if !free {
        // SAFETY: whoever holds it has not let go for long, so it is dying too; two garbled lines are better than none.
        unsafe { LOGGER.0.force_unlock() };
    }
    write_line(text);
}

fn write_line(text: fmt::Arguments<'_>) {
    let _line = LOGGER.0.lock();
    if let Some(console) = CONSOLE.get() {
        console(format_args!("cloven[{}] {text}\r\n", PerCpu::this().number()));
    }
}

impl Log for Logger {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &Record<'_>) {
        let level = match record.level() {
            log::Level::Error => "error",
            log::Level::Warn => "warn",
            log::Level::Info => "info",
            log::Level::Debug => "debug",
            log::Level::Trace => "trace",
        };
        write_line(format_args!("{level}: {}", record.args()));
    }
    fn flush(&self) {}
}
