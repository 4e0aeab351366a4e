//! An attestation token: fetched, and printed for whoever can verify it. That is not the realm itself: it would have to trust its own keys.

use arm_sysregs::el0::accessors::read_cntvct_el0;
use guest_tests::entry::synchronize;
use guest_tests::report::Report;
use guest_tests::say;
use hyp::realm::{Granule, RsiError, RsiStatus, Token};

use crate::checks::Hex;
use crate::own::Own;

/// Bytes that there is room for.
const ROOM: usize = 4096;
/// CONTINUE calls after which it is given up.
const MOST_CALLS: u32 = 10_000;

/// What is asked for: nobody else has asked the same.
fn challenge() -> [u8; 64] {
    let mut challenge = *b"what the realm payload of Cloven asks to be answered, now it is ";
    challenge[56..].copy_from_slice(&read_cntvct_el0().bits().to_le_bytes());
    challenge
}

/// A token in `buffer`, fetched in parts of `part` bytes at most, one behind the other.
struct Fetched {
    /// Its bytes.
    len: usize,
    /// Bytes that it would have at most.
    most: u64,
    /// CONTINUE calls.
    calls: u32,
    /// Ticks that the longest of them took.
    longest: u64,
}

fn fetch(own: &Own, challenge: &[u8; 64], buffer: &mut Granule<[u8; ROOM]>) -> Result<Fetched, RsiError> {
    let most = own.rsi.begin_token(challenge)?;
    let mut fetched = Fetched { len: 0, most, calls: 0, longest: 0 };
    loop {
        synchronize();
        let start = read_cntvct_el0().bits();
        let Token { len, is_complete } = own.rsi.continue_token(buffer, fetched.len as u64)?;
        synchronize();
        fetched.longest = fetched.longest.max(read_cntvct_el0().bits() - start);
        fetched.len += len as usize;
        fetched.calls += 1;
        if is_complete {
            return Ok(fetched);
        }
        if fetched.len >= ROOM || fetched.calls >= MOST_CALLS {
            return Err(RsiError::Status(RsiStatus::Incomplete));
        }
    }
}

/// Fetches one and prints it, behind what it was asked for: `@cloven token TOKEN CHALLENGE`.
pub fn print(report: &mut Report, own: &Own) {
    let mut buffer = Granule([0; ROOM]);
    let challenge = challenge();
    let early = own.rsi.continue_token(&mut buffer, 0);
    let fetched = fetch(own, &challenge, &mut buffer);
    let late = own.rsi.continue_token(&mut Granule([0; ROOM]), 0);
    match &fetched {
        Ok(Fetched { len, most, calls, longest }) => {
            let holds = *len > 0 && *len as u64 <= *most;
            let detail = format_args!("{len} bytes of {most} in {calls} calls");
            report.check("realm.token_is_fetched", holds, detail);
            say!("@cloven figure realm.token {len} bytes");
            say!("@cloven figure realm.token.longest_call {longest} ticks");
            say!("@cloven token {} {}", Hex(&buffer.0[..*len]), Hex(&challenge));
        }
        Err(error) => report.check("realm.token_is_fetched", false, format_args!("{error:?}")),
    }
    let wrong = Err(RsiError::Status(RsiStatus::ErrorState));
    let detail = format_args!("before {early:?}, after {late:?}");
    report.check("realm.no_token_without_its_beginning", early == wrong && late == wrong, detail);
}
