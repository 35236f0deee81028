//! What the stranger does: one function for each attack, which goes on until it is told to stop and says how often it
//! did what it does (connections, or packets).

use crate::apps::{ECHO, HTTP};
use crate::scene::ATTACKED_IP;
use crate::{http2, packets};
use cinch_identity::{KeyPair, Peer, Svid, TrustBundle, TrustDomain, client_config, server_name};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::cell::Cell;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// True when the attack shall end.
pub type Stop = Arc<AtomicBool>;
/// An attack; it gives how often it did what it does.
pub type Attack = fn(Arc<Material>, Stop) -> u64;

/// Every attack, in the order in which they are played, with the rounds that it goes on.
pub const ALL: &[(&str, u32, Attack)] = &[
    ("SYN flood", 1, packets::syn_flood),
    // Two rounds are longer than the longest of the times that the scene sets.
    ("handshakes begun, then silence", 2, hello_and_silence),
    ("handshakes begun and given up", 1, hello_and_away),
    ("ClientHello byte by byte", 1, slow_hello),
    ("tunnel header byte by byte", 1, slow_header),
    // Those of the first byte and of the silence before it, one after the other.
    ("silence on an HTTP port", 3, silence_on_http),
    ("HTTP heads byte by byte", 1, slow_heads),
    ("requests of 1-byte writes", 1, small_writes),
    ("answers that nobody reads", 1, never_read),
    ("heads of 60 KiB that do not end", 1, fat_heads),
    ("HTTP/2 CONTINUATION flood", 1, http2::continuation_flood),
    ("HTTP/2 PING flood", 1, http2::ping_flood),
    ("HTTP/2 SETTINGS flood", 1, http2::settings_flood),
    ("HTTP/2 rapid reset", 1, http2::rapid_reset),
    ("HTTP/2 empty DATA flood", 1, http2::empty_data_flood),
    ("HTTP/2 streams without end", 1, http2::too_many_streams),
    ("HTTP/2 answers nobody reads", 1, http2::never_read),
    ("more connections than permitted", 1, too_many_connections),
];

/// The stranger's own certificate, which the mesh's authority has signed: an app gone bad.
pub struct Material {
    pub certificate: String,
    pub key: String,
    pub bundle: String,
}

impl Material {
    fn config(&self) -> Arc<rustls::ClientConfig> {
        let chain = CertificateDer::pem_slice_iter(self.certificate.as_bytes()).collect::<Result<_, _>>();
        let svid = Svid::new(chain.unwrap(), KeyPair::from_pem(&self.key).unwrap()).unwrap();
        let trust_domain = TrustDomain::parse("cluster.local").unwrap();
        let bundle = TrustBundle::from_pem(trust_domain, &self.bundle).unwrap();
        client_config(Some(&svid), &bundle, Peer::AnyInTrustDomain, &[cinch_tunnel::ALPN]).unwrap()
    }

    fn hello(&self) -> Vec<u8> {
        let mut client = rustls::ClientConnection::new(self.config(), server_name()).unwrap();
        let mut hello = Vec::new();
        client.write_tls(&mut hello).unwrap();
        hello
    }
}

/// One thread for all of a crowd.
pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// So many at once, each again and again, whatever becomes of it.
pub fn crowd<F>(count: usize, stop: &Stop, each: impl Fn() -> F) -> u64
where
    F: Future<Output = io::Result<()>>,
{
    let done = Cell::new(0);
    let one = || async {
        loop {
            let _ = each().await;
            done.set(done.get() + 1);
            // One that is refused at once must not keep the others from their turn.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let told = async {
        while !stop.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    runtime().block_on(async {
        let all = futures::future::join_all((0..count).map(|_| one()));
        tokio::select! {
            _ = all => {}
            () = told => {}
        }
    });
    // Those that are still under way.
    done.get() + count as u64
}

pub async fn dial(port: u16) -> io::Result<TcpStream> {
    TcpStream::connect((ATTACKED_IP, port)).await
}

/// Reads until the other side has had enough.
pub async fn hear_out(mut stream: impl tokio::io::AsyncRead + Unpin) -> io::Result<()> {
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer).await? > 0 {}
    Ok(())
}

async fn byte_by_byte(
    stream: &mut (impl tokio::io::AsyncWrite + Unpin),
    bytes: &[u8],
    pause: Duration,
) -> io::Result<()> {
    for byte in bytes {
        stream.write_all(&[*byte]).await?;
        stream.flush().await?;
        tokio::time::sleep(pause).await;
    }
    Ok(())
}

fn hello_and_silence(material: Arc<Material>, stop: Stop) -> u64 {
    let hello = material.hello();
    crowd(300, &stop, || async {
        let mut stream = dial(ECHO).await?;
        stream.write_all(&hello).await?;
        hear_out(stream).await
    })
}

fn hello_and_away(material: Arc<Material>, stop: Stop) -> u64 {
    let hello = material.hello();
    crowd(32, &stop, || async {
        let mut stream = dial(ECHO).await?;
        stream.write_all(&hello).await?;
        // The server has paid for the handshake by now.
        stream.read_u8().await.map(drop)
    })
}

fn slow_hello(material: Arc<Material>, stop: Stop) -> u64 {
    let hello = material.hello();
    crowd(300, &stop, || async {
        let mut stream = dial(ECHO).await?;
        byte_by_byte(&mut stream, &hello, Duration::from_millis(20)).await
    })
}

/// A peer with an identity, and the first control message of a tunnel that never comes to its end.
fn slow_header(material: Arc<Material>, stop: Stop) -> u64 {
    let connector = TlsConnector::from(material.config());
    let head = cinch_tunnel::head(cinch_tunnel::Kind::Control, 200).unwrap();
    let bytes = [&head[..], &[1, 0, 0]].concat();
    crowd(100, &stop, || async {
        let mut tls = connector.connect(server_name(), dial(ECHO).await?).await?;
        byte_by_byte(&mut tls, &bytes, Duration::from_millis(100)).await?;
        hear_out(tls).await
    })
}

fn silence_on_http(_: Arc<Material>, stop: Stop) -> u64 {
    crowd(300, &stop, || async { hear_out(dial(HTTP).await?).await })
}

fn slow_heads(_: Arc<Material>, stop: Stop) -> u64 {
    let head = format!("GET / HTTP/1.1\r\nHost: server\r\nX: {}", "x".repeat(4096));
    crowd(300, &stop, || async {
        let mut stream = dial(HTTP).await?;
        byte_by_byte(&mut stream, head.as_bytes(), Duration::from_millis(20)).await
    })
}

fn small_writes(_: Arc<Material>, stop: Stop) -> u64 {
    crowd(32, &stop, || async {
        let mut stream = dial(HTTP).await?;
        stream.set_nodelay(true)?;
        for byte in b"GET / HTTP/1.1\r\nHost: server\r\nX: small\r\n\r\n" {
            stream.write_all(&[*byte]).await?;
            tokio::task::yield_now().await;
        }
        stream.read_u8().await.map(drop)
    })
}

fn never_read(_: Arc<Material>, stop: Stop) -> u64 {
    crowd(300, &stop, || async {
        let mut stream = dial(HTTP).await?;
        stream.write_all(b"GET /big HTTP/1.1\r\nHost: server\r\n\r\n").await?;
        std::future::pending().await
    })
}

fn fat_heads(_: Arc<Material>, stop: Stop) -> u64 {
    let head = format!("GET / HTTP/1.1\r\nHost: server\r\nX: {}", "x".repeat(60 * 1024));
    crowd(600, &stop, || async {
        let mut stream = dial(HTTP).await?;
        stream.write_all(head.as_bytes()).await?;
        hear_out(stream).await
    })
}

/// The proxy takes 2,000.
fn too_many_connections(_: Arc<Material>, stop: Stop) -> u64 {
    crowd(3000, &stop, || async { hear_out(dial(ECHO).await?).await })
}
