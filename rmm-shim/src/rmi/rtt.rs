//! Realm translation tables: RMI_RTT_CREATE, RMI_RTT_DESTROY, RMI_RTT_FOLD, RMI_RTT_INIT_RIPAS, RMI_RTT_MAP_UNPROTECTED, RMI_RTT_READ_ENTRY,
//! RMI_RTT_SET_RIPAS, RMI_RTT_UNMAP_UNPROTECTED (B4.3.15 to B4.3.22).
//!
//! Invariant: a table is of a granule that the host has delegated for it, and goes back to the host by RMI_RTT_DESTROY or RMI_RTT_FOLD only;
//! no other command makes a table, or gives one up.

use hyp::mapping::{Address, Ipa, Pa, Range};
use hyp::owner::Purpose;
use rmm_abi::v1_0::rmi::{RmiRipas, RmiStatus, UnprotectedDescriptor, input, output};
use rmm_abi::v1_0::{
    GRANULE_SIZE, PAGE_LEVEL, RmmHipas, RmmRipas, RmmRttEntryState, entry_size, is_level_aligned,
};

use super::{INPUT, Outcome, Reply, granule, realm::unshare_all};
use crate::granule::granule as one;
use crate::monitor::Locked;
use crate::realm::{Realm, RealmState};
use crate::rec::RecState;
use crate::rtt;
use crate::world::World;

/// `MemAttr[2:0]` as FEAT_S2FWB has it of memory whose type is stage 1's to say: what all leaves here are, whatever the host has asked for.
const MEM_ATTR_OF_STAGE_1: u64 = 0b111 << 2;
/// S2AP: reads, writes.
const READS: u64 = 1 << 6;
const WRITES: u64 = 1 << 7;

/// level_bound of an RTT that hangs from another, and ipa_bound.
fn has_structure<M: hyp::mapping::Mmu>(realm: &Realm<M>, ipa: u64, level: i64) -> Result<(), Reply> {
    let is_within = realm.rtt_level_start < level && level <= PAGE_LEVEL;
    if is_within && realm.has_ipa(ipa) { Ok(()) } else { Err(INPUT) }
}

/// level_bound of an entry, and ipa_bound of an unprotected one.
fn is_unprotected<M: hyp::mapping::Mmu>(realm: &Realm<M>, ipa: u64, level: i64) -> Result<(), Reply> {
    let is_within = realm.rtt_level_start <= level;
    if is_within && realm.has_ipa(ipa) && !realm.is_protected(ipa) { Ok(()) } else { Err(INPUT) }
}

/// A table that has left a realm's map is delegated again.
fn give_back<W: World>(lock: &Locked<'_, W>, number: u16, rtt: Pa) -> Result<u64, Reply> {
    // It was kept as that.
    lock.world.unkeep(one(rtt), number, Purpose::Table).map_err(|_| INPUT)?;
    Ok(rtt.get())
}

pub fn create<W: World>(lock: &mut Locked<'_, W>, input: input::RttCreate) -> Outcome {
    input.check()?;
    let rtt = granule::at(input.rtt)?;
    let realm = lock.find_realm(input.rd)?;
    has_structure(realm, input.ipa, input.level)?;
    let walk = realm.walk(input.ipa, input.level - 1);
    if walk.level < input.level - 1 || walk.rtte.state == RmmRttEntryState::Table {
        return Err(RmiStatus::rtt(walk.level).into());
    }
    let ipa = Ipa::new(input.ipa).map_err(|_| INPUT)?;
    // rtt_bound and rtt_state: refused unless it is delegated.
    lock.unfold(realm, rtt, ipa, input.level as u8)?;
    Ok(Reply::success([]))
}

pub fn destroy<W: World>(lock: &mut Locked<'_, W>, input: input::RttDestroy) -> Outcome {
    input.check()?;
    let realm = lock.find_realm(input.rd)?;
    has_structure(realm, input.ipa, input.level)?;
    let failure = |level, top| {
        Err(Reply::with(RmiStatus::rtt(level), output::RttDestroy { rtt: 0, top }.to_registers()))
    };
    let probe = realm.probe(input.ipa, input.level - 1);
    let walk = probe.walk;
    if walk.level < input.level - 1 || walk.rtte.state != RmmRttEntryState::Table {
        return failure(walk.level, probe.top());
    }
    if realm.is_rtt_live(input.ipa, input.level) {
        return failure(input.level, input.ipa);
    }
    if !realm.is_protected(input.ipa) {
        unshare_all(lock.world, realm, input.ipa, input.level)?;
    }
    let rtt = realm.destroy_rtt(input.ipa, input.level).map_err(|_| INPUT)?;
    let rtt = give_back(lock, realm.number, rtt)?;
    Ok(Reply::success(output::RttDestroy { rtt, top: probe.next_live }.to_registers()))
}

pub fn fold<W: World>(lock: &mut Locked<'_, W>, input: input::RttFold) -> Outcome {
    input.check()?;
    let realm = lock.find_realm(input.rd)?;
    has_structure(realm, input.ipa, input.level)?;
    let walk = realm.walk(input.ipa, input.level - 1);
    if walk.level < input.level - 1 || walk.rtte.state != RmmRttEntryState::Table {
        return Err(RmiStatus::rtt(walk.level).into());
    }
    let rtt = realm.fold(input.ipa, input.level).map_err(|_| RmiStatus::rtt(input.level))?;
    let rtt = give_back(lock, realm.number, rtt)?;
    let folded = realm.walk(input.ipa, input.level - 1);
    if folded.rtte.is(RmmHipas::Assigned)
        && let Ok(block) = granule::at(folded.rtte.addr)
    {
        lock.world.folded(block, folded.level as u8);
    }
    Ok(Reply::success(output::RttFold { rtt }.to_registers()))
}

pub fn init_ripas<W: World>(lock: &mut Locked<'_, W>, input: input::RttInitRipas) -> Outcome {
    input.check()?;
    let realm = lock.find_realm(input.rd)?;
    if !realm.is_protected(input.top - GRANULE_SIZE) {
        return Err(INPUT);
    }
    if realm.state.get() != RealmState::New {
        return Err(RmiStatus::ErrorRealm(0).into());
    }
    let range = realm.ripas_range(input.base, input.top, RmmRipas::Ram, false);
    let walk = range.walk;
    let (from, to) = range.change;
    let is_aligned = is_level_aligned(input.base, walk.level);
    if !is_aligned || !walk.rtte.is(RmmHipas::Unassigned) || from == to {
        return Err(RmiStatus::rtt(walk.level).into());
    }
    realm.set_ripas((from, to), RmmRipas::Ram).map_err(|_| INPUT)?;
    let size = walk.size() as usize;
    (from..to).step_by(size).for_each(|base| lock.extend_ripas(realm, base, base + size as u64));
    Ok(Reply::success(output::RttInitRipas { out_top: to }.to_registers()))
}

pub fn set_ripas<W: World>(lock: &mut Locked<'_, W>, input: input::RttSetRipas) -> Outcome {
    input.check()?;
    let realm = lock.find_realm(input.rd)?;
    let rec = lock.rec(input.rec_ptr).ok_or(INPUT)?;
    if rec.state.get() == RecState::Running || rec.owner.get() != input.rd {
        return Err(RmiStatus::ErrorRec.into());
    }
    let change = rec.ripas.get();
    if input.base != change.addr || input.top > change.top {
        return Err(INPUT);
    }
    let range = realm.ripas_range(input.base, input.top, change.value, !change.destroyed);
    let walk = range.walk;
    let is_aligned = is_level_aligned(input.base, walk.level);
    if walk.rtte.ripas != change.value && (!is_aligned || range.top == input.base) {
        return Err(RmiStatus::rtt(walk.level).into());
    }
    realm.set_ripas(range.change, change.value).map_err(|_| INPUT)?;
    rec.ripas.set(crate::rec::RipasChange { addr: range.top, ..change });
    Ok(Reply::success(output::RttSetRipas { out_top: range.top }.to_registers()))
}

pub fn read_entry<W: World>(lock: &mut Locked<'_, W>, input: input::RttReadEntry) -> Outcome {
    input.check()?;
    let realm = lock.find_realm(input.rd)?;
    if input.level < realm.rtt_level_start || !realm.has_ipa(input.ipa) {
        return Err(INPUT);
    }
    let walk = realm.walk(input.ipa, input.level);
    let rtte = walk.rtte;
    let attributes = match rtte.is(RmmHipas::AssignedNs) {
        true => {
            let (reads, writes) = rtte.s2ap;
            MEM_ATTR_OF_STAGE_1 | if reads { READS } else { 0 } | if writes { WRITES } else { 0 }
        }
        false => 0,
    };
    let output = output::RttReadEntry {
        walk_level: walk.level,
        state: rtte.state.to_rmi().bits(),
        desc: UnprotectedDescriptor::new(rtte.addr, attributes, false),
        ripas: rtte.ripas.to_rmi().unwrap_or(RmiRipas::Empty).bits(),
    };
    Ok(Reply::success(output.to_registers()))
}

pub fn map_unprotected<W: World>(lock: &mut Locked<'_, W>, input: input::RttMapUnprotected) -> Outcome {
    input.check()?;
    input.check_descriptor(false)?;
    let realm = lock.find_realm(input.rd)?;
    is_unprotected(realm, input.ipa, input.level)?;
    let walk = realm.walk(input.ipa, input.level);
    if walk.level < input.level || !walk.rtte.is(RmmHipas::UnassignedNs) {
        return Err(RmiStatus::rtt(walk.level).into());
    }
    let size = entry_size(input.level).ok_or(INPUT)?;
    let range = Range::of_granules(input.desc.address(false), size).map_err(|_| INPUT)?;
    let (reads, writes) = (input.desc.0 & READS != 0, input.desc.0 & WRITES != 0);
    let placement = rtt::unprotected(input.ipa, reads, writes);
    // Nobody but the host gives its memory away: what is not its own, or shared already, is refused.
    lock.world.share(range, &realm.party(), &placement).map_err(|_| INPUT)?;
    Ok(Reply::success([]))
}

pub fn unmap_unprotected<W: World>(lock: &mut Locked<'_, W>, input: input::RttUnmapUnprotected) -> Outcome {
    input.check()?;
    let realm = lock.find_realm(input.rd)?;
    is_unprotected(realm, input.ipa, input.level)?;
    let probe = realm.probe(input.ipa, input.level);
    let walk = probe.walk;
    if walk.level < input.level || !walk.rtte.is(RmmHipas::AssignedNs) {
        let output = output::RttUnmapUnprotected { top: probe.top() };
        return Err(Reply::with(RmiStatus::rtt(walk.level), output.to_registers()));
    }
    let range = Range::of_granules(walk.rtte.addr, walk.size()).map_err(|_| INPUT)?;
    let ipa = Ipa::new(walk.start).map_err(|_| INPUT)?;
    lock.world.unshare(range, &realm.party(), ipa).map_err(|_| INPUT)?;
    Ok(Reply::success(output::RttUnmapUnprotected { top: probe.next_live }.to_registers()))
}
