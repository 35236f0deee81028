//! A connection to the API server, for measurements: starting a kubectl would be most of what is measured. In:
//! the administrator's certificate. Out: answers, and the moments at which they came.

use super::Cluster;
use super::layout::{API_PORT, CONTROL_PLANE, Layout};
use crate::process::Output;
use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(20);
const MAX_ANSWER: usize = 1024 * 1024;

/// A kept connection to the API server.
pub struct Api {
    stream: StreamOwned<ClientConnection, TcpStream>,
}

/// When a request was sent and when its answer had come.
#[derive(Debug, Clone, Copy)]
pub struct Moments {
    /// Just before its first byte.
    pub sent: Instant,
    /// Just after the answer's last.
    pub answered: Instant,
}

impl Cluster {
    /// Connects to the API server as administrator.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn api(&self) -> Result<Api> {
        let network = self.network()?;
        // A socket belongs to the namespace in which it was made, and a thread can enter another one alone.
        let connecting = thread::spawn(move || -> Result<TcpStream> {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(TcpStream::connect((CONTROL_PLANE, API_PORT))?)
        });
        let socket = connecting.join().map_err(|_| anyhow!("the connecting thread failed"))??;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(LIMIT))?;
        let server = ServerName::from(IpAddr::from(CONTROL_PLANE));
        let connection = ClientConnection::new(Arc::new(config(&self.layout)?), server)?;
        Ok(Api { stream: StreamOwned::new(connection, socket) })
    }
}

impl Api {
    /// Changes an object by a JSON merge patch.
    ///
    /// # Errors
    /// When the API server refuses it, with what it said.
    pub fn merge_patch(&mut self, path: &str, patch: &serde_json::Value) -> Result<Moments> {
        let body = patch.to_string();
        let request = format!(
            "PATCH {path} HTTP/1.1\r\nHost: kubernetes\r\nAccept: application/json\r\n\
             Content-Type: application/merge-patch+json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let sent = Instant::now();
        self.stream.write_all(request.as_bytes())?;
        self.stream.flush()?;
        let answer = self.answer()?;
        let answered = Instant::now();
        ensure!(answer.starts_with("HTTP/1.1 200 "), "PATCH {path}: {answer}");
        Ok(Moments { sent, answered })
    }

    /// Creates an object of a collection.
    ///
    /// # Errors
    /// As [`Api::merge_patch`].
    pub fn create(&mut self, path: &str, object: &serde_json::Value) -> Result<Moments> {
        let (moments, answer) = self.post(path, object)?;
        ensure!(answer.starts_with("HTTP/1.1 201 "), "POST {path}: {answer}");
        Ok(moments)
    }

    /// Asks whether an object would be stored in a collection, and stores nothing: as kubectl would tell it, with
    /// every warning and with the words of a refusal.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub fn try_create(&mut self, path: &str, object: &serde_json::Value) -> Result<Output> {
        let (_, answer) = self.post(&format!("{path}?dryRun=All&fieldValidation=Strict"), object)?;
        Ok(told(&answer))
    }

    fn post(&mut self, path: &str, object: &serde_json::Value) -> Result<(Moments, String)> {
        let body = object.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nHost: kubernetes\r\nAccept: application/json\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let sent = Instant::now();
        self.stream.write_all(request.as_bytes())?;
        self.stream.flush()?;
        let answer = self.answer()?;
        Ok((Moments { sent, answered: Instant::now() }, answer))
    }

    /// Reads an object.
    ///
    /// # Errors
    /// When there is none, or it can't be read.
    pub fn get(&mut self, path: &str) -> Result<serde_json::Value> {
        let request = format!("GET {path} HTTP/1.1\r\nHost: kubernetes\r\nAccept: application/json\r\n\r\n");
        self.stream.write_all(request.as_bytes())?;
        self.stream.flush()?;
        let answer = self.answer()?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "GET {path}: {answer}");
        let body = body(&answer).with_context(|| format!("GET {path}: {answer}"))?;
        serde_json::from_str(&body).with_context(|| format!("GET {path}: {body}"))
    }

    fn answer(&mut self) -> Result<String> {
        let mut answer = Vec::new();
        let mut piece = [0u8; 16 * 1024];
        while !is_whole(&answer) {
            let length = self.stream.read(&mut piece).context("the API server's answer")?;
            if length == 0 || answer.len() > MAX_ANSWER {
                bail!("the API server's answer has no end: {}", String::from_utf8_lossy(&answer));
            }
            answer.extend_from_slice(piece.get(..length).unwrap_or_default());
        }
        Ok(String::from_utf8_lossy(&answer).into_owned())
    }
}

/// An answer to a creation as kubectl would tell it.
fn told(answer: &str) -> Output {
    let (head, _) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    let warnings = head.lines().filter_map(|line| {
        let (name, value) = line.split_once(": ")?;
        name.eq_ignore_ascii_case("warning").then(|| format!("Warning: {value}\n"))
    });
    let mut stderr: String = warnings.collect();
    let stored = answer.starts_with("HTTP/1.1 201 ");
    if !stored {
        let status = body(answer).and_then(|body| serde_json::from_str::<serde_json::Value>(&body).ok());
        let message = status.as_ref().and_then(|status| status.get("message")?.as_str());
        stderr.push_str(message.unwrap_or(answer));
    }
    Output { code: Some(i32::from(!stored)), stdout: String::new(), stderr }
}

/// Whether an answer has come to its end: by its length, or by its last chunk.
fn is_whole(answer: &[u8]) -> bool {
    let Some(end) = answer.windows(4).position(|window| window == b"\r\n\r\n") else { return false };
    let head = String::from_utf8_lossy(answer.get(..end).unwrap_or_default()).to_ascii_lowercase();
    let length =
        head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    match length {
        Some(length) => answer.len() >= end + 4 + length,
        None => answer.ends_with(b"\r\n0\r\n\r\n"),
    }
}

/// The body of a whole answer, without the sizes of its chunks.
fn body(answer: &str) -> Option<String> {
    let (head, mut rest) = answer.split_once("\r\n\r\n")?;
    if !head.to_ascii_lowercase().contains("\r\ntransfer-encoding: chunked") {
        return Some(rest.to_owned());
    }
    let mut body = String::new();
    loop {
        let (size, more) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.push_str(more.get(..size)?);
        rest = more.get(size..)?.strip_prefix("\r\n")?;
    }
}

fn config(layout: &Layout) -> Result<ClientConfig> {
    // A second installation of the provider in one process is no fault.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let read = |name: &str| fs::read(layout.pki(name)).with_context(|| format!("the cluster's {name}"));
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(&read("ca.crt")?).map_err(|error| anyhow!("ca.crt: {error}"))?)?;
    let own =
        CertificateDer::from_pem_slice(&read("admin.crt")?).map_err(|error| anyhow!("admin.crt: {error}"))?;
    let key =
        PrivateKeyDer::from_pem_slice(&read("admin.key")?).map_err(|error| anyhow!("admin.key: {error}"))?;
    let mut config =
        ClientConfig::builder().with_root_certificates(roots).with_client_auth_cert(vec![own], key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_what_its_chunks_hold() {
        let chunked =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\na\r\n0123456789\r\n0\r\n\r\n";
        assert_eq!(body(chunked).as_deref(), Some("abc0123456789"));
        assert_eq!(body("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").as_deref(), Some("{}"));
        assert_eq!(body("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nabc"), None);
    }

    #[test]
    fn warnings_and_refusals_are_told_and_what_was_stored_is_not() {
        let stored = told("HTTP/1.1 201 Created\r\nWarning: 299 - \"A: b\"\r\nContent-Length: 2\r\n\r\n{}");
        assert!(stored.ok());
        assert_eq!(stored.text(), "Warning: 299 - \"A: b\"\n");
        let refused = told("HTTP/1.1 422 No\r\nContent-Length: 22\r\n\r\n{\"message\":\"C: \\\"d\\\"\"}");
        assert!(!refused.ok());
        assert_eq!(refused.text(), "C: \"d\"");
        assert!(told("HTTP/1.1 500 No\r\n\r\n").text().contains("500"));
    }

    #[test]
    fn an_answer_ends_by_its_length_or_its_last_chunk() {
        let sized = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        assert!(is_whole(sized) && !is_whole(&sized[..sized.len() - 1]));
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n";
        assert!(is_whole(chunked) && !is_whole(&chunked[..chunked.len() - 2]));
        assert!(!is_whole(b"HTTP/1.1 200 OK\r\n"));
    }
}
