//! What a leaf certificate says: its one SPIFFE ID, its validity, its key; and the SVID as we hold it.

use crate::{IdentityError, KeyPair, SpiffeId};
use base64::Engine;
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use std::fmt;
use std::sync::Arc;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// What was read from a leaf.
pub(crate) struct Leaf {
    pub(crate) id: SpiffeId,
    pub(crate) not_before: u64,
    pub(crate) not_after: u64,
    pub(crate) public_key: Vec<u8>,
}

fn parse(der: &[u8]) -> Result<X509Certificate<'_>, IdentityError> {
    let (rest, certificate) =
        X509Certificate::from_der(der).map_err(|_| IdentityError::NotAnSvid("it is no X.509 certificate"))?;
    if !rest.is_empty() {
        return Err(IdentityError::NotAnSvid("bytes follow the certificate"));
    }
    Ok(certificate)
}

/// Reads a leaf by the rules of the X.509-SVID standard: exactly one URI, which is a SPIFFE ID, no authority
/// to sign. The chain and the time are the verifier's business.
pub(crate) fn read_leaf(der: &[u8]) -> Result<Leaf, IdentityError> {
    let certificate = parse(der)?;
    check_no_authority(&certificate)?;
    let names = certificate
        .subject_alternative_name()
        .map_err(|_| IdentityError::NotAnSvid("its subjectAltName can not be read"))?
        .ok_or(IdentityError::NotAnSvid("it has no subjectAltName"))?;
    let mut uri = None;
    for name in &names.value.general_names {
        match name {
            GeneralName::URI(text) if uri.is_none() => uri = Some(*text),
            GeneralName::URI(_) => return Err(IdentityError::NotAnSvid("it has more than one URI")),
            // It could be a URI that another reader would accept.
            GeneralName::Invalid(..) => return Err(IdentityError::NotAnSvid("a name in it is malformed")),
            _ => {}
        }
    }
    let id = SpiffeId::parse(uri.ok_or(IdentityError::NotAnSvid("it has no URI"))?)?;
    let validity = certificate.validity();
    Ok(Leaf {
        id,
        not_before: seconds(validity.not_before.timestamp()),
        not_after: seconds(validity.not_after.timestamp()),
        public_key: certificate.public_key().subject_public_key.data.to_vec(),
    })
}

fn check_no_authority(certificate: &X509Certificate<'_>) -> Result<(), IdentityError> {
    let constraints = certificate
        .basic_constraints()
        .map_err(|_| IdentityError::NotAnSvid("its basicConstraints can not be read"))?;
    if constraints.is_some_and(|constraints| constraints.value.ca) {
        return Err(IdentityError::NotAnSvid("it is a CA"));
    }
    let usage =
        certificate.key_usage().map_err(|_| IdentityError::NotAnSvid("its keyUsage can not be read"))?;
    if usage.is_some_and(|usage| usage.value.key_cert_sign() || usage.value.crl_sign()) {
        return Err(IdentityError::NotAnSvid("its key may sign certificates"));
    }
    Ok(())
}

fn seconds(timestamp: i64) -> u64 {
    u64::try_from(timestamp).unwrap_or(0)
}

/// When a certificate becomes valid, in seconds since 1970.
pub(crate) fn not_before(der: &[u8]) -> Option<u64> {
    parse(der).ok().map(|certificate| seconds(certificate.validity().not_before.timestamp()))
}

/// When a certificate ends, in seconds since 1970.
pub(crate) fn not_after(der: &[u8]) -> Option<u64> {
    parse(der).ok().map(|certificate| seconds(certificate.validity().not_after.timestamp()))
}

/// Certificates as PEM blocks, one after the other.
#[must_use]
pub fn to_pem(certificates: &[CertificateDer<'_>]) -> String {
    let mut out = String::new();
    for certificate in certificates {
        let text = base64::engine::general_purpose::STANDARD.encode(certificate);
        out.push_str("-----BEGIN CERTIFICATE-----\n");
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (line, after) = rest.split_at(rest.len().min(64));
            out.push_str(line);
            out.push('\n');
            rest = after;
        }
        out.push_str("-----END CERTIFICATE-----\n");
    }
    out
}

/// The identity of the peer of a finished handshake, from its certificate chain (leaf first). It is only as
/// good as the verification of that handshake.
///
/// # Errors
/// [`IdentityError::NoCertificate`] when the peer showed none; [`IdentityError::NotAnSvid`] when the leaf
/// holds no single SPIFFE ID.
pub fn peer_id(certs: Option<&[CertificateDer<'_>]>) -> Result<SpiffeId, IdentityError> {
    let leaf = certs.and_then(<[_]>::first).ok_or(IdentityError::NoCertificate)?;
    Ok(read_leaf(leaf)?.id)
}

/// When the certificate of the peer of a finished handshake ends, in seconds since 1970.
///
/// # Errors
/// As [`peer_id`].
pub fn peer_not_after(certs: Option<&[CertificateDer<'_>]>) -> Result<u64, IdentityError> {
    let leaf = certs.and_then(<[_]>::first).ok_or(IdentityError::NoCertificate)?;
    Ok(read_leaf(leaf)?.not_after)
}

/// A certificate chain with its private key, ready to be shown in handshakes. Cheap to clone.
#[derive(Clone)]
pub struct Svid {
    id: SpiffeId,
    not_before: u64,
    not_after: u64,
    certified: Arc<CertifiedKey>,
}

impl Svid {
    /// Joins a chain (DER, leaf first, without the root) and the key of its leaf.
    ///
    /// # Errors
    /// [`IdentityError::NotAnSvid`] when the leaf is a CA or does not hold exactly one SPIFFE ID,
    /// [`IdentityError::Key`] when the key is not the leaf's.
    pub fn new(chain: Vec<CertificateDer<'static>>, key: KeyPair) -> Result<Self, IdentityError> {
        let leaf = read_leaf(chain.first().ok_or(IdentityError::NoCertificate)?)?;
        if leaf.public_key != key.public_key() {
            return Err(IdentityError::Key("it is not the key of the certificate".to_owned()));
        }
        let signer =
            any_ecdsa_type(&key.private_der()).map_err(|error| IdentityError::Key(error.to_string()))?;
        Ok(Self {
            id: leaf.id,
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            certified: Arc::new(CertifiedKey::new(chain, signer)),
        })
    }

    /// The SPIFFE ID.
    #[must_use]
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// When it becomes valid, in seconds since 1970.
    #[must_use]
    pub fn not_before(&self) -> u64 {
        self.not_before
    }

    /// When it ends, in seconds since 1970.
    #[must_use]
    pub fn not_after(&self) -> u64 {
        self.not_after
    }

    /// The certificates, leaf first, DER.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.certified.cert
    }

    pub(crate) fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("id", &self.id)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}
