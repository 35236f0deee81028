//! Whose a socket is: from its cgroup to the container of the pod, from its inode to the process.
//!
//! In goes the cgroup of one container of the pod; its siblings are found beside it. Everything is read at the time
//! of asking, and what has ended meanwhile has no owner.

use crate::cgroup::container_of;
use crate::host::Host;
use crate::peer::read;
use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Of one container, also below its own group: processes and groups that are looked at.
const MOST_PROCESSES: usize = 1024;
const MOST_GROUPS: usize = 256;
/// Descriptors of one process.
const MOST_DESCRIPTORS: usize = 16_384;

/// A container of the pod.
#[derive(Debug)]
pub struct Container {
    /// The numbers of its cgroup and of those below.
    pub cgroups: HashSet<u64>,
    /// Its processes.
    pub processes: Vec<i32>,
}

impl Container {
    /// The container whose cgroup is the directory `group`.
    #[must_use]
    pub fn at(group: &Path) -> Self {
        let mut this = Self { cgroups: HashSet::new(), processes: Vec::new() };
        let mut waiting = vec![group.to_owned()];
        while let Some(group) = waiting.pop() {
            let Ok(found) = fs::symlink_metadata(&group) else { continue };
            if !found.is_dir() || this.cgroups.len() >= MOST_GROUPS {
                continue;
            }
            this.cgroups.insert(found.ino());
            let text = read(&group.join("cgroup.procs")).unwrap_or_default();
            let room = MOST_PROCESSES.saturating_sub(this.processes.len());
            this.processes.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).take(room));
            let below = fs::read_dir(&group).into_iter().flatten().flatten();
            let folders = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            waiting.extend(folders.map(|entry| entry.path()).take(MOST_GROUPS));
        }
        this
    }
}

/// The containers of the pod `uid` that have groups beside `path`, which is one of them, from the root of the
/// hierarchy.
#[must_use]
pub fn containers(host: &Host, path: &str, uid: &str) -> Vec<Container> {
    let Some((parent, _)) = path.rsplit_once('/') else { return Vec::new() };
    let directory = host.cgroup_root.join(parent.trim_start_matches('/'));
    let beside = fs::read_dir(directory).into_iter().flatten().flatten();
    let of_pod = beside.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        // Other pods may have groups there too.
        container_of(&format!("0::{parent}/{name}"), uid).ok().map(|_| entry.path())
    });
    let of_pod: Vec<PathBuf> = of_pod.take(MOST_GROUPS).collect();
    of_pod.iter().map(|group| Container::at(group)).collect()
}

/// The name of a container, by the mounts of any of its processes; empty when none can be read.
#[must_use]
pub fn name(host: &Host, container: &Container, uid: &str) -> String {
    let of = |process: &i32| {
        let mounts = read(&host.proc.join(process.to_string()).join("mountinfo")).ok()?;
        host.pods_directory.container(&mounts, uid).ok().map(str::to_owned)
    };
    container.processes.iter().find_map(of).unwrap_or_default()
}

/// The inodes of what a process holds open, its sockets among them.
///
/// `fdinfo` and not `fd`, which only the process' own user may list: the agent has no capability to override that.
/// Linux says the inode there since 5.14; nothing is found before.
#[must_use]
pub fn inodes_of(proc: &Path, process: i32) -> HashSet<u32> {
    let descriptors =
        fs::read_dir(proc.join(process.to_string()).join("fdinfo")).into_iter().flatten().flatten();
    descriptors
        .take(MOST_DESCRIPTORS)
        .filter_map(|descriptor| inode(&read(&descriptor.path()).ok()?))
        .collect()
}

/// The kernel's name of a process; empty when it has ended.
#[must_use]
pub fn command(proc: &Path, process: i32) -> String {
    let name = read(&proc.join(process.to_string()).join("comm")).unwrap_or_default();
    // A process names itself; what it says ends up in logs and status.
    let plain = |c: char| if c.is_ascii_graphic() || c == ' ' { c } else { '?' };
    name.trim_end_matches('\n').chars().map(plain).collect()
}

/// The line `ino:` of a descriptor's text (proc_pid_fdinfo(5)).
fn inode(text: &str) -> Option<u32> {
    text.lines().find_map(|line| line.strip_prefix("ino:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mounts::PodsDirectory;
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;

    const UID: &str = "0b1f7c52-6f0e-4a7e-9d43-5a3c2f7a9e11";
    const OTHER: &str = "99999999-6f0e-4a7e-9d43-5a3c2f7a9e11";

    #[test]
    fn descriptors_are_read_as_the_kernel_writes_them() {
        for (text, want) in [
            ("pos:\t0\nflags:\t02\nmnt_id:\t10\nino:\t123\n", Some(123)),
            // Before 5.14, and of files whose numbers no socket has.
            ("pos:\t0\nflags:\t02\nmnt_id:\t10\n", None),
            ("ino:\t99999999999\n", None),
            ("", None),
        ] {
            assert_eq!(inode(text), want, "{text:?}");
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", listener.as_raw_fd())).unwrap();
        let number = link.to_str().unwrap().trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(inodes_of(Path::new("/proc"), own).contains(&number));
        assert!(inodes_of(Path::new("/proc"), 0).is_empty());
        assert!(!command(Path::new("/proc"), own).is_empty());
    }

    #[test]
    fn the_containers_of_a_pod_are_found_beside_each_other_with_what_is_below() {
        let tree = tempfile::tempdir().unwrap();
        let slice = format!("kubepods-pod{}.slice", UID.replace('-', "_"));
        let group = |pod: &str, id: char, below: &str, process: &str| {
            let slice = slice.replace(&UID.replace('-', "_"), &pod.replace('-', "_"));
            let id = id.to_string().repeat(64);
            let path =
                tree.path().join("cgroup").join(format!("system.slice/{slice}:cri-containerd:{id}{below}"));
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("cgroup.procs"), process).unwrap();
        };
        group(UID, 'a', "", "");
        group(UID, 'a', "/container", "11\n12\n");
        group(UID, 'b', "", "21\n");
        group(OTHER, 'c', "", "31\n");
        let log = |pod: &str, name: &str| {
            format!("1 2 8:1 /k/pods/{pod}/containers/{name}/ab /dev/termination-log rw - x")
        };
        let proc = tree.path().join("proc");
        for (process, name) in [("12", "cinch-proxy"), ("21", "app")] {
            fs::create_dir_all(proc.join(process)).unwrap();
            fs::write(proc.join(process).join("mountinfo"), log(UID, name)).unwrap();
            fs::write(proc.join(process).join("comm"), "na\u{1b}me\n").unwrap();
        }
        let host = Host {
            proc: proc.clone(),
            cgroup_root: tree.path().join("cgroup"),
            pods_directory: PodsDirectory::learn(&log(OTHER, "cinch-node")).unwrap(),
            network_namespace: fs::metadata("/").unwrap(),
        };
        let path = format!("/system.slice/{slice}:cri-containerd:{}", "a".repeat(64));
        let mut found = containers(&host, &path, UID);
        found.sort_by_key(|container| container.processes.clone());
        let of: Vec<_> =
            found.iter().map(|c| (name(&host, c, UID), c.processes.clone(), c.cgroups.len())).collect();
        assert_eq!(of, [("cinch-proxy".into(), vec![11, 12], 2), ("app".into(), vec![21], 1)]);
        assert_eq!(command(&proc, 21), "na?me");
    }
}
