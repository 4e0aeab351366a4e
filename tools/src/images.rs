//! Builds the payload and the hypervisor, and turns their ELF files into flat images.
//!
//! Invariant: an image and the ELF beside it come from the same build, so an offset in the image is an address
//! in the ELF (the images are linked at 0). Each set of features has its own pair, because cargo overwrites its output.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use object::{
    Endianness,
    elf::{FileHeader64, PT_LOAD},
    read::elf::{FileHeader, ProgramHeader},
};

use crate::workspace::{self, LINUX_TARGET, TARGET};

/// The most that an image may take: a gap this large between two segments is a mistake in a linker script.
const MAX_IMAGE: u64 = 64 << 20;

/// A bootable image and the ELF file with its symbols.
#[derive(Clone, Debug)]
pub struct Image {
    /// The flat image.
    pub path: PathBuf,
    /// The ELF file it was made from.
    pub elf: PathBuf,
    /// Bytes of the flat image.
    pub size: u64,
    /// The image of the realm that the host payload in it makes, if it has that payload.
    pub realm: Option<PathBuf>,
}

/// The feature of a test build in which somebody stands in for the firmware. It embeds the hostile payload: nothing else has use for
/// it, and that one is at home nowhere else.
pub const STAND_IN: &str = "stand-in";

/// The feature of a build that prints its maps at some moments, if the command line says so; its payload does too.
pub const DUMP: &str = "dump";

/// The feature of a test build, with the trials, whose payload goes through the lifecycle of its CPUs.
pub const LIFECYCLE: &str = "lifecycle";

/// The payload that the host payload embeds.
const REALM: &str = "realm";

/// A payload that the hypervisor can embed.
#[derive(Clone, Copy, Debug)]
pub enum Payload {
    /// Checks what a host may do and what it must not.
    Host,
    /// Does at random what a host must not.
    Hostile,
    /// Changes its own map and EL2's while CPUs come.
    Lifecycle,
}

impl Payload {
    /// The one that goes with `features` of the hypervisor.
    fn of(features: &[String]) -> Self {
        let has = |name| features.iter().any(|feature| feature == name);
        if has(STAND_IN) {
            Self::Hostile
        } else if has(LIFECYCLE) {
            Self::Lifecycle
        } else {
            Self::Host
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Hostile => "hostile",
            Self::Lifecycle => "lifecycle",
        }
    }
}

/// Where the image of the realm lies, whether it was built or not.
pub fn realm_path() -> Result<PathBuf> {
    Ok(workspace::images_dir()?.join(REALM).with_extension("img"))
}

/// A build of the payloads that hands the realm on. It has the same environment for all of them, or each build would undo the one before.
fn build_payloads(realm: &Path) -> Command {
    let mut build = workspace::cargo();
    build.args(["build", "--quiet", "--release", "--target", TARGET, "-p", "guest-tests"]);
    build.env("CLOVEN_REALM_PAYLOAD", realm);
    build
}

/// Builds the realm that the host payload makes.
pub fn realm() -> Result<PathBuf> {
    workspace::ensure_target(TARGET)?;
    let path = realm_path()?;
    if !path.is_file() {
        fs::write(&path, []).with_context(|| format!("cannot write {}", path.display()))?;
    }
    // A tree without its source has a host that makes none.
    if workspace::root().join("guest-tests/src/realm/main.rs").is_file() {
        workspace::run(build_payloads(&path).args(["--bin", REALM]))?;
        convert(REALM, REALM)?;
    }
    Ok(path)
}

/// Builds a payload with those of `features`, the hypervisor's, that payloads have too.
pub fn payload(payload: Payload, features: &[String]) -> Result<Image> {
    let mut build = build_payloads(&realm()?);
    build.args(["--bin", payload.name()]);
    let mut name = payload.name().to_owned();
    if features.iter().any(|feature| feature == DUMP) {
        build.args(["--features", DUMP]);
        name += "+dump";
    }
    workspace::run(&mut build)?;
    convert(payload.name(), &name)
}

/// Builds the hypervisor for `platform` with `features`, the payload that goes with them inside.
pub fn hypervisor(platform: &str, features: &[String]) -> Result<Image> {
    // One set of them is one image, whoever names them in whatever order.
    let mut features = features.to_vec();
    features.sort_unstable();
    let kind = Payload::of(&features);
    let payload = payload(kind, &features)?;
    let mut build = workspace::cargo();
    build.args(["build", "--quiet", "--release", "--target", TARGET, "-p", platform]);
    build.env("CLOVEN_HOST_PAYLOAD", &payload.path);
    if !features.is_empty() {
        build.args(["--features", &features.join(",")]);
    }
    workspace::run(&mut build)?;
    let name =
        std::iter::once(platform).chain(features.iter().map(String::as_str)).collect::<Vec<_>>().join("+");
    let realm = matches!(kind, Payload::Host).then(realm_path).transpose()?;
    Ok(Image { realm, ..convert(platform, &name)? })
}

/// The program that a Linux host works with.
pub const HOST_WORK: &str = "host-work";
/// The program by which a Linux realm shares memory and takes it back.
pub const SHARE_MEMORY: &str = "share-memory";

/// Builds a program for a Linux guest.
pub fn guest_program(name: &str) -> Result<PathBuf> {
    workspace::ensure_target(LINUX_TARGET)?;
    let mut build = workspace::cargo();
    build.args(["build", "--quiet", "--release", "--target", LINUX_TARGET, "-p", HOST_WORK, "--bin", name]);
    workspace::run(&mut build)?;
    Ok(workspace::target_dir().join(LINUX_TARGET).join("release").join(name))
}

/// Copies cargo's ELF `binary` to `NAME.elf` in the images directory and makes `NAME.img` of it.
fn convert(binary: &str, name: &str) -> Result<Image> {
    let built = workspace::target_dir().join(TARGET).join("release").join(binary);
    let dir = workspace::images_dir()?;
    let (elf, path) = (dir.join(format!("{name}.elf")), dir.join(format!("{name}.img")));
    let bytes = fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    let flat = flatten(&bytes).with_context(|| format!("{} is no image", built.display()))?;
    write_if_changed(&elf, &bytes)?;
    write_if_changed(&path, &flat)?;
    Ok(Image { path, elf, size: flat.len() as u64, realm: None })
}

/// Writes a file only if that changes it, so that what depends on it by time is not built again.
fn write_if_changed(path: &Path, bytes: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// The memory that the `PT_LOAD` segments of an ELF file describe, by physical address from the lowest on, up to the
/// end of the last segment's file data.
pub fn flatten(elf: &[u8]) -> Result<Vec<u8>> {
    let header = FileHeader64::<Endianness>::parse(elf).context("this is not a 64-bit ELF file")?;
    let endian = header.endian().context("the ELF file has no known byte order")?;
    let segments = header.program_headers(endian, elf).context("the program headers are broken")?;
    let mut loads = Vec::new();
    for segment in segments.iter().filter(|s| s.p_type(endian) == PT_LOAD && s.p_filesz(endian) > 0) {
        let Ok(data) = segment.data(endian, elf) else { bail!("a segment lies outside the file") };
        loads.push((segment.p_paddr(endian), data));
    }
    let base = loads.iter().map(|(address, _)| *address).min().context("there is nothing to load")?;
    let mut image = Vec::new();
    for (address, data) in loads {
        let start = address - base;
        ensure!(start < MAX_IMAGE, "a segment lies {start:#x} bytes above the first one");
        let start = usize::try_from(start)?;
        let end = start + data.len();
        if image.len() < end {
            image.resize(end, 0);
        }
        image[start..end].copy_from_slice(data);
    }
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A minimal AArch64 ELF file with segments of (type, physical address, data, memory size).
    fn elf(segments: &[(u32, u64, &[u8], u64)]) -> Vec<u8> {
        let mut file = Vec::new();
        file.extend(b"\x7fELF\x02\x01\x01");
        file.resize(16, 0);
        file.extend(2u16.to_le_bytes());
        file.extend(183u16.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        file.extend(0u64.to_le_bytes());
        file.extend(64u64.to_le_bytes());
        file.extend(0u64.to_le_bytes());
        file.extend(0u32.to_le_bytes());
        for half in [64u16, 56, segments.len() as u16, 64, 0, 0] {
            file.extend(half.to_le_bytes());
        }
        let mut offset = 64 + 56 * segments.len() as u64;
        for (kind, address, data, memory) in segments {
            file.extend(kind.to_le_bytes());
            file.extend(7u32.to_le_bytes());
            for word in [offset, *address, *address, data.len() as u64, *memory, 8] {
                file.extend(word.to_le_bytes());
            }
            offset += data.len() as u64;
        }
        segments.iter().for_each(|(_, _, data, _)| file.extend(*data));
        file
    }

    #[test]
    fn each_payload_goes_with_a_feature_of_its_own() {
        let of = |features: &[&str]| {
            Payload::of(&features.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).name()
        };
        assert_eq!((of(&[]), of(&["trial"]), of(&["trial", STAND_IN])), ("host", "host", "hostile"));
        assert_eq!((of(&[LIFECYCLE]), of(&[DUMP, LIFECYCLE, "trial"])), ("lifecycle", "lifecycle"));
    }

    #[test]
    fn segments_stand_at_their_distance_from_the_lowest() {
        let file = elf(&[(1, 0x1008, b"data", 4), (1, 0x1000, b"text", 4)]);
        assert_eq!(flatten(&file).unwrap(), b"text\0\0\0\0data");
    }

    #[test]
    fn bss_is_left_out() {
        let file = elf(&[(1, 0, b"text", 4), (1, 4, b"data", 0x1000), (1, 0x2000, b"", 0x1000)]);
        assert_eq!(flatten(&file).unwrap(), b"textdata");
    }

    #[test]
    fn what_is_not_loaded_is_left_out() {
        let file = elf(&[(1, 0, b"text", 4), (4, 0x100, b"note", 4)]);
        assert_eq!(flatten(&file).unwrap(), b"text");
    }

    #[test]
    fn a_segment_far_away_is_refused() {
        let file = elf(&[(1, 0, b"text", 4), (1, 1 << 40, b"data", 4)]);
        assert!(flatten(&file).unwrap_err().to_string().contains("above the first one"));
    }

    #[test]
    fn a_cut_or_foreign_file_is_refused() {
        let file = elf(&[(1, 0, b"text", 4)]);
        assert!(flatten(&file[..file.len() - 1]).is_err());
        assert!(flatten(b"MZ").is_err());
        assert!(flatten(&elf(&[])).is_err());
    }
}
