//! Calls with all registers given, and all looked at afterwards.

use core::arch::global_asm;

/// x0 to x30 of a call, before it and then after it, and the stack pointer. The assembly knows where its fields lie.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Registers {
    /// x0 to x30.
    pub x: [u64; 31],
    /// The stack pointer before the call.
    pub sp_before: u64,
    /// After it.
    pub sp_after: u64,
}

global_asm!(
    r#"
    .macro each_pair op
    \op     x2, x3, [x0, #16]
    \op     x4, x5, [x0, #32]
    \op     x6, x7, [x0, #48]
    \op     x8, x9, [x0, #64]
    \op     x10, x11, [x0, #80]
    \op     x12, x13, [x0, #96]
    \op     x14, x15, [x0, #112]
    \op     x16, x17, [x0, #128]
    \op     x18, x19, [x0, #144]
    \op     x20, x21, [x0, #160]
    \op     x22, x23, [x0, #176]
    \op     x24, x25, [x0, #192]
    \op     x26, x27, [x0, #208]
    \op     x28, x29, [x0, #224]
    .endm

    // Makes the call \conduit with the registers at x0, and leaves there what they are then. The thread registers of EL0 are free.
    .macro call name, conduit:vararg
    .section .text.call, "ax"
    .global \name
\name:
    stp     x29, x30, [sp, #-96]!
    stp     x27, x28, [sp, #16]
    stp     x25, x26, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x21, x22, [sp, #64]
    stp     x19, x20, [sp, #80]
    msr     tpidr_el0, x0
    mov     x1, sp
    str     x1, [x0, #248]
    each_pair ldp
    ldr     x30, [x0, #240]
    ldp     x0, x1, [x0]
    \conduit
    msr     tpidrro_el0, x0
    mrs     x0, tpidr_el0
    str     x1, [x0, #8]
    each_pair stp
    str     x30, [x0, #240]
    mrs     x1, tpidrro_el0
    str     x1, [x0]
    mov     x1, sp
    str     x1, [x0, #256]
    ldr     x1, [x0, #248]
    mov     sp, x1
    ldp     x27, x28, [sp, #16]
    ldp     x25, x26, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x21, x22, [sp, #64]
    ldp     x19, x20, [sp, #80]
    ldp     x29, x30, [sp], #96
    ret
    .endm

    call    call_hvc, hvc #0
    call    call_hvc_with_immediate, hvc #0xa5c3
    call    call_smc, smc #0
    call    call_smc_with_immediate, smc #0xa5c3
    "#
);

unsafe extern "C" {
    /// HVC with these registers.
    pub fn call_hvc(registers: &mut Registers);
    /// The same with an immediate that SMCCC does not have ("SMC and HVC immediate value").
    pub fn call_hvc_with_immediate(registers: &mut Registers);
    /// SMC with these registers.
    pub fn call_smc(registers: &mut Registers);
    /// The same with an immediate that SMCCC does not have.
    pub fn call_smc_with_immediate(registers: &mut Registers);
}
