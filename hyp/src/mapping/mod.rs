//! The mapping engine: translation tables of the VMSAv8-64 format (Arm ARM DDI 0487 D8), 4 KiB granule, 48-bit addresses, for the EL2
//! regime, stage 1 of the EL1&0 regime and stage 2, while CPUs are translating through them.
//!
//! Invariants:
//! - A call that fails has changed nothing. Whatever can fail (alignment, overlap, table memory, CPUs that will not stand still) is found
//!   out in a first walk; the second only stores.
//! - No CPU sees a translation that is neither the old one nor the new one, and none is missing but while it is broken by
//!   the rule.
//! - What a change owes to TLBs is known to the map before the change is made, until it is paid.
//!
//! Pure: no assembly, nothing of the target, so the same code runs under a host's tests. Everything it does to the world goes through
//! [`mmu::Mmu`].
//!
//! A [`Map`] is used through `&self`. [`Map::protect`], [`Map::split_at`] and their like run on any number of CPUs at once; what
//! adds and removes translations goes through the one [`Writer`]; a [`Reader`] walks beside all of them.
//!
//! | file | holds |
//! |---|---|
//! | [`addr`] | addresses and ranges, checked when made |
//! | [`geometry`] | sizes of tables and runs, as a type; where a map begins |
//! | [`descriptor`] | the regimes, their attributes, and a raw entry decoded once into a view |
//! | [`mmu`] | what the engine asks of its surroundings |
//! | [`rule`] | break before make: the only place that knows of FEAT_BBM |
//! | `update` | the only place that stores to a live table; who owns which word |
//! | `edit` | one walk that changes a range: protect, split, unmap |
//! | `collapse` | joining what was split |
//! | `page` | one page, by one walk and one store |
//! | [`map`] | the map, its writer, reclaiming tables |
//! | [`walk`] | reading beside writers |
//! | [`dump`] | what a map says, for people and machines to read |
//! | [`tlb`] | what a change owes to TLBs, and how it is paid |
//! | [`pool`] | table memory: finite, counted, fallible |

pub mod addr;
mod collapse;
pub mod descriptor;
pub mod dump;
mod edit;
pub mod geometry;
pub mod map;
pub mod mmu;
mod page;
pub mod pool;
pub mod rule;
pub mod tlb;
mod update;
pub mod walk;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;

pub use addr::{Address, AddressError, GRANULE, Ipa, Pa, Range, Va};
pub use descriptor::{Attributes, Change, El1And0, El2, Entry, Regime, Stage2, State};
pub use dump::Extent;
pub use geometry::{Geometry, Granule4K, Shape, Tiny};
pub use map::{Leaves, Map, MapError, Options, PreparedMap, Writer};
pub use mmu::{Barrier, Linear, Mmu, NoQuiesce, Quiesce, Scope, TableMemory, TablePool, Tlbi};
pub use page::Page;
pub use pool::Pool;
pub use rule::{Capabilities, Stage, Strategy};
pub use tlb::{Debt, Tag};
pub use update::Counts;
pub use walk::{Census, Cpu, Reader, Slot, Translation, Visited};
