//! RequestAuthentications on the data path: tokens of an issuer of our own, and what becomes of requests with them.

use crate::mesh::*;
use crate::web::*;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cinch_control::v1;
use cinch_policy::Mode;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const ISSUER: &str = "https://issuer.example";

struct Issuer(EcdsaKeyPair);

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

impl Issuer {
    fn new() -> Self {
        Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap())
    }

    fn document(&self, kid: &str) -> String {
        let point = self.0.public_key().as_ref();
        let key = json!({"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": kid, "x": base64(&point[1..33]), "y": base64(&point[33..65])});
        json!({"keys": [key]}).to_string()
    }

    fn token(&self, kid: &str, claims: Value) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let mut all = json!({"iss": ISSUER, "sub": "ann", "exp": now + 600});
        all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
        let head = base64(json!({"alg": "ES256", "kid": kid}).to_string());
        let signed = format!("{head}.{}", base64(all.to_string()));
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
    let mut tokens = policy_of("shop/tokens", &json!({"jwtRules": [rule()]}));
    tokens.jwks = document
        .map(|document| v1::Jwks {
            source: "https://issuer.example/keys".into(),
            document: document.into_bytes().into(),
        })
        .into_iter()
        .collect();
    let policy = policy.map(|spec| policy_of("shop/who", &spec));
    put_received(pod, received(version, [tokens].into_iter().chain(policy).collect())).await;
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
    // Valid for two more seconds, counting the leeway.
    let token = issuer.token("one", json!({"exp": now - 58}));
    let mut client = connect(&mesh, Over::Tunnel).await;
    client.send(format!("GET /poll HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {token}\r\n\r\n")).await;
    eventually("it waits", || heard.lock().unwrap().len() == 1).await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    put_tokens(&mesh.api, 3, Some(issuer.document("one")), Some(by_claim())).await;
    let still = tokio::time::timeout(Duration::from_millis(50), client.rest()).await;
    assert!(still.is_err(), "{still:?}");
    put_tokens(&mesh.api, 4, Some(Issuer::new().document("one")), Some(by_claim())).await;
    assert_eq!(client.rest().await, (Vec::new(), Some(std::io::ErrorKind::ConnectionReset)));
}
