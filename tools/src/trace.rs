//! `--trace`, `--trace-json`, `--advertise-bbm`, `--midr`: what a realm is shown and what is seen of it.
//!
//! Invariant: each whole line of the trace is shown once, in its order, between lines of the console and never within one; what is no line of a
//! trace is an error that names it.
//!
//! The hypervisor tells on the machine's second PL011 (`rmm_shim::trace` has the format of a line). QEMU writes that to a file, which is read as it grows.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde::{Serialize, Serializer};
use tempfile::TempDir;

use crate::{console::Transcript, report};

/// What is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Traced {
    /// The calls of realms: RSI, PSCI, SMCCC
    Rsi,
    /// The calls of their host: RMI
    Rmi,
    /// What becomes of the RIPAS of their memory
    Ripas,
}

impl Traced {
    fn word(self) -> &'static str {
        match self {
            Self::Rsi => "rsi",
            Self::Rmi => "rmi",
            Self::Ripas => "ripas",
        }
    }
}

/// The word that has all of it traced.
pub const ALL: &str = "cloven.trace=rsi,rmi,ripas";

/// What realms are shown of the machine, and what is seen of them.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Realm")]
pub struct SeenArgs {
    /// Show what realms and their host call: any of rsi, rmi, ripas, with commas
    #[arg(long, value_enum, value_name = "LIST", value_delimiter = ',')]
    trace: Vec<Traced>,
    /// Write what is traced to this file [default: all is traced then]
    #[arg(long, value_name = "FILE")]
    trace_json: Option<PathBuf>,
    /// The level of FEAT_BBM that realms read, whatever the CPUs have
    #[arg(long, value_name = "LEVEL", value_parser = ["0", "2", "3"])]
    advertise_bbm: Option<String>,
    /// The MIDR_EL1 that realms read, for example 0x410fd842 (Neoverse-V3 r0p2)
    #[arg(long, value_name = "0x…", value_parser = midr)]
    midr: Option<u32>,
}

fn midr(text: &str) -> Result<u32> {
    const ARCHITECTURE: u32 = 0xf << 16;
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let digits = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
    let midr = digits.and_then(|digits| u32::from_str_radix(digits, 16).ok());
    let midr = midr.context("a MIDR has 32 bits, in hexadecimal behind 0x")?;
    ensure!(midr & ARCHITECTURE != 0, "a MIDR whose architecture (bits 19:16) is 0 is of no part");
    Ok(midr)
}

impl SeenArgs {
    /// Whether anything is traced.
    pub fn is_tracing(&self) -> bool {
        !self.trace.is_empty() || self.trace_json.is_some()
    }

    /// An error now if the trace cannot be written later.
    pub fn check(&self) -> Result<()> {
        report::check_json(self.trace_json.as_deref())
    }

    /// What the hypervisor is told on the command line.
    pub fn parameters(&self) -> impl Iterator<Item = String> + use<> {
        let all = [Traced::Rsi, Traced::Rmi, Traced::Ripas];
        let traced = if self.trace.is_empty() { &all[..] } else { &self.trace };
        let words: Vec<_> = traced.iter().map(|traced| traced.word()).collect();
        let trace = self.is_tracing().then(|| format!("cloven.trace={}", words.join(",")));
        let bbm = self.advertise_bbm.as_ref().map(|level| format!("cloven.advertise-bbm={level}"));
        let midr = self.midr.map(|midr| format!("cloven.midr={midr:#010x}"));
        [trace, bbm, midr].into_iter().flatten()
    }

    /// Where the trace goes, if there is one.
    pub fn target(&self) -> Result<Option<Target>> {
        self.is_tracing().then(|| Target::new(!self.trace.is_empty())).transpose()
    }

    /// Writes what was told.
    pub fn write(&self, lines: &[String]) -> Result<()> {
        if self.trace_json.is_none() {
            return Ok(());
        }
        let events: Vec<Event> = lines.iter().map(|line| parse(line)).collect::<Result<_>>()?;
        report::write_json(self.trace_json.as_deref(), &events)
    }
}

/// The file that the second UART goes to.
#[derive(Debug)]
pub struct Target {
    dir: TempDir,
    /// Whether its lines are shown.
    shows: bool,
}

impl Target {
    /// A new one.
    pub fn new(shows: bool) -> Result<Self> {
        Ok(Self { dir: tempfile::tempdir().context("there is no place for a trace")?, shows })
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("trace")
    }

    /// What QEMU is told behind the first UART.
    pub fn arguments(&self) -> [String; 2] {
        ["-serial".to_owned(), format!("file:{}", self.file().display().to_string().replace(',', ",,"))]
    }

    /// Reads it as it grows.
    pub fn tail(&self) -> Tail {
        Tail { path: self.file(), file: None, rest: Vec::new(), waiting: Vec::new(), shows: self.shows }
    }
}

/// What has come so far.
#[derive(Debug)]
pub struct Tail {
    path: PathBuf,
    file: Option<File>,
    rest: Vec<u8>,
    waiting: Vec<String>,
    shows: bool,
}

impl Tail {
    /// Takes what is new into `lines`.
    pub fn read(&mut self, lines: &mut Vec<String>) {
        if self.file.is_none() {
            self.file = File::open(&self.path).ok();
        }
        let Some(file) = &mut self.file else { return };
        // An error is the end for now: what is missing in the end is noticed by its numbers.
        let _ = file.read_to_end(&mut self.rest);
        while let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
            let line = String::from_utf8_lossy(&self.rest[..end]).trim_end().to_owned();
            self.rest.drain(..=end);
            if self.shows {
                self.waiting.push(shown(&line));
            }
            lines.push(line);
        }
    }

    /// What is to be shown, now that a line of the console has ended.
    pub fn show(&mut self) -> impl Iterator<Item = String> + '_ {
        self.waiting.drain(..)
    }
}

/// A line for people: without its time.
fn shown(line: &str) -> String {
    let words: Vec<&str> = line.split(' ').filter(|word| !word.starts_with('@')).collect();
    format!("trace: {}", words.join(" "))
}

/// A value, or those of a run.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Value {
    /// As it was told.
    One(String),
    /// Those of the first and the last call.
    Run(String, String),
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::One(value) => value.serialize(to),
            Self::Run(first, last) => BTreeMap::from([("first", first), ("last", last)]).serialize(to),
        }
    }
}

/// A call, or a run of them.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Event {
    /// The CPU.
    pub cpu: usize,
    /// `rsi`, `psci`, `smccc`, `rmi` or `ripas`.
    pub interface: String,
    /// Its name.
    pub command: String,
    /// The realm's descriptor, and the REC's number, if a realm has called.
    #[serde(flatten)]
    pub caller: BTreeMap<String, String>,
    /// What it was given, by name.
    pub inputs: BTreeMap<String, Value>,
    /// What it was answered.
    pub status: String,
    /// What besides.
    pub outputs: BTreeMap<String, Value>,
    /// How often.
    pub count: u64,
    /// The counter at the first.
    pub ticks: u64,
}

/// Reads a line.
pub fn parse(line: &str) -> Result<Event> {
    parse_words(line).with_context(|| format!("no line of a trace: {line}"))
}

fn parse_words(line: &str) -> Result<Event> {
    let mut words = line.split(' ').peekable();
    let mut next = || words.next().context("it ends too early");
    let interface = next()?.to_owned();
    ensure!(
        ["rsi", "psci", "smccc", "rmi", "ripas"].contains(&interface.as_str()),
        "no interface: {interface}"
    );
    let cpu = next()?.strip_prefix("cpu").and_then(|number| number.parse().ok()).context("which CPU?")?;
    let mut caller = BTreeMap::new();
    let ticks = loop {
        let word = next()?;
        if let Some(ticks) = word.strip_prefix('@') {
            break ticks.parse().context("when?")?;
        }
        let (name, value) = word.split_once('=').context("who?")?;
        caller.insert(name.to_owned(), value.to_owned());
    };
    if interface == "ripas" {
        let (range, old) = (next()?, next()?.to_owned());
        let (start, end) = range.split_once('-').context("which range?")?;
        ensure!(next()? == "->", "to what?");
        let status = next()?.to_owned();
        ensure!(words.next().is_none(), "it goes on");
        let one = |name: &str, value: &str| (name.to_owned(), Value::One(value.to_owned()));
        let inputs = BTreeMap::from([one("base", start), one("top", end), one("old", &old)]);
        let (command, outputs) = ("RIPAS".to_owned(), BTreeMap::new());
        return Ok(Event { cpu, interface, command, caller, inputs, status, outputs, count: 1, ticks });
    }
    let command = next()?.to_owned();
    let mut inputs = BTreeMap::new();
    loop {
        let word = next()?;
        if word == "->" {
            break;
        }
        named(word, &mut inputs)?;
    }
    let status = next()?.to_owned();
    let (mut outputs, mut count) = (BTreeMap::new(), 1);
    for word in words {
        match word.strip_prefix('x').and_then(|count| count.parse().ok()) {
            Some(number) => count = number,
            None => named(word, &mut outputs)?,
        }
    }
    Ok(Event { cpu, interface, command, caller, inputs, status, outputs, count, ticks })
}

fn named(word: &str, into: &mut BTreeMap<String, Value>) -> Result<()> {
    let Some((name, value)) = word.split_once('=') else { bail!("no value: {word}") };
    let value = match value.split_once("..") {
        Some((first, last)) => Value::Run(first.to_owned(), last.to_owned()),
        None => Value::One(value.to_owned()),
    };
    into.insert(name.to_owned(), value);
    Ok(())
}

/// How many calls of `command` ended in `status`.
pub fn count(lines: &[String], command: &str, status: &str) -> Result<u64> {
    let mut count = 0;
    for line in lines {
        let event = parse(line)?;
        if event.command == command && event.status == status {
            count += event.count;
        }
    }
    Ok(count)
}

/// In what a trace of all there is differs from what the realm's host has counted.
pub fn problem(transcript: &Transcript) -> Option<String> {
    let figure = |name: &str| transcript.figure(name).unwrap_or(0);
    let exits = ["sync", "irq", "fiq", "psci", "ripas_change", "host_call", "serror"];
    let exits = exits.iter().map(|name| figure(&format!("realm.host.exits_{name}"))).sum();
    for (command, status, counted) in [
        ("RSI_IPA_STATE_SET", "RSI_SUCCESS", figure("realm.host.ripas_changes")),
        ("RSI_HOST_CALL", "RSI_SUCCESS", figure("realm.host.exits_host_call")),
        ("RMI_REC_ENTER", "RMI_SUCCESS", exits),
    ] {
        match count(&transcript.trace, command, status) {
            Err(error) => return Some(format!("{error:#}")),
            Ok(told) if told != counted || told == 0 => {
                return Some(format!("{told} calls of {command} were told, and {counted} counted"));
            }
            Ok(_) => {}
        }
    }
    None
}

/// The line that says why there can be none with this QEMU, if so.
pub fn check_qemu(version: Option<(u32, u32)>, path: &Path) -> Result<()> {
    /// From this version on the `virt` machine has a second UART if a second `-serial` is given.
    const OLDEST: (u32, u32) = (9, 1);
    let (major, minor) = version.unwrap_or_default();
    ensure!(
        (major, minor) >= OLDEST,
        "{} is QEMU {major}.{minor}, whose virt machine has one UART: --trace takes QEMU {}.{} or newer",
        path.display(),
        OLDEST.0,
        OLDEST.1
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        seen: SeenArgs,
    }

    fn seen(line: &str) -> Result<SeenArgs, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.seen)
    }

    fn told(line: &str) -> Vec<String> {
        seen(line).unwrap_or_else(|error| panic!("{error}")).parameters().collect()
    }

    #[test]
    fn the_hypervisor_is_told_what_realms_are_shown() {
        assert!(told("x").is_empty() && !seen("x").unwrap().is_tracing());
        assert_eq!(told("x --trace rsi,ripas"), ["cloven.trace=rsi,ripas"]);
        assert_eq!(told("x --trace-json /tmp/t"), ["cloven.trace=rsi,rmi,ripas"]);
        let all = told("x --advertise-bbm 2 --midr 0x410fd842");
        assert_eq!(all, ["cloven.advertise-bbm=2", "cloven.midr=0x410fd842"]);
    }

    #[test]
    fn what_no_realm_can_be_shown_is_refused() {
        for line in [
            "x --trace rsx",
            "x --trace rsi,",
            "x --advertise-bbm 1",
            "x --advertise-bbm 4",
            "x --midr 410fd842",
            "x --midr 0x1410fd842",
            "x --midr 0x4100d842",
            "x --midr 0x",
        ] {
            assert!(seen(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_realms_call_is_read_with_its_names() {
        let line = "rsi cpu1 realm=0x48001000 rec=2 @77 RSI_IPA_STATE_SET base=0x1000 top=0x2000 ripas=EMPTY flags=CHANGE_DESTROYED -> RSI_SUCCESS new_base=0x2000 response=ACCEPT";
        let event = parse(line).unwrap();
        assert_eq!((event.cpu, event.ticks, event.count, event.status.as_str()), (1, 77, 1, "RSI_SUCCESS"));
        assert_eq!(event.caller["rec"], "2");
        assert_eq!(event.inputs["ripas"], Value::One("EMPTY".into()));
        assert_eq!(event.outputs["response"], Value::One("ACCEPT".into()));
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(
            (&json["command"], &json["inputs"]["base"]),
            (&"RSI_IPA_STATE_SET".into(), &"0x1000".into())
        );
        assert_eq!(json["realm"], "0x48001000");
    }

    #[test]
    fn a_run_has_a_first_and_a_last_and_a_count() {
        let line = "rmi cpu0 @9 RMI_DATA_DESTROY rd=0x1000 ipa=0x0..0x1ff000 -> RMI_SUCCESS data=0x5000..0x204000 x512";
        let event = parse(line).unwrap();
        assert_eq!((event.count, &event.inputs["rd"]), (512, &Value::One("0x1000".into())));
        assert_eq!(event.inputs["ipa"], Value::Run("0x0".into(), "0x1ff000".into()));
        let json = serde_json::to_value(&event).unwrap();
        assert_eq!(json["outputs"]["data"]["last"], "0x204000");
        let lines = [line.to_owned(), line.to_owned()];
        assert_eq!(count(&lines, "RMI_DATA_DESTROY", "RMI_SUCCESS").unwrap(), 1024);
        assert_eq!(count(&lines, "RMI_DATA_DESTROY", "RMI_ERROR_INPUT").unwrap(), 0);
    }

    #[test]
    fn a_change_of_ripas_is_a_range() {
        let event = parse("ripas cpu0 realm=0x1000 @1 0x80000000-0x80200000 RAM -> EMPTY").unwrap();
        assert_eq!((event.command.as_str(), event.status.as_str()), ("RIPAS", "EMPTY"));
        assert_eq!(event.inputs["top"], Value::One("0x80200000".into()));
        assert_eq!(event.inputs["old"], Value::One("RAM".into()));
    }

    #[test]
    fn what_is_no_line_is_named() {
        for line in [
            "",
            "rsi",
            "rsi cpu0 @1 RSI_VERSION req=1.0 ->",
            "rsx cpu0 @1 A -> B",
            "rmi cpux @1 A -> B",
            "é",
            "rmi cpu0 @1 A b -> C",
        ] {
            let error = parse(line).unwrap_err();
            assert_eq!(error.to_string(), format!("no line of a trace: {line}"));
        }
    }

    #[test]
    fn lines_come_whole_and_once_however_the_file_grows() {
        let target = Target::new(true).unwrap();
        let mut tail = target.tail();
        let mut lines = Vec::new();
        tail.read(&mut lines);
        assert!(lines.is_empty());
        let mut file = File::create(target.file()).unwrap();
        file.write_all(b"rsi cpu0 @5 A -> B\nrm").unwrap();
        tail.read(&mut lines);
        assert_eq!(lines, ["rsi cpu0 @5 A -> B"]);
        assert_eq!(tail.show().collect::<Vec<_>>(), ["trace: rsi cpu0 A -> B"]);
        file.write_all(b"i cpu0 @6 C -> D\n").unwrap();
        tail.read(&mut lines);
        assert_eq!((lines.len(), lines[1].as_str()), (2, "rmi cpu0 @6 C -> D"));
        assert_eq!(tail.show().count(), 1);
        assert_eq!(tail.show().count(), 0);
    }

    #[test]
    fn a_trace_is_written_as_a_list() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("t.json");
        let seen = seen(&format!("x --trace-json {}", file.display())).unwrap();
        seen.check().unwrap();
        seen.write(&["rmi cpu0 @6 C -> D".to_owned()]).unwrap();
        let list: Vec<serde_json::Value> = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
        assert_eq!((list.len(), &list[0]["count"]), (1, &1.into()));
        assert!(seen.write(&["nonsense".to_owned()]).is_err());
    }

    #[test]
    fn a_trace_that_lacks_a_call_is_noticed() {
        let mut transcript = Transcript::default();
        for figure in ["ripas_changes 2", "exits_ripas_change 2", "exits_host_call 1", "exits_irq 3"] {
            transcript.push(&format!("@cloven figure realm.host.{figure} x"), |_| None);
        }
        let set = "rsi cpu0 realm=0x1 rec=0 @1 RSI_IPA_STATE_SET base=0x0 -> RSI_SUCCESS response=ACCEPT";
        let call = "rsi cpu1 realm=0x1 rec=1 @1 RSI_HOST_CALL addr=0x0 -> RSI_SUCCESS";
        let enter = "rmi cpu0 @1 RMI_REC_ENTER rec=0x0 run_ptr=0x0 -> RMI_SUCCESS exit=IRQ x6";
        transcript.trace = [set, call, enter, set].map(str::to_owned).to_vec();
        assert_eq!(problem(&transcript), None);
        transcript.trace.pop();
        assert_eq!(problem(&transcript).unwrap(), "1 calls of RSI_IPA_STATE_SET were told, and 2 counted");
        transcript.trace.push("rsi cpu0 real".to_owned());
        assert!(problem(&transcript).unwrap().contains("no line of a trace"));
    }

    #[test]
    fn an_older_qemu_is_named_in_one_line() {
        let path = Path::new("/usr/bin/qemu-system-aarch64");
        let error = check_qemu(Some((9, 0)), path).unwrap_err().to_string();
        assert!(error.contains("is QEMU 9.0") && error.contains("QEMU 9.1 or newer"), "{error}");
        assert!(check_qemu(Some((9, 1)), path).is_ok() && check_qemu(Some((10, 0)), path).is_ok());
    }
}
