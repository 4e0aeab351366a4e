//! `cargo xtask bench --realm`: what a realm and its host pay for each call, beside what a real RMM and pKVM take for it.
//!
//! Invariant: ours are measured in two runs, of a realm in blocks and of one in pages, theirs are constants from one table, and both are instructions: QEMU counts one tick of a counter
//! of 1 GHz for each (`-icount shift=0,sleep=off -smp 1 -cpu max`).

use std::path::Path;

use anyhow::{Result, ensure};
use serde::Serialize;

use crate::{
    console::Transcript,
    images::{self, Image},
    qemu::{Follow, Machine, Qemu, Size},
    report,
    run::{self, Job, Platform, Verdict},
};

/// EL3's share of each plain call of TF-RMM's by its host, which nothing here corresponds to.
const EL3: u64 = 1_101;

/// Who was measured. Both in QEMU 10.0.2 with the options above, as medians over all exception levels.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
enum Peer {
    /// TF-RMM 0.7, release, under TF-A 2.13 with a bare-metal host.
    #[serde(rename = "TF-RMM 0.7")]
    TfRmm,
    /// pKVM of Debian's cloud kernel 7.2.12, `kvm-arm.mode=protected`.
    #[serde(rename = "pKVM 7.2.12")]
    Pkvm,
}

impl Peer {
    fn name(self) -> &'static str {
        match self {
            Self::TfRmm => "TF-RMM",
            Self::Pkvm => "pKVM",
        }
    }
}

/// One thing that is paid for.
struct Cost {
    /// What it is.
    what: &'static str,
    /// Our figure.
    figure: &'static str,
    peer: Peer,
    /// Instructions that the peer takes.
    theirs: u64,
    /// How many times EL3's share is in there.
    calls: u64,
    /// Whether it is of a realm whose memory is in pages.
    pages: bool,
}

const fn host(what: &'static str, figure: &'static str, theirs: u64) -> Cost {
    Cost { what, figure, peer: Peer::TfRmm, theirs, calls: 1, pages: false }
}

const fn realm(what: &'static str, figure: &'static str, theirs: u64) -> Cost {
    Cost { what, figure, peer: Peer::TfRmm, theirs, calls: 0, pages: false }
}

const fn pkvm(what: &'static str, figure: &'static str, theirs: u64) -> Cost {
    Cost { what, figure, peer: Peer::Pkvm, theirs, calls: 0, pages: false }
}

/// The same of a realm whose memory is in pages.
const fn in_pages(cost: Cost) -> Cost {
    Cost { pages: true, ..cost }
}

/// All of them. Source of the peers' numbers: measured for this project, each side with the same counter; the machine is above.
const COSTS: &[Cost] = &[
    realm("RSI_VERSION", "realm.rsi_version", 278),
    realm("trapped ID register read", "realm.id_register", 305),
    realm("RSI_REALM_CONFIG", "realm.realm_config", 2_552),
    realm("IPA_STATE_GET 4 KiB", "realm.ipa_state_get.4K", 1_674),
    in_pages(realm("IPA_STATE_SET to EMPTY 4 KiB", "realm.ipa_state_set.4K", 13_473)),
    in_pages(host("… in SET_RIPAS", "realm.ipa_state_set.4K.rmi", 3_342)),
    in_pages(realm("IPA_STATE_SET to EMPTY 64 KiB", "realm.ipa_state_set.64K", 15_333)),
    in_pages(host("… in SET_RIPAS", "realm.ipa_state_set.64K.rmi", 5_202)),
    in_pages(realm("IPA_STATE_SET to EMPTY 2 MiB of pages", "realm.ipa_state_set.2M", 76_833)),
    in_pages(host("… in SET_RIPAS", "realm.ipa_state_set.2M.rmi", 66_702)),
    in_pages(realm("IPA_STATE_GET 2 MiB of pages", "realm.ipa_state_get.2M", 19_048)),
    realm("IPA_STATE_SET to EMPTY 2 MiB block", "realm.ipa_state_set.2M", 13_422),
    host("… in SET_RIPAS", "realm.ipa_state_set.2M.rmi", 3_291),
    realm("IPA_STATE_SET to EMPTY 64 MiB of blocks", "realm.ipa_state_set.64M", 17_514),
    host("… in SET_RIPAS", "realm.ipa_state_set.64M.rmi", 7_383),
    in_pages(Cost {
        calls: 32,
        ..realm("IPA_STATE_SET to EMPTY 64 MiB of pages", "realm.ipa_state_set.64M", 2_146_000)
    }),
    in_pages(Cost {
        calls: 32,
        ..host("… in SET_RIPAS, 32 calls", "realm.ipa_state_set.64M.rmi", 2_134_000)
    }),
    host("RMI_VERSION", "rmi.VERSION", 1_195),
    host("GRANULE_DELEGATE", "rmi.GRANULE_DELEGATE", 2_782),
    host("GRANULE_UNDELEGATE", "rmi.GRANULE_UNDELEGATE", 2_227),
    host("DATA_CREATE_UNKNOWN", "rmi.DATA_CREATE_UNKNOWN", 2_970),
    host("DATA_DESTROY", "rmi.DATA_DESTROY", 3_581),
    host("DATA_CREATE, measured", "rmi.DATA_CREATE", 28_331),
    host("RTT_CREATE from empty", "rmi.RTT_CREATE_EMPTY", 3_708),
    host("RTT_CREATE unfolding a block", "rmi.RTT_CREATE_BLOCK", 5_617),
    host("RTT_FOLD 512 assigned", "rmi.RTT_FOLD_ASSIGNED", 13_078),
    host("RTT_FOLD 512 unassigned", "rmi.RTT_FOLD_UNASSIGNED", 7_422),
    host("RTT_DESTROY", "rmi.RTT_DESTROY", 3_299),
    host("RTT_READ_ENTRY", "rmi.RTT_READ_ENTRY", 2_929),
    host("RTT_MAP_UNPROTECTED", "rmi.RTT_MAP_UNPROTECTED", 2_940),
    host("RTT_UNMAP_UNPROTECTED", "rmi.RTT_UNMAP_UNPROTECTED", 2_935),
    host("REC_ENTER and immediate HOST_CALL exit", "rmi.REC_ENTER_HOST_CALL", 13_724),
    pkvm("hypercall answered at EL2", "hypercall.round_trip", 185),
    pkvm("share a page of 4 KiB", "rmi.SHARE", 2_816),
    pkvm("unshare a page of 4 KiB", "rmi.UNSHARE", 2_789),
];

/// A line of the table.
#[derive(Debug, Serialize)]
struct Row {
    what: &'static str,
    figure: &'static str,
    /// Instructions, unless it was not measured.
    ours: Option<u64>,
    peer: Peer,
    theirs: u64,
    /// Without EL3's share.
    theirs_without_el3: u64,
    /// Ours to theirs without EL3.
    ratio: Option<f64>,
}

/// The lines, from the figures of a run with blocks and of one with pages.
fn rows(blocks: &Transcript, pages: &Transcript) -> Vec<Row> {
    let row = |cost: &Cost| {
        let transcript = if cost.pages { pages } else { blocks };
        // What the realm's measuring itself takes.
        let nothing = transcript.figure("realm.nothing").unwrap_or(0);
        let own =
            if cost.figure.starts_with("realm.") && !cost.figure.ends_with(".rmi") { nothing } else { 0 };
        let ours = transcript.figure(cost.figure).map(|ticks| ticks.saturating_sub(own));
        let without = cost.theirs.saturating_sub(cost.calls * EL3);
        // RMI_VERSION is little beside that share.
        let ratio = ours.map(|ours| (ours as f64 / without.max(1) as f64 * 100.0).round() / 100.0);
        Row {
            what: cost.what,
            figure: cost.figure,
            ours,
            peer: cost.peer,
            theirs: cost.theirs,
            theirs_without_el3: without,
            ratio,
        }
    };
    COSTS.iter().map(row).collect()
}

fn table(rows: &[Row]) -> String {
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let number = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), report::grouped);
            vec![
                row.what.to_owned(),
                format!("{:>9}", number(row.ours)),
                row.peer.name().to_owned(),
                format!("{:>9}", report::grouped(row.theirs)),
                format!("{:>11}", report::grouped(row.theirs_without_el3)),
                row.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}")),
            ]
        })
        .collect();
    report::table(&["instructions", "     ours", "peer", "   theirs", "without EL3", "ratio"], &cells)
}

/// Builds, runs and prints; returns whether the run passed and all was measured.
pub fn run(json: Option<&Path>) -> Result<bool> {
    let qemu = Qemu::locate()?;
    let image: Image = images::hypervisor(Platform::default().package(), &[])?;
    let machine = Machine { cpus: 1, icount: true, memory: Size(1 << 30), ..Machine::default() };
    ensure!(image.realm.is_some(), "the hypervisor's payload makes no realm");
    let run = |words: &[&str]| {
        let always = ["cloven.measure=1", "cloven.recs=1", "cloven.realm=144M"];
        let append = always.iter().chain(words).map(|word| (*word).to_owned()).collect();
        let follow = Follow { timeout: Some(run::LINUX_TIMEOUT), ..Follow::default() };
        let (image, machine) = (&image, machine.clone());
        let job =
            Job { image, machine, host: None, bare: false, append, device_tree: None, u_boot: None, follow };
        job.run(&qemu)
    };
    let (blocks, pages) = (run(&[])?, run(&["cloven.pages=1"])?);
    let rows = rows(&blocks.transcript, &pages.transcript);
    print!("{}", table(&rows));
    let missing: Vec<&str> = rows.iter().filter(|row| row.ours.is_none()).map(|row| row.figure).collect();
    if !missing.is_empty() {
        println!("not measured: {}", missing.join(", "));
    }
    for outcome in [&blocks, &pages].into_iter().filter(|outcome| outcome.verdict == Verdict::Fail) {
        println!("fail: {}", outcome.reasons.join("; "));
    }
    report::write_json(json, &rows)?;
    Ok(missing.is_empty() && [blocks, pages].iter().all(|outcome| outcome.verdict == Verdict::Pass))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows_of(lines: &[&str]) -> Vec<Row> {
        let mut transcript = Transcript::default();
        for line in lines {
            transcript.push(line, |_| None);
        }
        rows(&transcript, &Transcript::default())
    }

    #[test]
    fn a_call_of_the_host_is_compared_without_el3() {
        let rows = rows_of(&["@cloven figure rmi.GRANULE_DELEGATE 1681 ticks"]);
        let row = rows.iter().find(|row| row.figure == "rmi.GRANULE_DELEGATE").unwrap();
        assert_eq!(
            (row.ours, row.theirs, row.theirs_without_el3, row.ratio),
            (Some(1681), 2782, 1681, Some(1.0))
        );
    }

    #[test]
    fn what_measuring_takes_is_not_the_realms() {
        let rows =
            rows_of(&["@cloven figure realm.nothing 10 ticks", "@cloven figure realm.rsi_version 149 ticks"]);
        let row = rows.iter().find(|row| row.figure == "realm.rsi_version").unwrap();
        assert_eq!((row.ours, row.theirs_without_el3, row.ratio), (Some(139), 278, Some(0.5)));
    }

    #[test]
    fn what_was_not_measured_is_no_number() {
        let rows = rows_of(&[]);
        assert!(rows.iter().all(|row| row.ours.is_none() && row.ratio.is_none()));
        assert_eq!(table(&rows).lines().count(), COSTS.len() + 1);
    }

    #[test]
    fn each_figure_is_compared_once() {
        let mut figures: Vec<(&str, bool)> = COSTS.iter().map(|cost| (cost.figure, cost.pages)).collect();
        figures.sort_unstable();
        figures.dedup();
        assert_eq!(figures.len(), COSTS.len());
    }
}
