//! How a row is measured.
//!
//! Before any time is taken each subject does the work once, and its tables are compared with the bound's by the decoder
//! of this crate: nobody wins by doing less. Then the subjects take turns, round after round, and each round gives a ratio
//! to the bound's time in that round, so that a slow spell of the machine hits both. The medians count. Making a subject,
//! what the work needs before it, and freeing are outside of the time.

use std::{hint::black_box, time::Instant};

use anyhow::{Result, ensure};

use crate::{
    Peer,
    bound::Raw,
    decode::decode,
    peer::{Counts, Joins},
    pool::pool,
    work::Work,
};

/// A peer as the measurement sees it.
pub struct Subject {
    pub name: &'static str,
    check: fn(&Work) -> Result<Option<Cost>>,
    time: fn(&Work, &mut dyn FnMut()) -> f64,
}

/// What a work costs beside time.
struct Cost {
    tables: u64,
    counts: Counts,
}

/// What was found for one subject.
pub struct Entry {
    pub subject: &'static str,
    pub ns: f64,
    pub ratio: f64,
    pub tables: u64,
    pub counts: Counts,
}

/// What was found for one work; None for a subject that cannot do it.
pub struct Row {
    pub work: String,
    /// What it costs at least.
    pub least: Counts,
    pub entries: Vec<Option<Entry>>,
}

/// The state of the caches when the time starts.
#[derive(Clone, Copy, Eq, PartialEq)]
pub enum Temperature {
    /// Tables that were just in use.
    Warm,
    /// Tables that were not in use for long, and 64 MiB of other memory touched since the work was set up.
    Cold,
}

impl Temperature {
    /// The name of a row.
    pub fn name_of(self, work: &Work) -> String {
        match self {
            Self::Warm => work.name.to_owned(),
            Self::Cold => format!("{} (cold)", work.name),
        }
    }

    /// Lookups in one timing: many when the caches are to be warm, few when they are to be missed.
    pub fn lookups(self) -> usize {
        match self {
            Self::Warm => 1_000_000,
            Self::Cold => 1_000,
        }
    }
}

impl Subject {
    pub const fn of<P: Joins>() -> Self {
        Self { name: P::NAME, check: check::<P>, time: time::<P> }
    }
}

/// Measures one work; the first subject is what the others are compared with.
pub fn row(
    name: String,
    work: &Work,
    subjects: &[Subject],
    temperature: Temperature,
    rounds: u32,
) -> Result<Row> {
    let costs = subjects.iter().map(|subject| (subject.check)(work)).collect::<Result<Vec<_>>>()?;
    let mut other = vec![0u8; 64 << 20];
    let mut before = || {
        if temperature == Temperature::Cold {
            for line in other.iter_mut().step_by(64) {
                *line = black_box(line.wrapping_add(1));
            }
        }
    };
    let mut times = vec![Vec::new(); subjects.len()];
    for _ in 0..rounds {
        for ((subject, cost), times) in subjects.iter().zip(&costs).zip(&mut times) {
            if cost.is_some() {
                match temperature {
                    Temperature::Warm => pool().warm(),
                    Temperature::Cold => pool().cold(),
                }
                times.push((subject.time)(work, &mut before));
            }
        }
    }
    let least = work.least(costs.iter().flatten().next().map_or(0, |cost| cost.tables));
    let entry = |((subject, cost), of_subject): ((&Subject, Option<Cost>), &Vec<f64>)| {
        let Cost { tables, counts } = cost?;
        let ratios = of_subject.iter().zip(&times[0]).map(|(own, bound)| own / bound).collect();
        Some(Entry {
            subject: subject.name,
            ns: median(of_subject.clone()),
            ratio: median(ratios),
            tables,
            counts,
        })
    };
    let entries = subjects.iter().zip(costs).zip(&times).map(entry).collect();
    Ok(Row { work: name, least, entries })
}

/// Nanoseconds of one work.
fn time<P: Joins>(work: &Work, before: &mut dyn FnMut()) -> f64 {
    let set_up = |_| {
        let mut peer = P::new();
        work.set_up(&mut peer);
        peer
    };
    let mut peers: Vec<P> = (0..work.copies).map(set_up).collect();
    before();
    let start = Instant::now();
    for peer in &mut peers {
        black_box(work.perform(peer));
    }
    start.elapsed().as_nanos() as f64 / work.units() as f64
}

/// Does the work once and compares the outcome with that of the bound. None if the subject cannot do it.
fn check<P: Joins>(work: &Work) -> Result<Option<Cost>> {
    let who = format!("{}: {}", P::NAME, work.name);
    let (samples, lookups) = (work.samples(), work.lookups());
    pool().warm();
    let mut bound = Raw::new();
    work.set_up(&mut bound);
    work.perform(&mut bound);
    let expected: Vec<_> = samples.iter().map(|&va| decode(bound.root(), va)).collect();
    let leaves = lookups.iter().filter_map(|&va| decode(bound.root(), va));
    let expected_sum = leaves.fold(0usize, |sum, leaf| sum.wrapping_add(leaf.pa + leaf.level));
    let expected_held = pool().held();
    drop(bound);

    pool().warm();
    let mut peer = P::new();
    work.set_up(&mut peer);
    let taken = pool().taken();
    let sum = work.perform(&mut peer);
    let tables = pool().taken() - taken;
    let found: Vec<_> = samples.iter().map(|&va| decode(peer.root(), va)).collect();
    let held = pool().held();
    drop(peer);
    ensure!(pool().held() == 0, "{who}: {} tables were not given back", pool().held());

    let Some(sum) = sum else { return Ok(None) };
    for ((va, found), expected) in samples.iter().zip(found).zip(expected) {
        ensure!(found == expected, "{who}: {va:#x} leads to {found:x?}, not to {expected:x?}");
    }
    if work.joins() {
        ensure!(held == expected_held, "{who}: {held} tables are left, not {expected_held}");
    }
    ensure!(sum == expected_sum, "{who}: the sum of all lookups is {sum:#x}, not {expected_sum:#x}");
    Ok(Some(Cost { tables, counts: P::counts(work) }))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{subjects, work};

    /// Says that it did everything and did nothing.
    struct Idle(Raw);

    impl Peer for Idle {
        const NAME: &'static str = "idle";

        fn new() -> Self {
            Self(Raw::new())
        }

        fn map(&mut self, _: usize, _: usize, _: usize, _: bool) {}

        fn protect(&mut self, _: usize, _: usize, _: bool) -> bool {
            true
        }

        fn translate(&self, _: usize) -> Option<(usize, usize)> {
            None
        }

        fn unmap(&mut self, _: usize, _: usize) {}

        fn root(&self) -> usize {
            self.0.root()
        }
    }

    impl Joins for Idle {
        fn collapse(&mut self, _: usize, _: usize) -> bool {
            true
        }
    }

    #[test]
    fn who_does_nothing_is_found_out() {
        for work in work::all(1, 1000).iter().filter(|work| !work.name.starts_with("unmap")) {
            assert!(check::<Idle>(work).is_err(), "{}", work.name);
        }
    }

    #[test]
    fn all_subjects_do_what_they_say() {
        for work in work::all(2, 1000) {
            for subject in subjects::ALL {
                (subject.check)(&work).unwrap();
            }
        }
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
