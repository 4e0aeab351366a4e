//! Which call is answered by whom (SMCCC DEN0028 1.4): the host's SMCs and HVCs, alike.
//!
//! Invariant: every call is answered. What nobody knows gets NOT_SUPPORTED; x4 to x17 keep their values, as the
//! convention from 1.1 on promises, but in calls of the platform that answer in them; and no call reaches the firmware that is not
//! named here or in [`super::psci`].

use smccc::Call;
use smccc::arch::{
    SMCCC_ARCH_FEATURES, SMCCC_ARCH_SOC_ID, SMCCC_ARCH_WORKAROUND_1, SMCCC_ARCH_WORKAROUND_2,
    SMCCC_ARCH_WORKAROUND_3, SMCCC_VERSION,
};

use super::exits::Exits;
use super::pages::{self, Pages};
use super::psci::{NOT_SUPPORTED, Power, Psci};

/// The version of the convention that the host is given: 1.2.
pub const VERSION: i64 = 0x1_0002;
/// The mitigation of CVE-2024-7881 (SMCCC 1.6, which the `smccc` crate does not name yet).
const SMCCC_ARCH_WORKAROUND_4: u32 = 0x8000_0004;

/// Of the vendor-specific hypervisor service (SMCCC, "General service queries"): who answers it.
pub const CALL_UID: u32 = 0x8600_ff01;
/// Of the vendor-specific hypervisor service: the version of its interface.
pub const CALL_REVISION: u32 = 0x8600_ff03;
/// Of the vendor-specific hypervisor service (SMC64): how often the calling CPU came to EL2 from below by the kind of exit in x1, the
/// number of an [`Exit`](super::exits::Exit). x0 is 0 and x1 the count since the CPU's data was made, this call included; for any other
/// number x0 is INVALID_PARAMETER and x1 is kept.
pub const CALL_EXITS: u32 = 0xc600_0001;
/// Of the vendor-specific hypervisor service (SMC64): no other CPU will come, and what waits for all of them is done now
/// ([`crate::caps::lifecycle`]). x0 is 0, also if it was so before.
pub const CALL_FINALIZE: u32 = 0xc600_0002;
/// The call was carried out.
pub const SUCCESS: i64 = 0;
/// A parameter of the call has a value that it does not know (SMCCC, "Return codes").
pub const INVALID_PARAMETER: i64 = -3;
/// Cloven's answer to [`CALL_UID`]: the UUID 6e1d3c52-7f0a-4b38-9c41-d7a5b2e08f94 in four registers.
pub const UID: [u64; 4] = [0x523c_1d6e, 0x384b_0a7f, 0xa5d7_419c, 0x948f_e0b2];
/// Cloven's answer to [`CALL_REVISION`]: major, minor.
pub const REVISION: [u64; 2] = [0, 4];

/// Answers what [`Services`] does not know: the platform's own calls.
pub trait SmcHandler {
    /// Answers the call in x0 to x17, whose function is the lower half of x0, by putting the answer in their place. False if it is not known
    /// here either; `x` is as it was then.
    fn call(&self, x: &mut [u64; 18]) -> bool;
    /// The host is about to call the firmware so that this CPU or the machine goes: what is still to be said is said now.
    fn leaving(&self) {}
}

/// A platform without calls of its own.
#[derive(Clone, Copy, Debug)]
pub struct NoCalls;

impl SmcHandler for NoCalls {
    fn call(&self, _: &mut [u64; 18]) -> bool {
        false
    }
}

/// All who answer but the platform. `psci` is absent on a machine without firmware that speaks it: then nothing is
/// relayed.
#[derive(Debug)]
pub struct Services<'a, C> {
    /// PSCI, and with it the firmware.
    pub psci: Option<Psci<'a, C>>,
}

impl<C: Call> Services<'_, C> {
    /// Answers the call in x0 to x17 for CPU number `me`, whose exits are `exits`: puts the answer in their place.
    pub fn answer(
        &self,
        power: &(impl Power + Pages),
        handler: &impl SmcHandler,
        (me, exits): (usize, &Exits),
        x: &mut [u64; 18],
    ) {
        let function = x[0] as u32;
        let [_, args @ ..] = *x;
        if let Some(answer) = self.general(function, args[0] as u32) {
            x[0] = answer as u64;
        } else if let Some(answer) = self.psci.as_ref().and_then(|psci| {
            let args = [args[0], args[1], args[2]];
            psci.call_unless_left(power, me, (function, args), || handler.leaving())
        }) {
            x[0] = answer as u64;
        } else if function == CALL_UID {
            x[..4].copy_from_slice(&UID);
        } else if function == CALL_REVISION {
            x[..2].copy_from_slice(&REVISION);
        } else if function == CALL_EXITS {
            match exits.of(args[0]) {
                Some(count) => x[..2].copy_from_slice(&[SUCCESS as u64, count]),
                None => x[0] = INVALID_PARAMETER as u64,
            }
        } else if function == CALL_FINALIZE {
            power.finalize();
            x[0] = SUCCESS as u64;
        } else if let Some(answer) = pages::call(power, function, [args[0], args[1]]) {
            x[0] = answer as u64;
        } else if self.psci.is_some() && is_passed_on(function) {
            x[..4].copy_from_slice(&C::call64(function, args)[..4]);
        } else if !handler.call(x) {
            x[0] = NOT_SUPPORTED as u64;
        }
    }

    fn general(&self, function: u32, asked: u32) -> Option<i64> {
        match function {
            SMCCC_VERSION => Some(VERSION),
            SMCCC_ARCH_FEATURES => Some(match asked {
                SMCCC_VERSION | SMCCC_ARCH_FEATURES => 0,
                _ if self.psci.is_some() && is_passed_on(asked) => {
                    let mut args = [0; 17];
                    args[0] = asked.into();
                    i64::from(C::call64(function, args)[0] as i32)
                }
                _ => NOT_SUPPORTED,
            }),
            _ => None,
        }
    }
}

/// Architecture calls whose answer is the firmware's.
fn is_passed_on(function: u32) -> bool {
    matches!(
        function,
        SMCCC_ARCH_SOC_ID
            | SMCCC_ARCH_WORKAROUND_1
            | SMCCC_ARCH_WORKAROUND_2
            | SMCCC_ARCH_WORKAROUND_3
            | SMCCC_ARCH_WORKAROUND_4
    )
}

#[cfg(test)]
mod tests {
    use super::super::exits::Exit;
    use super::super::pages::Refused;
    use super::super::psci::{CpuPower, FirmwareEntry, HostEntry};
    use super::*;
    use crate::mapping::{Pa, Range};

    /// A firmware that mitigates, and answers everything with the function it was asked.
    struct Smc;
    impl Call for Smc {
        fn call32(_: u32, _: [u32; 7]) -> [u32; 8] {
            unreachable!("the relay uses the 64-bit convention")
        }
        fn call64(function: u32, args: [u64; 17]) -> [u64; 18] {
            let mut result = [0x5a; 18];
            result[0] = if function == SMCCC_ARCH_FEATURES { 1 } else { u64::from(function) };
            result[1] = args[0];
            result
        }
    }

    struct Board;
    impl Power for Board {
        fn may_begin_at(&self, _: u64) -> bool {
            false
        }
        fn stage(&self, _: usize, _: Option<HostEntry>) -> FirmwareEntry {
            unreachable!("no CPU starts here")
        }
        fn admit(&self, _: usize, _: u64, _: impl FnOnce() -> i64) -> i64 {
            unreachable!("no CPU starts here")
        }
        fn leave(&self, _: usize, _: bool) {
            unreachable!("no CPU goes off here")
        }
        fn wait(&self) {
            unreachable!("nobody is waited for here")
        }
        fn finalize(&self) {
            FINALIZED.set(FINALIZED.get() + 1);
        }
    }

    impl Pages for Board {
        fn share(&self, _: Range<Pa>) -> Result<(), Refused> {
            Ok(())
        }
        fn unshare(&self, _: Range<Pa>) -> Result<(), Refused> {
            Err(Refused::NotItsOwn)
        }
        fn donate(&self, _: Range<Pa>) -> Result<(), Refused> {
            Err(Refused::NoRoom)
        }
        fn give_back(&self, _: Range<Pa>) -> Result<(), Refused> {
            Ok(())
        }
    }

    std::thread_local! {
        static FINALIZED: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
    }

    #[test]
    fn calls_about_pages_are_answered_in_x0() {
        let asked = |function: u32, count: u64| {
            let mut x = [0xee; 18];
            (x[0], x[1], x[2]) = (function.into(), 0x4000_0000, count);
            let exits = Exits::new();
            Services::<Smc> { psci: None }.answer(&Board, &NoCalls, (0, &exits), &mut x);
            assert_eq!(x[1..3], [0x4000_0000, count]);
            x[0] as i64
        };
        assert_eq!(asked(pages::CALL_SHARE, 1), SUCCESS);
        assert_eq!(asked(pages::CALL_SHARE, 0), INVALID_PARAMETER);
        assert_eq!(asked(pages::CALL_UNSHARE, 1), INVALID_PARAMETER);
        assert_eq!(asked(pages::CALL_DONATE, 1), pages::NO_ROOM);
        assert_eq!(asked(pages::CALL_GIVE_BACK, 1), SUCCESS);
    }

    fn answer(with_firmware: bool, function: u64, arg: u64) -> [u64; 18] {
        let cpus = [CpuPower::new(0)];
        let psci = with_firmware.then(|| Psci::<Smc>::new(&cpus));
        let mut x = [0xee; 18];
        (x[0], x[1]) = (function, arg);
        let exits = Exits::new();
        exits.count(Exit::Smc);
        Services { psci }.answer(&Board, &NoCalls, (0, &exits), &mut x);
        assert!(x[4..].iter().all(|&value| value == 0xee), "x4 to x17 are the caller's");
        x
    }

    const REFUSED: u64 = NOT_SUPPORTED as u64;

    #[test]
    fn the_version_is_ours_with_and_without_firmware() {
        assert_eq!(answer(true, SMCCC_VERSION.into(), 0)[0], 0x1_0002);
        assert_eq!(answer(false, SMCCC_VERSION.into(), 0)[0], 0x1_0002);
        assert_eq!(answer(true, SMCCC_ARCH_FEATURES.into(), SMCCC_VERSION.into())[0], 0);
    }

    #[test]
    fn mitigations_are_the_firmwares() {
        let features = |asked: u32| answer(true, SMCCC_ARCH_FEATURES.into(), asked.into())[0];
        assert_eq!(features(SMCCC_ARCH_WORKAROUND_1), 1);
        assert_eq!(features(SMCCC_ARCH_WORKAROUND_4), 1);
        assert_eq!(features(0x8000_1234), REFUSED);
        let called = answer(true, SMCCC_ARCH_WORKAROUND_2.into(), 7);
        assert_eq!(called[..4], [SMCCC_ARCH_WORKAROUND_2.into(), 7, 0x5a, 0x5a]);
        assert_eq!(answer(false, SMCCC_ARCH_WORKAROUND_1.into(), 0)[0], REFUSED);
    }

    #[test]
    fn only_the_lower_half_names_the_function() {
        assert_eq!(answer(true, 0xffff_0000_0000_0000 | u64::from(SMCCC_VERSION), 0)[0], 0x1_0002);
    }

    #[test]
    fn unknown_calls_are_refused_and_do_not_reach_the_firmware() {
        for function in [0u64, 0x8600_0000, 0x8400_0050, 0xc400_0190, 0xbf00_ff01, 0xffff_ffff] {
            assert_eq!(answer(true, function, 0)[..4], [REFUSED, 0, 0xee, 0xee], "{function:#x}");
        }
    }

    /// Answers one function, in all registers.
    struct Own;
    impl SmcHandler for Own {
        fn call(&self, x: &mut [u64; 18]) -> bool {
            let is_mine = x[0] as u32 == 0xc400_0150;
            if is_mine {
                x.iter_mut().for_each(|register| *register += 1);
            }
            is_mine
        }
    }

    #[test]
    fn the_platform_answers_its_own_calls_in_all_registers() {
        let call = |function: u64| {
            let mut x = [7; 18];
            x[0] = function;
            Services { psci: None::<Psci<'_, Smc>> }.answer(&Board, &Own, (0, &Exits::new()), &mut x);
            x
        };
        let mut answered = [8; 18];
        answered[0] = 0xc400_0151;
        assert_eq!(call(0xc400_0150), answered);
        assert_eq!(call(0xc400_0152)[..2], [REFUSED, 7]);
        // What is answered here does not get there.
        assert_eq!(call(CALL_UID.into())[..4], UID);
    }

    #[test]
    fn the_vendor_service_says_who_it_is() {
        assert_eq!(answer(false, CALL_UID.into(), 0)[..4], UID);
        assert_eq!(answer(false, CALL_REVISION.into(), 0)[..2], REVISION);
    }

    #[test]
    fn the_host_may_say_that_no_other_cpu_will_come() {
        assert_eq!(answer(false, CALL_FINALIZE.into(), 7)[..4], [0, 7, 0xee, 0xee]);
        assert_eq!(FINALIZED.get(), 1);
    }

    #[test]
    fn exits_are_told_by_their_kind() {
        let exits = |kind| answer(false, CALL_EXITS.into(), kind);
        assert_eq!(exits(Exit::Smc as u64)[..4], [0, 1, 0xee, 0xee]);
        assert_eq!(exits(Exit::Hvc as u64)[..2], [0, 0]);
        for bad in [Exit::ALL.len() as u64, 1 << 32, u64::MAX] {
            assert_eq!(exits(bad)[..4], [INVALID_PARAMETER as u64, bad, 0xee, 0xee]);
        }
    }
}
