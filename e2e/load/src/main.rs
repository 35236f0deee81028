//! What `cargo e2e bench` runs: a server, load of several kinds against it, and a pair of bare proxies as the limit
//! of what a pair in user space can do. Each command that measures prints one line of JSON.

mod bulk;
mod closed;
mod http1;
mod http2;
mod limit;
mod open;
mod report;
mod serve;
mod standing;
mod usage;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use std::net::SocketAddr;
use std::time::Duration;

#[derive(Parser)]
#[command(about = "Load, a server for it, and bare proxies to compare with")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve: HTTP/1.1 and HTTP/2 on some ports, bytes on others
    Serve(serve::Options),
    /// Each connection sends its next request when the last one is answered
    Closed(closed::Options),
    /// Requests fall due by the clock, and count from then
    Open(open::Options),
    /// One stream of bytes
    Bulk(bulk::Options),
    /// Connections that are opened, used once, left idle, and closed: what memory they take
    Hold(standing::HoldOptions),
    /// Connections that are all opened at once
    Burst(standing::BurstOptions),
    /// One of a pair of bare proxies
    Limit(limit::Options),
}

/// Where to, and who is watched meanwhile.
#[derive(Args, Debug, Clone)]
struct Target {
    /// The server.
    #[arg(long)]
    to: SocketAddr,
    /// Processes whose time on the processor and whose memory is reported.
    #[arg(long, value_delimiter = ',')]
    pids: Vec<u32>,
    /// Sent with each request as `authorization: Bearer …`.
    #[arg(long)]
    token: Option<String>,
}

/// How long.
#[derive(Args, Debug, Clone, Copy)]
struct Window {
    /// Before anything counts, in seconds.
    #[arg(long, default_value = "0.5", value_parser = seconds)]
    warm_up: Duration,
    /// While it counts, in seconds.
    #[arg(long, default_value = "3", value_parser = seconds)]
    seconds: Duration,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is no number of seconds"))?;
    Duration::try_from_secs_f64(number).map_err(|error| error.to_string())
}

fn main() -> Result<()> {
    let command = Arguments::parse().command;
    usage::raise_open_files();
    match command {
        Command::Serve(options) => serve::run(options),
        Command::Closed(options) => closed::run(options),
        Command::Open(options) => open::run(&options),
        Command::Bulk(options) => bulk::run(&options),
        Command::Hold(options) => standing::hold(options),
        Command::Burst(options) => standing::burst(options),
        Command::Limit(options) => limit::run(options),
    }
}
