//! Wiring: settings in; watches, the review server and the health server run until SIGTERM.

use crate::certificate;
use crate::facts::{self, Caches};
use crate::health;
use crate::metrics::Metrics;
use crate::server;
use crate::settings::Settings;
use crate::state::State;
use anyhow::{Context, bail};
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Port of health and metrics.
const HEALTH_PORT: u16 = 8080;
/// How long reviews are served after SIGTERM: until endpoints have been taken from every node's rules.
const DRAIN: Duration = Duration::from_secs(5);

/// Runs the webhook until SIGTERM or SIGINT.
///
/// # Errors
/// No client, no port, or a part that must not end has ended.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let client = kube::Client::try_default().await.context("no access to the Kubernetes API")?;
    let (caches, metrics) = (Arc::new(Caches::default()), Arc::new(Metrics::default()));
    let state =
        Arc::new(State::new(Arc::clone(&caches), settings.sidecar(), settings.mesh(), Arc::clone(&metrics)));

    let mut tasks = JoinSet::new();
    facts::follow(&client, &caches, &metrics, &mut tasks);
    let (namespace, served) = (settings.namespace.clone(), Arc::clone(&state));
    tasks.spawn(async move { certificate::follow(client, &namespace, served).await });
    tasks.spawn(health::serve(listen(HEALTH_PORT)?, Arc::clone(&state)));

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = CancellationToken::new();
    let (serving, stopping) = (Arc::clone(&state), stop.clone());
    let port = settings.webhook.port;
    let mut reviews = tokio::spawn(async move {
        serving.until_serving().await;
        let listener = listen(port)?;
        tracing::info!(port, "serving reviews");
        server::serve(listener, serving, stopping).await;
        anyhow::Ok(())
    });

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = tasks.join_next() => bail!("a part of the webhook ended: {ended:?}"),
        ended = &mut reviews => bail!("the review server ended: {ended:?}"),
    }
    tracing::info!("draining");
    state.draining.cancel();
    tokio::time::sleep(DRAIN).await;
    stop.cancel();
    if state.serving().is_some() {
        reviews.await.context("the review server failed")??;
    }
    Ok(())
}

/// Listens on all addresses of both families, or on IPv4 where there is no IPv6.
fn listen(port: u16) -> anyhow::Result<TcpListener> {
    let dual: SocketAddr = (Ipv6Addr::UNSPECIFIED, port).into();
    let bound = TcpSocket::new_v6()
        .and_then(|socket| bind(socket, dual))
        .or_else(|_| TcpSocket::new_v4().and_then(|socket| bind(socket, ([0, 0, 0, 0], port).into())));
    bound.with_context(|| format!("port {port} can't be listened on"))
}

/// Waiting connections before the kernel refuses more.
const BACKLOG: u32 = 1024;

fn bind(socket: TcpSocket, address: SocketAddr) -> std::io::Result<TcpListener> {
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
