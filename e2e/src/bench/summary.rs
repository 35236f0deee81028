//! What came of all turns: the table for a person, the numbers for programs.

use super::Options;
use super::peers::{PEERS, Peer};
use super::programs::{LeftOut, Programs};
use super::workloads::{Measured, Metric, WORKLOADS, Workload};
use anyhow::Result;
use serde_json::{Value, json};
use std::fs;

/// One workload of one turn.
pub struct Row {
    peer: &'static str,
    workload: &'static str,
    repetition: u32,
    result: Result<Measured, String>,
}

impl Row {
    /// What came of it.
    #[must_use]
    pub fn new(peer: &Peer, workload: &Workload, repetition: u32, result: Result<Measured>) -> Self {
        let result = result.map_err(|error| format!("{error:#}"));
        Self { peer: peer.name, workload: workload.name, repetition, result }
    }
}

/// All of it.
pub struct Summary {
    rows: Vec<Row>,
    about: Value,
}

impl Summary {
    /// Nothing yet, with what was measured on what.
    #[must_use]
    pub fn new(options: &Options, programs: &Programs, left_out: LeftOut) -> Self {
        let processor = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let processor = processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let left_out: serde_json::Map<String, Value> =
            left_out.into_iter().map(|(name, why)| (name.to_owned(), json!(why))).collect();
        let about = json!({
            "cinch": env!("CARGO_PKG_VERSION"),
            "cinchProxyBytes": programs.proxy_size().ok(),
            "envoy": programs.envoy_version(),
            "leftOut": left_out,
            "repetitions": options.repetitions,
            "scale": options.scale,
            "kernel": fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
            "processor": processor.map(|(_, name)| name.trim()),
            "processors": std::thread::available_parallelism().map_or(0, usize::from),
        });
        Self { rows: Vec::new(), about }
    }

    /// One more.
    pub fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    /// Whether nothing failed of ours; what fails of others is shown.
    #[must_use]
    pub fn all_answered(&self) -> bool {
        let ours = |row: &&Row| !PEERS.iter().any(|peer| peer.name == row.peer && peer.is_envoy());
        let mut rows = self.rows.iter().filter(ours);
        rows.all(|row| row.result.as_ref().is_ok_and(|measured| measured.errors == 0))
    }

    fn failures(&self, workload: &str, peer: &str) -> u64 {
        let rows = self.rows.iter().filter(|row| row.workload == workload && row.peer == peer);
        rows.map(|row| row.result.as_ref().map_or(1, |measured| measured.errors)).sum()
    }

    /// A metric of a peer, by repetition.
    fn values(&self, workload: &Workload, peer: &str, metric: &Metric) -> Vec<(u32, f64)> {
        let rows = self.rows.iter().filter(|row| row.workload == workload.name && row.peer == peer);
        rows.filter_map(|row| Some((row.repetition, (metric.value)(row.result.as_ref().ok()?)?))).collect()
    }

    /// Median, and the median of the ratios to the base in the same repetition.
    fn figure(&self, workload: &Workload, peer: &Peer, metric: &Metric) -> Option<(f64, Option<f64>)> {
        let own = self.values(workload, peer.name, metric);
        let middle = median(own.iter().map(|(_, value)| *value).collect())?;
        let base = peer.base.unwrap_or(workload.base);
        if !metric.ratio || base == peer.name {
            return Some((middle, None));
        }
        let others = self.values(workload, base, metric);
        let ratios = own.iter().filter_map(|(repetition, value)| {
            let (_, other) = others.iter().find(|(of, _)| of == repetition)?;
            (*other > 0.0).then_some(value / other)
        });
        Some((middle, median(ratios.collect())))
    }

    /// The table: a block for each workload, a line for each peer.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![String::new()];
        let took_part = |peer: &&Peer| self.rows.iter().any(|row| row.peer == peer.name);
        let legend = PEERS.iter().filter(took_part).map(|peer| (peer.name, peer.what));
        lines.extend(left_aligned(&legend.collect::<Vec<_>>()));
        for workload in WORKLOADS {
            let peers = PEERS.iter().filter(|peer| {
                self.rows.iter().any(|row| row.workload == workload.name && row.peer == peer.name)
            });
            let peers: Vec<&Peer> = peers.collect();
            if peers.is_empty() {
                continue;
            }
            lines.push(String::new());
            lines.push(format!(
                "{}: {} (x: to {} in the same repetition)",
                workload.name, workload.what, workload.base
            ));
            let mut table = vec![
                [
                    vec![String::new()],
                    workload.metrics.iter().map(|metric| metric.name.to_owned()).collect(),
                    vec![String::new()],
                ]
                .concat(),
            ];
            table.extend(peers.into_iter().map(|peer| self.line(workload, peer)));
            lines.extend(aligned(&table));
        }
        lines
    }

    fn line(&self, workload: &Workload, peer: &Peer) -> Vec<String> {
        let mut cells = vec![peer.name.to_owned()];
        cells.extend(workload.metrics.iter().map(|metric| match self.figure(workload, peer, metric) {
            None => "-".to_owned(),
            Some((middle, None)) => format!("{middle:.*}", metric.digits),
            Some((middle, Some(ratio))) => {
                let to = peer.base.map(|base| format!(" of {base}")).unwrap_or_default();
                format!("{middle:.*} (x {ratio:.2}{to})", metric.digits)
            }
        }));
        let failures = self.failures(workload.name, peer.name);
        cells.push(if failures > 0 { format!("{failures} FAILED") } else { String::new() });
        cells
    }

    /// Everything, as JSON: what it was measured on, the medians, each measurement.
    ///
    /// # Errors
    /// Never in practice: all of it is numbers and words.
    pub fn json(&self) -> Result<String> {
        let mut figures = Vec::new();
        for (workload, peer) in
            WORKLOADS.iter().flat_map(|workload| PEERS.iter().map(move |peer| (workload, peer)))
        {
            for metric in workload.metrics {
                if let Some((middle, ratio)) = self.figure(workload, peer, metric) {
                    let base = ratio.map(|_| peer.base.unwrap_or(workload.base));
                    figures.push(json!({"workload": workload.name, "peer": peer.name, "metric": metric.name,
                        "median": middle, "ratio": ratio, "to": base}));
                }
            }
        }
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let (measured, error) = match &row.result {
                    Ok(measured) => (json!(measured), Value::Null),
                    Err(error) => (Value::Null, json!(error)),
                };
                json!({"workload": row.workload, "peer": row.peer, "repetition": row.repetition,
                    "measured": measured, "error": error})
            })
            .collect();
        Ok(serde_json::to_string_pretty(
            &json!({"about": self.about, "figures": figures, "measurements": rows}),
        )?)
    }
}

/// Of two in the middle, their mean.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_unstable_by(f64::total_cmp);
    let (low, high) = (values.len().checked_sub(1)? / 2, values.len() / 2);
    Some((values.get(low)? + values.get(high)?) / 2.0)
}

/// Names, each with its words behind it.
fn left_aligned(pairs: &[(&str, &str)]) -> Vec<String> {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    pairs.iter().map(|(name, words)| format!("  {name:<width$}  {words}")).collect()
}

/// The first column to the left, the others to the right.
fn aligned(table: &[Vec<String>]) -> Vec<String> {
    let columns = table.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        table
            .iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
            if column == 0 { format!("  {cell:<width$}") } else { format!("{cell:>width$}") }
        });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    table.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn summary() -> Summary {
        let options = Options {
            repetitions: 2,
            scale: 1.0,
            peers: vec![],
            workloads: vec![],
            programs: None,
            output: PathBuf::new(),
        };
        let programs = Programs { proxy: PathBuf::new(), load: PathBuf::new(), envoy: None };
        Summary::new(&options, &programs, vec![("envoy", "no network".to_owned())])
    }

    fn add(summary: &mut Summary, peer: &'static str, repetition: u32, cost: f64) {
        let measured =
            Measured { seconds: 1.0, done: 1_000_000, processor: vec![cost], ..Measured::default() };
        summary.add(Row { peer, workload: "http1", repetition, result: Ok(measured) });
    }

    #[test]
    fn ratios_are_of_the_same_repetition_and_figures_are_medians() {
        let mut summary = summary();
        // The second repetition has a busy machine: twice the cost for all.
        for (repetition, busy) in [(1, 1.0), (2, 2.0)] {
            add(&mut summary, "limit", repetition, 40.0 * busy);
            add(&mut summary, "cinch-l4", repetition, 30.0 * busy);
        }
        let workload = &WORKLOADS[0];
        let peer = PEERS.iter().find(|peer| peer.name == "cinch-l4").unwrap();
        let (middle, ratio) = summary.figure(workload, peer, &workload.metrics[0]).unwrap();
        assert_eq!((middle, ratio), (45.0, Some(0.75)));
        let lines = summary.lines().join("\n");
        assert!(lines.contains("45.0 (x 0.75)"), "{lines}");
        assert!(summary.all_answered());
    }

    #[test]
    fn a_failure_is_shown_and_fails_the_run() {
        let mut summary = summary();
        add(&mut summary, "limit", 1, 40.0);
        let lost = Measured { errors: 3, ..Measured::default() };
        summary.add(Row { peer: "envoy-l4", workload: "http1", repetition: 1, result: Ok(lost) });
        assert!(summary.all_answered(), "what others lose is theirs");
        summary.add(Row {
            peer: "limit",
            workload: "http1",
            repetition: 2,
            result: Err("it ended".to_owned()),
        });
        assert!(!summary.all_answered());
        assert!(summary.lines().join("\n").contains("1 FAILED"));
        let json: Value = serde_json::from_str(&summary.json().unwrap()).unwrap();
        assert_eq!(json.pointer("/measurements/2/error"), Some(&json!("it ended")));
        assert_eq!(json.pointer("/about/leftOut/envoy"), Some(&json!("no network")));
    }

    #[test]
    fn a_median_of_two_is_their_mean() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 2.0]), Some(3.0));
        assert_eq!(median(vec![]), None);
    }
}
