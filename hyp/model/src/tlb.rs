//! What one CPU may hold of translations, and what an invalidation is sure to remove.
//!
//! Invariants:
//! - The set only grows by walks and shrinks by what an operation is *guaranteed* to remove (D8.17.5, D8.17.6), once the DSB after it
//!   is executed (R_YNJCP, R_PSMWS). An entry that a walk could have brought back since the operation was issued stays: an operation
//!   may have worked at any moment between (R_TGVWD).
//! - A run is held leaf by leaf: an entry for each of its leaves, as the leaf that was read predicts it. An operation need not remove
//!   more of a run than the leaf that it names (R_LQLSD, I_JQPNP).
//! - Where several entries translate an address, only the ALL and VMALL forms are sure to remove them (R_BLRKC, R_GRVDR), unless the
//!   CPU has no conflicts.

use std::collections::BTreeSet;

use crate::decode::{Layout, Target};
use crate::store::Observed;

/// A descriptor of the last level of a walk, as a TLB holds it. Ordered by address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Leaf {
    /// First address, as an offset into the map's half.
    pub start: u64,
    /// Level of the leaf.
    pub level: u8,
    /// It was read from, or predicted by, a leaf with the Contiguous bit.
    pub contiguous: bool,
    /// It combines both stages.
    pub combined: bool,
    /// First output address.
    pub output: u64,
    /// Attribute bits.
    pub bits: u64,
    /// What tables above take away.
    pub limits: u64,
    /// The address space, if it is not global.
    pub asid: Option<u16>,
}

/// A table descriptor in a walk cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Table {
    /// First address that the descriptor spans.
    pub start: u64,
    /// Level of the descriptor.
    pub level: u8,
    /// The table.
    pub next: u64,
    /// What it and those above take away.
    pub limits: u64,
    /// The address space of the walk.
    pub asid: u16,
    /// What the walk had observed.
    pub observed: Observed,
}

/// Either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The last level.
    Leaf(Leaf),
    /// Above.
    Table(Table),
}

/// A set of entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    /// The last level's.
    pub leaves: BTreeSet<Leaf>,
    /// Those above.
    pub tables: BTreeSet<Table>,
}

impl Set {
    /// Adds an entry; whether it was not there.
    pub fn insert(&mut self, entry: Entry) -> bool {
        match entry {
            Entry::Leaf(leaf) => self.leaves.insert(leaf),
            Entry::Table(table) => self.tables.insert(table),
        }
    }
    /// Whether there is a table entry like this, whatever it has observed.
    pub fn has_table(&self, table: &Table) -> bool {
        self.tables.contains(table)
    }
    /// The leaves that translate an address of `start .. end`.
    pub fn overlapping<'a>(
        &'a self,
        layout: &'a Layout,
        start: u64,
        end: u64,
    ) -> impl Iterator<Item = &'a Leaf> {
        let least = |start| Leaf {
            start,
            level: 0,
            contiguous: false,
            combined: false,
            output: 0,
            bits: 0,
            limits: 0,
            asid: None,
        };
        let above = (1..=3u8).filter_map(move |level| {
            let at = start & !(layout.size(level) - 1);
            (at < start)
                .then(|| self.leaves.range(least(at)..least(at + 1)).filter(move |leaf| leaf.level == level))
        });
        above.flatten().chain(self.leaves.range(least(start)..least(end)))
    }
    /// Feeds everything to a hash.
    pub fn fingerprint(&self, into: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        self.leaves.hash(into);
        self.tables.hash(into);
    }
}

/// Whether the operation is one that names the entry.
pub fn names(target: &Target, entry: &Entry, layout: &Layout) -> bool {
    match (*target, entry) {
        (Target::All, _) => true,
        (Target::Nothing, _) => false,
        // VMALLE1: stage 1, and what it has been combined with.
        (Target::Combined, Entry::Leaf(leaf)) => leaf.combined,
        (Target::Combined, Entry::Table(_)) => false,
        // C5.5, ASIDE1: from above the last level, and what is not global from the last.
        (Target::Asid(asid), Entry::Leaf(leaf)) => leaf.asid == Some(asid),
        (Target::Asid(asid), Entry::Table(table)) => table.asid == asid,
        (Target::Addresses { start, end, level, asid, .. }, Entry::Leaf(leaf)) => {
            leaf.start < end
                && start < leaf.start + layout.size(leaf.level)
                // R_SQXYZ: with the wrong level nothing need be removed.
                && level.is_none_or(|level| level == leaf.level)
                && (asid.is_none() || leaf.asid.is_none() || leaf.asid == asid)
                // R_VZZVZ: IPAS2E1 need not reach what combines the stages.
                && !leaf.combined
        }
        (Target::Addresses { start, end, level, last_level, asid }, Entry::Table(table)) => {
            !last_level
                && table.start < end
                && start < table.start + layout.size(table.level)
                && level.is_none_or(|level| level > table.level)
                && asid.is_none_or(|asid| asid == table.asid)
        }
    }
}

/// Whether another entry of the set translates an address of this one, in another size: then it is sure to go only with everything.
pub fn has_rival(set: &Set, entry: &Entry, layout: &Layout) -> bool {
    match entry {
        Entry::Leaf(leaf) => {
            let end = leaf.start + layout.size(leaf.level);
            let other = |other: &&Leaf| {
                other.combined == leaf.combined
                    && (other.level != leaf.level || other.contiguous != leaf.contiguous)
            };
            let above =
                |table: &&Table| table.level >= leaf.level && leaf.start <= table.start && table.start < end;
            // A walk cache of stage 2 is no rival of what combines the stages.
            set.overlapping(layout, leaf.start, end).any(|o| other(&o))
                || !leaf.combined && set.tables.iter().any(|t| above(&t))
        }
        Entry::Table(table) => {
            let end = table.start + layout.size(table.level);
            set.overlapping(layout, table.start, end)
                .any(|leaf| !leaf.combined && leaf.level <= table.level && leaf.start <= table.start)
        }
    }
}
