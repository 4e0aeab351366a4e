//! The realm guest's side: calls to its monitor (RSI), and memory that it shares with its host and takes back.
//!
//! Invariants:
//! - No address translates while what it would reach is in question: a range that changes sides translates nothing from before its first
//!   step to after its last, on every CPU. If it stops half way it stays so ([`Unfinished`]).
//! - What the host says is never believed: only what the monitor answers moves a range on.
//! - Whatever leaves a range is mapped in, and whenever it is asked for, it is changed: only what an end of it cuts is split, by the rule of
//!   [`mapping`](crate::mapping); and what comes back is joined.
//!
//! A realm's address space has two halves (DEN0137 A5.2.1). The lower one is protected: what is there is the realm's own, and its RIPAS says
//! what (A5.2.2). The upper one, with the top bit of the address set, is the host's to fill. To share a page is to give up what is at its
//! protected address (RIPAS EMPTY) and to translate to the same address with the top bit set, its alias. A page of a linear map is in one of
//! these states:
//!
//! | state | its leaf | RIPAS | who can reach it |
//! |---|---|---|---|
//! | encrypted | translates to the protected address | RAM | the realm |
//! | leaving | translates no more | RAM, then EMPTY | nobody |
//! | decrypted | translates to the alias | EMPTY | realm and host |
//! | returning | translates no more | EMPTY, then RAM | nobody but, at its alias, the host |
//! | unfinished | translates no more | as it was, or as asked for | nobody but, at its alias, the host |
//! | given up | no leaf | the same | the same, for good |
//!
//! [`SharedMemory::set_memory_decrypted`] and [`SharedMemory::set_memory_encrypted`] take these steps, in this order:
//!
//! 1. The range's leaves stop translating; an end that cuts a leaf splits it. It comes first, as all that can be refused for want of tables
//!    or of quiet is refused here, with nothing changed.
//! 2. TLBs are invalidated, and that is complete on every CPU. Before step 3, since an access through a stale entry to what is EMPTY by then
//!    is an external abort (A5.2.3, R_JVQQR), and before step 4, as an output address changes by a break only (Arm ARM D8.17.1, R_WHZWS).
//! 3. RSI_IPA_STATE_SET, again from where it stopped until it is done (A5.4, S_TZYZV) or the host would not (S_BZWWC). To EMPTY with
//!    CHANGE_DESTROYED: what is given up may have been lost. To RAM with it where the range was shared, as a host may destroy the tables
//!    of what is EMPTY (A5.2.5, I_KZVDC); without it where it was the realm's own, so that a page that the host has destroyed is told and not
//!    taken for an empty one. (Linux's `set_memory_encrypted` asks for all with CHANGE_DESTROYED.)
//! 4. The leaves translate again, to the alias or no longer to it, and what came back is joined with its neighbours. A store to what does not
//!    translate needs no more than to be seen.
//!
//! What a page held is lost both ways: what was shared comes back as memory that holds anything.
//!
//! Sections are of DEN0137 1.0-rel0, if nothing else is said.

#[cfg(feature = "trial")]
pub mod requests;
mod rsi;
mod shared;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

pub use rmm_abi::v1_0::Granule;
pub use rmm_abi::v1_0::rsi::{
    RsiHashAlgorithm, RsiHostCall, RsiRealmConfig, RsiResponse, RsiRipas, RsiRipasChangeFlags, RsiStatus,
};
pub use rsi::{Config, NoRealm, RipasChange, Rsi, RsiError, Token};
pub use shared::{Cause, SharedMemory, SharingError, Side, Unfinished};
