//! Measurements: the hash functions that a realm can be measured with (A7.1).
//!
//! Invariant: a hash shorter than a measurement is followed by zeroes.

use rmm_abi::v1_0::rmi::{RmiHashAlgorithm, RmiRecParams};
use rmm_abi::v1_0::{Measurement, RmmMeasurementDescriptorRec};
use sha2::{Digest, Sha256, Sha512};
use zerocopy::IntoBytes;

fn hash(algorithm: RmiHashAlgorithm, parts: &[&[u8]]) -> Measurement {
    fn digest<D: Digest>(parts: &[&[u8]]) -> Measurement {
        let mut hash = D::new();
        parts.iter().for_each(|part| hash.update(part));
        let digest = hash.finalize();
        let mut measurement = [0; 64];
        measurement.iter_mut().zip(digest.iter()).for_each(|(to, &from)| *to = from);
        measurement
    }
    match algorithm {
        RmiHashAlgorithm::Sha256 => digest::<Sha256>(parts),
        RmiHashAlgorithm::Sha512 => digest::<Sha512>(parts),
    }
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
