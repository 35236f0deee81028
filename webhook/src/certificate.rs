//! The serving certificate and the probe key: the operator's leader writes the Secret `cinch-webhook-tls`,
//! we watch that one object and swap what connections are served with.

use crate::facts;
use crate::state::State;
use cinch_injection::ProbeKey;
use futures::{StreamExt, pin_mut};
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::watcher::{Config, Event};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::sync::Arc;

/// Name of the Secret, in the namespace of the installation.
pub const SECRET: &str = "cinch-webhook-tls";

/// What a review is served with; replaced as a whole.
pub struct Serving {
    /// For new connections.
    pub tls: Arc<ServerConfig>,
    /// For the MAC of probe paths.
    pub probe_key: ProbeKey,
}

/// Why a Secret can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A key of the Secret is not there.
    #[error("Secret {SECRET} has no {0}")]
    Missing(&'static str),
    /// A key of the Secret is no PEM of its kind.
    #[error("{0} of Secret {SECRET} can't be read: {1}")]
    Pem(&'static str, rustls_pki_types::pem::Error),
    /// Certificate and key don't serve.
    #[error("the certificate of Secret {SECRET} can't be served: {0}")]
    Tls(#[from] rustls::Error),
    /// The probe key is too short.
    #[error("probe.key of Secret {SECRET}: {0}")]
    ProbeKey(#[from] cinch_injection::ProbeKeyTooShort),
}

impl Serving {
    /// Reads the Secret's keys `tls.crt`, `tls.key` and `probe.key`.
    ///
    /// # Errors
    /// One is missing or can't be used.
    pub fn from_secret(secret: &Secret) -> Result<Self, CertificateError> {
        let bytes = |key: &'static str| {
            let data = secret.data.as_ref().and_then(|data| data.get(key));
            data.map(|bytes| bytes.0.as_slice())
                .filter(|b| !b.is_empty())
                .ok_or(CertificateError::Missing(key))
        };
        let chain = CertificateDer::pem_slice_iter(bytes("tls.crt")?)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| CertificateError::Pem("tls.crt", error))?;
        let key = PrivateKeyDer::from_pem_slice(bytes("tls.key")?)
            .map_err(|error| CertificateError::Pem("tls.key", error))?;
        let mut tls = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self { tls: Arc::new(tls), probe_key: ProbeKey::new(bytes("probe.key")?)? })
    }
}

/// Keeps `state.serving` as the Secret says. A Secret that is gone or can't be used changes nothing: the last
/// good one goes on serving.
pub async fn follow(client: Client, namespace: &str, state: Arc<State>) {
    let secrets = Api::<Secret>::namespaced(client, namespace);
    let config = Config::default().fields(&format!("metadata.name={SECRET}"));
    let stream = watcher(secrets, config).default_backoff();
    pin_mut!(stream);
    let mut failing = false;
    while let Some(event) = stream.next().await {
        match event {
            Ok(Event::Apply(secret) | Event::InitApply(secret)) => match Serving::from_secret(&secret) {
                Ok(serving) => {
                    tracing::info!(version = secret.metadata.resource_version, "serving certificate taken");
                    state.serve_with(serving);
                }
                Err(error) => {
                    state.metrics.certificate_failed();
                    tracing::error!(%error, "the serving certificate was not taken");
                }
            },
            Ok(Event::Delete(_)) => {
                tracing::warn!("Secret {SECRET} is gone; the last certificate goes on serving")
            }
            Ok(Event::Init) => {}
            Ok(Event::InitDone) => failing = false,
            Err(error) => {
                state.metrics.watch_failed("secrets");
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(error = %facts::error_chain(&error), "watch of Secret {SECRET} failed");
                }
            }
        }
    }
}
