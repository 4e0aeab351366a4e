//! What a realm and its host share, as the realm's devices see it.
//!
//! Invariant: only the host's own memory is touched: what stands behind pages that the realm has given up (EMPTY), under the addresses that
//! it knows it by, those with the shared bit. Which pages these are is noted when the realm asks for it ([`Realm::note`]).

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

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

impl GuestMemory for Shared<'_> {
    fn read(&self, ipa: u64, into: &mut [u8]) -> Option<()> {
        let mut at = self.place(ipa, into.len())?;
        let mut rest = into;
        while !rest.is_empty() {
            let whole = at.is_multiple_of(8) && rest.len() >= 8;
            let (now, later) = rest.split_at_mut(if whole { 8 } else { 1 });
            // SAFETY: RAM of the host's, which the realm may write meanwhile: each place is read once, at its alignment.
            unsafe {
                match <&mut [u8; 8]>::try_from(&mut *now) {
                    Ok(word) => *word = (at as *const u64).read_volatile().to_le_bytes(),
                    Err(_) => now[0] = (at as *const u8).read_volatile(),
                }
            }
            at += now.len() as u64;
            rest = later;
        }
        Some(())
    }

    fn write(&self, ipa: u64, from: &[u8]) -> Option<()> {
        let mut at = self.place(ipa, from.len())?;
        let mut rest = from;
        while !rest.is_empty() {
            let whole = at.is_multiple_of(8) && rest.len() >= 8;
            let (now, later) = rest.split_at(if whole { 8 } else { 1 });
            // SAFETY: as above, for writing.
            unsafe {
                match <[u8; 8]>::try_from(now) {
                    Ok(word) => (at as *mut u64).write_volatile(u64::from_le_bytes(word)),
                    Err(_) => (at as *mut u8).write_volatile(now[0]),
                }
            }
            at += now.len() as u64;
            rest = later;
        }
        Some(())
    }
}
