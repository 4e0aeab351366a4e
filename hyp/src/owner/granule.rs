//! Access to granules by their physical address: wiping, and the caches.
//!
//! Invariant: a [`Held`] is made by [`Ownership`](super::Ownership) only, for memory that the EL2 map has and that the host and all realms have
//! lost. So who implements [`Granules`] may access what it names, and nothing else.

use crate::mapping::{Pa, Range};

/// Memory that is the hypervisor's alone: mapped at EL2 as data, at its own address, and translated for nobody else. There is one at a time for each
/// part of it.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "memory whose value is dropped stays the hypervisor's for good"]
pub struct Held(Range<Pa>);

impl Held {
    pub(super) const fn new(range: Range<Pa>) -> Self {
        Self(range)
    }

    /// Where it lies, in whole granules.
    pub const fn range(&self) -> Range<Pa> {
        self.0
    }

    /// The first `size` bytes and the rest, so that either can be given back alone.
    ///
    /// # Errors
    /// The same, if `size` is not of whole granules, or more than there is.
    pub fn split(self, size: u64) -> Result<(Self, Self), Self> {
        let start = crate::mapping::Address::get(self.0.start());
        let first = Range::of_granules(start, size);
        let rest = self.0.size().checked_sub(size).map(|rest| Range::new(start + size, rest));
        match (first, rest) {
            (Ok(first), Some(Ok(rest))) => Ok((Self(first), Self(rest))),
            _ => Err(self),
        }
    }
}

/// What ownership does to memory. On the target: `DC ZVA` or stores, `DC CIVAC` for each line, then a `DSB SY`.
pub trait Granules {
    /// Fills it with zeroes.
    fn zero(&self, held: &Held);
    /// Cleans and invalidates every cache line of it to the point of coherency (Arm ARM D7.5.9), and returns when that is complete: so
    /// that who maps it non-cacheable, or reads it with its MMU off, finds what was stored last and not what was there before.
    fn clean_and_invalidate(&self, held: &Held);
}

impl<G: Granules> Granules for &G {
    fn zero(&self, held: &Held) {
        (**self).zero(held);
    }
    fn clean_and_invalidate(&self, held: &Held) {
        (**self).clean_and_invalidate(held);
    }
}
