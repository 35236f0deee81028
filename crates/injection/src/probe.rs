//! Probes: the kubelet's httpGet and tcpSocket probes are pointed at the sidecar, which does the declared
//! probe itself; so they go on working when the app's ports are STRICT. The originals travel in the sidecar's
//! environment, which nobody can change in a running pod.
//!
//! Two steps, because the path's MAC needs the service account, which is decided in between: [`plan`] reads
//! the pod and refuses what can't be rewritten, [`rewrite`] gives operations and the originals.

use crate::eligible::Because;
use crate::operation::Op;
use crate::pod::{Container, Pod};
use crate::sidecar::{OWN_PORTS, PROBE_PORT, PROBES_VARIABLE, PROXY_CONTAINER};
use aws_lc_rs::{constant_time, hmac};
use cinch_reason::Reason;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::fmt::{self, Write as _};

/// One original probe, as an element of the variable `CINCH_PROBES`. Exactly one of `http` and `tcp` is set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Probe {
    /// Where the kubelet asks for it, on port 15021: `/probe/<container>/<kind>/<mac>`.
    pub path: String,
    /// The probe is an HTTP GET.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpProbe>,
    /// The probe is a TCP connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpProbe>,
    /// Seconds after which the probe has failed.
    pub timeout_seconds: u32,
}

/// HTTP GET to the pod's own address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpProbe {
    /// Port of the app.
    pub port: u16,
    /// Path with query, beginning with `/`.
    pub path: String,
    /// Host to connect to; always absent, for probes of other hosts are left to the kubelet.
    pub host: Option<String>,
    /// Headers in their order, `Host` among them if declared.
    pub headers: Vec<(String, String)>,
}

/// TCP connect to the pod's own address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcpProbe {
    /// Port of the app.
    pub port: u16,
}

/// Key of the MAC in probe paths. It never leaves the webhook.
pub struct ProbeKey(hmac::Key);

/// A probe key has at least 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the probe key is shorter than 32 bytes")]
pub struct ProbeKeyTooShort;

impl fmt::Debug for ProbeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProbeKey(..)")
    }
}

impl ProbeKey {
    /// The key from its bytes.
    ///
    /// # Errors
    /// Fewer than 32 bytes.
    pub fn new(bytes: &[u8]) -> Result<Self, ProbeKeyTooShort> {
        if bytes.len() < 32 {
            return Err(ProbeKeyTooShort);
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, bytes)))
    }

    /// The first 16 bytes, in hex, of HMAC-SHA256 over the fields, each with its length before it so that no
    /// two lists of fields give the same bytes.
    fn mac(&self, fields: [&[u8]; 5]) -> String {
        let mut context = hmac::Context::with_key(&self.0);
        for field in fields {
            context.update(&(field.len() as u64).to_be_bytes());
            context.update(field);
        }
        context.sign().as_ref().iter().take(16).fold(String::with_capacity(32), |mut text, byte| {
            // Writing to a String can not fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    }
}

/// The three kinds: member of the container, and word in the path.
const KINDS: [(&str, &str); 3] =
    [("readinessProbe", "readiness"), ("livenessProbe", "liveness"), ("startupProbe", "startup")];

/// A probe that is to go through the sidecar, without its path yet.
pub(crate) struct Planned {
    container: String,
    kind: &'static str,
    /// JSON Pointer of the probe.
    pointer: String,
    /// The handler that stands there: `httpGet` or `tcpSocket`.
    handler: &'static str,
    found: Value,
    state: State,
}

enum State {
    Original(Probe),
    /// Points at the sidecar already, under this path.
    Rewritten(String),
}

/// Every probe to be rewritten, or why the pod must be left alone.
pub(crate) fn plan(pod: &Pod<'_>) -> Result<Vec<Planned>, Because> {
    let mut planned = Vec::new();
    for container in pod.users() {
        for (member, kind) in KINDS {
            let Some(probe) = container.raw.get(member).filter(|probe| !probe.is_null()) else {
                continue;
            };
            let found = plan_one(container, probe).map_err(|(reason, why)| {
                (reason, format!("container {}, {member}: {why}", container.name))
            })?;
            if let Some((handler, found, state)) = found {
                let pointer = format!("{}/{member}", container.path());
                planned.push(Planned {
                    container: container.name.to_owned(),
                    kind,
                    pointer,
                    handler,
                    found,
                    state,
                });
            }
        }
    }
    Ok(planned)
}

type Found = Option<(&'static str, Value, State)>;

fn plan_one(container: &Container<'_>, probe: &Value) -> Result<Found, Because> {
    let handler = |key: &str| probe.get(key).filter(|handler| !handler.is_null());
    if handler("grpc").is_some() {
        return Err((Reason::ProbeNotSupported, "grpc".to_owned()));
    }
    let timeout = probe.get("timeoutSeconds").and_then(Value::as_u64).unwrap_or(1);
    let timeout_seconds = u32::try_from(timeout).unwrap_or(u32::MAX).max(1);
    if let Some(http) = handler("httpGet") {
        if leaves_the_pod(http) {
            return Ok(None);
        }
        if http.get("scheme").and_then(Value::as_str).is_some_and(|scheme| scheme != "HTTP") {
            return Err((Reason::ProbeNotSupported, "httpGet over https".to_owned()));
        }
        let path = http.get("path").and_then(Value::as_str).unwrap_or_default();
        if path.starts_with("/probe/")
            && http.get("port").and_then(Value::as_u64) == Some(u64::from(PROBE_PORT))
        {
            return Ok(Some(("httpGet", http.clone(), State::Rewritten(path.to_owned()))));
        }
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let own = HttpProbe { port: port(container, http)?, path, host: None, headers: headers(http)? };
        let own = Probe { path: String::new(), http: Some(own), tcp: None, timeout_seconds };
        return Ok(Some(("httpGet", http.clone(), State::Original(own))));
    }
    if let Some(tcp) = handler("tcpSocket") {
        if leaves_the_pod(tcp) {
            return Ok(None);
        }
        let own = TcpProbe { port: port(container, tcp)? };
        let own = Probe { path: String::new(), http: None, tcp: Some(own), timeout_seconds };
        return Ok(Some(("tcpSocket", tcp.clone(), State::Original(own))));
    }
    Ok(None)
}

/// With `host` set the kubelet asks somebody else than the pod, and the sidecar is not in between.
fn leaves_the_pod(handler: &Value) -> bool {
    handler.get("host").and_then(Value::as_str).is_some_and(|host| !host.is_empty())
}

/// Numeric ports stand for themselves; a name is looked up among the container's own ports, and only there,
/// as the kubelet does.
fn port(container: &Container<'_>, handler: &Value) -> Result<u16, Because> {
    let number = match handler.get("port") {
        Some(Value::Number(number)) => number.as_u64(),
        Some(Value::String(name)) => container
            .list("ports")
            .iter()
            .find(|port| port.get("name").and_then(Value::as_str) == Some(name))
            .and_then(|port| port.get("containerPort")?.as_u64())
            .or_else(|| name.parse().ok()),
        _ => None,
    };
    let number = number.and_then(|n| u16::try_from(n).ok()).filter(|n| *n > 0).ok_or_else(|| {
        let port = handler.get("port").cloned().unwrap_or_default();
        (Reason::ProbeNotSupported, format!("port {port} is not among the ports of the container"))
    })?;
    if OWN_PORTS.contains(&number) {
        return Err((Reason::PortConflict, format!("port {number}")));
    }
    Ok(number)
}

fn headers(http: &Value) -> Result<Vec<(String, String)>, Because> {
    let list = http.get("httpHeaders").and_then(Value::as_array).into_iter().flatten();
    let text = |header: &Value, key: &str| header.get(key).and_then(Value::as_str).map(str::to_owned);
    list.map(|header| Some((text(header, "name")?, text(header, "value").unwrap_or_default())))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| (Reason::ProbeNotSupported, "a header has no name".to_owned()))
}

/// What becomes of the pod's probes.
pub(crate) struct Rewritten {
    pub operations: Vec<Op>,
    /// Value of the sidecar's variable.
    pub originals: String,
}

/// Whose probes they are: part of what the MAC binds.
pub(crate) struct Whose<'a> {
    pub namespace: &'a str,
    pub account: &'a str,
}

/// Points each planned probe at the sidecar. A probe that points there already must name an original in the
/// sidecar's environment under a MAC of ours.
pub(crate) fn rewrite(
    planned: Vec<Planned>,
    pod: &Pod<'_>,
    whose: &Whose<'_>,
    key: &ProbeKey,
) -> Result<Rewritten, Because> {
    let known = known_originals(pod);
    let mut operations = Vec::new();
    let mut originals = Vec::new();
    for plan in planned {
        let mut original = match &plan.state {
            State::Original(original) => original.clone(),
            State::Rewritten(path) => {
                known.iter().find(|probe| probe.path == *path).cloned().ok_or_else(|| {
                    let detail = format!("container {}, {} probe: path {path}", plan.container, plan.kind);
                    (Reason::SidecarShape, format!("{detail} is not among the probes of the sidecar"))
                })?
            }
        };
        let path = path_of(&original, &plan, whose, key);
        if let State::Rewritten(claimed) = &plan.state
            && constant_time::verify_slices_are_equal(claimed.as_bytes(), path.as_bytes()).is_err()
        {
            let detail = format!("container {}, {} probe", plan.container, plan.kind);
            return Err((Reason::SidecarShape, format!("{detail} was rewritten for another pod")));
        }
        operations.extend(point_at_sidecar(&plan, &path));
        original.path = path;
        originals.push(original);
    }
    let originals = serde_json::to_string(&originals)
        .map_err(|error| (Reason::WebhookFault, format!("probes can not be written: {error}")))?;
    // The kubelet expands $(NAME) and $$ in values of variables; written as an escape, a dollar stays one.
    let originals = originals.replace('$', "\\u0024");
    Ok(Rewritten { operations, originals })
}

fn path_of(original: &Probe, plan: &Planned, whose: &Whose<'_>, key: &ProbeKey) -> String {
    let bound = Probe { path: String::new(), ..original.clone() };
    let json = serde_json::to_vec(&bound).unwrap_or_default();
    let fields = [whose.namespace, whose.account, &plan.container, plan.kind].map(str::as_bytes);
    let [namespace, account, container, kind] = fields;
    let mac = key.mac([namespace, account, container, kind, &json]);
    format!("/probe/{}/{}/{mac}", plan.container, plan.kind)
}

/// The handler alone changes; the probe's timing, and whatever else it has, stay.
fn point_at_sidecar(plan: &Planned, path: &str) -> Vec<Op> {
    let wanted = json!({"path": path, "port": PROBE_PORT, "scheme": "HTTP"});
    let target = format!("{}/httpGet", plan.pointer);
    match plan.handler {
        "httpGet" if plan.found == wanted => Vec::new(),
        "httpGet" => vec![Op::replace(target, wanted)],
        handler => vec![Op::remove(format!("{}/{handler}", plan.pointer)), Op::add(target, wanted)],
    }
}

/// The originals that a sidecar in the pod (ours from an earlier pass, or somebody's) claims. They count for
/// nothing without their MAC.
fn known_originals(pod: &Pod<'_>) -> Vec<Probe> {
    let proxy = pod.init_containers.iter().find(|container| container.name == PROXY_CONTAINER);
    let variables = proxy.map_or(&[][..], |proxy| proxy.list("env"));
    variables
        .iter()
        .find(|variable| variable.get("name").and_then(Value::as_str) == Some(PROBES_VARIABLE))
        .and_then(|variable| serde_json::from_str(variable.get("value")?.as_str()?).ok())
        .unwrap_or_default()
}
