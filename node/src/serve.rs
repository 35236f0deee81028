//! The sockets towards the kubelet and their order, so that a later agent takes over from an earlier one without
//! a moment in which nobody answers.

use crate::csi::registration::registration_server::RegistrationServer;
use crate::csi::v1::identity_server::IdentityServer;
use crate::csi::v1::node_server::NodeServer;
use crate::csi::{Driver, Plugin, Registered};
use crate::names::AGENT_DRIVER;
use crate::pods::Pods;
use crate::socket;
use anyhow::{Context, Result};
use futures::stream;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Router;

/// Name of the socket by which the kubelet gets to know us, in its directory of plugins.
///
/// The kubelet names the whole path, percent-encoded, as the authority of its calls there. Servers of HTTP/2 refuse
/// such a host as malformed, with good reason; before an `@` it passes as a user's name.
pub const REGISTRATION_SOCKET: &str = "cinch@node.cinch.dev-reg.sock";
/// Name of the socket of the CSI services, in the directory of the driver.
const CSI_SOCKET: &str = "csi.sock";
/// Only the kubelet, which is root, speaks to us.
const MODE: u32 = 0o600;
/// How often volumes are looked for that were made by an earlier agent in its last moments.
const ADOPTION: Duration = Duration::from_secs(10);

/// The directories of a kubelet that the agent works in.
#[derive(Debug, Clone)]
pub struct KubeletPaths {
    /// `pods`: the volumes.
    pub pods: PathBuf,
    /// `plugins/node.cinch.dev`: the CSI services.
    pub driver: PathBuf,
    /// `plugins_registry`: where the kubelet looks for plugins.
    pub registry: PathBuf,
}

impl KubeletPaths {
    /// Those of the kubelet whose root directory is `root`, `/var/lib/kubelet` nearly everywhere.
    #[must_use]
    pub fn below(root: &Path) -> Self {
        Self {
            pods: root.join("pods"),
            driver: root.join("plugins").join(AGENT_DRIVER),
            registry: root.join("plugins_registry"),
        }
    }
}

/// Serves the kubelet until `end`.
///
/// First the sockets of running pods, then those of the CSI services, last the registration: whoever is sent to us
/// finds us working. Names are replaced, never removed, also at the end: by then they may be a later agent's.
///
/// # Errors
/// When a socket can't be opened or a server fails.
pub async fn serve(
    paths: &KubeletPaths,
    node: &str,
    pods: Arc<Pods>,
    registered: watch::Sender<Registered>,
    end: CancellationToken,
) -> Result<()> {
    let adopted = pods.adopt();
    let driver = Driver::new(pods.clone(), node.to_owned());
    let csi = open(&paths.driver, CSI_SOCKET)?;
    // From here the kubelet speaks to us alone; what it had from an earlier agent since the first look is ours too.
    let late = pods.adopt();
    tracing::info!(pods = pods.count(), adopted, late, "serving");
    let plugin = Plugin::new(paths.driver.join(CSI_SOCKET).display().to_string(), registered);
    let services = Server::builder()
        .add_service(IdentityServer::new(driver.clone()))
        .add_service(NodeServer::new(driver));
    let registration = open(&paths.registry, REGISTRATION_SOCKET)?;
    let introduction = Server::builder().add_service(RegistrationServer::new(plugin));
    let socket = paths.driver.join(CSI_SOCKET);
    let adoption = keep_adopting(&pods, &socket);
    tokio::select! {
        ended = answer(csi, services, end.clone()) => ended.context("the CSI services ended"),
        ended = answer(registration, introduction, end.clone()) => ended.context("the registration ended"),
        () = adoption => Ok(()),
    }
}

fn open(directory: &Path, name: &str) -> Result<UnixListener> {
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let listener = socket::listen(directory, name, MODE);
    let listener = listener.with_context(|| directory.join(name).display().to_string())?;
    Ok(UnixListener::from_std(listener)?)
}

async fn answer(listener: UnixListener, services: Router, end: CancellationToken) -> Result<()> {
    let incoming = stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _): (UnixStream, _)| stream);
        Some((accepted, listener))
    });
    Ok(services.serve_with_incoming_shutdown(incoming, end.cancelled_owned()).await?)
}

/// Looks for volumes again and again, as long as the kubelet's way leads here: a later agent that has taken the
/// socket serves them then. Never returns.
async fn keep_adopting(pods: &Pods, socket: &Path) {
    let number = |path: &Path| fs::symlink_metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let own = number(socket);
    loop {
        sleep(ADOPTION).await;
        if number(socket) == own && pods.adopt() > 0 {
            tracing::info!("took over volumes that an earlier agent had made last");
        }
    }
}
