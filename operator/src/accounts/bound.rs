//! What hangs on a namespace's account `default`: role bindings that name it, and clouds that know it by its
//! annotations. Workloads must keep the account then, or they would lose what they may do.

use k8s_openapi::api::rbac::v1::Subject;
use std::collections::BTreeMap;

/// Annotations by which clouds give permissions to an account.
const CLOUD_ANNOTATIONS: [&str; 4] = [
    "eks.amazonaws.com/role-arn",
    "iam.gke.io/gcp-service-account",
    "azure.workload.identity/client-id",
    "azure.workload.identity/tenant-id",
];

/// The namespace whose `default` account a subject names, if it names one. Groups are not specific: all
/// accounts of a namespace are in `system:serviceaccounts:<namespace>`, those that we make too.
pub(super) fn names_default_of<'a>(
    subject: &'a Subject,
    binding_namespace: Option<&'a str>,
) -> Option<&'a str> {
    match subject.kind.as_str() {
        "ServiceAccount" if subject.name == "default" => {
            subject.namespace.as_deref().filter(|namespace| !namespace.is_empty()).or(binding_namespace)
        }
        "User" => subject.name.strip_prefix("system:serviceaccount:")?.strip_suffix(":default"),
        _ => None,
    }
}

/// The annotation by which a cloud knows an account.
pub(super) fn cloud_annotation(annotations: &BTreeMap<String, String>) -> Option<&'static str> {
    CLOUD_ANNOTATIONS.into_iter().find(|key| annotations.get(*key).is_some_and(|value| !value.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_a_subject_that_means_default_is_found() {
        let subject = |kind: &str, name: &str, namespace: Option<&str>| Subject {
            kind: kind.into(),
            name: name.into(),
            namespace: namespace.map(Into::into),
            ..Subject::default()
        };
        let cases = [
            ("account", subject("ServiceAccount", "default", Some("shop")), Some("shop")),
            (
                "account of the binding's own namespace",
                subject("ServiceAccount", "default", None),
                Some("own"),
            ),
            ("another account", subject("ServiceAccount", "web", Some("shop")), None),
            ("user form", subject("User", "system:serviceaccount:shop:default", None), Some("shop")),
            ("user form of another account", subject("User", "system:serviceaccount:shop:web", None), None),
            ("a person", subject("User", "default", None), None),
            ("the group of a namespace", subject("Group", "system:serviceaccounts:shop", None), None),
            ("a group called default", subject("Group", "default", None), None),
        ];
        for (case, subject, want) in cases {
            assert_eq!(names_default_of(&subject, Some("own")), want, "{case}");
        }
    }

    #[test]
    fn a_cloud_identity_counts() {
        let map = |key: &str, value: &str| [(key.to_owned(), value.to_owned())].into();
        assert!(cloud_annotation(&map("eks.amazonaws.com/role-arn", "arn:aws:iam::1:role/x")).is_some());
        assert!(cloud_annotation(&map("eks.amazonaws.com/role-arn", "")).is_none());
        assert!(cloud_annotation(&map("example.com/x", "y")).is_none());
    }
}
