//! Requests of one connection that passed, so that the same ones need not be judged again: in go a request and that it
//! passed, out comes that another one is the same to its policy.
//!
//! A judgement is remembered only where nothing else than connection, method, path, query and host can have a say in it:
//! no token, whose time runs out, no condition on headers, nothing to report of each request, nothing to change of it.
//! It is forgotten with its policy. Refusals are never remembered, nor what applies to long or many paths.

use super::requests::Pass;
use crate::inbound_policy::InboundPolicy;
use cinch_http::RequestHead;

/// Methods and paths that are remembered at once: a client of gRPC mostly calls few.
const KEPT: usize = 4;
/// Bytes of method, target and host together.
const BYTES: usize = 256;

/// The requests that passed by one policy on one connection.
#[derive(Debug)]
pub(super) struct Passes {
    /// The policy is one whose judgements may be remembered.
    may_keep: bool,
    kept: Vec<Passed>,
    /// Which of them goes next.
    next: usize,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Passed {
    /// Method, target and host.
    text: Vec<u8>,
    method: usize,
    target: usize,
    cost: usize,
    pass: Pass,
}

impl Passed {
    /// What the judgement cost.
    pub(super) fn cost(&self) -> usize {
        self.cost
    }

    /// By which policy it passed.
    pub(super) fn pass(&self) -> Pass {
        self.pass.clone()
    }

    fn is(&self, method: &str, target: &str, host: &str) -> bool {
        let Some((of_method, rest)) = self.text.split_at_checked(self.method) else { return false };
        let Some((of_target, of_host)) = rest.split_at_checked(self.target) else { return false };
        of_target == target.as_bytes() && of_host == host.as_bytes() && of_method == method.as_bytes()
    }
}

impl Passes {
    /// None yet by `policy`.
    pub(super) fn by(policy: &InboundPolicy) -> Passes {
        let is_plain = policy.policies.as_ref().is_some_and(|all| !all.asks_headers() && !all.reports());
        Passes { may_keep: is_plain && policy.tokens.is_none(), kept: Vec::new(), next: 0 }
    }

    /// The one that is as `head`, to the letter.
    pub(super) fn find(&self, head: &RequestHead<'_>) -> Option<&Passed> {
        let host = head.authority?;
        self.kept.iter().find(|passed| passed.is(head.method, head.target, host))
    }

    /// Remembers that `head` passes unchanged, which cost `cost` to find out.
    pub(super) fn keep(&mut self, head: &RequestHead<'_>, cost: usize, pass: impl FnOnce() -> Pass) {
        let Some(host) = head.authority.filter(|_| self.may_keep) else { return };
        if head.method.len() + head.target.len() + host.len() > BYTES {
            return;
        }
        let oldest = self.kept.get_mut(self.next);
        let mut text = oldest.map(|oldest| std::mem::take(&mut oldest.text)).unwrap_or_default();
        text.clear();
        for part in [head.method, head.target, host] {
            text.extend_from_slice(part.as_bytes());
        }
        let (method, target) = (head.method.len(), head.target.len());
        let passed = Passed { text, method, target, cost, pass: pass() };
        match self.kept.get_mut(self.next) {
            Some(oldest) => *oldest = passed,
            None => {
                if self.kept.capacity() == 0 {
                    // Many clients ask for one path again and again.
                    self.kept.reserve_exact(1);
                }
                self.kept.push(passed);
            }
        }
        self.next = (self.next + 1) % KEPT;
    }

    /// Bytes that are held.
    pub(super) fn held(&self) -> usize {
        self.kept.iter().map(|passed| passed.text.capacity()).sum()
    }

    /// Forgets all of them.
    pub(super) fn forget(&mut self) {
        (self.kept, self.next) = (Vec::new(), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http_filter::Tokens;
    use cinch_http::Version;
    use cinch_policy::{
        AuthorizationPolicy, Enforcement, MeshConfig, Mode, ObjectName, PolicyObject, PortModes, Workload,
        WorkloadPolicies,
    };
    use cinch_reason::Reason;
    use serde_json::{Value, json};
    use std::sync::Arc;

    /// A policy with one rule, under which all may GET, and perhaps another.
    fn policy(action: &str, rule: &Value) -> InboundPolicy {
        let object = |action: &str, rule: &Value| {
            let spec = json!({"action": action, "rules": [rule]});
            let name = ObjectName { namespace: "shop".into(), name: action.to_lowercase() };
            PolicyObject::AuthorizationPolicy(AuthorizationPolicy::new(name, Enforcement::Enforced, &spec))
        };
        let allow = object("ALLOW", &json!({"to": [{"operation": {"methods": ["GET"]}}]}));
        let workload = Workload { namespace: "shop".into(), ..Workload::default() };
        let all = [allow, object(action, rule)];
        let policies = WorkloadPolicies::compile(&MeshConfig::default(), &all, &workload);
        let modes = PortModes::uniform(Mode::Strict, []);
        InboundPolicy { policies: Some(Arc::new(policies)), ..InboundPolicy::of_modes(1, modes) }
    }

    fn plain() -> InboundPolicy {
        policy("DENY", &json!({"to": [{"operation": {"paths": ["/admin*"]}}]}))
    }

    fn head<'a>(method: &'a str, target: &'a str, authority: Option<&'a str>) -> RequestHead<'a> {
        RequestHead { version: Version::Http2, method, target, authority, headers: &[], upgrade: false }
    }

    fn pass() -> Pass {
        Pass { reason: Reason::Allowed, policy: Some("shop/allow".into()), rule: Some(0) }
    }

    #[test]
    fn only_what_is_the_same_to_the_letter_is_found() {
        let mut passes = Passes::by(&plain());
        passes.keep(&head("GET", "/a?b", Some("shop")), 7, pass);
        let found = passes.find(&head("GET", "/a?b", Some("shop"))).unwrap();
        assert_eq!((found.cost(), found.pass().rule), (7, Some(0)));
        for other in [
            head("GE", "T/a?b", Some("shop")),
            head("GET", "/a?bs", Some("hop")),
            head("PUT", "/a?b", Some("shop")),
            head("GET", "/A?b", Some("shop")),
            head("GET", "/a", Some("shop")),
            head("GET", "/a?b", Some("Shop")),
            head("GET", "/a?b", Some("")),
            head("GET", "/a?b", None),
        ] {
            assert!(passes.find(&other).is_none(), "{other:?}");
        }
        passes.forget();
        assert!(passes.find(&head("GET", "/a?b", Some("shop"))).is_none());
    }

    #[test]
    fn few_and_short_ones_are_remembered() {
        let mut passes = Passes::by(&plain());
        let targets: Vec<String> = (0..100).map(|number| format!("/{number}")).collect();
        for target in &targets {
            passes.keep(&head("GET", target, Some("shop")), 1, pass);
        }
        let found = targets.iter().filter(|target| passes.find(&head("GET", target, Some("shop"))).is_some());
        assert_eq!(found.collect::<Vec<_>>(), ["/96", "/97", "/98", "/99"]);
        let long = "/".repeat(BYTES);
        passes.keep(&head("GET", &long, Some("")), 1, pass);
        passes.keep(&head("GET", "/none", None), 1, pass);
        assert!(passes.find(&head("GET", &long, Some(""))).is_none());
        assert!((1..=KEPT * BYTES).contains(&passes.held()) && passes.kept.len() == KEPT);
    }

    #[test]
    fn where_more_than_method_path_and_host_has_a_say_nothing_is_remembered() {
        let header = json!({"when": [{"key": "request.headers[x-role]", "values": ["admin"]}]});
        let audited = json!({"to": [{"operation": {"methods": ["GET"]}}]});
        let with_tokens = InboundPolicy { tokens: Some(Arc::new(Tokens::default())), ..plain() };
        let without = InboundPolicy { policies: None, ..plain() };
        for (case, policy) in [
            ("a condition on a header", policy("DENY", &header)),
            ("each request is reported", policy("AUDIT", &audited)),
            ("tokens", with_tokens),
            ("no policy, and nothing to save", without),
        ] {
            let mut passes = Passes::by(&policy);
            passes.keep(&head("GET", "/", Some("shop")), 1, pass);
            assert!(passes.find(&head("GET", "/", Some("shop"))).is_none(), "{case}");
        }
    }
}
