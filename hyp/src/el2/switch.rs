//! Running a virtual CPU of a guest on this CPU, and the host's world around it.
//!
//! Invariants:
//! - [`World::run`] leaves this CPU as it found it for the host, but for what a guest's run changes by its nature: time, TLBs and caches,
//!   and the list registers, which the host has not.
//! - While the guest runs this CPU is outside the gate: what is touched from [`Gate::leave`](crate::caps::gate::Gate::leave) to the
//!   return of the guest, and from its exception to `enter`, is this stack, the image and the registers.
//! - The host's interrupts are routed to EL2 only while a guest runs; they end the run and stay pending for the host.
//! - With [direct interrupts](World::with_direct_interrupts) there is no host: interrupts, the GIC's CPU interface and the timers are the one
//!   guest's of this CPU, from its first run on; no run ends for an interrupt, and none of that changes between its runs.
//!
//! **Who is translated how.** A CPU that speculates AT instructions at EL2 (Cortex-A55 1530923, A57 1319537, A72 1319367, A76 1165522) may at
//! any moment walk with whatever mixture of EL1's and stage 2's registers it finds. So EL1's walks are off (`TCR_EL1.EPD0` and `EPD1`, with
//! `SCTLR_EL1.M` set, as without it stage 2 alone translates) before the first of these registers changes, and on after the last, each step
//! behind an ISB. That is done on all CPUs: it costs four barriers.
//!
//! **Vectors.** A guest has FP and SIMD, no SVE and no SME. Its first use of them in a run traps; then, and only then, the host's are saved:
//! v0 to v31, or z0 to z31 at the CPU's full length if the host may have something in them, to the stack of this CPU, in the frame of a
//! function that is entered for that. 8 KiB are enough for the longest vectors that the architecture has, so no memory is set aside
//! for them. Predicates and FFR stay in the CPU: a guest cannot reach them. A write to a V register clears the rest of
//! the Z register (Arm ARM B1.2.3), so nothing of the host's is left for anyone. ZA and ZT0 stay too; but in streaming mode FP instructions
//! differ, and leaving it clears the vectors: a host that calls in streaming mode is refused ([`Streaming`]).
//!
//! **Errors of hardware.** A physical SError that comes while the guest runs ends the run and is told in [`Exit::SError`]. One that becomes
//! pending later stays so, as EL2 runs masked, and the host takes it after the return: it owns the devices.

use core::arch::{asm, global_asm};
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering::Relaxed;

use arm_sysregs::el2::accessors::read_esr_el2;

use super::guests::Advertised;
use super::inject::EntryFeatures;
use super::percpu::PerCpu;
use super::quiet::ENTRY;
use super::syndrome::Cause;
use super::vcpu::{self, El1, Exit, Fp, Gic, IdView, Running, Timer, Timers, Trapped, Vcpu, encoding};
use super::vectors::{enter_guest, guest_vectors_address, vectors_address};
use crate::stage2;

/// Reads a system register by its name.
macro_rules! get {
    ($name:literal) => {{
        let value: u64;
        #[allow(unused_unsafe, reason = "it stands in unsafe code too")]
        // SAFETY: the register exists, and reading it changes nothing.
        unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
        value
    }};
}

/// Writes a system register by its name. Whoever does that says why it is sound.
macro_rules! set {
    ($name:literal, $value:expr) => {{
        let value: u64 = $value;
        asm!(concat!("msr ", $name, ", {}"), in(reg) value, options(nostack, preserves_flags))
    }};
}

/// Sets a register to `$new` and gives what it was.
macro_rules! swap {
    ($name:literal, $new:expr) => {{
        let old = get!($name);
        set!($name, $new);
        old
    }};
}

/// Clears a register that is not clear, and gives what it was.
macro_rules! swap_if_set {
    ($name:literal) => {{
        let old = get!($name);
        if old != 0 {
            set!($name, 0);
        }
        old
    }};
}

/// Puts back what [`swap_if_set`] took.
macro_rules! set_if_set {
    ($name:literal, $old:expr) => {
        if $old != 0 {
            set!($name, $old)
        }
    };
}

fn synchronize() {
    // SAFETY: a barrier.
    unsafe { asm!("isb", options(nostack, preserves_flags)) };
}

const HCR_VM: u64 = 1 << 0;
const HCR_SWIO: u64 = 1 << 1;
const HCR_FMO: u64 = 1 << 3;
const HCR_IMO: u64 = 1 << 4;
const HCR_AMO: u64 = 1 << 5;
/// TLB and cache maintenance of one CPU reaches all that may have run the guest.
const HCR_FB: u64 = 1 << 9;
const HCR_BSU_INNER: u64 = 0b01 << 10;
const HCR_TWI: u64 = 1 << 13;
const HCR_TWE: u64 = 1 << 14;
const HCR_TID3: u64 = 1 << 18;
const HCR_TSC: u64 = 1 << 19;
const HCR_TIDCP: u64 = 1 << 20;
const HCR_TACR: u64 = 1 << 21;
const HCR_RW: u64 = 1 << 31;
const HCR_TLOR: u64 = 1 << 35;
const HCR_TERR: u64 = 1 << 36;
const HCR_APK: u64 = 1 << 40;
const HCR_API: u64 = 1 << 41;
const HCR_TID5: u64 = 1 << 58;
const HCRX_MSCEN: u64 = 1 << 11;

const CPTR_TZ: u64 = 1 << 8;
const CPTR_TFP: u64 = 1 << 10;
const CPTR_TSM: u64 = 1 << 12;
const CPTR_TTA: u64 = 1 << 20;
const CPTR_TAM: u64 = 1 << 30;

/// PMU, breakpoints, the OS lock, the debug ROM, trace filters.
const MDCR_TRAPS: u64 = 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 19;

/// `CNTHCTL_EL2`: EL1 has the physical timer.
const CNTHCTL_EL1PCEN: u64 = 1 << 1;
/// `CNTHCTL_EL2`, FEAT_ECV: the virtual timer's registers trap.
const CNTHCTL_EL1TVT: u64 = 1 << 13;
const TIMER_ENABLE: u64 = 1 << 0;
const TIMER_IMASK: u64 = 1 << 1;

const MPAM2_TRAPS: u64 = 1 << 48 | 1 << 49 | 1 << 58;
const ICC_SRE_ENABLE: u64 = 1 << 3;
const ICH_HCR_EN: u64 = 1 << 0;
/// `ICH_VTR_EL2.ListRegs`: one less than there are.
const VTR_LIST_REGISTERS: u64 = 0x1f;

const SCTLR_M: u64 = 1 << 0;
const TCR_EPD: u64 = 1 << 7 | 1 << 23;

/// What [`PerCpu::likeness`] says.
const UNKNOWN: u8 = 0;
const ALIKE: u8 = 1;
const DIFFERENT: u8 = 2;

const PAR_FAILED: u64 = 1 << 0;
const PAR_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// From an address to `HPFAR_EL2.FIPA`.
const FIPA_SHIFT: u32 = 8;

const EC_FP: u64 = 0x07;
const EC_SYSTEM_REGISTER: u64 = 0x18;
const EC_SHIFT: u32 = 26;
/// Bytes of 32 vectors of 2048 bits, the longest there are.
const VECTORS: usize = 32 * 256;

/// The host is in streaming mode: no guest runs for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Streaming;

/// What the CPUs have, of what takes work when a guest runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Has {
    pauth: bool,
    sve: bool,
    sme: bool,
    ras: bool,
    mpam: bool,
    amu: bool,
    trace: bool,
    pmu: bool,
    branch_records: bool,
    trace_filter: bool,
    hcrx: bool,
    fgt: u8,
    ecv: bool,
    gic: bool,
}

/// What is the same for each run of each guest. Made once; guests run on CPUs that are like the one that made it ([`World::can_run`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct World {
    /// What guests read of ID registers.
    pub view: IdView,
    /// For exceptions that they are made to take.
    pub entry: EntryFeatures,
    /// `ICH_LR<n>_EL2` that there are.
    pub list_registers: usize,
    /// Bits of a virtual interrupt's priority.
    pub priority_bits: u32,
    /// Bits of a virtual interrupt's INTID.
    pub intid_bits: u32,
    /// What guests are shown in place of what there is: the level of FEAT_BBM is in `view` already.
    advertised: Advertised,
    /// `ICH_AP1R<n>_EL2` that there are.
    active_priorities: usize,
    hcr: u64,
    hcrx: u64,
    has: Has,
    /// Interrupts are the guest's.
    direct: bool,
}

/// What [`World::leave`] puts back.
struct HostWorld {
    el1: El1,
    timers: [Timer; 2],
    elr: u64,
    spsr: u64,
    hcr: u64,
    hcrx: u64,
    vttbr: u64,
    vtcr: u64,
    vmpidr: u64,
    vpidr: u64,
    cptr: u64,
    mdcr: u64,
    mdscr: u64,
    cnthctl: u64,
    icc_sre: u64,
    pmcr: u64,
    branch_records: u64,
    trace_filter: u64,
    mpam: u64,
    fgt: [u64; 5],
    fgt2: [u64; 5],
}

/// The timers of the guest as they were installed, and whether their masks are ours.
struct GuestTimers {
    physical: Timer,
    virtual_: Timer,
    physical_told: bool,
    virtual_told: bool,
}

/// Each register of [`El1`] but those that turn translation on, with its field.
macro_rules! for_each_register {
    ($do:ident) => {
        $do!(sp_el0, "sp_el0");
        $do!(sp_el1, "sp_el1");
        $do!(elr, "elr_el1");
        $do!(spsr, "spsr_el1");
        $do!(cpacr, "cpacr_el1");
        $do!(ttbr0, "ttbr0_el1");
        $do!(ttbr1, "ttbr1_el1");
        $do!(esr, "esr_el1");
        $do!(afsr0, "afsr0_el1");
        $do!(afsr1, "afsr1_el1");
        $do!(far, "far_el1");
        $do!(mair, "mair_el1");
        $do!(amair, "amair_el1");
        $do!(vbar, "vbar_el1");
        $do!(contextidr, "contextidr_el1");
        $do!(tpidr, "tpidr_el1");
        $do!(tpidr_el0, "tpidr_el0");
        $do!(tpidrro, "tpidrro_el0");
        $do!(cntkctl, "cntkctl_el1");
        $do!(par, "par_el1");
        $do!(csselr, "csselr_el1");
    };
}

/// Each key of pointer authentication, with its number.
macro_rules! for_each_key {
    ($do:ident) => {
        $do!(0, "s3_0_c2_c1_0");
        $do!(1, "s3_0_c2_c1_1");
        $do!(2, "s3_0_c2_c1_2");
        $do!(3, "s3_0_c2_c1_3");
        $do!(4, "s3_0_c2_c2_0");
        $do!(5, "s3_0_c2_c2_1");
        $do!(6, "s3_0_c2_c2_2");
        $do!(7, "s3_0_c2_c2_3");
        $do!(8, "s3_0_c2_c3_0");
        $do!(9, "s3_0_c2_c3_1");
    };
}

#[inline(always)]
fn save_el1(into: &mut El1, pauth: bool) {
    macro_rules! save {
        ($field:ident, $name:literal) => {
            into.$field = get!($name);
        };
    }
    for_each_register!(save);
    into.tcr = get!("tcr_el1");
    into.sctlr = get!("sctlr_el1");
    if pauth {
        macro_rules! save_key {
            ($number:literal, $name:literal) => {
                into.keys[$number] = get!($name);
            };
        }
        for_each_key!(save_key);
    }
}

/// All but `TCR_EL1` and `SCTLR_EL1`.
///
/// # Safety
/// EL1 does not run, and its walks are off.
#[inline(always)]
unsafe fn load_el1(from: &El1, pauth: bool) {
    macro_rules! load {
        ($field:ident, $name:literal) => {
            // SAFETY: the caller's word.
            unsafe { set!($name, from.$field) };
        };
    }
    for_each_register!(load);
    if pauth {
        macro_rules! load_key {
            ($number:literal, $name:literal) => {
                // SAFETY: the caller's word.
                unsafe { set!($name, from.keys[$number]) };
            };
        }
        for_each_key!(load_key);
    }
}

/// Ends EL1's walks, whose registers are `el1` now (see the file).
///
/// # Safety
/// EL1 does not run until [`begin_walks`].
#[inline(always)]
unsafe fn end_walks(el1: &El1) {
    // SAFETY: the caller's word.
    unsafe {
        set!("tcr_el1", el1.tcr | TCR_EPD);
        synchronize();
        set!("sctlr_el1", el1.sctlr | SCTLR_M);
        synchronize();
    }
}

/// Has EL1 walk as `el1` says: its other registers, and those of its stage 2, are there.
///
/// # Safety
/// That is so.
#[inline(always)]
unsafe fn begin_walks(el1: &El1) {
    // SAFETY: the caller's word.
    unsafe {
        synchronize();
        set!("sctlr_el1", el1.sctlr);
        synchronize();
        set!("tcr_el1", el1.tcr);
    }
}

/// The list registers and active priorities, by number.
macro_rules! numbered {
    ($action:ident, $number:expr, $($literal:literal: $name:literal),*) => {
        match $number {
            $($literal => $action!($name),)*
            _ => 0,
        }
    };
}
macro_rules! list_register {
    ($action:ident, $number:expr) => {
        numbered!(
            $action, $number,
            0: "s3_4_c12_c12_0", 1: "s3_4_c12_c12_1", 2: "s3_4_c12_c12_2", 3: "s3_4_c12_c12_3",
            4: "s3_4_c12_c12_4", 5: "s3_4_c12_c12_5", 6: "s3_4_c12_c12_6", 7: "s3_4_c12_c12_7",
            8: "s3_4_c12_c13_0", 9: "s3_4_c12_c13_1", 10: "s3_4_c12_c13_2", 11: "s3_4_c12_c13_3",
            12: "s3_4_c12_c13_4", 13: "s3_4_c12_c13_5", 14: "s3_4_c12_c13_6", 15: "s3_4_c12_c13_7"
        )
    };
}
macro_rules! ap0r {
    ($action:ident, $number:expr) => {
        numbered!(
            $action, $number,
            0: "s3_4_c12_c8_0", 1: "s3_4_c12_c8_1", 2: "s3_4_c12_c8_2", 3: "s3_4_c12_c8_3"
        )
    };
}
macro_rules! ap1r {
    ($action:ident, $number:expr) => {
        numbered!(
            $action, $number,
            0: "s3_4_c12_c9_0", 1: "s3_4_c12_c9_1", 2: "s3_4_c12_c9_2", 3: "s3_4_c12_c9_3"
        )
    };
}

fn read_list_register(number: usize) -> u64 {
    list_register!(get, number)
}

unsafe fn write_list_register(number: usize, value: u64) {
    macro_rules! put {
        ($name:literal) => {{
            // SAFETY: concerns what EL1 sees while a guest runs.
            unsafe { set!($name, value) };
            0
        }};
    }
    let _: u64 = list_register!(put, number);
}

/// Empties the list registers, which hold what they like after a reset: [`World::run`] takes them for empty.
pub(super) fn clear_list_registers() {
    let count = (get!("s3_4_c12_c11_1") & VTR_LIST_REGISTERS) as usize + 1;
    for number in 0..count.min(16) {
        // SAFETY: no guest runs.
        unsafe { write_list_register(number, 0) };
    }
}

fn read_active_priorities(number: usize) -> [u64; 2] {
    [ap0r!(get, number), ap1r!(get, number)]
}

unsafe fn write_active_priorities(number: usize, [group0, group1]: [u64; 2]) {
    macro_rules! put0 {
        ($name:literal) => {{
            // SAFETY: as for a list register.
            unsafe { set!($name, group0) };
            0
        }};
    }
    macro_rules! put1 {
        ($name:literal) => {{
            // SAFETY: as for a list register.
            unsafe { set!($name, group1) };
            0
        }};
    }
    let _: u64 = ap0r!(put0, number);
    let _: u64 = ap1r!(put1, number);
}

impl World {
    /// What the running CPU has, of which guests are shown what is `advertised`.
    pub fn read(entry: EntryFeatures, advertised: Advertised) -> Self {
        let view = IdView::of(read_id_register);
        let view = advertised.bbm.map_or(view.clone(), |level| view.with_bbm(level));
        let (pfr0, pfr1, dfr0) = (read_id_register(4, 0), read_id_register(4, 1), read_id_register(5, 0));
        let (isar1, isar2, mmfr0, mmfr1) =
            (read_id_register(6, 1), read_id_register(6, 2), read_id_register(7, 0), read_id_register(7, 1));
        let field = |register: u64, lowest: u32| (register >> lowest & 0xf) as u8;
        let pmu = field(dfr0, 8);
        let has = Has {
            pauth: field(isar1, 4) != 0 || field(isar1, 8) != 0 || field(isar2, 12) != 0,
            sve: field(pfr0, 32) != 0,
            sme: field(pfr1, 24) != 0,
            ras: field(pfr0, 28) != 0,
            mpam: field(pfr0, 40) != 0 || field(pfr1, 16) != 0,
            amu: field(pfr0, 44) != 0,
            trace: field(dfr0, 4) != 0,
            pmu: pmu != 0 && pmu != 0xf,
            branch_records: field(dfr0, 52) != 0,
            trace_filter: field(dfr0, 40) != 0,
            hcrx: field(mmfr1, 40) != 0,
            fgt: field(mmfr0, 56),
            ecv: field(mmfr0, 60) != 0,
            gic: field(pfr0, 24) != 0,
        };
        let vtr = if has.gic { get!("s3_4_c12_c11_1") } else { 0 };
        // PREbits is one less than the bits of a preemption level: 5 fit one register, 6 two, 7 four.
        let active_priorities = if has.gic { 1 << (vtr >> 26 & 7).clamp(4, 6).wrapping_sub(4) } else { 0 };
        let mut hcr = HCR_VM | HCR_SWIO | HCR_FMO | HCR_IMO | HCR_AMO | HCR_FB | HCR_BSU_INNER | HCR_RW;
        hcr |= HCR_TID3 | HCR_TSC | HCR_TIDCP | HCR_TACR;
        let set = |condition: bool, bits: u64| if condition { bits } else { 0 };
        hcr |= set(field(mmfr1, 16) != 0, HCR_TLOR) | set(has.ras, HCR_TERR);
        hcr |= set(has.pauth, HCR_APK | HCR_API) | set(field(pfr1, 8) >= 2, HCR_TID5);
        Self {
            view,
            entry,
            advertised,
            list_registers: if has.gic { (vtr & VTR_LIST_REGISTERS) as usize + 1 } else { 0 }.min(16),
            // ICH_VTR_EL2: PRIbits is one less; IDbits 0 is 16, 1 is 24.
            priority_bits: (vtr >> 29) as u32 + 1,
            intid_bits: 16 + 8 * (vtr >> 23 & 1) as u32,
            active_priorities,
            hcr,
            hcrx: set(field(isar2, 16) != 0, HCRX_MSCEN),
            has,
            direct: false,
        }
    }

    /// For a machine without a host at EL1: physical interrupts go to the guest, whose virtual CPU alone runs on this CPU and has its real
    /// GIC CPU interface and its real timers.
    pub fn with_direct_interrupts(self) -> Self {
        Self { hcr: self.hcr & !(HCR_FMO | HCR_IMO | HCR_AMO), direct: true, ..self }
    }

    /// Whether a guest can run on this CPU now: it has what the one has that made this, no less and no more, and is not in streaming mode.
    /// Less would be undefined at EL2, and of more a guest would find what the host or another guest has left. The first look is remembered
    /// for each CPU: so all who ask have one `World`.
    pub fn can_run(&self) -> bool {
        let likeness = match PerCpu::this().likeness.load(Relaxed) {
            UNKNOWN => self.compare(),
            known => known,
        };
        likeness == ALIKE && !self.is_streaming()
    }

    #[cold]
    #[inline(never)]
    fn compare(&self) -> u8 {
        let read = Self::read(self.entry, self.advertised);
        let read = if self.direct { read.with_direct_interrupts() } else { read };
        let likeness = if read == *self { ALIKE } else { DIFFERENT };
        PerCpu::this().likeness.store(likeness, Relaxed);
        likeness
    }

    /// Whether this CPU is in streaming mode (`SVCR.SM`): then no guest runs.
    pub fn is_streaming(&self) -> bool {
        self.has.sme && get!("s3_3_c4_c2_2") & 1 != 0
    }

    /// Runs `vcpu` on this CPU over the stage 2 of `registers` until it stops. `host_has_sve` is false if the host said in its call that it
    /// has nothing in the SVE registers (SMCCC 1.3, bit 16 of the function).
    ///
    /// After each synchronous exception that is not EL2's own business `answer` is asked, inside the gate; if it says true the guest goes
    /// on at once with the general registers as it left them. All other registers of the guest are on the CPU meanwhile, not in
    /// `vcpu`, and so is its stage 2. So what needs those registers is for after the run, and so is any change of the host's stage 2, whose
    /// invalidations are made under the VMID that is installed.
    ///
    /// # Safety
    /// Runs at EL2, inside the gate, in the answer to a call of the host, on a CPU of which [`World::can_run`] says so. The map of `registers` is whole and lives until this is over; its VMID is
    /// nobody else's, and its TLB entries of an earlier owner are gone on all CPUs. Nobody else runs `vcpu`, and no two of one VMID
    /// that run or have run have the same `vmpidr`.
    ///
    /// # Errors
    /// [`Streaming`]; the guest has not run.
    pub unsafe fn run(
        &self,
        vcpu: &mut Vcpu,
        registers: &stage2::Registers,
        host_has_sve: bool,
        answer: &mut dyn FnMut(&mut Running, &Exit) -> bool,
    ) -> Result<Exit, Streaming> {
        if self.is_streaming() {
            return Err(Streaming);
        }
        let mut running = vcpu.running();
        // SAFETY: the caller's word; the host's world comes back below.
        let exit = unsafe {
            let (host, mut timers) = self.enter(vcpu, registers);
            let mut turns = Turns { world: self, running: &mut running, timers: &mut timers, answer };
            let exit = match turns.until_exit(false) {
                Some(exit) => exit,
                None if self.has.sve && host_has_sve => turns.with_long_vectors(&mut vcpu.fp, host.cptr),
                None => turns.with_vectors(&mut vcpu.fp, host.cptr),
            };
            self.leave(vcpu, host, &timers);
            exit
        };
        vcpu.stopped(&running);
        Ok(exit)
    }

    /// Puts the guest's world in the place of the host's.
    #[inline(always)]
    unsafe fn enter(&self, vcpu: &Vcpu, registers: &stage2::Registers) -> (HostWorld, GuestTimers) {
        let has = &self.has;
        let mut host = HostWorld {
            el1: El1::default(),
            timers: [
                Timer { ctl: get!("cntp_ctl_el0"), cval: get!("cntp_cval_el0") },
                Timer { ctl: get!("cntv_ctl_el0"), cval: get!("cntv_cval_el0") },
            ],
            elr: get!("elr_el2"),
            spsr: get!("spsr_el2"),
            hcr: get!("hcr_el2"),
            hcrx: 0,
            vttbr: get!("vttbr_el2"),
            vtcr: get!("vtcr_el2"),
            vmpidr: get!("vmpidr_el2"),
            vpidr: 0,
            cptr: get!("cptr_el2"),
            mdcr: get!("mdcr_el2"),
            mdscr: get!("mdscr_el1"),
            cnthctl: get!("cnthctl_el2"),
            icc_sre: 0,
            pmcr: 0,
            branch_records: 0,
            trace_filter: 0,
            mpam: 0,
            fgt: [0; 5],
            fgt2: [0; 5],
        };
        save_el1(&mut host.el1, has.pauth);
        let wfx = if vcpu.trap_wfi { HCR_TWI } else { 0 } | if vcpu.trap_wfe { HCR_TWE } else { 0 };
        let timers = GuestTimers::of(&vcpu.timers, self.direct);
        // SAFETY: EL1 does not run until the guest's context is whole; what is changed here is saved above or beside.
        unsafe {
            end_walks(&host.el1);
            load_el1(&vcpu.el1, has.pauth);
            set!("vtcr_el2", registers.vtcr);
            set!("vttbr_el2", registers.vttbr);
            set!("vmpidr_el2", vcpu.vmpidr);
            if let Some(midr) = self.advertised.midr {
                host.vpidr = swap!("vpidr_el2", midr.into());
            }
            set!("hcr_el2", self.hcr | wfx);
            if has.hcrx {
                host.hcrx = swap!("s3_4_c1_c2_2", self.hcrx);
            }
            let trap = |condition: bool, bit: u64| if condition { bit } else { 0 };
            set!("cptr_el2", self.cptr(host.cptr) | CPTR_TFP);
            set!("mdcr_el2", host.mdcr | MDCR_TRAPS & !trap(!has.trace_filter, 1 << 19));
            if host.mdscr != 0 {
                set!("mdscr_el1", 0);
            }
            self.enter_rare(&mut host);
            self.load_timers(&host, &timers);
            if has.gic && !self.direct {
                self.load_gic(&vcpu.gic);
                host.icc_sre = get!("s3_4_c12_c9_5");
                set!("s3_4_c12_c9_5", host.icc_sre & !ICC_SRE_ENABLE);
            }
            self.forget_others(vcpu, registers);
            begin_walks(&vcpu.el1);
            set!("vbar_el2", guest_vectors_address());
        }
        (host, timers)
    }

    /// What few CPUs have.
    #[inline(always)]
    unsafe fn enter_rare(&self, host: &mut HostWorld) {
        let has = &self.has;
        // SAFETY: as for `enter`.
        unsafe {
            if has.ras {
                // What an ESB of another guest has left (VDISR_EL2).
                set!("s3_4_c12_c1_1", 0);
            }
            if has.pmu {
                // The host's counters stand still.
                host.pmcr = get!("pmcr_el0");
                if host.pmcr & 1 != 0 {
                    set!("pmcr_el0", host.pmcr & !1);
                }
            }
            if has.branch_records {
                // BRBCR_EL1
                host.branch_records = swap!("s2_1_c9_c0_0", 0);
            }
            if has.trace_filter {
                // TRFCR_EL1
                host.trace_filter = swap!("s3_0_c1_c2_1", 0);
            }
            if has.mpam {
                // MPAM2_EL2
                host.mpam = get!("s3_4_c10_c5_0");
                set!("s3_4_c10_c5_0", host.mpam | MPAM2_TRAPS);
            }
            // The controls of what a guest has not trap when they are clear, and the others do not.
            if has.fgt != 0 {
                host.fgt = [
                    swap_if_set!("s3_4_c1_c1_4"), // HFGRTR_EL2
                    swap_if_set!("s3_4_c1_c1_5"), // HFGWTR_EL2
                    swap_if_set!("s3_4_c1_c1_6"), // HFGITR_EL2
                    swap_if_set!("s3_4_c3_c1_4"), // HDFGRTR_EL2
                    swap_if_set!("s3_4_c3_c1_5"), // HDFGWTR_EL2
                ];
            }
            if has.fgt >= 2 {
                host.fgt2 = [
                    swap_if_set!("s3_4_c3_c1_0"), // HDFGRTR2_EL2
                    swap_if_set!("s3_4_c3_c1_1"), // HDFGWTR2_EL2
                    swap_if_set!("s3_4_c3_c1_2"), // HFGRTR2_EL2
                    swap_if_set!("s3_4_c3_c1_3"), // HFGWTR2_EL2
                    swap_if_set!("s3_4_c3_c1_7"), // HFGITR2_EL2
                ];
            }
        }
    }

    /// What a guest traps on beside its first use of vectors: what it has not, and what of that there is.
    fn cptr(&self, host: u64) -> u64 {
        let trap = |condition: bool, bit: u64| if condition { bit } else { 0 };
        host | CPTR_TZ | CPTR_TSM | trap(self.has.trace, CPTR_TTA) | trap(self.has.amu, CPTR_TAM)
    }

    /// The guest's timers in place of the host's, of which the next that would interrupt becomes EL2's (PPI 26).
    #[inline(always)]
    unsafe fn load_timers(&self, host: &HostWorld, timers: &GuestTimers) {
        let is_on = |timer: &&Timer| !self.direct && timer.ctl & (TIMER_ENABLE | TIMER_IMASK) == TIMER_ENABLE;
        let next = host.timers.iter().filter(is_on).map(|timer| timer.cval).min();
        // SAFETY: as for `enter`. Interrupts are masked meanwhile, and the outputs of timers are levels.
        unsafe {
            set!("cntp_cval_el0", timers.physical.cval);
            set!("cntp_ctl_el0", timers.physical.ctl);
            set!("cntv_cval_el0", timers.virtual_.cval);
            set!("cntv_ctl_el0", timers.virtual_.ctl);
            if let Some(next) = next {
                set!("cnthp_cval_el2", next);
                set!("cnthp_ctl_el2", TIMER_ENABLE);
            }
            set!("cnthctl_el2", self.cnthctl(host.cnthctl, timers));
        }
    }

    fn cnthctl(&self, host: u64, timers: &GuestTimers) -> u64 {
        let physical = if timers.physical_told { host & !CNTHCTL_EL1PCEN } else { host };
        if timers.virtual_told && self.has.ecv { physical | CNTHCTL_EL1TVT } else { physical }
    }

    #[inline(always)]
    unsafe fn load_gic(&self, gic: &Gic) {
        // SAFETY: as for `enter`; the virtual interface is used by guests only.
        unsafe {
            set!("s3_4_c12_c11_7", gic.vmcr);
            for number in 0..self.active_priorities {
                write_active_priorities(number, [gic.ap0r[number], gic.ap1r[number]]);
            }
            for (number, &value) in gic.lrs[..self.list_registers].iter().enumerate() {
                // They are 0 while no guest runs.
                if value != 0 {
                    write_list_register(number, value);
                }
            }
            set!("s3_4_c12_c11_0", gic.hcr | ICH_HCR_EN);
        }
    }

    /// The virtual interface as the guest leaves it, which then is off and empty.
    #[inline(always)]
    unsafe fn save_gic(&self, gic: &mut Gic) {
        gic.misr = get!("s3_4_c12_c11_2");
        gic.vmcr = get!("s3_4_c12_c11_7");
        gic.hcr = get!("s3_4_c12_c11_0");
        // SAFETY: as for `enter`.
        unsafe {
            for number in 0..self.active_priorities {
                [gic.ap0r[number], gic.ap1r[number]] = read_active_priorities(number);
            }
            for (number, value) in gic.lrs[..self.list_registers].iter_mut().enumerate() {
                // A guest changes the states of those that are there, and makes none.
                if *value != 0 {
                    *value = read_list_register(number);
                    write_list_register(number, 0);
                }
            }
            set!("s3_4_c12_c11_0", 0);
        }
    }

    /// Two virtual CPUs of one VMID may use an ASID differently as long as they do not share it (CnP is 0), and what one left in this CPU's TLB
    /// is not the other's: unless the last guest here was this one, its VMID's entries go, and instructions with them.
    #[inline(always)]
    unsafe fn forget_others(&self, vcpu: &Vcpu, registers: &stage2::Registers) {
        let last = &PerCpu::this().last_guest;
        if last[0].load(Relaxed) != registers.vttbr || last[1].load(Relaxed) != vcpu.vmpidr {
            last[0].store(registers.vttbr, Relaxed);
            last[1].store(vcpu.vmpidr, Relaxed);
            // SAFETY: invalidation only costs what follows.
            unsafe { asm!("isb", "tlbi vmalle1", "ic iallu", "dsb nsh", options(nostack)) };
        }
    }

    /// Puts the host's world back in the place of the guest's.
    #[inline(always)]
    unsafe fn leave(&self, vcpu: &mut Vcpu, host: HostWorld, timers: &GuestTimers) {
        let has = &self.has;
        save_el1(&mut vcpu.el1, has.pauth);
        timers.remove(&mut vcpu.timers, has.ecv);
        // SAFETY: what is written is what was read; EL1 does not run until all of it is there.
        unsafe {
            set!("vbar_el2", vectors_address());
            set!("elr_el2", host.elr);
            set!("spsr_el2", host.spsr);
            end_walks(&vcpu.el1);
            load_el1(&host.el1, has.pauth);
            set!("vtcr_el2", host.vtcr);
            set!("vttbr_el2", host.vttbr);
            set!("vmpidr_el2", host.vmpidr);
            if self.advertised.midr.is_some() {
                set!("vpidr_el2", host.vpidr);
            }
            set!("hcr_el2", host.hcr);
            if has.hcrx {
                set!("s3_4_c1_c2_2", host.hcrx);
            }
            set!("cptr_el2", host.cptr);
            set!("mdcr_el2", host.mdcr);
            if host.mdscr != 0 {
                set!("mdscr_el1", host.mdscr);
            }
            self.leave_rare(&host);
            // What is the guest's alone stays as it is: its next run puts the same there, which changes nothing.
            if !self.direct {
                set!("cnthp_ctl_el2", 0);
                set!("cnthctl_el2", host.cnthctl);
                set!("cntp_cval_el0", host.timers[0].cval);
                set!("cntp_ctl_el0", host.timers[0].ctl);
                set!("cntv_cval_el0", host.timers[1].cval);
                set!("cntv_ctl_el0", host.timers[1].ctl);
            }
            if has.gic && !self.direct {
                self.save_gic(&mut vcpu.gic);
                set!("s3_4_c12_c9_5", host.icc_sre);
            }
            begin_walks(&host.el1);
        }
        synchronize();
    }

    #[inline(always)]
    unsafe fn leave_rare(&self, host: &HostWorld) {
        let has = &self.has;
        // SAFETY: as for `leave`.
        unsafe {
            if has.pmu && host.pmcr & 1 != 0 {
                set!("pmcr_el0", host.pmcr);
            }
            if has.branch_records {
                set!("s2_1_c9_c0_0", host.branch_records);
            }
            if has.trace_filter {
                set!("s3_0_c1_c2_1", host.trace_filter);
            }
            if has.mpam {
                set!("s3_4_c10_c5_0", host.mpam);
            }
            if has.fgt != 0 {
                set_if_set!("s3_4_c1_c1_4", host.fgt[0]);
                set_if_set!("s3_4_c1_c1_5", host.fgt[1]);
                set_if_set!("s3_4_c1_c1_6", host.fgt[2]);
                set_if_set!("s3_4_c3_c1_4", host.fgt[3]);
                set_if_set!("s3_4_c3_c1_5", host.fgt[4]);
            }
            if has.fgt >= 2 {
                set_if_set!("s3_4_c3_c1_0", host.fgt2[0]);
                set_if_set!("s3_4_c3_c1_1", host.fgt2[1]);
                set_if_set!("s3_4_c3_c1_2", host.fgt2[2]);
                set_if_set!("s3_4_c3_c1_3", host.fgt2[3]);
                set_if_set!("s3_4_c3_c1_7", host.fgt2[4]);
            }
        }
    }
}

impl GuestTimers {
    /// Masked where the host was told of them; `direct`: nobody is told.
    fn of(timers: &Timers, direct: bool) -> Self {
        let (physical_told, virtual_told) = (timers.cntp_told && !direct, timers.cntv_told && !direct);
        Self {
            physical: Timer::installed(timers.cntp_ctl, timers.cntp_cval, physical_told),
            virtual_: Timer::installed(timers.cntv_ctl, timers.cntv_cval, virtual_told),
            physical_told,
            virtual_told,
        }
    }

    /// What the guest's timers are now.
    #[inline(always)]
    fn remove(&self, timers: &mut Timers, ecv: bool) {
        let physical = Timer { ctl: get!("cntp_ctl_el0"), cval: get!("cntp_cval_el0") };
        let virtual_ = Timer { ctl: get!("cntv_ctl_el0"), cval: get!("cntv_cval_el0") };
        (timers.cntp_ctl, timers.cntp_told) = physical.removed(self.physical, self.physical_told, true);
        (timers.cntv_ctl, timers.cntv_told) = virtual_.removed(self.virtual_, self.virtual_told, ecv);
        (timers.cntp_cval, timers.cntv_cval) = (physical.cval, virtual_.cval);
    }
}

/// The guest's world is on the CPU: it runs, and what stops it is looked at.
struct Turns<'a> {
    world: &'a World,
    running: &'a mut Running,
    timers: &'a mut GuestTimers,
    answer: &'a mut dyn FnMut(&mut Running, &Exit) -> bool,
}

impl Turns<'_> {
    /// Runs the guest until it has to stop. Nothing if it wants to use vectors, and does not have them yet (`has_vectors`).
    #[inline(never)]
    unsafe fn until_exit(&mut self, has_vectors: bool) -> Option<Exit> {
        loop {
            ENTRY.leave();
            // SAFETY: the guest's context is whole, by the caller's word; from here on only this stack is touched.
            let kind = unsafe { enter_guest(self.running) };
            // Before the next exception at EL2 overwrites them: there is none in between.
            let (esr, far, hpfar) = (read_esr_el2().bits(), get!("far_el2"), get!("hpfar_el2"));
            ENTRY.enter();
            let mut exit = match kind {
                0 => Exit::Synchronous { esr, far, hpfar },
                1 => return Some(Exit::Irq),
                2 => return Some(Exit::Fiq),
                _ => return Some(Exit::SError { esr }),
            };
            match esr >> EC_SHIFT & 0x3f {
                EC_FP if !has_vectors => return None,
                EC_SYSTEM_REGISTER
                    if vcpu::answer_quickly(self.running, esr, &self.world.view) || self.timer(esr) =>
                {
                    continue;
                }
                _ => {}
            }
            let cause = Cause::decode(esr);
            if let Cause::Abort(abort) = cause
                && abort.is_of_stage_2()
                && !abort.has_ipa()
            {
                // A permission fault of the access itself: `HPFAR_EL2` is UNKNOWN.
                // SAFETY: the guest's context is on the CPU, by the caller's word, and its vectors.
                let Some(hpfar) = (unsafe { translated(far) }) else { continue };
                exit = Exit::Synchronous { esr, far, hpfar };
            }
            match cause {
                Cause::Abort(abort) if abort.is_tlb_conflict() => stage2::install::forget_all(),
                _ if (self.answer)(self.running, &exit) => {}
                _ => return Some(exit),
            }
        }
    }

    /// Answers the access to a timer that is masked by us, if `esr` is one.
    fn timer(&mut self, esr: u64) -> bool {
        // CNTP_*_EL0 and CNTV_*_EL0, any op2.
        const REGISTERS: u64 = encoding(3, 7, 15, 15, 0);
        const PHYSICAL: u64 = encoding(3, 3, 14, 2, 0);
        const VIRTUAL: u64 = encoding(3, 3, 14, 3, 0);
        let trapped = Trapped::new(esr);
        let x = &mut self.running.x;
        match trapped.encoding() & REGISTERS {
            PHYSICAL if self.timers.physical_told => {
                let mut timer = Timer { ctl: get!("cntp_ctl_el0"), cval: get!("cntp_cval_el0") };
                let told = timer.access(trapped, x, now());
                self.timers.physical_told = told;
                // SAFETY: it is the guest's timer, to which this is what it did.
                unsafe {
                    set!("cntp_cval_el0", timer.cval);
                    set!("cntp_ctl_el0", timer.ctl);
                    if !told {
                        set!("cnthctl_el2", get!("cnthctl_el2") | CNTHCTL_EL1PCEN);
                    }
                }
            }
            VIRTUAL if self.timers.virtual_told => {
                let mut timer = Timer { ctl: get!("cntv_ctl_el0"), cval: get!("cntv_cval_el0") };
                let told = timer.access(trapped, x, now());
                self.timers.virtual_told = told;
                // SAFETY: as above.
                unsafe {
                    set!("cntv_cval_el0", timer.cval);
                    set!("cntv_ctl_el0", timer.ctl);
                    if !told {
                        set!("cnthctl_el2", get!("cnthctl_el2") & !CNTHCTL_EL1TVT);
                    }
                }
            }
            _ => return false,
        }
        self.running.advance();
        true
    }

    /// Goes on with the guest's vectors in place of the host's, of which the first 128 bits of each matter.
    #[inline(never)]
    unsafe fn with_vectors(&mut self, guest: &mut Fp, host_cptr: u64) -> Exit {
        let mut host = MaybeUninit::<Fp>::uninit();
        // SAFETY: the areas are as large as the routines take them for; EL2 uses no vectors itself.
        unsafe {
            set!("cptr_el2", host_cptr);
            synchronize();
            cloven_save_fp(host.as_mut_ptr());
            let exit = self.on_vectors(guest, host_cptr);
            cloven_load_fp(host.as_ptr());
            exit
        }
    }

    /// As [`Turns::with_vectors`], all bits.
    #[inline(never)]
    unsafe fn with_long_vectors(&mut self, guest: &mut Fp, host_cptr: u64) -> Exit {
        let mut host = MaybeUninit::<LongVectors>::uninit();
        // SAFETY: as there; `ZCR_EL2` asks for all that the CPU has, which is no more than the area holds.
        unsafe {
            set!("cptr_el2", host_cptr);
            synchronize();
            cloven_save_sve(host.as_mut_ptr());
            let exit = self.on_vectors(guest, host_cptr);
            cloven_load_sve(host.as_ptr());
            exit
        }
    }

    /// Runs the guest with its own vectors, which EL2 may use as the host may before and after.
    #[inline(always)]
    unsafe fn on_vectors(&mut self, guest: &mut Fp, host_cptr: u64) -> Exit {
        // SAFETY: as for `with_vectors`.
        unsafe {
            cloven_load_fp(guest);
            set!("cptr_el2", self.world.cptr(host_cptr));
            let exit = loop {
                // It has them: nothing is not an answer.
                if let Some(exit) = self.until_exit(true) {
                    break exit;
                }
            };
            set!("cptr_el2", host_cptr);
            synchronize();
            cloven_save_fp(guest);
            exit
        }
    }
}

/// Of the host: z0 to z31, FPCR and FPSR.
#[repr(C, align(16))]
struct LongVectors {
    z: [u8; VECTORS],
    fpcr: u64,
    fpsr: u64,
}

fn now() -> u64 {
    get!("cntpct_el0")
}

/// `HPFAR_EL2` for a fault of the guest at `far` for which the hardware gives none; nothing if the guest's walk does not get that far now:
/// then the access takes another fault when it is made again.
///
/// # Safety
/// The guest's context is on the CPU, and the vectors are those for a guest.
#[cold]
unsafe fn translated(far: u64) -> Option<u64> {
    let (par_of_guest, tpidr, tpidrro) = (get!("par_el1"), get!("tpidr_el0"), get!("tpidrro_el0"));
    // SAFETY: the caller's word; what the translation overwrites, and the guest may need, comes back.
    let par = unsafe {
        let par = super::vectors::translate(far);
        set!("par_el1", par_of_guest);
        set!("tpidr_el0", tpidr);
        set!("tpidrro_el0", tpidrro);
        par
    };
    (par & PAR_FAILED == 0).then_some((par & PAR_ADDRESS) >> FIPA_SHIFT)
}

/// The ID register with `op0` 3, `op1` 0, `CRn` 0, and these, as the machine has it.
fn read_id_register(crm: usize, op2: usize) -> u64 {
    match (crm, op2) {
        (4, 0) => get!("s3_0_c0_c4_0"),
        (4, 1) => get!("s3_0_c0_c4_1"),
        (5, 0) => get!("s3_0_c0_c5_0"),
        (6, 0) => get!("s3_0_c0_c6_0"),
        (6, 1) => get!("s3_0_c0_c6_1"),
        (6, 2) => get!("s3_0_c0_c6_2"),
        (6, 3) => get!("s3_0_c0_c6_3"),
        (7, 0) => get!("s3_0_c0_c7_0"),
        (7, 1) => get!("s3_0_c0_c7_1"),
        (7, 2) => get!("s3_0_c0_c7_2"),
        (7, 3) => get!("s3_0_c0_c7_3"),
        _ => 0,
    }
}

unsafe extern "C" {
    fn cloven_save_fp(into: *mut Fp);
    fn cloven_load_fp(from: *const Fp);
    fn cloven_save_sve(into: *mut LongVectors);
    fn cloven_load_sve(from: *const LongVectors);
}

global_asm!(
    r#"
    .arch_extension fp
    .arch_extension simd
    .arch_extension sve

    .macro vectors_128 pair
    \pair   q0, q1, [x0, #0]
    \pair   q2, q3, [x0, #32]
    \pair   q4, q5, [x0, #64]
    \pair   q6, q7, [x0, #96]
    \pair   q8, q9, [x0, #128]
    \pair   q10, q11, [x0, #160]
    \pair   q12, q13, [x0, #192]
    \pair   q14, q15, [x0, #224]
    \pair   q16, q17, [x0, #256]
    \pair   q18, q19, [x0, #288]
    \pair   q20, q21, [x0, #320]
    \pair   q22, q23, [x0, #352]
    \pair   q24, q25, [x0, #384]
    \pair   q26, q27, [x0, #416]
    \pair   q28, q29, [x0, #448]
    \pair   q30, q31, [x0, #480]
    .endm

    .macro vectors_long one
    .irp    number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    \one    z\number, [x0, #\number, mul vl]
    .endr
    .irp    number, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31
    \one    z\number, [x0, #\number, mul vl]
    .endr
    .endm

    .macro save_controls
    mrs     x1, fpcr
    mrs     x2, fpsr
    stp     x1, x2, [x0]
    .endm

    .macro load_controls
    ldp     x1, x2, [x0]
    msr     fpcr, x1
    msr     fpsr, x2
    .endm

    .section .text.vectors_of_guests, "ax"
    .p2align 2
    .global cloven_save_fp
cloven_save_fp:
    vectors_128 stp
    add     x0, x0, #512
    save_controls
    ret

    .global cloven_load_fp
cloven_load_fp:
    vectors_128 ldp
    add     x0, x0, #512
    load_controls
    ret

    .global cloven_save_sve
cloven_save_sve:
    vectors_long str
    add     x0, x0, #{vectors}
    save_controls
    ret

    .global cloven_load_sve
cloven_load_sve:
    vectors_long ldr
    add     x0, x0, #{vectors}
    load_controls
    ret
    "#,
    vectors = const VECTORS,
);
