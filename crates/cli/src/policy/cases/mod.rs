//! `policy test`: cases that people write beside their policies. In: files of cases. Out: a line for each case,
//! what differs where one fails, and JUnit XML for those who ask.
//!
//! A file holds a document with `cases`, and may hold policies as further documents:
//!
//! ```yaml
//! policies: [policies.yaml]            # files beside this one
//! given:                               # for all cases
//!   workload: {namespace: orders, labels: {app: api}, serviceAccount: api}
//! cases:
//! - name: checkout may order
//!   request: {peer: cluster.local/ns/checkout/sa/checkout, method: POST, path: /orders}
//!   expect: allow
//! - name: nobody else may
//!   request: {method: POST, path: /orders}
//!   expect: {decision: deny, reason: NoAllowMatched}
//! - name: only tunnels
//!   ports: [8080]
//!   expect: {mode: STRICT}
//! ```

mod difference;
mod junit;
mod suite;

use anyhow::{Context, Result};
use clap::Args;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use suite::Suite;
pub use suite::policies_of;

/// Options of `policy test`.
#[derive(Debug, Args)]
pub struct Test {
    /// Files of cases.
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Also writes the results as JUnit XML.
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
}

/// The results of one file.
#[derive(Debug)]
pub struct Tested {
    /// The file, as it was named.
    pub file: String,
    /// One for each case.
    pub results: Vec<Outcome>,
}

/// The result of one case.
#[derive(Debug)]
pub struct Outcome {
    /// The case's name.
    pub name: String,
    /// How it went.
    pub verdict: Verdict,
    /// How long it took.
    pub took: Duration,
}

/// How a case went.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As expected.
    Passed,
    /// Otherwise: one line for each difference, and what was asked.
    Failed(Vec<String>),
    /// It could not be understood.
    Broken(String),
}

/// Runs all files; succeeds when every case went as expected.
///
/// # Errors
/// When the JUnit file can't be written.
pub fn run(options: &Test) -> Result<ExitCode> {
    let tested: Vec<Tested> = options.files.iter().map(|file| test(file)).collect();
    print!("{}", said(&tested));
    if let Some(path) = &options.junit {
        let xml = junit::document(&tested);
        std::fs::write(path, xml).with_context(|| format!("{} can not be written", path.display()))?;
    }
    let passed = tested.iter().flat_map(|file| &file.results).all(|one| one.verdict == Verdict::Passed);
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn test(file: &Path) -> Tested {
    let began = Instant::now();
    let results = match Suite::read(file) {
        Ok(suite) => suite.cases.iter().map(|case| timed(&case.name, || suite.check(case))).collect(),
        Err(error) => {
            let verdict = Verdict::Broken(format!("{error:#}"));
            vec![Outcome { name: "the file is read".to_owned(), verdict, took: began.elapsed() }]
        }
    };
    Tested { file: file.display().to_string(), results }
}

fn timed(name: &str, check: impl FnOnce() -> Verdict) -> Outcome {
    let began = Instant::now();
    let verdict = check();
    Outcome { name: name.to_owned(), verdict, took: began.elapsed() }
}

/// The results for a terminal.
fn said(tested: &[Tested]) -> String {
    let mut text = String::new();
    let (mut passed, mut failed) = (0, 0);
    for file in tested {
        // Writing to a String can not fail.
        let _ = writeln!(text, "{}", file.file);
        for Outcome { name, verdict, .. } in &file.results {
            let (mark, lines) = match verdict {
                Verdict::Passed => ("✓", Vec::new()),
                Verdict::Failed(lines) => ("✗", lines.iter().map(String::as_str).collect()),
                Verdict::Broken(error) => ("✗", vec![error.as_str()]),
            };
            *(if *verdict == Verdict::Passed { &mut passed } else { &mut failed }) += 1;
            let _ = writeln!(text, "  {mark} {name}");
            for line in lines.into_iter().flat_map(str::lines) {
                let _ = writeln!(text, "      {line}");
            }
        }
    }
    let _ = writeln!(text, "{passed} passed, {failed} failed");
    text
}

#[cfg(test)]
mod tests;
