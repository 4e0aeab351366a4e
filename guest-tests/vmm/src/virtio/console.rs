//! A console of one port (virtio 1.2, 5.3).
//!
//! Invariant: nothing that is received is lost while there is room.

/// Where a console's output goes.
pub trait Port {
    /// Bytes of the guest, in order.
    fn put(&mut self, bytes: &[u8]);
}

/// A console.
pub struct Console<P> {
    /// Where its output goes.
    pub port: P,
}

impl<P: Port> Console<P> {
    /// One that nothing was received from.
    pub const fn new(port: P) -> Self {
        Self { port }
    }

    /// Whether there is room for a byte to be received.
    pub fn has_room(&self) -> bool {
        todo!()
    }

    /// A byte comes in: the device is to be polled then. Without room it is lost.
    pub fn receive(&mut self, byte: u8) {
        let _ = byte;
        todo!()
    }
}
