//! One stream of bytes in one direction, as fast as it goes.

use crate::report::{Report, Tally};
use crate::usage::Usage;
use crate::{Target, Window};
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// As much as a copy program writes at a time.
const PIECE: usize = 128 * 1024;
const LIMIT: Duration = Duration::from_secs(5);

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Direction {
    /// To the server.
    Up,
    /// From the server.
    Down,
}

/// The words after `bulk`.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    window: Window,
    #[arg(long, value_enum, default_value = "up")]
    direction: Direction,
}

/// Moves bytes for the time of the window, and prints how many.
///
/// # Errors
/// When the stream breaks, or the server did not get every byte that was sent.
pub fn run(options: &Options) -> Result<()> {
    let mut stream = TcpStream::connect(options.target.to).context("connect")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let mut piece = vec![b'z'; PIECE];
    let up = options.direction == Direction::Up;
    stream.write_all(if up { b"U" } else { b"D" })?;
    let (mut tally, mut all) = (Tally::default(), 1_u64);
    let mut until = Instant::now() + options.window.warm_up;
    let mut start = Usage::now(&options.target.pids);
    loop {
        if Instant::now() >= until {
            if tally.counting {
                break;
            }
            tally.counting = true;
            until = Instant::now() + options.window.seconds;
            start = Usage::now(&options.target.pids);
        }
        let moved = if up { stream.write(&piece)? } else { stream.read(&mut piece)? };
        anyhow::ensure!(moved > 0, "the stream ended");
        tally.moved(moved);
        all += moved as u64;
    }
    let report = Report::of(tally, &start, &options.target.pids);
    if up {
        stream.shutdown(Shutdown::Write)?;
        let mut count = [0; 8];
        stream.read_exact(&mut count).context("the server's count")?;
        let count = u64::from_be_bytes(count);
        anyhow::ensure!(count == all, "the server got {count} of {all} bytes");
    }
    report.print()
}
