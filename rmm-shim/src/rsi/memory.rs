//! A realm's memory, at the addresses that it passes.
//!
//! Invariant: what is reached is data of this realm that it could reach itself at this moment: ASSIGNED, RAM. The monitor's lock is held, so it stays so.

use hyp::mapping::{Address, GRANULE, Mmu, Pa};
use rmm_abi::v1_0::{PAGE_LEVEL, RmmHipas, RmmRipas};

use crate::monitor::Locked;
use crate::realm::Realm;
use crate::rtt::Walk;
use crate::world::{Page, World};

/// What `realm` has at `ipa`; nothing outside its address space.
pub fn find<M: Mmu>(realm: &Realm<M>, ipa: u64) -> Option<Walk> {
    realm.has_ipa(ipa).then(|| realm.walk(ipa, PAGE_LEVEL))
}

/// Why a command cannot access a realm's protected IPA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// The realm has said that there is nothing.
    Empty,
    /// The host has to put something there first, or EL2's map has no table by which to reach it now; the level of RTT at which the walk ended.
    Away(i64),
}

/// Lets `work` have the page of `realm` at the protected `ipa`.
///
/// # Errors
/// [`Missing`].
pub fn access<W: World, T>(
    lock: &Locked<'_, W>,
    realm: &Realm<W::Mmu>,
    ipa: u64,
    work: impl FnOnce(&mut Page) -> T,
) -> Result<T, Missing> {
    let walk = find(realm, ipa).ok_or(Missing::Empty)?;
    let rtte = &walk.rtte;
    match rtte.ripas {
        RmmRipas::Ram if rtte.is(RmmHipas::Assigned) => {
            let granule = (rtte.addr + (ipa - walk.start)) & !(GRANULE - 1);
            let granule = Pa::new(granule).map_err(|_| Missing::Empty)?;
            lock.world.visit(realm.number, granule, work).ok_or(Missing::Away(walk.level))
        }
        RmmRipas::Empty => Err(Missing::Empty),
        _ => Err(Missing::Away(walk.level)),
    }
}
