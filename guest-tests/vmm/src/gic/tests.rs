use proptest::prelude::*;
use std::vec::Vec;

use super::*;

const UART: u32 = 33;
const DISK: u32 = 48;
const TIMER: u32 = 27;

fn load(offset: u64) -> Access {
    Access { offset, size: 4, store: None }
}

fn store(offset: u64, value: u64) -> Access {
    Access { offset, size: 4, store: Some(value) }
}

/// A CPU's virtual interface, as a REC uses it (IHI 0069, 6.2): no more than its list registers know.
#[derive(Clone, Default)]
struct Cpu {
    lrs: Vec<u64>,
    hcr: u64,
    ended_elsewhere: u64,
    maintains: bool,
    /// Priorities of what runs, the last one first to end.
    running: Vec<u64>,
}

const INTID: u64 = 0xffff_ffff;

impl Cpu {
    fn acknowledge(&mut self) -> Option<u32> {
        let threshold = self.running.last().copied().unwrap_or(0x100);
        let pending = self.lrs.iter_mut().filter(|lr| **lr & (PENDING | ACTIVE) == PENDING);
        let best = pending.min_by_key(|lr| **lr >> 48 & 0xff)?;
        let priority = *best >> 48 & 0xff;
        if priority >= threshold {
            return None;
        }
        *best = *best & !PENDING | ACTIVE;
        self.running.push(priority);
        Some((*best & INTID) as u32)
    }

    fn end(&mut self, intid: u32) {
        self.running.pop();
        self.deactivate(intid);
    }

    fn deactivate(&mut self, intid: u32) {
        match self.lrs.iter_mut().find(|lr| **lr & ACTIVE != 0 && **lr & INTID == u64::from(intid)) {
            Some(lr) => {
                *lr &= !ACTIVE;
                self.maintains |= *lr & (PENDING | LR_EOI) == LR_EOI;
            }
            None => self.ended_elsewhere += 1,
        }
    }

    /// Whether the maintenance interrupt is there.
    fn maintains(&self) -> bool {
        self.maintains
            || self.hcr & NPIE != 0 && self.lrs.iter().all(|lr| lr & PENDING == 0)
            || self.hcr & LRENPIE != 0 && self.ended_elsewhere > 0
    }
}

struct Machine {
    gic: Gic<4>,
    cpus: Vec<Cpu>,
}

impl Machine {
    /// As Linux sets one up: all is of group 1, of one priority, and enabled.
    fn new(lists: usize) -> Self {
        let mut gic = Gic::new(4);
        gic.distributor(store(0x84, 0xffff_ffff)).unwrap();
        gic.distributor(store(0x104, 0xffff_ffff)).unwrap();
        for word in 8..16 {
            gic.distributor(store(0x400 + 4 * word, 0xa0a0_a0a0)).unwrap();
        }
        gic.distributor(store(CTLR, 0x13)).unwrap();
        for rec in 0..4 {
            let base = rec * REDISTRIBUTOR;
            gic.redistributors(store(base + WAKER, 0)).unwrap();
            gic.redistributors(store(base + FRAME + 0x80, 0xffff_ffff)).unwrap();
            gic.redistributors(store(base + FRAME + 0x100, 0xffff_ffff)).unwrap();
            for word in 0..8 {
                gic.redistributors(store(base + FRAME + 0x400 + 4 * word, 0xa0a0_a0a0)).unwrap();
            }
        }
        gic.kicks();
        let cpus = std::vec![Cpu { lrs: std::vec![0; lists], ..Cpu::default() }; 4];
        Self { gic, cpus }
    }

    fn enter(&mut self, rec: usize) {
        let cpu = &mut self.cpus[rec];
        cpu.hcr = self.gic.enter(rec, &mut cpu.lrs);
        (cpu.ended_elsewhere, cpu.maintains) = (0, false);
        check(&cpu.lrs, cpu.hcr);
    }

    fn leave(&mut self, rec: usize) {
        let cpu = &self.cpus[rec];
        self.gic.leave(rec, &cpu.lrs, cpu.hcr | cpu.ended_elsewhere << EOI_COUNT_SHIFT, 0);
    }

    /// Out and in again.
    fn again(&mut self, rec: usize) {
        self.leave(rec);
        self.enter(rec);
    }

    /// A REC that takes what there is; each interrupt, in the order in which it took them.
    fn takes(&mut self, rec: usize) -> Vec<u32> {
        let mut taken = Vec::new();
        self.enter(rec);
        for _ in 0..1000 {
            if let Some(intid) = self.cpus[rec].acknowledge() {
                taken.push(intid);
                // Its device is content, and says so before the end.
                self.leave(rec);
                self.gic.line(intid, false);
                self.gic.private_line(rec, intid, false);
                self.enter(rec);
                self.cpus[rec].end(intid);
            } else if self.cpus[rec].maintains() {
                self.again(rec);
            } else {
                self.leave(rec);
                return taken;
            }
        }
        panic!("it never ends: {taken:?}");
    }

    fn route(&mut self, intid: u32, rec: u64) {
        let access = Access { offset: IROUTER + 8 * u64::from(intid), size: 8, store: Some(rec) };
        self.gic.distributor(access).unwrap();
    }

    fn edge(&mut self, intid: u32) {
        let offset = 0xc00 + u64::from(intid) / 16 * 4;
        let before = self.gic.distributor(load(offset)).unwrap();
        self.gic.distributor(store(offset, before | 2 << (intid % 16 * 2))).unwrap();
    }

    fn priority(&mut self, intid: u32, priority: u64) {
        let access = Access { offset: 0x400 + u64::from(intid), size: 1, store: Some(priority) };
        self.gic.distributor(access).unwrap();
    }

    fn is_set(&mut self, register: u64, intid: u32) -> Option<bool> {
        let word = self.gic.distributor(load(register + u64::from(intid) / 32 * 4))?;
        Some(word >> (intid % 32) & 1 != 0)
    }

    fn set(&mut self, register: u64, intid: u32) {
        self.gic.distributor(store(register + u64::from(intid) / 32 * 4, 1 << (intid % 32))).unwrap();
    }
}

/// What RMI_REC_ENTER wants of list registers and ICH_HCR_EL2 (rec_gicv3).
fn check(lrs: &[u64], hcr: u64) {
    assert_eq!(hcr & !0x40fe, 0, "{hcr:#x}");
    let mut seen = Vec::new();
    for &lr in lrs.iter().filter(|lr| **lr != 0) {
        assert_ne!(lr & (PENDING | ACTIVE), 0, "{lr:#x}");
        let reserved = 0x1ff << 32 | 0b111 << 42 | 0b111 << 45 | 0b111 << 48 | 0xf << 56 | 1 << 61;
        assert_eq!(lr & reserved, 0, "{lr:#x}");
        assert!(!seen.contains(&(lr & INTID)), "{lrs:x?}");
        seen.push(lr & INTID);
    }
}

#[test]
fn linux_finds_a_gicv3_with_a_redistributor_for_each_rec() {
    let mut gic: Gic<4> = Gic::new(3);
    assert_eq!(gic.distributor(load(0xffe8)), Some(0x30));
    assert_eq!(gic.distributor(load(4)), Some(1 << 25 | 9 << 19 | 1), "64 INTIDs, no LPIs");
    assert_eq!(gic.distributor(load(0)), Some(0x50), "ARE, DS; no RWP");
    for rec in 0..3 {
        let base = rec * REDISTRIBUTOR;
        assert_eq!(gic.redistributors(load(base + 0xffe8)), Some(0x30));
        let kind = gic.redistributors(Access { offset: base + 8, size: 8, store: None }).unwrap();
        assert_eq!(kind >> 32, rec, "the affinity");
        assert_eq!(kind & TYPER_LAST as u64 != 0, rec == 2);
        assert_eq!(kind & 0xf, 0, "no LPIs");
    }
    assert_eq!(gic.redistributors(load(3 * REDISTRIBUTOR + 0xffe8)), Some(0), "there is no fourth");
}

#[test]
fn a_redistributor_wakes_and_sleeps_as_its_driver_says() {
    let mut gic: Gic<4> = Gic::new(2);
    let waker = REDISTRIBUTOR + WAKER;
    assert_eq!(gic.redistributors(load(waker)), Some(6));
    gic.redistributors(store(waker, 4)).unwrap();
    assert_eq!(gic.redistributors(load(waker)), Some(0));
    gic.redistributors(store(waker, 2)).unwrap();
    assert_eq!(gic.redistributors(load(waker)), Some(6));
}

#[test]
fn registers_read_as_they_were_written_as_far_as_there_are_interrupts() {
    let mut gic: Gic<4> = Gic::new(1);
    let frame = FRAME;
    gic.redistributors(store(frame + 0x104, 0xffff_ffff)).unwrap();
    assert_eq!(gic.redistributors(load(frame + 0x104)), Some(0), "SPIs are not here");
    gic.distributor(store(0x100, 0xffff_ffff)).unwrap();
    assert_eq!(gic.distributor(load(0x100)), Some(0), "nor are PPIs there");
    gic.redistributors(store(frame + 0x100, 0x0800_ffff)).unwrap();
    gic.redistributors(store(frame + 0x180, 0xff)).unwrap();
    assert_eq!(gic.redistributors(load(frame + 0x100)), Some(0x0800_ff00));
    assert_eq!(gic.redistributors(load(frame + 0x180)), Some(0x0800_ff00));
    gic.redistributors(store(frame + 0xc00, 0)).unwrap();
    assert_eq!(gic.redistributors(load(frame + 0xc00)), Some(0xaaaa_aaaa), "SGIs are edges");
    gic.distributor(store(0xc08, 0xffff_ffff)).unwrap();
    assert_eq!(gic.distributor(load(0xc08)), Some(0xaaaa_aaaa));
    gic.distributor(Access { offset: 0x421, size: 1, store: Some(0xff) }).unwrap();
    assert_eq!(gic.distributor(load(0x420)), Some(0xf800), "5 bits of a priority");
    let router = |store| Access { offset: IROUTER + 8 * 40, size: 8, store };
    gic.distributor(router(Some(u64::MAX))).unwrap();
    assert_eq!(gic.distributor(router(None)), Some(0xff_00ff_ffff), "no 1 of N");
    gic.distributor(store(IROUTER + 8 * 40, 1)).unwrap();
    assert_eq!(gic.distributor(router(None)), Some(0xff_0000_0001));
}

#[test]
fn a_level_that_is_still_asserted_when_it_ends_is_pending_again() {
    let mut machine = Machine::new(4);
    machine.gic.line(UART, true);
    assert_eq!(machine.gic.kicks(), 1);
    machine.enter(0);
    assert_eq!(machine.cpus[0].acknowledge(), Some(UART));
    machine.again(0);
    assert_eq!(machine.cpus[0].acknowledge(), None, "it is active");
    machine.cpus[0].end(UART);
    assert!(machine.cpus[0].maintains(), "the host looks again");
    machine.again(0);
    assert_eq!(machine.cpus[0].acknowledge(), Some(UART));
    machine.leave(0);
    machine.gic.line(UART, false);
    machine.enter(0);
    machine.cpus[0].end(UART);
    assert!(!machine.cpus[0].maintains(), "no exit for a level that is gone");
    machine.again(0);
    assert_eq!(machine.cpus[0].acknowledge(), None);
}

#[test]
fn a_level_that_goes_before_it_is_taken_is_taken_back() {
    let mut machine = Machine::new(4);
    machine.gic.line(UART, true);
    machine.enter(0);
    machine.gic.kicks();
    machine.gic.line(UART, false);
    assert_eq!(machine.gic.kicks(), 1);
    machine.again(0);
    assert_eq!(machine.cpus[0].acknowledge(), None);
}

#[test]
fn an_edge_while_it_is_active_is_taken_once_more() {
    let mut machine = Machine::new(4);
    machine.edge(DISK);
    machine.gic.line(DISK, true);
    machine.enter(0);
    assert_eq!(machine.cpus[0].acknowledge(), Some(DISK));
    machine.gic.line(DISK, true);
    machine.gic.line(DISK, false);
    assert_eq!(machine.gic.kicks(), 0, "no edge");
    machine.gic.line(DISK, true);
    assert_eq!(machine.gic.kicks(), 1);
    machine.again(0);
    assert_eq!(machine.cpus[0].lrs[0] & (PENDING | ACTIVE), PENDING | ACTIVE);
    machine.cpus[0].end(DISK);
    assert_eq!(machine.cpus[0].acknowledge(), Some(DISK));
    machine.cpus[0].end(DISK);
    machine.again(0);
    assert_eq!(machine.cpus[0].acknowledge(), None);
}

#[test]
fn sgis_go_to_whom_they_name() {
    let mut machine = Machine::new(4);
    machine.gic.sgi(1, 3 << 24 | 0b0010);
    assert_eq!(machine.gic.kicks(), 0b0010, "itself");
    machine.gic.sgi(1, 5 << 24 | 0b1101);
    assert_eq!(machine.gic.kicks(), 0b1101, "a list");
    machine.gic.sgi(1, 1 << 40 | 7 << 24);
    assert_eq!(machine.gic.kicks(), 0b1101, "all but itself");
    machine.gic.sgi(1, 9 << 24 | 1 << 16 | 1);
    machine.gic.sgi(1, 9 << 24 | 1 << 44 | 1);
    assert_eq!(machine.gic.kicks(), 0, "who is not there");
    assert_eq!(machine.takes(1), [3]);
    assert_eq!(machine.takes(3), [5, 7]);
}

#[test]
fn more_than_there_is_room_for_comes_by_priority() {
    for lists in 1..=4 {
        let mut machine = Machine::new(lists);
        for intid in 32..52 {
            machine.priority(intid, u64::from(51 - intid) << 3);
            machine.gic.line(intid, true);
        }
        let highest_first: Vec<u32> = (32..52).rev().collect();
        assert_eq!(machine.takes(0), highest_first, "{lists}");
    }
}

#[test]
fn what_is_active_without_a_list_register_ends_too() {
    let mut machine = Machine::new(1);
    for (intid, priority) in [(40, 0x80), (41, 0x40), (42, 0x20)] {
        machine.priority(intid, priority);
    }
    machine.gic.line(40, true);
    machine.enter(0);
    assert_eq!(machine.cpus[0].acknowledge(), Some(40));
    for intid in [41, 42] {
        machine.gic.line(intid, true);
        machine.gic.line(intid - 1, false);
        machine.again(0);
        assert_eq!(machine.cpus[0].acknowledge(), Some(intid), "it preempts");
    }
    machine.leave(0);
    machine.gic.line(42, false);
    assert_eq!(machine.is_set(0x300, 40), Some(true));
    machine.enter(0);
    // The highest is in the list register; the next one is not, and its end is an exit, after which the last one is.
    for (intid, is_exit) in [(42, false), (41, true), (40, false)] {
        machine.cpus[0].end(intid);
        assert_eq!(machine.cpus[0].maintains(), is_exit, "{intid}");
        if is_exit {
            machine.again(0);
        }
    }
    machine.leave(0);
    assert_eq!(machine.gic.distributor(load(0x304)), Some(0));
}

#[test]
fn what_had_no_room_comes_when_all_that_had_is_taken() {
    let mut machine = Machine::new(2);
    (0..5).for_each(|intid| machine.gic.sgi(0, intid << 24 | 1));
    machine.enter(0);
    for intid in 0..5 {
        if machine.cpus[0].maintains() {
            assert_ne!(intid, 1, "not before all are taken");
            machine.again(0);
        }
        assert_eq!(machine.cpus[0].acknowledge(), Some(intid));
        machine.cpus[0].end(intid);
    }
    assert!(!machine.cpus[0].maintains());
}

#[test]
fn nothing_comes_that_is_off_or_asleep_or_of_group_0() {
    let mut machine = Machine::new(4);
    machine.gic.line(UART, true);
    // Which it is, by one store to the distributor or a redistributor, and is not any more by another one.
    let writes = [
        (false, CTLR, 0x11, 0x12),
        (false, 0x184, 2, 0),
        (false, 0x104, 0, 2),
        (false, 0x84, !2 & 0xffff_ffff, 0xffff_ffff),
        (true, WAKER, 2, 0),
    ];
    let write = |machine: &mut Machine, is_redistributor, offset, value| match is_redistributor {
        true => machine.gic.redistributors(store(offset, value)),
        false => machine.gic.distributor(store(offset, value)),
    };
    let is_there = |machine: &mut Machine| {
        machine.enter(0);
        machine.leave(0);
        machine.cpus[0].lrs[0] != 0
    };
    for (is_redistributor, offset, off, on) in writes {
        write(&mut machine, is_redistributor, offset, off);
        assert!(!is_there(&mut machine), "{offset:x}, {off:x}");
        machine.gic.kicks();
        write(&mut machine, is_redistributor, offset, on);
        let comes_back = offset != 0x184;
        assert_eq!(machine.gic.kicks() & 1 != 0, comes_back, "{offset:x}, {on:x}");
        assert_eq!(is_there(&mut machine), comes_back, "{offset:x}, {on:x}");
    }
}

#[test]
fn rwp_lasts_until_nobody_has_what_was_disabled() {
    let mut machine = Machine::new(4);
    machine.gic.line(UART, true);
    machine.enter(0);
    machine.set(0x180, UART);
    assert_eq!(machine.gic.kicks(), 1);
    assert_eq!(machine.gic.distributor(load(CTLR)).unwrap() as u32 & CTLR_RWP, CTLR_RWP);
    machine.again(0);
    assert_eq!(machine.gic.distributor(load(CTLR)).unwrap() as u32 & CTLR_RWP, 0);
    assert_eq!(machine.cpus[0].acknowledge(), None);
    machine.leave(0);
    machine.set(0x100, UART);
    assert_eq!(machine.takes(0), [UART], "it was not lost");
    machine.gic.line(UART, true);
    machine.enter(0);
    machine.gic.distributor(store(CTLR, 0x11)).unwrap();
    assert_eq!(machine.gic.distributor(load(CTLR)).unwrap() as u32 & CTLR_RWP, CTLR_RWP);
    machine.leave(0);
    assert_eq!(machine.gic.distributor(load(CTLR)), Some(0x51));
    machine.gic.distributor(store(CTLR, 0x12)).unwrap();
    // A PPI of another REC: its own register.
    machine.gic.private_line(2, TIMER, true);
    machine.enter(2);
    machine.gic.redistributors(store(2 * REDISTRIBUTOR + FRAME + 0x180, 1 << TIMER)).unwrap();
    assert_eq!(machine.gic.redistributors(load(2 * REDISTRIBUTOR)), Some(8));
    assert_eq!(machine.gic.redistributors(load(REDISTRIBUTOR)), Some(0));
    machine.leave(2);
    assert_eq!(machine.gic.redistributors(load(2 * REDISTRIBUTOR)), Some(0));
}

#[test]
fn what_is_disabled_while_it_is_active_ends() {
    let mut machine = Machine::new(4);
    machine.gic.line(UART, true);
    machine.enter(0);
    assert_eq!(machine.cpus[0].acknowledge(), Some(UART));
    machine.set(0x180, UART);
    machine.again(0);
    machine.cpus[0].end(UART);
    assert_eq!(machine.cpus[0].ended_elsewhere, 0);
    machine.again(0);
    assert_eq!(machine.cpus[0].acknowledge(), None);
}

#[test]
fn an_spi_moves_to_where_it_is_routed() {
    let mut machine = Machine::new(4);
    machine.gic.line(UART, true);
    machine.enter(0);
    machine.gic.kicks();
    machine.route(UART, 2);
    assert_eq!(machine.gic.kicks(), 1, "who has it gives it back");
    machine.enter(2);
    assert_eq!(machine.cpus[2].acknowledge(), None, "not before");
    machine.leave(2);
    machine.leave(0);
    assert_eq!(machine.gic.kicks(), 1 << 2);
    assert!(machine.gic.wakes(2) && !machine.gic.wakes(0));
    machine.enter(0);
    assert_eq!(machine.cpus[0].acknowledge(), None);
    machine.enter(2);
    assert_eq!(machine.cpus[2].acknowledge(), Some(UART));
    // While it is active it stays where it is.
    machine.leave(2);
    machine.route(UART, 0);
    machine.again(0);
    assert_eq!(machine.cpus[0].acknowledge(), None);
    machine.enter(2);
    machine.cpus[2].end(UART);
    machine.leave(2);
    assert_eq!(machine.gic.kicks() & 1, 1);
    machine.leave(0);
    assert_eq!(machine.takes(0), [UART]);
    machine.route(UART, 0x100);
    machine.gic.line(UART, true);
    assert_eq!(machine.gic.kicks(), 0, "nobody is there");
}

#[test]
fn a_rec_that_knows_a_state_is_asked_for_it() {
    let mut machine = Machine::new(4);
    machine.gic.line(UART, true);
    machine.enter(0);
    machine.gic.kicks();
    assert_eq!(machine.is_set(0x300, UART), None);
    assert_eq!(machine.gic.kicks(), 1);
    assert_eq!(machine.cpus[0].acknowledge(), Some(UART));
    // It comes out and goes in again, faster than who has asked.
    machine.again(0);
    assert_eq!(machine.is_set(0x300, UART), Some(true));
    assert_eq!(machine.is_set(0x300, UART), None, "the next answer is a new one");
    machine.leave(0);
    assert_eq!(machine.is_set(0x200, UART), Some(true), "its line is still asserted");
}

#[test]
fn states_are_written_while_a_rec_has_them() {
    let mut machine = Machine::new(4);
    machine.edge(DISK);
    // Not pending any more.
    machine.gic.line(DISK, true);
    machine.enter(0);
    machine.gic.kicks();
    machine.set(0x280, DISK);
    assert_eq!(machine.gic.kicks(), 1);
    machine.again(0);
    assert_eq!(machine.cpus[0].acknowledge(), None);
    // Pending, and once more.
    machine.set(0x200, DISK);
    assert_eq!(machine.gic.kicks(), 1);
    machine.again(0);
    assert_eq!(machine.cpus[0].acknowledge(), Some(DISK));
    machine.set(0x200, DISK);
    machine.again(0);
    assert_eq!(machine.cpus[0].lrs[0] & (PENDING | ACTIVE), PENDING | ACTIVE);
    // Not active any more.
    machine.set(0x380, DISK);
    assert_eq!(machine.gic.kicks(), 1);
    machine.again(0);
    assert_eq!(machine.cpus[0].lrs[0] & (PENDING | ACTIVE), PENDING);
    machine.set(0x300, DISK);
    machine.again(0);
    assert_eq!(machine.cpus[0].lrs[0] & (PENDING | ACTIVE), PENDING | ACTIVE);
    machine.leave(0);
    // All of it while nobody has it.
    machine.set(0x380, DISK);
    machine.set(0x280, DISK);
    assert_eq!((machine.is_set(0x200, DISK), machine.is_set(0x300, DISK)), (Some(false), Some(false)));
    machine.cpus[0].running.clear();
    machine.set(0x200, DISK);
    assert_eq!(machine.takes(0), [DISK]);
}

#[test]
fn a_level_that_was_written_pending_is_taken_once() {
    let mut machine = Machine::new(4);
    machine.set(0x200, UART);
    assert_eq!(machine.takes(0), [UART]);
    assert_eq!(machine.takes(0), []);
}

#[test]
fn a_second_kind_of_end_comes_to_the_host() {
    // EOI mode 1: the priority drops, and ICC_DIR_EL1 ends it, on whichever REC.
    let mut machine = Machine::new(1);
    machine.gic.line(UART, true);
    machine.enter(0);
    assert_ne!(machine.cpus[0].hcr & TDIR, 0);
    machine.cpus[0].acknowledge();
    machine.leave(0);
    // Now it has no list register, and its priority drops: that is no end.
    machine.priority(DISK, 0);
    machine.gic.line(DISK, true);
    machine.enter(0);
    machine.gic.leave(0, &machine.cpus[0].lrs, 1 << EOI_COUNT_SHIFT, VMCR_EOI_MODE);
    machine.gic.line(UART, false);
    assert_eq!(machine.is_set(0x300, UART), Some(true));
    machine.gic.deactivate(1, u64::from(UART));
    assert_eq!(machine.is_set(0x300, UART), Some(false));
    machine.gic.deactivate(1, u64::MAX);
}

#[test]
fn what_is_active_stays_on_its_rec_when_it_is_written_active() {
    let mut machine = Machine::new(4);
    machine.gic.line(UART, true);
    machine.enter(0);
    machine.cpus[0].acknowledge();
    machine.leave(0);
    machine.route(UART, 1);
    machine.set(0x300, UART);
    machine.enter(1);
    assert_eq!(machine.cpus[1].lrs, [0; 4]);
    machine.enter(0);
    assert_eq!(machine.cpus[0].lrs[0] & ACTIVE, ACTIVE);
}

#[test]
fn an_entry_that_was_refused_changes_nothing() {
    let mut machine = Machine::new(4);
    machine.gic.sgi(0, 1);
    machine.enter(0);
    machine.gic.leave(0, &machine.cpus[0].lrs, 0, 0);
    assert_eq!(machine.takes(0), [0]);
}

#[test]
fn a_waiting_rec_wakes_for_what_it_would_take() {
    let mut machine = Machine::new(4);
    assert!(!machine.gic.wakes(1));
    machine.gic.private_line(1, TIMER, true);
    assert!(machine.gic.wakes(1) && !machine.gic.wakes(0));
    assert_eq!(machine.gic.kicks(), 1 << 1);
    machine.gic.redistributors(store(REDISTRIBUTOR + FRAME + 0x180, 1 << TIMER)).unwrap();
    assert!(!machine.gic.wakes(1));
}

fn any_access(end: u64) -> impl Strategy<Value = Access> {
    let near = prop_oneof![
        4 => 0..0x1_0000u64,
        4 => (0..8u64, 0..0x1000u64).prop_map(|(frame, offset)| frame * FRAME + offset),
        2 => (32..64u64).prop_map(|intid| IROUTER + 8 * intid),
        1 => 0..end,
        1 => any::<u64>(),
    ];
    let size = prop_oneof![Just(4), Just(1), Just(8), any::<u8>()];
    (near, size, any::<Option<u64>>(), any::<bool>()).prop_map(|(offset, size, store, aligns)| {
        let offset = if aligns { offset & !7 } else { offset };
        Access { offset, size, store }
    })
}

#[derive(Clone, Debug)]
enum Hostile {
    Distributor(Access),
    Redistributors(Access),
    Sgi(usize, u64),
    Line(u32, bool),
    Private(usize, u32, bool),
    Deactivate(usize, u64),
    Enter(usize),
    Leave(usize, [u64; 4], u64, u64),
}

fn hostile() -> impl Strategy<Value = Hostile> {
    use Hostile as H;
    prop_oneof![
        6 => any_access(FRAME).prop_map(H::Distributor),
        6 => any_access(5 * REDISTRIBUTOR).prop_map(H::Redistributors),
        1 => (0..6usize, any::<u64>()).prop_map(|(rec, value)| H::Sgi(rec, value)),
        1 => (0..80u32, any::<bool>()).prop_map(|(intid, line)| H::Line(intid, line)),
        1 => (0..6usize, 0..80u32, any::<bool>()).prop_map(|(rec, intid, line)| H::Private(rec, intid, line)),
        1 => (0..6usize, prop_oneof![0..64u64, any::<u64>()]).prop_map(|(rec, value)| H::Deactivate(rec, value)),
        3 => (0..6usize).prop_map(H::Enter),
        3 => (0..6usize, any::<[u64; 4]>(), any::<u64>(), any::<u64>())
            .prop_map(|(rec, lrs, hcr, vmcr)| H::Leave(rec, lrs, hcr, vmcr)),
    ]
}

/// Who has which interrupts, as a test sees it.
fn no_interrupt_is_in_two_places(machine: &Machine, inside: &[bool; 4]) {
    let mut seen = Vec::new();
    for (rec, cpu) in machine.cpus.iter().enumerate().filter(|(rec, _)| inside[*rec]) {
        for lr in cpu.lrs.iter().filter(|lr| **lr & (PENDING | ACTIVE) != 0) {
            let intid = lr & INTID;
            let name = if intid < 32 { (rec, intid) } else { (4, intid) };
            assert!(!seen.contains(&name), "{name:?}");
            seen.push(name);
        }
    }
}

proptest! {
    #[test]
    fn whatever_is_written_and_come_back_with_list_registers_are_valid(
        steps in prop::collection::vec(hostile(), 1..200),
    ) {
        let mut machine = Machine::new(4);
        let mut inside = [false; 4];
        for step in steps {
            match step {
                Hostile::Distributor(access) => _ = machine.gic.distributor(access),
                Hostile::Redistributors(access) => _ = machine.gic.redistributors(access),
                Hostile::Sgi(rec, value) => machine.gic.sgi(rec, value),
                Hostile::Line(intid, line) => machine.gic.line(intid, line),
                Hostile::Private(rec, intid, line) => machine.gic.private_line(rec, intid, line),
                Hostile::Deactivate(rec, value) => machine.gic.deactivate(rec, value),
                Hostile::Enter(rec) if rec < 4 => {
                    machine.enter(rec);
                    inside[rec] = true;
                    no_interrupt_is_in_two_places(&machine, &inside);
                }
                Hostile::Enter(rec) => _ = machine.gic.enter(rec, &mut [7; 4]),
                Hostile::Leave(rec, lrs, hcr, vmcr) => {
                    machine.gic.leave(rec, &lrs, hcr, vmcr);
                    if let Some(inside) = inside.get_mut(rec) {
                        *inside = false;
                    }
                }
            }
            let kicks = machine.gic.kicks();
            prop_assert_eq!(kicks & !0xf, 0);
        }
        // Nothing waits for ever for an answer.
        for rec in 0..4 {
            machine.gic.leave(rec, &[], 0, 0);
        }
        for offset in (0..FRAME).step_by(4) {
            prop_assert!(machine.gic.distributor(load(offset)).is_some());
        }
        for offset in (0..4 * REDISTRIBUTOR).step_by(4) {
            prop_assert!(machine.gic.redistributors(load(offset)).is_some());
        }
    }
}

/// What a well-behaved guest and its devices do.
#[derive(Clone, Debug)]
enum Step {
    Line(u32, bool),
    Private(usize, bool),
    Sgi(usize, u64),
    Route(u32, u64),
    Enable(u32, bool),
    Again(usize),
    Take(usize),
    End(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let rec = 0..4usize;
    prop_oneof![
        3 => (32..64u32, any::<bool>()).prop_map(|(intid, line)| Step::Line(intid, line)),
        1 => (rec.clone(), any::<bool>()).prop_map(|(rec, line)| Step::Private(rec, line)),
        2 => (rec.clone(), 0..1u64 << 16, 0..4u64).prop_map(|(from, list, id)| Step::Sgi(from, id << 24 | list)),
        1 => (32..64u32, 0..4u64).prop_map(|(intid, rec)| Step::Route(intid, rec)),
        1 => (32..64u32, any::<bool>()).prop_map(|(intid, on)| Step::Enable(intid, on)),
        2 => rec.clone().prop_map(Step::Again),
        3 => rec.clone().prop_map(Step::Take),
        3 => rec.prop_map(Step::End),
    ]
}

proptest! {
    /// SPIs 32 to 47 are edges, 48 to 63 levels; of four priorities.
    #[test]
    fn no_interrupt_is_lost_and_none_comes_of_itself(
        lists in 1..5usize,
        steps in prop::collection::vec(step(), 1..300),
    ) {
        let mut machine = Machine::new(lists);
        let mut lines = [false; 64];
        let mut ppis = [false; 4];
        // How often each SPI and SGI may still come, and whether it has to.
        let mut owed = [false; 64];
        let mut sgis = [[false; 4]; 4];
        let mut active: [Vec<u32>; 4] = Default::default();
        for intid in 32..48 {
            machine.edge(intid);
        }
        for intid in 32..64 {
            machine.priority(intid, u64::from(intid % 4) << 6);
        }
        (0..4).for_each(|rec| machine.enter(rec));
        for step in steps {
            match step {
                Step::Line(intid, line) => {
                    let at = intid as usize;
                    owed[at] |= intid < 48 && line && !lines[at];
                    lines[at] = line;
                    machine.gic.line(intid, line);
                }
                Step::Private(rec, line) => {
                    ppis[rec] = line;
                    machine.gic.private_line(rec, TIMER, line);
                }
                Step::Sgi(from, value) => {
                    for rec in (0..4).filter(|rec| value >> rec & 1 != 0) {
                        sgis[rec][(value >> 24) as usize] = true;
                    }
                    machine.gic.sgi(from, value);
                }
                Step::Route(intid, rec) => machine.route(intid, rec),
                Step::Enable(intid, on) => machine.set(if on { 0x100 } else { 0x180 }, intid),
                Step::Again(rec) => machine.again(rec),
                Step::Take(rec) => {
                    if let Some(intid) = machine.cpus[rec].acknowledge() {
                        let at = intid as usize;
                        match intid {
                            0..4 => prop_assert!(core::mem::take(&mut sgis[rec][at])),
                            TIMER => {}
                            32..48 => prop_assert!(core::mem::take(&mut owed[at]), "{intid} of itself"),
                            48..64 => {}
                            _ => prop_assert!(false, "{intid}"),
                        }
                        prop_assert!(!active.iter().flatten().any(|other| *other == intid && intid >= 32));
                        active[rec].push(intid);
                    }
                }
                Step::End(rec) => {
                    if let Some(intid) = active[rec].pop() {
                        machine.cpus[rec].end(intid);
                    }
                }
            }
            // The host does as it is told.
            let kicks = machine.gic.kicks();
            for rec in 0..4 {
                if kicks >> rec & 1 != 0 || machine.cpus[rec].maintains() {
                    machine.again(rec);
                }
            }
        }
        // All ends, all is enabled; then all that is due comes.
        for (rec, active) in active.iter_mut().enumerate() {
            while let Some(intid) = active.pop() {
                machine.cpus[rec].end(intid);
                if machine.cpus[rec].maintains() {
                    machine.again(rec);
                }
            }
        }
        (0..4).for_each(|rec| machine.leave(rec));
        machine.gic.distributor(store(0x104, 0xffff_ffff)).unwrap();
        prop_assert_eq!(machine.gic.distributor(load(0x304)), Some(0), "nothing stays active");
        let mut due: Vec<u32> = (32..64).filter(|&at| owed[at] || at >= 48 && lines[at]).map(|at| at as u32).collect();
        for rec in 0..4 {
            let mut own: Vec<u32> = (0..4).filter(|&id| sgis[rec][id]).map(|id| id as u32).collect();
            own.extend(ppis[rec].then_some(TIMER));
            let (mut private, shared): (Vec<u32>, Vec<u32>) = machine.takes(rec).iter().partition(|intid| **intid < 32);
            private.sort_unstable();
            prop_assert_eq!(private, own);
            due.retain(|intid| !shared.contains(intid));
        }
        prop_assert!(due.is_empty(), "{due:?} were lost");
    }
}
