//! What the process sets for itself before it does anything else, and what it says at its end.

#![allow(unsafe_code)]

use std::io::{self, IsTerminal};
use std::path::Path;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Where the kubelet reads why a container ended.
pub const TERMINATION_LOG: &str = "/dev/termination-log";

/// The kubelet shows no more of a termination message than this, in bytes.
const TERMINATION_LIMIT: usize = 4096;

/// Log lines go to standard error; `CINCH_LOG` filters them by level and module (`info` by default).
pub fn start_logging() {
    // Not `EnvFilter`: its regular expressions are a tenth of the program, for filters on fields that nobody sets.
    let wanted = std::env::var("CINCH_LOG").ok().and_then(|filter| filter.parse::<Targets>().ok());
    let filter = wanted.unwrap_or_else(|| Targets::new().with_default(LevelFilter::INFO));
    let lines = tracing_subscriber::fmt::layer()
        .compact()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    // A second call (tests) keeps the first subscriber.
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
}

/// Installs the cryptography that TLS uses by default.
pub fn install_crypto() {
    // It fails only when a provider is there already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Keeps private keys out of core dumps and from other processes' debuggers.
///
/// # Errors
/// The system's error, which concerns only the hardening: the proxy works without it.
pub fn harden() -> io::Result<()> {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `none` is a valid rlimit that lives through the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &raw const none) })?;
    // SAFETY: PR_SET_DUMPABLE takes plain integers.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })
}

/// Descriptors that one app connection may hold: itself, and its tunnel or its way to the app.
const DESCRIPTORS_PER_CONNECTION: u64 = 2;
/// And what the process has besides.
const OTHER_DESCRIPTORS: u64 = 256;

/// Takes as many file descriptors as the system lets us have (the soft limit is raised to the hard one), and tells
/// the log how many; when they are too few for `connections` on each side, that is said too. What then finds no
/// descriptor waits to be accepted.
pub fn raise_descriptor_limit(connections: usize) {
    let before = descriptor_limit().unwrap_or_default();
    if let Err(error) = set_descriptor_limit() {
        tracing::warn!(%error, "the limit of file descriptors could not be raised");
    }
    let now = descriptor_limit().unwrap_or_default();
    let both_sides = u64::try_from(connections).unwrap_or(u64::MAX).saturating_mul(2);
    let enough = both_sides.saturating_mul(DESCRIPTORS_PER_CONNECTION).saturating_add(OTHER_DESCRIPTORS);
    if now < enough {
        tracing::warn!(before, now, enough, "fewer file descriptors than limits.connections may need");
    } else {
        tracing::info!(before, now, "file descriptors");
    }
}

/// How many file descriptors the process may have.
///
/// # Errors
/// As `getrlimit(2)`.
pub fn descriptor_limit() -> io::Result<u64> {
    Ok(descriptor_limits()?.rlim_cur)
}

fn descriptor_limits() -> io::Result<libc::rlimit> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is valid for writes and not aliased.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    Ok(limit)
}

fn set_descriptor_limit() -> io::Result<()> {
    let mut limit = descriptor_limits()?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: `limit` is a valid rlimit that lives through the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })
}

/// How many file descriptors the process has now; 0 where /proc does not say.
#[must_use]
pub fn open_descriptors() -> u64 {
    let listed = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    // The one that lists them is none of them.
    u64::try_from(listed).unwrap_or(u64::MAX).saturating_sub(1)
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

    /// Set in the process that [`a_hardened_process_can_not_be_dumped`] starts: what it does to itself lasts.
    const HARDENED: &str = "CINCH_TEST_HARDENED";

    #[test]
    fn a_hardened_process_can_not_be_dumped() {
        if std::env::var_os(HARDENED).is_none() {
            let name = "process::tests::a_hardened_process_can_not_be_dumped";
            let mut itself = std::process::Command::new(std::env::current_exe().unwrap());
            let output = itself.args(["--exact", name]).env(HARDENED, "1").output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains("1 passed"), "{text}");
            return;
        }
        let state = || {
            let mut core = libc::rlimit { rlim_cur: 1, rlim_max: 1 };
            // SAFETY: `core` is valid for writes and not aliased.
            check(unsafe { libc::getrlimit(libc::RLIMIT_CORE, &raw mut core) }).unwrap();
            // SAFETY: PR_GET_DUMPABLE takes plain integers.
            let dumpable = unsafe { libc::prctl(libc::PR_GET_DUMPABLE, 0, 0, 0, 0) };
            (dumpable, core.rlim_cur, core.rlim_max)
        };
        assert_eq!(state().0, 1, "before, it can");
        harden().unwrap();
        assert_eq!(state(), (0, 0, 0));
    }

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
    fn file_descriptors_are_raised_to_the_hard_limit_and_counted() {
        raise_descriptor_limit(16);
        let limits = descriptor_limits().unwrap();
        assert_eq!(limits.rlim_cur, limits.rlim_max);
        assert_eq!(descriptor_limit().unwrap(), limits.rlim_max);
        let files: Vec<_> = (0..64).map(|_| tempfile::tempfile().unwrap()).collect();
        assert!(open_descriptors() >= 64, "{}", open_descriptors());
        drop(files);
    }

    #[test]
    fn resident_memory_is_known() {
        assert!(resident_bytes() > 100_000);
    }
}
