//! The story's lines and the table that closes a run.

use crate::terminal;
use std::time::Duration;

/// One line of the story, played.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its word: `enrol`, `inject`, …
    pub name: String,
    /// What showed it, in a few words: counters, sentences that were seen.
    pub shown_by: String,
    /// How long it took.
    pub took: Duration,
    /// Whether it held.
    pub held: bool,
}

/// Prints the closing table; returns whether every line held. An empty story holds nothing.
#[must_use]
pub fn table(steps: &[Step]) -> bool {
    for row in rows(steps) {
        terminal::line(row);
    }
    !steps.is_empty() && steps.iter().all(|step| step.held)
}

fn rows(steps: &[Step]) -> Vec<String> {
    let width = steps.iter().map(|step| step.name.chars().count()).max().unwrap_or(0).max(4);
    let mut rows = vec![String::new(), format!("{:<width$}  {:>7}        SHOWN BY", "STEP", "SECONDS")];
    for step in steps {
        let verdict = if step.held { "held  " } else { "FAILED" };
        let mut lines = step.shown_by.lines();
        let first = lines.next().unwrap_or_default();
        rows.push(format!("{:<width$}  {:>7.1} {verdict} {first}", step.name, step.took.as_secs_f64()));
        rows.extend(lines.map(|line| format!("{:<width$}  {:>7} {:<6} {line}", "", "", "")));
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &str, held: bool) -> Step {
        Step { name: name.into(), shown_by: "seen\ntwice".into(), took: Duration::from_millis(1500), held }
    }

    #[test]
    fn the_table_has_a_line_for_each_step_and_says_which_failed() {
        let rows = rows(&[step("enrol", true), step("observe", false)]);
        assert_eq!(rows[1], "STEP     SECONDS        SHOWN BY");
        assert_eq!(rows[2], "enrol        1.5 held   seen");
        assert_eq!(rows[3], "                        twice");
        assert!(rows[4].contains("FAILED"));
    }

    #[test]
    fn one_failed_step_fails_the_run_and_no_step_is_no_success() {
        assert!(table(&[step("a", true)]));
        assert!(!table(&[step("a", true), step("b", false)]));
        assert!(!table(&[]));
    }
}
