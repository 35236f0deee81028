//! Certificates made by hand: by a stranger's authority, and by the mesh's own, whose key an administrator can read,
//! with ends that an operator never gives them.

use crate::see::{See, text};
use anyhow::{Context, Result, anyhow};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cinch_identity::{KeyPair, Svid};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// When a certificate ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ends {
    /// It did, an hour ago.
    Over,
    /// In an hour.
    Later,
}

const HOUR: Duration = Duration::from_secs(3600);

/// Who signs.
pub struct Authority {
    issuer: Issuer<'static, rcgen::KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    /// The one that the operator issues with.
    pub fn of_the_mesh(see: See<'_>) -> Result<Self> {
        let secret = see.json(&["secret", "cinch-issuer-ca", "-n", crate::install::NAMESPACE])?;
        let entry = |key: &str| -> Result<String> {
            let data = text(&secret, &format!("/data/{key}"));
            Ok(String::from_utf8(STANDARD.decode(data).context("the Secret cinch-issuer-ca")?)?)
        };
        let certificate = CertificateDer::from_pem_slice(entry("tls.crt")?.as_bytes())
            .map_err(|error| anyhow!("tls.crt: {error}"))?;
        Self::new(certificate, rcgen::KeyPair::from_pem(&entry("tls.key")?).context("tls.key")?)
    }

    /// One that nobody trusts.
    pub fn stranger() -> Result<Self> {
        let mut params = valid(Ends::Later);
        params.distinguished_name.push(DnType::CommonName, "A stranger");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = rcgen::KeyPair::generate()?;
        Self::new(params.self_signed(&key)?.into(), key)
    }

    fn new(certificate: CertificateDer<'static>, key: rcgen::KeyPair) -> Result<Self> {
        Ok(Self { issuer: Issuer::from_ca_cert_der(&certificate, key)?, certificate })
    }

    /// A certificate for `id`, in the operator's form.
    pub fn svid(&self, id: &str, ends: Ends) -> Result<Svid> {
        let mut params = valid(ends);
        params.subject_alt_names = vec![SanType::URI(id.try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let key = rcgen::KeyPair::generate()?;
        let leaf = params.signed_by(&key, &self.issuer)?.into();
        let key = KeyPair::from_pem(&key.serialize_pem())?;
        Ok(Svid::new(vec![leaf, self.certificate.clone()], key)?)
    }
}

fn valid(ends: Ends) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(2 * HOUR);
    params.not_after = epoch + if ends == Ends::Over { now.saturating_sub(HOUR) } else { now + HOUR };
    params
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strangers_certificate_has_the_name_and_the_end_that_it_was_made_for() {
        let id = "spiffe://cluster.local/ns/shop/sa/api";
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let stranger = Authority::stranger().unwrap();
        let [over, later] = [Ends::Over, Ends::Later].map(|ends| stranger.svid(id, ends).unwrap());
        assert_eq!((over.id().as_str(), later.id().as_str()), (id, id));
        assert!(over.not_after() < now && later.not_after() > now);
    }
}
