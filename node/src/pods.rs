//! The pods of the node that have a socket, each with the task that serves it.
//!
//! In come volumes, from the kubelet or found again after a restart; each has one task until it is removed.

use crate::agent::{Agent, Memory};
use crate::socket::FileId;
use crate::volume::Volume;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// After a failure to accept: descriptors may be short, and come back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Which pods are served.
pub struct Pods {
    directory: PathBuf,
    agent: Arc<Agent>,
    served: Mutex<HashMap<Volume, Served>>,
}

struct Served {
    task: JoinHandle<()>,
    /// Of the socket that the task answers at.
    file: FileId,
}

impl Pods {
    /// Serves nobody yet. `directory` is the kubelet's `pods`.
    #[must_use]
    pub fn new(directory: PathBuf, agent: Arc<Agent>) -> Self {
        Self { directory, agent, served: Mutex::default() }
    }

    /// The volume at a path that the kubelet gave.
    #[must_use]
    pub fn volume(&self, target: &str) -> Option<Volume> {
        Volume::at(&self.directory, target)
    }

    /// Makes the volume and serves its socket, in place of who did before.
    ///
    /// # Errors
    /// The system's error.
    pub fn publish(&self, volume: Volume) -> io::Result<()> {
        let (listener, file) = volume.open()?;
        let listener = UnixListener::from_std(listener)?;
        let task = tokio::spawn(serve(listener, volume.pod.clone(), self.agent.clone()));
        let mut served = self.served.lock();
        if let Some(before) = served.insert(volume, Served { task, file }) {
            before.task.abort();
        }
        self.agent.metrics().set_pods(served.len());
        Ok(())
    }

    /// Ends the service and removes the volume; one that is not there is no error.
    ///
    /// # Errors
    /// The system's error.
    pub fn unpublish(&self, volume: &Volume) -> io::Result<()> {
        let mut served = self.served.lock();
        if let Some(before) = served.remove(volume) {
            before.task.abort();
        }
        self.agent.metrics().set_pods(served.len());
        drop(served);
        volume.remove()
    }

    /// Takes over what another agent made, or put its own socket into, and forgets what is gone; returns how many were
    /// taken over.
    pub fn adopt(&self) -> usize {
        self.forget_missing();
        let mut adopted = 0;
        for volume in Volume::all(&self.directory) {
            let found = volume.socket();
            // A task is not enough: what it answers at may have lost its name to another agent.
            if self.served.lock().get(&volume).is_some_and(|served| Some(served.file) == found) {
                continue;
            }
            let pod = volume.pod.clone();
            match self.publish(volume) {
                Ok(()) => adopted += 1,
                // Its pod ended meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => tracing::warn!(%pod, %error, "the pod's socket could not be opened again"),
            }
        }
        adopted
    }

    fn forget_missing(&self) {
        let mut served = self.served.lock();
        served.retain(|volume, served| {
            let stays = volume.exists();
            if !stays {
                served.task.abort();
            }
            stays
        });
        self.agent.metrics().set_pods(served.len());
    }

    /// What keeps their requests from being answered.
    #[must_use]
    pub fn fault(&self) -> Option<String> {
        self.agent.fault()
    }

    /// How many pods are served.
    #[must_use]
    pub fn count(&self) -> usize {
        self.served.lock().len()
    }
}

/// One at a time: a pod that floods its socket waits for itself.
async fn serve(listener: UnixListener, pod: String, agent: Arc<Agent>) {
    let mut memory = Memory::default();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => agent.serve(stream, &pod, &mut memory).await,
            Err(error) => {
                tracing::warn!(%pod, %error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
