//! Ctrl-C, SIGTERM and SIGHUP: what this process started ends before the process does.

use crate::cluster::{self, Layout};
use crate::terminal;
use anyhow::Result;
use std::sync::{Mutex, PoisonError};
use std::thread;
use tokio::runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The exit code that shells expect after SIGINT.
const INTERRUPTED: i32 = 130;

/// What is done before the end.
type Ending = Box<dyn FnOnce() + Send>;

/// What a signal does now; `None` until signals are received at all.
static ENDING: Mutex<Option<Ending>> = Mutex::new(None);

/// From now on a signal takes the cluster `name` down and ends this process.
///
/// # Errors
/// When signals can't be received.
pub fn guard(name: &str) -> Result<()> {
    let name = name.to_owned();
    at_end(move || {
        terminal::say("interrupted: taking the cluster down");
        if let Err(error) = cluster::down(&Layout::new(&name)) {
            terminal::say(format_args!("{error:#}"));
        }
    })
}

/// From now on a signal does this, in place of what it did before, and ends this process.
///
/// # Errors
/// When signals can't be received.
pub fn at_end(ending: impl FnOnce() + Send + 'static) -> Result<()> {
    let mut current = ENDING.lock().unwrap_or_else(PoisonError::into_inner);
    if current.is_none() {
        let runtime = runtime::Builder::new_current_thread().enable_io().build()?;
        let entered = runtime.enter();
        let signals = Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        };
        drop(entered);
        thread::spawn(move || {
            runtime.block_on(signals.first());
            // Held until the process has ended: nothing may take its place.
            let mut current = ENDING.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(ending) = current.take() {
                ending();
            }
            std::process::exit(INTERRUPTED);
        });
    }
    *current = Some(Box::new(ending));
    Ok(())
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    async fn first(mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use std::process::Command;
    use std::time::Duration;

    /// In this process's environment when it is the one that gets a signal: a file in which it says what it does then.
    const FILE: &str = "CINCH_E2E_SIGNALS_FILE";

    #[test]
    fn a_signal_does_what_was_asked_for_last_and_ends_the_process() {
        if let Some(file) = std::env::var_os(FILE).map(PathBuf::from) {
            let earlier = file.clone();
            at_end(move || std::fs::write(earlier, "earlier").unwrap()).unwrap();
            at_end(move || std::fs::write(file, "last").unwrap()).unwrap();
            let own = rustix::process::getpid();
            rustix::process::kill_process(own, rustix::process::Signal::TERM).unwrap();
            thread::sleep(Duration::from_secs(60));
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("said");
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.arg("signals::tests::").env(FILE, &file);
        let status = command.output().unwrap().status;
        assert_eq!(status.code(), Some(INTERRUPTED), "{status}");
        assert_eq!(std::fs::read_to_string(file).unwrap(), "last");
    }
}
