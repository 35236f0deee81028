//! A real Kubernetes in one network namespace of its own: a control plane, a bridge, and nodes that are nested
//! network, mount and PID namespaces. Everything it writes lies in one state directory.

pub mod api;
mod cgroups;
mod client;
mod control_plane;
mod diagnose;
mod down;
mod forward;
mod inside;
mod layout;
mod node;
mod pki;
pub mod plan;
pub mod processes;
mod reboot;
mod start;

pub use down::{Record, abandoned, clusters, down};
pub use forward::serve as forward;
pub use layout::{CONTROL_PLANE, Layout};
pub use start::Options;

use crate::prepare::Prepared;
use anyhow::Result;
use std::path::Path;
use std::process::Child;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// A running cluster. Dropping it takes it down, unless it is kept or was only attached to.
pub struct Cluster {
    layout: Layout,
    prepared: Prepared,
    record: Mutex<Record>,
    /// The process that waits for the cluster's first one, with the pipe whose end would end the cluster.
    starter: Mutex<Option<Child>>,
    nodes: u8,
    /// Whether dropping takes it down.
    ours: AtomicBool,
}

impl Cluster {
    /// The folder with everything of this cluster.
    #[must_use]
    pub fn state_dir(&self) -> &Path {
        &self.layout.state
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.layout.name()
    }

    /// Takes it down and looks whether anything is left.
    ///
    /// # Errors
    /// When something is left: with what it is.
    pub fn stop(self) -> Result<()> {
        self.ours.store(false, Ordering::Relaxed);
        self.end()
    }

    fn end(&self) -> Result<()> {
        let starter = self.starter.lock().ok().and_then(|mut starter| starter.take());
        let result = down(&self.layout);
        if let Some(mut starter) = starter {
            let _ = starter.wait();
        }
        result
    }

    fn record(&self) -> Record {
        self.record.lock().map(|record| record.clone()).unwrap_or_default()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.ours.load(Ordering::Relaxed)
            && let Err(error) = self.end()
        {
            crate::terminal::say(format_args!("{error:#}"));
        }
    }
}
