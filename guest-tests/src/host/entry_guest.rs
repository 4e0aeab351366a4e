//! The assembly of a guest that a trial runs, and of the host's side that must not notice.

use core::arch::global_asm;

global_asm!(
    r#"
    .arch_extension fp
    .arch_extension simd
    .arch_extension sve
    .section .text.guest, "ax"

    // What it is: x0 is ID_AA64PFR0_EL1 and x1 ID_AA64DFR0_EL1.
    .p2align 2
    .global guest_identity
guest_identity:
    mrs     x0, id_aa64pfr0_el1
    mrs     x1, id_aa64dfr0_el1
    hvc     #1

    // It overwrites the registers of EL1 and says what it was in: x0 is what it found in the first of each, x1 MPIDR_EL1.
    .global guest_registers
guest_registers:
    mrs     x2, sp_el0
    mrs     x3, tpidr_el1
    orr     x2, x2, x3
    mrs     x3, ttbr0_el1
    orr     x2, x2, x3
    mrs     x3, mdscr_el1
    orr     x0, x2, x3
    mrs     x1, mpidr_el1
    mov     x2, #0x5a0
    msr     sp_el0, x2
    msr     tpidr_el1, x2
    msr     tpidr_el0, x2
    msr     tpidrro_el0, x2
    msr     contextidr_el1, x2
    msr     ttbr0_el1, x2
    msr     ttbr1_el1, x2
    msr     mair_el1, x2
    msr     tcr_el1, x2
    msr     vbar_el1, x2
    msr     elr_el1, x2
    msr     spsr_el1, x2
    msr     esr_el1, x2
    msr     far_el1, x2
    msr     cntkctl_el1, x2
    msr     par_el1, x2
    msr     mdscr_el1, x2
    msr     actlr_el1, x2
    msr     oslar_el1, xzr
    isb
    hvc     #2

    // Its first vectors are zero (x0), and then they are not.
    .global guest_vectors
guest_vectors:
    mov     x0, #(3 << 20)
    msr     cpacr_el1, x0
    isb
    fmov    x0, d0
    fmov    x1, d31
    orr     x0, x0, x1
    mrs     x1, fpcr
    orr     x0, x0, x1
    mov     x1, #-1
    .irp    number, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    dup     v\number\().2d, x1
    .endr
    mov     x1, #(1 << 24)
    msr     fpcr, x1
    hvc     #3
    // They are still there in the next run.
    fmov    x0, d0
    mrs     x1, fpcr
    hvc     #4

    // An access to what it has not ends in its own handler: x0 is ESR_EL1, x1 how far ELR_EL1 is from the access.
    .global guest_undefined
guest_undefined:
    adr     x0, 2f
    msr     vbar_el1, x0
    isb
1:  mrs     x0, pmcr_el0
    hvc     #5
    .p2align 11
2:  .skip   0x200
    mrs     x0, esr_el1
    mrs     x1, elr_el1
    adr     x2, 1b
    sub     x1, x1, x2
    hvc     #6

    // It goes where nothing is executable: x0.
    .global guest_jump
guest_jump:
    br      x0

    // A call that is answered without an exit, x0 times; then x1 is how often it was.
    .global guest_calls
guest_calls:
    mov     x3, x0
    mov     x1, #1
    mov     x2, #0
    movz    x0, #0xc400, lsl #16
    movk    x0, #0x0190
1:  smc     #0
    subs    x3, x3, #1
    b.ne    1b
    mov     x1, x2
    hvc     #7

    // It stops at once, each time it is run.
    .global guest_stop
guest_stop:
    hvc     #8
    b       guest_stop

    // It waits.
    .global guest_wait
guest_wait:
    wfi
    hvc     #9

    // It sends itself an interrupt.
    .global guest_sends
guest_sends:
    mov     x0, #1
    msr     s3_0_c12_c11_5, x0          // ICC_SGI1R_EL1
    hvc     #9

    // Both timers, x0 ticks from now; then it counts in x1 until it is stopped, and after that looks at them: x0 is CNTV_CTL_EL0 and x1
    // CNTP_CTL_EL0, and again when it has stopped them.
    .global guest_timers
guest_timers:
    isb
    mrs     x2, cntvct_el0
    add     x2, x2, x0
    msr     cntv_cval_el0, x2
    mov     x3, #1
    msr     cntv_ctl_el0, x3
    add     x2, x2, #0x200, lsl #12
    msr     cntp_cval_el0, x2
    msr     cntp_ctl_el0, x3
    isb
1:  mrs     x0, cntv_ctl_el0
    tbz     x0, #2, 1b
    mrs     x1, cntp_ctl_el0
    tbz     x1, #2, 1b
    hvc     #10
    mov     x3, #3
    msr     cntv_ctl_el0, x3
    msr     cntp_ctl_el0, x3
    isb
    mrs     x0, cntv_ctl_el0
    mrs     x1, cntp_ctl_el0
    hvc     #11
    // Again, in the past.
    mov     x3, #1
    msr     cntv_ctl_el0, x3
    isb
1:  b       1b

    // An interrupt that the host gave it: x0 is its number, from the handler.
    .global guest_interrupt
guest_interrupt:
    adr     x0, 2f
    msr     vbar_el1, x0
    isb
    msr     daifclr, #2
1:  b       1b
    .p2align 11
2:  .skip   0x280
    mrs     x0, s3_0_c12_c12_0          // ICC_IAR1_EL1
    msr     s3_0_c12_c12_1, x0          // ICC_EOIR1_EL1
    mrs     x1, isr_el1
    hvc     #12

    // The host's side.

    .macro vectors_128 pair
    \pair   q0, q1, [x19, #0]
    \pair   q2, q3, [x19, #32]
    \pair   q4, q5, [x19, #64]
    \pair   q6, q7, [x19, #96]
    \pair   q8, q9, [x19, #128]
    \pair   q10, q11, [x19, #160]
    \pair   q12, q13, [x19, #192]
    \pair   q14, q15, [x19, #224]
    \pair   q16, q17, [x19, #256]
    \pair   q18, q19, [x19, #288]
    \pair   q20, q21, [x19, #320]
    \pair   q22, q23, [x19, #352]
    \pair   q24, q25, [x19, #384]
    \pair   q26, q27, [x19, #416]
    \pair   q28, q29, [x19, #448]
    \pair   q30, q31, [x19, #480]
    .endm
    .macro vectors_long one
    .irp    number, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    \one    z\number, [x19, #\number, mul vl]
    .endr
    .endm

    // Makes the call of x0 to x3 with vectors from the buffer at x4, which takes them afterwards; long ones if x5 is not zero. x0 is what the
    // call answers in x0, ored with what has changed in FFR and p15.
    .global call_with_vectors
call_with_vectors:
    stp     x29, x30, [sp, #-48]!
    stp     x19, x20, [sp, #16]
    stp     x21, x22, [sp, #32]
    mov     x19, x4
    mov     x20, x5
    mrs     x21, cpacr_el1
    mov     x6, #(3 << 20)
    orr     x6, x6, #(3 << 16)
    msr     cpacr_el1, x6
    isb
    cbnz    x20, 1f
    vectors_128 ldp
    hvc     #0
    vectors_128 stp
    b       2f
1:  mov     x6, #0xf
    msr     s3_0_c1_c2_0, x6            // ZCR_EL1
    isb
    vectors_long ldr
    setffr
    ptrue   p15.b
    hvc     #0
    vectors_long str
    rdffr   p0.b
    cntp    x1, p15, p0.b
    cntb    x2
    cmp     x1, x2
    cset    x1, ne
    orr     x0, x0, x1
2:  msr     cpacr_el1, x21
    isb
    ldp     x21, x22, [sp, #32]
    ldp     x19, x20, [sp, #16]
    ldp     x29, x30, [sp], #48
    ret

    // Bytes of a long vector.
    .global vector_length
vector_length:
    mrs     x3, cpacr_el1
    mov     x1, #(3 << 20)
    orr     x1, x1, #(3 << 16)
    msr     cpacr_el1, x1
    isb
    mov     x2, #0xf
    msr     s3_0_c1_c2_0, x2
    isb
    rdvl    x0, #1
    msr     cpacr_el1, x3
    isb
    ret
    "#
);

/// Instructions of a guest.
#[derive(Clone, Copy)]
pub enum Code {
    Identity,
    Registers,
    Vectors,
    Undefined,
    Jump,
    Calls,
    Stop,
    Wait,
    Sends,
    Timers,
    Interrupt,
}

impl Code {
    /// Where it begins.
    pub fn address(self) -> u64 {
        unsafe extern "C" {
            fn guest_identity();
            fn guest_registers();
            fn guest_vectors();
            fn guest_undefined();
            fn guest_jump();
            fn guest_calls();
            fn guest_stop();
            fn guest_wait();
            fn guest_sends();
            fn guest_timers();
            fn guest_interrupt();
        }
        let code = match self {
            Self::Identity => guest_identity,
            Self::Registers => guest_registers,
            Self::Vectors => guest_vectors,
            Self::Undefined => guest_undefined,
            Self::Jump => guest_jump,
            Self::Calls => guest_calls,
            Self::Stop => guest_stop,
            Self::Wait => guest_wait,
            Self::Sends => guest_sends,
            Self::Timers => guest_timers,
            Self::Interrupt => guest_interrupt,
        };
        code as *const () as u64
    }
}

/// The longest vectors there are, all of them.
pub type Vectors = [u64; 1024];

unsafe extern "C" {
    fn call_with_vectors(function: u64, x1: u64, x2: u64, x3: u64, vectors: &mut Vectors, long: u64) -> u64;
    fn vector_length() -> u64;
}

/// Bytes of a vector of SVE, which the CPU has.
pub fn sve_bytes() -> u64 {
    // SAFETY: it reads a register, and puts back the one that allows it.
    unsafe { vector_length() }
}

/// Makes the call of `function` with `args` and with `vectors` in the vector registers, in all of SVE's if `long`, which come back as they are
/// after it. The answer's x0, not 0 either if a predicate has changed.
pub fn call_with(function: u32, args: [u64; 3], vectors: &mut Vectors, long: bool) -> u64 {
    let [x1, x2, x3] = args;
    // SAFETY: the payload uses no vectors itself, and the buffer holds the longest.
    unsafe { call_with_vectors(function.into(), x1, x2, x3, vectors, long.into()) }
}
