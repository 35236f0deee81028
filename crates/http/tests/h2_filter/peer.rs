//! A reference peer that keeps all the rules of RFC 9113, and panics where the other side does not.

use crate::codec::{self, Table, Text};
use crate::raw::*;
use crate::scene::texts;
use std::collections::{BTreeMap, BTreeSet};

/// How a stream stands at one of its ends.
#[derive(Debug, Default)]
pub struct Stream {
    /// What this end may still send, and what it may still be sent.
    pub send: i64,
    pub receive: i64,
    pub head_sent: bool,
    pub head_read: bool,
    pub sent_all: bool,
    pub read_all: bool,
    pub sent: usize,
    pub read: usize,
}

impl Stream {
    fn is_over(&self) -> bool {
        self.sent_all && self.read_all
    }
}

/// A peer that keeps all the rules.
pub struct Peer {
    pub is_client: bool,
    pub out: Vec<u8>,
    pub input: Vec<u8>,
    pub encoder: Table,
    pub decoder: Table,
    pub send: i64,
    pub receive: i64,
    /// The initial windows: what the other side told, and what this one did.
    pub send_initial: i64,
    pub receive_initial: i64,
    pub streams: BTreeMap<u32, Stream>,
    pub next: u32,
    pub heads: BTreeMap<u32, Vec<Text>>,
    pub bodies: BTreeMap<u32, usize>,
    pub trailers: BTreeMap<u32, Vec<Text>>,
    pub resets: BTreeSet<u32>,
    pub unacknowledged: i32,
    pub pings: i32,
}

const INITIAL: i64 = 65_535;

impl Peer {
    pub fn new(is_client: bool) -> Peer {
        let mut peer = Peer {
            is_client,
            out: if is_client { PREFACE.to_vec() } else { Vec::new() },
            input: Vec::new(),
            encoder: Table::new(4096),
            decoder: Table::new(4096),
            send: INITIAL,
            receive: INITIAL,
            send_initial: INITIAL,
            receive_initial: INITIAL,
            streams: BTreeMap::new(),
            next: 1,
            heads: BTreeMap::new(),
            bodies: BTreeMap::new(),
            trailers: BTreeMap::new(),
            resets: BTreeSet::new(),
            unacknowledged: 0,
            pings: 0,
        };
        peer.settings(INITIAL as u32);
        peer
    }

    pub fn settings(&mut self, initial: u32) {
        self.out.extend(settings(&[(1, 4096), (4, initial), (0x77, 1)]));
        let change = i64::from(initial) - self.receive_initial;
        self.receive_initial = i64::from(initial);
        self.streams.values_mut().for_each(|stream| stream.receive += change);
        self.unacknowledged += 1;
    }

    pub fn fresh(&self) -> Stream {
        Stream { send: self.send_initial, receive: self.receive_initial, ..Stream::default() }
    }

    /// Writes a block, cut into frames as `seed` has it.
    pub fn block(&mut self, id: u32, end: bool, fields: &[Text], seed: usize) {
        let mut block = Vec::new();
        codec::encode(&mut self.encoder, fields, seed, &mut block);
        let end = if end { END_STREAM } else { 0 };
        let cut = if seed.is_multiple_of(3) { seed % block.len().max(1) } else { block.len() };
        let (first, rest) = block.split_at(cut);
        let last = if rest.is_empty() { END_HEADERS } else { 0 };
        let mut payload = first.to_vec();
        let mut flags = end | last;
        if seed.is_multiple_of(5) {
            flags |= PRIORITISED;
            payload = [&[0, 0, 0, 0, 7][..], &payload].concat();
        }
        if seed.is_multiple_of(7) {
            flags |= PADDED;
            payload = [&[3][..], &payload, &[0; 3]].concat();
        }
        self.out.extend(frame(HEADERS, flags, id, &payload));
        if !rest.is_empty() {
            self.out.extend(frame(CONTINUATION, END_HEADERS, id, rest));
        }
    }

    /// A stream of this peer's choice that `may` be used.
    pub fn choose(&self, seed: usize, may: impl Fn(&Stream) -> bool) -> Option<u32> {
        let all: Vec<u32> =
            self.streams.iter().filter(|(_, stream)| may(stream)).map(|(id, _)| *id).collect();
        all.get(seed % all.len().max(1)).copied()
    }

    pub fn send_data(&mut self, seed: usize, length: usize, end: bool) {
        let Some(id) = self.choose(seed, |stream| stream.head_sent && !stream.sent_all) else { return };
        let stream = self.streams.get_mut(&id).unwrap();
        let padding = if seed.is_multiple_of(4) { seed % 200 } else { 0 };
        let room = self.send.min(stream.send).clamp(0, 16_384) as usize;
        let padded = padding > 0 && room > padding + 1;
        let extra = if padded { padding + 1 } else { 0 };
        let length = length.min(room - extra);
        let mut payload: Vec<u8> = (stream.sent..stream.sent + length).map(|at| byte(id, at)).collect();
        if padded {
            payload.insert(0, padding as u8);
            payload.extend(vec![0; padding]);
        }
        let flags = if end { END_STREAM } else { 0 } | if padded { PADDED } else { 0 };
        self.out.extend(data(id, flags, &payload));
        self.send -= payload.len() as i64;
        stream.send -= payload.len() as i64;
        stream.sent += length;
        stream.sent_all = end;
        self.settle(id);
    }

    pub fn send_trailers(&mut self, seed: usize) {
        let Some(id) = self.choose(seed, |stream| stream.head_sent && !stream.sent_all) else { return };
        let fields = texts(&[("x-end", ["a", "b"][seed % 2]), ("grpc-status", "0")]);
        self.block(id, true, &fields, seed);
        self.streams.get_mut(&id).unwrap().sent_all = true;
        self.settle(id);
    }

    pub fn send_reset(&mut self, seed: usize) {
        let Some(id) = self.choose(seed, |stream| stream.head_sent || stream.head_read) else { return };
        self.out.extend(reset(id, 8));
        self.streams.remove(&id);
        self.resets.insert(id);
    }

    pub fn grant(&mut self, seed: usize) {
        let increment = seed % 5000 + 1;
        let stream = self.choose(seed, |stream| stream.head_read && !stream.read_all);
        match stream.filter(|_| seed.is_multiple_of(2)) {
            Some(id) => {
                self.out.extend(window_update(id, increment as u32));
                self.streams.get_mut(&id).unwrap().receive += increment as i64;
            }
            None => {
                self.out.extend(window_update(0, increment as u32));
                self.receive += increment as i64;
            }
        }
    }

    pub fn settle(&mut self, id: u32) {
        if self.streams.get(&id).is_some_and(Stream::is_over) {
            self.streams.remove(&id);
        }
    }

    /// Reads what has come; panics at whatever no peer may send.
    pub fn read(&mut self) {
        let input = std::mem::take(&mut self.input);
        let input = input.strip_prefix(if self.is_client { &[][..] } else { PREFACE }).unwrap_or(&input);
        let (frames, rest) = split(input);
        self.input = rest.to_vec();
        let mut block: Option<(u32, bool, Vec<u8>)> = None;
        for frame in frames {
            if let Some((id, end, mut bytes)) = block.take() {
                assert_eq!((frame.kind, frame.stream), (CONTINUATION, id));
                bytes.extend(&frame.payload);
                block = self.block_read(id, end, bytes, frame.flags & END_HEADERS != 0);
                continue;
            }
            match frame.kind {
                HEADERS => {
                    assert_eq!(frame.flags & !(END_STREAM | END_HEADERS), 0);
                    let end = frame.flags & END_STREAM != 0;
                    block = self.block_read(frame.stream, end, frame.payload, frame.flags & END_HEADERS != 0);
                }
                _ => self.frame_read(&frame),
            }
        }
        assert!(block.is_none(), "header blocks come whole");
    }

    fn block_read(
        &mut self,
        id: u32,
        end: bool,
        bytes: Vec<u8>,
        whole: bool,
    ) -> Option<(u32, bool, Vec<u8>)> {
        if !whole {
            return Some((id, end, bytes));
        }
        let fields = codec::decode(&mut self.decoder, &bytes);
        assert!(self.decoder.is_empty(), "nothing may be put into the table");
        if !self.is_client && !self.heads.contains_key(&id) {
            assert!(self.heads.keys().all(|other| *other < id), "ids rise");
            let fresh = self.fresh();
            self.streams.insert(id, fresh);
        }
        let Some(stream) = self.streams.get_mut(&id) else {
            assert!(self.resets.contains(&id), "a block of {id}, which is over");
            return None;
        };
        assert!(!stream.read_all);
        if stream.head_read {
            assert!(end, "trailers end their stream");
            self.trailers.insert(id, fields);
        } else if fields.iter().any(|field| field.0 == ":status" && field.1.starts_with('1')) {
            return None;
        } else {
            stream.head_read = true;
            self.heads.insert(id, fields);
        }
        stream.read_all = end;
        self.settle(id);
        None
    }

    fn frame_read(&mut self, frame: &Frame) {
        let word = || u32::from_be_bytes(frame.payload[..4].try_into().unwrap());
        match frame.kind {
            DATA => {
                self.receive -= frame.payload.len() as i64;
                let Some(stream) = self.streams.get_mut(&frame.stream) else {
                    assert!(self.resets.contains(&frame.stream), "DATA of a stream that is over");
                    return;
                };
                assert!(stream.head_read && !stream.read_all);
                stream.receive -= frame.payload.len() as i64;
                let padded = frame.flags & PADDED != 0;
                let padding = if padded { 1 + usize::from(frame.payload[0]) } else { 0 };
                let text = &frame.payload[usize::from(padded)..];
                let text = &text[..frame.payload.len() - padding];
                for (at, seen) in text.iter().enumerate() {
                    assert_eq!(*seen, byte(frame.stream, stream.read + at), "the body of {}", frame.stream);
                }
                stream.read += text.len();
                stream.read_all = frame.flags & END_STREAM != 0;
                self.bodies.insert(frame.stream, stream.read);
                self.settle(frame.stream);
            }
            RST_STREAM => {
                self.streams.remove(&frame.stream);
                self.resets.insert(frame.stream);
            }
            SETTINGS if frame.flags & ACK != 0 => self.unacknowledged -= 1,
            SETTINGS => {
                for entry in frame.payload.chunks(6) {
                    let value = i64::from(u32::from_be_bytes(entry[2..].try_into().unwrap()));
                    assert!(
                        [2, 3, 4, 6].contains(&entry[1]) && entry[0] == 0,
                        "a setting that is not to pass"
                    );
                    if entry[1] == 4 {
                        let change = value - self.send_initial;
                        self.send_initial = value;
                        self.streams.values_mut().for_each(|stream| stream.send += change);
                    }
                }
                self.out.extend(crate::raw::frame(SETTINGS, ACK, 0, &[]));
            }
            PING if frame.flags & ACK != 0 => self.pings -= 1,
            PING => self.out.extend(crate::raw::frame(PING, ACK, 0, &frame.payload)),
            WINDOW_UPDATE if frame.stream == 0 => {
                self.send += i64::from(word());
                assert!(self.send <= 0x7fff_ffff);
            }
            WINDOW_UPDATE => {
                if let Some(stream) = self.streams.get_mut(&frame.stream) {
                    stream.send += i64::from(word());
                }
            }
            other => panic!("a frame of type {other}"),
        }
    }
}

/// What stands at `at` of every body of a stream.
fn byte(stream: u32, at: usize) -> u8 {
    (stream as usize * 31 + at * 7) as u8
}
