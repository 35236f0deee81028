//! Our records against rustls's own, in both roles: whatever the boundaries of records and of segments, what one
//! side says is what the other hears.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]
use cinch_record::{Handshake, RecordError, Records, Step};
use proptest::prelude::*;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, Connection, HandshakeKind, RootCertStore, ServerConfig, SupportedCipherSuite};
use std::io::{Read, Write};
use std::sync::{Arc, OnceLock};

const SUITES: [SupportedCipherSuite; 3] = [
    cipher_suite::TLS13_AES_128_GCM_SHA256,
    cipher_suite::TLS13_AES_256_GCM_SHA384,
    cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
];

fn provider(suite: usize) -> Arc<CryptoProvider> {
    Arc::new(CryptoProvider { cipher_suites: vec![SUITES[suite % 3]], ..default_provider() })
}

fn identity() -> &'static (CertificateDer<'static>, Vec<u8>) {
    static IDENTITY: OnceLock<(CertificateDer<'static>, Vec<u8>)> = OnceLock::new();
    IDENTITY.get_or_init(|| {
        let made = rcgen::generate_simple_self_signed(["peer.test".to_owned()]).unwrap();
        (made.cert.der().clone(), made.signing_key.serialize_der())
    })
}

fn server_config(suite: usize) -> Arc<ServerConfig> {
    let (certificate, key) = identity();
    let key = PrivateKeyDer::try_from(key.clone()).unwrap();
    let mut config = ServerConfig::builder_with_provider(provider(suite))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.clone()], key)
        .unwrap();
    config.enable_secret_extraction = true;
    Arc::new(config)
}

fn client_config(suite: usize) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(identity().0.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(provider(suite))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.enable_secret_extraction = true;
    Arc::new(config)
}

fn name() -> ServerName<'static> {
    ServerName::try_from("peer.test").unwrap()
}

/// Our side: the records, what has come and is not opened yet, what is to be sent.
struct Ours {
    records: Records,
    input: Vec<u8>,
    out: Vec<u8>,
    heard: Vec<u8>,
    closed: bool,
}

impl Ours {
    /// Opens all that is there whole.
    fn take(&mut self, segment: &[u8]) -> Result<(), RecordError> {
        self.input.extend_from_slice(segment);
        loop {
            let used = match self.records.open(&mut self.input, &mut self.out)? {
                Step::Incomplete => return Ok(()),
                Step::Data { bytes, used } => {
                    self.heard.extend_from_slice(bytes);
                    used
                }
                Step::Control { used } => used,
                Step::Closed { used } => {
                    self.closed = true;
                    used
                }
            };
            self.input.drain(..used);
        }
    }
}

/// The other side: rustls as everybody uses it.
struct Theirs {
    tls: Connection,
    heard: Vec<u8>,
}

impl Theirs {
    fn take(&mut self, mut bytes: &[u8]) -> Result<(), rustls::Error> {
        while !bytes.is_empty() {
            self.tls.read_tls(&mut bytes).unwrap();
            let state = self.tls.process_new_packets()?;
            let mut chunk = vec![0; state.plaintext_bytes_to_read()];
            self.tls.reader().read_exact(&mut chunk).unwrap();
            self.heard.extend_from_slice(&chunk);
        }
        Ok(())
    }

    fn out(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut out).unwrap();
        }
        out
    }
}

/// Bytes cut into segments as `cuts` says, round and round.
fn segments<'a>(bytes: &'a [u8], cuts: &'a [usize]) -> impl Iterator<Item = &'a [u8]> {
    let (mut rest, mut cuts) = (bytes, cuts.iter().cycle());
    std::iter::from_fn(move || {
        let length = (*cuts.next()?).clamp(1, rest.len().max(1));
        let (segment, after) = rest.split_at_checked(length)?;
        rest = after;
        (!segment.is_empty()).then_some(segment)
    })
}

/// A finished handshake, its bytes cut as `cuts` says. With `early`, what the other side says at once comes in the
/// same segments as the end of its handshake.
fn shake(we_serve: bool, suite: usize, cuts: &[usize], early: &[u8]) -> (Ours, Theirs) {
    shake_as((client_config(suite), server_config(suite)), we_serve, cuts, early)
}

fn shake_as(
    (client, server): (Arc<ClientConfig>, Arc<ServerConfig>),
    we_serve: bool,
    cuts: &[usize],
    early: &[u8],
) -> (Ours, Theirs) {
    let (mut ours, tls) = if we_serve {
        let client = rustls::ClientConnection::new(client, name()).unwrap();
        (Handshake::server(server).unwrap(), Connection::Client(client))
    } else {
        let server = rustls::ServerConnection::new(server).unwrap();
        (Handshake::client(client, name()).unwrap(), Connection::Server(server))
    };
    let mut theirs = Theirs { tls, heard: Vec::new() };
    let (mut input, mut out, mut said) = (Vec::new(), Vec::new(), false);
    loop {
        let mut sent = theirs.out();
        if !theirs.tls.is_handshaking() && !said {
            said = true;
            theirs.tls.writer().write_all(early).unwrap();
            sent.extend(theirs.out());
        }
        let mut done = false;
        // An empty segment lets a client begin.
        let all: Vec<&[u8]> = std::iter::once(&[][..]).chain(segments(&sent, cuts)).collect();
        for segment in all {
            input.extend_from_slice(segment);
            if done {
                continue;
            }
            let progress = ours.advance(&mut input, &mut out).unwrap();
            input.drain(..progress.used);
            done = progress.done;
        }
        theirs.take(&std::mem::take(&mut out)).unwrap();
        if done {
            assert!(!ours.state().is_handshaking());
            let records = ours.into_records().unwrap();
            let mut ours = Ours { records, input, out, heard: Vec::new(), closed: false };
            ours.take(&[]).unwrap();
            let late = theirs.out();
            ours.take(&late).unwrap();
            if !said {
                theirs.tls.writer().write_all(early).unwrap();
                let late = theirs.out();
                ours.take(&late).unwrap();
            }
            return (ours, theirs);
        }
    }
}

fn bytes(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn both_sides_hear_what_the_other_said(
        we_serve: bool,
        suite in 0usize..3,
        cuts in prop::collection::vec(1usize..6000, 1..6),
        ours_says in prop::collection::vec(0usize..=16_384, 0..6),
        theirs_says in prop::collection::vec(0usize..40_000, 0..4),
        early in 0usize..3000,
        updates: (bool, bool),
    ) {
        let early = bytes(early, 9);
        let (mut ours, mut theirs) = shake(we_serve, suite, &cuts, &early);
        prop_assert_eq!(&ours.heard, &early);
        let (mut said, mut told) = (early, Vec::new());
        for (number, length) in ours_says.iter().enumerate() {
            let words = bytes(*length, number as u8);
            let (head, tail) = words.split_at(length / 2);
            if updates.0 {
                ours.records.update(&mut ours.out).unwrap();
            }
            ours.records.seal(&[head, tail], &mut ours.out).unwrap();
            told.extend(words);
        }
        for (number, length) in theirs_says.iter().enumerate() {
            let words = bytes(*length, 100 + number as u8);
            theirs.tls.writer().write_all(&words).unwrap();
            if updates.1 {
                // rustls asks for ours in return.
                theirs.tls.refresh_traffic_keys().unwrap();
            }
            said.extend(words);
            let sent = theirs.out();
            for segment in segments(&sent, &cuts) {
                ours.take(segment).unwrap();
            }
        }
        ours.records.seal(&[b"end"], &mut ours.out).unwrap();
        told.extend(b"end");
        ours.records.close_notify(&mut ours.out).unwrap();
        for segment in segments(&std::mem::take(&mut ours.out), &cuts) {
            theirs.take(segment).unwrap();
        }
        theirs.tls.send_close_notify();
        let sent = theirs.out();
        ours.take(&sent).unwrap();
        prop_assert_eq!(&theirs.heard, &told);
        prop_assert_eq!(&ours.heard, &said);
        prop_assert!(ours.closed && ours.input.is_empty());
    }

    #[test]
    fn a_changed_byte_is_noticed(suite in 0usize..3, at in 0usize..120, bit in 0u8..8) {
        let (mut ours, mut theirs) = shake(true, suite, &[6000], b"");
        theirs.tls.writer().write_all(&bytes(100, 1)).unwrap();
        let mut sent = theirs.out();
        let at = at % sent.len();
        sent[at] ^= 1 << bit;
        // The version in the head is not authentic by itself, but it is part of what the tag covers.
        let heard = ours.take(&sent);
        prop_assert!(heard.is_err() || ours.heard.is_empty(), "{:?}", heard);
        prop_assert!(ours.heard.is_empty());
    }

    #[test]
    fn garbage_is_an_error_or_incomplete(mut garbage in prop::collection::vec(any::<u8>(), 0..200)) {
        let (mut ours, _theirs) = shake(true, 0, &[6000], b"");
        let mut out = Vec::new();
        let step = ours.records.open(&mut garbage, &mut out);
        prop_assert!(matches!(step, Err(_) | Ok(Step::Incomplete)));
        let mut handshake = Handshake::server(server_config(0)).unwrap();
        if let Ok(progress) = handshake.advance(&mut garbage, &mut out) {
            prop_assert!(!progress.done && progress.used <= garbage.len());
        }
    }
}

#[test]
fn a_record_twice_or_out_of_order_is_refused() {
    for order in [[0, 0], [1, 0]] {
        let (mut ours, mut theirs) = shake(true, 0, &[6000], b"");
        let sent: Vec<Vec<u8>> = ["first", "second"]
            .iter()
            .map(|words| {
                theirs.tls.writer().write_all(words.as_bytes()).unwrap();
                theirs.out()
            })
            .collect();
        let heard: Result<Vec<()>, _> = order.iter().map(|at| ours.take(&sent[*at])).collect();
        assert_eq!(heard.err(), Some(RecordError::BadRecord), "{order:?}");
    }
}

#[test]
fn after_the_end_of_the_connection_nothing_is_sealed() {
    let (mut ours, mut theirs) = shake(true, 0, &[6000], b"");
    ours.records.close_notify(&mut ours.out).unwrap();
    let length = ours.out.len();
    ours.records.close_notify(&mut ours.out).unwrap();
    assert_eq!(ours.out.len(), length, "said once");
    assert_eq!(ours.records.seal(&[b"more"], &mut ours.out), Err(RecordError::Closed));
    // A key update that asks for ours gets no answer any more, and is taken all the same.
    theirs.tls.refresh_traffic_keys().unwrap();
    theirs.tls.writer().write_all(b"still here").unwrap();
    let sent = theirs.out();
    ours.take(&sent).unwrap();
    assert_eq!((ours.heard.as_slice(), ours.out.len()), (&b"still here"[..], length));
}

#[test]
fn a_resumed_session_has_secrets_of_its_own() {
    let (client, server) = (client_config(0), server_config(0));
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
        let (mut ours, mut theirs) = shake_as((client.clone(), server.clone()), true, &[6000], b"");
        assert_eq!(theirs.tls.handshake_kind(), Some(kind));
        for _ in 0..2 {
            // It asks for ours in return.
            theirs.tls.refresh_traffic_keys().unwrap();
            theirs.tls.writer().write_all(b"theirs").unwrap();
            let sent = theirs.out();
            ours.take(&sent).unwrap();
            ours.records.seal(&[b"ours"], &mut ours.out).unwrap();
            theirs.take(&std::mem::take(&mut ours.out)).unwrap();
            ours.records.sent();
        }
        assert_eq!(
            (ours.heard.as_slice(), theirs.heard.as_slice()),
            (&b"theirstheirs"[..], &b"oursours"[..])
        );
    }
}

#[test]
fn a_fault_is_told_to_the_peer_as_an_alert() {
    let (mut ours, mut theirs) = shake(false, 1, &[6000], b"");
    let error = ours.take(&[23, 3, 3, 0x41, 0x01]).unwrap_err();
    assert!(matches!(error, RecordError::TooLong(_)));
    ours.records.abort(&error, &mut ours.out);
    let told = theirs.take(&ours.out).unwrap_err();
    assert_eq!(told, rustls::Error::AlertReceived(rustls::AlertDescription::RecordOverflow));
}

#[test]
fn what_does_not_fit_is_not_sealed() {
    let (mut ours, _theirs) = shake(true, 0, &[6000], b"");
    let long = vec![0; 16_385];
    assert_eq!(ours.records.seal(&[&long], &mut ours.out), Err(RecordError::DoesNotFit(16_385)));
    assert!(ours.out.is_empty());
}

#[test]
fn plain_records_after_the_handshake_are_refused() {
    for kind in [20, 21, 22, 24, 0, 255] {
        let (mut ours, _theirs) = shake(true, 0, &[6000], b"");
        assert_eq!(ours.take(&[kind, 3, 3, 0, 1, 1]), Err(RecordError::UnexpectedType(kind)));
    }
}

#[test]
fn a_flood_of_key_updates_ends_the_connection() {
    let (mut ours, mut theirs) = shake(true, 0, &[6000], b"");
    for _ in 0..40 {
        theirs.tls.refresh_traffic_keys().unwrap();
        let answers = std::mem::take(&mut ours.out);
        theirs.take(&answers).unwrap();
    }
    let sent = theirs.out();
    assert_eq!(ours.take(&sent), Err(RecordError::TooMuchControl));
}
