//! The registers of the host's interrupt controller interface.
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

/// Acknowledges and ends all interrupts that are pending; returns how many there were.
pub fn take_interrupts() -> u64 {
    let mut count = 0;
    loop {
        let intid: u64;
        // SAFETY: ICC_IAR1_EL1 of this CPU.
        unsafe { asm!("mrs {}, S3_0_C12_C12_0", out(reg) intid, options(nostack)) };
        if intid >= SPURIOUS {
            return count;
        }
        // SAFETY: ICC_EOIR1_EL1 of this CPU, with what was just acknowledged.
        unsafe { asm!("msr S3_0_C12_C12_1, {}", "isb", in(reg) intid, options(nostack)) };
        count += 1;
    }
}

/// Sends an SGI to the CPU with this affinity.
pub fn send_sgi(intid: u64, mpidr: u64) {
    let affinity = |level: u64| mpidr >> level & 0xff;
    let target = affinity(32) << 48 | affinity(16) << 32 | affinity(8) << 16 | 1 << (mpidr & 0xf);
    let value = intid << 24 | (mpidr >> 4 & 0xf) << 44 | target;
    // SAFETY: ICC_SGI1R_EL1; who gets it has its interrupts masked.
    unsafe { asm!("dsb ishst", "msr S3_0_C12_C11_5, {}", "isb", in(reg) value, options(nostack)) };
}
