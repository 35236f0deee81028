//! What the app gets.

use crate::issuer::{ISSUER, Issuer, claims, encode, set};
use crate::scene::Scene;
use serde_json::json;

fn scene(more: &str, issuer: &Issuer) -> Scene {
    Scene::new(&[("ns/one", &format!("- issuer: {ISSUER}{more}"))]).keys(ISSUER, set(&[issuer.jwk()]))
}

#[test]
fn a_verified_token_is_taken_out_unless_it_is_to_be_forwarded() {
    let issuer = Issuer::ed25519("k");
    let token = issuer.token(&claims(json!({})));
    let bearer = format!("Bearer {token}");
    let headers = [("Authorization", bearer.as_str()), ("accept", "*/*")];
    let query = format!("a=1&access%5ftoken={token}&b=2");

    let passed = scene("", &issuer).ask(&headers, Some(&query)).unwrap();
    assert_eq!(passed.headers, [("accept".to_owned(), "*/*".to_owned())]);
    assert_eq!(passed.query.as_deref(), Some("a=1&b=2"));
    let alone = format!("access_token={token}");
    assert_eq!(
        scene("", &issuer).ask(&[], Some(&alone)).unwrap().query,
        None,
        "nothing is left of the query"
    );

    let passed = scene("\n  forwardOriginalToken: true", &issuer).ask(&headers, Some(&query)).unwrap();
    assert_eq!(passed.header("Authorization"), Some(bearer.as_str()));
    assert_eq!(passed.query.as_deref(), Some(query.as_str()));

    let cookie = format!("session={token}; a=b");
    let from_cookie = scene("\n  fromCookies: [session]", &issuer);
    let passed = from_cookie.ask(&[("cookie", &cookie)], None).unwrap();
    assert_eq!(passed.subject(), Some("ann"));
    assert_eq!(passed.header("cookie"), Some(cookie.as_str()), "cookies stay");
}

#[test]
fn what_was_no_token_stays() {
    let passed =
        scene("", &Issuer::ed25519("k")).ask(&[("authorization", "Basic abc")], Some("x&&y=")).unwrap();
    assert_eq!(passed.header("authorization"), Some("Basic abc"));
    assert_eq!(passed.query.as_deref(), Some("x&&y="));
}

#[test]
fn claim_headers_come_from_the_token_alone() {
    let issuer = Issuer::ed25519("k");
    let outputs = "\n  outputPayloadToHeader: X-Payload\n  outputClaimToHeaders:\n  - {header: X-Sub, claim: sub}\n  - {header: x-tenant, claim: org.tenant}\n  - {header: x-level, claim: level}\n  - {header: x-admin, claim: admin}\n  - {header: x-list, claim: list}\n  - {header: x-float, claim: float}\n  - {header: x-none, claim: org.none}\n  - {header: x-bad, claim: bad}\n  - {header: x-dotted, claim: 'https://a.b/c'}";
    let scene = scene(outputs, &issuer);
    let payload = claims(json!({
        "org": {"tenant": "blue"}, "level": -7, "admin": true, "list": ["a"], "float": 1.5,
        "bad": "a\r\nx-admin: true", "https://a.b/c": "dotted",
    }));
    let bearer = format!("Bearer {}", issuer.token(&payload));
    let forged = [
        ("authorization", bearer.as_str()),
        ("x-payload", "forged"),
        ("X-SUB", "root"),
        ("x-list", "forged"),
        ("x-none", "forged"),
    ];
    let passed = scene.ask(&forged, None).unwrap();
    let expected = [
        ("x-payload", encode(payload.to_string())),
        ("x-sub", "ann".to_owned()),
        ("x-tenant", "blue".to_owned()),
        ("x-level", "-7".to_owned()),
        ("x-admin", "true".to_owned()),
        ("x-dotted", "dotted".to_owned()),
    ];
    let expected: Vec<_> = expected.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    assert_eq!(passed.headers, expected);

    let without = scene.ask(&forged[1..], None).unwrap();
    assert_eq!(without.headers, [], "without a token the client's are stripped too");
    let names: Vec<_> = scene.rules.stripped().collect();
    assert!(names.contains(&"x-payload") && names.contains(&"x-sub"), "{names:?}");
}

#[test]
fn headers_of_every_rule_are_stripped_whichever_rule_holds() {
    let (ours, other) = (Issuer::ed25519("k"), "https://other.example");
    let rules = format!(
        "- issuer: {ISSUER}\n  outputPayloadToHeader: x-one\n- issuer: {other}\n  outputPayloadToHeader: x-two"
    );
    let scene = Scene::new(&[("ns/one", &rules)]).keys(ISSUER, set(&[ours.jwk()]));
    let bearer = format!("Bearer {}", ours.token(&claims(json!({}))));
    let passed = scene.ask(&[("authorization", &bearer), ("x-two", "forged")], None).unwrap();
    assert!(passed.header("x-one").is_some());
    assert_eq!(passed.header("x-two"), None);
}

#[test]
fn nothing_shows_what_a_token_holds() {
    let issuer = Issuer::ed25519("k");
    let token = issuer.token(&claims(json!({"sub": "very-secret"})));
    let scene = scene("", &issuer);
    assert!(scene.bearer(&token).is_ok());
    let headers = [("authorization", format!("Bearer {token}"))];
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_bytes())).collect();
    let view = cinch_policy::jwt::HttpView { method: "GET", query: None, headers: &headers };
    let find = |name: &str| scene.keys.get(name).cloned();
    let passed =
        cinch_policy::jwt::authenticate(&scene.rules, &find, &scene.cache, &view, scene.now).unwrap();
    let shown = format!("{:?} {:?}", passed.token, scene.cache);
    let payload = token.split('.').nth(1).unwrap();
    assert!(!shown.contains("very-secret") && !shown.contains(payload), "{shown}");
}
