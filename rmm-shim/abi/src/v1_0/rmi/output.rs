//! The output values of the commands of the host that have any beside the status in X0: X1 and above (DEN0137 B4.3).
//!
//! Invariant: a bit that is no value's is zero.
//!
//! Compared: the tables "Output values" of B4.3; TF-RMM `smc-rmi.h` and `handler.c`; Linux `rmi_cmds.h`. They agree.

use super::{RmiCommand, RmiRipas, RmiRttEntryState, UnprotectedDescriptor};

registers! {
    outputs of RmiCommand;
    /// Output values of RMI_DATA_DESTROY (B4.3.3).
    DataDestroy[2] {
        /// PA of the granule, if it succeeded.
        data: u64,
        /// End of the IPAs, from the input's on, whose entries are not live; also with RMI_ERROR_RTT; 0 with other errors.
        top: u64,
    }
    /// Output values of RMI_FEATURES (B4.3.4).
    Features[1] {
        /// For index 0 an [`RmiFeatureRegister0`](super::RmiFeatureRegister0), else 0.
        value: u64,
    }
    /// Output values of RMI_REC_AUX_COUNT (B4.3.11).
    RecAuxCount[1] {
        /// At most 16.
        aux_count: u64,
    }
    /// Output values of RMI_RTT_DESTROY (B4.3.16).
    RttDestroy[2] {
        /// PA of the RTT, if it succeeded.
        rtt: u64,
        /// End of the IPAs, from the input's on, whose entries are not live; also with RMI_ERROR_RTT; 0 with other errors.
        top: u64,
    }
    /// Output values of RMI_RTT_FOLD (B4.3.17).
    RttFold[1] {
        /// PA of the RTT, if it succeeded.
        rtt: u64,
    }
    /// Output values of RMI_RTT_INIT_RIPAS (B4.3.18).
    RttInitRipas[1] {
        /// End of the IPAs whose RIPAS was set, if it succeeded.
        out_top: u64,
    }
    /// Output values of RMI_RTT_READ_ENTRY (B4.3.20).
    RttReadEntry[4] {
        /// The level at which the walk ended (UInt64 in the specification, which does not say how level -1 is told: sign-extended here,
        /// as in TF-RMM).
        walk_level: i64,
        /// An [`RmiRttEntryState`].
        state: u8 as RmiRttEntryState,
        /// What the entry says: only the address of what is protected or a table, nothing of what is unassigned.
        desc: UnprotectedDescriptor,
        /// An [`RmiRipas`].
        ripas: u8 as RmiRipas,
    }
    /// Output values of RMI_RTT_SET_RIPAS (B4.3.21).
    RttSetRipas[1] {
        /// End of the IPAs whose RIPAS was set, if it succeeded.
        out_top: u64,
    }
    /// Output values of RMI_RTT_UNMAP_UNPROTECTED (B4.3.22).
    RttUnmapUnprotected[1] {
        /// End of the IPAs, from the input's on, whose entries are not live; also with RMI_ERROR_RTT; 0 with other errors.
        top: u64,
    }
    /// Output values of RMI_VERSION (B4.3.23): see [`negotiate`](crate::negotiate).
    Version[2] {
        /// Lower version.
        lower: crate::Version,
        /// Higher version.
        higher: crate::Version,
    }
}
