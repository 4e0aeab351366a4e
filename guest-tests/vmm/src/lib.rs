//! What the host payload decides as the VMM of a realm: the device tree that the realm gets, which interrupts its list registers hold, what
//! an exit was for, the lines that it prints, and its devices: a [GICv3](gic), a [UART](pl011), a [console](virtio::console) and a
//! [disk](virtio::block).
//!
//! Invariant: pure, on any host: nothing here makes a call or touches memory that it was not given.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod access;
pub mod console;
pub mod files;
pub mod gic;
pub mod lists;
pub mod pl011;
pub mod stream;
pub mod tree;
pub mod virtio;
pub mod words;
