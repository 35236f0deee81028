//! Options of TCP sockets, and the two ways to end a connection.

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::AsRawFd;
use std::sync::OnceLock;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// Questions to a silent peer, after which it is taken for gone.
const PROBES: u32 = 3;

/// A silent peer is asked in the second half of `peer_timeout`, so that it has had all its questions when that is over:
/// with a time for unacknowledged bytes (see [`prepare_tunnel`]) the kernel counts from the last answer and not the
/// questions, and were the first one asked at the end, one lost packet would end an idle connection. In whole seconds,
/// which is what the kernel knows.
fn keepalive(peer_timeout: Duration) -> TcpKeepalive {
    let seconds = peer_timeout.as_secs().max(1);
    TcpKeepalive::new()
        .with_time(Duration::from_secs((seconds / 2).max(1)))
        .with_interval(Duration::from_secs((seconds / 2).div_ceil(PROBES.into()).max(1)))
        .with_retries(PROBES)
}

/// For the listener of connections from the network: no waiting for more bytes, and a peer that has vanished for
/// `peer_timeout` is noticed. What it accepts inherits this, so that a connection costs no system call for it. A socket
/// that refuses an option is broken in a way that its next use will tell.
pub fn prepare_listener(listener: &TcpListener, peer_timeout: Duration) {
    prepare(&SockRef::from(listener), peer_timeout);
}

/// For the listener of connections of the pod's apps: as [`prepare_listener`], but it is this kernel that would know
/// were one of them gone.
pub fn prepare_app_listener(listener: &TcpListener) {
    let _ = SockRef::from(listener).set_tcp_nodelay(true);
}

fn prepare(socket: &SockRef<'_>, peer_timeout: Duration) {
    let _ = socket.set_tcp_nodelay(true);
    let _ = socket.set_tcp_keepalive(&keepalive(peer_timeout));
}

/// For tunnels, whose sockets are accepted or dialled here: bytes that nobody acknowledges for `peer_timeout` end it. The
/// peer's node is gone, and the app should know. [`crate::presence`] knows the exception.
pub fn prepare_tunnel(stream: &TcpStream, peer_timeout: Duration) {
    let _ = SockRef::from(stream).set_tcp_user_timeout(Some(peer_timeout));
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

/// Writes past the runtime's readiness, which a fresh connection doesn't have yet: to wait for it would cost a turn
/// of the runtime. `WouldBlock`: there is no room.
///
/// # Errors
/// As `send(2)`.
pub fn write_now(stream: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    SockRef::from(stream).send_with_flags(bytes, libc::MSG_NOSIGNAL)
}

/// Connections that the listener has lost since it began, because too many waited to be accepted; none where the system
/// does not say.
#[must_use]
pub fn dropped(listener: &TcpListener) -> u32 {
    Memory::of(listener).map_or(0, |memory| memory.field(libc::SK_MEMINFO_DROPS))
}

/// Bytes that the connection takes now without keeping anybody waiting; none where the system does not say.
#[must_use]
pub fn room(stream: &TcpStream) -> usize {
    Memory::of(stream).map_or(0, |memory| {
        let (all, used) = (memory.field(libc::SK_MEMINFO_SNDBUF), memory.field(libc::SK_MEMINFO_WMEM_QUEUED));
        // Half, because what the kernel needs for itself is of it.
        all.saturating_sub(used) as usize / 2
    })
}

const FIELDS: usize = libc::SK_MEMINFO_DROPS as usize + 1;

/// What the kernel says of a socket's memory.
struct Memory([u32; FIELDS]);

impl Memory {
    #[allow(unsafe_code)]
    fn of(socket: &impl AsRawFd) -> Option<Memory> {
        /// Not in the libc crate; as `asm-generic/socket.h` has it.
        const SO_MEMINFO: libc::c_int = 55;
        let mut fields = [0_u32; FIELDS];
        let mut length = libc::socklen_t::try_from(size_of_val(&fields)).ok()?;
        // SAFETY: the buffer is as long as `length` says, of plain integers, and outlives the call, as the socket does.
        let failed = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_MEMINFO,
                fields.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        (failed == 0).then_some(Memory(fields))
    }

    fn field(&self, number: libc::c_int) -> u32 {
        usize::try_from(number).ok().and_then(|at| self.0.get(at)).copied().unwrap_or(0)
    }
}

/// Whether nothing has come on the connection that was not read, its end included.
#[must_use]
pub fn is_quiet(stream: &TcpStream) -> bool {
    let peeked = SockRef::from(stream).peek(&mut [MaybeUninit::uninit()]);
    peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// Dials `to`, over the network; a peer that vanishes later is noticed after `peer_timeout`. A connection to itself (the kernel may pick the destination's port as source port,
/// and TCP then connects the socket with itself) is as refused as the listener that isn't there.
///
/// # Errors
/// As `connect(2)`; `TimedOut` after `limit`.
pub async fn connect(to: SocketAddr, limit: Duration, peer_timeout: Duration) -> io::Result<TcpStream> {
    let socket = socket(to)?;
    prepare(&SockRef::from(&socket), peer_timeout);
    establish(socket, to, limit).await
}

/// Who speaks first to a dialled app.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// We do, at once: the words are there.
    Us,
    /// The app, or its client some time.
    Anybody,
}

/// Dials an app of the pod, at one of the pod's own addresses. As [`connect`], but nobody has to look whether the
/// other side is still there: it is this kernel that would know.
///
/// # Errors
/// As [`connect`].
pub async fn connect_app(to: SocketAddr, first: First, limit: Duration) -> io::Result<TcpStream> {
    let socket = socket(to)?;
    let _ = socket.set_tcp_nodelay(true);
    if first == First::Us {
        // The last segment of TCP's handshake then goes with the words, instead of alone before them; and the app
        // finds them when it accepts.
        let _ = socket.set_tcp_quickack(false);
    }
    establish(socket, to, limit).await
}

fn socket(to: SocketAddr) -> io::Result<Socket> {
    Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))
}

async fn establish(socket: Socket, to: SocketAddr, limit: Duration) -> io::Result<TcpStream> {
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    // Within one host the other side has answered before the call returns, though it says that it is in progress.
    // Then nobody has to wait for the runtime to hear of it.
    let is_there = socket.peer_addr().is_ok();
    let stream = TcpStream::from_std(socket.into())?;
    if !is_there {
        // Boxed: most connections need it not at all, and none of them later.
        Box::pin(tokio::time::timeout(limit, stream.writable()))
            .await
            .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        if let Some(error) = stream.take_error()? {
            return Err(error);
        }
    }
    if is_ephemeral(to.port()) && stream.local_addr()? == stream.peer_addr()? {
        abort(stream);
        return Err(io::ErrorKind::ConnectionRefused.into());
    }
    Ok(stream)
}

/// Whether the kernel may pick `port` as a source port.
fn is_ephemeral(port: u16) -> bool {
    static RANGE: OnceLock<RangeInclusive<u16>> = OnceLock::new();
    let read = || {
        let text = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").ok()?;
        let mut ends = text.split_whitespace().map(str::parse);
        Some(ends.next()?.ok()?..=ends.next()?.ok()?)
    };
    RANGE.get_or_init(|| read().unwrap_or(0..=u16::MAX)).contains(&port)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_vanished_peer_is_noticed_on_accepted_and_on_dialled_connections() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        for (peer_timeout, silence, interval) in [(30, 15, 5), (1, 1, 1), (4, 2, 1), (3600, 1800, 600)] {
            let peer_timeout = Duration::from_secs(peer_timeout);
            prepare_listener(&listener, peer_timeout);
            let dialled = connect(listener.local_addr().unwrap(), LIMIT, peer_timeout).await.unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            for stream in [&dialled, &accepted] {
                prepare_tunnel(stream, peer_timeout);
                let socket = SockRef::from(stream);
                assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
                assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(silence));
                assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(interval));
                assert_eq!(socket.tcp_keepalive_retries().unwrap(), 3);
                assert_eq!(socket.tcp_user_timeout().unwrap(), Some(peer_timeout));
            }
        }
    }

    #[tokio::test]
    async fn who_is_dialled_is_there_or_refuses() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        for dialled in
            [connect(address, LIMIT, LIMIT).await, connect_app(address, First::Anybody, LIMIT).await]
        {
            let dialled = dialled.unwrap();
            let (accepted, _) = listener.accept().await.unwrap();
            assert_eq!(accepted.peer_addr().unwrap(), dialled.local_addr().unwrap());
            assert!(SockRef::from(&dialled).tcp_nodelay().unwrap());
        }
        drop(listener);
        for refused in
            [connect(address, LIMIT, LIMIT).await, connect_app(address, First::Anybody, LIMIT).await]
        {
            assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        }
    }
}
