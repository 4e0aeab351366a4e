//! The rows of the table: what each subject is made to do, and the addresses by which it is checked.

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::index};

use crate::peer::{Counts, Joins};

pub const PAGE: usize = 4 << 10;
const BLOCK: usize = 2 << 20;
const GIB: usize = 1 << 30;

/// Where every map starts, and what it leads to.
pub const VA: usize = 1 << 40;
pub const PA: usize = 2 << 40;

/// One page of the first gibibyte.
const PAGE_OF_GIB: usize = VA + 0x1234_5000;

/// One row. Only `perform` is timed, after `set_up`.
pub struct Work {
    pub name: &'static str,
    layout: Layout,
    task: Task,
    /// Subjects that do this work one after the other in one timing, so that short works are longer than the clock's step.
    pub copies: usize,
    seed: u64,
}

/// What is mapped at `VA`.
#[derive(Clone, Copy)]
struct Layout {
    size: usize,
    pa: usize,
    huge: bool,
}

enum Task {
    Map,
    /// Each of these pages is made read-only, one call for each.
    Pages(Vec<usize>),
    /// All of the map is made read-only in one call.
    Flip,
    /// All of these addresses are looked up; the time is that of one.
    Translate(Vec<usize>),
    /// All of the map is unmapped in one call.
    Unmap,
    /// All of the map becomes the largest leaves in one call.
    Collapse,
    /// Each of these pages is made read-only, and read-write again before the next; joined if so.
    Rounds(Vec<usize>, bool),
    /// This page, which was made read-only before, becomes read-write, and what was split for it is joined, in one call.
    PutBack(usize),
}

/// In 1 GiB blocks.
const fn in_gibs(size: usize) -> Layout {
    Layout { size, pa: PA, huge: true }
}

/// In 2 MiB blocks: the output address is aligned to no more.
const fn in_blocks(size: usize) -> Layout {
    Layout { size, pa: PA + BLOCK, huge: true }
}

const fn in_pages(size: usize) -> Layout {
    in_pages_of(PAGE, size)
}

/// In pages that could be leaves of a size, and no larger ones.
const fn in_pages_of(leaf: usize, size: usize) -> Layout {
    Layout { size, pa: PA + if leaf < GIB { leaf } else { 0 }, huge: false }
}

/// What is done in rounds.
pub const ROUNDS: &str = "10,000 random pages of 64 GiB read-only and back";

/// 10,000 pages of the first 64 GiB.
pub fn random_pages(seed: u64) -> Vec<usize> {
    let pages = index::sample(&mut StdRng::seed_from_u64(seed), 64 * GIB / PAGE, 10_000);
    pages.into_iter().map(|page| VA + page * PAGE).collect()
}

/// All rows, with so many lookups in a timing of lookups.
pub fn all(seed: u64, lookups: usize) -> Vec<Work> {
    let addresses = |layout: Layout| {
        let mut random = StdRng::seed_from_u64(seed);
        Task::Translate((0..lookups).map(|_| VA + random.random_range(0..layout.size)).collect())
    };
    let pages = random_pages(seed);
    let work = |name, layout, task, copies| Work { name, layout, task, copies, seed };
    let translate = |name, layout| work(name, layout, addresses(layout), 1);
    vec![
        work("map 1 GiB as 2 MiB blocks", in_blocks(GIB), Task::Map, 16),
        work("map 64 GiB as 2 MiB blocks", in_blocks(64 * GIB), Task::Map, 1),
        work("map 256 GiB as 1 GiB blocks", in_gibs(256 * GIB), Task::Map, 16),
        work("map 4 GiB as pages", in_pages(4 * GIB), Task::Map, 1),
        work("read-only on one page of a 1 GiB block", in_gibs(GIB), Task::Pages(vec![PAGE_OF_GIB]), 16),
        work("read-only on 10,000 random pages of 64 GiB", in_gibs(64 * GIB), Task::Pages(pages.clone()), 1),
        work(ROUNDS, in_gibs(64 * GIB), Task::Rounds(pages.clone(), false), 1),
        work(
            "10,000 random pages of 64 GiB read-only and back, joined",
            in_gibs(64 * GIB),
            Task::Rounds(pages, true),
            1,
        ),
        work("read-only flip over 4 GiB of pages", in_pages(4 * GIB), Task::Flip, 1),
        translate("translate, 1 GiB blocks", in_gibs(256 * GIB)),
        translate("translate, 2 MiB blocks", in_blocks(64 * GIB)),
        // No more than a second-level cache holds: it is the walk that is measured, not the memory.
        translate("translate, pages", in_pages(GIB / 4)),
        work("unmap 64 GiB of 2 MiB blocks", in_blocks(64 * GIB), Task::Unmap, 1),
        work("collapse 512 pages to a 2 MiB block", in_pages_of(BLOCK, BLOCK), Task::Collapse, 16),
        work("collapse 1 GiB of pages to 2 MiB blocks", in_pages_of(BLOCK, GIB), Task::Collapse, 1),
        work("collapse 1 GiB of pages to 1 GiB", in_pages_of(GIB, GIB), Task::Collapse, 1),
        work("put back one page of a 1 GiB block", in_gibs(GIB), Task::PutBack(PAGE_OF_GIB), 16),
    ]
}

impl Work {
    /// Brings a new subject to the state in which the work begins.
    pub fn set_up<P: Joins>(&self, peer: &mut P) {
        if !matches!(self.task, Task::Map) {
            self.map(peer);
        }
        if let Task::PutBack(page) = self.task {
            peer.protect(page, PAGE, true);
        }
    }

    /// Does the work. None if this subject cannot; of lookups the sum, else 0.
    pub fn perform<P: Joins>(&self, peer: &mut P) -> Option<usize> {
        match &self.task {
            Task::Map => self.map(peer),
            Task::Pages(pages) => {
                for &page in pages {
                    if !peer.protect(page, PAGE, true) {
                        return None;
                    }
                }
            }
            Task::Rounds(pages, joined) => {
                for &page in pages {
                    let is_put_back = peer.protect(page, PAGE, true)
                        && if *joined { peer.put_back(page, PAGE) } else { peer.protect(page, PAGE, false) };
                    if !is_put_back {
                        return None;
                    }
                }
            }
            Task::Flip => return peer.protect(VA, self.layout.size, true).then_some(0),
            Task::Translate(vas) => return Some(peer.translate_all(vas)),
            Task::Unmap => peer.unmap(VA, self.layout.size),
            Task::Collapse => return peer.collapse(VA, self.layout.size).then_some(0),
            &Task::PutBack(page) => return peer.put_back(page, PAGE).then_some(0),
        }
        Some(0)
    }

    /// The least that the work takes of what is counted, for `tables` tables taken: one store for each descriptor that changes or is
    /// linked, and for each of a table that takes a leaf's place; one invalidation and its two barriers for each call that changes
    /// what translates; none where nothing did.
    pub fn least(&self, tables: u64) -> Counts {
        let calls = self.calls();
        let joined = if (VA | self.layout.pa | self.layout.size) & (GIB - 1) == 0 { GIB } else { BLOCK };
        let leaf = if self.layout.huge { joined } else { PAGE };
        let leaves = (self.layout.size / leaf) as u64;
        let (stores, tlbis) = match &self.task {
            Task::Map => (leaves + tables, 0),
            Task::Pages(pages) => (512 * tables + pages.len() as u64, calls),
            Task::Flip => (leaves, calls),
            Task::Translate(_) => (0, 0),
            Task::Unmap => ((self.layout.size / GIB) as u64, calls),
            Task::Rounds(pages, _) => (512 * tables + 2 * pages.len() as u64, calls),
            Task::Collapse => ((self.layout.size / joined) as u64, calls),
            // Whatever the page says in its table goes with the table.
            Task::PutBack(_) => (1, calls),
        };
        let dsbs = if tlbis > 0 { 2 * calls } else { calls };
        Counts { stores: Some(stores), tlbis: Some(tlbis), dsbs: Some(dsbs), isbs: Some(calls) }
    }

    /// Whether tables have to be given back by it.
    pub fn joins(&self) -> bool {
        matches!(self.task, Task::Collapse | Task::PutBack(_) | Task::Rounds(_, true))
    }

    /// Calls that change tables.
    fn calls(&self) -> u64 {
        match &self.task {
            Task::Pages(pages) => pages.len() as u64,
            Task::Rounds(pages, _) => 2 * pages.len() as u64,
            Task::Translate(_) => 0,
            Task::Map | Task::Flip | Task::Unmap | Task::Collapse | Task::PutBack(_) => 1,
        }
    }

    /// How many times the named work one timing holds.
    pub fn units(&self) -> usize {
        match &self.task {
            Task::Translate(vas) => vas.len(),
            _ => self.copies,
        }
    }

    /// The addresses that are looked up, if that is the work.
    pub fn lookups(&self) -> &[usize] {
        match &self.task {
            Task::Translate(vas) => vas,
            _ => &[],
        }
    }

    /// Addresses at which the outcome is compared: the edges, what lies around each changed page, and random ones.
    pub fn samples(&self) -> Vec<usize> {
        let end = VA + self.layout.size;
        let mut samples = vec![VA - 1, VA, end - 1, end];
        if let Task::Pages(pages) | Task::Rounds(pages, _) = &self.task {
            samples.extend(pages.iter().flat_map(|&page| [page - 1, page, page + PAGE - 1, page + PAGE]));
        }
        let mut random = StdRng::seed_from_u64(self.seed);
        samples.extend((0..10_000).map(|_| random.random_range(VA..end)));
        samples
    }

    fn map<P: Joins>(&self, peer: &mut P) {
        let Layout { size, pa, huge } = self.layout;
        peer.map(VA, pa, size, huge);
    }
}
