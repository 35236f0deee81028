//! From `/proc/PID/cgroup` to the cgroup of the container that a process runs in.
//!
//! In goes the file's text, as it is read from the root cgroup namespace, and the pod that the process must
//! belong to; out comes the path of the container's cgroup in the v2 hierarchy and its level. The shapes are
//! those of the kubelet's two cgroup drivers with containerd and CRI-O:
//!
//! ```text
//! cgroupfs:             /kubepods/burstable/pod<uid>/<id>
//! systemd, containerd:  /kubepods.slice/…-pod<uid_with_underscores>.slice/cri-containerd-<id>.scope
//! systemd, CRI-O:       /kubepods.slice/…-pod<uid_with_underscores>.slice/crio-<id>.scope[/container]
//! systemd kubelet on a cgroupfs containerd:
//!                       /system.slice/containerd.service/…-pod<uid_…>.slice:cri-containerd:<id>
//! ```

/// The cgroup of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerCgroup {
    /// From the root of the v2 hierarchy, with a leading slash. It ends with the component that names the
    /// container, so that groups below it, where the process may be, belong to it.
    pub path: String,
    /// How many components `path` has.
    pub level: u32,
}

/// Why no container of the pod was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CgroupError {
    /// No `0::` line: the process is in no v2 hierarchy.
    #[error("the process has no cgroup v2")]
    NoUnified,
    /// The process is in the v2 hierarchy, but not in a group of its own there.
    #[error("its runtime gives containers no group in the v2 hierarchy (it is in {0:?})")]
    NotSeparated(String),
    /// The path leads out of the reader's cgroup namespace.
    #[error("its cgroup {0:?} is seen from a cgroup namespace that it is not in")]
    Outside(String),
    /// The group was removed.
    #[error("its cgroup {0:?} is gone")]
    Gone(String),
    /// No component is a pod's.
    #[error("its cgroup {0:?} is not that of a pod")]
    NoPod(String),
    /// The first pod on the path is another.
    #[error("its cgroup {path:?} belongs to the pod {pod}")]
    AnotherPod {
        /// The cgroup.
        path: String,
        /// The pod that it names.
        pod: String,
    },
    /// What follows the pod is no container as we know them.
    #[error("its cgroup {0:?} names no container in a known form")]
    NoContainer(String),
}

/// The end of the path of a group that was removed (cgroups(7)).
const GONE: &str = " (deleted)";
/// A systemd kubelet's slice and a cgroupfs containerd's container in one component.
const MIXED: &str = ":cri-containerd:";
/// What runtimes put before a container's id in the name of its scope.
const SCOPES: [&str; 3] = ["cri-containerd-", "crio-", "docker-"];
/// Container ids of all runtimes: SHA-256 in hex.
const ID_LENGTH: usize = 64;

/// Finds the cgroup of the container of the pod `uid` in the text of `/proc/PID/cgroup`.
///
/// # Errors
/// [`CgroupError`]: whatever is not one of the known shapes.
pub fn container_of(text: &str, uid: &str) -> Result<ContainerCgroup, CgroupError> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).ok_or(CgroupError::NoUnified)?;
    if path.ends_with(GONE) {
        return Err(CgroupError::Gone(path.to_owned()));
    }
    if path == "/" {
        return Err(CgroupError::NotSeparated(path.to_owned()));
    }
    let components: Vec<&str> = path.split('/').skip(1).collect();
    if !path.starts_with('/') || components.iter().any(|part| matches!(*part, ".." | "." | "")) {
        return Err(CgroupError::Outside(path.to_owned()));
    }
    let pods = components.iter().enumerate().filter_map(|(at, part)| Some((at, PodComponent::of(part)?)));
    // The first, not the last: below its container a process may make groups of any name.
    let (at, pod) = pods.min_by_key(|(at, _)| *at).ok_or_else(|| CgroupError::NoPod(path.to_owned()))?;
    if pod.uid != uid.replace('_', "-") {
        return Err(CgroupError::AnotherPod { path: path.to_owned(), pod: pod.uid });
    }
    let last = if pod.with_container { at } else { at + 1 };
    let named = components.get(last).is_some_and(|part| pod.with_container || is_container(part));
    let level = last + 1;
    match (named, components.get(..level), u32::try_from(level)) {
        (true, Some(parts), Ok(level)) => {
            Ok(ContainerCgroup { path: format!("/{}", parts.join("/")), level })
        }
        _ => Err(CgroupError::NoContainer(path.to_owned())),
    }
}

struct PodComponent {
    uid: String,
    with_container: bool,
}

impl PodComponent {
    fn of(component: &str) -> Option<Self> {
        let (name, container) = match component.split_once(MIXED) {
            Some((name, id)) => (name, Some(id)),
            None => (component, None),
        };
        let uid = match name.strip_suffix(".slice") {
            Some(slice) => slice.rsplit_once("-pod")?.1.replace('_', "-"),
            None => name.strip_prefix("pod")?.to_owned(),
        };
        // A mirror pod's UID is a hash, without dashes.
        let is_uid = uid.len() >= 32 && uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        (is_uid && container.is_none_or(is_id)).then_some(Self { uid, with_container: container.is_some() })
    }
}

fn is_container(component: &str) -> bool {
    let scoped = component
        .strip_suffix(".scope")
        .and_then(|name| SCOPES.iter().find_map(|prefix| name.strip_prefix(prefix)));
    is_id(scoped.unwrap_or(component))
}

fn is_id(text: &str) -> bool {
    text.len() == ID_LENGTH && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0b1f7c52-6f0e-4a7e-9d43-5a3c2f7a9e11";
    const UNDERSCORED: &str = "0b1f7c52_6f0e_4a7e_9d43_5a3c2f7a9e11";
    const OTHER: &str = "99999999-6f0e-4a7e-9d43-5a3c2f7a9e11";
    const STATIC: &str = "c5b0d7ad3f1f4e0b9a2b8f2f6c1d0e4a";
    const ID: &str = "4bf5122f344554c53bde2ebb8cd2b7e3d1600ad631c385a5d7cce23c7785459a";

    #[test]
    fn containers_are_found_in_the_shapes_of_all_runtimes() {
        let slice = format!("kubepods-burstable-pod{UNDERSCORED}.slice");
        let cases = [
            ("cgroupfs, besteffort", UID, format!("/kubepods/besteffort/pod{UID}/{ID}"), "", 4),
            ("cgroupfs, guaranteed", UID, format!("/kubepods/pod{UID}/{ID}"), "", 3),
            ("cgroupfs, a lab's root", UID, format!("/lab-node1/kubepods/besteffort/pod{UID}/{ID}"), "", 5),
            (
                "systemd, containerd",
                UID,
                format!("/kubepods.slice/kubepods-burstable.slice/{slice}/cri-containerd-{ID}.scope"),
                "",
                4,
            ),
            (
                "systemd, guaranteed",
                UID,
                format!("/kubepods.slice/kubepods-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope"),
                "",
                3,
            ),
            (
                "CRI-O, runc",
                UID,
                format!("/kubepods.slice/kubepods-burstable.slice/{slice}/crio-{ID}.scope"),
                "",
                4,
            ),
            (
                "CRI-O, crun",
                UID,
                format!("/kubepods.slice/kubepods-burstable.slice/{slice}/crio-{ID}.scope"),
                "/container",
                4,
            ),
            ("cri-dockerd", UID, format!("/kubepods.slice/{slice}/docker-{ID}.scope"), "", 3),
            (
                "kind",
                UID,
                format!(
                    "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{UNDERSCORED}.slice/cri-containerd-{ID}.scope"
                ),
                "",
                4,
            ),
            (
                "systemd kubelet, cgroupfs containerd",
                UID,
                format!("/system.slice/containerd.service/{slice}:cri-containerd:{ID}"),
                "",
                3,
            ),
            ("groups of its own", UID, format!("/kubepods/pod{UID}/{ID}"), "/init/workers", 3),
            ("a look-alike below", UID, format!("/kubepods/pod{UID}/{ID}"), &format!("/pod{OTHER}/{ID}"), 3),
            ("static pod", STATIC, format!("/kubepods/burstable/pod{STATIC}/{ID}"), "", 4),
        ];
        for (case, uid, container, below, level) in cases {
            let want = ContainerCgroup { path: container.clone(), level };
            for text in [
                format!("0::{container}{below}\n"),
                // A hybrid host names the v1 hierarchies first.
                format!(
                    "9:name=systemd:/\n4:memory:/kubepods/pod{OTHER}/{ID}\n1:cpu:/\n0::{container}{below}\n"
                ),
            ] {
                assert_eq!(container_of(&text, uid), Ok(want.clone()), "{case}");
            }
        }
    }

    #[test]
    fn whatever_is_unclear_is_refused() {
        use CgroupError::*;
        let pod = format!("/kubepods/besteffort/pod{UID}");
        let slice = format!("/kubepods.slice/kubepods-pod{UNDERSCORED}.slice");
        let own = |path: &str| path.to_owned();
        let another = |path: String| AnotherPod { path, pod: OTHER.to_owned() };
        let cases = [
            ("empty", String::new(), NoUnified),
            ("v1 only", format!("4:memory:{pod}/{ID}"), NoUnified),
            ("hybrid, runtime without v2", format!("4:memory:{pod}/{ID}\n0::/"), NotSeparated(own("/"))),
            (
                "a nested namespace",
                format!("0::/../../pod{UID}/{ID}"),
                Outside(format!("/../../pod{UID}/{ID}")),
            ),
            ("relative", format!("0::kubepods/pod{UID}/{ID}"), Outside(format!("kubepods/pod{UID}/{ID}"))),
            (
                "empty component",
                format!("0::/kubepods//pod{UID}/{ID}"),
                Outside(format!("/kubepods//pod{UID}/{ID}")),
            ),
            ("deleted", format!("0::{pod}/{ID} (deleted)"), Gone(format!("{pod}/{ID} (deleted)"))),
            (
                "a process of the host",
                own("0::/system.slice/sshd.service"),
                NoPod(own("/system.slice/sshd.service")),
            ),
            ("a short look-alike", format!("0::/kubepods/pod/{ID}"), NoPod(format!("/kubepods/pod/{ID}"))),
            ("the pod itself", format!("0::{pod}"), NoContainer(pod.clone())),
            ("not an id", format!("0::{pod}/app"), NoContainer(format!("{pod}/app"))),
            ("a short id", format!("0::{pod}/{}", &ID[1..]), NoContainer(format!("{pod}/{}", &ID[1..]))),
            (
                "capitals",
                format!("0::{pod}/{}", ID.to_uppercase()),
                NoContainer(format!("{pod}/{}", ID.to_uppercase())),
            ),
            (
                "conmon",
                format!("0::{slice}/crio-conmon-{ID}.scope"),
                NoContainer(format!("{slice}/crio-conmon-{ID}.scope")),
            ),
            (
                "an unknown runtime",
                format!("0::{slice}/other-{ID}.scope"),
                NoContainer(format!("{slice}/other-{ID}.scope")),
            ),
            (
                "another pod",
                format!("0::/kubepods/pod{OTHER}/{ID}"),
                another(format!("/kubepods/pod{OTHER}/{ID}")),
            ),
            (
                "our pod below another",
                format!("0::/kubepods/pod{OTHER}/{ID}/pod{UID}/{ID}"),
                another(format!("/kubepods/pod{OTHER}/{ID}/pod{UID}/{ID}")),
            ),
        ];
        for (case, text, want) in cases {
            assert_eq!(container_of(&text, UID), Err(want), "{case}");
        }
    }
}
