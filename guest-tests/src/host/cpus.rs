//! The other CPUs: started and stopped by PSCI, and what each of them sees.
//!
//! Invariant: a CPU does one order at a time and says when it is done, so only one CPU prints or probes at any moment.

use core::sync::atomic::{AtomicUsize, Ordering};

use arm_sysregs::el1::accessors::write_tpidr_el1;
use arm_sysregs::el1::registers::TpidrEl1;
use arrayvec::ArrayVec;
use hyp::machine::Machine;
use hyp::mapping::Address;
use smccc::Smc;
use smccc::psci::error::Error as PsciError;
use smccc::psci::{self, AffinityState, LowestAffinityLevel};
use spin::Once;

use crate::checks;
use crate::entry::{Cpu, clean, secondary_entry};
use crate::memory::{MAX_CPUS, Memory, stack_end};
use crate::report::Report;
use crate::trials;

/// Says that it is there.
const GREET: usize = 1;
/// Probes the hypervisor's memory.
const PROBE: usize = 2;
/// Turns itself off.
const OFF: usize = 3;
/// Takes part in a trial at EL1.
const TOUCH: usize = 4;
/// Takes part in a trial at EL2.
const TOUCH_EL2: usize = 5;

/// How often the boot CPU looks before it gives up: some seconds.
const PATIENCE: usize = 100_000_000;

static CPUS: Once<ArrayVec<Cpu, MAX_CPUS>> = Once::new();
static MEMORY: Once<Memory> = Once::new();
/// What the probes of the last order found: refused, and tried.
static REFUSED: AtomicUsize = AtomicUsize::new(0);
static TRIED: AtomicUsize = AtomicUsize::new(0);

/// Makes what each CPU needs; the boot CPU has its own from here on.
pub fn init(machine: &Machine<'_>, memory: Memory) -> &'static Memory {
    let memory = MEMORY.call_once(|| memory);
    let count = machine.cpus.len().min(MAX_CPUS);
    let make = |number| Cpu::new(number, memory.registers, stack_end(number));
    let cpus = CPUS.call_once(|| (0..count).map(make).collect());
    for cpu in cpus {
        let start = core::ptr::from_ref(cpu) as u64;
        // SAFETY: what a starting CPU reads with its MMU off; maintenance changes no value.
        unsafe { clean(start, start + size_of::<Cpu>() as u64) };
    }
    // SAFETY: the entry code expects exactly this.
    unsafe { write_tpidr_el1(TpidrEl1::from_bits_retain(core::ptr::from_ref(&cpus[0]) as u64)) };
    memory
}

/// Gives `order` to `cpu` and waits until it is done.
fn order(cpu: &Cpu, order: usize) -> bool {
    let before = cpu.done.load(Ordering::Acquire);
    cpu.order.store(order, Ordering::Release);
    (0..PATIENCE).any(|_| cpu.done.load(Ordering::Acquire) > before)
}

/// Does `work` while `count` other CPUs take part in a trial, and waits until they are back.
pub fn while_touching<T>(count: usize, at_el2: bool, work: impl FnOnce() -> T) -> T {
    let cpus = CPUS.get().map_or(&[][..], |cpus| &cpus[1..=count]);
    let before: ArrayVec<usize, MAX_CPUS> = cpus.iter().map(|cpu| cpu.done.load(Ordering::Acquire)).collect();
    for cpu in cpus {
        cpu.order.store(if at_el2 { TOUCH_EL2 } else { TOUCH }, Ordering::Release);
    }
    let result = work();
    for (cpu, before) in cpus.iter().zip(before) {
        while cpu.done.load(Ordering::Acquire) == before {
            core::hint::spin_loop();
        }
    }
    result
}

/// A CPU that was started: carries out orders for good.
pub fn serve() -> ! {
    let this = Cpu::this();
    loop {
        match this.order.swap(0, Ordering::AcqRel) {
            GREET => {}
            PROBE => {
                if let Some(memory) = MEMORY.get() {
                    let (refused, tried) = checks::count_refused(memory);
                    REFUSED.store(refused, Ordering::Relaxed);
                    TRIED.store(tried, Ordering::Relaxed);
                }
            }
            touch @ (TOUCH | TOUCH_EL2) => {
                trials::touch(this.number - 1, touch == TOUCH_EL2);
            }
            OFF => {
                this.done.fetch_add(1, Ordering::Release);
                let refused = psci::cpu_off::<Smc>();
                panic!("CPU_OFF came back: {refused:?}");
            }
            _ => {
                core::hint::spin_loop();
                continue;
            }
        }
        this.done.fetch_add(1, Ordering::Release);
    }
}

fn on(mpidr: u64, cpu: &Cpu) -> Result<(), PsciError> {
    psci::cpu_on::<Smc>(mpidr, secondary_entry as *const () as u64, core::ptr::from_ref(cpu) as u64)
}

fn state(mpidr: u64) -> Result<AffinityState, PsciError> {
    psci::affinity_info::<Smc>(mpidr, LowestAffinityLevel::All)
}

fn is_off(mpidr: u64) -> bool {
    (0..PATIENCE / 100).any(|_| state(mpidr) == Ok(AffinityState::Off))
}

/// Every CPU: comes up, is refused the hypervisor's memory (tried only with `probe`: once something got through, a store
/// could end the run before it is told), goes off, and comes up again.
pub fn all(report: &mut Report, machine: &Machine<'_>, memory: &Memory, probe: bool) {
    let Some(cpus) = CPUS.get() else { return };
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
