//! Instructions that access system registers, at random (Arm ARM C5.1.3, D24.1).
//!
//! Invariant: whatever is chosen, the payload can go on. So what would break the payload itself, and say nothing of the hypervisor, is
//! in a table, each with why.

use hyp::trial::Random;

/// `op0, op1, CRn, CRm, op2` of a register or instruction.
pub type Encoding = [u8; 5];

/// Any value of a field.
const ANY: u8 = 0xff;

/// Writes that are not made.
const EXCLUDED: [(Encoding, &str); 25] = [
    ([3, 0, 1, 0, 0], "SCTLR_EL1: its MMU, byte order and checks"),
    ([3, 0, 1, 0, 3], "SCTLR2_EL1: where its External aborts go"),
    ([3, 0, 1, 4, ANY], "SCTLRALIAS_EL1 and the like: the same registers again"),
    ([3, 0, 2, 0, 0], "TTBR0_EL1: its translation"),
    ([3, 0, 2, 0, 2], "TCR_EL1: its translation"),
    ([3, 0, 2, 0, 3], "TCR2_EL1: its translation"),
    ([3, 0, 2, 7, ANY], "TCRALIAS_EL1 and the like: the same registers again"),
    ([3, 0, 2, 5, 0], "GCSCR_EL1: its returns would be checked"),
    ([3, 0, 2, 5, 2], "GCSCRE0_EL1: the calls of its EL0 code would be stored"),
    ([3, 0, 10, 2, ANY], "MAIR_EL1, PIR_EL1, POR_EL1 and the like: its translation"),
    ([3, 0, 10, 3, ANY], "AMAIR_EL1: its translation"),
    ([3, 3, 10, 2, ANY], "POR_EL0: its EL0 code's translation"),
    ([3, 0, 12, 0, 0], "VBAR_EL1: its vectors"),
    ([3, 0, 13, 0, 4], "TPIDR_EL1: where its vectors find the CPU's data"),
    ([3, 0, 4, 2, 0], "SPSel: its stack"),
    ([3, 3, 4, 2, 1], "DAIF: its masks; it handles no interrupts"),
    ([3, 0, 4, 3, 0], "ALLINT: its masks"),
    (
        [2, 0, 0, ANY, 7],
        "DBGWCR<n>_EL1: QEMU looks at each access to what a watchpoint covers, though MDSCR_EL1 has it off: time only",
    ),
    ([2, 0, 0, 2, 2], "MDSCR_EL1: single step, breakpoints and watchpoints"),
    ([3, 0, 5, 4, ANY], "ERX*_EL1: injected errors are the machine's"),
    ([3, 0, 5, 5, ANY], "ERX*_EL1: injected errors are the machine's"),
    ([1, 3, 7, 4, 1], "DC ZVA: writes to memory; stores are tried where they must be refused"),
    ([1, 3, 7, 4, 3], "DC GVA: writes to memory"),
    ([1, 3, 7, 4, 4], "DC GZVA: writes to memory"),
    ([1, 3, 7, 7, ANY], "GCSPUSHM and the like: write to memory"),
];

/// What the build with the stand-in traps to EL2, and Cloven then says is undefined: ACTLR_EL1.
const TRAPPED: Encoding = [3, 0, 1, 0, 1];
const IS_READ: u32 = 1 << 21;

/// MSR from x1, or SYS.
fn write_of(encoding: Encoding) -> u32 {
    let [op0, op1, crn, crm, op2] = encoding.map(u32::from);
    0xd500_0000 | op0 << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5 | 1
}

/// Whether an instruction of [`instruction`] certainly traps to EL2.
pub fn is_trapped(instruction: u32) -> bool {
    instruction & !IS_READ == write_of(TRAPPED)
}

/// `op0, op1, CRn, CRm` of registers and instructions that there are: EL1's, EL0's, debug, maintenance, and those of EL2 and EL3.
const KNOWN: [[u8; 4]; 116] = [
    [3, 0, 0, 0],
    [3, 0, 0, 1],
    [3, 0, 0, 4],
    [3, 0, 0, 5],
    [3, 0, 0, 6],
    [3, 0, 0, 7],
    [3, 0, 1, 0],
    [3, 0, 1, 2],
    [3, 0, 2, 0],
    [3, 0, 2, 1],
    [3, 0, 2, 2],
    [3, 0, 2, 3],
    [3, 0, 2, 5],
    [3, 0, 4, 0],
    [3, 0, 4, 1],
    [3, 0, 4, 2],
    [3, 0, 4, 3],
    [3, 0, 4, 6],
    [3, 0, 5, 1],
    [3, 0, 5, 2],
    [3, 0, 5, 3],
    [3, 0, 5, 6],
    [3, 0, 6, 0],
    [3, 0, 7, 4],
    [3, 0, 9, 9],
    [3, 0, 9, 10],
    [3, 0, 9, 11],
    [3, 0, 9, 14],
    [3, 0, 10, 2],
    [3, 0, 10, 4],
    [3, 0, 10, 5],
    [3, 0, 12, 0],
    [3, 0, 12, 1],
    [3, 0, 12, 8],
    [3, 0, 12, 9],
    [3, 0, 12, 11],
    [3, 0, 12, 12],
    [3, 0, 13, 0],
    [3, 0, 14, 1],
    [3, 0, 15, 0],
    [3, 1, 0, 0],
    [3, 1, 15, 0],
    [3, 2, 0, 0],
    [3, 3, 0, 0],
    [3, 3, 2, 4],
    [3, 3, 2, 5],
    [3, 3, 4, 2],
    [3, 3, 4, 4],
    [3, 3, 4, 5],
    [3, 3, 9, 12],
    [3, 3, 9, 13],
    [3, 3, 9, 14],
    [3, 3, 13, 0],
    [3, 3, 13, 2],
    [3, 3, 13, 4],
    [3, 3, 14, 0],
    [3, 3, 14, 2],
    [3, 3, 14, 3],
    [3, 3, 14, 8],
    [3, 3, 14, 12],
    [3, 3, 14, 15],
    [2, 0, 0, 0],
    [2, 0, 0, 1],
    [2, 0, 0, 2],
    [2, 0, 0, 3],
    [2, 0, 0, 5],
    [2, 0, 1, 0],
    [2, 0, 1, 1],
    [2, 0, 1, 3],
    [2, 0, 1, 4],
    [2, 0, 7, 8],
    [2, 0, 7, 9],
    [2, 0, 7, 14],
    [2, 1, 0, 0],
    [2, 1, 9, 0],
    [2, 3, 0, 1],
    [2, 3, 0, 4],
    [2, 3, 0, 5],
    [1, 0, 7, 1],
    [1, 0, 7, 5],
    [1, 0, 7, 6],
    [1, 0, 7, 8],
    [1, 0, 7, 9],
    [1, 0, 7, 10],
    [1, 0, 7, 14],
    [1, 0, 8, 1],
    [1, 0, 8, 3],
    [1, 0, 8, 5],
    [1, 0, 8, 7],
    [1, 0, 9, 7],
    [1, 3, 7, 3],
    [1, 3, 7, 5],
    [1, 3, 7, 10],
    [1, 3, 7, 11],
    [1, 3, 7, 12],
    [1, 3, 7, 13],
    [1, 3, 7, 14],
    [3, 4, 1, 0],
    [3, 4, 1, 1],
    [3, 4, 2, 0],
    [3, 4, 2, 1],
    [3, 4, 4, 0],
    [3, 4, 5, 1],
    [3, 4, 6, 0],
    [3, 4, 12, 0],
    [3, 4, 13, 0],
    [3, 4, 14, 1],
    [3, 5, 1, 0],
    [3, 5, 2, 0],
    [3, 5, 12, 0],
    [3, 6, 1, 1],
    [3, 6, 12, 0],
    [1, 4, 7, 8],
    [1, 4, 8, 3],
    [1, 4, 8, 7],
    [1, 6, 8, 7],
];

/// Whether the payload can live with a write to this.
fn is_harmless(encoding: Encoding) -> bool {
    !EXCLUDED.iter().any(|(excluded, _)| {
        excluded.iter().zip(encoding).all(|(&excluded, field)| excluded == ANY || excluded == field)
    })
}

/// MRS, MSR (register), SYS or SYSL with x1: half of them anywhere, half where there is something.
pub fn instruction(random: &mut Random) -> u32 {
    loop {
        let mut field = |limit| random.below(limit) as u8;
        let encoding = match field(64) {
            0 => TRAPPED,
            1..32 => [1 + field(3), field(8), field(16), field(16), field(8)],
            _ => {
                let [op0, op1, crn, crm] = KNOWN[usize::from(field(KNOWN.len() as u64))];
                [op0, op1, crn, crm, field(8)]
            }
        };
        let is_read = random.below(2) == 0;
        if is_read || is_harmless(encoding) {
            return write_of(encoding) | if is_read { IS_READ } else { 0 };
        }
    }
}
