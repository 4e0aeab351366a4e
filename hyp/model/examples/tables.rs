//! The tables of `docs/model.md`: `cargo run -p hyp-model --example tables`; with `each` only the
//! first of them, with `mistakes` only that of letting CPUs in.

use std::collections::BTreeMap;

use hyp_model::faults::{FAULTS, On};
use hyp_model::lifecycle::MISTAKES;
use hyp_model::survey::{PAIRS, each, pairs};

/// What is planted in letting a CPU in.
fn mistakes() {
    println!("| | mistake | where | verdict | steps | states |\n|---|---|---|---|---|---|");
    for (number, mistake) in MISTAKES.iter().enumerate() {
        let conviction = mistake.scenario.explore(mistake.plan, mistake.fault).expect_err("it is convicted");
        let scenario = &mistake.scenario;
        println!(
            "| {} | {} | {:?}, {} and {}, {:?} | {:?} | {} | {} |",
            number + 1,
            mistake.name,
            scenario.on,
            scenario.boot.bbm,
            scenario.new.bbm,
            scenario.policy,
            conviction.verdict.kind,
            conviction.steps,
            conviction.states
        );
    }
}

fn main() {
    if std::env::args().any(|argument| argument == "mistakes") {
        return mistakes();
    }
    println!("| primitive | EL2 | EL1&0 | stage 2 |\n|---|---|---|---|");
    let tables = [On::El2, On::El1, On::Stage2].map(|on| each(on).expect("it is right"));
    for (number, row) in tables[0].iter().enumerate() {
        let states = tables.each_ref().map(|table| table[number].states.to_string());
        println!("| {} | {} |", row.names[0], states.join(" | "));
    }
    if std::env::args().any(|argument| argument == "each") {
        return;
    }
    println!("\n| pairs on | states | pairs | most |\n|---|---|---|---|");
    let mut sums: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (number, (on, trial)) in PAIRS.into_iter().enumerate() {
        let rows = pairs(on, trial).expect("they are right");
        let states: usize = rows.iter().map(|row| row.states).sum();
        let most = rows.iter().max_by_key(|row| row.states).expect("there are some");
        println!(
            "| {} {on:?}, level {}, {:?} | {states} | {} | {} ({}) |",
            number + 1,
            trial.bbm,
            trial.ground,
            rows.len(),
            most.states,
            most.names.join(", ")
        );
        for row in &rows {
            for name in row.names.iter().take(if row.names[0] == row.names[1] { 1 } else { 2 }) {
                sums.entry(name).or_insert_with(|| vec![0; PAIRS.len()])[number] += row.states;
            }
        }
    }
    println!("\n| primitive, with each | 1 | 2 | 3 | 4 | 5 | 6 |\n|---|---|---|---|---|---|---|");
    for row in &tables[0] {
        let states: Vec<String> = sums[row.names[0]].iter().map(ToString::to_string).collect();
        println!("| {} | {} |", row.names[0], states.join(" | "));
    }
    println!("\n| | fault | where | verdict | steps | states |\n|---|---|---|---|---|---|");
    for (number, fault) in FAULTS.iter().enumerate() {
        let conviction = fault.explore().expect_err("it is convicted");
        println!(
            "| {} | {} | {:?}, level {}, {} | {:?} | {} | {} |",
            number + 1,
            fault.name,
            fault.on,
            fault.trial.bbm,
            fault.calls.join(" and "),
            conviction.verdict.kind,
            conviction.steps,
            conviction.states
        );
    }
    println!();
    mistakes();
}
