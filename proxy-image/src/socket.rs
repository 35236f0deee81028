//! Options of TCP sockets, and the two ways to end a connection.

use socket2::{SockRef, TcpKeepalive};
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr};
use std::time::Duration;
use tokio::net::TcpStream;

/// A peer is taken for gone after three unanswered probes, 10 s apart, that begin after 30 s of silence.
fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(10))
        .with_retries(3)
}

/// Unacknowledged bytes on a tunnel end it after this time: the peer's node is gone, and the app should know.
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// For every connection: no waiting for more bytes, and a vanished peer is noticed. A socket that refuses an
/// option is broken in a way that its next use will tell.
pub fn prepare(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive());
}

/// For tunnels, on top of [`prepare`].
pub fn prepare_tunnel(stream: &TcpStream) {
    prepare(stream);
    let _ = SockRef::from(stream).set_tcp_user_timeout(Some(USER_TIMEOUT));
}

/// Ends the connection with a RST in place of a FIN: the other side must not take it for a complete one.
pub fn abort(stream: TcpStream) {
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
    drop(stream);
}

/// From now on the connection ends with a RST, however it is dropped; or, `false`, in order again.
pub fn reset_on_drop(stream: &TcpStream, reset: bool) {
    let _ = SockRef::from(stream).set_linger(reset.then_some(Duration::ZERO));
}

/// Ends the sending direction with a FIN.
pub fn finish(stream: &TcpStream) {
    let _ = SockRef::from(stream).shutdown(Shutdown::Write);
}

/// Reads what has already come, past the runtime's readiness (which a fresh connection doesn't have yet).
/// `WouldBlock`: nothing yet. `Ok(0)`: the peer has ended its direction.
///
/// # Errors
/// As `recv(2)`.
pub fn read_now(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    (&*SockRef::from(stream)).read(buffer)
}

/// Whether nothing has come on the connection that was not read, its end included.
#[must_use]
pub fn is_quiet(stream: &TcpStream) -> bool {
    let peeked = SockRef::from(stream).peek(&mut [MaybeUninit::uninit()]);
    peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Dials `to`. A connection to itself (the kernel may pick the destination's port as source port, and TCP then
/// connects the socket with itself) is as refused as the listener that isn't there.
///
/// # Errors
/// As `connect(2)`; `TimedOut` after `limit`.
pub async fn connect(to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(limit, TcpStream::connect(to))
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    if stream.local_addr()? == stream.peer_addr()? {
        abort(stream);
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    prepare(&stream);
    Ok(stream)
}
