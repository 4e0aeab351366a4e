//! The host payload: an EL1 host that tries what a host may do and what it must not, on every CPU, makes a realm if there is who serves
//! RMI, and says how it went.
#![no_std]
#![no_main]

mod checks;
mod cpus;
mod entry_guest;
mod guests;
mod owners;
mod trials;

use guest_tests::memory::Memory;
use guest_tests::report::Report;
use guest_tests::vmm;
use hyp::machine::Machine;

guest_tests::payload! { main: main, work: cpus::work, code: &[] }

/// The realm: `cargo xtask` builds it first.
static REALM: &[u8] = include_bytes!(env!("CLOVEN_REALM_PAYLOAD"));

fn main(report: &mut Report, machine: &Machine<'_>, memory: &'static Memory) {
    if vmm::linux::is_wanted(machine) {
        return vmm::run_linux(report, machine, memory, cpus::ORDERS);
    }
    checks::identity(report);
    checks::calls(report);
    checks::ram(report, machine, memory);
    checks::devices(report, machine, memory);
    let refused = checks::forbidden(report, memory);
    cpus::all(report, machine, memory, refused);
    if refused {
        owners::all(report, memory);
        guests::all(report, machine);
        trials::all(report, machine, memory);
    }
    checks::round_trip();
    vmm::run_realm(report, machine, memory, REALM, cpus::ORDERS);
}
