//! Every bound of the data path, by name. Nothing in the proxy grows without one, and each refusal is counted
//! under the limit's name. In come the settings' `limits:` (all optional), out come bounds that fit each other.

use crate::path_metrics::PathMetrics;
use crate::tuning::{TuningError, duration};
use parking_lot::Mutex;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

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
    /// Connections of probes and of metrics at once.
    pub probe_connections: usize,
    /// Sources of plaintext that evidence names.
    pub evidence_sources: usize,
    /// Bounds of one connection that is read as HTTP.
    #[serde(deserialize_with = "http")]
    pub http: cinch_http::Limits,
    /// Such a connection says its first bytes within this time, or it is closed.
    #[serde(deserialize_with = "duration")]
    pub http_first_byte: Duration,
    /// How long the last bytes of such a connection may take to leave once it is over.
    #[serde(deserialize_with = "duration")]
    pub http_flush: Duration,
    /// Bytes of heads that all such connections hold together.
    pub http_held_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            handshakes: 64,
            handshakes_per_source: 16,
            handshakes_inbound: 512,
            handshakes_waiting: 1024,
            handshake_timeout: Duration::from_secs(5),
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
            probe_connections: 64,
            evidence_sources: 512,
            http: cinch_http::Limits::default(),
            http_first_byte: Duration::from_secs(10),
            http_flush: Duration::from_secs(60),
            http_held_bytes: 32 * 1024 * 1024,
        }
    }
}

/// The bounds of HTTP as settings say them; the crate that keeps them reads no settings.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct HttpLimits {
    head_bytes: usize,
    head_fields: usize,
    trailer_bytes: usize,
    pipelined: usize,
    #[serde(deserialize_with = "duration")]
    head_timeout: Duration,
    #[serde(deserialize_with = "duration")]
    idle_timeout: Duration,
    #[serde(deserialize_with = "duration")]
    linger: Duration,
    discard_bytes: usize,
    answer_bytes: usize,
    streams: u32,
    continuations: u32,
    idle_frames: u32,
    idle_frames_per_second: u32,
    early_resets_after: u32,
}

impl Default for HttpLimits {
    fn default() -> Self {
        let cinch_http::Limits {
            head_bytes,
            head_fields,
            trailer_bytes,
            pipelined,
            head_timeout,
            idle_timeout,
            linger,
            discard_bytes,
            answer_bytes,
            streams,
            continuations,
            idle_frames,
            idle_frames_per_second,
            early_resets_after,
        } = cinch_http::Limits::default();
        HttpLimits {
            head_bytes,
            head_fields,
            trailer_bytes,
            pipelined,
            head_timeout,
            idle_timeout,
            linger,
            discard_bytes,
            answer_bytes,
            streams,
            continuations,
            idle_frames,
            idle_frames_per_second,
            early_resets_after,
        }
    }
}

fn http<'de, D: Deserializer<'de>>(deserializer: D) -> Result<cinch_http::Limits, D::Error> {
    let said = HttpLimits::deserialize(deserializer)?;
    Ok(cinch_http::Limits {
        head_bytes: said.head_bytes,
        head_fields: said.head_fields,
        trailer_bytes: said.trailer_bytes,
        pipelined: said.pipelined,
        head_timeout: said.head_timeout,
        idle_timeout: said.idle_timeout,
        linger: said.linger,
        discard_bytes: said.discard_bytes,
        answer_bytes: said.answer_bytes,
        streams: said.streams,
        continuations: said.continuations,
        idle_frames: said.idle_frames,
        idle_frames_per_second: said.idle_frames_per_second,
        early_resets_after: said.early_resets_after,
    })
}

/// The longest time that any limit may say: more than a day is meant as "never", which nothing here can be.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// The shortest: below it the clock of timers is too coarse.
const SHORTEST: Duration = Duration::from_millis(1);

/// Within less than this nobody is taken for gone: the kernel asks at most once a second (tcp(7), TCP_KEEPIDLE).
const SOONEST_GONE: Duration = Duration::from_secs(1);
/// And with more the kernel would not ask at all: it knows no time of more than nine hours.
const LATEST_GONE: Duration = Duration::from_secs(3600);

impl Limits {
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
    fn counts(&self) -> [(&'static str, usize, usize, usize); 25] {
        const MANY: usize = 1 << 20;
        const BYTES: usize = 1 << 30;
        let http = &self.http;
        [
            ("handshakes", self.handshakes, 1, MANY),
            ("handshakesPerSource", self.handshakes_per_source, 1, MANY),
            ("handshakesInbound", self.handshakes_inbound, 8, MANY),
            // One source may have a quarter of them.
            ("handshakesWaiting", self.handshakes_waiting, 4, MANY),
            ("connections", self.connections, 1, MANY),
            ("connectionsPerSource", self.connections_per_source, 1, MANY),
            ("listenBacklog", self.listen_backlog, 1, 65_535),
            ("keptBytes", self.kept_bytes, 64 * 1024, BYTES),
            ("idleTunnelsPerPeer", self.idle_tunnels_per_peer, 0, MANY),
            ("idleTunnels", self.idle_tunnels, 0, MANY),
            ("destinations", self.destinations, 16, MANY),
            ("probeConnections", self.probe_connections, 1, MANY),
            ("evidenceSources", self.evidence_sources, 1, MANY),
            ("httpHeldBytes", self.http_held_bytes, 64 * 1024, BYTES),
            ("http.headBytes", http.head_bytes, 1024, 1024 * 1024),
            ("http.headFields", http.head_fields, 8, cinch_http::Limits::MAX_FIELDS),
            ("http.trailerBytes", http.trailer_bytes, 0, 1024 * 1024),
            ("http.pipelined", http.pipelined, 1, 1024),
            ("http.discardBytes", http.discard_bytes, 0, BYTES),
            ("http.answerBytes", http.answer_bytes, 1024, BYTES),
            ("http.streams", wide(http.streams), 1, MANY),
            ("http.continuations", wide(http.continuations), 1, MANY),
            // What both ends say before the first request is of it.
            ("http.idleFrames", wide(http.idle_frames), 16, MANY),
            ("http.idleFramesPerSecond", wide(http.idle_frames_per_second), 1, MANY),
            ("http.earlyResetsAfter", wide(http.early_resets_after), 1, MANY),
        ]
    }

    fn times(&self) -> [(&'static str, Duration); 16] {
        [
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

/// At most one line for each limit in this time; the count of what was refused since the last is in it.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// When each limit last had its line, and how often it refused since.
static TOLD: Mutex<Told> = Mutex::new(Told(BTreeMap::new()));

/// Tells the log that `limit`, by its name in metrics, has refused something. Floods cost a counter only.
pub fn tell(limit: &'static str) {
    let refused = TOLD.lock().note(limit, Instant::now());
    if let Some(refused) = refused {
        tracing::warn!(limit, refused, "a limit refuses connections or requests (proxy.settings.limits)");
    }
}

/// Counts an app or endpoint that did not take a connection within `connect_timeout`.
pub fn note_connect(metrics: &PathMetrics, error: &io::Error) {
    if error.kind() == io::ErrorKind::TimedOut {
        metrics.count_limit("connect_timeout");
    }
}

#[derive(Debug)]
struct Told(BTreeMap<&'static str, (Instant, u64)>);

impl Told {
    /// How many refusals a line should tell of now, if one is due.
    fn note(&mut self, limit: &'static str, now: Instant) -> Option<u64> {
        let Some((last, since)) = self.0.get_mut(limit) else {
            self.0.insert(limit, (now, 0));
            return Some(1);
        };
        *since += 1;
        if now.saturating_duration_since(*last) < BETWEEN_LINES {
            return None;
        }
        *last = now;
        Some(std::mem::take(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let counts = limits.counts().map(|(name, count, ..)| (name.to_owned(), count as u128));
        let times = limits.times().map(|(name, time)| (name.to_owned(), time.as_millis()));
        assert_eq!(documented, counts.into_iter().chain(times).collect());
    }

    #[test]
    fn each_limit_has_a_line_in_ten_seconds_that_counts_what_was_refused() {
        let (mut told, start) = (Told(BTreeMap::new()), Instant::now());
        assert_eq!(told.note("handshakes", start), Some(1), "the first is told at once");
        for _ in 0..1000 {
            assert_eq!(told.note("handshakes", start + Duration::from_secs(9)), None);
        }
        assert_eq!(told.note("connections", start), Some(1), "another limit has its own line");
        assert_eq!(told.note("handshakes", start + Duration::from_secs(10)), Some(1001));
        assert_eq!(told.note("handshakes", start + Duration::from_secs(20)), Some(1));
    }
}
