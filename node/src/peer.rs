//! Who asks: three sources that must agree before anything is done.
//!
//! The first is the socket, which the kubelet had made for one pod. The second is the process at its other end,
//! named by the kernel: its cgroup must be a container of that pod. The third is the container's name, by its
//! termination log. Out come the handles that the work needs: network namespace and cgroup.

use crate::cgroup::{CgroupError, container_of};
use crate::host::Host;
use crate::names::PROXY_CONTAINER;
use crate::process::ProcessHandle;
use crate::refusal::Refusal;
use cinch_reason::Reason;
use cinch_redirect::Exempt;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Of what is read from `/proc`, in bytes.
const LONGEST_FILE: u64 = 1024 * 1024;

/// The sidecar of a pod, as far as its redirect needs it.
#[derive(Debug)]
pub struct Sidecar {
    /// The network namespace of the process that asked.
    pub namespace: File,
    /// The cgroup of its container.
    pub exempt: Exempt,
    /// That cgroup's path, from the root of the hierarchy.
    pub group: String,
}

/// Examines the process `peer`, which asks over the socket of the pod `uid`.
///
/// # Errors
/// [`Refusal`]: whoever is not clearly the pod's sidecar.
pub fn examine(host: &Host, peer: &ProcessHandle, uid: &str) -> Result<Sidecar, Refusal> {
    let directory = host.proc.join(peer.id().to_string());
    let unseen = |what: &str, error: &io::Error| {
        Refusal::new(Reason::PeerUnknown, format!("{what} of process {}: {error}", peer.id()))
    };
    let text = |name: &str| read(&directory.join(name)).map_err(|error| unseen(name, &error));

    let container = container_of(&text("cgroup")?, uid).map_err(|error| of_cgroup(&error))?;
    let mounts = text("mountinfo")?;
    let name = host
        .pods_directory
        .container(&mounts, uid)
        .map_err(|error| Refusal::new(Reason::NotTheSidecar, format!("the process that asks: {error}")))?;
    if name != PROXY_CONTAINER {
        return Err(Refusal::new(Reason::NotTheSidecar, format!("the container {name:?} asks")));
    }
    let namespace =
        File::open(directory.join("ns/net")).map_err(|error| unseen("network namespace", &error))?;
    let of_peer = namespace.metadata().map_err(|error| unseen("network namespace", &error))?;
    if same(&of_peer, &host.network_namespace) {
        return Err(Refusal::new(Reason::HostNetwork, "the process that asks is on the network of the node"));
    }
    let id = cgroup_id(&host.cgroup_root, &container.path)?;
    // All that was read is of this one process, if it lives: its number was not given to another meanwhile.
    if !peer.is_alive() {
        return Err(Refusal::new(Reason::PeerUnknown, "the process that asks has ended"));
    }
    Ok(Sidecar { namespace, exempt: Exempt::Cgroup { id, level: container.level }, group: container.path })
}

/// A process may have as many mounts as it likes; those of a container are a few kilobytes.
pub(crate) fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?.take(LONGEST_FILE).read_to_string(&mut text)?;
    if read as u64 == LONGEST_FILE { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(text) }
}

/// Two paths lead to one file: here, to one namespace.
pub(crate) fn same(one: &Metadata, other: &Metadata) -> bool {
    (one.dev(), one.ino()) == (other.dev(), other.ino())
}

fn of_cgroup(error: &CgroupError) -> Refusal {
    let reason = match error {
        CgroupError::AnotherPod { .. } | CgroupError::NoPod(_) => Reason::PeerOfAnotherPod,
        CgroupError::NoUnified | CgroupError::NotSeparated(_) | CgroupError::Outside(_) => {
            Reason::NodeUnsupported
        }
        CgroupError::Gone(_) | CgroupError::NoContainer(_) => Reason::PeerUnknown,
    };
    Refusal::new(reason, format!("the process that asks: {error}"))
}

/// The number by which the kernel knows a cgroup is the inode of its directory.
fn cgroup_id(root: &Path, path: &str) -> Result<u64, Refusal> {
    let directory = root.join(path.trim_start_matches('/'));
    let metadata = fs::symlink_metadata(&directory).map_err(|error| {
        Refusal::new(
            Reason::NodeUnsupported,
            format!("the cgroup {} can not be seen: {error}", directory.display()),
        )
    })?;
    if !metadata.is_dir() {
        return Err(Refusal::new(Reason::NodeUnsupported, format!("{} is no cgroup", directory.display())));
    }
    Ok(metadata.ino())
}
