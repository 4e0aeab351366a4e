//! What a Linux realm is made of: files that somebody has put into the host's RAM, and words of the command line.
//!
//! Invariant: the files lie in RAM that is nobody's, and are not written.

use core::fmt;

use arrayvec::ArrayVec;
use hyp::machine::Machine;
use hyp::machine::layout::{self, LayoutError, Named};
use hyp::mapping::{Address, Pa, Range};
use vmm_logic::files;

use super::granules::GRANULE;
use crate::memory::Memory;

/// Where the kernel's Image lies: `ADDRESS,SIZE`.
const KERNEL: &str = "cloven.guest-kernel";
/// The same of the initramfs.
const INITRD: &str = "cloven.guest-initrd";
/// Words of its command line, at most.
const WORDS: usize = 64;

/// Why there is no Linux.
#[derive(Clone, Copy, Debug)]
pub enum FilesError<'a> {
    /// This is not where something lies.
    NoPlace(&'a str),
    /// A file does not begin with a granule.
    NotAligned(Named),
    /// A file is not where a file can be.
    Layout(LayoutError),
    /// Its command line has more words than there is room for.
    Words,
}

impl fmt::Display for FilesError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPlace(text) => write!(f, "'{text}' is not ADDRESS,SIZE"),
            Self::NotAligned(named) => write!(f, "{named} does not begin with a granule"),
            Self::Layout(error) => error.fmt(f),
            Self::Words => write!(f, "its command line has more than {WORDS} words"),
        }
    }
}

/// A Linux.
#[derive(Debug)]
pub struct Files<'a> {
    /// The kernel's Image.
    pub kernel: &'static [u8],
    /// The initramfs, empty if there is none.
    pub initrd: &'static [u8],
    /// The words of its command line: those behind the word `--` of the host's.
    pub words: ArrayVec<&'a str, WORDS>,
    /// Where the files lie.
    pub ranges: ArrayVec<Range<Pa>, 2>,
}

/// Whether the command line names one.
pub fn is_wanted(machine: &Machine<'_>) -> bool {
    machine.parameter(KERNEL).is_some()
}

/// What the command line names.
///
/// # Errors
/// [`FilesError`].
pub fn files<'a>(machine: &Machine<'a>, memory: &Memory) -> Result<Files<'a>, FilesError<'a>> {
    let mut named = ArrayVec::<Named, 2>::new();
    for (what, name) in [("the realm's kernel", KERNEL), ("the realm's initramfs", INITRD)] {
        let Some(text) = machine.parameter(name) else { continue };
        let range = files::place(text).and_then(|(start, size)| Range::new(start, size).ok());
        let file = Named { what, range: range.ok_or(FilesError::NoPlace(text))? };
        if !file.range.start().get().is_multiple_of(GRANULE) {
            return Err(FilesError::NotAligned(file));
        }
        named.push(file);
    }
    layout::check(&machine.memory, &memory.taken, &named).map_err(FilesError::Layout)?;
    let file = |number: usize| -> &'static [u8] {
        named.get(number).map_or(&[], |file| {
            // SAFETY: RAM, mapped as data, in nothing that is taken; what takes RAM from here on is told (`Beside`).
            unsafe {
                core::slice::from_raw_parts(file.range.start().get() as *const u8, file.range.size() as usize)
            }
        })
    };
    let mut words = ArrayVec::new();
    for word in machine.bootargs.into_iter().flat_map(files::words) {
        words.try_push(word).map_err(|_| FilesError::Words)?;
    }
    // A granule is the RMM's or the host's: no other file is in the last one.
    let ranges = named.iter().map(|file| file.range.expanded_to(GRANULE)).collect();
    Ok(Files { kernel: file(0), initrd: file(1), words, ranges })
}
