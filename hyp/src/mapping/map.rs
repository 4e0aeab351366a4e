//! A map: one root and what hangs from it.
//!
//! Invariant: [`Map::map`] looks at all that it is about to change and counts the tables it needs before it
//! stores the first entry; the stores that follow cannot fail.

use core::fmt;
use core::marker::PhantomData;

use super::addr::{Address, GRANULE, Pa, Range};
use super::descriptor::{Attributes, ENTRIES, Entry, LAST_LEVEL, RUN, Regime, level_shift, level_size};
use super::pool::Pool;

/// Most tables that may be concatenated at the root of stage 2 (Arm ARM D8.2.2).
const MAX_CONCATENATED: u64 = 16;

/// Where the tables of a map begin and how far they reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    start_level: u8,
    input_bits: u32,
}

impl Geometry {
    /// Stage 1 for inputs of `input_bits` (25 to 48): starts where one table suffices (Arm ARM D8.2.1).
    ///
    /// # Errors
    /// [`MapError::InputBits`] outside those bounds.
    pub fn stage1(input_bits: u32) -> Result<Self, MapError> {
        match input_bits {
            25..=48 => Ok(Self { start_level: ((47 - (input_bits - 1)) / 9) as u8, input_bits }),
            _ => Err(MapError::InputBits(input_bits)),
        }
    }

    /// Stage 2 for inputs of `input_bits` (32 to 48) on a CPU that outputs as many. A start at level 0 is an
    /// option only from 44 bits on; below, up to 16 level 1 tables are concatenated (Arm ARM D8.2.2).
    ///
    /// # Errors
    /// [`MapError::InputBits`] outside those bounds.
    pub fn stage2(input_bits: u32) -> Result<Self, MapError> {
        match input_bits {
            32..=43 => Ok(Self { start_level: 1, input_bits }),
            44..=48 => Ok(Self { start_level: 0, input_bits }),
            _ => Err(MapError::InputBits(input_bits)),
        }
    }

    /// Level of the root, 0 to 3.
    pub fn start_level(self) -> u8 {
        self.start_level
    }
    /// Bits of the input address.
    pub fn input_bits(self) -> u32 {
        self.input_bits
    }
    /// Tables at the root: more than one where they are concatenated.
    pub fn root_tables(self) -> usize {
        let entries = 1u64 << (self.input_bits.saturating_sub(level_shift(self.start_level)));
        debug_assert!(entries <= MAX_CONCATENATED * ENTRIES as u64);
        entries.div_ceil(ENTRIES as u64) as usize
    }
}

/// The largest leaf that a call may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    /// Blocks of 1 GiB and 2 MiB, and at each level contiguous runs of 16, where input and output allow them.
    Largest,
    /// Pages of 4 KiB only, in no runs: for what must never be split.
    Pages,
}

/// Why a map could not be made or changed. Nothing was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MapError {
    /// A geometry of so many input bits does not exist with the 4 KiB granule.
    InputBits(u32),
    /// The range has an end that is no multiple of the granule, or maps to an output that is none.
    Misaligned {
        /// First input address.
        input: u64,
        /// Bytes.
        size: u64,
        /// First output address.
        output: u64,
    },
    /// The range, or what it maps to, ends above what the map reaches.
    OutOfReach {
        /// The first address that is too far.
        end: u64,
        /// Bits of the input address, or of the largest output.
        bits: u32,
    },
    /// This input address is mapped already.
    Mapped(u64),
    /// The pool has fewer tables than the call needs.
    OutOfTables {
        /// Tables needed.
        needed: usize,
        /// Tables left.
        free: usize,
    },
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::InputBits(bits) => write!(f, "no table geometry translates {bits} bits"),
            Self::Misaligned { input, size, output } => {
                write!(
                    f,
                    "{size:#x} bytes at {input:#x} to {output:#x} are not made of {GRANULE}-byte granules"
                )
            }
            Self::OutOfReach { end, bits } => {
                write!(f, "a range that ends at {end:#x} does not fit in {bits} bits")
            }
            Self::Mapped(address) => write!(f, "address {address:#x} is mapped already"),
            Self::OutOfTables { needed, free } => write!(f, "{needed} tables are needed and {free} are left"),
        }
    }
}

impl core::error::Error for MapError {}

/// One step of a walk over a range: the part of it that one entry covers.
#[derive(Clone, Copy)]
struct Part {
    index: usize,
    input: u64,
    output: u64,
    size: u64,
}

/// The request of one call, as its two walks see it.
#[derive(Clone, Copy)]
struct Request {
    level: u8,
    input: u64,
    output: u64,
    size: u64,
    leaves: Leaves,
}

impl Request {
    /// The parts of the request, one for each entry of a table of its level.
    fn parts(self) -> impl Iterator<Item = Part> {
        let span = level_size(self.level);
        let mut done = 0;
        core::iter::from_fn(move || {
            let input = self.input + done;
            let size =
                (span - (input & (span - 1))).min(self.size.checked_sub(done).filter(|&left| left > 0)?);
            let part = Part {
                index: (input >> level_shift(self.level)) as usize,
                input,
                output: self.output + done,
                size,
            };
            done += size;
            Some(part)
        })
    }

    /// Whether one leaf of the request's level can hold all of `part`.
    fn fits_leaf(self, part: Part) -> bool {
        let allowed = match self.leaves {
            Leaves::Largest => self.level >= 1,
            Leaves::Pages => self.level == LAST_LEVEL,
        };
        let span = level_size(self.level);
        allowed && part.size == span && (part.input | part.output) & (span - 1) == 0
    }

    /// Whether the request covers all of the run that `part` is of, with an output that is aligned alike.
    fn covers_run(self, part: Part) -> bool {
        let span = level_size(self.level) * RUN as u64;
        let first = part.input & !(span - 1);
        self.leaves == Leaves::Largest
            && self.input <= first
            && first + span <= self.input + self.size
            && (part.input ^ part.output) & (span - 1) == 0
    }

    /// The request for what `part` covers, one level down.
    fn below(self, part: Part) -> Self {
        Self {
            level: self.level + 1,
            input: part.input,
            output: part.output,
            size: part.size,
            leaves: self.leaves,
        }
    }
}

/// How many leaves and contiguous runs a map has at each level, 0 to 3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Leaves, those in runs included.
    pub leaves: [usize; 4],
    /// Runs of [`RUN`] leaves.
    pub runs: [usize; 4],
}

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [(1, "blocks of 1 GiB"), (2, "blocks of 2 MiB"), (3, "pages")];
        for (separator, (level, name)) in ["", ", ", ", "].into_iter().zip(names) {
            write!(f, "{separator}{} {name}", self.leaves[level])?;
            if self.runs[level] > 0 {
                write!(f, " ({} runs of {RUN})", self.runs[level])?;
            }
        }
        Ok(())
    }
}

/// A tree of tables of regime `R` in one pool.
#[derive(Debug)]
pub struct Map<R> {
    root: Pa,
    geometry: Geometry,
    regime: PhantomData<R>,
}

impl<R: Regime> Map<R> {
    /// An empty map.
    ///
    /// # Errors
    /// [`MapError::OutOfTables`] if the root does not fit in the pool.
    pub fn new(pool: &mut Pool<'_>, geometry: Geometry) -> Result<Self, MapError> {
        let needed = geometry.root_tables();
        let root = pool.take(needed).ok_or(MapError::OutOfTables { needed, free: pool.free() })?;
        Ok(Self { root, geometry, regime: PhantomData })
    }

    /// Physical address of the root, as the translation table base register takes it.
    pub fn root(&self) -> Pa {
        self.root
    }
    /// Its geometry.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Maps `input` to as many bytes from `output` on, in the largest leaves that `leaves` and the alignment of
    /// both allow. An empty range maps nothing.
    ///
    /// # Errors
    /// [`MapError::Misaligned`], [`MapError::OutOfReach`], [`MapError::Mapped`] if any of it is mapped,
    /// [`MapError::OutOfTables`].
    pub fn map(
        &mut self,
        pool: &mut Pool<'_>,
        input: Range<R::Input>,
        output: Pa,
        attributes: Attributes<R>,
        leaves: Leaves,
    ) -> Result<(), MapError> {
        let (start, size) = (input.start().get(), input.size());
        if !(start | size | output.get()).is_multiple_of(GRANULE) {
            return Err(MapError::Misaligned { input: start, size, output: output.get() });
        }
        let bits = self.geometry.input_bits;
        if input.end() > 1 << bits {
            return Err(MapError::OutOfReach { end: input.end(), bits });
        }
        if Range::<Pa>::new(output.get(), size).is_err() {
            let end = output.get().saturating_add(size);
            return Err(MapError::OutOfReach { end, bits: super::addr::ADDRESS_BITS });
        }
        let request =
            Request { level: self.geometry.start_level, input: start, output: output.get(), size, leaves };
        let needed = Self::prepare(pool, Some(self.root), request, 0)?;
        if needed > pool.free() {
            return Err(MapError::OutOfTables { needed, free: pool.free() });
        }
        Self::commit(pool, self.root, request, 0, attributes);
        Ok(())
    }

    /// Tables that `request` needs below `table` (none yet if `None`), whose first entry translates `base`.
    fn prepare(pool: &Pool<'_>, table: Option<Pa>, request: Request, base: usize) -> Result<usize, MapError> {
        let mut needed = 0;
        for part in request.parts() {
            let raw = table.map_or(0, |t| pool.load(t, part.index - base));
            needed += match Entry::<R>::decode(raw, request.level) {
                Entry::Leaf { .. } => return Err(MapError::Mapped(part.input)),
                Entry::Invalid if request.fits_leaf(part) => 0,
                Entry::Invalid => 1 + Self::prepare(pool, None, request.below(part), part.index * ENTRIES)?,
                // Also where a leaf would fit: what the table maps must be found.
                Entry::Table(t) => Self::prepare(pool, Some(t), request.below(part), part.index * ENTRIES)?,
            };
        }
        Ok(needed)
    }

    /// Stores what [`Self::prepare`] has found possible.
    fn commit(pool: &mut Pool<'_>, table: Pa, request: Request, base: usize, attributes: Attributes<R>) {
        let mut contiguous = false;
        for part in request.parts() {
            let index = part.index - base;
            if index.is_multiple_of(RUN) {
                // A table among them, which an earlier call has left, keeps them apart.
                let is_leaf =
                    |i| !matches!(Entry::<R>::decode(pool.load(table, i), request.level), Entry::Table(_));
                contiguous =
                    request.fits_leaf(part) && request.covers_run(part) && (index..index + RUN).all(is_leaf);
            }
            let below = match Entry::<R>::decode(pool.load(table, index), request.level) {
                Entry::Table(t) => t,
                _ if request.fits_leaf(part) => {
                    if let Ok(output) = Pa::new(part.output) {
                        let leaf = Entry::Leaf { output, attributes, contiguous };
                        pool.store(table, index, leaf.encode(request.level));
                    }
                    continue;
                }
                _ => {
                    let Some(t) = pool.take(1) else {
                        debug_assert!(false, "a table that `prepare` counted is missing");
                        return;
                    };
                    pool.store(table, index, Entry::<R>::Table(t).encode(request.level));
                    t
                }
            };
            Self::commit(pool, below, request.below(part), part.index * ENTRIES, attributes);
        }
    }

    /// The leaf that translates `input`: where `input` goes, the leaf's attributes and its level; `None` if there
    /// is no translation.
    pub fn translate(&self, pool: &Pool<'_>, input: R::Input) -> Option<(Pa, Attributes<R>, u8)> {
        let input = input.get();
        if input >> self.geometry.input_bits != 0 {
            return None;
        }
        let (mut table, mut level) = (self.root, self.geometry.start_level);
        let mut index = (input >> level_shift(level)) as usize;
        loop {
            match Entry::<R>::decode(pool.load(table, index), level) {
                Entry::Invalid => return None,
                Entry::Table(t) => {
                    (table, level) = (t, level + 1);
                    index = (input >> level_shift(level)) as usize % ENTRIES;
                }
                Entry::Leaf { output, attributes, .. } => {
                    let output = Pa::new(output.get() | (input & (level_size(level) - 1))).ok()?;
                    return Some((output, attributes, level));
                }
            }
        }
    }

    /// What the map consists of.
    pub fn census(&self, pool: &Pool<'_>) -> Census {
        let mut census = Census::default();
        let entries = self.geometry.root_tables() * ENTRIES;
        Self::count(pool, self.root, self.geometry.start_level, entries, &mut census);
        census
    }

    fn count(pool: &Pool<'_>, table: Pa, level: u8, entries: usize, census: &mut Census) {
        for index in 0..entries {
            match Entry::<R>::decode(pool.load(table, index), level) {
                Entry::Invalid => {}
                Entry::Table(t) => Self::count(pool, t, level + 1, ENTRIES, census),
                Entry::Leaf { contiguous, .. } => {
                    census.leaves[usize::from(level)] += 1;
                    // A run counts by its first leaf.
                    census.runs[usize::from(level)] += usize::from(contiguous && index.is_multiple_of(RUN));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::mapping::{El2, Ipa, Stage2, Table};

    const GIB: u64 = 1 << 30;
    const BASE: u64 = 0x7000_0000;

    fn tables(count: usize) -> Vec<Table> {
        (0..count).map(|_| Table::new()).collect()
    }
    fn pool(tables: &[Table]) -> Pool<'_> {
        Pool::new(tables, Pa::new(BASE).unwrap()).unwrap()
    }
    fn pa(a: u64) -> Pa {
        Pa::new(a).unwrap()
    }
    fn ipas(start: u64, size: u64) -> Range<Ipa> {
        Range::new(start, size).unwrap()
    }
    fn stage2(pool: &mut Pool<'_>, bits: u32) -> Map<Stage2> {
        Map::new(pool, Geometry::stage2(bits).unwrap()).unwrap()
    }

    #[test]
    fn a_range_is_mapped_in_the_largest_leaves_that_fit() {
        let tables = tables(8);
        let mut pool = pool(&tables);
        let mut map = stage2(&mut pool, 40);
        // A page and a 2 MiB block on either side of a 1 GiB block.
        let start = GIB - (2 << 20) - 4096;
        let size = GIB + (4 << 20) + 8192;
        map.map(&mut pool, ipas(start, size), pa(start), Attributes::<Stage2>::RAM, Leaves::Largest).unwrap();
        assert_eq!(map.census(&pool).leaves, [0, 1, 2, 2]);
        // Two root tables, and a table of level 2 and 3 on either side.
        assert_eq!(pool.used(), 2 + 4);
    }

    #[test]
    fn an_output_that_is_less_aligned_than_the_input_decides_the_leaf() {
        let tables = tables(4);
        let mut pool = pool(&tables);
        let mut map = stage2(&mut pool, 40);
        let output = pa(5 << 21);
        map.map(&mut pool, ipas(0, GIB), output, Attributes::<Stage2>::RAM, Leaves::Largest).unwrap();
        assert_eq!(map.census(&pool).leaves, [0, 0, 512, 0]);
        let (to, _, level) = map.translate(&pool, Ipa::new(0x1234_5678).unwrap()).unwrap();
        assert_eq!((to.get(), level), ((5 << 21) + 0x1234_5678, 2));
    }

    /// Checks that contiguous leaves stand in whole aligned runs whose outputs run on and whose attributes agree.
    fn check_runs(pool: &Pool<'_>, map: &Map<Stage2>) {
        let mut tables =
            vec![(map.root(), map.geometry().start_level(), map.geometry().root_tables() * ENTRIES)];
        while let Some((table, level, entries)) = tables.pop() {
            let decoded: Vec<_> =
                (0..entries).map(|i| Entry::<Stage2>::decode(pool.load(table, i), level)).collect();
            for run in decoded.chunks(RUN) {
                let is_contiguous = |e: &Entry<Stage2>| matches!(e, Entry::Leaf { contiguous: true, .. });
                let Entry::Leaf { output, attributes, contiguous: true } = run[0] else {
                    assert!(!run.iter().any(is_contiguous), "part of a run at level {level}");
                    continue;
                };
                assert!(output.get().is_multiple_of(level_size(level) * RUN as u64));
                for (number, entry) in run.iter().enumerate() {
                    let output = pa(output.get() + number as u64 * level_size(level));
                    assert_eq!(*entry, Entry::Leaf { output, attributes, contiguous: true });
                }
            }
            let below = decoded.iter().filter_map(|e| if let Entry::Table(t) = e { Some(*t) } else { None });
            tables.extend(below.map(|t| (t, level + 1, ENTRIES)));
        }
    }

    #[test]
    fn runs_of_16_are_joined_at_each_level_where_input_and_output_are_aligned_alike() {
        const MIB: u64 = 1 << 20;
        // Start, size, difference of the output; runs of 1 GiB, of 2 MiB and of pages.
        let cases = [
            (0, 16 * GIB, 0, [1, 0, 0]),
            (0, 16 * GIB, GIB, [0, 0, 0]),
            (0, 16 * GIB, 16 * GIB, [1, 0, 0]),
            (GIB, 16 * GIB, 0, [0, 0, 0]),
            (GIB, 31 * GIB, 0, [1, 0, 0]),
            (32 * MIB, 32 * MIB, 0, [0, 1, 0]),
            (32 * MIB, 32 * MIB, 2 * MIB, [0, 0, 0]),
            (34 * MIB, 62 * MIB, 0, [0, 1, 0]),
            (0x1_0000, 0x1_0000, 0, [0, 0, 1]),
            (0x1_0000, 0x1_0000, 0x1000, [0, 0, 0]),
            (0xf000, 0x1_2000, 0, [0, 0, 1]),
        ];
        for (start, size, shift, runs) in cases {
            let tables = tables(8);
            let mut pool = pool(&tables);
            let mut map = stage2(&mut pool, 40);
            let input = ipas(start, size);
            map.map(&mut pool, input, pa(start + shift), Attributes::<Stage2>::RAM, Leaves::Largest).unwrap();
            assert_eq!(map.census(&pool).runs[1..], runs, "{input} to {:#x}", start + shift);
            check_runs(&pool, &map);
        }
    }

    #[test]
    fn pages_are_used_where_blocks_are_forbidden() {
        let tables = tables(8);
        let mut pool = pool(&tables);
        let mut map = Map::<El2>::new(&mut pool, Geometry::stage1(48).unwrap()).unwrap();
        let range = Range::new(4 << 20, 2 << 20).unwrap();
        map.map(&mut pool, range, pa(4 << 20), Attributes::<El2>::DATA, Leaves::Pages).unwrap();
        assert_eq!(map.census(&pool).leaves, [0, 0, 0, 512]);
    }

    #[test]
    fn concatenated_roots_translate_beyond_the_first_table() {
        for (bits, roots, level) in
            [(32, 1, 1), (39, 1, 1), (40, 2, 1), (42, 8, 1), (43, 16, 1), (44, 1, 0), (48, 1, 0)]
        {
            let tables = tables(64);
            let mut pool = pool(&tables);
            let map_geometry = Geometry::stage2(bits).unwrap();
            assert_eq!(
                (map_geometry.root_tables(), map_geometry.start_level()),
                (roots, level),
                "{bits} bits"
            );
            let mut map = stage2(&mut pool, bits);
            assert_eq!(map.root().get() % (roots as u64 * GRANULE), 0);
            let last = (1u64 << bits) - GIB;
            map.map(&mut pool, ipas(last, GIB), pa(last), Attributes::<Stage2>::RAM, Leaves::Largest)
                .unwrap();
            let top = (1u64 << bits) - 1;
            assert_eq!(map.translate(&pool, Ipa::new(top).unwrap()).map(|t| t.0.get()), Some(top));
            assert_eq!(map.translate(&pool, Ipa::new(last - 1).unwrap()), None);
            let beyond =
                map.map(&mut pool, ipas(0, 1 << bits), pa(4096), Attributes::<Stage2>::RAM, Leaves::Largest);
            assert!(beyond.is_err());
        }
        assert_eq!(Geometry::stage2(31), Err(MapError::InputBits(31)));
        assert_eq!(Geometry::stage1(49), Err(MapError::InputBits(49)));
    }

    #[test]
    fn an_overlap_is_named_and_changes_nothing() {
        let tables = tables(8);
        let mut pool = pool(&tables);
        let mut map = stage2(&mut pool, 40);
        let page = ipas(3 * GIB + 0x5000, 4096);
        map.map(&mut pool, page, pa(0), Attributes::<Stage2>::RAM, Leaves::Largest).unwrap();
        let (used, leaves) = (pool.used(), map.census(&pool));
        let all = map.map(&mut pool, ipas(0, 4 * GIB), pa(0), Attributes::<Stage2>::RAM, Leaves::Largest);
        assert_eq!(all, Err(MapError::Mapped(3 * GIB + 0x5000)));
        assert_eq!((pool.used(), map.census(&pool)), (used, leaves));
    }

    #[test]
    fn too_few_tables_are_counted_and_change_nothing() {
        for count in 2..8 {
            let tables = tables(count);
            let mut pool = pool(&tables);
            let mut map = stage2(&mut pool, 40);
            let range = ipas(GIB - 4096, GIB + 8192);
            let result =
                map.map(&mut pool, range, pa(GIB - 4096), Attributes::<Stage2>::RAM, Leaves::Largest);
            if count < 6 {
                assert_eq!(result, Err(MapError::OutOfTables { needed: 4, free: count - 2 }));
                assert_eq!((pool.used(), map.census(&pool)), (2, Census::default()));
            } else {
                assert_eq!(result, Ok(()));
                assert_eq!(pool.used(), 6);
            }
        }
    }

    #[test]
    fn misaligned_and_distant_ranges_are_refused() {
        let tables = tables(2);
        let mut pool = pool(&tables);
        let mut map = stage2(&mut pool, 40);
        let mut map =
            |input, output| map.map(&mut pool, input, pa(output), Attributes::<Stage2>::RAM, Leaves::Largest);
        assert!(matches!(map(ipas(0x800, 4096), 0), Err(MapError::Misaligned { .. })));
        assert!(matches!(map(ipas(0, 4096), 0x10), Err(MapError::Misaligned { .. })));
        assert!(matches!(map(ipas(1 << 40, 4096), 0), Err(MapError::OutOfReach { bits: 40, .. })));
        assert!(matches!(map(ipas(0, 8192), (1 << 48) - 4096), Err(MapError::OutOfReach { bits: 48, .. })));
        assert_eq!(map(ipas(0, 0), 0), Ok(()));
    }

    /// Page numbers in a space of 4 GiB, close to the edges of blocks more often than not.
    fn page_number() -> impl Strategy<Value = u64> {
        let edge = prop_oneof![Just(512u64), Just(512 * 512)];
        let near = (edge, 0u64..4, -2i64..3).prop_map(|(unit, n, d)| (unit * n).saturating_add_signed(d));
        prop_oneof![0u64..(1 << 20), near]
    }

    /// Pages in a range: from none to a little over 1 GiB.
    fn page_count() -> impl Strategy<Value = u64> {
        // A page of output that is off by one makes 1 GiB of pages: rare, and too slow for Miri.
        let large = if cfg!(miri) { 512u64 } else { 512 * 512 };
        prop_oneof![9 => 0u64..if cfg!(miri) { 40 } else { 2000 }, 1 => (large - 2)..(large + 3)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 256 }))]

        #[test]
        fn a_map_translates_as_a_flat_list_of_its_ranges_does(
            requests in prop::collection::vec((page_number(), page_count(), any::<u8>(), any::<bool>()), 1..if cfg!(miri) { 4 } else { 12 }),
            probes in prop::collection::vec(page_number(), 32),
            budget in 2usize..if cfg!(miri) { 10 } else { 80 },
        ) {
            let tables = tables(budget);
            let mut pool = pool(&tables);
            let mut map = stage2(&mut pool, 40);
            // First page of each mapped range: pages, first output page, attributes.
            let mut flat: BTreeMap<u64, (u64, u64, Attributes<Stage2>)> = BTreeMap::new();
            for (first, count, shift, io) in requests {
                // Outputs that run with the input, or are off by a page or a 2 MiB block.
                let output = first + [0, 1, 512][usize::from(shift % 3)];
                let attributes = if io { Attributes::<Stage2>::IO } else { Attributes::<Stage2>::RAM };
                let overlaps = count > 0
                    && flat.iter().any(|(&f, &(c, ..))| first < f + c && f < first + count);
                let before = (pool.used(), map.census(&pool));
                let result = map.map(&mut pool, ipas(first << 12, count << 12), pa(output << 12), attributes, Leaves::Largest);
                match result {
                    Ok(()) => {
                        prop_assert!(!overlaps);
                        if count > 0 { flat.insert(first, (count, output, attributes)); }
                    }
                    Err(MapError::Mapped(_)) => prop_assert!(overlaps),
                    Err(MapError::OutOfTables { needed, free }) => prop_assert!(!overlaps && needed > free),
                    Err(other) => prop_assert!(false, "{other}"),
                }
                check_runs(&pool, &map);
                if result.is_err() {
                    prop_assert_eq!(before, (pool.used(), map.census(&pool)));
                }
            }
            let edges = flat.iter().flat_map(|(&f, &(c, ..))| [f, f + c - 1, f + c, f.saturating_sub(1)]);
            for page in edges.chain(probes) {
                let expected = flat.range(..=page).next_back()
                    .filter(|(f, (count, ..))| page - **f < *count)
                    .map(|(f, (_, output, attributes))| (((output + page - f) << 12) + 7, *attributes));
                let actual = map.translate(&pool, Ipa::new((page << 12) + 7).unwrap());
                prop_assert_eq!(actual.map(|(to, attributes, _)| (to.get(), attributes)), expected);
            }
        }
    }
}
