//! Of test builds: calls with which the host changes its own stage 2, or takes part in a trial of EL2's own map, and what EL2 costs the
//! host.
//!
//! Invariant: only RAM of the host can be changed, and what the host can do with it, but for writes that it asks to lose. EL2 runs code
//! and keeps data in what is lent to its trial, where the host can write: these builds trust their host.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arm_sysregs::el0::accessors::read_cntpct_el0;
use log::{debug, info};

use super::cache;
use super::host::{Host, REPAINTED};
use super::percpu::PerCpu;
use super::quiet::ENTRY;
use crate::mapping::{Attributes, Change as MapChange, Counts, El2, Mmu, Pa, Range, Regime, Stage2};
use crate::trial::{CHANGE_EL2, CHANGE_HOST, DUMP, MOMENTS, PREPARE_EL2, TOUCH_EL2};
use crate::trial::{Change, Linear, MOST_CPUS, Outcome, SIZE, Subject, Trial};

static TRIAL: Trial = Trial::new();

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
        _ => return None,
    })
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
