//! Denials that came too fast to be told one by one: summed up by their cause, so that none is lost, whatever the
//! flood, and none takes more memory or log than its cause does.

use super::entry::{Entry, Reporter};
use super::line::Line;
use cinch_reason::Reason;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

/// Causes that are told apart. Beyond them, what is left of a cause is its reason, and of those there is one table.
const CAUSES: usize = 256;

/// Why, and of whom.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Cause {
    reporter: Reporter,
    reason: Reason,
    policy: Option<Arc<str>>,
    rule: Option<u32>,
    source: Option<Box<str>>,
    port: u16,
}

#[derive(Debug, Clone, Copy)]
struct Sum {
    count: u64,
    first: SystemTime,
    last: SystemTime,
}

/// Sums that are not yet written.
#[derive(Debug, Default)]
pub(super) struct Sums {
    by_cause: HashMap<Cause, Sum>,
}

impl Sums {
    /// Adds the denial of `entry`, which came at `now`.
    pub(super) fn add(&mut self, entry: &Entry<'_>, now: SystemTime) {
        let Some(ruling) = &entry.ruling else { return };
        let mut cause = Cause {
            reporter: entry.ends.reporter,
            reason: ruling.reason,
            policy: ruling.policy.cloned(),
            rule: ruling.rule,
            source: entry.ends.source.map(Into::into),
            port: entry.ends.to.port(),
        };
        if self.by_cause.len() >= CAUSES && !self.by_cause.contains_key(&cause) {
            cause = Cause { policy: None, rule: None, source: None, port: 0, ..cause };
        }
        let sum = self.by_cause.entry(cause).or_insert(Sum { count: 0, first: now, last: now });
        sum.count += 1;
        sum.last = sum.last.max(now);
    }

    /// There are none.
    pub(super) fn is_empty(&self) -> bool {
        self.by_cause.is_empty()
    }

    /// Appends a line for each cause; says how many.
    pub(super) fn write(&self, out: &mut Vec<u8>) -> u64 {
        for (cause, sum) in &self.by_cause {
            let mut line = Line::begin(out, sum.first);
            line.number("denials", sum.count);
            let span = sum.last.duration_since(sum.first).unwrap_or_default();
            line.number("duration", u64::try_from(span.as_millis()).unwrap_or(u64::MAX));
            line.word("reporter", cause.reporter.word());
            line.word("decision", "deny");
            line.word("reason", cause.reason.as_str());
            line.word("policy", cause.policy.as_deref().unwrap_or_default());
            if let Some(rule) = cause.rule {
                line.number("rule", u64::from(rule));
            }
            line.word("source_principal", cause.source.as_deref().unwrap_or_default());
            if cause.port != 0 {
                line.number("port", u64::from(cause.port));
            }
            line.end();
        }
        self.by_cause.len() as u64
    }
}
