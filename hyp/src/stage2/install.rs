//! Putting a stage 2 map under this CPU's EL1 and EL0.

use core::arch::asm;

use super::Registers;
use crate::mapping::{Barrier, Linear, Mmu, NoQuiesce, Pool, Quiesce, Scope, Slot, Stage2, Tlbi};
use crate::stage1::install::{CpuMmu, Instructions, tlbi};

/// From the next entry to EL1 on, this CPU translates its accesses through the map of `registers`: `HCR_EL2.VM` is set when these
/// are. Nothing that it cached of an earlier map, or without one, is used.
///
/// # Safety
/// Runs at EL2. The map must be whole and never be freed while it is installed.
pub unsafe fn install(registers: &Registers) {
    // SAFETY: the caller vouches for the map; EL1 does not run meanwhile, so an entry of an older map (or one of
    // the state before this CPU was off) can only be there until the invalidation (Arm ARM D8.16.3).
    unsafe {
        asm!(
            "dsb ish",
            "msr vtcr_el2, {vtcr}",
            "msr vttbr_el2, {vttbr}",
            "isb",
            "mrs {hcr}, hcr_el2",
            "orr {hcr}, {hcr}, #{VM}",
            "msr hcr_el2, {hcr}",
            "isb",
            "tlbi alle1",
            "dsb nsh",
            "isb",
            vtcr = in(reg) registers.vtcr,
            vttbr = in(reg) registers.vttbr,
            hcr = out(reg) _,
            VM = const 1,
            options(nostack),
        );
    }
}

/// Forgets every stage 1 and stage 2 entry that this CPU has of the installed VMID: the answer to a TLB conflict
/// abort from below (Arm ARM D8.17.2, R_FWRMB). All entries, as only then both sides of a conflict are gone.
pub fn forget_all() {
    // SAFETY: invalidation only costs the walks that follow.
    unsafe { asm!("dsb nshst", "tlbi vmalls12e1", "dsb nsh", "isb", options(nostack)) };
}

/// Of the VMID that is installed on this CPU: whoever keeps several maps installs the one that is meant first.
impl Instructions for Stage2 {
    fn tlbi(operation: Tlbi, scope: Scope, operand: u64) {
        use Scope::{Broadcast, Local};
        match (operation, scope) {
            (Tlbi::All | Tlbi::Asid, Broadcast) => tlbi!("vmalls12e1is"),
            (Tlbi::All | Tlbi::Asid, Local) => tlbi!("vmalls12e1"),
            (Tlbi::Combined, Broadcast) => tlbi!("vmalle1is"),
            (Tlbi::Combined, Local) => tlbi!("vmalle1"),
            (Tlbi::Address(reach), scope) => match (reach.last_level, scope) {
                (false, Broadcast) => tlbi!("ipas2e1is", operand),
                (false, Local) => tlbi!("ipas2e1", operand),
                (true, Broadcast) => tlbi!("ipas2le1is", operand),
                (true, Local) => tlbi!("ipas2le1", operand),
            },
            (Tlbi::Range(reach), scope) => match (reach.last_level, scope) {
                (false, Broadcast) => tlbi!("ripas2e1is", operand),
                (false, Local) => tlbi!("ripas2e1", operand),
                (true, Broadcast) => tlbi!("ripas2le1is", operand),
                (true, Local) => tlbi!("ripas2le1", operand),
            },
        }
    }
}

/// As [`CpuMmu`], for the map of a guest that is not installed: its registers are, for the length of each invalidation, on the CPU that makes it.
pub struct GuestMmu<Q: 'static = NoQuiesce> {
    cpu: CpuMmu<Stage2, Q>,
    registers: Registers,
}

impl<Q: Quiesce> GuestMmu<Q> {
    /// For the map of `registers`.
    ///
    /// # Safety
    /// As [`CpuMmu::with_quiesce`]; it is used at EL2 only, where EL1 and EL0 do not run meanwhile. The map's root stays a table until everything of
    /// its VMID was invalidated for the last time.
    pub const unsafe fn new(
        pool: &'static Pool<Linear>,
        slots: &'static [Slot],
        quiesce: &'static Q,
        registers: Registers,
    ) -> Self {
        // SAFETY: the caller's word.
        Self { cpu: unsafe { CpuMmu::with_quiesce(pool, slots, quiesce) }, registers }
    }
}

// SAFETY: as for `CpuMmu`; invalidations are of the VMID that the registers have.
unsafe impl<Q: Quiesce> Mmu for GuestMmu<Q> {
    type Tables = Linear;
    type Pool = Pool<Linear>;
    type Quiesce = Q;
    #[inline(always)]
    fn tables(&self) -> &Linear {
        self.cpu.tables()
    }
    fn pool(&self) -> &Pool<Linear> {
        self.cpu.pool()
    }
    fn quiesce(&self) -> &Q {
        self.cpu.quiesce()
    }
    fn slots(&self) -> &[Slot] {
        self.cpu.slots()
    }
    fn wait(&self) {
        self.cpu.wait();
    }
    fn tlbi(&self, operation: Tlbi, scope: Scope, operand: u64) {
        let Registers { vtcr, vttbr } = self.registers;
        let (kept_vtcr, kept_vttbr): (u64, u64);
        // SAFETY: EL1 and EL0 do not run between the two, so nothing is translated by what is installed; the return to them synchronizes the
        // second.
        unsafe {
            asm!(
                "mrs {kept_vtcr}, vtcr_el2",
                "mrs {kept_vttbr}, vttbr_el2",
                "msr vtcr_el2, {vtcr}",
                "msr vttbr_el2, {vttbr}",
                "isb",
                kept_vtcr = out(reg) kept_vtcr,
                kept_vttbr = out(reg) kept_vttbr,
                vtcr = in(reg) vtcr,
                vttbr = in(reg) vttbr,
                options(nostack, preserves_flags),
            );
            <Stage2 as Instructions>::tlbi(operation, scope, operand);
            asm!(
                "msr vtcr_el2, {vtcr}",
                "msr vttbr_el2, {vttbr}",
                vtcr = in(reg) kept_vtcr,
                vttbr = in(reg) kept_vttbr,
                options(nostack, preserves_flags),
            );
        }
    }
    #[inline]
    fn barrier(&self, barrier: Barrier, scope: Scope) {
        self.cpu.barrier(barrier, scope);
    }
}
