//! Requests: counted, measured and told when they are over.

use super::{AnswerKind, AnswerSeries, MeasureKind, MeasureSeries, Telemetry, security};
use crate::access_log::{Entry, Reporter};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Kinds of answers whose handles one connection keeps; of most connections there are one or two.
const KEPT: usize = 8;

/// A request that is over.
pub struct Told<'a> {
    /// What the log says of it. Of its ends, source and security are those of the connection.
    pub entry: Entry<'a>,
    /// It is a call of gRPC.
    pub is_grpc: bool,
    /// It is told even if nothing was wrong with it.
    pub is_sampled: bool,
}

/// The handles of one connection, looked up when they are first needed.
#[derive(Debug, Default)]
pub struct Handles {
    answers: Vec<(AnswerKind, Arc<AnswerSeries>)>,
    measures: Option<(MeasureKind, Arc<MeasureSeries>)>,
}

impl Handles {
    /// Counts a request, and tells of it as the log's settings have it.
    pub fn record(&mut self, telemetry: &Telemetry, told: &Told<'_>) {
        let entry = &told.entry;
        let peer = match entry.ends.reporter {
            Reporter::Destination => entry.ends.source,
            Reporter::Source => entry.ends.destination,
        };
        let peer = peer.unwrap_or_default();
        let protocol = if told.is_grpc { "grpc" } else { "http" };
        let security = security(entry.ends.is_mutual);
        let kind =
            AnswerKind { protocol, security, code: Some(entry.code), grpc: entry.grpc, flags: entry.flags };
        if let Some(answers) = self.answer(telemetry, peer, kind) {
            answers.requests.fetch_add(1, Ordering::Relaxed);
        }
        if let Some(measures) = self.measure(telemetry, peer, MeasureKind { protocol, security }) {
            measures.duration.observe(microseconds(entry.duration));
            measures.request_bytes.observe(entry.received);
            measures.response_bytes.observe(entry.sent);
        }
        telemetry.log().tell(entry, told.is_sampled);
    }

    /// Always one. It is lent, because a count of its users would cost as much as what it counts.
    fn answer(&mut self, telemetry: &Telemetry, peer: &str, kind: AnswerKind) -> Option<&AnswerSeries> {
        let known = self.answers.iter().position(|(of, _)| *of == kind);
        let place = known.unwrap_or_else(|| {
            if self.answers.len() >= KEPT {
                self.answers.remove(0);
            }
            if self.answers.capacity() == 0 {
                // Mostly all answers of a connection are of one kind.
                self.answers.reserve_exact(1);
            }
            self.answers.push((kind, telemetry.0.answers.get(peer, kind)));
            self.answers.len() - 1
        });
        self.answers.get(place).map(|(_, series)| &**series)
    }

    /// Always one, as of [`Handles::answer`].
    fn measure(&mut self, telemetry: &Telemetry, peer: &str, kind: MeasureKind) -> Option<&MeasureSeries> {
        if self.measures.as_ref().is_none_or(|(of, _)| *of != kind) {
            self.measures = Some((kind, telemetry.0.measures.get(peer, kind)));
        }
        self.measures.as_ref().map(|(_, series)| &**series)
    }
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
