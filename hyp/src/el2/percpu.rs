//! Per-CPU data and stacks.
//!
//! Invariant: `TPIDR_EL2` points to the running CPU's [`PerCpu`] from the entry code on, and that address is also the
//! top of its stack. A block, at `image_arena` + number x [`BLOCK_SIZE`], is, upwards:
//!
//! | bytes | what |
//! |---|---|
//! | 4096 | guard: not mapped, so an overflow faults |
//! | 36864 | stack: a realm's run has 8 KiB of it for the host's vectors |
//! | 8192 | [`PerCpu`], and above it the stack on which a fault of our own is told |

use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

use arm_sysregs::el2::accessors::read_tpidr_el2;

use super::cache;
use super::exits::Exits;
use super::image::Layout;
use super::psci::HostEntry;
use crate::caps::mailbox::{self, Lines, Mailbox};
use crate::mapping::{Address, AddressError, GRANULE, Pa, Range};
use crate::stage1::Registers;

const GUARD_SIZE: u64 = GRANULE;
pub const STACK_SIZE: u64 = 9 * GRANULE;
const DATA_SIZE: u64 = 2 * GRANULE;
/// Bytes in the block of one CPU.
pub const BLOCK_SIZE: u64 = GUARD_SIZE + STACK_SIZE + DATA_SIZE;
/// Where in the block the CPU's data is, which is also where its stack ends.
pub const DATA_OFFSET: u64 = GUARD_SIZE + STACK_SIZE;
/// Above the CPU's data: the end of the stack for faults of our own. The entry code and the vectors know it.
pub const FAULT_STACK_OFFSET: u64 = DATA_SIZE;

/// Where in the CPU's data its mailbox lies. The entry code knows it.
pub const MAILBOX_OFFSET: u64 = mailbox::LINE as u64;
const _: () = assert!(core::mem::offset_of!(PerCpu, mailbox) as u64 == MAILBOX_OFFSET);

/// What a CPU has for itself. The entry code and the vectors know where its first fields lie.
#[repr(C, align(256))]
pub struct PerCpu {
    /// Turns this CPU's MMU on: read with the MMU off, so written once and cleaned, in cache lines of its own.
    boot: Registers,
    _own_line: [u64; 28],
    /// What it is told, and says, with its MMU off.
    mailbox: Mailbox,
    number: usize,
    host_pc: AtomicU64,
    host_context: AtomicU64,
    /// Faults of our own on this CPU.
    pub deaths: AtomicU32,
    /// How often it came to EL2 from below.
    pub exits: Exits,
    /// `VTTBR_EL2` and `VMPIDR_EL2` of the guest that ran here last.
    pub last_guest: [AtomicU64; 2],
    /// Whether it is like the CPU that guests are prepared for: 0 if nobody has looked yet, else `switch`'s.
    pub likeness: AtomicU8,
}

impl PerCpu {
    /// Writes the data of CPU `number` into its block.
    ///
    /// # Safety
    /// The block is mapped for writing, and its CPU is not started yet (or is this one, which has not used it).
    #[unsafe(link_section = ".init.text")]
    pub unsafe fn create(layout: &Layout, number: usize, boot: Registers) {
        let at = data_address(layout, number) as *mut Self;
        let data = Self {
            boot,
            _own_line: [0; 28],
            mailbox: Mailbox::new(),
            number,
            host_pc: AtomicU64::new(0),
            host_context: AtomicU64::new(0),
            deaths: AtomicU32::new(0),
            exits: Exits::new(),
            last_guest: [const { AtomicU64::new(u64::MAX) }; 2],
            likeness: AtomicU8::new(0),
        };
        // SAFETY: aligned (a page's start), mapped, and nobody refers to it, by the caller's word.
        unsafe { at.write(data) };
        cache::clean_and_invalidate(at as usize, size_of::<Self>());
    }

    /// The running CPU's.
    pub fn this() -> &'static Self {
        // SAFETY: the entry code set the register to this CPU's data, which lives as long as the hypervisor does, and
        // shared references to it are sound: what changes is atomic.
        unsafe { &*(read_tpidr_el2().bits() as *const Self) }
    }

    /// The data of CPU `number`, which is below the number of blocks that were created.
    pub fn of(layout: &Layout, number: usize) -> &'static Self {
        // SAFETY: created before any other CPU runs, and as for `this`.
        unsafe { &*(data_address(layout, number) as *const Self) }
    }

    /// Its mailbox, from the side of who lets it in.
    pub fn lines(&self) -> impl Lines + '_ {
        self.mailbox.with(cache::clean_and_invalidate)
    }

    /// Its number: its place in the machine's list of CPUs.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Bytes of its stack that were ever used, or hold something else than zero since before it was a stack.
    #[cfg(feature = "trial")]
    pub fn stack_used(&self) -> u64 {
        let top = core::ptr::from_ref(self) as u64;
        let words = (top - STACK_SIZE..top).step_by(8);
        // SAFETY: its stack, which is mapped; whatever is read there at whatever moment is a number.
        let unused =
            words.take_while(|&at| unsafe { (at as *const u64).read_volatile() } == 0).count() as u64;
        STACK_SIZE - 8 * unused
    }

    /// Sets where it begins the next time it is started.
    pub fn set_host_entry(&self, entry: HostEntry) {
        self.host_pc.store(entry.pc, Ordering::Relaxed);
        self.host_context.store(entry.context, Ordering::Release);
    }

    /// Where it begins.
    pub fn host_entry(&self) -> HostEntry {
        let context = self.host_context.load(Ordering::Acquire);
        HostEntry { pc: self.host_pc.load(Ordering::Relaxed), context }
    }
}

fn data_address(layout: &Layout, number: usize) -> u64 {
    layout.arena.start().get() + number as u64 * BLOCK_SIZE + DATA_OFFSET
}

/// The memory of CPU `number`'s block that is mapped: all but the guard.
///
/// # Errors
/// [`AddressError`], for no number that there is a block for.
#[unsafe(link_section = ".init.text")]
pub fn mapped(layout: &Layout, number: usize) -> Result<Range<Pa>, AddressError> {
    let block = layout.arena.start().get() + number as u64 * BLOCK_SIZE;
    Range::of_granules(block + GUARD_SIZE, BLOCK_SIZE - GUARD_SIZE)
}
