//! The client of the operator: the first certificate, then one stream for policy, records and evidence.
//!
//! In come the trust files, the token and what the operator says; out go credentials, policy, mesh and records
//! to their holders, and acknowledgements, subscriptions and evidence to the operator. Whatever was received
//! stays in force while the operator is away.

mod backoff;
mod connection;
mod error;
mod missing_keys;
mod session;
pub mod trust;

use crate::context::InboundPolicy;
use crate::credentials::{self, CredentialStore, is_current};
use crate::discovery::RecordCache;
use crate::evidence::Evidence;
use crate::health::Readiness;
use crate::http_filter::UnknownKeys;
use crate::metrics::ControlMetrics;
use crate::settings::PodSettings;
use backoff::Backoff;
use cinch_control::v1;
use cinch_identity::{KeyPair, Peer, Svid, TrustBundle};
use connection::Connection;
pub use error::ControlError;
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trust::Trust;
use v1::operator_message::Kind as FromOperator;
use v1::proxy_message::Kind as ToOperator;

/// A stream that stood so long was a good one: the next attempt begins without delay.
const STEADY: Duration = Duration::from_secs(10);
/// How long a stream may take over its last report before the process ends all the same.
const FAREWELL: Duration = Duration::from_secs(2);
/// From the request to the certificate: the operator asks the API server in between.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(10);
/// Whatever the operator says, certificates are not renewed in a hot loop.
const SOONEST_RENEWAL: Duration = Duration::from_secs(1);
/// So many failed handshakes in a row, and the certificate itself is taken to be the trouble.
const DISTRUST: u32 = 3;

/// What the client writes to and reads from; shared with the rest of the control side.
pub struct Control {
    /// Who we are and whom we trust to tell.
    pub settings: PodSettings,
    /// Own certificate.
    pub credentials: CredentialStore,
    /// Inbound policy in force.
    pub policy: watch::Sender<Option<Arc<InboundPolicy>>>,
    /// The version of the policy by which live connections have been judged ([`crate::live::Live::judged`]).
    pub judged: watch::Receiver<u64>,
    /// Records of destinations.
    pub records: Arc<RecordCache>,
    /// What is reported.
    pub evidence: Arc<Evidence>,
    /// Keys that tokens name and no key set holds: the operator is asked for them.
    pub unknown_keys: Arc<UnknownKeys>,
    /// Told when the pod's addresses are indexed.
    pub readiness: Arc<Readiness>,
    /// How often to report and to prove the redirect.
    pub interval: watch::Sender<Duration>,
    /// Counters.
    pub metrics: ControlMetrics,
    /// Why the last attempt failed, in plain words.
    pub last_error: Mutex<Option<String>>,
    /// Cancelled when all connections have ended: the last report goes out and the stream is closed.
    pub finish: CancellationToken,
}

/// When the certificate should be renewed; kept from stream to stream.
struct Renewal {
    at: Instant,
}

impl Control {
    /// Runs until [`Control::finish`] is cancelled.
    pub async fn run(&self, trust: watch::Receiver<Option<Arc<Trust>>>) {
        tokio::select! {
            () = self.keep_connected(trust) => {}
            () = missing_keys::give_up(&self.policy) => {}
        }
    }

    async fn keep_connected(&self, mut trust: watch::Receiver<Option<Arc<Trust>>>) {
        let mut backoff = Backoff::default();
        let mut renewal = Renewal { at: Instant::now() };
        let mut distrusted = 0;
        loop {
            let trusted = tokio::select! {
                trusted = current_trust(&mut trust) => trusted,
                () = self.finish.cancelled() => return,
            };
            let begin = Instant::now();
            let attempt = self.attempt(&trusted, &mut renewal, distrusted);
            let Some(attempt) = self.unless_finished(attempt).await else { return };
            self.metrics.connected.set(0);
            let error = match attempt {
                Ok(Step::Certificate) => {
                    distrusted = 0;
                    continue;
                }
                Ok(Step::Finished) => return,
                Err(error) => error,
            };
            distrusted = if error.is_about_trust() { distrusted + 1 } else { 0 };
            if begin.elapsed() >= STEADY {
                backoff = Backoff::default();
            }
            let pause = backoff.next(error.retry_after());
            self.metrics.failures.inc();
            tracing::warn!(reason = %error.reason(), %error, pause = ?pause, "control");
            *self.last_error.lock() = Some(error.reason().message_with(&error.to_string()));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.finish.cancelled() => return,
            }
        }
    }

    /// The result of `attempt`; `None` when the process ends and there is no stream to report to, or the stream
    /// takes too long over it.
    async fn unless_finished<T>(&self, attempt: impl Future<Output = T>) -> Option<T> {
        tokio::pin!(attempt);
        tokio::select! {
            done = &mut attempt => return Some(done),
            () = self.finish.cancelled() => {}
        }
        if self.metrics.connected.get() == 0 {
            return None;
        }
        tokio::time::timeout(FAREWELL, attempt).await.ok()
    }

    /// One connection: for the first certificate when there is none that could open a stream, else a stream.
    async fn attempt(
        &self,
        trust: &Trust,
        renewal: &mut Renewal,
        distrusted: u32,
    ) -> Result<Step, ControlError> {
        match self.credentials.current().filter(|held| is_current(held)) {
            Some(held) if distrusted < DISTRUST => {
                // The mounted bundle is the older one during a rotation, the stream's during a restore.
                let bundle = if distrusted.is_multiple_of(2) { &*held.bundle } else { &trust.bundle };
                let connection = self.connect(trust, Some(&held.svid), bundle).await?;
                self.session(connection, renewal).await?;
                Ok(Step::Finished)
            }
            _ => {
                self.first_certificate(trust, renewal).await?;
                Ok(Step::Certificate)
            }
        }
    }

    async fn connect(
        &self,
        trust: &Trust,
        svid: Option<&Svid>,
        bundle: &TrustBundle,
    ) -> Result<Connection, ControlError> {
        let peer = Peer::Exactly(self.settings.operator.clone());
        let config = cinch_identity::client_config(svid, bundle, peer, &[cinch_control::ALPN])?;
        Connection::open(trust.operator, config).await
    }

    async fn first_certificate(&self, trust: &Trust, renewal: &mut Renewal) -> Result<(), ControlError> {
        let path = &self.settings.token_file;
        let token = tokio::fs::read_to_string(path)
            .await
            .map_err(|source| ControlError::Token { path: path.display().to_string(), source })?;
        let key = KeyPair::generate()?;
        let request = v1::FirstCertificate { token: token.trim().to_owned(), csr: key.csr()?.into() };
        let mut connection = self.connect(trust, None, &trust.bundle).await?;
        connection.send(ToOperator::FirstCertificate(request)).await?;
        let answer = tokio::time::timeout(ISSUE_TIMEOUT, connection.receive())
            .await
            .map_err(|_| ControlError::Silent("the request for a certificate"))??;
        match answer {
            FromOperator::Certificate(certificate) => self.take_certificate(certificate, key, renewal),
            FromOperator::Refused(refused) => Err(ControlError::Refused(refused)),
            _ => Err(ControlError::Unexpected("another message than a certificate")),
        }
    }

    /// Puts a certificate of the operator in force.
    fn take_certificate(
        &self,
        message: v1::Certificate,
        key: KeyPair,
        renewal: &mut Renewal,
    ) -> Result<(), ControlError> {
        let svid = credentials::svid_from(message.chain, key, &self.settings.identity)?;
        let bundle = match (message.trust_bundle, self.credentials.current()) {
            (Some(bundle), _) => credentials::bundle_from(bundle, &self.settings.trust_domain)?,
            (None, Some(held)) => (*held.bundle).clone(),
            (None, None) => return Err(credentials::CredentialError::NoBundle.into()),
        };
        let not_after = svid.not_after();
        self.credentials.install(svid, bundle)?;
        let renew_in = Duration::from_millis(message.renew_in_ms.min(message.expires_in_ms));
        renewal.at = Instant::now() + renew_in.max(SOONEST_RENEWAL);
        self.metrics.certificates.inc();
        self.metrics.certificate_expiry.set(i64::try_from(not_after).unwrap_or(i64::MAX));
        tracing::info!(id = %self.settings.identity.as_str(), not_after, "certificate received");
        Ok(())
    }
}

enum Step {
    /// A certificate is there; the stream comes next.
    Certificate,
    /// The last report is out.
    Finished,
}

/// What the trust files say, once they do.
async fn current_trust(trust: &mut watch::Receiver<Option<Arc<Trust>>>) -> Arc<Trust> {
    let found = trust.wait_for(Option::is_some).await.ok().and_then(|found| found.clone());
    match found {
        Some(trust) => trust,
        // The watcher of the files lives as long as the process.
        None => std::future::pending().await,
    }
}
