//! A PL011 UART (DDI 0183) whose line is infinitely fast.
//!
//! Invariant: what is received and not read is at most a FIFO; so is what is sent and not taken.

use crate::access::Access;

/// A UART.
pub struct Pl011 {}

impl Pl011 {
    /// As it is after reset.
    pub const fn new() -> Self {
        Self {}
    }

    /// An access to its registers (4 KiB).
    pub fn access(&mut self, access: Access) -> u64 {
        let _ = access;
        todo!()
    }

    /// Whether there is room for a byte to be received.
    pub fn has_room(&self) -> bool {
        todo!()
    }

    /// A byte comes in; without room it is lost, and the guest is told so (overrun).
    pub fn receive(&mut self, byte: u8) {
        let _ = byte;
        todo!()
    }

    /// The next byte that the guest has sent. To be taken after each access, until there is none: that is what makes the FIFO empty.
    pub fn sent(&mut self) -> Option<u8> {
        todo!()
    }

    /// Its interrupt's line (active high).
    pub fn line(&self) -> bool {
        todo!()
    }
}
