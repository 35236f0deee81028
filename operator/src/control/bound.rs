//! Runs a bound stream: joins [`Session`] with the socket, the index's changes, consistent reads and issuing.

use super::Control;
use super::frames::{self, FrameReader};
use super::pace::Pace;
use super::session::{Close, Introduction, Output, Session};
use super::sessions::SessionEntry;
use crate::issuing::{Holder, Refusal};
use crate::metrics::ConnectionEnd;
use bytes::Bytes;
use cinch_control::v1;
use cinch_control::v1::operator_message::Kind;
use cinch_control::v1::record::Kind as RecordKind;
use cinch_identity::SpiffeId;
use cinch_reason::Reason;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use std::collections::{HashSet, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Changes of the index within this time go out together.
const COALESCE: Duration = Duration::from_millis(50);
/// An address that could not be told (API server down) is tried again so much later.
const RETRY: Duration = Duration::from_secs(1);
/// Consistent reads of one stream at a time; the index bounds all of them together.
const RESOLVING: usize = 16;
/// While so much waits to be sent, nothing more is read.
const PENDING: usize = 256;

/// What a bound stream needs to run.
pub(super) struct Bound<'a> {
    pub(super) control: &'a Control,
    pub(super) entry: SessionEntry,
    pub(super) id: &'a SpiffeId,
    /// When the certificate that the proxy showed ends.
    pub(super) expires: Instant,
    pub(super) shutdown: &'a CancellationToken,
}

/// The moving parts of a running stream.
struct Running {
    session: Session,
    pending: VecDeque<Kind>,
    to_resolve: VecDeque<SocketAddr>,
    in_flight: HashSet<SocketAddr>,
    resolving: FuturesUnordered<BoxFuture<'static, (SocketAddr, v1::Record)>>,
    refresh_at: Option<Instant>,
    records: Pace,
    /// When the proxy last said something.
    heard: Instant,
}

enum Event {
    Message(Option<v1::ProxyMessage>),
    Changed,
    Refresh,
    Resolved(SocketAddr, v1::Record),
    Sent,
}

impl Bound<'_> {
    /// Runs until something ends it; what is still to be said is in the queue then.
    pub(super) async fn run<R: AsyncRead + Unpin, W: AsyncWrite + Unpin + Send + 'static>(
        self,
        reader: FrameReader<R>,
        writer: W,
        hello: &Introduction,
        first: Vec<Kind>,
    ) -> Close {
        let (queue, receiver) = mpsc::channel(frames::QUEUE);
        let mut writing = tokio::spawn(frames::write(writer, receiver));
        let running = Running {
            session: Session::new(hello),
            pending: first.into(),
            to_resolve: VecDeque::new(),
            in_flight: HashSet::new(),
            resolving: FuturesUnordered::new(),
            refresh_at: Some(Instant::now()),
            records: Pace::new(Instant::now()),
            heard: Instant::now(),
        };
        let close = tokio::select! {
            close = self.drive(running, reader, &queue) => close,
            end = &mut writing => {
                let end = end.unwrap_or(ConnectionEnd::Closed);
                return Close { end, refusal: None, why: "nothing more could be written" };
            }
        };
        if let Some(refusal) = &close.refusal {
            let mut last = VecDeque::from([Kind::Refused(refusal.message())]);
            if let Ok(chunk) = frames::chunk(&mut last) {
                let _ = queue.try_send(chunk);
            }
        }
        drop(queue);
        let _ = tokio::time::timeout(Duration::from_secs(2), &mut writing).await;
        writing.abort();
        close
    }

    async fn drive<R: AsyncRead + Unpin>(
        &self,
        mut running: Running,
        mut reader: FrameReader<R>,
        queue: &mpsc::Sender<Bytes>,
    ) -> Close {
        let mut changes = self.control.view.changes();
        let mut bundles = self.control.bundle.clone();
        let ended = |end, why| Close { end, refusal: None, why };
        loop {
            // A proxy reports evidence, so silence means that it is gone.
            let silence = sleep_until(running.heard + self.control.silence());
            let refresh_at = running.refresh_at.unwrap_or_else(Instant::now);
            let may_refresh = running.refresh_at.is_some() && running.pending.is_empty();
            let event = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return ended(ConnectionEnd::Shutdown, "the operator ends"),
                () = self.entry.superseded().cancelled() => {
                    return ended(ConnectionEnd::Superseded, "a newer stream of the pod took its place");
                }
                () = sleep_until(self.expires) => return ended(ConnectionEnd::Expired, "its certificate ended"),
                permit = queue.reserve(), if !running.pending.is_empty() => match send(permit, &mut running.pending) {
                    Ok(()) => Event::Sent,
                    Err(close) => return close,
                },
                Some((address, record)) = running.resolving.next() => Event::Resolved(address, record),
                () = sleep_until(refresh_at), if may_refresh => Event::Refresh,
                message = reader.next(), if running.pending.len() < PENDING => match message {
                    Ok(message) => Event::Message(message),
                    Err(error) => {
                        debug!(id = %self.id, %error, "a control stream could not be read");
                        return ended(error.end(), "the stream could not be read");
                    }
                },
                changed = changes.changed() => match changed {
                    Ok(()) => Event::Changed,
                    Err(_) => return ended(ConnectionEnd::Shutdown, "the index ended"),
                },
                Ok(()) = bundles.changed() => Event::Changed,
                () = silence => return ended(ConnectionEnd::Timeout, "the proxy was silent"),
            };
            if let Err(close) = self.handle(&mut running, event) {
                return close;
            }
        }
    }

    fn handle(&self, running: &mut Running, event: Event) -> Result<(), Close> {
        let view = self.control.view.as_ref();
        match event {
            Event::Sent => {}
            Event::Changed => {
                let soon = Instant::now() + COALESCE;
                running.refresh_at = Some(running.refresh_at.map_or(soon, |at| at.min(soon)));
            }
            Event::Refresh => {
                let bundle = self.control.bundle.borrow().clone();
                let mut outputs = running.session.refresh(view, &bundle)?;
                let begun = Instant::now();
                // Policies wait for no records.
                running.refresh_at = running.records.rests_until(begun);
                if running.refresh_at.is_none() {
                    outputs.extend(running.session.refresh_records(view));
                    let now = Instant::now();
                    running.records.looked(now, now.duration_since(begun));
                }
                self.apply(running, outputs)?;
            }
            Event::Resolved(address, record) => {
                running.in_flight.remove(&address);
                if record.kind() == RecordKind::Unspecified {
                    running.refresh_at.get_or_insert_with(|| Instant::now() + RETRY);
                }
                let output = running.session.resolved(address, record);
                self.apply(running, output.into_iter().collect())?;
            }
            Event::Message(None) => {
                return Err(Close { end: ConnectionEnd::Closed, refusal: None, why: "the proxy closed it" });
            }
            Event::Message(Some(message)) => {
                running.heard = Instant::now();
                // A kind that this version does not know is for a newer operator.
                if let Some(kind) = message.kind {
                    let outputs = running.session.message(kind, view)?;
                    self.apply(running, outputs)?;
                }
            }
        }
        self.start_resolving(running);
        Ok(())
    }

    fn apply(&self, running: &mut Running, outputs: Vec<Output>) -> Result<(), Close> {
        for output in outputs {
            match output {
                Output::Send(kind) => {
                    if matches!(kind, Kind::EvidenceAck(_)) {
                        self.control.metrics.evidence.inc();
                    }
                    running.pending.push_back(kind);
                }
                Output::Resolve(address) => {
                    if running.in_flight.insert(address) {
                        running.to_resolve.push_back(address);
                    }
                }
                Output::Renew(renew) => {
                    let certificate = self.renew(&renew, running.session.pod_uid())?;
                    running.pending.push_back(Kind::Certificate(certificate));
                }
                Output::Acknowledged(ack) => self.acknowledged(&ack),
            }
        }
        Ok(())
    }

    fn start_resolving(&self, running: &mut Running) {
        while running.resolving.len() < RESOLVING {
            let Some(address) = running.to_resolve.pop_front() else { return };
            let record = self.control.view.resolve(running.session.pod_uid(), address);
            running.resolving.push(Box::pin(async move { (address, record.await) }));
        }
    }

    fn renew(&self, renew: &v1::Renew, pod_uid: &str) -> Result<v1::Certificate, Close> {
        let refused = |refusal: Refusal| Close {
            end: ConnectionEnd::Refused,
            refusal: Some(refusal),
            why: "a renewal was refused",
        };
        if self.control.view.pod(pod_uid).is_none() {
            return Err(refused(Refusal::new(Reason::PodMismatch, "the pod is gone")));
        }
        self.control.issuing.renew(renew, &Holder { id: self.id, pod_uid }).map_err(refused)
    }

    fn acknowledged(&self, ack: &v1::Ack) {
        if !ack.nack.is_empty() {
            self.control.metrics.nacks.inc();
            let nack: String = ack.nack.chars().take(500).collect();
            warn!(id = %self.id, version = ack.policy_version, nack, "a proxy could not use a policy; it closes what the policy selects");
        }
        // An acknowledgement of something else carries no policy version.
        if ack.policy_version != 0 {
            self.entry.acknowledge(ack.policy_version, &ack.nack);
        }
    }
}

fn send(
    permit: Result<mpsc::Permit<'_, Bytes>, mpsc::error::SendError<()>>,
    pending: &mut VecDeque<Kind>,
) -> Result<(), Close> {
    let Ok(permit) = permit else {
        return Err(Close { end: ConnectionEnd::Closed, refusal: None, why: "the writer ended" });
    };
    match frames::chunk(pending) {
        Ok(chunk) => {
            permit.send(chunk);
            Ok(())
        }
        Err(_) => Err(Close {
            end: ConnectionEnd::Refused,
            refusal: Some(Refusal::new(Reason::Overloaded, "a message would be over 4 MiB")),
            why: "a message would be over the bound of the protocol",
        }),
    }
}
