//! Enumerations and flags of the host's interface (DEN0137 B4.4).
//!
//! Invariant: an encoding that the specification reserves is refused; a reserved flag is kept and can be seen.
//!
//! Compared: B4.4.2 to B4.4.24; TF-RMM `smc-rmi.h`; Linux `rmi_smc.h`. They agree. RIPAS DEV (3) is TF-RMM's of 1.1, and has no encoding
//! for the host in 1.0. TF-RMM refuses RMI_DATA_CREATE with a reserved flag; the specification has no failure condition for it. Islet's
//! RTT entry states are of an earlier draft.

enumeration! {
    /// The realm hash algorithm (RHA; RmiHashAlgorithm, B4.4.7).
    RmiHashAlgorithm: u8 {
        /// SHA-256.
        Sha256 = 0,
        /// SHA-512.
        Sha512 = 1,
    }
}

enumeration! {
    /// Realm IPA state (RmiRipas, B4.4.23).
    RmiRipas: u8 {
        /// Nothing.
        Empty = 0,
        /// The realm's own code or data.
        Ram = 1,
        /// What was there, until the host took it away.
        Destroyed = 2,
    }
}

enumeration! {
    /// State of an RTT entry (RmiRttEntryState, B4.4.24).
    RmiRttEntryState: u8 {
        /// It points to nothing.
        Unassigned = 0,
        /// It points to memory: the realm's at a protected IPA, the host's at an unprotected one.
        Assigned = 1,
        /// It points to an RTT.
        Table = 2,
    }
}

enumeration! {
    /// Why a REC was left (RmiRecExitReason, B4.4.17).
    RmiRecExitReason: u8 {
        /// A synchronous exception (RMI_EXIT_SYNC).
        Sync = 0,
        /// An IRQ (RMI_EXIT_IRQ).
        Irq = 1,
        /// An FIQ (RMI_EXIT_FIQ).
        Fiq = 2,
        /// A PSCI call (RMI_EXIT_PSCI).
        Psci = 3,
        /// RSI_IPA_STATE_SET (RMI_EXIT_RIPAS_CHANGE).
        RipasChange = 4,
        /// RSI_HOST_CALL (RMI_EXIT_HOST_CALL).
        HostCall = 5,
        /// An SError (RMI_EXIT_SERROR).
        Serror = 6,
    }
}

enumeration! {
    /// Whether the PMU of a REC overflowed (RmiPmuOverflowStatus, B4.4.10).
    RmiPmuOverflowStatus: u8 {
        /// It did not.
        NotActive = 0,
        /// It did.
        Active = 1,
    }
}

enumeration! {
    /// The host's answer to what a realm asks for (RmiResponse, B4.4.22): one bit, a flag of [`RmiRecEnterFlags`](super::RmiRecEnterFlags).
    RmiResponse: u8 {
        /// Yes.
        Accept = 0,
        /// No.
        Reject = 1,
    }
}

flags! {
    /// Flags of RMI_DATA_CREATE (RmiDataFlags B4.4.2, RmiDataMeasureContent B4.4.3; RmmDataFlags C1.1 is the same).
    RmiDataFlags {
        /// The contents are measured (RMI_MEASURE_CONTENT).
        MEASURE = 0,
    }
}
