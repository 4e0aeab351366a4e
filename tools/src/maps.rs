//! What the maps of a run said, and in what two moments differ.
//!
//! Invariant: a dump whose lines did not all arrive, one after the other, is never taken for one.

use std::fmt;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize, Serializer};

/// One map at one moment.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Dump {
    /// Who translates with it.
    pub stage: String,
    /// When that was.
    pub moment: String,
    /// Bits of the input address.
    pub input_bits: u32,
    /// What is mapped or has a software state, in ascending order.
    pub extents: Vec<Extent>,
}

/// Addresses that follow each other and of which a map says the same.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Extent {
    /// First address.
    #[serde(with = "hexadecimal")]
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// What the map says of them.
    #[serde(flatten)]
    pub content: Content,
}

/// What a map says of addresses that are no hole.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Content {
    /// Leaves of one size and kind, whose outputs run on.
    Leaves {
        /// Their level.
        level: u8,
        /// Bytes of one.
        leaf: u64,
        /// What the first address translates to.
        #[serde(with = "hexadecimal")]
        output: u64,
        /// The attributes in words, in columns.
        #[serde(serialize_with = "words")]
        attributes: String,
        /// Whether they are of contiguous runs.
        contiguous: bool,
        /// Whether they translate.
        valid: bool,
    },
    /// No translation, and what software says of it.
    State {
        /// Its value.
        #[serde(with = "hexadecimal")]
        state: u64,
    },
}

/// An address in JSON: text, as not every reader has numbers of 64 bits.
mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(value: &u64, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{value:#x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
        let text = String::deserialize(from)?;
        let digits = text.strip_prefix("0x").and_then(|digits| u64::from_str_radix(digits, 16).ok());
        digits.ok_or_else(|| D::Error::custom("no hexadecimal number"))
    }
}

/// Words with one space between them.
fn words<S: Serializer>(columns: &str, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&columns.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// The kinds of what stands in a map, by name; the largest leaves first.
pub const KINDS: [&str; 8] =
    ["1G CON", "1G BLK", "2M CON", "2M BLK", "4K CON", "4K PTE", "invalid leaf", "software state"];

impl Content {
    /// Which of [`KINDS`] it is.
    pub fn kind(&self) -> usize {
        match self {
            Self::Leaves { valid: false, .. } => 6,
            Self::Leaves { level, contiguous, .. } => {
                2 * usize::from((*level).clamp(1, 3) - 1) + usize::from(!contiguous)
            }
            Self::State { .. } => 7,
        }
    }

    /// The same from `offset` bytes on.
    fn skip(&self, offset: u64) -> Self {
        let mut content = self.clone();
        if let Self::Leaves { output, .. } = &mut content {
            *output = output.wrapping_add(offset);
        }
        content
    }

    /// Whether the words of its attributes have all of `words`; never of what does not translate.
    pub fn is_valid_with(&self, words: &[&str]) -> bool {
        matches!(self, Self::Leaves { valid: true, .. }) && self.is_leaf_with(words)
    }

    /// Whether the words of its attributes have all of `words`, which say what it would be where it does not translate.
    pub fn is_leaf_with(&self, words: &[&str]) -> bool {
        let Self::Leaves { attributes, .. } = self else { return false };
        words.iter().all(|word| attributes.split_whitespace().any(|it| it == *word))
    }

    /// It as text, for a range that begins at `start`.
    fn show(&self, start: u64) -> String {
        match self {
            Self::State { state } => format!("state {state:#x}"),
            Self::Leaves { level, leaf, output, attributes, contiguous, valid } => {
                let kind = if *level == 3 { "PTE".to_owned() } else { format!("BLK {}", scaled(*leaf)) };
                let run = if *contiguous { "CON" } else { "" };
                let invalid = if *valid { "" } else { " INVALID" };
                let output = if *output == start { String::new() } else { format!(" -> {output:#018x}") };
                format!("{kind:6} {run:3} {attributes}{invalid}{output}")
            }
        }
    }
}

impl Extent {
    /// The last address.
    fn last(&self) -> u64 {
        self.start.wrapping_add(self.size - 1)
    }

    /// Whether an address is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.start <= other.last() && other.start <= self.last()
    }
}

/// In the manner of Linux's `ptdump`, as the hypervisor itself prints it with `cloven.dump=text`.
impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", Span(self.start, self.size), self.content.show(self.start))
    }
}

/// First address and bytes.
struct Span(u64, u64);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(start, size) = *self;
        write!(f, "{start:#018x}-{:#018x} {:>10}", start.wrapping_add(size), scaled(size))
    }
}

/// A number of bytes in the largest unit that divides it.
pub fn scaled(bytes: u64) -> String {
    let units = ["", "K", "M", "G", "T"];
    let unit = (bytes.trailing_zeros() as usize / 10).min(units.len() - 1);
    format!("{}{}", bytes >> (10 * unit), units[unit])
}

/// A line of a dump.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Head { stage: String, moment: String, input_bits: u32 },
    Extent(Extent),
    End { extents: usize },
}

/// The dumps of a run, as their lines come.
#[derive(Debug, Default)]
pub struct Dumps {
    whole: Vec<Dump>,
    open: Option<Dump>,
}

impl Dumps {
    /// Takes a line.
    pub fn push(&mut self, line: &str) -> Result<()> {
        let line = serde_json::from_str(line).context("this is no line of a dump")?;
        match (line, &mut self.open) {
            (Line::Head { stage, moment, input_bits }, open @ None) => {
                *open = Some(Dump { stage, moment, input_bits, extents: Vec::new() });
            }
            (Line::Extent(extent), Some(open)) => {
                let fits = extent.size > 0 && extent.start.checked_add(extent.size - 1).is_some();
                let follows = open.extents.last().is_none_or(|before| before.last() < extent.start);
                ensure!(fits && follows, "{extent} does not come after what was before it");
                open.extents.push(extent);
            }
            (Line::End { extents }, Some(open)) => {
                ensure!(extents == open.extents.len(), "{} of {extents} lines came", open.extents.len());
                self.whole.extend(self.open.take());
            }
            _ => bail!("a dump begins where one is going on, or goes on where none is"),
        }
        Ok(())
    }

    /// All that came to their end.
    pub fn whole(&self) -> &[Dump] {
        &self.whole
    }

    /// The one that did not come to its end, if one did not.
    pub fn unfinished(&self) -> Option<&Dump> {
        self.open.as_ref()
    }

    /// The names of the stages, in the order in which they came.
    pub fn stages(&self) -> Vec<&str> {
        let mut stages: Vec<&str> = Vec::new();
        for dump in &self.whole {
            if !stages.contains(&dump.stage.as_str()) {
                stages.push(&dump.stage);
            }
        }
        stages
    }

    /// The moments of one stage, in the order in which they came.
    pub fn of(&self, stage: &str) -> Vec<&Dump> {
        self.whole.iter().filter(|dump| dump.stage == stage).collect()
    }
}

impl Dump {
    /// How many leaves there are of each kind but the last, of which each extent is one.
    pub fn counts(&self) -> [u64; KINDS.len()] {
        let mut counts = [0; KINDS.len()];
        for Extent { size, content, .. } in &self.extents {
            counts[content.kind()] += match content {
                Content::Leaves { leaf, .. } => size / leaf.max(&1),
                Content::State { .. } => 1,
            };
        }
        counts
    }

    /// What it says from `address` on, if that is no hole.
    fn at(&self, address: u64) -> Option<Content> {
        let index = self.extents.partition_point(|extent| extent.last() < address);
        let extent = self.extents.get(index).filter(|extent| extent.start <= address)?;
        Some(extent.content.skip(address - extent.start))
    }

    /// Bytes of what `chosen` chooses.
    pub fn bytes(&self, chosen: impl Fn(&Content) -> bool) -> u64 {
        self.extents.iter().filter(|extent| chosen(&extent.content)).map(|extent| extent.size).sum()
    }
}

/// Addresses that follow each other and of which two dumps say different things, each the same for all of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// First address.
    #[serde(with = "hexadecimal")]
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// What was said; nothing of a hole.
    pub before: Option<Content>,
    /// What is said.
    pub after: Option<Content>,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let show = |content: &Option<Content>| {
            content.as_ref().map_or_else(|| "hole".to_owned(), |content| content.show(self.start))
        };
        write!(f, "{}  {}\n{:48}  {}", Span(self.start, self.size), show(&self.before), "", show(&self.after))
    }
}

/// In what two moments of one map differ, in ascending order.
pub fn differences(before: &Dump, after: &Dump) -> Vec<Difference> {
    let ends = |dump: &Dump| {
        let each = |extent: &Extent| [u128::from(extent.start), u128::from(extent.last()) + 1];
        dump.extents.iter().flat_map(each).collect::<Vec<_>>()
    };
    let mut ends = [ends(before), ends(after)].concat();
    ends.sort_unstable();
    ends.dedup();
    let mut differences: Vec<Difference> = Vec::new();
    for part in ends.windows(2) {
        // The first of two ends is no more than an address, and the two are no more than 2^64 - 1 apart but for a map of one extent.
        let (start, size) = (part[0] as u64, (part[1] - part[0]) as u64);
        let (was, is) = (before.at(start), after.at(start));
        if was == is {
            continue;
        }
        if let Some(last) = differences.last_mut().filter(|last| last.start + last.size == start) {
            let runs_on = |from: &Option<Content>, to: &Option<Content>| {
                from.as_ref().map(|content| content.skip(last.size)) == *to
            };
            if runs_on(&last.before, &was) && runs_on(&last.after, &is) {
                last.size += size;
                continue;
            }
        }
        differences.push(Difference { start, size, before: was, after: is });
    }
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;
    const MIB: u64 = 1 << 20;

    fn leaves(start: u64, size: u64, leaf: u64, attributes: &str) -> String {
        let level = if leaf == PAGE { 3 } else { 2 };
        format!(
            r#"{{"start":"{start:#x}","size":{size},"level":{level},"leaf":{leaf},"output":"{start:#x}","attributes":"{attributes}","contiguous":false,"valid":true}}"#
        )
    }

    fn dump(moment: &str, lines: &[String]) -> Dump {
        let mut dumps = Dumps::default();
        let head = format!(r#"{{"stage":"stage 2","moment":"{moment}","input_bits":40}}"#);
        dumps.push(&head).unwrap();
        lines.iter().for_each(|line| dumps.push(line).unwrap());
        dumps.push(&format!(r#"{{"extents":{}}}"#, lines.len())).unwrap();
        assert!(dumps.unfinished().is_none());
        dumps.whole()[0].clone()
    }

    #[test]
    fn the_lines_of_a_dump_are_read_and_shown_as_they_were() {
        let state = r#"{"start":"0x80000000","size":4096,"state":"0x17"}"#.to_owned();
        let read = dump("boot", &[leaves(2 * MIB, 4 * MIB, 2 * MIB, "RW X  AF"), state]);
        assert_eq!((read.stage.as_str(), read.moment.as_str(), read.input_bits), ("stage 2", "boot", 40));
        let lines: Vec<String> = read.extents.iter().map(ToString::to_string).collect();
        assert_eq!(
            lines,
            [
                "0x0000000000200000-0x0000000000600000         4M BLK 2M     RW X  AF",
                "0x0000000080000000-0x0000000080001000         4K state 0x17",
            ]
        );
        let json = serde_json::to_value(&read.extents[0]).unwrap();
        assert_eq!((&json["start"], &json["attributes"]), (&"0x200000".into(), &"RW X AF".into()));
        assert!(read.extents[0].content.is_valid_with(&["RW", "X"]));
        assert!(!read.extents[0].content.is_valid_with(&["RO"]));
        assert_eq!(read.bytes(|content| content.is_valid_with(&["X"])), 4 * MIB);
    }

    #[test]
    fn a_dump_that_lost_a_line_is_none() {
        let head = r#"{"stage":"s","moment":"m","input_bits":40}"#;
        let (page, next) = (leaves(PAGE, PAGE, PAGE, "RW"), leaves(2 * PAGE, PAGE, PAGE, "RO"));
        for lines in [
            vec![page.as_str()],
            vec![r#"{"extents":0}"#],
            vec![head, head],
            vec![head, &page, &next, r#"{"extents":1}"#],
            vec![head, &next, &page],
            vec![head, r#"{"start":"4096","size":1,"state":"0x1"}"#],
            vec![head, r#"{"start":"0x1000","size":0,"state":"0x1"}"#],
            vec![head, r#"{"start":"0x1000""#],
        ] {
            let mut dumps = Dumps::default();
            let (last, all) = lines.split_last().unwrap();
            all.iter().for_each(|line| dumps.push(line).unwrap());
            assert!(dumps.push(last).is_err(), "{lines:?}");
            assert!(dumps.whole().is_empty());
            assert_eq!(dumps.unfinished().is_some(), lines[0] == head);
        }
    }

    #[test]
    fn a_page_split_out_of_a_block_is_a_difference_in_size_and_one_in_attributes() {
        let before = dump("a", &[leaves(2 * MIB, 2 * MIB, 2 * MIB, "RW")]);
        let pages = [
            leaves(2 * MIB, PAGE, PAGE, "RO"),
            leaves(2 * MIB + PAGE, 2 * MIB - PAGE, PAGE, "RW"),
            leaves(8 * MIB, PAGE, PAGE, "RW"),
        ];
        let after = dump("b", &pages);
        let found = differences(&before, &after);
        let shown: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "0x0000000000200000-0x0000000000201000         4K  BLK 2M     RW\n                                                  PTE        RO",
                "0x0000000000201000-0x0000000000400000      2044K  BLK 2M     RW\n                                                  PTE        RW",
                "0x0000000000800000-0x0000000000801000         4K  hole\n                                                  PTE        RW",
            ]
        );
        assert!(differences(&after, &after).is_empty());
        let back = differences(&after, &before);
        assert!(back.iter().zip(&found).all(|(a, b)| (a.start, &a.before) == (b.start, &b.after)));
    }
}
