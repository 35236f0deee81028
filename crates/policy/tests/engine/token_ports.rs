//! Which connections must be read because tokens are checked, and which a declared protocol spares that.

use super::setup::{compile, connection, decide, object};
use super::tables::tcp;
use cinch_policy::Partial;
use serde_json::{Value, json};

#[test]
fn where_tokens_are_checked_no_connection_passes_unread() {
    let authentication = json!({
        "apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication",
        "metadata": {"name": "a", "namespace": "shop"}, "spec": {"jwtRules": [{"issuer": "https://a.example"}]},
    });
    let policies = compile(&[authentication]);
    assert_eq!(policies.connection(&connection(&tcp())), Partial::NeedsHttp);
    assert!(!policies.is_empty() && decide(&policies, &tcp()).is_allowed());
}

#[test]
fn where_a_port_is_declared_to_carry_no_http_tokens_alone_ask_for_nothing() {
    let authentication = json!({
        "apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication",
        "metadata": {"name": "a", "namespace": "shop"}, "spec": {"jwtRules": [{"issuer": "https://a.example"}]},
    });
    let on = |port: u16, part: Value| {
        let mut rule = part;
        rule["to"] = json!([{"operation": {"ports": [port.to_string()]}}]);
        rule
    };
    let principal = json!({"from": [{"source": {"requestPrincipals": ["*"]}}]});
    let not_principal = json!({"from": [{"source": {"notRequestPrincipals": ["*"]}}]});
    let claim = json!({"when": [{"key": "request.auth.claims[role]", "values": ["admin"]}]});
    let l4 = json!({"from": [{"source": {"namespaces": ["shop"]}}]});
    let denies = |rules: Value| object("deny", json!({"action": "DENY", "rules": rules}));
    let allows = |rules: Value| object("allow", json!({"action": "ALLOW", "rules": rules}));
    // What stands beside the RequestAuthentication, and what becomes of a connection to port 8080 whose declaration is
    // `tcp`, and to one that has none.
    let cases: [(&str, Vec<Value>, &str, &str); 9] = [
        ("nothing", vec![], "allow", "http"),
        ("ALLOW by peer", vec![allows(json!([l4]))], "allow", "http"),
        ("ALLOW by a token", vec![allows(json!([principal]))], "http", "http"),
        ("ALLOW by a claim", vec![allows(json!([claim]))], "http", "http"),
        ("ALLOW by a token or a peer", vec![allows(json!([principal, l4]))], "allow", "http"),
        ("DENY without a token", vec![denies(json!([not_principal]))], "http", "http"),
        (
            "DENY without a token, elsewhere",
            vec![denies(json!([on(81, not_principal.clone())]))],
            "allow",
            "http",
        ),
        ("ALLOW by a token, elsewhere", vec![allows(json!([on(81, principal.clone())]))], "deny", "deny"),
        ("DENY of everything", vec![denies(json!([{}]))], "deny", "deny"),
    ];
    for (name, beside, declared, undeclared) in cases {
        let mut policies = compile(&[beside, vec![authentication.clone()]].concat());
        let said = |policies: &cinch_policy::WorkloadPolicies| match policies.connection(&connection(&tcp()))
        {
            Partial::Allow(_) => "allow",
            Partial::Deny(_) => "deny",
            Partial::NeedsHttp => "http",
        };
        assert_eq!(said(&policies), undeclared, "{name}");
        policies.declare_other([81]);
        assert_eq!(said(&policies), undeclared, "{name}: another port is declared");
        policies.declare_other([8080, 81]);
        assert_eq!(said(&policies), declared, "{name}: the port is declared");
        // What is read all the same, and carries no HTTP in the end, is judged as ever.
        assert_eq!(decide(&policies, &tcp()).is_allowed(), declared == "allow", "{name}");
    }
}
