//! The hypervisor's own memory: what the linker laid out, and the arena behind it.
//!
//! Invariant: all of it lies in two adjacent 2 MiB blocks at their physical address; nothing that the hypervisor owns lies
//! outside. The arena holds, in this order, a block for each CPU (`percpu`), the tables, and the tables of the
//! boot map, which only the entry code uses.

use crate::mapping::{Address, AddressError, GRANULE, Pa, Range};

use super::percpu::BLOCK_SIZE;
use crate::start::BOOT_TABLES;

unsafe extern "C" {
    static image_start: u8;
    static image_text: u8;
    static image_rodata: u8;
    static image_init_rodata: u8;
    static image_sealed: u8;
    static image_data: u8;
    static image_arena: u8;
    static image_end: u8;
}

/// Where things lie.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// All of it.
    pub whole: Range<Pa>,
    /// Code that only the boot CPU runs, before the host does.
    pub init_text: Range<Pa>,
    /// Code.
    pub text: Range<Pa>,
    /// Constants.
    pub rodata: Range<Pa>,
    /// The embedded payload, and what the image was relocated by.
    pub init_rodata: Range<Pa>,
    /// Variables that nobody writes once the host runs.
    pub sealed: Range<Pa>,
    /// Variables.
    pub data: Range<Pa>,
    /// What became of the rest at boot.
    pub arena: Range<Pa>,
}

/// The arena cannot hold the blocks of so many CPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManyCpus {
    /// CPUs there are.
    pub cpus: usize,
    /// CPUs there is room for.
    pub room: usize,
}

impl core::fmt::Display for TooManyCpus {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} CPUs, and memory for {}", self.cpus, self.room)
    }
}

/// The layout of the running image.
///
/// # Errors
/// [`AddressError`] if it was loaded above 2^48.
pub fn layout() -> Result<Layout, AddressError> {
    let between = |from: *const u8, to: *const u8| Range::of_granules(from as u64, to as u64 - from as u64);
    let (start, text) = (&raw const image_start, &raw const image_text);
    let (rodata, init_rodata) = (&raw const image_rodata, &raw const image_init_rodata);
    let (sealed, data) = (&raw const image_sealed, &raw const image_data);
    let (arena, end) = (&raw const image_arena, &raw const image_end);
    Ok(Layout {
        whole: between(start, end)?,
        init_text: between(start, text)?,
        text: between(text, rodata)?,
        rodata: between(rodata, init_rodata)?,
        init_rodata: between(init_rodata, sealed)?,
        sealed: between(sealed, data)?,
        data: between(data, arena)?,
        arena: between(arena, end)?,
    })
}

/// The least tables that a boot may be left with.
const FEWEST_TABLES: u64 = 64;

/// The part of the arena behind the blocks of `cpus` CPUs that is for tables.
///
/// # Errors
/// [`TooManyCpus`].
#[unsafe(link_section = ".init.text")]
pub fn table_memory(layout: &Layout, cpus: usize) -> Result<Range<Pa>, TooManyCpus> {
    let available = layout.arena.size() - (BOOT_TABLES + FEWEST_TABLES) * GRANULE;
    let room = (available / BLOCK_SIZE) as usize;
    let blocks = cpus as u64 * BLOCK_SIZE;
    let start = layout.arena.start().get() + blocks;
    let tables = layout.arena.size().saturating_sub(blocks + BOOT_TABLES * GRANULE);
    if cpus > room {
        return Err(TooManyCpus { cpus, room });
    }
    Range::of_granules(start, tables).map_err(|_| TooManyCpus { cpus, room })
}
