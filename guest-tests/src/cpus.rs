//! The other CPUs: started and stopped by PSCI, and what they are told to do.
//!
//! Invariant: a CPU does one order at a time and says when it is done. Only one CPU prints at any moment: the boot CPU, or who is
//! being waited for.

use core::sync::atomic::Ordering;

use arm_sysregs::el1::accessors::write_tpidr_el1;
use arm_sysregs::el1::registers::TpidrEl1;
use arrayvec::ArrayVec;
use hyp::machine::Machine;
use smccc::Smc;
use smccc::psci::error::Error as PsciError;
use smccc::psci::{self, AffinityState, LowestAffinityLevel};
use spin::Once;

use crate::entry::{Cpu, clean, secondary_entry};
use crate::memory::{MAX_CPUS, Memory, stack_end};

/// Says that it is there.
pub const GREET: usize = 1;
/// Turns itself off.
pub const OFF: usize = 2;
/// The first order that is a payload's own.
pub const OWN: usize = 3;

/// How often the boot CPU looks before it gives up: some seconds.
const PATIENCE: usize = 100_000_000;

static CPUS: Once<ArrayVec<Cpu, MAX_CPUS>> = Once::new();
static MPIDRS: Once<ArrayVec<u64, MAX_CPUS>> = Once::new();
static MEMORY: Once<Memory> = Once::new();

/// Makes what each CPU needs; the boot CPU has its own from here on.
pub fn init(machine: &Machine<'_>, memory: Memory) -> &'static Memory {
    let memory = MEMORY.call_once(|| memory);
    make(machine, |number| Cpu::new(number, memory.registers, stack_end(number)));
    memory
}

/// Makes what each CPU needs by `make`, from its number.
pub fn make(machine: &Machine<'_>, make: impl Fn(usize) -> Cpu) -> &'static [Cpu] {
    let count = machine.cpus.len().min(MAX_CPUS);
    let cpus = CPUS.call_once(|| (0..count).map(make).collect());
    MPIDRS.call_once(|| machine.cpus.iter().take(count).map(|cpu| cpu.mpidr).collect());
    for cpu in cpus {
        let start = core::ptr::from_ref(cpu) as u64;
        // SAFETY: what a starting CPU reads with its MMU off; maintenance changes no value.
        unsafe { clean(start, start + size_of::<Cpu>() as u64) };
    }
    // SAFETY: the entry code expects exactly this.
    unsafe { write_tpidr_el1(TpidrEl1::from_bits_retain(core::ptr::from_ref(&cpus[0]) as u64)) };
    cpus
}

/// All CPUs, the boot CPU first: none before [`init`].
pub fn all() -> &'static [Cpu] {
    CPUS.get().map_or(&[], |cpus| cpus)
}

/// The affinity of CPU `number`.
pub fn mpidr(number: usize) -> Option<u64> {
    MPIDRS.get()?.get(number).copied()
}

/// The payload's memory, from [`init`] on.
pub fn memory() -> Option<&'static Memory> {
    MEMORY.get()
}

/// Gives `order` to `cpu` and waits until it is done.
pub fn order(cpu: &Cpu, order: usize) -> bool {
    let before = cpu.done.load(Ordering::Acquire);
    cpu.order.store(order, Ordering::Release);
    (0..PATIENCE).any(|_| cpu.done.load(Ordering::Acquire) > before)
}

/// Does `work` while `count` other CPUs carry out `order`, and waits until they are back.
pub fn together<T>(count: usize, order: usize, work: impl FnOnce() -> T) -> T {
    let cpus = all().get(1..=count).unwrap_or(&[]);
    let before: ArrayVec<usize, MAX_CPUS> = cpus.iter().map(|cpu| cpu.done.load(Ordering::Acquire)).collect();
    for cpu in cpus {
        cpu.order.store(order, Ordering::Release);
    }
    let result = work();
    for (cpu, before) in cpus.iter().zip(before) {
        while cpu.done.load(Ordering::Acquire) == before {
            core::hint::spin_loop();
        }
    }
    result
}

/// Does `work` with all other CPUs off, and starts them again: on an emulator each that looks for an order has to be stopped for each
/// invalidation of TLBs. `None` if one of them does not go or come.
pub fn alone<T>(work: impl FnOnce() -> T) -> Option<T> {
    with_first(1, work)
}

/// All CPUs but the first `count`, with their affinities.
fn from(count: usize) -> impl Iterator<Item = (u64, &'static Cpu)> {
    all().iter().enumerate().skip(count).filter_map(|(number, cpu)| Some((mpidr(number)?, cpu)))
}

/// As [`alone`], with the first `count` CPUs on.
pub fn with_first<T>(count: usize, work: impl FnOnce() -> T) -> Option<T> {
    let went = from(count).all(|(mpidr, cpu)| order(cpu, OFF) && is_off(mpidr));
    let result = work();
    let came = start_from(count);
    (went && came).then_some(result)
}

/// Starts all CPUs but the first `count`, which are on; whether they came.
pub fn start_from(count: usize) -> bool {
    from(count).all(|(mpidr, cpu)| on(mpidr, cpu).is_ok() && order(cpu, GREET))
}

/// A CPU that was started: carries out orders for good, the payload's own by `work`.
pub fn serve(work: impl Fn(usize)) -> ! {
    let this = Cpu::this();
    loop {
        match this.order.swap(0, Ordering::AcqRel) {
            0 => {
                core::hint::spin_loop();
                continue;
            }
            GREET => {}
            OFF => {
                this.done.fetch_add(1, Ordering::Release);
                let refused = psci::cpu_off::<Smc>();
                panic!("CPU_OFF came back: {refused:?}");
            }
            own => work(own),
        }
        this.done.fetch_add(1, Ordering::Release);
    }
}

/// Starts a CPU.
///
/// # Errors
/// What PSCI says.
pub fn on(mpidr: u64, cpu: &Cpu) -> Result<(), PsciError> {
    psci::cpu_on::<Smc>(mpidr, secondary_entry as *const () as u64, core::ptr::from_ref(cpu) as u64)
}

/// What PSCI says of a CPU.
///
/// # Errors
/// What PSCI says.
pub fn state(mpidr: u64) -> Result<AffinityState, PsciError> {
    psci::affinity_info::<Smc>(mpidr, LowestAffinityLevel::All)
}

/// Waits for a CPU to be off; `false` if that takes too long.
pub fn is_off(mpidr: u64) -> bool {
    (0..PATIENCE / 100).any(|_| state(mpidr) == Ok(AffinityState::Off))
}
