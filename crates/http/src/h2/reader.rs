//! The bytes of one side, cut into what they say: header blocks, pieces of DATA, whole other frames.
//!
//! In go bytes in pieces of any size; a [`Sink`] hears what they are. Held are at most: a frame that is not yet
//! whole, a header block that is not, and what came while the sink was full. DATA without padding is handed on as
//! it comes, each piece as a frame of its own, so that a body is neither copied nor kept.

use super::frame::{Fault, FrameHead, HEAD, MAX_PAYLOAD, code, flag, kind, word};
use crate::{H2_PREFACE, Limits};
use std::time::Instant;

/// Pieces of DATA below this wait for more: the head of a frame must not outweigh what it carries.
const MIN_PIECE: usize = 1024;

/// Buffers above this are given back when they are empty.
const KEPT: usize = 4096;

/// Bytes, and where they stand in the input of this call; those that were held stand nowhere.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: Option<usize>,
}

impl<'a> Chunk<'a> {
    fn take(&mut self, length: usize) -> Chunk<'a> {
        let (bytes, rest) = self.bytes.split_at_checked(length).unwrap_or((self.bytes, &[]));
        let taken = Chunk { bytes, at: self.at };
        self.at = self.at.map(|at| at + bytes.len());
        self.bytes = rest;
        taken
    }
}

/// A piece of DATA; with padding always a whole frame.
#[derive(Debug)]
pub(super) struct Data<'a> {
    pub(super) stream: u32,
    pub(super) end_stream: bool,
    pub(super) padded: bool,
    /// What it takes from the windows: the payload with its padding.
    pub(super) flow: usize,
    /// The text alone.
    pub(super) text: usize,
    /// The payload's beginning, of an earlier call.
    pub(super) carried: &'a [u8],
    /// The payload's rest.
    pub(super) rest: Chunk<'a>,
    /// The frame as it stands in the input, when it can go as it is.
    pub(super) whole: Option<Chunk<'a>>,
}

/// A header block, without padding and priority.
#[derive(Debug)]
pub(super) struct Block<'a> {
    pub(super) stream: u32,
    pub(super) end_stream: bool,
    pub(super) bytes: &'a [u8],
}

/// Hears what a side says.
pub(super) trait Sink {
    fn block(&mut self, block: Block<'_>) -> Result<(), Fault>;
    fn data(&mut self, data: Data<'_>) -> Result<(), Fault>;
    /// A whole frame of another type that we know; its length and stream are as they must be.
    fn frame(&mut self, head: FrameHead, payload: &[u8]) -> Result<(), Fault>;
    /// A frame that nobody needs.
    fn dropped(&mut self) -> Result<(), Fault>;
    /// Nothing more should be said until the output has been sent.
    fn is_full(&self) -> bool;
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// So many bytes of the preface are seen.
    Preface(usize),
    Head,
    /// A frame that must be whole before it says anything.
    Whole(FrameHead),
    /// DATA without padding, of which so much payload is still to be handed on.
    Data(FrameHead, usize),
    /// So much payload of no interest.
    Skip(usize),
}

/// A header block under way.
#[derive(Debug, Clone, Copy)]
struct Open {
    stream: u32,
    end_stream: bool,
    continuations: u32,
}

/// Reads one side.
#[derive(Debug)]
pub(super) struct Reader {
    state: State,
    /// A head, or the payload of the state's frame, as far as it came.
    pending: Vec<u8>,
    open: Option<Open>,
    block: Vec<u8>,
    max_block: usize,
    max_continuations: u32,
    /// What came while the sink was full, and how much of it has been read.
    held: Vec<u8>,
    read: usize,
    /// Only SETTINGS may come first.
    greeted: bool,
    /// Since when a header block is under way.
    block_since: Option<Instant>,
}

impl Reader {
    /// A reader of a client, who begins with the preface.
    pub(super) fn of_client(limits: &Limits) -> Reader {
        Reader { state: State::Preface(0), ..Reader::of_app(limits) }
    }

    /// A reader of an app.
    pub(super) fn of_app(limits: &Limits) -> Reader {
        Reader {
            state: State::Head,
            pending: Vec::new(),
            open: None,
            block: Vec::new(),
            max_block: limits.head_bytes,
            max_continuations: limits.continuations,
            held: Vec::new(),
            read: 0,
            greeted: false,
            block_since: None,
        }
    }

    /// Takes what was held, then `input`.
    pub(super) fn read(&mut self, input: &[u8], now: Instant, sink: &mut impl Sink) -> Result<(), Fault> {
        if !self.held.is_empty() {
            let held = std::mem::take(&mut self.held);
            let mut chunk = Chunk { bytes: held.get(self.read..).unwrap_or_default(), at: None };
            let result = self.steps(&mut chunk, sink);
            self.read = held.len() - chunk.bytes.len();
            self.held = held;
            result?;
            if self.read < self.held.len() {
                self.held.extend_from_slice(input);
                return Ok(());
            }
            self.read = 0;
            empty(&mut self.held);
        }
        let mut chunk = Chunk { bytes: input, at: Some(0) };
        self.steps(&mut chunk, sink)?;
        self.held.extend_from_slice(chunk.bytes);
        self.time(now);
        Ok(())
    }

    /// Something is held that only waits for the sink.
    pub(super) fn is_held(&self) -> bool {
        self.read < self.held.len()
    }

    /// SETTINGS have come.
    pub(super) fn is_greeted(&self) -> bool {
        self.greeted
    }

    /// Since when a header block is under way.
    pub(super) fn block_since(&self) -> Option<Instant> {
        self.block_since
    }

    /// Bytes that are held.
    pub(super) fn held(&self) -> usize {
        self.pending.capacity() + self.block.capacity() + self.held.capacity()
    }

    /// Of what is held, bytes of frames and blocks that have not come whole, or wait.
    pub(super) fn unfinished(&self) -> usize {
        self.pending.len() + self.open.map_or(0, |_| self.block.len()) + self.held.len()
    }

    pub(super) fn shrink(&mut self) {
        self.pending.shrink_to_fit();
        self.block.shrink_to_fit();
        self.held.shrink_to_fit();
    }

    fn time(&mut self, now: Instant) {
        let partial = matches!(self.state, State::Whole(FrameHead { kind: kind::HEADERS, .. }));
        self.block_since =
            if partial || self.open.is_some() { Some(self.block_since.unwrap_or(now)) } else { None };
    }

    fn steps(&mut self, chunk: &mut Chunk<'_>, sink: &mut impl Sink) -> Result<(), Fault> {
        while !chunk.bytes.is_empty() && !sink.is_full() {
            self.step(chunk, sink)?;
        }
        Ok(())
    }

    fn step(&mut self, chunk: &mut Chunk<'_>, sink: &mut impl Sink) -> Result<(), Fault> {
        match self.state {
            State::Preface(seen) => self.preface(seen, chunk),
            State::Head => self.head(chunk, sink),
            State::Whole(head) => {
                let missing = head.length.saturating_sub(self.pending.len());
                self.pending.extend_from_slice(chunk.take(missing).bytes);
                if self.pending.len() < head.length {
                    return Ok(());
                }
                let mut payload = std::mem::take(&mut self.pending);
                self.state = State::Head;
                let result = self.whole(head, Chunk { bytes: &payload, at: None }, None, sink);
                empty(&mut payload);
                self.pending = payload;
                result
            }
            State::Data(head, left) => self.data(head, left, chunk, sink),
            State::Skip(left) => {
                let skipped = chunk.take(left).bytes.len();
                self.state = if skipped < left { State::Skip(left - skipped) } else { State::Head };
                Ok(())
            }
        }
    }

    fn preface(&mut self, seen: usize, chunk: &mut Chunk<'_>) -> Result<(), Fault> {
        let expected = H2_PREFACE.get(seen..).unwrap_or_default();
        let bytes = chunk.take(expected.len()).bytes;
        if !expected.starts_with(bytes) {
            return Err(Fault::protocol("bad preface"));
        }
        let seen = seen + bytes.len();
        self.state = if seen < H2_PREFACE.len() { State::Preface(seen) } else { State::Head };
        Ok(())
    }

    /// A frame begins.
    fn head(&mut self, chunk: &mut Chunk<'_>, sink: &mut impl Sink) -> Result<(), Fault> {
        if self.pending.is_empty()
            && let Some(head) = FrameHead::parse(chunk.bytes)
        {
            self.check(head)?;
            if chunk.bytes.len() >= HEAD + head.length {
                let frame = chunk.take(HEAD + head.length);
                let mut payload = frame;
                let raw = payload.take(HEAD).bytes;
                return self.whole(head, payload, Some((frame, raw)), sink);
            }
            chunk.take(HEAD);
            self.begin(head);
            return Ok(());
        }
        let missing = HEAD.saturating_sub(self.pending.len());
        self.pending.extend_from_slice(chunk.take(missing).bytes);
        let Some(head) = FrameHead::parse(&self.pending) else { return Ok(()) };
        self.pending.clear();
        self.check(head)?;
        if head.length == 0 {
            return self.whole(head, Chunk { bytes: &[], at: None }, None, sink);
        }
        self.begin(head);
        Ok(())
    }

    /// The payload of a checked frame is to come, and is not empty.
    fn begin(&mut self, head: FrameHead) {
        self.state = match head.kind {
            kind::DATA if !head.has(flag::PADDED) => State::Data(head, head.length),
            kind::DATA..=kind::CONTINUATION => State::Whole(head),
            _ => State::Skip(head.length),
        };
    }

    /// What can be told from a head alone.
    fn check(&mut self, head: FrameHead) -> Result<(), Fault> {
        if head.length > MAX_PAYLOAD {
            return Err(Fault::new(code::FRAME_SIZE_ERROR, "a frame larger than 16384"));
        }
        if !self.greeted {
            if head.kind != kind::SETTINGS || head.has(flag::ACK) {
                return Err(Fault::protocol("the first frame is not SETTINGS"));
            }
            self.greeted = true;
        }
        if let Some(open) = self.open {
            if head.kind != kind::CONTINUATION || head.stream != open.stream {
                return Err(Fault::protocol("a header block was interrupted"));
            }
        } else if head.kind == kind::CONTINUATION {
            return Err(Fault::protocol("CONTINUATION without a header block"));
        }
        let on_stream = match head.kind {
            kind::DATA | kind::HEADERS | kind::PRIORITY | kind::RST_STREAM | kind::CONTINUATION => true,
            kind::SETTINGS | kind::PING | kind::GOAWAY => false,
            kind::PUSH_PROMISE => return Err(Fault::protocol("PUSH_PROMISE")),
            _ => head.stream != 0,
        };
        if on_stream != (head.stream != 0) {
            return Err(Fault::protocol("a frame on a stream that it does not belong to"));
        }
        let fits = match head.kind {
            kind::PRIORITY => head.length == 5,
            kind::RST_STREAM | kind::WINDOW_UPDATE => head.length == 4,
            kind::PING => head.length == 8,
            kind::SETTINGS if head.has(flag::ACK) => head.length == 0,
            kind::SETTINGS => head.length.is_multiple_of(6),
            kind::GOAWAY => head.length >= 8,
            _ => true,
        };
        if fits { Ok(()) } else { Err(Fault::new(code::FRAME_SIZE_ERROR, "a frame of the wrong length")) }
    }

    /// A frame is complete; `origin` is its whole and its head, where both stand in the input.
    fn whole(
        &mut self,
        head: FrameHead,
        payload: Chunk<'_>,
        origin: Option<(Chunk<'_>, &[u8])>,
        sink: &mut impl Sink,
    ) -> Result<(), Fault> {
        match head.kind {
            kind::DATA => {
                let padded = head.has(flag::PADDED);
                let text = if padded { unpadded(payload.bytes)?.len() } else { payload.bytes.len() };
                // As it is, but for bits that have no meaning.
                let plain =
                    FrameHead { flags: head.flags & (flag::END_STREAM | flag::PADDED), ..head }.bytes();
                let whole = origin.filter(|(frame, raw)| frame.at.is_some() && *raw == plain);
                sink.data(Data {
                    stream: head.stream,
                    end_stream: head.has(flag::END_STREAM),
                    padded,
                    flow: payload.bytes.len(),
                    text,
                    carried: &[],
                    rest: payload,
                    whole: whole.map(|(frame, _)| frame),
                })
            }
            kind::HEADERS => self.headers(head, payload.bytes, sink),
            kind::CONTINUATION => self.continuation(head, payload.bytes, sink),
            kind::PRIORITY if word(payload.bytes) == head.stream => Err(dependency()),
            kind::PRIORITY => sink.dropped(),
            kind::RST_STREAM..=kind::WINDOW_UPDATE => sink.frame(head, payload.bytes),
            _ => sink.dropped(),
        }
    }

    fn data(
        &mut self,
        head: FrameHead,
        left: usize,
        chunk: &mut Chunk<'_>,
        sink: &mut impl Sink,
    ) -> Result<(), Fault> {
        let there = self.pending.len() + chunk.bytes.len();
        if there < left && there < MIN_PIECE {
            self.pending.extend_from_slice(chunk.take(there).bytes);
            return Ok(());
        }
        let length = there.min(left);
        let rest = chunk.take(length - self.pending.len());
        let mut carried = std::mem::take(&mut self.pending);
        let last = length == left;
        self.state = if last { State::Head } else { State::Data(head, left - length) };
        let result = sink.data(Data {
            stream: head.stream,
            end_stream: last && head.has(flag::END_STREAM),
            padded: false,
            flow: length,
            text: length,
            carried: &carried,
            rest,
            whole: None,
        });
        empty(&mut carried);
        self.pending = carried;
        result
    }

    fn headers(&mut self, head: FrameHead, payload: &[u8], sink: &mut impl Sink) -> Result<(), Fault> {
        let mut bytes = if head.has(flag::PADDED) { unpadded(payload)? } else { payload };
        if head.has(flag::PRIORITY) {
            let (priority, rest) = bytes
                .split_at_checked(5)
                .ok_or(Fault::new(code::FRAME_SIZE_ERROR, "HEADERS too short for its priority"))?;
            if word(priority) == head.stream {
                return Err(dependency());
            }
            bytes = rest;
        }
        if bytes.len() > self.max_block {
            return Err(too_large());
        }
        let end_stream = head.has(flag::END_STREAM);
        if head.has(flag::END_HEADERS) {
            return sink.block(Block { stream: head.stream, end_stream, bytes });
        }
        self.block.clear();
        self.block.extend_from_slice(bytes);
        self.open = Some(Open { stream: head.stream, end_stream, continuations: 0 });
        Ok(())
    }

    fn continuation(&mut self, head: FrameHead, payload: &[u8], sink: &mut impl Sink) -> Result<(), Fault> {
        let Some(open) = &mut self.open else { return Ok(()) };
        open.continuations += 1;
        if payload.is_empty() || open.continuations > self.max_continuations {
            return Err(Fault::calm("http.continuations", "a flood of CONTINUATION"));
        }
        if self.block.len() + payload.len() > self.max_block {
            return Err(too_large());
        }
        self.block.extend_from_slice(payload);
        if !head.has(flag::END_HEADERS) {
            return Ok(());
        }
        let (stream, end_stream) = (open.stream, open.end_stream);
        self.open = None;
        let mut block = std::mem::take(&mut self.block);
        let result = sink.block(Block { stream, end_stream, bytes: &block });
        empty(&mut block);
        self.block = block;
        result
    }
}

fn dependency() -> Fault {
    Fault::protocol("a stream that depends on itself")
}

fn too_large() -> Fault {
    Fault::calm("http.head_bytes", "a header block larger than permitted")
}

/// The payload without its padding.
fn unpadded(payload: &[u8]) -> Result<&[u8], Fault> {
    let (padding, rest) =
        payload.split_first().ok_or(Fault::new(code::FRAME_SIZE_ERROR, "a padded frame without a length"))?;
    let length = rest.len().checked_sub(usize::from(*padding));
    length.and_then(|length| rest.get(..length)).ok_or(Fault::protocol("more padding than payload"))
}

fn empty(buffer: &mut Vec<u8>) {
    buffer.clear();
    buffer.shrink_to(KEPT);
}
