//! Real tokens, signed here, through `authorize`: what passes, with which status it does not, and what goes on to
//! the workload.

use super::*;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

const ISSUER: &str = "https://issuer.example";
const KEYS_AT: &str = "https://issuer.example/keys";
const NOW: u64 = 1_800_000_000;

/// An issuer with its own key.
struct Issuer {
    kid: &'static str,
    pair: EcdsaKeyPair,
}

impl Issuer {
    fn new(kid: &'static str) -> Self {
        Issuer { kid, pair: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap() }
    }

    fn token(&self, claims: &Value) -> String {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let header = json!({"alg": "ES256", "kid": self.kid, "typ": "JWT"}).to_string();
        let message = format!("{}.{}", encode(header.as_bytes()), encode(claims.to_string().as_bytes()));
        let signature = self.pair.sign(&SystemRandom::new(), message.as_bytes()).unwrap();
        format!("{message}.{}", encode(signature.as_ref()))
    }

    fn jwks(&self) -> Value {
        let point = &self.pair.public_key().as_ref()[1..];
        let (x, y) = point.split_at(32);
        let (x, y) = (URL_SAFE_NO_PAD.encode(x), URL_SAFE_NO_PAD.encode(y));
        json!({"keys": [{"kty": "EC", "crv": "P-256", "kid": self.kid, "x": x, "y": y}]})
    }
}

fn claims(more: Value) -> Value {
    let mut claims = json!({"iss": ISSUER, "sub": "ann", "exp": NOW + 600});
    claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    claims
}

fn authentication(more: Value) -> Value {
    let mut rule = json!({"issuer": ISSUER, "jwksUri": KEYS_AT});
    rule.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    policy("RequestAuthentication", "jwt", json!({"jwtRules": [rule]}))
}

/// Only tokens whose `role` is one of these.
fn of_role(role: &str) -> Value {
    let rule = json!({"from": [{"source": {"requestPrincipals": [format!("{ISSUER}/*")]}}],
        "when": [{"key": "request.auth.claims[role]", "values": [role]}]});
    policy("AuthorizationPolicy", "role", json!({"rules": [rule]}))
}

/// A request with these headers at [`NOW`], when the issuer's keys are known under `named`.
fn asked(policies: Vec<Value>, issuer: &Issuer, named: &str, headers: Value) -> Value {
    authorize(policies, |case| {
        case["now"] = json!(NOW);
        case["jwks"] = json!({named: issuer.jwks()});
        case["request"]["headers"] = headers;
    })
}

fn bearer(token: &str) -> Value {
    json!([["x-team", "a"], ["Authorization", format!("Bearer {token}")]])
}

#[test]
fn a_valid_token_gives_its_principal_and_claims_and_is_not_forwarded() {
    let issuer = Issuer::new("one");
    let token = issuer.token(&claims(json!({"role": "payments"})));
    let policies = vec![authentication(json!({})), of_role("payments")];
    let answer = asked(policies.clone(), &issuer, KEYS_AT, bearer(&token));
    assert_eq!(
        answer,
        json!({"decision": "allow", "status": 200, "policy": "orders/role", "rule": 0, "reason": "Allowed",
            "principal": "https://issuer.example/ann", "dryRun": [], "audit": [],
            "forward": {"path": "/a?b", "headers": [["x-team", "a"]]}})
    );
    let other = issuer.token(&claims(json!({"role": "other"})));
    let denied = asked(policies.clone(), &issuer, KEYS_AT, bearer(&other));
    assert_eq!((&denied["status"], &denied["reason"]), (&json!(403), &json!("NoAllowMatched")));
    assert_eq!(denied["principal"], "https://issuer.example/ann");
    let without = asked(policies, &issuer, KEYS_AT, json!([]));
    assert_eq!((&without["reason"], &without["principal"]), (&json!("NoAllowMatched"), &Value::Null));
}

#[test]
fn keys_are_found_by_their_uri_or_their_issuer_as_an_object_or_as_text() {
    let issuer = Issuer::new("one");
    let token = issuer.token(&claims(json!({})));
    for named in [KEYS_AT, ISSUER] {
        let answer = asked(vec![authentication(json!({}))], &issuer, named, bearer(&token));
        assert_eq!(answer["principal"], "https://issuer.example/ann", "{named}: {answer}");
    }
    let discovered = policy("RequestAuthentication", "jwt", json!({"jwtRules": [{"issuer": ISSUER}]}));
    assert_eq!(asked(vec![discovered], &issuer, ISSUER, bearer(&token))["status"], 200);
    let as_text = authorize(vec![authentication(json!({}))], |case| {
        case["now"] = json!(NOW);
        case["jwks"] = json!({KEYS_AT: issuer.jwks().to_string()});
        case["request"]["headers"] = bearer(&token);
    });
    assert_eq!(as_text["status"], 200);
    let inline = json!({"jwtRules": [{"issuer": ISSUER, "jwks": issuer.jwks().to_string()}]});
    let inline = asked(vec![policy("RequestAuthentication", "jwt", inline)], &issuer, "none", bearer(&token));
    assert_eq!(inline["status"], 200);
}

#[test]
fn what_is_wrong_with_a_token_says_its_status() {
    let (issuer, stranger) = (Issuer::new("one"), Issuer::new("one"));
    let good = claims(json!({"aud": "orders"}));
    let with = |change: Value| {
        claims(
            json!({"aud": "orders"})
                .as_object()
                .unwrap()
                .clone()
                .into_iter()
                .chain(change.as_object().unwrap().clone())
                .collect(),
        )
    };
    let mut forged = issuer.token(&good);
    forged.replace_range(forged.len() - 4.., "AAAA");
    let unsigned = format!(
        "{}.{}.",
        URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#),
        URL_SAFE_NO_PAD.encode(good.to_string())
    );
    for (case, token, status, reason) in [
        ("good", issuer.token(&good), 200, "AllowedByDefault"),
        ("another's key", stranger.token(&good), 401, "TokenInvalid"),
        ("forged", forged, 401, "TokenInvalid"),
        ("unsigned", unsigned, 401, "TokenInvalid"),
        ("expired", issuer.token(&with(json!({"exp": NOW - 600}))), 401, "TokenInvalid"),
        ("not yet", issuer.token(&with(json!({"nbf": NOW + 600}))), 401, "TokenInvalid"),
        ("another issuer", issuer.token(&with(json!({"iss": "https://other.example"}))), 401, "TokenInvalid"),
        ("another audience", issuer.token(&with(json!({"aud": "bank"}))), 403, "AudienceMismatch"),
        ("no audience", issuer.token(&claims(json!({}))), 403, "AudienceMismatch"),
    ] {
        let policies = vec![authentication(json!({"audiences": ["orders"]}))];
        let answer = asked(policies, &issuer, KEYS_AT, bearer(&token));
        assert_eq!(
            (&answer["status"], &answer["reason"]),
            (&json!(status), &json!(reason)),
            "{case}: {answer}"
        );
        assert_eq!(answer.get("forward").is_some(), status == 200, "{case}");
        assert_eq!(answer["policy"], Value::Null, "{case}");
    }
    let unknown = asked(
        vec![authentication(json!({}))],
        &issuer,
        "https://elsewhere.example",
        bearer(&issuer.token(&good)),
    );
    assert_eq!(
        (&unknown["status"], &unknown["reason"]),
        (&json!(401), &json!("TokenInvalid")),
        "no keys, no token"
    );
}

#[test]
fn the_time_is_the_cases_or_the_clocks() {
    let issuer = Issuer::new("one");
    let token = issuer.token(&claims(json!({"exp": 1_000_000_000})));
    let at = |now: Option<u64>| {
        let answer = authorize(vec![authentication(json!({}))], |case| {
            case["jwks"] = json!({KEYS_AT: issuer.jwks()});
            case["request"]["headers"] = bearer(&token);
            if let Some(now) = now {
                case["now"] = json!(now);
            }
        });
        answer["status"].clone()
    };
    assert_eq!(at(Some(999_999_000)), 200);
    assert_eq!(at(Some(1_000_001_000)), 401);
    assert_eq!(at(None), 401, "it expired in 2001");
}

#[test]
fn tokens_come_from_the_query_too_and_go_on_only_where_that_is_asked() {
    let issuer = Issuer::new("one");
    let token = issuer.token(&claims(json!({"team": "blue"})));
    let from_query = |more: Value| {
        authorize(vec![authentication(more)], |case| {
            case["now"] = json!(NOW);
            case["jwks"] = json!({KEYS_AT: issuer.jwks()});
            case["request"]["path"] = json!(format!("/a?x=1&access_token={token}"));
            case["request"]["headers"] = json!([["X-Blue", "forged"]]);
        })
    };
    let stripped = from_query(json!({}));
    assert_eq!(stripped["principal"], "https://issuer.example/ann", "{stripped}");
    assert_eq!(stripped["forward"]["path"], "/a?x=1");
    let outputs = json!({"forwardOriginalToken": true, "outputClaimToHeaders": [{"header": "x-blue", "claim": "team"}]});
    let kept = from_query(outputs);
    assert_eq!(kept["forward"]["path"], format!("/a?x=1&access_token={token}"));
    assert_eq!(kept["forward"]["headers"], json!([["x-blue", "blue"]]), "what the client sent is gone");
}
