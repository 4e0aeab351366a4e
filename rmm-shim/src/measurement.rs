//! Measurements: the hash functions that a realm can be measured with, and how its initial measurement (RIM) comes about (A7.1).
//!
//! Invariant: a hash shorter than a measurement is followed by zeroes. All that is measured is whole blocks of SHA-256.

use hyp::mapping::GRANULE;
use rmm_abi::v1_0::rmi::{RmiDataFlags, RmiHashAlgorithm, RmiRealmParams, RmiRecParams};
use rmm_abi::v1_0::{
    Measurement, RmmMeasurementDescriptorData, RmmMeasurementDescriptorRec, RmmMeasurementDescriptorRipas,
};
use sha2::{Digest, Sha512};
use zerocopy::IntoBytes;

use crate::monitor::Locked;
use crate::realm::Realm;
use crate::world::World;

/// Bytes of a block of SHA-256.
const BLOCK: usize = 64;
/// The state before the first block (FIPS 180-4, 5.3.3).
const SHA_256: [u32; 8] =
    [0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19];

/// What works blocks into a state of SHA-256 ([`World::sha256`]).
type Compress<'a> = &'a dyn Fn(&mut [u32; 8], &[[u8; BLOCK]]);

/// The hash of `parts`, one behind the other: whole blocks of SHA-256.
fn hash_by(compress: Compress<'_>, algorithm: RmiHashAlgorithm, parts: &[&[u8]]) -> Measurement {
    let mut measurement = [0; size_of::<Measurement>()];
    match algorithm {
        RmiHashAlgorithm::Sha256 => {
            let mut state = SHA_256;
            let mut length = 0;
            for part in parts {
                let (blocks, rest) = part.as_chunks::<BLOCK>();
                debug_assert!(rest.is_empty());
                compress(&mut state, blocks);
                length += blocks.len() * BLOCK;
            }
            // FIPS 180-4, 5.1.1.
            let mut last = [0; BLOCK];
            last[0] = 0x80;
            last[BLOCK - 8..].copy_from_slice(&(8 * length as u64).to_be_bytes());
            compress(&mut state, &[last]);
            for (to, word) in measurement.chunks_exact_mut(4).zip(state) {
                to.copy_from_slice(&word.to_be_bytes());
            }
        }
        RmiHashAlgorithm::Sha512 => {
            let mut digest = Sha512::new();
            parts.iter().for_each(|part| digest.update(part));
            measurement.copy_from_slice(&digest.finalize());
        }
    }
    measurement
}

/// The hash of `parts`, one behind the other, in the answer to a command of the host's.
fn hash<W: World>(world: &W, algorithm: RmiHashAlgorithm, parts: &[&[u8]]) -> Measurement {
    hash_by(&|state, blocks| world.sha256(state, blocks), algorithm, parts)
}

/// The RIM of a new realm (B4.3.9.4).
pub fn initial<W: World>(world: &W, algorithm: RmiHashAlgorithm, params: &RmiRealmParams) -> Measurement {
    hash(world, algorithm, &[params.measured().as_bytes()])
}

/// Extends the RIM by a runnable REC (B4.3.12.4), of whose parameters all but flags, PC and GPRs are zero.
pub fn extend_rec<W: World>(
    world: &W,
    algorithm: RmiHashAlgorithm,
    rim: &mut Measurement,
    measured: &RmiRecParams,
) {
    let content = hash(world, algorithm, &[measured.as_bytes()]);
    let descriptor = RmmMeasurementDescriptorRec::new(*rim, content);
    *rim = hash(world, algorithm, &[descriptor.as_bytes()]);
}

/// Extends a REM by a value of 64 bytes, zero from its size on (B3.42).
pub fn extend_rem(algorithm: RmiHashAlgorithm, rem: &mut Measurement, padded: &Measurement) {
    // The realm's registers are on the CPU: no place for a world's own way.
    *rem = hash_by(&sha2::block_api::compress256, algorithm, &[rem, padded]);
}

impl<W: World> Locked<'_, W> {
    /// The RIM of `realm` becomes the hash of what `descriptor` makes of it.
    fn extend<D>(&self, realm: &Realm<W::Mmu>, descriptor: impl FnOnce(Measurement) -> D)
    where
        D: IntoBytes + zerocopy::Immutable,
    {
        let rim = &mut realm.measurements.borrow_mut()[0];
        *rim = hash(self.world, realm.hash_algo, &[descriptor(*rim).as_bytes()]);
    }

    /// Extends the RIM of `realm` by a granule of data at `ipa` (B4.3.1.4).
    pub fn extend_data(
        &self,
        realm: &Realm<W::Mmu>,
        ipa: u64,
        flags: RmiDataFlags,
        content: &[u8; GRANULE as usize],
    ) {
        let content = match flags.contains(RmiDataFlags::MEASURE) {
            true => hash(self.world, realm.hash_algo, &[content]),
            false => [0; size_of::<Measurement>()],
        };
        self.extend(realm, |rim| RmmMeasurementDescriptorData::new(rim, ipa, flags, content));
    }

    /// Extends the RIM of `realm` by an RTT entry at `base` that ends at `top`, whose RIPAS has become RAM (B4.3.18.4).
    pub fn extend_ripas(&self, realm: &Realm<W::Mmu>, base: u64, top: u64) {
        self.extend(realm, |rim| RmmMeasurementDescriptorRipas::new(rim, base, top));
    }
}

#[cfg(test)]
mod tests {
    use rmm_abi::v1_0::rmi::RmiCommand::*;
    use rmm_abi::v1_0::rmi::{RmiRecCreateFlags, RmiRecParams};

    use super::*;
    use crate::fake::*;

    /// The RIM after each step, computed apart from this crate: with Python's hashlib, where `put(size, (offset, bytes), ..)` is a structure and
    /// `le(value, bytes)` a number, and `H` is followed by zeroes up to 64 bytes:
    ///
    /// ```python
    /// rim = H(put(4096, (0x8, le(40, 1)), (0x18, le(1, 1)), (0x20, le(1, 1)), (0x30, le(algorithm, 1))))
    /// for ipa in (0x1000, 0x2000):
    ///     rim = H(put(256, (0, le(2, 1)), (8, le(256, 8)), (0x10, rim), (0x50, le(ipa, 8)), (0x58, le(ipa + 4096, 8))))
    /// page = bytes(i % 251 for i in range(4096))
    /// rim = H(put(256, (8, le(256, 8)), (0x10, rim), (0x50, le(0x1000, 8)), (0x58, le(1, 8)), (0x60, H(page))))
    /// rim = H(put(256, (8, le(256, 8)), (0x10, rim), (0x50, le(0x2000, 8))))
    /// gprs = b"".join(le(i + 7, 8) for i in range(8))
    /// rec = put(4096, (0, le(1, 8)), (0x200, le(0x80000000, 8)), (0x300, gprs))
    /// rim = H(put(256, (0, le(1, 1)), (8, le(256, 8)), (0x10, rim), (0x50, H(rec))))
    /// ```
    const SHA_256: [&str; 5] = [
        "045cb3602843a6845cb710fbbfbb92f0c7d611afe0106ac2953e46950a70c42b",
        "a131ab36fcea778323b5dcefc83add5f68857264f644d2dc012cba9bd8254cf8",
        "c46f243d0c18be69f513abf2d8542fe6f786da13c559849460e0a287c459698b",
        "8d319b3e4d67f7b56d344792ef3fc3e5017011bf7f4cbc47d08e9573f8ab2f2b",
        "92bacfab46dae294cb56f19dc2fa3c3985451608a81c9085480deb2efa39cc8b",
    ];
    /// The same with SHA-512.
    const SHA_512: [&str; 5] = [
        "066e19aa2c3418dadc20ef31b5595907c612991952553e1e99731a677b5797c9898dffb6e3963a20b8e1af6d136cd2fe6fe25f048577dc3d7e5bf3a79a4b1e81",
        "9cea59425ab9da884cc34d103eea4c1f70ea781cf1833eb9569e1d2bf6232af5bf0cd7d053019e97839230153854f711a45813ac308bbbe2b2e9ce10a4cae2c6",
        "c23d7821afb0b245c9a45e6d3d8efadec30471601bbae93c1a3ba972f23c49c5f42bb8de75bfd911689f11bb1f7e8e5386ae0978f048d1ecb78da4fe3acfac42",
        "291c5cb2b6689a190b8037a6706036510f1a841cf8a9d9d9fe5d52447c122f563ec38b6422d946c31e101533a2fcd2c315e05981dbe06e3da18d045277f4e392",
        "19b3c266fd6248f17eaf68f525227910234b13bdd32454902eebac2764468e61caa4df4ab7895ccede772bc79386976a7bfd9b9b86fa0c77e9d8f50fe8dc8cc6",
    ];

    fn measurement(hex: &str) -> Measurement {
        let mut bytes = [0; 64];
        for (byte, at) in bytes.iter_mut().zip((0..hex.len()).step_by(2)) {
            *byte = u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        }
        bytes
    }

    #[test]
    fn the_rim_is_what_others_compute_from_what_the_host_has_done() {
        for (algorithm, expected) in [(0, SHA_256), (1, SHA_512)] {
            let fake = Fake::new();
            let mut params = fake.params(40);
            // The RPV, the VMID and where the tables lie are not measured.
            (params.hash_algo, params.rpv) = (algorithm, [0x77; 64]);
            let rd = fake.realm_of(&params);
            let check = |step: usize| {
                let lock = fake.monitor.lock();
                let realm = lock.realm(rd).unwrap();
                assert_eq!(realm.measurements.borrow()[0], measurement(expected[step]), "step {step}");
            };
            check(0);
            fake.rtts(rd, 0, 3);
            fake.ok(RttInitRipas, &[rd, 0x1000, 0x3000]);
            check(1);
            let page: [u8; 4096] = core::array::from_fn(|i| (i % 251) as u8);
            let src = fake.put(&page);
            fake.ok(DataCreate, &[rd, fake.delegated(), 0x1000, src, 1]);
            check(2);
            fake.ok(DataCreate, &[rd, fake.delegated(), 0x2000, src, 0]);
            check(3);
            // What is wiped is not measured.
            fake.ok(DataCreateUnknown, &[rd, fake.delegated(), 0x3000]);
            check(3);
            let mut params = RmiRecParams::zeroed();
            (params.flags, params.pc) = (RmiRecCreateFlags::RUNNABLE, 0x8000_0000);
            params.gprs = core::array::from_fn(|i| i as u64 + 7);
            fake.ok(RecCreate, &[rd, fake.delegated(), fake.put(&params)]);
            check(4);
        }
    }
}
