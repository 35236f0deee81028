//! `cargo e2e test`: every test there is. Unit and integration tests; the drift of generated files; and,
//! as root, the cluster tests and the story's lines on one cluster with one install. What can't run is counted as
//! skipped, with the reason.

use crate::closing::{self, Failure};
use crate::cluster::{Cluster, Options};
use crate::cluster_tests::Ground;
use crate::commands::{self, is_root};
use crate::install::Redirect;
use crate::prepare::prepare;
use crate::report::{self, Counts, Step};
use crate::{cluster_tests, generate, story, terminal, unit_tests};
use anyhow::{Result, bail};

/// What the names of test clusters begin with; each run has one of its own.
const CLUSTERS: &str = "test-";

/// What came of a part: how many did what, and what failed.
type Came = (Counts, Vec<Failure>);

/// Runs everything, prints what failed and then the sums alone on the last line. Returns whether nothing failed.
///
/// # Errors
/// When cargo or a cluster can't be started at all.
pub fn run() -> Result<bool> {
    // First, because Helm, with which some tests render the chart, is among the programs of the cluster.
    if is_root()
        && let Err(error) = prepare()
    {
        terminal::say(format_args!("test: what a cluster needs can't be had: {error:#}"));
    }
    let (mut counts, mut failures) = unit_tests::run()?;
    for part in [drift, on_a_cluster] {
        let (of_part, failed) = part();
        counts.add(of_part);
        failures.extend(failed);
    }
    terminal::say(format_args!("test: {:.0} s in all", terminal::elapsed().as_secs_f64()));
    closing::lines(&failures).iter().for_each(terminal::line);
    let Counts { passed, failed, skipped } = counts;
    terminal::line(format_args!("{passed} passed, {failed} failed, {skipped} skipped"));
    Ok(failed == 0)
}

/// Two things are compared: what is made from the code, and what is made from the chart by Helm.
fn drift() -> Came {
    let result = generate::run(true);
    if result.is_ok() && generate::helm().is_none() {
        terminal::say("skipped the comparison of manifests/install.yaml with the chart: no Helm binary here");
        return (Counts { passed: 1, skipped: 1, ..Counts::default() }, Vec::new());
    }
    if let Err(error) = &result {
        terminal::say(format_args!("test: generated files have drifted: {error:#}"));
        let failure = Failure::new("cargo e2e generate --check", &format!("{error:#}"));
        return (Counts { failed: 1, ..Counts::default() }, vec![failure]);
    }
    (Counts { passed: 2, ..Counts::default() }, Vec::new())
}

/// The cluster tests and the story's lines.
fn on_a_cluster() -> Came {
    let (tests, lines) = (cluster_tests::TESTS.len(), story::LINES.len() + story::ENDING.len());
    let skipped = (tests + lines) as u64;
    if !is_root() {
        terminal::say(format_args!(
            "skipped {tests} cluster tests and the story's {lines} lines: a cluster needs root"
        ));
        return (Counts { skipped, ..Counts::default() }, Vec::new());
    }
    match on_one_of_our_own(Redirect::Agent, |cluster| {
        let ground = Ground { cluster, redirect: Redirect::Agent };
        let mut steps = cluster_tests::play_first(ground, cluster_tests::TESTS);
        let mut story = story::Story::begin(cluster, Redirect::Agent)?;
        steps.extend(story.play(story::LINES));
        steps.extend(story.beside(|check| cluster_tests::play_last(ground, cluster_tests::TESTS, check)));
        steps.extend(story.play(story::ENDING));
        Ok(steps)
    }) {
        Ok(steps) => (Counts::of(&steps), Failure::of(&steps)),
        Err(error) => {
            terminal::say(format_args!("test: no cluster with Cinch: {error:#}"));
            let failure = Failure::new("on the cluster", &format!("{error:#}"));
            (Counts { failed: 1, skipped, ..Counts::default() }, vec![failure])
        }
    }
}

/// Plays the cluster tests and lines of the story whose names hold one of the words `only`, all when there are none,
/// on the kept cluster `on` or on one of their own, whose pods' redirect is set as `redirect` says. Returns whether
/// all that were played held.
///
/// # Errors
/// When nothing has such a name, or a cluster can't be had.
pub fn run_only(only: &[String], on: Option<&str>, redirect: Redirect) -> Result<bool> {
    let words: Vec<&str> = only.iter().map(String::as_str).collect();
    // Every name holds the empty word.
    let words = if words.is_empty() { vec![""] } else { words };
    let (tests, lines) = (cluster_tests::named(&words), story::lines_for(&words));
    if tests.is_empty() && lines.is_empty() {
        bail!("no cluster test and no line of the story has one of {only:?} in its name");
    }
    if on.is_some() && !lines.is_empty() {
        bail!("the story needs a cluster of its own: leave --on out");
    }
    commands::root()?;
    let play = |cluster: &Cluster| -> Result<Vec<Step>> {
        let ground = Ground { cluster, redirect };
        let mut steps = cluster_tests::play_first(ground, &tests);
        if lines.is_empty() {
            steps.extend(cluster_tests::play_last(ground, &tests, &|| Ok(())));
            return Ok(steps);
        }
        let is_ending = |line: &story::Line| story::ENDING.iter().any(|ending| ending.0 == line.0);
        let (ending, lines): (Vec<_>, Vec<_>) = lines.iter().copied().partition(is_ending);
        let mut story = story::Story::begin(cluster, redirect)?;
        steps.extend(story.play(&lines));
        steps.extend(story.beside(|check| cluster_tests::play_last(ground, &tests, check)));
        steps.extend(story.play(&ending));
        Ok(steps)
    };
    let steps = match on {
        Some(name) => {
            let steps = play(&Cluster::attach(name, &prepare()?)?)?;
            let _ = report::table(&steps);
            steps
        }
        None => on_one_of_our_own(redirect, play)?,
    };
    closing::lines(&Failure::of(&steps)).iter().for_each(terminal::line);
    let Counts { passed, failed, skipped } = Counts::of(&steps);
    terminal::say(format_args!(
        "{passed} held, {failed} did not, {skipped} skipped; these are not all tests"
    ));
    Ok(failed == 0)
}

/// Starts a cluster with Cinch, plays, prints the table, and takes the cluster down.
fn on_one_of_our_own(
    redirect: Redirect,
    play: impl FnOnce(&Cluster) -> Result<Vec<Step>>,
) -> Result<Vec<Step>> {
    commands::remove_abandoned(CLUSTERS)?;
    let options = Options { name: format!("{CLUSTERS}{}", std::process::id()), nodes: 1 };
    let cluster = commands::installed(&options, redirect)?;
    let memory = cluster.watch_memory();
    let steps = play(&cluster)?;
    let _ = report::table(&steps);
    terminal::say(format_args!("test: {} MiB of memory at the peak, all processes", memory.peak_mib()));
    cluster.stop()?;
    terminal::say("test: nothing of the cluster is left (checked)");
    Ok(steps)
}
