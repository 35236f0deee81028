//! How the program ends: when it is told to, and when it is killed.

use crate::apps::{ECHO, HTTP};
use crate::scene::{ATTACKED_IP, SERVER_IP, Scene};
use crate::support::{self, Namespace};
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const WAIT: Duration = Duration::from_secs(60);
/// The proxy's drain, which no test waits for.
const DRAIN: Duration = Duration::from_secs(60);

/// A connection from `namespace`, after one exchange on it.
fn open(namespace: &Namespace, to: (&'static str, u16)) -> io::Result<TcpStream> {
    namespace.run(move || {
        let mut stream = TcpStream::connect(to)?;
        stream.set_read_timeout(Some(WAIT))?;
        say(&mut stream).map(|()| stream)
    })
}

/// One exchange with the echo or with the HTTP app, whose answers may say `Connection: close`.
fn say(stream: &mut TcpStream) -> io::Result<()> {
    let (words, begin, end): (&[u8], &[u8], &[u8]) = match stream.peer_addr()?.port() {
        HTTP => (b"GET / HTTP/1.1\r\nHost: server\r\n\r\n", b"HTTP/1.1 200 OK\r\n", b"\r\n\r\nok"),
        _ => (b"words", b"words", b"words"),
    };
    stream.write_all(words)?;
    let mut answer = Vec::new();
    while !answer.ends_with(end) {
        let mut piece = [0; 256];
        match stream.read(&mut piece)? {
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            read => answer.extend_from_slice(&piece[..read]),
        }
    }
    if answer.starts_with(begin) { Ok(()) } else { Err(ErrorKind::InvalidData.into()) }
}

#[test]
fn a_proxy_told_to_end_serves_while_its_app_does_and_then_ends_at_once() {
    crate::need_namespaces!("a_proxy_told_to_end_serves_while_its_app_does_and_then_ends_at_once");
    let mut scene = Scene::with(&format!("{{limits: {{drainTimeout: {}s}}}}", DRAIN.as_secs()));
    let mut kept = open(&scene.client, (SERVER_IP, ECHO)).unwrap();
    let mut plain = open(&scene.stranger, (ATTACKED_IP, HTTP)).unwrap();
    scene.server_proxy.signal(libc::SIGTERM);
    // Idle HTTP connections are closed in order, and that is how we know that the signal has come.
    assert_eq!(plain.read(&mut [0; 64]).unwrap(), 0);
    drop(plain);
    for _ in 0..5 {
        open(&scene.client, (SERVER_IP, ECHO)).expect("a new connection through a tunnel");
        open(&scene.client, (SERVER_IP, HTTP)).expect("a new request through a tunnel");
        open(&scene.stranger, (ATTACKED_IP, HTTP)).expect("a new request in plaintext");
    }
    say(&mut kept).expect("the open connection goes on");
    assert!(scene.server_proxy.is_running());
    drop(kept);
    let begin = Instant::now();
    assert!(scene.server_proxy.wait());
    println!("from the end of the last connection to the end of the proxy: {:?}", begin.elapsed());

    let mut idle = Vec::new();
    for _ in 0..3 {
        scene.restart_server_proxy();
        open(&scene.client, (SERVER_IP, ECHO)).unwrap();
        let begin = Instant::now();
        scene.server_proxy.signal(libc::SIGTERM);
        assert!(scene.server_proxy.wait());
        idle.push(begin.elapsed());
    }
    println!("from SIGTERM to the end, with an idle tunnel: {idle:?}");
    assert!(idle.iter().all(|took| *took < DRAIN), "it waits for the whole drain: {idle:?}");
}

#[test]
fn a_proxy_that_is_killed_loses_its_own_connections_and_no_others() {
    crate::need_namespaces!("a_proxy_that_is_killed_loses_its_own_connections_and_no_others");
    let mut scene = Scene::start();
    let mut through_both = open(&scene.client, (SERVER_IP, ECHO)).unwrap();
    let mut other = open(&scene.stranger, (ATTACKED_IP, HTTP)).unwrap();
    scene.client_proxy.signal(libc::SIGKILL);
    assert!(!scene.client_proxy.wait());
    let lost = through_both.read(&mut [0; 64]);
    assert!(lost.as_ref().is_ok_and(|read| *read == 0) || lost.is_err(), "{lost:?}");
    // Not over the network without its proxy: the redirect stands, and nobody listens behind it.
    let refused = open(&scene.client, (SERVER_IP, ECHO)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    say(&mut other).expect("the server's other connection goes on");
    scene.restart_client_proxy();
    open(&scene.client, (SERVER_IP, ECHO)).expect("the next proxy serves");
    say(&mut other).expect("and still does");
}
