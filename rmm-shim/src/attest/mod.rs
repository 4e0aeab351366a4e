//! Attestation tokens (A7.2): what a realm can show of itself, and of the platform under it, to whoever trusts that platform's key.
//!
//! Invariants:
//! - A token says what the monitor knew of the realm when RSI_ATTESTATION_TOKEN_INIT was called, and the challenge of that call.
//! - Its keys are public, and it says so: nobody is to trust it. What is tested with it is the way that a token takes.
//! - There is no memory but the REC's auxiliary granule, which holds the one token that the REC may be fetching.
//!
//! | file | holds |
//! |---|---|
//! | here | the token that a REC is fetching: claimed, signed, sent |
//! | `token` | what it says, in CBOR |
//! | `sign` | the keys, and the signatures |
//!
//! A signature takes long, and no interrupt is taken while EL2 makes it. So RSI_ATTESTATION_TOKEN_CONTINUE makes one at a time, answers
//! RSI_INCOMPLETE with no bytes, and is called again, from a realm that its host can interrupt. The platform's token is the same for every realm: its
//! signature is made once ([`Attestation::unsigned`]).

mod sign;
mod token;

pub use sign::SIGNATURE;
pub use token::{Claims, Config};

use hyp::mapping::GRANULE;
use zerocopy::FromZeros;

use sign::{Hash, Key};
use token::{Full, Places, Signed};

/// Bytes that a token has at most: `the_longest_token_fits`.
const ROOM: usize = 2048;

/// How far a token has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromZeros)]
#[repr(u8)]
enum Stage {
    /// There is none (NO_ATTEST_IN_PROGRESS).
    None = 0,
    /// It has no signature yet.
    Claimed,
    /// The platform's part is signed.
    PlatformSigned,
    /// It is whole: its bytes are on their way.
    Whole,
}

/// The token that a REC is fetching, in its auxiliary granule: a granule of zeroes is none (`attest_state`, C1.19).
#[derive(Debug, FromZeros)]
pub struct Attestation {
    stage: Stage,
    /// Bytes of it.
    len: usize,
    /// How many of them the realm has.
    sent: usize,
    places: Places,
    bytes: [u8; ROOM],
}

const _: () = assert!(size_of::<Attestation>() <= GRANULE as usize);

/// The signature of the platform's token, once it is made.
pub type PlatformSignature = [u8; SIGNATURE];

/// A signature that a token misses: what it is made of, apart from the granule that the token is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unsigned {
    key: Key,
    hash: Hash,
}

impl Unsigned {
    /// Makes it; none if there is no key. Long: some millions of instructions, which touch the image and the stack alone.
    pub fn sign(&self) -> Option<[u8; SIGNATURE]> {
        sign::sign(self.key, &self.hash)
    }
}

impl Attestation {
    /// Begins a token with these claims on a platform with `config`, which is always the same, and ends what was begun before: the number of its bytes.
    ///
    /// # Errors
    /// [`Full`]: there is none now.
    pub fn begin(&mut self, claims: &Claims<'_>, config: &Config) -> Result<usize, Full> {
        (self.stage, self.sent) = (Stage::None, 0);
        (self.len, self.places) = token::write(&mut self.bytes, claims, config)?;
        self.stage = Stage::Claimed;
        Ok(self.len)
    }

    /// Whether there is one (ATTEST_IN_PROGRESS).
    pub fn is_in_progress(&self) -> bool {
        self.stage != Stage::None
    }

    /// Whether bytes of it can be had.
    pub fn is_whole(&self) -> bool {
        self.stage == Stage::Whole
    }

    /// The signature that is missing next. `known` is the platform's, if somebody has made it already: then it is put where it belongs.
    pub fn unsigned(&mut self, known: Option<&PlatformSignature>) -> Option<Unsigned> {
        if let (Stage::Claimed, Some(known)) = (self.stage, known) {
            self.put(self.places.platform, known);
            self.stage = Stage::PlatformSigned;
        }
        let (key, place) = match self.stage {
            Stage::Claimed => (Key::Platform, self.places.platform),
            Stage::PlatformSigned => (Key::Realm, self.places.realm),
            Stage::None | Stage::Whole => return None,
        };
        let payload = self.bytes.get(place.payload..place.payload + place.payload_len)?;
        Some(Unsigned { key, hash: sign::hash(payload) })
    }

    /// Takes the signature of what was [missing](Self::unsigned): what comes back is the platform's, if it is that.
    pub fn signed(&mut self, unsigned: &Unsigned, signature: &[u8; SIGNATURE]) -> Option<PlatformSignature> {
        match (self.stage, unsigned.key) {
            (Stage::Claimed, Key::Platform) => {
                self.put(self.places.platform, signature);
                self.stage = Stage::PlatformSigned;
                Some(*signature)
            }
            (Stage::PlatformSigned, Key::Realm) => {
                self.put(self.places.realm, signature);
                self.stage = Stage::Whole;
                None
            }
            // Not what it misses.
            _ => None,
        }
    }

    /// The next bytes, for `into`: how many of them were written there. None is left behind the last one: the token is over then.
    pub fn send(&mut self, into: &mut [u8]) -> usize {
        let rest = if self.is_whole() { self.bytes.get(self.sent..self.len) } else { None };
        let rest = rest.unwrap_or(&[]);
        let count = rest.len().min(into.len());
        into[..count].copy_from_slice(&rest[..count]);
        self.sent += count;
        if self.is_whole() && self.sent == self.len {
            self.stage = Stage::None;
        }
        count
    }

    fn put(&mut self, signed: Signed, signature: &[u8; SIGNATURE]) {
        if let Some(place) = self.bytes.get_mut(signed.signature..signed.signature + SIGNATURE) {
            place.copy_from_slice(signature);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use ciborium::Value;
    use coset::{CborSerializable, CoseKey, CoseKeyBuilder, CoseSign1, TaggedCborSerializable, iana};
    use hyp::el2::guests::Advertised;
    use p384::ecdsa::signature::Verifier;
    use p384::ecdsa::{Signature, VerifyingKey};
    use rmm_abi::v1_0::rmi::RmiHashAlgorithm;
    use sha2::{Digest, Sha256};

    use super::sign::Public;
    use super::*;

    fn claims(algorithm: RmiHashAlgorithm) -> Claims<'static> {
        Claims {
            challenge: &[0xc4; 64],
            personalization: &[0x9e; 64],
            algorithm,
            measurements: &[[1; 64], [2; 64], [3; 64], [4; 64], [5; 64]],
        }
    }

    fn none() -> Box<Attestation> {
        Box::new(Attestation::new_zeroed())
    }

    /// Nothing of the platform was chosen.
    const PLAIN: Config =
        Config { advertised: Advertised { bbm: None, midr: None }, tells_realms: false, tells_host: false };
    /// All was.
    const CHOSEN: Config = Config {
        advertised: Advertised { bbm: Some(2), midr: Some(0x410f_d842) },
        tells_realms: true,
        tells_host: true,
    };

    /// Makes a signature that is missing.
    fn sign(attestation: &mut Attestation, known: Option<&PlatformSignature>) -> Option<PlatformSignature> {
        let unsigned = attestation.unsigned(known)?;
        let signature = unsigned.sign().unwrap();
        attestation.signed(&unsigned, &signature)
    }

    /// All of a token, in parts of `size` bytes.
    fn whole(attestation: &mut Attestation, size: usize) -> Vec<u8> {
        while !attestation.is_whole() {
            sign(attestation, None);
        }
        let mut token = Vec::new();
        while attestation.is_in_progress() {
            let mut part = vec![0; size];
            let count = attestation.send(&mut part);
            token.extend_from_slice(&part[..count]);
        }
        token
    }

    #[test]
    fn the_longest_token_fits() {
        let mut attestation = none();
        let len = attestation.begin(&claims(RmiHashAlgorithm::Sha512), &CHOSEN).unwrap();
        assert_eq!(whole(&mut attestation, 100).len(), len);
        assert_eq!(len, 1473);
        assert!(len <= ROOM, "{len}");
        let mut shorter = none();
        let shorter = shorter.begin(&claims(RmiHashAlgorithm::Sha256), &CHOSEN).unwrap();
        // The RIM and four REMs.
        assert_eq!(len - shorter, 5 * 32);
    }

    fn decoded(bytes: &[u8]) -> Value {
        let mut rest = bytes;
        let value = ciborium::from_reader(&mut rest).unwrap();
        assert!(rest.is_empty());
        // The deterministic form is the one that `ciborium` writes, with keys in order, which it does not look after.
        let mut again = Vec::new();
        ciborium::into_writer(&value, &mut again).unwrap();
        assert_eq!(again, bytes);
        value
    }

    /// The claims of a part, by their keys, if its signature is that of `key`.
    fn claims_of(part: &[u8], key: Key) -> BTreeMap<i128, Value> {
        let envelope = CoseSign1::from_tagged_slice(part).unwrap();
        assert!(envelope.unprotected.is_empty());
        let Public { x, y } = key.public();
        let key = VerifyingKey::from_sec1_bytes(&[&[4], &x[..], &y[..]].concat()).unwrap();
        envelope
            .verify_signature(&[], |signature, signed| {
                key.verify(signed, &Signature::from_slice(signature).unwrap())
            })
            .unwrap();
        let Value::Map(claims) = decoded(&envelope.payload.unwrap()) else { panic!("not a map") };
        let claims = claims.into_iter().map(|(key, value)| (key.as_integer().unwrap().into(), value));
        let claims: Vec<(i128, Value)> = claims.collect();
        assert!(claims.is_sorted_by_key(|(key, _)| *key));
        claims.into_iter().collect()
    }

    /// Read by other crates than those that wrote it.
    #[test]
    fn a_token_says_what_was_claimed() {
        for (algorithm, name, len) in
            [(RmiHashAlgorithm::Sha256, "sha-256", 32), (RmiHashAlgorithm::Sha512, "sha-512", 64)]
        {
            let mut attestation = none();
            attestation.begin(&claims(algorithm), &PLAIN).unwrap();
            let token = whole(&mut attestation, 4096);
            let Value::Tag(399, parts) = decoded(&token) else { panic!("no token") };
            let Value::Map(parts) = *parts else { panic!("no map") };
            let part = |index: usize, key: i128| {
                assert_eq!(parts[index].0, Value::from(key as u64));
                parts[index].1.as_bytes().unwrap().clone()
            };
            let platform = claims_of(&part(0, 44234), Key::Platform);
            let realm = claims_of(&part(1, 44241), Key::Realm);
            let bytes = |byte: u8, count: usize| Value::Bytes(vec![byte; count]);
            assert_eq!(realm[&10], bytes(0xc4, 64));
            assert_eq!(realm[&265], Value::from("tag:arm.com,2023:realm#1.0.0"));
            assert_eq!(realm[&44235], bytes(0x9e, 64));
            assert_eq!(realm[&44236], Value::from(name));
            assert_eq!(realm[&44238], bytes(1, len));
            assert_eq!(realm[&44239], Value::Array((2..=5).map(|byte| bytes(byte, len)).collect()));
            assert_eq!(realm[&44240], Value::from("sha-256"));
            let key = realm[&44237].as_bytes().unwrap();
            let named = CoseKey::from_slice(key).unwrap();
            let expected = CoseKeyBuilder::new_ec2_pub_key(
                iana::EllipticCurve::P_384,
                Key::Realm.public().x.to_vec(),
                Key::Realm.public().y.to_vec(),
            );
            assert_eq!(named, expected.algorithm(iana::Algorithm::ES384).build());
            // What binds the two.
            assert_eq!(platform[&10], Value::Bytes(Sha256::digest(key).to_vec()));
            assert_eq!(platform[&265], Value::from("tag:arm.com,2023:cca_platform#1.0.0"));
            assert_eq!((realm.len(), platform.len()), (8, 9));
            // Nobody is to take it for a platform.
            assert_eq!(platform[&2395], Value::from(0x1000));
            for key in [2396, 2399, 2400] {
                let text = format!("{:?}", platform[&key]);
                let says = match &platform[&key] {
                    Value::Bytes(bytes) => bytes.windows(4).any(|word| word == b"test"),
                    _ => text.contains("test"),
                };
                assert!(says, "{text}");
            }
        }
    }

    #[test]
    fn a_granule_of_zeroes_is_no_token() {
        let mut attestation = none();
        assert!(!attestation.is_in_progress());
        assert_eq!((attestation.unsigned(None), attestation.send(&mut [0; 8])), (None, 0));
        assert!(!attestation.is_in_progress());
    }

    #[test]
    fn a_token_is_the_same_whatever_the_parts_in_which_it_is_sent() {
        let mut attestation = none();
        let claims = claims(RmiHashAlgorithm::Sha256);
        let mut tokens = [1, 7, 1000, 4096].map(|size| {
            attestation.begin(&claims, &PLAIN).unwrap();
            whole(&mut attestation, size)
        });
        tokens.sort();
        assert_eq!(tokens[0], tokens[3]);
        assert!(!attestation.is_in_progress());
    }

    #[test]
    fn the_platforms_signature_is_made_once() {
        let claims = claims(RmiHashAlgorithm::Sha256);
        let mut first = none();
        first.begin(&claims, &PLAIN).unwrap();
        let platform = sign(&mut first, None).unwrap();
        assert!(!first.is_whole());
        assert_eq!(sign(&mut first, Some(&platform)), None);
        assert!(first.is_whole());
        let mut second = none();
        second.begin(&claims, &PLAIN).unwrap();
        assert_eq!(sign(&mut second, Some(&platform)), None);
        assert!(second.is_whole());
        assert_eq!(whole(&mut first, 4096), whole(&mut second, 4096));
    }

    #[test]
    fn a_token_that_is_begun_again_begins_anew() {
        let claims = claims(RmiHashAlgorithm::Sha256);
        let mut attestation = none();
        attestation.begin(&claims, &PLAIN).unwrap();
        let expected = whole(&mut attestation, 4096);
        attestation.begin(&claims, &PLAIN).unwrap();
        while !attestation.is_whole() {
            sign(&mut attestation, None);
        }
        attestation.send(&mut [0; 100]);
        attestation.begin(&claims, &PLAIN).unwrap();
        assert!(!attestation.is_whole());
        assert_eq!(whole(&mut attestation, 4096), expected);
    }

    #[test]
    fn a_signature_of_something_else_changes_nothing() {
        let claims = claims(RmiHashAlgorithm::Sha256);
        let mut attestation = none();
        attestation.begin(&claims, &PLAIN).unwrap();
        let platform = attestation.unsigned(None).unwrap();
        let made = platform.sign().unwrap();
        assert_eq!(attestation.signed(&platform, &made), Some(made));
        assert_eq!(attestation.signed(&platform, &[0; SIGNATURE]), None);
        assert!(!attestation.is_whole());
        let realm = attestation.unsigned(Some(&[0; SIGNATURE])).unwrap();
        attestation.begin(&claims, &PLAIN).unwrap();
        assert_eq!(attestation.signed(&realm, &[0; SIGNATURE]), None);
        let token = whole(&mut attestation, 4096);
        assert!(token.windows(SIGNATURE).any(|part| part == made));
    }

    #[test]
    fn the_platform_says_what_was_chosen_of_it() {
        let config = |config: &Config| {
            let mut attestation = none();
            attestation.begin(&claims(RmiHashAlgorithm::Sha256), config).unwrap();
            let Value::Tag(_, parts) = decoded(&whole(&mut attestation, 4096)) else { panic!("no token") };
            let part = parts.as_map().unwrap()[0].1.as_bytes().unwrap();
            let claims = claims_of(part, Key::Platform);
            String::from_utf8(claims[&2401].as_bytes().unwrap().clone()).unwrap()
        };
        assert_eq!(
            config(&PLAIN),
            "no RME: stage 2 alone; guests are shown the machine's own ID registers; calls told: none"
        );
        assert_eq!(
            config(&CHOSEN),
            "no RME: stage 2 alone; guests are shown level 2 of FEAT_BBM, MIDR 0x410fd842; calls told: of realms, of the host"
        );
        let of_realms = Config { tells_realms: true, ..PLAIN };
        assert!(config(&of_realms).ends_with("; calls told: of realms"));
        assert!(config(&Config { tells_host: true, ..PLAIN }).ends_with("; calls told: of the host"));
    }
}
