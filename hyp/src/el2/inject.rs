//! Taking a synchronous exception to EL1 as the hardware would have (Arm ARM D1.3.6, the pseudocode
//! `AArch64.TakeException`).
//!
//! Invariant: pure. From the interrupted state and the EL1 registers that steer exception entry it gives the values to
//! write; whoever calls it writes them.

use super::syndrome::{Abort, Access, EC_DATA_ABORT, EC_INSTRUCTION_ABORT, EC_SHIFT, IL};

const EC_UNKNOWN: u64 = 0x00;
/// Added to the class of an abort that did not change the exception level.
const SAME_LEVEL: u64 = 1;

const SPSR_AARCH32: u64 = 1 << 4;
const SPSR_MODE: u64 = 0x1f;
const SPSR_EL1T: u64 = 0b00100;
const SPSR_EL1H: u64 = 0b00101;
const SPSR_DAIF: u64 = 0b1111 << 6;
const SPSR_SSBS: u64 = 1 << 12;
const SPSR_ALLINT: u64 = 1 << 13;
const SPSR_PAN: u64 = 1 << 22;
const SPSR_DIT: u64 = 1 << 24;
const SPSR_TCO: u64 = 1 << 25;
const SPSR_EXLOCK: u64 = 1 << 34;
const SPSR_NZCV: u64 = 0b1111 << 28;

const SCTLR_SPAN: u64 = 1 << 23;
const SCTLR_DSSBS: u64 = 1 << 44;
const SCTLR_SPINTMASK: u64 = 1 << 62;
const SCTLR2_EASE: u64 = 1 << 5;
const GCSCR_EXLOCKEN: u64 = 1 << 6;

const VECTOR_SERROR: u64 = 0x180;
const VECTORS_MASK: u64 = 0x7ff;

/// Optional features that change what exception entry does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EntryFeatures {
    /// FEAT_PAN.
    pub pan: bool,
    /// FEAT_SSBS.
    pub ssbs: bool,
    /// FEAT_MTE2: tag checks are off on entry.
    pub tco: bool,
    /// FEAT_NMI.
    pub nmi: bool,
}

/// The interrupted state and the EL1 registers that steer exception entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interrupted {
    /// `SPSR_EL2`: the state below when it trapped.
    pub spsr: u64,
    /// `SCTLR_EL1`.
    pub sctlr: u64,
    /// `SCTLR2_EL1`, 0 without FEAT_SCTLR2.
    pub sctlr2: u64,
    /// `GCSCR_EL1`, 0 without FEAT_GCS.
    pub gcscr: u64,
    /// `VBAR_EL1`.
    pub vbar: u64,
    /// What the CPU has.
    pub features: EntryFeatures,
}

/// What to write to make EL1 take the exception at the next return.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `ESR_EL1`.
    pub esr: u64,
    /// `ELR_EL2`: where EL1 goes on.
    pub pc: u64,
    /// `SPSR_EL2`: the state in which it does.
    pub pstate: u64,
}

/// What the host is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exception {
    /// The instruction does not exist.
    Undefined,
    /// There is nothing at the address.
    External(Abort),
}

impl Interrupted {
    fn was_at_el0(self) -> bool {
        self.spsr & SPSR_AARCH32 != 0 || self.spsr & SPSR_MODE == 0
    }

    /// What EL1 does on `exception`. The caller also sets `SPSR_EL1` to the interrupted state, `ELR_EL1` to the
    /// preferred return address (the instruction itself) and, for an abort, `FAR_EL1`.
    pub fn take(self, exception: Exception) -> Entry {
        let same_level = if self.was_at_el0() { 0 } else { SAME_LEVEL };
        let esr = match exception {
            Exception::Undefined => EC_UNKNOWN << EC_SHIFT | IL,
            Exception::External(abort) => {
                let class = match abort.access() {
                    Access::Fetch => EC_INSTRUCTION_ABORT,
                    Access::Load | Access::Store => EC_DATA_ABORT,
                };
                // IL is 1 where the syndrome has no ISV, whatever the size of the instruction.
                (class + same_level) << EC_SHIFT | IL | abort.external_iss()
            }
        };
        // FEAT_DoubleFault2 lets EL1 ask for External aborts at the SError vector.
        let as_serror = matches!(exception, Exception::External(_)) && self.sctlr2 & SCTLR2_EASE != 0;
        let vector = self.vector_base() + if as_serror { VECTOR_SERROR } else { 0 };
        // The low bits of VBAR_EL1 are RES0, and may still hold what the host wrote.
        let pc = (self.vbar & !VECTORS_MASK).wrapping_add(vector);
        Entry { esr, pc, pstate: self.entry_state() }
    }

    /// Offset of the group of vectors, by where the exception came from (Arm ARM D1.3.1).
    fn vector_base(self) -> u64 {
        if self.spsr & SPSR_AARCH32 != 0 {
            0x600
        } else {
            match self.spsr & SPSR_MODE {
                SPSR_EL1T => 0x000,
                SPSR_EL1H => 0x200,
                _ => 0x400,
            }
        }
    }

    fn entry_state(self) -> u64 {
        let set = |condition: bool, bit: u64| if condition { bit } else { 0 };
        let kept = self.spsr & (SPSR_NZCV | SPSR_DIT | if self.features.pan { SPSR_PAN } else { 0 });
        kept | SPSR_EL1H
            | SPSR_DAIF
            | set(self.features.pan && self.sctlr & SCTLR_SPAN == 0, SPSR_PAN)
            | set(self.features.ssbs && self.sctlr & SCTLR_DSSBS != 0, SPSR_SSBS)
            | set(self.features.tco, SPSR_TCO)
            | set(self.features.nmi && self.sctlr & SCTLR_SPINTMASK == 0, SPSR_ALLINT)
            | set(self.gcscr & GCSCR_EXLOCKEN != 0 && !self.was_at_el0(), SPSR_EXLOCK)
    }
}

#[cfg(test)]
mod tests {
    use super::super::syndrome::Cause;
    use super::*;

    const LOAD: u64 = 0x24 << 26 | IL | 0x06;

    fn external(esr: u64) -> Exception {
        match Cause::decode(esr) {
            Cause::Abort(abort) => Exception::External(abort),
            other => panic!("{other:?}"),
        }
    }

    fn take(spsr: u64, exception: Exception) -> Entry {
        let features = EntryFeatures { pan: true, ssbs: true, tco: true, nmi: false };
        Interrupted { spsr, sctlr: SCTLR_SPAN, vbar: 0x8_0000, features, ..Default::default() }
            .take(exception)
    }

    #[test]
    fn the_class_and_the_vector_say_where_it_came_from() {
        let cases =
            [(0b0101, 0x25, 0x200), (0b0100, 0x25, 0x000), (0b0000, 0x24, 0x400), (0b1_0000, 0x24, 0x600)];
        for (mode, class, vector) in cases {
            let entry = take(mode, external(LOAD));
            assert_eq!((entry.esr >> 26, entry.pc), (class, 0x8_0000 + vector), "mode {mode:#b}");
            assert_eq!(entry.esr & 0x3f, 0x10);
        }
        let fetch = external(0x20 << 26 | IL | 0x06);
        assert_eq!(take(0b0101, fetch).esr >> 26, 0x21);
        assert_eq!(take(0b0000, fetch).esr >> 26, 0x20);
        assert_eq!(take(0b0101, Exception::Undefined).esr, IL);
    }

    #[test]
    fn the_handler_runs_masked_at_el1_with_the_flags_kept() {
        let entry = take(0b1010 << 28 | SPSR_DIT | 1 << 21 | 1 << 20 | 0b11 << 10, external(LOAD));
        // Flags and DIT stay; single step, illegal state and branch type go; tag checks off.
        assert_eq!(entry.pstate, 0b1010 << 28 | SPSR_DIT | SPSR_TCO | SPSR_DAIF | SPSR_EL1H);
    }

    #[test]
    fn pan_is_set_unless_the_host_asked_to_leave_it() {
        let features = EntryFeatures { pan: true, ..Default::default() };
        let pan = |spsr, sctlr| {
            Interrupted { spsr, sctlr, features, ..Default::default() }.take(Exception::Undefined).pstate
                & SPSR_PAN
        };
        assert_eq!((pan(0, 0), pan(0, SCTLR_SPAN), pan(SPSR_PAN, SCTLR_SPAN)), (SPSR_PAN, 0, SPSR_PAN));
        let without = Interrupted::default().take(Exception::Undefined);
        assert_eq!(without.pstate & SPSR_PAN, 0);
    }

    #[test]
    fn speculative_store_bypass_interrupt_mask_and_gcs_lock_follow_their_controls() {
        let features = EntryFeatures { ssbs: true, nmi: true, ..Default::default() };
        let base = Interrupted { spsr: 0b0101, features, ..Default::default() };
        let state = |i: Interrupted| i.take(Exception::Undefined).pstate;
        assert_eq!(state(base) & (SPSR_SSBS | SPSR_ALLINT), SPSR_ALLINT);
        let controls = Interrupted { sctlr: SCTLR_DSSBS | SCTLR_SPINTMASK, ..base };
        assert_eq!(state(controls) & (SPSR_SSBS | SPSR_ALLINT), SPSR_SSBS);
        let locked = Interrupted { gcscr: GCSCR_EXLOCKEN, ..base };
        assert_eq!(state(locked) & SPSR_EXLOCK, SPSR_EXLOCK);
        assert_eq!(state(Interrupted { spsr: 0, ..locked }) & SPSR_EXLOCK, 0);
    }

    #[test]
    fn a_vector_base_with_low_bits_or_at_the_top_is_taken_as_the_hardware_does() {
        let at =
            |vbar| Interrupted { spsr: 0b0101, vbar, ..Default::default() }.take(Exception::Undefined).pc;
        assert_eq!((at(0x8_07ff), at(u64::MAX)), (0x8_0200, 0xffff_ffff_ffff_fa00));
    }

    #[test]
    fn a_host_that_wants_external_aborts_as_serrors_gets_them_there() {
        let interrupted = Interrupted { spsr: 0b0101, sctlr2: SCTLR2_EASE, ..Default::default() };
        assert_eq!(interrupted.take(external(LOAD)).pc, 0x380);
        assert_eq!(interrupted.take(Exception::Undefined).pc, 0x200);
    }
}
