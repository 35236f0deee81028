//! The workloads: what load each is, where it goes, and which numbers are made of what it measured.

use super::peers::Peer;
use anyhow::{Result, bail};
use serde::{Deserialize, Serialize};

/// The server's port that is declared HTTP.
pub const HTTP: u16 = 8080;
/// The same server on a port that is not: its requests are bytes.
pub const OPAQUE: u16 = 8081;
/// Bytes.
pub const BYTES: u16 = 8082;

const MIB: f64 = 1024.0;
const GIB: f64 = 1024.0 * 1024.0 * 1024.0;

/// What a load reports.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Measured {
    /// How long was counted.
    pub seconds: f64,
    /// Whole answers.
    pub done: u64,
    /// Failures.
    pub errors: u64,
    /// The last failure's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// Bytes moved.
    pub bytes: u64,
    /// Latencies in microseconds.
    pub p50: f64,
    /// The same.
    pub p99: f64,
    /// The same.
    pub longest: f64,
    /// Seconds on the processor: the client's proxy, the server's.
    pub processor: Vec<f64>,
    /// Of the same two, at the moments of the workload.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub memory: Vec<Vec<Memory>>,
}

/// In KiB.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Memory {
    /// Resident, pages of files included.
    pub resident: u64,
    /// Anonymous.
    pub private: u64,
}

impl Measured {
    /// Of both proxies; nothing without proxies.
    fn processor(&self) -> Option<f64> {
        let all: f64 = self.processor.iter().sum();
        (all > 0.0).then_some(all)
    }

    fn microseconds_each(&self) -> Option<f64> {
        (self.done > 0).then_some(self.processor()? * 1e6 / self.done as f64)
    }

    fn each_second(&self) -> Option<f64> {
        (self.done > 0).then_some(self.done as f64 / self.seconds)
    }

    /// The greater of both proxies' `of`, whose arguments are the memory at two moments.
    fn memory(&self, moments: (usize, usize), of: fn(Memory, Memory) -> f64) -> Option<f64> {
        let (then, now) = (self.memory.get(moments.0)?, self.memory.get(moments.1)?);
        then.iter().zip(now).map(|(then, now)| of(*then, *now)).reduce(f64::max)
    }
}

/// A number of a workload.
pub struct Metric {
    /// What it is, with its unit.
    pub name: &'static str,
    /// Takes it from what was measured; nothing where it makes no sense.
    pub value: fn(&Measured) -> Option<f64>,
    /// Digits after the point.
    pub digits: usize,
    /// Whether ratios of it are shown.
    pub ratio: bool,
}

const CPU_EACH: Metric =
    Metric { name: "us of CPU each", value: Measured::microseconds_each, digits: 1, ratio: true };
const EACH_SECOND: Metric =
    Metric { name: "a second", value: Measured::each_second, digits: 0, ratio: false };
const P50: Metric =
    Metric { name: "p50 us", value: |m| (m.done > 0).then_some(m.p50), digits: 0, ratio: true };
const P99: Metric =
    Metric { name: "p99 us", value: |m| (m.done > 0).then_some(m.p99), digits: 0, ratio: false };

/// Whether a workload's requests are HTTP to those who can tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Requests,
    Bytes,
}

/// One kind of load.
pub struct Workload {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// The load's words.
    words: &'static [&'static str],
    kind: Kind,
    /// How long it counts, in seconds; zero where it ends by itself.
    pub seconds: f64,
    /// Whether nothing may have used the proxies before.
    pub from_fresh_start: bool,
    /// To whom ratios are.
    pub base: &'static str,
    /// Its numbers.
    pub metrics: &'static [Metric],
}

/// Every workload.
pub const WORKLOADS: &[Workload] = &[
    Workload {
        name: "http1",
        what: "HTTP/1.1, 64 connections in a closed loop",
        words: &["closed", "--protocol=http1", "--connections=64"],
        kind: Kind::Requests,
        seconds: 3.0,
        from_fresh_start: false,
        base: "limit",
        metrics: &[CPU_EACH, EACH_SECOND, P50],
    },
    Workload {
        name: "http1-paced",
        what: "HTTP/1.1, 1,000 requests a second over 16 connections, by the clock",
        words: &["open", "--connections=16", "--rate=1000"],
        kind: Kind::Requests,
        seconds: 4.0,
        from_fresh_start: false,
        base: "limit",
        metrics: &[P50, P99, CPU_EACH],
    },
    Workload {
        name: "http2",
        what: "HTTP/2 like gRPC's, 4 connections of 16 streams in a closed loop",
        words: &["closed", "--protocol=http2", "--connections=4", "--streams=16"],
        kind: Kind::Requests,
        seconds: 3.0,
        from_fresh_start: false,
        base: "limit",
        metrics: &[CPU_EACH, EACH_SECOND, P50],
    },
    Workload {
        name: "bulk",
        what: "one stream of bytes to the server",
        words: &["bulk", "--direction=up"],
        kind: Kind::Bytes,
        seconds: 3.0,
        from_fresh_start: false,
        base: "limit",
        metrics: &[
            Metric {
                name: "s of CPU a GiB",
                value: |m| (m.bytes > 0).then_some(m.processor()? * GIB / m.bytes as f64),
                digits: 2,
                ratio: true,
            },
            Metric {
                name: "GiB a second",
                value: |m| (m.bytes > 0).then_some(m.bytes as f64 / GIB / m.seconds),
                digits: 2,
                ratio: false,
            },
        ],
    },
    Workload {
        name: "new-http1",
        what: "a new connection for each request, 16 at a time",
        words: &["closed", "--protocol=http1", "--connections=16", "--new-connections"],
        kind: Kind::Requests,
        seconds: 3.0,
        from_fresh_start: false,
        base: "limit-reuse",
        metrics: &[CPU_EACH, EACH_SECOND, P50],
    },
    Workload {
        name: "new-bytes",
        what: "a new connection for each 100 bytes and their echo, 16 at a time",
        words: &["closed", "--protocol=echo", "--connections=16", "--new-connections"],
        kind: Kind::Bytes,
        seconds: 3.0,
        from_fresh_start: false,
        base: "limit-reuse",
        metrics: &[CPU_EACH, EACH_SECOND, P50],
    },
    Workload {
        name: "burst",
        what: "1,000 connections opened at once to a peer that was never dialled",
        words: &["burst", "--connections=1000"],
        kind: Kind::Requests,
        seconds: 0.0,
        from_fresh_start: true,
        base: "limit",
        metrics: &[
            Metric {
                name: "ms to the last answer",
                value: |m| Some(m.longest / 1e3),
                digits: 0,
                ratio: true,
            },
            Metric { name: "ms of CPU", value: |m| Some(m.processor()? * 1e3), digits: 0, ratio: true },
            Metric { name: "answered", value: |m| Some(m.done as f64), digits: 0, ratio: false },
        ],
    },
    Workload {
        name: "memory",
        what: "1,000 connections that stand idle after a request; the larger of both proxies",
        words: &["hold", "--connections=1000"],
        kind: Kind::Requests,
        seconds: 0.0,
        from_fresh_start: true,
        base: "limit",
        metrics: &[
            Metric {
                name: "MiB private before",
                value: |m| m.memory((0, 0), |_, now| now.private as f64 / MIB),
                digits: 2,
                ratio: false,
            },
            Metric {
                name: "MiB resident before",
                value: |m| m.memory((0, 0), |_, now| now.resident as f64 / MIB),
                digits: 2,
                ratio: false,
            },
            Metric {
                name: "KiB a connection",
                value: |m| {
                    let more =
                        m.memory((0, 1), |then, now| now.resident.saturating_sub(then.resident) as f64)?;
                    (m.done > 0).then_some(more / m.done as f64)
                },
                digits: 1,
                ratio: false,
            },
            Metric {
                name: "MiB more 5 s after",
                value: |m| {
                    m.memory((0, 2), |then, now| now.resident as f64 / MIB - then.resident as f64 / MIB)
                },
                digits: 2,
                ratio: false,
            },
        ],
    },
];

impl Workload {
    /// The load's words, with its times multiplied.
    #[must_use]
    pub fn words(&self, scale: f64) -> Vec<String> {
        let mut words: Vec<String> = self.words.iter().map(|word| (*word).to_owned()).collect();
        if self.seconds > 0.0 {
            words.push(format!("--seconds={:.3}", self.seconds * scale));
            words.push(format!("--warm-up={:.3}", 0.7 * scale));
        }
        words
    }

    /// The server's port that a peer's turn uses.
    #[must_use]
    pub fn port(&self, peer: &Peer) -> u16 {
        if self.kind == Kind::Bytes { BYTES } else { peer.http_port }
    }
}

/// Those that are named, or all.
///
/// # Errors
/// When there is none of a name.
pub fn chosen(names: &[String]) -> Result<Vec<&'static Workload>> {
    for name in names {
        if !WORKLOADS.iter().any(|workload| workload.name == name) {
            let all: Vec<&str> = WORKLOADS.iter().map(|workload| workload.name).collect();
            bail!("there is no workload {name}; there are {}", all.join(", "));
        }
    }
    Ok(WORKLOADS
        .iter()
        .filter(|workload| names.is_empty() || names.iter().any(|name| name == workload.name))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(workload: &str, metric: &str, measured: &Measured) -> Option<f64> {
        let workload = WORKLOADS.iter().find(|candidate| candidate.name == workload).unwrap();
        (workload.metrics.iter().find(|candidate| candidate.name == metric).unwrap().value)(measured)
    }

    #[test]
    fn costs_are_of_both_proxies_and_each_request() {
        let measured =
            Measured { seconds: 2.0, done: 1000, processor: vec![0.02, 0.03], ..Measured::default() };
        assert_eq!(value("http1", "us of CPU each", &measured), Some(50.0));
        assert_eq!(value("http1", "a second", &measured), Some(500.0));
        let direct = Measured { processor: vec![], ..measured };
        assert_eq!(value("http1", "us of CPU each", &direct), None, "without proxies there is no cost");
    }

    #[test]
    fn memory_is_that_of_the_larger_proxy() {
        let at = |client: u64, server: u64| {
            [client, server].map(|resident| Memory { resident, private: resident / 2 }).to_vec()
        };
        let memory = vec![at(4096, 8192), at(4096 + 5000, 8192 + 6000), at(5120, 8192)];
        let measured = Measured { done: 1000, memory, ..Measured::default() };
        assert_eq!(value("memory", "MiB resident before", &measured), Some(8.0));
        assert_eq!(value("memory", "MiB private before", &measured), Some(4.0));
        assert_eq!(value("memory", "KiB a connection", &measured), Some(6.0));
        assert_eq!(value("memory", "MiB more 5 s after", &measured), Some(1.0));
    }

    #[test]
    fn a_scale_shortens_every_timed_load() {
        let closed = chosen(&["http1".to_owned()]).unwrap();
        assert!(closed[0].words(0.1).contains(&"--seconds=0.300".to_owned()), "{:?}", closed[0].words(0.1));
        assert!(chosen(&["http9".to_owned()]).is_err());
        assert_eq!(chosen(&[]).unwrap().len(), WORKLOADS.len());
    }
}
