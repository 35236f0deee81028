//! `cargo e2e bench`: what the data path costs, beside others on the same machine in the same run. In go a checkout and
//! root; out come a table and its numbers as JSON.
//!
//! Two network namespaces with a veth between them stand for two pods: load -> proxy -> (TLS) -> proxy -> server. The
//! redirect is that of `cinch-proxy init` for every pair of proxies. Peers take turns within each repetition, and a
//! ratio is that of two peers in the same repetition, so that what else the machine does falls out.

mod envoy;
mod files;
mod network;
mod pair;
mod peers;
mod programs;
mod summary;
mod workloads;

use crate::terminal;
use anyhow::{Context, Result, bail};
use files::Files;
use network::Network;
use pair::Pair;
use peers::Peer;
use programs::Programs;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use summary::{Row, Summary};
use workloads::{Measured, Workload};

/// What to measure, and how long.
#[derive(Debug, Clone)]
pub struct Options {
    /// How often each peer has its turn.
    pub repetitions: u32,
    /// Multiplies the time of every measurement.
    pub scale: f64,
    /// Only these peers; all when empty.
    pub peers: Vec<String>,
    /// Only these workloads; all when empty.
    pub workloads: Vec<String>,
    /// Where the programs are, when they are not to be built.
    pub programs: Option<PathBuf>,
    /// Where the numbers go.
    pub output: PathBuf,
}

/// Measures, prints the table, writes the numbers. Returns whether every request was answered.
///
/// # Errors
/// When something can't be built or the namespaces can't be made; a peer that can't be had is named and left out.
pub fn run(options: &Options) -> Result<bool> {
    let peers = peers::chosen(&options.peers)?;
    let workloads = workloads::chosen(&options.workloads)?;
    if !(options.scale.is_finite() && options.scale > 0.0) || options.repetitions == 0 {
        bail!("neither --scale nor --repetitions may be zero");
    }
    let programs = options.programs.as_deref().map_or_else(Programs::build, Programs::in_folder)?;
    let (programs, left_out) = programs.with_envoy(peers.iter().any(|peer| peer.is_envoy()));
    let files = Files::write(&programs)?;
    let bench =
        Bench { options, files: &files, direct: Network::new(&files)?, redirected: Network::new(&files)? };
    bench.redirected.redirect(&files)?;
    let mut summary = Summary::new(options, &programs, left_out);
    let peers: Vec<&Peer> =
        peers.into_iter().filter(|peer| !peer.is_envoy() || programs.envoy.is_some()).collect();
    for repetition in 1..=options.repetitions {
        for peer in &peers {
            let begun = terminal::elapsed();
            for (workload, result) in bench.turn(peer, &workloads) {
                if let Err(error) = &result {
                    terminal::say(format_args!("bench: {} under {}: {error:#}", workload.name, peer.name));
                }
                summary.add(Row::new(peer, workload, repetition, result));
            }
            let took = (terminal::elapsed() - begun).as_secs_f64();
            terminal::say(format_args!(
                "bench: {repetition}/{}: {} ({took:.0} s)",
                options.repetitions, peer.name
            ));
        }
    }
    for line in summary.lines() {
        terminal::line(line);
    }
    if let Some(folder) = options.output.parent() {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    fs::write(&options.output, summary.json()?).with_context(|| options.output.display().to_string())?;
    terminal::say(format_args!("bench: the numbers are in {}", options.output.display()));
    Ok(summary.all_answered())
}

/// What all turns share.
struct Bench<'a> {
    options: &'a Options,
    files: &'a Files,
    direct: Network,
    redirected: Network,
}

impl Bench<'_> {
    /// One turn of a peer: its memory from a start of its own, then everything else.
    fn turn<'w>(&self, peer: &Peer, workloads: &[&'w Workload]) -> Vec<(&'w Workload, Result<Measured>)> {
        let due: Vec<&Workload> =
            workloads.iter().copied().filter(|workload| peer.takes_part(workload)).collect();
        let (alone, together): (Vec<&Workload>, Vec<&Workload>) =
            due.into_iter().partition(|workload| workload.from_fresh_start);
        let mut results = Vec::new();
        for group in alone.into_iter().map(|workload| vec![workload]).chain([together]) {
            if !group.is_empty() {
                results.extend(self.measure(peer, &group));
            }
        }
        results
    }

    /// Starts the peer, measures, and stops it.
    fn measure<'w>(&self, peer: &Peer, workloads: &[&'w Workload]) -> Vec<(&'w Workload, Result<Measured>)> {
        let network = if peer.is_direct() { &self.direct } else { &self.redirected };
        let pair = match Pair::start(network, self.files, peer) {
            Ok(pair) => pair,
            Err(error) => {
                let why = format!("{error:#}");
                let failed = |workload: &&'w Workload| (*workload, Err(anyhow::anyhow!("{why}")));
                return workloads.iter().map(failed).collect();
            }
        };
        workloads.iter().map(|workload| (*workload, self.load(&pair, peer, workload))).collect()
    }

    fn load(&self, pair: &Pair<'_>, peer: &Peer, workload: &Workload) -> Result<Measured> {
        let words = workload.words(self.options.scale);
        let limit = Duration::from_secs_f64(60.0 + 3.0 * workload.seconds * self.options.scale);
        pair.load(&words, workload.port(peer), limit)
    }
}
