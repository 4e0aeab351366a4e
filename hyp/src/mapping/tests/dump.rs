//! What a dump says is what the tables do. Under Miri large tables take minutes, and show nothing new.

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::mapping::dump::{Content, Format};
use crate::mapping::geometry::level_size;

const PAGE: u64 = GRANULE;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn new<R: Regime>(mmu: &FakeMmu, upper_half: bool) -> Map<R, &FakeMmu> {
    let capabilities = Capabilities::LEAST | Capabilities::bbm(3);
    let geometry = match R::STAGE {
        Stage::One => Geometry::stage1(39),
        Stage::Two => Geometry::stage2(40),
    };
    Map::new(mmu, geometry.unwrap(), Options { upper_half, ..Options::new(capabilities) }).unwrap()
}

fn add<R: Regime>(map: &Map<R, &FakeMmu>, start: u64, size: u64, output: u64, attributes: Attributes<R>) {
    let output = Pa::new(output).unwrap();
    let mut cpu = map.cpu(0).unwrap();
    cpu.write().map(range(start, size), output, attributes, Leaves::LARGEST).unwrap();
}

fn state(value: u64) -> State {
    State::new(value).unwrap()
}

fn lines<R: Regime>(map: &Map<R, &FakeMmu>, format: Format) -> Vec<String> {
    let mut lines = Vec::new();
    map.cpu(7).unwrap().read().dump("now", format, |line| lines.push(line.to_string()));
    lines
}

#[test]
#[cfg_attr(miri, ignore)]
fn neighbours_that_say_the_same_are_one_line() {
    let mmu = FakeMmu::new(16);
    let map = new::<Stage2>(&mmu, false);
    add(&map, 0, GIB, 0, Attributes::<Stage2>::IO);
    add(&map, GIB, 2 * GIB, GIB, Attributes::<Stage2>::RAM);
    add(&map, 4 * GIB, 2 * PAGE, 5 * GIB, Attributes::<Stage2>::RAM);
    map.protect(range(2 * GIB, PAGE), Change::<Stage2>::READ_ONLY).unwrap().flush();
    let invalid = Change::<Stage2>::INVALIDATE.then(Change::<Stage2>::software(3));
    map.protect(range(4 * GIB + PAGE, PAGE), invalid).unwrap().flush();
    map.cpu(0).unwrap().write().set_state(range(8 * GIB, 2 * GIB), state(0x17)).unwrap();
    assert_eq!(
        lines(&map, Format::Text),
        [
            "stage 2, 40 bits, now:",
            "0x0000000000000000-0x0000000040000000         1G BLK 1G     RW XN AF ISH NORMAL",
            "0x0000000040000000-0x0000000080000000         1G BLK 1G     RW X  AF ISH NORMAL",
            "0x0000000080000000-0x0000000080001000         4K PTE        RO X  AF ISH NORMAL",
            "0x0000000080001000-0x0000000080010000        60K PTE        RW X  AF ISH NORMAL",
            "0x0000000080010000-0x0000000080200000      1984K PTE    CON RW X  AF ISH NORMAL",
            "0x0000000080200000-0x0000000082000000        30M BLK 2M     RW X  AF ISH NORMAL",
            "0x0000000082000000-0x00000000c0000000       992M BLK 2M CON RW X  AF ISH NORMAL",
            "0x0000000100000000-0x0000000100001000         4K PTE        RW X  AF ISH NORMAL -> 0x0000000140000000",
            "0x0000000100001000-0x0000000100002000         4K PTE        RW X  AF ISH NORMAL                 SW3 INVALID -> 0x0000000140001000",
            "0x0000000200000000-0x0000000280000000         2G state 0x17",
        ]
    );
}

#[test]
#[cfg_attr(miri, ignore)]
fn a_json_line_has_a_field_for_each_word_of_the_text() {
    let mmu = FakeMmu::new(16);
    let map = new::<El2>(&mmu, false);
    add(&map, MIB, 2 * PAGE, 7 * MIB, Attributes::<El2>::CODE);
    map.cpu(0).unwrap().write().set_state(range(2 * MIB, PAGE), state(1)).unwrap();
    assert_eq!(
        lines(&map, Format::Json),
        [
            r#"{"stage":"EL2 stage 1","moment":"now","input_bits":39}"#,
            r#"{"start":"0x100000","size":8192,"level":3,"leaf":4096,"output":"0x700000","attributes":"RO X  AF ISH NORMAL","contiguous":false,"valid":true}"#,
            r#"{"start":"0x200000","size":4096,"state":"0x1"}"#,
            r#"{"extents":2}"#,
        ]
    );
    assert_eq!((Format::parse("json"), Format::parse("yes")), (Some(Format::Json), None));
}

#[test]
#[cfg_attr(miri, ignore)]
fn addresses_of_the_upper_half_are_those_that_cpus_use() {
    let mmu = FakeMmu::new(16);
    let map = new::<El1And0>(&mmu, true);
    add(&map, 511 * GIB, GIB, GIB, Attributes::<El1And0>::DATA);
    assert_eq!(
        lines(&map, Format::Text)[1..],
        [
            "0xffffffffc0000000-0x0000000000000000         1G BLK 1G     RW     PXN UXN AF    ISH NORMAL -> 0x0000000040000000"
        ]
    );
}

#[test]
#[cfg_attr(miri, ignore)]
fn a_range_is_covered_to_its_ends_and_not_beyond() {
    let mmu = FakeMmu::new(16);
    let map = new::<El2>(&mmu, false);
    add(&map, GIB, GIB, 3 * GIB, Attributes::<El2>::DATA);
    let mut cpu = map.cpu(0).unwrap();
    let reader = cpu.read();
    let shown: Vec<_> = reader.extents(range(2 * GIB - PAGE, 5 * PAGE)).collect();
    assert_eq!(shown.len(), 2);
    assert_eq!((shown[0].start, shown[0].size), (2 * GIB - PAGE, PAGE));
    let Content::Leaves { level: 1, leaf: GIB, output, .. } = shown[0].content else {
        panic!("{:?}", shown[0])
    };
    assert_eq!(output.get(), 4 * GIB - PAGE);
    assert_eq!((shown[1].start, shown[1].size, shown[1].content), (2 * GIB, 4 * PAGE, Content::Hole));
    assert_eq!(reader.extents(range(511 * GIB, 3 * GIB)).map(|extent| extent.size).sum::<u64>(), GIB);
    assert_eq!(reader.extents(range(600 * GIB, GIB)).count(), 0);
}

#[test]
#[cfg_attr(miri, ignore)]
fn what_tables_take_away_divides_what_leaves_say_alike() {
    const TABLE: u64 = 0b11;
    const TABLE_UXN: u64 = 1 << 60;
    const TABLE_READ_ONLY: u64 = 1 << 62;
    let mmu = FakeMmu::new(16);
    let tables: [Pa; 4] = core::array::from_fn(|_| mmu.pool().take_root(1).unwrap());
    let shared = &mmu;
    let words = Words::new(&shared);
    for table in tables {
        words.fill(table, 0, 512, 0, 0);
    }
    let leaf = |index: u64| Attributes::<El2>::CODE.bits() & !(1 << 7) | (index * PAGE) | TABLE;
    words.store(tables[0], 0, tables[1].get() | TABLE);
    for (index, (table, bits)) in
        [(tables[2], TABLE_UXN), (tables[3], TABLE_READ_ONLY)].into_iter().enumerate()
    {
        words.store(tables[1], index, table.get() | TABLE | bits);
        words.fill(table, 0, 512, leaf(512 * index as u64), PAGE);
    }
    let options = Options::new(Capabilities::LEAST);
    // SAFETY: the tables were just made for it, of the memory that `mmu` reaches, and nobody else has them.
    let map = unsafe { Map::<El2, _>::adopt(&mmu, tables[0], Geometry::stage1(39).unwrap(), options) };
    assert_eq!(
        lines(&map, Format::Text)[1..],
        [
            "0x0000000000000000-0x0000000000200000         2M PTE        RW XN AF ISH NORMAL",
            "0x0000000000200000-0x0000000000400000         2M PTE        RO X  AF ISH NORMAL",
        ]
    );
}

#[test]
#[cfg_attr(miri, ignore)]
fn what_an_iterator_has_begun_to_read_is_not_reused_under_it() {
    let mmu = FakeMmu::new(16);
    let map = new::<El2>(&mmu, false);
    add(&map, GIB, 2 * MIB, 2 * GIB + PAGE, Attributes::<El2>::DATA);
    let used = mmu.pool().used();
    let mut cpu = map.cpu(1).unwrap();
    let reader = cpu.read();
    let mut extents = reader.extents(range(GIB, 2 * MIB));
    // One page beyond its table would be read at once, if they were alike.
    map.protect(range(GIB + 4 * PAGE, PAGE), Change::<El2>::READ_ONLY).unwrap().flush();
    let first = extents.next().unwrap();
    assert_eq!((first.start, first.size), (GIB, 4 * PAGE));
    map.cpu(0).unwrap().write().unmap(range(GIB, 2 * MIB)).unwrap().flush();
    assert_eq!(mmu.pool().used(), used);
    let rest: Vec<_> = extents.collect();
    assert_eq!(rest.iter().map(|extent| extent.size).sum::<u64>(), 2 * MIB - 4 * PAGE);
    for extent in rest {
        let Content::Leaves { output, .. } = extent.content else { panic!("{extent:?}") };
        assert_eq!(output.get(), extent.start + GIB + PAGE);
    }
    drop(reader);
    add(&map, GIB, PAGE, GIB, Attributes::<El2>::DATA);
    assert_eq!(mmu.pool().used(), used);
}

/// Changes a map at random, and asks the extents of each range what each of its pages translates to.
fn agrees<R: regimes::Tried>(seed: u64) {
    let geometry = match R::STAGE {
        Stage::One => Geometry::<Tiny>::stage1(18),
        Stage::Two => Geometry::<Tiny>::stage2(19),
    }
    .unwrap();
    let pages = (1u64 << geometry.input_bits()) / PAGE;
    let mmu = FakeMmu::of_entries(256, Tiny::ENTRIES);
    let options = Options::new(Capabilities::LEAST | Capabilities::bbm(3));
    let map = Map::<R, _, Tiny>::new(&mmu, geometry, options).unwrap();
    let mut random = SmallRng::seed_from_u64(seed);
    for _ in 0..if cfg!(miri) { 10 } else { 300 } {
        let start = random.random_range(0..pages);
        let part = range(start * PAGE, random.random_range(1..=pages - start) * PAGE);
        match random.random_range(0..4) {
            0 => {
                let attributes = R::ATTRIBUTES[random.random_range(0..R::ATTRIBUTES.len())];
                let output = Pa::new(random.random_range(0..pages) * PAGE).unwrap();
                let mut cpu = map.cpu(0).unwrap();
                let mut writer = cpu.write();
                writer.unmap(part).unwrap().flush();
                writer.map(part, output, attributes, Leaves::LARGEST).unwrap();
            }
            1 => {
                let state = state(random.random_range(1..3));
                let mut cpu = map.cpu(0).unwrap();
                let mut writer = cpu.write();
                writer.unmap(part).unwrap().flush();
                writer.set_state(part, state).unwrap();
            }
            _ => {
                let change = R::CHANGES[random.random_range(0..R::CHANGES.len())].0;
                let _ = map.protect(part, change).map(Debt::flush);
            }
        }
        let mut cpu = map.cpu(0).unwrap();
        let reader = cpu.read();
        let (mut at, mut last) = (part.start().get(), None::<Extent<R>>);
        for extent in reader.extents(part) {
            assert_eq!(extent.start, at, "seed {seed}");
            assert!(extent.size > 0);
            at += extent.size;
            for page in (extent.start..at).step_by(PAGE as usize) {
                let input = R::Input::new(page).unwrap();
                let offset = page - extent.start;
                match (extent.content, reader.find(input).unwrap().entry, reader.translate(input)) {
                    (Content::Hole, Entry::Empty | Entry::Unlinked(_), None) => {}
                    (Content::State(state), Entry::State(there), None) => assert_eq!(state, there),
                    (
                        Content::Leaves { level, leaf, output, attributes, contiguous, valid },
                        there @ Entry::Leaf { .. },
                        translation,
                    ) => {
                        assert_eq!(leaf, level_size::<Tiny>(level));
                        let visited = reader.find(input).unwrap();
                        let output = output.get() + offset;
                        let begins = Pa::new(output - (page - visited.start)).unwrap();
                        assert_eq!(there, Entry::Leaf { output: begins, attributes, contiguous, valid });
                        assert_eq!(visited.level, level);
                        assert_eq!(valid, translation.is_some());
                        assert!(translation.is_none_or(|found| found.output.get() == output));
                    }
                    other => panic!("seed {seed}, {page:#x}: {other:?}"),
                }
            }
            // Neighbours differ in what they say, or the outputs do not run on.
            if let Some(last) = last.filter(|last| last.content == extent.content) {
                assert!(matches!(last.content, Content::Leaves { .. }), "{last:?} {extent:?}");
            }
            last = Some(extent);
        }
        assert_eq!(at, part.end(), "seed {seed}");
    }
}

#[test]
fn the_extents_say_of_each_page_what_the_tables_do() {
    let seed = std::env::var("CLOVEN_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    agrees::<El2>(seed);
    agrees::<El1And0>(seed);
    agrees::<Stage2>(seed);
}
