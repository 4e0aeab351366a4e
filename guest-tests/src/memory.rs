//! A payload's own stage 1, made with the library.
//!
//! Everything it looks at lies at its own address for EL1's data. The same physical addresses lie again, 2^40 apart for
//! each [`View`], with the permissions of that view: so what refuses an access there is stage 2.

use core::cell::UnsafeCell;

use arrayvec::ArrayVec;
use dtoolkit::fdt::Fdt;
use dtoolkit::standard::NodeStandard;
use dtoolkit::{Node, ToCellInt};
use hyp::machine::{MAX_RANGES, Machine};
use hyp::mapping::{
    Address, Attributes, Capabilities, El1And0, Leaves, Linear, Map, Options, Pa, Pool, Range, Slot, Va,
};
use hyp::stage1::install::{CpuMmu, IDENTITY};
use hyp::stage1::{self, Registers};
use hyp::stage2::CpuLimits;
use hyp::start::BOOT_TABLES;
use hyp::trial::{PART, SIZE};

use crate::entry::{self, STACK_SIZE};
use crate::report::UART;

/// Most CPUs that the payload has stacks for.
pub const MAX_CPUS: usize = 32;
/// Where the page after everything lies.
pub const BEYOND: u64 = 5 << 40;
/// Bytes between two views.
const VIEW_STEP: u64 = 1 << 40;
const PAGE: u64 = 4096;

/// With which permissions an address is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// EL1 reads and writes.
    Data,
    /// EL1 reads and executes.
    Code,
    /// EL0 reads and writes.
    UserData,
    /// EL0 reads and executes.
    UserCode,
}

impl View {
    /// Where `pa` lies in this view.
    pub fn of(self, pa: u64) -> u64 {
        let number = match self {
            Self::Data => 0,
            Self::Code => 1,
            Self::UserData => 2,
            Self::UserCode => 3,
        };
        pa + number * VIEW_STEP
    }
}

/// Ranges that are not free, at most: what the tree reserves in either way, this image and the tree.
const MAX_TAKEN: usize = 2 * MAX_RANGES + 2;

/// What the checks want to know of memory.
pub struct Memory {
    /// The hypervisor's memory, as the device tree names it.
    pub hypervisor: Range<Pa>,
    /// This image.
    pub image: Range<Pa>,
    /// What is in use in RAM: that image, the device tree, and what the tree reserves, the hypervisor's memory too.
    pub taken: ArrayVec<Range<Pa>, MAX_TAKEN>,
    /// A page after everything that there is, if the CPU can address it: it lies at [`BEYOND`].
    pub beyond: Option<u64>,
    /// Turns the MMU on.
    pub registers: Registers,
    /// What it runs on.
    pub map: OwnMap,
    /// Two ranges of RAM for trials, if there is as much: data, the first part of each in pages, nothing else in leaves with what is
    /// around it.
    pub trials: Option<[u64; 2]>,
}

impl Memory {
    /// Prints the payload's own map on the boot CPU, in a build for dumps whose command line asks for them.
    #[cfg(not(feature = "dump"))]
    pub fn dump(&self, _: &Machine<'_>, _: &str) {}

    /// Prints the payload's own map on the boot CPU, in a build for dumps whose command line asks for them.
    #[cfg(feature = "dump")]
    pub fn dump(&self, machine: &Machine<'_>, moment: &str) {
        use crate::say;
        use hyp::mapping::dump::Format;

        let asked = machine.parameter("cloven.dump").and_then(Format::parse);
        let Some((format, mut cpu)) = asked.zip(self.map.cpu(0)) else { return };
        cpu.read().dump(moment, format, |line| match format {
            Format::Text => say!("{line}"),
            Format::Json => say!("@cloven dump {line}"),
        });
    }
}

/// The payload's own stage 1.
pub type OwnMap = Map<El1And0, CpuMmu<El1And0>>;

static POOL: Pool<Linear> = Pool::new(IDENTITY);
static SLOTS: [Slot; MAX_CPUS] = [const { Slot::new() }; MAX_CPUS];

/// The address of a symbol of the linker's.
pub fn symbol(address: *const u8) -> u64 {
    address as u64
}

/// A range of the payload's own making: one that is none is a mistake here.
pub fn range(start: u64, end: u64) -> Range<Pa> {
    Range::of_granules(start, end - start).unwrap_or_else(|error| panic!("{error}"))
}

/// The end of the stack of CPU `number`.
pub fn stack_end(number: usize) -> u64 {
    symbol(&raw const entry::image_arena) + ((number + 1) * STACK_SIZE) as u64
}

/// Two ranges for trials, in RAM that is nobody's.
fn trial_ranges(machine: &Machine<'_>, taken: &[Range<Pa>]) -> Option<[u64; 2]> {
    let parts = machine.memory.iter().flat_map(|bank| bank.minus(taken));
    let starts = parts.flat_map(|part| {
        let first = part.start().get().next_multiple_of(SIZE);
        (first..).step_by(SIZE as usize).take_while(move |start| start + SIZE <= part.end())
    });
    starts.take(2).collect::<ArrayVec<u64, 2>>().into_inner().ok()
}

/// How the payload's translations may change: as the hypervisor was told (`cloven.bbm`), or as the CPU says. Other CPUs come later, so what
/// counts is the least of them all.
fn capabilities(machine: &Machine<'_>) -> Capabilities {
    let levels = machine.parameter("cloven.bbm").into_iter().flat_map(|text| text.split(','));
    let told = levels.filter_map(|level| level.parse().ok()).min();
    let own = arm_sysregs::el1::accessors::read_id_aa64mmfr2_el1().bbm();
    Capabilities::LEAST | Capabilities::bbm(told.unwrap_or(own))
}

/// The hypervisor's memory: the reserved range that is compatible with it, whatever else is reserved.
fn hypervisor(tree: Fdt<'_>) -> Option<Range<Pa>> {
    let mut reserved = tree.find_node("/reserved-memory")?.children();
    let entry = reserved.find(|node| node.is_compatible("cloven,hypervisor"))?.reg().ok()??.next()?;
    Range::of_granules(entry.address.to_int().ok()?, entry.size.to_int().ok()?).ok()
}

/// A page that a payload writes as data and executes at its place in [`View::Code`].
#[repr(C, align(4096))]
pub struct Page(UnsafeCell<[u8; PAGE as usize]>);

// SAFETY: a place only: it is accessed through its address, by volatile writes and fetches.
unsafe impl Sync for Page {}

impl Page {
    /// An empty one.
    pub const fn new() -> Self {
        Self(UnsafeCell::new([0; PAGE as usize]))
    }

    /// Where it lies as data.
    pub fn address(&self) -> u64 {
        self.0.get() as u64
    }
}

impl Default for Page {
    fn default() -> Self {
        Self::new()
    }
}

/// Makes the map and runs the boot CPU on it. `code` are pages of the image, side by side, that can be executed too.
///
/// # Safety
/// Runs once, on the boot CPU, on the boot map.
pub unsafe fn enable_mmu(machine: &Machine<'_>, tree: Fdt<'_>, code: &[Page]) -> Memory {
    let start = symbol(&raw const entry::image_start);
    let rodata = symbol(&raw const entry::image_rodata);
    let data = symbol(&raw const entry::image_data);
    let end = symbol(&raw const entry::image_end);
    let (image, user) = (range(start, end), symbol(&raw const entry::user_load));
    let hypervisor = hypervisor(tree).unwrap_or_else(|| panic!("no memory is reserved for a hypervisor"));

    let tables = range(stack_end(MAX_CPUS - 1) + BOOT_TABLES * PAGE, end - PAGE);
    // SAFETY: the image behind the stacks and the boot map, but for the last page, which EL0 gets: ours, and used for nothing else.
    unsafe { POOL.refill(tables) }.unwrap_or_else(|error| panic!("{error}"));
    let options = Options::new(capabilities(machine));
    // SAFETY: the tables lie at their physical addresses in the boot map and in the one made here, and this is EL1.
    let mmu = unsafe { CpuMmu::new(&POOL, &SLOTS) };
    let mut map = stage1::linear_map(mmu, options).unwrap_or_else(|error| panic!("{error}"));
    let mut writer = map.get_mut();
    let mut add_in = |part: Range<Pa>, view: View, attributes, leaves| {
        let input = Range::<Va>::new(view.of(part.start().get()), part.size());
        let input = input.unwrap_or_else(|error| panic!("{error}"));
        writer.map(input, part.start(), attributes, leaves).unwrap_or_else(|error| panic!("{part}: {error}"));
    };

    type A = Attributes<El1And0>;
    let tree_range = Range::new(tree.data().as_ptr() as u64, tree.data().len() as u64);
    let mut taken: ArrayVec<Range<Pa>, MAX_TAKEN> =
        machine.no_map.iter().chain(&machine.reserved).copied().collect();
    taken.extend([image, tree_range.unwrap_or_else(|error| panic!("{error}"))]);
    let trials = trial_ranges(machine, &taken);
    // Of what is not to be mapped, the hypervisor's memory is: it is what shows that stage 2 refuses it.
    let no_map = machine.no_map.iter().copied().filter(|range| *range != hypervisor);
    let mut elsewhere: ArrayVec<Range<Pa>, { MAX_RANGES + 3 }> = no_map.collect();
    elsewhere.push(image);
    for start in trials.into_iter().flatten() {
        add_in(range(start, start + PART), View::Data, A::DATA, Leaves::PAGES);
        add_in(range(start + PART, start + SIZE), View::Data, A::DATA, Leaves::LARGEST);
        elsewhere.push(range(start, start + SIZE));
    }
    let mut add = |part, view, attributes| add_in(part, view, attributes, Leaves::LARGEST);
    for part in machine.memory.iter().flat_map(|bank| bank.minus(&elsewhere)) {
        add(part, View::Data, A::DATA);
    }
    let user_code = range(user, user + PAGE);
    add(range(start, user), View::Data, A::CODE);
    add(user_code, View::Data, A::CODE);
    add(range(user + PAGE, rodata), View::Data, A::CODE);
    add(range(rodata, data), View::Data, A::CONSTANTS);
    add(range(data, end), View::Data, A::DATA);
    // The hypervisor's memory in every other view, and of ours what EL0 needs and a page that it may have.
    for (view, attributes) in
        [(View::Code, A::CODE), (View::UserData, A::USER_DATA), (View::UserCode, A::USER_CODE)]
    {
        add(hypervisor, view, attributes);
    }
    add(user_code, View::Code, A::CODE);
    if let [first, ..] = code {
        add(range(first.address(), first.address() + size_of_val(code) as u64), View::Code, A::CODE);
    }
    add(user_code, View::UserCode, A::USER_CODE);
    let last = range(end - PAGE, end);
    add(last, View::UserData, A::USER_DATA);
    // Devices: data at their own address, and the UART's page as if it were code.
    let redistributor = machine.gic.redistributors.first().copied();
    for device in [range(UART, UART + PAGE), machine.gic.distributor].into_iter().chain(redistributor) {
        add(device.expanded_to(PAGE), View::Data, A::DEVICE);
    }
    add(range(UART, UART + PAGE), View::Code, A::CODE);
    // Where there is nothing: a page of the GiB after everything, at an address of its own, if the CPU can name it.
    let pa_range = arm_sysregs::el1::accessors::read_id_aa64mmfr0_el1().parange();
    let bits = CpuLimits { pa_range, vmid_16_bits: false }.pa_bits();
    let beyond = Some(machine.top.next_multiple_of(1 << 30)).filter(|&top| top < 1 << bits);
    if let Some(pa) = beyond {
        let input = Range::<Va>::new(BEYOND, PAGE).unwrap_or_else(|error| panic!("{error}"));
        writer
            .map(input, range(pa, pa + PAGE).start(), A::DATA, Leaves::PAGES)
            .unwrap_or_else(|error| panic!("{error}"));
    }
    drop(writer);

    let registers = Registers::el1(&map, pa_range);
    // SAFETY: the map is whole, never freed, and has this code, the stack and all references at their own addresses.
    unsafe { stage1::install::el1(&registers) };
    Memory { hypervisor, image, taken, beyond, registers, map, trials }
}
