//! What the agent knows of its node, and whether the node can do what is asked of it.
//!
//! In go paths; out comes a [`Host`], or the first thing that is missing, in words for an administrator.

use crate::mounts::PodsDirectory;
use crate::netns;
use rustix::system::uname;
use std::fs::{self, Metadata};
use std::path::{Path, PathBuf};

/// `socket cgroupv2` came with it.
const OLDEST_KERNEL: (u32, u32) = (5, 13);

/// The node, as far as requests need it.
#[derive(Debug)]
pub struct Host {
    /// `/proc`, of a PID namespace that all pods are visible in.
    pub proc: PathBuf,
    /// The root of the cgroup v2 hierarchy.
    pub cgroup_root: PathBuf,
    /// Where the kubelet keeps its pods, as mounts name it.
    pub pods_directory: PodsDirectory,
    /// The node's own network namespace, which is nobody's to change.
    pub network_namespace: Metadata,
}

/// Looks at the node.
///
/// # Errors
/// What is missing. No request can be answered then.
pub fn look(proc: &Path, cgroups: &Path) -> Result<Host, String> {
    kernel_is_new_enough(&uname().release().to_string_lossy())?;
    let text =
        |path: PathBuf| fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()));
    let own = PodsDirectory::learn(&text(proc.join("self/mountinfo"))?).map_err(|error| error.to_string())?;
    let first = proc.join("1/ns/net");
    let network_namespace = fs::metadata(&first)
        .map_err(|error| format!("{}: {error} (the agent needs hostPID and SYS_PTRACE)", first.display()))?;
    Ok(Host {
        proc: proc.to_owned(),
        cgroup_root: unified_root(cgroups)?,
        pods_directory: own,
        network_namespace,
    })
}

/// As [`look`] on the real node, with the table tried out.
///
/// # Errors
/// As [`look`], and what the kernel refused.
pub fn look_and_try(proc: &Path, cgroups: &Path) -> Result<Host, String> {
    let host = look(proc, cgroups)?;
    if fs::read_link(proc.join("self/ns/pid")).ok() != fs::read_link(proc.join("1/ns/pid")).ok() {
        return Err("the agent does not share the PID namespace of the node (hostPID)".to_owned());
    }
    netns::try_table().map_err(|refused| format!("the table of the redirect was refused: {refused}"))?;
    Ok(host)
}

fn kernel_is_new_enough(release: &str) -> Result<(), String> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= OLDEST_KERNEL => Ok(()),
        _ => {
            Err(format!("the kernel {release} can not match sockets by cgroup: 5.13 is the oldest that can"))
        }
    }
}

/// Where v2 is mounted: alone, or beside v1 as systemd does it. Its root has a list of controllers.
fn unified_root(mount: &Path) -> Result<PathBuf, String> {
    let candidates = [mount.to_owned(), mount.join("unified")];
    candidates
        .into_iter()
        .find(|root| root.join("cgroup.controllers").is_file())
        .ok_or_else(|| format!("there is no cgroup v2 hierarchy at {0} or {0}/unified", mount.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_apart() {
        for (release, enough) in [
            ("6.18.44-fc-v445", true),
            ("5.13", true),
            ("5.13.0-1-amd64", true),
            ("10.0.1", true),
            ("5.12.19", false),
            ("4.18.0-553.el8.x86_64", false),
            ("", false),
            ("linux", false),
        ] {
            assert_eq!(kernel_is_new_enough(release).is_ok(), enough, "{release:?}");
        }
    }

    #[test]
    fn the_hierarchy_is_found_alone_and_beside_v1() {
        let tree = tempfile::tempdir().unwrap();
        assert!(unified_root(tree.path()).unwrap_err().contains("no cgroup v2"));
        fs::create_dir(tree.path().join("unified")).unwrap();
        fs::write(tree.path().join("unified/cgroup.controllers"), "").unwrap();
        assert_eq!(unified_root(tree.path()).unwrap(), tree.path().join("unified"));
        fs::write(tree.path().join("cgroup.controllers"), "cpu").unwrap();
        assert_eq!(unified_root(tree.path()).unwrap(), tree.path());
    }
}
