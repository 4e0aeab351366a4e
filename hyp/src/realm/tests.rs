//! What the realm's side promises, against a fake monitor and a fake MMU.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};

use rmm_abi::Version;
use rmm_abi::v1_0::rsi::{RsiHostCall, RsiRipas, RsiRipasChangeFlags, RsiStatus};
use rmm_abi::v1_0::{Granule, VERSION};

use super::fake::{Fake, FakeRmm, Host};
use super::*;
use crate::mapping::fake::FakeMmu;
use crate::mapping::{
    Address, Attributes, Capabilities, Census, El1And0, Entry, GRANULE, Leaves, MapError, Options, Pa, Range,
    TablePool, Va,
};
use crate::stage1::{LinearMap, SetMemoryError, add, add_ram, linear_map};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const RAM: u64 = 0x8000_0000;
/// What the realm runs on: its first block, in pages.
const IMAGE: u64 = 2 * MIB;
const SHARED: u64 = 1 << 39;
const DATA: Attributes<El1And0> = Attributes::<El1And0>::DATA;

type Linear<'a> = LinearMap<El1And0, &'a FakeMmu>;
type Shared<'a> = SharedMemory<'a, &'a FakeMmu, Fake>;

fn range(start: u64, size: u64) -> Range<Pa> {
    Range::new(start, size).unwrap()
}

/// 1 GiB of RAM on CPUs with this level of FEAT_BBM.
fn linear(mmu: &FakeMmu, level: u8) -> Linear<'_> {
    let options = Options::new(Capabilities::LEAST | Capabilities::bbm(level));
    let mut map = linear_map(mmu, options).unwrap();
    let image = range(RAM, IMAGE);
    let mut writer = map.get_mut();
    add(&mut writer, image, DATA, Leaves::PAGES).unwrap();
    add_ram(&mut writer, &[range(RAM, GIB)], &[image], DATA, Leaves::LARGEST).unwrap();
    drop(writer);
    LinearMap::new(map, Box::leak(Box::new([image])))
}

fn monitor() -> Arc<FakeRmm> {
    let rmm = Arc::new(FakeRmm::new(RAM, GIB / GRANULE));
    rmm.enter();
    rmm
}

fn config() -> Config {
    Config::new(40, RsiHashAlgorithm::Sha256, [0; 64]).unwrap()
}

fn shared<'a>(linear: &'a Linear<'a>) -> Shared<'a> {
    SharedMemory::new(linear, Rsi::find(0).unwrap(), &config(), Leaves::LARGEST)
}

/// Where an address goes, and whether it does; nothing if it has no leaf.
fn at(linear: &Linear<'_>, address: u64) -> Option<(u64, bool)> {
    let mut cpu = linear.map().cpu(7).unwrap();
    let found = cpu.read().find(Va::new(address).unwrap()).unwrap();
    match found.entry {
        Entry::Leaf { output, valid, attributes, .. } => {
            assert_eq!(attributes, DATA, "{address:#x}");
            Some((output.get() + (address - found.start), valid))
        }
        _ => None,
    }
}

fn census(linear: &Linear<'_>) -> Census {
    linear.map().cpu(7).unwrap().read().census()
}

fn stores(mmu: &FakeMmu) -> usize {
    mmu.memory.stores.swap(0, Relaxed) + mmu.memory.exchanges.swap(0, Relaxed)
}

fn unfinished(result: Result<(), SharingError>) -> Unfinished {
    match result {
        Err(SharingError::Unfinished(unfinished)) => unfinished,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_realm_is_found_by_the_version_that_its_monitor_speaks() {
    let found = |version| {
        let rmm = Arc::new(FakeRmm { version, ..FakeRmm::new(RAM, 1) });
        rmm.enter();
        Rsi::<Fake>::find(0).map(drop)
    };
    assert_eq!(found(Some(VERSION)), Ok(()));
    assert_eq!(found(None), Err(NoRealm::NoInterface));
    let other = Version { major: 2, minor: 3 };
    assert_eq!(found(Some(other)), Err(NoRealm::Version { lower: other, higher: other }));
}

#[test]
fn structures_are_passed_where_they_lie_at_the_callers_distance() {
    let rmm = Arc::new(FakeRmm { ipa_width: 33, hash_algo: 1, ..FakeRmm::new(RAM, 1) });
    rmm.enter();
    let rsi = Rsi::<Fake>::find(0).unwrap();
    let mut buffer = Box::new(Granule(RsiRealmConfig::zeroed()));
    let config = rsi.config(&mut buffer).unwrap();
    assert_eq!((config.ipa_width(), config.shared_bit(), config.hash), (33, 32, RsiHashAlgorithm::Sha512));
    assert_eq!(config.rpv, [7; 64]);
    let mut call = RsiHostCall::zeroed();
    call.imm = 5;
    call.gprs[30] = 30;
    rsi.host_call(&mut call).unwrap();
    assert_eq!((call.imm, call.gprs[0], call.gprs[30]), (5, !0, !30));
    // A monitor that reads one page further finds no place where a structure may begin.
    let elsewhere = Rsi::<Fake>::find(1).unwrap();
    let wrong = Err(RsiError::Status(RsiStatus::ErrorInput));
    assert_eq!(elsewhere.config(&mut buffer).map(drop), wrong);
    assert_eq!(elsewhere.host_call(&mut call), wrong);
}

#[test]
fn a_width_that_cannot_be_mapped_and_a_hash_that_is_none_are_told() {
    let config = |ipa_width, hash_algo| {
        let rmm = Arc::new(FakeRmm { ipa_width, hash_algo, ..FakeRmm::new(RAM, 1) });
        rmm.enter();
        Rsi::<Fake>::find(0).unwrap().config(&mut Box::new(Granule(RsiRealmConfig::zeroed()))).map(drop)
    };
    assert_eq!(config(32, 0), Ok(()));
    assert_eq!(config(48, 1), Ok(()));
    for width in [0, 31, 49, 1 << 32] {
        assert_eq!(config(width, 0), Err(RsiError::Unknown(width)));
    }
    assert_eq!(config(40, 2), Err(RsiError::Unknown(2)));
}

#[test]
fn measurements_are_extended_by_the_bytes_that_were_given() {
    monitor();
    let rsi = Rsi::<Fake>::find(0).unwrap();
    assert_eq!(rsi.measurement(1), Ok([0; 64]));
    rsi.extend_measurement(1, &[1, 2, 3]).unwrap();
    let extended = rsi.measurement(1).unwrap();
    assert_eq!(extended[..4], [1, 2, 3, 0]);
    assert_eq!(rsi.measurement(2), Ok([0; 64]));
    let wrong = Err(RsiError::Status(RsiStatus::ErrorInput));
    assert_eq!(rsi.extend_measurement(0, &[1]), wrong);
    assert_eq!(rsi.extend_measurement(5, &[1]), wrong);
    assert_eq!(rsi.extend_measurement(1, &[0; 65]), wrong);
    assert_eq!(rsi.measurement(5).map(drop), wrong);
    assert_eq!(rsi.measurement(1), Ok(extended));
    assert_eq!(rsi.features(0), Ok(0));
}

#[test]
fn a_token_comes_in_as_many_parts_as_it_takes() {
    monitor();
    let rsi = Rsi::<Fake>::find(0).unwrap();
    let mut challenge = [0; 64];
    challenge[..2].copy_from_slice(&[0x88, 0x13]);
    assert_eq!(rsi.begin_token(&challenge), Ok(5000));
    let mut buffer = Box::new(Granule([0; 4096]));
    assert_eq!(rsi.continue_token(&mut buffer, 96), Ok(Token { len: 4000, is_complete: false }));
    assert_eq!(rsi.continue_token(&mut buffer, 0), Ok(Token { len: 1000, is_complete: true }));
    assert_eq!(rsi.continue_token(&mut buffer, 4096), Err(RsiError::Status(RsiStatus::ErrorInput)));
}

#[test]
fn a_range_translates_to_its_alias_and_back_and_the_map_is_what_it_was() {
    for level in 0..=3 {
        let (mmu, rmm) = (FakeMmu::new(32), monitor());
        let linear = linear(&mmu, level);
        let shared = shared(&linear);
        let before = census(&linear);
        let free = mmu.pool().free();
        for (start, size) in [
            (RAM + 512 * MIB, 2 * MIB),
            (RAM + 512 * MIB, GRANULE),
            (RAM + 515 * MIB - GRANULE, 5 * MIB + 3 * GRANULE),
            (RAM + IMAGE, GIB - IMAGE),
            (RAM + GIB - GRANULE, GRANULE),
        ] {
            let pages = [start, start + size / 2 / GRANULE * GRANULE, start + size - GRANULE];
            shared.set_memory_decrypted(range(start, size)).unwrap();
            for page in pages {
                assert_eq!(at(&linear, page), Some((SHARED | page, true)));
                assert_eq!(rmm.ripas(page), RsiRipas::Empty);
            }
            for neighbour in [start - GRANULE, start + size] {
                if neighbour < RAM + GIB {
                    assert_eq!(at(&linear, neighbour), Some((neighbour, true)));
                    assert_eq!(rmm.ripas(neighbour), RsiRipas::Ram);
                }
            }
            shared.set_memory_encrypted(range(start, size)).unwrap();
            for page in pages {
                assert_eq!(at(&linear, page), Some((page, true)));
                assert_eq!(rmm.ripas(page), RsiRipas::Ram);
            }
            assert_eq!((census(&linear), mmu.pool().free()), (before, free), "level {level}");
        }
    }
}

#[test]
fn nothing_of_a_range_translates_while_the_monitor_changes_it() {
    let mmu: &'static FakeMmu = Box::leak(Box::new(FakeMmu::new(32)));
    let linear: &'static Linear<'static> = Box::leak(Box::new(linear(mmu, 3)));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let here = seen.clone();
    let observer = move |base: u64, top: u64, ripas| {
        for page in (base..top).step_by(GRANULE as usize) {
            assert!(!at(linear, page).unwrap().1, "{page:#x}");
        }
        // And no TLB has it any more.
        assert!(!mmu.tlbis.lock().unwrap().is_empty());
        here.lock().unwrap().push((base, top, ripas));
    };
    let rmm = Arc::new(FakeRmm { observer: Some(Box::new(observer)), ..FakeRmm::new(RAM, GIB / GRANULE) });
    rmm.enter();
    rmm.state().host = vec![Host::Pages(100), Host::Idle, Host::Pages(1)];
    let shared = shared(linear);
    let asked = range(RAM + 5 * MIB + GRANULE, 3 * MIB);
    mmu.take_tlbis();
    shared.set_memory_decrypted(asked).unwrap();
    mmu.take_tlbis();
    shared.set_memory_encrypted(asked).unwrap();
    // Each time from where it stopped.
    let (start, end) = (asked.start().get(), asked.end());
    let expected = [
        (start, end, RsiRipas::Empty),
        (start + 100 * GRANULE, end, RsiRipas::Empty),
        (start + 100 * GRANULE, end, RsiRipas::Empty),
        (start + 101 * GRANULE, end, RsiRipas::Empty),
        (start, end, RsiRipas::Ram),
    ];
    assert_eq!(*seen.lock().unwrap(), expected);
}

#[test]
fn only_edges_are_split_and_whole_blocks_cost_a_store_each_way() {
    for level in 0..=3 {
        let (mmu, _rmm) = (FakeMmu::new(32), monitor());
        let linear = linear(&mmu, level);
        let shared = shared(&linear);
        // Eight blocks, no run among them whole but for its edges.
        let blocks = range(RAM + 34 * MIB, 16 * MIB);
        shared.set_memory_decrypted(blocks).unwrap();
        stores(&mmu);
        mmu.take_tlbis();
        mmu.quiesce.asked.lock().unwrap().clear();
        let free = mmu.pool().free();
        shared.set_memory_encrypted(blocks).unwrap();
        shared.set_memory_decrypted(blocks).unwrap();
        assert_eq!(mmu.pool().free(), free, "no table");
        let counts = linear.map().counts();
        assert_eq!(crate::mapping::Counts::sum(&counts.splits), 0, "level {level}");
        // A page: one table, and one run of 16 blocks opened.
        shared.set_memory_encrypted(blocks).unwrap();
        stores(&mmu);
        mmu.take_tlbis();
        shared.set_memory_decrypted(range(RAM + 128 * MIB + 4 * GRANULE, GRANULE)).unwrap();
        assert_eq!(crate::mapping::Counts::sum(&linear.map().counts().splits), 1);
        assert_eq!(mmu.pool().free(), free - 1);
        // Below level 3 the run is broken and made; at level 3 it is made, the block of it that becomes a table a leaf first. The table's lock
        // is taken and given back.
        let (broken, made) = if level < 3 { (16, 16) } else { (0, 17) };
        let (lock, valid) = (2, 1);
        assert_eq!(stores(&mmu), broken + made + lock + valid, "level {level}");
        let tlbis = mmu.take_tlbis().len();
        assert_eq!(tlbis, 16, "level {level}: each block of the run that was");
        shared.set_memory_encrypted(range(RAM + 128 * MIB + 4 * GRANULE, GRANULE)).unwrap();
        // One that is a page already: a store to stop, a store to go on, the table's lock between them, and one invalidation.
        let page = range(RAM + 256 * MIB + 4 * GRANULE, GRANULE);
        shared.set_memory_decrypted(page).unwrap();
        stores(&mmu);
        mmu.take_tlbis();
        shared.set_memory_decrypted(page).unwrap();
        assert_eq!((stores(&mmu), mmu.take_tlbis().len()), (4, 1), "level {level}");
    }
}

#[test]
fn what_comes_back_is_not_joined_with_what_is_pinned() {
    for level in [0, 3] {
        let (mmu, _rmm) = (FakeMmu::new(32), monitor());
        let options = Options::new(Capabilities::LEAST | Capabilities::bbm(level));
        let mut map = linear_map(&mmu, options).unwrap();
        // Both its ends lie within a block, of the same attributes as what is beside it; one within a run.
        let pinned = range(RAM + 3 * MIB, 2 * MIB - 3 * GRANULE);
        let mut writer = map.get_mut();
        add(&mut writer, pinned, DATA, Leaves::PAGES).unwrap();
        add_ram(&mut writer, &[range(RAM, 8 * MIB)], &[pinned], DATA, Leaves::LARGEST).unwrap();
        drop(writer);
        let linear = LinearMap::new(map, Box::leak(Box::new([pinned])));
        let shared = shared(&linear);
        let before = census(&linear);
        let (start, end) = (pinned.start().get(), pinned.end());
        for asked in [
            range(start - GRANULE, GRANULE),
            range(end, GRANULE),
            range(RAM, 3 * MIB),
            range(end, 3 * MIB + 3 * GRANULE),
            range(start - 17 * GRANULE, 17 * GRANULE),
        ] {
            shared.set_memory_decrypted(asked).unwrap();
            shared.set_memory_encrypted(asked).unwrap();
            assert_eq!(census(&linear), before, "level {level}, {asked}");
        }
    }
}

#[test]
fn what_is_pinned_or_not_protected_or_half_a_page_is_refused_and_nobody_is_asked() {
    let (mmu, rmm) = (FakeMmu::new(32), monitor());
    let linear = linear(&mmu, 3);
    let shared = shared(&linear);
    stores(&mmu);
    let pinned = SharingError::Memory(SetMemoryError::Pinned(range(RAM, IMAGE)));
    assert_eq!(shared.set_memory_decrypted(range(RAM + IMAGE - GRANULE, 2 * GRANULE)), Err(pinned));
    let far = SharingError::NotProtected { end: SHARED + GRANULE, bits: 39 };
    assert_eq!(shared.set_memory_decrypted(range(SHARED - GRANULE, 2 * GRANULE)), Err(far));
    let far = SharingError::NotProtected { end: SHARED + RAM + 2 * GRANULE, bits: 39 };
    assert_eq!(shared.set_memory_encrypted(range(SHARED + RAM + GRANULE, GRANULE)), Err(far));
    let half = MapError::Misaligned { input: RAM + GIB - 2048, size: 2048, output: 0 };
    let half = SharingError::Memory(SetMemoryError::Map(half));
    assert_eq!(shared.set_memory_encrypted(range(RAM + GIB - 2048, 2048)), Err(half));
    assert_eq!(shared.set_memory_decrypted(range(RAM + IMAGE, 0)), Ok(()));
    assert_eq!(stores(&mmu), 0);
    assert!(rmm.state().asked.is_empty());
}

#[test]
fn without_tables_or_quiet_nothing_changes_and_nobody_is_asked() {
    for level in 0..=3 {
        let (mmu, rmm) = (FakeMmu::new(32), monitor());
        let linear = linear(&mmu, level);
        let shared = shared(&linear);
        let page = range(RAM + 512 * MIB + GRANULE, GRANULE);
        if level < 3 {
            mmu.quiesce.refuses.store(true, Relaxed);
            let refused = shared.set_memory_decrypted(page);
            assert!(
                matches!(refused, Err(SharingError::Memory(SetMemoryError::Map(MapError::NotQuiet(_))))),
                "{refused:?}"
            );
            mmu.quiesce.refuses.store(false, Relaxed);
        }
        let kept: Vec<_> = (0..mmu.pool().free()).map(|_| mmu.pool().take_root(1).unwrap()).collect();
        let refused = shared.set_memory_decrypted(page);
        let short = MapError::OutOfTables { needed: 1, free: 0 };
        assert_eq!(refused, Err(SharingError::Memory(SetMemoryError::Map(short))));
        assert_eq!(at(&linear, page.start().get()), Some((page.start().get(), true)));
        assert!(rmm.state().asked.is_empty() && !kept.is_empty());
        // A block needs none.
        shared.set_memory_decrypted(range(RAM + 512 * MIB, 32 * MIB)).unwrap();
    }
}

#[test]
fn what_the_host_rejects_stays_unmapped_and_can_be_tried_again() {
    let (mmu, rmm) = (FakeMmu::new(32), monitor());
    let linear = linear(&mmu, 3);
    let shared = shared(&linear);
    let before = census(&linear);
    let asked = range(RAM + 512 * MIB + GRANULE, 8 * GRANULE);
    let start = asked.start().get();
    shared.set_memory_decrypted(asked).unwrap();
    rmm.state().host = vec![Host::Pages(2), Host::Rejects(3)];
    let stopped = unfinished(shared.set_memory_encrypted(asked));
    assert_eq!((stopped.range(), stopped.side(), stopped.cause()), (asked, Side::Encrypted, Cause::Rejected));
    assert_eq!(stopped.done(), start + 5 * GRANULE);
    for page in 0..8 {
        assert_eq!(at(&linear, start + page * GRANULE).map(|(_, valid)| valid), Some(false));
        let ripas = if page < 5 { RsiRipas::Ram } else { RsiRipas::Empty };
        assert_eq!(rmm.ripas(start + page * GRANULE), ripas);
    }
    rmm.state().asked.clear();
    shared.retry(stopped).unwrap();
    assert_eq!(rmm.state().asked[0].0, start + 5 * GRANULE, "it goes on where it stopped");
    assert_eq!(at(&linear, start), Some((start, true)));
    assert_eq!(census(&linear), before);
}

#[test]
fn what_is_given_up_never_translates_again() {
    let (mmu, rmm) = (FakeMmu::new(32), monitor());
    let linear = linear(&mmu, 3);
    let shared = shared(&linear);
    let asked = range(RAM + 512 * MIB + GRANULE, 2 * GRANULE);
    let (start, end) = (asked.start().get(), asked.end());
    rmm.state().host = vec![Host::Fails(RsiStatus::ErrorUnknown)];
    let stopped = unfinished(shared.set_memory_decrypted(asked));
    assert_eq!(stopped.cause(), Cause::Rsi(RsiError::Status(RsiStatus::ErrorUnknown)));
    assert_eq!(stopped.done(), start);
    shared.give_up(stopped).unwrap();
    let around = range(start - GRANULE, 4 * GRANULE);
    shared.set_memory_encrypted(around).unwrap();
    shared.set_memory_decrypted(around).unwrap();
    linear.set_memory_valid(around, true).unwrap();
    for page in [start, end - GRANULE] {
        assert_eq!(at(&linear, page), None);
    }
    for page in [start - GRANULE, end] {
        assert_eq!(at(&linear, page), Some((SHARED | page, true)));
    }
}

#[test]
fn without_tables_in_the_end_a_range_is_unfinished_with_all_of_its_ripas_done() {
    let (mmu, rmm) = (FakeMmu::new(32), monitor());
    let linear = linear(&mmu, 3);
    let shared = shared(&linear);
    let before = census(&linear);
    // Two halves of a block that are under way at once, which somebody joins meanwhile.
    let [first, second] = [RAM + 512 * MIB, RAM + 513 * MIB].map(|start| range(start, MIB));
    rmm.state().host = vec![Host::Fails(RsiStatus::ErrorUnknown); 2];
    let [one, other] = [first, second].map(|half| unfinished(shared.set_memory_decrypted(half)));
    let block = Range::new(first.start().get(), 2 * MIB).unwrap();
    linear.map().cpu(0).unwrap().write().collapse(block, Leaves::LARGEST).unwrap();
    // A page in each of as many blocks takes the tables that are left.
    let others: Vec<_> =
        (0..mmu.pool().free() as u64).map(|i| range(RAM + (32 + 2 * i) * MIB, GRANULE)).collect();
    others.iter().for_each(|page| shared.set_memory_decrypted(*page).unwrap());
    let one = unfinished(shared.retry(one));
    let short = MapError::OutOfTables { needed: 1, free: 0 };
    assert_eq!((one.cause(), one.done()), (Cause::Memory(SetMemoryError::Map(short)), first.end()));
    assert_eq!(at(&linear, first.start().get()).map(|(_, valid)| valid), Some(false));
    others.iter().for_each(|page| shared.set_memory_encrypted(*page).unwrap());
    shared.retry(one).unwrap();
    shared.retry(other).unwrap();
    for half in [first, second] {
        assert_eq!(at(&linear, half.start().get()), Some((SHARED | half.start().get(), true)));
        shared.set_memory_encrypted(half).unwrap();
    }
    assert_eq!(census(&linear), before);
}

#[test]
fn a_forgotten_range_heals_by_a_request_for_all_of_it() {
    let (mmu, rmm) = (FakeMmu::new(32), monitor());
    let linear = linear(&mmu, 0);
    let shared = shared(&linear);
    let before = census(&linear);
    let asked = range(RAM + 512 * MIB + GRANULE, 8 * GRANULE);
    // Half of it is EMPTY then, and none of it was shared.
    rmm.state().host = vec![Host::Pages(4), Host::Fails(RsiStatus::ErrorState)];
    drop(unfinished(shared.set_memory_decrypted(asked)));
    shared.set_memory_encrypted(asked).unwrap();
    assert_eq!(census(&linear), before);
    for page in (asked.start().get()..asked.end()).step_by(GRANULE as usize) {
        assert_eq!((at(&linear, page), rmm.ripas(page)), (Some((page, true)), RsiRipas::Ram));
    }
}

#[test]
fn a_monitor_that_comes_no_further_is_told_after_a_while() {
    let (mmu, rmm) = (FakeMmu::new(32), monitor());
    let linear = linear(&mmu, 3);
    let shared = shared(&linear);
    let asked = range(RAM + 512 * MIB, GRANULE);
    rmm.state().host = vec![Host::Idle; 20_000];
    let stopped = unfinished(shared.set_memory_decrypted(asked));
    assert_eq!(stopped.cause(), Cause::Stalled);
    rmm.state().host.clear();
    shared.retry(stopped).unwrap();
}

#[test]
fn what_the_host_destroyed_of_the_realms_own_is_told_and_of_what_was_shared_is_nothing() {
    let (mmu, rmm) = (FakeMmu::new(32), monitor());
    let linear = linear(&mmu, 3);
    let shared = shared(&linear);
    let start = RAM + 512 * MIB;
    // The second half is shared: the host may destroy what is EMPTY there.
    shared.set_memory_decrypted(range(start + 4 * GRANULE, 4 * GRANULE)).unwrap();
    rmm.state().destroy(start + 6 * GRANULE);
    rmm.state().destroy(start + 2 * GRANULE);
    let asked = range(start, 8 * GRANULE);
    let stopped = unfinished(shared.set_memory_encrypted(asked));
    assert_eq!(stopped.cause(), Cause::Destroyed(start + 2 * GRANULE));
    let stopped = unfinished(shared.retry(stopped));
    assert_eq!(stopped.done(), start + 2 * GRANULE);
    // Whoever can do without what was there gives it up, and then has memory again.
    shared.set_memory_decrypted(asked).unwrap();
    shared.set_memory_encrypted(asked).unwrap();
    assert_eq!(rmm.ripas(start + 2 * GRANULE), RsiRipas::Ram);
    assert_eq!(at(&linear, start + 2 * GRANULE), Some((start + 2 * GRANULE, true)));
    let flags: Vec<_> = rmm.state().asked.iter().map(|asked| (asked.2, asked.3)).collect();
    let known = (RsiRipas::Ram, RsiRipasChangeFlags::empty());
    assert!(flags.contains(&known));
    assert!(!flags.contains(&(RsiRipas::Empty, RsiRipasChangeFlags::empty())));
}

#[test]
fn an_alias_is_the_same_range_with_the_top_bit_of_the_width() {
    let config = config();
    let uart = range(0x0900_0000, GRANULE);
    assert_eq!(config.alias(uart), Some(range(0x80_0900_0000, GRANULE)));
    assert!(config.is_protected(range(0, SHARED)) && !config.is_protected(range(GRANULE, SHARED)));
    assert_eq!(config.alias(range(SHARED, GRANULE)), None);
}

/// Requests by threads that are CPUs: what memory holds, where the map says that it is.
#[cfg(feature = "trial")]
mod by_threads {
    use std::cell::Cell;
    use std::collections::HashMap;
    use std::sync::atomic::AtomicU8;

    use super::super::requests::{Requests, Subject, Worker, exchanged};
    use super::*;
    use crate::caps::gate::{Gate, Here};

    const PAGES: u64 = 4096;

    thread_local! {
        static NUMBER: Cell<usize> = const { Cell::new(0) };
    }

    struct Threads;
    impl Here for Threads {
        fn number(&self) -> usize {
            NUMBER.get()
        }
        fn is_pinned(&self, start: u64, end: u64) -> bool {
            start < RAM + IMAGE && RAM < end
        }
        fn relax(&self) {
            std::thread::yield_now();
        }
    }
    type ThreadGate = Gate<Threads, 8>;
    type ThreadMmu<'a> = FakeMmu<&'a ThreadGate>;

    struct Realm<'a> {
        shared: SharedMemory<'a, &'a ThreadMmu<'a>, Fake>,
        gate: &'a ThreadGate,
        rmm: &'a FakeRmm,
        /// By address, both halves.
        memory: Mutex<HashMap<u64, u64>>,
    }

    impl Realm<'_> {
        /// Where the CPU's access goes, which must reach something.
        fn output(&self, address: u64) -> u64 {
            let mut cpu = self.shared.linear().map().cpu(NUMBER.get()).unwrap();
            let output = cpu.read().translate(Va::new(address).unwrap()).unwrap().output.get();
            if output < SHARED {
                assert_eq!(self.rmm.ripas(output), RsiRipas::Ram, "{output:#x}");
            }
            output
        }
    }

    impl Subject for Realm<'_> {
        fn set(&self, range: Range<Pa>, side: Side) -> bool {
            let result = match side {
                Side::Decrypted => self.shared.set_memory_decrypted(range),
                Side::Encrypted => self.shared.set_memory_encrypted(range),
            };
            if let Err(error) = &result {
                println!("{range}: {error}");
            }
            result.is_ok()
        }
        fn read(&self, address: u64) -> u64 {
            let at = self.output(address);
            self.memory.lock().unwrap().get(&at).copied().unwrap_or(0)
        }
        fn write(&self, address: u64, value: u64) {
            let at = self.output(address);
            self.memory.lock().unwrap().insert(at, value);
        }
        fn exchange(&self, range: Range<Pa>, seed: u64) -> bool {
            let mut memory = self.memory.lock().unwrap();
            (0..range.size() / 8).all(|i| {
                let word = memory.get_mut(&(SHARED + range.start().get() + 8 * i));
                word.is_some_and(|word| {
                    let holds = *word == exchanged(seed, i);
                    *word = !*word;
                    holds
                })
            })
        }
        fn pass(&self) {
            self.gate.pass();
        }
    }

    /// Requests of `count` CPUs at this level of FEAT_BBM; `lose` a page of the realm's while nobody looks.
    fn run(level: u8, count: usize, each: u64, lose: bool) -> (bool, [u64; 5]) {
        let gate = ThreadGate::new(Threads);
        let gate = &gate;
        let mmu = FakeMmu::with_quiesce(128, 512, gate);
        let options = Options::new(Capabilities::LEAST | Capabilities::bbm(level));
        let mut map = linear_map::<El1And0, _>(&mmu, options).unwrap();
        let image = range(RAM, IMAGE);
        let mut writer = map.get_mut();
        add(&mut writer, image, DATA, Leaves::PAGES).unwrap();
        add_ram(&mut writer, &[range(RAM, 64 * MIB)], &[image], DATA, Leaves::LARGEST).unwrap();
        drop(writer);
        let linear = LinearMap::new(map, Box::leak(Box::new([image])));
        let census = || linear.map().cpu(0).unwrap().read().census();
        let before = census();

        // A host that does some pages at a time, now and then.
        let rmm = Arc::new(FakeRmm::new(RAM, GIB / GRANULE));
        rmm.state().host =
            (0..200).map(|i| if i % 3 == 0 { Host::Idle } else { Host::Pages(1 + i % 7) }).collect();
        rmm.enter();
        let shared = SharedMemory::new(&linear, Rsi::find(0).unwrap(), &config(), Leaves::LARGEST);
        let realm = Realm { shared, gate, rmm: &rmm, memory: Mutex::default() };
        let parts = [range(RAM + 2 * MIB, 3 * MIB), range(RAM + 5 * MIB + 3 * GRANULE, PAGES * GRANULE)];
        let states: Vec<AtomicU8> = (0..PAGES + 768).map(|_| AtomicU8::new(0)).collect();
        let requests = Requests::new(&parts, &states, 2000).unwrap();
        assert!(Requests::new(&parts, &states[1..], 2000).is_none());
        gate.enter();
        requests.prepare(&realm);
        gate.leave();
        if lose {
            // What a page before the last holds goes.
            let page = parts[1].start().get() + 100 * GRANULE;
            realm.memory.lock().unwrap().retain(|at, _| !(page..page + GRANULE).contains(at));
        }
        std::thread::scope(|scope| {
            for number in 0..count {
                let (requests, realm, rmm) = (&requests, &realm, &rmm);
                scope.spawn(move || {
                    NUMBER.set(number);
                    rmm.enter();
                    gate.enter();
                    requests.ask(realm, &mut Worker::new(number as u64 + 1 + u64::from(level) * 9), each);
                    gate.leave();
                });
            }
        });
        gate.enter();
        requests.finish(&realm);
        requests.look_at_all(&realm);
        gate.leave();
        assert_eq!(requests.shared(), 0);
        assert_eq!(census(), before, "level {level}");
        let of = |count: &core::sync::atomic::AtomicU64| count.load(Relaxed);
        let tally = &requests.tally;
        assert_eq!((of(&tally.refused), of(&tally.busy), of(&tally.lost)), (0, 0, 0));
        let found = [
            of(&tally.made[0]),
            of(&tally.made[1]),
            of(&tally.pages),
            of(&tally.looked),
            of(&tally.exchanges),
        ];
        (of(&tally.wrong) != 0, found)
    }

    // On tables of 512 entries Miri takes longer than anybody waits.
    #[test]
    #[cfg_attr(miri, ignore)]
    fn random_requests_of_several_cpus_are_all_granted_and_every_page_keeps_what_it_held() {
        for level in 0..=3 {
            for cpus in [1, 2, 4] {
                let (wrong, [share, back, pages, looked, exchanges]) = run(level, cpus, 150, false);
                assert!(!wrong, "level {level}, {cpus} CPUs");
                assert!(share > 20 && back > 20 && pages > 100 && looked > 500 && exchanges > 0);
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore)]
    fn a_page_that_lost_what_it_held_is_found() {
        assert!(run(3, 1, 1, true).0);
    }
}
