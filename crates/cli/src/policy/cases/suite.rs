//! A file of cases as it is written, and the way from a case to the evaluator's answer.

use super::Verdict;
use super::difference::differences;
use crate::documents;
use crate::policy::eval::{Case as EvalCase, answer};
use anyhow::{Result, bail};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::net::SocketAddr;
use std::path::Path;

/// A file of cases.
#[derive(Debug)]
pub struct Suite {
    given: Map<String, Value>,
    policies: Vec<Value>,
    /// The cases in their order.
    pub cases: Vec<Case>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    policies: Vec<Value>,
    #[serde(default)]
    given: Map<String, Value>,
    cases: Vec<Case>,
}

/// One case.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// What it shows.
    pub name: String,
    #[serde(default)]
    given: Map<String, Value>,
    #[serde(default)]
    request: Option<Map<String, Value>>,
    #[serde(default)]
    ports: Option<Vec<u16>>,
    expect: Value,
}

/// The fields of `given`; `policies` are objects or files.
const GIVEN: [&str; 6] = ["mesh", "workload", "policies", "jwks", "now", "providers"];
/// Addresses for documentation (RFC 5737), where a case names none.
const SOURCE: &str = "192.0.2.1:40000";
const DESTINATION: &str = "192.0.2.2:8080";

impl Suite {
    /// Reads a file of cases, and the policies that it names.
    ///
    /// # Errors
    /// When a file can't be read, or one is no file of cases.
    pub fn read(path: &Path) -> Result<Self> {
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut suite = Suite { given: Map::new(), policies: Vec::new(), cases: Vec::new() };
        let mut found = false;
        for document in documents::read(path)? {
            if document.get("cases").is_none() {
                suite.policies.extend(policies_of(vec![document]));
                continue;
            }
            if found {
                bail!("there are two documents with cases; make them one");
            }
            found = true;
            let document: Document = serde_json::from_value(document)?;
            suite.policies.extend(opened(document.policies, folder)?);
            suite.given = document.given;
            suite.policies.extend(take_policies(&mut suite.given, folder)?);
            suite.cases = document.cases;
        }
        if suite.cases.is_empty() {
            bail!("there are no cases in it: write `cases: [{{name: …, request: …, expect: …}}]`");
        }
        known(&suite.given, "given")?;
        for case in &mut suite.cases {
            known(&case.given, &format!("case {:?}: given", case.name))?;
            let own = take_policies(&mut case.given, folder)?;
            if !own.is_empty() {
                case.given.insert("policies".to_owned(), Value::Array(own));
            }
        }
        Ok(suite)
    }

    /// Runs a case.
    pub fn check(&self, case: &Case) -> Verdict {
        match self.asked(case).and_then(|asked| {
            let expected = expected(&case.expect)?;
            let parsed = EvalCase::deserialize(&asked).map_err(|error| error.to_string())?;
            Ok((answer(parsed)?, expected, asked))
        }) {
            Err(error) => Verdict::Broken(error),
            Ok((got, expected, asked)) => match differences(&expected, &got) {
                lines if lines.is_empty() => Verdict::Passed,
                lines => Verdict::Failed(lines.into_iter().chain(context(&asked, &got)).collect()),
            },
        }
    }

    /// The case as the evaluator takes it.
    fn asked(&self, case: &Case) -> Result<Value, String> {
        let mut asked = self.given.clone();
        let mut policies = self.policies.clone();
        for (key, value) in &case.given {
            match (key.as_str(), value) {
                ("policies", Value::Array(own)) => policies.extend(own.iter().cloned()),
                _ => drop(asked.insert(key.clone(), value.clone())),
            }
        }
        asked.insert("policies".to_owned(), Value::Array(policies));
        match (&case.request, &case.ports) {
            (Some(request), None) => {
                asked.insert("op".to_owned(), json!("authorize"));
                asked.insert("request".to_owned(), Value::Object(completed(request)?));
            }
            (None, Some(ports)) => {
                asked.insert("op".to_owned(), json!("mtls"));
                asked.insert("ports".to_owned(), json!(ports));
            }
            _ => return Err("a case has either a request or ports".to_owned()),
        }
        Ok(Value::Object(asked))
    }
}

fn known(given: &Map<String, Value>, place: &str) -> Result<()> {
    match given.keys().find(|key| !GIVEN.contains(&key.as_str())) {
        Some(key) => bail!("{place}.{key} is not known; there are {}", GIVEN.join(", ")),
        None => Ok(()),
    }
}

fn take_policies(given: &mut Map<String, Value>, folder: &Path) -> Result<Vec<Value>> {
    match given.remove("policies") {
        None => Ok(Vec::new()),
        Some(Value::Array(named)) => opened(named, folder),
        Some(_) => bail!("policies is a list of files and objects"),
    }
}

/// Objects as they stand; names of files as the policies in them.
fn opened(named: Vec<Value>, folder: &Path) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for one in named {
        match one {
            Value::String(file) => {
                let path = folder.join(&file);
                let policies = policies_of(documents::read(&path)?);
                if policies.is_empty() {
                    bail!("{} holds no policy", path.display());
                }
                all.extend(policies);
            }
            object => all.push(object),
        }
    }
    Ok(all)
}

/// Policies often stand in one file with the workloads that they are for.
pub fn policies_of(documents: Vec<Value>) -> Vec<Value> {
    let of_istio = |object: &Value| {
        let version = object.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
        version.split_once('/').is_some_and(|(group, _)| group == cinch_api::ISTIO_GROUP)
    };
    documents::objects(documents).into_iter().filter(of_istio).collect()
}

/// The request with what people leave out, and in the evaluator's own spelling.
fn completed(request: &Map<String, Value>) -> Result<Map<String, Value>, String> {
    let mut full = request.clone();
    if let Some(Value::String(peer)) = request.get("peer")
        && !peer.starts_with("spiffe://")
    {
        full.insert("peer".to_owned(), json!(format!("spiffe://{peer}")));
    }
    for (key, default) in [("source", SOURCE), ("destination", DESTINATION)] {
        let given = match request.get(key) {
            None => place(default, default)?,
            Some(Value::String(text)) => place(text, default)?,
            Some(given) => given.clone(),
        };
        full.insert(key.to_owned(), given);
    }
    if let Some(port) = full.remove("port")
        && let Some(destination) = full.get_mut("destination").and_then(Value::as_object_mut)
    {
        destination.insert("port".to_owned(), port);
    }
    if let Some(Value::Object(headers)) = request.get("headers") {
        let pairs = headers.iter().map(|(name, value)| json!([name, value]));
        full.insert("headers".to_owned(), pairs.collect());
    }
    Ok(full)
}

/// `address:port`, or an address alone.
fn place(text: &str, default: &str) -> Result<Value, String> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(json!({"ip": address.ip(), "port": address.port()}));
    }
    let port = default.rsplit(':').next().and_then(|port| port.parse::<u16>().ok());
    match text.parse::<std::net::IpAddr>() {
        Ok(ip) => Ok(json!({"ip": ip, "port": port})),
        Err(_) => Err(format!("{text:?} is no address: write for example 10.0.0.1:8080")),
    }
}

fn expected(expect: &Value) -> Result<Map<String, Value>, String> {
    match expect {
        Value::String(word) => Ok(Map::from_iter([("decision".to_owned(), json!(word))])),
        Value::Object(fields) if !fields.is_empty() => Ok(fields.clone()),
        _ => Err("expect is allow, deny, or the fields of the answer".to_owned()),
    }
}

/// What the person who reads a difference wants to see next.
fn context(asked: &Value, got: &Map<String, Value>) -> Vec<String> {
    let text = |pointer: &str| asked.pointer(pointer).and_then(Value::as_str);
    let mut lines = Vec::new();
    if asked.get("request").is_some() {
        let what = match text("/request/protocol") {
            Some("tcp") => "TCP".to_owned(),
            _ => format!(
                "{} {}",
                text("/request/method").unwrap_or("GET"),
                text("/request/path").unwrap_or("/")
            ),
        };
        let peer = text("/request/peer").unwrap_or("plaintext");
        let port = asked.pointer("/request/destination/port").cloned().unwrap_or_default();
        lines.push(format!("asked: {what} to port {port} by {peer}"));
        let by = match (got.get("policy").and_then(Value::as_str), got.get("rule").and_then(Value::as_u64)) {
            (Some(policy), Some(rule)) => format!(" by {policy}, rule {rule}"),
            (Some(policy), None) => format!(" by {policy}"),
            (None, _) => String::new(),
        };
        let word = |key: &str| got.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        lines.push(format!("got: {} ({}){by}", word("decision"), word("reason")));
    }
    let policies = asked.get("policies").and_then(Value::as_array).map_or(0, Vec::len);
    let labels = asked.pointer("/workload/labels").cloned().unwrap_or_else(|| json!({}));
    let namespace = text("/workload/namespace").unwrap_or_default();
    lines.push(format!(
        "given: {policies} policies, workload in namespace {namespace:?} with labels {labels}"
    ));
    lines
}
