//! `cinch-proxy run`: wires the parts, in the order in which they must come up, and takes them down again.
//!
//! Two threads: the data path has one with its own runtime, everything else shares the main thread. Start:
//! settings, listeners, data path, the node agent (in agent mode), trust files, first certificate, control stream;
//! ready when the rest is there.
//! End (SIGTERM): no new connections, tunnels drain, open connections finish within a bound, the last report.

use crate::access_log::AccessLog;
use crate::agent::{AgentClient, REFUSED_FOR_GOOD};
use crate::config::Config;
use crate::context::{Context, InboundPolicy};
use crate::control::{Control, trust};
use crate::credentials::{CredentialStore, is_current};
use crate::discovery::RecordCache;
use crate::evidence::Evidence;
use crate::health::{Doorway, Readiness, VirtualServer};
use crate::kept::Kept;
use crate::limits::Limits;
use crate::listeners::Listeners;
use crate::live::Live;
use crate::metrics::{ControlMetrics, Metrics};
use crate::path_metrics::{Direction, PathMetrics};
use crate::probes::ProbeTable;
use crate::proofs::Proofs;
use crate::settings::PodSettings;
use crate::standalone::{self, StaticPeers};
use crate::tuning::Tuning;
use crate::{http_filter, memory, process, selftest};
use anyhow::{Context as _, Result, anyhow};
use cinch_identity::SpiffeId;
use cinch_reason::Reason;
use cinch_redirect::RedirectConfig;
use parking_lot::Mutex;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Without a certificate after this time the process ends and says why: the kubelet hides what probes answer.
const FIRST_CERTIFICATE: Duration = Duration::from_secs(20);
/// How long idle tunnels may take to close, and the data path to end.
const GOODBYE: Duration = Duration::from_millis(200);
/// How long the last report may take.
const LAST_REPORT: Duration = Duration::from_secs(3);
/// Reports and proofs until the operator says how often.
const INTERVAL: Duration = Duration::from_secs(10);

/// Runs in a pod, with the operator.
#[must_use]
pub fn in_pod() -> ExitCode {
    end(start_in_pod())
}

/// Runs by a file, without a control plane.
#[must_use]
pub fn standalone(config: &Path) -> ExitCode {
    end(start_standalone(config))
}

fn end(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn main_runtime() -> Result<tokio::runtime::Runtime> {
    if let Err(error) = process::harden() {
        tracing::warn!(%error, "the process could not be hardened");
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("runtime")
}

/// What both ways of running share.
struct Parts {
    evidence: Arc<Evidence>,
    path_metrics: Arc<PathMetrics>,
    kept: Arc<Kept>,
    http: Arc<http_filter::Shared>,
    live: Arc<Live>,
    limits: Limits,
    drain: CancellationToken,
    end: CancellationToken,
}

impl Parts {
    fn new(tuning: &Tuning) -> Self {
        let limits = tuning.limits.clone();
        let limits = match memory::of_container() {
            Some(memory) => memory::fitting(limits, memory),
            None => limits,
        };
        process::raise_descriptor_limit(limits.connections);
        let log = AccessLog::start(&tuning.access_log).unwrap_or_else(|error| {
            tracing::error!(%error, "there will be no access log");
            AccessLog::default()
        });
        let path_metrics = Arc::new(PathMetrics::with_log(log));
        Self {
            evidence: Arc::new(Evidence::within(&limits, path_metrics.limit_refusals.clone())),
            kept: Kept::new(limits.kept_bytes, &path_metrics),
            http: http_filter::Shared::new(&limits, &path_metrics),
            path_metrics,
            live: Arc::default(),
            limits,
            drain: CancellationToken::new(),
            end: CancellationToken::new(),
        }
    }

    /// Says who the pod is, for metrics and the access log.
    fn introduce(&self, identity: &SpiffeId) {
        self.path_metrics.telemetry.set_own(identity.clone());
    }

    /// The metrics page and the server of the virtual ports, which is started.
    fn open_ports(
        &self,
        readiness: Arc<Readiness>,
        control: &ControlMetrics,
        probes: ProbeTable,
        pod: Option<IpAddr>,
    ) -> Arc<Doorway> {
        let metrics = Metrics::new(self.evidence.clone(), readiness.clone(), &self.path_metrics, control)
            .at_most(self.limits.metrics_per_second);
        let server = VirtualServer {
            readiness,
            probes,
            pod,
            metrics: Arc::new(metrics),
            patience: self.limits.probe_timeout,
            head_bytes: self.limits.probe_head_bytes,
            connections: self.limits.probe_connections,
            path: self.path_metrics.clone(),
        };
        let (doorway, serve) = server.open();
        tokio::spawn(serve);
        Arc::new(doorway)
    }

    /// Ends the data path: politely, and little later than `bound`.
    async fn drain(&self, mut data: oneshot::Receiver<()>, bound: Duration) {
        let (begin, open) = (Instant::now(), self.path_metrics.open_connections());
        self.drain.cancel();
        let (mut ended, mut left) = (false, 1);
        while !ended && left > 0 && begin.elapsed() < bound {
            while self.path_metrics.open_connections() > 0 && begin.elapsed() < bound {
                sleep(Duration::from_millis(10)).await;
            }
            // What still drains now are idle tunnels, and what had to be accepted first.
            ended = self.goodbye(&mut data).await;
            left = self.path_metrics.open_connections();
        }
        if !ended && left > 0 {
            // Their ends must not look like complete ones.
            self.end.cancel();
            let _ = timeout(GOODBYE, data).await;
        }
        if left > 0 {
            self.path_metrics.count_limit("drain_timeout");
        }
        tracing::info!(took = ?begin.elapsed(), open, left, "drained");
    }
}

impl Parts {
    /// Waits for the end of the data path, in which no app connection is open; says whether it has come. A client that
    /// is slow has perhaps not read that its tunnel ends, and has said OPEN meanwhile: were the process gone, the
    /// kernel would answer with a reset, which no client may take for a refusal. One that lives answers at once.
    async fn goodbye(&self, data: &mut oneshot::Receiver<()>) -> bool {
        let begin = Instant::now();
        loop {
            if timeout(GOODBYE, &mut *data).await.is_ok() {
                return true;
            }
            let is_left = self.path_metrics.open_tunnels(Direction::Inbound) == 0;
            if is_left || self.path_metrics.open_connections() > 0 || begin.elapsed() >= self.limits.settle {
                return false;
            }
        }
    }
}

impl Drop for Parts {
    /// The last lines of the access log are those that explain an end.
    fn drop(&mut self) {
        self.path_metrics.telemetry.log().close(GOODBYE);
    }
}

/// SIGTERM or SIGINT.
struct Termination(Signal, Signal);

impl Termination {
    fn new() -> Result<Self> {
        Ok(Self(signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?))
    }

    async fn requested(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
        }
        tracing::info!("told to end");
    }
}

fn start_in_pod() -> Result<()> {
    let settings = PodSettings::read(|name| std::env::var(name).ok()).inspect_err(|error| {
        let log = Path::new(process::TERMINATION_LOG);
        process::write_termination_message(log, &Reason::SidecarShape.message_with(&error.to_string()));
    })?;
    main_runtime()?.block_on(run_in_pod(settings))
}

async fn run_in_pod(settings: PodSettings) -> Result<()> {
    let mut termination = Termination::new()?;
    let ports = RedirectConfig::default();
    let listeners =
        Listeners::in_pod(ports.inbound_port, ports.outbound_port, settings.tuning.limits.listen_backlog)?;
    let parts = Parts::new(&settings.tuning);
    parts.introduce(&settings.identity);
    let control = Arc::new(pod_control(settings, &parts));
    let mut certificate = control.credentials.subscribe();

    let doorway = parts.open_ports(
        control.readiness.clone(),
        &control.metrics,
        control.settings.probes.clone(),
        control.settings.pod_ips.first().copied(),
    );
    let own: Arc<[IpAddr]> = control.settings.pod_ips.clone().into();
    let (_own, own_addresses) = watch::channel(own);
    let data = listeners.serve(Arc::new(Context {
        credentials: control.credentials.subscribe(),
        proofs: Proofs::new(control.credentials.subscribe()),
        policy: control.policy.subscribe(),
        live: parts.live.clone(),
        discovery: control.records.clone(),
        evidence: parts.evidence.clone(),
        metrics: parts.path_metrics.clone(),
        own_addresses,
        probes: doorway,
        kept: parts.kept.clone(),
        http: parts.http.clone(),
        limits: parts.limits.clone(),
        drain: parts.drain.clone(),
        end: parts.end.clone(),
    }))?;
    let mut data = data;
    if let Some(socket) = control.settings.agent_socket.clone() {
        let agent = agent_client(&control, &parts, socket);
        tokio::select! {
            () = termination.requested() => return Ok(()),
            asked = agent.first() => asked?,
            _ = &mut data => return Err(anyhow!("the data path ended")),
        }
        tokio::spawn(async move { agent.keep_asking().await });
    }
    let begin = Instant::now();
    let stream = start_control(&control, &parts);
    tokio::select! {
        () = termination.requested() => {}
        error = missing_certificate(&control, &mut certificate, begin) => return Err(error),
        _ = &mut data => return Err(anyhow!("the data path ended")),
    }
    parts.drain(data, parts.limits.drain_timeout).await;
    control.finish.cancel();
    let _ = timeout(LAST_REPORT, stream).await;
    Ok(())
}

/// Nothing is dialled before its first answer: this container may not be exempt yet.
fn agent_client(control: &Control, parts: &Parts, socket: PathBuf) -> AgentClient {
    control.readiness.await_agent();
    AgentClient {
        socket,
        evidence: parts.evidence.clone(),
        readiness: control.readiness.clone(),
        termination_log: control.settings.termination_log.clone(),
        patience: REFUSED_FOR_GOOD,
    }
}

fn pod_control(settings: PodSettings, parts: &Parts) -> Control {
    let mut metrics = ControlMetrics::default();
    metrics.discovery.limits = parts.path_metrics.limit_refusals.clone();
    let credentials = CredentialStore::new(settings.tuning.records);
    let policy = watch::Sender::new(None::<Arc<InboundPolicy>>);
    let readiness = Readiness::in_pod(parts.evidence.clone(), credentials.subscribe(), policy.subscribe());
    Control {
        settings,
        credentials,
        policy,
        judged: parts.live.judged(),
        records: Arc::new(RecordCache::new(&parts.limits, metrics.discovery.clone())),
        evidence: parts.evidence.clone(),
        unknown_keys: parts.http.unknown_keys.clone(),
        readiness: Arc::new(readiness),
        interval: watch::Sender::new(INTERVAL),
        metrics,
        last_error: Mutex::new(None),
        finish: CancellationToken::new(),
    }
}

/// Starts the watch of the trust files, the self-test and the client of the operator.
fn start_control(control: &Arc<Control>, parts: &Parts) -> tokio::task::JoinHandle<()> {
    let (trust_sender, trust) = watch::channel(None);
    let settings = &control.settings;
    let told = control.clone();
    tokio::spawn(trust::watch(
        settings.trust_directory.clone(),
        settings.trust_domain.clone(),
        trust_sender,
        move |problem| *told.last_error.lock() = Some(Reason::ControlUnreachable.message_with(&problem)),
    ));
    let failures = control.metrics.self_test_failures.clone();
    tokio::spawn(selftest::run(parts.evidence.clone(), control.interval.subscribe(), failures));
    let client = control.clone();
    tokio::spawn(async move { client.run(trust).await })
}

/// Returns, with the reason, only when no certificate came in time.
async fn missing_certificate(
    control: &Control,
    certificate: &mut watch::Receiver<Option<Arc<crate::context::Credentials>>>,
    begin: Instant,
) -> anyhow::Error {
    let left = FIRST_CERTIFICATE.saturating_sub(begin.elapsed());
    let held = |held: &Option<Arc<_>>| held.as_deref().is_some_and(is_current);
    if timeout(left, certificate.wait_for(held)).await.is_ok() {
        return std::future::pending().await;
    }
    let unknown = || Reason::ControlUnreachable.message_with("no attempt has ended yet");
    let message = control.last_error.lock().clone().unwrap_or_else(unknown);
    process::write_termination_message(&control.settings.termination_log, &message);
    anyhow!("no certificate after {} s: {message}", FIRST_CERTIFICATE.as_secs())
}

fn start_standalone(path: &Path) -> Result<()> {
    let config = Config::load(path)?;
    main_runtime()?.block_on(run_standalone(config))
}

async fn run_standalone(config: Config) -> Result<()> {
    let mut termination = Termination::new()?;
    let (listen, backlog) = (&config.listen, config.settings.limits.listen_backlog);
    let listeners = match listen.both_families {
        true => Listeners::in_pod(listen.inbound.port(), listen.outbound.port(), backlog)?,
        false => Listeners::at(listen.inbound, listen.outbound, backlog)?,
    };
    let parts = Parts::new(&config.settings);
    let credentials = Arc::new(CredentialStore::new(config.settings.records));
    let (svid, bundle) = standalone::load_identity(&config)?;
    parts.introduce(svid.id());
    let metrics = ControlMetrics::default();
    metrics.certificate_expiry.set(i64::try_from(svid.not_after()).unwrap_or(i64::MAX));
    credentials.install(svid, bundle)?;
    let policy = watch::Sender::new(Some(Arc::new(standalone::load_policy(&config, 1)?)));
    let readiness =
        Readiness::standalone(parts.evidence.clone(), credentials.subscribe(), policy.subscribe());
    let doorway = parts.open_ports(Arc::new(readiness), &metrics, ProbeTable::default(), None);
    let (_own, own_addresses) = watch::channel(Arc::from(standalone::own_addresses()));
    let mut data = listeners.serve(Arc::new(Context {
        credentials: credentials.subscribe(),
        proofs: Proofs::new(credentials.subscribe()),
        policy: policy.subscribe(),
        live: parts.live.clone(),
        discovery: Arc::new(StaticPeers::new(config.peers.clone())),
        evidence: parts.evidence.clone(),
        metrics: parts.path_metrics.clone(),
        own_addresses,
        probes: doorway,
        kept: parts.kept.clone(),
        http: parts.http.clone(),
        limits: parts.limits.clone(),
        drain: parts.drain.clone(),
        end: parts.end.clone(),
    }))?;
    tracing::info!(inbound = %config.listen.inbound, outbound = %config.listen.outbound, "serving by file");
    tokio::spawn(standalone::reload(config, credentials, policy));
    tokio::select! {
        () = termination.requested() => {}
        _ = &mut data => return Err(anyhow!("the data path ended")),
    }
    parts.drain(data, parts.limits.drain_timeout).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path_metrics::Transport;

    #[tokio::test]
    async fn the_drain_waits_for_connections_on_their_way() {
        let parts = Parts::new(&Tuning::default());
        let (done, data) = oneshot::channel();
        let opening = parts.path_metrics.opening();
        let work = async {
            parts.drain.cancelled().await;
            sleep(Duration::from_millis(400)).await;
            let open = parts.path_metrics.connection(Direction::Outbound, Transport::Plaintext);
            drop(opening);
            sleep(Duration::from_millis(100)).await;
            drop(open);
            assert!(!parts.end.is_cancelled());
            done.send(()).unwrap();
        };
        let (begin, limit) = (Instant::now(), Duration::from_secs(30));
        tokio::join!(parts.drain(data, limit), work);
        assert!((Duration::from_millis(500)..limit).contains(&begin.elapsed()));
        assert!(!parts.end.is_cancelled());
    }

    #[tokio::test]
    async fn the_end_waits_for_clients_that_have_not_yet_left_their_tunnels_and_not_for_ever() {
        let mut parts = Parts::new(&Tuning::default());
        parts.limits.settle = Duration::from_secs(30);
        let (done, data) = oneshot::channel();
        let tunnel = parts.path_metrics.tunnel_open(Direction::Inbound);
        let work = async {
            parts.drain.cancelled().await;
            sleep(GOODBYE * 3).await;
            drop(tunnel);
            done.send(()).expect("the process is still there");
        };
        tokio::join!(parts.drain(data, Duration::from_secs(30)), work);

        let mut parts = Parts::new(&Tuning::default());
        parts.limits.settle = GOODBYE;
        let _tunnel = parts.path_metrics.tunnel_open(Direction::Inbound);
        let (_done, data) = oneshot::channel();
        parts.drain(data, Duration::from_secs(30)).await;
        assert!(!parts.end.is_cancelled());
    }

    #[tokio::test]
    async fn what_is_open_at_the_end_of_the_drain_is_cut_and_nothing_else() {
        for open in [true, false] {
            let parts = Parts::new(&Tuning::default());
            let _open = open.then(|| parts.path_metrics.opening());
            let (_done, data) = oneshot::channel();
            parts.drain(data, Duration::from_millis(50)).await;
            assert_eq!(parts.end.is_cancelled(), open, "idle tunnels may close in order");
            assert_eq!(parts.path_metrics.limit_refusals.of("drain_timeout"), u64::from(open));
        }
    }
}
