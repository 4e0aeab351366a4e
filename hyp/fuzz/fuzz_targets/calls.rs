//! Sequences of calls to a map with little table memory, checked against a flat list of what they mean; with small tables also against
//! all that a TLB may hold, so that an invalidation that is missing shows. Other than in the tests of the engine the sequences are
//! bred for coverage, and the tables are memory that the engine reaches through [`Linear`].
#![no_main]

use arbitrary::Arbitrary;
use hyp::mapping::*;
use libfuzzer_sys::fuzz_target;

#[path = "../../src/mapping/tests/flat.rs"]
mod flat;
#[path = "../../src/mapping/tests/regimes.rs"]
mod regimes;
mod world;

use flat::{Flat, Known, canonical, compare, entries};
use regimes::Tried;
use world::World;

/// Where in the map: so many units of some leaf or run, and a few pages off.
#[derive(Arbitrary, Clone, Copy, Debug)]
struct Place {
    unit: u8,
    units: u8,
    pages: i8,
}

impl Place {
    fn shift<S: Shape>(self) -> u32 {
        let (run, index) = (S::RUN_BITS, S::INDEX_BITS);
        12 + [0, run, index, index + run, 2 * index, 2 * index + run, 3 * index][usize::from(self.unit % 7)]
    }
    /// An address of a map of so many bits, a multiple of the granule but seldom.
    fn address<S: Shape>(self, bits: u32) -> u64 {
        let pages = if self.pages % 4 == 0 { 0 } else { i64::from(self.pages) };
        let address = (i64::from(self.units) << self.shift::<S>()) + pages * GRANULE as i64;
        let odd = u64::from(self.pages == 77);
        (address as u64 + odd) % (1 << bits)
    }
    fn size<S: Shape>(self) -> u64 {
        let pages = if self.pages % 4 == 0 { 0 } else { i64::from(self.pages) };
        ((i64::from(self.units % 32) << self.shift::<S>()) + pages * GRANULE as i64).max(0) as u64
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Pay {
    Flush,
    Drop,
    Keep,
    Merge,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Call {
    Map {
        at: Place,
        size: Place,
        output: Place,
        attributes: u8,
        blocks: bool,
        runs: bool,
    },
    Unmap(Place, Place, Pay),
    Protect {
        at: Place,
        size: Place,
        change: u8,
        whole: bool,
        pay: Pay,
    },
    SplitAt(Place, Pay),
    SplitEdges(Place, Place, Pay),
    SplitToPages(Place, Place, Pay),
    SetState(Place, Place, u8),
    Collapse {
        at: Place,
        size: Place,
        blocks: bool,
        runs: bool,
        /// After this change.
        change: Option<u8>,
    },
    CollapseEntry(Place, u8),
    Translate(Place),
    Settle,
    FlushKept,
    /// So many tables are left to the map until the next such call.
    Leave(u8),
}

#[derive(Arbitrary, Debug)]
struct Input {
    regime: u8,
    tiny: bool,
    bits: u8,
    bbm: u8,
    capabilities: u8,
    refuses: bool,
    tables: u8,
    calls: Vec<Call>,
}

type Owed<'m, R, S> = Debt<'m, R, &'m World, S>;

struct Case<'m, R: Regime, S: Shape> {
    map: &'m Map<R, &'m World, S>,
    world: &'m World,
    flat: Flat,
    kept: Vec<Owed<'m, R, S>>,
    /// A debt was dropped.
    dropped: bool,
    reserved: usize,
}

impl<'m, R: Tried, S: Shape> Case<'m, R, S> {
    fn range(&self, at: Place, size: Place) -> (Range<R::Input>, (u64, u64)) {
        let start = at.address::<S>(self.map.geometry().input_bits());
        // It may end above the map's reach, but not above that of any map.
        let size = size.size::<S>().min((1 << 48) - start);
        (Range::new(start, size).unwrap(), (start, start + size))
    }

    fn call(&mut self, call: Call) {
        let map = self.map;
        match call {
            Call::Map { at, size, output, attributes, blocks, runs } => {
                let (range, (start, end)) = self.range(at, size);
                let shift = output.address::<S>(48);
                let output = range.start().get().wrapping_add(shift) % (1 << 48);
                let attributes = R::ATTRIBUTES[usize::from(attributes) % R::ATTRIBUTES.len()];
                let leaves = Leaves { blocks, runs };
                let result =
                    map.cpu(0).unwrap().write().map(range, Pa::new(output).unwrap(), attributes, leaves);
                match result {
                    Ok(()) => {
                        assert!(self.flat.is_free(start, end));
                        let known = Known::Leaf(output.wrapping_sub(start), attributes.bits(), true);
                        self.flat.set(start, end, Some(known));
                        self.world.check_new((start, end));
                    }
                    Err(MapError::Mapped(at)) => assert!(matches!(self.flat.at(at), Some(Known::Leaf(..)))),
                    Err(MapError::HasState(at)) => assert!(matches!(self.flat.at(at), Some(Known::State(_)))),
                    Err(_) => compare(self.map, &self.flat),
                }
            }
            Call::Unmap(at, size, pay) => {
                let (range, (start, end)) = self.range(at, size);
                let result = map.cpu(0).unwrap().write().unmap(range);
                self.done(result, pay, |flat| flat.set(start, end, None));
            }
            Call::Protect { at, size, change, whole, pay } => {
                let (range, (start, end)) = self.range(at, size);
                let (change, set, clear, valid) = R::CHANGES[usize::from(change) % R::CHANGES.len()];
                let result =
                    if whole { map.protect_whole(range, change) } else { map.protect(range, change) };
                let new = |bits, was| (bits & !clear | set, valid.unwrap_or(was));
                let invalid = self.invalid(start, end);
                if self.done(result, pay, |flat| flat.change(start, end, new)) && valid == Some(true) {
                    invalid.into_iter().for_each(|ends| self.world.check_new(ends));
                }
            }
            Call::SplitAt(at, pay) => {
                let start = at.address::<S>(map.geometry().input_bits());
                self.done(map.split_at(R::Input::new(start).unwrap()), pay, |_| {});
            }
            Call::SplitEdges(at, size, pay) => {
                let (range, _) = self.range(at, size);
                self.done(map.split_edges(range), pay, |_| {});
            }
            Call::SplitToPages(at, size, pay) => {
                let (range, _) = self.range(at, size);
                self.done(map.split_to_pages(range), pay, |_| {});
            }
            Call::SetState(at, size, value) => {
                let (range, (start, end)) = self.range(at, size);
                let state = State::new(u64::from(value)).unwrap();
                match map.cpu(0).unwrap().write().set_state(range, state) {
                    Ok(()) => self.flat.set(start, end, Some(Known::State(u64::from(value)))),
                    Err(_) => compare(self.map, &self.flat),
                }
            }
            Call::Collapse { at, size, blocks, runs, change } => {
                let (range, (start, end)) = self.range(at, size);
                let leaves = Leaves { blocks, runs };
                let mut cpu = map.cpu(0).unwrap();
                let Some(change) = change else {
                    // Done or not, it lets no translation differ.
                    let _ = cpu.write().collapse(range, leaves);
                    drop(cpu);
                    compare(self.map, &self.flat);
                    return self.look();
                };
                let (change, set, clear, valid) = R::CHANGES[usize::from(change) % R::CHANGES.len()];
                let invalid = self.invalid(start, end);
                match cpu.write().protect_and_collapse(range, change, leaves) {
                    Ok(()) => {
                        let new = |bits, was| (bits & !clear | set, valid.unwrap_or(was));
                        self.flat.change(start, end, new);
                        if valid == Some(true) {
                            invalid.into_iter().for_each(|ends| self.world.check_new(ends));
                        }
                    }
                    Err(_) => compare(self.map, &self.flat),
                }
            }
            Call::CollapseEntry(at, level) => {
                let address = R::Input::new(at.address::<S>(48)).unwrap();
                match map.cpu(0).unwrap().write().collapse_entry(address, level) {
                    // SAFETY: the table came from this pool, and is the caller's now.
                    Ok(table) => unsafe { self.world.tables().give(table) },
                    Err(_) => compare(self.map, &self.flat),
                }
            }
            Call::Translate(at) => {
                let address = at.address::<S>(map.geometry().input_bits());
                let found = map.cpu(1).unwrap().read().translate(R::Input::new(address).unwrap());
                let expected = match self.flat.at(address) {
                    Some(Known::Leaf(shift, bits, true)) => Some((address.wrapping_add(shift), bits)),
                    _ => None,
                };
                assert_eq!(found.map(|t| (t.output.get(), t.attributes().bits())), expected, "{address:#x}");
            }
            Call::Settle => {
                map.settle();
                self.dropped = false;
                self.world.check_all();
            }
            Call::FlushKept => self.kept.drain(..).for_each(Debt::flush),
            Call::Leave(tables) => {
                let pool = self.world.tables();
                // SAFETY: so many were reserved here before.
                unsafe { pool.cancel(std::mem::take(&mut self.reserved)) };
                let reserved = pool.free().saturating_sub(usize::from(tables % 8));
                if tables < 128 && pool.reserve(reserved).is_ok() {
                    self.reserved = reserved;
                }
            }
        }
        self.look();
    }

    fn look(&mut self) {
        self.world.look();
        if self.kept.is_empty() && !self.dropped {
            self.world.check_all();
        }
    }

    /// Says whether it was done.
    fn done(
        &mut self,
        result: Result<Owed<'m, R, S>, MapError>,
        pay: Pay,
        meaning: impl Fn(&mut Flat),
    ) -> bool {
        let Ok(debt) = result else {
            compare(self.map, &self.flat);
            return false;
        };
        meaning(&mut self.flat);
        self.world.look();
        match (pay, self.kept.last_mut()) {
            (Pay::Merge, Some(last)) => assert!(last.merge(debt).is_ok(), "a debt of the same map"),
            (Pay::Keep | Pay::Merge, _) => self.kept.push(debt),
            (Pay::Flush, _) => debt.flush(),
            (Pay::Drop, _) => {
                self.dropped |= !debt.is_empty();
                drop(debt);
            }
        }
        true
    }

    /// Leaves in a range that do not translate.
    fn invalid(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let parts = self.flat.0.iter().filter(|(_, (_, known))| matches!(known, Known::Leaf(_, _, false)));
        let parts = parts.map(|(&first, &(last, _))| (first.max(start), last.min(end)));
        parts.filter(|(start, end)| start < end).collect()
    }
}

fn run<R: Tried, S: Shape>(input: &Input, geometry: Geometry<S>) {
    let mut capabilities = Capabilities::bbm(input.bbm % 4);
    for (bit, capability) in
        [Capabilities::TLB_RANGE, Capabilities::TLB_LEVEL, Capabilities::TLBI_ONCE, Capabilities::CONTIGUOUS]
            .into_iter()
            .enumerate()
    {
        capabilities.set(capability, input.capabilities >> bit & 1 != 0);
    }
    let world = World::new::<S>(geometry.root_tables() + usize::from(input.tables % 40), input.refuses);
    let Ok(map) = Map::<R, _, S>::new(&world, geometry, Options::new(capabilities)) else { return };
    world.watch(map.root(), geometry);
    let mut case = Case {
        map: &map,
        world: &world,
        flat: Flat::default(),
        kept: Vec::new(),
        dropped: false,
        reserved: 0,
    };
    input.calls.iter().for_each(|&call| case.call(call));
    compare(&map, &case.flat);
    // SAFETY: so many were reserved.
    unsafe { world.tables().cancel(case.reserved) };
    case.kept.clear();
    let all = Range::new(0, 1 << geometry.input_bits()).unwrap();
    if map.cpu(0).unwrap().write().collapse(all, Leaves::LARGEST).is_ok() {
        compare(&map, &case.flat);
        let (expected, tables) = canonical(&map, &case.flat);
        assert!(entries(&map) == expected, "there are entries left that are not needed");
        assert_eq!(world.tables().used(), tables, "there are tables left that are not needed");
    }
    // All of it goes away whole, which takes no table and no quiet.
    map.cpu(0).unwrap().write().unmap(all).unwrap().flush();
    map.settle();
    world.look();
    world.check_all();
    assert_eq!(world.tables().used(), geometry.root_tables(), "tables are lost");
}

fuzz_target!(|input: Input| {
    let bits = |fewest: u32, most: u32| fewest + u32::from(input.bits) % (most - fewest + 1);
    match (input.regime % 3, input.tiny) {
        (0, false) => run::<El2, Granule4K>(&input, Geometry::stage1(bits(25, 48)).unwrap()),
        (1, false) => run::<El1And0, Granule4K>(&input, Geometry::stage1(bits(25, 48)).unwrap()),
        (_, false) => run::<Stage2, Granule4K>(&input, Geometry::stage2(bits(32, 48)).unwrap()),
        (0, true) => run::<El2, Tiny>(&input, Geometry::stage1(bits(15, 20)).unwrap()),
        (1, true) => run::<El1And0, Tiny>(&input, Geometry::stage1(bits(15, 20)).unwrap()),
        (_, true) => run::<Stage2, Tiny>(&input, Geometry::stage2(bits(17, 20)).unwrap()),
    }
});
