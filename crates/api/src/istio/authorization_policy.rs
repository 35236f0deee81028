//! `AuthorizationPolicy`.

use super::Kind;
use super::schema::{
    ONE_TARGET, at_most, bounded, described, list, open, required, ruled, selector, target, targets, text,
    texts, words,
};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;

/// Istio's bound of `rules` and of `from`.
const MOST_RULES: i64 = 512;
/// Istio's bound of `serviceAccounts`.
const MOST_ACCOUNTS: i64 = 16;
/// A namespace, a slash and an account's name.
const LONGEST_ACCOUNT: i64 = 320;

const NEEDS_RULES: (&str, &str) = (
    "!(has(self.action) && self.action in ['DENY', 'CUSTOM']) || (has(self.rules) && self.rules.size() > 0)",
    "a policy with action DENY or CUSTOM needs rules: without one it never matches (`rules: [{}]` matches all)",
);

const PROVIDER: (&str, &str) = (
    "(has(self.action) && self.action == 'CUSTOM') == (has(self.provider) && has(self.provider.name))",
    "a policy with action CUSTOM needs provider.name, and no other has a provider",
);

pub(super) fn kind() -> Kind {
    Kind {
        kind: "AuthorizationPolicy",
        plural: "authorizationpolicies",
        short: "ap",
        columns: &[("Action", ".spec.action")],
        description: "Who may do what with the workloads that it selects.",
        spec: spec(),
    }
}

fn spec() -> JSONSchemaProps {
    let action = words(
        &["ALLOW", "DENY", "AUDIT", "CUSTOM"],
        "What happens when a rule matches; left out: ALLOW. Where there is an ALLOW policy, what none of them matches is denied.",
    );
    let provider = open([("name", text("Name of the provider."))]);
    let schema = open([
        ("selector", selector()),
        ("targetRef", target()),
        ("targetRefs", targets()),
        ("action", action),
        ("provider", described(provider, "Whom a CUSTOM policy asks.")),
        (
            "rules",
            at_most(MOST_RULES, list(rule(), "The policy matches when one of them does; left out: never.")),
        ),
    ]);
    ruled(schema, &[ONE_TARGET, NEEDS_RULES, PROVIDER])
}

fn rule() -> JSONSchemaProps {
    let from = described(open([("source", source())]), "A source.");
    let to = described(open([("operation", operation())]), "An operation.");
    let schema = open([
        ("from", at_most(MOST_RULES, list(from, "Where it comes from; one of them matches."))),
        ("to", list(to, "What is asked for; one of them matches.")),
        ("when", list(condition(), "Further conditions; all of them hold.")),
    ]);
    described(schema, "Matches when `from`, `to` and `when` do; what is left out always does.")
}

fn source() -> JSONSchemaProps {
    let account = bounded(LONGEST_ACCOUNT, "`namespace/account`, or an account in the policy's namespace.");
    let accounts = |words: &str| at_most(MOST_ACCOUNTS, list(account.clone(), words));
    let schema = open([
        ("principals", texts("SPIFFE IDs of the peer, without `spiffe://`.")),
        ("notPrincipals", texts("None of these.")),
        ("requestPrincipals", texts("`issuer/subject` of the verified token.")),
        ("notRequestPrincipals", texts("None of these.")),
        ("namespaces", texts("Namespaces of the peer.")),
        ("notNamespaces", texts("None of these.")),
        ("serviceAccounts", accounts("Service accounts of the peer.")),
        ("notServiceAccounts", accounts("None of these.")),
        ("trustDomains", texts("Trust domains of the peer.")),
        ("notTrustDomains", texts("None of these.")),
        ("ipBlocks", texts("Addresses or CIDRs of the connection.")),
        ("notIpBlocks", texts("None of these.")),
        ("remoteIpBlocks", texts("Addresses or CIDRs of the client.")),
        ("notRemoteIpBlocks", texts("None of these.")),
    ]);
    described(schema, "All fields that are set match.")
}

fn operation() -> JSONSchemaProps {
    let schema = open([
        ("hosts", texts("Hosts, as the client sends them.")),
        ("notHosts", texts("None of these.")),
        ("ports", texts("Ports of the workload.")),
        ("notPorts", texts("None of these.")),
        ("methods", texts("HTTP methods.")),
        ("notMethods", texts("None of these.")),
        ("paths", texts("Paths, without query.")),
        ("notPaths", texts("None of these.")),
    ]);
    described(schema, "All fields that are set match.")
}

fn condition() -> JSONSchemaProps {
    let schema = open([
        ("key", text("What is compared, such as `request.headers[x-team]`.")),
        ("values", texts("One of these.")),
        ("notValues", texts("None of these.")),
    ]);
    described(required(schema, &["key"]), "A condition.")
}
