//! The Realm Initial Measurement (RIM), computed from what the host payload says it has done.
//!
//! Invariant: written from the specification alone (DEN0137 A7.1, B4.3.1.4, B4.3.9.4, B4.3.12.4, B4.3.18.4, C1.11 to C1.13), with nothing of
//! what the RMM or the host payload are made of: so neither can hide a mistake of the other.

use std::{fs, path::Path};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256, Sha512};

/// Bytes of a granule, of a structure in one, and of a descriptor.
const GRANULE: usize = 4096;
const DESCRIPTOR: usize = 256;
/// Bytes of a measurement, whatever the hash.
const MEASUREMENT: usize = 64;

/// Which hash a realm is measured with (RmiHashAlgorithm).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    /// The hash, zero above.
    fn hash(self, bytes: &[u8]) -> [u8; MEASUREMENT] {
        let mut measurement = [0; MEASUREMENT];
        match self {
            Self::Sha256 => measurement[..32].copy_from_slice(&Sha256::digest(bytes)),
            Self::Sha512 => measurement.copy_from_slice(&Sha512::digest(bytes)),
        }
        measurement
    }
}

/// A structure that is hashed: zeroes, and values at offsets.
struct Bytes<const N: usize>([u8; N]);

impl<const N: usize> Bytes<N> {
    fn new() -> Self {
        Self([0; N])
    }

    fn word(mut self, at: usize, value: u64) -> Self {
        self.0[at..at + 8].copy_from_slice(&value.to_le_bytes());
        self
    }

    fn byte(mut self, at: usize, value: u8) -> Self {
        self.0[at] = value;
        self
    }

    fn measurement(mut self, at: usize, value: &[u8; MEASUREMENT]) -> Self {
        self.0[at..at + MEASUREMENT].copy_from_slice(value);
        self
    }
}

/// A realm that is being measured.
struct Rim {
    algorithm: Algorithm,
    rim: [u8; MEASUREMENT],
}

impl Rim {
    /// RMI_REALM_CREATE (B4.3.9.4): flags, s2sz, sve_vl, num_bps, num_wps, pmu_num_ctrs and hash_algo at their places in RmiRealmParams
    /// (B4.4.12).
    fn create(
        flags: u64,
        [s2sz, sve_vl, num_bps, num_wps, pmu_num_ctrs, hash_algo]: [u8; 6],
    ) -> Result<Self> {
        let algorithm = match hash_algo {
            0 => Algorithm::Sha256,
            1 => Algorithm::Sha512,
            other => bail!("there is no hash algorithm {other}"),
        };
        let params = Bytes::<GRANULE>::new().word(0, flags).byte(0x8, s2sz).byte(0x10, sve_vl);
        let params = params.byte(0x18, num_bps).byte(0x20, num_wps).byte(0x28, pmu_num_ctrs);
        let rim = algorithm.hash(&params.byte(0x30, hash_algo).0);
        Ok(Self { algorithm, rim })
    }

    /// Type, length and the RIM so far, at the beginning of each descriptor.
    fn descriptor(&self, kind: u8) -> Bytes<DESCRIPTOR> {
        Bytes::new().byte(0, kind).word(0x8, DESCRIPTOR as u64).measurement(0x10, &self.rim)
    }

    fn extend(&mut self, descriptor: &Bytes<DESCRIPTOR>) {
        self.rim = self.algorithm.hash(&descriptor.0);
    }

    /// RMI_DATA_CREATE (B4.3.1.4): contents of at most a granule, zeroes behind them.
    fn data(&mut self, ipa: u64, flags: u64, contents: &[u8]) {
        const MEASURE: u64 = 1;
        let mut granule = [0; GRANULE];
        granule[..contents.len()].copy_from_slice(contents);
        let content = if flags & MEASURE != 0 { self.algorithm.hash(&granule) } else { [0; MEASUREMENT] };
        let descriptor = self.descriptor(0).word(0x50, ipa).word(0x58, flags).measurement(0x60, &content);
        self.extend(&descriptor);
    }

    /// RMI_REC_CREATE (B4.3.12.4): only of a REC that may run. flags, pc and gprs at their places in RmiRecParams (B4.4.19).
    fn rec(&mut self, flags: u64, pc: u64, gprs: [u64; 8]) {
        let params = Bytes::<GRANULE>::new().word(0, flags).word(0x200, pc);
        let params =
            (0x300..).step_by(8).zip(gprs).fold(params, |params, (at, value)| params.word(at, value));
        let content = self.algorithm.hash(&params.0);
        let descriptor = self.descriptor(1).measurement(0x50, &content);
        self.extend(&descriptor);
    }

    /// RMI_RTT_INIT_RIPAS (B4.3.18.4): one step for each RTT entry from `base` to `top`, all of one level.
    fn ripas(&mut self, base: u64, top: u64, level: u32) -> Result<()> {
        ensure!(
            (1..=3).contains(&level) && base < top,
            "no entries of level {level} from {base:#x} to {top:#x}"
        );
        let size = 1u64 << (12 + 9 * (3 - level));
        let mut at = base;
        while at < top {
            let end = ((at & !(size - 1)) + size).min(top);
            let descriptor = self.descriptor(2).word(0x50, at).word(0x58, end);
            self.extend(&descriptor);
            at = end;
        }
        Ok(())
    }
}

/// A number, with 0x in hexadecimal digits.
fn number(word: Option<&str>) -> Result<u64> {
    let word = word.context("a number is missing")?;
    let parsed = match word.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => word.parse(),
    };
    parsed.with_context(|| format!("'{word}' is no number"))
}

fn digits(text: &str) -> Result<Vec<u8>> {
    ensure!(text.is_ascii() && text.len().is_multiple_of(2), "half a byte is missing");
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16);
    let bytes: Result<Vec<u8>, _> = (0..text.len()).step_by(2).map(byte).collect();
    bytes.context("these are no hexadecimal digits")
}

/// The files that a realm was made of.
#[derive(Clone, Copy, Debug)]
pub struct Files<'a> {
    /// Its kernel, or payload.
    pub image: &'a Path,
    /// Its initramfs, if it has one.
    pub initrd: Option<&'a Path>,
}

/// The RIM, in hexadecimal digits, of a realm that was made of `files` in these steps. Each step is what the host's payload, or the hypervisor
/// where that is the host, prints behind `@cloven measured `:
/// `realm FLAGS S2SZ SVE_VL NUM_BPS NUM_WPS PMU_NUM_CTRS HASH_ALGO`, `image IPA BYTES FLAGS`, `initrd IPA BYTES FLAGS`,
/// `data IPA FLAGS CONTENTS`, `ripas BASE TOP LEVEL`, `rec FLAGS PC X0 … X7`.
pub fn compute(steps: &[String], files: Files) -> Result<String> {
    let mut rim: Option<Rim> = None;
    for step in steps {
        take(&mut rim, step, files).with_context(|| format!("measured {step:.60}"))?;
    }
    Ok(rim.context("nothing was measured")?.rim.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn take(rim: &mut Option<Rim>, step: &str, files: Files) -> Result<()> {
    let mut words = step.split_ascii_whitespace();
    let kind = words.next();
    let mut next = || number(words.next());
    if kind == Some("realm") {
        let flags = next()?;
        let mut small = [0; 6];
        for value in &mut small {
            *value = u8::try_from(next()?)?;
        }
        *rim = Some(Rim::create(flags, small)?);
        return Ok(());
    }
    let rim = rim.as_mut().context("no realm was made before")?;
    match kind {
        Some(kind @ ("image" | "initrd")) => {
            let [ipa, size, flags] = [next()?, next()?, next()?];
            let file = if kind == "image" { Some(files.image) } else { files.initrd };
            let file = file.context("the realm was given no initramfs")?;
            let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
            ensure!(bytes.len() as u64 == size, "{} has {} bytes", file.display(), bytes.len());
            for (at, granule) in (ipa..).step_by(GRANULE).zip(bytes.chunks(GRANULE)) {
                rim.data(at, flags, granule);
            }
        }
        Some("data") => {
            let [ipa, flags] = [next()?, next()?];
            let contents = digits(words.next().unwrap_or_default())?;
            ensure!(contents.len() <= GRANULE, "{} bytes in a granule", contents.len());
            rim.data(ipa, flags, &contents);
        }
        Some("ripas") => {
            let [base, top, level] = [next()?, next()?, next()?];
            rim.ripas(base, top, u32::try_from(level)?)?;
        }
        Some("rec") => {
            let [flags, pc] = [next()?, next()?];
            let mut gprs = [0; 8];
            for value in &mut gprs {
                *value = next()?;
            }
            rim.rec(flags, pc, gprs);
        }
        _ => bail!("there is no such step"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    /// None of them.
    fn nothing() -> Files<'static> {
        Files { image: Path::new("/nonexistent"), initrd: None }
    }

    fn rim(lines: &[&str]) -> String {
        compute(&steps(lines), nothing()).unwrap()
    }

    const REALM: &str = "realm 0 40 0 5 3 0 0";

    // Each expected value was computed by Python's hashlib over bytes laid out by hand from the specification's tables.
    const STEPS: [&str; 4] = [
        "data 0x80000000 1 010203",
        "data 0x80001000 0 010203",
        "ripas 0x80002000 0x80004000 3",
        "rec 1 0x80000000 0x84000000 0 0 0 0 0 0 7",
    ];

    #[test]
    fn each_step_extends_the_rim_as_the_specification_says() {
        let expected = [
            "f33498f22eed8d51fb28b95769b27275a8c69a469e26b0050f1e809c4e0146b4",
            "c89de56c23307ae5c7988e096527ef4ab5c6e3e399f74ea2475b18dbd790a36e",
            "8e9a0bea889c32341db6f1b6f94d72bbeb681b9dbe97e3d0ab7c79cfb898e86b",
            "bc7cc7e82775b1ff8aceeec6d91d2065cadc56fa664a726d3ea8b339cf37af28",
            "44d06228c5f7491b411c346832c077bbcc6e2d93c4b6c6d75c9245939f3c46be",
        ];
        for (count, expected) in expected.iter().enumerate() {
            let lines = [&[REALM] as &[&str], &STEPS[..count]].concat();
            assert_eq!(rim(&lines), format!("{expected:0<128}"), "{count} steps");
        }
    }

    #[test]
    fn a_realm_may_be_measured_with_sha_512() {
        let lines = [&["realm 0 40 0 5 3 0 1"] as &[&str], &STEPS].concat();
        let expected = concat!(
            "e6e8d3a8d6872eef877dcedd9b406f381a35883fc82082e17a33e3d9471b0bfc",
            "ddf079dc8cb469f9e2140c64958b6b0072ff20056af99de56b798b5c3a70e601"
        );
        assert_eq!(rim(&lines), expected);
    }

    #[test]
    fn an_image_is_measured_granule_by_granule() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("image");
        let bytes: Vec<u8> = (0..GRANULE + 3).map(|at| at as u8).collect();
        fs::write(&file, &bytes).unwrap();
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let files = Files { image: &file, ..nothing() };
        let whole = compute(&steps(&[REALM, "image 0x80000000 4099 1"]), files).unwrap();
        let (first, second) = bytes.split_at(GRANULE);
        let parts = [
            REALM,
            &format!("data 0x80000000 1 {}", hex(first)),
            &format!("data 0x80001000 1 {}", hex(second)),
        ];
        assert_eq!(whole, rim(&parts));
        assert!(compute(&steps(&[REALM, "image 0x80000000 4098 1"]), files).is_err());
    }

    #[test]
    fn a_kernel_and_an_initramfs_are_measured_from_their_own_files_and_a_changed_byte_changes_the_rim() {
        let dir = tempfile::tempdir().unwrap();
        let [image, initrd] = ["image", "initrd"].map(|name| dir.path().join(name));
        let files = Files { image: &image, initrd: Some(&initrd) };
        let lines = steps(&[REALM, "image 0x80000000 5000 1", "initrd 0x88000000 3 1"]);
        let write = |kernel: u8, root: u8| {
            let mut bytes = [7; 5000];
            bytes[4500] = kernel;
            fs::write(&image, bytes).unwrap();
            fs::write(&initrd, [root; 3]).unwrap();
            compute(&lines, files).unwrap()
        };
        let before = write(1, 1);
        let pages = ["07".repeat(GRANULE), "07".repeat(5000 - GRANULE)];
        let mut second = pages[1].clone();
        second.replace_range(2 * (4500 - GRANULE)..2 * (4500 - GRANULE) + 2, "01");
        let parts = [
            REALM,
            &format!("data 0x80000000 1 {}", pages[0]),
            &format!("data 0x80001000 1 {second}"),
            "data 0x88000000 1 010101",
        ];
        assert_eq!(before, rim(&parts));
        assert_ne!(before, write(2, 1));
        assert_ne!(before, write(1, 2));
        assert_eq!(before, write(1, 1));
        assert!(compute(&lines, Files { initrd: None, ..files }).is_err());
    }

    #[test]
    fn a_changed_byte_of_the_image_is_another_rim() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("image");
        let mut bytes = vec![0x5a; 3 * GRANULE + 100];
        let rim_of = |bytes: &[u8]| {
            fs::write(&file, bytes).unwrap();
            compute(&steps(&[REALM, "image 0x80000000 12388 1"]), Files { image: &file, ..nothing() })
                .unwrap()
        };
        let before = rim_of(&bytes);
        for at in [0, 1, GRANULE - 1, GRANULE, 2 * GRANULE + 17, 3 * GRANULE, 3 * GRANULE + 99] {
            bytes[at] ^= 1;
            assert_ne!(rim_of(&bytes), before, "byte {at}");
            bytes[at] ^= 1;
        }
        assert_eq!(rim_of(&bytes), before);
    }

    #[test]
    fn entries_are_measured_one_by_one() {
        let both = rim(&[REALM, "ripas 0x80200000 0x80600000 2"]);
        let each = rim(&[REALM, "ripas 0x80200000 0x80400000 2", "ripas 0x80400000 0x80600000 2"]);
        assert_eq!(both, each);
        assert_ne!(both, rim(&[REALM, "ripas 0x80200000 0x80600000 1"]));
    }

    #[test]
    fn steps_that_are_none_are_refused() {
        for lines in [
            &["data 0 0 00"] as &[&str],
            &["realm 0 40 0 5 3 0 2"],
            &["realm 0 40 0 5 3 0"],
            &[REALM, "data 0x1000 0 0"],
            &[REALM, "data 0x1000 0 zz"],
            &[REALM, "ripas 0 0 3"],
            &[REALM, "ripas 0 0x1000 4"],
            &[REALM, "rec 1 0 0"],
            &[REALM, "other"],
            &[],
        ] {
            assert!(compute(&steps(lines), nothing()).is_err(), "{lines:?}");
        }
    }
}
