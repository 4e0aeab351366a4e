//! Tokens that are right, and tokens of which one thing is not.

use ciborium::cbor;
use coset::{CoseKeyBuilder, CoseSign1Builder, HeaderBuilder};
use p384::ecdsa::{SigningKey, signature::Signer};

use super::*;

/// A token that a realm of this project printed, and what it was asked for.
const SAMPLE: &str = include_str!("sample.hex");
const SAMPLE_RIM: &str = "30b0f2aad6c3b8d6335d09f8f342d8bcbfa69fac2a29b536382f06451a0f4432";

/// Claims by their numbers, and what stands in their place: nothing, if there is none.
type Changes = Vec<(i64, Option<Value>)>;

/// How a token is made: that of the tests, but for what is changed.
pub struct Recipe {
    rim: Vec<u8>,
    challenge: Vec<u8>,
    realm_signer: SigningKey,
    named: SigningKey,
    platform_signer: SigningKey,
    bound: Option<Vec<u8>>,
    algorithm: iana::Algorithm,
    /// What the realm's key says that it is for.
    key_algorithm: Option<iana::Algorithm>,
    /// Claims that stand in place of those with their number, or none.
    realm: Changes,
    platform: Changes,
}

/// The private key whose hash's text this is, as `rmm-shim` has its keys.
fn key(seed: &str) -> SigningKey {
    SigningKey::from_slice(&Sha384::digest(seed)).unwrap()
}

impl Recipe {
    /// Of a realm with this RIM that was asked this.
    pub fn new(rim: Vec<u8>, challenge: Vec<u8>) -> Self {
        Self {
            rim,
            challenge,
            realm_signer: key("some realm key"),
            named: key("some realm key"),
            platform_signer: key("Cloven test key: initial attestation key"),
            bound: None,
            algorithm: iana::Algorithm::ES384,
            key_algorithm: None,
            realm: Vec::new(),
            platform: Vec::new(),
        }
    }

    /// The token.
    pub fn make(self) -> Vec<u8> {
        let point = self.named.verifying_key().to_sec1_point(false);
        let (x, y) = (point.x().unwrap().to_vec(), point.y().unwrap().to_vec());
        let realm_key = CoseKeyBuilder::new_ec2_pub_key(iana::EllipticCurve::P_384, x, y);
        let realm_key = match self.key_algorithm {
            Some(algorithm) => realm_key.algorithm(algorithm),
            None => realm_key,
        };
        let realm_key = realm_key.build().to_vec().unwrap();
        let bytes = |bytes: &[u8]| Value::Bytes(bytes.to_vec());
        let rem = bytes(&vec![7; self.rim.len()]);
        let hash = if self.rim.len() == 32 { "sha-256" } else { "sha-512" };
        let realm = cbor!({
            10 => bytes(&self.challenge),
            265 => REALM_PROFILE,
            44235 => bytes(&[3; 64]),
            44236 => hash,
            44237 => bytes(&realm_key),
            44238 => bytes(&self.rim),
            44239 => [rem, rem, rem, rem],
            44240 => "sha-384",
        });
        let bound = self.bound.unwrap_or_else(|| Sha384::digest(&realm_key).to_vec());
        let mut instance = [9; 33];
        instance[0] = 1;
        let platform = cbor!({
            10 => bytes(&bound),
            256 => bytes(&instance),
            265 => PLATFORM_PROFILE,
            2395 => 0x3000,
            2396 => bytes(&[5; 32]),
            2399 => [{ 2 => bytes(&[1; 32]), 5 => bytes(&[2; 64]) }],
            2401 => bytes(&[]),
            2402 => "sha-256",
        });
        let platform =
            signed(changed(platform.unwrap(), self.platform), &self.platform_signer, self.algorithm);
        let realm = signed(changed(realm.unwrap(), self.realm), &self.realm_signer, self.algorithm);
        collection(399, vec![(44234, platform), (44241, realm)])
    }

    fn error(self) -> TokenError {
        verify(&self.make(), Expected::default()).unwrap_err()
    }
}

fn changed(claims: Value, changes: Changes) -> Value {
    let Value::Map(mut entries) = claims else { unreachable!() };
    for (key, value) in changes {
        let key = Value::from(key);
        let at = entries.iter().position(|(found, _)| *found == key);
        match (at, value) {
            (Some(at), Some(value)) => entries[at].1 = value,
            (Some(at), None) => drop(entries.remove(at)),
            (None, Some(value)) => entries.push((key, value)),
            (None, None) => unreachable!(),
        }
    }
    Value::Map(entries)
}

fn encoded(value: &Value) -> Vec<u8> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).unwrap();
    bytes
}

fn signed(claims: Value, key: &SigningKey, algorithm: iana::Algorithm) -> Vec<u8> {
    CoseSign1Builder::new()
        .protected(HeaderBuilder::new().algorithm(algorithm).build())
        .payload(encoded(&claims))
        .create_signature(&[], |bytes| {
            let signature: Signature = key.sign(bytes);
            signature.to_bytes().to_vec()
        })
        .build()
        .to_tagged_vec()
        .unwrap()
}

fn collection(tag: u64, parts: Vec<(i64, Vec<u8>)>) -> Vec<u8> {
    let entries = parts.into_iter().map(|(key, part)| (Value::from(key), Value::Bytes(part)));
    encoded(&Value::Tag(tag, Box::new(Value::Map(entries.collect()))))
}

fn recipe() -> Recipe {
    Recipe::new(vec![6; 32], vec![4; 64])
}

fn sample() -> Vec<u8> {
    from_text(SAMPLE).unwrap()
}

#[test]
fn a_token_of_a_realm_that_ran_is_right() {
    let token = sample();
    let challenge = b"what the realm payload of Cloven asks to be answered, no";
    let claims = verify(&token, Expected { rim: Some(SAMPLE_RIM), ..Expected::default() }).unwrap();
    assert_eq!(claims.rim(), SAMPLE_RIM);
    assert!(claims.realm.challenge.starts_with(challenge));
    assert_eq!(claims.realm.hash, Hash::Sha256);
    assert_eq!(claims.platform.components.len(), 2);
    let shown = claims.to_string();
    for text in ["Cloven test keys: no platform", "assembly and test", "these are test keys", SAMPLE_RIM] {
        assert!(shown.contains(text), "{text}: {shown}");
    }
}

#[test]
fn a_token_of_another_maker_is_right() {
    for rim in [vec![6; 32], vec![6; 64]] {
        let token = Recipe::new(rim.clone(), vec![4; 64]).make();
        let (rim, challenge) = (hex(&rim), [4; 64]);
        let expected = Expected { rim: Some(&rim), challenge: Some(&challenge), key: None };
        assert_eq!(verify(&token, expected).unwrap().rim(), rim);
    }
    // A RIM of 256 bits may have its zeroes, and be in large digits; a shorter challenge is followed by zeroes.
    let mut challenge = vec![8; 40];
    challenge.resize(64, 0);
    let token = Recipe::new(vec![0xab; 32], challenge).make();
    let rim = format!("{}{}", "AB".repeat(32), "0".repeat(64));
    let expected = Expected { rim: Some(&rim), challenge: Some(&[8; 40]), key: None };
    verify(&token, expected).unwrap();
    // What nobody knows is passed over, and the realm's profile may be left out.
    let mut other = recipe();
    other.realm = vec![(265, None), (99999, Some(Value::from(1)))];
    verify(&other.make(), Expected::default()).unwrap();
}

#[test]
fn a_changed_bit_anywhere_is_noticed() {
    let token = sample();
    for at in 0..token.len() {
        let mut changed = token.clone();
        changed[at] ^= 1 << (at % 8);
        assert!(verify(&changed, Expected::default()).is_err(), "byte {at}");
    }
    for len in 0..token.len() {
        assert!(verify(&token[..len], Expected::default()).is_err(), "{len} bytes");
    }
    let longer = [&token[..], &[0]].concat();
    assert!(matches!(verify(&longer, Expected::default()), Err(TokenError::NotCbor(_))));
}

#[test]
fn an_error_says_whose_signature_it_is() {
    let token = sample();
    let places =
        |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|found| found == what).unwrap();
    // The last byte of all is one of the realm's signature; what stands before the realm's part is the platform's.
    let realm = places(&token, &[0x19, 0xac, 0xd1]);
    let flipped = |at: usize| {
        let mut changed = token.clone();
        changed[at] ^= 1;
        verify(&changed, Expected::default()).unwrap_err()
    };
    assert_eq!(flipped(token.len() - 1), TokenError::Signature(Part::Realm));
    assert_eq!(flipped(realm - 1), TokenError::Signature(Part::Platform));
    assert_eq!(flipped(places(&token, b"no platform")), TokenError::Signature(Part::Platform));
    assert_eq!(flipped(places(&token, b"what the realm")), TokenError::Signature(Part::Realm));
    let signer = |change: fn(&mut Recipe)| {
        let mut recipe = recipe();
        change(&mut recipe);
        recipe.error()
    };
    let error = signer(|recipe| recipe.platform_signer = key("somebody else"));
    assert_eq!(error, TokenError::Signature(Part::Platform));
    assert!(error.to_string().contains("platform's key"));
    assert_eq!(
        signer(|recipe| recipe.realm_signer = key("somebody else")),
        TokenError::Signature(Part::Realm)
    );
    // Another algorithm, even if the signature is right.
    let error = signer(|recipe| recipe.algorithm = iana::Algorithm::ES256);
    assert!(matches!(error, TokenError::Algorithm(Part::Platform, _)), "{error}");
}

#[test]
fn a_key_is_for_the_algorithm_that_it_names() {
    let of = |algorithm| {
        let mut recipe = recipe();
        recipe.key_algorithm = algorithm;
        verify(&recipe.make(), Expected::default())
    };
    for right in [None, Some(iana::Algorithm::ES384)] {
        of(right).unwrap();
    }
    for wrong in [iana::Algorithm::ES512, iana::Algorithm::ECDH_ES_A256KW, iana::Algorithm::EdDSA] {
        let error = of(Some(wrong)).unwrap_err();
        assert!(matches!(error, TokenError::Claim(Part::Realm, "realm public key", _)), "{error}");
        assert!(error.to_string().contains("another algorithm than ES384"), "{error}");
    }
}

#[test]
fn headers_that_have_to_be_understood_are_refused() {
    let (platform, realm) = parts(&recipe().make()).unwrap();
    let critical = HeaderBuilder::new()
        .algorithm(iana::Algorithm::ES384)
        .add_critical(iana::HeaderParameter::ContentType)
        .content_type("application/eat+cwt".to_owned())
        .build();
    let resigned = |part: &[u8], key: &SigningKey| {
        let payload = CoseSign1::from_tagged_slice(part).unwrap().payload.unwrap();
        let builder = CoseSign1Builder::new().protected(critical.clone()).payload(payload);
        let sign = |bytes: &[u8]| {
            let signature: Signature = key.sign(bytes);
            signature.to_bytes().to_vec()
        };
        builder.create_signature(&[], sign).build().to_tagged_vec().unwrap()
    };
    let of_platform = resigned(&platform, &key("Cloven test key: initial attestation key"));
    let of_realm = resigned(&realm, &key("some realm key"));
    for (part, parts) in [
        (Part::Platform, vec![(44234, of_platform), (44241, realm)]),
        (Part::Realm, vec![(44234, platform), (44241, of_realm)]),
    ] {
        let error = verify(&collection(399, parts), Expected::default()).unwrap_err();
        assert!(matches!(error, TokenError::Envelope(found, _) if found == part), "{error}");
        assert!(error.to_string().contains("have to be understood"), "{error}");
    }
}

#[test]
fn a_realm_token_by_a_key_that_the_platform_does_not_vouch_for_is_refused() {
    let mut recipe = recipe();
    recipe.bound = Some(vec![1; 48]);
    let error = recipe.error();
    assert!(matches!(error, TokenError::Binding { .. }), "{error}");
    // Parts of two tokens, both right: the same.
    let take = |token: &[u8]| parts(token).unwrap();
    let mixed = collection(399, vec![(44234, take(&sample()).0), (44241, take(&self::recipe().make()).1)]);
    let error = verify(&mixed, Expected::default()).unwrap_err();
    assert!(matches!(error, TokenError::Binding { .. }), "{error}");
    assert!(error.to_string().contains("not for this realm token"));
}

#[test]
fn another_realm_and_another_challenge_are_told() {
    let token = recipe().make();
    let rim = "06".repeat(31) + "07";
    let error = verify(&token, Expected { rim: Some(&rim), ..Expected::default() }).unwrap_err();
    assert_eq!(error, TokenError::Rim { said: "06".repeat(32), expected: rim });
    for challenge in [&[4; 63][..], &[4; 65], &[]] {
        let error = verify(&token, Expected { challenge: Some(challenge), ..Expected::default() });
        assert!(matches!(error, Err(TokenError::Challenge { .. })), "{challenge:?}");
    }
}

#[test]
fn the_platforms_key_may_be_another() {
    let mut recipe = recipe();
    recipe.platform_signer = key("another platform");
    let token = recipe.make();
    let point = hex(key("another platform").verifying_key().to_sec1_point(false).as_bytes());
    verify(&token, Expected { key: Some(&point), ..Expected::default() }).unwrap();
    for wrong in ["", "0", "zz", "04", &format!("05{}", &point[2..])] {
        let error = verify(&token, Expected { key: Some(wrong), ..Expected::default() });
        assert!(matches!(error, Err(TokenError::Key(_))), "{wrong}");
    }
}

#[test]
fn claims_that_are_missing_or_wrong_are_named() {
    let bytes = |len: usize| Some(Value::Bytes(vec![1; len]));
    let text = |text: &str| Some(Value::from(text));
    let list = |count: usize, len: usize| Some(Value::Array(vec![Value::Bytes(vec![1; len]); count]));
    let names = |changes: fn(&mut Recipe) -> &mut Changes, key: i64, value: Option<Value>| {
        let mut recipe = recipe();
        changes(&mut recipe).push((key, value));
        recipe.error().to_string()
    };
    for (key, name, wrong) in [
        (10, "realm challenge", vec![bytes(32), text("no")]),
        (44235, "realm personalization value", vec![bytes(63)]),
        (44236, "realm hash algorithm", vec![text("sha-1"), bytes(3)]),
        (44237, "realm public key", vec![bytes(97), text("no")]),
        (44238, "realm initial measurement", vec![bytes(64), text("no")]),
        (44239, "realm extensible measurements", vec![list(3, 32), list(5, 32), list(4, 64), bytes(4)]),
        (44240, "realm public key hash algorithm", vec![text("md5")]),
    ] {
        let missing = names(|recipe| &mut recipe.realm, key, None);
        assert!(missing.contains("realm token has no claim") && missing.contains(name), "{missing}");
        for value in wrong {
            let error = names(|recipe| &mut recipe.realm, key, value);
            assert!(error.contains("realm token") && error.contains(name), "{error}");
        }
    }
    let profile = names(|recipe| &mut recipe.realm, 265, text("tag:arm.com,2024:realm#1.0.0"));
    assert!(profile.contains("profile"), "{profile}");
    let component = |entries: Value| Some(Value::Array(vec![entries]));
    for (key, name, wrong) in [
        (10, "platform challenge", vec![bytes(31)]),
        (256, "instance ID", vec![bytes(32), Some(Value::Bytes(vec![2; 33]))]),
        (265, "profile", vec![text(REALM_PROFILE)]),
        (2395, "lifecycle", vec![Some(Value::from(0x1_0000)), Some(Value::from(-1)), bytes(2)]),
        (2396, "implementation ID", vec![bytes(31)]),
        (2399, "component", vec![list(0, 0), list(1, 1), component(cbor!({ 2 => 1 }).unwrap())]),
        (2401, "config", vec![text("no")]),
        (2402, "platform hash algorithm", vec![bytes(1)]),
    ] {
        let missing = names(|recipe| &mut recipe.platform, key, None);
        assert!(missing.contains("platform token has no claim") && missing.contains(name), "{missing}");
        for value in wrong {
            let error = names(|recipe| &mut recipe.platform, key, value);
            assert!(error.contains("platform token") && error.contains(name), "{error}");
        }
    }
}

#[test]
fn what_is_no_collection_of_two_parts_is_refused() {
    let (platform, realm) = parts(&recipe().make()).unwrap();
    let error =
        |tag, parts: Vec<(i64, Vec<u8>)>| verify(&collection(tag, parts), Expected::default()).unwrap_err();
    let both = vec![(44234, platform.clone()), (44241, realm.clone())];
    for (tag, parts) in [
        (907, both.clone()),
        (399, vec![(44234, platform.clone())]),
        (399, vec![(44241, realm.clone())]),
        (399, [both.clone(), vec![(44242, vec![])]].concat()),
        (399, [both.clone(), vec![(44241, realm.clone())]].concat()),
        (399, vec![]),
    ] {
        assert!(matches!(error(tag, parts), TokenError::Collection(_)));
    }
    let later = error(907, both.clone()).to_string();
    assert!(later.contains("tag 907") && later.contains("RMM 2.0") && later.contains("399"), "{later}");
    let swapped = error(399, vec![(44234, realm.clone()), (44241, platform)]);
    assert_eq!(swapped, TokenError::Signature(Part::Platform));
    for no_envelope in [vec![], vec![0x01], encoded(&Value::Null)] {
        let error = error(399, vec![(44234, no_envelope), (44241, realm.clone())]);
        assert!(matches!(error, TokenError::Envelope(Part::Platform, _)), "{error}");
    }
    for other in [&b""[..], b"not a token", &[0xff; 40], &[0x00]] {
        assert!(verify(other, Expected::default()).is_err());
    }
}

#[test]
fn a_claim_that_is_there_twice_is_refused() {
    let (platform, realm) = parts(&recipe().make()).unwrap();
    let envelope = CoseSign1::from_tagged_slice(&realm).unwrap();
    let Value::Map(mut entries) = decode(&envelope.payload.unwrap()).unwrap() else { unreachable!() };
    entries.push((Value::from(44238), Value::Bytes(vec![0; 32])));
    let realm = signed(Value::Map(entries), &key("some realm key"), iana::Algorithm::ES384);
    let token = collection(399, vec![(44234, platform), (44241, realm)]);
    let error = verify(&token, Expected::default()).unwrap_err();
    assert_eq!(error, TokenError::Twice(Part::Realm, "realm initial measurement"));
}

#[test]
fn a_file_may_hold_bytes_or_digits_or_base64() {
    use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD, URL_SAFE_NO_PAD};
    let token = sample();
    let wrapped = STANDARD.encode(&token).as_bytes().chunks(76).collect::<Vec<_>>().join(&b"\n"[..]);
    for file in [
        token.clone(),
        SAMPLE.into(),
        SAMPLE.to_uppercase().into(),
        wrapped,
        STANDARD_NO_PAD.encode(&token).into(),
        URL_SAFE_NO_PAD.encode(&token).into(),
    ] {
        assert_eq!(from_file(file).unwrap(), token);
    }
    for none in [&b""[..], b"  ", b"%%", b"\xff\xff"] {
        assert!(matches!(from_file(none.to_vec()), Err(TokenError::NotCbor(_))), "{none:?}");
    }
}
