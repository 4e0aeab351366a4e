//! Every planted mistake is convicted, for what it is.

use hyp_model::faults::{FAULTS, explore_without};

#[test]
fn every_planted_fault_is_convicted_for_what_it_is() {
    let mut survivors = Vec::new();
    for fault in FAULTS {
        match fault.explore() {
            Ok(explored) => survivors.push(format!("{}: survived {} states", fault.name, explored.states)),
            Err(conviction) if conviction.verdict.kind != fault.kind => {
                survivors.push(format!("{}: {:?} for {}", fault.name, fault.kind, conviction.verdict));
            }
            Err(_) => {}
        }
    }
    assert!(survivors.is_empty(), "{}", survivors.join("\n"));
    assert!(FAULTS.len() >= 40);
}

#[test]
fn the_same_calls_without_the_fault_are_right() {
    for fault in FAULTS {
        let explored = explore_without(fault);
        assert!(explored.is_ok(), "{}: {}", fault.name, explored.unwrap_err().verdict);
    }
}
