//! Turning the MMU on, and keeping TLBs in step afterwards: where a stage 1 map meets the CPU.
//!
//! Invariant: between the old tables and the new ones the MMU is off, so no CPU holds entries of both that
//! differ in size or attributes (break-before-make of everything, Arm ARM D8.17.1). The code runs at the same
//! address in both, and touches no memory in between.

use core::arch::asm;
use core::marker::PhantomData;

use super::{Registers, SCTLR_EL1_OFF, SCTLR_EL2_OFF};
use crate::mapping::mmu::Reach;
use crate::mapping::{
    Barrier, El1And0, El2, Linear, Mmu, NoQuiesce, Pool, Quiesce, Regime, Scope, Slot, Tlbi,
};

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

/// As [`fn@el2`], at EL1.
///
/// # Safety
/// As [`fn@el2`], at EL1.
pub unsafe fn el1(registers: &Registers) {
    // SAFETY: as for EL2.
    unsafe {
        asm!(
            "dsb ish",
            "msr sctlr_el1, {off}",
            "isb",
            "msr mair_el1, {mair}",
            "msr tcr_el1, {tcr}",
            "msr ttbr0_el1, {ttbr0}",
            "isb",
            "tlbi vmalle1",
            "dsb nsh",
            "isb",
            "msr sctlr_el1, {on}",
            "isb",
            off = in(reg) SCTLR_EL1_OFF,
            mair = in(reg) registers.mair,
            tcr = in(reg) registers.tcr,
            ttbr0 = in(reg) registers.ttbr0,
            on = in(reg) registers.sctlr,
            options(nostack),
        );
    }
}

/// The TLB maintenance instructions of a regime.
pub trait Instructions: Regime {
    /// Issues the one that `operation` names.
    fn tlbi(operation: Tlbi, scope: Scope, operand: u64);
}

/// The CPU's own MMU for maps of regime `R`: tables at their physical addresses, from a pool that maps share. It is used at
/// the exception level that the regime's instructions are for.
pub struct CpuMmu<R, Q: 'static = NoQuiesce> {
    pool: &'static Pool<Linear>,
    slots: &'static [Slot],
    quiesce: &'static Q,
    /// Whether anything runs under its maps.
    is_used: bool,
    regime: PhantomData<R>,
}

/// Tables lie at their physical addresses.
pub const IDENTITY: Linear = Linear::new(0);

impl<R> CpuMmu<R> {
    /// With tables of `pool` and a slot for each CPU. Nobody can be made to wait.
    ///
    /// # Safety
    /// The pool's tables are mapped at their physical addresses wherever a map with this MMU is used, and that is at the exception
    /// level of `R`'s instructions.
    pub const unsafe fn new(pool: &'static Pool<Linear>, slots: &'static [Slot]) -> Self {
        // SAFETY: the caller's word.
        unsafe { CpuMmu::with_quiesce(pool, slots, &NoQuiesce) }
    }
}

impl<R, Q: Quiesce> CpuMmu<R, Q> {
    /// As [`CpuMmu::new`], with others who stand still when `quiesce` asks them to.
    ///
    /// # Safety
    /// As [`CpuMmu::new`]; and `quiesce` is of all CPUs that translate through maps with this MMU.
    pub const unsafe fn with_quiesce(
        pool: &'static Pool<Linear>,
        slots: &'static [Slot],
        quiesce: &'static Q,
    ) -> Self {
        Self { pool, slots, quiesce, is_used: true, regime: PhantomData }
    }

    /// For maps that only say what belongs to whom: there are no invalidations, as nobody uses what a CPU may have cached of them.
    ///
    /// # Safety
    /// Nothing ever runs at the exception levels of the regime under a map with this MMU, nor under its VMID.
    pub const unsafe fn unused(self) -> Self {
        Self { is_used: false, ..self }
    }
}

// SAFETY: tables are where the pool says, by the word of who made it; the instructions are those of the regime.
unsafe impl<R: Instructions, Q: Quiesce> Mmu for CpuMmu<R, Q> {
    type Tables = Linear;
    type Pool = Pool<Linear>;
    type Quiesce = Q;
    fn tables(&self) -> &Linear {
        &IDENTITY
    }
    fn pool(&self) -> &Pool<Linear> {
        self.pool
    }
    fn quiesce(&self) -> &Q {
        self.quiesce
    }
    fn slots(&self) -> &[Slot] {
        self.slots
    }
    fn wait(&self) {
        self.quiesce.pass();
        self.relax();
    }
    fn tlbi(&self, operation: Tlbi, scope: Scope, operand: u64) {
        if self.is_used {
            R::tlbi(operation, scope, operand);
        }
    }
    fn barrier(&self, which: Barrier, scope: Scope) {
        barrier(which, scope);
    }
}

/// Issues a barrier.
pub(crate) fn barrier(which: Barrier, scope: Scope) {
    // SAFETY: barriers change no state.
    unsafe {
        match (which, scope) {
            (Barrier::StoresVisible, Scope::Broadcast) => asm!("dsb ishst", options(nostack)),
            (Barrier::StoresVisible, Scope::Local) => asm!("dsb nshst", options(nostack)),
            (Barrier::Complete, Scope::Broadcast) => asm!("dsb ish", options(nostack)),
            (Barrier::Complete, Scope::Local) => asm!("dsb nsh", options(nostack)),
            (Barrier::Synchronize, _) => asm!("isb", options(nostack)),
        }
    }
}

/// A TLBI instruction, by name.
macro_rules! tlbi {
    ($name:literal) => {
        // SAFETY: invalidation only costs the walks that follow.
        unsafe { ::core::arch::asm!(concat!("tlbi ", $name), options(nostack)) }
    };
    ($name:literal, $operand:expr) => {
        // SAFETY: as above.
        unsafe {
            ::core::arch::asm!(
                ".arch_extension tlb-rmi",
                concat!("tlbi ", $name, ", {}"),
                in(reg) $operand,
                options(nostack),
            )
        }
    };
}
pub(crate) use tlbi;

impl Instructions for El2 {
    fn tlbi(operation: Tlbi, scope: Scope, operand: u64) {
        use Scope::{Broadcast, Local};
        let last_level = matches!(operation, Tlbi::Address(Reach { last_level: true, .. }))
            || matches!(operation, Tlbi::Range(Reach { last_level: true, .. }));
        match (operation, last_level, scope) {
            (Tlbi::All | Tlbi::Asid | Tlbi::Combined, _, Broadcast) => tlbi!("alle2is"),
            (Tlbi::All | Tlbi::Asid | Tlbi::Combined, _, Local) => tlbi!("alle2"),
            (Tlbi::Address(_), false, Broadcast) => tlbi!("vae2is", operand),
            (Tlbi::Address(_), false, Local) => tlbi!("vae2", operand),
            (Tlbi::Address(_), true, Broadcast) => tlbi!("vale2is", operand),
            (Tlbi::Address(_), true, Local) => tlbi!("vale2", operand),
            (Tlbi::Range(_), false, Broadcast) => tlbi!("rvae2is", operand),
            (Tlbi::Range(_), false, Local) => tlbi!("rvae2", operand),
            (Tlbi::Range(_), true, Broadcast) => tlbi!("rvale2is", operand),
            (Tlbi::Range(_), true, Local) => tlbi!("rvale2", operand),
        }
    }
}

impl Instructions for El1And0 {
    fn tlbi(operation: Tlbi, scope: Scope, operand: u64) {
        use Scope::{Broadcast, Local};
        match (operation, scope) {
            (Tlbi::All | Tlbi::Combined, Broadcast) => tlbi!("vmalle1is"),
            (Tlbi::All | Tlbi::Combined, Local) => tlbi!("vmalle1"),
            (Tlbi::Asid, Broadcast) => tlbi!("aside1is", operand),
            (Tlbi::Asid, Local) => tlbi!("aside1", operand),
            (Tlbi::Address(reach), scope) => match (reach.one_asid, reach.last_level, scope) {
                (true, false, Broadcast) => tlbi!("vae1is", operand),
                (true, false, Local) => tlbi!("vae1", operand),
                (true, true, Broadcast) => tlbi!("vale1is", operand),
                (true, true, Local) => tlbi!("vale1", operand),
                (false, false, Broadcast) => tlbi!("vaae1is", operand),
                (false, false, Local) => tlbi!("vaae1", operand),
                (false, true, Broadcast) => tlbi!("vaale1is", operand),
                (false, true, Local) => tlbi!("vaale1", operand),
            },
            (Tlbi::Range(reach), scope) => match (reach.one_asid, reach.last_level, scope) {
                (true, false, Broadcast) => tlbi!("rvae1is", operand),
                (true, false, Local) => tlbi!("rvae1", operand),
                (true, true, Broadcast) => tlbi!("rvale1is", operand),
                (true, true, Local) => tlbi!("rvale1", operand),
                (false, false, Broadcast) => tlbi!("rvaae1is", operand),
                (false, false, Local) => tlbi!("rvaae1", operand),
                (false, true, Broadcast) => tlbi!("rvaale1is", operand),
                (false, true, Local) => tlbi!("rvaale1", operand),
            },
        }
    }
}
