//! The commands of the realm (DEN0137, chapters B5 and B6).
//!
//! Invariant: a command that the RMM answers alone goes back to the realm at once; what the host has a part in ends in a REC exit.
