//! What the RMM tells of itself (DEN0137 A3.1, RMI_FEATURES B4.3.4, RmiFeatureRegister0 B4.4.6).
//!
//! Invariant: there is one feature register, of index 0; those of all other indices are zero.
//!
//! Compared: B4.4.6; Linux `rmi_smc.h`; TF-RMM `smc-rmi.h` before RMI 2.0. They agree on bits 41:0. TF-RMM has 1.1's fields above them,
//! and in RMI 2.0 the hash algorithms and MAX_RECS_ORDER stand in register 1. Islet's is of an earlier draft, with NUM_BPS and NUM_WPS
//! 4 bits wide.

fields! {
    /// Feature register 0.
    RmiFeatureRegister0 {
        /// S2SZ: the most bits that a realm's IPA may have.
        s2sz, with_s2sz: 0, 8;
        /// LPA2: 1 if a realm's tables may use it.
        lpa2, with_lpa2: 8, 1;
        /// SVE_EN: 1 if a realm may have SVE.
        sve_en, with_sve_en: 9, 1;
        /// SVE_VL: the longest vector, in 128 bits, minus one.
        sve_vl, with_sve_vl: 10, 4;
        /// NUM_BPS: breakpoints, minus one; 0 is reserved.
        num_bps, with_num_bps: 14, 6;
        /// NUM_WPS: watchpoints, minus one; 0 is reserved.
        num_wps, with_num_wps: 20, 6;
        /// PMU_EN: 1 if a realm may have a PMU.
        pmu_en, with_pmu_en: 26, 1;
        /// PMU_NUM_CTRS: its counters.
        pmu_num_ctrs, with_pmu_num_ctrs: 27, 5;
        /// HASH_SHA_256: 1 if a realm may be measured with SHA-256.
        hash_sha_256, with_hash_sha_256: 32, 1;
        /// HASH_SHA_512: 1 if a realm may be measured with SHA-512.
        hash_sha_512, with_hash_sha_512: 33, 1;
        /// GICV3_NUM_LRS: list registers that the host may fill, minus one.
        gicv3_num_lrs, with_gicv3_num_lrs: 34, 4;
        /// MAX_RECS_ORDER: a realm has at most 2 to this, minus one, RECs.
        max_recs_order, with_max_recs_order: 38, 4;
    }
}
