//! Data aborts at unprotected IPAs: what the host is told of the access, and how the realm is given its outcome (A4.2.3, A4.3.4.3, A4.4).
//!
//! Invariant: the host learns of a store no more than the bytes stored, and a load changes its one register as a load from memory would.

use hyp::el2::inject::{EntryFeatures, Exception};
use hyp::el2::syndrome::{Access, Cause};
use hyp::el2::vcpu::Vcpu;

/// `ESR_EL2` of a data abort (Arm ARM D24.2.40).
const ISV: u64 = 1 << 24;
const SAS_SHIFT: u32 = 22;
const SSE: u64 = 1 << 21;
const SRT_SHIFT: u32 = 16;
const SF: u64 = 1 << 15;
const WNR: u64 = 1 << 6;
/// FAR is not valid.
const FNV: u64 = 1 << 10;
/// `ESR_ELx.EA`.
const EA: u64 = 1 << 9;
const FSC_MASK: u64 = 0x3f;

/// A data abort that the host may emulate or answer with a Synchronous External Abort.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aborted {
    /// `ESR_EL2`.
    pub esr: u64,
    /// `FAR_EL2`.
    pub far: u64,
}

impl Aborted {
    /// Whether the syndrome describes the access (EMULATABLE_ABORT).
    pub fn is_emulatable(self) -> bool {
        self.esr & ISV != 0
    }

    fn register(self) -> usize {
        (self.esr >> SRT_SHIFT & 0x1f) as usize
    }

    /// The bits that the access moves.
    fn mask(self) -> u64 {
        u64::MAX >> (64 - (8 << (self.esr >> SAS_SHIFT & 0b11)))
    }

    fn is_store(self) -> bool {
        self.esr & WNR != 0
    }

    /// What the host is told of the value: what is stored, of an emulatable store.
    pub fn told(self, x: &[u64; 31]) -> u64 {
        if self.is_emulatable() && self.is_store() {
            read_register(x, self.register()) & self.mask()
        } else {
            0
        }
    }

    /// Ends the access, emulated by the host, who says that `value` was read.
    pub fn complete(self, vcpu: &mut Vcpu, value: u64) {
        if !self.is_store() {
            let mask = self.mask();
            let value = value & mask;
            let is_negative = self.esr & SSE != 0 && value & (mask ^ mask >> 1) != 0;
            let extended = if is_negative { value | !mask } else { value };
            write_register(
                vcpu,
                self.register(),
                if self.esr & SF != 0 { extended } else { extended & 0xffff_ffff },
            );
        }
        vcpu.advance();
    }

    /// The host says that there is nothing.
    pub fn inject_external(self, vcpu: &mut Vcpu, features: &EntryFeatures) {
        inject_external(vcpu, self.esr, self.far, features);
    }
}

/// Register `number` of an instruction that names XZR by 31.
pub fn read_register(x: &[u64; 31], number: usize) -> u64 {
    x.get(number).copied().unwrap_or(0)
}

fn write_register(vcpu: &mut Vcpu, number: usize, value: u64) {
    if let Some(register) = vcpu.x.get_mut(number) {
        *register = value;
    }
}

/// Makes the realm take a Synchronous External Abort for the access that `esr` and `far` describe (A5.2.7: with EA).
pub fn inject_external(vcpu: &mut Vcpu, esr: u64, far: u64, features: &EntryFeatures) {
    let Cause::Abort(abort) = Cause::decode(esr) else { return };
    vcpu.inject(Exception::External(abort), features);
    vcpu.el1.far = far;
    vcpu.el1.esr |= EA | esr & FNV;
}

/// Makes the realm take an Address size fault of stage 1, level 0 (A5.2.8): at which level of its own tables the address came up nobody has
/// said.
pub fn inject_address_size(vcpu: &mut Vcpu, esr: u64, far: u64, features: &EntryFeatures) {
    inject_external(vcpu, esr, far, features);
    vcpu.el1.esr &= !(EA | FSC_MASK);
}

/// Whether `esr` is of an instruction fetch.
pub fn is_fetch(esr: u64) -> bool {
    matches!(Cause::decode(esr), Cause::Abort(abort) if abort.access() == Access::Fetch)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DATA_ABORT: u64 = 0x24 << 26 | 1 << 25 | ISV | 0x07;

    fn access(sas: u64, register: u64, more: u64) -> Aborted {
        Aborted { esr: DATA_ABORT | sas << SAS_SHIFT | register << SRT_SHIFT | more, far: 0x123 }
    }

    fn vcpu() -> Vcpu {
        let mut vcpu = Vcpu::reset(0);
        vcpu.pc = 0x8000;
        vcpu.x = core::array::from_fn(|n| 0x1111_1111_1111_1111 * (n as u64 % 15 + 1));
        vcpu
    }

    fn loaded(sas: u64, more: u64, value: u64) -> u64 {
        let mut vcpu = vcpu();
        access(sas, 3, more).complete(&mut vcpu, value);
        assert_eq!(vcpu.pc, 0x8004);
        vcpu.x[3]
    }

    #[test]
    fn a_load_takes_its_width_and_extends_as_the_instruction_says() {
        let value = 0xf1f2_f3f4_f5f6_f7f8;
        assert_eq!(loaded(0, 0, value), 0xf8);
        assert_eq!(loaded(1, 0, value), 0xf7f8);
        assert_eq!(loaded(2, 0, value), 0xf5f6_f7f8);
        assert_eq!(loaded(3, SF, value), value);
        // LDRSB to W and to X, LDRSW.
        assert_eq!(loaded(0, SSE, value), 0xffff_fff8);
        assert_eq!(loaded(0, SSE | SF, value), 0xffff_ffff_ffff_fff8);
        assert_eq!(loaded(2, SSE | SF, value), 0xffff_ffff_f5f6_f7f8);
        assert_eq!(loaded(0, SSE | SF, 0x7f), 0x7f);
        assert_eq!(loaded(1, SSE | SF, 0x1_7fff), 0x7fff);
    }

    #[test]
    fn a_store_tells_its_bytes_and_changes_no_register() {
        let before = vcpu();
        for (sas, told) in [(0, 0x44), (1, 0x4444), (2, 0x4444_4444), (3, 0x4444_4444_4444_4444)] {
            assert_eq!(access(sas, 3, WNR | SF).told(&before.x), told);
        }
        let mut after = before;
        access(2, 3, WNR).complete(&mut after, u64::MAX);
        assert_eq!((after.x, after.pc), (before.x, 0x8004));
        assert_eq!(access(3, 3, SF).told(&before.x), 0, "a load tells nothing");
        let undescribed = Aborted { esr: access(3, 3, WNR).esr & !ISV, far: 0 };
        assert_eq!((undescribed.told(&before.x), undescribed.is_emulatable()), (0, false));
    }

    #[test]
    fn the_zero_register_is_zero_and_stays_so() {
        let before = vcpu();
        assert_eq!(access(3, 31, WNR | SF).told(&before.x), 0);
        let mut after = before;
        access(3, 31, SF).complete(&mut after, u64::MAX);
        assert_eq!(after.x, before.x);
    }
}
