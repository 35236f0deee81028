//! The settings file of the operator: YAML in, checked values out.
//!
//! Keys are camelCase; an unknown key is an error by name, so that a typing mistake never means a default.
//! Durations are written as Kubernetes users write them: `15s`, `1h30m`, `168h`.

mod duration;

use anyhow::{Context, bail};
use cinch_identity::{SpiffeId, TrustDomain};
use cinch_policy::PathNormalization;
use duration::duration;
pub use duration::parse_duration;
use ipnet::IpNet;
use serde::Deserialize;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Everything that an installation decides.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// The trust domain of all identities.
    pub trust_domain: String,
    /// The cluster's DNS domain.
    pub cluster_domain: String,
    /// The namespace that Cinch is installed in.
    pub namespace: String,
    /// The namespace whose policies apply everywhere.
    pub root_namespace: String,
    /// Images of the sidecar.
    pub images: Images,
    /// The mesh as a whole.
    #[serde(default)]
    pub mesh: MeshSettings,
    /// How keys of tokens are fetched.
    #[serde(default)]
    pub jwks: JwksSettings,
    /// Defaults of promotion.
    #[serde(default)]
    pub promotion: PromotionSettings,
    /// What proxies are told.
    #[serde(default)]
    pub proxy: ProxySettings,
    /// The webhook.
    #[serde(default)]
    pub webhook: WebhookSettings,
    /// Who sets the redirect of pods.
    #[serde(default)]
    pub redirect: RedirectSettings,
    /// The control port.
    #[serde(default)]
    pub control: ControlSettings,
    /// Lifetimes of certificates.
    #[serde(default)]
    pub certificates: CertificateSettings,
    /// The lease of the leader.
    #[serde(default)]
    pub lease: LeaseSettings,
    /// This pod, from the environment.
    #[serde(skip, default = "OwnPod::nowhere")]
    pub pod: OwnPod,
}

/// Images of the sidecar, fully qualified.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Images {
    /// The one that is injected.
    pub proxy: String,
    /// All that admission lets in: current, previous, mirrors. Pods that run are known by their repositories.
    pub allowed: Vec<String>,
}

/// The mesh as a whole.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct MeshSettings {
    /// CIDRs that belong to it besides those that the cluster tells.
    pub cidrs: Vec<IpNet>,
    /// Other names of the trust domain: a principal of one stands for all in policies.
    pub trust_domain_aliases: Vec<String>,
    /// How policies read paths.
    pub path_normalization: PathNormalization,
}

/// How keys of tokens are fetched.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct JwksSettings {
    /// Between two fetches of a key set; an issuer may ask for more frequent ones.
    #[serde(deserialize_with = "duration")]
    pub refresh_interval: Duration,
    /// After a failure; doubled by each further one, up to an hour.
    #[serde(deserialize_with = "duration")]
    pub retry_interval: Duration,
    /// How long a fetch may take, where the policy does not say.
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
    /// Addresses that keys may be fetched from though they are not public: an issuer inside the cluster.
    #[serde(rename = "allowedCIDRs")]
    pub allowed_cidrs: Vec<IpNet>,
    /// Whether keys may be fetched in plain text.
    #[serde(rename = "allowHTTP")]
    pub allow_http: bool,
    /// Certificates (PEM) that issuers may have besides the public ones.
    pub ca_file: Option<PathBuf>,
}

impl Default for JwksSettings {
    /// Istio's figures.
    fn default() -> Self {
        Self {
            refresh_interval: Duration::from_secs(20 * 60),
            retry_interval: Duration::from_secs(60),
            timeout: Duration::from_secs(5),
            allowed_cidrs: Vec::new(),
            allow_http: false,
            ca_file: None,
        }
    }
}

/// What `spec.promotion` of a Posture is when nobody wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum PromotionDefault {
    /// The operator promotes on evidence.
    Automatic,
    /// Promotion waits for an approval.
    #[default]
    Manual,
    /// Nothing is promoted.
    Paused,
}

/// Defaults of promotion.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct PromotionSettings {
    /// `spec.promotion` when nobody wrote it.
    pub default: PromotionDefault,
    /// How long the gates must have held.
    #[serde(deserialize_with = "duration")]
    pub quiet_period: Duration,
    /// How long a promotion may be taken back.
    #[serde(deserialize_with = "duration")]
    pub probation: Duration,
    /// Between requiring injection and the lock.
    #[serde(deserialize_with = "duration")]
    pub settle: Duration,
    /// Namespaces in probation at a time.
    pub max_concurrent: u32,
    /// Least time between two promotions.
    #[serde(deserialize_with = "duration")]
    pub min_interval: Duration,
}

impl Default for PromotionSettings {
    fn default() -> Self {
        Self {
            default: PromotionDefault::Manual,
            quiet_period: Duration::from_secs(168 * 3600),
            probation: Duration::from_secs(3600),
            settle: Duration::from_secs(30),
            max_concurrent: 1,
            min_interval: Duration::ZERO,
        }
    }
}

/// What proxies are told.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ProxySettings {
    /// How often proxies report evidence.
    #[serde(deserialize_with = "duration")]
    pub report_interval: Duration,
    /// Requests and limits of the sidecar; the webhook uses them.
    pub resources: serde_json::Value,
    /// Log filter of the sidecar; the webhook uses it.
    pub log: Option<String>,
    /// What the sidecar is told about its work; the webhook uses it.
    pub settings: serde_json::Value,
}

impl Default for ProxySettings {
    fn default() -> Self {
        let nothing = serde_json::Value::Null;
        Self {
            report_interval: Duration::from_secs(10),
            resources: nothing.clone(),
            log: None,
            settings: nothing,
        }
    }
}

/// The webhook.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WebhookSettings {
    /// Its TLS port.
    pub port: u16,
}

impl Default for WebhookSettings {
    fn default() -> Self {
        Self { port: 10250 }
    }
}

/// Who sets the redirect of pods.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct RedirectSettings {
    /// `agent` or `init`. Either way of injection counts as such, whichever new pods get; with agents, a namespace is
    /// promoted only when each of its pods has one that looks at it.
    pub mode: RedirectMode,
}

/// Ways to set the redirect of a pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RedirectMode {
    /// The agent on the pod's node.
    #[default]
    Agent,
    /// The init container `cinch-init`.
    Init,
}

/// The control port.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ControlSettings {
    /// Where proxies connect to.
    pub port: u16,
}

impl Default for ControlSettings {
    fn default() -> Self {
        Self { port: 7443 }
    }
}

/// Lifetimes of certificates. Shorter ones are for tests.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CertificateSettings {
    /// Of workloads and of the operator itself.
    #[serde(deserialize_with = "duration")]
    pub leaf: Duration,
    /// Of the intermediate that signs them.
    #[serde(deserialize_with = "duration")]
    pub issuer: Duration,
    /// Of the root.
    #[serde(deserialize_with = "duration")]
    pub root: Duration,
    /// Of the webhook's serving certificate.
    #[serde(deserialize_with = "duration")]
    pub webhook: Duration,
}

impl Default for CertificateSettings {
    fn default() -> Self {
        const DAY: u64 = 24 * 3600;
        Self {
            leaf: Duration::from_secs(DAY),
            issuer: Duration::from_secs(365 * DAY),
            root: Duration::from_secs(3650 * DAY),
            webhook: Duration::from_secs(90 * DAY),
        }
    }
}

/// The lease of the leader.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct LeaseSettings {
    /// How long a silent leader keeps it.
    #[serde(deserialize_with = "duration")]
    pub duration: Duration,
    /// How often the leader renews it.
    #[serde(deserialize_with = "duration")]
    pub renew: Duration,
}

impl Default for LeaseSettings {
    fn default() -> Self {
        Self { duration: Duration::from_secs(5), renew: Duration::from_secs(1) }
    }
}

/// This pod, by the downward API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnPod {
    /// `metadata.name`: the holder of the lease.
    pub name: String,
    /// `status.podIP`: where proxies connect to.
    pub ip: IpAddr,
}

impl OwnPod {
    fn nowhere() -> Self {
        Self { name: String::new(), ip: IpAddr::from([127, 0, 0, 1]) }
    }

    /// Reads `POD_NAME` and `POD_IP`.
    ///
    /// # Errors
    /// When one is missing or no address.
    pub fn from_env() -> anyhow::Result<Self> {
        let get = |name: &str| {
            std::env::var(name)
                .ok()
                .filter(|value| !value.is_empty())
                .with_context(|| format!("the environment variable {name} is missing (downward API)"))
        };
        let ip = get("POD_IP")?;
        let ip = ip.parse().with_context(|| format!("POD_IP is {ip:?}, which is no address"))?;
        Ok(Self { name: get("POD_NAME")?, ip })
    }
}

/// When a leader is gone without a word, nobody leads for as long.
const LONGEST_LEASE: Duration = Duration::from_secs(60);

impl Settings {
    /// Reads the file and the environment.
    ///
    /// # Errors
    /// When either is missing or wrong; the message names the key.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("the settings file {} can not be read", path.display()))?;
        let mut settings = Self::parse(&text).with_context(|| format!("in {}", path.display()))?;
        settings.pod = OwnPod::from_env()?;
        Ok(settings)
    }

    /// Parses and checks the YAML; the pod stays unknown.
    ///
    /// # Errors
    /// When it is wrong; the message names the key.
    pub fn parse(yaml: &str) -> anyhow::Result<Self> {
        let settings: Self = serde_saphyr::from_str(yaml).context("the settings are wrong")?;
        settings.operator_id()?;
        let lease = &settings.lease;
        if lease.renew.is_zero() || lease.duration < lease.renew * 3 {
            bail!("lease.duration must be at least three times lease.renew");
        }
        if lease.duration > LONGEST_LEASE {
            bail!("lease.duration must be at most {LONGEST_LEASE:?}");
        }
        if lease.duration.subsec_nanos() != 0 {
            // The Lease says it in seconds: others would believe in less than its holder does.
            bail!("lease.duration must be whole seconds");
        }
        if settings.proxy.report_interval.is_zero() {
            bail!("proxy.reportInterval must not be zero");
        }
        for alias in &settings.mesh.trust_domain_aliases {
            TrustDomain::parse(alias).context("mesh.trustDomainAliases")?;
        }
        let jwks = &settings.jwks;
        for (key, pause) in [
            ("refreshInterval", jwks.refresh_interval),
            ("retryInterval", jwks.retry_interval),
            ("timeout", jwks.timeout),
        ] {
            // Who asks more often is a nuisance to an issuer.
            let least = if key == "timeout" { Duration::from_millis(1) } else { Duration::from_secs(1) };
            if pause < least {
                bail!("jwks.{key} must be at least {least:?}");
            }
        }
        let certificates = &settings.certificates;
        for (key, lifetime) in
            [("leaf", certificates.leaf), ("issuer", certificates.issuer), ("root", certificates.root)]
        {
            if lifetime < Duration::from_secs(30) {
                bail!("certificates.{key} must be at least 30s");
            }
        }
        Ok(settings)
    }

    /// The trust domain, parsed.
    ///
    /// # Errors
    /// When it is no trust domain.
    pub fn trust_domain(&self) -> anyhow::Result<TrustDomain> {
        TrustDomain::parse(&self.trust_domain).context("trustDomain")
    }

    /// The operator's own identity.
    ///
    /// # Errors
    /// When trust domain or namespace can't be part of one.
    pub fn operator_id(&self) -> anyhow::Result<SpiffeId> {
        SpiffeId::workload(&self.trust_domain()?, &self.namespace, "cinch-operator").context("namespace")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = r#"
trustDomain: cluster.local
clusterDomain: cluster.local
namespace: cinch-system
rootNamespace: cinch-system
images: {proxy: "registry/cinch-proxy:0.1.0", allowed: ["registry/cinch-proxy:0.1.0"]}
mesh: {cidrs: ["10.0.0.0/8", "fd00::/8"], trustDomainAliases: [old.example], pathNormalization: MERGE_SLASHES}
jwks: {refreshInterval: 10m, retryInterval: 5s, timeout: 2s, allowedCIDRs: [10.3.0.0/16], allowHTTP: true, caFile: /etc/cinch/jwks-ca.pem}
promotion: {default: Automatic, quietPeriod: 15s, probation: 1h, settle: 30s, maxConcurrent: 1, minInterval: 0s}
proxy: {reportInterval: 10s, settings: {limits: {handshakes: 8}}, resources: {requests: {cpu: 10m, memory: 32Mi}, limits: {cpu: "2", memory: 128Mi}}}
webhook: {port: 10250}
control: {port: 7443}
lease: {duration: 15s, renew: 2s}
"#;

    #[test]
    fn the_full_file_is_read() {
        let settings = Settings::parse(FULL).unwrap();
        assert_eq!(settings.promotion.default, PromotionDefault::Automatic);
        assert_eq!(settings.promotion.quiet_period, Duration::from_secs(15));
        assert_eq!(settings.mesh.cidrs.len(), 2);
        assert_eq!(settings.mesh.path_normalization, PathNormalization::MergeSlashes);
        assert_eq!(settings.mesh.trust_domain_aliases, ["old.example"]);
        assert_eq!(settings.jwks.refresh_interval, Duration::from_secs(600));
        assert_eq!(settings.jwks.allowed_cidrs, ["10.3.0.0/16".parse().unwrap()]);
        assert!(settings.jwks.allow_http && settings.jwks.ca_file.is_some());
        assert_eq!(
            settings.operator_id().unwrap().as_str(),
            "spiffe://cluster.local/ns/cinch-system/sa/cinch-operator"
        );
        assert_eq!(settings.certificates.leaf, Duration::from_secs(24 * 3600));
        let lease = (settings.lease.duration, settings.lease.renew);
        assert_eq!(lease, (Duration::from_secs(15), Duration::from_secs(2)));
    }

    #[test]
    fn what_the_chart_renders_is_read() {
        let installed = include_str!("../../manifests/install.yaml");
        let (_, map) = installed.split_once("\n  settings.yaml: |\n").unwrap();
        let lines = map.lines().take_while(|line| line.is_empty() || line.starts_with("    "));
        let text: Vec<&str> = lines.map(|line| line.strip_prefix("    ").unwrap_or_default()).collect();
        assert!(text.contains(&"lease:"), "{text:?}");
        let settings = Settings::parse(&text.join("\n")).unwrap();
        let (chart, default) = (settings.lease, LeaseSettings::default());
        assert_eq!((chart.duration, chart.renew), (default.duration, default.renew));
    }

    #[test]
    fn what_is_left_out_has_istios_figures_and_the_safer_choice() {
        let lines: Vec<&str> =
            FULL.lines().filter(|line| !line.starts_with("mesh:") && !line.starts_with("jwks:")).collect();
        let settings = Settings::parse(&lines.join("\n")).unwrap();
        assert_eq!(settings.mesh.path_normalization, PathNormalization::Safe);
        let jwks = settings.jwks;
        assert_eq!(
            (jwks.refresh_interval, jwks.timeout),
            (Duration::from_secs(1200), Duration::from_secs(5))
        );
        assert!(jwks.allowed_cidrs.is_empty() && !jwks.allow_http && jwks.ca_file.is_none());
    }

    #[test]
    fn wrong_files_are_refused_and_name_the_key() {
        for (from, to, word) in [
            ("webhook: {port: 10250}", "webhoook: {port: 10250}", "webhoook"),
            ("quietPeriod: 15s", "quietPeriod: 15", "duration"),
            ("quietPeriod: 15s", "quiet_period: 15s", "quiet_period"),
            ("trustDomain: cluster.local", "trustDomain: Cluster/x", "trustDomain"),
            ("default: Automatic", "default: automatic", "automatic"),
            ("MERGE_SLASHES", "MERGE", "MERGE"),
            ("[old.example]", "[Old/x]", "trustDomainAliases"),
            ("refreshInterval: 10m", "refreshInterval: 0s", "jwks.refreshInterval"),
            ("allowHTTP", "allowHttp", "allowHttp"),
            ("10.3.0.0/16", "10.3.0.0/33", "10.3.0.0/33"),
            ("duration: 15s, renew: 2s", "duration: 2s, renew: 1s", "lease.duration"),
            ("duration: 15s, renew: 2s", "duration: 61s, renew: 2s", "at most 60s"),
            ("duration: 15s, renew: 2s", "duration: 5s900ms, renew: 100ms", "whole seconds"),
        ] {
            let error = format!("{:#}", Settings::parse(&FULL.replace(from, to)).unwrap_err());
            assert!(error.contains(word), "{word}: {error}");
        }
    }
}
