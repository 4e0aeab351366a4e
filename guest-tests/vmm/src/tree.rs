//! The device tree that a realm gets (Devicetree Specification 0.4, chapter 5; Linux's bindings for arm,psci, arm,gic-v3, arm,pl011).
//!
//! Invariant: what is written is a whole tree, or [`Full`].

/// Where a realm's RAM begins: as low as it can, so that few bits of IPA do.
pub const RAM: u64 = 0x4000_0000;
/// Its console, a PL011.
pub const UART: u64 = 0x0900_0000;
/// The INTID of the console.
pub const UART_INTID: u32 = SPI + 1;
/// The distributor of its interrupt controller.
pub const DISTRIBUTOR: u64 = 0x0800_0000;
/// Bytes of the distributor.
pub const DISTRIBUTOR_SIZE: u64 = 0x1_0000;
/// The redistributors, one after the other.
pub const REDISTRIBUTORS: u64 = 0x080a_0000;
/// Bytes of each redistributor.
pub const REDISTRIBUTOR_SIZE: u64 = 0x2_0000;
/// The first device of virtio; the others follow.
pub const VIRTIO: u64 = 0x0a00_0000;
/// Bytes of each.
pub const VIRTIO_SIZE: u64 = 0x200;
/// The INTID of the first, which those of the others follow.
pub const VIRTIO_INTID: u32 = SPI + 16;
/// The first INTID of an SPI.
const SPI: u32 = 32;

/// There is no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// What the tree says.
#[derive(Clone, Copy, Debug)]
pub struct Machine<'a> {
    /// Bytes of RAM, from [`RAM`] on.
    pub memory: u64,
    /// The affinity of each CPU.
    pub mpidrs: &'a [u64],
    /// The words of the command line.
    pub bootargs: &'a [&'a str],
    /// Where an initial file system is, and its end.
    pub initrd: Option<(u64, u64)>,
    /// How many devices of virtio there are, from [`VIRTIO`] on: at most 16.
    pub virtio: usize,
}

const BEGIN: u32 = 1;
const END: u32 = 2;
const PROPERTY: u32 = 3;
const LAST: u32 = 9;
const HEADER: usize = 40;
/// An empty list of memory reservations follows the header.
const STRUCTURE: usize = HEADER + 16;
const STRINGS: usize = 384;
const GIC: u32 = 1;
const CLOCK: u32 = 2;

struct Writer<'a> {
    out: &'a mut [u8],
    at: usize,
    strings: [u8; STRINGS],
    strings_len: usize,
    /// Whether something did not fit.
    full: bool,
}

impl Writer<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        match self.out.get_mut(self.at..self.at + bytes.len()) {
            Some(place) => place.copy_from_slice(bytes),
            None => self.full = true,
        }
        self.at += bytes.len();
    }

    fn word(&mut self, word: u32) {
        self.bytes(&word.to_be_bytes());
    }

    /// Zeroes to the next multiple of 4.
    fn pad(&mut self) {
        let zeroes = [0; 4];
        self.bytes(&zeroes[..self.at.next_multiple_of(4) - self.at]);
    }

    /// A node, whose name ends in `unit` if there is one.
    fn node(&mut self, name: &str, unit: Option<u64>, content: impl FnOnce(&mut Self)) {
        self.word(BEGIN);
        self.bytes(name.as_bytes());
        if let Some(unit) = unit {
            self.bytes(b"@");
            let digits = (16 - unit.leading_zeros() as usize / 4).max(1);
            for digit in (0..digits).rev() {
                let value = (unit >> (4 * digit) & 0xf) as usize;
                self.bytes(&b"0123456789abcdef"[value..=value]);
            }
        }
        self.bytes(&[0]);
        self.pad();
        content(self);
        self.word(END);
    }

    /// Where `name` stands among the strings.
    fn name(&mut self, name: &str) -> u32 {
        let known =
            self.strings[..self.strings_len].split_inclusive(|byte| *byte == 0).scan(0, |at, text| {
                let start = *at;
                *at += text.len();
                Some((start, text))
            });
        let known = known.into_iter().find(|(_, text)| text.strip_suffix(&[0]) == Some(name.as_bytes()));
        if let Some((at, _)) = known {
            return at as u32;
        }
        let at = self.strings_len;
        match self.strings.get_mut(at..=at + name.len()) {
            Some(place) => {
                place[..name.len()].copy_from_slice(name.as_bytes());
                self.strings_len += name.len() + 1;
            }
            None => self.full = true,
        }
        at as u32
    }

    fn property(&mut self, name: &str, parts: &[&[u8]]) {
        let name = self.name(name);
        self.word(PROPERTY);
        self.word(parts.iter().map(|part| part.len()).sum::<usize>() as u32);
        self.word(name);
        parts.iter().for_each(|part| self.bytes(part));
        self.pad();
    }

    fn texts(&mut self, name: &str, texts: &[&str]) {
        let header = self.name(name);
        self.word(PROPERTY);
        self.word(texts.iter().map(|text| text.len() + 1).sum::<usize>() as u32);
        self.word(header);
        for text in texts {
            self.bytes(text.as_bytes());
            self.bytes(&[0]);
        }
        self.pad();
    }

    fn words(&mut self, name: &str, words: &[u32]) {
        let name = self.name(name);
        self.word(PROPERTY);
        self.word(4 * words.len() as u32);
        self.word(name);
        words.iter().for_each(|word| self.word(*word));
    }

    fn ranges(&mut self, name: &str, ranges: &[(u64, u64)]) {
        let name = self.name(name);
        self.word(PROPERTY);
        self.word(16 * ranges.len() as u32);
        self.word(name);
        for (start, size) in ranges {
            self.bytes(&start.to_be_bytes());
            self.bytes(&size.to_be_bytes());
        }
    }
}

/// Writes the tree of `machine` to `out`; returns its size in bytes.
///
/// # Errors
/// [`Full`].
pub fn write(out: &mut [u8], machine: &Machine<'_>) -> Result<usize, Full> {
    let mut writer = Writer { out, at: STRUCTURE, strings: [0; STRINGS], strings_len: 0, full: false };
    writer.node("", None, |root| contents(root, machine));
    writer.word(LAST);
    let structure = writer.at - STRUCTURE;
    let strings = writer.at;
    let (text, len) = (writer.strings, writer.strings_len);
    writer.bytes(&text[..len]);
    let size = writer.at;
    writer.at = 0;
    let header =
        [0xd00d_feed, size, STRUCTURE, strings, HEADER, 17, 16, 0, len, structure].map(|word| word as u32);
    header.iter().for_each(|word| writer.word(*word));
    writer.bytes(&[0; STRUCTURE - HEADER]);
    if writer.full { Err(Full) } else { Ok(size) }
}

/// An SPI, by its level, in the cells of arm,gic-v3.
const fn shared(intid: u32) -> [u32; 3] {
    [0, intid - SPI, 4]
}

fn contents(root: &mut Writer<'_>, machine: &Machine<'_>) {
    root.words("#address-cells", &[2]);
    root.words("#size-cells", &[2]);
    root.words("interrupt-parent", &[GIC]);
    root.texts("compatible", &["cloven,realm"]);
    root.texts("model", &["cloven,realm"]);
    root.node("chosen", None, |node| {
        // One text, its words with a space between.
        let header = node.name("bootargs");
        let size = machine.bootargs.iter().map(|word| word.len() + 1).sum::<usize>().max(1);
        node.word(PROPERTY);
        node.word(size as u32);
        node.word(header);
        for (number, word) in machine.bootargs.iter().enumerate() {
            node.bytes(if number > 0 { b" " } else { b"" });
            node.bytes(word.as_bytes());
        }
        node.bytes(&[0]);
        node.pad();
        node.texts("stdout-path", &["/pl011@9000000"]);
        if let Some((start, end)) = machine.initrd {
            node.property("linux,initrd-start", &[&start.to_be_bytes()]);
            node.property("linux,initrd-end", &[&end.to_be_bytes()]);
        }
    });
    root.node("memory", Some(RAM), |node| {
        node.texts("device_type", &["memory"]);
        node.ranges("reg", &[(RAM, machine.memory)]);
    });
    root.node("cpus", None, |node| {
        node.words("#address-cells", &[1]);
        node.words("#size-cells", &[0]);
        for &mpidr in machine.mpidrs {
            node.node("cpu", Some(mpidr), |cpu| {
                cpu.texts("device_type", &["cpu"]);
                cpu.texts("compatible", &["arm,armv8"]);
                cpu.words("reg", &[mpidr as u32]);
                cpu.texts("enable-method", &["psci"]);
            });
        }
    });
    root.node("psci", None, |node| {
        node.texts("compatible", &["arm,psci-1.0", "arm,psci-0.2"]);
        node.texts("method", &["smc"]);
    });
    root.node("timer", None, |node| {
        node.texts("compatible", &["arm,armv8-timer"]);
        // PPIs 13, 14, 11 and 10, by their level: secure, physical, virtual, EL2's.
        node.words("interrupts", &[1, 13, 4, 1, 14, 4, 1, 11, 4, 1, 10, 4]);
        node.property("always-on", &[]);
    });
    root.node("intc", Some(DISTRIBUTOR), |node| {
        node.texts("compatible", &["arm,gic-v3"]);
        node.property("interrupt-controller", &[]);
        node.words("#interrupt-cells", &[3]);
        let redistributors = REDISTRIBUTOR_SIZE * machine.mpidrs.len() as u64;
        node.ranges("reg", &[(DISTRIBUTOR, DISTRIBUTOR_SIZE), (REDISTRIBUTORS, redistributors)]);
        node.words("phandle", &[GIC]);
    });
    root.node("apb-pclk", None, |node| {
        node.texts("compatible", &["fixed-clock"]);
        node.words("#clock-cells", &[0]);
        node.words("clock-frequency", &[24_000_000]);
        node.words("phandle", &[CLOCK]);
    });
    root.node("pl011", Some(UART), |node| {
        node.texts("compatible", &["arm,pl011", "arm,primecell"]);
        node.ranges("reg", &[(UART, 0x1000)]);
        node.words("interrupts", &shared(UART_INTID));
        node.words("clocks", &[CLOCK, CLOCK]);
        node.texts("clock-names", &["uartclk", "apb_pclk"]);
    });
    for (number, intid) in (0..machine.virtio.min(16)).zip(VIRTIO_INTID..) {
        let start = VIRTIO + VIRTIO_SIZE * number as u64;
        root.node("virtio_mmio", Some(start), |node| {
            node.texts("compatible", &["virtio,mmio"]);
            node.ranges("reg", &[(start, VIRTIO_SIZE)]);
            node.words("interrupts", &shared(intid));
            node.property("dma-coherent", &[]);
        });
    }
}

#[cfg(test)]
mod tests {
    use dtoolkit::fdt::Fdt;
    use hyp::machine::Machine as Seen;
    use hyp::mapping::Address;
    use std::vec::Vec;

    use super::*;

    const MACHINE: Machine<'_> = Machine {
        memory: 64 << 20,
        mpidrs: &[0, 1, 0x100],
        bootargs: &["cloven.seed=7", "cloven.bbm=0"],
        initrd: None,
        virtio: 0,
    };

    #[test]
    fn a_payload_reads_its_machine_out_of_it() {
        let mut out = [0xee; 4096];
        let size = write(&mut out, &MACHINE).unwrap();
        let machine = Seen::read(Fdt::new(&out[..size]).unwrap()).unwrap();
        assert_eq!((machine.memory.len(), machine.memory[0].start().get()), (1, RAM));
        assert_eq!(machine.memory[0].size(), 64 << 20);
        let mpidrs: Vec<u64> = machine.cpus.iter().map(|cpu| cpu.mpidr).collect();
        assert_eq!(mpidrs, [0, 1, 0x100]);
        assert!(machine.psci);
        assert_eq!(machine.uart.unwrap().start().get(), UART);
        assert_eq!(machine.bootargs, Some("cloven.seed=7 cloven.bbm=0"));
        assert_eq!(machine.parameter("cloven.seed"), Some("7"));
        assert_eq!(machine.gic.distributor.start().get(), DISTRIBUTOR);
    }

    #[test]
    fn a_realm_may_have_no_command_line() {
        let mut out = [0; 4096];
        let size = write(&mut out, &Machine { bootargs: &[], ..MACHINE }).unwrap();
        assert_eq!(Seen::read(Fdt::new(&out[..size]).unwrap()).unwrap().bootargs, Some(""));
    }

    #[test]
    fn a_linux_finds_its_devices_and_its_initial_file_system() {
        let mut out = [0; 4096];
        let machine = Machine { initrd: Some((0x8400_0000, 0x8500_0123)), virtio: 2, ..MACHINE };
        let size = write(&mut out, &machine).unwrap();
        let text = std::format!("{}", Fdt::new(&out[..size]).unwrap());
        for expected in [
            "linux,initrd-start = <0x00 0x84000000>;",
            "linux,initrd-end = <0x00 0x85000123>;",
            "reg = <0x00 0x8000000 0x00 0x10000 0x00 0x80a0000 0x00 0x60000>;",
            "virtio_mmio@a000000 {",
            "reg = <0x00 0xa000200 0x00 0x200>;\n        interrupts = <0x00 0x11 0x04>;\n        dma-coherent;",
        ] {
            assert!(text.contains(expected), "{expected}");
        }
    }

    #[test]
    fn a_place_that_is_too_small_is_refused_whatever_its_size() {
        let mut out = [0; 4096];
        let size = write(&mut out, &MACHINE).unwrap();
        for short in 0..size {
            assert_eq!(write(&mut out[..short], &MACHINE), Err(Full), "{short}");
        }
        assert_eq!(write(&mut out[..size], &MACHINE), Ok(size));
    }
}
