//! How it stands with the policies in the cluster, as the operator tells in their status. In: the objects as they
//! were found, and which of them select the workload. Out: a line for each that has a status of ours.

use crate::cluster::text;
use cinch_api::policy_status::PolicyReport;
use cinch_policy::ObjectName;
use serde::Deserialize;
use serde_json::Value;
use std::fmt::Write as _;

/// The lines, with their title; empty where no status is known (in files there is none).
pub fn told(objects: &[Value], selecting: &[(&str, &ObjectName)]) -> String {
    let mut lines = String::new();
    for object in objects {
        let is = |(kind, name): &&(&str, &ObjectName)| {
            text(object, "/kind") == *kind
                && text(object, "/metadata/namespace") == name.namespace
                && text(object, "/metadata/name") == name.name
        };
        let Some((kind, name)) = selecting.iter().find(is) else { continue };
        let report =
            object.pointer("/status/cinch").and_then(|report| PolicyReport::deserialize(report).ok());
        let Some(report) = report else { continue };
        let PolicyReport { observed_generation, selected, enforcing, message, .. } = report;
        let current = object.pointer("/metadata/generation").and_then(Value::as_i64);
        let late = match current.is_some_and(|current| current != observed_generation) {
            true => " (of an earlier generation)",
            false => "",
        };
        // Writing to a String can not fail.
        let _ =
            writeln!(lines, "  {kind} {name}: {enforcing} of {selected} proxies enforce it{late}: {message}");
    }
    if lines.is_empty() { lines } else { format!("\nIn the cluster:\n{lines}") }
}
