//! Why an attempt to speak with the operator failed.

use crate::credentials::CredentialError;
use cinch_control::{FrameError, v1};
use cinch_identity::{IdentityError, handshake_reason};
use cinch_reason::Reason;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// Why an attempt to speak with the operator failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No TCP connection, or it broke.
    #[error("operator {operator}: {source}")]
    Network {
        /// Who was dialled.
        operator: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// One of the two does not trust the other.
    #[error("operator {operator}: {}", plain(source))]
    Handshake {
        /// Who was dialled.
        operator: SocketAddr,
        /// What TLS says.
        source: io::Error,
    },
    /// The operator did not answer in time.
    #[error("the operator did not answer {0} in time")]
    Silent(&'static str),
    /// The operator closed the connection.
    #[error("operator {0}: it closed the connection")]
    Closed(SocketAddr),
    /// The operator said no.
    #[error("the operator refused: {}", .0.message)]
    Refused(v1::Refused),
    /// Bytes that are no message.
    #[error("the operator's message: {0}")]
    Frame(#[from] FrameError),
    /// A message that has no place there.
    #[error("the operator sent {0}")]
    Unexpected(&'static str),
    /// The projected token can't be read.
    #[error("{path}: {source}")]
    Token {
        /// The file.
        path: String,
        /// The system's error.
        source: io::Error,
    },
    /// A certificate or bundle that can't be used.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
}

/// The verifier's own sentence, where it was ours that refused: rustls would show how it is made.
fn plain(error: &io::Error) -> String {
    use rustls::{CertificateError, Error};
    match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(CertificateError::Other(other))) => other.0.to_string(),
        _ => error.to_string(),
    }
}

impl From<IdentityError> for ControlError {
    fn from(error: IdentityError) -> Self {
        Self::Credentials(error.into())
    }
}

impl ControlError {
    /// An error of an open connection: TLS alerts come as data errors.
    pub(super) fn of_connection(operator: SocketAddr, source: io::Error) -> Self {
        let tls = source.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
        if tls { Self::Handshake { operator, source } } else { Self::Network { operator, source } }
    }

    /// The stable word.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Refused(refused) => refused.reason.parse().unwrap_or(Reason::ControlUnreachable),
            Self::Handshake { source, .. } => {
                handshake_reason(source).unwrap_or(Reason::CertificateUntrusted)
            }
            Self::Credentials(error) => error.reason(),
            Self::Network { .. }
            | Self::Silent(_)
            | Self::Closed(_)
            | Self::Frame(_)
            | Self::Unexpected(_)
            | Self::Token { .. } => Reason::ControlUnreachable,
        }
    }

    /// How long the operator wants to be left alone.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        match self {
            Self::Refused(refused) => Duration::from_millis(refused.retry_after_ms),
            _ => Duration::ZERO,
        }
    }

    /// Whether another certificate or bundle could help.
    #[must_use]
    pub fn is_about_trust(&self) -> bool {
        matches!(self, Self::Handshake { .. })
    }
}
