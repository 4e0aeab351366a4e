//! Who signs tokens, and how: ECDSA on P-384 with SHA-384 (ES384 of COSE, RFC 9053 2.1), nonces by RFC 6979, so without a source of random
//! numbers.
//!
//! Invariant: **the keys are for tests.** Each is the hash of a text that stands here, so everybody has it, and the claims name them so.

use ecdsa::hazmat::sign_prehashed_rfc6979;
use minicbor::Encoder;
use minicbor::encode::Write;
use p384::NistP384;
use p384::elliptic_curve::NonZeroScalar;
use sha2::{Digest, Sha384};

/// Bytes of a signature: r, s.
pub const SIGNATURE: usize = 96;
/// Bytes of a coordinate, of a private key, and of a hash that is signed.
const COORDINATE: usize = 48;
/// What is signed.
pub type Hash = [u8; COORDINATE];

/// A key of this monitor's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// The Realm Attestation Key (RAK), by which the realm's token is signed.
    Realm,
    /// The Initial Attestation Key (IAK), by which the platform's token is signed.
    Platform,
}

/// A public key: its point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Public {
    pub x: [u8; COORDINATE],
    pub y: [u8; COORDINATE],
}

impl Key {
    /// Of what the private key is the SHA-384.
    const fn seed(self) -> &'static [u8] {
        match self {
            Self::Realm => b"Cloven test key: realm attestation key",
            Self::Platform => b"Cloven test key: initial attestation key",
        }
    }

    /// Its public key: `public_keys_are_those_of_the_seeds`.
    pub const fn public(self) -> &'static Public {
        match self {
            Self::Realm => &REALM,
            Self::Platform => &PLATFORM,
        }
    }
}

static REALM: Public = Public {
    x: hex(
        "44996129f3a1bab934e1520d8d26f16e62e8a215621244e443c98cb7527995d17410452fab7fbcdb9b59e618a675c70d",
    ),
    y: hex(
        "5df43641b17e999c873353b0d9bc2fe881f2469294df697256beacc881fad897c77e7b8ed125068a191556787ea5a43c",
    ),
};
static PLATFORM: Public = Public {
    x: hex(
        "de3b4f4e5e73182ecc227fb87419753c574701278e6268226c81d875c3588f640cdb4b8fb78c16a74460f7c970396753",
    ),
    y: hex(
        "7ff9309204cd437a91a676ba54054a0b33b040147b1272b880e2fb098e22f16bab467dd3e296fe612c444a6a584dc24b",
    ),
};

/// The bytes that digits name, when this is compiled.
const fn hex<const N: usize>(digits: &str) -> [u8; N] {
    const fn value(digit: u8) -> u8 {
        match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => panic!("not a digit"),
        }
    }
    assert!(digits.len() == 2 * N);
    let mut bytes = [0; N];
    let mut at = 0;
    while at < N {
        bytes[at] = value(digits.as_bytes()[2 * at]) << 4 | value(digits.as_bytes()[2 * at + 1]);
        at += 1;
    }
    bytes
}

/// The protected header of a signature: `{1: -35}`, the algorithm ES384 (RFC 9052 3.1).
pub const PROTECTED: [u8; 4] = [0xa1, 0x01, 0x38, 0x22];

/// Takes what is written to it into a hash.
struct Hashed(Sha384);

impl Write for Hashed {
    type Error = core::convert::Infallible;
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        self.0.update(bytes);
        Ok(())
    }
}

/// The hash that is signed for `payload` in a COSE_Sign1 with the header [`PROTECTED`]: of its Sig_structure (RFC 9052 4.4).
pub fn hash(payload: &[u8]) -> Hash {
    let mut encoder = Encoder::new(Hashed(Sha384::new()));
    // What cannot fail has no error.
    let done = encoder
        .array(4)
        .and_then(|structure| structure.str("Signature1"))
        .and_then(|structure| structure.bytes(&PROTECTED))
        .and_then(|structure| structure.bytes(&[]))
        .and_then(|structure| structure.bytes(payload));
    debug_assert!(done.is_ok());
    encoder.into_writer().0.finalize().into()
}

/// Signs a hash. None if the seed's is no private key, which none of those above is.
pub fn sign(key: Key, hash: &Hash) -> Option<[u8; SIGNATURE]> {
    sign_by(Sha384::digest(key.seed()).into(), hash)
}

// A function of its own: it wants most of the stack that a token wants.
#[inline(never)]
fn sign_by(private: [u8; COORDINATE], hash: &Hash) -> Option<[u8; SIGNATURE]> {
    let private = NonZeroScalar::<NistP384>::from_repr(private.into()).into_option()?;
    let (signature, _) = sign_prehashed_rfc6979::<NistP384, Sha384>(&private, hash, &[]);
    Some(signature.to_bytes().into())
}

#[cfg(test)]
mod tests {
    use p384::ecdsa::signature::hazmat::PrehashVerifier;
    use p384::ecdsa::{Signature, SigningKey, VerifyingKey};

    use super::*;

    fn verifying(key: Key) -> VerifyingKey {
        let Public { x, y } = key.public();
        VerifyingKey::from_sec1_bytes(&[&[4], &x[..], &y[..]].concat()).unwrap()
    }

    #[test]
    fn public_keys_are_those_of_the_seeds() {
        for key in [Key::Realm, Key::Platform] {
            let private = SigningKey::from_slice(&Sha384::digest(key.seed())).unwrap();
            assert_eq!(*private.verifying_key(), verifying(key), "{key:?}");
        }
    }

    #[test]
    fn a_signature_is_of_its_key_and_its_payload() {
        for (key, other) in [(Key::Realm, Key::Platform), (Key::Platform, Key::Realm)] {
            let bytes = sign(key, &hash(b"payload")).unwrap();
            let signature = Signature::from_slice(&bytes).unwrap();
            assert!(verifying(key).verify_prehash(&hash(b"payload"), &signature).is_ok());
            assert!(verifying(key).verify_prehash(&hash(b"payloae"), &signature).is_err());
            assert!(verifying(other).verify_prehash(&hash(b"payload"), &signature).is_err());
            assert_eq!(sign(key, &hash(b"payload")), Some(bytes), "it is the same each time");
        }
    }

    #[test]
    fn what_is_no_private_key_signs_nothing() {
        // The order of the group (SP 800-186 3.2.1.4), below which keys are.
        let mut key: [u8; COORDINATE] = hex(
            "ffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973",
        );
        for no_key in [[0; COORDINATE], key, [0xff; COORDINATE]] {
            assert_eq!(sign_by(no_key, &hash(b"payload")), None);
        }
        key[COORDINATE - 1] -= 1;
        assert!(sign_by(key, &hash(b"payload")).is_some());
    }

    /// RFC 6979 A.2.6: P-384, SHA-384, "sample".
    #[test]
    fn nonces_are_those_of_the_rfc() {
        let private: [u8; COORDINATE] = hex(
            "6b9d3dad2e1b8c1c05b19875b6659f4de23c3b667bf297ba9aa47740787137d896d5724e4c70a825f872c9ea60d2edf5",
        );
        let private = NonZeroScalar::<NistP384>::from_repr(private.into()).unwrap();
        let (signature, _) =
            sign_prehashed_rfc6979::<NistP384, Sha384>(&private, &Sha384::digest(b"sample"), &[]);
        let r: [u8; COORDINATE] = hex(
            "94edbb92a5ecb8aad4736e56c691916b3f88140666ce9fa73d64c4ea95ad133c81a648152e44acf96e36dd1e80fabe46",
        );
        assert_eq!(signature.to_bytes()[..COORDINATE], r);
    }

    /// The hash of the Sig_structure, put together by hand.
    #[test]
    fn what_is_signed_is_the_sig_structure() {
        let mut bytes = vec![0x84, 0x6a];
        bytes.extend_from_slice(b"Signature1");
        bytes.extend_from_slice(&[0x44, 0xa1, 0x01, 0x38, 0x22, 0x40, 0x43]);
        bytes.extend_from_slice(b"abc");
        assert_eq!(hash(b"abc")[..], Sha384::digest(&bytes)[..]);
    }
}
