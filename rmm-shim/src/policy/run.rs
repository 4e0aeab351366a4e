//! Runs the RECs: enters them, and does what each exit asks for (DEN0137 A4.2 to A4.4, B4.3.7).
//!
//! Invariants:
//! - REC *n* runs on CPU *n*, and nowhere else. Its CPU enters it from when it is turned on until it turns itself off; then the CPU is off
//!   too, or waits here if it cannot be.
//! - A CPU goes off only if nobody has turned its REC on since it turned itself off: that is looked at with the lock under which a REC is turned on.
//! - No exit is for an interrupt: they are the realm's.

use core::fmt;
use core::mem::offset_of;
use core::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use rmm_abi::v1_0::psci::{PsciCommand, PsciReturnCode};
use rmm_abi::v1_0::rmi::{
    RmiCommand, RmiRecEnter, RmiRecEnterFlags, RmiRecExit, RmiRecExitReason, RmiRecRun, RmiRipas, RmiStatus,
};
use zerocopy::IntoBytes;

use super::{Board, Policy, Problem, TurnedOn};
use crate::rec::named_by_realm;
use crate::world::World;

/// Why a CPU is not turned on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotOn {
    /// The firmware answers so.
    Firmware(i64),
    /// It has not gone off.
    NotOff,
    /// It has not come.
    Missing,
    /// It has not what the realm was told that the machine has.
    Unlike,
}

impl fmt::Display for NotOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Firmware(code) => write!(f, "the firmware answers {code}"),
            Self::NotOff => write!(f, "it has not gone off in {PATIENCE_SECONDS} seconds"),
            Self::Missing => write!(f, "it has not come in {PATIENCE_SECONDS} seconds"),
            Self::Unlike => write!(f, "it has not what the realm was told that all CPUs have"),
        }
    }
}

/// How long a CPU may take to go off before it is turned on again, and to come.
const PATIENCE_SECONDS: u64 = 5;

/// How the run has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// The realm has turned itself off.
    Off,
    /// The realm wants to begin anew.
    Reset,
    /// Something went wrong, and was said.
    Failed,
    /// Another CPU has found that it is over, and says how.
    Elsewhere,
}

/// What becomes of a REC after an exit.
enum Then {
    /// It is entered again, with these flags.
    Enter(RmiRecEnterFlags),
    /// It has turned itself off, and its CPU goes off.
    RecOff,
    /// It has turned itself off, and has perhaps been turned on since: if not, it cannot be entered.
    RecMayBeOff,
    /// All of it ends.
    End(Over),
}

/// It is entered again, and there is nothing to say.
const AGAIN: Then = Then::Enter(RmiRecEnterFlags::empty());

/// SMCCC's NOT_SUPPORTED.
const NOT_SUPPORTED: i64 = -1;

/// What is looked at of an exit.
struct Exit {
    reason: u8,
    esr: u64,
    hpfar: u64,
    gprs: [u64; 2],
    ripas_base: u64,
    ripas_top: u64,
    ripas_value: u8,
}

/// `HPFAR_EL2.FIPA` is bits 55:12 of the IPA, from bit 4 on.
const FIPA: u64 = 0xffff_ffff_fff0;
const FIPA_SHIFT: u32 = 8;
const EC_SHIFT: u32 = 26;
const EC_WFX: u64 = 0x01;
const EC_FETCH: u64 = 0x20;
const EC_DATA: u64 = 0x24;

impl<W: World, B: Board> Policy<W, B> {
    /// Runs on CPU number `cpu`, each time that it was turned on; on the boot CPU after [`Policy::make`]. Returns when the realm is over.
    pub fn run(&self, cpu: usize) -> Over {
        let Some(rec) = self.recs.get(cpu).filter(|_| cpu < self.plan.cpu_count) else { return Over::Failed };
        // The realm is told that a CPU is on once it is known that it can run a REC.
        if !rec.is_on.load(Relaxed) && !self.monitor.lock().world.can_run() {
            rec.is_unlike.store(true, Release);
            self.board.turn_off();
            while !self.is_over() {
                self.board.wait();
            }
            return Over::Elsewhere;
        }
        loop {
            rec.is_parked.store(true, Release);
            while !rec.go.swap(false, AcqRel) {
                if self.is_over() {
                    return Over::Elsewhere;
                }
                self.board.wait();
            }
            rec.is_parked.store(false, Release);
            if let Some(over) = self.enter(cpu) {
                return over;
            }
            self.board.turn_off();
        }
    }

    /// Enters a REC until it is off; how the realm has ended if it has.
    pub(super) fn enter(&self, cpu: usize) -> Option<Over> {
        let rec = self.recs[cpu].pa.load(Relaxed);
        let run = self.recs[cpu].run.load(Relaxed);
        let (mut flags, mut may_be_off) = (RmiRecEnterFlags::empty(), false);
        loop {
            let entered = self
                .write(run, offset_of!(RmiRecRun, enter), flags.as_bytes())
                .and_then(|()| Ok(self.call(RmiCommand::RecEnter, &[rec, run])?))
                .and_then(|_| self.exit(run));
            let start = self.board.now().0;
            let then = match entered {
                Ok(exit) => self.handle(cpu, rec, &exit),
                Err(Problem::Refused(refused))
                    if may_be_off && refused.status == RmiStatus::ErrorRec.bits() =>
                {
                    Ok(self.leave(cpu))
                }
                // Another REC has turned the realm off.
                Err(Problem::Refused(refused)) if refused.status == RmiStatus::ErrorRealm(1).bits() => {
                    return Some(Over::Elsewhere);
                }
                Err(problem) => Err(problem),
            };
            self.counts.ticks.fetch_add(self.board.now().0.wrapping_sub(start), Relaxed);
            may_be_off = matches!(then, Ok(Then::RecMayBeOff));
            match then {
                Ok(Then::Enter(next)) => flags = next,
                Ok(Then::RecMayBeOff) => flags = RmiRecEnterFlags::empty(),
                Ok(Then::RecOff) => return None,
                // One CPU says how it ends.
                Ok(Then::End(_)) | Err(_) if !self.claim_end() => return Some(Over::Elsewhere),
                Ok(Then::End(over)) => {
                    self.tell();
                    return Some(over);
                }
                Err(problem) => {
                    self.say(format_args!("policy: REC {cpu} cannot go on: {problem}"));
                    return Some(Over::Failed);
                }
            }
        }
    }

    /// Reads the record of an exit.
    fn exit(&self, run: u64) -> Result<Exit, Problem> {
        /// Where a field of it lies.
        macro_rules! at {
            ($field:ident) => {
                offset_of!(RmiRecRun, exit) + offset_of!(RmiRecExit, $field)
            };
        }
        let lock = self.monitor.lock();
        let read = |at, into: &mut [u8]| lock.world.read(run, at, into).ok_or(Problem::NotTheHosts(run));
        let word = |at| {
            let mut word = 0u64;
            read(at, word.as_mut_bytes()).map(|()| word)
        };
        let byte = |at| {
            let mut byte = [0u8];
            read(at, &mut byte).map(|()| byte[0])
        };
        Ok(Exit {
            reason: byte(at!(exit_reason))?,
            esr: word(at!(esr))?,
            hpfar: word(at!(hpfar))?,
            gprs: [word(at!(gprs))?, word(at!(gprs) + 8)?],
            ripas_base: word(at!(ripas_base))?,
            ripas_top: word(at!(ripas_top))?,
            ripas_value: byte(at!(ripas_value))?,
        })
    }

    fn handle(&self, cpu: usize, rec: u64, exit: &Exit) -> Result<Then, Problem> {
        if let Some(count) = self.counts.exits.get(usize::from(exit.reason)) {
            count.fetch_add(1, Relaxed);
        }
        match RmiRecExitReason::from_bits(exit.reason) {
            Ok(RmiRecExitReason::Sync) => self.synchronous(exit),
            Ok(RmiRecExitReason::RipasChange) => {
                self.counts.changes.fetch_add(1, Relaxed);
                let ripas = RmiRipas::from_bits(exit.ripas_value).ok();
                Ok(match self.change_ripas(rec, (exit.ripas_base, exit.ripas_top), ripas)? {
                    true => AGAIN,
                    // The realm is told how far it came, and of memory that it does not get more.
                    false => Then::Enter(RmiRecEnterFlags::RIPAS_RESPONSE),
                })
            }
            Ok(RmiRecExitReason::Psci) => self.psci(cpu, rec, exit),
            // There is none.
            Ok(RmiRecExitReason::HostCall) => {
                let run = self.recs[cpu].run.load(Relaxed);
                let at = offset_of!(RmiRecRun, enter) + offset_of!(RmiRecEnter, gprs);
                self.write(run, at, NOT_SUPPORTED.as_bytes())?;
                Ok(AGAIN)
            }
            _ => Err(Problem::Exit(exit.reason, exit.esr, 0)),
        }
    }

    fn synchronous(&self, exit: &Exit) -> Result<Then, Problem> {
        let ipa = (exit.hpfar & FIPA) << FIPA_SHIFT;
        let made = self.realm()?;
        match exit.esr >> EC_SHIFT & 0x3f {
            EC_WFX => Ok(AGAIN),
            EC_DATA | EC_FETCH if ipa & made.shared == 0 => {
                let granules = &mut *self.lock();
                let entry = self.entry(ipa, super::PAGE)?;
                match entry.ripas {
                    Some(RmiRipas::Destroyed) => Err(Problem::Destroyed(ipa)),
                    // Another REC may have been faster.
                    _ => {
                        self.give(granules, ipa)?;
                        // It would exit for ever.
                        match self.entry(ipa, super::PAGE)?.lacks_memory() {
                            true => Err(Problem::NotRam(ipa)),
                            false => Ok(AGAIN),
                        }
                    }
                }
            }
            EC_DATA => Ok(match self.share(&mut self.lock(), ipa)? {
                true => AGAIN,
                false => Then::Enter(RmiRecEnterFlags::INJECT_SEA),
            }),
            _ => Err(Problem::Exit(exit.reason, exit.esr, ipa)),
        }
    }

    fn psci(&self, cpu: usize, rec: u64, exit: &Exit) -> Result<Then, Problem> {
        let Ok(command) = PsciCommand::from_fid(exit.gprs[0] as u32) else {
            return Err(Problem::Exit(exit.reason, exit.gprs[0], exit.gprs[1]));
        };
        match command {
            PsciCommand::SystemOff => Ok(Then::End(Over::Off)),
            PsciCommand::SystemReset => Ok(Then::End(Over::Reset)),
            PsciCommand::CpuOff => Ok(self.leave(cpu)),
            PsciCommand::CpuOn | PsciCommand::AffinityInfo => {
                let target = named_by_realm(exit.gprs[1]).map(|mpidr| mpidr.index() as usize);
                let Some(target) = target.filter(|&target| target < self.plan.cpu_count) else {
                    return Err(Problem::Exit(exit.reason, exit.gprs[0], exit.gprs[1]));
                };
                self.name(rec, target, command == PsciCommand::CpuOn)?;
                Ok(AGAIN)
            }
            // It goes on at once: a suspend may end at any time.
            PsciCommand::CpuSuspend | PsciCommand::Features | PsciCommand::Version => Ok(AGAIN),
        }
    }

    /// What becomes of a REC that has turned itself off: to the RMM it was off before its exit was seen here, and another REC may have turned it on.
    fn leave(&self, cpu: usize) -> Then {
        let rec = &self.recs[cpu];
        let _power = self.wait_for(&self.power);
        if rec.was_named.swap(false, Relaxed) {
            return Then::RecMayBeOff;
        }
        rec.is_on.store(false, Relaxed);
        Then::RecOff
    }

    /// Completes a call of REC `calling` that names REC number `target`, and turns that one's CPU on.
    pub(super) fn name(&self, calling: u64, target: usize, is_turned_on: bool) -> Result<(), Problem> {
        let complete = |code: PsciReturnCode| {
            let target = self.recs[target].pa.load(Relaxed);
            self.call(RmiCommand::PsciComplete, &[calling, target, code.to_register()])
        };
        let rec = &self.recs[target];
        // Two that turn on the same one do so one after the other.
        let _power = self.wait_for(&self.power);
        if !is_turned_on || rec.is_on.load(Relaxed) {
            complete(PsciReturnCode::Success)?;
            // It is on, or runs again where it was about to be off: the RMM alone knows.
            rec.was_named.fetch_or(is_turned_on, Relaxed);
            return Ok(());
        }
        if let Err(why) = self.turn_on(target) {
            self.say(format_args!("policy: cpu {target} is not turned on: {why}"));
            complete(PsciReturnCode::Denied)?;
            return Ok(());
        }
        complete(PsciReturnCode::Success)?;
        rec.is_on.store(true, Relaxed);
        rec.go.store(true, Release);
        Ok(())
    }

    /// Has CPU number `target` come to [`Policy::run`].
    pub(super) fn turn_on(&self, target: usize) -> Result<(), NotOn> {
        let ((start, hz), rec) = (self.board.now(), &self.recs[target]);
        let mut comes = false;
        loop {
            if rec.is_parked.load(Acquire) {
                return Ok(());
            }
            if rec.is_unlike.load(Acquire) {
                return Err(NotOn::Unlike);
            }
            if !comes {
                match self.board.turn_on(target) {
                    TurnedOn::Comes => comes = true,
                    TurnedOn::Refused(code) => return Err(NotOn::Firmware(code)),
                    TurnedOn::NotOffYet => {}
                }
            }
            if self.board.now().0.wrapping_sub(start) > PATIENCE_SECONDS * hz {
                return Err(if comes { NotOn::Missing } else { NotOn::NotOff });
            }
            self.board.wait();
        }
    }

    /// What the run has come to.
    #[inline(never)]
    fn tell(&self) {
        self.audit();
        const REASONS: [&str; 7] = ["sync", "irq", "fiq", "psci", "ripas_change", "host_call", "serror"];
        for (name, count) in REASONS.iter().zip(&self.counts.exits) {
            let count = count.load(Relaxed);
            if count > 0 {
                self.say(format_args!("@cloven figure policy.exits_{name} {count} exits"));
            }
        }
        let counts = &self.counts;
        self.figure("given", counts.given.load(Relaxed), "pages");
        self.figure("taken", counts.taken.load(Relaxed), "pages");
        self.figure("ripas_changes", counts.changes.load(Relaxed), "changes");
        let hz = self.board.now().1;
        let unit = format_args!("ticks_at_{hz}_Hz");
        self.say(format_args!("@cloven figure policy.exits_took {} {unit}", counts.ticks.load(Relaxed)));
        let granules = self.lock().in_use();
        self.figure("granules_at_the_end", granules, "granules");
    }
}
