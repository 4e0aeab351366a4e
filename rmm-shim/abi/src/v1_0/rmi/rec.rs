//! What host and RMM tell each other of a REC: at its creation, at its entry, at its exit (DEN0137 A2.3.3, A4.2, A4.3, A6.1, B4.4.13 to
//! B4.4.20).
//!
//! Invariant: bytes without a name should be zero on the way in and are zero on the way out.
//!
//! Compared: B4.4.13 to B4.4.20; TF-RMM `smc-rmi.h`, `gic.c`; Linux `rmi_smc.h`; Islet `run.rs`, `rec/params.rs`. The offsets agree, the
//! widths do not. exit_reason, ripas_value and pmu_ovf_status have 8 bits here, imm has 16; TF-RMM writes the first and the third with 64
//! and imm with 32, Linux reads ripas_value with 64. It is the same as long as the bytes above are zero, as they are here. Islet has a
//! size where ripas_top is. TF-RMM and Islet call the entry's list registers invalid by other rules: see [`RmiRecEnter::check`].

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::RmiResponse;
use crate::v1_0::{FailureCondition, is_granule_aligned};

flags! {
    /// Flags of RMI_REC_CREATE (RmiRecCreateFlags B4.4.13, RmiRecRunnable B4.4.21).
    RmiRecCreateFlags {
        /// It may be entered (RMI_RUNNABLE).
        RUNNABLE = 0,
    }
}

flags! {
    /// Flags of RMI_REC_ENTER (B4.4.15).
    RmiRecEnterFlags {
        /// The host has emulated the access that the last exit was for.
        EMUL_MMIO = 0,
        /// A Synchronous External Abort is to be injected.
        INJECT_SEA = 1,
        /// WFI is to be trapped.
        TRAP_WFI = 2,
        /// WFE is to be trapped.
        TRAP_WFE = 3,
        /// The host rejects the RIPAS change: see [`ripas_response`](Self::ripas_response).
        RIPAS_RESPONSE = 4,
    }
}

impl RmiRecEnterFlags {
    /// The host's answer to a RIPAS change.
    pub fn ripas_response(self) -> RmiResponse {
        if self.contains(Self::RIPAS_RESPONSE) { RmiResponse::Reject } else { RmiResponse::Accept }
    }
}

fields! {
    /// The MPIDR by which a REC is known (B4.4.18).
    RmiRecMpidr {
        /// Affinity level 0.
        aff0, with_aff0: 0, 4;
        /// Affinity level 1.
        aff1, with_aff1: 8, 8;
        /// Affinity level 2.
        aff2, with_aff2: 16, 8;
        /// Affinity level 3.
        aff3, with_aff3: 24, 8;
    }
}

impl RmiRecMpidr {
    /// The REC index: the affinity levels, next to each other (A2.3.3, B3.38).
    pub const fn index(self) -> u64 {
        self.aff0() | self.aff1() << 4 | self.aff2() << 12 | self.aff3() << 20
    }

    /// The MPIDR of the REC with this index, of which 28 bits are taken.
    pub const fn from_index(index: u64) -> Self {
        Self::from_bits(0)
            .with_aff0(index)
            .with_aff1(index >> 4)
            .with_aff2(index >> 12)
            .with_aff3(index >> 20)
    }
}

/// Parameters of a REC, in a granule of the host's (B4.4.19).
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct RmiRecParams {
    /// Flags.
    pub flags: RmiRecCreateFlags,
    _unused0: [u8; 0x100 - 0x8],
    /// Its MPIDR.
    pub mpidr: RmiRecMpidr,
    _unused1: [u8; 0x100 - 0x8],
    /// Where it begins.
    pub pc: u64,
    _unused2: [u8; 0x100 - 0x8],
    /// X0 to X7.
    pub gprs: [u64; 8],
    _unused3: [u8; 0x800 - 0x340],
    /// The number of auxiliary granules.
    pub num_aux: u64,
    /// Their PAs.
    pub aux: [u64; 16],
    _unused4: [u8; 0x1000 - 0x888],
}

layout!(RmiRecParams: 0x1000 {
    flags: 0x0, mpidr: 0x100, pc: 0x200, gprs: 0x300, num_aux: 0x800, aux: 0x808,
});

impl RmiRecParams {
    /// The failure conditions of RMI_REC_CREATE for a REC at the PA `rec` that depend on input values and on `aux_count`, the number of
    /// auxiliary granules of each REC of the realm, alone.
    ///
    /// # Errors
    ///
    /// num_aux, aux_align, aux_alias.
    pub fn check(&self, rec: u64, aux_count: u64) -> Result<(), FailureCondition> {
        let aux = usize::try_from(self.num_aux).ok().and_then(|count| self.aux.get(..count));
        let (Some(aux), true) = (aux, self.num_aux == aux_count) else {
            return Err(FailureCondition { id: "num_aux", value: self.num_aux });
        };
        if let Some(&unaligned) = aux.iter().find(|&&address| !is_granule_aligned(address)) {
            return Err(FailureCondition { id: "aux_align", value: unaligned });
        }
        for (index, &address) in aux.iter().enumerate() {
            FailureCondition::unless(
                address != rec && !aux[..index].contains(&address),
                "aux_alias",
                address,
            )?;
        }
        Ok(())
    }

    /// What of it is hashed when the RIM is extended (B4.3.12.4): the rest is zero.
    pub fn measured(&self) -> Self {
        Self { flags: self.flags, pc: self.pc, gprs: self.gprs, ..Self::zeroed() }
    }
}

/// The fields of ICH_HCR_EL2 that are the host's (A6.1): UIE, LRENPIE, NPIE, VGrp0EIE, VGrp0DIE, VGrp1EIE, VGrp1DIE, TDIR. On exit,
/// EOIcount is told too.
pub const ICH_HCR_HOST: u64 = 0b111_1111 << 1 | 1 << 14;

/// `ICH_LR<n>_EL2.HW`.
const ICH_LR_HW: u64 = 1 << 61;

/// From the host, on REC entry (B4.4.14).
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct RmiRecEnter {
    /// Flags.
    pub flags: RmiRecEnterFlags,
    _unused0: [u8; 0x200 - 0x8],
    /// X0 to X30, where the exit before asks for them.
    pub gprs: [u64; 31],
    _unused1: [u8; 8],
    /// ICH_HCR_EL2.
    pub gicv3_hcr: u64,
    /// `ICH_LR<n>_EL2`.
    pub gicv3_lrs: [u64; 16],
    _unused2: [u8; 0x800 - 0x388],
}

layout!(RmiRecEnter: 0x800 { flags: 0x0, gprs: 0x200, gicv3_hcr: 0x300, gicv3_lrs: 0x308, });

impl RmiRecEnter {
    /// What of rec_gicv3, the failure condition of RMI_REC_ENTER (status RMI_ERROR_REC), depends on the values alone: a field of
    /// ICH_HCR_EL2 that is not the host's, and HW in one of the first `lrs` list registers. Whether they are valid for the GIC is left:
    /// the priority bits and INTIDs that it has.
    ///
    /// TF-RMM lets HW pass in a list register whose state is invalid, and refuses two with one INTID; Islet looks at HW only.
    ///
    /// # Errors
    ///
    /// rec_gicv3, with the register's value.
    pub fn check(&self, lrs: usize) -> Result<(), FailureCondition> {
        FailureCondition::unless(self.gicv3_hcr & !ICH_HCR_HOST == 0, "rec_gicv3", self.gicv3_hcr)?;
        for &lr in self.gicv3_lrs.iter().take(lrs) {
            FailureCondition::unless(lr & ICH_LR_HW == 0, "rec_gicv3", lr)?;
        }
        Ok(())
    }
}

/// To the host, on REC exit (B4.4.16).
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct RmiRecExit {
    /// An [`RmiRecExitReason`](super::RmiRecExitReason).
    pub exit_reason: u8,
    _unused0: [u8; 0x100 - 0x1],
    /// ESR_EL2, as much of it as the host may see.
    pub esr: u64,
    /// FAR_EL2, likewise.
    pub far: u64,
    /// HPFAR_EL2, likewise.
    pub hpfar: u64,
    _unused1: [u8; 0x200 - 0x118],
    /// X0 to X30, likewise.
    pub gprs: [u64; 31],
    _unused2: [u8; 8],
    /// ICH_HCR_EL2.
    pub gicv3_hcr: u64,
    /// `ICH_LR<n>_EL2`.
    pub gicv3_lrs: [u64; 16],
    /// ICH_MISR_EL2.
    pub gicv3_misr: u64,
    /// ICH_VMCR_EL2.
    pub gicv3_vmcr: u64,
    _unused3: [u8; 0x400 - 0x398],
    /// CNTP_CTL_EL0.
    pub cntp_ctl: u64,
    /// CNTP_CVAL_EL0.
    pub cntp_cval: u64,
    /// CNTV_CTL_EL0.
    pub cntv_ctl: u64,
    /// CNTV_CVAL_EL0.
    pub cntv_cval: u64,
    _unused4: [u8; 0x500 - 0x420],
    /// First IPA of the RIPAS change that the realm asks for.
    pub ripas_base: u64,
    /// Its end.
    pub ripas_top: u64,
    /// An [`RmiRipas`](super::RmiRipas).
    pub ripas_value: u8,
    _unused5: [u8; 0x600 - 0x511],
    /// The immediate of a host call.
    pub imm: u16,
    _unused6: [u8; 0x700 - 0x602],
    /// An [`RmiPmuOverflowStatus`](super::RmiPmuOverflowStatus).
    pub pmu_ovf_status: u8,
    _unused7: [u8; 0x800 - 0x701],
}

layout!(RmiRecExit: 0x800 {
    exit_reason: 0x0, esr: 0x100, far: 0x108, hpfar: 0x110, gprs: 0x200,
    gicv3_hcr: 0x300, gicv3_lrs: 0x308, gicv3_misr: 0x388, gicv3_vmcr: 0x390,
    cntp_ctl: 0x400, cntp_cval: 0x408, cntv_ctl: 0x410, cntv_cval: 0x418,
    ripas_base: 0x500, ripas_top: 0x508, ripas_value: 0x510, imm: 0x600, pmu_ovf_status: 0x700,
});

/// Both, in a granule of the host's (B4.4.20).
#[derive(Clone, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct RmiRecRun {
    /// What the host says.
    pub enter: RmiRecEnter,
    /// What it is told.
    pub exit: RmiRecExit,
}

layout!(RmiRecRun: 0x1000 { enter: 0x0, exit: 0x800, });
