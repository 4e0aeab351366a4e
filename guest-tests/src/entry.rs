//! The assembly of a payload: how each CPU starts, its vectors, and accesses that may fault.
//!
//! Invariant: `TPIDR_EL1` points to the running CPU's [`Cpu`] once its MMU is on. A fault lands where the running probe
//! wants it, with the syndrome saved; without a probe it is unexpected and told.

use core::arch::{asm, global_asm};
use core::sync::atomic::{AtomicU64, AtomicUsize};

use arm_sysregs::el1::accessors::read_tpidr_el1;
use hyp::stage1::{Registers, SCTLR_EL1_OFF};
use hyp::start::BOOT_TABLES;

use crate::memory::MAX_CPUS;
use crate::report::UART;

/// Bytes of the stack of each CPU.
pub const STACK_SIZE: usize = 64 << 10;

/// What a CPU has for itself. The assembly knows where its first fields lie.
#[repr(C, align(64))]
pub struct Cpu {
    /// Turns the MMU on: read with the MMU off, so cleaned.
    pub registers: Registers,
    /// The end of its stack.
    pub stack: u64,
    /// Where it asks to be let in when it is started, or 0: a [`Mailbox`](hyp::caps::mailbox::Mailbox).
    pub mailbox: u64,
    _own_line: [u64; 2],
    /// Where a fault lands, 0 if none is expected, and the stack pointer there.
    landing: [AtomicU64; 2],
    /// ESR, FAR, ELR and SPSR of the last fault that landed.
    pub fault: [AtomicU64; 4],
    /// What it shall do next, and how far it has come: see `cpus`.
    pub order: AtomicUsize,
    /// How many orders it has carried out.
    pub done: AtomicUsize,
    /// Its number.
    pub number: usize,
}

impl Cpu {
    /// CPU `number`.
    pub const fn new(number: usize, registers: Registers, stack: u64) -> Self {
        Self {
            registers,
            stack,
            mailbox: 0,
            _own_line: [0; 2],
            landing: [const { AtomicU64::new(0) }; 2],
            fault: [const { AtomicU64::new(0) }; 4],
            order: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
            number,
        }
    }

    /// As it is, but that it asks to be let in at `mailbox` when it is started.
    pub const fn asking_at(self, mailbox: u64) -> Self {
        Self { mailbox, ..self }
    }

    /// The running CPU's.
    pub fn this() -> &'static Self {
        // SAFETY: set before the MMU came on (secondaries) or before the first probe (the boot CPU); never freed.
        unsafe { &*(read_tpidr_el1().bits() as *const Self) }
    }
}

global_asm!(
    hyp::start_macros!(),
    hyp::newcomer_macros!(),
    r#"
    .section .text.head, "ax"
    .global _start
_start:
    b       primary
    .long   0
    .quad   0
    .quad   0x400000
    .quad   0xa
    .quad   0
    .quad   0
    .quad   0
    .long   0x644d5241
    .long   0

    // EL1 with everything off. Changes x1.
    .macro quiet_el1
    msr     daifset, #0xf
    movz    x1, #({sctlr_off} & 0xffff)
    movk    x1, #({sctlr_off} >> 16), lsl #16
    msr     sctlr_el1, x1
    adrp    x1, vectors
    add     x1, x1, :lo12:vectors
    msr     vbar_el1, x1
    isb
    .endm

    // Runs on the tables of x5 with MAIR x6, TCR x7 and SCTLR x8.
    .macro mmu_on
    msr     mair_el1, x6
    msr     tcr_el1, x7
    msr     ttbr0_el1, x5
    isb
    tlbi    vmalle1
    ic      iallu
    dsb     nsh
    isb
    msr     sctlr_el1, x8
    isb
    .endm

    .section .text.entry, "ax"
.Lmap_block:
    map_block_routine

primary:
    mov     x20, x0
    quiet_el1
    adrp    x23, image_start
    self_relocate {stack_size}
    // The boot map: the image, the device tree read-only, the UART.
    adrp    x21, image_arena
    mov     x0, #({stacks_size} & 0xffff)
    movk    x0, #({stacks_size} >> 16), lsl #16
    add     x21, x21, x0
    clear_boot_map {boot_tables}
    mov     x1, #0x785                  // Normal, inner shareable, accessed, read-only
    orr     x1, x1, #(3 << 53)
    bic     x0, x20, #0x1fffff
    bl      .Lmap_block
    add     x0, x0, #0x200000
    tst     x20, #0x1fffff              // a tree that begins a block ends in it
    b.eq    1f
    bl      .Lmap_block
1:  movz    x0, #({uart} >> 16), lsl #16
    mov     x1, #0x701                  // Device-nGnRE
    orr     x1, x1, #(3 << 53)
    bl      .Lmap_block
    mov     x0, x23
    mov     x1, #0x705                  // Normal, inner shareable, accessed, read, write and execute
    orr     x1, x1, #(1 << 54)
    bl      .Lmap_block
    add     x0, x0, #0x200000
    bl      .Lmap_block
    drop_cached {stack_size}
    drop_boot_map {boot_tables}
    boot_registers sctlr_el1, 0x80, 32  // EPD1
    mmu_on
    // The boot CPU's stack is the start of the arena.
    adrp    x1, image_arena
    mov     x2, #{stack_size}
    add     x1, x1, x2
    mov     sp, x1
    msr     tpidr_el1, xzr
    mov     x29, xzr
    mov     x0, x20
    bl      payload_main
1:  wfi
    b       1b

    .global secondary_entry
secondary_entry:
    mov     x20, x0
    quiet_el1
    ldr     x10, [x20, #40]
    cbz     x10, .Ladmitted
    ask_admission x10, .Lturn_off
.Ladmitted:
    ldp     x6, x7, [x20]
    ldp     x5, x8, [x20, #16]
    ldr     x9, [x20, #32]
    mmu_on
    msr     tpidr_el1, x20
    mov     sp, x9
    mov     x29, xzr
    bl      payload_secondary
1:  wfi
    b       1b

.Lturn_off:
    movz    x0, #(0x84000002 >> 16), lsl #16    // CPU_OFF
    movk    x0, #(0x84000002 & 0xffff)
    smc     #0
1:  wfi
    b       1b

    .macro to_probe number
    .p2align 7
    msr     tpidrro_el0, x0
    mov     x0, #\number
    b       .Lfault
    .endm

    .section .text.vectors, "ax"
    .p2align 11
vectors:
    .set    n, 0
    .rept   16
    to_probe n
    .set    n, n + 1
    .endr
    .p2align 7

.Lfault:
    msr     contextidr_el1, x1
    mrs     x1, tpidr_el1
    cbz     x1, .Lunexpected
    // Only synchronous exceptions from EL1 (4) and EL0 (8) land.
    tst     x0, #3
    b.ne    .Lunexpected
    ldr     x0, [x1, #64]
    cbz     x0, .Lunexpected
    mrs     x0, elr_el1
    str     x0, [x1, #96]
    ldr     x0, [x1, #64]
    msr     elr_el1, x0
    str     xzr, [x1, #64]
    ldr     x0, [x1, #72]
    mov     sp, x0
    mrs     x0, esr_el1
    str     x0, [x1, #80]
    mrs     x0, far_el1
    str     x0, [x1, #88]
    mrs     x0, spsr_el1
    str     x0, [x1, #104]
    mov     x0, #0x3c5
    msr     spsr_el1, x0
    mov     x0, #1
    eret

.Lunexpected:
    mov     x1, sp
    and     sp, x1, #~15
    mov     x29, xzr
    bl      payload_unexpected
1:  wfi
    b       1b

    // From here on a fault lands at the next label 1.
    .macro expect_fault
    stp     x29, x30, [sp, #-16]!
    mrs     x9, tpidr_el1
    adr     x10, 1f
    mov     x11, sp
    str     x11, [x9, #72]
    str     x10, [x9, #64]
    .endm

    // Runs \access on the address in x0 with a landing. Returns 0 in x0, or 1 if it faulted.
    .macro probe name, access:vararg
    .section .text.probe, "ax"
    .global \name
\name:
    expect_fault
    \access
    str     xzr, [x9, #64]
    mov     x0, #0
1:  ldp     x29, x30, [sp], #16
    ret
    .endm

    probe   probe_load, ldr x12, [x0]
    probe   probe_store, str xzr, [x0]
    probe   probe_fetch, blr x0
    // Loads eight bytes from x0 and stores them at x1.
    .section .text.probe, "ax"
    .global probe_copy
probe_copy:
    expect_fault
    ldr     x12, [x0]
    str     x12, [x1]
    str     xzr, [x9, #64]
    mov     x0, #0
1:  ldp     x29, x30, [sp], #16
    ret

    // To EL0 at the code at x0, with the address in x1. It always comes back by an exception.
    .section .text.probe, "ax"
    .global probe_user
probe_user:
    expect_fault
    msr     elr_el1, x0
    mov     x10, #0x3c0
    msr     spsr_el1, x10
    mov     x0, x1
    isb
    eret
1:  ldp     x29, x30, [sp], #16
    ret

    // Cleans and invalidates x0 to x1 to the point of coherency.
    .global clean
clean:
    each_line civac
    dsb     sy
    ret

    // Forgets on every CPU what was fetched as an instruction.
    .global forget_instructions
forget_instructions:
    ic      ialluis
    dsb     ish
    isb
    ret

    // Code for EL0, in a page of its own: the access, then SVC.
    .section .text.user, "ax"
    .p2align 12
    .global user_load, user_store, user_fetch, user_end
user_load:
    ldr     x12, [x0]
    svc     #0
user_store:
    str     xzr, [x0]
    svc     #0
user_fetch:
    blr     x0
    svc     #0
    // What a permitted fetch finds.
    .global just_return
just_return:
    ret
    .p2align 12
user_end:
    "#,
    sctlr_off = const SCTLR_EL1_OFF,
    stack_size = const STACK_SIZE,
    stacks_size = const STACK_SIZE * MAX_CPUS,
    boot_tables = const BOOT_TABLES,
    uart = const UART,
);

/// Completes this CPU's accesses, as all others see them.
pub fn settle() {
    // SAFETY: a barrier changes no state.
    unsafe { asm!("dsb ish", options(nostack)) };
}

/// Synchronizes this CPU's context: what follows sees what others have changed.
pub fn synchronize() {
    // SAFETY: a barrier changes no state.
    unsafe { asm!("isb", options(nostack)) };
}

unsafe extern "C" {
    /// Cleans and invalidates `start` to `end`.
    pub fn clean(start: u64, end: u64);
    /// Forgets on every CPU what was fetched as an instruction: after code was written and cleaned, before it runs.
    pub fn forget_instructions();
    /// Loads eight bytes: 0, or 1 if it faulted.
    pub fn probe_load(address: u64) -> u64;
    /// Loads eight bytes into `value`: 0, or 1 if that faulted.
    pub fn probe_copy(address: u64, value: &mut u64) -> u64;
    /// Stores eight zero bytes: 0, or 1 if it faulted.
    pub fn probe_store(address: u64) -> u64;
    /// Calls the address with `value` in x1: 0, or 1 if it faulted.
    pub fn probe_fetch(address: u64, value: u64) -> u64;
    /// Runs `code` at EL0 with `address` in x0 until it faults, which SVC does too.
    pub fn probe_user(code: u64, address: u64) -> u64;
    /// Where the firmware, or who plays it, starts a CPU.
    pub fn secondary_entry();
    /// EL0 code that loads from x0.
    pub static user_load: u8;
    /// EL0 code that stores to x0.
    pub static user_store: u8;
    /// EL0 code that calls x0.
    pub static user_fetch: u8;
    /// A return, to be fetched.
    pub static just_return: u8;
    /// First byte of the image.
    pub static image_start: u8;
    /// First constant.
    pub static image_rodata: u8;
    /// First variable.
    pub static image_data: u8;
    /// First byte after the variables.
    pub static image_arena: u8;
    /// The end of the image's 4 MiB.
    pub static image_end: u8;
}
