//! Defined below.
