//! What the device tree says the machine is, and the device tree that the host gets.
//!
//! Invariant: whatever the bytes are, reading them ends in a [`Machine`] or in one [`MachineError`], never in a panic; a
//! `Machine` has RAM, the banks ascend and do not touch, and every range in it is a range of addresses.
//!
//! Pure and without a heap. The properties are those of the Devicetree Specification 0.4 (sections cited) and of Linux's
//! bindings for `arm,psci`, `arm,gic-v3` and `/chosen`; the host's kernel is named by a `multiboot,kernel` module as QEMU's
//! `guest-loader` and boot loaders for Xen write it.

pub mod host_tree;
pub mod image;
pub mod layout;

use core::fmt;

use arrayvec::ArrayVec;
use dtoolkit::error::{FdtParseError, PropertyError, StandardError};
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::standard::{NodeStandard, Status};
use dtoolkit::{Cells, Node, Property, ToCellInt};

use crate::mapping::{Address, AddressError, GRANULE, Pa, Range};

/// RAM banks, or reserved ranges, that a machine may have.
pub const MAX_RANGES: usize = 16;
/// CPUs that a machine may have.
pub const MAX_CPUS: usize = 128;

/// Bytes that a device tree may have at most (Linux `booting.rst`).
pub const MAX_TREE_SIZE: u32 = 2 << 20;
/// Magic number at the start of a device tree (Devicetree Specification, 5.2).
const MAGIC: u32 = 0xd00d_feed;
/// The affinity fields of `MPIDR_EL1`, which is what a CPU's `reg` holds.
pub const AFFINITY: u64 = 0xff_00ff_ffff;

/// A list of ranges of physical addresses.
pub type Ranges = ArrayVec<Range<Pa>, MAX_RANGES>;

/// Why a device tree is none that this hypervisor can run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineError {
    /// It lies at this address: 0, no multiple of 8 bytes, or above what the CPU addresses.
    Place(u64),
    /// It does not begin with the magic number but with this.
    Magic(u32),
    /// Its header claims so many bytes, which is too few for a header or more than 2 MiB.
    Size(u32),
    /// Its structure is damaged.
    Parse(FdtParseError),
    /// A property of this node does not have the form that it should.
    Property {
        /// The node's kind.
        node: &'static str,
        /// What is wrong with it.
        error: StandardError,
    },
    /// A range in this node is none.
    Address {
        /// The node's kind.
        node: &'static str,
        /// What is wrong with it.
        error: AddressError,
    },
    /// There are more of these than fit.
    TooMany(&'static str),
    /// There is none of these.
    Missing(&'static str),
    /// Two RAM banks overlap at this address.
    Overlap(u64),
    /// The CPU with this affinity is not started by PSCI.
    EnableMethod(u64),
    /// PSCI is reached by HVC, so there is no firmware below EL2 that could start a CPU for it.
    PsciByHvc,
    /// The interrupt controller is a GICv2.
    Gicv2,
}

impl fmt::Display for MachineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Place(address) => write!(f, "lies at {address:#x}, where there can be none"),
            Self::Magic(found) => write!(f, "begins with {found:#010x} and not with {MAGIC:#010x}"),
            Self::Size(size) => write!(f, "claims to have {size} bytes, at most {MAX_TREE_SIZE} are allowed"),
            Self::Parse(error) => write!(f, "is damaged: {error}"),
            Self::Property { node, error } => write!(f, "{node}: {error}"),
            Self::Address { node, error } => write!(f, "{node}: {error}"),
            Self::TooMany(what) => write!(f, "has too many {what}"),
            Self::Missing(what) => write!(f, "has no {what}"),
            Self::Overlap(address) => write!(f, "memory: banks overlap at {address:#x}"),
            Self::EnableMethod(mpidr) => write!(f, "cpu {mpidr:#x} is not started by PSCI"),
            Self::PsciByHvc => write!(f, "psci: method is hvc, but EL2 needs firmware that answers smc"),
            Self::Gicv2 => write!(f, "interrupt controller is a GICv2, a GICv3 is needed"),
        }
    }
}

impl core::error::Error for MachineError {}

/// A CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cpu {
    /// Its affinity, as in `MPIDR_EL1`.
    pub mpidr: u64,
}

/// A GICv3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gic {
    /// The distributor's registers.
    pub distributor: Range<Pa>,
    /// The redistributors' registers.
    pub redistributors: Ranges,
    /// The interrupt translation services' registers.
    pub its: Ranges,
}

/// A kernel that a boot loader has put into memory for the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module<'a> {
    /// Where it lies.
    pub range: Range<Pa>,
    /// Its own command line, if it has one.
    pub bootargs: Option<&'a str>,
}

/// What the hypervisor wants to know of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine<'a> {
    /// RAM: ascending, whole granules, not touching each other.
    pub memory: Ranges,
    /// Parts of RAM that must not be mapped (`no-map`).
    pub no_map: Ranges,
    /// Other parts of RAM that are in use.
    pub reserved: Ranges,
    /// CPUs that can be started, or run already. A CPU whose status is not `okay` is left out: `disabled` ones too,
    /// which a host could only start by means that are not PSCI.
    pub cpus: ArrayVec<Cpu, MAX_CPUS>,
    /// Whether there is firmware that speaks PSCI, by SMC.
    pub psci: bool,
    /// The interrupt controller.
    pub gic: Gic,
    /// The registers of the PL011 that is the console, or else of the first there is.
    pub uart: Option<Range<Pa>>,
    /// The registers of the first PL011 beside that which is at the root and in use.
    pub second_uart: Option<Range<Pa>>,
    /// The command line.
    pub bootargs: Option<&'a str>,
    /// The initial RAM disk.
    pub initrd: Option<Range<Pa>>,
    /// The host's kernel.
    pub kernel: Option<Module<'a>>,
    /// The first address after everything that the tree gives an address.
    pub top: u64,
}

/// Bytes of the device tree whose first eight bytes these are.
///
/// # Errors
/// [`MachineError::Magic`], [`MachineError::Size`].
pub fn tree_size(first: [u8; 8]) -> Result<usize, MachineError> {
    let [a, b, c, d, size @ ..] = first;
    let magic = u32::from_be_bytes([a, b, c, d]);
    let size = u32::from_be_bytes(size);
    if magic != MAGIC {
        return Err(MachineError::Magic(magic));
    }
    if !(40..=MAX_TREE_SIZE).contains(&size) {
        return Err(MachineError::Size(size));
    }
    Ok(size as usize)
}

impl<'a> Machine<'a> {
    /// The value of the last `NAME=VALUE` on the command line.
    pub fn parameter(&self, name: &str) -> Option<&'a str> {
        let words = self.bootargs?.split_ascii_whitespace();
        words.rev().find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
    }

    /// Reads the machine out of its device tree.
    ///
    /// # Errors
    /// [`MachineError`]: what the tree lacks, or says in a way that this hypervisor cannot use.
    // What it reads is large, and is to stand in one frame only.
    #[inline(never)]
    pub fn read(fdt: Fdt<'a>) -> Result<Self, MachineError> {
        let root = fdt.root();
        let memory = memory(root)?;
        let (no_map, mut reserved) = reserved_memory(root)?;
        for entry in fdt.memory_reservations() {
            push(
                &mut reserved,
                "reserved ranges",
                range("memory reservation", entry.address(), entry.size())?,
            )?;
        }
        let psci = psci(root);
        let cpus = cpus(root, &psci)?;
        // One CPU runs without it.
        let psci = psci.unwrap_or(false);
        let chosen = root.child("chosen");
        let uart = uart(fdt, chosen)?;
        let top = memory.last().map_or(0, |bank| bank.end()).max(device_top(root, BUS_DEPTH)?);
        Ok(Self {
            no_map,
            reserved,
            cpus,
            psci,
            gic: gic(root)?,
            uart,
            second_uart: second_uart(root, uart)?,
            bootargs: chosen.and_then(|c| text(c, "bootargs")),
            initrd: chosen.map_or(Ok(None), initrd)?,
            kernel: chosen.map_or(Ok(None), |c| kernel(root, c))?,
            memory,
            top,
        })
    }
}

fn property_error(node: &'static str) -> impl Fn(PropertyError) -> MachineError {
    move |error| MachineError::Property { node, error: error.into() }
}

fn range(node: &'static str, start: u64, size: u64) -> Result<Range<Pa>, MachineError> {
    Range::new(start, size).map_err(|error| MachineError::Address { node, error })
}

fn cells(node: &'static str, cells: Cells<'_>) -> Result<u64, MachineError> {
    cells.to_int().map_err(|error| MachineError::Property { node, error })
}

fn push<T, const N: usize>(
    list: &mut ArrayVec<T, N>,
    what: &'static str,
    item: T,
) -> Result<(), MachineError> {
    list.try_push(item).map_err(|_| MachineError::TooMany(what))
}

fn text<'a>(node: FdtNode<'a>, name: &str) -> Option<&'a str> {
    node.property(name)?.value_as().ok()
}

/// The ranges in a node's `reg`, those of no bytes left out.
fn reg<'a>(
    kind: &'static str,
    node: FdtNode<'a>,
) -> Result<impl Iterator<Item = Result<Range<Pa>, MachineError>> + 'a, MachineError> {
    let entries = node.reg().map_err(property_error(kind))?;
    let ranges = entries
        .into_iter()
        .flatten()
        .map(move |entry| range(kind, cells(kind, entry.address)?, cells(kind, entry.size)?));
    Ok(ranges.filter(|range| !matches!(range, Ok(r) if r.is_empty())))
}

/// RAM (Devicetree Specification, 3.4): each `reg` entry of each memory node, cut to whole granules.
fn memory(root: FdtNode<'_>) -> Result<Ranges, MachineError> {
    let mut banks = Ranges::new();
    let nodes =
        root.children().filter(|node| text(*node, "device_type") == Some("memory") && is_usable(*node));
    for node in nodes {
        for bank in reg("memory", node)? {
            push(&mut banks, "memory banks", bank?)?;
        }
    }
    banks.sort_unstable_by_key(|bank| bank.start());
    let mut merged = Ranges::new();
    for bank in banks {
        let start = bank.start().get();
        match merged.last_mut() {
            Some(last) if start < last.end() => return Err(MachineError::Overlap(start)),
            Some(last) if start == last.end() => {
                *last = range("memory", last.start().get(), last.size() + bank.size())?;
            }
            _ => push(&mut merged, "memory banks", bank)?,
        }
    }
    for bank in &mut merged {
        let start = bank.start().get().next_multiple_of(GRANULE);
        let end = bank.end() & !(GRANULE - 1);
        *bank = range("memory", start, end.saturating_sub(start))?;
    }
    merged.retain(|bank| !bank.is_empty());
    if merged.is_empty() { Err(MachineError::Missing("memory")) } else { Ok(merged) }
}

/// `/reserved-memory` (Devicetree Specification, 3.5): the static ranges, those with `no-map` first.
fn reserved_memory(root: FdtNode<'_>) -> Result<(Ranges, Ranges), MachineError> {
    let (mut no_map, mut others) = (Ranges::new(), Ranges::new());
    for node in root.child("reserved-memory").into_iter().flat_map(|parent| parent.children()) {
        let list = if node.property("no-map").is_some() { &mut no_map } else { &mut others };
        for range in reg("reserved-memory", node)? {
            // A granule is mapped or not: one that is reserved in part is reserved.
            push(list, "reserved ranges", range?.expanded_to(GRANULE))?;
        }
    }
    Ok((no_map, others))
}

fn is_usable(node: FdtNode<'_>) -> bool {
    // An unknown status is as good as none: the device may be there.
    !matches!(node.status(), Ok(Status::Disabled | Status::Fail | Status::FailSss | Status::Reserved))
}

/// The CPUs (Devicetree Specification, 3.8; Linux `bindings/arm/cpus.yaml`).
fn cpus(
    root: FdtNode<'_>,
    psci: &Result<bool, MachineError>,
) -> Result<ArrayVec<Cpu, MAX_CPUS>, MachineError> {
    let parent = root.child("cpus").ok_or(MachineError::Missing("cpus"))?;
    let mut cpus = ArrayVec::new();
    let mut by_other_means = None;
    for node in parent.children().filter(|n| n.name_without_address() == "cpu" && is_usable(*n)) {
        let mut entries = node.reg().map_err(property_error("cpu"))?.into_iter().flatten();
        let entry = entries.next().ok_or(MachineError::Missing("reg in a cpu"))?;
        let mpidr = cells("cpu", entry.address)? & AFFINITY;
        let method = node.property("enable-method").and_then(|p| p.value_as::<&str>().ok());
        if method != Some("psci") {
            by_other_means = Some(mpidr);
        }
        push(&mut cpus, "cpus", Cpu { mpidr })?;
    }
    match (cpus.len(), psci, by_other_means) {
        (0, ..) => Err(MachineError::Missing("cpu")),
        // The one that runs is started already.
        (1, ..) | (_, Ok(true), None) => Ok(cpus),
        (_, Err(error), _) => Err(error.clone()),
        (_, Ok(false), _) => Err(MachineError::Missing("psci")),
        (_, _, Some(mpidr)) => Err(MachineError::EnableMethod(mpidr)),
    }
}

/// PSCI 0.2 or later (Linux `bindings/arm/psci.yaml`): whether it is there.
fn psci(root: FdtNode<'_>) -> Result<bool, MachineError> {
    let Some(node) = root.child("psci") else { return Ok(false) };
    if !(node.is_compatible("arm,psci-1.0") || node.is_compatible("arm,psci-0.2")) {
        return Err(MachineError::Missing("psci of version 0.2 or later"));
    }
    match text(node, "method") {
        Some("smc") => Ok(true),
        Some("hvc") => Err(MachineError::PsciByHvc),
        _ => Err(MachineError::Missing("method in psci")),
    }
}

/// The node that `matches`, at the root or on a bus below it.
fn find<'a>(node: FdtNode<'a>, matches: &impl Fn(FdtNode<'a>) -> bool, depth: u8) -> Option<FdtNode<'a>> {
    node.children().find_map(|child| {
        if matches(child) {
            Some(child)
        } else if depth > 0 {
            find(child, matches, depth - 1)
        } else {
            None
        }
    })
}

/// Buses that may lie between the root and a device.
const BUS_DEPTH: u8 = 8;

/// The interrupt controller (Linux `bindings/interrupt-controller/arm,gic-v3.yaml`).
fn gic(root: FdtNode<'_>) -> Result<Gic, MachineError> {
    const GICV2: [&str; 3] = ["arm,cortex-a15-gic", "arm,gic-400", "arm,cortex-a7-gic"];
    let Some(node) = find(root, &|node| node.is_compatible("arm,gic-v3"), BUS_DEPTH) else {
        let old = find(root, &|node| GICV2.iter().any(|name| node.is_compatible(name)), BUS_DEPTH);
        return Err(if old.is_some() { MachineError::Gicv2 } else { MachineError::Missing("GICv3") });
    };
    let regions = node.property("#redistributor-regions").and_then(|p| p.value_as::<u32>().ok()).unwrap_or(1);
    let mut ranges = reg("GICv3", node)?;
    let distributor = ranges.next().ok_or(MachineError::Missing("distributor in the GICv3"))??;
    let mut redistributors = Ranges::new();
    for range in ranges.take(regions as usize) {
        push(&mut redistributors, "redistributor regions", range?)?;
    }
    let mut its = Ranges::new();
    for child in node.children().filter(|child| child.is_compatible("arm,gic-v3-its")) {
        for range in reg("GICv3 ITS", child)? {
            push(&mut its, "GICv3 ITSs", range?)?;
        }
    }
    Ok(Gic { distributor, redistributors, its })
}

/// The console: what `stdout-path` names, by path or alias (Devicetree Specification, 3.6), or the first PL011.
fn uart(fdt: Fdt<'_>, chosen: Option<FdtNode<'_>>) -> Result<Option<Range<Pa>>, MachineError> {
    let is_pl011 = |node: FdtNode<'_>| node.is_compatible("arm,pl011");
    let path = chosen.and_then(|c| text(c, "stdout-path")).map(|path| path.split(':').next().unwrap_or(path));
    let named = path.and_then(|path| {
        let path = if path.starts_with('/') { path } else { text(fdt.root().child("aliases")?, path)? };
        fdt.find_node(path).filter(|node| is_pl011(*node))
    });
    match named.or_else(|| find(fdt.root(), &is_pl011, BUS_DEPTH)) {
        Some(node) => reg("pl011", node)?.next().transpose(),
        None => Ok(None),
    }
}

/// The first PL011 at the root that is not the console.
fn second_uart(root: FdtNode<'_>, console: Option<Range<Pa>>) -> Result<Option<Range<Pa>>, MachineError> {
    for node in root.children().filter(|node| node.is_compatible("arm,pl011") && is_usable(*node)) {
        if let Some(range) = reg("pl011", node)?.next().transpose()?.filter(|range| Some(*range) != console) {
            return Ok(Some(range));
        }
    }
    Ok(None)
}

/// A property of one or two cells.
fn number(node: FdtNode<'_>, name: &'static str) -> Result<Option<u64>, MachineError> {
    let Some(property) = node.property(name) else { return Ok(None) };
    match *property.value() {
        [a, b, c, d] => Ok(Some(u32::from_be_bytes([a, b, c, d]).into())),
        [a, b, c, d, e, f, g, h] => Ok(Some(u64::from_be_bytes([a, b, c, d, e, f, g, h]))),
        _ => Err(property_error(name)(PropertyError::InvalidLength)),
    }
}

/// `linux,initrd-start` and `-end` of `/chosen` (Linux `booting.rst`; dt-schema `chosen.yaml`).
fn initrd(chosen: FdtNode<'_>) -> Result<Option<Range<Pa>>, MachineError> {
    let ends = (number(chosen, "linux,initrd-start")?, number(chosen, "linux,initrd-end")?);
    let (Some(start), Some(end)) = ends else { return Ok(None) };
    let size = end.checked_sub(start).ok_or(MachineError::Address {
        node: "initrd",
        error: AddressError::Wraps { start, size: end.wrapping_sub(start) },
    })?;
    range("initrd", start, size).map(|range| Some(range).filter(|r| !r.is_empty()))
}

/// The `multiboot,kernel` module. Where `/chosen` does not say how many cells its children's addresses have, QEMU writes
/// as many as the root's.
fn kernel<'a>(root: FdtNode<'a>, chosen: FdtNode<'a>) -> Result<Option<Module<'a>>, MachineError> {
    let Some(node) =
        chosen.children().find(|child| is_module(*child) && child.is_compatible("multiboot,kernel"))
    else {
        return Ok(None);
    };
    let said = chosen.property("#address-cells").is_some();
    let space = if said { chosen.address_space() } else { root.address_space() };
    let property = node.property("reg").ok_or(MachineError::Missing("reg in the multiboot,kernel module"))?;
    let mut entries = property
        .as_prop_encoded_array([space.address_cells as usize, space.size_cells as usize])
        .map_err(property_error("multiboot,kernel"))?;
    let [start, size] =
        entries.next().ok_or(MachineError::Missing("address of the multiboot,kernel module"))?;
    let range =
        range("multiboot,kernel", cells("multiboot,kernel", start)?, cells("multiboot,kernel", size)?)?;
    Ok(Some(Module { range, bootargs: text(node, "bootargs") }))
}

/// Whether a node of `/chosen` is a module for the hypervisor and not the host's.
fn is_module(node: FdtNode<'_>) -> bool {
    node.is_compatible("multiboot,module")
}

/// The end of everything that has an address in the root's address space: `reg` of devices, and what each bus maps
/// its own addresses to (Devicetree Specification, 2.3.8). A bus with an empty `ranges` passes addresses on unchanged.
fn device_top(bus: FdtNode<'_>, depth: u8) -> Result<u64, MachineError> {
    let mut top = 0;
    if bus.address_space().size_cells == 0 {
        return Ok(top);
    }
    for node in bus.children() {
        // Children of these have addresses of other kinds, or are RAM.
        if matches!(node.name_without_address(), "cpus" | "chosen" | "reserved-memory" | "memory") {
            continue;
        }
        for range in reg("device", node)? {
            top = top.max(range?.end());
        }
        let Some(property) = node.property("ranges") else { continue };
        if property.value().is_empty() {
            let depth = depth.checked_sub(1).ok_or(MachineError::TooMany("buses below each other"))?;
            top = top.max(device_top(node, depth)?);
            continue;
        }
        for entry in node.ranges().map_err(property_error("bus"))?.into_iter().flatten() {
            let (start, size) = (cells("bus", entry.parent_bus_address)?, cells("bus", entry.length)?);
            top = top.max(range("bus", start, size)?.end());
        }
    }
    Ok(top)
}

#[cfg(test)]
pub(crate) mod tests;
