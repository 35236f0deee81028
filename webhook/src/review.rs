//! `admission.k8s.io/v1` AdmissionReview in and out, as far as the creation of pods and the writing of policies
//! need it. The types are our own: the object must stay raw JSON, and a patch is base64 text.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cinch_injection::Op;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

const API_VERSION: &str = "admission.k8s.io/v1";
const KIND: &str = "AdmissionReview";
/// API groups of the policies, and of what people bring beside them and is refused by its kind.
const POLICY_GROUPS: [&str; 3] = ["security.istio.io", "networking.istio.io", "extensions.istio.io"];

/// Why the bytes are no review that is asked here; each text says what was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The body is not JSON, or not of this shape.
    #[error("the body is no AdmissionReview: {0}")]
    Json(String),
    /// Another version or kind.
    #[error("the body is {0}, not {API_VERSION} {KIND}")]
    Kind(String),
    /// There is no `request`.
    #[error("the review has no request")]
    NoRequest,
    /// There is no `request.uid`, so there is nothing to answer.
    #[error("the request has no uid")]
    NoUid,
    /// The request is about something else than the creation of a pod.
    #[error("the request is about {0}, not the creation of a pod")]
    NotAPod(String),
    /// The request is about something else than a policy that is written.
    #[error("the request is about {0}, not a policy of Istio that is created or updated")]
    NotAPolicy(String),
    /// There is no `request.object`.
    #[error("the request has no object")]
    NoObject,
    /// There is no `request.namespace`.
    #[error("the request has no namespace")]
    NoNamespace,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    #[serde(default)]
    api_version: String,
    #[serde(default)]
    kind: String,
    request: Option<RawRequest>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRequest {
    #[serde(default)]
    uid: String,
    kind: Option<GroupVersionKind>,
    #[serde(default)]
    sub_resource: String,
    #[serde(default)]
    operation: String,
    #[serde(default)]
    namespace: String,
    object: Option<Value>,
    old_object: Option<Value>,
    #[serde(default)]
    dry_run: Option<bool>,
}

#[derive(Deserialize)]
struct GroupVersionKind {
    #[serde(default)]
    group: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    kind: String,
}

impl RawRequest {
    /// What every review has in common.
    fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let envelope: Envelope =
            serde_json::from_slice(body).map_err(|error| Malformed::Json(error.to_string()))?;
        if envelope.api_version != API_VERSION || envelope.kind != KIND {
            return Err(Malformed::Kind(format!("{:?} {:?}", envelope.api_version, envelope.kind)));
        }
        let request = envelope.request.ok_or(Malformed::NoRequest)?;
        if request.uid.is_empty() {
            return Err(Malformed::NoUid);
        }
        Ok(request)
    }

    /// In the words of a refusal.
    fn about(&self) -> String {
        let kind = self.kind.as_ref().map_or("nothing", |kind| kind.kind.as_str());
        format!("{} {kind} {}", self.operation, self.sub_resource)
    }
}

/// API servers write what identifies a review first: it stands in so many bytes.
pub const STARTS_WITHIN: usize = 4096;

/// `request.uid` of a review, of which only the start may be there, or which holds what can't be read behind it.
#[must_use]
pub fn uid_of(body: &[u8]) -> Option<String> {
    let start = body.get(..STARTS_WITHIN).unwrap_or(body);
    let mut found = None;
    let uid = TextAt { path: &["request", "uid"], found: &mut found };
    // What comes behind it is cut, most likely.
    let _ = uid.deserialize(&mut serde_json::Deserializer::from_slice(start));
    found.filter(|uid| !uid.is_empty())
}

/// Finds the text at a path of names, and keeps it whatever follows.
struct TextAt<'a> {
    path: &'a [&'a str],
    found: &'a mut Option<String>,
}

impl<'de> DeserializeSeed<'de> for TextAt<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.path.is_empty() {
            *self.found = Some(String::deserialize(deserializer)?);
            return Ok(());
        }
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TextAt<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<(), M::Error> {
        let Some((name, path)) = self.path.split_first() else { return Ok(()) };
        while let Some(key) = map.next_key::<String>()? {
            if key == *name {
                map.next_value_seed(TextAt { path, found: &mut *self.found })?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

/// The request to create a pod.
#[derive(Debug)]
pub struct Request {
    /// To be echoed in the response.
    pub uid: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// The pod.
    pub pod: Value,
    /// Whether nothing will come of it.
    pub dry_run: bool,
}

impl Request {
    /// Reads the body of a review.
    ///
    /// # Errors
    /// The body is no review of a pod's creation.
    pub fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let request = RawRequest::parse(body)?;
        let is_pod =
            request.kind.as_ref().is_some_and(|k| k.group.is_empty() && k.version == "v1" && k.kind == "Pod");
        if !is_pod || !request.sub_resource.is_empty() || request.operation != "CREATE" {
            return Err(Malformed::NotAPod(request.about()));
        }
        let pod = request.object.filter(|object| !object.is_null()).ok_or(Malformed::NoObject)?;
        if request.namespace.is_empty() {
            return Err(Malformed::NoNamespace);
        }
        let dry_run = request.dry_run.unwrap_or_default();
        Ok(Self { uid: request.uid, namespace: request.namespace, pod, dry_run })
    }
}

/// The request to write a policy.
#[derive(Debug)]
pub struct PolicyRequest {
    /// To be echoed in the response.
    pub uid: String,
    /// The policy as it is to be.
    pub object: Value,
    /// The policy as it is; `None` when it is created.
    pub old: Option<Value>,
}

impl PolicyRequest {
    /// Reads the body of a review. The object's namespace is the request's: on a create it may be left out of
    /// the object.
    ///
    /// # Errors
    /// The body is no review of a policy that is created or updated.
    pub fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let request = RawRequest::parse(body)?;
        let ours = request.kind.as_ref().is_some_and(|k| POLICY_GROUPS.contains(&k.group.as_str()));
        let written = matches!(request.operation.as_str(), "CREATE" | "UPDATE");
        if !ours || !written || !request.sub_resource.is_empty() {
            return Err(Malformed::NotAPolicy(request.about()));
        }
        let mut object = request.object.filter(Value::is_object).ok_or(Malformed::NoObject)?;
        if request.namespace.is_empty() {
            return Err(Malformed::NoNamespace);
        }
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("namespace".to_owned(), Value::String(request.namespace));
        }
        let old = request.old_object.filter(|old| !old.is_null());
        Ok(Self { uid: request.uid, object, old })
    }
}

/// The whole answer.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Review {
    api_version: &'static str,
    kind: &'static str,
    response: Response,
}

/// `AdmissionResponse`.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Response {
    uid: String,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Status>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    audit_annotations: BTreeMap<&'static str, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Status {
    code: u16,
    reason: &'static str,
    message: String,
}

impl Response {
    /// The object may be stored, with these changes.
    ///
    /// # Errors
    /// The operations can't be written as JSON.
    pub fn allow(uid: &str, operations: &[Op], warnings: Vec<String>) -> serde_json::Result<Self> {
        let mut response = Self { uid: uid.to_owned(), allowed: true, warnings, ..Self::default() };
        if !operations.is_empty() {
            response.patch = Some(STANDARD.encode(serde_json::to_vec(operations)?));
            response.patch_type = Some("JSONPatch");
        }
        Ok(response)
    }

    /// The object may not be stored; the message is what the user reads.
    #[must_use]
    pub fn refuse(uid: &str, message: String, warnings: Vec<String>) -> Self {
        let status = Status { code: 403, reason: "Forbidden", message };
        Self { uid: uid.to_owned(), status: Some(status), warnings, ..Self::default() }
    }

    /// Adds what the audit log shall show.
    #[must_use]
    pub fn audited(mut self, outcome: String) -> Self {
        self.audit_annotations.insert("outcome", outcome);
        self
    }

    /// The body to answer with.
    ///
    /// # Errors
    /// It can't be written as JSON.
    pub fn to_body(self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(&Review { api_version: API_VERSION, kind: KIND, response: self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn review(change: impl FnOnce(&mut Value)) -> Vec<u8> {
        let mut review = json!({"apiVersion": API_VERSION, "kind": KIND, "request": {
            "uid": "u", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": "CREATE",
            "namespace": "shop", "object": {"metadata": {}}, "dryRun": true}});
        change(&mut review);
        serde_json::to_vec(&review).unwrap()
    }

    #[test]
    fn a_review_is_read() {
        let request = Request::parse(&review(|_| {})).unwrap();
        assert_eq!((request.uid.as_str(), request.namespace.as_str(), request.dry_run), ("u", "shop", true));
    }

    #[test]
    fn what_is_no_review_of_a_pod_is_named() {
        type Change = fn(&mut Value);
        let cases: &[(&str, Change)] = &[
            ("no request", |r| r["request"] = Value::Null),
            ("no uid", |r| r["request"]["uid"] = json!("")),
            ("no object", |r| r["request"]["object"] = Value::Null),
            ("no namespace", |r| r["request"]["namespace"] = json!("")),
            ("is about CREATE Node", |r| r["request"]["kind"]["kind"] = json!("Node")),
            ("is about CREATE nothing", |r| r["request"]["kind"] = Value::Null),
            ("is about DELETE Pod", |r| r["request"]["operation"] = json!("DELETE")),
            ("Pod exec", |r| r["request"]["subResource"] = json!("exec")),
            ("v1beta1", |r| r["apiVersion"] = json!("admission.k8s.io/v1beta1")),
            ("\"List\"", |r| r["kind"] = json!("List")),
            ("invalid type", |r| r["request"] = json!("x")),
            ("no AdmissionReview", |r| *r = json!([])),
        ];
        for (want, change) in cases {
            let error = Request::parse(&review(change)).unwrap_err().to_string();
            assert!(error.contains(want), "{want}: {error}");
        }
        let nested = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        for bad in [&b""[..], b"{", b"\xff\xfe", b"null", nested.as_bytes()] {
            assert!(Request::parse(bad).is_err());
        }
        let deep = format!(
            r#"{{"apiVersion": "{API_VERSION}", "kind": "{KIND}", "request": {{"object": {nested}}}}}"#
        );
        assert!(Request::parse(deep.as_bytes()).unwrap_err().to_string().contains("recursion"));
    }

    #[test]
    fn the_uid_is_found_in_what_is_cut_too_long_or_too_deep() {
        let head =
            format!(r#"{{"kind":"{KIND}","apiVersion":"{API_VERSION}","request":{{"uid":"u1","object":"#);
        let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
        for body in
            [head.clone(), format!(r#"{head}{{"a":"b"#), format!("{head}{deep}}}}}"), format!("{head}?")]
        {
            assert_eq!(uid_of(body.as_bytes()).as_deref(), Some("u1"), "{body}");
        }
        let earlier =
            r#"{"request": {"object": {"uid": "no"}, "kind": {"request": {"uid": "no"}}, "uid": "u2"}}"#;
        assert_eq!(uid_of(earlier.as_bytes()).as_deref(), Some("u2"));
        for bad in
            ["", "{", "[]", "null", r#"{"request": "u"}"#, r#"{"request": {"uid": 1}}"#, r#"{"uid": "u"}"#]
        {
            assert_eq!(uid_of(bad.as_bytes()), None, "{bad}");
        }
        assert_eq!(uid_of(br#"{"request": {"uid": ""}}"#), None);
    }

    #[test]
    fn the_answer_has_the_shape_that_the_api_server_reads() {
        let request = Request::parse(&review(|_| {})).unwrap();
        let ops = [Op::Remove { path: "/x".into() }];
        let body = Response::allow(&request.uid, &ops, vec!["w".into()]).unwrap().to_body().unwrap();
        let value: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            value,
            json!({"apiVersion": API_VERSION, "kind": KIND, "response": {"uid": "u", "allowed": true,
            "patch": STANDARD.encode(r#"[{"op":"remove","path":"/x"}]"#), "patchType": "JSONPatch", "warnings": ["w"]}})
        );
        let body =
            Response::refuse(&request.uid, "no".into(), Vec::new()).audited("X".into()).to_body().unwrap();
        let value: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(value["response"]["status"], json!({"code": 403, "reason": "Forbidden", "message": "no"}));
        assert_eq!(value["response"]["allowed"], false);
    }
}
