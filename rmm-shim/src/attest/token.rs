//! What a token says, in CBOR: a tagged map of two COSE_Sign1, the platform's and the realm's. It is the one of DEN0137 1.0-rel0 A7.2.3, with RFC 9052:
//! tag 399, profiles `tag:arm.com,2023:realm#1.0.0` and `tag:arm.com,2023:cca_platform#1.0.0`, which are also those of draft-ffm-rats-cca-token-00.
//! Later drafts, and RMM 2.0, have the tag 907 and other profiles: who expects those does not take what is made here.
//!
//! Invariants:
//! - CBOR is in its deterministic form (RFC 8949 4.2.1): shortest heads, keys in order, nothing of indefinite length.
//! - The platform's claims do not depend on the realm, so its signature does not either.
//!
//! The two are bound by the platform's challenge: it is the hash of the RAK, as the realm's token has it, so of the bytes of its COSE_Key. Verifiers do
//! the same for these profiles (veraison's `rust-ccatoken`). A realm's token without a profile, as older TF-RMM makes it, has the bare point in place of
//! a COSE_Key, and the hash is that of the point.

use core::fmt;

use arrayvec::ArrayString;
use hyp::el2::guests::Advertised;
use minicbor::Encoder;
use minicbor::data::Tag;
use minicbor::encode::write::Cursor;
use minicbor::encode::{Error, Write};
use rmm_abi::v1_0::rmi::RmiHashAlgorithm;
use rmm_abi::v1_0::{MEASUREMENTS, Measurement};
use sha2::{Digest, Sha256};
use zerocopy::FromZeros;

use super::sign::{Key, PROTECTED, SIGNATURE};

/// What a realm's token says of the realm.
#[derive(Clone, Copy, Debug)]
pub struct Claims<'r> {
    /// What the realm has passed.
    pub challenge: &'r [u8; 64],
    /// The Realm Personalization Value.
    pub personalization: &'r [u8; 64],
    /// With what it is measured.
    pub algorithm: RmiHashAlgorithm,
    /// The RIM and the REMs.
    pub measurements: &'r [Measurement; MEASUREMENTS],
}

/// What was chosen of this machine, that who relies on a token may want to know: the platform's config claim (A7.2.3.2.5). The machine's owner has
/// chosen it on the command line, which nobody has measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// What guests are shown in place of what the machine has.
    pub advertised: Advertised,
    /// The calls of realms are told to the machine's owner, with what is in them: challenges, measurements, addresses.
    pub tells_realms: bool,
    /// So are those of their host, or what becomes of RIPAS.
    pub tells_host: bool,
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{CONFIG}; guests are shown ")?;
        if self.advertised == Advertised::default() {
            f.write_str("the machine's own ID registers")?;
        } else {
            write!(f, "{}", self.advertised)?;
        }
        f.write_str("; calls told: ")?;
        f.write_str(match (self.tells_realms, self.tells_host) {
            (false, false) => "none",
            (true, false) => "of realms",
            (false, true) => "of the host",
            (true, true) => "of realms, of the host",
        })
    }
}

/// There is no room for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// Where one COSE_Sign1 lies in the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromZeros)]
pub struct Signed {
    /// Its payload.
    pub payload: usize,
    /// Bytes of that.
    pub payload_len: usize,
    /// Its signature, of [`SIGNATURE`] bytes.
    pub signature: usize,
}

/// Where both are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromZeros)]
pub struct Places {
    pub platform: Signed,
    pub realm: Signed,
}

/// cca-token-collection, and its keys (A7.2.3).
const TAG_TOKEN: u64 = 399;
const PLATFORM: u32 = 44234;
const REALM: u32 = 44241;
/// COSE_Sign1_Tagged (RFC 9052 2).
const TAG_SIGN1: u64 = 18;
/// Claims of both: EAT nonce, EAT profile.
const CHALLENGE: u32 = 10;
const PROFILE: u32 = 265;
/// A7.2.3.1.
const REALM_PERSONALIZATION: u32 = 44235;
const REALM_HASH: u32 = 44236;
const REALM_KEY: u32 = 44237;
const REALM_INITIAL: u32 = 44238;
const REALM_EXTENSIBLE: u32 = 44239;
const REALM_KEY_HASH: u32 = 44240;
const REALM_PROFILE: &str = "tag:arm.com,2023:realm#1.0.0";
/// A7.2.3.2.
const PLATFORM_INSTANCE: u32 = 256;
const PLATFORM_LIFECYCLE: u32 = 2395;
const PLATFORM_IMPLEMENTATION: u32 = 2396;
const PLATFORM_COMPONENTS: u32 = 2399;
const PLATFORM_VERIFICATION: u32 = 2400;
const PLATFORM_CONFIG: u32 = 2401;
const PLATFORM_HASH: u32 = 2402;
const PLATFORM_PROFILE: &str = "tag:arm.com,2023:cca_platform#1.0.0";
/// The state "assembly and test" (A7.2.3.2.6): no verifier that wants a secured platform takes it.
const LIFECYCLE: u32 = 0x1000;
const IMPLEMENTATION: &[u8; 32] = b"Cloven test keys: no platform...";
const VERIFICATION: &str = "none: these are test keys that everybody has";
const CONFIG: &str = "no RME: stage 2 alone";
/// Bytes that the config claim has at most: `the_longest_token_fits`.
const CONFIG_ROOM: usize = 128;
/// Of software components: type, measurement, version, signer, hash.
const COMPONENT_TYPE: u8 = 1;
const COMPONENT_MEASUREMENT: u8 = 2;
const COMPONENT_VERSION: u8 = 4;
const COMPONENT_SIGNER: u8 = 5;
const COMPONENT_HASH: u8 = 6;
const COMPONENTS: [&str; 2] =
    ["Cloven, for tests: not measured", "Cloven's RMM stand-in, for tests: not measured"];
/// Hashes that stand where there is nothing to be hashed.
const NOT_MEASURED: &[u8] = b"not measured";
const NOT_SIGNED: &[u8] = b"not signed";

const SHA_256: &str = "sha-256";
const SHA_512: &str = "sha-512";

/// Of a COSE_Key (RFC 9053 7.1.1): its labels and what is said.
const KEY_TYPE: i8 = 1;
const KEY_TYPE_EC2: i8 = 2;
const KEY_ALGORITHM: i8 = 3;
const KEY_ALGORITHM_ES384: i8 = -35;
const KEY_CURVE: i8 = -1;
const KEY_CURVE_P384: i8 = 2;
const KEY_X: i8 = -2;
const KEY_Y: i8 = -3;

/// Counts what is written to it.
struct Count(usize);

impl Write for Count {
    type Error = core::convert::Infallible;
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        self.0 += bytes.len();
        Ok(())
    }
}

/// Takes what is written to it into a hash.
struct Hashed(Sha256);

impl Write for Hashed {
    type Error = core::convert::Infallible;
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        self.0.update(bytes);
        Ok(())
    }
}

/// Bytes of what `write` writes.
macro_rules! length {
    ($write:expr) => {{
        let mut encoder = Encoder::new(Count(0));
        // It cannot fail.
        let _ = $write(&mut encoder);
        encoder.into_writer().0
    }};
}

/// Writes a token without signatures: how long it is, and where they belong.
///
/// # Errors
/// [`Full`].
pub fn write(into: &mut [u8], claims: &Claims<'_>, config: &Config) -> Result<(usize, Places), Full> {
    let own = Own::new(config)?;
    let mut encoder = Encoder::new(Cursor::new(into));
    both(&mut encoder, claims, &own).map(|places| (encoder.writer().position(), places)).map_err(|_| Full)
}

type Buffer<'b> = Encoder<Cursor<&'b mut [u8]>>;
type BufferError = Error<minicbor::encode::write::EndOfSlice>;

fn both(to: &mut Buffer<'_>, claims: &Claims<'_>, own: &Own) -> Result<Places, BufferError> {
    to.tag(Tag::new(TAG_TOKEN))?.map(2)?;
    let platform_len = length!(|to: &mut Encoder<Count>| platform(to, own));
    to.u32(PLATFORM)?.bytes_len(signed_len(platform_len) as u64)?;
    let platform = signed(to, platform_len, |to| platform(to, own))?;
    let realm_len = length!(|to: &mut Encoder<Count>| realm(to, claims));
    to.u32(REALM)?.bytes_len(signed_len(realm_len) as u64)?;
    let realm = signed(to, realm_len, |to| realm(to, claims))?;
    Ok(Places { platform, realm })
}

/// A COSE_Sign1 with a payload of that many bytes, but for both: what is before the payload.
fn head<W: Write>(to: &mut Encoder<W>, payload: usize) -> Result<(), Error<W::Error>> {
    to.tag(Tag::new(TAG_SIGN1))?.array(4)?.bytes(&PROTECTED)?.map(0)?.bytes_len(payload as u64)?.ok()
}

/// Bytes of a COSE_Sign1 with a payload of that many.
fn signed_len(payload: usize) -> usize {
    let head = length!(|to: &mut Encoder<Count>| head(to, payload));
    let signature = length!(|to: &mut Encoder<Count>| to.bytes(&[0; SIGNATURE]).map(drop));
    head + payload + signature
}

/// A COSE_Sign1 of `payload_len` bytes that `payload` writes, and zeroes for a signature.
fn signed<'b>(
    to: &mut Buffer<'b>,
    payload_len: usize,
    payload: impl FnOnce(&mut Buffer<'b>) -> Result<(), BufferError>,
) -> Result<Signed, BufferError> {
    head(to, payload_len)?;
    let start = to.writer().position();
    payload(to)?;
    to.bytes(&[0; SIGNATURE])?;
    Ok(Signed { payload: start, payload_len, signature: to.writer().position() - SIGNATURE })
}

/// The RAK, as a COSE_Key.
fn realm_key<W: Write>(to: &mut Encoder<W>) -> Result<(), Error<W::Error>> {
    let key = Key::Realm.public();
    to.map(5)?.i8(KEY_TYPE)?.i8(KEY_TYPE_EC2)?.i8(KEY_ALGORITHM)?.i8(KEY_ALGORITHM_ES384)?;
    to.i8(KEY_CURVE)?.i8(KEY_CURVE_P384)?.i8(KEY_X)?.bytes(&key.x)?.i8(KEY_Y)?.bytes(&key.y)?.ok()
}

/// The claims of a realm.
fn realm<W: Write>(to: &mut Encoder<W>, claims: &Claims<'_>) -> Result<(), Error<W::Error>> {
    let (hash, len) = match claims.algorithm {
        RmiHashAlgorithm::Sha256 => (SHA_256, 32),
        RmiHashAlgorithm::Sha512 => (SHA_512, 64),
    };
    let [initial, extensible @ ..] = claims.measurements;
    to.map(8)?.u32(CHALLENGE)?.bytes(claims.challenge)?.u32(PROFILE)?.str(REALM_PROFILE)?;
    to.u32(REALM_PERSONALIZATION)?.bytes(claims.personalization)?.u32(REALM_HASH)?.str(hash)?;
    to.u32(REALM_KEY)?.bytes_len(length!(realm_key) as u64)?;
    realm_key(to)?;
    to.u32(REALM_INITIAL)?.bytes(&initial[..len])?;
    to.u32(REALM_EXTENSIBLE)?.array(extensible.len() as u64)?;
    for measurement in extensible {
        to.bytes(&measurement[..len])?;
    }
    to.u32(REALM_KEY_HASH)?.str(SHA_256)?.ok()
}

/// What the platform's claims have that is no constant.
struct Own {
    /// Of the RAK, as the realm's claims have it.
    realm_key: [u8; 32],
    /// A random UEID in form (A7.2.3.2.4), and as elsewhere the hash of the platform's public key.
    instance: [u8; 33],
    not_measured: [u8; 32],
    not_signed: [u8; 32],
    config: ArrayString<CONFIG_ROOM>,
}

impl Own {
    fn new(config: &Config) -> Result<Self, Full> {
        let mut text = ArrayString::new();
        fmt::write(&mut text, format_args!("{config}")).map_err(|_| Full)?;
        let mut key = Encoder::new(Hashed(Sha256::new()));
        // It cannot fail.
        let _ = realm_key(&mut key);
        let mut instance = [0; 33];
        instance[0] = 1;
        let own = Key::Platform.public();
        let hash = Sha256::new().chain_update([4]).chain_update(own.x).chain_update(own.y).finalize();
        instance[1..].copy_from_slice(&hash);
        Ok(Self {
            realm_key: key.into_writer().0.finalize().into(),
            instance,
            not_measured: Sha256::digest(NOT_MEASURED).into(),
            not_signed: Sha256::digest(NOT_SIGNED).into(),
            config: text,
        })
    }
}

/// The claims of the platform: that it is none.
fn platform<W: Write>(to: &mut Encoder<W>, own: &Own) -> Result<(), Error<W::Error>> {
    to.map(9)?.u32(CHALLENGE)?.bytes(&own.realm_key)?.u32(PLATFORM_INSTANCE)?.bytes(&own.instance)?;
    to.u32(PROFILE)?.str(PLATFORM_PROFILE)?.u32(PLATFORM_LIFECYCLE)?.u32(LIFECYCLE)?;
    to.u32(PLATFORM_IMPLEMENTATION)?.bytes(IMPLEMENTATION)?;
    to.u32(PLATFORM_COMPONENTS)?.array(COMPONENTS.len() as u64)?;
    for name in COMPONENTS {
        to.map(5)?.u8(COMPONENT_TYPE)?.str(name)?;
        to.u8(COMPONENT_MEASUREMENT)?.bytes(&own.not_measured)?;
        to.u8(COMPONENT_VERSION)?.str(env!("CARGO_PKG_VERSION"))?;
        to.u8(COMPONENT_SIGNER)?.bytes(&own.not_signed)?;
        to.u8(COMPONENT_HASH)?.str(SHA_256)?;
    }
    to.u32(PLATFORM_VERIFICATION)?.str(VERIFICATION)?;
    to.u32(PLATFORM_CONFIG)?.bytes(own.config.as_bytes())?;
    to.u32(PLATFORM_HASH)?.str(SHA_256)?.ok()
}
