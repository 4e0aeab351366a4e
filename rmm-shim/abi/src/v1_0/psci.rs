//! The PSCI functions that a realm may call (DEN0137, chapter B6 and A4.3.7).
//!
//! Invariant: what is not here is answered with PSCI_NOT_SUPPORTED.
//!
//! Compared: B6.3, B6.4; TF-RMM `runtime/rsi/psci.c`; PSCI (DEN0022). Where they differ:
//! - TF-RMM also takes CPU_SUSPEND, CPU_ON and AFFINITY_INFO by their 32-bit identifiers (0x84000001, 3, 4); the specification names only
//!   the 64-bit ones.
//! - The specification makes the context of CPU_ON 32 bits wide (B6.3.3), yet copies all of X3 to the new REC (B4.3.7.3, as PSCI has it
//!   and TF-RMM does). It is 64 bits wide here.

use super::FailureCondition;

/// The lowest version of PSCI that is allowed (B6.2).
pub const VERSION: crate::Version = crate::Version { major: 1, minor: 1 };

commands! {
    /// A PSCI function.
    PsciCommand {
        /// Whether a REC is on (B6.3.1).
        AffinityInfo = 0xc400_0004 "PSCI_AFFINITY_INFO" 2 -> 0,
        /// Turns the caller off (B6.3.2).
        CpuOff = 0x8400_0002 "PSCI_CPU_OFF" 0 -> 0,
        /// Turns a REC on (B6.3.3).
        CpuOn = 0xc400_0003 "PSCI_CPU_ON" 3 -> 0,
        /// Suspends the caller, in whatever state it asks for (B6.3.4).
        CpuSuspend = 0xc400_0001 "PSCI_CPU_SUSPEND" 3 -> 0,
        /// Whether a function is supported (B6.3.5).
        Features = 0x8400_000a "PSCI_FEATURES" 1 -> 0,
        /// Ends the realm (B6.3.6).
        SystemOff = 0x8400_0008 "PSCI_SYSTEM_OFF" 0 -> 0,
        /// Ends the realm, which would like to begin anew (B6.3.7).
        SystemReset = 0x8400_0009 "PSCI_SYSTEM_RESET" 0 -> 0,
        /// The version, in X0 (B6.3.8).
        Version = 0x8400_0000 "PSCI_VERSION" 0 -> 0,
    }
}

impl PsciCommand {
    /// Whether it can end in a REC exit due to PSCI (A4.3.7).
    pub const fn exits(self) -> bool {
        !matches!(self, Self::Version | Self::Features)
    }

    /// Whether the host then has to call RMI_PSCI_COMPLETE: those that name another REC by its MPIDR (A4.3.7).
    pub const fn needs_completion(self) -> bool {
        matches!(self, Self::CpuOn | Self::AffinityInfo)
    }
}

enumeration! {
    /// What X0 holds afterwards (PsciReturnCode, B6.4.2).
    PsciReturnCode: i64 {
        /// An address is not a protected IPA.
        InvalidAddress = -9,
        /// Disabled.
        Disabled = -8,
        /// Not present.
        NotPresent = -7,
        /// Internal failure.
        InternalFailure = -6,
        /// Was turned on already, and is not yet.
        OnPending = -5,
        /// Is on already.
        AlreadyOn = -4,
        /// Denied, by the host.
        Denied = -3,
        /// An argument is wrong.
        InvalidParameters = -2,
        /// No such function.
        NotSupported = -1,
        /// Success; of AFFINITY_INFO: on.
        Success = 0,
        /// Of AFFINITY_INFO: off.
        Off = 1,
    }
}

impl PsciReturnCode {
    /// As it lies in a register.
    pub const fn to_register(self) -> u64 {
        self.bits() as u64
    }
}

registers! {
    inputs of PsciCommand;
    /// Input values of PSCI_AFFINITY_INFO (B6.3.1).
    AffinityInfo[2] {
        /// The affinity fields of an MPIDR.
        target_affinity: u64,
        /// Which of them count: 0 for all.
        lowest_affinity_level: u32,
    }
    /// Input values of PSCI_CPU_ON (B6.3.3).
    CpuOn[3] {
        /// The affinity fields of the MPIDR of the REC to be turned on.
        target_cpu: u64,
        /// IPA at which it begins.
        entry_point_address: u64,
        /// What it finds in X0.
        context_id: u64,
    }
    /// Input values of PSCI_CPU_SUSPEND (B6.3.4): all are ignored.
    CpuSuspend[3] {
        /// A power state.
        power_state: u32,
        /// Not used, because the context is kept.
        entry_point_address: u64,
        /// Not used either.
        context_id: u64,
    }
    /// Input values of PSCI_FEATURES (B6.3.5).
    Features[1] {
        /// The function asked about.
        psci_func_id: u32,
    }
}

impl AffinityInfo {
    /// The failure condition that depends on the input values alone.
    ///
    /// # Errors
    ///
    /// target_bound.
    pub const fn check(&self) -> Result<(), FailureCondition> {
        let level = self.lowest_affinity_level;
        FailureCondition::unless(level == 0, "target_bound", level as u64)
    }
}
