//! SHA-256 by the CPU's own instructions (FEAT_SHA256; Arm ARM C7.2, SHA256H and the others).
//!
//! Invariant: whoever had vectors in the CPU has them afterwards: those that are used here are saved before and put back behind, in the length
//! that the CPU has. EL2 uses none otherwise.

use core::arch::{asm, global_asm};
use core::mem::MaybeUninit;

/// Vectors that are used: v0 to v9.
const USED: usize = 10;
/// Bytes of the longest vector that there is.
const LONGEST: usize = 256;

/// Lowest bits of fields: `ID_AA64ISAR0_EL1.SHA2`, `ID_AA64PFR0_EL1.SVE`, `ID_AA64PFR1_EL1.SME`.
const ISAR0_SHA2: u32 = 12;
const PFR0_SVE: u32 = 32;
const PFR1_SME: u32 = 24;

#[repr(C, align(16))]
struct Saved([u8; USED * LONGEST]);

/// Works `blocks` into `state` (FIPS 180-4, 6.2.2). False, and nothing was done, if this CPU cannot: it has no such instructions, or is in
/// streaming mode, where there are none.
///
/// Runs while the host's registers are on the CPU, and its controls of vectors with them.
#[inline(never)]
pub fn sha256(state: &mut [u32; 8], blocks: &[[u8; 64]]) -> bool {
    macro_rules! get {
        ($name:literal) => {{
            let value: u64;
            // SAFETY: the register exists at EL2 where it is read, and reading it changes nothing.
            unsafe { asm!(concat!("mrs {}, ", $name), out(reg) value, options(nomem, nostack, preserves_flags)) };
            value
        }};
    }
    let has = |register: u64, lowest: u32| register >> lowest & 0xf != 0;
    if !has(get!("id_aa64isar0_el1"), ISAR0_SHA2) {
        return false;
    }
    // SVCR.SM
    if has(get!("id_aa64pfr1_el1"), PFR1_SME) && get!("s3_3_c4_c2_2") & 1 != 0 {
        return false;
    }
    let are_long = has(get!("id_aa64pfr0_el1"), PFR0_SVE);
    let mut saved = MaybeUninit::<Saved>::uninit();
    // SAFETY: the routine reads the blocks and changes the state, and has room for the vectors that it uses, which it puts back. The host's
    // controls let EL2 use them.
    unsafe {
        cloven_sha256(state.as_mut_ptr(), blocks.as_ptr(), blocks.len(), saved.as_mut_ptr(), are_long.into());
    }
    true
}

unsafe extern "C" {
    fn cloven_sha256(
        state: *mut u32,
        blocks: *const [u8; 64],
        count: usize,
        saved: *mut Saved,
        are_long: u64,
    );
}

global_asm!(
    r#"
    .arch_extension fp
    .arch_extension simd
    .arch_extension sve
    .arch_extension sha2

    // The vectors that are used: with SVE all their bits, as a write of the low 128 clears those above.
    .macro sha256_vectors short, long
    cbnz    x4, 1f
    \short  q0, q1, [x3, #0]
    \short  q2, q3, [x3, #32]
    \short  q4, q5, [x3, #64]
    \short  q6, q7, [x3, #96]
    \short  q8, q9, [x3, #128]
    b       2f
1:
    .irp    number, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9
    \long   z\number, [x3, #\number, mul vl]
    .endr
2:
    .endm

    // Four rounds with the words in \first; with \next the words of four rounds 16 rounds later take their place.
    .macro sha256_rounds first, second, third, fourth, next
    ld1     {{v8.4s}}, [x5], #16
    add     v8.4s, v8.4s, v\first\().4s
    mov     v9.16b, v0.16b
    sha256h q0, q1, v8.4s
    sha256h2 q1, q9, v8.4s
    .if     \next
    sha256su0 v\first\().4s, v\second\().4s
    sha256su1 v\first\().4s, v\third\().4s, v\fourth\().4s
    .endif
    .endm

    .macro sha256_sixteen next
    sha256_rounds 4, 5, 6, 7, \next
    sha256_rounds 5, 6, 7, 4, \next
    sha256_rounds 6, 7, 4, 5, \next
    sha256_rounds 7, 4, 5, 6, \next
    .endm

    .section .text.cloven_sha256, "ax"
    .p2align 2
    .global cloven_sha256
cloven_sha256:
    cbz     x2, 4f
    sha256_vectors stp, str
    ld1     {{v0.4s, v1.4s}}, [x0]
3:
    ld1     {{v4.16b, v5.16b, v6.16b, v7.16b}}, [x1], #64
    .irp    number, 4, 5, 6, 7
    rev32   v\number\().16b, v\number\().16b
    .endr
    mov     v2.16b, v0.16b
    mov     v3.16b, v1.16b
    adrp    x5, cloven_sha256_constants
    add     x5, x5, :lo12:cloven_sha256_constants
    .rept   3
    sha256_sixteen 1
    .endr
    sha256_sixteen 0
    add     v0.4s, v0.4s, v2.4s
    add     v1.4s, v1.4s, v3.4s
    sub     x2, x2, #1
    cbnz    x2, 3b
    st1     {{v0.4s, v1.4s}}, [x0]
    sha256_vectors ldp, ldr
4:
    ret

    // FIPS 180-4, 4.2.2.
    .section .rodata.cloven_sha256, "a"
    .p2align 4
cloven_sha256_constants:
    .word   0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5
    .word   0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174
    .word   0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da
    .word   0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967
    .word   0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85
    .word   0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070
    .word   0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3
    .word   0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2
    "#
);
