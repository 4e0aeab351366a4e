//! The host payload: an EL1 host that tries what a host may do and what it must not, on every CPU, and says how it went.
#![no_std]
#![no_main]

mod checks;
mod cpus;
mod entry_guest;
mod guests;
mod trials;

use guest_tests::memory::Memory;
use guest_tests::report::Report;
use hyp::machine::Machine;

guest_tests::payload! { main: main, work: cpus::work, code: &[] }

fn main(report: &mut Report, machine: &Machine<'_>, memory: &'static Memory) {
    checks::identity(report);
    checks::calls(report);
    checks::ram(report, machine, memory);
    checks::devices(report, machine, memory);
    let refused = checks::forbidden(report, memory);
    cpus::all(report, machine, memory, refused);
    if refused {
        guests::all(report, machine);
        trials::all(report, machine, memory);
    }
    checks::round_trip();
}
