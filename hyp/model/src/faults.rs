//! Mistakes.
use crate::machine::Call;
use crate::memory::World;
use std::cell::Cell;

/// A mistake.
#[derive(Debug)]
pub struct Fault {
    /// Name.
    pub name: &'static str,
    /// What it does with a call.
    pub ask: fn(&Planted, &World, Call) -> u64,
}
/// A planted one.
#[derive(Debug)]
pub struct Planted {
    fault: &'static Fault,
    /// Calls so far of the kind that it counts.
    pub count: Cell<u64>,
}
impl Planted {
    /// One.
    pub fn new(fault: &'static Fault) -> Self {
        Self { fault, count: Cell::new(0) }
    }
    /// Ask.
    pub fn ask(&self, world: &World, call: Call) -> u64 {
        (self.fault.ask)(self, world, call)
    }
}
