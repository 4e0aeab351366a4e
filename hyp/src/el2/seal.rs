//! What ends with the boot: its code and constants stop being mapped, and what it alone writes becomes read-only.
//!
//! Invariant: what runs or reads after [`seal`] lies outside of `.init.text` and `.init.rodata`, and what is in `.data.sealed` is not
//! written after it. Functions that the boot alone calls name the section `.init.text`; who leaves the boot for good, as
//! [`host::start`](super::host::start) does, is kept out of their bodies by `#[inline(never)]`. The linker refuses a call or a reference from
//! `.text` to what goes; a pointer in memory it does not see, and that would be a fault of our own, which is told with its address.

use log::info;

use super::boot::El2Map;
use super::image::Layout;
use crate::stage1::SetMemoryError;

/// Ends the boot in EL2's own map, on every CPU that will ever use it.
///
/// # Errors
/// [`SetMemoryError`]: part of it may have been done.
pub fn seal(map: &El2Map, layout: &Layout) -> Result<(), SetMemoryError> {
    for init in [layout.init_text, layout.init_rodata] {
        map.set_memory_valid(init, false)?;
    }
    map.set_memory_ro(layout.sealed)?;
    // From here on nothing of the hypervisor's own block changes: outside of the gate CPUs read what is sealed, too.
    map.seal(layout.whole);
    let gone = layout.init_text.size() + layout.init_rodata.size();
    info!("boot code and constants gone: {} KiB, sealed: {} KiB", gone >> 10, layout.sealed.size() >> 10);
    Ok(())
}
