//! Hostile input: bounded, refused, and never a panic.

use crate::issuer::{ISSUER, Issuer, claims, set};
use crate::scene::Scene;
use cinch_policy::jwt::{HttpView, Jwks, TokenCache, TokenFault, authenticate};
use proptest::prelude::*;
use serde_json::json;

#[test]
fn long_tokens_and_many_tokens_are_refused() {
    let issuer = Issuer::ed25519("k");
    let scene =
        Scene::new(&[("ns/one", "- issuer: https://issuer.example")]).keys(ISSUER, set(&[issuer.jwk()]));
    let long = issuer.token(&claims(json!({"x": "y".repeat(40_000)})));
    assert_eq!(scene.bearer(&long), Err(TokenFault::Malformed("it is too long")));
    let token = issuer.token(&claims(json!({})));
    let query = |count: usize| vec![format!("access_token={token}"); count].join("&");
    assert!(scene.ask(&[], Some(&query(8))).is_ok());
    assert_eq!(scene.ask(&[], Some(&query(9))), Err(TokenFault::TooMany));
    assert_eq!(scene.ask(&[], Some(&query(10_000))), Err(TokenFault::TooMany));
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(Jwks::parse(&format!("{{\"keys\":{deep}}}")).is_err());
}

#[test]
fn a_token_without_key_id_costs_few_signatures() {
    let keys: Vec<_> = (0..40).map(|_| Issuer::ed25519("k").jwk()).collect();
    let last = Issuer::ed25519("k");
    let mut all = keys.clone();
    all.push(last.jwk());
    let scene = Scene::new(&[("ns/one", "- issuer: https://issuer.example")]).keys(ISSUER, set(&all));
    let token = last.token_with(&json!({"alg": "EdDSA"}), "EdDSA", &claims(json!({})));
    assert_eq!(scene.signatures(std::slice::from_ref(&token)), 4);
    assert_eq!(
        scene.bearer(&token),
        Err(TokenFault::UnknownKey),
        "beyond the tries it is not known to be forged"
    );
}

/// More keys than a token may try, those of `issuers`; `kid`: with their IDs.
fn many_keys(issuers: &[Issuer], kid: bool) -> Vec<serde_json::Value> {
    let jwk = |issuer: &Issuer| {
        let mut jwk = issuer.jwk();
        if !kid {
            jwk.as_object_mut().unwrap().remove("kid");
        }
        jwk
    };
    issuers.iter().map(jwk).collect()
}

#[test]
fn a_token_that_no_tried_key_signed_is_forged_once_and_costs_nothing_when_it_comes_again() {
    let issuers: Vec<_> = (0..20).map(|_| Issuer::ed25519("k")).collect();
    let rules = [("ns/one", "- issuer: https://issuer.example")];
    // Without `kid` 4 of those that have one are tried, and with one 16 of those that have none.
    let unnamed = json!({"alg": "EdDSA"});
    for (named, header, tries) in
        [(true, unnamed.clone(), 4), (false, json!({"alg": "EdDSA", "kid": "new"}), 16), (false, unnamed, 16)]
    {
        let mut scene = Scene::new(&rules).keys(ISSUER, set(&many_keys(&issuers, named)));
        let token = issuers[19].token_with(&header, "EdDSA", &claims(json!({})));
        let first = scene.judge(&[token.as_str()]).unwrap_err();
        assert_eq!((first.signatures, first.is_forged), (tries, true), "{named} {header}");
        for _ in 0..2 {
            let again = scene.judge(&[token.as_str()]).unwrap_err();
            assert_eq!((again.signatures, again.is_forged), (0, false), "{named} {header}");
            assert_eq!((&again.fault, &again.key_id), (&TokenFault::UnknownKey, &first.key_id));
            assert_eq!(
                again.refetch, first.refetch,
                "the key may be a new one, so the set is still asked for"
            );
        }
        // With its key among those that are tried it counts at once: it is another set.
        scene.keys.insert(ISSUER.to_owned(), set(&many_keys(&issuers[16..], named)));
        assert!(scene.bearer(&token).is_ok(), "{named} {header}");
    }
}

#[test]
fn a_forged_token_is_counted_whatever_another_rule_says_of_it() {
    let issuer = Issuer::ed25519("k");
    let rules = "- issuer: https://issuer.example\n  audiences: [shop]\n- issuer: https://issuer.example\n  audiences: [market]";
    let scene = Scene::new(&[("ns/one", rules)]).keys(ISSUER, set(&[issuer.jwk()]));
    let for_shop = claims(json!({"aud": "shop"}));
    let forged = scene.judge(&[&Issuer::ed25519("k").token(&for_shop)]).unwrap_err();
    assert_eq!((forged.fault, forged.is_forged), (TokenFault::Audience, true), "the second rule's word");
    let cheap = claims(json!({"aud": "else"}));
    let other = scene.judge(&[&Issuer::ed25519("k").token(&cheap)]).unwrap_err();
    assert_eq!((other.fault, other.is_forged), (TokenFault::Audience, false), "nobody looked at it");
    assert!(scene.bearer(&issuer.token(&for_shop)).is_ok());
}

#[test]
fn a_token_without_key_id_is_tried_with_sixteen_keys_that_have_none_either() {
    let issuers: Vec<_> = (0..20).map(|_| Issuer::ed25519("k")).collect();
    let nameless = issuers.iter().map(|issuer| {
        let mut jwk = issuer.jwk();
        jwk.as_object_mut().unwrap().remove("kid");
        jwk
    });
    let all: Vec<_> = nameless.collect();
    let scene = Scene::new(&[("ns/one", "- issuer: https://issuer.example")]).keys(ISSUER, set(&all));
    let of =
        |number: usize| issuers[number].token_with(&json!({"alg": "EdDSA"}), "EdDSA", &claims(json!({})));
    assert_eq!(scene.signatures(&[of(4)]), 5);
    assert!(scene.bearer(&of(4)).is_ok() && scene.bearer(&of(15)).is_ok());
    assert_eq!(scene.bearer(&of(16)), Err(TokenFault::UnknownKey));
    let foreign = Issuer::ed25519("k").token_with(&json!({"alg": "EdDSA"}), "EdDSA", &claims(json!({})));
    assert_eq!(scene.signatures(&[foreign]), 16);
}

#[test]
fn forged_tokens_cost_one_signature_a_request_and_none_when_they_come_again() {
    let issuer = Issuer::ed25519("k");
    let scene =
        Scene::new(&[("ns/one", "- issuer: https://issuer.example")]).keys(ISSUER, set(&[issuer.jwk()]));
    let good = issuer.token(&claims(json!({})));
    let forged = |number: usize| Issuer::ed25519("k").token(&claims(json!({"jti": number})));
    let eight: Vec<_> = (0..8).map(forged).collect();
    assert_eq!(scene.signatures(&eight), 1, "the first fault is enough");
    assert_eq!(scene.signatures(&eight[..1]), 0, "it is known");
    assert_eq!(scene.bearer(&eight[0]), Err(TokenFault::Signature));
    let foreign = issuer.token(&claims(json!({"iss": "https://other.example"})));
    assert_eq!(scene.signatures(&[eight[1].clone(), foreign]), 0, "what costs nothing comes first");
    assert_eq!(scene.signatures(&vec![good.clone(); 8]), 1, "one token in many places");
    assert_eq!(scene.signatures(&[good]), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_a_valid_token(
        value in prop::collection::vec(any::<u8>(), 0..200),
        query in ".{0,100}",
        cookie in prop::collection::vec(any::<u8>(), 0..100),
    ) {
        let key = json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
        let rules = "- issuer: https://issuer.example\n  fromHeaders: [{name: authorization, prefix: 'Bearer '}, {name: x}]\n  fromParams: [a]\n  fromCookies: [c]";
        let scene = Scene::new(&[("ns/one", rules)]).keys(ISSUER, set(&[key]));
        let bearer = [b"Bearer ".as_slice(), &value].concat();
        let headers: [(&str, &[u8]); 3] = [("authorization", &bearer), ("x", &value), ("cookie", &cookie)];
        let view = HttpView { method: "GET", query: Some(&query), headers: &headers };
        let find = |name: &str| scene.keys.get(name).cloned();
        if let Ok(passed) = authenticate(&scene.rules, &find, &TokenCache::default(), &view, 0) {
            prop_assert!(passed.token.is_none());
        }
    }

    #[test]
    fn pieces_of_tokens_put_together_never_verify(parts in prop::collection::vec("(eyJhbGciOiJub25lIn0|eyJhbGciOiJFZERTQSJ9|e30|[A-Za-z0-9_=-]{0,12})", 0..5)) {
        let key = json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
        let scene = Scene::new(&[("ns/one", "- jwksUri: https://k/")]).keys("https://k/", set(&[key]));
        let token = format!("x{}", parts.join("."));
        let refused = scene.bearer(&token).is_err();
        prop_assert!(refused, "{}", token);
    }

    #[test]
    fn key_sets_never_panic(text in "[\\[\\]{}\",:a-z0-9]{0,80}", kty in "(RSA|EC|OKP|oct|[a-z]{0,3})", piece in "[A-Za-z0-9_=-]{0,60}") {
        let _ = Jwks::parse(&text);
        let crafted = json!({"keys": [{"kty": kty, "crv": "P-256", "n": piece, "e": piece, "x": piece, "y": piece}]});
        let _ = Jwks::parse(&crafted.to_string());
    }
}
