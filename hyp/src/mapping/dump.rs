//! What a map says, in ranges: neighbours that say the same are one.
//!
//! Invariant: the extents of a range follow each other without a gap and cover all of it that the map reaches; each says what some entry
//! said at some moment while they were read, with what the tables above it take away.
//!
//! The text is in the manner of Linux's `ptdump` (`arch/arm64/mm/ptdump.c`): a line has the first address and the one after the last, the
//! bytes, the leaf (`BLK` or `PTE`, `CON` in contiguous runs), the attributes in words, and the output where it is another address than
//! the input. The words of the attributes are those of [`Attributes`]' `Display`.

use core::fmt;

use super::addr::{Address, Pa, Range};
use super::descriptor::{Attributes, Entry, Regime, State};
use super::geometry::{LAST_LEVEL, Shape, level_size};
use super::mmu::Mmu;
use super::walk::{Entries, Reader};

/// Addresses that follow each other and of which the map says the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Extent<R: Regime> {
    /// First address, as CPUs use it: in a map of the upper half with all bits above set.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// What the map says of them.
    pub content: Content<R>,
}

/// What a map says of an extent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Content<R: Regime> {
    /// No translation, and nothing known.
    Hole,
    /// No translation, and what software says of it.
    State(State),
    /// Leaves of one size and kind, whose outputs run on.
    Leaves {
        /// Their level, 1 to 3.
        level: u8,
        /// Bytes of one of them.
        leaf: u64,
        /// What the first address translates to.
        output: Pa,
        /// What may be done there, with what the tables above take away.
        attributes: Attributes<R>,
        /// Whether they are of contiguous runs.
        contiguous: bool,
        /// Whether they translate. Those that do not keep the rest for when they do again.
        valid: bool,
    },
}

impl<R: Regime> Extent<R> {
    /// Takes in the one after it, if it says the same and runs on.
    fn join(&mut self, next: &Self) -> bool {
        let mut expected = self.content;
        if let Content::Leaves { output, .. } = &mut expected {
            match Pa::new(output.get() + self.size) {
                Ok(after) => *output = after,
                Err(_) => return false,
            }
        }
        let joins = expected == next.content;
        self.size += if joins { next.size } else { 0 };
        joins
    }

    /// The same as one JSON object (RFC 8259), whose fields are `start` (a string, hexadecimal), `size` (bytes) and
    /// - of leaves: `level`, `leaf` (bytes), `output` (a string, hexadecimal), `attributes` (words, in columns), `contiguous` and `valid`;
    /// - of a software state: `state` (a string, hexadecimal);
    /// - of a hole: nothing else.
    pub fn json(&self) -> impl fmt::Display {
        Json(*self)
    }
}

/// A number of bytes in the largest unit that divides it.
fn scaled(bytes: u64) -> (u64, char) {
    let units = ['B', 'K', 'M', 'G', 'T'];
    let unit = (bytes.trailing_zeros() as usize / 10).min(units.len() - 1);
    (bytes >> (10 * unit), units[unit])
}

impl<R: Regime> fmt::Display for Extent<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { start, size, content } = *self;
        let (number, unit) = scaled(size);
        // The end of the upper half is 0.
        write!(f, "{start:#018x}-{:#018x} {number:>9}{unit} ", start.wrapping_add(size))?;
        match content {
            Content::Hole => write!(f, "hole"),
            Content::State(state) => write!(f, "state {:#x}", state.get()),
            Content::Leaves { level, leaf, output, attributes, contiguous, valid } => {
                let (number, unit) = scaled(leaf);
                match level {
                    LAST_LEVEL => write!(f, "{:7}", "PTE")?,
                    _ => write!(f, "BLK {number}{unit} ")?,
                }
                write!(f, "{:3} {attributes:#}", if contiguous { "CON" } else { "" })?;
                write!(f, "{}", if valid { "" } else { " INVALID" })?;
                if output.get() == start { Ok(()) } else { write!(f, " -> {:#018x}", output.get()) }
            }
        }
    }
}

struct Json<R: Regime>(Extent<R>);

impl<R: Regime> fmt::Display for Json<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Extent { start, size, content } = self.0;
        write!(f, r#"{{"start":"{start:#x}","size":{size}"#)?;
        match content {
            Content::Hole => {}
            Content::State(state) => write!(f, r#","state":"{:#x}""#, state.get())?,
            Content::Leaves { level, leaf, output, attributes, contiguous, valid } => write!(
                f,
                r#","level":{level},"leaf":{leaf},"output":"{:#x}","attributes":"{attributes:#}","contiguous":{contiguous},"valid":{valid}"#,
                output.get()
            )?,
        }
        write!(f, "}}")
    }
}

/// The extents of a range, in ascending order.
pub struct Extents<'r, R: Regime, M: Mmu, S: Shape> {
    entries: Entries<'r, R, M, S>,
    base: u64,
    /// The first address that no extent has yet.
    start: u64,
    end: u64,
    /// What was read already and did not join the one before it.
    begun: Option<Extent<R>>,
}

impl<R: Regime, M: Mmu, S: Shape> Reader<'_, R, M, S> {
    /// What the map says of the addresses in `range`, as far as it reaches. Entries that its ends cut are cut.
    pub fn extents(&self, range: Range<R::Input>) -> Extents<'_, R, M, S> {
        let entries = self.entries(range);
        Extents { entries, base: self.base(), start: range.start().get(), end: range.end(), begun: None }
    }
}

impl<R: Regime, M: Mmu, S: Shape> Extents<'_, R, M, S> {
    fn read(&mut self) -> Option<Extent<R>> {
        let (visited, tables) = self.entries.next()?;
        let leaf = level_size::<S>(visited.level);
        // The range begins within it, or it was joined of what was read already.
        let start = visited.start.max(self.start);
        let size = (visited.start + leaf).min(self.end) - start;
        self.start = start + size;
        let content = match visited.entry {
            Entry::Leaf { output, attributes, contiguous, valid } => Content::Leaves {
                level: visited.level,
                leaf,
                // It is in the leaf, so below 2^48 as that is.
                output: Pa::from_field(output.get() + (start - visited.start)),
                attributes: attributes.below(tables),
                contiguous,
                valid,
            },
            Entry::State(state) => Content::State(state),
            // A reader is given none of the last two.
            Entry::Empty | Entry::Unlinked(_) | Entry::Table(_) | Entry::Changing => Content::Hole,
        };
        Some(Extent { start: self.base + start, size, content })
    }
}

impl<R: Regime, M: Mmu, S: Shape> Iterator for Extents<'_, R, M, S> {
    type Item = Extent<R>;

    fn next(&mut self) -> Option<Extent<R>> {
        let mut extent = self.begun.take().or_else(|| self.read())?;
        while let Some(next) = self.read() {
            if !extent.join(&next) {
                self.begun = Some(next);
                break;
            }
        }
        Some(extent)
    }
}

/// How a dump is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// As [`Extent`]'s `Display`, under a line that says what it is.
    Text,
    /// As [`Extent::json`], between `{"stage":NAME,"moment":NAME,"input_bits":N}` and `{"extents":COUNT}`.
    Json,
}

impl Format {
    /// `text` or `json`.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

impl<R: Regime, M: Mmu, S: Shape> Reader<'_, R, M, S> {
    /// Gives each line of a dump of the whole map, but for holes, to `line`. `moment` says when that was; it stands in JSON as it is.
    pub fn dump(&self, moment: &str, format: Format, mut line: impl FnMut(fmt::Arguments<'_>)) {
        let (stage, bits) = (R::NAME, self.reach().ilog2());
        let Ok(all) = Range::new(0, self.reach()) else { return };
        let mapped = self.extents(all).filter(|extent| extent.content != Content::Hole);
        match format {
            Format::Text => {
                line(format_args!("{stage}, {bits} bits, {moment}:"));
                mapped.for_each(|extent| line(format_args!("{extent}")));
            }
            Format::Json => {
                line(format_args!(r#"{{"stage":"{stage}","moment":"{moment}","input_bits":{bits}}}"#));
                let mut count = 0u64;
                for extent in mapped {
                    line(format_args!("{}", extent.json()));
                    count += 1;
                }
                line(format_args!(r#"{{"extents":{count}}}"#));
            }
        }
    }
}
