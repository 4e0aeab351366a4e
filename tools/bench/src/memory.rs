//! Table memory: what the engine needs for a map of 256 GiB in blocks, with some pages split out, and in pages.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};

use anyhow::{Result, ensure};
use hyp::mapping::{
    Address, Attributes, Barrier, Capabilities, Change, El2, Geometry, Leaves, Linear, Map, Mmu, NoQuiesce,
    Options, Pa, Pool, Range, Scope, Slot, Tlbi, Va,
};
use rand::{SeedableRng, rngs::StdRng, seq::index};

const TABLE: usize = 4096;
/// More than 256 GiB of pages take.
const TABLES: usize = 132_000;
const SIZE: u64 = 256 << 30;
const PAGES: usize = (SIZE / 4096) as usize;
const START: u64 = 1 << 40;

/// Memory that is touched only as far as it is used.
struct Area {
    pool: Pool<Linear>,
    slots: [Slot; 1],
    start: *mut u8,
}

const TABLES_AT: Linear = Linear::new(0);

impl Area {
    fn layout() -> Layout {
        Layout::from_size_align(TABLES * TABLE, TABLE).expect("a valid layout")
    }

    fn new() -> Self {
        // SAFETY: the layout has a size.
        let start = unsafe { alloc(Self::layout()) };
        if start.is_null() {
            handle_alloc_error(Self::layout());
        }
        let range = Range::<Pa>::new(start.expose_provenance() as u64, (TABLES * TABLE) as u64);
        let pool = Pool::new(TABLES_AT);
        // SAFETY: memory of this area alone, which outlives the map that borrows it.
        unsafe { pool.refill(range.expect("host addresses have 48 bits")) }.expect("aligned");
        Self { pool, slots: [Slot::new()], start }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout; the map that borrowed the area is gone.
        unsafe { dealloc(self.start, Self::layout()) };
    }
}

// SAFETY: the pool's tables lie where `TABLES_AT` reaches them; no CPU translates through them.
unsafe impl Mmu for Area {
    type Tables = Linear;
    type Pool = Pool<Linear>;
    type Quiesce = NoQuiesce;
    fn tables(&self) -> &Linear {
        &TABLES_AT
    }
    fn pool(&self) -> &Pool<Linear> {
        &self.pool
    }
    fn quiesce(&self) -> &NoQuiesce {
        &NoQuiesce
    }
    fn slots(&self) -> &[Slot] {
        &self.slots
    }
    fn tlbi(&self, _: Tlbi, _: Scope, _: u64) {}
    fn barrier(&self, _: Barrier, _: Scope) {}
}

/// Tables that each map takes, its root among them.
pub fn measure(seed: u64) -> Result<Vec<(&'static str, u64)>> {
    let pages = index::sample(&mut StdRng::seed_from_u64(seed), PAGES, PAGES / 100);
    let scattered: Vec<u64> = pages.into_iter().map(|page| START + page as u64 * 4096).collect();
    // As a host gives memory to guests: in pieces of 2 MiB and what is left over.
    let together: Vec<u64> = (0..PAGES as u64 / 100).map(|page| START + page * 4096).collect();
    Ok(vec![
        ("in 1 GiB blocks", tables(Leaves::LARGEST, &[])?),
        ("with 1 % of its pages split out, together", tables(Leaves::LARGEST, &together)?),
        ("with 1 % of its pages split out, at random", tables(Leaves::LARGEST, &scattered)?),
        ("in pages", tables(Leaves::PAGES, &[])?),
    ])
}

fn tables(leaves: Leaves, pages: &[u64]) -> Result<u64> {
    let area = Area::new();
    let map = Map::<El2, _>::new(
        &area,
        Geometry::stage1(48)?,
        Options::new(Capabilities::LEAST | Capabilities::bbm(3)),
    )?;
    let mut cpu = map.cpu(0).expect("nobody else is here");
    cpu.write().map(Range::<Va>::new(START, SIZE)?, Pa::new(START)?, Attributes::<El2>::DATA, leaves)?;
    for &page in pages {
        map.protect(Range::new(page, 4096)?, Change::<El2>::READ_ONLY)?.flush();
    }
    let found = cpu.read().translate(Va::new(*pages.last().unwrap_or(&START))?);
    ensure!(found.is_some_and(|found| pages.is_empty() || found.level == 3), "the page was not split out");
    Ok(area.pool.used() as u64)
}
