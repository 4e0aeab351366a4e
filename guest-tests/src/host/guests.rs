//! What EL2 does when it runs a guest: a few instructions of this payload, over its own stage 2 under another VMID. Takes a test build of the
//! hypervisor.

use arm_sysregs::el0::accessors::{read_cntvct_el0, write_cntv_ctl_el0, write_cntv_cval_el0};
use arm_sysregs::el0::registers::{CntvCtlEl0, CntvCvalEl0};
use arm_sysregs::el1::accessors::*;
use arm_sysregs::el1::registers::{IccIgrpen1El1, IccPmrEl1};
use guest_tests::firmware::{NOT_SUPPORTED, call};
use guest_tests::report::{Report, UART};
use guest_tests::say;
use hyp::machine::Machine;
use hyp::mapping::Address;
use hyp::trial::HASH;
use hyp::trial::guest::{Flags, RUN};
use smccc::Hvc;

use crate::entry_guest::{Code, Vectors, call_with, sve_bytes};

const EC_HVC: u64 = 0x16;
const EC_WFX: u64 = 0x01;
const EC_FETCH: u64 = 0x20;
const EC_SYSTEM_REGISTER: u64 = 0x18;
/// Ticks until a timer of a guest.
const SOON: u64 = 100_000;
const INTERRUPT: [u64; 2] = [1, 0];

fn run(flags: Flags, code: Code, x0: u64) -> [u64; 4] {
    let answer = call::<Hvc>(RUN, [flags.bits(), code.address(), x0]);
    [answer[0], answer[1], answer[2], answer[3]]
}

/// The syndrome of HVC `number`.
fn hvc(number: u64) -> u64 {
    EC_HVC << 26 | 1 << 25 | number
}

fn class(esr: u64) -> u64 {
    esr >> 26 & 0x3f
}

/// What the guest could have changed, and the host must find as it was.
fn own() -> [u64; 16] {
    [
        read_tpidr_el1().bits(),
        read_ttbr0_el1().bits(),
        read_ttbr1_el1().bits(),
        read_tcr_el1().bits(),
        read_mair_el1().bits(),
        read_vbar_el1().bits(),
        read_sctlr_el1().bits(),
        read_elr_el1().bits(),
        read_spsr_el1().bits(),
        read_esr_el1().bits(),
        read_far_el1().bits(),
        read_contextidr_el1().bits(),
        read_cpacr_el1().bits(),
        read_mpidr_el1().bits(),
        read_cntkctl_el1().bits(),
        read_mdscr_el1().bits(),
    ]
}

/// All of it, if the hypervisor can.
pub fn all(report: &mut Report, machine: &Machine<'_>) {
    let fresh = Flags::FRESH;
    let [kind, esr, pfr0, dfr0] = run(fresh, Code::Identity, 0);
    if kind == NOT_SUPPORTED {
        return say!("payload: the hypervisor runs no guests for a trial");
    }
    // No SVE, RAS, AMU, MPAM; FP, and AArch64 alone. No PMU, and the debug architecture of Armv8.0.
    let is_less = pfr0 & 0x0f0f_ffff_f000_ffff & 0x0000_ffff_f000_ff00 == 0 && pfr0 & 0xffff == 0x11;
    let seen = kind == 0 && esr == hvc(1) && is_less && dfr0 & 0xfff == 6;
    report.check("guest.sees_less", seen, format_args!("{kind} {esr:#x} PFR0 {pfr0:#x} DFR0 {dfr0:#x}"));

    let before = own();
    let [kind, esr, found, mpidr] = run(fresh, Code::Registers, 0);
    let after = own();
    let kept = before == after && (kind, esr) == (0, hvc(2)) && (found, mpidr) == (0, 1 << 31);
    report.check(
        "guest.has_registers_of_its_own",
        kept,
        format_args!("{kind} {esr:#x} {found:#x} {mpidr:#x}, {before:x?} {after:x?}"),
    );

    vectors(report);

    let undefined = run(fresh, Code::Undefined, 0);
    report.check("guest.has_no_pmu", undefined == [0, hvc(6), 1 << 25, 0], format_args!("{undefined:x?}"));
    let [kind, esr, _, hpfar] = run(fresh, Code::Jump, UART);
    let named = kind == 0 && class(esr) == EC_FETCH && hpfar == UART >> 8;
    report.check("guest.permission_fault_has_its_ipa", named, format_args!("{kind} {esr:#x} {hpfar:#x}"));
    let calls = run(fresh, Code::Calls, 1000);
    report.check(
        "guest.calls_are_answered_without_an_exit",
        calls[1] == hvc(7) && calls[3] == 1000,
        format_args!("{calls:x?}"),
    );
    let [kind, esr, ..] = run(fresh | Flags::TRAP_WFI, Code::Wait, 0);
    report.check("guest.waits", (kind, class(esr)) == (0, EC_WFX), format_args!("{kind} {esr:#x}"));
    let [kind, esr, ..] = run(fresh, Code::Sends, 0);
    let [then, next, ..] = run(Flags::ADVANCE, Code::Sends, 0);
    let sends = (kind, class(esr)) == (0, EC_SYSTEM_REGISTER) && (then, next) == (0, hvc(9));
    report.check(
        "guest.sends_interrupts_through_its_host",
        sends,
        format_args!("{kind} {esr:#x}, {then} {next:#x}"),
    );
    let [kind, esr, number, pending] = run(fresh | Flags::INTERRUPT, Code::Interrupt, 0);
    report.check(
        "guest.takes_an_interrupt",
        (kind, esr, number, pending) == (0, hvc(12), 27, 0),
        format_args!("{kind} {esr:#x} {number} {pending:#x}"),
    );
    timers(report, machine);

    // How long a run takes.
    const RUNS: u64 = 1000;
    run(fresh, Code::Stop, 0);
    let start = read_cntvct_el0().bits();
    (0..RUNS).for_each(|_| {
        run(Flags::empty(), Code::Stop, 0);
    });
    let ticks = read_cntvct_el0().bits() - start;
    say!("@cloven figure guest.run {} ticks", ticks / RUNS);
    let start = read_cntvct_el0().bits();
    run(fresh, Code::Calls, RUNS);
    let ticks = read_cntvct_el0().bits() - start;
    say!("@cloven figure guest.call {} ticks", ticks / RUNS);
}

fn vectors(report: &mut Report) {
    let has_sve = read_id_aa64pfr0_el1().sve() != 0;
    let length = if has_sve { sve_bytes() } else { 16 };
    for (name, long, flags) in [
        ("guest.leaves_the_hosts_vectors", false, Flags::FRESH | Flags::NO_SVE),
        ("guest.leaves_the_hosts_long_vectors", true, Flags::FRESH),
    ] {
        if long && !has_sve {
            continue;
        }
        let words = if long { length * 4 } else { 64 } as usize;
        let given: Vectors = core::array::from_fn(|i| 0x0123_4567_89ab_cdef ^ (i as u64) << 20);
        let mut taken = given;
        let args = [flags.bits(), Code::Vectors.address(), 0];
        let answer = call_with(RUN, args, &mut taken, long);
        let [kind, esr, second, fpcr] = run(Flags::ADVANCE & Flags::empty(), Code::Vectors, 0);
        let first = taken.iter().zip(&given).take(words).position(|(taken, given)| taken != given);
        let kept = (kind, esr, second, fpcr) == (0, hvc(4), u64::MAX, 1 << 24);
        let mut after_hash = given;
        let hash = call_with(HASH, [0; 3], &mut after_hash, long);
        let of_hash = after_hash.iter().zip(&given).take(words).position(|(taken, given)| taken != given);
        report.check(
            if long { "hash.leaves_the_hosts_long_vectors" } else { "hash.leaves_the_hosts_vectors" },
            hash == 0 && of_hash.is_none(),
            format_args!("{hash}, word {of_hash:?}"),
        );
        report.check(
            name,
            answer == 0 && first.is_none() && kept,
            format_args!(
                "{length} bytes, {answer:#x}, word {first:?}, {kind} {esr:#x} {second:#x} {fpcr:#x}"
            ),
        );
    }
}

/// Lets the interrupts of timers reach this CPU's interface, or no longer.
fn interrupts(machine: &Machine<'_>, on: bool) {
    const BITS: u32 = 1 << 26 | 1 << 27 | 1 << 30;
    let Some(first) = machine.gic.redistributors.first() else { return };
    let distributor = machine.gic.distributor.start().get();
    let sgi = first.start().get() + 0x1_0000;
    let write = |address: u64, value: u32| {
        // SAFETY: registers of the interrupt controller, mapped as device memory, which nobody else uses.
        unsafe { (address as *mut u32).write_volatile(value) };
    };
    // The redistributor awake; group 1 and priority 0xa0 for all private interrupts; the distributor on, with affinity routing.
    write(first.start().get() + 0x14, 0);
    write(sgi + 0x80, u32::MAX);
    (0..8).for_each(|word| write(sgi + 0x400 + 4 * word, 0xa0a0_a0a0));
    write(distributor, 1 << 4 | 1 << 1);
    write(sgi + if on { 0x100 } else { 0x180 }, BITS);
    // They stay masked here.
    write_icc_pmr_el1(IccPmrEl1::from_bits_retain(0xff));
    write_icc_igrpen1_el1(IccIgrpen1El1::from_bits_retain(on.into()));
}

fn timers(report: &mut Report, machine: &Machine<'_>) {
    interrupts(machine, true);
    // Each of them once, or both at once if that took so long; then it goes on, and sees them as they are.
    let mut stops = 0;
    let mut flags = Flags::FRESH;
    let seen = loop {
        let answer = run(flags, Code::Timers, SOON);
        if answer[..2] != INTERRUPT || stops == 2 {
            break answer;
        }
        stops += 1;
        flags = Flags::empty();
    };
    let masked = run(flags, Code::Timers, 0);
    let again = run(flags, Code::Timers, 0);
    // Without FEAT_ECV nobody can hide the mask of the virtual timer.
    let virtual_ctl = if read_id_aa64mmfr0_el1().ecv() != 0 { 5 } else { 7 };
    let holds = stops > 0 && seen == [0, hvc(10), virtual_ctl, 5] && masked == [0, hvc(11), 7, 7];
    report.check(
        "guest.timers_stop_it_once",
        holds && again[..2] == INTERRUPT,
        format_args!("{stops} times, {seen:x?} {masked:x?} {again:x?}"),
    );
    // A timer of the host's that was set before ends a guest that would go on for ever.
    let deadline = read_cntvct_el0().bits() + SOON;
    write_cntv_cval_el0(CntvCvalEl0::from_bits_retain(deadline));
    write_cntv_ctl_el0(CntvCtlEl0::ENABLE);
    let stopped = run(Flags::FRESH, Code::Interrupt, 0);
    let late = read_cntvct_el0().bits() >= deadline;
    write_cntv_ctl_el0(CntvCtlEl0::empty());
    report.check(
        "guest.is_stopped_for_its_host",
        stopped[..2] == INTERRUPT && late,
        format_args!("{stopped:x?}"),
    );
    interrupts(machine, false);
}
