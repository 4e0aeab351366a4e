//! The host's interrupt controller, as much of it as makes a REC come back: the realm's timers, and an SGI from another CPU (GICv3).
//!
//! Invariant: only the private interrupts of a CPU are enabled, by that CPU.

use hyp::machine::Machine;
use hyp::mapping::Address;
use vmm_logic::lists::{PHYSICAL_TIMER, VIRTUAL_TIMER};

use super::entry;

/// The SGI by which a CPU is called back from its REC.
pub const KICK: u64 = 8;

/// Where the redistributors lie, one after the other, each with two frames of 64 KiB.
const FRAME: u64 = 0x1_0000;
const GICD_CTLR: u64 = 0;
const GICR_TYPER: u64 = 8;
const GICR_WAKER: u64 = 0x14;
const GICR_IGROUPR0: u64 = FRAME + 0x80;
const GICR_ISENABLER0: u64 = FRAME + 0x100;
const GICR_IPRIORITYR: u64 = FRAME + 0x400;
/// Of GICR_TYPER: two more frames follow; this is the last redistributor of its region.
const VIRTUAL_LPIS: u64 = 1 << 1;
const LAST: u64 = 1 << 4;

fn read(address: u64) -> u32 {
    // SAFETY: a register of the interrupt controller, mapped as a device by `Memory`.
    unsafe { (address as *const u32).read_volatile() }
}

fn write(address: u64, value: u32) {
    // SAFETY: as above; what is written enables interrupts that stay masked at each CPU.
    unsafe { (address as *mut u32).write_volatile(value) };
}

/// The redistributor of the CPU with this affinity.
fn redistributor(machine: &Machine<'_>, mpidr: u64) -> Option<u64> {
    let affinity = (mpidr >> 32 & 0xff) << 24 | mpidr & 0xff_ffff;
    for region in &machine.gic.redistributors {
        let mut frame = region.start().get();
        while frame + 2 * FRAME <= region.end() {
            let kind = u64::from(read(frame + GICR_TYPER));
            if u64::from(read(frame + GICR_TYPER + 4)) == affinity {
                return Some(frame);
            }
            if kind & LAST != 0 {
                break;
            }
            frame += if kind & VIRTUAL_LPIS != 0 { 4 } else { 2 } * FRAME;
        }
    }
    None
}

/// Turns the distributor on: affinity routing, and group 1.
pub fn enable_distributor(machine: &Machine<'_>) {
    const ROUTING: u32 = 1 << 4;
    const GROUP_1: u32 = 1 << 1;
    write(machine.gic.distributor.start().get() + GICD_CTLR, ROUTING);
    write(machine.gic.distributor.start().get() + GICD_CTLR, ROUTING | GROUP_1);
}

/// Enables what calls the CPU `number` back from a realm; whether it has a redistributor. Runs on the boot CPU for each.
pub fn enable_private(machine: &Machine<'_>, number: usize) -> bool {
    const PROCESSOR_SLEEP: u32 = 1 << 1;
    let Some(frame) = machine.cpus.get(number).and_then(|cpu| redistributor(machine, cpu.mpidr)) else {
        return false;
    };
    write(frame + GICR_WAKER, read(frame + GICR_WAKER) & !PROCESSOR_SLEEP);
    write(frame + GICR_IGROUPR0, !0);
    for intid in [KICK, VIRTUAL_TIMER.into(), PHYSICAL_TIMER.into()] {
        let priorities = frame + GICR_IPRIORITYR + (intid & !3);
        let shift = 8 * (intid & 3);
        write(priorities, read(priorities) & !(0xff << shift) | 0x80 << shift);
        write(frame + GICR_ISENABLER0, 1 << intid);
    }
    true
}

/// Lets them through to this CPU.
pub fn enable_interface() {
    entry::enable_interface();
}
