//! `cargo xtask run`: boots the hypervisor once and judges what came of it. `cargo xtask test` goes through the same code.
//!
//! Invariant: what is booted, followed and judged depends on the [`Job`] alone.

use std::{
    fmt, fs,
    io::{self, IsTerminal},
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::{
    compare,
    console::{Check, Figure, Transcript},
    images::{self, Image},
    linux::{self, Store, Version},
    qemu::{self, Boot, Ended, Follow, Machine, Qemu, Size},
    report,
    symbols::Symbols,
    trace::SeenArgs,
    verdict, workspace,
};

/// How long a run may take by default.
pub const PAYLOAD_TIMEOUT: Duration = Duration::from_secs(240);
/// The same with a Linux as the host, or with trials of live changes.
pub const LINUX_TIMEOUT: Duration = Duration::from_secs(300);
/// The same with the hostile payload and ten million operations.
pub const HOSTILE_TIMEOUT: Duration = Duration::from_secs(1200);
/// Less than this holds no hypervisor, kernel and initramfs where they are placed.
const LEAST_FOR_LINUX: Size = Size(256 << 20);
/// What a host with a virtual machine monitor needs beside its realm's memory: itself, the kernel and the initramfs until they are copied, and what is shared.
const BESIDE_REALM: Size = Size(768 << 20);
/// The machine's memory where a virtual machine monitor makes a realm of a Linux, and the realm's.
pub const VMM_MEMORY: Size = Size(2 << 30);
pub const LINUX_REALM_MEMORY: Size = Size(512 << 20);
/// Where the last token of a realm is kept, beside the images.
const TOKEN: &str = "realm.token";
/// The most RECs that the host's payload makes.
const MOST_RECS: u32 = 8;
/// Less than this holds no U-Boot with the hypervisor and its payload.
const LEAST_FOR_U_BOOT: Size = Size(64 << 20);
/// Less than this has no room for a realm of the usual size.
const LEAST_FOR_REALM: Size = Size(256 << 20);
/// Whether a host payload that makes no realm fails its run. Where the hypervisor serves no RMI there is none to be made.
pub const REALM_IS_DUE: bool = true;
/// Less than this has too few places for the payload's look at RAM.
const LEAST_FOR_PAYLOAD: Size = Size(16 << 20);

/// A board that the hypervisor runs on.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum Platform {
    /// QEMU's `virt` machine
    #[default]
    QemuVirt,
}

impl Platform {
    /// The crate of this platform.
    pub fn package(self) -> &'static str {
        match self {
            Self::QemuVirt => "qemu-virt",
        }
    }
}

/// How much the hypervisor logs.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Log {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl Log {
    /// The hypervisor's parameter on the command line.
    pub fn parameter(self) -> &'static str {
        match self {
            Self::Error => "cloven.log=error",
            Self::Warn => "cloven.log=warn",
            Self::Info => "cloven.log=info",
            Self::Debug => "cloven.log=debug",
            Self::Trace => "cloven.log=trace",
        }
    }
}

/// The level of FEAT_BBM that the hypervisor is to believe its CPUs have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Bbm {
    /// What each CPU says of itself.
    Auto,
    /// That of the boot CPU, and that of the others: 0, break before make, always; 1, the Contiguous bit may change in place; 2, sizes
    /// too, with TLB conflict aborts; 3, without them.
    Levels(u8, u8),
}

impl Bbm {
    /// All CPUs have `level`.
    pub const fn all(level: u8) -> Self {
        Self::Levels(level, level)
    }
}

impl FromStr for Bbm {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let level = |text: &str| match text.as_bytes() {
            [digit @ b'0'..=b'3'] => Ok(digit - b'0'),
            _ => bail!(
                "'{text}' is no level of FEAT_BBM: 0, 1, 2 and 3 are, or auto alone for what the CPUs have"
            ),
        };
        match text.split_once(',') {
            None => level(text).map(Self::all),
            Some((_, others)) if others.contains(',') => {
                bail!("one level, or two with a comma: the boot CPU's and that of all others")
            }
            Some((boot, others)) => Ok(Self::Levels(level(boot)?, level(others)?)),
        }
    }
}

impl fmt::Display for Bbm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Levels(boot, others) if boot == others => write!(f, "{boot}"),
            Self::Levels(boot, others) => write!(f, "{boot},{others}"),
        }
    }
}

/// What becomes of the blocks of a linear map on CPUs of different levels.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Policy {
    /// Blocks always; where they cannot be split in place the other CPUs stand still
    Keep,
    /// Blocks if the boot CPU has level 3, and pages from the first CPU on that has not
    Repaint,
    /// Pages from the start, and blocks once all CPUs are known to have level 3
    Pages,
}

/// What is answered to a CPU that comes with less when the set is final.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Late {
    /// It is admitted as any other
    Admit,
    /// It is denied
    Deny,
}

/// A value as the command line has it, here and the hypervisor's.
fn word(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

/// What CPUs have, who is admitted, and what that does to maps: what only test builds are told, in part because it may be untrue.
#[derive(Args, Clone, Copy, Debug, Default, Eq, PartialEq)]
#[command(next_help_heading = "Machine")]
pub struct Lifecycle {
    /// The level of FEAT_BBM to believe in (auto, 0 to 3), or the boot CPU's and that of the others (3,0); more than the CPUs have is fine
    /// in QEMU, which raises no conflict aborts [default: auto]
    #[arg(long, value_name = "LEVEL[,LEVEL]")]
    pub bbm: Option<Bbm>,
    /// What becomes of blocks when CPUs differ [default: keep]
    #[arg(long, value_enum, value_name = "POLICY")]
    pub policy: Option<Policy>,
    /// What is answered to a CPU that has less and comes after all are known [default: admit]
    #[arg(long, value_enum, value_name = "ANSWER")]
    pub late: Option<Late>,
    /// The number of CPUs with which all are known [default: those of the machine]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=512))]
    pub finalize: Option<u32>,
}

impl Lifecycle {
    /// Whether anything was given.
    pub fn is_given(&self) -> bool {
        *self != Self::default()
    }

    /// Whether it takes a build that is told of it.
    pub fn takes_trial(&self) -> bool {
        Self { bbm: self.bbm.filter(|bbm| *bbm != Bbm::Auto), ..*self }.is_given()
    }

    /// What was given, and the rest as in `other`.
    pub fn or(self, other: Self) -> Self {
        Self {
            bbm: self.bbm.or(other.bbm),
            policy: self.policy.or(other.policy),
            late: self.late.or(other.late),
            finalize: self.finalize.or(other.finalize),
        }
    }

    /// The options as they are given, with their values.
    fn options(&self) -> impl Iterator<Item = (&'static str, String)> {
        let bbm = self.bbm.map(|bbm| ("bbm", bbm.to_string()));
        let policy = self.policy.map(|policy| ("policy", word(&policy)));
        let late = self.late.map(|late| ("late", word(&late)));
        let finalize = self.finalize.map(|count| ("finalize", count.to_string()));
        [bbm, policy, late, finalize].into_iter().flatten()
    }

    /// What the hypervisor is told of it on the command line.
    pub fn parameters(&self) -> impl Iterator<Item = String> {
        let told = |(name, value): &(&str, String)| *name != "bbm" || value != "auto";
        self.options().filter(told).map(|(name, value)| format!("cloven.{name}={value}"))
    }
}

impl fmt::Display for Lifecycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.options().try_for_each(|(name, value)| write!(f, ", --{name} {value}"))
    }
}

/// The hypervisor's parameter by which there is no host at EL1, but a policy in its place.
const POLICY: &str = "cloven.host=policy";

/// The feature of test builds: calls that change maps under their users, and a `--bbm` that may be more than the CPUs have.
pub const TRIAL: &str = "trial";

/// What the hostile payload is told on the command line.
pub fn hostile_parameters(operations: Option<u64>, seed: Option<u64>) -> impl Iterator<Item = String> {
    let operations = operations.map(|count| format!("cloven.operations={count}"));
    operations.into_iter().chain(seed.map(|seed| format!("cloven.seed={seed}")))
}

/// The machine and the manner of a run: the options that `run` and `test` share.
#[derive(Args, Clone, Debug, Default)]
pub struct MachineArgs {
    /// The board
    #[arg(long, value_enum, value_name = "BOARD", default_value = "qemu-virt", help_heading = "Machine")]
    pub platform: Platform,
    /// The number of CPUs [default: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=512), help_heading = "Machine")]
    pub cpus: Option<u32>,
    /// The size of RAM, for example 512M or 4G [default: 1G]
    #[arg(long, value_name = "SIZE", help_heading = "Machine")]
    pub memory: Option<Size>,
    /// The CPU model, as QEMU names it, with its options if any [default: max]
    #[arg(long, value_name = "MODEL", help_heading = "Machine")]
    pub cpu: Option<String>,
    #[command(flatten)]
    pub lifecycle: Lifecycle,
    /// Wait for a debugger before the first instruction
    #[arg(long, help_heading = "Machine")]
    pub gdb: bool,
    /// End a run after this time [default: 240, with Linux or trials 300, with --gdb or a shell none]
    #[arg(long, value_name = "SECS", help_heading = "Machine", value_parser = seconds)]
    pub timeout: Option<u64>,
    /// How much the hypervisor logs
    #[arg(long, value_enum, value_name = "LEVEL", help_heading = "Machine")]
    pub log: Option<Log>,
}

fn seconds(text: &str) -> Result<u64> {
    let number = text.parse().ok().filter(|number| *number > 0);
    number.context("a time is a whole number of seconds, at least 1")
}

impl MachineArgs {
    /// Whether anything was given that only matters where QEMU runs.
    pub fn is_given(&self) -> bool {
        let given = [self.cpus.is_some(), self.memory.is_some(), self.cpu.is_some(), self.log.is_some()];
        given.contains(&true) || self.lifecycle.is_given() || self.gdb || self.timeout.is_some()
    }

    /// `machine` with what was given in place of what it has.
    pub fn apply(&self, machine: Machine) -> Machine {
        Machine {
            cpus: self.cpus.unwrap_or(machine.cpus),
            // Banks lie where they lie, whatever is asked for elsewhere.
            memory: self.memory.filter(|_| machine.ram.is_none()).unwrap_or(machine.memory),
            cpu: self.cpu.clone().unwrap_or(machine.cpu),
            gdb: self.gdb,
            ..machine
        }
    }

    /// What the hypervisor is told on the command line.
    pub fn parameters(&self) -> impl Iterator<Item = String> {
        let log = self.log.map(|log| log.parameter().to_owned());
        log.into_iter().chain(self.lifecycle.parameters())
    }

    /// The features that the hypervisor is built with beside `features`.
    pub fn features(&self, features: &[String]) -> Vec<String> {
        let mut features = features.to_vec();
        if self.lifecycle.takes_trial() && !features.iter().any(|feature| feature == TRIAL) {
            features.push(TRIAL.to_owned());
        }
        features
    }

    /// How long a run may take: what was given, no limit for a debugger, else `default`.
    pub fn timeout_or(&self, default: Duration) -> Option<Duration> {
        self.timeout.map(Duration::from_secs).or((!self.gdb).then_some(default))
    }
}

/// What is booted, and how: the options that `run` and `dump` share.
#[derive(Args, Clone, Debug)]
pub struct BootArgs {
    #[command(flatten)]
    machine: MachineArgs,
    /// Let virtual time count instructions, so that counts are repeatable; with one CPU unless --cpus says otherwise
    #[arg(long, help_heading = "Machine")]
    icount: bool,
    /// Boot a stock Linux as the host, or with --realm as a realm, fetched as a distribution package [default VERSION: 7.2]
    #[arg(long, value_name = "VERSION", num_args = 0..=1, default_missing_value = "7.2", group = "host")]
    linux: Option<Version>,
    /// Let the stock Linux work for this time while its memory is split and protected at random, in a build with the trials
    #[arg(long, value_name = "SECS", value_parser = clap::value_parser!(u64).range(1..), requires = "linux", conflicts_with = "initrd")]
    work: Option<u64>,
    /// Boot this kernel as the host, or with --realm as a realm
    #[arg(long, value_name = "PATH", group = "host")]
    kernel: Option<PathBuf>,
    /// Give the Linux this initramfs in place of the one that checks what it sees
    #[arg(long, value_name = "PATH")]
    initrd: Option<PathBuf>,
    /// Add this to the command line of the host, or of the Linux
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    append: Option<String>,
    /// Boot it by U-Boot, fetched as a distribution package, in place of QEMU's Linux loader; a Linux host then gives no shell
    #[arg(long)]
    u_boot: bool,
    /// Run the payload that changes its own map and EL2's while CPUs come, in a build with the trials
    #[arg(long, conflicts_with_all = ["linux", "kernel"])]
    lifecycle: bool,
    /// Build the hypervisor with these features (for tests)
    #[arg(long, value_name = "LIST", value_delimiter = ',', hide = true)]
    features: Vec<String>,
}

/// How a Linux runs in a realm.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Way {
    /// No host at EL1: a policy in the hypervisor plays it, and gives the realm the machine.
    Policy,
    /// The host's payload is the realm's virtual machine monitor.
    Vmm {
        /// Bytes of the realm's RAM.
        memory: Size,
        /// Its RECs.
        recs: u32,
    },
}

/// The realm that the host payload makes, or that a Linux runs in.
#[derive(Args, Clone, Copy, Debug, Default)]
#[command(next_help_heading = "Realm")]
pub struct RealmArgs {
    /// Run the Linux of --linux or --kernel as a realm (Arm CCA), not as the host: it has the whole machine, and its host is a policy in the
    /// hypervisor. Linux 6.13 or newer
    #[arg(long, requires = "host", conflicts_with_all = ["work", "u_boot"])]
    realm: bool,
    /// With --realm: a host at EL1 makes the realm, emulates its devices and shares memory of its own with it; in a machine of 2G
    #[arg(long, requires = "realm", conflicts_with = "compare")]
    vmm: bool,
    /// The size of its RAM, a multiple of 2M [default: 64M, with --vmm 512M]
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["hostile", "lifecycle"])]
    realm_memory: Option<Size>,
    /// Its RECs, each on a CPU of its own [default: 4, or as many as there are CPUs]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MOST_RECS)), conflicts_with_all = ["hostile", "lifecycle"])]
    recs: Option<u32>,
    /// Requests that it makes, or the payload with --lifecycle in each phase
    #[arg(long, value_name = "N", conflicts_with_all = ["linux", "kernel", "hostile"])]
    requests: Option<u64>,
}

impl RealmArgs {
    /// How the Linux that is booted (`linux`) runs in a realm, if it does, on a machine for which so many CPUs were asked.
    fn way(&self, linux: bool, cpus: Option<u32>) -> Result<Option<Way>> {
        let sized = self.realm_memory.is_some() || self.recs.is_some();
        match (self.realm, self.vmm) {
            (false, _) => {
                ensure!(
                    !(linux && sized),
                    "--realm-memory and --recs say of what size a realm is that a payload makes: give --realm --vmm with them"
                );
                Ok(None)
            }
            (true, false) => {
                ensure!(
                    !sized,
                    "such a realm has the machine: give --cpus and --memory, or --vmm for one of another size"
                );
                Ok(Some(Way::Policy))
            }
            (true, true) => {
                let memory = self.realm_memory.unwrap_or(LINUX_REALM_MEMORY);
                ensure!(memory.0.is_multiple_of(2 << 20), "a realm's memory is a multiple of 2M");
                let cpus = cpus.unwrap_or(Machine::default().cpus);
                let recs = self.recs.unwrap_or(cpus.min(Machine::default().cpus));
                ensure!(recs <= cpus, "each REC has a CPU of its own: give --cpus {recs} with --recs {recs}");
                Ok(Some(Way::Vmm { memory, recs }))
            }
        }
    }

    /// What the host payload is told on the command line.
    fn parameters(&self) -> impl Iterator<Item = String> + use<> {
        let memory = self.realm_memory.map(|size| format!("cloven.realm={size}"));
        let recs = self.recs.map(|count| format!("cloven.recs={count}"));
        let requests = self.requests.map(|count| format!("cloven.requests={count}"));
        [memory, recs, requests].into_iter().flatten()
    }
}

/// The options of `cargo xtask run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    boot: BootArgs,
    #[command(flatten)]
    realm: RealmArgs,
    #[command(flatten)]
    seen: SeenArgs,
    /// Boot the same Linux with the hypervisor and, at EL1, without it, several times each, and tell in what that differs; with --realm tell what the
    /// realm costs beside both
    #[arg(long, requires = "host", conflicts_with_all = ["initrd", "gdb", "u_boot", "work", "trace", "trace_json"])]
    compare: bool,
    /// Run the payload that attacks the hypervisor at random, in a build with a stand-in for the firmware
    #[arg(long, conflicts_with_all = ["linux", "kernel", "bbm", "policy", "late", "finalize", "lifecycle"])]
    hostile: bool,
    /// How often it does, all CPUs together [default: 10000000]
    #[arg(long, value_name = "N", requires = "hostile")]
    operations: Option<u64>,
    /// The seed of what it does, or of what the realm or the payload with --lifecycle does [default: 1]
    #[arg(long, value_name = "N", conflicts_with_all = ["linux", "kernel"])]
    seed: Option<u64>,
    /// Write the table and the verdict to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// The kernel of the host, or of the realm, and what it gets.
#[derive(Clone, Debug)]
pub struct Host {
    /// How it runs in a realm, if it does.
    pub realm: Option<Way>,
    /// Whether it must get an attestation token there: it has the modules for that.
    pub token: bool,
    /// The kernel, a plain `Image`.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initrd: PathBuf,
    /// Whether the initramfs is the one that makes the checks.
    pub checks: bool,
    /// Seconds for which it works while its memory is split and protected, if it does: with an initramfs for that and the trials.
    pub work: Option<u64>,
}

/// One boot of the hypervisor.
pub struct Job<'a> {
    /// The hypervisor.
    pub image: &'a Image,
    /// The machine.
    pub machine: Machine,
    /// The host; without one the embedded payload runs.
    pub host: Option<Host>,
    /// Whether the host's kernel runs without the hypervisor.
    pub bare: bool,
    /// What the command line has beside what every host gets.
    pub append: Vec<String>,
    /// A device tree in place of QEMU's own.
    pub device_tree: Option<PathBuf>,
    /// The U-Boot that boots it.
    pub u_boot: Option<PathBuf>,
    /// How it is followed.
    pub follow: Follow<'a>,
}

/// What came of a job.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// The guest's checks and this tool's own.
    pub checks: Vec<Check>,
    /// The figures of the run and of the image.
    pub figures: Vec<Figure>,
    /// `pass` or `fail`.
    pub verdict: Verdict,
    /// What speaks against it.
    pub reasons: Vec<String>,
    /// How long it ran.
    pub seconds: f64,
    /// The console.
    #[serde(skip)]
    pub transcript: Transcript,
    /// How it ended.
    #[serde(skip)]
    pub ended: Ended,
}

/// The end of the story.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// All held.
    Pass,
    /// Something did not.
    Fail,
}

impl Job<'_> {
    /// Boots, follows and judges.
    pub fn run(self, qemu: &Qemu) -> Result<Outcome> {
        let host = self.host;
        let work = host.as_ref().and_then(|host| host.work);
        let disk = work.map(|_| linux::disk()).transpose()?;
        let append = command_line(host.as_ref(), self.follow.interactive, &self.append)?;
        let in_realm = host.as_ref().filter(|host| host.realm.is_some());
        let (host_kernel, initrd, realm) = match host.clone() {
            Some(Host { kernel, initrd, realm: Some(Way::Vmm { .. }), .. }) => {
                (None, None, Some([kernel, initrd]))
            }
            Some(Host { kernel, initrd, .. }) => (Some(kernel), Some(initrd), None),
            None => (None, None, None),
        };
        let (image, host_kernel) = match host_kernel {
            Some(kernel) if self.bare => (kernel, None),
            kernel => (self.image.path.clone(), kernel),
        };
        let mut boot = Boot {
            image,
            host_kernel,
            initrd,
            realm,
            append,
            device_tree: self.device_tree,
            u_boot: self.u_boot,
            disk: disk.as_ref().map(|disk| disk.path().to_owned()),
        };
        let mut follow = self.follow;
        if boot.u_boot.is_some() {
            follow.typed = boot.typed()?;
        } else if self.machine.image_at.is_some() {
            let path = workspace::images_dir()?.join("own.dtb");
            fs::write(&path, qemu.own_tree(&self.machine, &boot)?).context("cannot write the device tree")?;
            boot.device_tree = Some(path);
        }
        if self.machine.gdb {
            announce_debugger(&self.machine, &boot, &self.image.elf)?;
        }
        let start = Instant::now();
        let mut command = qemu.command(&self.machine, &boot, follow.interactive);
        if let Some(trace) = &follow.trace {
            command.args(trace.arguments());
        }
        let (transcript, ended) = qemu::follow(command, &follow, &mut Symbols::new(&self.image.elf))?;
        let seconds = report::rounded(start.elapsed().as_secs_f64());

        let mut checks = transcript.checks.clone();
        if let Some(host) = in_realm {
            checks.extend(verdict::linux_realm_checks(&transcript, &self.machine, host));
        } else if host.as_ref().is_some_and(|host| host.checks) {
            checks.extend(verdict::linux_checks(&transcript, &self.machine));
        } else if let (None, Some(payload)) = (&host, &self.image.realm) {
            let is_due = REALM_IS_DUE && self.machine.memory.0 >= LEAST_FOR_REALM.0;
            checks.extend(verdict::realm_checks(&transcript, payload, is_due));
        }
        let mut figures = transcript.figures.clone();
        figures.extend(transcript.moments.iter().map(|(name, after)| Figure {
            name: format!("until.{name}"),
            value: after.as_millis() as u64,
            unit: "ms".to_owned(),
        }));
        figures.push(Figure {
            name: "image.size".to_owned(),
            value: self.image.size,
            unit: "bytes".to_owned(),
        });
        let reasons = verdict::reasons(&transcript, &checks, &ended, ends(host.as_ref()));
        let verdict = if reasons.is_empty() { Verdict::Pass } else { Verdict::Fail };
        Ok(Outcome { checks, figures, verdict, reasons, seconds, transcript, ended })
    }
}

/// How many guests say that their checks have come to an end: a payload, which counts those of a realm that it makes too, or a Linux with the
/// initramfs that makes checks.
fn ends(host: Option<&Host>) -> usize {
    match host {
        None | Some(Host { realm: Some(Way::Vmm { .. }), .. }) => 1,
        Some(host) => usize::from(host.checks),
    }
}

/// The command line of the machine: what every Linux gets, and the words of `append`. Where a virtual machine monitor makes a realm of the
/// Linux, that gets what stands behind `--`, and the hypervisor and the monitor what is theirs by its name.
fn command_line(host: Option<&Host>, interactive: bool, append: &[String]) -> Result<String> {
    let mut words: Vec<String> = Vec::new();
    let mut add = |word: &str| words.push(word.to_owned());
    match host {
        None => {}
        Some(Host { realm: None, work, .. }) => {
            add(linux::PARAMETERS);
            interactive.then(|| add(linux::SHELL));
            work.map(|seconds| add(&linux::work_parameters(seconds)));
        }
        Some(Host { realm: Some(Way::Policy), .. }) => {
            add(POLICY);
            add(linux::PARAMETERS);
            interactive.then(|| add(linux::SHELL));
        }
        Some(Host { kernel, initrd, realm: Some(Way::Vmm { memory, recs }), .. }) => {
            let files = [kernel.clone(), initrd.clone()];
            Boot::realm_parameters(&files)?.iter().for_each(|word| add(word));
            add(&format!("cloven.realm={memory}"));
            add(&format!("cloven.recs={recs}"));
            let own = append.iter().flat_map(|text| text.split_ascii_whitespace());
            own.filter(|word| word.starts_with("cloven.")).for_each(&mut add);
            add("--");
            add(linux::PARAMETERS);
            add(linux::VMM);
            interactive.then(|| add(linux::SHELL));
        }
    }
    words.extend_from_slice(append);
    Ok(words.join(" "))
}

fn announce_debugger(machine: &Machine, boot: &Boot, elf: &Path) -> Result<()> {
    let (address, elf) = (qemu::load_address(machine, boot)?, elf.display());
    eprintln!("waiting for a debugger; in another terminal:");
    eprintln!(
        "  gdb-multiarch -ex 'set architecture aarch64' -ex 'add-symbol-file {elf} -o {address:#x}' -ex 'target remote :1234'"
    );
    Ok(())
}

/// What a boot takes, built and fetched.
pub struct Ready {
    qemu: Qemu,
    image: Image,
    machine: Machine,
    host: Option<Host>,
    /// What the command line has beside what every host gets.
    pub append: Vec<String>,
    u_boot: Option<PathBuf>,
}

impl Ready {
    /// Boots it and follows it so.
    pub fn run(self, follow: Follow) -> Result<Outcome> {
        let Self { qemu, image, machine, host, append, u_boot } = self;
        let job =
            Job { image: &image, machine, host, bare: false, append, device_tree: None, u_boot, follow };
        job.run(&qemu)
    }
}

impl BootArgs {
    fn is_linux(&self) -> bool {
        self.linux.is_some() || self.kernel.is_some()
    }

    /// Builds and fetches what this takes, the hypervisor with `features` beside those that were given.
    /// It runs in a realm, if there is a `way`.
    pub fn ready(&self, icount: bool, features: &[&str], way: Option<Way>) -> Result<Ready> {
        let linux = self.is_linux();
        if let (Some(_), Some(version)) = (way, &self.linux) {
            version.check_realm()?;
        }
        ensure!(
            linux || self.initrd.is_none(),
            "--initrd is for a Linux: give --linux or --kernel PATH with it"
        );
        let icount = self.icount || icount;
        let cpus = if icount { 1 } else { Machine::default().cpus };
        let usual = match way {
            Some(Way::Vmm { .. }) => Machine { memory: VMM_MEMORY, ..Machine::default() },
            _ => Machine::default(),
        };
        let machine = self.machine.apply(Machine { cpus, icount, ..usual });
        let (who, least) = match (way, linux, self.u_boot) {
            (Some(Way::Vmm { memory, .. }), ..) => {
                ("the host of such a realm", Size(memory.0.saturating_add(BESIDE_REALM.0)))
            }
            (Some(Way::Policy), ..) => ("a Linux realm", LEAST_FOR_LINUX),
            (None, true, _) => ("a Linux host", LEAST_FOR_LINUX),
            (None, false, true) => ("U-Boot", LEAST_FOR_U_BOOT),
            (None, false, false) => ("the payload", LEAST_FOR_PAYLOAD),
        };
        ensure!(
            machine.memory.0 >= least.0,
            "{who} needs more than {}: give --memory {least} or more",
            machine.memory
        );
        ensure!(
            !(linux && self.is_quiet() && self.initrd.is_none()),
            "what a Linux host sees is compared with figures that the hypervisor tells with --log info or more"
        );
        let qemu = Qemu::locate()?;
        qemu.check_cpu(&machine.cpu)?;
        let host = self.host(way)?;
        let mut built = self.machine.features(&self.features);
        // The host's memory changes below it in test builds.
        let work = self.work.map(|_| TRIAL);
        let lifecycle = self.lifecycle.then_some(images::LIFECYCLE);
        for &feature in features.iter().chain(&work).chain(&lifecycle) {
            if !built.iter().any(|it| it == feature) {
                built.push(feature.to_owned());
            }
        }
        let image = images::hypervisor(self.machine.platform.package(), &built)?;
        let u_boot = self.u_boot.then(|| Store::open()?.u_boot()).transpose()?;
        let append = self.append.clone().into_iter().chain(self.machine.parameters()).collect();
        Ok(Ready { qemu, image, machine, host, append, u_boot })
    }

    /// The number of CPUs that was asked for, one where virtual time counts instructions.
    fn cpus(&self, icount: bool) -> Option<u32> {
        self.machine.cpus.or((self.icount || icount).then_some(1))
    }

    /// Whether the hypervisor tells less than it usually does.
    pub fn is_quiet(&self) -> bool {
        matches!(self.machine.log, Some(Log::Error | Log::Warn))
    }

    /// How long it may take, unless it is followed by a user or a debugger.
    pub fn timeout(&self, least: Duration) -> Option<Duration> {
        let long = self.is_linux() || self.lifecycle || self.machine.lifecycle.is_given();
        let default = if long { LINUX_TIMEOUT.max(least) } else { least };
        self.machine.timeout_or(default + Duration::from_secs(self.work.unwrap_or(0)))
    }

    /// The Linux that was asked for, as the host or in a realm.
    fn host(&self, way: Option<Way>) -> Result<Option<Host>> {
        let mut store = Store::open()?;
        let (path, kernel) = match (&self.linux, &self.kernel) {
            (Some(version), _) => {
                let kernel = store.kernel(version)?;
                let who = if way.is_some() { "realm" } else { "host" };
                eprintln!("the {who} is Linux {}", kernel.version);
                (kernel.path.clone(), Some(kernel))
            }
            (None, Some(path)) => (linux::own_kernel(path)?, None),
            (None, None) => return Ok(None),
        };
        let initrd = match (&self.initrd, &kernel) {
            (Some(path), _) if path.is_file() => path.clone(),
            (Some(path), _) => bail!("cannot read the initramfs {}", path.display()),
            (None, Some(kernel)) if self.work.is_some() => store.work_initramfs(kernel)?,
            (None, kernel) if way.is_some() => store.realm_initramfs(kernel.as_ref())?,
            (None, _) => store.initramfs().context("the host needs an initramfs")?,
        };
        let checks = self.initrd.is_none();
        let token = way.is_some() && checks && kernel.is_some();
        Ok(Some(Host { realm: way, token, kernel: path, initrd, checks, work: self.work }))
    }
}

/// Carries out `cargo xtask run`; returns whether all held.
pub fn run(args: RunArgs) -> Result<bool> {
    let since = Some(Instant::now());
    report::check_json(args.json.as_deref())?;
    args.seen.check()?;
    if args.seen.is_tracing() {
        // Before anything is built for it.
        Qemu::locate()?.check_trace()?;
    }
    // What EL2 costs is told by test builds.
    let features =
        [(args.compare && !args.realm.realm).then_some(TRIAL), args.hostile.then_some(images::STAND_IN)];
    let features: Vec<&str> = features.into_iter().flatten().collect();
    let way = args.realm.way(args.boot.is_linux(), args.boot.cpus(args.compare))?;
    let mut ready = args.boot.ready(args.compare, &features, way)?;
    ready.append.extend(hostile_parameters(args.operations, args.seed));
    if way.is_none() {
        ready.append.extend(args.realm.parameters());
    }
    ready.append.extend(args.seen.parameters());

    let terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let interactive = args.boot.is_linux() && !args.boot.u_boot && terminal;
    let timeout = args.boot.timeout(if args.hostile { HOSTILE_TIMEOUT } else { PAYLOAD_TIMEOUT });
    let timeout = timeout.filter(|_| args.boot.machine.timeout.is_some() || !interactive);
    if let Some(host) = ready.host.clone().filter(|_| args.compare) {
        let Ready { qemu, image, machine, append, .. } = ready;
        if way.is_some() {
            let costs = compare::realm_costs(&qemu, &image, &machine, &host, append, timeout)?;
            print!("{costs}");
            report::write_json(args.json.as_deref(), &costs)?;
            return Ok(true);
        }
        let compared = compare::compare(&qemu, &image, &machine, &host, append, timeout)?;
        print!("{compared}");
        report::write_json(args.json.as_deref(), &compared)?;
        return Ok(compared.holds());
    }
    let trace = args.seen.target()?;
    let outcome =
        ready.run(Follow { timeout, interactive, echo: true, since, trace, ..Follow::default() })?;
    print!("{}", summary(&outcome));
    if let Some((token, _)) = outcome.transcript.tokens.last() {
        let file = workspace::images_dir()?.join(TOKEN);
        fs::write(&file, token).with_context(|| format!("cannot write {}", file.display()))?;
        println!("the realm's attestation token: cargo xtask token {}", file.display());
    }
    args.seen.write(&outcome.transcript.trace)?;
    report::write_json(args.json.as_deref(), &outcome)?;
    Ok(outcome.verdict == Verdict::Pass)
}

/// The tables and the verdict of a run.
fn summary(outcome: &Outcome) -> String {
    let checks: Vec<_> = outcome
        .checks
        .iter()
        .map(|check| vec![check.name.clone(), check.result.to_string(), check.detail.clone()])
        .collect();
    let figures: Vec<_> = outcome
        .figures
        .iter()
        .map(|figure| vec![figure.name.clone(), format!("{} {}", report::grouped(figure.value), figure.unit)])
        .collect();
    let mut text = String::new();
    for table in [
        report::table(&["check", "result", "detail"], &checks),
        report::table(&["figure", "value"], &figures),
    ] {
        if !table.is_empty() {
            text += &format!("\n{table}");
        }
    }
    text.push('\n');
    if matches!(outcome.ended, Ended::TimedOut(_) | Ended::Broken) {
        text += "the last lines of the console were:\n";
        outcome.transcript.tail().for_each(|line| text += &format!("  {line}\n"));
    }
    match outcome.verdict {
        Verdict::Pass => text += &format!("pass: {} checks in {} s\n", outcome.checks.len(), outcome.seconds),
        Verdict::Fail => {
            text += &format!("fail: {} (after {} s)\n", outcome.reasons.join("; "), outcome.seconds)
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        machine: MachineArgs,
    }

    #[derive(Parser)]
    struct Run {
        #[command(flatten)]
        run: RunArgs,
    }

    fn machine(line: &str) -> MachineArgs {
        Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{error}")).machine
    }

    fn told(line: &str) -> Vec<String> {
        machine(line).parameters().collect()
    }

    fn error(line: &str) -> String {
        Cli::try_parse_from(line.split(' ')).err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn levels_are_one_for_all_cpus_or_two() {
        let level = |text: &str| text.parse::<Bbm>().unwrap();
        assert_eq!((level("auto"), level("2"), level("3,0")), (Bbm::Auto, Bbm::all(2), Bbm::Levels(3, 0)));
        for text in ["auto", "0", "3", "3,0", "1,2"] {
            assert_eq!(level(text).to_string(), text);
        }
        assert_eq!(level("3,3").to_string(), "3");
    }

    #[test]
    fn what_is_no_level_is_named() {
        assert!(error("x --bbm 4").contains("'4' is no level of FEAT_BBM"), "{}", error("x --bbm 4"));
        assert!(error("x --bbm 3,auto").contains("'auto' is no level"));
        assert!(error("x --bbm 3,").contains("'' is no level"));
        assert!(error("x --bbm 3,0,1").contains("the boot CPU's and that of all others"));
        for wrong in ["", "-1", "3 ,0", "é", "03"] {
            assert!(wrong.parse::<Bbm>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_hypervisor_is_told_what_was_given_and_no_more() {
        let all = "x --bbm 3,0 --policy repaint --late deny --finalize 2";
        let words = ["cloven.bbm=3,0", "cloven.policy=repaint", "cloven.late=deny", "cloven.finalize=2"];
        assert_eq!(told(all), words);
        assert_eq!(told("x --log debug --bbm 1"), ["cloven.log=debug", "cloven.bbm=1"]);
        assert!(told("x --bbm auto").is_empty() && told("x").is_empty());
        assert_eq!(
            machine(all).lifecycle.to_string(),
            ", --bbm 3,0, --policy repaint, --late deny, --finalize 2"
        );
    }

    #[test]
    fn what_only_a_test_build_is_told_takes_one() {
        let features = |line: &str| machine(line).features(&["dump".to_owned()]);
        for line in ["x --bbm 3", "x --policy keep", "x --late admit", "x --finalize 1"] {
            assert_eq!(features(line), ["dump", TRIAL], "{line}");
            assert!(machine(line).is_given());
        }
        assert_eq!(
            (features("x"), features("x --bbm auto")),
            (vec!["dump".to_owned()], vec!["dump".to_owned()])
        );
        assert_eq!(machine("x --bbm 3").features(&[TRIAL.to_owned()]), [TRIAL]);
    }

    #[test]
    fn unknown_policies_answers_and_counts_are_refused() {
        assert!(error("x --policy split").contains("keep, repaint, pages"));
        assert!(error("x --late never").contains("admit, deny"));
        assert!(error("x --finalize 0").contains("1..=512"));
    }

    #[test]
    fn what_was_given_stands_in_place_of_what_a_test_would_choose() {
        let chosen =
            Lifecycle { bbm: Some(Bbm::all(3)), policy: Some(Policy::Pages), ..Lifecycle::default() };
        let given = machine("x --bbm 0,2").lifecycle.or(chosen);
        assert_eq!(given.to_string(), ", --bbm 0,2, --policy pages");
        assert_eq!(Lifecycle::default().or(chosen), chosen);
    }

    #[test]
    fn a_realm_is_made_as_it_was_asked_for() {
        let told = |line: &str| -> Vec<String> {
            let run = Run::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{error}")).run;
            run.realm.parameters().chain(hostile_parameters(run.operations, run.seed)).collect()
        };
        let all = "x --realm-memory 1G --recs 2 --requests 7 --seed 5";
        assert_eq!(told(all), ["cloven.realm=1G", "cloven.recs=2", "cloven.requests=7", "cloven.seed=5"]);
        assert!(told("x").is_empty());
        for line in ["x --recs 0", "x --recs 9", "x --recs 2 --hostile", "x --requests 2 --linux"] {
            assert!(Run::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }

    /// How the Linux of a command runs in a realm.
    fn way(line: &str) -> Result<Option<Way>> {
        let run = Run::try_parse_from(line.split(' ')).map_err(|error| anyhow::anyhow!("{error}"))?.run;
        run.realm.way(run.boot.is_linux(), run.boot.cpus(run.compare))
    }

    #[test]
    fn a_linux_runs_in_a_realm_by_either_way() {
        assert_eq!(way("x --linux").unwrap(), None);
        assert_eq!(way("x --realm --linux 7.2 --cpus 2").unwrap(), Some(Way::Policy));
        assert_eq!(way("x --realm --kernel Image --initrd root").unwrap(), Some(Way::Policy));
        let vmm = |mib: u64, recs| Some(Way::Vmm { memory: Size(mib << 20), recs });
        assert_eq!(way("x --realm --linux --vmm").unwrap(), vmm(512, 4));
        assert_eq!(way("x --realm --linux --vmm --cpus 2").unwrap(), vmm(512, 2));
        assert_eq!(way("x --realm --linux --vmm --icount").unwrap(), vmm(512, 1));
        assert_eq!(way("x --realm --linux --vmm --cpus 8").unwrap(), vmm(512, 4));
        assert_eq!(way("x --realm --linux --vmm --realm-memory 1G --recs 2").unwrap(), vmm(1024, 2));
    }

    #[test]
    fn what_does_not_go_with_a_realm_is_refused_with_the_words_that_do() {
        for (line, hint) in [
            ("x --realm", "--linux"),
            ("x --vmm --linux", "--realm"),
            ("x --linux --recs 2", "give --realm --vmm"),
            ("x --kernel Image --realm-memory 64M", "give --realm --vmm"),
            ("x --realm --linux --recs 2", "give --cpus and --memory"),
            ("x --realm --linux --realm-memory 1G", "give --cpus and --memory"),
            ("x --realm --linux --vmm --recs 5", "give --cpus 5"),
            ("x --realm --linux --vmm --realm-memory 65M", "a multiple of 2M"),
            ("x --realm --linux --work 5", "cannot be used with"),
            ("x --realm --linux --u-boot", "cannot be used with"),
            ("x --realm --linux --hostile", "cannot be used with"),
            ("x --realm --linux --vmm --compare", "cannot be used with"),
        ] {
            let error = way(line).expect_err(line).to_string();
            assert!(error.contains(hint), "{line}: {error}");
        }
    }

    fn linux(realm: Option<Way>) -> Host {
        let dir = workspace::images_dir().unwrap();
        let [kernel, initrd] = ["test-kernel", "test-initrd"].map(|name| dir.join(name));
        fs::write(&kernel, [0; 3]).unwrap();
        fs::write(&initrd, [0; 5]).unwrap();
        Host { realm, token: true, kernel, initrd, checks: true, work: None }
    }

    #[test]
    fn each_kernel_is_told_what_is_meant_for_it() {
        let append = ["cloven.midr=0x410fd842 quiet".to_owned(), "cloven.log=debug".to_owned()];
        let told = |realm, interactive| command_line(Some(&linux(realm)), interactive, &append).unwrap();
        let rest = "cloven.midr=0x410fd842 quiet cloven.log=debug";
        assert_eq!(told(None, false), format!("console=ttyAMA0 panic=-1 {rest}"));
        assert_eq!(
            told(Some(Way::Policy), true),
            format!("cloven.host=policy console=ttyAMA0 panic=-1 cloven.shell {rest}")
        );
        let vmm = told(Some(Way::Vmm { memory: Size(512 << 20), recs: 2 }), false);
        let (host, realm) = vmm.split_once(" -- ").unwrap();
        assert_eq!(
            host,
            "cloven.guest-kernel=0x50000000,0x3 cloven.guest-initrd=0x58000000,0x5 cloven.realm=512M cloven.recs=2 cloven.midr=0x410fd842 cloven.log=debug"
        );
        assert_eq!(realm, format!("console=ttyAMA0 panic=-1 cloven.vmm {rest}"));
        assert_eq!(command_line(None, true, &append).unwrap(), rest);
    }

    #[test]
    fn a_monitor_counts_the_checks_of_its_realm() {
        let own = |realm| Host { checks: false, ..linux(realm) };
        let vmm = Some(Way::Vmm { memory: GIB, recs: 1 });
        assert_eq!([ends(None), ends(Some(&linux(None))), ends(Some(&own(None)))], [1, 1, 0]);
        assert_eq!([ends(Some(&linux(Some(Way::Policy)))), ends(Some(&own(Some(Way::Policy))))], [1, 0]);
        assert_eq!([ends(Some(&linux(vmm))), ends(Some(&own(vmm)))], [1, 1]);
    }

    const GIB: Size = Size(1 << 30);

    #[test]
    fn one_payload_runs_at_a_time() {
        let run = |line: &str| Run::try_parse_from(line.split(' ')).map(|cli| cli.run.boot.lifecycle);
        assert!(run("x --lifecycle --bbm 3,0 --policy repaint").unwrap());
        for line in ["x --lifecycle --hostile", "x --lifecycle --linux", "x --hostile --policy keep"] {
            assert!(run(line).is_err(), "{line}");
        }
    }
}
