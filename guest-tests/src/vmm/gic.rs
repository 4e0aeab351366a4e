//! The host's interrupt controller, as much of it as makes a REC come back: the realm's timers, an SGI from another CPU, what the virtual
//! CPU interface asks for, and what is typed (GICv3).
//!
//! Invariant: beside the private interrupts of the CPUs only the UART's is enabled, and goes to the boot CPU.

use hyp::machine::Machine;
use hyp::mapping::Address;
use vmm_logic::lists::{PHYSICAL_TIMER, VIRTUAL_TIMER};

use super::{entry, uart};

/// The maintenance interrupt: a REC has no interrupt left of those in its list registers, and there are more.
const MAINTENANCE: u64 = 25;
/// The SGI by which a CPU is called back from its REC.
pub const KICK: u64 = 8;

/// Where the redistributors lie, one after the other, each with two frames of 64 KiB.
const FRAME: u64 = 0x1_0000;
const GICD_CTLR: u64 = 0;
const GICD_IGROUPR: u64 = 0x80;
const GICD_ISENABLER: u64 = 0x100;
const GICD_IPRIORITYR: u64 = 0x400;
const GICD_IROUTER: u64 = 0x6000;
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

/// Sends what the UART receives to the boot CPU.
pub fn enable_uart(machine: &Machine<'_>) {
    let Some(boot) = machine.cpus.first() else { return };
    let distributor = machine.gic.distributor.start().get();
    let intid = u64::from(uart::INTID);
    let (word, bit) = (4 * (intid / 32), 1 << (intid % 32));
    write(distributor + GICD_IGROUPR + word, read(distributor + GICD_IGROUPR + word) | bit);
    set_priority(distributor + GICD_IPRIORITYR, intid);
    write(distributor + GICD_IROUTER + 8 * intid, (boot.mpidr & 0xff_ffff) as u32);
    write(distributor + GICD_IROUTER + 8 * intid + 4, (boot.mpidr >> 32 & 0xff) as u32);
    write(distributor + GICD_ISENABLER + word, bit);
}

/// Gives an interrupt the priority that all of them have.
fn set_priority(registers: u64, intid: u64) {
    let (word, shift) = (registers + (intid & !3), 8 * (intid & 3));
    write(word, read(word) & !(0xff << shift) | 0x80 << shift);
}

/// Enables what calls the CPU `number` back from a realm; whether it has a redistributor. Runs on the boot CPU for each.
pub fn enable_private(machine: &Machine<'_>, number: usize) -> bool {
    const PROCESSOR_SLEEP: u32 = 1 << 1;
    let Some(frame) = machine.cpus.get(number).and_then(|cpu| redistributor(machine, cpu.mpidr)) else {
        return false;
    };
    write(frame + GICR_WAKER, read(frame + GICR_WAKER) & !PROCESSOR_SLEEP);
    write(frame + GICR_IGROUPR0, !0);
    for intid in [KICK, MAINTENANCE, VIRTUAL_TIMER.into(), PHYSICAL_TIMER.into()] {
        set_priority(frame + GICR_IPRIORITYR, intid);
        write(frame + GICR_ISENABLER0, 1 << intid);
    }
    true
}

/// Lets them through to this CPU.
pub fn enable_interface() {
    entry::enable_interface();
}
