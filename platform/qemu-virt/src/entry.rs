//! The board's part of the entry: a character on the first PL011 before the MMU is on.

use core::arch::global_asm;

use crate::CONSOLE;

global_asm!(
    r#"
    // Waits while the transmit FIFO is full (UARTFR.TXFF), then writes the character in w0.
    .section .text.entry, "ax"
    .global early_putc
early_putc:
    movz    x1, #({console} >> 16), lsl #16
1:  ldr     w2, [x1, #0x18]
    tbnz    w2, #5, 1b
    str     w0, [x1]
    ret
    "#,
    console = const CONSOLE,
);
