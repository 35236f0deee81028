//! The end of a run of all tests, for a reader who has nothing but the last lines of a long log. In: what failed. Out: lines
//! that name each failure with its first and last words, short enough to be seen as a whole.

use crate::report::{Step, Verdict};

/// Characters that all lines together may have.
const ALL: usize = 5_800;
/// Characters of what one failure says: of many, each says less, and of very many only the names are told.
const EACH: [usize; 5] = [600, 300, 150, 60, 0];
/// Before what a failure says.
const INDENT: &str = "    ";

/// Something that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Its name: of a test, the words with which cargo runs it alone.
    name: String,
    /// What it said.
    why: String,
}

impl Failure {
    /// One of that name, and what it said.
    #[must_use]
    pub fn new(name: &str, why: &str) -> Self {
        Self { name: name.trim_end().to_owned(), why: why.to_owned() }
    }

    /// Those of the story's lines and the cluster tests that did not hold.
    #[must_use]
    pub fn of(steps: &[Step]) -> Vec<Self> {
        let failed = steps.iter().filter(|step| step.verdict == Verdict::Failed);
        failed.map(|step| Self::new(&format!("on the cluster: {}", step.name), &step.shown_by)).collect()
    }

    fn lines(&self, limit: usize) -> String {
        let name = format!("FAILED {}", cut(&self.name, 300));
        let why: Vec<&str> = self.why.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        let why = if limit > 0 { cut(&why.join("\n"), limit) } else { String::new() };
        let why = why.lines().map(|line| format!("{INDENT}{line}"));
        std::iter::once(name).chain(why).collect::<Vec<_>>().join("\n")
    }
}

/// The lines that close a run: nothing when nothing failed.
#[must_use]
pub fn lines(failures: &[Failure]) -> Vec<String> {
    let of_size = |limit: usize| failures.iter().map(|failure| failure.lines(limit)).collect::<Vec<_>>();
    let mut lines = Vec::new();
    for limit in EACH {
        lines = of_size(limit);
        if characters(&lines) <= ALL {
            return lines;
        }
    }
    let (all, mut room) = (lines.len(), ALL);
    let fits = |line: &&String| {
        let left = room.checked_sub(line.chars().count() + 1);
        room = left.unwrap_or_default();
        left.is_some()
    };
    let fitting = lines.iter().take_while(fits).count();
    lines.truncate(fitting);
    lines.push(format!("and {} more failed", all - fitting));
    lines
}

fn characters(lines: &[String]) -> usize {
    lines.iter().map(|line| line.chars().count() + 1).sum()
}

/// The text, or its beginning and its end: a panic says first what was claimed, and last what was seen.
fn cut(text: &str, limit: usize) -> String {
    let all = text.chars().count();
    if all <= limit {
        return text.to_owned();
    }
    let end = limit / 3;
    let beginning: String = text.chars().take(limit - end).collect();
    let end: String = text.chars().skip(all - end).collect();
    format!("{beginning} […] {end}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn each_failure_is_named_with_what_it_said() {
        let failed = Step::played("relax", Duration::ZERO, Err(anyhow::anyhow!("no posture\n\nwas seen")));
        let held = Step::played("enrol", Duration::ZERO, Ok(String::new()));
        let mut failures = vec![Failure::new("-p cinch-e2e --lib a::b", "left: 1\nright: 2")];
        failures.extend(Failure::of(&[held, failed, Step::skipped("survive", "no root")]));
        assert_eq!(
            lines(&failures),
            [
                "FAILED -p cinch-e2e --lib a::b\n    left: 1\n    right: 2",
                "FAILED on the cluster: relax\n    no posture\n    was seen",
            ]
        );
        assert_eq!(lines(&[]), [""; 0]);
    }

    #[test]
    fn of_a_long_failure_the_beginning_and_the_end_are_seen() {
        let why = format!("the claim {} what was seen", "ä".repeat(5_000));
        let seen = lines(&[Failure::new("a", &why)]).join("\n");
        assert!(seen.contains("the claim ä") && seen.ends_with("ä what was seen"), "{seen}");
        assert!((600..650).contains(&seen.chars().count()), "{seen}");
    }

    #[test]
    fn all_together_are_short_and_what_does_not_fit_is_counted() {
        let why = "words\n".repeat(1_000);
        for (many, named) in [(1, 1), (9, 9), (20, 20), (80, 80), (1_000, 80)] {
            let failures = vec![Failure::new(&"name ".repeat(12), &why); many];
            let lines = lines(&failures);
            assert!(characters(&lines) < 6_000, "{many}: {}", characters(&lines));
            let seen = lines.iter().filter(|line| line.starts_with("FAILED name")).count();
            assert!(seen >= named, "{many}: {seen}");
            let more = (many > seen).then(|| format!("and {} more failed", many - seen));
            assert!(more.is_none_or(|more| lines.last() == Some(&more)), "{lines:?}");
        }
    }
}
