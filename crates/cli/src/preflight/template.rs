//! What the webhook would say to a pod template: its own code decides.

use crate::survey::Survey;
use cinch_injection::template::{Place, Verdict, judge};
use serde_json::{Value, json};

/// What would become of an ordinary pod: tells what stands against the namespace as a whole.
pub fn of_namespace(survey: &Survey) -> Verdict {
    of_workload(survey, &json!({"spec": {"containers": [{"name": "app", "image": "app"}]}}))
}

/// What would become of a pod of this template.
pub fn of_workload(survey: &Survey, template: &Value) -> Verdict {
    let (labels, annotations) = (&survey.labels, &survey.annotations);
    judge(template, Place { namespace: &survey.namespace, labels, annotations, redirect: survey.redirect })
}

/// The account that the template asks for.
pub fn account(template: &Value) -> &str {
    ["/spec/serviceAccountName", "/spec/serviceAccount"]
        .iter()
        .find_map(|path| template.pointer(path)?.as_str())
        .filter(|name| !name.is_empty())
        .unwrap_or("default")
}
