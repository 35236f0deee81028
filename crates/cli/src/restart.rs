//! Rolling restarts, and following them until every counted pod is as it should be.

use crate::cluster::{Cluster, manager, number, text};
use crate::refusal::denial;
use crate::survey::{PodFacts, pods_now};
use anyhow::{Context, Result, bail};
use cinch_injection::{Owner, OwnerKind};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use kube::Resource;
use kube::api::Patch;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Debug;
use std::time::{Duration, Instant};

/// How the pods should end up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// All with the sidecar.
    Meshed,
    /// All without it.
    Unmeshed,
}

impl Goal {
    fn word(self) -> &'static str {
        match self {
            Self::Meshed => "meshed",
            Self::Unmeshed => "unmeshed",
        }
    }

    fn holds(self, pod: &PodFacts) -> bool {
        pod.meshed == (self == Self::Meshed)
    }
}

/// How often the cluster is looked at while following.
const LOOK: Duration = Duration::from_secs(1);

/// Restarts workloads as `kubectl rollout restart` does, and says so.
///
/// # Errors
/// When a workload may not be changed.
pub async fn restart(cluster: &Cluster, namespace: &str, owners: &[Owner]) -> Result<()> {
    let now = jiff::Timestamp::now().to_string();
    let template = json!({"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": now}}});
    let patch = json!({"spec": {"template": template}});
    for owner in owners {
        let done = match owner.kind {
            OwnerKind::Deployment => change::<Deployment>(cluster, namespace, &owner.name, &patch).await,
            OwnerKind::StatefulSet => change::<StatefulSet>(cluster, namespace, &owner.name, &patch).await,
            OwnerKind::DaemonSet => change::<DaemonSet>(cluster, namespace, &owner.name, &patch).await,
            _ => continue,
        };
        done.with_context(|| format!("restarting {owner}"))?;
        println!("restarted {owner}");
    }
    Ok(())
}

async fn change<K>(cluster: &Cluster, namespace: &str, name: &str, patch: &Value) -> Result<()>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    K::DynamicType: Default,
{
    cluster.of::<K>(namespace).patch(name, &manager(), &Patch::Merge(patch)).await?;
    Ok(())
}

/// Prints progress until the workloads have rolled out and the counted pods are as `goal` says.
///
/// # Errors
/// When that is not so after `limit`: with what the pods and workloads say.
pub async fn follow(
    cluster: &Cluster,
    namespace: &str,
    owners: &[Owner],
    goal: Goal,
    limit: Duration,
) -> Result<()> {
    let end = Instant::now() + limit;
    let mut said = String::new();
    loop {
        let mut left = Vec::new();
        for owner in owners {
            let object = read(cluster, namespace, owner).await?;
            if !object.as_ref().is_none_or(|object| rolled_out(owner.kind, object)) {
                left.push((owner, object.unwrap_or_default()));
            }
        }
        let pods = pods_now(cluster, namespace).await?;
        let line = progress(&pods, goal, owners.len(), left.len());
        if line != said {
            println!("{line}");
            said = line;
        }
        if left.is_empty() && !waits_for_agent(&pods, goal) {
            remaining(&pods, goal, owners);
            return Ok(());
        }
        if Instant::now() >= end {
            bail!("{}", unfinished(&left, &pods, limit));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Whether pods that leave the mesh still need the node agent to come to their end.
fn waits_for_agent(pods: &[PodFacts], goal: Goal) -> bool {
    goal == Goal::Unmeshed && pods.iter().any(|pod| pod.ending && pod.holds_volume)
}

fn progress(pods: &[PodFacts], goal: Goal, workloads: usize, left: usize) -> String {
    let counting = pods.iter().filter(|pod| pod.counts()).count();
    let done = pods.iter().filter(|pod| pod.counts() && goal.holds(pod)).count();
    let ready = pods.iter().filter(|pod| pod.counts() && goal.holds(pod) && pod.ready).count();
    let rolled = workloads - left.min(workloads);
    let ending = pods.iter().filter(|_| goal == Goal::Unmeshed).filter(|pod| pod.ending && pod.holds_volume);
    let ending = match ending.count() {
        0 => String::new(),
        count => format!("; {count} with the sidecar are ending"),
    };
    let word = goal.word();
    format!("{word} {done}/{counting}, {ready} ready; {rolled} of {workloads} workloads rolled out{ending}")
}

/// Pods that no restart of ours touched.
fn remaining(pods: &[PodFacts], goal: Goal, owners: &[Owner]) {
    for pod in pods.iter().filter(|pod| pod.counts() && !goal.holds(pod)) {
        let because = pod.left_out.as_deref().map(|word| format!(" ({word})")).unwrap_or_default();
        let whose = if owners.contains(&pod.owner) { "was left" } else { "still runs as it was" };
        println!("  ! pod {} {whose}{because}", pod.name);
    }
}

fn unfinished(left: &[(&Owner, Value)], pods: &[PodFacts], limit: Duration) -> String {
    let mut lines = vec![format!("not finished after {} s:", limit.as_secs())];
    for pod in pods.iter().filter(|pod| pod.ending && pod.holds_volume) {
        lines.push(format!(
            "  pod {} on {} has not ended yet: it needs the agent of its node",
            pod.name, pod.node
        ));
    }
    for (owner, object) in left {
        lines.push(format!(
            "  {owner}: {}",
            failure(object).unwrap_or_else(|| "not all replicas are available".to_owned())
        ));
        let stuck = pods.iter().filter(|pod| &&pod.owner == owner && pod.counts() && !pod.ready);
        for pod in stuck {
            let trouble = pod.trouble.as_deref().unwrap_or("is not ready");
            lines.push(format!("    pod {} {trouble}", pod.name));
        }
    }
    lines.join("\n")
}

/// Why the workload's controller can't make pods: a refusal of ours stands there.
fn failure(object: &Value) -> Option<String> {
    let conditions = object.pointer("/status/conditions")?.as_array()?;
    let failed =
        conditions.iter().find(|c| text(c, "/type") == "ReplicaFailure" && text(c, "/status") == "True")?;
    let message = text(failed, "/message");
    Some(denial(message).unwrap_or(message).to_owned())
}

async fn read(cluster: &Cluster, namespace: &str, owner: &Owner) -> Result<Option<Value>> {
    match owner.kind {
        OwnerKind::Deployment => raw::<Deployment>(cluster, namespace, &owner.name).await,
        OwnerKind::StatefulSet => raw::<StatefulSet>(cluster, namespace, &owner.name).await,
        OwnerKind::DaemonSet => raw::<DaemonSet>(cluster, namespace, &owner.name).await,
        _ => Ok(None),
    }
}

async fn raw<K>(cluster: &Cluster, namespace: &str, name: &str) -> Result<Option<Value>>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope> + Clone + DeserializeOwned + Serialize + Debug,
    K::DynamicType: Default,
{
    let object = cluster.of::<K>(namespace).get_opt(name).await?;
    Ok(object.map(|object| serde_json::to_value(object)).transpose()?)
}

/// Whether the newest template is everywhere, as `kubectl rollout status` sees it.
fn rolled_out(kind: OwnerKind, object: &Value) -> bool {
    if number(object, "/status/observedGeneration") < number(object, "/metadata/generation") {
        return false;
    }
    let status = |field: &str| number(object, &format!("/status/{field}"));
    let wanted = object.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(1);
    match kind {
        OwnerKind::Deployment => {
            let (updated, all) = (status("updatedReplicas"), status("replicas"));
            updated >= wanted && all <= updated && status("availableReplicas") >= updated
        }
        OwnerKind::StatefulSet => {
            let partition = number(object, "/spec/updateStrategy/rollingUpdate/partition");
            status("readyReplicas") >= wanted && status("updatedReplicas") >= wanted - partition
        }
        OwnerKind::DaemonSet => {
            let wanted = status("desiredNumberScheduled");
            status("updatedNumberScheduled") >= wanted && status("numberAvailable") >= wanted
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rollout_is_over_when_the_newest_template_is_everywhere() {
        let deployment = |observed: i64, updated: i64, all: i64, available: i64| {
            json!({"metadata": {"generation": 2}, "spec": {"replicas": 2}, "status": {"observedGeneration": observed,
                "updatedReplicas": updated, "replicas": all, "availableReplicas": available}})
        };
        let cases = [
            ("not yet seen", deployment(1, 2, 2, 2), false),
            ("half updated", deployment(2, 1, 2, 2), false),
            ("old pods left", deployment(2, 2, 3, 3), false),
            ("not available", deployment(2, 2, 2, 1), false),
            ("over", deployment(2, 2, 2, 2), true),
        ];
        for (name, object, over) in cases {
            assert_eq!(rolled_out(OwnerKind::Deployment, &object), over, "{name}");
        }
        let zero = json!({"metadata": {"generation": 1}, "spec": {"replicas": 0}, "status": {"observedGeneration": 1}});
        assert!(rolled_out(OwnerKind::Deployment, &zero));
        assert!(rolled_out(OwnerKind::StatefulSet, &zero));
    }

    #[test]
    fn a_refused_replica_is_told_in_the_words_of_the_policy() {
        let message = "pods \"web-1\" is forbidden: ValidatingAdmissionPolicy 'cinch-pods' with binding 'cinch-pods' \
                       denied request: SidecarMissing: this namespace requires it";
        let object = json!({"status": {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": message}]}});
        assert_eq!(failure(&object).as_deref(), Some("SidecarMissing: this namespace requires it"));
    }

    #[test]
    fn progress_counts_only_what_counts() {
        let pod = |name: &str, meshed: bool, ending: bool| PodFacts {
            name: name.to_owned(),
            owner: Owner::new(OwnerKind::Deployment, "web"),
            meshed,
            host_network: false,
            ending,
            node: "node1".to_owned(),
            holds_volume: meshed,
            ready: meshed,
            left_out: None,
            trouble: None,
        };
        let pods = [pod("a", true, false), pod("b", false, false), pod("c", false, true)];
        assert_eq!(progress(&pods, Goal::Meshed, 2, 1), "meshed 1/2, 1 ready; 1 of 2 workloads rolled out");
        assert_eq!(
            progress(&pods, Goal::Unmeshed, 2, 0),
            "unmeshed 1/2, 0 ready; 2 of 2 workloads rolled out"
        );
        let gone = [pod("a", false, false), pod("b", true, true)];
        assert!(waits_for_agent(&gone, Goal::Unmeshed) && !waits_for_agent(&gone, Goal::Meshed));
        assert!(!waits_for_agent(&pods, Goal::Unmeshed), "neither runs on with it nor ends without it");
        assert_eq!(
            progress(&gone, Goal::Unmeshed, 1, 0),
            "unmeshed 1/1, 0 ready; 1 of 1 workloads rolled out; 1 with the sidecar are ending"
        );
    }
}
