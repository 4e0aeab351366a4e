//! Where each member of each structure lies, against offsets copied from the specification's tables.
//!
//! Invariant: every byte of a structure under test is told from its neighbours, so that a member at a wrong place has a wrong value.

use rmm_abi::v1_0::rmi::{
    RmiDataFlags, RmiRealmFlags, RmiRealmParams, RmiRecCreateFlags, RmiRecEnter, RmiRecEnterFlags,
    RmiRecExit, RmiRecMpidr, RmiRecParams, RmiRecRun,
};
use rmm_abi::v1_0::rsi::{RsiHostCall, RsiRealmConfig};
use rmm_abi::v1_0::{
    Granule, RmmMeasurementDescriptorData, RmmMeasurementDescriptorRec, RmmMeasurementDescriptorRipas, bytes,
    doublewords,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `size` bytes without a regularity.
fn pattern(size: u32) -> Vec<u8> {
    let mixed = |index: u32| index.wrapping_mul(0x9e37_79b1) ^ index.wrapping_mul(0x9e37_79b1) >> 15;
    (1..=size).map(|index| (mixed(index).wrapping_mul(0x85eb_ca6b) >> 24) as u8).collect()
}

/// A structure that holds the pattern, and the pattern.
fn sample<T: FromBytes + IntoBytes + KnownLayout + Immutable>(size: u32) -> (T, Vec<u8>) {
    let bytes = pattern(size);
    let value = T::read_from_bytes(&bytes).expect("the size is the specification's");
    assert_eq!(value.as_bytes(), bytes, "nothing is lost, not even what has no name");
    (value, bytes)
}

fn word(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
}

fn words<const N: usize>(bytes: &[u8], offset: usize) -> [u64; N] {
    std::array::from_fn(|index| word(bytes, offset + 8 * index))
}

fn array(bytes: &[u8], offset: usize) -> [u8; 64] {
    bytes[offset..offset + 64].try_into().unwrap()
}

#[test]
fn the_pattern_tells_places_apart() {
    let bytes = pattern(0x1000);
    let words: std::collections::HashSet<_> = bytes.chunks(8).collect();
    assert_eq!(words.len(), 0x200);
    // Members of one byte begin words.
    let numbers: std::collections::HashSet<_> = (0..0x40).step_by(8).map(|offset| bytes[offset]).collect();
    assert_eq!(numbers.len(), 8);
    assert!([0x8, 0x10, 0x18, 0x20, 0x28, 0x30, 0x510, 0x700].iter().all(|&offset| bytes[offset] != 0));
}

#[test]
fn realm_parameters_lie_where_b4_4_12_says() {
    let (params, bytes) = sample::<RmiRealmParams>(0x1000);
    assert_eq!(params.flags, RmiRealmFlags::from_bits_retain(word(&bytes, 0x0)));
    assert_eq!(params.s2sz, bytes[0x8]);
    assert_eq!(params.sve_vl, bytes[0x10]);
    assert_eq!(params.num_bps, bytes[0x18]);
    assert_eq!(params.num_wps, bytes[0x20]);
    assert_eq!(params.pmu_num_ctrs, bytes[0x28]);
    assert_eq!(params.hash_algo, bytes[0x30]);
    assert_eq!(params.rpv, array(&bytes, 0x400));
    assert_eq!(params.vmid, word(&bytes, 0x800) as u16);
    assert_eq!(params.rtt_base, word(&bytes, 0x808));
    assert_eq!(params.rtt_level_start, word(&bytes, 0x810) as i64);
    assert_eq!(params.rtt_num_start, word(&bytes, 0x818) as u32);
}

#[test]
fn rec_parameters_lie_where_b4_4_19_says() {
    let (params, bytes) = sample::<RmiRecParams>(0x1000);
    assert_eq!(params.flags, RmiRecCreateFlags::from_bits_retain(word(&bytes, 0x0)));
    assert_eq!(params.mpidr, RmiRecMpidr::from_bits(word(&bytes, 0x100)));
    assert_eq!(params.pc, word(&bytes, 0x200));
    assert_eq!(params.gprs, words::<8>(&bytes, 0x300));
    assert_eq!(params.num_aux, word(&bytes, 0x800));
    assert_eq!(params.aux, words::<16>(&bytes, 0x808));
}

fn is_rec_enter(enter: &RmiRecEnter, bytes: &[u8]) {
    assert_eq!(enter.flags, RmiRecEnterFlags::from_bits_retain(word(bytes, 0x0)));
    assert_eq!(enter.gprs, words::<31>(bytes, 0x200));
    assert_eq!(enter.gicv3_hcr, word(bytes, 0x300));
    assert_eq!(enter.gicv3_lrs, words::<16>(bytes, 0x308));
}

fn is_rec_exit(exit: &RmiRecExit, bytes: &[u8]) {
    assert_eq!(exit.exit_reason, bytes[0x0]);
    assert_eq!([exit.esr, exit.far, exit.hpfar], words::<3>(bytes, 0x100));
    assert_eq!(exit.gprs, words::<31>(bytes, 0x200));
    assert_eq!(exit.gicv3_hcr, word(bytes, 0x300));
    assert_eq!(exit.gicv3_lrs, words::<16>(bytes, 0x308));
    assert_eq!(exit.gicv3_misr, word(bytes, 0x388));
    assert_eq!(exit.gicv3_vmcr, word(bytes, 0x390));
    assert_eq!([exit.cntp_ctl, exit.cntp_cval, exit.cntv_ctl, exit.cntv_cval], words::<4>(bytes, 0x400));
    assert_eq!([exit.ripas_base, exit.ripas_top], words::<2>(bytes, 0x500));
    assert_eq!(exit.ripas_value, bytes[0x510]);
    assert_eq!(exit.imm, word(bytes, 0x600) as u16);
    assert_eq!(exit.pmu_ovf_status, bytes[0x700]);
}

#[test]
fn rec_entry_and_exit_lie_where_b4_4_14_and_b4_4_16_say() {
    let (enter, bytes) = sample::<RmiRecEnter>(0x800);
    is_rec_enter(&enter, &bytes);
    let (exit, bytes) = sample::<RmiRecExit>(0x800);
    is_rec_exit(&exit, &bytes);
}

#[test]
fn the_exit_follows_the_entry_at_2048() {
    let (run, bytes) = sample::<RmiRecRun>(0x1000);
    is_rec_enter(&run.enter, &bytes[..0x800]);
    is_rec_exit(&run.exit, &bytes[0x800..]);
}

#[test]
fn the_realms_configuration_lies_where_b5_4_5_says() {
    let (config, bytes) = sample::<RsiRealmConfig>(0x1000);
    assert_eq!(config.ipa_width, word(&bytes, 0x0));
    assert_eq!(config.hash_algo, bytes[0x8]);
    assert_eq!(config.rpv, array(&bytes, 0x200));
}

#[test]
fn a_host_call_lies_where_b5_4_3_says_and_within_a_granule() {
    let (call, bytes) = sample::<RsiHostCall>(0x100);
    assert_eq!(call.imm, word(&bytes, 0x0) as u16);
    assert_eq!(call.gprs, words::<31>(&bytes, 0x8));
    assert_eq!((align_of::<RsiHostCall>(), size_of::<RsiHostCall>()), (256, 256));
}

#[test]
fn measurement_descriptors_lie_where_c1_11_to_c1_13_say() {
    let (data, bytes) = sample::<RmmMeasurementDescriptorData>(0x100);
    assert_eq!((data.desc_type, data.len), (bytes[0x0], word(&bytes, 0x8)));
    assert_eq!((data.rim, data.ipa), (array(&bytes, 0x10), word(&bytes, 0x50)));
    assert_eq!(data.flags, RmiDataFlags::from_bits_retain(word(&bytes, 0x58)));
    assert_eq!(data.content, array(&bytes, 0x60));

    let (rec, bytes) = sample::<RmmMeasurementDescriptorRec>(0x100);
    assert_eq!((rec.desc_type, rec.len), (bytes[0x0], word(&bytes, 0x8)));
    assert_eq!((rec.rim, rec.content), (array(&bytes, 0x10), array(&bytes, 0x50)));

    let (ripas, bytes) = sample::<RmmMeasurementDescriptorRipas>(0x100);
    assert_eq!((ripas.desc_type, ripas.len), (bytes[0x0], word(&bytes, 0x8)));
    assert_eq!(ripas.rim, array(&bytes, 0x10));
    assert_eq!((ripas.base, ripas.top), (word(&bytes, 0x50), word(&bytes, 0x58)));
}

/// What is hashed, put together by hand: pairs of an offset and what lies there.
fn assembled(size: usize, parts: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; size];
    for (offset, part) in parts {
        bytes[*offset..offset + part.len()].copy_from_slice(part);
    }
    bytes
}

#[test]
fn a_new_descriptor_has_its_type_its_length_and_zero_elsewhere() {
    let (rim, content) = ([0x11; 64], [0x22; 64]);
    let length = 0x100u64.to_le_bytes();

    let data = RmmMeasurementDescriptorData::new(rim, 0x8000_1000, RmiDataFlags::MEASURE, content);
    let ipa = 0x8000_1000u64.to_le_bytes();
    let expected =
        assembled(0x100, &[(0x8, &length), (0x10, &rim), (0x50, &ipa), (0x58, &[1]), (0x60, &content)]);
    assert_eq!(data.as_bytes(), expected);

    let rec = RmmMeasurementDescriptorRec::new(rim, content);
    let expected = assembled(0x100, &[(0, &[1]), (0x8, &length), (0x10, &rim), (0x50, &content)]);
    assert_eq!(rec.as_bytes(), expected);

    let ripas = RmmMeasurementDescriptorRipas::new(rim, 0x8000_1000, 0x8000_2000);
    let top = 0x8000_2000u64.to_le_bytes();
    let expected = assembled(0x100, &[(0, &[2]), (0x8, &length), (0x10, &rim), (0x50, &ipa), (0x58, &top)]);
    assert_eq!(ripas.as_bytes(), expected);
}

#[test]
fn only_the_measured_parameters_of_a_realm_are_measured() {
    let (params, bytes) = sample::<RmiRealmParams>(0x1000);
    let number = |offset: usize| (offset, &bytes[offset..offset + 1]);
    let numbers = [0x8, 0x10, 0x18, 0x20, 0x28, 0x30].map(number);
    let parts = [&[(0, &bytes[..8])], &numbers[..]].concat();
    assert_eq!(params.measured().as_bytes(), assembled(0x1000, &parts));
}

#[test]
fn only_the_measured_parameters_of_a_rec_are_measured() {
    let (params, bytes) = sample::<RmiRecParams>(0x1000);
    let parts = [(0, &bytes[..8]), (0x200, &bytes[0x200..0x208]), (0x300, &bytes[0x300..0x340])];
    assert_eq!(params.measured().as_bytes(), assembled(0x1000, &parts));
}

#[test]
fn a_zeroed_structure_is_zero() {
    assert!(RmiRecRun::zeroed().as_bytes().iter().all(|&byte| byte == 0));
    assert_eq!(RmiRecRun::zeroed(), RmiRecRun::default());
}

#[test]
fn a_granule_is_one() {
    assert_eq!(size_of::<Granule<RmiRealmParams>>(), 0x1000);
    assert_eq!(align_of::<Granule<RmiRealmParams>>(), 0x1000);
}

#[test]
fn the_first_byte_of_a_measurement_is_the_lowest_of_the_first_register() {
    let measurement = std::array::from_fn(|index| index as u8);
    let registers = doublewords(&measurement);
    assert_eq!(registers[0], 0x0706_0504_0302_0100);
    assert_eq!(registers[7], 0x3f3e_3d3c_3b3a_3938);
    assert_eq!(bytes(&registers), measurement);
}
