//! A PL011 UART, revision r1p5 (DDI 0183), whose line is infinitely fast.
//!
//! Invariant: what is received and not read is at most a FIFO; so is what is sent and not taken.
//!
//! There are no modem signals, no DMA, no loopback, no breaks and no parity errors; bytes are sent and received whatever UARTCR and the baud rate
//! say, because no firmware has turned it on before the guest's first words.

use crate::access::Access;

/// Bytes of a FIFO.
const FIFO: usize = 32;

const DR: u64 = 0x00;
const RSR: u64 = 0x04;
const FR: u64 = 0x18;
const ILPR: u64 = 0x20;
const IBRD: u64 = 0x24;
const FBRD: u64 = 0x28;
const LCR_H: u64 = 0x2c;
const CR: u64 = 0x30;
const IFLS: u64 = 0x34;
const IMSC: u64 = 0x38;
const RIS: u64 = 0x3c;
const MIS: u64 = 0x40;
const ICR: u64 = 0x44;
/// UARTPeriphID0 to 3, UARTPCellID0 to 3.
const IDS: u64 = 0xfe0;
const ID: [u8; 8] = [0x11, 0x10, 0x34, 0x00, 0x0d, 0xf0, 0x05, 0xb1];

const FR_RECEIVE_EMPTY: u16 = 1 << 4;
const FR_SEND_FULL: u16 = 1 << 5;
const FR_RECEIVE_FULL: u16 = 1 << 6;
const FR_SEND_EMPTY: u16 = 1 << 7;
const LCR_H_FIFOS: u16 = 1 << 4;
/// Of UARTRIS, UARTMIS, UARTIMSC and UARTICR.
const RECEIVED: u16 = 1 << 4;
const SENT: u16 = 1 << 5;
const TIMEOUT: u16 = 1 << 6;
const OVERRUN: u16 = 1 << 10;
const INTERRUPTS: u16 = 0x7ff;
/// Of UARTDR and UARTRSR.
const DR_OVERRUN: u16 = 1 << 11;
const RSR_OVERRUN: u16 = 1 << 3;

/// Bytes in order.
struct Fifo {
    bytes: [u8; FIFO],
    first: usize,
    len: usize,
}

impl Fifo {
    const EMPTY: Self = Self { bytes: [0; FIFO], first: 0, len: 0 };

    const fn push(&mut self, byte: u8) -> bool {
        let has_room = self.len < FIFO;
        if has_room {
            self.bytes[(self.first + self.len) % FIFO] = byte;
            self.len += 1;
        }
        has_room
    }

    const fn pop(&mut self) -> Option<u8> {
        if self.len == 0 {
            return None;
        }
        let byte = self.bytes[self.first];
        self.first = (self.first + 1) % FIFO;
        self.len -= 1;
        Some(byte)
    }
}

/// A UART.
pub struct Pl011 {
    received: Fifo,
    sent: Fifo,
    /// A byte was lost after those that were received.
    overrun: bool,
    /// UARTRSR.
    errors: u16,
    /// UARTRIS.
    raw: u16,
    mask: u16,
    line_control: u16,
    control: u16,
    levels: u16,
    baud: [u16; 2],
    low_power: u16,
}

impl Pl011 {
    /// As it is after reset.
    pub const fn new() -> Self {
        Self {
            received: Fifo::EMPTY,
            sent: Fifo::EMPTY,
            overrun: false,
            errors: 0,
            raw: 0,
            mask: 0,
            line_control: 0,
            control: 0x300,
            levels: 0x12,
            baud: [0; 2],
            low_power: 0,
        }
    }

    /// An access to its registers (4 KiB).
    pub const fn access(&mut self, access: Access) -> u64 {
        match access.store {
            None => self.load(access.offset) as u64,
            Some(value) => {
                self.store(access.offset, value as u16);
                0
            }
        }
    }

    const fn load(&mut self, offset: u64) -> u16 {
        match offset {
            DR => self.take(),
            RSR => self.errors,
            FR => {
                let received = if self.received.len == 0 { FR_RECEIVE_EMPTY } else { 0 };
                let full = if self.has_room() { 0 } else { FR_RECEIVE_FULL };
                let sent = if self.sent.len == 0 { FR_SEND_EMPTY } else { 0 };
                let waits = if self.sent.len == FIFO { FR_SEND_FULL } else { 0 };
                received | full | sent | waits
            }
            ILPR => self.low_power,
            IBRD => self.baud[0],
            FBRD => self.baud[1],
            LCR_H => self.line_control,
            CR => self.control,
            IFLS => self.levels,
            IMSC => self.mask,
            RIS => self.raw,
            MIS => self.raw & self.mask,
            IDS..0x1000 if offset.is_multiple_of(4) => ID[((offset - IDS) / 4) as usize] as u16,
            _ => 0,
        }
    }

    const fn store(&mut self, offset: u64, value: u16) {
        match offset {
            // Without room it is lost: nobody has taken what was sent.
            DR => _ = self.sent.push(value as u8),
            RSR => self.errors = 0,
            ILPR => self.low_power = value & 0xff,
            IBRD => self.baud[0] = value,
            FBRD => self.baud[1] = value & 0x3f,
            LCR_H => {
                self.line_control = value & 0xff;
                if value & LCR_H_FIFOS == 0 {
                    // "The FIFOs become 1-byte-deep holding registers": what is there goes.
                    self.received = Fifo::EMPTY;
                    self.settle();
                }
            }
            CR => self.control = value & 0xff87,
            IFLS => self.levels = value & 0x3f,
            IMSC => self.mask = value & INTERRUPTS,
            ICR => self.raw &= !value,
            _ => {}
        }
    }

    /// Whether there is room for a byte to be received.
    pub const fn has_room(&self) -> bool {
        let fifo = if self.line_control & LCR_H_FIFOS != 0 { FIFO } else { 1 };
        self.received.len < fifo
    }

    /// A byte comes in; without room it is lost, and the guest is told so (overrun).
    pub const fn receive(&mut self, byte: u8) {
        if self.has_room() {
            self.received.push(byte);
            // The line is idle for 32 bits right after it.
            self.raw |= if self.line_control & LCR_H_FIFOS != 0 { TIMEOUT } else { 0 };
            self.raw |= if self.received.len >= self.threshold() { RECEIVED } else { 0 };
        } else {
            self.overrun = true;
            self.errors |= RSR_OVERRUN;
            self.raw |= OVERRUN;
        }
    }

    /// The next byte that the guest has sent. To be taken after each access, until there is none: that is what makes the FIFO empty.
    pub const fn sent(&mut self) -> Option<u8> {
        let byte = self.sent.pop();
        if byte.is_some() {
            self.raw |= SENT;
        }
        byte
    }

    /// Its interrupt's line (active high).
    pub const fn line(&self) -> bool {
        self.raw & self.mask != 0
    }

    /// Bytes that are an interrupt.
    const fn threshold(&self) -> usize {
        if self.line_control & LCR_H_FIFOS == 0 {
            return 1;
        }
        match self.levels >> 3 & 0b111 {
            0 => FIFO / 8,
            1 => FIFO / 4,
            3 => FIFO * 3 / 4,
            4 => FIFO * 7 / 8,
            _ => FIFO / 2,
        }
    }

    const fn take(&mut self) -> u16 {
        let Some(byte) = self.received.pop() else { return 0 };
        // A lost byte is told with the last one before it.
        let lost = if self.overrun && self.received.len == 0 { DR_OVERRUN } else { 0 };
        self.overrun &= lost == 0;
        self.settle();
        byte as u16 | lost
    }

    /// What is received may be less than before.
    const fn settle(&mut self) {
        self.raw &= if self.received.len < self.threshold() { !RECEIVED } else { !0 };
        self.raw &= if self.received.len == 0 { !TIMEOUT } else { !0 };
    }
}

impl Default for Pl011 {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::vec::Vec;

    use super::*;

    fn load(uart: &mut Pl011, offset: u64) -> u64 {
        uart.access(Access { offset, size: 2, store: None })
    }

    fn store(uart: &mut Pl011, offset: u64, value: u64) {
        uart.access(Access { offset, size: 2, store: Some(value) });
    }

    /// As Linux starts it: FIFOs on, all cleared, interrupts for what comes in.
    fn started() -> Pl011 {
        let mut uart = Pl011::new();
        store(&mut uart, LCR_H, 0x70);
        store(&mut uart, CR, 0x301);
        store(&mut uart, ICR, 0x7ff);
        store(&mut uart, IMSC, u64::from(RECEIVED | TIMEOUT));
        uart
    }

    #[test]
    fn a_driver_finds_an_arm_pl011_of_revision_3() {
        let mut uart = Pl011::new();
        let id = |uart: &mut Pl011, at: u64| {
            (0..4u64).fold(0, |id, byte| id | load(uart, at + 4 * byte) << (8 * byte))
        };
        assert_eq!(id(&mut uart, 0xfe0), 0x0034_1011);
        assert_eq!(id(&mut uart, 0xff0), 0xb105_f00d);
    }

    #[test]
    fn what_is_sent_comes_out_in_order_and_interrupts_for_more() {
        let mut uart = Pl011::new();
        store(&mut uart, IMSC, u64::from(SENT));
        assert!(!uart.line(), "nothing was sent yet");
        store(&mut uart, DR, 0x1_0041);
        store(&mut uart, DR, 0x42);
        assert_eq!(load(&mut uart, FR) as u16, FR_RECEIVE_EMPTY);
        assert_eq!([uart.sent(), uart.sent(), uart.sent()], [Some(0x41), Some(0x42), None]);
        assert_eq!(load(&mut uart, FR) as u16, FR_RECEIVE_EMPTY | FR_SEND_EMPTY);
        assert!(uart.line());
        store(&mut uart, ICR, u64::from(SENT));
        assert!(!uart.line());
    }

    #[test]
    fn what_is_received_interrupts_until_it_is_read() {
        let mut uart = started();
        uart.receive(b'x');
        assert!(uart.line());
        assert_eq!(load(&mut uart, MIS) as u16, TIMEOUT);
        assert_eq!(load(&mut uart, DR), u64::from(b'x'));
        assert!(!uart.line());
        assert_eq!(load(&mut uart, DR), 0, "there is no more");
        for _ in 0..16 {
            uart.receive(b'y');
        }
        assert_eq!(load(&mut uart, MIS) as u16, TIMEOUT | RECEIVED);
        store(&mut uart, ICR, 0x7ff);
        assert!(!uart.line());
        assert_eq!((0..16).map(|_| load(&mut uart, DR)).filter(|byte| *byte == u64::from(b'y')).count(), 16);
    }

    #[test]
    fn a_byte_without_room_is_lost_and_told() {
        let mut uart = started();
        for byte in 0..FIFO as u8 {
            assert!(uart.has_room());
            uart.receive(byte);
        }
        assert!(!uart.has_room());
        uart.receive(0xff);
        assert_eq!(load(&mut uart, RSR) as u16, RSR_OVERRUN);
        let read: Vec<u64> = (0..FIFO).map(|_| load(&mut uart, DR)).collect();
        assert_eq!(read[..31], (0..31).collect::<Vec<_>>());
        assert_eq!(read[31] as u16, 31 | DR_OVERRUN);
        store(&mut uart, RSR, 0);
        assert_eq!(load(&mut uart, RSR), 0);
        uart.receive(1);
        assert_eq!(load(&mut uart, DR), 1, "it is told once");
    }

    #[test]
    fn without_fifos_there_is_room_for_one() {
        let mut uart = Pl011::new();
        store(&mut uart, IMSC, u64::from(RECEIVED));
        uart.receive(1);
        assert!(!uart.has_room() && uart.line());
        assert_eq!(load(&mut uart, DR), 1);
        assert!(uart.has_room() && !uart.line());
    }

    proptest! {
        #[test]
        fn any_access_has_an_answer_and_no_byte_is_changed(
            steps in prop::collection::vec(
                (prop_oneof![4 => 0..0x50u64, 1 => 0..0x1000u64, 1 => any::<u64>()], any::<u8>(), any::<Option<u64>>(), any::<Option<u8>>()),
                1..300,
            ),
        ) {
            let mut uart = Pl011::new();
            let (mut sent, mut taken) = (Vec::new(), Vec::new());
            for (offset, size, value, received) in steps {
                let answer = uart.access(Access { offset, size, store: value });
                prop_assert!(answer <= 0xffff);
                if let (DR, Some(value)) = (offset, value) {
                    sent.push(value as u8);
                }
                taken.extend(core::iter::from_fn(|| uart.sent()));
                received.into_iter().for_each(|byte| uart.receive(byte));
                prop_assert_eq!(uart.line(), uart.access(Access { offset: MIS, size: 4, store: None }) != 0);
            }
            prop_assert_eq!(sent, taken);
        }
    }
}
