//! What both directions of a connection share: the live streams, the windows, and what we say ourselves.

use super::budget::Budget;
use super::frame::{self, Fault};
use super::hpack::{Decoder, Encoder, HpackError};
use super::reader::Data;
use super::settings::{Bounds, MAX_WINDOW};
use super::streams::Streams;
use crate::{Limits, Outgoing, Output, Refusal, RequestId, Status, Turn};
use std::sync::Arc;
use std::time::Instant;

/// Bytes of our own making in one output, after which no further input is looked at: a few bytes can decode to a
/// head of 64 KiB. No setting: nothing is refused by it, and the rest is read as soon as the output has been sent.
const OWN_BYTES: usize = 64 * 1024;

/// Pieces of DATA below this are copied: what is sent at once then stands in one place, and need not be joined.
const SHORT: usize = 1024;

/// Windows are given back in steps of this, and whatever is left at the end of a read.
const REFUND: u32 = 16 * 1024;

/// What an app sends to a client before it knows better (RFC 9113, section 6.9.2).
const DEFAULT_WINDOW: u32 = 65_535;

/// The largest id that a stream can have; a GOAWAY with it announces that another one follows.
pub(super) const LAST: u32 = 0x7fff_ffff;

/// The state that both directions share.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) limits: Arc<Limits>,
    pub(super) streams: Streams,
    pub(super) from_client: Decoder,
    pub(super) from_app: Decoder,
    pub(super) to_client: Encoder,
    pub(super) to_app: Encoder,
    pub(super) client_budget: Budget,
    pub(super) app_budget: Budget,
    /// The client's preface has gone to the app.
    pub(super) dialled: bool,
    /// The app's SETTINGS have gone to the client: only then may anything else.
    pub(super) greeted: bool,
    /// What we said to the client before that.
    pub(super) waiting: Vec<u8>,
    /// Bytes of our own answers since the output was last empty.
    pub(super) answers: usize,
    /// Of DATA that was dropped, to be given back to its sender.
    refund_client: u32,
    refund_app: u32,
    /// What the client granted the app on the connection, less what was sent.
    pub(super) window: i64,
    /// The initial window of streams that the client set.
    pub(super) initial_window: u32,
    /// SETTINGS and PING on their way that wait for their ACK: those of the client, and of the app.
    pub(super) unanswered: [Unanswered; 2],
    /// Streams above it are not forwarded: the lowest id that a GOAWAY to the client has named.
    pub(super) last: u32,
    /// What the client is to blame for, though the app said it.
    pub(super) blame: Option<Fault>,
    /// Joined cookies of the request under work.
    pub(super) cookies: Vec<u8>,
}

/// What a side sent and the other has not yet acknowledged.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Unanswered {
    pub(super) settings: u32,
    pub(super) pings: u32,
}

/// Who sent it: the place in [`Core::unanswered`].
pub(super) const CLIENT: usize = 0;
pub(super) const APP: usize = 1;

impl Core {
    pub(super) fn new(limits: Arc<Limits>, now: Instant) -> Core {
        let decoder = || Decoder::new(limits.head_bytes, limits.head_fields);
        Core {
            streams: Streams::new(limits.early_resets_after),
            from_client: decoder(),
            from_app: decoder(),
            to_client: Encoder::default(),
            to_app: Encoder::default(),
            client_budget: Budget::new(&limits, now),
            app_budget: Budget::new(&limits, now),
            dialled: false,
            greeted: false,
            waiting: Vec::new(),
            answers: 0,
            refund_client: 0,
            refund_app: 0,
            window: i64::from(DEFAULT_WINDOW),
            initial_window: DEFAULT_WINDOW,
            unanswered: [Unanswered::default(); 2],
            last: LAST,
            blame: None,
            cookies: Vec::new(),
            limits,
        }
    }

    pub(super) fn bounds(&self, first: bool) -> Bounds {
        let header_list = u32::try_from(self.limits.head_bytes).unwrap_or(u32::MAX);
        Bounds { streams: self.limits.streams, header_list, first }
    }

    /// Nothing more should be read of either side until the output has been sent.
    pub(super) fn is_full(out: &Output) -> bool {
        out.to_app.own_len() >= OWN_BYTES || out.to_client.own_len() >= OWN_BYTES
    }

    /// Why there is no room for a further stream: the limit, and a clause for the log.
    pub(super) fn full(&self) -> Option<(&'static str, &'static str)> {
        if self.streams.len() >= self.limits.streams as usize {
            return Some(("http.streams", "more streams than permitted"));
        }
        let is_full = self.streams.bytes() >= self.limits.stream_head_bytes;
        is_full.then_some(("http.stream_head_bytes", "more bytes of heads in flight than permitted"))
    }

    /// It is our own answers that must be sent first.
    pub(super) fn is_stalled(&self) -> bool {
        self.answers >= self.limits.answer_bytes
    }

    /// Says something of our own to the client.
    pub(super) fn tell_client<R>(
        &mut self,
        out: &mut Outgoing,
        write: impl FnOnce(&mut Self, &mut Vec<u8>) -> R,
    ) -> Option<R> {
        let mut said = None;
        if self.greeted {
            let before = out.len();
            out.build(|bytes| said = Some(write(self, bytes)));
            self.answers += out.len() - before;
        } else {
            let mut waiting = std::mem::take(&mut self.waiting);
            said = Some(write(self, &mut waiting));
            self.waiting = waiting;
            self.answers = self.waiting.len();
        }
        said
    }

    /// Resets a stream of the client.
    pub(super) fn reset_client(&mut self, out: &mut Output, stream: u32, code: u32) {
        self.tell_client(&mut out.to_client, |_, bytes| frame::reset(stream, code, bytes));
    }

    /// Says goodbye to the client. A later one never names a higher stream (RFC 9113, section 6.8).
    pub(super) fn goaway(&mut self, out: &mut Outgoing, last: u32, code: u32, debug: &[u8]) {
        self.last = self.last.min(last);
        let last = self.last;
        self.tell_client(out, |_, bytes| frame::goaway(last, code, debug, bytes));
    }

    /// Whether a stream that is not live has ever been: what comes for it is late, and not a fault.
    pub(super) fn is_late(&self, stream: u32) -> bool {
        !stream.is_multiple_of(2) && stream <= self.streams.highest
    }

    /// DATA of the client was dropped.
    pub(super) fn refund_client(&mut self, out: &mut Output, flow: usize) {
        self.refund_client += flow as u32;
        if self.refund_client >= REFUND {
            self.refund(out);
        }
    }

    /// DATA of the app was dropped.
    pub(super) fn refund_app(&mut self, out: &mut Output, flow: usize) {
        self.refund_app += flow as u32;
        if self.refund_app >= REFUND {
            self.refund(out);
        }
    }

    /// Gives back what was dropped.
    pub(super) fn refund(&mut self, out: &mut Output) {
        let increment = std::mem::take(&mut self.refund_client);
        if increment > 0 {
            self.tell_client(&mut out.to_client, |_, bytes| frame::window_update(0, increment, bytes));
        }
        let increment = std::mem::take(&mut self.refund_app);
        if increment > 0 {
            out.to_app.build(|bytes| frame::window_update(0, increment, bytes));
        }
    }

    /// A stream is over: nothing more of it passes in either direction.
    pub(super) fn remove(&mut self, stream: u32, turn: &mut Turn<'_>) {
        if self.streams.remove(stream) {
            turn.authorizer.finished(id(stream));
        }
    }

    /// Cuts a live stream in both directions.
    pub(super) fn cut(&mut self, stream: u32, to_client: u32, to_app: u32, turn: &mut Turn<'_>) {
        self.reset_client(turn.out, stream, to_client);
        turn.out.to_app.build(|bytes| frame::reset(stream, to_app, bytes));
        self.remove(stream, turn);
    }

    /// A live stream was reset by the client, or by what the client sent.
    pub(super) fn count_reset(&mut self, answered: bool) -> Result<(), Fault> {
        if !answered && self.streams.reset_early() {
            return Err(Fault::calm(
                "http.early_resets_after",
                "the client resets most of its streams before their answers",
            ));
        }
        Ok(())
    }

    /// Whether a window of `granted` more than was used is larger than any may be.
    pub(super) fn overflows(granted: i64) -> bool {
        granted > i64::from(MAX_WINDOW)
    }
}

/// A stream as a request.
pub(super) fn id(stream: u32) -> RequestId {
    RequestId(u64::from(stream))
}

/// Passes a piece of DATA on: untouched, and unless it is short as a range of the input; else with a head of its own.
pub(super) fn pass(data: &Data<'_>, out: &mut Outgoing) {
    if let Some(whole) = data.whole
        && let Some(at) = whole.at
    {
        return match whole.bytes.len() {
            ..SHORT => out.own(whole.bytes),
            length => out.input(at..at + length),
        };
    }
    let end = if data.end_stream { frame::flag::END_STREAM } else { 0 };
    let padded = if data.padded { frame::flag::PADDED } else { 0 };
    let head = frame::FrameHead {
        length: data.flow,
        kind: frame::kind::DATA,
        flags: end | padded,
        stream: data.stream,
    };
    out.own(&head.bytes());
    out.own(data.carried);
    match data.rest.at {
        Some(at) => out.input(at..at + data.rest.bytes.len()),
        None => out.own(data.rest.bytes),
    }
}

/// The fault of a block that can't be decoded.
pub(super) fn undecoded(error: HpackError) -> Fault {
    match error {
        HpackError::TooLarge => Fault::calm("http.head_bytes", "a head with more bytes than permitted"),
        HpackError::TooMany => Fault::calm("http.head_fields", "a head with more fields than permitted"),
        _ => Fault::new(frame::code::COMPRESSION_ERROR, "a header block that can not be decoded"),
    }
}

/// What the log hears of a connection that ended by a fault.
pub(super) fn refusal(fault: Fault) -> Refusal {
    let calm = fault.code == frame::code::ENHANCE_YOUR_CALM;
    Refusal::over(if calm { Status::Unavailable } else { Status::BadRequest }, fault.limit, fault.text)
}
