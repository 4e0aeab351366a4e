//! The EL2 registers of one CPU: the host uses all that the CPU has, and nothing it does traps but what must.
//!
//! Invariant: what is set here does not depend on what was in the registers before (they are UNKNOWN at reset), and a
//! register that a feature brings is written only if the feature is there.
//!
//! What must: SMC, to relay PSCI; stage 2; the buffers of profiling (SPE) and trace (TRBE), which walk stage 2 by themselves.
//! References: Arm ARM D24.2 for each register, Linux `booting.rst` for what a kernel expects of the level above.

use core::arch::asm;

use arm_sysregs::el0::accessors::{read_pmcr_el0, write_pmcr_el0};
use arm_sysregs::el0::registers::PmcrEl0;
use arm_sysregs::el1::{accessors::*, registers::*};
use arm_sysregs::el2::{accessors::*, registers::*};
use arm_sysregs::{read_sysreg, write_sysreg};

use super::inject::EntryFeatures;
use crate::caps::detect::{self, IdRegisters};
use crate::machine::AFFINITY;
use crate::mapping::Capabilities;
use crate::stage1::SCTLR_EL1_OFF;
use crate::stage2::CpuLimits;

// `arm-sysregs` 0.5.2 has BRBCR_EL1's encoding under this name.
write_sysreg!(brbcr_el2: s2_4_c9_c0_0, u64, safe);
write_sysreg!(zcr_el2: s3_4_c1_c2_0, u64, safe);
write_sysreg!(smcr_el2: s3_4_c1_c2_6, u64, safe);
write_sysreg!(smprimap_el2: s3_4_c1_c2_5, u64, safe);
write_sysreg!(pmscr_el2: s3_4_c9_c9_0, u64, safe);
write_sysreg!(pmblimitr_el1: s3_0_c9_c10_0, u64, safe);
write_sysreg!(trblimitr_el1: s3_0_c9_c11_0, u64, safe);
write_sysreg!(lorc_el1: s3_0_c10_c4_3, u64, safe);
read_sysreg!(pmbidr_el1: s3_0_c9_c10_7, u64, safe);
read_sysreg!(trbidr_el1: s3_0_c9_c11_7, u64, safe);

/// Vector length fields that ask for the longest there is.
const LONGEST: u64 = 0xf;
const SMCR_EZT0: u64 = 1 << 30;
const SMCR_FA64: u64 = 1 << 31;
const SMFR0_FA64: u64 = 1 << 63;
/// A profiling or trace buffer that EL3 keeps for itself.
const BUFFER_OWNED_ABOVE: u64 = 1 << 4;
/// `MDCR_EL2.TPMS`: profiling controls trap. Without `E2PB` and `E2TB` the buffers' registers do too.
const MDCR_TPMS: u64 = 1 << 14;
const BRBCR_CC_MPRED: u64 = 1 << 3 | 1 << 4;
const PMU_V3P1: u8 = 0b0100;
const PMU_V3P5: u8 = 0b0110;
const PMU_V3P9: u8 = 0b1001;
const PMU_IMPLEMENTATION_DEFINED: u8 = 0xf;
const DEBUG_V8P9: u8 = 0b1011;
const SPSR_EL1H_MASKED: u64 = 0b1111 << 6 | 0b0101;

/// What the rest of EL2 wants to know of a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// For stage 2.
    pub limits: CpuLimits,
    /// For exceptions that the host is made to take.
    pub entry: EntryFeatures,
    /// FEAT_SCTLR2: `SCTLR2_EL1` exists.
    pub sctlr2: bool,
    /// FEAT_GCS: `GCSCR_EL1` exists.
    pub gcs: bool,
    /// How its translations may change.
    pub capabilities: Capabilities,
}

impl Features {
    /// The running CPU's, with `bbm` as [`Features::of`] takes it.
    pub fn read(bbm: Option<u8>) -> Self {
        Self::of(&read_id_registers(), bbm)
    }

    /// Those of the CPU that says `id` of itself, at level `bbm` of FEAT_BBM if that is given. Only a test build believes more than
    /// the CPU has.
    pub fn of(id: &IdRegisters, bbm: Option<u8>) -> Self {
        let mmfr0 = IdAa64mmfr0El1::from_bits_retain(id.mmfr0);
        let mmfr1 = IdAa64mmfr1El1::from_bits_retain(id.mmfr1);
        let mmfr3 = IdAa64mmfr3El1::from_bits_retain(id.mmfr3);
        let pfr1 = IdAa64pfr1El1::from_bits_retain(id.pfr1);
        let own = detect::capabilities(id);
        let at_level = if cfg!(feature = "trial") { detect::believed } else { detect::lowered };
        Self {
            limits: CpuLimits { pa_range: mmfr0.parange(), vmid_16_bits: mmfr1.vmidbits() == 0b0010 },
            entry: EntryFeatures {
                pan: mmfr1.pan() != 0,
                ssbs: pfr1.ssbs() != 0,
                tco: pfr1.mte() >= 0b0010,
                nmi: pfr1.nmi() != 0,
            },
            sctlr2: mmfr3.sctlrx() != 0,
            gcs: pfr1.gcs() != 0,
            capabilities: bbm.map_or(own, |level| at_level(own, level)),
        }
    }
}

/// What the running CPU says of itself.
pub fn read_id_registers() -> IdRegisters {
    IdRegisters {
        midr: read_midr_el1().bits(),
        mmfr0: read_id_aa64mmfr0_el1().bits(),
        mmfr1: read_id_aa64mmfr1_el1().bits(),
        mmfr2: read_id_aa64mmfr2_el1().bits(),
        mmfr3: read_id_aa64mmfr3_el1().bits(),
        isar0: read_id_aa64isar0_el1().bits(),
        pfr1: read_id_aa64pfr1_el1().bits(),
    }
}

/// The IPA of the page at virtual address `far` of EL1, for a fault that leaves `HPFAR_EL2` unknown; nothing if EL1's walk
/// does not get that far now.
pub fn ipa_of_page(far: u64) -> Option<u64> {
    const FAILED: u64 = 1;
    const PAGE: u64 = 0x0000_ffff_ffff_f000;
    let kept = read_par_el1().bits();
    // SAFETY: translates as EL1 does (its context is the one installed) and writes PAR_EL1 only, which EL1 gets back.
    let par = unsafe {
        asm!("at s1e1r, {}", "isb", in(reg) far, options(nostack));
        let par = read_par_el1().bits();
        write_par_el1(ParEl1::from_bits_retain(kept));
        par
    };
    (par & FAILED == 0).then_some(par & PAGE)
}

impl Features {
    /// Whether a CPU with these can do what was prepared for one with `others`, but for the changes of its translations: what those take
    /// is admission's to settle.
    pub fn suffice(&self, others: &Self) -> bool {
        self.limits.pa_bits() >= others.limits.pa_bits()
            && *self == Self { limits: self.limits, capabilities: self.capabilities, ..*others }
    }
}

/// The running CPU's affinity: `MPIDR_EL1` without its flags.
pub fn affinity() -> u64 {
    read_mpidr_el1().bits() & AFFINITY
}

/// Prepares this CPU's EL2 and EL1 for the host. Stage 2 is installed, and turned on, after it.
///
/// A CPU that speculates AT instructions at EL2 (Cortex-A55 1530923, A57 1319537, A72 1319367, A76 1165522) may walk EL1's translations
/// meanwhile, through registers that are UNKNOWN until they are written. So stage 1 of EL1 is off from the entry code on, and stage 2
/// is turned on only when its registers are set; what such a walk left in the TLB goes with [`crate::stage2::install::install`]'s
/// invalidation. With one VMID, never changed afterwards, there is no other moment at which these errata matter.
///
/// # Safety
/// Runs at EL2 with the EL2 map on, before this CPU enters the host.
pub unsafe fn prepare(features: &Features) {
    // SAFETY: every register concerns EL1 and EL0 only, or traps from there, and the host does not run yet.
    unsafe {
        el1(features);
        asm!("isb", options(nostack));
        traps(features);
        vectors_and_floating_point();
        debug_and_profiling();
        interrupts_and_timers();
        fine_grained_traps();
        asm!("isb", options(nostack));
    }
}

/// `HCR_EL2`, `HCRX_EL2` and the small ones.
unsafe fn traps(features: &Features) {
    let (pfr0, pfr1, pfr2) = (read_id_aa64pfr0_el1(), read_id_aa64pfr1_el1(), read_id_aa64pfr2_el1());
    let (isar1, isar2) = (read_id_aa64isar1_el1(), read_id_aa64isar2_el1());
    let (mmfr1, mmfr3) = (read_id_aa64mmfr1_el1(), read_id_aa64mmfr3_el1());

    let mut hcr = HcrEl2::SWIO | HcrEl2::RW | HcrEl2::TSC;
    let pauth = isar1.apa() != 0 || isar1.api() != 0 || isar2.apa3() != 0;
    hcr.set(HcrEl2::APK | HcrEl2::API, pauth);
    hcr.set(HcrEl2::ATA, pfr1.mte() >= 0b0010);
    hcr.set(HcrEl2::ENSCXT, pfr0.csv2() >= 0b0010 || pfr1.csv2_frac() >= 0b0010);
    hcr.set(HcrEl2::FIEN, pfr0.ras() >= 0b0010);
    // Nothing else makes a system register trap on QEMU's CPUs: ACTLR_EL1 does where it is tested that a trap is answered and counted.
    hcr.set(HcrEl2::TACR, cfg!(feature = "stand-in"));

    let mut hcrx = HcrxEl2::empty();
    hcrx.set(HcrxEl2::MSCEN, isar2.mops() != 0);
    hcrx.set(HcrxEl2::TCR2EN, mmfr3.tcrx() != 0);
    hcrx.set(HcrxEl2::SCTLR2EN, features.sctlr2);
    hcrx.set(HcrxEl2::D128EN, mmfr3.d128() != 0);
    hcrx.set(HcrxEl2::GCSEN, features.gcs);
    hcrx.set(HcrxEl2::ENFPM, pfr2.fpmr() != 0);
    hcrx.set(HcrxEl2::ENALS, isar1.ls64() >= 0b0001);
    hcrx.set(HcrxEl2::ENASR, isar1.ls64() >= 0b0010);
    hcrx.set(HcrxEl2::ENAS0, isar1.ls64() >= 0b0011);

    // SAFETY: the caller's.
    unsafe {
        write_hcr_el2(hcr);
        if mmfr1.hcx() != 0 {
            write_hcrx_el2(hcrx);
        }
        write_hacr_el2(0);
        if pfr0.mpam() != 0 || pfr1.mpam_frac() != 0 {
            write_mpam2_el2(Mpam2El2::ENMPAMSM);
            if read_mpamidr_el1().contains(MpamidrEl1::HAS_HCR) {
                write_mpamhcr_el2(MpamhcrEl2::empty());
            }
        }
    }
    write_hstr_el2(0);
    write_vpidr_el2(VpidrEl2::from_bits_retain(read_midr_el1().bits()));
    write_vmpidr_el2(VmpidrEl2::from_bits_retain(read_mpidr_el1().bits()));
    if mmfr1.lo() != 0 {
        write_lorc_el1(0);
    }
}

/// FP, SVE and SME at full length, untrapped.
unsafe fn vectors_and_floating_point() {
    let (sve, sme) = (read_id_aa64pfr0_el1().sve() != 0, read_id_aa64pfr1_el1().sme());
    // The trap bits of what is not there are RES1.
    let mut cptr = CptrEl2::RES1;
    cptr.set(CptrEl2::TZ, !sve);
    cptr.set(CptrEl2::TSM, sme == 0);
    // SAFETY: the caller's.
    unsafe {
        write_cptr_el2(cptr);
        // The lengths trap until then.
        asm!("isb", options(nostack));
    }
    if sve {
        write_zcr_el2(LONGEST);
    }
    if sme != 0 {
        let fa64 = if read_id_aa64smfr0_el1().bits() & SMFR0_FA64 != 0 { SMCR_FA64 } else { 0 };
        let zt0 = if sme >= 2 { SMCR_EZT0 } else { 0 };
        write_smcr_el2(LONGEST | fa64 | zt0);
        write_smprimap_el2(0);
    }
}

/// The PMU, self-hosted debug and branch records belong to the host; profiling and trace buffers to nobody.
unsafe fn debug_and_profiling() {
    let dfr0 = read_id_aa64dfr0_el1();
    let mut mdcr = 0;
    if dfr0.pmuver() != 0 && dfr0.pmuver() != PMU_IMPLEMENTATION_DEFINED {
        let pmcr = read_pmcr_el0();
        // All event counters are the host's: HPMN = PMCR_EL0.N.
        mdcr |= u64::from(pmcr.n());
        // They do not count what EL2 does: HPMD from PMUv3p1 on, HCCD from PMUv3p5 on.
        if dfr0.pmuver() >= PMU_V3P1 {
            mdcr |= MdcrEl2::HPMD.bits();
        }
        if dfr0.pmuver() >= PMU_V3P5 {
            mdcr |= MdcrEl2::HCCD.bits();
        }
        // Off, and no counter overflows into an interrupt before the host looks.
        write_pmcr_el0(PmcrEl0::empty());
    }
    // Profiling and trace buffers walk stage 2 at any moment, and take a broken entry for the end of their buffer, not for a reason to
    // try again (Arm ARM D8.2, I_JZRDG): the host gets neither. EL2 owns them, off; the host reads so in PMBIDR_EL1.P and TRBIDR_EL1.P.
    if dfr0.pmsver() != 0 {
        if read_pmbidr_el1() & BUFFER_OWNED_ABOVE == 0 {
            write_pmblimitr_el1(0);
            write_pmscr_el2(0);
        }
        mdcr |= MDCR_TPMS;
    }
    if dfr0.tracebuffer() != 0 && read_trbidr_el1() & BUFFER_OWNED_ABOVE == 0 {
        write_trblimitr_el1(0);
    }
    write_mdcr_el2(MdcrEl2::from_bits_retain(mdcr));
    if dfr0.brbe() != 0 {
        self::write_brbcr_el2(BRBCR_CC_MPRED);
    }
}

/// GICv3 system registers and both timers at EL1, with no offset.
unsafe fn interrupts_and_timers() {
    if read_id_aa64pfr0_el1().gic() != 0 {
        // SAFETY: the caller's.
        unsafe {
            write_icc_sre_el2(IccSreEl2::SRE | IccSreEl2::DFB | IccSreEl2::DIB | IccSreEl2::ENABLE);
            asm!("isb", options(nostack));
            if read_icc_sre_el2().contains(IccSreEl2::SRE) {
                write_ich_hcr_el2(IchHcrEl2::empty());
                super::switch::clear_list_registers();
            }
        }
    }
    write_cnthctl_el2(CnthctlEl2::EL0PCTEN | CnthctlEl2::EL1PCEN);
    write_cntvoff_el2(CntvoffEl2::empty());
    write_cnthp_ctl_el2(CnthpCtlEl2::empty());
}

/// FEAT_FGT and FEAT_FGT2: no traps. Bits named `n…` trap when clear, so each of those that Linux may use is set if its
/// feature is there, but for those of profiling, which traps anyway; a register of a newer feature still is undefined to the host.
unsafe fn fine_grained_traps() {
    let fgt = read_id_aa64mmfr0_el1().fgt();
    if fgt == 0 {
        return;
    }
    let (pfr0, pfr1, dfr0) = (read_id_aa64pfr0_el1(), read_id_aa64pfr1_el1(), read_id_aa64dfr0_el1());
    let (mmfr3, isar1) = (read_id_aa64mmfr3_el1(), read_id_aa64isar1_el1());
    let (sme, gcs, brbe) = (pfr1.sme() != 0, pfr1.gcs() != 0, dfr0.brbe() != 0);

    let mut registers = HfgrtrEl2::empty();
    registers.set(HfgrtrEl2::NSMPRI_EL1 | HfgrtrEl2::NTPIDR2_EL0, sme);
    registers.set(HfgrtrEl2::NPIR_EL1 | HfgrtrEl2::NPIRE0_EL1, mmfr3.s1pie() != 0);
    registers.set(HfgrtrEl2::NPOR_EL0 | HfgrtrEl2::NPOR_EL1, mmfr3.s1poe() != 0);
    registers.set(HfgrtrEl2::NS2POR_EL1, mmfr3.s2poe() != 0);
    registers.set(HfgrtrEl2::NMAIR2_EL1 | HfgrtrEl2::NAMAIR2_EL1, mmfr3.aie() != 0);
    registers.set(HfgrtrEl2::NGCS_EL0 | HfgrtrEl2::NGCS_EL1, gcs);
    registers.set(HfgrtrEl2::NRCWMASK_EL1, pfr1.the() != 0);
    registers.set(HfgrtrEl2::NACCDATA_EL1, isar1.ls64() >= 0b0011);

    let mut instructions = HfgitrEl2::empty();
    instructions.set(HfgitrEl2::NBRBINJ | HfgitrEl2::NBRBIALL, brbe);
    instructions.set(HfgitrEl2::NGCSPUSHM_EL1 | HfgitrEl2::NGCSSTR_EL1 | HfgitrEl2::NGCSEPP, gcs);

    let mut debug = HdfgrtrEl2::empty();
    debug.set(HdfgrtrEl2::NBRBIDR | HdfgrtrEl2::NBRBCTL | HdfgrtrEl2::NBRBDATA, brbe);
    let mut debug_writes = HdfgwtrEl2::empty();
    debug_writes.set(HdfgwtrEl2::NBRBCTL | HdfgwtrEl2::NBRBDATA, brbe);

    // SAFETY: the caller's.
    unsafe {
        write_hfgrtr_el2(registers);
        write_hfgwtr_el2(HfgwtrEl2::from_bits_retain(registers.bits()));
        write_hfgitr_el2(instructions);
        write_hdfgrtr_el2(debug);
        write_hdfgwtr_el2(debug_writes);
        if pfr0.amu() != 0 {
            write_hafgrtr_el2(HafgrtrEl2::empty());
        }
        if fgt >= 0b0010 {
            let mut debug2 = Hdfgrtr2El2::empty();
            let pmu_v3p9 = dfr0.pmuver() >= PMU_V3P9 && dfr0.pmuver() != PMU_IMPLEMENTATION_DEFINED;
            debug2.set(
                Hdfgrtr2El2::NPMICNTR_EL0 | Hdfgrtr2El2::NPMICFILTR_EL0 | Hdfgrtr2El2::NPMUACR_EL1,
                pmu_v3p9,
            );
            debug2.set(Hdfgrtr2El2::NMDSELR_EL1, dfr0.debugver() >= DEBUG_V8P9);
            debug2.set(Hdfgrtr2El2::NPMSSDATA | Hdfgrtr2El2::NPMSSCR_EL1, dfr0.pmss() != 0);
            let mut registers2 = Hfgrtr2El2::empty();
            registers2.set(Hfgrtr2El2::NRCWSMASK_EL1, pfr1.the() != 0);
            registers2.set(Hfgrtr2El2::NPFAR_EL1, pfr1.pfar() != 0);
            write_hdfgrtr2_el2(debug2);
            write_hdfgwtr2_el2(Hdfgwtr2El2::from_bits_retain(debug2.bits()));
            write_hfgrtr2_el2(registers2);
            write_hfgwtr2_el2(Hfgwtr2El2::from_bits_retain(registers2.bits()));
            write_hfgitr2_el2(Hfgitr2El2::empty());
        }
    }
}

/// EL1 as PSCI promises it to a CPU that begins (DEN0022, "Initial core configuration"): MMU and caches off, masked.
unsafe fn el1(features: &Features) {
    // SAFETY: the caller's.
    unsafe {
        write_sctlr_el1(SctlrEl1::from_bits_retain(SCTLR_EL1_OFF));
        if features.sctlr2 {
            write_sctlr2_el1(Sctlr2El1::empty());
        }
        if read_id_aa64mmfr3_el1().tcrx() != 0 {
            write_tcr2_el1(Tcr2El1::empty());
        }
        if features.gcs {
            write_gcscr_el1(GcscrEl1::empty());
            write_gcscre0_el1(Gcscre0El1::empty());
        }
        write_spsr_el2(SpsrEl2::from_bits_retain(SPSR_EL1H_MASKED));
    }
}
