//! For tests: handshakes between our client and our server.

use crate::Handshake;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedCipherSuite, version};
use std::sync::Arc;

pub(crate) const SUITES: [SupportedCipherSuite; 3] = [
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS13_AES_256_GCM_SHA384,
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
];

/// A client and a server that trust each other. `retried`: the server wants another key share than the client's first.
pub(crate) fn configs(suite: SupportedCipherSuite, retried: bool) -> (ClientConfig, ServerConfig) {
    let made = rcgen::generate_simple_self_signed(["peer.test".to_owned()]).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let with =
        |kx_groups| Arc::new(CryptoProvider { cipher_suites: vec![suite], kx_groups, ..default_provider() });
    let taken = if retried { kx_group::SECP256R1 } else { kx_group::X25519 };
    let mut client = ClientConfig::builder_with_provider(with(vec![kx_group::X25519, kx_group::SECP256R1]))
        .with_protocol_versions(&[&version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut server = ServerConfig::builder_with_provider(with(vec![taken]))
        .with_protocol_versions(&[&version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    (client.enable_secret_extraction, server.enable_secret_extraction) = (true, true);
    (client, server)
}

/// Client and server after their handshake, and what is still on its way to the client: tickets.
pub(crate) fn shaken((client, server): (ClientConfig, ServerConfig)) -> (Handshake, Handshake, Vec<u8>) {
    let name = ServerName::try_from("peer.test").unwrap();
    let mut client = Handshake::client(Arc::new(client), name).unwrap();
    let mut server = Handshake::server(Arc::new(server)).unwrap();
    let (mut up, mut down) = (Vec::new(), Vec::new());
    let mut done = (false, false);
    while done != (true, true) {
        if !done.0 {
            let progress = client.advance(&mut down, &mut up).unwrap();
            down.drain(..progress.used);
            done.0 = progress.done;
        }
        if !done.1 {
            let progress = server.advance(&mut up, &mut down).unwrap();
            up.drain(..progress.used);
            done.1 = progress.done;
        }
    }
    (client, server, down)
}
