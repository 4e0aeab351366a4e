//! The commands of the realm (DEN0137, chapters B5 and B6).
//!
//! Invariants:
//! - A command that the RMM answers alone goes back to the realm at once; what the host has a part in ends in a REC exit.
//! - X0 is the status, X1 and up the outputs of RSI; the registers above them are zero up to X16 (B1.2). PSCI and SMCCC leave X4 and up alone, as
//!   their callers rely on.
//! - A command that needs memory that the host has not given yet has changed nothing, and is executed again.

mod attestation;
pub mod memory;
mod psci;

pub use psci::finish as finish_psci;

use rmm_abi::negotiate;
use rmm_abi::v1_0::psci::PsciCommand;
use rmm_abi::v1_0::rmi::{RmiHashAlgorithm, RmiRecExit, RmiRecExitReason, RmiResponse};
use rmm_abi::v1_0::rsi::{RsiCommand, RsiHashAlgorithm, RsiHostCall, RsiRealmConfig, RsiStatus, input};
use rmm_abi::v1_0::{
    FailureCondition, NOT_SUPPORTED, RmmRipas, VERSION, doublewords, is_range_protected, split_sve_hint,
};
use zerocopy::{FromBytes, IntoBytes};

use crate::exits::{Here, Left, Next};
use crate::measurement;
use crate::rec::{Pending, RipasChange};
use crate::world::World;
use hyp::el2::vcpu::{Running, Vcpu};
use memory::Missing;

/// SMCCC_VERSION (SMCCC DEN0028): Linux looks for RSI only behind it.
const SMCCC_VERSION: u32 = 0x8000_0000;
/// SMCCC_ARCH_FEATURES.
const SMCCC_ARCH_FEATURES: u32 = 0x8000_0001;
/// 1.2: the first whose calls have 17 results (B1.1).
const SMCCC_1_2: u64 = 0x1_0002;
/// `ESR_EL2.ISS` of an SMC: its immediate.
const IMMEDIATE: u64 = 0xffff;

/// X0 to X16 after a command of RSI.
fn reply<const N: usize>(x: &mut [u64; 31], status: RsiStatus, outputs: [u64; N]) {
    const { assert!(N <= 16) };
    x[0] = status.bits();
    if let Some(results) = x[1..].first_chunk_mut::<16>() {
        // Not known to be zero: it is stored in place, and no call of `memset` is made of it.
        *results = [core::hint::black_box(0); 16];
    }
    x[1..=N].copy_from_slice(&outputs);
}

/// Answers an SMC that needs nothing but the caller's registers, x0 to x30, whose syndrome is `esr`. False if it is another one.
///
/// For who switches worlds: it may ask before it saves anything else. The realm goes on after the SMC.
pub fn answer_alone(x: &mut [u64; 31], esr: u64) -> bool {
    // SMCCC has calls with immediate 0 only.
    if esr & IMMEDIATE != 0 {
        x[0] = NOT_SUPPORTED;
        return true;
    }
    let (fid, _) = split_sve_hint(x[0] as u32);
    if let Ok(command) = RsiCommand::from_fid(fid) {
        match command {
            RsiCommand::Version => version(x),
            RsiCommand::Features => reply(x, RsiStatus::Success, [0]),
            _ => return false,
        }
        return true;
    }
    x[0] = match (PsciCommand::from_fid(fid), fid) {
        (Ok(PsciCommand::Version), _) => rmm_abi::v1_0::psci::VERSION.bits(),
        (Ok(PsciCommand::Features), _) => psci::features(x[1] as u32),
        (Ok(_), _) => return false,
        (Err(_), SMCCC_VERSION) => SMCCC_1_2,
        (Err(_), SMCCC_ARCH_FEATURES) => match x[1] as u32 {
            SMCCC_VERSION | SMCCC_ARCH_FEATURES => 0,
            _ => NOT_SUPPORTED,
        },
        (Err(_), _) => NOT_SUPPORTED,
    };
    true
}

fn version(x: &mut [u64; 31]) {
    const SPOKEN: u64 = VERSION.bits();
    // Most ask for what there is.
    let found = if x[1] == SPOKEN { None } else { negotiate(&[VERSION], x[1]) };
    let (status, lower, higher) = match found {
        None => (RsiStatus::Success, SPOKEN, SPOKEN),
        Some(found) => (RsiStatus::ErrorInput, found.lower.bits(), found.higher.bits()),
    };
    reply(x, status, [lower, higher]);
}

/// Answers an SMC of the realm's, or says what the host has to do with it.
pub fn call<W: World>(here: &Here<'_, W>, running: &mut Running, esr: u64, record: &mut RmiRecExit) -> Next {
    if split_sve_hint(running.x[0] as u32).0 == RsiCommand::Version.fid() && esr & IMMEDIATE == 0 {
        here.meets_rsi();
    }
    if answer_alone(&mut running.x, esr) {
        running.advance();
        return Next::Realm;
    }
    let (fid, _) = split_sve_hint(running.x[0] as u32);
    if let Ok(command) = RsiCommand::from_fid(fid) {
        return command_of_rsi(here, running, command, record);
    }
    match PsciCommand::from_fid(fid) {
        Ok(command) => psci::call(here, running, command, record),
        // `answer_alone` has answered all others.
        Err(_) => Next::Realm,
    }
}

/// What keeps a command from success.
enum Stop {
    /// This status.
    Status(RsiStatus),
    /// The host has to map this IPA, whose walk ended at this level.
    Missing(u64, i64),
}

impl From<FailureCondition> for Stop {
    fn from(_: FailureCondition) -> Self {
        Self::Status(RsiStatus::ErrorInput)
    }
}

impl Stop {
    const INPUT: Self = Self::Status(RsiStatus::ErrorInput);

    /// Of a command that wanted to access `ipa`.
    fn of(missing: Missing, ipa: u64) -> Self {
        match missing {
            Missing::Away(level) => Self::Missing(ipa, level),
            Missing::Empty => Self::INPUT,
        }
    }
}

/// What a command ends with: nothing more to do, or a REC exit.
type Outcome = Result<Option<Left>, Stop>;

fn args<const N: usize>(running: &Running) -> [u64; N] {
    core::array::from_fn(|index| running.x[1 + index])
}

fn command_of_rsi<W: World>(
    here: &Here<'_, W>,
    running: &mut Running,
    command: RsiCommand,
    record: &mut RmiRecExit,
) -> Next {
    use RsiCommand::*;
    let outcome = match command {
        HostCall => host_call(here, running, record),
        IpaStateGet => ipa_state_get(here, running),
        IpaStateSet => ipa_state_set(here, running, record),
        MeasurementExtend => measurement_extend(here, running),
        MeasurementRead => measurement_read(here, running),
        RealmConfig => realm_config(here, running),
        AttestationTokenContinue => attestation::continue_token(here, running),
        AttestationTokenInit => attestation::init(here, running),
        // `answer_alone` has answered them.
        Version | Features => Ok(None),
    };
    match outcome {
        Ok(None) => {}
        Ok(Some(left)) => {
            running.advance();
            return Next::Host(left);
        }
        Err(Stop::Status(status)) => reply(&mut running.x, status, []),
        Err(Stop::Missing(ipa, level)) => return Next::Host(Left::missing(record, ipa, level)),
    }
    running.advance();
    Next::Realm
}

fn measurement_read<W: World>(here: &Here<'_, W>, running: &mut Running) -> Outcome {
    let input = input::MeasurementRead::from_registers(args(running));
    input.check()?;
    let lock = here.monitor.lock();
    let realm = here.realm(&lock).ok_or(Stop::INPUT)?;
    let value = doublewords(&realm.measurements.borrow()[input.index as usize]);
    reply(&mut running.x, RsiStatus::Success, value);
    Ok(None)
}

fn measurement_extend<W: World>(here: &Here<'_, W>, running: &mut Running) -> Outcome {
    let input = input::MeasurementExtend::from_registers(args(running));
    input.check()?;
    let lock = here.monitor.lock();
    let realm = here.realm(&lock).ok_or(Stop::INPUT)?;
    measurement::extend_rem(
        realm.hash_algo,
        &mut realm.measurements.borrow_mut()[input.index as usize],
        &input.padded(),
    );
    reply(&mut running.x, RsiStatus::Success, []);
    Ok(None)
}

fn realm_config<W: World>(here: &Here<'_, W>, running: &mut Running) -> Outcome {
    let input = input::RealmConfig::from_registers(args(running));
    input.check()?;
    here.check_protected(input.addr)?;
    let lock = here.monitor.lock();
    let realm = here.realm(&lock).ok_or(Stop::INPUT)?;
    let hash_algo = match realm.hash_algo {
        RmiHashAlgorithm::Sha256 => RsiHashAlgorithm::Sha256,
        RmiHashAlgorithm::Sha512 => RsiHashAlgorithm::Sha512,
    };
    memory::access(&lock, realm, input.addr, |page| {
        wipe(&mut page.0);
        if let Ok(config) = RsiRealmConfig::mut_from_bytes(&mut page.0) {
            config.ipa_width = realm.ipa_width.into();
            config.hash_algo = hash_algo.bits();
            config.rpv = realm.rpv;
        }
    })
    .map_err(|missing| Stop::of(missing, input.addr))?;
    reply(&mut running.x, RsiStatus::Success, []);
    Ok(None)
}

/// Zeroes a page, 128 bytes at a step: `memset` of the target goes by words.
fn wipe(page: &mut [u8; 4096]) {
    let zero = core::hint::black_box(0u64);
    if let Ok(words) = <[[u64; 16]; 32]>::mut_from_bytes(page) {
        words.iter_mut().for_each(|line| *line = [zero; 16]);
    }
}

fn ipa_state_get<W: World>(here: &Here<'_, W>, running: &mut Running) -> Outcome {
    let input = input::IpaStateGet::from_registers(args(running));
    input.check()?;
    if !is_range_protected(input.base, input.top, here.ipa_width) {
        return Err(Stop::INPUT);
    }
    let lock = here.monitor.lock();
    let realm = here.realm(&lock).ok_or(Stop::INPUT)?;
    let (out_top, ripas) = realm.ripas_from(input.base, input.top);
    reply(&mut running.x, RsiStatus::Success, [out_top, ripas.to_rsi().bits().into()]);
    Ok(None)
}

fn ipa_state_set<W: World>(here: &Here<'_, W>, running: &mut Running, record: &mut RmiRecExit) -> Outcome {
    use rmm_abi::v1_0::rsi::{RsiRipas, RsiRipasChangeFlags};
    let input = input::IpaStateSet::from_registers(args(running));
    input.check()?;
    if !is_range_protected(input.base, input.top, here.ipa_width) {
        return Err(Stop::INPUT);
    }
    let value = if input.ripas == RsiRipas::Ram.bits() { RmmRipas::Ram } else { RmmRipas::Empty };
    record.exit_reason = RmiRecExitReason::RipasChange.bits();
    record.ripas_base = input.base;
    record.ripas_top = input.top;
    record.ripas_value = input.ripas;
    let ripas = RipasChange {
        addr: input.base,
        top: input.top,
        value,
        destroyed: input.flags.contains(RsiRipasChangeFlags::CHANGE_DESTROYED),
        response: RmiResponse::Accept,
    };
    Ok(Some(Left { pending: Pending::RipasChange, ripas, ..Left::PLAIN }))
}

/// Tells the realm what has become of its RIPAS change, at the next entry (A5.4).
pub fn complete_ripas_change(vcpu: &mut Vcpu, change: &RipasChange) {
    let response = change.outcome().bits().into();
    reply(&mut vcpu.x, RsiStatus::Success, [change.addr, response]);
}

fn host_call<W: World>(here: &Here<'_, W>, running: &mut Running, record: &mut RmiRecExit) -> Outcome {
    let input = input::HostCall::from_registers(args(running));
    input.check()?;
    here.check_protected(input.addr)?;
    let lock = here.monitor.lock();
    let realm = here.realm(&lock).ok_or(Stop::INPUT)?;
    memory::access(&lock, realm, input.addr, |page| {
        // Its alignment keeps it in the page. It is copied once: another REC may write it meanwhile.
        let from = offset(input.addr);
        let bytes = page.0.get(from..from + size_of::<RsiHostCall>()).unwrap_or(&[]);
        if let Ok(call) = RsiHostCall::ref_from_bytes(bytes) {
            (record.imm, record.gprs) = (call.imm, call.gprs);
        }
    })
    .map_err(|missing| Stop::of(missing, input.addr))?;
    record.exit_reason = RmiRecExitReason::HostCall.bits();
    Ok(Some(Left { pending: Pending::HostCall(input.addr), ..Left::PLAIN }))
}

/// Ends a host call, at the next entry, with what the host answers (A4.2.2).
///
/// # Errors
/// The host has to map the address first; at the level of RTT at which its walk ended. The call is pending still.
pub fn complete_host_call<W: World>(
    lock: &crate::monitor::Locked<'_, W>,
    realm: &crate::realm::Realm<W::Mmu>,
    vcpu: &mut Vcpu,
    addr: u64,
    gprs: &[u64; 31],
) -> Result<(), i64> {
    let written = memory::access(lock, realm, addr, |page| {
        let from = offset(addr) + core::mem::offset_of!(RsiHostCall, gprs);
        if let Some(into) = page.0.get_mut(from..from + size_of_val(gprs)) {
            into.copy_from_slice(gprs.as_bytes());
        }
    });
    let status = match written {
        Ok(()) => RsiStatus::Success,
        Err(Missing::Away(level)) => return Err(level),
        // Another REC of the realm has given the address up meanwhile: nothing the host could do would bring it back.
        Err(Missing::Empty) => RsiStatus::ErrorInput,
    };
    reply(&mut vcpu.x, status, []);
    Ok(())
}

fn offset(ipa: u64) -> usize {
    (ipa & 0xfff) as usize
}

impl<W: World> Here<'_, W> {
    fn check_protected(&self, ipa: u64) -> Result<(), Stop> {
        if self.is_protected(ipa) { Ok(()) } else { Err(Stop::INPUT) }
    }
}
