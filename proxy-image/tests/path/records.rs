//! What a tunnel makes of TLS records, whoever has sealed them: the peer is rustls by hand, so that it can cut,
//! delay, change keys and forge.

use crate::mesh::*;
use crate::modes::pod;
use cinch_identity::{Peer, client_config, server_name};
use cinch_policy::Mode;
use cinch_tunnel::{ALPN, Event, Open, Session, Side};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use rustls::ClientConnection;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// A client's side of a tunnel.
pub struct Client {
    pub tcp: TcpStream,
    pub tls: ClientConnection,
    pub session: Session,
    pub heard: Vec<u8>,
    pub fin: bool,
}

impl Client {
    /// After the handshake; the end of ours is not sent yet.
    pub async fn shake(authority: &Authority, pod: &Pod) -> Client {
        let credentials = authority.good(WEB);
        let peer = Peer::Exactly(id(API));
        let config = client_config(Some(&credentials.svid), &credentials.bundle, peer, &[ALPN]).unwrap();
        let mut tcp = TcpStream::connect(pod.inbound).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let mut tls = ClientConnection::new(config, server_name()).unwrap();
        while tls.is_handshaking() {
            let mut out = Vec::new();
            while tls.wants_write() {
                tls.write_tls(&mut out).unwrap();
            }
            tcp.write_all(&out).await.unwrap();
            let mut bytes = vec![0; 16_384];
            let count = within(tcp.read(&mut bytes)).await.unwrap();
            assert!(count > 0);
            let mut rest = &bytes[..count];
            while !rest.is_empty() {
                tls.read_tls(&mut rest).unwrap();
                tls.process_new_packets().unwrap();
            }
        }
        Client { tcp, tls, session: Session::new(Side::Client), heard: Vec::new(), fin: false }
    }

    /// Begins a stream.
    pub fn open(&mut self) {
        let mut frame = Vec::new();
        self.session.open(Open::default(), &mut frame).unwrap();
        self.tls.writer().write_all(&frame).unwrap();
    }

    /// Words of the app, the last ones if `fin`.
    pub fn say(&mut self, words: &[u8], fin: bool) {
        let head = self.session.data(words.len(), fin).unwrap();
        self.tls.writer().write_all(&[&head, words].concat()).unwrap();
    }

    /// All that TLS wants to send.
    pub fn sealed(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut out).unwrap();
        }
        out
    }

    /// Takes in what has come; says what TLS thinks of it.
    pub async fn hear(&mut self) -> Result<(), rustls::Error> {
        let mut bytes = vec![0; 65_536];
        let count = within(self.tcp.read(&mut bytes)).await.unwrap();
        assert!(count > 0, "the proxy has closed");
        let mut rest = &bytes[..count];
        while !rest.is_empty() {
            self.tls.read_tls(&mut rest).unwrap();
            let state = self.tls.process_new_packets()?;
            let mut plain = vec![0; state.plaintext_bytes_to_read()];
            self.tls.reader().read_exact(&mut plain).unwrap();
            let mut plain = plain.as_slice();
            while let Some(event) = self.session.receive(&mut plain).unwrap() {
                match event {
                    Event::Opened => {}
                    Event::Data { bytes, fin } => {
                        self.heard.extend_from_slice(bytes);
                        self.fin |= fin;
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        Ok(())
    }
}

#[tokio::test]
async fn words_arrive_whatever_the_cuts_and_keys_are() {
    let (authority, pod) = pod(Mode::Strict).await;
    let mut random = StdRng::seed_from_u64(8446);
    for round in 0..12 {
        let mut client = Client::shake(&authority, &pod).await;
        client.open();
        let mut words = vec![0; [1, 300, 40_000, 200_000][round % 4]];
        random.fill_bytes(&mut words);
        let mut said = words.chunks(random.random_range(1..=16_382)).peekable();
        // The first of it comes in one segment with the end of the handshake.
        let mut out = Vec::new();
        while let Some(chunk) = said.next() {
            client.say(chunk, said.peek().is_none());
            if random.random_range(0..4) == 0 {
                client.tls.refresh_traffic_keys().unwrap();
            }
            out.extend(client.sealed());
        }
        let longest = [3, 1000, 30_000][round % 3].max(out.len() / 200);
        let mut rest = out.as_slice();
        while !rest.is_empty() {
            let (piece, after) = rest.split_at(random.random_range(1..=longest.min(rest.len())));
            client.tcp.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
            rest = after;
        }
        while !client.fin {
            client.hear().await.unwrap();
        }
        assert!(client.heard == words, "{} of {} bytes", client.heard.len(), words.len());
    }
}

#[tokio::test]
async fn a_forged_record_ends_its_tunnel_alone_and_with_an_alert() {
    let (authority, pod) = pod(Mode::Strict).await;
    let mut good = Client::shake(&authority, &pod).await;
    good.open();
    let mut client = Client::shake(&authority, &pod).await;
    client.open();
    client.say(b"before", false);
    let out = client.sealed();
    client.tcp.write_all(&out).await.unwrap();
    while client.heard != b"before" {
        client.hear().await.unwrap();
    }
    client.tcp.write_all(&[&[23, 3, 3, 0, 30][..], &[7; 30]].concat()).await.unwrap();
    let told = loop {
        if let Err(error) = client.hear().await {
            break error;
        }
    };
    assert_eq!(told, rustls::Error::AlertReceived(rustls::AlertDescription::BadRecordMac));
    let faults = || pod.metric("protocol_errors_total{direction=\"inbound\"}") == Some(1);
    eventually("it is counted", faults).await;
    good.say(b"still here", true);
    let out = good.sealed();
    good.tcp.write_all(&out).await.unwrap();
    while !good.fin {
        good.hear().await.unwrap();
    }
    assert_eq!(good.heard, b"still here");
}

/// Hands on what comes, and counts the records of application data in it.
async fn tap(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, records: Arc<AtomicUsize>) {
    let mut waiting = Vec::new();
    while from.read_buf(&mut waiting).await.is_ok_and(|count| count > 0) {
        let mut whole = 0;
        while let Some([kind, _, _, high, low]) = waiting.get(whole..).and_then(|rest| rest.first_chunk()) {
            let end = whole + 5 + usize::from(u16::from_be_bytes([*high, *low]));
            if end > waiting.len() {
                break;
            }
            records.fetch_add(usize::from(*kind == 23), Ordering::Relaxed);
            whole = end;
        }
        to.write_all(&waiting[..whole]).await.unwrap();
        waiting.drain(..whole);
    }
}

/// Somebody on the way to `to` who counts records, those to it and those from it.
async fn tapped(to: SocketAddr) -> (SocketAddr, [Arc<AtomicUsize>; 2]) {
    let listener = TcpListener::bind((API_IP, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (up, down) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = [up.clone(), down.clone()];
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(to).await.unwrap();
            for side in [&client, &server] {
                side.set_nodelay(true).unwrap();
            }
            let ((from, back), (answers, on)) = (client.into_split(), server.into_split());
            tokio::spawn(tap(from, on, up.clone()));
            tokio::spawn(tap(answers, back, down.clone()));
        }
    });
    (address, counts)
}

#[tokio::test]
async fn who_speaks_at_once_does_so_in_the_record_of_the_opening() {
    let mesh = Mesh::with_echo(Mode::Strict).await;
    let (address, counts) = tapped(mesh.api.inbound).await;
    mesh.web.told.say(SERVICE, one_of(vec![endpoint(address, API)]));
    for round in 0..4 {
        for count in &counts {
            count.store(0, Ordering::Relaxed);
        }
        let mut stream = TcpStream::connect(mesh.web.outbound).await.unwrap();
        assert_eq!(exchange(&mut stream, b"words").await.unwrap(), b"words");
        stream.shutdown().await.unwrap();
        assert_eq!(to_end(&mut stream).await, (vec![], None));
        eventually("the tunnel is idle", || mesh.web.metric("tunnels_idle ") == Some(1)).await;
        let [up, down] = [0, 1].map(|way| counts[way].load(Ordering::Relaxed));
        // The first tunnel has shaken hands, too.
        if round > 0 {
            assert_eq!((up, down), (2, 2), "OPEN with the words, OPENED with the answer, and an end each");
        }
    }
}
