//! Data cache maintenance by address (Arm ARM D7.5.9): for memory that a CPU reads with its MMU off.

use core::arch::asm;

use arm_sysregs::el0::accessors::read_ctr_el0;

/// Forgets on every CPU what was fetched as an instruction: after code was written, and before it runs.
pub fn forget_instructions() {
    // SAFETY: it only costs the fetches that follow.
    unsafe { asm!("ic ialluis", "dsb ish", "isb", options(nostack)) };
}

/// Completes all stores before this, for any CPU of the inner shareable domain. An SMC alone does not.
pub fn complete_stores() {
    // SAFETY: a barrier.
    unsafe { asm!("dsb ishst", options(nostack)) };
}

/// Cleans and invalidates `size` bytes from `start` on to the point of coherency, and waits for it.
pub fn clean_and_invalidate(start: usize, size: usize) {
    let line = 4usize << read_ctr_el0().dminline();
    let mut at = start & !(line - 1);
    while at < start + size {
        // SAFETY: the maintenance writes back what is there and changes no value.
        unsafe { asm!("dc civac, {}", in(reg) at, options(nostack)) };
        at += line;
    }
    // SAFETY: a barrier.
    unsafe { asm!("dsb sy", options(nostack)) };
}
