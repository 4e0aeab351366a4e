//! The image header and the first instructions of each CPU (Linux `Documentation/arch/arm64/booting.rst`).
//!
//! Invariant: up to the point where a CPU's MMU is on it uses no atomics and no stack, and whatever it reads is either
//! what the loader or another CPU has cleaned to the point of coherency, or what it has written itself. What it writes
//! is invalidated afterwards, so that no line that was cached before hides it once the caches are on.
//!
//! The boot CPU relocates the image to where it was loaded, clears its variables, and turns the MMU on with a boot map
//! that lasts until [`crate::stage1`]'s is installed: the image, 2 or 4 MiB at the device tree (read-only) and the early
//! console, each at its own address in 2 MiB blocks. Every other CPU asks to be let in, invalidates its TLBs, and starts with the registers
//! that the boot CPU left for it in its `PerCpu`.

use core::arch::global_asm;

use super::percpu::{BLOCK_SIZE, DATA_OFFSET, MAILBOX_OFFSET};
use crate::stage1::{SCTLR_EL1_OFF, SCTLR_EL2_OFF};
use crate::start::BOOT_TABLES;

/// Makes the image start here. `main` is the platform's `fn(device_tree: u64) -> !`; it runs on the boot CPU at EL2
/// with the boot map. `console` is the page of the early console, 0 for none. `handler` is the platform's
/// [`SmcHandler`](super::smccc::SmcHandler), a constant. The platform also gives `early_putc` in assembly: writes the
/// character in w0 with the MMU off, changing only x1 to x3.
#[macro_export]
macro_rules! el2_entry {
    (main: $main:path, console: $console:expr, handler: $handler:expr) => {
        #[unsafe(no_mangle)]
        static CLOVEN_EARLY_CONSOLE: u64 = $console;

        #[unsafe(no_mangle)]
        #[unsafe(link_section = ".init.text")]
        extern "C" fn cloven_primary(device_tree: u64) -> ! {
            $main(device_tree)
        }

        #[unsafe(no_mangle)]
        extern "C" fn cloven_exit(frame: &mut $crate::el2::host::Frame) {
            $crate::el2::host::exit(&$handler, frame)
        }
    };
}

global_asm!(
    crate::start_macros!(),
    crate::newcomer_macros!(),
    r#"
    // EL2 with everything off: little-endian, one privilege level. Changes x1 and x19.
    .macro quiet_el2
    msr     daifset, #0xf
    mov     x1, #(1 << 31)              // HCR_EL2.RW, E2H = 0
    msr     hcr_el2, x1
    movz    x1, #({sctlr_off} & 0xffff)
    movk    x1, #({sctlr_off} >> 16), lsl #16
    msr     sctlr_el2, x1
    movz    x1, #({sctlr_el1_off} & 0xffff)
    movk    x1, #({sctlr_el1_off} >> 16), lsl #16
    msr     sctlr_el1, x1               // see cpu::prepare: AT may be speculated from here on
    isb
    mrs     x1, s3_0_c0_c7_3            // ID_AA64MMFR3_EL1
    tst     x1, #0xf                    // TCRX
    b.eq    1f
    msr     s3_4_c2_c0_3, xzr           // TCR2_EL2
1:  tst     x1, #0xf0                   // SCTLRX
    b.eq    2f
    msr     s3_4_c1_c0_3, xzr           // SCTLR2_EL2
2:  mrs     x1, id_aa64pfr1_el1
    tst     x1, #(0xf << 44)            // GCS: on, it would check the very first call
    b.eq    3f
    msr     s3_4_c2_c5_0, xzr           // GCSCR_EL2
3:  mrs     x1, id_aa64dfr0_el1
    tst     x1, #(0xf << 40)            // TraceFilt: EL2 is not traced
    b.eq    4f
    msr     s3_4_c1_c2_1, xzr           // TRFCR_EL2
4:  isb
    // EL2 exists in the form of E2H only: HCR_EL2 reads so, or ID_AA64MMFR4_EL1.E2H0 is negative, when HCR_EL2 need not.
    adr     x19, .Lonly_e2h
    mrs     x1, hcr_el2
    tbnz    x1, #34, .Lstop
    mrs     x1, s3_0_c0_c7_4
    tbnz    x1, #27, .Lstop
    .endm

    // Runs on the tables of x5 with MAIR x6, TCR x7 and SCTLR x8.
    .macro mmu_on
    msr     mair_el2, x6
    msr     tcr_el2, x7
    msr     ttbr0_el2, x5
    isb
    tlbi    alle2
    tlbi    alle1
    ic      iallu
    dsb     nsh
    isb
    msr     sctlr_el2, x8
    isb
    .endm

    .section .text.head, "ax"
    .global _start
_start:
    b       primary
    .long   0
    .quad   0                           // text_offset
    .quad   0x400000                    // image_size: the linker script asserts it
    .quad   0xa                         // little-endian, 4 KiB pages, anywhere in memory
    .quad   0
    .quad   0
    .quad   0
    .long   0x644d5241                  // "ARM\x64"
    .long   0

    .section .init.text.entry, "ax"
primary:
    mov     x20, x0                     // device tree
    mrs     x1, CurrentEL
    adr     x19, .Lwrong_level
    cmp     x1, #(2 << 2)
    b.ne    .Lstop
    quiet_el2
    adrp    x23, image_start
    adr     x19, .Lmisplaced
    tst     x23, #0x1fffff
    b.ne    .Lstop

    self_relocate {block_size}
    range   image_end, image_end, 0
    sub     x0, x0, #({boot_tables} * 4096)
    mov     x21, x0                     // root of the boot map
    clear_boot_map {boot_tables}

    // The device tree first: it may lie in the block before the image's, and its second block is then the image's.
    lsr     x0, x20, #48
    cbnz    x0, 3f
    mov     x1, #0x7c5                  // Normal, inner shareable, accessed, read-only
    orr     x1, x1, #(1 << 54)
    bic     x0, x20, #0x1fffff
    bl      .Lmap_block
    add     x0, x0, #0x200000
    lsr     x4, x0, #48
    cbnz    x4, 3f
    tst     x20, #0x1fffff              // a tree that begins a block ends in it
    b.eq    3f
    bl      .Lmap_block
3:  adrp    x0, CLOVEN_EARLY_CONSOLE
    ldr     x0, [x0, :lo12:CLOVEN_EARLY_CONSOLE]
    cbz     x0, 4f
    bic     x0, x0, #0x1fffff
    mov     x1, #0x741                  // Device-nGnRE
    orr     x1, x1, #(1 << 54)
    bl      .Lmap_block
4:  mov     x0, x23
    mov     x1, #0x745                  // Normal, inner shareable, accessed, read, write and execute
    bl      .Lmap_block
    add     x0, x0, #0x200000
    bl      .Lmap_block

    drop_cached {block_size}
    drop_boot_map {boot_tables}
    boot_registers sctlr_el2, 0x8080, 16    // WXN comes with the map that has no such pages
    mmu_on

    adrp    x0, image_arena
    mov     x1, #{data_offset}
    add     x0, x0, x1
    bl      .Lfirst_frame
    mov     x0, x20
    bl      cloven_primary

    // The 2 MiB block at x0, to itself, with the attributes x1.
.Lmap_block:
    map_block_routine

    .section .text.entry, "ax"
    .global secondary_entry
secondary_entry:
    mov     x20, x0                     // its PerCpu, at the same address as with the MMU on
    quiet_el2
    add     x21, x20, #{mailbox_offset}
    ask_admission x21, .Lturned_away
    ldp     x6, x7, [x20]               // crate::stage1::Registers
    ldp     x5, x8, [x20, #16]
    mmu_on
    mov     x0, x20
    bl      .Lfirst_frame
    bl      cloven_secondary

    // Not let in: PSCI CPU_OFF by SMC, which does not come back. Who refuses that leaves a CPU that touches nothing.
.Lturned_away:
    movz    x0, #0x0002
    movk    x0, #0x8400, lsl #16
    smc     #0
1:  wfi
    b       1b

    // Stack, per-CPU pointer and vectors for the CPU whose PerCpu is at x0.
.Lfirst_frame:
    mov     sp, x0
    msr     tpidr_el2, x0
    adrp    x1, vectors
    add     x1, x1, :lo12:vectors
    msr     vbar_el2, x1
    isb
    mov     x29, xzr
    ret

    // Prints the text at x19 and stops.
.Lstop:
    ldrb    w0, [x19], #1
    cbz     w0, 1f
    bl      early_putc
    b       .Lstop
1:  wfi
    b       1b

.Lwrong_level:
    .asciz  "cloven[0] fatal: must be started at EL2 (QEMU: -machine virt,virtualization=on)\r\n"
.Lonly_e2h:
    .asciz  "cloven[0] fatal: HCR_EL2.E2H reads as 1 on this CPU: it has no EL2 with one privilege level\r\n"
.Lmisplaced:
    .asciz  "cloven[0] fatal: the image was not loaded at a multiple of 2 MiB\r\n"
    .p2align 2
    "#,
    sctlr_off = const SCTLR_EL2_OFF,
    sctlr_el1_off = const SCTLR_EL1_OFF,
    block_size = const BLOCK_SIZE,
    data_offset = const DATA_OFFSET,
    mailbox_offset = const MAILBOX_OFFSET,
    boot_tables = const BOOT_TABLES,
);

unsafe extern "C" {
    fn secondary_entry();
}

/// Where the firmware starts a CPU.
pub fn secondary_address() -> u64 {
    secondary_entry as *const () as u64
}
