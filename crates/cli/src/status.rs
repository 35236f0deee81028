//! `status`: where namespaces stand, what stands against STRICT, and who sends plaintext, in plain words.
//! Everything is read from Postures; nothing is computed anew.

use crate::arguments::Status;
use crate::cluster::Cluster;
use anyhow::{Result, bail};
use cinch_api::{Debt, Offender, Posture, PostureState, PostureStatus, format_duration};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use serde::Serialize;
use std::fmt::Write;
use std::time::Duration;

/// Prints one namespace or all.
///
/// # Errors
/// When postures may not be read, or the one namespace has none.
pub async fn run(cluster: &Cluster, options: Status) -> Result<()> {
    let api: Api<Posture> = match &options.namespace {
        Some(namespace) => cluster.of(namespace),
        None => Api::all(cluster.client.clone()),
    };
    let mut postures = api.list(&ListParams::default()).await?.items;
    postures.sort_by_key(ResourceExt::namespace);
    if postures.is_empty() {
        match options.namespace {
            Some(namespace) => {
                bail!("namespace {namespace} has no posture: enrol it with kubectl cinch enroll {namespace}")
            }
            None => println!("no namespace is enrolled: kubectl cinch enroll NAMESPACE"),
        }
        return Ok(());
    }
    print!("{}", report(&postures, Timestamp::now()));
    Ok(())
}

/// The table, then a paragraph for each namespace about which there is more to say.
fn report(postures: &[Posture], now: Timestamp) -> String {
    let mut text = table(postures, now);
    for posture in postures {
        let Some(status) = &posture.status else { continue };
        let lines = explain(status, now);
        if !lines.is_empty() {
            let _ = writeln!(text, "\n{}", posture.namespace().unwrap_or_default());
            for line in lines {
                let _ = writeln!(text, "  {line}");
            }
        }
    }
    text
}

const HEAD: [&str; 7] = ["NAMESPACE", "MODE", "STATE", "MESHED", "PLAINTEXT", "QUIET", "BLOCKED-BY"];

fn table(postures: &[Posture], now: Timestamp) -> String {
    let mut rows = vec![HEAD.map(str::to_owned)];
    for posture in postures {
        let status = posture.status.clone().unwrap_or_default();
        rows.push([
            posture.namespace().unwrap_or_default(),
            word(&status.mode),
            word(&status.state),
            status.meshed.unwrap_or_default(),
            status.plaintext.map(|plaintext| plaintext.served.to_string()).unwrap_or_default(),
            status.quiet_since.as_ref().map(|since| ago(since, now)).unwrap_or_default(),
            status.blocked_by.unwrap_or_default(),
        ]);
    }
    let widths: Vec<usize> = (0..HEAD.len())
        .map(|column| rows.iter().filter_map(|row| Some(row.get(column)?.len())).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
    text
}

/// How a value stands in the API.
fn word<T: Serialize>(value: &Option<T>) -> String {
    let json = serde_json::to_value(value).unwrap_or_default();
    json.as_str().unwrap_or_default().to_owned()
}

fn ago(since: &Time, now: Timestamp) -> String {
    let millis = now.as_millisecond().saturating_sub(since.0.as_millisecond());
    format_duration(Duration::from_millis(u64::try_from(millis).unwrap_or(0)))
}

/// What a person would want to hear about a namespace that is not simply well.
fn explain(status: &PostureStatus, now: Timestamp) -> Vec<String> {
    let mut lines = Vec::new();
    for blocker in &status.blockers {
        let about =
            blocker.reference.as_deref().map(|reference| format!(" [{reference}]")).unwrap_or_default();
        let told = told(&blocker.reason, &blocker.message);
        lines.push(format!("blocked for {}: {told}{about}", ago(&blocker.since, now)));
    }
    lines.extend(status.policies.iter().map(|policy| format!("{}: {}", policy.reference, policy.message)));
    lines.extend(status.offenders.iter().map(|offender| offence(offender, now)));
    let outside = |debt: &Debt| format!("outside the mesh: {}", told(&debt.reason, &debt.message));
    lines.extend(status.debt.iter().map(outside));
    if status.state == Some(PostureState::Probation)
        && let Some(since) = &status.locked_since
    {
        lines.push(format!("locked {} ago and in probation: a workload that was served before and is now refused takes it back", ago(since, now)));
    }
    if let (Some(plaintext), Some(true)) = (&status.plaintext, status.plaintext.as_ref().map(|p| p.open > 0))
    {
        lines.push(format!("{} plaintext connections are open", plaintext.open));
    }
    lines
}

/// A message with its reason in front, which it may have there already.
fn told(reason: &str, message: &str) -> String {
    if message.starts_with(reason) { message.to_owned() } else { format!("{reason}: {message}") }
}

fn offence(offender: &Offender, now: Timestamp) -> String {
    let who = match (&offender.workload, &offender.node, &offender.external) {
        (Some(workload), ..) => format!("{} {workload}", offender.kind.as_deref().unwrap_or("workload")),
        (_, Some(node), _) => format!("node {node}"),
        (.., Some(address)) => format!("{address} (outside the cluster)"),
        _ => "somebody unknown".to_owned(),
    };
    let mut did = Vec::new();
    if offender.count > 0 {
        did.push(format!("was served {} plaintext connections", offender.count));
    }
    if offender.denied > 0 {
        did.push(format!("was refused {}", offender.denied));
    }
    if did.is_empty() {
        did.push("knocked without being served".to_owned());
    }
    let seen =
        offender.last_seen.as_ref().map(|seen| format!(", last {} ago", ago(seen, now))).unwrap_or_default();
    let by = offender.reported_by.as_deref().map(|pod| format!(" (seen by {pod})")).unwrap_or_default();
    // 0 stands for several, or for ports at which nothing was served or refused.
    let port = if offender.port == 0 { String::new() } else { format!(" on port {}", offender.port) };
    format!("{who} {}{port}{seen}{by}", did.join(" and "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn posture(status: serde_json::Value) -> Posture {
        serde_json::from_value(json!({"apiVersion": "cinch.dev/v1alpha1", "kind": "Posture",
            "metadata": {"name": "mesh", "namespace": "billing"}, "spec": {}, "status": status}))
        .unwrap()
    }

    #[test]
    fn a_blocked_namespace_is_told_with_its_blockers_and_offenders() {
        let status = json!({
            "mode": "PERMISSIVE", "state": "Blocked", "meshed": "3/9", "blockedBy": "PlaintextServed +1",
            "quietSince": "1970-01-01T00:00:48Z",
            "plaintext": {"served": 41, "open": 1, "denied": 0, "noListener": 0, "empty": 0},
            "blockers": [{"reason": "PlaintextServed", "message": "plaintext was served", "since": "1970-01-01T00:00:00Z"}],
            "offenders": [
                {"workload": "legacy/old-client", "kind": "Deployment", "port": 8080, "count": 41, "denied": 0,
                 "lastSeen": "1970-01-01T00:00:48Z", "reportedBy": "api-1"},
                {"node": "node1", "port": 8080, "count": 0, "denied": 2},
                {"node": "node2", "port": 0, "count": 0, "denied": 0}
            ],
            "debt": [
                {"reason": "UdpOutsideMesh", "message": "UdpOutsideMesh: pods speak UDP"},
                {"reason": "HostNetworkPods", "message": "pods are on the host network"}
            ]
        });
        let text = report(&[posture(status)], Timestamp::from_second(60).unwrap());
        let expected = "\
NAMESPACE  MODE        STATE    MESHED  PLAINTEXT  QUIET  BLOCKED-BY
billing    PERMISSIVE  Blocked  3/9     41         12s    PlaintextServed +1

billing
  blocked for 1m: PlaintextServed: plaintext was served
  Deployment legacy/old-client was served 41 plaintext connections on port 8080, last 12s ago (seen by api-1)
  node node1 was refused 2 on port 8080
  node node2 knocked without being served
  outside the mesh: UdpOutsideMesh: pods speak UDP
  outside the mesh: HostNetworkPods: pods are on the host network
  1 plaintext connections are open
";
        assert_eq!(text, expected);
    }

    #[test]
    fn broken_policies_are_told_even_of_a_namespace_that_is_strict() {
        let status = json!({"mode": "STRICT", "state": "Strict", "policies": [{
            "ref": "authorizationpolicy/billing/old", "reason": "UnsupportedPolicy",
            "message": "UnsupportedPolicy: the policy holds what can not be enforced (spec.x)",
        }]});
        let text = report(&[posture(status)], Timestamp::UNIX_EPOCH);
        let line = "  authorizationpolicy/billing/old: UnsupportedPolicy: the policy holds";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn a_namespace_that_is_well_has_its_row_and_no_more() {
        let status = json!({"mode": "STRICT", "state": "Strict", "meshed": "20/20"});
        let text = report(&[posture(status)], Timestamp::UNIX_EPOCH);
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.ends_with("billing    STRICT  Strict  20/20\n"), "{text}");
    }

    #[test]
    fn a_posture_without_status_is_no_error() {
        let text = report(&[posture(serde_json::Value::Null)], Timestamp::UNIX_EPOCH);
        assert!(text.ends_with("billing\n"), "{text}");
    }
}
