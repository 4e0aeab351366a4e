//! On the machine itself: the monitor over the hypervisor's ownership and its CPUs, as the platform wires it.
//!
//! Invariant: there is one monitor, made when the host first asks for it; before that nothing of this is used. Without a host at EL1 that is the
//! [policy], which has one realm: the first.

use core::fmt;

use arm_sysregs::el0::accessors::{read_cntfrq_el0, read_cntpct_el0};
use hyp::el2::boot::{El2Mmu, Guest, HostMmu, Reside};
use hyp::el2::fault;
use hyp::el2::guests::{Advertised, Traced};
use hyp::el2::host::{Resident, call_psci};
use hyp::el2::inject::EntryFeatures;
use hyp::el2::parties::{Parties, RealmMmu};
use hyp::el2::smccc::SmcHandler;
use hyp::el2::vcpu::{Exit, IdView, Running, Vcpu};
use hyp::el2::{hash, host, switch};
use hyp::mapping::{Capabilities, Pa, Range};
use hyp::stage2::Registers;
use log::{info, warn};
use smccc::psci::{PSCI_CPU_OFF, PSCI_CPU_ON_64, PSCI_SYSTEM_OFF, PSCI_SYSTEM_RESET};
use spin::Once;

use crate::by_stage2::{ByStage2, Cpus};
use crate::monitor::Monitor;
use crate::policy::{self, Board, MAX_RECS, Over, Plan, Policy, Ranges, TurnedOn};
use crate::trace::{Kept, Moment, Sink, Trace};
use crate::world::Features;

/// The machine's CPUs.
pub struct Machine {
    parties: &'static Parties,
    switch: switch::World,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.switch)
    }
}

impl Cpus for Machine {
    type Mmu = RealmMmu;

    fn features(&self) -> Features {
        Features {
            limits: self.parties.limits,
            list_registers: self.switch.list_registers,
            priority_bits: self.switch.priority_bits,
            intid_bits: self.switch.intid_bits,
        }
    }
    fn capabilities(&self) -> Capabilities {
        self.parties.capabilities()
    }
    fn id_view(&self) -> &IdView {
        &self.switch.view
    }
    fn advertised(&self) -> Advertised {
        self.parties.advertised
    }
    fn entry_features(&self) -> EntryFeatures {
        self.parties.entry
    }
    fn joins(&self) -> Option<bool> {
        self.parties.is_short_of_tables().then(|| self.parties.has_blocks_at_el2())
    }
    fn can_run(&self) -> bool {
        self.switch.can_run()
    }
    fn mmu(&self, registers: &Registers) -> RealmMmu {
        self.parties.realm_mmu(*registers)
    }
    fn run(
        &self,
        vcpu: &mut Vcpu,
        registers: &Registers,
        host_has_sve: bool,
        answer: &mut dyn FnMut(&mut Running, &Exit) -> bool,
    ) -> Exit {
        // SAFETY: the host has called, at EL2, inside the gate. The commands keep a realm's map, and its VMID, until its last REC is gone; a
        // map that is given up is invalidated on all CPUs first. A REC runs on one CPU at a time, and no two of a realm have one MPIDR.
        let exit = unsafe { self.switch.run(vcpu, registers, host_has_sve, answer) };
        // The command has asked for streaming mode, which the host cannot turn on meanwhile.
        exit.unwrap_or(Exit::Irq)
    }
    fn sha256(&self, state: &mut [u32; 8], blocks: &[[u8; 64]]) {
        if !hash::sha256(state, blocks) {
            sha2::block_api::compress256(state, blocks);
        }
    }
    fn forget_instructions(&self) {
        Parties::forget_instructions();
    }
    fn is_lost(&self, ipa: u64) {
        static SAID: Once<()> = Once::new();
        // One CPU says how it ends.
        while HOST.get().is_some_and(|policy| !policy.claim_end()) {
            Parties::wait();
        }
        let whose = if PLAN.get().is_some() { "policy" } else { "realm" };
        SAID.call_once(|| {
            warn!(
                "{whose}: the guest accessed IPA {ipa:#x} as if it were no realm, and has never asked RSI_VERSION: a kernel without realm \
                 support (Linux has it from 6.13 on), or an earlycon address without the shared bit"
            );
        });
        if PLAN.get().is_some() {
            end(PSCI_SYSTEM_OFF);
        }
    }
    fn wait(&self) {
        Parties::wait();
    }
    fn stand<T>(&self, work: impl FnOnce() -> T) -> T {
        Parties::stand(work)
    }
    fn moment(&self) -> Moment {
        let (cpu, ticks, frequency) = Parties::moment();
        Moment { cpu, ticks, frequency }
    }
}

type World = ByStage2<'static, HostMmu, El2Mmu, Machine>;

/// Serves RMI to the host: what a platform names as its [`SmcHandler`].
#[derive(Clone, Copy, Debug)]
pub struct Realms;

static MONITOR: Once<Monitor<World>> = Once::new();
static TRACE: Once<Trace> = Once::new();

/// From now on what is called is told to `sink`, as far as `of` says. Before the host runs.
pub fn trace(of: Traced, sink: Sink) {
    static KEPT: Kept = Kept::new();
    TRACE.call_once(|| Trace::new(of, sink, &KEPT));
}

impl SmcHandler for Realms {
    fn call(&self, x: &mut [u64; 18]) -> bool {
        monitor().is_some_and(|monitor| monitor.call(x))
    }
    fn leaving(&self) {
        if let Some(monitor) = MONITOR.get() {
            monitor.tell_kept();
        }
    }
}

fn monitor() -> Option<&'static Monitor<World>> {
    let parties = host::parties()?;
    Some(MONITOR.call_once(|| {
        let switch = switch::World::read(parties.entry, parties.advertised);
        let switch = if PLAN.get().is_some() { switch.with_direct_interrupts() } else { switch };
        let trace = TRACE.get().copied().unwrap_or(Trace::NOTHING);
        let machine = Machine { parties, switch };
        Monitor::traced(ByStage2::new(&parties.owners, parties.memory, machine), trace)
    }))
}

/// For a machine without a host at EL1: the policy stays in its place, with a realm that has the machine.
pub const POLICY: Reside = (policy::wanted, reside);

static PLAN: Once<Plan> = Once::new();
static HOST: Once<Policy<World, Firmware>> = Once::new();

/// The machine, for the policy.
#[derive(Debug)]
struct Firmware;

impl Board for Firmware {
    fn say(&self, line: fmt::Arguments<'_>) {
        info!("{line}");
    }
    fn now(&self) -> (u64, u64) {
        (read_cntpct_el0().bits(), read_cntfrq_el0().bits())
    }
    fn turn_on(&self, cpu: usize) -> TurnedOn {
        const ALREADY_ON: i64 = -4;
        const ON_PENDING: i64 = -5;
        // Where it would begin at EL1 does not matter: it stays at EL2.
        let target = PLAN.get().and_then(|plan| Some([*plan.cpus.get(cpu)?, plan.entry, 0]));
        match target.map(|target| call_psci(PSCI_CPU_ON_64, target)) {
            Some(0) => TurnedOn::Comes,
            Some(ALREADY_ON | ON_PENDING) => TurnedOn::NotOffYet,
            other => TurnedOn::Refused(other.unwrap_or(0)),
        }
    }
    fn turn_off(&self) {
        call_psci(PSCI_CPU_OFF, [0; 3]);
    }
    fn wait(&self) {
        Parties::wait();
    }
}

/// Who stays.
#[derive(Debug)]
struct Stays;

impl Resident for Stays {
    fn run(&self, cpu: usize) -> ! {
        let Some(policy) = HOST.get().or_else(begin) else {
            fault::refuse(format_args!("policy: there is nothing to run"))
        };
        match policy.run(cpu) {
            Over::Off | Over::Failed => end(PSCI_SYSTEM_OFF),
            Over::Reset => end(PSCI_SYSTEM_RESET),
            Over::Elsewhere => loop {
                Parties::wait();
            },
        }
    }
}

/// On the boot CPU: makes the policy, and its realm.
// Not in the frame of who runs a realm.
#[inline(never)]
fn begin() -> Option<&'static Policy<World, Firmware>> {
    let (monitor, plan) = (monitor()?, PLAN.get()?);
    let policy = HOST.call_once(|| Policy::new(monitor, Firmware, plan));
    if let Err(problem) = policy.make() {
        fault::refuse(format_args!("policy: the realm cannot be made: {problem}"));
    }
    Some(policy)
}

/// Ends the machine's run, if the firmware can.
fn end(function: u32) -> ! {
    Realms.leaving();
    call_psci(function, [0; 3]);
    loop {
        Parties::wait();
    }
}

fn reside(guest: &Guest<'_>) -> &'static dyn Resident {
    if PLAN.get().is_none() {
        match plan(guest) {
            Some(plan) => PLAN.call_once(|| plan),
            None => {
                fault::refuse(format_args!("policy: the machine has too many CPUs, parts of RAM or devices"))
            }
        };
    }
    &Stays
}

/// What a realm is to be made of that has the machine.
#[inline(never)]
fn plan(guest: &Guest<'_>) -> Option<Plan> {
    let mut cpus = [0; MAX_RECS];
    let cpu_count = guest.cpus.len();
    cpus.get_mut(..cpu_count)?.iter_mut().zip(guest.cpus).for_each(|(to, cpu)| *to = cpu.mpidr());
    let no_map: [&[Range<Pa>]; 3] = [guest.own, guest.no_map, core::slice::from_ref(&guest.granules)];
    let ram = guest.ram.iter().flat_map(|bank| bank.minus(no_map[0]));
    let ram = ram.flat_map(|part| part.minus(no_map[1])).flat_map(|part| part.minus(no_map[2]));
    Some(Plan {
        entry: guest.entry.pc,
        kernel: guest.kernel,
        initrd: guest.initrd,
        tree: guest.tree,
        ram: Ranges::new(ram)?,
        devices: Ranges::new(guest.devices.iter().copied())?,
        granules: guest.granules,
        cpus,
        cpu_count,
    })
}
