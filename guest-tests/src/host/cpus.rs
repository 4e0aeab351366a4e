//! What each of the other CPUs sees.

use core::sync::atomic::{AtomicUsize, Ordering};

use guest_tests::cpus::{self, GREET, OFF, OWN, is_off, on, order, state};
use guest_tests::entry::Cpu;
use guest_tests::memory::{MAX_CPUS, Memory};
use guest_tests::report::Report;
use guest_tests::vmm::{Orders, probes, run_here};
use hyp::machine::Machine;
use hyp::mapping::Address;
use smccc::Smc;
use smccc::psci::error::Error as PsciError;
use smccc::psci::{self, AffinityState};

use crate::checks;
use crate::owners;
use crate::trials;

/// Probes the hypervisor's memory.
const PROBE: usize = OWN;
/// Takes part in a trial at EL1.
pub const TOUCH: usize = OWN + 1;
/// Takes part in a trial at EL2.
pub const TOUCH_EL2: usize = OWN + 2;
/// What is done for a realm.
pub const ORDERS: Orders = Orders { run: OWN + 3, probe: OWN + 4 };

/// Tries a page that was given away.
pub const TOUCH_GIVEN: usize = OWN + 5;

/// What the probes of the last order found: refused, and tried.
static REFUSED: AtomicUsize = AtomicUsize::new(0);
static TRIED: AtomicUsize = AtomicUsize::new(0);

/// Carries out an order of this payload's own.
pub fn work(order: usize) {
    match order {
        PROBE => {
            if let Some(memory) = cpus::memory() {
                let (refused, tried) = checks::count_refused(memory);
                REFUSED.store(refused, Ordering::Relaxed);
                TRIED.store(tried, Ordering::Relaxed);
            }
        }
        TOUCH | TOUCH_EL2 => trials::touch(Cpu::this().number - 1, order == TOUCH_EL2),
        TOUCH_GIVEN => owners::touch(),
        _ if order == ORDERS.run => run_here(),
        _ if order == ORDERS.probe => probes::count(),
        _ => {}
    }
}

/// Every CPU: comes up, is refused the hypervisor's memory (tried only with `probe`: once something got through, a store
/// could end the run before it is told), goes off, and comes up again.
pub fn all(report: &mut Report, machine: &Machine<'_>, memory: &Memory, probe: bool) {
    let cpus = cpus::all();
    let fits = machine.cpus.len() <= MAX_CPUS;
    report.check("cpus.there_is_room", fits, format_args!("{} CPUs", machine.cpus.len()));
    refusals(report, machine, memory, cpus);
    for (cpu, mpidr) in cpus.iter().zip(machine.cpus.iter().map(|cpu| cpu.mpidr)).skip(1) {
        let before = state(mpidr);
        let started = on(mpidr, cpu);
        let came = started.is_ok() && order(cpu, GREET);
        let name = format_args!("CPU {mpidr:#x} was {before:?}, CPU_ON {started:?}");
        report.check("cpu.comes_up", before == Ok(AffinityState::Off) && came, name);
        if !came {
            continue;
        }
        let again = on(mpidr, cpu);
        let alive = state(mpidr);
        let holds = again == Err(PsciError::AlreadyOn) && alive == Ok(AffinityState::On);
        report.check("cpu.is_on_once", holds, format_args!("CPU {mpidr:#x} {alive:?}, CPU_ON {again:?}"));

        let probed = probe && order(cpu, PROBE);
        let (refused, tried) = (REFUSED.swap(0, Ordering::Relaxed), TRIED.swap(0, Ordering::Relaxed));
        let detail = format_args!("CPU {mpidr:#x}: {refused} of {tried} accesses refused");
        report.check("cpu.is_refused_the_hypervisor", probed && tried > 0 && refused == tried, detail);

        let went = order(cpu, OFF) && is_off(mpidr);
        let restarted = on(mpidr, cpu);
        let back = restarted.is_ok() && order(cpu, GREET);
        report.check(
            "cpu.goes_off_and_comes_back",
            went && back,
            format_args!("CPU {mpidr:#x}, CPU_ON {restarted:?}"),
        );
    }
}

/// Starts that must be refused: of CPUs that are not there, and in memory that is not ours.
fn refusals(report: &mut Report, machine: &Machine<'_>, memory: &Memory, cpus: &[Cpu]) {
    let nobody = on(0xff_00ff_fffe, &cpus[0]);
    report.check(
        "cpu_on.unknown_target",
        nobody == Err(PsciError::InvalidParameters),
        format_args!("{nobody:?}"),
    );
    let myself = on(machine.cpus[0].mpidr, &cpus[0]);
    report.check("cpu_on.running_target", myself == Err(PsciError::AlreadyOn), format_args!("{myself:?}"));
    if let Some(other) = machine.cpus.get(1) {
        let address = memory.hypervisor.start().get();
        let inside = psci::cpu_on::<Smc>(other.mpidr, address, 0);
        let refused = inside == Err(PsciError::InvalidAddress);
        report.check("cpu_on.address_of_the_hypervisor", refused, format_args!("{inside:?}"));
    }
}
