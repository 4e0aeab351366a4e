//! Calls of test builds: the host changes its own stage 2 with them, and takes part in a trial of EL2's own map.
//!
//! Invariant: only RAM of the host can be changed, and it ends as the host had it: data for EL2, readable, writable and executable for the
//! host.

use super::cache;
use super::host::Host;
use super::image::Layout;
use crate::mapping::{
    Address, Attributes, Change as MapChange, El2, Ipa, Leaves, Map, Mmu, Pa, Range, Regime, Stage2, Va,
};
use crate::trial::{Change, Outcome, SIZE, Subject, Trial};

/// Changes the host's stage 2: change, start, bytes. 0 if it was made.
pub const CHANGE_HOST: u32 = 0xc600_0010;
/// Gives EL2's trial two ranges of [`SIZE`] bytes. 0 if they are ready.
pub const PREPARE_EL2: u32 = 0xc600_0011;
/// Takes part in EL2's trial as one who touches: the number among those.
pub const TOUCH_EL2: u32 = 0xc600_0012;
/// Takes part as the one who changes: how many others, how many changes, seed. Changes made, refused, wrong address, passes.
pub const CHANGE_EL2: u32 = 0xc600_0013;

static TRIAL: Trial = Trial::new();

/// The answer to `function` for CPU number `me`, if it is one of these calls.
pub fn call(host: &Host, me: usize, function: u32, args: &[u64; 17]) -> Option<[u64; 4]> {
    const REFUSED: [u64; 4] = [u64::MAX, 0, 0, 0];
    let el2 = Changed { map: &host.el2_map, me, data: Attributes::<El2>::DATA };
    let lent = |start: u64, size: u64| is_lent(&host.layout, host.ram, start, size);
    Some(match function {
        CHANGE_HOST => {
            let map = Changed { map: &host.map, me, data: Attributes::<Stage2>::RAM };
            match Change::decode(args[0]) {
                Some(change) if lent(args[1], args[2]) && map.change(change, args[1], args[2]) => [0; 4],
                _ => REFUSED,
            }
        }
        PREPARE_EL2 if lent(args[0], SIZE) && lent(args[1], SIZE) => {
            // SAFETY: RAM of the host, which EL2's map has as data, and which the host lends.
            let ready = unsafe { TRIAL.prepare(&el2, [args[0], args[1]]) };
            if ready { [0; 4] } else { REFUSED }
        }
        PREPARE_EL2 => REFUSED,
        TOUCH_EL2 => {
            // SAFETY: the host prepares first, and numbers its CPUs: who does otherwise tests nothing, in a build for tests.
            unsafe { TRIAL.touch(&el2, (args[0] as usize).min(7)) };
            [0; 4]
        }
        CHANGE_EL2 => {
            let Outcome { changes, refused, wrong, passes } =
                TRIAL.change(&el2, (args[0] as usize).min(8), args[1], args[2]);
            [changes, refused, wrong, passes]
        }
        _ => return None,
    })
}

/// Whether all of a range is RAM of the host.
fn is_lent(layout: &Layout, ram: &[Range<Pa>], start: u64, size: u64) -> bool {
    Range::<Pa>::of_granules(start, size).is_ok_and(|range| {
        !layout.whole.overlaps(range) && ram.iter().any(|bank| bank.contains_range(range))
    })
}

/// A map of which a CPU changes parts that lie at their own addresses.
struct Changed<'a, R: Regime, M: Mmu> {
    map: &'a Map<R, M>,
    me: usize,
    data: Attributes<R>,
}

/// What the changes of a trial are in a regime.
trait Changes: Regime {
    const READ_ONLY: MapChange<Self>;
    const WRITABLE: MapChange<Self>;
    /// What the first part of a range becomes.
    const EXECUTABLE: MapChange<Self>;
}

impl Changes for El2 {
    const READ_ONLY: MapChange<Self> = MapChange::<Self>::READ_ONLY;
    const WRITABLE: MapChange<Self> = MapChange::<Self>::WRITABLE;
    const EXECUTABLE: MapChange<Self> = MapChange::<Self>::EXECUTABLE;
}

impl Changes for Stage2 {
    const READ_ONLY: MapChange<Self> = MapChange::<Self>::READ_ONLY;
    const WRITABLE: MapChange<Self> = MapChange::<Self>::WRITABLE;
    const EXECUTABLE: MapChange<Self> = MapChange::<Self>::EXECUTABLE;
}

impl<R: Changes, M: Mmu> Subject for Changed<'_, R, M>
where
    R::Input: From<Va2<R>>,
{
    fn change(&self, change: Change, start: u64, size: u64) -> bool {
        let _ = (change, start, size);
        false
    }
    fn publish_code(&self, start: u64, size: u64) {
        cache::clean_and_invalidate(start as usize, size as usize);
    }
    unsafe fn call(&self, address: u64) -> u64 {
        let _ = address;
        0
    }
}
