//! A node's part: the plan of the first process of its network, mount and PID namespaces, and the
//! configuration of containerd, CNI, kubelet and kube-proxy.

use super::layout::{CONTROL_PLANE, DNS_SERVICE, Layout, NODE_LINK, Node, PODS};
use super::plan::{Daemon, Plan, Step, daemon, run, until};
use crate::images;
use crate::prepare::Prepared;
use anyhow::{Context, Result};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};

/// Settings of the whole machine that kubelet insists on writing: the node gets files of its own over them.
const SETTINGS: [&str; 6] = [
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
];
/// Folders that programs fill without asking: the node has empty ones in memory.
const COVERED: [&str; 3] = ["/run", "/var/lib", "/var/log"];

/// Writes the files that the node reads, and returns its plan.
///
/// # Errors
/// When a file can't be written.
pub fn plan(layout: &Layout, node: &Node, others: &[Node], prepared: &Prepared) -> Result<Plan> {
    for folder in ["cni", "kubelet", "temporary", "settings", "logs"] {
        fs::create_dir_all(node.file(folder))?;
    }
    fs::write(node.file("containerd.toml"), containerd(layout, node, prepared))?;
    fs::write(node.file("cni/10-pods.conflist"), serde_json::to_vec_pretty(&cni(node))?)?;
    fs::write(node.file("kubelet.json"), serde_json::to_vec_pretty(&kubelet(layout, node))?)?;
    fs::write(node.file("proxy.json"), serde_json::to_vec_pretty(&proxy(layout, node))?)?;
    let mut steps = mounts(node)?;
    steps.extend(network(node, others));
    steps.extend(daemons(layout, node, prepared)?);
    Ok(Plan {
        logs: node.file("logs"),
        path: prepared.path.to_string_lossy().into_owned(),
        done: node.file("started"),
        steps,
    })
}

fn mounts(node: &Node) -> Result<Vec<Step>> {
    let mut steps = vec![run("mount -n --make-rshared /")];
    steps.extend(COVERED.map(|folder| run(&format!("mount -n -t tmpfs tmpfs {folder}"))));
    steps.push(run("mkdir -p /var/lib/kubelet /run/containerd"));
    steps.push(run(&format!("mount -n --bind {} /var/lib/kubelet", node.file("kubelet").display())));
    for setting in SETTINGS {
        let real = Path::new("/proc/sys").join(setting);
        let Ok(value) = fs::read_to_string(&real) else { continue };
        let own = node.file("settings").join(setting.replace('/', "_"));
        fs::write(&own, value).with_context(|| format!("{} can't be written", own.display()))?;
        steps.push(run(&format!("mount -n --bind {} {}", own.display(), real.display())));
    }
    Ok(steps)
}

fn network(node: &Node, others: &[Node]) -> Vec<Step> {
    let mut steps = vec![
        run("ip link set lo up"),
        until(&format!("ip link show {NODE_LINK}")),
        run(&format!("ip addr add {}/24 dev {NODE_LINK}", node.address())),
        run(&format!("ip link set {NODE_LINK} up")),
        run(&format!("ip route add default via {CONTROL_PLANE}")),
        Step::Write(PathBuf::from("/proc/sys/net/ipv4/ip_forward"), "1".into()),
    ];
    for other in others.iter().filter(|other| other.name() != node.name()) {
        steps.push(run(&format!("ip route add {} via {}", other.pods(), other.address())));
    }
    steps
}

/// Images are imported before kubelet starts, so that no pod finds one missing.
fn daemons(layout: &Layout, node: &Node, prepared: &Prepared) -> Result<Vec<Step>> {
    let socket = node.socket();
    let socket = socket.display();
    let cluster = prepared.cluster.display();
    let kubeconfig = layout.pki(&format!("{}.conf", node.name()));
    let kubeconfig = kubeconfig.display();
    let command =
        ["containerd".into(), "--config".into(), node.file("containerd.toml").display().to_string()];
    let temporary = node.file("temporary").display().to_string();
    let mut steps = vec![
        Step::Daemon(Daemon {
            name: "containerd".into(),
            command: command.to_vec(),
            // Shims that are killed leave files behind; they shall lie in the state directory.
            environment: vec![("TMPDIR".into(), temporary)],
        }),
        until(&format!("ctr --address {socket} version")),
    ];
    let mut archives: Vec<PathBuf> =
        fs::read_dir(layout.file("images"))?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    archives.sort();
    for archive in archives {
        steps.push(run(&format!(
            "ctr --address {socket} --namespace k8s.io images import {}",
            archive.display()
        )));
    }
    let kubelet = format!(
        "{cluster} kubelet --config={} --kubeconfig={kubeconfig} --hostname-override={} --node-ip={} \
         --root-dir=/var/lib/kubelet --cert-dir={}",
        node.file("kubelet.json").display(),
        node.name(),
        node.address(),
        node.file("kubelet-certificates").display()
    );
    steps.extend([
        until(&format!("{} --kubeconfig={kubeconfig} get --raw=/readyz", prepared.kubectl.display())),
        daemon("kubelet", &kubelet),
        daemon("kube-proxy", &format!("{cluster} kube-proxy --config={}", node.file("proxy.json").display())),
    ]);
    Ok(steps)
}

/// `restrict_oom_score_adj`: the machine may lack CAP_SYS_RESOURCE, and every sandbox would fail.
/// `disable_apparmor`: the default profile would be loaded into the machine's kernel and stay there.
fn containerd(layout: &Layout, node: &Node, prepared: &Prepared) -> String {
    // An overlay on an overlay (a container's own root) is refused by the kernel.
    let snapshotter = if on_overlay(&layout.state) { "native" } else { "overlayfs" };
    format!(
        r#"version = 2
root = "{root}"
state = "/run/containerd-state"
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "{snapshotter}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni}"
    conf_dir = "{conf}"
"#,
        root = node.file("containerd").display(),
        socket = node.socket().display(),
        pause = images::reference(images::PAUSE),
        cni = prepared.cni.display(),
        conf = node.file("cni").display(),
    )
}

fn on_overlay(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|found| found.f_type == OVERLAYFS_MAGIC)
}

/// `OVERLAYFS_SUPER_MAGIC` of linux/magic.h.
const OVERLAYFS_MAGIC: rustix::fs::FsWord = 0x794c_7630;

/// `ptp`, because `bridge` depends on a bridge-netfilter setting of the machine.
fn cni(node: &Node) -> serde_json::Value {
    json!({"cniVersion": "0.4.0", "name": "pods", "plugins": [{
        "type": "ptp", "ipMasq": false, "mtu": 1500,
        "ipam": {
            "type": "host-local",
            "dataDir": node.file("addresses"),
            "ranges": [[{"subnet": node.pods()}]],
            "routes": [{"dst": "0.0.0.0/0"}]}}]})
}

/// `syncFrequency` of a second brings changed ConfigMaps into pods within two. What ended is started again soon:
/// tests kill things, and would else wait most of their time for the kubelet's patience. `maxPods` leaves room for
/// those that `cargo e2e figures` starts at once.
fn kubelet(layout: &Layout, node: &Node) -> serde_json::Value {
    let serving = |kind: &str| layout.pki(&format!("{}-serving.{kind}", node.name()));
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": false,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", layout.cgroup(&node.name())),
        "failSwapOn": false,
        "containerRuntimeEndpoint": format!("unix://{}", node.socket().display()),
        "address": node.address(),
        "authentication": {
            "anonymous": {"enabled": false},
            "webhook": {"enabled": true},
            "x509": {"clientCAFile": layout.pki("ca.crt")}},
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": serving("crt"),
        "tlsPrivateKeyFile": serving("key"),
        "clusterDNS": [DNS_SERVICE],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "maxPods": 200,
        "syncFrequency": "1s",
        "crashLoopBackOff": {"maxContainerRestartPeriod": "2s"},
        "serializeImagePulls": false,
        "volumePluginDir": node.file("volume-plugins"),
        "podLogsDir": node.file("pod-logs"),
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"}
    })
}

/// Connection tracking limits are the machine's: zero leaves them alone.
fn proxy(layout: &Layout, node: &Node) -> serde_json::Value {
    json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": layout.pki("proxy.conf")},
        "hostnameOverride": node.name(),
        "clusterCIDR": PODS,
        "healthzBindAddress": "127.0.0.1:10256",
        "metricsBindAddress": "127.0.0.1:10249",
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "nftables": {"minSyncPeriod": "100ms", "syncPeriod": "30s"}
    })
}
