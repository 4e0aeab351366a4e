//! The host's device tree: the original, with the hypervisor's memory reserved and its own modules, and the UART that it keeps, gone. Or that of
//! a realm that has the machine instead: without bus masters too, and without what is random.
//!
//! Invariant: everything else in the original is in the copy, in the same order. The copy is validated before it is
//! handed out.
//!
//! `dtoolkit` edits a tree in place but cannot add a node without a heap, so the structure block is copied around the
//! place where the node goes (Devicetree Specification, 5.4).

use core::fmt;

use arrayvec::ArrayVec;
use dtoolkit::error::FdtParseError;
use dtoolkit::fdt::{Fdt, FdtNode};
use dtoolkit::fdt_mut::{FdtBuffer, FdtMut, FdtNodeMut, SliceBuffer};
use dtoolkit::standard::{AddressSpaceProperties, NodeStandard, Status};
use dtoolkit::{Node, Property, ToCellInt};

use super::{MachineError, is_module};
use crate::mapping::{Address, GRANULE, Pa, Range};

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROP: u32 = 3;
const NOP: u32 = 4;
const HEADER: usize = 40;

/// What the host's tree says that the original does not.
#[derive(Clone, Copy, Debug)]
pub struct Changes<'a> {
    /// The hypervisor's memory: reserved, not to be mapped.
    pub reserved: Range<Pa>,
    /// Memory for tables beside that, reserved in the same way.
    pub tables: Option<Range<Pa>>,
    /// A PL011 at the root that the host does not have: the address of its registers.
    pub kept_uart: Option<Pa>,
    /// The command line, if it is not the original's.
    pub bootargs: Option<&'a str>,
    /// If it is a realm's: memory that is reserved in the same way for what the RMM has of it. Devices that master the bus are left out
    /// ([`is_bus_master`]), and so are seeds of random numbers, as the tree is measured.
    pub of_realm: Option<Range<Pa>>,
}

/// Whether a device masters the bus, beside all protection: it says so by being coherent, or it is a PCI host, or one of those of QEMU's virt
/// machine that are known to and do not say so: another machine may have more. The GIC masters the bus too, and is not meant, as nothing runs without it:
/// its ITS and redistributors read and write tables wherever in physical memory they are told that these are.
pub fn is_bus_master(node: FdtNode<'_>) -> bool {
    const SILENT: [&str; 3] = ["virtio,mmio", "qemu,fw-cfg-mmio", "arm,smmu-v3"];
    let is_pci = node.property("device_type").is_some_and(|p| p.value_as::<&str>() == Ok("pci"));
    is_pci || node.property("dma-coherent").is_some() || SILENT.iter().any(|name| node.is_compatible(name))
}

/// Devices that a tree can have.
pub const MAX_DEVICES: usize = 64;
/// Where a tree has devices.
pub type Devices = ArrayVec<Range<Pa>, MAX_DEVICES>;

/// Where the devices of a tree are, in whole granules; not those that are disabled, but all of a GIC.
///
/// # Errors
/// [`MachineError`]: there are more than [`MAX_DEVICES`], or what a device says of its registers cannot be read.
pub fn devices(tree: Fdt<'_>) -> Result<Devices, MachineError> {
    let mut all = Devices::new();
    collect_devices(tree.root(), &mut all, super::BUS_DEPTH)?;
    Ok(all)
}

fn collect_devices(bus: FdtNode<'_>, all: &mut Devices, depth: u8) -> Result<(), MachineError> {
    if bus.address_space().size_cells == 0 {
        return Ok(());
    }
    for node in bus.children() {
        if matches!(node.name_without_address(), "cpus" | "chosen" | "reserved-memory" | "memory") {
            continue;
        }
        let is_gic = ["arm,gic-v3", "arm,gic-v3-its"].iter().any(|name| node.is_compatible(name));
        if !is_gic && matches!(node.status(), Ok(Status::Disabled)) {
            continue;
        }
        for range in super::reg("device", node)? {
            super::push(all, "devices", range?.expanded_to(GRANULE))?;
        }
        if passes_on(node)
            && let Some(depth) = depth.checked_sub(1)
        {
            collect_devices(node, all, depth)?;
        }
    }
    Ok(())
}

/// Whether a node is a bus, or a GIC with its ITSs, that passes addresses on unchanged.
fn passes_on(node: FdtNode<'_>) -> bool {
    node.property("ranges").is_some_and(|ranges| ranges.value().is_empty())
}

/// Why the tree could not be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostTreeError {
    /// The memory for it is too small.
    NoRoom {
        /// Bytes there are.
        size: usize,
    },
    /// `/reserved-memory` lacks this property, so Linux would ignore all that it reserves.
    Ignored(&'static str),
    /// `/chosen` has so many modules.
    TooManyModules(usize),
    /// `/reserved-memory` counts in other cells than the root, so Linux would ignore all that it reserves.
    Counting {
        /// Cells of its addresses and sizes.
        node: (u32, u32),
        /// Those of the root.
        root: (u32, u32),
    },
    /// The root counts in so many cells, in which this address or size does not fit.
    Cells {
        /// The address or size.
        value: u64,
        /// Cells for it.
        cells: u32,
    },
    /// The original's blocks are not where they should be.
    Malformed,
    /// The written tree is damaged.
    Written(FdtParseError),
}

impl fmt::Display for HostTreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRoom { size } => write!(f, "does not fit in {size} bytes"),
            Self::Ignored(property) => write!(f, "/reserved-memory has no {property}: Linux would ignore it"),
            Self::TooManyModules(count) => {
                write!(f, "/chosen has {count} modules, at most {MAX_MODULES} are allowed")
            }
            Self::Counting { node, root } => {
                write!(
                    f,
                    "/reserved-memory counts in {node:?} cells and the root in {root:?}: Linux would ignore it"
                )
            }
            Self::Cells { value, cells } => write!(f, "the root has {cells} cells for {value:#x}"),
            Self::Malformed => write!(f, "has blocks that are not where its header says"),
            Self::Written(error) => write!(f, "was written wrongly: {error}"),
        }
    }
}

impl core::error::Error for HostTreeError {}

/// Bytes that the changes add at most, but for the command line: nodes, properties and names.
const ADDED: usize = 768;

/// Bytes that the host's tree needs at most.
pub fn size_bound(original: Fdt<'_>, changes: &Changes<'_>) -> usize {
    original.data().len() + ADDED + changes.bootargs.map_or(0, |text| text.len() + 64)
}

/// Appends to a slice.
struct Writer<'a> {
    out: &'a mut [u8],
    len: usize,
}

impl Writer<'_> {
    fn bytes(&mut self, bytes: &[u8]) -> Result<(), HostTreeError> {
        let size = self.out.len();
        let end = self.len + bytes.len();
        self.out.get_mut(self.len..end).ok_or(HostTreeError::NoRoom { size })?.copy_from_slice(bytes);
        self.len = end;
        Ok(())
    }
    fn word(&mut self, word: u32) -> Result<(), HostTreeError> {
        self.bytes(&word.to_be_bytes())
    }
    fn align(&mut self, to: usize) -> Result<(), HostTreeError> {
        while !self.len.is_multiple_of(to) {
            self.bytes(&[0])?;
        }
        Ok(())
    }
    fn begin(&mut self, name: fmt::Arguments<'_>) -> Result<(), HostTreeError> {
        self.word(BEGIN_NODE)?;
        let size = self.out.len();
        fmt::write(self, name).map_err(|_| HostTreeError::NoRoom { size })?;
        self.bytes(&[0])?;
        self.align(4)
    }
    /// The head of a property of `size` bytes whose name lies at `name` in the strings block.
    fn property_head(&mut self, name: usize, size: usize) -> Result<(), HostTreeError> {
        self.word(PROP)?;
        self.word(size as u32)?;
        self.word(name as u32)
    }
    fn property(&mut self, name: usize, value: &[u8]) -> Result<(), HostTreeError> {
        self.property_head(name, value.len())?;
        self.bytes(value)?;
        self.align(4)
    }
    /// An address or a size of `cells` cells.
    fn number(&mut self, value: u64, cells: u32) -> Result<(), HostTreeError> {
        match cells {
            1 => self.word(u32::try_from(value).map_err(|_| HostTreeError::Cells { value, cells })?),
            2 => self.bytes(&value.to_be_bytes()),
            _ => Err(HostTreeError::Cells { value, cells }),
        }
    }
}

impl fmt::Write for Writer<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.bytes(text.as_bytes()).map_err(|_| fmt::Error)
    }
}

/// Modules that are removed: each takes a walk over its siblings.
const MAX_MODULES: usize = 16;

/// Names that the new nodes use, appended to the strings block in this order.
const NAMES: [&str; 6] = ["#address-cells", "#size-cells", "ranges", "compatible", "reg", "no-map"];

/// Where the new nodes go: just before the end of this node.
struct Place {
    /// Offset of the END_NODE in the structure block.
    end: usize,
    /// Whether that is `/reserved-memory`'s, and not the root's for want of one.
    in_reserved_memory: bool,
}

/// Finds the end of `/reserved-memory`, or else of the root, in a structure block that was validated.
fn place(block: &[u8]) -> Option<Place> {
    let word = |at: usize| Some(u32::from_be_bytes(*block.get(at..)?.first_chunk()?));
    let (mut at, mut depth, mut inside) = (0, 0u32, false);
    loop {
        match word(at)? {
            BEGIN_NODE => {
                let name = block.get(at + 4..)?;
                let name = &name[..name.iter().position(|&b| b == 0)?];
                depth += 1;
                inside |= depth == 2 && name.split(|&b| b == b'@').next() == Some(b"reserved-memory");
                at = (at + 4 + name.len() + 1).next_multiple_of(4);
            }
            END_NODE => {
                if depth == 2 && inside || depth == 1 {
                    return Some(Place { end: at, in_reserved_memory: depth == 2 });
                }
                depth = depth.checked_sub(1)?;
                at += 4;
            }
            PROP => at = (at + 12 + word(at + 4)? as usize).next_multiple_of(4),
            NOP => at += 4,
            _ => return None,
        }
    }
}

/// How `/reserved-memory` counts: as the root does, or Linux ignores it (its `of_reserved_mem.c` checks that).
fn counting(original: Fdt<'_>) -> Result<AddressSpaceProperties, HostTreeError> {
    let root = original.root().address_space();
    let Some(parent) = original.root().child("reserved-memory") else { return Ok(root) };
    if let Some(missing) = NAMES[..3].iter().find(|name| parent.property(name).is_none()) {
        return Err(HostTreeError::Ignored(missing));
    }
    let node = parent.address_space();
    if node != root {
        return Err(HostTreeError::Counting {
            node: (node.address_cells, node.size_cells),
            root: (root.address_cells, root.size_cells),
        });
    }
    Ok(root)
}

/// Writes the host's tree to `out` and returns its size in bytes.
///
/// # Errors
/// [`HostTreeError`].
pub fn write(original: Fdt<'_>, out: &mut [u8], changes: &Changes<'_>) -> Result<usize, HostTreeError> {
    let data = original.data();
    let field = |at: usize| {
        let bytes = data.get(at..).and_then(|d| d.first_chunk()).ok_or(HostTreeError::Malformed)?;
        Ok::<_, HostTreeError>(u32::from_be_bytes(*bytes))
    };
    let block = |offset: usize, size: usize| {
        let end = offset.checked_add(size).ok_or(HostTreeError::Malformed)?;
        data.get(offset..end).ok_or(HostTreeError::Malformed)
    };
    let structure = block(field(8)? as usize, field(36)? as usize)?;
    let strings = block(field(12)? as usize, field(32)? as usize)?;
    let modules =
        original.root().child("chosen").map_or(0, |c| c.children().filter(|n| is_module(*n)).count());
    if modules > MAX_MODULES {
        return Err(HostTreeError::TooManyModules(modules));
    }
    let place = place(structure).ok_or(HostTreeError::Malformed)?;
    let space = counting(original)?;
    // Names go to the end of the strings, whose last may lack its terminator.
    let pad = usize::from(strings.last().is_some_and(|&byte| byte != 0));
    let name =
        |number: usize| strings.len() + pad + NAMES[..number].iter().map(|n| n.len() + 1).sum::<usize>();

    let mut writer = Writer { out, len: 0 };
    let w = &mut writer;
    w.bytes(&data[..HEADER])?;
    let reservations_at = w.len;
    for entry in original.memory_reservations() {
        w.bytes(&entry.address().to_be_bytes())?;
        w.bytes(&entry.size().to_be_bytes())?;
    }
    w.bytes(&[0; 16])?;

    let structure_at = w.len;
    w.bytes(&structure[..place.end])?;
    if !place.in_reserved_memory {
        w.begin(format_args!("reserved-memory"))?;
        w.property(name(0), &space.address_cells.to_be_bytes())?;
        w.property(name(1), &space.size_cells.to_be_bytes())?;
        w.property(name(2), &[])?;
    }
    let tables = changes.tables.map(|range| (range, b"cloven,tables\0".as_slice()));
    let granules = changes.of_realm.map(|range| (range, b"cloven,granules\0".as_slice()));
    for (range, compatible) in
        [(changes.reserved, b"cloven,hypervisor\0".as_slice())].into_iter().chain(tables).chain(granules)
    {
        w.begin(format_args!("cloven@{:x}", range.start().get()))?;
        w.property(name(3), compatible)?;
        w.property_head(name(4), 4 * (space.address_cells.min(2) + space.size_cells.min(2)) as usize)?;
        w.number(range.start().get(), space.address_cells)?;
        w.number(range.size(), space.size_cells)?;
        w.property(name(5), &[])?;
        w.word(END_NODE)?;
    }
    if !place.in_reserved_memory {
        w.word(END_NODE)?;
    }
    w.bytes(&structure[place.end..])?;
    let structure_size = w.len - structure_at;

    let strings_at = w.len;
    w.bytes(strings)?;
    w.bytes(&[0][..pad])?;
    for text in NAMES {
        w.bytes(text.as_bytes())?;
        w.bytes(&[0])?;
    }
    let (strings_size, total) = (w.len - strings_at, w.len);
    for (at, value) in [
        (4, total),
        (8, structure_at),
        (12, strings_at),
        (16, reservations_at),
        (32, strings_size),
        (36, structure_size),
    ] {
        w.out[at..at + 4].copy_from_slice(&(value as u32).to_be_bytes());
    }
    edit(out, changes)
}

/// Removes the children of a node that are so.
fn remove_children<B: FdtBuffer>(node: &mut FdtNodeMut<'_, B>, is_so: fn(FdtNode<'_>) -> bool) {
    while let Some(number) = node.as_read_only().children().position(is_so) {
        let mut children = node.children_mut();
        for _ in 0..number {
            children.next();
        }
        match children.next() {
            Some(child) => child.remove(),
            None => return,
        }
    }
}

/// Removes the bus masters below a node, where [`collect_devices`] finds devices.
fn remove_bus_masters<B: FdtBuffer>(bus: &mut FdtNodeMut<'_, B>, depth: u8) {
    remove_children(bus, is_bus_master);
    let Some(depth) = depth.checked_sub(1) else { return };
    let mut children = bus.children_mut();
    while let Some(mut child) = children.next() {
        if passes_on(child.as_read_only()) {
            remove_bus_masters(&mut child, depth);
        }
    }
}

/// Removes the PL011 whose registers are at `address`, and the aliases that name it.
fn remove_uart(root: &mut FdtNodeMut<'_, SliceBuffer<'_>>, address: Pa) {
    let is_it = |node: FdtNode<'_>| {
        let registers = node.reg().ok().flatten().and_then(|mut entries| entries.next());
        let start = registers.and_then(|entry| entry.address.to_int::<u64>().ok());
        node.is_compatible("arm,pl011") && start == Some(address.get())
    };
    let Some(number) = root.as_read_only().children().position(is_it) else { return };
    // A path of a child of the root is its name behind a slash.
    let alias = |root: &FdtNodeMut<'_, SliceBuffer<'_>>| {
        let root = root.as_read_only();
        let name = root.children().nth(number)?.name();
        let names_it =
            |path: &str| path.split(':').next().and_then(|path| path.strip_prefix('/')) == Some(name);
        let mut aliases = root.child("aliases")?.properties();
        aliases.position(|property| property.value_as().is_ok_and(names_it))
    };
    while let Some(alias) = alias(root) {
        let Some(mut aliases) = root.child_mut("aliases") else { break };
        let mut properties = aliases.properties_mut();
        for _ in 0..alias {
            properties.next();
        }
        if let Some(property) = properties.next() {
            property.remove();
        }
    }
    let mut children = root.children_mut();
    for _ in 0..number {
        children.next();
    }
    if let Some(node) = children.next() {
        node.remove();
    }
}

/// Removes the modules, the UART and what a realm does not get, and sets the command line, in the tree at the start of `out`.
fn edit(out: &mut [u8], changes: &Changes<'_>) -> Result<usize, HostTreeError> {
    let size = out.len();
    let buffer = SliceBuffer::new(out).map_err(HostTreeError::Written)?;
    let mut tree = FdtMut::new(buffer).map_err(HostTreeError::Written)?;
    let mut root = tree.root_mut();
    if changes.of_realm.is_some() {
        remove_bus_masters(&mut root, super::BUS_DEPTH);
    }
    if let Some(mut chosen) = root.child_mut("chosen") {
        remove_children(&mut chosen, is_module);
        if changes.of_realm.is_some() {
            ["kaslr-seed", "rng-seed"].iter().for_each(|name| _ = chosen.remove_property(name));
        }
        if let Some(text) = changes.bootargs {
            chosen.remove_property("bootargs");
            chosen.add_property("bootargs", text).map_err(|_| HostTreeError::NoRoom { size })?;
        }
    }
    if let Some(address) = changes.kept_uart {
        remove_uart(&mut root, address);
    }
    if changes.of_realm.is_some() {
        // It is measured: what was removed is not to be in it.
        tree.compact();
    }
    let length = tree.as_read_only().data().len();
    let written = &mut out[..length];
    // Whatever was moved away has left its bytes there: of a realm's tree they would be measured, and seeds among them.
    clear_padding(written);
    Fdt::new(written).map_err(HostTreeError::Written)?;
    Ok(length)
}

/// Clears the bytes that only fill words, in the structure block of a tree. Nothing if there is none.
pub(super) fn clear_padding(tree: &mut [u8]) -> Option<()> {
    let word = |tree: &[u8], at: usize| Some(u32::from_be_bytes(*tree.get(at..)?.first_chunk()?));
    let mut at = word(tree, 8)? as usize;
    loop {
        let end = match word(tree, at)? {
            BEGIN_NODE => at + 4 + tree.get(at + 4..)?.iter().position(|&byte| byte == 0)? + 1,
            END_NODE | NOP => at + 4,
            PROP => at + 12 + word(tree, at + 4)? as usize,
            _ => return Some(()),
        };
        at = end.next_multiple_of(4);
        tree.get_mut(end..at)?.fill(0);
    }
}
