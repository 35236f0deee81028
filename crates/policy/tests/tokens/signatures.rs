//! Signatures that hold, and those that don't.

use crate::issuer::{ISSUER, Issuer, Key, NOW, claims, document, encode, set};
use crate::scene::Scene;
use aws_lc_rs::hmac;
use aws_lc_rs::signature::KeyPair;
use cinch_policy::jwt::{Jwks, LEEWAY, TokenFault};
use serde_json::{Value, json};

fn scene(keys: &[Value]) -> Scene {
    Scene::new(&[("ns/one", "- issuer: https://issuer.example")]).keys(ISSUER, set(keys))
}

fn header(algorithm: &str, kid: &str) -> Value {
    json!({"alg": algorithm, "kid": kid})
}

#[test]
fn every_algorithm_verifies_with_its_key() {
    let issuers = [
        (Issuer::rsa("r"), vec!["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]),
        (Issuer::p256("p"), vec!["ES256"]),
        (Issuer::p384("q"), vec!["ES384"]),
        (Issuer::ed25519("e"), vec!["EdDSA"]),
    ];
    let keys: Vec<Value> = issuers.iter().map(|(issuer, _)| issuer.jwk()).collect();
    for (issuer, algorithms) in &issuers {
        for algorithm in algorithms {
            let token = issuer.token_with(&header(algorithm, issuer.kid), algorithm, &claims(json!({})));
            assert_eq!(scene(&keys).bearer(&token).unwrap().subject(), Some("ann"), "{algorithm}");

            let mut pinned = issuer.jwk();
            pinned["alg"] = json!(algorithm);
            assert!(scene(&[pinned]).bearer(&token).is_ok(), "{algorithm}, named by the key");

            let without_kid = issuer.token_with(&json!({"alg": algorithm}), algorithm, &claims(json!({})));
            assert!(scene(&keys).bearer(&without_kid).is_ok(), "{algorithm} without kid");
        }
    }
}

#[test]
fn a_changed_token_does_not_verify() {
    let issuer = Issuer::p256("p");
    let scene = scene(&[issuer.jwk()]);
    let token = issuer.token(&claims(json!({})));
    let [head, payload, signature]: [&str; 3] = token.split('.').collect::<Vec<_>>().try_into().unwrap();
    let other = encode(claims(json!({"sub": "eve"})).to_string());
    let mut flipped = signature.to_owned();
    let first = if flipped.starts_with('A') { "B" } else { "A" };
    flipped.replace_range(..1, first);
    let cases = [
        ("another payload", format!("{head}.{other}.{signature}")),
        ("another signature", format!("{head}.{payload}.{flipped}")),
        ("no signature", format!("{head}.{payload}.")),
        ("a short signature", format!("{head}.{payload}.{}", encode([0; 8]))),
        ("a zero signature", format!("{head}.{payload}.{}", encode([0; 64]))),
    ];
    assert!(scene.bearer(&token).is_ok());
    for (name, forged) in cases {
        assert_eq!(scene.bearer(&forged), Err(TokenFault::Signature), "{name}");
    }
    let malformed = [
        format!("{head}.{payload}"),
        format!("{head}.{payload}.{signature}.{signature}"),
        format!("{head}.{payload}.{signature}="),
        format!("{head}.{payload}.!{signature}"),
        format!("{}.{payload}.{signature}", encode("[]")),
        format!("{head}.{}.{signature}", encode("[]")),
        format!("{head}.{}.{signature}", encode([0xff, 0xfe])),
        "...".to_owned(),
        "x".to_owned(),
    ];
    for token in malformed {
        assert!(matches!(scene.bearer(&token), Err(TokenFault::Malformed(_))), "{token}");
    }
}

#[test]
fn the_key_and_not_the_token_chooses_the_algorithm() {
    let rsa = Issuer::rsa("k");
    let document = document(&[rsa.jwk()]);
    let scene = scene(&[rsa.jwk()]);
    let Key::Rsa(pair) = &rsa.key else { panic!() };
    let der = pair.public_key().as_ref().to_vec();
    for secret in [document.as_bytes(), rsa.jwk()["n"].as_str().unwrap().as_bytes(), &der] {
        for (name, kind) in
            [("HS256", hmac::HMAC_SHA256), ("HS384", hmac::HMAC_SHA384), ("HS512", hmac::HMAC_SHA512)]
        {
            let message = format!(
                "{}.{}",
                encode(header(name, "k").to_string()),
                encode(claims(json!({})).to_string())
            );
            let tag = hmac::sign(&hmac::Key::new(kind, secret), message.as_bytes());
            let token = format!("{message}.{}", encode(tag));
            assert_eq!(
                scene.bearer(&token),
                Err(TokenFault::Algorithm),
                "{name} with the public key as secret"
            );
        }
    }
    for name in
        ["none", "None", "NONE", "", "rs256", "RS1", "ES256K", "ES512", "Ed448", "RSA-OAEP", "ES256", "EdDSA"]
    {
        let unsigned =
            format!("{}.{}.", encode(header(name, "k").to_string()), encode(claims(json!({})).to_string()));
        assert_eq!(scene.bearer(&unsigned), Err(TokenFault::Algorithm), "{name:?} unsigned");
        let signed = rsa.token_with(&header(name, "k"), "RS256", &claims(json!({})));
        assert_eq!(scene.bearer(&signed), Err(TokenFault::Algorithm), "{name:?} signed");
    }
    let said_otherwise = rsa.token_with(&header("PS256", "k"), "RS256", &claims(json!({})));
    assert_eq!(scene.bearer(&said_otherwise), Err(TokenFault::Signature));
}

#[test]
fn a_key_that_names_its_algorithm_verifies_no_other() {
    let rsa = Issuer::rsa("k");
    let mut jwk = rsa.jwk();
    jwk["alg"] = json!("RS512");
    let scene = scene(&[jwk]);
    for (algorithm, expected) in
        [("RS512", Ok(())), ("RS256", Err(TokenFault::Algorithm)), ("PS512", Err(TokenFault::Algorithm))]
    {
        let token = rsa.token_with(&header(algorithm, "k"), algorithm, &claims(json!({})));
        assert_eq!(scene.bearer(&token).map(|_| ()), expected, "{algorithm}");
    }
}

#[test]
fn an_elliptic_key_is_bound_to_its_curve() {
    let (small, large) = (Issuer::p256("k"), Issuer::p384("k"));
    let as_large = small.token_with(&header("ES384", "k"), "ES256", &claims(json!({})));
    assert_eq!(scene(&[large.jwk()]).bearer(&as_large), Err(TokenFault::Signature));
    assert_eq!(scene(&[small.jwk()]).bearer(&as_large), Err(TokenFault::Algorithm));
}

#[test]
fn key_ids_choose_among_keys() {
    let (one, two) = (Issuer::p256("one"), Issuer::p256("two"));
    let both = [one.jwk(), two.jwk()];
    assert!(scene(&both).bearer(&one.token(&claims(json!({})))).is_ok());
    assert!(scene(&both).bearer(&two.token(&claims(json!({})))).is_ok());

    let wrong = one.token_with(&header("ES256", "two"), "ES256", &claims(json!({})));
    assert_eq!(scene(&both).bearer(&wrong), Err(TokenFault::Signature), "the key of another ID is not tried");
    let unknown = one.token_with(&header("ES256", "three"), "ES256", &claims(json!({})));
    assert_eq!(scene(&both).bearer(&unknown), Err(TokenFault::UnknownKey));

    let mut nameless = one.jwk();
    nameless.as_object_mut().unwrap().remove("kid");
    assert!(scene(&[nameless.clone()]).bearer(&unknown).is_ok(), "a key without ID fits any");
    assert!(scene(&[two.jwk(), nameless]).bearer(&one.token(&claims(json!({})))).is_ok());
    let odd = one.token_with(&json!({"alg": "ES256", "kid": 7}), "ES256", &claims(json!({})));
    assert!(matches!(scene(&both).bearer(&odd), Err(TokenFault::Malformed(_))));
}

#[test]
fn keys_within_the_token_are_not_believed() {
    let (ours, theirs) = (Issuer::p256("k"), Issuer::p256("k"));
    let bearing = json!({"alg": "ES256", "kid": "k", "jwk": theirs.jwk(), "jku": "https://evil.example", "x5c": ["AA"]});
    let token = theirs.token_with(&bearing, "ES256", &claims(json!({})));
    assert_eq!(scene(&[ours.jwk()]).bearer(&token), Err(TokenFault::Signature));

    let critical = json!({"alg": "ES256", "kid": "k", "crit": ["b64"], "b64": false});
    let token = ours.token_with(&critical, "ES256", &claims(json!({})));
    assert!(matches!(scene(&[ours.jwk()]).bearer(&token), Err(TokenFault::Malformed(_))));
}

#[test]
fn dates_hold_within_the_leeway() {
    let issuer = Issuer::ed25519("k");
    let cases = [
        ("no dates", json!({"exp": null}), Some("`exp` or `nbf` is no date")),
        ("exp ahead", json!({"exp": NOW + 1}), None),
        ("exp just within", json!({"exp": NOW - LEEWAY}), None),
        ("exp just past", json!({"exp": NOW - LEEWAY - 1}), Some("expired")),
        ("exp with a fraction", json!({"exp": (NOW - LEEWAY) as f64 + 0.5}), None),
        ("exp before 1970", json!({"exp": -1}), Some("expired")),
        ("exp as text", json!({"exp": "1800000600"}), Some("no date")),
        ("nbf past", json!({"nbf": NOW}), None),
        ("nbf just within", json!({"nbf": NOW + LEEWAY}), None),
        ("nbf ahead", json!({"nbf": NOW + LEEWAY + 1}), Some("not valid yet")),
        ("nbf as text", json!({"nbf": "0"}), Some("no date")),
        ("iat ahead", json!({"iat": NOW + 9999}), None),
    ];
    for (name, more, expected) in cases {
        let told = scene(&[issuer.jwk()]).bearer(&issuer.token(&claims(more)));
        match expected {
            None => assert!(told.is_ok(), "{name}: {told:?}"),
            Some(part) => {
                let told = told.unwrap_err().to_string();
                assert!(told.contains(part), "{name}: {told}");
            }
        }
    }
    let lasting = issuer.token(&json!({"iss": ISSUER, "sub": "ann"}));
    assert!(scene(&[issuer.jwk()]).bearer(&lasting).is_ok(), "without exp a token lasts");
}

#[test]
fn the_cache_forgets_with_keys_and_time() {
    let issuer = Issuer::rsa("k");
    let token = issuer.token(&claims(json!({"exp": NOW + 10})));
    let mut scene = scene(&[issuer.jwk()]);
    assert!(scene.bearer(&token).is_ok());
    assert_eq!(scene.cache.len(), 1);
    assert!(scene.bearer(&token).is_ok(), "found");
    assert_eq!(scene.cache.len(), 1);

    scene.now = NOW + 10 + LEEWAY + 1;
    assert_eq!(scene.bearer(&token), Err(TokenFault::Expired));
    scene.now = NOW;
    scene.keys.insert(ISSUER.to_owned(), set(&[Issuer::rsa("k").jwk()]));
    assert_eq!(scene.bearer(&token), Err(TokenFault::Signature), "the key was exchanged");
    scene.keys.clear();
    assert_eq!(scene.bearer(&token), Err(TokenFault::NoKeys), "the keys are gone");
    let forged = format!("{}x", token.trim_end_matches(|c| c != '.'));
    assert!(scene.bearer(&forged).is_err());
    assert_eq!(scene.cache.len(), 1, "what does not verify is not kept");
}

#[test]
fn key_sets_are_read_with_care() {
    let good = Issuer::p256("good").jwk();
    let rsa = Issuer::rsa("r").jwk();
    let with = |base: &Value, name: &str, value: Value| {
        let mut changed = base.clone();
        changed[name] = value;
        changed
    };
    let cases = [
        ("shared secret", json!({"kty": "oct", "k": "AAAA"}), "shared secret"),
        ("unknown kind", json!({"kty": "XYZ"}), "none of RSA, EC, OKP"),
        ("no kind", json!({}), "kty"),
        ("no object", json!(7), "invalid type"),
        ("for encryption", with(&good, "use", json!("enc")), "use"),
        ("to sign only", with(&good, "key_ops", json!(["sign"])), "key_ops"),
        ("unknown curve", with(&good, "crv", json!("secp256k1")), "curve"),
        ("half a point", with(&good, "y", json!("AAAA")), "32 bytes"),
        ("no base64", with(&good, "x", json!("!!")), "base64url"),
        ("algorithm of another kind", with(&good, "alg", json!("RS256")), "alg"),
        ("unsupported algorithm", with(&good, "alg", json!("HS256")), "alg"),
        ("short modulus", with(&rsa, "n", json!(encode([0xff; 128]))), "2048"),
        ("padded short modulus", with(&rsa, "n", json!(encode([[0; 128], [0xff; 128]].concat()))), "2048"),
        ("long modulus", with(&rsa, "n", json!(encode([0xff; 2048]))), "8192"),
        ("even exponent", with(&rsa, "e", json!(encode([2]))), "exponent"),
        ("exponent one", with(&rsa, "e", json!(encode([1]))), "exponent"),
        ("no exponent", with(&rsa, "e", Value::Null), "no `e`"),
        ("Ed448", json!({"kty": "OKP", "crv": "Ed448", "x": "AAAA"}), "Ed25519"),
    ];
    for (name, bad, part) in cases {
        let alone = Jwks::parse(&document(std::slice::from_ref(&bad))).unwrap_err().to_string();
        assert!(alone.contains(part) && alone.contains("keys[0]"), "{name}: {alone}");
        let beside = Jwks::parse(&document(&[good.clone(), bad])).unwrap();
        assert_eq!((beside.len(), beside.unusable().len()), (1, 1), "{name}");
        assert_eq!(beside.unusable()[0].index, 1);
        assert!(beside.unusable()[0].problem.contains(part), "{name}");
    }
    for text in ["", "{}", "[]", "{\"keys\":{}}", "{\"keys\":[]}", "null", "\u{0}"] {
        assert!(Jwks::parse(text).is_err(), "{text:?}");
    }
    assert!(Jwks::parse(&document(&vec![good.clone(); 101])).unwrap_err().to_string().contains("100 keys"));
    let long = format!("{}{}", document(&[good]), " ".repeat(256 * 1024));
    assert!(Jwks::parse(&long).unwrap_err().to_string().contains("bytes"));
}
