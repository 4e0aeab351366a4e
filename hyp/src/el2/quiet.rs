//! EL2's entry gate: who is at EL2, and how they stand still for a break of the map that EL2 runs on.
//!
//! Invariant: a CPU is inside from the first line that answers an exception to the last before its return, and outside while the firmware
//! has it. Outside, at EL2, it touches the image, its stack, the tables and the console only: they are pinned, in pages that nobody breaks.
//!
//! Who waits to become the writer of a map passes the gate, whichever map it is: so who is the writer of the host's stage 2 may change EL2's own map
//! ([`crate::owner`]). And who waits for somebody who may be waiting so passes it too.

use core::arch::asm;
use core::marker::PhantomData;

use smccc::Call;
use spin::Once;

use super::percpu::PerCpu;
use crate::caps::gate::{self, Gate};
use crate::machine::MAX_CPUS;
use crate::mapping::{Address, Pa, Range};

/// Where the gate stands.
#[derive(Debug)]
pub struct Here;

static PINNED: Once<&[Range<Pa>]> = Once::new();
static GATE: Gate<Here, MAX_CPUS> = Gate::new(Here);
/// The gate, as the engine takes it.
pub static ENTRY: &Gate<Here, MAX_CPUS> = &GATE;

/// Says what is pinned, once, before another CPU runs.
pub fn pin(ranges: &'static [Range<Pa>]) {
    PINNED.call_once(|| ranges);
}

impl gate::Here for Here {
    fn number(&self) -> usize {
        PerCpu::this().number()
    }
    fn is_pinned(&self, start: u64, end: u64) -> bool {
        // Nothing is broken before it was said what is pinned.
        PINNED.get().is_none_or(|ranges| ranges.iter().any(|r| r.start().get() < end && start < r.end()))
    }
    fn settle(&self) {
        // SAFETY: a barrier.
        unsafe { asm!("dsb ish", options(nostack)) };
    }
    fn synchronize(&self) {
        // SAFETY: a barrier.
        unsafe { asm!("isb", options(nostack)) };
    }
}

/// Calls to the firmware, made from outside: it may keep the CPU for long, or for good.
#[derive(Debug)]
pub struct Relayed<C>(PhantomData<C>);

impl<C: Call> Call for Relayed<C> {
    fn call32(function: u32, args: [u32; 7]) -> [u32; 8] {
        ENTRY.stand(|| C::call32(function, args))
    }
    fn call64(function: u32, args: [u64; 17]) -> [u64; 18] {
        ENTRY.stand(|| C::call64(function, args))
    }
}
