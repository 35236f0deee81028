//! One case: its operation and what it needs in, the answer out.

use super::authorize;
use super::case::{Providers, RequestCase, or_default};
use cinch_identity::SpiffeId;
use cinch_policy::{
    MeshConfig, PathNormalization, PolicyObject, Validation, Workload, WorkloadPolicies, normalize, validate,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// A case as it is written. Fields that its operation doesn't need are passed over.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Case {
    /// What is asked.
    pub op: Operation,
    /// Settings of the mesh.
    #[serde(default, deserialize_with = "or_default")]
    pub mesh: MeshConfig,
    /// Kubernetes objects.
    #[serde(default, deserialize_with = "or_default")]
    pub policies: Vec<Value>,
    /// The workload for which they are put together.
    #[serde(default, deserialize_with = "or_default")]
    pub workload: Workload,
    /// What comes to it.
    #[serde(default)]
    pub request: Option<RequestCase>,
    /// Key sets by jwksUri or issuer.
    #[serde(default, deserialize_with = "or_default")]
    pub jwks: BTreeMap<String, Value>,
    /// Seconds since 1970; left out: the clock's.
    #[serde(default)]
    pub now: Option<f64>,
    /// What providers answer.
    #[serde(default, deserialize_with = "or_default")]
    pub providers: Providers,
    /// For `mtls`.
    #[serde(default, deserialize_with = "or_default")]
    pub ports: Vec<u16>,
    /// For `normalize`; left out: the mesh's.
    #[serde(default)]
    pub mode: Option<PathNormalization>,
    /// For `normalize`.
    #[serde(default)]
    pub path: Option<String>,
    /// For `validate`.
    #[serde(default)]
    pub object: Option<Value>,
    /// For `spiffe`.
    #[serde(default)]
    pub spiffe_id: Option<String>,
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// What becomes of a request or connection.
    Authorize,
    /// What the workload's ports accept.
    Mtls,
    /// How a path is read.
    Normalize,
    /// What admission would say to an object.
    Validate,
    /// The parts of a SPIFFE ID.
    Spiffe,
}

/// An answer, to be written as one object.
pub type Answer = Map<String, Value>;

/// Answers a case.
///
/// # Errors
/// A sentence, when the case lacks something or holds what is no policy.
pub fn answer(case: Case) -> Result<Answer, String> {
    let answer = match case.op {
        Operation::Authorize => authorize::authorize(&case)?,
        Operation::Mtls => mtls(&case)?,
        Operation::Normalize => {
            let path = case.path.as_deref().ok_or("path is missing")?;
            path_readings(case.mode.unwrap_or(case.mesh.path_normalization), path)
        }
        Operation::Validate => {
            let object = case.object.as_ref().ok_or("object is missing")?;
            validated(object, &case.mesh)
        }
        Operation::Spiffe => spiffe(case.spiffe_id.as_deref().ok_or("spiffeId is missing")?)?,
    };
    match answer {
        Value::Object(answer) => Ok(answer),
        other => Err(format!("{other} is no answer")),
    }
}

/// The policies of a case, put together for its workload.
///
/// # Errors
/// When one is no policy at all; a broken one closes what it selects.
pub fn policies(case: &Case) -> Result<Vec<PolicyObject>, String> {
    let read =
        |(index, object)| PolicyObject::parse(object).map_err(|error| format!("policies[{index}]: {error}"));
    case.policies.iter().enumerate().map(read).collect()
}

fn mtls(case: &Case) -> Result<Value, String> {
    let policies = policies(case)?;
    let compiled = WorkloadPolicies::compile(&case.mesh, &policies, &case.workload);
    let modes = compiled.mtls();
    let ports = case.ports.iter().map(|port| (port.to_string(), json!(modes.mode(*port))));
    Ok(json!({"mode": modes.default_mode(), "ports": ports.collect::<Map<_, _>>()}))
}

fn path_readings(mode: PathNormalization, path: &str) -> Value {
    let readings = match normalize(mode, path) {
        Ok(readings) => readings,
        Err(bad) => return json!({"status": 400, "reason": bad.reason()}),
    };
    let path = readings.target();
    match mode {
        PathNormalization::Safe => {
            json!({"path": path, "readings": readings.named().collect::<Vec<_>>()})
        }
        _ => json!({"path": path}),
    }
}

fn validated(object: &Value, mesh: &MeshConfig) -> Value {
    let Validation { errors, warnings } = validate(object, mesh);
    match errors.is_empty() {
        true => json!({"valid": true, "warnings": warnings}),
        false => json!({"valid": false, "errors": errors}),
    }
}

fn spiffe(id: &str) -> Result<Value, String> {
    let id = SpiffeId::parse(id).map_err(|error| error.to_string())?;
    let scheme_and_domain = "spiffe://".len() + id.trust_domain_str().len();
    let path = id.as_str().get(scheme_and_domain..).unwrap_or_default();
    Ok(json!({"trustDomain": id.trust_domain_str(), "path": path}))
}
