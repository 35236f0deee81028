//! What a pod's ports accept and what its proxy enforces. Records for those who dial a pod and the policy of the
//! pod itself come from the same function, so that both ends of a connection are told the same.

use super::model::PodInfo;
use super::policies::Composed;
use super::state::State;
use bytes::Bytes;
use cinch_control::v1;
use cinch_policy::Mode;
use sha2::{Digest, Sha256};
use std::net::IpAddr;
use std::sync::Arc;

impl State {
    /// What a pod enforces; `None` while its namespace is not known, or the policies are not.
    pub(super) fn composed(&self, pod: &PodInfo) -> Option<Arc<Composed>> {
        let namespace = self.namespaces.get(&pod.namespace)?;
        let known = self.policies.synced();
        known.then(|| self.policies.composed(&namespace.name, &pod.labels, namespace.locked))
    }

    /// What one port of a pod accepts, for those who dial it.
    pub(super) fn port_mode(&self, pod: &PodInfo, port: u16) -> Mode {
        // Nobody dials in plaintext because we don't know.
        self.composed(pod).map_or(Mode::Permissive, |composed| composed.modes.mode(port))
    }

    pub(super) fn workload_policy(&self, pod_uid: &str) -> Option<Arc<v1::WorkloadPolicy>> {
        let pod = self.pods.get(pod_uid)?;
        Some(self.composed(pod)?.policy_with(self.declared(pod)))
    }
}

/// The wire's word for a mode.
pub(super) fn wire(mode: Mode) -> v1::Mode {
    match mode {
        Mode::Disable => v1::Mode::Disable,
        Mode::Permissive => v1::Mode::Permissive,
        Mode::Strict => v1::Mode::Strict,
    }
}

/// A version that follows from the content alone, so that every leader says the same; never 0, which means
/// "none" on the wire.
pub(super) fn content_version(content: &[u8]) -> u64 {
    let digest = Sha256::digest(content);
    let head = digest.iter().take(8).fold(0u64, |version, byte| (version << 8) | u64::from(*byte));
    head.max(1)
}

/// An address as the wire carries it: 4 or 16 bytes.
pub(super) fn ip_bytes(ip: IpAddr) -> Bytes {
    match ip {
        IpAddr::V4(ip) => Bytes::copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => Bytes::copy_from_slice(&ip.octets()),
    }
}
