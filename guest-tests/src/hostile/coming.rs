//! CPUs that come to EL2 as QEMU's firmware never has them come: back from a suspend that has lost their context, and late.

use core::sync::atomic::{AtomicBool, Ordering};

use guest_tests::cpus::{GREET, OFF, is_off, on, order};
use guest_tests::entry::{Cpu, secondary_entry};
use guest_tests::firmware::{Does, call, has_stand_in};
use guest_tests::report::Report;
use smccc::Smc;
use smccc::psci::PSCI_CPU_SUSPEND_64;
use smccc::psci::error::Error as PsciError;

use crate::SUSPEND;

/// How often a CPU suspends.
const ROUNDS: usize = 8;

/// A suspend came back as if it had kept the context.
static CAME_BACK: AtomicBool = AtomicBool::new(false);

/// Suspends this CPU to a state of power-down, in either format. It goes on in `payload_secondary`, and waits for orders.
pub fn suspend() {
    let power_down = 1 << 16 | 1 << 30;
    let context = core::ptr::from_ref(Cpu::this()) as u64;
    call::<Smc>(PSCI_CPU_SUSPEND_64, [power_down, secondary_entry as *const () as u64, context]);
    CAME_BACK.store(true, Ordering::Release);
}

/// The CPU `mpidr`, which waits for orders, comes back from suspends, goes off and comes late, and comes again.
pub fn all(report: &mut Report, cpu: &Cpu, mpidr: u64) {
    if !has_stand_in(Does::LoseContext) {
        return;
    }
    let mut rounds = 0;
    while rounds < ROUNDS {
        // It takes the order, and is not done with it ever.
        cpu.order.store(SUSPEND, Ordering::Release);
        while cpu.order.load(Ordering::Acquire) == SUSPEND {
            core::hint::spin_loop();
        }
        if !order(cpu, GREET) {
            break;
        }
        rounds += 1;
    }
    has_stand_in(Does::KeepContext);
    let came_back = CAME_BACK.load(Ordering::Acquire);
    let detail = format_args!("CPU {mpidr:#x}: {rounds} of {ROUNDS} times, context kept {came_back}");
    report.check("hostile.context_is_lost_in_a_suspend", rounds == ROUNDS && !came_back, detail);

    let went = order(cpu, OFF) && is_off(mpidr);
    let done = cpu.done.load(Ordering::Acquire);
    has_stand_in(Does::KeepBack);
    let late = on(mpidr, cpu);
    has_stand_in(Does::Start);
    let is_off_again = is_off(mpidr) && cpu.done.load(Ordering::Acquire) == done;
    let again = on(mpidr, cpu);
    let came = again.is_ok() && order(cpu, GREET);
    report.check(
        "hostile.who_comes_late_turns_itself_off",
        went && late == Err(PsciError::InternalFailure) && is_off_again && came,
        format_args!("CPU {mpidr:#x}, CPU_ON {late:?}, off {is_off_again}, CPU_ON {again:?}"),
    );
}
