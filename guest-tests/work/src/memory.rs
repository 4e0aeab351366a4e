//! Memory that is filled and read, protected and dropped, and executed.

use std::ptr::null_mut;

use anyhow::{Result, ensure};
use libc::{
    MADV_DONTNEED, MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_EXEC, PROT_READ, PROT_WRITE, c_int, c_void,
};
use rand::{Rng, RngExt};

use crate::{Shift, os_error};

const PAGE: usize = 4096;
/// Words of a page.
const WORDS: usize = PAGE / 8;

/// Private memory of this process, zero at first.
pub struct Pages {
    start: *mut u64,
    pages: usize,
}

impl Pages {
    /// So many pages, to be read and written.
    pub fn new(pages: usize) -> Result<Self> {
        let flags = MAP_PRIVATE | MAP_ANONYMOUS;
        // SAFETY: the kernel chooses where, so nothing else is there.
        let start = unsafe { libc::mmap(null_mut(), pages * PAGE, PROT_READ | PROT_WRITE, flags, -1, 0) };
        if start == MAP_FAILED {
            return Err(os_error("mmap"));
        }
        Ok(Self { start: start.cast(), pages })
    }

    /// All of it as bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: it is mapped, initialized by the kernel, and borrowed as a whole.
        unsafe { std::slice::from_raw_parts_mut(self.start.cast(), self.pages * PAGE) }
    }

    fn at(&self, page: usize) -> *mut c_void {
        assert!(page < self.pages);
        self.start.wrapping_add(page * WORDS).cast()
    }

    fn protect(&mut self, first: usize, count: usize, protection: c_int) -> Result<()> {
        // SAFETY: the pages are its own, and nothing borrows them.
        let status =
            unsafe { libc::mprotect(self.at(first), count.min(self.pages - first) * PAGE, protection) };
        if status == 0 { Ok(()) } else { Err(os_error("mprotect")) }
    }

    /// The pages are zero again.
    fn drop_pages(&mut self, first: usize, count: usize) -> Result<()> {
        // SAFETY: as above; zero is a value of all that is read from it.
        let status =
            unsafe { libc::madvise(self.at(first), count.min(self.pages - first) * PAGE, MADV_DONTNEED) };
        if status == 0 { Ok(()) } else { Err(os_error("madvise")) }
    }

    fn write(&mut self, page: usize, value: impl Fn(usize) -> u64) {
        let start: *mut u64 = self.at(page).cast();
        for word in 0..WORDS {
            // SAFETY: a word of a page that is mapped for writing.
            unsafe { start.add(word).write_volatile(value(start as usize + word * 8)) };
        }
    }

    fn check(&self, page: usize, value: impl Fn(usize) -> u64) -> Result<()> {
        let start: *const u64 = self.at(page).cast();
        for word in 0..WORDS {
            let at = start as usize + word * 8;
            // SAFETY: a word of a page that is mapped for reading.
            let (found, expected) = (unsafe { start.add(word).read_volatile() }, value(at));
            ensure!(found == expected, "at {at:#x} there is {found:#x}, not {expected:#x}");
        }
        Ok(())
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: it was mapped so, and goes with the value.
        unsafe { libc::munmap(self.start.cast(), self.pages * PAGE) };
    }
}

/// What belongs at an address: different there, and in each round.
fn pattern(salt: u64) -> impl Fn(usize) -> u64 {
    move |address| (address as u64 ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ salt
}

/// Fills its share of memory and compares it, parts of it read-only, dropped and executed meanwhile.
pub fn fill(shift: &mut Shift) -> Result<String> {
    let count = shift.share / PAGE;
    let mut executed = 0u64;
    while shift.goes_on() {
        let mut pages = Pages::new(count)?;
        let value = pattern(shift.random.next_u64());
        (0..count).for_each(|page| pages.write(page, &value));
        for _ in 0..64 {
            let first = shift.random.random_range(0..count);
            let some = shift.random.random_range(1..=64.min(count - first));
            pages.protect(first, some, PROT_READ)?;
            (first..first + some).try_for_each(|page| pages.check(page, &value))?;
            pages.protect(first, some, PROT_READ | PROT_WRITE)?;
            pages.drop_pages(first, some)?;
            (first..first + some).try_for_each(|page| pages.check(page, |_| 0))?;
            (first..first + some).for_each(|page| pages.write(page, &value));
            execute(shift.random.random())?;
            executed += 1;
        }
        (0..count).try_for_each(|page| pages.check(page, &value))?;
        shift.bytes += (count * PAGE) as u64;
    }
    Ok(format!("{count} pages at once, {executed} pages executed"))
}

/// Writes a function that returns `number` to a fresh page and calls it. Linux makes what was written there visible to instruction
/// fetches when the page becomes executable.
fn execute(number: u16) -> Result<()> {
    let mut page = Pages::new(1)?;
    // movz w0, #number; ret (Arm ARM C6.2.267, C6.2.295).
    let code = [0x5280_0000 | u32::from(number) << 5, 0xd65f_03c0];
    page.bytes()[..8].copy_from_slice(&code.map(u32::to_le_bytes).concat());
    page.protect(0, 1, PROT_READ | PROT_EXEC)?;
    // SAFETY: it is such a function, executable as long as the page lives.
    let function = unsafe { std::mem::transmute::<*mut c_void, extern "C" fn() -> u32>(page.at(0)) };
    let returned = function();
    ensure!(returned == u32::from(number), "code that returns {number} returned {returned}");
    Ok(())
}
