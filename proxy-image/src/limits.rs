//! Every bound of the data path, by name. Nothing in the proxy grows without one, and each refusal is counted
//! under the limit's name. In come the settings' `limits:` (all optional), out come bounds that fit each other.

mod http;
#[cfg(test)]
mod names;
mod refusals;

use crate::tuning::{TuningError, duration};
use cinch_policy::jwt::TokenLimits;
use http::HttpLimits;
use serde::Deserialize;
use std::time::Duration;

pub use refusals::{Refusals, note_connect};

/// The bounds of the data path. Times are per step, counts per process. In settings the names are in camel case.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// TLS handshakes that we begin, at once.
    pub handshakes: usize,
    /// Of these, to one peer address: a single peer can't take all places.
    pub handshakes_per_source: usize,
    /// TLS handshakes that others begin, at once. Of one host an eighth.
    pub handshakes_inbound: usize,
    /// Connections that wait for a place to shake hands.
    pub handshakes_waiting: usize,
    /// From a peer's first byte to the end of the handshake, and from there to its first OPEN.
    #[serde(deserialize_with = "duration")]
    pub handshake_timeout: Duration,
    /// Bytes of the ClientHello that a tunnel may begin with: what anybody may have us keep of a connection before it is
    /// known what it is. Ours has some 1.8 KiB.
    pub hello_bytes: usize,
    /// From a tunnel's OPEN to its OPENED, as the client sees it: policy and the connect to the app.
    #[serde(deserialize_with = "duration")]
    pub open_timeout: Duration,
    /// To connect to an app or another destination.
    #[serde(deserialize_with = "duration")]
    pub connect_timeout: Duration,
    /// A peer that answers nothing for so long is gone: bytes that it does not acknowledge end its tunnel, and after half
    /// the time of silence it is asked three times whether it is there. In seconds, as the kernel counts.
    #[serde(deserialize_with = "duration")]
    pub peer_timeout: Duration,
    /// A client that is silent so long on a PERMISSIVE port is taken to wait for the server's first word.
    #[serde(deserialize_with = "duration")]
    pub silence: Duration,
    /// The same for clients from where a tunnel has come lately: on busy nodes its ClientHello may be late.
    #[serde(deserialize_with = "duration")]
    pub silence_of_peers: Duration,
    /// App connections and tunnels open at once, for each side.
    pub connections: usize,
    /// Of these, inbound ones from one address, or one network of 64 bits of IPv6. One may stand for many clients: a
    /// node, a gateway.
    pub connections_per_source: usize,
    /// Connections that the system keeps until they are accepted, for each listener; it may allow fewer
    /// (net.core.somaxconn).
    pub listen_backlog: usize,
    /// Bytes that all copies together keep for sides that take them slowly, beyond a few KiB for each.
    pub kept_bytes: usize,
    /// Idle tunnels that the pool holds to one peer.
    pub idle_tunnels_per_peer: usize,
    /// Idle tunnels that the pool holds in all.
    pub idle_tunnels: usize,
    /// How long a client keeps an idle tunnel.
    #[serde(deserialize_with = "duration")]
    pub client_idle: Duration,
    /// How long a server keeps an idle tunnel: longer than clients, so that they close first and no OPEN meets
    /// a closing tunnel.
    #[serde(deserialize_with = "duration")]
    pub server_idle: Duration,
    /// A tunnel older than this takes no further connection.
    #[serde(deserialize_with = "duration")]
    pub tunnel_age: Duration,
    /// How long a draining server waits for the client to close, and a reset stream for its answer.
    #[serde(deserialize_with = "duration")]
    pub settle: Duration,
    /// How long open connections may take to end once the proxy was told to. When there are none, nothing is
    /// waited for: a Job ends as fast as without a sidecar.
    #[serde(deserialize_with = "duration")]
    pub drain_timeout: Duration,
    /// Destinations that discovery remembers.
    pub destinations: usize,
    /// How long an app's connection waits for the operator's first answer about its destination.
    #[serde(deserialize_with = "duration")]
    pub discovery_timeout: Duration,
    /// Endpoints that are tried for one connection, until its app is told that there is none.
    pub endpoint_tries: usize,
    /// Connections of probes and of metrics at once.
    pub probe_connections: usize,
    /// From the first byte to the end of the head of a request for probes or metrics, and again for the answer.
    #[serde(deserialize_with = "duration")]
    pub probe_timeout: Duration,
    /// Bytes of such a head.
    pub probe_head_bytes: usize,
    /// Pages of metrics that are made in a second; who asks more often gets the last one. Anybody may ask, and the thread
    /// that makes them also answers probes and puts policies in force.
    pub metrics_per_second: u32,
    /// Sources of plaintext that evidence names.
    pub evidence_sources: usize,
    /// Ports at which it names one of them.
    pub evidence_ports: usize,
    /// Sources in one report of it: those that were served or refused come first.
    pub evidence_reported: usize,
    /// How long keys of tokens stay in use after the first policy that came without them: the issuer may be away, or
    /// may have withdrawn them.
    #[serde(deserialize_with = "duration")]
    pub keys_kept: Duration,
    /// Bounds of one connection that is read as HTTP.
    #[serde(with = "HttpLimits")]
    pub http: cinch_http::Limits,
    /// Such a connection says its first bytes within this time, or it is closed.
    #[serde(deserialize_with = "duration")]
    pub http_first_byte: Duration,
    /// How long the last bytes of such a connection may take to leave once it is over.
    #[serde(deserialize_with = "duration")]
    pub http_flush: Duration,
    /// Bytes of heads that all such connections hold together.
    pub http_held_bytes: usize,
    /// Bytes that all forms of a request's path may have which back ends could read: each is judged.
    pub http_path_bytes: usize,
    /// Tokens that one rule may find in one request.
    pub http_tokens_per_request: usize,
    /// Signatures that one token may cost, where its issuer has many keys.
    pub http_token_tries: u32,
    /// Verified tokens that are remembered, so that their signatures are looked at once.
    pub http_tokens: usize,
    /// And bytes of them.
    pub http_token_bytes: usize,
    /// Refused tokens that are remembered, for the same.
    pub http_refused_tokens: usize,
    /// Keys that no key set holds, to be asked of the operator, that wait for it.
    pub http_unknown_keys: usize,
    /// Forged tokens after which such a connection is drained. Half of them are forgotten each minute.
    pub http_forged_tokens: u32,
}

impl Default for Limits {
    fn default() -> Self {
        let tokens = TokenLimits::default();
        Limits {
            handshakes: 64,
            handshakes_per_source: 16,
            handshakes_inbound: 512,
            handshakes_waiting: 1024,
            handshake_timeout: Duration::from_secs(5),
            hello_bytes: 4 * 1024,
            open_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(5),
            peer_timeout: Duration::from_secs(30),
            silence: Duration::from_millis(100),
            silence_of_peers: Duration::from_secs(2),
            connections: 16_384,
            // It may be the only client, or a gateway that stands for nearly all; a quarter is for others.
            connections_per_source: 12_288,
            listen_backlog: 4096,
            kept_bytes: 16 * 1024 * 1024,
            idle_tunnels_per_peer: 64,
            idle_tunnels: 1024,
            client_idle: Duration::from_secs(15),
            server_idle: Duration::from_secs(45),
            tunnel_age: Duration::from_secs(3600),
            settle: Duration::from_secs(2),
            drain_timeout: Duration::from_secs(5),
            destinations: 10_000,
            discovery_timeout: Duration::from_secs(1),
            endpoint_tries: 3,
            probe_connections: 64,
            probe_timeout: Duration::from_secs(5),
            probe_head_bytes: 8 * 1024,
            metrics_per_second: 10,
            evidence_sources: 512,
            evidence_ports: 16,
            evidence_reported: 1024,
            keys_kept: Duration::from_secs(24 * 3600),
            http: cinch_http::Limits::default(),
            http_first_byte: Duration::from_secs(10),
            http_flush: Duration::from_secs(60),
            http_held_bytes: 32 * 1024 * 1024,
            http_path_bytes: cinch_policy::path::FORM_BYTES,
            http_tokens_per_request: tokens.in_request,
            http_token_tries: tokens.tries,
            http_tokens: tokens.known,
            http_token_bytes: tokens.known_bytes,
            http_refused_tokens: tokens.refused,
            http_unknown_keys: 16,
            http_forged_tokens: 64,
        }
    }
}

/// The longest time that any limit may say: more than a day is meant as "never", which nothing here can be.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// The shortest: below it the clock of timers is too coarse.
const SHORTEST: Duration = Duration::from_millis(1);

/// Within less than this nobody is taken for gone: the kernel asks at most once a second (tcp(7), TCP_KEEPIDLE).
const SOONEST_GONE: Duration = Duration::from_secs(1);
/// Sources that any report may have: every proxy sends one each few seconds.
const REPORTED: usize = 4096;

/// And with more the kernel would not ask at all: it knows no time of more than nine hours.
const LATEST_GONE: Duration = Duration::from_secs(3600);

impl Limits {
    /// What tokens may cost.
    #[must_use]
    pub fn tokens(&self) -> TokenLimits {
        TokenLimits {
            known: self.http_tokens,
            known_bytes: self.http_token_bytes,
            refused: self.http_refused_tokens,
            in_request: self.http_tokens_per_request,
            tries: self.http_token_tries,
        }
    }

    /// Whether a proxy can work with these bounds.
    ///
    /// # Errors
    /// The first field that is out of its bounds or contradicts another.
    pub fn check(&self) -> Result<(), TuningError> {
        let counts = self.counts().into_iter().find(|(_, value, low, high)| value < low || value > high);
        if let Some((field, value, low, high)) = counts {
            return Err(wrong(field, format!("{value} is not between {low} and {high}")));
        }
        let times = self.times().into_iter().find(|(_, time)| *time < SHORTEST || *time > LONGEST);
        if let Some((field, time)) = times {
            return Err(wrong(field, format!("{time:?} is not between {SHORTEST:?} and 24h")));
        }
        if self.peer_timeout < SOONEST_GONE || self.peer_timeout > LATEST_GONE {
            let problem = format!("{:?} is not between {SOONEST_GONE:?} and 1h", self.peer_timeout);
            return Err(wrong("peerTimeout", problem));
        }
        if self.client_idle >= self.server_idle {
            return Err(wrong(
                "clientIdle",
                "it must be shorter than serverIdle: who dials closes first".to_owned(),
            ));
        }
        Ok(())
    }

    /// Each count with the least and the most that it may be.
    fn counts(&self) -> Vec<(&'static str, usize, usize, usize)> {
        const MANY: usize = 1 << 20;
        const BYTES: usize = 1 << 30;
        let http = &self.http;
        vec![
            ("handshakes", self.handshakes, 1, MANY),
            ("handshakesPerSource", self.handshakes_per_source, 1, MANY),
            ("handshakesInbound", self.handshakes_inbound, 8, MANY),
            // One source may have a quarter of them.
            ("handshakesWaiting", self.handshakes_waiting, 4, MANY),
            // Below, no tunnel would be known as one; and no record is longer.
            ("helloBytes", self.hello_bytes, 4 * 1024, 16 * 1024),
            ("connections", self.connections, 1, MANY),
            ("connectionsPerSource", self.connections_per_source, 1, MANY),
            ("listenBacklog", self.listen_backlog, 1, 65_535),
            ("keptBytes", self.kept_bytes, 64 * 1024, BYTES),
            ("idleTunnelsPerPeer", self.idle_tunnels_per_peer, 0, MANY),
            ("idleTunnels", self.idle_tunnels, 0, MANY),
            ("destinations", self.destinations, 16, MANY),
            ("endpointTries", self.endpoint_tries, 1, 64),
            ("probeConnections", self.probe_connections, 1, MANY),
            ("probeHeadBytes", self.probe_head_bytes, 1024, 64 * 1024),
            ("metricsPerSecond", wide(self.metrics_per_second), 1, 1000),
            ("evidenceSources", self.evidence_sources, 1, MANY),
            ("evidencePorts", self.evidence_ports, 1, 65_535),
            ("evidenceReported", self.evidence_reported, 1, REPORTED),
            ("httpHeldBytes", self.http_held_bytes, 64 * 1024, BYTES),
            ("httpPathBytes", self.http_path_bytes, 1024, 1024 * 1024),
            ("httpTokensPerRequest", self.http_tokens_per_request, 1, 64),
            ("httpTokenTries", wide(self.http_token_tries), 1, 100),
            ("httpTokens", self.http_tokens, 0, MANY),
            ("httpTokenBytes", self.http_token_bytes, 0, BYTES),
            ("httpRefusedTokens", self.http_refused_tokens, 0, MANY),
            ("httpUnknownKeys", self.http_unknown_keys, 1, 1024),
            ("httpForgedTokens", wide(self.http_forged_tokens), 1, MANY),
            ("http.headBytes", http.head_bytes, 1024, 1024 * 1024),
            ("http.headFields", http.head_fields, 8, cinch_http::Limits::MAX_FIELDS),
            ("http.trailerBytes", http.trailer_bytes, 0, 1024 * 1024),
            ("http.pipelined", http.pipelined, 1, 1024),
            ("http.discardBytes", http.discard_bytes, 0, BYTES),
            ("http.answerBytes", http.answer_bytes, 1024, BYTES),
            ("http.streams", wide(http.streams), 1, MANY),
            ("http.streamHeadBytes", http.stream_head_bytes, 64 * 1024, BYTES),
            ("http.continuations", wide(http.continuations), 1, MANY),
            // What both ends say before the first request is of it.
            ("http.idleFrames", wide(http.idle_frames), 16, MANY),
            ("http.idleFramesPerSecond", wide(http.idle_frames_per_second), 1, MANY),
            ("http.earlyResetsAfter", wide(http.early_resets_after), 1, MANY),
        ]
    }

    fn times(&self) -> Vec<(&'static str, Duration)> {
        vec![
            ("handshakeTimeout", self.handshake_timeout),
            ("openTimeout", self.open_timeout),
            ("connectTimeout", self.connect_timeout),
            ("peerTimeout", self.peer_timeout),
            ("silence", self.silence),
            ("silenceOfPeers", self.silence_of_peers),
            ("clientIdle", self.client_idle),
            ("serverIdle", self.server_idle),
            ("tunnelAge", self.tunnel_age),
            ("settle", self.settle),
            ("drainTimeout", self.drain_timeout),
            ("discoveryTimeout", self.discovery_timeout),
            ("probeTimeout", self.probe_timeout),
            ("keysKept", self.keys_kept),
            ("httpFirstByte", self.http_first_byte),
            ("httpFlush", self.http_flush),
            ("http.headTimeout", self.http.head_timeout),
            ("http.idleTimeout", self.http.idle_timeout),
            ("http.linger", self.http.linger),
        ]
    }
}

fn wide(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

fn wrong(field: &'static str, problem: String) -> TuningError {
    TuningError::Limit { field, problem }
}

#[cfg(test)]
mod tests {
    use super::*;
    use parking_lot::Mutex;
    use std::collections::BTreeMap;
    use std::io;
    use std::sync::Arc;
    use std::time::Instant;

    /// Keeps what a log says.
    #[derive(Debug, Clone, Default)]
    pub(super) struct Said(Arc<Mutex<Vec<u8>>>);

    impl Said {
        pub(super) fn text(&self) -> String {
            String::from_utf8(self.0.lock().clone()).unwrap()
        }
    }

    impl io::Write for Said {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for Said {
        type Writer = Said;

        fn make_writer(&'a self) -> Said {
            self.clone()
        }
    }

    /// A size or time as the README writes it; times in milliseconds.
    fn in_words(text: &str) -> u128 {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u128 = text[..digits].parse().unwrap();
        match text[digits..].trim() {
            "" | "ms" => number,
            "s" => number * 1000,
            "h" => number * 3_600_000,
            "KiB" => number << 10,
            "MiB" => number << 20,
            unit => panic!("{unit}"),
        }
    }

    #[test]
    fn the_bounds_begin_as_the_readme_says() {
        let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md")).unwrap();
        let (_, table) = readme.split_once("| setting under `limits` | default |").unwrap();
        let mut documented = BTreeMap::new();
        for row in table.lines().skip(2).take_while(|line| line.starts_with('|')) {
            let cells: Vec<&str> = row.split('|').collect();
            let names = cells[1].split('`').skip(1).step_by(2);
            let values: Vec<&str> = cells[2].split(',').map(str::trim).collect();
            assert_eq!(names.clone().count(), values.len(), "{row}");
            for (name, value) in names.zip(values) {
                let name = if name.starts_with('.') { format!("http{name}") } else { name.to_owned() };
                documented.insert(name, in_words(value));
            }
        }
        let limits = Limits::default();
        let counts = limits.counts().into_iter().map(|(name, count, ..)| (name.to_owned(), count as u128));
        let times = limits.times().into_iter().map(|(name, time)| (name.to_owned(), time.as_millis()));
        assert_eq!(documented, counts.chain(times).collect());
    }

    #[test]
    fn each_limit_has_a_line_in_ten_seconds_that_counts_what_was_refused() {
        let (mut told, start) = (refusals::Told::default(), Instant::now());
        assert_eq!(told.note("handshakes", 1, start), Some(1), "the first is told at once");
        for _ in 0..1000 {
            assert_eq!(told.note("handshakes", 1, start + Duration::from_secs(9)), None);
        }
        assert_eq!(told.note("connections", 1, start), Some(1), "another limit has its own line");
        assert_eq!(told.note("handshakes", 1, start + Duration::from_secs(10)), Some(1001));
        assert_eq!(told.note("handshakes", 1, start + Duration::from_secs(20)), Some(1));
    }
}
