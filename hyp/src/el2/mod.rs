//! What needs the CPU: the way into EL2, the EL1 that the host gets, and an answer to everything that traps.
//!
//! Invariants:
//! - EL2 runs with interrupts masked and holds no state of the host but the frame of the exception it is answering, and, while a guest runs in
//!   the host's place, what `switch` puts back.
//! - Every exception from below ends in a return to below: an answer, an exception for the host itself, or a retry.
//!   Nothing that the host does stops EL2; a fault of EL2's own is printed and powers the machine off.
//! - A CPU reaches the host only with the EL2 map and the host's stage 2 on, and turns its MMU on only when it was let in
//!   ([`crate::caps`]); with its MMU off it uses no atomics and reads only what was cleaned to the point of coherency for it.
//!
//! The decisions are pure and build on any host; what touches the CPU builds for the target only.
//!
//! | file | holds |
//! |---|---|
//! | [`syndrome`] | `ESR_EL2` decoded once |
//! | [`inject`] | taking an exception to EL1 as the hardware would (Arm ARM D1.3) |
//! | [`smccc`] | which call is answered by whom (SMCCC DEN0028) |
//! | [`psci`] | CPUs off, pending and on (PSCI DEN0022) |
//! | [`exits`] | exits from below, counted by kind |
//! | [`vcpu`] | the registers of a guest's virtual CPU, and what EL2 answers it alone |
//! | `switch` | running one, and the host's world around it |
//! | `entry` | the image header, the first instructions of each CPU (Linux `booting.rst`) |
//! | `boot` | the boot CPU's way to the host |
//! | `settings` | what the command line says of all this |
//! | `seal` | what ends with the boot |
//! | `cpu` | the EL2 registers that let a stock kernel use what the CPU has |
//! | `vectors`, `host` | exceptions from below, and their answers |
//! | `quiet` | the entry gate: standing still while EL2's own map is broken |
//! | `fault` | faults of our own: register dump and backtrace |
//! | `dump` | of builds for dumps: both maps on the console |
//! | [`pages`], `parties` | pages that the host shares and gives away; all who have some |
//! | `trial`, `owners`, [`doorbell`] | of test builds: calls and a page that change maps, and owners |
//! | `stand_in` | of test builds: who answers in place of the firmware |
//! | `hash` | SHA-256 by the CPU's instructions |
//! | `image`, `percpu`, `cache`, `logger` | our memory, per-CPU data, cache maintenance, messages |

#[cfg(feature = "trial")]
pub mod doorbell;
pub mod exits;
pub mod inject;
pub mod pages;
pub mod psci;
pub mod smccc;
pub mod syndrome;
#[cfg_attr(not(any(test, target_arch = "aarch64")), expect(dead_code, reason = "some of it is for `switch`"))]
pub mod vcpu;

#[cfg(target_arch = "aarch64")]
pub mod boot;
#[cfg(target_arch = "aarch64")]
mod cache;
#[cfg(target_arch = "aarch64")]
pub mod cpu;
#[cfg(all(target_arch = "aarch64", feature = "dump"))]
mod dump;
#[cfg(target_arch = "aarch64")]
pub mod entry;
#[cfg(target_arch = "aarch64")]
pub mod fault;
#[cfg(target_arch = "aarch64")]
pub mod hash;
#[cfg(target_arch = "aarch64")]
pub mod host;
#[cfg(target_arch = "aarch64")]
pub mod image;
#[cfg(target_arch = "aarch64")]
pub mod logger;
#[cfg(all(target_arch = "aarch64", feature = "trial"))]
mod owners;
#[cfg(target_arch = "aarch64")]
pub mod parties;
#[cfg(target_arch = "aarch64")]
mod percpu;
#[cfg(target_arch = "aarch64")]
mod quiet;
#[cfg(target_arch = "aarch64")]
mod seal;
#[cfg(target_arch = "aarch64")]
pub mod settings;
#[cfg(all(target_arch = "aarch64", feature = "stand-in"))]
pub mod stand_in;
#[cfg(target_arch = "aarch64")]
pub mod switch;
#[cfg(all(target_arch = "aarch64", feature = "trial"))]
pub mod trial;
#[cfg(target_arch = "aarch64")]
mod vectors;
