//! The redirect of a pod's TCP connections to its proxy.
//!
//! In goes a [`RedirectConfig`]; out comes one `inet` table named `cinch` in the network namespace of the
//! calling thread, replaced as a whole by one atomic nf_tables batch over netlink. Nothing of the process is
//! changed and no program is started, so an agent may enter the namespace of another process and call the
//! same functions there; [`request`] is how a sidecar asks such an agent. [`original_destination`] is the way back: from an accepted connection to the
//! address that the client dialled.

mod netlink;
mod nftables;
mod original;
pub mod request;
mod rules;
pub mod sighting;

use cinch_reason::Reason;
use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

pub use original::{Family, original_destination, original_destination_in};

/// Dialling this address must end at the outbound listener, whoever dials: it proves the outbound redirect.
/// TEST-NET-1 of RFC 5737, which is never routed.
pub const SELF_TEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// The node agent dials this address from inside a pod's namespace, to prove that a process which is not the
/// proxy is captured; the proxy answers there with the number of the request. Of the same prefix.
pub const AGENT_TEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

/// As [`AGENT_TEST_ADDRESS`] where a pod has no IPv4: of the documentation prefix of RFC 3849.
pub const AGENT_TEST_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

/// Whose connections are not captured: the proxy's own, told from all others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exempt {
    /// Sockets of this user. Any process of the pod that takes the UID is exempt with it.
    User(u32),
    /// Sockets that were opened in this cgroup v2 or below it: the proxy's container, whatever the UID.
    Cgroup {
        /// The cgroup's number: the inode of its directory.
        id: u64,
        /// How many components its path has from the root of the loader's cgroup namespace, which should be the
        /// root of the hierarchy: kernels disagree about what they count from.
        level: u32,
    },
}

impl fmt::Display for Exempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User(uid) => write!(f, "uid {uid}"),
            Self::Cgroup { id, level } => write!(f, "cgroup {id} at level {level}"),
        }
    }
}

/// What the redirect is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RedirectConfig {
    /// Whose connections are not captured.
    pub exempt: Exempt,
    /// Where connections from outside the pod go.
    pub inbound_port: u16,
    /// Where connections of the pod's processes go, on loopback.
    pub outbound_port: u16,
    /// The address whose connections are captured before any exemption.
    pub self_test: Ipv4Addr,
}

impl Default for RedirectConfig {
    fn default() -> Self {
        Self {
            exempt: Exempt::User(1507),
            inbound_port: 15006,
            outbound_port: 15001,
            self_test: SELF_TEST_ADDRESS,
        }
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

/// What the table in a network namespace is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Table {
    /// Exactly the rules of a configuration.
    Current,
    /// Other rules: of another configuration, of another version, or changed by somebody.
    Other,
    /// No rule at all.
    Missing,
}

/// What stands in the calling thread's network namespace, compared with the rules of `config`.
///
/// # Errors
/// [`RedirectError`]. It needs `CAP_NET_ADMIN`.
pub fn table(config: &RedirectConfig) -> Result<Table, RedirectError> {
    let seen = netlink::Socket::open()?.dump(&rules::list_rules())?;
    let seen: Vec<_> = seen.iter().filter_map(|message| rules::rule_label(message)).collect();
    Ok(match seen {
        none if none.is_empty() => Table::Missing,
        same if same == rules::expected_labels(config) => Table::Current,
        _ => Table::Other,
    })
}

/// Whether exactly the rules of `config` stand in the calling thread's network namespace.
///
/// # Errors
/// [`RedirectError`]. It needs `CAP_NET_ADMIN`.
pub fn is_installed(config: &RedirectConfig) -> Result<bool, RedirectError> {
    Ok(table(config)? == Table::Current)
}

/// Removes the redirect; no redirect is no error.
///
/// # Errors
/// [`RedirectError`]; nothing is changed then. It needs `CAP_NET_ADMIN`.
pub fn remove() -> Result<(), RedirectError> {
    netlink::Socket::open()?.batch(&rules::remove_table())
}
