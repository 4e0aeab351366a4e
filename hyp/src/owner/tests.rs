//! Every party's view of every page, against a flat list of what each page is: after every call, on the small shape and the real one, at each
//! level of FEAT_BBM, with as few tables as one likes and CPUs that do not stand still; and from several threads at once,
//! which is what Miri is for here: a table of 512 words takes it minutes.

use std::cell::Cell;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Barrier, Mutex};
use std::thread;

use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::caps::gate::{Gate, Here};
use crate::mapping::fake::FakeMmu;
use crate::mapping::geometry::level_size;
use crate::mapping::{
    Address, Attributes, Capabilities, Change, El2, Entry, GRANULE, Geometry, Granule4K, Ipa, Leaves, Map,
    MapError, Options, Pa, Range, Regime, Shape, Stage2, State, Tiny,
};

const SECRET: u64 = 0x5ec2e7;
const FILLED: u64 = 0xf111ed;
const HOSTS: u64 = 0x4057;
const REALMS: usize = 2;
/// What half of the second realm's addresses say at first.
const UNASSIGNED: u64 = 9;

/// A machine's memory, by page.
#[derive(Clone, Copy)]
struct Plan {
    first: u64,
    pages: usize,
    io: usize,
    own: (usize, usize),
    bits: u32,
}

trait Machine: Shape {
    const PLAN: Plan;
    const CALLS: usize;
}

impl Machine for Tiny {
    const PLAN: Plan = Plan { first: 0, pages: 256, io: 16, own: (100, 107), bits: 20 };
    const CALLS: usize = 2500;
}

impl Machine for Granule4K {
    const PLAN: Plan = Plan { first: 0x3fe00, pages: 2560, io: 512, own: (1100, 1164), bits: 40 };
    const CALLS: usize = 600;
}

/// What a page is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Is {
    Io,
    Own,
    Host,
    SharedWithHypervisor,
    SharedWithRealm,
    Kept(Keeper),
}

impl Is {
    fn page(self) -> HostPage {
        match self {
            Self::Io | Self::Own => HostPage::Fixed,
            Self::Host => HostPage::Owned,
            Self::SharedWithHypervisor => HostPage::SharedWithHypervisor,
            Self::SharedWithRealm => HostPage::SharedWithRealm,
            Self::Kept(keeper) => HostPage::Kept(keeper),
        }
    }
    fn is_data(self) -> bool {
        matches!(self, Self::Kept(Keeper::Realm(_, Purpose::Data)))
    }
}

/// What a realm has at an address: pages by their number.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Has {
    Vacant(u64),
    Owned(usize),
    Withheld(usize),
    Borrowed(usize),
}

/// Whether something is put into pages for a realm.
fn is_filled(first: usize) -> bool {
    first.is_multiple_of(2)
}

/// Whether a realm is to translate what it gets at an address: most of it.
fn translates(at: usize) -> bool {
    at % 8 < 6
}

/// Numbers of realms as state words have them.
const NUMBERS: [u16; REALMS] = [3, 0xffff];

/// What everything is.
#[derive(Clone, Debug, PartialEq)]
struct Oracle {
    pages: Vec<Is>,
    realms: [Vec<Has>; REALMS],
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    Share,
    Unshare,
    Donate,
    GiveBack,
    Delegate,
    Undelegate,
    Keep(usize, Purpose),
    Unkeep(usize, Purpose),
    Assign(usize, usize),
    Release(usize, usize, u64),
    DonateToRealm(usize, usize),
    Reclaim(usize, usize, u64),
    ShareWithRealm(usize, usize),
    UnshareWithRealm(usize, usize, u64),
    Tidy,
}
use Call::*;

const KEPT: [Purpose; 4] = [Purpose::Descriptor, Purpose::Rec, Purpose::Aux, Purpose::Table];

impl Call {
    fn random(random: &mut SmallRng, pages: usize) -> Self {
        let realm = random.random_range(0..REALMS);
        let at = random.random_range(0..pages);
        let then = random.random_range(0..3);
        let purpose = KEPT[random.random_range(0..KEPT.len())];
        match random.random_range(0..15) {
            0 => Share,
            1 => Unshare,
            2 => Donate,
            3 => GiveBack,
            4 => Delegate,
            5 => Undelegate,
            6 => Keep(realm, purpose),
            7 => Unkeep(realm, purpose),
            8 => Assign(realm, at),
            9 => Release(realm, at, then),
            10 => DonateToRealm(realm, at),
            11 => Reclaim(realm, at, then),
            12 => ShareWithRealm(realm, at),
            13 => UnshareWithRealm(realm, at, then),
            _ => Tidy,
        }
    }

    fn kind(self) -> usize {
        match self {
            Share => 0,
            Unshare => 1,
            Donate => 2,
            GiveBack => 3,
            Delegate => 4,
            Undelegate => 5,
            Keep(..) => 6,
            Unkeep(..) => 7,
            Assign(..) => 8,
            Release(..) => 9,
            DonateToRealm(..) => 10,
            Reclaim(..) => 11,
            ShareWithRealm(..) => 12,
            UnshareWithRealm(..) => 13,
            Tidy => 14,
        }
    }

    /// What pages must be for it, and what they are then.
    fn between(self) -> (Is, Is) {
        let realm = |n: usize, purpose| Is::Kept(Keeper::Realm(NUMBERS[n], purpose));
        let (hypervisor, delegated) = (Is::Kept(Keeper::Hypervisor), Is::Kept(Keeper::Delegated));
        match self {
            Share => (Is::Host, Is::SharedWithHypervisor),
            Unshare => (Is::SharedWithHypervisor, Is::Host),
            Donate => (Is::Host, hypervisor),
            GiveBack => (hypervisor, Is::Host),
            Delegate => (Is::Host, delegated),
            Undelegate => (delegated, Is::Host),
            Keep(n, purpose) => (delegated, realm(n, purpose)),
            Unkeep(n, purpose) => (realm(n, purpose), delegated),
            Assign(n, _) => (delegated, realm(n, Purpose::Data)),
            Release(n, ..) => (realm(n, Purpose::Data), delegated),
            DonateToRealm(n, _) => (Is::Host, realm(n, Purpose::Data)),
            Reclaim(n, ..) => (realm(n, Purpose::Data), Is::Host),
            ShareWithRealm(..) => (Is::Host, Is::SharedWithRealm),
            UnshareWithRealm(..) => (Is::SharedWithRealm, Is::Host),
            Tidy => unreachable!(),
        }
    }

    /// Where it is about a realm's address, if it is.
    fn at(self) -> usize {
        match self {
            Assign(_, at) | DonateToRealm(_, at) | ShareWithRealm(_, at) => at,
            Release(_, at, _) | Reclaim(_, at, _) | UnshareWithRealm(_, at, _) => at,
            _ => 0,
        }
    }

    fn wipes(self) -> bool {
        matches!(self, GiveBack | Delegate | Undelegate | Unkeep(..) | Release(..) | Reclaim(..))
    }
}

/// What the oracle says to a call.
#[derive(Debug, PartialEq)]
enum Answer {
    Done,
    Host(u64, HostPage),
    Realm(u64),
}

impl Oracle {
    fn new(plan: &Plan) -> Self {
        let is = |page| match page {
            page if page < plan.io => Is::Io,
            page if (plan.own.0..plan.own.1).contains(&page) => Is::Own,
            _ => Is::Host,
        };
        let state = |at: usize| Has::Vacant(if at < plan.pages / 2 { UNASSIGNED } else { 0 });
        Self {
            pages: (0..plan.pages).map(is).collect(),
            realms: [vec![Has::Vacant(0); plan.pages], (0..plan.pages).map(state).collect()],
        }
    }

    /// Makes a call, if it is one that can be made.
    fn call(&mut self, plan: &Plan, call: Call, from: usize, count: usize) -> Answer {
        if call == Tidy || count == 0 {
            return Answer::Done;
        }
        let (before, after) = call.between();
        for page in from..from + count {
            let address = (plan.first + page as u64) * GRANULE;
            match self.pages.get(page) {
                None => return Answer::Host(address, HostPage::Fixed),
                Some(&is) if is != before => return Answer::Host(address, is.page()),
                Some(_) => {}
            }
        }
        let mut realm = None;
        match call {
            Assign(n, at) | DonateToRealm(n, at) | ShareWithRealm(n, at) => {
                let vacant = Has::Vacant(self.vacant(n, at));
                for ipa in at..at + count {
                    if self.realms[n].get(ipa) != Some(&vacant) {
                        return Answer::Realm(ipa as u64 * GRANULE);
                    }
                }
                realm = Some((n, at, None));
            }
            Release(n, at, then) | Reclaim(n, at, then) | UnshareWithRealm(n, at, then) => {
                for i in 0..count {
                    let page = from + i;
                    let has: &[Has] = match before.is_data() {
                        true => &[Has::Owned(page), Has::Withheld(page)],
                        false => &[Has::Borrowed(page)],
                    };
                    if !self.realms[n].get(at + i).is_some_and(|found| has.contains(found)) {
                        return Answer::Realm((at + i) as u64 * GRANULE);
                    }
                }
                realm = Some((n, at, Some(then)));
            }
            _ => {}
        }
        for i in 0..count {
            self.pages[from + i] = after;
            if let Some((n, at, then)) = realm {
                self.realms[n][at + i] = match then {
                    Some(state) => Has::Vacant(state),
                    None if after.is_data() && translates(at) => Has::Owned(from + i),
                    None if after.is_data() => Has::Withheld(from + i),
                    None => Has::Borrowed(from + i),
                };
            }
        }
        Answer::Done
    }

    /// What a realm's address says, if nothing is there.
    fn vacant(&self, realm: usize, at: usize) -> u64 {
        match self.realms[realm].get(at) {
            Some(Has::Vacant(state)) => *state,
            _ => 0,
        }
    }

    /// A call that can be made, if its pages can change: with the pages around one that are alike.
    fn likely(&self, random: &mut SmallRng, unit: usize) -> (Call, usize, usize) {
        let page = random.random_range(0..self.pages.len());
        let mut call;
        loop {
            call = Call::random(random, self.pages.len());
            if call != Tidy && call.between().0 == self.pages[page]
                || matches!(self.pages[page], Is::Io | Is::Own)
            {
                break;
            }
        }
        if let Release(n, at, _) | Reclaim(n, at, _) | UnshareWithRealm(n, at, _) = &mut call {
            let of = |n: usize| {
                let of_page = [Has::Owned(page), Has::Withheld(page), Has::Borrowed(page)];
                self.realms[n].iter().position(|has| of_page.contains(has))
            };
            (*n, *at) = (0..REALMS).find_map(|n| of(n).map(|at| (n, at))).unwrap_or((*n, *at));
            // And now and then not what it is.
            *at = if random.random_ratio(1, 10) { random.random_range(0..self.pages.len()) } else { *at };
        }
        let most = match random.random_range(0..4) {
            0 => 1,
            1 => random.random_range(1..=unit),
            2 => unit,
            _ => random.random_range(1..=4 * unit),
        };
        // Blocks where they can be.
        if let Assign(_, at) | DonateToRealm(_, at) | ShareWithRealm(_, at) = &mut call
            && random.random_bool(0.6)
        {
            *at = *at / unit * unit + page % unit;
        }
        let mut count = 1;
        while count < most && self.can(call, page, count + 1) {
            count += 1;
        }
        (call, page, count)
    }

    fn can(&self, call: Call, page: usize, count: usize) -> bool {
        let alike =
            call != Tidy && (page..page + count).all(|p| self.pages.get(p) == Some(&call.between().0));
        let has = |n: usize, at: usize| self.realms[n].get(at + count - 1).copied();
        alike
            && match call {
                Assign(n, at) | DonateToRealm(n, at) | ShareWithRealm(n, at) => {
                    has(n, at) == self.realms[n].get(at).copied()
                }
                Release(n, at, _) | Reclaim(n, at, _) => {
                    let last = page + count - 1;
                    [Has::Owned(last), Has::Withheld(last)].map(Some).contains(&has(n, at))
                }
                UnshareWithRealm(n, at, _) => has(n, at) == Some(Has::Borrowed(page + count - 1)),
                _ => true,
            }
    }
}

/// The maps of a machine.
struct World<'w, S: Machine> {
    host: Map<Stage2, &'w FakeMmu, S>,
    el2: Map<El2, &'w FakeMmu, S>,
    realms: [Map<Stage2, &'w FakeMmu, S>; REALMS],
    /// What each page holds, and whether that is only in caches.
    memory: Mutex<Vec<(u64, bool)>>,
}

/// Looks, whenever memory is touched, whether anybody else can reach it. Not beside others, who would be seen half way.
struct Memory<'w, S: Machine>(&'w World<'w, S>, bool);

impl<S: Machine> Memory<'_, S> {
    fn each(&self, held: &Held, change: impl Fn(&mut (u64, bool))) {
        let plan = S::PLAN;
        let range = held.range();
        let first = (range.start().get() / GRANULE - plan.first) as usize;
        let pages = first..first + (range.size() / GRANULE) as usize;
        if self.1 {
            let seen = self.0.seen();
            for page in pages.clone() {
                assert!(
                    !matches!(seen.host[page], Seen::Leaf(..)),
                    "{page} is the host's when it is touched"
                );
                assert_eq!(
                    seen.el2[page],
                    Seen::Leaf(page as u64 + plan.first, Attributes::<El2>::DATA.bits())
                );
                for realm in &seen.realms {
                    let is_page =
                        |seen: &Seen| matches!(seen, Seen::Leaf(p, _) if *p == page as u64 + plan.first);
                    assert!(!realm.iter().any(is_page), "{page} is a realm's when it is touched");
                }
            }
        }
        pages.for_each(|page| change(&mut self.0.memory.lock().unwrap()[page]));
    }
}

impl<S: Machine> Granules for Memory<'_, S> {
    fn zero(&self, held: &Held) {
        self.each(held, |page| *page = (0, true));
    }
    fn clean_and_invalidate(&self, held: &Held) {
        self.each(held, |page| page.1 = false);
    }
}

/// What an entry says of one page.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Seen {
    Nothing,
    State(u64),
    Leaf(u64, u64),
    Invalid(u64, u64),
}

struct View {
    host: Vec<Seen>,
    el2: Vec<Seen>,
    realms: [Vec<Seen>; REALMS],
}

/// Each page of a map from page `first` on.
fn pages<R: Regime, S: Machine>(map: &Map<R, &FakeMmu, S>, first: u64) -> Vec<Seen> {
    let count = S::PLAN.pages;
    let mut all = vec![Seen::Nothing; count];
    let mut cpu = (0..8).find_map(|slot| map.cpu(slot)).unwrap();
    let range = Range::new(first * GRANULE, count as u64 * GRANULE).unwrap();
    let _ = cpu.read().walk(range, |visited| {
        let (start, size) = (visited.start / GRANULE, level_size::<S>(visited.level) / GRANULE);
        for page in start.max(first)..(start + size).min(first + count as u64) {
            all[(page - first) as usize] = match visited.entry {
                Entry::Leaf { output, attributes, valid, .. } => {
                    let at = output.get() / GRANULE + page - start;
                    if valid {
                        Seen::Leaf(at, attributes.bits())
                    } else {
                        Seen::Invalid(at, attributes.bits())
                    }
                }
                Entry::State(state) => Seen::State(state.get()),
                _ => Seen::Nothing,
            };
        }
        ControlFlow::<()>::Continue(())
    });
    all
}

fn range<A: Address>(page: u64, pages: usize) -> Range<A> {
    Range::new(page * GRANULE, pages as u64 * GRANULE).unwrap()
}

/// Of CPUs with this level of FEAT_BBM.
fn bbm(level: u8) -> Options {
    Options::new(Capabilities::LEAST | Capabilities::bbm(level))
}

impl<'w, S: Machine> World<'w, S> {
    fn new(mmu: &'w FakeMmu, level: u8) -> Self {
        let plan = S::PLAN;
        let stage2 = || Map::new(mmu, Geometry::stage2(plan.bits).unwrap(), bbm(level)).unwrap();
        let (mut host, mut realms) = (stage2(), [stage2(), stage2()]);
        let mut el2 = Map::new(mmu, Geometry::stage1(plan.bits).unwrap(), bbm(level)).unwrap();
        let ram = [(plan.io, plan.own.0), (plan.own.1, plan.pages)];
        let pa = |page: usize| Pa::new((plan.first + page as u64) * GRANULE).unwrap();
        {
            let (mut host, mut el2) = (host.get_mut(), el2.get_mut());
            let at = |from: usize| plan.first + from as u64;
            host.map(range(at(0), plan.io), pa(0), Attributes::<Stage2>::IO, Leaves::LARGEST).unwrap();
            let own = (range(at(plan.own.0), plan.own.1 - plan.own.0), pa(plan.own.0));
            el2.map(own.0, own.1, Attributes::<El2>::DATA.marked(1), Leaves::PAGES).unwrap();
            for (from, to) in ram {
                let (ipa, va) = (range(at(from), to - from), range(at(from), to - from));
                host.map(ipa, pa(from), Attributes::<Stage2>::RAM, Leaves::LARGEST).unwrap();
                el2.map(va, pa(from), Attributes::<El2>::DATA, Leaves::LARGEST).unwrap();
            }
        }
        let unassigned = State::new(UNASSIGNED).unwrap();
        realms[1].get_mut().set_state(range(0, plan.pages / 2), unassigned).unwrap();
        Self { host, el2, realms, memory: Mutex::new(vec![(0, false); plan.pages]) }
    }

    fn seen(&self) -> View {
        let first = S::PLAN.first;
        View {
            host: pages(&self.host, first),
            el2: pages(&self.el2, first),
            realms: [pages(&self.realms[0], 0), pages(&self.realms[1], 0)],
        }
    }

    /// What each party must see, by constants of this file and not by what the room says of itself.
    fn check(&self, oracle: &Oracle) {
        let (plan, seen) = (S::PLAN, self.seen());
        let (ram, data) = (Attributes::<Stage2>::RAM, Attributes::<El2>::DATA);
        for (page, &is) in oracle.pages.iter().enumerate() {
            let at = plan.first + page as u64;
            let host = match is {
                Is::Io => Seen::Leaf(at, Attributes::<Stage2>::IO.bits()),
                Is::Own => Seen::Nothing,
                Is::Host => Seen::Leaf(at, ram.bits()),
                Is::SharedWithHypervisor => Seen::Leaf(at, ram.bits() | 1 << 56),
                Is::SharedWithRealm => Seen::Leaf(at, ram.bits() | 2 << 56),
                Is::Kept(Keeper::Hypervisor) => Seen::State(1),
                Is::Kept(Keeper::Delegated) => Seen::State(2),
                Is::Kept(Keeper::Realm(n, Purpose::Data)) => Seen::State(4 | u64::from(n) << 4),
                Is::Kept(Keeper::Realm(n, Purpose::Descriptor)) => Seen::State(5 | u64::from(n) << 4),
                Is::Kept(Keeper::Realm(n, Purpose::Rec)) => Seen::State(6 | u64::from(n) << 4),
                Is::Kept(Keeper::Realm(n, Purpose::Table)) => Seen::State(7 | u64::from(n) << 4),
                Is::Kept(Keeper::Realm(n, Purpose::Aux)) => Seen::State(8 | u64::from(n) << 4),
            };
            let el2 = match is {
                Is::Io => Seen::Nothing,
                Is::Own => Seen::Leaf(at, data.bits() | 1 << 56),
                is if is.is_data() => Seen::Invalid(at, data.bits()),
                _ => Seen::Leaf(at, data.bits()),
            };
            assert_eq!((seen.host[page], seen.el2[page]), (host, el2), "page {page}, {is:?}");
        }
        for (seen, oracle) in seen.realms.iter().zip(&oracle.realms) {
            for (ipa, (&seen, &has)) in seen.iter().zip(oracle).enumerate() {
                let wanted = match has {
                    Has::Vacant(0) => Seen::Nothing,
                    Has::Vacant(state) => Seen::State(state),
                    Has::Owned(page) => Seen::Leaf(plan.first + page as u64, ram.bits()),
                    Has::Withheld(page) => Seen::Invalid(plan.first + page as u64, ram.bits()),
                    Has::Borrowed(page) => Seen::Leaf(plan.first + page as u64, ram.bits() | 1 << 56),
                };
                assert_eq!(seen, wanted, "ipa {ipa}");
            }
        }
    }

    /// Makes a call of the room; what is stored by whom it gives the pages comes after.
    fn call(
        &self,
        call: Call,
        from: usize,
        count: usize,
        vacant: u64,
        looks: bool,
    ) -> Result<(), OwnerError> {
        let owner = Ownership::new(&self.host, &self.el2, Memory(self, looks));
        let pages = range(S::PLAN.first + from as u64, count);
        let realm = |n: usize| Realm { number: NUMBERS[n], map: &self.realms[n] };
        let state = |value: u64| State::new(value).filter(|_| value != 0);
        let ipa = |at: usize| Ipa::new(at as u64 * GRANULE).unwrap();
        let placement = |at: usize| Placement {
            ipa: ipa(at),
            vacant: state(vacant),
            attributes: Attributes::<Stage2>::RAM.marked(7),
            leaves: Leaves::LARGEST,
            translates: translates(at),
        };
        match call {
            Share => owner.share(pages),
            Unshare => owner.unshare(pages),
            Donate => {
                let held = owner.donate(pages)?;
                assert_eq!(held.range(), pages);
                Ok(())
            }
            GiveBack => owner.give_back(Held::new(pages)).map_err(|refused| {
                assert_eq!(refused.held.range(), pages);
                refused.error
            }),
            Delegate => owner.delegate(pages),
            Undelegate => owner.undelegate(pages),
            Keep(n, purpose) => owner.keep(pages, NUMBERS[n], purpose, |held| {
                Memory(self, looks).each(held, |page| *page = (FILLED, true));
            }),
            Unkeep(n, purpose) => owner.unkeep(pages, NUMBERS[n], purpose),
            Assign(n, at) if is_filled(from) => owner.assign(pages, &realm(n), &placement(at), |held| {
                Memory(self, looks).each(held, |page| *page = (FILLED, true));
            }),
            Assign(n, at) => owner.assign_unfilled(pages, &realm(n), &placement(at)),
            Release(n, at, then) => owner.release(pages, &realm(n), ipa(at), state(then)),
            DonateToRealm(n, at) => owner.donate_to_realm(pages, &realm(n), &placement(at)),
            Reclaim(n, at, then) => owner.reclaim(pages, &realm(n), ipa(at), state(then)),
            ShareWithRealm(n, at) => owner.share_with_realm(pages, &realm(n), &placement(at)),
            UnshareWithRealm(n, at, then) => owner.unshare_with_realm(pages, &realm(n), ipa(at), state(then)),
            Tidy => owner.tidy(pages, Leaves::LARGEST),
        }
    }

    /// Makes a call and its like of the oracle, compares what they say, and what they have done to memory; what comes out.
    fn both(
        &self,
        oracle: &mut Oracle,
        call: Call,
        from: usize,
        count: usize,
        looks: bool,
    ) -> Result<(), OwnerError> {
        let vacant = match call {
            Assign(n, at) | DonateToRealm(n, at) | ShareWithRealm(n, at) => oracle.vacant(n, at),
            _ => 0,
        };
        let memory = |from: usize| self.memory.lock().unwrap()[from..from + count].to_vec();
        let mut after = oracle.clone();
        let answer = after.call(&S::PLAN, call, from, count);
        let before = if answer == Answer::Done { memory(from) } else { vec![] };
        let result = self.call(call, from, count, vacant, looks);
        match (&result, &answer) {
            (Err(OwnerError::Map { error, .. }), Answer::Done) => {
                assert!(matches!(error, MapError::OutOfTables { .. } | MapError::NotQuiet(_)), "{error}");
            }
            (Ok(()), Answer::Done) => {}
            (Err(OwnerError::Host { page, found }), Answer::Host(p, f)) => assert_eq!((page, found), (p, f)),
            (Err(OwnerError::Realm { ipa, .. }), Answer::Realm(i)) => assert_eq!(ipa, i),
            _ => panic!("{call:?} of {count} pages at {from}: {result:?}, not {answer:?}"),
        }
        if answer != Answer::Done || call == Tidy {
            return result;
        }
        if result.is_err() {
            assert_eq!(memory(from), before, "a call that fails has written to memory");
            return result;
        }
        *oracle = after;
        if call.wipes() {
            assert_eq!(memory(from), vec![(0, false); count], "{call:?} leaves something");
        }
        match call {
            Assign(..) if is_filled(from) => assert_eq!(memory(from), vec![(FILLED, false); count]),
            Assign(..) => assert_eq!(memory(from), vec![(0, false); count]),
            DonateToRealm(..) => {
                assert!(memory(from).iter().all(|page| !page.1), "{call:?} leaves something in caches");
            }
            Keep(..) => assert_eq!(memory(from), vec![(FILLED, true); count]),
            _ => {}
        }
        // Who has it now uses it.
        let mut memory = self.memory.lock().unwrap();
        for page in from..from + count {
            match oracle.pages[page] {
                Is::Kept(Keeper::Delegated) => {}
                Is::Kept(_) => memory[page] = (SECRET, true),
                Is::Host if memory[page].0 != SECRET => memory[page] = (HOSTS, true),
                _ => assert_ne!(memory[page].0, SECRET, "the host reads what is not its own"),
            }
        }
        result
    }

    /// Gives everything back to the host, and joins it.
    fn undo_all(&self, oracle: &mut Oracle) {
        for (page, &is) in oracle.pages.clone().iter().enumerate() {
            let has = |has: &[Has]| {
                let at = |n: usize| oracle.realms[n].iter().position(|h| has.contains(h));
                (0..REALMS).find_map(|n| at(n).map(|at| (n, at))).unwrap()
            };
            let call = match is {
                Is::Io | Is::Own | Is::Host => continue,
                Is::SharedWithHypervisor => Unshare,
                Is::SharedWithRealm => {
                    let (n, at) = has(&[Has::Borrowed(page)]);
                    UnshareWithRealm(n, at, 0)
                }
                Is::Kept(Keeper::Hypervisor) => GiveBack,
                Is::Kept(Keeper::Delegated) => Undelegate,
                Is::Kept(Keeper::Realm(_, Purpose::Data)) => {
                    let (n, at) = has(&[Has::Owned(page), Has::Withheld(page)]);
                    Reclaim(n, at, 0)
                }
                Is::Kept(Keeper::Realm(number, purpose)) => {
                    let n = NUMBERS.iter().position(|&n| n == number).unwrap();
                    self.both(oracle, Unkeep(n, purpose), page, 1, false).unwrap();
                    Undelegate
                }
            };
            self.both(oracle, call, page, 1, false).unwrap();
        }
        let plan = S::PLAN;
        self.call(Tidy, 0, plan.pages, 0, false).unwrap();
        for realm in &self.realms {
            let mut cpu = realm.cpu(0).unwrap();
            cpu.write().unmap(range(0, plan.pages)).unwrap().flush();
        }
        self.settle();
    }

    fn settle(&self) {
        self.realms.iter().chain([&self.host]).for_each(Map::settle);
        self.el2.settle();
    }
}

/// Tables of a machine of which nobody has asked for anything.
fn tables_at_first<S: Machine>(level: u8) -> usize {
    let mmu = FakeMmu::of_entries(if S::ENTRIES < 16 { 400 } else { 40 }, S::ENTRIES);
    World::<S>::new(&mmu, level).settle();
    mmu.pool().used()
}

/// Of the run: another one, other calls.
fn seed() -> u64 {
    std::env::var("CLOVEN_SEED").map_or(1, |text| text.parse().unwrap())
}

/// `few` random calls, or more in proportion to `CLOVEN_OPERATIONS`, by which the engine's tests make 20,000.
fn calls(few: usize) -> usize {
    let operations: usize = std::env::var("CLOVEN_OPERATIONS").map_or(0, |text| text.parse().unwrap());
    few * (operations / 20_000).max(1)
}

/// Random calls, with so many tables more than the machine begins with.
fn random_calls<S: Machine>(seed: u64, level: u8, more: usize, refuses: bool) {
    let random = &mut SmallRng::seed_from_u64(self::seed().wrapping_mul(0x1_0000).wrapping_add(seed));
    let plan = S::PLAN;
    let entries = S::ENTRIES;
    let begun = tables_at_first::<S>(level);
    let mmu = FakeMmu::of_entries(begun + more, entries);
    let world = World::<S>::new(&mmu, level);
    let mut oracle = Oracle::new(&plan);
    world.check(&oracle);
    let (mut done, mut short, mut kinds) = (0, 0, [0; 15]);
    for number in 0..calls(S::CALLS) {
        mmu.quiesce.refuses.store(refuses && random.random_bool(0.3), Relaxed);
        let (call, from, count) = if random.random_ratio(1, 20) {
            let from = random.random_range(0..plan.pages - entries);
            (Tidy, from, entries)
        } else if random.random_bool(0.85) {
            oracle.likely(random, entries)
        } else {
            let from = random.random_range(0..plan.pages);
            let call = Call::random(random, plan.pages);
            // The addresses of a realm's map end where the pages do on the small shape only.
            let last = if entries > 16 { from.max(call.at()) } else { from };
            (call, from, random.random_range(0..=3 * entries).min(plan.pages - last))
        };
        world.settle();
        let used = mmu.pool().used();
        let result = world.both(&mut oracle, call, from, count, true);
        match result {
            Ok(()) => {
                done += 1;
                kinds[call.kind()] += usize::from(count > 1);
            }
            Err(error) => {
                world.settle();
                assert!(mmu.pool().used() <= used || call == Tidy, "{call:?} leaves tables: {error}");
                short += usize::from(matches!(error, OwnerError::Map { .. }));
            }
        }
        if S::ENTRIES < 16 || number % 8 == 0 || result.is_err() {
            world.check(&oracle);
        }
        mmu.take_tlbis();
        mmu.quiesce.asked.lock().unwrap().clear();
    }
    world.check(&oracle);
    assert!(done > if more > 100 { S::CALLS / 4 } else { 10 }, "{done} of {} calls", S::CALLS);
    assert!(more <= 100 || kinds.iter().all(|&count| count > 1), "{kinds:?}");
    assert!(short == 0 || more <= 100, "{short} calls were short of something");
    assert!(short > 0 || more > 100 || S::ENTRIES > 16, "no call was short of anything");
    mmu.quiesce.refuses.store(false, Relaxed);
    if more > 100 {
        world.undo_all(&mut oracle);
        // The second realm has nothing of its first state any more.
        assert!(mmu.pool().used() <= begun, "{} tables are left of {begun}", mmu.pool().used());
        world.check(&Oracle {
            realms: [vec![Has::Vacant(0); plan.pages], vec![Has::Vacant(0); plan.pages]],
            ..Oracle::new(&plan)
        });
    }
}

#[test]
#[cfg_attr(miri, ignore)]
fn every_party_sees_what_each_page_is_after_every_call() {
    for level in 0..4 {
        random_calls::<Tiny>(u64::from(level), level, 4000, false);
        random_calls::<Granule4K>(u64::from(level), level, 400, false);
    }
}

#[test]
#[cfg_attr(miri, ignore)]
fn a_call_without_tables_or_quiet_changes_nothing() {
    for level in 0..4 {
        for more in [0, 1, 2, 3, 5, 8, 13, 21, 34] {
            random_calls::<Tiny>(u64::from(level) * 100 + more as u64, level, more, true);
        }
        random_calls::<Granule4K>(u64::from(level), level, 3, true);
    }
}

/// A call, its first page and how many.
type On = (Call, usize, usize);

/// Calls that lead to one which needs tables in each map that it changes, on the small shape: pages 128 to 191 are blocks
/// of 16, in runs of two.
const TIGHT: &[(&[On], On)] = &[
    (&[], (Share, 130, 9)),
    (&[(Share, 128, 64)], (Unshare, 130, 9)),
    (&[], (Donate, 130, 9)),
    (&[(Donate, 128, 64)], (GiveBack, 130, 9)),
    (&[], (Delegate, 130, 9)),
    (&[(Delegate, 128, 64), (Tidy, 0, 256)], (Undelegate, 130, 9)),
    (&[(Delegate, 128, 64), (Tidy, 0, 256)], (Keep(0, Purpose::Rec), 130, 9)),
    (&[(Delegate, 128, 64), (Keep(0, Purpose::Rec), 128, 64)], (Unkeep(0, Purpose::Rec), 130, 9)),
    (&[(Delegate, 128, 64)], (Assign(0, 130), 130, 9)),
    (&[(Delegate, 128, 64)], (Assign(1, 1), 130, 9)),
    (&[], (DonateToRealm(0, 66), 130, 9)),
    (&[(DonateToRealm(0, 64), 128, 64), (Tidy, 0, 256)], (Reclaim(0, 66, 5), 130, 9)),
    (&[(DonateToRealm(0, 64), 128, 64), (Tidy, 0, 256)], (Reclaim(0, 66, 0), 130, 9)),
    (&[(DonateToRealm(0, 64), 128, 64), (Tidy, 0, 256)], (Release(0, 66, 5), 130, 9)),
    (&[(DonateToRealm(0, 64), 128, 64), (Tidy, 0, 256)], (Release(0, 66, 0), 130, 9)),
    (&[], (ShareWithRealm(1, 66), 130, 9)),
    (&[(ShareWithRealm(0, 64), 128, 64)], (UnshareWithRealm(0, 66, 0), 130, 9)),
    (&[(ShareWithRealm(0, 64), 128, 64)], (UnshareWithRealm(0, 66, 5), 130, 9)),
];

#[test]
#[cfg_attr(miri, ignore)]
fn with_every_number_of_tables_a_call_is_done_or_undone() {
    for level in 0..4 {
        for &(before, (call, from, count)) in TIGHT {
            let mut short = 0;
            for tables in 0.. {
                let mmu = FakeMmu::of_entries(tables_at_first::<Tiny>(level) + tables, Tiny::ENTRIES);
                let world = World::<Tiny>::new(&mmu, level);
                let mut oracle = Oracle::new(&Tiny::PLAN);
                let mut make = |(call, from, count)| world.both(&mut oracle, call, from, count, true);
                if before.iter().any(|&call| make(call).is_err()) {
                    continue;
                }
                world.settle();
                let used = mmu.pool().used();
                let result = make((call, from, count));
                world.check(&oracle);
                if result.is_ok() {
                    break;
                }
                short += 1;
                world.settle();
                assert!(mmu.pool().used() <= used, "{call:?} leaves tables");
            }
            assert!(short > 0, "{call:?} after {before:?} needs no table");
        }
    }
}

#[test]
#[cfg_attr(miri, ignore)]
fn threads_that_change_pages_of_the_same_tables_do_not_disturb_each_other() {
    const THREADS: usize = 4;
    for level in 0..4 {
        let mmu = FakeMmu::of_entries(2000, Tiny::ENTRIES);
        let world = &World::<Tiny>::new(&mmu, level);
        let plan = Tiny::PLAN;
        // Every fourth pair of pages is one thread's, and the same addresses of the realms.
        let of = |thread: usize, page: usize| page / 2 % THREADS == thread;
        let oracles: Vec<Oracle> = thread::scope(|scope| {
            let run = |thread: usize| {
                move || {
                    let random =
                        &mut SmallRng::seed_from_u64(seed() << 16 | (thread as u64) << 4 | u64::from(level));
                    let mut oracle = Oracle::new(&plan);
                    for _ in 0..4000 {
                        let (call, page, _) = oracle.likely(random, 1);
                        if !of(thread, page) {
                            continue;
                        }
                        let call = match call {
                            Assign(n, _) => Assign(n, page),
                            DonateToRealm(n, _) => DonateToRealm(n, page),
                            ShareWithRealm(n, _) => ShareWithRealm(n, page),
                            call => call,
                        };
                        let two = page & 1 == 0 && random.random() && oracle.can(call, page, 2);
                        let _ = world.both(&mut oracle, call, page, 1 + usize::from(two), false);
                        if random.random_ratio(1, 50) {
                            world.both(&mut oracle, Tidy, page, 1, false).unwrap();
                        }
                    }
                    oracle
                }
            };
            let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(run(thread))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let mut all = Oracle::new(&plan);
        for page in 0..plan.pages {
            let oracle =
                (0..THREADS).find(|&thread| of(thread, page)).map(|thread| &oracles[thread]).unwrap();
            all.pages[page] = oracle.pages[page];
            (0..REALMS).for_each(|n| all.realms[n][page] = oracle.realms[n][page]);
        }
        world.check(&all);
        assert!(all.pages.iter().filter(|is| is.is_data()).count() > 10);
        world.undo_all(&mut all);
    }
}

#[test]
fn threads_that_ask_for_the_same_pages_leave_each_with_one_owner() {
    for seed in 0..if cfg!(miri) { 1 } else { 8 } {
        let mmu = FakeMmu::of_entries(2000, Tiny::ENTRIES);
        let world = &World::<Tiny>::new(&mmu, seed as u8 & 3);
        let plan = Tiny::PLAN;
        let taken: usize = thread::scope(|scope| {
            let run = |thread: u64| {
                move || {
                    let random = &mut SmallRng::seed_from_u64(self::seed() << 16 | seed << 4 | thread);
                    let mut done = 0;
                    for _ in 0..if cfg!(miri) { 20 } else { 2000 } {
                        let (from, count) = (random.random_range(120..136), random.random_range(1..6));
                        let call = match Call::random(random, plan.pages) {
                            Assign(n, _) => Assign(n, from),
                            DonateToRealm(n, _) => DonateToRealm(n, from),
                            ShareWithRealm(n, _) => ShareWithRealm(n, from),
                            Release(n, _, _) => Release(n, from, 0),
                            Reclaim(n, _, _) => Reclaim(n, from, 0),
                            UnshareWithRealm(n, _, _) => UnshareWithRealm(n, from, 0),
                            call => call,
                        };
                        done += usize::from(world.call(call, from, count, 0, false).is_ok());
                    }
                    done
                }
            };
            let threads: Vec<_> = (0..3).map(|thread| scope.spawn(run(thread))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!(taken > 0);
        // Whatever it is, it is one thing: what the host's map says decides what all others must.
        let seen = world.seen();
        let mut oracle = Oracle::new(&plan);
        let owner = Ownership::new(&world.host, &world.el2, Memory(world, false));
        for page in 112..144 {
            let at = plan.first + page as u64;
            let is = match owner.page(Pa::new(at * GRANULE).unwrap()) {
                HostPage::Owned => Is::Host,
                HostPage::SharedWithHypervisor => Is::SharedWithHypervisor,
                HostPage::SharedWithRealm => Is::SharedWithRealm,
                HostPage::Kept(keeper) => Is::Kept(keeper),
                HostPage::Fixed => panic!("{page} is lost"),
            };
            oracle.pages[page] = is;
            let has = |n: usize| matches!(seen.realms[n][page], Seen::Leaf(..));
            let is_withheld = |n: usize| matches!(seen.realms[n][page], Seen::Invalid(..));
            match is {
                Is::Kept(Keeper::Realm(number, Purpose::Data)) => {
                    let n = NUMBERS.iter().position(|&n| n == number).unwrap();
                    let has = if is_withheld(n) { Has::Withheld } else { Has::Owned };
                    oracle.realms[n][page] = has(page);
                }
                Is::SharedWithRealm => {
                    let n = (0..REALMS).find(|&n| has(n)).expect("it is shared with a realm");
                    oracle.realms[n][page] = Has::Borrowed(page);
                }
                _ => {}
            }
            // Where something was the first state has gone.
            if let Seen::Nothing = seen.realms[1][page]
                && oracle.realms[1][page] == Has::Vacant(UNASSIGNED)
            {
                oracle.realms[1][page] = Has::Vacant(0);
            }
        }
        world.check(&oracle);
        world.undo_all(&mut oracle);
    }
}

/// Maps of 4 GiB of RAM from 1 GiB on, and of a realm, each with tables and TLBs of its own.
struct Large<'w> {
    host: Map<Stage2, &'w FakeMmu>,
    el2: Map<El2, &'w FakeMmu>,
    realm: Map<Stage2, &'w FakeMmu>,
}

const PAGES_OF_2_MIB: u64 = 512;
const GIB: u64 = 1 << 30;

/// What is done to memory, and how many invalidations each MMU had seen by then: the host's, EL2's, the realm's.
struct Log<'w>([&'w FakeMmu; 3], Mutex<Vec<(&'static str, [usize; 3])>>);

impl Log<'_> {
    fn note(&self, what: &'static str) {
        self.1.lock().unwrap().push((what, self.0.map(|mmu| mmu.tlbis.lock().unwrap().len())));
    }
    fn take(&self) -> Vec<(&'static str, [usize; 3])> {
        self.note("end");
        self.0.iter().for_each(|mmu| drop(mmu.take_tlbis()));
        std::mem::take(&mut self.1.lock().unwrap())
    }
}

impl Granules for &Log<'_> {
    fn zero(&self, _: &Held) {
        self.note("zero");
    }
    fn clean_and_invalidate(&self, _: &Held) {
        self.note("clean");
    }
}

impl<'w> Large<'w> {
    fn new(mmus: [&'w FakeMmu; 3]) -> Self {
        let stage2 = |mmu| Map::new(mmu, Geometry::stage2(40).unwrap(), bbm(3)).unwrap();
        let (mut host, realm) = (stage2(mmus[0]), stage2(mmus[2]));
        let mut el2 = Map::new(mmus[1], Geometry::stage1(40).unwrap(), bbm(3)).unwrap();
        let (start, pages) = (GIB / GRANULE, (4 * GIB / GRANULE) as usize);
        let pa = Pa::new(GIB).unwrap();
        let ram = Attributes::<Stage2>::RAM;
        host.get_mut().map(range(start, pages), pa, ram, Leaves::LARGEST).unwrap();
        let data = Attributes::<El2>::DATA;
        el2.get_mut().map(range(start, pages), pa, data, Leaves::LARGEST).unwrap();
        Self { host, el2, realm }
    }
    fn realm(&self) -> Realm<'_, &'w FakeMmu> {
        Realm { number: 1, map: &self.realm }
    }
}

fn placed(page: u64) -> Placement {
    Placement {
        ipa: Ipa::new(page * GRANULE).unwrap(),
        vacant: None,
        attributes: Attributes::<Stage2>::RAM,
        leaves: Leaves::LARGEST,
        translates: true,
    }
}

#[test]
#[cfg_attr(miri, ignore)]
fn who_loses_a_page_has_lost_it_on_every_cpu_before_the_next_one_has_it() {
    let mmus = [FakeMmu::new(20), FakeMmu::new(20), FakeMmu::new(20)];
    let mmus = [&mmus[0], &mmus[1], &mmus[2]];
    let large = Large::new(mmus);
    let log = Log(mmus, Mutex::default());
    let owner = Ownership::new(&large.host, &large.el2, &log);
    let (realm, page) = (large.realm(), GIB / GRANULE + 7);
    // In pages, so that what is invalidated is so for what is taken away.
    for _ in 0..2 {
        log.take();
        owner.delegate(range(page, 1)).unwrap();
        let steps = log.take();
        let is_so = matches!(
            steps[..],
            [("zero", [zero, 0, 0]), ("clean", _), ("end", [host, 0, 0])] if zero == host && host > 0
        );
        assert!(is_so, "{steps:?}");
        owner.assign(range(page, 1), &realm, &placed(page), |_| log.note("fill")).unwrap();
        let steps = log.take();
        let [("fill", [_, before, 0]), ("clean", [_, cleaned, 0]), ("end", [_, after, 0])] = steps[..] else {
            panic!("{steps:?}")
        };
        assert!(before == cleaned && cleaned < after, "{steps:?}");
        owner.release(range(page, 1), &realm, placed(page).ipa, None).unwrap();
        let steps = log.take();
        let [("zero", [0, _, at_zero]), ("clean", ..), ("end", [_, _, at_end])] = steps[..] else {
            panic!("{steps:?}")
        };
        assert!(at_zero > 0 && at_zero == at_end, "{steps:?}");
        owner.undelegate(range(page, 1)).unwrap();
        owner.share_with_realm(range(page, 1), &realm, &placed(page)).unwrap();
        log.take();
        owner.unshare_with_realm(range(page, 1), &realm, placed(page).ipa, None).unwrap();
        assert!(matches!(log.take()[..], [("end", [0, 0, realm])] if realm > 0));
        // A mark says nothing to hardware.
        owner.share(range(page, 1)).unwrap();
        owner.unshare(range(page, 1)).unwrap();
        assert_eq!(log.take(), [("end", [0; 3])]);
    }
}

/// Looks after every store to any of the three maps, on the way of ranges and that of single pages.
#[test]
#[cfg_attr(miri, ignore)]
fn a_realm_has_its_page_at_no_moment_beside_the_host_or_the_hypervisor() {
    let mmus: [&'static FakeMmu; 3] = std::array::from_fn(|_| &*Box::leak(Box::new(FakeMmu::new(30))));
    let large: &'static Large<'static> = Box::leak(Box::new(Large::new(mmus)));
    let (page, at) = (GIB / GRANULE + 7, placed(3).ipa);
    let (pa, looks) = (Pa::new(page * GRANULE).unwrap(), &*Box::leak(Box::new(AtomicUsize::new(0))));
    let has = move || {
        let translates = |map: &Map<Stage2, &FakeMmu>, ipa: u64| {
            let mut cpu = map.cpu(7).unwrap();
            cpu.read().translate(Ipa::new(ipa).unwrap()).is_some_and(|found| found.output == pa)
        };
        let mut el2 = large.el2.cpu(7).unwrap();
        let el2 = el2.read().translate(crate::mapping::Va::new(pa.get()).unwrap()).is_some();
        [translates(&large.host, pa.get()), el2, translates(&large.realm, at.get())]
    };
    // Who had it at the store before this one, to see who gets it: then its invalidation is due from those who have lost it in this call.
    let before = Mutex::new([true, true, false]);
    let flushed = move |number: usize| !mmus[number].tlbis.lock().unwrap().is_empty();
    let before: &'static Mutex<[bool; 3]> = Box::leak(Box::new(before));
    for mmu in mmus {
        let watch = move || {
            let now = has();
            let was = std::mem::replace(&mut *before.lock().unwrap(), now);
            assert!(!(now[2] && (now[0] || now[1])), "host, EL2, realm: {now:?}");
            assert!(was[2] || !now[2] || flushed(1), "EL2 may still have what the realm gets");
            assert!(now[0] <= was[0] || flushed(2), "a realm may still have what the host gets");
            assert!(now[1] <= was[1] || flushed(2), "a realm may still have what EL2 gets");
            looks.fetch_add(1, Relaxed);
        };
        assert!(mmu.memory.watch.set(Box::new(watch)).is_ok());
    }
    let owner = Ownership::new(&large.host, &large.el2, Nothing);
    let (realm, placement) = (large.realm(), Placement { ipa: at, ..placed(3) });
    let fresh = || mmus.iter().for_each(|mmu| drop(mmu.take_tlbis()));
    for pages in [1, 1, 2, 1] {
        let pages = || range(page, pages);
        owner.delegate(pages()).unwrap();
        fresh();
        owner.assign(pages(), &realm, &placement, |_| ()).unwrap();
        assert_eq!(has(), [false, false, true]);
        fresh();
        owner.release(pages(), &realm, at, None).unwrap();
        assert_eq!(has(), [false, true, false]);
        fresh();
        owner.assign_unfilled(pages(), &realm, &placement).unwrap();
        fresh();
        owner.reclaim(pages(), &realm, at, None).unwrap();
        assert_eq!(has(), [true, true, false]);
        fresh();
        owner.donate_to_realm(pages(), &realm, &placement).unwrap();
        fresh();
        owner.reclaim(pages(), &realm, at, None).unwrap();
    }
    assert!(looks.load(Relaxed) > 60, "{looks:?}");
}

#[test]
#[cfg_attr(miri, ignore)]
fn what_is_of_one_state_throughout_costs_no_table() {
    let mmus = [FakeMmu::new(20), FakeMmu::new(20), FakeMmu::new(20)];
    let large = Large::new([&mmus[0], &mmus[1], &mmus[2]]);
    let log = Log([&mmus[0], &mmus[1], &mmus[2]], Mutex::default());
    let owner = Ownership::new(&large.host, &large.el2, &log);
    let used = || [mmus[0].pool().used(), mmus[1].pool().used()];
    let (realm, first, before) = (large.realm(), 2 * GIB / GRANULE, used());
    // A whole block of 1 GiB.
    let all = || range(first, (GIB / GRANULE) as usize);
    owner.share(all()).unwrap();
    owner.unshare(all()).unwrap();
    owner.give_back(owner.donate(all()).unwrap()).unwrap();
    owner.delegate(all()).unwrap();
    owner.keep(all(), 1, Purpose::Rec, |_| ()).unwrap();
    owner.unkeep(all(), 1, Purpose::Rec).unwrap();
    owner.assign(all(), &realm, &placed(0), |_| ()).unwrap();
    owner.reclaim(all(), &realm, placed(0).ipa, None).unwrap();
    assert_eq!(used(), before);
    // One of 2 MiB in it: the table of 2 MiB blocks in each map.
    owner.donate_to_realm(range(first + PAGES_OF_2_MIB, 512), &realm, &placed(0)).unwrap();
    assert_eq!(used(), [before[0] + 1, before[1] + 1]);
    owner.reclaim(range(first + PAGES_OF_2_MIB, 512), &realm, placed(0).ipa, None).unwrap();
    owner.tidy(range(first, 1), Leaves::LARGEST).unwrap();
    assert_eq!(used(), before);
}

#[test]
#[cfg_attr(miri, ignore)]
fn pages_cost_a_table_for_each_2_mib_and_each_gib_they_lie_in_and_no_more() {
    let mmus = [FakeMmu::new(1100), FakeMmu::new(1100), FakeMmu::new(1100)];
    let large = Large::new([&mmus[0], &mmus[1], &mmus[2]]);
    let log = Log([&mmus[0], &mmus[1], &mmus[2]], Mutex::default());
    let owner = Ownership::new(&large.host, &large.el2, &log);
    let realm = large.realm();
    let (begun_host, begun_el2) = (mmus[0].pool().used(), mmus[1].pool().used());
    let costs = || [mmus[0].pool().used() - begun_host, mmus[1].pool().used() - begun_el2];
    let first = GIB / GRANULE;
    owner.donate_to_realm(range(first + 5, 1), &realm, &placed(first + 5)).unwrap();
    assert_eq!(costs(), [2, 2]);
    owner.donate_to_realm(range(first + 8, 3), &realm, &placed(first + 8)).unwrap();
    assert_eq!(costs(), [2, 2]);
    // The EL2 map has no part in a share.
    owner.share(range(first + PAGES_OF_2_MIB - 1, 2)).unwrap();
    assert_eq!(costs(), [3, 2]);
    // One page in each 2 MiB of a GiB: as much as there can be.
    for block in 0..512 {
        let page = first + block * PAGES_OF_2_MIB + 100;
        owner.donate_to_realm(range(page, 1), &realm, &placed(page)).unwrap();
    }
    assert_eq!(costs(), [513, 513]);
    let random = &mut SmallRng::seed_from_u64(seed());
    for _ in 0..2000 {
        let page = first + random.random_range(0..GIB / GRANULE);
        let _ = match random.random_range(0..3) {
            0 => owner.delegate(range(page, 1)),
            1 => owner.share(range(page, 1)),
            _ => owner.donate_to_realm(range(page, 1), &realm, &placed(page)),
        };
    }
    assert_eq!(costs(), [513, 513]);
}

#[test]
#[cfg_attr(miri, ignore)]
fn whatever_is_named_that_cannot_change_hands_is_refused_by_what_it_is() {
    let mmus = [FakeMmu::new(20), FakeMmu::new(20), FakeMmu::new(20)];
    let large = Large::new([&mmus[0], &mmus[1], &mmus[2]]);
    let log = Log([&mmus[0], &mmus[1], &mmus[2]], Mutex::default());
    let owner = Ownership::new(&large.host, &large.el2, &log);
    let (realm, first) = (large.realm(), GIB / GRANULE);
    let odd = Range::new(GIB + 1, GRANULE).unwrap();
    assert_eq!(owner.share(odd), Err(OwnerError::Range { start: GIB + 1, size: GRANULE }));
    let at = |page: u64, found| Err(OwnerError::Host { page: page * GRANULE, found });
    // Below RAM, above it, above what the map reaches, at the end of everything.
    for page in [0, first - 1, 5 * first, 1 << 28, (1 << 36) - 1] {
        assert_eq!(owner.share(range(page, 1)), at(page, HostPage::Fixed));
        assert_eq!(owner.delegate(range(page, 1)), at(page, HostPage::Fixed));
        assert_eq!(owner.undelegate(range(page, 1)), at(page, HostPage::Fixed));
        assert_eq!(owner.page(Pa::new(page * GRANULE).unwrap()), HostPage::Fixed);
    }
    assert_eq!(owner.share(range(5 * first - 1, 2)), at(5 * first, HostPage::Fixed));
    let data = HostPage::Kept(Keeper::Realm(1, Purpose::Data));
    assert_eq!(owner.keep(range(first, 1), 1, Purpose::Data, |_| ()), at(first, data));
    assert_eq!(owner.access(range(first, 1), 1, Purpose::Data, |_| ()), at(first, data));
    // A realm's address that there is none of.
    let end = owner.donate_to_realm(range(first, 2), &realm, &placed((1 << 36) - 1));
    assert!(matches!(end, Err(OwnerError::Range { .. })), "{end:?}");
    let high = owner.donate_to_realm(range(first, 1), &realm, &placed(1 << 28));
    assert_eq!(high, Err(OwnerError::Realm { ipa: 1 << 40, found: RealmPage::Fixed }));
    // Another realm's.
    owner.donate_to_realm(range(first, 1), &realm, &placed(3)).unwrap();
    let other = Realm { number: 2, map: &large.realm };
    assert_eq!(owner.reclaim(range(first, 1), &other, placed(3).ipa, None), at(first, data));
    let elsewhere = owner.reclaim(range(first, 1), &realm, placed(4).ipa, None);
    let nothing = RealmPage::Vacant(None);
    assert_eq!(elsewhere, Err(OwnerError::Realm { ipa: 4 * GRANULE, found: nothing }));
    // What EL2 no longer has as data, for reasons of its own.
    let own = range::<crate::mapping::Va>(first + 9, 1);
    large.el2.protect(own, crate::mapping::Change::<El2>::READ_ONLY).unwrap().flush();
    let found = HypervisorPage::Fixed;
    let refused = Err(OwnerError::Hypervisor { page: (first + 9) * GRANULE, found });
    assert_eq!(owner.delegate(range(first + 8, 2)), refused);
    // Nothing at all changes nothing, wherever.
    assert_eq!(owner.unshare(range(0, 0)), Ok(()));
}

#[test]
#[cfg_attr(miri, ignore)]
fn what_was_donated_comes_back_in_parts_and_in_no_others() {
    let mmus = [FakeMmu::new(20), FakeMmu::new(20), FakeMmu::new(20)];
    let large = Large::new([&mmus[0], &mmus[1], &mmus[2]]);
    let log = Log([&mmus[0], &mmus[1], &mmus[2]], Mutex::default());
    let owner = Ownership::new(&large.host, &large.el2, &log);
    let first = GIB / GRANULE;
    let held = owner.donate(range(first, 512)).unwrap();
    let held = held.split(512 * GRANULE + 1).unwrap_err().split(513 * GRANULE).unwrap_err();
    let (a, b) = held.split(3 * GRANULE).unwrap();
    assert_eq!((a.range(), b.range()), (range(first, 3), range(first + 3, 509)));
    owner.give_back(a).unwrap();
    let page = |page| owner.page(Pa::new((first + page) * GRANULE).unwrap());
    assert_eq!((page(2), page(3)), (HostPage::Owned, HostPage::Kept(Keeper::Hypervisor)));
    owner.give_back(b).unwrap();
    assert_eq!(page(3), HostPage::Owned);
}

thread_local! {
    static NUMBER: Cell<usize> = const { Cell::new(0) };
}

struct Threads;

impl Here for Threads {
    fn number(&self) -> usize {
        NUMBER.get()
    }
    fn is_pinned(&self, _: u64, _: u64) -> bool {
        false
    }
    fn relax(&self) {
        thread::yield_now();
    }
}

struct Nothing;

impl Granules for Nothing {
    fn zero(&self, _: &Held) {}
    fn clean_and_invalidate(&self, _: &Held) {}
}

/// Below level 3 a split at EL2 makes all CPUs that are there stand still, while the writers of the maps are held. So who waits for one of them must
/// count as standing still, or neither ever goes on: this test would not end.
#[test]
fn who_waits_for_a_call_that_needs_quiet_stands_still() {
    const THREADS: usize = 4;
    let gate = Gate::<Threads, THREADS>::new(Threads);
    let mmus = [FakeMmu::of_entries(400, Tiny::ENTRIES), FakeMmu::of_entries(400, Tiny::ENTRIES)];
    let el2_mmu = FakeMmu::with_quiesce(400, Tiny::ENTRIES, &gate);
    let stage2 =
        |mmu| Map::<Stage2, &FakeMmu, Tiny>::new(mmu, Geometry::stage2(20).unwrap(), bbm(0)).unwrap();
    let (mut host, realm) = (stage2(&mmus[0]), stage2(&mmus[1]));
    let mut el2 = Map::<El2, _, Tiny>::new(&el2_mmu, Geometry::stage1(20).unwrap(), bbm(0)).unwrap();
    let pa = Pa::new(0).unwrap();
    host.get_mut().map(range(0, 256), pa, Attributes::<Stage2>::RAM, Leaves::LARGEST).unwrap();
    el2.get_mut().map(range(0, 256), pa, Attributes::<El2>::DATA, Leaves::LARGEST).unwrap();
    let owner = &Ownership::new(&host, &el2, Nothing);
    let (el2, gate) = (&el2, &gate);
    let realm = &Realm { number: 1, map: &realm };
    let start = &Barrier::new(THREADS);
    thread::scope(|scope| {
        for number in 0..THREADS {
            scope.spawn(move || {
                NUMBER.set(number);
                let page = 130 + number as u64;
                let inside = |call: &dyn Fn()| {
                    gate.enter();
                    call();
                    gate.leave();
                };
                start.wait();
                for _ in 0..if cfg!(miri) { 3 } else { 3000 } {
                    if number == 0 {
                        // And somebody who holds nothing, and changes something else.
                        inside(&|| el2.protect(range(20, 1), Change::<El2>::READ_ONLY).unwrap().flush());
                        inside(&|| el2.protect(range(20, 1), Change::<El2>::WRITABLE).unwrap().flush());
                        inside(&|| owner.tidy(range(0, 256), Leaves::LARGEST).unwrap());
                        continue;
                    }
                    let placement = placed(page);
                    inside(&|| owner.donate_to_realm(range(page, 1), realm, &placement).unwrap());
                    inside(&|| owner.reclaim(range(page, 1), realm, placement.ipa, None).unwrap());
                    inside(&|| owner.share(range(page, 1)).unwrap());
                    inside(&|| owner.unshare(range(page, 1)).unwrap());
                }
            });
        }
    });
    assert!(gate.counts().0 > 0, "nobody had to stand still");
    assert!((0..256).all(|page| owner.page(Pa::new(page * GRANULE).unwrap()) == HostPage::Owned));
}

#[test]
#[cfg_attr(miri, ignore)]
fn what_is_kept_for_a_realm_can_be_worked_on_and_nothing_else_can() {
    let mmus = [FakeMmu::new(20), FakeMmu::new(20), FakeMmu::new(20)];
    let large = Large::new([&mmus[0], &mmus[1], &mmus[2]]);
    let owner = Ownership::new(&large.host, &large.el2, Nothing);
    let (first, rec) = (GIB / GRANULE, Purpose::Rec);
    let access = |page, realm, purpose| owner.access(range(page, 1), realm, purpose, |held| held.range());
    let refused = |found| Err(OwnerError::Host { page: first * GRANULE, found });
    assert_eq!(access(first, 1, rec), refused(HostPage::Owned));
    owner.delegate(range(first, 2)).unwrap();
    assert_eq!(access(first, 1, rec), refused(HostPage::Kept(Keeper::Delegated)));
    owner.keep(range(first, 2), 1, rec, |held| assert_eq!(held.range(), range(first, 2))).unwrap();
    assert_eq!(access(first + 1, 1, rec), Ok(range(first + 1, 1)));
    assert_eq!(access(first, 2, rec), refused(HostPage::Kept(Keeper::Realm(1, rec))));
    assert_eq!(access(first, 1, Purpose::Table), refused(HostPage::Kept(Keeper::Realm(1, rec))));
}

#[test]
#[cfg_attr(miri, ignore)]
fn a_realms_data_is_the_el2_maps_while_it_is_visited() {
    let mmus = [FakeMmu::new(20), FakeMmu::new(20), FakeMmu::new(20)];
    let large = Large::new([&mmus[0], &mmus[1], &mmus[2]]);
    let log = Log([&mmus[0], &mmus[1], &mmus[2]], Mutex::default());
    let owner = Ownership::new(&large.host, &large.el2, &log);
    let (realm, first) = (large.realm(), GIB / GRANULE);
    let at_el2 = |page: u64| {
        let visited = large.el2.cpu(7).unwrap().read().find(crate::mapping::Va::new(page * GRANULE).unwrap());
        HypervisorPage::of(&visited.unwrap())
    };
    owner.donate_to_realm(range(first, 512), &realm, &placed(512)).unwrap();
    let visit = |page, number| owner.visit(range(page, 1), number, |held| (held.range(), at_el2(page)));
    let (away, mapped) = (HypervisorPage::Away, HypervisorPage::Mapped);
    assert_eq!(visit(first + 5, 1), Ok((range(first + 5, 1), mapped)));
    for page in [first, first + 5, first + 511] {
        assert_eq!(at_el2(page), away);
    }
    // In a range, then in a page that has an entry of its own: what caches have is not what a realm without them has written.
    for page in [first + 6, first + 6] {
        log.take();
        owner.visit(range(page, 1), 1, |_| log.note("work")).unwrap();
        let steps: Vec<_> = log.take().iter().map(|&(step, _)| step).collect();
        assert_eq!(steps, ["clean", "work", "clean", "end"]);
    }
    let data = HostPage::Kept(Keeper::Realm(1, Purpose::Data));
    assert_eq!(visit(first, 2), Err(OwnerError::Host { page: GIB, found: data }));
    let not = OwnerError::Host { page: GIB + 512 * GRANULE, found: HostPage::Owned };
    assert_eq!(visit(first + 512, 1), Err(not));
}

#[test]
#[cfg_attr(miri, ignore)]
fn what_the_host_shares_is_still_its_own_to_read() {
    let mmus = [FakeMmu::new(20), FakeMmu::new(20), FakeMmu::new(20)];
    let large = Large::new([&mmus[0], &mmus[1], &mmus[2]]);
    let owner = Ownership::new(&large.host, &large.el2, Nothing);
    let (realm, first) = (large.realm(), GIB / GRANULE);
    owner.share(range(first + 1, 1)).unwrap();
    owner.share_with_realm(range(first + 2, 1), &realm, &placed(2)).unwrap();
    owner.delegate(range(first + 4, 1)).unwrap();
    let mut done = 0;
    // All of one granule and a part of the next.
    let some = Range::new(GIB, 3 * GRANULE + 8).unwrap();
    assert_eq!(owner.while_hosts(some, || done += 1), Ok(()));
    let more = Range::new(GIB + 8, 4 * GRANULE).unwrap();
    let found = HostPage::Kept(Keeper::Delegated);
    let refused = Err(OwnerError::Host { page: GIB + 4 * GRANULE, found });
    assert_eq!(owner.while_hosts(more, || done += 1), refused);
    assert_eq!(done, 1);
}
