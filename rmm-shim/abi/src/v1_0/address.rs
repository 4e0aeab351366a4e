//! Addresses, RTT levels and the two halves of a realm's address space (DEN0137 A2.2, A5.2.1, A5.5, chapter B3).
//!
//! Invariant: pure arithmetic on 64 bits that overflows for no value.
//!
//! Compared: B3.2 to B3.8, B3.55, B3.68; TF-RMM `runtime/rmi/realm.c` (`s2_inconsistent_sl`, `validate_ipa_bits_and_sl`) and `rtt.c`.
//! They agree on what stands here. Further bounds of TF-RMM (at least 32 bits of IPA; level 0 only with 44 bits of PA) are of its machine.

use core::ops::RangeInclusive;

/// Bytes of a granule (A2.2).
pub const GRANULE_SIZE: u64 = 0x1000;

/// The RTT level whose entries are pages (RMM_RTT_PAGE_LEVEL).
pub const PAGE_LEVEL: i64 = 3;

/// The RTT levels there are with 4 KiB granules. Level -1 only with LPA2.
pub const RTT_LEVELS: RangeInclusive<i64> = -1..=PAGE_LEVEL;

/// Bits of an address that one level resolves.
const STRIDE: u32 = 9;
/// Bits of an address within a granule.
const GRANULE_BITS: u32 = GRANULE_SIZE.trailing_zeros();

/// Whether `address` is the first of a granule (B3.3).
pub const fn is_granule_aligned(address: u64) -> bool {
    address.is_multiple_of(GRANULE_SIZE)
}

/// Bytes that an entry of an RTT at `level` describes (B3.68); nothing if there is no such level.
pub const fn entry_size(level: i64) -> Option<u64> {
    if level < *RTT_LEVELS.start() || level > PAGE_LEVEL {
        return None;
    }
    Some(1 << (GRANULE_BITS + STRIDE * (PAGE_LEVEL - level) as u32))
}

/// Whether `address` is a multiple of what an entry at `level` describes; false if there is no such level (B3.5).
pub const fn is_level_aligned(address: u64, level: i64) -> bool {
    match entry_size(level) {
        Some(size) => address.is_multiple_of(size),
        None => false,
    }
}

/// Whether `ipa` is a protected IPA of a realm with `ipa_width` bits of IPA: in the lower half (B3.4).
pub const fn is_protected(ipa: u64, ipa_width: u32) -> bool {
    match ipa_width {
        0 => false,
        1..=64 => ipa >> (ipa_width - 1) == 0,
        _ => true,
    }
}

/// Whether the range `[base, top)` is not empty and protected throughout (B3.6).
pub const fn is_range_protected(base: u64, top: u64, ipa_width: u32) -> bool {
    base < top && is_protected(top - 1, ipa_width)
}

/// The number of RTTs, contiguous in memory, at the starting level `level_start` of a realm with `ipa_width` bits of IPA; nothing if
/// stage 2 translation with 4 KiB granules cannot be so (B3.55; DDI 0487 D8.2, concatenated tables: up to 16, at level 0 only with LPA2,
/// never at level -1).
pub const fn starting_rtts(ipa_width: u32, level_start: i64, lpa2: bool) -> Option<u32> {
    let first = if lpa2 { *RTT_LEVELS.start() } else { 0 };
    let most_bits = if lpa2 { 52 } else { 48 };
    if level_start < first || level_start > PAGE_LEVEL || ipa_width > most_bits {
        return None;
    }
    let entry_bits = GRANULE_BITS + STRIDE * (PAGE_LEVEL - level_start) as u32;
    if ipa_width <= entry_bits {
        return None;
    }
    match (ipa_width - entry_bits).saturating_sub(STRIDE) {
        concatenated @ 0..=4 => Some(1 << concatenated),
        _ => None,
    }
}
