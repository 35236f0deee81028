//! The client: calls its URLs in a loop, each once over a new and once over a kept connection, and counts.
//!
//! Any request that does not end in a whole 200 answer is a failure, whatever the reason. The counts go to a
//! file of the pod's own after every round, so that they outlive the pod, and with them when and how far each of the
//! first and of the last failures came.

use crate::{http, serve};
use anyhow::{Context, anyhow, bail};
use serde::Serialize;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, lookup_host};

/// Longer than any pause that a healthy mesh makes; a request over it is lost.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// So many failures are told one by one: the first half, which tell what began it, and the last ones.
const TOLD: usize = 20;

#[derive(clap::Args)]
pub struct Options {
    /// `host:port` to call; may be given several times.
    #[arg(long = "to", required = true)]
    targets: Vec<String>,
    /// Who calls: sent as X-Client and part of the counters' file name.
    #[arg(long, default_value = "client")]
    name: String,
    /// Sent as a header of each request.
    #[arg(long, default_value = "hello")]
    marker: String,
    /// Pause between rounds.
    #[arg(long, default_value = "100ms", value_parser = crate::duration)]
    interval: Duration,
    /// End after so many rounds; non-zero exit status if a request failed.
    #[arg(long)]
    rounds: Option<u64>,
    /// Directory for the counters' file.
    #[arg(long)]
    counters: Option<PathBuf>,
    /// Serve on this port as well.
    #[arg(long)]
    serve: Option<u16>,
    /// As for `serve`.
    #[arg(long, default_value = "4s", value_parser = crate::duration)]
    drain: Duration,
}

#[derive(Default, Serialize)]
struct Counts {
    ok: u64,
    failed: u64,
    slowest_ms: u64,
}

/// One failure.
#[derive(Serialize)]
struct Failure {
    /// When the request was given up, in Unix milliseconds.
    at_ms: u64,
    target: String,
    /// `new` or `kept`.
    connection: &'static str,
    /// In which round since the count began.
    round: u64,
    after_ms: u64,
    error: String,
}

/// All that is counted: by target and way of calling, and some of the failures.
#[derive(Default, Serialize)]
struct Tally {
    #[serde(flatten)]
    ways: BTreeMap<String, Counts>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failures: Vec<Failure>,
}

/// How far a request has come.
struct Progress {
    step: Cell<&'static str>,
    /// Our end of its connection, by which a proxy's log names it.
    local: Cell<Option<SocketAddr>>,
}

pub async fn run(options: Options) -> anyhow::Result<()> {
    let stop = serve::Stop::on_sigterm()?;
    let server = options.serve.map(|port| {
        let beside = serve::Options::on(port, options.marker.clone(), options.drain);
        tokio::spawn(serve::run(beside, stop.clone()))
    });
    if options.serve.is_some() {
        wait_until_served(&options, &stop).await;
    }
    let failed = call_until_stopped(&options, &stop).await?;
    if let Some(server) = server {
        if !stop.asked() {
            server.abort();
        }
        // An aborted server is what was asked for.
        let _ = server.await;
    }
    if options.rounds.is_some() && failed > 0 {
        bail!("{failed} requests failed");
    }
    Ok(())
}

/// A client that calls its own Service can't be served before its pod is ready: the first answer of each
/// target starts the count.
async fn wait_until_served(options: &Options, stop: &serve::Stop) {
    for target in &options.targets {
        while !stop.asked() && request(&mut None, target, options, true).await.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    println!("every target answers: counting");
}

async fn call_until_stopped(options: &Options, stop: &serve::Stop) -> anyhow::Result<u64> {
    let mut tally = Tally::default();
    let mut kept: BTreeMap<String, Option<TcpStream>> = BTreeMap::new();
    let mut round = 0u64;
    while !stop.asked() && options.rounds.is_none_or(|rounds| round < rounds) {
        for target in &options.targets {
            for close in [true, false] {
                let begun = Instant::now();
                let mut none = None;
                let connection = if close { &mut none } else { kept.entry(target.clone()).or_default() };
                let result = request(connection, target, options, close).await;
                tally.note(target, if close { "new" } else { "kept" }, round, begun.elapsed(), result);
            }
        }
        round += 1;
        save(options, &tally)?;
        tokio::time::sleep(options.interval).await;
    }
    save(options, &tally)?;
    println!("final {}", serde_json::to_string(&tally)?);
    Ok(tally.ways.values().map(|count| count.failed).sum())
}

impl Tally {
    fn note(
        &mut self,
        target: &str,
        connection: &'static str,
        round: u64,
        took: Duration,
        result: anyhow::Result<()>,
    ) {
        let counts = self.ways.entry(format!("{target} {connection}")).or_default();
        let after_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        counts.slowest_ms = counts.slowest_ms.max(after_ms);
        let Err(error) = result else {
            counts.ok += 1;
            return;
        };
        counts.failed += 1;
        println!("failed target={target} connection={connection} after={after_ms}ms error={error:#}");
        if self.failures.len() >= TOLD {
            self.failures.remove(TOLD / 2);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.failures.push(Failure {
            at_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            target: target.to_owned(),
            connection,
            round,
            after_ms,
            error: format!("{error:#}"),
        });
    }
}

/// One request; the connection is kept in `kept` unless either side closes.
async fn request(
    kept: &mut Option<TcpStream>,
    target: &str,
    options: &Options,
    close: bool,
) -> anyhow::Result<()> {
    let mut stream = kept.take();
    let progress = Progress { step: Cell::new("sending"), local: Cell::new(None) };
    let whole = async {
        let mut stream = match stream.take() {
            Some(stream) => stream,
            None => connect(target, &progress).await?,
        };
        progress.local.set(stream.local_addr().ok());
        progress.step.set("sending");
        let connection = if close { "close" } else { "keep-alive" };
        let head = format!(
            "GET / HTTP/1.1\r\nHost: {target}\r\nX-Client: {}\r\nX-Marker: {}\r\nConnection: {connection}\r\n\r\n",
            options.name, options.marker
        );
        stream.write_all(head.as_bytes()).await?;
        progress.step.set("waiting for the answer");
        let answer = http::read(&mut stream, &mut Vec::new()).await?.context("closed without an answer")?;
        if !answer.start.starts_with("HTTP/1.1 200 ") {
            bail!("answer {:?}", answer.start);
        }
        if !close && !answer.closes() {
            *kept = Some(stream);
        }
        anyhow::Ok(())
    };
    let ended = tokio::time::timeout(REQUEST_TIMEOUT, whole).await;
    ended.unwrap_or_else(|_| Err(anyhow!("no answer in time"))).with_context(|| progress.words())
}

impl Progress {
    fn words(&self) -> String {
        let step = self.step.get();
        self.local.get().map_or_else(|| step.to_owned(), |local| format!("{step}, from {local}"))
    }
}

async fn connect(target: &str, progress: &Progress) -> anyhow::Result<TcpStream> {
    progress.step.set("looking up the name");
    let addresses: Vec<SocketAddr> = lookup_host(target).await?.collect();
    progress.step.set("connecting");
    let stream = TcpStream::connect(&*addresses).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Replaces the file in one step: a reader never sees half of it.
fn save(options: &Options, tally: &Tally) -> anyhow::Result<()> {
    let Some(directory) = &options.counters else { return Ok(()) };
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| String::from("unknown"));
    let path = directory.join(format!("{}-{host}.json", options.name));
    let beside = path.with_extension("new");
    std::fs::write(&beside, serde_json::to_vec(tally)?)
        .and_then(|()| std::fs::rename(&beside, &path))
        .context("save the counters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_failures_are_counted_and_the_first_and_last_ones_told() {
        let mut tally = Tally::default();
        tally.note("api:80", "new", 0, Duration::from_millis(7), Ok(()));
        assert!(!serde_json::to_string(&tally).unwrap().contains("failures"));
        for round in 0..25 {
            let error = Err(anyhow!("reset").context("sending, from 10.0.0.1:9"));
            tally.note("api:80", "kept", round, Duration::from_millis(3), error);
        }
        let told = serde_json::to_value(&tally).unwrap();
        assert_eq!(told["api:80 new"], serde_json::json!({"ok": 1, "failed": 0, "slowest_ms": 7}));
        assert_eq!(told["api:80 kept"]["failed"], 25);
        let failures = told["failures"].as_array().unwrap();
        let rounds: Vec<u64> = failures.iter().map(|failure| failure["round"].as_u64().unwrap()).collect();
        assert_eq!(rounds, (0..10).chain(15..25).collect::<Vec<_>>());
        assert_eq!(failures[0]["error"], "sending, from 10.0.0.1:9: reset");
        assert!(failures[0]["at_ms"].as_u64().unwrap() > 1_700_000_000_000);
    }
}
