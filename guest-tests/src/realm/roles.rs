//! What each CPU does: it asks for memory, or looks at its own state across exits.
//!
//! Invariant: a CPU that waits for another passes the gate, so that whoever breaks a translation goes on.

use core::sync::atomic::{
    AtomicU64,
    Ordering::{AcqRel, Acquire, Release, SeqCst},
};

use arrayvec::ArrayVec;
use guest_tests::cpus::{self, GREET, OFF, OWN};
use guest_tests::entry::Cpu;
use guest_tests::memory::MAX_CPUS;
use smccc::Smc;
use smccc::psci;

use crate::own::{GATE, own};
use crate::{checks, requests};

/// Asks for memory.
pub const ASK: usize = OWN;
/// Looks whether its FP registers keep what they hold.
pub const FP: usize = OWN + 1;
/// Takes its timer's interrupt.
pub const TIMER: usize = OWN + 2;

/// CPUs whose own check failed.
pub static FAILED: AtomicU64 = AtomicU64::new(0);

/// Notes for the running CPU that a check of its own failed.
fn note(holds: bool) {
    if !holds {
        FAILED.fetch_or(1 << Cpu::this().number, SeqCst);
    }
}

/// A CPU that was let in: carries out orders for good.
pub fn serve() -> ! {
    GATE.enter();
    let this = Cpu::this();
    own().starting().arrived(this.number);
    loop {
        if this.order.load(Acquire) == 0 {
            GATE.pass();
            core::hint::spin_loop();
            continue;
        }
        match this.order.swap(0, AcqRel) {
            GREET => {}
            OFF => {
                this.done.fetch_add(1, Release);
                GATE.leave();
                let refused = psci::cpu_off::<Smc>();
                panic!("CPU_OFF came back: {refused:?}");
            }
            ASK => requests::ask(),
            FP => note(checks::fp_keeps()),
            TIMER => note(checks::timer_fires().is_ok()),
            _ => {}
        }
        this.done.fetch_add(1, Release);
    }
}

/// CPUs at work, and how much they had done before.
pub struct Work(ArrayVec<(&'static Cpu, usize), MAX_CPUS>);

impl Work {
    /// Gives `order` to those of these numbers.
    pub fn begin(numbers: &[usize], order: usize) -> Self {
        let begin = |&number: &usize| {
            let cpu = &cpus::all()[number];
            let before = cpu.done.load(Acquire);
            cpu.order.store(order, Release);
            (cpu, before)
        };
        Self(numbers.iter().map(begin).collect())
    }

    /// Waits for them, `meanwhile` in each turn; `false` if that takes more turns than `patience`.
    pub fn wait(&self, mut patience: u64, mut meanwhile: impl FnMut()) -> bool {
        for (cpu, before) in &self.0 {
            while cpu.done.load(Acquire) == *before {
                meanwhile();
                GATE.pass();
                core::hint::spin_loop();
                patience -= 1;
                if patience == 0 {
                    return false;
                }
            }
        }
        true
    }
}
