//! The apps of the servers, and the client's app that works all the time.

use crate::scene::{SECOND_IP, Scene};
use crate::support::Namespace;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

pub const ECHO: u16 = 8080;
/// The same, to which the client's proxy has no tunnel.
pub const OTHER: u16 = 8081;
/// Reads nothing until it is told to, then all, and answers how much it was.
pub const LATE: u16 = 8082;
/// Says [`BULK`] bytes.
pub const LOUD: u16 = 8083;

/// More than all buffers on a way have room for.
pub const BULK: usize = 64 << 20;

/// An app that echoes on two ports, and remembers how its connections ended.
#[derive(Clone, Default)]
pub struct Echo {
    /// The error of each that did not end in order.
    pub broken: Arc<Mutex<Vec<ErrorKind>>>,
    pub in_order: Arc<AtomicUsize>,
}

impl Echo {
    pub fn start(namespace: &Namespace) -> Echo {
        let echo = Echo::default();
        for port in [ECHO, OTHER] {
            let echo = echo.clone();
            serve(namespace, port, move |stream| echo.work(stream));
        }
        echo
    }

    fn work(&self, mut stream: TcpStream) {
        let mut buffer = [0; 4096];
        loop {
            let moved = stream.read(&mut buffer).and_then(|read| {
                stream.write_all(&buffer[..read])?;
                Ok(read)
            });
            match moved {
                Ok(0) => {
                    self.in_order.fetch_add(1, Ordering::Relaxed);
                    return;
                }
                Ok(_) => {}
                Err(error) => return self.broken.lock().unwrap().push(error.kind()),
            }
        }
    }

    /// How many of its connections have ended, in whatever way.
    pub fn ended(&self) -> usize {
        self.broken.lock().unwrap().len() + self.in_order.load(Ordering::Relaxed)
    }
}

fn serve(namespace: &Namespace, port: u16, work: impl Fn(TcpStream) + Clone + Send + 'static) {
    let listener = namespace.run(move || TcpListener::bind(("0.0.0.0", port)).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let work = work.clone();
            std::thread::spawn(move || work(stream));
        }
    });
}

/// The app on [`LATE`]; what is sent lets the next connection be read.
pub fn serve_late(namespace: &Namespace) -> Sender<()> {
    let (tell, told): (_, Receiver<()>) = channel();
    let told = Arc::new(Mutex::new(told));
    serve(namespace, LATE, move |mut stream| {
        told.lock().unwrap().recv().unwrap();
        let read = io::copy(&mut stream, &mut io::sink()).unwrap();
        stream.write_all(&read.to_be_bytes()).unwrap();
    });
    tell
}

/// The app on [`LOUD`].
pub fn serve_loud(namespace: &Namespace) {
    // Who reads it may be gone before it has said all.
    serve(namespace, LOUD, |mut stream| drop(stream.write_all(&vec![7; BULK])));
}

/// A connection on which something is said every few milliseconds, whether it is answered or not, until nobody takes it
/// any more.
pub struct Busy {
    stream: TcpStream,
    saying: JoinHandle<ErrorKind>,
}

impl Busy {
    pub fn begin(stream: TcpStream) -> Busy {
        let mut write = stream.try_clone().unwrap();
        let saying = std::thread::spawn(move || {
            loop {
                if let Err(error) = write.write_all(b"still here?") {
                    return error.kind();
                }
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Busy { stream, saying }
    }

    /// Waits for its end; whether that is a reset. The kernel says so once: to who reads, or to who writes.
    pub fn ends_by_reset(self) -> bool {
        let read = end_of(self.stream);
        [read, self.saying.join().ok()].contains(&Some(ErrorKind::ConnectionReset))
    }
}

/// One exchange with an echo.
pub fn exchange(stream: &mut TcpStream) -> io::Result<()> {
    stream.write_all(b"words")?;
    let mut back = [0; 5];
    stream.read_exact(&mut back)?;
    if back == *b"words" { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
}

/// Reads until the connection ends; how it did, or `WouldBlock` where it does not. `None`: in order.
pub fn end_of(mut stream: TcpStream) -> Option<ErrorKind> {
    io::copy(&mut stream, &mut io::sink()).err().map(|error| error.kind())
}

/// The client's app that talks to the second server: on a connection that it keeps, and on new ones.
pub struct Honest {
    good: Arc<AtomicUsize>,
    failed: Arc<Mutex<Vec<String>>>,
    stop: Arc<AtomicBool>,
    at_work: Vec<JoinHandle<()>>,
}

impl Honest {
    pub fn start(scene: &Scene) -> Honest {
        let (good, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let stop = Arc::new(AtomicBool::new(false));
        let work = |is_kept: bool| {
            let (good, failed, stop) = (good.clone(), failed.clone(), stop.clone());
            scene.client.run(move || std::thread::spawn(move || talk(is_kept, &good, &failed, &stop)))
        };
        Honest { at_work: vec![work(true), work(false)], good, failed, stop }
    }

    /// How many exchanges went well so far.
    pub fn good(&self) -> usize {
        self.good.load(Ordering::Relaxed)
    }

    /// Ends it; what did not go well.
    pub fn end(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.at_work {
            thread.join().unwrap();
        }
        self.failed.lock().unwrap().clone()
    }
}

fn talk(is_kept: bool, good: &AtomicUsize, failed: &Mutex<Vec<String>>, stop: &AtomicBool) {
    let mut kept = None;
    while !stop.load(Ordering::Relaxed) {
        let stream = kept.take().map_or_else(|| dial(SocketAddrV4::new(SECOND_IP, ECHO)), Ok);
        match stream.and_then(|mut stream| exchange(&mut stream).map(|()| stream)) {
            Ok(stream) => {
                good.fetch_add(1, Ordering::Relaxed);
                kept = is_kept.then_some(stream);
            }
            Err(error) => failed.lock().unwrap().push(error.to_string()),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn dial(to: SocketAddrV4) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(to)?;
    stream.set_read_timeout(Some(crate::WAIT))?;
    Ok(stream)
}
