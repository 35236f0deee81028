//! Whom fetches trust: the public certificate authorities that are compiled in (the image holds no files of its
//! own) and, besides, those in the installation's file. The file is read at each fetch, so that a mounted
//! ConfigMap may change.

use super::fault::Fault;
use parking_lot::Mutex;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::path::PathBuf;
use std::sync::Arc;

/// A file of certificates is not longer; all public ones together are about 200 KiB.
const LARGEST_FILE: usize = 1024 * 1024;

/// Makes TLS configurations.
#[derive(Debug)]
pub(super) struct Trust {
    ca_file: Option<PathBuf>,
    /// The last one, and the file that it was made with.
    made: Mutex<Option<(Vec<u8>, Arc<ClientConfig>)>>,
}

impl Trust {
    /// `ca_file` holds certificates in PEM that are trusted besides the public ones.
    pub(super) fn new(ca_file: Option<PathBuf>) -> Self {
        Trust { ca_file, made: Mutex::new(None) }
    }

    /// The configuration for now.
    pub(super) async fn config(&self) -> Result<Arc<ClientConfig>, Fault> {
        let pem = match &self.ca_file {
            Some(path) => tokio::fs::read(path)
                .await
                .map_err(|error| Fault::Trust(format!("{}: {error}", path.display())))?,
            None => Vec::new(),
        };
        let mut made = self.made.lock();
        if let Some((_, config)) = made.as_ref().filter(|(of, _)| *of == pem) {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(config(&pem, self.ca_file.is_some())?);
        *made = Some((pem, Arc::clone(&config)));
        Ok(config)
    }
}

fn config(pem: &[u8], expected: bool) -> Result<ClientConfig, Fault> {
    if pem.len() > LARGEST_FILE {
        return Err(Fault::Trust("it is larger than 1 MiB".to_owned()));
    }
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    let mut own = 0;
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|error| Fault::Trust(error.to_string()))?;
        roots.add(certificate).map_err(|error| Fault::Trust(error.to_string()))?;
        own += 1;
    }
    if expected && own == 0 {
        return Err(Fault::Trust("it holds no certificate in PEM".to_owned()));
    }
    // Issuers on the Internet need not speak TLS 1.3, unlike everybody inside the mesh.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Fault::Trust(error.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    // A fetch each twenty minutes has nothing to resume.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}
