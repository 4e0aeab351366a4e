//! The monitor: its lock, and which command is whose.
//!
//! Invariant: every call of the host's with an identifier of RMI is answered; what is no command of it is NOT_SUPPORTED. X0 is the status, X1 and
//! up the outputs, zero after an error unless the command says otherwise, and the registers above the outputs are zero up to X16 (B1.2).

use hyp::mapping::Pa;
use spin::mutex::{SpinMutex, SpinMutexGuard};

use crate::attest::PlatformSignature;
use crate::realm::MAX_REALMS;
use crate::rmi;
use crate::trace::Trace;
use crate::world::World;

/// The realms there are, and what they have in common.
pub(crate) struct State {
    /// Their descriptors, each at its number minus one.
    pub realms: [Option<Pa>; MAX_REALMS],
    /// The signature of the platform's token, once somebody has made it.
    pub platform: Option<PlatformSignature>,
}

/// Serves RMI and RSI on a [`World`].
pub struct Monitor<W> {
    pub(crate) world: W,
    pub(crate) trace: Trace,
    state: SpinMutex<State>,
}

impl<W: World> Monitor<W> {
    /// Without a realm.
    pub const fn new(world: W) -> Self {
        Self::traced(world, Trace::NOTHING)
    }

    /// Without a realm; what is called is told.
    pub const fn traced(world: W, trace: Trace) -> Self {
        let state = State { realms: [None; MAX_REALMS], platform: None };
        Self { world, trace, state: SpinMutex::new(state) }
    }

    /// Answers the host's call in x0 to x17, in their place, on the calling CPU. False if it is none of RMI.
    pub fn call(&self, x: &mut [u64; 18]) -> bool {
        rmi::call(self, x)
    }

    pub(crate) fn lock(&self) -> Locked<'_, W> {
        loop {
            if let Some(state) = self.state.try_lock() {
                return Locked { world: &self.world, state };
            }
            self.world.wait();
        }
    }
}

/// The monitor, to one CPU.
pub(crate) struct Locked<'m, W> {
    pub world: &'m W,
    pub state: SpinMutexGuard<'m, State>,
}
