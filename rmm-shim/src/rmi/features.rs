//! What is spoken and what a realm can have: RMI_VERSION, RMI_FEATURES (B4.3.23, B4.3.4).
//!
//! Invariant: what a realm may ask for is what is told here.

use rmm_abi::negotiate;
use rmm_abi::v1_0::rmi::{RmiFeatureRegister0, RmiRealmParams, RmiStatus, input, output};

use super::{INPUT, Outcome, Reply};
use crate::monitor::Locked;
use crate::rec::MAX_RECS_ORDER;
use crate::world::{Features, World};

/// Breakpoints and watchpoints, minus one: the fewest that the architecture has (Arm ARM D24.4, `ID_AA64DFR0_EL1`).
const BREAKPOINTS: u64 = 1;
/// Bits of IPA that a realm has at least: what a stage 2 of 4 KiB granules has that starts at level 1.
const FEWEST_BITS: u8 = 32;
/// From this many on its stage 2 starts at level 0.
const LEVEL_0_FROM: u8 = 44;

/// Feature register 0.
pub fn register(features: &Features) -> RmiFeatureRegister0 {
    RmiFeatureRegister0::default()
        .with_s2sz(features.limits.pa_bits().into())
        .with_num_bps(BREAKPOINTS)
        .with_num_wps(BREAKPOINTS)
        .with_hash_sha_256(1)
        .with_hash_sha_512(1)
        .with_gicv3_num_lrs((features.list_registers.clamp(1, 16) - 1) as u64)
        .with_max_recs_order(MAX_RECS_ORDER.into())
}

/// RealmParamsSupported (B3): no LPA2, no SVE, no PMU; the starting level that takes the fewest RTTs.
pub fn are_supported(features: &Features, params: &RmiRealmParams) -> bool {
    let register = register(features);
    let is_within = |value: u8, most: u64| (1..=most).contains(&value.into());
    params.flags.is_empty()
        && params.sve_vl == 0
        && params.pmu_num_ctrs == 0
        && (FEWEST_BITS..=register.s2sz() as u8).contains(&params.s2sz)
        && params.rtt_level_start == if params.s2sz < LEVEL_0_FROM { 1 } else { 0 }
        && is_within(params.num_bps, register.num_bps())
        && is_within(params.num_wps, register.num_wps())
}

#[inline(always)]
pub fn features<W: World>(lock: &mut Locked<'_, W>, input: input::Features) -> Outcome {
    let value = if input.index == 0 { register(&lock.world.features()).bits() } else { 0 };
    Ok(Reply::success(output::Features { value }.to_registers()))
}

#[inline(always)]
pub fn version(input: input::Version) -> Outcome {
    let negotiated = negotiate(&[rmm_abi::v1_0::VERSION], input.req).ok_or(INPUT)?;
    let status = if negotiated.success { RmiStatus::Success } else { RmiStatus::ErrorInput };
    let output = output::Version { lower: negotiated.lower, higher: negotiated.higher };
    Ok(Reply::with(status, output.to_registers()))
}
