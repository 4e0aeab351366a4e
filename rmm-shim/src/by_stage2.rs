//! A [`World`] in which a granule changes hands by the host's stage 2, the EL2 map and the realm's stage 2.
//!
//! Invariant: what a granule is stands where [`hyp::owner`] keeps it, and nowhere here.

use core::cell::UnsafeCell;
use core::ptr::NonNull;

use hyp::el2::guests::Advertised;
use hyp::el2::inject::EntryFeatures;
use hyp::el2::vcpu::{Exit, IdView, Running, Vcpu};
use hyp::mapping::{Address, Capabilities, GRANULE, Ipa, Mmu, Pa, Range, State};
use hyp::owner::{HostPage, Memory, OwnerError, Ownership, Placement, Purpose};
use hyp::stage2::Registers;

use crate::granule::granule;
use crate::rtt::EMPTY;
use crate::trace::Moment;
use crate::world::{Features, Page, Party, World};

/// What a world wants of the machine's CPUs.
pub trait Cpus {
    /// The MMU of a realm's stage 2, whose pool is [`Supplied`](hyp::stage2::Supplied).
    type Mmu: Mmu;

    /// See [`World::features`].
    fn features(&self) -> Features;
    /// See [`World::capabilities`].
    fn capabilities(&self) -> Capabilities;
    /// See [`World::id_view`].
    fn id_view(&self) -> &IdView;
    /// See [`World::advertised`].
    fn advertised(&self) -> Advertised;
    /// See [`World::entry_features`].
    fn entry_features(&self) -> EntryFeatures;
    /// See [`World::mmu`].
    fn mmu(&self, registers: &Registers) -> Self::Mmu;
    /// Whether tables of the host's map and of EL2's are to be had back where that can be; and whether EL2's map may have blocks there.
    fn joins(&self) -> Option<bool>;
    /// See [`World::can_run`].
    fn can_run(&self) -> bool;
    /// See [`World::run`].
    fn run(
        &self,
        vcpu: &mut Vcpu,
        registers: &Registers,
        host_has_sve: bool,
        answer: &mut dyn FnMut(&mut Running, &Exit) -> bool,
    ) -> Exit;
    /// See [`World::sha256`].
    fn sha256(&self, state: &mut [u32; 8], blocks: &[[u8; 64]]) {
        sha2::block_api::compress256(state, blocks);
    }
    /// See [`World::forget_instructions`].
    fn forget_instructions(&self);
    /// See [`World::is_lost`].
    fn is_lost(&self, ipa: u64);
    /// See [`World::wait`].
    fn wait(&self);
    /// See [`World::stand`].
    fn stand<T>(&self, work: impl FnOnce() -> T) -> T;
    /// See [`World::moment`].
    fn moment(&self) -> Moment;
}

/// Granules by ownership, and the CPUs `C`.
#[derive(Debug)]
pub struct ByStage2<'m, H: Mmu, E: Mmu, C> {
    parties: &'m Ownership<'m, H, E, Memory>,
    memory: Memory,
    cpus: C,
}

impl<'m, H: Mmu, E: Mmu, C> ByStage2<'m, H, E, C> {
    /// Over the owner of the machine's pages. `memory` is where the EL2 map has them.
    pub const fn new(parties: &'m Ownership<'m, H, E, Memory>, memory: Memory, cpus: C) -> Self {
        Self { parties, memory, cpus }
    }

    /// What was given as the machine's CPUs.
    pub const fn cpus(&self) -> &C {
        &self.cpus
    }

    /// Whoever gives or takes many pages goes through them in order: after the last of a block all of it may be alike.
    fn join_behind(&self, page: Pa)
    where
        H: Mmu,
        E: Mmu,
        C: Cpus,
    {
        const BLOCK: u64 = 2 << 20;
        if (page.get() + GRANULE).is_multiple_of(BLOCK)
            && let Some(at_el2) = self.cpus.joins()
            && let Ok(block) = Pa::new(page.get() + GRANULE - BLOCK)
        {
            self.parties.join(block, 2, at_el2);
        }
    }

    /// Works on bytes of a host's granule, while it is one.
    fn at(&self, page: u64, offset: usize, size: usize, work: impl FnOnce(Pa)) -> Option<()> {
        let start = page.checked_add(offset as u64)?;
        let is_inside = page.is_multiple_of(GRANULE) && offset as u64 + size as u64 <= GRANULE;
        let page = Range::of_granules(page, GRANULE).ok().filter(|_| is_inside)?;
        let start = Pa::new(start).ok()?;
        self.parties.while_hosts(page, || work(start)).ok()
    }
}

// SAFETY: what is kept is in no map but EL2's, and `Ownership` gives it to nobody before `unkeep`.
unsafe impl<H: Mmu, E: Mmu, C: Cpus> World for ByStage2<'_, H, E, C> {
    type Mmu = C::Mmu;

    fn features(&self) -> Features {
        self.cpus.features()
    }
    fn capabilities(&self) -> Capabilities {
        self.cpus.capabilities()
    }
    fn id_view(&self) -> &IdView {
        self.cpus.id_view()
    }
    fn advertised(&self) -> Advertised {
        self.cpus.advertised()
    }
    fn entry_features(&self) -> EntryFeatures {
        self.cpus.entry_features()
    }
    fn mmu(&self, registers: &Registers) -> C::Mmu {
        self.cpus.mmu(registers)
    }
    fn can_run(&self) -> bool {
        self.cpus.can_run()
    }

    fn granule(&self, pa: u64) -> HostPage {
        Pa::new(pa).map_or(HostPage::Fixed, |pa| self.parties.page(pa))
    }
    fn delegate(&self, page: Pa) -> Result<(), OwnerError> {
        self.parties.delegate(granule(page))?;
        self.join_behind(page);
        Ok(())
    }
    fn undelegate(&self, page: Pa) -> Result<(), OwnerError> {
        self.parties.undelegate(granule(page))?;
        self.join_behind(page);
        Ok(())
    }
    fn keep(&self, granules: Range<Pa>, realm: u16, purpose: Purpose) -> Result<(), OwnerError> {
        self.parties.keep(granules, realm, purpose, |_| ())
    }
    fn unkeep(&self, granules: Range<Pa>, realm: u16, purpose: Purpose) -> Result<(), OwnerError> {
        self.parties.unkeep(granules, realm, purpose)
    }
    fn kept(&self, page: Pa) -> NonNull<u8> {
        // SAFETY: memory, which this alone makes no claim about: any byte of it may change behind the cell.
        let bytes = unsafe { self.memory.get::<UnsafeCell<[u8; GRANULE as usize]>>(page) };
        NonNull::from(bytes).cast()
    }
    fn assign(
        &self,
        page: Pa,
        realm: &Party<'_, C::Mmu>,
        placement: &Placement,
        content: Option<&[u8; GRANULE as usize]>,
    ) -> Result<(), OwnerError> {
        match content {
            Some(content) => self.parties.assign(granule(page), realm, placement, |held| {
                self.memory.slice(held).copy_from_slice(content);
            }),
            // Zeroes, as all that is delegated.
            None => self.parties.assign_unfilled(granule(page), realm, placement),
        }
    }
    fn release(&self, page: Pa, realm: &Party<'_, C::Mmu>, ipa: Ipa, then: State) -> Result<(), OwnerError> {
        self.parties.release(granule(page), realm, ipa, Some(then))
    }
    fn share(
        &self,
        range: Range<Pa>,
        realm: &Party<'_, C::Mmu>,
        placement: &Placement,
    ) -> Result<(), OwnerError> {
        match self.parties.share_with_realm(range, realm, placement) {
            // No page that could change hands: it may be a device.
            Err(OwnerError::Host { found: HostPage::Fixed, .. }) => {
                self.parties.lend_device(range, realm, placement)
            }
            done => done,
        }
    }
    fn folded(&self, block: Pa, level: u8) {
        if let Some(at_el2) = self.cpus.joins() {
            self.parties.join(block, level, at_el2);
        }
    }
    fn unshare(&self, range: Range<Pa>, realm: &Party<'_, C::Mmu>, ipa: Ipa) -> Result<(), OwnerError> {
        match self.parties.unshare_with_realm(range, realm, ipa, Some(EMPTY)) {
            Err(OwnerError::Host { found: HostPage::Fixed, .. }) => {
                self.parties.end_device(range, realm, ipa, Some(EMPTY))
            }
            done => done,
        }
    }
    fn is_data_of(&self, range: Range<Pa>, number: u16) -> bool {
        self.parties.is_data_of(range, number)
    }
    fn is_device(&self, pa: u64) -> bool {
        Pa::new(pa).is_ok_and(|pa| self.parties.is_device(pa))
    }

    fn read(&self, page: u64, offset: usize, into: &mut [u8]) -> Option<()> {
        self.at(page, offset, into.len(), |start| self.memory.read(start, into))
    }
    fn write(&self, page: u64, offset: usize, from: &[u8]) -> Option<()> {
        self.at(page, offset, from.len(), |start| self.memory.write(start, from))
    }
    fn visit<T>(&self, number: u16, page: Pa, work: impl FnOnce(&mut Page) -> T) -> Option<T> {
        let work = |held: &mut hyp::owner::Held| {
            let bytes = self.memory.slice(held);
            // SAFETY: a whole granule, aligned as one, and this call's alone as long as it is held.
            work(unsafe { &mut *bytes.as_mut_ptr().cast::<Page>() })
        };
        self.parties.visit(granule(page), number, work).ok()
    }

    fn run(
        &self,
        vcpu: &mut Vcpu,
        registers: &Registers,
        host_has_sve: bool,
        answer: &mut dyn FnMut(&mut Running, &Exit) -> bool,
    ) -> Exit {
        self.cpus.run(vcpu, registers, host_has_sve, answer)
    }
    fn sha256(&self, state: &mut [u32; 8], blocks: &[[u8; 64]]) {
        self.cpus.sha256(state, blocks);
    }
    fn forget_instructions(&self) {
        self.cpus.forget_instructions();
    }
    fn is_lost(&self, ipa: u64) {
        self.cpus.is_lost(ipa);
    }
    fn wait(&self) {
        self.cpus.wait();
    }
    fn stand<T>(&self, work: impl FnOnce() -> T) -> T {
        self.cpus.stand(work)
    }
    fn moment(&self) -> Moment {
        self.cpus.moment()
    }
}
