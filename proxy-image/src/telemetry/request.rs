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
        self.answer(telemetry, peer, kind).requests.fetch_add(1, Ordering::Relaxed);
        let measures = self.measure(telemetry, peer, MeasureKind { protocol, security });
        measures.duration.observe(microseconds(entry.duration));
        measures.request_bytes.observe(entry.received);
        measures.response_bytes.observe(entry.sent);
        telemetry.log().tell(entry, told.is_sampled);
    }

    fn answer(&mut self, telemetry: &Telemetry, peer: &str, kind: AnswerKind) -> Arc<AnswerSeries> {
        if let Some((_, series)) = self.answers.iter().find(|(of, _)| *of == kind) {
            return series.clone();
        }
        if self.answers.len() >= KEPT {
            self.answers.remove(0);
        }
        let series = telemetry.0.answers.get(peer, kind);
        self.answers.push((kind, series.clone()));
        series
    }

    fn measure(&mut self, telemetry: &Telemetry, peer: &str, kind: MeasureKind) -> Arc<MeasureSeries> {
        match &self.measures {
            Some((of, series)) if *of == kind => series.clone(),
            _ => {
                let series = telemetry.0.measures.get(peer, kind);
                self.measures = Some((kind, series.clone()));
                series
            }
        }
    }
}

fn microseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
