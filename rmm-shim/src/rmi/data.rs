//! The realm's memory: RMI_DATA_CREATE, RMI_DATA_CREATE_UNKNOWN, RMI_DATA_DESTROY (B4.3.1 to B4.3.3).
//!
//! Invariant: a granule of data is in a page of its own when it comes and when it goes; in between the host may fold it into a block.

use hyp::mapping::{Address, GRANULE, Ipa, Pa};
use rmm_abi::v1_0::rmi::{RmiStatus, input, output};
use rmm_abi::v1_0::{PAGE_LEVEL, RmmHipas, RmmRipas};

use super::{INPUT, Outcome, Reply, granule};
use crate::monitor::Locked;
use crate::realm::{Realm, RealmState};
use crate::rtt;
use crate::world::World;

// Not in its caller's frame: it has a granule's contents in its own.
#[inline(never)]
pub fn create<W: World>(lock: &mut Locked<'_, W>, input: input::DataCreate) -> Outcome {
    input.check()?;
    let data = granule::at(input.data)?;
    let mut content = [0; GRANULE as usize];
    lock.world.read(input.src, 0, &mut content).ok_or(INPUT)?;
    let realm = lock.find_realm(input.rd)?;
    if !realm.is_protected(input.ipa) {
        return Err(INPUT);
    }
    if realm.state.get() != RealmState::New {
        return Err(RmiStatus::ErrorRealm(0).into());
    }
    assign(lock, realm, data, input.ipa, Some(&content))?;
    lock.extend_data(realm, input.ipa, input.flags, &content);
    Ok(Reply::success([]))
}

pub fn create_unknown<W: World>(lock: &mut Locked<'_, W>, input: input::DataCreateUnknown) -> Outcome {
    input.check()?;
    let data = granule::at(input.data)?;
    let realm = lock.find_realm(input.rd)?;
    if !realm.is_protected(input.ipa) {
        return Err(INPUT);
    }
    assign(lock, realm, data, input.ipa, None)?;
    Ok(Reply::success([]))
}

/// Gives a realm a granule at a protected IPA: with contents it is RAM; without it has zeroes, and the RIPAS that the entry had.
fn assign<W: World>(
    lock: &Locked<'_, W>,
    realm: &Realm<W::Mmu>,
    data: Pa,
    ipa: u64,
    content: Option<&[u8; GRANULE as usize]>,
) -> Result<(), Reply> {
    let walk = realm.walk(ipa, PAGE_LEVEL);
    if walk.level < PAGE_LEVEL || !walk.rtte.is(RmmHipas::Unassigned) {
        return Err(RmiStatus::rtt(walk.level).into());
    }
    let before = walk.rtte.ripas;
    let ripas = if content.is_some() { RmmRipas::Ram } else { before };
    let placement = rtt::data(ipa, before, ripas);
    // data_bound and data_state: refused unless it is delegated.
    lock.world.assign(data, &realm.party(), &placement, content).map_err(|_| INPUT)
}

pub fn destroy<W: World>(lock: &mut Locked<'_, W>, input: input::DataDestroy) -> Outcome {
    input.check()?;
    let realm = lock.find_realm(input.rd)?;
    if !realm.is_protected(input.ipa) {
        return Err(INPUT);
    }
    let probe = realm.probe(input.ipa, PAGE_LEVEL);
    let walk = probe.walk;
    if walk.level < PAGE_LEVEL || !walk.rtte.is(RmmHipas::Assigned) {
        let output = output::DataDestroy { data: 0, top: probe.top() };
        return Err(Reply::with(RmiStatus::rtt(walk.level), output.to_registers()));
    }
    let then = match walk.rtte.ripas {
        RmmRipas::Ram => RmmRipas::Destroyed,
        other => other,
    };
    let data = granule::at(walk.rtte.addr)?;
    let ipa = Ipa::new(input.ipa).map_err(|_| INPUT)?;
    lock.world.release(data, &realm.party(), ipa, rtt::unassigned(then)).map_err(|_| INPUT)?;
    Ok(Reply::success(output::DataDestroy { data: data.get(), top: probe.next_live }.to_registers()))
}
