//! Reads the serial console: the hypervisor's log, the machine-readable `@cloven` lines and the guest's own output.
//!
//! Invariant: every line is kept as what it is or counted as malformed; nothing the guest prints can end the program.

use std::{collections::VecDeque, fmt};

use serde::Serialize;

use crate::maps::Dumps;

/// How many of the last lines are kept for a report.
const TAIL: usize = 15;

/// The outcome of one check.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub enum CheckResult {
    /// It held.
    #[serde(rename = "ok")]
    Ok,
    /// It did not hold.
    #[serde(rename = "FAIL")]
    Fail,
}

impl fmt::Display for CheckResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Fail => "FAIL",
        })
    }
}

/// A check that the guest or this tool made.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Check {
    /// Its name.
    pub name: String,
    /// Whether it held.
    pub result: CheckResult,
    /// What was seen; may be empty.
    pub detail: String,
}

/// A number that the hypervisor, the guest or this tool measured.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Figure {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: u64,
    /// What it counts; may be empty.
    pub unit: String,
}

/// One line of the console.
#[derive(Debug, Eq, PartialEq)]
pub enum Line<'a> {
    /// `@cloven check NAME ok|FAIL DETAIL…`
    Check(Check),
    /// `@cloven figure NAME VALUE UNIT`
    Figure(Figure),
    /// `@cloven view TEXT`
    View(&'a str),
    /// `@cloven done COUNT`
    Done(usize),
    /// `@cloven dump JSON`
    Dump(&'a str),
    /// `@cloven measured STEP`: see [`crate::rim`].
    Measured(&'a str),
    /// `@cloven rim DIGITS`: a realm's own RIM.
    Rim(&'a str),
    /// `@cloven token TOKEN CHALLENGE`, each in base64 or hexadecimal digits: see [`crate::token`].
    Token(&'a str, &'a str),
    /// A line that begins with `@cloven` and is none of these: part of it was lost.
    Malformed(&'a str),
    /// `cloven[N] fatal: TEXT`
    Fatal(&'a str),
    /// `cloven[N]   at image+OFFSET`: one call of the hypervisor's own backtrace.
    Call(u64),
    /// Another line of the hypervisor.
    Hypervisor(&'a str),
    /// A message with which Linux tells that it is broken.
    KernelFault(&'a str),
    /// Anything else.
    Guest(&'a str),
}

/// What one line of the console is. A hypervisor's line is found also where it cuts into a line of the guest.
pub fn parse(line: &str) -> Line<'_> {
    let line = line.trim_end_matches(['\r', '\n']);
    if let Some(record) = line.strip_prefix("@cloven ") {
        return parse_record(record).unwrap_or(Line::Malformed(line));
    }
    if let Some(text) = line.match_indices("cloven[").find_map(|(at, _)| hypervisor_text(&line[at..])) {
        let plain = text.trim_start();
        if let Some(text) = plain.strip_prefix("fatal: ") {
            return Line::Fatal(text);
        }
        if let Some(offset) = plain.strip_prefix("at image+0x") {
            let digits = offset.split_once(' ').map_or(offset, |(digits, _)| digits);
            if let Ok(offset) = u64::from_str_radix(digits, 16) {
                return Line::Call(offset);
            }
        }
        if let Some(record) = plain.strip_prefix("info: @cloven ") {
            return parse_record(record).unwrap_or(Line::Malformed(line));
        }
        return Line::Hypervisor(text);
    }
    if is_kernel_fault(line) { Line::KernelFault(line) } else { Line::Guest(line) }
}

/// The text behind `cloven[N] `.
fn hypervisor_text(line: &str) -> Option<&str> {
    let (cpu, text) = line.strip_prefix("cloven[")?.split_once("] ")?;
    (!cpu.is_empty() && cpu.bytes().all(|b| b.is_ascii_digit())).then_some(text)
}

fn parse_record(record: &str) -> Option<Line<'_>> {
    let (kind, rest) = record.split_once(' ')?;
    let mut words = rest.splitn(3, ' ').map(str::trim);
    Some(match kind {
        "check" => {
            let name = words.next().filter(|name| !name.is_empty())?.to_owned();
            let result = match words.next()? {
                "ok" => CheckResult::Ok,
                "FAIL" => CheckResult::Fail,
                _ => return None,
            };
            Line::Check(Check { name, result, detail: words.next().unwrap_or_default().to_owned() })
        }
        "figure" => {
            let name = words.next().filter(|name| !name.is_empty())?.to_owned();
            let value = words.next()?.parse().ok()?;
            Line::Figure(Figure { name, value, unit: words.next().unwrap_or_default().to_owned() })
        }
        "view" => Line::View(rest),
        "dump" => Line::Dump(rest),
        "measured" => Line::Measured(rest),
        "rim" => Some(rest.trim()).filter(|rest| is_rim(rest)).map(Line::Rim)?,
        "token" => match (words.next()?, words.next()?, words.next()) {
            (token, challenge, None) if !token.is_empty() && !challenge.is_empty() => {
                Line::Token(token, challenge)
            }
            _ => return None,
        },
        "done" => Line::Done(rest.trim().parse().ok()?),
        _ => return None,
    })
}

/// Whether these are the digits of a hash of 256 or 512 bits.
fn is_rim(digits: &str) -> bool {
    matches!(digits.len(), 64 | 128) && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether Linux says here that it is broken. `BUG:` must be a word of its own (`DEBUG:` is not).
fn is_kernel_fault(line: &str) -> bool {
    ["Kernel panic", "Oops", "BUG:", "Internal error"].iter().any(|text| {
        line.match_indices(text).any(|(at, _)| !line[..at].ends_with(|c: char| c.is_ascii_alphanumeric()))
    })
}

/// All that a verdict needs to know of a console, however long it was.
#[derive(Debug, Default)]
pub struct Transcript {
    /// The checks, in the order they were printed.
    pub checks: Vec<Check>,
    /// The figures, in the order they were printed.
    pub figures: Vec<Figure>,
    /// What the guest sees of its machine, to be compared with another run.
    pub view: Vec<String>,
    /// What maps said at some moments.
    pub dumps: Dumps,
    /// The steps in which a realm was made that are measured.
    pub measured: Vec<String>,
    /// What the realm says that its RIM is.
    pub rim: Option<String>,
    /// Attestation tokens, each with the challenge that it was asked for, as they were printed.
    pub tokens: Vec<(String, String)>,
    /// The number of checks that the guest says it printed.
    pub done: Option<usize>,
    /// The first fatal message of the hypervisor.
    pub fatal: Option<String>,
    /// The first message of a broken Linux.
    pub kernel_fault: Option<String>,
    /// The first `@cloven` line that could not be read.
    pub malformed: Option<String>,
    /// The described calls of the hypervisor's backtraces.
    pub calls: Vec<String>,
    tail: VecDeque<String>,
}

impl Transcript {
    /// Takes one line; returns what stands at a backtrace's call, by `describe`.
    pub fn push(&mut self, line: &str, describe: impl FnOnce(u64) -> Option<String>) -> Option<String> {
        let mut description = None;
        match parse(line) {
            Line::Check(check) => self.checks.push(check),
            Line::Figure(figure) => self.figures.push(figure),
            Line::View(text) => self.view.push(text.to_owned()),
            Line::Done(count) => self.done = Some(count),
            // There are many, and nobody reads them.
            Line::Dump(text) => {
                if self.dumps.push(text).is_err() {
                    keep_first(&mut self.malformed, line.trim_end());
                }
                return None;
            }
            Line::Measured(text) => {
                // Another realm is another measurement.
                if text.starts_with("realm ") {
                    self.measured.clear();
                }
                self.measured.push(text.to_owned());
                return None;
            }
            Line::Token(token, challenge) => {
                self.tokens.push((token.to_owned(), challenge.to_owned()));
                return None;
            }
            Line::Rim(digits) => self.rim = Some(digits.to_ascii_lowercase()),
            Line::Malformed(text) => keep_first(&mut self.malformed, text),
            Line::Fatal(text) => keep_first(&mut self.fatal, text),
            Line::KernelFault(text) => keep_first(&mut self.kernel_fault, text),
            Line::Call(offset) => {
                description = describe(offset);
                self.calls.extend(description.clone());
            }
            Line::Hypervisor(_) | Line::Guest(_) => {}
        }
        let line = line.trim_end();
        if !line.is_empty() {
            if self.tail.len() == TAIL {
                self.tail.pop_front();
            }
            self.tail.push_back(match &description {
                Some(description) => format!("{line} {description}"),
                None => line.to_owned(),
            });
        }
        description
    }

    /// The last lines, oldest first.
    pub fn tail(&self) -> impl Iterator<Item = &str> {
        self.tail.iter().map(String::as_str)
    }

    /// The value of the last figure `name`.
    pub fn figure(&self, name: &str) -> Option<u64> {
        self.figures.iter().rfind(|figure| figure.name == name).map(|figure| figure.value)
    }
}

fn keep_first(slot: &mut Option<String>, text: &str) {
    slot.get_or_insert_with(|| text.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, result: CheckResult, detail: &str) -> Line<'static> {
        Line::Check(Check { name: name.into(), result, detail: detail.into() })
    }

    #[test]
    fn records_are_read_with_and_without_the_hypervisors_prefix() {
        assert_eq!(parse("@cloven check a.b ok all is well\r"), check("a.b", CheckResult::Ok, "all is well"));
        assert_eq!(parse("cloven[3] info: @cloven check x FAIL"), check("x", CheckResult::Fail, ""));
        let figure = Figure { name: "memory.reserved".into(), value: 8388608, unit: "bytes".into() };
        assert_eq!(parse("@cloven figure memory.reserved 8388608 bytes"), Line::Figure(figure));
        assert_eq!(parse("cloven[0] info: @cloven done 12"), Line::Done(12));
    }

    #[test]
    fn a_record_that_lost_a_part_is_malformed() {
        for line in [
            "@cloven check",
            "@cloven check a",
            "@cloven check a maybe",
            "@cloven check  ok",
            "@cloven done many",
            "@cloven figure a x bytes",
            "@cloven verdict pass",
            "@cloven rim 0123",
            "@cloven measured",
            "@cloven token aa",
            "@cloven token aa bb cc",
            "cloven[0] info: @cloven done",
        ] {
            assert_eq!(parse(line), Line::Malformed(line));
        }
    }

    #[test]
    fn hypervisor_lines_are_told_from_the_guests() {
        assert_eq!(parse("cloven[0] info: text"), Line::Hypervisor("info: text"));
        assert_eq!(parse("cloven[12] fatal: no memory"), Line::Fatal("no memory"));
        assert_eq!(parse("cloven[x] fatal: no"), Line::Guest("cloven[x] fatal: no"));
        assert_eq!(parse("[    0.0] Booting Linux"), Line::Guest("[    0.0] Booting Linux"));
    }

    #[test]
    fn a_fatal_message_is_seen_in_the_middle_of_a_guests_line() {
        assert_eq!(parse("[    0.1] Seriacloven[1] fatal: fault"), Line::Fatal("fault"));
    }

    #[test]
    fn a_backtraces_call_gives_its_offset() {
        assert_eq!(parse("cloven[1]   at image+0x1234"), Line::Call(0x1234));
        assert_eq!(parse("cloven[1]   at image+zero"), Line::Hypervisor("  at image+zero"));
    }

    #[test]
    fn a_broken_linux_is_recognised() {
        for line in [
            "[    1.0] Kernel panic - not syncing: VFS",
            "[    1.0] Internal error: Oops: 96000004 [#1] SMP",
            "[    1.0] BUG: scheduling while atomic",
        ] {
            assert_eq!(parse(line), Line::KernelFault(line));
        }
        let harmless = "[    0.0] DEBUG: on, oops=panic";
        assert_eq!(parse(harmless), Line::Guest(harmless));
    }

    #[test]
    fn a_transcript_keeps_records_and_the_last_lines() {
        let mut transcript = Transcript::default();
        for n in 0..100 {
            transcript.push(&format!("line {n}"), |_| None);
        }
        transcript.push("@cloven figure f 1 x", |_| None);
        transcript.push("@cloven figure f 2 x", |_| None);
        transcript.push("cloven[0] fatal: first", |_| None);
        transcript.push("cloven[0] fatal: second", |_| None);
        let call = transcript.push("cloven[0]   at image+0x10", |offset| Some(format!("f{offset}")));
        assert_eq!(call.as_deref(), Some("f16"));
        assert_eq!(transcript.calls, ["f16"]);
        assert_eq!(transcript.figure("f"), Some(2));
        assert_eq!(transcript.fatal.as_deref(), Some("first"));
        assert_eq!(transcript.tail().count(), TAIL);
        assert_eq!(transcript.tail().last(), Some("cloven[0]   at image+0x10 f16"));
    }

    #[test]
    fn lines_of_dumps_are_taken_out_and_damaged_ones_noticed() {
        let mut transcript = Transcript::default();
        transcript
            .push(r#"cloven[0] info: @cloven dump {"stage":"s","moment":"m","input_bits":40}"#, |_| None);
        transcript.push(r#"@cloven dump {"extents":0}"#, |_| None);
        assert_eq!(transcript.dumps.whole().len(), 1);
        assert_eq!(transcript.tail().count(), 0);
        assert_eq!(transcript.malformed, None);
        transcript.push(r#"@cloven dump {"extents":0}"#, |_| None);
        assert_eq!(transcript.malformed.as_deref(), Some(r#"@cloven dump {"extents":0}"#));
    }

    #[test]
    fn the_steps_of_the_last_realm_are_kept_and_its_rim() {
        let mut transcript = Transcript::default();
        let rim = format!("@cloven rim {}", "0A".repeat(32));
        for line in ["@cloven measured realm 1", "@cloven measured rec", "@cloven measured realm 2", &rim] {
            transcript.push(line, |_| None);
        }
        assert_eq!(transcript.measured, ["realm 2"]);
        assert_eq!(transcript.rim, Some("0a".repeat(32)));
        assert_eq!(transcript.malformed, None);
    }

    #[test]
    fn a_line_with_any_bytes_is_read() {
        for line in [
            "",
            "@cloven ",
            "cloven[",
            "cloven[]",
            "cloven[0]",
            "cloven[0] é",
            "é BUG:",
            "@cloven check é ok é",
        ] {
            parse(line);
        }
    }
}
