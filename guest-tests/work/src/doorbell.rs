//! The doorbell of the hypervisor's test build (`hyp::el2::doorbell`): a page at which each store asks for a change of the memory below
//! this Linux, and loads tell how many there were.

use std::{
    arch::asm,
    fs::{self, OpenOptions},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    ptr::null_mut,
};

use anyhow::{Context, Result, ensure};
use rand::Rng;

use crate::{Shift, os_error};

const RESERVED: &str = "/proc/device-tree/reserved-memory";
/// Changes in a second without which little was tried.
const FEWEST: u64 = 100;

/// Rings with random seeds.
pub fn ring(shift: &mut Shift) -> Result<String> {
    let page = map(doorbell()?)?;
    // Before all the others, who are many.
    // SAFETY: changes no memory.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) } != 0 {
        return Err(os_error("setpriority"));
    }
    while shift.goes_on() {
        for _ in 0..16 {
            store(page, shift.random.next_u64());
        }
    }
    let [made, refused, met] = [0, 8, 16].map(|offset| load(page, offset));
    shift.figures.extend([
        ("changes.made", made, "changes"),
        ("changes.refused", refused, "changes"),
        ("changes.met", met, "accesses"),
    ]);
    let fewest = shift.seconds * FEWEST;
    ensure!(made >= fewest, "{made} changes were made and {refused} refused, {fewest} are to be made");
    Ok(format!("{met} accesses met one"))
}

/// The address of the doorbell: the second page of the hypervisor's memory.
fn doorbell() -> Result<u64> {
    let nodes = fs::read_dir(RESERVED).context("the device tree reserves nothing")?;
    let mut names = nodes.filter_map(|node| Some(node.ok()?.path()));
    let node = names
        .find(|path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"cloven@")));
    let range = fs::read(node.context("there is no hypervisor")?.join("reg"))?;
    // As many cells for the address as for the size, on this machine.
    let address = &range[..range.len() / 2];
    Ok(address.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)) + 4096)
}

/// Maps one page at a physical address.
fn map(address: u64) -> Result<usize> {
    let memory = OpenOptions::new().read(true).write(true).custom_flags(libc::O_SYNC).open("/dev/mem")?;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: the kernel chooses where, and no Rust object lies in what is mapped.
    let page = unsafe {
        libc::mmap(null_mut(), 4096, protection, libc::MAP_SHARED, memory.as_raw_fd(), address as libc::off_t)
    };
    if page == libc::MAP_FAILED { Err(os_error("mmap of /dev/mem")) } else { Ok(page as usize) }
}

// The hypervisor knows the registers x0 to x17 only.

fn store(page: usize, value: u64) {
    // SAFETY: a store to what `map` has mapped, where no object lies.
    unsafe { asm!("str x0, [x1]", in("x0") value, in("x1") page, options(nostack)) };
}

fn load(page: usize, offset: usize) -> u64 {
    let value;
    // SAFETY: as above.
    unsafe { asm!("ldr x0, [x1]", out("x0") value, in("x1") page + offset, options(nostack, readonly)) };
    value
}
