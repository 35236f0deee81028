//! Ctrl-C, SIGTERM and SIGHUP: the cluster that this process started is taken down before the process ends.

use crate::cluster::{self, Layout};
use crate::terminal;
use anyhow::Result;
use std::thread;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};

/// The exit code that shells expect after SIGINT.
const INTERRUPTED: i32 = 130;

/// From now on a signal takes the cluster `name` down and ends this process.
///
/// # Errors
/// When signals can't be received.
pub fn guard(name: &str) -> Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
    let name = name.to_owned();
    thread::spawn(move || {
        runtime.block_on(first());
        terminal::say("interrupted: taking the cluster down");
        if let Err(error) = cluster::down(&Layout::new(&name)) {
            terminal::say(format_args!("{error:#}"));
        }
        std::process::exit(INTERRUPTED);
    });
    Ok(())
}

async fn first() {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let Ok(streams) = kinds.into_iter().map(signal).collect::<Result<Vec<_>, _>>() else {
        return std::future::pending().await;
    };
    let mut streams = streams.into_iter();
    if let (Some(mut interrupt), Some(mut terminate), Some(mut hangup)) =
        (streams.next(), streams.next(), streams.next())
    {
        tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {}, _ = hangup.recv() => {} }
    }
}
