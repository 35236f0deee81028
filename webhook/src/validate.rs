//! One review of a policy: bytes in, status and body out. What a policy may say is decided by `cinch-policy`,
//! which the proxies ask too; here is only which writes are looked at.

use crate::mutate::{Answer, answer_unread, brief, fault};
use crate::review::{PolicyRequest, Response};
use crate::state::State;
use cinch_policy::{Validation, validate_among};
use cinch_reason::Reason;
use serde_json::Value;
use tokio::time::Instant;

/// The API server passes warnings on as HTTP headers, and cuts them together at this many characters.
const MOST_WARNING_TEXT: usize = 4096;

/// Answers the review in `body`, which began at `began`.
#[must_use]
pub fn validate(state: &State, body: &[u8], began: Instant) -> Answer {
    let request = match PolicyRequest::parse(body) {
        Ok(request) => request,
        Err(malformed) => return answer_unread(state, body, &malformed, began),
    };
    let around = state.caches.around(&request.object, &state.mesh);
    let Validation { errors, warnings } = validate_among(&request.object, &state.mesh, around.as_ref());
    let (label, reason, response) = match verdict(&request, errors) {
        Verdict::Accept { mut notes } => {
            notes.extend(warnings);
            let response = Response::allow(&request.uid, &[], bounded(notes));
            ("accepted", Reason::PolicyAccepted, response)
        }
        Verdict::Refuse { message } => {
            let policy = name(&request.object);
            tracing::info!(policy = brief(&policy), message = brief(&message), "policy refused");
            let response = Response::refuse(&request.uid, message, bounded(warnings));
            ("refused", Reason::PolicyRefused, Ok(response))
        }
    };
    match response.and_then(|response| response.audited(reason.to_string()).to_body()) {
        Ok(body) => {
            state.metrics.reviewed(label, reason, began.elapsed());
            Answer { status: 200, body }
        }
        Err(error) => fault(state, &error.to_string(), began),
    }
}

enum Verdict {
    Accept { notes: Vec<String> },
    Refuse { message: String },
}

/// A policy that was there before Cinch must still lose its finalizers and get its labels, broken as it is: only
/// what it says is judged, and only when that changes.
fn verdict(request: &PolicyRequest, errors: Vec<String>) -> Verdict {
    if errors.is_empty() {
        return Verdict::Accept { notes: Vec::new() };
    }
    let ending = request.object.pointer("/metadata/deletionTimestamp").is_some_and(|time| !time.is_null());
    let same = request.old.as_ref().is_some_and(|old| means(old) == means(&request.object));
    if ending || same {
        let note = |error| format!("{}: {error}", Reason::PolicyInvalid);
        return Verdict::Accept { notes: errors.into_iter().map(note).collect() };
    }
    Verdict::Refuse { message: format!("{}: {}", Reason::PolicyRefused, errors.join("; ")) }
}

/// The parts of an object that a policy's meaning is made of.
fn means(object: &Value) -> (Option<&Value>, Option<&Value>) {
    (object.get("spec"), object.pointer("/metadata/annotations/istio.io~1dry-run"))
}

/// As many warnings as the API server passes on whole.
fn bounded(warnings: Vec<String>) -> Vec<String> {
    let mut left = MOST_WARNING_TEXT;
    let fits = |warning: &String| {
        let fits = warning.len() <= left;
        left = left.saturating_sub(warning.len());
        fits
    };
    warnings.into_iter().take_while(fits).collect()
}

fn name(policy: &Value) -> String {
    let of = |key| policy.pointer(key).and_then(Value::as_str).unwrap_or_default();
    format!("{} {}/{}", of("/kind"), of("/metadata/namespace"), of("/metadata/name"))
}
