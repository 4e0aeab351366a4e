//! What a REC exit for a synchronous exception was for (DEN0137 A4.3.4; DDI 0487, ESR_EL2 and HPFAR_EL2).
//!
//! Invariant: any syndrome has a meaning here; what is not known is [`Cause::Other`].

/// Bits of a granule's address that FAR tells.
const OFFSET: u64 = 0xfff;
const EC_WFX: u64 = 0x01;
const EC_SYSTEM_REGISTER: u64 = 0x18;
const EC_INSTRUCTION_ABORT: u64 = 0x20;
const EC_DATA_ABORT: u64 = 0x24;
const ISV: u64 = 1 << 24;
const SAS_SHIFT: u32 = 22;
const WNR: u64 = 1 << 6;
/// Of a trapped MSR or MRS: Op0, Op2, Op1, CRn, CRm and the direction (DDI 0487, "ISS encoding for an exception from MSR, MRS").
const REGISTER: u64 = 0x3f_fc1f;
/// A write to ICC_SGI1R_EL1: S3_0_C12_C11_5.
const WRITE_SGI1R: u64 = 3 << 20 | 5 << 17 | 12 << 10 | 11 << 1;
/// To ICC_ASGI1R_EL1 and ICC_SGI0R_EL1: S3_0_C12_C11_6 and 7.
const WRITE_ASGI1R: u64 = 3 << 20 | 6 << 17 | 12 << 10 | 11 << 1;
const WRITE_SGI0R: u64 = 3 << 20 | 7 << 17 | 12 << 10 | 11 << 1;
/// To ICC_DIR_EL1: S3_0_C12_C11_1.
const WRITE_DIR: u64 = 3 << 20 | 1 << 17 | 12 << 10 | 11 << 1;

/// An access to a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Bytes from the start of its registers.
    pub offset: u64,
    /// Bytes of it: 1, 2, 4 or 8.
    pub size: u8,
    /// What is stored; None: it is a load.
    pub store: Option<u64>,
}

impl Access {
    /// What a REC exit for a data abort that can be emulated told (`value` is the first of the general registers), to a device that starts at `base`.
    pub const fn new(esr: u64, ipa: u64, base: u64, value: u64) -> Self {
        let store = if esr & WNR != 0 { Some(value) } else { None };
        Self { offset: ipa.wrapping_sub(base), size: 1 << (esr >> SAS_SHIFT & 3), store }
    }
}

/// Why it exited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// An access to data.
    Data {
        /// Its IPA; without `can_be_emulated` that of its granule.
        ipa: u64,
        /// Whether it is a store, if it can be emulated.
        is_store: bool,
        /// Whether the host knows enough to do it in the realm's place.
        can_be_emulated: bool,
    },
    /// An instruction fetch from this granule.
    Fetch {
        /// IPA of the granule.
        ipa: u64,
    },
    /// WFI or WFE.
    Wait,
    /// A write to ICC_SGI1R_EL1, whose value is in the first of the general registers.
    Sgi,
    /// A write to ICC_ASGI1R_EL1 or ICC_SGI0R_EL1: SGIs of groups of which a realm has none.
    OtherSgi,
    /// A write to ICC_DIR_EL1, whose value is in the first of the general registers.
    Deactivate,
    /// Something else.
    Other,
}

/// What an exit with these registers was for.
pub const fn cause(esr: u64, far: u64, hpfar: u64) -> Cause {
    // FIPA is bits 51:12 of the address, from bit 4 on.
    let granule = (hpfar & 0xfff_ffff_fff0) << 8;
    match esr >> 26 & 0x3f {
        EC_DATA_ABORT => {
            let can_be_emulated = esr & ISV != 0;
            let offset = if can_be_emulated { far & OFFSET } else { 0 };
            Cause::Data {
                ipa: granule | offset,
                is_store: can_be_emulated && esr & WNR != 0,
                can_be_emulated,
            }
        }
        EC_INSTRUCTION_ABORT => Cause::Fetch { ipa: granule },
        EC_WFX => Cause::Wait,
        EC_SYSTEM_REGISTER => match esr & REGISTER {
            WRITE_SGI1R => Cause::Sgi,
            WRITE_ASGI1R | WRITE_SGI0R => Cause::OtherSgi,
            WRITE_DIR => Cause::Deactivate,
            _ => Cause::Other,
        },
        _ => Cause::Other,
    }
}

/// To whom a value of ICC_SGI1R_EL1 sends which SGI: a bit for each of the first 16 RECs, of which `me` sends (GICv3, ICC_SGI1R_EL1). RECs
/// of other clusters than the first are not there.
pub const fn sgi_targets(value: u64, me: usize) -> (u32, u16) {
    const ALL_OTHERS: u64 = 1 << 40;
    const AFFINITIES: u64 = 0xff << 48 | 0xff << 32 | 0xff << 16;
    let intid = (value >> 24 & 0xf) as u32;
    let targets = if value & ALL_OTHERS != 0 {
        !(1 << me)
    } else if value & AFFINITIES == 0 && value >> 44 & 0xf == 0 {
        value as u16
    } else {
        0
    };
    (intid, targets)
}

/// The registers of a PL011 that has sent everything and received nothing: what a load of that offset gives.
pub const fn pl011_load(offset: u64) -> u64 {
    const FLAGS: u64 = 0x18;
    const RECEIVE_EMPTY: u64 = 1 << 4;
    const SEND_EMPTY: u64 = 1 << 7;
    if offset == FLAGS { RECEIVE_EMPTY | SEND_EMPTY } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_can_be_emulated_tells_its_address_to_the_byte() {
        let esr = EC_DATA_ABORT << 26 | ISV | WNR | 0b000111;
        let expected = Cause::Data { ipa: 0x80_0900_0004, is_store: true, can_be_emulated: true };
        assert_eq!(cause(esr, 4, 0x800_9000 << 4), expected);
    }

    #[test]
    fn an_access_has_its_offset_its_size_and_what_is_stored() {
        let esr = |size: u64| EC_DATA_ABORT << 26 | ISV | size << 22;
        let load = Access::new(esr(3), 0x0900_0008, 0x0900_0000, 7);
        assert_eq!(load, Access { offset: 8, size: 8, store: None });
        let store = Access::new(esr(0) | WNR, 0x0900_0001, 0x0900_0000, 7);
        assert_eq!(store, Access { offset: 1, size: 1, store: Some(7) });
    }

    #[test]
    fn without_isv_only_the_granule_is_known() {
        let esr = EC_DATA_ABORT << 26 | 0b000111;
        let expected = Cause::Data { ipa: 0x8000_0000, is_store: false, can_be_emulated: false };
        assert_eq!(cause(esr | WNR, 0x123, 0x8_0000 << 4), expected);
        assert_eq!(cause(EC_INSTRUCTION_ABORT << 26, 0, 0x8_0000 << 4), Cause::Fetch { ipa: 0x8000_0000 });
    }

    #[test]
    fn a_write_to_the_sgi_register_is_known_whatever_register_it_takes() {
        // By the encoding of `msr icc_sgi1r_el1, x7`: Rt is in bits 9 to 5.
        let esr = EC_SYSTEM_REGISTER << 26 | 1 << 25 | WRITE_SGI1R | 7 << 5;
        assert_eq!(cause(esr, 0, 0), Cause::Sgi);
        assert_eq!(cause(esr | 1, 0, 0), Cause::Other, "a read");
        for (op2, expected) in
            [(1, Cause::Deactivate), (6, Cause::OtherSgi), (7, Cause::OtherSgi), (0, Cause::Other)]
        {
            let other = esr & !(0b111 << 17) | op2 << 17;
            assert_eq!(cause(other, 0, 0), expected, "{op2}");
        }
        assert_eq!(cause(0x16 << 26, 0, 0), Cause::Other);
        assert_eq!(cause(EC_WFX << 26, 0, 0), Cause::Wait);
    }

    #[test]
    fn sgis_go_to_a_list_or_to_all_others() {
        assert_eq!(sgi_targets(5 << 24 | 0b110, 0), (5, 0b110));
        assert_eq!(sgi_targets(1 << 40 | 15 << 24, 2), (15, !0b100));
        assert_eq!(sgi_targets(1 << 16 | 1, 0).1, 0, "another cluster");
    }

    #[test]
    fn the_uart_is_always_ready() {
        assert_eq!(pl011_load(0x18), 0x90);
        assert_eq!(pl011_load(0x30), 0);
    }
}
