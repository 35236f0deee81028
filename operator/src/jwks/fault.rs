//! Why keys could not be fetched. Nothing that a server sent stands in a message, but for the issuer that a
//! discovery document names: whoever writes a policy reads it, and may not learn what an internal server says.

use cinch_reason::Reason;
use std::net::IpAddr;

/// Longest piece of somebody else's text in a message.
const QUOTED: usize = 200;

/// Why keys could not be fetched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The URL can't be used.
    #[error("{url} can not be fetched: {problem}")]
    Url {
        /// The URL.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The host has only addresses that may not be dialled.
    #[error(
        "{host} has the address {address}, which is {word}: keys are fetched from public addresses and from those in jwks.allowedCIDRs"
    )]
    Refused {
        /// Host of the URL.
        host: String,
        /// An address of it.
        address: IpAddr,
        /// What kind of address that is.
        word: &'static str,
    },
    /// The name has no address.
    #[error("the name {0} can not be resolved")]
    Unresolved(String),
    /// No connection.
    #[error("{host} can not be reached: {problem}")]
    Unreachable {
        /// Host of the URL.
        host: String,
        /// What the system says.
        problem: String,
    },
    /// No TLS session.
    #[error("TLS with {host} failed: {problem}")]
    Tls {
        /// Host of the URL.
        host: String,
        /// What is wrong, such as an unknown issuer.
        problem: String,
    },
    /// Not all came in time.
    #[error("{host} did not answer within {milliseconds} ms")]
    Slow {
        /// Host of the URL.
        host: String,
        /// The bound.
        milliseconds: u64,
    },
    /// No HTTP answer, or one that breaks off.
    #[error("{0} did not answer with HTTP as it should")]
    Http(String),
    /// An answer, but not the document.
    #[error("{host} answered with status {status}")]
    Status {
        /// Host of the URL.
        host: String,
        /// HTTP status.
        status: u16,
    },
    /// One redirect leads to the next.
    #[error("{0} redirects too often")]
    Redirects(String),
    /// More than any issuer publishes.
    #[error("{host} sent more than {limit} bytes")]
    TooLarge {
        /// Host of the URL.
        host: String,
        /// The bound.
        limit: usize,
    },
    /// The document is no key set, or one without a usable key.
    #[error("what {host} sent is of no use: {problem}")]
    KeySet {
        /// Host of the URL.
        host: String,
        /// What is wrong.
        problem: String,
    },
    /// No discovery document.
    #[error("what {0} sent is no OpenID discovery document with issuer and jwks_uri")]
    Discovery(String),
    /// A discovery document of somebody else (RFC 8414, section 3.3).
    #[error(
        "the discovery document is that of the issuer {found:?}, not of {expected:?}: write the issuer exactly so, or give jwksUri"
    )]
    Issuer {
        /// The issuer of the policy.
        expected: String,
        /// The issuer of the document.
        found: String,
    },
    /// Our own file with certificates.
    #[error("the file with trusted certificates (jwks.caFile) can not be used: {0}")]
    Trust(String),
    /// More sources than one operator fetches.
    #[error("more than {0} sources of keys are named by RequestAuthentications")]
    TooMany(usize),
    /// More sources than one namespace may name.
    #[error("more than {0} sources of keys are named by the RequestAuthentications of the namespace")]
    TooManyOfOne(usize),
}

impl Fault {
    /// The stable word.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Fault::Refused { .. } => Reason::KeySourceRefused,
            _ => Reason::KeysUnavailable,
        }
    }

    /// Of a URL.
    pub(super) fn url(url: &str, problem: &'static str) -> Self {
        Fault::Url { url: quoted(url), problem }
    }
}

/// At most so much of a foreign text, without what could break a line.
pub(super) fn quoted(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(QUOTED).collect()
}
