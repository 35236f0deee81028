//! Many connections: how much memory they take while they stand idle, and how long it takes to open them all at once.

use crate::http1::{self, Connection};
use crate::report::{Report, Tally};
use crate::usage::{Usage, memory};
use crate::{Target, seconds};
use anyhow::{Context, Result, ensure};
use clap::Args;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// So many are opened at a time: the memory of idle ones is asked for, not that of a rush.
const AT_A_TIME: usize = 32;
/// All of a rush.
const LIMIT: Duration = Duration::from_secs(30);

/// The words after `hold`.
#[derive(Args)]
pub struct HoldOptions {
    #[command(flatten)]
    target: Target,
    #[arg(long, default_value_t = 1000)]
    connections: usize,
    /// How long they stand idle before the memory is read, in seconds.
    #[arg(long, default_value = "2", value_parser = seconds)]
    idle: Duration,
    /// How long after their end it is read again, in seconds.
    #[arg(long, default_value = "5", value_parser = seconds)]
    after: Duration,
}

/// The words after `burst`.
#[derive(Args)]
pub struct BurstOptions {
    #[command(flatten)]
    target: Target,
    #[arg(long, default_value_t = 1000)]
    connections: usize,
}

/// Prints the memory before, with all connections idle after one request on each, and after their end.
///
/// # Errors
/// When a connection fails: fewer would look as if they took less.
pub fn hold(options: HoldOptions) -> Result<()> {
    let pids = options.target.pids.clone();
    runtime()?.block_on(async move {
        let start = Usage::now(&pids);
        let (mut moments, mut tally) = (vec![memory(&pids)], Tally::counting());
        let mut open: Vec<Connection> = Vec::new();
        while open.len() < options.connections {
            let more = AT_A_TIME.min(options.connections - open.len());
            let mut opening = opening(&options.target, more);
            while let Some(opened) = opening.join_next().await {
                let (connection, begun) = opened.context("a task failed")??;
                tally.answered(begun);
                open.push(connection);
            }
        }
        sleep(options.idle).await;
        moments.push(memory(&pids));
        drop(open);
        sleep(options.after).await;
        moments.push(memory(&pids));
        Report { memory: moments, ..Report::of(tally, &start, &pids) }.print()
    })
}

/// Prints how long the last of many connections took that were all opened at once, each for one request.
///
/// # Errors
/// When nothing is answered in time; single failures are counted.
pub fn burst(options: BurstOptions) -> Result<()> {
    let pids = options.target.pids.clone();
    runtime()?.block_on(async move {
        let mut tally = Tally::counting();
        let start = Usage::now(&pids);
        let mut opening = opening(&options.target, options.connections);
        let mut open = Vec::new();
        let all = async {
            while let Some(opened) = opening.join_next().await {
                match opened.context("a task failed").and_then(|opened| opened) {
                    Ok((connection, begun)) => {
                        tally.answered(begun);
                        open.push(connection);
                    }
                    Err(error) => tally.failed(&error),
                }
            }
        };
        let ended = timeout(LIMIT, all).await;
        if ended.is_err() {
            tally.failed(&anyhow::anyhow!("{} answers after {} s", tally.done(), LIMIT.as_secs()));
        }
        ensure!(tally.done() > 0, "no connection was served");
        Report::of(tally, &start, &pids).print()
    })
}

/// Opens so many connections and makes one request on each.
fn opening(target: &Target, count: usize) -> JoinSet<Result<(Connection, Instant)>> {
    let mut tasks = JoinSet::new();
    let (to, request) = (target.to, http1::request(target.to, target.token.as_deref()));
    for _ in 0..count {
        let request = request.clone();
        tasks.spawn(async move {
            let begun = Instant::now();
            let mut connection = Connection::open(to).await?;
            connection.exchange(&request).await?;
            Ok((connection, begun))
        });
    }
    tasks
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("runtime")
}
