//! A Linux host with the hypervisor below it beside the same kernel at EL1 without one.
//!
//! Invariant: both are given the same machine but for EL2, the same initramfs and the same command line. They must see the same, but for
//! the RAM that the hypervisor has reserved. A realm beside them sees another machine, so only what it costs is compared.

use std::{collections::BTreeMap, fmt, time::Duration};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::{
    images::Image,
    qemu::{Follow, Machine, Qemu},
    report,
    run::{Host, Job, Outcome, Verdict},
};

/// Runs of each kind, with the seeds from 1 on: an odd number, for the median.
const RUNS: u64 = 5;

/// Instructions of the vectors for each exit, which the hypervisor's own count leaves out: no more than a whole hypercall's there and
/// back, with the loop around it (`run --icount`: `hypercall.round_trip`).
const VECTORS: u64 = 140;

/// A line that only one of the two hosts has.
#[derive(Debug, Eq, PartialEq, Serialize)]
pub struct Difference {
    /// Whether it is seen with the hypervisor.
    pub with: bool,
    /// What is seen.
    pub line: String,
}

/// What the two hosts differ in.
#[derive(Debug, Serialize)]
pub struct Comparison {
    /// What they see, of each seed.
    pub differences: Vec<Difference>,
    /// Lines that both see, of the seed where they are fewest.
    pub common: usize,
    /// Instructions until the first process without the hypervisor, from the kernel's first look at its clock: the median.
    pub without: u64,
    /// The same with it.
    pub with: u64,
    /// Instructions from reset until the host's first.
    pub boot: u64,
    /// Exits to EL2 until the host turns the machine off.
    pub exits: u64,
    /// Instructions that they took, but for the vectors'.
    pub at_el2: u64,
    /// Bytes of RAM that only the host without the hypervisor has.
    pub ram: u64,
    /// Bytes that the hypervisor says it reserved.
    pub reserved: u64,
}

impl Comparison {
    /// Whether both see the same.
    pub fn holds(&self) -> bool {
        self.differences.is_empty() && self.ram == self.reserved
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<_> = self
            .differences
            .iter()
            .map(|Difference { with, line }| {
                vec![if *with { "with" } else { "without" }.to_owned(), line.clone()]
            })
            .collect();
        let mut figures = Vec::new();
        let mut figure = |name: &str, value: String| figures.push(vec![name.to_owned(), value]);
        figure("lines that both see", report::grouped(self.common as u64));
        figure("instructions until the first process, without", report::grouped(self.without));
        figure("the same with the hypervisor", report::grouped(self.with));
        figure("instructions before the host's first", report::grouped(self.boot));
        let more = (self.with + self.boot) as f64 / self.without as f64 - 1.0;
        figure("exits to EL2 until power-off", report::grouped(self.exits));
        let at_el2 = self.boot + self.at_el2 + self.exits * VECTORS;
        figure("instructions at EL2, boot and exits, at most", report::grouped(at_el2));
        let share = at_el2 as f64 / (self.with + self.boot) as f64;
        figure(
            "share of the instructions until the first process, at most",
            format!("{:.2} %", share * 100.0),
        );
        figure("more in all", format!("{:+.2} %", more * 100.0));
        figure("bytes of RAM less", report::grouped(self.ram));
        figure("bytes reserved", report::grouped(self.reserved));
        for table in [report::table(&["side", "seen"], &rows), report::table(&["figure", "value"], &figures)]
        {
            if !table.is_empty() {
                writeln!(f, "\n{table}")?;
            }
        }
        let verdict = if self.holds() { "pass: both see the same" } else { "fail: they do not see the same" };
        writeln!(f, "{verdict}, but for the RAM that is reserved")
    }
}

/// Boots `host` both ways.
pub fn compare(
    qemu: &Qemu,
    image: &Image,
    machine: &Machine,
    host: &Host,
    append: Vec<String>,
    timeout: Option<Duration>,
) -> Result<Comparison> {
    let boot = |bare: bool, seed: u64| -> Result<Outcome> {
        eprintln!("{} the hypervisor, {seed} of {RUNS}", if bare { "without" } else { "with" });
        let machine = Machine { el2: !bare, seed: Some(seed), ..machine.clone() };
        let append = append.iter().map(String::as_str).chain(["nokaslr", "cloven.view"]);
        let append = append.map(str::to_owned).collect();
        let host = Some(Host { checks: false, ..host.clone() });
        let follow = Follow { timeout, ..Follow::default() };
        let job = Job { image, machine, host, bare, append, device_tree: None, u_boot: None, follow };
        let outcome = job.run(qemu)?;
        ensure!(outcome.verdict == Verdict::Pass, "a run failed: {}", outcome.reasons.join("; "));
        Ok(outcome)
    };
    let runs = |bare| (1..=RUNS).map(|seed| boot(bare, seed)).collect::<Result<Vec<_>>>();
    let (without, with) = (runs(true)?, runs(false)?);
    let mut all = Vec::new();
    let mut common = usize::MAX;
    for (without, with) in without.iter().zip(&with) {
        let (differences, both) = differences(&without.transcript.view, &with.transcript.view);
        all.extend(differences);
        common = common.min(both);
    }
    ensure!(common > 0, "nothing was seen");
    Ok(Comparison {
        differences: all,
        common,
        without: median(&without, "linux.first_process")? * 1000,
        with: median(&with, "linux.first_process")? * 1000,
        boot: median(&with, "boot.ticks")?,
        exits: median(&with, "el2.exits")?,
        at_el2: median(&with, "el2.ticks")?,
        ram: median(&without, "linux.ram")?.saturating_sub(median(&with, "linux.ram")?),
        reserved: median(&with, "memory.reserved")?,
    })
}

/// Runs of each kind where a realm is beside the two: an odd number.
const RUNS_WITH_REALM: u64 = 3;

/// What a kernel pays as a realm that has the machine, beside the same kernel as the host and without the hypervisor: instructions of all exception levels
/// from reset until its first process, medians.
#[derive(Debug, Serialize)]
pub struct Costs {
    /// Without the hypervisor.
    pub without: u64,
    /// As its host.
    pub host: u64,
    /// Of those, before the host's first.
    pub host_boot: u64,
    /// As a realm.
    pub realm: u64,
    /// Of those, before the realm is made.
    pub boot: u64,
    /// Of those, to make it.
    pub made: u64,
    /// Of the latter: to load and measure kernel, initramfs and device tree.
    pub measured: u64,
    /// Granules that were measured.
    pub granules: u64,
}

impl fmt::Display for Costs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let more = |value: u64, than: u64| {
            let share = (value as f64 / than as f64 - 1.0) * 100.0;
            format!("{} ({share:+.2} %)", report::grouped(value))
        };
        let runs = self.realm.saturating_sub(self.boot + self.made);
        let host = self.host.saturating_sub(self.host_boot);
        let rows = [
            ("until the first process, without the hypervisor", report::grouped(self.without)),
            ("as its host", more(self.host, self.without)),
            ("as a realm that has the machine", more(self.realm, self.host)),
            ("of those before the realm is made", report::grouped(self.boot)),
            ("to make it", report::grouped(self.made)),
            ("of those to load and measure its files", report::grouped(self.measured)),
            ("granules that are measured", report::grouped(self.granules)),
            ("from its kernel's first on (beside those of the host's kernel)", more(runs, host)),
        ];
        let rows: Vec<_> = rows.map(|(name, value)| vec![name.to_owned(), value]).into();
        writeln!(f, "\n{}", report::table(&["instructions", "value"], &rows))
    }
}

/// Boots `realm` in a realm, as the host, and without the hypervisor.
pub fn realm_costs(
    qemu: &Qemu,
    image: &Image,
    machine: &Machine,
    realm: &Host,
    append: Vec<String>,
    timeout: Option<Duration>,
) -> Result<Costs> {
    let run = |bare: bool, way, seed: u64| -> Result<Outcome> {
        let name = match (bare, way) {
            (true, _) => "without the hypervisor",
            (false, None) => "as the host",
            (false, Some(_)) => "as a realm",
        };
        eprintln!("{name}, {seed} of {RUNS_WITH_REALM}");
        let machine = Machine { el2: !bare, seed: Some(seed), ..machine.clone() };
        let words = append.iter().map(String::as_str).chain(["nokaslr", "cloven.view"]);
        let host = Some(Host { realm: way, token: false, checks: false, ..realm.clone() });
        let follow = Follow { timeout, ..Follow::default() };
        let append = words.map(str::to_owned).collect();
        let job = Job { image, machine, host, bare, append, device_tree: None, u_boot: None, follow };
        let outcome = job.run(qemu)?;
        ensure!(outcome.verdict == Verdict::Pass, "a run {name} failed: {}", outcome.reasons.join("; "));
        Ok(outcome)
    };
    let runs = |bare, way: Option<_>| {
        (1..=RUNS_WITH_REALM).map(|seed| run(bare, way, seed)).collect::<Result<Vec<_>>>()
    };
    let (without, host, realm) = (runs(true, None)?, runs(false, None)?, runs(false, realm.realm)?);
    let first =
        |outcomes: &[Outcome]| Ok::<_, anyhow::Error>(median(outcomes, "linux.first_process")? * 1000);
    let (boot, made) = (median(&realm, "boot.ticks")?, median(&realm, "policy.made_in")?);
    Ok(Costs {
        without: first(&without)?,
        host: median(&host, "boot.ticks")? + first(&host)?,
        host_boot: median(&host, "boot.ticks")?,
        realm: boot + made + first(&realm)?,
        boot,
        made,
        measured: median(&realm, "policy.measured_in")?,
        granules: median(&realm, "policy.pages_measured")?,
    })
}

/// The lines that only one side has, and how many both have; lines that stand several times count as often.
fn differences(without: &[String], with: &[String]) -> (Vec<Difference>, usize) {
    let mut balance: BTreeMap<&str, (i64, usize)> = BTreeMap::new();
    for (lines, sign) in [(without, -1), (with, 1)] {
        for line in lines {
            let entry = balance.entry(line).or_default();
            entry.0 += sign;
            entry.1 += 1;
        }
    }
    let common = balance.values().map(|(sum, count)| (count - sum.unsigned_abs() as usize) / 2).sum();
    let differences = balance
        .into_iter()
        .filter(|(_, (sum, _))| *sum != 0)
        .map(|(line, (sum, _))| Difference { with: sum > 0, line: line.to_owned() });
    (differences.collect(), common)
}

/// The median of a figure that every run must tell.
fn median(outcomes: &[Outcome], name: &str) -> Result<u64> {
    let told =
        |outcome: &Outcome| outcome.transcript.figure(name).with_context(|| format!("nobody told {name}"));
    let mut values = outcomes.iter().map(told).collect::<Result<Vec<u64>>>()?;
    values.sort_unstable();
    Ok(values[values.len() / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_realm_pays_is_told_beside_the_host() {
        let costs = Costs {
            without: 1000,
            host: 1010,
            host_boot: 10,
            realm: 1515,
            boot: 15,
            made: 400,
            measured: 390,
            granules: 7,
        };
        let text = costs.to_string();
        assert!(text.contains("as its host") && text.contains("1,010 (+1.00 %)"), "{text}");
        assert!(text.contains("1,515 (+50.00 %)") && text.contains("1,100 (+10.00 %)"), "{text}");
    }

    #[test]
    fn a_line_of_one_side_is_a_difference_and_one_of_both_is_not() {
        let lines = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let (found, common) = differences(&lines("a b b c"), &lines("b a d"));
        let told: Vec<_> = found.iter().map(|d| (d.with, d.line.as_str())).collect();
        assert_eq!(told, [(false, "b"), (false, "c"), (true, "d")]);
        assert_eq!(common, 2);
    }
}
