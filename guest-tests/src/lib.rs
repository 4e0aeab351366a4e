//! What the payloads share: how they start, their memory, their CPUs, accesses that may fault, and how they report.
//!
//! They use `hyp` as an embedder does: their own stage 1 is built by [`hyp::mapping`], turned on by [`hyp::stage1`], and the machine is
//! read from the device tree by [`hyp::machine`].
//!
//! Each line `@cloven check NAME ok|FAIL DETAIL` is one check; `@cloven done COUNT` ends them.
#![no_std]

pub mod believed;
pub mod cpus;
pub mod entry;
pub mod firmware;
pub mod memory;
pub mod probe;
pub mod report;
pub mod vmm;

use dtoolkit::fdt::Fdt;
use hyp::machine::Machine;

use memory::{Memory, Page};
use report::Report;

/// Makes the image start here. `main` is a `fn(&mut Report, &Machine, &Memory)`, which runs on the boot CPU; `work` a `fn(usize)`, which
/// carries out an order of the payload's own ([`cpus::OWN`] and up) on another CPU; `code` are the pages that it writes and executes.
#[macro_export]
macro_rules! payload {
    (main: $main:path, work: $work:path, code: $code:expr) => {
        /// The entry code comes here on the boot CPU, on the boot map.
        #[unsafe(no_mangle)]
        extern "C" fn payload_main(device_tree: u64) -> ! {
            // SAFETY: the boot CPU, once, with the address that it was given.
            unsafe { $crate::run(device_tree, $code, $main) }
        }

        /// The entry code comes here on each other CPU, with the MMU on.
        #[unsafe(no_mangle)]
        extern "C" fn payload_secondary() -> ! {
            $crate::cpus::serve($work)
        }
    };
}

/// Runs a payload from its first line of Rust to the end of the machine.
///
/// # Safety
/// Runs once, on the boot CPU, on the boot map, with the address of the device tree.
pub unsafe fn run(
    device_tree: u64,
    code: &'static [Page],
    main: impl FnOnce(&mut Report, &Machine<'_>, &'static Memory),
) -> ! {
    // SAFETY: the caller's word.
    let fdt = unsafe { tree(device_tree) };
    let machine = Machine::read(fdt).unwrap_or_else(|error| panic!("device tree {error}"));
    // SAFETY: the boot CPU, on the boot map, once, before any other runs.
    let memory = cpus::init(&machine, unsafe { memory::enable_mmu(&machine, fdt, code) });

    say!("payload: {} CPUs, hypervisor at {}", machine.cpus.len(), memory.hypervisor);
    memory.dump(&machine, "boot");
    let mut report = Report::default();
    main(&mut report, &machine, memory);
    report.end();
    memory.dump(&machine, "off");
    off()
}

/// The device tree at an address.
///
/// # Safety
/// The boot protocol: it is there, mapped, and nobody writes it.
pub unsafe fn tree(address: u64) -> Fdt<'static> {
    // SAFETY: the caller's word.
    let tree = unsafe {
        let first = *(address as *const [u8; 8]);
        let size = hyp::machine::tree_size(first).unwrap_or_else(|error| panic!("device tree {error}"));
        core::slice::from_raw_parts(address as *const u8, size)
    };
    Fdt::new(tree).unwrap_or_else(|error| panic!("device tree: {error}"))
}

/// Turns the machine off.
pub fn off() -> ! {
    let _ = smccc::psci::system_off::<smccc::Smc>();
    panic!("SYSTEM_OFF came back");
}

/// The vectors come here when nothing expected a fault.
#[unsafe(no_mangle)]
extern "C" fn payload_unexpected(vector: usize) -> ! {
    use arm_sysregs::el1::accessors::{read_elr_el1, read_esr_el1, read_far_el1};
    let (esr, far, elr) = (read_esr_el1().bits(), read_far_el1().bits(), read_elr_el1().bits());
    panic!("unexpected exception {vector}: ESR {esr:#x}, FAR {far:#x}, ELR {elr:#x}")
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    let at = info.location().map(|at| (at.file(), at.line()));
    say!("@cloven check payload.alive FAIL {} {at:?}", info.message());
    // So that what follows turns the machine off.
    firmware::stand_in(false);
    let _ = smccc::psci::system_off::<smccc::Smc>();
    loop {
        core::hint::spin_loop();
    }
}
