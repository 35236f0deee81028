//! `check`: whether every part of Cinch is ready, and which nodes can have meshed pods. In: the API server's view, and
//! the words of node agents that are not ready. Out: a line for each check, with a hint where it fails.

mod control;
mod judge;
mod kinds;
mod policies;

use crate::cluster::{Cluster, SETTINGS};
use crate::survey::{AGENTS, holds_volume};
use anyhow::{Result, bail};
use cinch_api::names::{INIT_CONTAINER, OPERATOR, WEBHOOK};
use cinch_injection::AGENT_DRIVER;
use judge::{AgentState, Facts, NodeFacts, Part, judge};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, CSINode};
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use std::collections::{BTreeMap, BTreeSet};

/// Where an agent answers whether it is ready, and why not.
const READY: &str = "8080/proxy/readyz";

/// Prints all checks.
///
/// # Errors
/// When something can't be read, or a check fails.
pub async fn run(cluster: &Cluster) -> Result<()> {
    cluster.must_be_installed().await?;
    let lines = judge(&facts(cluster).await?);
    for line in &lines {
        print!("{line}");
    }
    match lines.iter().filter(|line| line.failed()).count() {
        0 => Ok(()),
        1 => bail!("1 check failed"),
        failed => bail!("{failed} checks failed"),
    }
}

async fn facts(cluster: &Cluster) -> Result<Facts> {
    let everything = ListParams::default();
    let version = cluster.client.apiserver_version().await?;
    let registered: BTreeSet<String> = Api::<CSINode>::all(cluster.client.clone())
        .list(&everything)
        .await?
        .iter()
        .filter(|node| node.spec.drivers.iter().any(|driver| driver.name == AGENT_DRIVER))
        .map(ResourceExt::name_any)
        .collect();
    let (agents, pods) = (agents(cluster).await?, pods_by_node(cluster).await?);
    let nodes = Api::<Node>::all(cluster.client.clone()).list(&everything).await?;
    let node = |node: &Node| {
        let name = node.name_any();
        let info = node.status.as_ref().and_then(|status| status.node_info.clone()).unwrap_or_default();
        NodeFacts {
            agent: agents.get(&name).cloned().unwrap_or(AgentState::Absent),
            registered: registered.contains(&name),
            holding: pods.holding.get(&name).copied().unwrap_or(0),
            system: info.operating_system,
            kernel: info.kernel_version,
            runtime: info.container_runtime_version,
            name,
        }
    };
    let drivers = Api::<CSIDriver>::all(cluster.client.clone());
    Ok(Facts {
        version: format!("{}.{}", version.major, version.minor.trim_end_matches('+')),
        unserved: kinds::unserved(cluster).await?,
        parts: vec![part(cluster, OPERATOR).await?, part(cluster, WEBHOOK).await?],
        leader: control::leader(cluster).await?,
        uncalled: control::uncalled(cluster).await?,
        not_in_force: policies::not_in_force(cluster).await?,
        redirect: cluster.redirect().await?,
        settings: SETTINGS.0,
        driver: drivers.get_opt(AGENT_DRIVER).await?.is_some(),
        nodes: nodes.iter().map(node).collect(),
        by_init: pods.by_init,
    })
}

async fn part(cluster: &Cluster, name: &'static str) -> Result<Part> {
    let found = cluster.of::<Deployment>(&cluster.cinch).get_opt(name).await?;
    let status = found.and_then(|found| found.status).unwrap_or_default();
    Ok(Part { name, ready: status.ready_replicas.unwrap_or(0), all: status.replicas.unwrap_or(0) })
}

/// The agent of each node.
async fn agents(cluster: &Cluster) -> Result<BTreeMap<String, AgentState>> {
    let mut agents = BTreeMap::new();
    for pod in cluster.of::<Pod>(&cluster.cinch).list(&ListParams::default().labels(AGENTS)).await? {
        let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.clone()) else { continue };
        let state = state(cluster, &pod).await;
        // While one is being replaced there are two, and one that is ready is enough.
        if agents.get(&node) != Some(&AgentState::Ready) {
            agents.insert(node, state);
        }
    }
    Ok(agents)
}

async fn state(cluster: &Cluster, pod: &Pod) -> AgentState {
    if control::is_ready(pod) {
        return AgentState::Ready;
    }
    let status = pod.status.clone().unwrap_or_default();
    let waiting = status.container_statuses.unwrap_or_default().into_iter().find_map(|container| {
        let state = container.state.unwrap_or_default();
        let waiting = state.waiting.map(|waiting| waiting.reason.unwrap_or_default());
        waiting.or_else(|| state.terminated.and_then(|ended| ended.message.or(ended.reason)))
    });
    match waiting {
        Some(waiting) => AgentState::NotReady(waiting),
        None => AgentState::NotReady(own_words(cluster, &pod.name_any()).await),
    }
}

/// What the agent itself says, by way of the API server.
async fn own_words(cluster: &Cluster, pod: &str) -> String {
    let path = format!("/api/v1/namespaces/{}/pods/{pod}:{READY}", cluster.cinch);
    let Ok(request) = http::Request::get(path).body(Vec::new()) else { return String::new() };
    match cluster.client.request_text(request).await {
        Ok(text) => text,
        Err(kube::Error::Api(status)) if status.code == 503 => status.message,
        // It may not be asked by this user, or does not answer: then its log knows.
        Err(_) => String::new(),
    }
}

/// What pods have to do with the redirect.
#[derive(Default)]
struct Pods {
    /// By node, how many can't end without its agent.
    holding: BTreeMap<String, usize>,
    /// How many have the init container.
    by_init: usize,
}

async fn pods_by_node(cluster: &Cluster) -> Result<Pods> {
    let mut pods = Pods::default();
    for pod in Api::<Pod>::all(cluster.client.clone()).list(&ListParams::default()).await? {
        let spec = pod.spec.clone().unwrap_or_default();
        let init = spec.init_containers.unwrap_or_default();
        pods.by_init += usize::from(init.first().is_some_and(|container| container.name == INIT_CONTAINER));
        if let (Some(node), true) = (spec.node_name, holds_volume(&serde_json::to_value(&pod)?)) {
            *pods.holding.entry(node).or_default() += 1;
        }
    }
    Ok(pods)
}
