//! Files of cases, from the file to what is printed.

use super::*;

const POLICIES: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: checkout, namespace: orders}
spec:
  selector: {matchLabels: {app: api}}
  rules:
  - from: [{source: {principals: [cluster.local/ns/checkout/sa/checkout]}}]
    to: [{operation: {methods: [POST], paths: [/orders]}}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: api}
";

const CASES: &str = "
policies: [policies.yaml]
given:
  workload: {namespace: orders, labels: {app: api}, serviceAccount: api}
cases:
- name: checkout may order
  request: {peer: cluster.local/ns/checkout/sa/checkout, method: POST, path: /orders, port: 8080, headers: {x-a: b}}
  expect: allow
- name: nobody else may <&>
  request: {method: POST, path: /orders}
  expect: {decision: deny, status: 403, reason: NoAllowMatched, policy: null}
- name: only tunnels
  given:
    policies:
    - {apiVersion: security.istio.io/v1, kind: PeerAuthentication, metadata: {name: a, namespace: orders}, spec: {mtls: {mode: STRICT}}}
  ports: [8080]
  expect: {mode: STRICT, ports: {\"8080\": STRICT}}
- name: tcp
  request: {protocol: tcp, source: 10.0.0.9, destination: \"10.0.0.1:5432\"}
  expect: deny
";

fn tested(cases: &str) -> Tested {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("policies.yaml"), POLICIES).unwrap();
    let file = folder.path().join("cases.yaml");
    std::fs::write(&file, cases).unwrap();
    let mut tested = test(&file);
    tested.file = "cases.yaml".to_owned();
    tested
}

fn lines(tested: &Tested) -> String {
    said(std::slice::from_ref(tested))
}

#[test]
fn cases_that_hold_pass() {
    let text = lines(&tested(CASES));
    assert!(text.ends_with("4 passed, 0 failed\n"), "{text}");
    assert!(text.contains("  ✓ checkout may order\n"), "{text}");
}

#[test]
fn a_case_that_does_not_hold_says_what_was_wanted_what_came_and_why() {
    let wrong = CASES.replace("  expect: allow", "  expect: {decision: deny, status: 403}");
    let result = tested(&wrong);
    let text = lines(&result);
    for want in [
        "  ✗ checkout may order\n      decision  want deny, got allow\n      status    want 403, got 200\n",
        "asked: POST /orders to port 8080 by spiffe://cluster.local/ns/checkout/sa/checkout",
        "got: allow (Allowed) by orders/checkout, rule 0",
        "3 passed, 1 failed",
    ] {
        assert!(text.contains(want), "{want}\n{text}");
    }
    let xml = junit::document(&[result]);
    assert!(xml.contains("<testsuite name=\"cases.yaml\" tests=\"4\" failures=\"1\" errors=\"0\""), "{xml}");
    assert!(
        xml.contains("<failure type=\"Difference\" message=\"decision  want deny, got allow\">"),
        "{xml}"
    );
    assert!(xml.contains("name=\"nobody else may &lt;&amp;&gt;\""), "{xml}");
}

#[test]
fn what_can_not_be_understood_is_broken_and_named() {
    let cases: &[(&str, &str, &str)] = &[
        ("no cases", "policies: []\ncases: []", "there are no cases"),
        ("not YAML", "cases: [", ""),
        ("a missing file", "policies: [none.yaml]\ncases: [{name: a, expect: allow}]", "none.yaml"),
        ("an unknown field of given", "given: {polices: []}\ncases: [{name: a, expect: allow}]", "polices"),
        ("neither request nor ports", "cases: [{name: a, expect: allow}]", "either a request or ports"),
        (
            "an unknown field of a request",
            "cases: [{name: a, request: {metod: GET}, expect: allow}]",
            "metod",
        ),
        ("a bad address", "cases: [{name: a, request: {source: here}, expect: allow}]", "here"),
        ("nothing expected", "cases: [{name: a, request: {}, expect: {}}]", "expect is"),
        ("an unknown field of a case", "cases: [{name: a, request: {}, expects: allow}]", "expects"),
    ];
    for (case, text, want) in cases {
        let result = tested(text);
        let Verdict::Broken(error) = &result.results[0].verdict else { panic!("{case}: {result:?}") };
        assert!(error.contains(want), "{case}: {error}");
        assert!(junit::document(&[result]).contains("errors=\"1\""), "{case}");
    }
}

#[test]
fn policies_may_stand_in_the_file_of_the_cases() {
    let text = format!("{POLICIES}---\n{}", CASES.replace("policies: [policies.yaml]", ""));
    assert!(lines(&tested(&text)).ends_with("4 passed, 0 failed\n"));
}
