//! The host as the VMM of a realm: it makes one over RMI, runs each of its RECs on a CPU of its own, answers its exits, takes it apart again,
//! and checks what the RMM promises a host and a realm on the way (DEN0137, chapters A2 to A6, B4, D1).
//!
//! Invariants:
//! - Every granule that was delegated is counted, comes back, and is looked at when it does: all zeros.
//! - Tables of a realm change under one lock, its [`Realm::pool`]; a REC is run by the CPU with its number.
//! - What a realm prints comes as whole lines, by whichever CPU.
//!
//! Words on the command line: `cloven.realm=SIZE` (RAM of the realm, default 64 MiB), `cloven.recs=N` (default 4, at most the CPUs that there
//! are), `cloven.reject=N` (each Nth change of RIPAS is refused), `cloven.partial=SIZE` (no more of a change is made at once),
//! `cloven.reclaim=1` (what becomes EMPTY is taken away and given anew), `cloven.pages=1` (nothing is
//! folded), `cloven.measure=1` (each command is timed on a realm of its own). All words that begin with `cloven.` are the realm's command line.

mod console;
mod devices;
pub mod entry;
mod exits;
mod gic;
mod granules;
mod life;
pub mod linux;
mod measure;
mod memory;
pub mod probes;
mod realm;
pub mod rmi;
mod shared;
mod uart;

pub use life::{Orders, run_here, run_linux, run_realm};
pub use realm::Realm;
