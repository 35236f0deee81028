//! What a pod's ports accept: the namespace's lock today. Records and workload policies come from the same
//! function, so that both ends of a connection are told the same.

use super::model::PodInfo;
use super::state::State;
use bytes::{Bytes, BytesMut};
use cinch_control::v1;
use cinch_policy::{Mode, PortModes};
use sha2::{Digest, Sha256};
use std::net::IpAddr;

impl State {
    /// The modes of a pod's ports; `None` while its namespace is not known.
    pub(super) fn modes(&self, pod: &PodInfo) -> Option<PortModes> {
        let namespace = self.namespaces.get(&pod.namespace)?;
        let mode = if namespace.locked { Mode::Strict } else { Mode::Permissive };
        Some(PortModes::uniform(mode, []))
    }

    /// What one port of a pod accepts, for those who dial it.
    pub(super) fn port_mode(&self, pod: &PodInfo, port: u16) -> Mode {
        self.modes(pod).map_or(Mode::Permissive, |modes| modes.mode(port))
    }

    pub(super) fn workload_policy(&self, pod_uid: &str) -> Option<v1::WorkloadPolicy> {
        let pod = self.pods.get(pod_uid)?;
        let locked = self.namespaces.get(&pod.namespace)?.locked;
        let modes = self.modes(pod)?;
        let ports = modes
            .exceptions()
            .map(|(port, mode)| v1::PortMode { port: port.into(), mode: wire(mode).into() });
        let mut policy = v1::WorkloadPolicy {
            version: 0,
            mode: wire(modes.default_mode()).into(),
            ports: ports.collect(),
            policies: Vec::new(),
            locked,
        };
        let mut content = BytesMut::new();
        // The modes of all ports are far below the bound of a message.
        cinch_control::encode(&policy, &mut content).ok()?;
        policy.version = content_version(&content);
        Some(policy)
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
