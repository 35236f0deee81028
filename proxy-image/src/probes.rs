//! The kubelet's probes, done on its behalf: a STRICT port refuses the kubelet itself. In goes the path of a
//! request, out comes a status. Exactly the declared probes are done; their paths carry a code that only the
//! kubelet can know, and are compared in constant time.

use crate::http::{self, HeadError};
use aws_lc_rs::constant_time::verify_slices_are_equal;
use cinch_injection::{HttpProbe, Probe, TcpProbe};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// More probes than a pod of the most containers has.
const MAX_PROBES: usize = 512;
/// The app answers nothing or too late: what the kubelet would have seen as a failure.
pub const FAILED: u16 = 503;
/// Apps recognise the kubelet by the beginning of this header.
const USER_AGENT: &str = "kube-probe/cinch";
/// An app that closes slowly shall not delay the next probe.
const LINGER: Duration = Duration::from_millis(200);
/// Bytes of the first line of an app's answer; with more its probe has failed.
const MAX_LINE: usize = 8 * 1024;
/// Larger bodies are not read to their end.
const MAX_BODY: usize = 64 * 1024;

/// A list of probes that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No such JSON.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// Too many.
    #[error("there are over {MAX_PROBES} probes")]
    TooMany,
}

/// All declared probes of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProbeTable(Vec<Probe>);

impl ProbeTable {
    /// Reads the JSON array of the environment; empty text is an empty table. A probe that could not be sent as
    /// it was declared is no error: it fails when it is asked for, as it would for the kubelet.
    ///
    /// # Errors
    /// [`ProbeError`].
    pub fn parse(json: &str) -> Result<Self, ProbeError> {
        if json.is_empty() {
            return Ok(Self::default());
        }
        let probes: Vec<Probe> = serde_json::from_str(json)?;
        if probes.len() > MAX_PROBES {
            return Err(ProbeError::TooMany);
        }
        Ok(Self(probes))
    }

    /// Does the probe that has `path`, against `pod`; `None` when no probe has it.
    ///
    /// Returns the status to answer: the app's own for HTTP, 200 or [`FAILED`] for TCP.
    pub async fn run(&self, path: &str, pod: IpAddr, user_agent: Option<&str>) -> Option<u16> {
        let probe = self.find(path)?;
        let limit = Duration::from_secs(u64::from(probe.timeout_seconds.max(1)));
        let done = match (&probe.http, &probe.tcp) {
            (Some(http), _) => timeout(limit, get(http, pod, user_agent)).await,
            (None, Some(tcp)) => timeout(limit, connect(tcp, pod)).await,
            (None, None) => return Some(FAILED),
        };
        Some(match done {
            Ok(Ok(status)) => status,
            Ok(Err(_)) | Err(_) => FAILED,
        })
    }

    /// Every path is compared, each in constant time, so that answers' times say nothing of the code in it.
    fn find(&self, path: &str) -> Option<&Probe> {
        let mut found = None;
        for probe in &self.0 {
            if verify_slices_are_equal(probe.path.as_bytes(), path.as_bytes()).is_ok() {
                found = Some(probe);
            }
        }
        found
    }
}

async fn connect(tcp: &TcpProbe, pod: IpAddr) -> io::Result<u16> {
    TcpStream::connect(SocketAddr::new(pod, tcp.port)).await.map(|_| 200)
}

async fn get(http: &HttpProbe, pod: IpAddr, user_agent: Option<&str>) -> io::Result<u16> {
    let head = request(http, pod, user_agent).ok_or(io::ErrorKind::InvalidInput)?;
    let mut stream = TcpStream::connect(SocketAddr::new(pod, http.port)).await?;
    stream.write_all(head.as_bytes()).await?;
    let status = http::read_status(&mut stream, MAX_LINE).await.map_err(|error| match error {
        HeadError::Io(error) => error,
        HeadError::Malformed | HeadError::TooLong => io::ErrorKind::InvalidData.into(),
    })?;
    // Closing with unread bytes would be a reset that the app logs as an error.
    let _ = timeout(LINGER, discard(&mut stream)).await;
    // Redirects are a success to the kubelet when they lead elsewhere; ours would have no location.
    Ok(if (300..400).contains(&status) { 200 } else { status })
}

/// The head that the kubelet would send; `None` when a value would not stay in its place there.
fn request(http: &HttpProbe, pod: IpAddr, user_agent: Option<&str>) -> Option<String> {
    let mut head = format!("GET {} HTTP/1.1\r\n", target(&http.path));
    let given = |wanted: &str| http.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case(wanted));
    let user_agent = user_agent.filter(|agent| agent.starts_with("kube-probe/")).unwrap_or(USER_AGENT);
    let host = SocketAddr::new(pod, http.port).to_string();
    for (name, value) in [("Host", host.as_str()), ("User-Agent", user_agent), ("Accept", "*/*")] {
        if !given(name) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    for (name, value) in &http.headers {
        if !http::is_header_name(name) || !http::is_header_value(value) {
            return None;
        }
        // An empty Accept or User-Agent asks the kubelet to leave the header out.
        if !value.is_empty() && !name.eq_ignore_ascii_case("connection") {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
    }
    head.push_str("Connection: close\r\n\r\n");
    Some(head)
}

/// The request target: bytes that may not stand there are escaped, as the kubelet does.
fn target(path: &str) -> String {
    let slash = if path.starts_with('/') { "" } else { "/" };
    path.bytes().fold(slash.to_owned(), |mut target, byte| {
        match byte {
            b'!'..=b'~' => target.push(char::from(byte)),
            _ => target.push_str(&format!("%{byte:02X}")),
        }
        target
    })
}

async fn discard(stream: &mut TcpStream) -> io::Result<()> {
    let (mut piece, mut total) = ([0; 2048], 0);
    while total < MAX_BODY {
        match stream.read(&mut piece).await? {
            0 => break,
            read => total += read,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::TcpListener;

    const LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    fn http_probe(port: u16) -> ProbeTable {
        ProbeTable::parse(&format!(
            r#"[{{"path":"/probe/app/liveness/00ff","http":{{"port":{port},"path":"/live?x=1","host":null,"headers":[["X-Key","a b"]]}},"timeoutSeconds":1}}]"#
        ))
        .unwrap()
    }

    /// Answers one connection with `answer`, and returns what was asked.
    async fn app(answer: &'static str) -> (u16, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = vec![0; 4096];
            let read = stream.read(&mut head).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&head[..read]).into_owned()
        });
        (port, asked)
    }

    #[tokio::test]
    async fn the_declared_request_is_made_and_the_apps_status_answered() {
        let (port, asked) = app("HTTP/1.1 418 I'm a teapot\r\ncontent-length: 2\r\n\r\nno").await;
        let status = http_probe(port).run("/probe/app/liveness/00ff", LOCAL, Some("kube-probe/1.37")).await;
        assert_eq!(status, Some(418));
        assert_eq!(
            asked.await.unwrap(),
            format!(
                "GET /live?x=1 HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: kube-probe/1.37\r\nAccept: */*\r\nX-Key: a b\r\nConnection: close\r\n\r\n"
            )
        );
    }

    #[tokio::test]
    async fn only_the_exact_path_is_served() {
        let table = http_probe(1);
        for path in
            ["/probe/app/liveness/00fe", "/probe/app/liveness/00f", "/probe/app/liveness/00ff/", "/live"]
        {
            assert_eq!(table.run(path, LOCAL, None).await, None, "{path}");
        }
    }

    #[tokio::test]
    async fn an_app_that_refuses_or_is_silent_has_failed() {
        let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
        let silent = http_probe(listener.local_addr().unwrap().port());
        assert_eq!(silent.run("/probe/app/liveness/00ff", LOCAL, None).await, Some(FAILED));
        drop(listener);
        assert_eq!(silent.run("/probe/app/liveness/00ff", LOCAL, None).await, Some(FAILED));
    }

    #[tokio::test]
    async fn a_tcp_probe_only_connects() {
        let listener = TcpListener::bind((LOCAL, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let json = format!(r#"[{{"path":"/probe/a/startup/1","tcp":{{"port":{port}}},"timeoutSeconds":1}}]"#);
        let table = ProbeTable::parse(&json).unwrap();
        assert_eq!(table.run("/probe/a/startup/1", LOCAL, None).await, Some(200));
        drop(listener);
        assert_eq!(table.run("/probe/a/startup/1", LOCAL, None).await, Some(FAILED));
    }

    #[tokio::test]
    async fn a_redirect_is_a_success() {
        let (port, _asked) = app("HTTP/1.1 302 Found\r\nlocation: /login\r\n\r\n").await;
        assert_eq!(http_probe(port).run("/probe/app/liveness/00ff", LOCAL, None).await, Some(200));
    }

    #[tokio::test]
    async fn values_that_would_leave_their_place_fail_their_probe_alone() {
        let http = |path: &str, name: &str, value: &str| HttpProbe {
            port: 1,
            path: path.to_owned(),
            host: None,
            headers: vec![(name.to_owned(), value.to_owned())],
        };
        assert!(request(&http("/", "a b", "c"), LOCAL, None).is_none());
        assert!(request(&http("/", "a", "b\r\nc: d"), LOCAL, None).is_none());
        let escaped = request(&http("/a b\r\nX: y", "a", "b"), LOCAL, None).unwrap();
        assert!(escaped.starts_with("GET /a%20b%0D%0AX:%20y HTTP/1.1\r\n"), "{escaped}");
        let empty = ProbeTable::parse(r#"[{"path":"/p","timeoutSeconds":1}]"#).unwrap();
        assert_eq!(empty.run("/p", LOCAL, None).await, Some(FAILED));
    }

    #[test]
    fn a_table_that_is_none_is_refused() {
        for json in [
            "{",
            "{}",
            r#"[{"path":"/p","timeoutSeconds":1,"grpc":{}}]"#,
            r#"[{"path":"/p","timeoutSeconds":1,"tcp":{"port":70000}}]"#,
        ] {
            assert!(ProbeTable::parse(json).is_err(), "{json}");
        }
    }
}
