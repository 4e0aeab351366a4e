//! The registers of a virtual CPU, why it stopped, and the answers that EL2 gives alone.
//!
//! Invariants:
//! - Pure. What is in a [`Vcpu`] is what the guest would read; [`switch`](super::switch) puts it on a CPU and takes it off again.
//! - A guest sees the features of an [`IdView`] and no others: what that leaves out traps here and is undefined.
//! - Registers that are not in [`El1`] are the same for every guest (0, or trapped).

use super::inject::{EntryFeatures, Exception, Interrupted};
use super::syndrome::Access;
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
        /// `HPFAR_EL2`: known for the aborts of [`Abort::has_ipa`](super::syndrome::Abort::has_ipa).
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
    /// The guest wrote one of `ICC_SGI0R_EL1`, `ICC_SGI1R_EL1` and `ICC_ASGI1R_EL1`: nothing was changed.
    Sgi,
    /// There is no such register; the guest goes on in its handler.
    Undefined,
}

/// The ID registers that guests read (`op0` 3, `op1` 0, `CRn` 0): a machine's own, less what a guest cannot have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdView {
    /// By `CRm` (0 to 7) times 8 plus `op2`.
    values: [u64; 64],
}

impl IdView {
    /// Of a machine whose register with `CRm` (1 to 7) and `op2` (0 to 7) is `read(CRm, op2)`.
    pub fn of(read: impl Fn(usize, usize) -> u64) -> Self {
        let _ = read;
        Self { values: [0; 64] }
    }
}

/// Bytes of an A64 instruction.
const INSTRUCTION: u64 = 4;
/// What an instruction leaves behind when it is executed: the software step state and the branch type (Arm ARM D2.12.5, D8.4.6).
const SPSR_OF_ONE_INSTRUCTION: u64 = 1 << 21 | 0b11 << 10;
/// EL1 with its own stack pointer, everything masked.
const SPSR_EL1H_MASKED: u64 = 0b1111 << 6 | 0b0101;

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
            timers: Timers { cntp_ctl: 0, cntp_cval: 0, cntv_ctl: 0, cntv_cval: 0 },
            gic: Gic { hcr: 0, vmcr: 0, lrs: [0; 16], ap0r: [0; 4], ap1r: [0; 4], misr: 0 },
            fp: Fp { v: [[0; 2]; 32], fpcr: 0, fpsr: 0 },
        }
    }

    /// Goes on after the instruction that trapped.
    pub fn advance(&mut self) {
        self.pc = self.pc.wrapping_add(INSTRUCTION);
        self.pstate &= !SPSR_OF_ONE_INSTRUCTION;
    }

    /// Makes it take `exception` at the instruction at which it stopped. `FAR_EL1` is the caller's.
    pub fn inject(&mut self, exception: Exception, features: &EntryFeatures) {
        let _ = (exception, features, Interrupted::default());
    }

    /// Makes it take a synchronous External abort for an access of `far`.
    pub fn inject_sea(&mut self, access: Access, far: u64, features: &EntryFeatures) {
        let _ = (access, far, features);
    }
}

/// Answers the trapped access to a system register that `esr` (of class 0x18) describes.
pub fn answer_register(vcpu: &mut Vcpu, esr: u64, view: &IdView, features: &EntryFeatures) -> Answer {
    let _ = (vcpu, esr, view.values, features);
    Answer::Undefined
}
