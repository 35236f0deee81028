//! What a pod has got from us and what it has not, and what the node agent may do: as the API server stores it.

use crate::install::Redirect;
use crate::see::{APP_IMAGE, See, text};
use anyhow::{Result, ensure};
use serde_json::{Value, json};

/// The volumes of every sidecar: its token, and what it trusts.
const VOLUMES: [&str; 2] = ["cinch-token", "cinch-trust"];
/// The one more that stands for `cinch-init`: the socket of the node's agent.
const SOCKET: &str = "cinch-agent";

/// Checks the sidecar of a pod and that nothing else was added; returns its service account.
pub fn pod(pod: &Value, redirect: Redirect) -> Result<String> {
    let name = text(pod, "/metadata/name");
    let all = |list: &str| pod.pointer(list).and_then(Value::as_array).cloned().unwrap_or_default();
    let init = all("/spec/initContainers");
    let names: Vec<String> = init.iter().map(|container| text(container, "/name")).collect();
    ensure!(names == redirect.containers(), "{name} has the init containers {names:?}");
    let sidecar = init.last().cloned().unwrap_or_default();
    ensure!(text(&sidecar, "/restartPolicy") == "Always", "{name}: no native sidecar");
    let capable = |container: &&Value| {
        let added = container.pointer("/securityContext/capabilities/add").is_some();
        added && text(container, "/name") != "cinch-init"
    };
    let capable = init.iter().chain(&all("/spec/containers")).filter(capable).count();
    ensure!(capable == 0, "{name} has {capable} containers with capabilities");
    ensure!(text(pod, "/spec/containers/0/image") == APP_IMAGE, "{name}: the app's own image was changed");
    volumes(&name, &all("/spec/volumes"), &all("/spec/containers"), redirect)?;
    Ok(text(pod, "/spec/serviceAccountName"))
}

/// The demo's own volumes are none of `cinch-*`; those that are must be the sidecar's and in none of the apps.
fn volumes(pod: &str, volumes: &[Value], apps: &[Value], redirect: Redirect) -> Result<()> {
    let ours = |name: &String| name.starts_with("cinch-");
    let mut found: Vec<String> = volumes.iter().map(|volume| text(volume, "/name")).filter(ours).collect();
    found.sort();
    let mut expected: Vec<&str> = VOLUMES.to_vec();
    expected.extend((redirect == Redirect::Agent).then_some(SOCKET));
    expected.sort_unstable();
    ensure!(found == expected, "{pod} has the volumes {found:?}, not {expected:?}");
    let mounts =
        |app: &Value| app.pointer("/volumeMounts").and_then(Value::as_array).cloned().unwrap_or_default();
    let shared = apps.iter().flat_map(mounts).map(|mount| text(&mount, "/name")).filter(ours).count();
    ensure!(shared == 0, "{pod}: {shared} of our volumes are mounted in an app");
    Ok(())
}

/// The agent has the rights that it needs and no others: neither the node's network, nor the API, nor the
/// runtime's socket.
pub fn node_agent(see: &See<'_>) -> Result<String> {
    let daemons = see.json(&["daemonset", "cinch-node", "-n", "cinch-system"])?;
    let spec = daemons.pointer("/spec/template/spec").cloned().unwrap_or_default();
    let says = |place: &str, wanted: Value| {
        let found = spec.pointer(place).cloned().unwrap_or_default();
        ensure!(found == wanted, "cinch-node has {found} at {place}, not {wanted}");
        Ok(())
    };
    says("/hostPID", json!(true))?;
    says("/hostNetwork", json!(null))?;
    says("/hostIPC", json!(null))?;
    says("/automountServiceAccountToken", json!(false))?;
    says("/securityContext/seccompProfile", json!({"type": "RuntimeDefault"}))?;
    let containers = spec.pointer("/containers").and_then(Value::as_array).map_or(0, Vec::len);
    ensure!(
        containers == 1 && spec.get("initContainers").is_none(),
        "cinch-node has {containers} containers"
    );
    let rights = "/containers/0/securityContext";
    says(&format!("{rights}/runAsUser"), json!(0))?;
    says(&format!("{rights}/privileged"), json!(null))?;
    says(&format!("{rights}/allowPrivilegeEscalation"), json!(false))?;
    says(&format!("{rights}/readOnlyRootFilesystem"), json!(true))?;
    let capabilities = json!({"drop": ["ALL"], "add": ["NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"]});
    says(&format!("{rights}/capabilities"), capabilities)?;
    let volumes = spec.pointer("/volumes").and_then(Value::as_array).cloned().unwrap_or_default();
    let paths: Vec<String> = volumes.iter().map(|volume| text(volume, "/hostPath/path")).collect();
    // The first three are the kubelet's, wherever its own directory is.
    for end in ["/plugins/node.cinch.dev", "/plugins_registry", "/pods", "/sys/fs/cgroup"] {
        let found = paths.iter().filter(|path| path.ends_with(end)).count();
        ensure!(found == 1, "cinch-node has {found} of the node's {end}: {paths:?}");
    }
    ensure!(paths.len() == 4, "cinch-node mounts more of the node: {paths:?}");
    Ok(format!("cinch-node: 3 capabilities, {} paths of the node, no token", paths.len()))
}
