//! How connections and requests fail, in Envoy's words, which Istio's users know: a pure table.

use crate::access_log::{Decision, Reporter};
use crate::copy::{End, Which};
use cinch_reason::Reason;

/// Nothing failed.
pub const NONE: &str = "-";
/// The client's connection ended before its time.
pub const DOWNSTREAM: &str = "DC";
/// The server's did.
pub const UPSTREAM: &str = "UC";
/// The server could not be connected.
pub const UNCONNECTED: &str = "UF";
/// The client reset its stream.
pub const DOWNSTREAM_RESET: &str = "DR";
/// The server reset its stream.
pub const UPSTREAM_RESET: &str = "UR";
/// We ended it.
pub const LOCAL: &str = "LR";
/// The client broke the protocol.
pub const PROTOCOL: &str = "DPE";
/// The server did.
pub const UPSTREAM_PROTOCOL: &str = "UPE";
/// A limit was reached.
pub const OVERLOADED: &str = "OM";
/// Nobody knows the destination.
pub const UNKNOWN: &str = "NC";

/// How a connection ended, as `reporter` sees it: the network is the first side of each copy, the app the second.
#[must_use]
pub fn of_end(end: Option<End>, reporter: Reporter) -> &'static str {
    let client = match reporter {
        Reporter::Destination => Which::First,
        Reporter::Source => Which::Second,
    };
    match end {
        Some(End::Finished) => NONE,
        Some(End::Failed(which, _)) if which == client => DOWNSTREAM,
        Some(End::Failed(..)) => UPSTREAM,
        // It was connected, and is not trusted any more.
        Some(End::Cut(Reason::CertificateUntrusted)) => LOCAL,
        // By policy, which is no failure; or the proxy ended while it was open.
        Some(End::Cut(reason)) => of_refusal(reason),
        None => LOCAL,
    }
}

/// Why a connection or request was refused.
#[must_use]
pub fn of_refusal(reason: Reason) -> &'static str {
    match reason {
        Reason::NoListener
        | Reason::PeerIdentityMismatch
        | Reason::CertificateExpired
        | Reason::CertificateUntrusted
        | Reason::CertificateIdentity => UNCONNECTED,
        Reason::TunnelBroken => UPSTREAM,
        Reason::Overloaded => OVERLOADED,
        Reason::ControlUnreachable | Reason::DestinationUnknown => UNKNOWN,
        Reason::BadRequest | Reason::HttpNeeded => PROTOCOL,
        Reason::BadAnswer => UPSTREAM_PROTOCOL,
        Reason::RedirectMissing => LOCAL,
        _ => NONE,
    }
}

/// Whether a refusal for `reason` is a denial, which says something about the peer, or a failure, which says something
/// about the state of the system.
#[must_use]
pub fn decision(reason: Reason) -> Decision {
    match reason {
        Reason::NoListener
        | Reason::TunnelBroken
        | Reason::Overloaded
        | Reason::ControlUnreachable
        | Reason::DestinationUnknown
        | Reason::BadAnswer
        | Reason::RedirectMissing => Decision::Failed,
        _ => Decision::Denied,
    }
}
