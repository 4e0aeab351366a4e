//! Random calls of several CPUs on tables of 512, in random schedules: `CLOVEN_SEED` and `CLOVEN_OPERATIONS` as for the engine's own tests.

use hyp::mapping::{El1And0, El2, Granule4K, Stage2, Tiny};
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
            let run = run_random::<R, Granule4K, _>(trial, cpus, calls, draw);
            println!("{} {trial:?} {cpus} CPUs: {run:?}", R::NAME);
            assert!(run.is_ok(), "seed {seed}, {trial:?}: {}", run.unwrap_err().verdict);
            let run = run_random::<R, Tiny, _>(trial, cpus, 5 * calls, draw);
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
