//! Bytes that are nothing, and certificates that nobody should take, on each port of operator, webhook and proxy.

use super::forged::{Authority, Ends};
use super::witness::{PAGE, Trace, Witness};
use crate::install::NAMESPACE;
use crate::place::{Outcome, Place};
use crate::see::{See, text};
use crate::story::Story;
use crate::terminal;
use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cinch_identity::{Peer, SpiffeId, Svid, TrustBundle, client_config, server_name};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;

const OPERATOR: &str = "spiffe://cluster.local/ns/cinch-system/sa/cinch-operator";
const API: &str = "spiffe://cluster.local/ns/shop/sa/api";
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
/// Of these one comes about, also on a busy machine.
const TRIES: usize = 50;
/// The protocol of tunnels.
const TUNNEL: &[u8] = b"cinch/1";
/// Neither HTTP nor TLS nor a message of ours.
const GARBAGE: [u8; 64] = [0xff; 64];
/// The page of metrics of proxies.
const METRICS: u16 = 15020;

/// Tries all of them; each is ended, counted and told, and all parts go on.
pub fn bytes(story: &mut Story<'_>) -> Result<String> {
    let see = story.see;
    let forger = Forger {
        see,
        outside: Place::outside(see.cluster)?,
        mesh: Authority::of_the_mesh(see)?,
        stranger: Authority::stranger()?,
        bundle: bundle(see)?,
    };
    let mut seen = Vec::new();
    let parts =
        [("operator", forger.operator()?), ("webhook", forger.webhook()?), ("proxy of api", forger.proxy()?)];
    for (part, (tried, told)) in parts {
        terminal::show(&format!("{part}:\n{told}"));
        seen.push(format!("{part}: {tried}"));
    }
    let web = story.web_goes_on(20)?;
    Ok(format!("ended, counted and told, each: {}; {web}", seen.join(", ")))
}

fn bundle(see: See<'_>) -> Result<TrustBundle> {
    let trust = see.json(&["configmap", "cinch-trust", "-n", "shop"])?;
    let domain = SpiffeId::parse(OPERATOR)?.trust_domain();
    Ok(TrustBundle::from_pem(domain, &text(&trust, "/data/bundle.pem"))?)
}

/// The roots that the API server has for the webhook.
fn webhook_roots(see: See<'_>) -> Result<RootCertStore> {
    let configuration = see.json(&["mutatingwebhookconfiguration", "cinch-injector"])?;
    let pem = STANDARD.decode(text(&configuration, "/webhooks/0/clientConfig/caBundle"))?;
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(&pem) {
        roots.add(root.context("caBundle")?)?;
    }
    Ok(roots)
}

/// What was tried over one connection: our end of it, and how the other side ended it.
struct Tried {
    from: SocketAddr,
    end: String,
}

/// How many things were tried, and what they left.
type Seen = (usize, String);

struct Forger<'a> {
    see: See<'a>,
    outside: Place,
    mesh: Authority,
    stranger: Authority,
    bundle: TrustBundle,
}

impl Forger<'_> {
    fn operator(&self) -> Result<Seen> {
        let witness = Witness::of_leader(self.see)?;
        let to = witness.at(7443);
        let ended = |end: &str| format!("cinch_operator_control_connections_total{{end=\"{end}\"}}");
        let refused =
            |reason: &str| format!("cinch_operator_certificates_refused_total{{reason=\"{reason}\"}}");
        let trace = |what: &str, tried: Tried, counters: Vec<String>, word: String| Trace {
            what: format!("{what}: {}", tried.end),
            counters,
            line: vec![format!("peer={} ", tried.from), word],
        };
        let plain = |end: &str| (vec![ended(end)], format!("end=\"{end}\""));
        let mut traces = Vec::new();
        for (what, words) in [("HTTP at 7443", &b"GET / HTTP/1.1\r\n\r\n"[..]), ("bytes at 7443", &GARBAGE)] {
            let (counters, word) = plain("handshake");
            traces.push(trace(what, raw(&self.outside, to, words)?, counters, word));
        }
        let tried = self.tls(to, &self.config(None, OPERATOR, cinch_control::ALPN)?, &GARBAGE)?;
        let (counters, word) = plain("garbage");
        traces.push(trace("bytes in TLS at 7443", tried, counters, word));
        for (what, svid, reason) in self.certificates(API)? {
            let tried = self.tls(to, &self.config(Some(&svid), OPERATOR, cinch_control::ALPN)?, &[])?;
            let counters = vec![ended("certificate"), refused(reason)];
            traces.push(trace(&format!("{what} at 7443"), tried, counters, reason.to_owned()));
        }
        Ok((traces.len(), witness.noticed(&traces)?))
    }

    fn webhook(&self) -> Result<Seen> {
        let pods = self.see.pods(NAMESPACE, "app.kubernetes.io/component=webhook")?;
        let witness = Witness::new(self.see, pods.first().context("no webhook")?, "cinch-webhook", PAGE)?;
        let to = witness.at(10250);
        let tried = raw(&self.outside, to, &GARBAGE)?;
        let bytes = Trace {
            what: format!("bytes at 10250: {}", tried.end),
            counters: vec!["cinch_webhook_handshake_failures_total".to_owned()],
            line: vec![format!("source={} ", tried.from.ip()), "the TLS handshake failed".to_owned()],
        };
        let answer = self.post(to, "/mutate", "{\"kind\": \"AdmissionReview\"")?;
        ensure!(answer.starts_with("HTTP/1.1 400 "), "half a review was answered {answer}");
        ensure!(answer.contains("MalformedReview: "), "the answer does not say why: {answer}");
        let review = Trace {
            what: format!("half a review: {}", answer.lines().last().unwrap_or_default()),
            counters: vec![
                "cinch_webhook_reviews_total{outcome=\"malformed\",reason=\"MalformedReview\"}".to_owned(),
            ],
            line: vec!["MalformedReview: ".to_owned()],
        };
        Ok((2, witness.noticed(&[bytes, review])?))
    }

    /// A pod of a STRICT namespace.
    fn proxy(&self) -> Result<Seen> {
        let pods = self.see.pods("shop", "app=api")?;
        let pod = pods.first().context("no pod of api")?;
        let witness = Witness::new(self.see, pod, "cinch-proxy", METRICS)?;
        let mut traces = self.by_the_app(pod)?;
        for (port, reason) in [
            (8080, "StrictPlaintext"),
            // Where other meshes have a port of their own, and nobody listens here.
            (15008, "StrictPlaintext"),
            (15000, "DestinationRefused"),
            (15001, "DestinationRefused"),
            (15006, "DestinationRefused"),
        ] {
            let tried = raw(&self.outside, witness.at(port), &GARBAGE)?;
            traces.push(refusal(&format!("bytes at {port}"), &tried, "inbound", reason, &[]));
        }
        let to = witness.at(8080);
        let failed = "cinch_tunnel_handshakes_total{direction=\"inbound\",outcome=\"failed\"}";
        let tried = raw(&self.outside, to, &self.half_a_handshake()?)?;
        traces.push(refusal("bytes in a handshake", &tried, "inbound", "TunnelBroken", &[failed]));
        for (what, svid, reason) in self.certificates(WEB)? {
            let tried = self.tls(to, &self.config(Some(&svid), API, TUNNEL)?, &[])?;
            traces.push(refusal(&format!("{what} for a tunnel"), &tried, "inbound", reason, &[failed]));
        }
        let good = self.mesh.svid(WEB, Ends::Later)?;
        let tried = self.tls(to, &self.config(Some(&good), API, TUNNEL)?, &GARBAGE)?;
        let broken = "cinch_protocol_errors_total{direction=\"inbound\"}";
        traces.push(refusal("bytes in a tunnel", &tried, "inbound", "TunnelBroken", &[broken]));
        Ok((traces.len(), witness.noticed(&traces)?))
    }

    /// What an app may say to its own proxy's ports.
    fn by_the_app(&self, pod: &Value) -> Result<Vec<Trace>> {
        let inside = Place::of(self.see.cluster, pod)?;
        let ports = [(15001, "outbound"), (15006, "inbound")];
        let trace = |(port, direction)| {
            let tried = raw(&inside, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port), &GARBAGE)?;
            Ok(refusal(&format!("bytes of the app at {port}"), &tried, direction, "DestinationRefused", &[]))
        };
        ports.into_iter().map(trace).collect()
    }

    /// Certificates in the name of `id` that are not to be taken, with the reason.
    fn certificates(&self, id: &str) -> Result<[(&'static str, Svid, &'static str); 2]> {
        Ok([
            ("a stranger's certificate", self.stranger.svid(id, Ends::Later)?, "CertificateUntrusted"),
            ("an expired certificate", self.mesh.svid(id, Ends::Over)?, "CertificateExpired"),
        ])
    }

    fn config(&self, svid: Option<&Svid>, peer: &str, alpn: &[u8]) -> Result<Arc<ClientConfig>> {
        Ok(client_config(svid, &self.bundle, Peer::Exactly(SpiffeId::parse(peer)?), &[alpn])?)
    }

    /// Says `words` once the handshake is done on our side, and waits for the end.
    fn tls(&self, to: SocketAddr, config: &Arc<ClientConfig>, words: &[u8]) -> Result<Tried> {
        let socket = connected(&self.outside, to)?;
        let from = socket.local_addr()?;
        let mut stream = StreamOwned::new(ClientConnection::new(config.clone(), server_name())?, socket);
        // A refusal may come before we have said all.
        let _ = stream.flush().and_then(|()| stream.write_all(words)).and_then(|()| stream.flush());
        Ok(Tried { from, end: end_of(&mut stream)? })
    }

    /// A ClientHello of a tunnel, and then no handshake.
    fn half_a_handshake(&self) -> Result<Vec<u8>> {
        let mut client = ClientConnection::new(self.config(None, API, TUNNEL)?, server_name())?;
        let mut said = Vec::new();
        client.write_tls(&mut said)?;
        said.extend(GARBAGE);
        Ok(said)
    }

    fn post(&self, to: SocketAddr, path: &str, body: &str) -> Result<String> {
        let config = ClientConfig::builder_with_provider(cinch_identity::provider().clone())
            .with_safe_default_protocol_versions()?
            .with_root_certificates(webhook_roots(self.see)?)
            .with_no_client_auth();
        let name = "cinch-webhook.cinch-system.svc".try_into()?;
        let connection = ClientConnection::new(Arc::new(config), name)?;
        let mut stream = StreamOwned::new(connection, self.outside.connect(to)?);
        let length = body.len();
        stream.write_all(
            format!("POST {path} HTTP/1.1\r\nHost: webhook\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}")
                .as_bytes(),
        )?;
        let mut answer = String::new();
        match stream.read_to_string(&mut answer) {
            // Without the last word of TLS, which an answer with its length does not need.
            Err(error) if error.kind() != ErrorKind::UnexpectedEof => Err(error.into()),
            _ => Ok(answer),
        }
    }
}

/// Says `words` and waits for the end.
fn raw(from: &Place, to: SocketAddr, words: &[u8]) -> Result<Tried> {
    let mut stream = connected(from, to)?;
    let from = stream.local_addr()?;
    let _ = stream.write_all(words);
    Ok(Tried { from, end: end_of(&mut stream)? })
}

/// A connection that stood at least for a moment, so that it has an address of ours: one that is refused at once may be
/// reset before this side knows that it was made.
fn connected(from: &Place, to: SocketAddr) -> Result<TcpStream> {
    for _ in 0..TRIES {
        match from.connect(to) {
            Err(error) if Outcome::from(&error) == Outcome::Reset => {}
            tried => return tried.with_context(|| format!("{to} from {}", from.pod)),
        }
    }
    bail!("{to} resets every connection of {} before it is made", from.pod)
}

/// How the other side ends a connection, which it must.
fn end_of(stream: &mut impl Read) -> Result<String> {
    loop {
        match stream.read(&mut [0u8; 1024]) {
            Ok(0) => return Ok(Outcome::Closed.to_string()),
            // An alert, or an answer in words.
            Ok(_) => {}
            Err(error) => match Outcome::from(&error) {
                Outcome::Silent => bail!("the connection stays open"),
                outcome => return Ok(outcome.to_string()),
            },
        }
    }
}

fn refusal(what: &str, tried: &Tried, direction: &str, reason: &str, more: &[&str]) -> Trace {
    let refused = format!("cinch_connections_refused_total{{direction=\"{direction}\",reason=\"{reason}\"}}");
    let words =
        [format!("downstream_remote_address\":\"{}\"", tried.from), format!("\"reason\":\"{reason}\"")];
    Trace {
        what: format!("{what}: {}", tried.end),
        counters: more.iter().map(|counter| (*counter).to_owned()).chain([refused]).collect(),
        line: words.into(),
    }
}
