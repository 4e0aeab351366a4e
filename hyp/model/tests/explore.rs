//! Every schedule of each primitive, and of each two, on small tables; and of primitives while hardware sets flags.

use hyp::mapping::{El1And0, El2, Options, Stage2, Tag, Tiny};
use hyp_model::faults::On;
use hyp_model::machine::{Config, Mark};
use hyp_model::primitive::{Ground, Trial, Tried, destroy, primitives};
use hyp_model::survey::{PAIRS, each, pairs};
use hyp_model::verdict::Kind;

fn each_is_right(on: On) {
    let rows = each(on)
        .unwrap_or_else(|(names, trial, conviction)| panic!("{names:?} on {trial:?}: {conviction:?}"));
    for row in rows {
        // A map of one ASID has no other memory type to offer.
        let refused =
            on == On::El1 && ["protect, memory type", "invalidate, retype, validate"].contains(&row.names[0]);
        assert!(row.made[0] || refused, "{:?} was never made", row.names);
    }
}

fn pairs_are_right(number: usize) {
    let (on, trial) = PAIRS[number];
    let rows = pairs(on, trial);
    let rows =
        rows.unwrap_or_else(|(names, trial, conviction)| panic!("{names:?} on {trial:?}: {conviction:?}"));
    let states: usize = rows.iter().map(|row| row.states).sum();
    println!("{on:?}, level {}, {:?}: {states} states of {} pairs", trial.bbm, trial.ground, rows.len());
    // Two of one kind meet, or this would be as many states as steps.
    assert!(states > 100 * rows.len());
}

#[test]
fn each_primitive_is_right_at_el2() {
    each_is_right(On::El2);
}

#[test]
fn each_primitive_is_right_at_el1_and_0() {
    each_is_right(On::El1);
}

#[test]
fn each_primitive_is_right_at_stage_2() {
    each_is_right(On::Stage2);
}

#[test]
fn each_two_are_right_at_el2_in_place() {
    pairs_are_right(0);
}

#[test]
fn each_two_are_right_at_el2_behind_quiescence() {
    pairs_are_right(1);
}

#[test]
fn each_two_are_right_at_el1_and_0_in_place_in_runs() {
    pairs_are_right(2);
}

#[test]
fn each_two_are_right_at_stage_2_with_breaks() {
    pairs_are_right(3);
}

#[test]
fn each_two_are_right_at_stage_2_where_runs_change_in_place() {
    pairs_are_right(4);
}

#[test]
fn each_two_are_right_at_stage_2_where_conflicts_are_answered() {
    pairs_are_right(5);
}

/// Hardware marks the first page before each step in turn; nothing that keeps the page loses the mark.
fn marks_are_kept<R: Tried>() {
    // Those that take away what a dirty page needs are left out: a page that is made read-only is dirty no more.
    let kept = ["split_at", "split_edges", "split_to_pages", "split_entry", "collapse", "split, collapse"];
    for primitive in primitives::<R, Tiny>().iter().filter(|one| kept.contains(&one.name)) {
        for (bbm, dirty, step) in (0..4)
            .flat_map(|bbm| [false, true].map(|dirty| (bbm, dirty)))
            .flat_map(|(b, d)| (8..70).map(move |s| (b, d, s)))
        {
            let trial = Trial::new(bbm, Ground::Marked);
            let result = trial.explore(&[primitive], None, |options, config| {
                options.hardware_updates = true;
                config.hardware = true;
                config.mark = Some(Mark { step, address: 0, dirty });
            });
            assert!(
                result.is_ok(),
                "{} at step {step} on {trial:?}: {:?}",
                primitive.name,
                result.unwrap_err()
            );
        }
    }
}

#[test]
fn no_access_or_dirty_flag_is_lost_at_el2() {
    marks_are_kept::<El2>();
}

#[test]
fn no_access_or_dirty_flag_is_lost_at_stage_2() {
    marks_are_kept::<Stage2>();
}

/// What the first CPU does beside one that splits, with more said to engine and machine alike.
fn kinds_of_maps_are_right<R: Tried>(say: impl Fn(&mut Options, &mut Config)) {
    let all = primitives::<R, Tiny>();
    let split = all.iter().find(|one| one.name == "split_to_pages").unwrap();
    for primitive in &all {
        for (bbm, ground) in [(0, Ground::Pages), (3, Ground::Block)] {
            let trial = Trial::new(bbm, ground);
            let result = trial.explore(&[primitive, split], None, &say);
            assert!(result.is_ok(), "{} on {trial:?}: {:?}", primitive.name, result.unwrap_err());
        }
    }
}

#[test]
fn maps_of_the_upper_half_are_right() {
    kinds_of_maps_are_right::<El1And0>(|options, config| {
        options.upper_half = true;
        config.layout.upper_half = true;
    });
}

#[test]
fn maps_that_several_address_spaces_share_are_right() {
    kinds_of_maps_are_right::<El1And0>(|options, config| {
        options.tag = Tag::All;
        config.asids = [5, 6, 7, 8];
    });
}

#[test]
fn each_two_are_right_where_invalidations_are_repeated() {
    let trial = Trial { once: false, ..Trial::new(2, Ground::Block) };
    let all = primitives::<Stage2, Tiny>();
    for primitive in &all {
        let result = trial.explore(&[primitive, &all[7]], None, |_, _| {});
        assert!(result.is_ok(), "{}: {:?}", primitive.name, result.unwrap_err());
    }
}

#[test]
fn a_map_is_given_up_when_no_cpu_translates_through_it() {
    for bbm in 0..4 {
        for ground in Ground::ALL {
            let trial = Trial::new(bbm, ground);
            assert_eq!(destroy::<El2, Tiny>(trial, true), None);
            assert_eq!(destroy::<El1And0, Tiny>(trial, true), None);
            assert_eq!(destroy::<Stage2, Tiny>(trial, true), None);
            let kind = destroy::<El2, Tiny>(trial, false).map(|verdict| verdict.kind);
            assert_eq!(kind, Some(Kind::ReusedWhileHeld));
        }
    }
}

#[test]
fn who_changes_a_table_in_a_run_as_soon_as_it_is_linked_is_not_undone_by_the_rest_of_the_run() {
    fn is_right<R: Tried>(bbm: u8) {
        let all = primitives::<R, Tiny>();
        let named = |name: &str| all.iter().find(|one| one.name == name).unwrap();
        // Two blocks that are a run; one of the two becomes a table, or both.
        for first in ["protect, one edge", "split_to_pages", "split_at"] {
            let trial = Trial::new(bbm, Ground::Blocks);
            let calls = [named(first), named("protect, two edges")];
            let result = trial.explore(&calls, None, |_, _| {});
            assert!(result.is_ok(), "{first} on {trial:?}: {}", result.unwrap_err().verdict);
        }
    }
    is_right::<El2>(3);
    is_right::<Stage2>(2);
}
