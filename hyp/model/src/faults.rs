//! Mistakes, each of which must be convicted: of what an engine asks of its surroundings, and of what it was told of the machine.
//!
//! Invariant: the engine is the real one; a mistake is made at the seam ([`crate::memory`]), where what the engine asks for is dropped, weakened,
//! reordered or rewritten, or it is made in what the engine was told ([`Fault::lie`]), where its own decisions become the mistake. Each names
//! the kind of verdict that is to be reached, and is reached by exploring the named calls.

use std::cell::{Cell, RefCell};

use hyp::mapping::{Barrier, Capabilities, El1And0, El2, Options, Scope, Stage2, Tag, Tiny, Tlbi};

use crate::explore::{Conviction, Explored};
use crate::machine::{Call, Config, Mark};
use crate::memory::World;
use crate::primitive::{Ground, Trial, Tried, primitives};
use crate::verdict::Kind;

/// For whom the map translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// EL2.
    El2,
    /// Stage 1 of EL1&0, of one ASID.
    El1,
    /// Stage 2.
    Stage2,
}

/// A mistake.
#[derive(Debug)]
pub struct Fault {
    /// What is wrong.
    pub name: &'static str,
    /// What becomes of what the engine asks for.
    pub ask: fn(&Planted, &World, Call) -> u64,
    /// What the engine is told, and what is the case.
    pub lie: fn(&mut Options, &mut Config),
    /// Each CPU has slots of its own, so that nobody knows who reads.
    pub forgets_readers: bool,
    /// Where it is tried.
    pub on: On,
    /// On this machine.
    pub trial: Trial,
    /// Hardware sets a flag before one of the first so many steps; the dirty state too.
    pub marks: (u64, bool),
    /// What the CPUs call.
    pub calls: &'static [&'static str],
    /// What the machine says.
    pub kind: Kind,
}

/// One that is planted.
#[derive(Debug)]
pub struct Planted {
    fault: &'static Fault,
    count: Cell<u64>,
    kept: RefCell<Vec<Call>>,
}

impl Planted {
    /// A new one, which has seen nothing.
    pub fn new(fault: &'static Fault) -> Self {
        Self { fault, count: Cell::new(0), kept: RefCell::default() }
    }
    /// What the engine asks for.
    pub fn ask(&self, world: &World, call: Call) -> u64 {
        (self.fault.ask)(self, world, call)
    }
    /// Whether each CPU has slots of its own.
    pub fn forgets_readers(&self) -> bool {
        self.fault.forgets_readers
    }
    fn next(&self) -> u64 {
        self.count.replace(self.count.get() + 1)
    }
}

impl Fault {
    /// Explores it. Whoever is right finds nothing.
    ///
    /// # Errors
    /// What convicts it.
    pub fn explore(&'static self) -> Result<Explored, Box<Conviction>> {
        match self.on {
            On::El2 => self.explore_in::<El2>(),
            On::El1 => self.explore_in::<El1And0>(),
            On::Stage2 => self.explore_in::<Stage2>(),
        }
    }

    fn explore_in<R: Tried>(&'static self) -> Result<Explored, Box<Conviction>> {
        let all = primitives::<R, Tiny>();
        let named = |name: &&str| all.iter().find(|one| one.name == *name).expect("there is such a call");
        let calls: Vec<_> = self.calls.iter().map(named).collect();
        let mut explored = Explored::default();
        for step in 0..=self.marks.0 {
            let lie = |options: &mut Options, config: &mut Config| {
                (self.lie)(options, config);
                if self.marks.0 > 0 {
                    config.hardware = true;
                    config.mark = Some(Mark { step, address: 0, dirty: self.marks.1 });
                }
            };
            let (one, _) = self.trial.explore(&calls, Some(self), lie)?;
            explored.states += one.states;
        }
        Ok(explored)
    }
}

const VALID: u64 = 1 << 0;
const TABLE: u64 = 0b11;
const CONTIGUOUS: u64 = 1 << 52;
const LOCK: u64 = 1 << 55;
const AF: u64 = 1 << 10;
const CHANGING: u64 = 0b0110;
const UNLINKED: u64 = 0b1010;
const ATTRIBUTES: u64 = 0x7c << 48 | 0xffc;

fn is_unlinked(raw: u64) -> bool {
    raw & 0xf == UNLINKED
}

fn pass(_: &Planted, world: &World, call: Call) -> u64 {
    world.step(call)
}

fn truth(_: &mut Options, _: &mut Config) {}

/// No mistake: the rest of what one says.
pub const NONE: Fault = Fault {
    name: "",
    ask: pass,
    lie: truth,
    forgets_readers: false,
    on: On::El2,
    trial: Trial::new(3, Ground::Block),
    marks: (0, false),
    calls: &[],
    kind: Kind::Stale,
};

/// Drops barriers of this kind.
macro_rules! without_barrier {
    ($barrier:pat) => {
        |_, world, call| match call {
            Call::Barrier { barrier: $barrier, .. } => 0,
            _ => world.step(call),
        }
    };
}

/// Changes operations.
macro_rules! tlbi {
    (|$planted:ident, $world:ident, $operation:ident, $scope:ident, $operand:ident| $body:expr) => {
        |$planted, $world, call| match call {
            Call::Tlbi { operation: $operation, scope: $scope, operand: $operand } => $body,
            _ => $world.step(call),
        }
    };
}

/// Changes what is filled.
macro_rules! fill {
    (|$raw:ident, $step:ident| $body:expr) => {
        |_, world, call| match call {
            Call::Fill { table, from, to, raw: $raw, step: $step } if $raw & ATTRIBUTES != 0 => {
                let (raw, step) = $body;
                world.step(Call::Fill { table, from, to, raw, step })
            }
            _ => world.step(call),
        }
    };
}

fn tell(options: &mut Options, bbm: u8) {
    options.capabilities.remove(Capabilities::BBM);
    options.capabilities |= Capabilities::bbm(bbm);
}

/// With the level that goes with an operand by address.
fn with_level(operand: u64, level: u64) -> u64 {
    operand & !(0xf << 44) | (0b0100 | level) << 44
}

const EDGE: &[&str] = &["protect, one edge"];
const WHOLE: &[&str] = &["protect whole leaves"];
const UNMAP_ALL: &[&str] = &["unmap all"];
const BOTH: &[&str] = &["protect whole leaves", "protect whole leaves"];

const fn on_stage_2(bbm: u8, ground: Ground) -> Fault {
    Fault { on: On::Stage2, trial: Trial::new(bbm, ground), ..NONE }
}

fn break_is_skipped(_: &Planted, world: &World, call: Call) -> u64 {
    match call {
        Call::Store { raw: CHANGING, .. } => 0,
        _ => world.step(call),
    }
}

fn swap_is_no_swap(_: &Planted, world: &World, call: Call) -> u64 {
    match call {
        Call::CompareExchange { table, index, old, new } => {
            let same = world.step(Call::Load { table, index }) == old;
            if same {
                world.step(Call::Store { table, index, raw: new, release: true });
            }
            u64::from(same)
        }
        _ => world.step(call),
    }
}

fn last_level_only(_: &Planted, world: &World, call: Call) -> u64 {
    match call {
        Call::Tlbi { operation: Tlbi::Address(mut reach), scope, operand } => {
            reach.last_level = true;
            world.step(Call::Tlbi { operation: Tlbi::Address(reach), scope, operand })
        }
        Call::Tlbi { operation: Tlbi::Range(mut reach), scope, operand } => {
            reach.last_level = true;
            world.step(Call::Tlbi { operation: Tlbi::Range(reach), scope, operand })
        }
        _ => world.step(call),
    }
}

/// All of them.
pub static FAULTS: &[Fault] = &[
    // Barriers.
    Fault {
        name: "no DSB between the stores and the TLBI",
        ask: without_barrier!(Barrier::StoresVisible),
        calls: WHOLE,
        ..NONE
    },
    Fault { name: "no DSB after the TLBI", ask: without_barrier!(Barrier::Complete), calls: WHOLE, ..NONE },
    Fault {
        name: "DSB ISHST after the TLBI, where ISH is needed",
        ask: |_, world, call| match call {
            Call::Barrier { barrier: Barrier::Complete, scope } => {
                world.step(Call::Barrier { barrier: Barrier::StoresVisible, scope })
            }
            _ => world.step(call),
        },
        calls: WHOLE,
        ..NONE
    },
    Fault {
        name: "the DSB before the TLBI that it is to wait for",
        ask: |_, world, call| match call {
            Call::Tlbi { scope, .. } => {
                world.step(Call::Barrier { barrier: Barrier::Complete, scope });
                world.step(call)
            }
            Call::Barrier { barrier: Barrier::Complete, .. } => 0,
            _ => world.step(call),
        },
        calls: WHOLE,
        ..NONE
    },
    Fault {
        name: "no ISB after a flush",
        ask: without_barrier!(Barrier::Synchronize),
        calls: WHOLE,
        kind: Kind::NotSynchronized,
        ..NONE
    },
    Fault {
        name: "no ISB after a map",
        ask: without_barrier!(Barrier::Synchronize),
        calls: &["map"],
        kind: Kind::NotSynchronized,
        ..NONE
    },
    Fault {
        name: "no DSB after a map",
        ask: without_barrier!(Barrier::StoresVisible),
        calls: &["map"],
        kind: Kind::TransientFault,
        ..NONE
    },
    Fault {
        name: "no DSB between IPAS2E1 and VMALLE1",
        ask: |planted, world, call| match call {
            Call::Barrier { barrier: Barrier::Complete, .. } if planted.next().is_multiple_of(2) => 0,
            _ => world.step(call),
        },
        calls: WHOLE,
        ..on_stage_2(3, Ground::Block)
    },
    Fault {
        name: "no DSB between a break and its TLBI",
        ask: without_barrier!(Barrier::StoresVisible),
        calls: EDGE,
        kind: Kind::SizeConflict,
        ..on_stage_2(0, Ground::Block)
    },
    Fault {
        name: "no DSB between the TLBI of a break and the make",
        ask: without_barrier!(Barrier::Complete),
        calls: EDGE,
        kind: Kind::SizeConflict,
        ..on_stage_2(0, Ground::Block)
    },
    // Stores.
    Fault {
        name: "a table linked by a plain store",
        ask: |_, world, call| match call {
            Call::Store { table, index, raw, .. } => {
                world.step(Call::Store { table, index, raw, release: false })
            }
            _ => world.step(call),
        },
        calls: EDGE,
        kind: Kind::UnfilledTable,
        ..NONE
    },
    Fault {
        name: "a table linked before it is filled",
        ask: |planted, world, call| match call {
            Call::Fill { .. } => {
                planted.kept.borrow_mut().push(call);
                0
            }
            Call::Store { .. } => {
                world.step(call);
                planted.kept.take().into_iter().for_each(|call| {
                    world.step(call);
                });
                0
            }
            _ => world.step(call),
        },
        calls: EDGE,
        kind: Kind::UnfilledTable,
        ..NONE
    },
    Fault {
        name: "a table filled up to the last word but one",
        ask: |_, world, call| match call {
            Call::Fill { table, from, to: to @ (4 | 512), raw, step } => {
                world.step(Call::Fill { table, from, to: to - 1, raw, step })
            }
            _ => world.step(call),
        },
        calls: EDGE,
        kind: Kind::UnfilledTable,
        ..NONE
    },
    Fault {
        name: "a load and a store for the compare-and-swap",
        ask: swap_is_no_swap,
        calls: BOTH,
        kind: Kind::BlindStore,
        ..NONE
    },
    Fault {
        name: "a lock that is not taken",
        ask: |_, world, call| match call {
            Call::CompareExchange { .. } => 1,
            _ => world.step(call),
        },
        calls: BOTH,
        kind: Kind::BlindStore,
        ..NONE
    },
    Fault {
        name: "a lock that is not given back",
        ask: |_, world, call| match call {
            Call::Store { raw, release: true, .. } if raw & (TABLE | LOCK) == TABLE => 0,
            _ => world.step(call),
        },
        calls: BOTH,
        kind: Kind::Deadlock,
        ..NONE
    },
    Fault {
        name: "a fill of a table that is linked",
        ask: |_, world, call| match call {
            Call::Store { table, index, raw, release: true } if raw & ATTRIBUTES != 0 => {
                world.step(Call::Fill { table, from: index, to: index + 1, raw, step: 0 })
            }
            _ => world.step(call),
        },
        calls: &["protect, memory type"],
        kind: Kind::FillOfLinked,
        trial: Trial::new(3, Ground::Pages),
        ..NONE
    },
    // Breaks.
    Fault {
        name: "a break skipped at level 0",
        ask: break_is_skipped,
        calls: EDGE,
        kind: Kind::SizeConflict,
        ..on_stage_2(0, Ground::Block)
    },
    Fault {
        name: "a break skipped at level 1",
        ask: break_is_skipped,
        calls: EDGE,
        kind: Kind::SizeConflict,
        ..on_stage_2(1, Ground::Block)
    },
    Fault {
        name: "a break skipped while others stand still",
        ask: break_is_skipped,
        calls: EDGE,
        kind: Kind::SizeConflict,
        trial: Trial::new(0, Ground::Block),
        ..NONE
    },
    Fault {
        name: "a break skipped for a collapse",
        ask: break_is_skipped,
        calls: &["collapse"],
        kind: Kind::SizeConflict,
        ..on_stage_2(0, Ground::Pages)
    },
    Fault {
        name: "a break skipped for a memory type",
        ask: break_is_skipped,
        calls: &["protect, memory type"],
        kind: Kind::TwoTranslations,
        trial: Trial::new(3, Ground::Pages),
        ..NONE
    },
    Fault {
        name: "a broken entry that is empty: the guest's fault is believed",
        ask: |_, world, call| match call {
            Call::Store { table, index, raw: CHANGING, release } => {
                world.step(Call::Store { table, index, raw: 0, release })
            }
            _ => world.step(call),
        },
        calls: EDGE,
        kind: Kind::TransientFault,
        ..on_stage_2(0, Ground::Block)
    },
    Fault {
        name: "a break without its TLBI",
        ask: tlbi!(|_planted, _world, _operation, _scope, _operand| 0),
        calls: EDGE,
        kind: Kind::SizeConflict,
        ..on_stage_2(0, Ground::Block)
    },
    Fault {
        name: "a break at stage 1 while others run",
        ask: |_, world, call| match call {
            Call::Quiesce { .. } => 1,
            _ => world.step(call),
        },
        calls: EDGE,
        kind: Kind::TransientFault,
        trial: Trial::new(0, Ground::Block),
        ..NONE
    },
    Fault {
        name: "half of what is broken is quiet",
        ask: |_, world, call| match call {
            Call::Quiesce { start, size } => world.step(Call::Quiesce { start, size: size / 2 }),
            _ => world.step(call),
        },
        calls: EDGE,
        kind: Kind::TransientFault,
        trial: Trial::new(0, Ground::Block),
        ..NONE
    },
    Fault {
        name: "level 2 taken for level 3",
        lie: |options, _| tell(options, 3),
        calls: EDGE,
        kind: Kind::SizeConflict,
        trial: Trial::new(2, Ground::Block),
        ..NONE
    },
    Fault {
        name: "level 0 taken for level 3",
        lie: |options, _| tell(options, 3),
        calls: EDGE,
        kind: Kind::SizeConflict,
        trial: Trial::new(0, Ground::Block),
        ..NONE
    },
    Fault {
        name: "level 2 taken for level 3: no invalidation of everything",
        lie: |options, _| tell(options, 3),
        calls: EDGE,
        ..on_stage_2(2, Ground::Block)
    },
    Fault {
        name: "level 1 taken for level 2: nT forgotten",
        lie: |options, _| tell(options, 2),
        calls: EDGE,
        kind: Kind::SizeConflict,
        ..on_stage_2(1, Ground::Block)
    },
    Fault {
        name: "level 0 taken for level 1: a run changed in place",
        lie: |options, _| tell(options, 1),
        calls: &["split_edges"],
        kind: Kind::ContiguousConflict,
        ..on_stage_2(0, Ground::Pages)
    },
    // Invalidation.
    Fault {
        name: "no TLBI",
        ask: tlbi!(|_planted, _world, _operation, _scope, _operand| 0),
        calls: WHOLE,
        ..NONE
    },
    Fault {
        name: "no TLBI after an unmap",
        ask: tlbi!(|_planted, _world, _operation, _scope, _operand| 0),
        calls: &["unmap"],
        ..NONE
    },
    Fault {
        name: "one TLBI for a run: its last leaf stays",
        ask: tlbi!(|planted, world, operation, scope, operand| match planted.next() {
            3 => 0,
            _ => world.step(Call::Tlbi { operation, scope, operand }),
        }),
        calls: WHOLE,
        trial: Trial::new(0, Ground::Pages),
        ..NONE
    },
    Fault {
        name: "a range of pages for which the first is taken",
        ask: tlbi!(|_planted, world, operation, scope, operand| match operation {
            Tlbi::Range(reach) => {
                world.step(Call::Tlbi {
                    operation: Tlbi::Address(reach),
                    scope,
                    operand: operand & ((1 << 36) - 1),
                })
            }
            _ => world.step(Call::Tlbi { operation, scope, operand }),
        }),
        calls: WHOLE,
        trial: Trial::new(3, Ground::Pages),
        ..NONE
    },
    Fault {
        name: "a TLBI of the page after",
        ask: tlbi!(|_planted, world, operation, scope, operand| world.step(Call::Tlbi {
            operation,
            scope,
            operand: operand + 4
        })),
        calls: WHOLE,
        trial: Trial::new(2, Ground::Block),
        ..NONE
    },
    Fault {
        name: "the hint of level 3 for a block",
        ask: tlbi!(|_planted, world, operation, scope, operand| world.step(Call::Tlbi {
            operation,
            scope,
            operand: with_level(operand, 3)
        })),
        calls: WHOLE,
        ..NONE
    },
    Fault {
        name: "a level hint after a change of size",
        ask: tlbi!(|_planted, world, operation, scope, operand| match operation {
            Tlbi::Range(_) => world.step(Call::Tlbi { operation, scope, operand: operand | 3 << 37 }),
            _ => world.step(Call::Tlbi { operation, scope, operand: with_level(operand, 3) }),
        }),
        calls: EDGE,
        ..NONE
    },
    Fault {
        name: "the last-level form for an unlinked table",
        ask: last_level_only,
        calls: UNMAP_ALL,
        kind: Kind::ReusedWhileHeld,
        ..NONE
    },
    Fault {
        name: "the last-level form for a collapsed table",
        ask: last_level_only,
        calls: &["collapse"],
        kind: Kind::TransientFault,
        trial: Trial::new(3, Ground::Pages),
        ..NONE
    },
    Fault {
        name: "no invalidation of what combines both stages",
        ask: tlbi!(|_planted, world, operation, scope, operand| match operation {
            Tlbi::Combined => 0,
            _ => world.step(Call::Tlbi { operation, scope, operand }),
        }),
        calls: WHOLE,
        ..on_stage_2(3, Ground::Block)
    },
    Fault {
        name: "VMALLE1 before IPAS2E1",
        ask: tlbi!(|_planted, world, operation, scope, operand| match operation {
            Tlbi::Combined => 0,
            _ => {
                world.step(Call::Tlbi { operation: Tlbi::Combined, scope, operand: 0 });
                world.step(Call::Barrier { barrier: Barrier::Complete, scope });
                world.step(Call::Tlbi { operation, scope, operand })
            }
        }),
        calls: WHOLE,
        ..on_stage_2(3, Ground::Block)
    },
    Fault {
        name: "an address form where ALL is needed",
        ask: tlbi!(|_planted, world, operation, scope, operand| match operation {
            Tlbi::All => {
                let reach = hyp::mapping::mmu::Reach { last_level: false, one_asid: false };
                for page in 0..8 {
                    world.step(Call::Tlbi { operation: Tlbi::Address(reach), scope, operand: page });
                }
                world.step(Call::Barrier { barrier: Barrier::Complete, scope });
                world.step(Call::Tlbi { operation: Tlbi::Combined, scope, operand: 0 })
            }
            _ => world.step(Call::Tlbi { operation, scope, operand }),
        }),
        calls: EDGE,
        ..on_stage_2(2, Ground::Block)
    },
    Fault {
        name: "VMALLE1 where VMALLS12E1 is needed",
        ask: tlbi!(|_planted, world, operation, scope, operand| match operation {
            Tlbi::All => world.step(Call::Tlbi { operation: Tlbi::Combined, scope, operand }),
            _ => world.step(Call::Tlbi { operation, scope, operand }),
        }),
        calls: EDGE,
        ..on_stage_2(2, Ground::Block)
    },
    Fault {
        name: "a local TLBI",
        ask: tlbi!(|_planted, world, operation, _scope, operand| world.step(Call::Tlbi {
            operation,
            scope: Scope::Local,
            operand
        })),
        calls: WHOLE,
        ..NONE
    },
    Fault {
        name: "a map of one CPU that two use",
        lie: |options, _| options.scope = Scope::Local,
        calls: WHOLE,
        ..NONE
    },
    Fault {
        name: "a TLBI of another ASID",
        ask: tlbi!(|_planted, world, operation, scope, operand| world.step(Call::Tlbi {
            operation,
            scope,
            operand: operand ^ 1 << 48
        })),
        calls: WHOLE,
        on: On::El1,
        ..NONE
    },
    Fault {
        name: "a map of another ASID",
        lie: |options, _| options.tag = Tag::Asid(6),
        calls: WHOLE,
        on: On::El1,
        ..NONE
    },
    Fault {
        name: "one ASID's entries of a map of all",
        lie: |options, config| {
            options.tag = Tag::Asid(5);
            config.asids = [5, 6, 5, 6];
        },
        calls: WHOLE,
        on: On::El1,
        ..NONE
    },
    Fault {
        name: "the lower half's addresses for a map of the upper",
        lie: |_, config| config.layout.upper_half = true,
        calls: WHOLE,
        on: On::El1,
        ..NONE
    },
    Fault {
        name: "a range form on CPUs without FEAT_TLBIRANGE",
        lie: |_, config| config.each(|can| can.range = false),
        calls: WHOLE,
        trial: Trial::new(3, Ground::Pages),
        kind: Kind::Undefined,
        ..NONE
    },
    Fault {
        name: "a TLBI that is not repeated where it must be",
        lie: |_, config| config.each(|can| can.once = false),
        calls: WHOLE,
        ..NONE
    },
    Fault {
        name: "a repeated TLBI without the DSB between",
        ask: |planted, world, call| match call {
            Call::Barrier { barrier: Barrier::Complete, .. } if planted.next().is_multiple_of(2) => 0,
            _ => world.step(call),
        },
        calls: WHOLE,
        trial: Trial { once: false, ..Trial::new(3, Ground::Block) },
        ..NONE
    },
    // What is written.
    Fault {
        name: "the memory type is not inherited by a split",
        ask: fill!(|raw, step| (raw & !0x1c, step)),
        calls: EDGE,
        kind: Kind::WrongTranslation,
        ..NONE
    },
    Fault {
        name: "the shareability is not inherited by a split",
        ask: fill!(|raw, step| (raw & !0x300, step)),
        calls: EDGE,
        kind: Kind::WrongTranslation,
        ..NONE
    },
    Fault {
        name: "a permission is not inherited by a split",
        ask: fill!(|raw, step| (raw & !(1 << 54), step)),
        calls: EDGE,
        kind: Kind::WrongTranslation,
        ..NONE
    },
    Fault {
        name: "nG is not inherited by a split",
        ask: fill!(|raw, step| (raw & !(1 << 11), step)),
        calls: EDGE,
        kind: Kind::WrongTranslation,
        on: On::El1,
        ..NONE
    },
    Fault {
        name: "all pages of a split have one output",
        ask: fill!(|raw, _step| (raw, 0)),
        calls: EDGE,
        kind: Kind::WrongTranslation,
        ..NONE
    },
    Fault {
        name: "a split that starts a page too far",
        ask: fill!(|raw, step| (raw + 0x1000, step)),
        calls: EDGE,
        kind: Kind::WrongTranslation,
        ..NONE
    },
    Fault {
        name: "a run that lacks its last leaf",
        ask: |_, world, call| match call {
            Call::Fill { table, from, to, raw, step } if raw & CONTIGUOUS != 0 => {
                world.step(Call::Fill { table, from, to: to - 1, raw, step });
                let last = raw.wrapping_add((to - 1 - from) as u64 * step) & !CONTIGUOUS;
                world.step(Call::Fill { table, from: to - 1, to, raw: last, step })
            }
            _ => world.step(call),
        },
        calls: EDGE,
        kind: Kind::ContiguousConflict,
        ..on_stage_2(0, Ground::Block)
    },
    Fault {
        name: "a change in place that forgets the output",
        ask: |_, world, call| match call {
            Call::Store { table, index, raw, release } if raw & TABLE == VALID => {
                world.step(Call::Store { table, index, raw: raw ^ 1 << 20, release })
            }
            _ => world.step(call),
        },
        calls: WHOLE,
        kind: Kind::WrongTranslation,
        ..NONE
    },
    Fault {
        name: "a change that is not stored",
        ask: |_, world, call| match call {
            Call::Store { raw, .. } if raw & TABLE == VALID => 0,
            _ => world.step(call),
        },
        calls: WHOLE,
        kind: Kind::LostChange,
        ..NONE
    },
    // Tables.
    Fault {
        name: "a table given back before the flush",
        ask: |_, world, call| match call {
            Call::Store { raw, .. } if is_unlinked(raw) => {
                world.step(call);
                world.step(Call::Give { table: raw & 0x0000_ffff_ffff_f000 })
            }
            _ => world.step(call),
        },
        calls: UNMAP_ALL,
        kind: Kind::ReusedWhileHeld,
        ..NONE
    },
    Fault {
        name: "a table given back without a TLBI",
        ask: tlbi!(|_planted, _world, _operation, _scope, _operand| 0),
        calls: UNMAP_ALL,
        kind: Kind::ReusedWhileHeld,
        ..NONE
    },
    Fault {
        name: "a table given back that is linked still",
        ask: |_, world, call| match call {
            Call::Store { raw, .. } if is_unlinked(raw) => 0,
            Call::Barrier { .. } => world.step(call),
            _ => world.step(call),
        },
        calls: UNMAP_ALL,
        kind: Kind::LostChange,
        ..NONE
    },
    Fault {
        name: "a table given back twice",
        ask: |_, world, call| match call {
            Call::Give { .. } => {
                world.step(call);
                world.step(call)
            }
            _ => world.step(call),
        },
        calls: UNMAP_ALL,
        kind: Kind::SoftwareUseAfterFree,
        ..NONE
    },
    Fault {
        name: "a table that is not given back",
        ask: |_, world, call| match call {
            Call::Give { .. } => 0,
            _ => world.step(call),
        },
        calls: UNMAP_ALL,
        kind: Kind::TableLeak,
        ..NONE
    },
    Fault {
        name: "a table unmapped and given back under a reader",
        forgets_readers: true,
        calls: &["unmap all", "translate, walk"],
        kind: Kind::SoftwareUseAfterFree,
        ..NONE
    },
    Fault {
        name: "a table collapsed and given back under a reader",
        forgets_readers: true,
        calls: &["collapse", "translate, walk"],
        kind: Kind::SoftwareUseAfterFree,
        trial: Trial::new(3, Ground::Pages),
        ..NONE
    },
    // Flags that hardware sets.
    Fault {
        name: "an access flag lost by a split: nobody said that hardware sets them",
        calls: &["split_edges"],
        marks: (40, false),
        trial: Trial::new(3, Ground::Marked),
        kind: Kind::LostFlag,
        ..NONE
    },
    Fault {
        name: "a dirty flag lost by a split: nobody said that hardware sets them",
        calls: &["split_edges"],
        marks: (40, true),
        trial: Trial::new(3, Ground::Marked),
        kind: Kind::LostFlag,
        ..NONE
    },
    Fault {
        name: "an access flag lost by a plain store",
        calls: WHOLE,
        marks: (40, false),
        trial: Trial::new(3, Ground::Marked),
        kind: Kind::LostFlag,
        ..NONE
    },
    Fault {
        name: "an access flag lost by a load and a store for the compare-and-swap",
        ask: swap_is_no_swap,
        lie: |options, _| options.hardware_updates = true,
        calls: WHOLE,
        marks: (40, false),
        trial: Trial::new(3, Ground::Marked),
        kind: Kind::LostFlag,
        ..NONE
    },
    Fault {
        name: "access flags clear in what a split leaves",
        ask: fill!(|raw, step| (raw & !AF, step)),
        lie: |options, _| options.hardware_updates = true,
        calls: &["split_edges"],
        marks: (40, false),
        trial: Trial::new(3, Ground::Marked),
        kind: Kind::LostFlag,
        ..NONE
    },
    // A CPU with its MMU off.
    Fault {
        name: "a lock taken by a CPU with its MMU off",
        lie: |_, config| config.off = 1,
        calls: WHOLE,
        kind: Kind::ExclusiveWithMmuOff,
        ..NONE
    },
];

/// The same calls on the same machine without the mistake.
///
/// # Errors
/// What is wrong all the same.
pub fn explore_without(fault: &'static Fault) -> Result<Explored, Box<Conviction>> {
    fn explore_in<R: Tried>(fault: &'static Fault) -> Result<Explored, Box<Conviction>> {
        let all = primitives::<R, Tiny>();
        let named = |name: &&str| all.iter().find(|one| one.name == *name).expect("there is such a call");
        let calls: Vec<_> = fault.calls.iter().map(named).collect();
        let mut explored = Explored::default();
        for step in 0..=fault.marks.0 {
            let (one, made) = fault.trial.explore(&calls, None, |options, config| {
                if fault.marks.0 > 0 {
                    options.hardware_updates = true;
                    config.hardware = true;
                    config.mark = Some(Mark { step, address: 0, dirty: fault.marks.1 });
                }
            })?;
            assert!(made.iter().all(|&made| made > 0), "{}: a call was never made", fault.name);
            explored.states += one.states;
        }
        Ok(explored)
    }
    match fault.on {
        On::El2 => explore_in::<El2>(fault),
        On::El1 => explore_in::<El1And0>(fault),
        On::Stage2 => explore_in::<Stage2>(fault),
    }
}
