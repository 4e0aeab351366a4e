//! Random calls of several CPUs on tables of 512, in random schedules: `CLOVEN_SEED` and `CLOVEN_OPERATIONS` as for the engine's own tests.

use hyp::mapping::{El1And0, El2, Granule4K, Stage2, Tiny};
use hyp_model::faults::FAULTS;
use hyp_model::primitive::{Draw, Ground, Trial, Tried, run_random};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

struct Random(SmallRng);

impl Draw for Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0.next_u64() % limit
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

fn random<R: Tried>() {
    let seed = number("CLOVEN_SEED", 1);
    // A call takes a hundred times what it takes in the engine's own tests.
    let calls = number("CLOVEN_OPERATIONS", 20_000) as usize / 100;
    let calls = calls.min(2_000);
    for bbm in 0..4 {
        for (round, cpus) in [2, 3].into_iter().enumerate() {
            let trial =
                Trial { more: (bbm + cpus as u8).is_multiple_of(2), ..Trial::new(bbm, Ground::Block) };
            let draw = |cpu| {
                let case = u64::from(bbm) << 8 | (round as u64) << 4 | cpu;
                Random(SmallRng::seed_from_u64(seed * 10_000 + case))
            };
            let run = run_random::<R, Granule4K, _>(trial, (cpus, calls), None, draw);
            println!("{} {trial:?} {cpus} CPUs: {run:?}", R::NAME);
            assert!(run.is_ok(), "seed {seed}, {trial:?}: {}", run.unwrap_err().verdict);
            let run = run_random::<R, Tiny, _>(trial, (cpus, 5 * calls), None, draw);
            assert!(run.is_ok(), "seed {seed}, {trial:?}, small: {}", run.unwrap_err().verdict);
        }
    }
}

#[test]
fn random_calls_at_el2_are_right() {
    random::<El2>();
}

#[test]
fn random_calls_at_el1_and_0_are_right() {
    random::<El1And0>();
}

#[test]
fn random_calls_at_stage_2_are_right() {
    random::<Stage2>();
}

#[test]
fn random_calls_on_large_tables_convict_too() {
    // On the machine that each mistake needs; the same mistakes are explored on small tables.
    for (name, stage_2, bbm) in [
        ("no DSB between the stores and the TLBI", false, 3),
        ("no DSB after the TLBI", false, 3),
        ("a table linked by a plain store", false, 3),
        ("a table filled up to the last word but one", false, 3),
        ("no TLBI", false, 0),
        ("a broken entry that is empty: the guest's fault is believed", true, 0),
        ("a break skipped at level 0", true, 0),
        ("an address form where ALL is needed", true, 2),
        ("no invalidation of what combines both stages", true, 3),
        ("the memory type is not inherited by a split", false, 3),
        ("a run that lacks its last leaf", true, 0),
        ("a table given back before the flush", false, 3),
        ("a table that is not given back", false, 3),
    ] {
        let fault = FAULTS.iter().find(|fault| fault.name == name).expect("there is such a fault");
        let trial = Trial::new(bbm, Ground::Block);
        let draw = |cpu| Random(SmallRng::seed_from_u64(256 | cpu));
        let run = match stage_2 {
            true => run_random::<Stage2, Granule4K, _>(trial, (2, 200), Some(fault), draw),
            false => run_random::<El2, Granule4K, _>(trial, (2, 200), Some(fault), draw),
        };
        match run {
            Ok(steps) => panic!("{name}: survived {steps} steps"),
            Err(conviction) => {
                println!("{name}: {:?} after {} steps", conviction.verdict.kind, conviction.steps)
            }
        }
    }
}
