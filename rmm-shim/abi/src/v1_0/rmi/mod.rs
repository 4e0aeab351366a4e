//! The Realm Management Interface, from the host to the RMM (DEN0137, chapter B4).
//!
//! Invariant: the 23 commands of 1.0, no more; what others have added since is unknown here.
//!
//! Compared: the identifiers and register tables of B4.3.1 to B4.3.23; TF-RMM `smc-rmi.h` and the table of `handler.c`, which counts input
//! and output values; Linux `rmi_smc.h` and `rmi_cmds.h`. They agree, but that a comment of TF-RMM leaves out the status that
//! RMI_PSCI_COMPLETE reads in X3 (its table and its code have it). Islet has not all of the commands.

mod features;
pub mod input;
pub mod output;
mod realm;
mod rec;
mod status;
mod types;
mod unprotected;

pub use features::RmiFeatureRegister0;
pub use realm::{RmiRealmFlags, RmiRealmParams};
pub use rec::{
    ICH_HCR_HOST, RmiRecCreateFlags, RmiRecEnter, RmiRecEnterFlags, RmiRecExit, RmiRecMpidr, RmiRecParams,
    RmiRecRun,
};
pub use status::{RmiStatus, RmiStatusCode};
pub use types::{
    RmiDataFlags, RmiHashAlgorithm, RmiPmuOverflowStatus, RmiRecExitReason, RmiResponse, RmiRipas,
    RmiRttEntryState,
};
pub use unprotected::UnprotectedDescriptor;

commands! {
    /// A command of the host.
    RmiCommand {
        /// Makes a granule realm memory with contents that the host gives, before the realm runs (B4.3.1).
        DataCreate = 0xc400_0153 "RMI_DATA_CREATE" 5 -> 0,
        /// Makes a granule realm memory, with contents that nobody vouches for (B4.3.2).
        DataCreateUnknown = 0xc400_0154 "RMI_DATA_CREATE_UNKNOWN" 3 -> 0,
        /// Takes a granule of realm memory away (B4.3.3).
        DataDestroy = 0xc400_0155 "RMI_DATA_DESTROY" 2 -> 2,
        /// Reads a feature register (B4.3.4).
        Features = 0xc400_0165 "RMI_FEATURES" 1 -> 1,
        /// Gives a granule to the RMM (B4.3.5).
        GranuleDelegate = 0xc400_0151 "RMI_GRANULE_DELEGATE" 1 -> 0,
        /// Takes a granule back (B4.3.6).
        GranuleUndelegate = 0xc400_0152 "RMI_GRANULE_UNDELEGATE" 1 -> 0,
        /// Completes a PSCI call that names another REC (B4.3.7).
        PsciComplete = 0xc400_0164 "RMI_PSCI_COMPLETE" 3 -> 0,
        /// Lets a realm run (B4.3.8).
        RealmActivate = 0xc400_0157 "RMI_REALM_ACTIVATE" 1 -> 0,
        /// Makes a realm (B4.3.9).
        RealmCreate = 0xc400_0158 "RMI_REALM_CREATE" 2 -> 0,
        /// Destroys a realm (B4.3.10).
        RealmDestroy = 0xc400_0159 "RMI_REALM_DESTROY" 1 -> 0,
        /// How many auxiliary granules a REC takes (B4.3.11).
        RecAuxCount = 0xc400_0167 "RMI_REC_AUX_COUNT" 1 -> 1,
        /// Makes a REC (B4.3.12).
        RecCreate = 0xc400_015a "RMI_REC_CREATE" 3 -> 0,
        /// Destroys a REC (B4.3.13).
        RecDestroy = 0xc400_015b "RMI_REC_DESTROY" 1 -> 0,
        /// Runs a REC until its next exit (B4.3.14).
        RecEnter = 0xc400_015c "RMI_REC_ENTER" 2 -> 0,
        /// Makes an RTT, unfolding what was there (B4.3.15).
        RttCreate = 0xc400_015d "RMI_RTT_CREATE" 4 -> 0,
        /// Destroys an RTT that holds nothing (B4.3.16).
        RttDestroy = 0xc400_015e "RMI_RTT_DESTROY" 3 -> 2,
        /// Destroys a homogeneous RTT and puts what it said into its parent (B4.3.17).
        RttFold = 0xc400_0166 "RMI_RTT_FOLD" 3 -> 1,
        /// Sets RIPAS to RAM before the realm runs (B4.3.18).
        RttInitRipas = 0xc400_0168 "RMI_RTT_INIT_RIPAS" 3 -> 1,
        /// Maps the host's memory at an unprotected IPA (B4.3.19).
        RttMapUnprotected = 0xc400_015f "RMI_RTT_MAP_UNPROTECTED" 4 -> 0,
        /// Reads an RTT entry (B4.3.20).
        RttReadEntry = 0xc400_0161 "RMI_RTT_READ_ENTRY" 3 -> 4,
        /// Does what a realm has asked for by RSI_IPA_STATE_SET (B4.3.21).
        RttSetRipas = 0xc400_0169 "RMI_RTT_SET_RIPAS" 4 -> 1,
        /// Removes a mapping at an unprotected IPA (B4.3.22).
        RttUnmapUnprotected = 0xc400_0162 "RMI_RTT_UNMAP_UNPROTECTED" 3 -> 1,
        /// Which version is spoken (B4.3.23).
        Version = 0xc400_0150 "RMI_VERSION" 1 -> 2,
    }
}
