//! The input values of each command of the host, X1 and above, and those of its failure conditions that depend on them alone (DEN0137
//! B4.3).
//!
//! Invariant: any registers give a value; a condition bears the ID that the command's section gives it.
//!
//! Compared: the tables "Input values" and "Failure conditions" of B4.3.1 to B4.3.23; TF-RMM `smc-rmi.h` and `runtime/rmi/`; Linux
//! `rmi_cmds.h`. They agree on the registers. TF-RMM's checks bear no IDs and come in its own order, as they may.

use super::{RmiCommand, RmiDataFlags, UnprotectedDescriptor};
use crate::v1_0::psci::PsciReturnCode;
use crate::v1_0::{FailureCondition, PAGE_LEVEL, RTT_LEVELS, is_level_aligned};

registers! {
    inputs of RmiCommand;
    /// Input values of RMI_DATA_CREATE (B4.3.1).
    DataCreate[5] {
        /// PA of the realm descriptor.
        rd: u64,
        /// PA of the granule that becomes the realm's.
        data: u64,
        /// IPA at which the realm finds it.
        ipa: u64,
        /// PA of the granule of the host's that has the contents.
        src: u64,
        /// Whether they are measured.
        flags: RmiDataFlags,
    }
    /// Input values of RMI_DATA_CREATE_UNKNOWN (B4.3.2).
    DataCreateUnknown[3] {
        /// PA of the realm descriptor.
        rd: u64,
        /// PA of the granule that becomes the realm's.
        data: u64,
        /// IPA at which the realm finds it.
        ipa: u64,
    }
    /// Input values of RMI_DATA_DESTROY (B4.3.3).
    DataDestroy[2] {
        /// PA of the realm descriptor.
        rd: u64,
        /// IPA of the granule.
        ipa: u64,
    }
    /// Input values of RMI_FEATURES (B4.3.4).
    Features[1] {
        /// Of the feature register.
        index: u64,
    }
    /// Input values of RMI_GRANULE_DELEGATE (B4.3.5).
    GranuleDelegate[1] {
        /// PA of the granule.
        addr: u64,
    }
    /// Input values of RMI_GRANULE_UNDELEGATE (B4.3.6).
    GranuleUndelegate[1] {
        /// PA of the granule.
        addr: u64,
    }
    /// Input values of RMI_PSCI_COMPLETE (B4.3.7).
    PsciComplete[3] {
        /// PA of the REC that called.
        calling_rec: u64,
        /// PA of the REC that it named.
        target_rec: u64,
        /// A [`PsciReturnCode`]: what the host says to it.
        status: i64 as PsciReturnCode,
    }
    /// Input values of RMI_REALM_ACTIVATE (B4.3.8).
    RealmActivate[1] {
        /// PA of the realm descriptor.
        rd: u64,
    }
    /// Input values of RMI_REALM_CREATE (B4.3.9).
    RealmCreate[2] {
        /// PA of the granule that becomes the realm descriptor.
        rd: u64,
        /// PA of the [`RmiRealmParams`](super::RmiRealmParams).
        params_ptr: u64,
    }
    /// Input values of RMI_REALM_DESTROY (B4.3.10).
    RealmDestroy[1] {
        /// PA of the realm descriptor.
        rd: u64,
    }
    /// Input values of RMI_REC_AUX_COUNT (B4.3.11).
    RecAuxCount[1] {
        /// PA of the realm descriptor.
        rd: u64,
    }
    /// Input values of RMI_REC_CREATE (B4.3.12).
    RecCreate[3] {
        /// PA of the realm descriptor.
        rd: u64,
        /// PA of the granule that becomes the REC.
        rec: u64,
        /// PA of the [`RmiRecParams`](super::RmiRecParams).
        params_ptr: u64,
    }
    /// Input values of RMI_REC_DESTROY (B4.3.13).
    RecDestroy[1] {
        /// PA of the REC.
        rec_ptr: u64,
    }
    /// Input values of RMI_REC_ENTER (B4.3.14).
    RecEnter[2] {
        /// PA of the REC.
        rec: u64,
        /// PA of the [`RmiRecRun`](super::RmiRecRun).
        run_ptr: u64,
    }
    /// Input values of RMI_RTT_CREATE (B4.3.15).
    RttCreate[4] {
        /// PA of the realm descriptor.
        rd: u64,
        /// PA of the granule that becomes the RTT.
        rtt: u64,
        /// First IPA that it describes.
        ipa: u64,
        /// Its level.
        level: i64,
    }
    /// Input values of RMI_RTT_DESTROY (B4.3.16).
    RttDestroy[3] {
        /// PA of the realm descriptor.
        rd: u64,
        /// First IPA that the RTT describes.
        ipa: u64,
        /// Its level.
        level: i64,
    }
    /// Input values of RMI_RTT_FOLD (B4.3.17).
    RttFold[3] {
        /// PA of the realm descriptor.
        rd: u64,
        /// First IPA that the RTT describes.
        ipa: u64,
        /// Its level.
        level: i64,
    }
    /// Input values of RMI_RTT_INIT_RIPAS (B4.3.18).
    RttInitRipas[3] {
        /// PA of the realm descriptor.
        rd: u64,
        /// First IPA of the range.
        base: u64,
        /// Its end.
        top: u64,
    }
    /// Input values of RMI_RTT_MAP_UNPROTECTED (B4.3.19).
    RttMapUnprotected[4] {
        /// PA of the realm descriptor.
        rd: u64,
        /// First IPA of the mapping.
        ipa: u64,
        /// Level of its entry.
        level: i64,
        /// What the entry is to say.
        desc: UnprotectedDescriptor,
    }
    /// Input values of RMI_RTT_READ_ENTRY (B4.3.20).
    RttReadEntry[3] {
        /// PA of the realm descriptor.
        rd: u64,
        /// First IPA that the entry describes.
        ipa: u64,
        /// Its level.
        level: i64,
    }
    /// Input values of RMI_RTT_SET_RIPAS (B4.3.21).
    RttSetRipas[4] {
        /// PA of the realm descriptor.
        rd: u64,
        /// PA of the REC that asked.
        rec_ptr: u64,
        /// First IPA of the range.
        base: u64,
        /// Its end.
        top: u64,
    }
    /// Input values of RMI_RTT_UNMAP_UNPROTECTED (B4.3.22).
    RttUnmapUnprotected[3] {
        /// PA of the realm descriptor.
        rd: u64,
        /// First IPA of the mapping.
        ipa: u64,
        /// Level of its entry.
        level: i64,
    }
    /// Input values of RMI_VERSION (B4.3.23).
    Version[1] {
        /// The version that the host would speak: see [`negotiate`](crate::negotiate).
        req: u64,
    }
}

/// The commands of which the alignment of some input values is all that can be checked.
macro_rules! granules {
    ($($name:ident { $($field:ident: $id:literal,)+ })+) => {$(
        impl $name {
            /// The failure conditions that depend on the input values alone.
            ///
            /// # Errors
            ///
            #[doc = concat!($($id, " ",)+)]
            pub const fn check(&self) -> Result<(), FailureCondition> {
                $(
                    if let Err(failure) = FailureCondition::unless_granule($id, self.$field) {
                        return Err(failure);
                    }
                )+
                Ok(())
            }
        }
    )+};
}

granules! {
    DataCreate { src: "src_align", data: "data_align", rd: "rd_align", ipa: "ipa_align", }
    DataCreateUnknown { data: "data_align", rd: "rd_align", ipa: "ipa_align", }
    DataDestroy { rd: "rd_align", ipa: "ipa_align", }
    GranuleDelegate { addr: "gran_align", }
    GranuleUndelegate { addr: "gran_align", }
    RealmActivate { rd: "rd_align", }
    RealmCreate { params_ptr: "params_align", rd: "rd_align", }
    RealmDestroy { rd: "rd_align", }
    RecAuxCount { rd: "rd_align", }
    RecCreate { params_ptr: "params_align", rec: "rec_align", rd: "rd_align", }
    RecDestroy { rec_ptr: "rec_align", }
    RecEnter { run_ptr: "run_align", rec: "rec_align", }
}

impl PsciComplete {
    /// The failure conditions that depend on the input values alone.
    ///
    /// # Errors
    ///
    /// alias, calling_align, target_align, status: no call permits another than PSCI_SUCCESS and PSCI_DENIED (B3.27).
    pub fn check(&self) -> Result<(), FailureCondition> {
        FailureCondition::unless(self.calling_rec != self.target_rec, "alias", self.target_rec)?;
        FailureCondition::unless_granule("calling_align", self.calling_rec)?;
        FailureCondition::unless_granule("target_align", self.target_rec)?;
        let status = PsciReturnCode::from_bits(self.status);
        let is_permitted = matches!(status, Ok(PsciReturnCode::Success | PsciReturnCode::Denied));
        FailureCondition::unless(is_permitted, "status", self.status as u64)
    }
}

/// level_bound and ipa_align of a command that makes or destroys an RTT: its parent entry lies in a level that there is. The realm's
/// starting level may forbid more.
fn check_structure(ipa: u64, level: i64) -> Result<(), FailureCondition> {
    let has_parent = level > *RTT_LEVELS.start() && level <= PAGE_LEVEL;
    FailureCondition::unless(has_parent, "level_bound", level as u64)?;
    FailureCondition::unless(is_level_aligned(ipa, level - 1), "ipa_align", ipa)
}

/// level_bound and ipa_align of a command on an entry of one of the levels from `first` on.
fn check_entry(ipa: u64, level: i64, first: i64) -> Result<(), FailureCondition> {
    FailureCondition::unless(level >= first && level <= PAGE_LEVEL, "level_bound", level as u64)?;
    FailureCondition::unless(is_level_aligned(ipa, level), "ipa_align", ipa)
}

/// The first level whose entries may be blocks (A5.5.4).
const FIRST_BLOCK_LEVEL: i64 = 1;

impl RttCreate {
    /// The failure conditions that depend on the input values alone.
    ///
    /// # Errors
    ///
    /// rd_align, level_bound, ipa_align, rtt_align.
    pub fn check(&self) -> Result<(), FailureCondition> {
        FailureCondition::unless_granule("rd_align", self.rd)?;
        check_structure(self.ipa, self.level)?;
        FailureCondition::unless_granule("rtt_align", self.rtt)
    }
}

impl RttDestroy {
    /// The failure conditions that depend on the input values alone.
    ///
    /// # Errors
    ///
    /// rd_align, level_bound, ipa_align.
    pub fn check(&self) -> Result<(), FailureCondition> {
        FailureCondition::unless_granule("rd_align", self.rd)?;
        check_structure(self.ipa, self.level)
    }
}

impl RttFold {
    /// The failure conditions that depend on the input values alone.
    ///
    /// # Errors
    ///
    /// rd_align, level_bound, ipa_align.
    pub fn check(&self) -> Result<(), FailureCondition> {
        FailureCondition::unless_granule("rd_align", self.rd)?;
        check_structure(self.ipa, self.level)
    }
}

impl RttInitRipas {
    /// The failure conditions that depend on the input values alone.
    ///
    /// # Errors
    ///
    /// rd_align, size_valid, top_gran_align.
    pub fn check(&self) -> Result<(), FailureCondition> {
        FailureCondition::unless_granule("rd_align", self.rd)?;
        FailureCondition::unless(self.base < self.top, "size_valid", self.top)?;
        FailureCondition::unless_granule("top_gran_align", self.top)
    }
}

impl RttMapUnprotected {
    /// The failure conditions that depend on the input values alone.
    ///
    /// # Errors
    ///
    /// rd_align, level_bound, ipa_align.
    pub fn check(&self) -> Result<(), FailureCondition> {
        FailureCondition::unless_granule("rd_align", self.rd)?;
        check_entry(self.ipa, self.level, FIRST_BLOCK_LEVEL)
    }

    /// Those that depend besides on whether the realm's tables use LPA2.
    ///
    /// # Errors
    ///
    /// attr_valid, addr_align.
    pub fn check_descriptor(&self, lpa2: bool) -> Result<(), FailureCondition> {
        let desc = self.desc;
        FailureCondition::unless(desc.is_valid(lpa2), "attr_valid", desc.0)?;
        FailureCondition::unless(desc.is_aligned(self.level, lpa2), "addr_align", desc.address(lpa2))
    }
}

impl RttReadEntry {
    /// The failure conditions that depend on the input values alone.
    ///
    /// # Errors
    ///
    /// rd_align, level_bound, ipa_align.
    pub fn check(&self) -> Result<(), FailureCondition> {
        FailureCondition::unless_granule("rd_align", self.rd)?;
        check_entry(self.ipa, self.level, *RTT_LEVELS.start())
    }
}

impl RttSetRipas {
    /// The failure conditions that depend on the input values alone.
    ///
    /// # Errors
    ///
    /// rd_align, rec_align, size_valid, top_gran_align.
    pub fn check(&self) -> Result<(), FailureCondition> {
        FailureCondition::unless_granule("rd_align", self.rd)?;
        FailureCondition::unless_granule("rec_align", self.rec_ptr)?;
        FailureCondition::unless(self.base < self.top, "size_valid", self.top)?;
        FailureCondition::unless_granule("top_gran_align", self.top)
    }
}

impl RttUnmapUnprotected {
    /// The failure conditions that depend on the input values alone.
    ///
    /// # Errors
    ///
    /// rd_align, level_bound, ipa_align.
    pub fn check(&self) -> Result<(), FailureCondition> {
        FailureCondition::unless_granule("rd_align", self.rd)?;
        check_entry(self.ipa, self.level, FIRST_BLOCK_LEVEL)
    }
}
