//! An HTTP/1 server that says of each request what it has read: `/echo` gives the body back as it comes, `/socket`
//! is a WebSocket, everything else answers with method, target, version, length and SHA-256 of the body.

use super::bytes::Sum;
use super::websocket;
use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::header::{HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What the server has read of the request.
const SEEN: HeaderName = HeaderName::from_static("x-seen");

/// Serves one connection.
pub async fn connection(stream: TcpStream) -> anyhow::Result<()> {
    let mut server = hyper::server::conn::http1::Builder::new();
    server.half_close(true);
    server.serve_connection(TokioIo::new(stream), service_fn(answer)).with_upgrades().await.context("serve")
}

async fn answer(request: Request<Incoming>) -> anyhow::Result<Response<BoxBody<Bytes, hyper::Error>>> {
    match request.uri().path() {
        "/socket" => Ok(websocket::accept(request)?.map(|body| body.map_err(|never| match never {}).boxed())),
        "/echo" => echo(request.into_body()).await,
        _ => {
            let seen = seen(request).await?;
            let value = HeaderValue::from_str(&seen)?;
            let body = Full::new(Bytes::from(seen + "\n")).map_err(|never| match never {}).boxed();
            let mut response = Response::new(body);
            response.headers_mut().insert(SEEN, value);
            Ok(response)
        }
    }
}

/// Gives a body back while it comes.
async fn echo(mut body: Incoming) -> anyhow::Result<Response<BoxBody<Bytes, hyper::Error>>> {
    // Who waits for leave to send it gets it with the first look, which therefore comes before the answer.
    let first = body.frame().await.transpose()?.and_then(|frame| frame.into_data().ok());
    let first = Full::new(first.unwrap_or_default()).map_err(|never| match never {});
    Ok(Response::new(Chain { first, rest: body }.boxed()))
}

/// One body behind another.
struct Chain<F> {
    first: F,
    rest: Incoming,
}

impl<F: Body<Data = Bytes, Error = hyper::Error> + Unpin> Body for Chain<F> {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match Pin::new(&mut self.first).poll_frame(context) {
            Poll::Ready(None) => Pin::new(&mut self.rest).poll_frame(context),
            first => first,
        }
    }
}

async fn seen(request: Request<Incoming>) -> anyhow::Result<String> {
    let (head, mut body) = request.into_parts();
    let mut sum = Sum::new();
    while let Some(frame) = body.frame().await {
        if let Ok(bytes) = frame?.into_data() {
            sum.add(&bytes);
        }
    }
    Ok(format!("{} {} {:?} {}", head.method, head.uri, head.version, sum.told()))
}

/// A client of HTTP/1.0 that names no host and reads to the end of the connection.
pub async fn old_client(mut stream: TcpStream) -> anyhow::Result<String> {
    let body = "sent in 1996";
    let head = format!("POST /old HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    stream.write_all(head.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let mut sum = Sum::new();
    sum.add(body.as_bytes());
    let wanted = format!("POST /old HTTP/1.0 {}\n", sum.told());
    ensure!(answer.starts_with("HTTP/1.0 200 ") && answer.ends_with(&wanted), "{answer:?}, not {wanted:?}");
    Ok("answered and closed".to_owned())
}
