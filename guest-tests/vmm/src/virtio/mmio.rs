//! The MMIO transport, version 2 (virtio 1.2, 4.2).
//!
//! Invariant: queues are served between DRIVER_OK and the first error; after an error the device needs a reset, and says so.
//!
//! VIRTIO_F_VERSION_1 and VIRTIO_F_ACCESS_PLATFORM have to be accepted, because a device has nothing but what is shared with it. Indirect
//! descriptors, event indices, packed rings, resets of single queues and shared memory regions are not offered.

use super::GuestMemory;
use super::queue::{Broken, Chain, Place, Queue, SIZE};
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
/// Chains of a queue that are served at once, at most.
const AT_ONCE: usize = SIZE as usize;

const VERSION_1: u64 = 1 << 32;
const ACCESS_PLATFORM: u64 = 1 << 33;
const REQUIRED: u64 = VERSION_1 | ACCESS_PLATFORM;

// Of Status. What a driver may write of it: NEEDS_RESET is the device's.
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;
const OF_DRIVER: u32 = 1 | 2 | DRIVER_OK | FEATURES_OK | FAILED;
// Of InterruptStatus.
const USED_BUFFER: u32 = 1;
const CONFIG_CHANGE: u32 = 2;

const MAGIC: u64 = 0x000;
const VERSION: u64 = 0x004;
const DEVICE_ID: u64 = 0x008;
const VENDOR_ID: u64 = 0x00c;
const DEVICE_FEATURES: u64 = 0x010;
const DEVICE_FEATURES_SEL: u64 = 0x014;
const DRIVER_FEATURES: u64 = 0x020;
const DRIVER_FEATURES_SEL: u64 = 0x024;
const QUEUE_SEL: u64 = 0x030;
const QUEUE_NUM_MAX: u64 = 0x034;
const QUEUE_NUM: u64 = 0x038;
const QUEUE_READY: u64 = 0x044;
const QUEUE_NOTIFY: u64 = 0x050;
const INTERRUPT_STATUS: u64 = 0x060;
const INTERRUPT_ACK: u64 = 0x064;
const STATUS: u64 = 0x070;
const QUEUE_DESC: u64 = 0x080;
const QUEUE_DRIVER: u64 = 0x090;
const QUEUE_DEVICE: u64 = 0x0a0;
/// SHMLen and SHMBase: of a region that is not there, all bits are set.
const SHARED_REGION: core::ops::Range<u64> = 0x0b0..0x0c0;
const CONFIG: u64 = 0x100;

/// A device.
pub struct Device<F> {
    /// What it is.
    pub function: F,
    status: u32,
    features_sel: u32,
    driver_sel: u32,
    /// What the driver has accepted.
    features: u64,
    queue_sel: u32,
    places: [Place; QUEUES],
    /// Those that are ready.
    queues: [Option<Queue>; QUEUES],
    interrupts: u32,
}

impl<F: Function> Device<F> {
    /// One as after reset.
    pub const fn new(function: F) -> Self {
        const { assert!(F::QUEUES <= QUEUES) };
        Self {
            function,
            status: 0,
            features_sel: 0,
            driver_sel: 0,
            features: 0,
            queue_sel: 0,
            places: [Place { size: 0, descriptors: 0, driver: 0, device: 0 }; QUEUES],
            queues: [const { None }; QUEUES],
            interrupts: 0,
        }
    }

    /// An access to its registers (512 bytes). A store to QueueNotify serves the queues once: [`poll`](Self::poll) tells whether there is more to do.
    pub fn access<M: GuestMemory>(&mut self, access: Access, memory: &M) -> u64 {
        let Access { offset, size, store } = access;
        if offset >= CONFIG {
            // No field of a configuration space is the driver's to write.
            let bytes = 0..u64::from(size.min(8));
            let byte = |at| u64::from(self.function.config((offset - CONFIG).saturating_add(at))) << (8 * at);
            return bytes.fold(0, |word, at| word | byte(at));
        }
        if size != 4 || !offset.is_multiple_of(4) {
            return 0;
        }
        match store {
            None => u64::from(self.load(offset)),
            Some(value) => {
                self.store(offset, value as u32, memory);
                0
            }
        }
    }

    fn load(&self, offset: u64) -> u32 {
        match offset {
            MAGIC => u32::from_le_bytes(*b"virt"),
            VERSION => 2,
            DEVICE_ID => F::ID,
            VENDOR_ID => u32::from_le_bytes(*b"Clov"),
            DEVICE_FEATURES => half(self.offered(), self.features_sel),
            QUEUE_NUM_MAX => self.selected().map_or(0, |_| u32::from(SIZE)),
            QUEUE_READY => self.selected().map_or(0, |at| u32::from(self.queues[at].is_some())),
            INTERRUPT_STATUS => self.interrupts,
            STATUS => self.status,
            _ if SHARED_REGION.contains(&offset) => u32::MAX,
            // ConfigGeneration too: it never changes.
            _ => 0,
        }
    }

    fn store<M: GuestMemory>(&mut self, offset: u64, value: u32, memory: &M) {
        match offset {
            DEVICE_FEATURES_SEL => self.features_sel = value,
            DRIVER_FEATURES_SEL => self.driver_sel = value,
            DRIVER_FEATURES if self.status & FEATURES_OK == 0 => {
                set_half(&mut self.features, self.driver_sel, value)
            }
            QUEUE_SEL => self.queue_sel = value,
            QUEUE_READY => self.set_ready(value & 1 != 0),
            QUEUE_NOTIFY => _ = self.poll(memory),
            INTERRUPT_ACK => self.interrupts &= !value,
            STATUS => self.set_status(value),
            _ => self.set_place(offset, value),
        }
    }

    fn offered(&self) -> u64 {
        self.function.features() | REQUIRED
    }

    fn selected(&self) -> Option<usize> {
        usize::try_from(self.queue_sel).ok().filter(|at| *at < F::QUEUES)
    }

    /// Of a queue that is ready nothing can be changed.
    fn set_place(&mut self, offset: u64, value: u32) {
        let Some(at) = self.selected().filter(|at| self.queues[*at].is_none()) else { return };
        let place = &mut self.places[at];
        let high = (offset & 4 != 0).into();
        match offset & !4 {
            _ if offset == QUEUE_NUM => place.size = value,
            QUEUE_DESC => set_half(&mut place.descriptors, high, value),
            QUEUE_DRIVER => set_half(&mut place.driver, high, value),
            QUEUE_DEVICE => set_half(&mut place.device, high, value),
            _ => {}
        }
    }

    fn set_ready(&mut self, is_ready: bool) {
        let Some(at) = self.selected() else { return };
        if !is_ready {
            self.queues[at] = None;
        } else if self.queues[at].is_none() {
            match Queue::new(self.places[at]) {
                Ok(queue) => self.queues[at] = Some(queue),
                Err(Broken) => self.fail(),
            }
        }
    }

    fn set_status(&mut self, value: u32) {
        if value == 0 {
            return self.reset();
        }
        let mut status = value & OF_DRIVER | self.status & NEEDS_RESET;
        let is_accepted = self.features & !self.offered() == 0 && self.features & REQUIRED == REQUIRED;
        if !is_accepted {
            status &= !FEATURES_OK;
        }
        if status & FEATURES_OK == 0 {
            status &= !DRIVER_OK;
        }
        self.status = status;
    }

    fn reset(&mut self) {
        (self.status, self.features, self.interrupts) = (0, 0, 0);
        (self.features_sel, self.driver_sel, self.queue_sel) = (0, 0, 0);
        self.places = [Place::default(); QUEUES];
        self.queues = [const { None }; QUEUES];
        self.function.reset();
    }

    fn fail(&mut self) {
        if self.status & DRIVER_OK != 0 {
            self.interrupts |= CONFIG_CHANGE;
        }
        self.status |= NEEDS_RESET;
    }

    /// Serves what waits in its queues, up to a bound: after the function got something to give, and again as long as this is true (with the
    /// lock given up in between: a guest can keep a device busy for ever).
    pub fn poll<M: GuestMemory>(&mut self, memory: &M) -> bool {
        let mut is_more = false;
        for number in 0..F::QUEUES {
            if self.status & (DRIVER_OK | NEEDS_RESET | FAILED) != DRIVER_OK {
                return false;
            }
            match self.serve(number, memory) {
                Ok(more) => is_more |= more,
                Err(Broken) => self.fail(),
            }
        }
        is_more
    }

    fn serve<M: GuestMemory>(&mut self, number: usize, memory: &M) -> Result<bool, Broken> {
        let Some(queue) = &mut self.queues[number] else { return Ok(false) };
        for _ in 0..AT_ONCE {
            let Some(chain) = queue.next(memory)? else { return Ok(false) };
            match self.function.serve(number, &chain, memory)? {
                Served::Used(written) => {
                    if queue.give_back(memory, &chain, written)? {
                        self.interrupts |= USED_BUFFER;
                    }
                }
                Served::Waits => return Ok(false),
                Served::Partly => return Ok(true),
            }
        }
        Ok(true)
    }

    /// Its interrupt's line (active high, a level).
    pub const fn line(&self) -> bool {
        self.interrupts != 0
    }
}

/// The lower half of a doubleword, the upper one, or none.
const fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

const fn set_half(value: &mut u64, select: u32, half: u32) {
    match select {
        0 => *value = *value & !0xffff_ffff | half as u64,
        1 => *value = *value & 0xffff_ffff | (half as u64) << 32,
        _ => {}
    }
}
