//! Of test builds: calls with which the host changes its own stage 2, or takes part in a trial of EL2's own map, and what EL2 costs the
//! host.
//!
//! Invariant: only RAM of the host can be changed, and what the host can do with it, but for writes that it asks to lose. EL2 runs code
//! and keeps data in what is lent to its trial, where the host can write: these builds trust their host.

use core::arch::asm;
use core::ops::ControlFlow;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arm_sysregs::el0::accessors::read_cntpct_el0;
use arm_sysregs::el1::accessors::{read_par_el1, write_par_el1};
use arm_sysregs::el1::registers::ParEl1;
use log::{debug, info};
use spin::{Mutex, Once};

use super::boot::{self, El2Map};
use super::cache;
use super::host::{Host, REPAINTED};
use super::parties::Parties;
use super::percpu::PerCpu;
use super::quiet::ENTRY;
use super::switch::{Streaming, World};
use super::syndrome::Cause;
use super::vcpu::{Answer, Exit, Running, Vcpu, answer_register};
use crate::caps::lifecycle::Phase;
use crate::caps::policy::Policy;
use crate::mapping::{
    Address, Attributes, Capabilities, Change as MapChange, Counts, El2, Entry, GRANULE, Leaves, Mmu, Pa,
    Range, Regime, Stage2, Va,
};
use crate::stage2;
use crate::trial::guest::{ADD, Flags, RUN};
use crate::trial::requests::{
    self, Asked, BLOCK_PAGES, LASTING, PAGES, REGION, Request, Requests, Timed, Use,
};
use crate::trial::{CHANGE_EL2, CHANGE_HOST, DUMP, HASH, MOMENTS, PREPARE_EL2, TOUCH_EL2};
use crate::trial::{Change, Linear, MOST_CPUS, Outcome, Random, SIZE, Subject, Trial};

static TRIAL: Trial = Trial::new();
static REQUESTS: Requests = Requests::new();

/// Ticks of the counter that all CPUs were in exits, from the first line of Rust to the last.
static TICKS: AtomicU64 = AtomicU64::new(0);

/// The time of one exit, which is over when this is dropped.
pub struct Time(u64);

impl Time {
    /// The exit begins.
    pub fn start() -> Self {
        Self(read_cntpct_el0().bits())
    }
}

impl Drop for Time {
    fn drop(&mut self) {
        TICKS.fetch_add(read_cntpct_el0().bits() - self.0, Relaxed);
    }
}

/// What EL2 has cost so far.
pub fn tell_costs(host: &Host) {
    let exits: u64 = (0..host.cpus.len()).map(|cpu| PerCpu::of(&host.layout, cpu).exits.total()).sum();
    let stack = (0..host.cpus.len()).map(|cpu| PerCpu::of(&host.layout, cpu).stack_used()).max();
    info!("@cloven figure el2.stack {} bytes", stack.unwrap_or(0));
    info!("@cloven figure el2.exits {exits} exits");
    info!("@cloven figure el2.ticks {} ticks", TICKS.load(Relaxed));
    for (name, counts) in [("el2", host.el2_map.map().counts()), ("stage2", host.map.counts())] {
        let splits = Counts::sum(&counts.splits) + Counts::sum(&counts.runs_split);
        let collapses = Counts::sum(&counts.collapses) + Counts::sum(&counts.runs_joined);
        info!("@cloven figure {name}.splits {splits} leaves_and_runs");
        info!("@cloven figure {name}.collapses {collapses} leaves_and_runs");
        for (how, strategy) in ["in_place", "broken", "broken_behind_the_gate"].into_iter().zip(1..) {
            let of = |counts: &[[u32; 4]; 4]| counts.iter().map(|level| level[strategy]).sum::<u32>();
            let splits = of(&counts.splits) + of(&counts.runs_split);
            info!("@cloven figure {name}.splits_{how} {splits} leaves_and_runs");
        }
    }
    let (closings, waits) = ENTRY.counts();
    info!("@cloven figure gate.closed {closings} times");
    info!("@cloven figure gate.waits {waits} times");
    info!("@cloven figure el2.repainted {} bytes", REPAINTED.load(Relaxed));
}

/// See [`HASH`].
fn hash() -> u64 {
    // FIPS 180-4, 5.3.3 and 5.1.1.
    let mut state: [u32; 8] = [
        0x6a09_e667,
        0xbb67_ae85,
        0x3c6e_f372,
        0xa54f_f53a,
        0x510e_527f,
        0x9b05_688c,
        0x1f83_d9ab,
        0x5be0_cd19,
    ];
    let mut block = [0; 64];
    block[0] = 0x80;
    let expected: [u32; 8] = [
        0xe3b0_c442,
        0x98fc_1c14,
        0x9afb_f4c8,
        0x996f_b924,
        0x27ae_41e4,
        0x649b_934c,
        0xa495_991b,
        0x7852_b855,
    ];
    match super::hash::sha256(&mut state, &[block]) {
        true => u64::from(state != expected),
        false => 2,
    }
}

/// The answer to `function` for CPU number `me`, if it is one of these calls.
pub fn call(host: &Host, me: usize, function: u32, args: &[u64; 17]) -> Option<[u64; 4]> {
    const REFUSED: [u64; 4] = [1, 0, 0, 0];
    let el2 = Own(Linear {
        map: host.el2_map.map(),
        cpu: me,
        data: Attributes::<El2>::DATA,
        read_only: MapChange::<El2>::READ_ONLY,
        writable: MapChange::<El2>::WRITABLE,
        executable: MapChange::<El2>::EXECUTABLE,
    });
    let lent = |start: u64, size: u64| is_lent(host.own, host.ram, start, size);
    Some(match function {
        CHANGE_HOST => {
            let map = Own(Linear {
                map: host.map,
                cpu: me,
                data: Attributes::<Stage2>::RAM,
                read_only: MapChange::<Stage2>::READ_ONLY,
                writable: MapChange::<Stage2>::WRITABLE,
                executable: MapChange::<Stage2>::EXECUTABLE,
            });
            match Change::decode(args[0]) {
                Some(change) if lent(args[1], args[2]) && map.change(change, args[1], args[2]) => [0; 4],
                _ => REFUSED,
            }
        }
        PREPARE_EL2 if lent(args[0], SIZE) && lent(args[1], SIZE) => {
            // SAFETY: RAM of the host, which EL2's map has as data. That nothing else uses it and that no CPU is in a trial is the host's
            // word, which a build for tests takes.
            let ready = unsafe { TRIAL.prepare(&el2, [args[0], args[1]]) };
            if ready { [0; 4] } else { REFUSED }
        }
        PREPARE_EL2 => REFUSED,
        TOUCH_EL2 if args[0] < MOST_CPUS as u64 && TRIAL.is_ready() => {
            // SAFETY: what was prepared is mapped so until it is prepared anew. That the host leaves it alone meanwhile, code and data,
            // and gives each CPU a number of its own is its word, which a build for tests takes.
            unsafe { TRIAL.touch(args[0] as usize) };
            [0; 4]
        }
        TOUCH_EL2 => REFUSED,
        CHANGE_EL2 => {
            let Outcome { changes, refused, wrong, passes } =
                TRIAL.change(&el2, (args[0] as usize).min(MOST_CPUS), args[1], args[2]);
            [changes, refused, wrong, passes]
        }
        DUMP => match MOMENTS.get(args[0] as usize) {
            Some(_moment) => {
                #[cfg(feature = "dump")]
                super::dump::tell(host, me, _moment);
                [0; 4]
            }
            None => REFUSED,
        },
        RUN if lent(args[1] & !(GRANULE - 1), GRANULE) => {
            run(host, Flags::from_bits_truncate(args[0]), args[1], args[2])
        }
        RUN => [u64::MAX, 0, 0, 0],
        HASH => [hash(), 0, 0, 0],
        _ => {
            return super::owners::call(host, function, args)
                .or_else(|| request_call(host, me, function, args));
        }
    })
}

/// The one guest of the trial.
static GUEST: Mutex<Vcpu> = Mutex::new(Vcpu::reset(1 << 31));
/// Its VMID.
const VMID: u64 = 0x77;
/// A list register with virtual interrupt 27 pending, of group 1, at priority 0x80.
const INTERRUPT_27: u64 = 1 << 62 | 1 << 60 | 0x80 << 48 | 27;
/// `ICH_VMCR_EL2` that lets through what there is: priority mask 0xf8, group 1 enabled.
const LET_THROUGH: u64 = 0xf8 << 24 | 1 << 1;

/// Runs the trial's guest.
fn run(host: &Host, flags: Flags, pc: u64, x0: u64) -> [u64; 4] {
    static WORLD: Once<World> = Once::new();
    let world = WORLD.call_once(|| World::read(host.features.entry));
    // Who has it leaves the gate to run it, and may have to wait there for a CPU that waits here.
    let mut vcpu = loop {
        match GUEST.try_lock() {
            Some(vcpu) => break vcpu,
            None => Parties::wait(),
        }
    };
    let registers = stage2::Registers { vttbr: host.stage2.vttbr | VMID << 48, ..host.stage2 };
    if flags.contains(Flags::FRESH) {
        *vcpu = Vcpu::reset(1 << 31);
        (vcpu.pc, vcpu.x[0]) = (pc, x0);
        vcpu.gic.vmcr = LET_THROUGH;
        // SAFETY: the host's map.
        unsafe { stage2::install::forget_everywhere(&registers) };
    }
    vcpu.trap_wfi = flags.contains(Flags::TRAP_WFI);
    if flags.contains(Flags::INTERRUPT) {
        vcpu.gic.lrs[0] = INTERRUPT_27;
    }
    if flags.contains(Flags::ADVANCE) {
        vcpu.advance();
    }
    let mut add = |running: &mut Running, exit: &Exit| {
        let Exit::Synchronous { esr, .. } = *exit else { return false };
        let is_mine = Cause::decode(esr) == Cause::Smc && running.x[0] == ADD;
        if is_mine {
            running.x[2] = running.x[2].wrapping_add(running.x[1]);
            running.advance();
        }
        is_mine
    };
    loop {
        // SAFETY: the host's map is whole for good, and nobody else has that VMID; the lock keeps others from the guest.
        let exit = unsafe { world.run(&mut vcpu, &registers, !flags.contains(Flags::NO_SVE), &mut add) };
        let (x0, x1) = (vcpu.x[0], vcpu.x[1]);
        let answer = match exit {
            Ok(Exit::Synchronous { esr, far: _, hpfar }) => match Cause::decode(esr) {
                Cause::SystemRegister { .. } => {
                    match answer_register(&mut vcpu, esr, &world.view, &world.entry) {
                        Answer::Sgi => [0, esr, x0, x1],
                        Answer::Answered | Answer::Undefined => continue,
                    }
                }
                Cause::Abort(_) => [0, esr, x0, hpfar],
                _ => [0, esr, x0, x1],
            },
            Ok(Exit::Irq) => [1, 0, x0, x1],
            Ok(Exit::Fiq) => [2, 0, x0, x1],
            Ok(Exit::SError { esr }) => [3, esr, x0, x1],
            Err(Streaming) => [u64::MAX, 0, 0, 0],
        };
        vcpu.timers.tell();
        return answer;
    }
}

/// The answer to `function` if it is one of [`requests`]'.
fn request_call(host: &Host, me: usize, function: u32, args: &[u64; 17]) -> Option<[u64; 4]> {
    const REFUSED: [u64; 4] = [1, 0, 0, 0];
    let pages = Pages { host, map: host.el2_map, me };
    // Where leaves change their size in place nobody needs to stand still, and readers do not.
    let pass_if_asked = || {
        if !host.el2_map.map().capabilities().contains(Capabilities::BBM) {
            ENTRY.pass();
        }
    };
    Some(match function {
        requests::PREPARE if is_lent(host.own, host.ram, args[0], REGION) => {
            // SAFETY: RAM of the host, which EL2's map has as data. That nothing else uses it is the host's word, which a build for tests
            // takes.
            (args[0]..args[0] + REGION).step_by(GRANULE as usize).for_each(|page| unsafe { fill(page) });
            cache::clean_and_invalidate(args[0] as usize, REGION as usize);
            cache::forget_instructions();
            REQUESTS.prepare(args[0]);
            [0; 4]
        }
        // What follows takes a region.
        _ if REQUESTS.start() == 0 && requests::CALLS.contains(&function) => REFUSED,
        requests::ASK => {
            let Asked { made, refused } =
                REQUESTS.ask(&pages, &mut Random::new(args[1]), args[0], LASTING, || ENTRY.pass());
            [0, made, refused, 0]
        }
        requests::ASK_ONE => {
            let request = Request::ALL.get(args[0] as usize)?;
            let timed = Timed::new(&pages, || read_cntpct_el0().bits());
            match REQUESTS.ask_one(&timed, *request, args[1] as usize, args[2] as usize) {
                Some(true) => [0, timed.ticks(), 0, 0],
                _ => REFUSED,
            }
        }
        requests::READ => {
            let (rounds, wrong) = REQUESTS.read(&pages, LASTING, pass_if_asked);
            [0, rounds, wrong, 0]
        }
        requests::STOP => {
            REQUESTS.stop(args[0] != 0);
            [0; 4]
        }
        requests::LOOK => [0, REQUESTS.look(&pages), PAGES as u64, 0],
        requests::CENSUS => {
            let range = Range::<Va>::of_granules(args[0], args[1]).ok()?;
            let mut cpu = host.el2_map.map().cpu(me)?;
            let mut leaves = [0; 4];
            let _ = cpu.read().walk(range, |visited| {
                if let Entry::Leaf { .. } = visited.entry {
                    leaves[usize::from(visited.level)] += 1;
                }
                ControlFlow::<()>::Continue(())
            });
            leaves
        }
        requests::KNOWN => {
            let phase = match host.admission.starting.phase() {
                Phase::Boot => 0,
                Phase::Starting => 1,
                Phase::Finalized => 2,
            };
            [0, phase, host.el2_map.map().capabilities().bbm_level().into(), boot::table_bytes()]
        }
        _ => return None,
    })
}

/// Fills a page of [`REQUESTS`].
///
/// # Safety
/// It is memory that nothing else uses, mapped for writing.
unsafe fn fill(page: u64) {
    let words = requests::PATTERNS.map(|offset| (page + offset, requests::pattern(page + offset)));
    for (at, word) in [(page, requests::code(page))].into_iter().chain(words) {
        // SAFETY: a word of the page.
        unsafe { (at as *mut u64).write_volatile(word) };
    }
}

/// Whether the running CPU translates `at` at EL2 for loads, or for stores.
pub(super) fn translates(at: u64, for_stores: bool) -> bool {
    const FAILED: u64 = 1;
    let kept = read_par_el1().bits();
    // SAFETY: writes PAR_EL1 only, which the host gets back.
    unsafe {
        if for_stores {
            asm!("at s1e2w, {}", "isb", in(reg) at, options(nostack));
        } else {
            asm!("at s1e2r, {}", "isb", in(reg) at, options(nostack));
        }
        let par = read_par_el1().bits();
        write_par_el1(ParEl1::from_bits_retain(kept));
        par & FAILED == 0
    }
}

/// The pages of [`REQUESTS`] as CPU number `me` sees them.
struct Pages<'a> {
    host: &'a Host,
    map: &'a El2Map,
    me: usize,
}

impl Pages<'_> {
    /// Whether the page holds what it was filled with.
    ///
    /// # Safety
    /// It is one of the region, and translates for as long as this looks.
    unsafe fn holds(at: u64) -> bool {
        requests::PATTERNS.into_iter().map(|offset| at + offset).all(|word| {
            // SAFETY: the caller's word.
            unsafe { (word as *const u64).read_volatile() == requests::pattern(word) }
        })
    }

    fn translates_as(at: u64, usage: Use) -> bool {
        translates(at, false) == usage.is_valid() && translates(at, true) == usage.is_writable()
    }
}

impl requests::Subject for Pages<'_> {
    fn set(&self, request: Request, start: u64, size: u64) -> bool {
        let Ok(range) = Range::of_granules(start, size) else { return false };
        let made = request.make(self.map, range);
        if let Err(error) = made {
            debug!("trial: {request:?} of {range}: {error}");
        }
        made.is_ok()
    }

    fn join(&self, start: u64) -> bool {
        let is_in_place = self.map.map().capabilities().contains(Capabilities::BBM);
        if !is_in_place && self.host.admission.policy != Policy::KeepBlocks {
            return true;
        }
        let range = Range::<Va>::of_granules(start, BLOCK_PAGES as u64 * GRANULE);
        let Some((range, mut cpu)) = range.ok().zip(self.map.map().cpu(self.me)) else { return false };
        let joined = cpu.write().collapse(range, Leaves::LARGEST);
        if let Err(error) = joined {
            debug!("trial: {range} is not joined: {error}");
        }
        joined.is_ok()
    }

    fn glance(&self, at: u64, usage: Use, lasting: bool) -> bool {
        // SAFETY: no request makes it invalid.
        let holds = !lasting || unsafe { Self::holds(at) };
        holds && Self::translates_as(at, usage)
    }

    fn look(&self, at: u64, usage: Use) -> bool {
        if !Self::translates_as(at, usage) {
            return false;
        }
        if usage.is_writable() {
            let own = requests::own_word(at, self.me) as *mut u64;
            // SAFETY: it translates for stores, by the look before, and is this CPU's.
            let kept = unsafe {
                own.write_volatile(at);
                own.read_volatile() == at
            };
            if !kept {
                return false;
            }
        }
        let executes = if usage.is_executable() {
            // SAFETY: it is code that returns a number, and translates, if the map is right; if not, the fault tells.
            let code = unsafe { core::mem::transmute::<usize, extern "C" fn() -> u32>(at as usize) };
            u64::from(code()) == requests::number(at)
        } else {
            // Nothing tells but a fault, which EL2 does not take: what the map says (Arm ARM D8.3.1, XN).
            const XN: u64 = 1 << 54;
            let Some((input, mut cpu)) = Va::new(at).ok().zip(self.map.map().cpu(self.me)) else {
                return false;
            };
            cpu.read().translate(input).is_none_or(|found| found.attributes().bits() & XN != 0)
        };
        // SAFETY: it translates, by the look before.
        executes && (!usage.is_valid() || unsafe { Self::holds(at) })
    }
}

/// Whether all of a range is RAM of the host.
fn is_lent(own: &[Range<Pa>], ram: &[Range<Pa>], start: u64, size: u64) -> bool {
    let is_free = |range: Range<Pa>| !own.iter().any(|own| own.overlaps(range));
    Range::<Pa>::of_granules(start, size)
        .is_ok_and(|range| is_free(range) && ram.iter().any(|bank| bank.contains_range(range)))
}

/// One of EL2's maps.
struct Own<'a, R: Regime, M: Mmu>(Linear<'a, R, M>);

impl<R: Regime, M: Mmu> Subject for Own<'_, R, M> {
    fn change(&self, change: Change, start: u64, size: u64) -> bool {
        let result = self.0.change(change, start, size);
        if let Err(error) = result {
            debug!("trial: {change:?} of {size:#x} bytes at {start:#x}: {error}");
        }
        result.is_ok()
    }
    fn publish_code(&self, start: u64, size: u64) {
        cache::clean_and_invalidate(start as usize, size as usize);
        cache::forget_instructions();
    }
}
