//! `authorize`: one request or connection against all policies of its workload, in the order that the proxy keeps:
//! path, CUSTOM, tokens, AUDIT, DENY, ALLOW.

use super::case::{Protocol, RequestCase};
use super::operation::{Case, policies};
use super::tokens::{self, Tokens};
use cinch_policy::{Decision, DryRun, Header, Report, Request, Token, WorkloadPolicies, normalize};
use cinch_reason::Reason;
use serde_json::{Value, json};

/// Answers the case.
///
/// # Errors
/// When there is no request, or it or a policy can't be understood.
pub fn authorize(case: &Case) -> Result<Value, String> {
    let request = case.request.as_ref().ok_or("request is missing")?;
    request.check()?;
    let objects = policies(case)?;
    let compiled = WorkloadPolicies::compile(&case.mesh, &objects, &case.workload);
    match request.protocol {
        Protocol::Tcp => Ok(tcp(case, &compiled, request)),
        Protocol::Http => {
            let tokens = Tokens::of(case, &objects);
            Ok(http(case, &compiled, &tokens, request))
        }
    }
}

fn tcp(case: &Case, policies: &WorkloadPolicies, request: &RequestCase) -> Value {
    let connection = request.connection();
    let providers = |name: &str| case.providers.ask(name);
    let decision = policies.tcp(&connection, &providers);
    let reached = reaches_policies(&decision);
    let report = reached.then(|| policies.report_tcp(&connection, &providers));
    decided(&decision, Status::None, None, report.as_ref())
}

fn http(case: &Case, policies: &WorkloadPolicies, tokens: &Tokens<'_>, request: &RequestCase) -> Value {
    let target = request.path.as_deref().unwrap_or("/");
    let readings = match normalize(case.mesh.path_normalization, target) {
        Ok(readings) => readings,
        Err(bad) => return refused(400, bad.reason()),
    };
    let headers: Vec<Header<'_>> =
        request.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    let asked = Request {
        connection: request.connection(),
        method: request.method.as_deref().unwrap_or("GET"),
        paths: &readings,
        host: request.host.as_deref(),
        headers: &headers,
        token: None,
    };
    let providers = |name: &str| case.providers.ask(name);
    if let Some(decision) = policies.custom(&asked, &providers) {
        return decided(&decision, Status::Http, None, None);
    }
    let checked = match tokens.check(request, &readings, case.now) {
        Ok(checked) => checked,
        Err(tokens::Refusal { status, reason }) => return refused(status, reason),
    };
    let token =
        checked.claims.as_ref().map(|claims| Token { claims, space_delimited: &checked.space_delimited });
    let headers: Vec<Header<'_>> =
        checked.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
    let asked = Request { token, headers: &headers, ..asked };
    let decision = policies.authorize(&asked);
    let report = policies.report(&asked, &providers);
    let principal = token.and_then(|token| token.principal());
    let principal = principal.map(|(issuer, subject)| format!("{issuer}/{subject}"));
    let mut answer = decided(&decision, Status::Http, principal, Some(&report));
    if let (true, Some(answer)) = (decision.is_allowed(), answer.as_object_mut()) {
        let forward = json!({"path": checked.target, "headers": checked.headers});
        answer.insert("forward".to_owned(), forward);
    }
    answer
}

/// Whether the decision came from DENY and ALLOW: what was refused before them meets neither AUDIT nor dry runs.
fn reaches_policies(decision: &Decision<'_>) -> bool {
    !matches!(decision.reason, Reason::PolicyInvalid | Reason::DeniedByProvider)
}

/// Whether there is a status to answer with.
#[derive(Clone, Copy)]
enum Status {
    None,
    Http,
}

fn decided(
    decision: &Decision<'_>,
    status: Status,
    principal: Option<String>,
    report: Option<&Report<'_>>,
) -> Value {
    let allowed = decision.is_allowed();
    let status = match (status, allowed) {
        (Status::None, _) => Value::Null,
        (Status::Http, true) => json!(200),
        (Status::Http, false) => json!(403),
    };
    let dry_runs = report.map(|report| report.dry_run.as_slice()).unwrap_or_default();
    let dry_run =
        |dry: &DryRun<'_>| json!({"policy": &**dry.policy, "action": dry.action, "matched": dry.matched});
    let audit = report.map(|report| report.audit.as_slice()).unwrap_or_default();
    json!({
        "decision": if allowed { "allow" } else { "deny" },
        "status": status,
        "policy": decision.policy.map(|policy| &**policy),
        "rule": decision.rule,
        "reason": decision.reason,
        "principal": principal,
        "dryRun": dry_runs.iter().map(dry_run).collect::<Vec<_>>(),
        "audit": audit.iter().map(|policy| &***policy).collect::<Vec<_>>(),
    })
}

/// A refusal that no policy is the reason of.
fn refused(status: u16, reason: Reason) -> Value {
    json!({"decision": "deny", "status": status, "policy": null, "rule": null, "reason": reason,
        "principal": null, "dryRun": [], "audit": []})
}
