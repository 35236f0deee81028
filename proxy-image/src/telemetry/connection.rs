//! One TCP connection: counted when it has reached its other side, told when it is over.

use super::{TcpKind, TcpSeries, Telemetry, flags, security};
use crate::access_log::{Ends, Entry, Reporter, Ruling};
use crate::copy::End;
use crate::live::{Denial, Peer, Registered};
use cinch_identity::SpiffeId;
use cinch_reason::Reason;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

/// An open connection that is copied as it is. Dropped, it is over.
#[derive(Debug)]
pub struct ConnectionRecord {
    telemetry: Telemetry,
    series: Arc<TcpSeries>,
    reporter: Reporter,
    from: SocketAddr,
    to: SocketAddr,
    upstream: SocketAddr,
    /// The other end's SPIFFE ID, where it was proved.
    peer: Option<Arc<str>>,
    is_sampled: bool,
    begun: Instant,
    /// Bytes from the client, and to it.
    received: AtomicU64,
    sent: AtomicU64,
    ended: OnceLock<(End, Option<Denial>)>,
}

impl ConnectionRecord {
    /// An inbound connection that has reached the app. One that is read as HTTP is told request by request instead.
    #[must_use]
    pub fn inbound(telemetry: &Telemetry, registered: &Registered, from: SocketAddr) -> Option<Box<Self>> {
        if registered.is_http() {
            return None;
        }
        let subject = registered.subject();
        let peer = match &subject.peer {
            Peer::Unknown => None,
            Peer::Proved(id) => Some(id.as_str()),
        };
        let ends = telemetry.inbound(from, subject.destination, peer);
        Some(ConnectionRecord::open(telemetry, &ends, subject.destination))
    }

    /// An outbound connection that has reached `upstream`; `peer`: who has proved to be there.
    #[must_use]
    pub fn outbound(
        telemetry: &Telemetry,
        (from, to): (SocketAddr, SocketAddr),
        upstream: SocketAddr,
        peer: Option<&SpiffeId>,
    ) -> Box<Self> {
        let ends = telemetry.outbound(from, to, peer.map(SpiffeId::as_str));
        ConnectionRecord::open(telemetry, &ends, upstream)
    }

    fn open(telemetry: &Telemetry, ends: &Ends<'_>, upstream: SocketAddr) -> Box<Self> {
        let peer = match ends.reporter {
            Reporter::Destination => ends.source,
            Reporter::Source => ends.destination,
        };
        let kind =
            TcpKind { reporter: ends.reporter, security: security(ends.is_mutual), flags: flags::NONE };
        let (name, series) = telemetry.0.connections.get_with_peer(peer.unwrap_or_default(), kind);
        series.opened.fetch_add(1, Ordering::Relaxed);
        Box::new(ConnectionRecord {
            telemetry: telemetry.clone(),
            series,
            reporter: ends.reporter,
            from: ends.from,
            to: ends.to,
            upstream,
            peer: peer.map(|_| name),
            is_sampled: telemetry.log().samples(),
            begun: Instant::now(),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            ended: OnceLock::new(),
        })
    }

    /// So many bytes went to the pod's app.
    pub(crate) fn app_received(&self, bytes: u64) {
        match self.reporter {
            Reporter::Destination => self.client_sent(bytes),
            Reporter::Source => self.client_received(bytes),
        }
    }

    /// So many bytes came from the pod's app.
    pub(crate) fn app_sent(&self, bytes: u64) {
        match self.reporter {
            Reporter::Destination => self.client_received(bytes),
            Reporter::Source => self.client_sent(bytes),
        }
    }

    fn client_sent(&self, bytes: u64) {
        self.series.received.fetch_add(bytes, Ordering::Relaxed);
        self.received.fetch_add(bytes, Ordering::Relaxed);
    }

    fn client_received(&self, bytes: u64) {
        self.series.sent.fetch_add(bytes, Ordering::Relaxed);
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Says how it ended; `denial`: by what it was cut. Only the first word counts.
    pub(crate) fn ended(&self, end: End, denial: Option<&Denial>) {
        let _ = self.ended.set((end, denial.cloned()));
    }

    fn ends(&self) -> Ends<'_> {
        let peer = self.peer.as_deref();
        let ends = match self.reporter {
            Reporter::Destination => self.telemetry.inbound(self.from, self.to, peer),
            Reporter::Source => self.telemetry.outbound(self.from, self.to, peer),
        };
        Ends { upstream: Some(self.upstream), ..ends }
    }
}

impl Drop for ConnectionRecord {
    fn drop(&mut self) {
        let (end, denial) = match self.ended.get() {
            None => (None, None),
            Some((end, denial)) => (Some(*end), denial.as_ref()),
        };
        let flags = flags::of_end(end, self.reporter);
        if flags == flags::NONE {
            self.series.closed.fetch_add(1, Ordering::Relaxed);
        } else {
            let kind = TcpKind { reporter: self.reporter, security: security(self.peer.is_some()), flags };
            let series = self.telemetry.0.connections.get(self.peer.as_deref().unwrap_or_default(), kind);
            series.closed.fetch_add(1, Ordering::Relaxed);
        }
        let log = self.telemetry.log();
        // Who ends his own connection, however rudely, makes no error of it: many clients end all of theirs so.
        let is_told = self.is_sampled || !matches!(flags, flags::NONE | flags::DOWNSTREAM) || is_cut(end);
        if !log.is_on() || !is_told {
            return;
        }
        let denial_reason = denial.map(|denial| denial.reason);
        let cut = match end {
            Some(End::Cut(reason)) => Some(denial_reason.unwrap_or(reason)),
            _ => None,
        };
        let entry = Entry {
            ends: self.ends(),
            head: None,
            code: 0,
            grpc: None,
            flags,
            ruling: cut.map(|reason| ruling(reason, denial)),
            received: self.received.load(Ordering::Relaxed),
            sent: self.sent.load(Ordering::Relaxed),
            duration: self.begun.elapsed(),
        };
        log.tell(&entry, self.is_sampled);
    }
}

fn is_cut(end: Option<End>) -> bool {
    matches!(end, Some(End::Cut(_)))
}

fn ruling(reason: Reason, denial: Option<&Denial>) -> Ruling<'_> {
    Ruling {
        decision: flags::decision(reason),
        reason,
        policy: denial.and_then(|denial| denial.policy.as_ref()),
        rule: denial.and_then(|denial| denial.rule),
        detail: "",
    }
}
