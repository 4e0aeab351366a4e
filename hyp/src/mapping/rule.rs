//! How an entry that CPUs may be translating with becomes another: the break-before-make rule.
//!
//! Invariant: `strategy` is the only place that knows about FEAT_BBM. It looks at what differs between the naturally aligned
//! region before and after (a leaf, a run, or what a child table says in its place) and at the set of capabilities that all CPUs
//! have; everything else in the engine does as it says.
//!
//! | translated before | after | what differs | with | answer | Arm ARM DDI 0487 |
//! |---|---|---|---|---|---|
//! | no | – | – | – | store | D8.17, I_WZCBG: what faults is not cached |
//! | yes | no | – | – | store, then invalidate | D8.16, R_GPPYH |
//! | yes | yes | software bits | – | store | D8.3.2: ignored by hardware, not cached with an effect |
//! | yes | yes | permissions, access flag | – | store, then invalidate | D8.17.1: not in R_WHZWS |
//! | yes | yes | output, memory type, shareability, nG | – | break | D8.17.1, R_WHZWS |
//! | yes | yes | Contiguous bit | level 3 | store, then invalidate | D8.17.2, R_KHRBC |
//! | | | | level 1 or 2, stage 2 | store, then invalidate | R_KHRBC; a conflict is EL2's to answer, R_FCPSG, R_FWRMB |
//! | | | | else | break | R_FCPSG |
//! | yes | yes | size: block to table or back | level 3 | store, then invalidate | D8.17.2, R_KFLJB |
//! | | | | level 2, stage 2 | store, then invalidate | R_KFLJB; a conflict is EL2's to answer, I_HYQMB, R_FWRMB |
//! | | | | else | break | R_WHZWS, R_KFLJB; with nT a fault or a conflict remain possible, R_MRRPW |
//!
//! A break at stage 2 leaves an entry on which a guest faults and is sent back to try again; at stage 1 nobody could take
//! that fault, so it is made while the others stand still. "Level 3" is level 2 without conflict aborts, by FEAT_BBML3 or by part.

use bitflags::bitflags;

bitflags! {
    /// What every CPU that uses a map can do. Sets of several CPUs combine by `&`, so a duty is stored as its absence.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Capabilities: u32 {
        /// FEAT_BBML1: the Contiguous bit may change in place.
        const BBM_LEVEL_1 = 1 << 0;
        /// FEAT_BBML2: sizes may change in place.
        const BBM_LEVEL_2 = 1 << 1;
        /// FEAT_BBML3, or a part known for it: no TLB conflict abort follows from either.
        const NO_CONFLICT_ABORT = 1 << 2;
        /// FEAT_TLBIRANGE: invalidation by range.
        const TLB_RANGE = 1 << 3;
        /// FEAT_TTL: invalidation with the level of the entry.
        const TLB_LEVEL = 1 << 4;
        /// An invalidation need not be repeated (it must on parts with an erratum like Cortex-A76's 1286807).
        const TLBI_ONCE = 1 << 5;
        /// The Contiguous bit may be set.
        const CONTIGUOUS = 1 << 6;
    }
}

impl Capabilities {
    /// What the architecture gives every CPU.
    pub const LEAST: Self = Self::TLBI_ONCE.union(Self::CONTIGUOUS);
    /// All bits of FEAT_BBM.
    pub const BBM: Self = Self::BBM_LEVEL_1.union(Self::BBM_LEVEL_2).union(Self::NO_CONFLICT_ABORT);

    /// The bits for `level` as `ID_AA64MMFR2_EL1.BBM` counts (0 to 3; more is 3).
    pub const fn bbm(level: u8) -> Self {
        match level {
            0 => Self::empty(),
            1 => Self::BBM_LEVEL_1,
            2 => Self::BBM_LEVEL_1.union(Self::BBM_LEVEL_2),
            _ => Self::BBM,
        }
    }

    /// The level of FEAT_BBM that the set amounts to, 0 to 3.
    pub const fn bbm_level(self) -> u8 {
        if self.contains(Self::BBM) {
            3
        } else if self.contains(Self::bbm(2)) {
            2
        } else {
            self.contains(Self::BBM_LEVEL_1) as u8
        }
    }
}

/// Who translates with an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The exception level that changes it, or one that cannot be sent back to try again.
    One,
    /// A guest below it.
    Two,
}

/// What differs between a region before and after.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Difference {
    /// It translated before.
    pub(super) valid_before: bool,
    /// It translates after.
    pub(super) valid_after: bool,
    /// A leaf takes a table's place, or a table a leaf's.
    pub(super) size: bool,
    /// The Contiguous bit.
    pub(super) contiguous: bool,
    /// Output address, memory type, shareability or nG.
    pub(super) memory: bool,
    /// Permissions or access flag.
    pub(super) permissions: bool,
}

/// How to get from one to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Store; nothing that a TLB may hold is stale.
    Store,
    /// Store; what TLBs hold of the region before is owed an invalidation, and may be used until then.
    StoreThenInvalidate,
    /// Store an invalid entry, invalidate, store the new one. Who faults in between tries again.
    BreakBeforeMake,
    /// The same, while everybody else stands still.
    BreakQuiescently,
}

/// The rule.
#[inline(always)]
pub(super) const fn strategy(change: Difference, stage: Stage, capabilities: Capabilities) -> Strategy {
    let broken = match stage {
        Stage::One => Strategy::BreakQuiescently,
        Stage::Two => Strategy::BreakBeforeMake,
    };
    // A conflict abort below is EL2's to answer; one of one's own may strike where none can be taken.
    let conflicts_allowed = match stage {
        Stage::One => capabilities.contains(Capabilities::NO_CONFLICT_ABORT),
        Stage::Two => true,
    };
    let may_resize = conflicts_allowed && capabilities.contains(Capabilities::BBM_LEVEL_2);
    let may_join = conflicts_allowed && capabilities.contains(Capabilities::BBM_LEVEL_1);
    if !change.valid_before {
        Strategy::Store
    } else if !change.valid_after {
        Strategy::StoreThenInvalidate
    } else if change.memory || change.size && !may_resize || change.contiguous && !may_join {
        broken
    } else if change.size || change.contiguous || change.permissions {
        Strategy::StoreThenInvalidate
    } else {
        Strategy::Store
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Strategy::*;

    fn both_valid(size: bool, contiguous: bool, memory: bool, permissions: bool) -> Difference {
        Difference { valid_before: true, valid_after: true, size, contiguous, memory, permissions }
    }

    /// The answers at levels 0, 1, 2 and 3.
    fn answers(change: Difference, stage: Stage) -> [Strategy; 4] {
        [0, 1, 2, 3].map(|level| strategy(change, stage, Capabilities::bbm(level)))
    }

    #[test]
    fn what_did_not_translate_needs_no_care() {
        for stage in [Stage::One, Stage::Two] {
            for valid_after in [false, true] {
                let change = Difference { valid_after, size: true, memory: true, ..Difference::default() };
                assert_eq!(answers(change, stage), [Store; 4]);
            }
        }
    }

    #[test]
    fn what_no_longer_translates_owes_an_invalidation() {
        let change = Difference { valid_after: false, size: true, ..both_valid(false, true, true, true) };
        assert_eq!(answers(change, Stage::One), [StoreThenInvalidate; 4]);
    }

    #[test]
    fn permissions_change_in_place_on_every_level() {
        assert_eq!(answers(both_valid(false, false, false, true), Stage::One), [StoreThenInvalidate; 4]);
        assert_eq!(answers(both_valid(false, false, false, true), Stage::Two), [StoreThenInvalidate; 4]);
        assert_eq!(answers(both_valid(false, false, false, false), Stage::One), [Store; 4]);
    }

    #[test]
    fn outputs_and_memory_types_are_broken_on_every_level() {
        assert_eq!(answers(both_valid(false, false, true, false), Stage::One), [BreakQuiescently; 4]);
        assert_eq!(answers(both_valid(false, false, true, false), Stage::Two), [BreakBeforeMake; 4]);
    }

    #[test]
    fn sizes_change_in_place_at_stage_2_from_level_2_and_at_stage_1_only_without_conflicts() {
        use BreakQuiescently as Quiet;
        let size = both_valid(true, false, false, true);
        assert_eq!(
            answers(size, Stage::Two),
            [BreakBeforeMake, BreakBeforeMake, StoreThenInvalidate, StoreThenInvalidate]
        );
        assert_eq!(answers(size, Stage::One), [Quiet, Quiet, Quiet, StoreThenInvalidate]);
    }

    #[test]
    fn the_contiguous_bit_changes_in_place_at_stage_2_from_level_1() {
        use BreakQuiescently as Quiet;
        let run = both_valid(false, true, false, false);
        assert_eq!(
            answers(run, Stage::Two),
            [BreakBeforeMake, StoreThenInvalidate, StoreThenInvalidate, StoreThenInvalidate]
        );
        assert_eq!(answers(run, Stage::One), [Quiet, Quiet, Quiet, StoreThenInvalidate]);
    }

    #[test]
    fn sets_combine_to_the_weakest_cpu() {
        let strong = Capabilities::LEAST | Capabilities::bbm(3) | Capabilities::TLB_RANGE;
        let repeats = Capabilities::CONTIGUOUS | Capabilities::bbm(2);
        let both = strong & repeats;
        assert_eq!((both.bbm_level(), both.contains(Capabilities::TLBI_ONCE)), (2, false));
        assert_eq!([0, 1, 2, 3, 9].map(|l| Capabilities::bbm(l).bbm_level()), [0, 1, 2, 3, 3]);
    }
}
