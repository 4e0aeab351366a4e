//! On the machine itself: the monitor over the hypervisor's ownership and its CPUs, as the platform wires it.
//!
//! Invariant: there is one monitor, made when the host first asks for it; before that nothing of this is used.

use core::fmt;

use hyp::el2::boot::{El2Mmu, HostMmu};
use hyp::el2::inject::EntryFeatures;
use hyp::el2::parties::{Parties, RealmMmu};
use hyp::el2::smccc::SmcHandler;
use hyp::el2::vcpu::{Exit, IdView, Running, Vcpu};
use hyp::el2::{hash, host, switch};
use hyp::mapping::Capabilities;
use hyp::stage2::Registers;
use spin::Once;

use crate::by_stage2::{ByStage2, Cpus};
use crate::monitor::Monitor;
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
    fn wait(&self) {
        Parties::wait();
    }
}

type World = ByStage2<'static, HostMmu, El2Mmu, Machine>;

/// Serves RMI to the host: what a platform names as its [`SmcHandler`].
#[derive(Clone, Copy, Debug)]
pub struct Realms;

static MONITOR: Once<Monitor<World>> = Once::new();

impl SmcHandler for Realms {
    fn call(&self, x: &mut [u64; 18]) -> bool {
        let Some(parties) = host::parties() else { return false };
        let monitor = MONITOR.call_once(|| {
            let machine = Machine { parties, switch: switch::World::read(parties.entry) };
            Monitor::new(ByStage2::new(&parties.owners, parties.memory, machine))
        });
        monitor.call(x)
    }
}
