//! CPUs that come with their MMU off and are let in, in every schedule of two CPUs and each pair of levels; mistakes in that, each of which
//! is convicted; and three CPUs at random.

use hyp::caps::policy::{Late, Policy};
use hyp_model::faults::On;
use hyp_model::lifecycle::{Admitted, MISTAKES, Plan, Scenario};
use hyp_model::machine::Can;
use hyp_model::primitive::Draw;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

type Names = &'static [&'static str];

const NONE: Names = &[];
const WHOLE: Names = &["protect whole leaves"];

/// What the boot CPU calls before it lets the other in, and after that; what the other calls.
const PAIRS: [(Names, Names, Names); 2] = [
    (&[], &["unmap, map"], &["protect, two edges"]),
    (&["protect, one edge"], &["collapse"], &["split_to_pages"]),
];
const SPLITS: (Names, Names, Names) = (&[], &["protect, one edge"], &["protect, two edges"]);

fn levels() -> impl Iterator<Item = (u8, u8)> {
    (0..4).flat_map(|boot| (0..4).map(move |new| (boot, new)))
}

fn of(scenario: Scenario, (before, after, then): (Names, Names, Names)) -> Scenario {
    Scenario { before, after, then, ..scenario }
}

/// Explores what is right, in which the newcomer comes too late sometimes, and no request is refused.
fn explored(scenario: Scenario) -> Admitted {
    let admitted = scenario
        .explore(Plan::Right, None)
        .unwrap_or_else(|conviction| panic!("{scenario:?}: {} {conviction:?}", conviction.verdict));
    assert!(
        (admitted.unheard > 0) != scenario.patient && admitted.refused == 0,
        "{scenario:?}: {admitted:?}"
    );
    admitted
}

fn is_let_in(scenario: Scenario) -> usize {
    let admitted = explored(scenario);
    assert!(admitted.arrived > 0 && admitted.released > 0 && admitted.denied == 0, "{admitted:?}");
    let asked = [!(scenario.before.is_empty() && scenario.after.is_empty()), !scenario.then.is_empty()];
    for (cpu, asked) in asked.into_iter().enumerate() {
        assert_eq!(admitted.made[cpu] > 0, asked, "CPU {cpu} in {scenario:?}: {admitted:?}");
    }
    admitted.explored.states
}

fn each_pair_of_levels(on: On, policy: Policy) {
    let mut states = 0;
    // Pages come first, or at once, where the boot CPU is below level 3: so far the two policies are one.
    let has_row = |(boot, _): &(u8, u8)| policy != Policy::PagesFirst || *boot == 3;
    for (boot, new) in levels().filter(has_row) {
        for (number, calls) in PAIRS.into_iter().enumerate() {
            let scenario = Scenario { patient: number > 0, ..Scenario::new(on, boot, new, policy) };
            states += is_let_in(of(scenario, calls));
        }
    }
    println!("{on:?}, {policy:?}: {states} states");
}

#[test]
fn a_cpu_of_any_level_is_let_in_by_one_of_any_level_where_blocks_are_kept() {
    each_pair_of_levels(On::El2, Policy::KeepBlocks);
}

#[test]
fn a_cpu_of_any_level_is_let_in_by_one_of_any_level_where_blocks_are_repainted() {
    each_pair_of_levels(On::El2, Policy::Repaint);
}

#[test]
fn a_cpu_of_any_level_is_let_in_by_one_of_any_level_where_pages_come_first() {
    each_pair_of_levels(On::El2, Policy::PagesFirst);
}

#[test]
fn a_cpu_of_any_level_is_let_in_by_one_of_any_level_at_stage_2() {
    each_pair_of_levels(On::Stage2, Policy::KeepBlocks);
}

#[test]
fn both_split_one_block_as_soon_as_they_can() {
    let stage_2 = [(3, 0), (1, 2)].map(|levels| (On::Stage2, levels));
    let cases = levels().map(|levels| (On::El2, levels)).chain(stage_2);
    let both = |(on, (boot, new))| {
        let scenario = Scenario { patient: true, ..Scenario::new(on, boot, new, Policy::KeepBlocks) };
        is_let_in(of(scenario, SPLITS))
    };
    let states: usize = cases.map(both).sum();
    println!("both split: {states} states");
}

/// On some pairs of levels, on each ground.
fn some(change: impl Fn(Scenario) -> Scenario) -> usize {
    let maps = [
        (On::El2, Policy::KeepBlocks),
        (On::El2, Policy::Repaint),
        (On::El2, Policy::PagesFirst),
        (On::Stage2, Policy::KeepBlocks),
    ];
    let pairs = maps.into_iter().flat_map(|map| [(3, 0), (3, 3), (1, 2)].map(|levels| (map, levels)));
    pairs.map(|((on, policy), (boot, new))| is_let_in(change(Scenario::new(on, boot, new, policy)))).sum()
}

#[test]
fn a_cpu_that_went_off_is_let_in_again() {
    let calls: (Names, Names, Names) = (&[], &["protect, one edge"], &["translate, walk"]);
    println!("again: {} states", some(|scenario| of(Scenario { lives: 2, ..scenario }, calls)));
}

#[test]
fn a_cpu_comes_back_from_a_suspend_that_has_lost_its_context() {
    let calls: (Names, Names, Names) = (&[], &["protect, one edge"], &["translate, walk"]);
    let back = |scenario| of(Scenario { lives: 2, suspends: true, ..scenario }, calls);
    println!("suspended: {} states", some(back));
}

#[test]
fn a_weaker_cpu_is_let_in_when_all_were_known() {
    println!("late: {} states", some(|scenario| of(Scenario { known: 1, ..scenario }, PAIRS[0])));
}

#[test]
fn what_a_cpu_lacks_beside_its_level_counts_too() {
    let boot = Can::of(3);
    for new in [
        Can { range: false, ..boot },
        Can { ttl: false, ..boot },
        Can { once: false, ..boot },
        Can { bbm: 1, range: false, ttl: false, once: false },
    ] {
        for (boot, new) in [(boot, new), (new, boot)] {
            for (on, policy) in [(On::El2, Policy::PagesFirst), (On::Stage2, Policy::KeepBlocks)] {
                // Pages, for which a range form would do.
                for calls in [(NONE, WHOLE, NONE), (NONE, NONE, WHOLE)] {
                    let scenario = Scenario { boot, new, known: 3, ..Scenario::new(on, 0, 0, policy) };
                    is_let_in(of(scenario, calls));
                }
            }
        }
    }
}

#[test]
fn who_comes_late_and_weaker_is_denied_if_the_embedder_wants_it_and_turns_itself_off() {
    for (boot, new) in levels() {
        let scenario =
            Scenario { late: Late::Deny, known: 1, ..Scenario::new(On::El2, boot, new, Policy::KeepBlocks) };
        let admitted = explored(of(scenario, PAIRS[0]));
        assert_eq!((admitted.denied > 0, admitted.released > 0), (new < boot, new >= boot), "{admitted:?}");
        assert_eq!(admitted.arrived > 0, new >= boot, "{admitted:?}");
    }
}

#[test]
fn who_cannot_be_repainted_for_is_denied_and_nothing_has_changed() {
    let scenario = Scenario { tables: 2, ..Scenario::new(On::El2, 3, 0, Policy::Repaint) };
    // A whole leaf takes no table.
    let admitted = explored(of(scenario, (NONE, WHOLE, NONE)));
    assert!(admitted.denied > 0 && admitted.arrived == 0 && admitted.made[0] > 0, "{admitted:?}");
}

#[test]
fn what_began_under_the_larger_set_is_waited_for() {
    let scenario =
        Scenario { third: &["split_at"], patient: true, ..Scenario::new(On::El2, 3, 0, Policy::KeepBlocks) };
    let admitted = explored(scenario);
    assert!(admitted.arrived > 0 && admitted.made[2] > 0, "{admitted:?}");
    println!("three CPUs: {} states", admitted.explored.states);
}

#[test]
fn every_mistake_is_convicted_for_what_it_is() {
    let mut survivors = Vec::new();
    for mistake in MISTAKES {
        match mistake.scenario.explore(mistake.plan, mistake.fault) {
            Ok(admitted) => survivors.push(format!("{}: survived {admitted:?}", mistake.name)),
            Err(conviction) if conviction.verdict.kind != mistake.kind => {
                survivors.push(format!("{}: {:?} for {}", mistake.name, mistake.kind, conviction.verdict));
            }
            Err(_) => {}
        }
    }
    assert!(survivors.is_empty(), "{}", survivors.join("\n"));
}

#[test]
fn the_same_without_the_mistake_is_right() {
    // With three CPUs it is a test of its own.
    for mistake in MISTAKES.iter().filter(|mistake| mistake.scenario.third.is_empty()) {
        let right = mistake.scenario.explore(Plan::Right, None);
        assert!(right.is_ok(), "{}: {}", mistake.name, right.unwrap_err().verdict);
    }
}

struct Random(SmallRng);

impl Draw for Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0.next_u64() % limit
    }
}

/// `CLOVEN_SEED` as for the other random tests.
#[test]
fn three_cpus_at_random_are_right_while_one_is_let_in() {
    let seed: u64 = std::env::var("CLOVEN_SEED").map_or(1, |text| text.parse().unwrap());
    let mut sum = [0; 4];
    for (boot, new) in levels() {
        for (number, (on, policy)) in [
            (On::El2, Policy::KeepBlocks),
            (On::El2, Policy::Repaint),
            (On::El2, Policy::PagesFirst),
            (On::Stage2, Policy::KeepBlocks),
        ]
        .into_iter()
        .enumerate()
        {
            let lives = 1 + u64::from(boot + new) % 2;
            let scenario = Scenario { lives, known: 1 + number % 3, ..Scenario::new(on, boot, new, policy) };
            let scenario = of(scenario, SPLITS);
            for round in 0..40 {
                let case = (u64::from(boot) << 8 | u64::from(new) << 4 | number as u64) << 6 | round;
                let draw = |cpu| Random(SmallRng::seed_from_u64(seed << 20 | case << 4 | cpu));
                match scenario.run_random(Plan::Right, 12, draw) {
                    Ok(run) => {
                        sum[0] += run.arrived;
                        sum[1] += run.unheard;
                        sum[2] += run.explored.longest;
                        sum[3] += 1;
                    }
                    Err(conviction) => panic!("seed {seed}, {scenario:?}: {conviction:?}"),
                }
            }
        }
    }
    println!("arrived, unheard, steps, runs: {sum:?}");
    assert!(sum[0] > sum[3] / 4 && sum[1] > 0);
}
