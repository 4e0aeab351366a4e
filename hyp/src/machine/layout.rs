//! Who lies where in RAM while the machine boots, and where there is room.
//!
//! Invariant: memory that is handed out here lies in RAM and in nothing that is taken.

use core::fmt;

use crate::mapping::{Address, Pa, Range};

/// Two things that cannot both be where they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutError {
    /// Two things overlap.
    Overlap {
        /// One.
        first: Named,
        /// The other.
        second: Named,
    },
    /// Something is not in RAM that may be used, or not wholly.
    NotInRam(Named),
    /// There is no room for something.
    NoRoom {
        /// What it is.
        what: &'static str,
        /// Bytes that it needs.
        size: u64,
    },
}

/// A range and what lies there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// What it is.
    pub what: &'static str,
    /// Where it lies.
    pub range: Range<Pa>,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.what, self.range)
    }
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Overlap { first, second } => write!(f, "{first} overlaps {second}"),
            Self::NotInRam(named) => write!(f, "{named} is not in RAM"),
            Self::NoRoom { what, size } => write!(f, "no {size:#x} bytes of RAM are free for {what}"),
        }
    }
}

impl core::error::Error for LayoutError {}

/// Checks that each of `things` lies in one bank of `ram` and in none of `holes`, and no two overlap.
///
/// # Errors
/// [`LayoutError::NotInRam`], [`LayoutError::Overlap`].
pub fn check(ram: &[Range<Pa>], holes: &[Range<Pa>], things: &[Named]) -> Result<(), LayoutError> {
    for (number, &thing) in things.iter().enumerate() {
        if !ram.iter().flat_map(|bank| bank.minus(holes)).any(|part| part.contains_range(thing.range)) {
            return Err(LayoutError::NotInRam(thing));
        }
        if let Some(&first) = things[..number].iter().find(|other| other.range.overlaps(thing.range)) {
            return Err(LayoutError::Overlap { first, second: thing });
        }
    }
    Ok(())
}

/// The lowest `size` bytes of `ram`, aligned to `align` (a power of two), that are in none of `taken`.
///
/// # Errors
/// [`LayoutError::NoRoom`], for `what`.
pub fn find_free(
    ram: &[Range<Pa>],
    taken: &[Range<Pa>],
    what: &'static str,
    size: u64,
    align: u64,
) -> Result<Range<Pa>, LayoutError> {
    let lowest = |part: Range<Pa>| part.start().get().checked_next_multiple_of(align);
    places(ram, taken, size, lowest).next().ok_or(LayoutError::NoRoom { what, size })
}

/// As [`find_free`], the highest: out of the way of what is placed later, and of what grows behind a kernel's file.
///
/// # Errors
/// As [`find_free`].
pub fn find_free_high(
    ram: &[Range<Pa>],
    taken: &[Range<Pa>],
    what: &'static str,
    size: u64,
    align: u64,
) -> Result<Range<Pa>, LayoutError> {
    let highest = |part: Range<Pa>| Some(part.end().checked_sub(size)? & !(align - 1));
    let found = places(ram, taken, size, highest).max_by_key(|range| range.start().get());
    found.ok_or(LayoutError::NoRoom { what, size })
}

/// In each free part of `ram` the `size` bytes that begin where `start` says, if they lie in it.
fn places<'a>(
    ram: &'a [Range<Pa>],
    taken: &'a [Range<Pa>],
    size: u64,
    start: impl Fn(Range<Pa>) -> Option<u64> + 'a,
) -> impl Iterator<Item = Range<Pa>> + 'a {
    let fits = move |part: Range<Pa>| {
        let range = Range::new(start(part)?, size).ok()?;
        part.contains_range(range).then_some(range)
    };
    ram.iter().flat_map(|bank| bank.minus(taken)).filter_map(fits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, size: u64) -> Range<Pa> {
        Range::new(start, size).unwrap()
    }

    #[test]
    fn things_that_overlap_or_leave_ram_are_named() {
        let ram = [range(0x1000, 0x1000), range(0x4000, 0x1000)];
        let kernel = Named { what: "kernel", range: range(0x1000, 0x800) };
        let tree = Named { what: "device tree", range: range(0x17ff, 1) };
        let far = Named { what: "initrd", range: range(0x1f00, 0x200) };
        assert_eq!(check(&ram, &[], &[kernel]), Ok(()));
        assert_eq!(
            check(&ram, &[], &[kernel, tree]),
            Err(LayoutError::Overlap { first: kernel, second: tree })
        );
        assert_eq!(check(&ram, &[], &[far]), Err(LayoutError::NotInRam(far)));
        assert_eq!(check(&ram, &[range(0x1100, 0x100)], &[kernel]), Err(LayoutError::NotInRam(kernel)));
    }

    #[test]
    fn room_is_found_in_the_second_bank_if_the_first_is_full() {
        let ram = [range(0, 0x2000), range(0x8000, 0x8000)];
        let free = find_free(&ram, &[range(0, 0x1800)], "payload", 0x1000, 0x1000);
        assert_eq!(free, Ok(range(0x8000, 0x1000)));
        let none = find_free(&ram, &[], "payload", 0x9000, 0x1000);
        assert_eq!(none, Err(LayoutError::NoRoom { what: "payload", size: 0x9000 }));
    }

    proptest! {
        #[test]
        fn free_memory_is_in_ram_aligned_and_not_taken(
            taken in prop::collection::vec((0u64..0x100, 0u64..0x20), 0..12),
            size in 1u64..0x40,
            align in 0u32..6,
        ) {
            let ram = [range(0x10, 0x70), range(0xa0, 0x60)];
            let taken: Vec<_> = taken.into_iter().map(|(start, size)| range(start, size)).collect();
            let fits = |start: u64| {
                let r = range(start, size);
                start.is_multiple_of(1 << align)
                    && ram.iter().any(|bank| bank.contains_range(r))
                    && !taken.iter().any(|t| t.overlaps(r))
            };
            let found = find_free(&ram, &taken, "x", size, 1 << align).ok().map(|r| r.start().get());
            prop_assert_eq!(found, (0..0x100).find(|&start| fits(start)));
            let found = find_free_high(&ram, &taken, "x", size, 1 << align).ok().map(|r| r.start().get());
            prop_assert_eq!(found, (0..0x100).rfind(|&start| fits(start)));
        }
    }
}
