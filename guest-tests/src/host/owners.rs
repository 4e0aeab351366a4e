//! Pages that change hands: what the host shares and gives away, and what becomes of its accesses then, on every CPU.
//!
//! The states that take a realm are the hypervisor's to look at, in a test build; so is what each costs.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

use arm_sysregs::el0::accessors::{read_cntfrq_el0, read_cntvct_el0};
use guest_tests::cpus::{self, order};
use guest_tests::firmware::{NOT_SUPPORTED, call};
use guest_tests::memory::{Memory, View};
use guest_tests::probe::{Kind, is_refusal, probe};
use guest_tests::report::Report;
use guest_tests::say;
use hyp::trial::owners::{MAKE, PAGE, Step, TEST};
use smccc::Smc;

use crate::cpus::TOUCH_GIVEN;

const SHARE: u32 = 0xc600_0003;
const UNSHARE: u32 = 0xc600_0004;
const DONATE: u32 = 0xc600_0005;
const GIVE_BACK: u32 = 0xc600_0006;
const INVALID_PARAMETER: i64 = -3;
/// What the hypervisor remembers of donated ranges at most.
const MOST_DONATED: u64 = 64;

/// Rounds that are measured.
const TIMED: u64 = 256;

/// The page that CPUs are to be refused, and how many accesses were.
static GIVEN: AtomicU64 = AtomicU64::new(0);
static REFUSED: AtomicUsize = AtomicUsize::new(0);

/// Accesses of a page that was given away, from this CPU.
const ACCESSES: [(View, Kind); 2] = [(View::Data, Kind::Load), (View::Data, Kind::Store)];

/// Tries the page that was given away.
pub fn touch() {
    let page = GIVEN.load(Relaxed);
    let refused =
        |&&(view, kind): &&(View, Kind)| is_refusal(probe(view, kind, page), view, kind, view.of(page));
    REFUSED.fetch_add(ACCESSES.iter().filter(refused).count(), Relaxed);
}

/// Whether every CPU is refused the page: each that is on, this one last.
fn is_refused_everywhere(page: u64) -> (bool, usize, usize) {
    GIVEN.store(page, Relaxed);
    REFUSED.store(0, Relaxed);
    let others = cpus::all().get(1..).unwrap_or(&[]);
    let asked = others.iter().filter(|cpu| order(cpu, TOUCH_GIVEN)).count();
    touch();
    let (refused, tried) = (REFUSED.load(Relaxed), (others.len() + 1) * ACCESSES.len());
    (asked == others.len() && refused == tried, refused, tried)
}

fn pages(function: u32, start: u64, count: u64) -> i64 {
    call::<Smc>(function, [start, count, 0])[0] as i64
}

/// All that can be tried here.
pub fn all(report: &mut Report, memory: &Memory) {
    let Some([region, _]) = memory.trials else {
        return say!("payload: no RAM for pages that change hands");
    };
    given(report, memory, region + PAGE);
    if call::<Smc>(MAKE, [u64::MAX, 0, 0])[0] == NOT_SUPPORTED {
        return say!("payload: this hypervisor has no calls for trials of owners");
    }
    let [failed, number, party, ..] = call::<Smc>(TEST, [region, 0, 0]);
    let detail = format_args!("{number}, {party}");
    report.check("owners.every_party_says_what_a_page_is", failed == 0 && number > 0, detail);
    let make = |step: Step| call::<Smc>(MAKE, [step as u64, region, 0])[0] == 0;
    let mut made = make(Step::Begin) && make(Step::Delegate);
    let (holds, refused, tried) = is_refused_everywhere(region + PAGE);
    report.check(
        "owners.delegated_page_is_refused",
        made && holds,
        format_args!("{refused} of {tried} accesses"),
    );
    made &= make(Step::Assign);
    let (holds, refused, tried) = is_refused_everywhere(region + PAGE);
    report.check(
        "owners.page_of_a_realm_is_refused",
        made && holds,
        format_args!("{refused} of {tried} accesses"),
    );
    made &= make(Step::Release) && make(Step::Undelegate);
    report.check("owners.page_comes_back", made && is_zero(region + PAGE), format_args!("{made}"));
    figures(make);
    make(Step::End);
}

/// The first and the last word of a page.
fn is_zero(page: u64) -> bool {
    [page, page + 4088].into_iter().all(|word| {
        // SAFETY: RAM that nobody uses, mapped as data.
        unsafe { (word as *const u64).read_volatile() == 0 }
    })
}

/// What the host gives and shares by calls of its own.
fn given(report: &mut Report, memory: &Memory, page: u64) {
    // SAFETY: RAM that nobody uses, mapped as data.
    unsafe { (page as *mut u64).write_volatile(0x5ec2e7) };
    let shared = [pages(SHARE, page, 1), pages(SHARE, page, 1), pages(DONATE, page, 1)];
    let unshared = [pages(UNSHARE, page, 1), pages(UNSHARE, page, 1)];
    let holds = shared == [0, INVALID_PARAMETER, INVALID_PARAMETER] && unshared == [0, INVALID_PARAMETER];
    report.check("owners.share_and_unshare", holds, format_args!("{shared:?}, {unshared:?}"));
    let own = memory.hypervisor.start();
    let own = hyp::mapping::Address::get(own);
    let wrong = [
        pages(DONATE, own, 1),
        pages(SHARE, own, 1),
        pages(DONATE, 0x0900_0000, 1),
        pages(SHARE, page + 1, 1),
        pages(SHARE, page, 0),
        pages(SHARE, page, 513),
        pages(GIVE_BACK, page, 1),
    ];
    let holds = wrong == [INVALID_PARAMETER; 7];
    report.check("owners.what_is_not_the_hosts_is_refused", holds, format_args!("{wrong:?}"));
    let donated = pages(DONATE, page, 1);
    let (refused, count, tried) = is_refused_everywhere(page);
    report.check(
        "owners.donated_page_is_refused",
        donated == 0 && refused,
        format_args!("{donated}, {count} of {tried} accesses"),
    );
    let back = [pages(GIVE_BACK, page, 2), pages(GIVE_BACK, page, 1)];
    let holds = back == [INVALID_PARAMETER, 0] && is_zero(page);
    report.check("owners.donated_page_comes_back_wiped", holds, format_args!("{back:?}"));
    // One range more than are remembered.
    let at = |number: u64| page + number * 0x2000;
    let given = (0..=MOST_DONATED).take_while(|&number| pages(DONATE, at(number), 1) == 0).count() as u64;
    let returned = (0..given).filter(|&number| pages(GIVE_BACK, at(number), 1) == 0).count() as u64;
    let holds = given == MOST_DONATED && returned == given;
    report.check("owners.donations_are_bounded", holds, format_args!("{given} given, {returned} back"));
}

/// What each step costs where tables are there. With `--icount` a tick is an instruction.
fn figures(make: impl Fn(Step) -> bool) {
    let mut ticks = [0; Step::ALL.len()];
    let mut made = true;
    let cycle = [
        Step::Nothing,
        Step::Delegate,
        Step::Assign,
        Step::Release,
        Step::Keep,
        Step::Unkeep,
        Step::Undelegate,
        Step::ShareWithRealm,
        Step::UnshareWithRealm,
    ];
    for _ in 0..TIMED {
        for step in cycle {
            let start = read_cntvct_el0().bits();
            made &= make(step);
            ticks[step as usize] += read_cntvct_el0().bits() - start;
        }
    }
    if !made {
        return say!("payload: a step was not made: its cost is none");
    }
    for step in cycle {
        let ticks = ticks[step as usize] / TIMED;
        say!("@cloven figure owners.{step:?} {ticks} ticks_at_{}_Hz", read_cntfrq_el0().bits());
    }
}
