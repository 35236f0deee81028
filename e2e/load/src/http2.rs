//! Requests over HTTP/2 as gRPC makes them: POST with a short message, an answer with a message and trailers.

use crate::http1::PATH;
use crate::report::Tally;
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Instant;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// A message of 100 bytes with gRPC's five in front.
pub const MESSAGE: &[u8] = &[b'q'; 105];

/// Keeps `streams` requests in flight over one connection until that fails.
///
/// # Errors
/// Always, at the end: why it failed.
pub async fn requests(
    to: SocketAddr,
    streams: usize,
    token: Option<&str>,
    tally: &Rc<RefCell<Tally>>,
) -> Result<()> {
    let stream = TcpStream::connect(to).await.context("connect")?;
    stream.set_nodelay(true)?;
    let (client, connection) = h2::client::handshake(stream).await.context("HTTP/2 handshake")?;
    let mut tasks = JoinSet::new();
    tasks.spawn_local(async move { connection.await.context("the connection failed") });
    for _ in 0..streams {
        let (client, tally) = (client.clone(), tally.clone());
        let request = request(to, token)?;
        tasks.spawn_local(async move {
            let mut client = client;
            loop {
                let sent = Instant::now();
                client = exchange(client, request.clone()).await?;
                tally.borrow_mut().answered(sent);
            }
        });
    }
    match tasks.join_next().await {
        Some(Ok(Err(error))) => Err(error),
        Some(Err(error)) => Err(error).context("a task failed"),
        Some(Ok(Ok(()))) | None => bail!("the connection ended"),
    }
}

fn request(to: SocketAddr, token: Option<&str>) -> Result<http::Request<()>> {
    let mut request = http::Request::post(format!("http://{to}{PATH}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "cinch-load");
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    Ok(request.body(())?)
}

/// One request and its whole answer, trailers included.
async fn exchange(client: SendRequest<Bytes>, request: http::Request<()>) -> Result<SendRequest<Bytes>> {
    let mut client = client.ready().await?;
    let (answer, mut body) = client.send_request(request, false)?;
    body.send_data(Bytes::from_static(MESSAGE), true)?;
    let answer = answer.await?;
    ensure!(answer.status() == 200, "status {}", answer.status());
    let mut body = answer.into_body();
    let mut read = 0;
    while let Some(data) = body.data().await {
        let data = data?;
        read += data.len();
        body.flow_control().release_capacity(data.len())?;
    }
    ensure!(read == MESSAGE.len(), "an answer of {read} bytes");
    let trailers = body.trailers().await?;
    let status = trailers.as_ref().and_then(|trailers| trailers.get("grpc-status"));
    ensure!(status.is_some_and(|status| status == "0"), "no grpc-status 0");
    Ok(client)
}
