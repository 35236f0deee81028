//! What the process sets for itself before it does anything else, and what it says at its end.

#![allow(unsafe_code)]

use std::io::{self, IsTerminal};
use std::path::Path;
use tracing_subscriber::EnvFilter;

/// Where the kubelet reads why a container ended.
pub const TERMINATION_LOG: &str = "/dev/termination-log";

/// The kubelet shows no more of a termination message than this, in bytes.
const TERMINATION_LIMIT: usize = 4096;

/// Log lines go to standard error; `CINCH_LOG` filters them (`info` by default).
pub fn start_logging() {
    let filter = EnvFilter::try_from_env("CINCH_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt()
        .compact()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .with_env_filter(filter);
    // A second call (tests) keeps the first subscriber.
    let _ = lines.try_init();
}

/// Installs the cryptography that TLS uses by default.
pub fn install_crypto() {
    // It fails only when a provider is there already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Takes all file descriptors that the system allows, and keeps private keys out of core dumps and from
/// other processes' debuggers.
///
/// # Errors
/// The system's error, which concerns only the hardening: the proxy works without it.
pub fn harden() -> io::Result<()> {
    raise_descriptor_limit()?;
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `none` is a valid rlimit that lives through the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) })?;
    // SAFETY: PR_SET_DUMPABLE takes plain integers.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })
}

fn raise_descriptor_limit() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for writes and not aliased.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is a valid rlimit that lives through the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Leaves `message` where `kubectl describe pod` shows it. Outside a container there is no such file, and
/// none is made.
pub fn write_termination_message(path: &Path, message: &str) {
    let end =
        message.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= TERMINATION_LIMIT);
    let text = end.last().and_then(|end| message.get(..end)).unwrap_or_default();
    let written = std::fs::OpenOptions::new()
        .write(true)
        .truncate(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, text.as_bytes()));
    if let Err(error) = written {
        tracing::debug!(path = %path.display(), %error, "no termination message was written");
    }
}

/// Resident memory of the process in bytes; 0 where /proc does not say.
#[must_use]
pub fn resident_bytes() -> u64 {
    // Pages: total, resident, ... (proc(5)). x86-64 and the usual arm64 kernels have pages of 4 KiB.
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * 4096
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_termination_message_is_cut_at_a_character() {
        let file = tempfile::NamedTempFile::new().unwrap();
        write_termination_message(file.path(), &"ä".repeat(4000));
        let text = std::fs::read_to_string(file.path()).unwrap();
        assert_eq!(text.len(), 4096);
        write_termination_message(file.path(), "short");
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "short");
    }

    #[test]
    fn resident_memory_is_known() {
        assert!(resident_bytes() > 100_000);
    }
}
