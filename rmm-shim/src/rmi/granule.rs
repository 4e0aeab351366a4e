//! Granules change between host and monitor: RMI_GRANULE_DELEGATE, RMI_GRANULE_UNDELEGATE (B4.3.5, B4.3.6).
//!
//! Invariant: a granule is the host's alone, or it is delegated; what a command finds otherwise is left as it is.

use hyp::mapping::{Address, Pa};
use rmm_abi::v1_0::rmi::input;

use super::{INPUT, Outcome, Reply};
use crate::monitor::Locked;
use crate::world::World;

/// The granule at a PA that the host has passed.
pub fn at(address: u64) -> Result<Pa, Reply> {
    Pa::new(address).map_err(|_| INPUT)
}

#[inline(always)]
pub fn delegate<W: World>(lock: &mut Locked<'_, W>, input: input::GranuleDelegate) -> Outcome {
    input.check()?;
    // gran_bound, gran_state and gran_gpt are one question: whether the granule is the host's alone.
    lock.world.delegate(at(input.addr)?).map_err(|_| INPUT)?;
    Ok(Reply::success([]))
}

#[inline(always)]
pub fn undelegate<W: World>(lock: &mut Locked<'_, W>, input: input::GranuleUndelegate) -> Outcome {
    input.check()?;
    lock.world.undelegate(at(input.addr)?).map_err(|_| INPUT)?;
    Ok(Reply::success([]))
}
