//! The sockets towards the kubelet and their order, so that a later agent takes over from an earlier one without
//! a moment in which nobody answers. It takes over only when it can do the work itself, and whoever was taken over from
//! takes the place back when nobody who works has it any more.

use crate::csi::registration::registration_server::RegistrationServer;
use crate::csi::v1::identity_server::IdentityServer;
use crate::csi::v1::node_server::NodeServer;
use crate::csi::{Driver, Plugin, Registered};
use crate::incumbent::{Patience, ask};
use crate::names::AGENT_DRIVER;
use crate::pods::Pods;
use crate::socket::{self, FileId, Staged};
use anyhow::{Context, Result};
use futures::stream;
use std::fs;
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
/// How often an agent looks whether the kubelet's way still leads to it, and who answers where it does not.
pub const PACE: Duration = Duration::from_secs(2);
/// Among so many of these looks is one for volumes that another agent made in its last moments.
const ADOPTION: u32 = 5;

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

/// Serves the kubelet until `end`, with a look each `pace` whether its way still leads here.
///
/// An agent whose node can't do what is asked of it leaves the place to one that answers. Names are replaced, never
/// removed, also at the end: by then they may be a later agent's.
///
/// # Errors
/// When a socket can't be opened at the start, or a server fails. An agent that has served tries again.
pub async fn serve(
    paths: &KubeletPaths,
    node: &str,
    pods: Arc<Pods>,
    registered: watch::Sender<Registered>,
    pace: Duration,
    end: CancellationToken,
) -> Result<()> {
    let socket = paths.driver.join(CSI_SOCKET);
    let driver = Driver::new(pods.clone(), node.to_owned());
    let plugin = Plugin::new(socket.display().to_string(), registered);
    tokio::select! {
        () = wait_for_a_reason(&pods, &socket, pace) => {}
        () = end.cancelled() => return Ok(()),
    }
    let registration = paths.registry.join(REGISTRATION_SOCKET);
    let mut taken = take_over(paths, &pods)?;
    loop {
        let ways = [(socket.as_path(), taken.files.0), (registration.as_path(), taken.files.1)];
        let services = Server::builder()
            .add_service(IdentityServer::new(driver.clone()))
            .add_service(NodeServer::new(driver.clone()));
        let introduction = Server::builder().add_service(RegistrationServer::new(plugin.clone()));
        // What leads here still is answered until the whole way does again.
        let again = async {
            until_needed_again(&pods, ways, pace).await;
            take_back(paths, &pods, pace).await
        };
        taken = tokio::select! {
            ended = answer(taken.csi, services, end.clone()) => return ended.context("the CSI services ended"),
            ended = answer(taken.registration, introduction, end.clone()) => {
                return ended.context("the registration ended");
            }
            taken = again => taken,
        };
    }
}

/// Leads the kubelet's way here again. What keeps an agent from that may pass: it tries until it can.
async fn take_back(paths: &KubeletPaths, pods: &Pods, pace: Duration) -> Taken {
    loop {
        match take_over(paths, pods) {
            Ok(taken) => return taken,
            Err(error) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the kubelet's way can not be led here; trying again"
                );
                sleep(pace).await;
            }
        }
    }
}

/// What the kubelet speaks to.
struct Taken {
    csi: UnixListener,
    registration: UnixListener,
    /// Of the socket of the CSI services, and of that of the registration.
    files: (FileId, FileId),
}

/// Leads the kubelet's way here. All that can fail is done before anything is replaced; then first the sockets of
/// running pods, then that of the CSI services, last the registration: whoever is sent to us finds us working.
fn take_over(paths: &KubeletPaths, pods: &Pods) -> Result<Taken> {
    let csi = stage(&paths.driver, CSI_SOCKET)?;
    let registration = stage(&paths.registry, REGISTRATION_SOCKET)?;
    let files = (csi.file(), registration.file());
    let adopted = pods.adopt();
    let csi = put_in_place(csi)?;
    // From here the kubelet speaks to us alone; what it had from another agent since the first look is ours too.
    let late = pods.adopt();
    tracing::info!(pods = pods.count(), adopted, late, "serving");
    Ok(Taken { csi, registration: put_in_place(registration)?, files })
}

fn stage(directory: &Path, name: &str) -> Result<Staged> {
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    socket::sweep(directory, name);
    socket::stage(directory, name, MODE).with_context(|| directory.join(name).display().to_string())
}

fn put_in_place(staged: Staged) -> Result<UnixListener> {
    Ok(UnixListener::from_std(staged.put_in_place()?)?)
}

/// Returns at once for an agent that works: it is the later one. One with a fault would only refuse, and comes in
/// when nobody answers, so that pods learn why, or when the fault is gone.
async fn wait_for_a_reason(pods: &Pods, socket: &Path, pace: Duration) {
    let mut patience = Patience::default();
    let mut told = false;
    while let Some(fault) = pods.fault() {
        let incumbent = ask(socket).await;
        if patience.is_at_end(incumbent, true) {
            return;
        }
        if !told {
            tracing::warn!(%fault, ?incumbent, "the agent before this one goes on serving");
            told = true;
        }
        sleep(pace).await;
    }
}

/// Looks for volumes of other agents as long as the kubelet's `ways` lead here, to the CSI services and to the
/// registration. When another has taken the first that does not do the work, returns: the place is to be taken back. So
/// it does when the second alone was taken: of two that came at once, each has one then, and the kubelet would not find
/// the services again.
async fn until_needed_again(pods: &Pods, ways: [(&Path, FileId); 2], pace: Duration) {
    let leads_here = |(socket, own): (&Path, FileId)| socket::file_at(socket) == Some(own);
    let [services, registration] = ways;
    let mut patience = Patience::default();
    let mut looks = 0_u32;
    loop {
        sleep(pace).await;
        if leads_here(services) {
            if !leads_here(registration) {
                tracing::warn!("the kubelet's registration leads elsewhere and is taken back");
                return;
            }
            looks = (looks + 1) % ADOPTION;
            if looks == 0 && pods.adopt() > 0 {
                tracing::info!("took over volumes that another agent had made last");
            }
            continue;
        }
        let incumbent = ask(services.0).await;
        if patience.is_at_end(incumbent, pods.fault().is_some()) {
            tracing::warn!(?incumbent, "another agent took over and does not serve: its place is taken back");
            return;
        }
    }
}

async fn answer(listener: UnixListener, services: Router, end: CancellationToken) -> Result<()> {
    let incoming = stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _): (UnixStream, _)| stream);
        Some((accepted, listener))
    });
    Ok(services.serve_with_incoming_shutdown(incoming, end.cancelled_owned()).await?)
}
