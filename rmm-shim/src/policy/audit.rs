//! Looks at what all maps say of the realm's memory, entry by entry, when it ends; and tells its RIM.
//!
//! Invariant: it looks at what is installed, not at what the policy has asked for.

use core::ops::ControlFlow;

use hyp::mapping::{Address, Entry, Pa, Range};
use hyp::owner::HostPage;
use rmm_abi::v1_0::rmi::RmiHashAlgorithm;
use rmm_abi::v1_0::{GRANULE_SIZE as GRANULE, doublewords};

use super::{Board, Policy};
use crate::monitor::Locked;
use crate::world::World;

/// A leaf of the realm's.
struct Leaf {
    ipa: u64,
    size: u64,
    pa: u64,
    is_valid: bool,
}

/// What was found, in granules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    /// The realm's own.
    pub protected: u64,
    /// Of these such that another party has them.
    pub exposed: u64,
    /// The host's, which the realm has too.
    pub shared: u64,
    /// Of these such that are not.
    pub stolen: u64,
    /// Of what is no RAM of the realm's: devices of the host's, or they are stolen.
    pub devices: u64,
}

impl<W: World, B: Board> Policy<W, B> {
    /// The next leaf of the realm's from `start` on.
    fn leaf(&self, lock: &Locked<'_, W>, rd: u64, start: u64, end: u64) -> Option<Leaf> {
        let realm = lock.realm(rd)?;
        let range = Range::new(start, end.checked_sub(start)?).ok()?;
        let writer = realm.write();
        let found = writer.walk(range, |visited| match visited.entry {
            Entry::Leaf { output, valid, .. } => {
                let size = rmm_abi::v1_0::entry_size(visited.level.into()).unwrap_or(GRANULE);
                ControlFlow::Break(Leaf { ipa: visited.start, size, pa: output.get(), is_valid: valid })
            }
            _ => ControlFlow::Continue(()),
        });
        found.break_value()
    }

    /// Looks at all of the realm's map.
    pub(super) fn look(&self) -> Audit {
        let mut audit = Audit::default();
        let Some(made) = self.made.get() else { return audit };
        let lock = &self.monitor.lock();
        let Some(number) = lock.realm(made.rd).map(|realm| realm.number) else { return audit };
        let mut next = 0;
        while let Some(leaf) = self.leaf(lock, made.rd, next, 2 * made.shared) {
            let pages = leaf.size / GRANULE;
            let is_protected = leaf.ipa & made.shared == 0;
            let range = Range::<Pa>::new(leaf.pa, leaf.size);
            let at = |page: u64| leaf.pa + page * GRANULE;
            if is_protected {
                audit.protected += pages;
                // At its own address, and nobody else's.
                let is_alone = range.is_ok_and(|range| lock.world.is_data_of(range, number));
                if !is_alone || leaf.pa != leaf.ipa || !self.plan.ram.have((leaf.pa, leaf.pa + leaf.size)) {
                    audit.exposed += pages;
                }
            } else if self.plan.ram.have((leaf.pa, leaf.pa + leaf.size)) {
                audit.shared += pages;
                let is_shared = |number: &u64| {
                    leaf.is_valid && lock.world.granule(at(*number)) == HostPage::SharedWithRealm
                };
                audit.stolen += pages - (0..pages).filter(is_shared).count() as u64;
            } else {
                audit.devices += pages;
                audit.stolen += (0..pages).filter(|&number| !lock.world.is_device(at(number))).count() as u64;
            }
            next = leaf.ipa + leaf.size;
        }
        audit
    }

    /// Looks, and says what was found, and what the realm's RIM is.
    #[inline(never)]
    pub(super) fn audit(&self) {
        let audit = self.look();
        let Audit { protected, exposed, shared, stolen, devices } = audit;
        let result = if exposed == 0 && stolen == 0 && protected > 0 { "ok" } else { "FAIL" };
        let name = "policy.protected_pages_are_nobody_elses";
        match (exposed, stolen) {
            (0, 0) => self.say(format_args!("@cloven check {name} {result} {protected} protected, {shared} shared")),
            _ => self.say(format_args!(
                "@cloven check {name} {result} of {protected} protected {exposed} are not, of {shared} shared and {devices} of devices {stolen}"
            )),
        }
        self.tell_rim();
    }

    #[inline(never)]
    fn tell_rim(&self) {
        let Some(made) = self.made.get() else { return };
        let (rim, words) = {
            let lock = self.monitor.lock();
            let Some(realm) = lock.realm(made.rd) else { return };
            let rim: [u64; 8] = doublewords(&realm.measurements.borrow()[0]);
            (
                rim,
                match realm.hash_algo {
                    RmiHashAlgorithm::Sha256 => 4,
                    RmiHashAlgorithm::Sha512 => 8,
                },
            )
        };
        // As they lie in memory.
        let [a, b, c, d, e, f, g, h] = rim.map(u64::swap_bytes);
        match words {
            4 => self.say(format_args!("@cloven rim {a:016x}{b:016x}{c:016x}{d:016x}")),
            _ => self.say(format_args!(
                "@cloven rim {a:016x}{b:016x}{c:016x}{d:016x}{e:016x}{f:016x}{g:016x}{h:016x}"
            )),
        }
    }
}
