//! The exception vectors of EL2, and the way down to EL1 (Arm ARM D1.3.1).
//!
//! Invariant: an exception from below saves x0 to x18, x29 and x30 on an empty stack (x19 to x28 are preserved by the
//! code it calls) and returns with them as the handler left them. Any other exception is a fault of our own: it moves
//! to the stack kept for that, for the current one may be what faulted.

use core::arch::{asm, global_asm};

use super::percpu::FAULT_STACK_OFFSET;
use super::psci::HostEntry;

/// The registers of an exception from below.
#[repr(C)]
pub struct Frame {
    /// x0 to x17: what calls pass and return.
    pub x: [u64; 18],
    x18: u64,
    x29: u64,
    x30: u64,
    _pad: u64,
}

const FRAME_SIZE: usize = 176;
const _: () = assert!(size_of::<Frame>() == FRAME_SIZE);

/// The registers of a fault of our own.
#[repr(C)]
pub struct FaultFrame {
    /// x0 to x30.
    pub x: [u64; 31],
    /// The stack pointer.
    pub sp: u64,
}

const FAULT_FRAME_SIZE: usize = 256;
const _: () = assert!(size_of::<FaultFrame>() == FAULT_FRAME_SIZE);

global_asm!(
    r#"
    // Both frames begin with x0 to x17.
    .macro save_x2_to_x17
    stp     x2, x3, [sp, #16]
    stp     x4, x5, [sp, #32]
    stp     x6, x7, [sp, #48]
    stp     x8, x9, [sp, #64]
    stp     x10, x11, [sp, #80]
    stp     x12, x13, [sp, #96]
    stp     x14, x15, [sp, #112]
    stp     x16, x17, [sp, #128]
    .endm

    // An exception from below, answered.
    .macro from_below
    .p2align 7
    sub     sp, sp, #{frame_size}
    stp     x0, x1, [sp, #0]
    save_x2_to_x17
    stp     x18, x29, [sp, #144]
    str     x30, [sp, #160]
    b       .Lanswer
    .endm

    // A fault of our own: the host's software thread registers are free to use, it will not run again.
    .macro own_fault number
    .p2align 7
    msr     tpidrro_el0, x0
    msr     tpidr_el0, x1
    mov     x0, sp
    mrs     x1, tpidr_el2
    add     x1, x1, #{fault_stack}
    sub     sp, x1, #{fault_frame_size}
    str     x0, [sp, #248]
    mov     x0, #\number
    b       .Lown_fault
    .endm

    .section .text.vectors, "ax"
    .p2align 11
    .global vectors
vectors:
    own_fault 0
    own_fault 1
    own_fault 2
    own_fault 3
    own_fault 4
    own_fault 5
    own_fault 6
    own_fault 7
    from_below
    own_fault 9
    own_fault 10
    own_fault 11
    from_below
    own_fault 13
    own_fault 14
    own_fault 15
    .p2align 7

.Lanswer:
    mov     x0, sp
    // The frame record under a backtrace: where EL2 was entered.
    mov     x29, xzr
    mov     x30, xzr
    bl      cloven_exit
    ldp     x2, x3, [sp, #16]
    ldp     x4, x5, [sp, #32]
    ldp     x6, x7, [sp, #48]
    ldp     x8, x9, [sp, #64]
    ldp     x10, x11, [sp, #80]
    ldp     x12, x13, [sp, #96]
    ldp     x14, x15, [sp, #112]
    ldp     x16, x17, [sp, #128]
    ldp     x18, x29, [sp, #144]
    ldr     x30, [sp, #160]
    ldp     x0, x1, [sp], #{frame_size}
    eret
    // No speculation past the return (Arm ARM B2.3.10 leaves it to the CPU).
    dsb     nsh
    isb

.Lown_fault:
    save_x2_to_x17
    stp     x18, x19, [sp, #144]
    stp     x20, x21, [sp, #160]
    stp     x22, x23, [sp, #176]
    stp     x24, x25, [sp, #192]
    stp     x26, x27, [sp, #208]
    stp     x28, x29, [sp, #224]
    str     x30, [sp, #240]
    mrs     x2, tpidrro_el0
    mrs     x3, tpidr_el0
    stp     x2, x3, [sp, #0]
    mov     x1, sp
    bl      cloven_own_fault
    "#,
    frame_size = const FRAME_SIZE,
    fault_frame_size = const FAULT_FRAME_SIZE,
    fault_stack = const FAULT_STACK_OFFSET,
);

/// Leaves EL2 for the host at `entry`, with an empty stack and nothing of EL2 in the registers.
///
/// # Safety
/// EL1 is set up, `SPSR_EL2` says in which state it begins, and nothing on the current stack is needed any more.
pub unsafe fn enter_host(entry: HostEntry) -> ! {
    // SAFETY: the stack is left for good; the next exception finds it empty.
    unsafe {
        asm!(
            "msr elr_el2, x1",
            "mrs x2, tpidr_el2",
            "mov sp, x2",
            "mov x1, xzr", "mov x2, xzr", "mov x3, xzr", "mov x4, xzr", "mov x5, xzr",
            "mov x6, xzr", "mov x7, xzr", "mov x8, xzr", "mov x9, xzr", "mov x10, xzr",
            "mov x11, xzr", "mov x12, xzr", "mov x13, xzr", "mov x14, xzr", "mov x15, xzr",
            "mov x16, xzr", "mov x17, xzr", "mov x18, xzr", "mov x19, xzr", "mov x20, xzr",
            "mov x21, xzr", "mov x22, xzr", "mov x23, xzr", "mov x24, xzr", "mov x25, xzr",
            "mov x26, xzr", "mov x27, xzr", "mov x28, xzr", "mov x29, xzr", "mov x30, xzr",
            "eret",
            "dsb nsh",
            "isb",
            in("x0") entry.context,
            in("x1") entry.pc,
            options(noreturn, nostack),
        )
    }
}
