//! Bytes of a tunnel's peer as TLS records. Sealed by the peer and cut anywhere, they come out as they went in; what
//! was changed on the way is refused, and nothing behind it is heard; and no bytes make anybody panic.
#![no_main]

use cinch_record::{Handshake, RecordError, Records, Step};
use libfuzzer_sys::fuzz_target;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::sync::{Arc, LazyLock};

struct Configs(Arc<ClientConfig>, Arc<ServerConfig>);

static CONFIGS: LazyLock<Configs> = LazyLock::new(|| {
    let made = rcgen::generate_simple_self_signed(["peer.test".to_owned()]).unwrap();
    let certificate: CertificateDer<'static> = made.cert.der().clone();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let versions = &[&rustls::version::TLS13];
    let mut client = ClientConfig::builder_with_protocol_versions(versions)
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.resumption = rustls::client::Resumption::disabled();
    let mut server = ServerConfig::builder_with_protocol_versions(versions)
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    server.send_tls13_tickets = 0;
    (client.enable_secret_extraction, server.enable_secret_extraction) = (true, true);
    Configs(Arc::new(client), Arc::new(server))
});

fn pair() -> (Records, Records) {
    let Configs(client, server) = &*CONFIGS;
    let name = ServerName::try_from("peer.test").unwrap();
    let mut client = Handshake::client(client.clone(), name).unwrap();
    let mut server = Handshake::server(server.clone()).unwrap();
    let (mut up, mut down) = (Vec::new(), Vec::new());
    let mut done = (false, false);
    while done != (true, true) {
        let at_client = client.advance(&mut down, &mut up).unwrap();
        down.drain(..at_client.used);
        let at_server = server.advance(&mut up, &mut down).unwrap();
        up.drain(..at_server.used);
        done = (done.0 || at_client.done, done.1 || at_server.done);
    }
    (client.into_records().unwrap(), server.into_records().unwrap())
}

/// Opens pieces of `size` bytes; what was heard, and the fault that ended it.
fn hear(records: &mut Records, wire: &[u8], size: usize) -> (Vec<u8>, Option<RecordError>) {
    let (mut input, mut out, mut heard) = (Vec::new(), Vec::new(), Vec::new());
    for piece in wire.chunks(size) {
        input.extend_from_slice(piece);
        loop {
            let used = match records.open(&mut input, &mut out) {
                Ok(Step::Incomplete) => break,
                Ok(Step::Data { bytes, used }) => {
                    heard.extend_from_slice(bytes);
                    used
                }
                Ok(Step::Control { used }) => used,
                Ok(Step::Closed { .. }) => return (heard, None),
                Err(error) => return (heard, Some(error)),
            };
            input.drain(..used);
        }
    }
    (heard, None)
}

fuzz_target!(|data: &[u8]| {
    let [size, records, change, at, bytes @ ..] = data else { return };
    let size = usize::from(*size).max(1);
    let (mut client, mut server) = pair();
    // As they are, nobody has sealed them; a handshake does not take them either.
    assert!(hear(&mut client, bytes, size).0.is_empty());
    let _ = Handshake::server(CONFIGS.1.clone()).unwrap().advance(&mut bytes.to_vec(), &mut Vec::new());
    if bytes.is_empty() {
        return;
    }
    // Sealed, with a key update before every third record.
    let mut wire = Vec::new();
    for (number, words) in bytes.chunks(usize::from(*records).max(1)).enumerate() {
        if number % 3 == 2 {
            client.update(&mut wire).unwrap();
        }
        client.seal(&[words], &mut wire).unwrap();
    }
    if *change == 0 {
        assert_eq!(hear(&mut server, &wire, size), (bytes.to_vec(), None));
        return;
    }
    let at = usize::from(*at) * wire.len() / 256;
    wire[at] ^= change;
    let (heard, _) = hear(&mut server, &wire, size);
    assert!(bytes.starts_with(&heard) && heard.len() < bytes.len());
});
