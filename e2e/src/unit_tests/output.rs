//! What tests say: lines of the standard test runner in, counts and what failed, with its reason, out.

use crate::report::Counts;
use crate::terminal;

/// What a test that can't run here prints: `SKIPPED name: reason`.
const SKIPPED: &str = "SKIPPED ";
/// What a panic's first line says after the thread's name.
const PANICKED: &str = "panicked at ";

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

/// The tests that a run says have failed, each with its panic, or with all that it said when it did not panic.
pub fn failed(text: &str) -> Vec<(String, String)> {
    let mut found: Vec<(&str, Vec<&str>)> = Vec::new();
    // What the failed tests said comes after those that passed, and before a list of the names alone.
    let (mut of_failures, mut speaks) = (false, false);
    for line in text.lines() {
        if line == "failures:" || line == "successes:" || line.starts_with("test result: ") {
            (of_failures, speaks) = (line == "failures:", false);
        } else if of_failures && let Some(name) = speaker(line) {
            found.push((name, Vec::new()));
            speaks = true;
        } else if speaks && let Some((_, words)) = found.last_mut() {
            words.push(line);
        } else if let Some(name) = named(line, of_failures)
            && !found.iter().any(|(known, _)| *known == name)
        {
            found.push((name, Vec::new()));
        }
    }
    // Each is listed before it speaks, and those that say nothing are only listed.
    let spoken: Vec<&str> =
        found.iter().filter(|(_, words)| !words.is_empty()).map(|(name, _)| *name).collect();
    found.retain(|(name, words)| !words.is_empty() || !spoken.contains(name));
    found.into_iter().map(|(name, words)| (name.to_owned(), panic_of(&words))).collect()
}

/// Reads `---- name stdout ----`.
fn speaker(line: &str) -> Option<&str> {
    line.strip_prefix("---- ")?.strip_suffix(" stdout ----")
}

/// Reads `test name ... FAILED`, and an entry of the list of names at the end.
fn named(line: &str, in_list: bool) -> Option<&str> {
    let listed = line.strip_prefix("    ").filter(|_| in_list);
    listed.or_else(|| line.strip_prefix("test ")?.strip_suffix(" ... FAILED")).map(str::trim)
}

/// A test's words from its first panic on, without the frames of backtraces.
fn panic_of(words: &[&str]) -> String {
    let first = words.iter().position(|line| line.contains(PANICKED));
    let words = words.get(first.unwrap_or_default()..).unwrap_or_default();
    let mut in_backtrace = false;
    let mut kept = Vec::new();
    for line in words.iter().filter(|line| !line.starts_with("note: ")) {
        in_backtrace = *line == "stack backtrace:" || in_backtrace && is_frame(line);
        if !in_backtrace {
            // The thread is the test's own, whose name is known.
            kept.push(line.find(PANICKED).and_then(|at| line.get(at..)).unwrap_or(line));
        }
    }
    kept.join("\n").trim().to_owned()
}

/// Reads `  12: core::panicking::panic_fmt` and `             at /rustc/…/panicking.rs:75:14`.
fn is_frame(line: &str) -> bool {
    let trimmed = line.trim_start();
    let is_numbered = |(number, _): (&str, &str)| number.bytes().all(|byte| byte.is_ascii_digit());
    trimmed.starts_with("at ") || trimmed.split_once(": ").is_some_and(is_numbered)
}

/// Why a run failed that has ended as `ended` says: of a compiler its first error, of tests their last words.
pub fn cause(said: &str, ended: &str) -> String {
    let lines: Vec<&str> = ended.lines().collect();
    if let Some(error) = lines.iter().position(|line| line.starts_with("error"))
        && lines.len() > 1
    {
        return lines.get(error..).unwrap_or_default().join("\n");
    }
    let said: Vec<&str> = said.lines().collect();
    let last = said.get(said.len().saturating_sub(4)..).unwrap_or_default();
    last.iter().copied().chain(lines).collect::<Vec<_>>().join("\n")
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

    /// What the standard runner prints with `--show-output`.
    const RUN: &str = "
running 4 tests
test a::holds ... ok
test a::does_not ... FAILED
test a::returns ... FAILED
test a::is_silent ... FAILED

successes:

---- a::holds stdout ----
thread 'other' (7) panicked at src/a.rs:1:1:
as it should

successes:
    a::holds

failures:

---- a::does_not stdout ----
begins
thread 'a::does_not' (9) panicked at src/a.rs:42:9:
assertion `left == right` failed: the state
  left: 1
 right: 2
stack backtrace:
   0: __rustc::rust_begin_unwind
             at /rustc/1/library/std/src/panicking.rs:689:5
   1: core::panicking::panic_fmt
note: Some details are omitted, run with `RUST_BACKTRACE=full` for a verbose backtrace.

---- a::returns stdout ----
Error: no lake


failures:
    a::does_not
    a::is_silent
    a::returns

test result: FAILED. 1 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn each_test_that_failed_is_told_once_with_its_panic_and_without_its_backtrace() {
        let mut failed = failed(RUN);
        failed.sort();
        let panic =
            "panicked at src/a.rs:42:9:\nassertion `left == right` failed: the state\n  left: 1\n right: 2";
        let expected = [("a::does_not", panic), ("a::is_silent", ""), ("a::returns", "Error: no lake")];
        assert_eq!(failed, expected.map(|(name, why)| (name.to_owned(), why.to_owned())));
    }

    #[test]
    fn a_test_that_failed_before_its_runner_died_is_told_too() {
        let failed = failed("running 2 tests\ntest b ... FAILED\ntest c ... ok\n");
        assert_eq!(failed, [("b".to_owned(), String::new())]);
    }

    #[test]
    fn why_a_run_ended_badly_are_a_compilers_first_error_and_the_last_words_of_tests() {
        let compiler =
            "   Compiling a\nwarning: x\nerror[E0425]: no such name\n --> src/a.rs:1\nerror: cargo ended";
        assert!(cause("", compiler).starts_with("error[E0425]: no such name\n --> src"));
        let died = cause("1\n2\n3\nrunning 1 test\nstack overflow\n", "error: x ended with signal: 6");
        assert_eq!(died, "2\n3\nrunning 1 test\nstack overflow\nerror: x ended with signal: 6");
    }
}
