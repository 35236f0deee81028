//! What the clients counted: files that each pod of theirs leaves, living or gone.

use crate::see::number;
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::fmt;
use std::fs;
use std::path::Path;

/// Sums over all pods.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests of those who may call, answered.
    pub ok: u64,
    /// The same, lost.
    pub failed: u64,
    /// The longest of them, in milliseconds.
    pub slowest_ms: u64,
    /// Requests of those who may not call, refused.
    pub denied: u64,
    /// The same, answered.
    pub served_wrongly: u64,
}

impl Counts {
    /// As JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        json!({"answered": self.ok, "failed": self.failed, "slowestMs": self.slowest_ms, "refused": self.denied,
            "servedWrongly": self.served_wrongly})
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests answered, {} failed, the slowest took {} ms; {} forbidden ones refused, {} served",
            self.ok, self.failed, self.slowest_ms, self.denied, self.served_wrongly
        )
    }
}

/// Adds up the files in `folder`; those of clients called `stranger` are of requests that must not be served.
///
/// # Errors
/// When a file can't be read.
pub fn read(folder: &Path, stranger: &str) -> Result<Counts> {
    let mut sums = Counts::default();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let counts: Value =
            serde_json::from_slice(&fs::read(&path).with_context(|| path.display().to_string())?)
                .with_context(|| path.display().to_string())?;
        let forbidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(stranger));
        for way in counts.as_object().into_iter().flat_map(serde_json::Map::values) {
            let (ok, failed) = (number(way, "/ok"), number(way, "/failed"));
            if forbidden {
                sums.denied += failed;
                sums.served_wrongly += ok;
            } else {
                sums.ok += ok;
                sums.failed += failed;
                sums.slowest_ms = sums.slowest_ms.max(number(way, "/slowest_ms"));
            }
        }
    }
    Ok(sums)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_to_strangers_are_failures_and_refusals_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, ok: u64, failed: u64| {
            let ways = json!({"api new": {"ok": ok, "failed": failed, "slowest_ms": ok}});
            fs::write(folder.path().join(name), ways.to_string()).unwrap();
        };
        put("caller-a.json", 10, 1);
        put("caller-b.json", 20, 0);
        put("stranger-c.json", 2, 30);
        put("stranger-c.new", 99, 99);
        let counts = read(folder.path(), "stranger").unwrap();
        let wanted = Counts { ok: 30, failed: 1, slowest_ms: 20, denied: 30, served_wrongly: 2 };
        assert_eq!(counts, wanted);
    }
}
