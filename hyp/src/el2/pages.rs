//! The host's calls about its own pages: sharing them with the hypervisor, and giving them to it.
//!
//! Invariant: a call is carried out whole or not at all, and takes a bounded time; what a page is, [`crate::owner`] decides.
//!
//! All are of the vendor-specific hypervisor service (SMC64). x1 is the physical address of the first page, x2 the number of pages, 1 to
//! [`MOST_PAGES`]. x0 of the answer is SUCCESS, INVALID_PARAMETER if that is no range of pages or one of them is not what it has to be, or
//! [`NO_ROOM`] if the hypervisor lacks tables, or a place to remember it in.

use super::smccc::{INVALID_PARAMETER, SUCCESS};
use crate::mapping::{GRANULE, Pa, Range};
use crate::owner::OwnerError;

/// The host's pages become shared with the hypervisor: it may count on them.
pub const CALL_SHARE: u32 = 0xc600_0003;
/// They are the host's alone again.
pub const CALL_UNSHARE: u32 = 0xc600_0004;
/// The host's pages become the hypervisor's, and the host loses them.
pub const CALL_DONATE: u32 = 0xc600_0005;
/// What one [`CALL_DONATE`] has given, the same range, is the host's again, wiped.
pub const CALL_GIVE_BACK: u32 = 0xc600_0006;

/// Pages of one call: 2 MiB.
pub const MOST_PAGES: u64 = 512;
/// It could be done but for want of room. Of this service.
pub const NO_ROOM: i64 = -4;

/// Why a call about pages was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// A page is not what it has to be, or there is no room in a map.
    Owner(OwnerError),
    /// There is no place to remember it in.
    NoRoom,
    /// It was not donated, not in one range, or is back already.
    NotItsOwn,
}

impl From<OwnerError> for Refused {
    fn from(error: OwnerError) -> Self {
        Self::Owner(error)
    }
}

impl Refused {
    /// As the calls say it.
    const fn code(self) -> i64 {
        match self {
            Self::Owner(OwnerError::Map { .. }) | Self::NoRoom => NO_ROOM,
            Self::Owner(_) | Self::NotItsOwn => INVALID_PARAMETER,
        }
    }
}

/// Who carries the calls out.
pub trait Pages {
    /// See [`CALL_SHARE`].
    ///
    /// # Errors
    /// [`Refused::Owner`].
    fn share(&self, range: Range<Pa>) -> Result<(), Refused>;
    /// See [`CALL_UNSHARE`].
    ///
    /// # Errors
    /// [`Refused::Owner`].
    fn unshare(&self, range: Range<Pa>) -> Result<(), Refused>;
    /// See [`CALL_DONATE`].
    ///
    /// # Errors
    /// [`Refused::Owner`], [`Refused::NoRoom`].
    fn donate(&self, range: Range<Pa>) -> Result<(), Refused>;
    /// See [`CALL_GIVE_BACK`].
    ///
    /// # Errors
    /// [`Refused`].
    fn give_back(&self, range: Range<Pa>) -> Result<(), Refused>;
}

/// x0 of the answer to `function`, with x1 and x2, if it is one of these.
pub fn call(pages: &impl Pages, function: u32, [start, count]: [u64; 2]) -> Option<i64> {
    let work = match function {
        CALL_SHARE => Pages::share,
        CALL_UNSHARE => Pages::unshare,
        CALL_DONATE => Pages::donate,
        CALL_GIVE_BACK => Pages::give_back,
        _ => return None,
    };
    let range = (1..=MOST_PAGES).contains(&count).then(|| Range::of_granules(start, count * GRANULE));
    let Some(Ok(range)) = range else { return Some(INVALID_PARAMETER) };
    Some(work(pages, range).map_or_else(Refused::code, |()| SUCCESS))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::vec::Vec;

    use super::*;
    use crate::mapping::{Address, MapError};
    use crate::owner::{HostPage, Party};

    /// Notes what it is asked for, and answers what it was told to.
    struct Noted(RefCell<Vec<(&'static str, u64, u64)>>, Result<(), Refused>);

    impl Noted {
        fn note(&self, what: &'static str, range: Range<Pa>) -> Result<(), Refused> {
            self.0.borrow_mut().push((what, range.start().get(), range.size()));
            self.1
        }
    }

    impl Pages for Noted {
        fn share(&self, range: Range<Pa>) -> Result<(), Refused> {
            self.note("share", range)
        }
        fn unshare(&self, range: Range<Pa>) -> Result<(), Refused> {
            self.note("unshare", range)
        }
        fn donate(&self, range: Range<Pa>) -> Result<(), Refused> {
            self.note("donate", range)
        }
        fn give_back(&self, range: Range<Pa>) -> Result<(), Refused> {
            self.note("give back", range)
        }
    }

    fn asked(
        answer: Result<(), Refused>,
        function: u32,
        args: [u64; 2],
    ) -> (Option<i64>, Vec<(&'static str, u64, u64)>) {
        let noted = Noted(RefCell::default(), answer);
        (call(&noted, function, args), noted.0.into_inner())
    }

    #[test]
    fn each_call_is_carried_out_for_its_pages() {
        for (function, name) in [
            (CALL_SHARE, "share"),
            (CALL_UNSHARE, "unshare"),
            (CALL_DONATE, "donate"),
            (CALL_GIVE_BACK, "give back"),
        ] {
            let expected = (Some(0), std::vec![(name, 0x4000_1000, 0x3000)]);
            assert_eq!(asked(Ok(()), function, [0x4000_1000, 3]), expected);
        }
        assert_eq!(asked(Ok(()), 0xc600_0007, [0x4000_1000, 1]), (None, std::vec![]));
    }

    #[test]
    fn what_is_no_range_of_pages_is_refused_and_reaches_nobody() {
        for args in [
            [0x4000_0800, 1],
            [0x4000_0000, 0],
            [0x4000_0000, 513],
            [0x4000_0000, u64::MAX],
            [u64::MAX << 12, 1],
        ] {
            assert_eq!(asked(Ok(()), CALL_SHARE, args), (Some(-3), std::vec![]), "{args:x?}");
        }
    }

    #[test]
    fn a_refusal_says_whether_the_pages_are_wrong_or_room_is_missing() {
        let wrong = OwnerError::Host { page: 0x4000_0000, found: HostPage::Fixed };
        let error = MapError::OutOfTables { needed: 1, free: 0 };
        let short = OwnerError::Map { party: Party::Host, error };
        for (refused, code) in
            [(wrong.into(), -3), (short.into(), -4), (Refused::NoRoom, -4), (Refused::NotItsOwn, -3)]
        {
            assert_eq!(asked(Err(refused), CALL_DONATE, [0x4000_0000, 1]).0, Some(code));
        }
    }
}
