//! Copies between two sides of an app connection, with TCP's own meaning kept: each direction ends by itself
//! (half-close), a reset on one side becomes a reset on the other, and what can't be delivered is never taken
//! for complete. Nothing is held while both sides are quiet.

use crate::kept::Share;
use crate::socket;
use cinch_reason::Reason;
use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;

/// Bytes read at a time: a multiple of the tunnel's payload, about the point from which more no longer pays.
pub const READ: usize = 4 * cinch_tunnel::MAX_PAYLOAD;
/// The same as records: so a tunnel that is read in time is read in whole ones.
pub(crate) const SEALED: usize = 4 * (cinch_tunnel::MAX_FRAME + cinch_record::OVERHEAD);

thread_local! {
    static SCRATCH: Cell<Option<Box<[u8]>>> = const { Cell::new(None) };
}

/// Lends the thread's buffer of [`SEALED`] bytes, so that connections own none.
pub fn with_scratch<R>(work: impl FnOnce(&mut [u8]) -> R) -> R {
    let mut scratch = SCRATCH.take().unwrap_or_else(|| vec![0; SEALED].into_boxed_slice());
    let result = work(&mut scratch);
    SCRATCH.set(Some(scratch));
    result
}

/// Takes bytes, and whether they are the last.
pub type Sink<'a> = dyn FnMut(&[u8], bool) + 'a;

/// Why a side can't go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The app on this side reset its connection.
    Reset,
    /// What carries this side broke.
    Broken,
}

/// What [`Side::poll_forward`] moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Moved {
    /// So many bytes.
    pub bytes: usize,
    /// They were the last.
    pub fin: bool,
}

/// One side of an app connection.
pub trait Side {
    /// Reads what has come, about `most` bytes of it, and gives it to `sink`, with whether it is the last.
    ///
    /// # Errors
    /// When this side can't go on.
    fn poll_forward(
        &mut self,
        cx: &mut Context<'_>,
        most: usize,
        sink: &mut Sink<'_>,
    ) -> Poll<Result<Moved, Failure>>;

    /// How many bytes may be read for this side at a time.
    fn may_take(&self) -> usize {
        usize::MAX
    }

    /// Why nothing may go over this side any more, if so; else `cx` is woken when that changes.
    fn poll_cut(&mut self, _cx: &mut Context<'_>) -> Option<Reason> {
        None
    }

    /// After the last bytes came from this side: pending, or why it can't go on all the same.
    fn poll_after_fin(&mut self, _cx: &mut Context<'_>) -> Poll<Failure> {
        // TCP tells a reset after a FIN when something is sent to it.
        Poll::Pending
    }

    /// Sends `bytes`, the last ones if `fin`; keeps what can't go at once.
    ///
    /// # Errors
    /// When this side can't go on.
    fn send(&mut self, bytes: &[u8], fin: bool) -> Result<(), Failure>;

    /// Ready when nothing is kept.
    ///
    /// # Errors
    /// When this side can't go on.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>>;

    /// Does what was put off in the hope that the connection ends first: from now on its copy waits.
    fn rest(&mut self, _cx: &mut Context<'_>) {}
}

/// Which of the two sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// The first argument of [`relay`].
    First,
    /// The second.
    Second,
}

/// How a relay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Both directions ended by themselves.
    Finished,
    /// This side could not go on.
    Failed(Which, Failure),
    /// The observer cut it.
    Cut(Reason),
}

/// Watches a relay.
pub trait Observer {
    /// `bytes` came from `from`.
    fn moved(&mut self, from: Which, bytes: usize);
    /// Whether the connection must end now; arranges to be woken when that changes.
    fn poll_cut(&mut self, cx: &mut Context<'_>) -> Option<Reason>;
    /// The relay is over.
    fn ended(&mut self, _end: End) {}
}

/// Copies both ways until both directions have ended, a side fails, or the observer cuts.
pub async fn relay(first: &mut impl Side, second: &mut impl Side, observer: &mut impl Observer) -> End {
    let (mut up, mut down) = (Way::default(), Way::default());
    let end = poll_fn(|cx| {
        // The second side is the pod's own app.
        if let Some(reason) = observer.poll_cut(cx).or_else(|| first.poll_cut(cx)) {
            return Poll::Ready(End::Cut(reason));
        }
        loop {
            let up_moved = up.step(cx, first, second);
            up.report(Which::First, observer);
            let down_moved = down.step(cx, second, first);
            down.report(Which::Second, observer);
            let (up_moved, down_moved) = match (up_moved, down_moved) {
                (Ok(up), Ok(down)) => (up, down),
                (Err((origin, failure)), _) => {
                    // Its last words may explain it: an answer before a reset.
                    while origin == Origin::Target && down.step(cx, second, first) == Ok(true) {}
                    down.report(Which::Second, observer);
                    return failed(origin, Which::First, failure);
                }
                (_, Err((origin, failure))) => {
                    while origin == Origin::Target && up.step(cx, first, second) == Ok(true) {}
                    up.report(Which::First, observer);
                    return failed(origin, Which::Second, failure);
                }
            };
            if up.done && down.done {
                return Poll::Ready(End::Finished);
            }
            if !up_moved && !down_moved {
                first.rest(cx);
                second.rest(cx);
                return Poll::Pending;
            }
        }
    })
    .await;
    observer.ended(end);
    end
}

fn failed(origin: Origin, source: Which, failure: Failure) -> Poll<End> {
    let other = if source == Which::First { Which::Second } else { Which::First };
    Poll::Ready(End::Failed(if origin == Origin::Source { source } else { other }, failure))
}

/// One direction of a relay.
#[derive(Default)]
struct Way {
    bytes: usize,
    fin: bool,
    done: bool,
}

/// Where a step failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    Source,
    Target,
}

impl Way {
    fn report(&mut self, from: Which, observer: &mut impl Observer) {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes > 0 {
            observer.moved(from, bytes);
        }
    }

    /// Goes on as far as it can without waiting; says whether anything happened.
    fn step(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl Side,
        to: &mut impl Side,
    ) -> Result<bool, (Origin, Failure)> {
        if self.fin
            && let Poll::Ready(failure) = from.poll_after_fin(cx)
        {
            return Err((Origin::Source, failure));
        }
        // Always, even when this way is done: the target may have to say something on its own account.
        match to.poll_flush(cx) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Err(failure)) => return Err((Origin::Target, failure)),
            Poll::Ready(Ok(())) if self.done => return Ok(false),
            Poll::Ready(Ok(())) if self.fin => {
                self.done = true;
                return Ok(true);
            }
            Poll::Ready(Ok(())) => {}
        }
        let mut sent = Ok(());
        let moved = from.poll_forward(cx, to.may_take(), &mut |bytes, fin| {
            if sent.is_ok() {
                sent = to.send(bytes, fin);
            }
        });
        if let Poll::Ready(Ok(moved)) = &moved {
            // Also when the target failed: it may have taken some of them before.
            self.bytes += moved.bytes;
            self.fin |= moved.fin;
        }
        sent.map_err(|failure| (Origin::Target, failure))?;
        match moved {
            Poll::Pending => Ok(false),
            Poll::Ready(Err(failure)) => Err((Origin::Source, failure)),
            Poll::Ready(Ok(_)) => Ok(true),
        }
    }
}

/// A TCP connection as a side. Dropped before both its directions have ended, it ends with a RST.
#[derive(Debug)]
pub struct TcpSide {
    stream: TcpStream,
    kept: Vec<u8>,
    sent: usize,
    share: Share,
    fin: bool,
    /// Its own direction has ended, and ours has.
    ended: (bool, bool),
    /// Our FIN was not sent: its own direction has ended too, so that to close the connection says it as well, and
    /// one system call does for two.
    owes_fin: bool,
    /// A write has failed: what came before the reset is still to be read, and the runtime may not have heard of it.
    broken: bool,
    /// Nothing was written yet: the runtime may not have heard that it can be.
    fresh: bool,
    /// Found after bytes that had to be delivered first. The kernel tells it only once.
    found: Option<Found>,
}

#[derive(Debug, Clone, Copy)]
enum Found {
    Fin,
    Failure(Failure),
}

impl TcpSide {
    /// Takes a connection over. What it keeps is counted in `share`.
    #[must_use]
    pub fn new(stream: TcpStream, share: Share) -> TcpSide {
        TcpSide {
            stream,
            kept: Vec::new(),
            sent: 0,
            share,
            fin: false,
            ended: (false, false),
            owes_fin: false,
            broken: false,
            fresh: true,
            found: None,
        }
    }

    /// The connection itself.
    #[must_use]
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Lets it go without a RST: what was sent is delivered, what it still says is not heard.
    pub fn leave(mut self) {
        self.ended = (true, true);
    }

    /// Ends it with a RST.
    pub fn abort(mut self) {
        self.ended = (false, false);
    }

    /// Reads what has already come, without waiting: the first words of an app that speaks first.
    ///
    /// # Errors
    /// When the app has reset the connection.
    pub fn read_now(&mut self) -> Result<Vec<u8>, Failure> {
        self.read_by(socket::read_now)
    }

    fn read_by(
        &mut self,
        read: impl FnOnce(&TcpStream, &mut [u8]) -> io::Result<usize>,
    ) -> Result<Vec<u8>, Failure> {
        with_scratch(|scratch| {
            let room = scratch.len().min(cinch_tunnel::MAX_PAYLOAD);
            let Some(scratch) = scratch.get_mut(..room) else { return Ok(Vec::new()) };
            match read(&self.stream, scratch) {
                // An end without words (0) is read again when the copy begins.
                Ok(count) => Ok(scratch.get(..count).unwrap_or_default().to_vec()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Vec::new()),
                Err(_) => Err(Failure::Reset),
            }
        })
    }

    /// As [`TcpSide::read_now`], but only what the runtime has heard of: where it has not, this costs no system call.
    ///
    /// # Errors
    /// As [`TcpSide::read_now`].
    pub fn read_heard(&mut self) -> Result<Vec<u8>, Failure> {
        self.read_by(|stream, buffer| stream.try_read(buffer))
    }

    fn broke(&mut self) -> Failure {
        self.broken = true;
        Failure::Reset
    }

    fn finish(&mut self) {
        self.ended.1 = true;
        self.owes_fin = self.ended.0;
        if !self.owes_fin {
            socket::finish(&self.stream);
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.broken {
            // The kernel tells a reset only once; what then looks like an end is none.
            let read = socket::read_now(&self.stream, buffer).and_then(|count| match count {
                0 => Err(io::ErrorKind::ConnectionReset.into()),
                count => Ok(count),
            });
            return Poll::Ready(read);
        }
        let mut buffer = ReadBuf::new(buffer);
        match Pin::new(&mut self.stream).poll_read(cx, &mut buffer) {
            Poll::Ready(Ok(())) => {
                let count = buffer.filled().len();
                self.ended.0 |= count == 0;
                Poll::Ready(Ok(count))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        }
    }

    /// Reads once more after a short read: that costs no system call unless the end has come too, and then the
    /// end goes with the bytes.
    fn read_on(&mut self, cx: &mut Context<'_>, scratch: &mut [u8], mut count: usize) -> usize {
        while let Some(rest) = scratch.get_mut(count..).filter(|rest| !rest.is_empty()) {
            match self.poll_read(cx, rest) {
                Poll::Pending => break,
                Poll::Ready(Ok(0)) => self.found = Some(Found::Fin),
                Poll::Ready(Err(_)) => self.found = Some(Found::Failure(Failure::Reset)),
                Poll::Ready(Ok(more)) => {
                    count += more;
                    continue;
                }
            }
            break;
        }
        count
    }

    /// Hands over what an earlier read found after its bytes.
    fn take_found(&mut self, sink: &mut Sink<'_>) -> Option<Result<Moved, Failure>> {
        Some(match self.found.take()? {
            Found::Failure(failure) => Err(failure),
            Found::Fin => {
                sink(&[], true);
                Ok(Moved { bytes: 0, fin: true })
            }
        })
    }
}

impl Drop for TcpSide {
    fn drop(&mut self) {
        if self.ended != (true, true) {
            socket::reset_on_drop(&self.stream, true);
        }
    }
}

impl Side for TcpSide {
    fn poll_forward(
        &mut self,
        cx: &mut Context<'_>,
        most: usize,
        sink: &mut Sink<'_>,
    ) -> Poll<Result<Moved, Failure>> {
        if let Some(result) = self.take_found(sink) {
            return Poll::Ready(result);
        }
        with_scratch(|scratch| {
            let scratch = scratch.get_mut(..READ.min(most)).unwrap_or_default();
            let count = match self.poll_read(cx, scratch) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Failure::Reset)),
                Poll::Ready(Ok(0)) => {
                    sink(&[], true);
                    return Poll::Ready(Ok(Moved { bytes: 0, fin: true }));
                }
                Poll::Ready(Ok(count)) => self.read_on(cx, scratch, count),
            };
            let fin = matches!(self.found, Some(Found::Fin));
            if fin {
                self.found = None;
            }
            sink(scratch.get(..count).unwrap_or_default(), fin);
            Poll::Ready(Ok(Moved { bytes: count, fin }))
        })
    }

    fn send(&mut self, mut bytes: &[u8], fin: bool) -> Result<(), Failure> {
        while self.kept.is_empty() && !bytes.is_empty() {
            let written = match std::mem::take(&mut self.fresh) {
                true => socket::write_now(&self.stream, bytes),
                false => self.stream.try_write(bytes),
            };
            match written {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => return Err(self.broke()),
            }
        }
        self.kept.extend_from_slice(bytes);
        self.share.now(self.kept.capacity());
        self.fin |= fin;
        if self.fin && self.kept.is_empty() {
            self.fin = false;
            self.finish();
        }
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        while let Some(rest) = self.kept.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match self.stream.try_write(rest) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    match self.stream.poll_write_ready(cx) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(Ok(())) => {}
                        Poll::Ready(Err(_)) => return Poll::Ready(Err(self.broke())),
                    }
                }
                Err(_) => return Poll::Ready(Err(self.broke())),
            }
        }
        if !self.kept.is_empty() {
            self.kept = Vec::new();
            self.sent = 0;
            self.share.now(0);
        }
        if std::mem::take(&mut self.fin) {
            self.finish();
        }
        Poll::Ready(Ok(()))
    }

    fn may_take(&self) -> usize {
        self.share.may_read(|| socket::room(&self.stream))
    }

    fn rest(&mut self, _cx: &mut Context<'_>) {
        if std::mem::take(&mut self.owes_fin) {
            socket::finish(&self.stream);
        }
    }
}

#[cfg(test)]
mod tests;
