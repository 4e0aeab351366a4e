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
const EXCLUDED: [(Encoding, &str); 27] = [
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
    ([2, 0, 0, 2, 2], "MDSCR_EL1: single step, breakpoints and watchpoints"),
    ([3, 0, 5, 4, ANY], "ERX*_EL1: injected errors are the machine's"),
    ([3, 0, 5, 5, ANY], "ERX*_EL1: injected errors are the machine's"),
    ([3, 0, 9, 9, ANY], "PMS*_EL1: statistical profiling writes to memory by itself"),
    ([3, 0, 9, 10, ANY], "PMB*_EL1: the buffer of that"),
    ([3, 0, 9, 11, ANY], "TRB*_EL1: the trace buffer writes to memory by itself"),
    ([1, 3, 7, 4, 1], "DC ZVA: writes to memory; stores are tried where they must be refused"),
    ([1, 3, 7, 4, 3], "DC GVA: writes to memory"),
    ([1, 3, 7, 4, 4], "DC GZVA: writes to memory"),
    ([1, 3, 7, 7, ANY], "GCSPUSHM and the like: write to memory"),
];

/// CRn that hold most of the registers that there are.
const DENSE: [u8; 12] = [0, 1, 2, 4, 5, 6, 7, 9, 10, 12, 13, 14];

/// Whether the payload can live with a write to this.
fn is_harmless(encoding: Encoding) -> bool {
    !EXCLUDED.iter().any(|(excluded, _)| {
        excluded.iter().zip(encoding).all(|(&excluded, field)| excluded == ANY || excluded == field)
    })
}

/// MRS, MSR (register), SYS or SYSL with x1: half of them anywhere, half where EL1's and EL0's registers are.
pub fn instruction(random: &mut Random) -> u32 {
    loop {
        let mut field = |limit| random.below(limit) as u8;
        let anywhere = field(2) == 0;
        let encoding = if anywhere {
            [1 + field(3), field(8), field(16), field(16), field(8)]
        } else {
            let op1 = [0, 0, 3, 4][usize::from(field(4))];
            [
                [1, 2, 3, 3, 3, 3][usize::from(field(6))],
                op1,
                DENSE[usize::from(field(12))],
                field(16),
                field(8),
            ]
        };
        let is_read = field(2) == 0;
        if is_read || is_harmless(encoding) {
            let [op0, op1, crn, crm, op2] = encoding.map(u32::from);
            let fields = op0 << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5;
            return 0xd500_0000 | u32::from(is_read) << 21 | fields | 1;
        }
    }
}
