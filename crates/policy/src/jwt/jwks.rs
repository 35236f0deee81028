//! Key sets (RFC 7517): a document goes in, the keys that can verify signatures come out. Keys of other kinds are
//! left out, each with its reason; a set without any usable key is an error.

use super::fault::TokenFault;
use super::token::Parsed;
use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;

/// Large issuers publish about 10 KiB.
const MAX_DOCUMENT: usize = 256 * 1024;
/// Large issuers publish about ten keys.
const MAX_KEYS: usize = 100;
/// Of the signatures that a token without `kid` may cost, one in so many with keys that have one.
const OF_NAMED: u32 = 4;
/// Bytes of a modulus: the sizes that aws-lc verifies with (2048 to 8192 bits).
const MODULUS: std::ops::RangeInclusive<usize> = 256..=1024;

const RSA: &[Algorithm] = &[
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
];
const P256: &[Algorithm] = &[Algorithm::ES256];
const P384: &[Algorithm] = &[Algorithm::ES384];
const ED25519: &[Algorithm] = &[Algorithm::EdDSA];

/// The algorithm of this name, if a token may use it at all.
pub(super) fn algorithm(name: &str) -> Option<Algorithm> {
    [RSA, P256, P384, ED25519].into_iter().flatten().copied().find(|one| name_of(*one) == name)
}

fn name_of(algorithm: Algorithm) -> &'static str {
    match algorithm {
        Algorithm::RS256 => "RS256",
        Algorithm::RS384 => "RS384",
        Algorithm::RS512 => "RS512",
        Algorithm::PS256 => "PS256",
        Algorithm::PS384 => "PS384",
        Algorithm::PS512 => "PS512",
        Algorithm::ES256 => "ES256",
        Algorithm::ES384 => "ES384",
        Algorithm::EdDSA => "EdDSA",
        _ => "",
    }
}

/// Why a document is no key set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JwksError {
    /// Longer than any issuer's.
    #[error("the key set has more than {MAX_DOCUMENT} bytes")]
    TooLong,
    /// Not JSON, or without `keys`.
    #[error("the key set is no JSON object with a list `keys`: {0}")]
    NotAKeySet(String),
    /// More keys than any issuer's.
    #[error("the key set has more than {MAX_KEYS} keys")]
    TooManyKeys,
    /// Nothing that a signature could be verified with.
    #[error("the key set has no key that can verify a signature{0}")]
    NoUsableKey(String),
}

/// What the tokens of a request cost.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cost {
    /// Signatures that each token may cost.
    pub(super) tries: u32,
    /// Signatures that were looked at.
    pub(super) signatures: u32,
    /// For one of them there were more keys than it might try.
    pub(super) is_untried: bool,
}

/// A key that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnusableKey {
    /// Its place in `keys`, from 0.
    pub index: usize,
    /// Why.
    pub problem: String,
}

/// A key set, ready for verification.
#[derive(Debug, Clone)]
pub struct Jwks {
    keys: Vec<Key>,
    unusable: Vec<UnusableKey>,
    fingerprint: [u8; 32],
}

#[derive(Debug, Clone)]
struct Key {
    id: Option<Box<str>>,
    /// What it may be used with, whatever a token says.
    algorithms: &'static [Algorithm],
    key: DecodingKey,
}

#[derive(Deserialize)]
struct Document {
    keys: Vec<Value>,
}

#[derive(Deserialize)]
struct RawKey {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Jwks {
    /// Reads a key set.
    ///
    /// # Errors
    /// [`JwksError`]; a key that can't be used is no error as long as another one can.
    pub fn parse(text: &str) -> Result<Self, JwksError> {
        if text.len() > MAX_DOCUMENT {
            return Err(JwksError::TooLong);
        }
        let document: Document =
            serde_json::from_str(text).map_err(|error| JwksError::NotAKeySet(error.to_string()))?;
        if document.keys.len() > MAX_KEYS {
            return Err(JwksError::TooManyKeys);
        }
        let mut set = Jwks { keys: Vec::new(), unusable: Vec::new(), fingerprint: fingerprint(text) };
        for (index, value) in document.keys.iter().enumerate() {
            match Key::read(value) {
                Ok(key) => set.keys.push(key),
                Err(problem) => set.unusable.push(UnusableKey { index, problem }),
            }
        }
        if set.keys.is_empty() {
            let listed: String = set
                .unusable
                .iter()
                .map(|unusable| format!("; keys[{}]: {}", unusable.index, unusable.problem))
                .collect();
            return Err(JwksError::NoUsableKey(listed));
        }
        Ok(set)
    }

    /// The keys that were left out.
    #[must_use]
    pub fn unusable(&self) -> &[UnusableKey] {
        &self.unusable
    }

    /// How many keys can verify.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Never: a set has at least one key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Tells this document from any other.
    pub(super) fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// Verifies the signature with the keys whose ID and algorithms fit; a key without an ID fits any. Counts the
    /// `signatures` that it looks at. Where there are more keys than may be tried, and none of those holds, the key of
    /// the token is not known. `cost` is what it may cost, and what it has.
    pub(super) fn verify(&self, token: &Parsed, cost: &mut Cost) -> Result<(), TokenFault> {
        let of_id = |key: &&Key| match (&key.id, &token.key_id) {
            (Some(id), Some(wanted)) => **id == **wanted,
            _ => true,
        };
        let Some(algorithm) = token.algorithm else { return Err(TokenFault::Algorithm) };
        let mut fault = TokenFault::UnknownKey;
        let (mut tries, mut of_named, mut is_left) = (cost.tries, (cost.tries / OF_NAMED).max(1), false);
        for key in self.keys.iter().filter(of_id) {
            if fault == TokenFault::UnknownKey {
                fault = TokenFault::Algorithm;
            }
            if !key.algorithms.contains(&algorithm) {
                continue;
            }
            let is_guess = token.key_id.is_none() && key.id.is_some();
            if tries == 0 || is_guess && of_named == 0 {
                is_left = true;
                continue;
            }
            tries -= 1;
            of_named -= u32::from(is_guess);
            cost.signatures += 1;
            fault = TokenFault::Signature;
            if key.verifies(algorithm, token) {
                return Ok(());
            }
        }
        cost.is_untried |= is_left;
        Err(if is_left { TokenFault::UnknownKey } else { fault })
    }
}

fn fingerprint(text: &str) -> [u8; 32] {
    <[u8; 32]>::try_from(digest(&SHA256, text.as_bytes()).as_ref()).unwrap_or_default()
}

impl Key {
    fn read(value: &Value) -> Result<Self, String> {
        let raw = RawKey::deserialize(value).map_err(|error| error.to_string())?;
        if raw.purpose.as_deref().is_some_and(|purpose| purpose != "sig") {
            return Err("its `use` is not sig".to_owned());
        }
        if raw.key_ops.as_ref().is_some_and(|operations| !operations.iter().any(|one| one == "verify")) {
            return Err("its `key_ops` do not hold verify".to_owned());
        }
        let (algorithms, key) = match raw.kty.as_str() {
            "RSA" => (RSA, rsa(&raw)?),
            "EC" => elliptic(&raw)?,
            "OKP" => (ED25519, edwards(&raw)?),
            "oct" => {
                return Err("it is a shared secret, which anybody who verifies could sign with".to_owned());
            }
            other => return Err(format!("its `kty` {other:?} is none of RSA, EC, OKP")),
        };
        let algorithms = match &raw.alg {
            None => algorithms,
            Some(name) => algorithms
                .iter()
                .find(|one| name_of(**one) == name)
                .map(std::slice::from_ref)
                .ok_or_else(|| format!("its `alg` {name:?} is not supported for this kind of key"))?,
        };
        Ok(Key { id: raw.kid.map(Into::into), algorithms, key })
    }

    fn verifies(&self, algorithm: Algorithm, token: &Parsed) -> bool {
        (DEFAULT_PROVIDER.verifier_factory)(&algorithm, &self.key)
            .is_ok_and(|verifier| verifier.verify(token.message.as_bytes(), &token.signature).is_ok())
    }
}

fn rsa(raw: &RawKey) -> Result<DecodingKey, String> {
    let modulus = number("n", raw.n.as_deref())?;
    let exponent = number("e", raw.e.as_deref())?;
    if !MODULUS.contains(&modulus.len()) {
        return Err("its modulus has not between 2048 and 8192 bits".to_owned());
    }
    // aws-lc takes odd exponents of 2 to 33 bits.
    if exponent.len() > 5 || exponent.last().is_none_or(|last| last % 2 == 0) || exponent == [1] {
        return Err("its exponent `e` is not possible".to_owned());
    }
    Ok(DecodingKey::from_rsa_raw_components(&modulus, &exponent))
}

/// A number, big-endian, without the zeros in front that some issuers write.
fn number(name: &str, text: Option<&str>) -> Result<Vec<u8>, String> {
    let mut bytes = decode(name, text)?;
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    Ok(bytes.split_off(zeros))
}

fn elliptic(raw: &RawKey) -> Result<(&'static [Algorithm], DecodingKey), String> {
    let (algorithms, length) = match raw.crv.as_deref() {
        Some("P-256") => (P256, 32),
        Some("P-384") => (P384, 48),
        other => return Err(format!("its curve {:?} is none of P-256, P-384", other.unwrap_or_default())),
    };
    let (x, y) = (decode("x", raw.x.as_deref())?, decode("y", raw.y.as_deref())?);
    if x.len() != length || y.len() != length {
        return Err(format!("`x` and `y` have not {length} bytes each"));
    }
    let mut point = vec![4];
    point.extend_from_slice(&x);
    point.extend_from_slice(&y);
    Ok((algorithms, DecodingKey::from_ec_der(&point)))
}

fn edwards(raw: &RawKey) -> Result<DecodingKey, String> {
    if raw.crv.as_deref() != Some("Ed25519") {
        return Err(format!("its curve {:?} is not Ed25519", raw.crv.as_deref().unwrap_or_default()));
    }
    let x = decode("x", raw.x.as_deref())?;
    if x.len() != 32 {
        return Err("`x` has not 32 bytes".to_owned());
    }
    Ok(DecodingKey::from_ed_der(&x))
}

fn decode(name: &str, text: Option<&str>) -> Result<Vec<u8>, String> {
    let text = text.ok_or_else(|| format!("it has no `{name}`"))?;
    URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| format!("`{name}` is not base64url"))
}
