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
    /// Where a stream was last found: what comes next is mostly of the same one, or of that which took its place.
    found: usize,
    spare: Vec<Fields>,
    /// Bytes that the fields of both hold.
    held: usize,
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
            found: 0,
            spare: Vec::new(),
            held: 0,
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
        self.found = self.place(id)?;
        self.live.get_mut(self.found)
    }

    fn place(&self, id: u32) -> Option<usize> {
        let is_at = |place: usize| self.live.get(place).is_some_and(|stream| stream.id == id);
        if is_at(self.found) {
            return Some(self.found);
        }
        match self.live.back() {
            Some(newest) if newest.id > id => {}
            Some(newest) if newest.id == id => return Some(self.live.len() - 1),
            _ => return None,
        }
        self.live.binary_search_by_key(&id, |stream| stream.id).ok()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Stream> {
        self.live.iter()
    }

    /// Adds a stream, whose id is above all others.
    pub(super) fn insert(&mut self, stream: Stream) {
        self.bytes += stream.fields.size();
        self.held += stream.fields.capacity();
        self.begun += 1;
        if self.begun >= self.resets_after.saturating_mul(2) {
            self.begun /= 2;
            self.reset /= 2;
        }
        self.live.push_back(stream);
    }

    /// Takes a stream out; whether it was live.
    pub(super) fn remove(&mut self, id: u32) -> bool {
        let Some(place) = self.place(id) else { return false };
        let Some(stream) = self.live.remove(place) else { return false };
        self.found = place;
        self.bytes = self.bytes.saturating_sub(stream.fields.size());
        self.held = self.held.saturating_sub(stream.fields.capacity());
        self.recycle(stream.fields);
        true
    }

    /// The id of the newest stream.
    pub(super) fn newest(&self) -> Option<u32> {
        self.live.back().map(|stream| stream.id)
    }

    /// Empty fields, of an ended stream where there is one.
    pub(super) fn fields(&mut self) -> Fields {
        let fields = self.spare.pop().unwrap_or_default();
        self.held = self.held.saturating_sub(fields.capacity());
        fields
    }

    pub(super) fn recycle(&mut self, mut fields: Fields) {
        if self.spare.len() < SPARE && fields.capacity() <= SPARE_BYTES {
            fields.clear();
            self.held += fields.capacity();
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
        self.held + self.live.capacity() * size_of::<Stream>()
    }

    pub(super) fn shrink(&mut self) {
        for fields in std::mem::take(&mut self.spare) {
            self.held = self.held.saturating_sub(fields.capacity());
        }
        self.live.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::h2::hpack::Decoder;

    fn stream(id: u32) -> Stream {
        let mut fields = Fields::default();
        // `:path: /`
        Decoder::new(4096, 1).decode(&[0x84], &mut fields).unwrap();
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

    /// What [`Streams::held`] says, counted anew.
    fn counted(streams: &Streams) -> usize {
        let heads = streams.live.iter().map(|stream| stream.fields.capacity());
        let spare = streams.spare.iter().map(Fields::capacity);
        heads.chain(spare).sum::<usize>() + streams.live.capacity() * size_of::<Stream>()
    }

    #[test]
    fn streams_are_found_in_any_order_and_what_they_hold_is_counted() {
        let mut streams = Streams::new(500);
        for round in 0..200_u32 {
            let mut fields = streams.fields();
            Decoder::new(1 << 16, 9).decode(&vec![0x84; 1 + round as usize % 9], &mut fields).unwrap();
            let id = 2 * round + 1;
            streams.insert(Stream { fields, ..stream(id) });
            for asked in [id, id / 2, id + 1, id + 2, 0, id.saturating_sub(6), id] {
                let live = streams.live.iter().any(|stream| stream.id == asked);
                assert_eq!(streams.get(asked).map(|stream| stream.id), live.then_some(asked), "{round}");
            }
            if round % 3 > 0 {
                let id = round / 3 * 2 + 1;
                assert_eq!(streams.remove(id), round % 3 == 1, "{id}");
            }
            assert_eq!(streams.held(), counted(&streams), "{round}");
        }
        streams.shrink();
        assert_eq!(streams.held(), counted(&streams));
        assert!(streams.spare.is_empty() && streams.len() > 100);
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
