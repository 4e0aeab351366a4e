//! A GICv3 for the RECs of a realm: distributor, redistributors, and what is in the list registers (IHI 0069).
//!
//! Invariant: an interrupt is in the list registers of one REC at most, and only while that REC is inside.
//!
//! SGIs, PPIs and 32 SPIs of one security state (GICD_CTLR.DS). Interrupts of group 0 are kept and never signalled. There are no LPIs, no
//! message-based SPIs, no extended ranges, no NMIs, and an SPI goes to the one REC that GICD_IROUTER names (No1N).

use crate::access::{Access, sgi_targets};
use crate::lists::{ACTIVE, PENDING};

/// RECs, at most: those of the one cluster that an SGI can name.
pub const MOST: usize = 16;
/// Interrupts of each REC.
const PRIVATE: usize = 32;
/// Interrupts that the RECs share.
const SPIS: usize = 32;
const ALL: u32 = (PRIVATE + SPIS) as u32;
/// SGIs, which are edges.
const SGIS: u32 = 16;
/// List registers that the architecture has, at most.
const LISTS: usize = 16;
/// Bits of a priority that there are: as few as a virtual CPU interface may have.
const PRIORITY: u8 = 0xf8;

// Of ICH_LR<n>_EL2. With EOI its end is a maintenance interrupt.
const LR_GROUP_1: u64 = 1 << 60;
const LR_PRIORITY_SHIFT: u32 = 48;
const LR_EOI: u64 = 1 << 41;
// Of ICH_HCR_EL2.
const LRENPIE: u64 = 1 << 2;
const NPIE: u64 = 1 << 3;
const TDIR: u64 = 1 << 14;
const EOI_COUNT_SHIFT: u32 = 27;
const EOI_COUNT: u64 = 0x1f;
/// `ICH_VMCR_EL2.VEOIM`: an end does not deactivate; ICC_DIR_EL1 does.
const VMCR_EOI_MODE: u64 = 1 << 9;

const CTLR: u64 = 0;
const TYPER: u64 = 4;
const IROUTER: u64 = 0x6000;
const IROUTER_END: u64 = IROUTER + 8 * 1020;
const PIDR2: u64 = 0xffe8;
/// GICv3.
const ARCHITECTURE: u32 = 3 << 4;
const CTLR_ENABLES: u32 = 0b11;
const CTLR_GROUP_1: u32 = 1 << 1;
const CTLR_ARE: u32 = 1 << 4;
const CTLR_DS: u32 = 1 << 6;
const CTLR_RWP: u32 = 1 << 31;
const TYPER_NO_1_OF_N: u32 = 1 << 25;
/// INTIDs have 10 bits.
const TYPER_ID_BITS: u32 = 9 << 19;

/// Bytes of a redistributor: a frame for itself, and one for SGIs and PPIs.
const REDISTRIBUTOR: u64 = 0x2_0000;
const FRAME: u64 = 0x1_0000;
const REDISTRIBUTOR_TYPER: u64 = 8;
const TYPER_LAST: u32 = 1 << 4;
const WAKER: u64 = 0x14;
const WAKER_PROCESSOR_SLEEP: u32 = 1 << 1;
const WAKER_CHILDREN_ASLEEP: u32 = 1 << 2;
const REDISTRIBUTOR_RWP_SHIFT: u32 = 3;

/// An interrupt.
#[derive(Clone, Copy)]
struct Interrupt {
    is_enabled: bool,
    is_group_1: bool,
    /// It comes by its edges; or by its level.
    is_edge: bool,
    priority: u8,
    /// What its device says.
    line: bool,
    /// Pending by an edge, an SGI, or a write to ISPENDR.
    latch: bool,
    is_active: bool,
    /// The affinity to which it goes: a REC's number, if there is one.
    route: u32,
    /// On which REC it is active.
    active_on: u32,
    /// In the list registers of which REC it is: they know better whether it is active and pending.
    holder: Option<u8>,
    /// The latch is in the list register.
    is_given: bool,
    /// A write to ISACTIVER or ICACTIVER, meanwhile.
    written: Option<bool>,
    /// Somebody wants to know its state meanwhile.
    is_asked: bool,
    /// The holder has been out since: the state as it was then is an answer.
    is_told: bool,
}

impl Interrupt {
    const fn new(route: u32, is_edge: bool) -> Self {
        Self {
            is_enabled: false,
            is_group_1: false,
            is_edge,
            priority: 0,
            line: false,
            latch: false,
            is_active: false,
            route,
            active_on: 0,
            holder: None,
            is_given: false,
            written: None,
            is_asked: false,
            is_told: false,
        }
    }

    const fn is_pending(&self) -> bool {
        self.latch || self.is_given || !self.is_edge && self.line
    }

    const fn target(&self) -> u32 {
        if self.is_active { self.active_on } else { self.route }
    }

    /// Whether it makes a difference.
    fn set_line(&mut self, asserted: bool) -> bool {
        let is_changed = self.line != asserted && (asserted || !self.is_edge);
        self.line = asserted;
        self.latch |= is_changed && self.is_edge;
        is_changed
    }

    fn set_active(&mut self, is_active: bool) {
        if self.holder.is_some() {
            self.written = Some(is_active);
        } else if self.is_active != is_active {
            (self.is_active, self.active_on) = (is_active, self.route);
        }
    }
}

/// Registers of which each has a field for each interrupt of a range: the same in the distributor and in a redistributor's second frame.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Field {
    Group,
    SetEnable,
    ClearEnable,
    SetPending,
    ClearPending,
    SetActive,
    ClearActive,
    Priority,
    Config,
}

impl Field {
    /// Which register the word at `offset` is, the first interrupt that it has, and the bits of each.
    const fn at(offset: u64) -> Option<(Self, u32, u32)> {
        let (field, start, bits) = match offset {
            0x080..0x100 => (Self::Group, 0x080, 1),
            0x100..0x180 => (Self::SetEnable, 0x100, 1),
            0x180..0x200 => (Self::ClearEnable, 0x180, 1),
            0x200..0x280 => (Self::SetPending, 0x200, 1),
            0x280..0x300 => (Self::ClearPending, 0x280, 1),
            0x300..0x380 => (Self::SetActive, 0x300, 1),
            0x380..0x400 => (Self::ClearActive, 0x380, 1),
            0x400..0x800 => (Self::Priority, 0x400, 8),
            0xc00..0xd00 => (Self::Config, 0xc00, 2),
            _ => return None,
        };
        Some((field, (offset - start) as u32 * 8 / bits, bits))
    }

    const fn get(self, interrupt: &Interrupt) -> u32 {
        match self {
            Self::Group => interrupt.is_group_1 as u32,
            Self::SetEnable | Self::ClearEnable => interrupt.is_enabled as u32,
            Self::SetPending | Self::ClearPending => interrupt.is_pending() as u32,
            Self::SetActive | Self::ClearActive => interrupt.is_active as u32,
            Self::Priority => interrupt.priority as u32,
            Self::Config => (interrupt.is_edge as u32) << 1,
        }
    }

    fn set(self, interrupt: &mut Interrupt, intid: u32, value: u32) {
        match self {
            Self::Group => interrupt.is_group_1 = value != 0,
            Self::Priority => interrupt.priority = value as u8 & PRIORITY,
            Self::Config => interrupt.is_edge = value & 0b10 != 0 || intid < SGIS,
            // In all others only ones are written.
            _ if value == 0 => {}
            Self::SetEnable | Self::ClearEnable => interrupt.is_enabled = self == Self::SetEnable,
            Self::SetPending => interrupt.latch = true,
            Self::ClearPending => (interrupt.latch, interrupt.is_given) = (false, false),
            Self::SetActive | Self::ClearActive => interrupt.set_active(self == Self::SetActive),
        }
    }

    /// Whether it tells what the list registers know better.
    const fn is_state(self) -> bool {
        matches!(self, Self::SetPending | Self::ClearPending | Self::SetActive | Self::ClearActive)
    }
}

/// An interrupt controller for at most `RECS` RECs, which are [`MOST`] at most. REC `n` has affinity 0.0.0.n.
///
/// How it is used, under one lock: [`enter`](Self::enter) before each RMI_REC_ENTER, [`leave`](Self::leave) as the first thing after it (whether it
/// succeeded or not), then whatever the exit was for; then each REC that [`kicks`](Self::kicks) names is made to exit (or wakes, if it waits).
pub struct Gic<const RECS: usize> {
    recs: usize,
    /// GICD_CTLR: which groups are on.
    enables: u32,
    private: [[Interrupt; PRIVATE]; RECS],
    shared: [Interrupt; SPIS],
    /// What `enter` put into the list registers of each REC.
    given: [[Option<u8>; LISTS]; RECS],
    /// Bits for RECs: GICR_WAKER.ProcessorSleep.
    asleep: u32,
    /// Those that are between `enter` and `leave`.
    inside: u32,
    /// Those that may still have what was disabled since they were entered.
    stale: u32,
    /// Those for which there is news.
    kicks: u32,
}

/// A group of registers with a field for each interrupt.
#[derive(Clone, Copy)]
enum Bank {
    Shared,
    Of(usize),
}

impl<const RECS: usize> Gic<RECS> {
    /// One for that many RECs, as it is after reset.
    pub const fn new(recs: usize) -> Self {
        const { assert!(RECS <= MOST) };
        let mut private = [[Interrupt::new(0, false); PRIVATE]; RECS];
        let mut rec = 0;
        while rec < RECS {
            let mut intid = 0;
            while intid < PRIVATE {
                private[rec][intid] = Interrupt::new(rec as u32, intid < SGIS as usize);
                intid += 1;
            }
            rec += 1;
        }
        Self {
            recs: if recs < RECS { recs } else { RECS },
            enables: 0,
            private,
            shared: [Interrupt::new(0, false); SPIS],
            given: [[None; LISTS]; RECS],
            asleep: u32::MAX,
            inside: 0,
            stale: 0,
            kicks: 0,
        }
    }

    /// An access to the distributor (64 KiB). None: a REC has to exit before the answer is known, and `kicks` names it; the REC that asks goes
    /// back without the access done (no RMI_EMULATED_MMIO), and so tries it again.
    #[must_use]
    pub fn distributor(&mut self, access: Access) -> Option<u64> {
        words(access, |offset, store| match (offset, store) {
            (CTLR, None) => {
                let rwp = if self.stale != 0 { CTLR_RWP } else { 0 };
                Some(self.enables | CTLR_ARE | CTLR_DS | rwp)
            }
            (CTLR, Some((value, u32::MAX))) => {
                self.stale |= if self.enables & !value & CTLR_ENABLES != 0 { self.inside } else { 0 };
                self.enables = value & CTLR_ENABLES;
                self.kicks |= self.everyone();
                Some(0)
            }
            (TYPER, None) => Some(TYPER_NO_1_OF_N | TYPER_ID_BITS | (ALL / 32 - 1)),
            (PIDR2, None) => Some(ARCHITECTURE),
            (IROUTER..IROUTER_END, _) => Some(self.route(offset, store)),
            _ => self.bank(Bank::Shared, offset, store),
        })
    }

    /// An access to the redistributors (`recs` times 128 KiB, one after the other). None: as for [`distributor`](Self::distributor).
    #[must_use]
    pub fn redistributors(&mut self, access: Access) -> Option<u64> {
        let rec = (access.offset / REDISTRIBUTOR) as usize;
        if rec >= self.recs {
            return Some(0);
        }
        words(Access { offset: access.offset % REDISTRIBUTOR, ..access }, |offset, store| {
            match (offset, store) {
                (FRAME.., _) => self.bank(Bank::Of(rec), offset - FRAME, store),
                (CTLR, None) => Some((self.stale >> rec & 1) << REDISTRIBUTOR_RWP_SHIFT),
                (REDISTRIBUTOR_TYPER, None) => {
                    let last = if rec + 1 == self.recs { TYPER_LAST } else { 0 };
                    Some((rec as u32) << 8 | last)
                }
                // The affinity.
                (0xc, None) => Some(rec as u32),
                (WAKER, None) => {
                    let asleep = self.asleep >> rec & 1;
                    Some(asleep * (WAKER_PROCESSOR_SLEEP | WAKER_CHILDREN_ASLEEP))
                }
                (WAKER, Some((value, u32::MAX))) => {
                    let asleep = u32::from(value & WAKER_PROCESSOR_SLEEP != 0);
                    self.asleep = self.asleep & !(1 << rec) | asleep << rec;
                    self.kicks |= 1 << rec;
                    Some(0)
                }
                (PIDR2, None) => Some(ARCHITECTURE),
                _ => Some(0),
            }
        })
    }

    /// A device's line: SPIs by their INTID (32 and up). What is no SPI here is ignored.
    pub fn line(&mut self, intid: u32, asserted: bool) {
        if intid >= PRIVATE as u32 {
            self.set_line(0, intid, asserted);
        }
    }

    /// A line of one REC: PPIs by their INTID (16 to 31), so [`VIRTUAL_TIMER`](crate::lists::VIRTUAL_TIMER).
    pub fn private_line(&mut self, rec: usize, intid: u32, asserted: bool) {
        if (SGIS..PRIVATE as u32).contains(&intid) {
            self.set_line(rec, intid, asserted);
        }
    }

    fn set_line(&mut self, rec: usize, intid: u32, asserted: bool) {
        if self.interrupt(rec, intid).is_some_and(|interrupt| interrupt.set_line(asserted)) {
            self.changed(rec, intid);
        }
    }

    /// REC `from` has written `value` to ICC_SGI1R_EL1.
    pub fn sgi(&mut self, from: usize, value: u64) {
        if from >= self.recs {
            return;
        }
        let (intid, targets) = sgi_targets(value, from);
        for rec in (0..self.recs).filter(|rec| targets & 1 << rec != 0) {
            self.private[rec][intid as usize].latch = true;
            self.changed(rec, intid);
        }
    }

    /// REC `rec` has written `value` to ICC_DIR_EL1, which it never does itself (ICH_HCR_EL2.TDIR): what it ends may be active on another one, or
    /// have no list register.
    pub fn deactivate(&mut self, rec: usize, value: u64) {
        // An INTID has 24 bits.
        let intid = value as u32 & 0xff_ffff;
        if let Some(interrupt) = self.interrupt(rec, intid) {
            interrupt.set_active(false);
            self.changed(rec, intid);
        }
    }

    /// Takes what became of the list registers of `rec`: the values of its exit (gicv3_lrs, gicv3_hcr, gicv3_vmcr), or, if it was not entered,
    /// those that [`enter`](Self::enter) gave, and twice 0.
    pub fn leave(&mut self, rec: usize, lrs: &[u64], hcr: u64, vmcr: u64) {
        let Some(given) = self.given.get_mut(rec).map(core::mem::take) else { return };
        // What ended without a list register: the highest priorities, because that is what runs.
        if vmcr & VMCR_EOI_MODE == 0 {
            for _ in 0..hcr >> EOI_COUNT_SHIFT & EOI_COUNT {
                self.end_highest(rec);
            }
        }
        self.inside &= !(1 << rec);
        self.stale &= !(1 << rec);
        for (at, intid) in given.into_iter().enumerate() {
            let Some(intid) = intid.map(u32::from) else { continue };
            let lr = lrs.get(at).copied().unwrap_or(0);
            let Some(interrupt) = self.interrupt(rec, intid) else { continue };
            // It was not taken; unless it was taken back.
            interrupt.latch |= interrupt.is_given && lr & PENDING != 0;
            interrupt.is_active = interrupt.written.take().unwrap_or(lr & ACTIVE != 0);
            interrupt.active_on = rec as u32;
            interrupt.is_told |= interrupt.is_asked;
            (interrupt.is_given, interrupt.is_asked, interrupt.holder) = (false, false, None);
            if interrupt.target() != rec as u32 {
                self.changed(rec, intid);
            }
        }
    }

    fn end_highest(&mut self, rec: usize) {
        let is_active = |interrupt: &Interrupt| {
            interrupt.is_active && interrupt.holder.is_none() && interrupt.active_on == rec as u32
        };
        let own = self.private.get_mut(rec).into_iter().flatten();
        let running = own.chain(&mut self.shared).filter(|interrupt| is_active(interrupt));
        if let Some(highest) = running.min_by_key(|interrupt| interrupt.priority) {
            highest.is_active = false;
        }
    }

    /// Fills the list registers that there are (`lrs` is as long as the GIC has them: GICV3_NUM_LRS) for an entry of `rec`. Returns gicv3_hcr:
    /// what interrupts the host (PPI 25, the maintenance interrupt, which the host has enabled) when there may be more to do.
    ///
    /// What is pending comes first, by its priority, then what is active. If not all has room: once nothing is pending in a list register the REC
    /// exits (NPIE), and when it ends what is in none (LRENPIE). A level that is still asserted when it ends is an exit too: then it is pending again.
    pub fn enter(&mut self, rec: usize, lrs: &mut [u64]) -> u64 {
        lrs.fill(0);
        if rec >= self.recs || self.inside & 1 << rec != 0 {
            return TDIR;
        }
        let mut order = [(0, 0); ALL as usize];
        let mut count = 0;
        for intid in 0..ALL {
            let Some(interrupt) = self.seen(rec, intid) else { continue };
            if interrupt.holder.is_some() || interrupt.target() != rec as u32 {
                continue;
            }
            let is_signalled = self.is_signalled(interrupt) && self.asleep & 1 << rec == 0;
            if is_signalled || interrupt.is_active {
                let rank = u32::from(interrupt.is_active) << 8 | u32::from(interrupt.priority);
                order[count] = (rank, intid);
                count += 1;
            }
        }
        order[..count].sort_unstable();
        let room = count.min(lrs.len()).min(LISTS);
        for (at, &(_, intid)) in order[..room].iter().enumerate() {
            let Some(interrupt) = self.seen(rec, intid) else { continue };
            let is_signalled = self.is_signalled(interrupt) && self.asleep & 1 << rec == 0;
            lrs[at] = self.give(rec, intid, is_signalled);
            self.given[rec][at] = Some(intid as u8);
        }
        self.inside |= 1 << rec;
        self.kicks &= !(1 << rec);
        let left = &order[room..count];
        let pending = if left.iter().any(|(rank, _)| rank >> 8 == 0) { NPIE } else { 0 };
        let active = if left.iter().any(|(rank, _)| rank >> 8 != 0) { LRENPIE } else { 0 };
        pending | active | TDIR
    }

    /// Puts an interrupt into a list register.
    fn give(&mut self, rec: usize, intid: u32, is_signalled: bool) -> u64 {
        let Some(interrupt) = self.interrupt(rec, intid) else { return 0 };
        interrupt.holder = Some(rec as u8);
        let mut lr = LR_GROUP_1 | u64::from(interrupt.priority) << LR_PRIORITY_SHIFT | u64::from(intid);
        if interrupt.is_active {
            lr |= ACTIVE;
        }
        // A level that is active is asked again when it ends: its device may be content by then.
        if is_signalled && (interrupt.is_edge || !interrupt.is_active) {
            lr |= PENDING;
            interrupt.is_given = core::mem::take(&mut interrupt.latch);
        }
        if !interrupt.is_edge && (interrupt.line || interrupt.latch) {
            lr |= LR_EOI;
        }
        lr
    }

    /// Whether an interrupt is there for `rec` that ends a WFI of it.
    pub fn wakes(&self, rec: usize) -> bool {
        (0..ALL).filter_map(|intid| self.seen(rec, intid)).any(|interrupt| {
            interrupt.target() == rec as u32 && !interrupt.is_active && self.is_signalled(interrupt)
        })
    }

    /// A bit for each REC for which there was news since its last entry, and since the last call of this.
    pub const fn kicks(&mut self) -> u32 {
        core::mem::replace(&mut self.kicks, 0)
    }

    /// All bits of RECs.
    const fn everyone(&self) -> u32 {
        (1 << self.recs) - 1
    }

    fn interrupt(&mut self, rec: usize, intid: u32) -> Option<&mut Interrupt> {
        match (intid as usize).checked_sub(PRIVATE) {
            Some(spi) => self.shared.get_mut(spi),
            None => self.private[..self.recs].get_mut(rec)?.get_mut(intid as usize),
        }
    }

    fn seen(&self, rec: usize, intid: u32) -> Option<&Interrupt> {
        match (intid as usize).checked_sub(PRIVATE) {
            Some(spi) => self.shared.get(spi),
            None => self.private[..self.recs].get(rec)?.get(intid as usize),
        }
    }

    /// Whether it would be taken if it is not active.
    const fn is_signalled(&self, interrupt: &Interrupt) -> bool {
        interrupt.is_enabled
            && interrupt.is_group_1
            && self.enables & CTLR_GROUP_1 != 0
            && interrupt.is_pending()
    }

    /// Who has it or is to have it has to know.
    fn changed(&mut self, rec: usize, intid: u32) {
        let Some(&interrupt) = self.seen(rec, intid) else { return };
        if let Some(holder) = interrupt.holder {
            self.kicks |= 1 << holder;
        } else if interrupt.target() < self.recs as u32 && self.is_signalled(&interrupt) {
            self.kicks |= 1 << interrupt.target();
        }
    }

    fn route(&mut self, offset: u64, store: Option<(u32, u32)>) -> u32 {
        let intid = (offset - IROUTER) as u32 / 8;
        // Aff3 is in the upper word, bits 7:0; Aff2 to Aff0 in the lower one.
        let (shift, mask) = if offset & 4 == 0 { (0, 0xff_ffff) } else { (24, 0xff) };
        let Some(spi) = intid.checked_sub(PRIVATE as u32) else { return 0 };
        let Some(interrupt) = self.shared.get_mut(spi as usize) else { return 0 };
        let Some((value, u32::MAX)) = store else { return interrupt.route >> shift & mask };
        interrupt.route = interrupt.route & !(mask << shift) | (value & mask) << shift;
        self.changed(0, intid);
        0
    }

    /// An access to a register with fields for interrupts; a store says which bits are stored.
    fn bank(&mut self, bank: Bank, offset: u64, store: Option<(u32, u32)>) -> Option<u32> {
        let Some((field, first, bits)) = Field::at(offset) else { return Some(0) };
        let (rec, range) = match bank {
            Bank::Shared => (0, PRIVATE as u32..ALL),
            Bank::Of(rec) => (rec, 0..PRIVATE as u32),
        };
        if !range.contains(&first) {
            return Some(0);
        }
        let intids = first..first + 32 / bits;
        match store {
            Some((value, mask)) => {
                if mask != u32::MAX && field != Field::Priority {
                    return Some(0);
                }
                let one = u32::MAX >> (32 - bits);
                for (number, intid) in intids.enumerate() {
                    let shift = number as u32 * bits;
                    if mask >> shift & one != 0 {
                        self.store(field, rec, intid, value >> shift & one);
                    }
                }
                Some(0)
            }
            None if field.is_state() && !self.is_known(rec, intids.clone()) => None,
            None => Some(intids.enumerate().fold(0, |word, (number, intid)| {
                let value = self.seen(rec, intid).map_or(0, |interrupt| field.get(interrupt));
                word | value << (number as u32 * bits)
            })),
        }
    }

    fn store(&mut self, field: Field, rec: usize, intid: u32, value: u32) {
        let Some(interrupt) = self.interrupt(rec, intid) else { return };
        let before = field.get(interrupt);
        field.set(interrupt, intid, value);
        // What is written to a state counts even if it says what was known.
        if before != field.get(interrupt) || field.is_state() && value != 0 {
            if field == Field::ClearEnable {
                self.stale |= interrupt.holder.map_or(0, |holder| 1 << holder);
            }
            self.changed(rec, intid);
        }
    }

    /// Whether the states of these are known; else who knows them is to come out.
    fn is_known(&mut self, rec: usize, intids: core::ops::Range<u32>) -> bool {
        let mut unknown = 0;
        for intid in intids.clone() {
            let Some(interrupt) = self.interrupt(rec, intid) else { continue };
            if let Some(holder) = interrupt.holder.filter(|_| !interrupt.is_told) {
                interrupt.is_asked = true;
                unknown |= 1 << holder;
            }
        }
        self.kicks |= unknown;
        if unknown == 0 {
            for intid in intids {
                if let Some(interrupt) = self.interrupt(rec, intid) {
                    interrupt.is_told = false;
                }
            }
        }
        unknown == 0
    }
}

/// Does an access by its words: `word` gets the offset of one and, of a store, its value and which of its bits are stored. What is not aligned does
/// nothing.
fn words(access: Access, mut word: impl FnMut(u64, Option<(u32, u32)>) -> Option<u32>) -> Option<u64> {
    let Access { offset, size, store } = access;
    match size {
        8 if offset.is_multiple_of(8) => {
            let mut half = |at, shift| word(at, store.map(|value| ((value >> shift) as u32, u32::MAX)));
            let low = half(offset, 0);
            let high = half(offset + 4, 32);
            Some(u64::from(low?) | u64::from(high?) << 32)
        }
        1 | 2 | 4 if offset.is_multiple_of(u64::from(size)) => {
            let shift = (offset % 4 * 8) as u32;
            let mask = u32::MAX >> (32 - 8 * u32::from(size));
            let stored = store.map(|value| ((value as u32 & mask) << shift, mask << shift));
            Some(u64::from(word(offset & !3, stored)? >> shift & mask))
        }
        _ => Some(0),
    }
}

#[cfg(test)]
mod tests;
