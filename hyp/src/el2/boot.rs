//! The boot CPU's way from the boot map to the host, in the steps that a platform's `main` names.
//!
//! Invariant: whatever can be wrong with the machine, its device tree or the host's kernel is an [`Error`] before the host
//! runs; nothing of the host's memory is written but what was found free.

use core::fmt;

use arm_sysregs::el0::accessors::{read_cntfrq_el0, read_cntpct_el0};
use arrayvec::ArrayVec;
use dtoolkit::error::FdtParseError;
use dtoolkit::fdt::Fdt;
use log::info;
use spin::Once;

use super::cache;
use super::cpu::{self, Features};
use super::host::{self, Host, Resident};
use super::image::{self, Layout, TooManyCpus};
use super::parties::Parties;
use super::percpu::{self, PerCpu};
use super::psci::{CpuPower, HostEntry};
use super::quiet::{self, ENTRY, Here};
use super::settings::{InWords, Settings};
use crate::caps::admission::Admission;
use crate::caps::gate::Gate;
use crate::caps::lifecycle::{Lifecycle, Starting};
use crate::caps::policy::Policy;
use crate::machine::host_tree::{self, Changes, HostTreeError};
use crate::machine::image::{HEADER_SIZE, Image, ImageError};
use crate::machine::layout::{self, LayoutError, Named};
use crate::machine::{self, MAX_CPUS, Machine, MachineError, Ranges};
use crate::mapping::{
    Address, AddressError, Attributes, El2, GRANULE, Leaves, Linear, Map, Options, Pa, Pool, Range, Slot,
    Stage2,
};
use crate::stage1::install::{CpuMmu, IDENTITY};
use crate::stage1::{self, LinearMap, LinearMapError};
use crate::stage2::{self, HOST_VMID, HostMapError};

/// Where an image or a device tree goes: at a multiple of 2 MiB (Linux `booting.rst`).
const PLACEMENT: u64 = 2 << 20;
/// The mark of leaves of the hypervisor's own memory.
const MARK: u8 = 1;

/// Why the machine does not come up.
#[derive(Clone, Debug)]
pub enum Error {
    /// The device tree cannot be used.
    DeviceTree(MachineError),
    /// The hypervisor lies where there are no addresses.
    Image(AddressError),
    /// The CPU that booted is not in the device tree; this is its affinity.
    BootCpu(u64),
    /// There are more CPUs than there is room for.
    TooManyCpus(TooManyCpus),
    /// This was done before.
    Twice,
    /// The EL2 map could not be made.
    El2Map(LinearMapError),
    /// The host's stage 2 could not be made.
    HostMap(HostMapError),
    /// Two things are in each other's way, or there is no room.
    Layout(LayoutError),
    /// The host's kernel cannot be started.
    Kernel(ImageError),
    /// The host's kernel needs more memory than there are addresses for.
    KernelRange(AddressError),
    /// There is neither a `multiboot,kernel` module nor an embedded payload.
    NoKernel,
    /// The host's device tree could not be written.
    HostTree(HostTreeError),
}

impl Error {
    /// The device tree's structure is damaged.
    pub fn damaged(error: FdtParseError) -> Self {
        Self::DeviceTree(MachineError::Parse(error))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DeviceTree(error) => write!(f, "device tree: {error}"),
            Self::Image(error) => write!(f, "hypervisor image: {error}"),
            Self::BootCpu(mpidr) => write!(f, "device tree: has no cpu {mpidr:#x}, which runs this"),
            Self::TooManyCpus(error) => write!(f, "device tree: has {error}"),
            Self::Twice => write!(f, "the EL2 map was made before"),
            Self::El2Map(error) => write!(f, "EL2 map: {error}"),
            Self::HostMap(error) => write!(f, "host stage 2: {error}"),
            Self::Layout(error) => write!(f, "memory layout: {error}"),
            Self::Kernel(error) => write!(f, "host kernel: {error}"),
            Self::KernelRange(error) => write!(f, "host kernel: {error}"),
            Self::NoKernel => {
                write!(
                    f,
                    "host kernel: none: /chosen has no multiboot,kernel module and no payload is embedded"
                )
            }
            Self::HostTree(error) => write!(f, "host device tree: {error}"),
        }
    }
}

impl core::error::Error for Error {}

macro_rules! error_from {
    ($($from:ty => $variant:ident),*) => {
        $(impl From<$from> for Error {
            fn from(error: $from) -> Self {
                Self::$variant(error)
            }
        })*
    };
}
error_from!(
    MachineError => DeviceTree, AddressError => Image, TooManyCpus => TooManyCpus, LinearMapError => El2Map,
    HostMapError => HostMap, LayoutError => Layout, ImageError => Kernel, HostTreeError => HostTree
);

/// The bytes of the device tree at `address`.
///
/// # Safety
/// Runs on the boot map, whose entry code was given this address.
///
/// # Errors
/// [`Error::DeviceTree`] if there is none, or it is larger than 2 MiB.
#[unsafe(link_section = ".init.text")]
pub unsafe fn device_tree(address: u64) -> Result<&'static [u8], Error> {
    let pa =
        Pa::new(address).map_err(|error| MachineError::Address { node: "address of the tree", error })?;
    // The boot map has nothing above what the CPU addresses, and no boot loader puts a tree at 0.
    if address == 0 || !address.is_multiple_of(8) || address >> Features::read(None).limits.pa_bits() != 0 {
        return Err(MachineError::Place(address).into());
    }
    // SAFETY: the boot map has, read-only, the 2 MiB block of the address, and unless it begins there the next one too: room
    // for any tree. Nobody writes there before the host runs.
    unsafe {
        let first = core::slice::from_raw_parts(pa.get() as *const u8, 8);
        let size = machine::tree_size([
            first[0], first[1], first[2], first[3], first[4], first[5], first[6], first[7],
        ])?;
        Ok(core::slice::from_raw_parts(pa.get() as *const u8, size))
    }
}

/// Says what machine this is.
#[unsafe(link_section = ".init.text")]
pub fn announce(machine: &Machine<'_>) {
    info!("Cloven {} at EL2, {} CPUs", env!("CARGO_PKG_VERSION"), machine.cpus.len());
    for bank in &machine.memory {
        info!("RAM {bank} ({} MiB)", bank.size() >> 20);
    }
    info!("GICv3 distributor {}, {} ITS", machine.gic.distributor, machine.gic.its.len());
    if !machine.psci {
        info!("no PSCI: this CPU is the only one, and the machine cannot be turned off");
    }
}

/// The tables of both maps; with a policy that may need pages, the host's only.
static POOL: Pool<Linear> = Pool::new(IDENTITY);
/// The tables of the EL2 map with such a policy: nobody else takes what it needs to become pages.
static EL2_POOL: Pool<Linear> = Pool::new(IDENTITY);
/// Where each CPU says that it walks one of them.
pub static SLOTS: [Slot; MAX_CPUS] = [const { Slot::new() }; MAX_CPUS];
/// What all CPUs have.
static LIFECYCLE: Lifecycle = Lifecycle::new();

/// Whether more than half of the tables are out that the host's map takes.
pub fn are_tables_short() -> bool {
    POOL.used() > POOL.capacity() / 2
}

/// Bytes of the tables of both maps.
pub fn table_bytes() -> u64 {
    (POOL.used() + EL2_POOL.used()) as u64 * GRANULE
}

/// The map that EL2 runs on.
pub type El2Map = LinearMap<El2, El2Mmu>;
/// The MMU of the map that EL2 runs on.
pub type El2Mmu = CpuMmu<El2, &'static Gate<Here, MAX_CPUS>>;
/// The MMU of the host's stage 2: who waits to become its writer passes the gate.
pub type HostMmu = CpuMmu<Stage2, &'static Gate<Here, MAX_CPUS>>;
/// The host's stage 2.
pub type HostMap = Map<Stage2, HostMmu>;

/// The machine with the EL2 map on.
pub struct Booted {
    layout: Layout,
    map: &'static El2Map,
    cpus: &'static [CpuPower],
    ram: &'static Ranges,
    features: Features,
    settings: Settings,
    starting: Starting<'static>,
    own: &'static [Range<Pa>],
    tables: Option<Range<Pa>>,
}

/// Bytes of tables that all of `ram` takes in pages, in multiples of what they are reserved in.
fn tables_of_pages(ram: &[Range<Pa>]) -> u64 {
    let entries = |bank: &Range<Pa>, size: u64| bank.end().div_ceil(size) - bank.start().get() / size;
    let tables: u64 = ram.iter().map(|bank| entries(bank, 2 << 20) + entries(bank, 1 << 30)).sum();
    (tables * GRANULE).next_multiple_of(PLACEMENT)
}

/// Memory that is in use: what the device tree reserves, the hypervisor's `own`, the `tree` itself, the initramfs.
#[unsafe(link_section = ".init.text")]
fn taken(
    machine: &Machine<'_>,
    own: &[Range<Pa>],
    tree: Range<Pa>,
) -> ArrayVec<Range<Pa>, { 3 * machine::MAX_RANGES }> {
    let reserved = machine.no_map.iter().chain(&machine.reserved);
    reserved.chain(own).copied().chain([tree]).chain(machine.initrd).collect()
}

/// Makes the EL2 map and runs the boot CPU on it: RAM in blocks or in pages as the policy of `settings` has it, the hypervisor's own memory by
/// page with the least permissions, the pages of the console and of what is traced, and nothing else.
///
/// A policy that may need pages has memory of its own for their tables, which is reserved beside the hypervisor's block. The boot map does not
/// have it: so what is in pages from the start is added when the EL2 map is on.
///
/// # Safety
/// Runs on the boot CPU, on the boot map, once. `tree` came from [`device_tree`]; nobody holds references to memory
/// that the EL2 map has not: the machine's RAM, and the page at `console`.
///
/// # Errors
/// [`Error`].
// Not in its caller's frame, which lasts as long as the host.
#[inline(never)]
#[unsafe(link_section = ".init.text")]
pub unsafe fn enable_mmu(
    machine: &Machine<'_>,
    tree: &[u8],
    console: u64,
    settings: Settings,
) -> Result<Booted, Error> {
    static CPUS: Once<ArrayVec<CpuPower, MAX_CPUS>> = Once::new();
    #[unsafe(link_section = ".data.sealed")]
    static RAM: Once<Ranges> = Once::new();
    #[unsafe(link_section = ".data.sealed")]
    static PINNED: Once<ArrayVec<Range<Pa>, 7>> = Once::new();
    #[unsafe(link_section = ".data.sealed")]
    static OWN: Once<ArrayVec<Range<Pa>, 2>> = Once::new();
    static MAP: Once<El2Map> = Once::new();
    const DATA: Attributes<El2> = Attributes::<El2>::DATA;

    let layout = image::layout()?;
    let tree = Range::new(tree.as_ptr() as u64, tree.len() as u64)?;
    let hypervisor = Named { what: "hypervisor", range: layout.whole };
    layout::check(
        &machine.memory,
        &machine.no_map,
        &[hypervisor, Named { what: "device tree", range: tree }],
    )?;
    // What a boot loader has reserved otherwise is the host's to use, or somebody's buffer: nothing for us.
    layout::check(&machine.memory, &machine.reserved, &[hypervisor])?;

    // The boot CPU is number 0: it runs on that block already.
    let me = cpu::affinity();
    let others = machine.cpus.iter().map(|cpu| cpu.mpidr).filter(|&mpidr| mpidr != me);
    if machine.cpus.iter().all(|cpu| cpu.mpidr != me) {
        return Err(Error::BootCpu(me));
    }
    let cpus = CPUS.call_once(|| core::iter::once(me).chain(others).map(CpuPower::new).collect());
    let ram = RAM.call_once(|| machine.memory.clone());

    let features = Features::read(settings.believed.of(0));
    let boot = LIFECYCLE.boot(features.capabilities).ok_or(Error::Twice)?;
    let leaves = settings.policy.leaves(boot.set(), LIFECYCLE.phase());
    let tables = match settings.policy {
        Policy::KeepBlocks => None,
        Policy::Repaint | Policy::PagesFirst => {
            let mut taken = taken(machine, &[layout.whole], tree);
            taken.extend(machine.kernel.map(|kernel| kernel.range));
            let what = "the tables of pages";
            Some(layout::find_free_high(ram, &taken, what, tables_of_pages(ram), PLACEMENT)?)
        }
    };

    let memory = image::table_memory(&layout, cpus.len())?;
    let half = (memory.size() / 2) & !(GRANULE - 1);
    let (for_el2, pool) = if tables.is_some() { (half, &EL2_POOL) } else { (0, &POOL) };
    // SAFETY: the arena behind the CPUs' blocks, each part of it once, by the caller's word: used for nothing else, and at its own address
    // in the boot map and in the one that is made here.
    unsafe {
        EL2_POOL.refill(Range::new(memory.start().get(), for_el2)?)?;
        POOL.refill(Range::new(memory.start().get() + for_el2, memory.size() - for_el2)?)?;
    }

    // SAFETY: the tables lie at their physical addresses in the boot map and in the one made here, and this is EL2. Who is at EL2 is
    // inside the gate.
    let mmu = unsafe { CpuMmu::<El2, _>::with_quiesce(pool, &SLOTS, &ENTRY) };
    let mut map = stage1::linear_map(mmu, Options::new(boot.set()))?;
    let mut writer = map.get_mut();
    let mut holes: ArrayVec<Range<Pa>, { machine::MAX_RANGES + 3 }> =
        machine.no_map.iter().copied().collect();
    holes.extend([layout.whole].into_iter().chain(tables));
    // The first tables of the region are enough for those that map the rest of it.
    let parts = match tables {
        Some(tables) => {
            let (start, size) = (tables.start().get(), tables.size());
            let first = PLACEMENT.min(size);
            Some((Range::new(start, first)?, Range::new(start + first, size - first)?))
        }
        None => None,
    };
    // Marked, so that no leaf of it is joined with what is around it.
    let own = [
        (layout.text, Attributes::<El2>::CODE),
        (layout.init_text, Attributes::<El2>::CODE),
        (layout.rodata, Attributes::<El2>::CONSTANTS),
        (layout.init_rodata, Attributes::<El2>::CONSTANTS),
        (layout.sealed, DATA),
        (layout.data, DATA),
        (memory, DATA),
    ];
    for (range, attributes) in own.into_iter().chain(parts.map(|(first, _)| (first, DATA))) {
        stage1::add(&mut writer, range, attributes.marked(MARK), Leaves::PAGES)?;
    }
    for number in 0..cpus.len() {
        stage1::add(&mut writer, percpu::mapped(&layout, number)?, DATA.marked(MARK), Leaves::PAGES)?;
    }
    let console = Range::new(console, GRANULE)?;
    stage1::add(&mut writer, console, Attributes::<El2>::DEVICE, Leaves::PAGES)?;
    let trace_uart = settings.trace_uart.map(|uart| uart.expanded_to(GRANULE));
    if let Some(uart) = trace_uart {
        stage1::add(&mut writer, uart, Attributes::<El2>::DEVICE, Leaves::PAGES)?;
    }
    let tree_pages = tree.expanded_to(GRANULE);
    if leaves.blocks {
        stage1::add_ram(&mut writer, ram, &holes, DATA, leaves)?;
    } else {
        stage1::add(&mut writer, tree_pages, DATA, leaves)?;
        holes.push(tree_pages);
    }
    drop(writer);
    // The arena is the CPUs' blocks and the tables.
    let pinned =
        [layout.text, layout.rodata, layout.data, layout.arena, console].into_iter().chain(trace_uart);
    let pinned = pinned.chain(tables);
    let pinned = PINNED.call_once(|| pinned.collect());
    let map = MAP.call_once(|| LinearMap::new(map, pinned));
    let own = OWN.call_once(|| [layout.whole].into_iter().chain(tables).collect());

    let registers = stage1::Registers::el2(map.map(), features.limits.pa_range);
    for number in 0..cpus.len() {
        // SAFETY: the boot map has the whole image for writing; no other CPU runs, and this one, number 0, has only
        // looked at its count of deaths, which stays 0.
        unsafe { PerCpu::create(&layout, number, registers) };
    }
    // SAFETY: the map is in memory that is never freed. It has the code, this stack (of CPU 0), the tree, the tables, and with RAM what
    // the caller vouches for, each at the address it has; what it lacks of RAM nobody refers to yet.
    unsafe { stage1::install::el2(&registers) };
    quiet::pin(pinned);
    ENTRY.enter();
    let mut cpu = map.map().cpu(0).ok_or(Error::Twice)?;
    if let Some((first, rest)) = parts {
        // SAFETY: free RAM, reserved above for this and nothing else, at its own address in this map.
        unsafe { EL2_POOL.refill(first)? };
        stage1::add(&mut cpu.write(), rest, DATA.marked(MARK), Leaves::PAGES)?;
        // SAFETY: as for the first part.
        unsafe { EL2_POOL.refill(rest)? };
    }
    if leaves.blocks {
        info!("EL2 map: {}", cpu.read().census());
    } else {
        stage1::add_ram(&mut cpu.write(), ram, &holes, DATA, leaves)?;
        // To count them takes longer than to map them.
        info!("EL2 map: all in pages, {} tables", EL2_POOL.used());
    }
    drop(cpu);
    info!("boot CPU: {}; policy: {:?}", InWords(boot.set()), settings.policy);
    let starting = boot.open(settings.finalize.unwrap_or(usize::MAX).min(cpus.len()));
    Ok(Booted { layout, map, cpus, ram, features, settings, starting, own, tables })
}

/// The host's kernel.
pub enum Kernel<'a> {
    /// In memory, where a boot loader has put it.
    Module(machine::Module<'a>),
    /// A copy that the hypervisor's image holds.
    Embedded(&'a [u8]),
}

impl<'a> Kernel<'a> {
    /// The module if there is one, else `payload` unless it is empty.
    ///
    /// # Errors
    /// [`Error::NoKernel`].
    #[unsafe(link_section = ".init.text")]
    pub fn choose(machine: &Machine<'a>, payload: &'a [u8]) -> Result<Self, Error> {
        match machine.kernel {
            Some(module) => Ok(Self::Module(module)),
            None if payload.is_empty() => Err(Error::NoKernel),
            None => Ok(Self::Embedded(payload)),
        }
    }
}

/// What is in memory for a realm that is to have the machine, in place of a host.
#[derive(Clone, Copy, Debug)]
pub struct Guest<'a> {
    /// Where it begins, and with what in x0.
    pub entry: HostEntry,
    /// The file of its kernel.
    pub kernel: Range<Pa>,
    /// Its initramfs.
    pub initrd: Option<Range<Pa>>,
    /// Its device tree.
    pub tree: Range<Pa>,
    /// Memory for what the RMM has of it, and for who stays in the host's place.
    pub granules: Range<Pa>,
    /// The machine's RAM.
    pub ram: &'static [Range<Pa>],
    /// What of that is EL2's own.
    pub own: &'static [Range<Pa>],
    /// What of that must not be mapped.
    pub no_map: &'a [Range<Pa>],
    /// Where the devices are that its tree names.
    pub devices: &'a [Range<Pa>],
    /// The machine's CPUs, in the order of their numbers.
    pub cpus: &'static [CpuPower],
}

/// Who stays in the host's place: how many bytes it wants for so much RAM and so many CPUs, and who it is.
pub type Reside = (fn(&[Range<Pa>], usize) -> u64, fn(&Guest<'_>) -> &'static dyn Resident);

/// A host that is ready to run.
pub struct ReadyHost {
    host: Host,
    entry: HostEntry,
}

impl Booted {
    /// Puts the host's kernel and device tree where they belong and makes its stage 2.
    ///
    /// `expose` leaves the hypervisor's memory in the host's reach: for the test that this is noticed. `reside` is given what is in memory if
    /// there is to be no host at EL1: its kernel, initramfs and device tree are a realm's then, and what it gives stays at EL2 in the
    /// host's place.
    ///
    /// # Errors
    /// [`Error`].
    // As for `enable_mmu`.
    #[inline(never)]
    #[unsafe(link_section = ".init.text")]
    pub fn prepare_host(
        self,
        machine: &Machine<'_>,
        tree: &[u8],
        kernel: Kernel<'_>,
        expose: bool,
        reside: Option<Reside>,
    ) -> Result<ReadyHost, Error> {
        let tree_range = Range::new(tree.as_ptr() as u64, tree.len() as u64)?;
        let mut taken = taken(machine, self.own, tree_range);

        let (place, bootargs) = self.place_kernel(machine, &kernel, &taken)?;
        cache::forget_instructions();
        taken.push(place);
        let granules = match &reside {
            Some((bytes, _)) => {
                let size = bytes(self.ram, self.cpus.len()).next_multiple_of(PLACEMENT);
                let what = "the realm's tables and RECs";
                Some(layout::find_free_high(self.ram, &taken, what, size, PLACEMENT)?)
            }
            None => None,
        };
        taken.extend(granules);

        let original = Fdt::new(tree).map_err(Error::damaged)?;
        let changes = Changes {
            reserved: self.layout.whole,
            tables: self.tables,
            kept_uart: self.settings.trace_uart.map(|uart| uart.start()),
            bootargs,
            of_realm: granules,
        };
        let bound = host_tree::size_bound(original, &changes).next_multiple_of(GRANULE as usize) as u64;
        let room = layout::find_free(self.ram, &taken, "the host's device tree", bound, PLACEMENT)?;
        // SAFETY: free RAM, mapped for writing, and the host does not run yet.
        let out = unsafe { core::slice::from_raw_parts_mut(room.start().get() as *mut u8, bound as usize) };
        let size = host_tree::write(original, out, &changes)?;
        // The host reads it with its MMU off.
        cache::clean_and_invalidate(room.start().get() as usize, size);

        let uart = self.settings.trace_uart.map(|uart| uart.expanded_to(GRANULE));
        let hidden: ArrayVec<Range<Pa>, 3> = self.own.iter().copied().chain(uart).collect();
        let hidden = if expose { &[][..] } else { &hidden };
        // SAFETY: as for the EL2 map.
        let mmu = unsafe { HostMmu::with_quiesce(&POOL, &SLOTS, &ENTRY) };
        // SAFETY: without a host nothing runs at EL1 but guests, under their own maps and VMIDs.
        let mmu = if granules.is_some() { unsafe { mmu.unused() } } else { mmu };
        let options = Options::new(self.starting.set());
        let map = stage2::host_map(mmu, options, self.features.limits, self.ram, machine.top, hidden)?;
        static MAP: Once<HostMap> = Once::new();
        let map = MAP.call_once(|| map);
        self.report(map);
        #[cfg(feature = "dump")]
        super::dump::init(machine);
        let entry = HostEntry { pc: place.start().get(), context: room.start().get() };
        let resident = match (reside, granules) {
            (Some((_, reside)), Some(granules)) => {
                let devices = host_tree::devices(Fdt::new(&out[..size]).map_err(Error::damaged)?)?;
                let file = match kernel {
                    Kernel::Module(module) => module.range.size(),
                    Kernel::Embedded(payload) => payload.len() as u64,
                };
                Some(reside(&Guest {
                    entry,
                    kernel: Range::new(place.start().get(), file)?,
                    initrd: machine.initrd,
                    tree: Range::new(room.start().get(), size as u64)?,
                    granules,
                    ram: self.ram,
                    own: self.own,
                    no_map: &machine.no_map,
                    devices: &devices,
                    cpus: self.cpus,
                }))
            }
            _ => None,
        };
        let host = Host {
            layout: self.layout,
            ram: self.ram,
            cpus: self.cpus,
            services: Host::services(self.cpus, machine.psci),
            stage2: stage2::Registers::new(map, HOST_VMID, self.features.limits),
            features: self.features,
            el2_map: self.map,
            map,
            believed: self.settings.believed,
            admission: Admission {
                starting: self.starting,
                policy: self.settings.policy,
                late: self.settings.late,
            },
            own: self.own,
            parties: Parties::new(
                map,
                self.map,
                self.ram,
                self.own,
                &self.features,
                self.settings.advertised,
            ),
            resident,
        };
        let whose = if resident.is_some() { "realm" } else { "host" };
        info!("{whose} kernel at {place}, device tree at {}", room.start());
        Ok(ReadyHost { host, entry })
    }

    /// The memory that the kernel takes, and its own command line if it has one. An embedded one is copied there.
    #[unsafe(link_section = ".init.text")]
    fn place_kernel<'a>(
        &self,
        machine: &Machine<'_>,
        kernel: &Kernel<'a>,
        taken: &[Range<Pa>],
    ) -> Result<(Range<Pa>, Option<&'a str>), Error> {
        match *kernel {
            Kernel::Module(module) => {
                let what = "host kernel";
                let hypervisor = Named { what: "hypervisor", range: self.layout.whole };
                layout::check(self.ram, &machine.no_map, &[hypervisor, Named { what, range: module.range }])?;
                let length = module.range.size().min(HEADER_SIZE as u64) as usize;
                // SAFETY: it lies in RAM, which the EL2 map has, and nobody writes it before the host runs.
                let header =
                    unsafe { core::slice::from_raw_parts(module.range.start().get() as *const u8, length) };
                let image = Image::read(header, module.range.size())?;
                image.check_place(module.range.start().get())?;
                let range = Range::new(module.range.start().get(), image.size).map_err(Error::KernelRange)?;
                layout::check(self.ram, &machine.reserved, &[Named { what, range }])?;
                let initrd = machine.initrd.map(|range| Named { what: "initrd", range });
                let named: ArrayVec<Named, 3> =
                    [hypervisor, Named { what, range }].into_iter().chain(initrd).collect();
                layout::check(self.ram, &machine.no_map, &named)?;
                let tables = self.tables.map(|range| Named { what: "tables", range });
                let named: ArrayVec<Named, 2> = [Named { what, range }].into_iter().chain(tables).collect();
                layout::check(self.ram, &machine.no_map, &named)?;
                // Whoever starts a kernel owes it an image in memory (Linux `booting.rst`), whatever its loader did.
                cache::clean_and_invalidate(
                    module.range.start().get() as usize,
                    module.range.size() as usize,
                );
                Ok((range, module.bootargs))
            }
            Kernel::Embedded(payload) => {
                let image = Image::read(payload, payload.len() as u64)?;
                let range = layout::find_free(self.ram, taken, "the payload", image.size, PLACEMENT)?;
                let start = range.start().get();
                image.check_place(start)?;
                // SAFETY: free RAM of at least the payload's size, mapped for writing, and the host does not run yet.
                let copy = unsafe { core::slice::from_raw_parts_mut(start as *mut u8, payload.len()) };
                copy.copy_from_slice(payload);
                // The host begins with its MMU off; what follows the file is its own to clear.
                cache::clean_and_invalidate(start as usize, payload.len());
                Ok((range, None))
            }
        }
    }

    /// Figures about the hypervisor's memory.
    #[unsafe(link_section = ".init.text")]
    fn report(&self, map: &HostMap) {
        if let Some(mut cpu) = map.cpu(0) {
            info!("host stage 2: {}", cpu.read().census());
        }
        let figure = |name: &str, value: u64| info!("@cloven figure {name} {value} bytes");
        let Layout { whole, arena, .. } = self.layout;
        figure("memory.reserved", whole.size() + self.tables.map_or(0, |tables| tables.size()));
        figure("memory.image", whole.size() - arena.size());
        figure("memory.stacks", self.cpus.len() as u64 * percpu::BLOCK_SIZE);
        figure("memory.tables_reserved", (POOL.capacity() + EL2_POOL.capacity()) as u64 * GRANULE);
        figure("memory.tables_used", table_bytes());
    }
}

impl ReadyHost {
    /// Runs the host.
    ///
    /// # Safety
    /// Runs on the boot CPU, after [`enable_mmu`].
    // As for `enable_mmu`.
    #[inline(never)]
    #[unsafe(link_section = ".init.text")]
    pub unsafe fn enter(self) -> ! {
        info!(
            "@cloven figure boot.ticks {} ticks_at_{}_Hz",
            read_cntpct_el0().bits(),
            read_cntfrq_el0().bits()
        );
        // SAFETY: the stage 2 map is whole, its tables are never freed, and every CPU's data was created.
        unsafe { host::start(self.host, self.entry) }
    }
}
