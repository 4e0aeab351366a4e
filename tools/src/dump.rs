//! `cargo xtask dump`: boots the hypervisor once and shows what its maps, and those of its payload, said at some moments.
//!
//! Invariant: the text, the JSON and the picture are made from the same dumps, and none is shown that did not arrive whole.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::Serialize;

use crate::{
    images,
    maps::{Content, Difference, Dump, Dumps, Extent, KINDS, differences, scaled},
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
    let mut ready = args.boot.ready(false, &[images::DUMP], None)?;
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
            text +=
                &format!("\n{stage}, {moment}, where it differs from {} (first as it was):\n", before.moment);
            changed.iter().for_each(|difference| text += &format!("{difference}\n"));
        }
        text.push('\n');
    }
    text
}

/// What is wrong with the maps of a run of the payload, if something is: anything that EL2 can write and execute, or that is not at its own
/// address; EL2's boot code where it can run, or more than its boot that does not translate; EL2's code and constants in the host's reach, or
/// any of its RAM (`ram` bytes less `reserved`) that is not. With `trials` the host's map must have changed in between.
pub fn problem(dumps: &Dumps, ram: u64, reserved: u64, trials: bool) -> Option<String> {
    let (el2, host) = (dumps.of("EL2 stage 1"), dumps.of("stage 2"));
    let moments: &[&str] =
        if trials { &["boot", "before the trials", "after the trials", "off"] } else { &["boot", "off"] };
    for maps in [&el2, &host, &dumps.of("EL1&0 stage 1")] {
        let there: Vec<&str> = maps.iter().map(|dump| dump.moment.as_str()).collect();
        if there != moments {
            return Some(format!("the moments {moments:?} were to be told, not {there:?}"));
        }
    }
    if trials && differences(host[1], host[2]).is_empty() {
        return Some("the trials changed nothing at stage 2".to_owned());
    }
    // Later the trials make some of the host's RAM executable at EL2.
    let is_own = |extent: &&Extent| extent.content.is_leaf_with(&["RO"]);
    let own: Vec<&Extent> = el2[0].extents.iter().filter(is_own).collect();
    if !own.iter().any(|extent| extent.content.is_valid_with(&["X"])) {
        return Some("EL2 has no code".to_owned());
    }
    for (el2, host) in el2.iter().zip(&host) {
        let moment = &el2.moment;
        for extent in el2.extents.iter().chain(&host.extents) {
            if !matches!(extent.content, Content::Leaves { output, .. } if output == extent.start) {
                return Some(format!("at {moment} this is not at its own address: {extent}"));
            }
        }
        // Code and constants of the boot, by what they were.
        let is_gone = |extent: &&Extent| !extent.content.is_valid_with(&[]);
        let gone: Vec<&Extent> = el2.extents.iter().filter(is_gone).collect();
        if !gone.iter().any(|extent| extent.content.is_leaf_with(&["RO", "X"])) {
            return Some(format!("at {moment} EL2 still has the code of its boot"));
        }
        let other = |extent: &&&Extent| !own.iter().any(|it| it.overlaps(extent));
        if let Some(hole) = gone.iter().find(other).copied().or_else(|| host.extents.iter().find(is_gone)) {
            return Some(format!("at {moment} this does not translate: {hole}"));
        }
        if let Some(bad) = el2.extents.iter().find(|extent| extent.content.is_valid_with(&["RW", "X"])) {
            return Some(format!("at {moment} EL2 can write and execute {bad}"));
        }
        if host.extents.iter().any(|extent| own.iter().any(|it| it.overlaps(extent))) {
            return Some(format!("at {moment} the host can reach code or constants of EL2"));
        }
        let reach = host.bytes(|content| content.is_valid_with(&["X"]));
        if reach != ram - reserved {
            return Some(format!("at {moment} the host has {reach} bytes of {ram} less {reserved}"));
        }
    }
    None
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

#[cfg(test)]
mod tests {
    use super::*;

    const RAM: u64 = 16 << 20;
    const OWN: u64 = 2 << 20;

    fn leaves(start: u64, end: u64, level: u8, words: &str) -> String {
        let (size, leaf) = (end - start, if level == 3 { 4096 } else { 2 << 20 });
        format!(
            r#"{{"start":"{start:#x}","size":{size},"level":{level},"leaf":{leaf},"output":"{start:#x}","attributes":"{words}","contiguous":false,"valid":true}}"#
        )
    }

    /// A run whose lines were changed so.
    fn dumps(trials: bool, replace: impl Fn(&str, String) -> String) -> Dumps {
        let moments: &[&str] =
            if trials { &["boot", "before the trials", "after the trials", "off"] } else { &["boot", "off"] };
        let el2 = [
            leaves(0, OWN / 4, 3, "RO X"),
            leaves(OWN / 4, OWN / 2, 3, "RO X").replace("true", "false"),
            leaves(OWN / 2, OWN, 3, "RW XN"),
            leaves(OWN, RAM, 2, "RW XN"),
        ];
        let mut dumps = Dumps::default();
        for &moment in moments {
            let level = if matches!(moment, "after the trials" | "off") { 3 } else { 2 };
            let host = [leaves(OWN, RAM, level, "RW X"), leaves(RAM, 1 << 30, 2, "RW XN")];
            for (stage, lines) in
                [("EL2 stage 1", &el2[..]), ("stage 2", &host[..]), ("EL1&0 stage 1", &host[..1])]
            {
                let head = format!(r#"{{"stage":"{stage}","moment":"{moment}","input_bits":40}}"#);
                dumps.push(&head).unwrap();
                lines.iter().for_each(|line| dumps.push(&replace(stage, line.clone())).unwrap());
                dumps.push(&format!(r#"{{"extents":{}}}"#, lines.len())).unwrap();
            }
        }
        dumps
    }

    fn found(replace: impl Fn(&str, String) -> String) -> String {
        problem(&dumps(false, replace), RAM, OWN, false).unwrap_or_default()
    }

    #[test]
    fn maps_in_which_each_mistake_is_made_are_refused() {
        assert_eq!(found(|_, line| line), "");
        assert_eq!(problem(&dumps(true, |_, line| line), RAM, OWN, true), None);
        let of = |wanted: &'static str, from: &'static str, to: &'static str| {
            move |stage: &str, line: String| if stage == wanted { line.replace(from, to) } else { line }
        };
        assert!(found(of("EL2 stage 1", "RW XN", "RW X")).contains("write and execute"));
        assert!(found(of("EL2 stage 1", r#""valid":true"#, r#""valid":false"#)).contains("no code"));
        assert!(found(of("EL2 stage 1", r#""valid":false"#, r#""valid":true"#)).contains("of its boot"));
        let data = found(|_, line| if line.contains("RW XN") { line.replace("true", "false") } else { line });
        assert!(data.contains("does not translate"), "{data}");
        assert!(found(of("stage 2", r#""valid":true"#, r#""valid":false"#)).contains("does not translate"));
        assert!(found(of("stage 2", r#""output":"0x200000""#, r#""output":"0x0""#)).contains("own address"));
        let more = r#""start":"0x0","size":16777216,"level":2,"leaf":2097152,"output":"0x0""#;
        let less = r#""start":"0x200000","size":14680064,"level":2,"leaf":2097152,"output":"0x200000""#;
        assert!(found(of("stage 2", less, more)).contains("can reach"));
        assert!(found(of("stage 2", r#""size":14680064"#, r#""size":14675968"#)).contains("bytes of"));
        let quiet = dumps(true, of("stage 2", r#""level":3,"leaf":4096"#, r#""level":2,"leaf":2097152"#));
        assert!(problem(&quiet, RAM, OWN, true).unwrap().contains("changed nothing"));
        assert!(problem(&quiet, RAM, OWN, false).unwrap().contains("moments"));
        assert!(problem(&Dumps::default(), RAM, OWN, false).is_some());
    }

    #[test]
    fn the_text_has_what_changed_and_not_what_did_not() {
        let dumps = dumps(true, |_, line| line);
        let text = text(&dumps);
        assert!(text.contains("stage 2, before the trials: as boot\n"), "{text}");
        assert!(
            text.contains(
                "stage 2, after the trials, where it differs from before the trials (first as it was):\n"
            ),
            "{text}"
        );
        assert_eq!(text.matches("EL2 stage 1, 40 bits").count(), 1, "{text}");
        let report = all_differences(&dumps);
        assert_eq!(report.len(), 3 * 3);
        assert_eq!(report.iter().filter(|between| !between.ranges.is_empty()).count(), 2);
    }
}
