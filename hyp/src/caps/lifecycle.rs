//! The one set of capabilities that all CPUs have, and how much of it is known.
//!
//! Invariants:
//! - The set only loses bits, and the phase only goes on: `Boot` (the boot CPU's set), `Starting` (what all that were let in have in
//!   common), `Finalized` (all have come that will).
//! - A phase is a token: what may be done in it takes the token, and one of an earlier phase is not to be had again.
//!
//! Going backwards does not compile. The boot CPU's word is taken once:
//! ```compile_fail,E0382
//! # use hyp::{caps::lifecycle::Lifecycle, mapping::Capabilities};
//! static CPUS: Lifecycle = Lifecycle::new();
//! let boot = CPUS.boot(Capabilities::LEAST).unwrap();
//! let starting = boot.open(4);
//! boot.open(1);
//! ```
//! a phase is not made by hand:
//! ```compile_fail,E0451
//! # use hyp::caps::lifecycle::{Finalized, Lifecycle};
//! static CPUS: Lifecycle = Lifecycle::new();
//! let all = Finalized { lifecycle: &CPUS };
//! ```
//! what is final does not start again, and nothing gives a set back what it has lost:
//! ```compile_fail,E0599
//! # use hyp::{caps::lifecycle::Lifecycle, mapping::Capabilities};
//! static CPUS: Lifecycle = Lifecycle::new();
//! let all = CPUS.boot(Capabilities::LEAST).unwrap().open(1).finalize().unwrap();
//! all.open(4);
//! ```
//! ```compile_fail,E0599
//! # use hyp::{caps::lifecycle::Lifecycle, mapping::Capabilities};
//! static CPUS: Lifecycle = Lifecycle::new();
//! CPUS.boot(Capabilities::LEAST).unwrap().open(1).strengthen(Capabilities::BBM);
//! ```
//! And a map, without which nothing is split, is not made without a set:
//! ```compile_fail,E0061
//! # use hyp::mapping::Options;
//! let options = Options::new();
//! ```
//! The same, as it is right:
//! ```
//! # use hyp::{caps::lifecycle::{Lifecycle, Phase}, mapping::{Capabilities, Options}};
//! static CPUS: Lifecycle = Lifecycle::new();
//! let boot = CPUS.boot(Capabilities::LEAST | Capabilities::BBM).unwrap();
//! let options = Options::new(boot.set());
//! let starting = boot.open(2);
//! starting.weaken(Capabilities::LEAST);
//! assert_eq!((CPUS.set(), CPUS.phase()), (Capabilities::LEAST, Phase::Starting));
//! assert!(starting.arrived(0).is_none() && starting.arrived(1).is_some());
//! ```

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};

use crate::mapping::Capabilities;

/// How much is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Phase {
    /// Only the boot CPU translates.
    Boot,
    /// Others may come.
    Starting,
    /// All have come that will, or somebody says so.
    Finalized,
}

/// Beside a set: the boot CPU has spoken. It is no capability.
const SAID: u32 = 1 << 31;

/// CPUs that are told apart; one of a higher number counts each time it comes.
const CPUS: usize = 128;

/// The set, and what is known of it. One for all CPUs.
#[derive(Debug)]
pub struct Lifecycle {
    set: AtomicU32,
    phase: AtomicU8,
    /// The CPU has been here.
    seen: [AtomicU64; CPUS / 64],
    /// CPUs that have not, until all are known.
    missing: AtomicUsize,
}

/// The boot CPU is alone.
#[derive(Debug)]
#[must_use = "other CPUs are only let in once it is opened"]
pub struct Boot<'l> {
    lifecycle: &'l Lifecycle,
}

/// Others may come.
#[derive(Clone, Copy, Debug)]
pub struct Starting<'l> {
    lifecycle: &'l Lifecycle,
}

/// All are known. Of each machine there is one.
#[derive(Debug)]
pub struct Finalized<'l> {
    lifecycle: &'l Lifecycle,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new()
    }
}

impl Lifecycle {
    /// Of a machine of which nothing is known yet.
    pub const fn new() -> Self {
        Self {
            set: AtomicU32::new(0),
            phase: AtomicU8::new(Phase::Boot as u8),
            seen: [const { AtomicU64::new(0) }; CPUS / 64],
            missing: AtomicUsize::new(usize::MAX),
        }
    }

    /// The boot CPU has `set`. `None` if it was said before.
    pub fn boot(&self, set: Capabilities) -> Option<Boot<'_>> {
        let said = self.set.compare_exchange(0, set.bits() | SAID, SeqCst, SeqCst);
        said.is_ok().then_some(Boot { lifecycle: self })
    }

    /// What all CPUs have that were let in; nothing, before the boot CPU's word.
    pub fn set(&self) -> Capabilities {
        Capabilities::from_bits_truncate(self.set.load(SeqCst))
    }

    /// All that it knows, for who explores what can happen: equal states feed `into` alike.
    #[doc(hidden)]
    pub fn fingerprint(&self, into: &mut impl core::hash::Hasher) {
        into.write_u32(self.set.load(SeqCst));
        into.write_u8(self.phase.load(SeqCst));
        self.seen.iter().for_each(|seen| into.write_u64(seen.load(SeqCst)));
        into.write_usize(self.missing.load(SeqCst));
    }

    /// How much is known.
    pub fn phase(&self) -> Phase {
        match self.phase.load(SeqCst) {
            0 => Phase::Boot,
            1 => Phase::Starting,
            _ => Phase::Finalized,
        }
    }
}

impl<'l> Boot<'l> {
    /// The boot CPU's own.
    pub fn set(&self) -> Capabilities {
        self.lifecycle.set()
    }

    /// Others may come from here on. When `cpus` CPUs have arrived, the boot CPU among them, all are known.
    pub fn open(self, cpus: usize) -> Starting<'l> {
        self.lifecycle.missing.store(cpus, SeqCst);
        self.lifecycle.phase.store(Phase::Starting as u8, SeqCst);
        Starting { lifecycle: self.lifecycle }
    }
}

impl<'l> Starting<'l> {
    /// What all CPUs have that were let in.
    pub fn set(&self) -> Capabilities {
        self.lifecycle.set()
    }

    /// How much is known by now.
    pub fn phase(&self) -> Phase {
        self.lifecycle.phase()
    }

    /// A CPU that has `set` is to be let in: the set from here on. Maps that are made from now on begin with it.
    pub fn weaken(&self, set: Capabilities) -> Capabilities {
        let before = self.lifecycle.set.fetch_and(set.bits() | SAID, SeqCst);
        Capabilities::from_bits_truncate(before) & set
    }

    /// Whether CPU number `cpu` has arrived before.
    pub fn has_come(&self, cpu: usize) -> bool {
        let word = self.lifecycle.seen.get(cpu / 64);
        word.is_some_and(|word| word.load(SeqCst) & 1 << (cpu % 64) != 0)
    }

    /// CPU number `cpu` translates. Gives the token if it was the last that was missing.
    pub fn arrived(&self, cpu: usize) -> Option<Finalized<'l>> {
        let seen = |cpu: usize| {
            let bit = 1 << (cpu % 64);
            self.lifecycle.seen.get(cpu / 64).is_some_and(|word| word.fetch_or(bit, SeqCst) & bit != 0)
        };
        if seen(cpu) {
            return None;
        }
        let left = self.lifecycle.missing.fetch_update(SeqCst, SeqCst, |missing| missing.checked_sub(1));
        if left == Ok(1) { self.finalize() } else { None }
    }

    /// All are known: nobody else is waited for. `None` if it was so before.
    pub fn finalize(self) -> Option<Finalized<'l>> {
        let before = self.lifecycle.phase.swap(Phase::Finalized as u8, SeqCst);
        (before != Phase::Finalized as u8).then_some(Finalized { lifecycle: self.lifecycle })
    }
}

impl Finalized<'_> {
    /// What all CPUs have; a late one may still take from it.
    pub fn set(&self) -> Capabilities {
        self.lifecycle.set()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRONG: Capabilities = Capabilities::LEAST.union(Capabilities::BBM);

    #[test]
    fn the_boot_cpu_speaks_once() {
        let lifecycle = Lifecycle::new();
        assert_eq!(lifecycle.set(), Capabilities::empty());
        let boot = lifecycle.boot(Capabilities::empty()).unwrap();
        assert!(lifecycle.boot(STRONG).is_none());
        assert_eq!((boot.set(), lifecycle.phase()), (Capabilities::empty(), Phase::Boot));
    }

    #[test]
    fn the_set_is_what_all_have_and_never_grows() {
        let lifecycle = Lifecycle::new();
        let starting = lifecycle.boot(STRONG).unwrap().open(3);
        assert_eq!(starting.weaken(STRONG | Capabilities::TLB_RANGE), STRONG);
        assert_eq!(starting.weaken(Capabilities::LEAST | Capabilities::bbm(1)).bbm_level(), 1);
        assert_eq!(starting.weaken(STRONG).bbm_level(), 1);
        assert_eq!(lifecycle.set().bbm_level(), 1);
    }

    #[test]
    fn all_are_known_when_as_many_different_cpus_have_arrived() {
        let lifecycle = Lifecycle::new();
        let starting = lifecycle.boot(STRONG).unwrap().open(3);
        // Off and on again is no other CPU.
        assert!([0, 70, 70, 0].iter().all(|&cpu| starting.arrived(cpu).is_none()));
        assert_eq!(lifecycle.phase(), Phase::Starting);
        let all = starting.arrived(1).unwrap();
        assert_eq!((all.set(), lifecycle.phase()), (STRONG, Phase::Finalized));
        assert_eq!([0, 1, 2, 70, 1000].map(|cpu| starting.has_come(cpu)), [true, true, false, true, false]);
        // Who comes late finds it so, and no set or phase comes back.
        assert!(starting.arrived(2).is_none() && starting.finalize().is_none());
        starting.weaken(Capabilities::LEAST);
        assert_eq!((all.set(), starting.phase()), (Capabilities::LEAST, Phase::Finalized));
    }

    #[test]
    fn all_are_known_when_somebody_says_so() {
        let lifecycle = Lifecycle::new();
        let starting = lifecycle.boot(STRONG).unwrap().open(8);
        assert!(starting.finalize().is_some() && starting.finalize().is_none());
        assert!((0..8).all(|cpu| starting.arrived(cpu).is_none()));
    }

    #[test]
    fn one_of_many_that_arrive_at_once_is_the_last() {
        for _ in 0..200 {
            let lifecycle = Lifecycle::new();
            let starting = lifecycle.boot(STRONG).unwrap().open(4);
            let last: usize = std::thread::scope(|scope| {
                let arrive = |cpu| scope.spawn(move || usize::from(starting.arrived(cpu).is_some()));
                let all: Vec<_> = (0..4).map(arrive).collect();
                all.into_iter().map(|one| one.join().unwrap()).sum()
            });
            assert_eq!(last, 1);
        }
    }
}
