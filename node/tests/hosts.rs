//! Hosts that are not at hand, as trees of files: each pair of cgroup driver and container runtime, with a sidecar, an
//! app and a debug container in each, examined as a request would; and hosts that can't do it, with the reason.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use cinch_node::host::{self, Host};
use cinch_node::peer::examine;
use cinch_node::process::ProcessHandle;
use cinch_reason::Reason;
use cinch_redirect::Exempt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const UID: &str = "0b1f7c52-6f0e-4a7e-9d43-5a3c2f7a9e11";
const OTHER: &str = "99999999-6f0e-4a7e-9d43-5a3c2f7a9e11";
const AGENT: &str = "5d7c0c1e-1111-4222-8333-444455556666";
/// Our own process stands in for all that ask: that it lives is asked of the real kernel.
const PROC: &str = "proc";

/// One kind of host.
struct Kind {
    name: &'static str,
    /// Where the v2 hierarchy is, below the mount.
    root: &'static str,
    /// The kubelet's directory as mounts name it, within its own file system.
    kubelet: &'static str,
    /// The path of a container's group, of pod and container id; `_` stands for a UID with underscores.
    group: &'static str,
    /// Where the process is, below that.
    below: &'static str,
    level: u32,
}

const KINDS: [Kind; 8] = [
    Kind {
        name: "v2, systemd, containerd 2",
        root: "",
        kubelet: "/var/lib/kubelet",
        group: "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod_.slice/cri-containerd-ID.scope",
        below: "",
        level: 4,
    },
    Kind {
        name: "v2, systemd, containerd 2, writable cgroups of the container",
        root: "",
        kubelet: "/var/lib/kubelet",
        group: "/kubepods.slice/kubepods-pod_.slice/cri-containerd-ID.scope",
        below: "/workers/1",
        level: 3,
    },
    Kind {
        name: "v2, cgroupfs, containerd 2",
        root: "",
        kubelet: "/var/lib/kubelet",
        group: "/kubepods/burstable/podUID/ID",
        below: "",
        level: 4,
    },
    Kind {
        name: "v2, systemd kubelet, cgroupfs containerd",
        root: "",
        kubelet: "/var/lib/kubelet",
        group: "/system.slice/containerd.service/kubepods-burstable-pod_.slice:cri-containerd:ID",
        below: "",
        level: 3,
    },
    Kind {
        name: "v2, CRI-O with runc, the kubelet on a partition of its own",
        root: "",
        kubelet: "",
        group: "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod_.slice/crio-ID.scope",
        below: "",
        level: 4,
    },
    Kind {
        name: "v2, CRI-O with crun",
        root: "",
        kubelet: "/var/lib/kubelet",
        group: "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod_.slice/crio-ID.scope",
        below: "/container",
        level: 4,
    },
    Kind {
        name: "v2, kind",
        root: "",
        kubelet: "/docker/volumes/8f2c/_data/lib/kubelet",
        group: "/docker/f00d/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod_.slice/cri-containerd-ID.scope",
        below: "",
        level: 6,
    },
    Kind {
        name: "hybrid, cgroupfs, containerd 1.6",
        root: "unified",
        kubelet: "/var/lib/kubelet",
        group: "/lab-node1/kubepods/besteffort/podUID/ID",
        below: "",
        level: 5,
    },
];

/// Files of a host in a folder of its own.
struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn at(&self, path: &str) -> PathBuf {
        self.0.path().join(path.trim_start_matches('/'))
    }

    fn write(&self, path: &str, text: &str) -> PathBuf {
        let file = self.at(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, text).unwrap();
        file
    }

    /// The agent's own view, and the first process of the host.
    fn with_agent(self, kubelet: &str) -> Self {
        self.write(&format!("{PROC}/self/mountinfo"), &mounts(kubelet, AGENT, "cinch-node"));
        self.write(&format!("{PROC}/1/ns/net"), "");
        self
    }

    fn look(&self) -> Result<Host, String> {
        host::look(&self.at(PROC), &self.at("cgroup"))
    }

    /// Our process, as if it ran in this container; the number of the container's group.
    fn enter(&self, kind: &Kind, pod: &str, container: &str) -> u64 {
        let id = format!("{:02x}", container.len()).repeat(32);
        let group = kind.group.replace('_', &pod.replace('-', "_")).replace("UID", pod).replace("ID", &id);
        let directory = self.at(&format!("cgroup/{}{group}", kind.root));
        fs::create_dir_all(directory.join(kind.below.trim_start_matches('/'))).unwrap();
        let process = std::process::id();
        // A hybrid host lists its v1 hierarchies too, and there the runtime may have put it anywhere.
        let v1 = if kind.root.is_empty() { "" } else { "4:memory:/kubepods/elsewhere\n1:name=systemd:/\n" };
        self.write(&format!("{PROC}/{process}/cgroup"), &format!("{v1}0::{group}{}\n", kind.below));
        self.write(&format!("{PROC}/{process}/mountinfo"), &mounts(kind.kubelet, pod, container));
        self.write(&format!("{PROC}/{process}/ns/net"), "");
        fs::metadata(directory).unwrap().ino()
    }
}

fn mounts(kubelet: &str, pod: &str, container: &str) -> String {
    let pod = format!("{kubelet}/pods/{pod}");
    [
        "812 798 0:71 / / rw,relatime - overlay overlay rw".to_owned(),
        "813 812 0:74 / /proc rw,nosuid - proc proc rw".to_owned(),
        format!("820 812 259:3 {pod}/etc-hosts /etc/hosts rw,relatime - ext4 /dev/nvme0n1p3 rw"),
        format!("821 812 259:3 {pod}/containers/{container}/4f1c2d3e /dev/termination-log rw - ext4 /dev/nvme0n1p3 rw"),
    ]
    .join("\n")
}

fn ask(host: &Host) -> Result<Exempt, Reason> {
    let own = ProcessHandle::own().unwrap();
    examine(host, &own, UID).map(|sidecar| sidecar.exempt).map_err(|refusal| refusal.reason)
}

#[test]
fn the_sidecar_is_found_on_every_kind_of_host_and_nobody_else() {
    for kind in KINDS {
        let tree = Tree::new().with_agent(kind.kubelet);
        tree.write(&format!("cgroup/{}/cgroup.controllers", kind.root), "");
        let host = tree.look().unwrap_or_else(|fault| panic!("{}: {fault}", kind.name));
        let id = tree.enter(&kind, UID, "cinch-proxy");
        assert_eq!(ask(&host), Ok(Exempt::Cgroup { id, level: kind.level }), "{}", kind.name);
        for container in ["app", "debugger-abcde"] {
            tree.enter(&kind, UID, container);
            assert_eq!(ask(&host), Err(Reason::NotTheSidecar), "{}, {container}", kind.name);
        }
        tree.enter(&kind, OTHER, "cinch-proxy");
        assert_eq!(ask(&host), Err(Reason::PeerOfAnotherPod), "{}", kind.name);
    }
}

#[test]
fn what_a_runtime_makes_that_we_do_not_know_is_refused_with_its_reason() {
    let kind = &KINDS[0];
    let tree = Tree::new().with_agent(kind.kubelet);
    tree.write("cgroup/cgroup.controllers", "");
    let host = tree.look().unwrap();
    tree.enter(kind, UID, "cinch-proxy");
    let process = std::process::id();
    let slice = format!("/kubepods.slice/kubepods-pod{}.slice", UID.replace('-', "_"));
    let id = "0b".repeat(32);
    for (case, cgroup, reason) in [
        ("v1 only", format!("4:memory:{slice}/cri-containerd-{id}.scope\n"), Reason::NodeUnsupported),
        ("a runtime that leaves all in the root", "0::/\n".to_owned(), Reason::NodeUnsupported),
        (
            "seen from a nested cgroup namespace",
            format!("0::/../../cri-containerd-{id}.scope\n"),
            Reason::NodeUnsupported,
        ),
        ("an unknown runtime", format!("0::{slice}/strange-{id}.scope\n"), Reason::PeerUnknown),
        (
            "a group that was just removed",
            format!("0::{slice}/crio-{id}.scope (deleted)\n"),
            Reason::PeerUnknown,
        ),
        ("a group that can't be seen", format!("0::{slice}/crio-{id}.scope\n"), Reason::NodeUnsupported),
        ("a sandbox on the host", "0::/system.slice/kata.service\n".to_owned(), Reason::PeerOfAnotherPod),
    ] {
        tree.write(&format!("{PROC}/{process}/cgroup"), &cgroup);
        assert_eq!(ask(&host), Err(reason), "{case}");
    }
    let gone = tree.at(&format!("{PROC}/{process}"));
    fs::remove_dir_all(gone).unwrap();
    assert_eq!(ask(&host), Err(Reason::PeerUnknown), "a process whose files are gone");
}

#[test]
fn a_host_that_can_not_do_it_says_what_is_missing() {
    let fault = |tree: &Tree| tree.look().map(|_| ()).unwrap_err();
    let v1 = Tree::new().with_agent("/var/lib/kubelet");
    fs::create_dir_all(v1.at("cgroup/memory/kubepods")).unwrap();
    assert!(fault(&v1).contains("there is no cgroup v2 hierarchy at"), "{}", fault(&v1));

    let no_pod = Tree::new();
    no_pod.write(&format!("{PROC}/self/mountinfo"), "1 2 8:1 / / rw - ext4 x rw");
    assert!(fault(&no_pod).contains("the agent has no termination log of a kubelet"), "{}", fault(&no_pod));

    let alone = Tree::new();
    alone.write(&format!("{PROC}/self/mountinfo"), &mounts("", AGENT, "cinch-node"));
    alone.write("cgroup/cgroup.controllers", "");
    assert!(fault(&alone).contains("the agent needs hostPID and SYS_PTRACE"), "{}", fault(&alone));
    assert!(host::look(Path::new("/does/not/exist"), Path::new("/sys/fs/cgroup")).is_err());
}
