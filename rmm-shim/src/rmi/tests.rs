//! Each command's failure conditions, in the order that it has to have, and what it does.
//!
//! A call that fails is compared with what was before: host, EL2, every realm's tables, measurements and states.

use std::sync::atomic::Ordering::SeqCst;

use hyp::mapping::{Address, Capabilities, GRANULE, Pa};
use hyp::owner::{HostPage, Keeper, Purpose};
use hyp::stage2::CpuLimits;
use rmm_abi::v1_0::rmi::RmiCommand::{self, *};
use rmm_abi::v1_0::rmi::{RmiFeatureRegister0, RmiRealmFlags, RmiRealmParams, RmiStatus};
use rmm_abi::v1_0::{RmmHipas, RmmRipas};

use crate::fake::*;
use crate::rec::{RecState, RipasChange};
use crate::rtt::Rtte;

const INPUT: RmiStatus = RmiStatus::ErrorInput;
const REALM: RmiStatus = RmiStatus::ErrorRealm(0);
const REC: RmiStatus = RmiStatus::ErrorRec;
/// A realm of 40 bits has its unprotected half from here on.
const NS: u64 = 1 << 39;
/// What lies beyond all physical addresses.
const BEYOND: u64 = 1 << 52;

const fn rtt(level: u8) -> RmiStatus {
    RmiStatus::ErrorRtt(level)
}

fn delegated() -> HostPage {
    HostPage::Kept(Keeper::Delegated)
}

/// A realm with some of everything, at the IPAs below, and granules of all kinds.
struct Fixture {
    fake: Fake,
    rd: u64,
    rec: u64,
    /// The host's; delegated.
    host: u64,
    free: u64,
    /// An RTT; a granule of data.
    rtt: u64,
    data: u64,
    /// The host's, shared with the realm.
    shared: u64,
}

/// In the RTT of level 3 for 0: ASSIGNED, RAM and so on.
const ASSIGNED_RAM: u64 = 0x1000;
const ASSIGNED_EMPTY: u64 = 0x2000;
const UNASSIGNED_RAM: u64 = 0x3000;
const UNASSIGNED_EMPTY: u64 = 0x4000;
const UNASSIGNED_DESTROYED: u64 = 0x5000;
/// In the RTT of level 2 for 0: a block of data, an entry that says nothing.
const BLOCK: u64 = 4 * MIB;
const NO_RTT: u64 = 6 * MIB;
/// In the RTT of level 1: an entry that says nothing.
const NO_RTTS: u64 = GIB;
/// In the RTT of level 3 for NS: ASSIGNED_NS.
const MAPPED: u64 = NS + 0x1000;
/// In the RTT of level 2 for NS: a block of the host's.
const NS_BLOCK: u64 = NS + 2 * MIB;

impl Fixture {
    fn new() -> Self {
        let fake = Fake::new();
        let rd = fake.realm();
        fake.rtts(rd, 0, 2);
        let rtt = fake.delegated();
        fake.ok(RttCreate, &[rd, rtt, 0, 3]);
        for page in [ASSIGNED_RAM, UNASSIGNED_RAM, UNASSIGNED_DESTROYED] {
            fake.ok(RttInitRipas, &[rd, page, page + GRANULE]);
        }
        let data = fake.data(rd, ASSIGNED_RAM);
        fake.data(rd, ASSIGNED_EMPTY);
        fake.data(rd, UNASSIGNED_DESTROYED);
        fake.ok(DataDestroy, &[rd, UNASSIGNED_DESTROYED]);
        fake.block(rd, BLOCK);
        fake.rtts(rd, NS, 3);
        let (shared, block) = (fake.granule(), fake.granules(512, 2 * MIB));
        fake.ok(RttMapUnprotected, &[rd, MAPPED, 3, shared | 0b11 << 6]);
        fake.ok(RttMapUnprotected, &[rd, NS_BLOCK, 2, block | 0b11 << 6]);
        let rec = fake.rec(rd);
        let (host, free) = (fake.granule(), fake.delegated());
        Self { fake, rd, rec, host, free, rtt, data, shared }
    }

    /// What is no realm descriptor, by the condition that says so.
    fn no_rds(&self) -> [(&'static str, u64); 9] {
        [
            ("rd_align", self.rd + 1),
            ("rd_align", self.rd + 0x800),
            ("rd_bound", DEVICE),
            ("rd_bound", BEYOND),
            ("rd_bound", !0xfff),
            ("rd_state", self.host),
            ("rd_state", self.free),
            ("rd_state", self.rec),
            ("rd_state", self.rtt),
        ]
    }

    /// What is not delegated, by the condition that says so, which begins with `name`.
    fn not_delegated(&self) -> [(&'static str, u64); 11] {
        [
            ("align", self.free + 8),
            ("bound", DEVICE),
            ("bound", BEYOND),
            ("bound2", 1 << 48),
            ("bound", RAM),
            ("state", self.host),
            ("state", self.rd),
            ("state", self.rec),
            ("state", self.rtt),
            ("state", self.data),
            ("state", self.shared),
        ]
    }

    /// The call fails so, with outputs that are zero, and changes nothing.
    #[track_caller]
    fn fails(&self, id: &str, command: RmiCommand, arguments: &[u64], want: RmiStatus) {
        let outputs = self.fails_with(id, command, arguments, want);
        assert!(outputs.iter().all(|&x| x == 0), "{} {id} {arguments:x?}: {outputs:x?}", command.name());
    }

    #[track_caller]
    fn fails_with(&self, id: &str, command: RmiCommand, arguments: &[u64], want: RmiStatus) -> [u64; 4] {
        let before = self.fake.fingerprint();
        let answer = self.fake.call(command, arguments);
        assert_eq!(status(&answer), want, "{} {id} {arguments:x?}", command.name());
        assert_eq!(self.fake.fingerprint(), before, "{} {id} {arguments:x?}", command.name());
        [answer[1], answer[2], answer[3], answer[4]]
    }

    /// As without a realm at all: whatever is wrong besides.
    #[track_caller]
    fn fails_without_realm(&self, command: RmiCommand, arguments: &[u64]) {
        for (id, rd) in self.no_rds() {
            let mut arguments = arguments.to_vec();
            arguments[0] = rd;
            self.fails(id, command, &arguments, INPUT);
        }
    }

    /// What the realm has, of a page or a larger entry.
    fn rtte(&self, ipa: u64) -> (i64, Rtte) {
        self.fake.rtte(self.rd, ipa, 3)
    }

    fn rim(&self) -> [u8; 64] {
        self.fake.monitor.lock().realm(self.rd).unwrap().measurements.borrow()[0]
    }

    /// The realm asks for a change of RIPAS.
    fn ask(&self, base: u64, top: u64, value: RmmRipas, destroyed: bool) {
        let lock = self.fake.monitor.lock();
        let rec = lock.rec(self.rec).unwrap();
        rec.ripas.set(RipasChange { addr: base, top, value, destroyed, ..RipasChange::NONE });
    }
}

#[test]
fn a_realm_lives_from_delegation_to_undelegation() {
    let fake = Fake::new();
    let before = fake.fingerprint();
    let params = fake.params(40);
    let rd = fake.realm_of(&params);
    fake.rtts(rd, 0, 3);
    fake.ok(RttInitRipas, &[rd, 0, 2 * MIB]);
    let (data, src) = (fake.delegated(), fake.put(&0x1234_5678_u64));
    fake.ok(DataCreate, &[rd, data, 0x3000, src, 1]);
    assert_eq!(fake.get::<u64>(data), 0x1234_5678);
    let answer = fake.call(DataDestroy, &[rd, 0x3000]);
    assert_eq!(answer[..3], [0, data, 2 * MIB]);
    assert_eq!(fake.get::<u64>(data), 0);
    for level in [3, 2] {
        let answer = fake.ok(RttDestroy, &[rd, 0, level]);
        fake.ok(GranuleUndelegate, &[answer[1]]);
    }
    fake.ok(RealmDestroy, &[rd]);
    for granule in [rd, data, params.rtt_base, params.rtt_base + GRANULE] {
        fake.ok(GranuleUndelegate, &[granule]);
    }
    assert_eq!(fake.fingerprint(), before);
    assert_eq!(fake.bytes::<4096>(rd), [0; 4096]);
}

#[test]
fn version_is_negotiated() {
    let fake = Fake::new();
    assert_eq!(fake.ok(Version, &[0x1_0000])[1..3], [0x1_0000, 0x1_0000]);
    for other in [0, 0xffff, 0x1_0001, 0x2_0000, u64::MAX] {
        let answer = fake.call(Version, &[other]);
        assert_eq!((status(&answer), answer[1], answer[2]), (INPUT, 0x1_0000, 0x1_0000), "{other:#x}");
    }
}

#[test]
fn features_tell_what_a_realm_can_have_and_other_registers_are_zero() {
    let fake = Fake::new();
    let register = RmiFeatureRegister0::from_bits(fake.ok(Features, &[0])[1]);
    assert_eq!((register.s2sz(), register.lpa2(), register.sve_en(), register.pmu_en()), (48, 0, 0, 0));
    assert_eq!((register.num_bps(), register.num_wps()), (1, 1));
    assert_eq!((register.hash_sha_256(), register.hash_sha_512()), (1, 1));
    assert_eq!(register.gicv3_num_lrs(), FEATURES.list_registers as u64 - 1);
    assert_eq!(register.reserved(), 0);
    for index in [1, 2, u64::MAX] {
        assert_eq!(fake.ok(Features, &[index])[1], 0);
    }
}

#[test]
fn what_is_no_command_is_not_answered() {
    let fake = Fake::new();
    for fid in [0xc400_014f, 0xc400_0160, 0xc400_0163, 0xc400_016a, 0x8400_0150, 0xc400_0190] {
        let mut x = [fid; 18];
        assert!(!fake.monitor.call(&mut x));
        assert_eq!(x, [fid; 18]);
    }
}

#[test]
fn granule_delegate_takes_the_hosts_granules_only() {
    let f = Fixture::new();
    for (id, granule) in [
        ("gran_align", f.host + 1),
        ("gran_bound", DEVICE),
        ("gran_bound", BEYOND),
        ("gran_bound", RAM),
        ("gran_state", f.free),
        ("gran_state", f.rd),
        ("gran_state", f.rec),
        ("gran_state", f.rtt),
        ("gran_state", f.data),
        ("gran_gpt", f.shared),
    ] {
        f.fails(id, GranuleDelegate, &[granule], INPUT);
    }
    f.fake.ok(GranuleDelegate, &[f.host]);
    assert_eq!(f.fake.is(f.host), delegated());
}

#[test]
fn granule_undelegate_takes_delegated_granules_only() {
    let f = Fixture::new();
    for (id, granule) in f.not_delegated() {
        f.fails(id, GranuleUndelegate, &[granule], INPUT);
    }
    f.fake.ok(GranuleUndelegate, &[f.free]);
    assert_eq!(f.fake.is(f.free), HostPage::Owned);
}

#[test]
fn realm_create_fails_by_each_of_its_conditions() {
    let f = Fixture::new();
    let fake = &f.fake;
    let good = fake.params(40);
    let put = |change: &dyn Fn(&mut RmiRealmParams)| {
        let mut params = good.clone();
        change(&mut params);
        fake.put(&params)
    };
    let at = put(&|_| ());
    for (id, params) in [
        ("params_align", at + 8),
        ("params_bound", DEVICE),
        ("params_bound", BEYOND),
        ("params_bound", RAM),
        ("params_pas", f.free),
        ("params_pas", f.rd),
        ("params_pas", f.data),
        ("params_valid", put(&|p| p.hash_algo = 2)),
        ("params_supp", put(&|p| p.flags = RmiRealmFlags::SVE)),
        ("params_supp", put(&|p| p.flags = RmiRealmFlags::PMU)),
        ("params_supp", put(&|p| p.flags = RmiRealmFlags::from_bits_retain(1 << 40))),
        ("params_supp", put(&|p| p.num_bps = 0)),
        ("params_supp", put(&|p| p.num_bps = 2)),
        ("params_supp", put(&|p| p.num_wps = 2)),
        ("params_supp", put(&|p| p.pmu_num_ctrs = 1)),
        ("params_supp", put(&|p| p.sve_vl = 1)),
        ("params_supp", put(&|p| (p.s2sz, p.rtt_num_start) = (31, 1))),
        ("params_supp", put(&|p| (p.rtt_level_start, p.rtt_num_start) = (0, 1))),
        ("rtt_num_level", put(&|p| p.rtt_num_start = 1)),
        ("rtt_num_level", put(&|p| p.rtt_level_start = 3)),
        ("rtt_num_level", put(&|p| p.s2sz = 49)),
        ("rtt_align", put(&|p| p.rtt_base += GRANULE)),
        ("rtt_state", put(&|p| p.rtt_base = f.host & !0x1fff)),
        ("rtt_state", put(&|p| p.rtt_base = BEYOND)),
        ("rtt_state", put(&|p| p.rtt_base = !0x1fff)),
        ("vmid_valid", put(&|p| p.vmid = fake.monitor.lock().realm(f.rd).unwrap().vmid)),
    ] {
        f.fails(id, RealmCreate, &[f.free, params], INPUT);
    }
    for (id, rd) in f.not_delegated() {
        f.fails(id, RealmCreate, &[rd, at], INPUT);
    }
    for alias in [good.rtt_base, good.rtt_base + GRANULE] {
        f.fails("alias", RealmCreate, &[alias, at], INPUT);
    }
    // One of the roots is not delegated.
    fake.ok(GranuleUndelegate, &[good.rtt_base + GRANULE]);
    f.fails("rtt_state", RealmCreate, &[f.free, at], INPUT);
    fake.ok(GranuleDelegate, &[good.rtt_base + GRANULE]);
    fake.ok(RealmCreate, &[f.free, at]);
}

#[test]
fn a_realm_has_no_more_than_the_machine() {
    let f = Fixture::new();
    let good = f.fake.params(40);
    let put = |change: &dyn Fn(&mut RmiRealmParams)| {
        let mut params = good.clone();
        change(&mut params);
        f.fake.put(&params)
    };
    let (wide, high) = (f.fake.put(&f.fake.params(41)), put(&|p| p.vmid = 0x100));
    let last = put(&|p| p.vmid = 0xff);
    // 40 bits of physical address, 8 of VMID.
    f.fake.cpus().features.lock().unwrap().limits = CpuLimits { pa_range: 2, vmid_16_bits: false };
    f.fails("params_supp", RealmCreate, &[f.free, wide], INPUT);
    f.fails("vmid_valid", RealmCreate, &[f.free, high], INPUT);
    f.fake.ok(RealmCreate, &[f.free, last]);
    let register = RmiFeatureRegister0::from_bits(f.fake.ok(Features, &[0])[1]);
    assert_eq!(register.s2sz(), 40);
}

#[test]
fn a_new_realm_is_what_its_parameters_say() {
    let fake = Fake::new();
    for (s2sz, roots) in [(32, 1), (39, 1), (40, 2), (42, 8), (43, 16), (44, 1), (48, 1)] {
        let mut params = fake.params(s2sz);
        (params.rpv, params.hash_algo) = ([s2sz; 64], s2sz & 1);
        let rd = fake.realm_of(&params);
        {
            let lock = fake.monitor.lock();
            let realm = lock.realm(rd).unwrap();
            assert_eq!(fake.is(rd), HostPage::Kept(Keeper::Realm(realm.number, Purpose::Descriptor)));
            for root in 0..roots {
                let root = fake.is(params.rtt_base + root * GRANULE);
                assert_eq!(root, HostPage::Kept(Keeper::Realm(realm.number, Purpose::Table)));
            }
            assert_eq!((realm.ipa_width, realm.rpv, realm.vmid), (s2sz.into(), params.rpv, params.vmid));
            assert_eq!(realm.measurements.borrow()[1..], [[0; 64]; 4]);
            assert_eq!((realm.rec_index.get(), realm.num_recs.get()), (0, 0));
            assert_eq!(realm.registers.vttbr & ((1 << 48) - 1), params.rtt_base);
            let half = 1 << (s2sz - 1);
            for (ipa, hipas) in [(0, RmmHipas::Unassigned), (half, RmmHipas::UnassignedNs)] {
                let walk = realm.walk(ipa, 3);
                assert_eq!(walk.level, if s2sz < 44 { 1 } else { 0 });
                assert!(walk.rtte.is(hipas) && walk.rtte.ripas == RmmRipas::Empty, "{s2sz}: {walk:x?}");
            }
        }
        fake.ok(RealmDestroy, &[rd]);
        assert_eq!((fake.is(rd), fake.is(params.rtt_base)), (delegated(), delegated()));
        assert_eq!(fake.bytes::<4096>(params.rtt_base), [0; 4096]);
    }
}

#[test]
fn there_are_as_many_realms_as_there_are_numbers_and_a_number_is_used_again() {
    let fake = Fake::new();
    let rds: Vec<u64> = (0..crate::realm::MAX_REALMS).map(|_| fake.realm()).collect();
    let (rd, params) = (fake.delegated(), fake.params(40));
    assert_eq!(fake.status(RealmCreate, &[rd, fake.put(&params)]), INPUT);
    fake.ok(RealmDestroy, &[rds[7]]);
    fake.ok(RealmCreate, &[rd, fake.put(&params)]);
    assert_eq!(fake.monitor.lock().realm(rd).unwrap().number, 8);
}

#[test]
fn realm_activate_takes_a_new_realm() {
    let f = Fixture::new();
    f.fails_without_realm(RealmActivate, &[0]);
    assert_eq!(f.fake.cpus().forgotten.load(SeqCst), 0);
    f.fake.ok(RealmActivate, &[f.rd]);
    // What was its memory's before is not executed.
    assert_eq!(f.fake.cpus().forgotten.load(SeqCst), 1);
    f.fails("realm_state", RealmActivate, &[f.rd], REALM);
    assert_eq!(f.fake.cpus().forgotten.load(SeqCst), 1);
}

#[test]
fn realm_destroy_takes_a_realm_that_is_not_live() {
    let f = Fixture::new();
    f.fails_without_realm(RealmDestroy, &[0]);
    f.fails("realm_live", RealmDestroy, &[f.rd], REALM);
    let fake = Fake::new();
    let rd = fake.realm();
    let rec = fake.rec(rd);
    assert_eq!(fake.status(RealmDestroy, &[rd]), REALM);
    fake.ok(RecDestroy, &[rec]);
    fake.rtts(rd, 0, 2);
    assert_eq!(fake.status(RealmDestroy, &[rd]), REALM);
    fake.ok(RttDestroy, &[rd, 0, 2]);
    fake.ok(RealmDestroy, &[rd]);
    assert_eq!(fake.is(rd), delegated());
}

#[test]
fn what_the_host_has_mapped_in_a_root_is_its_own_again_once_the_realm_is_destroyed() {
    let fake = Fake::with_ram(3 * GIB);
    let rd = fake.realm();
    let before = fake.fingerprint();
    fake.ok(RttMapUnprotected, &[rd, NS + GIB, 1, (2 * GIB) | (0b11 << 6)]);
    assert_eq!(fake.is(2 * GIB), HostPage::SharedWithRealm);
    assert_eq!(fake.rtte(rd, NS + GIB, 3).0, 1);
    assert_ne!(fake.fingerprint(), before);
    fake.ok(RealmDestroy, &[rd]);
    assert_eq!(fake.is(2 * GIB), HostPage::Owned);
}

#[test]
fn rtt_create_fails_by_each_of_its_conditions_and_in_their_order() {
    let f = Fixture::new();
    f.fails_without_realm(RttCreate, &[0, f.free, NO_RTT, 3]);
    // The order: whatever the walk would say.
    f.fails_without_realm(RttCreate, &[0, f.free, NO_RTTS, 3]);
    for level in [-2i64, -1, 0, 1, 4, i64::MAX, i64::MIN] {
        f.fails("level_bound", RttCreate, &[f.rd, f.free, NO_RTT, level as u64], INPUT);
    }
    f.fails("ipa_align", RttCreate, &[f.rd, f.free, NO_RTT + GRANULE, 3], INPUT);
    f.fails("ipa_align", RttCreate, &[f.rd, f.free, NO_RTTS + 2 * MIB, 2], INPUT);
    f.fails("ipa_bound", RttCreate, &[f.rd, f.free, 1 << 40, 3], INPUT);
    f.fails("ipa_bound", RttCreate, &[f.rd, f.free, 1 << 63, 3], INPUT);
    for (id, granule) in f.not_delegated() {
        f.fails(id, RttCreate, &[f.rd, granule, NO_RTT, 3], INPUT);
    }
    f.fails("rtt_walk", RttCreate, &[f.rd, f.free, NO_RTTS, 3], rtt(1));
    f.fails("rtte_state", RttCreate, &[f.rd, f.free, 0, 3], rtt(2));
    f.fails("rtte_state", RttCreate, &[f.rd, f.free, 0, 2], rtt(1));
    f.fake.ok(RttCreate, &[f.rd, f.free, NO_RTT, 3]);
}

#[test]
fn an_rtt_says_what_the_entry_said_before() {
    let f = Fixture::new();
    let block = f.rtte(BLOCK).1.addr;
    f.fake.ok(RttCreate, &[f.rd, f.free, BLOCK, 3]);
    for page in [0, 1, 17, 511] {
        let (level, rtte) = f.rtte(BLOCK + page * GRANULE);
        assert_eq!((level, rtte.ripas, rtte.addr), (3, RmmRipas::Ram, block + page * GRANULE));
        assert!(rtte.is(RmmHipas::Assigned));
    }
    let ns = f.rtte(NS_BLOCK).1;
    let table = f.fake.delegated();
    f.fake.ok(RttCreate, &[f.rd, table, NS_BLOCK, 3]);
    let (level, rtte) = f.rtte(NS_BLOCK + 511 * GRANULE);
    assert_eq!((level, rtte.addr, rtte.s2ap), (3, ns.addr + 511 * GRANULE, (true, true)));
    let answer = f.fake.ok(RttReadEntry, &[f.rd, NS_BLOCK, 2]);
    assert_eq!(answer[1..5], [2, 2, table, 0]);
}

#[test]
fn rtt_destroy_fails_by_each_of_its_conditions_and_in_their_order() {
    let f = Fixture::new();
    f.fails_without_realm(RttDestroy, &[0, NO_RTT, 3]);
    for level in [-1i64, 0, 1, 4, i64::MIN] {
        f.fails("level_bound", RttDestroy, &[f.rd, NO_RTT, level as u64], INPUT);
    }
    f.fails("ipa_align", RttDestroy, &[f.rd, GRANULE, 3], INPUT);
    f.fails("ipa_bound", RttDestroy, &[f.rd, 1 << 40, 3], INPUT);
    let top = |id, ipa, level, want, top| {
        assert_eq!(f.fails_with(id, RttDestroy, &[f.rd, ipa, level], want), [0, top, 0, 0]);
    };
    // The end of the root that the entry is of.
    top("rtt_walk", NO_RTTS, 3, rtt(1), 512 * GIB);
    top("rtt_walk", NS + GIB, 3, rtt(1), 1 << 40);
    top("rtte_state", NO_RTT, 3, rtt(2), GIB);
    top("rtte_state", BLOCK, 3, rtt(2), BLOCK);
    top("rtte_state", NS_BLOCK, 3, rtt(2), NS_BLOCK);
    top("rtte_state", NO_RTTS, 2, rtt(1), 512 * GIB);
    top("rtt_live", 0, 3, rtt(3), 0);
    top("rtt_live", 0, 2, rtt(2), 0);
}

#[test]
fn a_destroyed_rtt_leaves_destroyed_and_what_the_host_had_there_is_its_own() {
    let f = Fixture::new();
    for page in [ASSIGNED_RAM, ASSIGNED_EMPTY] {
        f.fake.ok(DataDestroy, &[f.rd, page]);
    }
    // The next live entry is the block.
    assert_eq!(f.fake.ok(RttDestroy, &[f.rd, 0, 3])[1..3], [f.rtt, BLOCK]);
    let (level, rtte) = f.rtte(0);
    assert!(level == 2 && rtte.is(RmmHipas::Unassigned) && rtte.ripas == RmmRipas::Destroyed);
    assert_eq!((f.fake.is(f.rtt), f.fake.bytes::<4096>(f.rtt)), (delegated(), [0; 4096]));
    let answer = f.fake.ok(RttDestroy, &[f.rd, NS, 3]);
    assert_eq!(answer[2], NS_BLOCK);
    assert_eq!(f.fake.is(f.shared), HostPage::Owned);
    let (level, rtte) = f.rtte(MAPPED);
    assert!(level == 2 && rtte.is(RmmHipas::UnassignedNs) && rtte.ripas == RmmRipas::Empty);
}

#[test]
fn rtt_fold_fails_by_each_of_its_conditions_and_in_their_order() {
    let f = Fixture::new();
    f.fails_without_realm(RttFold, &[0, 0, 3]);
    for level in [-1i64, 0, 1, 4, i64::MAX] {
        f.fails("level_bound", RttFold, &[f.rd, 0, level as u64], INPUT);
    }
    f.fails("ipa_align", RttFold, &[f.rd, GRANULE, 3], INPUT);
    f.fails("ipa_bound", RttFold, &[f.rd, 1 << 40, 3], INPUT);
    f.fails("rtt_walk", RttFold, &[f.rd, NO_RTTS, 3], rtt(1));
    f.fails("rtte_state", RttFold, &[f.rd, NO_RTT, 3], rtt(2));
    f.fails("rtte_state", RttFold, &[f.rd, BLOCK, 3], rtt(2));
    f.fails("rtt_homo", RttFold, &[f.rd, 0, 3], rtt(3));
    f.fails("rtt_homo", RttFold, &[f.rd, 0, 2], rtt(2));
    f.fails("rtt_homo", RttFold, &[f.rd, NS, 3], rtt(3));
}

#[test]
fn what_is_homogeneous_folds_at_every_level_and_unfolds_to_what_it_was() {
    let f = Fixture::new();
    let fake = &f.fake;
    let fold = |ipa: u64, level: u64, table: u64| {
        let before = fake.fingerprint();
        fake.ok(RttCreate, &[f.rd, table, ipa, level]);
        assert_eq!(fake.ok(RttFold, &[f.rd, ipa, level])[1], table);
        assert_eq!(fake.fingerprint(), before, "{ipa:#x}");
        assert_eq!((fake.is(table), fake.bytes::<4096>(table)), (delegated(), [0; 4096]));
    };
    // ASSIGNED, RAM; ASSIGNED_NS; UNASSIGNED; UNASSIGNED_NS.
    for (ipa, level) in [(BLOCK, 3), (NS_BLOCK, 3), (NO_RTT, 3), (NO_RTTS, 2), (NS + GIB, 2)] {
        fold(ipa, level, f.free);
    }
    // ASSIGNED, EMPTY: a block that does not translate.
    f.ask(BLOCK, BLOCK + 2 * MIB, RmmRipas::Empty, false);
    fake.ok(RttSetRipas, &[f.rd, f.rec, BLOCK, BLOCK + 2 * MIB]);
    fold(BLOCK, 3, f.free);
    let (level, rtte) = f.rtte(BLOCK);
    assert!(level == 2 && rtte.is(RmmHipas::Assigned) && rtte.ripas == RmmRipas::Empty);
}

#[test]
fn a_gigabyte_of_blocks_folds_into_one() {
    let fake = Fake::with_ram(3 * GIB);
    let rd = fake.realm();
    fake.rtts(rd, NS, 2);
    for block in 0..512 {
        let at = block * 2 * MIB;
        assert_eq!(fake.status(RttFold, &[rd, NS, 2]), if block == 0 { RmiStatus::Success } else { rtt(2) });
        fake.rtts(rd, NS, 2);
        fake.ok(RttMapUnprotected, &[rd, NS + at, 2, (2 * GIB + at) | 0b01 << 6]);
    }
    fake.ok(RttFold, &[rd, NS, 2]);
    let (level, rtte) = fake.rtte(rd, NS, 3);
    assert_eq!((level, rtte.addr, rtte.s2ap), (1, 2 * GIB, (true, false)));
    fake.ok(RttUnmapUnprotected, &[rd, NS, 1]);
    assert_eq!(fake.is(3 * GIB - GRANULE), HostPage::Owned);
}

#[test]
fn outputs_that_are_not_aligned_do_not_fold() {
    let f = Fixture::new();
    let fake = &f.fake;
    let table = fake.delegated();
    fake.ok(RttCreate, &[f.rd, table, NO_RTT, 3]);
    let base = fake.granules(513, 2 * MIB) + GRANULE;
    for page in 0..512 {
        fake.ok(GranuleDelegate, &[base + page * GRANULE]);
        fake.ok(DataCreateUnknown, &[f.rd, base + page * GRANULE, NO_RTT + page * GRANULE]);
    }
    f.fails("rtt_homo", RttFold, &[f.rd, NO_RTT, 3], rtt(3));
}

#[test]
fn rtt_read_entry_fails_by_each_of_its_conditions() {
    let f = Fixture::new();
    f.fails_without_realm(RttReadEntry, &[0, 0, 3]);
    for level in [-1i64, 0, 4, i64::MIN] {
        f.fails("level_bound", RttReadEntry, &[f.rd, 0, level as u64], INPUT);
    }
    f.fails("ipa_align", RttReadEntry, &[f.rd, 1, 3], INPUT);
    f.fails("ipa_align", RttReadEntry, &[f.rd, GRANULE, 2], INPUT);
    f.fails("ipa_bound", RttReadEntry, &[f.rd, 1 << 40, 3], INPUT);
}

#[test]
fn rtt_read_entry_tells_level_state_address_and_ripas() {
    let f = Fixture::new();
    let read = |ipa, level| {
        let answer = f.fake.ok(RttReadEntry, &[f.rd, ipa, level]);
        [answer[1], answer[2], answer[3], answer[4]]
    };
    let (unassigned, assigned, table) = (0, 1, 2);
    let (empty, ram, destroyed) = (0, 1, 2);
    assert_eq!(read(ASSIGNED_RAM, 3), [3, assigned, f.data, ram]);
    assert_eq!(read(ASSIGNED_EMPTY, 3), [3, assigned, f.rtte(ASSIGNED_EMPTY).1.addr, empty]);
    assert_eq!(read(UNASSIGNED_RAM, 3), [3, unassigned, 0, ram]);
    assert_eq!(read(UNASSIGNED_EMPTY, 3), [3, unassigned, 0, empty]);
    assert_eq!(read(UNASSIGNED_DESTROYED, 3), [3, unassigned, 0, destroyed]);
    assert_eq!(read(0, 2), [2, table, f.rtt, 0]);
    let block = f.rtte(BLOCK).1.addr;
    assert_eq!(read(BLOCK, 2), [2, assigned, block, ram]);
    // The walk ends above, at the block.
    assert_eq!(read(BLOCK + GRANULE, 3), [2, assigned, block, ram]);
    assert_eq!(read(NO_RTTS + GRANULE, 3), [1, unassigned, 0, empty]);
    // The type of memory is stage 1's to say, whatever the host has asked for.
    assert_eq!(read(MAPPED, 3), [3, assigned, f.shared | 0b11 << 6 | 0b111 << 2, empty]);
    assert_eq!(read(NS, 3), [3, unassigned, 0, empty]);
}

#[test]
fn rtt_map_unprotected_fails_by_each_of_its_conditions_and_in_their_order() {
    let f = Fixture::new();
    let (page, desc) = (NS + 0x5000, f.host | 0b11 << 6);
    f.fails_without_realm(RttMapUnprotected, &[0, page, 3, desc]);
    f.fails_without_realm(RttMapUnprotected, &[0, NO_RTTS + NS, 3, desc]);
    for wrong in [1, 0b11, 1 << 5, 1 << 8, 1 << 10, 1 << 51, 1 << 54, 1 << 63, 0b100 << 2] {
        f.fails("attr_valid", RttMapUnprotected, &[f.rd, page, 3, desc | wrong], INPUT);
    }
    for level in [-1i64, 0, 4, i64::MIN] {
        f.fails("level_bound", RttMapUnprotected, &[f.rd, NS, level as u64, desc], INPUT);
    }
    f.fails("addr_align", RttMapUnprotected, &[f.rd, NS + 4 * MIB, 2, desc | GRANULE], INPUT);
    f.fails("addr_bound", RttMapUnprotected, &[f.rd, page, 3, 1 << 48], INPUT);
    f.fails("ipa_align", RttMapUnprotected, &[f.rd, page + 8, 3, desc], INPUT);
    f.fails("ipa_bound", RttMapUnprotected, &[f.rd, UNASSIGNED_EMPTY, 3, desc], INPUT);
    f.fails("ipa_bound", RttMapUnprotected, &[f.rd, 1 << 40, 3, desc], INPUT);
    f.fails("rtt_walk", RttMapUnprotected, &[f.rd, NS + GIB, 3, desc], rtt(1));
    f.fails("rtte_state", RttMapUnprotected, &[f.rd, MAPPED, 3, desc], rtt(3));
    f.fails("rtte_state", RttMapUnprotected, &[f.rd, NS, 2, f.host & !(2 * MIB - 1)], rtt(2));
    // What the host has not, or has given a realm already.
    for granule in [f.free, f.rd, f.rec, f.rtt, f.data, f.shared, RAM, (1 << 48) - GRANULE] {
        f.fails("no condition", RttMapUnprotected, &[f.rd, page, 3, granule], INPUT);
    }
    // Where devices end there is RAM of others.
    f.fails("no condition", RttMapUnprotected, &[f.rd, NS + 2 * GIB, 1, RAM], INPUT);
    f.fake.ok(RttMapUnprotected, &[f.rd, page, 3, desc]);
    assert_eq!(f.fake.is(f.host), HostPage::SharedWithRealm);
    f.fails("gran_gpt", GranuleDelegate, &[f.host], INPUT);
}

#[test]
fn a_device_of_the_hosts_is_mapped_and_unmapped_and_stays_the_hosts() {
    let f = Fixture::new();
    let before = f.fake.fingerprint();
    for (ipa, level, size) in [(NS + 0x5000, 3, GRANULE), (NS + 4 * MIB, 2, 2 * MIB)] {
        let desc = DEVICE | 0b11 << 6;
        f.fake.ok(RttMapUnprotected, &[f.rd, ipa, level, desc]);
        let (at, rtte) = f.fake.rtte(f.rd, ipa, level as i64);
        assert_eq!((at as u64, rtte.addr, rtte.is(RmmHipas::AssignedNs)), (level, DEVICE, true));
        assert_eq!(f.fake.is(DEVICE + size - GRANULE), HostPage::Fixed);
        // Nothing is said of it but here: another IPA may have it too.
        f.fake.ok(RttMapUnprotected, &[f.rd, ipa + size, level, desc]);
        for ipa in [ipa, ipa + size] {
            f.fake.ok(RttUnmapUnprotected, &[f.rd, ipa, level]);
        }
    }
    assert_eq!(f.fake.fingerprint(), before);
}

#[test]
fn rtt_unmap_unprotected_fails_by_each_of_its_conditions_and_in_their_order() {
    let f = Fixture::new();
    f.fails_without_realm(RttUnmapUnprotected, &[0, MAPPED, 3]);
    f.fails_without_realm(RttUnmapUnprotected, &[0, NS + GIB, 3]);
    for level in [-1i64, 0, 4] {
        f.fails("level_bound", RttUnmapUnprotected, &[f.rd, NS, level as u64], INPUT);
    }
    f.fails("ipa_align", RttUnmapUnprotected, &[f.rd, MAPPED, 2], INPUT);
    f.fails("ipa_bound", RttUnmapUnprotected, &[f.rd, ASSIGNED_RAM, 3], INPUT);
    f.fails("ipa_bound", RttUnmapUnprotected, &[f.rd, 1 << 40, 3], INPUT);
    let top = |id, ipa, level, want, top| {
        assert_eq!(f.fails_with(id, RttUnmapUnprotected, &[f.rd, ipa, level], want), [top, 0, 0, 0]);
    };
    top("rtt_walk", NS + GIB, 3, rtt(1), 1 << 40);
    top("rtt_walk", NS_BLOCK, 3, rtt(2), NS_BLOCK);
    top("rtte_state", NS, 3, rtt(3), MAPPED);
    top("rtte_state", MAPPED + GRANULE, 3, rtt(3), NS + 2 * MIB);
    top("rtte_state", NS, 2, rtt(2), NS);
    assert_eq!(f.fake.ok(RttUnmapUnprotected, &[f.rd, MAPPED, 3])[1], NS + 2 * MIB);
    assert_eq!(f.fake.is(f.shared), HostPage::Owned);
    assert!(f.rtte(MAPPED).1.is(RmmHipas::UnassignedNs));
    assert_eq!(f.fake.ok(RttUnmapUnprotected, &[f.rd, NS_BLOCK, 2])[1], NS + GIB);
}

#[test]
fn data_create_fails_by_each_of_its_conditions_and_in_their_order() {
    let f = Fixture::new();
    let src = f.host;
    let at = |rd, data, ipa, src| [rd, data, ipa, src, 1];
    for (id, wrong) in [
        ("src_align", src + 1),
        ("src_bound", DEVICE),
        ("src_bound", BEYOND),
        ("src_bound", RAM),
        ("src_pas", f.free),
        ("src_pas", f.rd),
        ("src_pas", f.data),
    ] {
        f.fails(id, DataCreate, &at(f.rd, f.free, UNASSIGNED_RAM, wrong), INPUT);
    }
    for (id, data) in f.not_delegated() {
        f.fails(id, DataCreate, &at(f.rd, data, UNASSIGNED_RAM, src), INPUT);
    }
    f.fails_without_realm(DataCreate, &at(0, f.free, UNASSIGNED_RAM, src));
    f.fails("ipa_align", DataCreate, &at(f.rd, f.free, UNASSIGNED_RAM + 1, src), INPUT);
    f.fails("ipa_bound", DataCreate, &at(f.rd, f.free, MAPPED, src), INPUT);
    f.fails("ipa_bound", DataCreate, &at(f.rd, f.free, 1 << 40, src), INPUT);
    f.fails("rtt_walk", DataCreate, &at(f.rd, f.free, NO_RTT, src), rtt(2));
    f.fails("rtt_walk", DataCreate, &at(f.rd, f.free, NO_RTTS, src), rtt(1));
    f.fails("rtte_state", DataCreate, &at(f.rd, f.free, ASSIGNED_RAM, src), rtt(3));
    f.fails("rtte_state", DataCreate, &at(f.rd, f.free, ASSIGNED_EMPTY, src), rtt(3));
    f.fake.ok(RealmActivate, &[f.rd]);
    f.fails("realm_state", DataCreate, &at(f.rd, f.free, UNASSIGNED_RAM, src), REALM);
    // Without the realm its state is not looked at.
    f.fails_without_realm(DataCreate, &at(0, f.free, UNASSIGNED_RAM, src));
}

#[test]
fn data_create_gives_the_realm_a_copy_whatever_its_ripas_was() {
    let f = Fixture::new();
    for (page, byte) in [(UNASSIGNED_RAM, 1), (UNASSIGNED_EMPTY, 2), (UNASSIGNED_DESTROYED, 3)] {
        let (data, rim) = (f.fake.delegated(), f.rim());
        f.fake.store(f.host, &[byte; 4096]);
        f.fake.ok(DataCreate, &[f.rd, data, page, f.host, 0]);
        let rtte = f.rtte(page).1;
        assert!(rtte.is(RmmHipas::Assigned));
        assert_eq!((rtte.ripas, rtte.addr), (RmmRipas::Ram, data));
        assert_eq!(f.fake.bytes::<4096>(data), [byte; 4096]);
        assert!(matches!(f.fake.is(data), HostPage::Kept(Keeper::Realm(_, Purpose::Data))));
        assert_ne!(f.rim(), rim);
    }
}

#[test]
fn data_create_unknown_fails_by_each_of_its_conditions_and_in_their_order() {
    let f = Fixture::new();
    for (id, data) in f.not_delegated() {
        f.fails(id, DataCreateUnknown, &[f.rd, data, UNASSIGNED_RAM], INPUT);
    }
    f.fails_without_realm(DataCreateUnknown, &[0, f.free, UNASSIGNED_RAM]);
    f.fails_without_realm(DataCreateUnknown, &[0, f.free, NO_RTT]);
    f.fails("ipa_align", DataCreateUnknown, &[f.rd, f.free, UNASSIGNED_RAM + 1], INPUT);
    f.fails("ipa_bound", DataCreateUnknown, &[f.rd, f.free, MAPPED], INPUT);
    f.fails("rtt_walk", DataCreateUnknown, &[f.rd, f.free, NO_RTT], rtt(2));
    f.fails("rtte_state", DataCreateUnknown, &[f.rd, f.free, ASSIGNED_RAM], rtt(3));
}

#[test]
fn data_of_unknown_contents_comes_wiped_keeps_the_ripas_and_goes_wiped() {
    let f = Fixture::new();
    for (page, ripas, after) in [
        (UNASSIGNED_RAM, RmmRipas::Ram, RmmRipas::Destroyed),
        (UNASSIGNED_EMPTY, RmmRipas::Empty, RmmRipas::Empty),
        (UNASSIGNED_DESTROYED, RmmRipas::Destroyed, RmmRipas::Destroyed),
    ] {
        let (data, rim) = (f.fake.granule(), f.rim());
        f.fake.store(data, &[0x77; 4096]);
        f.fake.ok(GranuleDelegate, &[data]);
        f.fake.ok(DataCreateUnknown, &[f.rd, data, page]);
        let rtte = f.rtte(page).1;
        assert!(rtte.is(RmmHipas::Assigned));
        assert_eq!((rtte.ripas, rtte.addr), (ripas, data));
        assert_eq!((f.fake.bytes::<4096>(data), f.rim()), ([0; 4096], rim));
        f.fake.store(data, &[0x88; 4096]);
        assert_eq!(f.fake.ok(DataDestroy, &[f.rd, page])[1], data);
        let rtte = f.rtte(page).1;
        assert!(rtte.is(RmmHipas::Unassigned) && rtte.ripas == after);
        assert_eq!((f.fake.is(data), f.fake.bytes::<4096>(data)), (delegated(), [0; 4096]));
    }
}

#[test]
fn data_destroy_fails_by_each_of_its_conditions_and_in_their_order() {
    let f = Fixture::new();
    f.fails_without_realm(DataDestroy, &[0, ASSIGNED_RAM]);
    f.fails_without_realm(DataDestroy, &[0, NO_RTT]);
    f.fails("ipa_align", DataDestroy, &[f.rd, ASSIGNED_RAM + 1], INPUT);
    f.fails("ipa_bound", DataDestroy, &[f.rd, MAPPED], INPUT);
    f.fails("ipa_bound", DataDestroy, &[f.rd, 1 << 40], INPUT);
    let top = |id, ipa, want, top| {
        assert_eq!(f.fails_with(id, DataDestroy, &[f.rd, ipa], want), [0, top, 0, 0]);
    };
    top("rtt_walk", NO_RTT, rtt(2), GIB);
    top("rtt_walk", NO_RTTS, rtt(1), 512 * GIB);
    top("rtt_walk", BLOCK, rtt(2), BLOCK);
    top("rtt_walk", BLOCK + GRANULE, rtt(2), BLOCK);
    top("rtte_state", 0, rtt(3), ASSIGNED_RAM);
    top("rtte_state", UNASSIGNED_RAM, rtt(3), 2 * MIB);
    assert_eq!(f.fake.ok(DataDestroy, &[f.rd, ASSIGNED_RAM])[1..3], [f.data, ASSIGNED_EMPTY]);
}

#[test]
fn rtt_init_ripas_fails_by_each_of_its_conditions_and_in_their_order() {
    let f = Fixture::new();
    let (base, top) = (UNASSIGNED_EMPTY, UNASSIGNED_EMPTY + GRANULE);
    f.fails_without_realm(RttInitRipas, &[0, base, top]);
    f.fails_without_realm(RttInitRipas, &[0, ASSIGNED_RAM, ASSIGNED_EMPTY]);
    f.fails("size_valid", RttInitRipas, &[f.rd, base, base], INPUT);
    f.fails("size_valid", RttInitRipas, &[f.rd, base, 0], INPUT);
    f.fails("top_bound", RttInitRipas, &[f.rd, base, NS + GRANULE], INPUT);
    f.fails("top_bound", RttInitRipas, &[f.rd, NS, NS + GRANULE], INPUT);
    f.fails("top_bound", RttInitRipas, &[f.rd, 0, !0xfff], INPUT);
    f.fails("top_gran_align", RttInitRipas, &[f.rd, base, top + 1], INPUT);
    f.fails("top_gran_align < no_progress", RttInitRipas, &[f.rd, NO_RTT, NO_RTT + 0x801], INPUT);
    f.fails("base_align", RttInitRipas, &[f.rd, base + 1, top], rtt(3));
    f.fails("base_align", RttInitRipas, &[f.rd, NO_RTT + GRANULE, GIB], rtt(2));
    f.fails("rtte_state", RttInitRipas, &[f.rd, ASSIGNED_RAM, ASSIGNED_RAM + GRANULE], rtt(3));
    f.fails("rtte_state", RttInitRipas, &[f.rd, BLOCK, BLOCK + 2 * MIB], rtt(2));
    f.fails("no_progress", RttInitRipas, &[f.rd, NO_RTT, NO_RTT + GRANULE], rtt(2));
    f.fails("no_progress", RttInitRipas, &[f.rd, NO_RTTS, NO_RTTS + 2 * MIB], rtt(1));
    f.fake.ok(RealmActivate, &[f.rd]);
    f.fails("realm_state", RttInitRipas, &[f.rd, base, top], REALM);
    f.fails_without_realm(RttInitRipas, &[0, base, top]);
}

#[test]
fn rtt_init_ripas_goes_as_far_as_whole_entries_of_one_rtt() {
    let f = Fixture::new();
    let top = |base, top| f.fake.ok(RttInitRipas, &[f.rd, base, top])[1];
    assert_eq!(top(UNASSIGNED_EMPTY, 4 * MIB), 2 * MIB);
    assert_eq!(f.rtte(2 * MIB - GRANULE).1.ripas, RmmRipas::Ram);
    assert_eq!(top(NO_RTT, NO_RTT + 4 * MIB + GRANULE), NO_RTT + 4 * MIB);
    assert_eq!((f.rtte(NO_RTT).1.ripas, f.rtte(NO_RTT + 4 * MIB).1.ripas), (RmmRipas::Ram, RmmRipas::Empty));
    assert_eq!(top(2 * MIB, GIB), GIB);
    assert_eq!(top(NO_RTTS, 4 * GIB), 4 * GIB);
    assert_eq!((f.rtte(NO_RTTS).0, f.rtte(4 * GIB).1.ripas), (1, RmmRipas::Empty));
}

#[test]
fn rtt_set_ripas_fails_by_each_of_its_conditions_and_in_their_order() {
    let f = Fixture::new();
    let fake = &f.fake;
    let other = fake.realm();
    let theirs = fake.rec(other);
    f.ask(0, GIB, RmmRipas::Ram, true);
    f.fails_without_realm(RttSetRipas, &[0, f.rec, 0, GRANULE]);
    for (id, rec) in [
        ("rec_align", f.rec + 8),
        ("rec_bound", DEVICE),
        ("rec_bound", BEYOND),
        ("rec_gran_state", f.host),
        ("rec_gran_state", f.free),
        ("rec_gran_state", f.rd),
        ("rec_gran_state", f.data),
    ] {
        f.fails(id, RttSetRipas, &[f.rd, rec, 0, GRANULE], INPUT);
    }
    f.fails("rec_owner", RttSetRipas, &[f.rd, theirs, 0, GRANULE], REC);
    f.fails("rec_owner", RttSetRipas, &[other, f.rec, 0, GRANULE], REC);
    f.fails("size_valid", RttSetRipas, &[f.rd, f.rec, 0, 0], INPUT);
    f.fails("base_bound", RttSetRipas, &[f.rd, f.rec, GRANULE, 2 * GRANULE], INPUT);
    f.fails("base_bound < base_align", RttSetRipas, &[f.rd, f.rec, NO_RTT + GRANULE, GIB], INPUT);
    f.fails("top_bound", RttSetRipas, &[f.rd, f.rec, 0, GIB + GRANULE], INPUT);
    f.fails("top_gran_align", RttSetRipas, &[f.rd, f.rec, 0, 0x801], INPUT);
    {
        let lock = fake.monitor.lock();
        lock.rec(f.rec).unwrap().state.set(RecState::Running);
    }
    f.fails("rec_state", RttSetRipas, &[f.rd, f.rec, 0, GRANULE], REC);
    fake.monitor.lock().rec(f.rec).unwrap().state.set(RecState::Ready);

    f.ask(NO_RTT + GRANULE, GIB, RmmRipas::Ram, true);
    f.fails("base_align", RttSetRipas, &[f.rd, f.rec, NO_RTT + GRANULE, GIB], rtt(2));
    f.ask(NO_RTT, NO_RTT + GRANULE, RmmRipas::Ram, true);
    f.fails("no_progress", RttSetRipas, &[f.rd, f.rec, NO_RTT, NO_RTT + GRANULE], rtt(2));
    f.fails("top_gran_align < no_progress", RttSetRipas, &[f.rd, f.rec, NO_RTT, NO_RTT + 1], INPUT);
    f.ask(UNASSIGNED_DESTROYED, 2 * MIB, RmmRipas::Ram, false);
    f.fails("no_progress", RttSetRipas, &[f.rd, f.rec, UNASSIGNED_DESTROYED, 2 * MIB], rtt(3));
    f.ask(BLOCK, BLOCK + GRANULE, RmmRipas::Empty, true);
    f.fails("no_progress", RttSetRipas, &[f.rd, f.rec, BLOCK, BLOCK + GRANULE], rtt(2));
}

#[test]
fn rtt_set_ripas_changes_every_entry_of_one_rtt_and_leaves_what_the_host_has_put_there() {
    let f = Fixture::new();
    let set = |base: u64, top: u64, value, destroyed| {
        f.ask(base, top, value, destroyed);
        let out = f.fake.ok(RttSetRipas, &[f.rd, f.rec, base, top])[1];
        let left = f.fake.monitor.lock().rec(f.rec).unwrap().ripas.get();
        assert_eq!((left.addr, left.top), (out, top));
        out
    };
    let addrs = [ASSIGNED_RAM, ASSIGNED_EMPTY].map(|page| f.rtte(page).1.addr);
    f.fake.shared.tlbis.lock().unwrap().clear();
    // Up to what is destroyed; then with it.
    assert_eq!(set(0, 4 * MIB, RmmRipas::Ram, false), UNASSIGNED_DESTROYED);
    assert_eq!(set(0, 4 * MIB, RmmRipas::Ram, true), 2 * MIB);
    for page in 0..512 {
        assert_eq!(f.rtte(page * GRANULE).1.ripas, RmmRipas::Ram);
    }
    // What translates anew owes nothing.
    assert_eq!(f.fake.shared.tlbis.lock().unwrap().len(), 0);
    assert_eq!(set(0, 2 * MIB, RmmRipas::Empty, false), 2 * MIB);
    for page in 0..512 {
        assert_eq!(f.rtte(page * GRANULE).1.ripas, RmmRipas::Empty);
    }
    assert_eq!([ASSIGNED_RAM, ASSIGNED_EMPTY].map(|page| f.rtte(page).1.addr), addrs);
    // One flush for all of it, of both stages, under the realm's VMID.
    let tlbis = std::mem::take(&mut *f.fake.shared.tlbis.lock().unwrap());
    assert_eq!(tlbis.len(), 2, "{tlbis:?}");
    assert!(tlbis.iter().all(|(vmid, _)| *vmid == 1));
    // A block at once, and empty entries up to the end of their RTT.
    assert_eq!(set(BLOCK, GIB, RmmRipas::Empty, false), GIB);
    assert_eq!((f.rtte(BLOCK).0, f.rtte(BLOCK).1.ripas), (2, RmmRipas::Empty));
    assert_eq!(set(2 * MIB, GIB, RmmRipas::Ram, false), GIB);
    assert_eq!((f.rtte(BLOCK).0, f.rtte(BLOCK).1.ripas), (2, RmmRipas::Ram));
    assert_eq!(set(NO_RTT, NO_RTT + 2 * MIB + GRANULE, RmmRipas::Empty, false), NO_RTT + 2 * MIB);
}

#[test]
fn an_entry_that_is_as_asked_for_need_not_be_unfolded() {
    let f = Fixture::new();
    let (base, top) = (BLOCK + GRANULE, BLOCK + 3 * GRANULE);
    f.ask(base, top, RmmRipas::Ram, false);
    let before = f.fake.fingerprint();
    assert_eq!(f.fake.ok(RttSetRipas, &[f.rd, f.rec, base, top])[1], top);
    assert_eq!(f.fake.fingerprint(), before);
}

#[test]
fn a_realms_map_never_claims_more_than_all_cpus_can_do() {
    let f = Fixture::new();
    let weaker = CAPABILITIES - Capabilities::BBM;
    f.fake.cpus().capabilities.store(weaker.bits(), SeqCst);
    f.fake.ok(RttReadEntry, &[f.rd, 0, 3]);
    let lock = f.fake.monitor.lock();
    let capabilities = lock.realm(f.rd).unwrap().map.capabilities();
    assert_eq!(capabilities, weaker - Capabilities::CONTIGUOUS);
}

#[test]
fn a_realms_data_is_visited_and_leaves_the_el2_map_again() {
    use crate::world::World;
    let f = Fixture::new();
    let number = f.fake.monitor.lock().realm(f.rd).unwrap().number;
    let before = f.fake.fingerprint();
    let visit = |number, page: u64| {
        f.fake.monitor.world.visit(number, Pa::new(page).unwrap(), |page| page.0[7] = 0x42)
    };
    assert_eq!(visit(number, f.data), Some(()));
    assert_eq!(f.fake.bytes::<8>(f.data), [0, 0, 0, 0, 0, 0, 0, 0x42]);
    for page in [f.host, f.rd, f.free, DEVICE] {
        assert_eq!(visit(number, page), None);
    }
    assert_eq!(visit(number + 1, f.data), None);
    assert_eq!(f.fake.fingerprint(), before);
}
