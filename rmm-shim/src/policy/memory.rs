//! The realm's memory, as its host sees it: tables, granules, aliases.
//!
//! Invariant: all of it changes under the policy's lock. A granule of RAM is the realm's at its own address, or the host's and then mapped at its alias
//! or nowhere; RIPAS says which the realm wants.

use core::sync::atomic::Ordering::Relaxed;

use rmm_abi::v1_0::rmi::{RmiCommand, RmiRipas, RmiRttEntryState, UnprotectedDescriptor};
use rmm_abi::v1_0::{GRANULE_SIZE as GRANULE, entry_size};

use super::granules::Granules;
use super::{BLOCK, Board, GIB, PAGE, Policy, Problem};
use crate::world::World;

/// Granules of a block, one bit each.
pub type Bits = [u64; (BLOCK / GRANULE / 64) as usize];

/// What an RTT entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The level of the entry.
    pub level: i64,
    /// Its state, if it is one of the specification's.
    pub state: Option<RmiRttEntryState>,
    /// Its RIPAS, if it is one of the specification's.
    pub ripas: Option<RmiRipas>,
}

impl Entry {
    /// Whether it is a table.
    pub fn is_table(&self) -> bool {
        self.state == Some(RmiRttEntryState::Table)
    }
    /// Whether the realm wants memory there and has none.
    pub fn lacks_memory(&self) -> bool {
        self.state == Some(RmiRttEntryState::Unassigned) && self.ripas == Some(RmiRipas::Ram)
    }
}

/// Bytes that an entry of a level describes.
pub fn size_of_level(level: i64) -> u64 {
    entry_size(level).unwrap_or(GRANULE)
}

/// What of `start..end` lies in one block after the other.
pub fn blocks((start, end): (u64, u64)) -> impl Iterator<Item = (u64, u64)> {
    let first = start & !(BLOCK - 1);
    (first..end).step_by(BLOCK as usize).map(move |block| (block.max(start), (block + BLOCK).min(end)))
}

impl<W: World, B: Board> Policy<W, B> {
    /// What is at an IPA, seen from `level` or where the walk ends before.
    pub(super) fn entry(&self, ipa: u64, level: i64) -> Result<Entry, Problem> {
        let inputs = [self.realm()?.rd, ipa & !(size_of_level(level) - 1), level as u64];
        let [level, state, _, ripas] = self.call(RmiCommand::RttReadEntry, &inputs)?;
        Ok(Entry {
            level: level as i64,
            state: RmiRttEntryState::from_bits(state as u8).ok(),
            ripas: RmiRipas::from_bits(ripas as u8).ok(),
        })
    }

    /// A delegated granule for a table.
    fn table(&self, granules: &mut Granules) -> Result<u64, Problem> {
        if let Some(table) = granules.take_delegated() {
            return Ok(table);
        }
        let table = granules.take().ok_or(Problem::NoGranule)?;
        self.call(RmiCommand::GranuleDelegate, &[table])?;
        Ok(table)
    }

    /// Makes the table of `level` for an IPA.
    fn create_table(&self, granules: &mut Granules, ipa: u64, level: i64) -> Result<(), Problem> {
        let table = self.table(granules)?;
        let start = ipa & !(size_of_level(level - 1) - 1);
        let made = self.call(RmiCommand::RttCreate, &[self.realm()?.rd, table, start, level as u64]);
        if made.is_err() {
            granules.put(table, true);
        }
        made?;
        Ok(())
    }

    /// Carries out a command whose walk for `ipa` must come to `level`: makes the tables that are missing.
    pub(super) fn with_tables(
        &self,
        granules: &mut Granules,
        (ipa, level): (u64, i64),
        command: RmiCommand,
        inputs: &[u64],
    ) -> Result<[u64; 4], Problem> {
        loop {
            match self.call(command, inputs) {
                Ok(outputs) => return Ok(outputs),
                Err(refused) => match refused.walk_level() {
                    Some(ended) if ended < level => self.create_table(granules, ipa, ended + 1)?,
                    _ => return Err(refused.into()),
                },
            }
        }
    }

    /// Folds the table of `level` for an IPA, if it can be; whether it was.
    pub(super) fn fold(&self, granules: &mut Granules, ipa: u64, level: i64) -> Result<bool, Problem> {
        let start = ipa & !(size_of_level(level - 1) - 1);
        let inputs = [self.realm()?.rd, start, level as u64];
        match self.call(RmiCommand::RttFold, &inputs) {
            Ok([table, ..]) => {
                granules.put(table, true);
                Ok(true)
            }
            // Its entries differ, or there is none.
            Err(refused) if refused.walk_level().is_some() => Ok(false),
            Err(refused) => Err(refused.into()),
        }
    }

    /// Gives the realm all the granules that it wants and has not in the block of an IPA.
    pub(super) fn give(&self, granules: &mut Granules, ipa: u64) -> Result<(), Problem> {
        let block = ipa & !(BLOCK - 1);
        let whole = (block, block + BLOCK);
        let mut wanted: Bits = [0; 8];
        let above = self.entry(block, PAGE - 1)?;
        if above.is_table() || !self.plan.ram.have(whole) {
            self.find_wanted(block, &mut wanted)?;
        } else if above.lacks_memory() {
            wanted.fill(u64::MAX);
        }
        let addresses = || {
            let numbers = 0..BLOCK / GRANULE;
            numbers.filter(|n| wanted[*n as usize / 64] >> (n % 64) & 1 != 0).map(|n| block + n * GRANULE)
        };
        for pa in addresses() {
            self.call(RmiCommand::GranuleDelegate, &[pa])?;
        }
        let rd = self.realm()?.rd;
        for ipa in addresses() {
            let inputs = [rd, ipa, ipa];
            self.with_tables(granules, (ipa, PAGE), RmiCommand::DataCreateUnknown, &inputs)?;
        }
        self.counts.given.fetch_add(addresses().count() as u64, Relaxed);
        self.fold_around(granules, block)
    }

    /// Folds what can be in the block at `block`, and around it.
    pub(super) fn fold_around(&self, granules: &mut Granules, block: u64) -> Result<(), Problem> {
        if self.fold(granules, block, PAGE)? {
            let gib = block & !(GIB - 1);
            if self.plan.ram.have((gib, gib + GIB)) {
                self.fold(granules, gib, PAGE - 1)?;
            }
        }
        Ok(())
    }

    fn find_wanted(&self, block: u64, wanted: &mut Bits) -> Result<(), Problem> {
        for number in 0..BLOCK / GRANULE {
            let page = block + number * GRANULE;
            if self.plan.ram.have((page, page + GRANULE)) && self.entry(page, PAGE)?.lacks_memory() {
                wanted[number as usize / 64] |= 1 << (number % 64);
            }
        }
        Ok(())
    }

    /// Takes from the realm what it has in `start..end`: destroyed, and the host's again.
    pub(super) fn take(&self, granules: &mut Granules, (start, end): (u64, u64)) -> Result<(), Problem> {
        let rd = self.realm()?.rd;
        let mut ipa = start;
        while ipa < end {
            let (next, mut destroyed): (u64, Bits) = ((ipa | (BLOCK - 1)) + 1, [0; 8]);
            let stop = next.min(end);
            let block = ipa & !(BLOCK - 1);
            while ipa < stop {
                match self.try_call(RmiCommand::DataDestroy, &[rd, ipa]) {
                    Ok(_) => {
                        let number = ((ipa - block) / GRANULE) as usize;
                        destroyed[number / 64] |= 1 << (number % 64);
                        ipa += GRANULE;
                    }
                    Err((refused, [_, top, ..])) => match refused.walk_level() {
                        // Nothing is there up to then.
                        Some(_) if top > ipa => ipa = top,
                        // A block.
                        Some(level) if level < PAGE => self.create_table(granules, ipa, level + 1)?,
                        _ => return Err(refused.into()),
                    },
                }
            }
            let mut count = 0;
            for number in 0..BLOCK / GRANULE {
                if destroyed[number as usize / 64] >> (number % 64) & 1 != 0 {
                    self.call(RmiCommand::GranuleUndelegate, &[block + number * GRANULE])?;
                    count += 1;
                }
            }
            if count > 0 {
                self.counts.taken.fetch_add(count, Relaxed);
                self.fold(granules, block, PAGE)?;
            }
        }
        Ok(())
    }

    /// Removes the host's memory from the aliases of `start..end`, and the tables that then say no more than an entry.
    pub(super) fn unmap(&self, granules: &mut Granules, (start, end): (u64, u64)) -> Result<(), Problem> {
        let made = self.realm()?;
        let (rd, shared) = (made.rd, made.shared);
        let mut at = start;
        while at < end {
            let ipa = at | shared;
            match self.try_call(RmiCommand::RttUnmapUnprotected, &[rd, ipa, PAGE as u64]) {
                Ok(_) => {
                    at += GRANULE;
                    if at.is_multiple_of(BLOCK) || at >= end {
                        self.fold(granules, ipa, PAGE)?;
                    }
                }
                Err((refused, [next, ..])) => match refused.walk_level() {
                    Some(_) if next > ipa => {
                        let block = at & !(BLOCK - 1);
                        at = next - shared;
                        if at >= end || at >= block + BLOCK {
                            self.fold(granules, block | shared, PAGE)?;
                        }
                    }
                    Some(level) if level < PAGE => {
                        let size = size_of_level(level);
                        if at.is_multiple_of(size) && at + size <= end {
                            self.call(RmiCommand::RttUnmapUnprotected, &[rd, ipa, level as u64])?;
                            at += size;
                        } else {
                            self.create_table(granules, ipa, level + 1)?;
                        }
                    }
                    _ => return Err(refused.into()),
                },
            }
        }
        Ok(())
    }

    /// Gives the realm what is at an unprotected IPA: shared memory, or a device. Whether there is something.
    pub(super) fn share(&self, granules: &mut Granules, ipa: u64) -> Result<bool, Problem> {
        let shared = self.realm()?.shared;
        let address = (ipa & !shared) & !(GRANULE - 1);
        let block = address & !(BLOCK - 1);
        let (page, whole) = ((address, address + GRANULE), (block, block + BLOCK));
        if self.entry(address | shared, PAGE)?.state == Some(RmiRttEntryState::Assigned) {
            // Another REC was faster.
            return Ok(true);
        }
        let is_block = if self.plan.devices.have(page) {
            self.plan.devices.have(whole)
        } else if self.plan.ram.have(page) {
            // What is the realm's own is not shared with it.
            if self.entry(address, PAGE)?.ripas != Some(RmiRipas::Empty) {
                return Ok(false);
            }
            let around = self.entry(block, PAGE - 1)?;
            self.plan.ram.have(whole) && !around.is_table()
        } else {
            return Ok(false);
        };
        if is_block && !self.entry(block | shared, PAGE - 1)?.is_table() {
            self.map(granules, block, PAGE - 1)?;
        } else {
            self.map(granules, address, PAGE)?;
        }
        Ok(true)
    }

    fn map(&self, granules: &mut Granules, address: u64, level: i64) -> Result<(), Problem> {
        // Write-back, which leaves the type to the realm's stage 1, and all accesses.
        const ATTRIBUTES: u64 = 0b110 << 2 | UnprotectedDescriptor::S2AP;
        let made = self.realm()?;
        let desc = UnprotectedDescriptor::new(address, ATTRIBUTES, false).0;
        let ipa = address | made.shared;
        let inputs = [made.rd, ipa, level as u64, desc];
        self.with_tables(granules, (ipa, level), RmiCommand::RttMapUnprotected, &inputs).map(drop)
    }

    /// Makes the change of RIPAS that a REC has asked for, to RAM where the machine has RAM for it. Whether all of it was made.
    pub(super) fn change_ripas(
        &self,
        rec: u64,
        (base, top): (u64, u64),
        ripas: Option<RmiRipas>,
    ) -> Result<bool, Problem> {
        let granules = &mut *self.lock();
        let rd = self.realm()?.rd;
        let asked = top;
        let mut top = top;
        if ripas == Some(RmiRipas::Ram) {
            let part = self.plan.ram.iter().find(|part| part.0 <= base && base < part.1);
            let Some((_, end)) = part else { return Ok(false) };
            top = top.min(end);
            self.unmap(granules, (base, top))?;
        }
        let mut at = base;
        while at < top {
            let [next, ..] =
                self.with_tables(granules, (at, PAGE), RmiCommand::RttSetRipas, &[rd, rec, at, top])?;
            if next <= at {
                break;
            }
            at = next;
        }
        if ripas == Some(RmiRipas::Empty) {
            self.take(granules, (base, at))?;
        }
        // Parts of blocks that were as their neighbours are again are entries of their level again.
        for (start, _) in [(base, base + 1), (at.max(base + 1) - 1, at)] {
            if self.entry(start, PAGE - 1)?.is_table() {
                self.fold(granules, start, PAGE)?;
            }
        }
        Ok(at >= asked)
    }
}
