//! A monitor for the host's tests: what RSI answers, and a host behind it that does as it is told.

use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard};

use rmm_abi::negotiate;
use rmm_abi::v1_0::rsi::{
    RsiCommand, RsiHostCall, RsiRealmConfig, RsiResponse, RsiRipas, RsiRipasChangeFlags, RsiStatus, input,
    output,
};
use rmm_abi::v1_0::{Granule, Measurement, NOT_SUPPORTED, VERSION, doublewords};
use smccc::Call;

use crate::mapping::GRANULE;

/// What the host makes of a request to change RIPAS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    /// It changes at most so many pages of it.
    Pages(u64),
    /// It changes nothing, and lets the realm go on.
    Idle,
    /// It changes at most so many pages of it, and would not do more.
    Rejects(u64),
    /// The monitor fails.
    Fails(RsiStatus),
}

/// What it knows and what was asked of it.
pub struct State {
    /// First address of what has RIPAS; the rest of what is protected is EMPTY.
    pub base: u64,
    /// Of each page.
    pub ripas: Vec<RsiRipas>,
    /// Each with its range, RIPAS and flags.
    pub asked: Vec<(u64, u64, RsiRipas, RsiRipasChangeFlags)>,
    /// What the host does with the next requests, in their order; then it does all of each.
    pub host: Vec<Host>,
    /// REMs and RIM.
    pub measurements: [Measurement; 5],
    /// Bytes of a token that are still to be made.
    pub token: u64,
}

/// Called with what is about to change.
type Observer = dyn Fn(u64, u64, RsiRipas) + Send + Sync;

/// The monitor of one realm.
pub struct FakeRmm {
    pub state: Mutex<State>,
    pub ipa_width: u64,
    pub hash_algo: u8,
    /// The version that is spoken, if any.
    pub version: Option<rmm_abi::Version>,
    /// What it says of a range that is about to change.
    pub observer: Option<Box<Observer>>,
}

thread_local! {
    static HERE: RefCell<Option<Arc<FakeRmm>>> = const { RefCell::new(None) };
}

impl FakeRmm {
    /// Of a realm with 40 bits of IPA and so many pages of RAM.
    pub fn new(base: u64, pages: u64) -> Self {
        let state = State {
            base,
            ripas: vec![RsiRipas::Ram; pages as usize],
            asked: Vec::new(),
            host: Vec::new(),
            measurements: [[0; 64]; 5],
            token: 0,
        };
        Self { state: Mutex::new(state), ipa_width: 40, hash_algo: 0, version: Some(VERSION), observer: None }
    }

    /// Makes it the one that this thread calls.
    pub fn enter(self: &Arc<Self>) {
        HERE.with(|here| *here.borrow_mut() = Some(self.clone()));
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// RIPAS of an address.
    pub fn ripas(&self, address: u64) -> RsiRipas {
        self.state().of(address)
    }

    fn call(&self, fid: u32, args: &[u64; 17]) -> Result<Vec<u64>, u64> {
        fn first<const N: usize>(args: &[u64; 17]) -> [u64; N] {
            core::array::from_fn(|number| args[number])
        }
        let wrong = |_| RsiStatus::ErrorInput.bits();
        let command = RsiCommand::from_fid(fid).map_err(|_| NOT_SUPPORTED)?;
        let Some(version) = self.version else { return Err(NOT_SUPPORTED) };
        Ok(match command {
            RsiCommand::Version => {
                let asked = negotiate(&[version], args[0]).unwrap();
                let outputs = output::Version { lower: asked.lower, higher: asked.higher };
                let status = if asked.success { RsiStatus::Success } else { RsiStatus::ErrorInput };
                return Ok([[status.bits()].as_slice(), &outputs.to_registers()].concat());
            }
            RsiCommand::RealmConfig => {
                let inputs = input::RealmConfig::from_registers(first(args));
                inputs.check().map_err(wrong)?;
                let mut config = Granule(RsiRealmConfig::zeroed());
                (config.0.ipa_width, config.0.hash_algo, config.0.rpv) =
                    (self.ipa_width, self.hash_algo, [7; 64]);
                // SAFETY: the caller passes a granule of its own, and waits.
                unsafe {
                    core::ptr::with_exposed_provenance_mut::<Granule<_>>(inputs.addr as usize).write(config)
                };
                vec![0]
            }
            RsiCommand::HostCall => {
                let inputs = input::HostCall::from_registers(first(args));
                inputs.check().map_err(wrong)?;
                let call = core::ptr::with_exposed_provenance_mut::<RsiHostCall>(inputs.addr as usize);
                // SAFETY: the caller passes a structure of its own, and waits.
                let call = unsafe { &mut *call };
                call.gprs.iter_mut().for_each(|register| *register = !*register);
                vec![0]
            }
            RsiCommand::Features => vec![0, 0],
            RsiCommand::IpaStateGet => {
                let inputs = input::IpaStateGet::from_registers(first(args));
                inputs.check().map_err(wrong)?;
                self.protected(inputs.top)?;
                let state = self.state();
                let ripas = state.of(inputs.base);
                let pages = (inputs.base..inputs.top).step_by(GRANULE as usize);
                let out_top = pages.into_iter().find(|page| state.of(*page) != ripas).unwrap_or(inputs.top);
                [[0].as_slice(), &output::IpaStateGet { out_top, ripas: ripas.bits() }.to_registers()]
                    .concat()
            }
            RsiCommand::IpaStateSet => {
                let inputs = input::IpaStateSet::from_registers(first(args));
                inputs.check().map_err(wrong)?;
                self.protected(inputs.top)?;
                [[0].as_slice(), &self.set(&inputs)?.to_registers()].concat()
            }
            RsiCommand::MeasurementRead => {
                let inputs = input::MeasurementRead::from_registers(first(args));
                inputs.check().map_err(wrong)?;
                let value = doublewords(&self.state().measurements[inputs.index as usize]);
                [[0].as_slice(), &value].concat()
            }
            RsiCommand::MeasurementExtend => {
                let inputs = input::MeasurementExtend::from_registers(first(args));
                inputs.check().map_err(wrong)?;
                // No hash: it is enough that order and values count.
                let mut state = self.state();
                for (old, new) in state.measurements[inputs.index as usize].iter_mut().zip(inputs.padded()) {
                    *old = old.rotate_left(1) ^ new;
                }
                vec![0]
            }
            RsiCommand::AttestationTokenInit => {
                self.state().token = args[0];
                vec![0, args[0]]
            }
            RsiCommand::AttestationTokenContinue => {
                let inputs = input::AttestationTokenContinue::from_registers(first(args));
                inputs.check().map_err(wrong)?;
                let mut state = self.state();
                let len = state.token.min(inputs.size);
                state.token -= len;
                let status = if state.token == 0 { RsiStatus::Success } else { RsiStatus::Incomplete };
                vec![status.bits(), len]
            }
        })
    }

    fn protected(&self, top: u64) -> Result<(), u64> {
        if top <= 1 << (self.ipa_width - 1) { Ok(()) } else { Err(RsiStatus::ErrorInput.bits()) }
    }

    fn set(&self, inputs: &input::IpaStateSet) -> Result<output::IpaStateSet, u64> {
        let ripas = RsiRipas::from_bits(inputs.ripas).unwrap();
        let input::IpaStateSet { base, top, flags, .. } = *inputs;
        if let Some(observer) = &self.observer {
            observer(base, top, ripas);
        }
        let mut state = self.state();
        state.asked.push((base, top, ripas, flags));
        let does = if state.host.is_empty() { Host::Pages(u64::MAX) } else { state.host.remove(0) };
        let (pages, response) = match does {
            Host::Pages(pages) => (pages, RsiResponse::Accept),
            Host::Idle => (0, RsiResponse::Accept),
            // Only RAM can be rejected (A5.4, I_DRPPK).
            Host::Rejects(pages) if ripas == RsiRipas::Ram => (pages, RsiResponse::Reject),
            Host::Rejects(pages) => (pages, RsiResponse::Accept),
            Host::Fails(status) => return Err(status.bits()),
        };
        let end = base.saturating_add(pages.saturating_mul(GRANULE)).min(top);
        let mut new_base = base;
        while new_base < end {
            let known = flags.contains(RsiRipasChangeFlags::CHANGE_DESTROYED);
            if state.of(new_base) == RsiRipas::Destroyed && !known {
                break;
            }
            let index = (new_base - state.base) / GRANULE;
            state.ripas[index as usize] = ripas;
            new_base += GRANULE;
        }
        let response = if new_base == top { RsiResponse::Accept } else { response };
        Ok(output::IpaStateSet { new_base, response })
    }
}

impl State {
    /// RIPAS of an address.
    pub fn of(&self, address: u64) -> RsiRipas {
        let index = address.checked_sub(self.base).map(|offset| (offset / GRANULE) as usize);
        index.and_then(|index| self.ripas.get(index)).copied().unwrap_or(RsiRipas::Empty)
    }

    /// Sets it, as a host can that destroys what it has.
    pub fn destroy(&mut self, address: u64) {
        let index = (address - self.base) / GRANULE;
        self.ripas[index as usize] = RsiRipas::Destroyed;
    }
}

/// Calls the monitor of this thread.
pub struct Fake;

impl Call for Fake {
    fn call32(_: u32, _: [u32; 7]) -> [u32; 8] {
        [u32::MAX; 8]
    }

    fn call64(function: u32, args: [u64; 17]) -> [u64; 18] {
        let here = HERE.with(|here| here.borrow().clone()).expect("no monitor here");
        let mut results = [0; 18];
        match here.call(function, &args) {
            Ok(values) => results.iter_mut().zip(values).for_each(|(to, from)| *to = from),
            Err(status) => results[0] = status,
        }
        results
    }
}
