//! A second evaluator, written from the rules in words and nothing else: it reads the objects' JSON at every
//! decision, indexes nothing and shares no code with the crate but the readings of paths, which are its input.

use cinch_policy::{MeshConfig, Workload};
use ipnet::IpNet;
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// A connection, and the request on it unless it carries something else.
#[derive(Debug, Clone)]
pub struct Case {
    pub peer: Option<String>,
    pub source: IpAddr,
    pub remote: Option<IpAddr>,
    pub destination: SocketAddr,
    pub sni: Option<String>,
    pub http: Option<HttpCase>,
}

#[derive(Debug, Clone)]
pub struct HttpCase {
    pub method: String,
    pub target: String,
    pub host: Option<String>,
    pub headers: Vec<(String, String)>,
    pub claims: Option<Value>,
}

/// The readings of a path: those that the mode names, and what back ends could make of it beyond.
#[derive(Debug, Clone, Default)]
pub struct Paths {
    pub named: Vec<String>,
    pub further: Vec<String>,
}

/// A path, and whether it is a further reading.
type Path<'a> = Option<(&'a str, bool)>;

impl Paths {
    fn named(&self) -> impl Iterator<Item = Path<'_>> {
        self.named.iter().map(|path| Some((path.as_str(), false)))
    }

    fn further(&self) -> impl Iterator<Item = Path<'_>> {
        self.further.iter().map(|path| Some((path.as_str(), true)))
    }

    fn all(&self) -> impl Iterator<Item = Path<'_>> {
        self.named().chain(self.further())
    }
}

/// Outcome, reason word, policy, rule.
pub type Verdict = (bool, &'static str, Option<String>, Option<usize>);

pub struct Naive<'a> {
    pub mesh: &'a MeshConfig,
    pub workload: &'a Workload,
    pub objects: &'a [Value],
    /// What each provider answers: allow or not.
    pub providers: &'a BTreeMap<String, bool>,
}

impl Naive<'_> {
    pub fn decide(&self, case: &Case, readings: &Paths) -> Verdict {
        self.decide_among(case, readings, &|object| !is_dry(object))
    }

    /// As if every dry run were enforced.
    pub fn would(&self, case: &Case, readings: &Paths) -> Verdict {
        self.decide_among(case, readings, &|_| true)
    }

    pub fn audit(&self, case: &Case, readings: &Paths) -> Vec<String> {
        let mut names: Vec<_> = self
            .of_action("AUDIT", &|_| true)
            .into_iter()
            .filter(|policy| readings.all().any(|path| self.first(policy, case, path).is_some()))
            .map(name)
            .collect();
        names.sort();
        names
    }

    pub fn dry_runs(&self, case: &Case, readings: &Paths) -> Vec<(String, String, bool)> {
        let mut all = Vec::new();
        for action in ["ALLOW", "DENY"] {
            for policy in self.of_action(action, &is_dry) {
                let mut each = readings.all().map(|path| self.first(policy, case, path).is_some());
                let matched = if action == "DENY" { each.any(|yes| yes) } else { each.all(|yes| yes) };
                all.push((name(policy), action.to_owned(), matched));
            }
        }
        all.sort();
        all
    }

    fn decide_among(&self, case: &Case, readings: &Paths, take: &dyn Fn(&Value) -> bool) -> Verdict {
        // Without a request there is one look at the connection.
        let (named, further): (Vec<Path<'_>>, Vec<Path<'_>>) = match case.http {
            Some(_) => (readings.named().collect(), readings.further().collect()),
            None => (vec![None], Vec::new()),
        };
        let lowest = |action: &str, paths: &[Path<'_>], refuses: &dyn Fn(&Value) -> bool| {
            let policies = self.of_action(action, take);
            let refusing = policies.into_iter().filter(|policy| refuses(policy));
            let hits = refusing.flat_map(|policy| {
                let first = |path: &Path<'_>| self.first(policy, case, *path);
                paths.iter().filter_map(first).map(move |rule| (name(policy), rule)).collect::<Vec<_>>()
            });
            hits.min()
        };
        let refusing = |action: &str, refuses: &dyn Fn(&Value) -> bool| {
            lowest(action, &named, refuses).or_else(|| lowest(action, &further, refuses))
        };
        let not_allowed = |policy: &Value| {
            let provider = policy["spec"]["provider"]["name"].as_str().unwrap();
            self.providers.get(provider) != Some(&true)
        };
        if let Some((policy, rule)) = refusing("CUSTOM", &not_allowed) {
            return (false, "DeniedByProvider", Some(policy), Some(rule));
        }
        if let Some((policy, rule)) = refusing("DENY", &|_| true) {
            return (false, "DeniedByPolicy", Some(policy), Some(rule));
        }
        let allows = self.of_action("ALLOW", take);
        if allows.is_empty() {
            return (true, "AllowedByDefault", None, None);
        }
        let allowed = |path: &Path<'_>| allows.iter().any(|policy| self.first(policy, case, *path).is_some());
        if !named.iter().chain(&further).all(allowed) {
            return (false, "NoAllowMatched", None, None);
        }
        let (policy, rule) = lowest("ALLOW", &named, &|_| true).unwrap();
        (true, "Allowed", Some(policy), Some(rule))
    }

    /// The policies of this action that apply to the workload.
    fn of_action(&self, action: &str, take: &dyn Fn(&Value) -> bool) -> Vec<&Value> {
        let applies = |object: &&Value| {
            let namespace = object["metadata"]["namespace"].as_str().unwrap();
            let spec = &object["spec"];
            let labels = spec["selector"]["matchLabels"].as_object();
            let selected = labels
                .into_iter()
                .flatten()
                .all(|(key, value)| self.workload.labels.get(key).map(String::as_str) == value.as_str());
            object["kind"] == "AuthorizationPolicy"
                && spec["action"].as_str().unwrap_or("ALLOW") == action
                && (namespace == self.workload.namespace || namespace == self.mesh.root_namespace)
                && selected
                && spec.get("targetRefs").is_none()
                && take(object)
        };
        self.objects.iter().filter(applies).collect()
    }

    /// The first rule of the policy that matches.
    fn first(&self, policy: &Value, case: &Case, path: Path<'_>) -> Option<usize> {
        let judge = Judge { naive: self, policy, case, path };
        policy["spec"]["rules"].as_array()?.iter().position(|rule| judge.rule(rule))
    }
}

fn is_dry(object: &Value) -> bool {
    let action = object["spec"]["action"].as_str().unwrap_or("ALLOW");
    object["metadata"]["annotations"]["istio.io/dry-run"] == "true" && ["ALLOW", "DENY"].contains(&action)
}

fn name(object: &Value) -> String {
    let part = |name: &str| object["metadata"][name].as_str().unwrap().to_owned();
    format!("{}/{}", part("namespace"), part("name"))
}

struct Judge<'a> {
    naive: &'a Naive<'a>,
    policy: &'a Value,
    case: &'a Case,
    path: Path<'a>,
}

/// Fields of sources and operations, and the condition that each is.
const FIELDS: [(&str, &str); 11] = [
    ("principals", "source.principal"),
    ("requestPrincipals", "request.auth.principal"),
    ("namespaces", "source.namespace"),
    ("serviceAccounts", "source.serviceAccount"),
    ("trustDomains", "source.trustDomain"),
    ("ipBlocks", "source.ip"),
    ("remoteIpBlocks", "remote.ip"),
    ("hosts", "hosts"),
    ("ports", "destination.port"),
    ("methods", "methods"),
    ("paths", "paths"),
];

/// Negated or not, condition, values.
type Constraint = (bool, String, Vec<String>);

fn constraints(of: &Value) -> Vec<Constraint> {
    let mut all = Vec::new();
    for (field, key) in FIELDS {
        let mut capital = field.to_owned();
        capital[..1].make_ascii_uppercase();
        all.extend(strings(&of[field]).map(|values| (false, key.to_owned(), values)));
        all.extend(strings(&of[format!("not{capital}")]).map(|values| (true, key.to_owned(), values)));
    }
    all
}

fn strings(list: &Value) -> Option<Vec<String>> {
    Some(list.as_array()?.iter().map(|value| value.as_str().unwrap().to_owned()).collect())
}

fn is_http(key: &str) -> bool {
    ["hosts", "methods", "paths"].contains(&key) || key.starts_with("request.")
}

impl Judge<'_> {
    fn action(&self) -> &str {
        self.policy["spec"]["action"].as_str().unwrap_or("ALLOW")
    }

    fn rule(&self, rule: &Value) -> bool {
        let members = |part: &str, inner: &str| -> Option<Vec<Vec<Constraint>>> {
            Some(rule[part].as_array()?.iter().map(|member| constraints(&member[inner])).collect())
        };
        let (from, to) = (members("from", "source"), members("to", "operation"));
        let mut when: Vec<Constraint> = Vec::new();
        for condition in rule["when"].as_array().into_iter().flatten() {
            let key = condition["key"].as_str().unwrap();
            when.extend(strings(&condition["values"]).map(|values| (false, key.to_owned(), values)));
            when.extend(strings(&condition["notValues"]).map(|values| (true, key.to_owned(), values)));
        }
        if self.case.http.is_none() && self.action() == "ALLOW" {
            let mut all = from.iter().chain(&to).flatten().flatten().chain(&when);
            if all.any(|(_, key, _)| is_http(key)) {
                return false;
            }
        }
        let any = |part: &Option<Vec<Vec<Constraint>>>| {
            part.as_ref().is_none_or(|members| members.iter().any(|member| self.all(member)))
        };
        any(&from) && any(&to) && self.all(&when)
    }

    fn all(&self, constraints: &[Constraint]) -> bool {
        constraints.iter().all(|(negated, key, values)| {
            if self.case.http.is_none() && is_http(key) {
                return true;
            }
            values.iter().any(|value| self.holds(key, value, *negated)) != *negated
        })
    }

    fn holds(&self, key: &str, value: &str, negated: bool) -> bool {
        let case = self.case;
        let peer = case.peer.as_deref().map(|peer| peer.trim_start_matches("spiffe://"));
        let identity = |pattern: &dyn Fn(&str, &str) -> bool| {
            let (_, rest) = peer?.split_once("/ns/")?;
            let (namespace, rest) = rest.split_once('/')?;
            Some(pattern(namespace, rest))
        };
        match key {
            "source.principal" => self.principals(value).iter().any(|one| text(one, peer)),
            "source.namespace" => identity(&|namespace, _| glob(value, namespace)).unwrap_or(false),
            "source.serviceAccount" => {
                let own = self.policy["metadata"]["namespace"].as_str().unwrap();
                let (of, account) = value.split_once('/').unwrap_or((own, value));
                identity(&|namespace, rest| namespace == of && rest == format!("sa/{account}"))
                    .unwrap_or(false)
            }
            "source.trustDomain" => {
                let domain = peer.map(|peer| peer.split('/').next().unwrap());
                self.ours_or(value).iter().any(|one| text(one, domain))
            }
            "source.ip" => block(value, case.source),
            "remote.ip" => block(value, case.remote.unwrap_or(case.source)),
            "destination.ip" => block(value, case.destination.ip()),
            "destination.port" => value == case.destination.port().to_string(),
            "connection.sni" => text(value, case.sni.as_deref()),
            _ => self.holds_http(key, value, negated, case.http.as_ref().unwrap()),
        }
    }

    fn holds_http(&self, key: &str, value: &str, negated: bool, http: &HttpCase) -> bool {
        let claim = |name: &str| http.claims.as_ref().and_then(|claims| claims.get(name));
        match key {
            "hosts" => {
                let host = http.host.as_ref().map(|host| host.to_lowercase());
                text(&value.to_lowercase(), host.as_deref())
            }
            "methods" => text(value, Some(&http.method)),
            "paths" => {
                let (path, further) = self.path.unwrap();
                // Where a match lets requests pass, it is narrow; under a further reading the value may be spelled
                // otherwise.
                let lets_pass = (self.action() == "ALLOW") != negated;
                let values = if lets_pass && further { spellings(value) } else { vec![value.to_owned()] };
                let is_template = value.contains("{*}") || value.contains("{**}");
                values.iter().any(|value| match is_template {
                    true => template(value, path, lets_pass && !further),
                    false => text(value, Some(path)),
                })
            }
            "request.auth.principal" => {
                let part = |name: &str| claim(name)?.as_str();
                let (Some(issuer), Some(subject)) = (part("iss"), part("sub")) else { return false };
                match value.rsplit_once('/') {
                    Some((iss, sub)) => text(iss, Some(issuer)) && text(sub, Some(subject)),
                    None if value == "*" => !issuer.is_empty() && !subject.is_empty(),
                    None if value.starts_with('*') => !issuer.is_empty() && text(value, Some(subject)),
                    None if value.ends_with('*') => text(value, Some(issuer)) && !subject.is_empty(),
                    None => false,
                }
            }
            "request.auth.audiences" => in_claim(value, claim("aud"), false),
            "request.auth.presenter" => in_claim(value, claim("azp"), false),
            _ if key.starts_with("request.headers[") => {
                let name = key["request.headers[".len()..].trim_end_matches(']');
                let values: Vec<&str> = http
                    .headers
                    .iter()
                    .filter(|(of, _)| of.eq_ignore_ascii_case(name))
                    .map(|(_, value)| value.as_str())
                    .collect();
                !values.is_empty() && (value == "*" || text(value, Some(&values.join(","))))
            }
            _ => {
                let path = key.strip_prefix("request.auth.claims[").unwrap().trim_end_matches(']');
                let parts: Vec<&str> = path.split("][").collect();
                let mut found = http.claims.as_ref();
                for part in &parts {
                    found = found.and_then(|claims| claims.get(part));
                }
                let split = parts == ["scope"] || parts == ["permission"];
                in_claim(value, found, split)
            }
        }
    }

    /// A complete principal of our domain, an alias or `cluster.local` stands for all of ours.
    fn principals(&self, value: &str) -> Vec<String> {
        let parts: Vec<&str> = value.split('/').collect();
        if parts.len() != 5 {
            return vec![value.to_owned()];
        }
        self.ours_or(parts[0]).iter().map(|domain| format!("{domain}/{}", parts[1..].join("/"))).collect()
    }

    fn ours_or(&self, domain: &str) -> Vec<String> {
        let mesh = self.naive.mesh;
        let mut ours = mesh.trust_domain_aliases.clone();
        ours.push(mesh.trust_domain.clone());
        if domain == "cluster.local" || ours.iter().any(|one| one == domain) {
            return ours;
        }
        vec![domain.to_owned()]
    }
}

/// Exact, `abc*`, `*abc`, `*`.
fn text(rule: &str, value: Option<&str>) -> bool {
    let Some(value) = value else { return false };
    match rule {
        "*" => !value.is_empty(),
        _ if rule.starts_with('*') => value.ends_with(&rule[1..]),
        _ if rule.ends_with('*') => value.starts_with(&rule[..rule.len() - 1]),
        _ => value == rule,
    }
}

/// A value of `paths` with its escapes decoded or its parameters dropped, in any order.
fn spellings(value: &str) -> Vec<String> {
    let (before, rest) = if value.starts_with('*') { value.split_at(1) } else { ("", value) };
    let ends = before.is_empty() && rest.ends_with('*') && !rest.ends_with("{*}");
    let (body, after) = rest.split_at(rest.len() - usize::from(ends));
    let mut all = vec![body.to_owned()];
    for _ in 0..3 {
        for known in all.clone() {
            let plain: Vec<&str> =
                known.split('/').map(|segment| segment.split(';').next().unwrap()).collect();
            all.push(plain.join("/"));
            let decoded = percent_encoding::percent_decode_str(&known).decode_utf8().unwrap();
            all.push(decoded.into_owned());
        }
        all.sort();
        all.dedup();
    }
    all.iter().map(|body| format!("{before}{body}{after}")).collect()
}

fn glob(rule: &str, value: &str) -> bool {
    match rule.split_once('*') {
        None => rule == value,
        Some((head, rest)) => {
            let Some(behind) = value.strip_prefix(head) else { return false };
            (0..=behind.len()).any(|at| glob(rest, &behind[at..]))
        }
    }
}

fn block(rule: &str, address: IpAddr) -> bool {
    match rule.parse::<IpNet>() {
        Ok(block) => block.contains(&address),
        Err(_) => rule.parse() == Ok(address),
    }
}

fn in_claim(rule: &str, claim: Option<&Value>, split: bool) -> bool {
    match claim {
        Some(Value::String(whole)) if split => whole.split(' ').any(|part| text(rule, Some(part))),
        Some(Value::String(whole)) => text(rule, Some(whole)),
        Some(Value::Array(members)) => members.iter().any(|member| text(rule, member.as_str())),
        _ => false,
    }
}

/// Segment by segment; `{**}` tries every length.
fn template(rule: &str, path: &str, narrow: bool) -> bool {
    let good = |span: &str| {
        !narrow || span.chars().all(|c| c.is_ascii_alphanumeric() || "-._~%!$&'()+,;:@/".contains(c))
    };
    if let Some((before, after)) = rule.split_once("{**}") {
        return (0..=path.len()).filter(|at| path.is_char_boundary(*at)).any(|start| {
            (start..=path.len()).filter(|at| path.is_char_boundary(*at)).any(|end| {
                template(before, &path[..start], narrow) && good(&path[start..end]) && path[end..] == *after
            })
        });
    }
    let (rules, segments): (Vec<_>, Vec<_>) = (rule.split('/').collect(), path.split('/').collect());
    rules.len() == segments.len()
        && rules.iter().zip(segments).all(|(rule, segment)| match *rule {
            "{*}" => !segment.is_empty() && good(segment),
            literal => literal == segment,
        })
}
