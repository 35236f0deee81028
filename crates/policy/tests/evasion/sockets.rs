//! Three small back ends behind real sockets: each serves what it makes of the bytes of a request line.

use super::attack::{DENIED, attack, is_denied};
use super::back_ends::BackEnd;
use super::{compile, passes, policy, runner};
use cinch_policy::{PathNormalization, normalize};
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};

/// A client's connection to a back end that was started for it and ends with it.
struct Served {
    stream: BufReader<TcpStream>,
}

impl Served {
    fn start(back_end: BackEnd) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || serve(back_end, &listener.accept().unwrap().0));
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        Served { stream: BufReader::new(stream) }
    }

    /// Whether the answer to this target is one of the protected resources.
    fn gives_away(&mut self, target: &str) -> bool {
        write!(self.stream.get_mut(), "GET {target} HTTP/1.1\r\nHost: back-end\r\n\r\n").unwrap();
        let (mut status, mut line, mut length) = (String::new(), String::new(), 0);
        self.stream.read_line(&mut status).unwrap();
        while line != "\r\n" {
            line.clear();
            self.stream.read_line(&mut line).unwrap();
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.trim().parse().unwrap();
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        assert!(status.starts_with("HTTP/1.1 200") || status.starts_with("HTTP/1.1 404"), "{status}");
        body == b"protected"
    }
}

/// One connection: protected resources, and a 404 for everything else.
fn serve(back_end: BackEnd, stream: &TcpStream) {
    stream.set_nodelay(true).unwrap();
    let mut input = BufReader::new(stream);
    let mut line = Vec::new();
    while input.read_until(b'\n', &mut line).unwrap_or(0) > 0 {
        let target = line.split(|byte| *byte == b' ').nth(1).unwrap().to_vec();
        while line != b"\r\n" {
            line.clear();
            input.read_until(b'\n', &mut line).unwrap();
        }
        line.clear();
        let path = target.split(|byte| *byte == b'?').next().unwrap();
        let (status, body) = match is_denied(&back_end.resolve(path)) {
            true => ("200 OK", "protected"),
            false => ("404 Not Found", ""),
        };
        let mut output = stream;
        write!(output, "HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).unwrap();
    }
}

#[test]
fn nothing_protected_comes_back_over_real_sockets() {
    let policies = compile(&[policy("DENY", "paths", DENIED)]);
    for back_end in [BackEnd::Raw, BackEnd::DECODING, BackEnd::Merging, BackEnd::SERVLET] {
        let served = RefCell::new(Served::start(back_end));
        let (passed, refused, would_reach) = (Cell::new(0), Cell::new(0), Cell::new(0));
        let count = |counter: &Cell<usize>| counter.set(counter.get() + 1);
        let outcome = runner(4_000).run(&attack(), |target| {
            let Ok(readings) = normalize(PathNormalization::Safe, &target) else { return Ok(()) };
            // What is refused is sent all the same, to see that the refusal was needed.
            let reached = served.borrow_mut().gives_away(&readings.target());
            if passes(&policies, &readings) {
                count(&passed);
                prop_assert!(!reached, "{:?} gives {} away", back_end, target);
            } else {
                count(&refused);
                would_reach.set(would_reach.get() + usize::from(reached));
            }
            Ok(())
        });
        outcome.unwrap();
        println!(
            "{back_end:?}: {passed:?} passed, {refused:?} refused, of which {would_reach:?} would reach it"
        );
        assert!(passed.get() > 300 && would_reach.get() > 100, "{back_end:?} {passed:?} {would_reach:?}");
    }
}
