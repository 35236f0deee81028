//! The client whose every request counts: its counters over all its pods, and what a step did to them.

use super::Story;
use crate::see::number;
use crate::terminal;
use crate::wait::{self, Seen};
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::time::Duration;

/// Sums over all pods and ways of calling.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub ok: u64,
    pub failed: u64,
    pub slowest_ms: u64,
    pub pods: u64,
}

impl Story<'_> {
    /// Reads web's counters as its pods, living and gone, left them.
    pub fn web(&self) -> Result<Counts> {
        let mut sums = Counts::default();
        for entry in std::fs::read_dir(&self.counters)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let read = std::fs::read(&path).with_context(|| path.display().to_string())?;
            let counts: Value = serde_json::from_slice(&read).with_context(|| path.display().to_string())?;
            sums.pods += 1;
            for way in counts.as_object().into_iter().flat_map(|ways| ways.values()) {
                sums.ok += number(way, "/ok");
                sums.failed += number(way, "/failed");
                sums.slowest_ms = sums.slowest_ms.max(number(way, "/slowest_ms"));
            }
        }
        Ok(sums)
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
        if counts.failed > self.lost {
            let logs =
                self.see.attempt(&["logs", "-n", "shop", "deployment/web", "-c", "app", "--tail=2000"])?;
            let failed: Vec<&str> = logs.stdout.lines().filter(|line| line.starts_with("failed ")).collect();
            bail!(
                "web lost {} of {} requests: {}",
                counts.failed,
                counts.ok + counts.failed,
                failed.join("; ")
            );
        }
        Ok(())
    }
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
