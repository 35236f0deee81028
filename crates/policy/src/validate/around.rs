//! What stands around a policy when it is judged: pods, their ports, and the policies that select them already.
//! Admission knows these from its caches; a file alone has none of them.

use crate::mesh::{MeshConfig, Workload};
use crate::object::AuthorizationPolicy;
use std::borrow::Borrow;
use std::collections::BTreeMap;

/// The pods that a policy could select, as far as they are known.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// All pods of the object's namespace; for the root namespace, of the mesh.
    pub pods: Vec<PodFacts>,
    /// The object's namespace carries the STRICT lock.
    pub locked: bool,
}

/// What counts of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodFacts {
    /// Its namespace.
    pub namespace: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// The ports that its containers declare.
    pub ports: Vec<PodPort>,
    /// An enforced ALLOW policy selects it already.
    pub has_allow: bool,
}

/// A port that a pod declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodPort {
    /// Its number.
    pub number: u16,
    /// It is declared to carry something else than HTTP.
    pub opaque: bool,
}

impl Surroundings {
    /// Looks up for each pod whether one of `policies` denies there already what none allows. The policies are
    /// those of the pods' namespaces and of the root namespace, as they are stored: of the judged object, if it
    /// is there, the former version.
    #[must_use]
    pub fn among<P: Borrow<AuthorizationPolicy>>(
        mut pods: Vec<PodFacts>,
        policies: &[P],
        mesh: &MeshConfig,
    ) -> Self {
        let mut closing: BTreeMap<&str, Vec<&AuthorizationPolicy>> = BTreeMap::new();
        for policy in policies.iter().map(Borrow::borrow).filter(|policy| policy.closes_by_presence()) {
            closing.entry(&policy.name().namespace).or_default().push(policy);
        }
        for pod in &mut pods {
            let workload = pod.workload();
            let reaching = [pod.namespace.as_str(), mesh.root_namespace.as_str()];
            let mut reaching = reaching.iter().filter_map(|namespace| closing.get(namespace)).flatten();
            pod.has_allow = reaching.any(|policy| policy.applies_to(mesh, &workload));
        }
        Surroundings { pods, locked: false }
    }
}

impl PodFacts {
    /// The pod as policies select it. No selector asks for the account.
    pub(super) fn workload(&self) -> Workload {
        Workload {
            namespace: self.namespace.clone(),
            labels: self.labels.clone(),
            service_account: String::new(),
        }
    }
}

/// Words that say that a port carries HTTP which a proxy can read.
const HTTP: &[&str] = &["http", "http2", "grpc", "grpc-web", "kubernetes.io/h2c", "kubernetes.io/ws"];
/// Words that say that it carries something else, or HTTP within TLS of the app's own.
const OPAQUE: &[&str] = &[
    "tcp",
    "tls",
    "https",
    "kubernetes.io/wss",
    "mongo",
    "mysql",
    "postgres",
    "postgresql",
    "redis",
    "kafka",
    "amqp",
];

impl PodPort {
    /// A port with what is declared of it: `app_protocol` of a Service's port, else the name of that port or of the
    /// container's (`tcp`, `tcp-db`). A word that says nothing leaves it open.
    #[must_use]
    pub fn declared(number: u16, app_protocol: Option<&str>, names: &[&str]) -> Self {
        let said = app_protocol.and_then(spoken).or_else(|| names.iter().find_map(|name| prefix(name)));
        PodPort { number, opaque: said == Some(false) }
    }
}

/// Whether the protocol is HTTP; `None` for a word that says nothing.
fn spoken(word: &str) -> Option<bool> {
    let is = |list: &[&str]| list.iter().any(|known| known.eq_ignore_ascii_case(word));
    match (is(HTTP), is(OPAQUE)) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    }
}

/// The protocol in a port's name: the whole of it, or what stands before a dash.
fn prefix(name: &str) -> Option<bool> {
    spoken(name).or_else(|| spoken(name.split('-').next().unwrap_or(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_says_before_the_name_and_unknown_words_say_nothing() {
        let cases: &[(Option<&str>, &[&str], bool)] = &[
            (None, &[], false),
            (None, &["tcp"], true),
            (None, &["tcp-db"], true),
            (None, &["tcpdb"], false),
            (None, &["http-admin"], false),
            (None, &["grpc-web"], false),
            (None, &["https"], true),
            (None, &["db", "mysql"], true),
            (None, &["http", "tcp"], false),
            (Some("http"), &["tcp"], false),
            (Some("TCP"), &["http"], true),
            (Some("kubernetes.io/h2c"), &["tcp"], false),
            (Some("example.com/own"), &["redis"], true),
        ];
        for (app_protocol, names, opaque) in cases {
            let port = PodPort::declared(80, *app_protocol, names);
            assert_eq!(port, PodPort { number: 80, opaque: *opaque }, "{app_protocol:?} {names:?}");
        }
    }
}
