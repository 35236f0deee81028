//! Certificates of every wrong kind against the verifier, and real handshakes over it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use cinch_identity::{
    ClientCertificate, IdentityError, KeyPair, Peer, SpiffeId, Svid, TrustBundle, TrustDomain, Usage,
    client_config, handshake_reason, peer_id, require_alpn, server_config, server_name, verified_issuers,
    verify_chain, verify_open_chain,
};
use cinch_reason::Reason;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls_pki_types::{CertificateDer, UnixTime};
use std::time::Duration;

const API: &str = "spiffe://cluster.local/ns/shop/sa/api";
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const HOUR: u64 = 3600;

fn now() -> u64 {
    UnixTime::now().as_secs()
}

struct Ca(CertifiedIssuer<'static, rcgen::KeyPair>);

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params.not_before = date_time_ymd(2020, 1, 1);
        Self(CertifiedIssuer::self_signed(params, rcgen::KeyPair::generate().unwrap()).unwrap())
    }

    fn bundle(&self) -> TrustBundle {
        let trust_domain = TrustDomain::parse("cluster.local").unwrap();
        TrustBundle::from_roots(trust_domain, vec![self.0.der().clone()]).unwrap()
    }
}

/// A leaf that is right in every respect until a test changes it.
struct Leaf {
    uris: Vec<&'static str>,
    not_before: u64,
    not_after: u64,
    is_ca: IsCa,
    key_usages: Vec<KeyUsagePurpose>,
    extended: Vec<ExtendedKeyUsagePurpose>,
}

impl Leaf {
    fn of(uri: &'static str) -> Self {
        Self {
            uris: vec![uri],
            not_before: now() - HOUR,
            not_after: now() + HOUR,
            is_ca: IsCa::ExplicitNoCa,
            key_usages: vec![KeyUsagePurpose::DigitalSignature],
            extended: vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth],
        }
    }

    fn signed_by(self, ca: &Ca) -> (CertificateDer<'static>, rcgen::KeyPair) {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names =
            self.uris.iter().map(|uri| SanType::URI((*uri).try_into().unwrap())).collect();
        params.not_before = date_time_ymd(1970, 1, 1) + Duration::from_secs(self.not_before);
        params.not_after = date_time_ymd(1970, 1, 1) + Duration::from_secs(self.not_after);
        params.is_ca = self.is_ca;
        params.key_usages = self.key_usages;
        params.extended_key_usages = self.extended;
        (params.signed_by(&key, &ca.0).unwrap().into(), key)
    }

    fn verified(self, ca: &Ca, bundle: &TrustBundle) -> Result<SpiffeId, IdentityError> {
        let (leaf, _) = self.signed_by(ca);
        verify_chain(&leaf, &[], bundle, UnixTime::now(), Usage::Client)
    }

    fn svid(self, ca: &Ca) -> Svid {
        let (leaf, key) = self.signed_by(ca);
        Svid::new(vec![leaf], KeyPair::from_pem(&key.serialize_pem()).unwrap()).unwrap()
    }
}

#[test]
fn a_good_leaf_proves_its_identity() {
    let ca = Ca::new("root");
    assert_eq!(Leaf::of(API).verified(&ca, &ca.bundle()).unwrap().as_str(), API);
}

#[test]
fn wrong_leaves_are_refused_with_their_reason() {
    let (ca, foreign) = (Ca::new("root"), Ca::new("root"));
    let bundle = ca.bundle();
    let any_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let cases: Vec<(&str, Leaf, &Ca, Reason)> = vec![
        ("expired", Leaf { not_after: now() - 1, ..Leaf::of(API) }, &ca, Reason::CertificateExpired),
        ("not yet valid", Leaf { not_before: now() + 60, ..Leaf::of(API) }, &ca, Reason::CertificateExpired),
        ("foreign CA", Leaf::of(API), &foreign, Reason::CertificateUntrusted),
        ("two URIs", Leaf { uris: vec![API, WEB], ..Leaf::of(API) }, &ca, Reason::CertificateIdentity),
        (
            "the same URI twice",
            Leaf { uris: vec![API, API], ..Leaf::of(API) },
            &ca,
            Reason::CertificateIdentity,
        ),
        ("no URI", Leaf { uris: vec![], ..Leaf::of(API) }, &ca, Reason::CertificateIdentity),
        ("no SPIFFE ID", Leaf::of("https://cluster.local/ns/shop/sa/api"), &ca, Reason::CertificateIdentity),
        (
            "not canonical",
            Leaf::of("spiffe://cluster.local/ns/shop/sa/%61pi"),
            &ca,
            Reason::CertificateIdentity,
        ),
        ("CA leaf", Leaf { is_ca: any_ca, ..Leaf::of(API) }, &ca, Reason::CertificateIdentity),
        (
            "may sign",
            Leaf { key_usages: vec![KeyUsagePurpose::KeyCertSign], ..Leaf::of(API) },
            &ca,
            Reason::CertificateIdentity,
        ),
        (
            "other trust domain",
            Leaf::of("spiffe://other.domain/ns/shop/sa/api"),
            &ca,
            Reason::CertificateUntrusted,
        ),
        (
            "for code signing",
            Leaf { extended: vec![ExtendedKeyUsagePurpose::CodeSigning], ..Leaf::of(API) },
            &ca,
            Reason::CertificateUntrusted,
        ),
    ];
    for (case, leaf, signer, reason) in cases {
        let error = leaf.verified(signer, &bundle).expect_err(case);
        assert_eq!(error.reason(), reason, "{case}: {error}");
    }
}

#[test]
fn an_open_connection_outlives_its_certificates_and_not_their_root() {
    let (ca, foreign) = (Ca::new("root"), Ca::new("root"));
    let now = UnixTime::now();
    let hours_ago = |hours: u64| date_time_ymd(1970, 1, 1) + Duration::from_secs(self::now() - hours * HOUR);
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "issuer");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    (params.not_before, params.not_after) = (hours_ago(9), hours_ago(2));
    let key = rcgen::KeyPair::generate().unwrap();
    let issuer = Ca(CertifiedIssuer::signed_by(params, key, &ca.0).unwrap());
    let until = |not_after| Leaf { not_before: self::now() - 8 * HOUR, not_after, ..Leaf::of(API) };
    let chains = [
        ("valid", until(self::now() + HOUR), &ca, vec![]),
        ("expired", until(self::now() - HOUR), &ca, vec![]),
        ("expired before its issuer", until(self::now() - 3 * HOUR), &issuer, vec![issuer.0.der().clone()]),
        ("expired after its issuer", until(self::now() - HOUR), &issuer, vec![issuer.0.der().clone()]),
        ("its issuer expired", until(self::now() + HOUR), &issuer, vec![issuer.0.der().clone()]),
    ];
    for (case, leaf, signer, issuers) in chains {
        let (leaf, _) = leaf.signed_by(signer);
        let verify = |bundle: &TrustBundle| verify_open_chain(&leaf, &issuers, bundle, now, Usage::Client);
        assert_eq!(verify(&ca.bundle()).unwrap().as_str(), API, "{case}");
        let reason = verify(&foreign.bundle()).unwrap_err().reason();
        assert_eq!(reason, Reason::CertificateUntrusted, "{case}");
    }
}

/// A CA that `above` vouches for, of any validity.
fn intermediate(above: &Ca) -> Ca {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "issuer");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let key = rcgen::KeyPair::generate().unwrap();
    Ca(CertifiedIssuer::signed_by(params, key, &above.0).unwrap())
}

#[test]
fn of_a_chain_only_what_vouches_for_the_leaf_counts_and_its_bytes_are_bounded() {
    let ca = Ca::new("root");
    let (issuer, same_name) = (intermediate(&ca), intermediate(&ca));
    let (leaf, _) = Leaf::of(API).signed_by(&issuer);
    let der = |ca: &Ca| ca.0.der().clone();
    let junk = |length| CertificateDer::from(vec![0x5a; length]);
    let shown = [junk(4000), der(&same_name), der(&ca), der(&issuer), der(&issuer), junk(9000)];
    let (bundle, now) = (ca.bundle(), UnixTime::now());
    let issuers = verified_issuers(&leaf, &shown, &bundle, now, Usage::Server).unwrap();
    assert_eq!(issuers, [der(&issuer)]);
    let (direct, _) = Leaf::of(API).signed_by(&ca);
    assert!(verified_issuers(&direct, &shown, &bundle, now, Usage::Server).unwrap().is_empty());
    assert!(verified_issuers(&leaf, &shown[..3], &bundle, now, Usage::Server).is_err());

    let verify = |length| verify_chain(&leaf, &[der(&issuer), junk(length)], &bundle, now, Usage::Server);
    let rest = 16 * 1024 - leaf.len() - der(&issuer).len();
    assert_eq!(verify(rest).unwrap().as_str(), API);
    assert_eq!(verify(rest + 1).unwrap_err().reason(), Reason::CertificateUntrusted);
}

#[test]
fn an_svid_needs_the_key_of_its_leaf() {
    let (leaf, _) = Leaf::of(API).signed_by(&Ca::new("root"));
    assert!(matches!(Svid::new(vec![leaf], KeyPair::generate().unwrap()), Err(IdentityError::Key(_))));
}

#[test]
fn garbage_is_no_certificate_and_no_bundle() {
    let ca = Ca::new("root");
    for garbage in [&b""[..], b"\x30", b"\x30\x82\xff\xff", &[0xff; 300]] {
        let der = CertificateDer::from(garbage.to_vec());
        assert!(verify_chain(&der, &[], &ca.bundle(), UnixTime::now(), Usage::Server).is_err());
        assert!(peer_id(Some(std::slice::from_ref(&der))).is_err());
        assert!(TrustBundle::new(TrustDomain::parse("td").unwrap(), 1, vec![der]).is_err());
    }
    assert_eq!(peer_id(None), Err(IdentityError::NoCertificate));
    assert!(TrustBundle::from_pem(TrustDomain::parse("td").unwrap(), "nothing here").is_err());
}

#[test]
fn a_bundle_survives_pem_and_its_version_grows_with_each_step_of_a_rotation() {
    let ca = Ca::new("root");
    let bundle = ca.bundle();
    let back = TrustBundle::from_pem(bundle.trust_domain().clone(), &bundle.to_pem()).unwrap();
    assert_eq!(back, bundle);
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.not_before = date_time_ymd(2021, 1, 1);
    let newer = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap().der().clone();
    let old = ca.0.der().clone();
    let steps = [vec![old.clone()], vec![old, newer.clone()], vec![newer]];
    let versions: Vec<_> = steps.iter().map(|roots| TrustBundle::content_version(roots)).collect();
    assert!(versions.is_sorted_by(|a, b| a < b), "{versions:?}");
}

struct Handshake {
    server: Svid,
    client: Option<Svid>,
    demand: ClientCertificate,
    peer: Peer,
    server_alpn: &'static [&'static [u8]],
    client_alpn: &'static [&'static [u8]],
}

type Sides = (rustls::ServerConnection, rustls::ClientConnection);

impl Handshake {
    fn new(ca: &Ca) -> Self {
        Self {
            server: Leaf::of(API).svid(ca),
            client: Some(Leaf::of(WEB).svid(ca)),
            demand: ClientCertificate::Required,
            peer: Peer::Exactly(SpiffeId::parse(API).unwrap()),
            server_alpn: &[b"cinch/1"],
            client_alpn: &[b"cinch/1"],
        }
    }

    /// Runs the handshake in memory; the first error of either side ends it.
    fn run(self, bundle: &TrustBundle) -> Result<Sides, rustls::Error> {
        let server = server_config(&self.server, bundle, self.demand, self.server_alpn).unwrap();
        let client = client_config(self.client.as_ref(), bundle, self.peer, self.client_alpn).unwrap();
        let mut server = rustls::ServerConnection::new(server).unwrap();
        let mut client = rustls::ClientConnection::new(client, server_name()).unwrap();
        for _ in 0..8 {
            let mut wire = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut wire).unwrap();
            }
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets()?;
            let mut wire = Vec::new();
            while server.wants_write() {
                server.write_tls(&mut wire).unwrap();
            }
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets()?;
        }
        assert!(!client.is_handshaking() && !server.is_handshaking());
        Ok((server, client))
    }
}

fn reason(error: rustls::Error) -> Option<Reason> {
    handshake_reason(&std::io::Error::new(std::io::ErrorKind::InvalidData, error))
}

#[test]
fn a_handshake_proves_both_identities_with_the_first_choices_and_without_tickets() {
    let ca = Ca::new("root");
    let (server, client) = Handshake::new(&ca).run(&ca.bundle()).unwrap();
    assert_eq!(peer_id(server.peer_certificates()).unwrap().as_str(), WEB);
    assert_eq!(peer_id(client.peer_certificates()).unwrap().as_str(), API);
    assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
    let suite = client.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    let group = client.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
    assert_eq!(client.tls13_tickets_received(), 0);
    require_alpn(&server, b"cinch/1").unwrap();
}

#[test]
fn a_server_with_another_identity_is_refused_when_the_peer_is_pinned() {
    let ca = Ca::new("root");
    let handshake = Handshake { server: Leaf::of(WEB).svid(&ca), ..Handshake::new(&ca) };
    assert_eq!(reason(handshake.run(&ca.bundle()).unwrap_err()), Some(Reason::PeerIdentityMismatch));
    let handshake =
        Handshake { server: Leaf::of(WEB).svid(&ca), peer: Peer::AnyInTrustDomain, ..Handshake::new(&ca) };
    handshake.run(&ca.bundle()).unwrap();
}

#[test]
fn clients_without_or_with_a_foreign_certificate_are_refused() {
    let (ca, foreign) = (Ca::new("root"), Ca::new("root"));
    let without = Handshake { client: None, ..Handshake::new(&ca) };
    assert_eq!(reason(without.run(&ca.bundle()).unwrap_err()), Some(Reason::CertificateUntrusted));
    let optional = Handshake { client: None, demand: ClientCertificate::Optional, ..Handshake::new(&ca) };
    let (server, _) = optional.run(&ca.bundle()).unwrap();
    assert_eq!(peer_id(server.peer_certificates()), Err(IdentityError::NoCertificate));
    let other = Handshake {
        client: Some(Leaf::of(WEB).svid(&foreign)),
        demand: ClientCertificate::Optional,
        ..Handshake::new(&ca)
    };
    assert_eq!(reason(other.run(&ca.bundle()).unwrap_err()), Some(Reason::CertificateUntrusted));
}

#[test]
fn another_protocol_is_refused_and_none_is_noticed() {
    let ca = Ca::new("root");
    let other = Handshake { client_alpn: &[b"h2"], ..Handshake::new(&ca) };
    assert!(matches!(other.run(&ca.bundle()), Err(rustls::Error::NoApplicationProtocol)));
    let none = Handshake { client_alpn: &[], ..Handshake::new(&ca) };
    let (server, _) = none.run(&ca.bundle()).unwrap();
    assert!(matches!(require_alpn(&server, b"cinch/1"), Err(IdentityError::Alpn(_))));
}
