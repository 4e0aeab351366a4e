//! The phases: before any other CPU, while they start, when all are known, when others come late, and when one comes back.

use core::sync::atomic::{AtomicU64, Ordering::SeqCst};

use arm_sysregs::el0::accessors::read_cntvct_el0;
use arrayvec::ArrayVec;
use guest_tests::cpus;
use guest_tests::memory::MAX_CPUS;
use guest_tests::report::Report;
use guest_tests::say;
use hyp::caps::lifecycle::Phase;
use hyp::caps::mailbox;
use hyp::caps::policy::Late;
use hyp::machine::{MAX_RANGES, Machine};
use hyp::mapping::{Address, Pa, Range};
use hyp::trial::requests::{self, PAGES, REGION, Request, Timed};
use hyp::trial::{DUMP, PHASES, Random};
use smccc::psci::error::Error as PsciError;

use crate::expect;
use crate::own::{self, GATE, Own};
use crate::pages::{self, Pages, REQUESTS};
use crate::roles::{self, TALLY, call};

/// Requests of the boot CPU in each phase, unless `cloven.requests` says otherwise; others that ask make as many as they can meanwhile.
const COUNT: u64 = 1000;
/// Requests of the boot CPU between CPU_ON and letting the CPU in.
const WINDOW: u64 = 8;
/// Turns in which a CPU must have said what it is, and that it is there: each does a request, or is short.
const PATIENCE: u64 = 1_000_000;
/// The call that says that no other CPU will come.
const FINALIZE: u32 = 0xc600_0002;
/// The page of which each kind of request is timed.
const TIMED: usize = 5;

/// Numbers of the mailboxes' tickets.
static TICKETS: AtomicU64 = AtomicU64::new(1);

struct Run<'a, 'm> {
    report: &'a mut Report,
    machine: &'a Machine<'m>,
    own: &'static Own,
    /// The numbers of the other CPUs that are there.
    present: ArrayVec<usize, MAX_CPUS>,
    random: Random,
    count: u64,
    /// The least level of those who were let in.
    least: u8,
    /// The number of beginnings, which says who reads where.
    round: usize,
}

/// All phases that this machine has.
pub fn all(report: &mut Report, machine: &Machine<'_>, own: &'static Own) {
    let number = |name| machine.parameter(name).and_then(|text| text.parse().ok());
    let seed = number("cloven.seed").unwrap_or(1);
    let count = number("cloven.requests").unwrap_or(COUNT);
    roles::seed(seed);
    let [at_el1, at_el2] = own.regions;
    // SAFETY: free RAM, mapped as data, for this alone.
    unsafe { pages::prepare(at_el1) };
    let ready = call(requests::PREPARE, [at_el2, 0, 0])[0] == 0;
    report.check("lifecycle.regions_are_ready", ready, format_args!("{at_el1:#x}, {at_el2:#x}"));
    let fits = machine.cpus.len() <= MAX_CPUS;
    report.check(
        "lifecycle.there_is_room",
        fits,
        format_args!("{} CPUs, {:?}", machine.cpus.len(), own.told),
    );
    if !ready || !fits {
        return;
    }
    let least = own.starting().set().bbm_level();
    let (random, present) = (Random::new(seed), ArrayVec::new());
    let mut run = Run { report, machine, own, present, random, count, least, round: 0 };

    run.time_requests();
    run.ask();
    run.settle(0);
    let on_time = own.told.finalize.clamp(1, machine.cpus.len());
    if on_time > 1 {
        for cpu in 1..on_time {
            run.bring(cpu, false);
        }
        run.settle(1);
    }
    if own.starting().phase() != Phase::Finalized {
        own.finalize();
        call(FINALIZE, [0; 3]);
    }
    run.ask();
    run.settle(2);
    if on_time < machine.cpus.len() {
        for cpu in on_time..machine.cpus.len() {
            run.bring(cpu, true);
        }
        run.ask();
        run.settle(3);
    }
    if let Some(cpu) = run.present.pop() {
        run.send_off(cpu);
        run.bring(cpu, true);
        run.settle(4);
    }
}

impl Run<'_, '_> {
    /// One request of each kind while no other CPU runs: what the first one costs, which splits a block, and what each costs then.
    fn time_requests(&mut self) {
        let mut time = |name: &str, request: Request| {
            let timed = Timed::new(&Pages, || read_cntvct_el0().bits());
            let made = REQUESTS.ask_one(&timed, request, TIMED, 1);
            let el1 = timed.ticks();
            let [refused, el2, ..] = call(requests::ASK_ONE, [request as u64, TIMED as u64, 1]);
            if made == Some(true) && refused == 0 {
                say!("@cloven figure early.el1.{name} {el1} ticks");
                say!("@cloven figure early.el2.{name} {el2} ticks");
            } else {
                self.report.check("lifecycle.first_requests_succeed", false, format_args!("{name}"));
            }
        };
        time("first", Request::ReadOnly);
        for request in Request::ALL {
            time(request.name(), request);
        }
        time("valid_again", Request::Valid);
    }

    /// The boot CPU's requests of a phase, while the others read and ask by turns.
    fn ask(&mut self) {
        let rounds = if self.count == 0 { 0 } else { 3 };
        for _ in 0..rounds {
            self.round += 1;
            let (random, count) = (&mut self.random, self.count.div_ceil(3));
            roles::beside(&self.present, self.round, || (0..count).for_each(|_| roles::ask(random)));
        }
    }

    /// Starts CPU number `cpu` while requests are made, lets it in at EL1, and waits until it says that it is there.
    fn bring(&mut self, cpu: usize, late: bool) {
        let Self { machine, own, least, .. } = *self;
        let mpidr = machine.cpus[cpu].mpidr;
        let level = own.told.levels.map_or(least, |(_, others)| others);
        let is_denied = late && own.told.late == Late::Deny && level < least;
        self.round += 1;
        let random = &mut self.random;
        let mut requests = 0;
        let count = self.count;
        let mut ask = || {
            if count > 0 {
                roles::ask(random);
                requests += 1;
            }
        };
        let busy = if count > 0 { &self.present[..] } else { &[] };
        let (started, let_in, came) = roles::beside(busy, self.round, || {
            let lines = own::lines(cpu);
            let offered = mailbox::offer(&lines, TICKETS.fetch_add(1, SeqCst));
            let started = GATE.stand(|| cpus::on(mpidr, &cpus::all()[cpu]));
            if started.is_err() {
                offered.revoke();
                return (started, None, false);
            }
            (0..WINDOW).for_each(|_| ask());
            let mut patience = PATIENCE;
            let reported = offered.report(|| {
                ask();
                patience -= 1;
                patience > 0
            });
            let Ok(reported) = reported else { return (started, None, false) };
            let let_in = own.let_in(cpu, &reported.registers);
            if let_in.is_err() {
                reported.deny();
                return (started, Some(let_in), false);
            }
            reported.release();
            (started, Some(let_in), roles::greet(cpu, PATIENCE, &mut ask))
        });
        let detail = format_args!(
            "CPU {mpidr:#x}: CPU_ON {started:?}, at EL1 {let_in:?}, {requests} requests meanwhile"
        );
        if is_denied {
            let denied = started == Err(PsciError::Denied) && cpus::is_off(mpidr);
            self.report.check("lifecycle.late_weaker_cpu_is_denied", denied, detail);
            return;
        }
        self.report.check("lifecycle.cpu_is_let_in", came, detail);
        if came {
            self.least = least.min(level);
            self.present.push(cpu);
        }
    }

    /// Has CPU number `cpu` turn itself off.
    fn send_off(&mut self, cpu: usize) {
        let mpidr = self.machine.cpus[cpu].mpidr;
        roles::send_off(cpu);
        let off = GATE.stand(|| cpus::is_off(mpidr));
        mailbox::revoke(&own::lines(cpu));
        self.report.check("lifecycle.cpu_goes_off", off, format_args!("CPU {mpidr:#x}"));
    }

    /// What every CPU sees at the end of phase number `phase`, and what both maps consist of.
    fn settle(&mut self, phase: usize) {
        let name = PHASES[phase];
        roles::all_look(&self.present);
        let take = |of: &[AtomicU64; 2]| [of[0].swap(0, SeqCst), of[1].swap(0, SeqCst)];
        let [made, refused] = [take(&TALLY.made), take(&TALLY.refused)];
        let holds = refused == [0; 2] && (self.count == 0 || !made.contains(&0));
        let detail = format_args!("{name}: made at EL1 and EL2 {made:?}, refused {refused:?}");
        self.report.check("lifecycle.every_request_succeeds", holds, detail);
        let [rounds, wrong] = [take(&TALLY.rounds), take(&TALLY.wrong)];
        let looks = TALLY.looks.swap(0, SeqCst);
        let holds = wrong == [0; 2] && looks == self.present.len() as u64 + 1;
        let [valid, writable, executable] = REQUESTS.counts();
        let detail = format_args!(
            "{name}: {looks} CPUs looked at {PAGES} pages ({valid} valid, {writable} writable, {executable} executable), readers made \
             {rounds:?} rounds, wrong {wrong:x?}"
        );
        self.report.check("lifecycle.every_cpu_sees_what_was_asked_for", holds, detail);

        let all_are_known = self.own.starting().phase() == Phase::Finalized;
        let blocks = expect::has_blocks(self.own.told.policy, self.least, all_are_known);
        let [_, known, level, el2_tables] = call(requests::KNOWN, [0; 3]);
        let set = self.own.map.map().capabilities().bbm_level();
        let holds = [u64::from(set), level] == [self.least.into(); 2] && (known == 2) == all_are_known;
        let detail = format_args!(
            "{name}: level {set} at EL1, {level} at EL2, expected {}; all are known {all_are_known}, at EL2 {}",
            self.least,
            known == 2
        );
        self.report.check("lifecycle.the_set_is_what_all_have", holds, detail);
        let [at_el1, at_el2] = self.own.regions;
        let ram = &self.own.ram;
        let own = |part| self.own.leaves(part);
        self.compare(name, "lifecycle.el1_map_is_as_the_table_says", ram, at_el1, blocks, own);
        let ram: ArrayVec<Range<Pa>, { 4 * MAX_RANGES }> =
            self.machine.memory.iter().flat_map(|bank| bank.minus(&self.machine.no_map)).collect();
        let el2 = |part: Range<Pa>| call(requests::CENSUS, [part.start().get(), part.size(), 0]);
        self.compare(name, "lifecycle.el2_map_is_as_the_table_says", &ram, at_el2, blocks, el2);
        say!("@cloven figure phase{phase}.el1_tables {} bytes", self.own.tables());
        say!("@cloven figure phase{phase}.el2_tables {el2_tables} bytes");
        self.own.dump(self.machine, name);
        call(DUMP, [phase as u64 + 2, 0, 0]);
    }

    /// Compares the leaves of `ram` but for the region at `region` with the largest there are, or with pages.
    fn compare(
        &mut self,
        phase: &str,
        check: &str,
        ram: &[Range<Pa>],
        region: u64,
        blocks: bool,
        leaves: impl Fn(Range<Pa>) -> [u64; 4],
    ) {
        let region = Range::new(region, REGION).unwrap_or_else(|error| panic!("{error}"));
        let (mut found, mut expected) = ([0; 4], [0; 4]);
        for part in ram.iter().flat_map(|part| part.minus(core::slice::from_ref(&region))) {
            let pairs = [(&mut found, leaves(part)), (&mut expected, expect::leaves(part, blocks))];
            for (sum, of) in pairs {
                sum.iter_mut().zip(of).for_each(|(sum, of)| *sum += of);
            }
        }
        let kind = if blocks { "blocks" } else { "pages" };
        let detail =
            format_args!("{phase}: {kind}, {found:?} of 512 GiB, 1 GiB, 2 MiB, 4 KiB, expected {expected:?}");
        self.report.check(check, found == expected, detail);
    }
}
