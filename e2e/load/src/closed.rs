//! Load in a closed loop: each of some connections (or streams) has one request in flight at a time. All of it on one
//! thread, so that it takes as little as possible from those that are measured.

use crate::http1::{self, Connection};
use crate::report::{Report, Tally};
use crate::usage::Usage;
use crate::{Target, Window, http2};
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::LocalSet;

/// A connection that failed is tried again after this, so that a dead server is not hammered.
const PAUSE: Duration = Duration::from_millis(20);
/// What is echoed, by the server's first byte for it.
const MESSAGE: [u8; 100] = [b'E'; 100];

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// 100 bytes that come back.
    Echo,
}

/// The words after `closed`.
#[derive(Args)]
pub struct Options {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    window: Window,
    #[arg(long, value_enum, default_value = "http1")]
    protocol: Protocol,
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// On each connection, for HTTP/2.
    #[arg(long, default_value_t = 16)]
    streams: usize,
    /// A new connection for each request.
    #[arg(long)]
    new_connections: bool,
}

type Shared = Rc<RefCell<Tally>>;

/// Loads, and prints what came of it.
///
/// # Errors
/// When it can't begin at all; what fails meanwhile is counted.
pub fn run(options: Options) -> Result<()> {
    if options.protocol == Protocol::Http2 && options.new_connections {
        bail!("a new connection for each request is for HTTP/1.1 and bytes");
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tally = Shared::default();
    let tasks = LocalSet::new();
    let report = tasks.block_on(&runtime, async {
        for _ in 0..options.connections {
            start(&options, &tally);
        }
        tokio::time::sleep(options.window.warm_up).await;
        tally.borrow_mut().counting = true;
        let start = Usage::now(&options.target.pids);
        tokio::time::sleep(options.window.seconds).await;
        Report::of(tally.take(), &start, &options.target.pids)
    });
    report.print()
}

/// One connection's loop, as a task.
fn start(options: &Options, tally: &Shared) {
    let (to, tally, streams) = (options.target.to, tally.clone(), options.streams);
    let (protocol, new) = (options.protocol, options.new_connections);
    let token = options.target.token.clone();
    tokio::task::spawn_local(async move {
        let request = http1::request(to, token.as_deref());
        loop {
            let ended = match protocol {
                Protocol::Http2 => http2::requests(to, streams, token.as_deref(), &tally).await,
                Protocol::Http1 | Protocol::Echo => {
                    let message = if protocol == Protocol::Echo { &MESSAGE } else { request.as_slice() };
                    one_by_one(to, protocol, message, new, &tally).await
                }
            };
            if let Err(error) = ended {
                tally.borrow_mut().failed(&error);
                tokio::time::sleep(PAUSE).await;
            }
        }
    });
}

/// Requests over one connection until it fails; or only one, when each shall have its own.
async fn one_by_one(
    to: std::net::SocketAddr,
    protocol: Protocol,
    message: &[u8],
    only_one: bool,
    tally: &Shared,
) -> Result<()> {
    let mut sent = Instant::now();
    let mut connection = Connection::open(to).await?;
    loop {
        match protocol {
            Protocol::Echo => connection.echo(message).await?,
            _ => connection.exchange(message).await?,
        }
        tally.borrow_mut().answered(sent);
        if only_one {
            return Ok(());
        }
        sent = Instant::now();
    }
}
