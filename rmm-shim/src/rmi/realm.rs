//! Realms: RMI_REALM_CREATE, RMI_REALM_ACTIVATE, RMI_REALM_DESTROY (B4.3.8 to B4.3.10).
//!
//! Invariant: a descriptor is in the list of realms from when it is placed until it is ended, at its number minus one.

use core::cell::{Cell, RefCell};
use core::ops::ControlFlow;

use hyp::mapping::Address;
use hyp::mapping::{GRANULE, Geometry, Ipa, Range};
use hyp::owner::{HostPage, Keeper, Purpose};
use hyp::stage2::Registers;
use rmm_abi::v1_0::rmi::{RmiHashAlgorithm, RmiRealmParams, RmiStatus, input};
use rmm_abi::v1_0::{MEASUREMENTS, RmmHipas, entry_size};
use zerocopy::IntoBytes;

use super::{INPUT, Outcome, Reply, features, granule};
use crate::measurement;
use crate::monitor::Locked;
use crate::realm::{Realm, RealmState};
use crate::rtt::{self, Walk};
use crate::world::World;

const DELEGATED: HostPage = HostPage::Kept(Keeper::Delegated);

// Not in its caller's frame: it has a granule's contents in its own.
#[inline(never)]
pub fn create<W: World>(lock: &mut Locked<'_, W>, input: input::RealmCreate) -> Outcome {
    input.check()?;
    let world = lock.world;
    let mut params = RmiRealmParams::zeroed();
    world.read(input.params_ptr, 0, params.as_mut_bytes()).ok_or(INPUT)?;
    params.check(input.rd)?;
    let limits = world.features().limits;
    if !features::are_supported(&world.features(), &params) {
        return Err(INPUT);
    }
    let hash_algo = RmiHashAlgorithm::from_bits(params.hash_algo).map_err(|_| INPUT)?;
    let (rd, base) = (granule::at(input.rd)?, granule::at(params.rtt_base)?);
    if world.granule(input.rd) != DELEGATED {
        return Err(INPUT);
    }
    let roots = u64::from(params.rtt_num_start) * GRANULE;
    let roots = Range::of_granules(params.rtt_base, roots).map_err(|_| INPUT)?;
    let is_valid = limits.vmid_16_bits || params.vmid <= u8::MAX.into();
    let has_vmid =
        |rd: &hyp::mapping::Pa| lock.realm(rd.get()).is_some_and(|realm| realm.vmid == params.vmid);
    if !is_valid || lock.state.realms.iter().flatten().any(has_vmid) {
        return Err(INPUT);
    }
    let free = lock.state.realms.iter().position(Option::is_none).ok_or(INPUT)?;
    let number = free as u16 + 1;
    let bits = params.s2sz.into();
    let geometry = Geometry::stage2(bits).map_err(|_| INPUT)?;

    // rtt_state: refused unless all are delegated.
    world.keep(roots, number, Purpose::Table).map_err(|_| INPUT)?;
    let registers = Registers::of_root(geometry, base, number, limits);
    let map = lock.adopt(&registers, base, geometry);
    let realm = Realm {
        rd,
        number,
        state: Cell::new(RealmState::New),
        ipa_width: bits,
        hash_algo,
        measurements: RefCell::new([[0; 64]; MEASUREMENTS]),
        rec_index: Cell::new(0),
        knows_rsi: Cell::new(false),
        num_recs: Cell::new(0),
        rtt_base: base,
        rtt_level_start: params.rtt_level_start,
        rtt_num_start: params.rtt_num_start,
        vmid: params.vmid,
        rpv: params.rpv,
        registers,
        map,
    };
    realm.measurements.borrow_mut()[0] = measurement::initial(lock.world, hash_algo, &params);
    let made = rtt::initialize(&mut realm.write(), bits).map_err(|_| INPUT);
    if let Err(failure) = made.and_then(|()| lock.place_realm(realm).map_err(|_| INPUT)) {
        let _ = world.unkeep(roots, number, Purpose::Table);
        return Err(failure);
    }
    lock.state.realms[free] = Some(rd);
    Ok(Reply::success([]))
}

pub fn activate<W: World>(lock: &mut Locked<'_, W>, input: input::RealmActivate) -> Outcome {
    input.check()?;
    let realm = lock.find_realm(input.rd)?;
    if realm.state.get() != RealmState::New {
        return Err(RmiStatus::ErrorRealm(0).into());
    }
    // Its code was written as data, by EL2. Where it gets memory later it finds zeroes, and writes its code itself: as the architecture asks
    // of whoever does, it has what was fetched before forgotten, and its maintenance reaches all CPUs (HCR_EL2.FB).
    lock.world.forget_instructions();
    realm.state.set(RealmState::Active);
    Ok(Reply::success([]))
}

pub fn destroy<W: World>(lock: &mut Locked<'_, W>, input: input::RealmDestroy) -> Outcome {
    input.check()?;
    let realm = lock.find_realm(input.rd)?;
    let (rd, number, level) = (realm.rd, realm.number, realm.rtt_level_start);
    // What the entries of one starting RTT describe.
    let step = rtt::ENTRIES * entry_size(level).ok_or(INPUT)?;
    let mut starts = (0..u64::from(realm.rtt_num_start)).map(|number| number * step);
    if realm.num_recs.get() > 0 || starts.clone().any(|start| realm.is_rtt_live(start, level)) {
        return Err(RmiStatus::ErrorRealm(0).into());
    }
    starts.try_for_each(|start| unshare_all(lock.world, realm, start, level))?;
    lock.end_realm(rd).map_err(|_| INPUT)?;
    lock.state.realms[usize::from(number) - 1] = None;
    Ok(Reply::success([]))
}

/// Ends all that the host has mapped in an RTT of a realm, as nobody can unmap it afterwards.
pub fn unshare_all<W: World>(
    world: &W,
    realm: &Realm<W::Mmu>,
    address: u64,
    level: i64,
) -> Result<(), Reply> {
    let mut next = address;
    let ns = |walk: &Walk| match walk.rtte.is(RmmHipas::AssignedNs) {
        true => ControlFlow::Break(*walk),
        false => ControlFlow::Continue(()),
    };
    let end = address + rtt::ENTRIES * entry_size(level).unwrap_or(0);
    while next < end
        && let Some(walk) = realm.scan(next, level, ns)
    {
        let range = Range::of_granules(walk.rtte.addr, walk.size()).map_err(|_| INPUT)?;
        let ipa = Ipa::new(walk.start).map_err(|_| INPUT)?;
        world.unshare(range, &realm.party(), ipa).map_err(|_| INPUT)?;
        next = walk.end();
    }
    Ok(())
}
