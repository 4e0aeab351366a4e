//! Calls of the RMM, and what they cost.
//!
//! Invariant: each call is counted, with its ticks, for the CPU that makes it.

use core::fmt;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arm_sysregs::el0::accessors::read_cntvct_el0;
use rmm_abi::v1_0::rmi::{RmiCommand, RmiStatus};

use super::entry;
use crate::entry::Cpu;
use crate::memory::MAX_CPUS;

/// A command that the RMM has not carried out.
#[derive(Clone, Copy, Debug)]
pub struct Refused {
    /// The command.
    pub command: RmiCommand,
    /// X0.
    pub status: u64,
    /// X1 to X3.
    pub inputs: [u64; 3],
}

impl Refused {
    /// Its status, if it is one of the specification's.
    pub fn status(&self) -> Option<RmiStatus> {
        RmiStatus::from_bits(self.status).ok()
    }

    /// The level at which an RTT walk ended, if that is why.
    pub fn walk_level(&self) -> Option<i64> {
        match self.status() {
            Some(RmiStatus::ErrorRtt(level)) => Some((level as i8).into()),
            _ => None,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, status, inputs } = self;
        match self.status() {
            Some(known) => write!(f, "{} {inputs:x?}: {known:?}", command.name()),
            None => write!(f, "{} {inputs:x?}: X0 {status:#x}", command.name()),
        }
    }
}

/// What the calls of a CPU have cost since that was asked last.
struct Account {
    /// Ticks in calls but RMI_REC_ENTER, and how many they were.
    calls: AtomicU64,
    number: AtomicU64,
    /// Ticks in RMI_REC_ENTER.
    entered: AtomicU64,
    /// When it was asked.
    since: AtomicU64,
}

static ACCOUNTS: [Account; MAX_CPUS] = [const {
    Account {
        calls: AtomicU64::new(0),
        number: AtomicU64::new(0),
        entered: AtomicU64::new(0),
        since: AtomicU64::new(0),
    }
}; MAX_CPUS];

fn account() -> &'static Account {
    &ACCOUNTS[Cpu::this().number % MAX_CPUS]
}

/// Ticks that this CPU's host code has used since that was asked last, ticks in calls of the RMM but RMI_REC_ENTER, and how many they were.
pub fn take_account() -> [u64; 3] {
    let account = account();
    let now = ticks();
    let whole = now - account.since.swap(now, Relaxed);
    let [calls, entered] = [&account.calls, &account.entered].map(|sum| sum.swap(0, Relaxed));
    [whole.saturating_sub(calls + entered), calls, account.number.swap(0, Relaxed)]
}

/// The counter.
pub fn ticks() -> u64 {
    read_cntvct_el0().bits()
}

/// Calls the RMM; X0 to X4 of its answer, and what it took.
pub fn timed(command: RmiCommand, inputs: &[u64]) -> ([u64; 5], u64) {
    let inputs = core::array::from_fn(|at| inputs.get(at).copied().unwrap_or(0));
    let (answer, spent) = entry::smc(command.fid().into(), inputs);
    let account = account();
    // Only this CPU adds.
    let add = |sum: &AtomicU64, more| sum.store(sum.load(Relaxed) + more, Relaxed);
    if command == RmiCommand::RecEnter {
        add(&account.entered, spent);
    } else {
        add(&account.calls, spent);
        add(&account.number, 1);
    }
    (answer, spent)
}

/// Calls the RMM; X0 to X4 of its answer.
pub fn call(command: RmiCommand, inputs: &[u64]) -> [u64; 5] {
    timed(command, inputs).0
}

/// Calls the RMM; X1 to X4 of its answer.
///
/// # Errors
/// Whatever the status is but RMI_SUCCESS, with X1 to X4.
pub fn try_call(command: RmiCommand, inputs: &[u64]) -> Result<[u64; 4], (Refused, [u64; 4])> {
    let [status, outputs @ ..] = call(command, inputs);
    if status == RmiStatus::Success.bits() {
        return Ok(outputs);
    }
    let inputs = core::array::from_fn(|at| inputs.get(at).copied().unwrap_or(0));
    Err((Refused { command, status, inputs }, outputs))
}

/// Carries a command out.
///
/// # Errors
/// Whatever the status is but RMI_SUCCESS.
pub fn done(command: RmiCommand, inputs: &[u64]) -> Result<[u64; 4], Refused> {
    try_call(command, inputs).map_err(|(refused, _)| refused)
}
