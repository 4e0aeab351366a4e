//! What realms and their host call, told line by line as it is answered, for who asks on the command line.
//!
//! Invariants:
//! - What is told changes nothing: registers, tables and records are read, and never waited for but by who traces.
//! - The monitor's lock is not held while a line is written: RIPAS before a command and after it is noted under the lock that the command has, and written
//!   without it. Lines have a lock of their own, held for a few whole lines; nothing else is locked or waited for with it but the device, and who waits
//!   for it, or writes a line, counts as standing still for EL2's map, as who waits for the monitor's.
//! - The device is waited for with patience that ends. A line that it has not taken then, or only in part, is counted, and their number is a line before
//!   the next one: `trace lost N`.
//! - What is kept back to be told with its like is a run of the host's calls, or of changes of RIPAS; it is told before anything else of its CPU, before
//!   the CPU runs a realm or goes, when it is a second old and somebody tells something, and when a realm or the machine ends. If the hypervisor itself
//!   fails, or the machine is stopped from outside, what is kept back then is lost.
//! - The lines of a CPU are in the order of what they tell. Runs are kept beside each other only while one event of each follows one of the next, again
//!   and again; then each says which of how many it is.
//! - With nothing traced all of this is one look at a flag for each call.
//!
//! A line is `INTERFACE cpuN [realm=PA [rec=N]] @TICKS COMMAND NAME=VALUE… -> STATUS NAME=VALUE… [xCOUNT] [turn=NUMBER/RUNS]`, by the names of [`rmm_abi::words`]. Of a run
//! `NAME=FIRST..LAST` goes on in equal steps. RIPAS is `ripas cpuN realm=PA @TICKS START-END OLD -> NEW`. TICKS are of the counter, at the end of the (first) call.
//! A call of a realm that its host has a part in is told when it is answered, at the next RMI_REC_ENTER; one of PSCI when it goes to the host.

use core::cell::Cell;
use core::fmt::{self, Display, Formatter, Write};
use core::ops::ControlFlow;

use arrayvec::ArrayVec;
use hyp::el2::guests::Traced;
use hyp::el2::syndrome::Cause;
use hyp::el2::vcpu::{self, Running, Vcpu};
use hyp::mapping::{Address, Mmu, Pa};
use rmm_abi::v1_0::psci::{PsciCommand, PsciReturnCode};
use rmm_abi::v1_0::rmi::{self, RmiCommand, RmiRecExit, RmiRecExitReason, RmiRecMpidr, RmiRipas, RmiStatus};
use rmm_abi::v1_0::rsi::{self, RsiCommand, RsiStatus};
use rmm_abi::v1_0::{GRANULE_SIZE, NOT_SUPPORTED, PAGE_LEVEL, RmmRipas, entry_size, psci, split_sve_hint};
use rmm_abi::words::{Shouted, Words};
use rmm_abi::{Version, v1_0};
use spin::mutex::{SpinMutex, SpinMutexGuard};

use crate::monitor::{Locked, Monitor};
use crate::realm::Realm;
use crate::rec::{Pending, Rec};
use crate::rtt::ENTRIES;
use crate::world::World;

/// Writes text that ends in a line end. It is never called by two CPUs at once. An error if the device does not take it in some time: then part of it
/// may have been written. It touches nothing but the text, the image, the stack and the device.
pub type Sink = fn(fmt::Arguments<'_>) -> fmt::Result;

/// Registers that a command of the host's reads, and writes beside its status, at most.
const INPUTS: usize = 5;
const OUTPUTS: usize = 4;
/// Registers of a realm's call that are looked at: X0 and the arguments of the one with the most.
const CALL: usize = 11;
const _: () = assert!(RsiCommand::MeasurementExtend.inputs() < CALL);
const _: () = {
    let mut number = 0;
    while number < RmiCommand::ALL.len() {
        let command = RmiCommand::ALL[number];
        assert!(command.inputs() <= INPUTS && command.outputs() <= OUTPUTS);
        number += 1;
    }
};

/// `ESR_EL2.ISS` of an SMC: its immediate.
const IMMEDIATE: u64 = 0xffff;
/// What is looked at of a realm's call.
type Head = [u64; CALL];

/// CPUs of which something is kept back. If another one comes, what is kept of one of them is told.
const CPUS: usize = 8;
/// Runs of a CPU that are kept back.
const RUNS: usize = 4;

/// Where and when something is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// The CPU's number.
    pub cpu: usize,
    /// The counter.
    pub ticks: u64,
    /// Its ticks in a second.
    pub frequency: u64,
}

/// What is told, and to whom.
#[derive(Clone, Copy)]
pub struct Trace {
    of: Traced,
    to: Option<(Sink, &'static Kept)>,
}

impl Trace {
    /// Nothing is.
    pub const NOTHING: Self = Self { of: Traced::NOTHING, to: None };

    /// What `of` says, to `sink`. Nobody else uses `kept`.
    pub const fn new(of: Traced, sink: Sink, kept: &'static Kept) -> Self {
        Self { of, to: Some((sink, kept)) }
    }

    /// Whether the host's calls are looked at.
    #[inline(always)]
    pub(crate) fn of_host(&self) -> bool {
        self.of.rmi || self.of.ripas
    }

    /// Whether a realm's calls are.
    #[inline(always)]
    pub(crate) fn of_realms(&self) -> bool {
        self.of.rsi
    }
}

/// What is kept back, behind the lines' lock.
pub struct Kept(SpinMutex<Back>);

/// What is kept back.
struct Back {
    of: ArrayVec<OfCpu, CPUS>,
    /// Lines that the device has not taken, of which nothing was told yet.
    lost: u64,
}

impl Kept {
    /// Nothing yet.
    pub const fn new() -> Self {
        Self(SpinMutex::new(Back { of: ArrayVec::new_const(), lost: 0 }))
    }
}

impl Default for Kept {
    fn default() -> Self {
        Self::new()
    }
}

/// What is kept back of a CPU's: one run, or more of which each took an event in its turn.
struct OfCpu {
    cpu: usize,
    runs: ArrayVec<Run, RUNS>,
}

/// A call of the host's that was answered.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Call {
    command: RmiCommand,
    inputs: [u64; INPUTS],
    status: u64,
    outputs: [u64; OUTPUTS],
    exit: Option<Exit>,
}

/// What RIPAS was changed to.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Change {
    rd: u64,
    start: u64,
    end: u64,
    old: RmmRipas,
    new: RmmRipas,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Event {
    Called(Call),
    Changed(Change),
}

/// Events of one kind that go on in equal steps: told in one line.
struct Run {
    began: u64,
    count: u64,
    first: Event,
    last: Event,
}

/// Whether an argument that has gone on so far is at the next granule, block or table, in either direction.
fn is_step(by: u64) -> bool {
    let size = (by as i64).unsigned_abs();
    size == 0 || (1..=PAGE_LEVEL).any(|level| entry_size(level) == Some(size))
}

impl Run {
    /// Takes an event in, if it goes on as those before it.
    fn takes(&mut self, event: &Event) -> bool {
        match (&mut self.first, &mut self.last, event) {
            (Event::Changed(first), Event::Changed(last), Event::Changed(next)) => {
                let goes_on =
                    last.end == next.start && (last.rd, last.old, last.new) == (next.rd, next.old, next.new);
                if goes_on {
                    (first.end, last.end) = (next.end, next.end);
                }
                self.count += u64::from(goes_on);
                goes_on
            }
            (Event::Called(first), Event::Called(last), Event::Called(next)) => {
                let is_alike =
                    (last.command, last.status, last.exit) == (next.command, next.status, next.exit);
                let goes_on = |first: &[u64], last: &[u64], next: &[u64]| {
                    first.iter().zip(last).zip(next).all(|((&first, &last), &next)| {
                        let by = next.wrapping_sub(last);
                        // All so far were made of the first step.
                        let so_far = last.wrapping_sub(first);
                        is_step(by) && (self.count == 1 || so_far == by.wrapping_mul(self.count - 1))
                    })
                };
                let takes = is_alike
                    && goes_on(&first.inputs, &last.inputs, &next.inputs)
                    && goes_on(&first.outputs, &last.outputs, &next.outputs);
                if takes {
                    *last = *next;
                    self.count += 1;
                }
                takes
            }
            _ => false,
        }
    }

    /// Whether an event is of its kind: then it goes on here or nowhere.
    fn is_of(&self, event: &Event) -> bool {
        match (&self.last, event) {
            // A REC that is left for this and for that in turn has a run of each.
            (Event::Called(last), Event::Called(next)) => {
                (last.command, last.exit) == (next.command, next.exit)
            }
            (Event::Changed(_), Event::Changed(_)) => true,
            _ => false,
        }
    }
}

impl OfCpu {
    /// The run whose turn it is, of several.
    fn turn(&self) -> usize {
        let first = self.runs.first().map_or(0, |run| run.count);
        self.runs.iter().position(|run| run.count < first).unwrap_or(0)
    }

    /// Whether each run has one event so far: another may begin behind them.
    fn is_first_round(&self) -> bool {
        self.runs.iter().all(|run| run.count == 1)
    }
}

/// Why a REC stopped, as far as its host is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exit {
    reason: u8,
    details: [u64; 3],
}

impl Exit {
    /// Says why a REC was left, by the record for the host.
    #[cold]
    #[inline(never)]
    pub fn tell(record: &RmiRecExit, told: &mut Option<Self>) {
        *told = Some(Self::of(record));
    }

    fn of(record: &RmiRecExit) -> Self {
        let details = match RmiRecExitReason::from_bits(record.exit_reason) {
            Ok(RmiRecExitReason::Sync) => [record.esr, record.hpfar << 8, 0],
            Ok(RmiRecExitReason::Serror) => [record.esr, 0, 0],
            Ok(RmiRecExitReason::Psci) => [record.gprs[0], 0, 0],
            Ok(RmiRecExitReason::RipasChange) => {
                [record.ripas_base, record.ripas_top, record.ripas_value.into()]
            }
            Ok(RmiRecExitReason::HostCall) => [record.imm.into(), 0, 0],
            _ => [0; 3],
        };
        Self { reason: record.exit_reason, details }
    }

    /// Whether the realm has ended itself.
    fn is_of_the_end(&self) -> bool {
        self.reason == RmiRecExitReason::Psci.bits()
            && matches!(
                PsciCommand::from_fid(self.details[0] as u32),
                Ok(PsciCommand::SystemOff | PsciCommand::SystemReset)
            )
    }
}

impl Display for Exit {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let [a, b, c] = self.details;
        let reason = match RmiRecExitReason::from_bits(self.reason) {
            Ok(reason) => reason,
            Err(unknown) => return write!(f, "exit={:#x}", unknown.0),
        };
        f.write_str("exit=")?;
        reason.write(f)?;
        match reason {
            // Others than aborts have no address.
            RmiRecExitReason::Sync if is_abort(a) => write!(f, " esr={a:#x} ipa={b:#x}"),
            RmiRecExitReason::Sync => write!(f, " esr={a:#x}"),
            RmiRecExitReason::Serror => write!(f, " esr={a:#x}"),
            RmiRecExitReason::HostCall => write!(f, " imm={a:#x}"),
            RmiRecExitReason::Psci => match PsciCommand::from_fid(a as u32) {
                Ok(command) => write!(f, " function={}", command.name()),
                Err(_) => write!(f, " function={a:#x}"),
            },
            RmiRecExitReason::RipasChange => {
                write!(f, " base={a:#x} top={b:#x} ripas=")?;
                RmiRipas::from_bits(c as u8).as_ref().map_or(&c as &dyn Words, |ripas| ripas).write(f)
            }
            RmiRecExitReason::Irq | RmiRecExitReason::Fiq => Ok(()),
        }
    }
}

/// Whether a syndrome is of an abort of the realm's.
fn is_abort(esr: u64) -> bool {
    matches!(Cause::decode(esr), Cause::Abort(_))
}

/// Some words, each with a blank before it; what has gone wrong is kept for the end.
struct Named<'f, 'a> {
    f: &'f mut Formatter<'a>,
    result: fmt::Result,
}

impl Named<'_, '_> {
    fn tell(&mut self, name: &str, value: &dyn Words) {
        let Self { f, result } = self;
        *result = result.and_then(|()| write!(f, " {name}=")).and_then(|()| value.write(*f));
    }
}

/// The fields that `tell` tells.
fn fields(f: &mut Formatter<'_>, tell: impl FnOnce(&mut dyn FnMut(&'static str, &dyn Words))) -> fmt::Result {
    let mut named = Named { f, result: Ok(()) };
    tell(&mut |name, value| named.tell(name, value));
    named.result
}

type Tell = fn(RmiCommand, &[u64], rmm_abi::words::Each<'_>);

/// The fields of the first and the last of a run: each of them is a register.
fn fields_of_run(
    f: &mut Formatter<'_>,
    tell: Tell,
    command: RmiCommand,
    (first, last): (&[u64], &[u64]),
) -> fmt::Result {
    let mut named = Named { f, result: Ok(()) };
    let number = Cell::new(0);
    tell(command, first, &mut |name, value| {
        named.tell(name, value);
        let mine = number.replace(number.get() + 1);
        if first.get(mine) == last.get(mine) {
            return;
        }
        let mut other = 0;
        tell(command, last, &mut |_, value| {
            if other == mine {
                let Named { f, result } = &mut named;
                *result = result.and_then(|()| f.write_str("..")).and_then(|()| value.write(*f));
            }
            other += 1;
        });
    });
    named.result
}

/// A line of a CPU's run, which is one of so many that go in turn.
struct LineOfRun<'a>(usize, &'a Run, Option<(usize, usize)>);

impl Display for LineOfRun<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(cpu, Run { began, count, first, last }, turn) = self;
        match (first, last) {
            (Event::Called(first), Event::Called(last)) => {
                write!(f, "rmi cpu{cpu} @{began} {}", first.command.name())?;
                fields_of_run(f, rmi::input::tell, first.command, (&first.inputs, &last.inputs))?;
                f.write_str(" -> ")?;
                let status = RmiStatus::from_bits(first.status);
                match status {
                    Ok(status) => {
                        f.write_str("RMI_")?;
                        Shouted(status).write(f)?;
                    }
                    Err(unknown) => unknown.0.write(f)?,
                }
                // Some have outputs with an error too.
                if status == Ok(RmiStatus::Success) || first.outputs != [0; OUTPUTS] {
                    fields_of_run(f, rmi::output::tell, first.command, (&first.outputs, &last.outputs))?;
                }
                if let Some(exit) = first.exit {
                    write!(f, " {exit}")?;
                }
                if *count > 1 {
                    write!(f, " x{count}")?;
                }
                match turn {
                    Some((number, runs)) => write!(f, " turn={number}/{runs}"),
                    None => Ok(()),
                }
            }
            (Event::Changed(first), _) => {
                let Change { rd, start, end, old, new } = first;
                write!(f, "ripas cpu{cpu} realm={rd:#x} @{began} {start:#x}-{end:#x} ")?;
                Shouted(old).write(f)?;
                f.write_str(" -> ")?;
                Shouted(new).write(f)
            }
            _ => Ok(()),
        }
    }
}

/// Which REC has called.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    pub rd: Pa,
    pub mpidr: RmiRecMpidr,
}

/// A line of a realm's call.
struct LineOfRealm<'a> {
    moment: Moment,
    caller: Caller,
    made: &'a Made,
    /// X0 and up, unless the host has to answer.
    after: Option<Head>,
}

impl Display for LineOfRealm<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { moment: Moment { cpu, ticks, .. }, caller, made, after } = *self;
        let Made { immediate, head: before } = *made;
        let (fid, _) = split_sve_hint(before[0] as u32);
        let known = (immediate == 0).then_some(fid);
        let rsi = known.and_then(|fid| RsiCommand::from_fid(fid).ok());
        let psci = known.and_then(|fid| PsciCommand::from_fid(fid).ok());
        let interface = match (rsi, psci) {
            (Some(_), _) => "rsi",
            (_, Some(_)) => "psci",
            _ => "smccc",
        };
        let (rd, rec) = (caller.rd.get(), caller.mpidr.index());
        write!(f, "{interface} cpu{cpu} realm={rd:#x} rec={rec} @{ticks} ")?;
        let [_, arguments @ ..] = &before;
        match (rsi, psci) {
            (Some(command), _) => {
                f.write_str(command.name())?;
                fields(f, |each| rsi::input::tell(command, arguments, each))?;
            }
            (_, Some(command)) => {
                f.write_str(command.name())?;
                fields(f, |each| psci::tell(command, arguments, each))?;
            }
            _ if immediate != 0 => write!(f, "SMC#{immediate:#x} x0={:#x}", before[0])?,
            _ => write!(f, "{fid:#x} x1={:#x} x2={:#x} x3={:#x}", before[1], before[2], before[3])?,
        }
        f.write_str(" -> ")?;
        let Some([status, outputs @ ..]) = &after else { return f.write_str("HOST") };
        match (rsi, psci) {
            (Some(command), _) => {
                let known = RsiStatus::from_bits(*status);
                match known {
                    Ok(known) => {
                        f.write_str("RSI_")?;
                        known.write(f)?;
                    }
                    Err(unknown) => unknown.0.write(f)?,
                }
                let count = command.outputs().min(outputs.len());
                if known == Ok(RsiStatus::Success) || outputs[..count].iter().any(|&output| output != 0) {
                    fields(f, |each| rsi::output::tell(command, outputs, each))?;
                }
                Ok(())
            }
            (_, Some(PsciCommand::Version)) => match Version::from_bits(*status) {
                Ok(version) => version.write(f),
                Err(unknown) => unknown.0.write(f),
            },
            (_, Some(_)) => match PsciReturnCode::from_bits(*status as i64) {
                Ok(code) => {
                    f.write_str("PSCI_")?;
                    code.write(f)
                }
                Err(unknown) => unknown.0.write(f),
            },
            _ if *status == NOT_SUPPORTED => f.write_str("NOT_SUPPORTED"),
            _ => status.write(f),
        }
    }
}

/// RIPAS of the entries of one RTT from some address on, in words of two bits.
struct Entries {
    rd: u64,
    start: u64,
    unit: u64,
    count: usize,
    values: [u64; Entries::WORDS],
}

impl Entries {
    const PER_WORD: usize = 32;
    const WORDS: usize = ENTRIES as usize / Self::PER_WORD;

    /// From `start` to `top`, or to the end of the RTT in which a walk to `start` ends.
    fn of<M: Mmu>(realm: &Realm<M>, start: u64, top: u64) -> Self {
        let mut entries =
            Self { rd: realm.rd.get(), start, unit: GRANULE_SIZE, count: 0, values: [0; Self::WORDS] };
        let _ = realm.scan(start, PAGE_LEVEL, |walk| {
            if entries.count == ENTRIES as usize || walk.start >= top {
                return ControlFlow::Break(());
            }
            if entries.count == 0 {
                (entries.start, entries.unit) = (walk.start, walk.end() - walk.start);
            }
            entries.put(entries.count, walk.rtte.ripas);
            entries.count += 1;
            ControlFlow::Continue(())
        });
        entries
    }

    /// The same addresses now, in the same units: one entry may be of many.
    fn again<M: Mmu>(&self, realm: &Realm<M>) -> Self {
        let mut now = Self { ..*self };
        let _ = realm.scan(self.start, PAGE_LEVEL, |walk| {
            let place =
                |at: u64| (at.saturating_sub(self.start).div_ceil(self.unit) as usize).min(self.count);
            (place(walk.start)..place(walk.end())).for_each(|number| now.put(number, walk.rtte.ripas));
            match place(walk.end()) == self.count {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        now
    }

    fn put(&mut self, number: usize, ripas: RmmRipas) {
        let (word, bit) = (number / Self::PER_WORD, 2 * (number % Self::PER_WORD));
        self.values[word] = self.values[word] & !(3 << bit) | (ripas as u64) << bit;
    }

    fn at(&self, number: usize) -> RmmRipas {
        const ALL: [RmmRipas; 4] = [RmmRipas::Empty, RmmRipas::Ram, RmmRipas::Destroyed, RmmRipas::Dev];
        ALL[(self.values[number / Self::PER_WORD] >> (2 * (number % Self::PER_WORD)) & 3) as usize]
    }

    /// What has become another one in `now`.
    fn changes(&self, now: &Self, mut each: impl FnMut(Change)) {
        let mut number = 0;
        let count = self.count;
        while number < count {
            let from = number;
            let (old, new) = (self.at(from), now.at(from));
            while number < count && (self.at(number), now.at(number)) == (old, new) {
                number += 1;
            }
            if old != new {
                let at = |number: usize| self.start + number as u64 * self.unit;
                each(Change { rd: self.rd, start: at(from), end: at(number), old, new });
            }
        }
    }
}

/// What is known of a call of the host's that is told.
pub struct Noted {
    inputs: [u64; INPUTS],
    /// The realm and the addresses whose RIPAS it may change, if that is told.
    range: Option<(u64, u64, u64)>,
    /// RIPAS there before, and after.
    ripas: Option<(Entries, Entries)>,
    /// Why the REC was left that it has entered.
    pub(crate) exit: Option<Exit>,
}

impl Noted {
    /// Looks at RIPAS before the command does anything, under the lock that it has.
    #[cold]
    #[inline(never)]
    pub(crate) fn look<W: World>(&mut self, lock: &Locked<'_, W>) {
        self.ripas = self.range.and_then(|(rd, start, top)| {
            let before = Entries::of(lock.realm(rd)?, start, top);
            let after = Entries { ..before };
            Some((before, after))
        });
    }

    /// Looks again once it was done, under the same lock.
    #[cold]
    #[inline(never)]
    pub(crate) fn look_again<W: World>(&mut self, lock: &Locked<'_, W>) {
        if let Some((before, after)) = &mut self.ripas
            && let Some(realm) = lock.realm(before.rd)
        {
            *after = before.again(realm);
        }
    }
}

/// The realm and the range whose RIPAS a command may change.
fn range_of_ripas(command: RmiCommand, inputs: &[u64; INPUTS]) -> Option<(u64, u64, u64)> {
    use RmiCommand::*;
    use v1_0::rmi::input;
    let x = inputs;
    let page = |rd, ipa: u64| (rd, ipa, ipa.saturating_add(GRANULE_SIZE));
    Some(match command {
        DataCreate => {
            let input = input::DataCreate::from_registers(*x);
            page(input.rd, input.ipa)
        }
        DataCreateUnknown => {
            let input = input::DataCreateUnknown::from_registers([x[0], x[1], x[2]]);
            page(input.rd, input.ipa)
        }
        DataDestroy => {
            let input = input::DataDestroy::from_registers([x[0], x[1]]);
            page(input.rd, input.ipa)
        }
        RttDestroy => {
            let input = input::RttDestroy::from_registers([x[0], x[1], x[2]]);
            let size = entry_size(input.level)?.saturating_mul(ENTRIES);
            (input.rd, input.ipa, input.ipa.saturating_add(size))
        }
        RttInitRipas => {
            let input = input::RttInitRipas::from_registers([x[0], x[1], x[2]]);
            (input.rd, input.base, input.top)
        }
        RttSetRipas => {
            let input = input::RttSetRipas::from_registers([x[0], x[1], x[2], x[3]]);
            (input.rd, input.base, input.top)
        }
        _ => return None,
    })
}

/// A call that a realm has made.
pub(crate) struct Made {
    /// The immediate of the SMC.
    immediate: u64,
    /// X0 and the arguments.
    head: Head,
}

impl Made {
    /// If that is why the realm stopped.
    pub fn of(running: &Running, exit: &vcpu::Exit) -> Option<Self> {
        let vcpu::Exit::Synchronous { esr, .. } = *exit else { return None };
        let made = Self { immediate: esr & IMMEDIATE, head: head(&running.x) };
        (Cause::decode(esr) == Cause::Smc).then_some(made)
    }

    /// One that is answered at the entry that comes, if there is one.
    #[cold]
    #[inline(never)]
    pub fn before(rec: &Rec) -> Option<Self> {
        let waits = matches!(rec.pending.get(), Pending::RipasChange | Pending::HostCall(_));
        waits.then(|| Self { immediate: 0, head: head(&rec.vcpu.borrow().x) })
    }
}

fn head(x: &[u64; 31]) -> Head {
    core::array::from_fn(|number| x[number])
}

/// Where lines go.
struct Out<'m, W> {
    world: &'m W,
    sink: Sink,
}

impl<W: World> Out<'_, W> {
    /// Writes a line, of which nothing is in a granule; `lost` lines before it were not taken.
    fn write(&self, lost: &mut u64, line: fmt::Arguments<'_>) {
        let count = *lost;
        let is_taken = self.world.stand(|| {
            if count != 0 {
                // Part of one may be there.
                (self.sink)(format_args!("\ntrace lost {count}\n"))?;
            }
            let is_taken = (self.sink)(format_args!("{line}\n")).is_ok();
            Ok::<_, fmt::Error>(is_taken)
        });
        *lost = match is_taken {
            Ok(true) => 0,
            Ok(false) => 1,
            Err(_) => count + 1,
        };
    }
}

/// The lines' lock, to one CPU.
struct Lines<'m, W> {
    out: Out<'m, W>,
    kept: SpinMutexGuard<'static, Back>,
    moment: Moment,
}

impl<W: World> Lines<'_, W> {
    /// Tells what is kept of the CPU at this place in the list, but for the last `but` runs.
    fn tell_at(&mut self, place: usize, but: usize) {
        let Back { of, lost } = &mut *self.kept;
        let Some(OfCpu { cpu, runs }) = of.get_mut(place) else { return };
        let count = runs.len();
        let is_in_turn = count > 1 && runs[0].count > 1;
        for (number, run) in runs.drain(..count.saturating_sub(but)).enumerate() {
            let turn = is_in_turn.then_some((number + 1, count));
            self.out.write(lost, format_args!("{}", LineOfRun(*cpu, &run, turn)));
        }
    }

    fn own(&self) -> Option<usize> {
        self.kept.of.iter().position(|of| of.cpu == self.moment.cpu)
    }

    /// Tells what is kept of the running CPU's.
    fn tell_own(&mut self) {
        if let Some(place) = self.own() {
            self.tell_at(place, 0);
        }
    }

    /// Tells all that is kept.
    fn tell_all(&mut self) {
        (0..self.kept.of.len()).for_each(|place| self.tell_at(place, 0));
    }

    /// Tells what was kept for a second.
    fn tell_old(&mut self) {
        let Moment { ticks, frequency, .. } = self.moment;
        for place in 0..self.kept.of.len() {
            let oldest = self.kept.of[place].runs.first();
            // Another CPU's may have begun after this one has looked at the counter.
            if oldest.is_some_and(|run| ticks.saturating_sub(run.began) > frequency) {
                self.tell_at(place, 0);
            }
        }
    }

    /// Keeps an event with its like, or for what comes.
    fn keep(&mut self, event: Event) {
        let place = match self.own() {
            Some(place) => place,
            None => {
                if self.kept.of.is_full() {
                    self.tell_at(0, 0);
                    self.kept.of.remove(0);
                }
                self.kept.of.push(OfCpu { cpu: self.moment.cpu, runs: ArrayVec::new() });
                self.kept.of.len() - 1
            }
        };
        let own = &mut self.kept.of[place];
        let (turn, is_first_round) = (own.turn(), own.is_first_round());
        if own.runs.get_mut(turn).is_some_and(|run| run.takes(&event)) {
            return;
        }
        if is_first_round && own.runs.last_mut().is_some_and(|run| run.takes(&event)) {
            // Those before it take no turns with it.
            return self.tell_at(place, 1);
        }
        if !is_first_round || own.runs.is_full() || own.runs.iter().any(|run| run.is_of(&event)) {
            self.tell_at(place, 0);
        }
        let began = self.moment.ticks;
        self.kept.of[place].runs.push(Run { began, count: 1, first: event, last: event });
    }
}

impl<W: World> Monitor<W> {
    fn lines(&self) -> Option<Lines<'_, W>> {
        let (sink, kept) = self.trace.to?;
        let moment = self.world.moment();
        let out = Out { world: &self.world, sink };
        loop {
            if let Some(kept) = kept.0.try_lock() {
                return Some(Lines { out, kept, moment });
            }
            self.world.wait();
        }
    }

    /// Tells what was kept back: the machine, or this CPU, may be about to go.
    pub fn tell_kept(&self) {
        if self.trace.of.is_something()
            && let Some(mut lines) = self.lines()
        {
            lines.tell_all();
        }
    }

    /// What is to be known of a call of the host's before it is answered.
    #[cold]
    #[inline(never)]
    pub(crate) fn before_call(&self, command: RmiCommand, x: &[u64; 18]) -> Noted {
        let inputs = core::array::from_fn(|number| x[1 + number]);
        if command == RmiCommand::RecEnter
            && let Some(mut lines) = self.lines()
        {
            // What comes may take long. But entries that stop in the same ways are told together.
            let is_enter =
                |run: &Run| matches!(run.first, Event::Called(Call { command: RmiCommand::RecEnter, .. }));
            let is_all = |place: usize| lines.kept.of[place].runs.iter().all(is_enter);
            if !lines.own().is_none_or(is_all) {
                lines.tell_own();
            }
            lines.tell_old();
        }
        let range = range_of_ripas(command, &inputs).filter(|_| self.trace.of.ripas);
        Noted { inputs, range, ripas: None, exit: None }
    }

    /// Tells a call of the host's that was answered: X0 and up are the answer.
    #[cold]
    #[inline(never)]
    pub(crate) fn after_call(&self, command: RmiCommand, noted: &Noted, x: &[u64; 18]) {
        let exit = noted.exit;
        let Some(mut lines) = self.lines() else { return };
        if self.trace.of.rmi {
            let mut inputs = noted.inputs;
            inputs[command.inputs()..].fill(0);
            let outputs = core::array::from_fn(|number| x[1 + number]);
            lines.keep(Event::Called(Call { command, inputs, status: x[0], outputs, exit }));
        }
        if let Some((was, now)) = &noted.ripas {
            was.changes(now, |change| lines.keep(Event::Changed(change)));
        }
        if exit.is_some_and(|exit| exit.is_of_the_end()) || command == RmiCommand::RealmDestroy {
            lines.tell_all();
        }
        lines.tell_old();
    }

    /// Tells a call of a realm's that was answered: the realm goes on with the answer in its registers.
    #[cold]
    #[inline(never)]
    pub(crate) fn tell_answered(&self, caller: Caller, made: &Made, running: &Running) {
        self.tell_made(caller, made, Some(&running.x));
    }

    /// Tells one that was answered at an entry.
    #[cold]
    #[inline(never)]
    pub(crate) fn tell_completed(&self, caller: Caller, made: &Made, vcpu: &Vcpu) {
        self.tell_made(caller, made, Some(&vcpu.x));
    }

    /// Tells the last call before an exit, if that is the host's to answer now: others are told when they are answered, or made again.
    #[cold]
    #[inline(never)]
    pub(crate) fn tell_passed_on(&self, caller: Caller, made: &Made, record: &RmiRecExit) {
        if record.exit_reason == RmiRecExitReason::Psci.bits() {
            self.tell_made(caller, made, None);
        }
    }

    fn tell_made(&self, caller: Caller, made: &Made, after: Option<&[u64; 31]>) {
        let Some(mut lines) = self.lines() else { return };
        lines.tell_own();
        lines.tell_old();
        // A copy: they may be in a granule, which nobody reads who stands.
        let line = LineOfRealm { moment: lines.moment, caller, made, after: after.map(head) };
        let Lines { out, kept, .. } = &mut lines;
        out.write(&mut kept.lost, format_args!("{line}"));
    }
}
