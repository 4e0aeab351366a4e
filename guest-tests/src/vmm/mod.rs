//! The host as the VMM of a realm: it makes one over RMI, runs each of its RECs on a CPU of its own, answers its exits, takes it apart again,
//! and checks what the RMM promises a host and a realm on the way (DEN0137, chapters A2 to A6, B4, D1).
//!
//! Invariants:
//! - Every granule that was delegated is counted, comes back, and is looked at when it does: all zeros.
//! - Tables of a realm change under one lock, its [`Realm::pool`]; a REC is run by the CPU with its number.
//! - What a realm prints comes as whole lines, by whichever CPU; a Linux as it sends it.
//!
//! The realm is the payload that is built in, or the Linux that the command line names ([`linux`]). The payload asks its host for what it
//! tests by host calls, and has no device but a place to print at. A Linux has devices (an interrupt controller, a UART, a console and a disk), and
//! the memory that it shares is theirs too; it is made, run and taken apart by the same code, with the host's checks, and the other checks of
//! the host payload are left out.
//!
//! A CPU runs one REC, and nothing else: so WFI is not trapped. It sleeps in the realm, without an exit, and any interrupt of the host's ends that: the
//! realm's timers (PPIs 27 and 30), the maintenance interrupt (25), the SGI by which another CPU says that there is news, and what is typed
//! (SPI 1, on the boot CPU). A CPU whose REC is off sleeps in the host, for the same SGI.
//!
//! Words on the command line: `cloven.guest-kernel=ADDRESS,SIZE` and `cloven.guest-initrd=ADDRESS,SIZE` (a Linux, where somebody has put it
//! into the host's RAM; the words behind `--` are its command line), `cloven.realm=SIZE` (RAM of the realm, default 64 MiB, of a Linux
//! 512 MiB), `cloven.recs=N` (default 4, at most the CPUs that there are), `cloven.reject=N` (each Nth change of RIPAS is refused),
//! `cloven.partial=SIZE` (no more of a change is made at once), `cloven.reclaim=1` (what becomes EMPTY is taken away and given anew),
//! `cloven.pages=1` (nothing is folded), `cloven.measure=1` (each command is timed on a realm of its own). All words that begin with
//! `cloven.` are the command line of the realm that is built in.

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
