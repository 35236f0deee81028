//! Workloads whose pods would be refused once their namespace is locked, as findings against a promotion. While nobody
//! knows them every namespace has one: missing data is not "none".

use crate::accounts::Refused;
use cinch_promotion::Finding;
use cinch_reason::Reason;

/// What is known of the workloads of a namespace, whose label may allow host network.
pub(super) fn findings(refused: Option<Vec<Refused>>, host_network_allowed: bool) -> Vec<Finding> {
    let Some(refused) = refused else {
        return vec![Finding {
            reason: Reason::WorkloadNotInjectable,
            detail: "nobody knows yet: the workloads have not all been listed".to_owned(),
            reference: None,
        }];
    };
    let stands = |one: &Refused| one.reason != Reason::HostNetworkPods || !host_network_allowed;
    let finding =
        |one: Refused| Finding { reason: one.reason, detail: one.detail, reference: Some(one.reference) };
    refused.into_iter().filter(stands).map(finding).collect()
}
