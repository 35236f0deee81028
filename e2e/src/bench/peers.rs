//! The peers: which proxies stand between load and server, and in which of the server's ports they look into requests.

use super::workloads::{BYTES, HTTP, OPAQUE, Workload};
use anyhow::{Result, bail};

/// What Cinch is given to do besides one rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// One rule, of which the request must match principal, method and path.
    Plain,
    /// So many rules, of which the last one matches.
    Rules(usize),
    /// Each request has a token, which the rule asks for.
    Tokens,
    /// Each request is logged.
    Logged,
}

/// Who the proxies are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proxies {
    /// None.
    None,
    /// Bare ones of our own; whether TLS connections are used again.
    Limit { reuse: bool },
    /// Ours.
    Cinch(Variant),
    /// Envoy, configured as a sidecar of Istio is.
    Envoy,
}

/// One that has its turn.
#[derive(Debug)]
pub struct Peer {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it is.
    pub what: &'static str,
    /// Who stands between.
    pub proxies: Proxies,
    /// Where requests go: proxies look into those of the HTTP port.
    pub http_port: u16,
    /// The only workload that it takes part in, where what it shows is one cost.
    only: Option<&'static str>,
    /// To whom its ratios are, where that is not the workload's base.
    pub base: Option<&'static str>,
}

const fn peer(name: &'static str, what: &'static str, proxies: Proxies, http_port: u16) -> Peer {
    Peer { name, what, proxies, http_port, only: None, base: None }
}

/// What one thing more costs Cinch, for each request.
const fn variant(name: &'static str, what: &'static str, variant: Variant) -> Peer {
    Peer { only: Some("http1"), base: Some("cinch-l7"), ..peer(name, what, Proxies::Cinch(variant), HTTP) }
}

/// Every peer, in the order of their turns.
pub const PEERS: &[Peer] = &[
    peer("direct", "no proxy", Proxies::None, HTTP),
    peer("limit", "bare proxies: copy and TLS", Proxies::Limit { reuse: false }, HTTP),
    peer("limit-reuse", "the same, TLS connections are used again", Proxies::Limit { reuse: true }, HTTP),
    peer("cinch-l4", "Cinch, STRICT, the port is not declared", Proxies::Cinch(Variant::Plain), OPAQUE),
    peer("cinch-l7", "Cinch, STRICT, HTTP under one rule", Proxies::Cinch(Variant::Plain), HTTP),
    variant("cinch-rules-50", "the same with 50 rules", Variant::Rules(50)),
    variant("cinch-rules-500", "the same with 500 rules", Variant::Rules(500)),
    variant("cinch-tokens", "the same, each request with a token", Variant::Tokens),
    variant("cinch-log", "the same, each request logged", Variant::Logged),
    peer("envoy-l4", "Envoy as Istio lays it out, TCP", Proxies::Envoy, OPAQUE),
    peer("envoy-l7", "Envoy as Istio lays it out, HTTP", Proxies::Envoy, HTTP),
];

impl Peer {
    /// Whether nothing stands between.
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.proxies == Proxies::None
    }

    /// Whether it needs Envoy.
    #[must_use]
    pub fn is_envoy(&self) -> bool {
        self.proxies == Proxies::Envoy
    }

    /// The protocol and the port by which is seen that it serves. Not the port of requests where its first connection
    /// may be what is measured.
    #[must_use]
    pub fn probe(&self) -> (&'static str, u16) {
        if self.only.is_some() { ("--protocol=http1", self.http_port) } else { ("--protocol=echo", BYTES) }
    }

    /// Whether a workload is measured with it.
    #[must_use]
    pub fn takes_part(&self, workload: &Workload) -> bool {
        // Without proxies there is no memory of theirs to read.
        let measurable = !(self.is_direct() && workload.name == "memory");
        measurable && self.only.is_none_or(|only| only == workload.name)
    }
}

/// Those that are named, or all.
///
/// # Errors
/// When there is none of a name.
pub fn chosen(names: &[String]) -> Result<Vec<&'static Peer>> {
    for name in names {
        if !PEERS.iter().any(|peer| peer.name == name) {
            let all: Vec<&str> = PEERS.iter().map(|peer| peer.name).collect();
            bail!("there is no peer {name}; there are {}", all.join(", "));
        }
    }
    Ok(PEERS.iter().filter(|peer| names.is_empty() || names.iter().any(|name| name == peer.name)).collect())
}

#[cfg(test)]
mod tests {
    use super::super::workloads::WORKLOADS;
    use super::*;

    #[test]
    fn every_ratio_is_to_a_peer_that_has_its_turn_before() {
        for (place, peer) in PEERS.iter().enumerate() {
            for workload in WORKLOADS.iter().filter(|workload| peer.takes_part(workload)) {
                let base = peer.base.unwrap_or(workload.base);
                let found = PEERS.iter().position(|candidate| candidate.name == base).unwrap();
                assert!(PEERS[found].takes_part(workload), "{base} has no turn in {}", workload.name);
                assert!(found <= place || peer.base.is_none(), "{} comes before {base}", peer.name);
            }
        }
    }

    #[test]
    fn unknown_names_are_refused_and_none_means_all() {
        assert!(chosen(&["nginx".to_owned()]).is_err());
        assert_eq!(chosen(&["limit".to_owned(), "direct".to_owned()]).unwrap().len(), 2);
        assert_eq!(chosen(&[]).unwrap().len(), PEERS.len());
    }
}
