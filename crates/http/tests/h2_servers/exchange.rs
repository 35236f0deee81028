//! The filter between two sockets, and a client that sends what the row holds.

use crate::codec::{self, Table};
use crate::raw::*;
use crate::scene::{Rules, Seen};
use cinch_http::h2::Connection;
use cinch_http::{Filter, Limits, Output, Turn};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

/// The stream of the request behind the row.
pub const MARKER: u32 = 4001;
/// Far longer than a server on loopback takes.
const LIMIT: Duration = Duration::from_secs(60);
/// Connections at once.
static PLACES: Semaphore = Semaphore::const_new(16);

/// What one connection came to.
pub struct Exchange {
    /// The requests that the filter forwarded.
    pub authorised: Vec<Seen>,
    /// What the server says of each stream.
    pub by_server: Vec<(u32, String)>,
    /// The server ended the connection before the client did.
    pub app_left: bool,
}

/// Sends `bytes` through the filter to `server` in pieces of `size`, then one request more, and reads until the awaited
/// streams are answered or the connection ends.
pub async fn exchange(server: SocketAddr, bytes: &[u8], size: usize, awaited: &[u32]) -> Exchange {
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
    client.write_all(&[PREFACE, &settings(&[])].concat()).await.unwrap();
    let mut heard = Vec::new();
    // The server's SETTINGS, and that it has read ours.
    let greeted = |frames: &[Frame]| frames.iter().filter(|frame| frame.kind == SETTINGS).count() >= 2;
    until(&mut client, &mut heard, greeted).await;
    let sent = [&frame(SETTINGS, ACK, 0, &[])[..], bytes, &get(MARKER, "/marker")].concat();
    for piece in sent.chunks(size) {
        if client.write_all(piece).await.is_err() {
            break;
        }
        tokio::task::yield_now().await;
    }
    let answered = |frames: &[Frame]| {
        let answer = |of: u32| {
            frames.iter().any(|frame| frame.stream == of && matches!(frame.kind, HEADERS | RST_STREAM))
        };
        awaited.iter().all(|stream| answer(*stream))
    };
    until(&mut client, &mut heard, answered).await;
    drop(client);
    let (rules, app_left) = filter.await.unwrap();
    let authorised = rules.seen.into_iter().filter(|seen| rules.allowed.contains(&seen.stream)).collect();
    Exchange { authorised, by_server: by_server(&heard), app_left }
}

/// Reads until the frames that have come are as wanted, or the connection ends.
async fn until(client: &mut TcpStream, heard: &mut Vec<u8>, wanted: impl Fn(&[Frame]) -> bool) {
    let reading = async {
        while !wanted(&split(heard).0) {
            if !matches!(client.read_buf(heard).await, Ok(1..)) {
                return;
            }
        }
    };
    tokio::time::timeout(LIMIT, reading).await.unwrap_or_else(|_| panic!("no answer: {:?}", split(heard).0));
}

/// `x-seen` of each answer.
fn by_server(heard: &[u8]) -> Vec<(u32, String)> {
    let mut table = Table::new(4096);
    let mut seen = Vec::new();
    for frame in split(heard).0.iter().filter(|frame| frame.kind == HEADERS) {
        let fields = codec::decode(&mut table, &frame.payload);
        seen.extend(
            fields.into_iter().find(|field| field.0 == "x-seen").map(|field| (frame.stream, field.1)),
        );
    }
    seen
}

async fn serve(mut client: TcpStream, mut app: TcpStream) -> (Rules, bool) {
    let mut filter = Connection::new(Arc::new(Limits::default()), Instant::now());
    let (mut rules, mut out) = (Rules::default(), Output::default());
    let (mut from_client, mut from_app) = (vec![0; 65_536], vec![0; 65_536]);
    let (mut client_left, mut app_left) = (false, false);
    while filter.end().is_none() {
        let (of_client, count) = tokio::select! {
            read = client.read(&mut from_client), if filter.wants_client() => (true, read),
            read = app.read(&mut from_app), if filter.wants_app() => (false, read),
        };
        let Ok(count) = count else {
            app_left |= !of_client && !client_left;
            break;
        };
        client_left |= of_client && count == 0;
        app_left |= !of_client && count == 0 && !client_left;
        let input = if of_client { &from_client[..count] } else { &from_app[..count] };
        {
            let mut turn = Turn { now: Instant::now(), authorizer: &mut rules, out: &mut out };
            match (of_client, count) {
                (true, 0) => filter.client_eof(&mut turn),
                (true, _) => filter.client_data(input, &mut turn),
                (false, 0) => filter.app_eof(&mut turn),
                (false, _) => filter.app_data(input, &mut turn),
            }
        }
        let mut gone = send(&mut client, &mut app, &mut out, input).await;
        while filter.wants_turn() {
            filter.client_data(&[], &mut Turn { now: Instant::now(), authorizer: &mut rules, out: &mut out });
            gone |= send(&mut client, &mut app, &mut out, &[]).await;
        }
        if gone {
            break;
        }
    }
    (rules, app_left)
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
