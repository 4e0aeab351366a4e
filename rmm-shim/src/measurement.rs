//! Measurements: the hash functions that a realm can be measured with, and how its initial measurement (RIM) comes about (A7.1).
//!
//! Invariant: a hash shorter than a measurement is followed by zeroes.

use hyp::mapping::{GRANULE, Mmu};
use rmm_abi::v1_0::rmi::{RmiDataFlags, RmiHashAlgorithm, RmiRealmParams, RmiRecParams};
use rmm_abi::v1_0::{
    Measurement, RmmMeasurementDescriptorData, RmmMeasurementDescriptorRec, RmmMeasurementDescriptorRipas,
};
use sha2::{Digest, Sha256, Sha512};
use zerocopy::IntoBytes;

use crate::realm::Realm;

/// The hash of `parts`, one behind the other.
pub fn hash(algorithm: RmiHashAlgorithm, parts: &[&[u8]]) -> Measurement {
    fn of<D: Digest>(parts: &[&[u8]]) -> Measurement {
        let mut digest = D::new();
        parts.iter().for_each(|part| digest.update(part));
        let mut measurement = [0; size_of::<Measurement>()];
        for (to, from) in measurement.iter_mut().zip(digest.finalize()) {
            *to = from;
        }
        measurement
    }
    match algorithm {
        RmiHashAlgorithm::Sha256 => of::<Sha256>(parts),
        RmiHashAlgorithm::Sha512 => of::<Sha512>(parts),
    }
}

/// The RIM of a new realm (B4.3.9.4).
pub fn initial(algorithm: RmiHashAlgorithm, params: &RmiRealmParams) -> Measurement {
    hash(algorithm, &[params.measured().as_bytes()])
}

/// Extends the RIM by a runnable REC (B4.3.12.4), of whose parameters all but flags, PC and GPRs are zero.
pub fn extend_rec(algorithm: RmiHashAlgorithm, rim: &mut Measurement, measured: &RmiRecParams) {
    let content = hash(algorithm, &[measured.as_bytes()]);
    let descriptor = RmmMeasurementDescriptorRec::new(*rim, content);
    *rim = hash(algorithm, &[descriptor.as_bytes()]);
}

/// Extends a REM by a value of 64 bytes, zero from its size on (B3.42).
pub fn extend_rem(algorithm: RmiHashAlgorithm, rem: &mut Measurement, padded: &Measurement) {
    *rem = hash(algorithm, &[rem, padded]);
}

impl<M: Mmu> Realm<M> {
    /// The RIM becomes the hash of what `descriptor` makes of it.
    fn extend<D: IntoBytes + zerocopy::Immutable>(&self, descriptor: impl FnOnce(Measurement) -> D) {
        let rim = &mut self.measurements.borrow_mut()[0];
        *rim = hash(self.hash_algo, &[descriptor(*rim).as_bytes()]);
    }

    /// Extends the RIM by a granule of data at `ipa` (B4.3.1.4).
    pub fn extend_data(&self, ipa: u64, flags: RmiDataFlags, content: &[u8; GRANULE as usize]) {
        let content = match flags.contains(RmiDataFlags::MEASURE) {
            true => hash(self.hash_algo, &[content]),
            false => [0; size_of::<Measurement>()],
        };
        self.extend(|rim| RmmMeasurementDescriptorData::new(rim, ipa, flags, content));
    }

    /// Extends the RIM by an RTT entry at `base` that ends at `top`, whose RIPAS has become RAM (B4.3.18.4).
    pub fn extend_ripas(&self, base: u64, top: u64) {
        self.extend(|rim| RmmMeasurementDescriptorRipas::new(rim, base, top));
    }
}
