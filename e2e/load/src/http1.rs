//! Requests and answers of HTTP/1.1, as little as load needs: fixed requests go out, answers are read whole.

use anyhow::{Context, Result, bail};
use std::net::SocketAddr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Heads of proxies that add a lot are below this.
const MAX_HEADERS: usize = 48;
/// Longer answers are none of our server's.
const MAX_ANSWER: usize = 64 * 1024;
/// The path of every request.
pub const PATH: &str = "/bench/item";

/// The bytes of a request.
#[must_use]
pub fn request(to: SocketAddr, token: Option<&str>) -> Vec<u8> {
    let token = token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
    format!("GET {PATH} HTTP/1.1\r\nhost: {to}\r\nuser-agent: cinch-load\r\naccept: */*\r\n{token}\r\n")
        .into_bytes()
}

/// The length of the first answer in `bytes`, head and body; `None` when it is not there yet.
///
/// # Errors
/// When it is no answer, has another status than 200, or does not say how long it is.
pub fn answer(bytes: &[u8]) -> Result<Option<usize>> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut answer = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = answer.parse(bytes).context("the answer is no HTTP")? else {
        if bytes.len() > MAX_ANSWER {
            bail!("an answer without an end");
        }
        return Ok(None);
    };
    if answer.code != Some(200) {
        bail!("status {}", answer.code.unwrap_or_default());
    }
    let length = answer.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length =
        length.and_then(|header| std::str::from_utf8(header.value).ok()?.trim().parse::<usize>().ok());
    let whole = head + length.context("the answer does not say how long it is")?;
    Ok((bytes.len() >= whole).then_some(whole))
}

/// A connection with what was read of it and not used.
pub struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    /// Connects.
    ///
    /// # Errors
    /// When nobody accepts.
    pub async fn open(to: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(to).await.context("connect")?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(1024) })
    }

    /// Sends `request` and reads its whole answer.
    ///
    /// # Errors
    /// When there is none, or another than 200.
    pub async fn exchange(&mut self, request: &[u8]) -> Result<()> {
        self.stream.write_all(request).await.context("write")?;
        loop {
            if let Some(whole) = answer(&self.buffer)? {
                self.buffer.drain(..whole);
                return Ok(());
            }
            if self.stream.read_buf(&mut self.buffer).await.context("read")? == 0 {
                bail!("closed without an answer");
            }
        }
    }

    /// Sends `message` and reads as many bytes as it has.
    ///
    /// # Errors
    /// When the other side closes before.
    pub async fn echo(&mut self, message: &[u8]) -> Result<()> {
        self.stream.write_all(message).await.context("write")?;
        while self.buffer.len() < message.len() {
            if self.stream.read_buf(&mut self.buffer).await.context("read")? == 0 {
                bail!("closed without an answer");
            }
        }
        self.buffer.drain(..message.len());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_with_its_last_byte() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc";
        for length in 0..whole.len() {
            assert_eq!(answer(&whole[..length]).unwrap(), None, "{length}");
        }
        assert_eq!(answer(whole).unwrap(), Some(whole.len()));
        assert_eq!(answer(&[whole, whole.as_slice()].concat()).unwrap(), Some(whole.len()));
    }

    #[test]
    fn anything_but_a_whole_200_is_an_error() {
        for wrong in [
            "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 200 OK\r\n\r\n",
            "hello there\r\n\r\n",
        ] {
            assert!(answer(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
