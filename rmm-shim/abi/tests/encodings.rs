//! Encodings and back: everything that has one, and that everything else is refused.
//!
//! Invariant: enumerations are gone through whole; words of 64 bits are drawn at random beside the values that stand in the specification.

use proptest::prelude::*;
use rmm_abi::v1_0::psci::PsciReturnCode;
use rmm_abi::v1_0::rmi::{
    RmiDataFlags, RmiFeatureRegister0, RmiHashAlgorithm, RmiPmuOverflowStatus, RmiRealmFlags,
    RmiRecCreateFlags, RmiRecEnterFlags, RmiRecExitReason, RmiRecMpidr, RmiResponse, RmiRipas,
    RmiRttEntryState, RmiStatus, RmiStatusCode,
};
use rmm_abi::v1_0::rsi::{RsiHashAlgorithm, RsiResponse, RsiRipas, RsiRipasChangeFlags, RsiStatus};
use rmm_abi::v1_0::{NOT_SUPPORTED, RmmHipas, RmmRipas, RmmRttEntryState, VERSION};
use rmm_abi::{Negotiated, Unknown, Version, negotiate};

/// An enumeration has the values of its table, `from`, and no other.
macro_rules! is_enumeration {
    ($name:ident: $from:expr, [$($value:ident),+]) => {
        let table = [$($name::$value),+];
        assert_eq!($name::ALL, table);
        for bits in $from - 3..=255 {
            let expected = usize::try_from(bits - $from).ok().and_then(|index| table.get(index));
            let decoded = $name::from_bits(bits as _);
            assert_eq!(decoded.ok().as_ref(), expected, "{bits}");
            match decoded {
                Ok(value) => assert_eq!(value.bits(), bits as _),
                Err(unknown) => assert_eq!(unknown, Unknown((bits as i64 as u64) & !0 >> $name::UNUSED)),
            }
        }
    };
}

/// How many of 64 bits an enumeration has not.
trait Width {
    const UNUSED: u32;
}
macro_rules! widths {
    ($($unused:literal: $($name:ident)+;)+) => {$($(impl Width for $name { const UNUSED: u32 = $unused; })+)+};
}
widths! {
    56: RmiStatusCode RmiHashAlgorithm RmiRipas RmiRttEntryState RmiRecExitReason RmiPmuOverflowStatus RmiResponse RsiHashAlgorithm
        RsiRipas RsiResponse;
    0: RsiStatus PsciReturnCode;
}

#[test]
fn enumerations_have_the_encodings_of_the_specification_and_no_other() {
    is_enumeration!(RmiStatusCode: 0i32, [Success, ErrorInput, ErrorRealm, ErrorRec, ErrorRtt]);
    is_enumeration!(RmiHashAlgorithm: 0i32, [Sha256, Sha512]);
    is_enumeration!(RmiRipas: 0i32, [Empty, Ram, Destroyed]);
    is_enumeration!(RmiRttEntryState: 0i32, [Unassigned, Assigned, Table]);
    is_enumeration!(RmiRecExitReason: 0i32, [Sync, Irq, Fiq, Psci, RipasChange, HostCall, Serror]);
    is_enumeration!(RmiPmuOverflowStatus: 0i32, [NotActive, Active]);
    is_enumeration!(RmiResponse: 0i32, [Accept, Reject]);
    is_enumeration!(RsiStatus: 0i32, [Success, ErrorInput, ErrorState, Incomplete, ErrorUnknown]);
    is_enumeration!(RsiHashAlgorithm: 0i32, [Sha256, Sha512]);
    is_enumeration!(RsiRipas: 0i32, [Empty, Ram, Destroyed, Dev]);
    is_enumeration!(RsiResponse: 0i32, [Accept, Reject]);
    is_enumeration!(PsciReturnCode: -9i32, [
        InvalidAddress, Disabled, NotPresent, InternalFailure, OnPending, AlreadyOn, Denied, InvalidParameters,
        NotSupported, Success, Off
    ]);
    assert_eq!(PsciReturnCode::Denied.to_register(), 0xffff_ffff_ffff_fffd);
}

#[test]
fn a_status_has_an_index_only_where_the_specification_gives_it_one() {
    for bits in 0..=0xffff {
        let (code, index) = (bits as u8, (bits >> 8) as u8);
        let expected = match (code, index) {
            (0, 0) => Some(RmiStatus::Success),
            (1, 0) => Some(RmiStatus::ErrorInput),
            (2, _) => Some(RmiStatus::ErrorRealm(index)),
            (3, 0) => Some(RmiStatus::ErrorRec),
            (4, _) => Some(RmiStatus::ErrorRtt(index)),
            _ => None,
        };
        let decoded = RmiStatus::from_bits(bits);
        assert_eq!(decoded, expected.ok_or(Unknown(bits)));
        if let Ok(status) = decoded {
            assert_eq!((status.bits(), status.index()), (bits, index));
            assert_eq!(status.code().bits(), code);
        }
    }
}

#[test]
fn the_index_of_an_rtt_error_is_the_level() {
    assert_eq!(RmiStatus::rtt(2).bits(), 0x204);
    assert_eq!(RmiStatus::rtt(-1).bits(), 0xff04);
}

#[test]
fn what_no_interface_answers_is_no_status() {
    assert!(RmiStatus::from_bits(NOT_SUPPORTED).is_err());
    assert!(RsiStatus::from_bits(NOT_SUPPORTED).is_err());
    assert!(Version::from_bits(NOT_SUPPORTED).is_err());
}

/// The table of chapter B2: what is spoken, what is requested, whether that succeeds, lower, higher.
#[test]
fn versions_are_negotiated_as_in_the_table_of_b2() {
    type Pair = (u16, u16);
    let table: [(&[Pair], Pair, bool, Pair, Pair); 15] = [
        (&[(1, 0)], (1, 0), true, (1, 0), (1, 0)),
        (&[(1, 0), (1, 1)], (1, 0), true, (1, 0), (1, 1)),
        (&[(1, 0), (2, 0)], (1, 0), true, (1, 0), (2, 0)),
        (&[(1, 0)], (1, 1), false, (1, 0), (1, 0)),
        (&[(1, 0), (1, 1)], (1, 2), false, (1, 1), (1, 1)),
        (&[(1, 0), (1, 1)], (2, 0), false, (1, 1), (1, 1)),
        (&[(1, 0), (1, 1), (1, 3)], (1, 2), false, (1, 1), (1, 3)),
        (&[(1, 0)], (2, 0), false, (1, 0), (1, 0)),
        (&[(1, 0)], (2, 1), false, (1, 0), (1, 0)),
        (&[(1, 0), (1, 1)], (2, 0), false, (1, 1), (1, 1)),
        (&[(1, 0), (1, 1)], (2, 1), false, (1, 1), (1, 1)),
        (&[(1, 0), (1, 1), (2, 0)], (2, 1), false, (2, 0), (2, 0)),
        (&[(2, 0)], (1, 0), false, (2, 0), (2, 0)),
        (&[(2, 0)], (1, 1), false, (2, 0), (2, 0)),
        (&[(2, 0), (2, 1)], (1, 0), false, (2, 1), (2, 1)),
    ];
    let version = |(major, minor): Pair| Version { major, minor };
    for (spoken, requested, success, lower, higher) in table {
        let spoken: Vec<_> = spoken.iter().copied().map(version).collect();
        let expected = Negotiated { success, lower: version(lower), higher: version(higher) };
        assert_eq!(negotiate(&spoken, version(requested).bits()), Some(expected), "{requested:?}");
    }
}

#[test]
fn a_request_with_reserved_bits_is_refused() {
    let answer = negotiate(&[VERSION], VERSION.bits() | 1 << 31).unwrap();
    assert_eq!(answer, Negotiated { success: false, lower: VERSION, higher: VERSION });
    assert_eq!(negotiate(&[], VERSION.bits()), None);
}

#[test]
fn this_is_version_1_0() {
    assert_eq!(VERSION.bits(), 0x1_0000);
}

#[test]
fn flags_lie_at_the_bits_of_the_specification() {
    assert_eq!(RmiDataFlags::MEASURE.bits(), 1);
    assert_eq!(
        [RmiRealmFlags::LPA2, RmiRealmFlags::SVE, RmiRealmFlags::PMU].map(|flag| flag.bits()),
        [1, 2, 4]
    );
    assert_eq!(RmiRecCreateFlags::RUNNABLE.bits(), 1);
    assert_eq!(RmiRecEnterFlags::EMUL_MMIO.bits(), 1);
    assert_eq!(RmiRecEnterFlags::INJECT_SEA.bits(), 2);
    assert_eq!(RmiRecEnterFlags::TRAP_WFI.bits(), 4);
    assert_eq!(RmiRecEnterFlags::TRAP_WFE.bits(), 8);
    assert_eq!(RmiRecEnterFlags::RIPAS_RESPONSE.bits(), 16);
    assert_eq!(RsiRipasChangeFlags::CHANGE_DESTROYED.bits(), 1);
}

#[test]
fn reserved_flags_are_kept_and_seen() {
    let flags = RmiRealmFlags::from_bits_retain(0b1001);
    assert!(bitflags::Flags::contains_unknown_bits(&flags));
    assert_eq!(flags.bits(), 0b1001);
    assert_eq!(RmiRealmFlags::from_bits(0b1001), None);
    assert_eq!(RmiRealmFlags::all().bits(), 0b111);
    assert_eq!(RmiRecEnterFlags::all().bits(), 0b1_1111);
}

#[test]
fn the_hosts_answer_to_a_ripas_change_is_a_flag() {
    assert_eq!(RmiRecEnterFlags::empty().ripas_response(), RmiResponse::Accept);
    assert_eq!(RmiRecEnterFlags::RIPAS_RESPONSE.ripas_response(), RmiResponse::Reject);
}

/// Name, lowest bit, width, and how to read and write it.
type Field = (
    &'static str,
    u32,
    u32,
    fn(RmiFeatureRegister0) -> u64,
    fn(RmiFeatureRegister0, u64) -> RmiFeatureRegister0,
);

/// B4.4.6.
const FEATURES: [Field; 12] = [
    ("S2SZ", 0, 8, RmiFeatureRegister0::s2sz, RmiFeatureRegister0::with_s2sz),
    ("LPA2", 8, 1, RmiFeatureRegister0::lpa2, RmiFeatureRegister0::with_lpa2),
    ("SVE_EN", 9, 1, RmiFeatureRegister0::sve_en, RmiFeatureRegister0::with_sve_en),
    ("SVE_VL", 10, 4, RmiFeatureRegister0::sve_vl, RmiFeatureRegister0::with_sve_vl),
    ("NUM_BPS", 14, 6, RmiFeatureRegister0::num_bps, RmiFeatureRegister0::with_num_bps),
    ("NUM_WPS", 20, 6, RmiFeatureRegister0::num_wps, RmiFeatureRegister0::with_num_wps),
    ("PMU_EN", 26, 1, RmiFeatureRegister0::pmu_en, RmiFeatureRegister0::with_pmu_en),
    ("PMU_NUM_CTRS", 27, 5, RmiFeatureRegister0::pmu_num_ctrs, RmiFeatureRegister0::with_pmu_num_ctrs),
    ("HASH_SHA_256", 32, 1, RmiFeatureRegister0::hash_sha_256, RmiFeatureRegister0::with_hash_sha_256),
    ("HASH_SHA_512", 33, 1, RmiFeatureRegister0::hash_sha_512, RmiFeatureRegister0::with_hash_sha_512),
    ("GICV3_NUM_LRS", 34, 4, RmiFeatureRegister0::gicv3_num_lrs, RmiFeatureRegister0::with_gicv3_num_lrs),
    ("MAX_RECS_ORDER", 38, 4, RmiFeatureRegister0::max_recs_order, RmiFeatureRegister0::with_max_recs_order),
];

#[test]
fn the_feature_register_ends_at_bit_41() {
    assert_eq!(RmiFeatureRegister0::DEFINED, (1 << 42) - 1);
    assert_eq!(RmiFeatureRegister0::from_bits(!0).reserved(), !0 << 42);
}

#[test]
fn an_mpidr_is_its_rec_index_with_a_gap() {
    for (index, mpidr) in
        [(0, 0), (1, 1), (15, 15), (16, 0x100), (4095, 0xff0f), (4096, 0x1_0000), (0x10_0000, 0x100_0000)]
    {
        assert_eq!(RmiRecMpidr::from_index(index).bits(), mpidr, "{index}");
        assert_eq!(RmiRecMpidr::from_bits(mpidr).index(), index);
    }
    assert_eq!(RmiRecMpidr::from_bits(0xf0).index(), 0, "Aff0[7:4] is no part of it");
    assert_eq!(RmiRecMpidr::from_bits(0x1_8000_00f0).reserved(), 0x1_0000_00f0);
}

#[test]
fn states_are_told_to_the_host_as_in_b3_49_and_b3_61() {
    use RmmRttEntryState::{Entry, Table};
    let states =
        [RmmHipas::Assigned, RmmHipas::AssignedNs, RmmHipas::Unassigned, RmmHipas::UnassignedNs].map(Entry);
    assert_eq!(states.map(|state| state.to_rmi().bits()), [1, 1, 0, 0]);
    assert_eq!(states.map(RmmRttEntryState::is_live), [true, true, false, false]);
    assert_eq!((Table.to_rmi(), Table.is_live()), (RmiRttEntryState::Table, true));
    let ripas = [RmmRipas::Empty, RmmRipas::Ram, RmmRipas::Destroyed, RmmRipas::Dev];
    assert_eq!(ripas.map(|ripas| ripas.to_rmi().map(RmiRipas::bits)), [Some(0), Some(1), Some(2), None]);
    assert_eq!(ripas.map(|ripas| ripas.to_rsi().bits()), [0, 1, 2, 3]);
}

proptest! {
    #[test]
    fn a_status_with_a_bit_above_its_index_is_refused(bits in 0x1_0000u64..) {
        prop_assert_eq!(RmiStatus::from_bits(bits), Err(Unknown(bits)));
    }

    #[test]
    fn a_status_of_the_realms_interface_has_no_bit_above(bits in 5u64..) {
        prop_assert_eq!(RsiStatus::from_bits(bits), Err(Unknown(bits)));
    }

    #[test]
    fn versions_come_out_as_they_went_in(major in 0u16..0x8000, minor: u16, reserved in 1u64..1 << 33) {
        let version = Version { major, minor };
        prop_assert_eq!(Version::from_bits(version.bits()), Ok(version));
        let bits = version.bits() | reserved << 31;
        prop_assert_eq!(Version::from_bits(bits), Err(Unknown(bits)));
    }

    #[test]
    fn versions_compare_as_their_encodings(a in 0u64..1 << 31, b in 0u64..1 << 31) {
        let (left, right) = (Version::from_bits(a).unwrap(), Version::from_bits(b).unwrap());
        prop_assert_eq!(left.cmp(&right), a.cmp(&b));
    }

    #[test]
    fn a_field_of_the_feature_register_is_its_bits_and_changes_no_other(bits: u64, value: u64) {
        let register = RmiFeatureRegister0::from_bits(bits);
        for (name, low, width, get, with) in FEATURES {
            let mask = (1u64 << width) - 1;
            prop_assert_eq!(get(register), bits >> low & mask, "{}", name);
            let written = with(register, value);
            prop_assert_eq!(get(written), value & mask, "{}", name);
            prop_assert_eq!((written.bits() ^ bits) & !(mask << low), 0, "{}", name);
        }
    }

    #[test]
    fn a_rec_index_comes_out_as_it_went_in(index in 0u64..1 << 28) {
        let mpidr = RmiRecMpidr::from_index(index);
        prop_assert_eq!(mpidr.index(), index);
        prop_assert_eq!(mpidr.reserved(), 0);
    }
}
