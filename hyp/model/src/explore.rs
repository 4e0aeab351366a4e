//! Every schedule of a few CPUs, each of which runs a script.
//!
//! Invariants:
//! - Before each step that another CPU could notice, any CPU that can go on may be the next. A state that was seen before is not gone
//!   on from: it is known by the machine, by the map's own variables ([`hyp::mapping::Map::fingerprint`]) and by all that each
//!   CPU has been told.
//! - The engine's own atomics are taken with the step before them: between two steps of a CPU nobody else comes.
//! - Where a step may go several ways ([`Machine::choices`]), each is tried.
//! - A CPU that waits goes on when something has changed; if all wait, that is a verdict. Who waits for a time goes on when it is over.

use std::collections::HashSet;
use std::hash::Hasher;

use corosensei::stack::DefaultStack;
use hyp::mapping::{Regime, Shape};

use crate::faults::Fault;
use crate::machine::{Call, Config, Machine};
use crate::memory::{Cpu, Mapped, World, with_cpus};
use crate::verdict::{Kind, Verdict};

/// A hash of 64 bits: multiply and rotate, then mix.
#[derive(Clone, Copy, Debug, Default)]
pub struct Hash64(u64);

impl From<u64> for Hash64 {
    fn from(start: u64) -> Self {
        Self(start)
    }
}

impl Hasher for Hash64 {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
    }
    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }
    fn write_u16(&mut self, value: u16) {
        self.write_u64(u64::from(value));
    }
    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0.rotate_left(23) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 29;
    }
    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }
    fn finish(&self) -> u64 {
        let mixed = (self.0 ^ self.0 >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
        mixed ^ mixed >> 32
    }
}

/// A call as a number.
pub fn call_hash(call: &Call) -> u64 {
    use std::hash::Hash;
    let mut hash = Hash64::default();
    std::mem::discriminant(call).hash(&mut hash);
    match *call {
        Call::Load { table, index } => (table, index).hash(&mut hash),
        Call::Store { table, index, raw, release } => (table, index, raw, release).hash(&mut hash),
        Call::CompareExchange { table, index, old, new } => (table, index, old, new).hash(&mut hash),
        Call::Fill { table, from, to, raw, step } => (table, from, to, raw, step).hash(&mut hash),
        Call::Tlbi { operand, .. } => operand.hash(&mut hash),
        Call::Give { table } => table.hash(&mut hash),
        Call::Quiesce { start, size } => (start, size).hash(&mut hash),
        Call::ReadLine { line, word } => (line, word).hash(&mut hash),
        Call::WriteLine { line, first, count, values } => (line, first, count, values).hash(&mut hash),
        Call::SwapLine { line, word, value } => (line, word, value).hash(&mut hash),
        Call::Maintain { line, maintenance } => (line, maintenance).hash(&mut hash),
        Call::PowerOn { cpu } | Call::IsPowered { cpu } => cpu.hash(&mut hash),
        Call::TurnOn { root } => root.hash(&mut hash),
        Call::Barrier { .. }
        | Call::BarrierSystem
        | Call::Clock
        | Call::Start
        | Call::PowerOff
        | Call::TurnOff
        | Call::Relax
        | Call::Wait
        | Call::Between => {}
    }
    hash.finish()
}

/// A CPU in a script.
pub struct Context<'a, 'w, R: Regime, S: Shape> {
    /// The machine.
    pub world: &'w World,
    /// The map.
    pub map: &'a Mapped<'w, R, S>,
    /// The CPU's number.
    pub cpu: usize,
}

/// What a CPU runs.
pub type Script<'c, R, S> = Box<dyn Fn(&Context<'_, '_, R, S>) + 'c>;

/// Makes a map.
pub type Make<'c, R, S> = Box<dyn for<'w> Fn(&'w World) -> Mapped<'w, R, S> + 'c>;

/// What is explored.
pub struct Case<'c, R: Regime, S: Shape> {
    /// The machine.
    pub config: Config,
    /// Makes the map, before any MMU is on.
    pub make: Make<'c, R, S>,
    /// One for each CPU.
    pub scripts: Vec<Script<'c, R, S>>,
    /// A mistake.
    pub fault: Option<&'static Fault>,
}

/// How much was explored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Explored {
    /// Different states.
    pub states: usize,
    /// Ends that were reached.
    pub ends: usize,
    /// Steps of the longest run.
    pub longest: usize,
}

/// Something was wrong.
#[derive(Clone, Debug)]
pub struct Conviction {
    /// What.
    pub verdict: Verdict,
    /// Which CPU took each step, and which way: three bits, and five.
    pub schedule: Vec<u8>,
    /// Steps of the machine up to then.
    pub steps: u64,
    /// States that were seen before.
    pub states: usize,
}

struct Branch {
    schedule: Vec<u8>,
    log: Vec<u64>,
    machine: Machine,
    next: Option<u8>,
}

fn entry(cpu: usize, choice: usize) -> u8 {
    assert!(choice < 32, "too many ways");
    (cpu | choice << 3) as u8
}

/// Most states of one case: more is a mistake of the test.
const MOST: usize = 10_000_000;

impl<R: Regime, S: Shape> Case<'_, R, S> {
    /// Tries every schedule.
    ///
    /// # Errors
    /// The first verdict, with the schedule that led to it.
    pub fn explore(&self) -> Result<Explored, Box<Conviction>> {
        let mut explored = Explored::default();
        let mut seen = HashSet::new();
        let mut stacks = Vec::new();
        let machine = Machine::new(self.config.clone());
        let mut open = vec![Branch { schedule: Vec::new(), log: Vec::new(), machine, next: None }];
        while let Some(branch) = open.pop() {
            self.run(branch, &mut seen, &mut open, &mut stacks, &mut explored)?;
            assert!(explored.states < MOST, "too many states");
        }
        Ok(explored)
    }

    /// One run, in which whoever is the next is drawn by `draw` (a number below its argument).
    ///
    /// # Errors
    /// The first verdict.
    pub fn run_once(&self, mut draw: impl FnMut(usize) -> usize) -> Result<u64, Box<Conviction>> {
        let world = World::new(Machine::new(self.config.clone()), Vec::new(), self.fault);
        let map = (self.make)(&world);
        let mut schedule = Vec::new();
        self.drive(&world, &map, &mut Vec::new(), |mut run| {
            // A few steps of one CPU, then of another.
            let mut last = 0;
            while !run.is_over() {
                let able = run.able();
                if able == 0 {
                    world.with_machine(|machine| machine.convict(Kind::Deadlock, "every CPU waits"));
                }
                if world.verdict().is_some() {
                    return false;
                }
                if able & 1 << last == 0 || draw(4) == 0 {
                    let number = draw(able.count_ones() as usize);
                    let nth = (0..run.cpus.len()).filter(|cpu| able & 1 << cpu != 0).nth(number);
                    last = nth.expect("somebody is able");
                }
                let choice = match run.choices(last) {
                    1 => 0,
                    // Time is over now and then only.
                    _ if run.next[last] == Some(Call::Clock) => usize::from(draw(16) == 0),
                    choices => draw(choices),
                };
                run.go(entry(last, choice));
                schedule.push(entry(last, choice));
            }
            true
        });
        let steps = world.machine().steps();
        match world.verdict() {
            Some(verdict) => Err(Box::new(Conviction { verdict, schedule, steps, states: 0 })),
            None => Ok(steps),
        }
    }

    /// Lets `choose` lead the CPUs through their scripts, and judges what is left if it says that they came to their ends.
    fn drive<'w>(
        &self,
        world: &'w World,
        map: &Mapped<'w, R, S>,
        stacks: &mut Vec<DefaultStack>,
        choose: impl FnOnce(Run<'_, 'w, R, S>) -> bool,
    ) -> bool {
        let contexts: Vec<_> = (0..self.scripts.len()).map(|cpu| Context { world, map, cpu }).collect();
        let scripts: Vec<Box<dyn Fn() + '_>> = self
            .scripts
            .iter()
            .zip(&contexts)
            .map(|(script, context)| Box::new(move || script(context)) as Box<dyn Fn() + '_>)
            .collect();
        let scripts: Vec<&dyn Fn()> = scripts.iter().map(|script| &**script).collect();
        let over = with_cpus(world, &scripts, stacks, |cpus| choose(Run::new(world, map, cpus)));
        if over {
            world.go_direct(0);
            map.settle();
            world.with_machine(Machine::finish);
        }
        over
    }

    /// One run, from a branch to an end or to what is known.
    fn run(
        &self,
        branch: Branch,
        seen: &mut HashSet<u64>,
        open: &mut Vec<Branch>,
        stacks: &mut Vec<DefaultStack>,
        explored: &mut Explored,
    ) -> Result<(), Box<Conviction>> {
        let Branch { mut schedule, log, machine, next } = branch;
        let world = World::new(machine, log, self.fault);
        let map = (self.make)(&world);
        let over = self.drive(&world, &map, stacks, |mut run| {
            for &entry in &schedule {
                run.go(entry);
            }
            if let Some(entry) = next {
                run.go(entry);
                schedule.push(entry);
            }
            loop {
                if world.verdict().is_some() {
                    return false;
                }
                let able = run.able();
                if able == 0 {
                    if run.is_over() {
                        return true;
                    }
                    world.with_machine(|machine| machine.convict(Kind::Deadlock, "every CPU waits"));
                    return false;
                }
                if !seen.insert(run.key()) {
                    return false;
                }
                explored.states += 1;
                let last = schedule.last().map_or(0, |&entry| usize::from(entry & 7));
                let chosen = if able & 1 << last != 0 { last } else { able.trailing_zeros() as usize };
                for cpu in (0..run.cpus.len()).filter(|&cpu| able & 1 << cpu != 0) {
                    for choice in usize::from(cpu == chosen)..run.choices(cpu) {
                        let (machine, log) = (world.machine().clone(), world.log());
                        let next = Some(entry(cpu, choice));
                        open.push(Branch { schedule: schedule.clone(), log, machine, next });
                    }
                }
                run.go(entry(chosen, 0));
                schedule.push(entry(chosen, 0));
            }
        });
        if over {
            explored.ends += 1;
            explored.longest = explored.longest.max(schedule.len());
        }
        match world.verdict() {
            Some(verdict) => {
                let (steps, states) = (world.machine().steps(), explored.states);
                Err(Box::new(Conviction { verdict, schedule, steps, states }))
            }
            None => Ok(()),
        }
    }
}

/// The CPUs of one run.
struct Run<'r, 'w, R: Regime, S: Shape> {
    world: &'w World,
    map: &'r Mapped<'w, R, S>,
    cpus: &'r mut [Cpu],
    /// What each is about to do; `None` at its end.
    next: Vec<Option<Call>>,
    /// Those that wait until something changes.
    blocked: u32,
    internal: u64,
    /// Steps that have changed something, and how many there were when each CPU waited last.
    changes: u64,
    waited: Vec<u64>,
}

impl<'r, 'w, R: Regime, S: Shape> Run<'r, 'w, R, S> {
    fn new(world: &'w World, map: &'r Mapped<'w, R, S>, cpus: &'r mut [Cpu]) -> Self {
        let next = cpus.iter_mut().map(|cpu| cpu.resume(world)).collect();
        let waited = vec![u64::MAX; cpus.len()];
        let mut run = Self { world, map, cpus, next, blocked: 0, internal: 0, changes: 0, waited };
        run.internal = run.fingerprint();
        run
    }

    fn fingerprint(&self) -> u64 {
        let mut hash = Hash64::default();
        self.map.fingerprint(&mut hash);
        self.world.fingerprint(&mut hash);
        hash.finish()
    }

    /// Takes the step that a CPU is about to take, and goes on up to its next one.
    fn go(&mut self, entry: u8) {
        let cpu = usize::from(entry & 7);
        let call = self.next[cpu].expect("it has a step to take");
        self.world.choose(usize::from(entry >> 3));
        if matches!(call, Call::Store { .. }) {
            // What it reads of the map's variables after this step may become part of what it knows.
            self.world.remember(cpu, self.map.owed_fingerprint());
        }
        self.next[cpu] = self.cpus[cpu].resume(self.world);
        let internal = self.fingerprint();
        if internal != self.internal {
            // The map's variables are acquired and released.
            self.world.with_machine(|machine| machine.publish(cpu));
        }
        if internal != self.internal || !call.is_passive() {
            self.blocked &= 1 << cpu;
            self.changes += 1;
        }
        self.internal = internal;
        self.blocked &= !(1 << cpu);
        if matches!(self.next[cpu], Some(Call::Relax | Call::Wait)) {
            let before = std::mem::replace(&mut self.waited[cpu], self.changes);
            // Who looks at several things in turn, or waits for the gate within another wait, looks at all of them once more.
            let looked = before == self.changes || !self.looks_at_much();
            if looked && self.world.repeats(cpu) {
                // It is to look again only after somebody else has done something.
                self.blocked |= 1 << cpu;
            }
        }
    }

    /// Whether between what a CPU looks at and its waiting there may be other steps.
    fn looks_at_much(&self) -> bool {
        let machine = self.world.machine();
        machine.config().gate || machine.config().down != 0
    }

    /// How many ways the next step of a CPU may go.
    fn choices(&self, cpu: usize) -> usize {
        self.next[cpu].map_or(1, |call| self.world.machine().choices(cpu, &call))
    }

    /// All have come to their ends, or have no power.
    fn is_over(&self) -> bool {
        let machine = self.world.machine();
        let is_over = |(cpu, next): (usize, &Option<Call>)| match next {
            None => true,
            Some(Call::Start) => !machine.is_powered(cpu),
            Some(_) => false,
        };
        self.next.iter().enumerate().all(is_over)
    }

    /// The CPUs that can go on.
    fn able(&self) -> u32 {
        let machine = self.world.machine();
        let gate = machine.config().gate;
        let held = machine.held_by().filter(|_| !gate);
        let stands = |cpu: usize| {
            matches!(self.next[cpu], None | Some(Call::Between | Call::Wait | Call::Quiesce { .. }))
        };
        let can = |cpu: &usize| {
            let others_stand = (0..self.next.len()).all(|other| other == *cpu || stands(other));
            held.is_none_or(|by| by == *cpu)
                && self.blocked & 1 << cpu == 0
                && match self.next[*cpu] {
                    None => false,
                    Some(Call::Start) => machine.is_powered(*cpu),
                    Some(Call::Quiesce { .. }) => gate || others_stand,
                    Some(_) => true,
                }
        };
        (0..self.next.len()).filter(can).fold(0, |set, cpu| set | 1 << cpu)
    }

    fn key(&self) -> u64 {
        let mut hash = Hash64::from(self.internal);
        self.world.machine().fingerprint(&mut hash);
        for (cpu, next) in self.next.iter().enumerate() {
            hash.write_u64(self.world.history(cpu));
            hash.write_u64(next.as_ref().map_or(0, call_hash));
        }
        hash.write_u32(self.blocked);
        if self.looks_at_much() {
            self.waited.iter().for_each(|&waited| hash.write_u8(u8::from(waited == self.changes)));
        }
        hash.finish()
    }
}
