//! RMI_REC_AUX_COUNT, RMI_REC_CREATE, RMI_REC_DESTROY.

use super::*;
use hyp::mapping::Address;
use hyp::owner::{Keeper, Purpose};

#[test]
fn a_rec_needs_one_auxiliary_granule() {
    let scene = Scene::new();
    assert_eq!(scene.fake.ok(RecAuxCount, &[scene.rd])[1], 1);
    // rd_align, rd_bound, rd_state.
    for rd in [scene.rd + 1, DEVICE, scene.run, !0xfff] {
        assert_eq!(scene.fake.status(RecAuxCount, &[rd]), RmiStatus::ErrorInput, "{rd:#x}");
    }
}

#[test]
fn a_rec_begins_as_its_parameters_say() {
    let scene = Scene::with_recs(1);
    let vcpu = scene.vcpu();
    let mut x = [0; 31];
    x[..8].copy_from_slice(&[1, 2, 3, 4, 5, 6, 7, 8]);
    let reset = Vcpu::reset(mpidr_el1(RmiRecMpidr::from_index(0)));
    assert_eq!(vcpu, Vcpu { x, pc: ENTRY, ..reset });
    assert_eq!(scene.realm(|realm| (realm.rec_index.get(), realm.num_recs.get())), (1, 1));
}

#[test]
fn only_a_rec_that_may_run_is_measured() {
    let scene = Scene::new();
    let rim = |scene: &Scene| scene.realm(|realm| realm.measurements.borrow()[0]);
    let before = rim(&scene);
    scene.fake.ok(RecCreate, &[scene.rd, scene.fake.delegated(), rec_params(scene.fake, 0, false)]);
    assert_eq!(rim(&scene), before);
    scene.fake.ok(RecCreate, &[scene.rd, scene.fake.delegated(), rec_params(scene.fake, 1, true)]);
    let content = {
        let mut params = [0u8; 4096];
        params[0] = 1;
        params[0x200..0x208].copy_from_slice(&ENTRY.to_le_bytes());
        for (index, byte) in (0x300..0x340).step_by(8).enumerate() {
            params[byte] = index as u8 + 1;
        }
        sha(&params)
    };
    // C1.12: type 1, length, RIM, content.
    let mut descriptor = [0u8; 0x100];
    descriptor[0] = 1;
    descriptor[9] = 1;
    descriptor[0x10..0x50].copy_from_slice(&before);
    descriptor[0x50..0x70].copy_from_slice(&content);
    assert_eq!(rim(&scene)[..32], sha(&descriptor));
}

#[test]
fn a_rec_is_not_created_of_wrong_things() {
    let scene = Scene::new();
    let fake = scene.fake;
    let (rd, rec, params) = (scene.rd, fake.delegated(), rec_params(fake, 0, true));
    let params_at = params;
    let with = |change: &dyn Fn(&mut RmiRecParams)| {
        let mut params: RmiRecParams = fake.get(params);
        change(&mut params);
        fake.put(&params)
    };
    let input = RmiStatus::ErrorInput;
    let cases = [
        ("params_align", [rd, rec, params + 8], input),
        ("params_bound", [rd, rec, DEVICE], input),
        ("params_bound", [rd, rec, !0xfff], input),
        ("params_pas", [rd, rec, fake.delegated()], input),
        ("rec_align", [rd, rec + 8, params], input),
        ("rec_bound", [rd, DEVICE, params], input),
        ("rec_state", [rd, fake.granule(), params], input),
        ("rec_state", [rd, rd, params], input),
        ("rd_align", [rd + 8, rec, params], input),
        ("rd_bound", [DEVICE, rec, params], input),
        ("rd_state", [fake.delegated(), rec, params], input),
        ("mpidr_index", [rd, rec, with(&|params| params.mpidr = RmiRecMpidr::from_index(1))], input),
        ("num_aux", [rd, rec, with(&|params| params.num_aux = 0)], input),
        ("num_aux", [rd, rec, with(&|params| params.num_aux = 2)], input),
        ("num_aux", [rd, rec, with(&|params| params.num_aux = u64::MAX)], input),
        ("aux_align", [rd, rec, with(&|params| params.aux[0] += 8)], input),
        ("aux_alias", [rd, rec, with(&|params| params.aux[0] = rec)], input),
        ("aux_state", [rd, rec, with(&|params| params.aux[0] = fake.granule())], input),
        ("aux_state", [rd, rec, with(&|params| params.aux[0] = rd)], input),
        ("aux_state", [rd, rec, with(&|params| params.aux[0] = scene.data[0])], input),
        ("aux_state", [rd, rec, with(&|params| params.aux[0] = params_at)], input),
        ("aux_state", [rd, rec, with(&|params| params.aux[0] = DEVICE)], input),
        ("aux_state", [rd, rec, with(&|params| params.aux[0] = !0xfff)], input),
    ];
    for (id, args, expected) in cases {
        assert_eq!(fake.status(RecCreate, &args), expected, "{id}");
    }
    // num_recs.
    let most = (1 << MAX_RECS_ORDER) - 1;
    scene.realm(|realm| realm.num_recs.set(most));
    assert_eq!(fake.status(RecCreate, &[rd, rec, params]), RmiStatus::ErrorRealm(0));
    scene.realm(|realm| realm.num_recs.set(0));
    // realm_state.
    scene.realm(|realm| realm.state.set(RealmState::Active));
    assert_eq!(fake.status(RecCreate, &[rd, rec, params]), RmiStatus::ErrorRealm(0));
    // [rd_bound, rd_state] < [realm_state, num_recs].
    assert_eq!(fake.status(RecCreate, &[fake.delegated(), rec, params]), input);
    scene.realm(|realm| realm.state.set(RealmState::New));
    // None of it has changed anything.
    assert_eq!(scene.realm(|realm| (realm.rec_index.get(), realm.num_recs.get())), (0, 0));
    fake.ok(RecCreate, &[rd, rec, params]);
}

#[test]
fn a_rec_is_destroyed_unless_it_runs() {
    let scene = Scene::active();
    let (fake, rec) = (scene.fake, scene.recs[0]);
    for (id, rec) in [
        ("rec_align", rec + 8),
        ("rec_bound", DEVICE),
        ("rec_gran_state", scene.rd),
        ("rec_gran_state", HOST),
    ] {
        assert_eq!(fake.status(RecDestroy, &[rec]), RmiStatus::ErrorInput, "{id}");
    }
    // rec_state; and nobody else enters it.
    let run = scene.run;
    scene.step(move |_| {
        assert_eq!(fake.status(RecDestroy, &[rec]), RmiStatus::ErrorRec);
        assert_eq!(fake.status(RecEnter, &[rec, run]), RmiStatus::ErrorRec);
        Exit::Irq
    });
    scene.exit();
    let is_delegated = |rec| fake.is(rec) == HostPage::Kept(Keeper::Delegated);
    let aux = scene.rec(0, |rec| rec.aux.get());
    assert_eq!(fake.is(aux), HostPage::Kept(Keeper::Realm(1, Purpose::Aux)));
    assert!(!is_delegated(rec));
    // Nor is it a REC itself, or delegated, or anything else that a command takes.
    assert_eq!(fake.status(RecDestroy, &[aux]), RmiStatus::ErrorInput);
    assert_eq!(fake.status(RecEnter, &[aux, run]), RmiStatus::ErrorInput);
    assert_eq!(fake.status(GranuleUndelegate, &[aux]), RmiStatus::ErrorInput);
    fake.ok(RecDestroy, &[rec]);
    assert!(is_delegated(rec) && is_delegated(aux));
    // Whatever was in them.
    assert_eq!((fake.bytes::<4096>(rec), fake.bytes::<4096>(aux)), ([0; 4096], [0; 4096]));
    assert_eq!(scene.realm(|realm| (realm.rec_index.get(), realm.num_recs.get())), (2, 1));
}
