//! How often a CPU came to EL2 from below, by the kind of exit: always on, so an operator can see what a host does.
//!
//! Invariant: every synchronous exception from below is counted once, before it is answered, on the CPU that took it and by that CPU
//! alone. So a count needs no atomic read-modify-write, it never goes back but by wrapping after 2^64, and the call that tells a count
//! is in it already.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What an exit was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Exit {
    /// HVC.
    Hvc,
    /// SMC.
    Smc,
    /// An abort that stage 2 refused, told to the host as an External abort.
    Refused,
    /// An abort whose access is tried again: its translation was being changed.
    Retried,
    /// A TLB conflict: forgotten, and tried again.
    Conflict,
    /// A system register or instruction that trapped, told to the host as undefined.
    SystemRegister,
    /// Any other exception class, told to the host as undefined.
    Other,
}

impl Exit {
    /// All kinds, each at the number that names it in a call.
    pub const ALL: [Self; 7] = [
        Self::Hvc,
        Self::Smc,
        Self::Refused,
        Self::Retried,
        Self::Conflict,
        Self::SystemRegister,
        Self::Other,
    ];
}

/// The counts of one CPU, in a cache line that no other CPU writes.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Exits([AtomicU64; Exit::ALL.len()]);

impl Exits {
    /// None yet.
    pub const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; Exit::ALL.len()])
    }

    /// Counts one. Only the CPU whose counts these are may: two at once could lose one.
    pub fn count(&self, exit: Exit) {
        let count = &self.0[exit as usize];
        count.store(count.load(Relaxed).wrapping_add(1), Relaxed);
    }

    /// The count of the kind with this number, if there is one.
    pub fn of(&self, number: u64) -> Option<u64> {
        let count = self.0.get(usize::try_from(number).ok()?)?;
        Some(count.load(Relaxed))
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.0.iter().fold(0, |sum, count| sum.wrapping_add(count.load(Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_a_number_and_a_count_of_its_own() {
        let exits = Exits::new();
        for (number, exit) in Exit::ALL.into_iter().enumerate() {
            assert_eq!(exit as usize, number);
            (0..=number).for_each(|_| exits.count(exit));
        }
        let counts: Vec<_> = (0..8).map(|number| exits.of(number)).collect();
        assert_eq!(counts, [Some(1), Some(2), Some(3), Some(4), Some(5), Some(6), Some(7), None]);
        assert_eq!(exits.total(), 28);
        assert_eq!((exits.of(1 << 32), exits.of(u64::MAX)), (None, None));
    }

    #[test]
    fn counts_lie_in_a_line_of_their_own() {
        assert_eq!((size_of::<Exits>(), align_of::<Exits>()), (64, 64));
    }
}
