//! What the client says: requests, which are shown to the authorizer, and what belongs to them.

use super::answer::{self, Form};
use super::class::Name;
use super::core::{APP, CLIENT, Core, id, pass, undecoded};
use super::frame::{self, EndStream, Fault, FrameHead, code, flag, kind, word};
use super::head::{self, Bad, Request};
use super::hpack::Fields;
use super::reader::{Block, Data, Sink};
use super::settings::{self, Reader};
use super::streams::{Stream, Way};
use crate::{H2_PREFACE, Output, Peer, Refusal, Status, Turn, Verdict};

/// Static entries of the names that we write ourselves.
mod hint {
    pub(super) const AUTHORITY: u8 = 1;
    pub(super) const METHOD: u8 = 2;
    pub(super) const PATH: u8 = 4;
    pub(super) const SCHEME: u8 = 6;
}

/// Hears the client.
pub(super) struct FromClient<'c, 't, 'a> {
    pub(super) core: &'c mut Core,
    pub(super) turn: &'t mut Turn<'a>,
}

impl Sink for FromClient<'_, '_, '_> {
    fn block(&mut self, block: Block<'_>) -> Result<(), Fault> {
        let mut fields = self.core.streams.fields();
        self.core.from_client.decode(block.bytes, &mut fields).map_err(undecoded)?;
        let stream = match self.fields(&block, &fields)? {
            None => {
                self.core.streams.recycle(fields);
                return Ok(());
            }
            Some(begun) => Stream {
                id: block.stream,
                request: if block.end_stream { Way::Ended } else { Way::Open(begun.length) },
                answer: Way::Begun,
                head: begun.head,
                window: 0,
                fields,
            },
        };
        self.core.client_budget.earn();
        self.core.streams.insert(stream);
        Ok(())
    }

    fn data(&mut self, data: Data<'_>) -> Result<(), Fault> {
        if data.text == 0 && !data.end_stream {
            self.core.client_budget.spend(self.turn.now, "a flood of empty DATA")?;
        }
        let Some(stream) = self.core.streams.get(data.stream) else {
            if !self.core.is_late(data.stream) {
                return Err(Fault::protocol("DATA on an idle stream"));
            }
            self.core.refund_client(self.turn.out, data.flow);
            return Ok(());
        };
        let left = match &mut stream.request {
            Way::Open(left) => left,
            _ => return Err(Fault::new(code::STREAM_CLOSED, "DATA after END_STREAM")),
        };
        if let Some(left) = left {
            let rest = left.checked_sub(data.text as u64);
            match rest.filter(|rest| !data.end_stream || *rest == 0) {
                Some(rest) => *left = rest,
                None => {
                    self.core.refund_client(self.turn.out, data.flow);
                    let fault = "a body of another length than its content-length";
                    return self.spoil(data.stream, &Refusal::bad_request(fault));
                }
            }
        }
        if data.text > 0 {
            self.core.client_budget.earn();
        }
        pass(&data, &mut self.turn.out.to_app);
        self.turn.authorizer.request_body(id(data.stream), data.text);
        if data.end_stream {
            self.request_ended(data.stream);
        }
        Ok(())
    }

    fn frame(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fault> {
        match head.kind {
            kind::RST_STREAM => self.reset(head.stream, word_of(payload)),
            kind::SETTINGS if head.has(flag::ACK) => {
                let unanswered = self.core.unanswered.get_mut(APP).map(|of| &mut of.settings);
                let left = unanswered.filter(|left| **left > 0);
                *left.ok_or(Fault::protocol("ACK of SETTINGS that were not sent"))? -= 1;
                self.write(head, payload);
                Ok(())
            }
            kind::SETTINGS => self.settings(payload),
            kind::PING => self.ping(head, payload),
            kind::WINDOW_UPDATE => self.window_update(head, payload),
            kind::GOAWAY => {
                self.core.client_budget.spend(self.turn.now, "a flood of GOAWAY")?;
                self.write(head, payload);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn dropped(&mut self) -> Result<(), Fault> {
        self.core.client_budget.spend(self.turn.now, "a flood of frames without use")
    }

    fn is_full(&self) -> bool {
        self.core.is_stalled() || Core::is_full(self.turn.out) || self.turn.authorizer.is_spent()
    }
}

/// What the table must know of a stream that was forwarded.
struct Begun {
    length: Option<u64>,
    head: bool,
}

impl FromClient<'_, '_, '_> {
    /// The fields of a request, or its trailers. Says what has begun, if it was forwarded.
    fn fields(&mut self, block: &Block<'_>, fields: &Fields) -> Result<Option<Begun>, Fault> {
        let stream = block.stream;
        if self.core.streams.get(stream).is_some() {
            return self.trailers(block, fields).map(|()| None);
        }
        if stream.is_multiple_of(2) {
            return Err(Fault::protocol("a stream of the client with an even id"));
        }
        if stream <= self.core.streams.highest {
            return Ok(None);
        }
        self.core.streams.highest = stream;
        if stream > self.core.last {
            return Ok(None);
        }
        if let Some((limit, fault)) = self.core.full() {
            let refusal = Refusal::over(Status::Unavailable, limit, fault);
            self.turn.authorizer.refused(id(stream), &refusal);
            self.core.reset_client(self.turn.out, stream, code::REFUSED_STREAM);
            self.turn.authorizer.finished(id(stream));
            return Ok(None);
        }
        Ok(self.request(block, fields))
    }

    fn request(&mut self, block: &Block<'_>, fields: &Fields) -> Option<Begun> {
        let checked = head::request(fields, &*self.turn.authorizer);
        let request = match checked {
            Ok(request) if block.end_stream && request.length.is_some_and(|length| length > 0) => {
                Err(Bad::Malformed("a body of another length than its content-length"))
            }
            checked => checked,
        };
        let (refusal, form) = match request {
            Err(Bad::Malformed(fault)) => {
                self.malformed(block.stream, fault);
                return None;
            }
            Err(Bad::Refused(refusal)) => {
                self.turn.authorizer.refused(id(block.stream), &refusal);
                (refusal, Form::Http)
            }
            Ok(request) => match self.decide(block.stream, &request, fields) {
                Verdict::Forward => {
                    self.forward(block, &request, fields);
                    return Some(Begun { length: request.length, head: request.method == "HEAD" });
                }
                Verdict::Refuse(refusal) => (refusal, if request.grpc { Form::Grpc } else { Form::Http }),
            },
        };
        self.refuse(block, &refusal, form);
        None
    }

    fn decide(&mut self, stream: u32, request: &Request<'_>, fields: &Fields) -> Verdict {
        let Turn { authorizer, out, .. } = &mut *self.turn;
        let patch = &mut out.patch;
        patch.clear();
        request.show(fields, &mut self.core.cookies, |head| authorizer.decide(id(stream), head, patch))
    }

    /// Writes a request to the app, as the patch has it.
    fn forward(&mut self, block: &Block<'_>, request: &Request<'_>, fields: &Fields) {
        let encoder = &mut self.core.to_app;
        let Output { to_app, patch, .. } = &mut *self.turn.out;
        let target = patch.target();
        let as_sent = request.is_plain && target.is_none();
        let unpatched = patch.is_empty();
        to_app.build(|out| {
            frame::block(block.stream, EndStream::of(block.end_stream), out, |out| {
                encoder.begin(out);
                if !as_sent {
                    encoder.field(":method", request.method.as_bytes(), hint::METHOD, out);
                    encoder.field(":scheme", request.scheme.as_bytes(), hint::SCHEME, out);
                    encoder.field(":path", target.unwrap_or(request.target).as_bytes(), hint::PATH, out);
                    encoder.field(":authority", request.authority.as_bytes(), hint::AUTHORITY, out);
                }
                fields.write(
                    |class, name| match class {
                        Name::Pseudo => as_sent,
                        class => head::is_forwarded(class) && (unpatched || !patch.removes(name())),
                    },
                    out,
                );
                for (name, value) in patch.added() {
                    encoder.field(name, value, 0, out);
                }
            });
        });
    }

    /// Answers a request that is not forwarded; what the client still sends of it is dropped.
    fn refuse(&mut self, block: &Block<'_>, refusal: &Refusal, form: Form) {
        let said = self.core.tell_client(&mut self.turn.out.to_client, |core, bytes| {
            let status = answer::write(block.stream, refusal, form, &mut core.to_client, bytes);
            if !block.end_stream {
                frame::reset(block.stream, code::NO_ERROR, bytes);
            }
            status
        });
        self.turn.authorizer.answered(id(block.stream), said.unwrap_or_default());
        self.turn.authorizer.finished(id(block.stream));
    }

    fn malformed(&mut self, stream: u32, fault: &'static str) {
        self.turn.authorizer.refused(id(stream), &Refusal::bad_request(fault));
        self.core.reset_client(self.turn.out, stream, code::PROTOCOL_ERROR);
        self.turn.authorizer.finished(id(stream));
    }

    /// A live stream turns out to be malformed.
    fn spoil(&mut self, stream: u32, refusal: &Refusal) -> Result<(), Fault> {
        let answered = self.core.streams.get(stream).is_some_and(|stream| stream.answer != Way::Begun);
        self.turn.authorizer.refused(id(stream), refusal);
        self.core.cut(stream, code::PROTOCOL_ERROR, code::CANCEL, self.turn);
        self.core.count_reset(answered)
    }

    fn trailers(&mut self, block: &Block<'_>, fields: &Fields) -> Result<(), Fault> {
        let Some(stream) = self.core.streams.get(block.stream) else { return Ok(()) };
        let left = match stream.request {
            Way::Open(left) => left.unwrap_or_default(),
            _ => return Err(Fault::new(code::STREAM_CLOSED, "HEADERS after END_STREAM")),
        };
        let bad = if !block.end_stream {
            Some(Refusal::bad_request("a second head that does not end its stream"))
        } else if fields.size() > self.core.limits.trailer_bytes {
            let fault = "the trailers are too long";
            Some(Refusal::over(Status::FieldsTooLarge, "http.trailer_bytes", fault))
        } else if left > 0 {
            Some(Refusal::bad_request("a body of another length than its content-length"))
        } else {
            head::trailers(fields, &*self.turn.authorizer).err().map(Refusal::bad_request)
        };
        if let Some(refusal) = bad {
            return self.spoil(block.stream, &refusal);
        }
        let encoder = &mut self.core.to_app;
        self.turn.out.to_app.build(|out| {
            frame::block(block.stream, EndStream::Yes, out, |out| {
                encoder.begin(out);
                out.extend_from_slice(fields.coded());
            });
        });
        self.request_ended(block.stream);
        Ok(())
    }

    fn request_ended(&mut self, stream: u32) {
        let Some(live) = self.core.streams.get(stream) else { return };
        live.request = Way::Ended;
        if live.is_over() {
            self.core.remove(stream, self.turn);
        }
    }

    fn reset(&mut self, stream: u32, reason: u32) -> Result<(), Fault> {
        let Some(live) = self.core.streams.get(stream) else {
            if !self.core.is_late(stream) {
                return Err(Fault::protocol("RST_STREAM on an idle stream"));
            }
            return self.dropped();
        };
        let answered = live.answer != Way::Begun;
        self.turn.out.to_app.build(|out| frame::reset(stream, reason, out));
        self.turn.authorizer.reset(id(stream), Peer::Client);
        self.core.remove(stream, self.turn);
        self.core.count_reset(answered)
    }

    fn settings(&mut self, payload: &[u8]) -> Result<(), Fault> {
        self.core.client_budget.spend(self.turn.now, "a flood of SETTINGS")?;
        let Some(sent) = self.core.unanswered.get_mut(CLIENT) else { return Ok(()) };
        sent.settings += 1;
        let first = !std::mem::replace(&mut self.core.dialled, true);
        let bounds = self.core.bounds(first);
        let mut result = Ok(None);
        self.turn.out.to_app.build(|out| {
            if first {
                out.extend_from_slice(H2_PREFACE);
            }
            result = settings::rewrite(payload, Reader::App, bounds, out);
        });
        let Some(window) = result? else { return Ok(()) };
        self.core.initial_window = window;
        let overflows = |stream: &Stream| Core::overflows(stream.window + i64::from(window));
        if self.core.streams.iter().any(overflows) {
            return Err(Fault::new(
                code::FLOW_CONTROL_ERROR,
                "an initial window that is too large for a stream",
            ));
        }
        Ok(())
    }

    fn ping(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fault> {
        let of = if head.has(flag::ACK) { APP } else { CLIENT };
        let Some(sent) = self.core.unanswered.get_mut(of) else { return Ok(()) };
        if head.has(flag::ACK) && sent.pings > 0 {
            sent.pings -= 1;
        } else {
            sent.pings = if head.has(flag::ACK) { 0 } else { sent.pings + 1 };
            self.core.client_budget.spend(self.turn.now, "a flood of PING")?;
        }
        self.write(head, payload);
        Ok(())
    }

    fn window_update(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fault> {
        let increment = word(payload);
        if increment == 0 {
            return Err(Fault::protocol("WINDOW_UPDATE by 0"));
        }
        let granted = i64::from(increment);
        let window = if head.stream == 0 {
            self.core.window += granted;
            self.core.window
        } else {
            let initial = i64::from(self.core.initial_window);
            let Some(live) = self.core.streams.get(head.stream) else {
                if !self.core.is_late(head.stream) {
                    return Err(Fault::protocol("WINDOW_UPDATE on an idle stream"));
                }
                // What an honest client sends for what it has just received.
                return Ok(());
            };
            live.window += granted;
            live.window + initial
        };
        if Core::overflows(window) {
            return Err(Fault::new(code::FLOW_CONTROL_ERROR, "WINDOW_UPDATE beyond the largest window"));
        }
        self.turn.out.to_app.build(|out| frame::window_update(head.stream, increment, out));
        Ok(())
    }

    /// Passes a frame on, without flags that mean nothing.
    fn write(&mut self, head: FrameHead, payload: &[u8]) {
        let flags = head.flags & flag::ACK;
        self.turn.out.to_app.build(|out| frame::write(head.kind, flags, head.stream, payload, out));
    }
}

/// The code of RST_STREAM.
fn word_of(payload: &[u8]) -> u32 {
    payload.first_chunk::<4>().map_or(code::CANCEL, |bytes| u32::from_be_bytes(*bytes))
}
