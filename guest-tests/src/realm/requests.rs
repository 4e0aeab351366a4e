//! The phases in which memory is shared and taken back: by the boot CPU alone, while others start, by two CPUs and by all; and what is then.

use core::fmt;
use core::sync::atomic::{
    AtomicU64, AtomicUsize,
    Ordering::{Relaxed, SeqCst},
};

use arrayvec::ArrayVec;
use guest_tests::cpus;
use guest_tests::entry::Cpu;
use guest_tests::memory::MAX_CPUS;
use guest_tests::report::Report;
use guest_tests::say;
use hyp::caps::lifecycle::Phase;
use hyp::caps::mailbox;
use hyp::machine::Machine;
use hyp::mapping::{Address, Pa, Range};
use hyp::realm::requests::{Requests, Subject, Tally, Worker};
use hyp::realm::{Cause, SharingError, Side};
use spin::{Mutex, Once};

use crate::checks;
use crate::host::{self, EXCHANGE};
use crate::own::{self, GATE, Own, PAGE, own};
use crate::roles::{ASK, FAILED, FP, TIMER, Work};

/// Requests of all phases, unless `cloven.requests` says otherwise.
const COUNT: u64 = 400;
/// As many there are in any case, so that each phase has one.
const LEAST: u64 = 4;
/// MiB that are shared at a time, about and at most, unless `cloven.shared` says otherwise.
const SHARED_MIB: u64 = 32;
/// Requests between CPU_ON and letting the CPU in.
const WINDOW: u64 = 8;
/// Turns in which a CPU must have said what it is, and that it is there: each does a request.
const PATIENCE: u64 = 100_000;

static REQUESTS: Once<Requests<'static>> = Once::new();
static WORKERS: Once<ArrayVec<Mutex<Worker>, MAX_CPUS>> = Once::new();
/// Requests of each CPU that is told to ask.
static EACH: AtomicU64 = AtomicU64::new(0);
/// Numbers of the mailboxes' tickets.
static TICKETS: AtomicU64 = AtomicU64::new(1);
/// How often what the host has refused is asked for again.
const TRIES: usize = 8;

/// Only the first failures are told in words.
static TOLD: AtomicUsize = AtomicUsize::new(0);
const MOST_TOLD: usize = 8;

/// The realm's memory, as its CPUs reach it.
struct Pages;

impl Pages {
    fn tell(what: fmt::Arguments<'_>) {
        static ONE: Mutex<()> = Mutex::new(());
        if TOLD.fetch_add(1, SeqCst) < MOST_TOLD {
            let _one = ONE.lock();
            say!("{what}");
        }
    }
}

impl Subject for Pages {
    fn set(&self, range: Range<Pa>, side: Side) -> bool {
        let shared = &own().shared;
        let mut result = match side {
            Side::Decrypted => shared.set_memory_decrypted(range),
            Side::Encrypted => shared.set_memory_encrypted(range),
        };
        // A host that would not may have changed its mind.
        for _ in 0..TRIES {
            result = match result {
                Err(SharingError::Unfinished(part)) if part.cause() == Cause::Rejected => shared.retry(part),
                other => other,
            };
        }
        if let Err(error) = &result {
            Self::tell(format_args!("{range} is not {side:?}: {error}"));
        }
        result.is_ok()
    }
    fn read(&self, address: u64) -> u64 {
        // SAFETY: free RAM, mapped as data, of which this CPU has claimed the page.
        unsafe { (address as *const u64).read_volatile() }
    }
    fn write(&self, address: u64, value: u64) {
        // SAFETY: as above.
        unsafe { (address as *mut u64).write_volatile(value) }
    }
    fn exchange(&self, range: Range<Pa>, seed: u64) -> bool {
        let answer = host::call(&own().rsi, EXCHANGE, [range.start().get(), range.size(), seed]);
        let holds = answer.is_some_and(|[found, ..]| found == 0);
        if !holds {
            Self::tell(format_args!("{range} is not exchanged: {answer:x?}"));
        }
        holds
    }
    fn pass(&self) {
        GATE.pass();
    }
}

fn requests() -> &'static Requests<'static> {
    REQUESTS.get().unwrap_or_else(|| panic!("nothing was prepared"))
}

/// The running CPU makes as many requests as it was told to.
pub fn ask() {
    ask_for(EACH.load(SeqCst));
}

fn ask_for(count: u64) {
    let worker = WORKERS.get().and_then(|workers| workers.get(Cpu::this().number));
    // It is this CPU's alone.
    if let Some(mut worker) = worker.and_then(Mutex::try_lock) {
        requests().ask(&Pages, &mut worker, count);
    }
}

struct Run<'a, 'm> {
    report: &'a mut Report,
    machine: &'a Machine<'m>,
    own: &'static Own,
    /// The numbers of the other CPUs that are there.
    present: ArrayVec<usize, MAX_CPUS>,
}

/// All phases, and what is left.
pub fn all(report: &mut Report, machine: &Machine<'_>, own: &'static Own) {
    let number = |name| machine.parameter(name).and_then(|text| text.parse().ok());
    let seed: u64 = number("cloven.seed").unwrap_or(1);
    let count = number("cloven.requests").unwrap_or(COUNT).max(LEAST);
    let most_shared = (number("cloven.shared").unwrap_or(SHARED_MIB) << 20) / PAGE;
    let made = Requests::new(&own.free, own.pages, most_shared as usize);
    let Some(made) = made else {
        report.check("realm.has_free_memory", false, format_args!("{:?}", own.free));
        return;
    };
    let requests = REQUESTS.call_once(|| made);
    let seed_of = |cpu: u64| seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ cpu << 40;
    WORKERS.call_once(|| {
        (0..cpus::all().len() as u64).map(|cpu| Mutex::new(Worker::new(seed_of(cpu)))).collect()
    });
    requests.prepare(&Pages);
    let (before, tables) = (own.census(), own.tables());
    say!("{} pages are asked for, in {before:?}", requests.pages());

    let mut run = Run { report, machine, own, present: ArrayVec::new() };
    let phase = count.div_ceil(4);
    ask_for(phase);
    run.settle("alone");
    for cpu in 1..cpus::all().len() {
        run.bring(cpu);
        if cpu == 1 {
            run.beside(phase);
            run.settle("two CPUs");
        }
    }
    let known = own.starting().phase() == Phase::Finalized;
    let detail = format_args!(
        "{} CPUs, level {} of FEAT_BBM",
        1 + run.present.len(),
        own.starting().set().bbm_level()
    );
    run.report.check("realm.all_cpus_are_known", known, detail);
    let made = requests.tally.made.iter().map(|made| made.load(SeqCst)).sum();
    run.beside(count.saturating_sub(made));
    run.settle("all CPUs");
    run.own_state();

    let still = requests.shared();
    requests.finish(&Pages);
    requests.look_at_all(&Pages);
    run.settle("everything encrypted");
    let (after, left) = (own.census(), requests.shared());
    let holds = after == before && own.tables() == tables && left == 0;
    let detail = format_args!("{after:?}, it was {before:?}, {still} pages were shared at last, {left} are");
    run.report.check("realm.map_is_canonical_again", holds, detail);
    let ram = run.own.free.iter().all(|part| checks::ripas_is_ram(run.own, *part));
    run.report.check("realm.everything_is_ram_again", ram, format_args!("by RSI_IPA_STATE_GET"));
    for cpu in core::mem::take(&mut run.present) {
        let mpidr = machine.cpus[cpu].mpidr;
        Work::begin(&[cpu], cpus::OFF).wait(u64::MAX, || {});
        let off = GATE.stand(|| cpus::is_off(mpidr));
        run.report.check("realm.cpu_goes_off", off, format_args!("CPU {mpidr:#x}"));
    }
    say!(
        "@cloven figure realm.requests {} requests",
        requests.tally.made.iter().map(|n| n.load(SeqCst)).sum::<u64>()
    );
    say!("@cloven figure realm.pages_changed {} pages", requests.tally.pages.load(SeqCst));
    say!("@cloven figure realm.gate_closings {} times", GATE.counts().0);
    say!("@cloven figure realm.tables {} tables", tables);
}

impl Run<'_, '_> {
    /// `count` requests by all CPUs that are there.
    fn beside(&self, count: u64) {
        let each = count / (1 + self.present.len() as u64);
        EACH.store(each, SeqCst);
        let others = Work::begin(&self.present, ASK);
        ask_for(count - each * self.present.len() as u64);
        others.wait(u64::MAX, || {});
    }

    /// Starts CPU number `cpu` while requests are made, lets it in, and waits until it says that it is there.
    fn bring(&mut self, cpu: usize) {
        let mpidr = self.machine.cpus[cpu].mpidr;
        let own = self.own;
        let tally = &requests().tally;
        let asked = || tally.made.iter().map(|made| made.load(SeqCst)).sum::<u64>();
        let before = asked();
        let lines = own::lines(cpu);
        let offered = mailbox::offer(&lines, TICKETS.fetch_add(1, SeqCst));
        let started = GATE.stand(|| cpus::on(mpidr, &cpus::all()[cpu]));
        let mut let_in = None;
        let mut came = false;
        if started.is_err() {
            offered.revoke();
        } else {
            ask_for(WINDOW);
            let mut patience = PATIENCE;
            let reported = offered.report(|| {
                ask_for(1);
                patience -= 1;
                patience > 0
            });
            if let Ok(reported) = reported {
                let result = own.let_in(cpu, &reported.registers);
                match result {
                    Ok(()) => {
                        reported.release();
                        came = Work::begin(&[cpu], cpus::GREET).wait(PATIENCE, || ask_for(1));
                    }
                    Err(_) => reported.deny(),
                }
                let_in = Some(result);
            }
        }
        let detail = format_args!(
            "CPU {mpidr:#x}: CPU_ON {started:?}, {let_in:?}, {} requests meanwhile",
            asked() - before
        );
        self.report.check("realm.cpu_starts_beside_requests", came, detail);
        if came {
            self.present.push(cpu);
            let on = GATE.stand(|| cpus::state(mpidr));
            let holds = on == Ok(smccc::psci::AffinityState::On);
            self.report.check("realm.cpu_is_on", holds, format_args!("CPU {mpidr:#x} {on:?}"));
        }
        self.settle("a CPU starts");
    }

    /// What became of the requests up to now.
    fn settle(&mut self, phase: &str) {
        let Tally { made, refused, busy, pages, looked, wrong, exchanges, lost } = &requests().tally;
        let of = |count: &AtomicU64| count.load(Relaxed);
        let [share, back] = [of(&made[0]), of(&made[1])];
        let detail = format_args!(
            "{phase}: {share} to share, {back} to take back, {} pages, refused {}, found none free {}",
            of(pages),
            of(refused),
            of(busy)
        );
        let holds = of(refused) == 0 && of(busy) == 0 && share + back > 0;
        self.report.check("realm.every_request_is_granted", holds, detail);
        let detail = format_args!("{phase}: {} looks, first wrong {:#x}", of(looked), of(wrong));
        self.report.check("realm.pages_hold_what_they_must", of(wrong) == 0 && of(looked) > 0, detail);
        let detail = format_args!("{phase}: {} exchanges, first lost {:#x}", of(exchanges), of(lost));
        self.report.check("realm.host_finds_what_is_shared", of(lost) == 0, detail);
    }

    /// What each CPU finds of its own state, all at once.
    fn own_state(&mut self) {
        for (name, order) in
            [("realm.fp_registers_keep_on_all_cpus", FP), ("realm.timer_fires_on_all_cpus", TIMER)]
        {
            FAILED.store(0, SeqCst);
            let others = Work::begin(&self.present, order);
            let own = match order {
                FP => checks::fp_keeps(),
                _ => checks::timer_fires().is_ok(),
            };
            others.wait(u64::MAX, || {});
            let failed = FAILED.load(SeqCst) | u64::from(!own);
            let detail = format_args!("{} CPUs, failed {failed:#b}", 1 + self.present.len());
            self.report.check(name, failed == 0, detail);
        }
    }
}
