//! The devices of a realm that is a Linux: an interrupt controller, a UART, a console and a disk.
//!
//! Invariants:
//! - They change under one lock, [`DEVICES`], which is held for one access and for nothing that waits; it may be taken with no other
//!   held, or before the console's.
//! - Whoever changes what another REC is to get makes that one exit, after the lock ([`Realm::tell_others`]): so a REC that sleeps in a WFI, which is
//!   not trapped, wakes too.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use spin::Mutex;
use vmm_logic::access::Access;
use vmm_logic::gic::Gic;
use vmm_logic::lists::{PHYSICAL_TIMER, VIRTUAL_TIMER, interrupts};
use vmm_logic::pl011::Pl011;
use vmm_logic::tree;
use vmm_logic::virtio::block::{Block, RamDisk};
use vmm_logic::virtio::console::{Console, Port};
use vmm_logic::virtio::mmio::Device;

use super::granules::GRANULE;
use super::memory::{DISK, notes_size};
use super::realm::{MAX_RECS, Realm};
use super::shared::Shared;
use super::{console, uart};

/// What an exit for a device, or for what belongs to it, was for.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// The distributor.
    Distributor,
    /// A redistributor.
    Redistributor,
    /// An SGI to another REC.
    Sgi,
    /// The UART.
    Uart,
    /// The console.
    Console,
    /// The disk.
    Disk,
    /// Memory that it shares and has not touched before.
    Shared,
}

/// How often there was which, in the order of [`Kind`].
pub static EXITS: [(&str, AtomicU64); 7] = [
    ("distributor", AtomicU64::new(0)),
    ("redistributors", AtomicU64::new(0)),
    ("sgi", AtomicU64::new(0)),
    ("uart", AtomicU64::new(0)),
    ("console", AtomicU64::new(0)),
    ("disk", AtomicU64::new(0)),
    ("shared", AtomicU64::new(0)),
];

/// Counts one.
pub fn count(kind: Kind) {
    EXITS[kind as usize].1.fetch_add(1, Relaxed);
}

/// What the realm writes to its console is the host's to print.
struct Lines;

impl Port for Lines {
    fn put(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| console::hvc0(byte));
    }
}

/// What became of an access.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// It is made; what a load gives.
    Done(u64),
    /// It is to be made again, when another REC has exited.
    Later,
    /// No device is there.
    Nobody,
}

/// How often a device goes on with what waits in its queues before the realm does.
const ROUNDS: usize = 256;

/// The devices of a realm.
pub struct Devices {
    gic: Gic<MAX_RECS>,
    uart: Pl011,
    console: Device<Console<Lines>>,
    disk: Device<Block<RamDisk<'static>>>,
    /// What was typed waits in the host's UART.
    waits: bool,
}

/// Of the realm that there is.
pub static DEVICES: Mutex<Devices> = Mutex::new(Devices {
    gic: Gic::new(0),
    uart: Pl011::new(),
    console: Device::new(Console::new(Lines)),
    disk: Device::new(Block::new(RamDisk(&mut []))),
    waits: false,
});

/// A device's registers: which one's, and how far in.
fn which(ipa: u64, recs: usize) -> Option<(Kind, u64)> {
    let places = [
        (Kind::Distributor, tree::DISTRIBUTOR, tree::DISTRIBUTOR_SIZE),
        (Kind::Redistributor, tree::REDISTRIBUTORS, tree::REDISTRIBUTOR_SIZE * recs as u64),
        (Kind::Uart, tree::UART, GRANULE),
        (Kind::Console, tree::VIRTIO, tree::VIRTIO_SIZE),
        (Kind::Disk, tree::VIRTIO + tree::VIRTIO_SIZE, tree::VIRTIO_SIZE),
    ];
    let found = places.into_iter().find(|(_, start, size)| (*start..start + size).contains(&ipa));
    found.map(|(kind, start, _)| (kind, ipa - start))
}

/// How many of them are virtio's.
pub const VIRTIO: usize = 2;

/// Makes the devices of `realm` as they are after a reset.
#[inline(never)]
pub fn reset(realm: &Realm) {
    let Some(places) = realm.plan.devices else { return };
    // SAFETY: RAM that `Plan` has put aside for these, in use by nobody: the devices of an earlier realm are replaced here.
    let disk = unsafe {
        core::ptr::write_bytes(places.notes as *mut u8, 0, notes_size(realm.plan.size) as usize);
        core::ptr::write_bytes(places.disk as *mut u8, 0, DISK as usize);
        core::slice::from_raw_parts_mut(places.disk as *mut u8, DISK as usize)
    };
    let devices = &mut *DEVICES.lock();
    devices.gic = Gic::new(realm.recs.len());
    devices.uart = Pl011::new();
    devices.console = Device::new(Console::new(Lines));
    devices.disk = Device::new(Block::new(RamDisk(disk)));
    devices.waits = false;
    EXITS.iter().for_each(|(_, count)| count.store(0, Relaxed));
}

impl Devices {
    /// Fills the list registers for an entry of a REC; its gicv3_hcr.
    pub fn enter(&mut self, rec: usize, lrs: &mut [u64]) -> u64 {
        self.gic.enter(rec, lrs)
    }

    /// A REC is turned on: its timers are as after a reset.
    pub fn start(&mut self, rec: usize) {
        self.timers(rec, 0, 0);
    }

    /// Takes what its exit tells of a REC: list registers, gicv3_hcr, gicv3_vmcr.
    pub fn leave(&mut self, rec: usize, lrs: &[u64], hcr: u64, vmcr: u64) {
        self.gic.leave(rec, lrs, hcr, vmcr);
    }

    /// Takes what its exit tells of a REC's timers, their control registers.
    pub fn timers(&mut self, rec: usize, cntv: u64, cntp: u64) {
        self.gic.private_line(rec, VIRTUAL_TIMER, interrupts(cntv));
        self.gic.private_line(rec, PHYSICAL_TIMER, interrupts(cntp));
    }

    /// REC `from` sends an SGI.
    pub fn sgi(&mut self, from: usize, value: u64) {
        count(Kind::Sgi);
        self.gic.sgi(from, value);
    }

    /// RECs that are to look for news.
    pub fn kicks(&mut self) -> u32 {
        self.gic.kicks()
    }

    /// REC `rec` ends an interrupt that may not be in its list registers.
    pub fn deactivate(&mut self, rec: usize, value: u64) {
        self.gic.deactivate(rec, value);
    }

    /// An access to a device at an unprotected IPA, without the shared bit.
    pub fn access(&mut self, realm: &Realm, ipa: u64, access: Access) -> Answer {
        let Some((kind, offset)) = which(ipa, realm.recs.len()) else { return Answer::Nobody };
        count(kind);
        let access = Access { offset, ..access };
        let memory = Shared(realm);
        let value = match kind {
            Kind::Distributor => self.gic.distributor(access),
            Kind::Redistributor => self.gic.redistributors(access),
            Kind::Uart => {
                let value = self.uart.access(access);
                while let Some(byte) = self.uart.sent() {
                    console::raw(byte);
                }
                if self.waits {
                    self.hear();
                }
                self.gic.line(tree::UART_INTID, self.uart.line());
                Some(value)
            }
            Kind::Console => {
                let value = self.console.access(access, &memory);
                let _ = (0..ROUNDS).find(|_| !self.console.poll(&memory));
                self.gic.line(tree::VIRTIO_INTID, self.console.line());
                Some(value)
            }
            Kind::Disk => {
                let value = self.disk.access(access, &memory);
                let _ = (0..ROUNDS).find(|_| !self.disk.poll(&memory));
                self.gic.line(tree::VIRTIO_INTID + 1, self.disk.line());
                Some(value)
            }
            Kind::Sgi | Kind::Shared => return Answer::Nobody,
        };
        value.map_or(Answer::Later, Answer::Done)
    }

    /// The host's UART has received something: the realm's gets as much of it as there is room for.
    pub fn hear(&mut self) {
        while self.uart.has_room()
            && let Some(byte) = uart::take()
        {
            self.uart.receive(byte);
        }
        self.gic.line(tree::UART_INTID, self.uart.line());
        self.waits = !self.uart.has_room();
        uart::listen(!self.waits);
    }
}
