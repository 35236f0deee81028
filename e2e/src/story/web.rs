//! The client whose every request counts: its counters over all its pods, what a step did to them, and what it says
//! of each request that it lost.

use super::Story;
use crate::see::{number, text};
use crate::terminal;
use crate::wait::{self, Seen};
use anyhow::{Context, Result, bail};
use jiff::{SignedDuration, Timestamp};
use serde_json::Value;
use std::fmt;
use std::time::Duration;

/// What sidecars said so long before and after a loss is shown with it.
const AROUND: SignedDuration = SignedDuration::from_secs(6);
/// Of each sidecar.
const LINES: usize = 30;

/// Sums over all pods and ways of calling.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub ok: u64,
    pub failed: u64,
    pub slowest_ms: u64,
    pub pods: u64,
}

/// A request that was lost.
#[derive(Debug, Clone)]
struct Loss {
    /// Whose counters tell it.
    file: String,
    at: Timestamp,
    /// When that was in this run, in seconds.
    elapsed: f64,
    words: String,
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {:.1} s ({}), {}: {}", self.elapsed, self.at, self.file, self.words)
    }
}

impl Story<'_> {
    /// Reads web's counters as its pods, living and gone, left them.
    pub fn web(&self) -> Result<Counts> {
        let mut sums = Counts::default();
        for (_, counts) in self.counters()? {
            sums.pods += 1;
            for way in counts.as_object().into_iter().flat_map(|ways| ways.values()) {
                sums.ok += number(way, "/ok");
                sums.failed += number(way, "/failed");
                sums.slowest_ms = sums.slowest_ms.max(number(way, "/slowest_ms"));
            }
        }
        Ok(sums)
    }

    /// The files of counters: their names and what they hold.
    fn counters(&self) -> Result<Vec<(String, Value)>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.counters)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let read = std::fs::read(&path).with_context(|| path.display().to_string())?;
            let counts = serde_json::from_slice(&read).with_context(|| path.display().to_string())?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            found.push((name, counts));
        }
        Ok(found)
    }

    /// Web must make `requests` more requests from here on, none of them failed.
    pub fn web_goes_on(&self, requests: u64) -> Result<String> {
        let before = self.web()?;
        let now = wait::until("web's next requests", Duration::from_secs(60), || {
            let now = self.web()?;
            let enough = now.ok >= before.ok + requests;
            Ok(if enough { Seen::Done(now) } else { Seen::Not(format!("{now:?} after {before:?}")) })
        })?;
        self.web_has_lost_nothing()?;
        Ok(format!("web: {} more requests, 0 failed", now.ok - before.ok))
    }

    /// No request of web has failed since this line began.
    pub fn web_has_lost_nothing(&self) -> Result<()> {
        let counts = self.web()?;
        if counts.failed <= self.lost {
            return Ok(());
        }
        let losses = losses(&self.counters()?, Timestamp::now(), terminal::elapsed());
        if let Some(last) = losses.last() {
            self.show_sidecars_around(last.at);
        }
        let told: Vec<String> = losses.iter().map(Loss::to_string).collect();
        bail!(
            "web lost {} of {} requests, the slowest took {} ms:\n{}",
            counts.failed,
            counts.ok + counts.failed,
            counts.slowest_ms,
            told.join("\n")
        );
    }

    /// A test beside the story took parts of Cinch away: web, where it is, goes on and has lost nothing by it. What
    /// it has lost is that test's fault and no later one's.
    fn unharmed(&mut self) -> Result<()> {
        if self.fallen.is_some() {
            return Ok(());
        }
        let seen = self.web_goes_on(10);
        self.lost = self.web().map_or(self.lost, |web| web.failed);
        seen.map(drop)
    }

    /// Plays tests beside the story; what `play` is given looks after web, after each of them.
    pub fn beside<T>(&mut self, play: impl FnOnce(&(dyn Fn() -> Result<()> + Sync)) -> T) -> T {
        let story = std::sync::Mutex::new(self);
        play(&|| story.lock().unwrap_or_else(std::sync::PoisonError::into_inner).unharmed())
    }

    /// What the sidecars of shop that are still there said around a time.
    fn show_sidecars_around(&self, at: Timestamp) {
        let (from, to) = ((at - AROUND).to_string(), (at + AROUND).to_string());
        let since = format!("--since-time={from}");
        for pod in self.see.pods("shop", "app").unwrap_or_default() {
            let name = text(&pod, "/metadata/name");
            let args = ["logs", "-n", "shop", &name, "-c", "cinch-proxy", "--timestamps", &since];
            let Ok(log) = self.see.attempt(&args) else { continue };
            // Times of one form are in the order of their letters.
            let near = |line: &&str| line.split(' ').next().is_some_and(|time| time < to.as_str());
            let lines: Vec<&str> = log.stdout.lines().filter(near).take(LINES).collect();
            terminal::show(&format!("--- sidecar of {name} around {at}\n{}", lines.join("\n")));
        }
    }
}

/// What the files of counters tell of requests that were lost, the first one first. `now` is `elapsed` after the
/// begin of this run.
fn losses(files: &[(String, Value)], now: Timestamp, elapsed: Duration) -> Vec<Loss> {
    let mut all = Vec::new();
    for (file, counts) in files {
        for failure in counts.get("failures").and_then(Value::as_array).into_iter().flatten() {
            let at_ms = i64::try_from(number(failure, "/at_ms")).unwrap_or_default();
            let at = Timestamp::from_millisecond(at_ms).unwrap_or(now);
            let words = format!(
                "{} over a {} connection in round {}, after {} ms: {}",
                text(failure, "/target"),
                text(failure, "/connection"),
                number(failure, "/round"),
                number(failure, "/after_ms"),
                text(failure, "/error")
            );
            let elapsed = elapsed.as_secs_f64() - now.duration_since(at).as_secs_f64();
            all.push(Loss { file: file.clone(), at, elapsed, words });
        }
    }
    all.sort_by_key(|loss| loss.at);
    all
}

/// Over the whole story, from before enrolment until here, web lost nothing.
pub fn zero_loss(story: &mut Story<'_>) -> Result<String> {
    story.lost = 0;
    story.web_goes_on(20)?;
    let counts = story.web()?;
    let line = format!(
        "{} requests of {} web pods, {} failed; the slowest took {} ms",
        counts.ok, counts.pods, counts.failed, counts.slowest_ms
    );
    terminal::show(&line);
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_loss_is_told_with_its_pod_and_time_in_the_order_in_which_they_came() {
        let failure = |at_ms: u64, target: &str| {
            json!({"at_ms": at_ms, "target": target, "connection": "kept", "round": 3, "after_ms": 12,
                "error": "sending, from 10.0.0.1:9: reset"})
        };
        let file = |name: &str, failures: Vec<Value>| {
            (name.to_owned(), json!({"api:80 new": {"ok": 1, "failed": 1}, "failures": failures}))
        };
        let now = Timestamp::from_millisecond(1_800_000_010_000).unwrap();
        let files = [
            file("web-b.json", vec![failure(1_800_000_009_000, "web:80")]),
            file("web-a.json", vec![failure(1_800_000_004_500, "api:80")]),
            ("web-c.json".to_owned(), json!({"api:80 new": {"ok": 1, "failed": 0}})),
        ];
        let told: Vec<String> =
            losses(&files, now, Duration::from_secs(100)).iter().map(Loss::to_string).collect();
        assert_eq!(
            told,
            [
                "at 94.5 s (2027-01-15T08:00:04.5Z), web-a.json: api:80 over a kept connection in round 3, after 12 \
                 ms: sending, from 10.0.0.1:9: reset",
                "at 99.0 s (2027-01-15T08:00:09Z), web-b.json: web:80 over a kept connection in round 3, after 12 \
                 ms: sending, from 10.0.0.1:9: reset",
            ]
        );
    }
}
