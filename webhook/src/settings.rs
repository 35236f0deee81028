//! The part of the installation's settings file that the webhook needs. Operator and webhook read the same
//! file; what is only the operator's is passed over here, and checked there.

use anyhow::{Context, bail};
use cinch_injection::{Redirect, Resources, Sidecar};
use cinch_policy::{MeshConfig, PathNormalization};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// What an installation decides about injection.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// Trust domain of all identities.
    pub trust_domain: String,
    /// Namespace that Cinch is installed in; the environment variable `POD_NAMESPACE` goes before.
    pub namespace: String,
    /// Where policies for the whole mesh live; left out: [`Settings::namespace`].
    #[serde(default)]
    pub root_namespace: Option<String>,
    /// What policies are read by, besides the root namespace.
    #[serde(default)]
    pub mesh: Mesh,
    /// Images of the sidecar.
    pub images: Images,
    /// How the sidecar runs.
    #[serde(default)]
    pub proxy: Proxy,
    /// Who sets the redirect of pods.
    #[serde(default)]
    pub redirect: RedirectSettings,
    /// The webhook's own.
    #[serde(default)]
    pub webhook: Webhook,
}

/// What policies are read by.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Mesh {
    /// Other names of our trust domain.
    pub trust_domain_aliases: Vec<String>,
    /// How paths are read.
    pub path_normalization: PathNormalization,
}

/// Images of the sidecar, fully qualified.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Images {
    /// The one that is injected.
    pub proxy: String,
    /// All that admission accepts: current, previous, mirrors.
    #[serde(default)]
    pub allowed: Vec<String>,
}

/// Who sets the redirect of pods.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RedirectSettings {
    /// `agent` or `init`.
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

impl From<RedirectMode> for Redirect {
    fn from(mode: RedirectMode) -> Self {
        match mode {
            RedirectMode::Init => Self::Init,
            RedirectMode::Agent => Self::Agent,
        }
    }
}

/// How the sidecar runs.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Proxy {
    /// Requests and limits; what is left out has the built-in value.
    pub resources: Option<ProxyResources>,
    /// Log filter.
    pub log: Option<String>,
    /// What the proxy is told about its work; the proxy knows the shape, and the chart's schema has closed it.
    #[serde(default)]
    pub settings: serde_json::Map<String, serde_json::Value>,
}

/// Requests and limits of the sidecar.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ProxyResources {
    /// In pods that are not Guaranteed.
    pub requests: Option<BTreeMap<String, String>>,
    /// In pods that are not Guaranteed.
    pub limits: Option<BTreeMap<String, String>>,
    /// Requests and limits in Guaranteed pods.
    pub guaranteed: Option<BTreeMap<String, String>>,
}

/// The webhook's own settings.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Webhook {
    /// Port for reviews, TLS.
    pub port: u16,
}

impl Default for Webhook {
    /// 10250 is open from the API server to nodes in private GKE and similar clusters.
    fn default() -> Self {
        Self { port: 10250 }
    }
}

impl Settings {
    /// Reads the file and the environment.
    ///
    /// # Errors
    /// The file can't be read or is not as it must be; the message names the field.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("{} can't be read", path.display()))?;
        let mut settings = Self::parse(&text).with_context(|| format!("{} is wrong", path.display()))?;
        if let Ok(namespace) = std::env::var("POD_NAMESPACE") {
            settings.namespace = namespace;
        }
        Ok(settings)
    }

    /// Reads the text of the file.
    ///
    /// # Errors
    /// As for [`Settings::read`].
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let settings: Self = serde_saphyr::from_str(text)?;
        for (key, value) in [
            ("trustDomain", &settings.trust_domain),
            ("namespace", &settings.namespace),
            ("images.proxy", &settings.images.proxy),
        ] {
            if value.is_empty() {
                bail!("{key} is empty");
            }
        }
        Ok(settings)
    }

    /// The sidecar to inject.
    #[must_use]
    pub fn sidecar(&self) -> Sidecar {
        let own = self.proxy.resources.clone().unwrap_or_default();
        let version = env!("CARGO_PKG_VERSION");
        let usual = Sidecar::usual(&self.images.proxy, version, &self.trust_domain, &self.namespace);
        Sidecar {
            allowed_images: self.images.allowed.clone(),
            log: self.proxy.log.clone(),
            settings: settings_text(&self.proxy.settings),
            redirect: self.redirect.mode.into(),
            resources: Resources {
                requests: own.requests.unwrap_or(usual.resources.requests),
                limits: own.limits.unwrap_or(usual.resources.limits),
                guaranteed: own.guaranteed.unwrap_or(usual.resources.guaranteed),
            },
            ..usual
        }
    }

    /// The mesh as policies are read in it.
    #[must_use]
    pub fn mesh(&self) -> MeshConfig {
        MeshConfig {
            trust_domain: self.trust_domain.clone(),
            trust_domain_aliases: self.mesh.trust_domain_aliases.clone(),
            root_namespace: self.root_namespace.clone().unwrap_or_else(|| self.namespace.clone()),
            path_normalization: self.mesh.path_normalization,
        }
    }
}

/// The same text for the same settings: every review of a pod must come to the same container.
fn settings_text(settings: &serde_json::Map<String, serde_json::Value>) -> Option<String> {
    (!settings.is_empty()).then(|| serde_json::Value::Object(settings.clone()).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = r#"
trustDomain: cluster.local
clusterDomain: cluster.local
namespace: cinch-system
rootNamespace: cinch-system
images: {proxy: "registry/cinch-proxy:0.1.0", allowed: ["registry/cinch-proxy:0.1.0"]}
mesh: {cidrs: [], trustDomainAliases: [old.example], pathNormalization: BASE}
promotion: {default: Manual, quietPeriod: 168h}
proxy: {reportInterval: 10s, resources: {requests: {cpu: 20m, memory: 32Mi}, limits: {cpu: "2", memory: 128Mi}}}
webhook: {port: 10250}
control: {port: 7443}
"#;

    #[test]
    fn the_file_that_the_operator_reads_is_read() {
        let sidecar = Settings::parse(FILE).unwrap().sidecar();
        assert_eq!(sidecar.operator_id, "spiffe://cluster.local/ns/cinch-system/sa/cinch-operator");
        assert_eq!(sidecar.resources.requests["cpu"], "20m");
        assert_eq!(sidecar.resources.guaranteed, Resources::default().guaranteed);
    }

    #[test]
    fn policies_are_read_by_the_mesh_of_the_file() {
        let mesh = Settings::parse(FILE).unwrap().mesh();
        assert_eq!(mesh.trust_domain_aliases, ["old.example"]);
        assert_eq!(mesh.path_normalization, PathNormalization::Base);
        let plain = FILE.replace(", trustDomainAliases: [old.example], pathNormalization: BASE", "");
        let plain = Settings::parse(&plain.replace("rootNamespace: cinch-system\n", "")).unwrap().mesh();
        assert_eq!(plain, MeshConfig::default());
    }

    #[test]
    fn settings_of_the_proxy_are_passed_on_as_they_are() {
        assert_eq!(Settings::parse(FILE).unwrap().sidecar().settings, None);
        let file = FILE.replace("proxy: {", "proxy: {settings: {}, ");
        assert_eq!(Settings::parse(&file).unwrap().sidecar().settings, None);
        let said = r#"{"limits":{"handshakes":8,"http":{"streams":50},"silence":"50ms"},"records":"rustls"}"#;
        let file = FILE.replace("proxy: {", &format!("proxy: {{settings: {said}, "));
        assert_eq!(Settings::parse(&file).unwrap().sidecar().settings.as_deref(), Some(said));
        // Admission compares it with what Helm writes: keys sorted, numbers without more digits than they need.
        let said = r#"{"accessLog":{"sampling":0.25},"limits":{"connections":1048576},"records":"in-place"}"#;
        let file = FILE.replace("proxy: {", &format!("proxy: {{settings: {said}, "));
        assert_eq!(Settings::parse(&file).unwrap().sidecar().settings.as_deref(), Some(said));
    }

    #[test]
    fn the_agent_sets_the_redirect_unless_the_file_says_init() {
        assert_eq!(Settings::parse(FILE).unwrap().sidecar().redirect, Redirect::Agent);
        let init = format!("{FILE}redirect: {{mode: init}}\n");
        assert_eq!(Settings::parse(&init).unwrap().sidecar().redirect, Redirect::Init);
        assert!(Settings::parse(&init.replace("mode: init", "mode: cni")).is_err());
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = Settings::parse(&FILE.replace("trustDomain: cluster.local", "")).unwrap_err();
        assert!(format!("{error:#}").contains("trustDomain"), "{error:#}");
        assert!(Settings::parse(&FILE.replace("trustDomain: cluster.local", "trustDomain: ''")).is_err());
    }
}
