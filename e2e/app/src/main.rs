//! The programs that the demo and the tests run as pods: a server, clients that count, a scanner, real workloads in
//! small, speakers of UDP, who asks the node agent in the sidecar's place, a pause.
//!
//! They behave as a good workload does (readiness, draining on SIGTERM, keep-alive with `Connection: close`),
//! so that a failed request is the mesh's doing.

mod ask;
mod client;
mod http;
mod scan;
mod serve;
mod udp;
mod workload;

use clap::{Parser, Subcommand};
use std::time::Duration;

#[derive(Parser)]
#[command(about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Sleep until SIGTERM: the sandbox container of every pod.
    Pause,
    /// Serve HTTP/1.1 and log each request; drain on SIGTERM.
    Serve(serve::Options),
    /// Call URLs in a loop, with new and with kept connections, and count; optionally serve as well.
    Call(client::Options),
    /// Ask the node agent what only a sidecar may ask; print the answer, and stay.
    Ask(ask::Options),
    /// Connect to an address, send nothing, close; print what happened.
    Scan(scan::Options),
    /// Answer UDP, or keep speaking it to a peer, or both.
    Udp(udp::Options),
    /// Serve HTTP, WebSocket, gRPC and a protocol in which the server speaks first, all with checksums.
    Workloads(workload::Ports),
    /// Play the clients of `workloads` once; non-zero exit status if a byte came otherwise than it was sent.
    Try(workload::Options),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Pause => terminated().await,
        Command::Serve(options) => serve::run(options, serve::Stop::on_sigterm()?).await,
        Command::Call(options) => client::run(options).await,
        Command::Ask(options) => ask::run(&options).await,
        Command::Scan(options) => scan::run(&options).await,
        Command::Udp(options) => udp::run(options).await,
        Command::Workloads(ports) => workload::serve(ports, serve::Stop::on_sigterm()?).await,
        Command::Try(options) => workload::play(options).await,
    }
}

/// Waits for SIGTERM or SIGINT.
async fn terminated() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
    Ok(())
}

/// Parses `250ms` or `4s`.
fn duration(text: &str) -> Result<Duration, String> {
    let number = |digits: &str| digits.parse::<u64>().map_err(|error| error.to_string());
    match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(digits), _) => number(digits).map(Duration::from_millis),
        (None, Some(digits)) => number(digits).map(Duration::from_secs),
        (None, None) => Err(format!("{text:?} is no duration: write 250ms or 4s")),
    }
}
