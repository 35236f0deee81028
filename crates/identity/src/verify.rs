//! Verification of a peer's chain: to the bundle by webpki (signatures, validity, usage, constraints), then
//! the one SPIFFE ID of the bundle's trust domain.

use crate::certificate::{not_after, read_leaf};
use crate::{IdentityError, Peer, SpiffeId, TrustBundle, provider};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::time::Duration;
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

/// A chain of ours has one intermediate, a user's own hierarchy two or three.
const MAX_INTERMEDIATES: usize = 6;
/// Certificates of ours have half a KiB each, those with RSA keys two. TLS itself lets a peer show 64 KiB.
const MAX_CHAIN: usize = 16 * 1024;

/// What the peer's certificate is used for in the handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Usage {
    /// The peer is the TLS server.
    Server,
    /// The peer is the TLS client.
    Client,
}

/// Verifies a chain (`end_entity`, then `intermediates`, DER) against the bundle at the time `now` and
/// returns the identity that it proves.
///
/// # Errors
/// [`IdentityError`]: expired, untrusted, no single SPIFFE ID, or one of another trust domain; also when it is longer
/// than any honest one.
pub fn verify_chain(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    now: UnixTime,
    usage: Usage,
) -> Result<SpiffeId, IdentityError> {
    verify_path(end_entity, intermediates, bundle, now, usage, |_| ()).map(|(id, ())| id)
}

/// As [`verify_chain`]; returns those of `intermediates` that the verification went through, from the leaf on. What
/// else a peer shows may be anything: only these need be kept to verify it again.
///
/// # Errors
/// As [`verify_chain`].
pub fn verified_issuers(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    now: UnixTime,
    usage: Usage,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let issuers = |path: &VerifiedPath<'_>| {
        path.intermediate_certificates().map(|issuer| issuer.der().into_owned()).collect::<Vec<_>>()
    };
    verify_path(end_entity, intermediates, bundle, now, usage, issuers).map(|(_, issuers)| issuers)
}

/// As [`verify_chain`]; `look` is shown the path.
fn verify_path<T>(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    now: UnixTime,
    usage: Usage,
    look: impl FnOnce(&VerifiedPath<'_>) -> T,
) -> Result<(SpiffeId, T), IdentityError> {
    if intermediates.len() > MAX_INTERMEDIATES {
        return Err(IdentityError::Untrusted(format!("it has over {MAX_INTERMEDIATES} intermediates")));
    }
    let bytes = intermediates.iter().fold(end_entity.len(), |bytes, issuer| bytes + issuer.len());
    if bytes > MAX_CHAIN {
        return Err(IdentityError::Untrusted(format!("its chain has over {MAX_CHAIN} bytes")));
    }
    let certificate = EndEntityCert::try_from(end_entity).map_err(chain_error)?;
    let usage = match usage {
        Usage::Server => KeyUsage::server_auth(),
        Usage::Client => KeyUsage::client_auth(),
    };
    let algorithms = provider().signature_verification_algorithms.all;
    let path = certificate
        .verify_for_usage(algorithms, bundle.anchors(), intermediates, now, usage, None, None)
        .map_err(chain_error)?;
    let id = read_leaf(end_entity)?.id;
    if id.trust_domain_str() != bundle.trust_domain().as_str() {
        return Err(IdentityError::ForeignTrustDomain {
            id: id.as_str().to_owned(),
            trust_domain: bundle.trust_domain().as_str().to_owned(),
        });
    }
    let looked = look(&path);
    Ok((id, looked))
}

/// As [`verify_chain`], for a connection whose handshake this chain has passed before and that is still open. What has
/// run out since then is judged as of the time when it had not: an open connection may outlive its certificates, but
/// not the roots that vouched for them.
///
/// # Errors
/// As [`verify_chain`].
pub fn verify_open_chain(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    bundle: &TrustBundle,
    now: UnixTime,
    usage: Usage,
) -> Result<SpiffeId, IdentityError> {
    let verify = |now| verify_chain(end_entity, intermediates, bundle, now, usage);
    let mut verified = verify(now);
    let shown = std::iter::once(end_entity).chain(intermediates);
    for end in shown.take(MAX_INTERMEDIATES + 1).filter_map(|der| not_after(der)) {
        if !matches!(verified, Err(IdentityError::Expired(_))) {
            break;
        }
        if end < now.as_secs() {
            verified = verify(UnixTime::since_unix_epoch(Duration::from_secs(end)));
        }
    }
    verified
}

fn chain_error(error: webpki::Error) -> IdentityError {
    use webpki::Error as E;
    match error {
        E::CertExpired { .. } | E::CertNotValidYet { .. } | E::InvalidCertValidity => {
            IdentityError::Expired(error.to_string())
        }
        E::CaUsedAsEndEntity => IdentityError::NotAnSvid("it is a CA"),
        other => IdentityError::Untrusted(other.to_string()),
    }
}

/// Both directions of the verification, for rustls.
#[derive(Debug)]
pub(crate) struct SvidVerifier {
    pub(crate) bundle: TrustBundle,
    pub(crate) peer: Peer,
    pub(crate) mandatory: bool,
    pub(crate) algorithms: WebPkiSupportedAlgorithms,
}

impl SvidVerifier {
    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        usage: Usage,
    ) -> Result<(), Error> {
        let actual = verify_chain(end_entity, intermediates, &self.bundle, now, usage)?;
        match &self.peer {
            Peer::Exactly(expected) if *expected != actual => Err(IdentityError::WrongPeer {
                expected: expected.as_str().to_owned(),
                actual: actual.as_str().to_owned(),
            }
            .into()),
            Peer::Exactly(_) | Peer::AnyInTrustDomain => Ok(()),
        }
    }
}

fn no_tls12() -> Error {
    Error::PeerIncompatible(rustls::PeerIncompatible::ServerDoesNotSupportTls12Or13)
}

impl ServerCertVerifier for SvidVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, intermediates, now, Usage::Server)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for SvidVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(end_entity, intermediates, now, Usage::Client)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
