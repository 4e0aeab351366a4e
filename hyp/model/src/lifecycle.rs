//! CPUs that come, are let in, and go: [`hyp::caps`] on the machine.
//!
//! Invariants:
//! - Who lets in is the real one ([`hyp::caps::admission`], [`mailbox`], [`lifecycle`](hyp::caps::lifecycle),
//!   [`gate`](hyp::caps::gate)); the newcomer's side, which is assembly, is written here again, load by load and store by store.
//! - A CPU has levels of its own; the engine is told what the boot CPU has, and what the admission makes of it, and nothing else.
//! - A mistake is one of a few lines here ([`Plan`]), or one at the seam ([`Fault`]); without it the same steps are right.

use std::cell::{Cell, RefCell};

use hyp::caps::admission::{Admission, OfPolicy, leaves_of_all};
use hyp::caps::detect::{IdRegisters, capabilities};
use hyp::caps::lifecycle::{Finalized, Phase};
use hyp::caps::mailbox::{self, Lines};
use hyp::caps::policy::{Late, Policy};
use hyp::mapping::{Address, Barrier, El2, Leaves, Map, Options, Scope, Shape, Stage2, Tiny, Tlbi};

use crate::CPUS;
use crate::cache::{LINE, Maintenance};
use crate::expect::Effect;
use crate::explore::{Case, Context, Conviction, Explored, Make, Script};
use crate::faults::{Fault, NONE, On};
use crate::machine::{Call, Can, Config, Machine};
use crate::memory::{self, World};
use crate::primitive::{Draw, Ground, Primitive, Trial, Tried, geometry, primitives, random_calls};
use crate::verdict::Kind;

/// The CPU that comes.
const NEW: usize = 1;
/// What it is told, and what it says: a line each.
const DOWN: u64 = 0x10;
const UP: u64 = 0x11;
/// Words of the latter: registers that are not zero here, and the ticket's number.
const MIDR: usize = 0;
const MMFR2: usize = 3;
const ISAR0: usize = 5;
const NUMBER: usize = 7;

const ALL: (u64, u64) = (0, 16);

/// What a CPU says of itself (DDI 0487 D24.2: `ID_AA64MMFR2_EL1.BBM` and `TTL`, `ID_AA64ISAR0_EL1.TLB`; Cortex-A76 for erratum 1286807).
pub fn registers(can: Can) -> IdRegisters {
    IdRegisters {
        midr: if can.once { 0 } else { 0x414f_d0b0 },
        mmfr2: u64::from(can.bbm) << 52 | u64::from(can.ttl) << 48,
        isar0: if can.range { 2 << 56 } else { 0 },
        ..IdRegisters::default()
    }
}

/// What is planted in the protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Plan {
    /// Nothing.
    #[default]
    Right,
    /// The newcomer turns its MMU on, then looks whether it may.
    EarlyMmu,
    /// It does not wait for an answer.
    GoesOnUntold,
    /// It does not invalidate what its TLB holds from an earlier life.
    KeepsTlb,
    /// It does so at first, and forgets it when it comes again.
    KeepsTlbAgain,
    /// It does not wait for that to be complete.
    NoDsbAfterTlbi,
    /// It turns its MMU on with instructions fetched ahead.
    NoIsb,
    /// It goes on although it was denied.
    GoesOnDenied,
    /// It says that it has what the boot CPU has.
    Overstates,
    /// It does not enter the gate.
    NeverEnters,
    /// It answers with an atomic.
    Swaps,
    /// It writes the ticket's number without a DSB after the registers.
    NumberFirst,
    /// Who lets in does not clean the line that it writes.
    NoClean,
    /// Who lets in does not invalidate the line that it reads.
    NoInvalidate,
    /// Who lets in takes the registers that it has read with the number, not those that are there then.
    OneLook,
    /// Who lets in keeps a count in the line that the newcomer writes.
    SharedLine,
    /// Who gives up waiting does not revoke.
    NotRevoked,
    /// The newcomer is let in, then maps are weakened and repainted.
    ReleasedFirst,
    /// The map becomes weaker beside what is going on in it.
    NotWaited,
    /// The set is what the boot CPU has.
    WithoutNewcomer,
    /// After the admission somebody works under the set of before.
    Raised,
}

/// CPUs that come, and what they do.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Whose map it is.
    pub on: On,
    /// The CPU that is there at first.
    pub boot: Can,
    /// The one that comes.
    pub new: Can,
    /// Linear maps.
    pub policy: Policy,
    /// Who comes after the set was final.
    pub late: Late,
    /// CPUs after which all are known.
    pub known: usize,
    /// What the boot CPU calls before it lets the other in.
    pub before: &'static [&'static str],
    /// After that.
    pub after: &'static [&'static str],
    /// What the other calls, each time that it has come.
    pub then: &'static [&'static str],
    /// How often it comes.
    pub lives: u64,
    /// It does not come again by a ticket, but wakes from a suspend that has lost its context.
    pub suspends: bool,
    /// Who lets it in waits for its report for as long as it takes.
    pub patient: bool,
    /// Tables of the machine.
    pub tables: usize,
    /// A third CPU, as able as the first, and what it calls meanwhile.
    pub third: &'static [&'static str],
}

impl Scenario {
    /// Of two levels of FEAT_BBM.
    pub const fn new(on: On, boot: u8, new: u8, policy: Policy) -> Self {
        Self {
            on,
            boot: Can::of(boot),
            new: Can::of(new),
            policy,
            late: Late::Admit,
            known: 2,
            before: &[],
            after: &[],
            then: &[],
            lives: 1,
            suspends: false,
            patient: false,
            tables: 14,
            third: &[],
        }
    }

    /// Explores it.
    ///
    /// # Errors
    /// What is wrong.
    pub fn explore(&self, plan: Plan, fault: Option<&'static Fault>) -> Result<Admitted, Box<Conviction>> {
        match self.on {
            On::Stage2 => self.explore_in::<Stage2>(plan, fault),
            _ => self.explore_in::<El2>(plan, fault),
        }
    }

    fn explore_in<R: Tried>(
        &self,
        plan: Plan,
        fault: Option<&'static Fault>,
    ) -> Result<Admitted, Box<Conviction>> {
        let all = primitives::<R, Tiny>();
        let record = Record::default();
        let calls = Calls::Named(&all);
        let case = self.case(&calls, plan, fault, &record);
        let explored = case.explore()?;
        Ok(record.admitted(explored))
    }

    /// One run of three CPUs, of which the last is there all the time; each makes so many random calls where the scenario has calls.
    ///
    /// # Errors
    /// What is wrong.
    pub fn run_random<D: Draw>(
        &self,
        plan: Plan,
        calls: usize,
        draw: impl Fn(u64) -> D,
    ) -> Result<Admitted, Box<Conviction>> {
        match self.on {
            On::Stage2 => self.run_random_in::<Stage2, D>(plan, calls, draw),
            _ => self.run_random_in::<El2, D>(plan, calls, draw),
        }
    }

    fn run_random_in<R: Tried, D: Draw>(
        &self,
        plan: Plan,
        calls: usize,
        draw: impl Fn(u64) -> D,
    ) -> Result<Admitted, Box<Conviction>> {
        let draws: Vec<_> = (0..3).map(|cpu| RefCell::new(draw(cpu))).collect();
        let random = move |c: &Context<'_, '_, R, Tiny>| {
            random_calls(c, calls, &mut *draws[c.cpu].borrow_mut());
        };
        let (record, calls) = (Record::default(), Calls::Random(&random));
        let scenario = Self { tables: 160, third: SPLIT, ..*self };
        let case = scenario.case(&calls, plan, None, &record);
        let mut who = draw(3);
        let steps = case.run_once(|limit| who.below(limit as u64) as usize)?;
        Ok(record.admitted(Explored { longest: steps as usize, ..Explored::default() }))
    }

    /// The machine, its map, and what each CPU does.
    fn case<'c, R: Tried, S: Shape>(
        &'c self,
        calls: &'c Calls<'c, R, S>,
        plan: Plan,
        fault: Option<&'static Fault>,
        record: &'c Record,
    ) -> Case<'c, R, S> {
        let actor = move |number: usize| {
            Box::new(move |c: &Context<'_, '_, R, S>| {
                let actor = Actor { c, scenario: self, calls, plan, record };
                match number {
                    0 => actor.first(),
                    NEW => actor.newcomer(),
                    _ => actor.third(),
                }
            }) as Script<'c, R, S>
        };
        let cpus = if self.third.is_empty() { 2 } else { 3 };
        let make: Make<'c, R, S> = Box::new(move |world| self.make::<R, S>(world));
        Case { config: self.config::<R, S>(cpus), make, scripts: (0..cpus).map(actor).collect(), fault }
    }

    fn config<R: Tried, S: Shape>(&self, cpus: usize) -> Config {
        let mut config = Trial::new(0, Ground::Block).config::<R, S>(geometry::<R, S>(), cpus);
        config.can = [self.boot; CPUS];
        config.can[NEW] = self.new;
        config.down = 1 << NEW;
        config.tables = self.tables;
        config.gate = !R::IS.is_stage_2();
        config
    }

    /// The boot CPU makes the map, of what its policy has at first.
    fn make<'w, R: Tried, S: Shape>(&self, world: &'w World) -> memory::Mapped<'w, R, S> {
        let set = capabilities(&registers(self.boot));
        world.boot(set, self.known);
        let options = Options { tag: R::TAG, scope: Scope::Broadcast, ..Options::new(set) };
        let map = Map::new(world, geometry::<R, S>(), options).expect("there is room");
        let linear = !R::IS.is_stage_2();
        let first = self.policy.leaves(set, Phase::Boot);
        let leaves = if linear { first } else { Leaves { blocks: true, runs: false } };
        let context = Context { world, map: &map, cpu: 0 };
        assert!(context.map((0, 4), Leaves { runs: false, ..leaves }), "nothing was there");
        let root = map.root().get();
        world.with_machine(|machine: &mut Machine| {
            let down = machine.config().down;
            let on = (0..machine.config().cpus).filter(|cpu| down & 1 << cpu == 0);
            on.for_each(|cpu| machine.turn_on(cpu, root));
        });
        map
    }
}

/// What became of the newcomer, in all runs together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Admitted {
    /// What was explored.
    pub explored: Explored,
    /// Let in.
    pub released: usize,
    /// Sent away.
    pub denied: usize,
    /// Too late.
    pub unheard: usize,
    /// It has come to translate.
    pub arrived: usize,
    /// Calls that were made, of each CPU.
    pub made: [usize; 3],
    /// Calls that were refused.
    pub refused: usize,
}

#[derive(Debug, Default)]
struct Record {
    released: Cell<usize>,
    denied: Cell<usize>,
    unheard: Cell<usize>,
    arrived: Cell<usize>,
    made: [Cell<usize>; 3],
    refused: Cell<usize>,
}

fn count(cell: &Cell<usize>) {
    cell.set(cell.get() + 1);
}

impl Record {
    fn admitted(&self, explored: Explored) -> Admitted {
        Admitted {
            explored,
            released: self.released.get(),
            denied: self.denied.get(),
            unheard: self.unheard.get(),
            arrived: self.arrived.get(),
            made: self.made.each_ref().map(Cell::get),
            refused: self.refused.get(),
        }
    }
}

/// What became of a ticket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Released,
    Denied,
    Unheard,
}

/// A CPU in a scenario.
struct Actor<'x, 'a, 'w, R: Tried, S: Shape> {
    c: &'x Context<'a, 'w, R, S>,
    scenario: &'x Scenario,
    calls: &'x Calls<'x, R, S>,
    plan: Plan,
    record: &'x Record,
}

/// What CPUs call where a scenario has calls.
enum Calls<'c, R: Tried, S: Shape> {
    /// What it names.
    Named(&'c [Primitive<R, S>]),
    /// Anything.
    Random(&'c dyn Fn(&Context<'_, '_, R, S>)),
}

/// The mailbox, from the side of who lets in.
struct Here<'w> {
    world: &'w World,
    plan: Plan,
    last: RefCell<[u64; LINE]>,
}

impl Lines for Here<'_> {
    fn publish(&self, word: u64) {
        if self.plan == Plan::NotRevoked && word == 0 {
            return;
        }
        let cpu = self.world.current();
        self.world.with_machine(|machine| machine.caches.publish(cpu, DOWN, true));
        write(self.world, DOWN, 0, &[word]);
        if self.plan != Plan::NoClean {
            self.world.ask(Call::Maintain { line: DOWN, maintenance: Maintenance::Clean });
        }
        self.world.ask(Call::BarrierSystem);
        self.world.with_machine(|machine| machine.caches.publish(cpu, DOWN, false));
    }
    fn look(&self) -> [u64; LINE] {
        if self.plan == Plan::OneLook && self.last.borrow()[NUMBER] != 0 {
            return *self.last.borrow();
        }
        let cpu = self.world.current();
        self.world.with_machine(|machine| machine.caches.look(cpu, UP));
        if self.plan != Plan::NoInvalidate {
            self.world.ask(Call::Maintain { line: UP, maintenance: Maintenance::Invalidate });
        }
        self.world.ask(Call::BarrierSystem);
        let mut words = [0; LINE];
        // The loads are in no order: the worst is this one. The other registers are zero.
        for word in [MIDR, MMFR2, ISAR0, NUMBER] {
            words[word] = self.world.ask(Call::ReadLine { line: UP, word });
        }
        *self.last.borrow_mut() = words;
        words
    }
}

fn write(world: &World, line: u64, first: usize, words: &[u64]) {
    let mut values = [0; LINE];
    values[..words.len()].copy_from_slice(words);
    world.ask(Call::WriteLine { line, first, count: words.len(), values });
}

impl<R: Tried, S: Shape> Actor<'_, '_, '_, R, S> {
    /// Calls of the engine, one after the other. Whoever makes them is known by `place` from here on.
    fn calls(&self, c: &Context<'_, '_, R, S>, names: &[&str], place: u64) {
        let all = match self.calls {
            Calls::Named(all) => all,
            Calls::Random(calls) => {
                count(&self.record.made[c.cpu]);
                return calls(c);
            }
        };
        for (number, name) in names.iter().enumerate() {
            let named = all.iter().find(|one| one.name == *name).expect("there is such a call");
            self.at(place << 8 | number as u64);
            match (named.call)(c) {
                true => count(&self.record.made[c.cpu]),
                false => count(&self.record.refused),
            }
        }
    }
    /// The CPU keeps nothing of what it was told but where it is.
    fn at(&self, place: u64) {
        self.c.world.forget();
        self.c.world.remember(self.c.cpu, place);
    }

    /// The boot CPU, which lets the other in.
    fn first(&self) {
        let (c, world, scenario) = (self.c, self.c.world, self.scenario);
        world.enter();
        self.join(world.starting().arrived(c.cpu));
        self.calls(c, scenario.before, 1);
        let mut number = 0;
        while number < scenario.lives {
            number += 1;
            self.at(2 << 8 | number);
            let outcome = self.admit(number);
            self.at(3 << 8 | number << 2 | outcome as u64);
            if outcome != Outcome::Released || scenario.suspends {
                break;
            }
            // CPU_ON is for a CPU that is off.
            while number < scenario.lives && world.ask(Call::IsPowered { cpu: NEW }) != 0 {
                world.pass();
                world.ask(Call::Wait);
            }
        }
        if self.plan == Plan::Raised {
            let options = Options {
                tag: R::TAG,
                scope: Scope::Broadcast,
                ..Options::new(capabilities(&registers(scenario.boot)))
            };
            let map = memory::adopt(world, c.map.root(), c.map.geometry(), options);
            self.calls(&Context { world, map: &map, cpu: c.cpu }, scenario.after, 4);
        } else {
            self.calls(c, scenario.after, 4);
        }
        world.leave();
    }

    /// CPU_ON, from the ticket to its end.
    fn admit(&self, number: u64) -> Outcome {
        let (c, world, scenario) = (self.c, self.c.world, self.scenario);
        let lines = Here { world, plan: self.plan, last: RefCell::default() };
        let offered = mailbox::offer(&lines, number);
        world.ask(Call::PowerOn { cpu: NEW });
        let mut counted = self.plan != Plan::SharedLine;
        let reported = offered.report(|| {
            if !std::mem::replace(&mut counted, true) {
                write(world, UP, 2, &[1]);
            }
            let over = !scenario.patient && world.ask(Call::Clock) != 0;
            if !over {
                world.pass();
                world.ask(Call::Relax);
            }
            !over
        });
        let Ok(reported) = reported else {
            count(&self.record.unheard);
            return Outcome::Unheard;
        };
        let set = match self.plan {
            Plan::WithoutNewcomer => capabilities(&registers(scenario.boot)),
            _ => capabilities(&reported.registers),
        };
        let (policy, late) = (scenario.policy, scenario.late);
        let admission = Admission { starting: world.starting(), policy, late };
        let map: &dyn hyp::caps::admission::Shared =
            if R::IS.is_stage_2() { c.map } else { &OfPolicy(c.map) };
        let result = match self.plan {
            Plan::ReleasedFirst => {
                reported.release();
                let _ = admission.admit(set, &[map]);
                count(&self.record.released);
                return Outcome::Released;
            }
            Plan::NotWaited => {
                // Another gate, which knows nothing of who is in this one's.
                let options =
                    Options { tag: R::TAG, scope: Scope::Broadcast, ..Options::new(c.map.capabilities()) };
                let other = memory::adopt::<R, S>(world, c.map.root(), c.map.geometry(), options);
                admission.admit(set, &[&other])
            }
            _ => admission.admit(set, &[map]),
        };
        match result {
            Ok(_) => {
                reported.release();
                count(&self.record.released);
                Outcome::Released
            }
            Err(_) => {
                reported.deny();
                count(&self.record.denied);
                Outcome::Denied
            }
        }
    }

    /// All are known: a map that began in pages may become blocks.
    fn join(&self, all: Option<Finalized<'_>>) {
        let c = self.c;
        if R::IS.is_stage_2() {
            return;
        }
        if let Some(leaves) = all.and_then(|all| leaves_of_all(&all, c.map, self.scenario.policy)) {
            c.writes(ALL, Effect::Nothing, |w, range| w.collapse(range, leaves));
        }
    }

    /// The CPU that comes, from its reset on.
    fn newcomer(&self) {
        let (c, world, scenario) = (self.c, self.c.world, self.scenario);
        for life in 0..scenario.lives {
            self.at(5 << 8 | life);
            // A suspend ends by an interrupt.
            if life > 0 && scenario.suspends {
                world.ask(Call::PowerOn { cpu: NEW });
            }
            world.ask(Call::Start);
            if !self.ask_admission(life) {
                world.ask(Call::PowerOff);
                continue;
            }
            self.at(6 << 8 | life);
            match self.plan {
                Plan::NeverEnters => world.with_machine(|machine| machine.roams(NEW, true)),
                _ => world.enter(),
            }
            count(&self.record.arrived);
            self.join(world.starting().arrived(c.cpu));
            self.calls(c, scenario.then, 7 << 8 | life);
            self.at(8 << 8 | life);
            if life + 1 < scenario.lives {
                let lines = Here { world, plan: self.plan, last: RefCell::default() };
                // Outside, it may not come back for long.
                match scenario.suspends {
                    true => mailbox::keep(&lines),
                    false => mailbox::revoke(&lines),
                }
                world.leave();
                world.ask(Call::TurnOff);
                world.ask(Call::PowerOff);
            } else {
                world.leave();
            }
        }
    }

    fn read_down(&self) -> u64 {
        let world = self.c.world;
        world.with_machine(|machine| machine.caches.look(NEW, DOWN));
        world.ask(Call::ReadLine { line: DOWN, word: 0 })
    }

    /// What the assembly of [`mailbox`] does, and what its caller does then; whether the CPU was let in.
    fn ask_admission(&self, life: u64) -> bool {
        let (world, plan) = (self.c.world, self.plan);
        if plan == Plan::EarlyMmu {
            self.turn_on(life);
        }
        let mut word = self.read_down();
        loop {
            match word & 3 {
                1 if plan == Plan::EarlyMmu => return true,
                2 => break,
                3 if plan == Plan::GoesOnDenied => break,
                1 => {}
                _ => return false,
            }
            let own = if plan == Plan::Overstates { self.scenario.boot } else { self.scenario.new };
            let (said, number) = (registers(own), word >> 2);
            let IdRegisters { midr, mmfr0, mmfr1, mmfr2, mmfr3, isar0, pfr1 } = said;
            world.with_machine(|machine| machine.caches.publish(NEW, UP, true));
            write(world, UP, MIDR, &[midr, mmfr0, mmfr1, mmfr2, mmfr3, isar0, pfr1]);
            if plan != Plan::NumberFirst {
                world.ask(Call::BarrierSystem);
            }
            match plan {
                Plan::Swaps => {
                    world.ask(Call::SwapLine { line: UP, word: NUMBER, value: number });
                }
                _ => write(world, UP, NUMBER, &[number]),
            }
            world.ask(Call::BarrierSystem);
            world.with_machine(|machine| machine.caches.publish(NEW, UP, false));
            if plan == Plan::GoesOnUntold {
                break;
            }
            let before = word;
            while word == before {
                world.ask(Call::Relax);
                word = self.read_down();
            }
        }
        self.turn_on(life);
        true
    }

    fn turn_on(&self, life: u64) {
        let world = self.c.world;
        let keeps = self.plan == Plan::KeepsTlb || self.plan == Plan::KeepsTlbAgain && life > 0;
        if !keeps {
            world.ask(Call::Tlbi { operation: Tlbi::All, scope: Scope::Local, operand: 0 });
            if self.plan != Plan::NoDsbAfterTlbi {
                world.ask(Call::Barrier { barrier: Barrier::Complete, scope: Scope::Local });
            }
            if self.plan != Plan::NoIsb {
                world.ask(Call::Barrier { barrier: Barrier::Synchronize, scope: Scope::Local });
            }
        }
        world.ask(Call::TurnOn { root: self.c.map.root().get() });
    }

    /// A CPU that is there all the time.
    fn third(&self) {
        self.c.world.enter();
        self.calls(self.c, self.scenario.third, 9);
        self.c.world.leave();
    }
}

/// A mistake in letting a CPU in.
#[derive(Debug)]
pub struct Mistake {
    /// What is wrong.
    pub name: &'static str,
    /// In the protocol.
    pub plan: Plan,
    /// At the seam.
    pub fault: Option<&'static Fault>,
    /// Where it is tried.
    pub scenario: Scenario,
    /// What the machine says.
    pub kind: Kind,
}

const EDGE: &[&str] = &["protect, one edge"];
const SPLIT: &[&str] = &["split_at"];
const WHOLE: &[&str] = &["protect whole leaves"];

/// A map of blocks that a CPU of level 3 makes, which lets in one of level 0, and splits then.
const SPLITS: Scenario = Scenario { after: EDGE, ..Scenario::new(On::El2, 3, 0, Policy::KeepBlocks) };
const SPLITS_2: Scenario = Scenario { on: On::Stage2, ..SPLITS };
/// The newcomer must have its invalidations repeated.
const REPEATS: Scenario = Scenario {
    new: Can { once: false, ..Can::of(3) },
    after: WHOLE,
    ..Scenario::new(On::El2, 3, 3, Policy::KeepBlocks)
};

const fn mistake(name: &'static str, plan: Plan, scenario: Scenario, kind: Kind) -> Mistake {
    Mistake { name, plan, fault: None, scenario, kind }
}

static OPENS_EARLY: Fault = Fault {
    ask: |_, world, call| {
        if matches!(call, Call::Tlbi { .. }) {
            world.open_gate();
        }
        world.step(call)
    },
    ..NONE
};

/// All of them.
pub static MISTAKES: &[Mistake] = &[
    // Who comes.
    mistake("the MMU is on before the admission", Plan::EarlyMmu, SPLITS, Kind::SizeConflict),
    mistake("the MMU is on before the admission, stage 2", Plan::EarlyMmu, SPLITS_2, Kind::SizeConflict),
    mistake("it goes on without an answer", Plan::GoesOnUntold, SPLITS, Kind::SizeConflict),
    mistake(
        "it goes on although it was denied",
        Plan::GoesOnDenied,
        Scenario { late: Late::Deny, known: 1, ..SPLITS },
        Kind::SizeConflict,
    ),
    mistake("it says that it has more than it has", Plan::Overstates, SPLITS, Kind::SizeConflict),
    mistake(
        "it says that it has FEAT_TLBIRANGE: a range form reaches nothing there",
        Plan::Overstates,
        Scenario { new: Can { range: false, ..Can::of(3) }, policy: Policy::PagesFirst, known: 3, ..REPEATS },
        Kind::Stale,
    ),
    mistake(
        "it says that it has FEAT_TLBIRANGE, and has it not",
        Plan::Overstates,
        Scenario {
            new: Can { range: false, ..Can::of(3) },
            policy: Policy::PagesFirst,
            known: 3,
            after: &[],
            then: WHOLE,
            ..REPEATS
        },
        Kind::Undefined,
    ),
    mistake("it says that one invalidation suffices", Plan::Overstates, REPEATS, Kind::Stale),
    mistake("its TLB is not invalidated before its MMU is on", Plan::KeepsTlb, SPLITS, Kind::Stale),
    mistake(
        "its TLB is not invalidated when it comes again",
        Plan::KeepsTlbAgain,
        Scenario { lives: 2, ..SPLITS },
        Kind::Stale,
    ),
    mistake(
        "its TLB is not invalidated after a suspend",
        Plan::KeepsTlbAgain,
        Scenario { lives: 2, suspends: true, ..SPLITS },
        Kind::Stale,
    ),
    mistake("no DSB after its own invalidation", Plan::NoDsbAfterTlbi, SPLITS, Kind::Stale),
    mistake("no ISB before its MMU is on", Plan::NoIsb, SPLITS, Kind::NotSynchronized),
    mistake("an atomic with the MMU off", Plan::Swaps, SPLITS, Kind::ExclusiveWithMmuOff),
    mistake("no DSB between its registers and the number", Plan::NumberFirst, REPEATS, Kind::Stale),
    // Who lets in.
    mistake("the line down is not cleaned", Plan::NoClean, SPLITS, Kind::StaleMemory),
    mistake("the line up is not invalidated", Plan::NoInvalidate, SPLITS, Kind::StaleMemory),
    mistake("two writers share a line", Plan::SharedLine, SPLITS, Kind::StaleMemory),
    mistake("registers read before the number are believed", Plan::OneLook, REPEATS, Kind::Stale),
    mistake("the ticket is not revoked", Plan::NotRevoked, SPLITS, Kind::Deadlock),
    mistake(
        "it is let in before the map is repainted",
        Plan::ReleasedFirst,
        Scenario { policy: Policy::Repaint, after: &[], ..SPLITS },
        Kind::SizeConflict,
    ),
    mistake(
        "it is let in before the map is weaker",
        Plan::ReleasedFirst,
        Scenario { after: &[], then: EDGE, ..SPLITS },
        Kind::SizeConflict,
    ),
    mistake("the set without the newcomer's", Plan::WithoutNewcomer, SPLITS, Kind::SizeConflict),
    mistake("the set without the newcomer's, stage 2", Plan::WithoutNewcomer, SPLITS_2, Kind::SizeConflict),
    mistake("the set is raised again", Plan::Raised, SPLITS, Kind::SizeConflict),
    mistake(
        "an operation begun under the larger set is not waited for",
        Plan::NotWaited,
        Scenario { after: &[], third: SPLIT, ..SPLITS },
        Kind::SizeConflict,
    ),
    mistake(
        "an operation begun under the larger set is not waited for, stage 2",
        Plan::NotWaited,
        Scenario { after: &[], third: SPLIT, ..SPLITS_2 },
        Kind::SizeConflict,
    ),
    // The gate.
    Mistake {
        name: "the gate opened before the invalidation",
        plan: Plan::Right,
        fault: Some(&OPENS_EARLY),
        scenario: Scenario { boot: Can::of(0), then: EDGE, ..SPLITS },
        kind: Kind::TransientFault,
    },
    mistake(
        "it accesses the map without having come in by the gate",
        Plan::NeverEnters,
        Scenario { boot: Can::of(0), then: EDGE, ..SPLITS },
        Kind::TransientFault,
    ),
];
