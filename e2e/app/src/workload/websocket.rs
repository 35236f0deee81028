//! WebSocket (RFC 6455), as much of it as an echo needs, on both ends.

use super::bytes::Run;
use crate::http;
use anyhow::{Context, bail, ensure};
use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
/// A frame that is longer is refused.
const LONGEST: u64 = 16 << 20;
/// Of the RFC's own example.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// What proves that a server has read the key (section 4.2.2).
fn accepted(key: &str) -> String {
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes()))
}

/// Answers the request of a client, and then its frames.
pub fn accept(mut request: Request<Incoming>) -> anyhow::Result<Response<Empty<Bytes>>> {
    let key = request.headers().get(SEC_WEBSOCKET_KEY).context("no key")?;
    let accepted = accepted(key.to_str()?);
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let echoed = match upgraded.await {
            Ok(stream) => echo(&mut TokioIo::new(stream)).await,
            Err(error) => Err(error.into()),
        };
        if let Err(error) = echoed {
            println!("broken websocket error={error:#}");
        }
    });
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "Upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_ACCEPT, accepted);
    Ok(response.body(Empty::new())?)
}

/// Gives every frame back, unmasked, until the client closes.
async fn echo<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> anyhow::Result<()> {
    loop {
        let (first, payload) = read(stream).await?;
        match first & 0x0f {
            PING => write(stream, FIN | PONG, &payload, None).await?,
            CLOSE => {
                write(stream, first, &payload, None).await?;
                return stream.shutdown().await.context("shutdown");
            }
            _ => write(stream, first, &payload, None).await?,
        }
    }
}

/// Messages of all lengths and in fragments, a ping in their midst, and a close that is answered.
pub async fn client(mut stream: TcpStream) -> anyhow::Result<String> {
    open(&mut stream).await?;
    let lengths = [0, 1, 125, 126, 65_535, 65_536, 1 << 20];
    for (seed, length) in lengths.into_iter().enumerate() {
        let payload = Run::new(seed as u64, length).whole();
        write(&mut stream, FIN | BINARY, &payload, Some(MASK)).await?;
        let echoed = read(&mut stream).await?;
        ensure!(echoed == (FIN | BINARY, payload), "a message of {length} bytes came back otherwise");
    }
    let frames: [(u8, &[u8]); 4] = [
        (TEXT, b"in "),
        (FIN | PING, b"still there?"),
        (CONTINUATION, b"three "),
        (FIN | CONTINUATION, b"pieces"),
    ];
    // All on their way before the first comes back.
    for (first, payload) in frames {
        write(&mut stream, first, payload, Some(MASK)).await?;
    }
    for (first, payload) in frames {
        let first = if first == FIN | PING { FIN | PONG } else { first };
        let echoed = read(&mut stream).await?;
        ensure!(echoed == (first, payload.to_vec()), "{payload:?} came back as {echoed:?}");
    }
    let goodbye = 1000_u16.to_be_bytes();
    write(&mut stream, FIN | CLOSE, &goodbye, Some(MASK)).await?;
    ensure!(read(&mut stream).await? == (FIN | CLOSE, goodbye.to_vec()), "the close was not answered");
    ensure!(stream.read(&mut [0]).await? == 0, "there is more behind the close");
    Ok(format!("{} messages echoed, fragments and a ping among them, closed in order", lengths.len() + 1))
}

async fn open(stream: &mut TcpStream) -> anyhow::Result<()> {
    let head = format!(
        "GET /socket HTTP/1.1\r\nHost: try\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    let mut rest = Vec::new();
    let answer = http::read(stream, &mut rest).await?.context("closed without an answer")?;
    ensure!(answer.start.starts_with("HTTP/1.1 101 "), "answer {:?}", answer.start);
    let proof = answer.header("sec-websocket-accept");
    ensure!(proof == Some(&accepted(KEY)), "the answer is to another key: {proof:?}");
    ensure!(rest.is_empty(), "bytes that nobody asked for");
    Ok(())
}

/// A frame: its first byte and its payload, unmasked.
async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> anyhow::Result<(u8, Vec<u8>)> {
    let first = stream.read_u8().await.context("a frame")?;
    let second = stream.read_u8().await?;
    let length = match second & !MASKED {
        126 => u64::from(stream.read_u16().await?),
        127 => stream.read_u64().await?,
        short => u64::from(short),
    };
    if length > LONGEST {
        bail!("a frame of {length} bytes");
    }
    let mut mask = [0; 4];
    if second & MASKED != 0 {
        stream.read_exact(&mut mask).await?;
    }
    let mut payload = vec![0; usize::try_from(length)?];
    stream.read_exact(&mut payload).await?;
    apply(mask, &mut payload);
    Ok((first, payload))
}

async fn write<S: AsyncWrite + Unpin>(
    stream: &mut S,
    first: u8,
    payload: &[u8],
    mask: Option<[u8; 4]>,
) -> anyhow::Result<()> {
    let masked = if mask.is_some() { MASKED } else { 0 };
    let mut frame = vec![first];
    match payload.len() {
        short @ ..126 => frame.push(masked | u8::try_from(short)?),
        middle @ ..65_536 => {
            frame.push(masked | 126);
            frame.extend(u16::try_from(middle)?.to_be_bytes());
        }
        long => {
            frame.push(masked | 127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    frame.extend(mask.into_iter().flatten());
    let head = frame.len();
    frame.extend_from_slice(payload);
    apply(mask.unwrap_or_default(), frame.get_mut(head..).unwrap_or_default());
    stream.write_all(&frame).await.context("a frame")
}

/// Masks, or unmasks (section 5.3).
fn apply(mask: [u8; 4], payload: &mut [u8]) {
    payload.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_the_rfc_is_answered_as_it_says() {
        assert_eq!(accepted(KEY), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[tokio::test]
    async fn frames_of_all_lengths_are_read_as_they_were_written() {
        for length in [0, 125, 126, 65_535, 65_536] {
            for mask in [None, Some(MASK)] {
                let payload = Run::new(1, length).whole();
                let mut wire = Vec::new();
                write(&mut wire, FIN | BINARY, &payload, mask).await.unwrap();
                assert_eq!(read(&mut &wire[..]).await.unwrap(), (FIN | BINARY, payload));
            }
        }
        // RFC 6455, section 5.7: a single-frame masked text message.
        let hello = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(read(&mut &hello[..]).await.unwrap(), (FIN | TEXT, b"Hello".to_vec()));
    }
}
