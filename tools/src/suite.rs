//! `cargo xtask test`: all tests, or one part of them.
//!
//! Invariant: every test that was asked for ends as passed, failed or skipped with a reason, and the last line counts them.

use std::{
    fmt, fs,
    io::{self, Read, Write},
    path::PathBuf,
    process::{Child, Command, Stdio},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::{
    console::{Check, CheckResult},
    dump,
    images::{self, Image},
    linux::{Store, Version},
    qemu::{Ended, Follow, Machine, Qemu, Size},
    report,
    run::{self, Bbm, Host, Job, Late, Lifecycle, MachineArgs, Outcome, Policy, Verdict},
    tree::Ram,
    workspace,
};

/// How long a run may take whose end is known to come at once.
const SHORT: Duration = Duration::from_secs(60);

/// A part of the tests.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// The crates' own tests on this machine
    Unit,
    /// The mapping engine against a machine model: every schedule on small tables, planted faults
    Model,
    /// The hypervisor with its embedded payload in QEMU
    Qemu,
    /// The hypervisor with a stock Linux as the host in QEMU
    Linux,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Unit => "unit",
            Self::Model => "model",
            Self::Qemu => "qemu",
            Self::Linux => "linux",
        })
    }
}

/// The options of `cargo xtask test`.
#[derive(Args, Clone, Debug)]
pub struct TestArgs {
    /// The part to run; all of them if none is named
    #[arg(value_enum)]
    part: Option<Part>,
    /// Run the long matrices too
    #[arg(long)]
    full: bool,
    /// Run only the tests in QEMU whose names contain this
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    only: Option<String>,
    /// Write the results to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The seed of what is random in the unit tests and in the hostile payload
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    machine: MachineArgs,
}

/// Calls that the mapping engine's random tests make in each regime with each set of capabilities, with `--full`.
const FULL_OPERATIONS: u64 = 1_000_000;

/// How a test ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Ending {
    Passed,
    Failed,
    Skipped,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Passed => "passed",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
        })
    }
}

/// The result of one test, or of one binary of unit tests.
#[derive(Clone, Debug, Serialize)]
struct TestResult {
    name: String,
    part: Part,
    result: Ending,
    seconds: f64,
    /// How many tests passed, failed and were skipped in it.
    #[serde(skip)]
    counts: [u32; 3],
    /// Why it failed or was skipped.
    #[serde(skip)]
    reason: String,
}

impl TestResult {
    fn new(
        name: impl Into<String>,
        part: Part,
        result: Ending,
        seconds: f64,
        reason: impl Into<String>,
    ) -> Self {
        let counts =
            [Ending::Passed, Ending::Failed, Ending::Skipped].map(|ending| u32::from(ending == result));
        Self {
            name: name.into(),
            part,
            result,
            seconds: report::rounded(seconds),
            counts,
            reason: reason.into(),
        }
    }
}

/// The results so far, each printed when it comes.
#[derive(Default)]
struct Results(Vec<TestResult>);

impl Results {
    fn add(&mut self, result: TestResult) {
        print!("{:7}  {}: {}, {} s", result.result, result.part, result.name, result.seconds);
        println!("{}", if result.reason.is_empty() { String::new() } else { format!(": {}", result.reason) });
        self.0.push(result);
    }
}

/// Carries out `cargo xtask test`; returns whether nothing failed.
pub fn run(args: &TestArgs) -> Result<bool> {
    ensure!(
        !matches!(args.part, Some(Part::Unit | Part::Model)) || !args.machine.is_given(),
        "the parts unit and model run on this machine: options of the emulated one are for qemu and linux"
    );
    report::check_json(args.json.as_deref())?;
    let wanted = |part| args.part.is_none_or(|only| only == part);
    let mut results = Results::default();
    let mut miri = None;
    if wanted(Part::Unit) && args.only.is_none() {
        miri = under_miri(args, &mut results)?;
        unit(args, &mut results)?;
    }
    if wanted(Part::Model) && args.only.is_none() {
        model(args, &mut results)?;
    }
    let named = |scenario: &Scenario| args.only.as_ref().is_none_or(|text| scenario.title().contains(text));
    let scenarios: Vec<Scenario> = scenarios(args.full)
        .into_iter()
        .filter(|scenario| wanted(scenario.part()) && named(scenario))
        .collect();
    ensure!(
        args.only.is_none() || !scenarios.is_empty(),
        "no test in QEMU has a name with this text: `cargo xtask test qemu` prints the names"
    );
    if !scenarios.is_empty() {
        emulate(scenarios, args, &mut results)?;
    }
    if let Some(miri) = miri {
        miri.end(&mut results)?;
    }
    let Results(results) = results;
    print!("{}", summary(&results));
    report::write_json(args.json.as_deref(), &results)?;
    let failed = results.iter().any(|result| result.result == Ending::Failed);
    let [passed, failures, skipped] = totals(&results);
    println!("{passed} passed, {failures} failed, {skipped} skipped");
    Ok(!failed)
}

fn totals(results: &[TestResult]) -> [u32; 3] {
    results.iter().fold([0; 3], |sum, result| std::array::from_fn(|at| sum[at] + result.counts[at]))
}

/// The table of all results, and what was skipped and why.
fn summary(results: &[TestResult]) -> String {
    let rows: Vec<_> = results
        .iter()
        .map(|result| {
            let seconds = format!("{:8.2}", result.seconds);
            vec![result.part.to_string(), result.result.to_string(), seconds, result.name.clone()]
        })
        .collect();
    let mut text = format!("\n{}\n", report::table(&["part", "result", "seconds", "name"], &rows));
    for (ending, title) in [(Ending::Skipped, "skipped:"), (Ending::Failed, "FAILED:")] {
        let mut lines = results.iter().filter(|result| result.result == ending).peekable();
        if lines.peek().is_some() {
            text += &format!("{title}\n");
        }
        for result in lines {
            text += &format!("  {}: {}: {}\n", result.part, result.name, result.reason);
        }
    }
    text
}

/// The mapping engine against the machine model.
fn model(args: &TestArgs, results: &mut Results) -> Result<()> {
    let mut tests = workspace::cargo();
    tests.args(["test", "--no-fail-fast", "-p", workspace::MODEL]);
    tests.env("CLOVEN_SEED", args.seed.to_string());
    if args.full {
        tests.env("CLOVEN_OPERATIONS", FULL_OPERATIONS.to_string());
    }
    cargo_test(tests, Part::Model, "", results)
}

/// The tests of the crates on this machine.
fn unit(args: &TestArgs, results: &mut Results) -> Result<()> {
    let mut tests = workspace::cargo();
    tests.args(["test", "--no-fail-fast", "--all-features"]);
    let crates = workspace::HOST_CRATES.iter().filter(|name| **name != workspace::MODEL);
    tests.args(crates.flat_map(|name| ["-p", name]));
    tests.env("CLOVEN_SEED", args.seed.to_string());
    if args.full {
        tests.env("CLOVEN_OPERATIONS", FULL_OPERATIONS.to_string());
    }
    cargo_test(tests, Part::Unit, "", results)
}

/// Starts the tests of the mapping engine under Miri. They take one CPU for minutes, and only what the tests after them leave of it.
fn under_miri(args: &TestArgs, results: &mut Results) -> Result<Option<Beside>> {
    const MIRI: &str = "hyp src/lib.rs, mapping, under Miri";
    if let Err(error) = workspace::ensure_miri() {
        results.add(TestResult::new(MIRI, Part::Unit, Ending::Skipped, 0.0, format!("{error:#}")));
        return Ok(None);
    }
    let mut miri = workspace::cargo_nightly();
    // These tests are of large tables, and single calls: minutes in which nothing new is seen.
    miri.args(["miri", "test", "-p", "hyp", "--lib", "mapping::", "--"]);
    let single =
        ["behaviour", "collapse", "tests::alias", "tests::prepared", "tests::tables", "tests::weaken"];
    miri.args(single.iter().flat_map(|name| ["--skip", name]));
    miri.env("CLOVEN_SEED", args.seed.to_string());
    // The seed comes by the environment.
    miri.env("MIRIFLAGS", "-Zmiri-disable-isolation");
    Beside::start(miri, Part::Unit, ", mapping, under Miri").map(Some)
}

/// Runs a `cargo test` command, passes its output on and takes one result from each test binary.
fn cargo_test(command: Command, part: Part, suffix: &'static str, results: &mut Results) -> Result<()> {
    let (tests, reader) = Tests::start(command, part, suffix)?;
    let ended = tests.follow(reader, io::stdout().lock())?;
    ended.into_iter().for_each(|result| results.add(result));
    Ok(())
}

/// A `cargo test` command that runs.
struct Tests {
    child: Child,
    start: Instant,
    part: Part,
    /// What the name of each binary gets.
    suffix: &'static str,
}

impl Tests {
    /// Starts it: the tests, and what they print.
    fn start(mut command: Command, part: Part, suffix: &'static str) -> Result<(Self, io::PipeReader)> {
        let start = Instant::now();
        let shown = workspace::shown(&command);
        println!("{shown}");
        let (reader, writer) = io::pipe().context("cannot make a pipe")?;
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        // The command holds the writing end, and goes with this call: else the end of the output would never be seen.
        let child = command.spawn().with_context(|| format!("cannot start `{shown}`"))?;
        Ok((Self { child, start, part, suffix }, reader))
    }

    /// Passes on what it prints until it ends; one result for each test binary.
    fn follow(mut self, from: impl Read, out: impl Write) -> Result<Vec<TestResult>> {
        let Self { part, suffix, .. } = self;
        let mut binary = "tests".to_owned();
        let mut results = Vec::new();
        pass_on(from, out, |line| {
            if let Some(name) = test_binary(line) {
                binary = name + suffix;
            } else if let Some((counts, seconds)) = parse_test_result(line)
                && counts.iter().any(|count| *count > 0)
            {
                let (ending, reason) = match counts {
                    [_, failures, _] if failures > 0 => {
                        (Ending::Failed, format!("{failures} of its tests failed, see above"))
                    }
                    [0, _, _] => (Ending::Skipped, "all its tests are marked #[ignore]".to_owned()),
                    _ => (Ending::Passed, String::new()),
                };
                results.push(TestResult {
                    counts,
                    ..TestResult::new(binary.as_str(), part, ending, seconds, reason)
                });
            }
        })
        .context("cannot read the output of the tests")?;
        let status = self.child.wait().context("cannot wait for the tests")?;
        let failed = results.iter().any(|result| result.result == Ending::Failed);
        if !status.success() && !failed {
            let seconds = self.start.elapsed().as_secs_f64();
            results.push(TestResult::new("cargo test", part, Ending::Failed, seconds, status.to_string()));
        }
        Ok(results)
    }
}

/// A `cargo test` command that runs beside other tests and takes no time from them. What it prints comes when they are done.
struct Beside(JoinHandle<Result<(Vec<u8>, Vec<TestResult>)>>);

impl Beside {
    fn start(command: Command, part: Part, suffix: &'static str) -> Result<Self> {
        let (tests, reader) = Tests::start(workspace::at_leisure(command), part, suffix)?;
        Ok(Self(thread::spawn(move || {
            let mut printed = Vec::new();
            let results = tests.follow(reader, &mut printed)?;
            Ok((printed, results))
        })))
    }

    /// Waits for its end.
    fn end(self, results: &mut Results) -> Result<()> {
        let (printed, ended) = self.0.join().map_err(|_| anyhow::anyhow!("the tests were lost"))??;
        io::stdout().write_all(&printed)?;
        ended.into_iter().for_each(|result| results.add(result));
        Ok(())
    }
}

/// Copies to `out` as it comes (a test that hangs has printed its name but no line end), and gives each finished line to `take`.
fn pass_on(mut from: impl Read, mut out: impl Write, mut take: impl FnMut(&str)) -> io::Result<()> {
    let mut buffer = [0; 4096];
    let mut line = Vec::new();
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        out.write_all(&buffer[..count])?;
        out.flush()?;
        line.extend(&buffer[..count]);
        while let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            take(&String::from_utf8_lossy(&line[..end]));
            line.drain(..=end);
        }
    }
}

/// The name of the binary whose tests follow: `Running unittests src/lib.rs (…/hyp-0123456789abcdef)` or
/// `Doc-tests hyp`.
fn test_binary(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(name) = line.strip_prefix("Doc-tests ") {
        return Some(format!("{name} documentation"));
    }
    let (source, program) = line.strip_prefix("Running ")?.strip_suffix(')')?.rsplit_once(" (")?;
    let program = program.rsplit('/').next()?;
    let name = program.rsplit_once('-').map_or(program, |(name, _)| name);
    Some(format!("{name} {}", source.trim_start_matches("unittests ")))
}

/// Passed, failed and ignored, and the seconds, of `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
fn parse_test_result(line: &str) -> Option<([u32; 3], f64)> {
    let (_, numbers) = line.trim().strip_prefix("test result: ")?.split_once(". ")?;
    let number =
        |what: &str| numbers.split("; ").find_map(|part| part.strip_suffix(what)?.trim().parse().ok());
    let seconds =
        numbers.rsplit_once("finished in ").and_then(|(_, time)| time.strip_suffix('s')?.parse().ok());
    Some(([number("passed")?, number("failed")?, number("ignored")?], seconds.unwrap_or(0.0)))
}

/// What a run must come to for its test to pass.
#[derive(Clone, Copy, Debug)]
enum Expect {
    /// The verdict is pass.
    Pass,
    /// A check whose name begins so fails, and the run comes to its end.
    Fail(&'static str),
    /// These texts stand on the console, whatever comes then, and no check of the guest's before them failed.
    Lines(&'static [&'static str]),
    /// The hypervisor ends with a fatal message that contains this text.
    Fatal(&'static str),
    /// The hypervisor reports a fault of its own, with a backtrace through this function.
    Fault(&'static str),
}

impl Expect {
    /// Nothing if `outcome` is what was expected, else why it is not.
    fn judge(self, outcome: &Outcome) -> Option<String> {
        let fatal = outcome.transcript.fatal.as_deref();
        let problem = match self {
            Self::Pass if outcome.verdict == Verdict::Pass => return None,
            Self::Pass => outcome.reasons.join("; "),
            Self::Fail(_) if outcome.ended != Ended::Off => "the run did not come to its end".to_owned(),
            Self::Fail(name) => {
                let meant = |check: &Check| check.result == CheckResult::Fail && check.name.starts_with(name);
                if outcome.checks.iter().any(meant) {
                    return None;
                }
                format!("no check {name}… failed")
            }
            Self::Lines(_) if outcome.ended == Ended::Seen => {
                let failed = outcome.transcript.checks.iter().find(|it| it.result == CheckResult::Fail);
                match (failed, &outcome.transcript.kernel_fault) {
                    (Some(check), _) => format!("the check {} failed: {}", check.name, check.detail),
                    (None, Some(fault)) => format!("Linux broke: {fault}"),
                    (None, None) => return None,
                }
            }
            Self::Lines(texts) => format!("these texts did not all come: {}", texts.join(", ")),
            Self::Fatal(text) => match fatal {
                Some(message) if message.contains(text) => return None,
                Some(message) => format!("the fatal message has no '{text}': {message}"),
                None => format!("there was no fatal message with '{text}'"),
            },
            Self::Fault(function) => match fatal {
                Some(_) if outcome.transcript.calls.iter().any(|call| call.contains(function)) => {
                    return None;
                }
                Some(_) => format!("the backtrace does not name {function}"),
                None => "there was no fatal message".to_owned(),
            },
        };
        let last: Vec<&str> = outcome.transcript.tail().collect();
        Some(format!("{problem}\n    {}", last.join("\n    ")))
    }
}

/// How the device tree of a run is damaged. Both damages are such that QEMU itself still takes it.
#[derive(Clone, Copy, Debug)]
enum Damage {
    /// The interrupt controller's `compatible` has a name outside the block of strings.
    Name,
    /// The first CPU's `reg` has no length that holds whole cells.
    Length,
}

impl Damage {
    /// Damages a flattened device tree (Devicetree Specification 0.4, 5.4.1: a property is the token 3, its length, the offset of
    /// its name, and its value).
    fn inflict(self, tree: &mut [u8]) -> Result<()> {
        const PROPERTY: [u8; 4] = 3u32.to_be_bytes();
        match self {
            Self::Name => {
                let value = find(tree, b"arm,gic-v3\0").context("the device tree has no GICv3")?;
                ensure!(
                    tree.get(value - 12..value - 8) == Some(&PROPERTY),
                    "no property stands before its value"
                );
                tree[value - 4..value].copy_from_slice(&0x7fff_ff00u32.to_be_bytes());
            }
            Self::Length => {
                let node = find(tree, b"cpu@0\0\0\0").context("the device tree has no first CPU")?;
                let names = word(tree, 12).context("the device tree has no header")?;
                let name = find(&tree[names..], b"\0reg\0").context("the device tree has no reg")? + 1;
                let header = [PROPERTY, 4u32.to_be_bytes(), u32::try_from(name)?.to_be_bytes()].concat();
                let at =
                    node + find(&tree[node..], &header).context("the first CPU has no reg of one cell")?;
                tree[at + 4..at + 8].copy_from_slice(&3u32.to_be_bytes());
            }
        }
        Ok(())
    }
}

fn find(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).position(|window| window == part)
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize)
}

/// One boot of the hypervisor, and what must come of it.
#[derive(Clone, Debug)]
struct Scenario {
    /// The behaviour that it shows.
    name: &'static str,
    machine: Machine,
    /// The version of the host's kernel; without one the embedded payload runs.
    linux: Option<&'static str>,
    features: &'static [&'static str],
    /// Seconds for which the Linux works while its memory changes.
    work: Option<u64>,
    /// What the hypervisor is told of its CPUs.
    lifecycle: Lifecycle,
    /// Words on the command line.
    append: &'static [&'static str],
    damage: Option<Damage>,
    /// Whether U-Boot boots it.
    u_boot: bool,
    expect: Expect,
}

impl Scenario {
    fn payload(cpus: u32, memory: Size, cpu: &str) -> Self {
        let machine = Machine { cpus, memory, cpu: cpu.to_owned(), ..Machine::default() };
        Self {
            name: "the payload's checks hold",
            machine,
            linux: None,
            features: &[],
            work: None,
            lifecycle: Lifecycle::default(),
            // Its realm is a small one: those of their own tests are larger.
            append: &["cloven.realm=16M", "cloven.requests=50"],
            damage: None,
            u_boot: false,
            expect: Expect::Pass,
        }
    }

    fn linux(version: &'static str, cpus: u32, memory: Size, cpu: &str) -> Self {
        let name = "a stock Linux runs as the host";
        Self { name, linux: Some(version), append: &[], ..Self::payload(cpus, memory, cpu) }
    }

    /// The same without an interrupt translation service.
    fn without_its(self) -> Self {
        Self { machine: Machine { its: false, ..self.machine }, ..self }
    }

    /// As [`Scenario::linux`], at work while its memory is split, protected and joined at random: for ten seconds, or with `full` for 30
    /// minutes.
    fn work(bbm: Bbm, full: bool) -> Self {
        Self {
            name: match full {
                false => "a stock Linux works while its memory is split, protected and joined",
                true => "a stock Linux works for 30 minutes while its memory is split, protected and joined",
            },
            features: &[run::TRIAL],
            lifecycle: Lifecycle { bbm: Some(bbm), ..Lifecycle::default() },
            work: Some(if full { 30 * 60 } else { 10 }),
            ..Self::linux("7.2", 4, GIB, "max")
        }
    }

    /// A run of the payload that must come to something else than a pass.
    fn other(name: &'static str, expect: Expect) -> Self {
        Self { name, expect, ..Self::payload(4, GIB, "max") }
    }

    /// Changes of live maps under CPUs that use them: with `full` as many as `run` makes.
    fn trials(bbm: Bbm, full: bool) -> Self {
        Self {
            append: if full {
                &["cloven.realm=16M"]
            } else {
                &["cloven.changes=2000", "cloven.realm=16M", "cloven.requests=50"]
            },
            name: "maps change under their users",
            features: &[run::TRIAL],
            lifecycle: Lifecycle { bbm: Some(bbm), ..Lifecycle::default() },
            ..Self::payload(4, GIB, "max")
        }
    }

    /// The hypervisor attacked from all CPUs: with `full` as often as `run --hostile` does it.
    fn hostile(full: bool) -> Self {
        Self {
            name: "a hostile payload finds nothing",
            features: &[images::STAND_IN],
            append: if full { &[] } else { &["cloven.operations=200000"] },
            ..Self::payload(4, GIB, "max")
        }
    }

    /// Requests to change the payload's own map and EL2's while the CPUs come.
    fn lifecycle(cpus: u32, lifecycle: Lifecycle) -> Self {
        // Many emulated CPUs on few cores take long to stand still.
        let few: &[&str] = if cpus > 4 { &["cloven.requests=100"] } else { &["cloven.requests=300"] };
        Self {
            name: "lifecycle: no request is refused while CPUs come",
            features: &[images::LIFECYCLE],
            append: few,
            lifecycle,
            ..Self::payload(cpus, GIB, "max")
        }
    }

    /// A realm on as many RECs as there are CPUs, whose host and hypervisor believe in one level: a small one that makes some hundred requests,
    /// or with `full` one of 1 GiB that makes tens of thousands.
    fn realm(recs: u32, bbm: Bbm, full: bool) -> Self {
        let (memory, append): (Size, &[&str]) = match full {
            false => (GIB, &["cloven.changes=100", "cloven.requests=300", "cloven.realm=16M"]),
            true => (Size(4 << 30), &["cloven.changes=100", "cloven.requests=40000", "cloven.realm=1G"]),
        };
        Self {
            name: match full {
                false => "a realm shares its memory and takes it back",
                true => "a realm of 1 GiB shares its memory and takes it back",
            },
            append,
            features: &[run::TRIAL],
            lifecycle: Lifecycle { bbm: Some(bbm), ..Lifecycle::default() },
            ..Self::payload(recs, memory, "max")
        }
    }

    /// The same with a host that does as it may, but not as it should.
    fn realm_of(name: &'static str, append: &'static [&'static str]) -> Self {
        Self { name, append, ..Self::payload(2, GIB, "max") }
    }

    /// A stock Linux as the host of CPUs that differ.
    fn linux_on(lifecycle: Lifecycle) -> Self {
        Self { features: &[run::TRIAL], lifecycle, ..Self::linux("7.2", 4, GIB, "max") }
    }

    fn is_hostile(&self) -> bool {
        self.features.contains(&images::STAND_IN)
    }

    /// What is wrong with the maps that a build for dumps printed.
    fn map_problem(&self, outcome: &Outcome) -> Option<String> {
        if !self.features.contains(&images::DUMP) {
            return None;
        }
        let Some(reserved) = outcome.transcript.figure("memory.reserved") else {
            return Some("the hypervisor did not say how much memory it reserved".to_owned());
        };
        let trials = outcome.checks.iter().any(|check| check.name.starts_with("trial."));
        dump::problem(&outcome.transcript.dumps, self.machine.mappable(), reserved, trials)
    }

    fn part(&self) -> Part {
        if self.linux.is_some() { Part::Linux } else { Part::Qemu }
    }

    /// How long it may take, with trials of live changes or without.
    fn timeout(&self, trials: bool) -> Duration {
        match (self.linux, self.expect) {
            (Some(_), _) => run::LINUX_TIMEOUT + Duration::from_secs(self.work.unwrap_or(0)),
            // A thousand of its granules are looked at in the time of one request.
            (None, Expect::Pass) if self.append.contains(&"cloven.realm=1G") => run::HOSTILE_TIMEOUT,
            // Each of their invalidations stops all emulated CPUs, on whatever cores there are.
            (None, Expect::Pass) if trials => run::LINUX_TIMEOUT,
            (None, Expect::Pass) if self.is_hostile() => run::HOSTILE_TIMEOUT,
            (None, Expect::Pass) => run::PAYLOAD_TIMEOUT,
            (None, _) => SHORT,
        }
    }

    fn title(&self) -> String {
        let Machine { cpus, memory, cpu, .. } = &self.machine;
        let linux = self.linux.map_or_else(String::new, |version| format!("Linux {version}, "));
        let its = if self.machine.its { "" } else { ", no ITS" };
        format!(
            "{} ({linux}{cpus} CPU{}, {memory}, {cpu}{its}{})",
            self.name,
            if *cpus == 1 { "" } else { "s" },
            self.lifecycle
        )
    }
}

const GIB: Size = Size(1 << 30);

/// What a hypervisor may believe of its CPUs.
const LEVELS: [Bbm; 4] = [Bbm::all(0), Bbm::all(1), Bbm::all(2), Bbm::all(3)];

/// What becomes of blocks.
const POLICIES: [Policy; 3] = [Policy::Keep, Policy::Repaint, Policy::Pages];

/// The boot CPU's level, that of the others, and a policy.
fn mixed(boot: u8, others: u8, policy: Policy) -> Lifecycle {
    Lifecycle { bbm: Some(Bbm::Levels(boot, others)), policy: Some(policy), ..Lifecycle::default() }
}

/// As [`mixed`], with the set final on the boot CPU alone: all others come late, to this answer.
fn late(boot: u8, others: u8, policy: Policy, answer: Late) -> Lifecycle {
    Lifecycle { late: Some(answer), finalize: Some(1), ..mixed(boot, others, policy) }
}

/// Every pair of levels.
fn pairs() -> impl Iterator<Item = (u8, u8)> {
    (0..4).flat_map(|boot| (0..4).map(move |others| (boot, others)))
}

/// Requests while CPUs come: twelve in which each level stands on each side, each policy on each number of CPUs that it differs for, and who comes
/// late is admitted and denied; with `full` all of them.
fn lifecycles(full: bool) -> Vec<Scenario> {
    use Late::{Admit, Deny};
    use Policy::{Keep, Pages, Repaint};
    let one_later =
        |cpus, lifecycle| Scenario::lifecycle(cpus, Lifecycle { finalize: Some(cpus - 1), ..lifecycle });
    let mut all = vec![
        Scenario::lifecycle(1, mixed(0, 0, Keep)),
        Scenario::lifecycle(4, mixed(3, 3, Keep)),
        Scenario::lifecycle(4, mixed(3, 0, Keep)),
        Scenario::lifecycle(2, mixed(0, 3, Keep)),
        Scenario::lifecycle(8, mixed(1, 2, Keep)),
        Scenario::lifecycle(4, mixed(3, 0, Repaint)),
        Scenario::lifecycle(4, mixed(0, 0, Repaint)),
        Scenario::lifecycle(8, late(3, 1, Repaint, Admit)),
        Scenario::lifecycle(4, late(3, 0, Repaint, Deny)),
        one_later(4, mixed(3, 3, Pages)),
        Scenario::lifecycle(2, mixed(2, 1, Pages)),
        Scenario::lifecycle(4, late(3, 2, Pages, Admit)),
    ];
    if full {
        for policy in POLICIES {
            // No others, no difference.
            all.extend((0..4).map(|level| Scenario::lifecycle(1, mixed(level, level, policy))));
            for (boot, others) in pairs() {
                all.extend([2, 4, 8].map(|cpus| Scenario::lifecycle(cpus, mixed(boot, others, policy))));
                all.push(one_later(4, mixed(boot, others, policy)));
                all.extend(
                    [Admit, Deny].map(|answer| Scenario::lifecycle(4, late(boot, others, policy, answer))),
                );
            }
        }
    }
    all
}

/// Realms: each number of RECs and each level stand in one; with `full` each of one with each of the other.
fn realms(full: bool) -> Vec<Scenario> {
    let mut all = vec![
        Scenario::realm(1, Bbm::all(0), false),
        Scenario::realm(2, Bbm::all(1), false),
        Scenario::realm(4, Bbm::all(2), false),
        Scenario::realm(4, Bbm::all(3), false),
        Scenario::realm(4, Bbm::all(0), false),
        Scenario::realm_of(
            "a realm goes on where its host changes RIPAS bit by bit",
            &["cloven.requests=100", "cloven.realm=16M", "cloven.partial=64K"],
        ),
        Scenario::realm_of(
            "a realm asks again for what its host has refused",
            &["cloven.requests=100", "cloven.realm=16M", "cloven.reject=5"],
        ),
        Scenario::realm_of(
            "a realm gets memory back that its host had taken meanwhile",
            &["cloven.requests=100", "cloven.realm=16M", "cloven.reclaim=1"],
        ),
    ];
    if full {
        for recs in [1, 2, 4] {
            all.extend(LEVELS.map(|bbm| Scenario::realm(recs, bbm, true)));
        }
    }
    all
}

/// All scenarios; with `full` every combination that a user may choose from.
fn scenarios(full: bool) -> Vec<Scenario> {
    let half = Size(512 << 20);
    let mut all = vec![
        Scenario::payload(1, GIB, "max"),
        Scenario::payload(2, half, "max"),
        Scenario::payload(4, Size(4 << 30), "max"),
        Scenario::payload(8, GIB, "max"),
        Scenario::payload(4, Size(256 << 30), "max"),
        Scenario::payload(4, GIB, "cortex-a72"),
        Scenario::payload(2, Size(4 << 30), "neoverse-n1"),
        Scenario {
            machine: Machine { el2: false, ..Machine::default() },
            ..Scenario::other("an image started at EL1 says so", Expect::Lines(&["must be started at EL2"]))
        },
        Scenario {
            machine: Machine { image_at: Some(0x7800_0000), ..Machine::default() },
            ..Scenario::other("the image runs wherever a boot loader puts it", Expect::Pass)
        },
        Scenario {
            machine: Machine { image_at: Some(0x5810_0000), ..Machine::default() },
            ..Scenario::other(
                "an image at no multiple of 2 MiB says so",
                Expect::Lines(&["not loaded at a multiple of 2 MiB"]),
            )
        },
        Scenario {
            machine: Machine { gic: 2, ..Machine::default() },
            ..Scenario::other("a machine with a GICv2 is refused", Expect::Fatal("GICv2"))
        },
        Scenario {
            damage: Some(Damage::Name),
            ..Scenario::other("a device tree with a broken name is refused", Expect::Fatal("device tree"))
        },
        Scenario {
            damage: Some(Damage::Length),
            ..Scenario::other("a device tree with a broken value is refused", Expect::Fatal("device tree"))
        },
        Scenario {
            features: &["broken-stage2"],
            ..Scenario::other("the payload notices a broken stage 2", Expect::Fail("forbidden."))
        },
        Scenario {
            features: &["own-fault"],
            ..Scenario::other(
                "a fault of the hypervisor is traced to its function",
                Expect::Fault("own_fault"),
            )
        },
    ];
    all.push(Scenario { u_boot: true, ..Scenario::other("U-Boot boots the image", Expect::Pass) });
    all.push(Scenario {
        name: "U-Boot boots it with a stock Linux as the host",
        u_boot: true,
        ..Scenario::linux("7.2", 4, GIB, "max")
    });
    for (name, machine) in own_trees() {
        all.push(Scenario { name, machine: machine.clone(), ..Scenario::payload(4, GIB, "max") });
        all.push(Scenario { name, machine, ..Scenario::linux("7.2", 4, GIB, "max") });
    }
    all.extend(LEVELS.map(|bbm| Scenario::trials(bbm, full)));
    all.push(Scenario {
        name: "maps that are printed say what they must",
        features: &[images::DUMP],
        append: &[dump::PARAMETER],
        ..Scenario::payload(1, half, "max")
    });
    all.push(Scenario {
        name: "maps that are printed say what they must, before and after trials",
        features: &[run::TRIAL, images::DUMP],
        // So few that they do not end with blocks again.
        append: &[dump::PARAMETER, "cloven.changes=100"],
        ..Scenario::trials(Bbm::all(3), full)
    });
    all.push(Scenario::hostile(full));
    all.extend(lifecycles(full));
    if run::REALM_IS_DUE {
        all.extend(realms(full));
    }
    let gib = |count: u64| Size(count << 30);
    all.extend([
        Scenario::linux("7.2", 4, GIB, "max"),
        Scenario::linux("7.2", 1, half, "cortex-a72"),
        Scenario::linux("7.2", 2, gib(64), "neoverse-n2"),
        Scenario::linux("6.18", 4, gib(2), "cortex-a76").without_its(),
        Scenario::linux("6.18", 1, gib(4), "neoverse-n1"),
        Scenario {
            name: "a stock Linux starts on one CPU and takes the others later",
            append: &["maxcpus=1"],
            ..Scenario::linux("6.12", 4, gib(2), "cortex-a72")
        },
        Scenario {
            name: "a stock Linux suspends to idle",
            append: &["cloven.suspend"],
            ..Scenario::linux("7.2", 2, GIB, "neoverse-n1")
        },
        Scenario {
            name: "a stock Linux starts again after a reset",
            append: &["cloven.reboot"],
            machine: Machine { cpus: 2, resets: true, ..Machine::default() },
            expect: Expect::Lines(&["info: Cloven", "@cloven done", "info: Cloven", "@cloven done"]),
            ..Scenario::linux("6.18", 2, GIB, "max")
        },
    ]);
    all.extend(LEVELS.map(|bbm| Scenario::work(bbm, false)));
    all.extend([mixed(3, 0, Policy::Repaint), mixed(0, 3, Policy::Keep)].map(Scenario::linux_on));
    if full {
        all.extend(LEVELS.map(|bbm| Scenario::work(bbm, true)));
        all.extend(pairs().map(|(boot, others)| Scenario::linux_on(mixed(boot, others, Policy::Keep))));
        for cpu in ["max", "cortex-a72", "cortex-a76", "cortex-a710", "neoverse-n1", "neoverse-n2"] {
            for memory in [half, GIB, Size(4 << 30), Size(256 << 30)] {
                all.extend([1, 2, 4, 8].map(|cpus| Scenario::payload(cpus, memory, cpu)));
            }
        }
        all.extend(pairwise(MATRIX.map(|values| values.len())).into_iter().map(|chosen| {
            let [version, cpus, memory, cpu, its] = std::array::from_fn(|at| MATRIX[at][chosen[at]]);
            let (cpus, memory) = (cpus.parse().unwrap_or(1), memory.parse().unwrap_or(GIB));
            let scenario = Scenario::linux(version, cpus, memory, cpu);
            if its == "its" { scenario } else { scenario.without_its() }
        }));
    }
    unique(all)
}

/// Machines whose RAM is not QEMU's one bank that is all free.
fn own_trees() -> [(&'static str, Machine); 2] {
    let banks = Ram {
        banks: &[(0x4000_0000, 512 << 20), (300 << 30, 1 << 30)],
        no_map: &[],
        reserved: &[],
        memreserve: &[],
    };
    // Beside the image, at no multiple of 2 MiB; where the host's tree would go; and wherever else.
    let reserved = Ram {
        banks: &[(0x4000_0000, 1 << 30)],
        no_map: &[(0x5bff_0000, 0x1_0000), (0x6010_0000, 0x5000)],
        reserved: &[(0x4000_0000, 0x20_0000), (0x6200_1000, 0x3000)],
        memreserve: &[(0x6300_0000, 0x1_0000)],
    };
    let machine = |place, memory, ram| Machine {
        image_at: Some(place),
        memory: Size(memory),
        ram: Some(ram),
        ..Machine::default()
    };
    [
        (
            "RAM in two banks, the image in one above 256 GiB",
            machine((300 << 30) + (512 << 20), 301 << 30, banks),
        ),
        ("RAM that is reserved in each of three ways", machine(0x5c00_0000, 1 << 30, reserved)),
    ]
}

/// What a Linux host is to run on: version, CPUs, memory, CPU model, interrupt translation service.
const MATRIX: [&[&str]; 5] = [
    &["7.2", "6.18", "6.12"],
    &["4", "1", "2", "8"],
    &["512M", "2G", "4G", "64G", "256G"],
    &["max", "cortex-a72", "cortex-a76", "neoverse-n1", "neoverse-n2"],
    &["its", "none"],
];

/// Choices of one value from each of `N` lists of these lengths, such that every two values of two lists stand in one of them together.
///
/// Greedy: each choice begins with a pair that is missing, and takes in each other list the value with the most missing pairs.
fn pairwise<const N: usize>(lengths: [usize; N]) -> Vec<[usize; N]> {
    let values = |list: usize| (0..lengths[list]).map(move |value| (list, value));
    let all = || (0..N).flat_map(values);
    let mut missing: Vec<[(usize, usize); 2]> =
        all().flat_map(|a| all().filter(move |b| a.0 < b.0).map(move |b| [a, b])).collect();
    let mut choices = Vec::new();
    while let Some(&[a, b]) = missing.first() {
        let mut chosen: [Option<usize>; N] = [None; N];
        for (list, value) in [a, b] {
            chosen[list] = Some(value);
        }
        let has = |chosen: &[Option<usize>; N], (list, value): (usize, usize)| chosen[list] == Some(value);
        for list in 0..N {
            let gain = |value: usize| {
                let mut with = chosen;
                with[list] = Some(value);
                missing.iter().filter(|pair| pair.iter().all(|&part| has(&with, part))).count()
            };
            // The first of the best.
            let best = (0..lengths[list]).rev().max_by_key(|&value| gain(value));
            chosen[list] = chosen[list].or(best);
        }
        missing.retain(|pair| !pair.iter().all(|&part| has(&chosen, part)));
        choices.push(chosen.map(Option::unwrap_or_default));
    }
    choices
}

/// The scenarios without those that are named like one before them.
fn unique(scenarios: Vec<Scenario>) -> Vec<Scenario> {
    let mut titles = Vec::new();
    let mut fresh = |scenario: &Scenario| {
        let title = scenario.title();
        let new = !titles.contains(&title);
        titles.push(title);
        new
    };
    scenarios.into_iter().filter(|scenario| fresh(scenario)).collect()
}

/// Runs scenarios in QEMU.
fn emulate(scenarios: Vec<Scenario>, args: &TestArgs, results: &mut Results) -> Result<()> {
    let qemu = Qemu::locate()?;
    if let Some(cpu) = &args.machine.cpu {
        qemu.check_cpu(cpu)?;
    }
    let scenarios = scenarios
        .into_iter()
        .map(|scenario| Scenario { machine: args.machine.apply(scenario.machine.clone()), ..scenario })
        .collect();
    let mut lab = Lab { qemu, images: Vec::new(), store: Store::open()? };
    for scenario in unique(scenarios) {
        let start = Instant::now();
        let (ending, reason) = match lab.problem(&scenario, args) {
            Ok(None) => (Ending::Passed, String::new()),
            Ok(Some(problem)) => (Ending::Failed, problem),
            Err(error) => (Ending::Failed, format!("{error:#}")),
        };
        let seconds = start.elapsed().as_secs_f64();
        results.add(TestResult::new(scenario.title(), scenario.part(), ending, seconds, reason));
    }
    Ok(())
}

/// What the scenarios share.
struct Lab {
    qemu: Qemu,
    /// The image of each set of features.
    images: Vec<(Vec<String>, Image)>,
    store: Store,
}

impl Lab {
    /// Runs one scenario; returns in what it was not as expected.
    fn problem(&mut self, scenario: &Scenario, args: &TestArgs) -> Result<Option<String>> {
        // The build with the stand-in has no trials, whose calls and pages its payload would have to know.
        let given = if scenario.is_hostile() { Lifecycle::default() } else { args.machine.lifecycle };
        let told = MachineArgs { lifecycle: given, ..args.machine.clone() };
        let image = self.image(&told, scenario.features)?;
        let host = match scenario.linux {
            Some(version) => {
                let version: Version = version.parse()?;
                let kernel = self.store.kernel(&version)?;
                let initrd = match scenario.work {
                    Some(_) => self.store.work_initramfs(&kernel)?,
                    None => self.store.initramfs()?,
                };
                Some(Host { kernel: kernel.path, initrd, checks: true, work: scenario.work })
            }
            None => None,
        };
        let device_tree = match scenario.damage {
            Some(damage) => {
                let mut tree = self.qemu.device_tree(&scenario.machine)?;
                damage.inflict(&mut tree)?;
                let path = workspace::images_dir()?.join("damaged.dtb");
                fs::write(&path, tree).context("cannot write the damaged device tree")?;
                Some(path)
            }
            None => None,
        };
        let u_boot = scenario.u_boot.then(|| self.store.u_boot()).transpose()?;
        let until = if let Expect::Lines(texts) = scenario.expect { texts } else { &[] };
        let told = MachineArgs { lifecycle: given.or(scenario.lifecycle), ..told };
        let timeout = args.machine.timeout_or(scenario.timeout(told.lifecycle.is_given()));
        let follow = Follow { timeout, until, ..Follow::default() };
        let seed = scenario.is_hostile().then_some(args.seed);
        let append = told.parameters().chain(run::hostile_parameters(None, seed));
        let append = append.chain(scenario.append.iter().map(|word| (*word).to_owned())).collect();
        let job = Job {
            image: &image,
            machine: scenario.machine.clone(),
            host,
            bare: false,
            append,
            device_tree,
            u_boot,
            follow,
        };
        let outcome = job.run(&self.qemu)?;
        Ok(scenario.expect.judge(&outcome).or_else(|| scenario.map_problem(&outcome)))
    }

    fn image(&mut self, machine: &MachineArgs, features: &[&str]) -> Result<Image> {
        let features: Vec<String> = features.iter().map(|name| (*name).to_owned()).collect();
        let features = machine.features(&features);
        if let Some((_, image)) = self.images.iter().find(|(built, _)| *built == features) {
            return Ok(image.clone());
        }
        let image = images::hypervisor(machine.platform.package(), &features)?;
        self.images.push((features, image.clone()));
        Ok(image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::Transcript;

    #[test]
    fn the_result_of_a_test_binary_is_read() {
        let line = "test result: FAILED. 12 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.25s";
        assert_eq!(parse_test_result(line), Some(([12, 2, 1], 1.25)));
        assert_eq!(parse_test_result("test a::b ... ok"), None);
    }

    #[test]
    fn the_name_of_a_test_binary_is_read() {
        let line = "     Running unittests src/lib.rs (target/debug/deps/hyp-0123456789abcdef)";
        assert_eq!(test_binary(line).unwrap(), "hyp src/lib.rs");
        let line = "     Running tests/model.rs (target/debug/deps/model-0123456789abcdef)";
        assert_eq!(test_binary(line).unwrap(), "model tests/model.rs");
        assert_eq!(test_binary("   Doc-tests hyp").unwrap(), "hyp documentation");
        assert_eq!(test_binary("running 3 tests"), None);
    }

    #[test]
    fn results_are_counted_by_test_and_listed_by_binary() {
        let unit = TestResult {
            counts: [5, 1, 2],
            ..TestResult::new("hyp", Part::Unit, Ending::Failed, 0.04, "1 failed")
        };
        let boot = TestResult::new("boot", Part::Qemu, Ending::Passed, 2.0, "");
        assert_eq!(totals(&[unit.clone(), boot.clone()]), [6, 1, 2]);
        let json = serde_json::to_value(&boot).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"name": "boot", "part": "qemu", "result": "passed", "seconds": 2.0})
        );
        assert!(summary(&[unit, boot]).contains("unit: hyp: 1 failed"));
    }

    fn outcome(lines: &[&str], ended: Ended) -> Outcome {
        let mut transcript = Transcript::default();
        for line in lines {
            transcript.push(line, |_| Some("qemu_virt::own_fault (main.rs:1)".to_owned()));
        }
        let reasons = crate::verdict::reasons(&transcript, &transcript.checks, &ended, true);
        let verdict = if reasons.is_empty() { Verdict::Pass } else { Verdict::Fail };
        Outcome {
            checks: transcript.checks.clone(),
            figures: vec![],
            verdict,
            reasons,
            seconds: 0.0,
            transcript,
            ended,
        }
    }

    #[test]
    fn a_run_that_hangs_or_gives_up_does_not_pass_for_a_noticed_failure() {
        let hung = outcome(&[], Ended::TimedOut(SHORT));
        let expect = Expect::Fail("a");
        assert!(expect.judge(&hung).is_some());
        assert!(expect.judge(&outcome(&["cloven[0] fatal: no kernel"], Ended::Off)).is_some());
        assert!(Expect::Pass.judge(&hung).is_some());
        let failed = outcome(&["@cloven check a FAIL", "@cloven done 1"], Ended::Off);
        assert!(expect.judge(&failed).is_none());
        assert!(Expect::Fail("other").judge(&failed).is_some());
        assert!(expect.judge(&outcome(&["@cloven check a FAIL"], Ended::TimedOut(SHORT))).is_some());
        assert!(expect.judge(&outcome(&["@cloven check a ok", "@cloven done 1"], Ended::Off)).is_some());
    }

    #[test]
    fn a_fault_must_be_traced_to_the_function_that_made_it() {
        let traced = outcome(&["cloven[0] fatal: data abort", "cloven[0]   at image+0x10"], Ended::Broken);
        assert!(Expect::Fault("own_fault").judge(&traced).is_none());
        assert!(Expect::Fault("other").judge(&traced).is_some());
        assert!(Expect::Fatal("abort").judge(&traced).is_none());
        assert!(Expect::Fatal("device tree").judge(&traced).is_some());
        assert!(Expect::Fault("own_fault").judge(&outcome(&[], Ended::Off)).is_some());
    }

    #[test]
    fn scenarios_have_names_of_their_own() {
        let all = scenarios(true);
        let mut titles: Vec<String> = all.iter().map(Scenario::title).collect();
        titles.sort();
        titles.dedup();
        assert_eq!(titles.len(), all.len());
        assert!(scenarios(false).len() < all.len());
    }

    #[test]
    fn every_level_policy_and_answer_is_tried_on_both_sides() {
        let few = lifecycles(false);
        assert_eq!(few.len(), 12);
        let levels = few.iter().filter_map(|scenario| match scenario.lifecycle.bbm {
            Some(Bbm::Levels(boot, others)) if scenario.machine.cpus > 1 => Some((boot, others)),
            _ => None,
        });
        let (boot, others): (Vec<u8>, Vec<u8>) = levels.unzip();
        assert!((0..4).all(|level| boot.contains(&level) && others.contains(&level)));
        let has =
            |part: Lifecycle| few.iter().any(|scenario| part.or(scenario.lifecycle) == scenario.lifecycle);
        let answers = [Late::Admit, Late::Deny];
        assert!(answers.into_iter().all(|late| has(Lifecycle { late: Some(late), ..Lifecycle::default() })));
        for policy in POLICIES {
            assert!(has(Lifecycle { policy: Some(policy), ..Lifecycle::default() }));
        }
        for cpus in [1, 2, 4, 8] {
            assert!(few.iter().any(|scenario| scenario.machine.cpus == cpus), "{cpus} CPUs");
        }
        let all = lifecycles(true);
        for (policy, (boot, others)) in
            POLICIES.into_iter().flat_map(|policy| pairs().map(move |pair| (policy, pair)))
        {
            for cpus in [2, 4, 8] {
                let wanted = Scenario::lifecycle(cpus, mixed(boot, others, policy)).title();
                assert!(all.iter().any(|scenario| scenario.title() == wanted), "{wanted}");
            }
        }
    }

    #[test]
    fn realms_have_each_level_and_each_number_of_recs() {
        let (few, all) = (realms(false), realms(true));
        for recs in [1, 2, 4] {
            assert!(few.iter().any(|scenario| scenario.machine.cpus == recs), "{recs} RECs");
            for bbm in LEVELS {
                let wanted = Scenario::realm(recs, bbm, true).title();
                assert!(all.iter().any(|scenario| scenario.title() == wanted), "{wanted}");
            }
        }
        for bbm in LEVELS {
            assert!(few.iter().any(|scenario| scenario.lifecycle.bbm == Some(bbm)), "{bbm}");
        }
    }

    #[test]
    fn every_pair_of_values_is_in_the_matrix() {
        let lengths = MATRIX.map(|values| values.len());
        let choices = pairwise(lengths);
        for (a, b) in (0..lengths.len()).flat_map(|a| (a + 1..lengths.len()).map(move |b| (a, b))) {
            for (x, y) in (0..lengths[a]).flat_map(|x| (0..lengths[b]).map(move |y| (x, y))) {
                let there = choices.iter().any(|choice| choice[a] == x && choice[b] == y);
                assert!(there, "{} with {}", MATRIX[a][x], MATRIX[b][y]);
            }
        }
        assert!(choices.len() <= 30, "{} runs", choices.len());
        assert!(MATRIX[1].iter().all(|cpus| cpus.parse::<u32>().is_ok()));
        assert!(MATRIX[2].iter().all(|memory| memory.parse::<Size>().is_ok()));
    }

    #[test]
    fn a_device_tree_without_what_is_to_be_damaged_is_refused() {
        assert!(Damage::Name.inflict(&mut [0; 64]).is_err());
        assert!(Damage::Length.inflict(&mut [0; 64]).is_err());
    }
}
