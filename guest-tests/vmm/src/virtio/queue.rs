//! Split virtqueues, seen from the device (virtio 1.2, 2.7).
//!
//! Invariant: a chain has at most [`SIZE`] descriptors, copied before they are looked at.

/// Entries of a queue, at most.
pub const SIZE: u16 = 64;

/// The driver broke a rule, or what it names is not shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// A chain of buffers.
pub struct Chain {}
