//! A console of one port (virtio 1.2, 5.3).
//!
//! Invariant: nothing that is received is lost while there is room.
//!
//! Neither its size nor more ports nor emergency writes are offered.

use super::GuestMemory;
use super::mmio::{Function, Served};
use super::queue::{Broken, Chain};

/// Bytes received that the guest has not taken, at most.
const ROOM: usize = 256;
/// Bytes of the guest's that are copied at once, and before somebody else has a turn.
const PART: usize = 256;
const TURN: u64 = 4096;
const RECEIVE: usize = 0;

/// Where a console's output goes.
pub trait Port {
    /// Bytes of the guest, in order.
    fn put(&mut self, bytes: &[u8]);
}

/// A console.
pub struct Console<P> {
    /// Where its output goes.
    pub port: P,
    received: [u8; ROOM],
    len: usize,
    /// Bytes of the chain that is being sent that are gone already.
    sent: u64,
}

impl<P: Port> Console<P> {
    /// One that nothing was received from.
    pub const fn new(port: P) -> Self {
        Self { port, received: [0; ROOM], len: 0, sent: 0 }
    }

    /// Whether there is room for a byte to be received.
    pub const fn has_room(&self) -> bool {
        self.len < ROOM
    }

    /// A byte comes in: the device is to be polled then. Without room it is lost.
    pub const fn receive(&mut self, byte: u8) {
        if self.has_room() {
            self.received[self.len] = byte;
            self.len += 1;
        }
    }

    fn give<M: GuestMemory>(&mut self, chain: &Chain, memory: &M) -> Result<Served, Broken> {
        if self.len == 0 {
            return Ok(Served::Waits);
        }
        let count = chain.writable().min(self.len as u64) as usize;
        if count == 0 {
            return Err(Broken);
        }
        chain.write(memory, 0, &self.received[..count])?;
        self.received.copy_within(count..self.len, 0);
        self.len -= count;
        Ok(Served::Used(count as u32))
    }

    fn send<M: GuestMemory>(&mut self, chain: &Chain, memory: &M) -> Result<Served, Broken> {
        let all = chain.readable();
        let end = all.min(self.sent + TURN);
        while self.sent < end {
            let mut part = [0; PART];
            let part = &mut part[..(end - self.sent).min(PART as u64) as usize];
            chain.read(memory, self.sent, part)?;
            self.port.put(part);
            self.sent += part.len() as u64;
        }
        if end < all {
            return Ok(Served::Partly);
        }
        self.sent = 0;
        Ok(Served::Used(0))
    }
}

impl<P: Port> Function for Console<P> {
    const ID: u32 = 3;
    const QUEUES: usize = 2;

    fn features(&self) -> u64 {
        0
    }

    fn config(&self, _: u64) -> u8 {
        0
    }

    fn reset(&mut self) {
        self.sent = 0;
    }

    fn serve<M: GuestMemory>(&mut self, queue: usize, chain: &Chain, memory: &M) -> Result<Served, Broken> {
        if queue == RECEIVE { self.give(chain, memory) } else { self.send(chain, memory) }
    }
}

#[cfg(test)]
mod tests {
    use std::vec;
    use std::vec::Vec;

    use super::super::driver::{Driver, Shared};
    use super::*;

    const SEND: usize = 1;

    impl Port for Vec<u8> {
        fn put(&mut self, bytes: &[u8]) {
            self.extend_from_slice(bytes);
        }
    }

    fn started() -> Driver<Console<Vec<u8>>> {
        Driver::started(Console::new(Vec::new()))
    }

    #[test]
    fn what_the_guest_sends_comes_out_in_order() {
        let mut driver = started();
        driver.memory.put(Shared::DATA, b"hello, world");
        driver.give(SEND, &[(Shared::DATA, 5, false), (Shared::DATA + 5, 7, false)]);
        driver.give(SEND, &[(Shared::DATA, 1, false)]);
        driver.notify(SEND);
        assert_eq!(driver.device.function.port, b"hello, worldh");
        assert_eq!(driver.used(SEND), [(0, 0), (2, 0)]);
        assert!(driver.device.line());
    }

    #[test]
    fn much_output_comes_in_turns_and_none_of_it_twice() {
        let mut driver = started();
        let text: Vec<u8> = (0..10_000u32).map(|number| number as u8).collect();
        driver.memory.put(Shared::DATA, &text);
        driver.give(SEND, &[(Shared::DATA, 10_000, false)]);
        driver.notify(SEND);
        assert_eq!(driver.device.function.port.len(), TURN as usize);
        assert!(driver.used(SEND).is_empty());
        while driver.poll() {}
        assert_eq!(driver.device.function.port, text);
        assert_eq!(driver.used(SEND), [(0, 0)]);
    }

    #[test]
    fn what_comes_in_waits_for_a_buffer_and_a_buffer_for_what_comes_in() {
        let mut driver = started();
        driver.give(RECEIVE, &[(Shared::DATA, 4, true)]);
        driver.notify(RECEIVE);
        assert!(!driver.device.line() && driver.used(RECEIVE).is_empty());
        b"abcdef".iter().for_each(|byte| driver.device.function.receive(*byte));
        driver.poll();
        assert_eq!(driver.used(RECEIVE), [(0, 4)]);
        assert_eq!(driver.memory.get(Shared::DATA, 4), b"abcd");
        driver.give(RECEIVE, &[(Shared::DATA, 4, true)]);
        driver.notify(RECEIVE);
        assert_eq!(driver.used(RECEIVE), [(1, 2)]);
        assert_eq!(driver.memory.get(Shared::DATA, 4), b"efcd");
    }

    #[test]
    fn more_than_there_is_room_for_is_lost() {
        let mut driver = started();
        (0..=255u8).chain(0..10).for_each(|byte| driver.device.function.receive(byte));
        assert!(!driver.device.function.has_room());
        driver.give(RECEIVE, &[(Shared::DATA, 300, true)]);
        driver.notify(RECEIVE);
        assert_eq!(driver.used(RECEIVE), [(0, 256)]);
        assert_eq!(driver.memory.get(Shared::DATA, 256), (0..=255).collect::<Vec<u8>>());
    }

    #[test]
    fn a_receive_buffer_without_room_is_an_error() {
        let mut driver = started();
        driver.device.function.receive(1);
        driver.give(RECEIVE, &[(Shared::DATA, 4, false)]);
        driver.notify(RECEIVE);
        assert!(driver.needs_reset());
    }

    #[test]
    fn a_reset_in_the_middle_of_an_output_ends_it() {
        let mut driver = started();
        driver.memory.put(Shared::DATA, &vec![7; 10_000]);
        driver.give(SEND, &[(Shared::DATA, 10_000, false)]);
        driver.notify(SEND);
        driver.start();
        driver.device.function.port.clear();
        driver.give(SEND, &[(Shared::DATA, 3, false)]);
        driver.notify(SEND);
        assert_eq!(driver.device.function.port, [7; 3]);
    }
}
