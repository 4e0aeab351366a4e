//! A realm's memory, at the addresses that it passes.
//!
//! Invariant: what is reached is data of this realm that it could reach itself at this moment: ASSIGNED, RAM. The monitor's lock is held, so it stays so.

use core::ops::ControlFlow;

use hyp::mapping::{Address, Entry, GRANULE, Ipa, Mmu, Pa, Range, Stage2, Visited, Writer};
use rmm_abi::v1_0::{RmmHipas, RmmRipas};

use crate::monitor::Locked;
use crate::realm::Realm;
use crate::rtt::Rtte;
use crate::world::{Page, World};

/// What a realm has at an IPA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// What the host has put there.
    pub hipas: RmmHipas,
    /// What the realm may expect there, of a protected IPA.
    pub ripas: RmmRipas,
    /// The granule, if there is one.
    pub granule: Option<Pa>,
    /// The level of the entry.
    pub level: u8,
    /// The address after the last that the entry describes.
    pub end: u64,
}

/// The writer of a realm's map. Who has the monitor's lock is the only one to ask.
fn writer<M: Mmu>(realm: &Realm<M>) -> Writer<'_, '_, Stage2, M> {
    loop {
        if let Some(writer) = realm.map.try_write() {
            return writer;
        }
        core::hint::spin_loop();
    }
}

/// RIPAS and HIPAS of a protected entry.
fn protected(entry: Entry<Stage2>) -> (RmmHipas, RmmRipas) {
    let rtte = Rtte::of(entry, true);
    let hipas = if rtte.state.is_live() { RmmHipas::Assigned } else { RmmHipas::Unassigned };
    (hipas, rtte.ripas)
}

fn end_of(visited: &Visited<Stage2>) -> u64 {
    visited.start + (1 << (12 + 9 * (3 - u32::from(visited.level))))
}

/// What `realm` has at `ipa`; nothing outside its address space.
pub fn find<M: Mmu>(realm: &Realm<M>, ipa: u64) -> Option<Found> {
    if !realm.has_ipa(ipa) {
        return None;
    }
    let one = Range::<Ipa>::new(ipa, 1).ok()?;
    let visited = writer(realm).walk(one, ControlFlow::Break).break_value()?;
    let (mut hipas, ripas) = protected(visited.entry);
    if !realm.is_protected(ipa) {
        hipas = match hipas {
            RmmHipas::Assigned => RmmHipas::AssignedNs,
            _ => RmmHipas::UnassignedNs,
        };
    }
    let granule = match visited.entry {
        Entry::Leaf { output, .. } => Pa::new((output.get() + (ipa - visited.start)) & !(GRANULE - 1)).ok(),
        _ => None,
    };
    Some(Found { hipas, ripas, granule, level: visited.level, end: end_of(&visited) })
}

/// The RIPAS at `base`, and how far from there, `top` at most, it is the same. Of protected IPAs.
pub fn ripas<M: Mmu>(realm: &Realm<M>, base: u64, top: u64) -> Option<(u64, RmmRipas)> {
    let range = Range::<Ipa>::new(base, top.checked_sub(base)?).ok()?;
    let mut first = None;
    let mut end = base;
    let _ = writer(realm).walk(range, |visited| {
        let (_, found) = protected(visited.entry);
        if *first.get_or_insert(found) != found {
            return ControlFlow::Break(());
        }
        end = end_of(&visited);
        ControlFlow::Continue(())
    });
    first.map(|ripas| (end.min(top), ripas))
}

/// Where a realm's protected IPA is, for a command that accesses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this granule.
    Here(Pa),
    /// The realm has said that there is nothing.
    Empty,
    /// The host has to put something there first; at the level of RTT at which the walk ended.
    Away(u8),
}

/// Where `ipa` is.
pub fn place<M: Mmu>(realm: &Realm<M>, ipa: u64) -> Place {
    match find(realm, ipa) {
        Some(Found { hipas: RmmHipas::Assigned, ripas: RmmRipas::Ram, granule: Some(granule), .. }) => {
            Place::Here(granule)
        }
        Some(Found { ripas: RmmRipas::Empty, .. }) | None => Place::Empty,
        Some(Found { level, .. }) => Place::Away(level),
    }
}

/// Lets `work` have the page of `realm` at the protected `ipa`.
///
/// # Errors
/// [`Place::Empty`] or [`Place::Away`].
pub fn access<W: World, T>(
    lock: &Locked<'_, W>,
    realm: &Realm<W::Mmu>,
    ipa: u64,
    work: impl FnOnce(&mut Page) -> T,
) -> Result<T, Place> {
    match place(realm, ipa) {
        Place::Here(granule) => lock.world.visit(realm.number, granule, work).ok_or(Place::Empty),
        other => Err(other),
    }
}
