//! What each CPU does: it asks, reads at EL1, reads at EL2, or looks at every page.
//!
//! Invariant: a CPU that waits for another passes the gate, or stands outside of it, so that whoever breaks a translation goes on. A reader
//! passes only while leaves do not change their size in place: else it never pauses.

use core::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{AcqRel, Acquire, Release, SeqCst},
};

use arrayvec::ArrayVec;
use guest_tests::cpus::{self, GREET, OFF, OWN};
use guest_tests::entry::Cpu;
use guest_tests::firmware;
use guest_tests::memory::MAX_CPUS;
use hyp::trial::Random;
use hyp::trial::requests::{self, Asked};
use smccc::psci;
use smccc::{Hvc, Smc};

use crate::own::{GATE, own};
use crate::pages::{Pages, REQUESTS};

/// Reads at EL1.
const READ: usize = OWN;
/// Reads at EL2.
const READ_EL2: usize = OWN + 1;
/// Asks at both.
const ASK: usize = OWN + 2;
/// Looks at every page at both.
const LOOK: usize = OWN + 3;

/// What came of it, of all CPUs, since it was last taken.
#[derive(Default)]
pub struct Tally {
    /// Requests that were made at EL1 and at EL2.
    pub made: [AtomicU64; 2],
    /// Requests that were refused.
    pub refused: [AtomicU64; 2],
    /// Rounds of readers.
    pub rounds: [AtomicU64; 2],
    /// The first address that a reader or a look found wrong, or 0.
    pub wrong: [AtomicU64; 2],
    /// CPUs that looked at every page.
    pub looks: AtomicU64,
}

/// Of all CPUs.
pub static TALLY: Tally = Tally {
    made: [const { AtomicU64::new(0) }; 2],
    refused: [const { AtomicU64::new(0) }; 2],
    rounds: [const { AtomicU64::new(0) }; 2],
    wrong: [const { AtomicU64::new(0) }; 2],
    looks: AtomicU64::new(0),
};
static STOP: AtomicBool = AtomicBool::new(false);
/// Of what is asked at EL2: each call another.
static SEED: AtomicU64 = AtomicU64::new(1);

impl Tally {
    fn asked(&self, at: usize, asked: Asked) {
        self.made[at].fetch_add(asked.made, SeqCst);
        self.refused[at].fetch_add(asked.refused, SeqCst);
    }
    fn wrong(&self, at: usize, address: u64) {
        let _ = self.wrong[at].compare_exchange(0, address, SeqCst, SeqCst);
    }
}

/// Calls EL2 from outside the gate.
pub fn call(function: u32, args: [u64; 3]) -> [u64; 4] {
    GATE.stand(|| {
        let answer = firmware::call::<Hvc>(function, args);
        [0, 1, 2, 3].map(|register| answer[register])
    })
}

/// Makes requests at random, one at EL1 and one at EL2.
pub fn ask(random: &mut Random) {
    TALLY.asked(0, REQUESTS.ask(&Pages, random, 1, 0, || GATE.pass()));
    GATE.pass();
    let seed = SEED.fetch_add(1, SeqCst).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let [_, made, refused, _] = call(requests::ASK, [1, seed, 0]);
    TALLY.asked(1, Asked { made, refused });
}

/// Chooses what is asked from here on.
pub fn seed(seed: u64) {
    SEED.store(seed.wrapping_mul(1_000_003) | 1, SeqCst);
}

fn read() {
    let pass = || {
        if !own().is_in_place() {
            GATE.pass();
        }
    };
    let (rounds, wrong) = REQUESTS.read(&Pages, 0, pass);
    TALLY.rounds[0].fetch_add(rounds, SeqCst);
    TALLY.wrong(0, wrong);
}

fn read_at_el2() {
    let [_, rounds, wrong, _] = call(requests::READ, [0; 3]);
    TALLY.rounds[1].fetch_add(rounds, SeqCst);
    TALLY.wrong(1, wrong);
}

/// Looks at every page at EL1 and EL2, on the running CPU.
pub fn look() {
    TALLY.wrong(0, REQUESTS.look(&Pages));
    let [refused, wrong, ..] = call(requests::LOOK, [0; 3]);
    TALLY.wrong(1, if refused != 0 { 1 } else { wrong });
    TALLY.looks.fetch_add(1, SeqCst);
}

/// A CPU that was let in: carries out orders for good.
pub fn serve() -> ! {
    GATE.enter();
    let this = Cpu::this();
    own().arrived(this.number);
    let mut random = Random::new(SEED.load(SeqCst) ^ (this.number as u64) << 40);
    loop {
        if this.order.load(Acquire) == 0 {
            GATE.pass();
            core::hint::spin_loop();
            continue;
        }
        match this.order.swap(0, AcqRel) {
            GREET => {}
            OFF => {
                this.done.fetch_add(1, Release);
                GATE.leave();
                let refused = psci::cpu_off::<Smc>();
                panic!("CPU_OFF came back: {refused:?}");
            }
            READ => read(),
            READ_EL2 => read_at_el2(),
            ASK => {
                while !STOP.load(SeqCst) {
                    ask(&mut random);
                    GATE.pass();
                }
            }
            LOOK => look(),
            _ => {}
        }
        this.done.fetch_add(1, Release);
    }
}

/// CPUs at work, and how much they had done before.
pub struct Work(ArrayVec<(&'static Cpu, usize), MAX_CPUS>);

impl Work {
    fn begin(present: &[usize], order: impl Fn(usize) -> usize) -> Self {
        let begin = |&number: &usize| {
            let cpu = &cpus::all()[number];
            let before = cpu.done.load(Acquire);
            cpu.order.store(order(number), Release);
            (cpu, before)
        };
        Self(present.iter().map(begin).collect())
    }

    /// Waits for them, `meanwhile` in each turn; `false` if that takes more turns than `patience`.
    fn wait(&self, mut patience: u64, mut meanwhile: impl FnMut()) -> bool {
        for (cpu, before) in &self.0 {
            while cpu.done.load(Acquire) == *before {
                meanwhile();
                GATE.pass();
                core::hint::spin_loop();
                patience -= 1;
                if patience == 0 {
                    return false;
                }
            }
        }
        true
    }
}

/// Has the CPUs `present` read and ask while `work` is done, each another in another `round`.
pub fn beside<T>(present: &[usize], round: usize, work: impl FnOnce() -> T) -> T {
    stop(false);
    let others = Work::begin(present, |number| READ + (number + round) % 3);
    let result = work();
    stop(true);
    others.wait(u64::MAX, || {});
    result
}

fn stop(stop: bool) {
    REQUESTS.stop(stop);
    STOP.store(stop, SeqCst);
    call(requests::STOP, [stop.into(), 0, 0]);
}

/// Has the boot CPU and those `present` look at every page.
pub fn all_look(present: &[usize]) {
    let others = Work::begin(present, |_| LOOK);
    look();
    others.wait(u64::MAX, || {});
}

/// Has CPU number `cpu` say that it is there, `meanwhile` until it does; `false` if it does not in so many turns.
pub fn greet(cpu: usize, patience: u64, meanwhile: impl FnMut()) -> bool {
    Work::begin(&[cpu], |_| GREET).wait(patience, meanwhile)
}

/// Has CPU number `cpu` turn itself off.
pub fn send_off(cpu: usize) {
    Work::begin(&[cpu], |_| OFF).wait(u64::MAX, || {});
}
