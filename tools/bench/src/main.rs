//! Benchmarks of page-table engines: each row of work is done by every subject in one process and given as a ratio to the
//! bound, straight-line code that reaches the same end state (`bound.rs`).
//!
//! This file is the command line and the order of a run. Rows stand in `work.rs`, subjects in `subjects/`, the method in
//! `measure.rs`, what is printed in `report.rs`.

#[rustfmt::skip]
#[allow(clippy::undocumented_unsafe_blocks, reason = "the definition of 1.0, taken over as it was given")]
mod bound;
mod bound_join;
mod decode;
mod leaves;
mod measure;
mod memory;
mod peer;
mod pool;
mod report;
mod subjects;
mod work;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Result, ensure};
use clap::Parser;

use crate::measure::Temperature;
use crate::peer::{Peer, RW_BITS};

#[derive(Parser)]
#[command(
    about = "Page-table engines against each other and against the bound, as ratios in one run",
    version
)]
struct Cli {
    /// Write the results to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Seed of the random pages and addresses
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rounds of each warm row; cold rows take a fifth of it
    #[arg(long, default_value_t = 31, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Draw what leaves are left after the rounds of split pages
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Only the rows whose name contains this text
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Few rounds: shows that everything runs, not how fast
    #[arg(long, conflicts_with = "rounds")]
    quick: bool,
}

fn main() -> ExitCode {
    match run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> Result<()> {
    if env!("OPT_LEVEL") != "3" || cfg!(debug_assertions) {
        eprintln!(
            "warning: built with less than opt-level 3, to the disadvantage of those whose code is general"
        );
    }
    let rounds = if cli.quick { 3 } else { cli.rounds };
    let mut tables = Vec::new();
    for temperature in [Temperature::Warm, Temperature::Cold] {
        let rounds = if temperature == Temperature::Cold { rounds.div_ceil(5) } else { rounds };
        let mut rows = Vec::new();
        for work in &work::all(cli.seed, temperature.lookups()) {
            let name = temperature.name_of(work);
            if name.contains(&cli.only) {
                eprintln!("{name}");
                rows.push(measure::row(name, work, subjects::ALL, temperature, rounds)?);
            }
        }
        tables.push((temperature, rows));
    }
    ensure!(tables.iter().any(|(_, rows)| !rows.is_empty()), "no row's name contains {:?}", cli.only);
    for (temperature, rows) in &tables {
        report::print(*temperature, rows);
    }
    if let Some((_, rows)) = tables.first() {
        report::print_counts(rows);
    }
    if cli.only.is_empty() {
        report::print_memory(&memory::measure(cli.seed)?);
    }
    let courses = if work::ROUNDS.contains(&cli.only) { leaves::follow(cli.seed) } else { Vec::new() };
    if !courses.is_empty() {
        report::print_table(&leaves::lines(&courses));
    }
    if let Some(file) = &cli.svg {
        ensure!(!courses.is_empty(), "there is nothing to draw without the row {:?}", work::ROUNDS);
        leaves::draw(&courses, file)?;
    }
    report::write_json(cli.json.as_deref(), tables.iter().flat_map(|(_, rows)| rows), &courses)
}
