//! The live forwarded streams: in at HEADERS that were forwarded, out at the end of both directions or a reset.

use super::hpack::Fields;
use std::collections::VecDeque;

/// Fields of ended streams that are kept to be used again.
const SPARE: usize = 64;

/// Spare buffers above this are not worth keeping.
const SPARE_BYTES: usize = 4096;

/// How a stream stands in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Its head has not yet come. (Only of answers: a stream begins with the head of its request.)
    Begun,
    /// DATA or trailers may come; so much of a declared length is still to come.
    Open(Option<u64>),
    /// It has ended.
    Ended,
}

/// A live stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) id: u32,
    pub(super) request: Way,
    pub(super) answer: Way,
    /// The request was HEAD: its answer has no body, whatever length it declares.
    pub(super) head: bool,
    /// What the client granted the app beyond the initial window, less what the app sent.
    pub(super) window: i64,
    /// The head of the request, as the client sent it.
    pub(super) fields: Fields,
}

impl Stream {
    pub(super) fn is_over(&self) -> bool {
        self.request == Way::Ended && self.answer == Way::Ended
    }
}

/// All live streams of a connection.
#[derive(Debug)]
pub(super) struct Streams {
    /// By their ids, which only rise.
    live: VecDeque<Stream>,
    spare: Vec<Fields>,
    /// The highest id that the client has used, whether it was forwarded or not.
    pub(super) highest: u32,
    /// Bytes of the heads in `live`.
    bytes: usize,
    /// Streams that were begun, and those that the client reset early; both halved now and then, so that they speak
    /// of the present.
    begun: u32,
    reset: u32,
    /// A client who resets at least every second of so many streams before its answer began only makes work.
    resets_after: u32,
}

impl Streams {
    pub(super) fn new(resets_after: u32) -> Streams {
        Streams {
            live: VecDeque::new(),
            spare: Vec::new(),
            highest: 0,
            bytes: 0,
            begun: 0,
            reset: 0,
            resets_after,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.live.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Bytes of the heads in flight.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn get(&mut self, id: u32) -> Option<&mut Stream> {
        let place = self.live.binary_search_by_key(&id, |stream| stream.id).ok()?;
        self.live.get_mut(place)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Stream> {
        self.live.iter()
    }

    /// Adds a stream, whose id is above all others.
    pub(super) fn insert(&mut self, stream: Stream) {
        self.bytes += stream.fields.size();
        self.begun += 1;
        if self.begun >= self.resets_after.saturating_mul(2) {
            self.begun /= 2;
            self.reset /= 2;
        }
        self.live.push_back(stream);
    }

    /// Takes a stream out; whether it was live.
    pub(super) fn remove(&mut self, id: u32) -> bool {
        let Ok(place) = self.live.binary_search_by_key(&id, |stream| stream.id) else { return false };
        let Some(stream) = self.live.remove(place) else { return false };
        self.bytes = self.bytes.saturating_sub(stream.fields.size());
        self.recycle(stream.fields);
        true
    }

    /// The id of the newest stream.
    pub(super) fn newest(&self) -> Option<u32> {
        self.live.back().map(|stream| stream.id)
    }

    /// Empty fields, of an ended stream where there is one.
    pub(super) fn fields(&mut self) -> Fields {
        self.spare.pop().unwrap_or_default()
    }

    pub(super) fn recycle(&mut self, mut fields: Fields) {
        if self.spare.len() < SPARE && fields.capacity() <= SPARE_BYTES {
            fields.clear();
            self.spare.push(fields);
        }
    }

    /// The client's stream was reset before its answer began; whether there were too many of them.
    pub(super) fn reset_early(&mut self) -> bool {
        self.reset += 1;
        self.begun >= self.resets_after && self.reset >= self.begun / 2
    }

    /// Bytes held.
    pub(super) fn held(&self) -> usize {
        let heads = self.live.iter().map(|stream| stream.fields.capacity());
        let spare = self.spare.iter().map(Fields::capacity);
        heads.chain(spare).sum::<usize>() + self.live.capacity() * size_of::<Stream>()
    }

    pub(super) fn shrink(&mut self) {
        self.spare = Vec::new();
        self.live.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(id: u32) -> Stream {
        let mut fields = Fields::default();
        fields.push(b":path", b"/", 4);
        Stream { id, request: Way::Open(None), answer: Way::Begun, head: false, window: 0, fields }
    }

    #[test]
    fn rule_05_streams_are_found_until_they_are_removed() {
        let mut streams = Streams::new(500);
        for id in (1..2000).step_by(2) {
            streams.insert(stream(id));
        }
        assert_eq!((streams.len(), streams.bytes()), (1000, 38_000));
        for id in (1..2000).step_by(6) {
            assert!(streams.remove(id) && !streams.remove(id));
        }
        for id in 1..2000 {
            assert_eq!(streams.get(id).is_some(), id % 2 == 1 && id % 6 != 1, "{id}");
        }
        for id in 1..2000 {
            streams.remove(id);
        }
        assert_eq!((streams.len(), streams.bytes()), (0, 0));
    }

    #[test]
    fn rule_12_every_second_stream_reset_is_too_much_after_500() {
        let mut streams = Streams::new(500);
        for id in 0..499 {
            streams.insert(stream(id));
            assert!(!streams.reset_early(), "{id}");
        }
        streams.insert(stream(499));
        assert!(streams.reset_early());
    }

    #[test]
    fn rule_12_a_third_of_the_streams_reset_is_not_and_old_virtue_does_not_count() {
        let mut streams = Streams::new(500);
        for id in 0..100_000 {
            streams.insert(stream(id));
            assert!(id % 3 != 0 || !streams.reset_early(), "{id}");
            streams.remove(id);
        }
        let flood = (100_000..102_000).position(|id| {
            streams.insert(stream(id));
            streams.reset_early()
        });
        assert!(flood.is_some_and(|streams| streams < 1000), "{flood:?}");
    }
}
