//! The metrics page by Istio's names: made anew whenever somebody asks, from what the tables hold.

use super::table::Whose;
use super::{AnswerKind, AnswerSeries, MeasureKind, MeasureSeries, OTHER, TcpKind, TcpSeries, Telemetry};
use crate::access_log::Reporter;
use cinch_identity::SpiffeId;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, MetricEncoder};
use prometheus_client::metrics::MetricType;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Where something is not known, as Istio says it.
const UNKNOWN: &str = "unknown";

type Labels<'a> = Vec<(&'static str, Cow<'a, str>)>;
type NoExemplar = [(&'static str, &'static str); 0];

/// The metrics with Istio's names.
#[derive(Debug)]
pub(super) struct Page(pub(super) Telemetry);

/// Names of a workload, as its identity proves them.
struct Names<'a> {
    workload: &'a str,
    namespace: &'a str,
    principal: &'a str,
}

const NOBODY: Names<'static> = Names { workload: UNKNOWN, namespace: UNKNOWN, principal: UNKNOWN };
const OTHERS: Names<'static> = Names { workload: OTHER, namespace: OTHER, principal: OTHER };

impl<'a> Names<'a> {
    fn of(id: &'a SpiffeId) -> Names<'a> {
        Names {
            workload: id.service_account().unwrap_or(UNKNOWN),
            namespace: id.namespace().unwrap_or(UNKNOWN),
            principal: id.as_str(),
        }
    }
}

/// Who and whom, for any metric.
fn ends(telemetry: &Telemetry, whose: &Whose, reporter: Reporter) -> Labels<'static> {
    let own = telemetry.0.own.get();
    let peer = match whose {
        Whose::Peer(id) => SpiffeId::parse(id).ok(),
        Whose::Others => None,
    };
    let own = own.map_or(NOBODY, Names::of);
    let peer = match (whose, &peer) {
        (_, Some(id)) => Names::of(id),
        (Whose::Peer(_), None) => NOBODY,
        (Whose::Others, None) => OTHERS,
    };
    let (source, destination) = match reporter {
        Reporter::Source => (own, peer),
        Reporter::Destination => (peer, own),
    };
    [
        ("reporter", reporter.word()),
        ("source_workload", source.workload),
        ("source_workload_namespace", source.namespace),
        ("source_canonical_service", source.workload),
        ("source_principal", source.principal),
        ("destination_workload", destination.workload),
        ("destination_workload_namespace", destination.namespace),
        ("destination_canonical_service", destination.workload),
        ("destination_principal", destination.principal),
        // Connections keep the app's own address, so nothing says through which Service they came.
        ("destination_service", UNKNOWN),
    ]
    .map(|(name, value)| (name, Cow::Owned(value.to_owned())))
    .into()
}

impl TcpKind {
    fn labels(self, telemetry: &Telemetry, whose: &Whose) -> Labels<'static> {
        let mut labels = ends(telemetry, whose, self.reporter);
        labels.push(("request_protocol", "tcp".into()));
        labels.push(("connection_security_policy", self.security.into()));
        labels.push(("response_flags", self.flags.into()));
        labels
    }
}

impl AnswerKind {
    fn labels(self, telemetry: &Telemetry, whose: &Whose) -> Labels<'static> {
        let shared = MeasureKind { protocol: self.protocol, security: self.security };
        let mut labels = shared.labels(telemetry, whose);
        labels.push(("response_code", self.code.map_or(OTHER.into(), |code| code.to_string().into())));
        labels.push(("response_flags", self.flags.into()));
        let grpc = self.grpc.map(|status| status.to_string()).unwrap_or_default();
        labels.push(("grpc_response_status", grpc.into()));
        labels
    }
}

impl MeasureKind {
    fn labels(self, telemetry: &Telemetry, whose: &Whose) -> Labels<'static> {
        let mut labels = ends(telemetry, whose, Reporter::Destination);
        labels.push(("request_protocol", self.protocol.into()));
        labels.push(("connection_security_policy", self.security.into()));
        labels
    }
}

fn count(metric: &mut MetricEncoder<'_>, labels: &Labels<'_>, value: &AtomicU64) -> fmt::Result {
    let value = value.load(Ordering::Relaxed);
    metric.encode_family(labels)?.encode_counter::<NoExemplar, _, f64>(&value, None)
}

type Row<K, S> = (Whose, K, Arc<S>);
/// Name, help, and which of a series' values it is.
type Column<S, V> = (&'static str, &'static str, fn(&S) -> &V);

const TCP: [Column<TcpSeries, AtomicU64>; 4] = [
    ("tcp_connections_opened", "TCP connections that reached their other side.", |series| &series.opened),
    ("tcp_connections_closed", "TCP connections that are over.", |series| &series.closed),
    ("tcp_received_bytes", "Bytes that clients sent.", |series| &series.received),
    ("tcp_sent_bytes", "Bytes that were sent to clients.", |series| &series.sent),
];

const MEASURES: [Column<MeasureSeries, super::Histogram>; 3] = [
    ("request_duration_milliseconds", "From a request to the end of its answer.", |series| &series.duration),
    ("request_bytes", "Sizes of the bodies of requests.", |series| &series.request_bytes),
    ("response_bytes", "Sizes of the bodies of answers.", |series| &series.response_bytes),
];

impl Page {
    fn tcp(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let rows: Vec<Row<TcpKind, TcpSeries>> = self.0.0.connections.all();
        for (name, help, value) in TCP {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            // Under the flags of a failure only ends are counted.
            for (whose, kind, series) in &rows {
                let value = value(series);
                if kind.flags == super::flags::NONE || value.load(Ordering::Relaxed) > 0 {
                    count(&mut metric, &kind.labels(&self.0, whose), value)?;
                }
            }
        }
        Ok(())
    }

    fn requests(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let rows: Vec<Row<AnswerKind, AnswerSeries>> = self.0.0.answers.all();
        let help = "HTTP requests that were answered, or lost.";
        let mut metric = encoder.encode_descriptor("requests", help, None, MetricType::Counter)?;
        for (whose, kind, series) in &rows {
            count(&mut metric, &kind.labels(&self.0, whose), &series.requests)?;
        }
        Ok(())
    }

    fn measures(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let rows: Vec<Row<MeasureKind, MeasureSeries>> = self.0.0.measures.all();
        for (name, help, histogram) in MEASURES {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
            for (whose, kind, series) in &rows {
                let labels = kind.labels(&self.0, whose);
                let (sum, count, buckets) = histogram(series).read();
                metric.encode_family(&labels)?.encode_histogram::<NoExemplar>(sum, count, &buckets, None)?;
            }
        }
        Ok(())
    }
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.requests(&mut encoder)?;
        self.measures(&mut encoder)?;
        self.tcp(&mut encoder)
    }
}
