//! Work inside the network namespace of a pod: the redirect is loaded and proved there.
//!
//! Each visit is a thread of its own that ends with it: a thread that has entered a namespace must never serve
//! anybody else.

#![allow(unsafe_code)]

use crate::refusal::Refusal;
use cinch_reason::Reason;
use cinch_redirect::{
    AGENT_TEST_ADDRESS, AGENT_TEST_ADDRESS_V6, Exempt, RedirectConfig, Table, install, is_installed, table,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The discard port: should the redirect be missing, nobody is bothered.
const PROOF_PORT: u16 = 9;
/// A redirected dial stays on loopback; the proxy's loop may be busy when a pod starts.
const PROOF_TIMEOUT: Duration = Duration::from_secs(2);

/// What was done in a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// The redirect stood already as it must, and was proved.
    Standing,
    /// It was loaded in the place of this, and proved. One that was current had not been proved.
    Loaded(Table),
}

/// What a visit to set the redirect came to.
#[derive(Debug)]
pub struct Visit {
    /// What stood there before; `None` when that could not be seen.
    pub found: Option<Table>,
    /// What was done, or why the redirect is not proved.
    pub outcome: Result<Done, Refusal>,
}

/// Runs `work` on a thread of its own in `namespace`.
///
/// # Errors
/// When there can be no thread, or it may not enter.
pub async fn inside<T: Send + 'static>(
    namespace: File,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (done, result) = oneshot::channel();
    let visit = move || {
        let entered = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network));
        // Nobody waits when the agent ends.
        let _ = done.send(entered.map(|()| work()).map_err(io::Error::from));
    };
    std::thread::Builder::new().name("visit".to_owned()).stack_size(256 * 1024).spawn(visit)?;
    result.await.map_err(|_| io::Error::other("the thread in the pod's network namespace failed"))?
}

/// Joins the root cgroup namespace of the node, as its first process has it: paths of cgroups read from
/// anywhere else are relative, and kernels differ in what they count a level from. Threads that are made
/// afterwards inherit it.
///
/// # Errors
/// When the namespace is not to be seen or may not be entered.
pub fn join_root_cgroups(proc: &std::path::Path) -> io::Result<()> {
    let root = File::open(proc.join("1/ns/cgroup"))?;
    Ok(move_into_link_name_space(root.as_fd(), Some(LinkNameSpaceType::ControlGroup))?)
}

/// Whether this kernel takes the redirect's table at all: loads it in a network namespace that ends with the
/// thread that made it.
///
/// # Errors
/// What the kernel refused.
pub fn try_table() -> Result<(), String> {
    let attempt = || {
        // SAFETY: unshare takes plain flags and changes only this thread's network namespace.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
            return Err(format!("a network namespace can not be made: {}", io::Error::last_os_error()));
        }
        // Whose cgroup it is does not matter: nobody lives there.
        let exempt = Exempt::Cgroup { id: 1, level: 1 };
        let config = RedirectConfig { exempt, ..RedirectConfig::default() };
        install(&config).map_err(|error| error.to_string())?;
        match is_installed(&config) {
            Ok(true) => Ok(()),
            Ok(false) => Err("the kernel does not show the rules that it took".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    };
    std::thread::spawn(attempt).join().unwrap_or_else(|_| Err("the attempt failed".to_owned()))
}

/// Sets the redirect in the calling thread's network namespace and proves it by a dial of its own, which must
/// reach the proxy that asked with `nonce`. What stands as it must is left, unless the proof fails. A redirect that was
/// loaded but not proved stays: it is the safe side.
#[must_use]
pub fn set_and_prove(config: &RedirectConfig, nonce: u64) -> Visit {
    match table(config) {
        Ok(found) => Visit { found: Some(found), outcome: set_where_needed(config, nonce, found) },
        Err(error) => Visit { found: None, outcome: Err(missing(&error)) },
    }
}

fn set_where_needed(config: &RedirectConfig, nonce: u64, found: Table) -> Result<Done, Refusal> {
    if found == Table::Current && prove(nonce).is_ok() {
        return Ok(Done::Standing);
    }
    install(config).map_err(|error| missing(&error))?;
    if !is_installed(config).map_err(|error| missing(&error))? {
        return Err(missing(&"the kernel does not show the rules that it took"));
    }
    prove(nonce).map_err(|error| missing(&error))?;
    Ok(Done::Loaded(found))
}

fn missing(error: &dyn std::fmt::Display) -> Refusal {
    Refusal::new(Reason::RedirectMissing, error.to_string())
}

/// Dials as any process of the pod that is not the proxy.
fn prove(nonce: u64) -> Result<(), String> {
    let v4 = SocketAddr::new(AGENT_TEST_ADDRESS.into(), PROOF_PORT);
    match heard_at(v4) {
        Err(error) if is_unroutable(&error) => {
            let v6 = SocketAddr::new(AGENT_TEST_ADDRESS_V6.into(), PROOF_PORT);
            judge(v6, heard_at(v6), nonce)
        }
        heard => judge(v4, heard, nonce),
    }
}

fn judge(to: SocketAddr, heard: io::Result<u64>, nonce: u64) -> Result<(), String> {
    match heard {
        Ok(word) if word == nonce => Ok(()),
        Ok(_) => Err(format!("the agent's dial to {to} reached somebody else than the proxy that asked")),
        Err(error) => Err(format!("the agent's dial to {to} was not answered by the proxy: {error}")),
    }
}

/// What whoever answers at `to` says first. All of it has one deadline: pods share the visits, and who answers a byte
/// at a time must not hold one.
fn heard_at(to: SocketAddr) -> io::Result<u64> {
    let until = Instant::now() + PROOF_TIMEOUT;
    let mut stream = TcpStream::connect_timeout(&to, PROOF_TIMEOUT)?;
    let mut word = [0; 8];
    let mut rest = &mut word[..];
    while !rest.is_empty() {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(rest) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => rest = rest.split_at_mut_checked(length).map(|(_, rest)| rest).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(u64::from_be_bytes(word))
}

/// The namespace has no route of this family, so nothing could leave it either.
fn is_unroutable(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NetworkUnreachable | ErrorKind::AddrNotAvailable)
        || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
}
