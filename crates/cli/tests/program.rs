//! The program as scripts call it: its exit status, and what stands on which stream. None of it needs a cluster.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::io::Write;
use std::process::{Command, Output, Stdio};

/// Runs `kubectl cinch` with `arguments` and `input`.
fn cinch(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_kubectl-cinch"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that ends before it has read everything is for the test to judge.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// What an ended program said: its status, standard output and standard error.
fn said(output: Output) -> (Option<i32>, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

const CASE: &str = r#"{"id": 1, "op": "authorize", "policies": [],
    "workload": {"namespace": "orders", "labels": {}, "serviceAccount": "api"},
    "request": {"protocol": "tcp", "peer": null, "source": {"ip": "10.1.0.1", "port": 40000}, "remoteIp": null,
        "destination": {"ip": "10.1.0.2", "port": 8080}, "sni": null}}"#;

#[test]
fn eval_ends_with_0_also_after_lines_that_it_could_not_understand() {
    let lines = ["this is no JSON", r#"{"id": 7, "op": "guess"}"#, &CASE.replace('\n', "")].join("\n");
    let (status, out, err) = said(cinch(&["policy", "eval"], &lines));
    let answers: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let errors: Vec<bool> = answers.iter().map(|answer| answer.get("error").is_some()).collect();
    assert_eq!(errors, [true, true, false], "{out}");
    assert_eq!((&answers[1]["id"], &answers[2]["decision"]), (&7.into(), &"allow".into()));
    assert_eq!((status, &err[..]), (Some(0), ""));
}

#[test]
fn inject_ends_with_3_after_a_refusal_whose_reason_stands_on_standard_error_alone() {
    let pod = |name: &str, account: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\n\
             spec: {{serviceAccountName: {account}, containers: [{{name: app, image: app}}]}}\n---\n"
        )
    };
    let arguments =
        ["inject", "-f", "-", "--namespace", "orders", "--namespace-labels", "cinch.dev/mesh=enabled"];
    let (status, out, err) = said(cinch(&arguments, &pod("good", "api")));
    assert_eq!(status, Some(0), "{err}");
    assert!(out.contains("name: cinch-proxy"), "{out}");
    let reserved = pod("bad", "api").replace("name: app,", "name: cinch-proxy,");
    let (status, out, err) = said(cinch(&arguments, &(pod("good", "api") + &reserved)));
    assert_eq!((status, &out[..]), (Some(3), ""), "{err}");
    let refusals: Vec<&str> = err.lines().filter(|line| line.starts_with("refused: ")).collect();
    assert_eq!(refusals.len(), 1, "{err}");
    assert!(refusals[0].starts_with("refused: Pod/bad: ReservedName: "), "{err}");
}

#[test]
fn inject_ends_with_1_where_there_is_nothing_to_read() {
    let (status, out, err) = said(cinch(&["inject", "-f", "/nowhere/pods.yaml"], ""));
    assert_eq!((status, &out[..]), (Some(1), ""));
    assert!(err.starts_with("error: ") && err.contains("/nowhere/pods.yaml"), "{err}");
}

#[test]
fn test_ends_with_0_when_all_cases_hold_and_with_1_when_one_does_not_or_is_broken() {
    let folder = tempfile::tempdir().unwrap();
    let cases = |expected: &str| {
        format!(
            "given: {{workload: {{namespace: orders, labels: {{}}, serviceAccount: api}}}}\ncases:\n\
             - {{name: anybody may, request: {{protocol: tcp, source: 10.0.0.9, destination: \"10.0.0.1:80\"}}, \
             expect: {expected}}}\n"
        )
    };
    for (what, text, expected, sums) in [
        ("holds", cases("allow"), 0, "1 passed, 0 failed\n"),
        ("differs", cases("deny"), 1, "0 passed, 1 failed\n"),
        ("is no file of cases", "cases: 7\n".to_owned(), 1, "0 passed, 1 failed\n"),
    ] {
        let file = folder.path().join("cases.yaml");
        std::fs::write(&file, text).unwrap();
        let (status, out, _) = said(cinch(&["policy", "test", file.to_str().unwrap()], ""));
        assert_eq!(status, Some(expected), "{what}: {out}");
        assert!(out.ends_with(sums), "{what}: {out}");
    }
}
