//! The life of a realm, from RMI_VERSION to the last granule that comes back, with the host's checks (DEN0137 D1.2 to D1.5).
//!
//! Invariant: the measured steps are printed in the order in which they are made, each as `@cloven measured …`, so that somebody else can
//! compute the RIM.

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicPtr, AtomicU16, AtomicU32, AtomicU64, Ordering};

use arm_sysregs::el1::accessors::{read_id_aa64mmfr2_el1, read_midr_el1};
use arrayvec::ArrayVec;
use hyp::machine::Machine;
use hyp::machine::image::Image;
use hyp::mapping::Address;
use rmm_abi::v1_0::rmi::{
    RmiCommand, RmiFeatureRegister0, RmiHashAlgorithm, RmiRealmParams, RmiRecCreateFlags, RmiRecMpidr,
    RmiRecParams, RmiRipas, RmiRttEntryState, RmiStatus,
};
use rmm_abi::v1_0::{NOT_SUPPORTED, VERSION};
use spin::Mutex;
use vmm_logic::tree::{self, RAM};

use super::granules::{COUNT, GRANULE, Pool, delegate, undelegate};
use super::memory::{BLOCK, Beside, GIB, Plan, bytes, plan};
use super::realm::{BITS_OF_LINUX, IPA_BITS, MAX_RECS, Manner, PAGE, Realm, Rec, START_LEVEL};
use super::rmi::{Refused, call, done, ticks, try_call};
use super::{console, devices, gic, linux, measure, probes, uart};
use crate::cpus::{self, alone, order, together};
use crate::memory::Memory;
use crate::report::Report;
use crate::say;

/// The RECs that are made unless the command line says otherwise, if there are as many CPUs.
const DEFAULT_RECS: usize = 4;
/// Words of the command line that a realm gets, at most.
const WORDS: usize = 24;
/// The most that a realm's device tree takes.
const TREE_ROOM: usize = 16 << 10;

static CURRENT: AtomicPtr<Realm> = AtomicPtr::new(core::ptr::null_mut());
static POOL: Mutex<Pool> = Mutex::new(Pool::new());

/// What the orders of the other CPUs are: numbers that the payload chooses.
#[derive(Clone, Copy, Debug)]
pub struct Orders {
    /// [`run_here`].
    pub run: usize,
    /// [`probes::count`].
    pub probe: usize,
}

/// Why a realm could not be made or taken apart.
#[derive(Debug)]
pub enum Problem {
    /// The RMM has not carried out a command.
    Refused(Refused),
    /// The host's own.
    Host(&'static str),
}

const NO_GRANULE: Problem = Problem::Host("there are not enough granules");
const ASLEEP: Problem = Problem::Host("a CPU does not go off, or does not come back");

impl From<Refused> for Problem {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(refused) => refused.fmt(f),
            Self::Host(text) => f.write_str(text),
        }
    }
}

/// Runs the REC with this CPU's number until the realm is over.
pub fn run_here() {
    // SAFETY: set while the boot CPU waits for all who run its RECs.
    let realm = unsafe { CURRENT.load(Ordering::Acquire).as_ref() };
    if let Some(realm) = realm {
        realm.run_rec(crate::entry::Cpu::this().number);
    }
}

/// What the RMM says of itself: nothing if there is none.
pub fn features() -> Option<Result<RmiFeatureRegister0, Problem>> {
    let [status, ..] = call(RmiCommand::Version, &[VERSION.bits()]);
    if status == NOT_SUPPORTED {
        return None;
    }
    if status != RmiStatus::Success.bits() {
        return Some(Err(Problem::Host("the RMM does not speak RMI 1.0")));
    }
    let features = done(RmiCommand::Features, &[0]).map_err(Problem::from);
    Some(features.map(|[value, ..]| RmiFeatureRegister0::from_bits(value)))
}

/// Zeroes a granule of the host's, as a structure to be filled.
///
/// # Safety
/// RAM of the host's that nobody else uses.
unsafe fn zeroed<T>(pa: u64) -> *mut T {
    for word in 0..GRANULE / 8 {
        // SAFETY: the caller's word.
        unsafe { (pa as *mut u64).add(word as usize).write_volatile(0) };
    }
    pa as *mut T
}

/// Writes the fields of a structure in a granule.
macro_rules! fill {
    ($at:expr, $($field:ident: $value:expr),+ $(,)?) => {
        // SAFETY: a zeroed granule of the host's with room for the structure, which nobody else uses.
        unsafe { $((&raw mut (*$at).$field).write_volatile($value);)+ }
    };
}

/// Bytes as hexadecimal digits.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// What a realm is made of.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Where its memory is.
    pub plan: Plan,
    /// How many RECs it has.
    pub recs: usize,
    /// Its Image; without one nothing is measured but the realm and its first REC, and no RIPAS is set.
    pub image: &'a [u8],
    /// Its initramfs, if it has one.
    pub initrd: &'a [u8],
    /// The words of its command line.
    pub bootargs: &'a [&'a str],
    /// How it is treated.
    pub manner: Manner,
    /// What the RMM can do.
    pub features: RmiFeatureRegister0,
    /// Whether it can run when it is made.
    pub is_active: bool,
}

/// Makes a realm.
///
/// # Errors
/// What the RMM says, or why the host cannot.
#[inline(never)]
pub fn make(wanted: &Wanted<'_>) -> Result<Realm, Problem> {
    let plan = wanted.plan;
    let mut pool = POOL.lock();
    pool.fill(plan.granules, plan.granules_size);
    let mut realm = describe(wanted, &mut pool)?;
    let loaded = load(&mut realm, &mut pool, wanted)?;
    if !wanted.image.is_empty() {
        for (start, end) in loaded.rest(plan.size) {
            init_ripas(&realm, &mut pool, start, end)?;
        }
        for (start, end) in loaded.rest(plan.size) {
            let mut ipa = start;
            while ipa < end {
                let next = ((ipa & !(BLOCK - 1)) + BLOCK).min(end);
                realm.assign_range(&mut pool, ipa, next)?;
                // At once, so that no more tables are in use than it takes.
                realm.fold(&mut pool, ipa, next)?;
                ipa = next;
            }
        }
        // What has the Image and the tree in it.
        let (start, end) = realm.ram();
        realm.fold(&mut pool, start, end)?;
    }
    add_recs(&mut realm, &mut pool, wanted, loaded.entry, loaded.tree)?;
    if wanted.is_active {
        done(RmiCommand::RealmActivate, &[realm.rd])?;
    }
    Ok(realm)
}

/// The descriptor and the roots.
fn describe(wanted: &Wanted<'_>, pool: &mut Pool) -> Result<Realm, Problem> {
    let features = wanted.features;
    let (bits, root_count) = if wanted.plan.devices.is_some() {
        // One for the half in which RAM ends.
        let top = RAM + wanted.plan.size;
        ((u64::BITS - (top - 1).leading_zeros() + 1).max(BITS_OF_LINUX.into()) as u8, 1)
    } else {
        (IPA_BITS, 2)
    };
    if features.s2sz() < bits.into() {
        return Err(Problem::Host("the RMM has not so many bits of IPA"));
    }
    let algorithm =
        if features.hash_sha_256() == 1 { RmiHashAlgorithm::Sha256 } else { RmiHashAlgorithm::Sha512 };
    let roots = if root_count == 1 { pool.take() } else { pool.take_pair() }.ok_or(NO_GRANULE)?;
    let rd = pool.take().ok_or(NO_GRANULE)?;
    let params = pool.take().ok_or(NO_GRANULE)?;
    for pa in (0..root_count).map(|number| roots + number * GRANULE).chain([rd]) {
        delegate(pa)?;
    }
    // SAFETY: it was just taken.
    let fields = unsafe { zeroed::<RmiRealmParams>(params) };
    fill!(fields, s2sz: bits, num_bps: features.num_bps() as u8, num_wps: features.num_wps() as u8,
        hash_algo: algorithm.bits(), vmid: 1, rtt_base: roots, rtt_level_start: START_LEVEL, rtt_num_start: root_count as u32);
    done(RmiCommand::RealmCreate, &[rd, params])?;
    say!(
        "@cloven measured realm 0 {bits} 0 {} {} 0 {}",
        features.num_bps(),
        features.num_wps(),
        algorithm.bits()
    );
    pool.put(params);
    Ok(Realm {
        rd,
        bits,
        roots,
        root_count,
        plan: wanted.plan,
        recs: ArrayVec::new(),
        lists: (features.gicv3_num_lrs() as usize + 1).min(16),
        manner: wanted.manner,
        pool: &POOL,
        ended: AtomicBool::new(false),
        failed: AtomicBool::new(false),
        changes: AtomicU64::new(0),
        rejected: AtomicU64::new(0),
        exchanged: AtomicU64::new(0),
        tree: 0,
    })
}

/// A range of IPAs.
type Ipas = (u64, u64);

/// What is in a realm from its start.
struct Loaded {
    /// Where the Image begins.
    entry: u64,
    /// Where the device tree lies.
    tree: u64,
    /// All of it; they ascend.
    parts: ArrayVec<Ipas, 3>,
}

impl Loaded {
    /// What of RAM is none of it.
    fn rest(&self, size: u64) -> impl Iterator<Item = Ipas> {
        let starts = [RAM].into_iter().chain(self.parts.iter().map(|part| part.1));
        let ends = self.parts.iter().map(|part| part.0).chain([RAM + size]);
        starts.zip(ends).filter(|(start, end)| start < end)
    }
}

/// Gives the realm a file from `ipa` on, measured.
fn load_file(realm: &Realm, pool: &mut Pool, ipa: u64, file: &[u8]) -> Result<Ipas, Problem> {
    let page = pool.take().ok_or(NO_GRANULE)?;
    for (number, part) in file.chunks(GRANULE as usize).enumerate() {
        let at = ipa + number as u64 * GRANULE;
        let lies_at = part.as_ptr() as u64;
        let source = if part.len() as u64 == GRANULE && lies_at.is_multiple_of(GRANULE) {
            lies_at
        } else {
            // SAFETY: it was just taken.
            let place = unsafe { core::slice::from_raw_parts_mut(zeroed::<u8>(page), part.len()) };
            place.copy_from_slice(part);
            page
        };
        realm.create_data(pool, at, source)?;
        // As in `make`.
        if (at + GRANULE).is_multiple_of(BLOCK) {
            realm.fold(pool, at + GRANULE - BLOCK, at + GRANULE)?;
        }
    }
    pool.put(page);
    Ok((ipa, (ipa + file.len() as u64).next_multiple_of(GRANULE)))
}

/// The Image, the initramfs and the device tree, measured.
fn load(realm: &mut Realm, pool: &mut Pool, wanted: &Wanted<'_>) -> Result<Loaded, Problem> {
    if wanted.image.is_empty() {
        return Ok(Loaded { entry: RAM, tree: RAM, parts: ArrayVec::new() });
    }
    let header = Image::read(wanted.image, wanted.image.len() as u64)
        .map_err(|_| Problem::Host("the realm's kernel is no arm64 Image"))?;
    let start = RAM + header.text_offset;
    if !start.is_multiple_of(GRANULE) {
        return Err(Problem::Host("the realm's kernel does not begin with a granule"));
    }
    // Behind the variables, in a block of its own: no tree may cross the border of one.
    let behind = (start + header.size).next_multiple_of(BLOCK);
    let initrd = (behind, behind + wanted.initrd.len() as u64);
    let at = initrd.1.next_multiple_of(BLOCK);
    if !realm.has_ram(start, at + TREE_ROOM as u64 - start) {
        return Err(Problem::Host("the realm's RAM is too small for what it is made of"));
    }
    let mpidrs: ArrayVec<u64, MAX_RECS> =
        (0..wanted.recs as u64).map(|index| RmiRecMpidr::from_index(index).bits()).collect();
    let described = tree::Machine {
        memory: realm.plan.size,
        mpidrs: &mpidrs,
        bootargs: wanted.bootargs,
        initrd: (!wanted.initrd.is_empty()).then_some(initrd),
        virtio: if realm.has_devices() { devices::VIRTIO } else { 0 },
    };
    // SAFETY: the backing is the host's, and nobody uses it yet.
    let buffer = unsafe { core::slice::from_raw_parts_mut(realm.plan.backing as *mut u8, TREE_ROOM) };
    buffer.fill(0);
    let size = tree::write(buffer, &described).map_err(|_| Problem::Host("the device tree has no room"))?;
    realm.tree = at;
    let mut parts = ArrayVec::new();
    say!("@cloven measured image {start:#x} {} 1", wanted.image.len());
    parts.push(load_file(realm, pool, start, wanted.image)?);
    if !wanted.initrd.is_empty() {
        say!("@cloven measured initrd {:#x} {} 1", initrd.0, wanted.initrd.len());
        parts.push(load_file(realm, pool, initrd.0, wanted.initrd)?);
    }
    for (number, part) in buffer[..size].chunks(GRANULE as usize).enumerate() {
        let offset = number as u64 * GRANULE;
        say!("@cloven measured data {:#x} 1 {}", at + offset, Hex(part));
        realm.create_data(pool, at + offset, realm.plan.backing + offset)?;
    }
    parts.push((at, at + (size as u64).next_multiple_of(GRANULE)));
    Ok(Loaded { entry: start, tree: at, parts })
}

/// Makes `start..end` RAM before the realm runs: measured, entry by entry.
fn init_ripas(realm: &Realm, pool: &mut Pool, start: u64, end: u64) -> Result<(), Problem> {
    let mut at = start;
    while at < end {
        match try_call(RmiCommand::RttInitRipas, &[realm.rd, at, end]) {
            Ok([next, ..]) => {
                if next <= at {
                    return Err(Problem::Host("RMI_RTT_INIT_RIPAS makes no progress"));
                }
                let level = realm.entry(at, PAGE)?.level;
                say!("@cloven measured ripas {at:#x} {next:#x} {level}");
                at = next;
            }
            Err((refused, _)) => match refused.walk_level() {
                Some(level) if level < PAGE => realm.create_table(pool, at, level + 1)?,
                _ => return Err(refused.into()),
            },
        }
    }
    Ok(())
}

fn add_recs(
    realm: &mut Realm,
    pool: &mut Pool,
    wanted: &Wanted<'_>,
    pc: u64,
    tree: u64,
) -> Result<(), Problem> {
    let [count, ..] = done(RmiCommand::RecAuxCount, &[realm.rd])?;
    let params = pool.take().ok_or(NO_GRANULE)?;
    for index in 0..wanted.recs {
        let mut take = || -> Result<u64, Problem> {
            let pa = pool.take().ok_or(NO_GRANULE)?;
            delegate(pa)?;
            Ok(pa)
        };
        let pa = take()?;
        let mut aux = ArrayVec::<u64, 16>::new();
        for _ in 0..count.min(16) {
            aux.push(take()?);
        }
        // SAFETY: it was taken above.
        let fields = unsafe { zeroed::<RmiRecParams>(params) };
        let (flags, pc, x0) = match index {
            0 => (RmiRecCreateFlags::RUNNABLE, pc, tree),
            _ => (RmiRecCreateFlags::empty(), 0, 0),
        };
        let mut list = [0; 16];
        list[..aux.len()].copy_from_slice(&aux);
        fill!(fields, flags: flags, mpidr: RmiRecMpidr::from_index(index as u64), pc: pc,
            gprs: [x0, 0, 0, 0, 0, 0, 0, 0], num_aux: count, aux: list);
        done(RmiCommand::RecCreate, &[realm.rd, pa, params])?;
        if index == 0 {
            say!("@cloven measured rec {} {pc:#x} {x0:#x} 0 0 0 0 0 0 0", flags.bits());
        }
        let run = pool.take().ok_or(NO_GRANULE)?;
        // SAFETY: it was just taken.
        unsafe { zeroed::<u8>(run) };
        realm.recs.push(Rec {
            pa,
            aux,
            run,
            starts: AtomicU32::new(u32::from(index == 0)),
            inside: AtomicBool::new(false),
            sgis: AtomicU16::new(0),
            exits: [const { AtomicU64::new(0) }; 7],
        });
    }
    pool.put(params);
    Ok(())
}

/// Takes a realm apart: all that was given to it comes back.
///
/// # Errors
/// What the RMM says.
#[inline(never)]
pub fn unmake(realm: &Realm) -> Result<(), Problem> {
    let mut pool = realm.lock();
    let pool = &mut *pool;
    for rec in &realm.recs {
        done(RmiCommand::RecDestroy, &[rec.pa])?;
        for &pa in rec.aux.iter().chain([&rec.pa]) {
            undelegate(pa)?;
            pool.put(pa);
        }
        pool.put(rec.run);
    }
    let (start, end) = realm.ram();
    for block in (start..end).step_by(BLOCK as usize) {
        realm.take_range(pool, block, block + BLOCK)?;
        realm.destroy_table(pool, block, PAGE)?;
    }
    realm.unmap_shared(pool, start, end)?;
    for half in [0, realm.shared()] {
        for ipa in (start..end).step_by(BLOCK as usize) {
            realm.destroy_table(pool, ipa | half, PAGE)?;
        }
        for ipa in (start & !(GIB - 1)..end).step_by(GIB as usize) {
            realm.destroy_table(pool, ipa | half, PAGE - 1)?;
        }
    }
    done(RmiCommand::RealmDestroy, &[realm.rd])?;
    let roots = (0..realm.root_count).map(|number| realm.roots + number * GRANULE);
    for pa in roots.chain([realm.rd]) {
        undelegate(pa)?;
        pool.put(pa);
    }
    pool.drain()?;
    Ok(())
}

/// How the RAM of a realm is mapped: blocks of level 1, of level 2, pages, and tables that say nothing that their parent could not.
#[inline(never)]
fn shape(realm: &Realm) -> Result<[u64; 4], Problem> {
    let mut shape = [0; 4];
    let (start, end) = realm.ram();
    let mut ipa = start;
    while ipa < end {
        let block = realm.entry(ipa, PAGE - 1)?;
        if block.state != Some(RmiRttEntryState::Table) {
            let gib = block.level < PAGE - 1;
            shape[if gib { 0 } else { 1 }] += 1;
            ipa += if gib { GIB } else { BLOCK };
            continue;
        }
        let mut alike = true;
        let first = realm.entry(ipa, PAGE)?;
        for number in 0..BLOCK / GRANULE {
            let page = realm.entry(ipa + number * GRANULE, PAGE)?;
            alike &= page.state == first.state && page.ripas == first.ripas;
            alike &= first.state != Some(RmiRttEntryState::Assigned)
                || page.address == first.address + number * GRANULE;
        }
        shape[2] += BLOCK / GRANULE;
        let foldable = first.ripas == Some(RmiRipas::Ram);
        shape[3] += u64::from(alike && foldable && first.address.is_multiple_of(BLOCK));
        ipa += BLOCK;
    }
    Ok(shape)
}

/// What a host must not do, tried: the number of those that were carried out, or refused by another status than these.
#[inline(never)]
fn liberties(realm: &Realm, hypervisor: u64) -> usize {
    use RmiCommand as C;
    const INPUT: &[u64] = &[1];
    const REALM: &[u64] = &[2];
    // Two things are wrong with these, and the specification does not say which is told.
    const INPUT_OR_RTT: &[u64] = &[1, 4];
    let (rd, data, rec) = (realm.rd, realm.plan.ram, realm.recs[0].pa);
    let tries = [
        // A granule that is given already, in each of its states; the hypervisor's; what is none.
        (C::GranuleDelegate, [rd, 0, 0], INPUT),
        (C::GranuleDelegate, [data, 0, 0], INPUT),
        (C::GranuleDelegate, [hypervisor, 0, 0], INPUT),
        (C::GranuleDelegate, [realm.plan.backing + 8, 0, 0], INPUT),
        (C::GranuleUndelegate, [rd, 0, 0], INPUT),
        (C::GranuleUndelegate, [data, 0, 0], INPUT),
        (C::GranuleUndelegate, [rec, 0, 0], INPUT),
        (C::GranuleUndelegate, [realm.roots, 0, 0], INPUT),
        (C::GranuleUndelegate, [realm.plan.backing, 0, 0], INPUT),
        // A granule of one kind as another.
        (C::RealmActivate, [rec, 0, 0], INPUT),
        (C::RealmActivate, [rd, 0, 0], REALM),
        (C::RecDestroy, [rd, 0, 0], INPUT),
        (C::RecEnter, [rec, rd, 0], INPUT),
        (C::RecEnter, [rec, hypervisor, 0], INPUT),
        (C::RealmDestroy, [rd, 0, 0], REALM),
        (C::RealmCreate, [rd, realm.plan.backing, 0], INPUT),
        // The realm's memory at another place, and what is not delegated.
        (C::DataCreateUnknown, [rd, data, RAM], INPUT_OR_RTT),
        (C::DataCreateUnknown, [rd, realm.plan.backing, RAM], INPUT_OR_RTT),
        (C::DataCreateUnknown, [rd, realm.plan.backing, RAM | realm.shared()], INPUT),
    ];
    let wrong = tries.iter().filter(|(command, inputs, expected)| {
        let [status, ..] = call(*command, inputs);
        let is_wrong = !expected.contains(&(status & 0xff));
        if is_wrong {
            say!("payload: {} {inputs:x?} was answered by {status:#x}", command.name());
        }
        is_wrong
    });
    wrong.count()
}

/// What the command line says of the host's manner.
fn manner(machine: &Machine<'_>) -> Manner {
    let is_on = |name| machine.parameter(name).is_some_and(|value| value != "0");
    Manner {
        reject: machine.parameter("cloven.reject").and_then(|text| text.parse().ok()),
        partial: machine.parameter("cloven.partial").and_then(bytes),
        reclaim: is_on("cloven.reclaim"),
        pages: is_on("cloven.pages"),
    }
}

/// How many RECs there are to be.
fn recs(machine: &Machine<'_>) -> usize {
    let asked = machine.parameter("cloven.recs").and_then(|text| text.parse().ok()).unwrap_or(DEFAULT_RECS);
    asked.clamp(1, machine.cpus.len().min(MAX_RECS))
}

/// What the RMM can do, if there is one that can be spoken to.
fn find_rmm(report: &mut Report) -> Option<RmiFeatureRegister0> {
    match features() {
        None => say!("payload: no RMM answers RMI_VERSION: no realm is made"),
        Some(Ok(features)) => return Some(features),
        Some(Err(problem)) => report.check("realm.host.version", false, format_args!("{problem}")),
    }
    None
}

/// Where there is room for a realm.
fn find_place(
    report: &mut Report,
    machine: &Machine<'_>,
    memory: &Memory,
    beside: Beside<'_>,
) -> Option<Plan> {
    report.check("realm.host.version", true, format_args!("RMI {}.{}", VERSION.major, VERSION.minor));
    let found = plan(machine, memory, beside);
    let asked = machine.parameter("cloven.realm");
    if found.is_none() && (asked.is_some() || beside.linux.is_some()) {
        report.check("realm.host.has_memory", false, format_args!("{asked:?}"));
    } else if found.is_none() {
        say!("payload: no RAM for a realm");
    }
    found
}

/// Makes the realm, runs it, takes it apart, and checks what there is to be seen on the way. Without an RMM it says so, and nothing is checked.
pub fn run_realm(report: &mut Report, machine: &Machine<'_>, memory: &Memory, image: &[u8], orders: Orders) {
    let Some(features) = find_rmm(report) else { return };
    if image.is_empty() {
        return say!("payload: no realm is embedded: none is made");
    }
    let Some(plan) = find_place(report, machine, memory, Beside::default()) else { return };
    let words = machine.bootargs.into_iter().flat_map(str::split_ascii_whitespace);
    let bootargs: ArrayVec<&str, WORDS> =
        words.filter(|word| word.starts_with("cloven.")).take(WORDS).collect();
    if measure::is_wanted(machine) {
        let measured = measure::all(plan, features);
        let detail = measured.as_ref().err();
        report.check("realm.host.measures", measured.is_ok(), format_args!("{}", Shown(detail)));
    }
    let (recs, manner) = (recs(machine), manner(machine));
    let wanted =
        Wanted { plan, recs, image, initrd: &[], bootargs: &bootargs, manner, features, is_active: true };
    live(report, machine, memory, &wanted, orders);
}

/// The same with the Linux that the command line names ([`linux::files`]), and nothing else. Runs with the other CPUs off.
pub fn run_linux(report: &mut Report, machine: &Machine<'_>, memory: &Memory, orders: Orders) {
    let given = match linux::files(machine, memory) {
        Ok(given) => given,
        Err(problem) => return report.check("realm.host.has_its_kernel", false, format_args!("{problem}")),
    };
    let detail = format_args!("{} bytes, initramfs {} bytes", given.kernel.len(), given.initrd.len());
    report.check("realm.host.has_its_kernel", true, detail);
    let came = cpus::start_from(1);
    report.check("realm.host.has_its_cpus", came, format_args!("{} CPUs", cpus::all().len()));
    let Some(features) = find_rmm(report) else {
        return report.check("realm.host.version", false, format_args!("there is no RMM"));
    };
    let beside = Beside { linux: Some(&given.ranges) };
    let Some(plan) = find_place(report, machine, memory, beside) else { return };
    let (recs, manner) = (recs(machine), manner(machine));
    let (image, initrd, bootargs) = (given.kernel, given.initrd, &given.words);
    let wanted = Wanted { plan, recs, image, initrd, bootargs, manner, features, is_active: true };
    live(report, machine, memory, &wanted, orders);
}

// Of what it calls each has a frame of its own: together they are more than a stack.
/// The life of a realm, with all that is checked.
fn live(report: &mut Report, machine: &Machine<'_>, memory: &Memory, wanted: &Wanted<'_>, orders: Orders) {
    let Wanted { plan, recs, manner, .. } = *wanted;
    let before = [&COUNT.given, &COUNT.returned].map(|count| count.load(Ordering::Relaxed));
    let start = ticks();
    let made = alone(|| make(wanted)).unwrap_or(Err(ASLEEP));
    let made_in = ticks() - start;
    let realm = match made {
        Ok(realm) => realm,
        Err(problem) => return report.check("realm.host.is_made", false, format_args!("{problem}")),
    };
    let detail = format_args!("{} MiB at {:#x}, {recs} RECs, {manner:?}", plan.size >> 20, plan.ram);
    report.check("realm.host.is_made", true, detail);
    figure("realm.host.made_in", made_in);
    let shaped = alone(|| shape(&realm)).unwrap_or(Err(ASLEEP));

    let wrong = liberties(&realm, memory.hypervisor.start().get());
    report.check("realm.host.takes_no_liberties", wrong == 0, format_args!("{wrong} were not refused"));
    let kept = cannot_reach(report, machine, memory, &realm, orders);
    if kept {
        if realm.has_devices() {
            devices::reset(&realm);
            let watched = watch(memory, &realm);
            run(report, machine, &realm, recs, orders);
            end_watch(report, memory, watched);
        } else {
            run(report, machine, &realm, recs, orders);
        }
        let now = alone(|| shape(&realm)).unwrap_or(Err(ASLEEP));
        let canonical = match (&shaped, &now) {
            (Ok(_), Ok([.., left])) => *left == 0 || manner.pages,
            _ => false,
        };
        let detail = format_args!("level 1, level 2, pages, foldable tables: {shaped:?}, then {now:?}");
        report.check("realm.host.tables_are_canonical", canonical, detail);
        let again = probe(memory, &realm, orders, 0);
        report.check("realm.host.is_refused_after_the_run", again, format_args!(""));
    }
    let start = ticks();
    let unmade = alone(|| unmake(&realm)).unwrap_or(Err(ASLEEP));
    figure("realm.host.unmade_in", ticks() - start);
    let detail = unmade.as_ref().err();
    report.check("realm.host.is_taken_apart", unmade.is_ok(), format_args!("{}", Shown(detail)));
    let [given, returned] = [(&COUNT.given, before[0]), (&COUNT.returned, before[1])]
        .map(|(count, before)| count.load(Ordering::Relaxed) - before);
    let bad = COUNT.bad.load(Ordering::Relaxed);
    report.check(
        "realm.host.all_comes_back_wiped",
        given == returned && bad == 0 && given > 0,
        format_args!(
            "{given} granules given, {returned} came back, {bad} of them not wiped or not the host's"
        ),
    );
}

/// Nothing, or what was wrong.
struct Shown<'a>(Option<&'a Problem>);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.map_or(Ok(()), |problem| problem.fmt(f))
    }
}

fn figure(name: &str, ticks: u64) {
    say!("@cloven figure {name} {ticks} ticks");
}

/// Granules of the realm's that it has from when it was made to its end: descriptor, first REC and what that has besides, roots, first page.
fn lasting(realm: &Realm) -> impl Iterator<Item = u64> {
    let rec = &realm.recs[0];
    let places =
        [Some(realm.rd), Some(rec.pa), rec.aux.first().copied(), Some(realm.roots), Some(realm.plan.ram)];
    places.into_iter().flatten()
}

/// Tries each kind of granule of the realm's on CPU `number`; whether all was refused.
fn probe(memory: &Memory, realm: &Realm, orders: Orders, number: usize) -> bool {
    let table = realm.entry(RAM, START_LEVEL);
    let table = table.ok().filter(|entry| entry.state == Some(RmiRttEntryState::Table));
    let last = realm.plan.ram + realm.plan.size - GRANULE;
    let places: ArrayVec<u64, { probes::MOST }> =
        lasting(realm).chain(table.map(|entry| entry.address)).chain([last]).collect();
    probes::set(&places);
    let mapped = probes::map(memory, true);
    if number == 0 {
        probes::count();
    } else if let Some(cpu) = cpus::all().get(number) {
        order(cpu, orders.probe);
    }
    let unmapped = probes::map(memory, false);
    let (refused, tried, through) = probes::take();
    if refused != tried || tried != 6 * places.len() {
        say!("payload: CPU {number}: {refused} of {tried} refused; address, kind, ESR: {through:x?}");
    }
    mapped && unmapped && refused == tried && tried == 6 * places.len()
}

/// Has some of what is the realm's tried while it runs ([`probes::at_exit`]); whether it can be.
fn watch(memory: &Memory, realm: &Realm) -> bool {
    // Nothing that may come back meanwhile: where it is reclaimed, what the realm has shared is the host's then.
    let last = (!realm.manner.reclaim).then_some(realm.plan.ram + realm.plan.size - GRANULE);
    let places: ArrayVec<u64, { probes::MOST }> =
        lasting(realm).chain([realm.pa(realm.tree)]).chain(last).collect();
    probes::set(&places);
    probes::map(memory, true)
}

/// What became of that.
fn end_watch(report: &mut Report, memory: &Memory, watched: bool) {
    let unmapped = probes::map(memory, false);
    let ((refused, tried, through), moments) = (probes::take(), probes::moments());
    let holds = watched && unmapped && refused == tried && moments > 2 && tried == moments * 3;
    let detail = format_args!(
        "{refused} of {tried} accesses at {moments} exits refused; the first that was not: address, kind, ESR {through:x?}"
    );
    report.check("realm.host.is_refused_while_it_runs", holds, detail);
}

/// The host's accesses to what is the realm's, on every CPU; whether all were refused.
#[inline(never)]
fn cannot_reach(
    report: &mut Report,
    machine: &Machine<'_>,
    memory: &Memory,
    realm: &Realm,
    orders: Orders,
) -> bool {
    (0..machine.cpus.len().min(cpus::all().len())).all(|number| {
        let refused = probe(memory, realm, orders, number);
        let name = "realm.host.cannot_reach_its_granules";
        report.check(name, refused, format_args!("CPU {number}"));
        refused
    })
}

/// What a host reads of its CPU that realms may be shown otherwise: MIDR_EL1, the level of FEAT_BBM.
fn shown() -> (u64, u8) {
    (read_midr_el1().bits(), read_id_aa64mmfr2_el1().bbm())
}

/// Runs the realm, each REC on its CPU, until it is over.
#[inline(never)]
fn run(report: &mut Report, machine: &Machine<'_>, realm: &Realm, recs: usize, orders: Orders) {
    gic::enable_distributor(machine);
    let ready = (0..recs).all(|number| gic::enable_private(machine, number));
    report.check("realm.host.interrupts_reach_each_cpu", ready, format_args!("{recs} CPUs"));
    if realm.has_devices() {
        gic::enable_uart(machine);
        uart::start();
        devices::DEVICES.lock().hear();
    }
    CURRENT.store(core::ptr::from_ref(realm).cast_mut(), Ordering::Release);
    let (before, start) = (shown(), ticks());
    // On an emulator a CPU that looks for an order all the time takes it from those that run a REC.
    let all_back = if realm.has_devices() {
        cpus::with_first(recs, || together(recs - 1, orders.run, run_here)).is_some()
    } else {
        together(recs - 1, orders.run, run_here);
        true
    };
    let ran = ticks() - start;
    let after = shown();
    uart::listen(false);
    CURRENT.store(core::ptr::null_mut(), Ordering::Release);
    let (checks, said) = console::end();
    report.add(checks);
    let failed = realm.failed.load(Ordering::Relaxed);
    report.check("realm.host.ends_by_itself", !failed && all_back, format_args!("{ran} ticks"));
    report.check(
        "realm.host.heard_all_its_checks",
        // A shell makes none.
        (checks > 0 || realm.has_devices()) && said.is_none_or(|said| said == checks),
        format_args!("{checks} checks came, it says it made {said:?}"),
    );
    report.check(
        "realm.host.is_shown_its_own_cpu",
        before == after,
        format_args!("MIDR and level of FEAT_BBM {before:x?}, then {after:x?}"),
    );
    const REASONS: [&str; 7] = ["sync", "irq", "fiq", "psci", "ripas_change", "host_call", "serror"];
    for (reason, name) in REASONS.iter().enumerate() {
        let count: u64 = realm.recs.iter().map(|rec| rec.exits[reason].load(Ordering::Relaxed)).sum();
        if count > 0 {
            say!("@cloven figure realm.host.exits_{name} {count} exits");
        }
    }
    if realm.has_devices() {
        for (name, count) in &devices::EXITS {
            say!("@cloven figure realm.host.exits_{name} {} exits", count.load(Ordering::Relaxed));
        }
    }
    let [changes, rejected, exchanged] =
        [&realm.changes, &realm.rejected, &realm.exchanged].map(|count| count.load(Ordering::Relaxed));
    say!("@cloven figure realm.host.ripas_changes {changes} changes");
    say!("@cloven figure realm.host.ripas_changes_rejected {rejected} changes");
    say!("@cloven figure realm.host.exchanged {exchanged} doublewords");
    figure("realm.host.ran", ran);
}
