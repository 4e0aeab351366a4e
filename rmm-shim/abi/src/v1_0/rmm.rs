//! States that the specification models but does not encode (DEN0137, chapter C1).
//!
//! Invariant: exactly what it names; how they are kept is the RMM's.
//!
//! Compared: C1.9, C1.26, C1.30, B3.49 and B3.61 with TF-RMM `ripas.h` and `rtt.c`. They agree.

use super::rmi::{RmiRipas, RmiRttEntryState};
use super::rsi::RsiRipas;

/// What a realm may expect at a protected IPA: realm IPA state (C1.26).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RmmRipas {
    /// Nothing.
    Empty,
    /// Its own code or data.
    Ram,
    /// What was there, until the host took it away.
    Destroyed,
    /// Memory of a device. No command of 1.0 makes it.
    Dev,
}

impl RmmRipas {
    /// Its encoding for the host (B3.49), which has none for [`Dev`](Self::Dev).
    pub const fn to_rmi(self) -> Option<RmiRipas> {
        match self {
            Self::Empty => Some(RmiRipas::Empty),
            Self::Ram => Some(RmiRipas::Ram),
            Self::Destroyed => Some(RmiRipas::Destroyed),
            Self::Dev => None,
        }
    }

    /// Its encoding for the realm.
    pub const fn to_rsi(self) -> RsiRipas {
        match self {
            Self::Empty => RsiRipas::Empty,
            Self::Ram => RsiRipas::Ram,
            Self::Destroyed => RsiRipas::Destroyed,
            Self::Dev => RsiRipas::Dev,
        }
    }
}

/// What the host has put at an IPA: host IPA state (C1.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RmmHipas {
    /// A DATA granule, at a protected IPA.
    Assigned,
    /// A granule of the host's, at an unprotected IPA.
    AssignedNs,
    /// Nothing, at a protected IPA.
    Unassigned,
    /// Nothing, at an unprotected IPA.
    UnassignedNs,
}

/// The state of an RTT entry (C1.30).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RmmRttEntryState {
    /// It translates, or with RIPAS other than RAM would, or does not: what the host has put there says it.
    Entry(RmmHipas),
    /// It points to an RTT of the next level.
    Table,
}

impl RmmRttEntryState {
    /// Its encoding, in which the halves of the address space are not told apart (B3.61).
    pub const fn to_rmi(self) -> RmiRttEntryState {
        match self {
            Self::Entry(RmmHipas::Assigned | RmmHipas::AssignedNs) => RmiRttEntryState::Assigned,
            Self::Entry(RmmHipas::Unassigned | RmmHipas::UnassignedNs) => RmiRttEntryState::Unassigned,
            Self::Table => RmiRttEntryState::Table,
        }
    }

    /// Whether an address is stored in the entry (RTTE liveness, A5.5.8).
    pub const fn is_live(self) -> bool {
        !matches!(self, Self::Entry(RmmHipas::Unassigned | RmmHipas::UnassignedNs))
    }
}
