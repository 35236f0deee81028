//! Which endpoints of a Service take the connections of a pod. In go all endpoints of one port of the Service and
//! where the pod runs; out they come, marked by whether new connections may go there, as kube-proxy on the pod's node
//! would choose. Those that may not are kept: that a Service has meshed endpoints elsewhere is worth knowing.

use super::convert_services::SliceEndpoint;
use cinch_control::v1;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

/// Where the pod runs that asks; both are empty where that is not known.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Place<'a> {
    pub(super) node: &'a str,
    pub(super) zone: &'a str,
}

/// The rule by which a Service is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Traffic {
    /// By any endpoint; hints say which are near.
    Cluster,
    /// By those of the client's own node (`internalTrafficPolicy: Local`).
    Local,
}

/// What hints say of all ready endpoints together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Near {
    /// Those for the client's node.
    Node,
    /// Those for the client's zone.
    Zone,
    /// All: hints that are not there for every endpoint, or not for this client, are no hints.
    All,
}

/// An endpoint before it is known which are needed.
struct Candidate<'a> {
    endpoint: v1::Endpoint,
    draining: bool,
    slice: &'a SliceEndpoint,
}

/// The endpoints of one port of a Service, by address.
#[derive(Default)]
pub(super) struct Candidates<'a>(BTreeMap<SocketAddr, Candidate<'a>>);

impl<'a> Candidates<'a> {
    /// Adds an endpoint of a slice. While slices are rearranged, an address may stand in two of them.
    pub(super) fn add(&mut self, address: SocketAddr, slice: &'a SliceEndpoint, endpoint: v1::Endpoint) {
        let found = Candidate { endpoint, draining: slice.draining, slice };
        self.0
            .entry(address)
            .and_modify(|known| {
                known.endpoint.ready |= found.endpoint.ready;
                known.draining |= found.draining;
            })
            .or_insert(found);
    }

    /// As kube-proxy does: the ready ones of those that the rule and the hints let serve; when there are none, the
    /// terminating ones that still serve (KEP-1669).
    pub(super) fn chosen(self, traffic: Traffic, from: Place<'_>) -> Vec<v1::Endpoint> {
        let near = if traffic == Traffic::Cluster { self.near(from) } else { Near::All };
        let permits = |candidate: &Candidate<'_>| match traffic {
            Traffic::Local => *candidate.slice.node == *from.node && !from.node.is_empty(),
            Traffic::Cluster => true,
        };
        let serves = |candidate: &Candidate<'_>| {
            let hinted = match near {
                Near::Node => names(&candidate.slice.for_nodes, from.node),
                Near::Zone => names(&candidate.slice.for_zones, from.zone),
                Near::All => true,
            };
            candidate.endpoint.ready && hinted && permits(candidate)
        };
        let any = self.0.values().any(&serves);
        let marked = |candidate: Candidate<'_>| {
            let ready = if any { serves(&candidate) } else { candidate.draining && permits(&candidate) };
            v1::Endpoint { ready, ..candidate.endpoint }
        };
        self.0.into_values().map(marked).collect()
    }

    /// Hints count only when every ready endpoint has some and one is for this client.
    fn near(&self, from: Place<'_>) -> Near {
        let ready = || self.0.values().filter(|candidate| candidate.endpoint.ready);
        let by = |of: fn(&SliceEndpoint) -> &[Arc<str>], word: &str| {
            ready().all(|candidate| !of(candidate.slice).is_empty())
                && ready().any(|candidate| names(of(candidate.slice), word))
        };
        if by(|slice| &slice.for_nodes, from.node) {
            Near::Node
        } else if by(|slice| &slice.for_zones, from.zone) {
            Near::Zone
        } else {
            Near::All
        }
    }
}

fn names(hints: &[Arc<str>], word: &str) -> bool {
    !word.is_empty() && hints.iter().any(|hint| **hint == *word)
}
