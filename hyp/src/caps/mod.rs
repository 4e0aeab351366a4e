//! What the CPUs of a machine can do, while that is still being found out.
//!
//! Invariants:
//! - The set that a map's changes follow is one that every CPU has which translates through that map. So no request is refused because
//!   of when it comes or where: there is no moment at which nobody knows.
//! - The set only becomes smaller. A CPU that has less than it comes to translate only when every change that began under the larger set
//!   has been made and invalidated.
//! - Until it was let in, a CPU has its MMU off, writes one line of its own and reads one line of the other side's, and uses no exclusives.
//!
//! ```text
//!   newcomer, MMU off                  who turned it on                              everybody else
//!   ─────────────────                  ────────────────                              ──────────────
//!                                      offers a ticket, CPU_ON by the firmware
//!   reads its ID registers
//!   writes them, then the ticket  ──►  reads them (or revokes the ticket: INTERNAL_FAILURE)
//!   waits                              by policy: denies (DENIED), or publishes the
//!                                      smaller set, closes each map's gate       ──► ends the calls it is in
//!                                      pays what is owed, repaints or not, opens ──► goes on under the smaller set
//!   invalidates its TLBs          ◄──  releases the ticket, SUCCESS
//!   MMU on, arrives
//! ```
//!
//! Pure but for the newcomer's side, which is the assembly of [`mailbox`].
//!
//! | file | holds |
//! |---|---|
//! | [`detect`] | what the ID registers of a CPU amount to |
//! | [`lifecycle`] | the one set, and its phases: `Boot`, `Starting`, `Finalized` |
//! | [`policy`] | blocks or pages, and who is let in late |
//! | [`mailbox`] | what a CPU with its MMU off and one with its MMU on tell each other |
//! | [`admission`] | letting a CPU in: maps first, then the ticket |
//! | [`gate`] | standing still while a translation is broken |

pub mod admission;
pub mod detect;
pub mod gate;
pub mod lifecycle;
pub mod mailbox;
pub mod policy;
