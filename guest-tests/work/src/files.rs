//! Files in memory, and a disk past the page cache.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::{FileExt, OpenOptionsExt},
};

use anyhow::{Context, Result};
use rand::{Rng, RngExt, SeedableRng, rngs::SmallRng};

use crate::{Shift, memory::Pages};

const LARGEST: usize = 8 << 20;
const DISK: &str = "/dev/vda";
/// Bytes that are written to the disk at once.
const CHUNK: usize = 256 << 10;

/// Writes a file piece by piece, renames it, reads it and removes it.
pub fn temporary(shift: &mut Shift) -> Result<String> {
    while shift.goes_on() {
        let size = shift.random.random_range(1..LARGEST);
        let (data, expected) = shift.data(size);
        let mut file = File::create("/tmp/work.new").context("cannot make a file")?;
        let mut rest = &data[..];
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(shift.random.random_range(1..=rest.len().min(1 << 20)));
            file.write_all(piece)?;
            rest = after;
        }
        drop(file);
        fs::rename("/tmp/work.new", "/tmp/work.old")?;
        let mut read = Vec::new();
        File::open("/tmp/work.old")?.read_to_end(&mut read)?;
        fs::remove_file("/tmp/work.old")?;
        shift.compare("a file", data.len(), expected, crc32fast::hash(&read))?;
    }
    Ok("written, renamed, read".to_owned())
}

/// Writes chunks of the disk and reads what lies there, both straight to and from the device.
pub fn disk(shift: &mut Shift) -> Result<String> {
    let disk = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(DISK);
    let disk = disk.with_context(|| format!("cannot open {DISK}"))?;
    let sectors: u64 = fs::read_to_string("/sys/class/block/vda/size")?.trim().parse()?;
    let chunks = sectors * 512 / CHUNK as u64;
    // Direct transfers want memory that is aligned.
    let mut memory = Pages::new(CHUNK / 4096)?;
    let mut written = BTreeMap::new();
    while shift.goes_on() {
        for _ in 0..8 {
            let (chunk, seed) = (shift.random.random_range(0..chunks), shift.random.next_u64());
            SmallRng::seed_from_u64(seed).fill_bytes(memory.bytes());
            disk.write_all_at(memory.bytes(), chunk * CHUNK as u64).context("cannot write")?;
            written.insert(chunk, crc32fast::hash(memory.bytes()));
        }
        for _ in 0..8 {
            let which = shift.random.random_range(0..written.len());
            let (chunk, &expected) = written.iter().nth(which).context("nothing was written")?;
            disk.read_exact_at(memory.bytes(), chunk * CHUNK as u64).context("cannot read")?;
            let got = crc32fast::hash(memory.bytes());
            shift.compare("a part of the disk", CHUNK, expected, got)?;
        }
    }
    Ok(format!("{} of {chunks} parts of {DISK} written", written.len()))
}
