//! The checks that one CPU makes by itself.

use arm_sysregs::el0::accessors::{read_cntfrq_el0, read_cntvct_el0};
use arm_sysregs::el1::accessors::*;
use arrayvec::ArrayVec;
use hyp::machine::Machine;
use hyp::mapping::Address;
use smccc::{Call, Hvc, Smc};

use guest_tests::entry;
use guest_tests::firmware::{NOT_SUPPORTED, call};
use guest_tests::memory::{BEYOND, Memory, View};
use guest_tests::probe::{Kind, is_refusal, probe};
use guest_tests::report::{Report, UART};
use guest_tests::say;

/// Cloven's UID call, and the first register of its answer.
const CALL_UID: u32 = 0x8600_ff01;
const UID_FIRST: u64 = 0x523c_1d6e;

/// What the CPU says of itself.
pub fn identity(report: &mut Report) {
    // CurrentEL has no accessor; the vectors and registers of EL1 work, and HVC below comes back.
    let sre = read_icc_sre_el1().bits();
    report.check("host.gic_system_registers", sre & 1 == 1, format_args!("ICC_SRE_EL1 {sre:#x}"));
    let frequency = read_cntfrq_el0().bits();
    let start = read_cntvct_el0().bits();
    let moves = (0..1_000_000).any(|_| read_cntvct_el0().bits() > start);
    report.check("host.virtual_counter", moves && frequency > 0, format_args!("{frequency} Hz"));
}

/// The calls that end at the hypervisor, by either conduit.
pub fn calls(report: &mut Report) {
    let version = smccc::arch::version::<Smc>();
    report.check(
        "smccc.version",
        matches!(version, Ok(v) if v.major == 1 && v.minor >= 1),
        format_args!("{version:?}"),
    );
    let psci = smccc::psci::version::<Smc>();
    report.check("psci.version", matches!(psci, Ok(v) if v.major >= 1), format_args!("{psci:?}"));
    let features = |function: u32| call::<Smc>(smccc::psci::PSCI_FEATURES, [function.into(), 0, 0])[0] as i32;
    let on = features(smccc::psci::PSCI_CPU_ON_64);
    let suspend = features(smccc::psci::PSCI_SYSTEM_SUSPEND_64);
    report.check(
        "psci.features",
        on == 0 && suspend == -1,
        format_args!("CPU_ON {on}, SYSTEM_SUSPEND {suspend}"),
    );
    let by_smc = call::<Smc>(CALL_UID, [0; 3])[0];
    let by_hvc = call::<Hvc>(CALL_UID, [0; 3])[0];
    report.check(
        "hypercall.uid",
        by_smc == UID_FIRST && by_hvc == UID_FIRST,
        format_args!("{by_smc:#x}, {by_hvc:#x}"),
    );
    let mut unknown = [0xc400_0190, 0x8400_0099, 0x8600_1234, 0xbf00_0000, 0].into_iter();
    let unknown = unknown.find(|&f| {
        call::<Smc>(f, [1, 2, 3])[0] != NOT_SUPPORTED || call::<Hvc>(f, [1, 2, 3])[0] != NOT_SUPPORTED
    });
    report.check("smccc.unknown_calls_are_refused", unknown.is_none(), format_args!("{unknown:x?}"));
    let given: [u64; 17] = core::array::from_fn(|i| 0x1111 * (i as u64 + 1));
    let after = Smc::call64(0xc400_0190, given);
    report.check("smccc.registers_are_kept", after[1..] == given, format_args!("{:x?}", &after[1..]));
}

/// Places that the RAM check looks at, at most: few enough for the stack that remembers what they held.
const RAM_PROBES: usize = 256;

/// RAM: each of many places over all banks holds what was written there, after all were written: so no two are one.
pub fn ram(report: &mut Report, machine: &Machine<'_>, memory: &Memory) {
    let total: u64 = machine.memory.iter().map(|bank| bank.size()).sum();
    let step = (total / (RAM_PROBES as u64 - 64)).next_multiple_of(4096).max(4096);
    let mut places: ArrayVec<(*mut u64, u64), RAM_PROBES> = ArrayVec::new();
    for part in machine.memory.iter().flat_map(|bank| bank.minus(&memory.taken)) {
        let last = (part.end() - 8) & !7;
        for address in (part.start().get()..last).step_by(step as usize).chain([last]) {
            let place = address as *mut u64;
            // SAFETY: RAM that the tree gives us and does not reserve, in use by nobody, mapped as data.
            let old = unsafe { place.read_volatile() };
            if places.try_push((place, old)).is_err() {
                break;
            }
        }
    }
    let pattern = |place: *mut u64| place as u64 ^ 0x5a5a_a5a5_0f0f_f0f0;
    for &(place, _) in &places {
        // SAFETY: as above.
        unsafe { place.write_volatile(pattern(place)) };
    }
    // SAFETY: as above.
    let wrong = places.iter().find(|&&(place, _)| unsafe { place.read_volatile() } != pattern(place));
    let holds = wrong.is_none() && places.len() > 100;
    let detail = format_args!("{} places in {} MiB, wrong {wrong:x?}", places.len(), total >> 20);
    report.check("ram.holds_what_was_written", holds, detail);
    for &(place, old) in &places {
        // SAFETY: as above.
        unsafe { place.write_volatile(old) };
    }
}

/// Devices: readable where they are; not executable; nothing beyond the machine.
pub fn devices(report: &mut Report, machine: &Machine<'_>, memory: &Memory) {
    let uart = probe(View::Data, Kind::Load, UART);
    report.check("device.uart_is_readable", uart.is_none(), format_args!("{uart:x?}"));
    let gic = probe(View::Data, Kind::Load, machine.gic.distributor.start().get());
    report.check("device.gic_is_readable", gic.is_none(), format_args!("{gic:x?}"));
    check_refused(report, "device.is_not_executable", View::Code, Kind::Fetch, UART);
    match memory.beyond {
        Some(pa) => {
            say!("payload: the page at {pa:#x} is beyond the machine");
            check_refused(report, "beyond_the_machine.load", View::Data, Kind::Load, BEYOND);
        }
        None => say!("payload: the machine has all that the CPU can address: nothing is beyond it"),
    }
}

fn check_refused(report: &mut Report, name: &str, view: View, kind: Kind, pa: u64) -> bool {
    let fault = probe(view, kind, pa);
    let refused = is_refusal(fault, view, kind, view.of(pa));
    report.check(name, refused, format_args!("{kind:?} of {pa:#x} as {view:?}: {fault:x?}"));
    refused
}

/// The accesses that must be refused: each kind, from EL1 and from EL0.
const FORBIDDEN: [(View, Kind); 6] = [
    (View::Data, Kind::Load),
    (View::Code, Kind::Fetch),
    (View::UserData, Kind::Load),
    (View::UserCode, Kind::Fetch),
    (View::UserData, Kind::Store),
    (View::Data, Kind::Store),
];

/// Places in the hypervisor's memory that are tried: its first, a middle and its last page, to the last word.
fn places(memory: &Memory) -> [u64; 4] {
    let (start, end) = (memory.hypervisor.start().get(), memory.hypervisor.end());
    [end - 4096, start, start + (end - start) / 2, end - 8]
}

/// Loads, stores and fetches of the hypervisor's memory, on the boot CPU with a line for each kind: whether all were
/// refused.
pub fn forbidden(report: &mut Report, memory: &Memory) -> bool {
    for (view, kind) in FORBIDDEN {
        let level = if matches!(view, View::Data | View::Code) { "el1" } else { "el0" };
        let mut bad = None;
        for pa in places(memory) {
            let fault = probe(view, kind, pa);
            if !is_refusal(fault, view, kind, view.of(pa)) {
                bad = Some((pa, fault));
                // Once something got through, no more is tried: a store could end the run before it is told.
                break;
            }
        }
        let name = match (level, kind) {
            ("el1", Kind::Load) => "forbidden.el1_load",
            ("el1", Kind::Store) => "forbidden.el1_store",
            ("el1", Kind::Fetch) => "forbidden.el1_fetch",
            (_, Kind::Load) => "forbidden.el0_load",
            (_, Kind::Store) => "forbidden.el0_store",
            (_, Kind::Fetch) => "forbidden.el0_fetch",
        };
        report.check(
            name,
            bad.is_none(),
            format_args!("{} places, not refused {bad:x?}", places(memory).len()),
        );
        if bad.is_some() {
            return false;
        }
    }
    permitted(report, memory);
    true
}

/// What EL0 and EL1 may do: so the refusals above are not those of a host that can do nothing.
fn permitted(report: &mut Report, memory: &Memory) {
    let own = memory.image.end() - 4096;
    let code = core::ptr::addr_of!(entry::just_return) as u64;
    let tried = [
        (View::UserData, Kind::Load, own),
        (View::UserData, Kind::Store, own),
        (View::UserCode, Kind::Fetch, code),
        (View::Code, Kind::Fetch, code),
        (View::Data, Kind::Store, own),
    ];
    let bad =
        tried.into_iter().find_map(|(view, kind, pa)| probe(view, kind, pa).map(|fault| (view, kind, fault)));
    report.check("permitted.own_memory_from_el1_and_el0", bad.is_none(), format_args!("{bad:x?}"));
}

/// As [`forbidden`], without lines: how many accesses were refused as they must be, and how many there were.
pub fn count_refused(memory: &Memory) -> (usize, usize) {
    let mut refused = 0;
    for (view, kind) in FORBIDDEN {
        for pa in places(memory) {
            refused += usize::from(is_refusal(probe(view, kind, pa), view, kind, view.of(pa)));
        }
    }
    (refused, FORBIDDEN.len() * places(memory).len())
}

/// Hypercalls that are timed.
const TIMED: u64 = 1000;

/// Times a call that ends at the hypervisor. With `--icount` a tick is an instruction.
pub fn round_trip() {
    let start = read_cntvct_el0().bits();
    for _ in 0..TIMED {
        Hvc::call32(CALL_UID, [0; 7]);
    }
    let ticks = (read_cntvct_el0().bits() - start) / TIMED;
    say!("@cloven figure hypercall.round_trip {ticks} ticks_at_{}_Hz", read_cntfrq_el0().bits());
}
