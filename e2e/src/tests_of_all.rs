//! `cargo e2e test`: every test there is. Unit and integration tests by cargo; the drift of generated files; and,
//! as root, the cluster tests and the story's lines on one cluster with one install. What can't run is counted as
//! skipped, with the reason.

use crate::cluster::{Cluster, Options};
use crate::commands::{self, is_root};
use crate::prepare::{cache_directory, prepare, repository};
use crate::process::tail;
use crate::report::{Step, Verdict};
use crate::{cluster_tests, generate, images, report, story, terminal};
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// What a test that can't run here prints: `SKIPPED name: reason`.
const SKIPPED: &str = "SKIPPED ";

/// What the names of test clusters begin with; each run has one of its own.
const CLUSTERS: &str = "test-";

/// How many tests passed, failed and were skipped.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Counts {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    fn of(steps: &[Step]) -> Self {
        let count = |verdict| report::count(steps, verdict) as u64;
        Self {
            passed: count(Verdict::Held),
            failed: count(Verdict::Failed),
            skipped: count(Verdict::Skipped),
        }
    }
}

/// Runs everything, prints the sums alone on the last line. Returns whether nothing failed.
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
    let mut counts = unit_and_integration()?;
    counts.add(drift());
    counts.add(on_a_cluster());
    terminal::say(format_args!("test: {:.0} s in all", terminal::elapsed().as_secs_f64()));
    let Counts { passed, failed, skipped } = counts;
    terminal::line(format_args!("{passed} passed, {failed} failed, {skipped} skipped"));
    Ok(failed == 0)
}

/// `cargo test --workspace`: its output is kept in the cache, failures are shown.
fn unit_and_integration() -> Result<Counts> {
    let start = Instant::now();
    let log = cache_directory()?.join("test.log");
    terminal::say("test: unit and integration tests (cargo test --workspace)");
    let mut command = Command::new(images::cargo());
    // One test binary at a time, all of them even after a failure; skipped tests speak on their output.
    command.args(["test", "--workspace", "--no-fail-fast", "--", "--show-output"]).current_dir(repository()?);
    let (counts, ok) = counted(command, &log)?;
    let Counts { passed, failed, skipped } = counts;
    terminal::say(format_args!(
        "test: {passed} passed, {failed} failed, {skipped} skipped in {:.0} s",
        start.elapsed().as_secs_f64()
    ));
    // A test that does not compile, or a process that dies, fails without a line of its own.
    let silent = Counts { failed: u64::from(!ok && failed == 0), ..Counts::default() };
    if !ok {
        terminal::show(&failures(&log));
    }
    let mut all = counts;
    all.add(silent);
    Ok(all)
}

/// Runs cargo, with its output in `log`, and says what goes on: the crates while it compiles, the results.
fn counted(mut command: Command, log: &Path) -> Result<(Counts, bool)> {
    let mut file = File::create(log).with_context(|| format!("{} can't be written", log.display()))?;
    let (reader, writer) = std::io::pipe()?;
    let mut child =
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).spawn().context("cargo")?;
    // The command holds the pipe's other end, without which reading would never end.
    drop(command);
    let (mut counts, mut said) = (Counts::default(), Instant::now());
    let (mut compiled, mut skipped_themselves) = (0, 0);
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        writeln!(file, "{line}")?;
        let trimmed = line.trim_start();
        compiled += u64::from(trimmed.starts_with("Compiling "));
        // A single test thread writes a test's name before the test speaks.
        let said_by_test = trimmed.rsplit(" ... ").next().unwrap_or(trimmed);
        if let Some(reason) = said_by_test.strip_prefix(SKIPPED) {
            skipped_themselves += 1;
            terminal::show(&format!("skipped {reason}"));
        }
        if let Some((test, reason)) = ignored(trimmed) {
            terminal::show(&format!("skipped {test}: {reason}"));
        }
        if let Some(result) = result(trimmed) {
            counts.add(result);
        }
        if said.elapsed().as_secs() >= 20 {
            said = Instant::now();
            let Counts { passed, failed, .. } = counts;
            terminal::say(format_args!(
                "  {compiled} crates compiled, {passed} tests passed, {failed} failed"
            ));
        }
    }
    let ok = child.wait()?.success();
    // To cargo, a test that skipped itself has passed.
    counts.passed = counts.passed.saturating_sub(skipped_themselves);
    counts.skipped += skipped_themselves;
    Ok((counts, ok))
}

/// Reads `test name ... ignored, reason`: a test that its attribute keeps from being run.
fn ignored(line: &str) -> Option<(&str, &str)> {
    let (test, end) = line.strip_prefix("test ")?.split_once(" ... ignored")?;
    Some((test, end.strip_prefix(", ").unwrap_or("no reason is given")))
}

/// Reads `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
fn result(line: &str) -> Option<Counts> {
    let (_, numbers) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |word: &str| {
        let part = numbers.split("; ").find_map(|part| part.strip_suffix(word));
        part.and_then(|digits| digits.trim().parse().ok()).unwrap_or(0)
    };
    Some(Counts { passed: number("passed"), failed: number("failed"), skipped: number("ignored") })
}

/// What a failed run of cargo said: from the first line of failures on, else its end.
fn failures(log: &Path) -> String {
    let text = tail(log, 4000);
    let wanted = |line: &&str| {
        line.starts_with("---- ")
            || line.starts_with("error")
            || line.contains("panicked at")
            || line.contains("FAILED")
    };
    let lines: Vec<&str> = text.lines().collect();
    let mut shown = Vec::new();
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| wanted(line)) {
        let next = lines.get(at + 1).copied().unwrap_or_default();
        shown.push(format!("{line}\n  {next}"));
    }
    if shown.is_empty() { tail(log, 30) } else { shown.join("\n") }
}

/// Two things are compared: what is made from the code, and what is made from the chart by Helm.
fn drift() -> Counts {
    let result = generate::run(true);
    if result.is_ok() && generate::helm().is_none() {
        terminal::say("skipped the comparison of manifests/install.yaml with the chart: no Helm binary here");
        return Counts { passed: 1, skipped: 1, ..Counts::default() };
    }
    if let Err(error) = &result {
        terminal::say(format_args!("test: generated files have drifted: {error:#}"));
        return Counts { failed: 1, ..Counts::default() };
    }
    Counts { passed: 2, ..Counts::default() }
}

/// The cluster tests and the story's lines.
fn on_a_cluster() -> Counts {
    let (tests, lines) = (cluster_tests::TESTS.len(), story::LINES.len() + story::ENDING.len());
    let skipped = (tests + lines) as u64;
    if !is_root() {
        terminal::say(format_args!(
            "skipped {tests} cluster tests and the story's {lines} lines: a cluster needs root"
        ));
        return Counts { skipped, ..Counts::default() };
    }
    match on_one_of_our_own(|cluster| {
        let mut steps = cluster_tests::play_first(cluster, cluster_tests::TESTS);
        let mut story = story::Story::begin(cluster)?;
        steps.extend(story.play(story::LINES));
        steps.extend(cluster_tests::play_last(cluster, cluster_tests::TESTS));
        steps.extend(story.play(story::ENDING));
        Ok(steps)
    }) {
        Ok(steps) => Counts::of(&steps),
        Err(error) => {
            terminal::say(format_args!("test: no cluster with Cinch: {error:#}"));
            Counts { failed: 1, skipped, ..Counts::default() }
        }
    }
}

/// Plays only the cluster tests and lines of the story whose names hold one of the words `only`, on the kept cluster
/// `on` or on one of their own. Returns whether all of them held.
///
/// # Errors
/// When nothing has such a name, or a cluster can't be had.
pub fn run_only(only: &[String], on: Option<&str>) -> Result<bool> {
    let words: Vec<&str> = only.iter().map(String::as_str).collect();
    let (tests, lines) = (cluster_tests::named(&words), story::lines_for(&words));
    if tests.is_empty() && lines.is_empty() {
        bail!("no cluster test and no line of the story has one of {only:?} in its name");
    }
    if on.is_some() && !lines.is_empty() {
        bail!("the story needs a cluster of its own: leave --on out");
    }
    commands::root()?;
    let play = |cluster: &Cluster| -> Result<Vec<Step>> {
        let mut steps = cluster_tests::play_first(cluster, &tests);
        if lines.is_empty() {
            steps.extend(cluster_tests::play_last(cluster, &tests));
            return Ok(steps);
        }
        let is_ending = |line: &story::Line| story::ENDING.iter().any(|ending| ending.0 == line.0);
        let (ending, lines): (Vec<_>, Vec<_>) = lines.iter().copied().partition(is_ending);
        let mut story = story::Story::begin(cluster)?;
        steps.extend(story.play(&lines));
        steps.extend(cluster_tests::play_last(cluster, &tests));
        steps.extend(story.play(&ending));
        Ok(steps)
    };
    let steps = match on {
        Some(name) => {
            let steps = play(&Cluster::attach(name, &prepare()?)?)?;
            let _ = report::table(&steps);
            steps
        }
        None => on_one_of_our_own(play)?,
    };
    let Counts { passed, failed, skipped } = Counts::of(&steps);
    terminal::say(format_args!(
        "{passed} held, {failed} did not, {skipped} skipped; these are not all tests"
    ));
    Ok(failed + skipped == 0)
}

/// Starts a cluster with Cinch, plays, prints the table, and takes the cluster down.
fn on_one_of_our_own(play: impl FnOnce(&Cluster) -> Result<Vec<Step>>) -> Result<Vec<Step>> {
    commands::remove_abandoned(CLUSTERS)?;
    let options = Options { name: format!("{CLUSTERS}{}", std::process::id()), nodes: 1 };
    let cluster = commands::installed(&options)?;
    let memory = cluster.watch_memory();
    let steps = play(&cluster)?;
    let _ = report::table(&steps);
    terminal::say(format_args!("test: {} MiB of memory at the peak, all processes", memory.peak_mib()));
    cluster.stop()?;
    terminal::say("test: nothing of the cluster is left (checked)");
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_line_is_counted_and_other_lines_are_not() {
        let line =
            "test result: FAILED. 12 passed; 2 failed; 3 ignored; 0 measured; 0 filtered out; finished in 1s";
        assert_eq!(result(line), Some(Counts { passed: 12, failed: 2, skipped: 3 }));
        assert_eq!(result("test cluster::tests::a ... ok"), None);
    }

    #[test]
    fn an_ignored_test_is_told_with_its_reason() {
        assert_eq!(ignored("test a::b ... ignored, needs a lake"), Some(("a::b", "needs a lake")));
        assert_eq!(ignored("test a::b ... ignored"), Some(("a::b", "no reason is given")));
        assert_eq!(ignored("test a::what_is_ignored ... ok"), None);
    }

    #[test]
    fn a_test_that_skipped_itself_is_not_passed_as_well() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = Command::new("printf");
        command.arg("SKIPPED a: no root\\ntest result: ok. 2 passed; 0 failed; 0 ignored; 0 measured\\n");
        let (counts, ok) = counted(command, &folder.path().join("log")).unwrap();
        assert!(ok);
        assert_eq!(counts, Counts { passed: 1, failed: 0, skipped: 1 });
    }
}
