//! The maps of a run as a picture.
//!
//! A stage has one axis for all its moments, so that what lies at one address stands in one place. It is folded: between two ends of ranges
//! there is room by the logarithm of the distance, and what is wider than the picture goes on in the next line. So a page in 64 GiB can be
//! seen, and ten thousand of them too.

use svg::{
    Document,
    node::element::{Rectangle, Text, Title},
};

use crate::maps::{Difference, Dump, Dumps, KINDS, differences};

const COLOURS: [&str; KINDS.len()] =
    ["#08519c", "#4292c6", "#006d2c", "#41ab5d", "#d94801", "#fd8d3c", "#737373", "#6a51a3"];
const HOLE: &str = "#e8e8e8";
const CHANGED: &str = "#e7298a";

/// Where lines begin: beside the address of their first range.
const LEFT: f64 = 160.0;
/// Where they end.
const RIGHT: f64 = 1500.0;
const WIDTH: f64 = RIGHT - LEFT;
const LINE: f64 = 16.0;
const TEXT: f64 = 18.0;
/// Of the smallest range, and more for each doubling.
const LEAST: f64 = 3.0;
const DOUBLING: f64 = 2.0;

/// The addresses of a stage on a line as long as it takes.
struct Axis {
    ends: Vec<u128>,
    /// Where each of them stands.
    places: Vec<f64>,
}

impl Axis {
    fn of(dumps: &[&Dump]) -> Self {
        let mut ends: Vec<u128> = dumps
            .iter()
            .flat_map(|dump| &dump.extents)
            .flat_map(|extent| [u128::from(extent.start), u128::from(extent.start) + u128::from(extent.size)])
            .collect();
        ends.sort_unstable();
        ends.dedup();
        let mut places = vec![0.0];
        for part in ends.windows(2) {
            let pages = ((part[1] - part[0]) as f64 / 4096.0).max(1.0);
            places.push(places[places.len() - 1] + LEAST + DOUBLING * pages.log2());
        }
        // A short one fills its line.
        let length = places[places.len() - 1].max(1.0);
        let scale = (WIDTH / length).max(1.0);
        places.iter_mut().for_each(|place| *place *= scale);
        Self { ends, places }
    }

    fn length(&self) -> f64 {
        self.places.last().copied().unwrap_or(0.0)
    }

    fn lines(&self) -> usize {
        // A little less, for what a division leaves behind the last line.
        ((self.length() - 0.01) / WIDTH) as usize + 1
    }

    fn place(&self, address: u128) -> f64 {
        self.ends.binary_search(&address).map_or(0.0, |index| self.places[index])
    }

    /// The parts of a range, each with its line, its distance from the left and its width.
    fn parts(&self, start: u64, size: u64) -> Vec<(usize, f64, f64)> {
        let (mut from, to) = (self.place(start.into()), self.place(u128::from(start) + u128::from(size)));
        let mut parts = Vec::new();
        for line in (from / WIDTH) as usize..self.lines() {
            let end = to.min((line + 1) as f64 * WIDTH);
            if end - from > 0.01 {
                parts.push((line, from - line as f64 * WIDTH, end - from));
            }
            from = from.max(end);
        }
        parts
    }

    /// The last address that stands at or before the beginning of a line.
    fn first_of(&self, line: usize) -> u128 {
        let index = self.places.partition_point(|&place| place <= line as f64 * WIDTH);
        self.ends.get(index.saturating_sub(1)).copied().unwrap_or(0)
    }
}

fn rounded(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

fn rectangle((x, y): (f64, f64), (width, height): (f64, f64), colour: &str) -> Rectangle {
    Rectangle::new()
        .set("x", rounded(x))
        .set("y", rounded(y))
        .set("width", rounded(width))
        .set("height", rounded(height))
        .set("fill", colour)
}

fn text(x: f64, y: f64, content: impl Into<String>) -> Text {
    Text::new(content).set("x", x).set("y", y)
}

/// Draws all dumps of a run; `title` says of what.
pub fn draw(dumps: &Dumps, title: &str) -> Document {
    let mut picture = Document::new().set("font-family", "monospace").set("font-size", 12).add(rectangle(
        (0.0, 0.0),
        (RIGHT + 20.0, 1e6),
        "white",
    ));
    let mut y = 1.5 * TEXT;
    picture = picture.add(text(10.0, y, title).set("font-size", 16));
    y += TEXT;
    let colours = COLOURS.into_iter().chain([HOLE, CHANGED]);
    let names = KINDS.into_iter().chain(["hole", "changed since the moment before"]);
    let mut x = 10.0;
    for (colour, name) in colours.zip(names) {
        picture = picture.add(rectangle((x, y - 10.0), (12.0, 12.0), colour)).add(text(x + 17.0, y, name));
        x += 40.0 + 7.4 * name.len() as f64;
    }
    for stage in dumps.stages() {
        let moments = dumps.of(stage);
        let axis = Axis::of(&moments);
        y += 2.0 * TEXT;
        picture = picture.add(text(10.0, y, stage).set("font-size", 15).set("font-weight", "bold"));
        let mut before: Option<&Dump> = None;
        for dump in moments {
            y += 1.5 * TEXT;
            let changed = before.map_or_else(Vec::new, |before| differences(before, dump));
            picture = picture.add(text(10.0, y, caption(dump, before, &changed)));
            // What is as it was is not drawn again.
            if before.is_none() || !changed.is_empty() {
                y += 6.0;
                for line in 0..axis.lines() {
                    let top = y + line as f64 * LINE;
                    let address = format!("{:#x}", axis.first_of(line));
                    let address = text(LEFT - 8.0, top + 11.0, address).set("text-anchor", "end");
                    let width = WIDTH.min(axis.length() - line as f64 * WIDTH);
                    picture = picture.add(rectangle((LEFT, top), (width, LINE - 3.0), HOLE)).add(address);
                }
                for extent in &dump.extents {
                    for (line, x, width) in axis.parts(extent.start, extent.size) {
                        let at = (LEFT + x, y + line as f64 * LINE);
                        // With a seam to the next one.
                        let size = (width - (width / 8.0).min(0.6), LINE - 3.0);
                        let colour = COLOURS[extent.content.kind()];
                        picture =
                            picture.add(rectangle(at, size, colour).add(Title::new(extent.to_string())));
                    }
                }
                for Difference { start, size, .. } in &changed {
                    for (line, x, width) in axis.parts(*start, *size) {
                        let at = (LEFT + x, y + line as f64 * LINE + LINE - 3.0);
                        picture = picture.add(rectangle(at, (width, 2.0), CHANGED));
                    }
                }
                y += axis.lines() as f64 * LINE;
            }
            before = Some(dump);
        }
    }
    let height = y + TEXT;
    picture.set("viewBox", (0, 0, RIGHT + 20.0, height)).set("width", RIGHT + 20.0).set("height", height)
}

/// What stands over the lines of a moment.
fn caption(dump: &Dump, before: Option<&Dump>, changed: &[Difference]) -> String {
    if let Some(before) = before.filter(|_| changed.is_empty()) {
        return format!("{}: as {}", dump.moment, before.moment);
    }
    let counts = dump.counts().into_iter().zip(KINDS).filter(|(count, _)| *count > 0);
    let counts: Vec<String> = counts.map(|(count, kind)| format!("{count} × {kind}")).collect();
    format!("{}: {}", dump.moment, counts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dumps(pages: u64) -> Dumps {
        let mut dumps = Dumps::default();
        let leaf = |start: u64, size: u64, level: u8, leaf: u64, words: &str| {
            format!(
                r#"{{"start":"{start:#x}","size":{size},"level":{level},"leaf":{leaf},"output":"{start:#x}","attributes":"{words}","contiguous":false,"valid":true}}"#
            )
        };
        let mut push = |moment: &str, lines: &[String]| {
            dumps.push(&format!(r#"{{"stage":"stage 2","moment":"{moment}","input_bits":40}}"#)).unwrap();
            lines.iter().for_each(|line| dumps.push(line).unwrap());
            dumps.push(&format!(r#"{{"extents":{}}}"#, lines.len())).unwrap();
        };
        let all = [leaf(1 << 30, 64 << 30, 1, 1 << 30, "RW")];
        push("boot", &all);
        push("later", &all);
        let mut lines = Vec::new();
        for page in 0..pages {
            let start = (1 << 30) + (page << 13);
            lines.extend([leaf(start, 4096, 3, 4096, "RO"), leaf(start + 4096, 4096, 3, 4096, "RW")]);
        }
        let start = (1 << 30) + (pages << 13);
        lines.push(leaf(start, (65 << 30) - start, 2, 4096, "RW"));
        push("off", &lines);
        dumps
    }

    #[test]
    fn a_page_in_64_gib_can_be_seen() {
        let dumps = dumps(1);
        let axis = Axis::of(&dumps.of("stage 2"));
        assert_eq!(axis.lines(), 1);
        let [(0, x, width)] = axis.parts(1 << 30, 4096)[..] else { panic!("a page has one part") };
        assert!(x == 0.0 && width >= LEAST, "{width}");
        let whole: f64 = axis.parts(1 << 30, 64 << 30).iter().map(|(_, _, width)| width).sum();
        assert!((whole - WIDTH).abs() < 0.1, "{whole}");
    }

    #[test]
    fn what_is_wider_than_the_picture_goes_on_in_the_next_line() {
        let dumps = dumps(1000);
        let axis = Axis::of(&dumps.of("stage 2"));
        let parts = axis.parts(1 << 30, 64 << 30);
        assert!(axis.lines() > 3 && parts.len() == axis.lines());
        assert!(
            parts[..parts.len() - 1].iter().all(|&(_, x, width)| x == 0.0 && (width - WIDTH).abs() < 0.1)
        );
        for page in 0..2000 {
            let parts = axis.parts((1 << 30) + (page << 12), 4096);
            let width: f64 = parts.iter().map(|(_, _, width)| width).sum();
            assert!(
                (width - LEAST).abs() < 0.1 && parts.iter().all(|(_, x, width)| x + width <= WIDTH + 0.1)
            );
        }
    }

    #[test]
    fn a_moment_is_drawn_only_if_something_changed() {
        let picture = draw(&dumps(1), "run").to_string();
        assert!(picture.contains("later: as boot"), "{picture}");
        assert!(picture.contains("boot: 64 × 1G BLK"), "{picture}");
        // Ranges have their text: one at boot, three at the end; and three changed.
        assert_eq!(picture.matches("<title>").count(), 4);
        assert_eq!(picture.matches(&format!("fill=\"{CHANGED}\"")).count(), 1 + 3);
    }
}
