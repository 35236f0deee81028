//! Where tokens are found.

use crate::issuer::{ISSUER, Issuer, claims, set};
use crate::scene::Scene;
use cinch_policy::jwt::TokenFault;
use serde_json::json;

struct Case<'c> {
    name: &'c str,
    rule: &'c str,
    headers: Vec<(&'c str, String)>,
    query: Option<String>,
    found: bool,
}

#[test]
fn tokens_are_found_where_the_rule_looks_and_nowhere_else() {
    let issuer = Issuer::ed25519("k");
    let t = issuer.token(&claims(json!({})));
    let escaped = t.replace('.', "%2E");
    let case = |name, rule, headers, query, found| Case { name, rule, headers, query, found };
    let explicit =
        "\n  fromHeaders: [{name: X-Jwt, prefix: 'Token '}]\n  fromParams: [jwt]\n  fromCookies: [session]";
    let cases = [
        case("bearer", "", vec![("Authorization", format!("Bearer {t}"))], None, true),
        case("bearer with spaces", "", vec![("authorization", format!("  Bearer   {t} "))], None, true),
        case("other scheme", "", vec![("authorization", format!("Basic {t}"))], None, false),
        case("no scheme", "", vec![("authorization", t.clone())], None, false),
        case("parameter", "", vec![], Some(format!("a=b&access_token={t}&c")), true),
        case("parameter, escaped", "", vec![], Some(format!("access%5Ftoken={escaped}")), true),
        case("parameter, empty", "", vec![], Some("access_token=&access_token".to_owned()), false),
        case("other parameter", "", vec![], Some(format!("token={t}")), false),
        case("cookie by default", "", vec![("cookie", format!("access_token={t}"))], None, false),
        case("own header", explicit, vec![("x-JWT", format!("Token {t}"))], None, true),
        case("own header without prefix", explicit, vec![("x-jwt", t.clone())], None, false),
        case("own parameter", explicit, vec![], Some(format!("jwt={t}")), true),
        case("own cookie", explicit, vec![("cookie", format!("a=b; session={t}; c=d"))], None, true),
        case("own cookie, quoted", explicit, vec![("cookie", format!("session=\"{t}\""))], None, true),
        case(
            "second cookie header",
            explicit,
            vec![("cookie", "a=b".into()), ("cookie", format!("session={t}"))],
            None,
            true,
        ),
        case("cookie of a longer name", explicit, vec![("cookie", format!("session2={t}"))], None, false),
        case(
            "default header replaced",
            explicit,
            vec![("authorization", format!("Bearer {t}"))],
            None,
            false,
        ),
        case("default parameter replaced", explicit, vec![], Some(format!("access_token={t}")), false),
        case("whole header", "\n  fromHeaders: [{name: x-jwt}]", vec![("x-jwt", t.clone())], None, true),
        case(
            "whole header, empty",
            "\n  fromHeaders: [{name: x-jwt}]",
            vec![("x-jwt", String::new())],
            None,
            false,
        ),
    ];
    for case in cases {
        let rule = format!("- issuer: {ISSUER}{}", case.rule);
        let scene = Scene::new(&[("ns/one", &rule)]).keys(ISSUER, set(&[issuer.jwk()]));
        let headers: Vec<_> = case.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let passed = scene.ask(&headers, case.query.as_deref());
        assert_eq!(passed.unwrap().claims.is_some(), case.found, "{}", case.name);
    }
}

#[test]
fn all_tokens_in_the_places_of_a_rule_must_be_valid() {
    let issuer = Issuer::ed25519("k");
    let scene =
        Scene::new(&[("ns/one", "- issuer: https://issuer.example")]).keys(ISSUER, set(&[issuer.jwk()]));
    let good = format!("Bearer {}", issuer.token(&claims(json!({}))));
    let param = format!("access_token={}", issuer.token(&claims(json!({"sub": "bob"}))));
    let stranger = format!("access_token={}", Issuer::ed25519("k").token(&claims(json!({}))));
    let bad = format!("Bearer {}", Issuer::ed25519("k").token(&claims(json!({}))));

    let both = scene.ask(&[("authorization", &good)], Some(&param)).unwrap();
    assert_eq!(both.subject(), Some("ann"), "the header comes first");
    assert_eq!(scene.ask(&[("authorization", &good)], Some(&stranger)), Err(TokenFault::Signature));
    assert_eq!(scene.ask(&[("authorization", &bad)], Some(&param)), Err(TokenFault::Signature));
    let twice = [("authorization", good.as_str()), ("Authorization", bad.as_str())];
    assert_eq!(scene.ask(&twice, None), Err(TokenFault::Signature));
    let polluted = format!("{param}&{stranger}");
    assert_eq!(scene.ask(&[], Some(&polluted)), Err(TokenFault::Signature));
    let joined = format!("{good}, {good}");
    assert!(matches!(scene.ask(&[("authorization", &joined)], None), Err(TokenFault::Malformed(_))));
}
