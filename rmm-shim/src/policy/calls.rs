//! The calls of RMI, made as a host makes them: in x0 to x17.
//!
//! Invariant: the host that calls has nothing in its SVE registers, and says so (SMCCC, bit 16).

use core::fmt;

use rmm_abi::v1_0::rmi::{RmiCommand, RmiStatus};

use super::{Board, Policy};
use crate::world::World;

/// SMCCC 1.3: there is no SVE state to preserve.
const NO_SVE: u64 = 1 << 16;

/// A command that the RMM has not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The command.
    pub command: RmiCommand,
    /// X0.
    pub status: u64,
    /// X1 to X3.
    pub inputs: [u64; 3],
}

impl Refused {
    /// The level at which an RTT walk ended, if that is why.
    pub fn walk_level(&self) -> Option<i64> {
        match RmiStatus::from_bits(self.status) {
            Ok(RmiStatus::ErrorRtt(level)) => Some((level as i8).into()),
            _ => None,
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { command, status, inputs } = self;
        match RmiStatus::from_bits(*status) {
            Ok(known) => write!(f, "{} {inputs:x?}: {known:?}", command.name()),
            Err(_) => write!(f, "{} {inputs:x?}: X0 {status:#x}", command.name()),
        }
    }
}

impl<W: World, B: Board> Policy<W, B> {
    /// Makes a call: X1 to X4 afterwards, or X0 and these.
    pub(super) fn try_call(
        &self,
        command: RmiCommand,
        inputs: &[u64],
    ) -> Result<[u64; 4], (Refused, [u64; 4])> {
        let mut x = [0; 18];
        x[0] = u64::from(command.fid()) | NO_SVE;
        x[1..=inputs.len()].copy_from_slice(inputs);
        let told = [x[1], x[2], x[3]];
        // It is one of RMI's.
        self.monitor.call(&mut x);
        let outputs = [x[1], x[2], x[3], x[4]];
        match x[0] == RmiStatus::Success.bits() {
            true => Ok(outputs),
            false => Err((Refused { command, status: x[0], inputs: told }, outputs)),
        }
    }

    /// Makes a call that is to succeed.
    pub(super) fn call(&self, command: RmiCommand, inputs: &[u64]) -> Result<[u64; 4], Refused> {
        self.try_call(command, inputs).map_err(|(refused, _)| refused)
    }
}
