//! What a payload's CPUs have for a change of its own translations: as each says of itself, or as the command line has it.

use arm_sysregs::el1::accessors::*;
use hyp::caps::detect::{self, IdRegisters};
use hyp::machine::Machine;
use hyp::mapping::Capabilities;

/// The levels of FEAT_BBM of the boot CPU and of the others that `cloven.bbm` says (`LEVEL` or `BOOT,OTHERS`), if it says any.
pub fn levels(machine: &Machine<'_>) -> Option<(u8, u8)> {
    let text = machine.parameter("cloven.bbm")?;
    let (boot, others) = text.split_once(',').unwrap_or((text, text));
    boot.parse().ok().zip(others.parse().ok())
}

/// What CPU number `cpu`, which says `registers` of itself, has at these levels.
pub fn capabilities(levels: Option<(u8, u8)>, cpu: usize, registers: &IdRegisters) -> Capabilities {
    let own = detect::capabilities(registers);
    let level = levels.map(|(boot, others)| if cpu == 0 { boot } else { others });
    level.map_or(own, |level| detect::believed(own, level))
}

/// What the running CPU says of itself.
pub fn registers() -> IdRegisters {
    IdRegisters {
        midr: read_midr_el1().bits(),
        mmfr0: read_id_aa64mmfr0_el1().bits(),
        mmfr1: read_id_aa64mmfr1_el1().bits(),
        mmfr2: read_id_aa64mmfr2_el1().bits(),
        mmfr3: read_id_aa64mmfr3_el1().bits(),
        isar0: read_id_aa64isar0_el1().bits(),
        pfr1: read_id_aa64pfr1_el1().bits(),
    }
}
