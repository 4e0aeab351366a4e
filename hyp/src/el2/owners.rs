//! Of test builds: a page of the host's through every state, with every party looked at after each call ([`crate::trial::owners`]).
//!
//! Invariant: what each party must say stands here in a table of its own, not taken from what ownership says of itself.

use log::debug;
use spin::Mutex;

use super::host::Host;
use super::parties::RealmMmu;
use super::percpu::PerCpu;
use super::trial::translates;
use crate::mapping::{
    Address, Attributes, GRANULE, Geometry, Ipa, Leaves, Map, Options, Pa, Range, Stage2, State, Va,
};
use crate::owner::{HostPage, HypervisorPage, Keeper, OwnerError, Placement, Purpose, Realm, RealmPage};
use crate::stage2::Registers;
use crate::trial::owners::{MAKE, PAGE, REGION, Step, TEST};

/// The realm's number, also its VMID.
const REALM: u16 = 0xfd;
/// Where the realm has the page, and where it has it shared.
const OWN_IPA: u64 = 0x8000_0000 + PAGE;
const SHARED_IPA: u64 = 0x8010_0000;
/// What the realm's own addresses say when nothing is there.
const UNASSIGNED: u64 = 1;
const SECRET: u64 = 0x5ec2_e7f0_0d5e_c2e7;

struct Scratch {
    start: u64,
    map: RealmMap,
}

/// Its stage 2.
type RealmMap = Map<Stage2, RealmMmu>;

static SCRATCH: Mutex<Option<Scratch>> = Mutex::new(None);

/// The answer to `function` if it is one of this trial's. The region was found to be RAM of the host.
pub fn call(host: &Host, function: u32, args: &[u64; 17]) -> Option<[u64; 4]> {
    match function {
        MAKE => {
            let made = Step::ALL.get(args[0] as usize).map(|&step| make(host, step, args[1]));
            Some([u64::from(made != Some(Ok(()))), 0, 0, 0])
        }
        TEST => Some(match test(host, args[0]) {
            Ok(looks) => [0, looks, 0, 0],
            Err((step, party)) => [1, step, party, 0],
        }),
        _ => None,
    }
}

/// Why a step was not made.
#[derive(Debug, PartialEq)]
enum Failed {
    Owner(OwnerError),
    /// The realm is not there, or is there already, or the region is none.
    Scratch,
}

impl From<OwnerError> for Failed {
    fn from(error: OwnerError) -> Self {
        Self::Owner(error)
    }
}

fn pages(start: u64, count: u64) -> Result<Range<Pa>, Failed> {
    Range::of_granules(start, count * GRANULE).map_err(|_| Failed::Scratch)
}

fn ipa(address: u64) -> Result<Ipa, Failed> {
    Ipa::new(address).map_err(|_| Failed::Scratch)
}

fn make(host: &Host, step: Step, start: u64) -> Result<(), Failed> {
    let owners = &host.parties.owners;
    let mut scratch = SCRATCH.try_lock().ok_or(Failed::Scratch)?;
    if step == Step::Begin {
        let is_new = scratch.is_none() && start.is_multiple_of(REGION);
        if !is_new || !host.parties.is_host_ram(pages(start, REGION / GRANULE)?) {
            return Err(Failed::Scratch);
        }
        *scratch = Some(Scratch { start, map: begin(host, start)? });
        return Ok(());
    }
    let Some(Scratch { start, map }) = &*scratch else { return Err(Failed::Scratch) };
    let page = pages(start + PAGE, 1)?;
    let realm = Realm { number: REALM, map };
    let place = |at: u64, vacant: Option<u64>, translates| {
        Ok::<_, Failed>(Placement {
            ipa: ipa(at)?,
            vacant: vacant.and_then(State::new),
            attributes: Attributes::<Stage2>::RAM,
            leaves: Leaves::PAGES,
            translates,
        })
    };
    let own = |translates| place(OWN_IPA, Some(UNASSIGNED), translates);
    let unassigned = State::new(UNASSIGNED);
    match step {
        Step::Begin => unreachable!("it returned"),
        Step::Nothing => {}
        Step::End => {
            let tables = pages(*start, PAGE / GRANULE)?;
            owners.unkeep(tables, REALM, Purpose::Table)?;
            owners.undelegate(tables)?;
            *scratch = None;
        }
        Step::Delegate => owners.delegate(page)?,
        Step::Undelegate => owners.undelegate(page)?,
        Step::Assign => owners.assign_unfilled(page, &realm, &own(true)?)?,
        Step::AssignWithheld => owners.assign(page, &realm, &own(false)?, |_| ())?,
        Step::Release => owners.release(page, &realm, ipa(OWN_IPA)?, unassigned)?,
        Step::Keep => owners.keep(page, REALM, Purpose::Rec, |_| ())?,
        Step::Unkeep => owners.unkeep(page, REALM, Purpose::Rec)?,
        Step::ShareWithRealm => owners.share_with_realm(page, &realm, &place(SHARED_IPA, None, true)?)?,
        Step::UnshareWithRealm => owners.unshare_with_realm(page, &realm, ipa(SHARED_IPA)?, None)?,
        Step::DonateToRealm => owners.donate_to_realm(page, &realm, &own(true)?)?,
        Step::Reclaim => owners.reclaim(page, &realm, ipa(OWN_IPA)?, unassigned)?,
    }
    Ok(())
}

/// A realm's map of tables that the host gives: two of the root, then one of each level for the addresses that are used.
fn begin(host: &Host, start: u64) -> Result<RealmMap, Failed> {
    let parties = &host.parties;
    let tables = pages(start, PAGE / GRANULE)?;
    parties.owners.delegate(tables)?;
    parties.owners.keep(tables, REALM, Purpose::Table, |_| ())?;
    let table = |number: u64| Pa::new(start + number * GRANULE).map_err(|_| Failed::Scratch);
    let geometry = Geometry::stage2(40).map_err(|_| Failed::Scratch)?;
    let registers = Registers::of_root(geometry, table(0)?, REALM, parties.limits);
    let options = Options::new(parties.capabilities());
    // SAFETY: an empty root of two tables, kept for this; nobody else has the VMID.
    let map = unsafe { Map::adopt(parties.realm_mmu(registers), table(0)?, geometry, options) };
    for level in 1..=2 {
        // SAFETY: kept for this, and used for nothing else.
        let split = unsafe { map.split_entry(ipa(OWN_IPA)?, level, table(u64::from(level) + 1)?) };
        split.map_err(|_| Failed::Scratch)?.flush();
    }
    let unassigned = State::new(UNASSIGNED).ok_or(Failed::Scratch)?;
    let few = Range::new(OWN_IPA, 4 * GRANULE).map_err(|_| Failed::Scratch)?;
    {
        let mut cpu = map.cpu(PerCpu::this().number()).ok_or(Failed::Scratch)?;
        cpu.write().set_state(few, unassigned).map_err(|_| Failed::Scratch)?;
    }
    Ok(map)
}

/// What a word of the page must be.
#[derive(Clone, Copy, PartialEq)]
enum Holds {
    Secret,
    Zero,
    /// EL2 cannot look.
    Unknown,
}

const DELEGATED: HostPage = HostPage::Kept(Keeper::Delegated);
const DATA: HostPage = HostPage::Kept(Keeper::Realm(REALM, Purpose::Data));
const REC: HostPage = HostPage::Kept(Keeper::Realm(REALM, Purpose::Rec));

/// What the realm has: nothing, the page, the page withheld, and at the other address.
#[derive(Clone, Copy, PartialEq)]
enum Has {
    Nothing,
    Owned,
    Withheld,
    Borrowed,
}

/// Steps, and what each party says then: the host's map, whether EL2 has the page, the realm, memory. Before each the host writes if it can.
const STEPS: [(Step, HostPage, bool, Has, Holds); 21] = {
    use Has::{Borrowed, Nothing, Owned, Withheld};
    use Holds::{Secret, Unknown, Zero};
    use HostPage::Owned as Host;
    [
        (Step::Delegate, DELEGATED, true, Nothing, Zero),
        (Step::Undelegate, Host, true, Nothing, Zero),
        (Step::Delegate, DELEGATED, true, Nothing, Zero),
        (Step::Keep, REC, true, Nothing, Zero),
        (Step::Unkeep, DELEGATED, true, Nothing, Zero),
        (Step::Undelegate, Host, true, Nothing, Zero),
        (Step::Delegate, DELEGATED, true, Nothing, Zero),
        (Step::Assign, DATA, false, Owned, Unknown),
        (Step::Release, DELEGATED, true, Nothing, Zero),
        (Step::AssignWithheld, DATA, false, Withheld, Unknown),
        (Step::Release, DELEGATED, true, Nothing, Zero),
        (Step::Undelegate, Host, true, Nothing, Zero),
        (Step::ShareWithRealm, HostPage::SharedWithRealm, true, Borrowed, Secret),
        (Step::UnshareWithRealm, Host, true, Nothing, Secret),
        (Step::DonateToRealm, DATA, false, Owned, Unknown),
        (Step::Reclaim, Host, true, Nothing, Zero),
        // Once more, where tables are there already.
        (Step::Delegate, DELEGATED, true, Nothing, Zero),
        (Step::Assign, DATA, false, Owned, Unknown),
        (Step::Release, DELEGATED, true, Nothing, Zero),
        (Step::Undelegate, Host, true, Nothing, Zero),
        (Step::End, Host, true, Nothing, Zero),
    ]
};

/// How often a party was asked; or the step after which one was wrong, and its number.
fn test(host: &Host, start: u64) -> Result<u64, (u64, u64)> {
    let tell = |number: usize| {
        move |failed| {
            debug!("owners: step {number}: {failed:?}");
            (number as u64, 0)
        }
    };
    make(host, Step::Begin, start).map_err(tell(0))?;
    let page = Pa::new(start + PAGE).map_err(|_| (0, 0))?;
    let mut looks = 0;
    let mut is_hosts = true;
    for (number, &(step, says, at_el2, has, holds)) in STEPS.iter().enumerate() {
        if is_hosts {
            host.parties.memory.write(page, &SECRET.to_ne_bytes());
        }
        // What the host writes before the last step stays.
        let holds = if step == Step::End { Holds::Secret } else { holds };
        make(host, step, start).map_err(tell(number))?;
        let found = look(host, page, says, at_el2, has, holds);
        if let Some(party) = found {
            debug!("owners: after step {number}, {step:?}: party {party} is wrong");
            return Err((number as u64, party));
        }
        is_hosts = says == HostPage::Owned;
        looks += 5;
    }
    Ok(looks)
}

/// The number of the first party that says something else.
fn look(host: &Host, page: Pa, says: HostPage, at_el2: bool, has: Has, holds: Holds) -> Option<u64> {
    let me = PerCpu::this().number();
    if host.parties.owners.page(page) != says {
        return Some(1);
    }
    let at = Va::new(page.get()).ok()?;
    let el2 = host.el2_map.map().cpu(me)?.read().find(at).map(|visited| HypervisorPage::of(&visited));
    if el2 != Some(if at_el2 { HypervisorPage::Mapped } else { HypervisorPage::Away }) {
        return Some(2);
    }
    if translates(page.get(), true) != at_el2 {
        return Some(5);
    }
    if let Some(Scratch { map, .. }) = &*SCRATCH.try_lock()? {
        let mut cpu = map.cpu(me)?;
        let reader = cpu.read();
        let found = |address: u64| {
            let visited = Ipa::new(address).ok().and_then(|ipa| reader.find(ipa))?;
            Some(RealmPage::of(&visited))
        };
        let own = match has {
            Has::Owned => RealmPage::Owned(page),
            Has::Withheld => RealmPage::Withheld(page),
            Has::Nothing | Has::Borrowed => RealmPage::Vacant(State::new(UNASSIGNED)),
        };
        let shared = if has == Has::Borrowed { RealmPage::Borrowed(page) } else { RealmPage::Vacant(None) };
        if found(OWN_IPA) != Some(own) || found(SHARED_IPA) != Some(shared) {
            return Some(3);
        }
    }
    let wanted = match holds {
        Holds::Secret => Some(SECRET),
        Holds::Zero => Some(0),
        Holds::Unknown => None,
    };
    let mut word = [0; 8];
    if let Some(wanted) = wanted {
        host.parties.memory.read(page, &mut word);
        if u64::from_ne_bytes(word) != wanted {
            return Some(4);
        }
    }
    None
}
