//! What tests say: lines of the standard test runner in, counts and the lines of failures out.

use crate::report::Counts;
use crate::terminal;

/// What a test that can't run here prints: `SKIPPED name: reason`.
const SKIPPED: &str = "SKIPPED ";

/// What was said until now.
#[derive(Debug, Default)]
pub struct Heard {
    /// All of it.
    pub text: String,
    results: Counts,
    skipped_themselves: u64,
}

impl Heard {
    /// Takes a line, without its end. Tests that were skipped are shown at once.
    pub fn line(&mut self, line: &str) {
        self.text.push_str(line);
        self.text.push('\n');
        let trimmed = line.trim_start();
        // A single test thread writes a test's name before the test speaks.
        let said_by_test = trimmed.rsplit(" ... ").next().unwrap_or(trimmed);
        if let Some(reason) = said_by_test.strip_prefix(SKIPPED) {
            self.skipped_themselves += 1;
            terminal::show(&format!("skipped {reason}"));
        }
        if let Some((test, reason)) = ignored(trimmed) {
            terminal::show(&format!("skipped {test}: {reason}"));
        }
        if let Some(result) = result(trimmed) {
            self.results.add(result);
        }
    }

    /// How many passed, failed and were skipped. To the runner, a test that skipped itself has passed.
    pub fn counts(&self) -> Counts {
        let Counts { passed, failed, skipped } = self.results;
        Counts {
            passed: passed.saturating_sub(self.skipped_themselves),
            failed,
            skipped: skipped + self.skipped_themselves,
        }
    }
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

/// What a failed run said: the lines about failures, each with the one after it, or its end: of one that died, the last
/// line alone tells that it did.
pub fn failures(text: &str) -> String {
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
    if shown.len() < 2 {
        return lines.get(lines.len().saturating_sub(30)..).unwrap_or_default().join("\n");
    }
    shown.join("\n")
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
    fn of_a_failed_run_the_failures_are_shown_and_of_one_that_names_none_its_end() {
        let said = "test a ... ok\ntest b ... FAILED\n---- b stdout ----\nleft: 1\nok";
        assert_eq!(failures(said), "test b ... FAILED\n  ---- b stdout ----\n---- b stdout ----\n  left: 1");
        let died = "running 2 tests\ntest a ... ok\nerror: x ended with signal: 6";
        assert_eq!(failures(died), died);
    }
}
