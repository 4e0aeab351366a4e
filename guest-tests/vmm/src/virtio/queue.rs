//! Split virtqueues, seen from the device (virtio 1.2, 2.7).
//!
//! Invariant: a chain has at most [`SIZE`] descriptors and less than 4 GiB, what is to be read before what is to be written.

use core::sync::atomic::{Ordering::Acquire, Ordering::Release, Ordering::SeqCst, fence};

use super::GuestMemory;

/// Entries of a queue, at most.
pub const SIZE: u16 = 64;

const DESCRIPTOR: u64 = 16;
const FLAG_NEXT: u16 = 1;
const FLAG_WRITE: u16 = 2;
const FLAG_INDIRECT: u16 = 4;
const AVAILABLE_NO_INTERRUPT: u16 = 1;

/// The driver broke a rule, or what it names is not shared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// A buffer: its address, and its size in bytes.
type Buffer = (u64, u32);

/// A chain of buffers.
#[derive(Debug)]
pub struct Chain {
    head: u16,
    buffers: [Buffer; SIZE as usize],
    /// How many of them there are, and how many of those come first and are to be read.
    count: usize,
    readable: usize,
}

impl Chain {
    fn to_read(&self) -> &[Buffer] {
        &self.buffers[..self.readable]
    }

    fn to_write(&self) -> &[Buffer] {
        &self.buffers[self.readable..self.count]
    }

    /// Bytes that the device may read.
    pub fn readable(&self) -> u64 {
        self.to_read().iter().map(|buffer| u64::from(buffer.1)).sum()
    }

    /// Bytes that the device may write.
    pub fn writable(&self) -> u64 {
        self.to_write().iter().map(|buffer| u64::from(buffer.1)).sum()
    }

    /// Copies from what may be read, from byte `offset` on.
    ///
    /// # Errors
    /// [`Broken`]: there is less, or it is not shared.
    pub fn read<M: GuestMemory>(&self, memory: &M, offset: u64, into: &mut [u8]) -> Result<(), Broken> {
        parts(self.to_read(), offset, into.len(), |ipa, at, len| memory.read(ipa, &mut into[at..at + len]))
    }

    /// Copies to what may be written, from byte `offset` on.
    ///
    /// # Errors
    /// [`Broken`]: there is less, or it is not shared.
    pub fn write<M: GuestMemory>(&self, memory: &M, offset: u64, from: &[u8]) -> Result<(), Broken> {
        parts(self.to_write(), offset, from.len(), |ipa, at, len| memory.write(ipa, &from[at..at + len]))
    }
}

/// Calls `each` with the address, the place and the size of each part of the `len` bytes from `offset` on.
fn parts(
    buffers: &[Buffer],
    mut offset: u64,
    len: usize,
    mut each: impl FnMut(u64, usize, usize) -> Option<()>,
) -> Result<(), Broken> {
    let mut at = 0;
    for &(ipa, size) in buffers {
        if at == len {
            break;
        }
        let size = u64::from(size);
        if offset >= size {
            offset -= size;
            continue;
        }
        let part = (size - offset).min((len - at) as u64) as usize;
        each(ipa + offset, at, part).ok_or(Broken)?;
        (at, offset) = (at + part, 0);
    }
    if at == len { Ok(()) } else { Err(Broken) }
}

/// Where a queue lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Entries: a power of two, at most [`SIZE`].
    pub size: u32,
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring.
    pub driver: u64,
    /// The used ring.
    pub device: u64,
}

impl Place {
    fn is_valid(&self) -> bool {
        let size = u64::from(self.size);
        let is_at =
            |start: u64, align, bytes| start.is_multiple_of(align) && start.checked_add(bytes).is_some();
        self.size.is_power_of_two()
            && self.size <= u32::from(SIZE)
            && is_at(self.descriptors, 16, DESCRIPTOR * size)
            && is_at(self.driver, 2, 6 + 2 * size)
            && is_at(self.device, 4, 6 + 8 * size)
    }
}

/// A queue that is in use.
#[derive(Debug)]
pub struct Queue {
    place: Place,
    size: u16,
    /// The next entry of the available ring to be looked at, and of the used ring to be written.
    next: u16,
    used: u16,
}

impl Queue {
    /// One of which nothing was used.
    ///
    /// # Errors
    /// [`Broken`]: it cannot lie there.
    pub fn new(place: Place) -> Result<Self, Broken> {
        if place.is_valid() {
            Ok(Self { place, size: place.size as u16, next: 0, used: 0 })
        } else {
            Err(Broken)
        }
    }

    /// The chain that comes next, if there is one.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn next<M: GuestMemory>(&self, memory: &M) -> Result<Option<Chain>, Broken> {
        let index = read_16(memory, self.place.driver + 2)?;
        match index.wrapping_sub(self.next) {
            0 => return Ok(None),
            waiting if waiting > self.size => return Err(Broken),
            _ => {}
        }
        // What the index tells was written before it.
        fence(Acquire);
        let entry = u64::from(self.next % self.size);
        self.chain(memory, read_16(memory, self.place.driver + 4 + 2 * entry)?).map(Some)
    }

    fn chain<M: GuestMemory>(&self, memory: &M, head: u16) -> Result<Chain, Broken> {
        let mut chain = Chain { head, buffers: [(0, 0); SIZE as usize], count: 0, readable: 0 };
        let (mut number, mut bytes) = (head, 0u32);
        // One that is longer than the queue has a loop.
        for _ in 0..self.size {
            if number >= self.size {
                return Err(Broken);
            }
            let mut descriptor = [0; DESCRIPTOR as usize];
            memory
                .read(self.place.descriptors + DESCRIPTOR * u64::from(number), &mut descriptor)
                .ok_or(Broken)?;
            let [ipa, rest] = [0, 8].map(|at| word(&descriptor, at));
            let (len, flags, next) = (rest as u32, (rest >> 32) as u16, (rest >> 48) as u16);
            bytes = bytes.checked_add(len).ok_or(Broken)?;
            ipa.checked_add(u64::from(len)).ok_or(Broken)?;
            let is_read = flags & FLAG_WRITE == 0;
            if flags & FLAG_INDIRECT != 0 || is_read && chain.readable < chain.count {
                return Err(Broken);
            }
            chain.buffers[chain.count] = (ipa, len);
            chain.count += 1;
            chain.readable += usize::from(is_read);
            if flags & FLAG_NEXT == 0 {
                return Ok(chain);
            }
            number = next;
        }
        Err(Broken)
    }

    /// Gives a chain back, the one that [`next`](Self::next) gave, with so many bytes written. Returns whether the driver wants an interrupt for it.
    ///
    /// # Errors
    /// [`Broken`].
    pub fn give_back<M: GuestMemory>(
        &mut self,
        memory: &M,
        chain: &Chain,
        written: u32,
    ) -> Result<bool, Broken> {
        let entry = u64::from(chain.head) | u64::from(written) << 32;
        let at = self.place.device + 4 + 8 * u64::from(self.used % self.size);
        memory.write(at, &entry.to_le_bytes()).ok_or(Broken)?;
        self.next = self.next.wrapping_add(1);
        self.used = self.used.wrapping_add(1);
        // The entry, and what is in the buffers, before the index.
        fence(Release);
        memory.write(self.place.device + 2, &self.used.to_le_bytes()).ok_or(Broken)?;
        // The driver turns interrupts on, then looks at the index; here it is the other way round, so one of both sees the other.
        fence(SeqCst);
        Ok(read_16(memory, self.place.driver)? & AVAILABLE_NO_INTERRUPT == 0)
    }
}

fn read_16<M: GuestMemory>(memory: &M, ipa: u64) -> Result<u16, Broken> {
    let mut bytes = [0; 2];
    memory.read(ipa, &mut bytes).ok_or(Broken)?;
    Ok(u16::from_le_bytes(bytes))
}

/// The little-endian doubleword at `at`; what is not there is 0.
pub(super) fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.iter().skip(at).take(8).rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}
