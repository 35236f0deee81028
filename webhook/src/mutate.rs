//! One review of a pod: bytes in, status and body out. Waits a little for what the operator is about to create.

use crate::budget::Charges;
use crate::review::{Malformed, Request, Response, uid_of};
use crate::state::State;
use cinch_injection::Outcome;
use cinch_reason::Reason;
use std::time::Duration;
use tokio::sync::SemaphorePermit;
use tokio::time::{Instant, timeout_at};

/// How long a pod waits for its account, trust bundle or Job to appear. The API server waits 3 s for us.
pub const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// An answer: an HTTP status and a body.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status code.
    pub status: u16,
    /// JSON for 200, text otherwise.
    pub body: Vec<u8>,
}

impl Answer {
    pub(crate) fn text(status: u16, text: impl Into<String>) -> Self {
        Self { status, body: text.into().into_bytes() }
    }
}

/// Answers the review in `body`, which began at `began`. Where it has to wait, it does so with its memory out of the way
/// and without its `turn`.
pub async fn mutate(
    state: &State,
    body: &[u8],
    began: Instant,
    charges: &mut Charges,
    turn: Option<SemaphorePermit<'_>>,
) -> Answer {
    let request = match Request::parse(body) {
        Ok(request) => request,
        Err(malformed) => return answer_unread(state, body, &malformed, began),
    };
    let Some(serving) = state.serving() else {
        return fault(state, "there is no serving certificate", began);
    };
    let outcome = decide(state, &request, began + LONGEST_WAIT, &serving.probe_key, charges, turn).await;
    let (label, reason, response) = match outcome {
        Outcome::Inject { operations, warnings } => {
            ("injected", Reason::Injected, Response::allow(&request.uid, &operations, warnings))
        }
        Outcome::Skip { reason, detail, operations } => {
            // On a second pass the annotation stands there already, and the user has been told.
            let detail = brief(&detail);
            let warnings = if operations.is_empty() { Vec::new() } else { vec![reason.message_with(detail)] };
            tracing::info!(namespace = request.namespace, %reason, detail, pod = name(&request), "pod left alone");
            ("skipped", reason, Response::allow(&request.uid, &operations, warnings))
        }
        Outcome::Refuse { reason: Reason::MalformedReview, detail } => {
            return answer_malformed(state, &detail, began);
        }
        Outcome::Refuse { reason, detail } => {
            let detail = brief(&detail);
            tracing::info!(namespace = request.namespace, %reason, detail, pod = name(&request), "pod refused");
            ("refused", reason, Ok(Response::refuse(&request.uid, reason.message_with(detail), Vec::new())))
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

/// Decides again whenever something changed, until nothing is pending or the time is up.
async fn decide(
    state: &State,
    request: &Request,
    until: Instant,
    probe_key: &cinch_injection::ProbeKey,
    charges: &mut Charges,
    mut turn: Option<SemaphorePermit<'_>>,
) -> Outcome {
    let mut changes = state.caches.subscribe();
    let mut waited = false;
    loop {
        changes.borrow_and_update();
        let outcome = state.caches.decide(request, &state.sidecar, probe_key);
        let pending = matches!(&outcome, Outcome::Refuse { reason: Reason::ServiceAccountPending, .. });
        if !pending {
            return outcome;
        }
        drop(turn.take());
        if !waited {
            if charges.park(&request.namespace).await.is_err() {
                return outcome;
            }
            state.metrics.waited();
            waited = true;
        }
        match timeout_at(until, changes.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return outcome,
        }
    }
}

fn name(request: &Request) -> &str {
    let of = |key| request.pod.pointer(key).and_then(serde_json::Value::as_str);
    brief(of("/metadata/name").or_else(|| of("/metadata/generateName")).unwrap_or_default())
}

/// What of somebody's words is repeated to him and to the log: enough to find it.
const LONGEST_DETAIL: usize = 1024;

/// The beginning of a text.
pub(crate) fn brief(text: &str) -> &str {
    text.get(..text.floor_char_boundary(LONGEST_DETAIL)).unwrap_or(text)
}

/// A refusal of the review `uid`.
pub(crate) fn refusal(state: &State, uid: &str, reason: Reason, detail: &str, began: Instant) -> Answer {
    let message = reason.message_with(brief(detail));
    tracing::info!(message, "review refused");
    match Response::refuse(uid, message, Vec::new()).audited(reason.to_string()).to_body() {
        Ok(body) => {
            state.metrics.reviewed("refused", reason, began.elapsed());
            Answer { status: 200, body }
        }
        Err(error) => fault(state, &error.to_string(), began),
    }
}

/// The answer to a review that is not understood. If what can't be read is the object, which a user wrote, it is refused:
/// after a failure an API server may let it in.
pub(crate) fn answer_unread(state: &State, body: &[u8], malformed: &Malformed, began: Instant) -> Answer {
    match (malformed, uid_of(body)) {
        (Malformed::Json(error), Some(uid)) => refusal(state, &uid, Reason::ObjectTooLarge, error, began),
        _ => answer_malformed(state, &malformed.to_string(), began),
    }
}

pub(crate) fn answer_malformed(state: &State, detail: &str, began: Instant) -> Answer {
    state.metrics.reviewed("malformed", Reason::MalformedReview, began.elapsed());
    let message = Reason::MalformedReview.message_with(brief(detail));
    tracing::warn!("{message}");
    Answer::text(400, message)
}

pub(crate) fn fault(state: &State, detail: &str, began: Instant) -> Answer {
    state.metrics.reviewed("fault", Reason::WebhookFault, began.elapsed());
    let message = Reason::WebhookFault.message_with(brief(detail));
    tracing::error!("{message}");
    Answer::text(500, message)
}
