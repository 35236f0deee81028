//! What leaves the filter, read by the `h2` crate, which knows nothing of it: a server reads the requests that were
//! authorised and no others, a client the answers as the app gave them, however the bytes came.

use crate::codec::{Table, Text, encode};
use crate::raw::*;
use crate::scene::{Scene, texts};
use bytes::Bytes;
use cinch_http::Filter;
use http::{HeaderMap, Request};
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A connection whose other end is the test: what has come and was not read, and what was written.
#[derive(Clone, Default)]
struct Wire(Rc<RefCell<(Vec<u8>, Vec<u8>)>>);

impl Wire {
    fn put(&self, bytes: &[u8]) {
        self.0.borrow_mut().0.extend_from_slice(bytes);
    }

    fn take(&self) -> Vec<u8> {
        std::mem::take(&mut self.0.borrow_mut().1)
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let input = &mut self.0.borrow_mut().0;
        if input.is_empty() {
            return Poll::Pending;
        }
        let count = input.len().min(to.remaining());
        to.put_slice(&input[..count]);
        input.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().1.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Polls once; no future here waits for anything but what the test has put there.
fn now<T>(future: &mut (impl Future<Output = T> + Unpin)) -> Option<T> {
    match Pin::new(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(done) => Some(done),
        Poll::Pending => None,
    }
}

/// A message without its first line.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Message {
    fields: Vec<Text>,
    body: Vec<u8>,
    trailers: Vec<Text>,
    ended: bool,
}

fn read_fields(fields: &HeaderMap) -> Vec<Text> {
    let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    sorted(fields.iter().map(|(name, value)| (name.to_string(), text(value))).collect())
}

/// By names, values of one name in their order: more than that the crate does not tell.
fn sorted(mut fields: Vec<Text>) -> Vec<Text> {
    fields.sort_by(|one, other| one.0.cmp(&other.0));
    fields
}

/// Reads what has come of a body.
fn read_body(fields: &HeaderMap, body: &mut h2::RecvStream) -> Message {
    let mut message = Message { fields: read_fields(fields), ..Message::default() };
    loop {
        match now(&mut pin!(body.data())) {
            Some(Some(piece)) => message.body.extend_from_slice(&piece.unwrap()),
            Some(None) => break,
            None => return message,
        }
    }
    if let Some(trailers) = now(&mut pin!(body.trailers())) {
        message.trailers = trailers.unwrap().as_ref().map(read_fields).unwrap_or_default();
        message.ended = true;
    }
    message
}

/// One message as a side sends it.
#[derive(Debug, Clone)]
struct Sent {
    path: usize,
    fields: Vec<usize>,
    pieces: Vec<Vec<u8>>,
    trailers: bool,
    seed: usize,
}

const PATHS: [&str; 6] = ["/a", "/deny", "/401", "/patch/b", "/a/../c?d=e", "/b%20c"];
const FIELDS: [(&str, &str); 8] = [
    ("cookie", "a=1"),
    ("cookie", "b=2"),
    ("x-a", "one"),
    ("x-a", "two"),
    ("x-gone", "1"),
    ("x-forwarded-client-cert", "By=me"),
    ("authorization", "Bearer aGVsbG8="),
    ("user-agent", "reader/1"),
];
const TRAILERS: [(&str, &str); 2] = [("grpc-status", "0"), ("x-sum", "6")];

fn sent() -> impl Strategy<Value = Sent> {
    let pieces = prop::collection::vec(prop::collection::vec(any::<u8>(), 0..600), 0..4);
    let fields = prop::collection::vec(0..FIELDS.len(), 0..6);
    (0..PATHS.len(), fields, pieces, any::<bool>(), 0..1_000_000_usize)
        .prop_map(|(path, fields, pieces, trailers, seed)| Sent { path, fields, pieces, trailers, seed })
}

impl Sent {
    fn fields(&self) -> Vec<Text> {
        self.fields.iter().map(|field| (FIELDS[*field].0.to_owned(), FIELDS[*field].1.to_owned())).collect()
    }

    fn body(&self) -> Vec<u8> {
        self.pieces.concat()
    }

    fn trailers(&self) -> Vec<Text> {
        if self.trailers { texts(&TRAILERS) } else { Vec::new() }
    }

    /// Its frames; `first` are the pseudo-fields.
    fn frames(&self, stream: u32, first: &[(&str, &str)], table: &mut Table) -> Vec<u8> {
        let mut block = |fields: &[Text], flags| {
            let mut block = Vec::new();
            encode(table, fields, self.seed, &mut block);
            frame(HEADERS, flags | END_HEADERS, stream, &block)
        };
        let ends_at_once = self.pieces.is_empty() && !self.trailers;
        let head = [texts(first), self.fields()].concat();
        let mut bytes = block(&head, if ends_at_once { END_STREAM } else { 0 });
        for (number, piece) in self.pieces.iter().enumerate() {
            let last = number + 1 == self.pieces.len() && !self.trailers;
            bytes.extend(data(stream, if last { END_STREAM } else { 0 }, piece));
        }
        if self.trailers {
            bytes.extend(block(&self.trailers(), END_STREAM));
        }
        bytes
    }
}

/// Gives bytes in pieces of the sizes, over and over.
fn feed(bytes: &[u8], sizes: &[usize], mut take: impl FnMut(&[u8])) {
    let (mut rest, mut sizes) = (bytes, sizes.iter().cycle());
    while !rest.is_empty() {
        let (piece, later) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
        take(piece);
        rest = later;
    }
}

/// What a server reads of these bytes: method, target and authority, and the message, by stream.
fn read_as_server(bytes: &[u8]) -> BTreeMap<u32, ([String; 3], Message)> {
    let wire = Wire::default();
    wire.put(bytes);
    let mut handshake = pin!(h2::server::handshake(wire));
    let mut connection = now(&mut handshake).unwrap().unwrap();
    let mut requests = Vec::new();
    loop {
        match now(&mut pin!(connection.accept())) {
            Some(Some(request)) => requests.push(request.unwrap()),
            Some(None) => panic!("the server ended the connection"),
            None => break,
        }
    }
    let read = |(request, respond): &mut (Request<h2::RecvStream>, h2::server::SendResponse<Bytes>)| {
        let target = request.uri().path_and_query().unwrap().to_string();
        let line = [request.method().to_string(), target, request.uri().authority().unwrap().to_string()];
        let fields = request.headers().clone();
        (respond.stream_id().as_u32(), (line, read_body(&fields, request.body_mut())))
    };
    requests.iter_mut().map(read).collect()
}

/// What the app must read of a request that was forwarded.
fn authorised(sent: &Sent) -> ([String; 3], Message) {
    let path = PATHS[sent.path];
    let patched = path.strip_prefix("/patch").map(|rest| format!("/patched{rest}"));
    let mut fields = sent.fields();
    fields.retain(|field| field.0 != "x-forwarded-client-cert" && (patched.is_none() || field.0 != "x-gone"));
    if patched.is_some() {
        fields.push(("x-cinch-peer".to_owned(), "spiffe://td/ns/a/sa/b".to_owned()));
    }
    let line = ["POST".to_owned(), patched.unwrap_or_else(|| path.to_owned()), "shop".to_owned()];
    let message =
        Message { fields: sorted(fields), body: sent.body(), trailers: sorted(sent.trailers()), ended: true };
    (line, message)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_server_reads_the_authorised_requests_and_no_others(
        requests in prop::collection::vec(sent(), 1..8),
        sizes in prop::collection::vec(prop_oneof![1..12_usize, 1..4000_usize], 1..10),
    ) {
        let mut scene = Scene::new();
        scene.app(&settings(&[]));
        let mut client = [PREFACE, &settings(&[])].concat();
        let mut table = Table::new(4096);
        for (number, sent) in requests.iter().enumerate() {
            let first =
                [(":method", "POST"), (":scheme", "http"), (":path", PATHS[sent.path]), (":authority", "shop")];
            client.extend(sent.frames(2 * number as u32 + 1, &first, &mut table));
        }
        feed(&client, &sizes, |piece| scene.client(piece));
        let wanted: BTreeMap<u32, _> = requests.iter().enumerate()
            .filter(|(_, sent)| !["/deny", "/401"].contains(&PATHS[sent.path]))
            .map(|(number, sent)| (2 * number as u32 + 1, authorised(sent)))
            .collect();
        prop_assert_eq!(read_as_server(&scene.to_app), wanted);
    }

    #[test]
    fn a_client_reads_the_answers_as_the_app_gave_them(
        answers in prop::collection::vec(sent(), 1..8),
        sizes in prop::collection::vec(prop_oneof![1..12_usize, 1..4000_usize], 1..10),
    ) {
        let mut scene = Scene::new();
        scene.app(&settings(&[]));
        let wire = Wire::default();
        let mut handshake = Box::pin(h2::client::handshake(wire.clone()));
        let (mut send, connection) = now(&mut handshake).unwrap().unwrap();
        let mut connection = Box::pin(connection);
        // One more than is answered: it is refused, so that an answer of our own stands between theirs.
        let mut waiting = Vec::new();
        for number in 0..=answers.len() {
            let path = if number == answers.len() { "/deny" } else { "/a" };
            let request = Request::get(format!("http://shop{path}")).body(()).unwrap();
            waiting.push(send.send_request(request, true).unwrap().0);
            prop_assert!(now(&mut connection).is_none());
        }
        feed(&wire.take(), &sizes, |piece| scene.client(piece));
        let (mut table, mut app) = (Table::new(4096), frame(SETTINGS, ACK, 0, &[]));
        for (number, sent) in answers.iter().enumerate() {
            let first = [(":status", ["200", "404", "500"][sent.seed % 3])];
            app.extend(sent.frames(2 * number as u32 + 1, &first, &mut table));
        }
        feed(&app, &sizes, |piece| scene.app(piece));
        wire.put(&scene.to_client);
        prop_assert!(now(&mut connection).is_none(), "the client ended the connection");
        for (mut waiting, sent) in waiting.drain(..).zip(answers.iter().map(Some).chain([None])) {
            let answer = now(&mut waiting).unwrap().unwrap();
            let Some(sent) = sent else {
                prop_assert_eq!(answer.status().as_u16(), 403);
                continue;
            };
            prop_assert_eq!(answer.status().as_u16(), [200, 404, 500][sent.seed % 3]);
            let (head, mut body) = answer.into_parts();
            let wanted = Message {
                fields: sorted(sent.fields()),
                body: sent.body(),
                trailers: sorted(sent.trailers()),
                ended: true,
            };
            prop_assert_eq!(read_body(&head.headers, &mut body), wanted);
        }
        prop_assert!(scene.filter.wants_app());
    }
}
