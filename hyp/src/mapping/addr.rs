//! Addresses and ranges of them: a type for each address space, checked when made.
//!
//! Invariant: every address lies below 2^48 (the largest output of VMSAv8-64 with the 4 KiB granule and
//! without FEAT_LPA2, Arm ARM D8.1.6), and no range wraps or ends above that limit.

use core::fmt;

/// Bits of the largest address that the tables translate from or to.
pub const ADDRESS_BITS: u32 = 48;
/// Bytes in the translation granule, the smallest unit that can be mapped.
pub const GRANULE: u64 = 4096;

const LIMIT: u64 = 1 << ADDRESS_BITS;

/// Why a number is not an address or a range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressError {
    /// The address is 2^48 or more.
    TooLarge(u64),
    /// The range of this start and size (bytes) wraps or ends above 2^48.
    Wraps {
        /// First address of the range.
        start: u64,
        /// Bytes in the range.
        size: u64,
    },
    /// The start or the size (bytes) is not a multiple of the granule.
    Misaligned {
        /// First address of the range.
        start: u64,
        /// Bytes in the range.
        size: u64,
    },
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::TooLarge(a) => write!(f, "address {a:#x} is not below 2^{ADDRESS_BITS}"),
            Self::Wraps { start, size } => {
                write!(f, "range of {size:#x} bytes at {start:#x} ends above 2^{ADDRESS_BITS}")
            }
            Self::Misaligned { start, size } => {
                write!(f, "range of {size:#x} bytes at {start:#x} is not made of {GRANULE}-byte granules")
            }
        }
    }
}

impl core::error::Error for AddressError {}

mod sealed {
    pub trait Sealed {}
}

/// An address of one address space, in bytes: those of this file.
pub trait Address: sealed::Sealed + Copy + Ord + fmt::Debug {
    /// The address with this value.
    ///
    /// # Errors
    /// [`AddressError::TooLarge`] if it is 2^48 or more.
    fn new(value: u64) -> Result<Self, AddressError>;
    /// The value of the address.
    fn get(self) -> u64;
}

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl sealed::Sealed for $name {}

        impl Address for $name {
            #[inline]
            fn new(value: u64) -> Result<Self, AddressError> {
                if value < LIMIT { Ok(Self(value)) } else { Err(AddressError::TooLarge(value)) }
            }
            #[inline(always)]
            fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
    };
}

address!(
    /// A physical address: the output of stage 2, and of the EL2 regime.
    Pa
);

impl Pa {
    /// The address in a descriptor field of 48 bits.
    #[inline(always)]
    pub(super) const fn from_field(bits: u64) -> Self {
        debug_assert!(bits < LIMIT);
        Self(bits)
    }
    #[inline(always)]
    pub(super) const fn bits(self) -> u64 {
        self.0
    }
}

address!(
    /// An intermediate physical address: the output of a guest's stage 1 and the input of stage 2.
    Ipa
);
address!(
    /// A virtual address, as an offset into the half of the address space that one TTBR translates.
    Va
);

/// A half-open range `start .. start + size` of one address space.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Range<A> {
    start: A,
    size: u64,
}

impl<A: Address> Range<A> {
    /// The range of `size` bytes from `start` on; it may be empty.
    ///
    /// # Errors
    /// [`AddressError::TooLarge`] or [`AddressError::Wraps`] if an address of it is 2^48 or more.
    pub fn new(start: u64, size: u64) -> Result<Self, AddressError> {
        let first = A::new(start)?;
        match start.checked_add(size) {
            Some(end) if end <= LIMIT => Ok(Self { start: first, size }),
            _ => Err(AddressError::Wraps { start, size }),
        }
    }

    /// As [`Range::new`], of whole granules.
    ///
    /// # Errors
    /// As [`Range::new`], and [`AddressError::Misaligned`].
    pub fn of_granules(start: u64, size: u64) -> Result<Self, AddressError> {
        if !(start | size).is_multiple_of(GRANULE) {
            return Err(AddressError::Misaligned { start, size });
        }
        Self::new(start, size)
    }

    /// First address.
    pub fn start(self) -> A {
        self.start
    }
    /// Bytes.
    pub fn size(self) -> u64 {
        self.size
    }
    /// The address after the last one, at most 2^48.
    pub fn end(self) -> u64 {
        self.start.get() + self.size
    }
    /// Whether there is no address in it.
    pub fn is_empty(self) -> bool {
        self.size == 0
    }
    /// Whether `address` lies in it.
    pub fn contains(self, address: u64) -> bool {
        self.start.get() <= address && address < self.end()
    }
    /// Whether all of `other` lies in it; an empty range lies in none.
    pub fn contains_range(self, other: Self) -> bool {
        !other.is_empty() && self.start.get() <= other.start.get() && other.end() <= self.end()
    }
    /// Whether an address lies in both.
    pub fn overlaps(self, other: Self) -> bool {
        self.start.get().max(other.start.get()) < self.end().min(other.end())
    }
    /// The parts of it that lie in none of `holes`, in ascending order.
    pub fn minus(self, holes: &[Self]) -> impl Iterator<Item = Self> {
        let mut from = self.start.get();
        core::iter::from_fn(move || {
            while let Some(hole) = holes.iter().find(|hole| hole.contains(from)) {
                from = hole.end();
            }
            let starts = holes.iter().filter(|hole| !hole.is_empty()).map(|hole| hole.start.get());
            let next = starts.filter(|&start| start > from).min();
            let end = next.map_or(self.end(), |start| start.min(self.end()));
            let part = Self::new(from, end.checked_sub(from).filter(|&size| size > 0)?).ok()?;
            from = end;
            Some(part)
        })
    }
    /// The smallest range of whole units of `unit` bytes (a power of two) that contains it, cut at 2^48.
    pub fn expanded_to(self, unit: u64) -> Self {
        let start = self.start.get() & !(unit - 1);
        let end = ((self.end() + (unit - 1)) & !(unit - 1)).min(LIMIT);
        // `start` only went down, so it is an address still.
        Self { start: A::new(start).unwrap_or(self.start), size: end - start }
    }
}

impl<A: Address> fmt::Debug for Range<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start.get(), self.end())
    }
}

impl<A: Address> fmt::Display for Range<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start.get(), self.end())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_48_bits_is_the_largest() {
        assert_eq!(Pa::new(LIMIT - 1).map(Pa::get), Ok(LIMIT - 1));
        assert_eq!(Pa::new(LIMIT), Err(AddressError::TooLarge(LIMIT)));
    }

    #[test]
    fn a_range_may_end_at_the_limit_but_not_above() {
        assert_eq!(Range::<Pa>::new(LIMIT - 1, 1).map(Range::end), Ok(LIMIT));
        assert!(Range::<Pa>::new(LIMIT - 1, 2).is_err());
        assert!(Range::<Pa>::new(1, u64::MAX).is_err());
        assert!(Range::<Pa>::of_granules(1, 4096).is_err());
    }

    #[test]
    fn ranges_that_touch_do_not_overlap() {
        let a = Range::<Pa>::new(0x1000, 0x1000).unwrap();
        let b = Range::<Pa>::new(0x2000, 0x1000).unwrap();
        assert!(!a.overlaps(b) && !b.overlaps(a) && a.overlaps(a));
        assert!(!a.contains(0x2000) && b.contains(0x2000));
    }

    #[test]
    fn holes_are_cut_out_wherever_they_lie() {
        let range = |start, size| Range::<Pa>::new(start, size).unwrap();
        let cut = |holes: &[Range<Pa>]| {
            range(10, 20).minus(holes).map(|r| (r.start().get(), r.end())).collect::<Vec<_>>()
        };
        assert_eq!(cut(&[]), [(10, 30)]);
        assert_eq!(cut(&[range(20, 2), range(0, 11), range(21, 4), range(29, 9)]), [(11, 20), (25, 29)]);
        assert_eq!(cut(&[range(0, 64)]), []);
        assert_eq!(cut(&[range(15, 0)]), [(10, 30)]);
        assert_eq!(range(10, 0).minus(&[]).count(), 0);
    }

    #[test]
    fn a_range_expands_to_whole_units() {
        let r = Range::<Pa>::new(0x1fff, 2).unwrap().expanded_to(0x1000);
        assert_eq!((r.start().get(), r.end()), (0x1000, 0x3000));
    }
}
