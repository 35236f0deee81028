//! What admission refuses in pods once their namespace is locked: what lets a container undo the redirect or act as
//! the proxy. In goes a pod or a template of pods; out come words for whoever wrote it.
//!
//! The admission policies have the same lists (charts/cinch/templates/_privileges.tpl); a test compares them.

use crate::sidecar::{PROXY_UID, is_ours};
use serde_json::Value;

const CAPABILITIES: [&str; 10] = [
    "NET_ADMIN",
    "NET_RAW",
    "SYS_ADMIN",
    "SYS_PTRACE",
    "SYS_MODULE",
    "SYS_RAWIO",
    "DAC_READ_SEARCH",
    "BPF",
    "PERFMON",
    "ALL",
];

/// Paths of a node that lead out of the pod, to be read only too. What lies in `/run` does so in `/var/run` as well.
const NODE_PATHS: [&str; 5] = [
    "/proc",
    "/sys/fs/cgroup",
    "/var/lib/kubelet",
    "/var/lib/docker/overlay2",
    "/var/lib/containers/storage",
];
const NODE_SOCKETS: [&str; 9] = [
    "containerd",
    "crio",
    "docker",
    "docker.sock",
    "cri-dockerd.sock",
    "podman",
    "k3s",
    "dbus",
    "systemd/private",
];

/// Paths by which whoever may write there becomes root of the node.
const NODE_FILES: [&str; 15] = [
    "/bin",
    "/boot",
    "/etc",
    "/lib",
    "/lib64",
    "/opt/cni",
    "/root",
    "/sbin",
    "/sys",
    "/usr",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/docker",
    "/var/lib/rancher",
    "/var/spool/cron",
];

/// What would be refused of the template, each with the container that has it. That a kubelet has its directory
/// elsewhere is known to admission alone.
#[must_use]
pub fn privileges(template: &Value) -> Vec<String> {
    let flag = |path: &str| template.pointer(path).and_then(Value::as_bool) == Some(true);
    let mut found = Vec::new();
    for (path, word) in
        [("/spec/shareProcessNamespace", "shareProcessNamespace"), ("/spec/hostPID", "hostPID")]
    {
        if flag(path) {
            found.push(word.to_owned());
        }
    }
    if runs_as_proxy(template.pointer("/spec/securityContext")) {
        found.push(format!("runAsUser {PROXY_UID}"));
    }
    let volumes = host_paths(template);
    for volume in volumes.iter().filter(|volume| volume.leads_out()) {
        found.push(format!("volume {}, hostPath {}", volume.name, volume.given));
    }
    let lists = ["/spec/initContainers", "/spec/containers"];
    let containers = lists.iter().filter_map(|path| template.pointer(path)?.as_array()).flatten();
    for container in containers {
        let name = container.get("name").and_then(Value::as_str).unwrap_or_default();
        if !is_ours(name)
            && let Some(what) = privilege(container).or_else(|| written(container, &volumes))
        {
            found.push(format!("container {name}, {what}"));
        }
    }
    found
}

fn runs_as_proxy(context: Option<&Value>) -> bool {
    context.and_then(|context| context.get("runAsUser")?.as_i64()) == Some(i64::from(PROXY_UID))
}

fn privilege(container: &Value) -> Option<String> {
    let context = container.get("securityContext")?;
    if context.get("privileged").and_then(Value::as_bool) == Some(true) {
        return Some("privileged".to_owned());
    }
    if runs_as_proxy(Some(context)) {
        return Some(format!("runAsUser {PROXY_UID}"));
    }
    // Kubelets take them in any case, with and without the prefix.
    let plain = |name: &Value| -> Option<String> {
        Some(name.as_str()?.to_ascii_uppercase().trim_start_matches("CAP_").to_owned())
    };
    let added = context.pointer("/capabilities/add")?.as_array()?;
    added.iter().filter_map(plain).find(|name| CAPABILITIES.contains(&name.as_str()))
}

/// A mount by which the container could write files of the node.
fn written(container: &Value, volumes: &[HostPath<'_>]) -> Option<String> {
    let mounts = container.get("volumeMounts")?.as_array()?;
    mounts.iter().find_map(|mount| {
        let name = mount.get("name")?.as_str()?;
        let read_only = mount.get("readOnly").and_then(Value::as_bool) == Some(true);
        let volume = volumes.iter().find(|volume| volume.name == name && volume.holds_files())?;
        (!read_only).then(|| format!("hostPath {} not readOnly", volume.given))
    })
}

/// A volume that is a path of the node.
struct HostPath<'a> {
    name: &'a str,
    given: &'a str,
    /// Each part behind a slash, and one at the end.
    path: String,
}

fn host_paths(template: &Value) -> Vec<HostPath<'_>> {
    let volumes = template.pointer("/spec/volumes").and_then(Value::as_array);
    volumes.into_iter().flatten().filter_map(host_path).collect()
}

fn host_path(volume: &Value) -> Option<HostPath<'_>> {
    let given = volume.pointer("/hostPath/path")?.as_str()?;
    let parts = given.split('/').filter(|part| !part.is_empty() && *part != ".");
    let path = parts.fold(String::new(), |path, part| path + "/" + part) + "/";
    Some(HostPath { name: volume.get("name")?.as_str()?, given, path })
}

impl HostPath<'_> {
    fn leads_out(&self) -> bool {
        NODE_PATHS.iter().any(|path| self.meets(path))
            || NODE_SOCKETS
                .iter()
                .any(|name| self.meets(&format!("/run/{name}")) || self.meets(&format!("/var/run/{name}")))
    }

    fn holds_files(&self) -> bool {
        NODE_FILES.iter().any(|path| self.meets(path))
    }

    /// It is the path, lies below or holds it.
    fn meets(&self, path: &str) -> bool {
        let path = format!("{path}/");
        self.path.starts_with(&path) || path.starts_with(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of_app(app: Value) -> Vec<String> {
        let mut app = app;
        app["name"] = json!("app");
        privileges(&json!({"spec": {"containers": [app]}}))
    }

    #[test]
    fn what_admission_refuses_is_found() {
        let none: [&str; 0] = [];
        let context = |context: Value| of_app(json!({"securityContext": context}));
        assert_eq!(of_app(json!({})), none);
        assert_eq!(context(json!({"privileged": true})), ["container app, privileged"]);
        assert_eq!(context(json!({"runAsUser": 1507})), ["container app, runAsUser 1507"]);
        for spelling in ["NET_ADMIN", "net_admin", "CAP_NET_ADMIN", "cap_net_admin"] {
            let said = context(json!({"capabilities": {"add": ["CHOWN", spelling]}}));
            assert_eq!(said, ["container app, NET_ADMIN"], "{spelling}");
        }
        assert_eq!(context(json!({"capabilities": {"add": ["NET_BIND_SERVICE"]}})), none);
        let pod = privileges(&json!({"spec": {"hostPID": true, "shareProcessNamespace": true,
            "securityContext": {"runAsUser": 1507}}}));
        assert_eq!(pod, ["shareProcessNamespace", "hostPID", "runAsUser 1507"]);
        let ours = json!({"spec": {"initContainers": [{"name": "cinch-proxy", "securityContext": {"runAsUser": 1507}}]}});
        assert_eq!(privileges(&ours), none);
    }

    /// What is said of an app that mounts `path`.
    fn of_path(path: &str, read_only: bool) -> Vec<String> {
        let mounts = json!([{"name": "v", "mountPath": "/v", "readOnly": read_only}]);
        privileges(&json!({"spec": {"volumes": [{"name": "v", "hostPath": {"path": path}}],
            "containers": [{"name": "app", "volumeMounts": mounts}]}}))
    }

    #[test]
    fn paths_of_the_node_are_told_apart() {
        for path in [
            "/",
            "/var/lib",
            "/var/lib/kubelet/pods",
            "/proc/1",
            "/sys",
            "/run",
            "/run/containerd/containerd.sock",
            "//var/./run//docker.sock/",
            "run/dbus",
        ] {
            let said = of_path(path, true);
            assert_eq!(said.first(), Some(&format!("volume v, hostPath {path}")), "{path}");
        }
        for path in ["/etc", "/etc/cron.d", "/usr/local/bin", "/opt", "/var/lib/docker/containers"] {
            let said = format!("container app, hostPath {path} not readOnly");
            assert_eq!((of_path(path, false), of_path(path, true)), (vec![said], vec![]), "{path}");
        }
        for path in
            ["/var/log", "/etcd", "/data", "/run/spire/sockets", "/dev/dri", "/var/lib/kubelet-plugins"]
        {
            assert_eq!(of_path(path, false), [""; 0], "{path}");
        }
    }

    #[test]
    fn the_lists_are_those_of_the_admission_policies() {
        let chart = include_str!("../../../charts/cinch/templates/_privileges.tpl");
        let quoted = |names: &[&str]| names.iter().map(|name| format!(" {name:?}")).collect::<String>();
        for (line, names) in [
            ("$names := list", &CAPABILITIES[..]),
            ("range list", &NODE_SOCKETS[..]),
            ("range list", &NODE_FILES[..]),
        ] {
            let want = format!("{line}{} -}}}}", quoted(names));
            assert!(chart.contains(&want), "{want}");
        }
        let [proc, cgroups, kubelet, rest @ ..] = NODE_PATHS;
        let first = quoted(&[proc, cgroups, kubelet]);
        let want = format!("$paths := list{first} .Values.node.kubeletRoot{} -}}}}", quoted(&rest));
        assert!(chart.contains(&want), "{want}");
    }
}
