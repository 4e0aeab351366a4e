//! The calls of SMCCC and RSI.

use std::sync::atomic::Ordering::SeqCst;

use hyp::el2::guests::{Advertised, Traced};
use hyp::mapping::Address;
use hyp::owner::Keeper;

use super::*;
use crate::trace::{Kept, Trace};

#[test]
fn a_realm_finds_the_interface_as_it_looks_for_it() {
    let scene = Scene::active();
    // What its other registers held stays: PSCI and SMCCC results are in X0 to X3.
    let call = |x: &[u64]| {
        let mut all = [0x77; 18];
        all[..x.len()].copy_from_slice(x);
        let after = scene.answered(&all);
        assert_eq!(after[4..18], all[4..]);
        after[0]
    };
    assert_eq!(call(&[0x8400_0000]), 0x1_0001, "PSCI_VERSION: 1.1");
    assert_eq!(call(&[0x8400_000a, 0x8000_0000]), 0, "PSCI_FEATURES(SMCCC_VERSION)");
    assert_eq!(call(&[0x8000_0000]), 0x1_0002, "SMCCC_VERSION: 1.2");
    assert_eq!(call(&[0x8000_0001, 0x8000_0000]), 0, "SMCCC_ARCH_FEATURES(SMCCC_VERSION)");
    assert_eq!(call(&[0x8000_0001, 0x8000_8000]), NOT_SUPPORTED, "SMCCC_ARCH_FEATURES(WORKAROUND_1)");
    for function in PsciCommand::ALL {
        assert_eq!(call(&[0x8400_000a, function.fid().into()]), 0, "{}", function.name());
    }
    // CPU_ON of 32 bits, MIGRATE, RSI_VERSION.
    for function in [0x8400_0003, 0x8400_0005, 0xc400_0190] {
        assert_eq!(call(&[0x8400_000a, function]), NOT_SUPPORTED);
    }
    // RMI, a vendor's, a trusted OS's, and nothing at all.
    for fid in [0xc400_0150, 0xc600_0003, 0x3200_0000, 0x8400_0003, 0, u64::MAX, 0x8400_0014] {
        assert_eq!(call(&[fid]), NOT_SUPPORTED, "{fid:#x}");
    }
    // The hint about SVE is none of the function's, nor is what is above W0.
    assert_eq!(call(&[0xffff_0000_8401_0000]), 0x1_0001);
    // An immediate is no call of SMCCC.
    scene.step(|vcpu| {
        vcpu.x[0] = 0xc400_0190;
        synchronous(SMC | 1, 0, 0)
    });
    scene.irq();
    scene.exit();
    assert_eq!(scene.vcpu().x[0], NOT_SUPPORTED);
}

#[test]
fn rsi_leaves_nothing_in_registers_that_are_no_outputs() {
    let scene = Scene::active();
    let mut all = [0x77; 31];
    all[0] = RsiCommand::Version.fid().into();
    all[1] = 0x1_0000;
    let x = scene.answered(&all);
    assert_eq!(x[..3], [0, 0x1_0000, 0x1_0000]);
    assert!(x[3..17].iter().all(|&x| x == 0));
    assert_eq!(x[17..], all[17..]);
    for (asked, status) in [(0, 1), (0x1_0001, 1), (0x2_0000, 1), (u64::MAX, 1)] {
        let x = scene.answered_by_rsi(RsiCommand::Version, &[asked]);
        assert_eq!(x[..3], [status, 0x1_0000, 0x1_0000], "{asked:#x}");
    }
    for index in [0, 1, u64::MAX] {
        assert_eq!(scene.answered_by_rsi(RsiCommand::Features, &[index])[..2], [0, 0]);
    }
}

#[test]
fn measurements_are_read_and_extended() {
    let scene = Scene::active();
    let rim = scene.realm(|realm| realm.measurements.borrow()[0]);
    let read = |index: u64| {
        let x = scene.answered_by_rsi(RsiCommand::MeasurementRead, &[index]);
        assert_eq!(x[0], 0);
        assert!(x[9..17].iter().all(|&x| x == 0));
        <[u64; 8]>::try_from(&x[1..9]).unwrap()
    };
    assert_eq!(read(0), doublewords(&rim));
    assert_eq!(read(4), [0; 8]);
    let value = [u64::MAX; 8];
    let extend = |index: u64, size: u64| {
        let x = scene.answered_by_rsi(RsiCommand::MeasurementExtend, &[&[index, size], &value[..]].concat());
        assert!(x[1..17].iter().all(|&x| x == 0));
        x[0]
    };
    assert_eq!(extend(4, 3), 0);
    let mut input = [0; 128];
    input[64..67].fill(0xff);
    let mut expected = [0; 64];
    expected[..32].copy_from_slice(&sha(&input));
    assert_eq!(read(4), doublewords(&expected));
    assert_eq!((read(3), read(0)), ([0; 8], doublewords(&rim)));
    for (id, index, size) in
        [("index_bound", 0, 3), ("index_bound", 5, 3), ("index_bound", u64::MAX, 3), ("size_bound", 1, 65)]
    {
        assert_eq!(extend(index, size), RsiStatus::ErrorInput.bits(), "{id}");
    }
    scene.refused(RsiCommand::MeasurementRead, &[5], "index_bound");
    assert_eq!(extend(1, 64), 0);
    assert_eq!(extend(1, 0), 0);
}

#[test]
fn a_realm_reads_how_it_was_made() {
    let scene = Scene::active();
    scene.fake.store(scene.data[0], &[0xcc; 4096]);
    assert_eq!(scene.answered_by_rsi(RsiCommand::RealmConfig, &[DATA])[0], 0);
    let config: RsiRealmConfig = scene.fake.get(scene.data[0]);
    let mut expected = RsiRealmConfig::zeroed();
    (expected.ipa_width, expected.rpv) = (WIDTH.into(), [0xa7; 64]);
    assert_eq!(config, expected);
    scene.refused(RsiCommand::RealmConfig, &[DATA + 8], "addr_align");
    scene.refused(RsiCommand::RealmConfig, &[MAPPED], "addr_bound");
    scene.refused(RsiCommand::RealmConfig, &[1 << WIDTH], "addr_bound");
    scene.refused(RsiCommand::RealmConfig, &[EMPTY], "nothing there");
    scene.refused(RsiCommand::RealmConfig, &[SPARE], "nothing there");
}

#[test]
fn a_command_waits_for_memory_that_the_host_owes() {
    for command in [RsiCommand::RealmConfig, RsiCommand::HostCall] {
        for ipa in [ABSENT, DESTROYED] {
            let scene = Scene::active();
            scene.rsi(command, &[ipa]);
            let expected = record(RmiRecExitReason::Sync, |exit| {
                exit.esr = 0x24 << 26 | 0x07;
                exit.hpfar = ipa >> 8;
            });
            assert_eq!(scene.exit(), expected, "{}", command.name());
            // It is executed again.
            assert_eq!((scene.vcpu().pc, scene.vcpu().x[0]), (ENTRY, command.fid().into()));
            assert_eq!(scene.rec(0, |rec| (rec.pending.get(), rec.abort.get())), (Pending::None, None));
        }
    }
}

#[test]
fn a_command_waits_for_a_table_by_which_to_reach_its_memory() {
    let scene = Scene::new();
    let block = BASE + (4 << 20);
    let data = scene.fake.block(scene.rd, block);
    let scene = scene.activated(1);
    let mut call = RsiHostCall::zeroed();
    call.imm = 7;
    scene.fake.store(data + PAGE, call.as_bytes());
    let before = scene.fake.fingerprint();
    scene.rsi(RsiCommand::HostCall, &[block + PAGE]);
    let expected = record(RmiRecExitReason::Sync, |exit| {
        exit.esr = 0x24 << 26 | 0x06;
        exit.hpfar = (block + PAGE) >> 8;
    });
    assert_eq!(scene.fake.without_tables(|| scene.exit()), expected);
    assert_eq!((scene.vcpu().pc, scene.fake.fingerprint()), (ENTRY, before));
    scene.rsi(RsiCommand::HostCall, &[block + PAGE]);
    let exit = scene.exit();
    assert_eq!((exit.exit_reason, exit.imm), (RmiRecExitReason::HostCall.bits(), 7));
}

#[test]
fn ripas_is_told_as_far_as_it_is_the_same() {
    let scene = Scene::active();
    let get = |base: u64, top: u64| {
        let x = scene.answered_by_rsi(RsiCommand::IpaStateGet, &[base, top]);
        assert_eq!(x[0], 0);
        assert!(x[3..17].iter().all(|&x| x == 0));
        (x[1], x[2])
    };
    const BLOCK: u64 = 2 << 20;
    // Two assigned pages and one that is not: RAM all.
    assert_eq!(get(DATA, BASE + BLOCK), (EMPTY, 1));
    assert_eq!(get(DATA, MORE), (MORE, 1));
    assert_eq!(get(EMPTY, DESTROYED), (DESTROYED, 0));
    assert_eq!(get(DESTROYED, BASE + BLOCK), (SPARE, 2));
    // To the end of its RTT.
    assert_eq!(get(SPARE, BASE + 3 * BLOCK), (BASE + BLOCK, 0));
    // Blocks in one step.
    assert_eq!(get(BASE + BLOCK, BASE + 3 * BLOCK + PAGE), (BASE + 3 * BLOCK + PAGE, 0));
    let top = SHARED;
    for (id, args) in [
        ("base_align", [DATA + 1, MORE]),
        ("end_align", [DATA, MORE + 1]),
        ("size_valid", [DATA, DATA]),
        ("size_valid", [MORE, DATA]),
        ("rgn_bound", [top, top + PAGE]),
        ("rgn_bound", [top - PAGE, top + PAGE]),
        ("rgn_bound", [DATA, !0xfff]),
    ] {
        scene.refused(RsiCommand::IpaStateGet, &args, id);
    }
    assert_eq!(get(top - PAGE, top), (top, 0));
}

#[test]
fn ripas_of_pages_goes_on_to_the_first_that_is_another() {
    const FIRST: u64 = BASE + (4 << 20);
    const LAST: u64 = FIRST + (2 << 20);
    let scene = Scene::new();
    let (fake, rd) = (scene.fake, scene.rd);
    fake.rtts(rd, FIRST, 3);
    fake.ok(RttInitRipas, &[rd, FIRST, LAST]);
    for page in (FIRST..LAST).step_by(0x1000) {
        fake.ok(DataCreateUnknown, &[rd, fake.delegated(), page]);
    }
    let get = |base, top| scene.realm(|realm| realm.ripas_from(base, top));
    assert_eq!(get(FIRST, LAST), (LAST, RmmRipas::Ram));
    assert_eq!(get(FIRST, LAST + PAGE), (LAST, RmmRipas::Ram));
    assert_eq!(get(FIRST + PAGE, FIRST + 2 * PAGE), (FIRST + 2 * PAGE, RmmRipas::Ram));
    // From the end on: what is DESTROYED, and before it RAM.
    for page in [511, 510, 504, 503, 100, 17, 16, 9, 8, 7, 1, 0].map(|page| FIRST + page * PAGE) {
        fake.ok(DataDestroy, &[rd, page]);
        assert_eq!(get(page, LAST).1, RmmRipas::Destroyed);
        if page > FIRST {
            assert_eq!(get(FIRST, LAST), (page, RmmRipas::Ram));
            assert_eq!(get(page - PAGE, page), (page, RmmRipas::Ram));
        }
    }
    assert_eq!(get(FIRST, LAST), (FIRST + 2 * PAGE, RmmRipas::Destroyed));
}

#[test]
fn a_change_of_ripas_is_asked_of_the_host_and_told_when_it_comes_back() {
    let scene = Scene::active();
    for (id, args) in [
        ("base_align", [DATA + 1, MORE, 1, 0]),
        ("top_align", [DATA, MORE + 1, 1, 0]),
        ("size_valid", [DATA, DATA, 1, 0]),
        ("rgn_bound", [DATA, SHARED + PAGE, 1, 0]),
        ("ripas_valid", [DATA, MORE, 2, 0]),
        ("ripas_valid", [DATA, MORE, 3, 0]),
        ("ripas_valid", [DATA, MORE, 0xff, 0]),
    ] {
        scene.refused(RsiCommand::IpaStateSet, &args, id);
    }
    let ask = |base: u64, top: u64, ripas: u64| {
        scene.rsi(RsiCommand::IpaStateSet, &[base, top, ripas]);
        let expected = record(RmiRecExitReason::RipasChange, |exit| {
            (exit.ripas_base, exit.ripas_top, exit.ripas_value) = (base, top, ripas as u8);
        });
        assert_eq!(scene.exit(), expected);
    };
    let told = |flags: RmiRecEnterFlags| {
        scene.irq();
        assert_eq!(scene.exit_after(flagged(flags)), interrupted());
        let x = scene.vcpu().x;
        assert!(x[3..17].iter().all(|&x| x == 0));
        assert_eq!(scene.rec(0, |rec| (rec.ripas.get().addr, rec.ripas.get().top)), (0, 0));
        [x[0], x[1], x[2]]
    };
    let reject = RmiRecEnterFlags::RIPAS_RESPONSE;
    ask(EMPTY, DESTROYED, 1);
    assert_eq!(told(RmiRecEnterFlags::empty()), [0, EMPTY, 0]);
    ask(EMPTY, DESTROYED, 1);
    assert_eq!(told(reject), [0, EMPTY, 1]);
    // Nothing is left to be told.
    scene.irq();
    scene.exit_after(flagged(reject));
    // Done by the host: both, and no more to reject.
    ask(EMPTY, DESTROYED, 1);
    let done = scene.fake.ok(RttSetRipas, &[scene.rd, scene.recs[0], EMPTY, DESTROYED]);
    assert_eq!(done[1], DESTROYED);
    assert_eq!(told(reject), [0, DESTROYED, 0]);
    assert_eq!(scene.answered_by_rsi(RsiCommand::IpaStateGet, &[DATA, SPARE])[1..3], [DESTROYED, 1]);
    // A change to EMPTY cannot be rejected.
    ask(EMPTY, DESTROYED, 0);
    assert_eq!(told(reject), [0, EMPTY, 0]);
    // The host has no change to make that was not asked for.
    let args = [scene.rd, scene.recs[0], EMPTY, DESTROYED];
    assert_eq!(scene.fake.status(RttSetRipas, &args), RmiStatus::ErrorInput);
}

#[test]
fn a_change_from_destroyed_needs_the_realms_word() {
    let scene = Scene::active();
    for (flags, end) in [(0, DESTROYED), (1, SPARE), (u64::MAX, SPARE)] {
        scene.rsi(RsiCommand::IpaStateSet, &[DESTROYED, SPARE, 1, flags]);
        scene.exit();
        let args = [scene.rd, scene.recs[0], DESTROYED, SPARE];
        let done = scene.fake.call(RttSetRipas, &args);
        if flags == 0 {
            // no_progress
            assert_eq!((status(&done), done[1]), (RmiStatus::ErrorRtt(3), 0));
        } else {
            assert_eq!((status(&done), done[1]), (RmiStatus::Success, end));
        }
        scene.irq();
        scene.exit();
        assert_eq!(scene.vcpu().x[1], end);
    }
}

#[test]
fn host_calls_go_there_and_back() {
    let scene = Scene::active();
    let addr = DATA + 0x300;
    let mut call = RsiHostCall::zeroed();
    call.imm = 0xc10e;
    call.gprs = core::array::from_fn(|n| 0x100 + n as u64);
    scene.fake.store(scene.data[0] + 0x300, call.as_bytes());
    for (id, addr) in [("addr_align", addr + 8), ("addr_bound", MAPPED), ("addr_bound", !0xff)] {
        scene.refused(RsiCommand::HostCall, &[addr], id);
    }
    scene.refused(RsiCommand::HostCall, &[EMPTY], "nothing there");
    let pc = scene.vcpu().pc;
    scene.rsi(RsiCommand::HostCall, &[addr]);
    let expected = record(RmiRecExitReason::HostCall, |exit| (exit.imm, exit.gprs) = (call.imm, call.gprs));
    assert_eq!(scene.exit(), expected);
    let mut enter = RmiRecEnter::zeroed();
    enter.gprs = core::array::from_fn(|n| 0x200 + n as u64);
    scene.irq();
    assert_eq!(scene.exit_after(enter.clone()), interrupted());
    let after: RsiHostCall = scene.fake.get(scene.data[0] + 0x300);
    assert_eq!((after.imm, after.gprs), (call.imm, enter.gprs));
    let vcpu = scene.vcpu();
    assert_eq!(vcpu.pc, pc + 4);
    assert!(vcpu.x[..17].iter().all(|&x| x == 0));
    // Once.
    scene.irq();
    scene.exit();
    assert_eq!(scene.fake.get::<RsiHostCall>(scene.data[0] + 0x300), after);
}

#[test]
fn an_answer_to_a_host_call_waits_for_its_memory() {
    let scene = Scene::active();
    scene.rsi(RsiCommand::HostCall, &[DATA]);
    scene.exit();
    scene.fake.ok(DataDestroy, &[scene.rd, DATA]);
    let mut enter = RmiRecEnter::zeroed();
    enter.gprs[1] = 0x1234;
    let runs = scene.fake.cpus().runs.load(std::sync::atomic::Ordering::SeqCst);
    let expected = record(RmiRecExitReason::Sync, |exit| {
        exit.esr = 0x24 << 26 | 0x07;
        exit.hpfar = DATA >> 8;
    });
    assert_eq!(scene.exit_after(enter.clone()), expected);
    assert_eq!(scene.rec(0, |rec| rec.pending.get()), Pending::HostCall(DATA));
    assert_eq!(scene.fake.cpus().runs.load(std::sync::atomic::Ordering::SeqCst), runs, "it has not run");
    // As DESTROYED can only become RAM again by the realm's other RECs, one asks.
    let other = Scene::active();
    other.rsi(RsiCommand::HostCall, &[DATA]);
    other.exit();
    other.rec(0, |rec| rec.pending.set(Pending::HostCall(EMPTY)));
    other.irq();
    other.exit_after(enter);
    assert_eq!(other.vcpu().x[0], RsiStatus::ErrorInput.bits(), "given up meanwhile");
}

/// What RSI_ATTESTATION_TOKEN_CONTINUE answers: status, bytes written.
fn continued(scene: &Scene, args: &[u64; 3]) -> (RsiStatus, u64) {
    let x = scene.answered_by_rsi(RsiCommand::AttestationTokenContinue, args);
    assert!(x[2..17].iter().all(|&x| x == 0));
    (RsiStatus::from_bits(x[0]).unwrap(), x[1])
}

fn begun(scene: &Scene, challenge: [u64; 8]) -> u64 {
    let x = scene.answered_by_rsi(RsiCommand::AttestationTokenInit, &challenge);
    assert_eq!(x[0], RsiStatus::Success.bits());
    assert!(x[2..17].iter().all(|&x| x == 0));
    x[1]
}

/// A token, in parts of at most `size` bytes.
fn fetched(scene: &Scene, challenge: [u64; 8], size: u64) -> Vec<u8> {
    let most = begun(scene, challenge);
    let mut token = Vec::new();
    loop {
        let offset = token.len() as u64 % PAGE;
        let (status, len) = continued(scene, &[DATA, offset, size.min(PAGE - offset)]);
        let page: [u8; 4096] = scene.fake.bytes(scene.data[0]);
        token.extend_from_slice(&page[offset as usize..][..len as usize]);
        assert!(token.len() as u64 <= most);
        if status == RsiStatus::Success {
            return token;
        }
        assert_eq!(status, RsiStatus::Incomplete);
    }
}

fn holds(token: &[u8], bytes: &[u8]) -> bool {
    token.windows(bytes.len()).any(|window| window == bytes)
}

#[test]
fn a_realm_fetches_a_token_with_its_challenge_and_its_measurements() {
    let scene = Scene::active();
    let token = fetched(&scene, [0xc4a1_1e46_0000_0001; 8], PAGE);
    // As RSI_ATTESTATION_TOKEN_INIT has them: in doublewords, the first in X1.
    assert!(holds(&token, &[0xc4a1_1e46_0000_0001u64.to_le_bytes(); 8].concat()));
    let rim = scene.realm(|realm| realm.measurements.borrow()[0]);
    assert!(holds(&token, &rim[..32]) && holds(&token, &[0xa7; 64]));
    assert_eq!(fetched(&scene, [0xc4a1_1e46_0000_0001; 8], PAGE), token, "nothing else is in it");
    assert_ne!(fetched(&scene, [0xc4a1_1e46_0000_0002; 8], PAGE), token);
    // Another REM is another token; but what is measured after the beginning is not in it.
    begun(&scene, [0xc4a1_1e46_0000_0001; 8]);
    scene.answered_by_rsi(RsiCommand::MeasurementExtend, &[1, 8, 5]);
    let rem = scene.realm(|realm| realm.measurements.borrow()[1]);
    while continued(&scene, &[DATA, 0, 0]).1 == 0 && continued(&scene, &[DATA, 0, PAGE]).1 == 0 {}
    assert!(!holds(&scene.fake.bytes::<4096>(scene.data[0])[..token.len()], &rem[..32]));
    assert!(holds(&fetched(&scene, [0xc4a1_1e46_0000_0001; 8], PAGE), &rem[..32]));
}

#[test]
fn a_token_comes_in_any_parts_and_nothing_else_is_written() {
    let scene = Scene::active();
    let token = fetched(&scene, [3; 8], PAGE);
    for size in [1, 100, 333] {
        assert_eq!(fetched(&scene, [3; 8], size), token, "{size}");
    }
    scene.fake.store(scene.data[0], &[0xcc; 4096]);
    begun(&scene, [3; 8]);
    // Signatures first: the platform's was made for the tokens before.
    assert_eq!(continued(&scene, &[DATA, 8, 24]), (RsiStatus::Incomplete, 0));
    assert_eq!(scene.fake.bytes::<4096>(scene.data[0]), [0xcc; 4096]);
    assert_eq!(continued(&scene, &[DATA, 8, 0]), (RsiStatus::Incomplete, 0));
    assert_eq!(continued(&scene, &[DATA, 8, 24]), (RsiStatus::Incomplete, 24));
    let mut expected = [0xcc; 4096];
    expected[8..32].copy_from_slice(&token[..24]);
    assert_eq!(scene.fake.bytes::<4096>(scene.data[0]), expected);
    // The last byte ends it, whatever room is left.
    let rest = token.len() as u64 - 24;
    assert_eq!(continued(&scene, &[MORE, PAGE - rest, rest]), (RsiStatus::Success, rest));
    assert_eq!(scene.fake.bytes::<4096>(scene.data[1])[(PAGE - rest) as usize..], token[24..]);
    assert_eq!(continued(&scene, &[DATA, 0, PAGE]), (RsiStatus::ErrorState, 0));
}

#[test]
fn each_signature_is_made_in_a_call_of_its_own() {
    let scene = Scene::active();
    let calls = |challenge| {
        begun(&scene, [challenge; 8]);
        let stood = || scene.fake.cpus().stood.load(SeqCst);
        let before = stood();
        let unsigned = (0..).take_while(|_| continued(&scene, &[DATA, 0, PAGE]).1 == 0).count();
        assert_eq!(stood() - before, unsigned, "nobody waits for a signature, and for nothing else");
        assert_eq!(continued(&scene, &[DATA, 0, PAGE]).0, RsiStatus::ErrorState, "it was whole in one part");
        unsigned
    };
    assert_eq!(calls(1), 2, "the platform's and the realm's");
    assert_eq!(calls(2), 1, "the realm's");
}

#[test]
fn a_token_is_continued_only_after_its_beginning_and_each_condition_has_its_status() {
    let scene = Scene::active();
    let wrong = [
        ("addr_align", [DATA + 1, 0, 1]),
        ("addr_bound", [MAPPED, 0, 1]),
        ("addr_bound", [1 << WIDTH, 0, 1]),
        ("offset_bound", [DATA, PAGE, 0]),
        ("offset_bound", [DATA, u64::MAX, 0]),
        ("size_overflow", [DATA, 1, u64::MAX]),
        ("size_bound", [DATA, 1, PAGE]),
        ("size_bound", [DATA, 0, PAGE + 1]),
    ];
    let refused = |in_progress: bool| {
        for (id, args) in wrong {
            assert_eq!(continued(&scene, &args), (RsiStatus::ErrorInput, 0), "{id}, {in_progress}");
        }
    };
    // Without a token the inputs are looked at first, as in TF-RMM; the section leaves the order open.
    refused(false);
    assert_eq!(continued(&scene, &[DATA, 0, PAGE]), (RsiStatus::ErrorState, 0), "state");
    begun(&scene, [1; 8]);
    refused(true);
    let expected = fetched(&scene, [1; 8], PAGE);
    refused(false);
    assert_eq!(continued(&scene, &[DATA, 0, PAGE]), (RsiStatus::ErrorState, 0), "state");
    // Errors between its parts change nothing.
    begun(&scene, [1; 8]);
    while continued(&scene, &[DATA, 0, 100]).1 == 0 {}
    refused(true);
    assert_eq!(continued(&scene, &[DATA, 100, PAGE - 100]).0, RsiStatus::Success);
    assert_eq!(scene.fake.bytes::<4096>(scene.data[0])[..expected.len()], expected);
}

#[test]
fn a_beginning_ends_what_was_begun_and_is_the_recs_own() {
    let scene = Scene::active();
    let expected = fetched(&scene, [2; 8], PAGE);
    begun(&scene, [1; 8]);
    while continued(&scene, &[DATA, 0, 100]).1 == 0 {}
    assert_eq!(fetched(&scene, [2; 8], PAGE), expected);
    // The other REC of the realm has none, and this one's waits.
    begun(&scene, [2; 8]);
    scene.rec(1, |rec| rec.runnable.set(true));
    scene.rsi(RsiCommand::AttestationTokenContinue, &[DATA, 0, PAGE]);
    scene.irq();
    assert_eq!(scene.enter_rec(1, RmiRecEnter::zeroed()), RmiStatus::Success);
    assert_eq!(scene.rec(1, |rec| rec.vcpu.borrow().x[0]), RsiStatus::ErrorState.bits());
    while continued(&scene, &[DATA, 0, PAGE]).1 == 0 {}
    assert_eq!(scene.fake.bytes::<4096>(scene.data[0])[..expected.len()], expected);
}

/// A REC that goes off and is turned on again goes on from reset, but what it has of a token is no register.
#[test]
fn a_token_outlives_that_its_rec_is_off() {
    let scene = Scene::active();
    let expected = fetched(&scene, [1; 8], PAGE);
    begun(&scene, [1; 8]);
    while continued(&scene, &[DATA, 0, 100]).1 == 0 {}
    scene.smc(&[PsciCommand::CpuOff.fid().into()]);
    assert_eq!(scene.exit().exit_reason, RmiRecExitReason::Psci.bits());
    assert_eq!(scene.enter_rec(0, RmiRecEnter::zeroed()), RmiStatus::ErrorRec, "it is off");
    // The other one turns it on.
    scene.rec(1, |rec| rec.runnable.set(true));
    scene.smc(&[PsciCommand::CpuOn.fid().into(), 0, ENTRY, 0]);
    assert_eq!(scene.enter_rec(1, RmiRecEnter::zeroed()), RmiStatus::Success);
    scene.fake.ok(PsciComplete, &[scene.recs[1], scene.recs[0], 0]);
    assert_eq!(scene.vcpu().x[1..], [0; 30]);
    let rest = expected.len() as u64 - 100;
    assert_eq!(continued(&scene, &[DATA, 100, PAGE - 100]), (RsiStatus::Success, rest));
    assert_eq!(scene.fake.bytes::<4096>(scene.data[0])[..expected.len()], expected);
}

#[test]
fn a_new_rec_has_nothing_of_the_token_of_one_that_was_there() {
    // Whole, so that a byte that stayed would be one of it.
    let scene = Scene::active();
    begun(&scene, [1; 8]);
    while continued(&scene, &[DATA, 0, 100]).1 == 0 {}
    let (rec, aux) = (scene.recs[0], scene.rec(0, |rec| rec.aux.get()));
    assert_ne!(scene.fake.bytes::<4096>(aux), [0; 4096]);
    scene.fake.ok(RecDestroy, &[rec]);
    for granule in [rec, aux] {
        assert_eq!(scene.fake.is(granule), HostPage::Kept(Keeper::Delegated));
        assert_eq!(scene.fake.bytes::<4096>(granule), [0; 4096]);
    }
    // Another realm's REC on the same two granules.
    let mut other = Scene::on(scene.fake);
    scene.fake.rec_at(other.rd, rec, aux, scene.fake.granule());
    other.recs = vec![rec];
    scene.fake.ok(RealmActivate, &[other.rd]);
    assert_eq!(continued(&other, &[DATA, 0, PAGE]), (RsiStatus::ErrorState, 0));
    let token = fetched(&other, [2; 8], PAGE);
    assert!(holds(&token, &[2u64.to_le_bytes(); 8].concat()));
}

#[test]
fn a_token_goes_on_elsewhere_when_its_memory_was_given_up_between_two_parts() {
    let scene = Scene::active();
    let expected = fetched(&scene, [1; 8], PAGE);
    begun(&scene, [1; 8]);
    while continued(&scene, &[MORE, 0, 100]).1 == 0 {}
    // The realm says that there is nothing, and the host agrees.
    scene.rsi(RsiCommand::IpaStateSet, &[MORE, MORE + PAGE, 0, 0]);
    assert_eq!(scene.exit().exit_reason, RmiRecExitReason::RipasChange.bits());
    scene.fake.ok(RttSetRipas, &[scene.rd, scene.recs[0], MORE, MORE + PAGE]);
    scene.irq();
    scene.exit();
    assert_eq!(scene.vcpu().x[..2], [0, MORE + PAGE]);
    assert_eq!(continued(&scene, &[MORE, 100, PAGE - 100]), (RsiStatus::ErrorInput, 0));
    assert_eq!(continued(&scene, &[DATA, 100, 50]), (RsiStatus::Incomplete, 50), "nothing was lost");
    let rest = expected.len() as u64 - 150;
    assert_eq!(continued(&scene, &[DATA, 150, PAGE - 150]), (RsiStatus::Success, rest));
    assert_eq!(scene.fake.bytes::<4096>(scene.data[0])[100..expected.len()], expected[100..]);
}

#[test]
fn a_token_says_what_the_machine_shows_its_guests() {
    let scene = Scene::active();
    assert!(holds(&fetched(&scene, [1; 8], PAGE), b"the machine's own ID registers; calls told: none"));
    let other = Scene::active();
    *other.fake.cpus().advertised.lock().unwrap() = Advertised { bbm: Some(2), midr: None };
    assert!(holds(&fetched(&other, [1; 8], PAGE), b"guests are shown level 2 of FEAT_BBM; calls told: none"));
    let told = Scene::of(Fake::traced(64 << 20, Trace::new(OF_REALMS, |_| Ok(()), &KEPT))).activated(1);
    assert!(holds(&fetched(&told, [1; 8], PAGE), b"; calls told: of realms"));
    static KEPT: Kept = Kept::new();
    const OF_REALMS: Traced = Traced { rsi: true, ..Traced::NOTHING };
}

#[test]
fn a_token_goes_on_once_the_host_has_given_the_memory_for_it() {
    let scene = Scene::active();
    let expected = fetched(&scene, [1; 8], PAGE);
    begun(&scene, [1; 8]);
    assert_eq!(continued(&scene, &[DATA, 0, 0]), (RsiStatus::Incomplete, 0), "signed");
    for ipa in [EMPTY, SPARE] {
        assert_eq!(continued(&scene, &[ipa, 0, PAGE]), (RsiStatus::ErrorInput, 0), "nothing there");
    }
    let pc = scene.vcpu().pc;
    scene.rsi(RsiCommand::AttestationTokenContinue, &[ABSENT, 0, PAGE]);
    let exit = scene.exit();
    assert_eq!((exit.exit_reason, exit.hpfar), (RmiRecExitReason::Sync.bits(), ABSENT >> 8));
    assert_eq!(scene.vcpu().pc, pc, "it is executed again");
    let data = scene.fake.data(scene.rd, ABSENT);
    assert_eq!(continued(&scene, &[ABSENT, 0, PAGE]), (RsiStatus::Success, expected.len() as u64));
    assert_eq!(scene.fake.bytes::<4096>(data)[..expected.len()], expected);
}
