//! An operator made here, with an authority that signs whatever it is told to.

use bytes::BytesMut;
use cinch_control::v1::operator_message::Kind as Say;
use cinch_control::v1::proxy_message::Kind as Heard;
use cinch_control::{ALPN, Decoder, MAX_MESSAGE, encode, v1};
use cinch_identity::{ClientCertificate, KeyPair, Svid, TrustBundle, TrustDomain, VerifiedCsr};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyUsagePurpose, SanType};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub const OWN: &str = "spiffe://cluster.local/ns/shop/sa/web";
pub const OPERATOR: &str = "spiffe://cluster.local/ns/cinch-system/sa/cinch-operator";
pub const WAIT: Duration = Duration::from_secs(60);

/// An authority that signs whatever it is told to.
pub struct Authority {
    pub issuer: CertifiedIssuer<'static, rcgen::KeyPair>,
}

struct PublicKey(Vec<u8>);

impl rcgen::PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ECDSA_P256_SHA256
    }
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = rcgen::KeyPair::generate().unwrap();
        Self { issuer: CertifiedIssuer::self_signed(params, key).unwrap() }
    }

    pub fn bundle(&self, version: u64) -> TrustBundle {
        TrustBundle::new(domain(), version, vec![self.issuer.der().clone()]).unwrap()
    }

    pub fn sign(&self, id: &str, public_key: &[u8]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        params.signed_by(&PublicKey(public_key.to_vec()), &self.issuer).unwrap().der().to_vec()
    }

    pub fn certificate(&self, id: &str, csr: &[u8], renew_in_ms: u64) -> v1::Certificate {
        let csr = VerifiedCsr::verify(csr).unwrap();
        let root = self.issuer.der().to_vec();
        v1::Certificate {
            chain: vec![self.sign(id, csr.public_key()).into()],
            trust_bundle: Some(v1::TrustBundle {
                version: 3,
                trust_domain: "cluster.local".into(),
                roots: vec![root.into()],
            }),
            expires_in_ms: 3_600_000,
            renew_in_ms,
        }
    }
}

pub fn domain() -> TrustDomain {
    TrustDomain::parse("cluster.local").unwrap()
}

/// The operator's side of one connection.
pub struct Peer {
    pub stream: TlsStream<TcpStream>,
    buffer: BytesMut,
}

impl Peer {
    pub async fn heard(&mut self) -> Option<Heard> {
        let decoder = Decoder::<v1::ProxyMessage>::new(MAX_MESSAGE);
        loop {
            if let Some(message) = decoder.next(&mut self.buffer).unwrap() {
                return Some(message.kind.unwrap());
            }
            let read =
                timeout(WAIT, self.stream.read_buf(&mut self.buffer)).await.expect("the proxy is silent");
            if !matches!(read, Ok(1..)) {
                return None;
            }
        }
    }

    /// The next message that is not a report.
    pub async fn heard_but_reports(&mut self) -> Heard {
        loop {
            match self.heard().await.expect("the proxy is gone") {
                Heard::Evidence(_) => {}
                other => return other,
            }
        }
    }

    pub async fn say(&mut self, kind: Say) {
        let mut wire = BytesMut::new();
        encode(&v1::OperatorMessage { kind: Some(kind) }, &mut wire).unwrap();
        self.stream.write_all(&wire).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    pub async fn welcome(&mut self) -> v1::Hello {
        let Some(Heard::Hello(hello)) = self.heard().await else { panic!("no Hello") };
        self.say(Say::Welcome(v1::Welcome { operator_version: "test".into(), report_interval_ms: 100 }))
            .await;
        hello
    }
}

pub struct Operator {
    pub authority: Authority,
    pub listener: TcpListener,
    pub acceptor: TlsAcceptor,
}

impl Operator {
    pub async fn new(id: &str) -> Self {
        let authority = Authority::new();
        let key = KeyPair::generate().unwrap();
        let leaf = authority.sign(id, key.public_key());
        let svid = Svid::new(vec![leaf.into()], key).unwrap();
        let config =
            cinch_identity::server_config(&svid, &authority.bundle(1), ClientCertificate::Optional, &[ALPN])
                .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self { authority, listener, acceptor: TlsAcceptor::from(config) }
    }

    pub async fn accept(&self) -> Peer {
        let (tcp, _) = timeout(WAIT, self.listener.accept()).await.expect("nobody dials").unwrap();
        Peer { stream: self.acceptor.accept(tcp).await.unwrap(), buffer: BytesMut::new() }
    }

    /// The first exchange; returns the token.
    pub async fn issue(&self, renew_in_ms: u64) -> String {
        let mut peer = self.accept().await;
        assert!(peer.stream.get_ref().1.peer_certificates().is_none());
        let Some(Heard::FirstCertificate(first)) = peer.heard().await else { panic!("no request") };
        peer.say(Say::Certificate(self.authority.certificate(OWN, &first.csr, renew_in_ms))).await;
        first.token
    }

    pub async fn stream(&self) -> Peer {
        let peer = self.accept().await;
        let id = cinch_identity::peer_id(peer.stream.get_ref().1.peer_certificates()).unwrap();
        assert_eq!(id.as_str(), OWN);
        peer
    }
}
