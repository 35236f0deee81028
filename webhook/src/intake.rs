//! From a request to its answer: the body is read and judged within bounds of bytes, memory and time.
//!
//! API servers relay what users wrote, and take any answer but an admission review for a webhook that is down: they let
//! pods in then. So what a user can bring about by the object alone, however large or strange, is answered with a review
//! that refuses it and says why, not with a failure.

use crate::budget::{Charges, LARGEST, NoMemory};
use crate::mutate::{Answer, answer_malformed, fault, mutate, refusal};
use crate::review::{STARTS_WITHIN, uid_of};
use crate::state::State;
use crate::validate::validate;
use bytes::BytesMut;
use cinch_reason::Reason;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// The largest review. An object in the API has at most 1.5 MiB in etcd, and an update carries the old one too.
pub const LARGEST_BODY: usize = 4 << 20;
/// What is still read of a larger one, and dropped, so that its sender comes to read the answer. An API server takes
/// requests of 3 MiB, and writes some characters of them with six.
const LARGEST_DROPPED: usize = 40 << 20;
/// After this a review is given up; the API server stops waiting at 3 s.
const LONGEST_REVIEW: Duration = Duration::from_millis(2500);
/// For a request's body: an API server sends it at once.
const LONGEST_BODY: Duration = Duration::from_secs(1);

/// What a review is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// A pod that is created.
    Pod,
    /// A policy that is written.
    Policy,
}

/// Why a review was not judged.
#[derive(Debug)]
enum Unjudged {
    /// It is more than any object of the API needs.
    TooLarge(String),
    /// There was no memory for it, or no longer.
    NoMemory,
    /// Its body did not come.
    Unsent(String),
    /// It did not come in time.
    Slow,
    /// It was not answered in time.
    Late,
}

/// What has come of a body.
#[derive(Debug, Default)]
struct Arrived {
    bytes: BytesMut,
    length: usize,
    /// Why only the start of it was kept.
    dropped: Option<Unjudged>,
}

impl Arrived {
    fn drop_rest(&mut self, why: Unjudged) {
        let start = self.bytes.get(..STARTS_WITHIN).unwrap_or(&self.bytes);
        self.bytes = BytesMut::from(start);
        self.dropped = Some(why);
    }
}

impl From<NoMemory> for Unjudged {
    fn from(_: NoMemory) -> Self {
        Self::NoMemory
    }
}

/// The answer to a request from `source`, and the memory that is charged until it is gone.
pub async fn answer(
    body: Incoming,
    source: IpAddr,
    asked: Asked,
    state: &State,
    began: Instant,
) -> (Answer, Charges) {
    let mut charges = state.budget.charges(source);
    let lost = charges.lost();
    let mut arrived = Arrived::default();
    let judged = tokio::select! {
        judged = timeout(LONGEST_REVIEW, judge(body, asked, state, began, &mut charges, &mut arrived)) => {
            judged.unwrap_or(Err(Unjudged::Late))
        }
        () = lost.cancelled() => Err(Unjudged::NoMemory),
    };
    match judged {
        Ok(answer) => (answer, charges),
        // What it had is given back before the answer goes: it needs nothing of it.
        Err(unjudged) => (failed(&unjudged, &arrived, state, began), state.budget.charges(source)),
    }
}

async fn judge(
    body: Incoming,
    asked: Asked,
    state: &State,
    began: Instant,
    charges: &mut Charges,
    arrived: &mut Arrived,
) -> Result<Answer, Unjudged> {
    let read = timeout(LONGEST_BODY, read(body, charges, arrived)).await;
    if let Some(why) = arrived.dropped.take() {
        return Err(why);
    }
    read.unwrap_or(Err(Unjudged::Slow))?;
    let cost = cost_of_values(&arrived.bytes);
    if cost > LARGEST {
        let detail = "it holds more values than any object does that was not made for it";
        return Err(Unjudged::TooLarge(detail.to_owned()));
    }
    charges.add(cost).await?;
    let turn = state.budget.turn(charges).await;
    Ok(match asked {
        Asked::Pod => mutate(state, &arrived.bytes, began, charges, turn).await,
        Asked::Policy => validate(state, &arrived.bytes, began),
    })
}

/// Reads a body. What came is charged before more is read. Where it can't be kept, the rest is read all the same: an
/// API server that could not send all of it would not read the answer.
async fn read(mut body: Incoming, charges: &mut Charges, arrived: &mut Arrived) -> Result<(), Unjudged> {
    let too_large = || Unjudged::TooLarge(format!("the body has more than {LARGEST_BODY} bytes"));
    if body.size_hint().lower() > LARGEST_DROPPED as u64 {
        arrived.drop_rest(too_large());
        return Ok(());
    }
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Unjudged::Unsent(error.to_string()))?;
        let Ok(data) = frame.into_data() else { continue };
        arrived.length = arrived.length.saturating_add(data.len());
        if arrived.length > LARGEST_DROPPED {
            break;
        }
        if arrived.dropped.is_some() {
            continue;
        }
        // Twice: what grows is copied.
        let charged = match arrived.length {
            ..=LARGEST_BODY => charges.add(2 * data.len()).await.map_err(Unjudged::from),
            _ => Err(too_large()),
        };
        match charged {
            Ok(()) => arrived.bytes.extend_from_slice(&data),
            Err(why) => {
                arrived.drop_rest(why);
                charges.release();
            }
        }
    }
    Ok(())
}

/// What a value costs once it is parsed: itself, its name, its share of its list or map, and the same again while that
/// grows.
const BYTES_OF_VALUE: usize = 160;
/// What a map costs besides: it has places for eleven values from the first on.
const BYTES_OF_MAP: usize = 640;

/// What the values of a JSON text cost at most once they are parsed: each but the first follows a comma or a bracket
/// that is not part of a text.
fn cost_of_values(body: &[u8]) -> usize {
    let (mut cost, mut in_text, mut escaped) = (BYTES_OF_VALUE, false, false);
    for byte in body {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b',' | b'[' if !in_text => cost += BYTES_OF_VALUE,
            b'{' if !in_text => cost += BYTES_OF_VALUE + BYTES_OF_MAP,
            _ => {}
        }
    }
    cost
}

/// The answer to what was not judged: a refusal where it can be told of which review, else a failure.
fn failed(unjudged: &Unjudged, arrived: &Arrived, state: &State, began: Instant) -> Answer {
    let uid = uid_of(&arrived.bytes);
    let overloaded = "the webhook has no memory or no time for it just now: try again";
    match (unjudged, &uid) {
        (Unjudged::TooLarge(detail), Some(uid)) => refusal(state, uid, Reason::ObjectTooLarge, detail, began),
        (Unjudged::NoMemory | Unjudged::Late, Some(uid)) => {
            refusal(state, uid, Reason::Overloaded, overloaded, began)
        }
        (Unjudged::NoMemory | Unjudged::Late, None) => {
            Answer { status: 503, ..fault(state, overloaded, began) }
        }
        (Unjudged::TooLarge(detail), None) => {
            Answer { status: 413, ..answer_malformed(state, detail, began) }
        }
        (Unjudged::Slow, _) => {
            Answer { status: 408, ..answer_malformed(state, "the body did not come in time", began) }
        }
        (Unjudged::Unsent(error), _) => {
            answer_malformed(state, &format!("the body did not come: {error}"), began)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_is_no_text_is_counted_as_values() {
        let cost = |values, maps| values * BYTES_OF_VALUE + maps * BYTES_OF_MAP;
        let commas = ",[{".repeat(100_000);
        for (body, values, maps) in [
            (json!({"a": commas}).to_string(), 2, 1),
            (json!({ commas.as_str(): 1 }).to_string(), 2, 1),
            (json!([1, "quoted \" , \\", ",", {"a": [2, 3]}]).to_string(), 8, 1),
            (r#"["\\",1,"\\\"[",2]"#.to_owned(), 5, 0),
            (String::new(), 1, 0),
        ] {
            let brief: String = body.chars().take(40).collect();
            assert_eq!(cost_of_values(body.as_bytes()), cost(values, maps), "{brief}");
        }
    }
}
