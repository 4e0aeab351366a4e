//! A realm and its tables, as the host sees them.
//!
//! Invariant: tables and granules change under [`Realm::pool`]; addresses without the shared bit are compared with RAM, never those with it.

use core::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};

use arrayvec::ArrayVec;
use rmm_abi::v1_0::entry_size;
use rmm_abi::v1_0::rmi::{RmiCommand, RmiRipas, RmiRttEntryState, UnprotectedDescriptor};
use spin::{Mutex, MutexGuard};
use vmm_logic::tree::RAM;

use super::granules::{GRANULE, Pool, delegate, undelegate};
use super::memory::{BLOCK, GIB, Plan};
use super::rmi::{Refused, done, try_call};

/// RECs of a realm, at most.
pub const MAX_RECS: usize = 8;
/// Bits of IPA of a realm that is a payload: the last is the shared bit. They take two root tables.
pub const IPA_BITS: u8 = 40;
/// Bits of IPA of a Linux, at least: it has no more than it needs. The shared bit is part of the addresses that its devices get, and many of their
/// drivers say that these have 32 bits.
pub const BITS_OF_LINUX: u8 = 32;
/// The level at which walks start, and that of pages.
pub const START_LEVEL: i64 = 1;
/// See [`START_LEVEL`].
pub const PAGE: i64 = 3;

/// How the host treats what a realm asks for: see the parent module.
#[derive(Clone, Copy, Debug, Default)]
pub struct Manner {
    /// Each so many-th change of RIPAS is refused.
    pub reject: Option<u64>,
    /// Bytes of a change of RIPAS that are made at once, at most.
    pub partial: Option<u64>,
    /// What becomes EMPTY is taken away, and given anew when it becomes RAM.
    pub reclaim: bool,
    /// All stays in pages: nothing is folded.
    pub pages: bool,
}

/// A REC.
pub struct Rec {
    /// Its granule.
    pub pa: u64,
    /// Its auxiliary granules.
    pub aux: ArrayVec<u64, 16>,
    /// The granule of the host's by which it is run.
    pub run: u64,
    /// How often it was turned on.
    pub starts: AtomicU32,
    /// Whether it runs: an exit takes an interrupt.
    pub inside: AtomicBool,
    /// SGIs that it is to get.
    pub sgis: AtomicU16,
    /// How often it came back, by reason.
    pub exits: [AtomicU64; 7],
}

/// What an RTT entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The level of the entry.
    pub level: i64,
    /// Its state, if it is one of the specification's.
    pub state: Option<RmiRttEntryState>,
    /// Where it points to.
    pub address: u64,
    /// Its RIPAS, if it is one of the specification's.
    pub ripas: Option<RmiRipas>,
}

/// A realm.
pub struct Realm {
    /// Its descriptor.
    pub rd: u64,
    /// Its bits of IPA.
    pub bits: u8,
    /// The first of its root tables.
    pub roots: u64,
    /// How many there are, side by side.
    pub root_count: u64,
    /// Where its memory is.
    pub plan: Plan,
    /// Its RECs.
    pub recs: ArrayVec<Rec, MAX_RECS>,
    /// List registers that the host may fill.
    pub lists: usize,
    /// How it is treated.
    pub manner: Manner,
    /// Granules, and the lock of its tables.
    pub pool: &'static Mutex<Pool>,
    /// It is over.
    pub ended: AtomicBool,
    /// Why it could not go on, if so: told by who found it.
    pub failed: AtomicBool,
    /// Changes of RIPAS that it asked for, and that were refused.
    pub changes: AtomicU64,
    /// See [`changes`](Self::changes).
    pub rejected: AtomicU64,
    /// Doublewords exchanged with the realm.
    pub exchanged: AtomicU64,
    /// The device tree's size in bytes.
    pub tree: u64,
}

/// The RMM has no granule left of what the host gave it.
fn no_granule(command: RmiCommand, ipa: u64) -> Refused {
    Refused { command, status: u64::MAX - 1, inputs: [ipa, 0, 0] }
}

fn size_of_level(level: i64) -> u64 {
    entry_size(level).unwrap_or(GRANULE)
}

impl Realm {
    /// The bit that tells the unprotected half.
    pub fn shared(&self) -> u64 {
        1 << (self.bits - 1)
    }

    /// Where the granule at a protected IPA lies.
    pub fn pa(&self, ipa: u64) -> u64 {
        self.plan.ram + (ipa - RAM)
    }

    /// Whether that many bytes at a protected IPA are RAM.
    pub fn has_ram(&self, ipa: u64, bytes: u64) -> bool {
        ipa >= RAM && bytes <= self.plan.size && ipa - RAM <= self.plan.size - bytes
    }

    /// All of its RAM.
    pub fn ram(&self) -> (u64, u64) {
        (RAM, RAM + self.plan.size)
    }

    /// The lock of its tables.
    pub fn lock(&self) -> MutexGuard<'static, Pool> {
        self.pool.lock()
    }

    /// What is at an IPA, seen from `level` or where the walk ends before.
    ///
    /// # Errors
    /// What the RMM says.
    pub fn entry(&self, ipa: u64, level: i64) -> Result<Entry, Refused> {
        let [level, state, desc, ripas] =
            done(RmiCommand::RttReadEntry, &[self.rd, ipa & !(size_of_level(level) - 1), level as u64])?;
        Ok(Entry {
            level: level as i64,
            state: RmiRttEntryState::from_bits(state as u8).ok(),
            address: UnprotectedDescriptor(desc).address(false),
            ripas: RmiRipas::from_bits(ripas as u8).ok(),
        })
    }

    /// Makes the table of `level` for an IPA.
    ///
    /// # Errors
    /// What the RMM says.
    pub fn create_table(&self, pool: &mut Pool, ipa: u64, level: i64) -> Result<(), Refused> {
        let Some(table) = pool.delegated()? else { return Err(no_granule(RmiCommand::RttCreate, ipa)) };
        let start = ipa & !(size_of_level(level - 1) - 1);
        let made = done(RmiCommand::RttCreate, &[self.rd, table, start, level as u64]);
        if made.is_err() {
            pool.recycle(table)?;
        }
        made.map(drop)
    }

    /// Carries out a command whose walk for `ipa` must come to `level`: makes the tables that are missing.
    fn with_tables(
        &self,
        pool: &mut Pool,
        (ipa, level): (u64, i64),
        command: RmiCommand,
        inputs: &[u64],
    ) -> Result<[u64; 4], Refused> {
        loop {
            match try_call(command, inputs) {
                Ok(outputs) => return Ok(outputs),
                Err((refused, _)) => match refused.walk_level() {
                    Some(ended) if ended < level => self.create_table(pool, ipa, ended + 1)?,
                    _ => return Err(refused),
                },
            }
        }
    }

    /// Gives the realm the granule at `ipa` with these contents, measured.
    ///
    /// # Errors
    /// What the RMM says.
    pub fn create_data(&self, pool: &mut Pool, ipa: u64, source: u64) -> Result<(), Refused> {
        const MEASURE: u64 = 1;
        let pa = self.pa(ipa);
        delegate(pa)?;
        let inputs = [self.rd, pa, ipa, source, MEASURE];
        self.with_tables(pool, (ipa, PAGE), RmiCommand::DataCreate, &inputs).map(drop)
    }

    /// Gives the realm the granule at `ipa`, wiped.
    ///
    /// # Errors
    /// What the RMM says.
    pub fn assign(&self, pool: &mut Pool, ipa: u64) -> Result<(), Refused> {
        let pa = self.pa(ipa);
        delegate(pa)?;
        self.with_tables(pool, (ipa, PAGE), RmiCommand::DataCreateUnknown, &[self.rd, pa, ipa]).map(drop)
    }

    /// Gives the realm all of `base..top`, of which it has nothing, wiped. All granules change hands before the first is the realm's: so each
    /// kind of call is made for all of them in a row.
    ///
    /// # Errors
    /// What the RMM says.
    pub fn assign_range(&self, pool: &mut Pool, base: u64, top: u64) -> Result<(), Refused> {
        let granules = || (base..top).step_by(GRANULE as usize);
        granules().try_for_each(|ipa| delegate(self.pa(ipa)))?;
        for ipa in granules() {
            let inputs = [self.rd, self.pa(ipa), ipa];
            self.with_tables(pool, (ipa, PAGE), RmiCommand::DataCreateUnknown, &inputs)?;
        }
        Ok(())
    }

    /// Takes all that there is in `base..top`, at most a block, from the realm. All is destroyed before the first granule is undelegated: as in
    /// [`assign_range`](Self::assign_range).
    ///
    /// # Errors
    /// What the RMM says.
    #[inline(never)]
    pub fn take_range(&self, pool: &mut Pool, base: u64, top: u64) -> Result<(), Refused> {
        let mut taken = ArrayVec::<u64, { (BLOCK / GRANULE) as usize }>::new();
        let mut ipa = base;
        while ipa < top && !taken.is_full() {
            match try_call(RmiCommand::DataDestroy, &[self.rd, ipa]) {
                Ok([pa, ..]) => {
                    taken.push(pa);
                    ipa += GRANULE;
                }
                Err((refused, [_, next, ..])) => match refused.walk_level() {
                    Some(_) if next > ipa => ipa = next,
                    // A block.
                    Some(level) if level < PAGE => self.create_table(pool, ipa, level + 1)?,
                    _ => return Err(refused),
                },
            }
        }
        taken.iter().try_for_each(|&pa| undelegate(pa))
    }

    /// Puts together what can be in the blocks that `base..top` touches. Returns how many tables came back.
    ///
    /// # Errors
    /// What the RMM says but that a table cannot be folded.
    pub fn fold(&self, pool: &mut Pool, base: u64, top: u64) -> Result<u64, Refused> {
        let mut count = 0;
        if self.manner.pages {
            return Ok(count);
        }
        for (size, level) in [(BLOCK, PAGE), (GIB, PAGE - 1)] {
            for start in (base & !(size - 1)..top).step_by(size as usize) {
                // A realm of less than that has other things beside its RAM there.
                if !self.has_ram(start, size) {
                    continue;
                }
                match try_call(RmiCommand::RttFold, &[self.rd, start, level as u64]) {
                    Ok([table, ..]) => {
                        pool.recycle(table)?;
                        count += 1;
                    }
                    Err((refused, _)) if refused.walk_level().is_some() => {}
                    Err((refused, _)) => return Err(refused),
                }
            }
        }
        Ok(count)
    }

    /// Removes the host's memory from the aliases of `base..top`, and the tables of pages that then hold nothing.
    ///
    /// # Errors
    /// What the RMM says.
    pub fn unmap_shared(&self, pool: &mut Pool, base: u64, top: u64) -> Result<(), Refused> {
        let mut at = base;
        let mut any = false;
        while at < top {
            let ipa = at | self.shared();
            match try_call(RmiCommand::RttUnmapUnprotected, &[self.rd, ipa, PAGE as u64]) {
                Ok(_) => {
                    any = true;
                    at += GRANULE;
                }
                Err((refused, [next, ..])) => match refused.walk_level() {
                    Some(_) if next > ipa => at = next - self.shared(),
                    Some(level) if level < PAGE => {
                        let size = size_of_level(level);
                        if at.is_multiple_of(size) && at + size <= top {
                            done(RmiCommand::RttUnmapUnprotected, &[self.rd, ipa, level as u64])?;
                            at += size;
                        } else {
                            self.create_table(pool, ipa, level + 1)?;
                        }
                    }
                    _ => return Err(refused),
                },
            }
        }
        if any {
            for start in (base & !(BLOCK - 1)..top).step_by(BLOCK as usize) {
                self.destroy_table(pool, start | self.shared(), PAGE)?;
            }
        }
        Ok(())
    }

    /// Destroys the table of `level` for an IPA, if there is one and it holds nothing; whether it did.
    ///
    /// # Errors
    /// What the RMM says but that there is none, or that it is in use.
    pub fn destroy_table(&self, pool: &mut Pool, ipa: u64, level: i64) -> Result<bool, Refused> {
        match try_call(RmiCommand::RttDestroy, &[self.rd, ipa, level as u64]) {
            Ok([table, ..]) => pool.recycle(table).map(|()| true),
            Err((refused, _)) if refused.walk_level().is_some() => Ok(false),
            Err((refused, _)) => Err(refused),
        }
    }

    /// Gives the realm the host's memory at the alias of `ipa`: a block if all of it was shared at once, else a page.
    ///
    /// # Errors
    /// What the RMM says, but that it is there already.
    pub fn map_shared(&self, pool: &mut Pool, ipa: u64) -> Result<(), Refused> {
        let block = ipa & !(BLOCK - 1);
        let around = self.entry(block, PAGE - 1)?;
        let whole = around.state != Some(RmiRttEntryState::Table) && around.ripas == Some(RmiRipas::Empty);
        if whole && self.has_ram(block, BLOCK) && self.map_backing(pool, block, PAGE - 1).is_ok() {
            return Ok(());
        }
        match self.map_backing(pool, ipa & !(GRANULE - 1), PAGE) {
            // Another REC was faster.
            Err(refused) if refused.walk_level() == Some(PAGE) => Ok(()),
            other => other,
        }
    }

    fn map_backing(&self, pool: &mut Pool, ipa: u64, level: i64) -> Result<(), Refused> {
        // Write-back, and all accesses.
        const ATTRIBUTES: u64 = 0b110 << 2 | UnprotectedDescriptor::S2AP;
        let pa = self.plan.backing + (ipa - RAM);
        let desc = UnprotectedDescriptor::new(pa, ATTRIBUTES, false).0;
        let inputs = [self.rd, ipa | self.shared(), level as u64, desc];
        self.with_tables(pool, (ipa | self.shared(), level), RmiCommand::RttMapUnprotected, &inputs).map(drop)
    }

    /// Makes the change of RIPAS that REC `number` has asked for, from `base` to `top`. Returns how far it came.
    ///
    /// # Errors
    /// What the RMM says.
    pub fn change_ripas(
        &self,
        number: usize,
        (base, top): (u64, u64),
        ripas: Option<RmiRipas>,
    ) -> Result<u64, Refused> {
        let mut pool = self.lock();
        let pool = &mut *pool;
        let top = self.manner.partial.map_or(top, |most| top.min(base + most));
        let rec = self.recs[number].pa;
        let mut at = base;
        while at < top {
            let inputs = [self.rd, rec, at, top];
            let [next, ..] = self.with_tables(pool, (at, PAGE), RmiCommand::RttSetRipas, &inputs)?;
            if next <= at {
                break;
            }
            at = next;
        }
        let done = (base, at.min(top));
        self.note(done.0, done.1, ripas == Some(RmiRipas::Empty));
        match ripas {
            Some(RmiRipas::Ram) => {
                self.unmap_shared(pool, done.0, done.1)?;
                if self.manner.reclaim {
                    self.assign_missing(pool, done.0, done.1)?;
                }
                self.fold(pool, done.0, done.1)?;
            }
            Some(RmiRipas::Empty) if self.manner.reclaim => {
                let mut ipa = done.0;
                while ipa < done.1 {
                    let next = ((ipa & !(BLOCK - 1)) + BLOCK).min(done.1);
                    self.take_range(pool, ipa, next)?;
                    ipa = next;
                }
            }
            _ => {}
        }
        Ok(done.1)
    }

    /// Gives the realm the granules of `base..top` that it has not.
    fn assign_missing(&self, pool: &mut Pool, base: u64, top: u64) -> Result<(), Refused> {
        let mut ipa = base;
        while ipa < top {
            let entry = self.entry(ipa, PAGE)?;
            if entry.state == Some(RmiRttEntryState::Assigned) {
                let size = size_of_level(entry.level);
                ipa = (ipa & !(size - 1)) + size;
            } else {
                self.assign(pool, ipa)?;
                ipa += GRANULE;
            }
        }
        Ok(())
    }

    /// Whether it has devices.
    pub fn has_devices(&self) -> bool {
        self.plan.devices.is_some()
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        self.ended.load(Relaxed)
    }
}
