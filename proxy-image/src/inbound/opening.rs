//! What a connection to a STRICT or PERMISSIVE port turns out to be, by its first bytes or by its silence.

use super::{Arrival, Inbound};
use crate::live::{Denial, Peer, Registered};
use crate::path_metrics::{ConnectionLabels, Direction, Transport};
use crate::sniff::{self, First};
use crate::socket;
use cinch_reason::Reason;
use std::io;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// Read at a time; a ClientHello with a post-quantum key share has about 1.8 KiB.
const CHUNK: usize = 2048;

/// What has come within a time.
enum Heard {
    /// A tunnel's ClientHello.
    Tunnel,
    /// Bytes of something else.
    Other,
    /// A ClientHello that is longer than a tunnel's may be.
    TooLong,
    /// Not enough to say, and no more will come: the client has ended its direction.
    Ended,
    /// Not enough to say within the time.
    Nothing,
    /// The connection broke.
    Broken,
}

impl Inbound {
    /// STRICT: a tunnel or nothing. Says if it is a tunnel.
    pub(super) async fn strict(&self, mut arrival: Box<Arrival>) -> Option<Box<Arrival>> {
        let began = Instant::now();
        let limits = &self.ctx.limits;
        let heard = listen(&mut arrival, limits.handshake_timeout, limits.hello_bytes).await;
        if matches!(heard, Heard::Tunnel) {
            return Some(arrival);
        }
        let silent = arrival.prefix.is_empty() && !matches!(heard, Heard::Nothing);
        if silent && began.elapsed() < self.ctx.limits.silence {
            // Connected and gone: a scan. Who stays longer waits for the app's first word, in plaintext.
            self.nothing_came(*arrival);
            return None;
        }
        match heard {
            Heard::Nothing => self.ctx.metrics.count_limit("handshake_timeout"),
            Heard::TooLong => self.ctx.metrics.count_limit("hello_bytes"),
            _ => {}
        }
        self.deny_plaintext(*arrival, &Denial::of(Reason::StrictPlaintext));
        None
    }

    /// PERMISSIVE: a tunnel, plaintext, or a client that waits for the app's first word. Says if it is a tunnel.
    pub(super) async fn permissive(&self, mut arrival: Box<Arrival>) -> Option<Box<Arrival>> {
        let limits = &self.ctx.limits;
        let is_peer = self.peers.knows(arrival.from.ip());
        let silence = if is_peer { limits.silence_of_peers.max(limits.silence) } else { limits.silence };
        match listen(&mut arrival, silence, limits.hello_bytes).await {
            Heard::Tunnel => return Some(arrival),
            Heard::Other | Heard::TooLong => self.plaintext(arrival).await,
            Heard::Broken => self.nothing_came(*arrival),
            // A scan, or an app client that ends its direction and then reads.
            Heard::Ended => self.plaintext(arrival).await,
            Heard::Nothing => {
                arrival.doubted = is_peer;
                return self.silent(arrival).await;
            }
        }
        None
    }

    /// The client has not said enough: connect it to the app in plaintext, unless policy forbids that or a
    /// tunnel's ClientHello comes before the app has said a word. Says if one has.
    async fn silent(&self, mut arrival: Box<Arrival>) -> Option<Box<Arrival>> {
        let registered = match self.admit(Peer::Unknown, arrival.from, arrival.to) {
            Ok(registered) => registered,
            Err(denial) => {
                // It may still be a slow tunnel.
                let limits = &self.ctx.limits;
                let heard = listen(&mut arrival, limits.handshake_timeout, limits.hello_bytes).await;
                if matches!(heard, Heard::Tunnel) {
                    return Some(arrival);
                }
                self.deny_plaintext(*arrival, &denial);
                return None;
            }
        };
        let (arrival, app) = self.reach_app(arrival).await?;
        let accepted = self.ctx.evidence.accepted(arrival.from.ip(), arrival.to.port());
        // It has reached the app, so it counts as open, whatever it turns out to be.
        let (direction, transport) = (Direction::Inbound, Transport::Plaintext);
        let metrics = self.ctx.metrics.connection_uncounted(direction, transport);
        let (mut arrival, began) = (arrival, Instant::now());
        let first_byte = registered.is_http().then_some(self.ctx.limits.http_first_byte);
        let patience = match arrival.prefix.is_empty() {
            true if first_byte.is_some() => first_byte,
            true => None,
            false => Some(self.ctx.limits.handshake_timeout),
        };
        match late_hello(&mut arrival, &app, &registered, (patience, self.ctx.limits.hello_bytes)).await {
            true => {
                accepted.became_tunnel();
                Some(arrival)
            }
            false => {
                self.ctx.metrics.connections.get_or_create(&ConnectionLabels { direction, transport }).inc();
                if arrival.prefix.is_empty() && first_byte.is_some_and(|limit| began.elapsed() >= limit) {
                    // As the filter would end it, which would grant the same time once more.
                    self.ctx.metrics.count_limit("http_first_byte");
                    accepted.ended(false);
                    socket::reset_on_drop(&arrival.stream, false);
                    return None;
                }
                self.copy_plaintext((arrival, metrics), app, accepted, registered).await;
                None
            }
        }
    }
}

/// What the bytes that have come are, if they say.
fn decided(bytes: &[u8], most: usize) -> Option<Heard> {
    match sniff::classify(bytes, most) {
        First::Tunnel => Some(Heard::Tunnel),
        First::Other => Some(Heard::Other),
        First::TooLong => Some(Heard::TooLong),
        First::Undecided => None,
    }
}

/// Reads until it is known what the connection is, at most for `limit`, and `most` bytes of a ClientHello.
async fn listen(arrival: &mut Arrival, limit: Duration, most: usize) -> Heard {
    if let Some(heard) = decided(&arrival.prefix, most) {
        return heard;
    }
    let reading = async {
        loop {
            match read_more(&arrival.stream, &mut arrival.prefix, most).await {
                Err(_) => return Heard::Broken,
                Ok(0) => return Heard::Ended,
                Ok(_) => {}
            }
            if let Some(heard) = decided(&arrival.prefix, most) {
                return heard;
            }
        }
    };
    tokio::time::timeout(limit, reading).await.unwrap_or(Heard::Nothing)
}

/// Room is made once there is something to read, and for no more than can still decide: anybody may open connections and
/// be silent.
async fn read_more(stream: &TcpStream, prefix: &mut Vec<u8>, most: usize) -> io::Result<usize> {
    loop {
        stream.readable().await?;
        prefix.reserve_exact(most.saturating_sub(prefix.len()).clamp(1, CHUNK));
        match stream.try_read_buf(prefix) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
    }
}

/// Waits while neither side has said what decides: true when a tunnel's ClientHello has come, false when the app
/// has spoken, the client has said something else, either has ended, the connection was cut, or a ClientHello
/// stays incomplete.
async fn late_hello(
    arrival: &mut Arrival,
    app: &TcpStream,
    registered: &Registered,
    (patience, most): (Option<Duration>, usize),
) -> bool {
    let cut = std::future::poll_fn(|cx| match registered.poll_cut(cx) {
        Some(_) => std::task::Poll::Ready(()),
        None => std::task::Poll::Pending,
    });
    let begun = async {
        match patience {
            Some(patience) => tokio::time::sleep(patience).await,
            None => std::future::pending().await,
        }
    };
    let client = async {
        loop {
            match read_more(&arrival.stream, &mut arrival.prefix, most).await {
                Err(_) | Ok(0) => return false,
                Ok(_) => {}
            }
            match sniff::classify(&arrival.prefix, most) {
                First::Tunnel => return true,
                First::Other | First::TooLong => return false,
                First::Undecided => {}
            }
        }
    };
    tokio::select! {
        biased;
        () = cut => false,
        // The app's first word: from now on a ClientHello would be an answer to it.
        _ = app.readable() => false,
        tunnel = client => tunnel,
        () = begun => false,
    }
}
