//! A pod's network as the place from which connections are made: what a program in that pod would see of them.
//! In: a running pod. Out: connections of this process that belong to the pod's network namespace, so that its
//! redirect and its proxy have them.

use crate::cluster::{CONTROL_PLANE, Cluster};
use crate::see::text;
use anyhow::{Context, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;
use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Longer than any pause that a healthy mesh makes.
const LIMIT: Duration = Duration::from_secs(10);
const MAX_ANSWER: usize = 64 * 1024;
/// What every request holds.
pub const MARKER: &str = "cinch-marker-probe";

/// A pod's network.
#[derive(Debug, Clone)]
pub struct Place {
    /// The pod's name.
    pub pod: String,
    /// Its address.
    pub address: IpAddr,
    network: Arc<File>,
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// A whole answer with this status.
    Answered(u16),
    /// The connection was made, or begun, and then reset.
    Reset,
    /// Nobody listens.
    Refused,
    /// The connection ended in good order, without an answer.
    Closed,
    /// No answer in time.
    Silent,
    /// Anything else.
    Other(String),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Answered(status) => write!(f, "answered {status}"),
            Outcome::Reset => f.write_str("reset"),
            Outcome::Refused => f.write_str("refused"),
            Outcome::Closed => f.write_str("closed"),
            Outcome::Silent => f.write_str("no answer"),
            Outcome::Other(words) => f.write_str(words),
        }
    }
}

/// What a served request comes to.
pub const SERVED: Outcome = Outcome::Answered(200);

impl From<&io::Error> for Outcome {
    fn from(error: &io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => {
                Outcome::Reset
            }
            ErrorKind::ConnectionRefused => Outcome::Refused,
            ErrorKind::UnexpectedEof => Outcome::Closed,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Outcome::Silent,
            _ => Outcome::Other(error.to_string()),
        }
    }
}

impl Place {
    /// The network of a pod whose container `app` runs.
    ///
    /// # Errors
    /// When it does not run.
    pub fn of(cluster: &Cluster, pod: &Value) -> Result<Self> {
        let (namespace, name) = (text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
        let address = text(pod, "/status/podIP").parse().context("the pod has no address")?;
        let pid = cluster.container_pid(&namespace, &name, "app")?;
        let network = File::open(format!("/proc/{pid}/ns/net")).context("the pod has just ended")?;
        Ok(Self { pod: name, address, network: Arc::new(network) })
    }

    /// The network in which the control plane is: outside of every pod.
    ///
    /// # Errors
    /// When it is gone.
    pub fn outside(cluster: &Cluster) -> Result<Self> {
        let network = Arc::new(cluster.network()?);
        Ok(Self { pod: "the control plane".to_owned(), address: CONTROL_PLANE.into(), network })
    }

    /// Connects from here.
    ///
    /// # Errors
    /// As the pod's own programs would see it.
    pub fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let network = Arc::clone(&self.network);
        // A socket belongs to the namespace in which it was made, and a thread can enter another one alone.
        let connecting = thread::spawn(move || {
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))?;
            TcpStream::connect_timeout(&to, LIMIT)
        });
        let stream = connecting.join().map_err(|_| io::Error::other("the connecting thread failed"))??;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(LIMIT))?;
        Ok(stream)
    }

    /// One request over a connection of its own.
    #[must_use]
    pub fn ask(&self, to: SocketAddr) -> Outcome {
        self.open(to).map_or_else(|outcome| outcome, |mut kept| kept.ask())
    }

    /// What a server says to a request of its own connection, head and all, until it closes.
    ///
    /// # Errors
    /// As the pod's own programs would see it.
    pub fn read(&self, to: SocketAddr, path: &str) -> io::Result<String> {
        let mut stream = self.connect(to)?;
        stream.write_all(
            format!("GET {path} HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n").as_bytes(),
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// A connection over which requests can be made one after the other.
    ///
    /// # Errors
    /// What came of the attempt.
    pub fn open(&self, to: SocketAddr) -> Result<Kept, Outcome> {
        match self.connect(to) {
            Ok(stream) => Ok(Kept { stream }),
            Err(error) => Err(Outcome::from(&error)),
        }
    }
}

/// A connection that stays open between requests.
#[derive(Debug)]
pub struct Kept {
    stream: TcpStream,
}

impl Kept {
    /// One more request.
    #[must_use]
    pub fn ask(&mut self) -> Outcome {
        self.request("GET", "/", "")
    }

    /// One more request, by its method and target, with further header lines (each with its line end).
    #[must_use]
    pub fn request(&mut self, method: &str, target: &str, headers: &str) -> Outcome {
        self.exchange(method, target, headers).map_or_else(|error| Outcome::from(&error), Outcome::Answered)
    }

    fn exchange(&mut self, method: &str, target: &str, headers: &str) -> io::Result<u16> {
        let length = if method == "POST" { "Content-Length: 0\r\n" } else { "" };
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: probe\r\nX-Client: probe\r\nX-Marker: {MARKER}\r\n{length}{headers}\r\n"
        );
        self.stream.write_all(head.as_bytes())?;
        let mut answer = Vec::new();
        while whole(&answer).is_none() && answer.len() < MAX_ANSWER {
            let mut piece = [0u8; 4096];
            let length = self.stream.read(&mut piece)?;
            if length == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            answer.extend_from_slice(piece.get(..length).unwrap_or_default());
        }
        whole(&answer).ok_or_else(|| io::Error::other("the answer is not HTTP"))
    }

    /// Waits, at most `limit`, for the connection's end without a word being said; how it ended.
    #[must_use]
    pub fn ended_within(&mut self, limit: Duration) -> Outcome {
        let waited = self.stream.set_read_timeout(Some(limit)).and_then(|()| self.stream.read(&mut [0u8; 1]));
        let _ = self.stream.set_read_timeout(Some(LIMIT));
        match waited {
            Ok(0) => Outcome::Closed,
            Ok(_) => Outcome::Other("a byte that nobody asked for".to_owned()),
            Err(error) => Outcome::from(&error),
        }
    }
}

/// The status of a whole answer: its head, and as many bytes more as Content-Length says.
fn whole(answer: &[u8]) -> Option<u16> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(answer.get(..end)?).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"))?;
    let length: usize = length.trim().parse().ok()?;
    (answer.len() >= end + length).then(|| head.split(' ').nth(1)?.parse().ok()).flatten()
}

/// As [`Place::open`], with the outcome as an error.
///
/// # Errors
/// When no connection comes about.
pub fn open(from: &Place, to: SocketAddr) -> Result<Kept> {
    from.open(to).map_err(|outcome| anyhow!("a connection of {} to {to}: {outcome}", from.pod))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    fn kept(answer: &'static [u8]) -> Kept {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut served, _) = listener.accept().unwrap();
        thread::spawn(move || {
            let mut request = [0u8; 1024];
            let _ = served.read(&mut request);
            let _ = served.write_all(answer);
        });
        Kept { stream }
    }

    #[test]
    fn a_whole_answer_has_its_body_and_half_of_one_is_closed() {
        let mut served = kept(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
        assert_eq!(served.ask(), SERVED);
        assert_eq!(kept(b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n").ask(), Outcome::Answered(403));
        assert_eq!(kept(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi").ask(), Outcome::Closed);
    }

    #[test]
    fn a_reset_is_told_from_an_end() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (served, _) = listener.accept().unwrap();
        // A linger of zero makes the close a reset.
        socket2::SockRef::from(&served).set_linger(Some(Duration::ZERO)).unwrap();
        let mut kept = Kept { stream };
        assert_eq!(kept.ended_within(Duration::from_millis(20)), Outcome::Silent);
        drop(served);
        assert_eq!(kept.ended_within(LIMIT), Outcome::Reset);
        assert_eq!(kept.ended_within(LIMIT), Outcome::Closed);
    }
}
