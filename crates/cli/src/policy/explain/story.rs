//! What holds for a workload, as text.

use super::find::Found;
use super::{standing, words};
use cinch_policy::{
    Action, AuthorizationPolicy, Enforcement, JwtRule, MeshConfig, Mode, ObjectName, PeerAuthentication,
    PolicyObject, PortModes, RequestAuthentication, Workload, WorkloadPolicies,
};
use std::fmt::Write as _;

/// Everything that is told, already sorted out.
struct Story<'a> {
    /// What the ports accept, the lock considered where it is known.
    modes: PortModes,
    locked: Option<bool>,
    authentications: Vec<&'a PeerAuthentication>,
    tokens: Vec<&'a RequestAuthentication>,
    policies: Vec<&'a AuthorizationPolicy>,
}

/// Tells what holds for the workload that was found.
pub fn told(found: &Found) -> String {
    let mut unreadable = Vec::new();
    let mut objects = Vec::new();
    for object in &found.policies {
        match PolicyObject::parse(object) {
            Ok(object) => objects.push(object),
            Err(error) => unreadable.push(error.to_string()),
        }
    }
    let story = Story::of(found, &objects);
    let mut text = String::new();
    let labels: Vec<String> =
        found.workload.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let labels = if labels.is_empty() { "no labels".to_owned() } else { labels.join(", ") };
    // Writing to a String can not fail.
    let _ = writeln!(text, "{} ({labels})", found.called);
    for part in [story.modes(), story.checks(), story.rules()] {
        text.push('\n');
        text.push_str(&part);
    }
    text.push_str(&standing::told(&found.policies, &story.names()));
    for note in &found.notes {
        let _ = writeln!(text, "\n! {note}");
    }
    for error in unreadable {
        let _ = writeln!(text, "\n! not looked at: {error}");
    }
    let _ = writeln!(text, "\nAll in all: {}", story.sum());
    text
}

impl<'a> Story<'a> {
    fn of(found: &Found, objects: &'a [PolicyObject]) -> Self {
        let Found { mesh, workload, locked, .. } = found;
        let composed = WorkloadPolicies::compile(mesh, objects, workload).mtls().clone();
        let mut story = Story {
            modes: if *locked == Some(true) { composed.at_least(Mode::Strict) } else { composed },
            locked: *locked,
            authentications: Vec::new(),
            tokens: Vec::new(),
            policies: Vec::new(),
        };
        for object in objects {
            match object {
                PolicyObject::PeerAuthentication(one) if selects(one, mesh, workload) => {
                    story.authentications.push(one);
                }
                PolicyObject::RequestAuthentication(one) if one.applies_to(mesh, workload) => {
                    story.tokens.push(one);
                }
                PolicyObject::AuthorizationPolicy(one) if one.applies_to(mesh, workload) => {
                    story.policies.push(one);
                }
                _ => {}
            }
        }
        story.policies.sort_by_key(|policy| policy.name().clone());
        story
    }

    fn modes(&self) -> String {
        let modes = &self.modes;
        let mut text = format!("Mutual TLS: {}\n", mode(modes.default_mode()));
        for (port, of_port) in modes.exceptions() {
            let _ = writeln!(text, "  port {port}: {}", mode(of_port));
        }
        for one in &self.authentications {
            let fault = one.fault().map(|fault| format!("; it can't be used, which is STRICT: {fault}"));
            let _ = writeln!(text, "  from PeerAuthentication {}{}", one.name(), fault.unwrap_or_default());
        }
        if self.authentications.is_empty() {
            text.push_str("  no PeerAuthentication says anything\n");
        }
        text.push_str(match self.locked {
            Some(true) => "  the namespace is locked: STRICT whatever is said here\n",
            Some(false) => "",
            None => "  (a locked namespace is STRICT whatever is said here)\n",
        });
        text
    }

    /// Kind and name of everything that selects the workload.
    fn names(&self) -> Vec<(&'static str, &ObjectName)> {
        let modes = self.authentications.iter().map(|one| ("PeerAuthentication", one.name()));
        let tokens = self.tokens.iter().map(|one| ("RequestAuthentication", one.name()));
        let rules = self.policies.iter().map(|one| ("AuthorizationPolicy", one.name()));
        modes.chain(tokens).chain(rules).collect()
    }

    fn checks(&self) -> String {
        if self.tokens.is_empty() {
            return "Tokens: none are checked\n".to_owned();
        }
        let mut text = "Tokens: one that comes must be valid; to come without one is allowed\n".to_owned();
        for one in &self.tokens {
            let _ = match one.spec() {
                Ok(spec) => {
                    let issuers: Vec<String> = spec.jwt_rules.iter().map(issuer).collect();
                    writeln!(text, "  {}: {}", one.name(), issuers.join("; "))
                }
                Err(fault) => writeln!(text, "  {}: can't be used: {fault}", one.name()),
            };
        }
        text
    }

    fn rules(&self) -> String {
        let sections: [(&str, Enforcement, Action); 6] = [
            ("Asked of a provider", Enforcement::Enforced, Action::Custom),
            ("Denied", Enforcement::Enforced, Action::Deny),
            ("Allowed, and nothing else", Enforcement::Enforced, Action::Allow),
            ("Noted (AUDIT)", Enforcement::Enforced, Action::Audit),
            ("Would be denied (dry run)", Enforcement::DryRun, Action::Deny),
            ("Would be allowed, and nothing else (dry run)", Enforcement::DryRun, Action::Allow),
        ];
        let mut text = String::new();
        for (title, enforcement, action) in sections {
            let lines = self.section(enforcement, action);
            if !lines.is_empty() {
                let _ = writeln!(text, "{title}:\n{lines}");
            }
        }
        for policy in &self.policies {
            if let Err(fault) = policy.spec() {
                let _ = writeln!(text, "! {} can't be used: {fault}\n", policy.name());
            }
        }
        if text.is_empty() {
            return "No AuthorizationPolicy selects it\n".to_owned();
        }
        text.truncate(text.trim_end().len());
        text + "\n"
    }

    fn section(&self, enforcement: Enforcement, action: Action) -> String {
        let mut text = String::new();
        for policy in self.policies.iter().filter(|policy| policy.enforcement() == enforcement) {
            let Some(spec) = policy.spec().ok().filter(|spec| spec.action == action) else { continue };
            let rules = spec.rules.as_deref().unwrap_or_default();
            if rules.is_empty() {
                let _ = writeln!(text, "  {}: nothing (it has no rules)", policy.name());
            }
            for (number, rule) in rules.iter().enumerate() {
                let _ = writeln!(text, "  {}, rule {number}: {}", policy.name(), words::rule(rule));
            }
        }
        text
    }

    /// The whole in one sentence.
    fn sum(&self) -> String {
        let closed =
            self.policies.iter().find(|p| p.spec().is_err() && p.enforcement() == Enforcement::Enforced);
        let broken = closed.map(|policy| policy.name());
        let broken =
            broken.or_else(|| self.tokens.iter().find(|one| one.spec().is_err()).map(|one| one.name()));
        if let Some(name) = broken {
            return format!("everything is refused until {name} is mended");
        }
        let enforced = |action: Action| {
            let specs = self.policies.iter().filter(|p| p.enforcement() == Enforcement::Enforced);
            specs.filter_map(move |p| p.spec().ok()).filter(move |spec| spec.action == action)
        };
        let has_rules = |action: Action| {
            enforced(action).any(|spec| spec.rules.as_ref().is_some_and(|rules| !rules.is_empty()))
        };
        let allows = enforced(Action::Allow).next().is_some();
        let passes = match (allows, has_rules(Action::Allow), has_rules(Action::Deny)) {
            (true, false, _) => {
                "nothing passes: an ALLOW policy without a rule that matches denies everything"
            }
            (true, true, true) => "only what an ALLOW rule matches and no DENY rule does passes",
            (true, true, false) => "only what an ALLOW rule matches passes",
            (false, _, true) => "everything passes that no DENY rule matches",
            (false, _, false) => "everything passes: no policy forbids it",
        };
        let asked = if has_rules(Action::Custom) { ", and only if the providers agree" } else { "" };
        let tunnels = match self.modes.weakest() {
            Mode::Strict => ", through mutual TLS alone",
            Mode::Permissive | Mode::Disable => "; plaintext can come in, and has no identity",
        };
        format!("{passes}{asked}{tunnels}")
    }
}

/// As the composition of modes selects: of the root namespace only what has no selector.
fn selects(object: &PeerAuthentication, mesh: &MeshConfig, workload: &Workload) -> bool {
    let namespace = &object.name().namespace;
    if *namespace == mesh.root_namespace {
        return object.selector().is_empty();
    }
    *namespace == workload.namespace && object.selector().selects(&workload.labels)
}

fn mode(mode: Mode) -> &'static str {
    match mode {
        Mode::Strict => "STRICT: tunnels only",
        Mode::Permissive => "PERMISSIVE: tunnels and plaintext",
        Mode::Disable => "DISABLE: plaintext only",
    }
}

fn issuer(rule: &JwtRule) -> String {
    let issuer = if rule.issuer.is_empty() { "any issuer" } else { rule.issuer.as_str() };
    let audiences = match rule.audiences.as_slice() {
        [] => String::new(),
        all => format!(" for {}", all.join(" or ")),
    };
    format!("tokens of {issuer}{audiences}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn policy(kind: &str, name: &str, spec: Value) -> Value {
        json!({"apiVersion": "security.istio.io/v1", "kind": kind,
            "metadata": {"name": name, "namespace": "orders"}, "spec": spec})
    }

    fn story(policies: Vec<Value>) -> String {
        told(&found(policies))
    }

    fn found(policies: Vec<Value>) -> Found {
        let workload = Workload {
            namespace: "orders".to_owned(),
            labels: [("app".to_owned(), "api".to_owned())].into(),
            service_account: "api".to_owned(),
        };
        let called = "pod orders/api".to_owned();
        Found { called, workload, policies, mesh: MeshConfig::default(), locked: None, notes: Vec::new() }
    }

    #[test]
    fn a_workload_without_policies_is_open_and_says_so() {
        let text = story(Vec::new());
        assert!(text.starts_with("pod orders/api (app=api)\n"), "{text}");
        assert!(text.contains("PERMISSIVE") && text.contains("everything passes: no policy"), "{text}");
    }

    #[test]
    fn what_selects_it_is_told_with_its_rules_and_the_sum() {
        let text = story(vec![
            policy("PeerAuthentication", "strict", json!({"mtls": {"mode": "STRICT"}})),
            policy(
                "RequestAuthentication",
                "jwt",
                json!({"jwtRules": [{"issuer": "https://a", "audiences": ["x"], "jwksUri": "https://a/k"}]}),
            ),
            policy(
                "AuthorizationPolicy",
                "web",
                json!({"rules": [{"from": [{"source": {"principals": ["td/ns/a/sa/web"]}}]}]}),
            ),
            policy(
                "AuthorizationPolicy",
                "other",
                json!({"selector": {"matchLabels": {"app": "db"}}, "rules": [{}]}),
            ),
            policy(
                "AuthorizationPolicy",
                "no-delete",
                json!({"action": "DENY", "rules": [{"to": [{"operation": {"methods": ["DELETE"]}}]}]}),
            ),
        ]);
        for want in [
            "Mutual TLS: STRICT",
            "from PeerAuthentication orders/strict",
            "orders/jwt: tokens of https://a for x",
            "Denied:\n  orders/no-delete, rule 0: when the method is DELETE",
            "Allowed, and nothing else:\n  orders/web, rule 0: when the caller is td/ns/a/sa/web",
            "All in all: only what an ALLOW rule matches and no DENY rule does passes, through mutual TLS alone",
        ] {
            assert!(text.contains(want), "{want}\n{text}");
        }
        assert!(!text.contains("orders/other"), "{text}");
    }

    #[test]
    fn a_lock_and_what_is_missing_are_told() {
        let permissive = policy("PeerAuthentication", "open", json!({"mtls": {"mode": "PERMISSIVE"}}));
        let mut found = found(vec![permissive]);
        assert!(told(&found).contains("(a locked namespace is STRICT"), "{}", told(&found));
        (found.locked, found.notes) = (Some(true), vec!["something is left out".to_owned()]);
        let text = told(&found);
        for want in [
            "Mutual TLS: STRICT",
            "the namespace is locked",
            "through mutual TLS alone",
            "! something is left out",
        ] {
            assert!(text.contains(want), "{want}\n{text}");
        }
        found.locked = Some(false);
        let text = told(&found);
        assert!(text.contains("Mutual TLS: PERMISSIVE") && !text.contains("locked"), "{text}");
    }

    #[test]
    fn what_the_operator_says_of_a_policy_is_told() {
        let mut strict = policy("PeerAuthentication", "strict", json!({"mtls": {"mode": "STRICT"}}));
        let mut other =
            policy("AuthorizationPolicy", "other", json!({"selector": {"matchLabels": {"app": "x"}}}));
        for object in [&mut strict, &mut other] {
            object["metadata"]["generation"] = json!(3);
            object["status"] = json!({"cinch": {"observedGeneration": 3, "selected": 3, "enforcing": 2,
                "reason": "EnforcementPending", "message": "EnforcementPending: not yet"}});
        }
        let text = story(vec![strict.clone(), other]);
        let want = "In the cluster:\n  PeerAuthentication orders/strict: 2 of 3 proxies enforce it: EnforcementPending: not yet\n";
        assert!(text.contains(want), "{text}");
        assert!(!text.contains("orders/other"), "{text}");
        strict["metadata"]["generation"] = json!(4);
        assert!(story(vec![strict]).contains("enforce it (of an earlier generation)"));
    }

    #[test]
    fn what_can_not_be_used_is_named_and_closes() {
        let text = story(vec![policy("AuthorizationPolicy", "typo", json!({"action": "ALOW"}))]);
        assert!(text.contains("! orders/typo can't be used: "), "{text}");
        assert!(text.contains("everything is refused until orders/typo is mended"), "{text}");
    }

    #[test]
    fn an_empty_allow_policy_closes_and_is_explained() {
        let text = story(vec![policy("AuthorizationPolicy", "deny-all", json!({}))]);
        assert!(text.contains("orders/deny-all: nothing (it has no rules)"), "{text}");
        assert!(text.contains("All in all: nothing passes"), "{text}");
    }
}
