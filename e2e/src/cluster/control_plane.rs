//! The control plane's part: the plan of the cluster's first process. It makes the bridge, then runs etcd, the
//! API server, the controllers, the scheduler and DNS.

use super::layout::{API_PORT, BRIDGE, CONTROL_PLANE, DNS_SERVICE, Layout, Node, SERVICES};
use super::plan::{Plan, Step, daemon, run, until};
use crate::prepare::Prepared;
use anyhow::Result;
use std::fs;

const ETCD: &str = "http://127.0.0.1:2379";

/// Writes the files that the control plane reads, and returns its plan.
///
/// # Errors
/// When a file can't be written.
pub fn plan(layout: &Layout, nodes: &[Node], prepared: &Prepared) -> Result<Plan> {
    fs::create_dir_all(layout.logs())?;
    fs::create_dir_all(layout.file("temporary"))?;
    fs::write(layout.file("dns.yaml"), dns_objects())?;
    fs::write(layout.file("Corefile"), corefile(layout))?;
    let mut steps = network(nodes);
    steps.extend(daemons(layout, prepared));
    Ok(Plan {
        logs: layout.logs(),
        path: prepared.path.to_string_lossy().into_owned(),
        done: layout.file("control-plane.done"),
        steps,
    })
}

/// Mounts and links. Mounts are shared from here down, so that pods' propagation works, and `/run` is covered,
/// so that no program leaves a file in the machine's own.
fn network(nodes: &[Node]) -> Vec<Step> {
    let mut steps = vec![
        run("mount -n --make-rshared /"),
        run("mount -n -t tmpfs tmpfs /run"),
        run("ip link set lo up"),
        run(&format!("ip link add {BRIDGE} type bridge")),
        run(&format!("ip addr add {CONTROL_PLANE}/24 dev {BRIDGE}")),
        run(&format!("ip link set {BRIDGE} up")),
    ];
    for node in nodes {
        steps.push(run(&format!("ip route add {} via {} dev {BRIDGE}", node.pods(), node.address())));
    }
    if let Some(first) = nodes.first() {
        // So that the test program reaches Services too.
        steps.push(run(&format!("ip route add {SERVICES} via {} dev {BRIDGE}", first.address())));
    }
    steps
}

fn daemons(layout: &Layout, prepared: &Prepared) -> Vec<Step> {
    let cluster = prepared.cluster.display();
    let state = layout.state.display();
    let admin = layout.admin();
    let kubectl = format!("{} --kubeconfig={}", prepared.kubectl.display(), admin.display());
    let config = |name: &str| {
        let path = layout.pki(&format!("{name}.conf"));
        let path = path.display();
        format!("--kubeconfig={path} --authentication-kubeconfig={path} --authorization-kubeconfig={path}")
    };
    let controllers = format!(
        "{cluster} kube-controller-manager {} --service-account-private-key-file={state}/pki/sa.key \
         --root-ca-file={state}/pki/ca.crt --cluster-signing-cert-file={state}/pki/ca.crt \
         --cluster-signing-key-file={state}/pki/ca.key --use-service-account-credentials=true \
         --leader-elect=false --bind-address=127.0.0.1 --flex-volume-plugin-dir={state}/temporary/flex \
         --kube-api-qps=1000 --kube-api-burst=2000",
        config("controllers")
    );
    let scheduler = format!(
        "{cluster} kube-scheduler {} --leader-elect=false --bind-address=127.0.0.1",
        config("scheduler")
    );
    vec![
        daemon("etcd", &format!("{cluster} etcd {state}/etcd {ETCD} http://127.0.0.1:2380")),
        daemon("apiserver", &api_server(layout, prepared)),
        until(&format!("{kubectl} get --raw=/readyz")),
        daemon("controllers", &controllers),
        daemon("scheduler", &scheduler),
        until(&format!("{kubectl} apply --filename={state}/dns.yaml")),
        daemon("dns", &format!("{} -conf {state}/Corefile", prepared.dns.display())),
    ]
}

/// `enable-aggregator-routing` sends calls of webhooks straight to pod addresses, so that the control plane
/// needs no kube-proxy.
fn api_server(layout: &Layout, prepared: &Prepared) -> String {
    let pki = layout.pki("");
    let pki = pki.display();
    format!(
        "{} kube-apiserver --etcd-servers={ETCD} --bind-address={CONTROL_PLANE} --secure-port={API_PORT} \
         --advertise-address={CONTROL_PLANE} --tls-cert-file={pki}apiserver.crt \
         --tls-private-key-file={pki}apiserver.key --client-ca-file={pki}ca.crt \
         --service-account-issuer=https://kubernetes.default.svc.cluster.local \
         --service-account-key-file={pki}sa.pub --service-account-signing-key-file={pki}sa.key \
         --service-cluster-ip-range={SERVICES} --authorization-mode=Node,RBAC \
         --enable-admission-plugins=NodeRestriction --allow-privileged=true --profiling=false \
         --kubelet-certificate-authority={pki}ca.crt --kubelet-client-certificate={pki}apiserver-kubelet.crt \
         --kubelet-client-key={pki}apiserver-kubelet.key --kubelet-preferred-address-types=InternalIP \
         --enable-aggregator-routing=true --endpoint-reconciler-type=master-count",
        prepared.cluster.display()
    )
}

fn corefile(layout: &Layout) -> String {
    format!(
        "cluster.local in-addr.arpa ip6.arpa {{\n    bind {CONTROL_PLANE}\n    errors\n    \
         kubernetes cluster.local in-addr.arpa ip6.arpa {{\n        kubeconfig {}\n        pods insecure\n        \
         ttl 5\n    }}\n}}\n",
        layout.pki("dns.conf").display()
    )
}

/// DNS runs beside the control plane, so its Service has no selector but an EndpointSlice of its own.
fn dns_objects() -> String {
    format!(
        r#"apiVersion: v1
kind: Service
metadata: {{name: kube-dns, namespace: kube-system, labels: {{k8s-app: kube-dns}}}}
spec:
  clusterIP: {DNS_SERVICE}
  ports: [{{name: dns, port: 53, protocol: UDP}}, {{name: dns-tcp, port: 53, protocol: TCP}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: kube-dns, namespace: kube-system, labels: {{kubernetes.io/service-name: kube-dns}}}}
addressType: IPv4
ports: [{{name: dns, port: 53, protocol: UDP}}, {{name: dns-tcp, port: 53, protocol: TCP}}]
endpoints: [{{addresses: ["{CONTROL_PLANE}"], conditions: {{ready: true}}}}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: cluster-dns}}
rules:
- {{apiGroups: [""], resources: [services, pods, namespaces], verbs: [list, watch]}}
- {{apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: cluster-dns}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-dns}}
subjects: [{{apiGroup: rbac.authorization.k8s.io, kind: User, name: cluster-dns}}]
"#
    )
}
