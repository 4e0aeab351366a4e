//! The registers of the host's interrupt controller interface, and the calls that are timed.
//!
//! Invariant: interrupts stay masked: they are taken by asking, so no vector is needed.

use core::arch::asm;

/// There is nothing to acknowledge.
const SPURIOUS: u64 = 1020;

/// Lets interrupts of group 1 and any priority through to this CPU, where they wait.
pub fn enable_interface() {
    // SAFETY: the CPU interface of this CPU; interrupts are masked, and nobody else here uses it.
    unsafe {
        asm!(
            "msr S3_0_C4_C6_0, {pmr}",
            "msr S3_0_C12_C12_7, {on}",
            "isb",
            pmr = in(reg) 0xffu64, // ICC_PMR_EL1
            on = in(reg) 1u64,     // ICC_IGRPEN1_EL1
            options(nostack),
        );
    }
}

/// Acknowledges and ends all interrupts that are pending, with `handle` between for each INTID; returns how many there were.
pub fn take_interrupts(mut handle: impl FnMut(u64)) -> u64 {
    let mut count = 0;
    loop {
        let intid: u64;
        // SAFETY: ICC_IAR1_EL1 of this CPU.
        unsafe { asm!("mrs {}, S3_0_C12_C12_0", "dsb sy", out(reg) intid, options(nostack)) };
        if intid >= SPURIOUS {
            return count;
        }
        handle(intid);
        // SAFETY: ICC_EOIR1_EL1 of this CPU, with what was just acknowledged.
        unsafe { asm!("msr S3_0_C12_C12_1, {}", "isb", in(reg) intid, options(nostack)) };
        count += 1;
    }
}

/// Sleeps until an interrupt is pending, which stays so: at once if one is.
pub fn wait_for_interrupt() {
    // SAFETY: interrupts are masked, so nothing else happens.
    unsafe { asm!("dsb sy", "wfi", options(nostack)) };
}

/// Sends an SGI to the CPU with this affinity.
pub fn send_sgi(intid: u64, mpidr: u64) {
    let affinity = |level: u64| mpidr >> level & 0xff;
    let target = affinity(32) << 48 | affinity(16) << 32 | affinity(8) << 16 | 1 << (mpidr & 0xf);
    let value = intid << 24 | (mpidr >> 4 & 0xf) << 44 | target;
    // SAFETY: ICC_SGI1R_EL1; who gets it has its interrupts masked.
    unsafe { asm!("dsb ishst", "msr S3_0_C12_C11_5, {}", "isb", in(reg) value, options(nostack)) };
}

/// Makes a call by one conduit; see [`smc`].
macro_rules! timed {
    ($conduit:literal, $function:expr, $inputs:expr) => {{
        let [mut x1, mut x2, mut x3, mut x4, x5] = $inputs;
        let mut x0: u64 = $function;
        let (start, end): (u64, u64);
        // SAFETY: a call of the SMC calling convention, which changes X0 to X17 at most. What it does to memory is the caller's to know; the
        // compiler takes all of it as changed.
        unsafe {
            asm!(
                "mrs x21, cntvct_el0",
                $conduit,
                "mrs x22, cntvct_el0",
                inout("x0") x0, inout("x1") x1, inout("x2") x2, inout("x3") x3, inout("x4") x4, inout("x5") x5 => _,
                out("x6") _, out("x7") _, out("x8") _, out("x9") _, out("x10") _, out("x11") _, out("x12") _,
                out("x13") _, out("x14") _, out("x15") _, out("x16") _, out("x17") _,
                out("x21") start, out("x22") end,
                options(nostack),
            );
        }
        ([x0, x1, x2, x3, x4], end - start)
    }};
}

/// A call by SMC with X1 to X5: X0 to X4 of its answer, and the ticks between the instructions before and behind.
pub fn smc(function: u64, inputs: [u64; 5]) -> ([u64; 5], u64) {
    timed!("smc #0", function, inputs)
}

/// As [`smc`], by HVC.
pub fn hvc(function: u64, inputs: [u64; 5]) -> ([u64; 5], u64) {
    timed!("hvc #0", function, inputs)
}
