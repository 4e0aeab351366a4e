//! A CCA attestation token: verified and shown.
//!
//! Invariant: written from the specification alone (DEN0137 1.0-rel0 A7.2.3, whose profiles are those of draft-ffm-rats-cca-token-00; RFC 9052), on other
//! crates than the one that makes tokens here: so neither can hide a mistake of the other. Who trusts what is verified trusts the platform's key, and
//! the one that is known here is a test key that everybody has. Tokens of later drafts and of RMM 2.0 have another form, and are refused by name.

use std::{
    fmt, fs,
    io::{self, Write},
    path::PathBuf,
};

use anyhow::{Context, Result};
use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use ciborium::Value;
use clap::Args;
use coset::{CborSerializable, CoseKey, CoseSign1, Label, TaggedCborSerializable, iana};
use p384::ecdsa::{Signature, VerifyingKey, signature::Verifier};
use sha2::{Digest, Sha256, Sha384, Sha512};

/// The public key by which Cloven's stand-in for a platform signs: the point, uncompressed (SEC 1).
const TEST_KEY: &str = "04de3b4f4e5e73182ecc227fb87419753c574701278e6268226c81d875c3588f640cdb4b8fb78c16a74460f7c9703967537ff9309204cd437a91a676ba54054a0b33b040147b1272b880e2fb098e22f16bab467dd3e296fe612c444a6a584dc24b";

/// cca-token-collection, and its keys.
const TAG_TOKEN: u64 = 399;
/// What later drafts, and RMM 2.0, have in its place: its parts are wrapped once more, and have other profiles.
const TAG_LATER: u64 = 907;
const PLATFORM: i128 = 44234;
const REALM: i128 = 44241;
const REALM_PROFILE: &str = "tag:arm.com,2023:realm#1.0.0";
const PLATFORM_PROFILE: &str = "tag:arm.com,2023:cca_platform#1.0.0";

/// A part of a token that has a signature.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Part {
    /// The platform's.
    Platform,
    /// The realm's.
    Realm,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Platform => "platform token",
            Self::Realm => "realm token",
        })
    }
}

/// What is wrong with a token.
#[derive(Debug, Eq, PartialEq)]
pub enum TokenError {
    /// It is neither CBOR nor base64 or hexadecimal digits of it.
    NotCbor(String),
    /// It is no tagged map of two signed parts.
    Collection(String),
    /// A part is no COSE_Sign1.
    Envelope(Part, String),
    /// A part is signed in another way than ES384.
    Algorithm(Part, String),
    /// A part's signature is not its key's.
    Signature(Part),
    /// A part's claims are no map.
    Claims(Part, String),
    /// A claim is not there.
    Missing(Part, &'static str),
    /// A claim is there twice.
    Twice(Part, &'static str),
    /// A claim is not what it has to be.
    Claim(Part, &'static str, String),
    /// A key is none.
    Key(String),
    /// The platform's token was not made for the key of this realm's token.
    Binding {
        /// The hash of the realm's key.
        key: String,
        /// The platform's challenge.
        challenge: String,
    },
    /// It is of another realm.
    Rim {
        /// What it says.
        said: String,
        /// What it should say.
        expected: String,
    },
    /// It answers another challenge.
    Challenge {
        /// What it says.
        said: String,
        /// What it should say.
        expected: String,
    },
}

impl std::error::Error for TokenError {}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotCbor(why) => write!(f, "it is no CBOR: {why}"),
            Self::Collection(why) => write!(f, "it is no CCA token: {why}"),
            Self::Envelope(part, why) => write!(f, "the {part} is no COSE_Sign1: {why}"),
            Self::Algorithm(part, found) => write!(f, "the {part} is signed with {found}, not with ES384"),
            Self::Signature(Part::Platform) => {
                write!(f, "the signature of the platform token is not that of the platform's key")
            }
            Self::Signature(Part::Realm) => {
                write!(f, "the signature of the realm token is not that of the key that it names")
            }
            Self::Claims(part, why) => write!(f, "the claims of the {part} are no map: {why}"),
            Self::Missing(part, name) => write!(f, "the {part} has no claim {name}"),
            Self::Twice(part, name) => write!(f, "the {part} has the claim {name} twice"),
            Self::Claim(part, name, why) => write!(f, "the claim {name} of the {part} {why}"),
            Self::Key(why) => write!(f, "the key is none: {why}"),
            Self::Binding { key, challenge } => write!(
                f,
                "the platform token is not for this realm token: the platform's challenge is {challenge}, the hash of the realm's key {key}"
            ),
            Self::Rim { said, expected } => write!(f, "the RIM is {said}, and should be {expected}"),
            Self::Challenge { said, expected } => {
                write!(f, "it answers the challenge {said}, and should answer {expected}")
            }
        }
    }
}

/// A hash that has a name (IANA Hash Function Textual Names).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    fn of(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha256 => Sha256::digest(bytes).to_vec(),
            Self::Sha384 => Sha384::digest(bytes).to_vec(),
            Self::Sha512 => Sha512::digest(bytes).to_vec(),
        }
    }

    fn len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
            Self::Sha512 => 64,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha-256",
            Self::Sha384 => "sha-384",
            Self::Sha512 => "sha-512",
        }
    }
}

/// What the realm's token says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RealmClaims {
    challenge: Vec<u8>,
    personalization: Vec<u8>,
    hash: Hash,
    initial: Vec<u8>,
    extensible: Vec<Vec<u8>>,
    /// The COSE_Key that has signed it.
    key: Vec<u8>,
    key_hash: Hash,
}

/// A piece of software, of which the platform's token says something.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Component {
    name: Option<String>,
    measurement: Vec<u8>,
    version: Option<String>,
    signer: Vec<u8>,
    hash: Option<String>,
}

/// What the platform's token says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PlatformClaims {
    challenge: Vec<u8>,
    implementation: Vec<u8>,
    instance: Vec<u8>,
    config: Vec<u8>,
    lifecycle: u16,
    components: Vec<Component>,
    verification: Option<String>,
    hash: String,
}

/// All that a token says, which is verified.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Claims {
    /// Of the realm.
    pub realm: RealmClaims,
    /// Of the platform.
    pub platform: PlatformClaims,
    /// Bytes of the token.
    pub size: usize,
}

impl Claims {
    /// The RIM, in digits.
    pub fn rim(&self) -> String {
        hex(&self.realm.initial)
    }
}

/// What a token is expected to say; nothing is expected of what is not given.
#[derive(Clone, Copy, Debug, Default)]
pub struct Expected<'a> {
    /// The RIM in hexadecimal digits; zeroes above a hash of 256 bits may be there or not.
    pub rim: Option<&'a str>,
    /// The challenge, with zeroes up to 64 bytes or not.
    pub challenge: Option<&'a [u8]>,
    /// The platform's key as an uncompressed point in hexadecimal digits, in place of the test key.
    pub key: Option<&'a str>,
}

/// Verifies a token: both signatures, that the platform's part is for the realm's, every claim's form, and what is expected.
///
/// # Errors
/// [`TokenError`]: the first thing that is wrong, in the order in which trust goes: the platform's part, the realm's, what binds them, what is expected.
pub fn verify(token: &[u8], expected: Expected<'_>) -> Result<Claims, TokenError> {
    let (platform, realm) = parts(token)?;
    let key = digits(expected.key.unwrap_or(TEST_KEY)).ok_or_else(|| TokenError::Key("no digits".into()))?;
    let key = VerifyingKey::from_sec1_bytes(&key).map_err(|_| TokenError::Key("no point of P-384".into()))?;
    let payload = opened(&platform, Part::Platform, |_| Ok(key))?;
    let platform = platform_claims(&Map::read(&payload, Part::Platform)?)?;
    let payload = opened(&realm, Part::Realm, |payload| {
        named_key(Map::read(payload, Part::Realm)?.bytes(44237, "realm public key")?)
    })?;
    let realm = realm_claims(&Map::read(&payload, Part::Realm)?)?;
    let key = realm.key_hash.of(&realm.key);
    if key != platform.challenge {
        return Err(TokenError::Binding { key: hex(&key), challenge: hex(&platform.challenge) });
    }
    if let Some(expected) = expected.rim {
        let expected = expected.to_ascii_lowercase();
        let said = hex(&realm.initial);
        if format!("{said:0<128}") != format!("{expected:0<128}") {
            return Err(TokenError::Rim { said, expected });
        }
    }
    if let Some(expected) = expected.challenge {
        let mut padded = expected.to_vec();
        padded.resize(padded.len().max(64), 0);
        if realm.challenge != padded {
            return Err(TokenError::Challenge { said: hex(&realm.challenge), expected: hex(&padded) });
        }
    }
    Ok(Claims { realm, platform, size: token.len() })
}

/// The platform's part and the realm's.
fn parts(token: &[u8]) -> Result<(Vec<u8>, Vec<u8>), TokenError> {
    let wrong = |why: &str| TokenError::Collection(why.to_owned());
    let map = match decode(token).map_err(TokenError::NotCbor)? {
        Value::Tag(TAG_TOKEN, map) => map,
        Value::Tag(TAG_LATER, _) => {
            return Err(wrong(
                "it has the tag 907, of RMM 2.0 and later drafts; what is verified here is that of RMM 1.0, with the tag 399",
            ));
        }
        _ => return Err(wrong("it has not the tag 399")),
    };
    let Value::Map(entries) = *map else { return Err(wrong("it is no map")) };
    let (mut platform, mut realm) = (None, None);
    for (key, value) in entries {
        let key = key.as_integer().map(i128::from);
        let slot = match key {
            Some(PLATFORM) => &mut platform,
            Some(REALM) => &mut realm,
            _ => return Err(wrong("it has more than a platform token and a realm token")),
        };
        let Value::Bytes(bytes) = value else { return Err(wrong("a part is no byte string")) };
        if slot.replace(bytes).is_some() {
            return Err(wrong("a part is there twice"));
        }
    }
    Ok((
        platform.ok_or_else(|| wrong("there is no platform token"))?,
        realm.ok_or_else(|| wrong("there is no realm token"))?,
    ))
}

/// One CBOR item, and nothing behind it.
fn decode(mut bytes: &[u8]) -> Result<Value, String> {
    let value = ciborium::from_reader(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.is_empty() { Ok(value) } else { Err(format!("{} bytes stand behind it", bytes.len())) }
}

/// The payload of a COSE_Sign1, signed by the key that `key` makes of it.
fn opened(
    bytes: &[u8],
    part: Part,
    key: impl FnOnce(&[u8]) -> Result<VerifyingKey, TokenError>,
) -> Result<Vec<u8>, TokenError> {
    let envelope = CoseSign1::from_tagged_slice(bytes);
    let envelope = envelope.map_err(|error| TokenError::Envelope(part, error.to_string()))?;
    let es384 = coset::RegisteredLabelWithPrivate::Assigned(iana::Algorithm::ES384);
    match &envelope.protected.header.alg {
        Some(algorithm) if *algorithm == es384 => {}
        Some(other) => return Err(TokenError::Algorithm(part, format!("{other:?}"))),
        None => return Err(TokenError::Algorithm(part, "nothing that it names".to_owned())),
    }
    // RFC 9052 3.1: who does not understand what is named there fails. Nothing is understood but the algorithm.
    if [&envelope.protected.header, &envelope.unprotected].iter().any(|header| !header.crit.is_empty()) {
        return Err(TokenError::Envelope(part, "it names headers that have to be understood".to_owned()));
    }
    let Some(payload) = &envelope.payload else {
        return Err(TokenError::Envelope(part, "it has no payload".to_owned()));
    };
    let key = key(payload)?;
    envelope.verify_signature(&[], |signature, signed| {
        let signature = Signature::from_slice(signature).map_err(|_| TokenError::Signature(part))?;
        key.verify(signed, &signature).map_err(|_| TokenError::Signature(part))
    })?;
    Ok(payload.clone())
}

/// The key that a COSE_Key says.
fn named_key(bytes: &[u8]) -> Result<VerifyingKey, TokenError> {
    let wrong = |why: &str| TokenError::Claim(Part::Realm, "realm public key", why.to_owned());
    let key = CoseKey::from_slice(bytes).map_err(|error| wrong(&format!("is no COSE_Key: {error}")))?;
    let param = |label: iana::Ec2KeyParameter| {
        use iana::EnumI64;
        let label = Label::Int(label.to_i64());
        key.params.iter().find(|(found, _)| *found == label).map(|(_, value)| value)
    };
    if key.kty != coset::KeyType::Assigned(iana::KeyType::EC2) {
        return Err(wrong("is not of an elliptic curve with two coordinates"));
    }
    let es384 = coset::RegisteredLabelWithPrivate::Assigned(iana::Algorithm::ES384);
    if key.alg.as_ref().is_some_and(|algorithm| *algorithm != es384) {
        return Err(wrong("is for another algorithm than ES384"));
    }
    if param(iana::Ec2KeyParameter::Crv).and_then(Value::as_integer) != Some(2.into()) {
        return Err(wrong("is not of the curve P-384"));
    }
    let coordinate = |label| {
        param(label)
            .and_then(Value::as_bytes)
            .filter(|bytes| bytes.len() == 48)
            .ok_or_else(|| wrong("has not two coordinates of 48 bytes"))
    };
    let (x, y) = (coordinate(iana::Ec2KeyParameter::X)?, coordinate(iana::Ec2KeyParameter::Y)?);
    let point = [&[4], &x[..], &y[..]].concat();
    VerifyingKey::from_sec1_bytes(&point).map_err(|_| wrong("is no point of the curve"))
}

/// The claims of a part.
struct Map {
    part: Part,
    entries: Vec<(i128, Value)>,
}

impl Map {
    fn read(payload: &[u8], part: Part) -> Result<Self, TokenError> {
        let wrong = |why: &str| TokenError::Claims(part, why.to_owned());
        let Value::Map(entries) = decode(payload).map_err(|error| wrong(&error))? else {
            return Err(wrong("they are something else"));
        };
        Self::of(entries, part)
    }

    /// Claims with other keys than numbers are nobody's here, and passed over, as EAT has it (RFC 9711 4).
    fn of(entries: Vec<(Value, Value)>, part: Part) -> Result<Self, TokenError> {
        let number = |(key, value): (Value, Value)| key.as_integer().map(|key| (i128::from(key), value));
        Ok(Self { part, entries: entries.into_iter().filter_map(number).collect() })
    }

    fn find(&self, key: i128, name: &'static str) -> Result<Option<&Value>, TokenError> {
        let mut found = self.entries.iter().filter(|(found, _)| *found == key).map(|(_, value)| value);
        let first = found.next();
        if found.next().is_some() { Err(TokenError::Twice(self.part, name)) } else { Ok(first) }
    }

    fn get(&self, key: i128, name: &'static str) -> Result<&Value, TokenError> {
        self.find(key, name)?.ok_or(TokenError::Missing(self.part, name))
    }

    fn wrong(&self, name: &'static str, why: impl Into<String>) -> TokenError {
        TokenError::Claim(self.part, name, why.into())
    }

    fn bytes(&self, key: i128, name: &'static str) -> Result<&[u8], TokenError> {
        let value = self.get(key, name)?;
        value.as_bytes().map(Vec::as_slice).ok_or_else(|| self.wrong(name, "is no byte string"))
    }

    fn bytes_of(&self, key: i128, name: &'static str, len: usize) -> Result<Vec<u8>, TokenError> {
        let bytes = self.bytes(key, name)?;
        match bytes.len() {
            found if found == len => Ok(bytes.to_vec()),
            found => Err(self.wrong(name, format!("has {found} bytes, not {len}"))),
        }
    }

    /// The bytes of a hash, whichever.
    fn hash_bytes(&self, key: i128, name: &'static str) -> Result<Vec<u8>, TokenError> {
        let bytes = self.bytes(key, name)?;
        match bytes.len() {
            32 | 48 | 64 => Ok(bytes.to_vec()),
            found => Err(self.wrong(name, format!("has {found} bytes, which no hash has"))),
        }
    }

    fn text(&self, key: i128, name: &'static str) -> Result<String, TokenError> {
        self.maybe_text(key, name)?.ok_or(TokenError::Missing(self.part, name))
    }

    fn maybe_text(&self, key: i128, name: &'static str) -> Result<Option<String>, TokenError> {
        let Some(value) = self.find(key, name)? else { return Ok(None) };
        let text = value.as_text().ok_or_else(|| self.wrong(name, "is no text"))?;
        Ok(Some(text.to_owned()))
    }

    fn profile(&self, expected: &str) -> Result<(), TokenError> {
        let found = self.text(265, "profile")?;
        if found == expected { Ok(()) } else { Err(self.wrong("profile", format!("is {found:?}"))) }
    }

    fn hash(&self, key: i128, name: &'static str) -> Result<Hash, TokenError> {
        match self.text(key, name)?.as_str() {
            "sha-256" => Ok(Hash::Sha256),
            "sha-384" => Ok(Hash::Sha384),
            "sha-512" => Ok(Hash::Sha512),
            other => Err(self.wrong(name, format!("is {other:?}, which is not known here"))),
        }
    }
}

/// A7.2.3.1.
fn realm_claims(map: &Map) -> Result<RealmClaims, TokenError> {
    // It is optional: then the platform's profile describes both.
    if map.find(265, "profile")?.is_some() {
        map.profile(REALM_PROFILE)?;
    }
    let hash = map.hash(44236, "realm hash algorithm")?;
    let name = "realm extensible measurements";
    let Some(measurements) = map.get(44239, name)?.as_array() else {
        return Err(map.wrong(name, "is no list"));
    };
    let extensible: Option<Vec<_>> = measurements
        .iter()
        .map(|value| value.as_bytes().filter(|bytes| bytes.len() == hash.len()).cloned())
        .collect();
    let extensible = extensible.filter(|all| all.len() == 4);
    let extensible =
        extensible.ok_or_else(|| map.wrong(name, format!("is no list of four values of {}", hash.name())))?;
    Ok(RealmClaims {
        challenge: map.bytes_of(10, "realm challenge", 64)?,
        personalization: map.bytes_of(44235, "realm personalization value", 64)?,
        hash,
        initial: map.bytes_of(44238, "realm initial measurement", hash.len())?,
        extensible,
        key: map.bytes(44237, "realm public key")?.to_vec(),
        key_hash: map.hash(44240, "realm public key hash algorithm")?,
    })
}

/// A7.2.3.2.
fn platform_claims(map: &Map) -> Result<PlatformClaims, TokenError> {
    map.profile(PLATFORM_PROFILE)?;
    let instance = map.bytes_of(256, "instance ID", 33)?;
    if instance[0] != 1 {
        return Err(map.wrong("instance ID", format!("begins with {:#04x}, not with 0x01", instance[0])));
    }
    let lifecycle = map.get(2395, "lifecycle")?.as_integer().map(i128::from);
    let lifecycle = lifecycle.and_then(|value| u16::try_from(value).ok());
    let lifecycle = lifecycle.ok_or_else(|| map.wrong("lifecycle", "is no number of 16 bits"))?;
    let name = "software components";
    let Some(found) = map.get(2399, name)?.as_array().filter(|found| !found.is_empty()) else {
        return Err(map.wrong(name, "is no list of one or more"));
    };
    let mut components = Vec::new();
    for component in found {
        let Value::Map(entries) = component else { return Err(map.wrong(name, "is no list of maps")) };
        let one = Map::of(entries.clone(), map.part)?;
        components.push(Component {
            name: one.maybe_text(1, "component type")?,
            measurement: one.hash_bytes(2, "component measurement")?,
            version: one.maybe_text(4, "component version")?,
            signer: one.hash_bytes(5, "component signer")?,
            hash: one.maybe_text(6, "component hash algorithm")?,
        });
    }
    Ok(PlatformClaims {
        challenge: map.hash_bytes(10, "platform challenge")?,
        implementation: map.bytes_of(2396, "implementation ID", 32)?,
        instance,
        config: map.bytes(2401, "config")?.to_vec(),
        lifecycle,
        components,
        verification: map.maybe_text(2400, "verification service")?,
        hash: map.text(2402, "platform hash algorithm")?,
    })
}

/// What the bits 15:8 of a lifecycle say (A7.2.3.2.6).
fn lifecycle_name(lifecycle: u16) -> &'static str {
    match lifecycle >> 8 {
        0x00 => "unknown",
        0x10 => "assembly and test",
        0x20 => "provisioning",
        0x30 => "secured",
        0x40 => "debug, but not of the platform's root of trust",
        0x50 => "recoverable debug of the platform's root of trust",
        0x60 => "decommissioned",
        _ => "none that the specification has",
    }
}

/// Bytes in hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes as text where they are some, and in digits.
fn shown(bytes: &[u8]) -> String {
    let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    let text = std::str::from_utf8(&bytes[..end]).ok();
    match text.filter(|text| !text.is_empty() && text.chars().all(|c| (' '..='~').contains(&c))) {
        Some(text) => format!("{} ({text:?})", hex(bytes)),
        None => hex(bytes),
    }
}

impl fmt::Display for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { realm, platform, size } = self;
        writeln!(
            f,
            "CCA token, {size} bytes: both signatures are right, and the platform token is for this realm token"
        )?;
        writeln!(f, "realm")?;
        writeln!(f, "  challenge              {}", shown(&realm.challenge))?;
        writeln!(f, "  personalization value  {}", shown(&realm.personalization))?;
        writeln!(f, "  initial measurement    {} ({})", hex(&realm.initial), realm.hash.name())?;
        for (number, measurement) in realm.extensible.iter().enumerate() {
            writeln!(f, "  measurement {}          {}", number + 1, hex(measurement))?;
        }
        writeln!(
            f,
            "  key                    {} of it: {}",
            realm.key_hash.name(),
            hex(&platform.challenge)
        )?;
        writeln!(f, "platform")?;
        writeln!(f, "  implementation         {}", shown(&platform.implementation))?;
        writeln!(f, "  instance               {}", hex(&platform.instance))?;
        writeln!(f, "  config                 {}", shown(&platform.config))?;
        writeln!(
            f,
            "  lifecycle              {:#06x}: {}",
            platform.lifecycle,
            lifecycle_name(platform.lifecycle)
        )?;
        writeln!(f, "  hash algorithm         {}", platform.hash)?;
        if let Some(verification) = &platform.verification {
            writeln!(f, "  verification service   {verification}")?;
        }
        for component in &platform.components {
            let Component { name, measurement, version, signer, hash } = component;
            let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
            writeln!(f, "  component              {}, version {}", or_none(name), or_none(version))?;
            writeln!(f, "    measurement          {} ({})", hex(measurement), or_none(hash))?;
            writeln!(f, "    signer               {}", hex(signer))?;
        }
        Ok(())
    }
}

/// The bytes of hexadecimal digits.
fn digits(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

/// The bytes of base64, in either alphabet, with `=` or without (RFC 4648 4 and 5).
fn base64(text: &str) -> Option<Vec<u8>> {
    const EITHER: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    let text = text.replace('-', "+").replace('_', "/");
    GeneralPurpose::new(&STANDARD, EITHER).decode(text).ok()
}

/// The bytes that were written as hexadecimal digits or in base64: a word of a line, or a file of it.
pub fn from_text(text: &str) -> Option<Vec<u8>> {
    let word: String = text.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    digits(&word).or_else(|| base64(&word)).filter(|bytes| !bytes.is_empty())
}

/// The token in a file: as it is, or as text.
fn from_file(content: Vec<u8>) -> Result<Vec<u8>, TokenError> {
    // The tag 399 begins with a byte that no text has.
    if content.first() == Some(&0xd9) {
        return Ok(content);
    }
    let text = String::from_utf8(content).ok().and_then(|text| from_text(&text));
    text.ok_or_else(|| TokenError::NotCbor("nor base64 or hexadecimal digits of it".to_owned()))
}

/// `cargo xtask token`.
#[derive(Args)]
pub struct TokenArgs {
    /// A token: its bytes, or those in base64 or hexadecimal digits
    file: PathBuf,
    /// The RIM that it must have
    #[arg(long, value_name = "DIGITS")]
    rim: Option<String>,
    /// The challenge that it must answer, in base64 or hexadecimal digits
    #[arg(long, value_name = "BYTES")]
    challenge: Option<String>,
    /// The platform's public key, an uncompressed point of P-384 in hexadecimal digits, in place of Cloven's test key
    #[arg(long, value_name = "DIGITS")]
    key: Option<String>,
}

/// Verifies and prints; returns whether it is right.
pub fn run(args: &TokenArgs) -> Result<bool> {
    let content = fs::read(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    let challenge = args
        .challenge
        .as_deref()
        .map(|text| from_text(text).context("the challenge is neither base64 nor hexadecimal digits"))
        .transpose()?;
    let expected =
        Expected { rim: args.rim.as_deref(), challenge: challenge.as_deref(), key: args.key.as_deref() };
    match from_file(content).and_then(|token| verify(&token, expected)) {
        Ok(claims) => {
            let note = match args.key {
                Some(_) => "",
                None => {
                    "the platform's key is Cloven's test key, which everybody has: this proves nothing but that the token is well made\n"
                }
            };
            // Who reads the first lines of it, and no more, has what he wants.
            let _ = write!(io::stdout(), "{claims}{note}");
            Ok(true)
        }
        Err(error) => {
            eprintln!("the token is not valid: {error}");
            Ok(false)
        }
    }
}

#[cfg(test)]
pub mod tests;
