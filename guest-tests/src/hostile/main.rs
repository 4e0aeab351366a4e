//! The hostile payload: every CPU makes calls, accesses to system registers and to the hypervisor's memory, at random and as many as
//! it is told, and sees that each comes to its answer and that the hypervisor has counted them.
//!
//! It takes the build with the firmware's stand-in, so that no call it makes ends the machine. Words on the command line:
//! `cloven.operations=N` for all CPUs together, `cloven.seed=N`.
#![no_std]
#![no_main]

mod attack;
mod calls;
mod coming;
mod entry;
mod registers;

use core::sync::atomic::{AtomicU64, Ordering};

use attack::{Attack, Outcome};
use calls::Calls;
use guest_tests::cpus::{self, GREET, OWN, on, order, together};
use guest_tests::entry::Cpu;
use guest_tests::firmware::{NOT_SUPPORTED, call, stand_in};
use guest_tests::memory::{MAX_CPUS, Memory, Page};
use guest_tests::report::Report;
use guest_tests::say;
use hyp::machine::Machine;
use hyp::trial::CHANGE_HOST;
use hyp::trial::Random;
use smccc::psci::{self, PSCI_CPU_SUSPEND_64, PSCI_FEATURES};
use smccc::{Hvc, Smc};
use spin::Mutex;

guest_tests::payload! { main: main, work: work, code: &CODE }

/// Operations of all CPUs together, unless the command line says how many.
const OPERATIONS: u64 = 10_000_000;
/// Attack.
const ATTACK: usize = OWN;
/// Suspend, and lose the context.
const SUSPEND: usize = OWN + 1;
/// From so many operations on, each CPU has made some of each kind.
const ENOUGH: u64 = 10_000;

static CODE: [Page; MAX_CPUS] = [const { Page::new() }; MAX_CPUS];
/// What each CPU is to begin with, and what came of it.
static CPUS: [Mutex<Place>; MAX_CPUS] =
    [const { Mutex::new(Place { start: None, outcome: None }) }; MAX_CPUS];
static SEED: AtomicU64 = AtomicU64::new(0);

struct Place {
    start: Option<(Calls, u64)>,
    outcome: Option<Outcome>,
}

/// The number that the command line gives for `name`.
fn parameter(machine: &Machine<'_>, name: &str) -> Option<u64> {
    machine.parameter(name)?.parse().ok()
}

fn main(report: &mut Report, machine: &Machine<'_>, memory: &'static Memory) {
    let total = parameter(machine, "cloven.operations").unwrap_or(OPERATIONS);
    let seed = parameter(machine, "cloven.seed").unwrap_or(1);
    SEED.store(seed, Ordering::Relaxed);
    let fits = machine.cpus.len() <= MAX_CPUS;
    report.check("hostile.there_is_room", fits, format_args!("{} CPUs", machine.cpus.len()));
    let cpus = cpus::all();
    for (cpu, mpidr) in cpus.iter().zip(machine.cpus.iter().map(|cpu| cpu.mpidr)).skip(1) {
        let started = on(mpidr, cpu);
        let came = started.is_ok() && order(cpu, GREET);
        report.check("hostile.cpu_comes_up", came, format_args!("CPU {mpidr:#x}, CPU_ON {started:?}"));
        if !came {
            return;
        }
    }
    if let (Some(cpu), Some(place)) = (cpus.last(), machine.cpus.last())
        && cpus.len() > 1
        && fits
    {
        coming::all(report, cpu, place.mpidr);
    }
    let suspend_flags = call::<Smc>(PSCI_FEATURES, [PSCI_CPU_SUSPEND_64.into(), 0, 0])[0] as i32;
    let has_trials = call::<Hvc>(CHANGE_HOST, [0, 1, 1])[0] != NOT_SUPPORTED;
    let is_there = stand_in(true);
    report.check("hostile.firmware_has_a_stand_in", is_there, format_args!("build feature stand-in"));
    if !is_there || !fits {
        return;
    }
    say!("payload: {total} operations, seed {seed}");
    let (each, more) = (total / cpus.len() as u64, total % cpus.len() as u64);
    for (number, place) in CPUS.iter().enumerate().take(cpus.len()) {
        let calls = Calls::new(machine, memory.hypervisor, suspend_flags, has_trials);
        place.lock().start = Some((calls, each + u64::from((number as u64) < more)));
    }
    together(cpus.len() - 1, ATTACK, || work(ATTACK));
    stand_in(false);

    let mut made = 0;
    for (number, place) in CPUS.iter().enumerate().take(cpus.len()) {
        if let Some(outcome) = &place.lock().outcome {
            tell(report, number, outcome);
            made += outcome.operations;
        }
    }
    let detail = format_args!("{made} of {total}, seed {seed}");
    report.check("hostile.all_operations_were_made", made == total, detail);
    say!("@cloven figure hostile.operations {made} operations");
    let version = psci::version::<Smc>();
    let is_back = matches!(version, Ok(version) if version.major >= 1);
    report.check("hostile.firmware_is_back", is_back, format_args!("{version:?}"));
}

/// Carries out the order.
fn work(order: usize) {
    if order == SUSPEND {
        return coming::suspend();
    }
    let number = Cpu::this().number;
    let Some((calls, count)) = CPUS[number].lock().start.take() else { return };
    let mut random = Random::new(SEED.load(Ordering::Relaxed) ^ (number as u64 + 1) << 56);
    // Seeds that are near each other begin alike.
    (0..16).for_each(|_| _ = random.word());
    let outcome = Attack::new(calls, random, &CODE[number]).run(count);
    CPUS[number].lock().outcome = Some(outcome);
}

fn tell(report: &mut Report, number: usize, outcome: &Outcome) {
    let Outcome { operations, tally, exits, wrong, miscounted, relayed } = outcome;
    let kinds = [tally.hvc, tally.smc, tally.refused, tally.trapped, tally.relayed];
    let some_of_each = *operations < ENOUGH || !kinds.contains(&0);
    match wrong {
        None => report.check(
            "hostile.every_operation_is_answered",
            some_of_each,
            format_args!("CPU {number}: {operations} operations, {tally:?}"),
        ),
        Some((at, wrong)) => report.check(
            "hostile.every_operation_is_answered",
            false,
            format_args!("CPU {number}: operation {at}: {wrong}"),
        ),
    }
    match miscounted {
        None => report.check(
            "hostile.counters_add_up",
            true,
            format_args!(
                "CPU {number}: HVC, SMC, refused, retried, conflict, system register, other: {exits:?}"
            ),
        ),
        Some(wrong) => {
            report.check("hostile.counters_add_up", false, format_args!("CPU {number}: {wrong}"));
        }
    }
    report.check(
        "hostile.power_calls_end_at_the_stand_in",
        *relayed == tally.relayed,
        format_args!("CPU {number}: {relayed} of {}", tally.relayed),
    );
}
