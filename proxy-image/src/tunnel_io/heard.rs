//! What the peer of a tunnel said, kept until somebody takes it: little, because a stream that is copied hands its
//! data on at once.

use super::Answer;
use crate::copy::Sink;
use cinch_tunnel::{Event, Open, ResetCode};

/// What the peer said and nobody has taken yet.
#[derive(Debug, Default)]
pub(super) struct Heard {
    /// Bytes of a stream that is not copied yet, and whether they are its last.
    pub(super) data: Vec<u8>,
    pub(super) fin: bool,
    /// Server: an OPEN that has not been taken by [`Tunnel::poll_open`], and whether it was reset since.
    pub(super) open: Option<(Open, Option<ResetCode>)>,
    pub(super) answer: Option<Answer>,
    pub(super) reset: Option<ResetCode>,
    /// The stream is being copied: its data goes to the sink.
    pub(super) copying: bool,
}

impl Heard {
    pub(super) fn take(&mut self, event: Event<'_>, sink: &mut Option<&mut Sink<'_>>) {
        let copying = self.copying && self.open.is_none();
        match (event, sink.as_mut()) {
            (Event::Data { bytes, fin }, Some(sink)) if copying => sink(bytes, fin),
            (Event::Data { bytes, fin }, _) => {
                self.data.extend_from_slice(bytes);
                self.fin |= fin;
            }
            (Event::Open(open), _) => {
                // The stream before may still be on its way to the app; this one waits.
                self.open = Some((open, None));
                self.forget_data();
            }
            (Event::Opened, _) => self.answer = Some(Answer::Opened),
            (Event::Refused(why), _) => self.answer = Some(Answer::Refused(why)),
            (Event::Reset(why), _) => match &mut self.open {
                Some((_, reset)) => *reset = Some(why),
                None => self.reset = Some(why),
            },
            (Event::Drain, _) => {}
        }
    }

    pub(super) fn forget_data(&mut self) {
        self.data = Vec::new();
        self.fin = false;
    }
}
