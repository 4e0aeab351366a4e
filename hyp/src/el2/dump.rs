//! Of builds for dumps: the maps of EL2 and of the host's stage 2 on the console at moments that have names, for who asks by
//! `cloven.dump=text` or `cloven.dump=json` on the command line.
//!
//! A line of JSON begins with `@cloven dump`, by which tools find it.

use log::info;
use spin::Once;

use super::host::Host;
use crate::machine::Machine;
use crate::mapping::dump::Format;
use crate::mapping::{Map, Mmu, Regime};

#[unsafe(link_section = ".data.sealed")]
static FORMAT: Once<Format> = Once::new();

/// Reads from the command line whether to print, and how.
#[unsafe(link_section = ".init.text")]
pub fn init(machine: &Machine<'_>) {
    if let Some(format) = machine.parameter("cloven.dump").and_then(Format::parse) {
        FORMAT.call_once(|| format);
    }
}

/// Prints both maps, if that was asked for, on CPU number `me`.
pub fn tell(host: &Host, me: usize, moment: &str) {
    if let Some(format) = FORMAT.get() {
        print(host.el2_map.map(), me, moment, *format);
        print(host.map, me, moment, *format);
    }
}

fn print<R: Regime, M: Mmu>(map: &Map<R, M>, me: usize, moment: &str, format: Format) {
    let Some(mut cpu) = map.cpu(me) else { return };
    cpu.read().dump(moment, format, |line| match format {
        Format::Text => info!("{line}"),
        Format::Json => info!("@cloven dump {line}"),
    });
}
