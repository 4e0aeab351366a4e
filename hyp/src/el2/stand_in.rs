//! Of test builds: a firmware that only counts, so that a payload can make every power call there is and live; and one that does what
//! QEMU's does not: a suspend that loses the context, a CPU that comes when nobody waits for it any more.
//!
//! Invariant: while it is on, no relayed call reaches the real firmware, whichever CPU makes it; each is counted for that CPU, and
//! answered by turns with SUCCESS and INTERNAL_FAILURE. While it is off, each reaches the real one and none is counted, but for what it was
//! told to do in its place. The hypervisor's own calls (a CPU that was not let in, a fault) always reach the real one.

use core::arch::asm;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use smccc::psci::{PSCI_CPU_ON_64, PSCI_CPU_SUSPEND_64};
use smccc::{Call, Smc};

use super::percpu::PerCpu;
use super::quiet::ENTRY;
use super::smccc::INVALID_PARAMETER;
use crate::machine::MAX_CPUS;
use crate::stage1::SCTLR_EL2_OFF;

/// With [`KEY`] in x2, x1 turns it on (1) or off (0); has each suspend to a state of power-down lose its context (3), or not (4); has the
/// next CPU_ON answered before its CPU comes (5), and that CPU come (6). Without, it tells how often it answered the calling CPU (2). x0 is 0,
/// and x1 the number of answers so far; else x0 is INVALID_PARAMETER. Others that are in a call when it is turned off may still be
/// answered by it.
pub const CONTROL: u32 = 0xc600_0020;
/// What a call at random does not have.
pub const KEY: u64 = 0x7061_7975_7073_7563;

/// PSCI's, by turns.
const ANSWERS: [i64; 2] = [0, -6];

/// The bits of `power_state` that ask for power-down, in either format (PSCI, CPU_SUSPEND).
const POWER_DOWN: u64 = 1 << 16 | 1 << 30;

static ON: AtomicBool = AtomicBool::new(false);
static LOSES_CONTEXT: AtomicBool = AtomicBool::new(false);
/// The next CPU_ON is kept back.
static KEEPS_BACK: AtomicBool = AtomicBool::new(false);
/// The arguments of the one that was.
static KEPT_BACK: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
/// Answers given, by the number of the CPU, which alone writes its own.
static COUNTS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

/// In place of the firmware that `C` calls.
#[derive(Debug)]
pub struct StandIn<C>(PhantomData<C>);

impl<C: Call> Call for StandIn<C> {
    fn call32(function: u32, args: [u32; 7]) -> [u32; 8] {
        C::call32(function, args)
    }

    fn call64(function: u32, args: [u64; 17]) -> [u64; 18] {
        if LOSES_CONTEXT.load(Ordering::Acquire)
            && function == PSCI_CPU_SUSPEND_64
            && args[0] & POWER_DOWN != 0
        {
            lose_context(args[1], args[2]);
        }
        if function == PSCI_CPU_ON_64 && KEEPS_BACK.load(Ordering::Acquire) {
            KEPT_BACK.iter().zip(args).for_each(|(kept, arg)| kept.store(arg, Ordering::Release));
            return [0; 18];
        }
        if !is_on() {
            return C::call64(function, args);
        }
        let count = &COUNTS[PerCpu::this().number() % MAX_CPUS];
        let before = count.load(Ordering::Relaxed);
        count.store(before + 1, Ordering::Relaxed);
        let mut answer = [0; 18];
        answer[0] = ANSWERS[before as usize % ANSWERS.len()] as u64;
        answer
    }
}

/// The CPU comes to `entry` with `context` in x0 as from the firmware: MMU and caches off, and nothing of EL2 in its registers.
fn lose_context(entry: u64, context: u64) -> ! {
    ENTRY.leave();
    // SAFETY: the code lies at its own address, so it goes on with the MMU off; nothing of this CPU's is needed any more. What it has
    // written others see: the caches are coherent, and what is read past them was cleaned.
    unsafe {
        asm!(
            "dsb sy",
            "msr sctlr_el2, {off}",
            "isb",
            "msr ttbr0_el2, xzr",
            "msr tcr_el2, xzr",
            "msr mair_el2, xzr",
            "msr vbar_el2, xzr",
            "msr tpidr_el2, xzr",
            "isb",
            "br {entry}",
            off = in(reg) SCTLR_EL2_OFF,
            entry = in(reg) entry,
            in("x0") context,
            options(noreturn, nostack),
        )
    }
}

/// Whether no call reaches the firmware.
fn is_on() -> bool {
    ON.load(Ordering::Acquire)
}

/// Whether nobody comes whom CPU_ON has turned on.
pub fn keeps_cpus() -> bool {
    is_on() || KEEPS_BACK.load(Ordering::Acquire)
}

/// x0 and x1 of the answer to `function` for CPU number `me`, if it is [`CONTROL`].
pub fn call(me: usize, function: u32, args: &[u64; 17]) -> Option<[u64; 2]> {
    if function != CONTROL {
        return None;
    }
    match (args[0], args[1]) {
        (what @ (0 | 1), KEY) => ON.store(what == 1, Ordering::Release),
        (what @ (3 | 4), KEY) => LOSES_CONTEXT.store(what == 3, Ordering::Release),
        (5, KEY) => KEEPS_BACK.store(true, Ordering::Release),
        (6, KEY) => {
            KEEPS_BACK.store(false, Ordering::Release);
            let mut all = [0; 17];
            all.iter_mut().zip(&KEPT_BACK).for_each(|(arg, kept)| *arg = kept.load(Ordering::Acquire));
            Smc::call64(PSCI_CPU_ON_64, all);
        }
        (2, _) => {}
        (x1, _) => return Some([INVALID_PARAMETER as u64, x1]),
    }
    Some([0, COUNTS[me % MAX_CPUS].load(Ordering::Relaxed)])
}
