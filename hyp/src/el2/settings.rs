//! What the command line says of EL2's own business (`cloven.NAME=VALUE`); the rest of it is the host's.
//!
//! Invariant: whatever it says, the machine comes up: what is not understood, or more than is true, gets a warning and is left out.

use core::fmt;

use log::warn;

use super::cpu;
use super::guests::{Advertised, Traced};
use crate::caps::policy::{Late, Policy};
use crate::machine::Machine;
use crate::mapping::{Address, GRANULE, Pa, Range};

/// The levels of FEAT_BBM (0 to 3) that CPUs are believed to have, where not their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Believed {
    boot: Option<u8>,
    others: Option<u8>,
}

impl Believed {
    /// Of CPU number `cpu`: the boot CPU is 0.
    pub fn of(self, cpu: usize) -> Option<u8> {
        if cpu == 0 { self.boot } else { self.others }
    }

    /// One level for all, or the boot CPU's and the others', separated by a comma; `auto` is a CPU's own.
    fn parse(text: &str) -> Option<Self> {
        let level = |text: &str| match text.parse::<u8>() {
            Ok(level) => (level <= 3).then_some(Some(level)),
            Err(_) => (text == "auto").then_some(None),
        };
        let (boot, others) = text.split_once(',').unwrap_or((text, text));
        Some(Self { boot: level(boot)?, others: level(others)? })
    }
}

/// All of it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Settings {
    /// `cloven.bbm`.
    pub believed: Believed,
    /// `cloven.policy`.
    pub policy: Policy,
    /// `cloven.late`.
    pub late: Late,
    /// `cloven.finalize`: CPUs after which the set is final, if not all that the device tree has.
    pub finalize: Option<usize>,
    /// `cloven.advertise-bbm` and `cloven.midr`.
    pub advertised: Advertised,
    /// `cloven.trace`.
    pub traced: Traced,
    /// The registers of the UART that what is traced goes to: nobody else's from the start.
    pub trace_uart: Option<Range<Pa>>,
}

impl Settings {
    /// Reads them. Levels of FEAT_BBM can only be lowered, unless `raise`: for tests on an emulator that raises no conflict aborts.
    #[unsafe(link_section = ".init.text")]
    pub fn read(machine: &Machine<'_>, raise: bool) -> Self {
        fn read<T>(
            machine: &Machine<'_>,
            name: &str,
            known: &str,
            parse: fn(&str) -> Option<T>,
        ) -> Option<T> {
            let text = machine.parameter(name)?;
            let value = parse(text);
            if value.is_none() {
                warn!("{name}={text} means nothing: {known} do");
            }
            value
        }
        let count = |text: &str| text.parse().ok().filter(|&count| count > 0);
        let mut believed =
            read(machine, "cloven.bbm", "auto, 0, 1, 2 and 3, or two of them with a comma", Believed::parse)
                .unwrap_or_default();
        let own = cpu::Features::read(None).capabilities.bbm_level();
        if let Some(level) = believed.boot.filter(|&level| level > own && !raise) {
            warn!("cloven.bbm={level} is more than this CPU has: {own} it is");
            believed.boot = None;
        }
        let mut traced = read(machine, "cloven.trace", "rsi, rmi and ripas, with commas,", Traced::parse)
            .unwrap_or_default();
        let is_page =
            |range: &Range<Pa>| range.start().get().is_multiple_of(GRANULE) && range.size() <= GRANULE;
        let uart = machine.second_uart.filter(is_page);
        if traced.is_something() && uart.is_none() {
            match machine.second_uart {
                Some(_) => warn!("cloven.trace: the second PL011's registers are not one page's"),
                None => warn!("cloven.trace: the machine has no second PL011 to tell it on"),
            }
            traced = Traced::NOTHING;
        }
        Self {
            believed,
            policy: read(machine, "cloven.policy", "keep, repaint and pages", Policy::parse)
                .unwrap_or_default(),
            late: read(machine, "cloven.late", "admit and deny", Late::parse).unwrap_or_default(),
            finalize: read(machine, "cloven.finalize", "numbers from 1 on", count),
            advertised: Advertised {
                bbm: read(machine, "cloven.advertise-bbm", "0, 2 and 3", Advertised::parse_bbm),
                midr: read(
                    machine,
                    "cloven.midr",
                    "32 bits behind 0x, as MIDR_EL1 has them,",
                    Advertised::parse_midr,
                ),
            },
            traced,
            trace_uart: uart.filter(|_| traced.is_something()),
        }
    }
}

/// A set of capabilities in a line of the log: the level of FEAT_BBM, then what else there is.
pub struct InWords(pub crate::mapping::Capabilities);

impl fmt::Display for InWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "level {} of FEAT_BBM", self.0.bbm_level())?;
        let others = self.0 - crate::mapping::Capabilities::BBM;
        others.iter_names().try_for_each(|(name, _)| write!(f, ", {name}"))
    }
}
