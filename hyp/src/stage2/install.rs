//! Putting a stage 2 map under this CPU's EL1 and EL0.

use core::arch::asm;

use super::{Registers, Supplied};
use crate::mapping::{Barrier, Linear, Mmu, NoQuiesce, Quiesce, Scope, Slot, Stage2, Tlbi};
use crate::stage1::install::{IDENTITY, Instructions, barrier, tlbi};

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

/// `TCR_EL1.EPD0` and `EPD1`: no walks of EL1's tables.
const TCR_EPD: u64 = 1 << 7 | 1 << 23;
const SCTLR_M: u64 = 1 << 0;

/// Runs `work` with `registers` as this CPU's stage 2, EL1 not walking (see below), and puts back what was there.
///
/// A CPU that speculates AT instructions at EL2 (Cortex-A55 1530923, A57 1319537, A72 1319367, A76 1165522) could walk the tables of the one
/// EL1 through the stage 2 of the other, and keep what it finds under the wrong VMID. So, on every CPU, EL1's walks end first, with
/// `SCTLR_EL1.M` set, as without it stage 2 alone translates; and they begin again last; an ISB is behind each step. The order is that of the
/// world switch.
///
/// # Safety
/// Runs at EL2 with interrupts masked; `registers` are of a map that is whole.
unsafe fn under(registers: &Registers, work: impl FnOnce()) {
    let (tcr, sctlr, vtcr, vttbr): (u64, u64, u64, u64);
    // SAFETY: EL1 does not run, and finds its registers as they were.
    unsafe {
        asm!(
            "mrs {tcr}, tcr_el1",
            "mrs {sctlr}, sctlr_el1",
            "mrs {vtcr}, vtcr_el2",
            "mrs {vttbr}, vttbr_el2",
            "orr {with}, {tcr}, {epd}",
            "msr tcr_el1, {with}",
            "isb",
            "orr {with}, {sctlr}, #{m}",
            "msr sctlr_el1, {with}",
            "isb",
            "msr vtcr_el2, {new_vtcr}",
            "msr vttbr_el2, {new_vttbr}",
            "isb",
            tcr = out(reg) tcr,
            sctlr = out(reg) sctlr,
            vtcr = out(reg) vtcr,
            vttbr = out(reg) vttbr,
            with = out(reg) _,
            epd = in(reg) TCR_EPD,
            m = const SCTLR_M,
            new_vtcr = in(reg) registers.vtcr,
            new_vttbr = in(reg) registers.vttbr,
            options(nostack, preserves_flags),
        );
    }
    work();
    // SAFETY: as above.
    unsafe {
        asm!(
            "msr vtcr_el2, {vtcr}",
            "msr vttbr_el2, {vttbr}",
            "isb",
            "msr sctlr_el1, {sctlr}",
            "isb",
            "msr tcr_el1, {tcr}",
            "isb",
            tcr = in(reg) tcr,
            sctlr = in(reg) sctlr,
            vtcr = in(reg) vtcr,
            vttbr = in(reg) vttbr,
            options(nostack, preserves_flags),
        );
    }
}

/// Forgets what all CPUs have of the map and VMID of `registers`: before another map gets that VMID.
///
/// # Safety
/// Runs at EL2 with interrupts masked; the map of `registers` is whole.
pub unsafe fn forget_everywhere(registers: &Registers) {
    // SAFETY: the caller's word; and invalidation only costs the walks that follow.
    unsafe {
        asm!("dsb ishst", options(nostack, preserves_flags));
        under(registers, || <Stage2 as Instructions>::tlbi(Tlbi::All, Scope::Broadcast, 0));
        asm!("dsb ish", options(nostack, preserves_flags));
    }
}

/// The MMU of a guest's map: each invalidation is made under the map's VMID, whichever is installed. Its tables lie at their physical
/// addresses, and who changes the map [supplies](Supplied) them. Who waits passes `Q`, the gate of the map that EL2 runs on.
pub struct GuestMmu<Q: 'static = NoQuiesce> {
    registers: Registers,
    slots: &'static [Slot],
    gate: &'static Q,
}

impl<Q: Quiesce> GuestMmu<Q> {
    /// Of the map that `registers` install, with a slot for each CPU.
    ///
    /// # Safety
    /// It is used at EL2 with interrupts masked, where the map's tables are mapped at their physical addresses. While the map is there no
    /// other has its VMID.
    pub const unsafe fn new(registers: Registers, slots: &'static [Slot], gate: &'static Q) -> Self {
        Self { registers, slots, gate }
    }

    /// What installs the map.
    pub fn registers(&self) -> &Registers {
        &self.registers
    }
}

// SAFETY: tables are where the word of who made it says; invalidations are those of stage 2, under its VMID.
unsafe impl<Q: Quiesce> Mmu for GuestMmu<Q> {
    type Tables = Linear;
    type Pool = Supplied;
    // No break at stage 2 needs it.
    type Quiesce = NoQuiesce;
    fn tables(&self) -> &Linear {
        &IDENTITY
    }
    fn pool(&self) -> &Supplied {
        &Supplied
    }
    fn quiesce(&self) -> &NoQuiesce {
        &NoQuiesce
    }
    fn slots(&self) -> &[Slot] {
        self.slots
    }
    fn wait(&self) {
        self.gate.pass();
        self.relax();
    }
    fn tlbi(&self, operation: Tlbi, scope: Scope, operand: u64) {
        // SAFETY: by the word of who made it.
        unsafe { under(&self.registers, || <Stage2 as Instructions>::tlbi(operation, scope, operand)) }
    }
    fn barrier(&self, which: Barrier, scope: Scope) {
        barrier(which, scope);
    }
}
