//! The MMIO transport, version 2 (virtio 1.2, 4.2).
//!
//! Invariant: queues are served between DRIVER_OK and the first error; an error lasts until the driver resets the device.

use super::GuestMemory;
use super::queue::{Broken, Chain};
use crate::access::Access;

/// What a device is, besides its transport.
pub trait Function {
    /// Device type (virtio 1.2, 5).
    const ID: u32;
    /// Queues, at most [`QUEUES`].
    const QUEUES: usize;

    /// Features of this type that it offers.
    fn features(&self) -> u64;
    /// A byte of its configuration space; 0 behind it.
    fn config(&self, offset: u64) -> u8;
    /// The driver has reset it.
    fn reset(&mut self);
    /// Serves a chain of a queue.
    ///
    /// # Errors
    /// [`Broken`]: the device needs a reset.
    fn serve<M: GuestMemory>(&mut self, queue: usize, chain: &Chain, memory: &M) -> Result<Served, Broken>;
}

/// What became of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// It is used: so many bytes were written.
    Used(u32),
    /// It stays until there is something to put into it.
    Waits,
    /// It stays because there is too much of it for once.
    Partly,
}

/// Queues of a device, at most.
pub const QUEUES: usize = 2;

/// A device.
pub struct Device<F> {
    /// What it is.
    pub function: F,
}

impl<F: Function> Device<F> {
    /// One as after reset.
    pub const fn new(function: F) -> Self {
        Self { function }
    }

    /// An access to its registers (512 bytes). A store to QueueNotify serves queues: [`poll`](Self::poll) tells whether there is more to do.
    pub fn access<M: GuestMemory>(&mut self, access: Access, memory: &M) -> u64 {
        let _ = (access, memory);
        todo!()
    }

    /// Serves what waits in its queues, up to a bound: after the function got something to give, and again while this is true.
    pub fn poll<M: GuestMemory>(&mut self, memory: &M) -> bool {
        let _ = memory;
        todo!()
    }

    /// Its interrupt's line (active high, a level).
    pub const fn line(&self) -> bool {
        todo!()
    }
}
