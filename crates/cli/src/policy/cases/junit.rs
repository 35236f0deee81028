//! Results as JUnit XML, in the form that CI systems read.

use super::{Tested, Verdict};
use std::fmt::Write as _;
use std::time::Duration;

/// The whole document.
pub fn document(tested: &[Tested]) -> String {
    let mut text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".to_owned();
    let all = Counts::of(tested);
    // Writing to a String can not fail.
    let _ = writeln!(text, "<testsuites name=\"cinch policy test\" {all}>");
    for file in tested {
        let counts = Counts::of(std::slice::from_ref(file));
        let _ = writeln!(text, "  <testsuite name=\"{}\" {counts}>", escaped(&file.file));
        for one in &file.results {
            let (name, class, took) = (escaped(&one.name), escaped(&file.file), one.took.as_secs_f64());
            let _ = write!(text, "    <testcase name=\"{name}\" classname=\"{class}\" time=\"{took:.6}\"");
            let (tag, kind, lines) = match &one.verdict {
                Verdict::Passed => {
                    text.push_str("/>\n");
                    continue;
                }
                Verdict::Failed(lines) => ("failure", "Difference", lines.join("\n")),
                Verdict::Broken(error) => ("error", "Broken", error.clone()),
            };
            let message = escaped(lines.lines().next().unwrap_or_default());
            let lines = escaped(&lines);
            let _ = writeln!(
                text,
                ">\n      <{tag} type=\"{kind}\" message=\"{message}\">{lines}</{tag}>\n    </testcase>"
            );
        }
        text.push_str("  </testsuite>\n");
    }
    text.push_str("</testsuites>\n");
    text
}

#[derive(Default)]
struct Counts {
    tests: usize,
    failures: usize,
    errors: usize,
    took: Duration,
}

impl Counts {
    fn of(tested: &[Tested]) -> Self {
        let mut counts = Counts::default();
        for one in tested.iter().flat_map(|file| &file.results) {
            counts.tests += 1;
            counts.failures += usize::from(matches!(one.verdict, Verdict::Failed(_)));
            counts.errors += usize::from(matches!(one.verdict, Verdict::Broken(_)));
            counts.took += one.took;
        }
        counts
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Counts { tests, failures, errors, took } = self;
        let took = took.as_secs_f64();
        write!(f, "tests=\"{tests}\" failures=\"{failures}\" errors=\"{errors}\" time=\"{took:.6}\"")
    }
}

/// Text for an attribute or element. Characters that XML 1.0 can't hold become U+FFFD.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' => out.push_str("&#10;"),
            '\t' => out.push_str("&#9;"),
            c if c.is_control() || matches!(c, '\u{FFFE}' | '\u{FFFF}') => out.push('\u{FFFD}'),
            c => out.push(c),
        }
    }
    out
}
