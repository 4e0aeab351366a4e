//! How granules change hands, how their memory is reached, and how a realm runs: all that the commands want of the machine.
//!
//! Invariant: what an implementation lets a party reach is what these calls have given it, and each of them does all or nothing.

use core::ptr::NonNull;

use hyp::el2::guests::Advertised;
use hyp::el2::inject::EntryFeatures;
use hyp::el2::vcpu::{Exit, IdView, Running, Vcpu};
use hyp::mapping::{Capabilities, Ipa, Mmu, Pa, Range, State};
use hyp::owner::{HostPage, OwnerError, Placement, Purpose};
use hyp::stage2::{CpuLimits, Registers};

use crate::trace::Moment;

/// A realm, for one call: its number and its stage 2.
pub type Party<'r, M> = hyp::owner::Realm<'r, M>;

/// What a machine has for realms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// Physical addresses and VMIDs.
    pub limits: CpuLimits,
    /// List registers of the GIC's virtual interface, 1 to 16.
    pub list_registers: usize,
    /// Priority bits of the GIC's virtual interface.
    pub priority_bits: u32,
    /// INTID bits of the GIC's virtual interface.
    pub intid_bits: u32,
}

/// All that the commands want of the machine. Each call is made with the monitor's lock, but for [`run`](World::run), [`wait`](World::wait), [`stand`](World::stand),
/// [`is_lost`](World::is_lost), [`id_view`](World::id_view), [`advertised`](World::advertised), [`entry_features`](World::entry_features) and
/// [`moment`](World::moment).
///
/// Addresses that a host or a realm has passed may be given to [`granule`](World::granule) and to what reads or writes the host's memory; all
/// other calls are refused if a granule is not what they take.
///
/// # Safety
/// Of who implements it: [`kept`](World::kept) gives memory that nobody else accesses from [`keep`](World::keep) to [`unkeep`](World::unkeep).
pub unsafe trait World {
    /// The MMU of a realm's stage 2. Its pool has no tables: the host gives them.
    type Mmu: Mmu;

    /// What the machine has.
    fn features(&self) -> Features;
    /// What all CPUs can do by now.
    fn capabilities(&self) -> Capabilities;
    /// What realms see of the machine's ID registers.
    fn id_view(&self) -> &IdView;
    /// What of that is not the machine's own, as its command line has it: the same for as long as it runs.
    fn advertised(&self) -> Advertised;
    /// What the machine has that changes how an exception is taken.
    fn entry_features(&self) -> EntryFeatures;
    /// The MMU for the map that `registers` install, under a VMID that no other map has.
    fn mmu(&self, registers: &Registers) -> Self::Mmu;
    /// Whether a realm can run on the calling CPU: it has what realms are told the machine has, and is not in streaming mode.
    fn can_run(&self) -> bool;

    /// What the granule at `pa` is: [`HostPage::Fixed`] if it never changes hands (`PaIsDelegable` is false).
    fn granule(&self, pa: u64) -> HostPage;
    /// The host's granule becomes delegated, wiped: what is delegated holds zeroes.
    ///
    /// # Errors
    /// As [`hyp::owner::Ownership::delegate`].
    fn delegate(&self, granule: Pa) -> Result<(), OwnerError>;
    /// A delegated granule becomes the host's.
    ///
    /// # Errors
    /// As [`hyp::owner::Ownership::undelegate`].
    fn undelegate(&self, granule: Pa) -> Result<(), OwnerError>;
    /// Delegated granules become a realm's, kept for it; they hold zeroes.
    ///
    /// # Errors
    /// As [`hyp::owner::Ownership::keep`].
    fn keep(&self, granules: Range<Pa>, realm: u16, purpose: Purpose) -> Result<(), OwnerError>;
    /// What was kept is delegated, wiped.
    ///
    /// # Errors
    /// As [`hyp::owner::Ownership::unkeep`].
    fn unkeep(&self, granules: Range<Pa>, realm: u16, purpose: Purpose) -> Result<(), OwnerError>;
    /// Where EL2 has a kept granule.
    fn kept(&self, granule: Pa) -> NonNull<u8>;
    /// A delegated granule becomes a realm's data, with `content` or the zeroes that it holds.
    ///
    /// # Errors
    /// As [`hyp::owner::Ownership::assign`].
    fn assign(
        &self,
        granule: Pa,
        realm: &Party<'_, Self::Mmu>,
        placement: &Placement,
        content: Option<&[u8; hyp::mapping::GRANULE as usize]>,
    ) -> Result<(), OwnerError>;
    /// A realm's data at `ipa` becomes delegated, wiped; the realm has `then` there.
    ///
    /// # Errors
    /// As [`hyp::owner::Ownership::release`].
    fn release(
        &self,
        granule: Pa,
        realm: &Party<'_, Self::Mmu>,
        ipa: Ipa,
        then: State,
    ) -> Result<(), OwnerError>;
    /// The host's memory, or a device that it has, is a realm's too.
    ///
    /// # Errors
    /// As [`hyp::owner::Ownership::share_with_realm`], and for what is no RAM as [`hyp::owner::Ownership::lend_device`].
    fn share(
        &self,
        range: Range<Pa>,
        realm: &Party<'_, Self::Mmu>,
        placement: &Placement,
    ) -> Result<(), OwnerError>;
    /// A realm's data at `block` was folded into one entry of `level`: what else describes it may be too.
    fn folded(&self, block: Pa, level: u8);
    /// It is the host's alone again.
    ///
    /// # Errors
    /// As [`hyp::owner::Ownership::unshare_with_realm`] and [`hyp::owner::Ownership::end_device`].
    fn unshare(&self, range: Range<Pa>, realm: &Party<'_, Self::Mmu>, ipa: Ipa) -> Result<(), OwnerError>;

    /// Whether all of a range is realm `number`'s data, and no other party's to reach.
    fn is_data_of(&self, range: Range<Pa>, number: u16) -> bool;

    /// Whether the page at an address is a device of the host's: its own to access, and no RAM.
    fn is_device(&self, pa: u64) -> bool;

    /// Copies bytes out of a granule of the host's, from `offset` on, once. `None` if it is not the host's.
    fn read(&self, granule: u64, offset: usize, into: &mut [u8]) -> Option<()>;
    /// Copies bytes into a granule of the host's. `None` if it is not the host's.
    fn write(&self, granule: u64, offset: usize, from: &[u8]) -> Option<()>;
    /// Lets `work` have a page of realm `number`'s data, which EL2 otherwise does not reach. `None` if it is none.
    fn visit<T>(&self, number: u16, page: Pa, work: impl FnOnce(&mut Page) -> T) -> Option<T>;

    /// Runs a vCPU on the calling CPU over the stage 2 of `registers` until it stops; without the lock. `host_has_sve` says that the host has
    /// not hinted that its SVE state is dead (SMCCC). After each synchronous exception that is the guest's `answer` is asked; if it says true
    /// the guest goes on at once with the general registers as that left them, else they are in `vcpu` with all others afterwards. The IPA of
    /// each abort that `answer` is told of is right ([`Exit`]): nothing here can tell whether it is.
    fn run(
        &self,
        vcpu: &mut Vcpu,
        registers: &Registers,
        host_has_sve: bool,
        answer: &mut dyn FnMut(&mut Running, &Exit) -> bool,
    ) -> Exit;
    /// Works blocks into a state of SHA-256 (FIPS 180-4, 6.2.2); in the answer to a command of the host's, while no realm runs.
    fn sha256(&self, state: &mut [u32; 8], blocks: &[[u8; 64]]) {
        sha2::block_api::compress256(state, blocks);
    }
    /// Afterwards no CPU executes what it fetched before from memory that has other contents by now.
    fn forget_instructions(&self);
    /// A realm that has never asked RSI_VERSION takes an External abort, now, for an access of a protected IPA that is EMPTY: it
    /// seems not to know that it is a realm. Without the lock.
    fn is_lost(&self, ipa: u64);
    /// Called in each turn of a loop that waits for the lock.
    fn wait(&self);
    /// Does `work`, which may take long: who changes EL2's map does not wait for it. It touches nothing but the image and the CPU's stack. Without
    /// the lock.
    fn stand<T>(&self, work: impl FnOnce() -> T) -> T;
    /// The calling CPU, and what its counter says.
    fn moment(&self) -> Moment;
}

/// A granule's worth of bytes.
pub type Page = rmm_abi::v1_0::Granule<[u8; 4096]>;
