//! The honest client: HTTP requests and an echo through both proxies, on connections that stay and on new ones.

use crate::apps::{ECHO, HTTP};
use crate::scene::{SERVER_IP, Scene};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// An honest client gives up after this time.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two requests of one client, so that there are about 200 a second of each kind.
const PAUSE: Duration = Duration::from_millis(5);

/// What became of the requests of some time.
#[derive(Default)]
pub struct Score {
    pub good: usize,
    pub failures: Vec<String>,
    milliseconds: Vec<f64>,
}

impl Score {
    /// In milliseconds.
    pub fn quantile(&self, share: f64) -> f64 {
        let mut all = self.milliseconds.clone();
        all.sort_by(f64::total_cmp);
        let at = ((all.len() as f64 - 1.0) * share).max(0.0) as usize;
        all.get(at).copied().unwrap_or(f64::NAN)
    }
}

/// One exchange, on the connection that was kept or a new one.
type Ask = fn(&mut Option<TcpStream>) -> io::Result<()>;

/// Clients that work until the test ends.
pub struct Honest(Arc<Mutex<Score>>);

impl Honest {
    pub fn start(scene: &Scene) -> Self {
        let score = Arc::new(Mutex::new(Score::default()));
        let kinds: [(&str, Ask); 4] = [
            ("HTTP, connection kept", |kept| exchange(kept, HTTP, GET, ANSWER)),
            ("HTTP, new connection", |_| exchange(&mut None, HTTP, GET, ANSWER)),
            ("echo, connection kept", |kept| exchange(kept, ECHO, b"hello", b"hello")),
            ("echo, new connection", |_| exchange(&mut None, ECHO, b"hello", b"hello")),
        ];
        for (name, ask) in kinds {
            let score = score.clone();
            scene.client.run(move || std::thread::spawn(move || work(name, ask, &score)));
        }
        let this = Self(score);
        // Both proxies know each other before anybody counts.
        let begin = Instant::now();
        while this.0.lock().unwrap().good < 20 && begin.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(10));
        }
        this
    }

    /// Whether anything came to its end since the last time.
    pub fn has_done(&self) -> bool {
        let score = self.0.lock().unwrap();
        score.good > 0 || !score.failures.is_empty()
    }

    /// What was done since the last time.
    pub fn take(&self) -> Score {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: server\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn work(name: &str, ask: Ask, score: &Mutex<Score>) {
    let mut kept = None;
    loop {
        let begin = Instant::now();
        let result = ask(&mut kept);
        let mut score = score.lock().unwrap();
        match result {
            Ok(()) => {
                score.good += 1;
                score.milliseconds.push(begin.elapsed().as_secs_f64() * 1000.0);
            }
            Err(error) => {
                kept = None;
                score.failures.push(format!("{name}: {error}"));
            }
        }
        drop(score);
        std::thread::sleep(PAUSE);
    }
}

fn exchange(kept: &mut Option<TcpStream>, port: u16, ask: &[u8], expected: &[u8]) -> io::Result<()> {
    let mut stream = match kept.take() {
        Some(stream) => stream,
        None => {
            let stream = TcpStream::connect((SERVER_IP, port))?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_nodelay(true)?;
            stream
        }
    };
    stream.write_all(ask)?;
    let mut answer = vec![0; expected.len()];
    stream.read_exact(&mut answer)?;
    if answer != expected {
        return Err(io::Error::other(format!("{:?}", String::from_utf8_lossy(&answer))));
    }
    *kept = Some(stream);
    Ok(())
}
