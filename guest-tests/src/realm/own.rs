//! The realm's own linear map, and how it is shared.
//!
//! Invariant: the image (code, stacks, variables, the first tables) and the memory of the other tables are pinned: mapped in pages before
//! anything else, never changed and never shared. A CPU is inside the gate from its first order on, passes wherever it waits for another,
//! and stands outside during a call: the host may take as long as it likes.

use core::sync::atomic::AtomicU8;

use arm_sysregs::el1::accessors::read_id_aa64mmfr0_el1;
use arrayvec::ArrayVec;
use dtoolkit::fdt::Fdt;
use guest_tests::entry::{self, Cpu};
use guest_tests::memory::{MAX_CPUS, range, stack_end, symbol};
use guest_tests::report::{self, UART};
use guest_tests::{believed, cpus};
use hyp::caps::admission::{Admission, Denied, OfPolicy};
use hyp::caps::detect::IdRegisters;
use hyp::caps::gate::{Gate, Here};
use hyp::caps::lifecycle::{Lifecycle, Starting};
use hyp::caps::mailbox::{Lines, Mailbox};
use hyp::caps::policy::{Late, Policy};
use hyp::machine::{MAX_RANGES, Machine};
use hyp::mapping::{Address, Attributes, Census, El1And0, Leaves, Linear, Options, Pa, Pool, Range, Slot};
use hyp::realm::{Config, Granule, Rsi, RsiRealmConfig, SharedMemory};
use hyp::stage1::install::{CpuMmu, IDENTITY};
use hyp::stage1::{self, LinearMap, Registers};
use hyp::start::BOOT_TABLES;
use smccc::{Call, Smc};
use spin::Once;

/// Bytes of a page.
pub const PAGE: u64 = 4096;
const BLOCK: u64 = 2 << 20;

/// The realm's CPUs at the gate.
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

type OwnGate = Gate<Kernel, MAX_CPUS>;

/// Who runs at EL1 is inside.
pub static GATE: OwnGate = Gate::new(Kernel);
static QUIESCE: &OwnGate = &GATE;
static PINNED: Once<[Range<Pa>; 2]> = Once::new();
static POOL: Pool<Linear> = Pool::new(IDENTITY);
static SLOTS: [Slot; MAX_CPUS] = [const { Slot::new() }; MAX_CPUS];
static LIFECYCLE: Lifecycle = Lifecycle::new();
static MAILBOXES: [Mailbox; MAX_CPUS] = [const { Mailbox::new() }; MAX_CPUS];
static LINEAR: Once<OwnMap> = Once::new();
static OWN: Once<Own> = Once::new();

type OwnMmu = CpuMmu<El1And0, &'static OwnGate>;
type OwnMap = LinearMap<El1And0, OwnMmu>;

/// A call that is made from outside the gate.
pub struct Outside;

impl Call for Outside {
    fn call32(function: u32, args: [u32; 7]) -> [u32; 8] {
        GATE.stand(|| Smc::call32(function, args))
    }
    fn call64(function: u32, args: [u64; 17]) -> [u64; 18] {
        GATE.stand(|| Smc::call64(function, args))
    }
}

/// The realm's memory and its CPUs.
pub struct Own {
    /// How it was made.
    pub config: Config,
    /// Its monitor.
    pub rsi: Rsi<Outside>,
    /// Its map.
    pub shared: SharedMemory<'static, OwnMmu, Outside>,
    /// RAM that nothing uses: what requests are for.
    pub free: ArrayVec<Range<Pa>, { 4 * MAX_RANGES }>,
    /// A byte for each page of that.
    pub pages: &'static [AtomicU8],
    /// Two blocks for checks.
    pub scratch: Range<Pa>,
    admission: Admission<'static>,
    levels: Option<(u8, u8)>,
}

impl Own {
    /// What all CPUs have that were let in, and how much is known of them.
    pub fn starting(&self) -> Starting<'static> {
        self.admission.starting
    }

    /// Makes CPU number `cpu`, which says `registers` of itself, one that may translate through the map.
    ///
    /// # Errors
    /// [`Denied`].
    pub fn let_in(&self, cpu: usize, registers: &IdRegisters) -> Result<(), Denied> {
        let set = believed::capabilities(self.levels, cpu, registers);
        self.admission.admit(set, &[&OfPolicy(self.shared.linear().map())]).map(drop)
    }

    /// Leaves and runs of the whole map.
    pub fn census(&self) -> Census {
        let cpu = self.shared.linear().map().cpu(Cpu::this().number);
        cpu.map(|mut cpu| cpu.read().census()).unwrap_or_default()
    }

    /// Tables of the map.
    pub fn tables(&self) -> usize {
        POOL.used()
    }
}

/// The realm's, from [`enable_mmu`] on.
pub fn own() -> &'static Own {
    OWN.get().unwrap_or_else(|| panic!("there is no map yet"))
}

/// The mailbox of CPU number `cpu`, from the side of who lets it in.
pub fn lines(cpu: usize) -> impl Lines {
    // SAFETY: maintenance changes no value.
    MAILBOXES[cpu].with(|at, size| unsafe { entry::clean(at as u64, (at + size) as u64) })
}

/// The first `size` bytes in one of `parts` that begin a block.
fn place(parts: impl Iterator<Item = Range<Pa>>, size: u64, what: &str) -> Range<Pa> {
    let place = |part: Range<Pa>| {
        let start = part.start().get().next_multiple_of(BLOCK);
        (start + size <= part.end()).then(|| range(start, start + size))
    };
    parts.into_iter().find_map(place).unwrap_or_else(|| panic!("no RAM for {what}"))
}

/// Makes the map in the largest blocks and runs the boot CPU on it, the first to be let in. From here on there is a console.
///
/// # Safety
/// Runs once, on the boot CPU, on the boot map.
pub unsafe fn enable_mmu(machine: &Machine<'_>, tree: Fdt<'_>, monitor: &Rsi<Smc>) -> &'static Own {
    type A = Attributes<El1And0>;
    let mut buffer = Granule(RsiRealmConfig::zeroed());
    let config = monitor.config(&mut buffer).unwrap_or_else(|error| panic!("realm: {error}"));
    let levels = believed::levels(machine);
    let [start, rodata, data, end] = [
        symbol(&raw const entry::image_start),
        symbol(&raw const entry::image_rodata),
        symbol(&raw const entry::image_data),
        symbol(&raw const entry::image_end),
    ];
    let image = range(start, end);
    let tree = Range::<Pa>::new(tree.data().as_ptr() as u64, tree.data().len() as u64);
    let tree = tree.unwrap_or_else(|error| panic!("{error}")).expanded_to(PAGE);

    // The tables for pages of all RAM, and as many as splits may take; and a byte for each page.
    let total: u64 = machine.memory.iter().map(|bank| bank.size()).sum();
    let size = ((total >> 9) + (1 << 20)).next_multiple_of(BLOCK);
    let mut taken: ArrayVec<Range<Pa>, { 2 * MAX_RANGES + 8 }> =
        machine.no_map.iter().chain(&machine.reserved).copied().collect();
    taken.extend([image, tree]);
    let mut take = |size, what| {
        let place = place(machine.memory.iter().flat_map(|bank| bank.minus(&taken)), size, what);
        taken.push(place);
        place
    };
    let tables = take(size, "tables");
    let scratch = take(2 * BLOCK, "checks");
    let bytes = take((total / PAGE).next_multiple_of(PAGE), "a byte for each page");
    let pinned = PINNED.call_once(|| [image, tables]);
    let free = machine.memory.iter().flat_map(|bank| bank.minus(&taken)).collect();

    let boot = LIFECYCLE.boot(believed::capabilities(levels, 0, &believed::registers()));
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
    let uart = machine.uart.map_or(UART, |uart| uart.start().get());
    let uart = config.alias(range(uart, uart + PAGE)).unwrap_or_else(|| panic!("the UART has no alias"));
    add(uart, A::DEVICE);
    drop(writer);
    let registers = Registers::el1(&map, read_id_aa64mmfr0_el1().parange());
    // SAFETY: the map is never freed, and has this code, the stack and all that is referred to until the RAM is there, which lacks the device
    // tree.
    unsafe { stage1::install::el1(&registers) };
    report::move_to(uart.start().get());
    // SAFETY: free RAM, mapped by now, and used for nothing else.
    unsafe { POOL.refill(tables) }.unwrap_or_else(|error| panic!("{error}"));

    let starting = boot.open(machine.cpus.len());
    let mut holes = machine.no_map.clone();
    holes.extend(*pinned);
    if let Some(mut cpu) = map.cpu(0) {
        let mut writer = cpu.write();
        stage1::add_ram(&mut writer, &machine.memory, &holes, A::DATA, Leaves::LARGEST)
            .unwrap_or_else(|error| panic!("{error}"));
    }

    cpus::make(machine, |number| {
        Cpu::new(number, registers, stack_end(number)).asking_at((&raw const MAILBOXES[number]) as u64)
    });
    let mailboxes = (&raw const MAILBOXES) as u64;
    // SAFETY: what a starting CPU reads with its MMU off; maintenance changes no value.
    unsafe { entry::clean(mailboxes, mailboxes + size_of_val(&MAILBOXES) as u64) };
    // SAFETY: free RAM, mapped as data, and used for nothing else from here on; any bytes are such numbers.
    let pages = unsafe {
        let first = bytes.start().get() as *mut u8;
        first.write_bytes(0, bytes.size() as usize);
        core::slice::from_raw_parts(first.cast::<AtomicU8>(), bytes.size() as usize)
    };
    GATE.enter();
    let linear = LINEAR.call_once(|| LinearMap::new(map, pinned));
    let rsi = Rsi::<Outside>::find(0).unwrap_or_else(|error| panic!("{error}"));
    let own = OWN.call_once(|| Own {
        config,
        rsi,
        shared: SharedMemory::new(linear, rsi, &config, Leaves::LARGEST),
        free,
        pages,
        scratch,
        admission: Admission { starting, policy: Policy::KeepBlocks, late: Late::Admit },
        levels,
    });
    starting.arrived(0);
    own
}
