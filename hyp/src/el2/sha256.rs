//! SHA-256 by the instructions of FEAT_SHA256 (FIPS 180-4; Arm ARM C3.6.6): a sixth of what the same costs in code, and all that is measured is hashed.
//!
//! Invariant: every vector register has what it had before, whoever's it is. Where EL2 may not use them now (`CPTR_EL2` traps for who is below, or
//! this is streaming mode) nothing is done.

use core::arch::{asm, global_asm};

/// Bytes of a block, and of the length behind a message.
const BLOCK: usize = 64;
const LENGTH: usize = 8;
/// Bytes of the registers that are used, at the longest length there is.
const SAVED: usize = 10 * 256;

const CPTR_TZ: u64 = 1 << 8;
const CPTR_TFP: u64 = 1 << 10;

const INITIAL: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// The hash of a message; nothing if this CPU has no instructions for it, or may not use vectors now.
pub fn digest(message: &[u8]) -> Option<[u8; 32]> {
    let has_sve = usable()?;
    let mut state = INITIAL;
    let whole = message.len() / BLOCK;
    let (blocks, rest) = message.split_at(whole * BLOCK);
    // The rest, a bit, zeroes, and the number of bits.
    let mut last = [0; 2 * BLOCK];
    last[..rest.len()].copy_from_slice(rest);
    last[rest.len()] = 0x80;
    let size = if rest.len() < BLOCK - LENGTH { BLOCK } else { 2 * BLOCK };
    last[size - LENGTH..size].copy_from_slice(&(message.len() as u64 * 8).to_be_bytes());
    compress(&mut state, [blocks, &last[..size]], has_sve);
    let mut digest = [0; 32];
    for (to, word) in digest.chunks_exact_mut(4).zip(state) {
        to.copy_from_slice(&word.to_be_bytes());
    }
    Some(digest)
}

/// Whether the instructions are there and vectors may be used; if so, whether those are SVE's.
fn usable() -> Option<bool> {
    let (isar0, pfr0, pfr1, cptr): (u64, u64, u64, u64);
    // SAFETY: reads registers.
    unsafe {
        asm!("mrs {}, id_aa64isar0_el1", out(reg) isar0, options(nomem, nostack, preserves_flags));
        asm!("mrs {}, id_aa64pfr0_el1", out(reg) pfr0, options(nomem, nostack, preserves_flags));
        asm!("mrs {}, id_aa64pfr1_el1", out(reg) pfr1, options(nomem, nostack, preserves_flags));
        asm!("mrs {}, cptr_el2", out(reg) cptr, options(nomem, nostack, preserves_flags));
    }
    let field = |register: u64, lowest: u32| register >> lowest & 0xf;
    let (has_sve, has_sme) = (field(pfr0, 32) != 0, field(pfr1, 24) != 0);
    let is_trapped = cptr & CPTR_TFP != 0 || has_sve && cptr & CPTR_TZ != 0;
    if field(isar0, 12) == 0 || is_trapped {
        return None;
    }
    if has_sme {
        let svcr: u64;
        // SAFETY: FEAT_SME has it, and a read changes nothing.
        unsafe { asm!("mrs {}, s3_3_c4_c2_2", out(reg) svcr, options(nomem, nostack, preserves_flags)) };
        if svcr & 1 != 0 {
            return None;
        }
    }
    Some(has_sve)
}

/// What vector registers hold while they are used here.
#[repr(C, align(16))]
struct Saved([u8; SAVED]);

// Not in the frame of who calls it.
#[inline(never)]
fn compress(state: &mut [u32; 8], parts: [&[u8]; 2], has_sve: bool) {
    let mut saved = core::mem::MaybeUninit::<Saved>::uninit();
    // SAFETY: the area is as large as the routines take it for; vectors are usable by the caller's word, and have what they had afterwards; each
    // part is of whole blocks.
    unsafe {
        match has_sve {
            true => cloven_save_z(saved.as_mut_ptr()),
            false => cloven_save_q(saved.as_mut_ptr()),
        }
        for part in parts {
            if !part.is_empty() {
                cloven_sha256(state, part.as_ptr(), part.len() / BLOCK);
            }
        }
        match has_sve {
            true => cloven_load_z(saved.as_ptr()),
            false => cloven_load_q(saved.as_ptr()),
        }
    }
}

unsafe extern "C" {
    fn cloven_save_q(into: *mut Saved);
    fn cloven_load_q(from: *const Saved);
    fn cloven_save_z(into: *mut Saved);
    fn cloven_load_z(from: *const Saved);
    fn cloven_sha256(state: &mut [u32; 8], data: *const u8, blocks: usize);
}

global_asm!(
    r#"
    .arch_extension fp
    .arch_extension simd
    .arch_extension sha2
    .arch_extension sve

    .macro used_128 pair
    \pair   q0, q1, [x0, #0]
    \pair   q4, q5, [x0, #32]
    \pair   q6, q7, [x0, #64]
    \pair   q16, q17, [x0, #96]
    \pair   q18, q19, [x0, #128]
    .endm

    .macro used_long one
    \one    z0, [x0, #0, mul vl]
    \one    z1, [x0, #1, mul vl]
    \one    z4, [x0, #2, mul vl]
    \one    z5, [x0, #3, mul vl]
    \one    z6, [x0, #4, mul vl]
    \one    z7, [x0, #5, mul vl]
    \one    z16, [x0, #6, mul vl]
    \one    z17, [x0, #7, mul vl]
    \one    z18, [x0, #8, mul vl]
    \one    z19, [x0, #9, mul vl]
    .endm

    // Four rounds on the words of v\m0, which become those of 16 rounds later.
    .macro rounds m0, m1, m2, m3, more
    ld1     {{v16.4s}}, [x3], #16
    add     v16.4s, v16.4s, v\m0\().4s
    mov     v17.16b, v0.16b
    .if \more
    sha256su0 v\m0\().4s, v\m1\().4s
    .endif
    sha256h q0, q1, v16.4s
    sha256h2 q1, q17, v16.4s
    .if \more
    sha256su1 v\m0\().4s, v\m2\().4s, v\m3\().4s
    .endif
    .endm

    .section .text.sha256, "ax"
    .p2align 2
    .global cloven_save_q
cloven_save_q:
    used_128 stp
    ret
    .global cloven_load_q
cloven_load_q:
    used_128 ldp
    ret
    .global cloven_save_z
cloven_save_z:
    used_long str
    ret
    .global cloven_load_z
cloven_load_z:
    used_long ldr
    ret

    // The state at x0 after x2 blocks at x1. Changes v0, v1, v4 to v7 and v16 to v19.
    .global cloven_sha256
cloven_sha256:
    ld1     {{v0.4s, v1.4s}}, [x0]
1:  adrp    x3, .Lsha256_constants
    add     x3, x3, :lo12:.Lsha256_constants
    ld1     {{v4.16b, v5.16b, v6.16b, v7.16b}}, [x1], #64
    mov     v18.16b, v0.16b
    mov     v19.16b, v1.16b
    rev32   v4.16b, v4.16b
    rev32   v5.16b, v5.16b
    rev32   v6.16b, v6.16b
    rev32   v7.16b, v7.16b
    .rept   3
    rounds  4, 5, 6, 7, 1
    rounds  5, 6, 7, 4, 1
    rounds  6, 7, 4, 5, 1
    rounds  7, 4, 5, 6, 1
    .endr
    rounds  4, 5, 6, 7, 0
    rounds  5, 6, 7, 4, 0
    rounds  6, 7, 4, 5, 0
    rounds  7, 4, 5, 6, 0
    add     v0.4s, v0.4s, v18.4s
    add     v1.4s, v1.4s, v19.4s
    subs    x2, x2, #1
    b.ne    1b
    st1     {{v0.4s, v1.4s}}, [x0]
    ret

    // FIPS 180-4, 4.2.2.
    .section .rodata.sha256, "a"
    .p2align 4
.Lsha256_constants:
    .long   0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5
    .long   0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174
    .long   0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da
    .long   0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967
    .long   0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85
    .long   0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070
    .long   0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3
    .long   0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2
    "#
);
