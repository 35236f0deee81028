//! SPIFFE IDs: what is read is written back the same, and has its parts.
#![no_main]

use cinch_identity::{SpiffeId, TrustDomain};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = TrustDomain::parse(text);
    let Ok(id) = SpiffeId::parse(text) else { return };
    assert_eq!(id.as_str(), text);
    assert!(TrustDomain::parse(id.trust_domain_str()).is_ok());
    assert!(text.starts_with(&format!("spiffe://{}", id.trust_domain_str())));
    if let (Some(namespace), Some(account)) = (id.namespace(), id.service_account()) {
        assert_eq!(text, format!("spiffe://{}/ns/{namespace}/sa/{account}", id.trust_domain_str()));
    }
});
