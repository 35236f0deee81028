//! Whose a socket is: from its cgroup to the container of the pod, from its inode to the process.
//!
//! In goes the cgroup of one container of the pod; its siblings are found beside it. Everything is read at the time
//! of asking, and what has ended meanwhile has no owner.

use crate::bounds::Budget;
use crate::cgroup::container_of;
use crate::host::Host;
use crate::peer::read;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Of one container, also below its own group: processes and groups that are looked at.
const MOST_PROCESSES: usize = 1024;
const MOST_GROUPS: usize = 256;
/// Of what the kernel says of a descriptor; the inode comes before what depends on its kind, which may be long.
const DESCRIPTOR_HEAD: usize = 256;

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
            waiting.extend(folders.map(|entry| entry.path()).take(MOST_GROUPS.saturating_sub(waiting.len())));
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
pub fn name(host: &Host, container: &Container, uid: &str, budget: &mut Budget) -> String {
    let of = |process: &i32| {
        if !budget.take_read() {
            return None;
        }
        let mounts = read(&host.proc.join(process.to_string()).join("mountinfo")).ok()?;
        host.pods_directory.container(&mounts, uid).ok().map(str::to_owned)
    };
    container.processes.iter().find_map(of).unwrap_or_default()
}

/// The inodes of what a process holds open, its sockets among them, as far as the budget goes.
///
/// `fdinfo` and not `fd`, which only the process' own user may list: the agent has no capability to override that.
/// Linux says the inode there since 5.14; nothing is found before.
pub fn inodes_of(proc: &Path, process: i32, budget: &mut Budget) -> impl Iterator<Item = u32> {
    // The list of descriptors is a read too: there are as many as processes.
    let directory =
        budget.take_read().then(|| fs::read_dir(proc.join(process.to_string()).join("fdinfo")).ok());
    let descriptors = directory.flatten().into_iter().flatten().flatten();
    descriptors
        .take_while(|_| budget.take_read())
        .filter_map(|descriptor| inode(&head(&descriptor.path()).ok()?))
}

/// Which of `processes` holds each of the sockets `wanted`; the first that does. Sockets that nobody holds, of
/// number 0, are not searched, and nothing is read on when all are found.
#[must_use]
pub fn holders(
    proc: &Path,
    processes: &[i32],
    mut wanted: HashSet<u32>,
    budget: &mut Budget,
) -> HashMap<u32, i32> {
    wanted.remove(&0);
    let mut found = HashMap::new();
    if wanted.is_empty() {
        return found;
    }
    for process in processes {
        for inode in inodes_of(proc, *process, budget) {
            if wanted.remove(&inode) {
                found.insert(inode, *process);
            }
            if wanted.is_empty() {
                break;
            }
        }
        if wanted.is_empty() || budget.is_exceeded() {
            break;
        }
    }
    found
}

fn head(path: &Path) -> io::Result<String> {
    let mut head = [0; DESCRIPTOR_HEAD];
    let read = File::open(path)?.read(&mut head)?;
    Ok(String::from_utf8_lossy(head.get(..read).unwrap_or_default()).into_owned())
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
pub(crate) mod tests {
    use super::*;
    use crate::mounts::PodsDirectory;
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;
    use std::time::{Duration, Instant};

    const UID: &str = "0b1f7c52-6f0e-4a7e-9d43-5a3c2f7a9e11";
    const OTHER: &str = "99999999-6f0e-4a7e-9d43-5a3c2f7a9e11";

    pub(crate) fn ample(reads: usize) -> Budget {
        Budget::new(Instant::now() + Duration::from_secs(3600), reads)
    }

    /// A `/proc` with these processes, each with descriptors of these inodes.
    pub(crate) fn held(processes: &[(i32, &[u32])]) -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        for (process, inodes) in processes {
            let descriptors = proc.path().join(process.to_string()).join("fdinfo");
            fs::create_dir_all(&descriptors).unwrap();
            for (number, inode) in inodes.iter().enumerate() {
                let text = format!("pos:\t0\nflags:\t02\nmnt_id:\t10\nino:\t{inode}\n");
                fs::write(descriptors.join(number.to_string()), text).unwrap();
            }
        }
        proc
    }

    #[test]
    fn holders_of_sockets_are_found_within_one_budget_for_all_processes() {
        let proc = held(&[(11, &[1, 2, 3]), (12, &[1, 2, 3]), (13, &[9])]);
        let find = |wanted: &[u32], reads| {
            let mut budget = ample(reads);
            let found = holders(proc.path(), &[11, 12, 13], wanted.iter().copied().collect(), &mut budget);
            let left = (0..).take_while(|_| budget.take_read()).count();
            (found, reads - left)
        };
        // Three lists and seven descriptors.
        assert_eq!(find(&[2, 9], 10), ([(2, 11), (9, 13)].into(), 10));
        assert_eq!(find(&[2, 9], 9), ([(2, 11)].into(), 9), "the last read was not to be had");
        assert_eq!(find(&[1, 2, 3], 10), ([(1, 11), (2, 11), (3, 11)].into(), 4), "all are found");
        assert_eq!(find(&[0], 10), (HashMap::new(), 0), "nobody holds it");
        let mut late = Budget::new(Instant::now(), 10);
        assert_eq!(holders(proc.path(), &[11], [2].into(), &mut late), HashMap::new());
        assert!(late.is_exceeded());
    }

    #[test]
    fn of_a_descriptor_only_the_head_is_read() {
        let proc = held(&[(11, &[5])]);
        let path = proc.path().join("11/fdinfo/0");
        let tail = "tfd:        7 events:       19 data:                7\n".repeat(100_000);
        fs::write(&path, fs::read_to_string(&path).unwrap() + &tail).unwrap();
        assert_eq!(head(&path).unwrap().len(), DESCRIPTOR_HEAD);
        assert_eq!(inodes_of(proc.path(), 11, &mut ample(2)).collect::<Vec<_>>(), [5]);
    }

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
        let of = |process| inodes_of(Path::new("/proc"), process, &mut ample(100_000)).collect::<Vec<_>>();
        assert!(of(own).contains(&number));
        assert!(of(0).is_empty());
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
        let of: Vec<_> = found
            .iter()
            .map(|c| (name(&host, c, UID, &mut ample(9)), c.processes.clone(), c.cgroups.len()))
            .collect();
        assert_eq!(of, [("cinch-proxy".into(), vec![11, 12], 2), ("app".into(), vec![21], 1)]);
        assert_eq!(command(&proc, 21), "na?me");
    }
}
