//! Stands in for the Realm Management Monitor (RMM): serves the Realm Management Interface (RMI) to the host, and the Realm Services Interface
//! (RSI) and PSCI to realms, as the RMM specification says (DEN0137 1.0-rel0), on stage 2 and ownership alone.
//!
//! Invariants:
//! - What the specification calls the state of the RMM lies where the specification has it: a realm's in its descriptor (RD), a REC's in its
//!   granule, an RTT entry in the RTT, and what a granule is in its owner's table ([`hyp::owner`]). Beside them there is a list of realms.
//! - All of it is looked at and changed with the monitor's one lock, which is held for one command, and never while a realm runs. So a command sees
//!   no other half done, and there is no order of locks. Who waits for it counts as standing still for EL2's own map.
//! - A command that fails has changed nothing: it looks at its failure conditions in an order that the specification allows, then does what
//!   may fail, whole, then what cannot. But RMI_REALM_DESTROY and RMI_RTT_DESTROY end what the host shares range by range: for want of a table of
//!   the host's map they may fail when some of it is ended. The host can make the same call again.
//! - The commands do not know how a granule changes world: that is a [`World`]. Here it is the host's stage 2 ([`ByStage2`]): so a realm is
//!   protected from CPUs, not from a device that masters the bus without an SMMU in front of it.
//! - Nothing that a host or a realm passes is trusted: addresses, structures (copied once into private memory), registers.
//!
//! | file | holds |
//! |---|---|
//! | [`world`], `by_stage2` | how granules change hands, and how memory is reached |
//! | [`monitor`] | the lock, and which command is whose |
//! | `granule` | descriptors, RECs and tables in their granules: with `by_stage2`, the file with `unsafe` |
//! | [`realm`], [`rec`] | what they are |
//! | `measurement` | hashes |
//! | `attest` | attestation tokens |
//! | `rtt` | an entry of a realm's tables in the specification's words |
//! | `rmi`, `rsi` | the commands |
//! | `target` | on the machine itself: the world of its hypervisor |
//! | [`policy`] | a host for one realm, at EL2 itself |
//! | [`trace`] | what was called, told to who asks |
//! | `exits`, `mmio` | why a REC stopped: back to the realm, or what the host is told |
//!
//! # An RTT entry in the engine's terms (A5.5)
//!
//! | RTT entry | in the realm's stage 2 |
//! |---|---|
//! | UNASSIGNED, EMPTY; UNASSIGNED_NS | state word 0: with nothing in its place the engine would unlink a table once all of it is empty |
//! | UNASSIGNED, RAM | state word 1 |
//! | UNASSIGNED, DESTROYED | state word 2 |
//! | ASSIGNED, RAM | leaf of the realm's own |
//! | ASSIGNED, EMPTY | the same leaf, not valid |
//! | ASSIGNED, DESTROYED | the same, and not executable |
//! | ASSIGNED_NS | leaf of the host's |
//! | TABLE | table |

#![cfg_attr(not(test), no_std)]

mod attest;
mod by_stage2;
mod exits;
#[cfg(test)]
mod fake;
mod granule;
mod measurement;
mod mmio;
pub mod monitor;
pub mod policy;
pub mod realm;
pub mod rec;
mod rmi;
mod rsi;
mod rtt;
#[cfg(target_os = "none")]
pub mod target;
#[cfg(test)]
mod tests;
pub mod trace;
pub mod world;

pub use by_stage2::{ByStage2, Cpus};
pub use monitor::Monitor;
pub use trace::Trace;
pub use world::World;
