//! Whether the peers of tunnels are still there. In go the sockets of tunnels, out comes the kernel's order for each: end
//! it when nobody acknowledges what was said, or let it wait.
//!
//! The kernel ends a connection whose bytes nobody acknowledges for some time (TCP_USER_TIMEOUT, RFC 5482), and that is
//! how an app hears soon that a node is gone. But it does the same to a peer that is there, answers, and has no room
//! because its app does not read for as long (a window of zero, RFC 9293, section 3.8.6.1; Linux since 5.11). An app may
//! take its time, as it may without us: so the order is taken back while such a peer answers, and given again when it
//! has room or falls silent.

#![allow(unsafe_code)]

use parking_lot::Mutex;
use socket2::SockRef;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::MissedTickBehavior;

/// Looks within the time after which a peer is taken for gone: one at least comes before the kernel's.
const LOOKS: u32 = 3;
/// Tunnels that are looked at before others have their turn.
const AT_A_TIME: usize = 64;
/// Questions or repetitions without an answer; one may be lost on the way.
const UNANSWERED: u8 = 2;

/// The tunnels of one side.
#[derive(Debug)]
pub struct Presence {
    timeout: Duration,
    /// By socket, whether it is waited for.
    tunnels: Mutex<HashMap<RawFd, bool>>,
}

/// One tunnel that is looked after, until dropped. Drop it before its socket: the number may be another's then.
#[derive(Debug)]
pub struct Attended {
    presence: Arc<Presence>,
    socket: RawFd,
}

impl Presence {
    /// No tunnels yet; a peer that says nothing for `timeout` is gone. Whoever makes it lets it [`Presence::keep_watch`].
    #[must_use]
    pub fn new(timeout: Duration) -> Arc<Presence> {
        Arc::new(Presence { timeout, tunnels: Mutex::default() })
    }

    /// From now on, and until the returned handle is dropped, `stream`, which was prepared as a tunnel's
    /// ([`crate::socket::prepare_tunnel`]), is waited for while its peer has no room.
    #[must_use]
    pub fn attend(self: &Arc<Self>, stream: &TcpStream) -> Attended {
        let socket = stream.as_raw_fd();
        self.tunnels.lock().insert(socket, false);
        Attended { presence: self.clone(), socket }
    }

    /// Looks after the tunnels, for ever.
    pub async fn keep_watch(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(self.timeout / LOOKS);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let sockets: Vec<RawFd> = self.tunnels.lock().keys().copied().collect();
            for some in sockets.chunks(AT_A_TIME) {
                self.look(some);
                tokio::task::yield_now().await;
            }
        }
    }

    fn look(&self, sockets: &[RawFd]) {
        let mut tunnels = self.tunnels.lock();
        for socket in sockets {
            let Some(is_waited_for) = tunnels.get_mut(socket) else { continue };
            // SAFETY: who drops a socket has dropped its `Attended` before, which takes it out of `tunnels`; that
            // needs the lock that we hold, so the socket is open until we are done with it.
            let socket = unsafe { BorrowedFd::borrow_raw(*socket) };
            let Ok(pulse) = Pulse::of(socket) else { continue };
            let may_wait = pulse.may_wait(self.timeout);
            if may_wait != *is_waited_for {
                *is_waited_for = may_wait;
                let order = (!may_wait).then_some(self.timeout);
                // A socket that refuses an option is broken in a way that its next use will tell.
                let _ = SockRef::from(&socket).set_tcp_user_timeout(order);
            }
        }
    }
}

impl Drop for Attended {
    fn drop(&mut self) {
        self.presence.tunnels.lock().remove(&self.socket);
    }
}

/// What the kernel knows of a connection, as far as it says whether the peer is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pulse {
    /// Repetitions of the oldest bytes without an answer.
    repetitions: u8,
    /// Questions for room without an answer.
    questions: u8,
    /// Until the next repetition.
    patience: Duration,
    /// Segments that were sent and not acknowledged.
    in_flight: u32,
    since_answer: Duration,
    /// Bytes that wait here.
    unsent: u32,
    /// Bytes that the peer has room for; `None` before Linux 5.4.
    room: Option<u32>,
}

/// As much of `struct tcp_info` (linux/tcp.h) as is used here. The kernel gives what it has of it.
const INFO: usize = 232;

impl Pulse {
    fn of(socket: BorrowedFd<'_>) -> io::Result<Pulse> {
        let mut info = [0_u8; INFO];
        let mut length = INFO as libc::socklen_t;
        // SAFETY: `info` is valid for writes of `length` bytes, both are locals that nothing else refers to, and the
        // descriptor is open as long as `socket` is borrowed.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        let known = info.get(..length as usize).unwrap_or(&info);
        Pulse::read(known).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn read(info: &[u8]) -> Option<Pulse> {
        let word = |at: usize| info.get(at..)?.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
        Some(Pulse {
            repetitions: *info.get(2)?,
            questions: *info.get(3)?,
            patience: Duration::from_micros(word(8)?.into()),
            in_flight: word(24)?,
            since_answer: Duration::from_millis(word(56)?.into()),
            unsent: word(144)?,
            room: word(228),
        })
    }

    /// The peer has no room, and it is there.
    fn may_wait(&self, timeout: Duration) -> bool {
        let is_full = self.room == Some(0) || self.unsent > 0 && self.in_flight == 0;
        is_full && !self.is_silent(timeout)
    }

    /// The kernel asks ever more seldom, so silence counts only where there was something to answer.
    fn is_silent(&self, timeout: Duration) -> bool {
        let was_asked = self.questions.max(self.repetitions) >= UNANSWERED;
        was_asked && self.since_answer >= timeout.max(self.patience * 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const TIMEOUT: Duration = Duration::from_secs(30);

    fn pulse() -> Pulse {
        Pulse {
            repetitions: 0,
            questions: 0,
            patience: Duration::from_millis(200),
            in_flight: 0,
            since_answer: Duration::ZERO,
            unsent: 0,
            room: Some(65_536),
        }
    }

    #[test]
    fn only_a_peer_without_room_that_answers_is_waited_for() {
        let late = Duration::from_secs(31);
        let full = Pulse { room: Some(0), unsent: 9, ..pulse() };
        let old = Pulse { room: None, unsent: 9, ..pulse() };
        let shrunk = Pulse { room: Some(0), in_flight: 3, unsent: 9, ..pulse() };
        for (name, pulse, waited_for) in [
            ("nothing to say", pulse(), false),
            ("idle for long", Pulse { since_answer: late, ..pulse() }, false),
            ("under way", Pulse { in_flight: 3, unsent: 9, ..pulse() }, false),
            (
                "not acknowledged",
                Pulse { in_flight: 3, repetitions: 5, since_answer: late, ..pulse() },
                false,
            ),
            ("full", full, true),
            ("full, on an old kernel", old, true),
            ("full, and asked again", Pulse { questions: 1, since_answer: late, ..full }, true),
            ("full, and a question was lost", Pulse { questions: 2, ..full }, true),
            ("full and silent", Pulse { questions: 2, since_answer: late, ..full }, false),
            ("full and silent, on an old kernel", Pulse { questions: 3, since_answer: late, ..old }, false),
            ("full since bytes are under way", shrunk, true),
            ("and silent", Pulse { repetitions: 2, since_answer: late, ..shrunk }, false),
            (
                "and asked seldom",
                Pulse { repetitions: 9, since_answer: late, patience: TIMEOUT, ..shrunk },
                true,
            ),
        ] {
            assert_eq!(pulse.may_wait(TIMEOUT), waited_for, "{name}");
        }
    }

    #[test]
    fn the_kernels_words_are_read_where_they_are() {
        let mut info = [0_u8; INFO];
        info[2] = 1;
        info[3] = 2;
        for (at, value) in [(8, 200_000_u32), (24, 3), (56, 4), (144, 5), (228, 6)] {
            info[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        let expected = Pulse {
            repetitions: 1,
            questions: 2,
            patience: Duration::from_millis(200),
            in_flight: 3,
            since_answer: Duration::from_millis(4),
            unsent: 5,
            room: Some(6),
        };
        assert_eq!(Pulse::read(&info), Some(expected));
        assert_eq!(Pulse::read(&info[..228]), Some(Pulse { room: None, ..expected }), "as before Linux 5.4");
        assert_eq!(Pulse::read(&info[..140]), None);
    }

    /// A connection whose peer does not read and has no room; with what was sent.
    async fn full() -> (TcpStream, TcpStream, usize) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialled = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        let mut sent = 0;
        loop {
            dialled.writable().await.unwrap();
            // Until the kernel takes nothing even after it had time to send.
            match dialled.try_write(&[7; 64 * 1024]) {
                Ok(count) => sent += count,
                Err(_) => {
                    let room = tokio::time::timeout(Duration::from_millis(200), dialled.writable()).await;
                    if room.is_err() {
                        return (dialled, accepted, sent);
                    }
                }
            }
        }
    }

    #[tokio::test]
    async fn who_answers_and_does_not_read_keeps_its_connection() {
        let timeout = Duration::from_secs(1);
        let presence = Presence::new(timeout);
        tokio::spawn(presence.clone().keep_watch());
        let (mut dialled, mut accepted, sent) = full().await;
        crate::socket::prepare_tunnel(&dialled, timeout);
        let attended = presence.attend(&dialled);
        // Another one that nobody looks after tells when the kernel's time was over.
        let (other, _silent, _) = full().await;
        crate::socket::prepare_tunnel(&other, timeout);
        let over = tokio::time::timeout(TIMEOUT, other.ready(tokio::io::Interest::ERROR)).await;
        over.expect("the kernel ends it").unwrap();
        assert_eq!(other.take_error().unwrap().unwrap().kind(), io::ErrorKind::TimedOut);

        let mut received = vec![0; sent];
        accepted.read_exact(&mut received).await.unwrap();
        assert!(received.iter().all(|byte| *byte == 7));
        dialled.write_all(b"more").await.unwrap();
        accepted.read_exact(&mut received[..4]).await.unwrap();
        // With room again, silence is the end again.
        let socket = dialled.as_raw_fd();
        let is_over = async {
            while presence.tunnels.lock()[&socket] {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(TIMEOUT, is_over).await.expect("the order is given again");
        assert_eq!(SockRef::from(&dialled).tcp_user_timeout().unwrap(), Some(timeout));
        drop(attended);
        assert!(presence.tunnels.lock().is_empty());
    }
}
