//! An issuer with a real key: signs tokens and publishes its key set.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512,
    RsaEncoding, RsaKeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cinch_policy::jwt::Jwks;
use serde_json::{Value, json};
use std::sync::Arc;

pub const NOW: u64 = 1_800_000_000;
pub const ISSUER: &str = "https://issuer.example";

pub enum Key {
    Rsa(RsaKeyPair),
    Elliptic(&'static str, EcdsaKeyPair),
    Edwards(Ed25519KeyPair),
}

pub struct Issuer {
    pub kid: &'static str,
    pub key: Key,
}

pub fn encode(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Issuer {
    pub fn rsa(kid: &'static str) -> Self {
        let key = RsaKeyPair::generate(aws_lc_rs::rsa::KeySize::Rsa2048).unwrap();
        Issuer { kid, key: Key::Rsa(key) }
    }

    pub fn p256(kid: &'static str) -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        Issuer { kid, key: Key::Elliptic("P-256", key) }
    }

    pub fn p384(kid: &'static str) -> Self {
        let key = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
        Issuer { kid, key: Key::Elliptic("P-384", key) }
    }

    pub fn ed25519(kid: &'static str) -> Self {
        Issuer { kid, key: Key::Edwards(Ed25519KeyPair::generate().unwrap()) }
    }

    /// Its public key as a JWK without `alg`.
    pub fn jwk(&self) -> Value {
        match &self.key {
            Key::Rsa(pair) => {
                let public = pair.public_key();
                let n = public.modulus().big_endian_without_leading_zero();
                let e = public.exponent().big_endian_without_leading_zero();
                json!({"kty": "RSA", "kid": self.kid, "use": "sig", "n": encode(n), "e": encode(e)})
            }
            Key::Elliptic(curve, pair) => {
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                json!({"kty": "EC", "kid": self.kid, "crv": curve, "x": encode(x), "y": encode(y)})
            }
            Key::Edwards(pair) => {
                json!({"kty": "OKP", "kid": self.kid, "crv": "Ed25519", "x": encode(pair.public_key())})
            }
        }
    }

    pub fn sign(&self, algorithm: &str, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.key {
            Key::Rsa(pair) => {
                let encoding: &'static dyn RsaEncoding = match algorithm {
                    "RS256" => &RSA_PKCS1_SHA256,
                    "RS384" => &RSA_PKCS1_SHA384,
                    "RS512" => &RSA_PKCS1_SHA512,
                    "PS256" => &RSA_PSS_SHA256,
                    "PS384" => &RSA_PSS_SHA384,
                    "PS512" => &RSA_PSS_SHA512,
                    other => panic!("{other} is not RSA"),
                };
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(encoding, &random, message, &mut signature).unwrap();
                signature
            }
            Key::Elliptic(_, pair) => pair.sign(&random, message).unwrap().as_ref().to_vec(),
            Key::Edwards(pair) => pair.sign(message).as_ref().to_vec(),
        }
    }

    /// A token with this header, whatever it says, signed as `algorithm`.
    pub fn token_with(&self, header: &Value, algorithm: &str, claims: &Value) -> String {
        let message = format!("{}.{}", encode(header.to_string()), encode(claims.to_string()));
        let signature = self.sign(algorithm, message.as_bytes());
        format!("{message}.{}", encode(signature))
    }

    pub fn algorithm(&self) -> &'static str {
        match &self.key {
            Key::Rsa(_) => "RS256",
            Key::Elliptic("P-256", _) => "ES256",
            Key::Elliptic(..) => "ES384",
            Key::Edwards(_) => "EdDSA",
        }
    }

    pub fn token(&self, claims: &Value) -> String {
        let header = json!({"alg": self.algorithm(), "kid": self.kid, "typ": "JWT"});
        self.token_with(&header, self.algorithm(), claims)
    }
}

pub fn document(keys: &[Value]) -> String {
    json!({ "keys": keys }).to_string()
}

pub fn set(keys: &[Value]) -> Arc<Jwks> {
    Arc::new(Jwks::parse(&document(keys)).unwrap())
}

/// Claims of [`ISSUER`] that are valid at [`NOW`], with `more`.
pub fn claims(more: Value) -> Value {
    let mut claims = json!({"iss": ISSUER, "sub": "ann", "exp": NOW + 600});
    let (Value::Object(all), Value::Object(more)) = (&mut claims, more) else { panic!("objects only") };
    all.extend(more);
    claims
}
