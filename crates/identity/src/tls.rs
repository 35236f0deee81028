//! The rustls configurations of every mutual TLS connection: TLS 1.3 only, no resumption, no tickets, peers
//! verified by SPIFFE ID.

use crate::verify::SvidVerifier;
use crate::{IdentityError, SpiffeId, Svid, TrustBundle};
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{IpAddr, Ipv4Addr, ServerName};
use std::sync::{Arc, OnceLock};

/// Whose certificate a client accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// This identity and no other.
    Exactly(SpiffeId),
    /// Any identity of the bundle's trust domain.
    AnyInTrustDomain,
}

/// Whether a server insists on a client certificate. One that is shown is verified in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCertificate {
    /// No handshake without it.
    Required,
    /// The handshake succeeds without it; the caller decides what an unknown client may do.
    Optional,
}

/// Who seals and opens the records of a tunnel once its handshake is over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RecordLayer {
    /// `cinch-record`, in place, on the keys that rustls hands out.
    #[default]
    InPlace,
    /// rustls, which then keeps its keys to itself.
    Rustls,
}

impl RecordLayer {
    /// The layer of this name: `in-place` or `rustls`.
    #[must_use]
    pub fn by_name(name: &str) -> Option<RecordLayer> {
        match name {
            "in-place" => Some(RecordLayer::InPlace),
            "rustls" => Some(RecordLayer::Rustls),
            _ => None,
        }
    }

    /// rustls's `enable_secret_extraction`: it lets the owner of a connection take the traffic keys out of it. That
    /// is all that it lets anybody do (nothing goes over the network), but a connection that does not need it, as
    /// those to the operator, has no such way out for its keys.
    fn takes_keys(self) -> bool {
        self == RecordLayer::InPlace
    }
}

/// The cryptography in use: hybrid post-quantum key exchange first, AES-128-GCM first (the cheapest with
/// hardware support, and no weaker here than the P-256 keys).
#[must_use]
pub fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    PROVIDER.get_or_init(|| {
        Arc::new(CryptoProvider {
            cipher_suites: vec![
                cipher_suite::TLS13_AES_128_GCM_SHA256,
                cipher_suite::TLS13_AES_256_GCM_SHA384,
                cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
            ],
            kx_groups: vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1],
            ..aws_lc_rs::default_provider()
        })
    })
}

fn verifier(bundle: &TrustBundle, peer: Peer, client: ClientCertificate) -> Arc<SvidVerifier> {
    Arc::new(SvidVerifier {
        bundle: bundle.clone(),
        peer,
        mandatory: client == ClientCertificate::Required,
        algorithms: provider().signature_verification_algorithms,
    })
}

fn protocols(alpn: &[&[u8]]) -> Vec<Vec<u8>> {
    alpn.iter().map(|name| name.to_vec()).collect()
}

/// A server that shows `svid`, verifies clients against `bundle`, and speaks one of `alpn`.
///
/// rustls refuses clients that offer other protocols only; check [`require_alpn`] after the handshake, which
/// also refuses those that offered none.
///
/// # Errors
/// [`IdentityError::Tls`] when rustls refuses the configuration.
pub fn server_config(
    svid: &Svid,
    bundle: &TrustBundle,
    client: ClientCertificate,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, IdentityError> {
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| IdentityError::Tls(error.to_string()))?
        .with_client_cert_verifier(verifier(bundle, Peer::AnyInTrustDomain, client))
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(svid.certified()))));
    config.alpn_protocols = protocols(alpn);
    config.ignore_client_order = true;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}

/// A client that shows `svid` (if any), accepts only `peer`, and speaks one of `alpn`. No name is sent and
/// no DNS name is ever compared; pass [`server_name`] to the connector.
///
/// # Errors
/// [`IdentityError::Tls`] when rustls refuses the configuration.
pub fn client_config(
    svid: Option<&Svid>,
    bundle: &TrustBundle,
    peer: Peer,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, IdentityError> {
    let builder = ClientConfig::builder_with_provider(Arc::clone(provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| IdentityError::Tls(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(verifier(bundle, peer, ClientCertificate::Required));
    let mut config = match svid {
        Some(svid) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(Arc::clone(svid.certified()))))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = protocols(alpn);
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    config.enable_early_data = false;
    Ok(Arc::new(config))
}

/// [`server_config`] for tunnels: clients must show a certificate, and `records` may need the keys.
///
/// # Errors
/// [`IdentityError::Tls`] when rustls refuses the configuration.
pub fn tunnel_server_config(
    svid: &Svid,
    bundle: &TrustBundle,
    alpn: &[u8],
    records: RecordLayer,
) -> Result<Arc<ServerConfig>, IdentityError> {
    let mut config = server_config(svid, bundle, ClientCertificate::Required, &[alpn])?;
    Arc::make_mut(&mut config).enable_secret_extraction = records.takes_keys();
    Ok(config)
}

/// [`client_config`] for tunnels: `records` may need the keys.
///
/// # Errors
/// [`IdentityError::Tls`] when rustls refuses the configuration.
pub fn tunnel_client_config(
    svid: &Svid,
    bundle: &TrustBundle,
    peer: SpiffeId,
    alpn: &[u8],
    records: RecordLayer,
) -> Result<Arc<ClientConfig>, IdentityError> {
    let mut config = client_config(Some(svid), bundle, Peer::Exactly(peer), &[alpn])?;
    Arc::make_mut(&mut config).enable_secret_extraction = records.takes_keys();
    Ok(config)
}

/// Checks that the peer agreed to `alpn`: a TLS peer may leave the extension out, and then rustls goes on.
///
/// # Errors
/// [`IdentityError::Alpn`] when it did not.
pub fn require_alpn(connection: &rustls::CommonState, alpn: &[u8]) -> Result<(), IdentityError> {
    if connection.alpn_protocol() == Some(alpn) {
        return Ok(());
    }
    Err(IdentityError::Alpn(String::from_utf8_lossy(alpn).into_owned()))
}

/// The name to give to a connector: a fixed one that is neither sent nor checked.
#[must_use]
pub fn server_name() -> ServerName<'static> {
    ServerName::IpAddress(IpAddr::V4(Ipv4Addr::from(std::net::Ipv4Addr::UNSPECIFIED)))
}
