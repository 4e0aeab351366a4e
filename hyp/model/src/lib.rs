//! A machine whose CPUs walk translation tables, written from the Arm ARM (DDI 0487) and not from the engine: a witness against
//! [`hyp::mapping`], for its tests and for those who embed it.
//!
//! Invariants:
//! - It shares nothing with the engine but the traits through which the engine asks for everything: descriptors and the operands
//!   of TLB maintenance are decoded here again.
//! - What walkers and TLBs *may* do they are taken to have done: each CPU has the set of all that it may hold, which grows with every
//!   store that a walker may observe, and loses only what an invalidation is sure to remove. Any part of such a set can be reached,
//!   so a verdict on the set is one on some run of a real machine, and no run is missed for being unlikely.
//! - What is random or chosen (who goes next) is named by a seed or a schedule, and is the same again.
//!
//! | file | holds |
//! |---|---|
//! | [`decode`] | descriptors and operands (D8.3, D8.17.5), as the architecture writes them |
//! | [`verdict`] | what can be wrong |
//! | [`store`] | words: which values walkers may still observe |
//! | [`tlb`] | what a CPU may hold, and what an invalidation is sure to remove |
//! | [`expect`] | which translations are right at this moment, for calls that have begun and not ended |
//! | [`machine`] | all of it together: one step of one CPU |
//! | [`cache`] | data caches, for memory that a CPU with its MMU off reads or writes |
//! | [`memory`] | the seam: the engine's traits, fulfilled; the only place with `unsafe` |
//! | [`explore`] | every schedule of two CPUs |
//! | [`primitive`] | what the engine offers, one line each, in every regime |
//! | [`lifecycle`] | CPUs that come with their MMU off, and are let in |
//! | [`survey`] | what is explored of the right engine |
//! | [`faults`] | mistakes, each of which must be convicted |

pub mod cache;
pub mod decode;
pub mod expect;
pub mod explore;
pub mod faults;
pub mod lifecycle;
pub mod machine;
pub mod memory;
pub mod primitive;
pub mod store;
pub mod survey;
pub mod tlb;
pub mod verdict;

/// Most CPUs of a machine.
pub const CPUS: usize = 4;
