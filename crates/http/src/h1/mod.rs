//! The filter for HTTP/1.x (RFC 9110, RFC 9112).
//!
//! Client bytes go through [`client`], answers through [`app`]; between them stands the queue of requests that are
//! not yet answered. The two directions end as TCP's do, each by itself, but nothing is forwarded after a message
//! whose end is in doubt.

mod answer;
mod app;
mod chunked;
mod client;
mod head;
mod queue;
mod response;
mod rewrite;
mod scan;
mod target;

use crate::{End, Filter, Limits, Output, Refusal, RequestId, Status, Turn, Verdict};
use answer::After;
use cinch_reason::Reason;
use queue::{Entry, Queue};
use scan::Held;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// So long a draining connection that nothing is under way on waits for the request that may be on its way: its client
/// can't know of the drain, and many don't try a request again that met the end of a connection.
const PARTING: Duration = Duration::from_secs(1);

/// One connection of HTTP/1.x.
#[derive(Debug)]
pub struct Connection {
    limits: Arc<Limits>,
    queue: Queue,
    next_id: u64,
    client: client::Client,
    app: app::App,
    from_client: Incoming,
    from_app: Incoming,
    /// Our own directions have ended.
    fin_to_client: bool,
    fin_to_app: bool,
    /// No further request is forwarded on this connection.
    last: bool,
    /// The proxy wants to end: the last answer says so.
    draining: bool,
    /// Draining, and nothing is under way: until then one more request may come.
    parting: Option<Instant>,
    /// Requests wait because our own answers must be sent first, or others have their turn.
    stalled: bool,
    /// Bytes that may still be discarded.
    discard: usize,
    /// Since when the rest of a head is awaited.
    head_since: Option<Instant>,
    quiet_since: Instant,
    /// Both our directions have ended; the peers may take until then to end theirs.
    linger: Option<Instant>,
    end: Option<End>,
}

/// What came of one side and could not be dealt with at once.
#[derive(Debug, Default)]
struct Incoming {
    held: Held,
    /// So many bytes of what is held were searched for the end of a head.
    scanned: usize,
    eof: bool,
}

impl Incoming {
    /// Drops what is held.
    fn forget(&mut self) {
        self.held = Held::default();
        self.scanned = 0;
    }
}

/// Bytes under work, and whether they are those that the call was given.
#[derive(Clone, Copy)]
struct Feed<'a> {
    bytes: &'a [u8],
    lent: bool,
}

impl Feed<'_> {
    /// Passes `length` bytes from `at` on: as a range of what was given, or as a copy of what was held.
    fn pass(&self, at: usize, length: usize, to: &mut crate::Outgoing) {
        if self.lent {
            to.input(at..at + length);
        } else {
            to.own(self.bytes.get(at..at + length).unwrap_or_default());
        }
    }
}

impl Connection {
    /// A connection that was accepted at `now`.
    #[must_use]
    pub fn new(limits: Arc<Limits>, now: Instant) -> Connection {
        Connection {
            queue: Queue::default(),
            next_id: 0,
            client: client::Client::Head { skipped: false },
            app: app::App::Head,
            from_client: Incoming::default(),
            from_app: Incoming::default(),
            fin_to_client: false,
            fin_to_app: false,
            last: false,
            draining: false,
            parting: None,
            stalled: false,
            discard: limits.discard_bytes,
            head_since: None,
            quiet_since: now,
            linger: None,
            end: None,
            limits,
        }
    }

    /// Ends the connection so that no request is lost: with an answer that says so (`Connection: close`), after which
    /// no request is taken. That is the last one of those that are under way, if it has not begun; else the answer to
    /// one more request, if it comes within a second. Upgraded connections stay.
    pub fn drain(&mut self, turn: &mut Turn<'_>) {
        if self.end.is_none() {
            self.draining = true;
            self.last |= self.awaits_answer();
            self.settle(turn);
        }
    }

    /// The last answer of those that are under way has not begun.
    fn awaits_answer(&self) -> bool {
        match self.queue.len() {
            0 => false,
            1 => self.app == app::App::Head && !self.front_is_answered(),
            _ => true,
        }
    }

    /// The rest of a head is awaited.
    #[must_use]
    pub fn is_in_head(&self) -> bool {
        matches!(self.client, client::Client::Head { .. }) && self.head_since.is_some()
    }

    /// Requests wait for answers to those before them.
    fn is_full(&self) -> bool {
        self.queue.len() >= self.limits.pipelined || self.queue.bytes() > self.limits.head_bytes
    }

    /// What is held of the client waits for something else than more of it.
    fn is_blocked(&self) -> bool {
        match self.client {
            client::Client::Head { .. } => !self.last && (self.is_full() || self.stalled),
            client::Client::Upgrade => true,
            _ => false,
        }
    }

    /// Does what has become possible, after any event.
    fn settle(&mut self, turn: &mut Turn<'_>) {
        self.send_answers(turn);
        self.feed_held(turn);
        if self.from_client.eof && (self.from_client.held.is_empty() || !self.is_blocked()) {
            self.client_ended(turn);
        }
        if self.app.is_tunnel() && self.from_client.eof && self.from_app.eof {
            self.answer_finished(turn);
        }
        if self.queue.is_empty() && !self.client.is_mid_body() && !self.app.is_tunnel() {
            if self.last {
                self.close(turn);
            } else if self.draining {
                self.parting.get_or_insert(turn.now + PARTING);
            }
        }
        let waits = self.client.awaits_section() && !self.from_client.held.is_empty() && !self.is_blocked();
        if !waits {
            self.head_since = None;
        } else if self.head_since.is_none() {
            self.head_since = Some(turn.now);
        }
        self.check_end();
    }

    /// Sends our own answers whose turn it is.
    fn send_answers(&mut self, turn: &mut Turn<'_>) {
        while let Some(Entry::Refused(refused)) = self.queue.front() {
            let is_last = self.draining && self.queue.len() == 1;
            let after = if is_last { After::Close } else { refused.after };
            self.last |= is_last;
            turn.out.to_client.build(|out| answer::write(&refused.refusal, after, refused.is_head, out));
            turn.authorizer.answered(refused.id, refused.refusal.status.code());
            turn.authorizer.finished(refused.id);
            self.queue.pop();
        }
    }

    /// Ends both our directions; what the peers still send is discarded.
    fn close(&mut self, turn: &mut Turn<'_>) {
        if self.linger.is_some() {
            return;
        }
        self.last = true;
        self.queue.clear();
        self.client = client::Client::Discard;
        self.from_client.forget();
        self.from_app.forget();
        self.finish_client(turn.out);
        self.finish_app(turn.out);
        self.linger = Some(turn.now + self.limits.linger);
    }

    fn finish_client(&mut self, out: &mut Output) {
        if !self.fin_to_client {
            self.fin_to_client = true;
            out.to_client.finish();
        }
    }

    fn finish_app(&mut self, out: &mut Output) {
        if !self.fin_to_app {
            self.fin_to_app = true;
            out.to_app.finish();
        }
    }

    fn check_end(&mut self) {
        let ours = self.fin_to_client && self.fin_to_app;
        // What an app still says after its last answer is nobody's, and some are slow to close: the client may have
        // taken its side of the connection back and wait to use it again.
        let theirs = self.from_client.eof;
        let spent = self.linger.is_some() && self.discard == 0;
        if self.end.is_none() && ours && (theirs || spent) {
            self.end = Some(End::Finished);
        }
    }

    fn cut(&mut self, reason: Reason) {
        self.end = Some(End::Cut(reason));
        self.queue.clear();
        self.from_client.forget();
        self.from_app.forget();
    }

    /// Discards bytes of a side that has nothing more to say.
    fn discard(&mut self, count: usize) {
        self.discard = self.discard.saturating_sub(count);
    }
}

impl Filter for Connection {
    fn client_data(&mut self, input: &[u8], turn: &mut Turn<'_>) {
        if self.end.is_some() {
            return;
        }
        if !input.is_empty() {
            self.quiet_since = turn.now;
        }
        self.feed_client(input, turn);
        self.settle(turn);
    }

    fn client_eof(&mut self, turn: &mut Turn<'_>) {
        if self.end.is_none() && !self.from_client.eof {
            self.from_client.eof = true;
            self.settle(turn);
        }
    }

    fn app_data(&mut self, input: &[u8], turn: &mut Turn<'_>) {
        if self.end.is_some() {
            return;
        }
        self.quiet_since = turn.now;
        self.feed_app(input, turn);
        self.settle(turn);
    }

    fn app_eof(&mut self, turn: &mut Turn<'_>) {
        if self.end.is_none() && !self.from_app.eof {
            self.from_app.eof = true;
            self.app_ended(turn);
            self.settle(turn);
        }
    }

    fn reevaluate(&mut self, turn: &mut Turn<'_>) {
        if self.end.is_some() {
            return;
        }
        let mut refused = None;
        for (forwarded, bytes) in self.queue.forwarded() {
            let verdict = head::read_again(bytes, &self.limits, turn.authorizer, |head, authorizer| {
                authorizer.decide_again(forwarded.id, head)
            });
            // A head that was read before is read again; were it not, nothing would vouch for it.
            match verdict {
                Some(Verdict::Forward) => {}
                Some(Verdict::Refuse(refusal)) => refused = Some((forwarded.id, refusal)),
                None => {
                    refused = Some((forwarded.id, Refusal::bad_request("the head can not be read again")))
                }
            }
            if refused.is_some() {
                break;
            }
        }
        if let Some((id, refusal)) = refused {
            turn.authorizer.refused(id, &refusal);
            self.cut(refusal.reason);
        }
    }

    fn wake(&mut self, turn: &mut Turn<'_>) {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= turn.now);
        if self.end.is_some() {
            return;
        }
        if due(self.linger) {
            self.end = Some(End::Finished);
        } else if due(self.head_deadline()) {
            self.refuse_client(
                Refusal::over(Status::RequestTimeout, "http.head_timeout", "a head did not come in time"),
                turn,
            );
            self.settle(turn);
        } else if due(self.parting_deadline()) {
            self.close(turn);
            self.settle(turn);
        } else if due(self.idle_deadline()) {
            if self.client.is_mid_body() {
                self.refuse_client(
                    Refusal::over(Status::RequestTimeout, "http.idle_timeout", "a body did not come in time"),
                    turn,
                );
            } else {
                self.close(turn);
            }
            self.settle(turn);
        }
    }

    fn deadline(&self) -> Option<Instant> {
        if self.end.is_some() {
            return None;
        }
        let others = [self.head_deadline(), self.parting_deadline(), self.idle_deadline()];
        self.linger.or_else(|| others.into_iter().flatten().min())
    }

    fn wants_client(&self) -> bool {
        if self.end.is_some() || self.from_client.eof {
            return false;
        }
        match self.client {
            client::Client::Discard => self.discard > 0,
            // Its end may be seen, and what comes with it held, but no more.
            _ => !self.is_blocked() || self.from_client.held.is_empty(),
        }
    }

    fn wants_app(&self) -> bool {
        self.end.is_none() && !self.from_app.eof
    }

    fn wants_turn(&self) -> bool {
        self.end.is_none() && self.stalled
    }

    fn held(&self) -> usize {
        self.from_client.held.len() + self.from_app.held.len() + self.queue.bytes()
    }

    fn held_unfinished(&self) -> usize {
        self.from_client.held.len()
    }

    fn shrink(&mut self) {
        self.queue.shrink();
    }

    fn end(&self) -> Option<End> {
        self.end
    }
}

impl Connection {
    fn head_deadline(&self) -> Option<Instant> {
        self.head_since.map(|since| since + self.limits.head_timeout)
    }

    /// A head that has begun to come has its own time.
    fn parting_deadline(&self) -> Option<Instant> {
        self.parting.filter(|_| self.linger.is_none() && self.head_since.is_none())
    }

    /// Long polls, streams of events and upgraded connections may be quiet as long as they like.
    fn idle_deadline(&self) -> Option<Instant> {
        let waits = self.linger.is_none() && (self.queue.is_empty() || self.client.is_mid_body());
        waits.then(|| self.quiet_since + self.limits.idle_timeout)
    }

    /// Refuses what the client is sending: the next request, or the rest of one that was forwarded.
    fn refuse_client(&mut self, refusal: Refusal, turn: &mut Turn<'_>) {
        if self.client.is_mid_body() {
            self.spoil(refusal, turn);
        } else {
            let id = self.take_id();
            self.refuse(id, refusal, After::Close, false, turn);
        }
        self.from_client.forget();
    }

    /// The request that came last: whatever the client sends of a body belongs to it.
    fn newest(&self) -> RequestId {
        RequestId(self.next_id.saturating_sub(1))
    }

    fn take_id(&mut self) -> RequestId {
        let id = RequestId(self.next_id);
        self.next_id += 1;
        id
    }
}
