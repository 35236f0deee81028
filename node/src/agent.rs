//! One request: from an accepted connection to its answer.

use crate::host::Host;
use crate::limit::Bucket;
use crate::look::{Look, Subject, look};
use crate::metrics::Metrics;
use crate::names::PROXY_UID;
use crate::netns::{self, Done};
use crate::peer::examine;
use crate::process::{Credentials, ProcessHandle};
use crate::refusal::Refusal;
use cinch_reason::Reason;
use cinch_redirect::request::{Answer, MAX_REQUEST, Request};
use cinch_redirect::sighting::Sightings;
use cinch_redirect::{Exempt, RedirectConfig, Table};
use parking_lot::RwLock;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// From the connection to the whole request: the sidecar sends it at once.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(500);
/// A few bytes into an empty buffer.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// Visits of namespaces at a time: when a node starts, all its pods ask.
const VISITS: usize = 16;
/// Looks at a time. They may take long and much memory, as pods are, so they have turns of their own: a pod that
/// starts waits for none of them.
const LOOKS: usize = 2;
/// A pod whose refusals change all the time is told of no more often: anybody in it may ask as fast as he likes.
const TOLD_EVERY: Duration = Duration::from_secs(1);
/// How long a look waits for its turn; what is not looked at now is with the sidecar's next question.
const TURN_TIMEOUT: Duration = Duration::from_secs(3);

/// What all requests share.
pub struct Agent {
    /// The node; what is wrong with it until it is known.
    host: RwLock<Result<Arc<Host>, String>>,
    visits: Semaphore,
    looks: Arc<Semaphore>,
    metrics: Metrics,
}

/// What came of a request that was not refused.
#[derive(Debug)]
struct Success {
    exempt: Exempt,
    done: Done,
    sightings: Option<Sightings>,
    /// The redirect had been in force before, and no longer was.
    was_gone: bool,
}

/// What one pod's socket remembers between requests.
#[derive(Debug)]
pub struct Memory {
    bucket: Bucket,
    /// The last outcome, so that only changes are logged at a visible level.
    last: Option<Result<Exempt, Refusal>>,
    /// When a refusal was last logged so.
    told: Option<Instant>,
    /// Who was exempt by the redirect that was last seen in force; refusals since then change nothing about it.
    in_force: Option<Exempt>,
}

impl Default for Memory {
    fn default() -> Self {
        Self { bucket: Bucket::new(Instant::now()), last: None, told: None, in_force: None }
    }
}

impl Agent {
    /// An agent on a node that was looked at.
    #[must_use]
    pub fn new(host: Result<Host, String>, metrics: Metrics) -> Self {
        let looks = Arc::new(Semaphore::new(LOOKS));
        Self { host: RwLock::new(host.map(Arc::new)), visits: Semaphore::new(VISITS), looks, metrics }
    }

    /// What keeps the node from answering requests.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        self.host.read().as_ref().err().cloned()
    }

    /// Its counters.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Serves one connection to the socket of the pod `uid`.
    pub async fn serve(&self, mut stream: UnixStream, uid: &str, memory: &mut Memory) {
        let begin = Instant::now();
        let outcome = self.handle(&mut stream, uid, memory).await;
        self.metrics
            .answered(outcome.as_ref().map(|_| ()).map_err(|refusal| refusal.reason), begin.elapsed());
        memory.note(uid, &outcome, begin.elapsed());
        let answer = match &outcome {
            Ok(Success { exempt: Exempt::Cgroup { id, level }, sightings, was_gone, .. }) => {
                self.metrics.set_again(*was_gone);
                let (sightings, was_gone) = (sightings.clone(), *was_gone);
                Answer::Done { cgroup: *id, level: *level, sightings, was_gone }
            }
            // No request leads to an exemption by user.
            Ok(Success { exempt: Exempt::User(_), .. }) => return,
            Err(refusal) => refusal.answer(),
        };
        let _ = timeout(ANSWER_TIMEOUT, stream.write_all(&answer.encode())).await;
    }

    async fn handle(
        &self,
        stream: &mut UnixStream,
        uid: &str,
        memory: &mut Memory,
    ) -> Result<Success, Refusal> {
        let unknown = |error: io::Error| Refusal::new(Reason::PeerUnknown, error.to_string());
        // First, whoever it is: a socket that is closed with something unread in it resets the other end, which
        // would lose the answer.
        let request = read_request(stream).await;
        let peer = stream.peer_cred().map_err(unknown)?;
        // Before anything is looked up: the sidecar has its own user, and apps may not have it.
        if peer.uid() != PROXY_UID {
            let sentence = format!("the user {} asks; the sidecar is {PROXY_UID}", peer.uid());
            return Err(Refusal::new(Reason::NotTheSidecar, sentence));
        }
        if !memory.bucket.take(Instant::now()) {
            return Err(Refusal::new(Reason::AskedTooOften, "more than the sidecar ever asks"));
        }
        let request = request?;
        let host = self.host.read().clone().map_err(|fault| Refusal::new(Reason::NodeUnsupported, fault))?;
        let credentials = Credentials { process: peer.pid().unwrap_or(0), user: peer.uid() };
        if credentials.process == 0 {
            let sentence = "its process has no number here: a sandboxed runtime, or an agent without hostPID";
            return Err(Refusal::new(Reason::PeerUnknown, sentence));
        }
        let handle = ProcessHandle::of_peer(stream, credentials).map_err(unknown)?;
        let visit = self.visits.acquire().await;
        let sidecar = examine(&host, &handle, uid)?;
        let config = RedirectConfig { exempt: sidecar.exempt, ..RedirectConfig::default() };
        let outbound_port = config.outbound_port;
        let unvisited = |error: io::Error| {
            Refusal::new(Reason::NodeUnsupported, format!("the pod's network namespace: {error}"))
        };
        let again = sidecar.namespace.try_clone().map_err(unvisited)?;
        let set = move || netns::set_and_prove(&config, request.nonce);
        let done = netns::inside(sidecar.namespace, set).await.map_err(unvisited)??;
        drop(visit);
        let was_gone = memory.saw_in_force(sidecar.exempt, done, request);
        let sightings = if request.look {
            let subject =
                Subject { uid: uid.to_owned(), proxy: handle.id(), group: sidecar.group, outbound_port };
            self.look(host, again, subject).await
        } else {
            None
        };
        Ok(Success { exempt: sidecar.exempt, done, sightings, was_gone })
    }

    /// What passes by the proxy; `None` when nobody looked.
    async fn look(&self, host: Arc<Host>, namespace: File, subject: Subject) -> Option<Sightings> {
        let turn = self.turn(TURN_TIMEOUT).await?;
        let metrics = self.metrics.clone();
        let uid = subject.uid.clone();
        let work = move || {
            let looked = metrics.looked(|| look(&host, &subject));
            // Here and not where it is awaited: the thread goes on when nobody waits any more.
            drop(turn);
            looked
        };
        match netns::inside(namespace, work).await.flatten() {
            Ok(Look { sightings, is_short }) => {
                if is_short {
                    tracing::debug!(pod = uid, "a look at what passes by the proxy reached its bounds");
                }
                Some(sightings)
            }
            Err(error) => {
                tracing::debug!(pod = uid, %error, "what passes by the proxy could not be seen");
                None
            }
        }
    }

    async fn turn(&self, patience: Duration) -> Option<OwnedSemaphorePermit> {
        let turn = timeout(patience, self.looks.clone().acquire_owned()).await;
        if turn.is_err() {
            self.metrics.skipped_look();
        }
        turn.ok()?.ok()
    }
}

async fn read_request(stream: &mut UnixStream) -> Result<Request, Refusal> {
    let malformed =
        |what: &dyn std::fmt::Display| Refusal::new(Reason::AgentRequestMalformed, what.to_string());
    let read = async {
        let mut bytes = Vec::with_capacity(MAX_REQUEST);
        loop {
            if let Some(request) = Request::decode(&bytes).map_err(|error| malformed(&error))? {
                return Ok(request);
            }
            let mut limited = (&mut *stream).take(MAX_REQUEST as u64);
            match limited.read_buf(&mut bytes).await {
                Ok(0) => return Err(malformed(&"the connection ended before it was whole")),
                Ok(_) => {}
                Err(error) => return Err(malformed(&error)),
            }
        }
    };
    timeout(REQUEST_TIMEOUT, read).await.unwrap_or_else(|_| Err(malformed(&"it did not come in time")))
}

impl Memory {
    /// Notes that the redirect of `exempt` is in force now; whether it had been before and was not when this request
    /// came. That a sidecar which has just started finds none, or the exemption of the one before it, is as it should be.
    fn saw_in_force(&mut self, exempt: Exempt, done: Done, request: Request) -> bool {
        let known = self.in_force.replace(exempt) == Some(exempt);
        match done {
            Done::Standing | Done::Loaded(Table::Current) => false,
            // An agent that has started since may have other rules than the one before it.
            Done::Loaded(Table::Other) => known,
            // Sidecars look only once their redirect is in force.
            Done::Loaded(Table::Missing) => known || request.look,
        }
    }

    fn note(&mut self, uid: &str, outcome: &Result<Success, Refusal>, took: Duration) {
        let short = outcome.as_ref().map(|success| success.exempt).map_err(Clone::clone);
        let changed = self.last.as_ref() != Some(&short);
        match outcome {
            Ok(Success { exempt, was_gone: true, .. }) => {
                tracing::warn!(pod = uid, %exempt, ?took, "the redirect was gone and is set again");
            }
            Ok(Success { exempt, done, .. }) if changed => {
                tracing::info!(pod = uid, %exempt, ?done, ?took, "redirect in force")
            }
            Err(refusal) if changed && self.told.is_none_or(|at| at.elapsed() >= TOLD_EVERY) => {
                self.told = Some(Instant::now());
                tracing::warn!(pod = uid, %refusal, ?took, "refused");
            }
            Err(refusal) if changed => {
                tracing::debug!(pod = uid, %refusal, ?took, "refused");
                // Should it last, it is told the next time.
                return;
            }
            _ => tracing::debug!(pod = uid, ?outcome, ?took, "as before"),
        }
        self.last = Some(short);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn looks_wait_for_turns_of_their_own_and_are_counted_when_they_get_none() {
        let agent = Agent::new(Err("no node".to_owned()), Metrics::default());
        let skipped = |count: u32| agent.metrics().text().contains(&format!("looks_skipped_total {count}\n"));
        let first = agent.turn(Duration::ZERO).await;
        let second = agent.turn(Duration::ZERO).await;
        assert!(first.is_some() && second.is_some() && skipped(0));
        assert!(agent.turn(Duration::from_millis(1)).await.is_none() && skipped(1));
        assert_eq!(agent.visits.available_permits(), VISITS, "who starts does not wait for looks");
        drop(first);
        assert!(agent.turn(Duration::ZERO).await.is_some() && skipped(1));
    }

    #[test]
    fn refusals_that_change_all_the_time_are_not_all_told() {
        let mut memory = Memory::default();
        let mut refuse = |sentence: &str| {
            let outcome = Err(Refusal::new(Reason::NotTheSidecar, sentence));
            memory.note("pod", &outcome, Duration::ZERO);
            memory.last == Some(outcome.map(|_: Success| Exempt::User(0)))
        };
        assert!(refuse("the user 1 asks"));
        assert!((2..100).all(|user| !refuse(&format!("the user {user} asks"))));
        memory.told = Instant::now().checked_sub(TOLD_EVERY);
        memory.note("pod", &Err(Refusal::new(Reason::PeerUnknown, "later")), Duration::ZERO);
        assert!(matches!(&memory.last, Some(Err(refusal)) if refusal.reason == Reason::PeerUnknown));
    }

    #[test]
    fn only_a_redirect_that_had_been_in_force_was_gone() {
        let (first, second) = (Exempt::Cgroup { id: 1, level: 3 }, Exempt::Cgroup { id: 2, level: 3 });
        let (start, look) = (Request { nonce: 1, look: false }, Request { nonce: 1, look: true });
        let (current, other, missing) =
            (Done::Loaded(Table::Current), Done::Loaded(Table::Other), Done::Loaded(Table::Missing));
        let mut memory = Memory::default();
        let mut gone = |exempt, done, request| memory.saw_in_force(exempt, done, request);
        assert!(!gone(first, missing, start), "a pod that starts has none");
        assert!(!gone(first, Done::Standing, look) && !gone(first, current, look));
        assert!(gone(first, missing, look) && gone(first, other, look), "flushed, or changed");
        assert!(!gone(second, other, start), "a sidecar that has started again finds the one before it");
        assert!(gone(second, missing, start), "asked at once, whatever for");
        let after_restart = |done, request| Memory::default().saw_in_force(first, done, request);
        assert!(
            after_restart(missing, look) && !after_restart(other, look),
            "an agent that has just started"
        );
    }
}
