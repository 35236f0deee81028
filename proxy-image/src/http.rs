//! As much HTTP/1.1 as health, metrics and probes need, by hand and bounded: one request per connection, heads
//! of so many bytes, bodies of requests never read.

use std::io;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Why there is no head.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    /// The connection's error.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The bytes are no HTTP/1.
    #[error("it is no HTTP/1")]
    Malformed,
    /// They are too many.
    #[error("it is too long")]
    TooLong,
}

/// The head of a request, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The method, as sent.
    pub method: String,
    /// The target without its query.
    pub path: String,
    /// The header `User-Agent`, when it is plain text.
    pub user_agent: Option<String>,
}

/// Reads up to `end`, and little more than `most` bytes.
async fn read_until(
    stream: &mut (impl AsyncRead + Unpin),
    end: &[u8],
    most: usize,
) -> Result<Vec<u8>, HeadError> {
    let mut head = Vec::with_capacity(512);
    let mut searched: usize = 0;
    loop {
        // What was looked at before is not looked at again: it may come byte by byte.
        let from = searched.saturating_sub(end.len() - 1);
        let new: &[u8] = head.get(from..).unwrap_or_default();
        if let Some(at) = new.windows(end.len()).position(|window| window == end) {
            head.truncate(from + at);
            return Ok(head);
        }
        searched = head.len();
        if head.len() >= most {
            return Err(HeadError::TooLong);
        }
        let mut piece = [0; 1024];
        let read = stream.read(&mut piece).await?;
        if read == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        head.extend_from_slice(piece.get(..read).unwrap_or_default());
    }
}

/// Reads the head of one request, of at most so many bytes.
///
/// # Errors
/// [`HeadError`].
pub async fn read_request(stream: &mut (impl AsyncRead + Unpin), most: usize) -> Result<Request, HeadError> {
    let head = read_until(stream, b"\r\n\r\n", most).await?;
    parse_request(&head).ok_or(HeadError::Malformed)
}

fn parse_request(head: &[u8]) -> Option<Request> {
    let head = std::str::from_utf8(head).ok()?;
    let mut lines = head.split("\r\n");
    let mut words = lines.next()?.split(' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    if words.next().is_some() || !matches!(version, "HTTP/1.1" | "HTTP/1.0") || !target.starts_with('/') {
        return None;
    }
    let path = target.split('?').next()?;
    let user_agent = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("user-agent"))
        .map(|(_, value)| value.trim().to_owned())
        .filter(|value| is_header_value(value));
    Some(Request { method: method.to_owned(), path: path.to_owned(), user_agent })
}

/// Whether `value` can stand in a header: visible ASCII, spaces and tabs.
#[must_use]
pub fn is_header_value(value: &str) -> bool {
    value.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte))
}

/// Whether `name` is a token of RFC 9110.
#[must_use]
pub fn is_header_name(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// Reads the status code of a response whose first line has at most so many bytes.
///
/// # Errors
/// [`HeadError`].
pub async fn read_status(stream: &mut (impl AsyncRead + Unpin), most: usize) -> Result<u16, HeadError> {
    let line = read_until(stream, b"\r\n", most).await?;
    parse_status(&line).ok_or(HeadError::Malformed)
}

fn parse_status(line: &[u8]) -> Option<u16> {
    let mut words = std::str::from_utf8(line).ok()?.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    words.next()?.parse().ok().filter(|status| (100..600).contains(status))
}

/// A whole response; the connection is closed after it.
#[must_use]
pub fn response(status: u16, content_type: &str, body: &str) -> Vec<u8> {
    let word = if status < 400 { "OK" } else { "Not OK" };
    let length = body.len();
    format!(
        "HTTP/1.1 {status} {word}\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: usize = 8 * 1024;

    #[tokio::test]
    async fn a_request_is_read_in_pieces() {
        let (mut client, mut server) = tokio::io::duplex(16);
        let sent = tokio::spawn(async move {
            let head = b"GET /ready?x=1 HTTP/1.1\r\nHost: a\r\nUSER-AGENT: kube-probe/1.37\r\n\r\n";
            tokio::io::AsyncWriteExt::write_all(&mut client, head).await.unwrap();
            client
        });
        let request = read_request(&mut server, MOST).await.unwrap();
        assert_eq!((request.method.as_str(), request.path.as_str()), ("GET", "/ready"));
        assert_eq!(request.user_agent.as_deref(), Some("kube-probe/1.37"));
        drop(sent.await);
    }

    #[tokio::test]
    async fn garbage_and_endless_heads_are_errors() {
        for bytes in [
            &b"\x16\x03\x01\x00\xff\r\n\r\n"[..],
            b"GET  HTTP/1.1\r\n\r\n",
            b"GET / HTTP/2\r\n\r\n",
            b"GET /",
        ] {
            assert!(read_request(&mut &bytes[..], MOST).await.is_err(), "{bytes:?}");
        }
        let endless = vec![b'a'; 3 * MOST];
        let request = read_request(&mut &endless[..], MOST).await;
        assert!(matches!(request, Err(HeadError::TooLong)), "{request:?}");
        let status = read_status(&mut &endless[..], MOST).await;
        assert!(matches!(status, Err(HeadError::TooLong)), "{status:?}");
    }

    #[tokio::test]
    async fn a_status_is_read() {
        assert_eq!(read_status(&mut &b"HTTP/1.0 204 No Content\r\n"[..], MOST).await.unwrap(), 204);
        for bytes in [&b"HTTP/1.1 abc\r\n"[..], b"SSH-2.0\r\n", b"HTTP/1.1 99\r\n"] {
            assert!(read_status(&mut &bytes[..], MOST).await.is_err(), "{bytes:?}");
        }
    }
}
