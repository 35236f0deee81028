//! Making certificates: root, intermediate and leaves, from parameters that are built here alone. Pure but
//! for keys and serial numbers, which need randomness.

use anyhow::{Context, bail};
use cinch_identity::{SpiffeId, VerifiedCsr};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, date_time_ymd,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How far notBefore lies in the past, so that a node whose clock is late accepts a fresh certificate.
pub const BACKDATE: Duration = Duration::from_secs(300);

/// A time span in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First valid second.
    pub not_before: u64,
    /// Last valid second.
    pub not_after: u64,
}

impl Validity {
    /// From a little before `now` for `lifetime`.
    #[must_use]
    pub fn starting(now: u64, lifetime: Duration) -> Self {
        Self {
            not_before: now.saturating_sub(BACKDATE.as_secs()),
            not_after: now.saturating_add(lifetime.as_secs()),
        }
    }

    /// The part of it that lies within the issuer's own validity.
    #[must_use]
    pub fn within(self, issuer: Self) -> Self {
        Self {
            not_before: self.not_before.max(issuer.not_before),
            not_after: self.not_after.min(issuer.not_after),
        }
    }

    /// Reads it from a certificate.
    ///
    /// # Errors
    /// When the certificate can't be read.
    pub fn of(certificate: &CertificateDer<'_>) -> anyhow::Result<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
            .map_err(|error| anyhow::anyhow!("the certificate can not be read: {error}"))?;
        let seconds = |timestamp: i64| u64::try_from(timestamp).unwrap_or(0);
        Ok(Self {
            not_before: seconds(parsed.validity().not_before.timestamp()),
            not_after: seconds(parsed.validity().not_after.timestamp()),
        })
    }

    /// Two thirds of its life are over, counted from its issue and not from the back-dated begin: time for a
    /// successor.
    #[must_use]
    pub fn is_due(self, now: u64) -> bool {
        let life = self.not_after.saturating_sub(self.not_before).saturating_sub(BACKDATE.as_secs());
        now >= self.not_after.saturating_sub(life / 3)
    }

    fn set(self, params: &mut CertificateParams) {
        let epoch = date_time_ymd(1970, 1, 1);
        params.not_before = epoch + Duration::from_secs(self.not_before);
        params.not_after = epoch + Duration::from_secs(self.not_after);
    }
}

/// Seconds since 1970.
#[must_use]
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

fn blank() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from_slice(&rand::random::<[u8; 16]>()));
    params
}

/// An authority: its certificate and the key that signs with it.
pub struct Authority {
    certificate: CertificateDer<'static>,
    validity: Validity,
    issuer: rcgen::Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("validity", &self.validity).finish_non_exhaustive()
    }
}

impl Authority {
    /// Joins a CA certificate and its key, as a Secret holds them (PEM; the first certificate counts).
    ///
    /// # Errors
    /// When either can't be read, the key is not the certificate's, or the certificate is no CA.
    pub fn from_pem(certificate: &str, key: &str) -> anyhow::Result<Self> {
        let certificate =
            CertificateDer::from_pem_slice(certificate.as_bytes()).context("tls.crt holds no certificate")?;
        // The parser's own message could quote the key.
        let key = KeyPair::from_pem(key).map_err(|_| anyhow::anyhow!("tls.key holds no private key"))?;
        Self::new(certificate, key)
    }

    /// Joins a CA certificate and its key.
    ///
    /// # Errors
    /// When the certificate can't be read or is no CA, or the key is not its own.
    pub fn new(certificate: CertificateDer<'static>, key: KeyPair) -> anyhow::Result<Self> {
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
            .map_err(|error| anyhow::anyhow!("the CA certificate can not be read: {error}"))?;
        if !parsed.is_ca() {
            bail!("the certificate is no CA");
        }
        if parsed.public_key().raw != key.subject_public_key_info() {
            bail!("the key is not the key of the certificate");
        }
        let validity = Validity::of(&certificate)?;
        let issuer = rcgen::Issuer::from_ca_cert_der(&certificate, key).context("the CA can not sign")?;
        Ok(Self { certificate, validity, issuer })
    }

    /// A new root with its key in PEM.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn root(name: &str, now: u64, lifetime: Duration) -> anyhow::Result<(Self, String)> {
        let key = KeyPair::generate()?;
        let mut params = authority_params(name, BasicConstraints::Unconstrained);
        Validity::starting(now, lifetime).set(&mut params);
        let certificate: CertificateDer<'static> = params.self_signed(&key)?.into();
        let pem = key.serialize_pem();
        Ok((Self::new(certificate, key)?, pem))
    }

    /// A new intermediate under this authority that may sign leaves only, with its key in PEM.
    ///
    /// # Errors
    /// When this authority has ended, or there is no randomness.
    pub fn intermediate(&self, name: &str, now: u64, lifetime: Duration) -> anyhow::Result<(Self, String)> {
        let key = KeyPair::generate()?;
        let mut params = authority_params(name, BasicConstraints::Constrained(0));
        params.use_authority_key_identifier_extension = true;
        self.validity_now(now, lifetime)?.set(&mut params);
        let certificate: CertificateDer<'static> = params.signed_by(&key, &self.issuer)?.into();
        let pem = key.serialize_pem();
        Ok((Self::new(certificate, key)?, pem))
    }

    /// A leaf for a workload: the request's public key, exactly one URI, usable as server and as client.
    ///
    /// # Errors
    /// When this authority has ended.
    pub fn workload(
        &self,
        csr: &VerifiedCsr,
        id: &SpiffeId,
        now: u64,
        lifetime: Duration,
    ) -> anyhow::Result<(CertificateDer<'static>, Validity)> {
        let mut params = leaf_params();
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let validity = self.validity_now(now, lifetime)?;
        validity.set(&mut params);
        Ok((params.signed_by(csr, &self.issuer)?.into(), validity))
    }

    /// A serving certificate for DNS names, with its key in PEM. It is no SVID.
    ///
    /// # Errors
    /// When this authority has ended, a name is no DNS name, or there is no randomness.
    pub fn serving(
        &self,
        names: &[String],
        now: u64,
        lifetime: Duration,
    ) -> anyhow::Result<(CertificateDer<'static>, String)> {
        let key = KeyPair::generate()?;
        let mut params = leaf_params();
        for name in names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.validity_now(now, lifetime)?.set(&mut params);
        Ok((params.signed_by(&key, &self.issuer)?.into(), key.serialize_pem()))
    }

    fn validity_now(&self, now: u64, lifetime: Duration) -> anyhow::Result<Validity> {
        if now >= self.validity.not_after {
            bail!("the issuing CA has expired");
        }
        Ok(Validity::starting(now, lifetime).within(self.validity))
    }

    /// Its certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// When its certificate is valid.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.validity
    }
}

fn authority_params(name: &str, constraints: BasicConstraints) -> CertificateParams {
    let mut params = blank();
    params.distinguished_name.push(DnType::OrganizationName, "Cinch");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// The subject stays empty, which makes the SAN critical.
fn leaf_params() -> CertificateParams {
    let mut params = blank();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}
