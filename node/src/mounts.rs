//! Which container a process runs in, by the one mount that the kubelet makes for every container and that
//! carries its name: the termination log, `<kubelet>/pods/<uid>/containers/<name>/<hash>`.
//!
//! In goes the text of `/proc/PID/mountinfo` (proc_pid_mountinfo(5)); out comes the container's name. Where the
//! kubelet's directory lies is learned from the agent's own mountinfo, as device and path within the device's
//! file system, and compared exactly: a volume can hold a look-alike of the path, but not at that place.

/// Where a termination log is mounted; the injected containers say so, and the API server by default.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// The kubelet's `pods` directory as mounts name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodsDirectory {
    /// `major:minor` of its file system.
    device: String,
    /// Its path in that file system, without a trailing slash.
    path: String,
}

/// Why no container's name was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    /// The agent's own termination log is not where a kubelet puts it.
    #[error(
        "the agent has no termination log of a kubelet: it does not run in a pod, or without /dev/termination-log"
    )]
    NotInPod,
    /// The process has no termination log of the pod.
    #[error("it has no termination log of the pod")]
    NoLog,
    /// It has those of several containers.
    #[error("it has the termination logs of several containers: {0}")]
    Several(String),
}

struct Mount<'a> {
    device: &'a str,
    root: &'a str,
    point: &'a str,
}

fn mounts(text: &str) -> impl Iterator<Item = Mount<'_>> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(2);
        Some(Mount { device: fields.next()?, root: fields.next()?, point: fields.next()? })
    })
}

/// `<uid>/containers/<name>/<hash>`, each as the kubelet writes them.
fn log_of(path: &str) -> Option<(&str, &str)> {
    let mut parts = path.split('/');
    let (uid, fixed, name, hash) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_name = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    let whole = parts.next().is_none() && fixed == "containers";
    let hex = !hash.is_empty() && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    (whole && hex && is_name(uid) && is_name(name)).then_some((uid, name))
}

impl PodsDirectory {
    /// Learns it from the agent's own mountinfo.
    ///
    /// # Errors
    /// [`MountError::NotInPod`].
    pub fn learn(own: &str) -> Result<Self, MountError> {
        let learned = mounts(own).filter(|mount| mount.point == TERMINATION_LOG).find_map(|mount| {
            // The last of that name: the kubelet's own directory may lie in a directory called pods.
            let (path, rest) = mount.root.rsplit_once("/pods/")?;
            log_of(rest)?;
            Some(Self { device: mount.device.to_owned(), path: format!("{path}/pods") })
        });
        learned.ok_or(MountError::NotInPod)
    }

    /// The name of the container of the pod `uid` whose termination log is among the mounts of `text`.
    ///
    /// # Errors
    /// [`MountError`] unless it is exactly one.
    pub fn container<'a>(&self, text: &'a str, uid: &str) -> Result<&'a str, MountError> {
        let mut names: Vec<&str> = mounts(text)
            .filter(|mount| mount.device == self.device)
            .filter_map(|mount| log_of(mount.root.strip_prefix(&self.path)?.strip_prefix('/')?))
            .filter_map(|(owner, name)| (owner == uid).then_some(name))
            .collect();
        names.sort_unstable();
        names.dedup();
        match names.as_slice() {
            [] => Err(MountError::NoLog),
            [name] => Ok(name),
            several => Err(MountError::Several(several.join(", "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGENT: &str = "5d7c0c1e-1111-4222-8333-444455556666";
    const UID: &str = "0b1f7c52-6f0e-4a7e-9d43-5a3c2f7a9e11";
    const OTHER: &str = "99999999-6f0e-4a7e-9d43-5a3c2f7a9e11";

    fn line(device: &str, root: &str, point: &str) -> String {
        format!("812 798 {device} {root} {point} rw,relatime shared:7 - ext4 /dev/vda rw,discard\n")
    }

    fn own(kubelet: &str) -> String {
        [
            line("0:71", "/", "/"),
            line("254:0", &format!("{kubelet}/pods/{AGENT}/etc-hosts"), "/etc/hosts"),
            line("254:0", &format!("{kubelet}/pods/{AGENT}/containers/cinch-node/1a2b3c4d"), TERMINATION_LOG),
        ]
        .concat()
    }

    fn log(kubelet: &str, uid: &str, container: &str) -> String {
        line("254:0", &format!("{kubelet}/pods/{uid}/containers/{container}/deadbeef"), TERMINATION_LOG)
    }

    #[test]
    fn the_name_is_found_wherever_the_kubelet_lives() {
        // On the root file system, on its own, and below a directory that is called like its own.
        for kubelet in ["/var/lib/kubelet", "", "/pods/data/kubelet", "/@/var/lib/kubelet"] {
            let directory = PodsDirectory::learn(&own(kubelet)).unwrap();
            let text = [line("0:80", "/", "/"), log(kubelet, UID, "cinch-proxy")].concat();
            assert_eq!(directory.container(&text, UID), Ok("cinch-proxy"), "{kubelet:?}");
            assert_eq!(directory.container(&log(kubelet, UID, "app"), UID), Ok("app"));
        }
    }

    #[test]
    fn look_alikes_and_other_pods_are_no_names() {
        let directory = PodsDirectory::learn(&own("/var/lib/kubelet")).unwrap();
        let real = format!("/var/lib/kubelet/pods/{UID}");
        let inside = format!("{real}/volumes/kubernetes.io~empty-dir/x");
        let fake = format!("pods/{UID}/containers/cinch-proxy/deadbeef");
        for (case, text) in [
            ("nothing", String::new()),
            ("a short line", "1 2 254:0".to_owned()),
            ("another pod", log("/var/lib/kubelet", OTHER, "cinch-proxy")),
            ("in an emptyDir", line("254:0", &format!("{inside}/{fake}"), TERMINATION_LOG)),
            (
                "in an emptyDir, whole path",
                line("254:0", &format!("{inside}/var/lib/kubelet/{fake}"), TERMINATION_LOG),
            ),
            ("on a tmpfs", line("0:99", &format!("/var/lib/kubelet/{fake}"), TERMINATION_LOG)),
            ("elsewhere", line("254:0", &format!("/var/lib/kubelet2/{fake}"), TERMINATION_LOG)),
            (
                "the file's name missing",
                line("254:0", &format!("{real}/containers/cinch-proxy"), TERMINATION_LOG),
            ),
            ("deeper", line("254:0", &format!("{real}/containers/cinch-proxy/deadbeef/x"), TERMINATION_LOG)),
            ("dots", line("254:0", &format!("{real}/containers/../cinch-proxy"), TERMINATION_LOG)),
            (
                "deleted",
                line("254:0", &format!("{real}/containers/cinch-proxy/deadbeef//deleted"), TERMINATION_LOG),
            ),
            (
                "escaped",
                line("254:0", &format!("{real}/containers/cinch-proxy/dead\\040beef"), TERMINATION_LOG),
            ),
            ("as mount point", line("254:0", "/x", &format!("{real}/containers/cinch-proxy/deadbeef"))),
        ] {
            assert_eq!(directory.container(&text, UID), Err(MountError::NoLog), "{case}");
        }
        let both =
            [log("/var/lib/kubelet", UID, "cinch-proxy"), log("/var/lib/kubelet", UID, "app")].concat();
        assert_eq!(directory.container(&both, UID), Err(MountError::Several("app, cinch-proxy".into())));
    }

    #[test]
    fn outside_of_a_pod_nothing_is_learned() {
        for text in [
            String::new(),
            line("254:0", "/", "/"),
            line("254:0", "/var/lib/kubelet/pods/x/etc-hosts", TERMINATION_LOG),
            log("/var/lib/kubelet", UID, "cinch-node").replace(TERMINATION_LOG, "/elsewhere"),
        ] {
            assert_eq!(PodsDirectory::learn(&text), Err(MountError::NotInPod), "{text}");
        }
    }
}
