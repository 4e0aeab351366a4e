//! The calls by which pages change hands.
//!
//! Invariant: each call is looks, then steps that change no translation, then one step that changes something whole or fails, then steps
//! that cannot fail; all with the writers of the maps it is about, taken in the room's order.

use core::fmt;
use core::ops::ControlFlow;

use super::granule::{Granules, Held};
use super::page::{HostPage, HypervisorPage, Keeper, Purpose, RealmPage};
use crate::mapping::descriptor::Attributes;
use crate::mapping::geometry::level_size;
use crate::mapping::{
    Address, Change, Debt, El2, Entry, GRANULE, Granule4K, Ipa, Leaves, Map, MapError, Mmu, Pa, Page, Range,
    Regime, Shape, Stage2, State, Va, Visited, Writer,
};

/// Who has a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Party {
    /// The host.
    Host,
    /// The hypervisor.
    Hypervisor,
    /// A realm.
    Realm,
}

/// Why nothing has changed hands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerError {
    /// The range is not of whole granules, or the realm's range ends too high.
    Range {
        /// First address.
        start: u64,
        /// Bytes.
        size: u64,
    },
    /// A page of the range is something else.
    Host {
        /// The first such page.
        page: u64,
        /// What it is.
        found: HostPage,
    },
    /// A page of the range is not in the EL2 map as what it is.
    Hypervisor {
        /// The first such page.
        page: u64,
        /// What is there.
        found: HypervisorPage,
    },
    /// The realm has something else at one of its addresses.
    Realm {
        /// The first such address.
        ipa: u64,
        /// What is there.
        found: RealmPage,
    },
    /// A map cannot be changed so: for want of tables, or of quiet.
    Map {
        /// Whose.
        party: Party,
        /// Why.
        error: MapError,
    },
}

impl fmt::Display for OwnerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Range { start, size } => {
                write!(f, "{size:#x} bytes at {start:#x} are not whole granules that can change hands")
            }
            Self::Host { page, found } => write!(f, "page {page:#x} is {found}"),
            Self::Hypervisor { page, found } => write!(f, "page {page:#x} is {found:?} at EL2"),
            Self::Realm { ipa, found } => write!(f, "the realm has {found:?} at {ipa:#x}"),
            Self::Map { party, error } => write!(f, "{party:?}: {error}"),
        }
    }
}

impl core::error::Error for OwnerError {}

fn of(party: Party) -> impl Fn(MapError) -> OwnerError {
    move |error| OwnerError::Map { party, error }
}

/// Memory that was not given back, and why.
#[derive(Debug, PartialEq, Eq)]
pub struct GiveBackError {
    /// Why.
    pub error: OwnerError,
    /// What is the hypervisor's still.
    pub held: Held,
}

/// A realm, for one call.
#[derive(Clone, Copy, Debug)]
pub struct Realm<'r, R: Mmu, S: Shape = Granule4K> {
    /// Its number: no two realms have the same at once. State words carry it.
    pub number: u16,
    /// Its stage 2; never the host's.
    pub map: &'r Map<Stage2, R, S>,
}

/// Where, and how, a realm gets pages.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Placement {
    /// The first address.
    pub ipa: Ipa,
    /// What all of it says until then: nothing, or this state.
    pub vacant: Option<State>,
    /// What the realm may do there. The mark of them is not the caller's.
    pub attributes: Attributes<Stage2>,
    /// In what leaves.
    pub leaves: Leaves,
    /// Whether the realm translates them. If not it owns them ([`RealmPage::Withheld`]), without a moment in which it does. Of a share: always.
    pub translates: bool,
}

/// A range of pages, in the terms of each map.
#[derive(Clone, Copy)]
struct Part {
    pa: Range<Pa>,
    /// At the host's stage 2.
    ipa: Range<Ipa>,
    /// In the EL2 map.
    va: Range<Va>,
}

impl Part {
    fn new(range: Range<Pa>) -> Result<Self, OwnerError> {
        let (start, size) = (range.start().get(), range.size());
        let whole = |_| OwnerError::Range { start, size };
        Ok(Self {
            pa: range,
            ipa: Range::of_granules(start, size).map_err(whole)?,
            va: Range::of_granules(start, size).map_err(whole)?,
        })
    }

    /// As many addresses of a realm.
    fn at(&self, ipa: Ipa) -> Result<Range<Ipa>, OwnerError> {
        let (start, size) = (ipa.get(), self.pa.size());
        Range::of_granules(start, size).map_err(|_| OwnerError::Range { start, size })
    }
}

/// Looks at every entry of a range: `wrong` gives what is not as it should be, `none` is what there is where the map ends. Says whether an end
/// of the range cuts anything.
fn look<R: Regime, M: Mmu, S: Shape, V>(
    writer: &Writer<'_, '_, R, M, S>,
    range: Range<R::Input>,
    none: V,
    wrong: impl Fn(&Visited<R>) -> Option<V>,
) -> Result<bool, (u64, V)> {
    let (start, end) = (range.start().get(), range.end());
    let (mut next, mut cut) = (start, false);
    let found = writer.walk(range, |visited| {
        if let Some(found) = wrong(&visited) {
            return ControlFlow::Break((visited.start.max(start), found));
        }
        let size = level_size::<S>(visited.level);
        let in_run = matches!(visited.entry, Entry::Leaf { contiguous: true, .. });
        let unit = if in_run { size << S::RUN_BITS } else { size };
        let first = visited.start & !(unit - 1);
        cut |= first < start || first + unit > end;
        next = visited.start + size;
        ControlFlow::Continue(())
    });
    match found {
        ControlFlow::Break(found) => Err(found),
        ControlFlow::Continue(()) if next < end => Err((next, none)),
        ControlFlow::Continue(()) => Ok(cut),
    }
}

/// Looks whether all of a range is this, for the host.
fn look_host<M: Mmu, S: Shape>(
    writer: &Writer<'_, '_, Stage2, M, S>,
    part: &Part,
    wanted: HostPage,
) -> Result<bool, OwnerError> {
    let wrong = |visited: &Visited<Stage2>| Some(HostPage::of(visited)).filter(|&found| found != wanted);
    look(writer, part.ipa, HostPage::Fixed, wrong).map_err(|(page, found)| OwnerError::Host { page, found })
}

/// Looks whether all of a range is this, at EL2.
fn look_el2<M: Mmu, S: Shape>(
    writer: &Writer<'_, '_, El2, M, S>,
    part: &Part,
    wanted: HypervisorPage,
) -> Result<bool, OwnerError> {
    let wrong = |visited: &Visited<El2>| Some(HypervisorPage::of(visited)).filter(|&found| found != wanted);
    let error = |(page, found)| OwnerError::Hypervisor { page, found };
    look(writer, part.va, HypervisorPage::Fixed, wrong).map_err(error)
}

/// What an entry in a range of a realm's says, if it is not what is wanted there.
fn wrong_in_realm(visited: &Visited<Stage2>, at: Range<Ipa>, wanted: RealmPage) -> Option<RealmPage> {
    let found = RealmPage::of(visited);
    let is_wanted = match (found, wanted) {
        (RealmPage::Owned(output) | RealmPage::Withheld(output), RealmPage::Owned(first))
        | (RealmPage::Borrowed(output), RealmPage::Borrowed(first)) => {
            output.get().wrapping_sub(visited.start) == first.get().wrapping_sub(at.start().get())
        }
        _ => found == wanted,
    };
    (!is_wanted).then_some(found)
}

/// Looks whether all of a realm's addresses are this. Of pages `wanted` names the first, and owned ones may be withheld.
fn look_realm<M: Mmu, S: Shape>(
    writer: &Writer<'_, '_, Stage2, M, S>,
    at: Range<Ipa>,
    wanted: RealmPage,
) -> Result<bool, OwnerError> {
    let wrong = |visited: &Visited<Stage2>| wrong_in_realm(visited, at, wanted);
    look(writer, at, RealmPage::Fixed, wrong).map_err(|(ipa, found)| OwnerError::Realm { ipa, found })
}

// A range of one page, which has an entry of its own in a map that is what it has to be, and of which nothing is owed, is found by one walk; and nothing can
// fail any more. All else takes the way of ranges, which knows what is wrong.

/// Such a page of the host's.
#[inline(always)]
fn page_of_host<'w, M: Mmu, S: Shape>(
    writer: &'w mut Writer<'_, '_, Stage2, M, S>,
    part: &Part,
    wanted: HostPage,
) -> Option<Page<'w, Stage2, M, S>> {
    let entry = wanted.entry(part.pa.start()).filter(|_| part.pa.size() == GRANULE)?;
    writer.page(part.ipa.start(), Some(entry))
}

/// Such a page at EL2.
#[inline(always)]
fn page_of_el2<'w, M: Mmu, S: Shape>(
    writer: &'w mut Writer<'_, '_, El2, M, S>,
    part: &Part,
    wanted: HypervisorPage,
) -> Option<Page<'w, El2, M, S>> {
    let entry = wanted.entry(part.pa.start())?;
    writer.page(part.va.start(), Some(entry))
}

/// Such a page of a realm's, which has nothing there.
#[inline(always)]
fn no_page_of_realm<'w, M: Mmu, S: Shape>(
    writer: &'w mut Writer<'_, '_, Stage2, M, S>,
    at: Range<Ipa>,
    vacant: Option<State>,
) -> Option<Page<'w, Stage2, M, S>> {
    writer.page(at.start(), nothing(vacant))
}

/// Such a page of a realm's.
#[inline(always)]
fn page_of_realm<'w, M: Mmu, S: Shape>(
    writer: &'w mut Writer<'_, '_, Stage2, M, S>,
    at: Range<Ipa>,
    wanted: RealmPage,
) -> Option<Page<'w, Stage2, M, S>> {
    let page = writer.page(at.start(), None)?;
    let is_wanted = match (RealmPage::of_entry(&page.entry()), wanted) {
        (RealmPage::Owned(output) | RealmPage::Withheld(output), RealmPage::Owned(page)) => output == page,
        (RealmPage::Borrowed(output), RealmPage::Borrowed(page)) => output == page,
        _ => false,
    };
    is_wanted.then_some(page)
}

/// Makes the entry of such a page another one.
#[inline(always)]
fn put<R: Regime, M: Mmu, S: Shape>(
    page: &mut Page<'_, R, M, S>,
    party: Party,
    entry: Option<Entry<R>>,
) -> Result<(), OwnerError> {
    match entry.is_some_and(|entry| page.replace(entry)) {
        true => Ok(()),
        false => sure(party, Err(MapError::NotQuiet(page.start()))),
    }
}

/// The entry of a page that a realm translates, or does not.
const fn of_realm(page: Pa, attributes: Attributes<Stage2>, valid: bool) -> Option<Entry<Stage2>> {
    Some(Entry::Leaf { output: page, attributes, contiguous: false, valid })
}

/// The entry of a realm's that translates nothing.
#[inline(always)]
fn nothing(then: Option<State>) -> Option<Entry<Stage2>> {
    Some(then.map_or(Entry::Empty, Entry::State))
}

/// Looks whether one page is data at EL2, in a leaf of whatever size.
#[inline(always)]
fn look_el2_at<M: Mmu, S: Shape>(writer: &Writer<'_, '_, El2, M, S>, part: &Part) -> Result<(), OwnerError> {
    let found =
        writer.find(part.va.start()).map_or(HypervisorPage::Fixed, |visited| HypervisorPage::of(&visited));
    match found {
        HypervisorPage::Mapped => Ok(()),
        found => Err(OwnerError::Hypervisor { page: part.pa.start().get(), found }),
    }
}

/// Makes what lies across an end of the range end there. No translation changes.
fn split<R: Regime, M: Mmu, S: Shape>(
    writer: &mut Writer<'_, '_, R, M, S>,
    range: Range<R::Input>,
    cut: bool,
) -> Result<(), MapError> {
    if cut {
        writer.split_edges_of_all(range)?.flush();
    }
    Ok(())
}

/// Takes back what [`split`] has done, as far as that can be.
fn join<R: Regime, M: Mmu, S: Shape>(
    writer: &mut Writer<'_, '_, R, M, S>,
    range: Range<R::Input>,
    cut: bool,
) {
    if cut {
        for page in [range.start().get(), range.end() - GRANULE] {
            // Smaller leaves say the same.
            let _ = Range::new(page, GRANULE).map(|page| writer.collapse(page, Leaves::LARGEST));
        }
    }
}

/// The writers of the host's map, the EL2 map, and a realm's.
type Writers<'w, 'm, H, E, R, S> = (
    &'w mut Writer<'m, 'm, Stage2, H, S>,
    &'w mut Writer<'m, 'm, El2, E, S>,
    &'w mut Writer<'m, 'm, Stage2, R, S>,
);

/// Takes a range from a realm: afterwards no CPU translates it. The realm's tables stay, but for those that a state takes the place of.
fn take<M: Mmu, S: Shape>(
    writer: &mut Writer<'_, '_, Stage2, M, S>,
    at: Range<Ipa>,
    then: Option<State>,
) -> Result<(), MapError> {
    match then {
        Some(state) => writer.set_state(at, state),
        None => writer.unmap_keeping_tables(at).map(Debt::flush),
    }
}

/// The result of a step that was prepared, and so cannot fail. If it did, what follows it must not happen.
fn sure(party: Party, result: Result<(), MapError>) -> Result<(), OwnerError> {
    debug_assert!(result.is_ok(), "{party:?}: {result:?}, though all was prepared");
    result.map_err(of(party))
}

/// What owns the pages of a machine: it borrows the host's stage 2, which says so, and the EL2 map; each call that is about a realm borrows
/// that realm's map too. From any number of CPUs at once; see the room for locks.
///
/// Of every call: the range is of whole granules, of any size; an empty one changes nothing. A call that fails has changed nothing.
#[derive(Debug)]
pub struct Ownership<'m, H: Mmu, E: Mmu, G, S: Shape = Granule4K> {
    host: &'m Map<Stage2, H, S>,
    hypervisor: &'m Map<El2, E, S>,
    granules: G,
}

impl<'m, H: Mmu, E: Mmu, G: Granules, S: Shape> Ownership<'m, H, E, G, S> {
    /// Of a `host` map as [`host_map`](crate::stage2::host_map) makes it, in which pages that nobody has asked for yet are the host's, and a
    /// linear `hypervisor` map that has all of the host's RAM as data. Only this value, and others of the same maps, write marks and states there.
    pub const fn new(host: &'m Map<Stage2, H, S>, hypervisor: &'m Map<El2, E, S>, granules: G) -> Self {
        Self { host, hypervisor, granules }
    }

    /// Becomes the writer of a map. Who is may be waiting for this CPU to stand still on behalf of the EL2 map: here it does.
    #[inline(always)]
    fn write<'a, R: Regime, M: Mmu>(&self, map: &'a Map<R, M, S>) -> Writer<'a, 'a, R, M, S> {
        match map.try_write() {
            Some(writer) => writer,
            None => self.wait_to_write(map),
        }
    }

    #[cold]
    fn wait_to_write<'a, R: Regime, M: Mmu>(&self, map: &'a Map<R, M, S>) -> Writer<'a, 'a, R, M, S> {
        loop {
            self.hypervisor.mmu().wait();
            if let Some(writer) = map.try_write() {
                return writer;
            }
        }
    }

    /// What the page at an address is.
    pub fn page(&self, address: Pa) -> HostPage {
        let writer = self.write(self.host);
        let Ok(one) = Range::new(address.get(), 1) else { return HostPage::Fixed };
        let found = writer.walk(one, |visited| ControlFlow::Break(HostPage::of(&visited)));
        found.break_value().unwrap_or(HostPage::Fixed)
    }

    /// The host shares pages of its own with the hypervisor, and keeps them.
    ///
    /// # Errors
    /// [`OwnerError::Range`], [`OwnerError::Host`]; [`OwnerError::Map`] if the host's map has no table for a split.
    pub fn share(&self, range: Range<Pa>) -> Result<(), OwnerError> {
        self.mark(range, HostPage::Owned, HostPage::SharedWithHypervisor)
    }

    /// The host no longer shares pages with the hypervisor.
    ///
    /// # Errors
    /// As [`Ownership::share`].
    pub fn unshare(&self, range: Range<Pa>) -> Result<(), OwnerError> {
        self.mark(range, HostPage::SharedWithHypervisor, HostPage::Owned)
    }

    fn mark(&self, range: Range<Pa>, from: HostPage, to: HostPage) -> Result<(), OwnerError> {
        let part = Part::new(range)?;
        if range.is_empty() {
            return Ok(());
        }
        let mut writer = self.write(self.host);
        if let Some(mut page) = page_of_host(&mut writer, &part, from) {
            return put(&mut page, Party::Host, to.entry(part.pa.start()));
        }
        look_host(&writer, &part, from)?;
        self.mark_host(&part, to).map_err(of(Party::Host))
    }

    /// Marks leaves of the host's.
    fn mark_host(&self, part: &Part, to: HostPage) -> Result<(), MapError> {
        let Some(change) = to.mark() else { return Ok(()) };
        self.host.protect(part.ipa, change).map(Debt::flush)
    }

    /// The host gives pages of its own to the hypervisor. What they hold stays.
    ///
    /// # Errors
    /// As [`Ownership::share`], and [`OwnerError::Hypervisor`] if the hypervisor has no use of them as data.
    pub fn donate(&self, range: Range<Pa>) -> Result<Held, OwnerError> {
        self.hand(range, HostPage::Owned, Keeper::Hypervisor, |_| ())?;
        Ok(Held::new(range))
    }

    /// The host gives pages up, to be some realm's. They are wiped: so all delegated pages hold zeroes, which no cache has dirty, until they are
    /// something else.
    ///
    /// # Errors
    /// As [`Ownership::donate`].
    pub fn delegate(&self, range: Range<Pa>) -> Result<(), OwnerError> {
        self.hand(range, HostPage::Owned, Keeper::Delegated, |held| self.wipe(held))
    }

    /// Delegated pages become something of a realm's that the hypervisor keeps for it: not [`Purpose::Data`]. They hold zeroes. `fill` is called once
    /// nothing can fail any more, and before anybody else can ask for them.
    ///
    /// # Errors
    /// As [`Ownership::donate`]; [`OwnerError::Host`] for data.
    pub fn keep(
        &self,
        range: Range<Pa>,
        realm: u16,
        purpose: Purpose,
        fill: impl FnOnce(&mut Held),
    ) -> Result<(), OwnerError> {
        let to = Self::kept(range, realm, purpose)?;
        self.hand(range, HostPage::Kept(Keeper::Delegated), to, fill)
    }

    /// Does something with what the hypervisor keeps for a realm, while nobody else can ask for it: so it should not take long.
    ///
    /// # Errors
    /// [`OwnerError::Range`], [`OwnerError::Host`], also for [`Purpose::Data`], which the hypervisor has not.
    pub fn access<T>(
        &self,
        range: Range<Pa>,
        realm: u16,
        purpose: Purpose,
        work: impl FnOnce(&mut Held) -> T,
    ) -> Result<T, OwnerError> {
        let keeper = Self::kept(range, realm, purpose)?;
        let part = Part::new(range)?;
        let host = self.write(self.host);
        look_host(&host, &part, HostPage::Kept(keeper))?;
        Ok(work(&mut Held::new(range)))
    }

    /// Calls `work` while a range is the host's, shared or not, and stays so: for who copies out of it or into it.
    ///
    /// # Errors
    /// [`OwnerError::Range`], [`OwnerError::Host`].
    pub fn while_hosts<T>(&self, range: Range<Pa>, work: impl FnOnce() -> T) -> Result<T, OwnerError> {
        use HostPage::{Owned, SharedWithHypervisor, SharedWithRealm};
        let part = Part::new(range.expanded_to(GRANULE))?;
        let host = self.write(self.host);
        let wrong = |visited: &Visited<Stage2>| {
            let found = HostPage::of(visited);
            (!matches!(found, Owned | SharedWithHypervisor | SharedWithRealm)).then_some(found)
        };
        look(&host, part.ipa, HostPage::Fixed, wrong)
            .map_err(|(page, found)| OwnerError::Host { page, found })?;
        Ok(work())
    }

    /// Lets `work` have a realm's data, which the EL2 map has for as long as that takes; it is cleaned before, as a realm whose caches are off may have
    /// written past lines that the caches have, and afterwards.
    ///
    /// # Errors
    /// [`OwnerError::Range`], [`OwnerError::Host`], [`OwnerError::Hypervisor`]; [`OwnerError::Map`] if the EL2 map has no table for a split.
    pub fn visit<T>(
        &self,
        range: Range<Pa>,
        realm: u16,
        work: impl FnOnce(&mut Held) -> T,
    ) -> Result<T, OwnerError> {
        let part = Part::new(range)?;
        let mut host = self.write(self.host);
        let mut el2 = self.write(self.hypervisor);
        let (data, page) = (HostPage::Kept(Keeper::Realm(realm, Purpose::Data)), part.pa.start());
        if page_of_host(&mut host, &part, data).is_some()
            && let Some(mut at_el2) = page_of_el2(&mut el2, &part, HypervisorPage::Away)
        {
            put(&mut at_el2, Party::Hypervisor, HypervisorPage::Mapped.entry(page))?;
            let mut held = Held::new(range);
            self.granules.clean_and_invalidate(&held);
            let done = work(&mut held);
            self.granules.clean_and_invalidate(&held);
            put(&mut at_el2, Party::Hypervisor, HypervisorPage::Away.entry(page))?;
            return Ok(done);
        }
        look_host(&host, &part, data)?;
        let cut = look_el2(&el2, &part, HypervisorPage::Away)?;
        split(&mut el2, part.va, cut).map_err(of(Party::Hypervisor))?;
        let back = self.hypervisor.protect(part.va, Change::VALIDATE).map(Debt::flush);
        sure(Party::Hypervisor, back)?;
        let mut held = Held::new(range);
        self.granules.clean_and_invalidate(&held);
        let done = work(&mut held);
        self.granules.clean_and_invalidate(&held);
        let gone = self.hypervisor.protect(part.va, Change::INVALIDATE).map(Debt::flush);
        sure(Party::Hypervisor, gone)?;
        Ok(done)
    }

    /// What the hypervisor has kept for a realm is delegated again, wiped.
    ///
    /// # Errors
    /// As [`Ownership::keep`].
    pub fn unkeep(&self, range: Range<Pa>, realm: u16, purpose: Purpose) -> Result<(), OwnerError> {
        let from = Self::kept(range, realm, purpose)?;
        let part = Part::new(range)?;
        if range.is_empty() {
            return Ok(());
        }
        let mut host = self.write(self.host);
        let to = Keeper::Delegated;
        if let Some(mut page) = page_of_host(&mut host, &part, HostPage::Kept(from)) {
            put(&mut page, Party::Host, HostPage::Kept(to).entry(part.pa.start()))?;
        } else {
            look_host(&host, &part, HostPage::Kept(from))?;
            host.set_state(part.ipa, to.state()).map_err(of(Party::Host))?;
        }
        // Nobody can ask for it before the writer is given back.
        self.wipe(&Held::new(range));
        Ok(())
    }

    fn kept(range: Range<Pa>, realm: u16, purpose: Purpose) -> Result<Keeper, OwnerError> {
        let keeper = Keeper::Realm(realm, purpose);
        match purpose {
            // Its way is through the realm's map.
            Purpose::Data => {
                Err(OwnerError::Host { page: range.start().get(), found: HostPage::Kept(keeper) })
            }
            Purpose::Descriptor | Purpose::Rec | Purpose::Aux | Purpose::Table => Ok(keeper),
        }
    }

    /// Pages become a keeper's who leaves the EL2 map as it is.
    fn hand(
        &self,
        range: Range<Pa>,
        from: HostPage,
        to: Keeper,
        fill: impl FnOnce(&mut Held),
    ) -> Result<(), OwnerError> {
        let part = Part::new(range)?;
        if range.is_empty() {
            return Ok(());
        }
        let mut host = self.write(self.host);
        let el2 = (from == HostPage::Owned).then(|| self.write(self.hypervisor));
        if let Some(mut page) = page_of_host(&mut host, &part, from) {
            if let Some(el2) = &el2 {
                look_el2_at(el2, &part)?;
            }
            put(&mut page, Party::Host, HostPage::Kept(to).entry(part.pa.start()))?;
        } else {
            look_host(&host, &part, from)?;
            if let Some(el2) = &el2 {
                look_el2(el2, &part, HypervisorPage::Mapped)?;
            }
            host.set_state(part.ipa, to.state()).map_err(of(Party::Host))?;
        }
        drop(el2);
        fill(&mut Held::new(range));
        Ok(())
    }

    /// The hypervisor gives pages to the host, wiped.
    ///
    /// # Errors
    /// [`GiveBackError`], with what [`Ownership::undelegate`] says.
    pub fn give_back(&self, held: Held) -> Result<(), GiveBackError> {
        let wipe = || self.wipe(&held);
        match self.to_host(held.range(), Keeper::Hypervisor, wipe) {
            Ok(()) => Ok(()),
            Err(error) => Err(GiveBackError { error, held }),
        }
    }

    /// Delegated pages are the host's again; they hold zeroes, as they did.
    ///
    /// # Errors
    /// [`OwnerError::Range`], [`OwnerError::Host`]; [`OwnerError::Map`] if the host's map has no table for a part of what was one state word.
    pub fn undelegate(&self, range: Range<Pa>) -> Result<(), OwnerError> {
        self.to_host(range, Keeper::Delegated, || ())
    }

    fn to_host(&self, range: Range<Pa>, from: Keeper, wipe: impl FnOnce()) -> Result<(), OwnerError> {
        let part = Part::new(range)?;
        if range.is_empty() {
            return Ok(());
        }
        let mut host = self.write(self.host);
        if let Some(mut page) = page_of_host(&mut host, &part, HostPage::Kept(from)) {
            wipe();
            return put(&mut page, Party::Host, HostPage::Owned.entry(part.pa.start()));
        }
        look_host(&host, &part, HostPage::Kept(from))?;
        let (state, ram) = (Some(from.state()), Attributes::<Stage2>::RAM);
        let prepared = host
            .prepare_map(part.ipa, state, part.pa.start(), ram, Leaves::LARGEST)
            .map_err(of(Party::Host))?;
        wipe();
        prepared.commit();
        Ok(())
    }

    /// Delegated pages become a realm's data. `fill` is called once nothing can fail any more: what it leaves there is what the realm finds,
    /// also with its MMU off.
    ///
    /// # Errors
    /// [`OwnerError`], of each party.
    pub fn assign<R: Mmu>(
        &self,
        range: Range<Pa>,
        realm: &Realm<'_, R, S>,
        placement: &Placement,
        fill: impl FnOnce(&mut Held),
    ) -> Result<(), OwnerError> {
        let fill = |held: &mut Held| {
            fill(held);
            self.granules.clean_and_invalidate(held);
        };
        self.to_realm(range, HostPage::Kept(Keeper::Delegated), realm, placement, Some(fill))
    }

    /// As [`Ownership::assign`], with what is in them: zeroes.
    ///
    /// # Errors
    /// As [`Ownership::assign`].
    pub fn assign_unfilled<R: Mmu>(
        &self,
        range: Range<Pa>,
        realm: &Realm<'_, R, S>,
        placement: &Placement,
    ) -> Result<(), OwnerError> {
        // Nobody has written to them since they were wiped.
        self.to_realm(range, HostPage::Kept(Keeper::Delegated), realm, placement, None::<fn(&mut Held)>)
    }

    /// The host's pages become a realm's data, with what they hold.
    ///
    /// # Errors
    /// As [`Ownership::assign`].
    pub fn donate_to_realm<R: Mmu>(
        &self,
        range: Range<Pa>,
        realm: &Realm<'_, R, S>,
        placement: &Placement,
    ) -> Result<(), OwnerError> {
        let clean = |held: &mut Held| self.granules.clean_and_invalidate(held);
        self.to_realm(range, HostPage::Owned, realm, placement, Some(clean))
    }

    fn to_realm<R: Mmu>(
        &self,
        range: Range<Pa>,
        from: HostPage,
        realm: &Realm<'_, R, S>,
        placement: &Placement,
        fill: Option<impl FnOnce(&mut Held)>,
    ) -> Result<(), OwnerError> {
        let Some((part, at)) = Self::parts(range, placement.ipa)? else { return Ok(()) };
        let mut host = self.write(self.host);
        let mut el2 = self.write(self.hypervisor);
        let mut guest = self.write(realm.map);
        let vacant = RealmPage::Vacant(placement.vacant);
        let attributes = RealmPage::owned(placement.attributes);
        let keeper = Keeper::Realm(realm.number, Purpose::Data);
        if let Some(mut of_host) = page_of_host(&mut host, &part, from)
            && let Some(mut of_el2) = page_of_el2(&mut el2, &part, HypervisorPage::Mapped)
            && let Some(mut of_guest) = no_page_of_realm(&mut guest, at, placement.vacant)
        {
            let page = part.pa.start();
            put(&mut of_host, Party::Host, HostPage::Kept(keeper).entry(page))?;
            if let Some(fill) = fill {
                fill(&mut Held::new(range));
            }
            put(&mut of_el2, Party::Hypervisor, HypervisorPage::Away.entry(page))?;
            return put(&mut of_guest, Party::Realm, of_realm(page, attributes, placement.translates));
        }
        look_host(&host, &part, from)?;
        let cut = look_el2(&el2, &part, HypervisorPage::Mapped)?;
        look_realm(&guest, at, vacant)?;

        let prepared = guest
            .prepare_map(at, placement.vacant, part.pa.start(), attributes, placement.leaves)
            .map_err(of(Party::Realm))?
            .translating(placement.translates);
        let begun = split(&mut el2, part.va, cut)
            .map_err(of(Party::Hypervisor))
            .and_then(|()| host.set_state(part.ipa, keeper.state()).map_err(of(Party::Host)));
        if begun.is_err() {
            join(&mut el2, part.va, cut);
            return begun;
        }
        if let Some(fill) = fill {
            fill(&mut Held::new(range));
        }
        let gone = self.hypervisor.protect(part.va, Change::INVALIDATE).map(Debt::flush);
        sure(Party::Hypervisor, gone)?;
        prepared.commit();
        Ok(())
    }

    /// A realm's data is delegated again, wiped; the realm's map says `then` in its place. The range is what the realm has from `ipa` on,
    /// translating or withheld.
    ///
    /// # Errors
    /// [`OwnerError`], of each party.
    pub fn release<R: Mmu>(
        &self,
        range: Range<Pa>,
        realm: &Realm<'_, R, S>,
        ipa: Ipa,
        then: Option<State>,
    ) -> Result<(), OwnerError> {
        let Some((part, at)) = Self::parts(range, ipa)? else { return Ok(()) };
        let from = HostPage::Kept(Keeper::Realm(realm.number, Purpose::Data));
        let mut host = self.write(self.host);
        let mut el2 = self.write(self.hypervisor);
        let mut guest = self.write(realm.map);
        let to = HostPage::Kept(Keeper::Delegated);
        if self.take_page((&mut host, &mut el2, &mut guest), (&part, at), (from, to), then)? {
            return Ok(());
        }
        let host_cut = look_host(&host, &part, from)?;
        let cut = look_el2(&el2, &part, HypervisorPage::Away)?;
        look_realm(&guest, at, RealmPage::Owned(range.start()))?;

        let begun = split(&mut el2, part.va, cut)
            .map_err(of(Party::Hypervisor))
            .and_then(|()| split(&mut host, part.ipa, host_cut).map_err(of(Party::Host)))
            .and_then(|()| take(&mut guest, at, then).map_err(of(Party::Realm)));
        if begun.is_err() {
            join(&mut el2, part.va, cut);
            join(&mut host, part.ipa, host_cut);
            return begun;
        }
        self.retrieve(&part)?;
        sure(Party::Host, host.set_state(part.ipa, Keeper::Delegated.state()))
    }

    /// A realm's data is the host's, wiped; the realm's map says `then` in its place. The range is what the realm has from `ipa` on.
    ///
    /// # Errors
    /// As [`Ownership::release`].
    pub fn reclaim<R: Mmu>(
        &self,
        range: Range<Pa>,
        realm: &Realm<'_, R, S>,
        ipa: Ipa,
        then: Option<State>,
    ) -> Result<(), OwnerError> {
        let Some((part, at)) = Self::parts(range, ipa)? else { return Ok(()) };
        let from = Keeper::Realm(realm.number, Purpose::Data);
        let mut host = self.write(self.host);
        let mut el2 = self.write(self.hypervisor);
        let mut guest = self.write(realm.map);
        let change = (HostPage::Kept(from), HostPage::Owned);
        if self.take_page((&mut host, &mut el2, &mut guest), (&part, at), change, then)? {
            return Ok(());
        }
        look_host(&host, &part, HostPage::Kept(from))?;
        let cut = look_el2(&el2, &part, HypervisorPage::Away)?;
        look_realm(&guest, at, RealmPage::Owned(range.start()))?;

        let (state, ram) = (Some(from.state()), Attributes::<Stage2>::RAM);
        let prepared = host
            .prepare_map(part.ipa, state, part.pa.start(), ram, Leaves::LARGEST)
            .map_err(of(Party::Host))?;
        let begun = split(&mut el2, part.va, cut)
            .map_err(of(Party::Hypervisor))
            .and_then(|()| take(&mut guest, at, then).map_err(of(Party::Realm)));
        if begun.is_err() {
            join(&mut el2, part.va, cut);
            return begun;
        }
        self.retrieve(&part)?;
        prepared.commit();
        Ok(())
    }

    /// Takes one page of a realm's data away, if it is one that can be taken so: wiped, and for the host what `change` says.
    #[inline(always)]
    fn take_page<R: Mmu>(
        &self,
        (host, el2, guest): Writers<'_, '_, H, E, R, S>,
        (part, at): (&Part, Range<Ipa>),
        change: (HostPage, HostPage),
        then: Option<State>,
    ) -> Result<bool, OwnerError> {
        let page = part.pa.start();
        let (from, to) = change;
        if let Some(mut of_host) = page_of_host(host, part, from)
            && let Some(mut of_el2) = page_of_el2(el2, part, HypervisorPage::Away)
            && let Some(mut of_guest) = page_of_realm(guest, at, RealmPage::Owned(page))
        {
            put(&mut of_guest, Party::Realm, nothing(then))?;
            put(&mut of_el2, Party::Hypervisor, HypervisorPage::Mapped.entry(page))?;
            self.wipe(&Held::new(part.pa));
            put(&mut of_host, Party::Host, to.entry(page))?;
            return Ok(true);
        }
        Ok(false)
    }

    /// What no realm translates any more comes back into the EL2 map, and is wiped there.
    fn retrieve(&self, part: &Part) -> Result<(), OwnerError> {
        let back = self.hypervisor.protect(part.va, Change::VALIDATE).map(Debt::flush);
        sure(Party::Hypervisor, back)?;
        self.wipe(&Held::new(part.pa));
        Ok(())
    }

    fn wipe(&self, held: &Held) {
        self.granules.zero(held);
        self.granules.clean_and_invalidate(held);
    }

    /// The host shares pages of its own with a realm: both have them, and with what attributes the realm does is the placement's to say.
    ///
    /// # Errors
    /// [`OwnerError`], of the host and the realm.
    pub fn share_with_realm<R: Mmu>(
        &self,
        range: Range<Pa>,
        realm: &Realm<'_, R, S>,
        placement: &Placement,
    ) -> Result<(), OwnerError> {
        let Some((part, at)) = Self::parts(range, placement.ipa)? else { return Ok(()) };
        let mut host = self.write(self.host);
        let mut guest = self.write(realm.map);
        let vacant = RealmPage::Vacant(placement.vacant);
        let attributes = RealmPage::borrowed(placement.attributes);
        if let Some(mut of_host) = page_of_host(&mut host, &part, HostPage::Owned)
            && let Some(mut of_guest) = no_page_of_realm(&mut guest, at, placement.vacant)
        {
            let page = part.pa.start();
            put(&mut of_host, Party::Host, HostPage::SharedWithRealm.entry(page))?;
            return put(&mut of_guest, Party::Realm, of_realm(page, attributes, true));
        }
        look_host(&host, &part, HostPage::Owned)?;
        look_realm(&guest, at, vacant)?;
        let prepared = guest
            .prepare_map(at, placement.vacant, part.pa.start(), attributes, placement.leaves)
            .map_err(of(Party::Realm))?;
        self.mark_host(&part, HostPage::SharedWithRealm).map_err(of(Party::Host))?;
        prepared.commit();
        Ok(())
    }

    /// The host no longer shares pages with a realm, whose map says `then` in their place. The range is what the realm has from `ipa` on.
    ///
    /// # Errors
    /// As [`Ownership::share_with_realm`].
    pub fn unshare_with_realm<R: Mmu>(
        &self,
        range: Range<Pa>,
        realm: &Realm<'_, R, S>,
        ipa: Ipa,
        then: Option<State>,
    ) -> Result<(), OwnerError> {
        let Some((part, at)) = Self::parts(range, ipa)? else { return Ok(()) };
        let mut host = self.write(self.host);
        let mut guest = self.write(realm.map);
        if let Some(mut of_host) = page_of_host(&mut host, &part, HostPage::SharedWithRealm)
            && let Some(mut of_guest) = page_of_realm(&mut guest, at, RealmPage::Borrowed(range.start()))
        {
            put(&mut of_guest, Party::Realm, nothing(then))?;
            return put(&mut of_host, Party::Host, HostPage::Owned.entry(range.start()));
        }
        let cut = look_host(&host, &part, HostPage::SharedWithRealm)?;
        look_realm(&guest, at, RealmPage::Borrowed(range.start()))?;
        let begun = split(&mut host, part.ipa, cut)
            .map_err(of(Party::Host))
            .and_then(|()| take(&mut guest, at, then).map_err(of(Party::Realm)));
        if begun.is_err() {
            join(&mut host, part.ipa, cut);
            return begun;
        }
        sure(Party::Host, self.mark_host(&part, HostPage::Owned))
    }

    /// The host lets a realm have a device of its own, which the host keeps: nothing is said of it but in the realm's map. As for memory that is
    /// shared, what attributes the realm has is the placement's to say.
    ///
    /// # Errors
    /// [`OwnerError`], of the host if it has no device there, and of the realm.
    pub fn lend_device<R: Mmu>(
        &self,
        range: Range<Pa>,
        realm: &Realm<'_, R, S>,
        placement: &Placement,
    ) -> Result<(), OwnerError> {
        let Some((part, at)) = Self::parts(range, placement.ipa)? else { return Ok(()) };
        let host = self.write(self.host);
        let mut guest = self.write(realm.map);
        Self::look_device(&host, &part)?;
        look_realm(&guest, at, RealmPage::Vacant(placement.vacant))?;
        let attributes = RealmPage::borrowed(placement.attributes);
        let prepared = guest
            .prepare_map(at, placement.vacant, part.pa.start(), attributes, placement.leaves)
            .map_err(of(Party::Realm))?;
        prepared.commit();
        Ok(())
    }

    /// A realm no longer has a device of the host's; its map says `then` in its place. The range is what the realm has from `ipa` on.
    ///
    /// # Errors
    /// As [`Ownership::lend_device`].
    pub fn end_device<R: Mmu>(
        &self,
        range: Range<Pa>,
        realm: &Realm<'_, R, S>,
        ipa: Ipa,
        then: Option<State>,
    ) -> Result<(), OwnerError> {
        let Some((part, at)) = Self::parts(range, ipa)? else { return Ok(()) };
        let host = self.write(self.host);
        let mut guest = self.write(realm.map);
        Self::look_device(&host, &part)?;
        look_realm(&guest, at, RealmPage::Borrowed(range.start()))?;
        take(&mut guest, at, then).map_err(of(Party::Realm))
    }

    /// Whether the page at an address is a device of the host's: its own to access, and no RAM.
    pub fn is_device(&self, address: Pa) -> bool {
        let host = self.write(self.host);
        let Ok(page) = Range::new(address.get() & !(GRANULE - 1), GRANULE) else { return false };
        Part::new(page).is_ok_and(|part| Self::look_device(&host, &part).is_ok())
    }

    /// Looks whether all of a range is devices of the host's.
    fn look_device(host: &Writer<'_, '_, Stage2, H, S>, part: &Part) -> Result<(), OwnerError> {
        let wrong =
            |visited: &Visited<Stage2>| (!HostPage::is_device(visited)).then(|| HostPage::of(visited));
        look(host, part.ipa, HostPage::Fixed, wrong)
            .map(drop)
            .map_err(|(page, found)| OwnerError::Host { page, found })
    }

    /// Whether all of a range is a realm's data, and EL2 reaches none of it: for who looks at what the maps say.
    pub fn is_data_of(&self, range: Range<Pa>, realm: u16) -> bool {
        let Ok(part) = Part::new(range) else { return false };
        let host = self.write(self.host);
        let el2 = self.write(self.hypervisor);
        let data = HostPage::Kept(Keeper::Realm(realm, Purpose::Data));
        look_host(&host, &part, data).is_ok() && look_el2(&el2, &part, HypervisorPage::Away).is_ok()
    }

    /// A range and as many addresses of a realm, if there are any.
    fn parts(range: Range<Pa>, ipa: Ipa) -> Result<Option<(Part, Range<Ipa>)>, OwnerError> {
        let part = Part::new(range)?;
        let at = part.at(ipa)?;
        Ok((!range.is_empty()).then_some((part, at)))
    }

    /// Joins the pages of one block, of `level` (1 or 2) at `block`, to one word in the host's map, and in the EL2 map if that may have blocks
    /// there, where they are alike: so tables come back, at less cost than by [`Ownership::tidy`].
    pub fn join(&self, block: Pa, level: u8, at_el2: bool) {
        let Ok((ipa, va)) = Ipa::new(block.get()).and_then(|ipa| Ok((ipa, Va::new(block.get())?))) else {
            return;
        };
        // What is not alike stays in pages, which say the same.
        let _ = self.write(self.host).join_entry(ipa, level);
        if at_el2 {
            let _ = self.write(self.hypervisor).join_entry(va, level);
        }
    }

    /// Joins what a range touches in the host's map to the largest leaves and words, in the EL2 map to what `leaves` allows. It is read whole: for
    /// when there is time. What must stay in pages at EL2 is not to be in the range.
    ///
    /// # Errors
    /// [`OwnerError::Range`]; [`OwnerError::Map`] if other CPUs do not stand still.
    pub fn tidy(&self, range: Range<Pa>, leaves: Leaves) -> Result<(), OwnerError> {
        let part = Part::new(range)?;
        self.write(self.host).collapse(part.ipa, Leaves::LARGEST).map_err(of(Party::Host))?;
        self.write(self.hypervisor).collapse(part.va, leaves).map_err(of(Party::Hypervisor))
    }
}
