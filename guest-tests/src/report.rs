//! What a payload says: lines on the first UART, and the checks counted.

use core::fmt::{self, Write};
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arm_pl011_uart::{PL011Registers, Uart};
use safe_mmio::UniqueMmioPointer;

/// The first PL011 of QEMU's `virt` machine.
pub const UART: u64 = 0x0900_0000;

/// Where its registers lie, or 0: nowhere yet.
static AT: AtomicU64 = AtomicU64::new(UART);

/// Its registers lie at `address` from now on, mapped as a device; with 0 nothing is printed any more.
pub fn move_to(address: u64) {
    AT.store(address, Relaxed);
}

/// Prints a line. Only one CPU at a time does: the boot CPU, or who is being waited for.
pub fn line(text: fmt::Arguments<'_>) {
    let Some(registers) = NonNull::new(AT.load(Relaxed) as *mut PL011Registers) else { return };
    // SAFETY: device registers, mapped as such (or the MMU is off, which is as good), and used by one CPU at a time.
    let mut uart = Uart::new(unsafe { UniqueMmioPointer::new(registers) });
    let _ = uart.write_fmt(format_args!("{text}\r\n"));
}

/// Prints bytes as they are. Only one CPU at a time does.
pub fn bytes(bytes: &[u8]) {
    let Some(registers) = NonNull::new(AT.load(Relaxed) as *mut PL011Registers) else { return };
    // SAFETY: as above.
    let mut uart = Uart::new(unsafe { UniqueMmioPointer::new(registers) });
    bytes.iter().for_each(|&byte| uart.write_word(byte));
}

/// Prints a line, as [`line()`] does.
#[macro_export]
macro_rules! say {
    ($($arguments:tt)*) => { $crate::report::line(format_args!($($arguments)*)) };
}

/// The checks so far.
#[derive(Default)]
pub struct Report {
    checks: usize,
}

impl Report {
    /// One check: what it is, whether it holds, and what was seen.
    pub fn check(&mut self, name: &str, holds: bool, detail: fmt::Arguments<'_>) {
        self.checks += 1;
        say!("@cloven check {name} {} {detail}", if holds { "ok" } else { "FAIL" });
    }

    /// How many were made.
    pub fn count(&self) -> usize {
        self.checks
    }

    /// So many more were made by somebody else, whose lines have been printed.
    pub fn add(&mut self, checks: usize) {
        self.checks += checks;
    }

    /// All were made.
    pub fn end(self) {
        say!("@cloven done {}", self.checks);
    }
}
