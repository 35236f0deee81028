//! The plain structs that the index keeps and answers with: what we need of a Kubernetes object, interned,
//! a few hundred bytes each. Conversion from API objects is in `convert`.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// Labels or annotations; equal maps are shared.
pub type Labels = Arc<BTreeMap<Arc<str>, Arc<str>>>;

/// A workload as people name it: the top of a pod's chain of owners.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkloadName {
    /// Namespace of the workload and its pods.
    pub namespace: Arc<str>,
    /// `Deployment`, `StatefulSet`, `DaemonSet`, `CronJob`, `Job`, `Rollout`, `ReplicaSet`, `Pod` or a
    /// controller's own kind.
    pub kind: Arc<str>,
    /// Name of the object of that kind.
    pub name: Arc<str>,
}

impl fmt::Display for WorkloadName {
    /// `namespace/name`, as status and events name a workload.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A pod's phase (`status.phase`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Accepted; containers are not all started.
    Pending,
    /// Bound to a node and started.
    Running,
    /// Ended without failure; the IP may belong to another pod already.
    Succeeded,
    /// Ended with failure; the IP may belong to another pod already.
    Failed,
    /// The node can not be asked.
    Unknown,
}

impl Phase {
    /// Nothing of the pod runs any more, and nothing will.
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// What a port is declared to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/2 in the clear.
    Http2,
    /// gRPC.
    Grpc,
    /// Something that is not to be read as HTTP.
    Other,
}

/// A TCP port that a container declares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PodPort {
    /// `containerPort`.
    pub number: u16,
    /// What its name says that it speaks.
    pub protocol: Option<Protocol>,
    /// `hostPort`, on `hostIP` or, when that is unspecified, on every address of the node.
    pub host: Option<(u16, Option<IpAddr>)>,
}

/// What the index knows of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodInfo {
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `status.podIPs`; empty until the sandbox has an address. On a host-network pod: the node's addresses.
    pub ips: Vec<IpAddr>,
    /// `spec.nodeName`; empty until scheduled.
    pub node: Arc<str>,
    /// `spec.serviceAccountName`, never empty.
    pub service_account: Arc<str>,
    /// The workload that the pod belongs to.
    pub workload: WorkloadName,
    /// Creation of the workload as far as it is known (of its ReplicaSet or Job), else of the pod; Unix ms.
    pub workload_created_unix_ms: u64,
    /// The pod has our sidecar, read from its immutable spec.
    pub injected: bool,
    /// The sidecar is the kind whose redirect the node agent sets.
    pub by_agent: bool,
    /// The pod shares its node's network.
    pub host_network: bool,
    /// `status.phase`.
    pub phase: Phase,
    /// The sidecar has started once, so containers of the app may have run.
    pub started: bool,
    /// Condition `Ready`.
    pub ready: bool,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// `metadata.labels`.
    pub labels: Labels,
    /// The TCP ports of its containers that a name or a port of the node makes of interest; equal lists are shared.
    pub ports: Arc<[PodPort]>,
    /// `metadata.creationTimestamp`, Unix ms.
    pub created_unix_ms: u64,
    /// `status.hostIPs`.
    pub host_ips: Vec<IpAddr>,
    /// The pod's node exists and its condition `Ready` is true.
    pub node_ready: bool,
    /// `spec.os.name` is `windows`.
    pub windows: bool,
    /// The kubelet made the pod from a file: admission and webhooks never saw it.
    pub mirror: bool,
}

impl PodInfo {
    /// Whether the pod holds its IPs: not ended, and not on the node's network.
    #[must_use]
    pub const fn owns_its_ips(&self) -> bool {
        !self.host_network && !self.phase.is_terminal()
    }
}

/// Who an address is, for evidence.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceName {
    /// A pod of a workload, now or within the last ten minutes.
    Workload {
        /// The workload.
        name: WorkloadName,
        /// When it was created as far as known (its ReplicaSet or Job, else the pod), Unix ms.
        created_unix_ms: u64,
    },
    /// A node: its addresses, and the gateway of its pod CIDR from which the kubelet probes.
    Node(Arc<str>),
    /// Nothing of the cluster.
    External(IpAddr),
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workload { name, .. } => name.fmt(f),
            Self::Node(name) => write!(f, "node {name}"),
            Self::External(ip) => write!(f, "{ip}"),
        }
    }
}

/// What the index knows of a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// For writes with a precondition.
    pub resource_version: Arc<str>,
    /// Label `cinch.dev/mesh: enabled`.
    pub enrolled: bool,
    /// Label `cinch.dev/injection: required`.
    pub injection_required: bool,
    /// Label `cinch.dev/mode: STRICT`: the lock.
    pub locked: bool,
    /// Label `cinch.dev/host-network: allowed`.
    pub host_network_allowed: bool,
    /// `metadata.labels`.
    pub labels: Labels,
    /// `metadata.annotations`, only those of `cinch.dev`.
    pub annotations: Labels,
    /// `metadata.deletionTimestamp` is set.
    pub terminating: bool,
    /// `metadata.creationTimestamp`, Unix ms.
    pub created_unix_ms: u64,
}
