//! Accesses of the host to what it gave to the RMM: each must end in an external abort, on every CPU.
//!
//! Invariant: the places are those of one realm that exists; they are mapped in [`View::Code`] while they are tried.

use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use hyp::mapping::{Attributes, El1And0, Leaves, Range, Va};

use super::console;
use super::granules::GRANULE;
use crate::memory::{Memory, View, range};
use crate::probe::{Fault, Kind, is_refusal, probe};

/// Places that are tried, at most.
pub const MOST: usize = 8;

static PLACES: [AtomicU64; MOST] = [const { AtomicU64::new(0) }; MOST];
/// Accesses that were refused as they must be, and that there were, since it was asked.
static REFUSED: AtomicUsize = AtomicUsize::new(0);
static TRIED: AtomicUsize = AtomicUsize::new(0);

/// How the host tries it.
const TRIES: [(View, Kind); 3] =
    [(View::Data, Kind::Load), (View::Code, Kind::Fetch), (View::Data, Kind::Store)];

/// Takes note of the granules that are tried; at most [`MOST`], the rest is left out.
pub fn set(places: &[u64]) {
    for (slot, number) in PLACES.iter().zip(0..) {
        slot.store(places.get(number).copied().unwrap_or(0), Relaxed);
    }
}

fn places() -> impl Iterator<Item = u64> {
    PLACES.iter().map(|slot| slot.load(Relaxed)).filter(|&place| place != 0)
}

/// Maps the places as code, or takes that back; whether it could.
pub fn map(memory: &Memory, on: bool) -> bool {
    let Some(mut writer) = memory.map.try_write() else { return false };
    places().all(|pa| {
        let Ok(input) = Range::<Va>::new(View::Code.of(pa), GRANULE) else { return false };
        let output = range(pa, pa + GRANULE).start();
        if on {
            writer.map(input, output, Attributes::<El1And0>::CODE, Leaves::PAGES).is_ok()
        } else {
            writer.unmap(input).map(|debt| debt.flush()).is_ok()
        }
    })
}

/// How often it was tried at an exit.
static MOMENTS: AtomicUsize = AtomicUsize::new(0);
/// It is to be tried at the next exit.
static DUE: AtomicBool = AtomicBool::new(false);
/// How many exits of a REC there are at most between two tries.
const SELDOM: u64 = 8192;

/// Tries each place at the first exits of a REC, and then ever more seldom: between two lines of the realm's, as the hypervisor may print one
/// for each refusal.
pub fn at_exit(number: u64) {
    if number.is_power_of_two() || number.is_multiple_of(SELDOM) {
        DUE.store(true, Relaxed);
    }
    if DUE.load(Relaxed) && console::between_lines(sample) {
        DUE.store(false, Relaxed);
    }
}

/// Tries one of the places, each time another.
fn sample() {
    let moment = MOMENTS.fetch_add(1, Relaxed);
    let offset = if moment.is_multiple_of(2) { 0 } else { GRANULE - 8 };
    if let Some(pa) = places().nth(moment % places().count().max(1)) {
        tried(pa + offset);
    }
}

/// How often it was tried at an exit since that was asked.
pub fn moments() -> usize {
    MOMENTS.swap(0, Relaxed)
}

/// Tries each place in each way on this CPU. Stops at what gets through: a store could end the run before it is told.
pub fn count() {
    // The last word too: all of it is gone.
    let _ = places().all(|pa| [0, GRANULE - 8].into_iter().all(|offset| tried(pa + offset)));
}

/// Tries an address in each way; whether all were refused.
fn tried(address: u64) -> bool {
    TRIES.into_iter().all(|(view, kind)| {
        TRIED.fetch_add(1, Relaxed);
        let fault = probe(view, kind, address);
        let refused = is_refusal(fault, view, kind, view.of(address));
        if refused {
            REFUSED.fetch_add(1, Relaxed);
        } else {
            note(address, kind, fault);
        }
        refused
    })
}

static THROUGH: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

fn note(pa: u64, kind: Kind, fault: Option<Fault>) {
    let esr = fault.map_or(0, |fault| fault.esr);
    for (slot, value) in THROUGH.iter().zip([pa, kind as u64, esr]) {
        slot.store(value, Relaxed);
    }
}

/// How many were refused, how many there were, and of the first that was not: the address, the number of the [`Kind`], ESR.
pub fn take() -> (usize, usize, [u64; 3]) {
    let through = core::array::from_fn(|at| THROUGH[at].swap(0, Relaxed));
    (REFUSED.swap(0, Relaxed), TRIED.swap(0, Relaxed), through)
}
