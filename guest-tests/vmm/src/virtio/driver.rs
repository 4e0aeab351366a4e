//! A driver for the tests, and the memory that it shares; with what any device has in common.
//!
//! Invariant: memory outside of [`Shared`] is not touched: it is not there.

use core::cell::RefCell;
use proptest::prelude::*;
use std::vec;
use std::vec::Vec;

use super::GuestMemory;
use super::block::{Block, RamDisk};
use super::console::Console;
use super::mmio::{Device, Function};
use crate::access::Access;

/// What the guest shares: queues first, then data.
pub struct Shared(RefCell<Vec<u8>>);

impl Shared {
    pub const START: u64 = 0x80_4000_0000;
    pub const DATA: u64 = Self::START + 0x4000;
    pub const END: u64 = Self::START + 0x4_0000;

    fn range(ipa: u64, len: usize) -> Option<core::ops::Range<usize>> {
        let start = ipa.checked_sub(Self::START)?;
        let end = start.checked_add(len as u64)?;
        (end <= Self::END - Self::START).then_some(start as usize..end as usize)
    }

    pub fn put(&self, ipa: u64, bytes: &[u8]) {
        self.write(ipa, bytes).unwrap();
    }

    pub fn get(&self, ipa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.read(ipa, &mut bytes).unwrap();
        bytes
    }

    fn get_16(&self, ipa: u64) -> u16 {
        u16::from_le_bytes(self.get(ipa, 2).try_into().unwrap())
    }
}

impl GuestMemory for Shared {
    fn read(&self, ipa: u64, into: &mut [u8]) -> Option<()> {
        into.copy_from_slice(&self.0.borrow()[Self::range(ipa, into.len())?]);
        Some(())
    }

    fn write(&self, ipa: u64, from: &[u8]) -> Option<()> {
        self.0.borrow_mut()[Self::range(ipa, from.len())?].copy_from_slice(from);
        Some(())
    }
}

const SIZE: u16 = 8;
const STATUS: u64 = 0x70;

/// A driver, as Linux's is: a device, and what was given to it.
pub struct Driver<F> {
    pub device: Device<F>,
    pub memory: Shared,
    /// Descriptors and entries of the available ring that were used so far, and of the used ring that were seen.
    counts: [(u16, u16, u16); 2],
}

const fn table(queue: usize) -> u64 {
    Shared::START + 0x1000 * queue as u64
}

const fn available(queue: usize) -> u64 {
    table(queue) + 0x400
}

const fn used(queue: usize) -> u64 {
    table(queue) + 0x800
}

impl<F: Function> Driver<F> {
    pub fn new(function: F) -> Self {
        let bytes = (Shared::END - Shared::START) as usize;
        let memory = Shared(RefCell::new(vec![0; bytes]));
        Self { device: Device::new(function), memory, counts: [(0, 0, 0); 2] }
    }

    pub fn started(function: F) -> Self {
        let mut driver = Self::new(function);
        driver.start();
        driver
    }

    pub fn load(&mut self, offset: u64, size: u8) -> u64 {
        self.device.access(Access { offset, size, store: None }, &self.memory)
    }

    pub fn store(&mut self, offset: u64, value: u32) {
        let access = Access { offset, size: 4, store: Some(value.into()) };
        assert_eq!(self.device.access(access, &self.memory), 0);
    }

    fn accept(&mut self, features: u64) {
        for half in [0, 1] {
            self.store(0x24, half);
            self.store(0x20, (features >> (32 * half)) as u32);
        }
    }

    fn offered(&mut self) -> u64 {
        [0, 1].map(|half| {
            self.store(0x14, half);
            self.load(0x10, 4) << (32 * half)
        })[..]
            .iter()
            .sum()
    }

    /// Resets the device, and makes it work with empty queues.
    pub fn start(&mut self) {
        self.store(STATUS, 0);
        self.store(STATUS, 3);
        let offered = self.offered();
        self.accept(offered);
        self.store(STATUS, 11);
        assert_eq!(self.load(STATUS, 4), 11);
        self.counts = [(0, 0, 0); 2];
        for queue in 0..F::QUEUES {
            self.memory.put(table(queue), &[0; 0x1000]);
            self.store(0x30, queue as u32);
            assert_eq!(self.load(0x44, 4), 0);
            assert_eq!(self.load(0x34, 4), 64);
            self.store(0x38, SIZE.into());
            let places = [(0x80, table(queue)), (0x90, available(queue)), (0xa0, used(queue))];
            for (register, place) in places {
                self.store(register, place as u32);
                self.store(register + 4, (place >> 32) as u32);
            }
            self.store(0x44, 1);
            assert_eq!(self.load(0x44, 4), 1);
        }
        self.store(STATUS, 15);
        assert_eq!(self.load(STATUS, 4), 15);
    }

    fn describe(&self, queue: usize, number: u16, buffer: (u64, u32), flags: u16, next: u16) {
        let rest = u64::from(buffer.1) | u64::from(flags) << 32 | u64::from(next) << 48;
        let bytes = [buffer.0, rest].map(u64::to_le_bytes);
        self.memory.put(table(queue) + 16 * u64::from(number % SIZE), bytes.as_flattened());
    }

    fn make_available(&mut self, queue: usize, head: u16) {
        let count = self.counts[queue].1;
        self.memory.put(available(queue) + 4 + 2 * u64::from(count % SIZE), &head.to_le_bytes());
        self.counts[queue].1 = count.wrapping_add(1);
        self.memory.put(available(queue) + 2, &self.counts[queue].1.to_le_bytes());
    }

    /// Makes a chain of these available: address, bytes, whether the device writes.
    pub fn give(&mut self, queue: usize, buffers: &[(u64, u32, bool)]) {
        let head = self.counts[queue].0;
        for (number, &(ipa, len, is_write)) in (head..).zip(buffers) {
            let is_last = number - head + 1 == buffers.len() as u16;
            let flags = u16::from(!is_last) | u16::from(is_write) << 1;
            self.describe(queue, number, (ipa, len), flags, (number + 1) % SIZE);
        }
        self.make_available(queue, head % SIZE);
        self.counts[queue].0 += buffers.len() as u16;
    }

    pub fn notify(&mut self, queue: usize) {
        self.store(0x50, queue as u32);
    }

    pub fn poll(&mut self) -> bool {
        self.device.poll(&self.memory)
    }

    /// What was used since the last call: descriptor, bytes.
    pub fn used(&mut self, queue: usize) -> Vec<(u32, u32)> {
        let end = self.memory.get_16(used(queue) + 2);
        let mut entries = Vec::new();
        while self.counts[queue].2 != end {
            let at = used(queue) + 4 + 8 * u64::from(self.counts[queue].2 % SIZE);
            let entry = u64::from_le_bytes(self.memory.get(at, 8).try_into().unwrap());
            entries.push((entry as u32, (entry >> 32) as u32));
            self.counts[queue].2 = self.counts[queue].2.wrapping_add(1);
        }
        entries
    }

    pub fn needs_reset(&mut self) -> bool {
        let needs = self.load(STATUS, 4) & 64 != 0;
        assert_eq!(self.load(0x60, 4) & 2 != 0, needs, "the driver is told");
        needs
    }
}

fn console() -> Driver<Console<Vec<u8>>> {
    Driver::new(Console::new(Vec::new()))
}

#[test]
fn linux_finds_a_device_of_version_2() {
    let mut driver = console();
    assert_eq!(driver.load(0, 4), 0x7472_6976);
    assert_eq!((driver.load(4, 4), driver.load(8, 4)), (2, 3));
    assert_eq!(driver.offered(), 3 << 32);
    driver.store(0x14, 2);
    assert_eq!(driver.load(0x10, 4), 0);
    assert_eq!((driver.load(0xb0, 4), driver.load(0xb4, 4)), (0xffff_ffff, 0xffff_ffff), "no shared regions");
    assert_eq!(driver.load(0xfc, 4), 0);
    driver.store(0x30, 2);
    assert_eq!(driver.load(0x34, 4), 0, "no third queue");
}

#[test]
fn features_have_to_be_what_is_needed_and_offered() {
    for (features, is_accepted) in
        [(3 << 32, true), (1 << 32, false), (1 << 33, false), (7 << 32, false), (3 << 32 | 1, false)]
    {
        let mut driver = console();
        driver.store(STATUS, 3);
        driver.accept(features);
        driver.store(STATUS, 11);
        assert_eq!(driver.load(STATUS, 4) & 8 != 0, is_accepted, "{features:x}");
        driver.store(STATUS, 15);
        assert_eq!(driver.load(STATUS, 4) & 4 != 0, is_accepted);
        // Once they are accepted they stay so.
        driver.accept(3 << 32);
        driver.accept(0);
        driver.store(STATUS, 15);
        assert_eq!(driver.load(STATUS, 4) & 8 != 0, is_accepted);
    }
}

#[test]
fn nothing_is_served_before_the_driver_is_ready_and_after_a_reset() {
    let mut driver = Driver::started(Console::new(Vec::new()));
    driver.store(STATUS, 11);
    driver.give(1, &[(Shared::DATA, 4, false)]);
    driver.notify(1);
    assert!(driver.device.function.port.is_empty());
    driver.store(STATUS, 15);
    driver.notify(1);
    assert_eq!(driver.device.function.port.len(), 4);
    assert!(driver.device.line());
    driver.store(STATUS, 0);
    assert!(!driver.device.line());
    assert_eq!((driver.load(STATUS, 4), driver.load(0x44, 4)), (0, 0));
}

#[test]
fn an_interrupt_lasts_until_it_is_acknowledged_and_comes_only_if_it_is_wanted() {
    let mut driver = Driver::started(Console::new(Vec::new()));
    driver.memory.put(available(1), &[1, 0]);
    driver.give(1, &[(Shared::DATA, 1, false)]);
    driver.notify(1);
    assert!(!driver.device.line() && driver.used(1) == [(0, 0)]);
    driver.memory.put(available(1), &[0, 0]);
    driver.give(1, &[(Shared::DATA, 1, false)]);
    driver.notify(1);
    assert!(driver.device.line());
    assert_eq!(driver.load(0x60, 4), 1);
    driver.store(0x64, 1);
    assert!(!driver.device.line());
}

#[test]
fn a_queue_goes_round_more_often_than_it_is_long() {
    let mut driver = Driver::started(Console::new(Vec::new()));
    for number in 0..100_000u32 {
        driver.counts[1].0 = (number % 8) as u16;
        driver.give(1, &[(Shared::DATA, 1, false)]);
        driver.notify(1);
        assert_eq!(driver.used(1), [(number % 8, 0)]);
    }
}

#[test]
fn a_queue_that_cannot_be_is_refused() {
    for (register, value) in [(0x38, 0), (0x38, 3), (0x38, 128), (0x80, 8), (0x90, 1), (0xa0, 2)] {
        let mut driver = Driver::started(Console::new(Vec::new()));
        driver.store(0x30, 1);
        driver.store(register, value);
        driver.store(0x44, 0);
        driver.store(0x44, 1);
        assert!(!driver.needs_reset(), "it was in use: nothing has changed");
        driver.store(0x44, 0);
        driver.store(register, value);
        driver.store(0x44, 1);
        assert_eq!(driver.load(0x44, 4), 0);
        assert!(driver.needs_reset(), "{register:x} {value}");
    }
}

#[test]
fn what_breaks_the_rules_of_a_queue_needs_a_reset_until_there_is_one() {
    const NEXT: u16 = 1;
    const WRITE: u16 = 2;
    const INDIRECT: u16 = 4;
    type Breaks = fn(&mut Driver<Console<Vec<u8>>>);
    let all: [(&str, Breaks); 9] = [
        ("a loop", |driver| driver.describe(1, 0, (Shared::DATA, 1), NEXT, 0)),
        ("a descriptor that is not there", |driver| driver.describe(1, 0, (Shared::DATA, 1), NEXT, SIZE)),
        ("an indirect one", |driver| driver.describe(1, 0, (Shared::DATA, 16), INDIRECT, 0)),
        ("more than 4 GiB", |driver| {
            driver.describe(1, 0, (Shared::DATA, u32::MAX), NEXT, 1);
            driver.describe(1, 1, (Shared::DATA, 1), 0, 0);
        }),
        ("an end of the address space", |driver| driver.describe(1, 0, (u64::MAX, 2), 0, 0)),
        ("what is read after what is written", |driver| {
            driver.describe(1, 0, (Shared::DATA, 1), NEXT | WRITE, 1);
            driver.describe(1, 1, (Shared::DATA, 1), 0, 0);
        }),
        ("memory that is not shared", |driver| driver.describe(1, 0, (Shared::END, 1), 0, 0)),
        ("a head that is not there", |driver| driver.memory.put(available(1) + 4, &SIZE.to_le_bytes())),
        ("more entries than there are", |driver| driver.memory.put(available(1) + 2, &[SIZE as u8 + 1, 0])),
    ];
    for (name, breaks) in all {
        let mut driver = Driver::started(Console::new(Vec::new()));
        driver.make_available(1, 0);
        breaks(&mut driver);
        driver.notify(1);
        assert!(driver.needs_reset(), "{name}");
        assert!(driver.used(1).is_empty(), "{name}");
        driver.store(STATUS, 15);
        driver.notify(1);
        assert!(driver.needs_reset(), "{name}");
        driver.start();
        driver.give(1, &[(Shared::DATA, 2, false)]);
        driver.notify(1);
        assert!(!driver.needs_reset(), "{name}");
        assert_eq!(driver.used(1), [(0, 0)], "{name}");
    }
}

#[test]
fn queues_that_are_not_shared_need_a_reset() {
    for register in [0x80, 0x90, 0xa0] {
        let mut driver = Driver::started(Console::new(Vec::new()));
        driver.store(0x30, 1);
        driver.store(0x44, 0);
        driver.store(register + 4, 0);
        driver.store(0x44, 1);
        driver.give(1, &[(Shared::DATA, 2, false)]);
        driver.notify(1);
        assert!(driver.needs_reset(), "{register:x}");
    }
}

/// What a hostile driver does.
#[derive(Clone, Debug)]
enum Step {
    Access(u64, u8, Option<u64>),
    /// Bytes into what is shared.
    Bytes(u64, Vec<u8>),
    /// A descriptor that is nearly one.
    Describe(usize, u16, (u64, u32), u16, u16),
    Available(usize, u16),
    Start,
    Poll,
}

fn step() -> impl Strategy<Value = Step> {
    let near = Shared::START - 8..Shared::END + 8;
    let address = prop_oneof![8 => near, 1 => any::<u64>(), 1 => (0..16u64).prop_map(|low| u64::MAX - low)];
    let len = prop_oneof![8 => 0..2000u32, 1 => any::<u32>(), 1 => Just(16), 1 => Just(512)];
    prop_oneof![
        3 => (0..0x200u64, prop_oneof![4 => Just(4), 1 => any::<u8>()], any::<Option<u64>>())
            .prop_map(|(offset, size, store)| Step::Access(offset & !3, size, store)),
        1 => (any::<u64>(), any::<u8>(), any::<Option<u64>>())
            .prop_map(|(offset, size, store)| Step::Access(offset, size, store)),
        1 => (0..0x2000u64, prop::collection::vec(any::<u8>(), 1..32))
            .prop_map(|(at, bytes)| Step::Bytes(Shared::START + at, bytes)),
        8 => (0..2usize, 0..SIZE, (address, len), 0..8u16, 0..SIZE + 1)
            .prop_map(|(queue, number, buffer, flags, next)| {
                // Indirect ones now and then.
                Step::Describe(queue, number, buffer, if flags > 4 { flags & 3 } else { flags }, next)
            }),
        6 => (0..2usize, 0..SIZE + 1).prop_map(|(queue, head)| Step::Available(queue, head)),
        2 => Just(Step::Start),
        3 => Just(Step::Poll),
    ]
}

fn endure<F: Function>(mut driver: Driver<F>, steps: Vec<Step>) {
    for step in steps {
        match step {
            Step::Access(offset, size, store) => {
                driver.device.access(Access { offset, size, store }, &driver.memory);
            }
            Step::Bytes(ipa, bytes) => driver.memory.put(ipa, &bytes),
            Step::Describe(queue, number, buffer, flags, next) => {
                driver.describe(queue, number, buffer, flags, next);
            }
            Step::Available(queue, head) => {
                driver.make_available(queue, head);
                driver.notify(queue);
            }
            Step::Start => driver.start(),
            Step::Poll => _ = driver.poll(),
        }
    }
    // Whatever it was, it works after a reset.
    driver.start();
    assert!(!driver.needs_reset());
}

/// Memory that says something else each time that it is asked: mostly small numbers.
struct Restless(RefCell<u64>);

impl GuestMemory for Restless {
    fn read(&self, _: u64, into: &mut [u8]) -> Option<()> {
        let mut state = self.0.borrow_mut();
        into.fill_with(|| {
            *state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let [kind, byte, ..] = state.to_be_bytes();
            match kind {
                0..180 => 0,
                180..254 => byte & 3,
                _ => byte,
            }
        });
        Some(())
    }

    fn write(&self, _: u64, _: &[u8]) -> Option<()> {
        Some(())
    }
}

/// Lets a device work with that, again and again; how many chains it used, and how often it needed a reset.
fn confuse<F: Function>(mut device: Device<F>, seed: u64) -> (u32, u32) {
    let memory = Restless(RefCell::new(seed));
    let (mut used, mut resets) = (0, 0);
    for _ in 0..20 {
        let mut store = |offset, value: u64| {
            device.access(Access { offset, size: 4, store: Some(value) }, &memory);
        };
        [(STATUS, 0), (0x24, 1), (0x20, 3)].into_iter().for_each(|(offset, value)| store(offset, value));
        for queue in 0..F::QUEUES as u64 {
            [(0x30, queue), (0x38, 8), (0x44, 1)]
                .into_iter()
                .for_each(|(offset, value)| store(offset, value));
        }
        store(STATUS, 15);
        for _ in 0..20 {
            device.poll(&memory);
            let mut load = |offset| device.access(Access { offset, size: 4, store: None }, &memory);
            used += u32::from(load(0x60) & 1 != 0);
            resets += u32::from(load(STATUS) & 64 != 0);
        }
    }
    (used, resets)
}

#[test]
fn memory_that_changes_all_the_time_confuses_no_device() {
    let mut counts = [(0, 0); 2];
    let mut disk = vec![0; 64 * 512];
    for seed in 0..200 {
        let mut console = Console::new(Vec::new());
        (0..200).for_each(|byte| console.receive(byte));
        let results =
            [confuse(Device::new(console), seed), confuse(Device::new(Block::new(RamDisk(&mut disk))), seed)];
        for (count, result) in counts.iter_mut().zip(results) {
            *count = (count.0 + result.0, count.1 + result.1);
        }
    }
    // It is a test only if both happen.
    assert!(counts.iter().all(|(used, resets)| *used > 20 && *resets > 20), "{counts:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn a_console_endures_whatever_its_driver_does(steps in prop::collection::vec(step(), 1..100)) {
        endure(console(), steps);
    }

    #[test]
    fn a_block_device_endures_whatever_its_driver_does(steps in prop::collection::vec(step(), 1..100)) {
        let mut disk = vec![0; 64 * 512 + 100];
        endure(Driver::new(Block::new(RamDisk(&mut disk))), steps);
    }
}
