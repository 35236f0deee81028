//! `cargo e2e soak`: on a cluster with Cinch, clients call servers without a pause while pods are replaced, policies
//! and modes change, operators are killed, and certificates are renewed every minute or so. In goes a cluster; out
//! comes whether a request failed that should not have, one was served that should not have been, or a proxy grew.

mod changes;
mod counts;
mod growth;
mod scene;

use crate::cluster::Cluster;
use crate::install::{NAMESPACE as RELEASE, deployment_ready};
use crate::place::Place;
use crate::prepare::repository;
use crate::see::{See, text};
use crate::terminal;
use anyhow::{Context, Result, ensure};
use changes::CHANGES;
use counts::Counts;
use growth::Growth;
use serde_json::json;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// Renewed at half their life, so about once a minute.
const CERTIFICATES: &str = "certificates: {leaf: 2m}\n";
/// Between two changes, if the one before took no longer.
const PAUSE: Duration = Duration::from_secs(10);
/// Where a proxy's page of metrics is.
const METRICS: u16 = 15020;
/// What a proxy may have grown at the end, over the trend of its samples: an allocator is never quite still.
const GROWTH_KIB: f64 = 1024.0;

/// Everything of a soak.
struct Soak<'a> {
    see: See<'a>,
    counters: PathBuf,
    growth: Vec<Growth>,
    changes: usize,
}

/// Plays for so many minutes. Returns whether it held.
///
/// # Errors
/// When the scene can't be set or a change can't be made.
pub fn run(cluster: &Cluster, minutes: u64) -> Result<bool> {
    let mut soak = Soak::begin(cluster)?;
    let (begun, long) = (Instant::now(), Duration::from_secs(minutes * 60));
    let mut said = Instant::now();
    for (what, change) in CHANGES.iter().cycle() {
        if begun.elapsed() >= long {
            break;
        }
        let at = Instant::now();
        change(&soak.see, soak.changes).with_context(|| format!("after {} changes: {what}", soak.changes))?;
        soak.changes += 1;
        soak.sample()?;
        while at.elapsed() < PAUSE && begun.elapsed() < long {
            thread::sleep(Duration::from_secs(1));
        }
        if said.elapsed() > Duration::from_secs(60) {
            said = Instant::now();
            terminal::say(format_args!("soak: {} min: {}", begun.elapsed().as_secs() / 60, soak.counts()?));
        }
    }
    soak.end(begun.elapsed())
}

impl<'a> Soak<'a> {
    fn begin(cluster: &'a Cluster) -> Result<Self> {
        let see = See { cluster };
        shorten_certificates(&see)?;
        let counters = cluster.state_dir().join("soak");
        fs::create_dir_all(&counters)?;
        // The callers run as a user of their own.
        fs::set_permissions(&counters, fs::Permissions::from_mode(0o777))?;
        let growth = scene::set(&see, &counters)?;
        terminal::say(format_args!("soak: the scene is set; {} proxies are watched", growth.len()));
        Ok(Self { see, counters, growth, changes: 0 })
    }

    fn sample(&mut self) -> Result<()> {
        self.growth.iter_mut().try_for_each(Growth::sample)
    }

    fn counts(&self) -> Result<Counts> {
        counts::read(&self.counters, scene::STRANGER)
    }

    /// Says what came of it.
    fn end(mut self, took: Duration) -> Result<bool> {
        self.sample()?;
        let (counts, renewed) = (self.counts()?, self.renewals()?);
        terminal::say(format_args!(
            "soak: {:.1} min, {} changes, {renewed} certificates to the watched proxies; {counts}",
            took.as_secs_f64() / 60.0,
            self.changes
        ));
        let mut flat = true;
        for growth in &self.growth {
            let trend = growth.trend();
            let grew = trend.over(took).is_some_and(|kib| kib > GROWTH_KIB);
            flat &= !grew;
            terminal::show(&format!("{growth}{}", if grew { "  GREW" } else { "" }));
        }
        terminal::show(&self.see.cluster.memory_of_cinch()?);
        self.write(took, &counts, renewed)?;
        ensure!(counts.ok > 0 && counts.denied > 0, "nobody called: {counts}");
        Ok(flat && counts.failed == 0 && counts.served_wrongly == 0)
    }

    /// Certificates that the watched proxies have received, as they count themselves.
    fn renewals(&self) -> Result<u64> {
        let outside = Place::outside(self.see.cluster)?;
        let mut sum = 0;
        for growth in &self.growth {
            let page = outside.read(SocketAddr::new(growth.address, METRICS), "/metrics")?;
            let line = page.lines().find_map(|line| line.strip_prefix("cinch_certificates_total "));
            sum += line
                .and_then(|count| count.trim().parse::<u64>().ok())
                .context("no count of certificates")?;
        }
        Ok(sum)
    }

    fn write(&self, took: Duration, counts: &Counts, certificates: u64) -> Result<()> {
        // Cargo may build elsewhere.
        let folder = repository()?.join("target");
        fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
        let file = folder.join("soak.json");
        let proxies: Vec<_> = self.growth.iter().map(Growth::json).collect();
        let all = json!({"seconds": took.as_secs(), "changes": self.changes, "certificates": certificates,
            "requests": counts.json(), "proxies": proxies});
        fs::write(&file, serde_json::to_string_pretty(&all)?).with_context(|| file.display().to_string())?;
        terminal::say(format_args!("soak: the numbers are in {}", file.display()));
        Ok(())
    }
}

/// Not a value of the chart: nobody should want it outside of tests.
fn shorten_certificates(see: &See<'_>) -> Result<()> {
    let map = see.json(&["configmap", "cinch-settings", "-n", RELEASE])?;
    let settings = text(&map, "/data/settings.yaml");
    ensure!(!settings.is_empty(), "the operator's settings are not where they were");
    let patch =
        json!({"data": {"settings.yaml": format!("{}\n{CERTIFICATES}", settings.trim_end())}}).to_string();
    see.kubectl(&["patch", "configmap", "cinch-settings", "-n", RELEASE, "--type=merge", "-p", &patch])?;
    see.kubectl(&["rollout", "restart", "deployment/cinch-operator", "-n", RELEASE])?;
    deployment_ready(see.cluster, RELEASE, "cinch-operator", 2)
}

/// A folder's path as a pod's volume takes it.
fn path_of(folder: &Path) -> String {
    folder.display().to_string()
}
