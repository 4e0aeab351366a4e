//! Pages of a region as one CPU sees them at EL1: by loads, stores and fetches that may fault, each as it must.

use core::sync::atomic::{AtomicU32, Ordering::SeqCst};

use guest_tests::entry::{self, Cpu};
use guest_tests::memory::View;
use guest_tests::probe::{Fault, Kind, probe};
use guest_tests::say;
use hyp::mapping::Range;
use hyp::trial::requests::{
    BLOCK_PAGES, PATTERNS, REGION, Request, Requests, Subject, Use, code, number, own_word, pattern,
};

use crate::own::own;

const PAGE: u64 = 4096;
/// Translation faults, and permission faults: `ESR_EL1.ISS`, its fault status without the level (Arm ARM D24.2.40).
const FSC: u64 = 0x3c;
const TRANSLATION: u64 = 0x04;
const PERMISSION: u64 = 0x0c;

/// What its pages may be used for.
pub static REQUESTS: Requests = Requests::new();

/// What the boot CPU wrote last in each page.
static WRITTEN: [AtomicU32; (REGION / PAGE) as usize] =
    [const { AtomicU32::new(0) }; (REGION / PAGE) as usize];

/// Fills the region at `start`, which is mapped as data.
///
/// # Safety
/// It is memory that nothing else uses.
pub unsafe fn prepare(start: u64) {
    for page in (start..start + REGION).step_by(PAGE as usize) {
        let words = PATTERNS.map(|offset| (page + offset, pattern(page + offset)));
        for (at, word) in [(page, code(page)), (own_word(page, 0), 0)].into_iter().chain(words) {
            // SAFETY: a word of the page.
            unsafe { (at as *mut u64).write_volatile(word) };
        }
    }
    // SAFETY: maintenance changes no value.
    unsafe {
        entry::clean(start, start + REGION);
        entry::forget_instructions();
    }
    REQUESTS.prepare(start);
}

/// The pages as the running CPU sees them.
pub struct Pages;

/// Whether an access went through where it may, and faulted in stage 1 for the right reason where not.
fn is_as(fault: Option<Fault>, may: bool, usage: Use) -> bool {
    let reason = if usage.is_valid() { PERMISSION } else { TRANSLATION };
    match fault {
        None => may,
        Some(fault) => !may && fault.esr & FSC == reason,
    }
}

/// Whether a page that translates holds what it was filled with, and one that does not shows nothing.
fn holds(at: u64, usage: Use) -> bool {
    PATTERNS.into_iter().map(|offset| at + offset).all(|word| {
        let mut found = 0;
        // SAFETY: what the load does is caught.
        let faulted = unsafe { entry::probe_copy(word, &mut found) } != 0;
        faulted != usage.is_valid() && (faulted || found == pattern(word))
    })
}

impl Subject for Pages {
    fn set(&self, request: Request, start: u64, size: u64) -> bool {
        let pages = Range::of_granules(start, size).unwrap_or_else(|error| panic!("{error}"));
        let result = request.make(&own().map, pages);
        if let Err(error) = result {
            say!("payload: {request:?} of {pages}: {error}");
        }
        result.is_ok()
    }

    fn join(&self, start: u64) -> bool {
        own().join(start, BLOCK_PAGES as u64 * PAGE)
    }

    fn glance(&self, at: u64, usage: Use, _: bool) -> bool {
        holds(at, usage) && is_as(probe(View::Data, Kind::Fetch, at), usage.is_executable(), usage)
    }

    fn look(&self, at: u64, usage: Use) -> bool {
        let me = Cpu::this().number;
        let own = own_word(at, me);
        // Where the boot CPU keeps something no probe stores.
        let scratch = if me == 0 { own + 8 } else { own };
        let loads = is_as(probe(View::Data, Kind::Load, at), usage.is_valid(), usage);
        let stores = is_as(probe(View::Data, Kind::Store, scratch), usage.is_writable(), usage);
        let fetches = is_as(probe(View::Data, Kind::Fetch, at), usage.is_executable(), usage);
        if !(loads && stores && fetches && holds(at, usage)) {
            return false;
        }
        if usage.is_executable() {
            // SAFETY: it is code that returns a number and touches nothing else, and can be executed.
            let code = unsafe { core::mem::transmute::<usize, extern "C" fn() -> u32>(at as usize) };
            if u64::from(code()) != number(at) {
                return false;
            }
        }
        me != 0 || !usage.is_valid() || keeps(at, own as *mut u64, usage)
    }
}

/// Whether a page that translates still has what the boot CPU wrote there last; if it may be written, it has another number from here on.
fn keeps(at: u64, own: *mut u64, usage: Use) -> bool {
    let written = &WRITTEN[((at - REQUESTS.start()) / PAGE) as usize];
    // SAFETY: it translates, and for stores where they are made.
    unsafe {
        if own.read_volatile() != u64::from(written.load(SeqCst)) {
            return false;
        }
        if usage.is_writable() {
            let next = written.fetch_add(1, SeqCst) + 1;
            own.write_volatile(next.into());
        }
    }
    true
}
