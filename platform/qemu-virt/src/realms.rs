//! SCRATCH.
use hyp::el2::boot::{El2Mmu, HostMmu};
use hyp::el2::inject::EntryFeatures;
use hyp::el2::parties::{Parties, RealmMmu};
use hyp::el2::smccc::SmcHandler;
use hyp::el2::switch;
use hyp::el2::vcpu::{Exit, IdView, Running, Vcpu};
use hyp::mapping::{Capabilities, Geometry, Pa};
use hyp::stage2::Registers;
use rmm_shim::world::Features;
use rmm_shim::{ByStage2, Cpus, Monitor};
use spin::Once;

pub struct Machine { parties: &'static Parties, world: switch::World }

impl Cpus for Machine {
    type Mmu = RealmMmu;
    fn features(&self) -> Features {
        Features { limits: self.parties.limits, list_registers: self.world.list_registers, priority_bits: 5, intid_bits: 16 }
    }
    fn capabilities(&self) -> Capabilities { self.parties.capabilities() }
    fn id_view(&self) -> &IdView { &self.world.view }
    fn entry_features(&self) -> EntryFeatures { self.world.entry }
    fn mmu(&self, vmid: u16, root: Pa) -> RealmMmu {
        let geometry = Geometry::stage2(40).unwrap();
        // SAFETY: scratch.
        unsafe { self.parties.realm_mmu(root, geometry, vmid) }
    }
    fn run(&self, vcpu: &mut Vcpu, registers: &Registers, host_has_sve: bool, answer: &mut dyn FnMut(&mut Running, &Exit) -> bool) -> Exit {
        // SAFETY: scratch.
        unsafe { self.world.run(vcpu, registers, host_has_sve, answer) }.unwrap()
    }
    fn wait(&self) { self.parties.wait() }
}

static MONITOR: Once<Monitor<ByStage2<'static, HostMmu, El2Mmu, Machine>>> = Once::new();

pub struct Realms;
impl SmcHandler for Realms {
    fn call(&self, x: &mut [u64; 18]) -> bool {
        let Some(parties) = hyp::el2::host::parties() else { return false };
        let monitor = MONITOR.call_once(|| {
            let features: EntryFeatures = hyp::el2::host::entry_features();
            let machine = Machine { parties, world: switch::World::read(features) };
            Monitor::new(ByStage2::new(&parties.owners, parties.memory, machine))
        });
        monitor.call(x)
    }
}
