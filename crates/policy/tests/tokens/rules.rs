//! Several rules, issuers and audiences; preflight.

use crate::issuer::{ISSUER, Issuer, claims, set};
use crate::scene::Scene;
use cinch_policy::jwt::{TokenFault, TokenRules};
use cinch_policy::{MeshConfig, PolicyObject, Workload};
use cinch_reason::Reason;
use serde_json::json;

const OTHER: &str = "https://other.example";

fn one_rule(more: &str, issuer: &Issuer) -> Scene {
    Scene::new(&[("ns/one", &format!("- issuer: {ISSUER}{more}"))]).keys(ISSUER, set(&[issuer.jwk()]))
}

#[test]
fn no_token_passes_without_a_principal() {
    let issuer = Issuer::ed25519("k");
    let passed = one_rule("", &issuer).ask(&[("accept", "*/*")], Some("a=b")).unwrap();
    assert_eq!(passed.claims, None);
    assert_eq!(passed.headers, [("accept".to_owned(), "*/*".to_owned())]);
    assert_eq!(passed.query.as_deref(), Some("a=b"));
    let nothing = Scene::new(&[]);
    assert!(nothing.rules.is_empty());
    assert!(nothing.bearer("whatever").is_ok(), "without rules tokens are of no interest");
}

#[test]
fn the_issuer_must_be_the_rules() {
    let issuer = Issuer::ed25519("k");
    let scene = one_rule("", &issuer);
    let cases =
        [json!(OTHER), json!("https://issuer.example/"), json!(null), json!(7), json!([ISSUER]), json!("")];
    for iss in cases {
        let token = issuer.token(&claims(json!({ "iss": iss })));
        assert_eq!(scene.bearer(&token), Err(TokenFault::Issuer), "{iss}");
    }
    let any = Scene::new(&[("ns/one", "- jwksUri: https://keys.example/k")])
        .keys("https://keys.example/k", set(&[issuer.jwk()]));
    assert!(any.bearer(&issuer.token(&claims(json!({"iss": OTHER})))).is_ok(), "no issuer named: any");
}

#[test]
fn any_audience_suffices_and_a_mismatch_is_told_apart() {
    let issuer = Issuer::ed25519("k");
    let scene = one_rule("\n  audiences: [web, api]", &issuer);
    let cases = [
        (json!("web"), true),
        (json!(["x", "api"]), true),
        (json!("WEB"), false),
        (json!("webx"), false),
        (json!([]), false),
        (json!(null), false),
        (json!({"web": 1}), false),
    ];
    for (aud, expected) in cases {
        let passed = scene.bearer(&issuer.token(&claims(json!({ "aud": aud }))));
        let expected = if expected { Ok(()) } else { Err(TokenFault::Audience) };
        assert_eq!(passed.map(|_| ()), expected, "{aud}");
    }
    assert_eq!(TokenFault::Audience.reason(), Reason::AudienceMismatch);
    assert_eq!(TokenFault::Expired.reason(), Reason::TokenInvalid);
    let free = one_rule("", &issuer);
    assert!(free.bearer(&issuer.token(&claims(json!({"aud": "anything"})))).is_ok());
}

#[test]
fn of_several_rules_one_suffices() {
    let (ours, theirs) = (Issuer::ed25519("a"), Issuer::p256("b"));
    let rules = format!("- issuer: {ISSUER}\n- issuer: {OTHER}\n  fromHeaders: [{{name: x-other}}]");
    let scene =
        Scene::new(&[("ns/one", &rules)]).keys(ISSUER, set(&[ours.jwk()])).keys(OTHER, set(&[theirs.jwk()]));
    let first = format!("Bearer {}", ours.token(&claims(json!({}))));
    let second = theirs.token(&claims(json!({"iss": OTHER, "sub": "bob"})));
    let forged = Issuer::p256("b").token(&claims(json!({"iss": OTHER})));

    assert_eq!(scene.ask(&[("authorization", &first)], None).unwrap().subject(), Some("ann"));
    assert_eq!(scene.ask(&[("x-other", &second)], None).unwrap().subject(), Some("bob"));
    let both = [("authorization", first.as_str()), ("x-other", second.as_str())];
    assert_eq!(scene.ask(&both, None).unwrap().subject(), Some("ann"), "the first rule that holds");
    let beside = [("authorization", first.as_str()), ("x-other", forged.as_str())];
    assert_eq!(scene.ask(&beside, None).unwrap().subject(), Some("ann"), "one valid rule is enough");
    assert_eq!(
        scene.ask(&[("x-other", &forged)], None),
        Err(TokenFault::Signature),
        "one missing, one invalid"
    );
    assert!(scene.ask(&[], None).unwrap().claims.is_none(), "both missing");
}

#[test]
fn rules_that_share_a_place_each_take_their_issuers_tokens() {
    let (ours, theirs) = (Issuer::ed25519("a"), Issuer::p256("b"));
    let specs =
        [("ns/b", format!("- issuer: {OTHER}")), ("ns/a", format!("- issuer: {ISSUER}\n  audiences: [web]"))];
    let specs: Vec<_> = specs.iter().map(|(name, rules)| (*name, rules.as_str())).collect();
    for specs in [[specs[0], specs[1]], [specs[1], specs[0]]] {
        let scene = Scene::new(&specs).keys(ISSUER, set(&[ours.jwk()])).keys(OTHER, set(&[theirs.jwk()]));
        let passed = scene.bearer(&theirs.token(&claims(json!({"iss": OTHER})))).unwrap();
        assert_eq!(passed.policy.as_deref(), Some("ns/b"));
        let passed = scene.bearer(&ours.token(&claims(json!({"aud": "web"})))).unwrap();
        assert_eq!(passed.policy.as_deref(), Some("ns/a"));
        let wrong = scene.bearer(&ours.token(&claims(json!({"aud": "x"}))));
        assert_eq!(wrong, Err(TokenFault::Audience), "a wrong audience outranks an unknown issuer");
        let third = scene.bearer(&ours.token(&claims(json!({"iss": "https://third.example"}))));
        assert_eq!(third, Err(TokenFault::Issuer));
    }
}

#[test]
fn of_the_same_issuer_twice_either_suffices() {
    let (old, new) = (Issuer::ed25519("old"), Issuer::ed25519("new"));
    let rules =
        format!("- issuer: {ISSUER}\n  jwksUri: https://a/\n- issuer: {ISSUER}\n  jwksUri: https://b/");
    let scene = Scene::new(&[("ns/one", &rules)])
        .keys("https://a/", set(&[old.jwk()]))
        .keys("https://b/", set(&[new.jwk()]));
    assert!(scene.bearer(&old.token(&claims(json!({})))).is_ok());
    assert!(scene.bearer(&new.token(&claims(json!({})))).is_ok());
    let rules = format!("- issuer: {ISSUER}\n  audiences: [a]\n- issuer: {ISSUER}\n  audiences: [b]");
    let scene = Scene::new(&[("ns/one", &rules)]).keys(ISSUER, set(&[old.jwk()]));
    assert!(scene.bearer(&old.token(&claims(json!({"aud": "b"})))).is_ok());
    assert_eq!(scene.bearer(&old.token(&claims(json!({"aud": "c"})))), Err(TokenFault::Audience));
}

#[test]
fn without_keys_no_token_passes() {
    let issuer = Issuer::ed25519("k");
    let scene = Scene::new(&[("ns/one", "- issuer: https://issuer.example")]);
    assert_eq!(scene.bearer(&issuer.token(&claims(json!({})))), Err(TokenFault::NoKeys));
    assert!(scene.ask(&[], None).is_ok(), "and no token is no token");
    let broken = Scene::new(&[("ns/one", "- issuer: https://issuer.example\n  jwks: '{}'")]);
    assert_eq!(broken.bearer(&issuer.token(&claims(json!({})))), Err(TokenFault::NoKeys));
}

#[test]
fn inline_keys_need_no_fetch() {
    let issuer = Issuer::rsa("k");
    let jwks = crate::issuer::document(&[issuer.jwk()]);
    let scene = Scene::new(&[("ns/one", &format!("- issuer: {ISSUER}\n  jwks: '{jwks}'"))]);
    assert!(scene.bearer(&issuer.token(&claims(json!({})))).is_ok());
    assert!(scene.rules.fetches().is_empty());
}

#[test]
fn fetches_name_each_key_set_once() {
    let rules =
        "- issuer: https://a/\n  timeout: 2s\n- issuer: https://a/\n- issuer: b\n  jwks_uri: https://b/keys";
    let fetches = Scene::new(&[("ns/one", rules)]).rules.fetches();
    let told: Vec<_> =
        fetches.iter().map(|fetch| (&*fetch.name, fetch.url.as_str(), fetch.is_discovery)).collect();
    let expected = [
        ("https://a/", "https://a/.well-known/openid-configuration", true),
        ("https://b/keys", "https://b/keys", false),
    ];
    assert_eq!(told, expected);
    assert_eq!(fetches[0].timeout.as_deref(), Some("2s"));
    assert_eq!(fetches[1].issuer.as_deref(), Some("b"));
}

#[test]
fn a_preflight_is_not_looked_at() {
    let scene = one_rule("\n  outputPayloadToHeader: x-payload", &Issuer::ed25519("k"));
    let full = [
        ("Origin", "https://app.example"),
        ("Access-Control-Request-Method", "PUT"),
        ("Authorization", "Bearer nonsense"),
        ("X-Payload", "forged"),
    ];
    let passed = scene.ask_with("OPTIONS", &full, None).unwrap();
    assert_eq!(passed.claims, None);
    assert_eq!(passed.header("X-Payload"), None, "headers of ours are stripped all the same");
    assert_eq!(passed.header("Authorization"), Some("Bearer nonsense"));
    assert!(scene.ask_with("GET", &full, None).is_err());
    assert!(scene.ask_with("options", &full, None).is_err());
    assert!(scene.ask_with("OPTIONS", &full[1..], None).is_err(), "without Origin");
    assert!(scene.ask_with("OPTIONS", &[full[0], full[2]], None).is_err(), "without a method asked for");
}

#[test]
fn claims_that_somebody_else_verified_are_split_by_the_rules_of_their_issuer() {
    let rules = format!(
        "- issuer: {ISSUER}\n  spaceDelimitedClaims: [roles]\n- issuer: {OTHER}\n  spaceDelimitedClaims: [groups]\n- jwksUri: https://x/\n  spaceDelimitedClaims: [any]"
    );
    let scene = Scene::new(&[("ns/one", &rules)]);
    assert_eq!(scene.rules.space_delimited(&json!({"iss": ISSUER})), ["any", "roles"]);
    assert_eq!(scene.rules.space_delimited(&json!({"iss": OTHER})), ["any", "groups"]);
    assert_eq!(scene.rules.space_delimited(&json!({})), ["any"]);
}

#[test]
fn the_rules_of_a_workload_are_those_that_select_it() {
    let object = |namespace: &str, name: &str, app: &str| {
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "selector": {"matchLabels": {"app": app}},
                "jwtRules": [{"issuer": format!("https://{name}.example")}],
            },
        })
    };
    let objects = [
        object("shop", "here", "web"),
        object("shop", "other-app", "api"),
        object("elsewhere", "other-namespace", "web"),
        object("cinch-system", "root", "web"),
    ];
    let objects: Vec<_> = objects.iter().map(|object| PolicyObject::parse(object).unwrap()).collect();
    let workload = Workload {
        namespace: "shop".to_owned(),
        labels: [("app".to_owned(), "web".to_owned())].into(),
        ..Workload::default()
    };
    let rules = TokenRules::of_workload(&MeshConfig::default(), &objects, &workload);
    let names: Vec<_> = rules.fetches().iter().map(|fetch| fetch.name.to_string()).collect();
    assert_eq!(names, ["https://root.example", "https://here.example"], "by the names of the objects");
}
