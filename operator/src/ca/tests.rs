//! What the authority signs, seen through the verifier that peers use.

use super::*;
use cinch_identity::{KeyPair, Svid, Usage, verify_chain};
use rustls_pki_types::UnixTime;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// A whole authority in memory.
pub(crate) fn authority(lifetime: Duration) -> CertificateAuthority {
    let (root, _) = Authority::root("test root", unix_now(), DAY * 10).unwrap();
    let (intermediate, _) = root.intermediate("test issuer", unix_now(), DAY * 5).unwrap();
    let roots = vec![root.certificate().clone()];
    let bundle = TrustBundle::from_roots(TrustDomain::parse("cluster.local").unwrap(), roots).unwrap();
    let chain = vec![intermediate.certificate().clone()];
    CertificateAuthority::fixed(Issuer::new(intermediate, chain, lifetime).unwrap(), bundle)
}

pub(crate) fn svid(authority: &CertificateAuthority, id: &str) -> Svid {
    let key = KeyPair::generate().unwrap();
    let csr = VerifiedCsr::verify(&key.csr().unwrap()).unwrap();
    let issued = authority.issuer().issue(&csr, &SpiffeId::parse(id).unwrap()).unwrap();
    Svid::new(issued.chain, key).unwrap()
}

fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

#[test]
fn a_leaf_verifies_up_to_the_root_in_both_directions_for_its_life_only() {
    let authority = authority(DAY);
    let id = "spiffe://cluster.local/ns/shop/sa/api";
    let svid = svid(&authority, id);
    assert_eq!(svid.chain().len(), 2);
    let [leaf, above @ ..] = svid.chain() else { panic!() };
    let verify = |time, usage| verify_chain(leaf, above, &authority.bundle(), at(time), usage);
    for usage in [Usage::Client, Usage::Server] {
        assert_eq!(verify(unix_now(), usage).unwrap().as_str(), id);
    }
    assert!(verify(svid.not_after() + 1, Usage::Client).is_err());
    assert!(verify(svid.not_before() - 1, Usage::Client).is_err());
    assert!(svid.not_before() + 240 <= unix_now());
}

#[test]
fn a_leaf_has_only_what_was_built_for_it() {
    let csr = VerifiedCsr::verify(&KeyPair::generate().unwrap().csr().unwrap()).unwrap();
    let id = SpiffeId::parse("spiffe://cluster.local/ns/a/sa/b").unwrap();
    let issued = authority(DAY).issuer().issue(&csr, &id).unwrap();
    let (_, leaf) = x509_parser::parse_x509_certificate(&issued.chain[0]).unwrap();
    assert!(!leaf.is_ca());
    assert_eq!(leaf.subject().iter().count(), 0);
    let san = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(san.critical);
    assert_eq!(format!("{:?}", san.value.general_names), format!("[URI({:?})]", id.as_str()));
    assert!(leaf.key_usage().unwrap().unwrap().value.digital_signature());
    assert!(!leaf.key_usage().unwrap().unwrap().value.key_cert_sign());
    assert!(leaf.raw_serial().len() >= 14, "{}", issued.serial);
    let usage = leaf.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && usage.server_auth && !usage.any);
}

#[test]
fn nothing_outlives_its_issuer_and_an_expired_issuer_signs_nothing() {
    let now = unix_now();
    let (root, _) = Authority::root("root", now, Duration::from_secs(3600)).unwrap();
    let (intermediate, _) = root.intermediate("issuer", now, DAY).unwrap();
    assert_eq!(intermediate.validity(), root.validity());
    let csr = VerifiedCsr::verify(&KeyPair::generate().unwrap().csr().unwrap()).unwrap();
    let id = SpiffeId::parse("spiffe://cluster.local/ns/a/sa/b").unwrap();
    let (_, validity) = intermediate.workload(&csr, &id, now, DAY).unwrap();
    assert_eq!(validity, intermediate.validity());
    assert!(intermediate.workload(&csr, &id, now + 3601, DAY).is_err());
    assert!(root.intermediate("late", now + 3601, DAY).is_err());
}

#[test]
fn an_intermediate_can_not_make_another_one() {
    let now = unix_now();
    let (root, _) = Authority::root("root", now, DAY).unwrap();
    let (first, _) = root.intermediate("first", now, DAY).unwrap();
    let (second, _) = first.intermediate("second", now, DAY).unwrap();
    let csr = VerifiedCsr::verify(&KeyPair::generate().unwrap().csr().unwrap()).unwrap();
    let id = SpiffeId::parse("spiffe://cluster.local/ns/a/sa/b").unwrap();
    let (leaf, _) = second.workload(&csr, &id, now, DAY).unwrap();
    let trust_domain = TrustDomain::parse("cluster.local").unwrap();
    let bundle = TrustBundle::from_roots(trust_domain, vec![root.certificate().clone()]).unwrap();
    let above = [second.certificate().clone(), first.certificate().clone()];
    assert!(verify_chain(&leaf, &above, &bundle, at(now), Usage::Client).is_err());
}

#[test]
fn a_ca_needs_its_own_key_and_the_ca_flag() {
    let (root, _) = Authority::root("root", unix_now(), DAY).unwrap();
    let other = rcgen::KeyPair::generate().unwrap();
    assert!(Authority::new(root.certificate().clone(), other).is_err());
    let svid = svid(&authority(DAY), "spiffe://cluster.local/ns/a/sa/b");
    assert!(Authority::new(svid.chain()[0].clone(), rcgen::KeyPair::generate().unwrap()).is_err());
}

#[test]
fn a_successor_is_due_after_two_thirds_of_the_life() {
    for (lifetime, due) in [(120, 80), (3600, 2400)] {
        let validity = Validity::starting(1000, Duration::from_secs(lifetime));
        assert!(!validity.is_due(1000 + due - 1), "{lifetime}");
        assert!(validity.is_due(1000 + due), "{lifetime}");
    }
}
