//! A node whose power fails: every process in it ends at once, its network namespaces and memory file systems are
//! gone, and it starts again with what lies on its disk.

use super::layout::Node;
use super::{Cluster, cgroups};
use crate::process::capture;
use crate::wait::{Seen, until};
use anyhow::{Context, Result};
use std::fs;
use std::time::Duration;

/// The kernel takes a namespace's last things apart after its last process.
const GONE: Duration = Duration::from_secs(60);
const LINK: Duration = Duration::from_secs(10);
/// Importing the images again takes the longest.
const STARTED: Duration = Duration::from_secs(180);

impl Cluster {
    /// Ends a node without a word to anybody and starts it again; returns when its kubelet has been started. What
    /// the API server says of its pods is from before until the kubelet has looked at them.
    ///
    /// # Errors
    /// When there is no such node, or it does not start again.
    pub fn fail_power_of(&self, name: &str) -> Result<()> {
        let nodes = self.layout.nodes(self.nodes);
        let node =
            nodes.iter().find(|node| node.name() == name).with_context(|| format!("no node {name}"))?;
        let record = self.record();
        let first = record.nodes.iter().find(|(found, _)| found == name).map(|(_, first)| *first);
        let first = first.with_context(|| format!("node {name} does not run"))?;
        first.kill();
        until(&format!("node {name} to be off"), GONE, || {
            let off = !first.runs() && !self.has_cable(node)?;
            Ok(if off {
                Seen::Done(())
            } else {
                Seen::Not("its processes or its cable are there".to_owned())
            })
        })?;
        cgroups::remove(&self.layout.cgroup(name));
        let done = node.file("started");
        fs::remove_file(&done).with_context(|| format!("{} can't be removed", done.display()))?;
        self.start_node(node)?;
        until(&format!("node {name} to be started"), STARTED, || {
            Ok(if done.exists() { Seen::Done(()) } else { Seen::Not("its steps go on".to_owned()) })
        })
    }

    /// Whether the node's cable is there: it goes with the node's network namespace, some time after its last
    /// process.
    fn has_cable(&self, node: &Node) -> Result<bool> {
        let mut look = self.in_network("ip");
        Ok(capture(look.args(["link", "show", &node.cable()]), None, LINK)?.ok())
    }
}
