//! Wires the rooms together. Every replica serves health and metrics and keeps the index warm; the leader does
//! all the rest. Losing the lease ends the process, which is the simplest fence there is.

use crate::accounts::Accounts;
use crate::ca::{CertificateAuthority, Keeper};
use crate::control::{self, Control, LiveView, Parts, Sessions};
use crate::evidence::EvidenceStore;
use crate::health;
use crate::index::sidecar::Ours;
use crate::index::{Index, IndexSettings};
use crate::issuing::Issuing;
use crate::issuing::claims::Rules;
use crate::issuing::cluster::ApiServer;
use crate::jwks::KeySets;
use crate::leader;
use crate::metrics::Metrics;
use crate::policies::BrokenPolicies;
use crate::pulse::Pulse;
use crate::settings::Settings;
use crate::{api_client, endpoint_slice, policies, posture, trust, webhook_certificate};
use anyhow::{Context, bail};
use futures::FutureExt;
use kube::Client;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How long the work may take to end after SIGTERM, before the lease is given back.
const GRACE: Duration = Duration::from_secs(4);

/// What stands still when a new leader can't list what decides.
const LISTS: &str = "the lists of a new leader";

/// How often it is asked whether the index is complete, besides its changes.
const SYNC_POLL: Duration = Duration::from_millis(200);

/// What every room may need.
#[derive(Clone)]
struct Common {
    client: Client,
    index: Index,
    keys: KeySets,
    settings: Arc<Settings>,
    metrics: Metrics,
    pulse: Pulse,
    /// Fires at SIGTERM.
    shutdown: CancellationToken,
}

/// Runs until SIGTERM.
///
/// # Errors
/// When something that the operator can't do without fails, or the lease is lost.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let client = api_client::connect().await?;
    let index = Index::new(IndexSettings {
        trust_domain: settings.trust_domain.clone(),
        sidecar: ours(&settings)?,
        mesh_cidrs: settings.mesh.cidrs.clone(),
        root_namespace: settings.root_namespace.clone(),
        trust_domain_aliases: settings.mesh.trust_domain_aliases.clone(),
        path_normalization: settings.mesh.path_normalization,
    });
    let shutdown = CancellationToken::new();
    let settings = Arc::new(settings);
    let metrics = Metrics::new();
    let keys = KeySets::new(&settings.jwks, &metrics);
    let pulse = Pulse::default();
    let common = Common { client, index, keys, settings, metrics, pulse, shutdown };
    info!(version = env!("CARGO_PKG_VERSION"), pod = common.settings.pod.name, "the operator starts");
    let mut tasks = JoinSet::new();
    tasks.spawn(stop_on_signal(common.shutdown.clone()));
    tasks.spawn(serve_health(common.clone()));
    let (index, client, shutdown) = (common.index.clone(), common.client.clone(), common.shutdown.clone());
    tasks.spawn(async move {
        index.run(client, shutdown).await;
        Ok("the index")
    });
    tasks.spawn(fetch_keys(common.clone()));
    tokio::select! {
        result = lead(&common) => result,
        ended = first_end(&mut tasks, &common.shutdown) => ended,
    }
}

/// By which our sidecar is known.
fn ours(settings: &Settings) -> anyhow::Result<Ours> {
    Ok(Ours {
        images: settings.images.allowed.clone(),
        trust_domain: settings.trust_domain.clone(),
        operator_id: settings.operator_id()?.to_string(),
    })
}

async fn stop_on_signal(shutdown: CancellationToken) -> anyhow::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM can not be handled")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT can not be handled")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("asked to end");
    shutdown.cancel();
    Ok("the signal handler")
}

async fn serve_health(common: Common) -> anyhow::Result<&'static str> {
    let address = SocketAddr::new(any_address(), health::PORT);
    let (index, pulse) = (common.index.clone(), common.pulse.clone());
    let checks = health::Checks {
        ready: Arc::new(move || index.synced()),
        stopped: Arc::new(move || pulse.stopped()),
    };
    health::serve(address, common.metrics.clone(), checks, common.shutdown.clone()).await?;
    Ok("the health port")
}

/// On every replica, so that a new leader has them at once.
async fn fetch_keys(common: Common) -> anyhow::Result<&'static str> {
    let settings = Arc::new(common.settings.jwks.clone());
    common.keys.run(common.index, settings, common.shutdown).await;
    Ok("the fetching of keys")
}

/// IPv4 and IPv6, where the machine has both.
fn any_address() -> IpAddr {
    let v6 = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    match std::net::TcpListener::bind((v6, 0)) {
        Ok(_) => v6,
        Err(_) => IpAddr::from([0, 0, 0, 0]),
    }
}

/// Resolves only when a task ended that must not end by itself.
async fn first_end(
    tasks: &mut JoinSet<anyhow::Result<&'static str>>,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    loop {
        match tasks.join_next().await {
            Some(Ok(Ok(_))) if shutdown.is_cancelled() => {}
            Some(Ok(Ok(what))) => bail!("{what} ended by itself"),
            Some(Ok(Err(error))) => return Err(error),
            Some(Err(error)) => return Err(error).context("a task failed"),
            // On shutdown it is for the leader's part to say when all is done.
            None => std::future::pending().await,
        }
    }
}

/// Stands by until the lease is ours, then works until SIGTERM or until it is lost.
async fn lead(common: &Common) -> anyhow::Result<()> {
    let settings = &common.settings;
    // Who leads must know everything: half an index would promise what is not true.
    tokio::select! {
        () = common.shutdown.cancelled() => return Ok(()),
        () = synced(&common.index) => {}
    }
    let lease = leader::acquire(
        common.client.clone(),
        &settings.namespace,
        &settings.pod.name,
        &settings.lease,
        &common.shutdown,
    );
    let Some(lease) = lease.await? else { return Ok(()) };
    common.metrics.leader.set(1);
    let release = CancellationToken::new();
    let mut holding = tokio::spawn(lease.hold(release.clone()));
    let worked = tokio::select! {
        lost = &mut holding => {
            let result = lost.context("the task of the lease failed")?;
            return result.and_then(|()| bail!("the lease ended by itself")).context("this operator leads no more");
        }
        worked = work(common) => worked,
    };
    common.metrics.leader.set(0);
    // Only when nothing writes any more may another begin.
    release.cancel();
    let _ = tokio::time::timeout(settings.lease.renew * 2, &mut holding).await;
    worked
}

async fn synced(index: &Index) {
    let mut changes = index.changes();
    while !index.synced() {
        // The last watcher to list may find nothing, which changes nothing.
        let _ = tokio::time::timeout(SYNC_POLL, changes.changed()).await;
    }
    info!("the index has listed everything");
}

/// Everything that only the leader does.
async fn work(common: &Common) -> anyhow::Result<()> {
    let Common { client, index, settings, pulse, shutdown, .. } = common;
    // Another led until a moment ago, and our watches may have died without a word before that: what proxies are told
    // now must not be older than what they have.
    pulse.beat(LISTS);
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = index.relist() => pulse.ended(LISTS),
    }
    let (keeper, authority) =
        Keeper::start(client.clone(), settings).await.context("the certificate authority")?;
    let sessions = Sessions::default();
    let evidence = EvidenceStore::new(common.index.clone());
    let mut rooms = JoinSet::new();
    rooms.spawn(keeper.run(shutdown.clone()).map(|()| "the certificate authority"));
    // A policy without its keys refuses tokens, and a proxy that knows no better one would take it.
    tokio::select! {
        () = shutdown.cancelled() => return Ok(()),
        () = common.keys.settled(&common.index) => {}
    }
    serve_control(common, &authority, &sessions, &evidence, &mut rooms).await?;
    spawn_rooms(common, &authority, &sessions, &evidence, &mut rooms);
    tokio::select! {
        () = shutdown.cancelled() => {}
        ended = rooms.join_next() => match ended {
            Some(Ok(what)) if !shutdown.is_cancelled() => bail!("{what} ended by itself"),
            Some(Err(error)) => return Err(error).context("a room of the leader failed"),
            Some(Ok(_)) | None => {}
        },
    }
    let all = async { while rooms.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, all).await.is_err() {
        warn!("not everything ended in time");
    }
    Ok(())
}

/// The rooms that need nothing to be ready but each other's handles.
fn spawn_rooms(
    common: &Common,
    authority: &CertificateAuthority,
    sessions: &Sessions,
    evidence: &EvidenceStore,
    rooms: &mut JoinSet<&'static str>,
) {
    let Common { client, index, keys, settings, metrics, pulse, shutdown } = common;
    rooms.spawn(evidence.clone().run(shutdown.clone()).map(|()| "the evidence store"));
    let bundle = authority.watch_bundle();
    let trust = trust::Parts {
        client: client.clone(),
        index: index.clone(),
        settings: Arc::clone(settings),
        pulse: pulse.clone(),
    };
    let trust = trust::run(trust, bundle, shutdown.clone());
    rooms.spawn(trust.map(|()| "the trust bundles"));
    let slice = endpoint_slice::run(client.clone(), Arc::clone(settings), shutdown.clone());
    rooms.spawn(slice.map(|()| "the endpoint slice"));
    let accounts = Accounts::default();
    let creating = accounts.clone().run(client.clone(), index.clone(), shutdown.clone());
    rooms.spawn(creating.map(|()| "the service accounts"));
    let broken = BrokenPolicies::default();
    let policies = policies::run(
        policies::Parts {
            client: client.clone(),
            index: index.clone(),
            sessions: sessions.clone(),
            keys: keys.clone(),
            broken: broken.clone(),
            settings: Arc::clone(settings),
            metrics: metrics.clone(),
        },
        shutdown.clone(),
    );
    rooms.spawn(policies.map(|()| "the status of policies"));
    let postures = posture::run(
        posture::Parts {
            client: client.clone(),
            index: index.clone(),
            accounts,
            evidence: evidence.clone(),
            sessions: sessions.clone(),
            broken,
            settings: Arc::clone(settings),
            metrics: metrics.clone(),
            pulse: pulse.clone(),
        },
        shutdown.clone(),
    );
    rooms.spawn(postures.map(|()| "the postures"));
    let webhook = webhook_certificate::run(client.clone(), Arc::clone(settings), shutdown.clone());
    rooms.spawn(webhook.map(|()| "the webhook's certificate"));
}

/// Listens on the control port before the endpoint slice leads anybody to it.
async fn serve_control(
    common: &Common,
    authority: &CertificateAuthority,
    sessions: &Sessions,
    evidence: &EvidenceStore,
    rooms: &mut JoinSet<&'static str>,
) -> anyhow::Result<()> {
    let Common { client, index, settings, metrics, shutdown, .. } = common;
    let operator = settings.operator_id()?;
    let (tls, again) = control::certificate::issue(authority, &operator)?;
    let (tls, tls_watch) = watch::channel(tls);
    let keep = control::certificate::keep(authority.clone(), operator.clone(), tls, again, shutdown.clone());
    rooms.spawn(keep.map(|()| "the operator's own certificate"));
    let rules = Rules { trust_domain: settings.trust_domain()?, operator, sidecar: ours(settings)? };
    let api = Arc::new(ApiServer::new(client.clone(), &settings.pod.name));
    let control = Arc::new(Control::new(Parts {
        view: Arc::new(LiveView { index: index.clone(), evidence: evidence.clone() }),
        issuing: Issuing::new(api, authority.clone(), rules, metrics.clone()),
        sessions: sessions.clone(),
        bundle: authority.watch_bundle(),
        tls: tls_watch,
        report_interval: settings.proxy.report_interval,
        metrics: metrics.clone(),
    }));
    let address = SocketAddr::new(any_address(), settings.control.port);
    let listener =
        TcpListener::bind(address).await.with_context(|| format!("{address} can not be listened on"))?;
    info!(%address, "the control port is open");
    rooms.spawn(control::serve(listener, control, shutdown.clone()).map(|()| "the control port"));
    Ok(())
}
