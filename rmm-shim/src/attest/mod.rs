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
//! signature is made once ([`Attestation::sign`]).

mod sign;
mod token;

pub use sign::SIGNATURE;
pub use token::Claims;

use hyp::mapping::GRANULE;
use zerocopy::FromZeros;

use sign::Key;
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

impl Attestation {
    /// Begins a token with these claims, and ends what was begun before: the number of its bytes.
    ///
    /// # Errors
    /// [`Full`]: there is none now.
    pub fn begin(&mut self, claims: &Claims<'_>) -> Result<usize, Full> {
        (self.stage, self.sent) = (Stage::None, 0);
        (self.len, self.places) = token::write(&mut self.bytes, claims)?;
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

    /// Makes one signature that is missing. `known` is the platform's, if somebody has made it already; what comes back is that, if it was
    /// made here.
    ///
    /// Long: some millions of instructions.
    pub fn sign(&mut self, known: Option<&PlatformSignature>) -> Option<PlatformSignature> {
        match (self.stage, known) {
            (Stage::Claimed, None) => {
                let made = self.signature(self.places.platform, Key::Platform);
                self.put(self.places.platform, &made);
                self.stage = Stage::PlatformSigned;
                return Some(made);
            }
            (Stage::Claimed, Some(known)) => self.put(self.places.platform, known),
            (Stage::PlatformSigned, _) => {}
            (Stage::None | Stage::Whole, _) => return None,
        }
        let made = self.signature(self.places.realm, Key::Realm);
        self.put(self.places.realm, &made);
        self.stage = Stage::Whole;
        None
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

    fn signature(&self, signed: Signed, key: Key) -> [u8; SIGNATURE] {
        let payload = self.bytes.get(signed.payload..signed.payload + signed.payload_len).unwrap_or(&[]);
        sign::sign(key, payload)
    }

    fn put(&mut self, signed: Signed, signature: &[u8; SIGNATURE]) {
        if let Some(place) = self.bytes.get_mut(signed.signature..signed.signature + SIGNATURE) {
            place.copy_from_slice(signature);
        }
    }
}

#[cfg(test)]
mod tests {
    use rmm_abi::v1_0::rmi::RmiHashAlgorithm;

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

    /// All of a token, in parts of `size` bytes.
    fn whole(attestation: &mut Attestation, size: usize) -> Vec<u8> {
        while !attestation.is_whole() {
            attestation.sign(None);
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
        let len = attestation.begin(&claims(RmiHashAlgorithm::Sha512)).unwrap();
        assert_eq!(whole(&mut attestation, 100).len(), len);
        assert!(len <= ROOM, "{len}");
        let mut shorter = none();
        let shorter = shorter.begin(&claims(RmiHashAlgorithm::Sha256)).unwrap();
        // The RIM and four REMs.
        assert_eq!(len - shorter, 5 * 32);
    }

    #[test]
    fn a_granule_of_zeroes_is_no_token() {
        let mut attestation = none();
        assert!(!attestation.is_in_progress());
        assert_eq!((attestation.sign(None), attestation.send(&mut [0; 8])), (None, 0));
        assert!(!attestation.is_in_progress());
    }

    #[test]
    fn a_token_is_the_same_whatever_the_parts_in_which_it_is_sent() {
        let mut attestation = none();
        let claims = claims(RmiHashAlgorithm::Sha256);
        let mut tokens = [1, 7, 1000, 4096].map(|size| {
            attestation.begin(&claims).unwrap();
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
        first.begin(&claims).unwrap();
        let platform = first.sign(None).unwrap();
        assert!(!first.is_whole());
        assert_eq!(first.sign(Some(&platform)), None);
        assert!(first.is_whole());
        let mut second = none();
        second.begin(&claims).unwrap();
        assert_eq!(second.sign(Some(&platform)), None);
        assert!(second.is_whole());
        assert_eq!(whole(&mut first, 4096), whole(&mut second, 4096));
    }

    #[test]
    fn a_token_that_is_begun_again_begins_anew() {
        let claims = claims(RmiHashAlgorithm::Sha256);
        let mut attestation = none();
        attestation.begin(&claims).unwrap();
        let expected = whole(&mut attestation, 4096);
        attestation.begin(&claims).unwrap();
        while !attestation.is_whole() {
            attestation.sign(None);
        }
        attestation.send(&mut [0; 100]);
        attestation.begin(&claims).unwrap();
        assert!(!attestation.is_whole());
        assert_eq!(whole(&mut attestation, 4096), expected);
    }
}
