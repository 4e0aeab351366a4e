//! What the engine offers, one line each; where it is tried, and on which machines.
//!
//! Invariant: what a call does to the flat list of addresses is written here, from the call's documentation, in the architecture's bits.

use std::cell::Cell;
use std::ops::ControlFlow;

use hyp::mapping::{
    Address, Attributes, Barrier, Capabilities, Change, Debt, El1And0, El2, Geometry, Leaves, Map, MapError,
    Options, Pa, Range, Regime, Scope, Shape, Stage2, State, Tag, Writer,
};

use crate::CPUS;
use crate::decode::{self, Layout};
use crate::expect::{Effect, Value};
use crate::explore::{Case, Context, Conviction, Explored, Make, Script};
use crate::faults::Fault;
use crate::machine::{Call, Can, Config, Machine};
use crate::memory::{self, Mapped, World};
use crate::verdict::{Kind, Verdict};

const PAGE: u64 = 4096;
/// Outputs lie so far from inputs: a multiple of any leaf and run.
pub const SHIFT: u64 = 1 << 36;

const RO: u64 = 1 << 7;
const S2_WRITE: u64 = 1 << 7;
const DBM: u64 = 1 << 51;
const PXN: u64 = 1 << 53;
const UXN: u64 = 1 << 54;

/// A regime, with what is tried in it.
pub trait Tried: Regime {
    /// How the machine calls it.
    const IS: decode::Regime;
    /// What is mapped, writable.
    const DATA: Attributes<Self>;
    /// Another memory type.
    const OTHER: Attributes<Self>;
    /// No writes; and what that is.
    const READ_ONLY: (Change<Self>, Effect);
    /// Another change of permissions.
    const EXECUTE: (Change<Self>, Effect);
    /// A change of the memory type.
    fn retype() -> (Change<Self>, Effect) {
        let bits = Self::OTHER.bits();
        (Change::to(Self::OTHER), Effect::Bits { set: bits, clear: !bits, valid: None })
    }
    /// Bits of the ASID, if the map is of one.
    const TAG: Tag = Tag::All;
}

const fn bits(set: u64, clear: u64) -> Effect {
    Effect::Bits { set, clear, valid: None }
}

impl Tried for El2 {
    const IS: decode::Regime = decode::Regime::El2;
    const DATA: Attributes<Self> = Attributes::<Self>::DATA;
    const OTHER: Attributes<Self> = Attributes::<Self>::DEVICE;
    const READ_ONLY: (Change<Self>, Effect) = (Change::<Self>::READ_ONLY, bits(RO, DBM));
    const EXECUTE: (Change<Self>, Effect) = (Change::<Self>::EXECUTABLE, bits(RO, UXN | DBM));
}

impl Tried for El1And0 {
    const IS: decode::Regime = decode::Regime::El1And0;
    const DATA: Attributes<Self> = Attributes::<Self>::USER_DATA;
    const OTHER: Attributes<Self> = Attributes::<Self>::DEVICE;
    const READ_ONLY: (Change<Self>, Effect) = (Change::<Self>::READ_ONLY, bits(RO, DBM));
    const EXECUTE: (Change<Self>, Effect) = (Change::<Self>::EXECUTABLE, bits(RO, PXN | DBM));
    const TAG: Tag = Tag::Asid(5);
}

impl Tried for Stage2 {
    const IS: decode::Regime = decode::Regime::Stage2;
    const DATA: Attributes<Self> = Attributes::<Self>::RAM;
    const OTHER: Attributes<Self> = Attributes::<Self>::IO;
    const READ_ONLY: (Change<Self>, Effect) = (Change::<Self>::READ_ONLY, bits(0, S2_WRITE | DBM));
    const EXECUTE: (Change<Self>, Effect) = (Change::<Self>::NO_EXECUTE, bits(UXN, PXN));
}

// What scripts say.

impl<'a, 'w, R: Tried, S: Shape> Context<'a, 'w, R, S> {
    fn range(&self, (start, end): (u64, u64)) -> Range<R::Input> {
        Range::new(start * PAGE, (end - start) * PAGE).expect("it is within the map")
    }
    fn between(&self) {
        self.world.step(Call::Between);
        self.world.pass();
    }
    fn begin(&self, (start, end): (u64, u64), effect: Effect) -> crate::expect::Begun {
        // Between two calls a CPU stands still, if it is asked to.
        self.between();
        self.world.begin((start * PAGE, end * PAGE), effect)
    }
    /// A call that owes something, and its flush.
    pub fn change<'m>(
        &'m self,
        pages: (u64, u64),
        effect: Effect,
        call: impl FnOnce(&'m Mapped<'w, R, S>, Range<R::Input>) -> Result<Debt<'m, R, &'w World, S>, MapError>,
    ) -> bool
    where
        'w: 'm,
    {
        let begun = self.begin(pages, effect);
        let result = call(self.map, self.range(pages));
        let made = result.is_ok();
        if let Ok(debt) = result {
            debt.flush();
        }
        self.world.end(begun, made);
        self.world.forget();
        made
    }
    /// Maps pages.
    pub fn map(&self, pages: (u64, u64), leaves: Leaves) -> bool {
        let value = Value::Leaf { shift: SHIFT, bits: R::DATA.bits(), valid: true };
        let begun = self.begin(pages, Effect::Set(value));
        let output = Pa::new(pages.0 * PAGE + SHIFT).expect("outputs lie low");
        let mut cpu = self.map.cpu(self.cpu).expect("each CPU has its slot");
        let made = cpu.write().map(self.range(pages), output, R::DATA, leaves).is_ok();
        drop(cpu);
        self.world.end(begun, made);
        self.world.forget();
        made
    }
    fn unmap(&self, pages: (u64, u64)) -> bool {
        self.change(pages, Effect::Set(Value::None), |map, range| {
            let mut cpu = map.cpu(self.cpu).expect("each CPU has its slot");
            let result = cpu.write().unmap(range);
            drop(cpu);
            result
        })
    }
    /// A call of the writer that owes nothing.
    pub fn writes(
        &self,
        pages: (u64, u64),
        effect: Effect,
        call: impl FnOnce(&mut Writer<'_, 'a, R, &'w World, S>, Range<R::Input>) -> Result<(), MapError>,
    ) -> bool {
        let begun = self.begin(pages, effect);
        let mut cpu = self.map.cpu(self.cpu).expect("each CPU has its slot");
        let made = call(&mut cpu.write(), self.range(pages)).is_ok();
        drop(cpu);
        self.world.end(begun, made);
        self.world.forget();
        made
    }
    fn set_state(&self, pages: (u64, u64)) -> bool {
        let state = State::new(9).expect("it is small");
        self.writes(pages, Effect::Set(Value::None), |w, range| w.set_state(range, state))
    }
    fn protect(&self, pages: (u64, u64), (change, effect): (Change<R>, Effect)) -> bool {
        self.change(pages, effect, |map, range| map.protect(range, change))
    }
    /// What CPU 0 does, or what another does.
    fn permission(&self) -> (Change<R>, Effect) {
        if self.cpu == 0 { R::READ_ONLY } else { R::EXECUTE }
    }
    /// Software reads: what it finds is what is right.
    fn read(&self, page: u64, pages: (u64, u64)) -> bool {
        self.between();
        let mut cpu = self.map.cpu(self.cpu).expect("each CPU has its slot");
        self.world.with_machine(|machine| machine.reads(self.cpu, true));
        let reader = cpu.read();
        let input = R::Input::new(page * PAGE).expect("it is within the map");
        let found = reader.translate(input).map(|found| (found.output.get(), found.attributes().bits()));
        self.found(page * PAGE, found);
        let _ = reader.walk(self.range(pages), |visited| {
            let found = match visited.entry {
                hyp::mapping::Entry::Leaf { output, attributes, valid: true, .. } => {
                    Some((output.get(), attributes.bits()))
                }
                _ => None,
            };
            self.found(visited.start, found);
            ControlFlow::<()>::Continue(())
        });
        drop(reader);
        drop(cpu);
        self.world.with_machine(|machine| machine.reads(self.cpu, false));
        self.world.forget();
        true
    }
    fn found(&self, address: u64, found: Option<(u64, u64)>) {
        let part = (address, address + 1);
        self.world.with_machine(|machine| {
            let expect = machine.expect().of_reader(self.cpu);
            let wrong = match found {
                Some((output, bits)) => expect.refuses(part, output.wrapping_sub(address), bits),
                None => expect.refuses_fault(part),
            };
            if wrong.is_some() {
                let values = expect.values(address);
                let text = format!("software finds {found:x?} at {address:#x}; right is {values:x?}");
                machine.convict(Kind::WrongTranslation, text);
            }
        });
    }
}

/// Something the engine offers.
pub struct Primitive<R: Regime, S: Shape> {
    /// Its name in the tables.
    pub name: &'static str,
    /// A call of it, on pages 3 and 4 or what is around them; whether it was made.
    pub call: fn(&Context<'_, '_, R, S>) -> bool,
}

/// Across the end of what is mapped as one leaf.
const EDGE: (u64, u64) = (3, 5);
/// Two ends within one leaf.
const INSIDE: (u64, u64) = (1, 3);
/// A whole leaf.
const WHOLE: (u64, u64) = (0, 4);
/// Beside it, empty at first.
const HOLE: (u64, u64) = (4, 8);
/// All of the first table.
const ALL: (u64, u64) = (0, 16);

/// All of them. One line makes a new one.
pub fn primitives<R: Tried, S: Shape>() -> Vec<Primitive<R, S>> {
    let with = |name, call| Primitive { name, call };
    vec![
        with("map", |c| c.map(HOLE, Leaves::LARGEST)),
        with("map pages", |c| c.map(HOLE, Leaves::PAGES)),
        with("unmap", |c| c.unmap(EDGE)),
        with("unmap all", |c| c.unmap(ALL)),
        with("unmap, map", |c| c.unmap(WHOLE) && c.map(WHOLE, Leaves::LARGEST)),
        with("set_state", |c| c.set_state(EDGE)),
        with("protect whole leaves", |c| c.protect(WHOLE, c.permission())),
        with("protect, one edge", |c| c.protect(EDGE, c.permission())),
        with("protect, two edges", |c| c.protect(INSIDE, c.permission())),
        with("protect, memory type", |c| c.protect(EDGE, R::retype())),
        with("protect_whole", |c| {
            let (change, effect) = c.permission();
            c.change(WHOLE, effect, |map, range| map.protect_whole(range, change))
        }),
        with("invalidate, validate", |c| {
            let valid = |valid| Effect::Bits { set: 0, clear: 0, valid: Some(valid) };
            c.protect(EDGE, (Change::INVALIDATE, valid(false)))
                && c.protect(EDGE, (Change::VALIDATE, valid(true)))
        }),
        with("invalidate whole leaves, split", |c| {
            let effect = Effect::Bits { set: 0, clear: 0, valid: Some(false) };
            let begun = c.begin(WHOLE, effect);
            let one = c.map.protect(c.range(WHOLE), Change::INVALIDATE);
            // Not paid for yet.
            let made = one.is_ok() && c.change(INSIDE, Effect::Nothing, |map, range| map.split_edges(range));
            let invalidated = one.map(Debt::flush).is_ok();
            c.world.end(begun, invalidated);
            c.world.forget();
            made
        }),
        with("invalidate, retype, validate", |c| {
            let valid = |valid| Effect::Bits { set: 0, clear: 0, valid: Some(valid) };
            let begun = [valid(false), R::retype().1, valid(true)].map(|effect| c.begin(WHOLE, effect));
            let changes = [Change::INVALIDATE, R::retype().0, Change::VALIDATE];
            // Paid for when all of it is done.
            let debts = changes.map(|change| c.map.protect(c.range(WHOLE), change));
            let made = debts.map(|debt| debt.map(Debt::flush).is_ok());
            begun.into_iter().zip(made).for_each(|(begun, made)| c.world.end(begun, made));
            c.world.forget();
            made == [true; 3]
        }),
        with("split_at", |c| {
            let at = R::Input::new(2 * PAGE).expect("it is within the map");
            c.change(WHOLE, Effect::Nothing, |map, _| map.split_at(at))
        }),
        with("split_edges", |c| c.change(EDGE, Effect::Nothing, |map, range| map.split_edges(range))),
        with("split_to_pages", |c| c.change(EDGE, Effect::Nothing, |map, range| map.split_to_pages(range))),
        with("split_entry", |c| {
            let at = R::Input::new(PAGE).expect("it is within the map");
            c.change(WHOLE, Effect::Nothing, |map, _| memory::split_entry(map, c.world, at, 2))
        }),
        with("collapse", |c| c.writes(ALL, Effect::Nothing, |w, range| w.collapse(range, Leaves::LARGEST))),
        with("split, collapse", |c| {
            c.change(WHOLE, Effect::Nothing, |map, range| map.split_to_pages(range))
                && c.writes(WHOLE, Effect::Nothing, |w, range| w.collapse(range, Leaves::LARGEST))
        }),
        with("protect_and_collapse", |c| {
            let (change, effect) = c.permission();
            c.writes(WHOLE, effect, |w, range| w.protect_and_collapse(range, change, Leaves::LARGEST))
        }),
        with("split_entry, collapse_entry", |c| {
            let at = R::Input::new(PAGE).expect("it is within the map");
            c.change(WHOLE, Effect::Nothing, |map, _| memory::split_entry(map, c.world, at, 2))
                && c.writes(WHOLE, Effect::Nothing, |w, _| memory::collapse_entry(w, c.world, at, 2))
        }),
        with("translate, walk", |c| c.read(3, (0, 8))),
        with("two debts, merged", |c| {
            let begun = c.begin(WHOLE, R::EXECUTE.1);
            let one = c.map.protect(c.range(WHOLE), R::EXECUTE.0);
            let (change, effect) = R::READ_ONLY;
            let second = c.world.begin((0, 4 * PAGE), effect);
            let two = c.map.protect(c.range(WHOLE), change);
            let made = (one.is_ok(), two.is_ok());
            if let (Ok(one), Ok(mut two)) = (one, two) {
                if let Err(other) = two.merge(one) {
                    other.flush();
                }
                two.flush();
            }
            c.world.end(begun, made.0);
            c.world.end(second, made.1);
            c.world.forget();
            made.0 && made.1
        }),
        with("debt dropped, settle", |c| {
            let (change, effect) = c.permission();
            let begun = c.begin(EDGE, effect);
            let made = c.map.protect(c.range(EDGE), change).map(drop).is_ok();
            c.map.settle();
            c.world.end(begun, made);
            c.world.forget();
            made
        }),
        with("unmap dropped, map", |c| {
            let begun = c.begin(WHOLE, Effect::Set(Value::None));
            let mut cpu = c.map.cpu(c.cpu).expect("each CPU has its slot");
            let made = cpu.write().unmap(c.range(WHOLE)).map(drop).is_ok();
            drop(cpu);
            let mapped = made && c.map(WHOLE, Leaves::PAGES);
            c.map.settle();
            c.world.end(begun, made);
            mapped
        }),
    ]
}

/// What is there at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// A block of level 2 in the first of a table's places.
    Block,
    /// The same and another beside it, so that no edge is at a hole.
    Blocks,
    /// A run of pages, and pages.
    Pages,
    /// A block of level 1.
    Large,
    /// A block of level 2 that hardware may yet mark as accessed and dirty, in a map that was there before.
    Marked,
}

impl Ground {
    /// Those that are mapped by the engine.
    pub const ALL: [Self; 4] = [Self::Block, Self::Blocks, Self::Pages, Self::Large];

    /// Parts: first page, page after the last, leaves.
    fn parts(self) -> &'static [((u64, u64), Leaves)] {
        const BLOCKS: Leaves = Leaves { blocks: true, runs: false };
        match self {
            Self::Block => &[((0, 4), BLOCKS)],
            Self::Blocks => &[((0, 8), Leaves::LARGEST)],
            Self::Pages => &[((0, 4), Leaves { blocks: false, runs: true }), ((4, 5), Leaves::PAGES)],
            Self::Large => &[((0, 16), BLOCKS)],
            Self::Marked => &[],
        }
    }
}

/// A machine and what the engine is told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trial {
    /// Level of FEAT_BBM.
    pub bbm: u8,
    /// FEAT_TLBIRANGE and FEAT_TTL.
    pub more: bool,
    /// Invalidations need not be repeated.
    pub once: bool,
    /// Others can be made to stand still.
    pub quiesce: bool,
    /// What is there at first.
    pub ground: Ground,
}

impl Trial {
    /// On a machine with this level of FEAT_BBM.
    pub const fn new(bbm: u8, ground: Ground) -> Self {
        Self { bbm, more: bbm % 2 == 1, once: true, quiesce: true, ground }
    }

    /// What the engine is told: the truth.
    pub fn options<R: Tried>(&self) -> Options {
        let mut capabilities = Capabilities::CONTIGUOUS | Capabilities::bbm(self.bbm);
        if self.more {
            capabilities |= Capabilities::TLB_RANGE | Capabilities::TLB_LEVEL;
        }
        if self.once {
            capabilities |= Capabilities::TLBI_ONCE;
        }
        Options { tag: R::TAG, scope: Scope::Broadcast, ..Options::new(capabilities) }
    }

    /// The machine.
    pub fn config<R: Tried, S: Shape>(&self, geometry: Geometry<S>, cpus: usize) -> Config {
        Config {
            regime: R::IS,
            layout: Layout::of(geometry, false),
            cpus,
            tables: 14,
            can: [Can { bbm: self.bbm, range: self.more, ttl: self.more, once: self.once }; CPUS],
            hardware: false,
            mark: None,
            asids: [5; CPUS],
            quiesce: self.quiesce,
            off: 0,
            down: 0,
            gate: false,
        }
    }

    /// Explores CPUs that make these calls at once. How often each was made, in all runs together.
    ///
    /// # Errors
    /// What was wrong.
    pub fn explore<R: Tried, S: Shape>(
        &self,
        calls: &[&Primitive<R, S>],
        fault: Option<&'static Fault>,
        lie: impl Fn(&mut Options, &mut Config),
    ) -> Result<(Explored, Vec<usize>), Box<Conviction>> {
        let geometry = geometry::<R, S>();
        // There is always one more that only translates.
        let mut config = self.config::<R, S>(geometry, calls.len().max(2));
        let mut options = self.options::<R>();
        lie(&mut options, &mut config);
        let made: Vec<Cell<usize>> = calls.iter().map(|_| Cell::new(0)).collect();
        let scripts = calls
            .iter()
            .zip(&made)
            .map(|(primitive, made)| {
                Box::new(move |context: &Context<'_, '_, R, S>| {
                    if (primitive.call)(context) {
                        made.set(made.get() + 1);
                    }
                }) as Script<'_, R, S>
            })
            .collect();
        let ground = self.ground;
        let make: Make<'_, R, S> = Box::new(move |world| make::<R, S>(world, geometry, options, ground));
        let case = Case { config, make, scripts, fault };
        let explored = case.explore()?;
        Ok((explored, made.iter().map(Cell::get).collect()))
    }
}

/// The small map: three levels, 64 pages.
pub fn geometry<R: Tried, S: Shape>() -> Geometry<S> {
    let bits = 12 + 3 * S::INDEX_BITS;
    match R::IS.is_stage_2() {
        true => Geometry::stage2(bits),
        false => Geometry::stage1(bits),
    }
    .expect("there is such a map")
}

/// Makes the map and turns all MMUs on.
fn make<'w, R: Tried, S: Shape>(
    world: &'w World,
    geometry: Geometry<S>,
    options: Options,
    ground: Ground,
) -> Mapped<'w, R, S> {
    let map = match ground {
        Ground::Marked => marked::<R, S>(world, geometry, options),
        _ => Map::new(world, geometry, options).expect("there is room"),
    };
    for &(pages, leaves) in ground.parts() {
        let context = Context { world, map: &map, cpu: 0 };
        assert!(context.map(pages, leaves), "nothing was there");
    }
    let root = map.root().get();
    world.with_machine(|machine: &mut Machine| {
        let off = machine.config().off | machine.config().down;
        (0..machine.config().cpus)
            .filter(|cpu| off & 1 << cpu == 0)
            .for_each(|cpu| machine.turn_on(cpu, root));
    });
    map
}

/// Gives a map up, with all MMUs off before or not; what is wrong then.
pub fn destroy<R: Tried, S: Shape>(trial: Trial, off: bool) -> Option<Verdict> {
    let geometry = geometry::<R, S>();
    let world = World::new(Machine::new(trial.config::<R, S>(geometry, 2)), Vec::new(), None);
    let map = make::<R, S>(&world, geometry, trial.options::<R>(), trial.ground);
    if off {
        world.with_machine(|machine| (0..2).for_each(|cpu| machine.turn_off(cpu)));
    }
    memory::destroy(map);
    world.with_machine(|machine| {
        let held = (0..2).find(|&cpu| !machine.may_hold(cpu).leaves.is_empty());
        if let Some(cpu) = held {
            machine.convict(Kind::Stale, format!("CPU {cpu} holds entries of a map that is no more"));
        }
        if machine.memory.used() > 0 {
            machine.convict(Kind::TableLeak, "a map that is no more has tables");
        }
    });
    world.verdict()
}

/// A map that was there before: a block of which hardware has set no flag yet, under DBM.
fn marked<'w, R: Tried, S: Shape>(
    world: &'w World,
    geometry: Geometry<S>,
    options: Options,
) -> Mapped<'w, R, S> {
    const AF: u64 = 1 << 10;
    let clean = if R::IS.is_stage_2() { R::DATA.bits() & !S2_WRITE } else { R::DATA.bits() | RO };
    let bits = clean & !AF | DBM;
    let begun = world.begin((0, 4 * PAGE), Effect::Set(Value::Leaf { shift: SHIFT, bits, valid: true }));
    let mut words = vec![0; S::ENTRIES];
    words[0] = SHIFT | bits | 1;
    let below = memory::table_of(world, &words);
    words[0] = below.get() | 0b11;
    let root = memory::table_of(world, &words);
    for barrier in [Barrier::StoresVisible, Barrier::Synchronize] {
        world.step(Call::Barrier { barrier, scope: Scope::Broadcast });
    }
    world.end(begun, true);
    memory::adopt(world, root, geometry, options)
}

/// Numbers.
pub trait Draw {
    /// One below `limit`.
    fn below(&mut self, limit: u64) -> u64;
}

/// Random calls of one CPU, on pages around the border of two entries of level 1.
pub fn random_calls<R: Tried, S: Shape>(c: &Context<'_, '_, R, S>, calls: usize, draw: &mut impl Draw) {
    let block = S::ENTRIES as u64;
    let border = block * block;
    for _ in 0..calls {
        let unit = [1, 1, S::RUN as u64, block, block][draw.below(5) as usize];
        let start = border - 2 * block + draw.below(4 * block / unit) * unit;
        let size = (1 + draw.below(3)) * unit + draw.below(2) * draw.below(3);
        let mut pages = (start, (start + size).min(border + 2 * block));
        if draw.below(12) == 0 {
            pages = [(0, border), (0, 2 * border), (border, 2 * border)][draw.below(3) as usize];
        }
        let value = R::Input::new(pages.0 * PAGE).expect("it is within the map");
        match draw.below(16) {
            0..=2 => _ = c.map(pages, if draw.below(3) == 0 { Leaves::PAGES } else { Leaves::LARGEST }),
            3 => _ = c.unmap(pages),
            4 => _ = c.set_state(pages),
            5..=6 => _ = c.protect(pages, R::READ_ONLY),
            7 => _ = c.protect(pages, R::EXECUTE),
            8 => _ = c.protect(pages, R::retype()),
            9 => {
                let valid = Effect::Bits { set: 0, clear: 0, valid: Some(draw.below(2) == 0) };
                let Effect::Bits { valid: Some(becomes), .. } = valid else { continue };
                c.protect(pages, (if becomes { Change::VALIDATE } else { Change::INVALIDATE }, valid));
            }
            10 => _ = c.change(pages, Effect::Nothing, |map, range| map.split_edges(range)),
            11 => _ = c.change(pages, Effect::Nothing, |map, _| map.split_at(value)),
            12 if pages.1 - pages.0 <= 2 * block => {
                c.change(pages, Effect::Nothing, |map, range| map.split_to_pages(range));
            }
            13 => _ = c.writes(pages, Effect::Nothing, |w, range| w.collapse(range, Leaves::LARGEST)),
            14 => {
                let begun = c.begin(pages, R::READ_ONLY.1);
                let made = c.map.protect(c.range(pages), R::READ_ONLY.0).map(drop).is_ok();
                c.map.settle();
                c.world.end(begun, made);
            }
            _ => _ = c.read(pages.0, (pages.0, pages.1.min(pages.0 + 4))),
        }
    }
}

/// A run of so many CPUs that make so many random calls each.
///
/// # Errors
/// What was wrong.
pub fn run_random<R: Tried, S: Shape, D: Draw>(
    trial: Trial,
    (cpus, calls): (usize, usize),
    fault: Option<&'static Fault>,
    mut draw: impl FnMut(u64) -> D,
) -> Result<u64, Box<Conviction>> {
    let geometry = geometry::<R, S>();
    let options = trial.options::<R>();
    let config = Config { tables: 160, ..trial.config::<R, S>(geometry, cpus) };
    let draws: Vec<_> = (0..cpus as u64).map(|cpu| std::cell::RefCell::new(draw(cpu))).collect();
    let scripts = draws
        .iter()
        .map(|draw| {
            Box::new(move |c: &Context<'_, '_, R, S>| random_calls(c, calls, &mut *draw.borrow_mut()))
                as Script<'_, R, S>
        })
        .collect();
    let make: Make<'_, R, S> = Box::new(move |world| make::<R, S>(world, geometry, options, trial.ground));
    let case = Case { config, make, scripts, fault };
    let mut who = draw(cpus as u64);
    case.run_once(|limit| who.below(limit as u64) as usize)
}
