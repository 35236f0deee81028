//! Key sets as issuers could send them; what is read is tried on a token.
#![no_main]

use cinch_policy::RequestAuthenticationSpec;
use cinch_policy::jwt::{HttpView, Jwks, TokenCache, TokenRules, authenticate};
use libfuzzer_sys::fuzz_target;
use std::sync::{Arc, LazyLock};

static RULES: LazyLock<TokenRules> = LazyLock::new(|| {
    let spec: RequestAuthenticationSpec =
        serde_json::from_str(r#"{"jwtRules":[{"jwksUri":"https://keys/"}]}"#).expect("the rules are good");
    TokenRules::compile([("ns/rules", &spec)])
});

/// A header of every family of keys, and the bytes of a signature.
const TOKENS: [(&str, usize); 4] = [
    ("eyJhbGciOiJSUzI1NiJ9", 256),
    ("eyJhbGciOiJFUzI1NiJ9", 64),
    ("eyJhbGciOiJFZERTQSJ9", 64),
    ("eyJhbGciOiJQUzUxMiJ9", 0),
];

fuzz_target!(|text: &str| {
    let Ok(keys) = Jwks::parse(text) else { return };
    assert!(!keys.is_empty());
    let keys = Arc::new(keys);
    for (header, length) in TOKENS {
        // Six bits a letter; what is left of the last one is zero.
        let token = format!("Bearer {header}.e30.{}", "A".repeat((length * 8).div_ceil(6)));
        let headers: [(&str, &[u8]); 1] = [("authorization", token.as_bytes())];
        let view = HttpView { method: "GET", query: None, headers: &headers };
        let find = |_: &str| Some(keys.clone());
        // A small-order Ed25519 key verifies a signature of zeros: an issuer that publishes one wants that.
        let _ = authenticate(&RULES, &find, &TokenCache::new(1, 1), &view, 0);
    }
});
