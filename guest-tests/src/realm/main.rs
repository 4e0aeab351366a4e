//! The realm payload: a realm that shares its memory with its host and takes it back, before its other CPUs run, while they start and when
//! all do; and what a realm must find of its monitor, its host and its CPU.
//!
//! It finds out by RSI_VERSION whether it is in a realm. Nothing is printed before its UART, which the host plays, is mapped at its shared
//! alias. Its checks are lines of `realm.NAME`; it prints no `@cloven done`, as its host counts them.
//!
//! Words on the command line: `cloven.requests=N` in all, `cloven.seed=N`, `cloven.bbm=LEVEL` or `BOOT,OTHERS`, `cloven.shared=MIB` about
//! which is shared at most at a time, `cloven.measure=1` to measure and to make no requests.
#![no_std]
#![no_main]

mod checks;
mod entry;
mod figures;
mod host;
mod own;
mod requests;
mod roles;
mod token;

use guest_tests::report::{self, Report};
use guest_tests::{firmware, say};
use hyp::machine::Machine;
use hyp::realm::Rsi;
use smccc::Smc;

/// The entry code comes here on the boot CPU, on the boot map.
#[unsafe(no_mangle)]
extern "C" fn payload_main(device_tree: u64) -> ! {
    // In a realm there is no UART where it is elsewhere, and nobody to call but the monitor.
    report::move_to(0);
    firmware::no_hypervisor();
    let found = Rsi::<Smc>::find(0);
    if found.is_err() {
        report::move_to(report::UART);
    }
    // SAFETY: the boot protocol.
    let fdt = unsafe { guest_tests::tree(device_tree) };
    let machine = Machine::read(fdt).unwrap_or_else(|error| panic!("device tree {error}"));
    let mut report = Report::default();
    let Ok(rsi) = found else {
        report.check("realm.is_one", false, format_args!("{found:?}"));
        guest_tests::off()
    };
    // SAFETY: the boot CPU, on the boot map, once, before any other runs.
    let own = unsafe { own::enable_mmu(&machine, fdt, &rsi) };
    let config = &own.config;
    say!(
        "{} CPUs, {} bits of IPA, {:?}, {} MiB free",
        machine.cpus.len(),
        config.ipa_width(),
        config.hash,
        own.free.iter().map(|part| part.size()).sum::<u64>() >> 20
    );
    report.check("realm.is_one", true, format_args!("RSI 1.0, shared bit {}", config.shared_bit()));
    checks::alone(&mut report, &machine, own);
    token::print(&mut report, own);
    if machine.parameter("cloven.measure").is_some_and(|value| value != "0") {
        figures::all(&mut report, own);
    } else {
        requests::all(&mut report, &machine, own);
    }
    say!("{} checks", report.count());
    guest_tests::off()
}

/// The entry code comes here on each other CPU that was let in, with the MMU on.
#[unsafe(no_mangle)]
extern "C" fn payload_secondary() -> ! {
    roles::serve()
}
