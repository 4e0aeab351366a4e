//! What large leaves are left while random pages of 64 GiB are made read-only and put back, as kernels do with their direct map for code
//! that they load (Aaron Lu, "x86/mm/cpa: merge splitted direct mapping when possible", 2022).

use std::{fmt::Write, path::Path};

use anyhow::{Context, Result};
use hyp::mapping::Census;
use serde::Serialize;
use svg::{
    Document,
    node::element::{Line, Polygon, Rectangle, Text},
};

use crate::{
    Peer,
    peer::Joins,
    pool::pool,
    subjects::hyp::HypRuns,
    work::{self, PA, PAGE, VA},
};

const SIZE: usize = 64 << 30;

/// Bytes that each kind of leaf maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Bytes {
    pub runs_of_16_gib: usize,
    pub blocks_of_1_gib: usize,
    pub runs_of_32_mib: usize,
    pub blocks_of_2_mib: usize,
    pub runs_of_64_kib: usize,
    pub pages: usize,
}

impl Bytes {
    fn of(census: &Census) -> Self {
        let runs = |level: usize| (census.runs[level] * 16) << (39 - 9 * level);
        let single = |level: usize| (census.leaves[level] << (39 - 9 * level)) - runs(level);
        Self {
            runs_of_16_gib: runs(1),
            blocks_of_1_gib: single(1),
            runs_of_32_mib: runs(2),
            blocks_of_2_mib: single(2),
            runs_of_64_kib: runs(3),
            pages: single(3),
        }
    }

    /// With the size of each.
    fn list(&self) -> [(&'static str, usize, usize); 6] {
        [
            ("runs of 16 GiB", 16 << 30, self.runs_of_16_gib),
            ("blocks of 1 GiB", 1 << 30, self.blocks_of_1_gib),
            ("runs of 32 MiB", 32 << 20, self.runs_of_32_mib),
            ("blocks of 2 MiB", 2 << 20, self.blocks_of_2_mib),
            ("runs of 64 KiB", 64 << 10, self.runs_of_64_kib),
            ("pages", 4 << 10, self.pages),
        ]
    }
}

/// The map after so many rounds.
#[derive(Serialize)]
pub struct Point {
    pub round: usize,
    pub bytes: Bytes,
    pub tables: usize,
}

/// One way to go through the rounds.
pub struct Course {
    pub way: &'static str,
    pub points: Vec<Point>,
}

impl Course {
    fn follow(way: &'static str, pages: &[usize], put_back: impl Fn(&mut HypRuns, usize) -> bool) -> Self {
        pool().warm();
        let mut peer = HypRuns::new();
        peer.map(VA, PA, SIZE, true);
        let mut points = vec![Point::now(&peer, 0)];
        for (&page, round) in pages.iter().zip(1..) {
            assert!(peer.protect(page, PAGE, true) && put_back(&mut peer, page));
            // Each a tenth more than the one before: the picture's axis is logarithmic.
            if round == pages.len() || points.last().is_some_and(|last| round * 10 > last.round * 11) {
                points.push(Point::now(&peer, round));
            }
        }
        Self { way, points }
    }

    pub fn end(&self) -> &Point {
        self.points.last().expect("a course has its beginning")
    }
}

impl Point {
    fn now(peer: &HypRuns, round: usize) -> Self {
        Self { round, bytes: Bytes::of(&peer.census()), tables: pool().held() }
    }
}

/// Who is followed.
pub const SUBJECT: &str = HypRuns::NAME;

/// All ways, through the same pages.
pub fn follow(seed: u64) -> Vec<Course> {
    let pages = work::random_pages(seed);
    let last = pages.last().copied();
    vec![
        Course::follow("left read-only", &pages, |_, _| true),
        Course::follow("put back", &pages, |peer, page| peer.protect(page, PAGE, false)),
        Course::follow("put back, collapsed once at the end", &pages, |peer, page| {
            peer.protect(page, PAGE, false) && (Some(page) != last || peer.collapse(VA, SIZE))
        }),
        Course::follow("put back and joined", &pages, |peer, page| peer.put_back(page, PAGE)),
    ]
}

/// The lines of a table: how many leaves of each kind are left at the end.
pub fn lines(courses: &[Course]) -> Vec<Vec<String>> {
    let kinds = Bytes::default().list().map(|(name, ..)| name.to_owned());
    let title = format!("left after {}", work::ROUNDS);
    let mut lines = vec![[title].into_iter().chain(kinds).chain(["tables".to_owned()]).collect()];
    for course in courses {
        let end = course.end();
        let counts = end.bytes.list().map(|(_, size, bytes)| (bytes / size).to_string());
        lines.push(
            [course.way.to_owned()].into_iter().chain(counts).chain([end.tables.to_string()]).collect(),
        );
    }
    lines
}

/// Blue from the largest to the smallest block, then what has a table of the last level.
const COLOURS: [&str; 6] = ["#08306b", "#2171b5", "#6baed6", "#c6dbef", "#fdd0a2", "#e6550d"];
const PLOT: (f64, f64) = (300.0, 200.0);

/// A picture: the share of memory that each kind of leaf maps, over the rounds, for pages put back and put back and joined.
pub fn draw(courses: &[Course], file: &Path) -> Result<()> {
    let mut document = Document::new()
        .set("viewBox", (0, 0, 720, 320))
        .set("font-family", "sans-serif")
        .set("font-size", 12)
        .add(Rectangle::new().set("width", "100%").set("height", "100%").set("fill", "white"))
        .add(
            Text::new("Share of 64 GiB that leaves of each size map, while random pages are made read-only and put back")
                .set("x", 45)
                .set("y", 22),
        );
    let shown = courses.iter().filter(|course| ["put back", "put back and joined"].contains(&course.way));
    for (course, left) in shown.zip([45.0, 400.0]) {
        document = plot(document, course, left);
    }
    for (((name, ..), colour), number) in Bytes::default().list().into_iter().zip(COLOURS).zip(0..) {
        let left = 45 + 112 * number;
        document = document
            .add(
                Rectangle::new()
                    .set("x", left)
                    .set("y", 296)
                    .set("width", 10)
                    .set("height", 10)
                    .set("fill", colour),
            )
            .add(Text::new(name).set("x", left + 14).set("y", 305));
    }
    svg::save(file, &document).with_context(|| format!("cannot write {}", file.display()))
}

fn plot(mut document: Document, course: &Course, left: f64) -> Document {
    let (width, height) = PLOT;
    let top = 55.0;
    let rounds = course.end().round as f64;
    let x = |round: usize| left + width * (round as f64).ln_1p() / rounds.ln_1p();
    let y = |bytes: usize| top + height * (1.0 - bytes as f64 / SIZE as f64);
    document =
        document.add(Text::new(course.way).set("x", left).set("y", top - 8.0).set("font-weight", "bold"));
    let mut under = vec![0; course.points.len()];
    for (kind, colour) in COLOURS.iter().enumerate() {
        let over: Vec<usize> = course
            .points
            .iter()
            .zip(&under)
            .map(|(point, under)| under + point.bytes.list()[kind].2)
            .collect();
        let mut outline = String::new();
        let upper = course.points.iter().zip(&over);
        for (point, &bytes) in upper.chain(course.points.iter().zip(&under).rev()) {
            let _ = write!(outline, "{:.1},{:.1} ", x(point.round), y(bytes));
        }
        document = document.add(Polygon::new().set("points", outline.trim_end()).set("fill", *colour));
        under = over;
    }
    for percent in [0, 50, 100] {
        let y = y(SIZE / 100 * percent) + 4.0;
        document = document.add(
            Text::new(format!("{percent} %")).set("x", left - 4.0).set("y", y).set("text-anchor", "end"),
        );
    }
    for round in [0, 1, 10, 100, 1_000, 10_000] {
        let (x, bottom) = (x(round), top + height);
        let tick = Line::new().set("x1", x).set("x2", x).set("y1", bottom).set("y2", bottom + 4.0);
        document = document.add(tick.set("stroke", "black")).add(
            Text::new(round.to_string()).set("x", x).set("y", bottom + 17.0).set("text-anchor", "middle"),
        );
    }
    document.add(
        Text::new("pages put back")
            .set("x", left + width / 2.0)
            .set("y", top + height + 32.0)
            .set("text-anchor", "middle"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_joined_each_time_is_as_it_was() {
        let all = Bytes { runs_of_16_gib: SIZE, ..Bytes::default() };
        let courses = follow(3);
        for course in &courses {
            let (first, last) = (&course.points[0], course.end());
            assert_eq!((first.bytes, last.round), (all, 10_000));
            assert!(
                course
                    .points
                    .iter()
                    .all(|point| point.bytes.list().iter().map(|kind| kind.2).sum::<usize>() == SIZE)
            );
            assert_eq!(
                (last.bytes, last.tables) == (all, first.tables),
                course.way.contains("joined") || course.way.contains("collapsed"),
                "{}",
                course.way
            );
        }
        assert!(courses[3].points.iter().all(|point| point.bytes == all));
    }
}
