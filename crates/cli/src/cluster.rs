//! The connection to the API server, and the few writes that the verbs share. Everything is written under the
//! field manager `kubectl-cinch`.

use crate::arguments::Global;
use anyhow::{Context, Result, bail};
use cinch_api::Posture;
use cinch_api::names::{CLI, OPERATOR, RELAX_REASON_ANNOTATION};
use cinch_injection::Redirect;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, Patch, PatchParams};
use kube::config::{Config, KubeConfigOptions};
use kube::{Client, Resource};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The ConfigMap that operator and webhook read, and its key.
pub const SETTINGS: (&str, &str) = ("cinch-settings", "settings.yaml");
/// Namespaces that are never meshed, besides the one of Cinch.
const SYSTEM_NAMESPACES: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

/// A cluster with (or yet without) Cinch.
pub struct Cluster {
    /// The connection.
    pub client: Client,
    /// The namespace in which Cinch is installed.
    pub cinch: String,
}

impl Cluster {
    /// Connects as kubectl would: `KUBECONFIG`, else the file in the home folder, else the pod's own account.
    ///
    /// # Errors
    /// When no configuration is found or it can't be used.
    pub async fn connect(global: &Global) -> Result<Self> {
        let config = match &global.context {
            Some(context) => {
                let options = KubeConfigOptions { context: Some(context.clone()), ..Default::default() };
                Config::from_kubeconfig(&options).await.context("the kubeconfig can not be used")?
            }
            None => Config::infer().await.context("no kubeconfig was found")?,
        };
        let client = Client::try_from(config).context("the kubeconfig can not be used")?;
        Ok(Self { client, cinch: global.cinch_namespace.clone() })
    }

    /// Objects of a kind in a namespace.
    #[must_use]
    pub fn of<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = kube::core::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Reads a namespace.
    ///
    /// # Errors
    /// When there is none of the name, or it may not be read.
    pub async fn namespace(&self, name: &str) -> Result<Namespace> {
        let found = Api::<Namespace>::all(self.client.clone()).get_opt(name).await?;
        found.with_context(|| format!("there is no namespace {name}"))
    }

    /// Whether the namespace is the cluster's own or Cinch's, which are never meshed.
    #[must_use]
    pub fn is_system(&self, namespace: &str) -> bool {
        namespace == self.cinch || SYSTEM_NAMESPACES.contains(&namespace)
    }

    /// Changes labels and annotations of a namespace in one update; `None` removes a key.
    ///
    /// # Errors
    /// When an admission policy or RBAC refuses it.
    pub async fn change_namespace(
        &self,
        name: &str,
        labels: &BTreeMap<String, Option<String>>,
        annotations: &BTreeMap<String, Option<String>>,
    ) -> Result<()> {
        let patch = json!({"metadata": {"labels": labels, "annotations": annotations}});
        let api = Api::<Namespace>::all(self.client.clone());
        api.patch(name, &manager(), &Patch::Merge(&patch)).await?;
        Ok(())
    }

    /// Deletes the posture of a namespace; it may be gone already.
    ///
    /// # Errors
    /// When it may not be deleted.
    pub async fn delete_posture(&self, namespace: &str) -> Result<()> {
        match self.of::<Posture>(namespace).delete("mesh", &Default::default()).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Who sets the redirect of new pods, as the settings of the installation say; the usual one where there are
    /// none. `None` where they may not be read.
    ///
    /// # Errors
    /// When they can't be understood.
    pub async fn redirect(&self) -> Result<Option<Redirect>> {
        let found = match self.of::<ConfigMap>(&self.cinch).get_opt(SETTINGS.0).await {
            Err(kube::Error::Api(status)) if status.code == 403 => return Ok(None),
            found => found?,
        };
        let text = found.and_then(|found| found.data?.remove(SETTINGS.1));
        text.map_or(Ok(Redirect::default()), |text| redirect_of(&text)).map(Some)
    }

    /// Fails with a sentence when Cinch is not installed where this program looks for it.
    ///
    /// # Errors
    /// When there is no operator.
    pub async fn must_be_installed(&self) -> Result<()> {
        use k8s_openapi::api::apps::v1::Deployment;
        if self.of::<Deployment>(&self.cinch).get_opt(OPERATOR).await?.is_none() {
            bail!(
                "Cinch is not installed in namespace {}; install it first (helm install cinch charts/cinch -n {} \
                 --create-namespace), or say where it is with --cinch-namespace",
                self.cinch,
                self.cinch
            );
        }
        Ok(())
    }
}

/// Of the settings, who sets the redirect.
fn redirect_of(settings: &str) -> Result<Redirect> {
    #[derive(Deserialize)]
    struct Settings {
        #[serde(default)]
        redirect: Mode,
    }
    #[derive(Default, Deserialize)]
    struct Mode {
        mode: Option<String>,
    }
    let settings: Settings = serde_saphyr::from_str(settings)
        .with_context(|| format!("{} in ConfigMap {} can not be read", SETTINGS.1, SETTINGS.0))?;
    match settings.redirect.mode.as_deref() {
        None => Ok(Redirect::default()),
        Some("agent") => Ok(Redirect::Agent),
        Some("init") => Ok(Redirect::Init),
        Some(other) => {
            bail!("the installation sets the redirect by {other:?}, which this version does not know")
        }
    }
}

/// Parameters of every patch.
#[must_use]
pub fn manager() -> PatchParams {
    PatchParams { field_manager: Some(CLI.to_owned()), ..Default::default() }
}

/// The value of the annotation for `reason`: the admission policy wants one that was not there before, so the
/// time is added when the same words are given again.
#[must_use]
pub fn fresh_reason(namespace: &Namespace, reason: &str, now: jiff::Timestamp) -> String {
    let annotations = namespace.metadata.annotations.as_ref();
    let before = annotations.and_then(|all| all.get(RELAX_REASON_ANNOTATION));
    match before {
        Some(before) if before == reason => format!("{reason} ({now})"),
        _ => reason.to_owned(),
    }
}

/// The text at a JSON pointer, empty when there is none.
#[must_use]
pub fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The number at a JSON pointer, 0 when there is none.
#[must_use]
pub fn number(value: &Value, pointer: &str) -> i64 {
    value.pointer(pointer).and_then(Value::as_i64).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sets_the_redirect_is_read_from_the_settings() {
        let redirect = |text: &str| redirect_of(text).ok();
        assert_eq!(redirect("trustDomain: cluster.local\n"), Some(Redirect::Agent));
        assert_eq!(redirect("redirect:\n  mode: init\n"), Some(Redirect::Init));
        assert_eq!(redirect("{redirect: {mode: agent}}"), Some(Redirect::Agent));
        assert_eq!(redirect("{redirect: {mode: cni}}"), None);
    }

    #[test]
    fn the_same_reason_given_again_becomes_a_new_value() {
        let now = jiff::Timestamp::UNIX_EPOCH;
        let mut namespace = Namespace::default();
        assert_eq!(fresh_reason(&namespace, "incident 7", now), "incident 7");
        let before = (RELAX_REASON_ANNOTATION.to_owned(), "incident 7".to_owned());
        namespace.metadata.annotations = Some(BTreeMap::from([before]));
        assert_eq!(fresh_reason(&namespace, "incident 7", now), "incident 7 (1970-01-01T00:00:00Z)");
        assert_eq!(fresh_reason(&namespace, "incident 8", now), "incident 8");
    }
}
