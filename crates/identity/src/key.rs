//! Key pairs and certificate requests: what a workload makes, and what an issuer takes from it.

use crate::IdentityError;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rcgen::PublicKeyData;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::fmt;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

/// Largest request that is looked at, in bytes: ours have about 250.
pub const MAX_CSR: usize = 8 * 1024;

const ECDSA_WITH_SHA256: &str = "1.2.840.10045.4.3.2";
const EC_PUBLIC_KEY: &str = "1.2.840.10045.2.1";
const PRIME256V1: &str = "1.2.840.10045.3.1.7";

/// A P-256 key pair that lives in memory only.
pub struct KeyPair(rcgen::KeyPair);

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyPair([redacted])")
    }
}

impl KeyPair {
    /// Makes a fresh key.
    ///
    /// # Errors
    /// [`IdentityError::Key`] when the system gives no randomness.
    pub fn generate() -> Result<Self, IdentityError> {
        rcgen::KeyPair::generate().map(Self).map_err(|error| IdentityError::Key(error.to_string()))
    }

    /// Reads a P-256 key from PEM: PKCS#8 or SEC 1.
    ///
    /// # Errors
    /// [`IdentityError::Key`] when it can't be read or is of another kind.
    pub fn from_pem(pem: &str) -> Result<Self, IdentityError> {
        // The parser's own message could quote what it read.
        let key = rcgen::KeyPair::from_pem(pem)
            .map_err(|_| IdentityError::Key("it is no PEM private key".to_owned()))?;
        if key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(IdentityError::Key("it is not a P-256 key".to_owned()));
        }
        Ok(Self(key))
    }

    /// A PKCS#10 request for this key, DER. It names nothing: the issuer decides what the certificate says.
    ///
    /// # Errors
    /// [`IdentityError::Key`] when signing fails.
    pub fn csr(&self) -> Result<Vec<u8>, IdentityError> {
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let csr = params.serialize_request(&self.0).map_err(|error| IdentityError::Key(error.to_string()))?;
        Ok(csr.der().to_vec())
    }

    /// The public key, an uncompressed point of 65 bytes.
    #[must_use]
    pub fn public_key(&self) -> &[u8] {
        self.0.public_key_raw()
    }

    pub(crate) fn private_der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.0.serialize_der()))
    }
}

/// The public key of a certificate request whose signature holds. Nothing else of a request is kept, so that
/// no name and no flag could reach a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedCsr {
    public_key: Vec<u8>,
}

impl VerifiedCsr {
    /// Reads a PKCS#10 request (DER, RFC 2986), at most [`MAX_CSR`] bytes, with an ECDSA P-256 key, an
    /// ECDSA-SHA256 signature by that key, no subject and no attributes: the issuer decides what a certificate
    /// says, and who asks for a name, a flag or a usage is told so, not given less than they asked for.
    ///
    /// # Errors
    /// [`IdentityError::Csr`] when it can't be read, asks for more than a key's certificate, or the signature
    /// does not hold, [`IdentityError::CsrKey`] when the key is of another kind.
    pub fn verify(der: &[u8]) -> Result<Self, IdentityError> {
        if der.len() > MAX_CSR {
            return Err(IdentityError::Csr("it is over 8 KiB"));
        }
        let (rest, csr) = X509CertificationRequest::from_der(der)
            .map_err(|_| IdentityError::Csr("it is no PKCS#10 request"))?;
        if !rest.is_empty() {
            return Err(IdentityError::Csr("bytes follow the request"));
        }
        let info = &csr.certification_request_info;
        if info.subject.iter().next().is_some() || !info.attributes().is_empty() {
            return Err(IdentityError::Csr(
                "it asks for a name or an extension, which are not for it to choose",
            ));
        }
        let algorithm = &info.subject_pki.algorithm;
        let curve = algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok());
        let is_p256 = algorithm.algorithm.to_id_string() == EC_PUBLIC_KEY
            && curve.is_some_and(|oid| oid.to_id_string() == PRIME256V1);
        let public_key = info.subject_pki.subject_public_key.data.as_ref();
        if !is_p256 || public_key.len() != 65 || public_key.first() != Some(&4) {
            return Err(IdentityError::CsrKey);
        }
        if csr.signature_algorithm.algorithm.to_id_string() != ECDSA_WITH_SHA256 {
            return Err(IdentityError::Csr("it is not signed with ECDSA and SHA-256"));
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, public_key)
            .verify(info.raw, csr.signature_value.data.as_ref())
            .map_err(|_| IdentityError::Csr("its signature does not hold"))?;
        Ok(Self { public_key: public_key.to_vec() })
    }

    /// The public key, an uncompressed P-256 point of 65 bytes.
    #[must_use]
    pub fn public_key(&self) -> &[u8] {
        &self.public_key
    }
}

impl PublicKeyData for VerifiedCsr {
    fn der_bytes(&self) -> &[u8] {
        &self.public_key
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cinch_reason::Reason;
    use proptest::prelude::*;

    #[test]
    fn our_own_request_verifies_and_holds_the_key() {
        let key = KeyPair::generate().unwrap();
        let csr = VerifiedCsr::verify(&key.csr().unwrap()).unwrap();
        assert_eq!(csr.public_key(), key.public_key());
    }

    #[test]
    fn foreign_names_and_the_ca_flag_of_a_request_are_refused() {
        let key = rcgen::KeyPair::generate().unwrap();
        let ask = |change: fn(&mut rcgen::CertificateParams)| {
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            change(&mut params);
            VerifiedCsr::verify(params.serialize_request(&key).unwrap().der())
        };
        let expected = VerifiedCsr { public_key: key.public_key_raw().to_vec() };
        assert_eq!(ask(|_| {}).unwrap(), expected);
        let more: [fn(&mut rcgen::CertificateParams); 4] = [
            |params| {
                let uri = "spiffe://cluster.local/ns/kube-system/sa/admin".try_into().unwrap();
                params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
            },
            |params| params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained),
            |params| params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign],
            |params| params.distinguished_name.push(rcgen::DnType::CommonName, "admin"),
        ];
        for change in more {
            assert_eq!(ask(change).unwrap_err().reason(), Reason::CsrInvalid);
        }
    }

    #[test]
    fn other_keys_are_refused() {
        let rsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap();
        let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let p384 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        for key in [rsa, ed25519, p384] {
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            let der = params.serialize_request(&key).unwrap();
            assert_eq!(VerifiedCsr::verify(der.der()).unwrap_err().reason(), Reason::CsrKey);
        }
    }

    #[test]
    fn a_broken_signature_trailing_bytes_and_size_are_refused() {
        let good = KeyPair::generate().unwrap().csr().unwrap();
        let mut broken = good.clone();
        *broken.last_mut().unwrap() ^= 1;
        let mut trailing = good.clone();
        trailing.push(0);
        for bad in [broken, trailing, vec![0x30; MAX_CSR + 1], Vec::new()] {
            assert_eq!(VerifiedCsr::verify(&bad).unwrap_err().reason(), Reason::CsrInvalid);
        }
    }

    #[test]
    fn a_signature_by_another_key_is_refused() {
        let (mine, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut der = mine.csr().unwrap();
        let at = der.windows(65).position(|window| window == mine.public_key()).unwrap();
        der[at..at + 65].copy_from_slice(other.public_key());
        assert_eq!(VerifiedCsr::verify(&der).unwrap_err().reason(), Reason::CsrInvalid);
    }

    #[test]
    fn a_key_never_shows_in_debug_or_errors() {
        let key = KeyPair::generate().unwrap();
        assert_eq!(format!("{key:?}"), "KeyPair([redacted])");
        let error = KeyPair::from_pem("-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n");
        assert!(!error.unwrap_err().to_string().contains("c2VjcmV0"));
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = VerifiedCsr::verify(&bytes);
        }

        #[test]
        fn a_flipped_bit_never_gives_another_key(at in 0usize..200, bit in 0u8..8) {
            let key = KeyPair::generate().unwrap();
            let mut der = key.csr().unwrap();
            let at = at % der.len();
            der[at] ^= 1 << bit;
            // ECDSA signatures have two readings of one value, so a flip may also hold; the key may not change.
            if let Ok(csr) = VerifiedCsr::verify(&der) {
                prop_assert_eq!(csr.public_key(), key.public_key());
            }
        }
    }
}
