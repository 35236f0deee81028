//! Peers that mean harm before they have proved anything: what they make us hold is bounded, and no order of
//! messages stops more than their own handshake.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]
use cinch_record::{Handshake, RecordError};
use rustls::crypto::aws_lc_rs::{default_provider, kx_group};
use rustls::crypto::{CryptoProvider, SupportedKxGroup};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::sync::Arc;

fn provider(groups: &[&'static dyn SupportedKxGroup]) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider { kx_groups: groups.to_vec(), ..default_provider() })
}

fn server() -> Handshake {
    let made = rcgen::generate_simple_self_signed(["peer.test".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut config = ServerConfig::builder_with_provider(provider(&[kx_group::X25519]))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.enable_secret_extraction = true;
    Handshake::server(Arc::new(config)).unwrap()
}

/// The first flight of a client that offers a share of the first of `groups`.
fn hello(groups: &[&'static dyn SupportedKxGroup]) -> Vec<u8> {
    let mut config = ClientConfig::builder_with_provider(provider(groups))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    config.enable_secret_extraction = true;
    let mut client = Handshake::client(Arc::new(config), ServerName::try_from("peer.test").unwrap()).unwrap();
    let mut out = Vec::new();
    client.advance(&mut [], &mut out).unwrap();
    out
}

#[test]
fn a_message_that_never_ends_does_not_wait_in_memory() {
    let mut server = server();
    // A ClientHello of 65,535 bytes, each in a record of its own.
    let content = [1, 0, 0xff, 0xff].into_iter().chain(std::iter::repeat(0));
    let (mut input, mut fed) = (Vec::new(), 0);
    for byte in content.take(60_000) {
        input.extend_from_slice(&[22, 3, 3, 0, 1, byte]);
        fed += 6;
        match server.advance(&mut input, &mut Vec::new()) {
            Ok(progress) => drop(input.drain(..progress.used)),
            Err(error) => {
                assert!(matches!(error, RecordError::TooLong(_)), "{error}");
                assert!((64 * 1024..100 * 1024).contains(&fed), "after {fed} bytes");
                return;
            }
        }
    }
    panic!("{} bytes wait", input.len());
}

#[test]
fn a_hello_in_the_smallest_pieces_is_still_read() {
    let mut server = server();
    let whole = hello(&[kx_group::X25519]);
    let (mut input, mut out) = (Vec::new(), Vec::new());
    for byte in &whole[5..] {
        input.extend_from_slice(&[22, 3, 3, 0, 1, *byte]);
        let used = server.advance(&mut input, &mut out).unwrap().used;
        input.drain(..used);
    }
    assert!(input.is_empty() && out.len() > 500, "the server has answered");
}

#[test]
fn a_fault_after_a_retry_is_an_error_and_nothing_else() {
    // After a HelloRetryRequest: a hello that is too long, one in pieces with an alert between them, one that is none.
    let faults: [&[u8]; 4] = [
        &[22, 3, 3, 0, 4, 1, 0xff, 0xff, 0xff],
        &[22, 3, 3, 0, 4, 1, 0, 0, 9, 21, 3, 3, 0, 2, 1, 0],
        &[22, 3, 3, 0, 5, 1, 0, 0, 1, 7],
        &[22, 3, 3, 0, 0, 22, 3, 3, 0, 0],
    ];
    for fault in faults {
        let mut server = server();
        let mut input = hello(&[kx_group::SECP256R1, kx_group::X25519]);
        let mut out = Vec::new();
        let used = server.advance(&mut input, &mut out).unwrap().used;
        input.drain(..used);
        assert!(!out.is_empty() && input.is_empty(), "the server asks for another share");
        input.extend_from_slice(fault);
        let ended = server.advance(&mut input, &mut out).and_then(|progress| {
            input.drain(..progress.used);
            input.extend_from_slice(&[23, 3, 3, 0, 1, 0]);
            server.advance(&mut input, &mut out)
        });
        assert!(ended.is_err(), "{fault:?}: {ended:?}");
    }
}
