//! The host: how a CPU reaches it, and the answer to each of its exceptions.
//!
//! Invariant: [`exit`] always returns, and the host then goes on: after the call it made, after the instruction that
//! trapped, in its own exception handler, or at the same instruction again.

use core::fmt;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use arm_sysregs::el0::accessors::{read_cntfrq_el0, read_cntpct_el0};
use arm_sysregs::el1::{accessors::*, registers::*};
use arm_sysregs::el2::{accessors::*, registers::*};
use log::{debug, info, warn};
use spin::Once;

use super::boot::{El2Map, HostMap};
use super::cache;
use super::cpu::{self, Features};
use super::entry::secondary_address;
use super::exits::Exit;
use super::image::Layout;
use super::inject::{Exception, Interrupted};
use super::pages::{Pages, Refused};
use super::parties::Parties;
use super::percpu::PerCpu;
use super::psci::{CpuPower, DENIED, FirmwareEntry, HostEntry, INTERNAL_FAILURE, Power, Psci, SUCCESS};
use super::quiet::{ENTRY, Relayed};
use super::seal::seal;
use super::settings::{Believed, InWords};
use super::smccc::{Services, SmcHandler};
use super::syndrome::{Abort, Access, Cause};
use super::vectors;
pub use super::vectors::Frame;
use crate::caps::admission::{Admission, Denied, OfPolicy, leaves_of_all};
use crate::caps::detect::IdRegisters;
use crate::caps::lifecycle::Finalized;
use crate::caps::mailbox;
#[cfg(feature = "trial")]
use crate::mapping::GRANULE;
use crate::mapping::{Address, Capabilities, Ipa, Pa, Range};
use crate::stage2;

/// Bytes of an A64 instruction.
const INSTRUCTION: u64 = 4;
/// What an instruction leaves behind when it is executed: the software step state and the branch type (Arm ARM D2.12.5,
/// D8.4.6).
const SPSR_OF_ONE_INSTRUCTION: u64 = 1 << 21 | 0b11 << 10;

/// Whom a relayed call ends at.
#[cfg(not(feature = "stand-in"))]
type Firmware = Relayed<smccc::Smc>;
#[cfg(feature = "stand-in")]
type Firmware = super::stand_in::StandIn<Relayed<smccc::Smc>>;

/// How long CPU_ON waits for the CPU that it has turned on to say what it is. It takes microseconds, and longer on an emulator with fewer
/// CPUs of its own.
const REPORT_SECONDS: u64 = 5;
/// For a firmware that has not set `CNTFRQ_EL0`: no counter is slower.
const LEAST_HZ: u64 = 1_000_000;

/// What every CPU needs to carry the host. Made once, on the boot CPU, and read-only from then on: what changes lies behind its
/// references.
pub struct Host {
    /// Where the hypervisor lies.
    pub layout: Layout,
    /// The host's RAM, the hypervisor's memory included.
    pub ram: &'static [Range<Pa>],
    /// Its CPUs, in the order of their numbers: the boot CPU first.
    pub cpus: &'static [CpuPower],
    /// Who answers its calls.
    pub services: Services<'static, Firmware>,
    /// Its stage 2.
    pub stage2: stage2::Registers,
    /// What the boot CPU has; the others must have as much.
    pub features: Features,
    /// What EL2 runs on.
    pub el2_map: &'static El2Map,
    /// What `stage2` puts under the host.
    pub map: &'static HostMap,
    /// The levels of FEAT_BBM that CPUs are believed to have, if not their own.
    pub believed: Believed,
    /// Who is let in, and how.
    pub admission: Admission<'static>,
    /// Memory that is EL2's own: the host has none of it.
    pub own: &'static [Range<Pa>],
    /// Who owns what.
    pub parties: Parties,
    /// Who stays on each CPU at EL2 in the host's place, if there is no host at EL1.
    pub resident: Option<&'static dyn Resident>,
}

/// Stays at EL2 on each CPU in the host's place: the machine has no host at EL1, and its one guest is this one's.
pub trait Resident: Sync {
    /// Runs on CPU number `cpu`, each time that it was turned on, inside the gate, with an empty stack and the host's stage 2 installed, under
    /// which nobody runs.
    fn run(&self, cpu: usize) -> !;
}

/// Calls PSCI as a host at EL1 would, for the running CPU: through the relay, so that a CPU that is turned on is let in first, and begins with
/// [`Resident::run`]. NOT_SUPPORTED if there is no firmware.
pub fn call_psci(function: u32, args: [u64; 3]) -> i64 {
    let relay = HOST.get().and_then(|host| Some((host, host.services.psci.as_ref()?)));
    let answer = relay.and_then(|(host, psci)| psci.call(host, PerCpu::this().number(), function, args));
    answer.unwrap_or(super::psci::NOT_SUPPORTED)
}

/// Who owns what on this machine, once there is a host: for who serves realms.
pub fn parties() -> Option<&'static Parties> {
    HOST.get().map(|host| &host.parties)
}

/// Whether EL2's map may have blocks, as far as its CPUs and the policy go.
pub(super) fn el2_has_blocks() -> bool {
    HOST.get().is_some_and(|host| {
        let Admission { policy, starting, .. } = &host.admission;
        policy.leaves(host.el2_map.map().capabilities(), starting.phase()).blocks
    })
}

#[unsafe(link_section = ".data.sealed")]
static HOST: Once<Host> = Once::new();

impl Host {
    /// The services for `cpus`: with PSCI if the machine's firmware speaks it.
    pub fn services(cpus: &'static [CpuPower], has_psci: bool) -> Services<'static, Firmware> {
        Services { psci: has_psci.then(|| Psci::new(cpus)) }
    }
}

/// The page that `HPFAR_EL2` names: FIPA is bits 47:12 of the address, at bit 4.
fn faulting_page() -> u64 {
    (read_hpfar_el2().bits() & 0xfff_ffff_fff0) << 8
}

impl Host {
    /// Whether the access that was refused would not be now: another CPU was changing its translation, or is, or this CPU still held
    /// what it was before.
    fn is_permitted_now(&self, abort: Abort) -> bool {
        if !abort.is_of_stage_2() {
            return false;
        }
        let ipa = if abort.has_ipa() {
            faulting_page()
        } else if !cfg!(feature = "trial") {
            // A permission fault, and the host's permissions do not change while it runs but in trials. AT is not for other builds: the
            // host could make its walk end in an External abort, which EL2 would take for its own.
            return false;
        } else {
            // A walk that does not end now ends in a fault of its own.
            let Some(ipa) = cpu::ipa_of_page(read_far_el2().bits()) else { return true };
            ipa
        };
        let Some((ipa, mut cpu)) = Ipa::new(ipa).ok().zip(self.map.cpu(PerCpu::this().number())) else {
            return false;
        };
        let reader = cpu.read();
        if reader.is_changing(ipa) {
            return true;
        }
        let allowed = reader.translate(ipa).is_some_and(|now| match abort.access() {
            Access::Load => now.attributes().is_readable(),
            Access::Store if abort.is_on_walk() => {
                now.attributes().is_readable() && now.attributes().is_writable()
            }
            Access::Store => now.attributes().is_writable(),
            Access::Fetch if abort.is_on_walk() => now.attributes().is_readable(),
            Access::Fetch => now.attributes().is_executable(),
        });
        if allowed {
            stage2::install::forget_all();
        }
        allowed
    }
}

impl Power for Host {
    fn may_begin_at(&self, pc: u64) -> bool {
        !self.own.iter().any(|range| range.contains(pc)) && self.ram.iter().any(|bank| bank.contains(pc))
    }

    fn stage(&self, cpu: usize, entry: Option<HostEntry>) -> FirmwareEntry {
        let percpu = PerCpu::of(&self.layout, cpu);
        if let Some(entry) = entry {
            percpu.set_host_entry(entry);
            cache::complete_stores();
        }
        FirmwareEntry { pc: secondary_address(), context: core::ptr::from_ref(percpu) as u64 }
    }

    fn admit(&self, cpu: usize, number: u64, turn_on: impl FnOnce() -> i64) -> i64 {
        let lines = PerCpu::of(&self.layout, cpu).lines();
        let offered = mailbox::offer(&lines, number);
        let result = turn_on();
        if result != SUCCESS {
            offered.revoke();
            return result;
        }
        let end = read_cntpct_el0().bits() + REPORT_SECONDS * read_cntfrq_el0().bits().max(LEAST_HZ);
        let is_patient = || {
            // Each look makes all CPUs wait for a barrier.
            (0..64).for_each(|_| core::hint::spin_loop());
            read_cntpct_el0().bits() < end && !is_for_nothing()
        };
        let mpidr = self.cpus[cpu].mpidr();
        // What it waits in is pinned.
        let Ok(reported) = ENTRY.stand(|| offered.report(is_patient)) else {
            limited(|| warn!("cpu {mpidr:#x} has not said what it is: it is to turn itself off if it comes"));
            return INTERNAL_FAILURE;
        };
        match self.let_in(cpu, &reported.registers) {
            Ok(set) => {
                // Asked before it can have arrived.
                let has_come = self.admission.starting.has_come(cpu);
                reported.release();
                // Of who comes again there is nothing to say, and the host may be writing to the console by then.
                if !has_come {
                    let all = InWords(self.admission.starting.set());
                    info!("cpu {mpidr:#x} is let in: {}; all: {all}", InWords(set));
                }
                SUCCESS
            }
            Err(refusal) => {
                reported.deny();
                limited(|| warn!("cpu {mpidr:#x} is not let in: {refusal}"));
                DENIED
            }
        }
    }

    fn leave(&self, cpu: usize, returns: bool) {
        let lines = PerCpu::of(&self.layout, cpu).lines();
        if returns { mailbox::keep(&lines) } else { mailbox::revoke(&lines) }
    }

    fn wait(&self) {
        ENTRY.stand(core::hint::spin_loop);
    }

    fn finalize(&self) {
        if let Some(all) = self.admission.starting.finalize() {
            self.all_are_known(&all);
        }
    }
}

impl Pages for Host {
    fn share(&self, range: Range<Pa>) -> Result<(), Refused> {
        self.parties.share(range)
    }
    fn unshare(&self, range: Range<Pa>) -> Result<(), Refused> {
        self.parties.unshare(range)
    }
    fn donate(&self, range: Range<Pa>) -> Result<(), Refused> {
        self.parties.donate(range)
    }
    fn give_back(&self, range: Range<Pa>) -> Result<(), Refused> {
        self.parties.give_back(range)
    }
}

/// Bytes of the EL2 map that became pages for somebody who was let in.
pub static REPAINTED: AtomicU64 = AtomicU64::new(0);

/// Nobody comes whom the stand-in has turned on.
fn is_for_nothing() -> bool {
    #[cfg(feature = "stand-in")]
    return super::stand_in::keeps_cpus();
    #[cfg(not(feature = "stand-in"))]
    false
}

/// Why a CPU is not let in.
enum Refusal {
    /// It cannot do what was prepared for the boot CPU.
    Features(Features),
    /// It is denied.
    Denied(Denied),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Features(features) => write!(f, "it has {features:?}, and the boot CPU more"),
            Self::Denied(denied) => denied.fmt(f),
        }
    }
}

impl Host {
    /// Makes a CPU that says `registers` of itself one that may translate through both maps.
    fn let_in(&self, cpu: usize, registers: &IdRegisters) -> Result<Capabilities, Refusal> {
        let features = Features::of(registers, self.believed.of(cpu));
        if !features.suffice(&self.features) {
            return Err(Refusal::Features(features));
        }
        let set = features.capabilities;
        // The first may be refused: the host's stage 2 keeps its blocks.
        let start = read_cntpct_el0().bits();
        let repainted =
            self.admission.admit(set, &[&OfPolicy(self.el2_map.map()), self.map]).map_err(Refusal::Denied)?;
        if repainted > 0 {
            let ticks = read_cntpct_el0().bits() - start;
            info!("EL2 map: {} MiB of blocks are pages now, in {ticks} ticks", repainted >> 20);
            REPAINTED.fetch_add(repainted, Relaxed);
        }
        Ok(set)
    }

    /// The running CPU translates: the last that was missing has the rest done.
    fn arrived(&self, number: usize) {
        self.cpus[number].arrived();
        if let Some(all) = self.admission.starting.arrived(number) {
            self.all_are_known(&all);
        }
    }

    /// No other CPU will come but late.
    fn all_are_known(&self, all: &Finalized<'_>) {
        info!("all CPUs are known: {}", InWords(all.set()));
        let Some(mut cpu) = self.el2_map.map().cpu(PerCpu::this().number()) else {
            return warn!("EL2 map: stays as it is, this CPU is using it");
        };
        let mut writer = cpu.write();
        // As long as this is the writer, nobody weaker is let in.
        let Some(leaves) = leaves_of_all(all, self.el2_map.map(), self.admission.policy) else { return };
        let start = read_cntpct_el0().bits();
        for part in self.ram.iter().flat_map(|bank| bank.minus(self.own)) {
            let range = Range::new(part.start().get(), part.size());
            let joined = range.map(|range| writer.collapse(range, leaves));
            if !matches!(joined, Ok(Ok(()))) {
                warn!("{part} stays in pages: {joined:?}");
            }
        }
        drop(writer);
        let ticks = read_cntpct_el0().bits() - start;
        info!("EL2 map, joined in {ticks} ticks: {}", cpu.read().census());
    }
}

/// Starts the host at `entry` on the boot CPU; its other CPUs follow when it asks for them.
///
/// # Safety
/// Runs on the boot CPU with the EL2 map on; `host.stage2` is of a whole map that is never freed, which hides all that
/// the hypervisor owns; the `PerCpu` data of every CPU in `host.cpus` was created.
// Not in its caller's body, which is gone then.
#[inline(never)]
pub unsafe fn start(host: Host, entry: HostEntry) -> ! {
    let host = HOST.call_once(|| host);
    host.arrived(0);
    if let Err(error) = seal(host.el2_map, &host.layout) {
        super::fault::refuse(format_args!("EL2 map: {error}"));
    }
    #[cfg(feature = "dump")]
    super::dump::tell(host, 0, "boot");
    // SAFETY: the caller's word.
    unsafe { descend(host, entry) }
}

/// A CPU that the firmware has started, or brought back from a suspend that lost its context.
#[unsafe(no_mangle)]
extern "C" fn cloven_secondary() -> ! {
    let Some(host) = HOST.get() else { super::fault::refuse(format_args!("a CPU came before the host")) };
    ENTRY.enter();
    let percpu = PerCpu::this();
    host.arrived(percpu.number());
    debug!("cpu {:#x} enters the host", cpu::affinity());
    // SAFETY: the entry code has turned the EL2 map on, and `start` was given the rest.
    unsafe { descend(host, percpu.host_entry()) }
}

/// Gives this CPU to the host.
///
/// # Safety
/// As [`start`].
unsafe fn descend(host: &Host, entry: HostEntry) -> ! {
    // SAFETY: by the caller's word; nothing on this stack is needed any more.
    unsafe {
        cpu::prepare(&host.features);
        stage2::install::install(&host.stage2);
        if host.resident.is_some() {
            vectors::on_empty_stack(reside);
        }
        // What follows is pinned.
        ENTRY.leave();
        vectors::enter_host(entry)
    }
}

extern "C" fn reside() -> ! {
    match HOST.get().and_then(|host| host.resident) {
        Some(resident) => resident.run(PerCpu::this().number()),
        None => unreachable!("there is a resident, or a host"),
    }
}

/// Answers an exception from below.
pub fn exit(handler: &impl SmcHandler, frame: &mut Frame) {
    // Nothing comes from below before the host runs.
    let Some(host) = HOST.get() else { return };
    ENTRY.enter();
    answer_exit(host, handler, frame);
    ENTRY.leave();
}

// The frame of the one that calls it would be one more.
#[inline(always)]
fn answer_exit(host: &Host, handler: &impl SmcHandler, frame: &mut Frame) {
    #[cfg(feature = "trial")]
    let _time = super::trial::Time::start();
    let esr = read_esr_el2().bits();
    let exits = &PerCpu::this().exits;
    match Cause::decode(esr) {
        Cause::Hvc => {
            exits.count(Exit::Hvc);
            answer(host, handler, frame);
        }
        Cause::Smc => {
            exits.count(Exit::Smc);
            // Trapped before it was executed.
            advance();
            answer(host, handler, frame);
        }
        Cause::Abort(abort) if abort.is_tlb_conflict() => {
            exits.count(Exit::Conflict);
            stage2::install::forget_all();
            limited(|| warn!("TLB conflict below, syndrome {esr:#x}: all entries of this CPU forgotten"));
        }
        #[cfg(feature = "trial")]
        Cause::Abort(abort) if ring(host, abort, frame) => {
            exits.count(Exit::Refused);
            advance();
        }
        Cause::Abort(abort) if is_to_try_again(host, abort) => exits.count(Exit::Retried),
        Cause::Abort(abort) => {
            exits.count(Exit::Refused);
            let far = read_far_el2().bits();
            let pc = read_elr_el2().bits();
            limited(|| {
                let access = abort.access();
                if abort.has_ipa() {
                    let offset = if abort.is_on_walk() { 0 } else { far & 0xfff };
                    let ipa = faulting_page() | offset;
                    warn!("host: {access:?} at IPA {ipa:#x} refused (PC {pc:#x}, VA {far:#x})");
                } else {
                    warn!("host: {access:?} at VA {far:#x} refused (PC {pc:#x}), syndrome {esr:#x}");
                }
            });
            // SAFETY: EL1 does not run now, and takes this as the fault address of the exception.
            unsafe { write_far_el1(FarEl1::from_bits_retain(far)) };
            inject(host, Exception::External(abort));
        }
        cause @ (Cause::SystemRegister { .. } | Cause::Other { .. }) => {
            let is_register = matches!(cause, Cause::SystemRegister { .. });
            exits.count(if is_register { Exit::SystemRegister } else { Exit::Other });
            let pc = read_elr_el2().bits();
            limited(|| warn!("host: undefined instruction at PC {pc:#x}, syndrome {esr:#x}"));
            inject(host, Exception::Undefined);
        }
    }
}

fn answer(host: &Host, handler: &impl SmcHandler, frame: &mut Frame) {
    let percpu = PerCpu::this();
    let me = percpu.number();
    #[cfg(any(feature = "trial", feature = "stand-in"))]
    let [function, args @ ..] = &frame.x;
    #[cfg(any(feature = "trial", feature = "stand-in"))]
    let function = *function as u32;
    #[cfg(feature = "stand-in")]
    if let Some(answer) = super::stand_in::call(me, function, args) {
        frame.x[..2].copy_from_slice(&answer);
        return;
    }
    #[cfg(feature = "trial")]
    {
        if function == smccc::psci::PSCI_SYSTEM_OFF {
            super::trial::tell_costs(host);
        }
        if let Some(answer) = super::trial::call(host, me, function, args) {
            frame.x[..4].copy_from_slice(&answer);
            return;
        }
    }
    #[cfg(feature = "dump")]
    if frame.x[0] as u32 == smccc::psci::PSCI_SYSTEM_OFF {
        super::dump::tell(host, me, "off");
    }
    host.services.answer(host, handler, (me, &percpu.exits), &mut frame.x);
}

#[cfg(not(feature = "trial"))]
fn is_to_try_again(host: &Host, abort: Abort) -> bool {
    host.is_permitted_now(abort)
}

#[cfg(feature = "trial")]
fn is_to_try_again(host: &Host, abort: Abort) -> bool {
    abort.is_of_stage_2() && DOORBELL.is_to_try_again(|| host.is_permitted_now(abort))
}

/// A page that stage 2 refuses: the second of the hypervisor's own. The payload's checks look at the first.
#[cfg(feature = "trial")]
static DOORBELL: super::doorbell::Doorbell = super::doorbell::Doorbell::new();

/// Answers a load or store of one of x0 to x17 at the doorbell.
#[cfg(feature = "trial")]
fn ring(host: &Host, abort: Abort, frame: &mut Frame) -> bool {
    let page = host.layout.whole.start().get() + GRANULE;
    let register = abort.doubleword().and_then(|number| frame.x.get_mut(number));
    let Some(register) = register.filter(|_| abort.has_ipa() && faulting_page() == page) else {
        return false;
    };
    let offset = read_far_el2().bits() % GRANULE;
    if abort.access() == Access::Load {
        let Some(value) = DOORBELL.load(offset) else { return false };
        *register = value;
    } else {
        let me = PerCpu::this().number();
        DOORBELL.ring(host.map, me, host.ram, host.own, *register);
    }
    true
}

fn advance() {
    let next = read_elr_el2().bits().wrapping_add(INSTRUCTION);
    let state = read_spsr_el2().bits() & !SPSR_OF_ONE_INSTRUCTION;
    // SAFETY: the host goes on after the instruction that was done for it.
    unsafe {
        write_elr_el2(ElrEl2::from_bits_retain(next));
        write_spsr_el2(SpsrEl2::from_bits_retain(state));
    }
}

/// Makes the host take `exception` at the instruction that trapped.
fn inject(host: &Host, exception: Exception) {
    let spsr = read_spsr_el2().bits();
    let interrupted = Interrupted {
        spsr,
        sctlr: read_sctlr_el1().bits(),
        sctlr2: if host.features.sctlr2 { read_sctlr2_el1().bits() } else { 0 },
        gcscr: if host.features.gcs { read_gcscr_el1().bits() } else { 0 },
        vbar: read_vbar_el1().bits(),
        features: host.features.entry,
    };
    let entry = interrupted.take(exception);
    // SAFETY: these are the writes that the hardware makes on such an entry to EL1 (Arm ARM D1.3.6).
    unsafe {
        write_spsr_el1(SpsrEl1::from_bits_retain(spsr));
        write_elr_el1(ElrEl1::from_bits_retain(read_elr_el2().bits()));
        write_esr_el1(EsrEl1::from_bits_retain(entry.esr));
        write_elr_el2(ElrEl2::from_bits_retain(entry.pc));
        write_spsr_el2(SpsrEl2::from_bits_retain(entry.pstate));
    }
}

/// Lines about the host's doings that are printed in a second.
const LINES_A_SECOND: u32 = 16;

/// Runs `line` unless there were too many in this second: a host must not be able to hold the console.
fn limited(line: impl FnOnce()) {
    static SECOND: AtomicU64 = AtomicU64::new(0);
    static LINES: AtomicU32 = AtomicU32::new(0);
    let now = read_cntpct_el0().bits() / read_cntfrq_el0().bits().max(1);
    if SECOND.swap(now, Relaxed) != now {
        let kept_back = LINES.swap(0, Relaxed).saturating_sub(LINES_A_SECOND);
        if kept_back > 0 {
            warn!("host: {kept_back} more lines like these were kept back");
        }
    }
    if LINES.fetch_add(1, Relaxed) < LINES_A_SECOND {
        line();
    }
}
