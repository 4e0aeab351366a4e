//! Live changes under CPUs that use what is changed: of the payload's own stage 1, of the stage 2 under it, and of EL2's map above it.
//!
//! The last two take the calls of a test build of the hypervisor; without them they are not tried.

use guest_tests::cpus::together;
use guest_tests::entry::{self, Cpu};
use guest_tests::firmware::{self, NOT_SUPPORTED};
use guest_tests::memory::{Memory, OwnMap};
use guest_tests::report::Report;
use guest_tests::say;
use hyp::machine::Machine;
use hyp::mapping::{Attributes, Change as MapChange, El1And0, Range};
use hyp::trial::{
    CHANGE_EL2, CHANGE_HOST, Change, DUMP, Linear, MOMENTS, Outcome, PREPARE_EL2, SIZE, Subject, TOUCH_EL2,
    Trial,
};
use smccc::Hvc;

use crate::cpus::{TOUCH, TOUCH_EL2 as TAKE_PART_AT_EL2};

/// Changes in each trial, unless `cloven.changes` says otherwise.
const CHANGES: u64 = 10_000;
/// CPUs that touch, at most.
const TOUCHING: usize = 3;
/// So that a failure can be had again.
const SEED: u64 = 0x0123_4567_89ab_cdef;

static TRIAL: Trial = Trial::new();

fn call(function: u32, args: [u64; 3]) -> [u64; 18] {
    firmware::call::<Hvc>(function, args)
}

/// Who changes what.
struct Host<'a> {
    /// The payload's map.
    map: &'a OwnMap,
    /// What changes is not that map, but the hypervisor's under it.
    under: bool,
}

type C = MapChange<El1And0>;

impl Subject for Host<'_> {
    fn change(&self, change: Change, start: u64, size: u64) -> bool {
        if self.under {
            return call(CHANGE_HOST, [change.encode(), start, size])[0] == 0;
        }
        let own = Linear {
            map: self.map,
            cpu: Cpu::this().number,
            data: Attributes::<El1And0>::DATA,
            read_only: C::READ_ONLY,
            writable: C::WRITABLE,
            executable: C::EXECUTABLE,
        };
        let result = own.change(change, start, size);
        if let Err(error) = result {
            say!("payload: {change:?} of {size:#x} bytes at {start:#x}: {error}");
        }
        result.is_ok()
    }
    fn publish_code(&self, start: u64, size: u64) {
        // SAFETY: maintenance changes no value.
        unsafe {
            entry::clean(start, start + size);
            entry::forget_instructions();
        }
        own(self.map, start, size, C::EXECUTABLE);
    }
}

/// Changes a part of the payload's own map that no leaf reaches out of.
fn own(map: &OwnMap, start: u64, size: u64, change: C) {
    let range = Range::new(start, size).unwrap_or_else(|error| panic!("{error}"));
    map.protect(range, change).unwrap_or_else(|error| panic!("{range}: {error}")).flush();
}

/// Takes part in a trial of the payload's own, or of EL2's, as number `me` of those who touch.
pub fn touch(me: usize, at_el2: bool) {
    if at_el2 {
        call(TOUCH_EL2, [me as u64, 0, 0]);
    } else {
        // SAFETY: the boot CPU prepares it first, and counts the CPUs.
        unsafe { TRIAL.touch(me) };
    }
}

fn say_outcome(report: &mut Report, name: &str, ready: bool, outcome: Outcome, changes: u64) {
    report.check(name, ready && outcome.holds(changes), format_args!("{outcome:?}"));
}

/// All trials that can be made here.
pub fn all(report: &mut Report, machine: &Machine<'_>, memory: &Memory) {
    let others = (machine.cpus.len() - 1).min(TOUCHING);
    let Some(ranges) = memory.trials else {
        say!("payload: no RAM for trials of live changes");
        return;
    };
    if others == 0 {
        say!("payload: trials of live changes take more than one CPU");
        return;
    }
    let changes = machine.parameter("cloven.changes").and_then(|text| text.parse().ok()).unwrap_or(CHANGES);
    let map = &memory.map;
    let tried = |report: &mut Report, name, under| {
        let host = Host { map, under };
        // A trial before it may have left parts that cannot be written.
        ranges.into_iter().for_each(|start| own(map, start, SIZE, C::WRITABLE));
        // SAFETY: free RAM, mapped as data at its own address; the other CPUs wait for orders.
        let ready = unsafe { TRIAL.prepare(&host, ranges) };
        let outcome = together(others, TOUCH, || TRIAL.change(&host, others, changes, SEED));
        say_outcome(report, name, ready, outcome, changes);
    };
    // All maps, in a build for dumps.
    let dump = |moment: usize| {
        memory.dump(machine, MOMENTS[moment]);
        call(DUMP, [moment as u64, 0, 0]);
    };
    let in_place = map.capabilities().bbm_level() == 3;
    let has_calls = call(CHANGE_HOST, [0, 1, 1])[0] != NOT_SUPPORTED;
    if in_place || has_calls {
        dump(0);
    }
    if in_place {
        tried(report, "trial.el1_map_changes_under_its_users", false);
    } else {
        say!("payload: its own blocks cannot be split in place on this CPU: not tried");
    }
    if has_calls {
        tried(report, "trial.stage_2_changes_under_the_host", true);
    } else {
        say!("payload: this hypervisor has no calls for trials");
    }
    if has_calls && in_place {
        let ready = call(PREPARE_EL2, [ranges[0], ranges[1], 0])[0] == 0;
        let outcome = together(others, TAKE_PART_AT_EL2, || {
            let answer = call(CHANGE_EL2, [others as u64, changes, SEED]);
            Outcome { changes: answer[0], refused: answer[1], wrong: answer[2], passes: answer[3] }
        });
        say_outcome(report, "trial.el2_map_changes_under_its_users", ready, outcome, changes);
    }
    if in_place || has_calls {
        dump(1);
    }
}
