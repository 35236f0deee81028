//! The sidecar's question to its node's agent: set the redirect of this pod. It is the first thing that a proxy
//! does in agent mode, before it dials anybody: until its own container is exempt, its dials lead back to itself.
//!
//! In goes the socket of the pod's volume; out comes, once, that the redirect is in force, and from then on an
//! answer every half minute, and as soon as the outbound redirect is in doubt, so that a table that somebody flushed
//! is set again and the evidence has an age. With these later answers comes what the agent saw pass by this proxy.

use crate::evidence::Evidence;
use crate::health::Readiness;
use crate::process;
use anyhow::{Result, anyhow};
use cinch_reason::Reason;
use cinch_redirect::request::{ASKED_EVERY, Answer, MAX_ANSWER, Request};
use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout};

/// Between the first two attempts; doubled with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// Between attempts at last.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Before the first of them: the app has started by then, and a promotion waits for a look at each pod.
const FIRST_LOOK: Duration = Duration::from_secs(10);
/// At least so long between questions, however often the redirect is in doubt: the agent counts them.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(1);
/// For one question. The agent gives the kernel 5 s for the table and its own dial twice 2 s.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(12);
/// An agent that goes on refusing after this time will not change its mind: the process ends and says why. One
/// that is away is waited for: its node may be starting, or it is being replaced.
pub const REFUSED_FOR_GOOD: Duration = Duration::from_secs(20);

/// Why there is no redirect.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Trouble {
    /// The agent does not answer, or not as it should.
    Unreachable(String),
    /// It refused, with a word of its own.
    Refused { reason: String, sentence: String },
}

impl Trouble {
    fn message(&self) -> String {
        match self {
            Self::Unreachable(what) => Reason::AgentUnreachable.message_with(what),
            Self::Refused { reason, sentence } => match reason.parse::<Reason>() {
                Ok(known) => known.message_with(sentence),
                // A newer agent has words that we don't know.
                Err(_) => format!("{reason}: {sentence}"),
            },
        }
    }
}

/// What a question is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    /// The redirect, as fast as can be: a start waits for it.
    Redirect,
    /// The redirect, and what passes by.
    Look,
}

/// The longest time before each further question, once the redirect is in force.
fn waits() -> impl Iterator<Item = Duration> {
    std::iter::once(FIRST_LOOK).chain(std::iter::repeat(ASKED_EVERY))
}

/// Who asks, and who is told.
pub struct AgentClient {
    /// The socket in the pod's volume.
    pub socket: PathBuf,
    /// Its number goes with the question and is what the agent's dial is answered with.
    pub evidence: Arc<Evidence>,
    /// Waits for the first answer.
    pub readiness: Arc<Readiness>,
    /// Where the reason of a failed start goes.
    pub termination_log: PathBuf,
    /// How long refusals are borne at the start: [`REFUSED_FOR_GOOD`].
    pub patience: Duration,
}

impl AgentClient {
    /// Asks until the redirect is in force.
    ///
    /// # Errors
    /// The reason of an agent that goes on refusing.
    pub async fn first(&self) -> Result<()> {
        let begin = Instant::now();
        let mut told = None;
        let mut pause = FIRST_PAUSE;
        loop {
            let trouble = match self.ask(Purpose::Redirect).await {
                Ok(()) => {
                    tracing::info!(took = ?begin.elapsed(), "the node agent has set the redirect");
                    if told.is_some() {
                        process::write_termination_message(&self.termination_log, "");
                    }
                    return Ok(());
                }
                Err(trouble) => trouble,
            };
            let (message, refused) = (trouble.message(), matches!(trouble, Trouble::Refused { .. }));
            if told.as_ref() != Some(&trouble) {
                tracing::warn!("{message}");
                // Now: who ends a sidecar that is not ready does not ask it for its last words.
                process::write_termination_message(&self.termination_log, &message);
                told = Some(trouble);
            }
            if refused && begin.elapsed() >= self.patience {
                return Err(anyhow!("no redirect after {} s: {message}", self.patience.as_secs()));
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Asks again and again, for ever. What is in force stays in force when the agent is away; whether it still
    /// works is what the self-test says.
    pub async fn keep_asking(&self) {
        let mut told = None;
        for wait in waits() {
            sleep(SHORTEST_INTERVAL).await;
            // Whatever ends the wait, the next step is the same.
            let _ = timeout(wait - SHORTEST_INTERVAL, self.evidence.outbound_in_doubt()).await;
            let trouble = self.ask(Purpose::Look).await.err();
            if trouble != told {
                match &trouble {
                    Some(trouble) => tracing::warn!("{}", trouble.message()),
                    None => tracing::info!("the node agent answers again"),
                }
            }
            told = trouble;
        }
    }

    /// One question.
    async fn ask(&self, purpose: Purpose) -> Result<(), Trouble> {
        let exchange = timeout(ANSWER_TIMEOUT, self.exchange(purpose)).await;
        let answer = match exchange {
            Ok(answer) => answer.map_err(|error| Trouble::Unreachable(error.to_string()))?,
            Err(_) => return Err(Trouble::Unreachable("no answer came in time".to_owned())),
        };
        match answer {
            Answer::Done { cgroup, level, sightings, was_gone } => {
                tracing::debug!(cgroup, level, "redirect in force");
                if let Some(sightings) = &sightings {
                    self.evidence.note_look(sightings);
                }
                self.evidence.note_agent_proof();
                if was_gone {
                    self.evidence.note_set_again();
                    tracing::warn!("{}", Reason::RedirectWasGone.message());
                }
                self.readiness.set_redirected();
                Ok(())
            }
            Answer::Refused { reason, sentence } => Err(Trouble::Refused { reason, sentence }),
        }
    }

    async fn exchange(&self, purpose: Purpose) -> io::Result<Answer> {
        let mut stream = UnixStream::connect(&self.socket).await?;
        let request = Request { nonce: self.evidence.boot_id(), look: purpose == Purpose::Look };
        stream.write_all(&request.encode()).await?;
        let mut bytes = Vec::with_capacity(MAX_ANSWER);
        loop {
            let invalid = |error| io::Error::new(ErrorKind::InvalidData, error);
            if let Some(answer) = Answer::decode(&bytes).map_err(invalid)? {
                return Ok(answer);
            }
            if stream.read_buf(&mut bytes).await? == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cinch_redirect::sighting::{Sighting, Sightings, Way};
    use std::collections::VecDeque;
    use tokio::net::UnixListener;

    fn client(directory: &tempfile::TempDir) -> Arc<AgentClient> {
        client_with(directory, Duration::from_millis(200))
    }

    fn client_with(directory: &tempfile::TempDir, patience: Duration) -> Arc<AgentClient> {
        let evidence = Arc::new(Evidence::new(8));
        let credentials = tokio::sync::watch::Sender::new(None);
        let policy = tokio::sync::watch::Sender::new(None);
        let readiness = Readiness::in_pod(evidence.clone(), credentials.subscribe(), policy.subscribe());
        readiness.await_agent();
        let termination_log = directory.path().join("termination-log");
        std::fs::write(&termination_log, "").unwrap();
        Arc::new(AgentClient {
            socket: directory.path().join("agent.sock"),
            evidence,
            readiness: Arc::new(readiness),
            termination_log,
            patience,
        })
    }

    /// An agent that gives these answers, one to each connection, and returns what it was asked.
    async fn agent(client: &AgentClient, answers: Vec<Vec<u8>>) -> tokio::task::JoinHandle<Vec<Request>> {
        let listener = UnixListener::bind(&client.socket).unwrap();
        let mut answers = VecDeque::from(answers);
        tokio::spawn(async move {
            let mut asked = Vec::new();
            while let Some(answer) = answers.pop_front() {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = vec![0; 15];
                stream.read_exact(&mut request).await.unwrap();
                asked.push(Request::decode(&request).unwrap().unwrap());
                stream.write_all(&answer).await.unwrap();
            }
            asked
        })
    }

    fn refusal(reason: Reason, sentence: &str) -> Vec<u8> {
        Answer::Refused { reason: reason.as_str().into(), sentence: sentence.into() }.encode()
    }

    fn done() -> Vec<u8> {
        Answer::Done { cgroup: 7, level: 5, sightings: None, was_gone: false }.encode()
    }

    fn last_words(client: &AgentClient) -> String {
        std::fs::read_to_string(&client.termination_log).unwrap()
    }

    #[tokio::test]
    async fn refusals_are_told_and_asked_again_until_the_redirect_is_in_force() {
        let directory = tempfile::tempdir().unwrap();
        let client = client_with(&directory, Duration::from_secs(60));
        let hostile = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        let answers = vec![refusal(Reason::PeerUnknown, "gone"), hostile, Vec::new(), done()];
        let agent = agent(&client, answers).await;
        assert!(client.readiness.missing().contains(&Reason::AgentPending));
        assert_eq!(client.evidence.agent_proof_age(), None);
        client.first().await.unwrap();
        assert_eq!(agent.await.unwrap(), [Request { nonce: client.evidence.boot_id(), look: false }; 4]);
        assert!(!client.readiness.missing().contains(&Reason::AgentPending));
        assert!(client.evidence.agent_proof_age().is_some());
        assert_eq!(last_words(&client), "", "what is mended is not told");
    }

    #[tokio::test]
    async fn an_agent_that_goes_on_refusing_ends_the_start_with_its_reason() {
        let directory = tempfile::tempdir().unwrap();
        let client = client(&directory);
        let _agent =
            agent(&client, vec![refusal(Reason::NotTheSidecar, "the container \"app\" asks"); 64]).await;
        let error = client.first().await.unwrap_err().to_string();
        for text in [error, last_words(&client)] {
            assert!(
                text.contains("NotTheSidecar: ") && text.contains("the container \"app\" asks"),
                "{text}"
            );
        }
        assert!(client.readiness.missing().contains(&Reason::AgentPending));
    }

    #[tokio::test]
    async fn the_last_word_is_the_reason_of_the_end_and_not_what_was_told_before_it() {
        let directory = tempfile::tempdir().unwrap();
        let client = client(&directory);
        // It is replaced all the time, so that a refusal never follows another.
        let answers = [Vec::new(), refusal(Reason::NotTheSidecar, "the container \"app\" asks")];
        let _agent = agent(&client, answers.into_iter().cycle().take(64).collect()).await;
        client.first().await.unwrap_err();
        assert!(last_words(&client).starts_with("NotTheSidecar: "), "{}", last_words(&client));
    }

    #[tokio::test]
    async fn an_agent_that_is_away_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let client = client(&directory);
        let asking = tokio::spawn({
            let client = client.clone();
            async move { client.first().await }
        });
        while !last_words(&client).starts_with("AgentUnreachable: ") {
            sleep(FIRST_PAUSE).await;
        }
        // Longer than refusals are borne.
        sleep(client.patience * 3).await;
        assert!(!asking.is_finished());
        let agent = agent(&client, vec![done()]).await;
        asking.await.unwrap().unwrap();
        agent.await.unwrap();
    }

    #[tokio::test]
    async fn a_redirect_in_doubt_is_asked_for_at_once_and_what_passes_by_is_reported() {
        let directory = tempfile::tempdir().unwrap();
        let client = client(&directory);
        let sighting = Sighting {
            way: Way::Outbound,
            peer: Some([10, 0, 0, 9].into()),
            port: 443,
            process: "curl".into(),
            container: "app".into(),
        };
        let sightings = Some(Sightings { seen: vec![sighting], ..Sightings::default() });
        let answer = Answer::Done { cgroup: 7, level: 5, sightings, was_gone: true }.encode();
        let agent = agent(&client, vec![answer]).await;
        let before = client.evidence.report(1, false);
        assert_eq!((before.redirect_set_again, before.redirect_set_again_age_ms), (0, None));
        assert_eq!(before.agent_proof_age_ms, None);
        let asking = tokio::spawn({
            let client = client.clone();
            async move { client.keep_asking().await }
        });
        client.evidence.note_outbound_failure();
        // Half a minute would be the end of it otherwise.
        let asked = timeout(Duration::from_secs(20), agent).await.unwrap().unwrap();
        assert_eq!(asked, [Request { nonce: client.evidence.boot_id(), look: true }]);
        while client.evidence.report(1, false).bypass.is_empty() {
            sleep(FIRST_PAUSE).await;
        }
        asking.abort();
        let report = client.evidence.report(1, false);
        assert_eq!((report.bypass.len(), report.bypass[0].process.as_str()), (1, "curl"));
        assert!(report.bypass_look_age_ms.is_some() && report.agent_proof_age_ms.is_some());
        assert_eq!(report.redirect_set_again, 1, "it was gone");
        assert!(report.redirect_set_again_age_ms.is_some());
    }

    #[test]
    fn the_first_look_comes_soon_after_the_start_and_the_next_half_a_minute_later() {
        let waits: Vec<u64> = waits().take(4).map(|wait| wait.as_secs()).collect();
        assert_eq!(waits, [10, 30, 30, 30]);
    }

    #[test]
    fn words_of_a_newer_agent_are_shown_as_they_are() {
        let trouble = Trouble::Refused { reason: "SomethingNew".into(), sentence: "of tomorrow".into() };
        assert_eq!(trouble.message(), "SomethingNew: of tomorrow");
    }
}
