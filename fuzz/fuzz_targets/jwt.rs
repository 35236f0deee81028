//! Tokens in every place: nothing that was not signed verifies.
#![no_main]

use cinch_policy::RequestAuthenticationSpec;
use cinch_policy::jwt::{HttpView, Jwks, TokenCache, TokenRules, authenticate};
use libfuzzer_sys::fuzz_target;
use std::sync::{Arc, LazyLock};

/// Public keys whose private halves nobody has kept.
const KEYS: &str = r#"{"keys":[
    {"kty":"OKP","crv":"Ed25519","kid":"e","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
    {"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}
]}"#;

const RULES: &str = r#"{"jwtRules":[
    {"jwksUri":"https://keys/","fromHeaders":[{"name":"authorization","prefix":"Bearer "},{"name":"x-token"}],
     "fromParams":["token"],"fromCookies":["session"],"outputPayloadToHeader":"x-payload",
     "outputClaimToHeaders":[{"header":"x-sub","claim":"sub"}]}
]}"#;

static SCENE: LazyLock<(TokenRules, Arc<Jwks>)> = LazyLock::new(|| {
    let spec: RequestAuthenticationSpec = serde_json::from_str(RULES).expect("the rules are good");
    (TokenRules::compile([("ns/rules", &spec)]), Arc::new(Jwks::parse(KEYS).expect("the keys are good")))
});

fuzz_target!(|data: &[u8]| {
    let (rules, keys) = &*SCENE;
    let bearer = [b"Bearer ", data].concat();
    let cookie = [b"session=", data].concat();
    let query = format!("token={}", String::from_utf8_lossy(data));
    let views: [(&[(&str, &[u8])], Option<&str>); 4] = [
        (&[("Authorization", &bearer)], None),
        (&[("x-token", data)], None),
        (&[("cookie", &cookie)], None),
        (&[], Some(&query)),
    ];
    for (headers, query) in views {
        let view = HttpView { method: "GET", query, headers };
        let find = |_: &str| Some(keys.clone());
        if let Ok(passed) = authenticate(rules, &find, &TokenCache::new(1, 1), &view, 1_000) {
            assert!(passed.token.is_none());
            passed.forwarding.headers(headers);
            passed.forwarding.query(query);
        }
    }
});
