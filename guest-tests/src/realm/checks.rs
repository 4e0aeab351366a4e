//! What a realm must find: of RIPAS, of its monitor's other commands, of PSCI, of its timer and of its FP registers.

use core::fmt;

use arm_sysregs::el0::accessors::{
    read_cntfrq_el0, read_cntvct_el0, write_cntv_ctl_el0, write_cntv_cval_el0,
};
use arm_sysregs::el0::registers::{CntvCtlEl0, CntvCvalEl0};
use arm_sysregs::el1::accessors::{
    read_cpacr_el1, read_icc_iar1_el1, read_icc_pmr_el1, read_id_aa64mmfr2_el1, read_isr_el1, read_midr_el1,
    write_cpacr_el1, write_icc_eoir1_el1, write_icc_igrpen1_el1, write_icc_pmr_el1,
};
use arm_sysregs::el1::registers::{CpacrEl1, IccEoir1El1, IccIgrpen1El1, IccPmrEl1};
use guest_tests::cpus;
use guest_tests::entry::{Cpu, secondary_entry, synchronize};
use guest_tests::firmware::NOT_SUPPORTED;
use guest_tests::memory::{View, range};
use guest_tests::probe::{Kind, probe};
use guest_tests::report::{Report, UART};
use guest_tests::say;
use hyp::machine::Machine;
use hyp::mapping::{Address, Pa, Range};
use hyp::realm::{RsiError, RsiResponse, RsiRipas, RsiRipasChangeFlags, RsiStatus, Side};
use smccc::psci::error::Error as PsciError;
use smccc::psci::{self, AffinityState};
use smccc::{Call, Smc};

use crate::entry::{fp_fill, fp_look, take_interrupt, wait_for_interrupt};
use crate::host::{self, NO_OPERATION};
use crate::own::{GATE, Outside, Own, PAGE, own};

/// Bytes in their order, two digits each.
pub struct Hex<'a>(pub &'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The virtual timer's interrupt, a PPI.
const TIMER: u64 = 27;
const ISR_IRQ: u64 = 1 << 7;
const FPEN: u64 = 0b11 << 20;

/// What the boot CPU looks at while it is alone.
pub fn alone(report: &mut Report, machine: &Machine<'_>, own: &'static Own) {
    shown(report, machine);
    ripas(report, machine, own);
    commands(report, own);
    at_power(report, machine);
    let fp = (0..4).all(|_| fp_keeps());
    report.check("realm.fp_registers_keep_across_exits", fp, format_args!("on the boot CPU"));
    let fired = timer_fires();
    report.check("realm.virtual_timer_interrupts", fired.is_ok(), format_args!("{fired:?}"));
    let waited = wfi_returns();
    report.check("realm.wfi_returns", waited.is_ok(), format_args!("{waited:?}"));
}

/// Which CPU it is shown: that which was asked for, if one was.
fn shown(report: &mut Report, machine: &Machine<'_>) {
    let (midr, bbm) = (read_midr_el1().bits(), u64::from(read_id_aa64mmfr2_el1().bbm()));
    say!("@cloven figure realm.midr {midr} MIDR_EL1");
    say!("@cloven figure realm.bbm {bbm} level");
    // What the hypervisor leaves out was not asked for.
    let asked_midr = machine.parameter("cloven.midr").and_then(|text| text.strip_prefix("0x"));
    let asked_midr = asked_midr.and_then(|digits| u32::from_str_radix(digits, 16).ok());
    let asked_midr = asked_midr.filter(|midr| midr >> 16 & 0xf != 0);
    let asked_bbm = machine.parameter("cloven.advertise-bbm").filter(|text| ["0", "2", "3"].contains(text));
    let asked_bbm = asked_bbm.and_then(|text| text.parse().ok());
    let is_so =
        asked_midr.is_none_or(|asked| midr == asked.into()) && asked_bbm.is_none_or(|asked| bbm == asked);
    report.check(
        "realm.is_shown_the_cpu_that_was_asked_for",
        is_so,
        format_args!("MIDR {midr:#x}, level {bbm} of FEAT_BBM"),
    );
}

/// A part of the scratch range.
fn scratch(own: &Own, page: u64, pages: u64) -> Range<Pa> {
    let start = own.scratch.start().get() + page * PAGE;
    range(start, start + pages * PAGE)
}

/// Whether RIPAS of all of a range is RAM.
pub fn ripas_is_ram(own: &Own, range: Range<Pa>) -> bool {
    let mut at = range.start().get();
    while at < range.end() {
        let Ok(rest) = Range::<Pa>::new(at, range.end() - at) else { return false };
        match own.rsi.ipa_state_get(rest) {
            Ok((RsiRipas::Ram, top)) => at = top,
            _ => return false,
        }
    }
    true
}

/// Makes RIPAS of a range this one, with its leaves as they are.
pub fn set_ripas(own: &Own, range: Range<Pa>, ripas: RsiRipas) -> bool {
    let mut at = range.start().get();
    while at < range.end() {
        let Ok(rest) = Range::<Pa>::new(at, range.end() - at) else { return false };
        match own.rsi.ipa_state_set(rest, ripas, RsiRipasChangeFlags::CHANGE_DESTROYED) {
            Ok(change) if change.response == RsiResponse::Accept => at = change.new_base,
            _ => return false,
        }
    }
    true
}

fn ripas(report: &mut Report, machine: &Machine<'_>, own: &'static Own) {
    let get = |range| own.rsi.ipa_state_get(range);
    let whole = scratch(own, 0, 1024);
    let found = get(whole);
    let holds = found.is_ok_and(|(ripas, _)| ripas == RsiRipas::Ram) && ripas_is_ram(own, whole);
    report.check("realm.ripas_of_ram", holds, format_args!("{whole}: {found:x?}"));
    let uart = machine.uart.map_or(UART, |uart| uart.start().get());
    let device = range(uart, uart + PAGE);
    let found = get(device);
    let holds = found == Ok((RsiRipas::Empty, device.end()));
    report.check("realm.ripas_of_a_device_is_empty", holds, format_args!("{found:x?}"));
    let wrong = Err(RsiError::Status(RsiStatus::ErrorInput));
    let alias = own.config.alias(device).map(get);
    report.check("realm.what_is_shared_has_no_ripas", alias == Some(wrong), format_args!("{alias:x?}"));
    let half = Range::<Pa>::new(whole.start().get() + 8, PAGE).map(get);
    report.check("realm.half_pages_have_no_ripas", half == Ok(wrong), format_args!("{half:x?}"));

    // Pages 8 to 15 become EMPTY under a map that still has them.
    let (before, empty, after) = (scratch(own, 7, 1), scratch(own, 8, 8), scratch(own, 16, 1));
    let word = |range: Range<Pa>| range.start().get() as *mut u64;
    for part in [before, after] {
        // SAFETY: scratch memory, mapped as data.
        unsafe { word(part).write_volatile(part.start().get()) };
    }
    let set = set_ripas(own, empty, RsiRipas::Empty);
    let found = get(whole).and_then(|(_, top)| Ok((top, get(range(top, whole.end()))?)));
    let holds = set && found == Ok((empty.start().get(), (RsiRipas::Empty, empty.end())));
    report.check("realm.ripas_of_what_is_empty", holds, format_args!("{found:x?}"));
    let mut aborts = 0;
    let mut last = None;
    for kind in [Kind::Load, Kind::Store] {
        for page in [0, 3, 7] {
            let at = empty.start().get() + page * PAGE;
            last = probe(View::Data, kind, at);
            // Synchronous external abort, not on a walk, by EL1's own access; EA is set (A5.2.7, R_VKNJW).
            let is_abort = |esr: u64| esr >> 26 == 0x25 && esr & 0x3f == 0x10 && esr & 1 << 9 != 0;
            aborts += u32::from(last.is_some_and(|fault| is_abort(fault.esr) && fault.far == at));
        }
    }
    let detail = format_args!("{aborts} of 6, the last {last:x?}");
    report.check("realm.what_is_empty_aborts", aborts == 6, detail);
    let set = set_ripas(own, empty, RsiRipas::Ram);
    let works = (0..8).all(|page| {
        let at = (empty.start().get() + page * PAGE) as *mut u64;
        // SAFETY: scratch memory, mapped as data, RAM again.
        unsafe {
            at.write_volatile(!page);
            at.read_volatile() == !page
        }
    });
    report.check("realm.what_is_ram_again_works", set && works, format_args!("RIPAS {set}, memory {works}"));
    // SAFETY: as above.
    let kept =
        [before, after].iter().all(|part| unsafe { word(*part).read_volatile() } == part.start().get());
    report.check("realm.neighbours_of_what_was_empty_keep", kept, format_args!("{empty}"));

    // Two blocks but for their first and last page, by what is tried: the pages around keep what they hold.
    let (first, inner, last) = (scratch(own, 0, 1), scratch(own, 1, 1022), scratch(own, 1023, 1));
    for part in [first, last] {
        // SAFETY: as above.
        unsafe { word(part).write_volatile(part.start().get()) };
    }
    for side in [Side::Decrypted, Side::Encrypted] {
        let result = match side {
            Side::Decrypted => own.shared.set_memory_decrypted(inner),
            Side::Encrypted => own.shared.set_memory_encrypted(inner),
        };
        // SAFETY: as above.
        let works = (0..1022).step_by(73).all(|page| unsafe {
            let at = (inner.start().get() + page * PAGE) as *mut u64;
            at.write_volatile(page);
            at.read_volatile() == page
        });
        // SAFETY: as above.
        let kept =
            [first, last].iter().all(|part| unsafe { word(*part).read_volatile() } == part.start().get());
        let name = match side {
            Side::Decrypted => "realm.memory_is_shared_before_anything_else",
            Side::Encrypted => "realm.memory_is_taken_back_before_anything_else",
        };
        let detail = format_args!("{inner} {result:?}, memory {works}, neighbours {kept}");
        report.check(name, result.is_ok() && works && kept, detail);
    }
}

fn commands(report: &mut Report, own: &'static Own) {
    let rsi = &own.rsi;
    let features = rsi.features(0);
    report.check("realm.features_are_none", features == Ok(0), format_args!("{features:x?}"));
    let read = |index| rsi.measurement(index);
    let before = [read(0), read(1), read(2)];
    let extended = rsi.extend_measurement(1, b"what the realm has measured");
    let after = [read(0), read(1), read(2)];
    let holds = extended.is_ok()
        && before.iter().all(Result::is_ok)
        && [0, 2].iter().all(|&index| before[index] == after[index])
        && before[1] != after[1]
        && after[1].is_ok();
    let start = |found: &Result<[u8; 64], RsiError>| {
        found.map(|bytes| u64::from_be_bytes(*bytes.first_chunk().unwrap_or(&[0; 8])))
    };
    let detail = format_args!("{extended:?}, REM 1 {:x?}, then {:x?}", start(&before[1]), start(&after[1]));
    report.check("realm.measurement_is_extended", holds, detail);
    let rim = before[0].is_ok_and(|rim| rim != [0; 64]);
    report.check("realm.initial_measurement_is_something", rim, format_args!("{:x?}", start(&before[0])));
    if let Ok(rim) = before[0] {
        // Whoever has made the realm can work out what it must be.
        say!("@cloven rim {}", Hex(&rim));
    }
    let wrong = Err(RsiError::Status(RsiStatus::ErrorInput));
    let (zero, five, read_five) =
        (rsi.extend_measurement(0, &[1]), rsi.extend_measurement(5, &[1]), read(5).map(drop));
    let holds = [zero, five, read_five] == [wrong; 3];
    report.check(
        "realm.other_measurements_are_refused",
        holds,
        format_args!("{zero:?} {five:?} {read_five:?}"),
    );
    let answer = host::call(rsi, 0x7777, [1, 2, 3]);
    let holds = answer.is_some_and(|[first, ..]| first == NO_OPERATION);
    report.check("realm.host_call_is_answered", holds, format_args!("{answer:x?}"));
    let ticks = (host::ticks(rsi), host::ticks(rsi));
    report.check("realm.host_tells_its_ticks", ticks.1.host > 0, format_args!("{ticks:?}"));
    // Vendor-specific, of no RSI version, and of 32 bits.
    let unknown = [0xc600_ffff, 0xc400_01af, 0x8600_ffff].map(|fid| Outside::call64(fid, [0; 17])[0]);
    let [vendor, rsi_like, short] = unknown;
    let holds = [vendor, rsi_like] == [NOT_SUPPORTED; 2] && short as u32 == NOT_SUPPORTED as u32;
    report.check("realm.unknown_calls_are_not_supported", holds, format_args!("{unknown:x?}"));
}

fn at_power(report: &mut Report, machine: &Machine<'_>) {
    let version = psci::version::<Smc>();
    let holds = version.as_ref().is_ok_and(|version| (version.major, version.minor) >= (1, 1));
    report.check("realm.psci_version", holds, format_args!("{version:?}"));
    for (number, cpu) in machine.cpus.iter().enumerate() {
        let state = GATE.stand(|| cpus::state(cpu.mpidr));
        let expected = if number == 0 { AffinityState::On } else { AffinityState::Off };
        let detail = format_args!("CPU {:#x} {state:?}", cpu.mpidr);
        report.check("realm.cpu_is_on_or_off", state == Ok(expected), detail);
    }
    let entry = secondary_entry as *const () as u64;
    let on = |mpidr, entry| GATE.stand(|| psci::cpu_on::<Smc>(mpidr, entry, 0));
    let own_mpidr = machine.cpus.first().map_or(0, |cpu| cpu.mpidr);
    let itself = on(own_mpidr, entry);
    report.check("realm.cpu_on_of_itself", itself == Err(PsciError::AlreadyOn), format_args!("{itself:?}"));
    let nobody = on(0x00ff_0f00, entry);
    report.check(
        "realm.cpu_on_of_nobody",
        nobody == Err(PsciError::InvalidParameters),
        format_args!("{nobody:?}"),
    );
    let state = GATE.stand(|| cpus::state(0x00ff_0f00));
    report.check(
        "realm.state_of_nobody",
        state == Err(PsciError::InvalidParameters),
        format_args!("{state:?}"),
    );
    if let Some(other) = machine.cpus.get(1) {
        let shared = entry | 1 << own().config.shared_bit();
        let there = on(other.mpidr, shared);
        let holds = there == Err(PsciError::InvalidAddress);
        report.check("realm.cpu_on_at_a_shared_address", holds, format_args!("{there:?}"));
        let state = GATE.stand(|| cpus::state(other.mpidr));
        report.check("realm.that_starts_nobody", state == Ok(AffinityState::Off), format_args!("{state:?}"));
    }
}

/// Whether the running CPU's FP registers keep what they hold across exits to its host, whatever other CPUs do meanwhile.
pub fn fp_keeps() -> bool {
    // SAFETY: FP registers are nobody's here.
    unsafe { write_cpacr_el1(CpacrEl1::from_bits_retain(read_cpacr_el1().bits() | FPEN)) };
    synchronize();
    let seed = (Cpu::this().number as u64 + 1) * 0x0123_4567_89ab;
    (0..8).all(|round| {
        let seed = seed.wrapping_add(round << 52);
        // SAFETY: as above.
        unsafe { fp_fill(seed) };
        let exits = (0..4).all(|_| host::call(&own().rsi, NO_OPERATION - 1, [0; 3]).is_some());
        // SAFETY: as above.
        exits && unsafe { fp_look(seed) } == 0
    })
}

fn timer(control: u64, at: u64) {
    write_cntv_cval_el0(CntvCvalEl0::from_bits_retain(at));
    write_cntv_ctl_el0(CntvCtlEl0::from_bits_retain(control));
    synchronize();
}

fn interface() {
    write_icc_pmr_el1(IccPmrEl1::from_bits_retain(0xff));
    write_icc_igrpen1_el1(IccIgrpen1El1::from_bits_retain(1));
    synchronize();
}

fn end_interrupt(number: u64) {
    write_icc_eoir1_el1(IccEoir1El1::from_bits_retain(number));
    synchronize();
}

/// Why a timer's interrupt did not come as it should.
#[derive(Debug)]
#[expect(dead_code, reason = "it is for those who read the line")]
pub enum Missed {
    /// In this round another number was acknowledged, or none.
    Number(u32, u64),
    /// In this round it came so many ticks before its time.
    Early(u32, u64),
    /// The priority mask does not keep its value.
    Mask(u64),
}

/// Programs the running CPU's virtual timer and takes its interrupt, several times.
///
/// # Errors
/// [`Missed`].
pub fn timer_fires() -> Result<(), Missed> {
    interface();
    let mask = read_icc_pmr_el1().bits();
    if mask == 0 {
        return Err(Missed::Mask(mask));
    }
    let second = read_cntfrq_el0().bits();
    for round in 0..4 {
        let now = read_cntvct_el0().bits();
        let at = now + second / 2000;
        timer(1, at);
        // SAFETY: its vectors take what comes, and interrupts are masked again.
        let number = unsafe { take_interrupt(now + second / 4) };
        let then = read_cntvct_el0().bits();
        timer(0, at);
        if number < 1020 {
            end_interrupt(number);
        }
        if number != TIMER {
            return Err(Missed::Number(round, number));
        }
        if then < at {
            return Err(Missed::Early(round, at - then));
        }
    }
    Ok(())
}

/// Waits for the timer's interrupt, which is masked.
fn wfi_returns() -> Result<(), Missed> {
    interface();
    let second = read_cntfrq_el0().bits();
    for round in 0..3 {
        let now = read_cntvct_el0().bits();
        timer(1, now + second / 2000);
        while read_isr_el1().bits() & ISR_IRQ == 0 && read_cntvct_el0().bits() < now + second / 4 {
            // SAFETY: it only waits.
            unsafe { wait_for_interrupt() };
        }
        let number = read_icc_iar1_el1().bits();
        timer(0, now);
        if number < 1020 {
            end_interrupt(number);
        }
        if number != TIMER {
            return Err(Missed::Number(round, number));
        }
    }
    Ok(())
}
