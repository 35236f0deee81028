//! Every limit has a name of its own: that of its setting. What refuses is counted by that name and tested, and what
//! refuses nothing says why.

use super::{Limits, Refusals};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Settings by which nothing is refused, each with what becomes of what they bound.
const SILENT: &[(&str, &str)] = &[
    ("silence", "the client is connected to the app"),
    ("clientIdle", "what nobody uses is closed"),
    ("serverIdle", "what nobody uses is closed"),
    ("tunnelAge", "the next connection takes another tunnel"),
    ("keysKept", "what the token is refused for is that there are no keys"),
    ("httpTokens", "what is not remembered is verified again"),
    ("httpTokenBytes", "what is not remembered is verified again"),
    ("httpRefusedTokens", "what is not remembered is verified again"),
    ("http.pipelined", "the rest is read later"),
    ("http.linger", "what ends is over, or refused already"),
    ("http.discardBytes", "what ends is over, or refused already"),
    ("http.idleFramesPerSecond", "counted as http.idle_frames, of which it is the pace"),
];

/// As metrics and the log write it.
fn snake(setting: &str) -> String {
    let mut name = String::new();
    for letter in setting.chars() {
        if letter.is_ascii_uppercase() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name
}

fn all() -> BTreeSet<&'static str> {
    let limits = Limits::default();
    let counts = limits.counts().into_iter().map(|(name, ..)| name);
    counts.chain(limits.times().into_iter().map(|(name, _)| name)).collect()
}

/// The Rust files under `root`.
fn files(root: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            found.push(path);
        }
    }
}

/// The texts of the sources, and those of the tests.
fn texts() -> (String, String) {
    let (mut sources, mut tests) = (String::new(), String::new());
    for root in ["src", "tests", "../crates/http/src", "../crates/http/tests"] {
        let mut found = Vec::new();
        files(&Path::new(env!("CARGO_MANIFEST_DIR")).join(root), &mut found);
        // Where all are named alike, names say nothing.
        let says = |path: &&PathBuf| !path.ends_with("src/limits.rs") && !path.ends_with("limits/names.rs");
        for path in found.iter().filter(says) {
            let text = std::fs::read_to_string(path).unwrap();
            let (source, test) = match text.split_once("#[cfg(test)]\nmod tests") {
                _ if root.ends_with("tests") || path.ends_with("tests.rs") => ("", &text[..]),
                Some(parts) => parts,
                None => (&text[..], ""),
            };
            sources.push_str(source);
            tests.push_str(test);
        }
    }
    (sources, tests)
}

/// The texts that `calls` are given first, where it is one between quotes.
fn said_to(calls: &[&str], text: &str) -> BTreeSet<String> {
    let after = calls.iter().flat_map(|call| text.split(call).skip(1));
    let quoted = after.filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next());
    quoted.map(str::to_owned).collect()
}

#[test]
fn what_refuses_bears_the_name_of_a_setting() {
    let named: BTreeSet<String> = all().into_iter().map(snake).collect();
    let (sources, _) = texts();
    let calls = ["count_limit(", "count_many(", "limits.count(", "refusals.count(", "over_limit(", "::calm("];
    let said = said_to(&calls, &sources);
    assert!(said.len() > 25, "{said:?}");
    let strange: Vec<_> = said.difference(&named).collect();
    assert!(strange.is_empty(), "no settings: {strange:?}");
}

#[test]
fn every_setting_is_counted_and_tested_or_refuses_nothing() {
    let (sources, tests) = texts();
    let silent: BTreeMap<&str, &str> = SILENT.iter().copied().collect();
    let (mut uncounted, mut untested) = (Vec::new(), Vec::new());
    for setting in all() {
        let name = snake(setting);
        let quoted = format!("\"{name}\"");
        if sources.contains(&quoted) == silent.contains_key(setting) {
            uncounted.push(setting);
        } else if !silent.contains_key(setting)
            && !tests.contains(&quoted)
            && !tests.contains(&format!("\\\"{name}\\\""))
        {
            untested.push(setting);
        }
    }
    assert!(uncounted.is_empty(), "neither counted nor said to refuse nothing, or both: {uncounted:?}");
    assert!(untested.is_empty(), "no test sees {untested:?}");
    assert!(silent.keys().all(|setting| all().contains(setting)), "settings that are gone");
}

#[test]
fn each_is_counted_by_itself_and_told_in_a_line() {
    let (said, refusals) = (crate::limits::tests::Said::default(), Refusals::default());
    let log = tracing_subscriber::fmt().with_ansi(false).with_writer(said.clone()).finish();
    let _guard = tracing::subscriber::set_default(log);
    for setting in all() {
        let name: &'static str = snake(setting).leak();
        refusals.count(name);
        refusals.count(name);
        assert_eq!(refusals.of(name), 2);
        let line = format!("limit=\"{name}\" refused=1");
        let text = said.text();
        assert_eq!(text.lines().filter(|text| text.ends_with(&line)).count(), 1, "{name}: {text}");
    }
}
