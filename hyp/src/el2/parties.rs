//! The host, the hypervisor and the realms of this machine, as ownership knows them: one value, for the host's calls and for who serves realms.
//!
//! Invariants:
//! - There is one [`Ownership`] of the host's map and EL2's, and all changes of owners go through it.
//! - What the host has donated is remembered in a place for each range, so that it can have it back: with no place left it cannot donate.
//! - Who waits here passes the entry gate.

use arrayvec::ArrayVec;
use spin::{Mutex, MutexGuard};

use super::boot::{El2Map, El2Mmu, HostMap, HostMmu, SLOTS};
use super::pages::{Pages, Refused};
use super::percpu::PerCpu;
use super::quiet::{ENTRY, Here};
use crate::caps::gate::Gate;
use crate::machine::MAX_CPUS;
use crate::mapping::{Geometry, Map, Options, Pa, Range, Slot, Stage2};
use crate::owner::{Held, Memory, Ownership};
use crate::stage2::install::GuestMmu;
use crate::stage2::{CpuLimits, Registers};

/// Ranges that the host can have donated at a time.
pub const MOST_DONATED: usize = 64;

/// What the host has donated, for nothing yet: it can have it back.
static DONATED: Mutex<ArrayVec<Held, MOST_DONATED>> = Mutex::new(ArrayVec::new_const());

/// Who owns what.
pub type Owners = Ownership<'static, HostMmu, El2Mmu, Memory>;
/// The MMU of a realm's map.
pub type RealmMmu = GuestMmu<&'static Gate<Here, MAX_CPUS>>;
/// A realm's map.
pub type RealmMap = Map<Stage2, RealmMmu>;

/// All of them. It does not change but behind its references.
pub struct Parties {
    /// Who owns each page.
    pub owners: Owners,
    /// Access to granules at EL2, whose map has them at their physical addresses.
    pub memory: Memory,
    /// The machine's RAM, the hypervisor's included.
    pub ram: &'static [Range<Pa>],
    /// What of it is the hypervisor's from the start.
    pub own: &'static [Range<Pa>],
    /// What all CPUs can address.
    pub limits: CpuLimits,
    /// Where each CPU says that it walks a map, whichever it is.
    pub slots: &'static [Slot],
    options: Options,
}

impl Parties {
    /// Of these maps. The EL2 map has all of `ram` at its physical address.
    pub(super) fn new(
        host: &'static HostMap,
        el2: &'static El2Map,
        ram: &'static [Range<Pa>],
        own: &'static [Range<Pa>],
        limits: CpuLimits,
    ) -> Self {
        // SAFETY: RAM is data in the EL2 map, at its own address, but for what realms have; ownership names what is anybody's to access.
        let memory = unsafe { Memory::new(0) };
        let options = Options::new(host.capabilities());
        let owners = Ownership::new(host, el2.map(), memory);
        Self { owners, memory, ram, own, limits, slots: &SLOTS, options }
    }

    /// The number of the running CPU, that of its slot.
    pub fn cpu(&self) -> usize {
        PerCpu::this().number()
    }

    /// Whether all of a range is RAM that the host may have.
    pub fn is_host_ram(&self, range: Range<Pa>) -> bool {
        self.ram.iter().any(|bank| bank.contains_range(range))
            && !self.own.iter().any(|own| own.overlaps(range))
    }

    /// What each CPU needs to run what is in a realm's map of this root.
    pub fn registers(&self, root: Pa, geometry: Geometry, vmid: u16) -> Registers {
        Registers::of_root(geometry, root, vmid, self.limits)
    }

    /// The map of a realm, whose root, of [`Geometry::root_tables`] tables, lies at `root`. It makes no table: all are given to it. A table that it is
    /// left with when a whole range is unmapped is lost to the host.
    ///
    /// # Safety
    /// As [`Map::adopt`]; and no other map has the VMID, nor has had it since all of that was invalidated.
    pub unsafe fn realm_map(&self, root: Pa, geometry: Geometry, vmid: u16) -> RealmMap {
        let registers = self.registers(root, geometry, vmid);
        // SAFETY: the EL2 map has tables at their physical addresses, and this is EL2; the root is the caller's word.
        unsafe {
            let mmu = GuestMmu::new(registers, &SLOTS, &ENTRY);
            Map::adopt(mmu, root, geometry, self.options)
        }
    }

    /// The donated ranges. Who waits for them counts as standing still, as who has them may be waiting for that.
    fn donated() -> MutexGuard<'static, ArrayVec<Held, MOST_DONATED>> {
        loop {
            if let Some(donated) = DONATED.try_lock() {
                return donated;
            }
            ENTRY.pass();
            core::hint::spin_loop();
        }
    }
}

impl Pages for Parties {
    fn share(&self, range: Range<Pa>) -> Result<(), Refused> {
        Ok(self.owners.share(range)?)
    }

    fn unshare(&self, range: Range<Pa>) -> Result<(), Refused> {
        Ok(self.owners.unshare(range)?)
    }

    fn donate(&self, range: Range<Pa>) -> Result<(), Refused> {
        let mut donated = Self::donated();
        if donated.is_full() {
            return Err(Refused::NoRoom);
        }
        let held = self.owners.donate(range)?;
        donated.push(held);
        Ok(())
    }

    fn give_back(&self, range: Range<Pa>) -> Result<(), Refused> {
        let mut donated = Self::donated();
        let is_it = |held: &Held| held.range() == range;
        let number = donated.iter().position(is_it).ok_or(Refused::NotItsOwn)?;
        let held = donated.swap_remove(number);
        self.owners.give_back(held).map_err(|refused| {
            donated.push(refused.held);
            refused.error.into()
        })
    }
}
