//! Descriptors, RECs and tables in their granules. Beside what a world vouches for, this is the one file of the crate with `unsafe`.
//!
//! Invariant: a granule that is kept for realm *n* as its descriptor holds a [`Realm`] of that number, one that is kept as a REC a [`Rec`], one that is a
//! REC's auxiliary granule an [`Attestation`], all whole, from before the monitor's lock is given back until after it is taken to end that. Nobody makes
//! such a granule but this file. References to them live no longer than the lock is held, but for a [`Running`] REC's vCPU and its attestation,
//! which are one CPU's.

use core::ptr::NonNull;

use hyp::mapping::{Address, Capabilities, Debt, GRANULE, Geometry, Ipa, Map, Options, Pa, Range, Stage2};
use hyp::owner::{HostPage, Keeper, OwnerError, Purpose};
use hyp::stage2::Registers;

use crate::attest::Attestation;
use crate::monitor::Locked;
use crate::realm::Realm;
use crate::rec::{Rec, RecState};
use crate::rmi::{INPUT, Reply};
use crate::world::World;

/// The granule at `pa`.
pub fn granule(pa: Pa) -> Range<Pa> {
    // A granule's address and its end are below the highest address.
    Range::of_granules(pa.get(), GRANULE).unwrap_or_else(|_| unreachable!("{pa} is not a granule"))
}

/// What realms' maps may count on. They have no runs: an entry is the host's to fold and to unfold, alone.
fn capabilities<W: World>(world: &W) -> Capabilities {
    world.capabilities() - Capabilities::CONTIGUOUS
}

impl<W: World> Locked<'_, W> {
    /// What the world's granule holds, if it is kept for this.
    fn find<T>(&self, address: u64, purpose: Purpose) -> Option<&T> {
        const { assert!(size_of::<T>() <= GRANULE as usize && align_of::<T>() <= GRANULE as usize) };
        if !address.is_multiple_of(GRANULE) {
            return None;
        }
        match self.world.granule(address) {
            HostPage::Kept(Keeper::Realm(_, found)) if found == purpose => {
                let at = self.world.kept(Pa::new(address).ok()?).cast::<T>();
                // SAFETY: by the invariant it holds a `T`, whole, and it stays while `self`, which has the lock, is borrowed: what ends it
                // takes `&mut self`.
                Some(unsafe { at.as_ref() })
            }
            _ => None,
        }
    }

    /// The realm whose descriptor is at the PA `rd`. Its map counts on no more than all CPUs can do by now.
    pub fn realm(&self, rd: u64) -> Option<&Realm<W::Mmu>> {
        let realm: &Realm<W::Mmu> = self.find(rd, Purpose::Descriptor)?;
        let capabilities = capabilities(self.world);
        if !capabilities.contains(realm.map.capabilities()) {
            realm.map.weaken(capabilities);
        }
        Some(realm)
    }

    /// The REC at the PA `rec`.
    pub fn rec(&self, rec: u64) -> Option<&Rec> {
        self.find(rec, Purpose::Rec)
    }

    /// The realm whose descriptor is at the PA `rd`, or the host's error.
    ///
    /// # Errors
    /// RMI_ERROR_INPUT: rd_align, rd_bound or rd_state.
    pub fn find_realm(&self, rd: u64) -> Result<&Realm<W::Mmu>, Reply> {
        self.realm(rd).ok_or(INPUT)
    }

    /// The stage 2 that `registers` install, whose root is made of granules that are kept for its realm and zeroed.
    pub fn adopt(&self, registers: &Registers, root: Pa, geometry: Geometry) -> Map<Stage2, W::Mmu> {
        let options = Options::new(capabilities(self.world));
        // SAFETY: the granules are the realm's tables, zero, and stay so until `end_realm`; what hangs from them are other granules of that
        // kind, by `unfold`. The map's pool is told of what the map gives up, and hands out nothing.
        unsafe { Map::adopt(self.world.mmu(registers), root, geometry, options) }
    }

    /// RTT unfolding (A5.5.7): puts the delegated granule `rtt` in the place of the entry above `level` at `ipa`.
    ///
    /// # Errors
    /// RMI_ERROR_INPUT if it is not delegated, or the entry could not become a table.
    pub fn unfold(&self, realm: &Realm<W::Mmu>, rtt: Pa, ipa: Ipa, level: u8) -> Result<(), Reply> {
        let table = granule(rtt);
        self.world.keep(table, realm.number, Purpose::Table).map_err(|_| INPUT)?;
        // SAFETY: kept as the realm's table from here on, until the map has given it back.
        let done = unsafe { realm.map.split_entry(ipa, level - 1, rtt) }.map(Debt::flush);
        done.map_err(|_| {
            // It was delegated a moment ago.
            let _ = self.world.unkeep(table, realm.number, Purpose::Table);
            INPUT
        })
    }

    /// Puts `value` into the delegated granule at `at`.
    fn place<T>(&mut self, at: Pa, realm: u16, purpose: Purpose, value: T) -> Result<(), OwnerError> {
        self.world.keep(granule(at), realm, purpose)?;
        // SAFETY: EL2's alone since, of a granule's size and alignment, which `find` checks to be enough; the lock is held.
        unsafe { self.world.kept(at).cast::<T>().write(value) };
        Ok(())
    }

    /// Makes the delegated granule at `realm.rd` the descriptor of `realm`.
    ///
    /// # Errors
    /// [`OwnerError`].
    pub fn place_realm(&mut self, realm: Realm<W::Mmu>) -> Result<(), OwnerError> {
        self.place(realm.rd, realm.number, Purpose::Descriptor, realm)
    }

    /// Makes the delegated granule at `at` a REC of realm `number`, and the one at `rec.aux` its auxiliary granule.
    ///
    /// # Errors
    /// [`OwnerError`]; both are as they were.
    pub fn place_rec(&mut self, at: Pa, number: u16, rec: Rec) -> Result<(), OwnerError> {
        let aux = granule(rec.aux);
        // It holds zeroes, and those are an `Attestation`: `Locked::start`.
        self.world.keep(aux, number, Purpose::Aux)?;
        self.place(at, number, Purpose::Rec, rec).inspect_err(|_| {
            // It was delegated a moment ago.
            let _ = self.world.unkeep(aux, number, Purpose::Aux);
        })
    }

    /// Ends the realm at `rd`: its root tables and its descriptor are delegated again. Its tables have to be empty, and no REC its.
    ///
    /// # Errors
    /// [`OwnerError`]; the realm is as it was.
    pub fn end_realm(&mut self, rd: Pa) -> Result<(), OwnerError> {
        let Some(realm) = self.realm(rd.get()) else { return Ok(()) };
        let (number, base, count) = (realm.number, realm.rtt_base, u64::from(realm.rtt_num_start));
        let Ok(roots) = Range::of_granules(base.get(), count * GRANULE) else { return Ok(()) };
        // SAFETY: it is there, by `realm`. Its number is not used for another one before this is done, and no CPU runs a REC of it, nor will:
        // it has none. What is read is not used again: the granule is wiped.
        unsafe {
            let map = core::ptr::read(&raw const realm.map);
            map.destroy();
        }
        self.world.unkeep(roots, number, Purpose::Table)?;
        self.world.unkeep(granule(rd), number, Purpose::Descriptor)
    }

    /// Ends the REC at `at`, which does not run: its granule is delegated again, and its auxiliary one.
    ///
    /// # Errors
    /// [`OwnerError`] of the REC's granule: both are as they were.
    pub fn end_rec(&mut self, at: Pa, number: u16) -> Result<(), OwnerError> {
        let Some(aux) = self.rec(at.get()).map(|rec| rec.aux) else { return Ok(()) };
        // Nothing in them has anything to give back. The REC goes first: there is none whose auxiliary granule is somebody else's.
        self.world.unkeep(granule(at), number, Purpose::Rec)?;
        // It is kept for this, as a page of its own, so it needs no table. If it failed the granule would stay nobody's.
        let _ = self.world.unkeep(granule(aux), number, Purpose::Aux);
        Ok(())
    }

    /// Makes the REC at `rec` the running CPU's: to be given back with [`Locked::stopped`].
    pub fn start(&self, rec: &Rec) -> Running {
        // Whatever its granule holds is one: zeroes at first, and nobody else writes to it.
        const {
            assert!(
                size_of::<Attestation>() <= GRANULE as usize && align_of::<Attestation>() <= GRANULE as usize
            )
        };
        rec.state.set(RecState::Running);
        Running { rec: NonNull::from_ref(rec), attestation: self.world.kept(rec.aux).cast() }
    }

    /// Takes back a REC that has stopped.
    pub fn stopped(&self, running: Running) -> &Rec {
        // SAFETY: a REC in that state is not ended, and this is the only one who has it.
        let rec = unsafe { running.rec.as_ref() };
        rec.state.set(RecState::Ready);
        rec
    }
}

/// A REC that this CPU runs, without the lock.
#[must_use = "it runs until it is given back"]
pub struct Running {
    rec: NonNull<Rec>,
    attestation: NonNull<Attestation>,
}

impl Running {
    /// Its vCPU, and the token that it fetches.
    pub fn parts(&mut self) -> (core::cell::RefMut<'_, hyp::el2::vcpu::Vcpu>, &mut Attestation) {
        // SAFETY: the REC stays while it is in this state, and its auxiliary granule with it. Who has the lock touches its other fields, which
        // are cells, and not this one. What the granule holds is an attestation: zeroes are one, and it was kept with zeroes and for this alone.
        // Both are borrowed from this, which only one CPU has.
        unsafe { ((*self.rec.as_ptr()).vcpu.borrow_mut(), self.attestation.as_mut()) }
    }
}
