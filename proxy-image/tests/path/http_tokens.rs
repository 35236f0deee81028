//! RequestAuthentications on the data path: tokens of an issuer of our own, and what becomes of requests with them.

use crate::mesh::*;
use crate::web::*;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cinch_control::v1;
use cinch_policy::Mode;
use cinch_proxy::context::InboundPolicy;
use serde_json::{Value, json};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const ISSUER: &str = "https://issuer.example";

struct Issuer(EcdsaKeyPair);

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Issuer {
    fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    fn jwk(&self, kid: &str) -> Value {
        let point = self.0.public_key().as_ref();
        json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": kid, "x": base64(&point[1..33]), "y": base64(&point[33..65])})
    }

    fn document(&self, kid: &str) -> String {
        json!({"keys": [self.jwk(kid)]}).to_string()
    }

    fn token(&self, kid: &str, claims: Value) -> String {
        self.token_with(&json!({"alg": "ES256", "kid": kid}), claims)
    }

    fn token_with(&self, head: &Value, claims: Value) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let mut all = json!({"iss": ISSUER, "sub": "ann", "exp": now + 600});
        all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
        let signed = format!("{}.{}", base64(head.to_string()), base64(all.to_string()));
        let signature = self.0.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", base64(signature.as_ref()))
    }
}

fn rule() -> Value {
    json!({
        "issuer": ISSUER,
        "jwksUri": "https://issuer.example/keys",
        "audiences": [],
        "outputClaimToHeaders": [{"header": "x-user", "claim": "sub"}],
    })
}

/// Only those of the group of admins may go to `/admin`; everybody else with a token may go elsewhere.
fn by_claim() -> Value {
    json!({"action": "ALLOW", "rules": [
        {"to": [{"operation": {"paths": ["/admin"]}}], "when": [{"key": "request.auth.claims[groups]", "values": ["admins"]}]},
        {"from": [{"source": {"requestPrincipals": ["https://issuer.example/*"]}}], "to": [{"operation": {"notPaths": ["/admin"]}}]},
    ]})
}

/// Puts a RequestAuthentication with this key set, and perhaps a policy, in force.
async fn put_tokens(pod: &Pod, version: u64, document: Option<String>, policy: Option<Value>) {
    put_received(pod, tokens(version, document, policy)).await;
}

fn tokens(version: u64, document: Option<String>, policy: Option<Value>) -> InboundPolicy {
    let mut tokens = policy_of("shop/tokens", &json!({"jwtRules": [rule()]}));
    tokens.jwks = document
        .map(|document| v1::Jwks {
            source: "https://issuer.example/keys".into(),
            document: document.into_bytes().into(),
        })
        .into_iter()
        .collect();
    let policy = policy.map(|spec| policy_of("shop/who", &spec));
    received(version, [tokens].into_iter().chain(policy).collect())
}

async fn start(policy: Option<Value>) -> (Mesh, Heard, Issuer) {
    let mesh = Mesh::start(Mode::Permissive).await;
    let heard = web(&mesh.api).await;
    let issuer = Issuer::new();
    put_tokens(&mesh.api, 2, Some(issuer.document("one")), policy).await;
    (mesh, heard, issuer)
}

async fn ask(client: &mut Client, target: &str, token: Option<&str>) -> Answer {
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    client.send(format!("GET {target} HTTP/1.1\r\nHost: shop\r\nX-User: root\r\n{token}\r\n")).await;
    client.answer().await
}

#[tokio::test]
async fn claims_decide_and_reach_the_app_and_the_token_does_not() {
    for over in BOTH {
        let (mesh, heard, issuer) = start(Some(by_claim())).await;
        let mut client = connect(&mesh, over).await;
        let (ann, admin) = (
            issuer.token("one", json!({})),
            issuer.token("one", json!({"sub": "eve", "groups": ["admins"]})),
        );
        for (target, token, status) in [
            ("/", None, 403),
            ("/", Some(&ann), 200),
            ("/admin", Some(&ann), 403),
            ("/admin", Some(&admin), 200),
        ] {
            let answer = ask(&mut client, target, token.map(String::as_str)).await;
            assert_eq!(answer.status, status, "{over:?} {target}");
        }
        let heard = heard.lock().unwrap();
        let users: Vec<_> = heard.iter().map(|head| field(head, "x-user").unwrap()).collect();
        assert_eq!(users, ["ann", "eve"], "{over:?}: the client does not say who it is");
        assert!(heard.iter().all(|head| field(head, "authorization").is_none()), "{over:?}");
    }
}

#[tokio::test]
async fn a_token_that_does_not_count_is_refused_with_401() {
    let (mesh, heard, issuer) = start(None).await;
    let foreign = Issuer::new();
    let mut client = connect(&mesh, Over::Tunnel).await;
    for (what, token) in [
        ("another key", foreign.token("one", json!({}))),
        ("expired", issuer.token("one", json!({"exp": 1000}))),
        ("of another issuer", issuer.token("one", json!({"iss": "https://else.example"}))),
        ("no token", "rubbish".to_owned()),
    ] {
        let answer = ask(&mut client, "/", Some(&token)).await;
        assert_eq!(answer.status, 401, "{what}");
        assert!(
            field(&answer.head, "www-authenticate").is_some_and(|how| how.starts_with("Bearer")),
            "{what}"
        );
    }
    assert!(heard.lock().unwrap().is_empty());
    // By this alone nobody needs a token, and a forged claim does not get through.
    assert_eq!(ask(&mut client, "/", None).await.status, 200);
    assert_eq!(field(&heard.lock().unwrap()[0], "x-user"), None);
    let of_policy = "policy_denials_total{policy=\"shop/tokens\",rule=\"0\"}";
    assert_eq!(mesh.api.metric(of_policy), Some(4));
}

#[tokio::test]
async fn after_64_forged_tokens_a_connection_ends_and_loses_no_request() {
    let forged_tokens = "limit_refusals_total{limit=\"http_forged_tokens\"}";
    for over in BOTH {
        let (mesh, heard, issuer) = start(None).await;
        let (foreign, good) = (Issuer::new(), issuer.token("one", json!({})));
        let mut client = connect(&mesh, over).await;
        for number in 1..64 {
            let token = foreign.token("one", json!({"number": number}));
            assert_eq!(ask(&mut client, "/", Some(&token)).await.status, 401, "{over:?} {number}");
            assert_eq!(ask(&mut client, "/", Some(&token)).await.status, 401, "the same costs nothing");
        }
        assert_eq!(ask(&mut client, "/", Some(&good)).await.status, 200, "{over:?}: after 63");
        assert_eq!(mesh.api.metric(forged_tokens), None, "{over:?}");
        let last = foreign.token("one", json!({"number": 64}));
        assert_eq!(ask(&mut client, "/", Some(&last)).await.status, 401, "{over:?}: the 64th is answered");
        eventually("it is drained", || mesh.api.metric(forged_tokens) == Some(1)).await;
        let crossing = ask(&mut client, "/", Some(&good)).await;
        let said = (crossing.status, field(&crossing.head, "connection"));
        assert_eq!(said, (200, Some("close")), "{over:?}: somebody else's, which was on its way");
        assert_eq!(client.rest().await, (Vec::new(), None), "{over:?}: and then it is over");
        assert_eq!(ask(&mut connect(&mesh, over).await, "/", Some(&good)).await.status, 200, "{over:?}");
        assert_eq!(heard.lock().unwrap().len(), 3, "{over:?}");
    }
}

#[tokio::test]
async fn forged_tokens_that_name_no_key_count_too_where_not_all_keys_are_tried() {
    let (mesh, _heard, issuer) = start(None).await;
    let others: Vec<_> = (0..5).map(|_| Issuer::new()).collect();
    let keys: Vec<_> = others.iter().chain([&issuer]).map(|issuer| issuer.jwk("one")).collect();
    put_tokens(&mesh.api, 3, Some(json!({ "keys": keys }).to_string()), None).await;
    let foreign = Issuer::new();
    let mut client = connect(&mesh, Over::Tunnel).await;
    let ends = || mesh.api.metric("limit_refusals_total{limit=\"http_forged_tokens\"}");
    for number in 1..=64 {
        assert_eq!(ends(), None, "{number}");
        let token = foreign.token_with(&json!({"alg": "ES256"}), json!({"number": number}));
        // As often as it comes, it counts once.
        for _ in 0..if number == 1 { 100 } else { 1 } {
            assert_eq!(ask(&mut client, "/", Some(&token)).await.status, 401, "{number}");
        }
    }
    eventually("it is drained", || ends() == Some(1)).await;
    assert_eq!(mesh.api.metric("limit_refusals_total{limit=\"http_token_tries\"}"), Some(64));
}

#[tokio::test]
async fn more_tokens_than_a_request_may_hold_are_refused_and_counted() {
    let (mesh, heard, issuer) = start(None).await;
    let token = issuer.token("one", json!({}));
    let mut client = connect(&mesh, Over::Tunnel).await;
    for (count, status) in [(8, 200), (9, 401)] {
        let query = vec![format!("access_token={token}"); count].join("&");
        assert_eq!(client.ask(&format!("GET /?{query}")).await.status, status, "{count}");
    }
    let counted = "limit_refusals_total{limit=\"http_tokens_per_request\"}";
    assert_eq!((heard.lock().unwrap().len(), mesh.api.metric(counted)), (1, Some(1)));
}

#[tokio::test]
async fn a_header_that_an_app_could_take_for_a_claim_is_refused() {
    let (mesh, heard, _issuer) = start(None).await;
    let mut client = connect(&mesh, Over::Tunnel).await;
    client.send("GET / HTTP/1.1\r\nHost: shop\r\nX_User: root\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 400);
    assert!(heard.lock().unwrap().is_empty());
}

#[tokio::test]
async fn without_keys_every_token_is_refused_and_the_operator_is_asked_for_them() {
    let (mesh, _heard, issuer) = start(None).await;
    put_tokens(&mesh.api, 3, None, None).await;
    let token = issuer.token("one", json!({}));
    assert_eq!(ask(&mut connect(&mesh, Over::Tunnel).await, "/", Some(&token)).await.status, 401);
    let asked = within(mesh.api.ctx.http.unknown_keys.next()).await;
    assert_eq!(&*asked.source, "https://issuer.example/keys");
    put_tokens(&mesh.api, 4, Some("{\"keys\": []}".into()), None).await;
    assert_eq!(ask(&mut connect(&mesh, Over::Tunnel).await, "/", Some(&token)).await.status, 401);
}

#[tokio::test]
async fn keys_that_come_with_no_policy_any_more_verify_for_a_time_and_then_nothing() {
    let (mesh, _heard, issuer) = start(Some(by_claim())).await;
    let (token, other) = (issuer.token("one", json!({})), issuer.token("one", json!({"sub": "eve"})));
    let mut client = connect(&mesh, Over::Tunnel).await;
    let without = |version: u64, within: Duration| {
        let mut policy = tokens(version, None, Some(by_claim()));
        let former = mesh.api.policy.borrow().clone().unwrap();
        policy.keep_keys_of(&former, Instant::now(), within);
        policy
    };
    put_received(&mesh.api, without(3, Duration::from_secs(3600))).await;
    assert_eq!(ask(&mut client, "/", Some(&token)).await.status, 200, "they are kept");
    put_tokens(&mesh.api, 4, Some(issuer.document("one")), Some(by_claim())).await;
    put_received(&mesh.api, without(5, Duration::ZERO)).await;
    for (what, token) in [("one that was verified before", &token), ("a new one", &other)] {
        assert_eq!(ask(&mut client, "/", Some(token)).await.status, 401, "{what}");
    }
    assert_eq!(ask(&mut client, "/", None).await.status, 403, "nor does anybody pass without");
    let asked = within(mesh.api.ctx.http.unknown_keys.next()).await;
    assert_eq!(&*asked.source, "https://issuer.example/keys");
    put_received(&mesh.api, without(6, Duration::from_secs(3600))).await;
    assert_eq!(
        ask(&mut client, "/", Some(&token)).await.status,
        401,
        "no further policy gives them more time"
    );
    put_tokens(&mesh.api, 7, Some(issuer.document("one")), Some(by_claim())).await;
    assert_eq!(ask(&mut client, "/", Some(&token)).await.status, 200, "they have come again");
}

#[tokio::test]
async fn an_unknown_key_is_asked_for_and_its_token_counts_once_it_has_come() {
    let (mesh, _heard, _issuer) = start(None).await;
    let rotated = Issuer::new();
    let token = rotated.token("two", json!({}));
    let mut client = connect(&mesh, Over::Tunnel).await;
    assert_eq!(ask(&mut client, "/", Some(&token)).await.status, 401);
    let asked = within(mesh.api.ctx.http.unknown_keys.next()).await;
    assert_eq!((&*asked.source, &*asked.kid), ("https://issuer.example/keys", "two"));
    put_tokens(&mesh.api, 3, Some(rotated.document("two")), None).await;
    assert_eq!(ask(&mut client, "/", Some(&token)).await.status, 200);
}

#[tokio::test]
async fn a_key_that_is_withdrawn_cuts_what_its_tokens_began_and_an_expired_token_does_not() {
    let (mesh, heard, issuer) = start(Some(by_claim())).await;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    // Valid for five more seconds, counting the leeway.
    let token = issuer.token("one", json!({"exp": now - 55}));
    let mut client = connect(&mesh, Over::Tunnel).await;
    client.send(format!("GET /poll HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n")).await;
    eventually("it waits", || heard.lock().unwrap().len() == 1).await;
    tokio::time::sleep(Duration::from_secs(7)).await;
    put_tokens(&mesh.api, 3, Some(issuer.document("one")), Some(by_claim())).await;
    let still = tokio::time::timeout(Duration::from_millis(50), client.rest()).await;
    assert!(still.is_err(), "{still:?}");
    put_tokens(&mesh.api, 4, Some(Issuer::new().document("one")), Some(by_claim())).await;
    assert_eq!(client.rest().await, (Vec::new(), Some(std::io::ErrorKind::ConnectionReset)));
}
