use dtoolkit::fdt_mut::{FdtMut, SliceBuffer};
use proptest::prelude::*;

use super::host_tree::{self, Changes, HostTreeError};
use super::*;

/// `qemu-system-aarch64 -machine virt,virtualization=on,gic-version=3,dumpdtb=… -smp 2 -m 1G -append hello` with a
/// `guest-loader` kernel of three bytes at 0x41000000, packed by `dtc`.
const QEMU: &[u8] = include_bytes!("testdata/qemu-virt.dtb");
/// QEMU 10.0.2 with a second `-serial`, packed by dtc.
const TWO_UARTS: &[u8] = include_bytes!("testdata/two-uarts.dtb");
/// `two-banks.dts`, by `dtc`.
const TWO_BANKS: &[u8] = include_bytes!("testdata/two-banks.dtb");
/// `buses.dts`, by `dtc`.
const BUSES: &[u8] = include_bytes!("testdata/buses.dtb");

fn read(tree: &[u8]) -> Result<Machine<'_>, MachineError> {
    Machine::read(Fdt::new(tree).map_err(MachineError::Parse)?)
}

fn error(tree: &[u8]) -> Option<MachineError> {
    read(tree).err()
}

fn ends(ranges: &[Range<Pa>]) -> Vec<(u64, u64)> {
    ranges.iter().map(|range| (range.start().get(), range.end())).collect()
}

/// The tree with an edit made by `edit`.
fn edited(tree: &[u8], edit: impl FnOnce(&mut FdtMut<SliceBuffer<'_>>)) -> Vec<u8> {
    let mut bytes = tree.to_vec();
    bytes.resize(bytes.len() + 1024, 0);
    let mut fdt = FdtMut::new(SliceBuffer::new(&mut bytes).unwrap()).unwrap();
    edit(&mut fdt);
    fdt.as_read_only().data().to_vec()
}

fn set(tree: &[u8], node: &str, property: &str, value: &[u8]) -> Vec<u8> {
    edited(tree, |fdt| {
        let mut node = fdt.find_node_mut(node).unwrap();
        node.remove_property(property);
        node.add_property(property, value).unwrap();
    })
}

fn without(tree: &[u8], node: &str) -> Vec<u8> {
    edited(tree, |fdt| fdt.find_node_mut(node).unwrap().remove())
}

const MIB: u64 = 1 << 20;

fn changes() -> Changes<'static> {
    Changes {
        reserved: Range::new(0x4020_0000, 2 * MIB).unwrap(),
        tables: None,
        kept_uart: None,
        bootargs: None,
        of_realm: None,
    }
}

fn host_tree(tree: &[u8], changes: &Changes<'_>) -> Result<Vec<u8>, HostTreeError> {
    let fdt = Fdt::new(tree).unwrap();
    let mut out = vec![0xa5; host_tree::size_bound(fdt, changes)];
    let size = host_tree::write(fdt, &mut out, changes)?;
    out.truncate(size);
    Ok(out)
}

#[test]
fn qemus_tree_says_what_the_machine_is() {
    let machine = read(QEMU).unwrap();
    assert_eq!(ends(&machine.memory), [(0x4000_0000, 0x8000_0000)]);
    assert_eq!(machine.cpus.iter().map(|cpu| cpu.mpidr).collect::<Vec<_>>(), [0, 1]);
    assert!(machine.psci);
    assert_eq!(ends(&[machine.gic.distributor]), [(0x0800_0000, 0x0801_0000)]);
    assert_eq!(ends(&machine.gic.redistributors), [(0x080a_0000, 0x0900_0000)]);
    assert_eq!(ends(&machine.gic.its), [(0x0808_0000, 0x080a_0000)]);
    assert_eq!(machine.uart.map(|uart| uart.start().get()), Some(0x0900_0000));
    assert_eq!(machine.bootargs, Some("hello"));
    assert_eq!(machine.kernel.map(|kernel| ends(&[kernel.range])), Some(vec![(0x4100_0000, 0x4100_0003)]));
    assert_eq!(machine.initrd, None);
    // The high PCIe window.
    assert_eq!(machine.top, 1 << 40);
}

#[test]
fn a_uart_that_the_hypervisor_keeps_is_not_the_hosts() {
    let machine = read(TWO_UARTS).unwrap();
    let second = machine.second_uart.unwrap();
    assert_eq!((machine.uart, ends(&[second])), (read(QEMU).unwrap().uart, vec![(0x0904_0000, 0x0904_1000)]));
    assert_eq!(read(QEMU).unwrap().second_uart, None);
    let tree = host_tree(TWO_UARTS, &Changes { kept_uart: Some(second.start()), ..changes() }).unwrap();
    let fdt = Fdt::new(&tree).unwrap();
    assert!(fdt.find_node("/pl011@9040000").is_none() && fdt.find_node("/pl011@9000000").is_some());
    let aliases = fdt.find_node("/aliases").unwrap();
    assert!(aliases.property("serial1").is_none() && aliases.property("serial0").is_some());
    assert_eq!(read(&tree).unwrap().second_uart, None);
    // One that is not there is not missed.
    let tree = host_tree(QEMU, &Changes { kept_uart: Some(second.start()), ..changes() }).unwrap();
    assert_eq!(read(&tree).unwrap().uart, machine.uart);
}

#[test]
fn memory_for_tables_is_reserved_as_the_hypervisors_is() {
    let tables = Range::new(0x7f00_0000, 16 * MIB).unwrap();
    let tree = host_tree(QEMU, &Changes { tables: Some(tables), ..changes() }).unwrap();
    assert_eq!(ends(&read(&tree).unwrap().no_map), [(0x4020_0000, 0x4040_0000), (0x7f00_0000, 0x8000_0000)]);
}

#[test]
fn the_last_of_several_parameters_of_one_name_counts() {
    let machine = read(TWO_BANKS).unwrap();
    assert_eq!(machine.parameter("cloven.log"), Some("debug"));
    assert_eq!((machine.parameter("quiet"), machine.parameter("cloven")), (None, None));
    let text = Some("a=1 b a=2 ab=3 c=");
    let machine = Machine { bootargs: text, ..machine };
    let values = ["a", "b", "ab", "c"].map(|name| machine.parameter(name));
    assert_eq!(values, [Some("2"), None, Some("3"), Some("")]);
}

#[test]
fn banks_are_sorted_merged_and_cut_to_granules() {
    let machine = read(TWO_BANKS).unwrap();
    assert_eq!(ends(&machine.memory), [(0x4000_1000, 0x8000_0000), (0x8_8000_0000, 0x9_4000_0000)]);
    assert_eq!(ends(&machine.no_map), [(0x4100_0000, 0x4110_0000)]);
    assert_eq!(ends(&machine.reserved), [(0x4200_0000, 0x4220_0000), (0x4800_0000, 0x4801_0000)]);
}

#[test]
fn cpus_that_failed_are_left_out_and_large_affinities_kept() {
    let machine = read(TWO_BANKS).unwrap();
    assert_eq!(machine.cpus.iter().map(|cpu| cpu.mpidr).collect::<Vec<_>>(), [0, 0x100, 1 << 32]);
}

#[test]
fn devices_behind_a_bus_count_and_the_console_may_be_an_alias() {
    let machine = read(TWO_BANKS).unwrap();
    assert_eq!(machine.uart.map(|uart| uart.start().get()), Some(0x0900_0000));
    let redistributors = [(0x080a_0000, 0x080c_0000), (0x40_0000_0000, 0x40_0002_0000)];
    assert_eq!(ends(&machine.gic.redistributors), redistributors);
    assert_eq!(machine.top, 0x90_0000_0000);
}

#[test]
fn the_kernel_and_the_initrd_are_found() {
    let machine = read(TWO_BANKS).unwrap();
    let kernel = machine.kernel.unwrap();
    assert_eq!(ends(&[kernel.range]), [(0x5000_0000, 0x5200_0000)]);
    assert_eq!(kernel.bootargs, Some("root=/dev/vda"));
    assert_eq!(machine.initrd.map(|initrd| ends(&[initrd])), Some(vec![(0x4400_0000, 0x4412_3456)]));
}

#[test]
fn what_a_tree_lacks_is_named() {
    use MachineError::Missing;
    assert_eq!(error(&without(QEMU, "/memory@40000000")), Some(Missing("memory")));
    assert_eq!(error(&without(QEMU, "/cpus")), Some(Missing("cpus")));
    assert_eq!(error(&without(QEMU, "/psci")), Some(Missing("psci")));
    assert_eq!(error(&without(QEMU, "/intc@8000000")), Some(Missing("GICv3")));
    let one_cpu = without(&without(QEMU, "/psci"), "/cpus/cpu@1");
    let machine = read(&one_cpu).unwrap();
    assert_eq!((machine.psci, machine.cpus.len()), (false, 1));
}

#[test]
fn what_a_tree_says_wrongly_is_named() {
    let memory = |reg: &[u8]| error(&set(QEMU, "/memory@40000000", "reg", reg));
    assert!(matches!(memory(&[0; 15]), Some(MachineError::Property { node: "memory", .. })));
    assert_eq!(memory(&[0; 16]), Some(MachineError::Missing("memory")));
    assert!(matches!(memory(&[0xff; 16]), Some(MachineError::Address { node: "memory", .. })));
    let twice = [[0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0]; 2].concat();
    assert_eq!(memory(&twice), Some(MachineError::Overlap(0x4000_0000)));
    let many = (0..=MAX_RANGES as u8).flat_map(|n| [0, 0, 0, n, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0]);
    assert_eq!(memory(&many.collect::<Vec<_>>()), Some(MachineError::TooMany("memory banks")));
    let method = set(QEMU, "/psci", "method", b"hvc\0");
    assert_eq!(error(&method), Some(MachineError::PsciByHvc));
    let enable = set(QEMU, "/cpus/cpu@1", "enable-method", b"spin-table\0");
    assert_eq!(error(&enable), Some(MachineError::EnableMethod(1)));
    let gic = set(QEMU, "/intc@8000000", "compatible", b"arm,cortex-a15-gic\0");
    assert_eq!(error(&gic), Some(MachineError::Gicv2));
}

#[test]
fn a_tree_that_is_none_is_refused_before_it_is_read() {
    assert_eq!(tree_size([0xd0, 0x0d, 0xfe, 0xed, 0, 0x10, 0, 0]), Ok(1 << 20));
    assert_eq!(tree_size([0; 8]), Err(MachineError::Magic(0)));
    assert_eq!(tree_size([0xd0, 0x0d, 0xfe, 0xed, 0, 0x20, 0, 1]), Err(MachineError::Size((2 << 20) + 1)));
    assert_eq!(tree_size([0xd0, 0x0d, 0xfe, 0xed, 0, 0, 0, 39]), Err(MachineError::Size(39)));
}

#[test]
fn the_hosts_tree_reserves_the_hypervisor_and_lacks_its_modules() {
    for (tree, others) in [(QEMU, 0), (TWO_BANKS, 1)] {
        let original = read(tree).unwrap();
        let written = host_tree(tree, &changes()).unwrap();
        let machine = read(&written).unwrap();
        assert_eq!(machine.no_map.len(), others + 1);
        assert_eq!(machine.no_map.last(), Some(&changes().reserved));
        let expected = Machine { no_map: machine.no_map.clone(), kernel: None, ..original };
        assert_eq!(machine, expected);
        let chosen = Fdt::new(&written).unwrap().find_node("/chosen").unwrap();
        assert_eq!(chosen.children().count(), 0);
        let cloven = Fdt::new(&written).unwrap().find_node("/reserved-memory/cloven@40200000").unwrap();
        assert!(cloven.is_compatible("cloven,hypervisor"));
    }
}

#[test]
fn the_kernels_own_command_line_becomes_the_hosts() {
    let text = "root=/dev/vda a much longer command line than the one that was there before";
    let written = host_tree(TWO_BANKS, &Changes { bootargs: Some(text), ..changes() }).unwrap();
    assert_eq!(read(&written).unwrap().bootargs, Some(text));
}

#[test]
fn a_tree_that_does_not_fit_is_refused() {
    let fdt = Fdt::new(QEMU).unwrap();
    for size in [0, 40, 1000, QEMU.len()] {
        let refused = host_tree::write(fdt, &mut vec![0; size], &changes());
        assert_eq!(refused, Err(HostTreeError::NoRoom { size }));
    }
}

#[test]
fn reserved_memory_that_linux_would_ignore_is_an_error() {
    let other = set(TWO_BANKS, "/reserved-memory", "#address-cells", &1u32.to_be_bytes());
    let refused = host_tree(&other, &changes()).unwrap_err();
    assert_eq!(refused, HostTreeError::Counting { node: (1, 2), root: (2, 2) });
}

#[test]
fn reserved_memory_without_its_properties_is_an_error() {
    for property in ["#address-cells", "#size-cells", "ranges"] {
        let lacking = edited(TWO_BANKS, |fdt| {
            assert!(fdt.find_node_mut("/reserved-memory").unwrap().remove_property(property));
        });
        assert_eq!(host_tree(&lacking, &changes()).unwrap_err(), HostTreeError::Ignored(property));
    }
}

#[test]
fn a_root_whose_cells_cannot_name_the_hypervisor_is_an_error() {
    let narrow = set(QEMU, "/", "#address-cells", &1u32.to_be_bytes());
    let high = Changes {
        reserved: Range::new(0x8_8000_0000, 2 * MIB).unwrap(),
        tables: None,
        kept_uart: None,
        bootargs: None,
        of_realm: None,
    };
    let refused = host_tree(&narrow, &high).unwrap_err();
    assert_eq!(refused, HostTreeError::Cells { value: 0x8_8000_0000, cells: 1 });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 4 } else { 2000 }))]

    #[test]
    fn damaged_trees_end_in_a_machine_or_an_error(
        which in any::<bool>(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::weighted(0.1, any::<prop::sample::Index>()),
    ) {
        let mut tree = if which { QEMU } else { TWO_BANKS }.to_vec();
        for (at, byte) in damage {
            let at = at.index(tree.len());
            tree[at] = byte;
        }
        if let Some(cut) = cut {
            tree.truncate(cut.index(tree.len()));
        }
        let Ok(fdt) = Fdt::new(&tree) else { return Ok(()) };
        let Ok(machine) = Machine::read(fdt) else { return Ok(()) };
        prop_assert!(!machine.memory.is_empty());
        let mut out = vec![0; host_tree::size_bound(fdt, &changes())];
        if let Ok(size) = host_tree::write(fdt, &mut out, &changes()) {
            match read(&out[..size]) {
                Ok(written) => {
                    prop_assert_eq!(written.memory, machine.memory);
                    prop_assert_eq!(written.cpus, machine.cpus);
                }
                // The reservation may be one too many for the list; nothing else may have changed.
                other => prop_assert_eq!(other.err(), Some(MachineError::TooMany("reserved ranges"))),
            }
        }
    }
}

#[test]
fn a_realms_tree_has_no_bus_masters_and_nothing_random_and_all_else() {
    let granules = Range::new(0x7fa0_0000, 6 * MIB).unwrap();
    let of_realm = Changes { of_realm: Some(granules), ..changes() };
    let tree = host_tree(QEMU, &of_realm).unwrap();
    let (original, fdt) = (Fdt::new(QEMU).unwrap(), Fdt::new(&tree).unwrap());
    let is_random = |name: &str| matches!(name, "kaslr-seed" | "rng-seed");
    let mut gone = 0;
    for node in original.root().children() {
        let is_there = fdt.root().child(node.name()).is_some();
        assert_eq!(is_there, !host_tree::is_bus_master(node), "{}", node.name());
        gone += u32::from(!is_there);
    }
    // 32 of virtio, PCIe, the firmware's configuration.
    assert!(gone >= 34, "{gone}");
    let chosen = fdt.root().child("chosen").unwrap();
    assert!(chosen.properties().all(|property| !is_random(property.name())));
    assert!(fdt.find_node("/intc@8000000/its@8080000").is_some());
    let machine = read(&tree).unwrap();
    assert_eq!(ends(&machine.no_map), [(0x4020_0000, 0x4040_0000), (0x7fa0_0000, 0x8000_0000)]);
    assert!(
        !tree.windows(8).any(|words| words == [0, 0, 0, 4, 0, 0, 0, 4]),
        "what was removed takes no room"
    );
    let devices = host_tree::devices(fdt).unwrap();
    let has = |address: u64| devices.iter().any(|range| range.contains(address));
    // Distributor, redistributors, ITS, UART, clock; not virtio, the firmware's configuration, PCIe's windows, RAM.
    assert!([0x0800_0000, 0x080a_0000, 0x0808_0000, 0x0900_0000, 0x0901_0000].into_iter().all(has));
    assert!(![0x0a00_0000, 0x0902_0000, 0x1000_0000, 0x40_1000_0000, 0x4000_0000].into_iter().any(has));
    // The same each time, whatever the seeds.
    assert_eq!(tree, host_tree(QEMU, &of_realm).unwrap());
}

#[test]
fn what_fills_words_in_a_tree_is_cleared_and_nothing_else() {
    for bootargs in ["word", "wor d", "wo rds", "w ord s"] {
        let tree = host_tree(QEMU, &Changes { bootargs: Some(bootargs), ..changes() }).unwrap();
        let at = tree.windows(bootargs.len()).position(|window| window == bootargs.as_bytes()).unwrap();
        // With the zero at its end.
        let end = at + bootargs.len() + 1;
        let mut dirty = tree.clone();
        dirty[end..end.next_multiple_of(4)].fill(0x5e);
        host_tree::clear_padding(&mut dirty).unwrap();
        assert_eq!(dirty, tree, "{bootargs}");
    }
    assert_eq!(host_tree::clear_padding(&mut [0xff; 64]), None);
    assert_eq!(host_tree::clear_padding(&mut []), None);
}

#[test]
fn a_realms_tree_has_no_bus_masters_below_buses_either() {
    let of_realm = Changes { of_realm: Some(Range::new(0x7fa0_0000, 6 * MIB).unwrap()), ..changes() };
    let tree = host_tree(BUSES, &of_realm).unwrap();
    let fdt = Fdt::new(&tree).unwrap();
    let has = |path: &str| fdt.find_node(path).is_some();
    assert!(!["/master@1000", "/soc/master@2000", "/soc/bus/virtio@5000"].into_iter().any(has));
    assert!(
        ["/soc/timer@3000", "/soc/gic@8000", "/soc/bus/clock@6000", "/translating/clock@0"]
            .into_iter()
            .all(has)
    );
    // Not what is disabled, unless it is the GIC; nor what is elsewhere than it says.
    let devices = host_tree::devices(fdt).unwrap();
    assert_eq!(ends(&devices), [(0x3000, 0x4000), (0x8000, 0x9000), (0x6000, 0x7000)]);
}
