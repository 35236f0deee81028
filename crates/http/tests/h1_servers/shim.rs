//! The filter between two sockets, as plain as it can be.

use crate::h1_rig::{Judge, Seen};
use cinch_http::h1::Connection;
use cinch_http::{Filter, Limits, Output, Turn};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// Quiet for so long, a server on loopback has said what it has to say.
const QUIET: Duration = Duration::from_secs(3);
/// In the answer to the last request.
const MARKER: &[u8] = b"x-seen: GET /marker ";
/// Connections at once.
static PLACES: Semaphore = Semaphore::const_new(16);

/// What one connection came to.
pub struct Exchange {
    /// The requests that the filter forwarded.
    pub authorised: Vec<Seen>,
    /// Those that it saw answered completely.
    pub finished: usize,
    /// What the client got.
    pub answers: Vec<u8>,
}

/// Sends `bytes` through the filter to `server` in pieces of `size`, and reads until nothing comes any more.
pub async fn exchange(server: SocketAddr, bytes: &[u8], size: usize) -> Exchange {
    let _place = PLACES.acquire().await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let filter = tokio::spawn(async move {
        let (client, _) = listener.accept().await.unwrap();
        let app = TcpStream::connect(server).await.unwrap();
        serve(client, app).await
    });
    let mut client = TcpStream::connect(address).await.unwrap();
    client.set_nodelay(true).unwrap();
    for piece in bytes.chunks(size) {
        if client.write_all(piece).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    let mut answers = Vec::new();
    while let Ok(Ok(count)) = tokio::time::timeout(QUIET, client.read_buf(&mut answers)).await {
        let last = answers.windows(MARKER.len()).any(|window| window.eq_ignore_ascii_case(MARKER));
        if count == 0 || (last && answers.ends_with(b"ok")) {
            break;
        }
    }
    drop(client);
    let judge = filter.await.unwrap();
    let authorised = judge.seen.into_iter().filter(|seen| seen.allowed).collect();
    Exchange { authorised, finished: judge.finished.len(), answers }
}

async fn serve(mut client: TcpStream, mut app: TcpStream) -> Judge {
    let mut filter = Connection::new(Arc::new(Limits::default()), Instant::now());
    let (mut judge, mut out) = (Judge::default(), Output::default());
    let (mut from_client, mut from_app) = (vec![0; 65_536], vec![0; 65_536]);
    while filter.end().is_none() {
        let deadline = filter.deadline().map_or(Duration::from_secs(10), |at| at - Instant::now());
        let (input, event): (&[u8], Event) = tokio::select! {
            read = client.read(&mut from_client), if filter.wants_client() => match read {
                Ok(0) => (&[], Event::ClientEnd),
                Ok(count) => (&from_client[..count], Event::Client),
                Err(_) => break,
            },
            read = app.read(&mut from_app), if filter.wants_app() => match read {
                Ok(0) => (&[], Event::AppEnd),
                Ok(count) => (&from_app[..count], Event::App),
                Err(_) => break,
            },
            () = tokio::time::sleep(deadline) => (&[], Event::Wake),
        };
        {
            let mut turn = Turn { now: Instant::now(), authorizer: &mut judge, out: &mut out };
            match event {
                Event::Client => filter.client_data(input, &mut turn),
                Event::ClientEnd => filter.client_eof(&mut turn),
                Event::App => filter.app_data(input, &mut turn),
                Event::AppEnd => filter.app_eof(&mut turn),
                Event::Wake => filter.wake(&mut turn),
            }
        }
        let mut gone = send(&mut client, &mut app, &mut out, input).await;
        while filter.wants_turn() {
            filter.client_data(&[], &mut Turn { now: Instant::now(), authorizer: &mut judge, out: &mut out });
            gone |= send(&mut client, &mut app, &mut out, &[]).await;
        }
        if gone {
            break;
        }
    }
    judge
}

enum Event {
    Client,
    ClientEnd,
    App,
    AppEnd,
    Wake,
}

/// Sends what there is; says whether a side is gone.
async fn send(client: &mut TcpStream, app: &mut TcpStream, out: &mut Output, input: &[u8]) -> bool {
    let mut gone = false;
    for (to, outgoing) in [(client, &out.to_client), (app, &out.to_app)] {
        for slice in outgoing.slices(input) {
            gone |= to.write_all(slice).await.is_err();
        }
        if outgoing.fin() {
            gone |= to.shutdown().await.is_err();
        }
    }
    out.clear();
    gone
}
