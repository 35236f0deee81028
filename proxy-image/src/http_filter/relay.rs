//! The copy of a connection with the HTTP filter in its middle. As the plain copy ([`crate::copy::relay`]) it keeps
//! back-pressure, half-closes and resets; what comes of either side goes through the filter first.

use super::authorizer::RequestAuthorizer;
use super::held::Held;
use super::protocol::{Event, Protocol, events};
use super::timer::{Timer, let_others};
use super::wires::{Both, Buffers, Delivery, Io, Send, with_buffers};
use crate::context::Context as ProxyContext;
use crate::copy::{End, Failure, Observer, Side, Which};
use crate::inbound_policy::InboundPolicy;
use crate::live::Registered;
use cinch_http::{Authorizer, End as FilterEnd, Turn};
use cinch_reason::Reason;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Memory that only saves time is given back after so much quiet.
const QUIET: Duration = Duration::from_secs(5);
/// After so many rounds, each a read of either side, others have their turn. No setting: nothing is refused by it, and what
/// is left is read in the next turn.
const ROUNDS: usize = 8;
/// So long a drained connection may take to say its first byte: it may be on its way.
const PARTING: Duration = Duration::from_secs(1);

const BOTH: Both = Both { client: true, app: true };

/// A connection whose requests are judged one by one.
pub struct Job<'a> {
    /// The surroundings.
    pub ctx: &'a ProxyContext,
    /// The connection, judged and found to need HTTP.
    pub registered: &'a Registered,
    /// The client's address.
    pub from: SocketAddr,
    /// What was already read of the client.
    pub early: Vec<u8>,
}

/// How a filtered connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// As a plain copy would say it.
    pub end: End,
    /// The client said something.
    pub spoke: bool,
}

/// Copies between `client` and `app` what the filter lets pass, until both directions have ended, a side fails, or
/// the connection is cut. `observer` hears of bytes that reach the app, and of those that come from it.
pub fn relay<'a>(
    client: &'a mut impl Side,
    app: &'a mut impl Side,
    job: Job<'a>,
    observer: &'a mut impl Observer,
) -> impl Future<Output = Ended> {
    // No `async fn`: it would keep room for its arguments beside what is made of them.
    let spoke = !job.early.is_empty();
    let mut filtered = Filtered::new(job);
    let mut io = Io { client, app, observer };
    async move {
        let Some(filtered) = &mut filtered else {
            return Ended { end: End::Cut(Reason::ControlUnreachable), spoke };
        };
        let end = poll_fn(|cx| {
            with_buffers(|buffers| match filtered.poll(cx, Instant::now(), &mut io, buffers) {
                Ok(()) => Poll::Pending,
                Err(end) => Poll::Ready(end),
            })
        })
        .await;
        filtered.authorizer.over(end, filtered.ended.app, filtered.registered.denial());
        Ended { end, spoke: filtered.spoke }
    }
}

struct Filtered<'a> {
    ctx: &'a ProxyContext,
    registered: &'a Registered,
    policy: watch::Receiver<Option<Arc<InboundPolicy>>>,
    authorizer: RequestAuthorizer<'a>,
    protocol: Protocol,
    held: Held,
    timer: Timer,
    /// When bytes last moved, and whether memory was given back since.
    busy_at: Instant,
    quiet: bool,
    draining: bool,
    /// The connection said its first byte when the proxy was already told to end, if it has.
    late: bool,
    spoke: bool,
    /// Who had nothing to say in this call of the task, which is woken when that changes: it is not asked again.
    silent: Both,
    /// Who has ended its direction.
    ended: Both,
    /// Whom we have told that ours has ended.
    told: Both,
    /// The filter is done; until then what is left may go.
    leaving: Option<Instant>,
    /// The app's connection broke.
    app_failed: bool,
    early: Vec<u8>,
}

/// The end of the connection stands as an error: it stops whatever is under way.
type Step<T> = Result<T, End>;

impl<'a> Filtered<'a> {
    /// `None`: no policy has come yet.
    fn new(job: Job<'a>) -> Option<Filtered<'a>> {
        let Job { ctx, registered, from, early } = job;
        let mut policy = ctx.policy.clone();
        let current = policy.borrow_and_update().clone()?;
        let now = Instant::now();
        Some(Filtered {
            authorizer: RequestAuthorizer::new(ctx, registered.subject(), from, current, now),
            protocol: Protocol::new(now + ctx.limits.http_first_byte),
            held: Held::new(&ctx.http.held, from.ip()),
            timer: Timer::default(),
            busy_at: now,
            quiet: false,
            draining: false,
            late: registered.is_draining(),
            spoke: !early.is_empty(),
            silent: Both::default(),
            ended: Both::default(),
            told: Both::default(),
            leaving: None,
            app_failed: false,
            early,
            policy,
            registered,
            ctx,
        })
    }
}

impl Filtered<'_> {
    /// `Ok`: all that can be done now is done, and the task is woken when there is more.
    fn poll<C: Side, A: Side, O: Observer>(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        io: &mut Io<'_, C, A, O>,
        buffers: &mut Buffers,
    ) -> Step<()> {
        let polled = self.advance(cx, now, io, buffers);
        if let Err(End::Failed(Which::Second, _)) = polled {
            // Its last words may explain it: an answer before a reset. What then looks like its end is none: the
            // kernel tells a reset only once.
            self.app_failed = true;
            self.silent = Both::default();
            while io.client.poll_flush(cx) == Poll::Ready(Ok(()))
                && self.read_app(cx, now, io, buffers) == Ok(true)
            {}
        } else if polled.is_ok() {
            io.client.rest(cx);
            io.app.rest(cx);
        }
        polled
    }

    fn advance<C: Side, A: Side, O: Observer>(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        io: &mut Io<'_, C, A, O>,
        buffers: &mut Buffers,
    ) -> Step<()> {
        if let Some(reason) = io.observer.poll_cut(cx).or_else(|| io.client.poll_cut(cx)) {
            return Err(End::Cut(reason));
        }
        self.authorizer.begin_turn();
        self.silent = Both::default();
        self.outside_events(now, io, buffers)?;
        if self.protocol.is_reevaluating() {
            // Nothing moves on streams that are not yet asked for again.
            let_others(cx);
            return Ok(());
        }
        for _ in 0..ROUNDS {
            let mut flushed = self.flush(cx, io)?;
            if self.leave(now, flushed, io)? {
                self.timer.arm(self.leaving, cx);
                return Ok(());
            }
            let mut moved = false;
            if flushed == BOTH && self.read_client(cx, now, io, buffers)? {
                (moved, flushed) = (true, self.flush(cx, io)?);
            }
            if flushed.client && self.read_app(cx, now, io, buffers)? {
                (moved, flushed) = (true, self.flush(cx, io)?);
            }
            if flushed == BOTH && self.protocol.wants_turn() {
                moved |= self.tell_both(Event::Client(&[]), now, io, buffers)?;
            }
            self.after_ends(cx, io)?;
            let holding = self.protocol.holding().and(self.authorizer.held());
            if !self.held.now(holding, cx) {
                self.ctx.metrics.count_limit("http_held_bytes");
                return Err(End::Cut(Reason::Overloaded));
            }
            if moved {
                (self.busy_at, self.quiet) = (now, false);
                self.send_away(now, io, buffers)?;
                if self.authorizer.is_spent() {
                    let_others(cx);
                    return Ok(());
                }
            } else if self.protocol.end().is_none() && !self.drain(now, io, buffers)? {
                self.arm(cx);
                return Ok(());
            }
        }
        let_others(cx);
        Ok(())
    }

    /// What does not come from the two sides.
    fn outside_events<C: Side, A: Side, O: Observer>(
        &mut self,
        now: Instant,
        io: &mut Io<'_, C, A, O>,
        buffers: &mut Buffers,
    ) -> Step<()> {
        if self.policy.has_changed().unwrap_or(false) {
            let policy = self.policy.borrow_and_update().clone();
            let Some(policy) = policy else { return Err(End::Cut(Reason::ControlUnreachable)) };
            self.authorizer.set_policy(policy);
            self.tell_both(Event::Reevaluate, now, io, buffers)?;
        } else if self.protocol.is_reevaluating() {
            self.tell_both(Event::ReevaluateOn, now, io, buffers)?;
        }
        if self.timer.has_come(now) {
            if self.protocol.deadline().is_some_and(|deadline| deadline <= now) {
                if matches!(self.protocol, Protocol::Undecided { .. }) && !self.late {
                    self.ctx.metrics.count_limit("http_first_byte");
                }
                self.tell_both(Event::Wake, now, io, buffers)?;
            }
            if !self.quiet && self.busy_at + QUIET <= now {
                self.quiet = true;
                self.protocol.shrink();
                self.authorizer.shrink();
            }
        }
        if !self.early.is_empty() {
            let early = std::mem::take(&mut self.early);
            self.tell_both(Event::Client(&early), now, io, buffers)?;
        }
        Ok(())
    }

    /// Begins the drain of the connection when the proxy is told to end, but not in the middle of a head: its client
    /// could not know. Nor before all has been read that has come: it would be lost. One that began in the drain has its
    /// first request served: the app is still there. Says whether it has just begun.
    fn drain<C: Side, A: Side, O: Observer>(
        &mut self,
        now: Instant,
        io: &mut Io<'_, C, A, O>,
        buffers: &mut Buffers,
    ) -> Step<bool> {
        if self.draining || !self.registered.is_draining() || self.protocol.is_in_head() {
            return Ok(false);
        }
        if !self.late && self.protocol.hurry(now + PARTING) {
            self.late = true;
        }
        if self.late && !self.protocol.has_begun(self.authorizer.has_decided) {
            return Ok(false);
        }
        self.draining = true;
        self.tell_both(Event::Drain, now, io, buffers)?;
        Ok(true)
    }

    /// Ends the connection, as in a drain, of a client that sends forged tokens.
    fn send_away<C: Side, A: Side, O: Observer>(
        &mut self,
        now: Instant,
        io: &mut Io<'_, C, A, O>,
        buffers: &mut Buffers,
    ) -> Step<()> {
        if self.draining || !self.authorizer.is_distrusted() {
            return Ok(());
        }
        self.draining = true;
        self.ctx.metrics.count_limit("http_forged_tokens");
        self.tell_both(Event::Drain, now, io, buffers).map(drop)
    }

    fn arm(&mut self, cx: &mut Context<'_>) {
        let deadline = self.protocol.deadline();
        let shrink = (!self.quiet).then(|| self.busy_at + QUIET);
        let first = deadline.into_iter().chain(shrink).min();
        self.timer.arm(first, cx);
    }

    /// Whether the filter is done; the connection is, once the last bytes have left.
    fn leave<C: Side, A: Side, O: Observer>(
        &mut self,
        now: Instant,
        flushed: Both,
        io: &mut Io<'_, C, A, O>,
    ) -> Step<bool> {
        match self.protocol.end() {
            None => return Ok(false),
            Some(FilterEnd::Cut(reason)) => return Err(End::Cut(reason)),
            Some(FilterEnd::Finished) => {}
        }
        if let Some(until) = self.leaving {
            if flushed.client && flushed.app {
                return Err(End::Finished);
            }
            if until <= now {
                self.ctx.metrics.count_limit("http_flush");
                return Err(End::Failed(Which::First, Failure::Reset));
            }
            return Ok(true);
        }
        self.leaving = Some(now + self.ctx.limits.http_flush);
        if !std::mem::replace(&mut self.told.client, true) {
            io.client.send(&[], true).map_err(|failure| End::Failed(Which::First, failure))?;
        }
        if !std::mem::replace(&mut self.told.app, true) {
            io.app.send(&[], true).map_err(|failure| End::Failed(Which::Second, failure))?;
        }
        Ok(false)
    }

    /// Reads the client and tells the filter. Our own answers wait until it has been read.
    fn read_client<C: Side, A: Side, O: Observer>(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        io: &mut Io<'_, C, A, O>,
        buffers: &mut Buffers,
    ) -> Step<bool> {
        if self.ended.client || self.silent.client || !self.protocol.wants_client() {
            return Ok(false);
        }
        let Io { client, app, observer } = io;
        let (mut failed, mut back) = (Ok(()), std::mem::take(&mut buffers.back));
        let read = client.poll_forward(cx, app.may_take(), &mut |bytes, fin| {
            if failed.is_ok() {
                let mut to_client = |bytes: &[u8], fin: bool| {
                    back.keep(bytes, fin);
                    Ok(())
                };
                let mut to_app = |bytes: &[u8], fin: bool| app.send(bytes, fin);
                let events = events(bytes, fin, Event::Client, Event::ClientEnded);
                for event in events {
                    failed = failed.and_then(|()| {
                        self.tell(event, now, (&mut to_client, &mut to_app), *observer, buffers).map(drop)
                    });
                }
            }
        });
        let sent = back.send(*client);
        buffers.back = back;
        self.spoke |= matches!(&read, Poll::Ready(Ok(moved)) if moved.bytes > 0);
        self.ended.client |= matches!(&read, Poll::Ready(Ok(moved)) if moved.fin);
        failed?;
        sent.map_err(|failure| End::Failed(Which::First, failure))?;
        match read {
            Poll::Pending => {
                self.silent.client = true;
                Ok(false)
            }
            Poll::Ready(Ok(_)) => Ok(true),
            Poll::Ready(Err(failure)) => Err(End::Failed(Which::First, failure)),
        }
    }

    /// Reads the app and tells the filter. What that makes of held requests waits until it has been read.
    fn read_app<C: Side, A: Side, O: Observer>(
        &mut self,
        cx: &mut Context<'_>,
        now: Instant,
        io: &mut Io<'_, C, A, O>,
        buffers: &mut Buffers,
    ) -> Step<bool> {
        if self.ended.app || self.silent.app || !self.protocol.wants_app() {
            return Ok(false);
        }
        let Io { client, app, observer } = io;
        let (mut failed, mut back) = (Ok(()), std::mem::take(&mut buffers.back));
        let read = app.poll_forward(cx, client.may_take(), &mut |bytes, fin| {
            if failed.is_ok() {
                let mut to_client = |bytes: &[u8], fin: bool| client.send(bytes, fin);
                let mut to_app = |bytes: &[u8], fin: bool| {
                    back.keep(bytes, fin);
                    Ok(())
                };
                for event in events(bytes, fin && !self.app_failed, Event::App, Event::AppEnded) {
                    failed = failed.and_then(|()| {
                        self.tell(event, now, (&mut to_client, &mut to_app), *observer, buffers).map(drop)
                    });
                }
            }
        });
        let sent = back.send(*app);
        buffers.back = back;
        if let Poll::Ready(Ok(moved)) = &read {
            self.ended.app |= moved.fin;
            observer.moved(Which::Second, moved.bytes);
        }
        failed?;
        match read {
            Poll::Pending => {
                self.silent.app = true;
                Ok(false)
            }
            Poll::Ready(Err(failure)) => Err(End::Failed(Which::Second, failure)),
            // An app that ends takes nothing more, and need not.
            Poll::Ready(Ok(_)) if self.ended.app => Ok(true),
            Poll::Ready(Ok(_)) => sent.map(|()| true).map_err(|failure| End::Failed(Which::Second, failure)),
        }
    }

    /// Tells the filter of an event while neither side is being read.
    fn tell_both<C: Side, A: Side, O: Observer>(
        &mut self,
        event: Event<'_>,
        now: Instant,
        io: &mut Io<'_, C, A, O>,
        buffers: &mut Buffers,
    ) -> Step<bool> {
        let Io { client, app, observer } = io;
        let mut to_client = |bytes: &[u8], fin: bool| client.send(bytes, fin);
        let mut to_app = |bytes: &[u8], fin: bool| app.send(bytes, fin);
        self.tell(event, now, (&mut to_client, &mut to_app), *observer, buffers)
    }

    /// Tells the filter of an event and sends what comes of it; says whether bytes went.
    fn tell<O: Observer>(
        &mut self,
        event: Event<'_>,
        now: Instant,
        (to_client, to_app): (&mut Send<'_>, &mut Send<'_>),
        observer: &mut O,
        buffers: &mut Buffers,
    ) -> Step<bool> {
        let Buffers { output, joined, .. } = buffers;
        let mut delivery = Delivery::new(to_client, to_app, observer, joined, &mut self.told);
        self.authorizer.now = now;
        let turn = Turn { now, authorizer: &mut self.authorizer, out: output };
        let (protocol, limits) = (&mut self.protocol, &self.ctx.http.limits);
        let deliver = &mut |input: &[u8], output: &mut _| delivery.deliver(input, output);
        protocol.hear(event, limits, turn, deliver);
        let result = delivery.result();
        self.authorizer.protocol = self.protocol.word();
        result
    }

    /// Sends what is kept; says for which side nothing is.
    fn flush<C: Side, A: Side, O: Observer>(
        &self,
        cx: &mut Context<'_>,
        io: &mut Io<'_, C, A, O>,
    ) -> Step<Both> {
        let client = match io.client.poll_flush(cx) {
            Poll::Ready(Err(failure)) => return Err(End::Failed(Which::First, failure)),
            polled => polled.is_ready(),
        };
        let app = match io.app.poll_flush(cx) {
            // Both directions have ended: what it did not want to read is no loss, and its answer may be on its way.
            Poll::Ready(Err(_)) if self.ended.app && self.told.app => true,
            Poll::Ready(Err(failure)) => return Err(End::Failed(Which::Second, failure)),
            polled => polled.is_ready(),
        };
        Ok(Both { client, app })
    }

    /// A side whose direction has ended may still fail.
    fn after_ends<C: Side, A: Side, O: Observer>(
        &self,
        cx: &mut Context<'_>,
        io: &mut Io<'_, C, A, O>,
    ) -> Step<()> {
        if self.ended.client
            && let Poll::Ready(failure) = io.client.poll_after_fin(cx)
        {
            return Err(End::Failed(Which::First, failure));
        }
        if self.ended.app
            && let Poll::Ready(failure) = io.app.poll_after_fin(cx)
        {
            return Err(End::Failed(Which::Second, failure));
        }
        Ok(())
    }
}
