//! The host's own UART, as far as it receives: what is typed is for the realm (PL011, DDI 0183).
//!
//! Invariant: a byte is taken only when there is somebody to give it to; what is not taken stays in the FIFO, and its interrupt masked.

use crate::report::UART;

/// Its interrupt: SPI 1 of QEMU's `virt` machine.
pub const INTID: u32 = 33;

const DATA: u64 = 0x00;
const FLAGS: u64 = 0x18;
const LINE_CONTROL: u64 = 0x2c;
const CONTROL: u64 = 0x30;
const MASK: u64 = 0x38;
const RECEIVE_EMPTY: u32 = 1 << 4;
/// Something has come, or has been there for some time.
const RECEIVED: u32 = 1 << 4 | 1 << 6;

fn read(offset: u64) -> u32 {
    // SAFETY: a register of the UART, mapped as a device by `Memory`.
    unsafe { ((UART + offset) as *const u32).read_volatile() }
}

fn write(offset: u64, value: u32) {
    // SAFETY: as above; nothing here changes what is being sent.
    unsafe { ((UART + offset) as *mut u32).write_volatile(value) };
}

/// Begins to receive, with FIFO. What is there already raises no interrupt: it is to be taken.
pub fn start() {
    // Eight bits, FIFO; the UART on, both ways.
    write(LINE_CONTROL, 0b11 << 5 | 1 << 4);
    write(CONTROL, 1 << 9 | 1 << 8 | 1);
    listen(true);
}

/// Whether what comes interrupts.
pub fn listen(on: bool) {
    write(MASK, if on { RECEIVED } else { 0 });
}

/// What has come.
pub fn take() -> Option<u8> {
    (read(FLAGS) & RECEIVE_EMPTY == 0).then(|| read(DATA) as u8)
}
