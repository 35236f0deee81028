//! A connection after its handshake: seals what we say, opens what the peer says, changes keys when they are
//! worn or when the peer asks.

use crate::key::Key;
use crate::message::{
    ALERT, APPLICATION_DATA, Alert, CLOSE_NOTIFY, HANDSHAKE, KEY_UPDATE_NOT_REQUESTED, PostHandshake, alert,
    post_handshake,
};
use crate::{HEADER, MAX_PLAINTEXT, MAX_RECORD, OVERHEAD, RecordError, TAG};
use std::fmt;

/// Records without data that may follow each other; then the peer does nothing but keep us at work.
const CONTROL_IN_A_ROW: u8 = 32;

/// Both directions of an established connection.
pub struct Records {
    tx: Key,
    rx: Key,
    control: u8,
    /// A key update that the peer asked for is not sent yet: it answers later requests too (§4.6.3).
    answering: bool,
    /// We have said close_notify.
    closed: bool,
}

/// What the head of a buffer turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'b> {
    /// Less than a whole record: nothing was touched. More bytes are needed.
    Incomplete,
    /// `bytes` of plaintext, where their ciphertext was; the record took `used` bytes of the buffer.
    Data {
        /// May be empty.
        bytes: &'b mut [u8],
        /// The record's length.
        used: usize,
    },
    /// A record that is not for the application. What it called for stands in `out`.
    Control {
        /// The record's length.
        used: usize,
    },
    /// The peer will send nothing more, and it is the peer who says so.
    Closed {
        /// The record's length.
        used: usize,
    },
}

impl Records {
    /// `tx` seals, `rx` opens.
    pub(crate) fn new(tx: Key, rx: Key) -> Records {
        Records { tx, rx, control: 0, answering: false, closed: false }
    }

    /// Seals `parts`, one after another, as one record of data at the end of `out`.
    ///
    /// # Errors
    /// When they are longer than [`MAX_PLAINTEXT`], or after [`Records::close_notify`].
    pub fn seal(&mut self, parts: &[&[u8]], out: &mut Vec<u8>) -> Result<(), RecordError> {
        if self.closed {
            return Err(RecordError::Closed);
        }
        if self.tx.is_worn() {
            self.update(out)?;
        }
        self.seal_as(APPLICATION_DATA, parts, out)
    }

    /// Says that we send nothing more.
    ///
    /// # Errors
    /// When the cryptography fails.
    pub fn close_notify(&mut self, out: &mut Vec<u8>) -> Result<(), RecordError> {
        if !std::mem::replace(&mut self.closed, true) {
            self.seal_as(ALERT, &[&CLOSE_NOTIFY], out)?;
        }
        Ok(())
    }

    /// Tells the peer why the connection ends (§6.2), after `error`. Nothing can be sent behind it.
    pub fn abort(&mut self, error: &RecordError, out: &mut Vec<u8>) {
        if let Some(code) = error.alert()
            && !std::mem::replace(&mut self.closed, true)
        {
            // Where even this can't be sealed there is nothing left to say.
            let _ = self.seal_as(ALERT, &[&[2, code]], out);
        }
    }

    /// Changes our key, and tells the peer.
    ///
    /// # Errors
    /// When the cryptography fails.
    pub fn update(&mut self, out: &mut Vec<u8>) -> Result<(), RecordError> {
        self.seal_as(HANDSHAKE, &[&KEY_UPDATE_NOT_REQUESTED], out)?;
        self.tx.update()
    }

    fn seal_as(&mut self, kind: u8, parts: &[&[u8]], out: &mut Vec<u8>) -> Result<(), RecordError> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if length > MAX_PLAINTEXT {
            return Err(RecordError::DoesNotFit(length));
        }
        let [high, low] = u16::try_from(length + 1 + TAG).unwrap_or(u16::MAX).to_be_bytes();
        let head = [APPLICATION_DATA, 3, 3, high, low];
        out.reserve(length + OVERHEAD);
        out.extend_from_slice(&head);
        let start = out.len();
        for part in parts {
            out.extend_from_slice(part);
        }
        out.push(kind);
        let body = out.get_mut(start..).unwrap_or_default();
        let tag = self.tx.seal(head, body)?;
        out.extend_from_slice(&tag);
        Ok(())
    }

    /// Opens the record at the head of `buffer`, in place. What it asks of us is appended to `out`.
    ///
    /// # Errors
    /// When it is none: the connection is of no further use then.
    pub fn open<'b>(&mut self, buffer: &'b mut [u8], out: &mut Vec<u8>) -> Result<Step<'b>, RecordError> {
        let Some(head) = buffer.first_chunk::<HEADER>().copied() else { return Ok(Step::Incomplete) };
        let [kind, _, _, high, low] = head;
        if kind != APPLICATION_DATA {
            return Err(RecordError::UnexpectedType(kind));
        }
        let used = HEADER + usize::from(u16::from_be_bytes([high, low]));
        if used > MAX_RECORD {
            return Err(RecordError::TooLong(used));
        }
        let Some(body) = buffer.get_mut(HEADER..used) else { return Ok(Step::Incomplete) };
        if self.rx.is_exhausted() {
            return Err(RecordError::KeyExhausted);
        }
        let inner = self.rx.open(head, body)?;
        // The type is the last byte that is not zero: all behind it is padding (§5.4).
        let length = inner.iter().rposition(|byte| *byte != 0);
        let length = length.ok_or(RecordError::UnexpectedContent("nothing but padding"))?;
        let (content, rest) = inner.split_at_mut(length);
        let kind = rest.first().copied().unwrap_or_default();
        if content.len() > MAX_PLAINTEXT {
            return Err(RecordError::TooLong(content.len()));
        }
        if kind == APPLICATION_DATA && !content.is_empty() {
            self.control = 0;
            return Ok(Step::Data { bytes: content, used });
        }
        self.control += 1;
        if self.control > CONTROL_IN_A_ROW {
            return Err(RecordError::TooMuchControl);
        }
        match kind {
            APPLICATION_DATA => Ok(Step::Control { used }),
            ALERT => match alert(content)? {
                Alert::CloseNotify => Ok(Step::Closed { used }),
                Alert::Ignored => Ok(Step::Control { used }),
            },
            HANDSHAKE => {
                if let PostHandshake::KeyUpdate { requested } = post_handshake(content)? {
                    self.rx.update()?;
                    if requested && !self.closed && !self.answering {
                        self.update(out)?;
                        self.answering = true;
                    }
                }
                Ok(Step::Control { used })
            }
            _ => Err(RecordError::UnexpectedContent("an unknown type")),
        }
    }

    /// All that was sealed has left. Until this is said one answer stands for all key updates that the peer asks
    /// for: a peer that reads nothing must not fill our memory with answers.
    pub fn sent(&mut self) {
        self.answering = false;
    }

    /// For tests: our key counts as worn, so the next record is preceded by a key update.
    #[cfg(test)]
    pub(crate) fn wear_out(&mut self) {
        self.tx.wear_out();
    }
}

impl fmt::Debug for Records {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Records").field("closed", &self.closed).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{SUITES, configs, shaken};

    /// Client and server, both of ours.
    fn pair() -> (Records, Records) {
        let (client, server, mut down) = shaken(configs(SUITES[0], false));
        let (mut client, server) = (client.into_records().unwrap(), server.into_records().unwrap());
        // The server's tickets.
        while !down.is_empty() {
            let Step::Control { used } = client.open(&mut down, &mut Vec::new()).unwrap() else {
                panic!("no ticket")
            };
            down.drain(..used);
        }
        (client, server)
    }

    #[test]
    fn a_worn_key_is_changed_before_the_next_record() {
        let (mut client, mut server) = pair();
        for _ in 0..3 {
            let mut sent = Vec::new();
            client.seal(&[b"before"], &mut sent).unwrap();
            let plain = sent.len();
            client.wear_out();
            client.seal(&[b"behind"], &mut sent).unwrap();
            assert!(sent.len() > 2 * plain, "a key update stands between them");
            let mut heard = Vec::new();
            let (mut rest, mut out) = (sent.as_mut_slice(), Vec::new());
            while !rest.is_empty() {
                let used = match server.open(rest, &mut out).unwrap() {
                    Step::Data { bytes, used } => {
                        heard.extend_from_slice(bytes);
                        used
                    }
                    Step::Control { used } => used,
                    step => panic!("{step:?}"),
                };
                rest = rest.split_at_mut(used).1;
            }
            assert_eq!((heard.as_slice(), out.is_empty()), (&b"beforebehind"[..], true));
        }
    }

    #[test]
    fn a_key_that_is_used_far_beyond_its_time_is_refused() {
        let (mut client, mut server) = pair();
        server.rx.wear_out();
        let mut sent = Vec::new();
        // Twice nothing is nothing: the limit counts from the number that the key has reached.
        client.seal(&[b"late"], &mut sent).unwrap();
        assert_eq!(server.open(&mut sent, &mut Vec::new()).err(), Some(RecordError::KeyExhausted));
    }

    /// A record in which the peer asks for a key update.
    fn ask(from: &mut Records) -> Vec<u8> {
        let mut out = Vec::new();
        from.seal_as(HANDSHAKE, &[&[24, 0, 0, 1, 1]], &mut out).unwrap();
        from.tx.update().unwrap();
        out
    }

    #[test]
    fn one_answer_stands_for_all_key_updates_until_it_has_left() {
        let (mut client, mut server) = pair();
        let mut out = Vec::new();
        for sent in [false, true] {
            if sent {
                server.sent();
                let mut answer = std::mem::take(&mut out);
                assert!(matches!(client.open(&mut answer, &mut Vec::new()).unwrap(), Step::Control { .. }));
            }
            let mut one = 0;
            for _ in 0..100 {
                server.open(&mut ask(&mut client), &mut out).unwrap();
                one = if one == 0 { out.len() } else { one };
                // Data in between: they do not come in a row.
                let mut data = Vec::new();
                client.seal(&[b"x"], &mut data).unwrap();
                let step = server.open(&mut data, &mut Vec::new()).unwrap();
                assert!(matches!(step, Step::Data { .. }), "under the newest key");
            }
            assert!(one > 0);
            assert_eq!(out.len(), one, "a hundred requests, one answer");
        }
    }
}
