//! What was played and what came of it, and the table that closes a run.

use crate::terminal;
use std::time::Duration;

/// What came of a line or test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// All that it claims was seen.
    Held,
    /// Something else was seen.
    Failed,
    /// It was not played; the words say why.
    Skipped,
}

/// One line of the story or one test, played or not.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its words: `enrol`, `inject`, …
    pub name: String,
    /// What showed it, in a few words: counters, sentences that were seen.
    pub shown_by: String,
    /// How long it took.
    pub took: Duration,
    /// What came of it.
    pub verdict: Verdict,
}

impl Step {
    /// One that was played, with what it returned.
    #[must_use]
    pub fn played(name: &str, took: Duration, result: anyhow::Result<String>) -> Self {
        let (verdict, shown_by) = match result {
            Ok(shown_by) => (Verdict::Held, shown_by),
            Err(error) => (Verdict::Failed, format!("{error:#}")),
        };
        Self { name: name.to_owned(), shown_by, took, verdict }
    }

    /// One that was not played, and why.
    #[must_use]
    pub fn skipped(name: &str, why: &str) -> Self {
        let (name, shown_by) = (name.to_owned(), why.to_owned());
        Self { name, shown_by, took: Duration::ZERO, verdict: Verdict::Skipped }
    }
}

/// How many tests passed, failed and were skipped.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// All that they claim held.
    pub passed: u64,
    /// Something else was seen, or nothing at all.
    pub failed: u64,
    /// They can't be played here.
    pub skipped: u64,
}

impl Counts {
    /// Adds those of another part.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// Those of a table.
    #[must_use]
    pub fn of(steps: &[Step]) -> Self {
        let count = |verdict| count(steps, verdict) as u64;
        Self {
            passed: count(Verdict::Held),
            failed: count(Verdict::Failed),
            skipped: count(Verdict::Skipped),
        }
    }
}

/// How many of the steps came out so.
#[must_use]
pub fn count(steps: &[Step], verdict: Verdict) -> usize {
    steps.iter().filter(|step| step.verdict == verdict).count()
}

/// Prints the closing table; returns whether every line held. An empty story holds nothing.
#[must_use]
pub fn table(steps: &[Step]) -> bool {
    for row in rows(steps) {
        terminal::line(row);
    }
    !steps.is_empty() && count(steps, Verdict::Held) == steps.len()
}

fn rows(steps: &[Step]) -> Vec<String> {
    let width = steps.iter().map(|step| step.name.chars().count()).max().unwrap_or(0).max(4);
    let mut rows = vec![String::new(), format!("{:<width$}  {:>7}         SHOWN BY", "STEP", "SECONDS")];
    for step in steps {
        let verdict = match step.verdict {
            Verdict::Held => "held",
            Verdict::Failed => "FAILED",
            Verdict::Skipped => "skipped",
        };
        let mut lines = step.shown_by.lines();
        let first = lines.next().unwrap_or_default();
        rows.push(format!("{:<width$}  {:>7.1} {verdict:<7} {first}", step.name, step.took.as_secs_f64()));
        rows.extend(lines.map(|line| format!("{:<width$}  {:>7} {:<7} {line}", "", "", "")));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    fn step(name: &str, held: bool) -> Step {
        let result = if held { Ok("seen\ntwice".to_owned()) } else { Err(anyhow!("not seen")) };
        Step::played(name, Duration::from_millis(1500), result)
    }

    #[test]
    fn the_table_has_a_line_for_each_step_and_says_which_failed() {
        let rows = rows(&[step("enrol", true), step("observe", false), Step::skipped("promote", "no root")]);
        assert_eq!(rows[1], "STEP     SECONDS         SHOWN BY");
        assert_eq!(rows[2], "enrol        1.5 held    seen");
        assert_eq!(rows[3], "                         twice");
        assert_eq!(rows[4], "observe      1.5 FAILED  not seen");
        assert_eq!(rows[5], "promote      0.0 skipped no root");
    }

    #[test]
    fn one_that_did_not_hold_fails_the_run_and_no_step_is_no_success() {
        assert!(table(&[step("a", true)]));
        assert!(!table(&[step("a", true), step("b", false)]));
        assert!(!table(&[step("a", true), Step::skipped("b", "no root")]));
        assert!(!table(&[]));
    }
}
