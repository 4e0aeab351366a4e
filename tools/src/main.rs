//! `cargo xtask`: builds, runs, tests, measures and checks Cloven.
//!
//! This file is the command line and nothing else; each verb has its module.

mod apt;
mod bench;
mod check;
mod compare;
mod console;
mod costs;
mod dump;
mod images;
mod linux;
mod maps;
mod picture;
mod placement;
mod qemu;
mod report;
mod rim;
mod run;
mod suite;
mod symbols;
mod token;
mod trace;
mod tree;
mod verdict;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about = "Builds, runs, tests, measures and checks Cloven",
    version
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Build everything and boot the hypervisor in QEMU; ends with a table and a verdict
    Run(Box<run::RunArgs>),
    /// Run all tests, or one part of them
    #[command(after_help = "What is given of the machine stands in place of what each test would choose.")]
    Test(suite::TestArgs),
    /// Boot it as run does, and print what the translation tables of each stage say at some moments, and in what those differ
    #[command(
        after_help = "To see them change: `--bbm 3`, `--append cloven.changes=100` for fewer changes than 10,000 in each trial."
    )]
    Dump(Box<dump::DumpArgs>),
    /// Measure the mapping engine beside other crates and the bound, as ratios in one run; or, with --realm, what a realm and its host pay
    Bench(bench::BenchArgs),
    /// Verify an attestation token of a realm and print what it says
    Token(token::TokenArgs),
    /// Check formatting, lints, documentation, feature combinations and the placement of unsafe code and assembly
    Check(check::CheckArgs),
}

fn main() -> ExitCode {
    let verb = Cli::parse().verb;
    let outcome = qemu::end_when_interrupted().and_then(|()| match verb {
        Verb::Run(args) => run::run(*args),
        Verb::Test(args) => suite::run(&args),
        Verb::Dump(args) => dump::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Token(args) => token::run(&args),
        Verb::Check(args) => check::run(&args),
    });
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
