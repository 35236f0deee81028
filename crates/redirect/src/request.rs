//! What a sidecar asks its node's agent, and what it is told: bytes in, values out, nothing else.
//!
//! One connection carries one request and one answer. Integers are big-endian.
//!
//! ```text
//! request: "cnch" version:u8 length:u8  nonce:u64 [flags:u8] …
//! answer:  "cnch" version:u8 kind:u8 length:u16  …
//!   kind 0, done:    cgroup:u64 level:u32 [sightings flags:u8] …
//!   kind 1, refused: length:u8 reason  sentence
//! ```
//!
//! The request says nothing about who asks: the agent finds that out by itself. Bytes behind what a version
//! knows are passed over, so that both sides may be one version apart. What passes by the proxy
//! ([`Sightings`]) is told only to those who ask for it with the flag 1: who does not know it takes no answer of
//! that length. The flags of an answer: 1, the redirect was gone and has been set again; 2, the look was cut.

use crate::sighting::{LONGEST_LIST, Sightings};
use std::time::Duration;

/// A sidecar whose redirect is in force asks again no later: so long can a table that somebody has removed be gone, or
/// something pass by the proxy, before the agent looks.
pub const ASKED_EVERY: Duration = Duration::from_secs(30);
/// The version that this program speaks.
pub const VERSION: u8 = 1;
/// The first bytes of both messages.
const MAGIC: [u8; 4] = *b"cnch";
const REQUEST_HEAD: usize = 6;
const ANSWER_HEAD: usize = 8;
/// Cgroup and level.
const DONE_FIXED: usize = 12;
/// The flag of a request that asks for sightings.
const LOOK: u8 = 1;
/// The flag of an answer: the redirect was gone.
const GONE: u8 = 1;
/// The flag of an answer: the look was cut.
const CUT: u8 = 2;
/// In the place of sightings where nobody looked and flags follow: no list has as many entries.
const NOBODY: [u8; 3] = [u8::MAX, 0, 0];
const DONE: u8 = 0;
const REFUSED: u8 = 1;
/// No request is longer.
pub const MAX_REQUEST: usize = REQUEST_HEAD + u8::MAX as usize;
/// No sentence of a refusal is longer, in bytes: it ends up in a pod's termination message.
const MAX_SENTENCE: usize = 1024;
const LONGEST_REFUSAL: usize = 1 + u8::MAX as usize + MAX_SENTENCE;
const LONGEST_DONE: usize = DONE_FIXED + LONGEST_LIST + 1;
/// No answer is longer.
pub const MAX_ANSWER: usize =
    ANSWER_HEAD + if LONGEST_DONE > LONGEST_REFUSAL { LONGEST_DONE } else { LONGEST_REFUSAL };

/// Bytes that are no message of this protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not ours at all.
    #[error("the message does not begin as it must")]
    Magic,
    /// Of a version that is older than the first, or without the fields that each version has.
    #[error("the message is cut short")]
    Short,
    /// An answer of a kind that this program does not know.
    #[error("the answer is of the unknown kind {0}")]
    Kind(u8),
    /// Longer than it may be.
    #[error("the message is too long")]
    Long,
}

/// A sidecar asks for the redirect of its own network namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What the sidecar answers to a dial of [`AGENT_TEST_ADDRESS`](crate::AGENT_TEST_ADDRESS): it proves to the
    /// agent that its dial reached the very process that asked.
    pub nonce: u64,
    /// It also wants to know what passes by it.
    pub look: bool,
}

/// What the agent did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The redirect is in force and proved; this cgroup is exempt.
    Done {
        /// Number of the exempt cgroup.
        cgroup: u64,
        /// Its level.
        level: u32,
        /// What passes by the proxy; `None` when nobody looked.
        sightings: Option<Sightings>,
        /// It had been in force before, and was not when this question came: what passed meanwhile nobody saw.
        was_gone: bool,
    },
    /// Nothing was changed, or what was could not be proved.
    Refused {
        /// A word of the reason table.
        reason: String,
        /// What was seen.
        sentence: String,
    },
}

impl Request {
    /// The request as it goes over the wire.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        let nonce = self.nonce.to_be_bytes();
        let mut out = MAGIC.to_vec();
        out.extend([VERSION, 9]);
        out.extend(nonce);
        out.push(if self.look { LOOK } else { 0 });
        out
    }

    /// Reads a request from all that has come; `Ok(None)`: more must come.
    ///
    /// # Errors
    /// [`Malformed`]; no further byte can mend that.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        begins_as_ours(bytes)?;
        let Some([version, length]) = bytes.get(4..).and_then(<[u8]>::first_chunk) else { return Ok(None) };
        if *version == 0 || *length < 8 {
            return Err(Malformed::Short);
        }
        let end = REQUEST_HEAD + usize::from(*length);
        if bytes.len() > end {
            return Err(Malformed::Long);
        }
        let Some(body) = bytes.get(REQUEST_HEAD..end) else { return Ok(None) };
        let nonce = body.first_chunk().ok_or(Malformed::Short)?;
        let flags = body.get(nonce.len()).copied().unwrap_or_default();
        Ok(Some(Self { nonce: u64::from_be_bytes(*nonce), look: flags & LOOK != 0 }))
    }
}

impl Answer {
    /// The answer as it goes over the wire; a long sentence is cut.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let (kind, body) = match self {
            Self::Done { cgroup, level, sightings, was_gone } => {
                let gone = if *was_gone { GONE } else { 0 };
                let rest = match sightings {
                    Some(list) => [&list.encode()[..], &[gone | if list.is_cut { CUT } else { 0 }]].concat(),
                    None if *was_gone => [&NOBODY[..], &[gone]].concat(),
                    None => Vec::new(),
                };
                (DONE, [&cgroup.to_be_bytes()[..], &level.to_be_bytes(), &rest].concat())
            }
            Self::Refused { reason, sentence } => {
                let reason = cut(reason, usize::from(u8::MAX)).as_bytes();
                let length = u8::try_from(reason.len()).unwrap_or(u8::MAX);
                (REFUSED, [&[length], reason, cut(sentence, MAX_SENTENCE).as_bytes()].concat())
            }
        };
        let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
        [&MAGIC[..], &[VERSION, kind], &length.to_be_bytes(), &body].concat()
    }

    /// Reads an answer from all that has come; `Ok(None)`: more must come.
    ///
    /// # Errors
    /// [`Malformed`]; no further byte can mend that.
    pub fn decode(bytes: &[u8]) -> Result<Option<Self>, Malformed> {
        begins_as_ours(bytes)?;
        let Some([version, kind, high, low]) = bytes.get(4..).and_then(<[u8]>::first_chunk) else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if *version == 0 {
            return Err(Malformed::Short);
        }
        if ANSWER_HEAD + length > MAX_ANSWER {
            return Err(Malformed::Long);
        }
        let Some(body) = bytes.get(ANSWER_HEAD..ANSWER_HEAD + length) else { return Ok(None) };
        match *kind {
            DONE => done(body),
            REFUSED => refused(body),
            other => return Err(Malformed::Kind(other)),
        }
        .ok_or(Malformed::Short)
        .map(Some)
    }
}

fn done(body: &[u8]) -> Option<Answer> {
    let cgroup = u64::from_be_bytes(*body.first_chunk()?);
    let level = u32::from_be_bytes(*body.get(8..)?.first_chunk()?);
    let mut rest = body.get(DONE_FIXED..)?;
    let mut sightings = None;
    let flags = if let Some(flags) = rest.strip_prefix(&NOBODY) {
        flags.first()
    } else {
        sightings = Sightings::take(&mut rest);
        // Behind something that is no list stands nothing that could be read.
        sightings.as_ref().and_then(|_| rest.first())
    };
    if let (Some(list), Some(flags)) = (&mut sightings, flags) {
        list.is_cut = flags & CUT != 0;
    }
    let was_gone = flags.is_some_and(|flags| flags & GONE != 0);
    Some(Answer::Done { cgroup, level, sightings, was_gone })
}

fn refused(body: &[u8]) -> Option<Answer> {
    let (length, rest) = body.split_first()?;
    let (reason, sentence) = rest.split_at_checked(usize::from(*length))?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Some(Answer::Refused { reason: text(reason), sentence: text(sentence) })
}

/// As far as the first bytes have come.
fn begins_as_ours(bytes: &[u8]) -> Result<(), Malformed> {
    if bytes.iter().zip(MAGIC).all(|(have, want)| *have == want) { Ok(()) } else { Err(Malformed::Magic) }
}

/// At most `limit` bytes of `text`, whole characters.
pub(crate) fn cut(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    end.and_then(|end| text.get(..end)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sighting::{Sighting, Way};

    fn answers() -> [Answer; 6] {
        let sighting = Sighting {
            way: Way::Outbound,
            peer: Some([10, 0, 0, 1].into()),
            port: 443,
            process: "curl".into(),
            container: "app".into(),
        };
        let done = |sightings, was_gone| Answer::Done { cgroup: 9886, level: 5, sightings, was_gone };
        let cut = Sightings { seen: vec![sighting], more: 7, is_cut: true };
        [
            done(None, false),
            done(None, true),
            done(Some(Sightings { is_cut: false, ..cut.clone() }), false),
            done(Some(cut), true),
            Answer::Refused { reason: "NotTheSidecar".into(), sentence: "container \"app\"".into() },
            Answer::Refused { reason: String::new(), sentence: String::new() },
        ]
    }

    #[test]
    fn messages_come_back_as_they_were_and_only_when_whole() {
        for (look, flags) in [(false, 0), (true, 1)] {
            let request = Request { nonce: 0x0102_0304_0506_0708, look };
            let wire = request.encode();
            assert_eq!(wire, [b"cnch\x01\x09\x01\x02\x03\x04\x05\x06\x07\x08", &[flags][..]].concat());
            for cut in 0..wire.len() {
                assert_eq!(Request::decode(&wire[..cut]), Ok(None), "{cut}");
            }
            assert_eq!(Request::decode(&wire), Ok(Some(request)));
        }
        for answer in answers() {
            let wire = answer.encode();
            for cut in 0..wire.len() {
                assert_eq!(Answer::decode(&wire[..cut]), Ok(None), "{answer:?} {cut}");
            }
            assert_eq!(Answer::decode(&wire), Ok(Some(answer)));
        }
    }

    #[test]
    fn a_newer_side_may_say_more() {
        let longer = b"cnch\x02\x0b\x00\x00\x00\x00\x00\x00\x00\x07\x03zz";
        assert_eq!(Request::decode(longer), Ok(Some(Request { nonce: 7, look: true })));
        for done in answers().into_iter().take(4) {
            let mut answer = done.encode();
            answer[4] = 2;
            answer[7] += 1;
            answer.push(9);
            assert_eq!(Answer::decode(&answer), Ok(Some(done)));
        }
    }

    #[test]
    fn a_sidecar_of_before_is_understood_and_gets_an_answer_that_it_takes() {
        let request = b"cnch\x01\x08\x00\x00\x00\x00\x00\x00\x00\x07";
        assert_eq!(Request::decode(request), Ok(Some(Request { nonce: 7, look: false })));
        // Its bound was that of the longest refusal.
        let answer = Answer::Done { cgroup: 1, level: 2, sightings: None, was_gone: false }.encode();
        assert_eq!(answer.len(), ANSWER_HEAD + DONE_FIXED);
    }

    #[test]
    fn of_an_agent_of_before_a_list_with_more_than_it_names_may_be_cut() {
        for (more, is_cut) in [(0, false), (1, true)] {
            let list = Sightings { seen: Vec::new(), more, is_cut: false };
            let mut wire =
                Answer::Done { cgroup: 1, level: 2, sightings: Some(list), was_gone: false }.encode();
            // It wrote no flags.
            wire.pop();
            wire[7] -= 1;
            let Ok(Some(Answer::Done { sightings: Some(read), was_gone, .. })) = Answer::decode(&wire) else {
                panic!("{more}")
            };
            assert_eq!((read.is_cut, was_gone), (is_cut, false), "{more}");
        }
    }

    #[test]
    fn flags_behind_something_that_is_no_list_are_not_read() {
        let mut wire = answers()[3].encode();
        // An address of five bytes.
        wire[ANSWER_HEAD + DONE_FIXED + 4] = 5;
        let read = Answer::decode(&wire);
        assert_eq!(read, Ok(Some(Answer::Done { cgroup: 9886, level: 5, sightings: None, was_gone: false })));
    }

    #[test]
    fn hostile_bytes_are_refused_at_the_first_that_is_wrong() {
        for (bytes, error) in [
            (&b"GET / HTTP/1.1\r\n"[..], Malformed::Magic),
            (b"x", Malformed::Magic),
            (b"cncX", Malformed::Magic),
            (b"cnch\x00\x08", Malformed::Short),
            (b"cnch\x01\x07", Malformed::Short),
            (b"cnch\x01\x00", Malformed::Short),
            (b"cnch\x01\x08\x00\x00\x00\x00\x00\x00\x00\x07more", Malformed::Long),
        ] {
            assert_eq!(Request::decode(bytes), Err(error), "{bytes:?}");
        }
        for (bytes, error) in [
            (&b"HTTP/1.1 200 OK"[..], Malformed::Magic),
            (b"cnch\x00\x00\x00\x0c", Malformed::Short),
            (b"cnch\x01\x00\x00\x00", Malformed::Short),
            (b"cnch\x01\x00\x00\x0b\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", Malformed::Short),
            (b"cnch\x01\x01\x00\x00", Malformed::Short),
            (b"cnch\x01\x01\x00\x02\x05a", Malformed::Short),
            (b"cnch\x01\x07\x00\x00", Malformed::Kind(7)),
            (b"cnch\x01\x01\xff\xff", Malformed::Long),
        ] {
            assert_eq!(Answer::decode(bytes), Err(error), "{bytes:?}");
        }
    }

    #[test]
    fn a_long_refusal_is_cut_at_a_character_and_fits() {
        let refusal = Answer::Refused { reason: "R".repeat(300), sentence: "ä".repeat(3000) };
        let wire = refusal.encode();
        assert!(wire.len() <= MAX_ANSWER);
        let Ok(Some(Answer::Refused { reason, sentence })) = Answer::decode(&wire) else { panic!() };
        assert_eq!((reason.len(), sentence.len()), (255, 1024));
        assert!(sentence.chars().all(|c| c == 'ä'));
    }
}
