//! A realm that does anything.

use super::*;

#[test]
fn whatever_a_realm_does_the_host_sees_no_more_than_it_may() {
    use rand::rngs::SmallRng;
    use rand::{Rng, RngExt, SeedableRng};
    let scene = Scene::with_recs(3);
    let fake = scene.fake;
    let seed = std::env::var("CLOVEN_SEED").map_or(1, |text| text.parse().unwrap());
    let rounds = 10_000;
    let mut random = SmallRng::seed_from_u64(seed);
    let ipas =
        [DATA, MORE, ABSENT, EMPTY, DESTROYED, SPARE, MAPPED, UNMAPPED, BASE - PAGE, SHARED - PAGE, 1 << 41];
    let mut reasons = [0; 7];
    for round in 0..rounds {
        let value = |random: &mut SmallRng| match random.random_range(0..5) {
            0 => random.next_u64(),
            1 => random.random_range(0..8),
            2 => ipas[random.random_range(0..ipas.len())] + random.random_range(0..4) * 0x100,
            3 => u64::MAX << random.random_range(0..64),
            _ => ipas[random.random_range(0..ipas.len())],
        };
        for _ in 0..random.random_range(1..6) {
            let fids: Vec<u32> = RsiCommand::ALL
                .iter()
                .map(|command| command.fid())
                .chain(PsciCommand::ALL.iter().filter(|c| !c.name().contains("SYSTEM")).map(|c| c.fid()))
                .collect();
            let mut x: [u64; 31] = core::array::from_fn(|_| value(&mut random));
            if random.random_bool(0.8) {
                x[0] = fids[random.random_range(0..fids.len())].into();
            }
            if random.random_bool(0.5) {
                let page = |random: &mut SmallRng| BASE + random.random_range(0..8) * PAGE;
                (x[1], x[2], x[3]) = (page(&mut random), page(&mut random), random.random_range(0..2));
                let exiting = [RsiCommand::IpaStateSet, RsiCommand::HostCall];
                x[0] = exiting[random.random_range(0..2)].fid().into();
            }
            let ec = [0x17, 0x17, 0x24, 0x24, 0x20, 0x18, 0x01, 0x16][random.random_range(0..8)];
            let iss = random.next_u64() & 0x3ff_ffff;
            let iss = if ec == 0x17 && random.random_bool(0.9) { 0 } else { iss };
            let fault = if random.random_bool(0.5) { iss & !0x3f | 0x07 } else { iss };
            let (far, ipa) = (value(&mut random), ipas[random.random_range(0..ipas.len())]);
            let esr = ec << 26 | if matches!(ec, 0x20 | 0x24) { fault } else { iss };
            scene.step(move |vcpu| {
                vcpu.x = x;
                vcpu.gic.hcr = far;
                synchronous(esr, far, ipa)
            });
        }
        let last = [Exit::Irq, Exit::Fiq, Exit::SError { esr: random.next_u64() }][random.random_range(0..3)];
        scene.step(move |_| last);
        let mut enter = flagged(RmiRecEnterFlags::from_bits_retain(random.random_range(0..32)));
        enter.gprs = core::array::from_fn(|_| value(&mut random));
        // As a host has to, and often does not.
        if let Pending::Psci(_) = scene.rec(0, |rec| rec.pending.get()) {
            let target = scene.recs[random.random_range(1..3)];
            fake.status(PsciComplete, &[scene.recs[0], target, 0]);
        }
        let status = scene.enter_rec(0, enter);
        fake.cpus().script.lock().unwrap().clear();
        scene.rec(0, |rec| {
            assert_eq!(rec.state.get(), RecState::Ready);
            rec.runnable.set(true);
            if round % 50 == 49 {
                rec.pending.set(Pending::None);
            }
        });
        if status != RmiStatus::Success {
            assert_eq!(status, RmiStatus::ErrorRec, "round {round}");
            continue;
        }
        let exit: RmiRecExit = fake.get(scene.run + 0x800);
        reasons[usize::from(exit.exit_reason)] += 1;
        check_masks(&exit, round);
    }
    assert!(reasons.iter().all(|&count| count > rounds / 500), "{reasons:?}");
}

/// What A4.3 lets the host see for each reason.
fn check_masks(exit: &RmiRecExit, round: usize) {
    let mut masked = exit.clone();
    masked.gicv3_hcr &= 0b1111_1110 | 1 << 14 | 0x1f << 27;
    masked.far &= 0xfff;
    masked.hpfar &= 0xffff_ffff_fff0;
    let reason = RmiRecExitReason::from_bits(exit.exit_reason).unwrap();
    if reason != RmiRecExitReason::HostCall {
        masked.imm = 0;
        masked.gprs[4..].fill(0);
    }
    if !matches!(reason, RmiRecExitReason::HostCall | RmiRecExitReason::Psci) {
        masked.gprs[1..].fill(0);
    }
    if reason != RmiRecExitReason::RipasChange {
        (masked.ripas_base, masked.ripas_top, masked.ripas_value) = (0, 0, 0);
    } else {
        assert!(
            masked.ripas_base < masked.ripas_top && masked.ripas_top <= SHARED && masked.ripas_value <= 1
        );
    }
    let is_unprotected = exit.hpfar << 8 & SHARED != 0;
    // In numbers, as the code has them by name.
    masked.esr &= match (reason, exit.esr >> 26) {
        // EC, TI
        (RmiRecExitReason::Sync, 0x01) => 0xfc00_0003,
        // EC, ISS
        (RmiRecExitReason::Sync, 0x18) => 0xfdff_ffff,
        // EC, SET, EA, IFSC
        (RmiRecExitReason::Sync, 0x20) => 0xfc00_1a3f,
        // EC, ISV, SAS, SF, SET, FnV, EA, WnR, DFSC
        (RmiRecExitReason::Sync, 0x24) if is_unprotected && exit.esr & ISV != 0 => 0xfdc0_9e7f,
        // EC, IL, SET, FnV, EA, DFSC
        (RmiRecExitReason::Sync, 0x24) if is_unprotected => 0xfe00_1e3f,
        // EC, SET, FnV, EA, DFSC
        (RmiRecExitReason::Sync, 0x24) => 0xfc00_1e3f,
        // EC, IDS, AET, EA, DFSC
        (RmiRecExitReason::Serror, _) => 0xfd00_1e3f,
        _ => 0,
    };
    if exit.esr >> 26 != 0x24 || exit.esr & ISV == 0 {
        masked.far = 0;
        let may_tell = !matches!(reason, RmiRecExitReason::Sync) || matches!(exit.esr >> 26, 0x01 | 0x18);
        if !may_tell {
            masked.gprs[0] = 0;
        }
    }
    if matches!(reason, RmiRecExitReason::Irq | RmiRecExitReason::Fiq | RmiRecExitReason::RipasChange) {
        masked.gprs[0] = 0;
        masked.hpfar = 0;
    }
    assert_eq!(*exit, masked, "round {round}");
}
