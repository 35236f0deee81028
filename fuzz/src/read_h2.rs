//! What bytes of an HTTP/2 client mean to the `h2` crate.

use crate::play::{Played, Seen};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A request as a server reads it.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    pub stream: u32,
    pub method: String,
    pub target: String,
    pub authority: Option<String>,
    pub headers: Vec<(String, Vec<u8>)>,
}

/// Bytes that have come, and nothing after them; what is said is not heard.
struct Wire<'a>(&'a [u8]);

impl AsyncRead for Wire<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.0.is_empty() {
            return Poll::Pending;
        }
        let (now, later) = self.0.split_at(self.0.len().min(to.remaining()));
        to.put_slice(now);
        self.0 = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire<'_> {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// The requests that a server takes, in their order, and whether it took exception to the connection.
pub fn requests(bytes: &[u8]) -> (Vec<Request>, bool) {
    let mut context = Context::from_waker(Waker::noop());
    let mut handshake = std::pin::pin!(h2::server::handshake(Wire(bytes)));
    let mut connection = match handshake.as_mut().poll(&mut context) {
        Poll::Pending => return (Vec::new(), false),
        Poll::Ready(Err(_)) => return (Vec::new(), true),
        Poll::Ready(Ok(connection)) => connection,
    };
    let (mut requests, mut kept) = (Vec::new(), Vec::new());
    loop {
        match connection.poll_accept(&mut context) {
            Poll::Pending | Poll::Ready(None) => return (requests, false),
            // What the client itself has said to be wrong is no fault of what it sent.
            Poll::Ready(Some(Err(error))) => return (requests, !error.is_remote()),
            Poll::Ready(Some(Ok((request, respond)))) => {
                requests.push(read(respond.stream_id().as_u32(), &request));
                // Dropped, they would be reset.
                kept.push((request, respond));
            }
        }
    }
}

fn read<B>(stream: u32, request: &http::Request<B>) -> Request {
    let headers = request.headers().iter().map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()));
    let target = match request.uri().path_and_query() {
        Some(target) => target.as_str().to_owned(),
        None => "*".to_owned(),
    };
    let authority = request.uri().authority().map(ToString::to_string);
    Request { stream, method: request.method().to_string(), target, authority, headers: headers.collect() }
}

/// Panics where a server takes from the app's side of the filter what nobody has authorised. Returns whether it would
/// go on with the connection: that is for the caller to judge, who knows what else the app is played to have said.
pub fn assert_authorised(played: &Played) -> bool {
    let (requests, failed) = requests(&played.to_app);
    for request in &requests {
        let authorised = played.judge.seen.iter().find(|seen| seen.id == u64::from(request.stream));
        let seen = authorised.unwrap_or_else(|| panic!("nobody has authorised {request:?}"));
        assert!(seen.allowed, "{request:?} was refused");
        assert_same(request, seen, seen.is_patched());
    }
    !failed
}

/// Panics unless a request is what the authorizer saw, and, where that is so, as it was patched.
pub fn assert_same(request: &Request, seen: &Seen, patched: bool) {
    let target = if patched { seen.forwarded() } else { &seen.target };
    assert_eq!((&*request.method, &*request.target), (&*seen.method, target), "{seen:?}");
    assert_eq!(request.authority, seen.authority, "{seen:?}");
    let mut wanted = seen.headers.clone();
    if patched {
        wanted.retain(|(name, _)| name != "authorization" && name != "x-user");
        wanted.push(("x-user".to_owned(), b"ann".to_vec()));
    }
    assert_eq!(plain(&request.headers), plain(&wanted), "{seen:?}");
}

/// Fields by their names; without what tells who the caller is, and with cookies in one piece.
fn plain(fields: &[(String, Vec<u8>)]) -> Vec<(String, Vec<u8>)> {
    let cookies: Vec<&[u8]> =
        fields.iter().filter(|field| field.0 == "cookie").map(|field| &*field.1).collect();
    let mut plain: Vec<_> = fields
        .iter()
        .filter(|(name, _)| !["host", "cookie"].contains(&&**name) && !cinch_http::is_identity(name))
        .cloned()
        .collect();
    if !cookies.is_empty() {
        plain.push(("cookie".to_owned(), cookies.join(&b"; "[..])));
    }
    plain.sort_by(|one, other| one.0.cmp(&other.0));
    plain
}
