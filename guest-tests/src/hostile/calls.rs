//! Calls at random, and what must come of each: written from SMCCC (DEN0028), PSCI (DEN0022) and what Cloven says of its own calls,
//! not from its code.

use arrayvec::ArrayVec;
use guest_tests::firmware::{KEY, NOT_SUPPORTED, STAND_IN};
use guest_tests::memory::MAX_CPUS;
use hyp::machine::Machine;
use hyp::mapping::{Address, Pa, Range};
use hyp::trial::Random;

const SMC64: u32 = 1 << 30;

// SMCCC.
const VERSION: u32 = 0x8000_0000;
const ARCH_FEATURES: u32 = 0x8000_0001;
/// SOC_ID and the mitigations: the firmware's.
const ARCH_OF_FIRMWARE: [u32; 5] = [0x8000_0002, 0x8000_8000, 0x8000_7fff, 0x8000_3fff, 0x8000_0004];
const INVALID_PARAMETER: i64 = -3;

// PSCI, as SMC32.
const PSCI_VERSION: u32 = 0x8400_0000;
const CPU_SUSPEND: u32 = 0x8400_0001;
const CPU_OFF: u32 = 0x8400_0002;
const CPU_ON: u32 = 0x8400_0003;
const AFFINITY_INFO: u32 = 0x8400_0004;
const MIGRATE_INFO_TYPE: u32 = 0x8400_0006;
const SYSTEM_OFF: u32 = 0x8400_0008;
const SYSTEM_RESET: u32 = 0x8400_0009;
const PSCI_FEATURES: u32 = 0x8400_000a;
const SYSTEM_RESET2: u32 = 0x8400_0012;
const INVALID_PARAMETERS: i64 = -2;
const ALREADY_ON: i64 = -4;
const ON_PENDING: i64 = -5;
const INTERNAL_FAILURE: i64 = -6;
const INVALID_ADDRESS: i64 = -9;
const AFFINITY_ON_PENDING: i64 = 2;
/// What the stand-in answers by turns: SUCCESS and INTERNAL_FAILURE.
const STAND_IN_ANSWERS: [i64; 2] = [0, INTERNAL_FAILURE];

// Cloven.
const UID: u32 = 0x8600_ff01;
const UID_ANSWER: [u64; 4] = [0x523c_1d6e, 0x384b_0a7f, 0xa5d7_419c, 0x948f_e0b2];
const REVISION: u32 = 0x8600_ff03;
const REVISION_ANSWER: [u64; 2] = [0, 4];
/// How often the CPU came to EL2 by the kind in x1: see [`Tally`].
pub const EXITS: u32 = 0xc600_0001;
/// No other CPU will come.
const FINALIZE: u32 = 0xc600_0002;
/// Sharing pages, giving them away and having them back: the first, in x1, and how many, up to 512, in x2.
const PAGES: core::ops::RangeInclusive<u32> = 0xc600_0003..=0xc600_0006;
/// Calls of trials, which a build without them does not know.
const TRIALS: core::ops::RangeInclusive<u32> = 0xc600_0010..=0xc600_0014;
/// Kinds of exit.
pub const KINDS: usize = 7;

/// Identifiers that mean something, or look as if they did.
const KNOWN: [u32; 41] = [
    VERSION,
    ARCH_FEATURES,
    ARCH_OF_FIRMWARE[0],
    ARCH_OF_FIRMWARE[1],
    ARCH_OF_FIRMWARE[2],
    ARCH_OF_FIRMWARE[3],
    ARCH_OF_FIRMWARE[4],
    PSCI_VERSION,
    CPU_SUSPEND,
    CPU_SUSPEND | SMC64,
    CPU_OFF,
    CPU_ON,
    CPU_ON | SMC64,
    AFFINITY_INFO,
    AFFINITY_INFO | SMC64,
    MIGRATE_INFO_TYPE,
    SYSTEM_OFF,
    SYSTEM_RESET,
    PSCI_FEATURES,
    SYSTEM_RESET2,
    SYSTEM_RESET2 | SMC64,
    // CPU_OFF, VERSION and FEATURES have no SMC64 form; MIGRATE, SYSTEM_SUSPEND, MEM_PROTECT and others are not relayed.
    CPU_OFF | SMC64,
    PSCI_VERSION | SMC64,
    PSCI_FEATURES | SMC64,
    0x8400_0005,
    0xc400_000e,
    0x8400_0013,
    0xc400_0014,
    // The true random number and the firmware update services.
    0x8400_0050,
    0xc400_0053,
    UID,
    REVISION,
    EXITS,
    FINALIZE,
    *PAGES.start(),
    *PAGES.start() + 1,
    *PAGES.start() + 2,
    *PAGES.end(),
    STAND_IN,
    *TRIALS.start(),
    *TRIALS.end(),
];

/// What this CPU has done and found, for the hypervisor's counters to be compared with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// HVC.
    pub hvc: u64,
    /// SMC.
    pub smc: u64,
    /// Accesses that were refused with an External abort.
    pub refused: u64,
    /// Instructions that were undefined: some of them by EL2's word.
    pub undefined: u64,
    /// Of those, such as EL2 certainly traps.
    pub trapped: u64,
    /// Calls that came to the firmware, since its stand-in was turned on.
    pub relayed: u64,
}

/// What the machine is, and how this CPU stands.
pub struct Calls {
    /// The hypervisor's memory.
    pub hypervisor: Range<Pa>,
    ram: ArrayVec<Range<Pa>, 8>,
    cpus: ArrayVec<u64, MAX_CPUS>,
    /// The bit of `power_state` that says that the context is lost: 16, or 30 in the extended format.
    power_down: u32,
    has_trials: bool,
    /// What the counters were when the tally was empty.
    pub base: [u64; KINDS],
    /// What the stand-in had answered by then.
    pub relayed_base: u64,
    /// What was done since.
    pub tally: Tally,
}

impl Calls {
    /// Of a machine on which PSCI_FEATURES of CPU_SUSPEND is `suspend_flags`, and the hypervisor has calls for trials if `has_trials`.
    pub fn new(machine: &Machine<'_>, hypervisor: Range<Pa>, suspend_flags: i32, has_trials: bool) -> Self {
        Self {
            hypervisor,
            ram: machine.memory.iter().copied().take(8).collect(),
            cpus: machine.cpus.iter().map(|cpu| cpu.mpidr).take(MAX_CPUS).collect(),
            power_down: if suspend_flags > 0 && suspend_flags & 2 != 0 { 30 } else { 16 },
            has_trials,
            base: [0; KINDS],
            relayed_base: 0,
            tally: Tally::default(),
        }
    }

    /// Whether a CPU may begin there.
    fn is_ram(&self, pc: u64) -> bool {
        !self.hypervisor.contains(pc) && self.ram.iter().any(|bank| bank.contains(pc))
    }

    /// An address in the hypervisor's memory, such that 8 bytes from there on lie in one page of it.
    pub fn forbidden_address(&self, random: &mut Random) -> u64 {
        let page = random.below(self.hypervisor.size() / 4096) * 4096;
        self.hypervisor.start().get() + page + random.below(4096 - 7)
    }

    fn argument(&self, random: &mut Random) -> u64 {
        let word = random.word();
        match random.below(10) {
            0 => 0,
            1 => word,
            2 => word & 0xffff_ffff,
            3 => self.forbidden_address(random),
            4 => self.hypervisor.start().get() + 4096 * random.below(512),
            5 => self.ram.first().map_or(0, |bank| bank.start().get()) + random.below(64 << 20),
            6 => self.cpus[random.below(self.cpus.len() as u64) as usize],
            7 => KNOWN[random.below(KNOWN.len() as u64) as usize].into(),
            8 => 1 << random.below(63),
            _ => random.below(KINDS as u64 + 2),
        }
    }

    /// x0 to x17 of a call.
    pub fn choose(&self, random: &mut Random) -> [u64; 18] {
        let mut x: [u64; 18] = core::array::from_fn(|_| self.argument(random));
        // What is above the lower half does not name a function.
        let above = if random.below(4) == 0 { random.word() << 32 } else { 0 };
        let function = loop {
            let word = random.word();
            let function = match random.below(8) {
                0 | 1 => (word >> 16) as u32,
                // An owning entity, fast or yielding, either convention, a function of 16 bits.
                2 => word as u32 & 0xff00_ffff,
                3 => word as u32 & 0xff00_003f | 1 << 31,
                _ => KNOWN[(word >> 16) as usize % KNOWN.len()],
            };
            // A build with trials waits for partners in them.
            if !(self.has_trials && TRIALS.contains(&function)) {
                break function;
            }
        };
        x[0] = above | u64::from(function);
        // The memory that it runs in is not given away.
        if PAGES.contains(&function) && self.is_ram(x[1]) {
            x[2] = 0;
        }
        if function == STAND_IN && x[2] == KEY {
            x[2] = 0;
        }
        x
    }

    /// The stand-in's next answer: the call goes there.
    fn relayed(&mut self) -> u64 {
        let turn = (self.relayed_base + self.tally.relayed) as usize % STAND_IN_ANSWERS.len();
        self.tally.relayed += 1;
        STAND_IN_ANSWERS[turn] as u64
    }

    /// What x0 to x17 must be after a call with them as in `before`, which has been tallied. `x0` and `x1` are what they are: that
    /// decides where other CPUs, or a CPU's features, have a say. Tallies what was relayed.
    pub fn answer(&mut self, before: &[u64; 18], x0: u64, x1: u64) -> [u64; 18] {
        let function = before[0] as u32;
        let mut expected = *before;
        let wide = function & SMC64 != 0;
        // SMC32 has the lower halves only.
        let [_, a, b, ..] = before.map(|x| if wide { x } else { x & 0xffff_ffff });
        match function {
            VERSION => expected[0] = 0x1_0002,
            ARCH_FEATURES => {
                expected[0] = match a as u32 {
                    VERSION | ARCH_FEATURES => 0,
                    asked if ARCH_OF_FIRMWARE.contains(&asked) => self.relayed(),
                    _ => NOT_SUPPORTED,
                }
            }
            _ if ARCH_OF_FIRMWARE.contains(&function) => {
                expected[..4].copy_from_slice(&[self.relayed(), 0, 0, 0]);
            }
            UID => expected[..4].copy_from_slice(&UID_ANSWER),
            REVISION => expected[..2].copy_from_slice(&REVISION_ANSWER),
            FINALIZE => expected[0] = 0,
            function if PAGES.contains(&function) => expected[0] = INVALID_PARAMETER as u64,
            EXITS => match self.exits(before[1], x1) {
                Some(count) => expected[..2].copy_from_slice(&[0, count]),
                None => expected[0] = INVALID_PARAMETER as u64,
            },
            STAND_IN => match before[1] {
                2 => expected[..2].copy_from_slice(&[0, self.relayed_base + self.tally.relayed]),
                _ => expected[0] = INVALID_PARAMETER as u64,
            },
            _ => expected[0] = self.psci(function, [a, b], x0),
        }
        expected
    }

    /// x0 of a PSCI call, or of what is none. `seen` decides where other CPUs have a say.
    fn psci(&mut self, function: u32, [a, b]: [u64; 2], seen: u64) -> u64 {
        let wide = function & SMC64 != 0;
        match (function & !SMC64, wide) {
            (PSCI_VERSION | CPU_OFF | MIGRATE_INFO_TYPE | SYSTEM_OFF | SYSTEM_RESET, false)
            | (SYSTEM_RESET2, _) => self.relayed(),
            (CPU_ON, _) if !self.cpus.contains(&a) => INVALID_PARAMETERS as u64,
            (CPU_ON, _) if !self.is_ram(b) => INVALID_ADDRESS as u64,
            // It is on, unless it is just being refused its CPU_OFF.
            (CPU_ON, _) if [ALREADY_ON as u64, ON_PENDING as u64].contains(&seen) => seen,
            (CPU_SUSPEND, _) if a >> self.power_down & 1 != 0 && !self.is_ram(b) => INVALID_ADDRESS as u64,
            (AFFINITY_INFO, _) if seen == AFFINITY_ON_PENDING as u64 && b == 0 && self.cpus.contains(&a) => {
                seen
            }
            // Whatever the stand-in says: nobody comes.
            (CPU_ON, _) => {
                self.relayed();
                INTERNAL_FAILURE as u64
            }
            (CPU_SUSPEND | AFFINITY_INFO, _) => self.relayed(),
            (PSCI_FEATURES, false) => match a as u32 {
                VERSION | PSCI_FEATURES => 0,
                asked if is_of_psci(asked) => self.relayed(),
                _ => NOT_SUPPORTED,
            },
            _ => NOT_SUPPORTED,
        }
    }

    /// The count of the kind `kind`, of which the hypervisor said `seen`, if it is one.
    fn exits(&self, kind: u64, seen: u64) -> Option<u64> {
        let base = *self.base.get(usize::try_from(kind).ok()?)?;
        let Tally { hvc, smc, refused, undefined, trapped, .. } = self.tally;
        Some(match kind {
            0 => base + hvc,
            1 => base + smc,
            2 => base + refused,
            // Nothing changes a translation here, and QEMU has no conflicts.
            3 | 4 => base,
            // What is undefined at EL1 itself does not come to EL2.
            5 => seen.clamp(base + trapped, base + undefined),
            _ => seen.clamp(base, base + undefined),
        })
    }
}

/// Whether PSCI_FEATURES asks the firmware about this function.
fn is_of_psci(function: u32) -> bool {
    match function & !SMC64 {
        CPU_SUSPEND | CPU_ON | AFFINITY_INFO | SYSTEM_RESET2 => true,
        PSCI_VERSION | CPU_OFF | MIGRATE_INFO_TYPE | SYSTEM_OFF | SYSTEM_RESET => function & SMC64 == 0,
        _ => false,
    }
}
