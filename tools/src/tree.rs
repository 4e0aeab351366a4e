//! A device tree of our own for a machine that QEMU's Linux loader does not start: QEMU's, with what that loader would have written.
//!
//! Invariant: what the tree says of RAM is what [`Ram`] says, so that a verdict can be exact about it.

use anyhow::{Context, Error, Result};
use dtoolkit::{
    fdt::Fdt,
    memreserve::MemoryReservation,
    model::{DeviceTree, DeviceTreeNode, DeviceTreeProperty},
};

/// Address and size, in bytes.
pub type Area = (u64, u64);

/// What a tree lists of the machine's RAM.
#[derive(Clone, Copy, Debug)]
pub struct Ram {
    /// The banks.
    pub banks: &'static [Area],
    /// Parts of the banks in `/reserved-memory` with `no-map`.
    pub no_map: &'static [Area],
    /// Parts of the banks in `/reserved-memory` without.
    pub reserved: &'static [Area],
    /// Parts of the banks in the memory reservation block (Devicetree Specification 0.4, 5.3).
    pub memreserve: &'static [Area],
}

impl Ram {
    /// Bytes that a host may map if it is given all of them.
    pub fn mappable(&self) -> u64 {
        let sum = |areas: &[Area]| areas.iter().map(|(_, size)| size).sum::<u64>();
        sum(self.banks) - sum(self.no_map)
    }
}

/// What a tree says that QEMU's own does not.
#[derive(Clone, Copy, Debug, Default)]
pub struct Additions<'a> {
    /// RAM, if not QEMU's one bank.
    pub ram: Option<Ram>,
    /// The command line.
    pub bootargs: &'a str,
    /// The host's kernel: a `multiboot,kernel` module in `/chosen`, as QEMU's `guest-loader` writes it.
    pub kernel: Option<Area>,
    /// The initramfs.
    pub initrd: Option<Area>,
}

/// `original` with `additions`.
pub fn edited(original: &[u8], additions: &Additions) -> Result<Vec<u8>> {
    let original = Fdt::new(original).map_err(|error| Error::msg(error.to_string()))?;
    let mut tree = DeviceTree::from_fdt(&original);
    if let Some(ram) = additions.ram {
        tree.root.remove_child("memory@40000000").context("the tree lists no RAM where it begins")?;
        for &bank in ram.banks {
            tree.root.add_child(node("memory", bank, [property("device_type", "memory")]));
        }
        let mut parent = DeviceTreeNode::new_unchecked("reserved-memory");
        for (name, cells) in [("#address-cells", 2u32), ("#size-cells", 2)] {
            parent.add_property(property(name, cells));
        }
        parent.add_property(property("ranges", [0u8; 0]));
        for &area in ram.no_map {
            parent.add_child(node("firmware", area, [property("no-map", [0u8; 0])]));
        }
        for &area in ram.reserved {
            parent.add_child(node("buffer", area, []));
        }
        tree.root.add_child(parent);
        let reservations = ram.memreserve.iter().map(|&(start, size)| MemoryReservation::new(start, size));
        tree.memory_reservations.extend(reservations);
    }
    let chosen = tree.root.child_mut("chosen").context("the tree has no /chosen")?;
    if !additions.bootargs.is_empty() {
        chosen.add_property(property("bootargs", additions.bootargs));
    }
    if let Some((start, size)) = additions.initrd {
        chosen.add_property(property("linux,initrd-start", start));
        chosen.add_property(property("linux,initrd-end", start + size));
    }
    if let Some(kernel) = additions.kernel {
        let compatible: &[&str] = &["multiboot,kernel", "multiboot,module"];
        chosen.add_child(node("module", kernel, [property("compatible", compatible)]));
    }
    Ok(tree.to_dtb())
}

/// A property of a name that is one.
fn property(name: &str, value: impl dtoolkit::ToPropertyValue) -> DeviceTreeProperty {
    DeviceTreeProperty::new_unchecked(name, value)
}

/// The node `NAME@START` with a `reg` of two cells each, as the root of QEMU's tree counts.
fn node<const N: usize>(
    name: &str,
    (start, size): Area,
    properties: [DeviceTreeProperty; N],
) -> DeviceTreeNode {
    let mut node = DeviceTreeNode::new_unchecked(format!("{name}@{start:x}"));
    node.add_property(property("reg", [start.to_be_bytes(), size.to_be_bytes()].concat()));
    properties.into_iter().for_each(|property| node.add_property(property));
    node
}

#[cfg(test)]
mod tests {
    use dtoolkit::{Node, Property};

    use super::*;

    /// As QEMU makes it, as far as it is edited.
    fn original() -> Vec<u8> {
        let mut tree = DeviceTree::new();
        tree.root.add_property(property("#address-cells", 2u32));
        tree.root.add_property(property("#size-cells", 2u32));
        tree.root.add_child(node("memory", (0x4000_0000, 1 << 30), [property("device_type", "memory")]));
        tree.root.add_child(DeviceTreeNode::new_unchecked("chosen"));
        tree.to_dtb()
    }

    fn reg(tree: Fdt<'_>, path: &str) -> (u64, u64) {
        let entry = tree.find_node(path).unwrap().reg().unwrap().unwrap().next().unwrap();
        (entry.address().unwrap(), entry.size().unwrap())
    }

    #[test]
    fn a_tree_lists_the_ram_and_the_modules_that_it_is_told() {
        let ram = Ram {
            banks: &[(0x4000_0000, 0x2000_0000), (0x4b_0000_0000, 1 << 30)],
            no_map: &[(0x4100_0000, 0x1_0000)],
            reserved: &[(0x4200_0000, 0x1000)],
            memreserve: &[(0x4300_0000, 0x2000)],
        };
        assert_eq!(ram.mappable(), 0x6000_0000 - 0x1_0000);
        let additions = Additions {
            ram: Some(ram),
            bootargs: "quiet",
            kernel: Some((0x4400_0000, 5)),
            initrd: Some((0x4800_0000, 7)),
        };
        let bytes = edited(&original(), &additions).unwrap();
        let tree = Fdt::new(&bytes).unwrap();
        assert_eq!(reg(tree, "/memory@40000000"), (0x4000_0000, 0x2000_0000));
        assert_eq!(reg(tree, "/memory@4b00000000"), (0x4b_0000_0000, 1 << 30));
        assert_eq!(reg(tree, "/reserved-memory/firmware@41000000"), (0x4100_0000, 0x1_0000));
        assert_eq!(reg(tree, "/reserved-memory/buffer@42000000"), (0x4200_0000, 0x1000));
        let reservations: Vec<_> = tree.memory_reservations().map(|r| (r.address(), r.size())).collect();
        assert_eq!(reservations, [(0x4300_0000, 0x2000)]);
        let chosen = tree.find_node("/chosen").unwrap();
        assert_eq!(chosen.property("bootargs").unwrap().value(), b"quiet\0");
        // It does not say how many cells its children's addresses have: as many as the root's (`hyp::machine`).
        let module = chosen.child("module@44000000").unwrap();
        let place = module.property("reg").unwrap();
        assert_eq!(place.value(), [0x4400_0000u64.to_be_bytes(), 5u64.to_be_bytes()].concat());
        assert_eq!(chosen.property("linux,initrd-end").unwrap().value(), 0x4800_0007u64.to_be_bytes());
    }

    #[test]
    fn a_tree_without_additions_stays_as_it_is() {
        assert_eq!(edited(&original(), &Additions::default()).unwrap(), original());
        assert!(edited(&[0; 64], &Additions::default()).is_err());
    }
}
