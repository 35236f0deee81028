//! What a namespace holds before something is changed: workloads, pods, accounts, policies. Out: plain facts
//! for the pure preflight.

use crate::cluster::{Cluster, number, text};
use anyhow::Result;
use cinch_api::names::{INIT_CONTAINER, INJECTED_ANNOTATION, OPERATOR, PROXY_CONTAINER};
use cinch_injection::{
    AGENT_DRIVER, AccountState, JobOrigin, MANAGED_BY_LABEL, OWNER_ANNOTATION, Owner, OwnerKind, Redirect,
};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::rbac::v1::{ClusterRoleBinding, RoleBinding, Subject};
use kube::api::{Api, ListParams};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::net::IpAddr;

/// Selects the node agents.
pub const AGENTS: &str = "app.kubernetes.io/name=cinch-node";

/// Labels or annotations.
pub type Labels = BTreeMap<String, String>;

/// A namespace as it stands.
#[derive(Debug, Default)]
pub struct Survey {
    /// Its name.
    pub namespace: String,
    /// Its labels.
    pub labels: Labels,
    /// Its annotations.
    pub annotations: Labels,
    /// Everything that makes pods.
    pub workloads: Vec<Workload>,
    /// All pods.
    pub pods: Vec<PodFacts>,
    /// All service accounts.
    pub accounts: BTreeMap<String, AccountState>,
    /// What hangs on the account `default`, such as `RoleBinding/ci`.
    pub bound_to_default: Vec<String>,
    /// All network policies.
    pub network_policies: Vec<NetworkPolicy>,
    /// Where the operator is.
    pub operator: OperatorPlace,
    /// Who sets the redirect of new pods.
    pub redirect: Redirect,
    /// Nodes of its pods on which no agent is ready, where agents set the redirect.
    pub without_agent: BTreeSet<String>,
    /// What the user may not look at, so that nothing can be said of it.
    pub unseen: BTreeSet<Unseen>,
}

/// What the user may not look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unseen {
    /// Some bindings of roles: permissions may hang on the account `default`.
    Bindings,
    /// The node agents: nodes may be without one.
    Agents,
    /// The settings of the installation: an init container may set redirects.
    Settings,
}

/// What a network policy could say about the operator's pods.
#[derive(Debug, Default)]
pub struct OperatorPlace {
    /// Labels of its namespace.
    pub namespace_labels: Labels,
    /// Labels of its pods.
    pub pod_labels: Labels,
    /// Addresses of its pods.
    pub addresses: Vec<IpAddr>,
}

/// Something that makes pods.
#[derive(Debug, Clone)]
pub struct Workload {
    /// Kind and name.
    pub owner: Owner,
    /// Its pod template as JSON.
    pub template: Value,
    /// It replaces pods by itself when its template changes.
    pub restarts: bool,
    /// Why it does not, where one would expect it to.
    pub manual: Option<&'static str>,
}

/// A pod, as far as enrolment cares.
#[derive(Debug, Clone)]
pub struct PodFacts {
    /// Its name.
    pub name: String,
    /// What made it.
    pub owner: Owner,
    /// It has our sidecar, read from its spec.
    pub meshed: bool,
    /// It runs on the node's network and can't be meshed.
    pub host_network: bool,
    /// Ended or being deleted.
    pub ending: bool,
    /// The node that it runs on; empty while it has none.
    pub node: String,
    /// It has a volume of the node agent that is not given back yet.
    pub holds_volume: bool,
    /// Ready.
    pub ready: bool,
    /// The word with which the webhook left it out.
    pub left_out: Option<String>,
    /// Why a container of it waits or has failed, in the kubelet's words.
    pub trouble: Option<String>,
}

impl PodFacts {
    /// Whether the pod counts in `meshed n/n`.
    #[must_use]
    pub fn counts(&self) -> bool {
        !self.host_network && !self.ending
    }
}

/// Reads everything of a namespace.
///
/// # Errors
/// When workloads or pods may not be read. What else may not be read is in [`Survey::unseen`].
pub async fn read(cluster: &Cluster, namespace: &Namespace) -> Result<Survey> {
    let name = namespace.name_any();
    let mut workloads = Vec::new();
    for item in list::<Deployment>(cluster, &name).await? {
        workloads.push(workload(OwnerKind::Deployment, &item)?);
    }
    for item in list::<StatefulSet>(cluster, &name).await? {
        workloads.push(workload(OwnerKind::StatefulSet, &item)?);
    }
    for item in list::<DaemonSet>(cluster, &name).await? {
        workloads.push(workload(OwnerKind::DaemonSet, &item)?);
    }
    for item in list::<CronJob>(cluster, &name).await? {
        workloads.push(workload(OwnerKind::CronJob, &item)?);
    }
    let jobs = list::<Job>(cluster, &name).await?;
    for item in jobs.iter().filter(|job| origin(job) == JobOrigin::Named && !ended(job)) {
        workloads.push(workload(OwnerKind::Job, item)?);
    }
    let origins: BTreeMap<String, JobOrigin> = jobs.iter().map(|job| (job.name_any(), origin(job))).collect();
    let (pods, settings) = (pods(cluster, &name, &origins).await?, cluster.redirect().await?);
    let mut unseen = BTreeSet::new();
    if settings.is_none() {
        unseen.insert(Unseen::Settings);
    }
    let redirect = settings.unwrap_or_default();
    Ok(Survey {
        without_agent: without_agent(cluster, redirect, &pods, &mut unseen).await,
        redirect,
        labels: namespace.labels().clone(),
        annotations: namespace.annotations().clone(),
        workloads,
        pods,
        accounts: accounts(cluster, &name).await?,
        bound_to_default: bound_to_default(cluster, &name, &mut unseen).await,
        network_policies: list(cluster, &name).await?,
        operator: operator(cluster).await?,
        unseen,
        namespace: name,
    })
}

/// The pods of a namespace as they stand now.
///
/// # Errors
/// When they may not be read.
pub async fn pods_now(cluster: &Cluster, namespace: &str) -> Result<Vec<PodFacts>> {
    let jobs = list::<Job>(cluster, namespace).await?;
    let origins = jobs.iter().map(|job| (job.name_any(), origin(job))).collect();
    pods(cluster, namespace, &origins).await
}

async fn list<K>(cluster: &Cluster, namespace: &str) -> Result<Vec<K>>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    K::DynamicType: Default,
{
    Ok(cluster.of::<K>(namespace).list(&ListParams::default()).await?.items)
}

fn workload<K>(kind: OwnerKind, object: &K) -> Result<Workload>
where
    K: ResourceExt + serde::Serialize,
{
    let value = serde_json::to_value(object)?;
    let path = if kind == OwnerKind::CronJob { "/spec/jobTemplate/spec/template" } else { "/spec/template" };
    let restarts = matches!(kind, OwnerKind::Deployment | OwnerKind::StatefulSet | OwnerKind::DaemonSet);
    let manual = if value.pointer("/spec/paused").and_then(Value::as_bool) == Some(true) {
        Some("it is paused")
    } else if text(&value, "/spec/updateStrategy/type") == "OnDelete" {
        Some("its update strategy is OnDelete")
    } else {
        None
    };
    Ok(Workload {
        owner: Owner::new(kind, object.name_any()),
        template: value.pointer(path).cloned().unwrap_or_default(),
        restarts,
        manual,
    })
}

fn origin(job: &Job) -> JobOrigin {
    let controller = job.owner_references().iter().find(|reference| reference.controller == Some(true));
    let controller = controller.map(|r| (r.api_version.as_str(), r.kind.as_str(), r.name.as_str()));
    JobOrigin::of(job.metadata.generate_name.as_deref(), controller)
}

fn ended(job: &Job) -> bool {
    let conditions = job.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| {
        all.iter().any(|c| matches!(c.type_.as_str(), "Complete" | "Failed") && c.status == "True")
    })
}

async fn pods(
    cluster: &Cluster,
    namespace: &str,
    jobs: &BTreeMap<String, JobOrigin>,
) -> Result<Vec<PodFacts>> {
    let mut all = Vec::new();
    for pod in list::<Pod>(cluster, namespace).await? {
        let value = serde_json::to_value(&pod)?;
        let job = |name: &str| jobs.get(name).cloned().unwrap_or(JobOrigin::OtherController);
        let unknown = || Owner::new(OwnerKind::Unstable, pod.name_any());
        all.push(pod_facts(pod.name_any(), Owner::of_pod(&value, job).unwrap_or_else(unknown), &value));
    }
    Ok(all)
}

fn pod_facts(name: String, owner: Owner, pod: &Value) -> PodFacts {
    let init = |index: usize| text(pod, &format!("/spec/initContainers/{index}/name")).to_owned();
    let left_out =
        pod.pointer("/metadata/annotations").and_then(|all| all.get(INJECTED_ANNOTATION)?.as_str());
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    PodFacts {
        name,
        owner,
        // With a node agent there is no init container before it.
        meshed: init(0) == PROXY_CONTAINER || init(0) == INIT_CONTAINER && init(1) == PROXY_CONTAINER,
        host_network: pod.pointer("/spec/hostNetwork").and_then(Value::as_bool) == Some(true),
        ending: matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
            || pod.pointer("/metadata/deletionTimestamp").is_some(),
        ready: conditions.is_some_and(|all| {
            all.iter().any(|c| text(c, "/type") == "Ready" && text(c, "/status") == "True")
        }),
        node: text(pod, "/spec/nodeName").to_owned(),
        holds_volume: holds_volume(pod),
        left_out: left_out.filter(|word| word.starts_with(char::is_uppercase)).map(str::to_owned),
        trouble: trouble(pod),
    }
}

/// Whether a pod has a volume of the node agent, and with it a need of the agent at its end. One that has run to its
/// end has given it back.
pub fn holds_volume(pod: &Value) -> bool {
    let volumes = pod.pointer("/spec/volumes").and_then(Value::as_array);
    let finished = matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
        && pod.pointer("/metadata/deletionTimestamp").is_none();
    !finished && volumes.into_iter().flatten().any(|volume| text(volume, "/csi/driver") == AGENT_DRIVER)
}

/// The first container that waits for something else than its turn, or that has failed.
fn trouble(pod: &Value) -> Option<String> {
    let lists = ["/status/initContainerStatuses", "/status/containerStatuses"];
    let statuses = lists.iter().filter_map(|path| pod.pointer(path)?.as_array()).flatten();
    statuses.into_iter().find_map(|status| {
        let name = text(status, "/name");
        let waiting = text(status, "/state/waiting/reason");
        let last = ["/state/terminated", "/lastState/terminated"].iter().find_map(|path| {
            let ended = status.pointer(path)?;
            (number(ended, "/exitCode") != 0).then(|| text(ended, "/message").trim().to_owned())
        });
        match (waiting, last) {
            ("" | "PodInitializing" | "ContainerCreating", None) => None,
            (reason, Some(message)) => Some(format!("container {name} {reason} {message}").trim().to_owned()),
            (reason, None) => {
                let message = text(status, "/state/waiting/message");
                Some(format!("container {name} {reason} {message}").trim().to_owned())
            }
        }
    })
}

async fn accounts(cluster: &Cluster, namespace: &str) -> Result<BTreeMap<String, AccountState>> {
    let all = list::<ServiceAccount>(cluster, namespace).await?;
    let state = |account: &ServiceAccount| {
        let managed_by = account.labels().get(MANAGED_BY_LABEL).map(String::as_str);
        let owner = account.annotations().get(OWNER_ANNOTATION).map(String::as_str);
        AccountState::of(managed_by, owner)
    };
    Ok(all.iter().map(|account| (account.name_any(), state(account))).collect())
}

async fn bound_to_default(cluster: &Cluster, namespace: &str, unseen: &mut BTreeSet<Unseen>) -> Vec<String> {
    let everything = ListParams::default();
    let roles = cluster.of::<RoleBinding>(namespace).list(&everything).await.map(|l| l.items);
    let all = Api::<ClusterRoleBinding>::all(cluster.client.clone());
    let cluster_roles = all.list(&everything).await.map(|l| l.items);
    if roles.is_err() || cluster_roles.is_err() {
        unseen.insert(Unseen::Bindings);
    }
    let (roles, cluster_roles) = (roles.unwrap_or_default(), cluster_roles.unwrap_or_default());
    let within = roles
        .iter()
        .filter(|binding| names_default(binding.subjects.as_deref(), namespace))
        .map(|binding| format!("RoleBinding/{}", binding.name_any()));
    let across = cluster_roles
        .iter()
        .filter(|binding| names_default(binding.subjects.as_deref(), namespace))
        .map(|binding| format!("ClusterRoleBinding/{}", binding.name_any()));
    within.chain(across).collect()
}

fn names_default(subjects: Option<&[Subject]>, namespace: &str) -> bool {
    let user = format!("system:serviceaccount:{namespace}:default");
    subjects.unwrap_or_default().iter().any(|subject| match subject.kind.as_str() {
        "ServiceAccount" => {
            subject.name == "default" && subject.namespace.as_deref().unwrap_or(namespace) == namespace
        }
        "User" => subject.name == user,
        _ => false,
    })
}

/// Nodes of running pods on which no agent is ready.
async fn without_agent(
    cluster: &Cluster,
    redirect: Redirect,
    pods: &[PodFacts],
    unseen: &mut BTreeSet<Unseen>,
) -> BTreeSet<String> {
    if redirect != Redirect::Agent {
        return BTreeSet::new();
    }
    let selector = ListParams::default().labels(AGENTS);
    let Ok(agents) = cluster.of::<Pod>(&cluster.cinch).list(&selector).await else {
        unseen.insert(Unseen::Agents);
        return BTreeSet::new();
    };
    let ready = |pod: &&Pod| {
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
    };
    let served: BTreeSet<String> =
        agents.items.iter().filter(ready).filter_map(|pod| pod.spec.as_ref()?.node_name.clone()).collect();
    let used = pods.iter().filter(|pod| pod.counts() && !pod.node.is_empty());
    used.map(|pod| pod.node.clone()).filter(|node| !served.contains(node)).collect()
}

async fn operator(cluster: &Cluster) -> Result<OperatorPlace> {
    let namespace = Api::<Namespace>::all(cluster.client.clone()).get_opt(&cluster.cinch).await?;
    let selector = ListParams::default().labels(&format!("app.kubernetes.io/name={OPERATOR}"));
    let pods = cluster.of::<Pod>(&cluster.cinch).list(&selector).await.map(|l| l.items).unwrap_or_default();
    let addresses = pods.iter().filter_map(|pod| pod.status.as_ref()?.pod_ip.as_ref()?.parse().ok());
    Ok(OperatorPlace {
        namespace_labels: namespace.map(|n| n.labels().clone()).unwrap_or_default(),
        pod_labels: pods.first().map(|pod| pod.labels().clone()).unwrap_or_default(),
        addresses: addresses.collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn facts(pod: Value) -> PodFacts {
        pod_facts("p".to_owned(), Owner::new(OwnerKind::Unstable, "p"), &pod)
    }

    #[test]
    fn meshed_is_read_from_the_first_two_init_containers() {
        let meshed = json!({"spec": {"initContainers": [{"name": "cinch-init"}, {"name": "cinch-proxy"}, {"name": "x"}]}});
        assert!(facts(meshed).meshed);
        let by_agent = json!({"spec": {"initContainers": [{"name": "cinch-proxy"}, {"name": "x"}]}});
        assert!(facts(by_agent).meshed);
        let behind = json!({"spec": {"initContainers": [{"name": "x"}, {"name": "cinch-init"}, {"name": "cinch-proxy"}]}});
        assert!(!facts(behind).meshed);
        assert!(!facts(json!({"metadata": {"annotations": {"cinch.dev/injected": "0.1.0"}}})).meshed);
    }

    #[test]
    fn a_pod_gives_its_volume_back_when_it_has_run_to_its_end() {
        let pod = |metadata: Value, phase: &str| {
            json!({"metadata": metadata, "status": {"phase": phase},
                "spec": {"volumes": [{"name": "a", "emptyDir": {}}, {"name": "cinch-agent", "csi": {"driver": "node.cinch.dev"}}]}})
        };
        let going = json!({"deletionTimestamp": "2026-01-01T00:00:00Z"});
        assert!(holds_volume(&pod(json!({}), "Running")) && holds_volume(&pod(going, "Running")));
        assert!(!holds_volume(&pod(json!({}), "Succeeded")));
        assert!(!holds_volume(&json!({"spec": {"volumes": [{"name": "x", "csi": {"driver": "other"}}]}})));
    }

    #[test]
    fn the_webhooks_word_is_told_from_a_version() {
        let with =
            |value: &str| facts(json!({"metadata": {"annotations": {"cinch.dev/injected": value}}})).left_out;
        assert_eq!(with("OptedOut").as_deref(), Some("OptedOut"));
        assert_eq!(with("0.1.0"), None);
    }

    #[test]
    fn a_sidecar_that_gave_up_is_quoted() {
        let status = json!({"name": "cinch-proxy", "state": {"waiting": {"reason": "CrashLoopBackOff"}},
            "lastState": {"terminated": {"exitCode": 1, "message": "ControlUnreachable: no answer\n"}}});
        let pod = json!({"status": {"initContainerStatuses": [status]}});
        let said = facts(pod).trouble.unwrap();
        assert_eq!(said, "container cinch-proxy CrashLoopBackOff ControlUnreachable: no answer");
        let fine = json!({"status": {"containerStatuses": [{"name": "a", "state": {"waiting": {"reason": "PodInitializing"}}}]}});
        assert_eq!(facts(fine).trouble, None);
    }

    #[test]
    fn every_form_of_binding_to_default_counts() {
        let subject = |kind: &str, name: &str, namespace: Option<&str>| Subject {
            kind: kind.to_owned(),
            name: name.to_owned(),
            namespace: namespace.map(str::to_owned),
            ..Default::default()
        };
        let bound = |s: Subject| names_default(Some(&[s]), "shop");
        assert!(bound(subject("ServiceAccount", "default", Some("shop"))));
        assert!(bound(subject("User", "system:serviceaccount:shop:default", None)));
        assert!(!bound(subject("ServiceAccount", "default", Some("other"))));
        assert!(!bound(subject("ServiceAccount", "api", Some("shop"))));
    }
}
