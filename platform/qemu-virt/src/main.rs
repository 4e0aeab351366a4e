//! The Cloven image for QEMU's `virt` machine: how it boots, from top to bottom.
#![no_std]
#![no_main]

mod entry;

use core::fmt::Write;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use arm_pl011_uart::{DataBits, LineConfig, PL011Registers, Parity, StopBits, Uart};
use dtoolkit::fdt::Fdt;
use hyp::el2::boot::{self, Kernel};
use hyp::el2::guests::{Advertised, Traced};
use hyp::el2::settings::Settings;
use hyp::el2::{fault, logger};
use hyp::machine::Machine;
use hyp::mapping::Address;
use log::LevelFilter;
use rmm_shim::target::{self, POLICY, Realms};
use safe_mmio::UniqueMmioPointer;

/// The first PL011 of the `virt` machine (QEMU, "Hardware configuration information for bare-metal programming": the
/// address of a device is in the device tree, but this one has not moved since 2014). It tells what goes wrong before
/// there is a device tree to read.
const CONSOLE: u64 = 0x0900_0000;

hyp::el2_entry! { main: main, console: CONSOLE, handler: Realms }

/// The host for who gives none: `cargo xtask` builds it first.
#[unsafe(link_section = ".init.rodata")]
static PAYLOAD: [u8; include_bytes!(env!("CLOVEN_HOST_PAYLOAD")).len()] =
    *include_bytes!(env!("CLOVEN_HOST_PAYLOAD"));

#[unsafe(link_section = ".init.text")]
fn main(device_tree: u64) -> ! {
    logger::init(console, LevelFilter::Info);
    match boot(device_tree) {
        Ok(never) => match never {},
        Err(error) => fault::refuse(format_args!("{error}")),
    }
}

#[unsafe(link_section = ".init.text")]
fn boot(device_tree: u64) -> Result<core::convert::Infallible, boot::Error> {
    // SAFETY: the entry code has mapped it, and handed its address on from the boot loader.
    let tree = unsafe { boot::device_tree(device_tree)? };
    let machine = Machine::read(Fdt::new(tree).map_err(boot::Error::damaged)?);
    // Where it was written: a copy would take as much of the stack again.
    let machine = machine.as_ref().map_err(|error| boot::Error::DeviceTree(error.clone()))?;
    boot_machine(tree, machine)
}

// Not in the frame above, in which the machine is read.
#[inline(never)]
#[unsafe(link_section = ".init.text")]
fn boot_machine(tree: &[u8], machine: &Machine<'_>) -> Result<core::convert::Infallible, boot::Error> {
    if let Some(level) = machine.parameter("cloven.log").and_then(|text| text.parse().ok()) {
        log::set_max_level(level);
    }
    boot::announce(machine);

    let mut settings = Settings::read(machine, cfg!(feature = "trial"));
    if settings.trace_uart.is_some_and(|uart| uart.start().get() == CONSOLE) {
        // The host's console is another one, and this one is the hypervisor's.
        log::warn!(
            "cloven.trace: the PL011 beside the host's console is what the hypervisor's own lines go to"
        );
        (settings.traced, settings.trace_uart) = (Traced::NOTHING, None);
    }
    let (advertised, traced, trace_uart) = (settings.advertised, settings.traced, settings.trace_uart);
    // SAFETY: this is the boot CPU, on the boot map, once; the console's registers are mapped again.
    let booted = unsafe { boot::enable_mmu(machine, tree, CONSOLE, settings)? };
    if let Some(uart) = trace_uart {
        match tell_on(uart.start().get()) {
            Ok(()) => target::trace(traced, tell),
            Err(error) => log::warn!("cloven.trace: the second PL011 cannot be turned on: {error}"),
        }
    }
    if advertised != Advertised::default() {
        log::info!("guests are shown {advertised}");
    }
    let has_policy = is_host_policy(machine);
    let kernel = Kernel::choose(machine, if has_policy { &[] } else { &PAYLOAD })?;
    let reside = has_policy.then_some(POLICY);
    let host = booted.prepare_host(machine, tree, kernel, cfg!(feature = "broken-stage2"), reside)?;
    if cfg!(feature = "own-fault") {
        log::error!("survived {} frames", own_fault(0));
    }
    // SAFETY: the EL2 map is on, and nothing here is needed any more.
    unsafe { host.enter() }
}

/// Whether there is to be no host at EL1, and the machine a realm's.
#[unsafe(link_section = ".init.text")]
fn is_host_policy(machine: &Machine<'_>) -> bool {
    match machine.parameter("cloven.host") {
        None => false,
        Some("policy") => true,
        Some(other) => {
            log::warn!("cloven.host={other} means nothing: policy does");
            false
        }
    }
}

/// Writes to the first UART.
fn console(text: core::fmt::Arguments<'_>) {
    let Some(registers) = NonNull::new(CONSOLE as *mut PL011Registers) else { return };
    // SAFETY: both maps have the registers as device memory at their own address, and only the logger calls this, on one
    // CPU at a time. The host uses them too: a write of either is one character, which the device takes in any order.
    let uart = Uart::new(unsafe { UniqueMmioPointer::new(registers) });
    // What does not fit is dropped, and there is nobody to tell.
    let _ = Console(uart).write_fmt(text);
}

/// Where the UART is that what is traced goes to, once it is EL2's.
static TRACE: AtomicU64 = AtomicU64::new(0);

/// Turns the UART at `address` on, which is EL2's own from here on.
#[unsafe(link_section = ".init.text")]
fn tell_on(address: u64) -> Result<(), arm_pl011_uart::Error> {
    TRACE.store(address, Relaxed);
    // QEMU's clock, which does not matter to it.
    const BAUD: u32 = 115_200;
    const CLOCK: u32 = 24_000_000;
    let Some(mut uart) = trace_uart() else { return Ok(()) };
    let line = LineConfig { data_bits: DataBits::Bits8, parity: Parity::None, stop_bits: StopBits::One };
    uart.enable(line, BAUD, CLOCK)
}

fn trace_uart() -> Option<Uart<'static>> {
    let registers = NonNull::new(TRACE.load(Relaxed) as *mut PL011Registers)?;
    // SAFETY: EL2's map has the registers as device memory at their own address, and nobody else's has. Only the trace calls this, which one CPU
    // does at a time, and the boot CPU before it.
    Some(Uart::new(unsafe { UniqueMmioPointer::new(registers) }))
}

/// Writes to the second UART, with patience: nobody has to take what it sends.
fn tell(text: core::fmt::Arguments<'_>) -> core::fmt::Result {
    /// Whether the last character had to be given up: then none is waited for until there is room.
    static IS_STUCK: AtomicBool = AtomicBool::new(false);
    struct Patient(Uart<'static>);
    impl Write for Patient {
        fn write_str(&mut self, text: &str) -> core::fmt::Result {
            text.bytes().try_for_each(|byte| {
                let patience = if IS_STUCK.load(Relaxed) { 1 } else { PATIENCE };
                let result = write_within(patience, &mut self.0, byte);
                IS_STUCK.store(result.is_err(), Relaxed);
                result
            })
        }
    }
    trace_uart().map_or(Ok(()), |uart| Patient(uart).write_fmt(text))
}

/// Looks at a UART before it is given up.
const PATIENCE: u32 = 1_000_000;

/// Writes a character once there is room for it, if that is found in so many looks.
fn write_within(patience: u32, uart: &mut Uart<'_>, byte: u8) -> core::fmt::Result {
    if (0..patience).all(|_| uart.is_tx_fifo_full()) {
        return Err(core::fmt::Error);
    }
    uart.write_word(byte);
    Ok(())
}

/// The UART with patience: the host may stop it, and must not stop us with it.
struct Console(Uart<'static>);

impl Write for Console {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        text.bytes().try_for_each(|byte| write_within(PATIENCE, &mut self.0, byte))
    }
}

/// A fault of the hypervisor's own, for the test that it is told well: its stack runs over into the guard page.
#[inline(never)]
#[expect(unconditional_recursion, reason = "that is the fault")]
fn own_fault(depth: u64) -> u64 {
    let frame = core::hint::black_box([depth; 32]);
    frame[0] + own_fault(depth + 1)
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    fault::panicked(info)
}
