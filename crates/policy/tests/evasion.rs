//! Attackers against three back ends: requests are generated from what path evasion is made of, judged by the
//! engine under the default mode, and what passes is handed to the back ends as it would be forwarded. None may
//! resolve it into a path that the policy denies.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use cinch_policy::{
    Connection, MeshConfig, PathNormalization, PolicyObject, Readings, Request, Workload, WorkloadPolicies,
    no_providers, normalize,
};
use proptest::prelude::*;
use serde_json::json;
use std::cell::Cell;

/// How a back end reads the target that it gets.
#[derive(Debug, Clone, Copy)]
enum BackEnd {
    /// Takes the path as it stands.
    Raw,
    /// Merges slashes, then resolves dots, and decodes nothing.
    Merging,
    /// Decodes every escape once, then resolves dots.
    Decoding { backslash: Backslash, slashes: Slashes },
}

/// What a backslash is to a back end.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Backslash {
    Letter,
    Slash,
}

/// What a back end does with empty segments.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Slashes {
    Kept,
    MergedFirst,
    MergedLast,
}

fn back_ends() -> Vec<BackEnd> {
    let mut all = vec![BackEnd::Raw, BackEnd::Merging];
    for backslash in [Backslash::Letter, Backslash::Slash] {
        for slashes in [Slashes::Kept, Slashes::MergedFirst, Slashes::MergedLast] {
            all.push(BackEnd::Decoding { backslash, slashes });
        }
    }
    all
}

impl BackEnd {
    /// The resource that this back end serves for `path`, as bytes: decoded escapes need not be text.
    fn resolve(self, path: &str) -> Vec<u8> {
        match self {
            BackEnd::Raw => path.as_bytes().to_vec(),
            BackEnd::Merging => resolve_dots(&merge(path.as_bytes())),
            BackEnd::Decoding { backslash, slashes } => {
                let mut decoded = unescape(path.as_bytes());
                if backslash == Backslash::Slash {
                    decoded.iter_mut().filter(|byte| **byte == b'\\').for_each(|byte| *byte = b'/');
                }
                match slashes {
                    Slashes::Kept => resolve_dots(&decoded),
                    Slashes::MergedFirst => resolve_dots(&merge(&decoded)),
                    Slashes::MergedLast => merge(&resolve_dots(&decoded)),
                }
            }
        }
    }
}

fn unescape(path: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut at = 0;
    while at < path.len() {
        let digits = path.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        let escaped = digits.filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        match escaped {
            Some(digits) if path[at] == b'%' => {
                decoded.push(u8::from_str_radix(digits, 16).unwrap());
                at += 3;
            }
            _ => {
                decoded.push(path[at]);
                at += 1;
            }
        }
    }
    decoded
}

fn merge(path: &[u8]) -> Vec<u8> {
    let mut merged: Vec<u8> = path.to_vec();
    merged.dedup_by(|one, before| *one == b'/' && *before == b'/');
    merged
}

/// A stack of segments, as file systems walk.
fn resolve_dots(path: &[u8]) -> Vec<u8> {
    let mut stack: Vec<&[u8]> = Vec::new();
    let segments: Vec<&[u8]> = path.strip_prefix(b"/").unwrap_or(path).split(|byte| *byte == b'/').collect();
    for (index, segment) in segments.iter().enumerate() {
        match *segment {
            b"." => {}
            b".." => {
                stack.pop();
            }
            other => {
                stack.push(other);
                continue;
            }
        }
        if index + 1 == segments.len() {
            stack.push(b"");
        }
    }
    let mut resolved = Vec::new();
    for segment in stack {
        resolved.push(b'/');
        resolved.extend_from_slice(segment);
    }
    resolved
}

/// What the policy denies, as its author means it: a judge that knows nothing of the engine.
fn is_denied(resource: &[u8]) -> bool {
    let inner = |rest: &[u8]| !rest.is_empty() && !rest.contains(&b'/');
    resource == b"/admin"
        || resource.starts_with(b"/private/")
        || resource.ends_with(b"/secret")
        || resource.strip_prefix(b"/user/").and_then(|rest| rest.strip_suffix(b"/keys")).is_some_and(inner)
        || (resource.starts_with(b"/shop/") && resource.len() >= 11 && resource.ends_with(b"/till"))
}

fn policies() -> WorkloadPolicies {
    let deny = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "deny", "namespace": "shop"},
        "spec": {"action": "DENY", "rules": [{"to": [{"operation": {"paths": [
            "/admin", "/private/*", "*/secret", "/user/{*}/keys", "/shop/{**}/till",
        ]}}]}]},
    });
    compile(&[deny])
}

fn compile(objects: &[serde_json::Value]) -> WorkloadPolicies {
    let objects: Vec<_> = objects.iter().map(|object| PolicyObject::parse(object).unwrap()).collect();
    let workload = Workload { namespace: "shop".to_owned(), ..Workload::default() };
    let compiled = WorkloadPolicies::compile(&MeshConfig::default(), &objects, &workload);
    assert_eq!(compiled.faults().count(), 0);
    compiled
}

fn passes(policies: &WorkloadPolicies, readings: &Readings<'_>) -> bool {
    let address = "10.0.0.1".parse().unwrap();
    let request = Request {
        connection: Connection::new(None, address, "10.0.0.2:80".parse().unwrap()),
        method: "GET",
        paths: readings,
        host: None,
        headers: &[],
        token: None,
    };
    policies.request(&request, &no_providers).is_allowed()
}

/// Targets that mean a denied path to somebody: its letters, dressed up.
fn attack() -> impl Strategy<Value = String> {
    let words = ["admin", "admin", "private", "secret", "user", "keys", "shop", "till", "x", "public"];
    let word =
        (prop::sample::select(words.to_vec()), any::<u64>()).prop_map(|(word, seed)| dress(word, seed));
    let separator = prop::sample::select(vec![
        "/",
        "/",
        "/",
        "//",
        "\\",
        "%2f",
        "%2F",
        "%5c",
        "%5C",
        "%252f",
        "/./",
        "/%2e/",
        "/..%2f",
        "/../",
        "/%2e%2e/",
        "/.%2E/",
        "%2f..%2f",
        "%5C..%2F",
        "/%2F../",
        "%2F/",
        "%2%46",
        "%%32F",
        "/..;/",
        ";p=1/",
        "/%00",
        "%c0%af",
        "/%2%65%2%65/",
        "/%252e%252e/",
        "/ü/",
    ]);
    let end =
        prop::sample::select(vec!["", "", "", "/", "?a=/../b", "#x", ";a", "%00", "/.", "/..", "%2f", "%20"]);
    (prop::collection::vec((separator, word), 1..6), end).prop_map(|(parts, end)| {
        let path: String = parts.iter().map(|(separator, word)| format!("{separator}{word}")).collect();
        let lead = if path.starts_with(['/', '\\']) { "" } else { "/" };
        format!("{lead}{path}{end}")
    })
}

/// Some letters as escapes, escapes of escapes, or in upper case.
fn dress(word: &str, seed: u64) -> String {
    let letters = word.bytes().enumerate();
    letters.fold(String::new(), |so_far, (index, byte)| {
        so_far
            + &match (seed >> (index * 4)) & 15 {
                0 => format!("%{byte:02x}"),
                1 => format!("%{byte:02X}"),
                2 if seed >> 60 == 0 => format!("%25{byte:02x}"),
                3 if seed >> 60 == 1 => char::from(byte.to_ascii_uppercase()).to_string(),
                _ => char::from(byte).to_string(),
            }
    })
}

#[test]
fn no_back_end_resolves_what_passes_into_a_denied_path() {
    let policies = policies();
    let (passed, refused, bad) = (Cell::new(0), Cell::new(0), Cell::new(0));
    let beyond_named = Cell::new(0);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 100_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&attack(), |target| {
        let Ok(readings) = normalize(PathNormalization::Safe, &target) else {
            bad.set(bad.get() + 1);
            return Ok(());
        };
        if !passes(&policies, &readings) {
            refused.set(refused.get() + 1);
            let named = readings.named().any(|reading| is_denied(reading.as_bytes()));
            let reached = back_ends().iter().any(|back_end| is_denied(&back_end.resolve(readings.forward())));
            beyond_named.set(beyond_named.get() + usize::from(reached && !named));
            return Ok(());
        }
        passed.set(passed.get() + 1);
        for back_end in back_ends() {
            let resource = back_end.resolve(readings.forward());
            let shown = String::from_utf8_lossy(&resource);
            prop_assert!(!is_denied(&resource), "{:?} reads {} as {}", back_end, readings.forward(), shown);
        }
        Ok(())
    });
    outcome.unwrap();
    let counts = (passed.get(), refused.get(), bad.get());
    let frequent = counts.0 > 5_000 && counts.1 > 5_000 && counts.2 > 500;
    assert!(frequent, "passed, refused, 400: {counts:?}");
    assert!(beyond_named.get() > 10, "seen only by the readings beyond the named: {beyond_named:?}");
}

#[test]
fn the_same_attacks_succeed_where_a_weaker_mode_was_chosen() {
    let policies = policies();
    let cases = [
        (PathNormalization::None, "/x/../admin", BackEnd::Merging),
        (PathNormalization::Base, "//admin", BackEnd::Merging),
        (
            PathNormalization::MergeSlashes,
            "/x/..%2fadmin",
            BackEnd::Decoding { backslash: Backslash::Slash, slashes: Slashes::Kept },
        ),
    ];
    for (mode, target, back_end) in cases {
        let weak = normalize(mode, target).unwrap();
        assert!(passes(&policies, &weak), "{mode:?} does not see through {target}");
        assert!(is_denied(&back_end.resolve(weak.forward())), "{target} reaches the resource");
        assert!(!passes(&policies, &normalize(PathNormalization::Safe, target).unwrap()), "{target}");
    }
}

#[test]
fn an_allowed_prefix_can_not_be_left() {
    let allow = json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "allow", "namespace": "shop"},
        "spec": {"rules": [{"to": [{"operation": {"paths": ["/public/*"]}}]}]},
    });
    let policies = compile(&[allow]);
    let cases = [
        ("/public/x", true),
        ("/public/x%20y", true),
        ("/public/a%2Fb", true),
        ("/public//x", true),
        ("/public/..%2Fadmin", false),
        ("/public/%2e%2e/admin", false),
        ("/public%2f..%2fadmin", false),
        ("/public/..\\admin", false),
        ("/public/%2F../../admin", false),
        ("/x%5C..%2Fpublic/y", false),
    ];
    for (target, expected) in cases {
        let readings = normalize(PathNormalization::Safe, target).unwrap();
        assert_eq!(passes(&policies, &readings), expected, "{target}");
    }
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 50_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    let outcome = runner.run(&attack(), |target| {
        let target = format!("/public{target}");
        if let Ok(readings) = normalize(PathNormalization::Safe, &target)
            && passes(&policies, &readings)
        {
            for back_end in back_ends() {
                let resource = back_end.resolve(readings.forward());
                let shown = String::from_utf8_lossy(&resource);
                let inside = resource.starts_with(b"/public/");
                prop_assert!(inside, "{:?} reads {} as {}", back_end, readings.forward(), shown);
            }
        }
        Ok(())
    });
    outcome.unwrap();
}
