//! Load in an open loop: requests fall due by the clock, whether or not the last one is answered, and a latency counts
//! from when its request was due. A thread for each connection: timers of a runtime are too coarse for microseconds.

use crate::http1;
use crate::report::{Report, Tally};
use crate::usage::Usage;
use crate::{Target, Window};
use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::Args;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroU64;
use std::thread;
use std::time::{Duration, Instant};

/// An answer that takes longer is a failure.
const LIMIT: Duration = Duration::from_secs(5);

/// The words after `open`.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    window: Window,
    #[arg(long, default_value_t = 16)]
    connections: u32,
    /// Requests a second, of all connections together.
    #[arg(long, default_value_t = 1000)]
    rate: u32,
}

/// When requests of one connection are due.
#[derive(Clone, Copy)]
struct Schedule {
    first: Instant,
    every: Duration,
    counts_from: Instant,
    end: Instant,
}

/// Loads, and prints what came of it.
///
/// # Errors
/// When a connection can't be made or fails: in an open loop nothing may be left out.
pub fn run(options: &Options) -> Result<()> {
    ensure!(options.rate > 0 && options.connections > 0, "neither rate nor connections may be zero");
    let (begin, every) = (Instant::now(), Duration::from_secs(1) * options.connections / options.rate);
    let counts_from = begin + options.window.warm_up;
    let end = counts_from + options.window.seconds;
    let threads: Vec<_> = (0..options.connections)
        .map(|number| {
            let schedule =
                Schedule { first: begin + every * number / options.connections, every, counts_from, end };
            let (to, request) =
                (options.target.to, http1::request(options.target.to, options.target.token.as_deref()));
            thread::spawn(move || requests(to, &request, schedule))
        })
        .collect();
    thread::sleep(counts_from.saturating_duration_since(Instant::now()));
    let start = Usage::now(&options.target.pids);
    thread::sleep(end.saturating_duration_since(Instant::now()));
    let (seconds, processor) = start.since(&options.target.pids);
    let mut all = Tally::default();
    for thread in threads {
        match thread.join().map_err(|_| anyhow!("a thread failed"))? {
            Ok(tally) => all.add(tally),
            Err(error) => all.failed(&error),
        }
    }
    Report::over(all, seconds, processor).print()
}

/// One connection's requests.
fn requests(to: SocketAddr, request: &[u8], schedule: Schedule) -> Result<Tally> {
    // The kernel would otherwise wake us up to 50 us late.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    let mut stream = TcpStream::connect(to).context("connect")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    let (mut tally, mut buffer, mut due) = (Tally::default(), Vec::new(), schedule.first);
    while due < schedule.end {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        tally.counting = due >= schedule.counts_from;
        exchange(&mut stream, request, &mut buffer)?;
        tally.answered(due);
        due += schedule.every;
    }
    Ok(tally)
}

fn exchange(stream: &mut TcpStream, request: &[u8], buffer: &mut Vec<u8>) -> Result<()> {
    stream.write_all(request).context("write")?;
    let mut read = [0; 4096];
    loop {
        if let Some(whole) = http1::answer(buffer)? {
            buffer.drain(..whole);
            return Ok(());
        }
        match stream.read(&mut read).context("read")? {
            0 => bail!("closed without an answer"),
            count => buffer.extend_from_slice(read.get(..count).unwrap_or_default()),
        }
    }
}
