//! `cargo xtask bench`: the mapping engine beside other crates and beside the bound; or what a realm pays ([`costs`]).
//!
//! Invariant: the subjects are built and run by one program in one profile; this file only starts it.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use crate::{costs, workspace};

/// The options of `cargo xtask bench`.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// Only the work whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// The seed of the random addresses
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Rounds of each work; the medians are printed
    #[arg(long, value_name = "N")]
    rounds: Option<u32>,
    /// Few rounds
    #[arg(long)]
    quick: bool,
    /// Draw what leaves are left after pages were made read-only and put back, to this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Measure in QEMU what a realm and its host pay for each call, beside what a real RMM and pKVM take
    #[arg(long, conflicts_with_all = ["only", "seed", "rounds", "quick", "svg"])]
    realm: bool,
    /// Write the results to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Carries out `cargo xtask bench`; returns whether every subject did what it was asked to.
pub fn run(args: &BenchArgs) -> Result<bool> {
    if args.realm {
        return costs::run(args.json.as_deref());
    }
    let mut bench = workspace::cargo();
    bench.args(["run", "--quiet", "--profile", "bench", "-p", "bench", "--"]);
    if let Some(text) = &args.only {
        bench.args(["--only", text]);
    }
    if let Some(seed) = args.seed {
        bench.args(["--seed", &seed.to_string()]);
    }
    if let Some(rounds) = args.rounds {
        bench.args(["--rounds", &rounds.to_string()]);
    }
    if args.quick {
        bench.arg("--quick");
    }
    for (option, path) in [("--json", &args.json), ("--svg", &args.svg)] {
        if let Some(path) = path {
            bench.arg(option).arg(std::path::absolute(path).context("cannot find the current directory")?);
        }
    }
    let status = bench.status().context("cannot start cargo")?;
    Ok(status.success())
}
