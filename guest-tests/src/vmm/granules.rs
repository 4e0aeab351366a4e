//! Granules of the host's: those that it gives to the RMM, and how they come back.
//!
//! Invariant: a granule is handed out once, and taken back only when it is the host's again and was found wiped. Nothing is stored in a granule
//! that is not the host's: which are free is known from outside.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arrayvec::ArrayVec;
use rmm_abi::v1_0::rmi::RmiCommand;

use super::rmi::{Refused, done};

/// Bytes of a granule.
pub const GRANULE: u64 = 4096;
/// Granules of a pool, at most.
const MOST: usize = 4096;
/// Delegated granules that are kept for the next table.
const SPARE: usize = 8;

/// How many granules were delegated and have come back, and what was wrong with those.
#[derive(Debug)]
pub struct Count {
    /// Delegated.
    pub given: AtomicU64,
    /// Undelegated.
    pub returned: AtomicU64,
    /// Of these not all zeros, or not the host's.
    pub bad: AtomicU64,
}

/// Of all granules since the start.
pub static COUNT: Count =
    Count { given: AtomicU64::new(0), returned: AtomicU64::new(0), bad: AtomicU64::new(0) };

/// Gives a granule to the RMM.
///
/// # Errors
/// What the RMM says.
pub fn delegate(pa: u64) -> Result<(), Refused> {
    done(RmiCommand::GranuleDelegate, &[pa])?;
    COUNT.given.fetch_add(1, Relaxed);
    Ok(())
}

/// Takes a granule back, and looks at it.
///
/// # Errors
/// What the RMM says.
pub fn undelegate(pa: u64) -> Result<(), Refused> {
    done(RmiCommand::GranuleUndelegate, &[pa])?;
    COUNT.returned.fetch_add(1, Relaxed);
    if !is_zero(pa) || !is_writable(pa) {
        COUNT.bad.fetch_add(1, Relaxed);
    }
    Ok(())
}

/// Whether a granule of the host's is all zeros.
pub fn is_zero(pa: u64) -> bool {
    let start = pa as *const u64;
    // SAFETY: RAM of the host's, mapped as data, in use by nobody.
    (0..GRANULE as usize / 8).all(|word| unsafe { start.add(word).read_volatile() } == 0)
}

/// Whether a granule keeps what is written there; its last word is zero afterwards.
fn is_writable(pa: u64) -> bool {
    let place = (pa + GRANULE - 8) as *mut u64;
    // SAFETY: as above.
    unsafe {
        place.write_volatile(pa | 1);
        let kept = place.read_volatile() == pa | 1;
        place.write_volatile(0);
        kept
    }
}

/// Granules for what is not the realm's memory.
pub struct Pool {
    start: u64,
    /// Those that are free, by their number.
    free: ArrayVec<u16, MOST>,
    /// Delegated, and nothing yet.
    spare: ArrayVec<u64, SPARE>,
}

impl Pool {
    /// None.
    pub const fn new() -> Self {
        Self { start: 0, free: ArrayVec::new_const(), spare: ArrayVec::new_const() }
    }

    /// Takes RAM from `start` on in place of what it had, `bytes` long, as much of it as it can keep.
    pub fn fill(&mut self, start: u64, bytes: u64) {
        self.start = start;
        self.free.clear();
        self.spare.clear();
        let count = (bytes / GRANULE).min(MOST as u64) as u16;
        // The lowest is taken first.
        self.free.extend((0..count).rev());
    }

    /// How many are free.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// A granule of the host's.
    pub fn take(&mut self) -> Option<u64> {
        self.free.pop().map(|number| self.start + u64::from(number) * GRANULE)
    }

    /// Two granules side by side, the first at a multiple of their size: only before any other was taken.
    pub fn take_pair(&mut self) -> Option<u64> {
        let first = self.take()?;
        let second = self.take()?;
        (first.is_multiple_of(2 * GRANULE) && second == first + GRANULE).then_some(first)
    }

    /// Takes a granule of the host's back.
    pub fn put(&mut self, pa: u64) {
        // No more come back than were taken.
        let _ = self.free.try_push(((pa - self.start) / GRANULE) as u16);
    }

    /// A granule that is delegated, if there is one.
    ///
    /// # Errors
    /// What the RMM says.
    pub fn delegated(&mut self) -> Result<Option<u64>, Refused> {
        if let Some(pa) = self.spare.pop() {
            return Ok(Some(pa));
        }
        let Some(pa) = self.take() else { return Ok(None) };
        delegate(pa)?;
        Ok(Some(pa))
    }

    /// Takes a delegated granule that is nothing any more: it is kept for the next table, or undelegated.
    ///
    /// # Errors
    /// What the RMM says.
    pub fn recycle(&mut self, pa: u64) -> Result<(), Refused> {
        if self.spare.try_push(pa).is_ok() {
            return Ok(());
        }
        undelegate(pa)?;
        self.put(pa);
        Ok(())
    }

    /// Undelegates all that were kept.
    ///
    /// # Errors
    /// What the RMM says.
    pub fn drain(&mut self) -> Result<(), Refused> {
        while let Some(pa) = self.spare.pop() {
            undelegate(pa)?;
            self.put(pa);
        }
        Ok(())
    }
}

impl Default for Pool {
    fn default() -> Self {
        Self::new()
    }
}
