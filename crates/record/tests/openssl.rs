//! Our records against OpenSSL's, in both roles, with key updates of either side and session tickets, at random
//! boundaries of records, reads and writes. Where there is no `openssl`, they say so and pass.

#![allow(clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unwrap_used)]
use cinch_record::{Handshake, MAX_PLAINTEXT, Records, Step};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

const SUITES: [&str; 3] =
    ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"];

/// No program, no test: a developer's machine may lack it.
fn have_openssl() -> bool {
    let have = Command::new("openssl").arg("version").output().is_ok_and(|output| output.status.success());
    if !have {
        eprintln!("skipped: there is no openssl on this machine");
    }
    have
}

/// The same numbers in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    /// Digits: the first letter of a line would be a command to openssl.
    fn digits(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| b'0' + self.below(10) as u8).collect()
    }
}

/// A self-signed certificate and its key, as files too.
struct Identity {
    files: tempfile::TempDir,
    certificate: CertificateDer<'static>,
    key: Vec<u8>,
}

impl Identity {
    fn new() -> Identity {
        let made = rcgen::generate_simple_self_signed(["peer.test".to_owned()]).unwrap();
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(files.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
        Identity { files, certificate: made.cert.der().clone(), key: made.signing_key.serialize_der() }
    }

    fn file(&self, name: &str) -> String {
        self.files.path().join(name).to_str().unwrap().to_owned()
    }
}

/// openssl, whose output is collected.
struct OpenSsl {
    child: Child,
    input: Option<ChildStdin>,
    said: Arc<Mutex<Vec<u8>>>,
    reading: JoinHandle<()>,
}

impl OpenSsl {
    fn start(arguments: &[&str]) -> OpenSsl {
        let mut command = Command::new("openssl");
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let (mut out, said) = (child.stdout.take().unwrap(), Arc::new(Mutex::new(Vec::new())));
        let (input, hears) = (child.stdin.take(), said.clone());
        let reading = std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(count @ 1..) = out.read(&mut piece) {
                hears.lock().unwrap().extend_from_slice(&piece[..count]);
            }
        });
        OpenSsl { child, input, said, reading }
    }

    fn type_in(&mut self, words: &[u8]) {
        self.input.as_mut().unwrap().write_all(words).unwrap();
    }

    fn has_said(&self, words: &[u8]) -> bool {
        let mut said = String::from_utf8_lossy(&self.said.lock().unwrap()).into_owned();
        // What the server says on its own account, in the midst of what it was told.
        for own in ["Read BLOCK\n", "SSL_do_handshake -> 1\n"] {
            said = said.replace(own, "");
        }
        said.contains(std::str::from_utf8(words).unwrap())
    }

    fn await_saying(&self, words: &[u8]) {
        for _ in 0..6000 {
            if self.has_said(words) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("openssl has not said {} bytes that it was told", words.len());
    }

    fn end(mut self) {
        drop(self.input.take());
        let _ = self.child.kill();
        self.child.wait().unwrap();
        self.reading.join().unwrap();
    }
}

/// Our side of a connection after its handshake.
struct Ours {
    tcp: TcpStream,
    records: Records,
    input: Vec<u8>,
    random: Random,
    heard: Vec<u8>,
    controls: usize,
    closed: bool,
}

impl Ours {
    fn shake(mut tcp: TcpStream, mut handshake: Handshake, mut random: Random) -> Ours {
        tcp.set_nodelay(true).unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let (mut input, mut out) = (Vec::new(), Vec::new());
        loop {
            let progress = handshake.advance(&mut input, &mut out);
            tcp.write_all(&out).unwrap();
            out.clear();
            let progress = progress.unwrap();
            input.drain(..progress.used);
            if progress.done {
                break;
            }
            read(&mut tcp, &mut input, &mut random);
        }
        let records = handshake.into_records().unwrap();
        Ours { tcp, records, input, random, heard: Vec::new(), controls: 0, closed: false }
    }

    /// Says `words` in records and writes of random lengths.
    fn say(&mut self, mut words: &[u8]) {
        let mut out = Vec::new();
        while !words.is_empty() {
            let length = 1 + self.random.below(words.len().min(MAX_PLAINTEXT));
            let (part, rest) = words.split_at(length);
            self.records.seal(&[part], &mut out).unwrap();
            words = rest;
        }
        self.write(&out);
    }

    fn write(&mut self, mut out: &[u8]) {
        while !out.is_empty() {
            let (piece, rest) = out.split_at(1 + self.random.below(out.len()));
            self.tcp.write_all(piece).unwrap();
            out = rest;
        }
    }

    /// Takes what comes until `enough`.
    fn hear_until(&mut self, enough: impl Fn(&Ours) -> bool) {
        loop {
            let mut out = Vec::new();
            loop {
                let used = match self.records.open(&mut self.input, &mut out).unwrap() {
                    Step::Incomplete => break,
                    Step::Data { bytes, used } => {
                        self.heard.extend_from_slice(bytes);
                        used
                    }
                    Step::Control { used } => {
                        self.controls += 1;
                        used
                    }
                    Step::Closed { used } => {
                        self.closed = true;
                        used
                    }
                };
                self.input.drain(..used);
            }
            self.write(&out);
            self.records.sent();
            if enough(self) {
                return;
            }
            read(&mut self.tcp, &mut self.input, &mut self.random);
        }
    }

    /// Exchanges words both ways and changes keys in between, on either side's wish.
    fn converse(&mut self, peer: &mut OpenSsl) {
        for round in 0..8 {
            let size = [200, 3000][round % 2];
            let length = 1 + self.random.below(size);
            let mut words = self.random.digits(length);
            words.push(b'\n');
            peer.type_in(&words);
            let until = self.heard.len() + words.len();
            self.hear_until(|ours| ours.heard.len() >= until);
            assert!(self.heard.ends_with(&words));
            let length = 1 + self.random.below(60_000);
            let words = self.random.digits(length);
            self.say(&words);
            peer.await_saying(&words);
            match round % 4 {
                // openssl changes its key, and asks (K) or does not ask (k) for ours to be changed.
                0 | 1 => {
                    let before = self.controls;
                    peer.type_in([b"K\n", b"k\n"][round % 4]);
                    self.hear_until(|ours| ours.controls > before);
                }
                2 => {
                    let mut out = Vec::new();
                    self.records.update(&mut out).unwrap();
                    self.write(&out);
                }
                _ => {}
            }
        }
    }
}

fn read(tcp: &mut TcpStream, input: &mut Vec<u8>, random: &mut Random) {
    let start = input.len();
    let size = [40, 5000, 60_000][random.below(3)];
    input.resize(start + 1 + random.below(size), 0);
    let count = tcp.read(&mut input[start..]).unwrap();
    assert!(count > 0, "openssl has closed the connection");
    input.truncate(start + count);
}

#[test]
fn our_server_and_openssls_client_understand_each_other() {
    if !have_openssl() {
        return;
    }
    let identity = Identity::new();
    for (seed, suite) in (1..).zip(SUITES) {
        let key = PrivateKeyDer::try_from(identity.key.clone()).unwrap();
        let mut config = ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_no_client_auth()
            .with_single_cert(vec![identity.certificate.clone()], key)
            .unwrap();
        config.enable_secret_extraction = true;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let ca = identity.file("cert.pem");
        let mut peer = OpenSsl::start(&[
            "s_client",
            "-connect",
            &address,
            "-servername",
            "peer.test",
            "-CAfile",
            &ca,
            "-verify_return_error",
            "-tls1_3",
            "-ciphersuites",
            suite,
        ]);
        let handshake = Handshake::server(Arc::new(config)).unwrap();
        let mut ours = Ours::shake(listener.accept().unwrap().0, handshake, Random(seed));
        ours.converse(&mut peer);
        peer.type_in(b"Q\n");
        ours.hear_until(|ours| ours.closed);
        peer.end();
    }
}

#[test]
fn our_client_and_openssls_server_understand_each_other_and_tickets_are_passed_over() {
    if !have_openssl() {
        return;
    }
    let identity = Identity::new();
    for (seed, suite) in (11..).zip(SUITES) {
        let (certificate, key) = (identity.file("cert.pem"), identity.file("key.pem"));
        let mut peer = OpenSsl::start(&[
            "s_server",
            "-accept",
            "127.0.0.1:0",
            "-cert",
            &certificate,
            "-key",
            &key,
            "-tls1_3",
            "-ciphersuites",
            suite,
            "-num_tickets",
            "3",
            "-naccept",
            "1",
        ]);
        peer.await_saying(b"ACCEPT 127.0.0.1:");
        let tcp = TcpStream::connect(accepts_at(&peer)).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(identity.certificate.clone()).unwrap();
        let mut config = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13])
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.enable_secret_extraction = true;
        let name = ServerName::try_from("peer.test").unwrap();
        let handshake = Handshake::client(Arc::new(config), name).unwrap();
        let mut ours = Ours::shake(tcp, handshake, Random(seed));
        ours.converse(&mut peer);
        assert!(ours.controls > 4, "key updates, and at least one record of tickets");
        // It answers in kind; its own command to close says nothing.
        let mut out = Vec::new();
        ours.records.close_notify(&mut out).unwrap();
        ours.write(&out);
        ours.hear_until(|ours| ours.closed);
        peer.end();
    }
}

/// The address in the line `ACCEPT 127.0.0.1:12345`.
fn accepts_at(peer: &OpenSsl) -> String {
    for _ in 0..6000 {
        let said = peer.said.lock().unwrap().clone();
        let line = BufReader::new(said.as_slice())
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("ACCEPT ").map(str::to_owned));
        if let Some(line) = line.filter(|_| said.ends_with(b"\n")) {
            return line;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("openssl does not say where it listens");
}
