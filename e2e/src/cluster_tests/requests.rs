//! Policies of the request: method, path and token decide, on connections that live on.

use super::scene::{PORT, Scene, Workload};
use crate::place::{Kept, Outcome, SERVED, open};
use crate::policies;
use crate::wait;
use anyhow::{Context, Result, anyhow, ensure};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const POLICY: &str = "AuthorizationPolicy";
const POLICIES: &str = "authorizationpolicies";
const FORBIDDEN: Outcome = Outcome::Answered(403);
const UNAUTHORIZED: Outcome = Outcome::Answered(401);
const ISSUER: &str = "https://issuer.example";

/// A method, a target and what they must come to.
type Case<'c> = (&'c str, &'c str, Outcome);

/// Sends all cases over one connection, which must outlive each refusal.
fn each(kept: &mut Kept, cases: &[Case<'_>]) -> Result<String> {
    let mut seen = Vec::new();
    for (method, target, wanted) in cases {
        let outcome = kept.request(method, target, "");
        ensure!(outcome == *wanted, "{method} {target} came to {outcome}, not {wanted}");
        seen.push(format!("{method} {target}: {outcome}"));
    }
    Ok(seen.join(", "))
}

/// An ALLOW by principal, method and path, and a DENY by path: each request of a connection is judged by itself,
/// also however its path is written, and a policy that changes judges the next request of open connections.
pub fn by_method_and_path(scene: &Scene<'_>) -> Result<String> {
    let api = Workload { ports: &[PORT, 9090], ..Workload::meshed("api") };
    scene.enrolled(&[api, Workload::meshed("client"), Workload::meshed("other")])?;
    let (client, other, to) = (scene.place("client")?, scene.place("other")?, scene.server("api")?);
    scene.until(&client, to, &SERVED)?;
    let mut before = open(&client, to)?;
    ensure!(before.ask() == SERVED, "no policy is there yet");
    let principal = format!("cluster.local/ns/{}/sa/client", scene.namespace);
    let rule = json!({"from": [{"source": {"principals": [principal]}}],
        "to": [{"operation": {"methods": ["GET"], "paths": ["/hello*"], "ports": ["8080"]}}]});
    let selector = json!({"matchLabels": {"app": "api"}});
    let said = scene.policy(
        POLICY,
        "hello",
        json!({"selector": selector, "rules": [rule, {"to": [{"operation": {"ports": ["9090"]}}]}]}),
    )?;
    let warning = policies::warned(&said, "this needs HTTP")?;
    let enforced = policies::enforced(&scene.see, POLICIES, &scene.namespace, "hello", 1)?;
    scene.see.shown(&["get", POLICIES, "-n", &scene.namespace])?;
    // It was open while no policy asked for HTTP, and its requests can't be told apart now: it ends.
    let end = before.ended_within(Duration::from_secs(120));
    ensure!(end == Outcome::Reset, "a connection from before the policy came to {end}");
    let mut kept = open(&client, to)?;
    let allowed = each(
        &mut kept,
        &[
            ("GET", "/hello", SERVED),
            ("POST", "/hello", FORBIDDEN),
            ("GET", "/hello/again?q=1", SERVED),
            ("GET", "/", FORBIDDEN),
            ("GET", "/hello/../secret", FORBIDDEN),
            ("GET", "/hello/%2e%2e/secret", FORBIDDEN),
            ("GET", "/hello/..%2fsecret", FORBIDDEN),
            ("GET", "/hello", SERVED),
        ],
    )?;
    // Whatever it asked for, no rule could allow its principal: the connection is refused before it speaks.
    scene.always(&other, to, &Outcome::Reset)?;
    let plain_port = SocketAddr::new(to.ip(), 9090);
    scene.always(&other, plain_port, &SERVED)?;
    let garbage = not_http(client.connect(to)?)?;
    // The same connection, under a policy that has changed.
    scene.policy(
        POLICY,
        "no-hello",
        json!({"selector": selector, "action": "DENY",
        "rules": [{"to": [{"operation": {"paths": ["/hello"], "ports": ["8080"]}}]}]}),
    )?;
    policies::enforced(&scene.see, POLICIES, &scene.namespace, "no-hello", 1)?;
    let denied = each(
        &mut kept,
        &[("GET", "/hello", FORBIDDEN), ("GET", "/%68ello", FORBIDDEN), ("GET", "/hello/again", SERVED)],
    )?;
    Ok(format!(
        "{warning}; {enforced}; on one connection: {allowed}; bytes that are no HTTP: {garbage}; after one more DENY: {denied}"
    ))
}

/// What becomes of a connection whose bytes are no HTTP, on a port where a policy asks for requests.
fn not_http(mut stream: std::net::TcpStream) -> Result<String> {
    stream
        .write_all(b"\x00\x01\x02 this is not HTTP \xff\r\n\r\n")
        .context("the connection is gone already")?;
    let mut answer = Vec::new();
    let end = stream.read_to_end(&mut answer);
    let said = String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned();
    ensure!(!said.contains(" 200 "), "garbage was served: {said}");
    Ok(match end {
        Ok(_) if said.is_empty() => "closed".to_owned(),
        Ok(_) => said,
        Err(error) => Outcome::from(&error).to_string(),
    })
}

/// A RequestAuthentication with a key of its own, and a policy that asks for one subject of its issuer.
pub fn by_token(scene: &Scene<'_>) -> Result<String> {
    scene.enrolled(&[Workload::meshed("api"), Workload::meshed("client")])?;
    let (client, to) = (scene.place("client")?, scene.server("api")?);
    scene.until(&client, to, &SERVED)?;
    let (key, foreign) = (Signer::new()?, Signer::new()?);
    let selector = json!({"matchLabels": {"app": "api"}});
    let tokens = json!({"selector": selector, "jwtRules": [{"issuer": ISSUER, "jwks": key.public()}]});
    let said = scene.policy("RequestAuthentication", "tokens", tokens)?;
    policies::warned(&said, "a request without a token still passes")?;
    scene.policy(
        POLICY,
        "private",
        json!({"selector": selector, "rules": [
        {"to": [{"operation": {"paths": ["/open"]}}]},
        {"from": [{"source": {"requestPrincipals": [format!("{ISSUER}/alice")]}}]}]}),
    )?;
    let of_tokens = policies::enforced(&scene.see, "requestauthentications", &scene.namespace, "tokens", 1)?;
    let of_private = policies::enforced(&scene.see, POLICIES, &scene.namespace, "private", 1)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let (alice, bob) = (key.token("alice", now + 600)?, key.token("bob", now + 600)?);
    let (late, forged) = (key.token("alice", now - 600)?, foreign.token("alice", now + 600)?);
    let cases = [
        ("no token", "/open", None, SERVED),
        ("no token", "/private", None, FORBIDDEN),
        ("alice's", "/private", Some(&alice), SERVED),
        ("bob's", "/private", Some(&bob), FORBIDDEN),
        ("an expired one", "/open", Some(&late), UNAUTHORIZED),
        ("one of another key", "/open", Some(&forged), UNAUTHORIZED),
    ];
    let mut seen = Vec::new();
    for (whose, path, token, wanted) in cases {
        let header = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let outcome =
            wait::until(&format!("{whose} at {path} to be {wanted}"), Duration::from_secs(120), || {
                let outcome = open(&client, to).map(|mut kept| kept.request("GET", path, &header))?;
                Ok(if outcome == wanted {
                    wait::Seen::Done(outcome)
                } else {
                    wait::Seen::Not(outcome.to_string())
                })
            })?;
        seen.push(format!("{whose} at {path}: {outcome}"));
    }
    Ok(format!("{of_tokens}, {of_private}; {}", seen.join(", ")))
}

/// Somebody who issues tokens.
struct Signer(EcdsaKeyPair);

impl Signer {
    fn new() -> Result<Self> {
        EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map(Self).map_err(|_| anyhow!("no key"))
    }

    /// The key set, as `jwks` wants it.
    fn public(&self) -> String {
        let point = self.0.public_key().as_ref();
        let part = |range| URL_SAFE_NO_PAD.encode(point.get(range).unwrap_or_default());
        json!({"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "1",
            "x": part(1..33), "y": part(33..65)}]})
        .to_string()
    }

    fn token(&self, subject: &str, expires: u64) -> Result<String> {
        let encode = |part: &Value| URL_SAFE_NO_PAD.encode(part.to_string());
        let head = encode(&json!({"alg": "ES256", "typ": "JWT", "kid": "1"}));
        let signed = format!("{head}.{}", encode(&json!({"iss": ISSUER, "sub": subject, "exp": expires})));
        let signature =
            self.0.sign(&SystemRandom::new(), signed.as_bytes()).map_err(|_| anyhow!("no signature"))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref())))
    }
}
