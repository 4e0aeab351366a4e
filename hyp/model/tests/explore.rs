//! Every schedule of each primitive, and of each two, on small tables; and of primitives while hardware sets flags.

use hyp::mapping::{El2, Stage2, Tiny};
use hyp_model::faults::On;
use hyp_model::machine::Mark;
use hyp_model::primitive::{Ground, Trial, Tried, primitives};
use hyp_model::survey::{PAIRS, each, pairs};

fn each_is_right(on: On) {
    let rows = each(on)
        .unwrap_or_else(|(names, trial, conviction)| panic!("{names:?} on {trial:?}: {conviction:?}"));
    for row in rows {
        // A map of one ASID has no other memory type to offer.
        let refused = on == On::El1 && row.names == ["protect, memory type"];
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
