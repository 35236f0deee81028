//! Just enough HTTP/1.1 for both ends: heads up to 16 KiB, bodies by Content-Length.

use anyhow::{Context, bail};
use tokio::io::{AsyncRead, AsyncReadExt};

const MAX_HEAD: usize = 16 * 1024;
const MAX_BODY: usize = 1024 * 1024;

/// A parsed head and its body.
pub struct Message {
    /// The request or status line.
    pub start: String,
    headers: Vec<(String, String)>,
    /// The body, as long as Content-Length says.
    pub body: Vec<u8>,
}

impl Message {
    /// The first header of that name, without regard to case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Whether the sender will close the connection after this message.
    pub fn closes(&self) -> bool {
        self.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }
}

/// Reads one message; `None` at a clean end of the stream before its first byte.
pub async fn read<R: AsyncRead + Unpin>(
    stream: &mut R,
    buffer: &mut Vec<u8>,
) -> anyhow::Result<Option<Message>> {
    let head_end = loop {
        if let Some(at) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        if buffer.len() > MAX_HEAD {
            bail!("a head of more than {MAX_HEAD} bytes");
        }
        if stream.read_buf(buffer).await.context("read")? == 0 {
            if buffer.is_empty() {
                return Ok(None);
            }
            bail!("the stream ended within a head");
        }
    };
    let rest = buffer.split_off(head_end + 4);
    let head = String::from_utf8(std::mem::replace(buffer, rest)).context("head")?;
    let mut lines = head.trim_end().split("\r\n");
    let start = lines.next().unwrap_or_default().to_owned();
    let headers: Vec<_> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
        .collect();
    let mut message = Message { start, headers, body: Vec::new() };
    let length: usize =
        message.header("content-length").map_or(Ok(0), str::parse).context("Content-Length")?;
    if length > MAX_BODY {
        bail!("a body of {length} bytes");
    }
    while buffer.len() < length {
        if stream.read_buf(buffer).await.context("read body")? == 0 {
            bail!("the stream ended within a body");
        }
    }
    let rest = buffer.split_off(length);
    message.body = std::mem::replace(buffer, rest);
    Ok(Some(message))
}
