//! What one CPU does: operations at random, each looked at, and in the end the hypervisor's counters.

use core::fmt;
use core::sync::atomic::Ordering::Relaxed;

use guest_tests::entry::{self, Cpu};
use guest_tests::memory::{Page, View};
use guest_tests::probe::{self, Fault, Kind, is_refusal};
use hyp::trial::Random;

use crate::calls::{Calls, EXITS, KINDS, Tally};
use crate::entry::{Registers, call_hvc, call_hvc_with_immediate, call_smc, call_smc_with_immediate};
use crate::registers;

const EC_UNKNOWN: u64 = 0;
const EC_INSTRUCTION_ABORT: u64 = 0x21;
const EC_DATA_ABORT: u64 = 0x25;
const FSC_MASK: u64 = 0x3f;
const FSC_EXTERNAL: u64 = 0x10;
const RET: u32 = 0xd65f_03c0;
/// Instructions that are written and made visible at once.
const BATCH: usize = 64;

/// What was not as it must be.
#[derive(Clone, Copy, Debug)]
pub enum Wrong {
    /// The answer to a call with these x0 to x3: the register of this number (31 is the stack pointer), what it must be, and what it is.
    Answer([u64; 4], usize, u64, u64),
    /// An access that was not refused as it must be.
    Access(View, Kind, u64, Option<Fault>),
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answer(asked, number, must, is) => {
                write!(f, "call {asked:x?}: x{number} must be {must:#x}, and is {is:#x}")
            }
            Self::Access(view, kind, pa, fault) => {
                write!(f, "{kind:?} of {pa:#x} as {view:?} ended in {fault:x?}")
            }
        }
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Operations that were made.
    pub operations: u64,
    /// What was done.
    pub tally: Tally,
    /// The hypervisor's counters, less what they were before.
    pub exits: [u64; KINDS],
    /// The first operation that was not answered as it must be, and in what.
    pub wrong: Option<(u64, Wrong)>,
    /// The first counter that does not say what was done.
    pub miscounted: Option<Wrong>,
    /// Calls that the stand-in has answered.
    pub relayed: u64,
}

/// A CPU that attacks.
pub struct Attack<'a> {
    calls: Calls,
    random: Random,
    page: &'a Page,
    /// The next instruction of the page.
    next: usize,
}

impl<'a> Attack<'a> {
    /// With its own numbers and its own page of code.
    pub fn new(mut calls: Calls, random: Random, page: &'a Page) -> Self {
        let hvc = |kind: usize| {
            let mut registers = Registers::default();
            (registers.x[0], registers.x[1]) = (EXITS.into(), kind as u64);
            // SAFETY: a call changes registers only, which the assembly keeps.
            unsafe { call_hvc(&mut registers) };
            registers.x[1]
        };
        calls.relayed_base = stand_in_count();
        // HVC's own count last: it has all of these in it.
        for kind in (0..KINDS).rev() {
            calls.base[kind] = hvc(kind);
        }
        Self { calls, random, page, next: BATCH }
    }

    /// Makes `count` operations, or those up to the first that goes wrong, and compares the counters.
    pub fn run(mut self, count: u64) -> Outcome {
        let mut wrong = None;
        let mut operations = 0;
        while operations < count && wrong.is_none() {
            operations += 1;
            let result = match self.random.below(16) {
                0..6 => self.call(),
                6..11 => {
                    self.register();
                    Ok(())
                }
                _ => self.access(),
            };
            wrong = result.err().map(|wrong| (operations, wrong));
        }
        let mut exits = [0; KINDS];
        let mut miscounted = None;
        // HVC's last again: it has the others in it.
        for (kind, count) in exits.iter_mut().enumerate().rev() {
            let mut registers = Registers::default();
            (registers.x[0], registers.x[1]) = (EXITS.into(), kind as u64);
            let result = self.make(&mut registers, 0);
            miscounted = miscounted.or(result.err());
            *count = registers.x[1].wrapping_sub(self.calls.base[kind]);
        }
        let tally = self.calls.tally;
        let relayed = stand_in_count().wrapping_sub(self.calls.relayed_base);
        Outcome { operations, tally, exits, wrong, miscounted, relayed }
    }

    fn call(&mut self) -> Result<(), Wrong> {
        let mut registers = Registers::default();
        registers.x[..18].copy_from_slice(&self.calls.choose(&mut self.random));
        registers.x[18..].fill_with(|| self.random.word());
        let conduit = self.random.below(16);
        self.make(&mut registers, conduit)
    }

    /// Makes a call and looks at all that comes back.
    fn make(&mut self, registers: &mut Registers, conduit: u64) -> Result<(), Wrong> {
        let before = registers.x;
        let tally = &mut self.calls.tally;
        *if conduit < 8 { &mut tally.hvc } else { &mut tally.smc } += 1;
        // SAFETY: a call changes registers only, which the assembly keeps.
        unsafe {
            match conduit {
                0..7 => call_hvc(registers),
                7 => call_hvc_with_immediate(registers),
                8..15 => call_smc(registers),
                _ => call_smc_with_immediate(registers),
            }
        }
        let call: [u64; 18] = core::array::from_fn(|i| before[i]);
        let mut must = before;
        must[..18].copy_from_slice(&self.calls.answer(&call, registers.x[0], registers.x[1]));
        let all =
            must.iter().chain([&registers.sp_before]).zip(registers.x.iter().chain([&registers.sp_after]));
        match all.enumerate().find(|(_, (must, is))| must != is) {
            None => Ok(()),
            Some((number, (&must, &is))) => {
                Err(Wrong::Answer([before[0], before[1], before[2], before[3]], number, must, is))
            }
        }
    }

    /// Executes an access to a system register. Whatever comes of it is right, as long as it comes back and is counted.
    fn register(&mut self) {
        if self.next == BATCH {
            self.write_code();
        }
        let place = self.page.address() + 8 * self.next as u64;
        self.next += 1;
        let value = match self.random.below(4) {
            0 => self.calls.forbidden_address(&mut self.random),
            1 => 0,
            2 => u64::MAX,
            _ => self.random.word(),
        };
        // SAFETY: an instruction that harms nothing of the payload's, and a return.
        if unsafe { entry::probe_fetch(View::Code.of(place), value) } != 0 {
            let esr = Cpu::this().fault[0].load(Relaxed);
            match esr >> 26 {
                EC_UNKNOWN => {
                    self.calls.tally.undefined += 1;
                    // SAFETY: this CPU's own page.
                    let instruction = unsafe { (place as *const u32).read_volatile() };
                    self.calls.tally.trapped += u64::from(registers::is_trapped(instruction));
                }
                // Maintenance of the hypervisor's memory.
                EC_DATA_ABORT | EC_INSTRUCTION_ABORT if esr & FSC_MASK == FSC_EXTERNAL => {
                    self.calls.tally.refused += 1;
                }
                // EL1's own: no translation, or a trap to EL1.
                _ => {}
            }
        }
    }

    fn write_code(&mut self) {
        let start = self.page.address();
        for index in 0..BATCH {
            let pair = [registers::instruction(&mut self.random), RET];
            // SAFETY: this CPU's own page, mapped as data here.
            unsafe { ((start + 8 * index as u64) as *mut [u32; 2]).write_volatile(pair) };
        }
        // SAFETY: maintenance changes no value.
        unsafe {
            entry::clean(start, start + 8 * BATCH as u64);
            entry::forget_instructions();
        }
        self.next = 0;
    }

    /// A load, store or fetch of the hypervisor's memory, from EL1 or EL0.
    fn access(&mut self) -> Result<(), Wrong> {
        let random = &mut self.random;
        let (view, kind) = match random.below(6) {
            0 => (View::Data, Kind::Load),
            1 => (View::Data, Kind::Store),
            2 => (View::Code, Kind::Fetch),
            3 => (View::UserData, Kind::Load),
            4 => (View::UserData, Kind::Store),
            _ => (View::UserCode, Kind::Fetch),
        };
        let mut pa = self.calls.forbidden_address(random);
        if kind == Kind::Fetch {
            // Another is an alignment fault of EL1's own.
            pa &= !3;
        }
        let fault = probe::probe(view, kind, pa);
        if !is_refusal(fault, view, kind, view.of(pa)) {
            return Err(Wrong::Access(view, kind, pa, fault));
        }
        self.calls.tally.refused += 1;
        Ok(())
    }
}

/// What the stand-in has answered this CPU so far. By a call that is not tallied, so it is made before the tally begins or after the
/// counters were read.
fn stand_in_count() -> u64 {
    guest_tests::firmware::call::<smccc::Hvc>(guest_tests::firmware::STAND_IN, [2, 0, 0])[1]
}
