//! What the CPUs of a machine can do, and how that becomes known.
//!
//! Invariant: pure; what a CPU says of itself comes in as numbers, so any CPU's can be judged on any other.

pub mod detect;
