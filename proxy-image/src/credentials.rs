//! The proxy's own certificate and what it trusts, as generations: in come certificates of the control plane or
//! of files, out goes the newest [`Credentials`] to everybody who watches.

use crate::context::Credentials;
use bytes::Bytes;
use cinch_control::v1;
use cinch_identity::{IdentityError, KeyPair, RecordLayer, SpiffeId, Svid, TrustBundle, TrustDomain};
use cinch_reason::Reason;
use rustls_pki_types::CertificateDer;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// A certificate or bundle that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// It breaks a rule of identities.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// It names somebody else.
    #[error("the certificate is for {given}, not for {own}")]
    Foreign {
        /// Who we are.
        own: SpiffeId,
        /// Who is in the certificate.
        given: SpiffeId,
    },
    /// There is no bundle, neither in the message nor from before.
    #[error("the certificate came without a trust bundle")]
    NoBundle,
    /// It is out of its validity.
    #[error("the certificate is out of its validity")]
    Expired,
}

impl CredentialError {
    /// The stable word.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Identity(error) => error.reason(),
            Self::Foreign { .. } => Reason::CertificateIdentity,
            Self::NoBundle => Reason::CertificateUntrusted,
            Self::Expired => Reason::CertificateExpired,
        }
    }
}

/// Seconds since 1970.
#[must_use]
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Whether the certificate has not yet ended.
#[must_use]
pub fn is_current(credentials: &Credentials) -> bool {
    credentials.svid.not_after() > unix_now()
}

/// Holds the credentials in force and tells watchers of new ones.
pub struct CredentialStore {
    sender: watch::Sender<Option<Arc<Credentials>>>,
    generation: AtomicU64,
    records: RecordLayer,
}

impl Default for CredentialStore {
    fn default() -> Self {
        Self::new(RecordLayer::default())
    }
}

impl CredentialStore {
    /// An empty store for tunnels whose records are sealed by `records`.
    #[must_use]
    pub fn new(records: RecordLayer) -> Self {
        Self { sender: watch::Sender::new(None), generation: AtomicU64::new(0), records }
    }

    /// A view that sees every change.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Option<Arc<Credentials>>> {
        self.sender.subscribe()
    }

    /// The credentials in force.
    #[must_use]
    pub fn current(&self) -> Option<Arc<Credentials>> {
        self.sender.borrow().clone()
    }

    /// Puts a new certificate in force.
    ///
    /// # Errors
    /// [`CredentialError`]; what was in force stays.
    pub fn install(&self, svid: Svid, bundle: TrustBundle) -> Result<(), CredentialError> {
        if svid.not_after() <= unix_now() {
            return Err(CredentialError::Expired);
        }
        let generation = self.generation.fetch_add(1, Ordering::Relaxed) + 1;
        self.publish(generation, Arc::new(svid), bundle)
    }

    /// Puts a new trust bundle in force beside the certificate that we have; without one there is nothing to do.
    ///
    /// # Errors
    /// [`CredentialError`]; what was in force stays.
    pub fn install_bundle(&self, bundle: TrustBundle) -> Result<(), CredentialError> {
        let Some(current) = self.current() else { return Ok(()) };
        if *current.bundle == bundle {
            // Every new generation costs the pool its tunnels.
            return Ok(());
        }
        self.publish(current.generation, current.svid.clone(), bundle)
    }

    fn publish(&self, generation: u64, svid: Arc<Svid>, bundle: TrustBundle) -> Result<(), CredentialError> {
        let records = self.records;
        let tunnel_server =
            cinch_identity::tunnel_server_config(&svid, &bundle, cinch_tunnel::ALPN, records)?;
        let bundle_version = bundle.version();
        let bundle = Arc::new(bundle);
        let credentials = Credentials { generation, bundle_version, svid, bundle, tunnel_server, records };
        self.sender.send_replace(Some(Arc::new(credentials)));
        Ok(())
    }
}

/// Reads a trust bundle of the control plane.
///
/// # Errors
/// [`CredentialError`], also when it is of another trust domain than ours.
pub fn bundle_from(message: v1::TrustBundle, own: &TrustDomain) -> Result<TrustBundle, CredentialError> {
    let trust_domain = TrustDomain::parse(&message.trust_domain)?;
    if trust_domain != *own {
        let text = format!("it is of {}, not of {}", trust_domain.as_str(), own.as_str());
        return Err(IdentityError::Bundle(text).into());
    }
    let roots = message.roots.into_iter().map(certificate).collect();
    Ok(TrustBundle::new(trust_domain, message.version, roots)?)
}

fn certificate(der: Bytes) -> CertificateDer<'static> {
    CertificateDer::from(Vec::from(der))
}

/// Joins a certificate of the control plane with the key that it was asked for with.
///
/// # Errors
/// [`CredentialError`], also when it names anybody but `own`.
pub fn svid_from(chain: Vec<Bytes>, key: KeyPair, own: &SpiffeId) -> Result<Svid, CredentialError> {
    let svid = Svid::new(chain.into_iter().map(certificate).collect(), key)?;
    if svid.id() != own {
        return Err(CredentialError::Foreign { own: own.clone(), given: svid.id().clone() });
    }
    Ok(svid)
}
