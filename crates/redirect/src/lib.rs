//! The redirect of a pod's TCP connections to its proxy.
//!
//! In goes a [`RedirectConfig`]; out comes one `inet` table named `cinch` in the network namespace of the
//! calling thread, replaced as a whole by one atomic nf_tables batch over netlink. Nothing of the process is
//! changed and no program is started, so an agent may enter the namespace of another process and call the
//! same functions there. [`original_destination`] is the way back: from an accepted connection to the
//! address that the client dialled.

mod netlink;
mod nftables;
mod original;
mod rules;

use cinch_reason::Reason;
use std::net::Ipv4Addr;

pub use original::original_destination;

/// Dialling this address must end at the outbound listener, whoever dials: it proves the outbound redirect.
/// TEST-NET-1 of RFC 5737, which is never routed.
pub const SELF_TEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// What the redirect is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RedirectConfig {
    /// Connections of this user are not captured: they are the proxy's own.
    pub proxy_uid: u32,
    /// Where connections from outside the pod go.
    pub inbound_port: u16,
    /// Where connections of the pod's processes go, on loopback.
    pub outbound_port: u16,
    /// The address whose connections are captured before any exemption.
    pub self_test: Ipv4Addr,
}

impl Default for RedirectConfig {
    fn default() -> Self {
        Self { proxy_uid: 1507, inbound_port: 15006, outbound_port: 15001, self_test: SELF_TEST_ADDRESS }
    }
}

/// Why the redirect could not be set, read or removed.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// The netlink socket failed.
    #[error("netlink: {action}: {source}")]
    Socket {
        /// What was tried.
        action: &'static str,
        /// The system's error.
        source: std::io::Error,
    },
    /// The kernel refused one step of the batch, so none of it was done.
    #[error("the kernel refused {step}: {source}{detail}", detail = said(.detail))]
    Refused {
        /// The table, chain or rule that was refused.
        step: String,
        /// The kernel's error number.
        source: std::io::Error,
        /// The kernel's own words (extended acknowledgement); often empty.
        detail: String,
    },
    /// The kernel's answer can't be understood.
    #[error("netlink: the answer of the kernel is cut short")]
    Answer,
}

impl RedirectError {
    /// The stable word for status and logs.
    #[must_use]
    pub fn reason(&self) -> Reason {
        Reason::RedirectMissing
    }
}

fn said(detail: &str) -> String {
    if detail.is_empty() { String::new() } else { format!(" ({detail})") }
}

/// Sets the redirect in the calling thread's network namespace. Whatever stood in the table before is
/// replaced in the same transaction; open connections keep their way.
///
/// # Errors
/// [`RedirectError`]; nothing is changed then. It needs `CAP_NET_ADMIN`.
pub fn install(config: &RedirectConfig) -> Result<(), RedirectError> {
    netlink::Socket::open()?.batch(&rules::replace_table(config))
}

/// Whether exactly the rules of `config` stand in the calling thread's network namespace.
///
/// # Errors
/// [`RedirectError`]. It needs `CAP_NET_ADMIN`.
pub fn is_installed(config: &RedirectConfig) -> Result<bool, RedirectError> {
    let seen = netlink::Socket::open()?.dump(&rules::list_rules())?;
    let seen: Vec<_> = seen.iter().filter_map(|message| rules::rule_label(message)).collect();
    Ok(seen == rules::expected_labels(config))
}

/// Removes the redirect; no redirect is no error.
///
/// # Errors
/// [`RedirectError`]; nothing is changed then. It needs `CAP_NET_ADMIN`.
pub fn remove() -> Result<(), RedirectError> {
    netlink::Socket::open()?.batch(&rules::remove_table())
}
