//! The work of a Linux host: `host-work SECONDS SEED` keeps all CPUs, memory, files, sockets, devices, counters and timers busy and
//! rings the hypervisor's doorbell meanwhile, then prints a check and figures of each.
//!
//! Invariant: every byte that is read back, received or left in memory is known beforehand from the seed, and is compared. Each worker
//! is a process of its own (`host-work NAME SECONDS SEED SHARE`), so one that dies is one check that fails.

mod doorbell;
mod files;
mod memory;
mod network;
mod processes;
mod time;

use std::{
    env,
    io::{self, Read},
    os::unix::process::ExitStatusExt,
    process::{Child, Command, ExitCode, Output, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rand::{Rng, SeedableRng, rngs::SmallRng};

/// One kind of work.
struct Worker {
    name: &'static str,
    /// One on each CPU, and bound to it.
    everywhere: bool,
    work: fn(&mut Shift) -> Result<String>,
}

const fn one(name: &'static str, work: fn(&mut Shift) -> Result<String>) -> Worker {
    Worker { name, everywhere: false, work }
}

const WORKERS: [Worker; 9] = [
    Worker { name: "memory", everywhere: true, work: memory::fill },
    one("processes", processes::fork_and_exec),
    one("files", files::temporary),
    one("disk", files::disk),
    one("loopback", network::loopback),
    one("network", network::echo),
    one("perf", time::perf),
    one("timers", time::timers),
    one("changes", doorbell::ring),
];

/// What a worker has to do, and what it has done.
pub struct Shift {
    /// Where everything that is chosen comes from.
    pub random: SmallRng,
    /// How long it lasts.
    pub seconds: u64,
    /// Bytes of memory that it may use at once.
    pub share: usize,
    /// Bytes that were compared.
    pub bytes: u64,
    /// Numbers to be printed: name, value, unit.
    pub figures: Vec<(&'static str, u64, &'static str)>,
    rounds: u64,
    end: Instant,
}

impl Shift {
    /// Whether there is time for one round more.
    pub fn goes_on(&mut self) -> bool {
        let goes_on = Instant::now() < self.end;
        self.rounds += u64::from(goes_on);
        goes_on
    }

    /// `size` random bytes and their checksum.
    pub fn data(&mut self, size: usize) -> (Vec<u8>, u32) {
        let mut data = vec![0; size];
        self.random.fill_bytes(&mut data);
        let sum = crc32fast::hash(&data);
        (data, sum)
    }

    /// Counts `size` bytes whose checksum is `got`, which must be `expected`.
    pub fn compare(&mut self, what: &str, size: usize, expected: u32, got: u32) -> Result<()> {
        ensure!(got == expected, "{what}: checksum {got:#010x} of {size} bytes, not {expected:#010x}");
        self.bytes += size as u64;
        Ok(())
    }
}

/// Text of the last error of the C library.
pub fn os_error(what: &str) -> anyhow::Error {
    anyhow::Error::new(io::Error::last_os_error()).context(what.to_owned())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["sum"] => sum(),
        [seconds, seed] => everybody(seconds, seed),
        [name, seconds, seed, share, cpu] => worker(name, seconds, seed, share, cpu),
        _ => Err(anyhow::anyhow!("usage: host-work SECONDS SEED")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The program of [`processes`]: prints the checksum of its standard input.
fn sum() -> Result<()> {
    let mut data = Vec::new();
    io::stdin().read_to_end(&mut data)?;
    println!("{}", crc32fast::hash(&data));
    Ok(())
}

/// Does one worker's work; the lines that it prints are `ROUNDS BYTES DETAIL`, then figures.
fn worker(name: &str, seconds: &str, seed: &str, share: &str, cpu: &str) -> Result<()> {
    let worker = WORKERS.iter().find(|worker| worker.name == name).context("there is no such worker")?;
    if worker.everywhere {
        bind(cpu.parse()?)?;
    }
    let seconds = seconds.parse()?;
    let mut shift = Shift {
        seconds,
        random: SmallRng::seed_from_u64(seed.parse()?),
        share: share.parse()?,
        bytes: 0,
        figures: Vec::new(),
        rounds: 0,
        end: Instant::now() + Duration::from_secs(seconds),
    };
    let detail = (worker.work)(&mut shift).with_context(|| format!("in round {}", shift.rounds))?;
    println!("{} {} {detail}", shift.rounds, shift.bytes);
    shift.figures.iter().for_each(|(name, value, unit)| println!("{name} {value} {unit}"));
    Ok(())
}

/// Keeps this process on one CPU.
fn bind(cpu: usize) -> Result<()> {
    // SAFETY: a set of CPUs is plain data, and the call reads no more than it.
    let status = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    };
    if status == 0 { Ok(()) } else { Err(os_error("sched_setaffinity")) }
}

/// Starts all workers, waits for them and prints what they did.
fn everybody(seconds: &str, seed: &str) -> Result<()> {
    let seconds: u64 = seconds.parse().context("SECONDS is a number")?;
    let mut seeds = SmallRng::seed_from_u64(seed.parse().context("SEED is a number")?);
    let cpus = std::thread::available_parallelism()?.get();
    // Half of what is free is filled; the rest is for tables, files and sockets.
    let share = available_memory()? / 2 / cpus;
    let mut running = Vec::new();
    for worker in &WORKERS {
        for cpu in 0..if worker.everywhere { cpus } else { 1 } {
            let name =
                if worker.everywhere { format!("{}.cpu{cpu}", worker.name) } else { worker.name.into() };
            let words = [seconds, seeds.next_u64(), share as u64, cpu as u64].map(|word| word.to_string());
            let child = Command::new("/proc/self/exe")
                .arg(worker.name)
                .args(words)
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .with_context(|| format!("cannot start {name}"));
            running.push((name, child));
        }
    }
    for (name, child) in running {
        match child.and_then(finished) {
            Ok(lines) => {
                let mut lines = lines.lines();
                let (rounds, rest) =
                    lines.next().and_then(|line| line.split_once(' ')).unwrap_or(("0", "0 no answer"));
                let (bytes, detail) = rest.split_once(' ').unwrap_or((rest, ""));
                let result = if rounds.parse().is_ok_and(|rounds: u64| rounds > 0) { "ok" } else { "FAIL" };
                println!("@cloven check linux.work.{name} {result} {detail}");
                println!("@cloven figure linux.work.{name}.rounds {rounds} rounds");
                if bytes != "0" {
                    println!("@cloven figure linux.work.{name}.compared {bytes} bytes");
                }
                lines.for_each(|line| println!("@cloven figure linux.work.{line}"));
            }
            Err(error) => println!("@cloven check linux.work.{name} FAIL {error:#}"),
        }
    }
    Ok(())
}

/// What a worker that has ended well has printed.
fn finished(child: Child) -> Result<String> {
    let Output { status, stdout, stderr } = child.wait_with_output()?;
    if status.success() {
        return Ok(String::from_utf8(stdout)?);
    }
    let message = String::from_utf8_lossy(&stderr).trim().replace('\n', "; ");
    match status.signal() {
        Some(signal) => bail!("ended by signal {signal} {message}"),
        None => bail!("{message}"),
    }
}

/// Bytes that processes can have without swapping.
fn available_memory() -> Result<usize> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib: usize =
        line.and_then(|line| line.trim().strip_suffix(" kB")).context("no MemAvailable")?.parse()?;
    Ok(kib << 10)
}
