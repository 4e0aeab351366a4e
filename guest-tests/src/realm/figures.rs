//! What a realm's calls cost, in ticks of the virtual counter: each the median of several, and of it what the host's code and its calls to the
//! monitor took.
//!
//! With `-icount` a tick is an instruction, of this payload, of the monitor and of the host together.

use arm_sysregs::el0::accessors::read_cntvct_el0;
use arm_sysregs::el1::accessors::read_id_aa64pfr0_el1;
use guest_tests::entry::synchronize;
use guest_tests::memory::range;
use guest_tests::report::Report;
use guest_tests::say;
use hyp::mapping::{Address, Pa, Range};
use hyp::realm::{Granule, Rsi, RsiRealmConfig, RsiRipas};

use crate::checks::set_ripas;
use crate::host::{self, NO_OPERATION, Ticks};
use crate::own::{Outside, Own, PAGE};

/// Bytes, and how they are called.
const SIZES: [(&str, u64); 5] =
    [("4K", 4 << 10), ("64K", 64 << 10), ("2M", 2 << 20), ("64M", 64 << 20), ("1G", 1 << 30)];
/// How often each is done; less often what takes long.
const TIMES: usize = 9;
const TIMES_LONG: usize = 3;
const LONG: u64 = 16 << 20;

/// One of them.
#[derive(Clone, Copy, Default)]
struct Sample {
    ticks: u64,
    host: Ticks,
}

/// Does `work`, which is prepared by `before`, `times` times.
fn measure(
    own: &Own,
    times: usize,
    mut before: impl FnMut() -> bool,
    mut work: impl FnMut() -> bool,
) -> Option<Sample> {
    let mut samples = [Sample::default(); TIMES];
    let samples = &mut samples[..times];
    for sample in samples.iter_mut() {
        if !before() {
            return None;
        }
        host::ticks(&own.rsi);
        synchronize();
        let start = read_cntvct_el0().bits();
        let done = work();
        synchronize();
        let ticks = read_cntvct_el0().bits() - start;
        if !done {
            return None;
        }
        *sample = Sample { ticks, host: host::ticks(&own.rsi) };
    }
    samples.sort_unstable_by_key(|sample| sample.ticks);
    Some(samples[times / 2])
}

/// Prints a figure; one that could not be taken is a check that failed.
fn tell(report: &mut Report, name: core::fmt::Arguments<'_>, sample: Option<Sample>) {
    let Some(Sample { ticks, host: Ticks { host, rmi, calls } }) = sample else {
        report.check("realm.figure_is_taken", false, name);
        return;
    };
    say!("@cloven figure realm.{name} {ticks} ticks");
    say!("@cloven figure realm.{name}.host {host} ticks");
    say!("@cloven figure realm.{name}.rmi {rmi} ticks");
    say!("@cloven figure realm.{name}.rmi_calls {calls} calls");
}

/// All of them.
pub fn all(report: &mut Report, own: &'static Own) {
    let always = || true;
    let mut one = |name: &str, work: &mut dyn FnMut() -> bool| {
        tell(report, format_args!("{name}"), measure(own, TIMES, always, work));
    };
    one("nothing", &mut || true);
    one("rsi_version", &mut || Rsi::<Outside>::find(0).is_ok());
    let mut buffer = Granule(RsiRealmConfig::zeroed());
    one("realm_config", &mut || own.rsi.config(&mut buffer).is_ok());
    one("host_call", &mut || host::call(&own.rsi, NO_OPERATION - 1, [0; 3]).is_some());
    one("id_register", &mut || read_id_aa64pfr0_el1().bits() != 0);
    one("measurement_read", &mut || own.rsi.measurement(1).is_ok());
    let challenge = [0x5a; 64];
    one("attestation_token_init", &mut || own.rsi.begin_token(&challenge).is_ok());
    let mut buffer = Granule([0; 4096]);
    let sample = measure(
        own,
        TIMES,
        || own.rsi.begin_token(&challenge).is_ok(),
        || own.rsi.continue_token(&mut buffer, 0).is_ok_and(|token| token.len == 0),
    );
    tell(report, format_args!("attestation_token_continue.signature"), sample);
    let sample = measure(
        own,
        TIMES,
        || {
            own.rsi.begin_token(&challenge).is_ok()
                && own.rsi.continue_token(&mut Granule([0; 4096]), 0).is_ok()
        },
        || own.rsi.continue_token(&mut buffer, 0).is_ok_and(|token| token.is_complete),
    );
    tell(report, format_args!("attestation_token_continue.bytes"), sample);
    for (name, size) in SIZES {
        let Some(aligned) = place(own, size, 0) else { continue };
        ranges(report, own, name, aligned);
        // A range of as many bytes that no entry is just as large as.
        if size > PAGE
            && let Some(unaligned) = place(own, size, PAGE)
        {
            ranges(
                report,
                own,
                match name {
                    "64K" => "64K.unaligned",
                    "2M" => "2M.unaligned",
                    "64M" => "64M.unaligned",
                    _ => "1G.unaligned",
                },
                unaligned,
            );
        }
    }
}

/// `size` free bytes at `offset` from a multiple of them.
fn place(own: &Own, size: u64, offset: u64) -> Option<Range<Pa>> {
    own.free.iter().find_map(|part| {
        let start = part.start().get().next_multiple_of(size) + offset;
        (start + size <= part.end()).then(|| range(start, start + size))
    })
}

fn ranges(report: &mut Report, own: &'static Own, name: &str, range: Range<Pa>) {
    let times = if range.size() > LONG { TIMES_LONG } else { TIMES };
    let to = |ripas| move || set_ripas(own, range, ripas);
    let get = || own.rsi.ipa_state_get(range).is_ok();
    tell(report, format_args!("ipa_state_get.{name}"), measure(own, times, || true, get));
    let sample = measure(own, times, to(RsiRipas::Ram), to(RsiRipas::Empty));
    tell(report, format_args!("ipa_state_set.{name}"), sample);
    let sample = measure(own, times, to(RsiRipas::Empty), to(RsiRipas::Ram));
    tell(report, format_args!("ipa_state_set_ram.{name}"), sample);
    let share = || own.shared.set_memory_decrypted(range).is_ok();
    let unshare = || own.shared.set_memory_encrypted(range).is_ok();
    tell(report, format_args!("share.{name}"), measure(own, times, unshare, share));
    tell(report, format_args!("unshare.{name}"), measure(own, times, share, unshare));
}
