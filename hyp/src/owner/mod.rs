//! Ownership: every page of RAM has one owner (the hypervisor, the host or a realm) and a state, and changes both only here.
//!
//! Invariants:
//! - What a page is stands in the host's stage 2, in the entry for that page; the EL2 map and the stage 2 of a realm follow from it, as the
//!   first table says. There is no second structure, so nothing can disagree with it but for the length of a call.
//! - A call that fails has changed nothing: no page's state, no map's translation, no memory. It looks at every party first.
//! - No page is the host's again, or another realm's, with anything in it that a realm or the hypervisor has written; and no TLB has a
//!   translation of it for who had it before.
//! - What is delegated holds zeroes, and no cache has it dirty.
//!
//! Pure but for [`Memory`]: any host. What is done to memory goes through [`Granules`], what is done to maps through the engine.
//!
//! # What each map says of a page
//!
//! | state | host's stage 2 | EL2 map | stage 2 of a realm |
//! |---|---|---|---|
//! | host's | RAM leaf, mark 0 | data | – |
//! | host's, shared with the hypervisor | RAM leaf, mark 1 | data | – |
//! | host's, shared with a realm | RAM leaf, mark 2 | data | of one realm, at one IPA: a leaf, mark 1 (borrowed) |
//! | hypervisor's | state word: hypervisor | data | – |
//! | delegated: left by the host, no realm's yet | state word: delegated | data | – |
//! | realm *n*'s descriptor, REC and what that has besides, table | state word: realm *n*, [`Purpose`] | data | – |
//! | realm *n*'s data | state word: realm *n*, data | data leaf that is not valid | of realm *n*, at one IPA: a leaf, mark 0 (owned); not valid: withheld |
//! | fixed | anything else, or nothing | any | – |
//!
//! Fixed is what never changes hands: devices, and the memory that the hypervisor has kept from the host since it booted, for which the
//! host's map has no entry. A mark is the three software bits of a valid leaf, so a share keeps its block wherever all of it is shared; a state word
//! is the software state of an invalid entry of whatever level, so 2 MiB of a realm's data are one word. A realm's data leaves the EL2 map
//! by its valid bit: its leaf keeps what it says for its way back, which therefore needs no table. And so it is with what a realm owns and does
//! not translate (`ASSIGNED`, `EMPTY`): [`RealmPage::Withheld`]. A share leaves the EL2 map alone: it has all
//! of the host's memory, and what a share gives the hypervisor is the host's promise not to give the page to anybody else meanwhile.
//!
//! The words are those of pKVM (owned, shared, borrowed, and the owner of an invalid entry) and of the RMM specification's granules
//! (`DELEGATED`, `RD`, `REC`, `REC_AUX`, `DATA`, `RTT`; DEN0137, A2.2).
//!
//! # Who may ask for what
//!
//! | call | on whose word | before | after |
//! |---|---|---|---|
//! | [`share`](Ownership::share) | host | host's | shared with the hypervisor |
//! | [`unshare`](Ownership::unshare) | host | shared with the hypervisor | host's |
//! | [`donate`](Ownership::donate) | host | host's | hypervisor's |
//! | [`give_back`](Ownership::give_back) | hypervisor | hypervisor's | host's; wiped |
//! | [`delegate`](Ownership::delegate) | host | host's | delegated; wiped |
//! | [`undelegate`](Ownership::undelegate) | host | delegated | host's; zeroes |
//! | [`keep`](Ownership::keep) | host, for a realm | delegated | the realm's descriptor, REC or table; zeroes, or filled |
//! | [`unkeep`](Ownership::unkeep) | host, for a realm | the realm's descriptor, REC or table | delegated; wiped |
//! | [`assign`](Ownership::assign) | host, for a realm | delegated; the realm has nothing at the IPA | the realm's data, filled, cleaned |
//! | [`assign_unfilled`](Ownership::assign_unfilled) | host, for a realm | the same | the realm's data, zeroes |
//! | [`release`](Ownership::release) | host, for a realm | the realm's data, at the IPA | delegated; wiped |
//! | [`donate_to_realm`](Ownership::donate_to_realm) | host, for a realm | host's; the realm has nothing at the IPA | the realm's data as it was, cleaned |
//! | [`reclaim`](Ownership::reclaim) | host, for a realm | the realm's data, at the IPA | host's; wiped |
//! | [`share_with_realm`](Ownership::share_with_realm) | host, for a realm | host's; the realm has nothing at the IPA | shared with the realm |
//! | [`unshare_with_realm`](Ownership::unshare_with_realm) | host, for a realm | shared with the realm, at the IPA | host's |
//!
//! [`access`](Ownership::access), [`visit`](Ownership::visit) and [`while_hosts`](Ownership::while_hosts) change nothing: with them the hypervisor
//! reaches what it keeps for a realm, a realm's data, and what is the host's.
//!
//! Whether the realm agrees is the caller's to know: of a command that takes a running realm's memory away the RMM specification says so.
//! Everything else is refused, by the name of the first page that is not what it should be, and what it is ([`OwnerError`]).
//!
//! # What a call does to the maps, in order
//!
//! Checked: the host's map for every page of the range, then the EL2 map where the page's use there changes hands or ends, and the realm's. Then
//! come steps
//! that change no translation (splits at the range's ends, tables set aside), the one step that changes something and may still fail, which
//! the engine makes whole or not at all, and steps that cannot fail.
//!
//! | call | changes nothing | may fail, whole | cannot fail |
//! |---|---|---|---|
//! | share, unshare | | host: mark | |
//! | donate | | host: state, flush | |
//! | delegate | | host: state, flush | wipe |
//! | keep | | host: state | fill |
//! | give_back | host: prepare | | wipe; host: map |
//! | undelegate | host: prepare | | host: map |
//! | unkeep | | host: state | wipe |
//! | assign, assign_unfilled, donate_to_realm | realm: prepare; EL2: split | host: state, flush | fill, clean (not for assign_unfilled); EL2: invalidate, flush; realm: map |
//! | release | EL2, host: split | realm: unmap, flush | EL2: validate; wipe; host: state |
//! | reclaim | EL2: split; host: prepare | realm: unmap, flush | EL2: validate; wipe; host: map |
//! | share_with_realm | realm: prepare | host: mark | realm: map |
//! | unshare_with_realm | host: split | realm: unmap, flush | host: mark |
//!
//! So at no moment do two of host, hypervisor and realm translate a page that is not meant for both, and each of them has lost it (flush) before
//! the next one gets it. What was split for a call that then failed is joined again, as far as it can be.
//! If the engine ever broke its word about a step that cannot fail, the call would stop there: the page is then nobody's to reach.
//!
//! One page that has an entry of its own in every map that the call changes, and of which no TLB is owed anything, takes the same steps in the same
//! order by one walk of each map and one store to each ([`Page`](crate::mapping::Page)); all other ranges take the way that the table says.
//!
//! # Locks
//!
//! Each call holds writers ([`Map::try_write`](crate::mapping::Map::try_write)), taken in this order and given back at its end:
//! 1. the host's map's: the lock of ownership itself, in every call;
//! 2. the EL2 map's, if the call changes it or looks at it;
//! 3. one realm's map's, if the call changes it.
//!
//! All are waited for with the EL2 map's [`Mmu::wait`](crate::mapping::Mmu::wait), whichever it is: a split of an EL2 block may ask every CPU
//! to stand still while the writers are held, and a CPU that waits for one of them must count as standing still. What the engine locks inside
//! is its own, one map at a time, but for single pages: there a call has the maps' pages, in the same order, once it is the writer of all of them. Who holds a map's writer otherwise must not wait for a writer before it in this order (admission and joining
//! hold one at a time). The caller has no [`Reader`](crate::mapping::Reader) of any of the maps. Calls on different pages wait for
//! each other, as long as wiping or filling takes: who gives large ranges away does so in parts.
//!
//! # Cost
//!
//! Nothing per page. Each of the host's map and the EL2 map needs at most one table for each 2 MiB and each 1 GiB of RAM that is not of one state
//! throughout, that is 2 + 2 tables for a lone page of realm data, 1 + 1 for another page elsewhere in that GiB, none for another
//! in its 2 MiB, and no more than 513 + 513 for a GiB, whatever is done with its pages: 4 MiB and 8 KiB per GiB of RAM, 0.39 %.
//! States of a whole block cost none. The EL2 map's half is needed for realm data only. A realm's own tables are beside this: they are its map's, and stay
//! when what they had is taken away and nothing takes its place.
//! Nothing is joined on the way back, which would make each call read a table or two: [`tidy`](Ownership::tidy) joins, when there is time, and
//! [`join`](Ownership::join) one block, when tables are short.

mod granule;
mod memory;
mod page;
#[cfg(test)]
mod tests;
mod transition;

pub use granule::{Granules, Held};
pub use memory::Memory;
pub use page::{HostPage, HypervisorPage, Keeper, Purpose, RealmPage};
pub use transition::{GiveBackError, OwnerError, Ownership, Party, Placement, Realm};
