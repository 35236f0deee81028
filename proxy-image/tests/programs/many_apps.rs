//! The apps of very many connections: the server's, which is a process of its own because it needs as many descriptors
//! as a process may have, and the client's crowd, for which this one has them.

use crate::eventually;
use crate::support::Namespace;
use cinch_proxy::process;
use futures::future::join_all;
use std::future::Future;
use std::io::{self, ErrorKind, Read};
use std::net::SocketAddrV4;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

/// Where the app listens.
pub const PORT: u16 = 8080;
/// Set in the process that is the app.
const IS_APP: &str = "CINCH_TEST_APP";
/// For one exchange: with so many of them at once the last one waits long.
const PATIENCE: Duration = Duration::from_secs(600);

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// The app, in the process that [`App::start`] starts; in all others it proves nothing.
#[test]
fn the_servers_app() {
    if std::env::var_os(IS_APP).is_none() {
        return;
    }
    process::raise_descriptor_limit(0);
    std::thread::spawn(|| {
        // Ends with who has started it.
        let _ = io::stdin().read(&mut [0]);
        std::process::exit(0);
    });
    runtime().block_on(async {
        let listener = TcpListener::bind(("0.0.0.0", PORT)).await.unwrap();
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(echo(stream));
            }
        }
    });
}

/// Holds nothing while it waits.
async fn echo(mut stream: TcpStream) {
    while stream.readable().await.is_ok() {
        let mut words = [0; 64];
        let read = match stream.try_read(&mut words) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
            Err(_) | Ok(0) => return,
            Ok(read) => read,
        };
        if stream.write_all(&words[..read]).await.is_err() {
            return;
        }
    }
}

/// The server's app; it ends with this.
pub struct App(Child);

impl App {
    pub fn start(namespace: &Namespace) -> App {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "many_apps::the_servers_app", "--nocapture"]).env(IS_APP, "1");
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let app = App(namespace.run(move || command.spawn().unwrap()));
        eventually("an app that listens", || {
            namespace.run(|| std::net::TcpStream::connect(("127.0.0.1", PORT)).is_ok())
        });
        app
    }
}

impl Drop for App {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What became of one exchange each.
#[derive(Default)]
pub struct Round {
    /// From the common begin to the answer, in order.
    pub times: Vec<Duration>,
    pub errors: Vec<String>,
}

impl Round {
    fn of(results: impl IntoIterator<Item = io::Result<Duration>>) -> Round {
        let mut round = Round::default();
        for result in results {
            match result {
                Ok(time) => round.times.push(time),
                Err(error) => round.errors.push(error.to_string()),
            }
        }
        round.times.sort_unstable();
        round
    }

    /// Takes in what became of others.
    pub fn add(&mut self, other: Round) {
        self.times.extend(other.times);
        self.times.sort_unstable();
        self.errors.extend(other.errors);
    }

    /// When half of them were answered, and when the last one was.
    pub fn spread(&self) -> String {
        let Some(last) = self.times.last() else { return "none".to_owned() };
        let median = self.times[self.times.len() / 2];
        let ratio = last.as_secs_f64() / median.as_secs_f64();
        format!("median {median:.2?}, slowest {last:.2?} ({ratio:.2} times that)")
    }
}

/// Connections of a client that stay open.
pub struct Crowd {
    runtime: Runtime,
    open: Vec<TcpStream>,
}

impl Crowd {
    /// One connection to each of `to`, all at once, with an exchange on each.
    pub fn open(namespace: &Namespace, to: Vec<SocketAddrV4>) -> (Crowd, Round) {
        namespace.run(move || {
            let (runtime, begun) = (runtime(), Instant::now());
            let dialling = to.into_iter().zip(0..).map(|(to, number)| {
                bounded(async move {
                    let mut stream = TcpStream::connect(to).await?;
                    say(&mut stream, number).await?;
                    Ok((stream, begun.elapsed()))
                })
            });
            let dialled = runtime.block_on(async { join_all(dialling).await });
            let mut open = Vec::with_capacity(dialled.len());
            let round = Round::of(dialled.into_iter().map(|dialled| {
                let (stream, time) = dialled?;
                open.push(stream);
                Ok(time)
            }));
            (Crowd { runtime, open }, round)
        })
    }

    /// Another exchange on each, all at once.
    pub fn again(&mut self) -> Round {
        let begun = Instant::now();
        let saying = self.open.iter_mut().zip(0..).map(|(stream, number)| {
            bounded(async move { say(stream, number).await.map(|()| begun.elapsed()) })
        });
        Round::of(self.runtime.block_on(async { join_all(saying).await }))
    }

    /// How many are open.
    pub fn count(&self) -> usize {
        self.open.len()
    }
}

async fn bounded<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(PATIENCE, work).await.map_err(|_| ErrorKind::TimedOut)?
}

async fn say(stream: &mut TcpStream, number: u64) -> io::Result<()> {
    let words = number.to_be_bytes();
    stream.write_all(&words).await?;
    let mut back = [0; 8];
    stream.read_exact(&mut back).await?;
    if back == words { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
}
