//! An HTTP app, a client that reads answers, and policies that need HTTP.

use crate::mesh::*;
use cinch_control::v1;
use cinch_proxy::context::InboundPolicy;
use cinch_proxy::workload_policy::{Target, receive};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// What the app has heard: request lines and fields, one text for each request.
pub type Heard = Arc<Mutex<Vec<String>>>;

/// An app that answers what its paths say; see [`answer`].
pub async fn web(pod: &Pod) -> Heard {
    let (heard, address) = web_at(API_IP).await;
    pod.set_app(address);
    heard
}

pub async fn web_at(ip: Ipv4Addr) -> (Heard, SocketAddr) {
    let heard = Heard::default();
    let keeping = heard.clone();
    let address = app(ip, move |stream| serve(stream, keeping.clone())).await;
    (heard, address)
}

pub fn lines(heard: &Heard) -> Vec<String> {
    let heard = heard.lock().unwrap();
    heard.iter().map(|head| head.lines().next().unwrap().to_owned()).collect()
}

async fn serve(stream: TcpStream, heard: Heard) {
    let mut stream = BufReader::new(stream);
    while let Some(head) = read_head(&mut stream).await {
        let target = head.split(' ').nth(1).unwrap().to_owned();
        heard.lock().unwrap().push(head.clone());
        let body = read_body(&mut stream, &head).await;
        if !answer(&mut stream, &target, &body).await {
            return;
        }
    }
}

/// Answers; `false` when the connection ends with it.
async fn answer(stream: &mut BufReader<TcpStream>, target: &str, body: &[u8]) -> bool {
    let path = target.split('?').next().unwrap();
    let (first, rest) = path[1..].split_once('/').unwrap_or((&path[1..], ""));
    let text = match first {
        "poll" => return std::future::pending().await,
        "ws" => {
            let switch =
                "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
            stream.write_all(switch.as_bytes()).await.unwrap();
            let (mut read, mut write) = tokio::io::split(stream);
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
            return false;
        }
        "big" => {
            let length: usize = rest.parse().unwrap();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            let sent = stream.write_all(&[head.as_bytes(), &pattern(length)].concat()).await;
            return sent.is_ok();
        }
        "chunked" => {
            let head =
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n3\r\nefg\r\n0\r\n\r\n";
            stream.write_all(head.as_bytes()).await.unwrap();
            return true;
        }
        "to-the-end" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n").await.unwrap();
            stream.write_all(&pattern(rest.parse().unwrap())).await.unwrap();
            return false;
        }
        "reset" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf").await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            let _ = socket2::SockRef::from(stream.get_ref()).set_linger(Some(std::time::Duration::ZERO));
            return false;
        }
        _ => format!("{} {}", body.len(), checksum(body)),
    };
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
    stream.write_all(head.as_bytes()).await.is_ok()
}

async fn read_head(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut head = String::new();
    loop {
        match stream.read_line(&mut head).await {
            Ok(0) | Err(_) => return None,
            Ok(_) if head.ends_with("\r\n\r\n") => return Some(head),
            Ok(_) => {}
        }
    }
}

/// The value of a field, in any case.
pub fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().skip(1).find_map(|line| {
        let (of, value) = line.split_once(':')?;
        of.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

async fn read_body(stream: &mut BufReader<TcpStream>, head: &str) -> Vec<u8> {
    let mut body = Vec::new();
    if let Some(length) = field(head, "content-length") {
        body.resize(length.parse().unwrap(), 0);
        stream.read_exact(&mut body).await.unwrap();
    } else if field(head, "transfer-encoding").is_some() {
        loop {
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            let length = usize::from_str_radix(line.trim(), 16).unwrap();
            let mut chunk = vec![0; length + 2];
            stream.read_exact(&mut chunk).await.unwrap();
            body.extend_from_slice(&chunk[..length]);
            if length == 0 {
                break;
            }
        }
    }
    body
}

pub fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 7 + at / 251) as u8).collect()
}

pub fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(7, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)))
}

/// An answer as the client sees it.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

/// A client's connection.
pub struct Client(pub BufReader<TcpStream>);

/// How a client gets to the app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    Tunnel,
    Plaintext,
}

pub const BOTH: [Over; 2] = [Over::Tunnel, Over::Plaintext];

pub async fn connect(mesh: &Mesh, over: Over) -> Client {
    let stream = match over {
        Over::Tunnel => mesh.dial().await,
        Over::Plaintext => TcpStream::connect(mesh.api.inbound).await.unwrap(),
    };
    Client(BufReader::new(stream))
}

impl Client {
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within(self.0.write_all(bytes.as_ref())).await.unwrap();
    }

    /// One request without a body.
    pub async fn ask(&mut self, line: &str) -> Answer {
        self.send(format!("{line} HTTP/1.1\r\nHost: shop\r\n\r\n")).await;
        self.answer().await
    }

    pub async fn answer(&mut self) -> Answer {
        let head = within(read_head(&mut self.0)).await.expect("no answer came");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = match status {
            101 => Vec::new(),
            _ => within(read_body(&mut self.0, &head)).await,
        };
        Answer { status, head, body }
    }

    /// Reads until the connection ends; the error, when it ended by a reset.
    pub async fn rest(&mut self) -> (Vec<u8>, Option<std::io::ErrorKind>) {
        let mut bytes = Vec::new();
        let result = within(self.0.read_to_end(&mut bytes)).await;
        (bytes, result.err().map(|error| error.kind()))
    }
}

/// One policy of a message.
pub fn policy_of(name: &str, spec: &Value) -> v1::Policy {
    let is_token = spec.get("jwtRules").is_some();
    v1::Policy {
        name: name.to_owned(),
        kind: if is_token { "RequestAuthentication" } else { "" }.to_owned(),
        action: spec["action"].as_str().unwrap_or_default().to_owned(),
        dry_run: name.ends_with("dry"),
        required_features: vec!["http".to_owned()],
        body: spec.to_string().into_bytes().into(),
        ..v1::Policy::default()
    }
}

/// What the proxy makes of policies that need HTTP.
pub fn received(version: u64, policies: Vec<v1::Policy>) -> InboundPolicy {
    let message = v1::WorkloadPolicy {
        version,
        mode: v1::Mode::Permissive as i32,
        policies,
        mesh: Some(v1::MeshSettings { root_namespace: "mesh".into(), ..v1::MeshSettings::default() }),
        ..v1::WorkloadPolicy::default()
    };
    let target = Target { namespace: "shop".into(), trust_domain: "cluster.local".into() };
    let received = receive(message, &target);
    assert_eq!(received.nack, "");
    received
}

/// Puts policies in force, each with its name, and waits until they are.
pub async fn put(pod: &Pod, version: u64, policies: &[(&str, Value)]) {
    let policies = policies.iter().map(|(name, spec)| policy_of(name, spec)).collect();
    put_received(pod, received(version, policies)).await;
}

pub async fn put_received(pod: &Pod, policy: InboundPolicy) {
    let (version, mut judged) = (policy.version, pod.ctx.live.judged());
    pod.policy.send_replace(Some(Arc::new(policy)));
    within(judged.wait_for(|judged| *judged == version)).await.unwrap();
}

pub fn port(pod: &Pod) -> u16 {
    let app: SocketAddr = *pod.app.lock().unwrap();
    app.port()
}
