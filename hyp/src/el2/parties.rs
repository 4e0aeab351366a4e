//! The host, the hypervisor and the realms of this machine, as ownership knows them: one value, for the host's calls and for who serves realms.
//!
//! Invariants:
//! - There is one [`Ownership`] of the host's map and EL2's, and all changes of owners go through it.
//! - What the host has donated is remembered in a place for each range, so that it can have it back: with no place left it cannot donate.
//! - Who waits here passes the entry gate.

use arm_sysregs::el0::accessors::{read_cntfrq_el0, read_cntpct_el0};
use arrayvec::ArrayVec;
use spin::{Mutex, MutexGuard};

use super::boot::{El2Map, El2Mmu, HostMap, HostMmu, SLOTS};
use super::cache;
use super::cpu::Features;
use super::guests::Advertised;
use super::inject::EntryFeatures;
use super::pages::{Pages, Refused};
use super::percpu::PerCpu;
use super::quiet::{ENTRY, Here};
use crate::caps::gate::Gate;
use crate::machine::MAX_CPUS;
use crate::mapping::{Capabilities, Pa, Range};
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

/// All of them. It does not change but behind its references.
pub struct Parties {
    /// Who owns each page.
    pub owners: Owners,
    /// Access to granules at EL2, whose map has them at their physical addresses.
    pub memory: Memory,
    /// The machine's RAM, the hypervisor's included.
    ram: &'static [Range<Pa>],
    /// What of it is the hypervisor's from the start.
    own: &'static [Range<Pa>],
    /// What all CPUs can address.
    pub limits: CpuLimits,
    /// What all CPUs have that changes how an exception is taken.
    pub entry: EntryFeatures,
    /// What guests are shown in place of what the machine has.
    pub advertised: Advertised,
    host: &'static HostMap,
}

impl Parties {
    /// Of these maps. The EL2 map has all of `ram` at its physical address.
    pub(super) fn new(
        host: &'static HostMap,
        el2: &'static El2Map,
        ram: &'static [Range<Pa>],
        own: &'static [Range<Pa>],
        features: &Features,
        advertised: Advertised,
    ) -> Self {
        // SAFETY: RAM is data in the EL2 map, at its own address, but for what realms have; ownership names what is anybody's to access.
        let memory = unsafe { Memory::new(0) };
        let owners = Ownership::new(host, el2.map(), memory);
        let Features { limits, entry, .. } = *features;
        Self { owners, memory, ram, own, limits, entry, advertised, host }
    }

    /// Whether all of a range is RAM that the host may have.
    pub fn is_host_ram(&self, range: Range<Pa>) -> bool {
        self.ram.iter().any(|bank| bank.contains_range(range))
            && !self.own.iter().any(|own| own.overlaps(range))
    }

    /// The MMU for the map that `registers` put under a realm.
    pub fn realm_mmu(&self, registers: Registers) -> RealmMmu {
        // SAFETY: the EL2 map has tables at their physical addresses, and this is EL2, with interrupts masked. That no other map has the VMID is
        // for who adopts a root with it.
        unsafe { GuestMmu::new(registers, &SLOTS, &ENTRY) }
    }

    /// What all CPUs can do by now.
    pub fn capabilities(&self) -> Capabilities {
        self.host.capabilities()
    }

    /// Whether half of the tables for the host's map and EL2's are in use: then it is worth the time to have some back.
    pub fn is_short_of_tables(&self) -> bool {
        super::boot::are_tables_short()
    }

    /// Whether EL2's map may have blocks now, as far as its CPUs go.
    pub fn has_blocks_at_el2(&self) -> bool {
        super::host::el2_has_blocks()
    }

    /// One turn of a loop that waits for another CPU at EL2: this one counts as standing still here.
    pub fn wait() {
        ENTRY.pass();
        core::hint::spin_loop();
    }

    /// Does what takes long and touches nothing but the image and this CPU's stack, which are pinned: meanwhile the CPU counts as standing still.
    pub fn stand<T>(work: impl FnOnce() -> T) -> T {
        ENTRY.stand(work)
    }

    /// The calling CPU's number, its counter, and the ticks of that in a second.
    pub fn moment() -> (usize, u64, u64) {
        (PerCpu::this().number(), read_cntpct_el0().bits(), read_cntfrq_el0().bits())
    }

    /// Forgets on every CPU what was fetched as an instruction; one that is off does so when it comes.
    pub fn forget_instructions() {
        cache::forget_instructions();
    }

    /// The donated ranges. Who waits for them counts as standing still, as who has them may be waiting for that.
    fn donated() -> MutexGuard<'static, ArrayVec<Held, MOST_DONATED>> {
        loop {
            if let Some(donated) = DONATED.try_lock() {
                return donated;
            }
            Self::wait();
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
