//! What a realm and its host share, as the realm's devices see it.
//!
//! Invariant: only the host's own memory is touched: what stands behind pages that the realm has given up (EMPTY), under the addresses that
//! it knows it by, those with the shared bit. Which pages these are is noted when the realm asks for it ([`Realm::note`]).

use core::sync::atomic::{AtomicU64, Ordering::Relaxed, Ordering::SeqCst, fence};

use vmm_logic::tree::RAM;
use vmm_logic::virtio::GuestMemory;

use super::granules::GRANULE;
use super::realm::Realm;

/// The shared memory of a realm.
pub struct Shared<'a>(pub &'a Realm);

impl Realm {
    /// Takes note that `base..top` is shared now, or is not any more.
    pub fn note(&self, base: u64, top: u64, is_shared: bool) {
        if !self.has_devices() {
            return;
        }
        for ipa in (base..top).step_by(GRANULE as usize) {
            if let Some((word, bit)) = self.noted(ipa) {
                if is_shared {
                    word.fetch_or(bit, Relaxed)
                } else {
                    word.fetch_and(!bit, Relaxed)
                };
            }
        }
    }

    /// The bit for the page of an IPA, if there are notes and it is RAM.
    fn noted(&self, ipa: u64) -> Option<(&AtomicU64, u64)> {
        let notes = self.plan.devices?.notes;
        if !self.has_ram(ipa, 1) {
            return None;
        }
        let page = (ipa - RAM) / GRANULE;
        // SAFETY: RAM of the host's that `Plan` has put aside for this, a bit for each page of the realm's RAM; zero or noted here.
        let word = unsafe { &*((notes + page / 64 * 8) as *const AtomicU64) };
        Some((word, 1 << (page % 64)))
    }
}

impl Shared<'_> {
    /// Where the host has `bytes` bytes at that address, if all of them are shared.
    fn place(&self, ipa: u64, bytes: usize) -> Option<u64> {
        let start = ipa.checked_sub(self.0.shared())?;
        let end = start.checked_add(bytes as u64)?;
        let is_shared = |page| self.0.noted(page).is_some_and(|(word, bit)| word.load(Relaxed) & bit != 0);
        let pages = (start & !(GRANULE - 1)..end).step_by(GRANULE as usize);
        (self.0.has_ram(start, bytes as u64) && pages.into_iter().all(is_shared))
            .then(|| self.0.plan.backing + (start - RAM))
    }
}

/// The largest access that `at` is aligned for and `bytes` has room for.
fn unit(at: u64, bytes: usize) -> usize {
    [8, 4, 2].into_iter().find(|&unit| at.is_multiple_of(unit as u64) && bytes >= unit).unwrap_or(1)
}

/// Each place is read or written once, by the largest access for which it is aligned: so an index of a queue is never seen half written. Copies
/// are made in the order in which they are asked for, as the realm's CPUs see it: so an index is never seen before what it counts.
impl GuestMemory for Shared<'_> {
    fn read(&self, ipa: u64, into: &mut [u8]) -> Option<()> {
        let mut at = self.place(ipa, into.len())?;
        let mut rest = into;
        fence(SeqCst);
        while !rest.is_empty() {
            let unit = unit(at, rest.len());
            // SAFETY: RAM of the host's, which the realm may write meanwhile, at its alignment.
            let value = unsafe {
                match unit {
                    8 => (at as *const u64).read_volatile(),
                    4 => (at as *const u32).read_volatile().into(),
                    2 => (at as *const u16).read_volatile().into(),
                    _ => (at as *const u8).read_volatile().into(),
                }
            };
            let (now, later) = rest.split_at_mut(unit);
            now.copy_from_slice(&value.to_le_bytes()[..unit]);
            at += unit as u64;
            rest = later;
        }
        fence(SeqCst);
        Some(())
    }

    fn write(&self, ipa: u64, from: &[u8]) -> Option<()> {
        let mut at = self.place(ipa, from.len())?;
        let mut rest = from;
        fence(SeqCst);
        while !rest.is_empty() {
            let unit = unit(at, rest.len());
            let (now, later) = rest.split_at(unit);
            let mut bytes = [0; 8];
            bytes[..unit].copy_from_slice(now);
            let value = u64::from_le_bytes(bytes);
            // SAFETY: as above, for writing.
            unsafe {
                match unit {
                    8 => (at as *mut u64).write_volatile(value),
                    4 => (at as *mut u32).write_volatile(value as u32),
                    2 => (at as *mut u16).write_volatile(value as u16),
                    _ => (at as *mut u8).write_volatile(value as u8),
                }
            }
            at += unit as u64;
            rest = later;
        }
        fence(SeqCst);
        Some(())
    }
}
