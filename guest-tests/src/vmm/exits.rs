//! Runs a REC: enters it, and does what each exit asks for (DEN0137 A4.2 to A4.5, A6).
//!
//! Invariant: whatever a realm asks for ends in an answer to it, or in the end of the run with a line that says why.

use core::fmt;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};

use rmm_abi::v1_0::psci::{PsciCommand, PsciReturnCode};
use rmm_abi::v1_0::rmi::{
    RmiCommand, RmiRecEnterFlags, RmiRecExitReason, RmiRecMpidr, RmiRecRun, RmiRipas, RmiStatus,
};
use vmm_logic::access::{Access, Cause, cause, pl011_load, sgi_targets};
use vmm_logic::lists::{self, PHYSICAL_TIMER, VIRTUAL_TIMER};
use vmm_logic::tree::UART;
use vmm_logic::words::word;

use super::devices::{self, Answer, DEVICES, Kind};
use super::granules::GRANULE;
use super::realm::{Realm, Rec};
use super::rmi::{Refused, call, done, take_account};
use super::{console, entry, gic, probes, uart};
use crate::cpus;

/// The immediate of the host calls that this host knows.
const HOST_CALL: u16 = 0xc10e;
/// Checks and complements what the realm has written into memory that it shares.
const EXCHANGE: u64 = 1;
/// Tells what the host has cost.
const TICKS: u64 = 2;
const UNKNOWN: u64 = u64::MAX;

/// It is entered again, and there is nothing to say.
const AGAIN: Then = Then::Enter(RmiRecEnterFlags::empty());

/// The parts of a run granule.
struct Run(*mut RmiRecRun);

/// Reads a field of the exit, or writes one of the entry: the RMM does the other.
macro_rules! field {
    ($run:expr, exit.$($field:tt)+) => {
        // SAFETY: a granule of the host's, in which any bytes are a value.
        unsafe { (&raw const (*$run.0).exit.$($field)+).read_volatile() }
    };
    ($run:expr, enter.$field:ident $([$at:expr])? = $value:expr) => {
        // SAFETY: as above; nobody else looks at it before the entry.
        unsafe { (&raw mut (*$run.0).enter.$field $([$at])?).write_volatile($value) }
    };
}

/// What became of a REC.
enum Then {
    /// It is entered again, with these flags.
    Enter(RmiRecEnterFlags),
    /// It is off until it is turned on.
    Off,
}

impl Realm {
    /// Runs REC `number` on this CPU until the realm is over.
    pub fn run_rec(&self, number: usize) {
        let Some(rec) = self.recs.get(number) else { return };
        gic::enable_interface();
        take_account();
        let mut started = 0;
        while !self.is_over() {
            // First what is pending, then the look whether there is work: who makes some sends an SGI behind it.
            self.take_interrupts();
            let starts = rec.starts.load(SeqCst);
            if starts == started {
                if !self.is_over() {
                    entry::wait_for_interrupt();
                }
                continue;
            }
            started = starts;
            self.enter(number, rec);
        }
        self.take_interrupts();
    }

    /// Ends the run, and calls all RECs back.
    pub fn end(&self) {
        self.ended.store(true, SeqCst);
        (0..self.recs.len()).for_each(|number| self.wake(number));
    }

    /// Takes the interrupts of this CPU, and gives the realm what has been typed.
    fn take_interrupts(&self) {
        let mut heard = false;
        entry::take_interrupts(|intid| {
            if intid == u64::from(uart::INTID) {
                // Its level is there until it is read; the lock for that is not for here.
                uart::listen(false);
                heard = true;
            }
        });
        if heard && self.has_devices() {
            DEVICES.lock().hear();
            self.tell_others();
        }
    }

    /// Makes those exit for which the devices have news.
    fn tell_others(&self) {
        let kicks = DEVICES.lock().kicks();
        for number in (0..self.recs.len()).filter(|number| kicks & 1 << number != 0) {
            self.call_back(number);
        }
    }

    fn fail(&self, number: usize, what: fmt::Arguments<'_>) {
        console::say(format_args!("payload: REC {number}: {what}"));
        self.failed.store(true, Relaxed);
        self.end();
    }

    /// Makes a REC exit, if it runs.
    fn call_back(&self, number: usize) {
        if self.recs[number].inside.load(SeqCst) {
            self.wake(number);
        }
    }

    /// Makes a REC exit if it runs, and its CPU look for work if it does not.
    fn wake(&self, number: usize) {
        if let Some(mpidr) = cpus::mpidr(number) {
            entry::send_sgi(gic::KICK, mpidr);
        }
    }

    /// Enters a REC until it is off or the realm is over.
    fn enter(&self, number: usize, rec: &Rec) {
        let run = Run(rec.run as *mut RmiRecRun);
        let mut flags = RmiRecEnterFlags::empty();
        let mut lrs = [0; 16];
        let mut timers = [(VIRTUAL_TIMER, false), (PHYSICAL_TIMER, false)];
        let mut exits: u64 = 0;
        if self.has_devices() {
            DEVICES.lock().start(number);
        }
        loop {
            // First this, then the look at what there is for it: who sends it something does it the other way round.
            rec.inside.store(true, SeqCst);
            if self.is_over() {
                rec.inside.store(false, SeqCst);
                return;
            }
            if self.has_devices() {
                field!(run, enter.gicv3_hcr = DEVICES.lock().enter(number, &mut lrs[..self.lists]));
            } else {
                let sgis = rec.sgis.swap(0, SeqCst);
                let left = lists::refresh(&mut lrs[..self.lists], sgis, &timers);
                rec.sgis.fetch_or(left, SeqCst);
            }
            field!(run, enter.flags = flags);
            for (at, &lr) in lrs[..self.lists].iter().enumerate() {
                field!(run, enter.gicv3_lrs[at] = lr);
            }
            let [status, ..] = call(RmiCommand::RecEnter, &[rec.pa, rec.run]);
            rec.inside.store(false, SeqCst);
            let has_run = status == RmiStatus::Success.bits();
            if self.has_devices() && !has_run {
                DEVICES.lock().leave(number, &lrs[..self.lists], 0, 0);
            }
            match RmiStatus::from_bits(status) {
                Ok(RmiStatus::Success) => {}
                // It was off already, or all of it is.
                Ok(RmiStatus::ErrorRec | RmiStatus::ErrorRealm(1)) => return,
                other => {
                    self.fail(number, format_args!("RMI_REC_ENTER: X0 {status:#x}, {other:?}"));
                    return;
                }
            }
            for (at, lr) in lrs[..self.lists].iter_mut().enumerate() {
                *lr = field!(run, exit.gicv3_lrs[at]);
            }
            let [cntv, cntp] = [field!(run, exit.cntv_ctl), field!(run, exit.cntp_ctl)];
            timers = [(VIRTUAL_TIMER, lists::interrupts(cntv)), (PHYSICAL_TIMER, lists::interrupts(cntp))];
            if self.has_devices() {
                let mut devices = DEVICES.lock();
                let (hcr, vmcr) = (field!(run, exit.gicv3_hcr), field!(run, exit.gicv3_vmcr));
                devices.leave(number, &lrs[..self.lists], hcr, vmcr);
                devices.timers(number, cntv, cntp);
            }
            self.take_interrupts();
            let then = self.handle(number, rec, &run);
            if self.has_devices() {
                self.tell_others();
                exits += 1;
                probes::at_exit(exits);
            }
            match then {
                Ok(Then::Enter(next)) => flags = next,
                Ok(Then::Off) => return,
                Err(refused) => {
                    self.fail(number, format_args!("{refused}"));
                    return;
                }
            }
        }
    }

    fn handle(&self, number: usize, rec: &Rec, run: &Run) -> Result<Then, Refused> {
        let reason = field!(run, exit.exit_reason);
        if let Some(count) = rec.exits.get(usize::from(reason)) {
            count.fetch_add(1, Relaxed);
        }
        match RmiRecExitReason::from_bits(reason) {
            Ok(RmiRecExitReason::Irq | RmiRecExitReason::Fiq) => Ok(AGAIN),
            Ok(RmiRecExitReason::Sync) => self.synchronous(number, run),
            Ok(RmiRecExitReason::Psci) => self.psci(rec, run),
            Ok(RmiRecExitReason::RipasChange) => {
                let range = (field!(run, exit.ripas_base), field!(run, exit.ripas_top));
                let ripas = RmiRipas::from_bits(field!(run, exit.ripas_value)).ok();
                Ok(Then::Enter(self.ripas(number, range, ripas)))
            }
            Ok(RmiRecExitReason::HostCall) => {
                let mut gprs: [u64; 31] = field!(run, exit.gprs);
                self.host_call(field!(run, exit.imm), &mut gprs);
                field!(run, enter.gprs = gprs);
                Ok(AGAIN)
            }
            Ok(RmiRecExitReason::Serror) => {
                self.fail(number, format_args!("SError, ESR {:#x}", field!(run, exit.esr)));
                Ok(Then::Off)
            }
            Err(unknown) => {
                self.fail(number, format_args!("exit reason {unknown}"));
                Ok(Then::Off)
            }
        }
    }

    fn synchronous(&self, number: usize, run: &Run) -> Result<Then, Refused> {
        let [esr, far, hpfar] = [field!(run, exit.esr), field!(run, exit.far), field!(run, exit.hpfar)];
        let value: u64 = field!(run, exit.gprs[0]);
        match cause(esr, far, hpfar) {
            Cause::Sgi if self.has_devices() => {
                DEVICES.lock().sgi(number, value);
                Ok(AGAIN)
            }
            Cause::Deactivate if self.has_devices() => {
                DEVICES.lock().deactivate(number, value);
                Ok(AGAIN)
            }
            // An end without TDIR does not come here.
            Cause::Wait | Cause::OtherSgi | Cause::Deactivate => Ok(AGAIN),
            Cause::Sgi => {
                let (intid, targets) = sgi_targets(value, number);
                for target in (0..self.recs.len()).filter(|target| targets & 1 << target != 0) {
                    self.recs[target].sgis.fetch_or(1 << intid, SeqCst);
                    self.call_back(target);
                }
                Ok(AGAIN)
            }
            Cause::Data { ipa, is_store, can_be_emulated } if ipa & self.shared() != 0 => {
                let ipa = ipa - self.shared();
                if self.has_ram(ipa & !(GRANULE - 1), GRANULE) {
                    devices::count(Kind::Shared);
                    self.map_shared(&mut self.lock(), ipa)?;
                    return Ok(AGAIN);
                }
                if self.has_devices() && can_be_emulated {
                    let answer = DEVICES.lock().access(self, ipa, Access::new(esr, ipa, ipa, value));
                    return Ok(match answer {
                        Answer::Done(loaded) => {
                            field!(run, enter.gprs[0] = loaded);
                            Then::Enter(RmiRecEnterFlags::EMUL_MMIO)
                        }
                        Answer::Later => AGAIN,
                        Answer::Nobody => Then::Enter(RmiRecEnterFlags::INJECT_SEA),
                    });
                }
                if ipa & !(GRANULE - 1) != UART || !can_be_emulated {
                    // Nothing is there.
                    return Ok(Then::Enter(RmiRecEnterFlags::INJECT_SEA));
                }
                match (is_store, ipa - UART) {
                    (true, 0) => console::put(number, value as u8),
                    (true, _) => {}
                    (false, offset) => field!(run, enter.gprs[0] = pl011_load(offset)),
                }
                Ok(Then::Enter(RmiRecEnterFlags::EMUL_MMIO))
            }
            Cause::Data { ipa, .. } | Cause::Fetch { ipa } => {
                let ipa = ipa & !(GRANULE - 1);
                if !self.has_ram(ipa, GRANULE) {
                    self.fail(number, format_args!("it goes to {ipa:#x}, where nothing is: ESR {esr:#x}"));
                    return Ok(Then::Off);
                }
                self.give(ipa)?;
                Ok(AGAIN)
            }
            Cause::Other => {
                self.fail(number, format_args!("ESR {esr:#x}, FAR {far:#x}, HPFAR {hpfar:#x}"));
                Ok(Then::Off)
            }
        }
    }

    /// Gives the realm memory where it found none; another REC may have been faster.
    fn give(&self, ipa: u64) -> Result<(), Refused> {
        use rmm_abi::v1_0::rmi::RmiRttEntryState::Unassigned;
        let mut pool = self.lock();
        let entry = self.entry(ipa, super::realm::PAGE)?;
        if entry.state == Some(Unassigned) { self.assign(&mut pool, ipa) } else { Ok(()) }
    }

    fn ripas(&self, number: usize, range: (u64, u64), ripas: Option<RmiRipas>) -> RmiRecEnterFlags {
        let rejected = RmiRecEnterFlags::RIPAS_RESPONSE;
        let count = self.changes.fetch_add(1, Relaxed) + 1;
        if self.manner.reject.is_some_and(|each| each > 0 && count.is_multiple_of(each)) {
            self.rejected.fetch_add(1, Relaxed);
            return rejected;
        }
        if !self.has_ram(range.0, range.1.saturating_sub(range.0)) {
            // The host has no memory there: it may be nothing, but not RAM.
            if ripas == Some(RmiRipas::Ram) {
                return rejected;
            }
        }
        match self.change_ripas(number, range, ripas) {
            Ok(_) => RmiRecEnterFlags::empty(),
            Err(refused) => {
                console::say(format_args!("payload: change of RIPAS of {range:x?}: {refused}"));
                rejected
            }
        }
    }

    fn psci(&self, rec: &Rec, run: &Run) -> Result<Then, Refused> {
        let [function, mpidr]: [u64; 2] = [field!(run, exit.gprs[0]), field!(run, exit.gprs[1])];
        let target = RmiRecMpidr::from_bits(mpidr).index() as usize;
        let complete = |status: PsciReturnCode| match self.recs.get(target) {
            Some(other) => {
                let inputs = [rec.pa, other.pa, status.to_register()];
                done(RmiCommand::PsciComplete, &inputs).map(|_| ())
            }
            None => Ok(()),
        };
        match PsciCommand::from_fid(function as u32) {
            Ok(PsciCommand::CpuOn) => {
                complete(PsciReturnCode::Success)?;
                // If it was on already it finds out that nothing has changed.
                if let Some(other) = self.recs.get(target) {
                    other.starts.fetch_add(1, SeqCst);
                    self.wake(target);
                }
                Ok(AGAIN)
            }
            Ok(PsciCommand::AffinityInfo) => {
                complete(PsciReturnCode::Success)?;
                Ok(AGAIN)
            }
            Ok(PsciCommand::CpuOff) => Ok(Then::Off),
            Ok(PsciCommand::SystemOff | PsciCommand::SystemReset) => {
                self.end();
                Ok(Then::Off)
            }
            // The next interrupt ends it, or already has.
            _ => Ok(AGAIN),
        }
    }

    fn host_call(&self, imm: u16, gprs: &mut [u64; 31]) {
        gprs[0] = match (imm, gprs[0]) {
            (HOST_CALL, EXCHANGE) => self.exchange(gprs[1], gprs[2], gprs[3]),
            (HOST_CALL, TICKS) => {
                gprs[1..4].copy_from_slice(&take_account());
                0
            }
            _ => UNKNOWN,
        };
    }

    /// Checks `bytes` at the alias of `ipa` against `seed`, and complements them: 0, or one more than the number of the first that is wrong.
    fn exchange(&self, ipa: u64, bytes: u64, seed: u64) -> u64 {
        if !self.has_ram(ipa, bytes) || !ipa.is_multiple_of(GRANULE) || !bytes.is_multiple_of(GRANULE) {
            return UNKNOWN;
        }
        let start = (self.plan.backing + (ipa - vmm_logic::tree::RAM)) as *mut u64;
        let mut wrong = 0;
        for place in 0..bytes / 8 {
            // SAFETY: the backing is the host's, as large as the realm's RAM; the realm may write it meanwhile.
            let found = unsafe {
                let at = start.add(place as usize);
                let found = at.read_volatile();
                at.write_volatile(!found);
                found
            };
            if found != word(seed, place) && wrong == 0 {
                wrong = place + 1;
            }
        }
        self.exchanged.fetch_add(bytes / 8, Relaxed);
        wrong
    }
}
