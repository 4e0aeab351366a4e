//! A gate that makes the CPUs of an exception level stand still while one of them breaks a translation that it runs on.
//!
//! Invariants:
//! - Who closes the gate goes on when every other CPU is outside. A CPU is inside from [`Gate::enter`] to [`Gate::leave`]; outside it makes
//!   no access but to what is pinned: code, stack and data of the gate itself and of who waits at it, in pages from the start.
//! - Who waits at the gate, to close it or to come in, is outside and holds nothing. So two who want to close it do not wait in a circle,
//!   and nobody who is inside waits for somebody outside.
//!
//! A hypervisor is inside from an exception on to its return: a CPU at EL1 or EL0 makes no access of the EL2 regime. Around a call to the
//! firmware, which may not come back for long, it [stands](Gate::stand) outside. A kernel at EL1 is inside for as long as it runs, and
//! [passes](Gate::pass) at points that it chooses: an idle loop, the handler of an interrupt that asks it to.
//!
//! Speculation of a CPU outside puts nothing wrong into a TLB: what walks find is the old entry, which the invalidation removes, an invalid
//! one, which is not cached, or the new one (Arm ARM D8.17.1). But an access that was speculated before the gate was seen open may have
//! found the invalid entry, and without FEAT_ETS2 it may fault although it comes after: so who comes in synchronizes its context then.

use core::sync::atomic::{
    AtomicBool, AtomicU32,
    Ordering::{Relaxed, SeqCst},
};

use crate::mapping::Quiesce;

/// What a gate asks of where it stands.
pub trait Here {
    /// The number of the running CPU, below the gate's `N`.
    fn number(&self) -> usize;
    /// Whether any of `start .. end` is what waiting CPUs run on, or the caller's own code, stack or tables: it cannot be broken.
    fn is_pinned(&self, start: u64, end: u64) -> bool;
    /// Completes the accesses of this CPU (a DSB), before it stands still because it is asked to.
    fn settle(&self) {}
    /// Synchronizes the context of this CPU (an ISB), after it has seen the gate open.
    fn synchronize(&self) {}
    /// Called in each turn of a loop that waits for another CPU.
    fn relax(&self) {
        core::hint::spin_loop();
    }
}

/// Whether a CPU is inside: in a cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Inside(AtomicBool);

/// A gate for `N` CPUs.
#[derive(Debug)]
pub struct Gate<H, const N: usize> {
    here: H,
    closed: AtomicBool,
    inside: [Inside; N],
    closings: AtomicU32,
    waits: AtomicU32,
}

impl<H: Here, const N: usize> Gate<H, N> {
    /// An open gate, everybody outside.
    pub const fn new(here: H) -> Self {
        Self {
            here,
            closed: AtomicBool::new(false),
            inside: [const { Inside(AtomicBool::new(false)) }; N],
            closings: AtomicU32::new(0),
            waits: AtomicU32::new(0),
        }
    }

    fn own(&self) -> &AtomicBool {
        &self.inside[self.here.number()].0
    }

    /// Comes in; waits while the gate is closed.
    #[inline]
    pub fn enter(&self) {
        let own = self.own();
        own.store(true, SeqCst);
        // One half of Dekker's bargain with who closes it.
        if self.closed.load(SeqCst) {
            self.wait_to_enter(own);
        } else {
            self.here.synchronize();
        }
    }

    #[cold]
    fn wait_to_enter(&self, own: &AtomicBool) {
        self.waits.fetch_add(1, Relaxed);
        loop {
            self.here.settle();
            own.store(false, SeqCst);
            while self.closed.load(SeqCst) {
                self.here.relax();
            }
            own.store(true, SeqCst);
            if !self.closed.load(SeqCst) {
                return self.here.synchronize();
            }
        }
    }

    /// Goes out, and makes no access but to what is pinned until it has come in again.
    #[inline]
    pub fn leave(&self) {
        self.own().store(false, SeqCst);
    }

    /// Stands still if somebody wants to close the gate. The caller holds nothing that others wait for.
    #[inline]
    pub fn pass(&self) {
        if self.closed.load(SeqCst) {
            self.wait_to_enter(self.own());
        }
    }

    /// Does `work`, which touches nothing but what is pinned, from outside.
    #[inline]
    pub fn stand<T>(&self, work: impl FnOnce() -> T) -> T {
        self.leave();
        let result = work();
        self.enter();
        result
    }

    /// All that it knows, for who explores what can happen: equal states feed `into` alike.
    #[doc(hidden)]
    pub fn fingerprint(&self, into: &mut impl core::hash::Hasher) {
        let flags = self.inside.iter().map(|inside| &inside.0).chain([&self.closed]);
        flags.for_each(|flag| into.write_u8(u8::from(flag.load(SeqCst))));
    }

    /// How often it was closed, and how often somebody waited to come in.
    pub fn counts(&self) -> (u32, u32) {
        (self.closings.load(Relaxed), self.waits.load(Relaxed))
    }
}

/// The gate is closed, everybody else outside. Open again when this is dropped.
#[derive(Debug)]
pub struct Closed<'g>(&'g AtomicBool);

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        self.0.store(false, SeqCst);
    }
}

impl<'g, H: Here, const N: usize> Quiesce for &'g Gate<H, N> {
    type Held = Closed<'g>;

    /// Closes the gate and waits for those inside. `None` for what is pinned.
    fn begin(&self, start: u64, size: u64) -> Option<Closed<'g>> {
        if self.here.is_pinned(start, start.saturating_add(size)) {
            return None;
        }
        let own = self.own();
        self.here.settle();
        // Others may be closing it: they need not wait for this CPU.
        let was_inside = own.swap(false, SeqCst);
        while self.closed.swap(true, SeqCst) {
            while self.closed.load(SeqCst) {
                self.here.relax();
            }
        }
        for inside in &self.inside {
            while inside.0.load(SeqCst) {
                self.here.relax();
            }
        }
        self.closings.fetch_add(1, Relaxed);
        // Who closes it from outside is outside when it is open again.
        own.store(was_inside, SeqCst);
        // Another one may have broken something before.
        self.here.synchronize();
        Some(Closed(&self.closed))
    }

    fn pass(&self) {
        Gate::pass(self);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::mapping::fake::FakeMmu;
    use crate::mapping::{
        Address, Attributes, Capabilities, Change, El2, GRANULE, Geometry, Leaves, Map, Options, Pa, Range,
    };

    thread_local! {
        static NUMBER: Cell<usize> = const { Cell::new(0) };
    }

    struct Threads;
    impl Here for Threads {
        fn number(&self) -> usize {
            NUMBER.get()
        }
        fn is_pinned(&self, start: u64, end: u64) -> bool {
            start < 0x3000 && 0x2000 < end
        }
        fn relax(&self) {
            std::thread::yield_now();
        }
    }
    type ThreadGate = Gate<Threads, 8>;

    fn on_threads(count: usize, run: impl Fn(usize) + Sync) {
        std::thread::scope(|scope| {
            for number in 0..count {
                let run = &run;
                scope.spawn(move || {
                    NUMBER.set(number);
                    run(number);
                });
            }
        });
    }

    #[test]
    fn what_is_pinned_is_not_broken() {
        let gate = ThreadGate::new(Threads);
        let gate = &gate;
        assert!(gate.begin(0x1000, 0x2000).is_none() && gate.begin(0, u64::MAX).is_none());
        assert!(gate.begin(0x1000, 0x1000).is_some() && gate.begin(0x3000, 0x1000).is_some());
        assert_eq!(gate.counts(), (2, 0));
    }

    #[test]
    fn who_closes_it_from_outside_is_not_waited_for_afterwards() {
        let gate = ThreadGate::new(Threads);
        for number in 0..2 {
            let gate = &gate;
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    NUMBER.set(number);
                    drop(gate.begin(0x8000, 0x1000));
                });
            });
        }
        assert_eq!(gate.counts().0, 2);
    }

    #[test]
    fn nobody_is_inside_while_it_is_closed() {
        let (gate, inside) = (ThreadGate::new(Threads), AtomicU64::new(0));
        on_threads(6, |number| {
            let gate = &gate;
            for round in 0..2000 {
                gate.enter();
                inside.fetch_add(1, SeqCst);
                if number < 2 && round % 8 == 0 {
                    // Two who want to close it at once do not wait in a circle.
                    inside.fetch_sub(1, SeqCst);
                    let closed = gate.begin(0x8000, 0x1000);
                    assert_eq!(inside.load(SeqCst), 0);
                    std::hint::black_box(&closed);
                    assert_eq!(inside.load(SeqCst), 0);
                    drop(closed);
                    inside.fetch_add(1, SeqCst);
                }
                inside.fetch_sub(1, SeqCst);
                if number % 2 == 1 {
                    gate.stand(std::thread::yield_now);
                }
                gate.leave();
            }
        });
        assert_eq!(gate.counts().0, 500);
    }

    #[test]
    fn who_never_leaves_but_passes_is_not_waited_for_in_vain() {
        let (gate, over) = (ThreadGate::new(Threads), AtomicBool::new(false));
        on_threads(3, |number| {
            let gate = &gate;
            gate.enter();
            if number == 0 {
                for _ in 0..500 {
                    drop(gate.begin(0x8000, 0x1000));
                }
                over.store(true, SeqCst);
            }
            while !over.load(SeqCst) {
                gate.pass();
            }
            gate.leave();
        });
        assert_eq!(gate.counts().0, 500);
    }

    #[test]
    fn requests_of_many_cpus_that_break_entries_all_succeed() {
        const BLOCK: u64 = 2 << 20;
        const FIRST: u64 = 16 * BLOCK;
        let gate = ThreadGate::new(Threads);
        let mmu = FakeMmu::with_quiesce(64, 512, &gate);
        let options = Options::new(Capabilities::LEAST);
        let map = Map::<El2, _>::new(&mmu, Geometry::stage1(39).unwrap(), options).unwrap();
        let range = |start, size| Range::new(start, size).unwrap();
        map.cpu(0)
            .unwrap()
            .write()
            .map(range(FIRST, 16 * BLOCK), Pa::new(FIRST).unwrap(), Attributes::<El2>::DATA, Leaves::LARGEST)
            .unwrap();
        on_threads(4, |number| {
            gate.enter();
            for round in 0..200u64 {
                // Its own pages, in blocks that all split and join.
                let at = FIRST + (round * 7 + number as u64) % 16 * BLOCK + (number as u64 * 16) * GRANULE;
                let change = if round % 2 == 0 { Change::<El2>::READ_ONLY } else { Change::<El2>::WRITABLE };
                map.protect(range(at, GRANULE), change).unwrap().flush();
                if round % 16 == 15 {
                    let whole = range(FIRST, 16 * BLOCK);
                    map.cpu(number).unwrap().write().collapse(whole, Leaves::LARGEST).unwrap();
                }
                gate.pass();
            }
            gate.leave();
        });
        assert!(gate.counts().0 > 0);
    }
}
