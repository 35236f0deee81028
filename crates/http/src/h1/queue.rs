//! The requests of a connection that are not yet answered, in their order, with the heads of those that were
//! forwarded: they are judged again when the policy changes.

use super::answer::After;
use super::head::Facts;
use crate::{Refusal, RequestId};
use std::collections::VecDeque;

/// Memory for heads that a quiet connection keeps: ordinary requests then allocate nothing.
const KEPT: usize = 1024;

/// A request that the app has, or is getting.
#[derive(Debug, Clone, Copy)]
pub(super) struct Forwarded {
    pub(super) id: RequestId,
    pub(super) is_head: bool,
    pub(super) websocket: bool,
    /// It has an Expect field, and the app has not said yet that it will read the body.
    pub(super) expects: bool,
    /// Its answer is complete, and its body is not.
    pub(super) answered: bool,
    head: usize,
}

/// A request that we answer ourselves.
#[derive(Debug, Clone, Copy)]
pub(super) struct Refused {
    pub(super) id: RequestId,
    pub(super) refusal: Refusal,
    pub(super) after: After,
    pub(super) is_head: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Entry {
    Forwarded(Forwarded),
    Refused(Refused),
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: VecDeque<Entry>,
    heads: Vec<u8>,
    /// Where the head of the first forwarded request begins.
    start: usize,
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Bytes of the heads in flight.
    pub(super) fn bytes(&self) -> usize {
        self.heads.len() - self.start
    }

    pub(super) fn push_forwarded(&mut self, id: RequestId, facts: Facts, head: &[u8]) {
        self.heads.extend_from_slice(head);
        let Facts { is_head, websocket, expects, .. } = facts;
        if self.entries.capacity() == 0 {
            // Mostly there is one; pipelined ones get their room when they come.
            self.entries.reserve_exact(1);
        }
        let entry = Forwarded { id, is_head, websocket, expects, answered: false, head: head.len() };
        self.entries.push_back(Entry::Forwarded(entry));
    }

    pub(super) fn push_refused(&mut self, refused: Refused) {
        self.entries.push_back(Entry::Refused(refused));
    }

    pub(super) fn front(&self) -> Option<Entry> {
        self.entries.front().copied()
    }

    /// The front has had its answer, and its body goes on.
    pub(super) fn set_answered(&mut self) {
        if let Some(Entry::Forwarded(entry)) = self.entries.front_mut() {
            entry.answered = true;
        }
    }

    /// The front has leave to send its body, so that it will come.
    pub(super) fn set_continued(&mut self) {
        if let Some(Entry::Forwarded(entry)) = self.entries.front_mut() {
            entry.expects = false;
        }
    }

    pub(super) fn pop(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front()?;
        if let Entry::Forwarded(forwarded) = entry {
            self.start += forwarded.head;
            self.tidy();
        }
        Some(entry)
    }

    /// The last request was forwarded and turned out bad: we answer it.
    pub(super) fn refuse_last(&mut self, refusal: Refusal) -> Option<RequestId> {
        let Some(Entry::Forwarded(forwarded)) = self.entries.pop_back() else { return None };
        self.heads.truncate(self.heads.len() - forwarded.head);
        self.tidy();
        let Forwarded { id, is_head, .. } = forwarded;
        self.push_refused(Refused { id, refusal, after: After::Close, is_head });
        Some(id)
    }

    pub(super) fn clear(&mut self) {
        self.entries.clear();
        self.start = self.heads.len();
        self.tidy();
    }

    /// The forwarded requests, each with its head.
    pub(super) fn forwarded(&self) -> impl Iterator<Item = (Forwarded, &[u8])> {
        let mut start = self.start;
        self.entries.iter().filter_map(move |entry| {
            let Entry::Forwarded(forwarded) = entry else { return None };
            let head = self.heads.get(start..start + forwarded.head).unwrap_or_default();
            start += forwarded.head;
            Some((*forwarded, head))
        })
    }

    pub(super) fn shrink(&mut self) {
        if self.entries.is_empty() {
            *self = Queue::default();
        }
    }

    fn tidy(&mut self) {
        if self.start == self.heads.len() {
            self.heads.clear();
            self.start = 0;
            if self.heads.capacity() > KEPT {
                self.heads.shrink_to(KEPT);
            }
        } else if self.start > self.heads.len() / 2 {
            self.heads.drain(..self.start);
            self.start = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::head::Framing;
    use super::*;

    #[test]
    fn each_forwarded_request_keeps_its_head() {
        let mut queue = Queue::default();
        let refused = |id| Refused {
            id: RequestId(id),
            refusal: Refusal::bad_request("x"),
            after: After::KeepAlive,
            is_head: false,
        };
        let facts =
            Facts { framing: Framing::Empty, last: false, expects: false, websocket: false, is_head: false };
        queue.push_forwarded(RequestId(0), facts, b"first");
        queue.push_refused(refused(1));
        queue.push_forwarded(RequestId(2), facts, b"second");
        let heads =
            |queue: &Queue| queue.forwarded().map(|(of, head)| (of.id.0, head.to_vec())).collect::<Vec<_>>();
        assert_eq!(heads(&queue), [(0, b"first".to_vec()), (2, b"second".to_vec())]);
        queue.pop();
        assert_eq!((heads(&queue), queue.bytes()), (vec![(2, b"second".to_vec())], 6));
        assert_eq!(queue.refuse_last(Refusal::bad_request("y")), Some(RequestId(2)));
        assert_eq!((heads(&queue), queue.bytes(), queue.len()), (vec![], 0, 2));
        assert_eq!(queue.refuse_last(Refusal::bad_request("y")), None);
    }
}
