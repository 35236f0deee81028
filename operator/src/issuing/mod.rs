//! Certificates for workloads: a token and a certificate request go in, a chain or a [`Refusal`] comes out,
//! each with a counter and an audit line.
//!
//! The token is only a pointer: what counts is the live pod that it is bound to ([`claims`]). Nothing of the
//! request but its public key is used.

pub mod claims;
pub mod cluster;
pub mod unproved;
pub mod wire;

use crate::ca::sign::unix_now;
use crate::ca::{CertificateAuthority, Issued};
use crate::metrics::{IssueKind, Metrics};
use cinch_control::v1;
use cinch_identity::{SpiffeId, VerifiedCsr};
use cinch_places::{Pace, RateLimit};
use cinch_reason::Reason;
use claims::{Claims, Rules, Source};
use cluster::Cluster;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tracing::{info, warn};
use unproved::Pods;

/// Reviews in flight; more would only load the API server.
const CONCURRENT: usize = 16;
/// How long a request waits for its turn.
const PATIENCE: Duration = Duration::from_secs(3);
/// A proxy that restarts a few times is no attacker.
const OF_A_POD: Pace = Pace { burst: 5, refill: Duration::from_secs(10) };
/// A real token has about 1,200 bytes.
const MAX_TOKEN: usize = 8 * 1024;
/// One Event for each pod and reason within this time.
const EVENT_EVERY: Duration = Duration::from_secs(60);
/// Pods in the table of Events.
const EVENT_PODS: usize = 1000;

/// Why no certificate was issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The word that the proxy gets.
    pub reason: Reason,
    /// For the log and the Event; the proxy gets it too, it is about its own pod.
    pub detail: String,
    /// Not to be asked again earlier.
    pub retry_after: Duration,
}

impl Refusal {
    /// A refusal that the proxy may retry as usual.
    #[must_use]
    pub fn new(reason: Reason, detail: &str) -> Self {
        Self { reason, detail: detail.chars().take(200).collect(), retry_after: Duration::ZERO }
    }

    /// As a message.
    #[must_use]
    pub fn message(&self) -> v1::Refused {
        v1::Refused {
            reason: self.reason.as_str().to_owned(),
            message: self.reason.message_with(&self.detail),
            retry_after_ms: u64::try_from(self.retry_after.as_millis()).unwrap_or(u64::MAX),
        }
    }
}

fn overloaded(detail: &str) -> Refusal {
    Refusal { retry_after: Duration::from_secs(2), ..Refusal::new(Reason::Overloaded, detail) }
}

/// Who a renewal is for: the identity of the stream and its pod.
#[derive(Debug, Clone)]
pub struct Holder<'a> {
    /// From the certificate of the stream.
    pub id: &'a SpiffeId,
    /// The pod that the stream is bound to.
    pub pod_uid: &'a str,
}

/// Issues to workloads.
pub struct Issuing {
    cluster: Arc<dyn Cluster>,
    authority: CertificateAuthority,
    rules: Rules,
    metrics: Metrics,
    places: Semaphore,
    rate: Mutex<RateLimit<String>>,
    events: Mutex<HashMap<(String, Reason), Instant>>,
}

impl Issuing {
    /// By `rules`, signed by `authority`.
    #[must_use]
    pub fn new(
        cluster: Arc<dyn Cluster>,
        authority: CertificateAuthority,
        rules: Rules,
        metrics: Metrics,
    ) -> Self {
        Self {
            cluster,
            authority,
            rules,
            metrics,
            places: Semaphore::new(CONCURRENT),
            rate: Mutex::new(RateLimit::new(OF_A_POD)),
            events: Mutex::default(),
        }
    }

    /// The first certificate of a pod of `pods`, by its token.
    ///
    /// # Errors
    /// [`Refusal`], counted and logged.
    pub async fn first(
        &self,
        request: &v1::FirstCertificate,
        source: &Source,
        pods: Pods<'_>,
    ) -> Result<v1::Certificate, Refusal> {
        let result = self.try_first(request, source, pods).await;
        if let Err(refusal) = &result {
            self.metrics.refused(refusal.reason);
            warn!(target: "audit", peer = %source.ip, reason = %refusal.reason, detail = refusal.detail, "refused a first certificate");
        }
        result
    }

    async fn try_first(
        &self,
        request: &v1::FirstCertificate,
        source: &Source,
        pods: Pods<'_>,
    ) -> Result<v1::Certificate, Refusal> {
        if request.token.is_empty() || request.token.len() > MAX_TOKEN {
            return Err(Refusal::new(Reason::TokenRejected, "the token is empty or too long"));
        }
        unproved::judge(&request.token, source, unix_now(), pods)?;
        let csr = verify(&request.csr)?;
        let place = tokio::time::timeout(PATIENCE, self.places.acquire()).await;
        let Ok(Ok(_place)) = place else { return Err(overloaded("too many first certificates at once")) };
        let review = self.cluster.review(&request.token).await.map_err(|error| api_fault(&error))?;
        let claims = Claims::of(&review)?;
        self.limit(&claims.pod_uid)?;
        let pod =
            self.cluster.pod(&claims.namespace, &claims.pod_name).await.map_err(|error| api_fault(&error))?;
        let pod = pod.ok_or_else(|| Refusal::new(Reason::PodMismatch, "the pod is gone"))?;
        let namespace = self.cluster.namespace(&claims.namespace).await.map_err(|error| api_fault(&error))?;
        let namespace =
            namespace.ok_or_else(|| Refusal::new(Reason::PodMismatch, "the namespace is gone"))?;
        match self.rules.identity(&claims, source, &pod, &namespace) {
            Ok(id) => self.issue(&csr, &id, &claims.pod_uid, IssueKind::First),
            Err(refusal) => {
                self.warn(&pod, &claims, &refusal).await;
                Err(refusal)
            }
        }
    }

    /// The next certificate of a pod, over its stream. The caller has checked that the pod still exists.
    ///
    /// # Errors
    /// [`Refusal`], counted and logged.
    pub fn renew(&self, request: &v1::Renew, holder: &Holder<'_>) -> Result<v1::Certificate, Refusal> {
        let result = verify(&request.csr).and_then(|csr| {
            self.limit(holder.pod_uid)?;
            self.issue(&csr, holder.id, holder.pod_uid, IssueKind::Renewal)
        });
        if let Err(refusal) = &result {
            self.metrics.refused(refusal.reason);
            warn!(target: "audit", id = %holder.id, pod_uid = holder.pod_uid, reason = %refusal.reason, detail = refusal.detail, "refused a renewal");
        }
        result
    }

    fn issue(
        &self,
        csr: &VerifiedCsr,
        id: &SpiffeId,
        pod_uid: &str,
        kind: IssueKind,
    ) -> Result<v1::Certificate, Refusal> {
        let issued: Issued = self
            .authority
            .issuer()
            .issue(csr, id)
            .map_err(|error| overloaded(&format!("the issuer can not sign: {error:#}")))?;
        self.metrics.issued(kind);
        let serial = issued.serial.as_str();
        info!(target: "audit", kind = kind.as_str(), %id, pod_uid, serial, not_after = issued.validity.not_after, "issued a certificate");
        Ok(wire::certificate(&issued, &self.authority.bundle()))
    }

    fn limit(&self, pod_uid: &str) -> Result<(), Refusal> {
        self.rate.lock().take(&pod_uid.to_owned(), Instant::now()).map_err(|wait| Refusal {
            retry_after: wait,
            ..Refusal::new(Reason::IssueRateLimited, "a burst of 5, then one each 10 s")
        })
    }

    /// The pod's owner sees in its Events why it does not start.
    async fn warn(&self, pod: &Pod, claims: &Claims, refusal: &Refusal) {
        let now = Instant::now();
        {
            let mut events = self.events.lock();
            events.retain(|_, at| now.saturating_duration_since(*at) < EVENT_EVERY);
            let key = (claims.pod_uid.clone(), refusal.reason);
            if events.contains_key(&key) || events.len() >= EVENT_PODS {
                return;
            }
            events.insert(key, now);
        }
        let note = refusal.reason.message_with(&refusal.detail);
        self.cluster.warn(pod, refusal.reason.as_str(), note).await;
    }
}

fn verify(csr: &[u8]) -> Result<VerifiedCsr, Refusal> {
    VerifiedCsr::verify(csr).map_err(|error| Refusal::new(error.reason(), &error.to_string()))
}

/// The proxy learns only that it has to wait; what the API server said is for our log.
fn api_fault(error: &anyhow::Error) -> Refusal {
    warn!(error = format!("{error:#}"), "the API server could not be asked about a pod");
    overloaded("the API server could not be asked")
}

#[cfg(test)]
pub(crate) mod tests;
