//! What an embedder decides: the leaves of a linear map while CPUs may still come that cannot split them in place, and who is let in late.
//!
//! Invariant: where a policy gives blocks, changing part of one is possible: in place under the set of that moment, or by a break while the
//! others stand still ([`gate`](super::gate)). So a policy costs memory or time, and never a request.
//!
//! Leaves of a linear map, by the set of capabilities that counts at that moment ("level 3": sizes change in place and nothing conflicts):
//!
//! | policy | boot CPU, level 3 | boot CPU, below | a CPU below level 3 comes | all are known, level 3 | all are known, below |
//! |---|---|---|---|---|---|
//! | [`Policy::KeepBlocks`] | blocks | blocks | blocks stay, changes break | – | – |
//! | [`Policy::Repaint`] | blocks | pages | blocks become pages, then it is let in | – | – |
//! | [`Policy::PagesFirst`] | pages | pages | pages stay; blocks become pages, if it comes late | pages become blocks | pages stay |
//!
//! Stage 2 keeps its blocks under each: a guest that meets a break is sent back to try again.

use crate::mapping::{Capabilities, Leaves};

use super::lifecycle::Phase;

/// What a linear map consists of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Blocks, whoever comes: least memory. Below level 3 each split makes the other CPUs stand still for a moment.
    #[default]
    KeepBlocks,
    /// Blocks for as long as they can be split in place, then pages: as Linux does it, and 2 MiB of tables for each GiB.
    Repaint,
    /// Pages until all CPUs are known, then blocks if they can be split in place: the tables are needed in any case, at first.
    PagesFirst,
}

/// Who is let in after the set was final.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Late {
    /// Everybody, as before.
    #[default]
    Admit,
    /// Who has all that the set has.
    Deny,
}

/// Whether sizes change in place.
fn in_place(set: Capabilities) -> bool {
    set.contains(Capabilities::BBM)
}

impl Policy {
    /// The policy that the parameter `cloven.policy` names.
    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "keep" => Self::KeepBlocks,
            "repaint" => Self::Repaint,
            "pages" => Self::PagesFirst,
            _ => return None,
        })
    }

    /// The largest leaves of a linear map under `set` in `phase`.
    pub fn leaves(self, set: Capabilities, phase: Phase) -> Leaves {
        let blocks = match self {
            Self::KeepBlocks => true,
            Self::Repaint => in_place(set),
            Self::PagesFirst => phase == Phase::Finalized && in_place(set),
        };
        if blocks { Leaves::LARGEST } else { Leaves::PAGES }
    }

    /// Whether a linear map under `set` has to become pages before a CPU is let in with which it is under `smaller`.
    pub fn repaints(self, set: Capabilities, smaller: Capabilities) -> bool {
        self != Self::KeepBlocks && in_place(set) && !in_place(smaller)
    }
}

impl Late {
    /// What the parameter `cloven.late` names.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "admit" => Some(Self::Admit),
            "deny" => Some(Self::Deny),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// B or p for each level of the boot CPU.
    fn row(policy: Policy, phase: Phase) -> String {
        let has_blocks = |level| policy.leaves(Capabilities::bbm(level), phase).blocks;
        [0, 1, 2, 3].map(|level| if has_blocks(level) { 'B' } else { 'p' }).into_iter().collect()
    }

    #[test]
    fn blocks_are_where_the_table_says() {
        for phase in [Phase::Boot, Phase::Starting, Phase::Finalized] {
            assert_eq!(row(Policy::KeepBlocks, phase), "BBBB");
            assert_eq!(row(Policy::Repaint, phase), "pppB");
        }
        assert_eq!(row(Policy::PagesFirst, Phase::Boot), "pppp");
        assert_eq!(row(Policy::PagesFirst, Phase::Starting), "pppp");
        assert_eq!(row(Policy::PagesFirst, Phase::Finalized), "pppB");
    }

    #[test]
    fn only_the_loss_of_level_3_repaints() {
        for (set, smaller) in (0..4).flat_map(|set| (0..=set).map(move |smaller| (set, smaller))) {
            let repaints =
                |policy: Policy| policy.repaints(Capabilities::bbm(set), Capabilities::bbm(smaller));
            assert!(!repaints(Policy::KeepBlocks));
            assert_eq!(repaints(Policy::Repaint), set == 3 && smaller < 3);
            assert_eq!(repaints(Policy::PagesFirst), set == 3 && smaller < 3);
        }
    }

    #[test]
    fn names_are_parsed_and_others_refused() {
        assert_eq!(
            ["keep", "repaint", "pages", "page"].map(Policy::parse),
            [Some(Policy::KeepBlocks), Some(Policy::Repaint), Some(Policy::PagesFirst), None]
        );
        assert_eq!(["admit", "deny", ""].map(Late::parse), [Some(Late::Admit), Some(Late::Deny), None]);
    }
}
