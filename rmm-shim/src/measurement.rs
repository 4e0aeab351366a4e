//! Measurements: the hash functions that a realm can be measured with (A7.1).
//!
//! Invariant: a hash shorter than a measurement is followed by zeroes.
