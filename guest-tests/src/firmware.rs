//! Calls that end above EL1, and who answers them in a test build of the hypervisor (`hyp::el2::stand_in`).

use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

use smccc::{Call, Hvc};

/// The call is not implemented.
pub const NOT_SUPPORTED: u64 = u64::MAX;
/// Turns the firmware's stand-in on or off, with [`KEY`], and tells its count.
pub const STAND_IN: u32 = 0xc600_0020;
/// What turning it on or off takes.
pub const KEY: u64 = 0x7061_7975_7073_7563;

/// Calls `function` by the conduit `C`: x0 to x17 of the answer.
pub fn call<C: Call>(function: u32, args: [u64; 3]) -> [u64; 18] {
    let mut all = [0; 17];
    all[..3].copy_from_slice(&args);
    C::call64(function, all)
}

/// What the stand-in does in the firmware's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Does {
    /// Each suspend to a state of power-down loses the CPU's context.
    LoseContext = 3,
    /// A suspend is the firmware's again.
    KeepContext = 4,
    /// The next CPU_ON is answered before its CPU comes.
    KeepBack = 5,
    /// That CPU comes.
    Start = 6,
}

/// Has the stand-in do that; whether there is one.
pub fn has_stand_in(does: Does) -> bool {
    call::<Hvc>(STAND_IN, [does as u64, KEY, 0])[0] == 0
}

/// Nobody answers an HVC.
static ALONE: AtomicBool = AtomicBool::new(false);

/// Says that nobody answers an HVC, as in a realm: none is made any more.
pub fn no_hypervisor() {
    ALONE.store(true, Relaxed);
}

/// Has the firmware's stand-in answer from now on, or the firmware itself; whether there is a stand-in.
pub fn stand_in(on: bool) -> bool {
    !ALONE.load(Relaxed) && call::<Hvc>(STAND_IN, [on.into(), KEY, 0])[0] == 0
}
