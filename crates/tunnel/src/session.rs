//! The state of one tunnel: which stream is under way, which of its directions have ended, who may say what.
//! Both sides of the protocol are this one type; [`Side`] says which.

use crate::frame::{Decoder, Frame, HEAD, Kind, head};
use crate::{Control, Misuse, Open, ProtocolError, RefuseCode, ResetCode};

/// Which end of the tunnel this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Dialled the tunnel; begins streams.
    Client,
    /// Accepted the tunnel; answers them.
    Server,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Idle,
    /// Between OPEN and its answer.
    Opening,
    Open,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Half {
    /// Nothing has ended it.
    Flowing,
    Fin,
    /// By RESET or REFUSED.
    Reset,
}

/// What the peer said.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// To a server: a stream begins. Answer with [`Session::opened`] or [`Session::refused`].
    Open(Open),
    /// To a client: the app behind the server has accepted.
    Opened,
    /// To a client: there will be no stream. Its own direction must be ended with [`Session::reset`] unless it
    /// has ended.
    Refused(RefuseCode),
    /// Bytes of the peer's app.
    Data {
        /// Not empty, unless `fin`.
        bytes: &'a [u8],
        /// The peer's direction ends after them.
        fin: bool,
    },
    /// The peer's direction ended at once. The own one must be ended with [`Session::reset`] unless it has ended.
    Reset(ResetCode),
    /// To a client: the server takes no further streams.
    Drain,
}

/// The state of one tunnel.
#[derive(Debug)]
pub struct Session {
    side: Side,
    decoder: Decoder,
    phase: Phase,
    local: Half,
    remote: Half,
    draining: bool,
}

impl Session {
    /// A tunnel fresh from its handshake.
    #[must_use]
    pub fn new(side: Side) -> Session {
        Session {
            side,
            decoder: Decoder::default(),
            phase: Phase::Idle,
            local: Half::Fin,
            remote: Half::Fin,
            draining: false,
        }
    }

    /// No stream is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.phase == Phase::Idle
    }

    /// No stream is under way, the peer is between two frames, and no DRAIN was sent or received: a further
    /// stream may begin.
    #[must_use]
    pub fn is_reusable(&self) -> bool {
        self.is_idle() && !self.draining && self.decoder.at_boundary()
    }

    /// DRAIN was sent or received.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// The own direction has ended; nothing more may be sent but RESET.
    #[must_use]
    pub fn local_ended(&self) -> bool {
        self.local != Half::Flowing
    }

    /// The peer's direction has ended.
    #[must_use]
    pub fn remote_ended(&self) -> bool {
        self.remote != Half::Flowing
    }

    /// Client: begins a stream; appends OPEN to `out`. Data may follow at once.
    ///
    /// # Errors
    /// When a stream is under way or the tunnel drains.
    pub fn open(&mut self, open: Open, out: &mut Vec<u8>) -> Result<(), Misuse> {
        if self.side != Side::Client || !self.is_reusable() {
            return Err(Misuse("OPEN"));
        }
        self.begin();
        Control::Open(open).encode(out);
        Ok(())
    }

    /// Server: the app has accepted; appends OPENED to `out`.
    ///
    /// # Errors
    /// When there is no OPEN to answer.
    pub fn opened(&mut self, out: &mut Vec<u8>) -> Result<(), Misuse> {
        self.answer("OPENED")?;
        self.phase = Phase::Open;
        Control::Opened.encode(out);
        Ok(())
    }

    /// Server: there will be no stream; appends REFUSED to `out`. What the client still sends is discarded.
    ///
    /// # Errors
    /// When there is no OPEN to answer.
    pub fn refused(&mut self, why: RefuseCode, out: &mut Vec<u8>) -> Result<(), Misuse> {
        self.answer("REFUSED")?;
        self.phase = Phase::Open;
        self.local = Half::Reset;
        Control::Refused(why).encode(out);
        self.settle();
        Ok(())
    }

    fn answer(&self, what: &'static str) -> Result<(), Misuse> {
        if self.side == Side::Server && self.phase == Phase::Opening { Ok(()) } else { Err(Misuse(what)) }
    }

    /// The head of a frame with `length` bytes of the app; send it and them together. `fin`: they are the last.
    ///
    /// # Errors
    /// When the own direction has ended or never began, a server has not yet answered, the bytes are more than
    /// one frame takes, or there are none and `fin` is not set.
    pub fn data(&mut self, length: usize, fin: bool) -> Result<[u8; HEAD], Misuse> {
        let answered = self.side == Side::Client || self.phase == Phase::Open;
        if self.phase == Phase::Idle || self.local != Half::Flowing || !answered || (length == 0 && !fin) {
            return Err(Misuse("DATA"));
        }
        let head = head(if fin { Kind::DataFin } else { Kind::Data }, length).ok_or(Misuse("DATA"))?;
        if fin {
            self.local = Half::Fin;
            self.settle();
        }
        Ok(head)
    }

    /// Ends the own direction at once; appends RESET to `out`. Permitted after FIN while the peer's direction is
    /// still flowing. What the peer still sends is discarded.
    ///
    /// # Errors
    /// When no stream is under way, it was reset before, or a server has not yet answered (it refuses instead).
    pub fn reset(&mut self, why: ResetCode, out: &mut Vec<u8>) -> Result<(), Misuse> {
        let answered = self.side == Side::Client || self.phase == Phase::Open;
        if self.phase == Phase::Idle || self.local == Half::Reset || !answered {
            return Err(Misuse("RESET"));
        }
        self.local = Half::Reset;
        Control::Reset(why).encode(out);
        self.settle();
        Ok(())
    }

    /// Server: takes no further streams; appends DRAIN to `out`. Saying it again says nothing.
    ///
    /// # Errors
    /// When called on a client.
    pub fn drain(&mut self, out: &mut Vec<u8>) -> Result<(), Misuse> {
        if self.side != Side::Server {
            return Err(Misuse("DRAIN"));
        }
        if !self.draining {
            self.draining = true;
            Control::Drain.encode(out);
        }
        Ok(())
    }

    /// Takes the next event from the front of `input`, which advances past what was taken. `None`: all of it is
    /// taken. Call it until then.
    ///
    /// # Errors
    /// When the peer breaks the protocol; the tunnel must be closed.
    pub fn receive<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, ProtocolError> {
        while let Some(frame) = self.decoder.next(input)? {
            let event = match frame {
                Frame::Data { bytes, fin } => self.on_data(bytes, fin)?,
                Frame::Control(payload) => self.on_control(Control::decode(&payload)?)?,
            };
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    fn on_data<'a>(&mut self, bytes: &'a [u8], fin: bool) -> Result<Option<Event<'a>>, ProtocolError> {
        let answered = self.side == Side::Server || self.phase == Phase::Open;
        if self.phase == Phase::Idle || self.remote != Half::Flowing || !answered {
            return Err(ProtocolError::OutOfPlace("DATA"));
        }
        // Who has reset takes nothing more: it only waits for the end of the other direction.
        let discard = self.local == Half::Reset;
        if fin {
            self.remote = Half::Fin;
            self.settle();
        }
        Ok((!discard).then_some(Event::Data { bytes, fin }))
    }

    fn on_control<'a>(&mut self, message: Control) -> Result<Option<Event<'a>>, ProtocolError> {
        match (message, self.side, self.phase) {
            (Control::Ignorable(_), ..) => Ok(None),
            (Control::Open(open), Side::Server, Phase::Idle) => {
                self.begin();
                Ok(Some(Event::Open(open)))
            }
            (Control::Opened, Side::Client, Phase::Opening) => {
                self.phase = Phase::Open;
                Ok((self.local != Half::Reset).then_some(Event::Opened))
            }
            (Control::Refused(why), Side::Client, Phase::Opening) => {
                let tell = self.local != Half::Reset;
                self.phase = Phase::Open;
                self.remote = Half::Reset;
                self.settle();
                Ok(tell.then_some(Event::Refused(why)))
            }
            (Control::Reset(why), side, phase) => Ok(self.on_reset(why, side, phase)),
            (Control::Drain, Side::Client, _) => {
                self.draining = true;
                Ok(Some(Event::Drain))
            }
            (Control::Open(_), ..) => Err(ProtocolError::OutOfPlace("OPEN")),
            (Control::Opened, ..) => Err(ProtocolError::OutOfPlace("OPENED")),
            (Control::Refused(_), ..) => Err(ProtocolError::OutOfPlace("REFUSED")),
            (Control::Drain, ..) => Err(ProtocolError::OutOfPlace("DRAIN")),
        }
    }

    fn on_reset<'a>(&mut self, why: ResetCode, side: Side, phase: Phase) -> Option<Event<'a>> {
        // While idle, and before the answer to an OPEN, a RESET can only belong to the stream before: it crossed
        // the FIN that ended it.
        let stale = phase == Phase::Idle || (phase == Phase::Opening && side == Side::Client);
        if stale || self.remote == Half::Reset {
            return None;
        }
        let tell = self.local != Half::Reset;
        self.remote = Half::Reset;
        self.settle();
        tell.then_some(Event::Reset(why))
    }

    fn begin(&mut self) {
        self.phase = Phase::Opening;
        self.local = Half::Flowing;
        self.remote = Half::Flowing;
    }

    fn settle(&mut self) {
        if self.phase == Phase::Open && self.local != Half::Flowing && self.remote != Half::Flowing {
            self.phase = Phase::Idle;
        }
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
