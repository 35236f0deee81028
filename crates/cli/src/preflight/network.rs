//! Network policies that would cut a sidecar from the operator: a pod whose egress is limited must be allowed
//! TCP 7443 to the operator's pods, or its sidecar never gets a certificate and the pod never becomes ready.

use crate::survey::{Labels, OperatorPlace, Survey};
use cinch_injection::Owner;
use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{
    NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyPeer, NetworkPolicyPort,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::core::{Selector, SelectorExt};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The operator's port, by number and by the name of its container port.
const CONTROL_PORT: i32 = 7443;
const CONTROL_PORT_NAME: &str = "control";

/// A sentence for each set of policies that cuts workloads off; `left_out` need no operator. Where nothing makes pods
/// yet, those that would cut later pods.
pub fn cut(survey: &Survey, left_out: &BTreeSet<Owner>) -> Vec<String> {
    let mut cut: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut note = |pod: &Labels, whom: String| {
        let policies = cutting(survey, pod);
        if policies.is_empty() {
            return;
        }
        let cut_off = cut.entry(policies.join(", ")).or_default();
        if !cut_off.contains(&whom) {
            cut_off.push(whom);
        }
    };
    for workload in survey.workloads.iter().filter(|workload| !left_out.contains(&workload.owner)) {
        note(&labels_of(&workload.template), workload.owner.to_string());
    }
    if survey.workloads.is_empty() {
        for policy in survey.network_policies.iter().filter(|policy| limits_egress(policy)) {
            let pod = selected_by(policy);
            note(&pod, later(&pod));
        }
    }
    let namespace = survey.operator.namespace_labels.get("kubernetes.io/metadata.name");
    let operator = namespace.map_or("cinch-system", String::as_str);
    cut.into_iter()
        .map(|(policies, cut_off)| {
            format!(
                "NetworkPolicy {policies} cuts the sidecars of {} from the operator: they would not become ready; \
                 allow egress to TCP {CONTROL_PORT} in namespace {operator} first",
                cut_off.join(", ")
            )
        })
        .collect()
}

/// The labels of a pod that the policy selects, and no others.
fn selected_by(policy: &NetworkPolicy) -> Labels {
    let Some(selector) = policy.spec.as_ref().and_then(|spec| spec.pod_selector.as_ref()) else {
        return Labels::new();
    };
    let expressions = selector.match_expressions.iter().flatten();
    // The other operators are met by a pod that does not have the label.
    let wanted =
        expressions.filter(|wanted| matches!(wanted.operator.as_str(), "In" | "Exists")).map(|wanted| {
            let value = wanted.values.iter().flatten().next().cloned().unwrap_or_default();
            (wanted.key.clone(), value)
        });
    wanted.chain(selector.match_labels.clone().into_iter().flatten()).collect()
}

/// Pods that are not there yet, by their labels.
fn later(pod: &Labels) -> String {
    let labels: Vec<String> = pod
        .iter()
        .map(|(key, value)| if value.is_empty() { key.clone() } else { format!("{key}={value}") })
        .collect();
    match labels.as_slice() {
        [] => "all later pods".to_owned(),
        labels => format!("later pods with {}", labels.join(" and ")),
    }
}

/// Names of the policies that limit the egress of such a pod, when none of them lets it to the operator.
fn cutting(survey: &Survey, pod: &Labels) -> Vec<String> {
    let limiting: Vec<&NetworkPolicy> = survey
        .network_policies
        .iter()
        .filter(|policy| limits_egress(policy) && selects(policy, pod))
        .collect();
    let rules = limiting.iter().filter_map(|policy| policy.spec.as_ref()?.egress.as_ref()).flatten();
    if rules.into_iter().any(|rule| allows(rule, &survey.operator)) {
        return Vec::new();
    }
    limiting.iter().filter_map(|policy| policy.metadata.name.clone()).collect()
}

fn limits_egress(policy: &NetworkPolicy) -> bool {
    let Some(spec) = &policy.spec else { return false };
    match spec.policy_types.as_deref() {
        Some(types) if !types.is_empty() => types.iter().any(|name| name == "Egress"),
        _ => spec.egress.is_some(),
    }
}

fn selects(policy: &NetworkPolicy, pod: &Labels) -> bool {
    let selector = policy.spec.as_ref().and_then(|spec| spec.pod_selector.as_ref());
    matches(selector, pod)
}

/// A missing selector and an empty one match everything; one that can't be read is taken to match, so that
/// the reader is told rather than surprised.
fn matches(selector: Option<&LabelSelector>, labels: &Labels) -> bool {
    selector.is_none_or(|selector| Selector::try_from(selector.clone()).map_or(true, |s| s.matches(labels)))
}

fn allows(rule: &NetworkPolicyEgressRule, operator: &OperatorPlace) -> bool {
    let ports = rule.ports.as_deref().unwrap_or_default();
    let peers = rule.to.as_deref().unwrap_or_default();
    (ports.is_empty() || ports.iter().any(allows_port))
        && (peers.is_empty() || peers.iter().any(|peer| allows_peer(peer, operator)))
}

fn allows_port(port: &NetworkPolicyPort) -> bool {
    if port.protocol.as_deref().is_some_and(|protocol| protocol != "TCP") {
        return false;
    }
    match (&port.port, port.end_port) {
        (None, _) => true,
        (Some(IntOrString::Int(first)), Some(last)) => (*first..=last).contains(&CONTROL_PORT),
        (Some(IntOrString::Int(number)), None) => *number == CONTROL_PORT,
        (Some(IntOrString::String(name)), _) => name == CONTROL_PORT_NAME,
    }
}

fn allows_peer(peer: &NetworkPolicyPeer, operator: &OperatorPlace) -> bool {
    if let Some(block) = &peer.ip_block {
        let within = |cidr: &str| cidr.parse::<IpNet>().ok();
        let excepted: Vec<IpNet> = block.except.iter().flatten().filter_map(|cidr| within(cidr)).collect();
        let Some(network) = within(&block.cidr) else { return false };
        return !operator.addresses.is_empty()
            && operator.addresses.iter().all(|address| {
                network.contains(address) && !excepted.iter().any(|except| except.contains(address))
            });
    }
    // Without a namespace selector a peer is in the policy's own namespace, where the operator is not.
    peer.namespace_selector.is_some()
        && matches(peer.namespace_selector.as_ref(), &operator.namespace_labels)
        && matches(peer.pod_selector.as_ref(), &operator.pod_labels)
}

fn labels_of(template: &Value) -> Labels {
    let labels = template.pointer("/metadata/labels").and_then(Value::as_object);
    labels
        .into_iter()
        .flatten()
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}
