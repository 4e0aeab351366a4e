//! Of test builds: a firmware that only counts, so that a payload can make every power call there is and live.
//!
//! Invariant: while it is on, no relayed call reaches the real firmware, whichever CPU makes it; each is counted for that CPU, and
//! answered by turns with SUCCESS and INTERNAL_FAILURE. While it is off, each reaches the real one and none is counted. The
//! hypervisor's own calls (a CPU that does not suffice, a fault) always reach the real one.

use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use smccc::Call;

use super::percpu::PerCpu;
use super::smccc::INVALID_PARAMETER;
use crate::machine::MAX_CPUS;

/// Turns it on (x1 = 1) or off (0), if x2 is [`KEY`]; tells how often it answered the calling CPU (2). x0 is 0, and x1 the number
/// of answers so far; else x0 is INVALID_PARAMETER. Others that are in a call when it is turned off may still be answered by it.
pub const CONTROL: u32 = 0xc600_0020;
/// What a call at random does not have.
pub const KEY: u64 = 0x7061_7975_7073_7563;

/// PSCI's, by turns.
const ANSWERS: [i64; 2] = [0, -6];

static ON: AtomicBool = AtomicBool::new(false);
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

/// Whether no call reaches the firmware.
pub fn is_on() -> bool {
    ON.load(Ordering::Acquire)
}

/// x0 and x1 of the answer to `function` for CPU number `me`, if it is [`CONTROL`].
pub fn call(me: usize, function: u32, args: &[u64; 17]) -> Option<[u64; 2]> {
    if function != CONTROL {
        return None;
    }
    match (args[0], args[1]) {
        (what @ (0 | 1), KEY) => ON.store(what == 1, Ordering::Release),
        (2, _) => {}
        (x1, _) => return Some([INVALID_PARAMETER as u64, x1]),
    }
    Some([0, COUNTS[me % MAX_CPUS].load(Ordering::Relaxed)])
}
