//! The policy: what a host does for one realm, played at EL2 on a machine that has no host at EL1.
//!
//! Invariants:
//! - It is a host: all that it does to the realm it does by the commands of RMI, through [`Monitor::call`], and it reads and writes the host's
//!   memory only. What the realm is guarded from it is guarded from here too.
//! - Neither its lock nor the monitor's is held while a realm runs. Who waits for it waits as [`Board::wait`] does.
//! - Whatever the realm asks for ends in an answer to it, or in the end of the run with a line that says why.
//!
//! The realm has the machine: its RAM, each granule at the IPA that is its PA, its devices at the unprotected alias of theirs, and its CPUs, REC *n* on
//! CPU *n*. Kernel, initramfs and device tree are measured where the boot loader has put them; the rest of RAM has RIPAS RAM, and granules when it is
//! touched, by the 2 MiB (RMI_GRANULE_DELEGATE of all, RMI_DATA_CREATE_UNKNOWN of all, RMI_RTT_FOLD). What becomes EMPTY is destroyed and undelegated,
//! and later mapped at its alias, the same granule; what becomes RAM again is unmapped, and delegated when it is touched.
//!
//! | file | does |
//! |---|---|
//! | `calls` | makes the calls |
//! | `granules` | granules that are not the realm's memory |
//! | `make` | makes the realm, and says what is measured |
//! | `memory` | tables, granules and aliases |
//! | `run` | runs RECs: their exits, PSCI |
//! | `audit` | looks at what the maps say, at the end |

mod audit;
mod calls;
mod granules;
mod make;
mod memory;
mod run;
#[cfg(test)]
mod tests;

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::AcqRel, Ordering::Relaxed};

use hyp::mapping::{Address, Pa, Range};
use spin::Once;
use spin::mutex::{SpinMutex, SpinMutexGuard};

pub use calls::Refused;
use granules::Granules;
pub use granules::wanted;
pub use run::Over;

use crate::monitor::Monitor;
use crate::world::World;

/// RECs, and CPUs, at most.
pub const MAX_RECS: usize = 128;
/// Parts of RAM, and devices, at most.
pub const MAX_RANGES: usize = 64;

/// A block of level 2, and of level 1.
const BLOCK: u64 = 2 << 20;
const GIB: u64 = 1 << 30;
/// The level of pages.
const PAGE: i64 = rmm_abi::v1_0::PAGE_LEVEL;

/// What is not as the specification or a host at EL1 would have it: said at the start.
pub const DEVIATIONS: [&str; 9] = [
    "the host is EL2 itself: it reaches what it gives the realm by RMI only, and there is nobody to be protected from",
    "IPA is PA: a granule of the realm's stays at its address, and what is measured is copied aside and back",
    "shared memory is the realm's own page, wiped both ways",
    "interrupts are direct: the realm has the GIC, its CPU interface and the timers, and no exit is for them",
    "devices are the machine's, mapped at their unprotected alias; bus masters are not in its device tree",
    "the GIC masters the bus: its ITS and redistributors reach all memory, EL2's too, where the realm tells them to",
    "there is nobody who answers a host call: NOT_SUPPORTED",
    "a CPU that the realm turns off is turned off by the firmware, and let in anew when it comes back",
    "random seeds are not in its device tree, which is measured",
];

/// A list of ranges.
#[derive(Clone, Copy, Debug)]
pub struct Ranges {
    list: [(u64, u64); MAX_RANGES],
    len: usize,
}

impl Ranges {
    /// Of these, which are of whole granules. Nothing if they are too many.
    pub fn new(ranges: impl IntoIterator<Item = Range<Pa>>) -> Option<Self> {
        let mut all = Self { list: [(0, 0); MAX_RANGES], len: 0 };
        for range in ranges {
            *all.list.get_mut(all.len)? = (range.start().get(), range.end());
            all.len += 1;
        }
        Some(all)
    }

    /// Whether one of them has all of `start..end`.
    fn have(&self, (start, end): (u64, u64)) -> bool {
        self.iter().any(|(first, last)| first <= start && end <= last)
    }

    fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.list[..self.len].iter().copied()
    }
}

/// What the realm is to be made of: all PAs.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where its first CPU begins.
    pub entry: u64,
    /// The file of its kernel.
    pub kernel: Range<Pa>,
    /// Its initramfs.
    pub initrd: Option<Range<Pa>>,
    /// Its device tree.
    pub tree: Range<Pa>,
    /// Its RAM, in ascending parts of whole granules.
    pub ram: Ranges,
    /// Devices, in whole granules.
    pub devices: Ranges,
    /// Granules that are not the realm's, [`wanted`] bytes of them at least, at a multiple of 2 MiB.
    pub granules: Range<Pa>,
    /// The affinity of each CPU, in the order of their numbers.
    pub cpus: [u64; MAX_RECS],
    /// How many there are.
    pub cpu_count: usize,
}

/// What became of a CPU that was to be turned on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnedOn {
    /// It comes.
    Comes,
    /// It is on its way off still.
    NotOffYet,
    /// It does not, by the firmware's or the hypervisor's word.
    Refused(i64),
}

/// All that the policy wants of the machine beside RMI.
pub trait Board: Sync {
    /// Says a line.
    fn say(&self, line: fmt::Arguments<'_>);
    /// A count of time, and how often it counts in a second.
    fn now(&self) -> (u64, u64);
    /// Turns CPU number `cpu` on: it calls [`Policy::run`].
    fn turn_on(&self, cpu: usize) -> TurnedOn;
    /// Turns the running CPU off. Returns if that cannot be.
    fn turn_off(&self);
    /// Called in each turn of a loop that waits for another CPU.
    fn wait(&self);
}

/// Why the realm cannot be made, or cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The RMM has not carried out a command.
    Refused(Refused),
    /// The RMM does not answer, or not as version 1.0.
    NoRmm,
    /// It cannot give a realm so many bits of IPA.
    Bits(u32),
    /// This lies at an address where it cannot be: see the text.
    Place(&'static str, u64),
    /// This CPU, by its number, has this affinity, and RECs are named otherwise.
    Affinity(usize, u64),
    /// There are more CPUs than RECs.
    TooManyCpus(usize),
    /// There is no granule left for tables.
    NoGranule,
    /// A granule of the host's is not the host's any more.
    NotTheHosts(u64),
    /// The realm wants memory where the machine has no RAM for it.
    NotRam(u64),
    /// The realm has touched what was taken from it.
    Destroyed(u64),
    /// A REC stopped for this exit reason, ESR_EL2 and address, for which there is nothing to do.
    Exit(u8, u64, u64),
}

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refused) => refused.fmt(f),
            Self::NoRmm => write!(f, "there is no RMM that speaks RMI 1.0"),
            Self::Bits(bits) => write!(f, "the machine takes {bits} bits of IPA, more than the RMM has"),
            Self::Place(what, address) => write!(f, "{what} {address:#x}"),
            Self::Affinity(cpu, mpidr) => {
                write!(f, "cpu {cpu} has affinity {mpidr:#x}, and REC {cpu} cannot be named so")
            }
            Self::TooManyCpus(count) => write!(f, "{count} CPUs are more than {MAX_RECS}"),
            Self::NoGranule => write!(f, "there is no granule left for a table"),
            Self::NotTheHosts(pa) => write!(f, "granule {pa:#x} is not the host's"),
            Self::NotRam(ipa) => {
                write!(f, "the realm has accessed IPA {ipa:#x}, where there is no RAM for it")
            }
            Self::Destroyed(ipa) => write!(f, "the realm has accessed IPA {ipa:#x}, which was taken from it"),
            Self::Exit(reason, esr, address) => {
                write!(f, "exit reason {reason} with ESR_EL2 {esr:#x}, address {address:#x}")
            }
        }
    }
}

impl core::error::Error for Problem {}

/// What the policy keeps of a REC.
#[derive(Debug)]
struct Rec {
    /// Its granule.
    pa: AtomicU64,
    /// The granule of the host's by which it is run.
    run: AtomicU64,
    /// It is on, or about to be. Changes with [`Policy::power`], as does what follows.
    is_on: AtomicBool,
    /// PSCI_CPU_ON has named it while it was on.
    was_named: AtomicBool,
    /// Its CPU may enter it.
    go: AtomicBool,
    /// Its CPU is here, and waits for that.
    is_parked: AtomicBool,
    /// Its CPU was here, and cannot run it.
    is_unlike: AtomicBool,
}

impl Rec {
    const fn new() -> Self {
        Self {
            pa: AtomicU64::new(0),
            run: AtomicU64::new(0),
            is_on: AtomicBool::new(false),
            was_named: AtomicBool::new(false),
            go: AtomicBool::new(false),
            is_parked: AtomicBool::new(false),
            is_unlike: AtomicBool::new(false),
        }
    }
}

/// What was done, to be told at the end.
#[derive(Debug, Default)]
struct Counts {
    /// REC exits, by reason.
    exits: [AtomicU64; 7],
    /// Granules that were given to the realm, and taken back.
    given: AtomicU64,
    taken: AtomicU64,
    /// Changes of RIPAS that it asked for.
    changes: AtomicU64,
    /// Ticks, of all CPUs together, in which exits were handled.
    ticks: AtomicU64,
}

/// The host of one realm.
pub struct Policy<W: 'static, B> {
    monitor: &'static Monitor<W>,
    board: B,
    plan: &'static Plan,
    /// Its descriptor, and its bits of IPA.
    made: Once<Made>,
    recs: [Rec; MAX_RECS],
    granules: SpinMutex<Granules>,
    /// Held while a CPU is turned on, or about to go off.
    power: SpinMutex<()>,
    is_over: AtomicBool,
    counts: Counts,
}

/// A realm that was made.
#[derive(Clone, Copy, Debug)]
struct Made {
    rd: u64,
    /// The bit of unprotected IPAs.
    shared: u64,
}

impl<W: World, B: Board> Policy<W, B> {
    /// For the realm of `plan`.
    pub fn new(monitor: &'static Monitor<W>, board: B, plan: &'static Plan) -> Self {
        let granules = SpinMutex::new(Granules::new(plan.granules));
        Self {
            monitor,
            board,
            plan,
            made: Once::new(),
            recs: [const { Rec::new() }; MAX_RECS],
            granules,
            power: SpinMutex::new(()),
            is_over: AtomicBool::new(false),
            counts: Counts::default(),
        }
    }

    /// The board.
    pub fn board(&self) -> &B {
        &self.board
    }

    fn wait_for<'l, T>(&self, lock: &'l SpinMutex<T>) -> SpinMutexGuard<'l, T> {
        loop {
            if let Some(guard) = lock.try_lock() {
                return guard;
            }
            self.board.wait();
        }
    }

    fn lock(&self) -> SpinMutexGuard<'_, Granules> {
        self.wait_for(&self.granules)
    }

    fn realm(&self) -> Result<Made, Problem> {
        self.made.get().copied().ok_or(Problem::NoRmm)
    }

    /// Whether the realm is over.
    pub fn is_over(&self) -> bool {
        self.is_over.load(Relaxed)
    }

    /// Ends the realm: whether the caller is the first, who says why.
    pub fn claim_end(&self) -> bool {
        !self.is_over.swap(true, AcqRel)
    }

    fn say(&self, line: fmt::Arguments<'_>) {
        self.board.say(line);
    }

    fn figure(&self, name: &str, value: u64, unit: &str) {
        self.say(format_args!("@cloven figure policy.{name} {value} {unit}"));
    }
}
