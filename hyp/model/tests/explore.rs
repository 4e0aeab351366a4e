//! Every schedule of each primitive, and of each two, on small tables.

use hyp::mapping::{El1And0, El2, Stage2, Tag, Tiny};
use hyp_model::primitive::{Ground, Trial, Tried, primitives};

/// Each primitive beside CPUs that only translate, on every ground and machine.
fn each<R: Tried>() {
    let mut made = vec![0; primitives::<R, Tiny>().len()];
    for (number, primitive) in primitives::<R, Tiny>().iter().enumerate() {
        let mut states = 0;
        for bbm in 0..4 {
            for ground in Ground::ALL {
                for (more, once, quiesce) in [(false, true, true), (true, true, true), (true, false, false)] {
                    let trial = Trial { more, once, quiesce, ..Trial::new(bbm, ground) };
                    match trial.explore(&[primitive], None, |_, _| {}) {
                        Ok((explored, times)) => {
                            states += explored.states;
                            made[number] += times[0];
                        }
                        Err(conviction) => panic!("{} on {trial:?}: {conviction:?}", primitive.name),
                    }
                }
            }
        }
        println!("{:<12} {:<24} {states:>8} states", R::NAME, primitive.name);
        // A map of one ASID has no other memory type to offer.
        let offered = R::TAG == Tag::All || primitive.name != "protect, memory type";
        assert!(made[number] > 0 || !offered, "{} was never made", primitive.name);
    }
}

/// Each two primitives at once.
fn pairs<R: Tried>(trial: Trial) {
    let all = primitives::<R, Tiny>();
    let mut sum = 0;
    for (number, one) in all.iter().enumerate() {
        for two in &all[number..] {
            match trial.explore(&[one, two], None, |_, _| {}) {
                Ok((explored, _)) => {
                    sum += explored.states;
                    if explored.states > 150_000 {
                        println!("{} and {}: {}", one.name, two.name, explored.states);
                    }
                }
                Err(conviction) => panic!("{} and {} on {trial:?}: {conviction:?}", one.name, two.name),
            }
        }
    }
    println!("{:<12} {trial:?}: {sum} states of {} pairs", R::NAME, all.len() * (all.len() + 1) / 2);
}

#[test]
fn each_primitive_at_el2() {
    each::<El2>();
}

#[test]
fn each_primitive_at_el1_and_0_with_an_asid() {
    each::<El1And0>();
}

#[test]
fn each_primitive_at_stage_2() {
    each::<Stage2>();
}

#[test]
fn each_two_at_el2_in_place() {
    pairs::<El2>(Trial::new(3, Ground::Block));
}

#[test]
fn each_two_at_el2_behind_quiescence() {
    pairs::<El2>(Trial::new(0, Ground::Block));
}

#[test]
fn each_two_at_el1_and_0_in_place_in_a_run() {
    pairs::<El1And0>(Trial::new(3, Ground::Pages));
}

#[test]
fn each_two_at_stage_2_with_breaks() {
    pairs::<Stage2>(Trial::new(0, Ground::Block));
}

#[test]
fn each_two_at_stage_2_where_runs_change_in_place() {
    pairs::<Stage2>(Trial::new(1, Ground::Pages));
}

#[test]
fn each_two_at_stage_2_where_conflicts_are_answered() {
    pairs::<Stage2>(Trial::new(2, Ground::Block));
}
