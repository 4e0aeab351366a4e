//! The function identifiers and registers of each command, against tables copied from the specification's sections.
//!
//! Invariant: what is not in a table is refused.

use rmm_abi::Unknown;
use rmm_abi::v1_0::psci::{self, PsciCommand};
use rmm_abi::v1_0::rmi::{self, RmiCommand};
use rmm_abi::v1_0::rsi::{self, RsiCommand};
use rmm_abi::v1_0::split_sve_hint;

/// Name, function identifier, input values after X0, output values after X0.
type Row = (&'static str, u32, usize, usize);

/// B4.3.1 to B4.3.23.
const RMI: [Row; 23] = [
    ("RMI_DATA_CREATE", 0xc4000153, 5, 0),
    ("RMI_DATA_CREATE_UNKNOWN", 0xc4000154, 3, 0),
    ("RMI_DATA_DESTROY", 0xc4000155, 2, 2),
    ("RMI_FEATURES", 0xc4000165, 1, 1),
    ("RMI_GRANULE_DELEGATE", 0xc4000151, 1, 0),
    ("RMI_GRANULE_UNDELEGATE", 0xc4000152, 1, 0),
    ("RMI_PSCI_COMPLETE", 0xc4000164, 3, 0),
    ("RMI_REALM_ACTIVATE", 0xc4000157, 1, 0),
    ("RMI_REALM_CREATE", 0xc4000158, 2, 0),
    ("RMI_REALM_DESTROY", 0xc4000159, 1, 0),
    ("RMI_REC_AUX_COUNT", 0xc4000167, 1, 1),
    ("RMI_REC_CREATE", 0xc400015a, 3, 0),
    ("RMI_REC_DESTROY", 0xc400015b, 1, 0),
    ("RMI_REC_ENTER", 0xc400015c, 2, 0),
    ("RMI_RTT_CREATE", 0xc400015d, 4, 0),
    ("RMI_RTT_DESTROY", 0xc400015e, 3, 2),
    ("RMI_RTT_FOLD", 0xc4000166, 3, 1),
    ("RMI_RTT_INIT_RIPAS", 0xc4000168, 3, 1),
    ("RMI_RTT_MAP_UNPROTECTED", 0xc400015f, 4, 0),
    ("RMI_RTT_READ_ENTRY", 0xc4000161, 3, 4),
    ("RMI_RTT_SET_RIPAS", 0xc4000169, 4, 1),
    ("RMI_RTT_UNMAP_UNPROTECTED", 0xc4000162, 3, 1),
    ("RMI_VERSION", 0xc4000150, 1, 2),
];

/// B5.3.1 to B5.3.10.
const RSI: [Row; 10] = [
    ("RSI_ATTESTATION_TOKEN_CONTINUE", 0xc4000195, 3, 1),
    ("RSI_ATTESTATION_TOKEN_INIT", 0xc4000194, 8, 1),
    ("RSI_FEATURES", 0xc4000191, 1, 1),
    ("RSI_HOST_CALL", 0xc4000199, 1, 0),
    ("RSI_IPA_STATE_GET", 0xc4000198, 2, 2),
    ("RSI_IPA_STATE_SET", 0xc4000197, 4, 2),
    ("RSI_MEASUREMENT_EXTEND", 0xc4000193, 10, 0),
    ("RSI_MEASUREMENT_READ", 0xc4000192, 1, 8),
    ("RSI_REALM_CONFIG", 0xc4000196, 1, 0),
    ("RSI_VERSION", 0xc4000190, 1, 2),
];

/// B6.3.1 to B6.3.8.
const PSCI: [Row; 8] = [
    ("PSCI_AFFINITY_INFO", 0xc4000004, 2, 0),
    ("PSCI_CPU_OFF", 0x84000002, 0, 0),
    ("PSCI_CPU_ON", 0xc4000003, 3, 0),
    ("PSCI_CPU_SUSPEND", 0xc4000001, 3, 0),
    ("PSCI_FEATURES", 0x8400000a, 1, 0),
    ("PSCI_SYSTEM_OFF", 0x84000008, 0, 0),
    ("PSCI_SYSTEM_RESET", 0x84000009, 0, 0),
    ("PSCI_VERSION", 0x84000000, 0, 0),
];

/// All identifiers that are near one of these.
fn fids() -> impl Iterator<Item = u32> {
    [0u32, 0x8000_0000, 0x8400_0000, 0x8600_0000, 0xc400_0000, 0xc600_0000, 0xffff_0000]
        .into_iter()
        .flat_map(|owner| (0..=0xffff).map(move |number| owner | number))
}

macro_rules! is_table {
    ($commands:ident, $table:ident) => {
        let rows = $commands::ALL.iter().map(|c| (c.name(), c.fid(), c.inputs(), c.outputs()));
        assert!(rows.eq($table));
        for fid in fids() {
            let named = $table.iter().find(|row| row.1 == fid).map(|row| row.0);
            let decoded = $commands::from_fid(fid);
            assert_eq!(decoded.ok().map($commands::name), named, "{fid:#x}");
            if named.is_none() {
                assert_eq!(decoded, Err(Unknown(fid.into())));
            }
        }
    };
}

#[test]
fn the_host_has_the_23_commands_of_the_specification_and_no_other() {
    is_table!(RmiCommand, RMI);
}

#[test]
fn the_realm_has_the_10_commands_of_the_specification_and_no_other() {
    is_table!(RsiCommand, RSI);
}

#[test]
fn the_realm_has_the_8_psci_functions_of_the_specification_and_no_other() {
    is_table!(PsciCommand, PSCI);
}

#[test]
fn no_identifier_is_two_commands() {
    let all: std::collections::HashSet<u32> =
        RMI.iter().chain(&RSI).chain(&PSCI).map(|(_, fid, ..)| *fid).collect();
    assert_eq!(all.len(), 23 + 10 + 8);
}

#[test]
fn the_hint_about_sve_is_no_part_of_an_identifier() {
    assert_eq!(split_sve_hint(0xc401_0150), (0xc400_0150, true));
    assert_eq!(split_sve_hint(0xc400_0150), (0xc400_0150, false));
    assert!(RmiCommand::from_fid(0xc401_0150).is_err());
}

#[test]
fn psci_calls_that_name_a_rec_are_completed_by_the_host() {
    let names = |is: fn(PsciCommand) -> bool| -> Vec<_> {
        PsciCommand::ALL.iter().filter(|command| is(**command)).map(|command| command.name()).collect()
    };
    assert_eq!(names(PsciCommand::needs_completion), ["PSCI_AFFINITY_INFO", "PSCI_CPU_ON"]);
    assert_eq!(names(|command| !command.exits()), ["PSCI_FEATURES", "PSCI_VERSION"]);
}

/// Registers that cannot be taken for each other.
fn distinct<const N: usize>() -> [u64; N] {
    std::array::from_fn(|index| 0x0123_4567_89ab_cd00 + 1 + index as u64)
}

/// Asserts the members of a command's values in the order of their registers, and that its registers come out as they went in.
macro_rules! order {
    ($($interface:ident::$side:ident::$name:ident: $($field:ident),+;)+) => {$({
        let registers = distinct();
        let values = $interface::$side::$name::from_registers(registers);
        assert_eq!([$(u64::from(values.$field)),+], registers, stringify!($name));
        assert_eq!(values.to_registers(), registers, stringify!($name));
    })+};
}

#[test]
fn input_values_of_the_host_come_in_the_order_of_the_specification() {
    order! {
        rmi::input::DataCreateUnknown: rd, data, ipa;
        rmi::input::DataDestroy: rd, ipa;
        rmi::input::Features: index;
        rmi::input::GranuleDelegate: addr;
        rmi::input::GranuleUndelegate: addr;
        rmi::input::RealmActivate: rd;
        rmi::input::RealmCreate: rd, params_ptr;
        rmi::input::RealmDestroy: rd;
        rmi::input::RecAuxCount: rd;
        rmi::input::RecCreate: rd, rec, params_ptr;
        rmi::input::RecDestroy: rec_ptr;
        rmi::input::RecEnter: rec, run_ptr;
        rmi::input::RttInitRipas: rd, base, top;
        rmi::input::RttSetRipas: rd, rec_ptr, base, top;
        rmi::input::Version: req;
    }
    let data = rmi::input::DataCreate::from_registers([1, 2, 3, 4, 5]);
    assert_eq!((data.rd, data.data, data.ipa, data.src, data.flags.bits()), (1, 2, 3, 4, 5));
    assert_eq!(data.to_registers(), [1, 2, 3, 4, 5]);
    let psci = rmi::input::PsciComplete::from_registers([1, 2, -3i64 as u64]);
    assert_eq!((psci.calling_rec, psci.target_rec, psci.status), (1, 2, -3));
    assert_eq!(psci.to_registers(), [1, 2, -3i64 as u64]);
    let level = -1i64 as u64;
    let create = rmi::input::RttCreate::from_registers([1, 2, 3, level]);
    assert_eq!((create.rd, create.rtt, create.ipa, create.level), (1, 2, 3, -1));
    assert_eq!(create.to_registers(), [1, 2, 3, level]);
    let map = rmi::input::RttMapUnprotected::from_registers([1, 2, level, 4]);
    assert_eq!((map.rd, map.ipa, map.level, map.desc.0), (1, 2, -1, 4));
    assert_eq!(map.to_registers(), [1, 2, level, 4]);
    macro_rules! entries {
        ($($name:ident)+) => {$(
            let entry = rmi::input::$name::from_registers([1, 2, level]);
            assert_eq!((entry.rd, entry.ipa, entry.level), (1, 2, -1));
            assert_eq!(entry.to_registers(), [1, 2, level]);
        )+};
    }
    entries!(RttDestroy RttFold RttReadEntry RttUnmapUnprotected);
}

#[test]
fn output_values_for_the_host_come_in_the_order_of_the_specification() {
    order! {
        rmi::output::DataDestroy: data, top;
        rmi::output::Features: value;
        rmi::output::RecAuxCount: aux_count;
        rmi::output::RttDestroy: rtt, top;
        rmi::output::RttFold: rtt;
        rmi::output::RttInitRipas: out_top;
        rmi::output::RttSetRipas: out_top;
        rmi::output::RttUnmapUnprotected: top;
    }
    let entry = rmi::output::RttReadEntry::from_registers([3, 0x101, 0x8000_0000, 0x302]);
    assert_eq!((entry.walk_level, entry.state, entry.desc.0, entry.ripas), (3, 1, 0x8000_0000, 2));
    assert_eq!(entry.to_registers(), [3, 1, 0x8000_0000, 2], "X2[63:8] and X4[63:8] are zero");
    let version = rmi::output::Version::from_registers([0x1_0000, 0x2_0003]);
    assert_eq!((version.lower.major, version.lower.minor), (1, 0));
    assert_eq!((version.higher.major, version.higher.minor), (2, 3));
    assert_eq!(version.to_registers(), [0x1_0000, 0x2_0003]);
}

#[test]
fn values_of_the_realm_come_in_the_order_of_the_specification() {
    order! {
        rsi::input::AttestationTokenContinue: addr, offset, size;
        rsi::input::Features: index;
        rsi::input::HostCall: addr;
        rsi::input::IpaStateGet: base, top;
        rsi::input::MeasurementRead: index;
        rsi::input::RealmConfig: addr;
        rsi::input::Version: req;
        rsi::output::AttestationTokenContinue: len;
        rsi::output::AttestationTokenInit: size;
        rsi::output::Features: value;
    }
    let set = rsi::input::IpaStateSet::from_registers([1, 2, 0x101, 3]);
    assert_eq!((set.base, set.top, set.ripas, set.flags.bits()), (1, 2, 1, 3));
    assert_eq!(set.to_registers(), [1, 2, 1, 3], "X3[63:8] is zero");
    let set = rsi::output::IpaStateSet::from_registers([1, 0b11]);
    assert_eq!((set.new_base, set.response), (1, rsi::RsiResponse::Reject));
    assert_eq!(set.to_registers(), [1, 1], "X2[63:1] is zero");
    let get = rsi::output::IpaStateGet::from_registers([1, 0x102]);
    assert_eq!((get.out_top, get.ripas), (1, 2));
    assert_eq!(get.to_registers(), [1, 2], "X2[63:8] is zero");
    let extend = rsi::input::MeasurementExtend::from_registers(distinct());
    assert_eq!([extend.index, extend.size], distinct::<10>()[..2]);
    assert_eq!(extend.value, distinct::<10>()[2..]);
    assert_eq!(extend.to_registers(), distinct());
    assert_eq!(rsi::input::AttestationTokenInit::from_registers(distinct()).to_registers(), distinct());
    assert_eq!(rsi::output::MeasurementRead::from_registers(distinct()).to_registers(), distinct());
    let version = rsi::output::Version::from_registers([0x1_0000, 0x1_0001]);
    assert_eq!((version.lower.minor, version.higher.minor), (0, 1));
}

#[test]
fn values_of_psci_come_in_the_order_of_the_specification() {
    let on = psci::CpuOn::from_registers(distinct());
    assert_eq!([on.target_cpu, on.entry_point_address, on.context_id], distinct());
    assert_eq!(on.to_registers(), distinct());
    let info = psci::AffinityInfo::from_registers([1, 0x1_0000_0002]);
    assert_eq!((info.target_affinity, info.lowest_affinity_level), (1, 2), "X2[63:32] is not looked at");
    let suspend = psci::CpuSuspend::from_registers([0x1_0000_0001, 2, 3]);
    assert_eq!((suspend.power_state, suspend.entry_point_address, suspend.context_id), (1, 2, 3));
    let features = psci::Features::from_registers([0x1_c400_0003]);
    assert_eq!(PsciCommand::from_fid(features.psci_func_id), Ok(PsciCommand::CpuOn));
}
