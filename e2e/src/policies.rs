//! What policy objects show of themselves: how many workloads they select, how many proxies enforce them, and what
//! is wrong with them.

use crate::see::{See, number, text};
use crate::wait::{self, Seen};
use anyhow::{Context, Result};
use serde_json::Value;
use std::time::Duration;

/// The status follows the proxies' acknowledgements within seconds.
const SHOWN: Duration = Duration::from_secs(60);
/// What the operator writes into the status: how many pods a policy selects, how many of their proxies have its
/// current generation in force, and of which generation it speaks.
const REPORT: &str = "/status/cinch";

/// Waits until an object says of its current generation that it selects so many pods and that the proxies of all
/// of them enforce it.
pub fn enforced(see: &See<'_>, kind: &str, namespace: &str, name: &str, pods: usize) -> Result<String> {
    let what = format!("{kind} {namespace}/{name} to be enforced by {pods} of {pods} proxies");
    wait::until(&what, SHOWN, || {
        let object = see.json(&[kind, name, "-n", namespace])?;
        let Some(report) = object.pointer(REPORT) else { return Ok(Seen::Not("no status".to_owned())) };
        let current = number(report, "/observedGeneration") == number(&object, "/metadata/generation");
        let (selected, enforcing) = (number(report, "/selected"), number(report, "/enforcing"));
        let words = format!("{name}: {enforcing} of {selected} proxies enforce it");
        Ok(if current && [selected, enforcing] == [pods as u64; 2] {
            Seen::Done(words)
        } else {
            Seen::Not(report.to_string())
        })
    })
}

/// Waits until a condition of an object, which has to be False, has this word in its reason or message; what it
/// says.
pub fn fault(see: &See<'_>, kind: &str, namespace: &str, name: &str, word: &str) -> Result<String> {
    wait::until(&format!("a condition of {namespace}/{name} to say {word}"), SHOWN, || {
        let object = see.json(&[kind, name, "-n", namespace])?;
        let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
        let said = conditions.into_iter().flatten().find_map(|condition| {
            let [kind, status, reason, message] =
                ["/type", "/status", "/reason", "/message"].map(|field| text(condition, field));
            let wanted = status == "False" && (reason == word || message.contains(word));
            wanted.then(|| format!("condition {kind} is False: {message}"))
        });
        Ok(said.map_or_else(|| Seen::Not(format!("{:?}", object.get("status"))), Seen::Done))
    })
}

/// The warning with this word in what kubectl said.
pub fn warned(said: &str, word: &str) -> Result<String> {
    let warning = said.lines().find(|line| line.starts_with("Warning: ") && line.contains(word));
    warning.map(str::to_owned).with_context(|| format!("no warning has {word}: {}", said.trim()))
}
