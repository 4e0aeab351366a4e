//! The mapping engine: translation tables of the VMSAv8-64 format (Arm ARM DDI 0487 D8), 4 KiB granule,
//! 48-bit addresses, for the EL2 regime, the EL1&0 regime and stage 2.
//!
//! Invariant: a call that fails has stored nothing. Whatever can fail (alignment, overlap, table memory) is
//! found out in a first walk; the second walk only stores.
//!
//! Pure: no assembly, nothing of the target, so the same code runs under a host's tests. In this
//! version a map is built while no CPU walks it, then handed to an install point (`stage1`,
//! `stage2`), which makes it visible; a live map does not change.
//!
//! | file | holds |
//! |---|---|
//! | [`addr`] | addresses and ranges, checked when made |
//! | [`descriptor`] | the regimes, their attributes, and a raw entry decoded once into a view |
//! | [`pool`] | table memory: finite, counted, fallible |
//! | [`map`] | mapping a range in the largest leaves and runs that fit; translation |

pub mod addr;
pub mod descriptor;
pub mod map;
pub mod pool;

pub use addr::{Address, AddressError, GRANULE, Ipa, Pa, Range, Va};
pub use descriptor::{Attributes, El1And0, El2, Regime, Stage2};
pub use map::{Census, Geometry, Leaves, Map, MapError};
pub use pool::{Pool, Table};
