//! What a verb prints at its end, as tables for people and as JSON for machines.
//!
//! Invariant: both say the same, because both are made from the same value.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;

/// An error now if [`write_json`] will not be able to write.
pub fn check_json(file: Option<&Path>) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    let open = fs::OpenOptions::new().append(true).create(true).open(file);
    open.map(drop).with_context(|| format!("cannot write {}", file.display()))
}

/// Writes `value` as JSON, if a file was asked for.
pub fn write_json(file: Option<&Path>, value: &impl Serialize) -> Result<()> {
    let Some(file) = file else { return Ok(()) };
    let text = serde_json::to_string_pretty(value).context("cannot form the JSON report")?;
    fs::write(file, text + "\n").with_context(|| format!("cannot write {}", file.display()))
}

/// A table with columns as wide as their widest cell; the last column is not padded. Nothing without rows.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain([head[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        padded.join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(&mut head.iter().copied());
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

/// A number with a comma between each three digits.
pub fn grouped(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Seconds with two decimal places, as they are printed and written.
pub fn rounded(seconds: f64) -> f64 {
    (seconds * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["long name".to_owned(), "ok".to_owned()], vec!["b".to_owned(), "FAIL".to_owned()]];
        assert_eq!(table(&["name", "result"], &rows), "name       result\nlong name  ok\nb          FAIL\n");
        assert_eq!(table(&["name"], &[]), "");
    }

    #[test]
    fn digits_are_grouped() {
        assert_eq!(grouped(7), "7");
        assert_eq!(grouped(123), "123");
        assert_eq!(grouped(1234567), "1,234,567");
    }

    #[test]
    fn a_report_is_written_where_it_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("report.json");
        write_json(Some(&file), &["a"]).unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "[\n  \"a\"\n]\n");
        assert!(write_json(Some(&dir.path().join("none/report.json")), &["a"]).is_err());
        write_json(None, &["a"]).unwrap();
    }
}
