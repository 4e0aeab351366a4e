//! The first steps of an image that is linked at 0 and runs where it was loaded: assembler macros that the entry of the
//! hypervisor and those of payloads share.
//!
//! Invariant: what is written with the MMU off is neither overwritten later by a dirty line of whoever had the memory
//! before, nor hidden by a line that was cached meanwhile (Arm ARM D7.5.9; Linux `booting.rst`: the loader has cleaned the
//! image, and nothing else).
//!
//! The linker script gives `image_start`, `image_relocations`, `image_relocations_end`, `image_bss` and `image_arena`; the
//! arena follows the variables, and `more` bytes of it are cleared with them.

/// Tables of a boot map that has blocks in five places: a root, and a table of level 1 and 2 for each.
pub const BOOT_TABLES: u64 = 11;

/// The macros `range`, `each_line`, `zero`, `self_relocate`, `drop_cached` and those of a boot map as text for `global_asm!`.
#[macro_export]
macro_rules! start_macros {
    () => {
        r#"
    // The range of the linker's symbols \from to \to + \more in x0 and x1.
    .macro range from, to, more
    adrp    x0, \from
    add     x0, x0, :lo12:\from
    adrp    x1, \to
    add     x1, x1, :lo12:\to
    mov     x3, #(\more)
    add     x1, x1, x3
    .endm

    // For each cache line from x0 to x1 do \op. Changes x2 and x3.
    .macro each_line op
    mrs     x2, ctr_el0
    ubfx    x2, x2, #16, #4
    mov     x3, #4
    lsl     x2, x3, x2
    sub     x3, x2, #1
    bic     x0, x0, x3
1:  dc      \op, x0
    add     x0, x0, x2
    cmp     x0, x1
    b.lo    1b
    .endm

    // Zeroes x0 to x1, 16 bytes at a time.
    .macro zero
1:  cmp     x0, x1
    b.hs    2f
    stp     xzr, xzr, [x0], #16
    b       1b
2:
    .endm

    // Relocates the image to x23, where it was loaded, and clears its variables. Changes x0 to x5.
    .macro self_relocate more
    range   image_start, image_arena, \more
    each_line civac
    dsb     sy
    // R_AARCH64_RELATIVE is the only kind there is: the image is linked at 0.
    range   image_relocations, image_relocations_end, 0
1:  cmp     x0, x1
    b.hs    2f
    ldp     x3, x4, [x0], #16
    ldr     x5, [x0], #8
    add     x5, x5, x23
    str     x5, [x23, x3]
    b       1b
2:
    range   image_bss, image_arena, \more
    zero
    .endm

    // x3 = the table below entry number (address >> \shift) of the table x3; x22 is the next free table.
    .macro descend shift
    ubfx    x2, x0, #\shift, #9
    add     x2, x3, x2, lsl #3
    ldr     x3, [x2]
    cbnz    x3, 1f
    orr     x3, x22, #3
    str     x3, [x2]
    add     x22, x22, #4096
1:  and     x3, x3, #~3
    .endm

    // A subroutine that maps the 2 MiB block at x0 to itself with the attributes x1, in tables of 48 bits at x21.
    .macro map_block_routine
    mov     x3, x21
    descend 39
    descend 30
    ubfx    x2, x0, #21, #9
    orr     x4, x0, x1
    str     x4, [x3, x2, lsl #3]
    ret
    .endm

    // Makes x21 to x21 + \tables pages an empty boot map. Changes x0 to x4 and x22.
    .macro clear_boot_map tables
    add     x22, x21, #4096
    mov     x0, x21
    add     x1, x21, #(\tables * 4096)
    mov     x4, x1
    each_line civac
    dsb     sy
    mov     x0, x21
    mov     x1, x4
    zero
    .endm

    // Drops what the caches hold of the boot map of \tables pages at x21 since. Changes x0 to x3.
    .macro drop_boot_map tables
    mov     x0, x21
    add     x1, x21, #(\tables * 4096)
    each_line ivac
    dsb     sy
    .endm

    // What turns the MMU on with the boot map at x21: root in x5, MAIR in x6, TCR in x7, SCTLR in x8. \tcr are bits 31 to 16 of TCR
    // without the size of output addresses, which goes to bit \ps. Changes x1 and x3.
    .macro boot_registers sctlr, tcr, ps
    mrs     x1, id_aa64mmfr0_el1
    and     x1, x1, #0xf
    mov     x3, #5
    cmp     x1, x3
    csel    x1, x1, x3, lo
    movz    x7, #0x3510                 // write-back, inner shareable walks; 48 bits of input
    movk    x7, #\tcr, lsl #16
    orr     x7, x7, x1, lsl #\ps
    mov     x6, #0xff04                 // hyp::mapping::descriptor::MAIR
    mov     x5, x21
    mrs     x8, \sctlr
    mov     x1, #0x100d                 // I, SA, C, M
    orr     x8, x8, x1
    .endm

    // Drops what the caches hold of the image since: memory is right.
    .macro drop_cached more
    dsb     sy
    range   image_start, image_arena, \more
    each_line ivac
    dsb     sy
    .endm
"#
    };
}
