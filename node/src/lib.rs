//! The node agent: sets the redirect of a pod when its sidecar asks, so that no pod needs a capability for it.
//!
//! It is a CSI driver of ephemeral volumes. The kubelet has it make a volume for each injected pod: a directory
//! with one Unix socket, mounted into the sidecar alone. In comes a request over such a socket; the agent finds
//! out by itself who asks ([`peer`]), loads the table in the pod's network namespace, proves it by a dial of its
//! own ([`netns`]) and answers, or refuses with a reason that the pod's status shows. With its answer goes what the
//! kernel shows to pass by the sidecar all the same ([`look`]).

pub mod agent;
pub mod bounds;
pub mod bypass;
pub mod cgroup;
pub mod csi;
pub mod health;
pub mod host;
pub mod incumbent;
pub mod limit;
pub mod look;
pub mod metrics;
pub mod mounts;
pub mod names;
pub mod netlink;
pub mod netns;
pub mod owner;
pub mod peer;
pub mod pods;
pub mod process;
pub mod refusal;
pub mod run;
pub mod serve;
pub mod socket;
pub mod sockets;
pub mod volume;
