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
    /// The redirect had been in force before, and no longer was, now or when nobody could be told.
    was_gone: bool,
}

/// What one pod's socket remembers between requests.
#[derive(Debug)]
pub struct Memory {
    /// Requests of the sidecar's user.
    bucket: Bucket,
    /// Those of all other users: whoever they are, they take nothing from the sidecar.
    others: Bucket,
    /// The last outcome, so that only changes are logged at a visible level.
    last: Option<Result<Exempt, Refusal>>,
    /// When a refusal was last logged so.
    told: Option<Instant>,
    /// Who was exempt by the redirect that was last seen in force; refusals since then change nothing about it.
    in_force: Option<Exempt>,
    /// A redirect that had been in force was gone, and the sidecar has not yet heard of it: the answer that follows may
    /// be a refusal, or get lost.
    untold: bool,
}

impl Default for Memory {
    fn default() -> Self {
        let full = || Bucket::new(Instant::now());
        Self { bucket: full(), others: full(), last: None, told: None, in_force: None, untold: false }
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

    /// Notes what another look at the node has found.
    pub fn found(&self, host: Result<Host, String>) {
        *self.host.write() = host.map(Arc::new);
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
                let (sightings, was_gone) = (sightings.clone(), *was_gone);
                Answer::Done { cgroup: *id, level: *level, sightings, was_gone }
            }
            // No request leads to an exemption by user.
            Ok(Success { exempt: Exempt::User(_), .. }) => return,
            Err(refusal) => refusal.answer(),
        };
        let tells = matches!(answer, Answer::Done { was_gone: true, .. });
        let answer = answer.encode();
        if tells {
            memory.untold = !is_taken(&mut stream, &answer).await;
        } else {
            let _ = timeout(ANSWER_TIMEOUT, stream.write_all(&answer)).await;
        }
    }

    async fn handle(
        &self,
        stream: &mut UnixStream,
        uid: &str,
        memory: &mut Memory,
    ) -> Result<Success, Refusal> {
        let unknown = |error: io::Error| Refusal::new(Reason::PeerUnknown, error.to_string());
        let peer = stream.peer_cred().map_err(unknown)?;
        let is_other = peer.uid() != PROXY_UID;
        if is_other && !memory.others.take(Instant::now()) {
            // Not even heard: the sidecar waits behind whoever says nothing. An answer may be lost with what he said.
            return Err(Refusal::new(Reason::AskedTooOften, "nobody but the sidecar has anything to ask"));
        }
        // Before anything is refused: a socket that is closed with something unread in it resets the other end, which
        // would lose the answer.
        let request = read_request(stream).await;
        // Before anything is looked up: the sidecar has its own user, and apps may not have it.
        if is_other {
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
        let visited = netns::inside(sidecar.namespace, set).await.map_err(unvisited)?;
        drop(visit);
        if let Some(table) = visited.found {
            self.metrics.set_again(memory.found(sidecar.exempt, table, request));
        }
        let done = visited.outcome?;
        memory.in_force = Some(sidecar.exempt);
        let was_gone = memory.untold;
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

/// Sends an answer; whether its reader has taken all of it.
async fn is_taken(stream: &mut UnixStream, answer: &[u8]) -> bool {
    let taken = async {
        stream.write_all(answer).await?;
        stream.shutdown().await?;
        // Whoever closes with something unread resets this end.
        let mut more = [0; 16];
        while stream.read(&mut more).await? > 0 {}
        io::Result::Ok(())
    };
    matches!(timeout(ANSWER_TIMEOUT, taken).await, Ok(Ok(())))
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
    /// Notes what stood where the redirect of `exempt` was asked for; whether that redirect had been in force before and
    /// was not when this request came. That a sidecar which has just started finds none, or the exemption of the one
    /// before it, is as it should be.
    fn found(&mut self, exempt: Exempt, table: Table, request: Request) -> bool {
        let known = self.in_force == Some(exempt);
        let gone = match table {
            Table::Current => false,
            // An agent that has started since may have other rules than the one before it.
            Table::Other => known,
            // Sidecars look only once their redirect is in force.
            Table::Missing => known || request.look,
        };
        self.untold |= gone;
        gone
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
        let (current, other, missing) = (Table::Current, Table::Other, Table::Missing);
        let mut memory = Memory::default();
        let mut gone = |exempt, table, request| {
            let gone = memory.found(exempt, table, request);
            memory.in_force = Some(exempt);
            gone
        };
        assert!(!gone(first, missing, start), "a pod that starts has none");
        assert!(!gone(first, current, look));
        assert!(gone(first, missing, look) && gone(first, other, look), "flushed, or changed");
        assert!(!gone(second, other, start), "a sidecar that has started again finds the one before it");
        assert!(gone(second, missing, start), "asked at once, whatever for");
        let after_restart = |table, request| Memory::default().found(first, table, request);
        assert!(
            after_restart(missing, look) && !after_restart(other, look),
            "an agent that has just started"
        );
    }

    #[test]
    fn that_it_was_gone_is_remembered_until_it_is_told() {
        let (exempt, look) = (Exempt::Cgroup { id: 1, level: 3 }, Request { nonce: 1, look: true });
        let mut memory = Memory { in_force: Some(exempt), ..Memory::default() };
        assert!(memory.found(exempt, Table::Missing, look), "set again, and then not proved");
        assert!(!memory.found(exempt, Table::Current, look) && memory.untold);
    }

    #[tokio::test]
    async fn other_users_that_ask_too_often_are_not_waited_for() {
        let agent = Agent::new(Err("no node".to_owned()), Metrics::default());
        let mut memory = Memory::default();
        while memory.others.take(Instant::now()) {}
        let (served, mut silent) = UnixStream::pair().unwrap();
        agent.serve(served, "pod", &mut memory).await;
        let mut answer = Vec::new();
        silent.read_buf(&mut answer).await.unwrap();
        let Some(Answer::Refused { reason, .. }) = Answer::decode(&answer).unwrap() else {
            panic!("{answer:?}")
        };
        assert_eq!(reason, "AskedTooOften", "and not that nothing was asked");
        assert!(memory.bucket.take(Instant::now()), "the sidecar's own is full");
    }

    #[tokio::test]
    async fn an_answer_is_taken_only_by_who_reads_it_to_its_end() {
        let (mut agent, mut sidecar) = UnixStream::pair().unwrap();
        let reads = async {
            let mut answer = Vec::new();
            sidecar.read_to_end(&mut answer).await.unwrap();
            drop(sidecar);
            answer
        };
        assert_eq!(tokio::join!(is_taken(&mut agent, b"gone"), reads), (true, b"gone".to_vec()));
        let (mut agent, mut sidecar) = UnixStream::pair().unwrap();
        let leaves = async {
            let mut first = [0];
            sidecar.read_exact(&mut first).await.unwrap();
            drop(sidecar);
        };
        assert_eq!(tokio::join!(is_taken(&mut agent, b"gone"), leaves), (false, ()));
        let (mut agent, sidecar) = UnixStream::pair().unwrap();
        drop(sidecar);
        assert!(!is_taken(&mut agent, b"gone").await, "it had left before");
    }
}
