//! Without a control plane: peers, policy and credentials from the configuration, read again when files change.

use crate::config::{Config, Peer, Protocol};
use crate::context::{Destination, Discovery, Endpoint, InboundPolicy};
use crate::credentials::CredentialStore;
use crate::http_filter::Tokens;
use crate::yaml;
use anyhow::{Context, Result, bail};
use cinch_identity::{KeyPair, SpiffeId, Svid, TrustBundle};
use cinch_policy::{MeshConfig, PolicyObject, Workload, WorkloadPolicies};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::future::{Future, ready};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

const POLL: Duration = Duration::from_secs(1);

/// The peers of the configuration.
#[derive(Debug)]
pub struct StaticPeers(Vec<Peer>);

impl StaticPeers {
    /// Sorts the longest prefixes first.
    #[must_use]
    pub fn new(mut peers: Vec<Peer>) -> Self {
        peers.sort_by_key(|peer| std::cmp::Reverse(peer.address.prefix_len()));
        Self(peers)
    }

    fn find(&self, to: SocketAddr) -> Destination {
        let ip = to.ip().to_canonical();
        let Some(peer) = self.0.iter().find(|peer| peer.address.contains(&ip)) else {
            return Destination::PassThrough;
        };
        let endpoint = Endpoint {
            address: SocketAddr::new(ip, to.port()),
            meshed: peer.meshed,
            identity: peer.identity.clone(),
            mode: peer.mode,
            ready: true,
        };
        Destination::Endpoints(Arc::new([endpoint]))
    }
}

impl Discovery for StaticPeers {
    fn resolve(&self, to: SocketAddr) -> Pin<Box<dyn Future<Output = Destination> + Send + '_>> {
        Box::pin(ready(self.find(to)))
    }

    fn forget(&self, _to: SocketAddr, _endpoint: &Endpoint) {
        // The configuration is all there is to ask.
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}

/// Reads certificate, key and bundle, and checks that they belong together and to the workload.
///
/// # Errors
/// What is wrong, with the file's name.
pub fn load_identity(config: &Config) -> Result<(Svid, TrustBundle)> {
    let files = &config.identity;
    let chain_file = read(&files.certificate_chain)?;
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain_file.as_bytes())
        .collect::<Result<_, _>>()
        .with_context(|| files.certificate_chain.display().to_string())?;
    let key = KeyPair::from_pem(&read(&files.private_key)?)
        .with_context(|| files.private_key.display().to_string())?;
    let svid = Svid::new(chain, key).with_context(|| files.certificate_chain.display().to_string())?;
    let trust_domain = config.mesh.trust_domain.clone();
    let workload = &config.workload;
    let own = SpiffeId::workload(&trust_domain, &workload.namespace, &workload.service_account)?;
    if *svid.id() != own {
        bail!("{}: it is for {}, not for {own}", files.certificate_chain.display(), svid.id());
    }
    let bundle = TrustBundle::from_pem(trust_domain, &read(&files.trust_bundle)?)
        .with_context(|| files.trust_bundle.display().to_string())?;
    Ok((svid, bundle))
}

/// Reads the policy files as one version. A policy that can't be used closes what it selects; what is no policy
/// at all is an error, because nobody can tell what it would select.
///
/// # Errors
/// What is wrong, with the file's name.
pub fn load_policy(config: &Config, version: u64) -> Result<InboundPolicy> {
    let mut objects = Vec::new();
    for path in &config.policies {
        let text = read(path)?;
        let documents: Vec<serde_json::Value> =
            yaml::all(&text).with_context(|| path.display().to_string())?;
        for document in documents.iter().filter(|document| !document.is_null()) {
            objects.push(PolicyObject::parse(document).with_context(|| path.display().to_string())?);
        }
    }
    let mesh = MeshConfig {
        trust_domain: config.mesh.trust_domain.as_str().to_owned(),
        root_namespace: config.mesh.root_namespace.clone(),
        ..MeshConfig::default()
    };
    let workload = Workload {
        namespace: config.workload.namespace.clone(),
        labels: config.workload.labels.clone(),
        service_account: config.workload.service_account.clone(),
    };
    for object in &objects {
        if let PolicyObject::PeerAuthentication(object) = object
            && let Some(fault) = object.fault()
        {
            tracing::error!(policy = %object.name(), %fault, "the policy can not be used: what it selects is STRICT");
        }
    }
    let mut compiled = WorkloadPolicies::compile(&mesh, &objects, &workload);
    let other = config.ports.iter().filter(|(_, speaks)| **speaks == Protocol::Tcp);
    compiled.declare_other(other.map(|(port, _)| *port));
    for (policy, fault) in compiled.faults() {
        tracing::error!(policy, %fault, "the policy can not be used: what it selects is closed");
    }
    let modes = compiled.mtls().clone();
    let policies = (!compiled.is_empty()).then(|| Arc::new(compiled));
    // Without a control plane nobody fetches key sets: rules hold their keys, or accept no token.
    let tokens = Tokens::of_workload(&mesh, &objects, &workload, []).map(Arc::new);
    let (path_normalization, declared) = (config.mesh.path_normalization, config.ports.clone());
    let rest = InboundPolicy::of_modes(version, modes);
    Ok(InboundPolicy { policies, tokens, path_normalization, declared, ..rest })
}

fn stamps(config: &Config) -> Vec<Option<(SystemTime, u64)>> {
    let stamp = |path: &Path| {
        let metadata = std::fs::metadata(path).ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    };
    config.watched_files().into_iter().map(stamp).collect()
}

/// Puts the files' content in force again whenever one of them changes; files that can't be used leave what is
/// in force as it is.
pub async fn reload(
    config: Config,
    credentials: Arc<CredentialStore>,
    policy: watch::Sender<Option<Arc<InboundPolicy>>>,
) {
    let mut seen = stamps(&config);
    let mut version = 1;
    loop {
        tokio::time::sleep(POLL).await;
        let now = stamps(&config);
        if now == seen {
            continue;
        }
        seen = now;
        version += 1;
        match load_policy(&config, version) {
            Ok(new) => drop(policy.send_replace(Some(Arc::new(new)))),
            Err(error) => tracing::error!(error = format!("{error:#}"), "the policies in force stay"),
        }
        let installed = load_identity(&config)
            .and_then(|(svid, bundle)| credentials.install(svid, bundle).map_err(anyhow::Error::from));
        match installed {
            Ok(()) => tracing::info!("identity and policies read again"),
            Err(error) => tracing::error!(error = format!("{error:#}"), "the certificate in force stays"),
        }
    }
}

/// The addresses of this network namespace, as the kernel's routing tables show them.
#[must_use]
pub fn own_addresses() -> Vec<IpAddr> {
    let v4 = std::fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    let v6 = std::fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let mut addresses: Vec<IpAddr> = local_v4(&v4).chain(local_v6(&v6)).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// `|-- 10.0.0.1` followed by `/32 host LOCAL`.
fn local_v4(fib_trie: &str) -> impl Iterator<Item = IpAddr> + '_ {
    let next = fib_trie.lines().skip(1);
    fib_trie
        .lines()
        .zip(next)
        .filter(|(_, kind)| kind.trim() == "/32 host LOCAL")
        .filter_map(|(leaf, _)| leaf.trim().strip_prefix("|-- ")?.parse().ok())
}

/// 32 digits first on each line.
fn local_v6(if_inet6: &str) -> impl Iterator<Item = IpAddr> + '_ {
    if_inet6.lines().filter_map(|line| {
        let digits = line.split_whitespace().next().filter(|digits| digits.len() == 32)?;
        u128::from_str_radix(digits, 16).ok().map(|bits| IpAddr::from(bits.to_be_bytes()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_are_read_from_the_kernels_tables() {
        let trie = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\nLocal:\n     |-- 10.9.0.2\n        /32 host LOCAL\n     |-- 10.9.0.255\n        /32 link BROADCAST\n     |-- 127.0.0.1\n        /32 host LOCAL\n";
        let v4: Vec<_> = local_v4(trie).collect();
        assert_eq!(v4, ["10.9.0.2".parse::<IpAddr>().unwrap(), "127.0.0.1".parse().unwrap()]);
        let v6: Vec<_> = local_v6("fd000009000000000000000000000002 02 40 00 80     eth0\nshort\n").collect();
        assert_eq!(v6, ["fd00:9::2".parse::<IpAddr>().unwrap()]);
    }

    const POLICIES: &str = r#"
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: default}
spec: {mtls: {mode: STRICT}}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: one, namespace: default}
spec:
  selector: {matchLabels: {app: server}}
  action: ALLOW
  rules:
  - from: [{source: {principals: ["cluster.local/ns/default/sa/client"]}}]
    to: [{operation: {ports: ["8080"], methods: ["GET", "POST"], paths: ["/*"]}}]
  - from: [{source: {principals: ["cluster.local/ns/default/sa/client"]}}]
    to: [{operation: {ports: ["8081", "8082"]}}]
"#;

    /// The policy of `default/server` from one file.
    fn policy_of(yaml: &str) -> Result<InboundPolicy> {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("policies.yaml"), yaml).unwrap();
        let config = "workload: {namespace: default, serviceAccount: server, labels: {app: server}}\n\
            identity: {certificateChain: a, privateKey: b, trustBundle: c}\n\
            mesh: {trustDomain: cluster.local}\npolicies: [policies.yaml]\n";
        std::fs::write(directory.path().join("config.yaml"), config).unwrap();
        load_policy(&Config::load(&directory.path().join("config.yaml")).unwrap(), 1)
    }

    fn allows(policy: &InboundPolicy, account: &str, port: u16) -> bool {
        let peer = format!("spiffe://cluster.local/ns/default/sa/{account}");
        let destination = SocketAddr::from(([10, 0, 0, 2], port));
        let connection = cinch_policy::Connection::new(Some(&peer), IpAddr::from([10, 0, 0, 1]), destination);
        let decide =
            |policies: &WorkloadPolicies| policies.tcp(&connection, &cinch_policy::no_providers).is_allowed();
        policy.policies.as_deref().is_none_or(decide)
    }

    #[test]
    fn a_file_of_several_objects_decides_at_l4() {
        let policy = policy_of(POLICIES).unwrap();
        assert_eq!(policy.modes.mode(8081), cinch_policy::Mode::Strict);
        assert!(allows(&policy, "client", 8082));
        assert!(!allows(&policy, "other", 8082));
        assert!(!allows(&policy, "client", 8080), "a rule with methods never allows what is no HTTP");
        let none = policy_of("").unwrap();
        assert_eq!((none.modes.mode(80), none.policies.is_none()), (cinch_policy::Mode::Permissive, true));
    }

    #[test]
    fn ports_are_what_the_file_declares() {
        let directory = tempfile::tempdir().unwrap();
        let config = "workload: {namespace: a, serviceAccount: b}\nmesh: {trustDomain: t}\n\
            identity: {certificateChain: a, privateKey: b, trustBundle: c}\n\
            ports: {80: http, 81: http2, 82: grpc, 83: tcp}\n";
        std::fs::write(directory.path().join("config.yaml"), config).unwrap();
        let policy = load_policy(&Config::load(&directory.path().join("config.yaml")).unwrap(), 1).unwrap();
        let speaking: Vec<u16> = (79..90).filter(|port| policy.speaks_http(*port)).collect();
        assert_eq!(speaking, [80, 81, 82]);
    }

    #[test]
    fn a_policy_that_cannot_be_used_closes_and_what_is_none_is_refused() {
        let closed = policy_of(&POLICIES.replace("ports: [\"8081\", \"8082\"]", "portz: []")).unwrap();
        assert!(!allows(&closed, "client", 8082));
        let strict = policy_of(&POLICIES.replace("mode: STRICT", "mode: LOOSE")).unwrap();
        assert_eq!(strict.modes.mode(80), cinch_policy::Mode::Strict);
        let foreign = policy_of("apiVersion: v1\nkind: Secret\nmetadata: {name: a}\n").err().unwrap();
        assert!(format!("{foreign:#}").contains("policies.yaml"), "{foreign:#}");
    }

    #[test]
    fn the_longest_prefix_holds() {
        let peer = |address: &str, meshed| Peer {
            address: address.parse().unwrap(),
            identity: Some(SpiffeId::parse("spiffe://t/ns/a/sa/b").unwrap()),
            meshed,
            mode: cinch_policy::Mode::Strict,
        };
        let peers = StaticPeers::new(vec![peer("10.0.0.0/8", true), peer("10.1.0.0/16", false)]);
        let meshed = |to: &str| match peers.find(to.parse().unwrap()) {
            Destination::Endpoints(endpoints) => Some(endpoints[0].meshed),
            _ => None,
        };
        assert_eq!(
            (meshed("10.1.2.3:1"), meshed("10.2.2.3:1"), meshed("11.0.0.1:1")),
            (Some(false), Some(true), None)
        );
    }
}
