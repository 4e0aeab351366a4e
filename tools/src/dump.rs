//! `cargo xtask dump`: boots the hypervisor once and shows what its maps, and those of its payload, said at some moments.
//!
//! Invariant: the text, the JSON and the picture are made from the same dumps, and none is shown that did not arrive whole.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;

use crate::{
    images,
    maps::{Difference, Dump, Dumps, KINDS, differences, scaled},
    picture,
    qemu::Follow,
    report,
    run::{BootArgs, Outcome, PAYLOAD_TIMEOUT, Verdict},
};

/// What makes the hypervisor and its payload print their maps for this tool.
pub const PARAMETER: &str = "cloven.dump=json";

/// The options of `cargo xtask dump`.
#[derive(Args, Clone, Debug)]
pub struct DumpArgs {
    #[command(flatten)]
    boot: BootArgs,
    /// Print all ranges, which is done in any case if no file is to be written
    #[arg(long)]
    text: bool,
    /// Write all ranges and what differs between moments to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw them into this file
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// All that the maps of a run said.
#[derive(Serialize)]
struct Report<'a> {
    dumps: &'a [Dump],
    differences: Vec<Between<'a>>,
    verdict: Verdict,
    reasons: &'a [String],
}

/// In what two moments of a stage, one after the other, differ.
#[derive(Serialize)]
struct Between<'a> {
    stage: &'a str,
    before: &'a str,
    after: &'a str,
    ranges: Vec<Difference>,
}

/// Carries out `cargo xtask dump`; returns whether all held in the run.
pub fn run(args: &DumpArgs) -> Result<bool> {
    report::check_json(args.json.as_deref())?;
    report::check_json(args.svg.as_deref())?;
    ensure!(!args.boot.is_quiet(), "maps are told with --log info or more");
    let mut ready = args.boot.ready(false, &[images::DUMP])?;
    ready.append.push(PARAMETER.to_owned());
    let timeout = args.boot.timeout(PAYLOAD_TIMEOUT);
    let outcome = ready.run(Follow { timeout, ..Follow::default() })?;
    let Outcome { verdict, reasons, transcript, .. } = &outcome;
    let dumps = &transcript.dumps;

    if args.text || (args.json.is_none() && args.svg.is_none()) {
        print!("{}", text(dumps));
    }
    print!("{}", summary(dumps));
    let report =
        Report { dumps: dumps.whole(), differences: all_differences(dumps), verdict: *verdict, reasons };
    report::write_json(args.json.as_deref(), &report)?;
    if let Some(file) = &args.svg {
        let picture = picture::draw(dumps, "Cloven: what the translation tables of each stage say");
        fs::write(file, picture.to_string()).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let came = !dumps.whole().is_empty();
    match (verdict, came) {
        (Verdict::Pass, true) => {}
        (Verdict::Pass, false) => println!("fail: no map was printed"),
        (Verdict::Fail, _) => println!("fail: {}", reasons.join("; ")),
    }
    Ok(*verdict == Verdict::Pass && came)
}

/// Each moment of each stage with the one before it.
fn moments(dumps: &Dumps) -> impl Iterator<Item = (&Dump, Option<&Dump>)> {
    dumps.stages().into_iter().flat_map(|stage| {
        let moments = dumps.of(stage);
        let before: Vec<_> = [None].into_iter().chain(moments.iter().map(|dump| Some(*dump))).collect();
        moments.into_iter().zip(before)
    })
}

fn all_differences<'a>(dumps: &'a Dumps) -> Vec<Between<'a>> {
    let between = |(after, before): (&'a Dump, Option<&'a Dump>)| {
        let before = before?;
        let ranges = differences(before, after);
        Some(Between { stage: &after.stage, before: &before.moment, after: &after.moment, ranges })
    };
    moments(dumps).filter_map(between).collect()
}

/// All ranges, and what differs.
fn text(dumps: &Dumps) -> String {
    let mut text = String::new();
    for (dump, before) in moments(dumps) {
        let Dump { stage, moment, input_bits, extents } = dump;
        let changed = before.map(|before| (before, differences(before, dump)));
        if let Some((before, _)) = changed.as_ref().filter(|(_, changed)| changed.is_empty()) {
            text += &format!("{stage}, {moment}: as {}\n\n", before.moment);
            continue;
        }
        text += &format!("{stage}, {input_bits} bits, {moment}:\n");
        extents.iter().for_each(|extent| text += &format!("{extent}\n"));
        if let Some((before, changed)) = changed {
            text += &format!("\n{stage}, {moment}, was {} and is:\n", before.moment);
            changed.iter().for_each(|difference| text += &format!("{difference}\n"));
        }
        text.push('\n');
    }
    text
}

/// How many leaves of each kind there are.
fn summary(dumps: &Dumps) -> String {
    let mut head = vec!["stage", "moment", "ranges", "mapped"];
    head.extend(KINDS);
    head.push("differ");
    let rows: Vec<Vec<String>> = moments(dumps)
        .map(|(dump, before)| {
            let mapped = dump.bytes(|content| content.is_valid_with(&[]));
            let mut row = vec![dump.stage.clone(), dump.moment.clone()];
            row.extend([dump.extents.len().to_string(), scaled(mapped)]);
            row.extend(dump.counts().map(report::grouped));
            row.push(before.map_or_else(String::new, |before| differences(before, dump).len().to_string()));
            row
        })
        .collect();
    report::table(&head, &rows)
}
