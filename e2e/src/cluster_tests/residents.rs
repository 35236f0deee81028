//! What runs on a node before its power fails, and whether all of it is back: each container has started again, each
//! pod is ready, and who looks for it finds its new address. Until then the API server tells of pods that are no more.

use crate::see::{See, number, text};
use crate::wait::Seen;
use anyhow::{Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;

/// The pods of a node that were ready, by UID.
#[derive(Debug)]
pub struct Residents {
    node: String,
    pods: BTreeMap<String, Resident>,
}

/// A pod, and how often each of its running containers had been started again.
#[derive(Debug, PartialEq, Eq)]
struct Resident {
    name: String,
    restarts: BTreeMap<String, u64>,
}

impl Residents {
    /// Notes them.
    ///
    /// # Errors
    /// When the pods can't be listed, or none is ready.
    pub fn of(see: &See<'_>, node: &str) -> Result<Self> {
        let pods = pods(see, node)?;
        let ready = pods.iter().filter(|pod| is_ready(pod) && !is_ending(pod));
        let pods: BTreeMap<_, _> = ready.map(|pod| (text(pod, "/metadata/uid"), resident(pod))).collect();
        ensure!(!pods.is_empty(), "no pod of {node} is ready");
        Ok(Self { node: node.to_owned(), pods })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.pods.len()
    }

    /// Whether every one that has not been deleted since, and may start again, is back; if not, what is missing.
    ///
    /// # Errors
    /// When the API server can't be asked.
    pub fn are_back(&self, see: &See<'_>) -> Result<Seen<()>> {
        let (pods, slices) = (pods(see, &self.node)?, see.items(&["endpointslices", "-A"])?);
        let mut missing = Vec::new();
        for pod in pods.iter().filter(|pod| !is_ending(pod)) {
            let Some(before) = self.pods.get(&text(pod, "/metadata/uid")) else { continue };
            if let Some(what) = missing_of(pod, before, &slices) {
                missing.push(format!("{}: {what}", before.name));
            }
        }
        Ok(if missing.is_empty() { Seen::Done(()) } else { Seen::Not(missing.join("; ")) })
    }
}

fn pods(see: &See<'_>, node: &str) -> Result<Vec<Value>> {
    see.items(&["pods", "-A", "--field-selector", &format!("spec.nodeName={node}")])
}

fn resident(pod: &Value) -> Resident {
    let name = format!("{}/{}", text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
    let running = statuses(pod).filter(|status| status.pointer("/state/running").is_some());
    let restarts = running.map(|status| (text(status, "/name"), number(status, "/restartCount"))).collect();
    Resident { name, restarts }
}

/// Sidecars are among the init containers.
fn statuses(pod: &Value) -> impl Iterator<Item = &Value> {
    let lists = ["/status/initContainerStatuses", "/status/containerStatuses"];
    lists.into_iter().filter_map(|list| pod.pointer(list)?.as_array()).flatten()
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    let mut ready = conditions.into_iter().flatten().filter(|condition| text(condition, "/type") == "Ready");
    ready.any(|condition| text(condition, "/status") == "True")
}

/// It is being deleted, or its policy is not to start again.
fn is_ending(pod: &Value) -> bool {
    let phase = text(pod, "/status/phase");
    pod.pointer("/metadata/deletionTimestamp").is_some() || ["Succeeded", "Failed"].contains(&&*phase)
}

/// What a pod has not yet of what it had; `slices` are all of the cluster.
fn missing_of(pod: &Value, before: &Resident, slices: &[Value]) -> Option<String> {
    for (container, restarts) in &before.restarts {
        let again = |status: &Value| {
            text(status, "/name") == *container
                && number(status, "/restartCount") > *restarts
                && status.get("ready") == Some(&Value::Bool(true))
        };
        if !statuses(pod).any(again) {
            return Some(format!("{container} has not started again"));
        }
    }
    if !is_ready(pod) {
        return Some("not ready".to_owned());
    }
    let (uid, address) = (text(pod, "/metadata/uid"), text(pod, "/status/podIP"));
    let endpoints =
        slices.iter().filter_map(|slice| slice.get("endpoints")?.as_array()).flatten().filter(|endpoint| {
            text(endpoint, "/targetRef/kind") == "Pod" && text(endpoint, "/targetRef/uid") == uid
        });
    let is_current = |endpoint: &Value| {
        text(endpoint, "/addresses/0") == address
            && endpoint.pointer("/conditions/ready") == Some(&Value::Bool(true))
    };
    let stale = endpoints.filter(|endpoint| !is_current(endpoint)).count();
    (stale > 0).then(|| format!("{stale} stale endpoints, for it has {address} now"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(address: &str, ready: &str, restarts: [u64; 2]) -> Value {
        let container = |name: &str, restarts: u64| json!({"name": name, "restartCount": restarts, "ready": true, "state": {"running": {}}});
        let done = json!({"name": "once", "restartCount": 0, "ready": true, "state": {"terminated": {}}});
        json!({"metadata": {"namespace": "shop", "name": "api-1", "uid": "u1"}, "status": {
            "podIP": address, "conditions": [{"type": "Ready", "status": ready}],
            "initContainerStatuses": [done, container("cinch-proxy", restarts[0])],
            "containerStatuses": [container("app", restarts[1])]}})
    }

    fn slice(address: &str, ready: bool) -> Value {
        json!({"endpoints": [
            {"addresses": [address], "conditions": {"ready": ready}, "targetRef": {"kind": "Pod", "uid": "u1"}},
            {"addresses": ["10.0.0.99"], "targetRef": {"kind": "Pod", "uid": "another"}}]})
    }

    #[test]
    fn a_pod_is_back_when_all_of_it_has_restarted_and_its_endpoints_have_its_new_address() {
        let before = resident(&pod("10.0.0.1", "True", [0, 2]));
        let restarts = [("cinch-proxy".to_owned(), 0), ("app".to_owned(), 2)];
        assert_eq!(before, Resident { name: "shop/api-1".to_owned(), restarts: restarts.into() });
        let missing = |pod: &Value, slices: &[Value]| missing_of(pod, &before, slices);
        // As the API server tells it until the kubelet has looked.
        let stale = pod("10.0.0.1", "True", [0, 2]);
        assert_eq!(missing(&stale, &[slice("10.0.0.1", true)]).unwrap(), "app has not started again");
        let half = pod("10.0.0.2", "True", [0, 3]);
        assert_eq!(missing(&half, &[]).unwrap(), "cinch-proxy has not started again");
        let unready = pod("10.0.0.2", "False", [1, 3]);
        assert_eq!(missing(&unready, &[]).unwrap(), "not ready");
        let back = pod("10.0.0.2", "True", [1, 3]);
        for slice in [slice("10.0.0.1", true), slice("10.0.0.2", false)] {
            assert_eq!(missing(&back, &[slice]).unwrap(), "1 stale endpoints, for it has 10.0.0.2 now");
        }
        assert_eq!(missing(&back, &[slice("10.0.0.2", true)]), None);
        assert_eq!(missing(&back, &[]), None, "it is behind no Service");
    }
}
