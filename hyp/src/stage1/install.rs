//! Turning the MMU on: the one place where a stage 1 map becomes what a CPU runs on.
//!
//! Invariant: between the old tables and the new ones the MMU is off, so no CPU holds entries of both that
//! differ in size or attributes (break-before-make of everything, Arm ARM D8.17.1). The code runs at the same
//! address in both, and touches no memory in between.

use core::arch::asm;

use super::{Registers, SCTLR_EL2_OFF};

/// Runs this CPU's EL2 on the map of `registers`, with caches on.
///
/// # Safety
/// Runs at EL2 with `HCR_EL2.E2H` = 0. The map must translate this code, the current stack and all that the
/// program holds references to at the addresses they have now, be whole, and never be freed.
pub unsafe fn el2(registers: &Registers) {
    // SAFETY: the caller vouches for the map. The stores that made it are completed by the first DSB; no memory
    // is accessed until the MMU is on again, and all TLB entries of this CPU's EL2 regime are gone by then.
    unsafe {
        asm!(
            "dsb ish",
            "msr sctlr_el2, {off}",
            "isb",
            "msr mair_el2, {mair}",
            "msr tcr_el2, {tcr}",
            "msr ttbr0_el2, {ttbr0}",
            "isb",
            "tlbi alle2",
            "dsb nsh",
            "isb",
            "msr sctlr_el2, {on}",
            "isb",
            off = in(reg) SCTLR_EL2_OFF,
            mair = in(reg) registers.mair,
            tcr = in(reg) registers.tcr,
            ttbr0 = in(reg) registers.ttbr0,
            on = in(reg) registers.sctlr,
            options(nostack),
        );
    }
}

/// Turns the MMU and the caches of this CPU's EL1 on, with the map of `registers`, after a phase with the MMU off that
/// has written in `start` to `end`: lines of it that were cached meanwhile (an exception level above may speculate there)
/// are dropped, for they are older than memory.
///
/// # Safety
/// As [`fn@el2`], at EL1, with the MMU off. Nobody has written in `start` to `end` through a cache since the MMU went off.
pub unsafe fn el1(registers: &Registers, start: usize, end: usize) {
    // SAFETY: as for EL2; from the first invalidation on no memory is written.
    unsafe {
        asm!(
            "mrs {line}, ctr_el0",
            "ubfx {line}, {line}, #16, #4",
            "mov {size}, #4",
            "lsl {size}, {size}, {line}",
            "sub {line}, {size}, #1",
            "bic {at}, {at}, {line}",
            "dsb sy",
            "2: cmp {at}, {end}",
            "b.hs 3f",
            "dc ivac, {at}",
            "add {at}, {at}, {size}",
            "b 2b",
            "3: dsb sy",
            "msr mair_el1, {mair}",
            "msr tcr_el1, {tcr}",
            "msr ttbr0_el1, {ttbr0}",
            "isb",
            "tlbi vmalle1",
            "ic iallu",
            "dsb nsh",
            "isb",
            "msr sctlr_el1, {on}",
            "isb",
            line = out(reg) _,
            size = out(reg) _,
            at = inout(reg) start => _,
            end = in(reg) end,
            mair = in(reg) registers.mair,
            tcr = in(reg) registers.tcr,
            ttbr0 = in(reg) registers.ttbr0,
            on = in(reg) registers.sctlr,
            options(nostack),
        );
    }
}
