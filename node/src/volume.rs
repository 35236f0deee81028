//! The directory of a pod's volume: the kubelet names it, we make it, with one socket in it, and remove it.
//!
//! Nothing is mounted: the kubelet bind-mounts the directory into the container itself. So the agent needs no
//! shared mounts, and a later agent that puts a new socket into the directory is seen by running pods.

use crate::names::{AGENT_DRIVER, AGENT_SOCKET};
use crate::socket::{self, FileId};
use serde::Deserialize;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Where the kubelet keeps volumes of CSI drivers in a pod's directory.
const CSI_VOLUMES: &str = "volumes/kubernetes.io~csi";
/// What it notes about each of them.
const NOTES: &str = "vol_data.json";
/// The directory that is the volume.
const MOUNT: &str = "mount";
/// Searchable by the sidecar's user, writable by nobody else.
const DIRECTORY_MODE: u32 = 0o755;
/// The sidecar runs as a user of its own.
const SOCKET_MODE: u32 = 0o666;

/// One volume of one pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Volume {
    /// The pod's UID: a directory's name, so no path in itself.
    pub pod: String,
    path: PathBuf,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Notes {
    driver_name: String,
}

/// Letters, digits, dashes and dots: nothing that leads elsewhere.
fn is_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    !text.is_empty() && text.len() <= 253 && !text.starts_with('.') && text.bytes().all(plain)
}

impl Volume {
    /// The volume that the kubelet means by `target`, which must be a path below the directory `pods` in the form
    /// that it gives to volumes of CSI drivers.
    #[must_use]
    pub fn at(pods: &Path, target: &str) -> Option<Self> {
        let rest = target.strip_prefix(pods.to_str()?)?.strip_prefix('/')?;
        let (pod, rest) = rest.split_once('/')?;
        let (name, mount) = rest.strip_prefix(CSI_VOLUMES)?.strip_prefix('/')?.split_once('/')?;
        let fits = is_name(pod) && is_name(name) && mount == MOUNT;
        fits.then(|| Self { pod: pod.to_owned(), path: target.into() })
    }

    /// All volumes of ours that the kubelet has noted below `pods` and that were made.
    #[must_use]
    pub fn all(pods: &Path) -> Vec<Self> {
        let mut found = Vec::new();
        for pod in names_in(pods) {
            let volumes = pods.join(&pod).join(CSI_VOLUMES);
            for name in names_in(&volumes) {
                let directory = volumes.join(name);
                if is_ours(&directory.join(NOTES)) && directory.join(MOUNT).is_dir() {
                    found.push(Self { pod: pod.clone(), path: directory.join(MOUNT) });
                }
            }
        }
        found
    }

    /// Makes the directory, if it is not there, and opens the socket in it; with the file by which it is known.
    ///
    /// # Errors
    /// The system's error.
    pub fn open(&self) -> io::Result<(UnixListener, FileId)> {
        match fs::DirBuilder::new().mode(DIRECTORY_MODE).create(&self.path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let staged = socket::stage(&self.path, AGENT_SOCKET, SOCKET_MODE)?;
        let file = staged.file();
        Ok((staged.put_in_place()?, file))
    }

    /// The file of the socket in it.
    #[must_use]
    pub fn socket(&self) -> Option<FileId> {
        socket::file_at(&self.path.join(AGENT_SOCKET))
    }

    /// Removes the directory with all that is in it; nothing there is no error.
    ///
    /// # Errors
    /// The system's error.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Whether its directory is there.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.path.is_dir()
    }
}

fn names_in(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| is_name(name)).collect()
}

fn is_ours(notes: &Path) -> bool {
    let text = fs::read(notes).unwrap_or_default();
    serde_json::from_slice::<Notes>(&text).is_ok_and(|notes| notes.driver_name == AGENT_DRIVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &str = "0b1f7c52-6f0e-4a7e-9d43-5a3c2f7a9e11";

    #[test]
    fn only_paths_of_volumes_of_csi_drivers_are_taken() {
        let pods = Path::new("/var/lib/kubelet/pods");
        let target = format!("/var/lib/kubelet/pods/{POD}/volumes/kubernetes.io~csi/cinch-agent/mount");
        assert_eq!(Volume::at(pods, &target).unwrap().pod, POD);
        for wrong in [
            String::new(),
            "/".to_owned(),
            "/etc".to_owned(),
            "/var/lib/kubelet/pods".to_owned(),
            target.replace("/var", "var"),
            target.replace(POD, ".."),
            target.replace(POD, ""),
            target.replace(POD, &format!("{POD}/..")),
            target.replace("cinch-agent", ".."),
            target.replace("cinch-agent", "a/b"),
            target.replace("cinch-agent", "a b"),
            target.replace("/mount", ""),
            target.replace("/mount", "/mount/x"),
            target.replace("/mount", "/mount/"),
            target.replace("/mount", "/.."),
            target.replace("kubernetes.io~csi", "kubernetes.io~empty-dir"),
            target.replace("/kubelet/pods", "/kubelet/podsx"),
        ] {
            assert_eq!(Volume::at(pods, &wrong), None, "{wrong}");
        }
    }

    /// A pod's directory with the volumes that a kubelet would have noted.
    fn noted(pods: &Path, pod: &str, volume: &str, notes: &str, made: bool) {
        let directory = pods.join(pod).join(CSI_VOLUMES).join(volume);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(NOTES), notes).unwrap();
        if made {
            fs::create_dir(directory.join(MOUNT)).unwrap();
        }
    }

    #[test]
    fn volumes_are_found_again_by_what_the_kubelet_noted() {
        let tree = tempfile::tempdir().unwrap();
        let ours = r#"{"attachmentID":"csi-1","driverName":"node.cinch.dev","nodeName":"n1","specVolID":"cinch-agent","volumeHandle":"csi-2","volumeLifecycleMode":"Ephemeral"}"#;
        noted(tree.path(), POD, "cinch-agent", ours, true);
        noted(tree.path(), POD, "other", &ours.replace("node.cinch.dev", "csi.example.com"), true);
        noted(tree.path(), "not-yet-made", "cinch-agent", ours, false);
        noted(tree.path(), "broken", "cinch-agent", "{", true);
        fs::create_dir_all(tree.path().join("empty")).unwrap();
        let found = Volume::all(tree.path());
        let target = tree.path().join(POD).join(CSI_VOLUMES).join("cinch-agent").join(MOUNT);
        assert_eq!(found, [Volume::at(tree.path(), target.to_str().unwrap()).unwrap()]);
        assert_eq!(Volume::all(Path::new("/does/not/exist")), []);
    }

    #[test]
    fn a_volume_is_made_twice_and_removed_twice() {
        let tree = tempfile::tempdir().unwrap();
        let target = tree.path().join(POD).join(CSI_VOLUMES).join("cinch-agent").join(MOUNT);
        let volume = Volume::at(tree.path(), target.to_str().unwrap()).unwrap();
        assert_eq!(volume.open().unwrap_err().kind(), ErrorKind::NotFound, "the kubelet makes the parent");
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        volume.open().unwrap();
        volume.open().unwrap();
        assert!(target.join(AGENT_SOCKET).exists());
        // Whoever could write there must not keep the pod from ending.
        fs::create_dir(target.join("litter")).unwrap();
        fs::write(target.join("litter/file"), "x").unwrap();
        volume.remove().unwrap();
        assert!(!target.exists() && target.parent().unwrap().exists());
        volume.remove().unwrap();
    }
}
