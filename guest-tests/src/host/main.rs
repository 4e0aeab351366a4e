//! The host payload: an EL1 host that tries what a host may do and what it must not, on every CPU, and says how it went.
//!
//! It uses `hyp` as an embedder does: its own stage 1 is built by [`hyp::mapping`], turned on by [`hyp::stage1`], and the
//! machine is read from the device tree by [`hyp::machine`].
//!
//! Each line `@cloven check NAME ok|FAIL DETAIL` is one check; `@cloven done COUNT` ends them.
#![no_std]
#![no_main]

mod checks;
mod cpus;
mod entry;
mod memory;
mod report;
mod trials;

use dtoolkit::fdt::Fdt;
use hyp::machine::Machine;

use report::{Report, say};

/// The entry code comes here on the boot CPU, on the boot map.
#[unsafe(no_mangle)]
extern "C" fn payload_main(device_tree: u64) -> ! {
    // SAFETY: the boot protocol: the tree is there, and nobody writes it.
    let tree = unsafe {
        let first = *(device_tree as *const [u8; 8]);
        let size = hyp::machine::tree_size(first).unwrap_or_else(|error| panic!("device tree {error}"));
        core::slice::from_raw_parts(device_tree as *const u8, size)
    };
    let fdt = Fdt::new(tree).unwrap_or_else(|error| panic!("device tree: {error}"));
    let machine = Machine::read(fdt).unwrap_or_else(|error| panic!("device tree {error}"));
    // SAFETY: the boot CPU, on the boot map, once, before any other runs.
    let memory = cpus::init(&machine, unsafe { memory::enable_mmu(&machine, fdt) });

    say!("payload: {} CPUs, hypervisor at {}", machine.cpus.len(), memory.hypervisor);
    let mut report = Report::default();
    checks::identity(&mut report);
    checks::calls(&mut report);
    checks::ram(&mut report, &machine, memory);
    checks::devices(&mut report, &machine, memory);
    let refused = checks::forbidden(&mut report, memory);
    cpus::all(&mut report, &machine, memory, refused);
    if refused {
        trials::all(&mut report, &machine, memory);
    }
    checks::round_trip();
    report.end();
    let _ = smccc::psci::system_off::<smccc::Smc>();
    panic!("SYSTEM_OFF came back");
}

/// The entry code comes here on each other CPU, with the MMU on.
#[unsafe(no_mangle)]
extern "C" fn payload_secondary() -> ! {
    cpus::serve()
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
    say!("@cloven check payload.alive FAIL {}", info.message());
    let _ = smccc::psci::system_off::<smccc::Smc>();
    loop {
        core::hint::spin_loop();
    }
}
