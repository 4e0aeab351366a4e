//! Which of the host's RAM is for a realm.
//!
//! Invariant: the parts are free RAM, do not overlap, and lie as the largest blocks of the realm's tables want it.

use arrayvec::ArrayVec;
use hyp::machine::{Machine, layout};
use hyp::mapping::{Address, Pa, Range};
use hyp::trial::SIZE;

use super::granules::GRANULE;
use crate::memory::Memory;

/// RAM of a realm, unless the command line says otherwise: the first of these for which there is room.
const USUAL: [u64; 4] = [64 << 20, 32 << 20, 16 << 20, LEAST];
/// The same for a Linux.
const USUAL_FOR_LINUX: [u64; 3] = [512 << 20, 384 << 20, 256 << 20];
/// Less holds no payload with its tables.
const LEAST: u64 = 8 << 20;
/// RAM for granules that are not the realm's memory.
const GRANULES: u64 = 16 << 20;
/// Bytes of a block of level 2 and of level 1.
pub const BLOCK: u64 = 2 << 20;
/// See [`BLOCK`].
pub const GIB: u64 = 1 << 30;

/// Where the parts are, and their sizes in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The realm's RAM.
    pub ram: u64,
    /// Its size.
    pub size: u64,
    /// What the realm shares with the host: as large.
    pub backing: u64,
    /// Granules.
    pub granules: u64,
    /// Their size.
    pub granules_size: u64,
    /// What a realm with devices needs besides.
    pub devices: Option<ForDevices>,
}

/// What the devices of a realm need of the host's RAM.
#[derive(Clone, Copy, Debug)]
pub struct ForDevices {
    /// The contents of its disk.
    pub disk: u64,
    /// A bit for each page of its RAM: whether it is shared.
    pub notes: u64,
}

/// Bytes of the disk of a realm with devices.
pub const DISK: u64 = 16 << 20;

/// What lies beside a realm in the host's RAM, and what it needs.
#[derive(Clone, Copy, Debug, Default)]
pub struct Beside<'a> {
    /// What a Linux is made of: such a realm has devices.
    pub linux: Option<&'a [Range<Pa>]>,
}

/// A number of bytes with its unit, K, M or G, or without.
pub fn bytes(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn place(machine: &Machine<'_>, memory: &Memory, beside: Beside<'_>, size: u64) -> Option<Plan> {
    let mut taken: ArrayVec<Range<Pa>, 48> = memory.taken.iter().copied().collect();
    match beside.linux {
        Some(files) => taken.try_extend_from_slice(files).ok()?,
        None => {
            for start in memory.trials.into_iter().flatten() {
                taken.try_push(Range::new(start, SIZE).ok()?).ok()?;
            }
        }
    }
    let mut part = |size: u64, align: u64| -> Option<u64> {
        let found = layout::find_free(&machine.memory, &taken, "a realm", size, align).ok()?;
        taken.try_push(found).ok()?;
        Some(found.start().get())
    };
    let align = if size.is_multiple_of(GIB) { GIB } else { BLOCK };
    // What is aligned most finds its place first.
    let ram = part(size, align)?;
    let backing = part(size, align)?;
    let granules_size = GRANULES.min(size.next_multiple_of(BLOCK));
    let granules = part(granules_size, BLOCK)?;
    let devices = match beside.linux {
        Some(_) => Some(ForDevices { disk: part(DISK, BLOCK)?, notes: part(notes_size(size), GRANULE)? }),
        None => None,
    };
    Some(Plan { ram, size, backing, granules, granules_size, devices })
}

/// Bytes of the notes for so much RAM.
pub const fn notes_size(size: u64) -> u64 {
    (size / GRANULE).div_ceil(8).next_multiple_of(GRANULE)
}

/// The parts for a realm of the size that the command line asks for; without a word there, of the largest usual one that there is room for.
pub fn plan(machine: &Machine<'_>, memory: &Memory, beside: Beside<'_>) -> Option<Plan> {
    match machine.parameter("cloven.realm") {
        Some(text) => {
            let size = bytes(text).filter(|size| *size >= LEAST && size.is_multiple_of(BLOCK))?;
            place(machine, memory, beside, size)
        }
        None => {
            let usual: &[u64] = if beside.linux.is_some() { &USUAL_FOR_LINUX } else { &USUAL };
            usual.iter().find_map(|&size| place(machine, memory, beside, size))
        }
    }
}
