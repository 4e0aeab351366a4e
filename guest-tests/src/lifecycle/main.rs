//! The lifecycle payload: requests to change pages of its own map and of EL2's in each phase of its CPUs' coming, on CPUs of any levels of
//! FEAT_BBM, under readers; and what every CPU finds there after each phase.
//!
//! It takes a build with the trials. Words on the command line, beside those that the hypervisor knows (`cloven.bbm`, `cloven.policy`,
//! `cloven.late`, `cloven.finalize`), which this payload follows at EL1: `cloven.requests=N` in each phase (with 0 only those that are timed
//! are made, and dumps show what the CPUs' coming alone does), `cloven.seed=N`.
#![no_std]
#![no_main]

mod expect;
mod own;
mod pages;
mod phases;
mod roles;

use guest_tests::report::Report;
use hyp::machine::Machine;

/// The entry code comes here on the boot CPU, on the boot map.
#[unsafe(no_mangle)]
extern "C" fn payload_main(device_tree: u64) -> ! {
    // SAFETY: the boot protocol.
    let fdt = unsafe { guest_tests::tree(device_tree) };
    let machine = Machine::read(fdt).unwrap_or_else(|error| panic!("device tree {error}"));
    // SAFETY: the boot CPU, on the boot map, once, before any other runs.
    let own = unsafe { own::enable_mmu(&machine, fdt) };
    own.dump(&machine, "boot");
    let mut report = Report::default();
    phases::all(&mut report, &machine, own);
    report.end();
    own.dump(&machine, "off");
    guest_tests::off()
}

/// The entry code comes here on each other CPU that was let in, with the MMU on.
#[unsafe(no_mangle)]
extern "C" fn payload_secondary() -> ! {
    roles::serve()
}
