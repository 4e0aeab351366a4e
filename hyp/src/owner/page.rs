//! What an entry of each map says of a page, in words.
//!
//! Invariant: only this file knows which mark and which state word means what; what no call of this room has written is fixed.

use core::fmt;

use crate::mapping::descriptor::Attributes;
use crate::mapping::{Address, Change, El2, Entry, Pa, Stage2, State, Visited};

/// The mark of a host's leaf that is shared with the hypervisor.
const SHARED_WITH_HYPERVISOR: u8 = 1;
/// The mark of a host's leaf that is shared with a realm.
const SHARED_WITH_REALM: u8 = 2;
/// The mark of a realm's leaf that is the host's memory.
const BORROWED: u8 = 1;

/// State words: what it is in bits 3:0, whose in bits 19:4, nothing above.
const REALM_SHIFT: u32 = 4;
const KIND: u64 = 0b1111;

/// What a realm has a page for (RMM specification DEN0137, A2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Its memory (`DATA`).
    Data,
    /// Its descriptor (`RD`).
    Descriptor,
    /// An execution context (`REC`).
    Rec,
    /// What an execution context has besides (`REC_AUX`).
    Aux,
    /// A translation table (`RTT`).
    Table,
}

/// Who has a page that the host has not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// The hypervisor, since the host has donated it.
    Hypervisor,
    /// The hypervisor, for realms: it is none's yet.
    Delegated,
    /// The realm of this number.
    Realm(u16, Purpose),
}

impl Keeper {
    /// The word for it in the host's map.
    #[inline(always)]
    pub const fn state(self) -> State {
        let (kind, realm) = match self {
            Self::Hypervisor => (1, 0),
            Self::Delegated => (2, 0),
            Self::Realm(realm, Purpose::Data) => (4, realm),
            Self::Realm(realm, Purpose::Descriptor) => (5, realm),
            Self::Realm(realm, Purpose::Rec) => (6, realm),
            Self::Realm(realm, Purpose::Table) => (7, realm),
            Self::Realm(realm, Purpose::Aux) => (8, realm),
        };
        match State::new(kind | (realm as u64) << REALM_SHIFT) {
            Some(state) => state,
            // 20 bits are not more than 60.
            None => unreachable!(),
        }
    }

    /// Whom a word in the host's map names, if it is one of ours.
    pub const fn of(state: State) -> Option<Self> {
        let value = state.get();
        if value >> (REALM_SHIFT + u16::BITS) != 0 {
            return None;
        }
        let realm = (value >> REALM_SHIFT) as u16;
        match (value & KIND, realm) {
            (1, 0) => Some(Self::Hypervisor),
            (2, 0) => Some(Self::Delegated),
            (4, _) => Some(Self::Realm(realm, Purpose::Data)),
            (5, _) => Some(Self::Realm(realm, Purpose::Descriptor)),
            (6, _) => Some(Self::Realm(realm, Purpose::Rec)),
            (7, _) => Some(Self::Realm(realm, Purpose::Table)),
            (8, _) => Some(Self::Realm(realm, Purpose::Aux)),
            _ => None,
        }
    }
}

/// What the host's stage 2 says of a page: that is, what the page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostPage {
    /// The host's alone.
    Owned,
    /// The host's; the hypervisor may count on it.
    SharedWithHypervisor,
    /// The host's, and a realm has it too.
    SharedWithRealm,
    /// Not the host's to use.
    Kept(Keeper),
    /// Nothing that changes hands: a device, or the hypervisor's from the start.
    Fixed,
}

impl HostPage {
    /// What an entry of the host's stage 2 says of the pages that it spans.
    pub fn of(visited: &Visited<Stage2>) -> Self {
        match visited.entry {
            Entry::Leaf { output, attributes, valid: true, .. }
                if output.get() == visited.start && attributes.marked(0) == Attributes::<Stage2>::RAM =>
            {
                match attributes.mark() {
                    0 => Self::Owned,
                    SHARED_WITH_HYPERVISOR => Self::SharedWithHypervisor,
                    SHARED_WITH_REALM => Self::SharedWithRealm,
                    _ => Self::Fixed,
                }
            }
            Entry::State(state) => Keeper::of(state).map_or(Self::Fixed, Self::Kept),
            _ => Self::Fixed,
        }
    }

    /// Whether an entry of the host's stage 2 says that the pages that it spans are devices, and the host's to access.
    pub(super) fn is_device(visited: &Visited<Stage2>) -> bool {
        matches!(visited.entry, Entry::Leaf { output, attributes, valid: true, .. }
            if output.get() == visited.start && attributes == Attributes::<Stage2>::IO)
    }

    /// The entry of the host's that says so of a page, if there is one.
    #[inline(always)]
    pub(super) const fn entry(self, page: Pa) -> Option<Entry<Stage2>> {
        let mark = match self {
            Self::Owned => 0,
            Self::SharedWithHypervisor => SHARED_WITH_HYPERVISOR,
            Self::SharedWithRealm => SHARED_WITH_REALM,
            Self::Kept(keeper) => return Some(Entry::State(keeper.state())),
            Self::Fixed => return None,
        };
        let attributes = Attributes::<Stage2>::RAM.marked(mark);
        Some(Entry::Leaf { output: page, attributes, contiguous: false, valid: true })
    }

    /// What makes a leaf of the host's say so, of those that the host has.
    pub(super) const fn mark(self) -> Option<Change<Stage2>> {
        match self {
            Self::Owned => Some(Change::software(0)),
            Self::SharedWithHypervisor => Some(Change::software(SHARED_WITH_HYPERVISOR)),
            Self::SharedWithRealm => Some(Change::software(SHARED_WITH_REALM)),
            Self::Kept(_) | Self::Fixed => None,
        }
    }
}

impl fmt::Display for HostPage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Owned => f.write_str("the host's"),
            Self::SharedWithHypervisor => f.write_str("shared with the hypervisor"),
            Self::SharedWithRealm => f.write_str("shared with a realm"),
            Self::Kept(Keeper::Hypervisor) => f.write_str("the hypervisor's"),
            Self::Kept(Keeper::Delegated) => f.write_str("delegated"),
            Self::Kept(Keeper::Realm(realm, purpose)) => {
                let purpose = match purpose {
                    Purpose::Data => "data",
                    Purpose::Descriptor => "descriptor",
                    Purpose::Rec => "REC",
                    Purpose::Aux => "what a REC has besides",
                    Purpose::Table => "table",
                };
                write!(f, "{purpose} of realm {realm}")
            }
            Self::Fixed => f.write_str("nothing that changes hands"),
        }
    }
}

/// What the EL2 map says of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HypervisorPage {
    /// The hypervisor can reach it, as data.
    Mapped,
    /// It could before, and will again.
    Away,
    /// The hypervisor's image, a device, or nothing.
    Fixed,
}

impl HypervisorPage {
    /// The entry that says so of a page, if there is one.
    #[inline(always)]
    pub(super) const fn entry(self, page: Pa) -> Option<Entry<El2>> {
        let valid = match self {
            Self::Mapped => true,
            Self::Away => false,
            Self::Fixed => return None,
        };
        Some(Entry::Leaf { output: page, attributes: Attributes::<El2>::DATA, contiguous: false, valid })
    }

    /// What an entry of the EL2 map says of the pages that it spans.
    pub fn of(visited: &Visited<El2>) -> Self {
        match visited.entry {
            // What is the hypervisor's own is marked.
            Entry::Leaf { output, attributes, valid, .. }
                if output.get() == visited.start && attributes == Attributes::<El2>::DATA =>
            {
                if valid {
                    Self::Mapped
                } else {
                    Self::Away
                }
            }
            _ => Self::Fixed,
        }
    }
}

/// What the stage 2 of a realm says of an IPA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RealmPage {
    /// It translates nothing; this is what is known of it.
    Vacant(Option<State>),
    /// This page is there, and the realm's.
    Owned(Pa),
    /// This page is there, and the realm's, and does not translate: its owner comes to it only when it is made to again.
    Withheld(Pa),
    /// This page is there, and the host's.
    Borrowed(Pa),
    /// What no call of this room has mapped.
    Fixed,
}

impl RealmPage {
    /// What an entry of a realm's stage 2 says of its first IPA, and so of those after it.
    pub fn of(visited: &Visited<Stage2>) -> Self {
        Self::of_entry(&visited.entry)
    }

    #[inline(always)]
    pub(super) fn of_entry(entry: &Entry<Stage2>) -> Self {
        match *entry {
            Entry::Empty | Entry::Unlinked(_) => Self::Vacant(None),
            Entry::State(state) => Self::Vacant(Some(state)),
            Entry::Leaf { output, attributes, valid, .. } => match (attributes.mark(), valid) {
                (0, true) => Self::Owned(output),
                (0, false) => Self::Withheld(output),
                (BORROWED, true) => Self::Borrowed(output),
                _ => Self::Fixed,
            },
            _ => Self::Fixed,
        }
    }

    /// The attributes of the leaf that says so, of one that has these otherwise.
    pub(super) const fn owned(attributes: Attributes<Stage2>) -> Attributes<Stage2> {
        attributes.marked(0)
    }
    /// See [`RealmPage::owned`].
    pub(super) const fn borrowed(attributes: Attributes<Stage2>) -> Attributes<Stage2> {
        attributes.marked(BORROWED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_names_the_keeper_it_was_made_for_and_no_other_word_names_one() {
        let realms = [0, 1, 7, u16::MAX];
        let purposes = [Purpose::Data, Purpose::Descriptor, Purpose::Rec, Purpose::Aux, Purpose::Table];
        let of_realms =
            realms.into_iter().flat_map(|realm| purposes.map(|purpose| Keeper::Realm(realm, purpose)));
        let all: Vec<_> = [Keeper::Hypervisor, Keeper::Delegated].into_iter().chain(of_realms).collect();
        for (i, &keeper) in all.iter().enumerate() {
            assert_eq!(Keeper::of(keeper.state()), Some(keeper));
            assert!(all[..i].iter().all(|other| other.state() != keeper.state()));
        }
        for word in [0, 3, 9, 0x11, 0x12, 1 << 20 | 4, 1 << 59 | 1] {
            assert_eq!(State::new(word).and_then(Keeper::of), None, "{word:#x}");
        }
    }
}
