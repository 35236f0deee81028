//! The webhook's serving certificate: the leader makes it, keeps it in the Secret `cinch-webhook-tls`, and
//! tells the API server whom to trust (`caBundle` of `cinch-injector` and `cinch-policies`, by server-side apply).
//!
//! It has nothing to do with workload identities: a small CA of its own is made for each certificate, and its
//! key is dropped at once. At a renewal the old CA stays trusted beside the new one, because the webhook's
//! replicas pick up the new Secret one after the other.

use crate::ca::secret::{Secrets, Stored, Write};
use crate::ca::sign::{Authority, Validity, unix_now};
use crate::settings::Settings;
use anyhow::Context;
use base64::Engine;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, Resource};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Secret with `tls.crt`, `tls.key`, `ca.crt`, and `probe.key`, the key of the probe paths.
pub const SECRET: &str = "cinch-webhook-tls";
/// The configuration of pod reviews.
const INJECTOR: &str = "cinch-injector";
/// The configuration of policy reviews.
const POLICIES: &str = "cinch-policies";
const FIELD_MANAGER: &str = "cinch-operator";
/// Helm and users may take our caBundle away; until we notice, pods go without sidecar and policies can't be written.
const CHECK_EVERY: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(2);
const PROBE_KEY_LENGTH: usize = 32;

/// What the Secret must become.
#[derive(Clone, PartialEq, Eq)]
enum Plan {
    /// It is right as it is.
    Keep,
    /// Only the probe key is missing.
    AddProbeKey(BTreeMap<String, Vec<u8>>),
    /// A new certificate; its CA must be trusted first.
    Renew(BTreeMap<String, Vec<u8>>),
}

/// Keeps Secret and caBundle in order until `shutdown`.
pub async fn run(client: Client, settings: Arc<Settings>, shutdown: CancellationToken) {
    let keeper = Keeper {
        secrets: Secrets::new(client.clone(), &settings.namespace),
        injector: Api::all(client.clone()),
        policies: Api::all(client),
        names: names(&settings),
        lifetime: settings.certificates.webhook,
    };
    loop {
        let pause = match keeper.check().await {
            Ok(()) => CHECK_EVERY,
            Err(error) => {
                warn!(
                    error = format!("{error:#}"),
                    "the webhook's certificate could not be checked; trying again"
                );
                RETRY
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// The names that the API server may call the webhook by.
fn names(settings: &Settings) -> Vec<String> {
    let service = format!("cinch-webhook.{}.svc", settings.namespace);
    let full = format!("{service}.{}", settings.cluster_domain);
    vec![service, full]
}

struct Keeper {
    secrets: Secrets,
    injector: Api<MutatingWebhookConfiguration>,
    policies: Api<ValidatingWebhookConfiguration>,
    names: Vec<String>,
    lifetime: Duration,
}

impl Keeper {
    async fn check(&self) -> anyhow::Result<()> {
        let stored = self.secrets.read(SECRET).await?;
        let entries = match plan(&stored, &self.names, unix_now(), self.lifetime)? {
            Plan::Keep => return self.trust(stored.text("ca.crt")?).await,
            Plan::AddProbeKey(entries) => entries,
            Plan::Renew(entries) => {
                // Trust first: a webhook may serve the new certificate the moment that it is stored.
                let roots = entries.get("ca.crt").map(|pem| String::from_utf8_lossy(pem).into_owned());
                self.trust(&roots.unwrap_or_default()).await?;
                entries
            }
        };
        if self.secrets.write(SECRET, &stored, entries).await? == Write::Done {
            info!(secret = SECRET, "made a serving certificate for the webhook");
        }
        let stored = self.secrets.read(SECRET).await?;
        self.trust(stored.text("ca.crt")?).await
    }

    /// Makes `roots` (PEM) the caBundle of each webhook in both configurations, where it is not already.
    async fn trust(&self, roots: &str) -> anyhow::Result<()> {
        trust(&self.injector, INJECTOR, roots).await?;
        trust(&self.policies, POLICIES, roots).await
    }
}

/// A configuration with webhooks: both kinds are alike in what matters here.
trait Webhooks {
    /// Name and caBundle of each webhook.
    fn webhooks(&self) -> Vec<(&str, Option<&ByteString>)>;
}

impl Webhooks for MutatingWebhookConfiguration {
    fn webhooks(&self) -> Vec<(&str, Option<&ByteString>)> {
        let all = self.webhooks.iter().flatten();
        all.map(|hook| (hook.name.as_str(), hook.client_config.ca_bundle.as_ref())).collect()
    }
}

impl Webhooks for ValidatingWebhookConfiguration {
    fn webhooks(&self) -> Vec<(&str, Option<&ByteString>)> {
        let all = self.webhooks.iter().flatten();
        all.map(|hook| (hook.name.as_str(), hook.client_config.ca_bundle.as_ref())).collect()
    }
}

async fn trust<K>(configurations: &Api<K>, name: &str, roots: &str) -> anyhow::Result<()>
where
    K: Webhooks + Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let configuration =
        configurations.get_opt(name).await.with_context(|| format!("{name} can not be read"))?;
    // Not installed, or uninstalled: nothing to tell.
    let Some(configuration) = configuration else { return Ok(()) };
    let Some(patch) = ca_bundle_patch(&configuration, name, roots) else { return Ok(()) };
    let params = PatchParams::apply(FIELD_MANAGER).force();
    configurations
        .patch(name, &params, &Patch::Apply(patch))
        .await
        .with_context(|| format!("the caBundle of {name} can not be written"))?;
    info!(configuration = name, "told the API server whom to trust");
    Ok(())
}

/// Names the webhooks (the key of the list) and nothing but their caBundle, so that all else stays with its
/// other managers; `None` when each has it already.
fn ca_bundle_patch<K>(configuration: &K, name: &str, roots: &str) -> Option<serde_json::Value>
where
    K: Webhooks + Resource<DynamicType = ()>,
{
    let webhooks = configuration.webhooks();
    if webhooks.iter().all(|(_, bundle)| bundle.is_some_and(|bundle| bundle.0 == roots.as_bytes())) {
        return None;
    }
    let bundle = base64::engine::general_purpose::STANDARD.encode(roots);
    let webhooks: Vec<_> = webhooks
        .iter()
        .map(|(name, _)| json!({"name": name, "clientConfig": {"caBundle": bundle}}))
        .collect();
    Some(json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": {"name": name},
        "webhooks": webhooks,
    }))
}

/// Decides from the Secret as it is what it must become at `now` (seconds since 1970).
fn plan(stored: &Stored, names: &[String], now: u64, lifetime: Duration) -> anyhow::Result<Plan> {
    let probe_key = stored.bytes("probe.key").filter(|key| key.len() == PROBE_KEY_LENGTH);
    let usable = usable(stored, names, now);
    if usable && probe_key.is_some() {
        return Ok(Plan::Keep);
    }
    let probe_key =
        probe_key.map_or_else(|| rand::random::<[u8; PROBE_KEY_LENGTH]>().to_vec(), <[u8]>::to_vec);
    let mut entries = BTreeMap::from([("probe.key".to_owned(), probe_key)]);
    if usable {
        for key in ["tls.crt", "tls.key", "ca.crt"] {
            entries.insert(key.to_owned(), stored.text(key)?.as_bytes().to_vec());
        }
        return Ok(Plan::AddProbeKey(entries));
    }
    // The CA gets the same life, so it never ends before its one certificate.
    let (authority, _key) = Authority::root("cinch webhook", now, lifetime)?;
    let (certificate, key) = authority.serving(names, now, lifetime)?;
    let mut roots = vec![authority.certificate().clone()];
    roots.extend(newest_root(stored));
    entries.insert("tls.crt".to_owned(), cinch_identity::to_pem(&[certificate]).into_bytes());
    entries.insert("tls.key".to_owned(), key.into_bytes());
    entries.insert("ca.crt".to_owned(), cinch_identity::to_pem(&roots).into_bytes());
    Ok(Plan::Renew(entries))
}

/// The CA in use stands first in `ca.crt`.
fn newest_root(stored: &Stored) -> Option<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(stored.bytes("ca.crt")?).ok()
}

/// There is a certificate for these names, with a key and a CA, and it is not time for a successor.
fn usable(stored: &Stored, names: &[String], now: u64) -> bool {
    let (Some(certificate), Some(_), Some(_)) =
        (stored.bytes("tls.crt"), stored.bytes("tls.key"), newest_root(stored))
    else {
        return false;
    };
    let Ok(certificate) = CertificateDer::from_pem_slice(certificate) else { return false };
    let fresh = Validity::of(&certificate).is_ok_and(|validity| !validity.is_due(now));
    fresh && dns_names(&certificate).is_some_and(|present| names.iter().all(|name| present.contains(name)))
}

fn dns_names(certificate: &CertificateDer<'_>) -> Option<Vec<String>> {
    use x509_parser::extensions::GeneralName;
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let dns = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        _ => None,
    });
    Some(dns.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Duration = Duration::from_secs(9000);

    fn names() -> Vec<String> {
        vec![
            "cinch-webhook.cinch-system.svc".to_owned(),
            "cinch-webhook.cinch-system.svc.cluster.local".to_owned(),
        ]
    }

    fn renewed(stored: &Stored, now: u64) -> Stored {
        match plan(stored, &names(), now, LIFE).unwrap() {
            Plan::Renew(entries) => Stored::of("1", entries),
            Plan::Keep => panic!("kept"),
            Plan::AddProbeKey(_) => panic!("only the probe key"),
        }
    }

    #[test]
    fn an_empty_secret_gets_everything_and_is_then_left_alone() {
        let now = unix_now();
        let stored = renewed(&Stored::default(), now);
        assert!(plan(&stored, &names(), now + 5000, LIFE).unwrap() == Plan::Keep);
        assert_eq!(stored.bytes("probe.key").unwrap().len(), 32);
        let certificate = CertificateDer::from_pem_slice(stored.bytes("tls.crt").unwrap()).unwrap();
        assert_eq!(dns_names(&certificate).unwrap(), names());
    }

    #[test]
    fn a_renewal_keeps_the_probe_key_and_trusts_the_old_ca_beside_the_new_one() {
        let now = unix_now();
        let first = renewed(&Stored::default(), now);
        let second = renewed(&first, now + 7000);
        let third = renewed(&second, now + 14_000);
        assert_eq!(first.bytes("probe.key"), third.bytes("probe.key"));
        let roots = |stored: &Stored| -> Vec<_> {
            CertificateDer::pem_slice_iter(stored.bytes("ca.crt").unwrap()).map(Result::unwrap).collect()
        };
        assert_eq!((roots(&first).len(), roots(&second).len(), roots(&third).len()), (1, 2, 2));
        assert_eq!(roots(&second)[1], roots(&first)[0]);
        assert_eq!(roots(&third)[1], roots(&second)[0]);
    }

    #[test]
    fn other_names_and_broken_entries_are_renewed() {
        let now = unix_now();
        let stored = renewed(&Stored::default(), now);
        let other = ["cinch-webhook.elsewhere.svc".to_owned()];
        assert!(matches!(plan(&stored, &other, now, LIFE).unwrap(), Plan::Renew(_)));
        for key in ["tls.crt", "tls.key", "ca.crt"] {
            let mut entries = stored.entries().clone();
            entries.insert(key.to_owned(), Vec::new());
            assert!(
                matches!(plan(&Stored::of("1", entries), &names(), now, LIFE).unwrap(), Plan::Renew(_)),
                "{key}"
            );
        }
        let mut entries = stored.entries().clone();
        entries.insert("probe.key".to_owned(), vec![1; 31]);
        assert!(matches!(
            plan(&Stored::of("1", entries), &names(), now, LIFE).unwrap(),
            Plan::AddProbeKey(_)
        ));
    }

    #[test]
    fn the_serving_certificate_verifies_by_name_against_its_ca() {
        let now = unix_now();
        let stored = renewed(&Stored::default(), now);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(newest_root(&stored).unwrap()).unwrap();
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::clone(cinch_identity::provider()),
        )
        .build()
        .unwrap();
        let leaf = CertificateDer::from_pem_slice(stored.bytes("tls.crt").unwrap()).unwrap();
        let time = rustls_pki_types::UnixTime::now();
        for (name, good) in [(names()[0].as_str(), true), ("other.cinch-system.svc", false)] {
            let name = rustls_pki_types::ServerName::try_from(name).unwrap();
            use rustls::client::danger::ServerCertVerifier;
            assert_eq!(verifier.verify_server_cert(&leaf, &[], &name, &[], time).is_ok(), good);
        }
    }

    #[test]
    fn the_patch_names_each_webhook_and_nothing_but_its_ca_bundle() {
        let mut policies: ValidatingWebhookConfiguration =
            serde_json::from_value(json!({"metadata": {"name": POLICIES}, "webhooks": [
                {"name": "a", "clientConfig": {"caBundle": "UQ=="}, "admissionReviewVersions": ["v1"], "sideEffects": "None"},
                {"name": "b", "clientConfig": {}, "admissionReviewVersions": ["v1"], "sideEffects": "None"}]}))
            .unwrap();
        let patch = ca_bundle_patch(&policies, POLICIES, "Q").unwrap();
        assert_eq!(
            patch,
            json!({"apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingWebhookConfiguration",
                "metadata": {"name": POLICIES}, "webhooks": [
                    {"name": "a", "clientConfig": {"caBundle": "UQ=="}}, {"name": "b", "clientConfig": {"caBundle": "UQ=="}}]})
        );
        for hook in policies.webhooks.iter_mut().flatten() {
            hook.client_config.ca_bundle = Some(ByteString(b"Q".to_vec()));
        }
        assert!(ca_bundle_patch(&policies, POLICIES, "Q").is_none(), "nothing to write");
        let injector = MutatingWebhookConfiguration::default();
        assert!(ca_bundle_patch(&injector, INJECTOR, "Q").is_none(), "no webhook to tell");
    }
}
