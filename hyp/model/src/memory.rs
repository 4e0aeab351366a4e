//! The seam: the engine's traits, fulfilled by a machine, and CPUs as coroutines that stop before each step.
//!
//! Invariants:
//! - Everything the engine asks for becomes a [`Call`] here, goes through the planted fault if there is one, and is then a step of the
//!   machine. Steps that others cannot notice ([`Call::is_private`]) are taken at once; before any other the coroutine stops,
//!   and goes on when it is told to.
//! - What each step gave is in a log; with a log to replay, steps take what it says, and the machine is not asked.
//! - This is the only place of the crate with `unsafe`: no memory is behind a table's address, so what the traits ask for is true of
//!   whatever they are given; what is unsafe are the coroutines.

use std::cell::{Cell, RefCell};
use std::hash::Hasher;

use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use hyp::caps::gate::{Closed, Gate, Here};
use hyp::caps::lifecycle::{Lifecycle, Starting};
use hyp::mapping::{
    Address, Barrier, Capabilities, Debt, Geometry, Map, MapError, Mmu, Options, Pa, Quiesce, Regime, Scope,
    Shape, Slot, TableMemory, TablePool, Tlbi, Writer,
};

use crate::CPUS;
use crate::cache::Maintenance;
use crate::expect::{Begun, Effect};
use crate::explore::Hash64;
use crate::faults::{Fault, Planted};
use crate::machine::{Call, Machine};
use crate::verdict::{Kind, Verdict};

/// How steps are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// At once.
    Direct,
    /// When the coroutine is told to.
    Scheduled,
    /// Not at all: the run is given up.
    Over,
}

/// What a CPU looks at while it waits: a word of a table, and all that it has seen of lines.
type Seen = (Option<(u64, usize)>, u64);

/// What a CPU has done since it began to wait.
#[derive(Clone, Copy, Debug, Default)]
struct Spin {
    /// The history when it waited last, and what it had seen before.
    last: Option<(u64, Seen)>,
    /// It has only read since.
    passive: bool,
    seen: Seen,
    /// It has looked at the clock, so it goes on by itself.
    timed: bool,
}

impl Spin {
    fn repeats(&self) -> Option<u64> {
        let (history, seen) = self.last?;
        (self.passive && seen == self.seen).then_some(history)
    }
}

/// A machine, as the engine sees it.
#[derive(Debug)]
pub struct World {
    machine: RefCell<Machine>,
    mode: Cell<Mode>,
    cpu: Cell<usize>,
    log: RefCell<Vec<u64>>,
    /// How much of the log was replayed.
    replayed: Cell<usize>,
    /// The first of them everybody's, unless a fault is that each has its own.
    slots: [[Slot; CPUS]; CPUS],
    yielders: [Cell<*const Yielder<(), Call>>; CPUS],
    histories: [Cell<u64>; CPUS],
    spins: [Cell<Spin>; CPUS],
    /// Times that each CPU has set tables aside in this call.
    reserves: [Cell<u64>; CPUS],
    planted: Option<Planted>,
    /// The way that the next step goes.
    choice: Cell<usize>,
    /// Of the lifecycle, once the boot CPU has spoken.
    starting: Cell<Option<Starting<'static>>>,
    lifecycle: Lifecycle,
    /// Of the gate, while it is closed.
    closed: RefCell<Option<Closed<'static>>>,
    gate: Gate<InWorld, CPUS>,
}

thread_local! {
    /// The world whose CPUs run on this thread.
    static WORLD: Cell<*const World> = const { Cell::new(std::ptr::null()) };
}

/// Where the gate stands: in the world of this thread.
#[derive(Debug)]
struct InWorld;

fn here() -> &'static World {
    // SAFETY: who resumes a CPU has set it to its world, which the CPU's script refers to too; nobody keeps the reference.
    unsafe { &*WORLD.get() }
}

impl Here for InWorld {
    fn number(&self) -> usize {
        here().current()
    }
    fn is_pinned(&self, _: u64, _: u64) -> bool {
        false
    }
    fn settle(&self) {
        let world = here();
        world.with_machine(|machine| machine.settle(world.current()));
    }
    fn relax(&self) {
        let world = here();
        world.with_machine(|machine| machine.stands(world.current(), true));
        world.ask(Call::Wait);
    }
}

impl World {
    /// A machine of which the first steps are known: all of `log`, after which `machine` goes on.
    pub fn new(machine: Machine, log: Vec<u64>, fault: Option<&'static Fault>) -> Self {
        Self {
            machine: RefCell::new(machine),
            mode: Cell::new(Mode::Direct),
            cpu: Cell::new(0),
            log: RefCell::new(log),
            replayed: Cell::new(0),
            slots: Default::default(),
            yielders: [const { Cell::new(std::ptr::null()) }; CPUS],
            histories: Default::default(),
            spins: Default::default(),
            reserves: Default::default(),
            planted: fault.map(Planted::new),
            choice: Cell::new(0),
            starting: Cell::new(None),
            lifecycle: Lifecycle::new(),
            closed: RefCell::default(),
            gate: Gate::new(InWorld),
        }
    }

    /// The machine as it is.
    pub fn machine(&self) -> std::cell::Ref<'_, Machine> {
        self.machine.borrow()
    }
    /// The log so far.
    pub fn log(&self) -> Vec<u64> {
        self.log.borrow().clone()
    }
    /// What is wrong.
    pub fn verdict(&self) -> Option<Verdict> {
        self.machine().verdict().cloned()
    }
    /// What all CPUs have seen.
    pub fn history(&self, cpu: usize) -> u64 {
        self.histories[cpu].get()
    }
    /// Adds to what a CPU has seen.
    pub fn remember(&self, cpu: usize, value: u64) {
        let mut hash = Hash64::from(self.histories[cpu].get());
        hash.write_u64(value);
        self.histories[cpu].set(hash.finish());
    }
    /// Whether a CPU that is about to wait has looked again at what it waited for, and at nothing else.
    pub fn repeats(&self, cpu: usize) -> bool {
        let spin = self.spins[cpu].get();
        !spin.timed && spin.repeats().is_some()
    }
    /// The way that the next step goes, of [`Machine::choices`].
    pub fn choose(&self, choice: usize) {
        self.choice.set(choice);
    }
    /// What software knows beside the map.
    pub fn fingerprint(&self, into: &mut impl Hasher) {
        self.lifecycle.fingerprint(into);
        self.gate.fingerprint(into);
    }

    /// The boot CPU says what it has, and how many CPUs there are to come with it.
    pub fn boot(&self, set: Capabilities, cpus: usize) {
        // SAFETY: the token stays within the world, which has the lifecycle too.
        let lifecycle: &'static Lifecycle = unsafe { &*std::ptr::from_ref(&self.lifecycle) };
        self.starting.set(lifecycle.boot(set).map(|boot| boot.open(cpus)));
    }
    /// The lifecycle's token.
    pub fn starting(&self) -> Starting<'_> {
        self.starting.get().expect("the boot CPU has spoken once")
    }

    // The gate, if it is what makes others stand still.

    fn has_gate(&self) -> bool {
        self.machine().config().gate
    }
    /// The CPU that runs comes in: from here on it accesses what it likes.
    pub fn enter(&self) {
        if self.has_gate() {
            self.gate.enter();
            let cpu = self.current();
            self.with_machine(|machine| {
                machine.stands(cpu, false);
                machine.roams(cpu, true);
            });
        }
    }
    /// It goes out.
    pub fn leave(&self) {
        if self.has_gate() {
            let cpu = self.current();
            self.with_machine(|machine| machine.roams(cpu, false));
            self.gate.leave();
        }
    }
    /// It stands still if it is asked to, between two calls or where it waits to be the writer.
    pub fn pass(&self) {
        if self.has_gate() {
            self.gate.pass();
            let cpu = self.current();
            self.with_machine(|machine| machine.stands(cpu, false));
        }
    }
    /// Opens the gate, whoever has closed it.
    pub fn open_gate(&self) {
        self.closed.take();
    }
    /// The CPU is between two calls and has kept nothing of the last ones.
    pub fn forget(&self) {
        let cpu = self.cpu.get();
        self.histories[cpu].set(0);
        self.reserves[cpu].set(0);
        self.spins[cpu].set(Spin::default());
    }
    /// Steps are taken at once, by this CPU.
    pub fn go_direct(&self, cpu: usize) {
        WORLD.set(self);
        self.mode.set(Mode::Direct);
        self.cpu.set(cpu);
    }

    fn logged(&self, make: impl FnOnce(&mut Machine) -> u64) -> u64 {
        let at = self.replayed.get();
        let mut log = self.log.borrow_mut();
        self.replayed.set(at + 1);
        if let Some(&known) = log.get(at) {
            return known;
        }
        let result = make(&mut self.machine.borrow_mut());
        log.push(result);
        result
    }

    /// What software asks for: the engine, or who starts a CPU.
    pub fn ask(&self, call: Call) -> u64 {
        match &self.planted {
            Some(planted) if self.mode.get() == Mode::Scheduled => planted.ask(self, call),
            _ => self.step(call),
        }
    }

    /// One step of the CPU that runs.
    pub fn step(&self, call: Call) -> u64 {
        let cpu = self.cpu.get();
        match self.mode.get() {
            Mode::Over => return 0,
            Mode::Scheduled if !call.is_private() => {
                // SAFETY: the coroutine that runs has set it to its own yielder, which lives as long as it runs.
                unsafe { (*self.yielders[cpu].get()).suspend(call) }
            }
            _ => {}
        }
        if self.mode.get() == Mode::Over {
            return 0;
        }
        let choice = self.choice.take();
        let result = self.logged(|machine| {
            machine.choose(choice);
            let result = machine.execute(cpu, call);
            machine.acquire(cpu);
            result
        });
        self.tell(cpu, call, result);
        result
    }

    /// Adds a step to the history of its CPU. Who waits and looks again has seen nothing new until it sees something else.
    fn tell(&self, cpu: usize, call: Call, result: u64) {
        let mut spin = self.spins[cpu].get();
        if matches!(call, Call::Relax | Call::Wait) {
            match spin.repeats() {
                Some(history) => self.histories[cpu].set(history),
                None => spin.last = Some((self.histories[cpu].get(), spin.seen)),
            }
            self.spins[cpu].set(Spin { last: spin.last, passive: true, ..Spin::default() });
            return;
        }
        match call {
            Call::Load { table, index } => spin.seen.0 = Some((table, index)),
            Call::CompareExchange { .. } if result == 0 => {}
            Call::ReadLine { .. }
            | Call::Clock
            | Call::IsPowered { .. }
            | Call::BarrierSystem
            | Call::Maintain { maintenance: Maintenance::Invalidate, .. } => {
                let mut seen = Hash64::from(spin.seen.1);
                seen.write_u64(crate::explore::call_hash(&call));
                seen.write_u64(result);
                spin.seen.1 = seen.finish();
                spin.timed |= call == Call::Clock;
            }
            _ => spin.passive = false,
        }
        self.spins[cpu].set(spin);
        let mut hash = Hash64::from(self.histories[cpu].get());
        // Whether a table is locked is seen in what the CPU does next.
        let is_table = matches!(call, Call::Load { .. }) && result & 0b11 == 0b11;
        hash.write_u64(if is_table { result & !(1 << 55) } else { result });
        hash.write_u64(crate::explore::call_hash(&call));
        self.histories[cpu].set(hash.finish());
    }

    // What tests say.

    /// A call of the engine begins.
    pub fn begin(&self, range: (u64, u64), effect: Effect) -> Begun {
        if self.mode.get() == Mode::Over {
            return Begun::of(0);
        }
        Begun::of(self.logged(|machine| machine.begin(range, effect).number() as u64) as usize)
    }
    /// It is over: made or failed, and paid for.
    pub fn end(&self, begun: Begun, made: bool) {
        if self.mode.get() == Mode::Over {
            return;
        }
        let cpu = self.cpu.get();
        self.logged(|machine| {
            machine.end(cpu, begun, made);
            0
        });
    }
    /// Something else of the machine.
    pub fn with_machine(&self, make: impl FnOnce(&mut Machine)) {
        if self.mode.get() != Mode::Over {
            self.logged(|machine| {
                make(machine);
                0
            });
        }
    }
    /// The number of the CPU that runs.
    pub fn current(&self) -> usize {
        self.cpu.get()
    }
}

// SAFETY of the callers: a table's address is a number here, looked up and judged at each access; nothing is dereferenced.
impl TableMemory for World {
    unsafe fn load(&self, table: Pa, index: usize) -> u64 {
        self.ask(Call::Load { table: table.get(), index })
    }
    unsafe fn store(&self, table: Pa, index: usize, raw: u64) {
        self.ask(Call::Store { table: table.get(), index, raw, release: false });
    }
    unsafe fn link(&self, table: Pa, index: usize, raw: u64) {
        self.ask(Call::Store { table: table.get(), index, raw, release: true });
    }
    unsafe fn compare_exchange(&self, table: Pa, index: usize, old: u64, new: u64) -> bool {
        self.ask(Call::CompareExchange { table: table.get(), index, old, new }) != 0
    }
    unsafe fn fill(&self, table: Pa, from: usize, to: usize, raw: u64, step: u64) {
        self.ask(Call::Fill { table: table.get(), from, to, raw, step });
    }
}

const NONE: u64 = u64::MAX;

// SAFETY: the machine's pool has each table once, and `World` reaches all of them.
unsafe impl TablePool for World {
    fn reserve(&self, count: usize) -> Result<(), usize> {
        if self.mode.get() == Mode::Over {
            return Ok(());
        }
        // All that a call keeps of its first walk is what it needs.
        let cpu = self.cpu.get();
        let mut hash = Hash64::from(self.reserves[cpu].get());
        self.reserves[cpu].set(self.reserves[cpu].get() + 1);
        hash.write_usize(count);
        self.histories[cpu].set(hash.finish());
        match self.logged(|machine| machine.memory.reserve(count).map_or_else(|left| left as u64, |()| NONE))
        {
            NONE => Ok(()),
            left => Err(left as usize),
        }
    }
    unsafe fn cancel(&self, count: usize) {
        self.with_machine(|machine| machine.memory.cancel(count));
    }
    unsafe fn take(&self) -> Pa {
        let table = match self.mode.get() {
            Mode::Over => 0,
            _ => self.logged(|machine| machine.memory.take()),
        };
        Pa::new(table).expect("tables lie low")
    }
    fn take_root(&self, count: usize) -> Option<Pa> {
        let table = self.logged(|machine| machine.memory.take_root(count).unwrap_or(NONE));
        Pa::new(table).ok()
    }
    unsafe fn give(&self, table: Pa) {
        self.ask(Call::Give { table: table.get() });
    }
}

/// The others stand still.
pub struct Standing(*const World);

impl Drop for Standing {
    fn drop(&mut self) {
        // SAFETY: it is dropped by a call of the engine for a map, which refers to this world.
        let world = unsafe { &*self.0 };
        world.with_machine(Machine::release);
        world.open_gate();
    }
}

impl Quiesce for World {
    type Held = Standing;
    fn begin(&self, start: u64, size: u64) -> Option<Standing> {
        if self.has_gate() {
            // SAFETY: what is closed is opened before the world is gone: by `Standing`, or with the world.
            let gate: &'static Gate<InWorld, CPUS> = unsafe { &*std::ptr::from_ref(&self.gate) };
            let closed = Quiesce::begin(&gate, start, size)?;
            *self.closed.borrow_mut() = Some(closed);
            let cpu = self.current();
            self.with_machine(|machine| {
                machine.stands(cpu, false);
                machine.hold(cpu, start, start + size);
            });
            return Some(Standing(self));
        }
        (self.ask(Call::Quiesce { start, size }) != 0).then_some(Standing(self))
    }
}

// SAFETY: it is one machine, and does what it is asked to; what it is asked to wrongly, it says.
unsafe impl Mmu for World {
    type Tables = Self;
    type Pool = Self;
    type Quiesce = Self;
    fn tables(&self) -> &Self {
        self
    }
    fn pool(&self) -> &Self {
        self
    }
    fn quiesce(&self) -> &Self {
        self
    }
    fn slots(&self) -> &[Slot] {
        let own = self.planted.as_ref().is_some_and(Planted::forgets_readers);
        &self.slots[if own { self.cpu.get() } else { 0 }]
    }
    fn tlbi(&self, operation: Tlbi, scope: Scope, operand: u64) {
        self.ask(Call::Tlbi { operation, scope, operand });
    }
    fn barrier(&self, barrier: Barrier, scope: Scope) {
        self.ask(Call::Barrier { barrier, scope });
    }
    fn relax(&self) {
        self.ask(Call::Relax);
    }
    fn wait(&self) {
        // All that it waits for it has looked at when it waits.
        World::pass(self);
        self.ask(Call::Wait);
    }
}

/// The map of a world.
pub type Mapped<'w, R, S> = Map<R, &'w World, S>;

/// Gives a map up.
pub fn destroy<R: Regime, S: Shape>(map: Mapped<'_, R, S>) {
    // SAFETY: the machine convicts who still translates through it.
    unsafe { map.destroy() }
}

/// A map whose root is there already.
pub fn adopt<'w, R: Regime, S: Shape>(
    world: &'w World,
    root: Pa,
    geometry: Geometry<S>,
    options: Options,
) -> Mapped<'w, R, S> {
    // SAFETY: the tables are the machine's, which judges each access.
    unsafe { Map::adopt(world, root, geometry, options) }
}

/// Writes the words of a table that nobody else has, and says where it is.
pub fn table_of(world: &World, words: &[u64]) -> Pa {
    let table = world.take_root(1).expect("there is a table left");
    for (index, &raw) in words.iter().enumerate() {
        // SAFETY: the table came from the pool just now.
        unsafe { world.fill(table, index, index + 1, raw, 0) };
    }
    table
}

/// Splits an entry into a table of the pool.
///
/// # Errors
/// As [`Map::split_entry`], and [`MapError::OutOfTables`].
pub fn split_entry<'m, 'w, R: Regime, S: Shape>(
    map: &'m Mapped<'w, R, S>,
    world: &World,
    address: R::Input,
    level: u8,
) -> Result<Debt<'m, R, &'w World, S>, MapError> {
    world.reserve(1).map_err(|free| MapError::OutOfTables { needed: 1, free })?;
    // SAFETY: one was reserved; and it is the pool's own, which has it back if the call fails.
    unsafe {
        let table = world.take();
        let result = map.split_entry(address, level, table);
        if result.is_err() {
            world.give(table);
        }
        result
    }
}

/// Joins the table of an entry, which goes back to the pool.
///
/// # Errors
/// As [`Writer::collapse_entry`].
pub fn collapse_entry<R: Regime, S: Shape>(
    writer: &mut Writer<'_, '_, R, &World, S>,
    world: &World,
    address: R::Input,
    level: u8,
) -> Result<(), MapError> {
    let table = writer.collapse_entry(address, level)?;
    // SAFETY: it came from this pool.
    unsafe { world.give(table) };
    Ok(())
}

/// A CPU of a run: a script that stops before each step.
pub struct Cpu {
    coroutine: Option<Coroutine<(), Call, (), DefaultStack>>,
    number: usize,
}

impl Cpu {
    /// A CPU that is about to run `script`, on a stack that it gives back.
    ///
    /// The script and what it refers to outlive the value: that is what its lifetime stands for, and what [`with_cpus`] sees to.
    fn new<'s>(world: &'s World, number: usize, stack: DefaultStack, script: &'s (dyn Fn() + 's)) -> Self {
        // SAFETY: `with_cpus` ends the coroutine before anything that the script refers to.
        let coroutine = unsafe {
            Coroutine::with_stack_unchecked(stack, move |yielder: &Yielder<(), Call>, ()| {
                world.yielders[number].set(yielder);
                world.step(Call::Between);
                script();
            })
        };
        Self { coroutine: Some(coroutine), number }
    }

    /// Goes on up to the next step, which it returns; `None` at the end.
    pub fn resume(&mut self, world: &World) -> Option<Call> {
        WORLD.set(world);
        world.cpu.set(self.number);
        world.mode.set(Mode::Scheduled);
        let coroutine = self.coroutine.as_mut().expect("it is not over");
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| coroutine.resume(())));
        match result {
            Ok(CoroutineResult::Yield(call)) => Some(call),
            Ok(CoroutineResult::Return(())) => None,
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
                world.machine.borrow_mut().convict(Kind::Panic, text.unwrap_or_default());
                None
            }
        }
    }

    fn stop(mut self) -> DefaultStack {
        let mut coroutine = self.coroutine.take().expect("it is not over");
        if !coroutine.done() {
            // SAFETY: what is on its stack refers to the world, the map and the script, none of which waits for it to be dropped.
            unsafe { coroutine.force_reset() };
        }
        coroutine.into_stack()
    }
}

/// Runs `body` with a CPU for each script.
pub fn with_cpus<T>(
    world: &World,
    scripts: &[&dyn Fn()],
    stacks: &mut Vec<DefaultStack>,
    body: impl FnOnce(&mut [Cpu]) -> T,
) -> T {
    let mut cpus: Vec<Cpu> = scripts
        .iter()
        .enumerate()
        .map(|(number, &script)| {
            let stack =
                stacks.pop().unwrap_or_else(|| DefaultStack::new(256 << 10).expect("there is memory"));
            Cpu::new(world, number, stack, script)
        })
        .collect();
    let result = body(&mut cpus);
    world.mode.set(Mode::Over);
    stacks.extend(cpus.drain(..).map(Cpu::stop));
    result
}
