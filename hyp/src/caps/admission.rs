//! Letting a CPU in: what it lacks is taken from every map before it is told to go on.
//!
//! Invariants:
//! - What can be refused is refused before anything that others use has changed, but for the [lifecycle](super::lifecycle)'s set: that one
//!   is published first, so that a map which is made meanwhile begins with it. Too small a set costs time, and is not wrong.
//! - Who makes a map while CPUs may come lists it among those that are weakened first, and then takes from it what the published set lacks.
//! - A map is weakened, and repainted if the policy says so, by CPUs that its old set is true of; the newcomer translates through it only
//!   afterwards. Two admissions at once are two that weaken the same maps, in any order.

use core::fmt;

use crate::mapping::{Capabilities, Map, MapError, Mmu, Regime, Shape};

use super::lifecycle::{Finalized, Phase, Starting};
use super::policy::{Late, Policy};

/// Who is let in, and how.
#[derive(Clone, Copy, Debug)]
pub struct Admission<'l> {
    /// The set and its phase.
    pub starting: Starting<'l>,
    /// What linear maps consist of.
    pub policy: Policy,
    /// Who is let in late.
    pub late: Late,
}

/// Why a CPU is not let in. Nothing has changed for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// It came late, and lacks these.
    Weaker(Capabilities),
    /// A map could not be repainted for it.
    Map(MapError),
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Weaker(lacks) => write!(f, "it came late and lacks {lacks:?}"),
            Self::Map(error) => write!(f, "the map cannot be made of pages: {error}"),
        }
    }
}

impl core::error::Error for Denied {}

/// A map that the newcomer is to translate through.
pub trait Shared {
    /// What its CPUs can do.
    fn capabilities(&self) -> Capabilities;
    /// Takes from its set what `set` lacks; made of pages before, if `policy` says so of a linear map. Gives the bytes that were.
    ///
    /// # Errors
    /// As [`Map::repaint_and_weaken`]; nothing has changed.
    fn admit(&self, set: Capabilities, policy: Policy) -> Result<u64, MapError>;
}

/// A linear map: its blocks are what a policy is about.
#[derive(Debug)]
pub struct OfPolicy<'m, R: Regime, M: Mmu, S: Shape>(pub &'m Map<R, M, S>);

impl<R: Regime, M: Mmu, S: Shape> Shared for OfPolicy<'_, R, M, S> {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }
    fn admit(&self, set: Capabilities, policy: Policy) -> Result<u64, MapError> {
        let now = self.0.capabilities();
        if policy.repaints(now, now & set) {
            return self.0.repaint_and_weaken(set);
        }
        self.0.admit(set, Policy::KeepBlocks)
    }
}

/// Any map: it keeps its blocks.
impl<R: Regime, M: Mmu, S: Shape> Shared for Map<R, M, S> {
    fn capabilities(&self) -> Capabilities {
        Self::capabilities(self)
    }
    fn admit(&self, set: Capabilities, _: Policy) -> Result<u64, MapError> {
        if !set.contains(self.capabilities()) {
            self.weaken(set);
        }
        Ok(0)
    }
}

impl<'l> Admission<'l> {
    /// Makes a CPU that has `set` one that may translate through `maps`, in their order: only the first may be one
    /// that can refuse. Gives the bytes that became pages.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn admit(&self, set: Capabilities, maps: &[&dyn Shared]) -> Result<u64, Denied> {
        // Of one that was refused before, the maps still have what the published set has lost.
        let all = maps.iter().fold(self.starting.set(), |all, map| all | map.capabilities());
        let lacks = all - set;
        if self.late == Late::Deny && self.starting.phase() == Phase::Finalized && !lacks.is_empty() {
            return Err(Denied::Weaker(lacks));
        }
        self.starting.weaken(set);
        let repainted = maps.iter().map(|map| map.admit(set, self.policy)).sum::<Result<u64, MapError>>();
        repainted.map_err(Denied::Map)
    }
}

/// All CPUs are known: what a linear map may be joined to now. The token says that it is so.
pub fn leaves_of_all<R: Regime, M: Mmu, S: Shape>(
    _all: &Finalized<'_>,
    map: &Map<R, M, S>,
    policy: Policy,
) -> Option<crate::mapping::Leaves> {
    let leaves = policy.leaves(map.capabilities(), Phase::Finalized);
    (policy == Policy::PagesFirst && leaves.blocks).then_some(leaves)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caps::lifecycle::Lifecycle;
    use crate::mapping::fake::FakeMmu;
    use crate::mapping::{Address, Attributes, El2, Geometry, Leaves, Options, Pa, Range, Stage2};

    const MIB: u64 = 1 << 20;

    fn bbm(level: u8) -> Capabilities {
        Capabilities::LEAST | Capabilities::bbm(level)
    }

    /// Lets a CPU of level `newcomer` in where the boot CPU has `boot`, and gives the leaves of level 2 and the level of each map afterwards.
    fn admitted(
        boot: u8,
        newcomer: u8,
        (policy, late): (Policy, Late),
        finalized: bool,
        tables: usize,
    ) -> (Result<u64, Denied>, [usize; 2], [u8; 3]) {
        let mmu = FakeMmu::new(tables);
        let lifecycle = Lifecycle::new();
        let starting = lifecycle.boot(bbm(boot)).unwrap().open(2);
        let options = Options::new(starting.set());
        let own = Map::<El2, _>::new(&mmu, Geometry::stage1(48).unwrap(), options).unwrap();
        let under = Map::<Stage2, _>::new(&mmu, Geometry::stage2(48).unwrap(), options).unwrap();
        let (whole, to) = (4 * MIB, Pa::new(0).unwrap());
        let leaves = policy.leaves(starting.set(), starting.phase());
        let input = Range::new(0, whole).unwrap();
        own.cpu(0).unwrap().write().map(input, to, Attributes::<El2>::DATA, leaves).unwrap();
        let input = Range::new(0, whole).unwrap();
        under.cpu(0).unwrap().write().map(input, to, Attributes::<Stage2>::RAM, Leaves::LARGEST).unwrap();
        if finalized {
            starting.finalize().unwrap();
        }
        let result = Admission { starting, policy, late }.admit(bbm(newcomer), &[&OfPolicy(&own), &under]);
        let own_blocks = own.cpu(0).unwrap().read().census().leaves[2];
        let blocks = [own_blocks, under.cpu(0).unwrap().read().census().leaves[2]];
        let levels = [lifecycle.set(), own.capabilities(), under.capabilities()].map(Capabilities::bbm_level);
        (result, blocks, levels)
    }

    #[test]
    fn every_pair_is_let_in_and_blocks_are_where_the_policy_has_them() {
        for (boot, newcomer) in (0..4).flat_map(|boot| (0..4).map(move |newcomer| (boot, newcomer))) {
            let least = boot.min(newcomer);
            for policy in [Policy::KeepBlocks, Policy::Repaint, Policy::PagesFirst] {
                let blocks = policy == Policy::KeepBlocks || policy == Policy::Repaint && least == 3;
                let repainted = if policy == Policy::Repaint && boot == 3 && least < 3 { 4 * MIB } else { 0 };
                let expected = (Ok(repainted), [if blocks { 2 } else { 0 }, 2], [least; 3]);
                let found = admitted(boot, newcomer, (policy, Late::Admit), false, 16);
                assert_eq!(found, expected, "{policy:?}, {boot} and {newcomer}");
            }
        }
    }

    #[test]
    fn a_weaker_cpu_that_comes_late_is_denied_if_the_embedder_wants_it() {
        let deny = (Policy::KeepBlocks, Late::Deny);
        let (result, blocks, levels) = admitted(3, 1, deny, true, 16);
        assert!(matches!(result, Err(Denied::Weaker(lacks)) if !lacks.is_empty()));
        assert_eq!((blocks, levels), ([2, 2], [3, 3, 3]));
        assert_eq!(admitted(3, 3, deny, true, 16).0, Ok(0));
        assert_eq!(admitted(3, 1, deny, false, 16).0, Ok(0));
        assert_eq!(admitted(3, 1, (Policy::KeepBlocks, Late::Admit), true, 16).2, [1, 1, 1]);
    }

    #[test]
    fn who_cannot_be_repainted_for_is_denied_and_the_maps_are_as_they_were() {
        let repaint = (Policy::Repaint, Late::Admit);
        let (result, blocks, levels) = admitted(3, 0, repaint, false, 7);
        assert!(matches!(result, Err(Denied::Map(MapError::OutOfTables { .. }))));
        assert_eq!((blocks, levels), ([2, 2], [0, 3, 3]));
    }

    #[test]
    fn who_was_refused_before_is_late_all_the_same() {
        let mmu = FakeMmu::new(8);
        let lifecycle = Lifecycle::new();
        let starting = lifecycle.boot(bbm(3)).unwrap().open(2);
        let map =
            Map::<El2, _>::new(&mmu, Geometry::stage1(48).unwrap(), Options::new(starting.set())).unwrap();
        let input = Range::new(0, 64 * MIB).unwrap();
        map.cpu(0)
            .unwrap()
            .write()
            .map(input, Pa::new(0).unwrap(), Attributes::<El2>::DATA, Leaves::LARGEST)
            .unwrap();
        let admission = Admission { starting, policy: Policy::Repaint, late: Late::Deny };
        assert!(matches!(admission.admit(bbm(0), &[&OfPolicy(&map)]), Err(Denied::Map(_))));
        starting.finalize().unwrap();
        assert!(matches!(admission.admit(bbm(0), &[&OfPolicy(&map)]), Err(Denied::Weaker(_))));
    }

    #[test]
    fn only_pages_that_came_first_are_joined_when_all_are_known() {
        let mmu = FakeMmu::new(4);
        let lifecycle = Lifecycle::new();
        let all = lifecycle.boot(bbm(3)).unwrap().open(1).finalize().unwrap();
        let map = Map::<El2, _>::new(&mmu, Geometry::stage1(48).unwrap(), Options::new(all.set())).unwrap();
        assert_eq!(leaves_of_all(&all, &map, Policy::PagesFirst), Some(Leaves::LARGEST));
        assert_eq!(leaves_of_all(&all, &map, Policy::Repaint), None);
        map.weaken(bbm(2));
        assert_eq!(leaves_of_all(&all, &map, Policy::PagesFirst), None);
    }
}
