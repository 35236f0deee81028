//! What a process of Cinch has noticed: its page of metrics and its log, from a moment on.

use crate::install::NAMESPACE;
use crate::place::Place;
use crate::see::{See, text};
use crate::story::promote::now;
use crate::wait::{self, Seen};
use anyhow::{Context, Result};
use serde_json::Value;
use std::net::SocketAddr;
use std::time::Duration;

/// Where operator and webhook have their pages of metrics.
pub const PAGE: u16 = 8080;
/// Counting and logging take milliseconds; a busy machine takes its time to show them.
const SHOWN: Duration = Duration::from_secs(60);

/// One process, as it was when this was made.
pub struct Witness<'a> {
    see: See<'a>,
    namespace: String,
    pod: String,
    container: &'static str,
    page: SocketAddr,
    since: String,
    before: String,
}

/// What it must have noticed of one thing that was tried.
#[derive(Debug)]
pub struct Trace {
    /// What was tried, and how it ended.
    pub what: String,
    /// Counters that it has moved, with their labels.
    pub counters: Vec<String>,
    /// Words that one line of the log has about it alone.
    pub line: Vec<String>,
}

impl<'a> Witness<'a> {
    /// A container of a pod whose page of metrics is at `port`.
    ///
    /// # Errors
    /// When the page can't be read.
    pub fn new(see: See<'a>, pod: &Value, container: &'static str, port: u16) -> Result<Self> {
        let ip = text(pod, "/status/podIP").parse().context("the pod has no address")?;
        let mut witness = Witness {
            see,
            namespace: text(pod, "/metadata/namespace"),
            pod: text(pod, "/metadata/name"),
            container,
            page: SocketAddr::new(ip, port),
            since: now(),
            before: String::new(),
        };
        witness.before = witness.read()?;
        Ok(witness)
    }

    /// The operator that leads: it takes the connections of proxies.
    pub fn of_leader(see: See<'a>) -> Result<Self> {
        let lease =
            ["get", "lease", "cinch-operator", "-n", NAMESPACE, "-o", "jsonpath={.spec.holderIdentity}"];
        let leader = see.json(&["pod", &see.kubectl(&lease)?, "-n", NAMESPACE])?;
        Self::new(see, &leader, "cinch-operator", PAGE)
    }

    /// Where the process listens at another port.
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.page.ip(), port)
    }

    fn read(&self) -> Result<String> {
        Ok(Place::outside(self.see.cluster)?.read(self.page, "/metrics")?)
    }

    /// Waits until each counter has risen by as many as `traces` name it, and each trace has a line of its own; what was
    /// tried, each with its line.
    ///
    /// # Errors
    /// With the first that is missing.
    pub fn noticed(&self, traces: &[Trace]) -> Result<String> {
        let what = format!("{}/{} to count and tell what was tried", self.namespace, self.pod);
        wait::until(&what, SHOWN, || {
            if let Some(missing) = uncounted(&self.before, &self.read()?, traces) {
                return Ok(Seen::Not(missing));
            }
            let since = format!("--since-time={}", self.since);
            let args = ["logs", "-n", &self.namespace, &self.pod, "-c", self.container, &since];
            Ok(match lines_of(&self.see.kubectl(&args)?, traces) {
                Ok(lines) => {
                    let told =
                        traces.iter().zip(lines).map(|(trace, line)| format!("{}\n  {line}", trace.what));
                    Seen::Done(told.collect::<Vec<_>>().join("\n"))
                }
                Err(missing) => Seen::Not(missing),
            })
        })
    }
}

/// The first counter that has not risen enough.
fn uncounted(before: &str, after: &str, traces: &[Trace]) -> Option<String> {
    let all = || traces.iter().flat_map(|trace| &trace.counters);
    all().find_map(|counter| {
        let wanted = all().filter(|other| *other == counter).count() as u64;
        let risen = value(after, counter).saturating_sub(value(before, counter));
        (risen < wanted).then(|| format!("{counter} has risen by {risen}, not {wanted}"))
    })
}

/// What a counter says; 0 where it is not there yet.
fn value(page: &str, counter: &str) -> u64 {
    let line = page.lines().find_map(|line| line.strip_prefix(counter)?.strip_prefix(' '));
    line.and_then(|value| value.trim().parse().ok()).unwrap_or_default()
}

/// A line for each trace, none of them for two; or what has none.
fn lines_of(log: &str, traces: &[Trace]) -> Result<Vec<String>, String> {
    let mut left: Vec<&str> = log.lines().collect();
    let mut found = Vec::new();
    for trace in traces {
        let about = |line: &&str| trace.line.iter().all(|word| line.contains(word));
        let Some(at) = left.iter().position(about) else {
            return Err(format!("no line of the log has {:?}, for {}", trace.line, trace.what));
        };
        found.push(left.remove(at).to_owned());
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace(counter: &str, word: &str) -> Trace {
        let words = vec![word.to_owned()];
        Trace { what: "it".to_owned(), counters: vec![counter.to_owned()], line: words }
    }

    #[test]
    fn a_counter_has_to_rise_as_often_as_it_is_named() {
        let page =
            |value: u64| format!("# TYPE a counter\na_total{{x=\"1\"}} {value}\na_total{{x=\"12\"}} 99\n");
        let traces = [trace("a_total{x=\"1\"}", ""), trace("a_total{x=\"1\"}", "")];
        assert_eq!(uncounted(&page(3), &page(5), &traces), None);
        let missing = uncounted(&page(3), &page(4), &traces).unwrap();
        assert_eq!(missing, "a_total{x=\"1\"} has risen by 1, not 2");
        assert!(uncounted("", &page(1), &traces).is_some());
        assert_eq!(uncounted("", &page(2), &traces), None);
    }

    #[test]
    fn a_line_is_for_one_trace_alone() {
        let traces = [trace("", "peer=a"), trace("", "peer=a")];
        assert!(lines_of("peer=a x\nother\n", &traces).unwrap_err().contains("peer=a"));
        assert_eq!(lines_of("peer=a x\nother\npeer=a y", &traces).unwrap(), ["peer=a x", "peer=a y"]);
    }
}
