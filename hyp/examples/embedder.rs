//! The mapping engine in other hands: a kernel of one CPU maps RAM in blocks and makes one page read-only.
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use hyp::mapping::*;

#[repr(align(4096))]
struct Tables([[AtomicU64; 512]; 64]);

static TABLES: Tables = Tables([const { [const { AtomicU64::new(0) }; 512] }; 64]);
/// A bit for each table that is not taken, and how many are not set aside either.
static FREE: AtomicU64 = AtomicU64::new(!0);
static LEFT: AtomicUsize = AtomicUsize::new(64);
static SLOTS: [Slot; 1] = [Slot::new()];
struct Kernel;
// SAFETY: a table, of memory that nothing else uses, leaves `FREE` when it is taken; `LEFT` is never more than `FREE` has.
unsafe impl TablePool for Kernel {
    fn reserve(&self, count: usize) -> Result<(), usize> {
        LEFT.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(count)).map(drop)
    }
    unsafe fn cancel(&self, count: usize) {
        LEFT.fetch_add(count, SeqCst);
    }
    unsafe fn take(&self) -> Pa {
        let free = FREE.fetch_update(SeqCst, SeqCst, |free| Some(free & (free - 1))).unwrap();
        let first = TABLES.0.as_ptr().expose_provenance() as u64;
        Pa::new(first + u64::from(free.trailing_zeros()) * GRANULE).unwrap()
    }
    fn take_root(&self, count: usize) -> Option<Pa> {
        // SAFETY: one was reserved.
        (count == 1 && self.reserve(1).is_ok()).then(|| unsafe { self.take() })
    }
    unsafe fn give(&self, table: Pa) {
        FREE.fetch_or(1 << ((table.get() - TABLES.0.as_ptr() as u64) / GRANULE), SeqCst);
        LEFT.fetch_add(1, SeqCst);
    }
}

impl Quiesce for Kernel {
    type Held = ();
    /// There is no other CPU, so all that matters is what this one is using.
    fn begin(&self, start: u64, size: u64) -> Option<()> {
        let used = [Self::begin as *const () as u64, &raw const size as u64, &raw const TABLES as u64];
        (!used.iter().any(|used| (start..start + size).contains(used))).then_some(())
    }
}

macro_rules! instruction {
    ($text:literal $(, $operand:expr)?) => {{
        #[cfg(target_os = "none")]
        // SAFETY: a barrier or an invalidation is right at any time.
        unsafe { core::arch::asm!($text, $(in(reg) $operand,)? options(nostack, preserves_flags)) };
    }};
}

// SAFETY: tables are where they lie, there is one of everything, and what is wider than what was asked for does that too.
unsafe impl Mmu for Kernel {
    type Tables = Linear;
    type Pool = Self;
    type Quiesce = Self;
    fn tables(&self) -> &Linear {
        &const { Linear::new(0) }
    }
    fn pool(&self) -> &Self {
        self
    }
    fn quiesce(&self) -> &Self {
        self
    }
    fn slots(&self) -> &[Slot] {
        &SLOTS
    }
    fn tlbi(&self, operation: Tlbi, _scope: Scope, _operand: u64) {
        match operation {
            Tlbi::Address(_) => instruction!("tlbi vaae1is, {}", _operand),
            _ => instruction!("tlbi vmalle1is"),
        }
    }
    fn barrier(&self, _barrier: Barrier, _scope: Scope) {
        instruction!("dsb ish\nisb");
    }
}

#[cfg_attr(target_os = "none", unsafe(export_name = "_start"))]
fn main() {
    let (ram, page) = (Range::new(4 << 30, 256 << 20).unwrap(), Range::new(4 << 30, GRANULE).unwrap());
    let options = Options::new(Capabilities::LEAST);
    let map = Map::<El1And0, _>::new(Kernel, Geometry::stage1(39).unwrap(), options).unwrap();
    let mut cpu = map.cpu(0).unwrap();
    cpu.write().map(ram, Pa::new(8 << 30).unwrap(), Attributes::<El1And0>::DATA, Leaves::LARGEST).unwrap();
    map.protect(page, Change::<El1And0>::READ_ONLY).unwrap().flush();
    assert_eq!(cpu.read().translate(page.start()).unwrap().attributes(), Attributes::<El1And0>::CONSTANTS);
}

#[cfg(target_os = "none")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
