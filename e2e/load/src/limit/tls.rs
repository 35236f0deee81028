//! TLS as the bench's pair speaks it: 1.3 with AES-128-GCM and X25519, both sides with certificates of one authority,
//! sessions resumed.

use anyhow::{Context, Result};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::path::Path;
use std::sync::Arc;
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// A name that the server's certificate has beside its identity.
const PEER: &str = "server.bench.local";

/// The server's name, as the client asks for it.
pub(super) fn peer_name() -> Result<ServerName<'static>> {
    Ok(ServerName::try_from(PEER)?)
}

/// What both sides read.
pub(super) struct Files {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<RootCertStore>,
}

impl Files {
    /// Reads the three files.
    pub(super) fn read(certificate: &Path, key: &Path, authority: &Path) -> Result<Self> {
        let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>> {
            let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
            read.with_context(|| path.display().to_string())
        };
        let mut roots = RootCertStore::empty();
        for root in certificates(authority)? {
            roots.add(root)?;
        }
        let key = PrivateKeyDer::from_pem_file(key).with_context(|| key.display().to_string())?;
        Ok(Self { chain: certificates(certificate)?, key, roots: Arc::new(roots) })
    }

    /// The client's side.
    pub(super) fn connector(&self) -> Result<TlsConnector> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_root_certificates(self.roots.clone())
            .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        Ok(Arc::new(config).into())
    }

    /// The server's side.
    pub(super) fn acceptor(&self) -> Result<TlsAcceptor> {
        let clients = WebPkiClientVerifier::builder_with_provider(self.roots.clone(), provider()).build()?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(clients)
            .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.send_tls13_tickets = 1;
        Ok(Arc::new(config).into())
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider {
        cipher_suites: vec![aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256],
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    })
}
