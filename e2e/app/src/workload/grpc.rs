//! gRPC over HTTP/2 (the protocol, not the library): calls with streams in both directions, whose messages are given
//! back one by one.

use super::bytes::Run;
use anyhow::{Context, bail, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use std::future::poll_fn;
use tokio::net::TcpStream;

/// A message's head: whether it is compressed, and its length.
const HEAD: usize = 5;
const TYPE: &str = "application/grpc";
const STATUS: &str = "grpc-status";
/// Calls at once, and messages of each.
const CALLS: u64 = 6;
const MESSAGES: u64 = 30;

/// Serves one connection: `Chat` gives each message back as it comes.
pub async fn connection(stream: TcpStream) -> anyhow::Result<()> {
    let mut connection = h2::server::handshake(stream).await?;
    while let Some(call) = connection.accept().await {
        let (request, mut respond) = call?;
        tokio::spawn(async move {
            let answer = Response::builder().header("content-type", TYPE).body(());
            let Ok(Ok(mut send)) = answer.map(|answer| respond.send_response(answer, false)) else { return };
            let mut messages = Messages::of(request.into_body());
            while let Ok(Some(message)) = messages.next().await {
                if say(&mut send, &message).await.is_err() {
                    return;
                }
            }
            let mut trailers = HeaderMap::new();
            trailers.insert(STATUS, HeaderValue::from_static("0"));
            // A client that has gone needs no trailers.
            let _ = send.send_trailers(trailers);
        });
    }
    Ok(())
}

/// Calls at once over one connection, some in turns and some with all messages on their way at once.
pub async fn client(stream: TcpStream) -> anyhow::Result<String> {
    let (send, connection) = h2::client::handshake(stream).await?;
    let connection = tokio::spawn(connection);
    let mut calls = tokio::task::JoinSet::new();
    for number in 0..CALLS {
        let send = send.clone();
        calls.spawn(async move {
            if number % 2 == 0 { in_turns(send, number).await } else { at_once(send, number).await }
        });
    }
    let mut bytes = 0;
    while let Some(call) = calls.join_next().await {
        bytes += call??;
    }
    drop(send);
    connection.await?.context("the connection's end")?;
    Ok(format!("{CALLS} calls with {MESSAGES} messages each, {bytes} bytes both ways"))
}

/// Each message waits for the one before to come back: nothing may be held back on the way.
async fn in_turns(send: SendRequest<Bytes>, number: u64) -> anyhow::Result<usize> {
    let (mut send, mut messages) = call(send).await?;
    let mut bytes = 0;
    for round in 0..MESSAGES {
        let message = message(number, round);
        say(&mut send, &message).await?;
        let echo = messages.next().await?;
        ensure!(echo.as_ref() == Some(&message), "message {round} of call {number} came back otherwise");
        bytes += message.len();
    }
    send.send_data(Bytes::new(), true)?;
    messages.end().await.map(|()| bytes)
}

/// All messages are sent while their echoes are read.
async fn at_once(send: SendRequest<Bytes>, number: u64) -> anyhow::Result<usize> {
    let (mut send, mut messages) = call(send).await?;
    let sending = tokio::spawn(async move {
        for round in 0..MESSAGES {
            say(&mut send, &message(number, round)).await?;
        }
        send.send_data(Bytes::new(), true).context("the end of a call")
    });
    let mut bytes = 0;
    for round in 0..MESSAGES {
        let echo = messages.next().await?;
        let wanted = message(number, round);
        ensure!(echo.as_ref() == Some(&wanted), "message {round} of call {number} came back otherwise");
        bytes += wanted.len();
    }
    sending.await??;
    messages.end().await.map(|()| bytes)
}

/// Messages from empty to longer than a window.
fn message(number: u64, round: u64) -> Bytes {
    Run::new(number * MESSAGES + round + 1, round * round * 100).whole().into()
}

async fn call(send: SendRequest<Bytes>) -> anyhow::Result<(SendStream<Bytes>, Messages)> {
    let request =
        Request::post("http://try/demo.Echo/Chat").header("content-type", TYPE).header("te", "trailers");
    let (answer, send) = send.ready().await?.send_request(request.body(())?, false)?;
    let answer = answer.await.context("the head of an answer")?;
    let status = answer.headers().get(STATUS);
    ensure!(answer.status() == 200 && status.is_none(), "answer {}, {STATUS} {status:?}", answer.status());
    Ok((send, Messages::of(answer.into_body())))
}

/// The messages of one direction.
struct Messages {
    body: RecvStream,
    read: BytesMut,
}

impl Messages {
    fn of(body: RecvStream) -> Self {
        Self { body, read: BytesMut::new() }
    }

    /// The next message; `None` when the direction has ended behind one.
    async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        loop {
            if let Some(message) = self.cut()? {
                return Ok(Some(message));
            }
            let Some(piece) = self.body.data().await else {
                ensure!(self.read.is_empty(), "the stream ends within a message");
                return Ok(None);
            };
            let piece = piece.context("the body")?;
            self.body.flow_control().release_capacity(piece.len())?;
            self.read.extend_from_slice(&piece);
        }
    }

    fn cut(&mut self) -> anyhow::Result<Option<Bytes>> {
        let mut head = &self.read[..];
        if head.len() < HEAD {
            return Ok(None);
        }
        if head.get_u8() != 0 {
            bail!("a message that is compressed");
        }
        let length = usize::try_from(head.get_u32())?;
        if head.len() < length {
            return Ok(None);
        }
        self.read.advance(HEAD);
        Ok(Some(self.read.split_to(length).freeze()))
    }

    /// The rest of an answer: nothing but a good status.
    async fn end(mut self) -> anyhow::Result<()> {
        ensure!(self.next().await?.is_none(), "one message too many");
        let trailers = self.body.trailers().await?.context("no trailers")?;
        let status = trailers.get(STATUS);
        ensure!(status.is_some_and(|status| status == "0"), "{STATUS} {status:?}");
        Ok(())
    }
}

/// Sends a message, as the windows permit.
async fn say(send: &mut SendStream<Bytes>, message: &Bytes) -> anyhow::Result<()> {
    let mut wire = BytesMut::with_capacity(HEAD + message.len());
    wire.put_u8(0);
    wire.put_u32(u32::try_from(message.len())?);
    wire.extend_from_slice(message);
    let mut wire = wire.freeze();
    while !wire.is_empty() {
        send.reserve_capacity(wire.len());
        let room = poll_fn(|context| send.poll_capacity(context)).await.context("the stream is gone")??;
        send.send_data(wire.split_to(room.min(wire.len())), false)?;
    }
    Ok(())
}
