//! The registers of a virtual CPU, why it stopped, and the answers that EL2 gives alone.
//!
//! Invariants:
//! - Pure. What is in a [`Vcpu`] is what the guest would read; `switch` puts it on a CPU and takes it off again.
//! - A guest sees the features of an [`IdView`] and no others: what that leaves out traps here and is undefined.
//! - Registers that are not in [`El1`] are the same for every guest (0, or trapped).

use super::inject::{EntryFeatures, Exception, Interrupted};
use super::syndrome::{Abort, Access};
use crate::stage1::SCTLR_EL1_OFF;

/// The system registers of EL1 and EL0, by their names.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "each is the register of its name with _EL1 behind it, if nothing else is said"
)]
pub struct El1 {
    /// `SP_EL0`.
    pub sp_el0: u64,
    /// `SP_EL1`.
    pub sp_el1: u64,
    pub elr: u64,
    pub spsr: u64,
    pub sctlr: u64,
    pub cpacr: u64,
    pub ttbr0: u64,
    pub ttbr1: u64,
    pub tcr: u64,
    pub esr: u64,
    pub afsr0: u64,
    pub afsr1: u64,
    pub far: u64,
    pub mair: u64,
    pub amair: u64,
    pub vbar: u64,
    pub contextidr: u64,
    pub tpidr: u64,
    /// `TPIDR_EL0`.
    pub tpidr_el0: u64,
    /// `TPIDRRO_EL0`.
    pub tpidrro: u64,
    pub cntkctl: u64,
    pub par: u64,
    pub csselr: u64,
    /// The keys of pointer authentication: `APIA`, `APIB`, `APDA`, `APDB` and `APGA`, each low half first.
    pub keys: [u64; 10],
}

impl El1 {
    const ZERO: Self = Self {
        sp_el0: 0,
        sp_el1: 0,
        elr: 0,
        spsr: 0,
        sctlr: 0,
        cpacr: 0,
        ttbr0: 0,
        ttbr1: 0,
        tcr: 0,
        esr: 0,
        afsr0: 0,
        afsr1: 0,
        far: 0,
        mair: 0,
        amair: 0,
        vbar: 0,
        contextidr: 0,
        tpidr: 0,
        tpidr_el0: 0,
        tpidrro: 0,
        cntkctl: 0,
        par: 0,
        csselr: 0,
        keys: [0; 10],
    };
}

/// The timers of EL1. A guest sees the machine's count: there is no offset.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timers {
    /// `CNTP_CTL_EL0`, with ISTATUS as it was when the guest stopped.
    pub cntp_ctl: u64,
    /// `CNTP_CVAL_EL0`.
    pub cntp_cval: u64,
    /// `CNTV_CTL_EL0`, as `cntp_ctl`.
    pub cntv_ctl: u64,
    /// `CNTV_CVAL_EL0`.
    pub cntv_cval: u64,
    /// Whether the host was told ([`Timers::tell`]) that the physical timer raises its interrupt: it is masked meanwhile.
    pub cntp_told: bool,
    /// As `cntp_told`, of the virtual timer.
    pub cntv_told: bool,
}

/// The virtual interface of the interrupt controller: `ICH_*_EL2`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gic {
    /// `ICH_HCR_EL2`; the guest runs with En whatever it is here.
    pub hcr: u64,
    /// `ICH_VMCR_EL2`.
    pub vmcr: u64,
    /// `ICH_LR<n>_EL2`. Only as many as the CPU has are used.
    pub lrs: [u64; 16],
    /// `ICH_AP0R<n>_EL2`.
    pub ap0r: [u64; 4],
    /// `ICH_AP1R<n>_EL2`.
    pub ap1r: [u64; 4],
    /// `ICH_MISR_EL2` when the guest stopped.
    pub misr: u64,
}

/// The registers of floating point and SIMD.
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fp {
    /// v0 to v31, each low half first.
    pub v: [[u64; 2]; 32],
    /// `FPCR`.
    pub fpcr: u64,
    /// `FPSR`.
    pub fpsr: u64,
}

/// The registers of a virtual CPU while it does not run.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vcpu {
    /// x0 to x30.
    pub x: [u64; 31],
    /// Where it goes on.
    pub pc: u64,
    /// The state in which it does, as in `SPSR_EL2`.
    pub pstate: u64,
    /// `MPIDR_EL1` as it reads it.
    pub vmpidr: u64,
    /// Whether WFI stops it.
    pub trap_wfi: bool,
    /// Whether WFE stops it.
    pub trap_wfe: bool,
    /// Its registers at EL1 and EL0.
    pub el1: El1,
    /// Its timers.
    pub timers: Timers,
    /// Its interrupts.
    pub gic: Gic,
    /// Its vectors: on the CPU only once it has used them.
    pub fp: Fp,
}

/// The general registers of a virtual CPU that is about to go on: its other registers are on the CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Running {
    /// x0 to x30.
    pub x: [u64; 31],
    /// Where it goes on.
    pub pc: u64,
    /// The state in which it does, as in `SPSR_EL2`.
    pub pstate: u64,
}

impl Running {
    /// Goes on after the instruction that trapped.
    pub fn advance(&mut self) {
        advance(&mut self.pc, &mut self.pstate);
    }
}

const _: () = assert!(size_of::<Vcpu>() <= 3072);

/// Why a virtual CPU stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// A synchronous exception.
    Synchronous {
        /// `ESR_EL2`.
        esr: u64,
        /// `FAR_EL2`.
        far: u64,
        /// `HPFAR_EL2`. It is right for each abort that stage 2 has caused, those of permissions too, whoever is told of
        /// it: who runs the virtual CPU asks the hardware anew where that gives none, or has the guest try again.
        hpfar: u64,
    },
    /// An interrupt of the host's.
    Irq,
    /// A fast interrupt of the host's.
    Fiq,
    /// An SError.
    SError {
        /// `ESR_EL2`.
        esr: u64,
    },
}

/// What became of a trapped access to a system register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was done; the guest goes on after it.
    Answered,
    /// The guest wrote one of `ICC_SGI0R_EL1`, `ICC_SGI1R_EL1` and `ICC_ASGI1R_EL1`, or `ICC_DIR_EL1`, which traps if its host asked for that by
    /// `ICH_HCR_EL2.TDIR`: nothing was changed.
    Sgi,
    /// There is no such register; the guest goes on in its handler.
    Undefined,
}

/// The ID registers that guests read (`op0` 3, `op1` 0, `CRn` 0): a machine's own, less what a guest cannot have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdView {
    /// By `CRm` times 8 plus `op2`.
    values: [u64; 64],
}

/// The largest value of an unsigned field of four bits.
const fn at_most(register: u64, lowest: u32, most: u64) -> u64 {
    let field = register >> lowest & 0xf;
    let kept = if field > most { most } else { field };
    register & !(0xf << lowest) | kept << lowest
}

/// Fields of four bits, by the lowest bit of each.
const fn fields(lowest: &[u32]) -> u64 {
    let mut mask = 0;
    let mut number = 0;
    while number < lowest.len() {
        mask |= 0xf << lowest[number];
        number += 1;
    }
    mask
}

/// `ID_AA64DFR0_EL1` of a guest: the debug architecture of Armv8.0 with the fewest breakpoints and watchpoints that it allows.
const DFR0_LEAST: u64 = 6 | 1 << 12 | 1 << 20;
const DFR0_DOUBLE_LOCK: u64 = fields(&[36]);
/// The exception levels of `ID_AA64PFR0_EL1` in AArch64 only, and no EL2 or EL3.
const PFR0_LEVELS: u64 = 0x0011;

impl IdView {
    /// Of a machine whose register with `CRm` (4 to 7) and `op2` (0 to 7) is `read(CRm, op2)`.
    ///
    /// What works without help of EL2 stays. What is left out is what needs registers that nobody saves, EL2's consent, or would let a
    /// guest observe its host: SVE and SME, MTE, RAS, AMU, MPAM, RME and nested levels, `SCXTNUM_ELx`, NMI, GCS, THE, the PMU, profiling, trace
    /// and branch records, LORegions, the registers of FEAT_TCR2, FEAT_SCTLR2 and permission indirection, 128-bit registers, LS64, TME,
    /// 52-bit addresses with the 4 and 16 KiB granules. There is no AArch32. Fields that nobody knows yet are 0.
    ///
    /// Fields: Arm ARM D24.2, `ID_AA64*_EL1`.
    pub fn of(read: impl Fn(usize, usize) -> u64) -> Self {
        let mut values = [0; 64];
        let mut set = |crm: usize, op2: usize, value: u64| values[crm * 8 + op2] = value;

        // FP, AdvSIMD, DIT and CSV3; the system registers of the GIC, but not those of GICv4.1; CSV2 without FEAT_CSV2_2.
        let pfr0 = read(4, 0);
        let kept = pfr0 & fields(&[16, 20, 48, 60]);
        let gic = at_most(pfr0, 24, 1) & fields(&[24]);
        let csv2 = at_most(pfr0, 56, 1) & fields(&[56]);
        set(4, 0, PFR0_LEVELS | kept | gic | csv2);
        // BT and SSBS; CSV2_frac without FEAT_CSV2_1p2.
        let pfr1 = read(4, 1);
        set(4, 1, pfr1 & fields(&[0, 4]) | at_most(pfr1, 32, 1) & fields(&[32]));

        set(5, 0, DFR0_LEAST | read(5, 0) & DFR0_DOUBLE_LOCK);

        // All but TME (24), and of the first 4 bits nothing is defined.
        set(6, 0, read(6, 0) & !fields(&[0, 24]));
        // All but LS64 (60).
        set(6, 1, read(6, 1) & !fields(&[60]));
        // All but 128-bit system registers and instructions (32, 36).
        set(6, 2, read(6, 2) & !fields(&[32, 36]));
        // FAMINMAX.
        set(6, 3, read(6, 3) & fields(&[4]));

        // All that is about EL1 and EL0, and the physical addresses up to 48 bits.
        let mmfr0 = at_most(at_most(read(7, 0), 0, 5), 60, 1);
        let granules = without_52_bits(mmfr0);
        set(7, 0, granules & fields(&[0, 4, 8, 12, 16, 20, 24, 28, 44, 60]));
        // HAFDBS up to the dirty flag, VMIDBits no, HPDS, PAN, SpecSEI, XNX no, TWED no, ETS, HCX no, AFP, nTLBPA, TIDCP1, CMOW, ECBHB.
        let mmfr1 = at_most(read(7, 1), 0, 2);
        set(7, 1, mmfr1 & fields(&[0, 12, 20, 24, 36, 44, 48, 52, 56, 60]));
        // CnP, UAO, LSM, VARange, CCIDX, ST, AT, IDS, TTL, BBM, E0PD; not IESB, NV, FWB, EVT.
        set(7, 2, at_most(read(7, 2), 16, 1) & fields(&[0, 4, 8, 16, 20, 28, 32, 36, 48, 52, 60]));
        // Spec_FPACC.
        set(7, 3, read(7, 3) & fields(&[60]));
        Self { values }
    }

    /// The same, but that the level of FEAT_BBM is another (`ID_AA64MMFR2_EL1.BBM`).
    #[must_use]
    pub fn with_bbm(mut self, level: u8) -> Self {
        const LOWEST: u32 = 52;
        let mmfr2 = &mut self.values[7 * 8 + 2];
        *mmfr2 = *mmfr2 & !fields(&[LOWEST]) | u64::from(level & 0xf) << LOWEST;
        self
    }

    /// What the register with `CRm` and `op2` (each below 8) reads as.
    pub fn read(&self, crm: usize, op2: usize) -> u64 {
        self.values[(crm * 8 + op2) % self.values.len()]
    }
}

/// `ID_AA64MMFR0_EL1` without FEAT_LPA2: TGran4 (28) is signed, and TGran16 (20) begins at 1.
const fn without_52_bits(mmfr0: u64) -> u64 {
    let tgran4 = if mmfr0 >> 28 & 0xf == 1 { mmfr0 & !(0xf << 28) } else { mmfr0 };
    at_most(tgran4, 20, 1)
}

/// Bytes of an A64 instruction.
const INSTRUCTION: u64 = 4;
/// What an instruction leaves behind when it is executed: the software step state and the branch type (Arm ARM D2.12.5, D8.4.6).
const SPSR_OF_ONE_INSTRUCTION: u64 = 1 << 21 | 0b11 << 10;
/// EL1 with its own stack pointer, everything masked.
const SPSR_EL1H_MASKED: u64 = 0b1111 << 6 | 0b0101;

fn advance(pc: &mut u64, pstate: &mut u64) {
    *pc = pc.wrapping_add(INSTRUCTION);
    *pstate &= !SPSR_OF_ONE_INSTRUCTION;
}

impl Vcpu {
    /// One that begins at address 0 with its MMU off and interrupts masked, whose `MPIDR_EL1` is `mpidr`.
    pub const fn reset(mpidr: u64) -> Self {
        Self {
            x: [0; 31],
            pc: 0,
            pstate: SPSR_EL1H_MASKED,
            vmpidr: mpidr,
            trap_wfi: false,
            trap_wfe: false,
            el1: El1 { sctlr: SCTLR_EL1_OFF, ..El1::ZERO },
            timers: Timers::ZERO,
            gic: Gic { hcr: 0, vmcr: 0, lrs: [0; 16], ap0r: [0; 4], ap1r: [0; 4], misr: 0 },
            fp: Fp { v: [[0; 2]; 32], fpcr: 0, fpsr: 0 },
        }
    }

    /// Goes on after the instruction that trapped.
    pub fn advance(&mut self) {
        advance(&mut self.pc, &mut self.pstate);
    }

    /// Makes it take `exception` at the instruction at which it stopped, on a CPU with `features`. `FAR_EL1` is the caller's.
    pub fn inject(&mut self, exception: Exception, features: &EntryFeatures) {
        let interrupted = Interrupted {
            spsr: self.pstate,
            sctlr: self.el1.sctlr,
            // Guests have neither.
            sctlr2: 0,
            gcscr: 0,
            vbar: self.el1.vbar,
            features: *features,
        };
        let entry = interrupted.take(exception);
        self.el1.spsr = self.pstate;
        self.el1.elr = self.pc;
        self.el1.esr = entry.esr;
        self.pc = entry.pc;
        self.pstate = entry.pstate;
    }

    /// Makes it take a synchronous External abort for an access of the virtual address `far`.
    pub fn inject_sea(&mut self, access: Access, far: u64, features: &EntryFeatures) {
        self.inject_abort(Abort::of(access), far, features);
    }

    /// Makes it take a synchronous External abort in place of `abort`, whose virtual address is `far`.
    pub fn inject_abort(&mut self, abort: Abort, far: u64, features: &EntryFeatures) {
        self.el1.far = far;
        self.inject(Exception::External(abort), features);
    }

    /// Its general registers.
    pub(super) fn running(&self) -> Running {
        Running { x: self.x, pc: self.pc, pstate: self.pstate }
    }

    /// Takes them back.
    pub(super) fn stopped(&mut self, running: &Running) {
        self.x = running.x;
        self.pc = running.pc;
        self.pstate = running.pstate;
    }
}

/// The access of a trapped MRS or MSR (Arm ARM D24.2.40, "ISS encoding for an exception from MSR, MRS, or System instruction execution").
#[derive(Clone, Copy)]
pub(super) struct Trapped {
    iss: u64,
}

/// The encoding of a register, as [`Trapped::encoding`] has it.
pub(super) const fn encoding(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> u64 {
    op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | crm << 1
}

impl Trapped {
    pub(super) fn new(esr: u64) -> Self {
        Self { iss: esr & 0x1ff_ffff }
    }
    pub(super) fn is_read(self) -> bool {
        self.iss & 1 != 0
    }
    /// op0, op2, op1, CRn and CRm where the ISS has them.
    pub(super) fn encoding(self) -> u64 {
        self.iss & 0x3f_fc1e
    }
    /// Whether op0, op1 and CRn are these.
    fn is_of(self, op0: u64, op1: u64, crn: u64) -> bool {
        let mask = encoding(3, 7, 15, 0, 0);
        self.iss & mask == encoding(op0, op1, crn, 0, 0)
    }
    fn crm(self) -> usize {
        (self.iss >> 1 & 0xf) as usize
    }
    fn op2(self) -> usize {
        (self.iss >> 17 & 7) as usize
    }
    /// Puts what is read into the register that is named.
    pub(super) fn put(self, x: &mut [u64; 31], value: u64) {
        // 31 is XZR.
        if let Some(register) = x.get_mut((self.iss >> 5 & 0x1f) as usize) {
            *register = value;
        }
    }
    /// What is written.
    pub(super) fn value(self, x: &[u64; 31]) -> u64 {
        x.get((self.iss >> 5 & 0x1f) as usize).copied().unwrap_or(0)
    }
}

const ACTLR_EL1: u64 = encoding(3, 0, 1, 0, 1);
const OSLSR_EL1: u64 = encoding(2, 0, 1, 1, 4);
const ICC_DIR_EL1: u64 = encoding(3, 0, 12, 11, 1);
const ICC_SGI1R_EL1: u64 = encoding(3, 0, 12, 11, 5);
const ICC_ASGI1R_EL1: u64 = encoding(3, 0, 12, 11, 6);
const ICC_SGI0R_EL1: u64 = encoding(3, 0, 12, 11, 7);
const ICC_SRE_EL1: u64 = encoding(3, 0, 12, 12, 5);
/// The OS lock is there, and open.
const OSLSR_OPEN: u64 = 1 << 3;
/// System registers only, no bypass.
const SRE_ONLY: u64 = 0b111;

/// What is behind a trapped access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Behind {
    /// A register that reads as this, and ignores what is written.
    Value(u64),
    /// A register that only reads.
    Constant(u64),
    Sgi,
    Nothing,
}

fn behind(trapped: Trapped, view: &IdView) -> Behind {
    // op0 3, op1 0, CRn 0: those with CRm 0 are not trapped.
    if trapped.is_of(3, 0, 0) {
        return if (1..8).contains(&trapped.crm()) {
            Behind::Constant(view.read(trapped.crm(), trapped.op2()))
        } else {
            Behind::Nothing
        };
    }
    match trapped.encoding() {
        ACTLR_EL1 => Behind::Value(0),
        ICC_SRE_EL1 => Behind::Value(SRE_ONLY),
        ICC_SGI1R_EL1 | ICC_ASGI1R_EL1 | ICC_SGI0R_EL1 | ICC_DIR_EL1 => Behind::Sgi,
        OSLSR_EL1 => Behind::Constant(OSLSR_OPEN),
        // Breakpoints, watchpoints, the OS lock, claim tags: op1 0; the debug communications channel: op1 3.
        _ if [0, 1, 7].into_iter().any(|crn| trapped.is_of(2, 0, crn)) || trapped.is_of(2, 3, 0) => {
            Behind::Value(0)
        }
        _ => Behind::Nothing,
    }
}

/// Does the access that `esr` (of class 0x18) describes, if that takes the general registers only.
pub(super) fn answer_quickly(running: &mut Running, esr: u64, view: &IdView) -> bool {
    let trapped = Trapped::new(esr);
    match behind(trapped, view) {
        Behind::Value(value) | Behind::Constant(value) if trapped.is_read() => {
            trapped.put(&mut running.x, value);
        }
        Behind::Value(_) => {}
        _ => return false,
    }
    running.advance();
    true
}

/// Answers the trapped access to a system register that `esr` (of class 0x18) describes, of a guest that sees `view`.
pub fn answer_register(vcpu: &mut Vcpu, esr: u64, view: &IdView, features: &EntryFeatures) -> Answer {
    let mut running = vcpu.running();
    if answer_quickly(&mut running, esr, view) {
        vcpu.stopped(&running);
        return Answer::Answered;
    }
    let trapped = Trapped::new(esr);
    if behind(trapped, view) == Behind::Sgi && !trapped.is_read() {
        return Answer::Sgi;
    }
    vcpu.inject(Exception::Undefined, features);
    Answer::Undefined
}

const CTL_ENABLE: u64 = 1 << 0;
const CTL_IMASK: u64 = 1 << 1;
const CTL_ISTATUS: u64 = 1 << 2;

/// Whether a timer with this control register raises its interrupt.
const fn asserts(ctl: u64) -> bool {
    ctl & (CTL_ENABLE | CTL_IMASK | CTL_ISTATUS) == CTL_ENABLE | CTL_ISTATUS
}

impl Timers {
    const ZERO: Self =
        Self { cntp_ctl: 0, cntp_cval: 0, cntv_ctl: 0, cntv_cval: 0, cntp_told: false, cntv_told: false };

    /// The host is shown these timers: one that raises its interrupt is masked from now on, until the guest changes that
    /// (RMM specification, I_VRWGS).
    pub fn tell(&mut self) {
        self.cntp_told = asserts(self.cntp_ctl);
        self.cntv_told = asserts(self.cntv_ctl);
    }
}

/// The registers of one timer as the hardware has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Timer {
    pub ctl: u64,
    pub cval: u64,
}

/// What the guest does with a register of a timer, by its `op2`.
const TVAL: usize = 0;
const CTL: usize = 1;

impl Timer {
    /// What the hardware gets of a timer: masked, if the host was told.
    pub(super) fn installed(ctl: u64, cval: u64, told: bool) -> Self {
        let mask = if told { CTL_IMASK } else { 0 };
        Self { ctl: ctl & (CTL_ENABLE | CTL_IMASK) | mask, cval }
    }

    /// What the guest would read in place of `self.ctl`, and whether the host is still right in what it was told.
    ///
    /// While its mask is ours the guest's accesses trap; on a CPU that cannot trap them (`is_trapped` false: those of the virtual timer
    /// without FEAT_ECV) a mask that is still there is taken for ours unless `before`, what was installed, says that the guest
    /// has touched it. So a guest that only masks a timer which the host knows of may get its interrupt once more.
    pub(super) fn removed(self, before: Self, told: bool, is_trapped: bool) -> (u64, bool) {
        let untouched = self.cval == before.cval && self.ctl & CTL_ENABLE == before.ctl & CTL_ENABLE;
        let ours = told && self.ctl & CTL_IMASK != 0 && (is_trapped || untouched);
        let ctl = if ours { self.ctl & !CTL_IMASK } else { self.ctl };
        (ctl, ours && asserts(ctl))
    }

    /// Does a trapped access to a timer that is masked by us, at `now`; the mask goes when it no longer hides an interrupt. Whether it is
    /// still there.
    pub(super) fn access(&mut self, trapped: Trapped, x: &mut [u64; 31], now: u64) -> bool {
        // What the guest would have without our mask.
        let mut ctl = self.ctl & CTL_ENABLE;
        if trapped.is_read() {
            let reached = if now >= self.cval { CTL_ISTATUS } else { 0 };
            trapped.put(
                x,
                match trapped.op2() {
                    TVAL => self.cval.wrapping_sub(now) & 0xffff_ffff,
                    CTL => ctl | reached,
                    _ => self.cval,
                },
            );
            return true;
        }
        let value = trapped.value(x);
        match trapped.op2() {
            TVAL => self.cval = now.wrapping_add(value as u32 as i32 as u64),
            CTL => ctl = value & (CTL_ENABLE | CTL_IMASK),
            _ => self.cval = value,
        }
        let hides = ctl == CTL_ENABLE && now >= self.cval;
        self.ctl = if hides { ctl | CTL_IMASK } else { ctl };
        hides
    }
}

#[cfg(test)]
mod tests {
    use super::super::syndrome::Cause;
    use super::*;

    const FEATURES: EntryFeatures = EntryFeatures { pan: true, ssbs: false, tco: false, nmi: false };
    const EL1H: u64 = 0b0101;

    /// A machine that has all there can be in every field.
    fn everything() -> IdView {
        IdView::of(|_, _| u64::MAX)
    }

    /// The syndrome of an access to a register by x`register`.
    fn access(encoding: u64, register: u64, is_read: bool) -> u64 {
        0x18 << 26 | 1 << 25 | encoding | register << 5 | u64::from(is_read)
    }

    fn read(encoding: u64, register: u64) -> u64 {
        access(encoding, register, true)
    }

    fn write(encoding: u64, register: u64) -> u64 {
        access(encoding, register, false)
    }

    fn guest() -> Vcpu {
        let mut vcpu = Vcpu::reset(0x8000_0101);
        (vcpu.pc, vcpu.el1.vbar) = (0x4000, 0x8_0000);
        vcpu.x = core::array::from_fn(|number| 0x100 + number as u64);
        vcpu
    }

    #[test]
    fn it_begins_masked_at_el1_without_translation() {
        let vcpu = Vcpu::reset(0x8000_0003);
        assert_eq!((vcpu.pc, vcpu.pstate, vcpu.vmpidr), (0, 0x3c5, 0x8000_0003));
        assert_eq!(vcpu.el1, El1 { sctlr: SCTLR_EL1_OFF, ..El1::default() });
        // M, C and I.
        assert_eq!(vcpu.el1.sctlr & (1 << 0 | 1 << 2 | 1 << 12), 0);
        assert_eq!(
            (vcpu.x, vcpu.timers, vcpu.gic, vcpu.fp),
            ([0; 31], Timers::default(), Gic::default(), Fp::default())
        );
    }

    #[test]
    fn another_level_of_bbm_changes_that_field_alone() {
        for level in [0, 2, 3] {
            let view = everything().with_bbm(level);
            assert_eq!(view.read(7, 2) >> 52 & 0xf, u64::from(level));
            let own = everything().read(7, 2) >> 52 & 0xf;
            assert_eq!(view.with_bbm(own as u8), everything());
        }
    }

    #[test]
    fn it_goes_on_after_an_instruction_without_its_step_and_branch_state() {
        let mut vcpu = guest();
        vcpu.pstate = EL1H | 1 << 21 | 0b11 << 10 | 1 << 31;
        vcpu.advance();
        assert_eq!((vcpu.pc, vcpu.pstate), (0x4004, EL1H | 1 << 31));
        vcpu.pc = u64::MAX - 3;
        vcpu.advance();
        assert_eq!(vcpu.pc, 0);
    }

    #[test]
    fn an_undefined_instruction_is_taken_in_its_own_handler() {
        let mut vcpu = guest();
        vcpu.pstate = EL1H | 1 << 31;
        vcpu.inject(Exception::Undefined, &FEATURES);
        assert_eq!((vcpu.el1.elr, vcpu.el1.spsr, vcpu.el1.esr), (0x4000, EL1H | 1 << 31, 1 << 25));
        assert_eq!(vcpu.pc, 0x8_0200);
        // N stays, all masked; SCTLR_EL1.SPAN leaves PAN as it was.
        assert_eq!(vcpu.pstate, 0x3c5 | 1 << 31);
    }

    #[test]
    fn an_external_abort_says_where_and_what_it_was() {
        for (access, from, esr) in [
            (Access::Load, EL1H, 0x25 << 26 | 1 << 25 | 0x10),
            (Access::Store, EL1H, 0x25 << 26 | 1 << 25 | 1 << 6 | 0x10),
            (Access::Fetch, EL1H, 0x21 << 26 | 1 << 25 | 0x10),
            (Access::Load, 0, 0x24 << 26 | 1 << 25 | 0x10),
        ] {
            let mut vcpu = guest();
            vcpu.pstate = from;
            vcpu.inject_sea(access, 0xffff_8000_1234, &FEATURES);
            assert_eq!((vcpu.el1.esr, vcpu.el1.far), (esr, 0xffff_8000_1234), "{access:?}");
            assert_eq!(vcpu.pc, if from == 0 { 0x8_0400 } else { 0x8_0200 });
        }
        let mut vcpu = guest();
        let Cause::Abort(abort) = Cause::decode(0x24 << 26 | 1 << 7 | 0x06) else { panic!("an abort") };
        vcpu.inject_abort(abort, 0x77, &FEATURES);
        // On a walk.
        assert_eq!((vcpu.el1.esr & 0x3f, vcpu.el1.far), (0x14, 0x77));
    }

    #[test]
    fn a_guest_is_not_told_of_what_needs_its_hypervisor() {
        let view = everything();
        let field = |crm, op2, lowest: u32| view.read(crm, op2) >> lowest & 0xf;
        // PFR0: levels in AArch64 only, no EL2, EL3, RAS, SVE, SEL2, MPAM, AMU, RME; GICv3's registers; CSV2 without SCXTNUM.
        assert_eq!(view.read(4, 0), 0xf10f_0000_01ff_0011);
        // PFR1: BT, SSBS, CSV2_frac: no MTE, SME, NMI, GCS.
        assert_eq!(view.read(4, 1), 0x1_0000_00ff);
        assert_eq!([2, 4, 5, 7].map(|op2| view.read(4, op2)), [0; 4], "PFR2, ZFR0, SMFR0, FPFR0");
        // DFR0: breakpoints and watchpoints as few as can be; DoubleLock is not there. No PMU, SPE, trace, TRBE, BRBE.
        assert_eq!(view.read(5, 0), 0xf0_0010_1006);
        assert_eq!([1, 2, 4, 5].map(|op2| view.read(5, op2)), [0; 4], "DFR1, DFR2, AFR0, AFR1");
        assert_eq!((field(6, 0, 24), field(6, 1, 60), field(6, 2, 32), field(6, 2, 36)), (0, 0, 0, 0));
        // Atomics, RNDR, pointer authentication, MOPS.
        assert_eq!((field(6, 0, 20), field(6, 0, 60), field(6, 1, 4), field(6, 2, 16)), (15, 15, 15, 15));
        // 48 bits of addresses, no fine grained traps, the counter without its offset.
        assert_eq!((field(7, 0, 0), field(7, 0, 56), field(7, 0, 60)), (5, 0, 1));
        // No VHE, VMIDs, LORegions, HCRX.
        assert_eq!([8, 4, 16, 40].map(|lowest| field(7, 1, lowest)), [0; 4]);
        assert_eq!((field(7, 1, 20), field(7, 2, 52), field(7, 2, 40), field(7, 2, 24)), (15, 15, 0, 0));
        // TCR2, SCTLR2, permission indirection, 128-bit descriptors.
        assert_eq!(view.read(7, 3), 0xf000_0000_0000_0000);
        assert!((1..4).all(|crm| (0..8).all(|op2| view.read(crm, op2) == 0)), "AArch32");
    }

    #[test]
    fn fields_that_mean_least_at_another_value_than_zero_stay() {
        // TGran4 and TGran64 not there, no DoubleLock, no FP.
        let view = IdView::of(|crm, op2| match (crm, op2) {
            (7, 0) => 0xf << 28 | 0xf << 24,
            (5, 0) => 0xf << 36,
            (4, 0) => 0xf << 16 | 0xf << 20,
            _ => 0,
        });
        assert_eq!((view.read(7, 0), view.read(5, 0) >> 36), (0xff00_0000, 0xf));
        assert_eq!(view.read(4, 0), 0xff_0011);
        // FEAT_LPA2 goes, its granules stay.
        let lpa2 = IdView::of(|crm, op2| if (crm, op2) == (7, 0) { 1 << 28 | 2 << 20 } else { 0 });
        assert_eq!(lpa2.read(7, 0), 1 << 20);
    }

    #[test]
    fn an_id_register_is_read_into_the_register_that_is_named() {
        let view = everything();
        let mut vcpu = guest();
        let before = vcpu.x;
        let answer = answer_register(&mut vcpu, read(encoding(3, 0, 0, 4, 0), 5), &view, &FEATURES);
        assert_eq!((answer, vcpu.pc), (Answer::Answered, 0x4004));
        assert_eq!(vcpu.x[5], view.read(4, 0));
        let expected = core::array::from_fn(|i| if i == 5 { view.read(4, 0) } else { before[i] });
        assert_eq!(vcpu.x, expected);
        // XZR.
        assert_eq!(
            answer_register(&mut vcpu, read(encoding(3, 0, 0, 4, 0), 31), &view, &FEATURES),
            Answer::Answered
        );
        assert_eq!(vcpu.x, expected);
    }

    #[test]
    fn debug_registers_read_as_zero_and_ignore_writes() {
        let view = everything();
        for register in [
            encoding(2, 0, 0, 2, 2),  // MDSCR_EL1
            encoding(2, 0, 0, 15, 4), // DBGBVR15_EL1
            encoding(2, 0, 1, 3, 4),  // OSDLR_EL1
            encoding(2, 0, 7, 8, 6),  // DBGCLAIMSET_EL1
            encoding(2, 3, 0, 4, 0),  // DBGDTR_EL0
            encoding(3, 0, 1, 0, 1),  // ACTLR_EL1
        ] {
            let mut vcpu = guest();
            assert_eq!(answer_register(&mut vcpu, write(register, 3), &view, &FEATURES), Answer::Answered);
            assert_eq!((vcpu.pc, vcpu.x), (0x4004, guest().x), "{register:#x}");
            assert_eq!(answer_register(&mut vcpu, read(register, 3), &view, &FEATURES), Answer::Answered);
            assert_eq!(vcpu.x[3], 0, "{register:#x}");
        }
        let mut vcpu = guest();
        answer_register(&mut vcpu, read(encoding(2, 0, 1, 1, 4), 0), &view, &FEATURES);
        answer_register(&mut vcpu, read(encoding(3, 0, 12, 12, 5), 1), &view, &FEATURES);
        assert_eq!((vcpu.x[0], vcpu.x[1]), (8, 7), "OSLSR_EL1, ICC_SRE_EL1");
    }

    #[test]
    fn what_is_not_there_is_undefined() {
        let view = everything();
        for esr in [
            write(encoding(3, 0, 0, 4, 0), 0),  // an ID register
            write(encoding(2, 0, 1, 1, 4), 0),  // OSLSR_EL1
            read(encoding(3, 3, 9, 12, 0), 0),  // PMCR_EL0
            read(encoding(2, 1, 8, 0, 0), 0),   // branch records
            read(encoding(2, 1, 0, 1, 0), 0),   // trace
            read(encoding(3, 0, 5, 3, 0), 0),   // ERRIDR_EL1
            read(encoding(3, 0, 10, 4, 3), 0),  // LORC_EL1
            read(encoding(3, 0, 12, 11, 5), 0), // ICC_SGI1R_EL1 is only written
            read(encoding(3, 1, 0, 0, 6), 0),   // SMIDR_EL1
            write(encoding(3, 0, 0, 0, 0), 0),  // MIDR_EL1
        ] {
            let mut vcpu = guest();
            assert_eq!(answer_register(&mut vcpu, esr, &view, &FEATURES), Answer::Undefined, "{esr:#x}");
            assert_eq!((vcpu.el1.elr, vcpu.pc, vcpu.x), (0x4000, 0x8_0200, guest().x), "{esr:#x}");
        }
    }

    #[test]
    fn interrupts_to_other_cpus_are_the_hosts_to_send_and_to_deactivate() {
        for op2 in [1, 5, 6, 7] {
            let mut vcpu = guest();
            let esr = write(encoding(3, 0, 12, 11, op2), 4);
            assert_eq!(answer_register(&mut vcpu, esr, &everything(), &FEATURES), Answer::Sgi);
            assert_eq!(vcpu, guest());
        }
    }

    #[test]
    fn no_syndrome_stops_the_hypervisor() {
        let view = everything();
        for iss in 0..1 << 22 {
            let mut running = guest().running();
            answer_quickly(&mut running, 0x18 << 26 | iss, &view);
        }
        for iss in (0..1 << 25).step_by(0x1_0001) {
            answer_register(&mut guest(), 0x18 << 26 | iss, &view, &FEATURES);
        }
    }

    const RAISED: u64 = CTL_ENABLE | CTL_ISTATUS;
    const CNTV_TVAL: u64 = encoding(3, 3, 14, 3, 0);
    const CNTV_CTL: u64 = encoding(3, 3, 14, 3, 1);
    const CNTV_CVAL: u64 = encoding(3, 3, 14, 3, 2);

    #[test]
    fn a_timer_that_the_host_was_told_of_is_masked_and_looks_as_if_it_were_not() {
        let mut timers =
            Timers { cntv_ctl: RAISED, cntv_cval: 100, cntp_ctl: RAISED | CTL_IMASK, ..Timers::default() };
        timers.tell();
        assert_eq!((timers.cntv_told, timers.cntp_told), (true, false));
        let mut timer = Timer::installed(timers.cntv_ctl, timers.cntv_cval, timers.cntv_told);
        assert_eq!(timer, Timer { ctl: CTL_ENABLE | CTL_IMASK, cval: 100 });
        let mut x = [0; 31];
        let mut see = |encoding: u64| {
            assert!(timer.access(Trapped::new(read(encoding, 1)), &mut x, 150));
            x[1]
        };
        assert_eq!((see(CNTV_CTL), see(CNTV_CVAL), see(CNTV_TVAL)), (RAISED, 100, 0xffff_ffce));
        // As the hardware has it in the end.
        let end = Timer { ctl: timer.ctl | CTL_ISTATUS, ..timer };
        assert_eq!(end.removed(timer, true, true), (RAISED, true));
        assert_eq!(end.removed(timer, true, false), (RAISED, true));
    }

    #[test]
    fn a_timer_that_the_guest_sets_anew_may_stop_it_again() {
        let masked = Timer { ctl: CTL_ENABLE | CTL_IMASK, cval: 100 };
        let mut x = [0; 31];
        let mut after = |encoding: u64, value: u64| {
            let mut timer = masked;
            x[2] = value;
            let hides = timer.access(Trapped::new(write(encoding, 2)), &mut x, 150);
            (timer.ctl, timer.cval, hides)
        };
        assert_eq!(after(CNTV_CVAL, 200), (CTL_ENABLE, 200, false));
        assert_eq!(after(CNTV_CVAL, 120), (CTL_ENABLE | CTL_IMASK, 120, true));
        assert_eq!(after(CNTV_TVAL, 10), (CTL_ENABLE, 160, false));
        assert_eq!(after(CNTV_TVAL, 0xffff_fff6), (CTL_ENABLE | CTL_IMASK, 140, true));
        assert_eq!(after(CNTV_CTL, CTL_ENABLE), (CTL_ENABLE | CTL_IMASK, 100, true));
        // Its own mask, which is no longer ours.
        assert_eq!(after(CNTV_CTL, CTL_ENABLE | CTL_IMASK), (CTL_ENABLE | CTL_IMASK, 100, false));
        assert_eq!(after(CNTV_CTL, 0), (0, 100, false));
    }

    #[test]
    fn a_mask_of_the_guests_own_is_what_it_reads() {
        let ctl = RAISED | CTL_IMASK;
        let installed = Timer::installed(ctl, 100, false);
        assert_eq!(installed.ctl, CTL_ENABLE | CTL_IMASK);
        assert_eq!(Timer { ctl, cval: 100 }.removed(installed, false, true), (ctl, false));
        // Where accesses do not trap, one that it has set anew is its own.
        let masked = Timer::installed(RAISED, 100, true);
        assert_eq!(Timer { ctl, cval: 300 }.removed(masked, true, false), (ctl, false));
        assert_eq!(Timer { ctl: CTL_ENABLE, cval: 300 }.removed(masked, true, false), (CTL_ENABLE, false));
    }
}
