//! The file of `cinch-proxy run --config`: everything that a control plane would say, for benches, tests and
//! machines outside of a cluster. In goes YAML, out come checked settings, or the name of what is wrong.

use crate::tuning::{Tuning, record_layer};
use crate::yaml;
use cinch_identity::{RecordLayer, SpiffeId, TrustDomain};
use cinch_policy::{Mode, PathNormalization};
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// A file that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It can't be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// It holds an unknown field or a wrong value.
    #[error("{path}: {message}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its place.
        message: String,
    },
}

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// Whom policies may select.
    pub workload: Workload,
    /// Own certificate.
    pub identity: IdentityFiles,
    /// Where to listen; absent: as in a pod, on IPv4 and, where there is one, IPv6.
    #[serde(default)]
    pub listen: Listen,
    /// Declared protocols of the app's ports; others are undeclared.
    #[serde(default)]
    pub ports: BTreeMap<u16, Protocol>,
    /// What all of the mesh agrees on.
    pub mesh: Mesh,
    /// Files with Istio objects, as kubectl would take them; relative to this file.
    #[serde(default)]
    pub policies: Vec<PathBuf>,
    /// Who is meshed; everybody else is dialled as he is.
    #[serde(default)]
    pub peers: Vec<Peer>,
    /// Who seals the records of tunnels: `in-place` (the default) or `rustls`; the same as `settings.records`, and
    /// before it.
    #[serde(default, deserialize_with = "some_record_layer")]
    pub records: Option<RecordLayer>,
    /// What an installation may say about the proxies' work, as in pods.
    #[serde(default)]
    pub settings: Tuning,
}

/// Whom policies may select.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Workload {
    /// Namespace of the workload.
    pub namespace: String,
    /// Its service account: the certificate must say the same.
    pub service_account: String,
    /// Its labels.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// Files of the own certificate, PEM; read again when they change. Relative to the configuration file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct IdentityFiles {
    /// Leaf first, without the root.
    pub certificate_chain: PathBuf,
    /// P-256, PKCS#8 or SEC 1.
    pub private_key: PathBuf,
    /// The roots of all peers.
    pub trust_bundle: PathBuf,
}

/// Where to listen.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Listen {
    /// Where the app's connections are redirected to.
    #[serde(default = "outbound")]
    pub outbound: SocketAddr,
    /// Where connections to the app are redirected to.
    #[serde(default = "inbound")]
    pub inbound: SocketAddr,
    /// The file does not say: on the addresses of both families, as in a pod.
    #[serde(skip)]
    pub both_families: bool,
}

fn outbound() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 15001))
}

fn inbound() -> SocketAddr {
    SocketAddr::from(([0, 0, 0, 0], 15006))
}

impl Default for Listen {
    fn default() -> Self {
        Self { outbound: outbound(), inbound: inbound(), both_families: true }
    }
}

/// What a port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// gRPC.
    Grpc,
    /// Anything.
    Tcp,
}

/// What all of the mesh agrees on.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mesh {
    /// Our trust domain.
    #[serde(deserialize_with = "trust_domain")]
    pub trust_domain: TrustDomain,
    /// The namespace whose policies apply everywhere.
    #[serde(default = "root_namespace")]
    pub root_namespace: String,
    /// How paths are read by HTTP rules.
    #[serde(default)]
    pub path_normalization: PathNormalization,
}

fn root_namespace() -> String {
    "cinch-system".to_owned()
}

/// Who is behind an address.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Peer {
    /// An address or a CIDR; the longest that contains a destination holds.
    #[serde(deserialize_with = "network")]
    pub address: IpNet,
    /// Who the peer must prove to be; needed when meshed.
    #[serde(default, deserialize_with = "spiffe_id")]
    pub identity: Option<SpiffeId>,
    /// It has a proxy.
    pub meshed: bool,
    /// What its ports accept.
    #[serde(default = "strict")]
    pub mode: Mode,
}

fn strict() -> Mode {
    Mode::Strict
}

fn some_record_layer<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<RecordLayer>, D::Error> {
    record_layer(deserializer).map(Some)
}

fn trust_domain<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TrustDomain, D::Error> {
    TrustDomain::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

fn spiffe_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SpiffeId>, D::Error> {
    let id = Option::<String>::deserialize(deserializer)?;
    id.map(|id| SpiffeId::parse(&id).map_err(de::Error::custom)).transpose()
}

fn network<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpNet, D::Error> {
    let text = String::deserialize(deserializer)?;
    let host = text.parse::<IpAddr>().map(IpNet::from);
    let wrong = |_| de::Error::custom(format!("{text:?} is neither an address nor a CIDR"));
    host.or_else(|_| text.parse::<IpNet>()).map(|network| network.trunc()).map_err(wrong)
}

impl Config {
    /// Reads and checks a file; relative paths in it become relative to its directory.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let content = |message| ConfigError::Content { path: path.to_owned(), message };
        let mut config = Self::parse(&text).map_err(content)?;
        let directory = path.parent().unwrap_or(Path::new(""));
        let files = &mut config.identity;
        let files = [&mut files.certificate_chain, &mut files.private_key, &mut files.trust_bundle];
        for file in files.into_iter().chain(&mut config.policies) {
            *file = directory.join(&*file);
        }
        Ok(config)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut config: Self = yaml::one(text).map_err(|error| error.to_string())?;
        config.settings.records = config.records.unwrap_or(config.settings.records);
        config.settings.check().map_err(|error| format!("settings: {error}"))?;
        if let Some(nameless) = config.peers.iter().find(|peer| peer.meshed && peer.identity.is_none()) {
            return Err(format!("peers: {} is meshed and has no identity", nameless.address));
        }
        Ok(config)
    }

    /// The files whose change asks for a reload.
    #[must_use]
    pub fn watched_files(&self) -> Vec<&Path> {
        let files = &self.identity;
        let identity = [&files.certificate_chain, &files.private_key, &files.trust_bundle];
        identity.into_iter().chain(&self.policies).map(PathBuf::as_path).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPLETE: &str = r#"
workload: {namespace: default, serviceAccount: server, labels: {app: server}}
identity: {certificateChain: server.pem, privateKey: server.key, trustBundle: ca.pem}
listen: {outbound: "127.0.0.1:15001", inbound: "0.0.0.0:15006"}
ports: {8080: http, 8082: tcp}
mesh: {trustDomain: cluster.local, pathNormalization: SAFE}
policies: [policies.yaml]
records: rustls
settings: {limits: {handshakes: 8, drainTimeout: 1s}}
peers:
- {address: 10.77.0.2, identity: "spiffe://cluster.local/ns/default/sa/server", meshed: true}
- {address: 10.78.1.2/16, meshed: false}
"#;

    #[test]
    fn the_documented_file_is_read() {
        let config = Config::parse(COMPLETE).unwrap();
        assert_eq!(config.ports.get(&8080), Some(&Protocol::Http));
        assert_eq!(config.peers[0].address.to_string(), "10.77.0.2/32");
        assert_eq!(config.settings.records, RecordLayer::Rustls);
        assert_eq!(config.settings.limits.handshakes, 8);
        assert_eq!(config.peers[1].address.to_string(), "10.78.0.0/16");
        assert_eq!(
            (config.mesh.trust_domain.as_str(), config.peers[0].mode),
            ("cluster.local", Mode::Strict)
        );
    }

    #[test]
    fn empty_lists_and_defaults_are_enough() {
        let config = Config::parse(
            "workload: {namespace: a, serviceAccount: b}\nidentity: {certificateChain: a, privateKey: b, trustBundle: c}\nports: {}\nmesh: {trustDomain: t}\npolicies: []\npeers: []",
        )
        .unwrap();
        assert_eq!((config.listen.inbound.port(), config.listen.both_families), (15006, true));
        assert_eq!(config.settings, Tuning::default());
    }

    #[test]
    fn unknown_fields_and_wrong_values_are_refused_by_name() {
        for (from, to, named) in [
            ("labels:", "lables:", "lables"),
            ("ports:", "portz:", "portz"),
            ("8082: tcp", "8082: udp", "udp"),
            ("8082: tcp", "70000: tcp", "70000"),
            ("records: rustls", "records: kernel", "kernel"),
            ("handshakes: 8", "handshake: 8", "handshake"),
            ("handshakes: 8", "handshakes: 0", "limits.handshakes"),
            ("drainTimeout: 1s", "drainTimeout: 1", "drainTimeout"),
            ("pathNormalization: SAFE", "pathNormalization: MAYBE", "MAYBE"),
            ("10.78.1.2/16", "10.78.1.2/40", "10.78.1.2/40"),
            ("spiffe://cluster.local/ns/default/sa/server", "server", "server"),
            (", meshed: true", ", mesh: true", "mesh"),
            ("meshed: false", "meshed: true", "10.78.0.0/16"),
        ] {
            assert!(COMPLETE.contains(from), "{from}");
            let error = Config::parse(&COMPLETE.replace(from, to)).unwrap_err();
            assert!(error.contains(named), "{from} -> {to}: {error}");
        }
    }
}
