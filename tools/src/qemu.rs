//! QEMU: finds or installs it, forms its command line, and follows a run on the serial console to its end.
//!
//! Invariant: however a run ends, its QEMU has ended too when [`follow`] returns, and the terminal is as it was.

use std::{
    fmt, fs,
    io::{self, IsTerminal, Read, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{self, Child, ChildStdin, Command, ExitStatus, Stdio},
    str::FromStr,
    sync::{
        Mutex, PoisonError,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Error, Result, bail, ensure};
use rustix::{
    process::{Pid, Signal, getuid, kill_process},
    termios::{OptionalActions, Termios, tcgetattr, tcsetattr},
};

use crate::{
    apt::Apt,
    console::{self, Line, Transcript},
    symbols::Symbols,
    trace,
    tree::{self, Additions, Area, Ram},
    workspace,
};

const PROGRAM: &str = "qemu-system-aarch64";
const PACKAGE: &str = "qemu-system-arm";
/// From this version on QEMU has CPU models with FEAT_BBM.
const OLDEST: (u32, u32) = (8, 1);
/// Debian releases whose own QEMU is too old, and the suite that has a newer one.
const BACKPORTS: [(&str, &str); 1] = [("bookworm", "bookworm-backports")];

/// The `virt` machine's RAM begins here.
const RAM_START: u64 = 0x4000_0000;
/// Where the host kernel goes: above the hypervisor's image, 112 MiB below the initramfs.
const HOST_KERNEL: u64 = RAM_START + (16 << 20);
/// Where the initramfs goes if it is not QEMU's Linux loader that puts it there: where that would.
const INITRD: u64 = RAM_START + (128 << 20);
/// Where the kernel goes that a virtual machine monitor in the host makes a realm of: above where QEMU's Linux loader puts the device tree.
const REALM_KERNEL: u64 = RAM_START + (256 << 20);
/// Where its initramfs goes.
const REALM_INITRD: u64 = RAM_START + (384 << 20);
/// Where that must end.
const REALM_END: u64 = RAM_START + (512 << 20);
/// Where a device tree goes that is not QEMU's own: behind QEMU's (1 MiB at the start of RAM) and the image under U-Boot.
const TREE: u64 = RAM_START + (8 << 20);
/// The most that a tree may take there.
const TREE_ROOM: u64 = 1 << 20;
/// Where the image goes under U-Boot, which itself lies at the end of RAM.
const UNDER_U_BOOT: u64 = RAM_START + (4 << 20);
/// The size of U-Boot's buffer for a line (`CONFIG_SYS_CBSIZE`).
const U_BOOT_LINE: usize = 1024;
/// How often the file of a trace is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// How long a hypervisor that failed, or a Linux that broke, may go on to print why.
const GRACE: Duration = Duration::from_secs(3);

/// A number of bytes, written like `512M` or `4G`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        ensure!(
            digits != text || digits.parse::<u64>().is_err(),
            "a size has a unit: {digits}M or {digits}G"
        );
        let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
            "K" | "KIB" => 10,
            "M" | "MIB" => 20,
            "G" | "GIB" => 30,
            "T" | "TIB" => 40,
            _ => bail!("a size has a unit, as in 512M or 4G"),
        };
        let number: u64 = digits.parse().context("a size is a whole number with a unit, as in 512M or 4G")?;
        ensure!(number > 0, "a machine has memory");
        let bytes = number.checked_mul(1 << shift).context("this is more memory than there can be")?;
        Ok(Self(bytes))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (number, unit) = match self.0 {
            bytes if bytes.is_multiple_of(1 << 30) => (bytes >> 30, "G"),
            bytes if bytes.is_multiple_of(1 << 20) => (bytes >> 20, "M"),
            bytes => (bytes >> 10, "K"),
        };
        f.pad(&format!("{number}{unit}"))
    }
}

/// The machine to emulate.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The number of CPUs.
    pub cpus: u32,
    /// The size of RAM.
    pub memory: Size,
    /// The CPU model, with its options.
    pub cpu: String,
    /// Whether the machine has EL2.
    pub el2: bool,
    /// The version of its interrupt controller.
    pub gic: u8,
    /// Whether that has an interrupt translation service.
    pub its: bool,
    /// Whether a reset starts it anew; else it ends the run.
    pub resets: bool,
    /// Where the image is put, if not where QEMU's Linux loader does: a few instructions then play the boot loader, with a device
    /// tree of our own.
    pub image_at: Option<u64>,
    /// What that tree lists of RAM, if not one bank.
    pub ram: Option<Ram>,
    /// Whether virtual time counts instructions.
    pub icount: bool,
    /// Where QEMU's random numbers for the guest begin, if they are to be the same each time.
    pub seed: Option<u64>,
    /// Whether the machine waits for a debugger before it starts.
    pub gdb: bool,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            cpus: 4,
            memory: Size(1 << 30),
            cpu: "max".to_owned(),
            el2: true,
            gic: 3,
            its: true,
            resets: false,
            image_at: None,
            ram: None,
            icount: false,
            seed: None,
            gdb: false,
        }
    }
}

impl Machine {
    /// Bytes of RAM that a host may map, if it is given all of them.
    pub fn mappable(&self) -> u64 {
        self.ram.map_or(self.memory.0, |ram| ram.mappable())
    }
}

/// What the machine boots.
#[derive(Clone, Debug, Default)]
pub struct Boot {
    /// The image that QEMU starts.
    pub image: PathBuf,
    /// The kernel of the host below the hypervisor; without one the embedded payload runs.
    pub host_kernel: Option<PathBuf>,
    /// The initramfs.
    pub initrd: Option<PathBuf>,
    /// The kernel and the initramfs of a realm that the payload makes, put into the host's RAM.
    pub realm: Option<[PathBuf; 2]>,
    /// The command line.
    pub append: String,
    /// A device tree in place of QEMU's own.
    pub device_tree: Option<PathBuf>,
    /// The U-Boot that is started, and typed to, in place of the image.
    pub u_boot: Option<PathBuf>,
    /// A disk, on virtio. With it there is a network card on virtio, in a network of its own where port 7 of 10.0.2.100 is an echo.
    pub disk: Option<PathBuf>,
}

impl Boot {
    /// The host's kernel and initramfs, where they are put and what they take, if it is not QEMU's Linux loader that does it.
    fn host_areas(&self) -> Result<[Option<Area>; 2]> {
        let area = |path: &Option<PathBuf>, address| {
            let size = path.as_ref().map(|path| {
                fs::metadata(path)
                    .with_context(|| format!("cannot read {}", path.display()))
                    .map(|it| it.len())
            });
            Ok::<_, Error>(size.transpose()?.map(|size| (address, size)))
        };
        Ok([area(&self.host_kernel, HOST_KERNEL)?, area(&self.initrd, INITRD)?])
    }

    /// What the host's payload is told of the kernel and the initramfs of a realm in these files.
    pub fn realm_parameters([kernel, initrd]: &[PathBuf; 2]) -> Result<[String; 2]> {
        let told = |name: &str, path: &Path, at: u64, end: u64| {
            let size = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
            ensure!(
                size <= end - at,
                "{} has {size} bytes, and there is room for {}",
                path.display(),
                end - at
            );
            Ok(format!("cloven.guest-{name}={at:#x},{size:#x}"))
        };
        Ok([
            told("kernel", kernel, REALM_KERNEL, REALM_INITRD)?,
            told("initrd", initrd, REALM_INITRD, REALM_END)?,
        ])
    }

    /// What is typed to U-Boot, and after which text.
    pub fn typed(&self) -> Result<Vec<(&'static str, String)>> {
        const PROMPT: &str = "=> ";
        let [kernel, initrd] = self.host_areas()?;
        let mut lines = Vec::new();
        if !self.append.is_empty() {
            lines.push(format!("setenv bootargs '{}'", self.append));
        }
        let mut tree = "${fdtcontroladdr}".to_owned();
        if let Some((start, size)) = kernel {
            // Where it lies there is no room behind it.
            lines.push(format!("fdt move {tree} {TREE:#x} {TREE_ROOM:#x}"));
            tree = format!("{TREE:#x}");
            let node = format!("/chosen/module@{start:x}");
            lines.push(format!("fdt mknode /chosen module@{start:x}"));
            lines.push(format!("fdt set {node} compatible multiboot,kernel multiboot,module"));
            lines.push(format!("fdt set {node} reg <0 {start:#x} 0 {size:#x}>"));
        }
        let initrd = initrd.map_or_else(|| "-".to_owned(), |(start, size)| format!("{start:#x}:{size:#x}"));
        lines.push(format!("booti {UNDER_U_BOOT:#x} {initrd} {tree}"));
        ensure!(
            lines.iter().all(|line| line.len() < U_BOOT_LINE) && !self.append.contains('\''),
            "U-Boot takes lines of less than {U_BOOT_LINE} characters, and a command line without '"
        );
        let typed = lines.into_iter().map(|line| (PROMPT, line + "\n"));
        Ok([("Hit any key", " ".to_owned())].into_iter().chain(typed).collect())
    }
}

/// An installed QEMU.
#[derive(Clone, Debug)]
pub struct Qemu {
    path: PathBuf,
}

impl Qemu {
    /// Finds QEMU, and installs it where that can be done.
    pub fn locate() -> Result<Self> {
        let found = Self::find();
        let what = match &found {
            Some((_, Some(version))) if *version >= OLDEST => {
                let (path, _) = found.expect("it was just matched");
                return Ok(Self { path });
            }
            Some((path, Some((major, minor)))) => format!("{} is QEMU {major}.{minor}", path.display()),
            Some((path, None)) => format!("{} does not tell its version", path.display()),
            None => format!("{PROGRAM} is missing"),
        };
        let (major, minor) = OLDEST;
        let advice =
            format!("{what}: install QEMU {major}.{minor} or newer (package {PACKAGE} on Debian and Ubuntu)");
        ensure!(getuid().is_root() && workspace::find_program("apt-get").is_some(), "{advice}");
        Self::install().with_context(|| advice.clone())?;
        match Self::find() {
            Some((path, Some(version))) if version >= OLDEST => Ok(Self { path }),
            _ => bail!("{advice}; the packages of this machine have no such version"),
        }
    }

    fn find() -> Option<(PathBuf, Option<(u32, u32)>)> {
        let path = workspace::find_program(PROGRAM)?;
        let version = workspace::output(Command::new(&path).arg("--version"))
            .ok()
            .and_then(|text| parse_version(&text));
        Some((path, version))
    }

    fn install() -> Result<()> {
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let codename = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
        let suite = BACKPORTS.iter().find(|(name, _)| Some(*name) == codename).map(|(_, suite)| *suite);
        eprintln!("installing {PACKAGE}{}", suite.map_or_else(String::new, |suite| format!(" from {suite}")));
        Apt::own_with(suite.as_slice())?.install(PACKAGE, suite)
    }

    /// An error unless this QEMU has a second UART, for what is traced.
    pub fn check_trace(&self) -> Result<()> {
        let version = workspace::output(Command::new(&self.path).arg("--version")).ok();
        trace::check_qemu(version.and_then(|text| parse_version(&text)), &self.path)
    }

    /// An error with the nearest names unless QEMU knows the CPU model.
    pub fn check_cpu(&self, cpu: &str) -> Result<()> {
        let model = cpu.split(',').next().unwrap_or_default();
        let help = workspace::output(Command::new(&self.path).args(["-machine", "virt", "-cpu", "help"]))?;
        let models: Vec<&str> = help.lines().skip(1).map(str::trim).filter(|name| !name.is_empty()).collect();
        if models.contains(&model) {
            return Ok(());
        }
        let mut near = models;
        near.sort_by_key(|name| strsim::damerau_levenshtein(name, model));
        near.truncate(3);
        bail!("QEMU has no CPU model '{model}'; near it are {} (all: {PROGRAM} -cpu help)", near.join(", "));
    }

    /// The command that boots `boot` on `machine`, the serial console on its standard input and output.
    pub fn command(&self, machine: &Machine, boot: &Boot, interactive: bool) -> Command {
        let mut command = with_parent(&self.path);
        command.args(machine_arguments(machine, ""));
        if !machine.resets {
            command.arg("-no-reboot");
        }
        // The default network card needs a file of a package of its own.
        command.args(["-display", "none", "-nic", "none"]);
        command.args(if interactive { ["-serial", "mon:stdio"] } else { ["-serial", "stdio"] });
        if !interactive {
            command.args(["-monitor", "none"]);
        }
        if machine.icount {
            command.args(["-icount", "shift=0,sleep=off"]);
        }
        if let Some(seed) = machine.seed {
            command.args(["-seed", &seed.to_string()]);
        }
        if machine.gdb {
            command.args(["-s", "-S"]);
        }
        let place = match (&boot.u_boot, machine.image_at) {
            (None, None) => None,
            (None, Some(address)) => {
                command.args(trampoline(address));
                Some(address)
            }
            (Some(u_boot), _) => {
                command.arg("-bios").arg(u_boot);
                Some(UNDER_U_BOOT)
            }
        };
        if let Some(address) = place {
            let (tree, kernel, initrd) = (&boot.device_tree, &boot.host_kernel, &boot.initrd);
            let files = [(tree, TREE), (kernel, HOST_KERNEL), (initrd, INITRD)];
            let files = files.into_iter().filter_map(|(path, at)| Some((path.as_ref()?, at)));
            for (path, at) in files.chain([(&boot.image, address)]) {
                let device = format!("loader,file={},addr={at:#x},force-raw=on", escaped(path));
                command.args(["-device", &device]);
            }
            return command;
        }
        command.arg("-kernel").arg(&boot.image);
        if let Some(kernel) = &boot.host_kernel {
            let kernel = escaped(kernel);
            command.args(["-device", &format!("guest-loader,addr={HOST_KERNEL:#x},kernel={kernel}")]);
        }
        if let Some([kernel, initrd]) = &boot.realm {
            for (path, at) in [(kernel, REALM_KERNEL), (initrd, REALM_INITRD)] {
                let device = format!("loader,file={},addr={at:#x},force-raw=on", escaped(path));
                command.args(["-device", &device]);
            }
        }
        if let Some(initrd) = &boot.initrd {
            command.arg("-initrd").arg(initrd);
        }
        if !boot.append.is_empty() {
            command.args(["-append", &boot.append]);
        }
        if let Some(tree) = &boot.device_tree {
            command.arg("-dtb").arg(tree);
        }
        if let Some(disk) = &boot.disk {
            let disk = disk.display().to_string().replace(',', ",,");
            command.args(["-drive", &format!("if=none,id=disk,format=raw,file={disk}")]);
            command.args(["-device", "virtio-blk-pci,drive=disk"]);
            command.args(["-netdev", "user,id=net,restrict=on,guestfwd=tcp:10.0.2.100:7-cmd:cat"]);
            // The card's own ROM is in a package of its own.
            command.args(["-device", "virtio-net-pci,netdev=net,romfile="]);
        }
        command
    }

    /// The device tree that QEMU makes for `machine`.
    pub fn device_tree(&self, machine: &Machine) -> Result<Vec<u8>> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("tree");
        let mut command = Command::new(&self.path);
        command.args(machine_arguments(machine, &format!(",dumpdtb={}", file.display())));
        workspace::output(command.args(["-display", "none", "-nic", "none"]))?;
        fs::read(&file).context("QEMU wrote no device tree")
    }

    /// The same as a boot loader would hand it on with `boot`.
    pub fn own_tree(&self, machine: &Machine, boot: &Boot) -> Result<Vec<u8>> {
        let [kernel, initrd] = boot.host_areas()?;
        let additions = Additions { ram: machine.ram, bootargs: &boot.append, kernel, initrd };
        tree::edited(&self.device_tree(machine)?, &additions)
    }
}

/// The machine, with `options` of its own.
fn machine_arguments(machine: &Machine, options: &str) -> Vec<String> {
    let mut kind = machine_kind(machine) + options;
    let mut arguments = Vec::new();
    let mut add = |name: &str, value: &str| arguments.extend([name.to_owned(), value.to_owned()]);
    if needs_lazy_memory(machine.memory) {
        add("-object", &format!("memory-backend-ram,id=ram,size={},reserve=off", machine.memory));
        kind += ",memory-backend=ram";
    }
    add("-machine", &kind);
    add("-cpu", &machine.cpu);
    add("-smp", &machine.cpus.to_string());
    add("-m", &machine.memory.to_string());
    arguments
}

/// A path in an option with commas between its parts.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn machine_kind(machine: &Machine) -> String {
    let virtualization = if machine.el2 { ",virtualization=on" } else { "" };
    let its = if machine.its { "" } else { ",its=off" };
    format!("virt{virtualization},gic-version={}{its}", machine.gic)
}

/// Where the few instructions lie that play the boot loader: far from either end of 512 MiB of RAM.
const TRAMPOLINE: u64 = 0x5000_0000;

/// Starts an image at `address` (a multiple of 64 KiB below 2^48) with the device tree in x0, as a boot loader would.
fn trampoline(address: u64) -> Vec<String> {
    // movz Xd, #imm16, lsl #16; movk Xd, #imm16, lsl #32 (Arm ARM, C6.2); br x1.
    let movz = |register: u64, value: u64| 0xd2a0_0000 | (value >> 16 & 0xffff) << 5 | register;
    let movk = |register: u64, value: u64| 0xf2c0_0000 | (value >> 32 & 0xffff) << 5 | register;
    let words = [movz(0, TREE) | movz(1, address) << 32, movk(1, address) | 0xd61f_0020 << 32];
    let mut devices = vec![format!("loader,addr={TRAMPOLINE:#x},cpu-num=0")];
    for (at, word) in (TRAMPOLINE..).step_by(8).zip(words) {
        devices.push(format!("loader,addr={at:#x},data={word:#x},data-len=8"));
    }
    devices.into_iter().flat_map(|device| ["-device".to_owned(), device]).collect()
}

/// A command that ends with this program where the system can do that, so that a killed run leaves no QEMU behind.
fn with_parent(program: &Path) -> Command {
    match workspace::find_program("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL"]).arg(program);
            command
        }
        None => Command::new(program),
    }
}

/// Whether so much memory must not be reserved in advance: more than half of what this machine has.
fn needs_lazy_memory(size: Size) -> bool {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = info
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse().ok());
    total.is_some_and(|total: u64| size.0 > total * 1024 / 2)
}

/// Major and minor from `QEMU emulator version 10.0.2 (…)`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_once("version ")?.1.split(['.', ' ', '\n']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The address at which the image of `boot` lies on `machine`, for a debugger: of one with the arm64 header, unless it is put elsewhere.
pub fn load_address(machine: &Machine, boot: &Boot) -> Result<u64> {
    let put = boot.u_boot.as_ref().map(|_| UNDER_U_BOOT).or(machine.image_at);
    if let Some(address) = put {
        return Ok(address);
    }
    let mut header = [0; 24];
    fs::File::open(&boot.image)
        .and_then(|mut file| file.read_exact(&mut header))
        .context("the image has no header")?;
    let field = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("a field has 8 bytes"));
    let (offset, size) = (field(8), field(16));
    // QEMU (hw/arm/boot.c): without a size the offset means nothing, and its own boot stub lies in the first page.
    let offset = if size == 0 { 0x8_0000 } else { offset };
    Ok(RAM_START + if offset < 0x1000 { offset + (2 << 20) } else { offset })
}

/// How a run ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Ended {
    /// The machine was switched off from inside (or QEMU's console was left), and QEMU returned 0.
    Off,
    /// QEMU failed: its status and its last message.
    Failed(String),
    /// The time was up.
    TimedOut(Duration),
    /// The text that was waited for came, so QEMU was ended.
    Seen,
    /// The hypervisor or Linux broke and did not switch off, so QEMU was ended.
    Broken,
}

/// How to follow a run.
#[derive(Default)]
pub struct Follow<'a> {
    /// The run is ended after this time.
    pub timeout: Option<Duration>,
    /// The user's terminal is the machine's console.
    pub interactive: bool,
    /// The run is ended when these texts have come, one after the other.
    pub until: &'a [&'a str],
    /// The console goes to standard output as it comes.
    pub echo: bool,
    /// What is typed to the console, each behind a text that comes after the one before it. Not where it is the user's.
    pub typed: Vec<(&'static str, String)>,
    /// From when on the moments that the console names are counted, if not from the start of QEMU.
    pub since: Option<Instant>,
    /// What is traced goes there.
    pub trace: Option<trace::Target>,
}

/// Starts `command` and follows it to its end.
pub fn follow(mut command: Command, how: &Follow, symbols: &mut Symbols) -> Result<(Transcript, Ended)> {
    let terminal = SavedTerminal::save(how.interactive);
    if !how.interactive {
        // An interrupt from the terminal is this program's, which then ends it.
        command.process_group(0);
    }
    command.stdin(match how {
        Follow { interactive: true, .. } => Stdio::inherit(),
        Follow { typed, .. } if typed.is_empty() => Stdio::null(),
        _ => Stdio::piped(),
    });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut qemu =
        Running(command.spawn().with_context(|| format!("cannot start {}", workspace::shown(&command)))?);
    *current() = Some(Current { qemu: Pid::from_child(&qemu.0), terminal: terminal.0.clone() });
    let mut stdout = qemu.0.stdout.take().expect("stdout is a pipe");
    let mut stderr = qemu.0.stderr.take().expect("stderr is a pipe");
    let messages = thread::spawn(move || {
        let mut text = Vec::new();
        let _ = stderr.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    });
    let (sender, console) = mpsc::sync_channel(64);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count) = stdout.read(&mut buffer)
            && count > 0
            && sender.send(buffer[..count].to_vec()).is_ok()
        {}
    });

    let mut typist = Typist { keys: qemu.0.stdin.take(), rest: &how.typed, seen: String::new() };
    let mut screen = Screen::new(how.echo);
    let mut transcript = Transcript::default();
    let mut tail = how.trace.as_ref().map(trace::Target::tail);
    let mut waiting = how.until;
    let start = Instant::now();
    let mut broken_since = None;
    let killed = loop {
        let broken_until = broken_since.map(|since| since + GRACE);
        let deadline = [how.timeout.map(|timeout| start + timeout), broken_until].into_iter().flatten().min();
        let wait =
            deadline.map_or(Duration::from_secs(3600), |end| end.saturating_duration_since(Instant::now()));
        let look_at = tail.as_mut().map_or(wait, |tail| {
            tail.read(&mut transcript.trace);
            screen.insert(tail);
            LOOK.min(wait)
        });
        let bytes = match console.recv_timeout(look_at) {
            Ok(bytes) => bytes,
            Err(RecvTimeoutError::Disconnected) => break None,
            Err(RecvTimeoutError::Timeout) if look_at < wait => continue,
            Err(RecvTimeoutError::Timeout) if deadline.is_none() => continue,
            Err(RecvTimeoutError::Timeout) if broken_since.is_some() => break Some(Ended::Broken),
            Err(RecvTimeoutError::Timeout) => break how.timeout.map(Ended::TimedOut),
        };
        typist.see(&bytes);
        screen.show(&bytes, |line| {
            if let [next, rest @ ..] = waiting
                && line.contains(next)
            {
                waiting = rest;
            }
            if let Line::Moment(name) = console::parse(line) {
                transcript.note(name, how.since.unwrap_or(start).elapsed());
            }
            transcript.push(line, |offset| symbols.describe(offset))
        });
        if !how.until.is_empty() && waiting.is_empty() {
            break Some(Ended::Seen);
        }
        if !how.interactive && (transcript.fatal.is_some() || transcript.kernel_fault.is_some()) {
            broken_since.get_or_insert_with(Instant::now);
        }
        // A console that never falls silent must not outrun the deadline.
        if deadline.is_some_and(|end| Instant::now() >= end) {
            let broken = broken_until.is_some_and(|end| Instant::now() >= end);
            break if broken { Some(Ended::Broken) } else { how.timeout.map(Ended::TimedOut) };
        }
    };
    screen.end(|line| transcript.push(line, |offset| symbols.describe(offset)));
    let status =
        if killed.is_some() { qemu.kill()? } else { qemu.0.wait().context("cannot wait for QEMU")? };
    *current() = None;
    drop(terminal);
    if let Some(tail) = &mut tail {
        tail.read(&mut transcript.trace);
        screen.insert(tail);
    }
    let messages = messages.join().unwrap_or_default();
    let ended =
        killed.unwrap_or_else(|| if status.success() { Ended::Off } else { failure(status, &messages) });
    Ok((transcript, ended))
}

fn failure(status: ExitStatus, messages: &str) -> Ended {
    let last = messages.lines().rfind(|line| !line.trim().is_empty());
    Ended::Failed(last.map_or_else(|| status.to_string(), |message| format!("{status}: {message}")))
}

/// What there is to undo when this program is interrupted.
struct Current {
    qemu: Pid,
    terminal: Option<Termios>,
}

static CURRENT: Mutex<Option<Current>> = Mutex::new(None);

fn current() -> std::sync::MutexGuard<'static, Option<Current>> {
    CURRENT.lock().unwrap_or_else(PoisonError::into_inner)
}

/// From now on an interrupt (Ctrl-C, unless the terminal is the guest's), a hang-up or a request to end ends this program, its
/// QEMU too, with a line that says so and the status that shells give such programs.
pub fn end_when_interrupted() -> Result<()> {
    ctrlc::set_handler(|| {
        // Held to the end, so that the other thread, whose QEMU goes, says nothing more.
        let current = current();
        if let Some(Current { qemu, terminal }) = &*current {
            let _ = kill_process(*qemu, Signal::KILL);
            if let Some(settings) = terminal {
                let _ = tcsetattr(io::stdin(), OptionalActions::Now, settings);
            }
        }
        eprintln!("\ninterrupted{}", if current.is_some() { ": QEMU has been ended" } else { "" });
        process::exit(130);
    })
    .context("cannot take interrupts")
}

/// A QEMU that is killed when it is dropped.
struct Running(Child);

impl Running {
    fn kill(&mut self) -> Result<ExitStatus> {
        let _ = self.0.kill();
        self.0.wait().context("cannot wait for QEMU")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// The settings of the terminal, put back when this is dropped: a QEMU that is killed leaves it raw.
struct SavedTerminal(Option<Termios>);

impl SavedTerminal {
    fn save(interactive: bool) -> Self {
        Self(interactive.then(|| tcgetattr(io::stdin()).ok()).flatten())
    }
}

impl Drop for SavedTerminal {
    fn drop(&mut self) {
        if let Some(settings) = &self.0 {
            let _ = tcsetattr(io::stdin(), OptionalActions::Now, settings);
        }
    }
}

/// Types what is to be typed when its time has come.
struct Typist<'a> {
    keys: Option<ChildStdin>,
    rest: &'a [(&'static str, String)],
    /// What has come since something was typed.
    seen: String,
}

impl Typist<'_> {
    fn see(&mut self, bytes: &[u8]) {
        if self.rest.is_empty() {
            return;
        }
        self.seen += &String::from_utf8_lossy(bytes);
        while let [(text, keys), rest @ ..] = self.rest
            && let Some(at) = self.seen.find(text)
        {
            self.seen.drain(..at + text.len());
            self.rest = rest;
            // A QEMU that has ended hears nothing more; how it ended is told elsewhere.
            let _ = self.keys.as_mut().map(|pipe| pipe.write_all(keys.as_bytes()));
        }
    }
}

/// Passes the console on as it comes (a prompt has no line end), the hypervisor's lines in colour on a terminal, and cuts
/// it into lines.
struct Screen {
    echo: bool,
    colour: bool,
    line: Vec<u8>,
    /// Bytes of the line that have been shown.
    shown: usize,
}

/// Whether nobody reads such a line.
fn is_hidden(line: &Line) -> bool {
    matches!(line, Line::Dump(_) | Line::Measured(_) | Line::Token(..) | Line::Moment(_))
}

const HYPERVISOR: &[u8] = b"cloven[";
const RECORD: &[u8] = b"@cloven";
const CYAN: &[u8] = b"\x1b[36m";
const PLAIN: &[u8] = b"\x1b[0m";

impl Screen {
    fn new(echo: bool) -> Self {
        Self { echo, colour: io::stdout().is_terminal(), line: Vec::new(), shown: 0 }
    }

    /// Takes bytes; gives each finished line to `take`, and shows behind it what `take` returns.
    fn show(&mut self, bytes: &[u8], mut take: impl FnMut(&str) -> Option<String>) {
        for &byte in bytes {
            if byte == b'\n' {
                self.finish(&mut take);
            } else if byte != b'\r' {
                self.line.push(byte);
            }
        }
        // What may become the hypervisor's prefix waits until that is known, what may become a line of a dump until it ends.
        let waits =
            [HYPERVISOR, RECORD].iter().any(|it| it.starts_with(&self.line) || self.line.starts_with(it));
        if !waits {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let colour = self.colour && self.shown == 0 && self.line.starts_with(HYPERVISOR);
        let rest = &self.line[self.shown..];
        self.shown = self.line.len();
        if self.echo {
            let mut out = io::stdout().lock();
            let prefix = if colour { CYAN } else { b"" };
            let _ = out.write_all(prefix).and_then(|()| out.write_all(rest)).and_then(|()| out.flush());
        }
    }

    /// Shows lines of a trace, unless a line of the console is shown in part.
    fn insert(&self, tail: &mut trace::Tail) {
        if self.shown > 0 {
            return;
        }
        let (cyan, plain) = if self.colour { (CYAN, PLAIN) } else { (&b""[..], &b""[..]) };
        for line in tail.show().filter(|_| self.echo) {
            let mut out = io::stdout().lock();
            let text = [cyan, line.as_bytes(), plain, b"\n"].concat();
            let _ = out.write_all(&text).and_then(|()| out.flush());
        }
    }

    /// Takes what has come of a line that was not finished.
    fn end(&mut self, take: impl FnMut(&str) -> Option<String>) {
        if !self.line.is_empty() {
            self.finish(take);
        }
    }

    fn finish(&mut self, mut take: impl FnMut(&str) -> Option<String>) {
        let line = String::from_utf8_lossy(&self.line).into_owned();
        let note = take(&line);
        if self.shown == 0 && is_hidden(&console::parse(&line)) {
            self.line.clear();
            return;
        }
        self.flush();
        if self.echo {
            let note = note.map_or_else(String::new, |note| format!(" {note}"));
            let plain = if self.colour && self.line.starts_with(HYPERVISOR) { PLAIN } else { b"" };
            let mut out = io::stdout().lock();
            let _ = out
                .write_all(note.as_bytes())
                .and_then(|()| out.write_all(plain))
                .and_then(|()| out.write_all(b"\n"));
        }
        self.line.clear();
        self.shown = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_without_its_unit_is_suggested_with_one() {
        assert_eq!("3".parse::<Size>().unwrap_err().to_string(), "a size has a unit: 3M or 3G");
    }

    #[test]
    fn sizes_are_read_with_their_unit() {
        for (text, bytes) in
            [("512M", 512 << 20), ("4G", 4 << 30), ("256GiB", 256 << 30), ("1t", 1 << 40), ("64k", 65536)]
        {
            assert_eq!(text.parse::<Size>().unwrap().0, bytes);
        }
        for wrong in ["", "G", "12", "-1G", "1.5G", "1X", "99999999999T", "G4", "é"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_shown_as_qemu_reads_them() {
        for text in ["512M", "4G", "256G", "1536M", "64K"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn versions_of_qemu_are_read() {
        assert_eq!(parse_version("QEMU emulator version 10.0.2 (Debian 1:10.0.2)\n"), Some((10, 0)));
        assert_eq!(parse_version("QEMU emulator version 7.2.22\n"), Some((7, 2)));
        assert_eq!(parse_version("something else"), None);
    }

    #[test]
    fn u_boot_is_told_of_a_host_and_of_its_command_line() {
        let typed = |boot: &Boot| boot.typed().map(|typed| typed.into_iter().map(|(_, line)| line).collect());
        let payload: Vec<String> = typed(&Boot::default()).unwrap();
        assert_eq!(payload, [" ", "booti 0x40400000 - ${fdtcontroladdr}\n"]);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, [0; 5]).unwrap();
        let host_kernel = Some(file.clone());
        let linux = Boot { host_kernel, initrd: Some(file), append: "a b".into(), ..Boot::default() };
        let lines: Vec<String> = typed(&linux).unwrap();
        assert_eq!(lines[1], "setenv bootargs 'a b'\n");
        assert!(lines.contains(&"fdt set /chosen/module@41000000 reg <0 0x41000000 0 0x5>\n".to_owned()));
        assert_eq!(lines.last().unwrap(), "booti 0x40400000 0x48000000:0x5 0x40800000\n");
        let line = arguments(&Machine::default(), &Boot { u_boot: Some("u".into()), ..linux.clone() }, false);
        assert!(line.contains("-bios u -device loader,file="), "{line}");
        assert!(
            !line.contains("-kernel") && !line.contains("-initrd") && !line.contains("-append"),
            "{line}"
        );
        assert!(typed(&Boot { append: "it's".into(), ..linux.clone() }).is_err());
        assert!(typed(&Boot { append: "x".repeat(2000), ..linux }).is_err());
    }

    #[test]
    fn what_plays_the_boot_loader_goes_to_any_address() {
        // By llvm-mc: movz x0, #0x4080, lsl #16; movz x1, #0x2000, lsl #16; movk x1, #0x4b, lsl #32; br x1.
        let line = trampoline(0x4b_2000_0000).join(" ");
        assert!(line.contains("addr=0x50000000,data=0xd2a40001d2a81000"), "{line}");
        assert!(line.contains("addr=0x50000008,data=0xd61f0020f2c00961"), "{line}");
    }

    fn arguments(machine: &Machine, boot: &Boot, interactive: bool) -> String {
        workspace::shown(&Qemu { path: "qemu".into() }.command(machine, boot, interactive))
    }

    #[test]
    fn a_host_kernel_its_initramfs_and_command_line_reach_the_machine() {
        let boot = Boot {
            image: "hyp.img".into(),
            host_kernel: Some("Image".into()),
            initrd: Some("root.cpio".into()),
            append: "console=ttyAMA0 quiet".into(),
            ..Boot::default()
        };
        let line = arguments(&Machine::default(), &boot, false);
        assert!(
            line.contains("-machine virt,virtualization=on,gic-version=3 -cpu max -smp 4 -m 1G"),
            "{line}"
        );
        assert!(line.contains("-serial stdio"), "{line}");
        assert!(line.contains("-device guest-loader,addr=0x41000000,kernel=Image"), "{line}");
        assert!(line.ends_with("-initrd root.cpio -append 'console=ttyAMA0 quiet'"), "{line}");
    }

    #[test]
    fn a_disk_comes_with_a_network_card_that_reaches_an_echo_only() {
        let boot = Boot { image: "hyp.img".into(), disk: Some("a,b".into()), ..Boot::default() };
        let line = arguments(&Machine::default(), &boot, false);
        assert!(line.contains("file=a,,b -device virtio-blk-pci,drive=disk"), "{line}");
        assert!(line.contains("restrict=on,guestfwd=tcp:10.0.2.100:7-cmd:cat"), "{line}");
        assert!(line.ends_with("-device virtio-net-pci,netdev=net,romfile="), "{line}");
    }

    #[test]
    fn nothing_that_was_not_asked_for_is_on_the_command_line() {
        let line = arguments(&Machine { el2: false, ..Machine::default() }, &Boot::default(), true);
        for absent in
            ["-append", "-initrd", "-dtb", "-icount", "-s ", "guest-loader", "virtualization", "virtio"]
        {
            assert!(!line.contains(absent), "{absent} in {line}");
        }
        assert!(line.contains("-serial mon:stdio"), "{line}");
    }

    #[test]
    fn memory_that_the_machine_has_not_is_not_reserved() {
        let machine = Machine { memory: Size(1 << 50), ..Machine::default() };
        let line = arguments(&machine, &Boot::default(), false);
        assert!(line.contains("-object memory-backend-ram,id=ram,size=1048576G,reserve=off"), "{line}");
        assert!(line.contains("gic-version=3,memory-backend=ram"), "{line}");
    }

    #[test]
    fn a_realms_kernel_and_initramfs_lie_in_the_hosts_memory_where_its_payload_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["Image", "root,cpio"].map(|name| dir.path().join(name));
        fs::write(&files[0], [0; 5]).unwrap();
        fs::write(&files[1], [0; 17]).unwrap();
        let told = Boot::realm_parameters(&files).unwrap();
        assert_eq!(told, ["cloven.guest-kernel=0x50000000,0x5", "cloven.guest-initrd=0x58000000,0x11"]);
        let boot = Boot { image: "hyp.img".into(), realm: Some(files.clone()), ..Boot::default() };
        let line = arguments(&Machine::default(), &boot, false);
        assert!(line.contains("Image,addr=0x50000000,force-raw=on"), "{line}");
        assert!(line.contains("root,,cpio,addr=0x58000000,force-raw=on"), "{line}");
        assert!(!line.contains("guest-loader") && !line.contains("-initrd"), "{line}");
        fs::File::create(&files[0]).unwrap().set_len((128 << 20) + 1).unwrap();
        assert!(Boot::realm_parameters(&files).is_err());
        assert!(Boot::realm_parameters(&["/nonexistent".into(), files[1].clone()]).is_err());
    }

    #[test]
    fn moments_are_counted_from_when_the_run_was_asked_for() {
        let text = "echo '@cloven moment shell'";
        let (transcript, _) = script(text, &Follow::default());
        assert!(transcript.moments[0].1 < Duration::from_secs(60));
        let since = Instant::now().checked_sub(Duration::from_secs(100));
        let (transcript, _) = script(text, &Follow { since, ..Follow::default() });
        assert!(transcript.moments[0].1 >= Duration::from_secs(100) && since.is_some());
        assert_eq!(transcript.moments[0].0, "shell");
    }

    /// Follows a shell script in place of QEMU.
    fn script(text: &str, how: &Follow) -> (Transcript, Ended) {
        let mut command = Command::new("sh");
        command.args(["-c", text]);
        follow(command, how, &mut Symbols::new(Path::new("/nonexistent"))).unwrap()
    }

    #[test]
    fn a_line_that_may_be_of_a_dump_is_not_shown_before_it_ends() {
        let mut screen = Screen::new(false);
        let mut shown = |text: &str| {
            screen.show(text.as_bytes(), |_| None);
            screen.shown
        };
        assert_eq!((shown("@clo"), shown("ven dump {}"), shown("\n")), (0, 0, 0));
        assert_eq!((shown("cloven[0] info: @cloven dump {"), shown("}\n")), (0, 0));
        assert_eq!(shown("cloud"), 5);
    }

    #[test]
    fn each_line_is_typed_after_the_text_before_it() {
        let typed = vec![("=> ", "one\n".to_owned()), ("=> ", "done 0\n".to_owned())];
        let how = Follow { typed, timeout: Some(Duration::from_secs(30)), ..Follow::default() };
        let prompts = "printf '=> '; read a; echo \"$a\"; printf '= > ='; printf '> '; read b; echo; echo \"@cloven $b\"";
        let (transcript, ended) = script(prompts, &how);
        assert_eq!((ended, transcript.done), (Ended::Off, Some(0)));
        assert_eq!(transcript.tail().next(), Some("=> one"));
    }

    #[test]
    fn a_run_that_ends_by_itself_is_off() {
        let (transcript, ended) =
            script("echo '@cloven check a ok'; printf '@cloven done 1'", &Follow::default());
        assert_eq!(ended, Ended::Off);
        assert_eq!((transcript.checks.len(), transcript.done), (1, Some(1)));
    }

    #[test]
    fn a_failing_qemu_is_reported_with_its_last_message() {
        let (_, ended) = script("echo first >&2; echo 'no such device' >&2; exit 3", &Follow::default());
        assert_eq!(ended, Ended::Failed("exit status: 3: no such device".into()));
    }

    #[test]
    fn a_hung_run_is_ended_when_its_time_is_up() {
        let how = Follow { timeout: Some(Duration::from_millis(200)), ..Follow::default() };
        let start = Instant::now();
        let (transcript, ended) = script("echo last words; exec sleep 60", &how);
        assert_eq!(ended, Ended::TimedOut(Duration::from_millis(200)));
        assert_eq!(transcript.tail().collect::<Vec<_>>(), ["last words"]);
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_run_that_never_falls_silent_is_ended_too() {
        let how = Follow { timeout: Some(Duration::from_millis(200)), ..Follow::default() };
        let (_, ended) = script("exec yes", &how);
        assert_eq!(ended, Ended::TimedOut(Duration::from_millis(200)));
    }

    #[test]
    fn a_run_is_ended_when_the_awaited_texts_have_come_in_their_order() {
        let until = &["one", "two", "one"];
        let how = Follow { until, timeout: Some(Duration::from_secs(30)), ..Follow::default() };
        let (_, ended) = script("echo zero one; echo three; echo two; echo one; exec sleep 60", &how);
        assert_eq!(ended, Ended::Seen);
        let (_, ended) = script("echo two; echo one; echo one", &how);
        assert_eq!(ended, Ended::Off);
    }

    #[test]
    fn a_fatal_message_ends_a_run_that_hangs_after_it() {
        let how = Follow { timeout: Some(Duration::from_secs(30)), ..Follow::default() };
        let (transcript, ended) = script("echo 'cloven[0] fatal: x'; exec sleep 60", &how);
        assert_eq!(ended, Ended::Broken);
        assert_eq!(transcript.fatal.as_deref(), Some("x"));
    }
}
