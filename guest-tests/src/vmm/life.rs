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
use super::memory::{BLOCK, GIB, Plan, bytes, plan};
use super::realm::{IPA_BITS, MAX_RECS, Manner, PAGE, Realm, Rec, SHARED, START_LEVEL};
use super::rmi::{Refused, call, done, ticks, try_call};
use super::{console, gic, measure, probes};
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
    let (image, tree) = load(&mut realm, &mut pool, wanted)?;
    if !wanted.image.is_empty() {
        for (start, end) in rest(plan.size, image, tree).into_iter().filter(|(start, end)| start < end) {
            init_ripas(&realm, &mut pool, start, end)?;
        }
        for (start, end) in rest(plan.size, image, tree) {
            for ipa in (start..end).step_by(GRANULE as usize) {
                realm.assign(&mut pool, ipa)?;
                // At once, so that no more tables are in use than it takes.
                let next = ipa + GRANULE;
                if next.is_multiple_of(BLOCK) {
                    realm.fold(&mut pool, next - BLOCK, next)?;
                }
            }
        }
        // What has the Image and the tree in it.
        let (start, end) = realm.ram();
        realm.fold(&mut pool, start, end)?;
    }
    add_recs(&mut realm, &mut pool, wanted, image.0, tree.0)?;
    if wanted.is_active {
        done(RmiCommand::RealmActivate, &[realm.rd])?;
    }
    Ok(realm)
}

/// The descriptor and the roots.
fn describe(wanted: &Wanted<'_>, pool: &mut Pool) -> Result<Realm, Problem> {
    const NO_GRANULE: Problem = Problem::Host("there are not enough granules");
    let features = wanted.features;
    if features.s2sz() < IPA_BITS.into() {
        return Err(Problem::Host("the RMM has no 40 bits of IPA"));
    }
    let algorithm =
        if features.hash_sha_256() == 1 { RmiHashAlgorithm::Sha256 } else { RmiHashAlgorithm::Sha512 };
    let roots = pool.take_pair().ok_or(NO_GRANULE)?;
    let rd = pool.take().ok_or(NO_GRANULE)?;
    let params = pool.take().ok_or(NO_GRANULE)?;
    for pa in [roots, roots + GRANULE, rd] {
        delegate(pa)?;
    }
    // SAFETY: it was just taken.
    let fields = unsafe { zeroed::<RmiRealmParams>(params) };
    fill!(fields, s2sz: IPA_BITS, num_bps: features.num_bps() as u8, num_wps: features.num_wps() as u8,
        hash_algo: algorithm.bits(), vmid: 1, rtt_base: roots, rtt_level_start: START_LEVEL, rtt_num_start: 2);
    done(RmiCommand::RealmCreate, &[rd, params])?;
    say!(
        "@cloven measured realm 0 {IPA_BITS} 0 {} {} 0 {}",
        features.num_bps(),
        features.num_wps(),
        algorithm.bits()
    );
    pool.put(params);
    Ok(Realm {
        rd,
        roots,
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

/// What of RAM is neither image nor tree, which ascend.
fn rest(size: u64, image: Ipas, tree: Ipas) -> [Ipas; 3] {
    [(RAM, image.0), (image.1, tree.0), (tree.1, RAM + size)]
}

/// The Image and the device tree, measured: where they lie.
fn load(realm: &mut Realm, pool: &mut Pool, wanted: &Wanted<'_>) -> Result<(Ipas, Ipas), Problem> {
    if wanted.image.is_empty() {
        return Ok(((RAM, RAM), (RAM, RAM)));
    }
    let header = Image::read(wanted.image, wanted.image.len() as u64)
        .map_err(|_| Problem::Host("the realm's payload is no arm64 Image"))?;
    let start = RAM + header.text_offset;
    if !start.is_multiple_of(GRANULE) {
        return Err(Problem::Host("the realm's payload does not begin with a granule"));
    }
    let file = wanted.image.len() as u64;
    let image = (start, (start + file).next_multiple_of(GRANULE));
    // Behind the variables, in a block of its own: no tree may cross the border of one.
    let at = (start + header.size).next_multiple_of(BLOCK);
    let mpidrs: ArrayVec<u64, MAX_RECS> =
        (0..wanted.recs as u64).map(|index| RmiRecMpidr::from_index(index).bits()).collect();
    let described = tree::Machine { memory: realm.plan.size, mpidrs: &mpidrs, bootargs: wanted.bootargs };
    // SAFETY: the backing is the host's, and nobody uses it yet.
    let buffer = unsafe { core::slice::from_raw_parts_mut(realm.plan.backing as *mut u8, TREE_ROOM) };
    buffer.fill(0);
    let size = tree::write(buffer, &described).map_err(|_| Problem::Host("the device tree has no room"))?;
    realm.tree = at;
    let tree = (at, at + (size as u64).next_multiple_of(GRANULE));
    if !realm.has_ram(image.0, tree.1 - image.0) {
        return Err(Problem::Host("the realm's RAM is too small for its payload"));
    }
    let page = pool.take().ok_or(Problem::Host("there are not enough granules"))?;
    say!("@cloven measured image {:#x} {file} 1", image.0);
    for (number, part) in wanted.image.chunks(GRANULE as usize).enumerate() {
        // SAFETY: it was just taken.
        let place = unsafe { core::slice::from_raw_parts_mut(zeroed::<u8>(page), part.len()) };
        place.copy_from_slice(part);
        realm.create_data(pool, image.0 + number as u64 * GRANULE, page)?;
    }
    for (number, part) in buffer[..size].chunks(GRANULE as usize).enumerate() {
        let offset = number as u64 * GRANULE;
        say!("@cloven measured data {:#x} 1 {}", at + offset, Hex(part));
        realm.create_data(pool, at + offset, realm.plan.backing + offset)?;
    }
    pool.put(page);
    Ok((image, tree))
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
    const NO_GRANULE: Problem = Problem::Host("there are not enough granules");
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
    let mut ipa = start;
    while ipa < end {
        let block = (ipa & !(BLOCK - 1)) + BLOCK;
        let next = realm.take(pool, ipa)?;
        for passed in (block..=next.min(end)).step_by(BLOCK as usize) {
            realm.destroy_table(pool, passed - BLOCK, PAGE)?;
        }
        ipa = next;
    }
    realm.unmap_shared(pool, start, end)?;
    for half in [0, SHARED] {
        for ipa in (start..end).step_by(BLOCK as usize) {
            realm.destroy_table(pool, ipa | half, PAGE)?;
        }
        for ipa in (start & !(GIB - 1)..end).step_by(GIB as usize) {
            realm.destroy_table(pool, ipa | half, PAGE - 1)?;
        }
    }
    done(RmiCommand::RealmDestroy, &[realm.rd])?;
    for pa in [realm.rd, realm.roots, realm.roots + GRANULE] {
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
        (C::DataCreateUnknown, [rd, realm.plan.backing, RAM | SHARED], INPUT),
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

// Of what it calls each has a frame of its own: together they are more than a stack.
/// Makes the realm, runs it, takes it apart, and checks what there is to be seen on the way. Without an RMM it says so, and nothing is checked.
pub fn run_realm(report: &mut Report, machine: &Machine<'_>, memory: &Memory, image: &[u8], orders: Orders) {
    let features = match features() {
        None => return say!("payload: no RMM answers RMI_VERSION: no realm is made"),
        Some(Ok(features)) => features,
        Some(Err(problem)) => {
            return report.check("realm.host.version", false, format_args!("{problem}"));
        }
    };
    if image.is_empty() {
        return say!("payload: no realm is embedded: none is made");
    }
    report.check("realm.host.version", true, format_args!("RMI {}.{}", VERSION.major, VERSION.minor));
    let Some(plan) = plan(machine, memory) else {
        let asked = machine.parameter("cloven.realm");
        if asked.is_some() {
            report.check("realm.host.has_memory", false, format_args!("{asked:?}"));
        } else {
            say!("payload: no RAM for a realm");
        }
        return;
    };
    let words = machine.bootargs.into_iter().flat_map(str::split_ascii_whitespace);
    let bootargs: ArrayVec<&str, WORDS> =
        words.filter(|word| word.starts_with("cloven.")).take(WORDS).collect();
    if measure::is_wanted(machine) {
        let measured = measure::all(plan, features);
        let detail = measured.as_ref().err();
        report.check("realm.host.measures", measured.is_ok(), format_args!("{}", Shown(detail)));
    }
    let (recs, manner) = (recs(machine), manner(machine));
    let before = [&COUNT.given, &COUNT.returned].map(|count| count.load(Ordering::Relaxed));
    let start = ticks();
    let wanted = Wanted { plan, recs, image, bootargs: &bootargs, manner, features, is_active: true };
    let made = alone(|| make(&wanted)).unwrap_or(Err(ASLEEP));
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
        run(report, machine, &realm, recs, orders);
        let now = shape(&realm);
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

/// Tries each kind of granule of the realm's on CPU `number`; whether all was refused.
fn probe(memory: &Memory, realm: &Realm, orders: Orders, number: usize) -> bool {
    let table = realm.entry(RAM, START_LEVEL);
    let table = table.ok().filter(|entry| entry.state == Some(RmiRttEntryState::Table));
    let rec = &realm.recs[0];
    let places: ArrayVec<u64, { probes::MOST }> = [
        Some(realm.rd),
        Some(rec.pa),
        rec.aux.first().copied(),
        Some(realm.roots),
        table.map(|entry| entry.address),
        Some(realm.plan.ram),
        Some(realm.plan.ram + realm.plan.size - GRANULE),
    ]
    .into_iter()
    .flatten()
    .collect();
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
    CURRENT.store(core::ptr::from_ref(realm).cast_mut(), Ordering::Release);
    let (before, start) = (shown(), ticks());
    together(recs - 1, orders.run, run_here);
    let ran = ticks() - start;
    let after = shown();
    CURRENT.store(core::ptr::null_mut(), Ordering::Release);
    let (checks, said) = console::end();
    report.add(checks);
    let failed = realm.failed.load(Ordering::Relaxed);
    report.check("realm.host.ends_by_itself", !failed, format_args!("{ran} ticks"));
    report.check(
        "realm.host.heard_all_its_checks",
        checks > 0 && said.is_none_or(|said| said == checks),
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
    let [changes, rejected, exchanged] =
        [&realm.changes, &realm.rejected, &realm.exchanged].map(|count| count.load(Ordering::Relaxed));
    say!("@cloven figure realm.host.ripas_changes {changes} changes");
    say!("@cloven figure realm.host.ripas_changes_rejected {rejected} changes");
    say!("@cloven figure realm.host.exchanged {exchanged} doublewords");
    figure("realm.host.ran", ran);
}
