//! Messages over a byte stream: a reader that can be dropped between any two bytes, and a writer behind a
//! bounded queue that gives up on peers who don't read.

use crate::metrics::ConnectionEnd;
use bytes::{Bytes, BytesMut};
use cinch_control::v1::operator_message::Kind;
use cinch_control::v1::{OperatorMessage, ProxyMessage};
use cinch_control::{Decoder, FrameError, encode};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

/// A peer that takes nothing for so long is dropped; it comes back and gets what is then true.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Chunks in the queue of one stream.
pub const QUEUE: usize = 4;
/// Messages are joined up to about this size.
const CHUNK: usize = 64 * 1024;
/// An idle stream keeps no larger buffer than this.
const IDLE_BUFFER: usize = 16 * 1024;

/// Why nothing more can be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[from] std::io::Error),
    /// What came is no message.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The connection ended inside a message.
    #[error("the connection ended inside a message")]
    Truncated,
}

impl ReadError {
    /// How the connection is counted.
    #[must_use]
    pub fn end(&self) -> ConnectionEnd {
        match self {
            Self::Io(_) => ConnectionEnd::Closed,
            Self::Frame(_) | Self::Truncated => ConnectionEnd::Garbage,
        }
    }
}

/// Reads messages of a proxy.
pub struct FrameReader<R> {
    io: R,
    buffer: BytesMut,
    decoder: Decoder<ProxyMessage>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Refuses messages of more than `limit` bytes.
    pub fn new(io: R, limit: usize) -> Self {
        Self { io, buffer: BytesMut::new(), decoder: Decoder::new(limit) }
    }

    /// From now on messages may have up to `limit` bytes.
    pub fn set_limit(&mut self, limit: usize) {
        self.decoder = Decoder::new(limit);
    }

    /// The next message; `None` when the peer ended the stream between two messages. Cancel safe.
    ///
    /// # Errors
    /// [`ReadError`]; the stream is of no more use then.
    pub async fn next(&mut self) -> Result<Option<ProxyMessage>, ReadError> {
        loop {
            if let Some(message) = self.decoder.next(&mut self.buffer)? {
                return Ok(Some(message));
            }
            if self.buffer.is_empty() && self.buffer.capacity() > IDLE_BUFFER {
                self.buffer = BytesMut::new();
            }
            self.buffer.reserve(4096);
            if self.io.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(ReadError::Truncated) };
            }
        }
    }
}

/// One message as bytes of the wire.
///
/// # Errors
/// When it is over the bound of the protocol.
pub fn frame(kind: Kind, out: &mut BytesMut) -> Result<(), FrameError> {
    encode(&OperatorMessage { kind: Some(kind) }, out)
}

/// Joins messages from the front of `pending` to one chunk.
///
/// # Errors
/// When one of them is over the bound of the protocol.
pub fn chunk(pending: &mut std::collections::VecDeque<Kind>) -> Result<Bytes, FrameError> {
    let mut out = BytesMut::new();
    while out.len() < CHUNK {
        let Some(kind) = pending.pop_front() else { break };
        frame(kind, &mut out)?;
    }
    Ok(out.freeze())
}

/// Writes chunks until the queue's other end is dropped, then closes the stream in an orderly way.
pub async fn write<W: AsyncWrite + Unpin>(mut io: W, mut queue: mpsc::Receiver<Bytes>) -> ConnectionEnd {
    while let Some(chunk) = queue.recv().await {
        let write = async {
            io.write_all(&chunk).await?;
            io.flush().await
        };
        match tokio::time::timeout(WRITE_TIMEOUT, write).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return ConnectionEnd::Closed,
            Err(_) => return ConnectionEnd::Slow,
        }
    }
    let _ = tokio::time::timeout(Duration::from_secs(1), io.shutdown()).await;
    ConnectionEnd::Closed
}
