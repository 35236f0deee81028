//! Certificates and trust bundles as messages of the control stream.

use crate::ca::Issued;
use crate::ca::sign::unix_now;
use bytes::Bytes;
use cinch_control::v1;
use cinch_identity::TrustBundle;

/// A trust bundle as a message.
#[must_use]
pub fn trust_bundle(bundle: &TrustBundle) -> v1::TrustBundle {
    v1::TrustBundle {
        version: bundle.version(),
        trust_domain: bundle.trust_domain().as_str().to_owned(),
        roots: bundle.roots().iter().map(|root| Bytes::copy_from_slice(root)).collect(),
    }
}

/// An issued chain as a message: renewal at half of what is left, spread by a tenth either way, so that
/// proxies that started together don't come back together.
#[must_use]
pub fn certificate(issued: &Issued, bundle: &TrustBundle) -> v1::Certificate {
    let left_ms = issued.validity.not_after.saturating_sub(unix_now()).saturating_mul(1000);
    let spread = rand::random_range(45u64..=55);
    v1::Certificate {
        chain: issued.chain.iter().map(|certificate| Bytes::copy_from_slice(certificate)).collect(),
        trust_bundle: Some(trust_bundle(bundle)),
        expires_in_ms: left_ms,
        renew_in_ms: left_ms / 100 * spread,
    }
}
