//! The exception vectors of EL2, and the way down to EL1 (Arm ARM D1.3.1).
//!
//! Invariant: an exception from below saves x0 to x18, x29 and x30 on an empty stack (x19 to x28 are preserved by the
//! code it calls) and returns with them as the handler left them. Any other exception is a fault of our own: it moves
//! to the stack kept for that, for the current one may be what faulted.

use core::arch::{asm, global_asm};
use core::mem::offset_of;

use super::percpu::FAULT_STACK_OFFSET;
use super::psci::HostEntry;
use super::vcpu::Running;

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

    // An exception of a guest: its registers go to the frame that its runner left on the stack, and its runner goes on.
    .macro from_guest kind
    .p2align 7
    str     x0, [sp, #104]
    ldr     x0, [sp, #96]
    str     x1, [x0, #8]
    mov     x1, #\kind
    b       .Lguest_stopped
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

    // While the registers of a guest are on the CPU. An abort of EL2 may be that of the one instruction that translates for a guest.
    .p2align 11
    .global guest_vectors
guest_vectors:
    own_fault 0
    own_fault 1
    own_fault 2
    own_fault 3
    .p2align 7
    // The guest's software thread registers are saved where that instruction stands.
    msr     tpidrro_el0, x0
    msr     tpidr_el0, x1
    mrs     x0, elr_el2
    adr     x1, .Ltranslate
    cmp     x0, x1
    b.eq    .Luntranslated
    mrs     x0, tpidrro_el0
    mrs     x1, tpidr_el0
    b       vectors + 0x200
    own_fault 5
    own_fault 6
    own_fault 7
    from_guest 0
    from_guest 1
    from_guest 2
    from_guest 3
    from_guest 0
    from_guest 1
    from_guest 2
    from_guest 3
    .p2align 7

.Luntranslated:
    adr     x0, .Lno_translation
    msr     elr_el2, x0
    mrs     x0, tpidrro_el0
    mrs     x1, tpidr_el0
    eret
    dsb     nsh
    isb

    // PAR_EL1 of a read at the address x0 by the guest's EL1; 1 if the walk ends in an External abort.
    .global cloven_translate
cloven_translate:
.Ltranslate:
    at      s1e1r, x0
    isb
    mrs     x0, par_el1
    ret
.Lno_translation:
    mov     x0, #1
    ret

    // Runs the guest whose general registers, PC and state are at x0, and returns the kind of its exception.
    .global cloven_enter_guest
cloven_enter_guest:
    stp     x29, x30, [sp, #-112]!
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    stp     x23, x24, [sp, #48]
    stp     x25, x26, [sp, #64]
    stp     x27, x28, [sp, #80]
    str     x0, [sp, #96]
    ldp     x1, x2, [x0, #248]
    msr     elr_el2, x1
    msr     spsr_el2, x2
    ldp     x2, x3, [x0, #16]
    ldp     x4, x5, [x0, #32]
    ldp     x6, x7, [x0, #48]
    ldp     x8, x9, [x0, #64]
    ldp     x10, x11, [x0, #80]
    ldp     x12, x13, [x0, #96]
    ldp     x14, x15, [x0, #112]
    ldp     x16, x17, [x0, #128]
    ldp     x18, x19, [x0, #144]
    ldp     x20, x21, [x0, #160]
    ldp     x22, x23, [x0, #176]
    ldp     x24, x25, [x0, #192]
    ldp     x26, x27, [x0, #208]
    ldp     x28, x29, [x0, #224]
    ldr     x30, [x0, #240]
    ldp     x0, x1, [x0]
    eret
    dsb     nsh
    isb

.Lguest_stopped:
    stp     x2, x3, [x0, #16]
    stp     x4, x5, [x0, #32]
    stp     x6, x7, [x0, #48]
    stp     x8, x9, [x0, #64]
    stp     x10, x11, [x0, #80]
    stp     x12, x13, [x0, #96]
    stp     x14, x15, [x0, #112]
    stp     x16, x17, [x0, #128]
    stp     x18, x19, [x0, #144]
    stp     x20, x21, [x0, #160]
    stp     x22, x23, [x0, #176]
    stp     x24, x25, [x0, #192]
    stp     x26, x27, [x0, #208]
    stp     x28, x29, [x0, #224]
    ldr     x2, [sp, #104]
    str     x30, [x0, #240]
    str     x2, [x0]
    mrs     x2, elr_el2
    mrs     x3, spsr_el2
    stp     x2, x3, [x0, #248]
    mov     x0, x1
    ldp     x19, x20, [sp, #16]
    ldp     x21, x22, [sp, #32]
    ldp     x23, x24, [sp, #48]
    ldp     x25, x26, [sp, #64]
    ldp     x27, x28, [sp, #80]
    ldp     x29, x30, [sp], #112
    ret
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

/// Goes on at EL2 with an empty stack, in what stays here.
///
/// # Safety
/// Nothing on the current stack is needed any more.
pub unsafe fn on_empty_stack(stay: extern "C" fn() -> !) -> ! {
    // SAFETY: the stack is left for good. The frame record under a backtrace ends here.
    unsafe {
        asm!(
            "mrs x1, tpidr_el2",
            "mov sp, x1",
            "mov x29, xzr",
            "mov x30, xzr",
            "br x0",
            in("x0") stay,
            options(noreturn, nostack),
        )
    }
}

const _: () = assert!(offset_of!(Running, pc) == 248 && offset_of!(Running, pstate) == 256);

unsafe extern "C" {
    static vectors: [u8; 2048];
    static guest_vectors: [u8; 2048];
    fn cloven_enter_guest(running: &mut Running) -> u64;
    fn cloven_translate(address: u64) -> u64;
}

/// `VBAR_EL2` while no guest runs.
pub fn vectors_address() -> u64 {
    &raw const vectors as u64
}

/// `VBAR_EL2` while a guest's registers are on the CPU.
pub fn guest_vectors_address() -> u64 {
    &raw const guest_vectors as u64
}

/// Runs a guest until its next exception: 0 is a synchronous one, 1 an IRQ, 2 an FIQ, 3 an SError.
///
/// # Safety
/// `VBAR_EL2` is [`guest_vectors_address`], and all other registers of the guest are on the CPU. Nothing but the stack and the image is touched.
#[inline(always)]
pub unsafe fn enter_guest(running: &mut Running) -> u64 {
    // SAFETY: it keeps the stack and the registers that a callee keeps, by the caller's word.
    unsafe { cloven_enter_guest(running) }
}

/// `PAR_EL1` of a read at `address` by the guest whose registers are on the CPU; 1, a failure, if its walk ends in an External abort, which
/// is EL2's to take.
///
/// # Safety
/// `VBAR_EL2` is [`guest_vectors_address`]; `PAR_EL1`, `TPIDR_EL0` and `TPIDRRO_EL0` are nobody's, nor are `ELR_EL2`, `SPSR_EL2`, `ESR_EL2` and `FAR_EL2`.
pub unsafe fn translate(address: u64) -> u64 {
    // SAFETY: the caller's word.
    unsafe { cloven_translate(address) }
}
