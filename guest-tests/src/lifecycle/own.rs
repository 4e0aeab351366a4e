//! The payload's own linear map, as an EL1 kernel would have it: its policy, who is let in, and how others stand still.
//!
//! Invariant: the image (code, stacks, variables, the first tables) and the memory of the other tables are pinned: mapped in pages before
//! anything else and never changed. A CPU is inside the gate from its first order on, and passes wherever it waits for another.

use core::ops::ControlFlow;

use arm_sysregs::el1::accessors::read_id_aa64mmfr0_el1;
use arrayvec::ArrayVec;
use dtoolkit::fdt::Fdt;
use guest_tests::entry::{self, Cpu};
use guest_tests::memory::{MAX_CPUS, range, stack_end, symbol};
use guest_tests::report::UART;
use guest_tests::say;
use guest_tests::{believed, cpus};
use hyp::caps::admission::{Admission, Denied, OfPolicy, leaves_of_all};
use hyp::caps::detect::IdRegisters;
use hyp::caps::gate::{Gate, Here};
use hyp::caps::lifecycle::{Finalized, Lifecycle, Starting};
use hyp::caps::mailbox::{Lines, Mailbox};
use hyp::caps::policy::{Late, Policy};
use hyp::machine::{MAX_RANGES, Machine};
use hyp::mapping::{
    Address, Attributes, Capabilities, El1And0, Entry, Leaves, Linear, Options, Pa, Pool, Range, Slot, Va,
};
use hyp::stage1::install::{CpuMmu, IDENTITY};
use hyp::stage1::{self, LinearMap, Registers};
use hyp::start::BOOT_TABLES;
use hyp::trial::requests::REGION;
use spin::Once;

const PAGE: u64 = 4096;
const BLOCK: u64 = 2 << 20;

/// An EL1 kernel's CPUs at the gate.
pub struct Kernel;

impl Here for Kernel {
    fn number(&self) -> usize {
        Cpu::this().number
    }
    fn is_pinned(&self, start: u64, end: u64) -> bool {
        let overlaps = |range: &Range<Pa>| range.start().get() < end && start < range.end();
        PINNED.get().is_none_or(|pinned| pinned.iter().any(overlaps))
    }
    fn settle(&self) {
        entry::settle();
    }
    fn synchronize(&self) {
        entry::synchronize();
    }
}

/// Who runs at EL1 is inside.
pub static GATE: Gate<Kernel, MAX_CPUS> = Gate::new(Kernel);
static QUIESCE: &Gate<Kernel, MAX_CPUS> = &GATE;
static PINNED: Once<[Range<Pa>; 2]> = Once::new();
static POOL: Pool<Linear> = Pool::new(IDENTITY);
static SLOTS: [Slot; MAX_CPUS] = [const { Slot::new() }; MAX_CPUS];
static LIFECYCLE: Lifecycle = Lifecycle::new();
static MAILBOXES: [Mailbox; MAX_CPUS] = [const { Mailbox::new() }; MAX_CPUS];
static OWN: Once<Own> = Once::new();

/// The payload's linear map.
pub type OwnMap = LinearMap<El1And0, CpuMmu<El1And0, &'static Gate<Kernel, MAX_CPUS>>>;

/// What the command line says of the CPUs.
#[derive(Clone, Copy, Debug)]
pub struct Told {
    /// The levels of FEAT_BBM of the boot CPU and of the others, if they are not what the CPUs say.
    pub levels: Option<(u8, u8)>,
    /// Blocks or pages.
    pub policy: Policy,
    /// What becomes of who comes late.
    pub late: Late,
    /// The CPUs with which all are known.
    pub finalize: usize,
}

impl Told {
    fn read(machine: &Machine<'_>) -> Self {
        let finalize = machine.parameter("cloven.finalize").and_then(|text| text.parse().ok());
        Self {
            levels: believed::levels(machine),
            policy: machine.parameter("cloven.policy").and_then(Policy::parse).unwrap_or_default(),
            late: machine.parameter("cloven.late").and_then(Late::parse).unwrap_or_default(),
            finalize: finalize.map_or(machine.cpus.len(), |count: usize| count.min(machine.cpus.len())),
        }
    }
}

/// The payload's memory and its CPUs.
pub struct Own {
    /// What the command line says.
    pub told: Told,
    /// Its map.
    pub map: OwnMap,
    /// RAM of the map, but for what is pinned.
    pub ram: ArrayVec<Range<Pa>, { 4 * MAX_RANGES }>,
    /// Where requests are made at EL1, and where at EL2.
    pub regions: [u64; 2],
    admission: Admission<'static>,
}

impl Own {
    /// Prints the map on the boot CPU, in a build for dumps whose command line asks for them.
    #[cfg(not(feature = "dump"))]
    pub fn dump(&self, _: &Machine<'_>, _: &str) {}

    /// Prints the map on the boot CPU, in a build for dumps whose command line asks for them.
    #[cfg(feature = "dump")]
    pub fn dump(&self, machine: &Machine<'_>, moment: &str) {
        use hyp::mapping::dump::Format;

        let asked = machine.parameter("cloven.dump").and_then(Format::parse);
        let Some((format, mut cpu)) = asked.zip(self.map.map().cpu(0)) else { return };
        cpu.read().dump(moment, format, |line| match format {
            Format::Text => say!("{line}"),
            Format::Json => say!("@cloven dump {line}"),
        });
    }

    /// What all CPUs have that were let in, and how much is known of them.
    pub fn starting(&self) -> Starting<'static> {
        self.admission.starting
    }

    /// Whether leaves change their size in place now.
    pub fn is_in_place(&self) -> bool {
        self.map.map().capabilities().contains(Capabilities::BBM)
    }

    /// Makes CPU number `cpu`, which says `registers` of itself, one that may translate through the map.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn let_in(&self, cpu: usize, registers: &IdRegisters) -> Result<(), Denied> {
        let set = believed::capabilities(self.told.levels, cpu, registers);
        self.admission.admit(set, &[&OfPolicy(self.map.map())]).map(drop)
    }

    /// CPU number `cpu`, the running one, translates: the last that was missing does what waits for that.
    pub fn arrived(&self, cpu: usize) {
        if let Some(all) = self.starting().arrived(cpu) {
            self.all_are_known(&all);
        }
    }

    /// No other CPU will come but late.
    pub fn finalize(&self) {
        if let Some(all) = self.starting().finalize() {
            self.all_are_known(&all);
        }
    }

    fn all_are_known(&self, all: &Finalized<'_>) {
        let map = self.map.map();
        let Some(mut cpu) = map.cpu(Cpu::this().number) else { return };
        let mut writer = cpu.write();
        // As long as this is the writer, nobody weaker is let in.
        let Some(leaves) = leaves_of_all(all, map, self.told.policy) else { return };
        for part in &self.ram {
            writer.collapse(linear(*part), leaves).unwrap_or_else(|error| panic!("{part}: {error}"));
        }
    }

    /// Joins the leaves in a range, if the policy has blocks now; `false` if that was refused.
    pub fn join(&self, start: u64, size: u64) -> bool {
        if !self.is_in_place() && self.told.policy != Policy::KeepBlocks {
            return true;
        }
        let Some(mut cpu) = self.map.map().cpu(Cpu::this().number) else { return false };
        let joined = cpu.write().collapse(linear(range(start, start + size)), Leaves::LARGEST);
        if let Err(error) = joined {
            say!("payload: {size:#x} bytes at {start:#x} are not joined: {error}");
        }
        joined.is_ok()
    }

    /// Leaves of level 0 to 3 in `part`.
    pub fn leaves(&self, part: Range<Pa>) -> [u64; 4] {
        let mut leaves = [0; 4];
        let Some(mut cpu) = self.map.map().cpu(Cpu::this().number) else { return leaves };
        let _ = cpu.read().walk(linear(part), |visited| {
            if let Entry::Leaf { .. } = visited.entry {
                leaves[usize::from(visited.level)] += 1;
            }
            ControlFlow::<()>::Continue(())
        });
        leaves
    }

    /// Bytes of its tables.
    pub fn tables(&self) -> u64 {
        POOL.used() as u64 * PAGE
    }
}

/// The payload's, from [`enable_mmu`] on.
pub fn own() -> &'static Own {
    OWN.get().unwrap_or_else(|| panic!("there is no map yet"))
}

/// The mailbox of CPU number `cpu`, from the side of who lets it in.
pub fn lines(cpu: usize) -> impl Lines {
    // SAFETY: maintenance changes no value.
    MAILBOXES[cpu].with(|at, size| unsafe { entry::clean(at as u64, (at + size) as u64) })
}

/// A range at its own address.
fn linear(range: Range<Pa>) -> Range<Va> {
    Range::new(range.start().get(), range.size()).unwrap_or_else(|error| panic!("{error}"))
}

/// The first `size` bytes in one of `parts` that begin a block.
fn free(parts: &[Range<Pa>], size: u64, what: &str) -> Range<Pa> {
    let place = |part: &Range<Pa>| {
        let start = part.start().get().next_multiple_of(BLOCK);
        (start + size <= part.end()).then(|| range(start, start + size))
    };
    parts.iter().find_map(place).unwrap_or_else(|| panic!("no RAM for {what}"))
}

/// Makes the map by its policy and runs the boot CPU on it, the first to be let in.
///
/// # Safety
/// Runs once, on the boot CPU, on the boot map.
pub unsafe fn enable_mmu(machine: &Machine<'_>, tree: Fdt<'_>) -> &'static Own {
    type A = Attributes<El1And0>;
    let told = Told::read(machine);
    let [start, rodata, data, end] = [
        symbol(&raw const entry::image_start),
        symbol(&raw const entry::image_rodata),
        symbol(&raw const entry::image_data),
        symbol(&raw const entry::image_end),
    ];
    let image = range(start, end);
    let tree = Range::<Pa>::new(tree.data().as_ptr() as u64, tree.data().len() as u64);
    let tree = tree.unwrap_or_else(|error| panic!("{error}"));

    // The tables for pages of all RAM, and as many as splits may take.
    let total: u64 = machine.memory.iter().map(|bank| bank.size()).sum();
    let size = ((total >> 9) + (1 << 20)).next_multiple_of(BLOCK);
    let mut taken: ArrayVec<Range<Pa>, { 2 * MAX_RANGES + 8 }> =
        machine.no_map.iter().chain(&machine.reserved).copied().collect();
    taken.extend([image, tree]);
    let mut take = |size, what| {
        let parts: ArrayVec<Range<Pa>, { 4 * MAX_RANGES }> =
            machine.memory.iter().flat_map(|bank| bank.minus(&taken)).collect();
        let place = free(&parts, size, what);
        taken.push(place);
        place
    };
    let tables = take(size, "tables");
    let regions = [take(REGION, "requests at EL1"), take(REGION, "requests at EL2")];
    let pinned = PINNED.call_once(|| [image, tables]);

    let boot = LIFECYCLE.boot(believed::capabilities(told.levels, 0, &believed::registers()));
    let boot = boot.unwrap_or_else(|| panic!("the boot CPU came twice"));
    let first = range(stack_end(MAX_CPUS - 1) + BOOT_TABLES * PAGE, end);
    // SAFETY: the image behind the stacks and the boot map: ours, and used for nothing else.
    unsafe { POOL.refill(first) }.unwrap_or_else(|error| panic!("{error}"));
    // SAFETY: the tables lie at their physical addresses in the boot map and in the one made here, this is EL1, and every CPU that
    // translates is inside the gate before it leaves what is pinned.
    let mmu = unsafe { CpuMmu::with_quiesce(&POOL, &SLOTS, &QUIESCE) };
    let mut map = stage1::linear_map(mmu, Options::new(boot.set())).unwrap_or_else(|error| panic!("{error}"));
    let mut writer = map.get_mut();
    let mut add = |part: Range<Pa>, attributes| {
        stage1::add(&mut writer, part, attributes, Leaves::PAGES).unwrap_or_else(|error| panic!("{error}"));
    };
    add(range(start, rodata), A::CODE);
    add(range(rodata, data), A::CONSTANTS);
    add(range(data, end), A::DATA);
    add(tables, A::DATA);
    add(range(UART, UART + PAGE), A::DEVICE);
    drop(writer);
    let registers = Registers::el1(&map, read_id_aa64mmfr0_el1().parange());
    // SAFETY: the map is never freed, and has this code, the stack and all that is referred to until the RAM is there, which lacks the device
    // tree.
    unsafe { stage1::install::el1(&registers) };
    // SAFETY: free RAM, mapped by now, and used for nothing else.
    unsafe { POOL.refill(tables) }.unwrap_or_else(|error| panic!("{error}"));

    let policy = told.policy;
    let starting = boot.open(told.finalize);
    let leaves = policy.leaves(starting.set(), starting.phase());
    let mut holes = machine.no_map.clone();
    holes.extend(*pinned);
    let ram = machine.memory.iter().flat_map(|bank| bank.minus(&holes)).collect::<ArrayVec<_, _>>();
    if let Some(mut cpu) = map.cpu(0) {
        let mut writer = cpu.write();
        for part in &ram {
            stage1::add(&mut writer, *part, A::DATA, leaves).unwrap_or_else(|error| panic!("{error}"));
        }
    }

    cpus::make(machine, |number| {
        Cpu::new(number, registers, stack_end(number)).asking_at((&raw const MAILBOXES[number]) as u64)
    });
    // SAFETY: what a starting CPU reads with its MMU off; maintenance changes no value.
    unsafe {
        entry::clean(
            (&raw const MAILBOXES) as u64,
            (&raw const MAILBOXES) as u64 + size_of_val(&MAILBOXES) as u64,
        )
    };
    let own = OWN.call_once(|| Own {
        told,
        map: LinearMap::new(map, pinned),
        ram,
        regions: regions.map(|region| region.start().get()),
        admission: Admission { starting, policy, late: told.late },
    });
    GATE.enter();
    own.arrived(0);
    own
}
