//! AArch64 translation tables in the largest blocks that fit, and the EL2 hypervisor that stands on them.
#![cfg_attr(not(test), no_std)]

pub mod caps;
#[cfg(feature = "el2")]
pub mod el2;
#[cfg(feature = "machine")]
pub mod machine;
pub mod mapping;
#[cfg(feature = "owner")]
pub mod owner;
#[cfg(feature = "realm")]
pub mod realm;
pub mod stage1;
pub mod stage2;
pub mod start;
#[cfg(feature = "trial")]
pub mod trial;
