//! The failure conditions that input values fulfil by themselves: each of them, by its ID, and that nothing else is refused.
//!
//! Invariant: each refused call differs in one value from one that passes.

use proptest::prelude::*;
use rmm_abi::v1_0::rmi::{
    ICH_HCR_HOST, RmiCommand, RmiRealmFlags, RmiRealmParams, RmiRecEnter, RmiRecParams,
    UnprotectedDescriptor, input,
};
use rmm_abi::v1_0::rsi::{self, RsiCommand};
use rmm_abi::v1_0::{
    FailureCondition, MEASUREMENTS, entry_size, is_granule_aligned, is_level_aligned, is_protected,
    is_range_protected, psci, starting_rtts,
};

type Checked = Result<(), FailureCondition>;

fn check_rmi(command: RmiCommand, x: &[u64]) -> Checked {
    macro_rules! checked {
        ($($name:ident)+) => {
            match command {
                $(RmiCommand::$name => input::$name::from_registers(x.try_into().unwrap()).check(),)+
                RmiCommand::Features | RmiCommand::Version => Ok(()),
            }
        };
    }
    checked! {
        DataCreate DataCreateUnknown DataDestroy GranuleDelegate GranuleUndelegate PsciComplete RealmActivate RealmCreate RealmDestroy
        RecAuxCount RecCreate RecDestroy RecEnter RttCreate RttDestroy RttFold RttInitRipas RttMapUnprotected RttReadEntry RttSetRipas
        RttUnmapUnprotected
    }
}

fn check_rsi(command: RsiCommand, x: &[u64]) -> Checked {
    macro_rules! checked {
        ($($name:ident)+) => {
            match command {
                $(RsiCommand::$name => rsi::input::$name::from_registers(x.try_into().unwrap()).check(),)+
                RsiCommand::AttestationTokenInit | RsiCommand::Features | RsiCommand::Version => Ok(()),
            }
        };
    }
    checked! {
        AttestationTokenContinue HostCall IpaStateGet IpaStateSet MeasurementExtend MeasurementRead RealmConfig
    }
}

const MINUS_1: u64 = -1i64 as u64;
const MINUS_2: u64 = -2i64 as u64;
const DENIED: u64 = -3i64 as u64;

/// A failure condition: its ID, the register that fulfils it (0 is X1), and values that do.
type Spoiled<'s> = (&'s str, usize, &'s [u64]);
/// A command, registers that pass, and the failure conditions.
type Row<'s, C> = (C, &'s [u64], &'s [Spoiled<'s>]);

fn each_is_refused<C: Copy + std::fmt::Debug>(rows: &[Row<C>], check: fn(C, &[u64]) -> Checked) {
    for &(command, good, conditions) in rows {
        assert_eq!(check(command, good), Ok(()), "{command:?}");
        for &(id, register, values) in conditions {
            for &value in values {
                let mut x = good.to_vec();
                x[register] = value;
                assert_eq!(
                    check(command, &x).map_err(|failure| failure.id),
                    Err(id),
                    "{command:?}, {value:#x}"
                );
            }
        }
    }
}

const G: u64 = 0x1000;
const NO_GRANULE: &[u64] = &[0x1001, 0x1800, u64::MAX];
const RD: Spoiled = ("rd_align", 0, NO_GRANULE);

#[test]
fn each_command_of_the_host_is_refused_for_each_condition_of_its_input_values() {
    use RmiCommand::*;
    let entry: &[Spoiled] =
        &[RD, ("level_bound", 2, &[0, MINUS_1, 4, 1 << 32]), ("ipa_align", 1, &[0x20_1000, 0x10_0000])];
    let structure: &[Spoiled] =
        &[RD, ("level_bound", 2, &[MINUS_1, MINUS_2, 4, u64::MAX / 2]), ("ipa_align", 1, &[G, 0x10_0000])];
    let rows: &[Row<_>] = &[
        (
            DataCreate,
            &[G, 2 * G, 3 * G, 4 * G, u64::MAX],
            &[RD, ("data_align", 1, NO_GRANULE), ("ipa_align", 2, NO_GRANULE), ("src_align", 3, NO_GRANULE)],
        ),
        (
            DataCreateUnknown,
            &[G, 2 * G, 3 * G],
            &[RD, ("data_align", 1, NO_GRANULE), ("ipa_align", 2, NO_GRANULE)],
        ),
        (DataDestroy, &[G, 2 * G], &[RD, ("ipa_align", 1, NO_GRANULE)]),
        (Features, &[u64::MAX], &[]),
        (GranuleDelegate, &[G], &[("gran_align", 0, NO_GRANULE)]),
        (GranuleUndelegate, &[G], &[("gran_align", 0, NO_GRANULE)]),
        (
            PsciComplete,
            &[G, 2 * G, DENIED],
            &[
                ("alias", 1, &[G]),
                ("calling_align", 0, NO_GRANULE),
                ("target_align", 1, NO_GRANULE),
                ("status", 2, &[1, MINUS_1, MINUS_2, -4i64 as u64, 2, 1 << 32]),
            ],
        ),
        (PsciComplete, &[G, 2 * G, 0], &[]),
        (RealmActivate, &[G], &[RD]),
        (RealmCreate, &[G, 2 * G], &[RD, ("params_align", 1, NO_GRANULE)]),
        (RealmDestroy, &[G], &[RD]),
        (RecAuxCount, &[G], &[RD]),
        (RecCreate, &[G, 2 * G, 3 * G], &[RD, ("rec_align", 1, NO_GRANULE), ("params_align", 2, NO_GRANULE)]),
        (RecDestroy, &[G], &[("rec_align", 0, NO_GRANULE)]),
        (RecEnter, &[G, 2 * G], &[("rec_align", 0, NO_GRANULE), ("run_align", 1, NO_GRANULE)]),
        (
            RttCreate,
            &[G, 2 * G, 0x20_0000, 3],
            &[
                RD,
                ("rtt_align", 1, NO_GRANULE),
                ("ipa_align", 2, &[G, 0x10_0000]),
                ("level_bound", 3, &[MINUS_1, MINUS_2, 4]),
            ],
        ),
        (RttCreate, &[G, 2 * G, 1 << 48, 0], &[("ipa_align", 2, &[1 << 47])]),
        (RttDestroy, &[G, 0x20_0000, 3], structure),
        (RttFold, &[G, 0x20_0000, 3], structure),
        (RttFold, &[G, 1 << 30, 2], &[("ipa_align", 1, &[0x20_0000])]),
        (
            RttInitRipas,
            &[G, 1, 2 * G],
            &[
                RD,
                ("size_valid", 1, &[2 * G, 3 * G]),
                ("size_valid", 2, &[0, 1]),
                ("top_gran_align", 2, &[2 * G + 1]),
            ],
        ),
        (RttMapUnprotected, &[G, 0x20_0000, 2, u64::MAX], entry),
        (RttMapUnprotected, &[G, 1 << 30, 1, 0], &[]),
        (RttMapUnprotected, &[G, G, 3, 0], &[]),
        (
            RttReadEntry,
            &[G, 0x20_0000, 2],
            &[RD, ("level_bound", 2, &[MINUS_2, 4]), ("ipa_align", 1, &[0x20_1000])],
        ),
        (RttReadEntry, &[G, 0, MINUS_1], &[]),
        (
            RttSetRipas,
            &[G, 2 * G, 1, 2 * G],
            &[
                RD,
                ("rec_align", 1, NO_GRANULE),
                ("size_valid", 2, &[2 * G, 3 * G]),
                ("size_valid", 3, &[0, 1]),
                ("top_gran_align", 3, &[2 * G + 1]),
            ],
        ),
        (RttUnmapUnprotected, &[G, 0x20_0000, 2], entry),
        (Version, &[u64::MAX], &[]),
    ];
    assert!(RmiCommand::ALL.iter().all(|command| rows.iter().any(|row| row.0 == *command)));
    each_is_refused(rows, check_rmi);
}

#[test]
fn each_command_of_the_realm_is_refused_for_each_condition_of_its_input_values() {
    use RsiCommand::*;
    let rows: &[Row<_>] = &[
        (
            AttestationTokenContinue,
            &[G, 0xff0, 0x10],
            &[
                ("addr_align", 0, NO_GRANULE),
                ("offset_bound", 1, &[0x1000, u64::MAX]),
                ("size_overflow", 2, &[u64::MAX, u64::MAX - 0xfef]),
                ("size_bound", 2, &[0x11, u64::MAX - 0xff0]),
            ],
        ),
        (AttestationTokenInit, &[u64::MAX; 8], &[]),
        (Features, &[u64::MAX], &[]),
        (HostCall, &[0x1f00], &[("addr_align", 0, &[0x1f01, 0x1f80, 0x1fff])]),
        (
            IpaStateGet,
            &[G, 2 * G],
            &[("base_align", 0, NO_GRANULE), ("end_align", 1, NO_GRANULE), ("size_valid", 1, &[G, 0])],
        ),
        (
            IpaStateSet,
            &[G, 2 * G, 1, u64::MAX],
            &[
                ("base_align", 0, NO_GRANULE),
                ("top_align", 1, NO_GRANULE),
                ("size_valid", 1, &[G, 0]),
                ("ripas_valid", 2, &[2, 3, 4, 255]),
            ],
        ),
        (IpaStateSet, &[G, 2 * G, 0x100, 0], &[]),
        (
            MeasurementExtend,
            &[1, 64, 0, 0, 0, 0, 0, 0, 0, 0],
            &[("index_bound", 0, &[0, 5, u64::MAX]), ("size_bound", 1, &[65, u64::MAX])],
        ),
        (MeasurementRead, &[4], &[("index_bound", 0, &[5, u64::MAX])]),
        (MeasurementRead, &[0], &[]),
        (RealmConfig, &[G], &[("addr_align", 0, NO_GRANULE)]),
        (Version, &[u64::MAX], &[]),
    ];
    assert!(RsiCommand::ALL.iter().all(|command| rows.iter().any(|row| row.0 == *command)));
    each_is_refused(rows, check_rsi);
    assert_eq!(MEASUREMENTS, 5);
}

#[test]
fn affinity_info_is_of_single_recs_only() {
    assert_eq!(psci::AffinityInfo::from_registers([5, 0]).check(), Ok(()));
    let refused = FailureCondition { id: "target_bound", value: 1 };
    assert_eq!(psci::AffinityInfo::from_registers([5, 1]).check(), Err(refused));
}

#[test]
fn a_rem_is_extended_by_the_bytes_that_count() {
    let mut extend = rsi::input::MeasurementExtend::from_registers([!0; 10]);
    assert_eq!(extend.padded(), [0xff; 64], "also if the size is refused");
    extend.size = 3;
    assert_eq!(extend.padded()[..4], [0xff, 0xff, 0xff, 0]);
    extend.size = 0;
    assert_eq!(extend.padded(), [0; 64]);
}

#[test]
fn an_entry_describes_512_times_what_the_next_level_does() {
    let sizes = [1 << 48, 1 << 39, 1 << 30, 1 << 21, 1 << 12];
    assert!((-1..=3).map(|level| entry_size(level).unwrap()).eq(sizes));
    for level in [i64::MIN, -2, 4, 1 << 32, i64::MAX] {
        assert_eq!(entry_size(level), None);
        assert!(!is_level_aligned(0, level), "nothing is aligned to a level that is not there");
    }
}

#[test]
fn the_lower_half_of_the_ipa_space_is_protected() {
    assert!(is_protected((1 << 39) - 1, 40) && !is_protected(1 << 39, 40));
    assert!(is_protected(u64::MAX >> 1, 64) && !is_protected(1 << 63, 64));
    assert!(is_protected(0, 1) && !is_protected(1, 1) && !is_protected(0, 0));
    assert!(is_protected(u64::MAX, 65));
    assert!(is_range_protected(0, 1 << 39, 40) && !is_range_protected(0, (1 << 39) + 1, 40));
    assert!(!is_range_protected(G, G, 40) && !is_range_protected(2 * G, G, 40));
}

/// By the definition of a walk: the tables of the starting level are as many as their entries need, and fewer would not do.
#[test]
fn starting_rtts_are_as_many_as_the_ipa_space_needs() {
    for lpa2 in [false, true] {
        for level in -1..=3 {
            for width in 0..=70 {
                let bits_below = 12 + 9 * (3 - level) as u32;
                let entries = 1u128.checked_shl(width).unwrap().checked_shr(bits_below).unwrap_or(0);
                let tables = entries.div_ceil(512);
                let most = match (level, lpa2) {
                    (1..=3, _) | (0, true) => 16,
                    (0, false) | (-1, true) => 1,
                    // Level -1 is there with LPA2 only.
                    _ => 0,
                };
                let fits = width <= if lpa2 { 52 } else { 48 };
                let is_valid = fits && entries >= 2 && tables <= most;
                let expected = is_valid.then_some(tables as u32);
                assert_eq!(
                    starting_rtts(width, level, lpa2),
                    expected,
                    "{width} bits from level {level}, {lpa2}"
                );
            }
        }
    }
    for level in [i64::MIN, -2, 4, i64::MAX] {
        assert_eq!(starting_rtts(40, level, true), None);
    }
    assert_eq!(starting_rtts(40, 1, false), Some(2));
    assert_eq!(starting_rtts(33, 1, false), Some(1));
    assert_eq!(starting_rtts(48, 0, false), Some(1));
    assert_eq!(starting_rtts(52, -1, true), Some(1));
    assert_eq!(starting_rtts(52, 0, true), Some(16));
}

fn realm() -> RmiRealmParams {
    let mut params = RmiRealmParams::zeroed();
    (params.s2sz, params.rtt_level_start, params.rtt_num_start) = (40, 1, 2);
    params.rtt_base = 0x10_2000;
    params
}

#[test]
fn a_realm_is_refused_for_each_condition_of_its_parameters() {
    let id = |change: fn(&mut RmiRealmParams), rd| {
        let mut params = realm();
        change(&mut params);
        params.check(rd).map_err(|failure| failure.id)
    };
    assert_eq!(id(|_| {}, G), Ok(()));
    assert_eq!(id(|params| params.hash_algo = 2, G), Err("params_valid"));
    assert_eq!(id(|params| params.rtt_num_start = 1, G), Err("rtt_num_level"));
    assert_eq!(id(|params| params.rtt_num_start = 0, G), Err("rtt_num_level"));
    assert_eq!(id(|params| params.rtt_level_start = -1, G), Err("rtt_num_level"));
    assert_eq!(id(|params| params.s2sz = 255, G), Err("rtt_num_level"));
    assert_eq!(id(|params| params.rtt_base = 0x10_1000, G), Err("rtt_align"));
    assert_eq!(id(|params| params.rtt_base = !0, G), Err("rtt_align"));
    assert_eq!(id(|_| {}, 0x10_2000), Err("alias"));
    assert_eq!(id(|_| {}, 0x10_3000), Err("alias"));
    assert_eq!(id(|_| {}, 0x10_4000), Ok(()));
    assert_eq!(id(|params| params.rtt_base = !0x1fff, !0xfff), Err("alias"));
    let at_level_minus_1 = |params: &mut RmiRealmParams| {
        params.flags = RmiRealmFlags::LPA2;
        (params.s2sz, params.rtt_level_start, params.rtt_num_start) = (52, -1, 1);
    };
    assert_eq!(id(at_level_minus_1, G), Ok(()));
}

#[test]
fn a_rec_is_refused_for_each_condition_of_its_auxiliary_granules() {
    let id = |change: fn(&mut RmiRecParams), count| {
        let mut params = RmiRecParams::zeroed();
        params.num_aux = 3;
        params.aux[..4].copy_from_slice(&[2 * G, 3 * G, 4 * G, 1]);
        change(&mut params);
        params.check(G, count).map_err(|failure| failure.id)
    };
    assert_eq!(id(|_| {}, 3), Ok(()), "what lies behind is not looked at");
    assert_eq!(id(|_| {}, 2), Err("num_aux"));
    assert_eq!(id(|params| params.num_aux = 17, 17), Err("num_aux"));
    assert_eq!(id(|params| params.num_aux = u64::MAX, u64::MAX), Err("num_aux"));
    assert_eq!(id(|params| params.num_aux = 4, 4), Err("aux_align"));
    assert_eq!(id(|params| params.aux[2] = 2 * G, 3), Err("aux_alias"));
    assert_eq!(id(|params| params.aux[1] = G, 3), Err("aux_alias"), "with the REC");
    assert_eq!(id(|params| params.num_aux = 0, 0), Ok(()));
}

#[test]
fn a_rec_is_not_entered_with_a_gic_that_is_not_the_hosts() {
    assert_eq!(ICH_HCR_HOST, 0x40fe);
    let enter = |hcr, lr3| {
        let mut enter = RmiRecEnter::zeroed();
        enter.gicv3_hcr = hcr;
        enter.gicv3_lrs[3] = lr3;
        enter
    };
    assert_eq!(enter(ICH_HCR_HOST, !(1 << 61)).check(4), Ok(()));
    for bit in (0..64).filter(|bit| ICH_HCR_HOST >> bit & 1 == 0) {
        let refused = FailureCondition { id: "rec_gicv3", value: 1 << bit };
        assert_eq!(enter(1 << bit, 0).check(4), Err(refused));
    }
    assert_eq!(enter(0, 1 << 61).check(4), Err(FailureCondition { id: "rec_gicv3", value: 1 << 61 }));
    assert_eq!(enter(0, 1 << 61).check(3), Ok(()), "the GIC has no such list register");
    assert_eq!(enter(0, 0).check(usize::MAX), Ok(()));
}

#[test]
fn an_unprotected_descriptor_holds_address_memattr_and_s2ap_only() {
    for lpa2 in [false, true] {
        let host_controlled: u64 = if lpa2 { 0x3_ffff_ffff_f3dc } else { 0xffff_ffff_f0dc };
        for bit in 0..64 {
            // MemAttr[2] alone is the reserved encoding.
            let expected = host_controlled >> bit & 1 == 1 && bit != 4;
            assert_eq!(UnprotectedDescriptor(1 << bit).is_valid(lpa2), expected, "bit {bit}, {lpa2}");
        }
    }
    for mem_attr in 0..8 {
        assert_eq!(UnprotectedDescriptor(0x8000_0000 | mem_attr << 2).is_valid(false), mem_attr != 0b100);
    }
}

#[test]
fn an_unprotected_mapping_is_aligned_to_its_level() {
    let map = |desc: UnprotectedDescriptor, level| {
        let values = input::RttMapUnprotected { rd: G, ipa: 0, level, desc };
        values.check_descriptor(false).map_err(|failure| failure.id)
    };
    let attributes = 0b101 << 2 | 0b11 << 6;
    assert_eq!(map(UnprotectedDescriptor::new(0x8020_0000, attributes, false), 2), Ok(()));
    assert_eq!(map(UnprotectedDescriptor::new(0x8020_1000, attributes, false), 3), Ok(()));
    assert_eq!(map(UnprotectedDescriptor::new(0x8020_1000, attributes, false), 2), Err("addr_align"));
    assert_eq!(map(UnprotectedDescriptor(0x8020_0001), 2), Err("attr_valid"));
    assert_eq!(map(UnprotectedDescriptor(1 << 48), 3), Err("attr_valid"), "no address without LPA2");
}

proptest! {
    #[test]
    fn any_registers_are_judged(registers: [u64; 10]) {
        for &command in RmiCommand::ALL {
            let _ = check_rmi(command, &registers[..command.inputs()]);
        }
        for &command in RsiCommand::ALL {
            let _ = check_rsi(command, &registers[..command.inputs()]);
        }
    }

    #[test]
    fn an_output_address_comes_out_as_it_went_in(address: u64, attributes: u64, lpa2: bool) {
        let desc = UnprotectedDescriptor::new(address, attributes, lpa2);
        let bits = if lpa2 { 52 } else { 48 };
        prop_assert_eq!(desc.address(lpa2), address & ((1 << bits) - 0x1000));
        prop_assert_eq!(desc.is_valid(lpa2), attributes >> 2 & 7 != 0b100);
    }

    #[test]
    fn alignment_to_level_3_is_alignment_to_a_granule(address: u64) {
        prop_assert_eq!(is_granule_aligned(address), is_level_aligned(address, 3));
        prop_assert_eq!(is_granule_aligned(address), address & 0xfff == 0);
    }
}
