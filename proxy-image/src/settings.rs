//! What a proxy in a pod is told by its environment. In go variables by name, out come typed settings or the
//! name of the variable that is missing or wrong.

use crate::probes::{ProbeError, ProbeTable};
use crate::tuning::{Tuning, TuningError};
use cinch_identity::{IdentityError, SpiffeId, TrustDomain};
use cinch_injection::{
    AGENT_DIRECTORY, AGENT_SOCKET, REDIRECT_BY_AGENT, REDIRECT_VARIABLE, SETTINGS_VARIABLE,
};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Where the projected token of our audience is mounted.
const TOKEN_FILE: &str = "/var/run/cinch/token/token";
/// Where the trust ConfigMap is mounted.
const TRUST_DIRECTORY: &str = "/var/run/cinch/trust";

/// A variable that is missing or can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// Not set, or empty.
    #[error("the environment variable {0} is not set")]
    Missing(&'static str),
    /// A list of addresses that holds something else.
    #[error("{variable}: {value:?} is no IP address")]
    Address {
        /// The variable.
        variable: &'static str,
        /// The item.
        value: String,
    },
    /// An identity or trust domain that is none.
    #[error("{variable}: {source}")]
    Identity {
        /// The variable.
        variable: &'static str,
        /// What is wrong with it.
        source: IdentityError,
    },
    /// A way to set the redirect that this program does not know.
    #[error("CINCH_REDIRECT: {0:?} is no way to set the redirect")]
    Redirect(String),
    /// The installation's settings.
    #[error("CINCH_PROXY_SETTINGS: {0}")]
    Tuning(#[from] TuningError),
    /// The declared probes.
    #[error("CINCH_PROBES: {0}")]
    Probes(#[from] ProbeError),
}

/// What a proxy in a pod knows from the start.
#[derive(Debug, Clone)]
pub struct PodSettings {
    /// The pod's unique name in time and space.
    pub pod_uid: String,
    /// The pod's name.
    pub pod_name: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's addresses; at least one.
    pub pod_ips: Vec<IpAddr>,
    /// The addresses of the node; may be empty.
    pub host_ips: Vec<IpAddr>,
    /// The identity that the certificate must have.
    pub identity: SpiffeId,
    /// Our trust domain.
    pub trust_domain: TrustDomain,
    /// Who the operator must prove to be.
    pub operator: SpiffeId,
    /// The probes that the kubelet was pointed at.
    pub probes: ProbeTable,
    /// The token that stands for the pod's identity at the first certificate.
    pub token_file: PathBuf,
    /// Holds `bundle.pem` and `operator`.
    pub trust_directory: PathBuf,
    /// Where the reason of a failed start goes.
    pub termination_log: PathBuf,
    /// The socket of the node agent, when the redirect is its to set.
    pub agent_socket: Option<PathBuf>,
    /// What the installation says about the proxies' work.
    pub tuning: Tuning,
}

impl PodSettings {
    /// Reads the settings; `variable` returns the value of an environment variable.
    ///
    /// # Errors
    /// [`SettingsError`] with the variable's name.
    pub fn read(variable: impl Fn(&str) -> Option<String>) -> Result<Self, SettingsError> {
        let need = |name: &'static str| {
            variable(name).filter(|value| !value.is_empty()).ok_or(SettingsError::Missing(name))
        };
        let identity = |name: &'static str| move |source| SettingsError::Identity { variable: name, source };
        let namespace = need("CINCH_POD_NAMESPACE")?;
        let trust_domain =
            TrustDomain::parse(&need("CINCH_TRUST_DOMAIN")?).map_err(identity("CINCH_TRUST_DOMAIN"))?;
        let account = need("CINCH_SERVICE_ACCOUNT")?;
        let pod_ips = addresses("CINCH_POD_IPS", &need("CINCH_POD_IPS")?)?;
        Ok(Self {
            pod_uid: need("CINCH_POD_UID")?,
            pod_name: need("CINCH_POD_NAME")?,
            pod_ips,
            host_ips: addresses("CINCH_HOST_IPS", &variable("CINCH_HOST_IPS").unwrap_or_default())?,
            identity: SpiffeId::workload(&trust_domain, &namespace, &account)
                .map_err(identity("CINCH_SERVICE_ACCOUNT"))?,
            operator: SpiffeId::parse(&need("CINCH_OPERATOR_ID")?).map_err(identity("CINCH_OPERATOR_ID"))?,
            probes: ProbeTable::parse(&variable("CINCH_PROBES").unwrap_or_default())?,
            token_file: TOKEN_FILE.into(),
            trust_directory: TRUST_DIRECTORY.into(),
            termination_log: crate::process::TERMINATION_LOG.into(),
            agent_socket: agent_socket(variable(REDIRECT_VARIABLE))?,
            tuning: Tuning::parse(&variable(SETTINGS_VARIABLE).unwrap_or_default())?,
            namespace,
            trust_domain,
        })
    }
}

/// Absent: `cinch-init` has set the redirect.
fn agent_socket(mode: Option<String>) -> Result<Option<PathBuf>, SettingsError> {
    match mode.as_deref() {
        None | Some("") => Ok(None),
        Some(REDIRECT_BY_AGENT) => Ok(Some(Path::new(AGENT_DIRECTORY).join(AGENT_SOCKET))),
        Some(other) => Err(SettingsError::Redirect(other.to_owned())),
    }
}

fn addresses(variable: &'static str, list: &str) -> Result<Vec<IpAddr>, SettingsError> {
    list.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
        .map(|item| item.parse().map_err(|_| SettingsError::Address { variable, value: item.to_owned() }))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn complete() -> HashMap<&'static str, &'static str> {
        HashMap::from([
            ("CINCH_POD_NAME", "web-1"),
            ("CINCH_POD_NAMESPACE", "shop"),
            ("CINCH_POD_UID", "0b1f"),
            ("CINCH_POD_IPS", "10.1.2.3, fd00::3"),
            ("CINCH_SERVICE_ACCOUNT", "web"),
            ("CINCH_TRUST_DOMAIN", "cluster.local"),
            ("CINCH_OPERATOR_ID", "spiffe://cluster.local/ns/cinch-system/sa/cinch-operator"),
        ])
    }

    fn read(variables: &HashMap<&str, &str>) -> Result<PodSettings, SettingsError> {
        PodSettings::read(|name| variables.get(name).map(|value| (*value).to_owned()))
    }

    #[test]
    fn a_complete_environment_is_read() {
        let settings = read(&complete()).unwrap();
        assert_eq!(settings.identity.as_str(), "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(settings.pod_ips, ["10.1.2.3".parse::<IpAddr>().unwrap(), "fd00::3".parse().unwrap()]);
        assert!(settings.host_ips.is_empty());
        assert_eq!(settings.agent_socket, None);
    }

    #[test]
    fn the_agent_is_asked_when_the_pod_says_so() {
        let mut with = complete();
        with.insert("CINCH_REDIRECT", "agent");
        let socket = read(&with).unwrap().agent_socket;
        assert_eq!(socket, Some(PathBuf::from("/var/run/cinch/agent/agent.sock")));
    }

    #[test]
    fn the_settings_of_the_installation_hold() {
        assert_eq!(read(&complete()).unwrap().tuning, Tuning::default());
        let mut with = complete();
        with.insert("CINCH_PROXY_SETTINGS", r#"{"limits": {"handshakes": 3}}"#);
        assert_eq!(read(&with).unwrap().tuning.limits.handshakes, 3);
    }

    #[test]
    fn each_missing_or_wrong_variable_is_named() {
        for name in complete().keys() {
            let mut less = complete();
            less.remove(name);
            assert!(read(&less).unwrap_err().to_string().contains(name), "{name}");
        }
        let wrong = [
            ("CINCH_POD_IPS", "10.1.2.3,web"),
            ("CINCH_HOST_IPS", "node-1"),
            ("CINCH_TRUST_DOMAIN", "Cluster Local"),
            ("CINCH_OPERATOR_ID", "cinch-operator"),
            ("CINCH_PROBES", "{"),
            ("CINCH_REDIRECT", "agnet"),
            ("CINCH_PROXY_SETTINGS", r#"{"records": "inplace"}"#),
            ("CINCH_PROXY_SETTINGS", r#"{"limits": {"handshakes": 0}}"#),
        ];
        for (name, value) in wrong {
            let mut with = complete();
            with.insert(name, value);
            assert!(read(&with).unwrap_err().to_string().contains(name), "{name}");
        }
    }
}
