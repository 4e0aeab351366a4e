//! Faults of our own: a register dump and a backtrace, then the machine is powered off.
//!
//! Invariant: the first fault of a CPU is told from a stack of its own and touches nothing that it does not have to;
//! a second one tells nothing. A machine whose hypervisor has failed does not go on.
//!
//! The lines `at image+OFFSET` are offsets into the linked image: `cargo xtask run` puts names beside them.

use core::arch::asm;
use core::panic::PanicInfo;
use core::sync::atomic::Ordering;

use arm_sysregs::el2::accessors::{read_elr_el2, read_esr_el2, read_far_el2, read_hpfar_el2, read_spsr_el2};
use smccc::psci;

use super::image;
use super::logger::{fatal, fatal_detail};
use super::percpu::{FAULT_STACK_OFFSET, PerCpu, STACK_SIZE};
use super::vectors::FaultFrame;
use crate::mapping::Address;

/// Frames that a backtrace shows at most.
const DEPTH: usize = 32;

const VECTORS: [&str; 16] = [
    "synchronous exception on SP_EL0",
    "IRQ on SP_EL0",
    "FIQ on SP_EL0",
    "SError on SP_EL0",
    "synchronous exception at EL2",
    "IRQ at EL2",
    "FIQ at EL2",
    "SError at EL2",
    "synchronous exception from below",
    "IRQ from below",
    "FIQ from below",
    "SError from below",
    "synchronous exception from below, AArch32",
    "IRQ from below, AArch32",
    "FIQ from below, AArch32",
    "SError from below, AArch32",
];

/// The vectors come here.
#[unsafe(no_mangle)]
extern "C" fn cloven_own_fault(number: usize, frame: &FaultFrame) -> ! {
    first_or_stop();
    let (elr, esr, far) = (read_elr_el2().bits(), read_esr_el2().bits(), read_far_el2().bits());
    fatal(format_args!("{} (ESR {esr:#x}, FAR {far:#x})", VECTORS[number % VECTORS.len()]));
    let (hpfar, spsr) = (read_hpfar_el2().bits(), read_spsr_el2().bits());
    fatal_detail(format_args!("PC  {elr:016x}  SP  {:016x}  SPSR {spsr:#x}  HPFAR {hpfar:#x}", frame.sp));
    for (row, values) in frame.x.chunks(4).enumerate() {
        match *values {
            [a, b, c, d] => fatal_detail(format_args!("x{:<2} {a:016x} {b:016x} {c:016x} {d:016x}", row * 4)),
            _ => fatal_detail(format_args!(
                "x{:<2} {:016x} {:016x} {:016x}",
                row * 4,
                values[0],
                values[1],
                values[2]
            )),
        }
    }
    // The faulting instruction itself is no return address: one instruction further, so that all are alike.
    backtrace(elr.wrapping_add(4), frame.x[29]);
    power_off()
}

/// For the platform's panic handler.
pub fn panicked(info: &PanicInfo<'_>) -> ! {
    first_or_stop();
    match info.location() {
        Some(at) => fatal(format_args!("{} ({}:{})", info.message(), at.file(), at.line())),
        None => fatal(format_args!("{}", info.message())),
    }
    let frame: u64;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, x29", out(reg) frame, options(nomem, nostack)) };
    backtrace(0, frame);
    power_off()
}

/// Says in one line why the hypervisor does not start, and powers off.
pub fn refuse(why: core::fmt::Arguments<'_>) -> ! {
    first_or_stop();
    fatal(why);
    power_off()
}

fn first_or_stop() {
    match PerCpu::this().deaths.fetch_add(1, Ordering::Relaxed) {
        0 => {}
        // The telling failed: what is left is not to go on.
        1 => power_off(),
        _ => stop(),
    }
}

/// Prints `pc` (unless 0) and the return addresses of the frame records from `frame` on (AAPCS64, "The frame pointer").
fn backtrace(pc: u64, mut frame: u64) {
    let Ok(layout) = image::layout() else { return };
    let tell = |pc: u64| {
        if layout.text.contains(pc) || layout.init_text.contains(pc) {
            fatal_detail(format_args!("at image+{:#x}", pc - layout.whole.start().get()));
        }
    };
    tell(pc);
    let data = core::ptr::from_ref(PerCpu::this()) as u64;
    let stack = data - STACK_SIZE..data;
    let fault_stack = data + size_of::<PerCpu>() as u64..data + FAULT_STACK_OFFSET;
    for _ in 0..DEPTH {
        let whole = |range: &core::ops::Range<u64>| range.contains(&frame) && range.contains(&(frame + 15));
        if !frame.is_multiple_of(8) || !(whole(&stack) || whole(&fault_stack)) {
            return;
        }
        // SAFETY: the record lies in one of this CPU's stacks, which are mapped.
        let [next, pc] = unsafe { *(frame as *const [u64; 2]) };
        tell(pc);
        // Callers lie above.
        if next <= frame {
            return;
        }
        frame = next;
    }
}

fn power_off() -> ! {
    // What it answers does not matter: it should not.
    let _ = psci::system_off::<smccc::Smc>();
    stop()
}

fn stop() -> ! {
    loop {
        // SAFETY: waits.
        unsafe { asm!("wfi", options(nomem, nostack)) };
    }
}
