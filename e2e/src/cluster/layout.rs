//! Where everything of a cluster is: files under its state directory, addresses in its network namespace.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// Every cluster's state is a folder in here: not under `/run`, `/var/lib` or `/var/log`, which nodes cover.
pub const STATES: &str = "/var/tmp/cinch-e2e";
/// The control plane's address on the bridge between it and the nodes.
pub const CONTROL_PLANE: Ipv4Addr = Ipv4Addr::new(10, 240, 0, 1);
/// The API server's port.
pub const API_PORT: u16 = 6443;
/// Addresses of Services.
pub const SERVICES: &str = "10.96.0.0/16";
/// The Service `default/kubernetes`: the first address of [`SERVICES`].
pub const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);
/// The Service `kube-system/kube-dns`.
pub const DNS_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
/// Addresses of all pods.
pub const PODS: &str = "10.244.0.0/16";
/// The bridge, which exists in the cluster's own network namespace only.
pub const BRIDGE: &str = "cinch0";
/// The node's end of its cable.
pub const NODE_LINK: &str = "e0";

/// A cluster's files.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The state directory.
    pub state: PathBuf,
    name: String,
}

impl Layout {
    /// The files of the cluster `name`.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self::within(Path::new(STATES), name)
    }

    /// The files of the cluster `name`, all in the folder `states`.
    #[must_use]
    pub fn within(states: &Path, name: &str) -> Self {
        Self { state: states.join(name), name: name.to_owned() }
    }

    /// The cluster's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A file or folder directly in the state directory.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.state.join(name)
    }

    /// A file of the public key infrastructure, or a kubeconfig made with it.
    #[must_use]
    pub fn pki(&self, name: &str) -> PathBuf {
        self.state.join("pki").join(name)
    }

    /// The kubeconfig of the cluster's administrator, as seen inside the cluster's network.
    #[must_use]
    pub fn admin(&self) -> PathBuf {
        self.pki("admin.conf")
    }

    /// The folder of the control plane's logs.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.file("logs")
    }

    /// The nodes of a cluster with `count` nodes: `node1`, `node2`, …
    #[must_use]
    pub fn nodes(&self, count: u8) -> Vec<Node> {
        (1..=count).map(|number| Node { number, state: self.file(&format!("node{number}")) }).collect()
    }

    /// The cgroup of a node, below each hierarchy's root.
    #[must_use]
    pub fn cgroup(&self, node: &str) -> String {
        format!("{}{node}", self.cgroup_prefix())
    }

    /// What the names of all the cluster's cgroups begin with.
    #[must_use]
    pub fn cgroup_prefix(&self) -> String {
        format!("cinch-e2e-{}-", self.name)
    }
}

/// A node's files and addresses.
#[derive(Debug, Clone)]
pub struct Node {
    number: u8,
    /// Its folder.
    pub state: PathBuf,
}

impl Node {
    /// Its name: `node1`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("node{}", self.number)
    }

    /// Its address on the bridge.
    #[must_use]
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 240, 0, 10 + self.number)
    }

    /// The addresses of its pods.
    #[must_use]
    pub fn pods(&self) -> String {
        format!("10.244.{}.0/24", self.number)
    }

    /// The control plane's end of its cable.
    #[must_use]
    pub fn cable(&self) -> String {
        format!("cinch-n{}", self.number)
    }

    /// A file or folder of it.
    #[must_use]
    pub fn file(&self, name: &str) -> PathBuf {
        self.state.join(name)
    }

    /// containerd's socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.file("containerd.sock")
    }
}
