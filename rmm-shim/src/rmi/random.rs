//! Thousands of random commands against a model that says, in the specification's words, what each granule and each RTT entry is and what a
//! command may answer. After every call all of it is compared.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use hyp::mapping::GRANULE;
use hyp::owner::{HostPage, Keeper, Purpose};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use rmm_abi::v1_0::rmi::RmiCommand::{self, *};
use rmm_abi::v1_0::rmi::RmiStatus::{self, ErrorInput, ErrorRealm, ErrorRec, Success};
use rmm_abi::v1_0::{RmmHipas, RmmRipas, RmmRttEntryState, entry_size};

use crate::fake::*;
use crate::realm::RealmState;
use crate::rec::RipasChange;
use crate::rtt::Walk;

/// What a granule is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Granule {
    Host,
    Shared,
    Delegated,
    Kept(u64, Purpose),
}

/// An RTT entry.
#[derive(Clone, Debug, PartialEq)]
enum Rtte {
    Unassigned(RmmRipas),
    Assigned(RmmRipas, u64),
    UnassignedNs,
    AssignedNs(u64, (bool, bool)),
    Table(u64, Vec<Rtte>),
}
use Rtte::*;

impl Rtte {
    fn is_live(&self) -> bool {
        !matches!(self, Unassigned(_) | UnassignedNs)
    }
    fn ripas(&self) -> RmmRipas {
        match self {
            Unassigned(ripas) | Assigned(ripas, _) => *ripas,
            _ => RmmRipas::Empty,
        }
    }
    /// What one of the entries says that this becomes, `offset` bytes into it.
    fn part(&self, offset: u64) -> Self {
        match self {
            Assigned(ripas, addr) => Assigned(*ripas, addr + offset),
            AssignedNs(addr, s2ap) => AssignedNs(addr + offset, *s2ap),
            other => other.clone(),
        }
    }
}

#[derive(Clone, Debug)]
struct Realm {
    is_new: bool,
    /// Two RTTs of level 1.
    root: Vec<Rtte>,
    roots: u64,
    recs: BTreeMap<u64, RipasChange>,
    rec_index: u64,
}

const WIDTH: u32 = 40;
const HALF: u64 = 1 << (WIDTH - 1);

fn size(level: i64) -> u64 {
    entry_size(level).unwrap()
}

impl Realm {
    /// Level, first IPA, entry and RTT at which a walk ends.
    fn walk(&self, ipa: u64, level: i64) -> (i64, usize, &[Rtte]) {
        let index = (ipa / size(1)) as usize;
        let (mut at, mut index, mut table) = (1, index % 512, &self.root[index / 512 * 512..][..512]);
        while at < level
            && let Table(_, below) = &table[index]
        {
            at += 1;
            (index, table) = ((ipa / size(at)) as usize % 512, below);
        }
        (at, index, table)
    }
    fn entry(&self, ipa: u64, level: i64) -> (i64, &Rtte) {
        let (at, index, table) = self.walk(ipa, level);
        (at, &table[index])
    }
    fn entry_mut(&mut self, ipa: u64, level: i64) -> &mut Rtte {
        let mut at = 1;
        let mut entry = &mut self.root[(ipa / size(1)) as usize];
        while at < level {
            at += 1;
            let Table(_, below) = entry else { panic!("no RTT of level {at}") };
            entry = &mut below[(ipa / size(at)) as usize % 512];
        }
        entry
    }
    /// RttSkipNonLiveEntries.
    fn top(&self, ipa: u64, level: i64) -> u64 {
        let (at, index, table) = self.walk(ipa, level);
        let first = ipa & !(size(at) - 1);
        let live = table[index..].iter().position(Rtte::is_live).unwrap_or(512 - index);
        first + live as u64 * size(at)
    }
    /// RttSkipEntriesWithRipas, and the level.
    fn ripas_top(&self, base: u64, top: u64, stop_at_destroyed: bool) -> (i64, u64) {
        let (at, index, table) = self.walk(base, 3);
        let stops =
            |e: &Rtte| matches!(e, Table(..)) || stop_at_destroyed && e.ripas() == RmmRipas::Destroyed;
        let stop = table[index..].iter().position(stops).unwrap_or(512 - index) as u64;
        let first = base & !(size(at) - 1);
        (at, (first + stop * size(at)).min(top) & !(size(at) - 1))
    }
    fn is_homogeneous(table: &[Rtte], level: i64) -> bool {
        let step = size(level);
        match &table[0] {
            Assigned(_, addr) | AssignedNs(addr, _) if !addr.is_multiple_of(size(level - 1)) || level < 2 => {
                false
            }
            Table(..) => false,
            first => table.iter().enumerate().all(|(i, e)| *e == first.part(i as u64 * step)),
        }
    }
}

struct Model {
    base: u64,
    granules: Vec<Granule>,
    realms: BTreeMap<u64, Realm>,
}

/// What a call may answer: one of these statuses, with these outputs if it is this one.
struct Answers {
    statuses: Vec<RmiStatus>,
    outputs: Vec<u64>,
}

fn only(status: RmiStatus) -> Answers {
    Answers { statuses: vec![status], outputs: vec![] }
}
fn with<const N: usize>(status: RmiStatus, outputs: [u64; N]) -> Answers {
    Answers { statuses: vec![status], outputs: outputs.to_vec() }
}
fn rtt(level: i64) -> RmiStatus {
    RmiStatus::rtt(level)
}

/// The only ones that are asked for.
fn is_device(at: u64, bytes: u64) -> bool {
    DEVICE <= at && at + bytes <= DEVICE + 2 * MIB
}

impl Model {
    fn granule(&mut self, at: u64) -> Option<&mut Granule> {
        let index = at.checked_sub(self.base)? / GRANULE;
        at.is_multiple_of(GRANULE).then_some(())?;
        self.granules.get_mut(index as usize)
    }
    fn is(&mut self, at: u64, what: Granule) -> bool {
        self.granule(at).is_some_and(|granule| *granule == what)
    }
    fn set(&mut self, at: u64, bytes: u64, what: Granule) {
        // That stays the host's.
        if is_device(at, bytes) {
            return;
        }
        (at..at + bytes).step_by(GRANULE as usize).for_each(|at| *self.granule(at).unwrap() = what);
    }
    /// The one REC of a realm is destroyed.
    fn has_no_rec(&mut self, rd: u64, rec: u64) {
        for granule in &mut self.granules {
            if matches!(*granule, Granule::Kept(owner, Purpose::Aux) if owner == rd) {
                *granule = Granule::Delegated;
            }
        }
        self.set(rec, GRANULE, Granule::Delegated);
    }
    /// The host has lost, or gets back, what an unprotected entry maps.
    fn all(&mut self, at: u64, bytes: u64, what: Granule) -> bool {
        (at..at + bytes).step_by(GRANULE as usize).all(|at| self.is(at, what))
    }

    /// Makes a call that can be made, and says what it may answer.
    fn call(&mut self, command: RmiCommand, x: &[u64]) -> Answers {
        let delegated = Granule::Delegated;
        let in_half = |ipa: u64, protected: bool| ipa < 1 << WIDTH && (ipa < HALF) == protected;
        if matches!(command, GranuleDelegate | GranuleUndelegate) {
            let (from, to) = match command {
                GranuleDelegate => (Granule::Host, delegated),
                _ => (delegated, Granule::Host),
            };
            if !self.is(x[0], from) {
                return only(ErrorInput);
            }
            self.set(x[0], GRANULE, to);
            return only(Success);
        }
        let rd = x[0];
        let Some(realm) = self.realms.get(&rd) else { return only(ErrorInput) };
        let mut realm = realm.clone();
        let answer = match command {
            RealmActivate if !realm.is_new => only(ErrorRealm(0)),
            RealmActivate => {
                realm.is_new = false;
                only(Success)
            }
            RealmDestroy => {
                let live = |e: &Rtte| matches!(e, Assigned(..) | Table(..));
                if !realm.recs.is_empty() || realm.root.iter().any(live) {
                    return only(ErrorRealm(0));
                }
                self.realms.remove(&rd);
                for at in [rd, realm.roots, realm.roots + GRANULE] {
                    self.set(at, GRANULE, delegated);
                }
                return only(Success);
            }
            RttCreate | RttDestroy | RttFold => {
                let create = command == RttCreate;
                let (ipa, level) = if create { (x[2], x[3] as i64) } else { (x[1], x[2] as i64) };
                if !(2..=3).contains(&level) || ipa >= 1 << WIDTH || !ipa.is_multiple_of(size(level - 1)) {
                    return only(ErrorInput);
                }
                let (at, entry) = realm.entry(ipa, level - 1);
                let is_table = matches!(entry, Table(..));
                if create {
                    let is_granule = self.is(x[1], delegated);
                    if at < level - 1 || is_table {
                        let mut answers = only(rtt(at));
                        answers.statuses.extend((!is_granule).then_some(ErrorInput));
                        return answers;
                    }
                    if !is_granule {
                        return only(ErrorInput);
                    }
                    let parts = (0..512).map(|i| entry.part(i * size(level))).collect();
                    *realm.entry_mut(ipa, level - 1) = Table(x[1], parts);
                    self.set(x[1], GRANULE, Granule::Kept(rd, Purpose::Table));
                    self.realms.insert(rd, realm);
                    return only(Success);
                }
                let top = realm.top(ipa, level - 1);
                let Table(table, entries) = entry.clone() else {
                    return if create || command == RttFold {
                        only(rtt(at))
                    } else {
                        with(rtt(at), [0, top])
                    };
                };
                if at < level - 1 {
                    return if command == RttFold { only(rtt(at)) } else { with(rtt(at), [0, top]) };
                }
                let then = if command == RttFold {
                    if !Realm::is_homogeneous(&entries, level) {
                        return only(rtt(level));
                    }
                    entries[0].clone()
                } else {
                    if entries.iter().any(|e| matches!(e, Assigned(..) | Table(..))) {
                        return with(rtt(level), [0, ipa]);
                    }
                    for entry in &entries {
                        if let AssignedNs(at, _) = entry {
                            self.set(*at, size(level), Granule::Host);
                        }
                    }
                    if ipa < HALF { Unassigned(RmmRipas::Destroyed) } else { UnassignedNs }
                };
                *realm.entry_mut(ipa, level - 1) = then;
                self.set(table, GRANULE, delegated);
                match command {
                    RttFold => with(Success, [table]),
                    _ => with(Success, [table, realm.top(ipa, level - 1)]),
                }
            }
            RttReadEntry => {
                let (ipa, level) = (x[1], x[2] as i64);
                if !(1..=3).contains(&level) || ipa >= 1 << WIDTH || !ipa.is_multiple_of(size(level)) {
                    return only(ErrorInput);
                }
                let (at, entry) = realm.entry(ipa, level);
                let s2ap = |(r, w): (bool, bool)| u64::from(r) << 6 | u64::from(w) << 7 | 0b111 << 2;
                let (state, desc) = match entry {
                    Unassigned(_) | UnassignedNs => (0, 0),
                    Assigned(_, at) => (1, *at),
                    AssignedNs(at, ap) => (1, *at | s2ap(*ap)),
                    Table(at, _) => (2, *at),
                };
                with(Success, [at as u64, state, desc, entry.ripas().to_rmi().unwrap().bits().into()])
            }
            RttMapUnprotected | RttUnmapUnprotected => {
                let (ipa, level) = (x[1], x[2] as i64);
                if !(1..=3).contains(&level) || !in_half(ipa, false) || !ipa.is_multiple_of(size(level)) {
                    return only(ErrorInput);
                }
                let (at, entry) = realm.entry(ipa, level);
                if command == RttMapUnprotected {
                    let (addr, ap) = (x[3] & 0xffff_ffff_f000, (x[3] & 1 << 6 != 0, x[3] & 1 << 7 != 0));
                    if !addr.is_multiple_of(size(level)) {
                        return only(ErrorInput);
                    }
                    let is_wrong = at < level || *entry != UnassignedNs;
                    let is_hosts = is_device(addr, size(level)) || self.all(addr, size(level), Granule::Host);
                    if is_wrong {
                        let mut answers = only(rtt(at));
                        answers.statuses.extend((!is_hosts).then_some(ErrorInput));
                        return answers;
                    }
                    if !is_hosts {
                        return only(ErrorInput);
                    }
                    self.set(addr, size(level), Granule::Shared);
                    *realm.entry_mut(ipa, level) = AssignedNs(addr, ap);
                    only(Success)
                } else {
                    let top = realm.top(ipa, level);
                    let (&AssignedNs(addr, _), true) = (entry, at == level) else {
                        return with(rtt(at), [top]);
                    };
                    self.set(addr, size(level), Granule::Host);
                    *realm.entry_mut(ipa, level) = UnassignedNs;
                    with(Success, [realm.top(ipa, level)])
                }
            }
            DataCreate | DataCreateUnknown => {
                let (data, ipa) = (x[1], x[2]);
                let is_known = command == DataCreate;
                let is_src = !is_known || self.is(x[3], Granule::Host) || self.is(x[3], Granule::Shared);
                let mut statuses = vec![];
                if !self.is(data, delegated) || !is_src {
                    statuses.push(ErrorInput);
                }
                if !in_half(ipa, true) || !ipa.is_multiple_of(GRANULE) {
                    return only(ErrorInput);
                }
                if is_known && !realm.is_new {
                    statuses.push(ErrorRealm(0));
                }
                let (at, entry) = realm.entry(ipa, 3);
                let ripas = if is_known { RmmRipas::Ram } else { entry.ripas() };
                if at < 3 || !matches!(entry, Unassigned(_)) {
                    statuses.push(rtt(at));
                }
                if !statuses.is_empty() {
                    return Answers { statuses, outputs: vec![] };
                }
                *realm.entry_mut(ipa, 3) = Assigned(ripas, data);
                self.set(data, GRANULE, Granule::Kept(rd, Purpose::Data));
                only(Success)
            }
            DataDestroy => {
                let ipa = x[1];
                if !in_half(ipa, true) || !ipa.is_multiple_of(GRANULE) {
                    return only(ErrorInput);
                }
                let (at, entry) = realm.entry(ipa, 3);
                let (&Assigned(ripas, data), 3) = (entry, at) else {
                    return with(rtt(at), [0, realm.top(ipa, 3)]);
                };
                let then = if ripas == RmmRipas::Ram { RmmRipas::Destroyed } else { ripas };
                *realm.entry_mut(ipa, 3) = Unassigned(then);
                self.set(data, GRANULE, delegated);
                with(Success, [data, realm.top(ipa, 3)])
            }
            RttInitRipas => {
                let (base, top) = (x[1], x[2]);
                if top <= base || !top.is_multiple_of(GRANULE) || !in_half(top - GRANULE, true) {
                    return only(ErrorInput);
                }
                let (at, entry) = realm.entry(base, 3);
                let is_unassigned = matches!(entry, Unassigned(_));
                let (_, walk_top) = realm.ripas_top(base, top, false);
                let mut statuses = vec![];
                statuses.extend((!realm.is_new).then_some(ErrorRealm(0)));
                let is_wrong = !base.is_multiple_of(size(at)) || !is_unassigned || walk_top == base;
                statuses.extend(is_wrong.then_some(rtt(at)));
                if !statuses.is_empty() {
                    return Answers { statuses, outputs: vec![] };
                }
                realm.paint(base, walk_top, at, RmmRipas::Ram);
                with(Success, [walk_top])
            }
            RttSetRipas => {
                let (rec, base, top) = (x[1], x[2], x[3]);
                let owner = self.granule(rec).copied();
                let Some(Granule::Kept(owner, Purpose::Rec)) = owner else { return only(ErrorInput) };
                if owner != rd {
                    return Answers { statuses: vec![ErrorRec, ErrorInput], outputs: vec![] };
                }
                let change = realm.recs[&rec];
                if top <= base || !top.is_multiple_of(GRANULE) || base != change.addr || top > change.top {
                    return only(ErrorInput);
                }
                let (at, walk_top) = realm.ripas_top(base, top, !change.destroyed);
                let is_same = realm.entry(base, 3).1.ripas() == change.value;
                if !is_same && (!base.is_multiple_of(size(at)) || walk_top == base) {
                    return only(rtt(at));
                }
                realm.paint(base.next_multiple_of(size(at)), walk_top, at, change.value);
                // Beyond the specification: what an end of the range cuts is passed if it is as asked for.
                let mut out = walk_top;
                if walk_top < top && top - walk_top < size(at) {
                    let (level, entry) = realm.entry(walk_top, 3);
                    let stops = !change.destroyed && entry.ripas() == RmmRipas::Destroyed;
                    let is_same_rtt = walk_top / (512 * size(at)) == base / (512 * size(at));
                    if level == at && is_same_rtt && !stops && entry.ripas() == change.value {
                        out = top;
                    }
                }
                let out = out.max(base);
                realm.recs.insert(rec, RipasChange { addr: out, ..change });
                with(Success, [out])
            }
            RecDestroy | RealmCreate | RecCreate => unreachable!("made by the test"),
            other => unreachable!("{other:?}"),
        };
        self.realms.insert(rd, realm);
        answer
    }
}

impl Realm {
    fn paint(&mut self, base: u64, top: u64, level: i64, to: RmmRipas) {
        let mut at = base;
        while at < top {
            match self.entry_mut(at, level) {
                Unassigned(ripas) | Assigned(ripas, _) => *ripas = to,
                other => panic!("{other:?} has no RIPAS"),
            }
            at += size(level);
        }
    }
}

/// What a realm's tables say, from the RTT of `level` for `start` on.
fn read(realm: &crate::realm::Realm<RealmMmu>, start: u64, level: i64) -> Vec<Rtte> {
    let mut walks = vec![];
    realm.scan(start, level, |walk: &Walk| {
        walks.push(*walk);
        ControlFlow::<()>::Continue(())
    });
    let entry = |walk: &Walk| {
        assert_eq!(walk.level, level);
        let rtte = walk.rtte;
        match rtte.state {
            RmmRttEntryState::Table => Table(rtte.addr, read(realm, walk.start, level + 1)),
            RmmRttEntryState::Entry(RmmHipas::Unassigned) => Unassigned(rtte.ripas),
            RmmRttEntryState::Entry(RmmHipas::Assigned) => Assigned(rtte.ripas, rtte.addr),
            RmmRttEntryState::Entry(RmmHipas::UnassignedNs) => UnassignedNs,
            RmmRttEntryState::Entry(RmmHipas::AssignedNs) => AssignedNs(rtte.addr, rtte.s2ap),
        }
    };
    walks.iter().map(entry).collect()
}

/// Compares all that there is.
fn compare(fake: &Fake, model: &Model) {
    let lock = fake.monitor.lock();
    let mut numbers = BTreeMap::new();
    for (&rd, expected) in &model.realms {
        let realm = lock.realm(rd).expect("a realm");
        numbers.insert(realm.number, rd);
        assert_eq!(realm.state.get() == RealmState::New, expected.is_new);
        assert_eq!(realm.num_recs.get(), expected.recs.len() as u64);
        let mut root = read(realm, 0, 1);
        root.extend(read(realm, HALF, 1));
        if root != expected.root {
            let differs = root.iter().zip(&expected.root).position(|(a, b)| a != b).unwrap();
            panic!("entry {differs} of {rd:#x}");
        }
        for (&rec, change) in &expected.recs {
            assert_eq!(lock.rec(rec).unwrap().ripas.get(), *change);
        }
    }
    assert_eq!(lock.state.realms.iter().flatten().count(), model.realms.len());
    for (index, expected) in model.granules.iter().enumerate() {
        let at = model.base + index as u64 * GRANULE;
        let is = match fake.is(at) {
            HostPage::Owned => Granule::Host,
            HostPage::SharedWithRealm => Granule::Shared,
            HostPage::Kept(Keeper::Delegated) => Granule::Delegated,
            HostPage::Kept(Keeper::Realm(number, purpose)) => Granule::Kept(numbers[&number], purpose),
            other => panic!("{at:#x} is {other}"),
        };
        assert_eq!(is, *expected, "{at:#x}");
    }
}

/// Small granules first, then blocks.
const FEW: u64 = 512;
const BLOCKS: u64 = 2;

fn run(seed: u64, calls: usize, successes: &mut BTreeMap<&'static str, usize>) {
    let fake = Fake::new();
    let mut random = SmallRng::seed_from_u64(seed);
    let count = FEW + BLOCKS * 512;
    let base = fake.granules(count, 2 * MIB);
    let mut model = Model { base, granules: vec![Granule::Host; count as usize], realms: BTreeMap::new() };
    let params = fake.granule();
    let mut rds = vec![];
    for call in 0..calls {
        // Most often of few granules, so that they meet.
        let granule = |random: &mut SmallRng| {
            let index = match random.random_range(0..20) {
                0 => random.random_range(0..count + 4),
                1 => return [DEVICE, RAM, 1 << 52, base + 8][random.random_range(0..4)],
                _ => random.random_range(0..24),
            };
            base + index * GRANULE
        };
        let pick = |random: &mut SmallRng, model: &Model, what: Granule| {
            let all = model.granules[..32].iter().enumerate().filter(|(_, is)| **is == what);
            let all: Vec<u64> = all.map(|(index, _)| base + index as u64 * GRANULE).collect();
            match all.len() {
                0 => granule(random),
                _ if random.random_ratio(1, 16) => granule(random),
                n => all[random.random_range(0..n)],
            }
        };
        let ipa = |random: &mut SmallRng, level: i64| {
            let page = [0, 0, 1, 2, 3, 511][random.random_range(0..6)];
            let block = [0, 0, 0, 0, 0, 0, 1, 511][random.random_range(0..8)];
            let giga = [0, 0, 0, 0, 0, 0, 0, 0, 1, 511][random.random_range(0..10)];
            let half = if random.random_bool(0.5) { HALF } else { 0 };
            let ipa = half + giga * GIB + block * 2 * MIB + page * GRANULE;
            if random.random_ratio(1, 20) { ipa } else { ipa & !(size(level) - 1) }
        };
        let level = |random: &mut SmallRng| [3, 3, 3, 3, 3, 2, 2, 2, 2, 1, 4, 0][random.random_range(0..12)];
        let rd = match rds.len() {
            0 => granule(&mut random),
            _ if random.random_ratio(1, 25) => granule(&mut random),
            // The first one more often.
            n => rds[random.random_range(0..4 * n).saturating_sub(3 * n)],
        };
        // Realms and RECs come and go by calls that are not answered by the model.
        if rds.len() < 2 {
            let free: Vec<u64> = (24..64).map(|i| base + i * GRANULE).collect();
            let roots = free[rds.len() * 6..][..2].to_vec();
            let new = free[rds.len() * 6 + 2];
            let rec = free[rds.len() * 6 + 3];
            let aux = free[rds.len() * 6 + 4];
            let mut is_free = true;
            for at in roots.iter().chain([&new, &rec, &aux]) {
                if model.is(*at, Granule::Host) {
                    fake.ok(GranuleDelegate, &[*at]);
                    model.set(*at, GRANULE, Granule::Delegated);
                }
                is_free &= model.is(*at, Granule::Delegated);
            }
            if is_free && !model.realms.contains_key(&new) {
                let mut of = fake.params_at(40, roots[0]);
                of.hash_algo = (call % 2) as u8;
                fake.store(params, zerocopy::IntoBytes::as_bytes(&of));
                fake.ok(RealmCreate, &[new, params]);
                fake.rec_at(new, rec, aux, params);
                model.set(new, GRANULE, Granule::Kept(new, Purpose::Descriptor));
                model.set(rec, GRANULE, Granule::Kept(new, Purpose::Rec));
                model.set(aux, GRANULE, Granule::Kept(new, Purpose::Aux));
                roots.iter().for_each(|at| model.set(*at, GRANULE, Granule::Kept(new, Purpose::Table)));
                let (mut root, ns) = (vec![Unassigned(RmmRipas::Empty); 512], vec![UnassignedNs; 512]);
                root.extend(ns);
                let recs = [(rec, RipasChange::NONE)].into();
                let realm = Realm { is_new: true, root, roots: roots[0], recs, rec_index: 1 };
                assert_eq!(realm.rec_index, 1);
                model.realms.insert(new, realm);
                rds.push(new);
            }
        }
        if random.random_ratio(1, 400)
            && let Some(rec) = model.realms.get_mut(&rd).and_then(|realm| realm.recs.pop_first())
        {
            fake.ok(RecDestroy, &[rec.0]);
            model.has_no_rec(rd, rec.0);
        }
        let (command, x): (_, Vec<u64>) = match random.random_range(0..40) {
            0..=4 => (GranuleDelegate, vec![pick(&mut random, &model, Granule::Host)]),
            5 => (GranuleUndelegate, vec![pick(&mut random, &model, Granule::Delegated)]),
            6 if random.random_ratio(1, 30) => (RealmActivate, vec![rd]),
            6 => (RealmDestroy, vec![rd]),
            7..=13 => {
                let (level, rtt) = (level(&mut random), pick(&mut random, &model, Granule::Delegated));
                (RttCreate, vec![rd, rtt, ipa(&mut random, (level - 1).clamp(1, 3)), level as u64])
            }
            14..=15 => {
                let level = level(&mut random);
                let ipa = ipa(&mut random, (level - 1).clamp(1, 3));
                (if random.random_bool(0.5) { RttDestroy } else { RttFold }, vec![rd, ipa, level as u64])
            }
            16..=17 => {
                let level = level(&mut random);
                (RttReadEntry, vec![rd, ipa(&mut random, level.clamp(1, 3)), level as u64])
            }
            18..=22 => {
                let level = level(&mut random);
                let at = match level {
                    2 => base + FEW * GRANULE + random.random_range(0..BLOCKS) * 2 * MIB,
                    _ => pick(&mut random, &model, Granule::Host),
                };
                let ap = random.random_range(0..4) << 6;
                (RttMapUnprotected, vec![rd, ipa(&mut random, level.clamp(1, 3)), level as u64, at | ap])
            }
            23..=24 => {
                let level = level(&mut random);
                (RttUnmapUnprotected, vec![rd, ipa(&mut random, level.clamp(1, 3)), level as u64])
            }
            25..=27 => {
                let (data, src) = (pick(&mut random, &model, Granule::Delegated), granule(&mut random));
                (DataCreateUnknown, vec![rd, data, ipa(&mut random, 3), src, 1])
            }
            28..=29 => {
                let (data, src) =
                    (pick(&mut random, &model, Granule::Delegated), pick(&mut random, &model, Granule::Host));
                (DataCreate, vec![rd, data, ipa(&mut random, 3), src, 0])
            }
            30..=32 => (DataDestroy, vec![rd, ipa(&mut random, 3)]),
            33..=34 => {
                let base = ipa(&mut random, 3);
                let bytes = [GRANULE, 3 * GRANULE, 2 * MIB, 4 * MIB][random.random_range(0..4)];
                (RttInitRipas, vec![rd, base, base + bytes])
            }
            _ => {
                let base = ipa(&mut random, 3) % HALF;
                let bytes = [GRANULE, 3 * GRANULE, 2 * MIB, 2 * MIB, 4 * MIB, GIB];
                let top = base + bytes[random.random_range(0..bytes.len())];
                let value = if random.random_bool(0.6) { RmmRipas::Ram } else { RmmRipas::Empty };
                let destroyed = random.random_bool(0.5);
                let rec = model.realms.get(&rd).and_then(|realm| realm.recs.keys().next().copied());
                let rec = rec.unwrap_or(rd);
                if let Some(realm) = model.realms.get_mut(&rd)
                    && top <= HALF
                    && let Some(change) = realm.recs.get_mut(&rec)
                {
                    *change = RipasChange { addr: base, top, value, destroyed, ..RipasChange::NONE };
                    fake.monitor.lock().rec(rec).unwrap().ripas.set(*change);
                }
                (RttSetRipas, vec![rd, rec, base, top])
            }
        };
        let arguments = &x[..command.inputs()];
        let expected = model.call(command, arguments);
        let answer = fake.call(command, arguments);
        let found = status(&answer);
        let what = format!("seed {seed}, call {call}: {} {arguments:x?}", command.name());
        assert!(expected.statuses.contains(&found), "{what}: {found:?}, not {:?}", expected.statuses);
        for (i, &output) in expected.outputs.iter().enumerate() {
            assert_eq!(answer[1 + i], output, "{what}, output {i}");
        }
        rds.retain(|rd| model.realms.contains_key(rd));
        compare(&fake, &model);
        *successes.entry(command.name()).or_insert(0) += usize::from(found == Success);
    }
    take_down(&fake, &mut model);
}

/// Takes everything away from every realm, each step by the call for it, and gives all of it back to the host.
fn take_down(fake: &Fake, model: &mut Model) {
    let make = |model: &mut Model, command: RmiCommand, arguments: &[u64]| {
        let expected = model.call(command, arguments);
        assert_eq!(expected.statuses, [Success], "{} {arguments:x?}", command.name());
        let answer = fake.ok(command, arguments);
        assert_eq!(answer[1..][..expected.outputs.len()], expected.outputs);
        compare(fake, model);
    };
    /// The calls that empty a table of `level` for `start`.
    fn empty(table: &[Rtte], start: u64, level: i64, rd: u64, calls: &mut Vec<(RmiCommand, Vec<u64>)>) {
        for (entry, at) in table.iter().zip((start..).step_by(size(level) as usize)) {
            match entry {
                Assigned(..) if level == 3 => calls.push((DataDestroy, vec![rd, at])),
                AssignedNs(..) => calls.push((RttUnmapUnprotected, vec![rd, at, level as u64])),
                Table(_, below) => {
                    empty(below, at, level + 1, rd, calls);
                    calls.push((RttDestroy, vec![rd, at, level as u64 + 1]));
                }
                other => assert!(!other.is_live(), "a block of data was never made"),
            }
        }
    }
    let mut calls = vec![];
    for (&rd, realm) in &model.realms {
        empty(&realm.root, 0, 1, rd, &mut calls);
    }
    calls.into_iter().for_each(|(command, arguments)| make(model, command, &arguments));
    for rd in model.realms.keys().copied().collect::<Vec<_>>() {
        while let Some((rec, _)) = model.realms.get_mut(&rd).and_then(|realm| realm.recs.pop_first()) {
            fake.ok(RecDestroy, &[rec]);
            model.has_no_rec(rd, rec);
        }
        assert_eq!(model.call(RealmDestroy, &[rd]).statuses, [Success]);
        fake.ok(RealmDestroy, &[rd]);
        compare(fake, model);
    }
    for index in 0..model.granules.len() {
        let at = model.base + index as u64 * GRANULE;
        if model.is(at, Granule::Delegated) {
            fake.ok(GranuleUndelegate, &[at]);
        }
        assert_eq!(fake.is(at), HostPage::Owned);
    }
}

#[test]
fn random_commands_do_what_the_specification_says_and_nothing_else() {
    let mut successes = BTreeMap::new();
    for seed in 0..4 {
        run(seed, 2500, &mut successes);
    }
    // It is no test of anything if a command never succeeds.
    let commands = [
        GranuleDelegate,
        GranuleUndelegate,
        RttCreate,
        RttDestroy,
        RttFold,
        RttReadEntry,
        RttMapUnprotected,
        RttUnmapUnprotected,
        DataCreate,
        DataCreateUnknown,
        DataDestroy,
        RttInitRipas,
        RttSetRipas,
    ];
    for command in commands {
        let count = successes.get(command.name()).copied().unwrap_or(0);
        assert!(count >= 3, "{} succeeded {count} times: {successes:?}", command.name());
    }
}
