//! When a tunnel is used again, and when never: after a fault, for another identity, past its certificate, or when
//! somebody else stands at the address. The servers are made by hand, so that they can break every promise.

use crate::mesh::*;
use crate::modes::{pod, tunnel};
use cinch_policy::Mode;
use cinch_proxy::limits::Limits;
use cinch_tunnel::{Event, RefuseCode, ResetCode, Session, Side};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

const HANDSHAKES: &str = "tunnel_handshakes_total{direction=\"outbound\",outcome=\"ok\"}";
const IDLE: &str = "tunnels_idle ";
/// Seconds for which a certificate is good that is to end in a test.
const LIFETIME: i64 = 5;

/// A server's side of a tunnel that echoes and can do anything else.
struct Served {
    tls: TlsStream<TcpStream>,
    session: Session,
}

/// What the client said.
#[derive(Debug, PartialEq)]
enum Said {
    Open,
    Data(Vec<u8>, bool),
    Reset,
    End,
}

impl Served {
    /// The next things that the client says, as many as one read brings.
    async fn hear(&mut self) -> Vec<Said> {
        let mut bytes = vec![0; 65_536];
        let count = self.tls.read(&mut bytes).await.unwrap_or(0);
        let (mut rest, mut said) = (&bytes[..count], Vec::new());
        while let Some(event) = self.session.receive(&mut rest).unwrap() {
            said.push(match event {
                Event::Open(_) => Said::Open,
                Event::Data { bytes, fin } => Said::Data(bytes.to_vec(), fin),
                Event::Reset(_) => Said::Reset,
                other => panic!("{other:?}"),
            });
        }
        if count == 0 {
            said.push(Said::End);
        }
        said
    }

    async fn answer(&mut self, make: impl FnOnce(&mut Session, &mut Vec<u8>)) {
        let mut frame = Vec::new();
        make(&mut self.session, &mut frame);
        self.tls.write_all(&frame).await.unwrap();
    }

    async fn opened(&mut self) {
        self.answer(|session, out| session.opened(out).unwrap()).await;
    }

    async fn say(&mut self, words: &[u8], fin: bool) {
        let head = self.session.data(words.len(), fin).unwrap();
        self.tls.write_all(&[&head, words].concat()).await.unwrap();
    }

    /// One whole stream: says back what it hears. `false`: there was none.
    async fn echo(&mut self) -> bool {
        loop {
            for said in self.hear().await {
                match said {
                    Said::Open => self.opened().await,
                    Said::Data(words, fin) => {
                        if !words.is_empty() {
                            self.say(&words, false).await;
                        }
                        if fin {
                            self.say(&[], true).await;
                            return true;
                        }
                    }
                    Said::Reset | Said::End => return false,
                }
            }
        }
    }
}

/// A server at an address of its own that does `work` with each tunnel, numbered from 0.
async fn serves<F>(authority: &Authority, work: impl Fn(usize, Served) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let config = authority.good(API).tunnel_server;
    let listener = TcpListener::bind((API_IP, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 0.. {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let Ok(tls) = TlsAcceptor::from(config.clone()).accept(stream).await else { continue };
            tokio::spawn(work(number, Served { tls, session: Session::new(Side::Server) }));
        }
    });
    address
}

/// Web, whose peer api is served by `work`.
async fn web_against<F>(
    limits: Limits,
    work: impl Fn(usize, Served) -> F + Send + 'static,
) -> (Authority, Pod, SocketAddr)
where
    F: Future<Output = ()> + Send + 'static,
{
    let authority = Authority::new();
    let web = Pod::with(WEB_IP, authority.good(WEB), Mode::Permissive, limits).await;
    let address = serves(&authority, work).await;
    web.told.say(SERVICE, one_of(vec![endpoint(address, API)]));
    (authority, web, address)
}

/// One connection of an app, from its first word to its end.
async fn talk(web: &Pod, words: &[u8]) {
    let mut stream = web.dial(SERVICE).await;
    let heard = exchange(&mut stream, words).await;
    assert!(heard.as_ref().is_ok_and(|heard| heard == words), "{heard:?}");
    stream.shutdown().await.unwrap();
    assert_eq!(to_end(&mut stream).await, (vec![], None));
}

/// What a server does with a tunnel that is idle.
#[derive(Debug, Clone, Copy)]
enum Fault {
    ForgedRecord,
    ReservedFrame,
    DataWhileIdle,
    OpenedWhileIdle,
    PlainText,
    EndWithoutClose,
    Close,
    Reset,
    Drain,
}

const FAULTS: [Fault; 9] = [
    Fault::ForgedRecord,
    Fault::ReservedFrame,
    Fault::DataWhileIdle,
    Fault::OpenedWhileIdle,
    Fault::PlainText,
    Fault::EndWithoutClose,
    Fault::Close,
    Fault::Reset,
    Fault::Drain,
];

/// What is left of a tunnel, kept so that it ends no further.
#[allow(dead_code)]
enum Left {
    Nothing,
    Tcp(TcpStream),
    Tls(Box<Served>),
}

async fn kept(mut served: Served, bytes: &[u8]) -> Left {
    served.tls.write_all(bytes).await.unwrap();
    Left::Tls(Box::new(served))
}

async fn commit(fault: Fault, mut served: Served) -> Left {
    match fault {
        Fault::ForgedRecord | Fault::PlainText => {
            let (mut tcp, _) = served.tls.into_inner();
            let forged = [&[23, 3, 3, 0, 30][..], &[7; 30]].concat();
            let bytes = if let Fault::PlainText = fault { b"HTTP/1.1 200 OK\r\n\r\n" } else { &forged[..] };
            tcp.write_all(bytes).await.unwrap();
            return Left::Tcp(tcp);
        }
        Fault::EndWithoutClose => drop(served.tls.into_inner()),
        Fault::Reset => reset(served.tls.into_inner().0),
        Fault::Close => served.tls.shutdown().await.unwrap(),
        Fault::ReservedFrame => return kept(served, &[0xc0, 1, 0]).await,
        Fault::DataWhileIdle => return kept(served, &[0, 1, 7]).await,
        Fault::OpenedWhileIdle => return kept(served, &[0x80, 1, 2]).await,
        Fault::Drain => {
            served.answer(|session, out| session.drain(out).unwrap()).await;
            return kept(served, &[]).await;
        }
    }
    Left::Nothing
}

#[tokio::test]
async fn a_tunnel_is_never_used_again_after_a_fault_or_an_end() {
    for fault in FAULTS {
        // Committed when the test says so: with the client's read armed, or right before the next connection.
        for noticed in [true, false] {
            let (now, done) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
            let (told, tells) = (now.clone(), done.clone());
            let (_authority, web, _) = web_against(limits(), move |number, mut served| {
                let (told, tells) = (told.clone(), tells.clone());
                async move {
                    assert!(served.echo().await);
                    if number > 0 {
                        while served.echo().await {}
                        return;
                    }
                    told.acquire().await.unwrap().forget();
                    let left = commit(fault, served).await;
                    tells.add_permits(1);
                    std::future::pending::<()>().await;
                    drop(left);
                }
            })
            .await;
            talk(&web, b"first").await;
            eventually("the tunnel is idle", || web.metric(IDLE) == Some(1)).await;
            now.add_permits(1);
            done.acquire().await.unwrap().forget();
            // It arrives, while nothing of ours runs.
            std::thread::sleep(Duration::from_millis(20));
            if noticed {
                eventually("it is given up", || web.metric(IDLE) == Some(0)).await;
            }
            talk(&web, b"second").await;
            assert_eq!(web.metric(HANDSHAKES), Some(2), "{fault:?}");
        }
    }
}

#[tokio::test]
async fn a_fault_in_the_middle_is_a_reset_for_the_app_and_the_end_of_the_tunnel() {
    for fault in [Fault::ForgedRecord, Fault::PlainText, Fault::ReservedFrame, Fault::OpenedWhileIdle] {
        let (_authority, web, _) = web_against(limits(), move |number, mut served| async move {
            if number > 0 {
                while served.echo().await {}
                return;
            }
            assert_eq!(served.hear().await[0], Said::Open);
            served.opened().await;
            served.say(b"the first half", false).await;
            pass(Duration::from_millis(20)).await;
            let left = commit(fault, served).await;
            std::future::pending::<()>().await;
            drop(left);
        })
        .await;
        let mut stream = web.dial(SERVICE).await;
        let cut = (b"the first half".to_vec(), Some(ErrorKind::ConnectionReset));
        assert_eq!(to_end(&mut stream).await, cut, "{fault:?}");
        assert_eq!(web.metric("protocol_errors_total{direction=\"outbound\"}"), Some(1), "{fault:?}");
        assert_eq!(web.metric(IDLE), Some(0), "{fault:?}");
        talk(&web, b"next").await;
        assert_eq!(web.metric(HANDSHAKES), Some(2), "{fault:?}");
    }
}

#[tokio::test]
async fn after_a_reset_it_is_used_again_only_when_both_directions_have_ended() {
    for answers in [true, false] {
        // Who answers has the time that it takes.
        let settle = if answers { PATIENCE } else { Duration::from_millis(500) };
        let short = Limits { settle, ..limits() };
        let now = Arc::new(Semaphore::new(0));
        let told = now.clone();
        let (_authority, web, _) = web_against(short, move |number, mut served| {
            let told = told.clone();
            async move {
                if number == 0 {
                    assert_eq!(served.hear().await[0], Said::Open);
                    served.opened().await;
                    while !served.hear().await.contains(&Said::Reset) {}
                    // Its own direction still flows.
                    told.acquire().await.unwrap().forget();
                    if !answers {
                        return std::future::pending().await;
                    }
                    served.answer(|session, out| session.reset(ResetCode::Answer, out).unwrap()).await;
                }
                while served.echo().await {}
            }
        })
        .await;
        let mut stream = web.dial(SERVICE).await;
        stream.write_all(b"words").await.unwrap();
        pass(Duration::from_millis(50)).await;
        reset(stream);
        pass(Duration::from_millis(100)).await;
        assert_eq!(web.metric(IDLE), Some(0), "the server's direction has not ended");
        now.add_permits(1);
        if answers {
            eventually("it is kept", || web.metric(IDLE) == Some(1)).await;
        } else {
            eventually("it is given up", || web.metric("tunnels_open{direction=\"outbound\"}") == Some(0))
                .await;
            assert_eq!(web.metric(IDLE), Some(0));
        }
        talk(&web, b"next").await;
        assert_eq!(web.metric(HANDSHAKES), Some(if answers { 1 } else { 2 }));
    }
}

#[tokio::test]
async fn a_tunnel_of_one_identity_serves_no_other_at_the_same_address() {
    let mesh = Mesh::with_echo(Mode::Strict).await;
    talk(&mesh.web, b"api").await;
    eventually("the tunnel is idle", || mesh.web.metric(IDLE) == Some(1)).await;
    // The record says that another pod has the address now; it is api still that answers there.
    let other = endpoint(mesh.api.inbound, "spiffe://cluster.local/ns/shop/sa/other");
    mesh.web.told.say(SERVICE, one_of(vec![other]));
    assert_refuses(&mut mesh.dial().await, b"for other only").await;
    assert_eq!(mesh.web.metric(IDLE), Some(1), "that of api waits for api");
    let opened = "connections_total{direction=\"inbound\",transport=\"tunnel\"}";
    assert_eq!(mesh.api.metric(opened), Some(1));
}

#[tokio::test]
async fn a_client_takes_no_tunnel_past_the_certificate() {
    let (authority, web, _) =
        web_against(limits(), |_, mut served| async move { while served.echo().await {} }).await;
    // The server's certificate is good for an hour; this one is not.
    let brief = cinch_proxy::context::Credentials {
        generation: 2,
        ..authority.credentials(WEB, LIFETIME, authority.bundle())
    };
    web.credentials.send_replace(Some(Arc::new(brief.clone())));
    talk(&web, b"before").await;
    talk(&web, b"still").await;
    assert_eq!(web.metric(HANDSHAKES), Some(1));
    // Whole seconds are compared, so that it may be good for nearly one more.
    tokio::time::sleep(Duration::from_millis(LIFETIME.unsigned_abs() * 1000 + 1200)).await;
    // As if it was renewed under the same number: only the tunnel's own time is left to stop it.
    let renewed = cinch_proxy::context::Credentials { generation: 2, ..authority.good(WEB) };
    web.credentials.send_replace(Some(Arc::new(renewed)));
    // A new tunnel shows the certificate of that number too, and so no server takes it; the one that is there would do.
    assert_refuses(&mut web.dial(SERVICE).await, b"after").await;
    assert!(web.metric(HANDSHAKES) > Some(1));
    let fresh = cinch_proxy::context::Credentials { generation: 3, ..authority.good(WEB) };
    web.credentials.send_replace(Some(Arc::new(fresh)));
    talk(&web, b"at last").await;
}

#[tokio::test]
async fn a_server_opens_nothing_on_a_tunnel_past_the_certificate() {
    let (authority, pod) = pod(Mode::Strict).await;
    pod.credentials.send_replace(Some(Arc::new(authority.credentials(API, LIFETIME, authority.bundle()))));
    let mut tunnel = tunnel(&authority, &pod, Duration::ZERO).await;
    // A stream that was there before goes on; the next one is refused, or the tunnel is closed.
    tunnel.begin(b"long").unwrap();
    within(tunnel.answer()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(LIFETIME.unsigned_abs() * 1000 + 200)).await;
    within(tunnel.settle(Some(ResetCode::App))).await.unwrap();
    let next = match tunnel.begin(b"late") {
        Ok(()) => within(tunnel.answer()).await,
        // It said DRAIN before we could.
        Err(_) => return assert!(tunnel.is_draining()),
    };
    let refused = matches!(next, Ok(cinch_proxy::tunnel_io::Answer::Refused(RefuseCode::Draining)) | Err(_));
    assert!(refused, "{next:?}");
}

/// A name for whoever stands there now: a listener that joins each connection with `target` of that moment.
async fn address_of(target: Arc<std::sync::Mutex<SocketAddr>>) -> (SocketAddr, Arc<Semaphore>) {
    let listener = TcpListener::bind((API_IP, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let dead = Arc::new(Semaphore::new(0));
    let die = dead.clone();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let to = *target.lock().unwrap();
            let die = die.clone();
            tokio::spawn(async move {
                let mut far = TcpStream::connect(to).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    permit = die.acquire() => permit.unwrap().forget(),
                }
            });
        }
    });
    (address, dead)
}

#[tokio::test]
async fn a_peer_that_was_replaced_at_its_address_is_noticed_before_a_byte() {
    for pause in [Duration::ZERO, Duration::from_millis(30)] {
        let mesh = Mesh::with_echo(Mode::Strict).await;
        let mallory = mesh.authority.good("spiffe://cluster.local/ns/shop/sa/mallory");
        let mallory = Pod::start(API_IP, mallory, Mode::Permissive).await;
        let heard = Arc::new(AtomicUsize::new(0));
        let hears = heard.clone();
        let listening = app(API_IP, move |mut stream| {
            let hears = hears.clone();
            async move {
                let mut bytes = Vec::new();
                let _ = stream.read_to_end(&mut bytes).await;
                hears.fetch_add(bytes.len(), Ordering::Relaxed);
            }
        });
        mallory.set_app(listening.await);
        let target = Arc::new(std::sync::Mutex::new(mesh.api.inbound));
        let (address, dead) = address_of(target.clone()).await;
        mesh.web.told.say(SERVICE, one_of(vec![endpoint(address, API)]));
        talk(&mesh.web, b"api").await;
        eventually("the tunnel is idle", || mesh.web.metric(IDLE) == Some(1)).await;
        *target.lock().unwrap() = mallory.inbound;
        dead.add_permits(1);
        pass(pause).await;
        std::thread::sleep(Duration::from_millis(20));
        // The first may meet the end of the old tunnel, the next one meets mallory in any case.
        for _ in 0..2 {
            assert_refuses(&mut mesh.dial().await, b"secret").await;
        }
        assert_eq!(heard.load(Ordering::Relaxed), 0);
        assert_eq!(mallory.metric("connections_total{direction=\"inbound\",transport=\"tunnel\"}"), None);
        let refused = "connections_refused_total{direction=\"outbound\",reason=\"PeerIdentityMismatch\"}";
        assert!(mesh.web.metric(refused) >= Some(1));
    }
}

#[tokio::test]
async fn only_draining_and_limit_are_tried_again() {
    let codes = [
        (RefuseCode::Draining, 2),
        (RefuseCode::Limit, 2),
        (RefuseCode::Denied, 1),
        (RefuseCode::NoListener, 1),
        (RefuseCode::Unreachable, 1),
        (RefuseCode::Cancelled, 1),
        (RefuseCode::Other(77), 1),
    ];
    for (code, tries) in codes {
        let asked = Arc::new(AtomicUsize::new(0));
        let asks = asked.clone();
        let (_authority, web, _) = web_against(limits(), move |_, mut served| {
            let asks = asks.clone();
            async move {
                while served.hear().await.contains(&Said::Open) {
                    asks.fetch_add(1, Ordering::Relaxed);
                    served.answer(|session, out| session.refused(code, out).unwrap()).await;
                    while !served.session.is_idle() && !served.hear().await.contains(&Said::End) {}
                }
            }
        })
        .await;
        assert_refuses(&mut web.dial(SERVICE).await, b"words").await;
        assert_eq!(asked.load(Ordering::Relaxed), tries, "{code:?}");
    }
}
