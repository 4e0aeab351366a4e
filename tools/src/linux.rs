//! A stock Linux: fetches a distribution's kernel and busybox (and U-Boot), and packs the initramfs that checks the host's view.
//!
//! Invariant: what is in the cache is whole (files are moved into place when they are finished), and a request that the
//! cache satisfies uses no network and no package tool.

use std::{
    collections::BTreeMap,
    env, fmt, fs,
    io::{IsTerminal, Read, Write},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use anyhow::{Context, Error, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use lzma_rust2::XzReader;
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::{
    apt::{self, Apt},
    images, workspace,
};

const SUITES: [&str; 2] = ["trixie", "trixie-backports"];
const ARCHITECTURE: &str = "arm64";
const INIT: &[u8] = include_bytes!("init.sh");
/// What the first process runs beside it in a realm.
const REALM: &[u8] = include_bytes!("realm.sh");

/// The modules that a kernel is given, without those that they depend on.
#[derive(Clone, Copy, Debug)]
enum Modules {
    /// For the work of a host.
    Work,
    /// For a realm: its attestation token, its devices, and a device without hardware that shares memory as real ones do.
    Realm,
}

impl Modules {
    const ALL: [Self; 2] = [Self::Work, Self::Realm];

    fn names(self) -> &'static [&'static str] {
        match self {
            Self::Work => &["virtio_net", "virtio_blk"],
            Self::Realm => &["arm-cca-guest", "virtio_mmio", "virtio_blk", "vivid"],
        }
    }

    /// The name in the cache of what a kernel has of them. It follows from what they are, so that nothing older is taken for them.
    fn cached(self, Kernel { version, flavour, .. }: &Kernel) -> String {
        let digest = Sha256::digest(self.names().join(" "));
        let digits: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        format!("modules-{version}{}-{digits}.cpio", flavour.suffix())
    }
}

/// The first version that can run in a realm.
const FIRST_FOR_REALMS: [u32; 2] = [6, 13];
/// Bytes of the disk that the work gets.
const DISK: u64 = 64 << 20;

/// Kernel parameters of every run: the console, and an end rather than a hang when Linux breaks.
pub const PARAMETERS: &str = "console=ttyAMA0 panic=-1";

/// The kernel parameter that makes the initramfs end in a shell.
pub const SHELL: &str = "cloven.shell";

/// The parameter that tells the initramfs of a realm that its devices are those of a virtual machine monitor.
pub const VMM: &str = "cloven.vmm";

/// The parameter that makes the initramfs look at the boot only.
pub const BRIEF: &str = "cloven.brief";

/// The kernel parameters that make the initramfs of [`Store::work_initramfs`] work for so many seconds. The program maps what is no RAM.
pub fn work_parameters(seconds: u64) -> String {
    format!("cloven.work={seconds} iomem=relaxed")
}

/// A disk for the work of one run.
pub fn disk() -> Result<NamedTempFile> {
    let disk = NamedTempFile::new().context("cannot make a file for a disk")?;
    disk.as_file().set_len(DISK).context("cannot make room for a disk")?;
    Ok(disk)
}

/// A kernel version or the beginning of one: 7.2 asks for the newest 7.2.x.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Version(Vec<u32>);

impl Version {
    /// Whether `self`, a request, is satisfied by the full version `other`.
    pub fn includes(&self, other: &Self) -> bool {
        other.0.starts_with(&self.0)
    }
}

impl Version {
    /// An error in one line if no such kernel can run in a realm.
    pub fn check_realm(&self) -> Result<()> {
        let [major, minor] = FIRST_FOR_REALMS;
        ensure!(
            self.0[..] >= FIRST_FOR_REALMS[..],
            "Linux {self} has no code for realms, which came with {major}.{minor}: give --linux 6.18 or 7.2 (or the kernel by --kernel, to see how it ends)"
        );
        Ok(())
    }
}

impl FromStr for Version {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers: Result<Vec<u32>, _> = text.split('.').map(str::parse).collect();
        match numbers {
            Ok(numbers) if (2..=3).contains(&numbers.len()) => Ok(Self(numbers)),
            _ => bail!("a kernel version is written like 7.2 or 6.18.15"),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers: Vec<String> = self.0.iter().map(u32::to_string).collect();
        f.pad(&numbers.join("."))
    }
}

fn listed<'a>(versions: impl IntoIterator<Item = &'a Version>) -> String {
    let versions: Vec<String> = versions.into_iter().map(Version::to_string).collect();
    if versions.is_empty() { "none".to_owned() } else { versions.join(", ") }
}

/// The kernel build of a distribution. The order is that of preference.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Flavour {
    Cloud,
    Plain,
}

impl Flavour {
    fn suffix(self) -> &'static str {
        match self {
            Self::Cloud => "-cloud-arm64",
            Self::Plain => "-arm64",
        }
    }

    /// Splits `VERSION-FLAVOUR`.
    fn split(text: &str) -> Option<(&str, Self)> {
        [Self::Cloud, Self::Plain]
            .into_iter()
            .find_map(|flavour| Some((text.strip_suffix(flavour.suffix())?, flavour)))
    }
}

/// How the packages that hold kernel images may be called, the preferred one last: from 6.19 on `linux-image` is empty beside it.
const IMAGES: [&str; 2] = ["linux-image-", "linux-binary-"];
/// The same of the packages that hold their modules.
const MODULE_PACKAGES: [&str; 2] = ["linux-image-", "linux-modules-"];

/// A kernel package. The order is that of preference: flavour, version, then which of the possible names it has.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Package {
    flavour: Flavour,
    version: Version,
    preferred: bool,
    name: String,
}

impl Package {
    fn parse(name: &str, [other, preferred]: [&str; 2]) -> Option<Self> {
        let (preferred, rest) = match name.strip_prefix(preferred) {
            Some(rest) => (true, rest),
            None => (false, name.strip_prefix(other)?),
        };
        let (release, flavour) = Flavour::split(rest)?;
        let (version, suffix) = release.split_once('+').unwrap_or((release, ""));
        if suffix.contains('-') {
            return None;
        }
        Some(Self { flavour, version: version.parse().ok()?, preferred, name: name.to_owned() })
    }

    /// The kernel package to take among `names` for `request`.
    fn choose<'a>(names: impl IntoIterator<Item = &'a str>, request: &Version) -> Option<Self> {
        let packages = names.into_iter().filter_map(|name| Self::parse(name, IMAGES));
        packages.filter(|package| request.includes(&package.version)).max()
    }

    /// The package among `names` with the modules of `kernel`.
    fn of_modules<'a>(names: impl IntoIterator<Item = &'a str>, kernel: &Kernel) -> Option<Self> {
        let packages = names.into_iter().filter_map(|name| Self::parse(name, MODULE_PACKAGES));
        packages
            .filter(|package| (package.flavour, &package.version) == (kernel.flavour, &kernel.version))
            .max()
    }
}

/// A kernel that is ready to boot.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Kernel {
    /// The plain `Image` file.
    pub path: PathBuf,
    /// Its version.
    pub version: Version,
    flavour: Flavour,
}

/// The cache of fetched files, and the package tool once it is needed.
pub struct Store {
    dir: PathBuf,
    apt: Option<Apt>,
}

impl Store {
    /// The user's cache: `$XDG_CACHE_HOME/cloven` or `~/.cache/cloven`.
    pub fn open() -> Result<Self> {
        let cache =
            env::var_os("XDG_CACHE_HOME").filter(|dir| Path::new(dir).is_absolute()).map(PathBuf::from);
        let cache = cache.or_else(|| Some(env::home_dir()?.join(".cache")));
        let dir =
            cache.context("there is no home directory for the cache: set XDG_CACHE_HOME")?.join("cloven");
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        Ok(Self { dir, apt: None })
    }

    /// The newest kernel that satisfies `request`: from the cache if one does, else fetched.
    pub fn kernel(&mut self, request: &Version) -> Result<Kernel> {
        let cached = self.cached()?;
        if let Some(kernel) = cached.iter().rfind(|kernel| request.includes(&kernel.version)) {
            return Ok(kernel.clone());
        }
        self.fetch_kernel(request).with_context(|| {
            let cached = listed(cached.iter().map(|kernel| &kernel.version));
            format!("no Linux {request} (cached: {cached}; --kernel PATH takes one of your own)")
        })
    }

    /// The cached kernels, the preferred ones last.
    fn cached(&self) -> Result<Vec<Kernel>> {
        let mut kernels = Vec::new();
        for entry in fs::read_dir(&self.dir).with_context(|| format!("cannot read {}", self.dir.display()))? {
            let path = entry?.path();
            let name =
                path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("linux-"));
            let Some((version, flavour)) = name.and_then(Flavour::split) else { continue };
            let Ok(version) = version.parse() else { continue };
            kernels.push(Kernel { path, version, flavour });
        }
        kernels.sort_by_key(|kernel| (kernel.flavour, kernel.version.clone()));
        Ok(kernels)
    }

    fn fetch_kernel(&mut self, request: &Version) -> Result<Kernel> {
        let progress = Progress::start(&format!("Linux {request}"));
        let names = self.apt()?.names("^linux-(image|binary)-[0-9]")?;
        let package = Package::choose(names.iter().map(String::as_str), request);
        let package = package.with_context(|| {
            let mut there: Vec<Version> = names
                .iter()
                .filter_map(|name| Package::parse(name, IMAGES))
                .map(|Package { version: Version(numbers), .. }| Version(numbers[..2].to_vec()))
                .collect();
            there.sort();
            there.dedup();
            format!("the archive has {}", listed(&there))
        })?;
        progress.show(&package.name);
        let file = self.apt()?.download(&package.name, |percent| progress.percent(percent))?;
        progress.show("unpacking");
        let image = plain_image(apt::unpack(&file, "*/vmlinuz*")?)?;
        let path = self.keep(&format!("linux-{}{}", package.version, package.flavour.suffix()), &image)?;
        Ok(Kernel { path, version: package.version, flavour: package.flavour })
    }

    /// A static busybox for the initramfs.
    fn busybox(&mut self) -> Result<PathBuf> {
        let fetched = self.file("busybox-arm64", "busybox-static", "*/bin/busybox");
        fetched.context("there is no busybox for the initramfs; --initrd PATH takes an initramfs of your own")
    }

    /// A U-Boot for QEMU's `virt` machine.
    pub fn u_boot(&mut self) -> Result<PathBuf> {
        self.file("u-boot-qemu-arm64.bin", "u-boot-qemu", "*/qemu_arm64/u-boot.bin")
            .context("there is no U-Boot")
    }

    /// The cached file `name`: what matches `pattern` in `package`.
    fn file(&mut self, name: &str, package: &str, pattern: &str) -> Result<PathBuf> {
        let path = self.dir.join(name);
        if path.is_file() {
            return Ok(path);
        }
        let progress = Progress::start(package);
        let file = self.apt()?.download(package, |percent| progress.percent(percent))?;
        self.keep(name, &apt::unpack(&file, pattern)?)
    }

    /// Modules of `kernel`, as an archive to be put behind an initramfs.
    fn modules(&mut self, kernel: &Kernel, modules: Modules) -> Result<PathBuf> {
        let path = self.dir.join(modules.cached(kernel));
        if path.is_file() {
            return Ok(path);
        }
        let version = &kernel.version;
        let progress = Progress::start(&format!("the modules of Linux {version}"));
        let names = self.apt()?.names("^linux-(image|modules)-[0-9]")?;
        let package = Package::of_modules(names.iter().map(String::as_str), kernel).with_context(|| {
            let path = kernel.path.display();
            format!(
                "the archive has no modules of Linux {version} any more: remove {path} to have a newer one"
            )
        })?;
        progress.show(&package.name);
        let file = self.apt()?.download(&package.name, |percent| progress.percent(percent))?;
        progress.show("unpacking");
        let unpacked = tempfile::tempdir().context("cannot make a directory for modules")?;
        apt::unpack_all(&file, "*.ko*", unpacked.path())?;
        let mut files = BTreeMap::new();
        list_modules(unpacked.path(), &mut files)?;
        // The package is large: whoever comes later needs nothing of it again.
        for modules in Modules::ALL {
            let loaded = with_needed(modules.names(), |name| {
                let file = files.get(name).with_context(|| format!("there is no module {name}"))?;
                let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
                plain_module(bytes)
            })?;
            self.keep(&modules.cached(kernel), &module_archive(&loaded)?)?;
        }
        Ok(path)
    }

    /// The initramfs with the checks, packed anew.
    pub fn initramfs(&mut self) -> Result<PathBuf> {
        let busybox = fs::read(self.busybox()?).context("cannot read the cached busybox")?;
        written("initramfs.cpio", &pack(&busybox, INIT)?)
    }

    /// The initramfs with the checks and what a host with `kernel` needs for its work, packed anew: archives behind each other, which
    /// Linux unpacks in turn (its `buffer-format.rst`).
    pub fn work_initramfs(&mut self, kernel: &Kernel) -> Result<PathBuf> {
        let modules = self.known_modules(kernel, Modules::Work)?;
        let program = fs::read(images::guest_program(images::HOST_WORK)?)
            .context("cannot read the program of the work")?;
        let mut all = fs::read(self.initramfs()?).context("cannot read the initramfs")?;
        all.extend(archive(&[("bin/host-work", PROGRAM, &program)])?);
        all.extend(modules);
        written("initramfs-work.cpio", &all)
    }

    /// The initramfs with the checks of a realm, packed anew, with the modules of `kernel` if it is one of the distribution's.
    pub fn realm_initramfs(&mut self, kernel: Option<&Kernel>) -> Result<PathBuf> {
        let mut all = fs::read(self.initramfs()?).context("cannot read the initramfs")?;
        let program = images::guest_program(images::SHARE_MEMORY)?;
        let program = fs::read(program).context("cannot read the program that shares memory")?;
        all.extend(archive(&[("realm.sh", FILE, REALM), ("bin/share-memory", PROGRAM, &program)])?);
        if let Some(kernel) = kernel {
            all.extend(self.known_modules(kernel, Modules::Realm)?);
        }
        let version = kernel.map_or_else(String::new, |kernel| format!("-{}", kernel.version));
        written(&format!("initramfs-realm{version}.cpio"), &all)
    }

    fn known_modules(&mut self, kernel: &Kernel, modules: Modules) -> Result<Vec<u8>> {
        let path = self
            .modules(kernel, modules)
            .with_context(|| format!("there are no modules of Linux {}", kernel.version))?;
        fs::read(path).context("cannot read the cached modules")
    }

    fn apt(&mut self) -> Result<&Apt> {
        if self.apt.is_none() {
            self.apt = Some(Apt::foreign(ARCHITECTURE, &SUITES)?);
        }
        Ok(self.apt.as_ref().expect("it was just set"))
    }

    /// Puts a finished file into the cache.
    fn keep(&self, name: &str, bytes: &[u8]) -> Result<PathBuf> {
        let mut file = NamedTempFile::new_in(&self.dir).context("cannot write to the cache")?;
        file.write_all(bytes).context("cannot write to the cache")?;
        let path = self.dir.join(name);
        file.persist(&path).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }
}

/// A user's own kernel as a plain `Image`: the file itself, or an unpacked copy beside the images.
pub fn own_kernel(path: &Path) -> Result<PathBuf> {
    let bytes = fs::read(path).with_context(|| format!("cannot read the kernel {}", path.display()))?;
    if is_image(&bytes) {
        return Ok(path.to_owned());
    }
    let image = plain_image(bytes).with_context(|| format!("{} cannot be booted", path.display()))?;
    let unpacked = workspace::images_dir()?.join("kernel.Image");
    fs::write(&unpacked, image).with_context(|| format!("cannot write {}", unpacked.display()))?;
    Ok(unpacked)
}

/// Whether these bytes begin with the header of an arm64 `Image` (Linux, booting.rst).
fn is_image(bytes: &[u8]) -> bool {
    bytes.get(56..60) == Some(b"ARM\x64")
}

/// An arm64 `Image`, unpacked if it came as gzip or as an EFI zboot image with gzip inside.
fn plain_image(bytes: Vec<u8>) -> Result<Vec<u8>> {
    if is_image(&bytes) {
        return Ok(bytes);
    }
    let packed = if bytes.starts_with(&[0x1f, 0x8b]) {
        &bytes[..]
    } else if bytes.get(4..8) == Some(b"zimg") {
        let word = |at: usize| Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?) as usize);
        ensure!(
            bytes.get(24..28) == Some(b"gzip"),
            "this EFI zboot kernel is not packed with gzip: unpack it first"
        );
        let payload =
            word(8).zip(word(12)).and_then(|(offset, size)| bytes.get(offset..offset.checked_add(size)?));
        payload.context("the header of this EFI zboot kernel is broken")?
    } else {
        bail!("this is no arm64 kernel image");
    };
    let mut image = Vec::new();
    flate2::read::GzDecoder::new(packed).read_to_end(&mut image).context("the packed kernel is broken")?;
    ensure!(is_image(&image), "there is no arm64 kernel image in this gzip file");
    Ok(image)
}

/// A module, unpacked if it came as xz.
fn plain_module(bytes: Vec<u8>) -> Result<Vec<u8>> {
    if !bytes.starts_with(b"\xfd7zXZ\0") {
        return Ok(bytes);
    }
    let mut module = Vec::new();
    XzReader::new(&bytes[..], true).read_to_end(&mut module).context("a packed module is broken")?;
    Ok(module)
}

/// A module's name, whether its file's or that by which another one names it.
fn module_name(text: &str) -> String {
    text.replace('-', "_")
}

/// The modules below `dir`, by name.
fn list_modules(dir: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            list_modules(&path, files)?;
        } else if let Some(name) = path.file_name().and_then(|name| name.to_str())
            && let Some((name, _)) = name.split_once(".ko")
        {
            files.insert(module_name(name), path);
        }
    }
    Ok(())
}

/// The modules that a module says it needs (`depends=` in its section .modinfo).
fn needed(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = &module[at + KEY.len()..];
    let value = &value[..value.iter().position(|byte| *byte == 0).unwrap_or(value.len())];
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|name| !name.is_empty()).map(module_name).collect()
}

/// The modules of these names, each behind those that it needs. `read` reads one.
fn with_needed(
    names: &[&str],
    mut read: impl FnMut(&str) -> Result<Vec<u8>>,
) -> Result<Vec<(String, Vec<u8>)>> {
    fn add(
        name: &str,
        all: &mut Vec<(String, Vec<u8>)>,
        begun: &mut Vec<String>,
        read: &mut dyn FnMut(&str) -> Result<Vec<u8>>,
    ) -> Result<()> {
        if begun.iter().any(|it| it == name) {
            return Ok(());
        }
        begun.push(name.to_owned());
        let module = read(name)?;
        for needed in needed(&module) {
            add(&needed, all, begun, read)?;
        }
        all.push((name.to_owned(), module));
        Ok(())
    }
    let (mut all, mut begun) = (Vec::new(), Vec::new());
    for name in names {
        add(&module_name(name), &mut all, &mut begun, &mut read)?;
    }
    Ok(all)
}

/// An archive of modules. They are loaded in the order of their names.
fn module_archive(modules: &[(String, Vec<u8>)]) -> Result<Vec<u8>> {
    let named: Vec<_> = (0..)
        .zip(modules)
        .map(|(number, (name, module))| (format!("modules/{number:02}-{name}.ko"), module))
        .collect();
    let mut entries = vec![("modules", DIRECTORY, &b""[..])];
    entries.extend(named.iter().map(|(name, module)| (name.as_str(), FILE, &module[..])));
    archive(&entries)
}

/// Writes a file beside the images, unless it is there: another run may have it in use.
fn written(name: &str, bytes: &[u8]) -> Result<PathBuf> {
    let path = workspace::images_dir()?.join(name);
    if fs::read(&path).is_ok_and(|old| old == bytes) {
        return Ok(path);
    }
    fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

const DIRECTORY: u32 = 0o040755;
const PROGRAM: u32 = 0o100755;
const FILE: u32 = 0o100644;
const LINK: u32 = 0o120777;
const CHARACTER_DEVICE: u32 = 0o020600;

/// An initramfs with busybox and `init` as the first process.
fn pack(busybox: &[u8], init: &[u8]) -> Result<Vec<u8>> {
    archive(&[
        ("bin", DIRECTORY, b""),
        ("dev", DIRECTORY, b""),
        ("dev/console", CHARACTER_DEVICE, b""),
        ("bin/busybox", PROGRAM, busybox),
        ("bin/sh", LINK, b"busybox"),
        ("init", PROGRAM, init),
    ])
}

/// An archive (cpio, newc) of files: name, mode, content.
fn archive(entries: &[(&str, u32, &[u8])]) -> Result<Vec<u8>> {
    let mut archive = Vec::new();
    for (number, &(name, mode, data)) in (1..).zip(entries) {
        let mut entry = cpio::newc::Builder::new(name).ino(number).mode(mode).nlink(1);
        if mode == CHARACTER_DEVICE {
            entry = entry.rdev_major(5).rdev_minor(1);
        }
        let mut writer = entry.write(&mut archive, u32::try_from(data.len()).context("a file is too large")?);
        writer.write_all(data)?;
        writer.finish()?;
    }
    cpio::newc::trailer(&mut archive)?;
    Ok(archive)
}

/// Tells that something is fetched: a bar on a terminal, one line elsewhere.
struct Progress(ProgressBar);

impl Progress {
    fn start(what: &str) -> Self {
        if !std::io::stderr().is_terminal() {
            eprintln!("fetching {what}");
            return Self(ProgressBar::hidden());
        }
        let style = ProgressStyle::with_template("{spinner} fetching {prefix} [{bar:30}] {msg}");
        let bar = ProgressBar::new(100).with_prefix(what.to_owned()).with_message("package lists");
        bar.set_style(style.expect("the template is well formed"));
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    fn show(&self, message: &str) {
        self.0.set_message(message.to_owned());
    }

    fn percent(&self, percent: f64) {
        self.0.set_position(percent as u64);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 16] = [
        "linux-image-6.12.107+deb13-arm64",
        "linux-image-6.12.94+deb13-arm64",
        "linux-image-6.18.9+deb13-arm64",
        "linux-image-6.18.15+deb13-arm64",
        "linux-image-6.18.15+deb13-rt-arm64",
        "linux-image-6.18.20+deb13-arm64-16k",
        "linux-image-6.18.20+deb13-arm64-dbg",
        "linux-image-6.18.20+deb13-arm64-unsigned",
        "linux-image-6.18.20+deb13-cloud-arm64",
        "linux-image-7.2.12+deb13-arm64",
        "linux-binary-7.2.12+deb13-arm64",
        "linux-binary-7.2.9+deb13-arm64",
        "linux-binary-unsigned-7.3.4+deb13-arm64",
        "linux-image-7.4.1+deb13-cloud-arm64",
        "linux-image-arm64",
        "linux-image-rt-arm64",
    ];

    fn chosen(request: &str) -> Option<String> {
        Package::choose(NAMES, &request.parse().unwrap()).map(|package| package.name)
    }

    #[test]
    fn the_newest_plain_kernel_is_chosen() {
        assert_eq!(chosen("6.12").unwrap(), "linux-image-6.12.107+deb13-arm64");
        assert_eq!(chosen("6.18").unwrap(), "linux-image-6.18.15+deb13-arm64");
        assert_eq!(chosen("6.18.9").unwrap(), "linux-image-6.18.9+deb13-arm64");
    }

    #[test]
    fn the_package_that_holds_the_image_is_chosen() {
        assert_eq!(chosen("7.2").unwrap(), "linux-binary-7.2.12+deb13-arm64");
    }

    #[test]
    fn the_cloud_flavour_stands_in_where_there_is_no_plain_one() {
        assert_eq!(chosen("7.4").unwrap(), "linux-image-7.4.1+deb13-cloud-arm64");
    }

    #[test]
    fn other_flavours_and_unsigned_kernels_are_not_chosen() {
        assert_eq!(chosen("7.3"), None);
        assert_eq!(chosen("6.1"), None);
        assert_eq!(chosen("6.18.2"), None);
    }

    #[test]
    fn the_modules_are_those_of_the_kernel() {
        let names = [
            "linux-image-7.2.12+deb13-arm64",
            "linux-modules-7.2.12+deb13-arm64",
            "linux-modules-7.2.12+deb13-cloud-arm64",
            "linux-modules-7.2.13+deb13-arm64",
            "linux-image-6.18.15+deb13-arm64",
        ];
        let chosen = |version: &str| {
            let kernel =
                Kernel { path: "".into(), version: version.parse().unwrap(), flavour: Flavour::Plain };
            Package::of_modules(names, &kernel).map(|package| package.name)
        };
        assert_eq!(chosen("7.2.12").unwrap(), "linux-modules-7.2.12+deb13-arm64");
        assert_eq!(chosen("6.18.15").unwrap(), "linux-image-6.18.15+deb13-arm64");
        assert_eq!(chosen("7.2"), None);
    }

    #[test]
    fn a_kernel_that_knows_nothing_of_realms_is_refused_in_one_line() {
        let refusal =
            |text: &str| text.parse::<Version>().unwrap().check_realm().err().map(|e| e.to_string());
        for version in ["6.13", "6.18.15", "7.0", "7.2"] {
            assert_eq!(refusal(version), None);
        }
        for version in ["6.12", "6.12.107", "5.19"] {
            let text = refusal(version).unwrap();
            assert!(
                text.starts_with(&format!("Linux {version} has no code for realms")) && !text.contains('\n')
            );
        }
    }

    /// What stands of a module's needs in it.
    fn module(needs: &str) -> Vec<u8> {
        format!("\x7fELF…\0alias=x\0depends={needs}\0vermagic=1\0").into_bytes()
    }

    #[test]
    fn modules_come_behind_those_that_they_need() {
        let read = |name: &str| {
            Ok(module(match name {
                "arm_cca_guest" => "tsm-report",
                "tsm_report" => "configfs",
                "vivid" => "cec,configfs",
                // Nobody's but to be tried.
                "loop_a" => "loop_b",
                "loop_b" => "loop_a",
                "configfs" | "cec" => "",
                _ => bail!("there is no module {name}"),
            }))
        };
        let names = |roots: &[&str]| {
            let all = with_needed(roots, read)?;
            Ok::<_, Error>(all.into_iter().map(|(name, _)| name).collect::<Vec<_>>().join(" "))
        };
        assert_eq!(
            names(&["arm-cca-guest", "vivid"]).unwrap(),
            "configfs tsm_report arm_cca_guest cec vivid"
        );
        assert_eq!(names(&["loop_a"]).unwrap(), "loop_b loop_a");
        assert!(names(&["vivid", "other"]).is_err());
        assert!(needed(b"no module").is_empty() && needed(b"\0depends=").is_empty());
    }

    #[test]
    fn the_cache_keeps_sets_of_modules_apart() {
        let kernel = Kernel { path: "".into(), version: "7.2.12".parse().unwrap(), flavour: Flavour::Plain };
        let [work, realm] = Modules::ALL.map(|modules| modules.cached(&kernel));
        assert_ne!(work, realm);
        for name in [work, realm] {
            // That was the name when there was one set.
            assert!(name.starts_with("modules-7.2.12-arm64-") && name != "modules-7.2.12-arm64.cpio");
        }
    }

    #[test]
    fn a_version_has_two_or_three_numbers() {
        for wrong in ["", "7", "7.", "7.x", "v7.2", "7.2.12.1", "7.2-rc1"] {
            assert!(wrong.parse::<Version>().is_err(), "{wrong}");
        }
        assert_eq!("6.18.15".parse::<Version>().unwrap().to_string(), "6.18.15");
    }

    #[test]
    fn a_cached_kernel_needs_no_package_tool() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "linux-7.2.9-arm64",
            "linux-7.2.12-arm64",
            "linux-7.2.13-cloud-arm64",
            "linux-6.18.15-arm64",
            "notes",
        ] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let mut store = Store { dir: dir.path().to_owned(), apt: None };
        let kernel = store.kernel(&"7.2".parse().unwrap()).unwrap();
        assert_eq!(kernel.path, dir.path().join("linux-7.2.12-arm64"));
        assert!(store.kernel(&"6.18".parse().unwrap()).is_ok());
        assert!(store.apt.is_none());
    }

    fn image() -> Vec<u8> {
        let mut image = vec![0; 64];
        image[56..60].copy_from_slice(b"ARM\x64");
        image
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_kernel_is_unpacked_to_a_plain_image() {
        assert_eq!(plain_image(image()).unwrap(), image());
        assert_eq!(plain_image(gzip(&image())).unwrap(), image());
        let packed = gzip(&image());
        let mut zboot = b"MZ\0\0zimg".to_vec();
        zboot.extend(28u32.to_le_bytes());
        zboot.extend((packed.len() as u32).to_le_bytes());
        zboot.extend([0; 8]);
        zboot.extend(b"gzip");
        zboot.extend(&packed);
        assert_eq!(plain_image(zboot.clone()).unwrap(), image());
        zboot[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(plain_image(zboot).is_err());
    }

    #[test]
    fn a_module_is_unpacked_if_it_came_as_xz() {
        // Of `xz --check=crc32`.
        let packed = [
            0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x00, 0x21, 0x01,
            0x16, 0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0x01, 0x00, 0x05, 0x6d, 0x6f, 0x64, 0x75, 0x6c,
            0x65, 0x00, 0x00, 0x00, 0x28, 0x26, 0x24, 0x0c, 0x00, 0x01, 0x1a, 0x06, 0xc5, 0xea, 0xc8, 0x79,
            0x90, 0x42, 0x99, 0x0d, 0x01, 0x00, 0x00, 0x00, 0x00, 0x01, 0x59, 0x5a,
        ];
        assert_eq!(plain_module(packed.to_vec()).unwrap(), b"module");
        assert!(plain_module(packed[..40].to_vec()).is_err());
        assert_eq!(plain_module(b"\x7fELF".to_vec()).unwrap(), b"\x7fELF");
    }

    #[test]
    fn what_is_no_arm64_kernel_is_refused() {
        assert!(plain_image(b"\x7fELF".to_vec()).is_err());
        assert!(plain_image(gzip(b"no kernel")).is_err());
        assert!(plain_image(vec![0x1f, 0x8b, 0]).is_err());
    }

    #[test]
    fn the_initramfs_holds_busybox_a_console_and_init() {
        let archive = pack(b"busybox!", b"#!/bin/sh\n").unwrap();
        let mut rest = &archive[..];
        let mut seen = Vec::new();
        loop {
            let mut reader = cpio::newc::Reader::new(rest).unwrap();
            let entry = reader.entry().clone();
            if entry.is_trailer() {
                break;
            }
            let mut data = Vec::new();
            reader.read_to_end(&mut data).unwrap();
            let device = (entry.rdev_major(), entry.rdev_minor());
            seen.push((entry.name().to_owned(), entry.mode(), device, data));
            rest = reader.finish().unwrap();
        }
        assert_eq!(seen.len(), 6);
        assert!(seen.contains(&("dev/console".into(), 0o020600, (5, 1), vec![])));
        assert!(seen.contains(&("bin/sh".into(), 0o120777, (0, 0), b"busybox".to_vec())));
        assert!(seen.contains(&("bin/busybox".into(), 0o100755, (0, 0), b"busybox!".to_vec())));
        assert!(seen.contains(&("init".into(), 0o100755, (0, 0), b"#!/bin/sh\n".to_vec())));
        assert_eq!(archive.len() % 4, 0);
    }
}
