//! `ESR_EL2` decoded once (Arm ARM D24.2.40).

/// `ESR_ELx.IL`: the trapped instruction has 32 bits.
pub const IL: u64 = 1 << 25;
pub(super) const EC_SHIFT: u32 = 26;
const ISS_MASK: u64 = 0x1ff_ffff;

const EC_HVC64: u64 = 0x16;
const EC_SMC64: u64 = 0x17;
const EC_SYSTEM_REGISTER: u64 = 0x18;
/// From a lower exception level; from the same one it is the next number.
pub(super) const EC_INSTRUCTION_ABORT: u64 = 0x20;
/// As [`EC_INSTRUCTION_ABORT`].
pub(super) const EC_DATA_ABORT: u64 = 0x24;

const ISS_WNR: u64 = 1 << 6;
const ISS_S1PTW: u64 = 1 << 7;
const ISS_CM: u64 = 1 << 8;
const ISS_SRT_SHIFT: u32 = 16;
const ISS_SAS_DOUBLEWORD: u64 = 0b11 << 22;
const ISS_ISV: u64 = 1 << 24;
const FSC_MASK: u64 = 0x3f;
const FSC_TLB_CONFLICT: u64 = 0b11_0000;
/// Synchronous External abort, not on a walk.
const FSC_EXTERNAL: u64 = 0b01_0000;
/// Synchronous External abort on a walk, level 0; the level is added.
const FSC_EXTERNAL_ON_WALK: u64 = 0b01_0100;

/// What an access was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// An instruction fetch.
    Fetch,
    /// A load.
    Load,
    /// A store, or a cache maintenance instruction.
    Store,
}

/// An abort from EL1 or EL0 that stage 2 reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abort {
    esr: u64,
}

impl Abort {
    /// An abort of `access` of which nothing else is known.
    pub fn of(access: Access) -> Self {
        let esr = match access {
            Access::Fetch => EC_INSTRUCTION_ABORT << EC_SHIFT,
            Access::Load => EC_DATA_ABORT << EC_SHIFT,
            Access::Store => EC_DATA_ABORT << EC_SHIFT | ISS_WNR,
        };
        Self { esr }
    }

    /// What the access was.
    pub fn access(self) -> Access {
        match self.esr >> EC_SHIFT {
            EC_INSTRUCTION_ABORT => Access::Fetch,
            _ if self.esr & ISS_WNR != 0 => Access::Store,
            _ => Access::Load,
        }
    }

    /// Whether the TLB holds entries that conflict: to be forgotten, then retried.
    pub fn is_tlb_conflict(self) -> bool {
        self.esr & FSC_MASK == FSC_TLB_CONFLICT
    }

    /// Whether stage 2 refused it: a translation, access flag or permission fault (Arm ARM D24.2.40, DFSC and IFSC).
    pub fn is_of_stage_2(self) -> bool {
        (0b00_0100..=0b00_1111).contains(&(self.esr & FSC_MASK))
    }

    /// Whether the access was one of the stage 1 table walk.
    pub fn is_on_walk(self) -> bool {
        self.esr & ISS_S1PTW != 0
    }

    /// Whether `HPFAR_EL2` holds the faulting IPA: on translation, address size and access flag faults, and on a
    /// walk (Arm ARM D24.2.58).
    pub fn has_ipa(self) -> bool {
        self.is_on_walk() || self.esr & FSC_MASK < 0b00_1100
    }

    /// The number of the register (31 is XZR) whose 64 bits a load or store moves, if it is one of those that the syndrome describes.
    pub fn doubleword(self) -> Option<usize> {
        let all = ISS_ISV | ISS_SAS_DOUBLEWORD;
        let described = self.esr & all == all && self.access() != Access::Fetch && !self.is_on_walk();
        described.then_some((self.esr >> ISS_SRT_SHIFT & 0x1f) as usize)
    }

    /// The syndrome, but for its exception class, with which the host is told that there is nothing at the address:
    /// a synchronous External abort, on the access or on the walk (Arm ARM D24.2.39). The level of a walk is that
    /// of the fault as far as it is known: stage 2 does not say which level of stage 1 it interrupted, so level 0.
    pub fn external_iss(self) -> u64 {
        let fsc = if self.is_on_walk() { FSC_EXTERNAL_ON_WALK } else { FSC_EXTERNAL };
        let kept = match self.access() {
            Access::Fetch => 0,
            Access::Load | Access::Store => self.esr & (ISS_WNR | ISS_CM),
        };
        kept | fsc
    }
}

/// Why a lower exception level came to EL2 synchronously.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// HVC; the return address is after it.
    Hvc,
    /// SMC, trapped by `HCR_EL2.TSC`; the return address is the SMC itself.
    Smc,
    /// An abort.
    Abort(Abort),
    /// A system register or system instruction that nothing here should trap.
    SystemRegister {
        /// Its ISS.
        iss: u64,
    },
    /// An exception class that nothing here should cause.
    Other {
        /// Its exception class.
        ec: u64,
    },
}

impl Cause {
    /// Decodes `esr`.
    pub fn decode(esr: u64) -> Self {
        match (esr >> EC_SHIFT) & 0x3f {
            EC_HVC64 => Self::Hvc,
            EC_SMC64 => Self::Smc,
            EC_INSTRUCTION_ABORT | EC_DATA_ABORT => Self::Abort(Abort { esr: esr & 0xffff_ffff }),
            EC_SYSTEM_REGISTER => Self::SystemRegister { iss: esr & ISS_MASK },
            ec => Self::Other { ec },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn abort(esr: u64) -> Abort {
        match Cause::decode(esr) {
            Cause::Abort(abort) => abort,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn calls_and_traps_are_told_apart() {
        assert_eq!(Cause::decode(0x16 << 26 | IL), Cause::Hvc);
        assert_eq!(Cause::decode(0x17 << 26 | IL), Cause::Smc);
        assert_eq!(Cause::decode(0x18 << 26 | IL | 0x12), Cause::SystemRegister { iss: 0x12 });
        assert_eq!(Cause::decode(0x19 << 26), Cause::Other { ec: 0x19 });
    }

    #[test]
    fn the_upper_half_of_the_syndrome_does_not_matter() {
        assert_eq!(Cause::decode(1 << 40 | 0x16 << 26), Cause::Hvc);
        assert_eq!(abort(1 << 32 | 0x24 << 26 | IL | 0x06).access(), Access::Load);
    }

    #[test]
    fn loads_stores_and_fetches_keep_what_the_host_must_see() {
        // Translation fault, level 2.
        let load = abort(0x24 << 26 | IL | 0x06);
        assert_eq!((load.access(), load.external_iss()), (Access::Load, 0x10));
        let store = abort(0x24 << 26 | IL | 0x06 | ISS_WNR);
        assert_eq!((store.access(), store.external_iss()), (Access::Store, 0x10 | ISS_WNR));
        let clean = abort(0x24 << 26 | IL | 0x06 | ISS_WNR | ISS_CM);
        assert_eq!(clean.external_iss(), 0x10 | ISS_WNR | ISS_CM);
        let fetch = abort(0x20 << 26 | IL | 0x06);
        assert_eq!((fetch.access(), fetch.external_iss()), (Access::Fetch, 0x10));
        // The stage 2 part of the syndrome (ISV, SAS, SRT) is not the host's.
        assert_eq!(abort(0x24 << 26 | IL | 1 << 24 | 0b11 << 22 | 5 << 16 | 0x06).external_iss(), 0x10);
    }

    #[test]
    fn a_fault_on_the_hosts_own_walk_is_reported_as_one_on_a_walk() {
        let walk = abort(0x24 << 26 | IL | ISS_S1PTW | 0x06);
        assert!(walk.is_on_walk() && walk.has_ipa());
        assert_eq!(walk.external_iss(), 0x14);
    }

    #[test]
    fn a_load_or_store_of_64_bits_names_its_register() {
        let described = ISS_ISV | ISS_SAS_DOUBLEWORD | 5 << ISS_SRT_SHIFT | 0x06;
        assert_eq!(abort(0x24 << 26 | IL | described).doubleword(), Some(5));
        assert_eq!(abort(0x24 << 26 | IL | described | ISS_WNR).doubleword(), Some(5));
        for other in [described & !ISS_ISV, described & !(1 << 22), described | ISS_S1PTW] {
            assert_eq!(abort(0x24 << 26 | IL | other).doubleword(), None);
        }
        assert_eq!(abort(0x20 << 26 | IL | described).doubleword(), None);
    }

    #[test]
    fn a_conflict_is_no_fault_of_the_host() {
        assert!(abort(0x24 << 26 | 0x30).is_tlb_conflict());
        assert!(abort(0x20 << 26 | 0x30).is_tlb_conflict());
        assert!(!abort(0x24 << 26 | 0x06).is_tlb_conflict());
        assert!(abort(0x24 << 26 | 0x06).is_of_stage_2() && abort(0x20 << 26 | 0x0f).is_of_stage_2());
        assert!(!abort(0x24 << 26 | 0x10).is_of_stage_2() && !abort(0x24 << 26 | 0x30).is_of_stage_2());
    }

    #[test]
    fn a_permission_fault_has_no_ipa() {
        assert!(abort(0x24 << 26 | 0x06).has_ipa());
        assert!(!abort(0x20 << 26 | 0x0f).has_ipa());
    }
}
