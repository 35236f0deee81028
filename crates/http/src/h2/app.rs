//! What the app says: answers, which belong to live streams, and what else its connection needs.

use super::core::{APP, CLIENT, Core, id, pass, undecoded};
use super::frame::{self, EndStream, Fault, FrameHead, code, flag, kind, word};
use super::hpack::Fields;
use super::reader::{Block, Data, Sink};
use super::response::{self, Answer};
use super::settings::{self, Reader};
use super::streams::Way;
use crate::{Peer, Turn};

/// What the log and metrics hear of an answer that can't be passed on.
const BAD_GATEWAY: u16 = 502;

/// Hears the app.
pub(super) struct FromApp<'c, 't, 'a> {
    pub(super) core: &'c mut Core,
    pub(super) turn: &'t mut Turn<'a>,
}

impl Sink for FromApp<'_, '_, '_> {
    fn block(&mut self, block: Block<'_>) -> Result<(), Fault> {
        let mut fields = self.core.streams.fields();
        self.core.from_app.decode(block.bytes, &mut fields).map_err(undecoded)?;
        let result = self.fields(&block, &fields);
        self.core.streams.recycle(fields);
        result
    }

    fn data(&mut self, data: Data<'_>) -> Result<(), Fault> {
        if data.text == 0 && !data.end_stream {
            self.core.app_budget.spend(self.turn.now, "a flood of empty DATA")?;
        }
        let Some(stream) = self.core.streams.get(data.stream) else {
            if !self.core.is_late(data.stream) {
                return Err(Fault::protocol("DATA on an idle stream"));
            }
            self.core.refund_app(self.turn.out, data.flow);
            return Ok(());
        };
        let fault = match &mut stream.answer {
            Way::Begun => Some("DATA before the head of its answer"),
            Way::Ended => return Err(Fault::new(code::STREAM_CLOSED, "DATA after END_STREAM")),
            Way::Open(None) => None,
            Way::Open(Some(left)) => {
                let rest = left.checked_sub(data.text as u64);
                match rest.filter(|rest| !data.end_stream || *rest == 0) {
                    Some(rest) => {
                        *left = rest;
                        None
                    }
                    None => Some("an answer of another length than its content-length"),
                }
            }
        };
        if let Some(fault) = fault {
            self.core.refund_app(self.turn.out, data.flow);
            self.spoil(data.stream, fault);
            return Ok(());
        }
        stream.window -= data.flow as i64;
        self.core.window -= data.flow as i64;
        if data.text > 0 {
            self.core.app_budget.earn();
            // A client that measures the path sends a PING for what it receives.
            self.core.client_budget.earn();
        }
        pass(&data, &mut self.turn.out.to_client);
        self.turn.authorizer.answer_body(id(data.stream), data.text);
        if data.end_stream {
            self.answer_ended(data.stream);
        }
        Ok(())
    }

    fn frame(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fault> {
        match head.kind {
            kind::RST_STREAM => self.reset(head.stream, payload),
            kind::SETTINGS if head.has(flag::ACK) => {
                let unanswered = self.core.unanswered.get_mut(CLIENT).map(|of| &mut of.settings);
                let left = unanswered.filter(|left| **left > 0);
                *left.ok_or(Fault::protocol("ACK of SETTINGS that were not sent"))? -= 1;
                self.write(head, payload);
                Ok(())
            }
            kind::SETTINGS => self.settings(payload),
            kind::PING => self.ping(head, payload),
            kind::WINDOW_UPDATE => self.window_update(head, payload),
            kind::GOAWAY => self.goaway(payload),
            _ => Ok(()),
        }
    }

    fn dropped(&mut self) -> Result<(), Fault> {
        self.core.app_budget.spend(self.turn.now, "a flood of frames without use")
    }

    fn is_full(&self) -> bool {
        Core::is_full(self.turn.out)
    }
}

impl FromApp<'_, '_, '_> {
    /// The fields of an answer, or its trailers.
    fn fields(&mut self, block: &Block<'_>, fields: &Fields) -> Result<(), Fault> {
        let Some(stream) = self.core.streams.get(block.stream) else {
            if !self.core.is_late(block.stream) {
                return Err(Fault::protocol("HEADERS on an idle stream"));
            }
            return Ok(());
        };
        let checked = match stream.answer {
            Way::Ended => return Err(Fault::new(code::STREAM_CLOSED, "HEADERS after END_STREAM")),
            Way::Open(_) if !block.end_stream => Err("a second head that does not end its stream"),
            Way::Open(Some(1..)) => Err("an answer of another length than its content-length"),
            Way::Open(_) => response::trailers(fields).map(|()| None),
            Way::Begun => response::answer(fields).and_then(|answer| {
                let length = answer.length.filter(|_| !stream.head && !answer.is_bare());
                if answer.is_interim() && block.end_stream {
                    return Err("an interim answer that ends its stream");
                }
                if block.end_stream && length.is_some_and(|length| length > 0) {
                    return Err("an answer of another length than its content-length");
                }
                if !answer.is_interim() {
                    stream.answer = Way::Open(length);
                }
                Ok(Some(answer))
            }),
        };
        match checked {
            Ok(answer) => self.pass_block(block, fields, answer),
            Err(fault) => self.spoil(block.stream, fault),
        }
        Ok(())
    }

    fn pass_block(&mut self, block: &Block<'_>, fields: &Fields, answer: Option<Answer>) {
        self.core.app_budget.earn();
        let encoder = &mut self.core.to_client;
        self.turn.out.to_client.build(|out| {
            frame::block(block.stream, EndStream::of(block.end_stream), out, |out| {
                encoder.begin(out);
                out.extend_from_slice(fields.coded());
            });
        });
        if let Some(answer) = answer.filter(|answer| !answer.is_interim()) {
            self.turn.authorizer.answered(id(block.stream), answer.status);
        }
        if block.end_stream {
            if let Some(status) = response::grpc_status(fields) {
                self.turn.authorizer.grpc_status(id(block.stream), status);
            }
            self.answer_ended(block.stream);
        }
    }

    /// An answer can't be passed on, or no further.
    fn spoil(&mut self, stream: u32, _fault: &'static str) {
        let Some(live) = self.core.streams.get(stream) else { return };
        if live.answer == Way::Begun {
            self.turn.authorizer.answered(id(stream), BAD_GATEWAY);
        }
        self.turn.authorizer.reset(id(stream), Peer::App);
        self.core.cut(stream, code::INTERNAL_ERROR, code::PROTOCOL_ERROR, self.turn);
    }

    fn answer_ended(&mut self, stream: u32) {
        let Some(live) = self.core.streams.get(stream) else { return };
        live.answer = Way::Ended;
        if live.is_over() {
            self.core.remove(stream, self.turn);
        }
    }

    fn reset(&mut self, stream: u32, payload: &[u8]) -> Result<(), Fault> {
        if let Some(live) = self.core.streams.get(stream) {
            let answered = live.answer != Way::Begun;
            self.turn.out.to_client.build(|out| frame::write(kind::RST_STREAM, 0, stream, payload, out));
            self.turn.authorizer.reset(id(stream), Peer::App);
            self.core.remove(stream, self.turn);
            // What the filter does not check itself, as the windows of the client, the app does.
            if matches!(word(payload), code::PROTOCOL_ERROR | code::FLOW_CONTROL_ERROR | code::STREAM_CLOSED)
            {
                self.core.blame = self.core.count_reset(answered).err();
            }
        } else if !self.core.is_late(stream) {
            return Err(Fault::protocol("RST_STREAM on an idle stream"));
        }
        Ok(())
    }

    fn settings(&mut self, payload: &[u8]) -> Result<(), Fault> {
        self.core.app_budget.spend(self.turn.now, "a flood of SETTINGS")?;
        let first = !std::mem::replace(&mut self.core.greeted, true);
        if let Some(sent) = self.core.unanswered.get_mut(APP) {
            sent.settings += 1;
        }
        let bounds = self.core.bounds(first);
        let waiting = std::mem::take(&mut self.core.waiting);
        let mut result = Ok(None);
        self.turn.out.to_client.build(|out| {
            result = settings::rewrite(payload, Reader::Client, bounds, out);
            out.extend_from_slice(&waiting);
        });
        result.map(|_| ())
    }

    fn ping(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fault> {
        let of = if head.has(flag::ACK) { CLIENT } else { APP };
        let Some(sent) = self.core.unanswered.get_mut(of) else { return Ok(()) };
        if head.has(flag::ACK) && sent.pings > 0 {
            sent.pings -= 1;
        } else {
            sent.pings = if head.has(flag::ACK) { 0 } else { sent.pings + 1 };
            self.core.app_budget.spend(self.turn.now, "a flood of PING")?;
        }
        self.write(head, payload);
        Ok(())
    }

    fn window_update(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fault> {
        let increment = word(payload);
        if increment == 0 {
            return Err(Fault::protocol("WINDOW_UPDATE by 0"));
        }
        if head.stream != 0 && self.core.streams.get(head.stream).is_none() {
            return match self.core.is_late(head.stream) {
                true => Ok(()),
                false => Err(Fault::protocol("WINDOW_UPDATE on an idle stream")),
            };
        }
        self.turn.out.to_client.build(|out| frame::window_update(head.stream, increment, out));
        Ok(())
    }

    /// Streams above the last one that the app names are nobody's: what comes for them is dropped.
    fn goaway(&mut self, payload: &[u8]) -> Result<(), Fault> {
        self.core.app_budget.spend(self.turn.now, "a flood of GOAWAY")?;
        let Some((_, rest)) = payload.split_at_checked(4) else { return Ok(()) };
        let Some((reason, debug)) = rest.split_first_chunk::<4>() else { return Ok(()) };
        let reason = u32::from_be_bytes(*reason);
        self.core.goaway(&mut self.turn.out.to_client, word(payload), reason, debug);
        while let Some(last) = self.core.streams.newest().filter(|last| *last > self.core.last) {
            self.core.remove(last, self.turn);
        }
        Ok(())
    }

    /// Passes a frame on, without flags that mean nothing.
    fn write(&mut self, head: FrameHead, payload: &[u8]) {
        let flags = head.flags & flag::ACK;
        self.turn.out.to_client.build(|out| frame::write(head.kind, flags, head.stream, payload, out));
    }
}
