//! The commands of the host (DEN0137, chapter B4).
//!
//! Invariants:
//! - Each command looks at its failure conditions in an order that its section allows, by their IDs, before it changes anything.
//! - What copies a granule of the host's to the stack is a function of its own (`inline(never)`): a realm runs, and the host's long vectors are
//!   saved, on what RMI_REC_ENTER leaves of the stack.

mod data;
mod features;
mod granule;
#[cfg(test)]
mod random;
mod realm;
mod rec;
mod rtt;
#[cfg(test)]
mod tests;

use rmm_abi::v1_0::rmi::{RmiCommand, RmiStatus, input};
use rmm_abi::v1_0::{FailureCondition, split_sve_hint};

use crate::monitor::{Locked, Monitor};
use crate::trace;
use crate::world::World;

/// Registers that a command writes after X0, at most.
const OUTPUTS: usize = 4;
/// Registers that a command may leave something in: those above its outputs are zero (B1.2).
const RESULTS: usize = 17;

/// What a command leaves in X0 and above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: RmiStatus,
    pub outputs: [u64; OUTPUTS],
}

impl Reply {
    /// Success, with these outputs.
    pub fn success<const N: usize>(outputs: [u64; N]) -> Self {
        Self { status: RmiStatus::Success, ..Self::with(RmiStatus::Success, outputs) }
    }

    /// With these outputs, whatever the status.
    pub fn with<const N: usize>(status: RmiStatus, values: [u64; N]) -> Self {
        const { assert!(N <= OUTPUTS) };
        let mut outputs = [0; OUTPUTS];
        outputs[..N].copy_from_slice(&values);
        Self { status, outputs }
    }
}

impl From<RmiStatus> for Reply {
    fn from(status: RmiStatus) -> Self {
        Self { status, outputs: [0; OUTPUTS] }
    }
}

/// A condition on input values: RMI_ERROR_INPUT.
impl From<FailureCondition> for Reply {
    fn from(_: FailureCondition) -> Self {
        RmiStatus::ErrorInput.into()
    }
}

/// Where it is said why a REC was left, of calls that are told.
pub type Told<'t> = Option<&'t mut Option<trace::Exit>>;
/// What is noted of a call that is told.
type Watched<'t> = Option<&'t mut trace::Noted>;

/// What a command ends with: `Err` is a failure condition's reply.
pub type Outcome = Result<Reply, Reply>;

/// Some input that is an error in itself.
pub const INPUT: Reply = Reply { status: RmiStatus::ErrorInput, outputs: [0; OUTPUTS] };

/// Answers a call, if it is one of RMI's.
pub fn call<W: World>(monitor: &Monitor<W>, x: &mut [u64; 18]) -> bool {
    let (fid, no_sve) = split_sve_hint(x[0] as u32);
    let Ok(command) = RmiCommand::from_fid(fid) else { return false };
    if monitor.trace.of_host() {
        answer_and_tell(monitor, command, x, !no_sve);
    } else {
        answer(monitor, command, x, !no_sve, None);
    }
    true
}

/// Answers a call and tells it.
#[cold]
#[inline(never)]
fn answer_and_tell<W: World>(
    monitor: &Monitor<W>,
    command: RmiCommand,
    x: &mut [u64; 18],
    host_has_sve: bool,
) {
    let mut noted = monitor.before_call(command, x);
    answer(monitor, command, x, host_has_sve, Some(&mut noted));
    monitor.after_call(command, &noted, x);
}

/// Answers a call in the place of its arguments.
#[inline(never)]
fn answer<W: World>(
    monitor: &Monitor<W>,
    command: RmiCommand,
    x: &mut [u64; 18],
    host_has_sve: bool,
    watched: Watched<'_>,
) {
    finish(x, outcome(monitor, command, x, host_has_sve, watched));
}

/// Puts what a command ended with where its caller finds it.
#[inline(always)]
fn finish(x: &mut [u64; 18], outcome: Outcome) {
    let Reply { status, outputs } = outcome.unwrap_or_else(|failure| failure);
    x[0] = status.bits();
    x[1..=OUTPUTS].copy_from_slice(&outputs);
    x[1 + OUTPUTS..RESULTS].fill(0);
}

/// The first `N` arguments.
fn args<const N: usize>(x: &[u64; 18]) -> [u64; N] {
    const { assert!(N < 18) };
    core::array::from_fn(|index| x[1 + index])
}

#[inline(always)]
fn outcome<W: World>(
    monitor: &Monitor<W>,
    command: RmiCommand,
    x: &[u64; 18],
    host_has_sve: bool,
    mut watched: Watched<'_>,
) -> Outcome {
    use RmiCommand::*;
    let lock: &mut Locked<'_, W> = &mut match command {
        // It gives the lock back while the realm runs.
        RecEnter => {
            let told = watched.map(|noted| &mut noted.exit);
            return rec::enter(monitor, input::RecEnter::from_registers(args(x)), host_has_sve, told);
        }
        // It needs nothing of the monitor.
        Version => return features::version(input::Version::from_registers(args(x))),
        _ => monitor.lock(),
    };
    if let Some(noted) = &mut watched {
        noted.look(lock);
    }
    let outcome = match command {
        RecEnter | Version => unreachable!("answered above"),
        DataCreate => data::create(lock, input::DataCreate::from_registers(args(x))),
        DataCreateUnknown => data::create_unknown(lock, input::DataCreateUnknown::from_registers(args(x))),
        DataDestroy => data::destroy(lock, input::DataDestroy::from_registers(args(x))),
        Features => features::features(lock, input::Features::from_registers(args(x))),
        GranuleDelegate => granule::delegate(lock, input::GranuleDelegate::from_registers(args(x))),
        GranuleUndelegate => granule::undelegate(lock, input::GranuleUndelegate::from_registers(args(x))),
        PsciComplete => rec::psci_complete(lock, input::PsciComplete::from_registers(args(x))),
        RealmActivate => realm::activate(lock, input::RealmActivate::from_registers(args(x))),
        RealmCreate => realm::create(lock, input::RealmCreate::from_registers(args(x))),
        RealmDestroy => realm::destroy(lock, input::RealmDestroy::from_registers(args(x))),
        RecAuxCount => rec::aux_count(lock, input::RecAuxCount::from_registers(args(x))),
        RecCreate => rec::create(lock, input::RecCreate::from_registers(args(x))),
        RecDestroy => rec::destroy(lock, input::RecDestroy::from_registers(args(x))),
        RttCreate => rtt::create(lock, input::RttCreate::from_registers(args(x))),
        RttDestroy => rtt::destroy(lock, input::RttDestroy::from_registers(args(x))),
        RttFold => rtt::fold(lock, input::RttFold::from_registers(args(x))),
        RttInitRipas => rtt::init_ripas(lock, input::RttInitRipas::from_registers(args(x))),
        RttMapUnprotected => rtt::map_unprotected(lock, input::RttMapUnprotected::from_registers(args(x))),
        RttReadEntry => rtt::read_entry(lock, input::RttReadEntry::from_registers(args(x))),
        RttSetRipas => rtt::set_ripas(lock, input::RttSetRipas::from_registers(args(x))),
        RttUnmapUnprotected => {
            rtt::unmap_unprotected(lock, input::RttUnmapUnprotected::from_registers(args(x)))
        }
    };
    if let Some(noted) = watched {
        noted.look_again(lock);
    }
    outcome
}
