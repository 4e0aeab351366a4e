//! What the engine promises, against a flat list of ranges and a fake MMU.

mod alias;
mod behaviour;
mod collapse;
mod common;
mod dump;
mod flat;
mod page;
mod prepared;
mod random;
mod regimes;
mod tables;
mod threads;
mod weaken;

use super::descriptor::{is_table, is_unlinked};
use super::fake::FakeMmu;
use super::update::Words;
use super::*;

/// Room, in the caller's terms: how many tables hang from the map's root, itself included, those that wait to be given back too.
fn reachable<R: Regime, S: Shape>(map: &Map<R, &FakeMmu, S>) -> usize {
    fn below<S: Shape>(mmu: &FakeMmu, table: Pa, level: u8, entries: usize) -> usize {
        let words = Words::new(&mmu);
        (0..entries)
            .map(|index| words.load(table, index))
            .filter(|&raw| is_table(raw, level) || is_unlinked(raw))
            .map(|raw| 1 + below::<S>(mmu, descriptor::pa(raw), level + 1, S::ENTRIES))
            .sum()
    }
    let (geometry, level) = (map.geometry(), map.geometry().start_level());
    geometry.root_tables() + below::<S>(map.mmu(), map.root(), level, geometry.entries(level))
}

fn range<A: Address>(start: u64, size: u64) -> Range<A> {
    Range::new(start, size).unwrap()
}
