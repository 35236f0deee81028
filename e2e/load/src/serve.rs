//! The server of every measurement: HTTP/1.1 and, by its preface, HTTP/2 on some ports; on others bytes, of which the
//! first says what is wanted: `E` echoes, `U` counts what is sent up, `D` sends down until the client has enough.

use crate::http2;
use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Args;
use memchr::memmem;
use std::net::Ipv4Addr;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// A whole answer to any GET: a body of 100 bytes.
const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 100\r\n\r\n\
    ----------------------------------------------------------------------------------------------------";
/// As much as is read or written at a time in bulk.
const PIECE: usize = 128 * 1024;
/// Connections that wait to be accepted in a rush.
const BACKLOG: i32 = 4096;

/// The words after `serve`.
#[derive(Args)]
pub struct Options {
    /// Ports that speak HTTP.
    #[arg(long, value_delimiter = ',')]
    http: Vec<u16>,
    /// Ports that speak bytes.
    #[arg(long, value_delimiter = ',')]
    bytes: Vec<u16>,
}

#[derive(Debug, Clone, Copy)]
enum Speaks {
    Http,
    Bytes,
}

/// Serves until it is killed.
///
/// # Errors
/// When a port can't be opened.
pub fn run(options: Options) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async move {
        let mut ports = JoinSet::new();
        let http = options.http.iter().map(|port| (*port, Speaks::Http));
        for (port, speaks) in http.chain(options.bytes.iter().map(|port| (*port, Speaks::Bytes))) {
            ports.spawn(accept(listen(port).with_context(|| format!("port {port}"))?, speaks));
        }
        while ports.join_next().await.is_some() {}
        Ok(())
    })
}

fn listen(port: u16) -> Result<TcpListener> {
    use socket2::{Domain, Socket, Type};
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&std::net::SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
    socket.listen(BACKLOG)?;
    Ok(TcpListener::from_std(socket.into())?)
}

async fn accept(listener: TcpListener, speaks: Speaks) {
    loop {
        // Out of files, or a client that is gone already: the load counts what it misses.
        let Ok((stream, _)) = listener.accept().await else { continue };
        let _ = stream.set_nodelay(true);
        tokio::spawn(async move {
            // How a connection ends is the client's affair.
            let _ = match speaks {
                Speaks::Http => http(stream).await,
                Speaks::Bytes => bytes(stream).await,
            };
        });
    }
}

async fn http(mut stream: TcpStream) -> Result<()> {
    let mut first = [0; 3];
    // Only the preface of HTTP/2 begins so; requests of HTTP/1.1 are longer than three bytes and come at once.
    if stream.peek(&mut first).await? == first.len() && &first == b"PRI" {
        return http_2(stream).await;
    }
    let mut buffer = Vec::with_capacity(4096);
    let mut answers = Vec::new();
    while stream.read_buf(&mut buffer).await? > 0 {
        let mut used = 0;
        for end in memmem::find_iter(&buffer, b"\r\n\r\n") {
            answers.extend_from_slice(ANSWER.as_bytes());
            used = end + 4;
        }
        buffer.drain(..used);
        stream.write_all(&answers).await?;
        answers.clear();
    }
    Ok(())
}

async fn http_2(stream: TcpStream) -> Result<()> {
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(request) = connection.accept().await {
        let (request, respond) = request?;
        tokio::spawn(async move {
            // A client that has left needs no answer.
            let _ = answer(request, respond).await;
        });
    }
    Ok(())
}

/// As a gRPC server answers: head, one message, trailers.
async fn answer(
    request: http::Request<h2::RecvStream>,
    mut respond: h2::server::SendResponse<Bytes>,
) -> Result<()> {
    let mut body = request.into_body();
    while let Some(data) = body.data().await {
        let length = data?.len();
        body.flow_control().release_capacity(length)?;
    }
    let head = http::Response::builder().header("content-type", "application/grpc").body(())?;
    let mut sending = respond.send_response(head, false)?;
    sending.send_data(Bytes::from_static(http2::MESSAGE), false)?;
    let trailers = http::HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        http::HeaderValue::from_static("0"),
    )]);
    sending.send_trailers(trailers)?;
    Ok(())
}

async fn bytes(mut stream: TcpStream) -> Result<()> {
    let mut buffer = vec![0; 4096];
    let read = stream.read(&mut buffer).await?;
    let begun = buffer.get(..read).unwrap_or_default();
    match begun.first() {
        Some(b'E') => {
            stream.write_all(begun).await?;
            loop {
                match stream.read(&mut buffer).await? {
                    0 => return Ok(()),
                    more => stream.write_all(buffer.get(..more).unwrap_or_default()).await?,
                }
            }
        }
        Some(b'U') => {
            let (mut piece, mut count) = (vec![0; PIECE], read as u64);
            loop {
                match stream.read(&mut piece).await? {
                    0 => break,
                    more => count += more as u64,
                }
            }
            stream.write_all(&count.to_be_bytes()).await?;
            Ok(())
        }
        Some(b'D') => {
            let piece = vec![b'z'; PIECE];
            loop {
                stream.write_all(&piece).await?;
            }
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_says_how_long_it_is() {
        assert_eq!(crate::http1::answer(ANSWER.as_bytes()).unwrap(), Some(ANSWER.len()));
    }
}
