//! What a table means, read as the architecture defines it: an independent decoder against which all subjects are checked.
//!
//! Source: Arm DDI 0487, VMSAv8-64 descriptor formats with the 4 KiB granule, 48-bit addresses, levels 0 to 3.

use crate::peer::{ADDRESS, READ_ONLY, TABLE_OR_PAGE, VALID};

/// Where an address leads.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Leaf {
    pub pa: usize,
    pub level: usize,
    pub read_only: bool,
}

/// Walks the tables below `root`, whose physical addresses are host addresses. None if nothing is mapped at `va`.
pub fn decode(root: usize, va: usize) -> Option<Leaf> {
    let mut table = root;
    for level in 0..=3 {
        let size = 1 << (39 - 9 * level);
        let index = va / size % 512;
        // SAFETY: `table` is the address of a table of the pool, since it is a root or stands in a table descriptor, and
        // the index is within its 512 descriptors.
        let word = unsafe { *std::ptr::with_exposed_provenance::<u64>(table + index * 8) };
        if word & VALID == 0 {
            return None;
        }
        let address = (word & ADDRESS) as usize;
        match (level, word & TABLE_OR_PAGE != 0) {
            (0..=2, true) => table = address,
            (1..=2, false) | (3, true) => {
                return Some(Leaf { pa: address + va % size, level, read_only: word & READ_ONLY != 0 });
            }
            // A block at level 0 or at level 3 is reserved: it faults like an invalid descriptor.
            _ => return None,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Peer, bound::Raw, work};

    #[test]
    fn leaves_of_each_level_are_read() {
        let (va, pa) = (work::VA, work::PA);
        for (huge, offset, level) in [(true, 0, 1), (true, 2 << 20, 2), (false, 4096, 3)] {
            let mut raw = Raw::new();
            raw.map(va, pa + offset, 1 << 30, huge);
            assert_eq!(
                decode(raw.root(), va + 0x1234_5678),
                Some(Leaf { pa: pa + offset + 0x1234_5678, level, read_only: false })
            );
            assert_eq!(decode(raw.root(), va - 1), None);
            assert_eq!(decode(raw.root(), va + (1 << 30)), None);

            assert!(raw.protect(va + 0x5000, 0x1000, true));
            assert_eq!(
                decode(raw.root(), va + 0x5008),
                Some(Leaf { pa: pa + offset + 0x5008, level: 3, read_only: true })
            );
            assert!(!decode(raw.root(), va + 0x4fff).unwrap().read_only);
            assert!(!decode(raw.root(), va + 0x6000).unwrap().read_only);
        }
    }
}
