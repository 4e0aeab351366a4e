//! What is printed, and the same as JSON.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::{
    leaves::{self, Course, Point},
    measure::{Entry, Row, Temperature},
};

/// One measurement as the JSON file has it.
#[derive(Serialize)]
struct Record<'a> {
    work: &'a str,
    subject: &'a str,
    ns: Option<f64>,
    ratio_to_bound: Option<f64>,
    stores: Option<u64>,
    tlbis: Option<u64>,
    barriers: Option<u64>,
    /// Taken; of leaves that were followed, left.
    tables: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    leaves: Option<&'a [Point]>,
}

/// A table of ratios: works down, subjects across, the bound with its time.
pub fn print(temperature: Temperature, rows: &[Row]) {
    if rows.is_empty() {
        return;
    }
    let title = match temperature {
        Temperature::Warm => "warm, ratio to the bound",
        Temperature::Cold => "cold, ratio to the bound",
    };
    let names = crate::subjects::ALL.iter().map(|subject| subject.name.to_owned());
    let mut lines: Vec<Vec<String>> = vec![[title.to_owned()].into_iter().chain(names).collect()];
    for row in rows {
        let cells = row.entries.iter().enumerate().map(|(at, entry)| match entry {
            None => "-".to_owned(),
            Some(entry) if at == 0 => time(entry.ns),
            Some(entry) => format!("{:.2}", entry.ratio),
        });
        lines.push([row.work.clone()].into_iter().chain(cells).collect());
    }
    print_table(&lines);
}

/// What each work of the subjects that count costs beside time, and the least it can cost in brackets.
pub fn print_counts(rows: &[Row]) {
    let header = ["counted (least)", "subject", "stores", "TLBIs", "DSBs", "ISBs", "tables"];
    let mut lines = vec![header.map(str::to_owned).to_vec()];
    for row in rows {
        for entry in row.entries.iter().flatten() {
            let (counts, least) = (entry.counts, row.least);
            let cell = |count: Option<u64>, least: Option<u64>| match (count, least) {
                (Some(count), Some(least)) => Some(format!("{count} ({least})")),
                _ => None,
            };
            let cells = [
                cell(counts.stores, least.stores),
                cell(counts.tlbis, least.tlbis),
                cell(counts.dsbs, least.dsbs),
                cell(counts.isbs, least.isbs),
            ];
            if let Some(cells) = cells.into_iter().collect::<Option<Vec<_>>>() {
                let names = [row.work.clone(), entry.subject.to_owned()];
                lines.push(names.into_iter().chain(cells).chain([entry.tables.to_string()]).collect());
            }
        }
    }
    if lines.len() > 1 {
        print_table(&lines);
    }
}

/// Table memory of maps of 256 GiB.
pub fn print_memory(memory: &[(&str, u64)]) {
    let mut lines =
        vec![["table memory of 256 GiB".to_owned(), "tables".to_owned(), "KiB".to_owned()].to_vec()];
    lines.extend(
        memory
            .iter()
            .map(|(name, tables)| vec![(*name).to_owned(), tables.to_string(), (tables * 4).to_string()]),
    );
    print_table(&lines);
}

/// The first line is the header.
pub fn print_table(lines: &[Vec<String>]) {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
    for line in lines {
        print!("{:width$}", line[0], width = widths[0]);
        for (cell, width) in line.iter().zip(&widths).skip(1) {
            print!("  {cell:>width$}");
        }
        println!();
    }
    println!();
}

/// Writes all rows as JSON, and after them what leaves were left, if a file was asked for.
pub fn write_json<'a>(
    file: Option<&Path>,
    rows: impl Iterator<Item = &'a Row>,
    courses: &'a [Course],
) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    let measured = rows.flat_map(|row| row.entries.iter().flatten().map(|entry| measured(row, entry)));
    let records: Vec<Record> = measured.chain(courses.iter().map(followed)).collect();
    let text = serde_json::to_string_pretty(&records).context("cannot form the JSON report")?;
    fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))
}

fn measured<'a>(row: &'a Row, entry: &Entry) -> Record<'a> {
    let counts = entry.counts;
    Record {
        work: &row.work,
        subject: entry.subject,
        ns: Some(rounded(entry.ns)),
        ratio_to_bound: Some(rounded(entry.ratio)),
        stores: counts.stores,
        tlbis: counts.tlbis,
        barriers: counts.barriers(),
        tables: entry.tables,
        leaves: None,
    }
}

fn followed(course: &Course) -> Record<'_> {
    Record {
        work: course.way,
        subject: leaves::SUBJECT,
        ns: None,
        ratio_to_bound: None,
        stores: None,
        tlbis: None,
        barriers: None,
        tables: course.end().tables as u64,
        leaves: Some(&course.points),
    }
}

/// Two decimal places.
fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn time(ns: f64) -> String {
    match ns {
        ..1e3 => format!("{ns:.1} ns"),
        ..1e6 => format!("{:.1} us", ns / 1e3),
        _ => format!("{:.1} ms", ns / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_their_unit() {
        assert_eq!(time(2.54), "2.5 ns");
        assert_eq!(time(1500.0), "1.5 us");
        assert_eq!(time(2_500_000.0), "2.5 ms");
    }
}
