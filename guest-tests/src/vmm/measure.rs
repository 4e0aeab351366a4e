//! What each command of the RMM costs its host, on a realm that is made for that: medians of many calls, in ticks of the counter. With
//! `-icount shift=0` and a counter of 1 GHz that is instructions.
//!
//! Invariant: what is timed is one call, from the instruction before to the one behind; what makes it possible again is done between.

use core::ops::ControlFlow;

use hyp::machine::Machine;
use rmm_abi::v1_0::NOT_SUPPORTED;
use rmm_abi::v1_0::rmi::{RmiCommand as C, RmiFeatureRegister0, RmiStatus, UnprotectedDescriptor};
use vmm_logic::tree::RAM;

use super::entry;
use super::granules::{GRANULE, delegate, undelegate};
use super::life::{Problem, Wanted, make, unmake};
use super::memory::{BLOCK, Plan};
use super::realm::{Manner, PAGE, Realm};
use super::rmi::{Refused, done, timed};
use crate::say;

/// Calls of each kind: odd, so that one is in the middle.
const TIMES: usize = 101;
/// Hypercalls: pages of the caller's (the first, and how many) are shared with the hypervisor, and not any more.
const SHARE: u64 = 0xc600_0003;
const UNSHARE: u64 = 0xc600_0004;
/// The realm's program: a host call (RSI_HOST_CALL, 0xc4000199) for ever. The structure lies 0x100 bytes from its begin.
const PROGRAM: [u32; 5] = [
    0xd280_3320, // movz x0, #0x199
    0xf2b8_8000, // movk x0, #0xc400, lsl #16
    0x1000_07c1, // adr  x1, . + 0xf8
    0xd400_0003, // smc  #0
    0x17ff_fffc, // b    . - 16
];

/// Whether the command line asks for it.
pub fn is_wanted(machine: &Machine<'_>) -> bool {
    machine.parameter("cloven.measure").is_some_and(|value| value != "0")
}

/// What some calls took.
struct Times {
    ticks: [u64; TIMES],
    count: usize,
}

impl Times {
    const fn new() -> Self {
        Self { ticks: [0; TIMES], count: 0 }
    }

    fn add(&mut self, ticks: u64) {
        if let Some(place) = self.ticks.get_mut(self.count) {
            *place = ticks;
            self.count += 1;
        }
    }

    /// Makes a call of the RMM, and takes what it took.
    fn call(&mut self, command: C, inputs: &[u64]) -> Result<[u64; 4], Refused> {
        let ([status, outputs @ ..], ticks) = timed(command, inputs);
        if status != RmiStatus::Success.bits() {
            let inputs = core::array::from_fn(|at| inputs.get(at).copied().unwrap_or(0));
            return Err(Refused { command, status, inputs });
        }
        self.add(ticks);
        Ok(outputs)
    }

    fn say(mut self, name: &str) {
        let ticks = &mut self.ticks[..self.count];
        ticks.sort_unstable();
        if let Some(median) = ticks.get(self.count / 2) {
            say!("@cloven figure rmi.{name} {median} ticks");
        }
    }
}

/// Times a command that can be repeated.
fn repeat(name: &str, command: C, inputs: &[u64]) -> Result<(), Problem> {
    let mut times = Times::new();
    for _ in 0..TIMES {
        times.call(command, inputs)?;
    }
    times.say(name);
    Ok(())
}

/// Times two commands that undo each other.
fn pair(names: [&str; 2], commands: [C; 2], inputs: [&[u64]; 2]) -> Result<(), Problem> {
    let [mut first, mut second] = [Times::new(), Times::new()];
    for _ in 0..TIMES {
        first.call(commands[0], inputs[0])?;
        second.call(commands[1], inputs[1])?;
    }
    first.say(names[0]);
    second.say(names[1]);
    Ok(())
}

/// Times all.
#[inline(never)]
pub fn all(plan: Plan, features: RmiFeatureRegister0) -> Result<(), Problem> {
    hypercalls(plan.backing);
    repeat("VERSION", C::Version, &[0x1_0000])?;
    let granule = plan.backing;
    pair(
        ["GRANULE_DELEGATE", "GRANULE_UNDELEGATE"],
        [C::GranuleDelegate, C::GranuleUndelegate],
        [&[granule], &[granule]],
    )?;
    let wanted = Wanted {
        plan,
        recs: 1,
        image: &[],
        initrd: &[],
        bootargs: &[],
        manner: Manner::default(),
        features,
        is_active: false,
    };
    let realm = make(&wanted)?;
    new_realm(&realm)?;
    done(C::RealmActivate, &[realm.rd])?;
    enter(&realm)?;
    unmake(&realm)
}

/// The second blocks of RAM, in the order in which they are used.
fn block(number: u64) -> u64 {
    RAM + number * BLOCK
}

fn new_realm(realm: &Realm) -> Result<(), Problem> {
    let rd = realm.rd;
    let source = realm.plan.backing;
    // The program, at the start of RAM.
    for (at, word) in PROGRAM.iter().enumerate() {
        // SAFETY: the backing is the host's.
        unsafe { (source as *mut u32).add(at).write_volatile(*word) };
    }
    for word in PROGRAM.len() as u64..GRANULE / 4 {
        // SAFETY: as above.
        unsafe { (source as *mut u32).add(word as usize).write_volatile(0) };
    }
    // SAFETY: as above: the immediate of the host call.
    unsafe { ((source + 0x100) as *mut u16).write_volatile(0xc10e) };
    {
        let mut pool = realm.lock();
        realm.create_data(&mut pool, RAM, source)?;
        realm.create_table(&mut pool, block(1), PAGE)?;
    }
    let data = |ipa| -> Result<u64, Problem> {
        delegate(realm.pa(ipa))?;
        Ok(realm.pa(ipa))
    };
    let ipa = block(1);
    let pa = data(ipa)?;
    let destroy: &[u64] = &[rd, ipa];
    pair(
        ["DATA_CREATE", "DATA_DESTROY"],
        [C::DataCreate, C::DataDestroy],
        [&[rd, pa, ipa, source, 1], destroy],
    )?;
    pair(
        ["DATA_CREATE_UNKNOWN", "DATA_DESTROY"],
        [C::DataCreateUnknown, C::DataDestroy],
        [&[rd, pa, ipa], destroy],
    )?;
    undelegate(pa)?;

    // Tables: from nothing and back, folded as nothing, folded and unfolded as a block.
    let table = spare(realm)?;
    let level = PAGE as u64;
    let create = |number| [rd, table, block(number), level];
    let other = |number| [rd, block(number), level];
    pair(["RTT_CREATE_EMPTY", "RTT_DESTROY"], [C::RttCreate, C::RttDestroy], [&create(2), &other(2)])?;
    let [mut made, mut folded] = [Times::new(), Times::new()];
    for _ in 0..TIMES {
        made.call(C::RttCreate, &create(3))?;
        folded.call(C::RttFold, &other(3))?;
    }
    folded.say("RTT_FOLD_UNASSIGNED");
    let ram = block(4);
    init(realm, ram)?;
    for number in 0..BLOCK / GRANULE {
        realm.assign(&mut realm.lock(), ram + number * GRANULE)?;
    }
    let [own, ..] = done(C::RttFold, &other(4))?;
    pair(
        ["RTT_CREATE_BLOCK", "RTT_FOLD_ASSIGNED"],
        [C::RttCreate, C::RttFold],
        [&[rd, own, ram, level], &other(4)],
    )?;
    realm.lock().recycle(own)?;
    realm.lock().recycle(table)?;
    repeat("RTT_READ_ENTRY", C::RttReadEntry, &[rd, RAM, level])?;

    let shared = RAM | realm.shared();
    {
        let mut pool = realm.lock();
        for level in [PAGE - 1, PAGE] {
            realm.create_table(&mut pool, shared, level)?;
        }
    }
    let desc = UnprotectedDescriptor::new(source, 0b110 << 2 | UnprotectedDescriptor::S2AP, false).0;
    pair(
        ["RTT_MAP_UNPROTECTED", "RTT_UNMAP_UNPROTECTED"],
        [C::RttMapUnprotected, C::RttUnmapUnprotected],
        [&[rd, shared, level, desc], &[rd, shared, level]],
    )
}

/// Makes a block RAM before the realm runs.
fn init(realm: &Realm, start: u64) -> Result<(), Problem> {
    let mut at = start;
    while at < start + BLOCK {
        let [next, ..] = done(C::RttInitRipas, &[realm.rd, at, start + BLOCK])?;
        if next <= at {
            return Err(Problem::Host("RMI_RTT_INIT_RIPAS makes no progress"));
        }
        at = next;
    }
    Ok(())
}

fn spare(realm: &Realm) -> Result<u64, Problem> {
    realm.lock().delegated()?.ok_or(Problem::Host("there are not enough granules"))
}

fn enter(realm: &Realm) -> Result<(), Problem> {
    let rec = &realm.recs[0];
    // The first takes what is only loaded once.
    for _ in 0..3 {
        done(C::RecEnter, &[rec.pa, rec.run])?;
    }
    repeat("REC_ENTER_HOST_CALL", C::RecEnter, &[rec.pa, rec.run])
}

/// Times the hypervisor's own calls, if it has them.
fn hypercalls(page: u64) {
    let [mut share, mut unshare] = [Times::new(), Times::new()];
    let outcome = (0..TIMES).try_for_each(|_| {
        for (times, function) in [(&mut share, SHARE), (&mut unshare, UNSHARE)] {
            let ([status, ..], ticks) = entry::hvc(function, [page, 1, 0, 0, 0]);
            if status != 0 {
                return ControlFlow::Break((function, status));
            }
            times.add(ticks);
        }
        ControlFlow::Continue(())
    });
    match outcome {
        ControlFlow::Continue(()) => {
            share.say("SHARE");
            unshare.say("UNSHARE");
        }
        ControlFlow::Break((_, NOT_SUPPORTED)) => say!("payload: the hypervisor shares no pages: not timed"),
        ControlFlow::Break((function, status)) => {
            say!("payload: hypercall {function:#x} was answered by {status:#x}: not timed");
        }
    }
}
