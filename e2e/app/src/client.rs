//! The client: calls its URLs in a loop, each once over a new and once over a kept connection, and counts.
//!
//! Any request that does not end in a whole 200 answer is a failure, whatever the reason. The counts go to a
//! file of the pod's own after every round, so that they outlive the pod.

use crate::{http, serve};
use anyhow::{Context, bail};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// Longer than any pause that a healthy mesh makes; a request over it is lost.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

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
    #[serde(skip_serializing_if = "Option::is_none")]
    last_error: Option<String>,
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
    let mut counts: BTreeMap<String, Counts> = BTreeMap::new();
    let mut kept: BTreeMap<String, Option<TcpStream>> = BTreeMap::new();
    let mut round = 0u64;
    while !stop.asked() && options.rounds.is_none_or(|rounds| round < rounds) {
        for target in &options.targets {
            for close in [true, false] {
                let begun = Instant::now();
                let mut none = None;
                let connection = if close { &mut none } else { kept.entry(target.clone()).or_default() };
                let result = request(connection, target, options, close).await;
                let way = if close { "new" } else { "kept" };
                note(
                    counts.entry(format!("{target} {way}")).or_default(),
                    target,
                    way,
                    begun.elapsed(),
                    result,
                );
            }
        }
        round += 1;
        save(options, &counts)?;
        tokio::time::sleep(options.interval).await;
    }
    save(options, &counts)?;
    println!("final {}", serde_json::to_string(&counts)?);
    Ok(counts.values().map(|count| count.failed).sum())
}

fn note(counts: &mut Counts, target: &str, way: &str, took: Duration, result: anyhow::Result<()>) {
    counts.slowest_ms = counts.slowest_ms.max(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    match result {
        Ok(()) => counts.ok += 1,
        Err(error) => {
            counts.failed += 1;
            println!("failed target={target} connection={way} after={}ms error={error:#}", took.as_millis());
            counts.last_error = Some(format!("{error:#}"));
        }
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
    let whole = async {
        let mut stream = match stream.take() {
            Some(stream) => stream,
            None => connect(target).await?,
        };
        let connection = if close { "close" } else { "keep-alive" };
        let head = format!(
            "GET / HTTP/1.1\r\nHost: {target}\r\nX-Client: {}\r\nX-Marker: {}\r\nConnection: {connection}\r\n\r\n",
            options.name, options.marker
        );
        stream.write_all(head.as_bytes()).await.context("write")?;
        let answer = http::read(&mut stream, &mut Vec::new()).await?.context("closed without an answer")?;
        if !answer.start.starts_with("HTTP/1.1 200 ") {
            bail!("answer {:?}", answer.start);
        }
        if !close && !answer.closes() {
            *kept = Some(stream);
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(REQUEST_TIMEOUT, whole).await.context("no answer in time")?
}

async fn connect(target: &str) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(target).await.context("connect")?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Replaces the file in one step: a reader never sees half of it.
fn save(options: &Options, counts: &BTreeMap<String, Counts>) -> anyhow::Result<()> {
    let Some(directory) = &options.counters else { return Ok(()) };
    let host = std::env::var("HOSTNAME").unwrap_or_else(|_| String::from("unknown"));
    let path = directory.join(format!("{}-{host}.json", options.name));
    let beside = path.with_extension("new");
    std::fs::write(&beside, serde_json::to_vec(counts)?)
        .and_then(|()| std::fs::rename(&beside, &path))
        .context("save the counters")
}
