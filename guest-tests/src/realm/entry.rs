//! The realm's own assembly: FP registers that are filled and looked at, an interrupt that is taken, a wait for one.
//!
//! Invariant: nothing else of a payload touches an FP register, and interrupts are unmasked nowhere but here.

use core::arch::global_asm;

global_asm!(
    r#"
    .arch_extension fp
    .arch_extension simd

    .macro each_register op
    .irp n, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    \op     \n
    .endr
    .endm

    .macro fill_one n
    add     x1, x0, #\n
    mvn     x2, x1
    fmov    d\n, x1
    fmov    v\n\().d[1], x2
    .endm

    .macro look_at_one n
    add     x1, x0, #\n
    fmov    x2, d\n
    cmp     x1, x2
    cinc    x3, x3, ne
    mvn     x1, x1
    fmov    x2, v\n\().d[1]
    cmp     x1, x2
    cinc    x3, x3, ne
    .endm

    .section .text.fp, "ax"
    .global fp_fill
fp_fill:
    each_register fill_one
    mov     x1, #(3 << 22)              // FPCR: rounds towards zero
    msr     fpcr, x1
    mov     x1, #0x15                   // FPSR: some exceptions
    msr     fpsr, x1
    ret

    .global fp_look
fp_look:
    mov     x3, #0
    each_register look_at_one
    mrs     x1, fpcr
    cmp     x1, #(3 << 22)
    cinc    x3, x3, ne
    mrs     x1, fpsr
    cmp     x1, #0x15
    cinc    x3, x3, ne
    mov     x0, x3
    ret

    .section .text.interrupt, "ax"
    .global take_interrupt
take_interrupt:
    mrs     x9, vbar_el1
    adrp    x10, interrupt_vectors
    add     x10, x10, :lo12:interrupt_vectors
    msr     vbar_el1, x10
    mov     x11, x0
    mov     x0, #-1
    isb
    msr     daifclr, #2
1:  isb
    mrs     x10, cntvct_el0
    cmp     x10, x11
    b.lo    1b
.Linterrupted:
    msr     daifset, #2
    msr     vbar_el1, x9
    isb
    ret

    .global wait_for_interrupt
wait_for_interrupt:
    dsb     sy
    wfi
    isb
    ret

    .section .text.vectors, "ax"
    .p2align 11
interrupt_vectors:
    .rept   5
    mov     x0, #0x100
    b       payload_unexpected
    .p2align 7
    .endr
    // From EL1 with its own stack pointer: acknowledged, and the loop is over.
    mrs     x0, s3_0_c12_c12_0          // ICC_IAR1_EL1
    dsb     sy
    adr     x10, .Linterrupted
    msr     elr_el1, x10
    mrs     x10, spsr_el1
    orr     x10, x10, #0x80
    msr     spsr_el1, x10
    eret
    .p2align 7
    .rept   10
    mov     x0, #0x100
    b       payload_unexpected
    .p2align 7
    .endr
    "#
);

unsafe extern "C" {
    /// Fills the FP registers with what is of this seed.
    pub fn fp_fill(seed: u64);
    /// How many halves of FP registers, and FPCR and FPSR, are not as [`fp_fill`] has left them.
    pub fn fp_look(seed: u64) -> u64;
    /// Lets interrupts come until the virtual count is `limit`: the one that came, acknowledged, or `u64::MAX`.
    pub fn take_interrupt(limit: u64) -> u64;
    /// Waits for an interrupt, which stays masked.
    pub fn wait_for_interrupt();
}
