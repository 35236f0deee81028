//! The one error of this crate, and how to get it back out of a failed TLS handshake.

use cinch_reason::Reason;
use std::sync::Arc;

/// Why an identity, certificate, key or request was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The text is no SPIFFE ID or trust domain.
    #[error("{id:?} is no SPIFFE ID: {why}")]
    SpiffeId {
        /// What was given, cut to a readable length.
        id: String,
        /// The rule that it breaks.
        why: &'static str,
    },
    /// The certificate does not hold exactly one usable SPIFFE ID, or may sign certificates.
    #[error("the certificate is no X.509-SVID: {0}")]
    NotAnSvid(&'static str),
    /// The SPIFFE ID is of another trust domain than the bundle.
    #[error("{id} is not of the trust domain {trust_domain}")]
    ForeignTrustDomain {
        /// The ID in the certificate.
        id: SpiffeIdText,
        /// The trust domain of the bundle.
        trust_domain: String,
    },
    /// The peer proved another identity than the one it was dialled for.
    #[error("the peer is {actual}, not {expected}")]
    WrongPeer {
        /// The identity that was asked for.
        expected: SpiffeIdText,
        /// The identity in the certificate.
        actual: SpiffeIdText,
    },
    /// The certificate is expired or not yet valid.
    #[error("the certificate is out of its validity: {0}")]
    Expired(String),
    /// The certificate does not chain to the trust bundle.
    #[error("the certificate does not chain to the trust bundle: {0}")]
    Untrusted(String),
    /// The peer showed no certificate.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// The request can't be read, or its signature does not hold.
    #[error("the certificate request is invalid: {0}")]
    Csr(&'static str),
    /// The key of the request is not an uncompressed P-256 point.
    #[error("the key of the certificate request is not P-256")]
    CsrKey,
    /// A private key can't be made or read, or does not belong to the certificate.
    #[error("the private key can not be used: {0}")]
    Key(String),
    /// A trust bundle without roots, or with one that can't be read.
    #[error("the trust bundle can not be used: {0}")]
    Bundle(String),
    /// The TLS configuration could not be built.
    #[error("the TLS configuration can not be built: {0}")]
    Tls(String),
    /// The peer did not agree to the application protocol.
    #[error("the peer does not speak {0}")]
    Alpn(String),
}

/// A SPIFFE ID as text in an error.
pub type SpiffeIdText = String;

impl IdentityError {
    /// The word for it in metrics, logs and refusals.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::SpiffeId { .. } | Self::NotAnSvid(_) => Reason::CertificateIdentity,
            Self::WrongPeer { .. } => Reason::PeerIdentityMismatch,
            Self::Expired(_) => Reason::CertificateExpired,
            Self::Csr(_) => Reason::CsrInvalid,
            Self::CsrKey => Reason::CsrKey,
            Self::ForeignTrustDomain { .. }
            | Self::Untrusted(_)
            | Self::NoCertificate
            | Self::Key(_)
            | Self::Bundle(_)
            | Self::Tls(_)
            | Self::Alpn(_) => Reason::CertificateUntrusted,
        }
    }
}

impl From<IdentityError> for rustls::Error {
    fn from(error: IdentityError) -> Self {
        let other = rustls::OtherError(Arc::new(error));
        rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other))
    }
}

/// The reason of a failed TLS handshake, where it was a verifier of this crate that refused.
///
/// Takes the `io::Error` of tokio-rustls; `None` for anything else, such as a broken connection or a refusal
/// by the peer.
#[must_use]
pub fn handshake_reason(error: &std::io::Error) -> Option<Reason> {
    let tls = error.get_ref()?.downcast_ref::<rustls::Error>()?;
    match tls {
        rustls::Error::InvalidCertificate(rustls::CertificateError::Other(other)) => {
            other.0.downcast_ref::<IdentityError>().map(IdentityError::reason)
        }
        rustls::Error::NoCertificatesPresented => Some(Reason::CertificateUntrusted),
        _ => None,
    }
}
