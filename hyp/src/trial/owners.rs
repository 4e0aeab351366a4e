//! A trial of ownership on the machine itself: a page of the host's goes through every state, with a scratch realm, and each party is looked at
//! after each call.
//!
//! Invariant: the region is RAM of the host that it does not use meanwhile, and is the host's again at the end.

/// Makes a step alone, of which the host may measure the cost: the number of one of [`Step::ALL`], the start of the region. x0 is 0 if it was made.
pub const MAKE: u32 = 0xc600_001d;
/// Goes through all states: the start of the region. x0 is 0 if every party said what it should after each step, and x1 how often one was asked;
/// else x0 is 1, x1 the number of the step, x2 of the party: 0 the call itself, 1 the host's map, 2 EL2's, 3 the realm's, 4 what memory holds, 5 what EL2
/// translates.
pub const TEST: u32 = 0xc600_001e;

/// Bytes of the region, and what its start is a multiple of.
pub const REGION: u64 = 8 * 4096;
/// The page of it that changes hands; those before are tables of the realm's.
pub const PAGE: u64 = 4 * 4096;

/// What is done to the page, or to the realm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// The realm gets its tables.
    Begin,
    /// The realm's tables are the host's again.
    End,
    /// `GRANULE_DELEGATE`.
    Delegate,
    /// `GRANULE_UNDELEGATE`.
    Undelegate,
    /// `DATA_CREATE_UNKNOWN`.
    Assign,
    /// The same, but the realm does not translate it.
    AssignWithheld,
    /// `DATA_DESTROY`.
    Release,
    /// The page is kept for the realm.
    Keep,
    /// It is so no more.
    Unkeep,
    /// `RTT_MAP_UNPROTECTED`.
    ShareWithRealm,
    /// `RTT_UNMAP_UNPROTECTED`.
    UnshareWithRealm,
    /// From the host to the realm at once.
    DonateToRealm,
    /// And back.
    Reclaim,
    /// Nothing: what the call costs beside.
    Nothing,
}

impl Step {
    /// All, by number.
    pub const ALL: [Self; 14] = [
        Self::Begin,
        Self::End,
        Self::Delegate,
        Self::Undelegate,
        Self::Assign,
        Self::AssignWithheld,
        Self::Release,
        Self::Keep,
        Self::Unkeep,
        Self::ShareWithRealm,
        Self::UnshareWithRealm,
        Self::DonateToRealm,
        Self::Reclaim,
        Self::Nothing,
    ];
}
