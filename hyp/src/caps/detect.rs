//! What one CPU's identification registers say of how its translations may change.
//!
//! Invariant: nothing is believed of a part but what its ID registers say or the lists of this file know; what is in neither gets
//! the least. An erratum takes away whatever the register or another list gives.
//!
//! Fields: Arm ARM DDI 0487 D24.2 (`ID_AA64MMFR2_EL1`, `ID_AA64ISAR0_EL1`, `MIDR_EL1`). The parts: Linux `cpufeature.c`, first
//! `has_bbml2_noabort` (6.18), then `cpu_supports_bbml3` (commits f8d0751426dd and 4955df16ff99, July 2026), of which no primary copy
//! was at hand but two transcripts that agree; part numbers: Linux `cputype.h`, TF-A `include/lib/cpus/aarch64`.
//!
//! Not looked at, as nothing here depends on it: `ID_AA64MMFR1_EL1.HAFDBS` (our maps run without hardware updates of flags) and
//! `ID_AA64MMFR2_EL1.FWB` (stage 2 leaves the memory type to stage 1).

use crate::mapping::Capabilities;

/// What a CPU says of itself: the registers in the order in which a starting CPU writes them down.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IdRegisters {
    /// `MIDR_EL1`.
    pub midr: u64,
    /// `ID_AA64MMFR0_EL1`.
    pub mmfr0: u64,
    /// `ID_AA64MMFR1_EL1`.
    pub mmfr1: u64,
    /// `ID_AA64MMFR2_EL1`.
    pub mmfr2: u64,
    /// `ID_AA64MMFR3_EL1`.
    pub mmfr3: u64,
    /// `ID_AA64ISAR0_EL1`.
    pub isar0: u64,
    /// `ID_AA64PFR1_EL1`.
    pub pfr1: u64,
}

/// `ID_AA64MMFR2_EL1.BBM`: 0 to 2 are the levels of FEAT_BBM, 3 is FEAT_BBML3; what comes after them includes it.
const MMFR2_BBM: u32 = 52;
/// `ID_AA64MMFR2_EL1.TTL`.
const MMFR2_TTL: u32 = 48;
/// `ID_AA64ISAR0_EL1.TLB`.
const ISAR0_TLB: u32 = 56;
/// Its value for FEAT_TLBIRANGE; 1 is FEAT_TLBIOS.
const TLB_RANGE: u8 = 0b0010;

/// An unsigned ID field of four bits.
const fn field(register: u64, lowest: u32) -> u8 {
    (register >> lowest & 0xf) as u8
}

/// Revisions of a part.
struct Revisions {
    /// `MIDR_EL1.Implementer`.
    implementer: u8,
    /// `MIDR_EL1.PartNum`.
    part: u16,
    /// The first and the last, rNpM as `0xNM`.
    first: u8,
    last: u8,
}

const ARM: u8 = 0x41;
const NVIDIA: u8 = 0x4e;
const AMPERE: u8 = 0xc0;
const CORTEX_X4: u16 = 0xd82;
const NEOVERSE_V3AE: u16 = 0xd83;
const NEOVERSE_V3: u16 = 0xd84;
const C1_ULTRA: u16 = 0xd8c;
const C1_PREMIUM: u16 = 0xd90;

const fn all(implementer: u8, part: u16) -> Revisions {
    Revisions { implementer, part, first: 0, last: 0xff }
}

const fn some(part: u16, first: u8, last: u8) -> Revisions {
    Revisions { implementer: ARM, part, first, last }
}

/// Parts whose makers vouch for FEAT_BBML3's promise, whatever `ID_AA64MMFR2_EL1.BBM` says: for most it says 2, for AmpereOne 0.
const NO_CONFLICT_ABORT: [Revisions; 15] = [
    some(CORTEX_X4, 0x03, 0x0f),
    some(NEOVERSE_V3, 0x02, 0x0f),
    some(NEOVERSE_V3AE, 0x02, 0x0f),
    all(NVIDIA, 0x010), // Olympus
    all(AMPERE, 0xac3), // AmpereOne
    all(AMPERE, 0xac4), // AmpereOne A
    all(ARM, 0xd88),    // Cortex-A520AE
    all(ARM, 0xd4d),    // Cortex-A715
    all(ARM, 0xd89),    // Cortex-A720AE
    all(ARM, 0xd87),    // Cortex-A725
    all(ARM, 0xd8e),    // Neoverse-N3
    all(ARM, 0xd8a),    // C1-Nano
    all(ARM, 0xd8b),    // C1-Pro
    some(C1_ULTRA, 0x11, 0xff),
    some(C1_PREMIUM, 0x11, 0xff),
];

/// Parts that say level 2 and must be treated as level 0: Neoverse-V3 and V3AE before r0p2 (erratum 3053180), C1-Ultra and C1-Premium before
/// r1p1 (3683289: a livelock), both worked around by always breaking before making. Cortex-X4 before r0p3 is here by care alone: Linux
/// leaves it out as it does those, and does not say why.
const BREAKS_ALWAYS: [Revisions; 5] = [
    some(CORTEX_X4, 0x00, 0x02),
    some(NEOVERSE_V3, 0x00, 0x01),
    some(NEOVERSE_V3AE, 0x00, 0x01),
    some(C1_ULTRA, 0x00, 0x10),
    some(C1_PREMIUM, 0x00, 0x10),
];

/// Parts on which a TLB invalidation must be repeated, by implementer and part number, after the list of Linux (revisions are not told
/// apart: to repeat is always right). Erratum 4118414 (CVE-2025-10263) has most of them; Cortex-A76 1286807, Cortex-A55 2441007,
/// Cortex-A510 2441009, and Falkor and Kryo 1009 the others.
const REPEATS_TLBI: [(u8, &[u16]); 4] = [
    (
        ARM,
        &[
            0xd05, 0xd0b, 0xd0c, 0xd0d, 0xd0e, 0xd40, 0xd41, 0xd42, 0xd44, 0xd46, 0xd47, 0xd48, 0xd49, 0xd4b,
            0xd4c, 0xd4e, 0xd4f, 0xd82, 0xd83, 0xd84, 0xd85, 0xd8c, 0xd90,
        ],
    ),
    (NVIDIA, &[0x010]),
    (0x51, &[0x200, 0x201, 0x205, 0x211, 0x800, 0x804]),
    (0x6d, &[0xd49]),
];

/// `MIDR_EL1` taken apart.
struct Part {
    implementer: u8,
    number: u16,
    /// rNpM as `0xNM`.
    revision: u8,
}

impl Part {
    const fn of(midr: u64) -> Self {
        Self {
            implementer: (midr >> 24) as u8,
            number: (midr >> 4 & 0xfff) as u16,
            revision: field(midr, 20) << 4 | field(midr, 0),
        }
    }
    fn is_in(&self, list: &[Revisions]) -> bool {
        list.iter().any(|of| {
            (of.implementer, of.part) == (self.implementer, self.number)
                && (of.first..=of.last).contains(&self.revision)
        })
    }
    fn repeats_tlbi(&self) -> bool {
        REPEATS_TLBI.iter().any(|(by, parts)| *by == self.implementer && parts.contains(&self.number))
    }
}

/// How the translations of the CPU that says `id` of itself may change.
pub fn capabilities(id: &IdRegisters) -> Capabilities {
    let part = Part::of(id.midr);
    let level = if part.is_in(&BREAKS_ALWAYS) {
        0
    } else if part.is_in(&NO_CONFLICT_ABORT) {
        3
    } else {
        field(id.mmfr2, MMFR2_BBM)
    };
    let mut set = Capabilities::LEAST | Capabilities::bbm(level);
    set.set(Capabilities::TLB_RANGE, field(id.isar0, ISAR0_TLB) >= TLB_RANGE);
    set.set(Capabilities::TLB_LEVEL, field(id.mmfr2, MMFR2_TTL) != 0);
    set.set(Capabilities::TLBI_ONCE, !part.repeats_tlbi());
    set
}

/// `set` without what goes beyond `level` of FEAT_BBM (0 to 3; more is 3): never more than before.
pub const fn lowered(set: Capabilities, level: u8) -> Capabilities {
    set.difference(Capabilities::BBM.difference(Capabilities::bbm(level)))
}

/// `set` at `level` of FEAT_BBM (0 to 3; more is 3), whatever it was at: for test builds on an emulator, which raises no conflict
/// aborts.
pub const fn believed(set: Capabilities, level: u8) -> Capabilities {
    set.difference(Capabilities::BBM).union(Capabilities::bbm(level))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A part at rNpM (as `0xNM`) that says `level` of itself.
    fn level_of(implementer: u8, part: u16, revision: u8, level: u8) -> u8 {
        let (variant, revision) = (u64::from(revision >> 4), u64::from(revision & 0xf));
        // The architecture field is 0xf on all of them.
        let midr = u64::from(implementer) << 24 | variant << 20 | 0xf << 16 | u64::from(part) << 4 | revision;
        let id = IdRegisters { midr, mmfr2: u64::from(level) << MMFR2_BBM, ..IdRegisters::default() };
        capabilities(&id).bbm_level()
    }

    #[test]
    fn a_part_that_nobody_knows_has_what_its_register_says() {
        for (field, level) in [(0, 0), (1, 1), (2, 2), (3, 3), (4, 3), (15, 3)] {
            // Cortex-A72, QEMU's `max`, Apple.
            for (implementer, part) in [(ARM, 0xd08), (0, 0x51), (0x61, 0x22)] {
                assert_eq!(level_of(implementer, part, 0x12, field), level);
            }
        }
        assert_eq!(capabilities(&IdRegisters::default()), Capabilities::LEAST);
    }

    #[test]
    fn a_listed_part_raises_no_conflicts_from_its_first_good_revision_on() {
        let listed: [(u8, u16, u8, u8); 15] = [
            (0x41, 0xd82, 0x03, 0x0f),
            (0x41, 0xd84, 0x02, 0x0f),
            (0x41, 0xd83, 0x02, 0x0f),
            (0x4e, 0x010, 0x00, 0xff),
            (0xc0, 0xac3, 0x00, 0xff),
            (0xc0, 0xac4, 0x00, 0xff),
            (0x41, 0xd88, 0x00, 0xff),
            (0x41, 0xd4d, 0x00, 0xff),
            (0x41, 0xd89, 0x00, 0xff),
            (0x41, 0xd87, 0x00, 0xff),
            (0x41, 0xd8e, 0x00, 0xff),
            (0x41, 0xd8a, 0x00, 0xff),
            (0x41, 0xd8b, 0x00, 0xff),
            (0x41, 0xd8c, 0x11, 0xff),
            (0x41, 0xd90, 0x11, 0xff),
        ];
        assert_eq!(listed.len(), NO_CONFLICT_ABORT.len());
        for (implementer, part, first, last) in listed {
            for revision in 0..=0xff {
                // Below the first good revision an erratum takes the level away; above the last one nobody vouches for more than the field.
                let expected = match revision {
                    r if r < first => 0,
                    r if r > last => 2,
                    _ => 3,
                };
                let found = level_of(implementer, part, revision, 2);
                assert_eq!(found, expected, "{implementer:#x} {part:#x} {revision:#x}");
            }
            // The same number by another maker is another part.
            assert_eq!(level_of(implementer ^ 0x80, part, first, 2), 2);
        }
    }

    #[test]
    fn ampere_one_has_the_property_without_the_field() {
        for part in [0xac3, 0xac4] {
            assert_eq!(level_of(AMPERE, part, 0, 0), 3);
        }
        assert_eq!(level_of(AMPERE, 0xac5, 0, 0), 0);
    }

    #[test]
    fn an_erratum_takes_away_what_the_register_says() {
        for part in [CORTEX_X4, NEOVERSE_V3, NEOVERSE_V3AE, C1_ULTRA, C1_PREMIUM] {
            for field in 0..=3 {
                assert_eq!(level_of(ARM, part, 0x00, field), 0);
            }
        }
        assert_eq!((level_of(ARM, C1_ULTRA, 0x10, 3), level_of(ARM, C1_ULTRA, 0x11, 3)), (0, 3));
    }

    #[test]
    fn invalidations_are_as_the_registers_and_the_errata_say() {
        let of = |midr, isar0, mmfr2| capabilities(&IdRegisters { midr, isar0, mmfr2, ..Default::default() });
        let plain = Capabilities::LEAST;
        assert_eq!(of(0, 1 << ISAR0_TLB, 0), plain);
        assert_eq!(of(0, 2 << ISAR0_TLB, 0), plain | Capabilities::TLB_RANGE);
        assert_eq!(of(0, 0, 1 << MMFR2_TTL), plain | Capabilities::TLB_LEVEL);
        // Cortex-A76 r4p0 repeats; Cortex-A72 need not.
        assert_eq!(of(0x414f_d0b0, 0, 0), plain - Capabilities::TLBI_ONCE);
        assert_eq!(of(0x410f_d083, 0, 0), plain);
    }

    #[test]
    fn lowering_never_raises_and_believing_replaces() {
        let rest = Capabilities::LEAST | Capabilities::TLB_RANGE;
        for own in 0..=3 {
            let set = rest | Capabilities::bbm(own);
            for level in 0..=4 {
                assert_eq!(lowered(set, level), rest | Capabilities::bbm(own.min(level)));
                assert_eq!(believed(set, level), rest | Capabilities::bbm(level));
            }
        }
        // No bit comes from nowhere, and none of the others goes.
        for bits in 0..1 << 7 {
            let set = Capabilities::from_bits_truncate(bits);
            for level in 0..=3 {
                assert!(set.contains(lowered(set, level)));
                assert_eq!(lowered(set, level) - Capabilities::BBM, set - Capabilities::BBM);
            }
        }
    }
}
