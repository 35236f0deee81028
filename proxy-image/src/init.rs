//! `cinch-proxy init`: sets the redirect of the pod's network namespace, and proves it before any app starts.
//!
//! In goes nothing but the namespace; out comes one line and exit code 0, or a reason on standard error and in
//! the termination log and exit code 1.

use crate::process;
use anyhow::{Context, Result, bail};
use cinch_reason::Reason;
use cinch_redirect::{RedirectConfig, install, is_installed, original_destination};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The discard port: should the redirect be missing, nobody is bothered.
const PROOF_PORT: u16 = 9;
/// A redirected dial stays on loopback: it takes microseconds.
const PROOF_TIMEOUT: Duration = Duration::from_secs(2);
/// What a pod without IPv4 dials: of the documentation prefix of RFC 3849, which is never routed.
const PROOF_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// Sets and proves the redirect.
#[must_use]
pub fn run() -> ExitCode {
    let config = RedirectConfig::default();
    match set_and_prove(&config) {
        Ok(proof) => {
            println!(
                "redirect in force and proved by a dial to {proof}: inbound to {}, outbound to {}, {} exempt",
                config.inbound_port, config.outbound_port, config.exempt
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            let message = Reason::RedirectMissing.message_with(&format!("{error:#}"));
            eprintln!("{message}");
            process::write_termination_message(Path::new(process::TERMINATION_LOG), &message);
            ExitCode::FAILURE
        }
    }
}

/// Sets the redirect in the calling thread's network namespace and proves it by a dial; returns the address
/// that was dialled.
///
/// # Errors
/// The step that failed. A redirect that was set but not proved stays: it is the safe side.
pub fn set_and_prove(config: &RedirectConfig) -> Result<SocketAddr> {
    install(config).context("the redirect could not be set")?;
    if !is_installed(config).context("the redirect could not be read back")? {
        bail!("the kernel does not show the rules that it took");
    }
    let v4 = SocketAddr::new(config.self_test.into(), PROOF_PORT);
    match prove(Ipv4Addr::LOCALHOST.into(), v4, config) {
        Err(error) if is_unroutable(&error) => {
            let v6 = SocketAddr::new(PROOF_ADDRESS_V6.into(), PROOF_PORT);
            prove(Ipv6Addr::LOCALHOST.into(), v6, config)?;
            Ok(v6)
        }
        proved => proved.map(|()| v4),
    }
}

/// The namespace has no route of this family, so nothing could leave it either.
fn is_unroutable(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| {
        matches!(error.kind(), ErrorKind::NetworkUnreachable | ErrorKind::AddrNotAvailable)
            || error.raw_os_error() == Some(libc::EAFNOSUPPORT)
    })
}

/// Dials `to`, which must reach a listener on `at` that sees `to` as the original destination.
fn prove(at: IpAddr, to: SocketAddr, config: &RedirectConfig) -> Result<()> {
    let listener = TcpListener::bind((at, config.outbound_port))
        .with_context(|| format!("{at}:{} can not be opened for the proof", config.outbound_port))?;
    listener.set_nonblocking(true)?;
    let _dialled = TcpStream::connect_timeout(&to, PROOF_TIMEOUT)
        .with_context(|| format!("the dial to {to} was not redirected"))?;
    let until = Instant::now() + PROOF_TIMEOUT;
    while Instant::now() < until {
        match listener.accept() {
            Ok((stream, _)) if original_destination(&stream).is_ok_and(|seen| seen == to) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                std::thread::sleep(Duration::from_millis(1))
            }
            Err(error) => return Err(error).context("the listener of the proof failed"),
        }
    }
    bail!("the dial to {to} reached somebody else than {at}:{}", config.outbound_port)
}
