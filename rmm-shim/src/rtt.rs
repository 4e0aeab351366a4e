//! An entry of a realm's tables, in the specification's words (A5.5, C1.28 to C1.31).
//!
//! Invariant: only this file knows what a state word means.
