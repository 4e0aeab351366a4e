//! The machine: CPUs that walk tables at any moment, and what one step of one of them does.
//!
//! Invariants:
//! - After each step the set of each CPU ([`tlb::Set`]) has all that any walk could have put there by now; each entry was judged when it
//!   came, against the others of its CPU, those of all CPUs, and what is expected.
//! - The first verdict stays.

use std::rc::Rc;

use hyp::mapping::{Barrier, Scope, Tlbi};

use crate::CPUS;
use crate::cache::{Caches, LINE, Maintenance};
use crate::decode::{Descriptor, Layout, Regime, Target, is_changing, is_non_global};
use crate::expect::{Begun, Effect, Expect};
use crate::store::{Memory, Observed};
use crate::tlb::{self, Entry, Leaf, Set, Table};
use crate::verdict::{Kind, Verdict};

/// Hardware sets a flag (D8.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mark {
    /// Before this step.
    pub step: u64,
    /// In the leaf of this address, if it translates then.
    pub address: u64,
    /// The dirty state too.
    pub dirty: bool,
}

/// What one CPU can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Can {
    /// Level of FEAT_BBM: 0, 1, 2, or 3 for level 2 without conflict aborts.
    pub bbm: u8,
    /// FEAT_TLBIRANGE.
    pub range: bool,
    /// FEAT_TTL.
    pub ttl: bool,
    /// One invalidation suffices; otherwise only what is repeated after a DSB is sure to work.
    pub once: bool,
}

impl Can {
    /// This level of FEAT_BBM, and all else.
    pub const fn of(bbm: u8) -> Self {
        Self { bbm, range: true, ttl: true, once: true }
    }
}

/// What the machine is.
#[derive(Clone, Debug)]
pub struct Config {
    /// What the map translates for.
    pub regime: Regime,
    /// Its sizes.
    pub layout: Layout,
    /// CPUs that translate through it.
    pub cpus: usize,
    /// Tables in the pool.
    pub tables: usize,
    /// What each CPU can do.
    pub can: [Can; CPUS],
    /// Hardware sets access flags and dirty state.
    pub hardware: bool,
    /// And does so at this moment.
    pub mark: Option<Mark>,
    /// The ASID that each CPU runs.
    pub asids: [u16; CPUS],
    /// Others can be made to stand still.
    pub quiesce: bool,
    /// CPUs whose MMU is off at first, a bit each.
    pub off: u32,
    /// Those of them that have no power.
    pub down: u32,
    /// How others are made to stand still is software's: they may go on, and are convicted if they do.
    pub gate: bool,
}

impl Config {
    /// All CPUs alike in something.
    pub fn each(&mut self, change: impl FnMut(&mut Can)) {
        self.can.iter_mut().for_each(change);
    }
}

/// What software asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Call {
    /// Reads a word.
    Load {
        /// The table's address.
        table: u64,
        /// Which of its words.
        index: usize,
    },
    /// Writes a word; `release` after all that was before.
    Store {
        /// The table's address.
        table: u64,
        /// Which of its words.
        index: usize,
        /// The value.
        raw: u64,
        /// A store-release.
        release: bool,
    },
    /// Compares and swaps.
    CompareExchange {
        /// The table's address.
        table: u64,
        /// Which of its words.
        index: usize,
        /// What must be there.
        old: u64,
        /// What is there then.
        new: u64,
    },
    /// Writes many words of a table that nothing points to.
    Fill {
        /// The table's address.
        table: u64,
        /// First word.
        from: usize,
        /// The word after the last.
        to: usize,
        /// Its value.
        raw: u64,
        /// What each next one adds.
        step: u64,
    },
    /// Issues an invalidation.
    Tlbi {
        /// Which.
        operation: Tlbi,
        /// How far.
        scope: Scope,
        /// Its register.
        operand: u64,
    },
    /// Issues a barrier.
    Barrier {
        /// Which.
        barrier: Barrier,
        /// How far.
        scope: Scope,
    },
    /// Gives a table back.
    Give {
        /// The table's address.
        table: u64,
    },
    /// Waits for somebody else.
    Relax,
    /// The same, standing still.
    Wait,
    /// Between two calls of the engine, standing still.
    Between,
    /// Makes the others stand still.
    Quiesce {
        /// First address.
        start: u64,
        /// Bytes.
        size: u64,
    },
    /// Reads a word of a line that CPUs with their MMU off use too.
    ReadLine {
        /// Which line.
        line: u64,
        /// Which of its words.
        word: usize,
    },
    /// Writes words of such a line.
    WriteLine {
        /// Which line.
        line: u64,
        /// The first word.
        first: usize,
        /// How many.
        count: usize,
        /// Their values.
        values: [u64; LINE],
    },
    /// An exclusive or an atomic of a word of such a line.
    SwapLine {
        /// Which line.
        line: u64,
        /// Which of its words.
        word: usize,
        /// The value.
        value: u64,
    },
    /// Issues maintenance of a line.
    Maintain {
        /// Which line.
        line: u64,
        /// Which.
        maintenance: Maintenance,
    },
    /// `DSB SY`.
    BarrierSystem,
    /// Whether the time is over that somebody waits: at any moment it may be.
    Clock,
    /// Gives a CPU power (firmware's part of CPU_ON).
    PowerOn {
        /// Which.
        cpu: usize,
    },
    /// Whether a CPU has power (AFFINITY_INFO).
    IsPowered {
        /// Which.
        cpu: usize,
    },
    /// Waits for power.
    Start,
    /// Gives it up, and all that the CPU knows: CPU_OFF, or a suspend that loses context.
    PowerOff,
    /// Turns the MMU on.
    TurnOn {
        /// The root that it translates through.
        root: u64,
    },
    /// Turns it off.
    TurnOff,
}

impl Call {
    /// Whether the step commutes with every other CPU's: it needs no place in a schedule.
    pub fn is_private(&self) -> bool {
        matches!(self, Self::Fill { .. } | Self::Give { .. })
    }
    /// Whether it changes nothing.
    pub fn is_passive(&self) -> bool {
        matches!(
            self,
            Self::Load { .. }
                | Self::Relax
                | Self::Wait
                | Self::Between
                | Self::ReadLine { .. }
                | Self::Clock
                | Self::IsPowered { .. }
                | Self::Start
        )
    }
}

#[derive(Clone, Debug)]
struct Outstanding {
    issuer: usize,
    /// What it is to each CPU: one that has no such operation, or no power, it does not reach.
    targets: [Target; CPUS],
    scope: Scope,
    /// What walks could have brought back since, by CPU.
    refilled: Vec<Set>,
}

/// Where a walk goes on.
#[derive(Clone, Copy, Debug)]
struct Node {
    table: usize,
    level: u8,
    base: u64,
    limits: u64,
    observed: Observed,
}

/// What a walk meets.
#[derive(Clone, Debug)]
enum Found {
    Leaf { start: u64, level: u8, output: u64, bits: u64, limits: u64, contiguous: bool },
    Table { start: u64, level: u8, next: u64, limits: u64, observed: Observed },
    Fault { start: u64, level: u8, raw: u64 },
    Wrong(Kind, String),
}

/// The whole of it.
#[derive(Clone, Debug)]
pub struct Machine {
    config: Rc<Config>,
    /// Tables.
    pub memory: Memory,
    tlbs: Vec<Set>,
    /// Instructions that a CPU has fetched ahead with what is invalid by now, until it synchronizes its context.
    streams: Vec<Set>,
    outstanding: Vec<Outstanding>,
    /// What each CPU had completed at its last DSB.
    primed: Vec<Vec<(Target, Scope)>>,
    unsynchronized: Vec<bool>,
    mmu: Vec<bool>,
    powered: Vec<bool>,
    /// TLBs that may hold anything: nobody has invalidated them since their CPU lost its context.
    unknown: Vec<bool>,
    /// CPUs that access what they like, and those of them that stand still for now.
    roaming: Vec<bool>,
    standing: Vec<bool>,
    /// Memory that CPUs with their MMU off use too.
    pub caches: Caches,
    choice: usize,
    /// Who stands alone, and what is broken meanwhile.
    held: Option<(usize, u64, u64)>,
    root: Option<usize>,
    expect: Expect,
    marked: bool,
    verdict: Option<Verdict>,
    steps: u64,
}

impl Machine {
    /// A machine with its MMUs off and its tables in the pool.
    pub fn new(config: Config) -> Self {
        let (cpus, layout) = (config.cpus, config.layout);
        assert!(cpus <= CPUS);
        Self {
            memory: Memory::new(config.tables, layout.entries()),
            tlbs: vec![Set::default(); cpus],
            streams: vec![Set::default(); cpus],
            outstanding: Vec::new(),
            primed: vec![Vec::new(); cpus],
            unsynchronized: vec![false; cpus],
            mmu: vec![false; cpus],
            powered: (0..cpus).map(|cpu| config.down & 1 << cpu == 0).collect(),
            unknown: (0..cpus).map(|cpu| (config.down | config.off) & 1 << cpu != 0).collect(),
            roaming: vec![false; cpus],
            standing: vec![false; cpus],
            caches: {
                let mut caches = Caches::new();
                (0..cpus).for_each(|cpu| caches.set_mmu(cpu, (config.down | config.off) & 1 << cpu == 0));
                caches
            },
            choice: 0,
            held: None,
            root: None,
            expect: Expect::new(layout.reach(), config.regime, config.hardware),
            marked: false,
            verdict: None,
            steps: 0,
            config: Rc::new(config),
        }
    }

    /// What it is.
    pub fn config(&self) -> &Config {
        &self.config
    }
    /// The first thing that was wrong.
    pub fn verdict(&self) -> Option<&Verdict> {
        self.verdict.as_ref()
    }
    /// Steps so far.
    pub fn steps(&self) -> u64 {
        self.steps
    }
    /// What is expected.
    pub fn expect(&self) -> &Expect {
        &self.expect
    }
    /// What a CPU may hold.
    pub fn may_hold(&self, cpu: usize) -> &Set {
        &self.tlbs[cpu]
    }

    /// Says what is wrong, unless something is already.
    pub fn convict(&mut self, kind: Kind, message: impl Into<String>) {
        if self.verdict.is_none() {
            self.verdict = Some(Verdict::new(kind, message));
        }
    }

    fn layout(&self) -> Layout {
        self.config.layout
    }

    fn can(&self, cpu: usize) -> Can {
        self.config.can[cpu]
    }

    // CPUs.

    /// Turns the MMU of a CPU on, with this root. Whoever begins so has a TLB that was invalidated.
    pub fn turn_on(&mut self, cpu: usize, root: u64) {
        self.unknown[cpu] = false;
        self.start_walking(cpu, root);
    }
    fn start_walking(&mut self, cpu: usize, root: u64) {
        self.root = self.memory.table(root);
        self.mmu[cpu] = true;
        self.caches.set_mmu(cpu, true);
        let found = self.walk_all((0, self.layout().reach()));
        self.absorb(cpu, None, &found);
    }
    /// Turns it off. What its TLB holds it holds (R_NDCMB).
    pub fn turn_off(&mut self, cpu: usize) {
        self.mmu[cpu] = false;
        self.caches.set_mmu(cpu, false);
    }
    /// The step that turns an MMU on.
    fn go_on(&mut self, cpu: usize, root: u64) {
        if self.unknown[cpu] {
            let text =
                format!("CPU {cpu} turns its MMU on, and its TLB may hold what it held in an earlier life");
            return self.convict(Kind::Stale, text);
        }
        if self.unsynchronized[cpu] {
            let text = format!("CPU {cpu} turns its MMU on");
            return self.convict(Kind::NotSynchronized, text);
        }
        self.start_walking(cpu, root);
    }
    /// Power is gone: so is all that the CPU has issued, and what its TLB holds when it comes back is anything (I_GWZWM, R_BQCDZ).
    fn power_off(&mut self, cpu: usize) {
        self.turn_off(cpu);
        self.settle(cpu);
        self.caches.barrier(cpu);
        self.powered[cpu] = false;
        self.unknown[cpu] = true;
        self.tlbs[cpu] = Set::default();
        self.streams[cpu] = Set::default();
        self.outstanding.retain(|operation| operation.issuer != cpu);
        self.primed[cpu].clear();
        self.unsynchronized[cpu] = false;
        self.roams(cpu, false);
    }
    /// Whether a CPU has power.
    pub fn is_powered(&self, cpu: usize) -> bool {
        self.powered[cpu]
    }
    /// Whether its MMU is on.
    pub fn is_on(&self, cpu: usize) -> bool {
        self.mmu[cpu]
    }

    /// A CPU begins, or ceases, to access what it likes through the map.
    pub fn roams(&mut self, cpu: usize, roams: bool) {
        self.roaming[cpu] = roams;
        self.judge_standing();
    }
    /// It stands still where it is, or goes on.
    pub fn stands(&mut self, cpu: usize, stands: bool) {
        self.standing[cpu] = stands;
        self.judge_standing();
    }
    /// While something is broken nobody else is where it could meet that.
    fn judge_standing(&mut self) {
        let Some((holder, start, end)) = self.held.filter(|_| self.config.gate) else { return };
        let goes = |cpu: &usize| *cpu != holder && self.roaming[*cpu] && !self.standing[*cpu];
        if let Some(cpu) = (0..self.config.cpus).find(goes) {
            let text = format!("CPU {cpu} may access {start:#x} to {end:#x}, which CPU {holder} is breaking");
            self.convict(Kind::TransientFault, text);
        }
    }

    /// How many ways a step may go that is about to be taken.
    pub fn choices(&self, cpu: usize, call: &Call) -> usize {
        match *call {
            Call::Clock => 2,
            Call::ReadLine { line, word } if self.caches.races(cpu, line) => {
                self.caches.values(cpu, line, word).len()
            }
            _ => 1,
        }
    }
    /// The way that the next step goes.
    pub fn choose(&mut self, choice: usize) {
        self.choice = choice;
    }

    // Walks.

    fn root_node(&self) -> Option<Node> {
        let level = self.layout().start_level;
        self.root.map(|table| Node { table, level, base: 0, limits: 0, observed: [0; CPUS] })
    }

    /// All that walks of `start .. end` may find, from the root.
    fn walk_all(&self, range: (u64, u64)) -> Vec<Found> {
        let mut found = Vec::new();
        if let Some(root) = self.root_node() {
            self.walk_table(root, self.layout().root_entries(), range, &mut found);
        }
        found
    }

    fn walk_table(&self, node: Node, entries: usize, (start, end): (u64, u64), found: &mut Vec<Found>) {
        let shift = self.layout().shift(node.level);
        let first = start.saturating_sub(node.base) >> shift;
        let last = (end.saturating_sub(node.base).div_ceil(1 << shift) as usize).min(entries);
        for index in first as usize..last {
            self.walk_word(node, index, (start, end), found);
        }
    }

    fn walk_word(&self, node: Node, index: usize, range: (u64, u64), found: &mut Vec<Found>) {
        let layout = self.layout();
        let start = node.base + ((index as u64) << layout.shift(node.level));
        let Node { level, limits, .. } = node;
        self.memory.candidates(node.table, index, node.observed, |candidate| {
            let raw = candidate.value;
            if candidate.poison {
                let text = format!("entry {index} of level {level} for {start:#x} was never written");
                return found.push(Found::Wrong(Kind::UnfilledTable, text));
            }
            match Descriptor::decode(raw, level, self.config.regime, &layout) {
                Descriptor::Invalid => found.push(Found::Fault { start, level, raw }),
                Descriptor::Leaf { output, bits, contiguous } => {
                    if !self.config.regime.is_marked(raw, false) {
                        // Access flag fault: not cached. With updates on hardware sets it when it comes here (`Mark`).
                        if !self.config.hardware {
                            found.push(Found::Fault { start, level, raw });
                        }
                        return;
                    }
                    let leaf = |start, output| Found::Leaf { start, level, output, bits, limits, contiguous };
                    found.push(leaf(start, output));
                    if contiguous {
                        // As a run: each of its leaves as this one predicts it.
                        let run = layout.size(level) << layout.run_bits;
                        let (first, from) = (start & !(run - 1), output & !(run - 1));
                        let leaves = (0..1u64 << layout.run_bits).map(|i| i << layout.shift(level));
                        found.extend(
                            leaves
                                .filter(|i| first + i != start || from + i != output)
                                .map(|i| leaf(first + i, from + i)),
                        );
                    }
                }
                Descriptor::Table { next, limits: own } => {
                    let limits = limits | own;
                    let Some(table) = self.memory.table(next).filter(|&table| self.memory.is_out(table, 0))
                    else {
                        let text = format!(
                            "entry {raw:#x} of level {level} for {start:#x} points to a table of the pool"
                        );
                        return found.push(Found::Wrong(Kind::FreedTable, text));
                    };
                    let observed = candidate.observed;
                    found.push(Found::Table { start, level, next, limits, observed });
                    let node = Node { table, level: level + 1, base: start, limits, observed };
                    self.walk_table(node, layout.entries(), range, found);
                }
            }
        });
    }

    /// Where walks of a CPU go on at a table.
    fn nodes_at(&self, table: usize) -> impl Iterator<Item = (usize, Table, Node)> {
        let of_cpu = move |cpu: usize| {
            let set = if self.mmu[cpu] { Some(&self.tlbs[cpu].tables) } else { None };
            set.into_iter().flatten().filter_map(move |entry| {
                let Table { start, level, limits, observed, .. } = *entry;
                let node = Node { table, level: level + 1, base: start, limits, observed };
                (self.memory.table(entry.next) == Some(table)).then_some((cpu, *entry, node))
            })
        };
        (0..self.config.cpus).flat_map(of_cpu)
    }

    fn is_root(&self, table: usize, index: usize) -> bool {
        self.root.is_some_and(|root| {
            let at = table * self.layout().entries() + index;
            let first = root * self.layout().entries();
            (first..first + self.layout().root_entries()).contains(&at)
        })
    }

    /// Whether a walk can reach a word.
    fn is_linked(&self, table: usize, index: usize) -> bool {
        self.mmu.contains(&true) && (self.is_root(table, index) || self.nodes_at(table).next().is_some())
    }

    /// A walk may observe a word anew.
    fn observe(&mut self, table: usize, index: usize) {
        let all = (0, self.layout().reach());
        let mut found = Vec::new();
        if self.is_root(table, index) {
            let node = self.root_node().expect("there is a root");
            // The root may be of several tables.
            let index = (table - node.table) * self.layout().entries() + index;
            self.walk_word(node, index, all, &mut found);
            for cpu in 0..self.config.cpus {
                self.absorb(cpu, None, &found);
            }
        }
        let nodes: Vec<_> = self.nodes_at(table).collect();
        for (cpu, entry, node) in nodes {
            found.clear();
            self.walk_word(node, index, all, &mut found);
            self.absorb(cpu, Some(entry), &found);
        }
    }

    /// What a walk finds, a TLB may hold.
    fn absorb(&mut self, cpu: usize, via: Option<Table>, found: &[Found]) {
        if !self.mmu[cpu] {
            return;
        }
        for found in found {
            match found {
                Found::Wrong(kind, text) => self.convict(*kind, text.clone()),
                &Found::Fault { start, level, raw } => self.judge_fault(start, level, raw),
                other => {
                    for entry in self.entries(cpu, other).into_iter().flatten() {
                        self.fill(cpu, via, entry);
                    }
                }
            }
        }
    }

    /// The entries that a CPU makes of what a walk has found.
    fn entries(&self, cpu: usize, found: &Found) -> [Option<Entry>; 2] {
        let asid = self.config.asids[cpu];
        match *found {
            Found::Leaf { start, level, output, bits, limits, contiguous } => {
                let asid = is_non_global(self.config.regime, bits).then_some(asid);
                let leaf = Leaf { start, level, output, bits, limits, contiguous, asid, combined: false };
                let combined =
                    self.config.regime.is_stage_2().then_some(Entry::Leaf(Leaf { combined: true, ..leaf }));
                [Some(Entry::Leaf(leaf)), combined]
            }
            Found::Table { start, level, next, limits, observed } => {
                [Some(Entry::Table(Table { start, level, next, limits, asid, observed })), None]
            }
            _ => [None, None],
        }
    }

    fn fill(&mut self, cpu: usize, via: Option<Table>, entry: Entry) {
        let layout = self.layout();
        for operation in &mut self.outstanding {
            let Some(refilled) = operation.refilled.get_mut(cpu) else { continue };
            let target = operation.targets[cpu];
            if !tlb::names(&target, &entry, &layout) {
                continue;
            }
            // The walk began somewhere that the operation has left, or that came back.
            let survives = via.is_none_or(|via| {
                !tlb::names(&target, &Entry::Table(via), &layout) || refilled.has_table(&via)
            });
            if survives {
                refilled.insert(entry);
            }
        }
        if self.tlbs[cpu].insert(entry) {
            match entry {
                Entry::Leaf(leaf) => self.judge_leaf(cpu, leaf),
                Entry::Table(table) => self.judge_table(cpu, table),
            }
        }
    }

    // Judgement.

    /// Whether entries of two sizes may be held for one address: without abort, or where EL2 answers it (R_KFLJB, R_FWRMB).
    fn may_resize(&self, cpu: usize) -> bool {
        self.can(cpu).bbm >= if self.config.regime.is_stage_2() { 2 } else { 3 }
    }
    fn may_join(&self, cpu: usize) -> bool {
        self.can(cpu).bbm >= if self.config.regime.is_stage_2() { 1 } else { 3 }
    }

    fn judge_leaf(&mut self, cpu: usize, leaf: Leaf) {
        let layout = self.layout();
        let end = leaf.start + layout.size(leaf.level);
        let shift = leaf.output.wrapping_sub(leaf.start);
        if let Some(at) = self.expect.refuses((leaf.start, end), shift, leaf.bits) {
            let values = self.expect.values(at);
            return self.convict(
                Kind::WrongTranslation,
                format!("CPU {cpu} may hold {leaf:x?}; right at {at:#x} is {values:x?}"),
            );
        }
        let memory = self.config.regime.memory();
        for other_cpu in 0..self.config.cpus {
            let other = self.tlbs[other_cpu].overlapping(&layout, leaf.start, end).find_map(|other| {
                let apart = matches!((leaf.asid, other.asid), (Some(a), Some(b)) if a != b);
                let same =
                    other.output.wrapping_sub(other.start) == shift && (other.bits ^ leaf.bits) & memory == 0;
                let kind = if apart || *other == leaf {
                    return None;
                } else if !same {
                    Kind::TwoTranslations
                } else if other_cpu != cpu || other.combined != leaf.combined {
                    return None;
                } else if other.level != leaf.level && !self.may_resize(cpu) {
                    Kind::SizeConflict
                } else if other.level == leaf.level
                    && other.contiguous != leaf.contiguous
                    && !self.may_join(cpu)
                {
                    Kind::ContiguousConflict
                } else {
                    return None;
                };
                Some((kind, *other))
            });
            if let Some((kind, other)) = other {
                let text = format!("CPU {other_cpu} may hold {other:x?}, and CPU {cpu} {leaf:x?}");
                return self.convict(kind, text);
            }
        }
        if !self.may_resize(cpu) && !leaf.combined {
            let above = |t: &&Table| {
                t.level >= leaf.level
                    && leaf.start <= t.start
                    && t.start < end
                    && leaf.asid.is_none_or(|asid| asid == t.asid)
            };
            if let Some(table) = self.tlbs[cpu].tables.iter().find(above).copied() {
                self.convict(
                    Kind::SizeConflict,
                    format!("CPU {cpu} may hold {leaf:x?}, and below it {table:x?}"),
                );
            }
        }
    }

    fn judge_table(&mut self, cpu: usize, table: Table) {
        let layout = self.layout();
        let end = table.start + layout.size(table.level);
        let is_block = |leaf: &&Leaf| {
            leaf.level <= table.level && !leaf.combined && leaf.asid.is_none_or(|asid| asid == table.asid)
        };
        let block = self.tlbs[cpu].overlapping(&layout, table.start, end).find(is_block).copied();
        if let Some(leaf) = block.filter(|_| !self.may_resize(cpu)) {
            self.convict(
                Kind::SizeConflict,
                format!("CPU {cpu} may hold {leaf:x?}, and below it {table:x?}"),
            );
        }
        let is_other = |other: &&Table| {
            (other.start, other.level) == (table.start, table.level) && other.next != table.next
        };
        if let Some(other) = self.tlbs.iter().find_map(|set| set.tables.iter().find(is_other)).copied() {
            self.convict(Kind::TwoTranslations, format!("CPUs may hold {other:x?} and {table:x?}"));
        }
    }

    fn judge_fault(&mut self, start: u64, level: u8, raw: u64) {
        if self.config.regime.is_stage_2() && is_changing(raw) {
            return;
        }
        let end = start + self.layout().size(level);
        let parts = match self.held {
            Some((_, from, to)) => [(start, end.min(from).max(start)), (start.max(to).min(end), end)],
            None => [(start, end), (end, end)],
        };
        for part in parts.into_iter().filter(|(from, to)| from < to) {
            if let Some(at) = self.expect.refuses_fault(part) {
                let text = format!(
                    "a walk of {at:#x} may fault on {raw:#x} of level {level}; right is {:x?}",
                    self.expect.values(at)
                );
                return self.convict(Kind::TransientFault, text);
            }
        }
    }

    /// The entry of the newest tables for an address: table, index, word, level.
    fn newest_entry(&self, address: u64) -> Option<(usize, usize, u64, u8)> {
        let layout = self.layout();
        let mut level = layout.start_level;
        let (mut table, mut index) = (self.root?, (address >> layout.shift(level)) as usize);
        loop {
            let raw = self.memory.newest(table, index);
            match Descriptor::decode(raw, level, self.config.regime, &layout) {
                Descriptor::Table { next, .. } => table = self.memory.table(next)?,
                _ => return Some((table, index, raw, level)),
            }
            level += 1;
            index = (address >> layout.shift(level)) as usize & (layout.entries() - 1);
        }
    }

    // Expectations.

    /// A call of `start .. end` begins.
    pub fn begin(&mut self, range: (u64, u64), effect: Effect) -> Begun {
        self.expect.begin(range, effect)
    }

    /// A CPU begins or ends to read with software.
    pub fn reads(&mut self, cpu: usize, begins: bool) {
        match begins {
            true => self.expect.begin_reading(cpu),
            false => self.expect.end_reading(cpu),
        }
    }

    /// A call is over on `cpu`, made or failed, and what it owed is paid: from now on nothing else is right.
    pub fn end(&mut self, cpu: usize, begun: Begun, made: bool) {
        let (start, end) = self.expect.end(begun, made);
        let layout = self.layout();
        if made && !self.config.regime.is_stage_2() && self.mmu[cpu] && self.unsynchronized[cpu] {
            self.convict(Kind::NotSynchronized, format!("CPU {cpu} goes on after a change of {start:#x}"));
        }
        // What tables say now, for software too.
        let mut at = start;
        while at < end && self.mmu.contains(&true) {
            let Some((_, _, raw, level)) = self.newest_entry(at) else { break };
            let size = layout.size(level);
            let (first, after) = (at & !(size - 1), (at & !(size - 1)) + size);
            let part = (at, after.min(end));
            let wrong = match Descriptor::decode(raw, level, self.config.regime, &layout) {
                Descriptor::Leaf { output, bits, .. } => {
                    self.expect.refuses(part, output.wrapping_sub(first), bits)
                }
                _ if self.config.regime.is_stage_2() && is_changing(raw) => None,
                _ if self.held.is_some() => None,
                _ => self.expect.refuses_fault(part),
            };
            if let Some(wrong) = wrong {
                let text = format!(
                    "{wrong:#x} is {raw:#x} of level {level}; right is {:x?}",
                    self.expect.values(wrong)
                );
                self.convict(Kind::LostChange, text);
            }
            at = after;
        }
        self.judge_held((start, end));
    }

    /// What is held and what may still be walked of a range.
    fn judge_held(&mut self, (start, end): (u64, u64)) {
        if start >= end {
            return;
        }
        let layout = self.layout();
        let wrong = self.tlbs.iter().chain(&self.streams).enumerate().find_map(|(number, set)| {
            set.overlapping(&layout, start, end).find_map(|leaf| {
                let after = leaf.start + layout.size(leaf.level);
                let part = (leaf.start.max(start), after.min(end));
                let shift = leaf.output.wrapping_sub(leaf.start);
                self.expect.refuses(part, shift, leaf.bits).map(|at| (number % self.config.cpus, *leaf, at))
            })
        });
        if let Some((cpu, leaf, at)) = wrong {
            let values = self.expect.values(at);
            self.convict(
                Kind::Stale,
                format!("CPU {cpu} may still hold {leaf:x?}; right at {at:#x} is {values:x?}"),
            );
        }
        if self.mmu.contains(&true) {
            for found in self.walk_all((start, end)) {
                if let Found::Fault { start: first, level, raw } = found {
                    self.judge_fault(first, level, raw);
                }
            }
        }
    }

    /// All calls are over and everything is paid.
    pub fn finish(&mut self) {
        (0..self.config.cpus).for_each(|cpu| self.memory.settle_all(cpu));
        self.judge_held((0, self.layout().reach()));
        if let Some(root) = self.root {
            let layout = self.layout();
            let mut reached = layout.root_entries().div_ceil(layout.entries());
            let mut changing = None;
            self.count(root, layout.start_level, layout.root_entries(), &mut reached, &mut changing);
            if let Some(raw) = changing {
                self.convict(Kind::LostChange, format!("entry {raw:#x} is being changed by nobody"));
            }
            let used = self.memory.used();
            if used != reached {
                self.convict(
                    Kind::TableLeak,
                    format!("{used} tables are out of the pool, {reached} in the map"),
                );
            }
        }
        if self.marked
            && let Some(mark) = self.config.mark
            && let Some((_, _, raw, level)) = self.newest_entry(mark.address)
            && let Descriptor::Leaf { .. } =
                Descriptor::decode(raw | 1, level, self.config.regime, &self.layout())
            && !self.config.regime.is_marked(raw, mark.dirty)
            && !self.expect.values(mark.address).contains(&crate::expect::Value::None)
        {
            self.convict(
                Kind::LostFlag,
                format!("{:#x} was marked before step {}, and is {raw:#x}", mark.address, mark.step),
            );
        }
    }

    /// Tables in the newest tree, those that wait to be given back too (their words keep the address).
    fn count(
        &self,
        table: usize,
        level: u8,
        entries: usize,
        reached: &mut usize,
        changing: &mut Option<u64>,
    ) {
        const UNLINKED: u64 = 0b1010;
        for index in 0..entries {
            let raw = self.memory.newest(table, index);
            let next = match Descriptor::decode(raw, level, self.config.regime, &self.layout()) {
                Descriptor::Table { next, .. } => next,
                Descriptor::Invalid if raw & 0xf == UNLINKED => raw & 0x0000_ffff_ffff_f000,
                Descriptor::Invalid if is_changing(raw) => {
                    *changing = Some(raw);
                    continue;
                }
                _ => continue,
            };
            *reached += 1;
            if let Some(next) = self.memory.table(next)
                && level < 3
            {
                self.count(next, level + 1, self.layout().entries(), reached, changing);
            }
        }
    }

    // Steps.

    /// Whether a CPU can execute a call now: one that makes the others stand still waits until they do.
    pub fn held_by(&self) -> Option<usize> {
        self.held.map(|(cpu, ..)| cpu)
    }

    /// One step of a CPU; what the call gives.
    pub fn execute(&mut self, cpu: usize, call: Call) -> u64 {
        self.steps += 1;
        let choice = std::mem::take(&mut self.choice);
        if let Some(mark) = self.config.mark
            && mark.step == self.steps
        {
            self.mark(mark);
        }
        match call {
            Call::Load { table, index } => match self.reachable_word(cpu, table, index) {
                Some((table, index)) => {
                    let raw = self.memory.load(cpu, table, index);
                    self.forget_observed();
                    raw
                }
                None => 0,
            },
            Call::Store { table, index, raw, release } => {
                if let Some((table, index)) = self.reachable_word(cpu, table, index) {
                    self.judge_store(cpu, table, index, raw);
                    match release {
                        true => self.memory.release(cpu, table, index, raw),
                        false => self.memory.store(cpu, table, index, raw),
                    }
                    self.observe(table, index);
                }
                0
            }
            Call::CompareExchange { table, index, old, new } => {
                if !self.mmu[cpu] && self.mmu.contains(&true) {
                    self.convict(
                        Kind::ExclusiveWithMmuOff,
                        format!("CPU {cpu} swaps entry {index} of {table:#x}"),
                    );
                }
                let Some((table, index)) = self.reachable_word(cpu, table, index) else { return 0 };
                let swapped = self.memory.compare_exchange(cpu, table, index, old, new);
                if swapped {
                    self.observe(table, index);
                }
                self.forget_observed();
                u64::from(swapped)
            }
            Call::Fill { table, from, to, raw, step } => {
                for index in from..to {
                    let Some((number, index)) = self.reachable_word(cpu, table, index) else { break };
                    if self.is_linked(number, index) {
                        let text = format!("CPU {cpu} fills entry {index} of {table:#x}, which walks reach");
                        self.convict(Kind::FillOfLinked, text);
                        break;
                    }
                    let raw = raw.wrapping_add((index - from) as u64 * step);
                    self.memory.store(cpu, number, index, raw);
                }
                0
            }
            Call::Tlbi { operation, scope, operand } => {
                self.issue(cpu, operation, scope, operand);
                0
            }
            Call::Barrier { barrier, .. } => {
                self.barrier(cpu, barrier);
                0
            }
            Call::Give { table } => {
                self.give(table);
                0
            }
            Call::Relax | Call::Wait | Call::Between => 0,
            Call::Quiesce { start, size } => {
                if !self.config.quiesce {
                    return 0;
                }
                // The others have executed a DSB.
                (0..self.config.cpus).for_each(|cpu| self.memory.settle_all(cpu));
                self.forget_observed();
                self.held = Some((cpu, start, start + size));
                self.judge_standing();
                1
            }
            Call::ReadLine { line, word } => match self.caches.read_nth(cpu, line, word, choice) {
                Ok(value) => value,
                Err(verdict) => {
                    self.verdict.get_or_insert(verdict);
                    0
                }
            },
            Call::WriteLine { line, first, count, values } => {
                self.caches.write_words(cpu, line, first, count, values);
                0
            }
            Call::SwapLine { line, word, value } => match self.caches.swap(cpu, line, word, value) {
                Ok(old) => old,
                Err(verdict) => {
                    self.verdict.get_or_insert(verdict);
                    0
                }
            },
            Call::Maintain { line, maintenance } => {
                self.caches.maintain(cpu, line, maintenance);
                0
            }
            Call::BarrierSystem => {
                self.caches.barrier(cpu);
                self.complete(cpu);
                self.settle(cpu);
                0
            }
            Call::Clock => choice as u64,
            Call::PowerOn { cpu } => {
                self.powered[cpu] = true;
                0
            }
            Call::IsPowered { cpu } => u64::from(self.powered[cpu]),
            Call::Start => 0,
            Call::PowerOff => {
                self.power_off(cpu);
                0
            }
            Call::TurnOn { root } => {
                self.go_on(cpu, root);
                0
            }
            Call::TurnOff => {
                self.turn_off(cpu);
                0
            }
        }
    }

    /// The CPU has released what it did by variables that the machine does not see.
    pub fn publish(&mut self, cpu: usize) {
        self.memory.publish(cpu);
    }
    /// The CPU may have acquired what others have released so.
    pub fn acquire(&mut self, cpu: usize) {
        // With the MMU off it reads past all that.
        if (self.mmu[cpu] || !self.mmu.contains(&true)) && self.memory.acquire(cpu) {
            self.forget_observed();
        }
    }

    /// What the CPU has stored is seen by everybody, by a DSB that is nobody's part of a change: what has to follow that follows its own.
    pub fn settle(&mut self, cpu: usize) {
        self.memory.settle_all(cpu);
        self.forget_observed();
    }
    /// The others stand still, by whatever means of software's: whoever does not is convicted.
    pub fn hold(&mut self, cpu: usize, start: u64, end: u64) {
        self.held = Some((cpu, start, end));
        self.judge_standing();
    }
    /// The others may go on.
    pub fn release(&mut self) {
        if let Some((_, start, end)) = self.held.take() {
            self.judge_held((start, end));
        }
    }

    fn reachable_word(&mut self, cpu: usize, table: u64, index: usize) -> Option<(usize, usize)> {
        let number = self.memory.table(table);
        let number = number.filter(|&number| self.memory.is_out(number, index));
        let Some(number) = number else {
            let text = format!("CPU {cpu} accesses entry {index} of {table:#x}, which is the pool's");
            self.convict(Kind::SoftwareUseAfterFree, text);
            return None;
        };
        let entries = self.layout().entries();
        Some((number + index / entries, index % entries))
    }

    fn judge_store(&mut self, cpu: usize, table: usize, index: usize, raw: u64) {
        if self.is_linked(table, index) && !self.memory.has_seen(cpu, table, index) {
            let newest = self.memory.newest(table, index);
            let text =
                format!("CPU {cpu} stores {raw:#x} over {newest:#x} of another CPU, which it has not read");
            self.convict(Kind::BlindStore, text);
        }
    }

    fn mark(&mut self, mark: Mark) {
        if !self.mmu.contains(&true) {
            return;
        }
        let Some((table, index, raw, level)) = self.newest_entry(mark.address) else { return };
        if !matches!(
            Descriptor::decode(raw, level, self.config.regime, &self.layout()),
            Descriptor::Leaf { .. }
        ) {
            return;
        }
        if let Some(new) = self.config.regime.marked(raw, mark.dirty) {
            self.memory.mark(table, index, new);
            self.observe(table, index);
        }
        self.marked = self
            .newest_entry(mark.address)
            .is_some_and(|(_, _, raw, _)| self.config.regime.is_marked(raw, mark.dirty));
    }

    fn issue(&mut self, cpu: usize, operation: Tlbi, scope: Scope, operand: u64) {
        let (regime, layout) = (self.config.regime, self.layout());
        let own = self.can(cpu);
        let mut targets = [Target::Nothing; CPUS];
        for (other, target) in targets.iter_mut().enumerate().take(self.config.cpus) {
            if other != cpu && (scope == Scope::Local || !self.powered[other]) {
                continue;
            }
            let theirs = self.can(other);
            // A hint that either of the two knows may restrict the operation.
            let has = (theirs.range, own.ttl || theirs.ttl);
            match Target::decode(operation, operand, regime, &layout, has) {
                Ok(reached) => *target = reached,
                Err(_) if other == cpu => {
                    let text = format!("CPU {cpu} has no {operation:?}");
                    return self.convict(Kind::Undefined, text);
                }
                // Who does not know the operation does nothing for it.
                Err(_) => {}
            }
        }
        let range = match targets[cpu] {
            Target::Addresses { start, end, .. } => (start, end),
            _ => (0, layout.reach()),
        };
        let from_root = self.walk_all(range);
        let mut refilled = vec![Set::default(); self.config.cpus];
        for (other, refilled) in refilled.iter_mut().enumerate() {
            let target = targets[other];
            if !self.mmu[other] || target == Target::Nothing {
                continue;
            }
            let mut found = from_root.clone();
            // Walks go on where the operation leaves a walk cache.
            let left = |table: &&Table| {
                !tlb::names(&target, &Entry::Table(**table), &layout)
                    && table.start < range.1
                    && range.0 < table.start + layout.size(table.level)
            };
            for table in self.tlbs[other].tables.iter().filter(left) {
                let Some(number) = self.memory.table(table.next) else { continue };
                let Table { start, level, limits, observed, .. } = *table;
                let node = Node { table: number, level: level + 1, base: start, limits, observed };
                self.walk_table(node, layout.entries(), range, &mut found);
            }
            let mut add = |entry: Entry| {
                if tlb::names(&target, &entry, &layout) {
                    refilled.insert(entry);
                }
            };
            found
                .iter()
                .for_each(|found| self.entries(other, found).into_iter().flatten().for_each(&mut add));
            if regime.is_stage_2() {
                // What is left of stage 2 is combined again.
                let left =
                    |leaf: &&Leaf| !leaf.combined && !tlb::names(&target, &Entry::Leaf(**leaf), &layout);
                for leaf in self.tlbs[other].leaves.iter().filter(left) {
                    add(Entry::Leaf(Leaf { combined: true, ..*leaf }));
                }
            }
        }
        self.outstanding.push(Outstanding { issuer: cpu, targets, scope, refilled });
    }

    fn barrier(&mut self, cpu: usize, barrier: Barrier) {
        match barrier {
            Barrier::Synchronize => {
                self.unsynchronized[cpu] = false;
                self.streams[cpu] = Set::default();
                return;
            }
            Barrier::StoresVisible => {}
            Barrier::Complete => self.complete(cpu),
        }
        if !self.memory.is_settled(cpu) {
            self.unsynchronized[cpu] = true;
            self.memory.settle_all(cpu);
            self.forget_observed();
        }
    }

    /// What walks have observed of stores that everybody sees says nothing any more.
    fn forget_observed(&mut self) {
        let mut settled = [false; CPUS];
        (0..self.config.cpus).for_each(|cpu| settled[cpu] = self.memory.is_settled(cpu));
        let is_old = |table: &Table| (0..CPUS).any(|cpu| settled[cpu] && table.observed[cpu] != 0);
        let sets = self.outstanding.iter_mut().flat_map(|operation| &mut operation.refilled);
        for set in self.tlbs.iter_mut().chain(sets) {
            if !set.tables.iter().any(is_old) {
                continue;
            }
            let renew = |mut table: Table| {
                (0..CPUS).filter(|&cpu| settled[cpu]).for_each(|cpu| table.observed[cpu] = 0);
                table
            };
            set.tables = std::mem::take(&mut set.tables).into_iter().map(renew).collect();
        }
    }

    /// The invalidations that the CPU has issued are complete (R_YNJCP, R_PSMWS).
    fn complete(&mut self, cpu: usize) {
        let layout = self.layout();
        let all = std::mem::take(&mut self.outstanding);
        let (own, others): (Vec<_>, Vec<_>) = all.into_iter().partition(|operation| operation.issuer == cpu);
        self.outstanding = others;
        let mut primed = Vec::new();
        for operation in own {
            let key = (operation.targets[cpu], operation.scope);
            primed.push(key);
            self.unsynchronized[cpu] = true;
            let again = self.primed[cpu].contains(&key);
            for other in 0..self.config.cpus {
                let (target, theirs) = (operation.targets[other], self.can(other));
                // What must be repeated is what others are using meanwhile.
                let once = operation.scope == Scope::Local || self.can(cpu).once && theirs.once;
                if target == Target::Nothing || !again && !once {
                    continue;
                }
                if other == cpu && target == Target::All {
                    self.unknown[cpu] = false;
                }
                let set = &self.tlbs[other];
                // By address one of several for one address need not go.
                let by_address = target != Target::All;
                let goes = |entry: Entry| {
                    let is_back = match entry {
                        Entry::Leaf(leaf) => operation.refilled[other].leaves.contains(&leaf),
                        Entry::Table(table) => operation.refilled[other].tables.contains(&table),
                    };
                    tlb::names(&target, &entry, &layout)
                        && !is_back
                        && !(by_address && theirs.bbm != 3 && tlb::has_rival(set, &entry, &layout))
                };
                let range = match target {
                    Target::Addresses { start, end, .. } => (start, end),
                    _ => (0, layout.reach()),
                };
                let gone: Vec<Leaf> = set
                    .overlapping(&layout, range.0, range.1)
                    .filter(|leaf| goes(Entry::Leaf(**leaf)))
                    .copied()
                    .collect();
                let tables: Vec<Table> =
                    set.tables.iter().filter(|table| goes(Entry::Table(**table))).copied().collect();
                let set = &mut self.tlbs[other];
                gone.iter().for_each(|leaf| {
                    set.leaves.remove(leaf);
                });
                tables.iter().for_each(|table| {
                    set.tables.remove(table);
                });
                // A DSB here waits for the accesses of the others (R_DCJQM, I_BBMSB).
                let is_named = |leaf: &Leaf| tlb::names(&target, &Entry::Leaf(*leaf), &layout);
                if other != cpu {
                    self.streams[other].leaves.retain(|leaf| !is_named(leaf));
                }
                if other == cpu && !self.config.regime.is_stage_2() {
                    self.streams[cpu].leaves.extend(gone);
                }
            }
        }
        self.primed[cpu] = primed;
    }

    fn give(&mut self, address: u64) {
        let Some(table) = self.memory.table(address).filter(|&table| self.memory.is_out(table, 0)) else {
            return self.convict(Kind::SoftwareUseAfterFree, format!("{address:#x} is given back twice"));
        };
        let held = self.tlbs.iter().enumerate().find_map(|(cpu, set)| {
            set.tables.iter().find(|entry| entry.next == address).map(|entry| (cpu, *entry))
        });
        if let Some((cpu, entry)) = held {
            self.convict(
                Kind::ReusedWhileHeld,
                format!("{address:#x} is given back while CPU {cpu} may hold {entry:x?}"),
            );
        } else if self.mmu.contains(&true) && self.is_root(table, 0) {
            self.convict(Kind::ReusedWhileHeld, format!("{address:#x} is given back, and is the root"));
        }
        self.memory.give(table);
    }

    /// Feeds everything to a hash.
    pub fn fingerprint(&self, into: &mut impl std::hash::Hasher) {
        use std::hash::Hash;
        self.memory.fingerprint(into);
        for (set, stream) in self.tlbs.iter().zip(&self.streams) {
            set.fingerprint(into);
            stream.fingerprint(into);
        }
        for operation in &self.outstanding {
            (operation.issuer, operation.targets).hash(into);
            operation.refilled.iter().for_each(|set| set.fingerprint(into));
        }
        self.expect.hash(into);
        self.held.hash(into);
        self.primed.iter().flatten().for_each(|(target, _)| target.hash(into));
        self.unsynchronized.hash(into);
        self.mmu.hash(into);
        (&self.powered, &self.unknown, &self.roaming, &self.standing).hash(into);
        self.caches.fingerprint(into);
        self.marked.hash(into);
        // When the mark is yet to come, the step counts.
        if let Some(mark) = self.config.mark {
            into.write_u64(self.steps.min(mark.step));
        }
    }
}
