//! The trust bundle: the roots of one trust domain, with a version.

use crate::{IdentityError, TrustDomain};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, TrustAnchor};
use std::sync::Arc;

/// More roots than any rotation needs; a bound for what a peer or file can make us hold.
const MAX_ROOTS: usize = 32;

/// The roots that vouch for the SVIDs of one trust domain. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TrustBundle {
    trust_domain: TrustDomain,
    version: u64,
    roots: Vec<CertificateDer<'static>>,
    anchors: Arc<[TrustAnchor<'static>]>,
}

impl PartialEq for TrustBundle {
    fn eq(&self, other: &Self) -> bool {
        self.trust_domain == other.trust_domain && self.version == other.version && self.roots == other.roots
    }
}

impl TrustBundle {
    /// A bundle of `roots` (DER) with the version that its sender gave it.
    ///
    /// # Errors
    /// [`IdentityError::Bundle`] when there is no root, too many, or one can't be read.
    pub fn new(
        trust_domain: TrustDomain,
        version: u64,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, IdentityError> {
        if roots.is_empty() || roots.len() > MAX_ROOTS {
            return Err(IdentityError::Bundle(format!("{} roots, not 1 to {MAX_ROOTS}", roots.len())));
        }
        let anchors = roots
            .iter()
            .map(|root| webpki::anchor_from_trusted_cert(root).map(|anchor| anchor.to_owned()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| IdentityError::Bundle(error.to_string()))?;
        Ok(Self { trust_domain, version, roots, anchors: anchors.into() })
    }

    /// A bundle whose version follows from its roots, see [`TrustBundle::content_version`].
    ///
    /// # Errors
    /// As [`TrustBundle::new`].
    pub fn from_roots(
        trust_domain: TrustDomain,
        roots: Vec<CertificateDer<'static>>,
    ) -> Result<Self, IdentityError> {
        let version = Self::content_version(&roots);
        Self::new(trust_domain, version, roots)
    }

    /// Reads a bundle from PEM, as it stands in the trust ConfigMap. Text around the certificates is ignored.
    ///
    /// # Errors
    /// [`IdentityError::Bundle`] when it holds no certificate or a broken one.
    pub fn from_pem(trust_domain: TrustDomain, pem: &str) -> Result<Self, IdentityError> {
        let roots = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| IdentityError::Bundle(error.to_string()))?;
        Self::from_roots(trust_domain, roots)
    }

    /// The bundle as PEM, one certificate after the other.
    #[must_use]
    pub fn to_pem(&self) -> String {
        crate::certificate::to_pem(&self.roots)
    }

    /// A version that follows from the roots alone, so that every operator says the same, and that grows with
    /// each step of a rotation: a newer root raises the upper part (its notBefore), dropping an old one the
    /// lower (255 less the number of roots).
    #[must_use]
    pub fn content_version(roots: &[CertificateDer<'_>]) -> u64 {
        let newest = roots.iter().filter_map(|root| crate::certificate::not_before(root)).max().unwrap_or(0);
        let count = u64::try_from(roots.len()).unwrap_or(255).min(255);
        (newest << 8) | (255 - count)
    }

    /// The roots, DER.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The version that orders bundles of one trust domain.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The trust domain that the roots speak for.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub(crate) fn anchors(&self) -> &Arc<[TrustAnchor<'static>]> {
        &self.anchors
    }
}
