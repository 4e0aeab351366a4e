//! Granules by their physical address: what EL2 reads from the host's, keeps in its own, wipes and cleans.
//!
//! Invariants:
//! - Of what somebody else can write there is never a reference: it is copied, by volatile accesses, into or out of private memory.
//! - All that is accessed lies in the one map that who made the [`Memory`] vouches for.
//!
//! Caches are looked after on the bare target only (Arm ARM D7.5.9); elsewhere this is memory like any other, for tests.

use core::mem::{align_of, size_of};

use super::granule::{Granules, Held};
use crate::mapping::{Address, GRANULE, Pa};

/// What is copied at a time where both ends allow it.
type Chunk = u128;

/// Memory that is mapped at a fixed offset from its physical address.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    offset: u64,
}

impl Memory {
    /// Memory at its physical address plus `offset` (wrapping).
    ///
    /// # Safety
    /// What the value is given is mapped there as data, Normal Write-Back, for reads and writes, as long as it is used: each [`Held`], and each
    /// address that [`Memory::read`], [`Memory::write`] and the typed accesses are given, to the end of its granule. Of what is read and
    /// written by address nobody has a Rust reference: it is the host's, or a realm's, or nobody's.
    pub const unsafe fn new(offset: u64) -> Self {
        Self { offset }
    }

    #[inline(always)]
    fn at<T>(self, pa: Pa) -> *mut T {
        core::ptr::with_exposed_provenance_mut(pa.get().wrapping_add(self.offset) as usize)
    }

    /// Copies `into.len()` bytes from `from` on. Somebody else may be writing them: each aligned doubleword is as it was at one moment, and
    /// what was read is the caller's own.
    #[inline]
    pub fn read(&self, from: Pa, into: &mut [u8]) {
        let source = self.at::<u8>(from);
        // SAFETY: mapped by the word of who made this, and what is written is the slice.
        unsafe { copy(source, into.as_mut_ptr(), into.len()) };
    }

    /// Copies `from` to `to` on. Somebody else may be reading there.
    #[inline]
    pub fn write(&self, to: Pa, from: &[u8]) {
        // SAFETY: as for `read`, the other way round.
        unsafe { copy(from.as_ptr(), self.at::<u8>(to), from.len()) };
    }

    /// The bytes of what the hypervisor alone has, to fill them or to look at them.
    pub fn slice<'h>(&self, held: &'h mut Held) -> &'h mut [u8] {
        let range = held.range();
        // SAFETY: mapped, initialized as all memory is, and nobody else's as long as it is held, which is borrowed alone.
        unsafe { core::slice::from_raw_parts_mut(self.at(range.start()), range.size() as usize) }
    }

    /// Puts a value into a granule that the hypervisor keeps. It is not dropped there.
    ///
    /// # Safety
    /// All of the value lies in memory that ownership keeps from everybody else ([`Ownership::keep`](super::Ownership::keep), or donated), which
    /// stays so and is written by nobody for as long as the reference lives, but through its own interior mutability; and nothing else there is
    /// referred to meanwhile.
    pub unsafe fn place<T>(&self, pa: Pa, value: T) -> &T {
        let at = self.at::<T>(pa);
        assert!(is_in_granule::<T>(pa) && at.is_aligned(), "a value does not fit at {pa}");
        // SAFETY: the caller's word, and it fits.
        unsafe {
            at.write(value);
            &*at
        }
    }

    /// What [`Memory::place`] has put there.
    ///
    /// # Safety
    /// A `T` was placed there, and the granule is still kept for what it was; and as for [`Memory::place`].
    #[inline]
    pub unsafe fn get<T>(&self, pa: Pa) -> &T {
        let at = self.at::<T>(pa);
        assert!(is_in_granule::<T>(pa) && at.is_aligned(), "no value can be at {pa}");
        // SAFETY: the caller's word.
        unsafe { &*at }
    }
}

/// Whether a `T` at `pa` ends in the granule it begins in, or fills several from the start of one on.
fn is_in_granule<T>(pa: Pa) -> bool {
    let offset = pa.get() % GRANULE;
    offset == 0 || offset + size_of::<T>() as u64 <= GRANULE
}

/// Copies bytes, 16 at a time where both ends are aligned alike; each access is volatile.
///
/// # Safety
/// Both are mapped for `size` bytes, and do not overlap.
unsafe fn copy(mut from: *const u8, mut to: *mut u8, mut size: usize) {
    let step = |from: &mut *const u8, to: &mut *mut u8, size: &mut usize, bytes: usize| {
        (*from, *to, *size) = (from.wrapping_add(bytes), to.wrapping_add(bytes), *size - bytes);
    };
    let is_alike = from.addr() % align_of::<Chunk>() == to.addr() % align_of::<Chunk>();
    // SAFETY: of each access: both are mapped for as many bytes as are left; doublewords and chunks are aligned.
    unsafe {
        while size > 0 && !(is_alike && from.cast::<Chunk>().is_aligned()) {
            if size >= 8 && from.cast::<u64>().is_aligned() && to.cast::<u64>().is_aligned() {
                to.cast::<u64>().write_volatile(from.cast::<u64>().read_volatile());
                step(&mut from, &mut to, &mut size, 8);
            } else {
                to.write_volatile(from.read_volatile());
                step(&mut from, &mut to, &mut size, 1);
            }
        }
        while size >= 4 * size_of::<Chunk>() {
            let (source, sink) = (from.cast::<Chunk>(), to.cast::<Chunk>());
            let four: [Chunk; 4] = core::array::from_fn(|i| source.add(i).read_volatile());
            four.into_iter().enumerate().for_each(|(i, chunk)| sink.add(i).write_volatile(chunk));
            step(&mut from, &mut to, &mut size, 4 * size_of::<Chunk>());
        }
        while size >= size_of::<Chunk>() {
            to.cast::<Chunk>().write_volatile(from.cast::<Chunk>().read_volatile());
            step(&mut from, &mut to, &mut size, size_of::<Chunk>());
        }
        while size > 0 {
            to.write_volatile(from.read_volatile());
            step(&mut from, &mut to, &mut size, 1);
        }
    }
}

#[cfg(target_os = "none")]
impl Granules for Memory {
    #[inline]
    fn zero(&self, held: &Held) {
        let (start, size) = (self.at::<u8>(held.range().start()) as usize, held.range().size() as usize);
        // SAFETY: memory that is held is nobody else's, and mapped.
        unsafe { arm_asm::zero(start, size) };
    }
    #[inline]
    fn clean_and_invalidate(&self, held: &Held) {
        arm_asm::clean_and_invalidate(
            self.at::<u8>(held.range().start()) as usize,
            held.range().size() as usize,
        );
    }
}

#[cfg(not(target_os = "none"))]
impl Granules for Memory {
    fn zero(&self, held: &Held) {
        // SAFETY: memory that is held is nobody else's, and mapped.
        unsafe { self.at::<u8>(held.range().start()).write_bytes(0, held.range().size() as usize) };
    }
    fn clean_and_invalidate(&self, _: &Held) {}
}

/// The instructions.
#[cfg(target_os = "none")]
mod arm_asm {
    use core::arch::asm;

    use crate::mapping::GRANULE;

    /// Steps that are made in one turn of a loop.
    const UNROLLED: usize = 8;

    /// Fills whole granules with zeroes.
    ///
    /// # Safety
    /// They are mapped as Normal memory for writing, and nobody has a reference to them.
    #[inline]
    pub unsafe fn zero(start: usize, size: usize) {
        /// `DCZID_EL0`: the instruction is prohibited, and log2 of words in a block.
        const DZP: u64 = 1 << 4;
        const BS: u64 = 0b1111;
        let id: u64;
        // SAFETY: reads a register.
        unsafe { asm!("mrs {}, dczid_el0", out(reg) id, options(nomem, nostack, preserves_flags)) };
        let block = 4usize << (id & BS);
        if id & DZP != 0 || !size.is_multiple_of(UNROLLED * block) {
            // SAFETY: the caller's word.
            return unsafe { (start as *mut u8).write_bytes(0, size) };
        }
        // SAFETY: whole blocks of what the caller vouches for: a granule is aligned to every size of a block.
        unsafe {
            asm!(
                "2:",
                "dc zva, {at}", "add {at}, {at}, {block}",
                "dc zva, {at}", "add {at}, {at}, {block}",
                "dc zva, {at}", "add {at}, {at}, {block}",
                "dc zva, {at}", "add {at}, {at}, {block}",
                "dc zva, {at}", "add {at}, {at}, {block}",
                "dc zva, {at}", "add {at}, {at}, {block}",
                "dc zva, {at}", "add {at}, {at}, {block}",
                "dc zva, {at}", "add {at}, {at}, {block}",
                "cmp {at}, {end}",
                "b.lo 2b",
                at = inout(reg) start => _,
                end = in(reg) start + size,
                block = in(reg) block,
                options(nostack),
            );
        }
    }

    /// Cleans and invalidates whole granules to the point of coherency, and waits for it.
    #[inline]
    pub fn clean_and_invalidate(start: usize, size: usize) {
        /// `CTR_EL0.DminLine`: log2 of words in the smallest line.
        const DMINLINE_SHIFT: u32 = 16;
        let ctr: u64;
        // SAFETY: reads a register.
        unsafe { asm!("mrs {}, ctr_el0", out(reg) ctr, options(nomem, nostack, preserves_flags)) };
        // A line may be meant twice, and nothing beyond the granules is.
        let line = (4usize << (ctr >> DMINLINE_SHIFT & 0b1111)).min(GRANULE as usize / UNROLLED);
        // SAFETY: the maintenance writes back what is there and changes no value.
        unsafe {
            asm!(
                "2:",
                "dc civac, {at}", "add {at}, {at}, {line}",
                "dc civac, {at}", "add {at}, {at}, {line}",
                "dc civac, {at}", "add {at}, {at}, {line}",
                "dc civac, {at}", "add {at}, {at}, {line}",
                "dc civac, {at}", "add {at}, {at}, {line}",
                "dc civac, {at}", "add {at}, {at}, {line}",
                "dc civac, {at}", "add {at}, {at}, {line}",
                "dc civac, {at}", "add {at}, {at}, {line}",
                "cmp {at}, {end}",
                "b.lo 2b",
                "dsb sy",
                at = inout(reg) start => _,
                end = in(reg) start + size,
                line = in(reg) line,
                options(nostack),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::boxed::Box;
    use std::vec::Vec;

    use super::*;
    use crate::mapping::Range;

    #[repr(align(4096))]
    struct Arena([u8; 4 * GRANULE as usize]);

    /// Four granules at physical address 0x4000_0000.
    fn with_arena(work: impl FnOnce(&Memory, &dyn Fn(u64) -> Pa)) {
        const START: u64 = 0x4000_0000;
        let mut arena = Box::new(Arena([0x5a; 4 * GRANULE as usize]));
        let at = arena.0.as_mut_ptr().expose_provenance() as u64;
        // SAFETY: the arena is at that offset, and referred to by nobody else.
        let memory = unsafe { Memory::new(at.wrapping_sub(START)) };
        work(&memory, &|offset| Pa::new(START + offset).unwrap());
    }

    fn held(start: Pa, size: u64) -> Held {
        Held::new(Range::of_granules(start.get(), size).unwrap())
    }

    #[test]
    fn what_was_written_is_read_at_every_alignment_and_nothing_beside_it() {
        with_arena(|memory, pa| {
            for (at, shift, size) in (0..17)
                .flat_map(|at| (0..17).flat_map(move |s| [0, 1, 7, 8, 15, 16, 33, 150].map(|n| (at, s, n))))
            {
                memory.write(pa(0), &[0xee; 256]);
                let given: Vec<u8> = (0..shift + size).map(|i| (i * 7 + at) as u8).collect();
                memory.write(pa(32 + at as u64), &given[shift..]);
                let mut around = [0; 256];
                memory.read(pa(0), &mut around);
                assert_eq!(around[32 + at..][..size], given[shift..]);
                assert!(around[..32 + at].iter().chain(&around[32 + at + size..]).all(|&byte| byte == 0xee));
                let mut back = [0xaa; 200];
                memory.read(pa(32 + at as u64), &mut back[shift..][..size]);
                assert_eq!(back[shift..][..size], given[shift..]);
                assert!(back[..shift].iter().chain(&back[shift + size..]).all(|&byte| byte == 0xaa));
            }
        });
    }

    #[test]
    fn what_is_held_is_filled_from_a_granule_and_wiped_and_nothing_else() {
        with_arena(|memory, pa| {
            let source: Vec<u8> = (0..GRANULE).map(|i| (i % 251) as u8).collect();
            memory.write(pa(0), &source);
            let mut held = held(pa(GRANULE), 2 * GRANULE);
            memory.read(pa(0), &mut memory.slice(&mut held)[GRANULE as usize..]);
            let mut found = std::vec![0; GRANULE as usize];
            memory.read(pa(2 * GRANULE), &mut found);
            assert_eq!(found, source);
            memory.zero(&held);
            memory.clean_and_invalidate(&held);
            assert!(memory.slice(&mut held).iter().all(|&byte| byte == 0));
            memory.read(pa(0), &mut found);
            assert_eq!(found, source);
            memory.read(pa(3 * GRANULE), &mut found);
            assert!(found.iter().all(|&byte| byte == 0x5a));
        });
    }

    #[test]
    fn a_value_is_found_where_it_was_placed() {
        with_arena(|memory, pa| {
            // SAFETY: the arena is nobody else's.
            let (placed, found) = unsafe {
                let placed = memory.place(pa(GRANULE + 64), core::cell::Cell::new(0x1234_5678_9abc_u64));
                (placed, memory.get::<core::cell::Cell<u64>>(pa(GRANULE + 64)))
            };
            placed.set(placed.get() + 1);
            assert_eq!(found.get(), 0x1234_5678_9abd);
        });
    }

    #[test]
    #[should_panic(expected = "does not fit")]
    fn a_value_across_the_end_of_a_granule_is_not_placed() {
        // SAFETY: it is not placed.
        with_arena(|memory, pa| _ = unsafe { memory.place(pa(GRANULE - 8), [0u64; 2]) });
    }
}
