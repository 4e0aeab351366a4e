//! Devices of virtio 1.2 ("Virtual I/O Device (VIRTIO) Version 1.2", OASIS), over MMIO.
//!
//! Invariant: what a guest says is copied before it is looked at, and memory that it does not share is not touched.

pub mod block;
pub mod console;
pub mod mmio;
pub mod queue;

#[cfg(test)]
mod driver;

/// Memory that guest and host share, by the addresses that the guest uses in queues. The guest may change it, and look at it, at any time: a copy of
/// 2 bytes at an even address is one access, so that nobody sees half of an index (virtio 1.2, 2.7.13.3).
pub trait GuestMemory {
    /// Copies from the guest; None if not all of it is shared memory.
    fn read(&self, ipa: u64, into: &mut [u8]) -> Option<()>;
    /// Copies to the guest; None if not all of it is shared memory.
    fn write(&self, ipa: u64, from: &[u8]) -> Option<()>;
}
