//! RSI_ATTESTATION_TOKEN_INIT and RSI_ATTESTATION_TOKEN_CONTINUE (B5.3.1, B5.3.2, A7.2.2).
//!
//! Invariants:
//! - Claims are written and signatures made without the monitor's lock; of signatures one in a call at most, which then writes nothing, so that no
//!   signature is made twice because the host owes memory.
//! - No CPU waits for a signature of another one: while it is made, this one [stands](World::stand) outside EL2's entry gate. So what is signed is a hash,
//!   on the stack; the granules of the REC are touched before and after.

use hyp::el2::vcpu::Running;
use rmm_abi::v1_0::bytes;
use rmm_abi::v1_0::rsi::{RsiStatus, input, output};

use super::memory;
use super::{Outcome, Stop, args, offset, reply};
use crate::attest::{Claims, Config};
use crate::exits::Here;
use crate::world::World;

/// What failed is none of the caller's doing.
const UNKNOWN: Stop = Stop::Status(RsiStatus::ErrorUnknown);

// Of its own, as the other: the frame that it needs is not set up for every call of the realm's.
#[inline(never)]
pub fn init<W: World>(here: &Here<'_, W>, running: &mut Running) -> Outcome {
    let input = input::AttestationTokenInit::from_registers(args(running));
    let (personalization, algorithm, measurements) = {
        let lock = here.monitor.lock();
        let realm = here.realm(&lock).ok_or(UNKNOWN)?;
        (realm.rpv, realm.hash_algo, *realm.measurements.borrow())
    };
    let claims = Claims {
        challenge: &bytes(&input.challenge),
        personalization: &personalization,
        algorithm,
        measurements: &measurements,
    };
    let (world, trace) = (&here.monitor.world, &here.monitor.trace);
    let config = Config {
        advertised: world.advertised(),
        tells_realms: trace.of_realms(),
        tells_host: trace.of_host(),
    };
    // There is room for the longest.
    let size = here.attestation.borrow_mut().begin(&claims, &config).map_err(|_| UNKNOWN)?;
    let output = output::AttestationTokenInit { size: size as u64 };
    reply(&mut running.x, RsiStatus::Success, output.to_registers());
    Ok(None)
}

#[inline(never)]
pub fn continue_token<W: World>(here: &Here<'_, W>, running: &mut Running) -> Outcome {
    let input = input::AttestationTokenContinue::from_registers(args(running));
    input.check()?;
    here.check_protected(input.addr)?;
    let attestation = &mut **here.attestation.borrow_mut();
    if !attestation.is_in_progress() {
        return Err(Stop::Status(RsiStatus::ErrorState));
    }
    let mut len = 0;
    if attestation.is_whole() {
        let lock = here.monitor.lock();
        let realm = here.realm(&lock).ok_or(UNKNOWN)?;
        let (from, size) = (offset(input.offset), input.size as usize);
        len = memory::access(&lock, realm, input.addr, |page| {
            // `size_bound` keeps it in the page.
            page.0.get_mut(from..from + size).map_or(0, |into| attestation.send(into))
        })
        .map_err(|missing| Stop::of(missing, input.addr))?;
    } else {
        let known = here.monitor.lock().state.platform;
        let unsigned = attestation.unsigned(known.as_ref()).ok_or(UNKNOWN)?;
        let signature = here.monitor.world.stand(|| unsigned.sign()).ok_or(UNKNOWN)?;
        if let Some(made) = attestation.signed(&unsigned, &signature) {
            here.monitor.lock().state.platform = Some(made);
        }
    }
    let status = if attestation.is_in_progress() { RsiStatus::Incomplete } else { RsiStatus::Success };
    let output = output::AttestationTokenContinue { len: len as u64 };
    reply(&mut running.x, status, output.to_registers());
    Ok(None)
}
